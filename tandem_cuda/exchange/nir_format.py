"""What export and import share: the nir package, and the values of a graph's metadata."""

from __future__ import annotations

import math
import re
from typing import Any

try:
    import h5py
    import nir

    _version = str(getattr(nir, "__version__", ""))
    if _version and [int(number) for number in re.findall(r"\d+", _version)[:3]] < [1, 0, 7]:
        raise ImportError(f"got nir {_version}, whose graphs have an older format")
    from nirtorch.torch_tracer import NIRTorchTracer
except ImportError as error:
    raise ImportError(
        f"tandem_cuda.exchange needs nir >= 1.0.7 and nirtorch ({error}): pip install tandem_cuda[nir]"
    ) from error

__all__ = ["ENCODINGS", "RESET", "NIRTorchTracer", "check_dt", "h5py", "nir", "unsupported"]

ENCODINGS = ("constant", "impulse", "spikes")
RESET = "subtract"


def check_dt(caller: str, dt: Any) -> None:
    """Raise a TypeError or ValueError unless dt can be the duration of a time step."""
    if isinstance(dt, bool) or not isinstance(dt, (int, float)):
        raise TypeError(f"{caller}: dt must be a number, got {type(dt).__name__}")
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"{caller}: dt must be positive and finite, got {dt}")


def unsupported(what: str, problems: list[str]) -> ValueError:
    """Make the error that lists all parts of a network or graph that cannot be exchanged."""
    supported = (
        "made of Encode, tandem layers, TandemAdd, SpikeCat, SpikeRearrange, pooling of spikes, flattening, dropout, "
        "Decode, and linear layers and functions after it"
        if what.startswith("to_nir")
        else "made of Conv1d, Conv2d, Linear, Affine, AvgPool2d or SumPool2d followed by IF or LIF, Flatten, max "
        "pooling as to_nir writes it, and weights after the last neurons"
    )
    return ValueError(f"{what} must be {supported}, got:\n" + "\n".join(f"  {problem}" for problem in problems))
