"""spike_count: count the spikes of every neuron."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks, layout
from .checked import checked_by


def _check(op: str, a: Any) -> None:
    checks.check_bits(op, a.bits)
    checks.check_dtype(op, "dtype", a.dtype)


@checked_by(_check)
def spike_count(bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Count the spikes of every neuron over all time steps.

    Args:
        bits: uint8 [P, N, ...].
        dtype: dtype of the result, float32 or float64.

    Returns:
        [N, ...], integers from 0 to 8P, features last in memory. No gradient: see :func:`tandem_count`.

    Raises:
        TypeError: wrong dtype.
        ValueError: ``bits`` has fewer than two dimensions or no plane.

    Examples:
        >>> bits = torch.tensor([[[0b101, 0b111]]], dtype=torch.uint8)
        >>> ops.spike_count(bits)
        tensor([[2., 3.]])
    """
    return torch.ops.tandem_cuda.spike_count(bits, dtype)


def spike_value(bits: Tensor, dtype: torch.dtype, radix: bool) -> Tensor:
    """Return the numbers that trains stand for, [N, ...]: the values of radix spikes, which are their bytes, or counts.

    It is exempt from the argument checks of :func:`spike_count`.
    """
    return bits[0].to(dtype) if radix else spike_count.trusted(bits, dtype)


def empty_count(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor with the shape and layout of a spike_count."""
    return layout.empty_channels_last(bits, bits.shape[1:], dtype, layout.train_feature_dim(bits.dim()) - 1)


@torch.library.register_fake("tandem_cuda::spike_count")
def _(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return empty_count(bits, dtype)
