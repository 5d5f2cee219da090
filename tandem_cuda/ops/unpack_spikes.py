"""unpack_spikes: unpack bit planes into a dense spike train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks, layout
from .checked import checked_by

_DTYPES = (torch.float32, torch.float64, torch.bool, torch.uint8)


def _check(op: str, a: Any) -> None:
    checks.check_train(op, a.bits, a.time_steps)
    if a.dtype not in _DTYPES:
        raise TypeError(f"{op}: dtype must be float32, float64, bool or uint8, got {a.dtype}")


@checked_by(_check)
def unpack_spikes(bits: Tensor, time_steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack bit planes into a dense spike train.

    Args:
        bits: uint8 [P, N, ...].
        time_steps: T, with P = ceil(T / 8).
        dtype: dtype of the result, float32, float64, bool or uint8.

    Returns:
        [T, N, ...] of 0 and 1, features last in memory.

    Raises:
        TypeError: wrong dtype.
        ValueError: T < 1 or the number of planes does not match it.
        RuntimeError: on the CPU, bits past T.

    Examples:
        >>> bits = torch.tensor([[[0b101]]], dtype=torch.uint8)
        >>> ops.unpack_spikes(bits, time_steps=3).flatten()
        tensor([1., 0., 1.])
    """
    return torch.ops.tandem_cuda.unpack_spikes(bits, time_steps, dtype)


@torch.library.register_fake("tandem_cuda::unpack_spikes")
def _(bits: Tensor, time_steps: int, dtype: torch.dtype) -> Tensor:
    sizes = [time_steps, *bits.shape[1:]]
    return layout.empty_channels_last(bits, sizes, dtype, layout.train_feature_dim(bits.dim()))
