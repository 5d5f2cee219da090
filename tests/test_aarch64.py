"""The kernels of aarch64, emulated, compute the bits that the portable ones compute where the tests run."""

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
ISAS = ["scalar", "neon"]
CASES = 566
KERNELS = ["csrc/cpu/scalar.cpp", "csrc/cpu/isa.cpp", "csrc/cpu/aligned_buffer.cpp"]
PROGRAMS = ["tests/cpp/cpu_kernels.cpp", "tests/cpp/cpu_calls.cpp"]


def build(compiler, folder, kernels, *options):
    """Compile the programs with the flags that the build gives to these kernels. Returns their folder.

    kernels: sources, or object files.
    """
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

    objects = [
        source if Path(source).suffix == ".o" else compiled("-c", source, "-o", folder / f"{Path(source).stem}.o")
        for source in kernels
    ]
    for source in PROGRAMS:
        compiled(source, *objects, "-o", folder / Path(source).stem)
    return folder


def scalar_kernels():
    """The library's own object file if it was built here from these sources, else the source: minutes of work."""
    objects = ROOT.glob("build/*/CMakeFiles/tandem_cpu_kernels.dir/csrc/cpu/scalar.cpp.o")
    newest = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*"))
    return next((path for path in objects if path.stat().st_mtime > newest), KERNELS[0])


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The commands of the programs, without their names."""
    kernels = [scalar_kernels(), *KERNELS[1:]]
    folder = build(shlex.split(os.environ.get("CXX", "c++")), tmp_path_factory.mktemp("here"), kernels)
    return lambda program: [folder / program]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The same on aarch64."""
    packages = {CROSS_COMPILER: "g++-aarch64-linux-gnu", EMULATOR: "qemu-user-static"}
    missing = {tool: package for tool, package in packages.items() if not shutil.which(tool)}
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: {', '.join(missing.values())})")
    kernels = [*KERNELS, "csrc/cpu/neon.cpp"]
    folder = build([CROSS_COMPILER], tmp_path_factory.mktemp("aarch64"), kernels, "-static", "-DTANDEM_NEON_KERNELS")
    return lambda program: [EMULATOR, folder / program]


def lines_of(command, cap):
    """cap: the instruction set to use at most, or "" for none."""
    environment = {**os.environ, "TANDEM_CPU_ISA": cap}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.nightly
@pytest.mark.parametrize(("cap", "isa"), [("scalar", "scalar"), ("", "neon")])
def test_same_bits_as_here(here, emulated, cap, isa):
    native_isa, *native = lines_of(here("cpu_kernels"), "scalar")
    foreign_isa, *foreign = lines_of(emulated("cpu_kernels"), cap)
    assert (native_isa, foreign_isa) == ("scalar", isa)
    assert [(a, b) for a, b in zip(native, foreign, strict=True) if a != b] == []
    names, hashes = zip(*(line.split(": ") for line in native), strict=True)
    assert len(set(names)) == len(names) == CASES
    # Some cases agree by their nature: the leak does not matter to one time step.
    assert len(set(hashes)) > len(hashes) / 2


@pytest.mark.nightly
@every_network
@pytest.mark.parametrize("engine", [0, 1], ids=["events", "tables"])
@pytest.mark.parametrize(("where", "isa"), [("here", "scalar"), *(("emulated", isa) for isa in ISAS)])
def test_digest(request, tmp_path, where, isa, engine, name):
    command = request.getfixturevalue(where)("cpu_calls")
    check_elsewhere(name, Programs(tmp_path, lambda _, *files: lines_of([*command, *files], isa), engine))
