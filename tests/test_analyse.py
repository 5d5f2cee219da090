"""examples/analyse.py and examples/results.py on small runs of examples/train.py. Nightly.

The digits are MNIST's, kept beside the repository; the other runs are of small synthetic files.
"""

import csv
import importlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import training_files as files
from tandem_cuda import models

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.nightly
for module in ("lightning", "jsonargparse", "tensorboard", "torchvision", "tonic", "matplotlib"):
    pytest.importorskip(module)

CLASSIFIER = ("counts", "angles", "gradients", "curves", "time_steps", "synops", "rates", "bits", "early_exit")
COUNTS = ("--model.radix", "false")
WHOLE = ("--data.limit", "600", "--trainer.max_epochs", "3")


def train(config, folder, out, *options):
    settings = ["--config", EXAMPLES / "configs" / f"{config}.yaml", "--data.dir", folder, "--out", out]
    settings += ["--threads", "1", "--trainer.accelerator", "cpu", *options]
    command = [sys.executable, EXAMPLES / "train.py", *map(str, settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def mnist(laid_out):
    return laid_out("mnist")


@pytest.fixture(scope="module")
def digits(mnist, tmp_path_factory):
    """Runs of a classifier: SNN and ANN."""
    folder = tmp_path_factory.mktemp("digits")
    size = ("--data.shift", "0", "--model.ann", "tandem_cuda.models.mnist_cnn", *COUNTS, "--model.time_steps", "8")
    return [
        train("mnist", mnist, folder / kind, *WHOLE, *size, "--model.spiking", spiking)
        for kind, spiking in (("snn", "true"), ("ann", "false"))
    ]


@pytest.fixture(scope="module")
def autoencoders(mnist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoders")
    plain = ("--trainer.callbacks", "null", *COUNTS, "--model.time_steps", "8", "--model.learning_rate", "0.005")
    plain += ("--model.schedule", "one_cycle")
    return [
        train("mnist_autoencoder", mnist, folder / kind, *WHOLE, *plain, "--model.spiking", spiking)
        for kind, spiking in (("snn", "true"), ("ann", "false"))
    ]


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("analyse")
    sys.path.remove(str(EXAMPLES))


@pytest.fixture
def analyse(example, capsys):
    """Runs in this process; returns what was printed."""

    def analyse(*arguments):
        example.main([*map(str, arguments), "--threads", "1", "--device", "cpu"])
        return capsys.readouterr().out

    return analyse


@pytest.fixture
def refused(analyse, tmp_path):
    def refused(*arguments):
        with pytest.raises(SystemExit) as error:
            analyse(*arguments, "--out", tmp_path / "refused")
        message = str(error.value.code)
        assert message.startswith("examples/analyse.py: ")
        assert message.count("\n") <= 1
        return message

    return refused


def table(out, name):
    picture = (out / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 3_000 < len(picture) < 150_000
    with (out / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def number(row, name):
    return float(row[name])


def test_time_of_a_trained_network(digits, mnist):
    """bench/trained.py: over its ANN, which takes the same images, for every batch size."""
    command = [sys.executable, EXAMPLES.parent / "bench" / "trained.py", digits[0], "--data-dir", mnist]
    command += ["--batches", "1", "4", "--threads", "1", "--repeats", "2"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for batch in (1, 4):
        for whose in ("the ANN's", "PyTorch's int8"):
            assert re.search(rf"snn, frozen, int8, batch {batch}: time over {whose} +[\d.]+ x", done.stdout), (
                done.stdout
            )


def test_classifier(analyse, digits, tmp_path):
    said = analyse(*digits, "--out", tmp_path)
    assert "reconstructions: left out, it needs runs of an autoencoder" in said
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.{end}" for n in CLASSIFIER for end in ("png", "csv")}
    results = {path.name: json.loads((path / "results.json").read_text()) for path in digits}
    layers = ["conv1", "conv2", "conv3", "hidden"]

    rows = table(tmp_path, "counts")
    assert [row["layer"] for row in rows] == layers
    assert [int(row["neurons"]) for row in rows] == [32 * 28 * 28, 64 * 14 * 14, 64 * 7 * 7, 128]
    for row in rows:
        assert row["samples"] == "512"
        assert 0.5 < number(row, "correlation") < 1
        assert 0 < number(row, "mean_absolute_residual") < 1
        assert number(row, "mean_residual") ** 2 + number(row, "residual_deviation") ** 2 > 0
        assert 0.3 < number(row, "share_silent") < 1
        assert number(row, "share_within_one_spike") > 0.9

    rows = table(tmp_path, "angles")
    trained = [row for row in rows if row["network"] == "snn"]
    assert [row["layer"] for row in trained] == layers
    for row in rows:
        assert number(row, "angle_p05") <= number(row, "angle") <= number(row, "angle_p95") <= 90
        assert 0 < number(row, "cosine") < 1
        assert 0.5 < number(row, "dot_correlation") < 1
    for deviation in ("1", "2"):
        of = [row for row in rows if row["network"] == f"random, deviation {deviation}"]
        assert [int(row["neurons"]) for row in of] == [2**n for n in range(5, 13)]
        spreads = [number(row, "angle_p95") - number(row, "angle_p05") for row in of]
        assert spreads[-1] < spreads[0]  # high dimensions: all samples have nearly the same angle

    rows = table(tmp_path, "gradients")
    assert [(row["weights"], row["layer"]) for row in rows] == [
        (state, layer) for state in ("untrained", "trained") for layer in layers
    ]
    assert all(number(row, "gradient_cosine") > 0.1 for row in rows[:4])
    assert all(-1 <= number(row, "gradient_cosine") <= 1 and number(row, "gradient_norm_ratio") > 0 for row in rows)

    rows = table(tmp_path, "curves")
    assert [(row["run"], row["network"], row["epoch"]) for row in rows] == [
        *(("snn", "SNN", str(epoch)) for epoch in (1, 2, 3)),
        *(("ann", "ANN", str(epoch)) for epoch in (1, 2, 3)),
        ("ann", "transferred ANN", ""),
    ]
    assert max(number(row, "val_accuracy") for row in rows[:3]) == pytest.approx(
        results["snn"]["validation"]["val_accuracy"], abs=1e-6
    )

    rows = table(tmp_path, "time_steps")
    assert [(row["network"], row["time_steps"]) for row in rows] == [
        *(("SNN", t) for t in ("1", "2", "4", "8", "16")),
        *(("ANN" if t == "" else "transferred ANN", t) for t in ("", "1", "2", "4", "8", "16")),
    ]
    for row in rows[:5]:
        if row["time_steps"] != "1":  # train.py tested at the same
            wanted = results["snn"]["test_at_time_steps"][row["time_steps"]]
            assert number(row, "accuracy") == pytest.approx(wanted["accuracy"], abs=1e-6)
            assert number(row, "loss") == pytest.approx(wanted["loss"], rel=1e-5)
            assert number(row, "firing_rate") == pytest.approx(wanted["firing_rate"], rel=1e-5)
    assert number(rows[5], "accuracy") == pytest.approx(results["ann"]["test"]["accuracy"], abs=1e-6)

    rows = table(tmp_path, "synops")
    total = next(row for row in rows if (row["layer"], row["time_steps"]) == ("total", "8"))
    assert number(total, "synops") == pytest.approx(results["snn"]["test"]["synops_per_sample"], rel=1e-5)
    assert number(total, "ann_macs") == results["snn"]["test"]["ann_macs_per_sample"]
    assert number(total, "snn_macs") == results["snn"]["test"]["snn_macs_per_sample"]
    for t in ("1", "16"):
        of = {row["layer"]: number(row, "synops") for row in rows if row["time_steps"] == t}
        assert of.pop("total") == pytest.approx(sum(of.values()), rel=1e-5)

    rows = table(tmp_path, "rates")
    assert [row["layer"] for row in rows] == layers
    for row, layer in zip(rows, results["snn"]["test"]["layers"], strict=False):
        assert number(row, "firing_rate") == pytest.approx(layer["firing_rate"], rel=1e-5)

    rows = table(tmp_path, "bits")
    assert [row["bits"] for row in rows] == [*map(str, range(2, 9)), "32"] * 2
    for row in (rows[7], rows[15]):
        assert number(row, "accuracy") == pytest.approx(results[row["run"]]["test"]["accuracy"], abs=1e-6)
    assert abs(number(rows[6], "accuracy") - number(rows[7], "accuracy")) < 0.05  # 8 bits are nearly enough

    (row,) = table(tmp_path, "early_exit")
    assert (row["run"], row["kind"], row["exit_confidence"], row["steps"]) == ("snn", "as a whole", "", "8")
    assert number(row, "accuracy") == pytest.approx(results["snn"]["test"]["accuracy"], rel=1e-5)
    # With the read-out's operations.
    spent = results["snn"]["test"]["synops_per_sample"]
    assert spent < number(row, "synops_per_sample") < 1.001 * spent


def test_early_exit(analyse, refused, mnist, autoencoders, tmp_path):
    """One network for several T, as a whole at each and as a cascade."""
    size = ("--data.shift", "0", "--model.ann", "tandem_cuda.models.mnist_cnn", *COUNTS, "--model.time_steps", "[2,4]")
    run = train("mnist", mnist, tmp_path / "many", *WHOLE, *size)
    analyse(run, "--out", tmp_path, "--only", "early_exit")
    rows = table(tmp_path, "early_exit")
    whole = [row for row in rows if row["kind"] == "as a whole"]
    exits = [row for row in rows if row["kind"] == "early exit"]
    assert [row["steps"] for row in whole] == ["2", "4"]
    tested = json.loads((run / "results.json").read_text())["test_at_time_steps"]
    for row in whole:
        assert number(row, "accuracy") == pytest.approx(tested[row["steps"]]["accuracy"], rel=1e-5)
    steps = [number(row, "steps") for row in exits]
    assert steps == sorted(steps)
    assert 2 < steps[0] < steps[-1] <= 6  # 2, or 2 and 4
    assert number(exits[0], "synops_per_sample") < sum(number(row, "synops_per_sample") for row in whole)
    assert "early_exit: it needs runs of a classifier" in refused(autoencoders[0], "--only", "early_exit")


@pytest.mark.usefixtures("example")
def test_early_exit_of_radix_spikes():
    """At T = 2, 4 and 8, whatever the network was trained for."""
    from analyses.early_exit import CONFIDENCES, points_of
    from finished import Run
    from tandem_module import TandemModule

    torch.manual_seed(0)
    batches = [(torch.rand(20, 1, 8, 8), torch.arange(20) % 10)] * 2
    data = SimpleNamespace(
        limit=None,
        parts={"train": None},
        setup=lambda stage: None,
        loader=lambda *samples, **how: batches,
        test_batches=lambda time_steps: batches,
    )
    module = TandemModule(models.mnist_cnn(size=8), [1, 8, 8], 4, "impulse", radix=True).eval()
    run = Run("untrained", module, data, {}, Path(), torch.device("cpu"), None)
    points = points_of(run)
    assert [point.steps for point in points["as a whole"]] == [2, 4, 8]
    for steps, point in zip((2, 4, 8), points["as a whole"], strict=True):
        assert point.accuracy == pytest.approx(run.evaluated(steps)["accuracy"])
    exits = points["early exit"]
    assert [point.exit_confidence for point in exits] == [*CONFIDENCES]
    assert exits[-1].steps == 2 + 4 + 8


def test_autoencoder(analyse, autoencoders, tmp_path):
    only = ("counts", "gradients", "curves", "time_steps", "bits", "reconstructions")
    analyse(*autoencoders, "--out", tmp_path, "--limit", "100", "--only", *only, "--bits", "2", "8")
    rows = table(tmp_path, "reconstructions")
    assert [row["network"] for row in rows] == ["SNN"] * 5 + ["ANN"] + ["transferred ANN"] * 5
    for row in rows:
        assert row["samples"] == "100"
        assert 0 < number(row, "mean_squared_error") < 0.2
        assert number(row, "psnr_db") == pytest.approx(-10 * math.log10(number(row, "mean_squared_error")), rel=1e-5)
    assert [row["layer"] for row in table(tmp_path, "counts")] == [f"layers.fc{i}" for i in range(1, 6)]
    assert {row["val_loss"] != "" for row in table(tmp_path, "curves")} == {True}
    assert all(row["accuracy"] == "" for row in table(tmp_path, "time_steps"))
    losses = [number(row, "loss") for row in table(tmp_path, "bits")]
    assert losses[0] > losses[1] == pytest.approx(losses[2], rel=0.1)


def test_recordings_and_recipes(analyse, tmp_path):
    """Recordings are binned anew at other T; weights of few bits and thresholds of recipes come back."""
    files.nmnist(tmp_path, train=8, test=4)
    small = ("--data.shift", "0", "--data.batch_size", "16", "--test_time_steps", "[4,8]")
    for kind, spiking in (("snn", "true"), ("ann", "false")):
        train("nmnist", tmp_path, tmp_path / kind, *small, "--trainer.max_epochs", "1", "--model.spiking", spiking)
    out = tmp_path / "events"
    analyse(tmp_path / "snn", tmp_path / "ann", "--out", out, "--only", "time_steps", "angles", "--time-steps", "8")
    with pytest.raises(SystemExit, match="early_exit: it needs runs on real input"):
        analyse(tmp_path / "snn", "--out", out, "--only", "early_exit")
    rows = table(out, "time_steps")
    assert [row["network"] for row in rows] == ["SNN", "SNN", "ANN", "transferred ANN"]
    tested = json.loads((tmp_path / "snn" / "results.json").read_text())["test_at_time_steps"]
    for row in rows[:2]:
        assert number(row, "loss") == pytest.approx(tested[row["time_steps"]]["loss"], rel=1e-5)

    files.idx_files(tmp_path / "MNIST" / "raw", train=100, test=20)
    for config, epochs in (("mnist_4bit", "6"), ("mnist_ann_first", "6")):
        run = train(config, tmp_path, tmp_path / config, *small, "--trainer.max_epochs", epochs)
        out = tmp_path / f"{config}_analysed"
        analyse(run, "--out", out, "--only", "time_steps", "gradients", "--time-steps", "4")
        tested = json.loads((run / "results.json").read_text())["test_at_time_steps"]
        for row in table(out, "time_steps"):
            assert number(row, "loss") == pytest.approx(tested[row["time_steps"]]["loss"], rel=1e-5)
        states = {row["weights"] for row in table(out, "gradients")}
        assert states == ({"trained"} if config == "mnist_ann_first" else {"untrained", "trained"})


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_refused(refused, digits, autoencoders, tmp_path):
    snn, ann = digits
    assert "/nowhere is no finished run of examples/train.py: it has no config.yaml" in refused("/nowhere")
    assert "no /nowhere/MNIST/raw/train-images" in refused(snn, "--data-dir", "/nowhere", "--only", "rates")
    assert "reconstructions: it needs runs of an autoencoder" in refused(snn, "--only", "reconstructions")
    assert "counts: it needs a run of a spiking network" in refused(ann, "--only", "counts")
    assert "the runs are of different data or losses" in refused(snn, autoencoders[0])

    unfinished = tmp_path / "unfinished"
    shutil.copytree(snn, unfinished)
    (unfinished / "results.json").unlink()
    assert "unfinished is no finished run of examples/train.py: it has no results.json" in refused(unfinished)
    (unfinished / "results.json").write_text("{")
    assert "results.json is not what examples/train.py writes" in refused(unfinished)
    shutil.copy(snn / "results.json", unfinished)
    shutil.copy(autoencoders[0] / "checkpoints" / "best.ckpt", unfinished / "checkpoints")
    assert "the checkpoint is of another network" in refused(unfinished)
    (unfinished / "checkpoints" / "best.ckpt").write_bytes(b"no checkpoint")
    assert "cannot be read" in refused(unfinished)
    (unfinished / "config.yaml").write_text("model: 3\n")
    assert "config.yaml is no configuration of examples/train.py" in refused(unfinished)


# --- results.py ------------------------------------------------------------------------------------------------------


def results(folder, out, *options):
    command = [sys.executable, EXAMPLES / "results.py", "--quick", "--threads", "1", "--data-dir", folder, "--out", out]
    done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout, done.stderr


def tables(out):
    """The part of the page that the program writes."""
    return (out / "results.md").read_text().partition("<!-- begin")[2].partition("<!-- end")[0]


def test_results(mnist, tmp_path):
    """Trains what there are data for, says what there are none for, repeats nothing, and goes on."""
    out = tmp_path / "runs"
    chosen = ("--only", "fashion_mnist", "mnist_autoencoder")
    status, said, error = results(mnist, out, *chosen)
    assert status == 0, error
    assert "fashion_mnist/t8_seed0: left out, no " in said
    page = tables(out)
    assert (
        "### Fashion-MNIST\n\nNot measured: data not available (no FashionMNIST/raw/train-images-idx3-ubyte).\n" in page
    )
    assert "### MNIST\n\nNot measured.\n" in page
    tested = json.loads((out / "mnist_autoencoder" / "t8_seed0" / "results.json").read_text())
    assert f"| SNN, T = 8 | 1 | {tested['test']['loss']:.5f} |" in page
    assert "A quick run" in page
    assert (out / "results" / "mnist_autoencoder_reconstructions.png").read_bytes().startswith(b"\x89PNG")
    assert str(mnist) not in page

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    status, said, error = results(mnist, out, *chosen)
    assert status == 0, error
    assert said.count(": complete") == 3
    assert "Training" not in said
    changed = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert {path.parent.name for path in changed} <= {"runs", "results"}  # the page and copies of pictures

    (out / "mnist_autoencoder" / "ann_seed0" / "results.json").unlink()  # interrupted before the test
    status, said, error = results(mnist, out, *chosen)
    assert status == 0, error
    assert "going on with" in said
    assert tables(out).count("| ANN | 1 |") == 1

    started = out / "mnist_autoencoder" / "ann_seed0" / "started.json"
    started.write_text(json.dumps({**json.loads(started.read_text()), "settings": ["other"]}))
    status, said, error = results(mnist, out, *chosen)
    assert status == 1
    assert "holds a run of other settings" in error
    assert "Traceback" not in error


def test_results_of_photographs(laid_out, tmp_path):
    """Options of all networks, and of some."""
    status, _, error = results(laid_out("cifar10"), tmp_path, "--only", "small_cifar10")
    assert status == 0, error
    page = tables(tmp_path)
    assert "lossy copies" in page
    assert len(re.findall(r"\| (?:SNN, T = 8|SNN, radix spikes, T = 4|ANN) \| 1 \| \d", page)) == 3
    assert "--model.ann tandem_cuda.models.small_cifarnet" in page
    assert page.count("--model.spiking false") == 1


def test_records_stand_in_for_runs(mnist, tmp_path):
    """The page says the same of a run when it is gone."""
    out = tmp_path / "runs"
    status, _, error = results(mnist, out, "--only", "mnist_autoencoder")
    assert status == 0, error
    page = tables(out)
    assert {path.name for path in (out / "results" / "runs").iterdir()} == {
        "mnist_autoencoder_t8_seed0.json",
        "mnist_autoencoder_radix4_seed0.json",
        "mnist_autoencoder_ann_seed0.json",
    }
    shutil.rmtree(out / "mnist_autoencoder")
    status, _, error = results(mnist, out, "--only", "fashion_mnist")
    assert status == 0, error
    assert tables(out) == page
    status, said, error = results(mnist, out, "--only", "mnist_autoencoder", "--missing")
    assert status == 0, error
    assert said.count(": recorded") == 3
    assert "training" not in said
    assert tables(out) == page


def test_results_of_other_libraries(mnist, tmp_path, monkeypatch):
    """Their networks are behind the ANN or not, like tandem networks; the picture needs the runs of all of them."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import experiments
    from results import trainings

    records = tmp_path / "results" / "runs"
    records.mkdir(parents=True)
    (compared,) = (e for e in experiments.EXPERIMENTS if e.name == "compared_cifar10")
    accuracies = {"ann": 0.75, "spikingjelly4": 0.5, "radix4": 0.76}
    for run in trainings(compared, tmp_path, quick=True):
        network = run.network
        tested = {"accuracy": accuracies.get(network.name, 0.25), "samples": 10}
        results = {
            "test": tested,
            "network": "networks.small",
            "parameters": 1,
            "epochs": 1,
            "peak_memory_mib": 1.0,
            "fastest_epoch_seconds": 1.0,
            "device": "cpu",
            "threads": 1,
            "cpu": "a processor",
            "lossy": True,
            "versions": {"torch": "2", "tandem_cuda": "0"},
            "build": {"cpu_isa": "scalar", "cuda_usable": False},
            "spiking": "--model.spiking" not in network.options,
            "samples": {"train": 1, "val": 1},
            "settings": run.settings,
        }
        at = {str(t): tested for t in (1, 2, 3, 4, 8)} if results["spiking"] else {}
        (records / f"compared_cifar10_{network.name}_seed0.json").write_text(
            json.dumps({**results, "test_at_time_steps": at})
        )
    status, _, error = results_of_nothing(mnist, tmp_path)
    assert status == 0, error
    page = tables(tmp_path)
    assert "| SpikingJelly, T = 4 | 1 | 50.00 % | 25.00 |" in page
    assert "| SNN, radix spikes, T = 4 | 1 | 76.00 % | -1.00 | 76.00 % |" in page
    assert "| ANN | 1 | 75.00 % |  |" in page
    picture = tmp_path / "results" / "every_t.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    record = records / "compared_cifar10_snntorch8_seed0.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "settings": ["others"]}))
    assert results_of_nothing(mnist, tmp_path)[0] == 0
    assert "| snnTorch, T = 8 | not measured |" in tables(tmp_path)
    assert not picture.exists()


def results_of_nothing(folder, out):
    """Only write the page: there are no data for this experiment."""
    return results(folder, out, "--only", "cifarnet")


def test_results_of_recipes(mnist, tmp_path):
    out = tmp_path / "runs"
    status, _, error = results(mnist, out, "--only", "recipes_mnist")
    assert status == 0, error
    page = tables(out)
    assert len(re.findall(r"^\| [^|]+ \| 1 \| \d", page, re.MULTILINE)) == 9


# --- measures --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("example")
def test_measures():
    from analyses import measures

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1000, generator=generator).double()
    sums = measures.sums_of(x, x + y) + measures.sums_of(y, x)
    pairs = torch.stack([torch.cat([x, y]), torch.cat([x + y, x])])
    assert measures.pearson(sums) == pytest.approx(float(torch.corrcoef(pairs)[0, 1]), rel=1e-9)
    assert math.isnan(measures.pearson(measures.sums_of(torch.ones(3), torch.arange(3))))
    angles = measures.angles_between(torch.tensor([[1.0, 0], [1, 1], [0, 0]]), torch.tensor([[0.0, 2], [3, 3], [1, 1]]))
    assert angles[:2].tolist() == pytest.approx([90, 0], abs=1e-5)
    assert math.isnan(angles[2])
    assert measures.spread(angles)["mean"] == pytest.approx(45)
    assert math.isnan(measures.spread(angles[2:])["mean"])
