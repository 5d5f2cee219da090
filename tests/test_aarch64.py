"""The portable kernels compute the same bits on aarch64, emulated, as where the tests run."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from digests import check_elsewhere, every_network
from elsewhere import Programs

ROOT = Path(__file__).resolve().parents[1]
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
CASES = 566
KERNELS = ["csrc/cpu/scalar.cpp", "csrc/cpu/aligned_buffer.cpp"]
PROGRAMS = ["tests/cpp/scalar_kernels.cpp", "tests/cpp/scalar_calls.cpp"]


def build(compiler, folder, *options):
    """Compile the programs with the flags that the build gives to the portable kernels. Returns their folder."""
    cmake = (ROOT / "CMakeLists.txt").read_text()
    float_flags, warning_flags = (
        re.search(rf"set\({name} (.+)\)", cmake)[1].split() for name in ("float_flags", "warning_flags")
    )
    flags = ["-std=c++17", "-O3", "-Icsrc", *warning_flags, "-Werror", *float_flags, *options]

    def compiled(*arguments):
        command = [*compiler, *flags, *arguments]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return arguments[-1]

    objects = [compiled("-c", source, "-o", folder / f"{Path(source).stem}.o") for source in KERNELS]
    for source in PROGRAMS:
        compiled(source, *objects, "-o", folder / Path(source).stem)
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The commands of the programs, without their names."""
    folder = build(shlex.split(os.environ.get("CXX", "c++")), tmp_path_factory.mktemp("here"))
    return lambda program: [folder / program]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The same on aarch64."""
    packages = {CROSS_COMPILER: "g++-aarch64-linux-gnu", EMULATOR: "qemu-user-static"}
    missing = {tool: package for tool, package in packages.items() if not shutil.which(tool)}
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: {', '.join(missing.values())})")
    folder = build([CROSS_COMPILER], tmp_path_factory.mktemp("aarch64"), "-static")
    return lambda program: [EMULATOR, folder / program]


def lines_of(command):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.slow
def test_same_bits_as_here(here, emulated):
    native, foreign = lines_of(here("scalar_kernels")), lines_of(emulated("scalar_kernels"))
    assert [(a, b) for a, b in zip(native, foreign, strict=True) if a != b] == []
    names, hashes = zip(*(line.split(": ") for line in native), strict=True)
    assert len(set(names)) == len(names) == CASES
    # Some cases agree by their nature: the leak does not matter to one time step.
    assert len(set(hashes)) > len(hashes) / 2


@pytest.mark.slow
@every_network
@pytest.mark.parametrize("engine", [0, 1], ids=["events", "tables"])
@pytest.mark.parametrize("where", ["here", "emulated"])
def test_digest(request, tmp_path, where, engine, name):
    command = request.getfixturevalue(where)("scalar_calls")
    check_elsewhere(name, Programs(tmp_path, lambda _, *files: lines_of([*command, *files]), engine))
