"""count_linear: a linear layer on spike counts, event-driven; and the gradient that all linear products share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks, layout
from .count_conv2d import Saved, save_product, saved_values


def count_linear(bits: Tensor, weight: Tensor, bias: Tensor | None = None, *, count: Tensor | None = None) -> Tensor:
    """Apply a linear layer to spike counts, v = weight * c + bias: the ANN's pre-activation (Wu et al. 2021, eq. 9).

    Work is proportional to the spikes, not to the size of the layer.

    Args:
        bits: uint8 [P, N, ..., F]; c is their :func:`spike_count`.
        weight: float32 or float64 [O, F].
        bias: [O].
        count: [N, ..., F], the differentiable count of ``bits``; the gradient flows to it. Its value is not read in the
            forward pass.

    Returns:
        [N, ..., O]; differentiable in ``weight``, ``bias`` and ``count``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape or device that does not fit.
    """
    check_linear("count_linear", bits, count, weight, bias)
    return torch.ops.tandem_cuda.count_linear(bits, count, weight, bias)


def check_linear(op: str, bits: Any, count: Any, weight: Any, bias: Any) -> None:
    """Check a linear product's arguments."""
    checks.check_bits(op, bits)
    checks.check_floating(op, "weight", weight)
    checks.check_same_device(op, "weight", weight, bits, "bits")
    if bits.dim() < 3:
        raise ValueError(f"{op}: bits must be [P, N, ..., F], got {list(bits.shape)}")
    if weight.dim() != 2 or 0 in weight.shape or weight.shape[1] != bits.shape[-1]:
        raise ValueError(
            f"{op}: weight must be [O, {bits.shape[-1]}] for bits of shape {list(bits.shape)}, got {list(weight.shape)}"
        )
    if bias is not None:
        checks.check_like(op, "bias", bias, weight, "weight", weight.shape[:1])
    if count is not None:
        checks.check_like(op, "count", count, weight, "weight", bits.shape[1:])


@torch.library.register_fake("tandem_cuda::count_linear")
def _(bits: Tensor, count: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    sizes = [*bits.shape[1:-1], weight.shape[0]]
    return layout.empty_channels_last(weight, sizes, weight.dtype, len(sizes) - 1)


def linear_gradients(
    grad: Tensor, saved: Saved, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of weight * count + bias with respect to count, weight and bias, where needed."""
    rows = grad.flatten(0, -2)
    grad_count = grad @ saved[2] if needed[0] else None
    grad_weight = None
    if needed[1]:
        grad_weight = rows.t() @ saved_values(saved).flatten(0, -2)
    return grad_count, grad_weight, rows.sum(0) if needed[2] else None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save_product(ctx, *inputs[:3])


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    return None, *linear_gradients(grad, ctx.saved_tensors, ctx.needs_input_grad[1:4])


torch.library.register_autograd("tandem_cuda::count_linear", _backward, setup_context=_setup_context)
