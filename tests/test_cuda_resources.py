"""What nvcc makes of the kernels for every architecture: no spills, bounded resources, the instructions meant."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from tandem_cuda.neuron import STATES

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
TABLE = tomllib.loads((ROOT / "tests" / "cuda_resources.toml").read_text())
SOURCES = {path.stem: path for path in sorted((ROOT / "csrc" / "ops").glob("*/*.cu"))}
FLAGS = ["-std=c++17", "-O3", "-I", ROOT / "csrc", "-fmad=false", "--expt-relaxed-constexpr", "-lineinfo"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nvcc():
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    found = next((path for home in homes if home and (path := shutil.which("nvcc", path=f"{home}/bin"))), None)
    return found or shutil.which("nvcc") or pytest.skip("no nvcc: CUDA_HOME, PATH and /usr/local/cuda have none")


def compiled(nvcc, source, architecture, folder, *flags):
    cubin = folder / f"{source}.cubin"
    command = [
        nvcc,
        *FLAGS,
        f"-arch={architecture}",
        "-cubin",
        *flags,
        SOURCES[source],
        "-o",
        cubin,
    ]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return cubin, result.stderr


def kernel_of(mangled):
    return re.search(r"(?<=\d)[a-z][a-z_]*_kernel", mangled)[0]


def limits_of(entry):
    """The row of the table for a compiled kernel: of the instance where there is one, else of the template."""
    arguments = re.search(r"_kernelI((?:L[ib]\d+E)+)", entry)
    instance = ",".join(re.findall(r"L[ib](\d+)E", arguments[1])) if arguments else ""
    row = TABLE[kernel_of(entry)]
    if "registers" in row:
        return row
    model = re.search(r"\d+([A-Z][a-z]+)INS_6Scalar", entry)
    return row.get(f"{instance},{model[1]}" if model else instance, row[instance])


def number(pattern, text):
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"])
@pytest.mark.parametrize("source", SOURCES)
def test_resources(nvcc, tmp_path, source, architecture):
    _, report = compiled(nvcc, source, architecture, tmp_path, "-Xptxas", "-v")
    entries = report.split("Compiling entry function")[1:]
    assert entries
    for entry in entries:
        spilled = number(r"(\d+) bytes spill stores", entry), number(r"(\d+) bytes spill loads", entry)
        allowed = limits_of(entry).get("spilled", 0) if architecture == "sm_80" else 0
        assert spilled == (0, 0) or spilled[0] <= allowed, entry
        if architecture != "sm_75":  # the reduced path: no tensor-core engine there
            assert number(r"Used (\d+) registers", entry) <= limits_of(entry)["registers"], entry
            assert number(r"(\d+) bytes smem", entry) <= limits_of(entry)["shared"], entry


def test_table_names_the_kernels_that_exist():
    text = "".join(path.read_text() for path in SOURCES.values())
    assert set(TABLE) == set(re.findall(r"[a-z][a-z_]*_kernel(?=\()", text))


@pytest.fixture(scope="module")
def cuobjdump():
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    found = next(iter(sorted(packages.glob("*/bin/cuobjdump"))), None) or shutil.which("cuobjdump")
    return found or pytest.skip("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_instructions(nvcc, cuobjdump, tmp_path, architecture):
    cubin, _ = compiled(nvcc, "spiking_product", architecture, tmp_path)
    tools = {**os.environ, "PATH": f"{Path(cuobjdump).parent}{os.pathsep}{os.environ['PATH']}"}
    sass = subprocess.run(
        [str(cuobjdump), "-sass", str(cubin)], capture_output=True, text=True, check=True, env=tools
    ).stdout
    functions = dict(re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function :|\Z)", sass, re.DOTALL))
    seen = {name: Counter(re.findall(r"\b(HMMA|LDGSTS\S*|LDL|STL)\b", body)) for name, body in functions.items()}
    cores = {name: found for name, found in seen.items() if "tensor_core_kernel" in name}
    assert len(cores) == 6 * (1 + len(STATES))  # counting, and with the neurons of every kind
    for name, found in cores.items():
        columns, terms = number(r"ILi(\d)E", name), number(r"Li\d+ELb\dELi(\d)E", name)
        steps = 1 if "ELb1E" in name else 8
        # Every column, step and term of one depth of 16 channels, once: the loop is not unrolled further.
        assert found["HMMA"] == columns * steps * terms, name
        copies = {instruction for instruction in found if instruction.startswith("LDGSTS")}
        assert copies, name
        assert all(".128" in instruction for instruction in copies), copies
        assert found["STL"] <= limits_of(name).get("spilled", 0) / 4, name
        assert found["STL"] > 0 or found["LDL"] == 0, name
    assert all(found["HMMA"] == 0 for name, found in seen.items() if "tensor_core_kernel" not in name)
