"""Report what was built, what runs on this machine, and why the rest does not."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from . import _C
from ._cuda_versions import driver_obstacle


def build_info() -> dict[str, object]:
    """Return what was built and what runs on this machine; ``python -m tandem_cuda`` prints it.

    - ``version`` (str), ``compiler`` (str): of the library;
    - ``torch`` (str): the version in use; ``torch_built_against`` (str); ``torch_stable_abi`` (str): the oldest version
      that can load the library;
    - ``cpu_isas_compiled``, ``cpu_isas_runnable`` (list of str): the instruction sets of the CPU kernels, from "scalar"
      up; ``cpu_isa`` (str): the one in use; ``TANDEM_CPU_ISA`` (str or None): the environment variable that limits the
      choice; ``threads`` (int): torch's number of threads; ``processor`` (str): the name of the CPU where Linux knows
      it, otherwise its architecture;
    - ``cuda_toolkit`` (str or None): the version that compiled the CUDA kernels, None if there are none;
      ``cuda_architectures`` (list of str): "sm_80" for machine code, "compute_90" for PTX, empty if there are none;
      ``cuda_not_built_because`` (str or None): why there are no CUDA kernels;
    - ``cuda_driver`` (str or None): the newest CUDA version that the driver supports;
    - ``cuda_usable`` (bool): whether the CUDA kernels run on torch's current device;
      ``cuda_unusable_because`` (str or None): why they do not, for example because the driver is too old for the
      toolkit or an architecture is missing.

    Returns:
        A dictionary with these keys.

    Raises:
        ValueError: ``TANDEM_CPU_ISA`` is set to something else than an instruction set in ``cpu_isas_compiled``.

    Examples:
        >>> build_info()["torch"] == torch.__version__
        True
    """
    compiled = _C.build_info()
    obstacle = _cuda_obstacle(compiled)
    return {
        **compiled,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "TANDEM_CPU_ISA": os.environ.get("TANDEM_CPU_ISA"),
        "cuda_usable": obstacle is None,
        "cuda_unusable_because": obstacle,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cuda_obstacle(compiled: _C.BuildInfo) -> str | None:
    """Return the first reason why the CUDA kernels cannot run, in the order in which a user would fix them."""
    if compiled["cuda_toolkit"] is None:
        return f"the kernels were not compiled: {compiled['cuda_not_built_because']}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    driver, toolkit = compiled["cuda_driver"], compiled["cuda_toolkit"]
    too_old = driver_obstacle(toolkit, driver)
    if too_old is not None:  # may also be the reason why torch finds no device
        return too_old
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    usable = [name for name in compiled["cuda_architectures"] if _runs_on(name, major, minor)]
    if not usable:
        return (
            f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, but the kernels were compiled for "
            f"{' '.join(compiled['cuda_architectures'])}; add {major}.{minor} to TORCH_CUDA_ARCH_LIST and rebuild"
        )
    return driver_obstacle(toolkit, driver, ptx=all(name.startswith("compute_") for name in usable))


def _runs_on(architecture: str, major: int, minor: int) -> bool:
    """Return whether code for an architecture runs on compute capability major.minor.

    Machine code runs on devices of the same major version and the same or a higher minor version; PTX runs on every
    device that is not older. Code with suffix "a" runs on exactly its own architecture, code with suffix "f" (a family)
    like machine code. https://docs.nvidia.com/cuda/cuda-compiler-driver-nvcc/#gpu-compilation
    """
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if match is None:
        return False
    kind, suffix = match[1], match[4]
    built = (int(match[2]), int(match[3]))
    if suffix == "a":
        return built == (major, minor)
    if kind == "sm" or suffix == "f":
        return built[0] == major and built[1] <= minor
    return built <= (major, minor)
