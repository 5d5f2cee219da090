"""count_linear: a linear layer on spike counts, event-driven."""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import Geometry
from .product import ENGINES, check_linear, terms_of


def count_linear(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    packed: Tensor | None = None,
    scale: Tensor | None = None,
    count: Tensor | None = None,
    engine: str = "auto",
) -> Tensor:
    """Apply a linear layer to spike counts, v = scale * (weight * c) + bias (Wu et al. 2021, eq. 9).

    Args:
        bits: uint8 [P, N, ..., F]; c is their :func:`spike_count`.
        weight: float32, float64, float16, bfloat16 or int8 [O, F]. With the last three all other
            arguments and results are float32, but gradients have the dtype of what they are the gradient of.
        bias: [O].
        packed: :func:`pack_weight` of ``weight``, to save arranging it at this call.
        scale: [O], of the weights; must be given with int8 weights. No gradient flows to it.
        count: [N, ..., F], the differentiable count of ``bits``; the gradient flows to it. Its value is not read in the
            forward pass.
        engine: "event": work in proportion to the spikes; "dense": torch's own matrix product of float counts, whose
            roundings may depend on the size of the batch; "auto": "event". On a CUDA device
            "dense" is the tensor-core engine: not for float64 and int8 weights; compute capability 8.0 or newer. It
            multiplies float32 weights as precisely as ``torch.set_float32_matmul_precision`` asks: docs/cuda.md.

    Returns:
        [N, ..., O]; differentiable in ``weight``, ``bias`` and ``count``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape or device that does not fit.
        RuntimeError: on the CPU, a weight, scale or bias that is not finite; not enough memory.
    """
    check_linear("count_linear", bits, count, weight, packed, scale, bias, engine)
    how = (*Geometry(), 1, ENGINES.index(engine), terms_of(weight))
    return torch.ops.tandem_cuda.count_product(bits, count, weight, packed, scale, bias, *how)
