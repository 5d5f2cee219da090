"""The example from end to end, small."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "export_nir.py"


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--leak", "0.9", "--time-steps", "11")], ids=["IF", "LIF"])
def test_example(tmp_path: Path, options: tuple[str, ...]) -> None:
    for module in ("sklearn", "nir"):
        pytest.importorskip(module)
    command = [sys.executable, EXAMPLE, *options, "--epochs", "3", "--out", tmp_path / "new"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "digits.nir").stat().st_size > 10_000
    counts = [int(x) for x in re.findall(r"(\d+) spikes, 0 neurons differ", done.stdout)]
    assert len(counts) == 3
    assert min(counts) > 0
    before, after = re.findall(r"Accuracy: ([\d.]+)% before, ([\d.]+)% after", done.stdout)[0]
    assert float(before) > 70  # chance is 10
    assert abs(float(before) - float(after)) < 1
