"""The portable kernels compute the same bits on aarch64, emulated, as where the tests run."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
CASES = 562
SOURCES = ["tests/cpp/scalar_kernels.cpp", "csrc/cpu/scalar.cpp", "csrc/cpu/aligned_buffer.cpp"]


def build(compiler, program, *options):
    """Compile the sources with the flags that the build gives to the portable kernels."""
    cmake = (ROOT / "CMakeLists.txt").read_text()
    float_flags, warning_flags = (
        re.search(rf"set\({name} (.+)\)", cmake)[1].split() for name in ("float_flags", "warning_flags")
    )
    flags = ["-std=c++17", "-O3", "-Icsrc", *warning_flags, "-Werror", *float_flags]
    result = subprocess.run(
        [*compiler, *flags, *options, *SOURCES, "-o", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def lines_of(*command):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.slow
def test_same_bits_as_here(tmp_path):
    packages = {CROSS_COMPILER: "g++-aarch64-linux-gnu", EMULATOR: "qemu-user-static"}
    missing = {tool: package for tool, package in packages.items() if not shutil.which(tool)}
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: {', '.join(missing.values())})")
    build(shlex.split(os.environ.get("CXX", "c++")), tmp_path / "native")
    build([CROSS_COMPILER], tmp_path / "aarch64", "-static")

    native, emulated = lines_of(tmp_path / "native"), lines_of(EMULATOR, tmp_path / "aarch64")
    assert [(a, b) for a, b in zip(native, emulated, strict=True) if a != b] == []
    names, hashes = zip(*(line.split(": ") for line in native), strict=True)
    assert len(set(names)) == len(names) == CASES
    # Some cases agree by their nature: the leak does not matter to one time step.
    assert len(set(hashes)) > len(hashes) / 2
