"""A thin driver of CMakeLists.txt, which is the only build definition."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError

try:
    import cmake
    import ninja
except ModuleNotFoundError as error:
    raise SystemExit(
        f"tandem_cuda: {error.name} is missing; without build isolation, first run: "
        "pip install setuptools torch pybind11 numpy ninja cmake"
    ) from None

ROOT = Path(__file__).resolve().parent
OPERATORS = "libtandem_cuda"
# What CMake reads from the environment, directly or through its compiler detection.
ENVIRONMENT = ("TANDEM_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDACXX", "CUDAHOSTCXX", "CUDAFLAGS", "CUDA_HOME")
ENVIRONMENT += ("CXX", "CXXFLAGS", "LDFLAGS", "TANDEM_OPERATORS")


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # torch, where TANDEM_OPERATORS has been built before
        return None


def is_isolated() -> bool:
    """Whether pip builds in a throw-away environment, whose paths no later build will see again."""
    spec = importlib.util.find_spec("pybind11")
    site_packages = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve().parents[1] not in site_packages


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        """Without a Python's suffix for the operators: they are no module of it."""
        if fullname.rpartition(".")[2] == OPERATORS:
            return str(Path(*fullname.split("."))) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        """Build all of them by one run of CMake."""
        if is_isolated():
            build = Path(self.build_temp).resolve()
            self.configure(build)
        else:  # kept for the next build, one folder for each Python and torch
            torch = "no-torch" if os.environ.get("TANDEM_OPERATORS") else f"torch-{version('torch')}"
            tag = f"{sys.implementation.cache_tag}-{torch}".replace("+", "-")
            build = ROOT / "build" / tag
            self.configure(build)
            commands = ROOT / "build" / "compile_commands.json"  # where clang-tidy and clangd look
            commands.unlink(missing_ok=True)
            commands.symlink_to(Path(tag, commands.name))
        jobs = os.environ.get("MAX_JOBS")  # torch's name for it
        self.cmake("--build", str(build), *(["--parallel", jobs] if jobs else []))
        target = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
        self.cmake("--install", str(build), "--prefix", str(target))

    def configure(self, build: Path) -> None:
        """Run CMake, from scratch if anything differs from what the folder was configured with."""
        arguments = [
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR, 'ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        configured = {
            "arguments": arguments,
            "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
            "nvcc": shutil.which("nvcc"),
            "versions": {name: version(name) for name in ("cmake", "torch", "pybind11")},
        }
        record = build / "configured.json"
        unchanged = record.exists() and json.loads(record.read_text()) == configured
        record.unlink(missing_ok=True)  # until CMake has succeeded
        self.cmake(*([] if unchanged else ["--fresh"]), "-S", str(ROOT), "-B", str(build), *arguments)
        record.write_text(json.dumps(configured))

    def cmake(self, *arguments: str) -> None:
        try:
            subprocess.run([str(Path(cmake.CMAKE_BIN_DIR, "cmake")), *arguments], check=True)
        except subprocess.CalledProcessError as error:
            raise ExecError(f"building tandem_cuda failed: {shlex.join(error.cmd)} (its messages are above)") from None


extensions = [Extension(f"tandem_cuda.{name}", sources=[]) for name in ("_C", OPERATORS)]
setup(ext_modules=extensions, cmdclass={"build_ext": CMakeBuild})
