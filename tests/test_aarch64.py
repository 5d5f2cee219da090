"""The kernels of aarch64, emulated, compute the bits that the portable ones compute where the tests run."""

import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from digests import check_elsewhere, every_network
from elsewhere import Programs

ROOT = Path(__file__).resolve().parents[1]
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
ISAS = ["scalar", "neon", "neondot"]
CASES = 590
KERNELS = sorted(ROOT.glob("csrc/ops/*/*.isa.cpp"))
SUPPORT = ["csrc/cpu/isa.cpp", "csrc/cpu/aligned_buffer.cpp"]
# As in CMakeLists.txt.
OPTIONS = {
    "scalar": ["-DTANDEM_ISA=scalar"],
    "neon": ["-DTANDEM_ISA=neon", "-DTANDEM_NEON"],
    "neondot": ["-DTANDEM_ISA=neondot", "-DTANDEM_NEON", "-DTANDEM_DOT", "-march=armv8.2-a+dotprod"],
}
BYTES = ROOT / "csrc" / "ops" / "product" / "count.isa.cpp"  # all that neondot adds to neon
PROGRAMS = ["tests/cpp/cpu_kernels.cpp", "tests/cpp/cpu_calls.cpp"]


def compile_with(compiler, *arguments):
    """Compile with the flags that the build gives to its kernels. Returns the last argument, the file that is made."""
    cmake = (ROOT / "CMakeLists.txt").read_text()
    float_flags, warning_flags = (
        re.search(rf"set\({name} (.+)\)", cmake)[1].split() for name in ("float_flags", "warning_flags")
    )
    command = [*compiler, "-std=c++17", "-O3", "-Icsrc", *warning_flags, "-Werror", *float_flags, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return arguments[-1]


def build(compiler, folder, isas, *options, objects=()):
    """Compile the programs. Returns their folder.

    isas: the instruction sets to compile kernels for. objects: object files of kernels that exist.
    """

    def compiled(*arguments):
        return compile_with(compiler, *options, *arguments)

    def to_object(source, name, *more):
        return compiled("-c", source, *more, "-o", folder / f"{Path(source).stem}-{name}.o")

    objects = [*objects, *(to_object(source, "support") for source in SUPPORT)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = [(isa, source) for isa in isas for source in ([BYTES] if isa == "neondot" else KERNELS)]
        jobs = [pool.submit(to_object, source, isa, *OPTIONS[isa]) for isa, source in sources]
        objects += [job.result() for job in jobs]
    for source in PROGRAMS:
        compiled(source, *objects, "-o", folder / Path(source).stem)
    return folder


def scalar_objects():
    """The library's own object files if they were built here from these sources, else none."""
    newest = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*"))
    for folder in ROOT.glob("build/*/CMakeFiles/tandem_scalar_kernels.dir"):
        objects = [folder / f"{source.relative_to(ROOT)}.o" for source in KERNELS]
        if all(path.exists() and path.stat().st_mtime > newest for path in objects):
            return objects
    return []


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The commands of the programs, without their names."""
    objects = scalar_objects()
    compiler, folder = shlex.split(os.environ.get("CXX", "c++")), tmp_path_factory.mktemp("here")
    build(compiler, folder, [] if objects else ["scalar"], objects=objects)
    return lambda program: [folder / program]


def needs_emulator():
    packages = {CROSS_COMPILER: "g++-aarch64-linux-gnu", EMULATOR: "qemu-user-static"}
    missing = {tool: package for tool, package in packages.items() if not shutil.which(tool)}
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: {', '.join(missing.values())})")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The same on aarch64."""
    needs_emulator()
    exist = ["-DTANDEM_NEON_KERNELS", "-DTANDEM_NEONDOT_KERNELS"]
    folder = build([CROSS_COMPILER], tmp_path_factory.mktemp("aarch64"), ISAS, "-static", *exist)
    return lambda program: [EMULATOR, folder / program]


def lines_of(command, cap):
    """cap: the instruction set to use at most, or "" for none."""
    environment = {**os.environ, "TANDEM_CPU_ISA": cap}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.nightly
@pytest.mark.parametrize(("cap", "isa"), [("scalar", "scalar"), ("neon", "neon"), ("", "neondot")])
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


@pytest.mark.nightly
def test_products_of_bytes(tmp_path):
    """The same sums as one addition after the other. test_instructions.py runs those of x86."""
    needs_emulator()
    source, program = "tests/instructions/bytes.cpp", tmp_path / "bytes"
    options = ["-static", f"-I{BYTES.parent}", *OPTIONS["neondot"]]
    compile_with([CROSS_COMPILER], *options, source, "-o", program)
    assert lines_of([EMULATOR, program], "") == ["0 wrong sums"]
