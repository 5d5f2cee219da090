"""unpack_spikes: unpack bit planes into a dense spike train."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, layout

_DTYPES = (torch.float32, torch.float64, torch.bool, torch.uint8)


def unpack_spikes(bits: Tensor, time_steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack bit planes into a dense spike train.

    Args:
        bits: uint8 [P, N, ...].
        time_steps: T, with P = ceil(T / 8).
        dtype: of the result: float32, float64, bool or uint8.

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
    checks.check_train("unpack_spikes", bits, time_steps)
    if dtype not in _DTYPES:
        raise TypeError(f"unpack_spikes: dtype must be float32, float64, bool or uint8, got {dtype}")
    return torch.ops.tandem_cuda.unpack_spikes(bits, time_steps, dtype)


@torch.library.register_fake("tandem_cuda::unpack_spikes")
def _(bits: Tensor, time_steps: int, dtype: torch.dtype) -> Tensor:
    sizes = [time_steps, *bits.shape[1:]]
    return layout.empty_channels_last(bits, sizes, dtype, layout.train_feature_dim(bits.dim()))
