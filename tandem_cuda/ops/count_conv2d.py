"""count_conv2d: convolution of spike counts, event-driven; and the gradient that all convolutional products share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks, layout
from .spike_count import spike_count


def count_conv2d(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    count: Tensor | None = None,
) -> Tensor:
    """Convolve spike counts, v = weight * c + bias: the ANN's pre-activation (Wu et al. 2021, eq. 9).

    Work is proportional to the spikes, not to the size of the layer.

    Args:
        bits: uint8 [P, N, C, H, W]; c is their :func:`spike_count`.
        weight: float32 or float64 [O, C/groups, kH, kW].
        bias: [O].
        stride: as in ``torch.nn.functional.conv2d``.
        padding: zero padding, an int or a pair.
        dilation: spacing of the taps.
        groups: blocks of channels.
        count: [N, C, H, W], the differentiable count of ``bits``; the gradient flows to it. Its value is not read in
            the forward pass.

    Returns:
        [N, O, Ho, Wo], channels last in memory; differentiable in ``weight``, ``bias`` and ``count``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape or device that does not fit.
    """
    op = "count_conv2d"
    geometry = check_conv2d(op, bits, count, weight, bias, stride, padding, dilation, groups)
    return torch.ops.tandem_cuda.count_conv2d(bits, count, weight, bias, *geometry, groups)


Geometry = tuple[list[int], list[int], list[int]]
# bits (where there is no count), count, weight
Saved = tuple[Tensor | None, Tensor | None, Tensor]


def check_conv2d(
    op: str,
    bits: Any,
    count: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> Geometry:
    """Check a convolutional product's arguments; return stride, padding and dilation as pairs."""
    checks.check_bits(op, bits)
    checks.check_floating(op, "weight", weight)
    checks.check_same_device(op, "weight", weight, bits, "bits")
    if bits.dim() != 5:
        raise ValueError(f"{op}: bits must be [P, N, C, H, W], got {list(bits.shape)}")
    if weight.dim() != 4:
        raise ValueError(f"{op}: weight must be [O, C/groups, kH, kW], got {list(weight.shape)}")
    channels = bits.shape[2]
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"{op}: groups must be an int, got {type(groups).__name__}")
    if groups < 1 or channels % groups or weight.shape[0] % groups:
        raise ValueError(
            f"{op}: groups must divide the input channels ({channels}) and the output channels ({weight.shape[0]}), "
            f"got {groups}"
        )
    if weight.shape[1] != channels // groups:
        raise ValueError(
            f"{op}: weight must be [O, {channels // groups}, kH, kW] for {channels} input channels in {groups} groups, "
            f"got {list(weight.shape)}"
        )
    if 0 in weight.shape:
        raise ValueError(f"{op}: weight must have no empty dimension, got {list(weight.shape)}")
    if bias is not None:
        checks.check_like(op, "bias", bias, weight, "weight", weight.shape[:1])
    if count is not None:
        checks.check_like(op, "count", count, weight, "weight", bits.shape[1:])
    pairs = [checks.pair(op, *named) for named in (("stride", stride), ("padding", padding), ("dilation", dilation))]
    for name, value, least in zip(("stride", "padding", "dilation"), pairs, (1, 0, 1), strict=True):
        if min(value) < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
        if max(value) > 2**30:
            raise ValueError(f"{op}: {name} must be at most 2^30, got {value}")
    check_fit(op, bits, weight, *pairs)
    return list(pairs[0]), list(pairs[1]), list(pairs[2])


def check_fit(
    op: str, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> None:
    """ValueError where the kernel is larger than the input x [..., H, W]."""
    for axis, size in zip(("height", "width"), out_size(x, weight, stride, padding, dilation), strict=True):
        if size < 1:
            raise ValueError(
                f"{op}: the dilated kernel is larger than the padded input along the {axis}: weight "
                f"{list(weight.shape)}, input {list(x.shape)}, padding {list(padding)}, dilation {list(dilation)}"
            )


def out_size(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """Height and width of the output for an input x [..., H, W]; below 1 where the kernel does not fit."""
    height, width = (
        (x.shape[i - 2] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    return height, width


@torch.library.register_fake("tandem_cuda::count_conv2d")
def _(
    bits: Tensor,
    count: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    sizes = [bits.shape[1], weight.shape[0], *out_size(bits, weight, stride, padding, dilation)]
    return layout.empty_channels_last(weight, sizes, weight.dtype, 1)


def conv2d_gradients(
    grad: Tensor,
    saved: Saved,
    needed: tuple[bool, bool, bool],
    geometry: Geometry,
    groups: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of weight * count + bias with respect to count, weight and bias, where needed."""
    values, weight = saved_values(saved), saved[2]
    stride, padding, dilation = geometry
    return torch.ops.aten.convolution_backward(
        grad, values, weight, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, list(needed)
    )


def save_product(ctx: Any, bits: Tensor, count: Tensor | None, weight: Tensor) -> None:
    """Keep what the gradient of a product needs: the counts where there are any (they do not grow with T)."""
    ctx.save_for_backward(None if count is not None else bits, count, weight)
    ctx.set_materialize_grads(False)


def saved_values(saved: Saved) -> Tensor:
    """The counts that entered a product."""
    bits, count, weight = saved
    if count is not None:
        return count
    assert bits is not None
    return spike_count(bits, weight.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    bits, count, weight, _, *geometry, ctx.groups = inputs
    ctx.geometry = tuple(geometry)
    save_product(ctx, bits, count, weight)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    grads: tuple[Tensor | None, ...] = (None, None, None)
    if grad is not None:
        grads = conv2d_gradients(grad, ctx.saved_tensors, ctx.needs_input_grad[1:4], ctx.geometry, ctx.groups)
    return None, *grads, None, None, None, None


torch.library.register_autograd("tandem_cuda::count_conv2d", _backward, setup_context=_setup_context)
