"""The quick tests with the instruction sets of other processors; what chooses them."""

import os
import subprocess
import sys

import pytest

import processors


def test_every_level_of_every_library_is_there():
    onednn, aten, ours = map(set, zip(*processors.SETTINGS, strict=True))
    assert onednn == {"AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "ALL"}
    assert aten == {"default", "avx2", "avx512"}
    assert ours == {"avx2", "avx512", "avx512vnni", "avx512vbmi2", "amx"}


def test_what_the_caller_has_set_stays(monkeypatch):
    for name in processors.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TANDEM_CPU_ISA", "scalar")
    assert processors.environment(processors.SETTINGS[0]) == {
        "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "default", "TANDEM_CPU_ISA": "scalar",
    }  # fmt: skip


def collected(*options):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=processors.ROOT, env=environment, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_parts_hold_every_test_once():
    every = collected("tests/test_pack_spikes.py")
    parts = [collected("tests/test_pack_spikes.py", "--part", f"{k}/3") for k in range(3)]
    assert sorted(name for part in parts for name in part) == sorted(every)
    assert all(parts)


@pytest.mark.nightly
@pytest.mark.parametrize("number", range(len(processors.SETTINGS)), ids=lambda number: processors.SETTINGS[number][0])
def test_quick_tests(number):
    command = [sys.executable, "-m", "tests.processors", "--only", str(number)]
    done = subprocess.run(command, cwd=processors.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
