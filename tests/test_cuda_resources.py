"""What nvcc makes of the kernels for several architectures: no spills, bounded resources, the instructions meant."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import host_programs
import tandem_cuda
from exact import nightly
from tandem_cuda.neuron import STATES

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
TABLE = tomllib.loads((ROOT / "tests" / "cuda_resources.toml").read_text())
SOURCES = {path.stem: path for path in sorted((ROOT / "csrc" / "ops").glob("*/*.cu"))}
# Code for one architecture alone.
WARPGROUP, ITS_ARCHITECTURE = "warpgroup_product", "sm_90a"
FLAGS = [*host_programs.NVCC_FLAGS, "-I", ROOT / "csrc", "-lineinfo"]
MODELS = [text for path in (ROOT / "csrc" / "neuron").glob("*.h") if "kStates = " in (text := path.read_text())]
VARIABLES = {re.search(r"struct (\w+)", text)[1]: int(re.search(r"kStates = (\d+)", text)[1]) for text in MODELS}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nvcc():
    return host_programs.nvcc() or pytest.skip(host_programs.NO_NVCC)


@pytest.fixture(scope="module")
def cuobjdump():
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    found = next(iter(sorted(packages.glob("*/bin/cuobjdump"))), None) or shutil.which("cuobjdump")
    return found or pytest.skip("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


@pytest.fixture(scope="module")
def cubin(nvcc, cuobjdump, tmp_path_factory):
    """The machine code of a source for an architecture: the library's own, or else compiled, once.

    The first source asked for of an architecture starts to compile all kernels for it.
    """
    folder = tmp_path_factory.mktemp("cubins")
    if tandem_cuda.build_info()["cuda_toolkit"]:
        library = Path(tandem_cuda.__file__).with_name("libtandem_cuda.so")
        subprocess.run([cuobjdump, "-xelf", "all", library], cwd=folder, check=True, capture_output=True)

    def compiled(source, architecture):
        file = folder / f"{source.stem}.{architecture}.cubin"
        if not file.exists():
            command = [nvcc, *FLAGS, f"-arch={architecture}", "-cubin", source, "-o", file]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
        return file

    pool, files = ThreadPoolExecutor(os.cpu_count()), {}

    def f(source, architecture):
        alike = [path for name, path in SOURCES.items() if (name == WARPGROUP) == (architecture == ITS_ARCHITECTURE)]
        for each in (source, *alike):
            if (each, architecture) not in files:
                files[each, architecture] = pool.submit(compiled, each, architecture)
        return files[source, architecture].result()

    yield f
    pool.shutdown(cancel_futures=True)


def kernel_of(mangled):
    return re.search(r"(?<=\d)[a-z][a-z_]*_kernel", mangled)[0]


def limits_of(entry):
    """The row of the table for a compiled kernel: of the instance where there is one, else of the template.

    An instance whose neurons have several state variables may have a row of its own.
    """
    arguments = re.search(r"_kernelI((?:L[ib]\d+E)+)", entry)
    instance = ",".join(re.findall(r"L[ib](\d+)E", arguments[1])) if arguments else ""
    row = TABLE[kernel_of(entry)]
    if "registers" in row:
        return row
    variables = next((n for name, n in VARIABLES.items() if f"{len(name)}{name}INS_6Scalar" in entry), 1)
    return row.get(f"{instance}, {variables} variables", row[instance])


def number(pattern, text):
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


# The library has the machine code of 8.0 and 9.0; for another one, nvcc takes minutes. 8.6 lies between 8.0 and 8.9 and
# has the instructions of both.
@pytest.mark.parametrize(
    ("source", "architecture"),
    [
        *((source, "sm_80") for source in SOURCES if source != WARPGROUP),
        *((source, "sm_90") for source in SOURCES if source != WARPGROUP),
        *(nightly(source, other) for source in SOURCES if source != WARPGROUP for other in ("sm_75", "sm_89")),
        (WARPGROUP, ITS_ARCHITECTURE),
    ],
)
def test_resources(cubin, cuobjdump, source, architecture):
    command = [cuobjdump, "-res-usage", cubin(SOURCES[source], architecture)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    entries = usage.split(" Function ")[1:]
    assert entries
    for entry in entries:
        limits, used = limits_of(entry), {name: int(n) for name, n in re.findall(r"(\w+):(\d+)", entry)}
        # A register that is spilled is on the stack.
        assert used["STACK"] <= limits.get("stack", 0), entry
        assert used["LOCAL"] == 0, entry
        if architecture != "sm_75":  # the reduced path: no tensor-core engine there
            assert used["REG"] <= limits["registers"], entry
            # From 9.0 on, the 1024 bytes that the system takes of every block with shared memory are counted.
            system = 1024 if used["SHARED"] and architecture.startswith("sm_90") else 0
            assert used["SHARED"] - system <= limits["shared"], entry


def test_the_models_are_found():
    assert sorted(VARIABLES.values()) == sorted(STATES.values())


def test_table_names_the_kernels_that_exist():
    text = "".join(path.read_text() for path in SOURCES.values())
    assert set(TABLE) == set(re.findall(r"[a-z][a-z_]*_kernel(?=\()", text))


def functions_of(cuobjdump, file):
    """The machine's instructions of every kernel, by name: (address, instruction)."""
    tools = {**os.environ, "PATH": f"{Path(cuobjdump).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [cuobjdump, "-sass", file]
    sass = subprocess.run(command, capture_output=True, text=True, check=True, env=tools).stdout
    functions = dict(re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function :|\Z)", sass, re.DOTALL))
    return {
        name: [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", body)]
        for name, body in functions.items()
    }


def opcode(text):
    """The name of an instruction, without its predicate and its modifiers."""
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0]


def main_loop(instructions, kind):
    """The smallest loop with as many instructions of a kind as the whole kernel has."""
    everything = sum(opcode(text) == kind for _, text in instructions)
    loops = []
    for at, text in instructions:
        back = re.search(r"BRA.*?0x([0-9a-f]+)", text)
        if back and int(back[1], 16) < at:
            body = [other for address, other in instructions if int(back[1], 16) <= address <= at]
            if sum(opcode(other) == kind for other in body) == everything:
                loops.append(body)
    return min(loops, key=len)


ARCHITECTURES = ["sm_80", nightly("sm_89"), "sm_90"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_instructions(cubin, cuobjdump, architecture):
    """The share of the main loop that tensor cores do. Nothing else there grows with the number of weights."""
    functions = functions_of(cuobjdump, cubin(SOURCES["integer_product"], architecture))
    cores = {name: found for name, found in functions.items() if kernel_of(name).startswith("integer_")}
    assert len(cores) == 3 * (2 + 3 * len(STATES))  # digits; counts of two sizes, spikes of three with every neuron
    for name, found in cores.items():
        loop = Counter(map(opcode, main_loop(found, "IMMA")))
        assert loop["STL"] == loop["LDL"] == 0, name
        assert loop["IMMA"] / loop.total() >= limits_of(name)["share"], (name, loop)
        kinds = {re.search(r"IMMA\S*", text)[0] for _, text in found if "IMMA" in text}
        assert any(".S8.U8" in kind for kind in kinds), kinds
        assert any(".U8.U8" in kind for kind in kinds) == ("ILi1E" not in name), kinds
    assert all("IMMA" not in text for name in functions.keys() - cores for _, text in functions[name])


def registers_in(operand, count=1):
    """The numbers of registers that an operand names, the first of so many."""
    found = re.match(r"R(\d+)(?!\w)", operand)
    return set(range(int(found[1]), int(found[1]) + count)) if found else set()


def disturbed(loop):
    """The instructions of a loop that touch registers of products under way, as the loop runs a second time.

    A product reads A and adds to D from its start until the wait for it.
    """
    out, under_way, sums, since_fence = [], set(), set(), set()
    for text in loop * 2:
        name, *operands = re.sub(r"^@!?U?P\w+\s+", "", text).replace(",", " ").split()
        operands = [operand for operand in operands if operand.startswith("R") or "[" in operand]
        wide = 4 if ".128" in name else 2 if ".64" in name or ".WIDE" in name else 1
        if name.startswith("IGMMA"):
            added = registers_in(operands[0], int(re.search(r"64x(\d+)x32", name)[1]) // 2)
            factor = registers_in(operands[1], 4)
            out += [text] if since_fence & (added | factor) else []
            under_way, sums = under_way | added | factor, sums | added
        elif name.startswith("WARPGROUP.ARRIVE"):
            since_fence = set()
        elif name.startswith("WARPGROUP.DEPBAR"):
            under_way, sums = set(), set()
        elif operands:
            stores = re.match(r"ST|ISETP|R2UR", name)
            written = set() if stores else registers_in(operands[0], wide)
            read = {int(n) for n in re.findall(r"\bR(\d+)", " ".join(operands if stores else operands[1:]))}
            out += [text] if written & under_way or read & sums else []
            since_fence |= written
    return out


def test_instructions_of_warpgroups(cubin, cuobjdump):
    """Products of 64 pixels, as many as there are time steps and kinds of digits, and one wait for all of a slice."""
    functions = functions_of(cuobjdump, cubin(SOURCES[WARPGROUP], ITS_ARCHITECTURE))
    assert len(functions) == 3 * 2 * len(STATES)  # digits, numbers of time steps, neurons
    for name, found in functions.items():
        loop = main_loop(found, "IGMMA")
        kinds = Counter(map(opcode, (text for _, text in found)))
        assert kinds["STL"] == kinds["LDL"] == 0, name
        digits = int(re.search(r"_kernelILi(\d)E", name)[1])
        products = Counter(re.search(r"IGMMA\.(\S+)", text)[1] for text in loop if "IGMMA" in text)
        rows = 32 // digits
        expected = {f"64x{rows}x32.U8.S8": 32} | ({f"64x{32 - rows}x32.U8.U8": 32} if digits > 1 else {})
        assert products == expected, name
        assert sum("WARPGROUP.DEPBAR" in text for text in loop) == 4, name
        assert len(loop) <= limits_of(name)["loop"], name
        assert disturbed(loop) == [], name


def test_disturbed_products_are_found():
    product = ["R2UR UR4, R30", "WARPGROUP.ARRIVE", "IGMMA.64x8x32.U8.S8 R24, R8, gdesc[UR4], R24, gsb0"]
    wait = ["WARPGROUP.DEPBAR.LE gsb0, 0x0", "IADD3 R24, R24, R9, RZ", "MOV R8, R24"]
    assert disturbed([*product, "LDG.E.128 R4, desc[UR8][R2.64]", *wait]) == []
    for other in ("LDG.E.128 R8, desc[UR8][R2.64]", "MOV R11, R3", "@P0 IADD3 R3, R27, R2, RZ", "STS [R2], R25"):
        assert disturbed([*product, other, *wait]) == [other] * 2
    late = [product[0], product[1], "LOP3.LUT R9, R1, R2, RZ, 0xc0, !PT", product[2]]
    assert disturbed([*late, *wait]) == [product[2]] * 2


# What the functions that consist of PTX become, by header.
INSTRUCTIONS = {
    "mma_m16n8k32": r"IMMA\.16832\.[SU]8\.U8",
    "cp_async_16": r"LDGSTS\.E\.BYPASS\S*\.128",
    "cp_async_commit": r"LDGDEPBAR",
    "cp_async_wait": r"DEPBAR\.LE SB0, 0x1",
    "anew": None,
}
INSTRUCTIONS_OF_WARPGROUPS = {
    "wgmma_m64k32": r"IGMMA\.64x\d+x32\.U8\.[SU]8",
    "fence_shared_matrices": r"FENCE\.VIEW\.ASYNC",
    "warpgroup_fence": r"WARPGROUP\.ARRIVE",
    "warpgroup_commit": None,
    "warpgroup_wait": r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1",
    "anew": None,
}
# That have several kernels, one of each sign and shape.
INSTANCES = {"mma_m16n8k32": 2, "wgmma_m64k32": 5}


@pytest.mark.parametrize(
    ("header", "source", "instructions", "architecture"),
    [
        *(("device.cuh", "instructions", INSTRUCTIONS, architecture) for architecture in ("sm_80", "sm_90")),
        nightly("device.cuh", "instructions", INSTRUCTIONS, "sm_89"),
        ("warpgroup.cuh", "warpgroup_instructions", INSTRUCTIONS_OF_WARPGROUPS, ITS_ARCHITECTURE),
    ],
)
def test_ptx_is_assembled(cubin, cuobjdump, header, source, instructions, architecture):
    text = (ROOT / "csrc" / "cuda" / header).read_text()
    functions = re.split(r"__device__ __forceinline__ ", text)[1:]
    with_ptx = [re.search(r"(\w+)\(", body)[1] for body in functions if re.search(r"\basm\b|TANDEM_WGMMA_", body)]
    assert set(with_ptx) == set(instructions)
    assembled = functions_of(cuobjdump, cubin(ROOT / "tests" / "cpp" / "cuda_device" / f"{source}.cu", architecture))
    for function, instruction in instructions.items():
        kernels = {name: body for name, body in assembled.items() if re.search(rf"\d{function}_kernel", name)}
        assert len(kernels) == INSTANCES.get(function, 1)
        for name, body in kernels.items():
            text = "\n".join(line for _, line in body)
            assert instruction is None or re.search(instruction, text), (name, text)
            if function == "mma_m16n8k32":
                assert ("S8.U8" in text) == ("ILb1E" in name), text


def test_all_ptx_is_in_two_headers():
    headers = ("device.cuh", "warpgroup.cuh")
    others = [path for path in (ROOT / "csrc").rglob("*.cu*") if path.name not in headers]
    assert not [path.name for path in others if "asm" in path.read_text()]
