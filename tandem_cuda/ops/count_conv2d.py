"""count_conv2d: convolution of spike counts, event-driven."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .product import ENGINES, check_conv2d, terms_of


def count_conv2d(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    packed: Tensor | None = None,
    scale: Tensor | None = None,
    count: Tensor | None = None,
    engine: str = "auto",
) -> Tensor:
    """Convolve spike counts, v = scale * (weight * c) + bias: the ANN's pre-activation (Wu et al. 2021, eq. 9).

    Args:
        bits: uint8 [P, N, C, H, W]; c is their :func:`spike_count`.
        weight: float32, float64, float16, bfloat16 or int8 [O, C/groups, kH, kW]. With the last three all other
            arguments and results are float32, but gradients have the dtype of what they are the gradient of.
        bias: [O].
        stride: as in ``torch.nn.functional.conv2d``.
        padding: zero padding, an int or a pair.
        dilation: spacing of the taps.
        groups: blocks of channels.
        packed: :func:`pack_weight` of ``weight``, to save arranging it at this call.
        scale: [O], of the weights; must be given with int8 weights. No gradient flows to it.
        count: [N, C, H, W], the differentiable count of ``bits``; the gradient flows to it. Its value is not read in
            the forward pass.
        engine: "event": work in proportion to the spikes; "dense": torch's own convolution of float counts, a sample
            at a time; "auto": for each sample, by its own counts, the faster one. What a sample gives depends on no
            other. On a CUDA device
            "dense" is the tensor-core engine: not for float64 and int8 weights; compute capability 8.0 or newer. It
            multiplies float32 weights as precisely as ``torch.set_float32_matmul_precision`` asks: docs/cuda.md.

    Returns:
        [N, O, Ho, Wo], channels last in memory; differentiable in ``weight``, ``bias`` and ``count``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape or device that does not fit.
        RuntimeError: on the CPU, a weight, scale or bias that is not finite; not enough memory.
    """
    op = "count_conv2d"
    geometry = check_conv2d(op, bits, count, weight, packed, scale, bias, stride, padding, dilation, groups, engine)
    how = (ENGINES.index(engine), terms_of(weight))
    return torch.ops.tandem_cuda.count_product(bits, count, weight, packed, scale, bias, *geometry, groups, *how)
