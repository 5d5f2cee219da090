"""What everything ran on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import peers
import tandem_cuda as tc


def describe() -> dict[str, Any]:
    info = tc.build_info()
    return {
        "processor": info["processor"],
        "caches of processor 0": _caches(),
        "processors usable": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "instruction set in use": info["cpu_isa"],
        "instruction set of PyTorch": torch.backends.cpu.get_cpu_capability(),
        "compiler": info["compiler"],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("tandem_cuda", "torch", "numpy", *peers.VERSIONS)},
        "system": platform.platform(),
    }


def _caches() -> str:
    caches = []
    for path in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((path / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            caches.append(f"L{level} {size}")
    return ", ".join(caches) or "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
