"""count_linear: a linear layer on spike counts, event-driven; and the gradient that all linear products share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import layout
from .autocast import without_autocast
from .gradient import register_gradient
from .product import (
    ENGINES,
    Gradients,
    Saved,
    check_operands,
    check_product,
    current_dtype,
    needed_gradients,
    product_gradients,
    save_product,
    saved_values,
    terms_of,
)


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
    return torch.ops.tandem_cuda.count_linear(
        bits, count, weight, packed, scale, bias, ENGINES.index(engine), terms_of(weight)
    )


def check_linear(op: str, bits: Any, count: Any, weight: Any, packed: Any, scale: Any, bias: Any, engine: Any) -> None:
    """Check a linear product's arguments."""
    check_product(op, bits, weight, engine)
    if bits.dim() < 3:
        raise ValueError(f"{op}: bits must be [P, N, ..., F], got {list(bits.shape)}")
    if weight.dim() != 2 or 0 in weight.shape or weight.shape[1] != bits.shape[-1]:
        raise ValueError(
            f"{op}: weight must be [O, {bits.shape[-1]}] for bits of shape {list(bits.shape)}, got {list(weight.shape)}"
        )
    check_operands(op, bits, count, weight, packed, scale, bias, 1)


@torch.library.register_fake("tandem_cuda::count_linear")
def _(
    bits: Tensor,
    count: Tensor | None,
    weight: Tensor,
    packed: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    engine: int,
    terms: int,
) -> Tensor:
    sizes = [*bits.shape[1:-1], weight.shape[0]]
    return layout.empty_channels_last(weight, sizes, current_dtype(weight), len(sizes) - 1)


@without_autocast
def linear_gradients(grad: Tensor, saved: Saved, needed: tuple[bool, bool, bool]) -> Gradients:
    """Gradients of scale * (weight * count) + bias with respect to count, weight and bias, where needed."""
    weight, scale = saved[2].to(grad.dtype), saved[3]
    # reshape, for there is no rule to batch flatten with is_grads_batched
    grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if needed[2] else None
    if scale is not None:
        grad = grad * scale
    grad_count = grad @ weight if needed[0] else None
    grad_weight = None
    if needed[1]:
        grad_weight = (grad.reshape(-1, grad.shape[-1]).t() @ saved_values(saved, grad.dtype).flatten(0, -2)).to(
            saved[2].dtype
        )
    return grad_count, grad_weight, grad_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    bits, count, weight, _, scale, *_ = inputs
    save_product(ctx, bits, count, weight, scale)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    grads: Gradients = (None, None, None)
    if grad is not None:
        grads = linear_gradients(grad, ctx.saved_tensors, needed_gradients(ctx))
    return product_gradients(grads, 2)


register_gradient("count_linear", _backward, _setup_context)
