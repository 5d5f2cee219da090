"""The example from end to end, and what early exit is to achieve on digits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tandem_cuda import FrozenNetwork

EXAMPLE = Path(__file__).parents[1] / "examples" / "early_exit.py"


def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLE, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def extras() -> None:
    """What `pip install tandem_cuda[examples]` installs."""
    for module in ("lightning", "matplotlib", "mlxtend", "safetensors"):
        pytest.importorskip(module)


@pytest.fixture(scope="module")
def out(extras: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the example left, run with its defaults."""
    out = tmp_path_factory.mktemp("early_exit") / "new"
    done = run("--device", "cpu", "--threads", "2", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "the same outputs to the bit" in done.stdout
    for words in ("after 1", "at confidence 0.9", f"are in {out}"):
        assert words in done.stdout
    return out


@pytest.mark.nightly
def test_early_exit_saves_steps_and_no_accuracy(out: Path) -> None:
    """Fewer than 60 % of the steps for less than half a point, at confidence 0.9."""
    results = json.loads((out / "results.json").read_text())
    end = results["over_time"][-1]
    assert end["steps"] == 8
    assert end["accuracy"] > 0.95
    (early,) = [point for point in results["over_confidence"] if point["exit_confidence"] == 0.9]
    assert early["steps"] < 0.6 * 8
    assert early["accuracy"] > end["accuracy"] - 0.005
    assert early["synops"] < end["synops"]


@pytest.mark.nightly
def test_what_the_example_leaves(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == ["early_exit.png", "network.safetensors", "results.json"]
    assert (out / "early_exit.png").read_bytes().startswith(b"\x89PNG")
    network = FrozenNetwork.load(out / "network.safetensors")
    assert network.time_steps == 8
    assert network(torch.rand(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.slow
@pytest.mark.usefixtures("extras")
def test_constant_encoding_and_bad_options(tmp_path: Path) -> None:
    done = run("--epochs", "1", "--limit", "200", "--encoding", "constant", "--time-steps", "11", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "results.json").read_text())["over_time"]) == 11
    done = run("--exit-confidence", "0")
    assert done.returncode == 2
    assert "argument --exit-confidence: must be in (0, 1], got 0.0" in done.stderr
