"""What was built, what runs here, and why the rest does not."""

from __future__ import annotations

import os
import re

import torch

from . import _C
from ._cuda_versions import driver_obstacle


def build_info() -> dict[str, object]:
    """What was built and what runs here; ``python -m tandem_cuda`` prints it.

    - ``version`` (str), ``compiler`` (str) of the library;
    - ``torch`` (str), the version in use; ``torch_built_against`` (str); ``torch_stable_abi`` (str), the oldest
      version that the library loads under;
    - ``cpu_isas_compiled``, ``cpu_isas_runnable`` (list of str), the instruction sets of the CPU kernels, from
      "scalar" up; ``cpu_isa`` (str), the one in use; ``TANDEM_CPU_ISA`` (str or None), the environment variable
      that caps it; ``threads`` (int), torch's;
    - ``cuda_toolkit`` (str), the version that compiled the CUDA kernels, and ``cuda_architectures`` (list of str,
      "sm_80" for machine code, "compute_90" for PTX); without CUDA kernels None and an empty list, and
      ``cuda_not_built_because`` (str, else None);
    - ``cuda_driver`` (str or None), the newest CUDA that the driver supports;
    - ``cuda_usable`` (bool): whether the CUDA kernels run on torch's current device, and
      ``cuda_unusable_because`` (str, else None): a driver too old for the toolkit, an architecture that is missing, ...

    Returns:
        A dictionary with these keys.
    """
    compiled = _C.build_info()
    obstacle = _cuda_obstacle(compiled)
    return {
        **compiled,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "TANDEM_CPU_ISA": os.environ.get("TANDEM_CPU_ISA"),
        "cuda_usable": obstacle is None,
        "cuda_unusable_because": obstacle,
    }


def _cuda_obstacle(compiled: _C.BuildInfo) -> str | None:
    """The first thing in the way of the CUDA kernels, in the order in which a user would mend them."""
    if compiled["cuda_toolkit"] is None:
        return f"the kernels were not compiled: {compiled['cuda_not_built_because']}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    driver, toolkit = compiled["cuda_driver"], compiled["cuda_toolkit"]
    too_old = driver_obstacle(toolkit, driver)
    if too_old is not None:  # which can be why torch finds no device, too
        return too_old
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    usable = [name for name in compiled["cuda_architectures"] if _runs_on(name, major, minor)]
    if not usable:
        return (
            f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, the kernels were compiled for "
            f"{' '.join(compiled['cuda_architectures'])}; add {major}.{minor} to TORCH_CUDA_ARCH_LIST and build again"
        )
    return driver_obstacle(toolkit, driver, ptx=all(name.startswith("compute_") for name in usable))


def _runs_on(architecture: str, major: int, minor: int) -> bool:
    """Machine code runs on its own major version, from its minor version on; PTX on all that is newer.

    Architectures with a suffix run on that one alone ("a") or count as any other ("f", a family's).
    https://docs.nvidia.com/cuda/cuda-compiler-driver-nvcc/#gpu-compilation
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
