"""Whether a CUDA driver serves what a toolkit compiled.

The build and ``make gpu`` run this file, before there is a library or torch: it needs nothing but Python.
``python tandem_cuda/_cuda_versions.py TOOLKIT [DRIVER]`` prints the obstacle, if there is one.
"""

from __future__ import annotations

import ctypes
import sys


def driver_version() -> str | None:
    """The newest CUDA that this machine's driver supports, "13.0"; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)) != 0 or number.value <= 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def driver_obstacle(toolkit: str, driver: str | None, *, ptx: bool = False) -> str | None:
    """Why code of a toolkit cannot run under a driver; None where it can, and where there is no driver to ask.

    A driver runs machine code of all toolkits of its own and of older major versions. With the runtime library of a
    newer major version, every call fails. It compiles PTX of its own version at most.
    https://docs.nvidia.com/deploy/cuda-compatibility/

    Args:
        toolkit: version of the CUDA toolkit, such as "13.0".
        driver: the newest CUDA that the driver supports, such as "12.4"; None without a driver.
        ptx: whether there is nothing but PTX for the device.
    """
    if driver is None:
        return None
    parts = 2 if ptx else 1
    compiled, supported = ([int(part) for part in version.split(".")[:parts]] for version in (toolkit, driver))
    if supported >= compiled:
        return None
    what = f"as PTX by CUDA {toolkit}" if ptx else f"by CUDA {toolkit}"
    return (
        f"the kernels were compiled {what}, the driver supports CUDA up to {driver}: update the driver, or build with "
        f"a toolkit of at most CUDA {driver if ptx else f'{supported[0]}.x'}"
    )


if __name__ == "__main__":
    print(driver_obstacle(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else driver_version()) or "", end="")
