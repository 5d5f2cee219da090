"""Kernels that multiply bytes, on instructions in software: of AVX-512, VNNI and AMX, whatever the processor has."""

import platform
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "instructions"
KERNELS = ROOT / "csrc" / "ops" / "product"
AVX512 = ["-D__AVX512BW__"]
AVX512_VNNI = [*AVX512, "-D__AVX512VNNI__"]
INSTRUCTIONS = {
    "AVX2": [],
    "AVX-VNNI": ["-D__AVXVNNI__"],
    "AVX-512": AVX512,
    "AVX-512 VNNI": AVX512_VNNI,
    "VNNI and AMX": [*AVX512_VNNI, "-D__AVX512VBMI2__"],
}

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels are those of x86"),
]


def in_software(name, folder):
    """Write a header of kernels, with calls in the place of assembly code and of attributes."""
    text = (KERNELS / name).read_text()
    text = re.sub(
        r'asm\("[^;]*vpdpbusd[^;]*"\+[vx]"\((.+?)\) : "[vx]"\((.+?)\), "[vx]"\((.+?)\)\);',
        r"\1 = multiply_bytes(\1, \2, \3);",
        text,
    )
    text = re.sub(r'__attribute__\(\(target\("amx[^)]*\)\)\)', "", text)
    text = re.sub(r'"ops/product/(count_(tile|rows)\.inl\.h)"', r'"\1"', text)
    assert not re.search(r"\basm\b|target\(", text), f"{name} has instructions that the test knows nothing of"
    (folder / name).write_text(text)


@pytest.mark.parametrize("options", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
@pytest.mark.parametrize("fault", [None, "broadcast", "depth"])
def test_sums(options, fault, tmp_path):
    """The same sums as one addition after the other; and a fault of the kernels is seen."""
    for name in ("count_rows.inl.h", "count_tile.inl.h", "count_matrix.inl.h"):
        in_software(name, tmp_path)
    tile = tmp_path / "count_tile.inl.h"
    faults = {
        "broadcast": ("p * counts.stride + 4 * q", "p * counts.stride"),
        "depth": ("at += kCacheDepth", "at += 2 * kCacheDepth"),
    }
    if fault:
        before, after = faults[fault]
        assert before in tile.read_text()
        tile.write_text(tile.read_text().replace(before, after))
    program = tmp_path / "bytes"
    command = ["g++", "-std=c++17", "-O1", "-w", "-mavx2", "-DTANDEM_ISA=software_isa", *options]
    command += [f"-I{tmp_path}", f"-I{FOLDER}", f"-I{ROOT / 'csrc'}", str(FOLDER / "bytes.cpp"), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (result.returncode == 0) == (fault is None), result.stdout
    assert "wrong sums" in result.stdout
