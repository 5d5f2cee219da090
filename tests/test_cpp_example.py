"""The C++ example is compiled, and runs a network without Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tandem_cuda
from digests import digits, frozen_network

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "cpp"
NAME = "int8"


def run(*command, **environment):
    return subprocess.run(
        [str(part) for part in command], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def checked(*command, **environment):
    result = run(*command, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    cmake, ninja = pytest.importorskip("cmake"), pytest.importorskip("ninja")
    if not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("no C++ compiler")
    if torch.version.cuda and not shutil.which("nvcc"):
        pytest.skip("CMake's package of a CUDA build of torch needs the CUDA toolkit")
    folder = tmp_path_factory.mktemp("cpp")
    tool = Path(cmake.CMAKE_BIN_DIR, "cmake")
    options = [f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR, 'ninja')}", "-GNinja"]
    options += [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}", f"-DTANDEM_LIBRARY={tandem_cuda.library_path}"]
    checked(tool, "-S", EXAMPLE, "-B", folder, *options)
    checked(tool, "--build", folder)
    return folder / "run"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    pytest.importorskip("safetensors")
    path = tmp_path_factory.mktemp("package") / "net.pt2"
    golden = Path(__file__).with_name("golden") / f"digits_{NAME}.safetensors"
    size = digits()[0].shape[1:]
    root = Path(tandem_cuda.__file__).parents[1]
    checked(sys.executable, EXAMPLE / "export.py", golden, path, *size, PYTHONPATH=str(root))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 100])
def test_same_output_as_in_python(program, package, tmp_path, samples):
    images, labels = (x[:samples] for x in digits())
    torch.save(images, tmp_path / "images.pt")
    said = checked(program, package, tmp_path / "images.pt", tmp_path / "logits.pt")
    assert said.startswith(f"{samples} samples in ")
    logits = torch.load(tmp_path / "logits.pt")
    with torch.no_grad():
        torch.testing.assert_close(logits, frozen_network(NAME)(images), rtol=1e-5, atol=1e-5)
    assert (logits.argmax(1) == labels).float().mean() > 0.95
    libraries = checked("ldd", program)
    assert str(Path(tandem_cuda.library_path).resolve()) in libraries
    assert "libtorch_cpu.so" in libraries
    assert "libpython" not in libraries


@pytest.mark.slow
def test_errors(program, package, tmp_path):
    result = run(program, package)
    assert (result.returncode, result.stderr) == (1, "run: usage: run PACKAGE INPUT OUTPUT\n")
    result = run(program, package, tmp_path / "images.pt", tmp_path / "logits.pt")
    assert (result.returncode, result.stderr) == (1, f"run: cannot read {tmp_path / 'images.pt'}\n")
    torch.save(digits()[0][:1], tmp_path / "images.pt")
    result = run(program, package, tmp_path / "images.pt", tmp_path / "nowhere" / "logits.pt")
    assert (result.returncode, result.stderr) == (1, f"run: cannot write {tmp_path / 'nowhere' / 'logits.pt'}\n")
