"""quantise_weight: the nearest integer weights, with one scale per output channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks
from .checked import checked_by

LARGEST = {8: 127, 16: 32639}
"""The largest integer for each number of bits. For 16 it is 256 * 127 + 127, which two signed 8-bit digits hold."""


def _check(op: str, a: Any) -> None:
    checks.check_tensor(op, "weight", a.weight)
    if a.weight.dtype != torch.float32:
        raise TypeError(f"{op}: weight must be float32, got {a.weight.dtype}")
    checks.check_int(op, "bits", a.bits)
    if a.bits not in LARGEST:
        raise ValueError(f"{op}: bits must be 8 or 16, got {a.bits}")
    if a.weight.dim() < 2 or 0 in a.weight.shape:
        raise ValueError(f"{op}: weight must be [O, ...] with no empty dimension, got {list(a.weight.shape)}")


@checked_by(_check)
def quantise_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round weights to integers times a scale per output channel: weight ~ scale * q, |q| <= 127 or 32639.

    The scale of a channel is its largest weight over the largest integer. Integers have exact sums, which every engine,
    instruction set and device computes alike. All operations are IEEE 754's, so q and scale are equal everywhere,
    too.

    Args:
        weight: float32 [O, ...], output channels first, finite.
        bits: 8 or 16.

    Returns:
        ``(q, scale)``: int8 or int16 in the shape of ``weight``, and float32 [O]; 1 for channels of zeros. No gradient.
        On a CUDA device, which is not waited for, a channel with a weight that is not finite gets zeros and scale NaN.

    Raises:
        TypeError: ``weight`` is not a float32 tensor, or ``bits`` is not an int.
        ValueError: ``bits`` is neither 8 nor 16, or ``weight`` has fewer than two dimensions or an empty one.
        RuntimeError: on the CPU, a weight that is not finite.

    Examples:
        >>> q, scale = ops.quantise_weight(torch.tensor([[0.5, -1.0], [2.0, 0.0]]), 8)
        >>> q
        tensor([[  64, -127],
                [ 127,    0]], dtype=torch.int8)
        >>> scale * 127
        tensor([1., 2.])
    """
    return torch.ops.tandem_cuda.quantise_weight(weight.detach(), LARGEST[bits])


@torch.library.register_fake("tandem_cuda::quantise_weight")
def _(weight: Tensor, largest: int) -> Any:
    dtype = torch.int8 if largest == 127 else torch.int16
    return torch.empty(weight.shape, dtype=dtype, device=weight.device), weight.new_empty(weight.shape[:1])
