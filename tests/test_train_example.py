"""examples/train.py from end to end, small: every configuration, resuming, several processes, what goes wrong.

Whole trainings are nightly, but for one configuration; all else is slow.

The images of CIFAR-10 are lossy JPEG copies, kept beside the repository, as are MNIST and a sample of N-MNIST. The
other data sets are small synthetic ones in their formats on disk.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import training_files as files
from exact import nightly

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow
for module in ("lightning", "jsonargparse", "tensorboard", "torchvision", "tonic", "aedat"):
    pytest.importorskip(module)


def command(config, folder, out, *options):
    settings = ["--config", EXAMPLES / "configs" / f"{config}.yaml", "--data.dir", folder, "--out", out]
    settings += ["--threads", "1", "--test_time_steps", "[2]", "--trainer.accelerator", "cpu", *options]
    return [sys.executable, EXAMPLES / "train.py", *map(str, settings)]


def train(*arguments):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """A folder with the data sets that are not at hand, and MNIST."""
    folder = tmp_path_factory.mktemp("synthetic")
    files.idx_files(folder / "FashionMNIST" / "raw", train=400, test=50)
    files.idx_files(folder / "MNIST" / "raw", train=100, test=20)
    files.cifar10_dvs(folder, 12)
    files.dvs128_gesture(folder, train=8)
    return folder


SMALL_CIFAR = ("--data.source", "folder", "--model.ann", "tandem_cuda.models.small_cifarnet")
# Configuration: "synthetic" or the real data set in a folder; options; accuracy to be reached, None where so little
# data cannot teach it.
CONFIGS = {
    "mnist": ("mnist", ("--data.limit", "2000", "--trainer.max_epochs", "2"), 0.7),
    "fashion_mnist": ("synthetic", ("--trainer.max_epochs", "4", "--data.shift", "0", "--data.flip", "false"), 0.5),
    "cifar10": ("cifar10/cifar10", (*SMALL_CIFAR, "--data.limit", "300", "--trainer.max_epochs", "1"), None),
    "nmnist": ("nmnist", ("--trainer.max_epochs", "2"), 0.3),
    "cifar10_dvs": ("synthetic", ("--trainer.max_epochs", "1", "--model.time_steps", "8"), None),
    "dvs128_gesture": ("synthetic", ("--trainer.max_epochs", "4", "--data.shift", "0"), 0.2),
    "mnist_autoencoder": (
        "mnist",
        (
            *("--data.limit", "2000", "--trainer.max_epochs", "6"),
            '--trainer.callbacks=[{"class_path": "recipes.AnnFirst", "init_args": {"epochs": 3}}]',
        ),
        None,
    ),
}


def test_all_configurations_are_tested():
    of_recipes = {"mnist_4bit", "mnist_ann_first", "mnist_progressive"}  # tests/test_recipes.py
    assert {path.stem for path in (EXAMPLES / "configs").iterdir()} == set(CONFIGS) | of_recipes


@pytest.mark.parametrize("config", [x if x == "fashion_mnist" else nightly(x) for x in CONFIGS])
def test_configuration(request, tmp_path, config):
    where, options, least = CONFIGS[config]
    kind, _, below = where.partition("/")
    folder = request.getfixturevalue("synthetic") if kind == "synthetic" else request.getfixturevalue("laid_out")(kind)
    out = tmp_path / "new" / "folder"
    shown = train(config, folder / below, out, *options)
    epochs = int(options[options.index("--trainer.max_epochs") + 1])
    assert shown.count("training loss") == epochs
    assert "Test set" in shown
    assert {path.name for path in out.iterdir()} == {"checkpoints", "config.yaml", "csv", "results.json", "tensorboard"}
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert any((out / "tensorboard").glob("events.out.tfevents.*"))

    results = json.loads((out / "results.json").read_text())
    steps = results["time_steps"]
    assert set(results["test_at_time_steps"]) == {"2", str(steps)}
    assert results["test_at_time_steps"][str(steps)]["loss"] == results["test"]["loss"]
    assert 0 < results["test"]["firing_rate"] < 1
    assert results["test"]["synops_per_sample"] > 0
    assert results["test"]["ann_macs_per_sample"] > 0
    assert results["epochs"] == epochs
    assert results["training_seconds"] > 0
    assert results["peak_memory_mib"] > 50
    assert results["seed"] == 0
    assert {"tandem_cuda", "torch", "lightning"} <= set(results["versions"])
    if config == "mnist_autoencoder":
        assert results["test"]["loss"] < 0.1  # that of grey images is 0.23, of black ones 0.10
    elif least is None:
        assert 0 <= results["test"]["accuracy"] <= 1
    else:
        assert results["test"]["accuracy"] >= least

    header = (out / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    names = {"train_loss", "val_loss", "synops"} | ({"val_accuracy"} if config != "mnist_autoencoder" else set())
    assert names <= set(header)
    layers = [layer["name"] for layer in results["test"]["layers"] if layer["firing_rate"] is not None]
    assert {f"{what}/{layer}" for what in ("firing_rate", "count_error") for layer in layers} <= set(header)


def state(out, name="last"):
    return torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.nightly
def test_resumed_run_is_the_uninterrupted_one(synthetic, tmp_path):
    """Killed without warning in the second of three epochs; dropout, augmentation, order and schedule all go on."""
    options = ("--trainer.max_epochs", "3", "--model.ann.dropout", "0.5", "--data.batch_size", "16")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("mnist", synthetic, whole, *options)
    process = subprocess.Popen(command("mnist", synthetic, parts, *options), stdout=subprocess.PIPE, text=True)
    last = parts / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    before = state(parts)["epoch"]
    assert before < 2
    assert not (parts / "results.json").exists()
    shown = train("mnist", synthetic, parts, *options, "--ckpt_path", "last")
    assert shown.count("training loss") == 2 - before
    assert equal(state(whole)["state_dict"], state(parts)["state_dict"])
    assert equal(state(whole, "best")["state_dict"], state(parts, "best")["state_dict"])
    tests = [json.loads((out / "results.json").read_text())["test"] for out in (whole, parts)]
    assert tests[0] == tests[1]


@pytest.mark.nightly
def test_two_processes(synthetic, tmp_path):
    """They train on shares of the data and agree on the weights; the first one tests."""
    options = ("--trainer.max_epochs", "2", "--trainer.strategy", "ddp", "--trainer.devices", "2")
    shown = train("mnist", synthetic, tmp_path, *options, "--data.batch_size", "8")
    assert shown.count("Test set, 20 samples") == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["processes"] == 2
    assert state(tmp_path)["global_step"] == 2 * (90 // 2 // 8)  # half the steps of one process
    assert results["test"]["samples"] == 20


@pytest.mark.nightly
def test_baseline_twin_precision_and_early_stopping(synthetic, tmp_path):
    options = ("--model.spiking", "false", "--trainer.precision", "bf16-mixed", "--trainer.max_epochs", "30")
    shown = train("mnist", synthetic, tmp_path, *options, "--early_stopping", "2", "--model.schedule", "none")
    results = json.loads((tmp_path / "results.json").read_text())
    assert "Training the ANN" in shown
    assert results["precision"] == "bf16-mixed"
    assert not results["spiking"]
    assert 3 <= results["epochs"] < 30
    assert results["test_at_time_steps"] == {}
    assert results["test"]["accuracy"] > 0.5


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(synthetic, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    train("mnist", synthetic, out, "--trainer.max_epochs", "1")
    return out


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("train")


@pytest.fixture
def refused(monkeypatch, example, synthetic):
    """Runs in this process, and returns the message of a run that must fail."""

    def refused(out, *options):
        monkeypatch.setattr(sys, "argv", command("mnist", synthetic, out, "--trainer.max_epochs", "1", *options)[1:])
        with pytest.raises(SystemExit) as error:
            example.main()
        message = str(error.value.code)
        assert message.startswith("examples/train.py: ")
        assert message.count("\n") <= 1
        return message

    return refused


NEW_RUNS = {
    "missing data": (("--data.dir", "/nowhere"), "no /nowhere/MNIST/raw/train-images-idx3-ubyte"),
    "spikes of images": (("--model.encoding", "spikes"), "--model.encoding must be constant, impulse or radix"),
    "T of radix spikes": (
        ("--test_time_steps", "[4,16]"),
        "--test_time_steps must be at most 8 with radix spikes, got [4, 16]",
    ),
    "one phase of radix spikes": (
        ("--model.two_phase", "false"),
        "two_phase: must not be false with radix, got False. Pass radix false for one-phase neurons",
    ),
    "another size": (("--model.ann.size", "20"), "convert: torch.export cannot export forward of Sequential"),
    "too few outputs": (("--model.ann.classes", "3"), "--model.ann puts out [3] for a sample"),
    "mse of labels": (("--model.loss", "mse"), "--model.ann puts out [10] for a sample. With --model.loss mse"),
    "no time": (("--model.time_steps", "0"), "--model.time_steps must be at least 1, got 0"),
    "no checkpoint": (("--ckpt_path", "last"), "no checkpoint"),
    "no dropout": (("--model.ann.dropout", "1.5"), r"mnist_cnn: dropout must be in [0, 1), got 1.5"),
    "no batch": (("--data.batch_size", "1"), "--data.batch_size must be at least 2"),
    "graph without a device": (
        ("--cuda_graph", "true"),
        "cuda_graph: must be false without a CUDA device: training is on the cpu",
    ),
    "graph that looks": (
        ("--cuda_graph", "true", "--trainer.detect_anomaly", "true"),
        "--cuda_graph must be false with --trainer.detect_anomaly",
    ),
    "graph with a recipe": (
        (
            "--cuda_graph",
            "true",
            "--trainer.callbacks",
            '[{"class_path": "recipes.AnnFirst", "init_args": {"epochs": 1}}]',
        ),
        "--cuda_graph must be false with --trainer.callbacks",
    ),
}


@pytest.mark.parametrize(("options", "message"), NEW_RUNS.values(), ids=NEW_RUNS)
def test_refused_before_anything_is_written(refused, tmp_path, options, message):
    assert message in refused(tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


RESUMED = {
    "finished": ((), "holds a run already"),
    "other T": (("--ckpt_path", "last", "--model.time_steps", "3"), "was trained with time_steps = 4, this run has 3"),
    "other spikes": (("--ckpt_path", "last", "--model.radix", "false"), "was trained with radix = True, this run has"),
    "other input": (("--ckpt_path", "last", "--model.encoding", "radix"), "was trained with encoding = impulse"),
    "other network": (
        (
            *("--ckpt_path", "last", "--model.ann", "tandem_cuda.models.small_cifarnet"),
            *("--model.ann.in_channels", "1", "--model.ann.size", "28"),
        ),
        "the checkpoint is of another network: net.conv1.weight is [32, 1, 3, 3] there and [8, 1, 3, 3] here",
    ),
    "longer": (("--ckpt_path", "last", "--trainer.max_epochs", "2"), "learning rates are for 1 steps in all"),
}


@pytest.mark.parametrize(("options", "message"), RESUMED.values(), ids=RESUMED)
def test_checkpoints_survive_what_is_refused(refused, finished, options, message):
    before = {path: path.read_bytes() for path in (finished / "checkpoints").iterdir()}
    results = (finished / "results.json").read_bytes()
    assert message in refused(finished, *options)
    assert {path: path.read_bytes() for path in (finished / "checkpoints").iterdir()} == before
    assert (finished / "results.json").read_bytes() == results


@pytest.mark.parametrize("damage", [lambda x: x[: len(x) // 2], lambda x: b"", lambda x: b"no checkpoint"])
def test_damaged_checkpoint(refused, finished, tmp_path, damage):
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(damage((finished / "checkpoints" / "last.ckpt").read_bytes()))
    assert f"the checkpoint {path} cannot be read" in refused(tmp_path / "out", "--ckpt_path", path)
    assert not (tmp_path / "out").exists()


def test_damaged_data(refused, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    files.idx_files(folder)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:999])
    assert f"the files of MNIST in {folder} cannot be read" in refused(tmp_path / "out", "--data.dir", tmp_path)
    assert not (tmp_path / "out").exists()


def test_nothing_is_half_written(example, monkeypatch, tmp_path):
    path, whole = tmp_path / "new" / "last.ckpt", torch.save
    example.WholeCheckpoints().save_checkpoint({"epoch": torch.tensor(1)}, path)

    def broken(checkpoint, part):
        whole(checkpoint, part)
        part.write_bytes(part.read_bytes()[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="no space left"):
        example.WholeCheckpoints().save_checkpoint({"epoch": torch.tensor(2)}, path)
    assert torch.load(path)["epoch"] == 1
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.setattr(Path, "write_text", lambda path, text: path.write_bytes(b"{") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        example.write(tmp_path / "results.json", "{}")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_signals(synthetic, tmp_path, sent):
    started = command("mnist", synthetic, tmp_path, "--trainer.max_epochs", "500")
    # A shell starts what runs in its background with SIGINT ignored, the tests too.
    process = subprocess.Popen(
        started,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while "epoch   2/500" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(getattr(signal, sent))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Go on by the same command with --ckpt_path last." in said
    assert "Traceback" not in said
    assert state(tmp_path)["epoch"] in (0, 1)  # the line is there before the checkpoint is


def test_missing_extra_is_named(tmp_path):
    (tmp_path / "jsonargparse.py").write_text("raise ImportError('no jsonargparse here')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    started = [sys.executable, EXAMPLES / "train.py"]
    done = subprocess.run(started, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "pip install 'tandem_cuda[examples]'" in done.stderr
    assert "Traceback" not in done.stderr
