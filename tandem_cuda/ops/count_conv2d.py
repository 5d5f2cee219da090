"""count_conv2d: convolution of spike counts, event-driven; and the gradient that all convolutional products share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks, layout
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
    return torch.ops.tandem_cuda.count_conv2d(bits, count, weight, packed, scale, bias, *geometry, groups, *how)


Geometry = tuple[list[int], list[int], list[int]]


def check_conv2d(
    op: str,
    bits: Any,
    count: Any,
    weight: Any,
    packed: Any,
    scale: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    engine: Any,
) -> Geometry:
    """Check a convolutional product's arguments; return stride, padding and dilation as pairs."""
    check_product(op, bits, weight, engine)
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
    check_operands(op, bits, count, weight, packed, scale, bias, groups)
    pairs = check_geometry(op, stride, padding, dilation)
    check_fit(op, bits, weight, *pairs)
    return list(pairs[0]), list(pairs[1]), list(pairs[2])


def check_geometry(op: str, stride: Any, padding: Any, dilation: Any) -> list[tuple[int, int]]:
    """Check these numbers in themselves; return them as pairs."""
    pairs = [checks.pair(op, *named) for named in (("stride", stride), ("padding", padding), ("dilation", dilation))]
    for name, value, least in zip(("stride", "padding", "dilation"), pairs, (1, 0, 1), strict=True):
        if min(value) < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
        if max(value) > 2**30:
            raise ValueError(f"{op}: {name} must be at most 2^30, got {value}")
    return pairs


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
    packed: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    engine: int,
    terms: int,
) -> Tensor:
    sizes = [bits.shape[1], weight.shape[0], *out_size(bits, weight, stride, padding, dilation)]
    return layout.empty_channels_last(weight, sizes, current_dtype(weight), 1)


@without_autocast
def conv2d_gradients(
    grad: Tensor,
    saved: Saved,
    needed: tuple[bool, bool, bool],
    geometry: Geometry,
    groups: int,
) -> Gradients:
    """Gradients of scale * (weight * count) + bias with respect to count, weight and bias, where needed."""
    values, weight, scale = saved_values(saved, grad.dtype), saved[2].to(grad.dtype), saved[3]
    stride, padding, dilation = geometry
    settings = (stride, padding, dilation, False, [0, 0], groups)
    grad_bias = grad.sum([0, 2, 3]) if needed[2] else None
    if scale is not None:
        grad = grad * scale.view(-1, 1, 1)
    grad, values, weight = layout.canonical(grad), layout.canonical(values), layout.canonical(weight)
    grad_count = grad_weight = None
    # The kernel of the weight gradient has no gradient of its own.
    if grad.device.type != "cpu" or torch.is_grad_enabled():
        mask = [*needed[:2], False]
        grad_count, grad_weight, _ = torch.ops.aten.convolution_backward(grad, values, weight, None, *settings, mask)
    else:
        if needed[1]:
            grad_weight = torch.ops.tandem_cuda.conv2d_weight_gradient(grad, values, weight, *geometry, groups)
        if needed[0]:
            if weight.numel() > values.numel() + grad.numel():
                # Otherwise torch brings the weights into the layout of the activations, which are less here.
                grad, values = grad.contiguous(), values.contiguous()
            only_count = [True, False, False]
            grad_count = torch.ops.aten.convolution_backward(grad, values, weight, None, *settings, only_count)[0]
    return grad_count, None if grad_weight is None else grad_weight.to(saved[2].dtype), grad_bias


@torch.library.register_fake("tandem_cuda::conv2d_weight_gradient")
def _(
    grad: Tensor,
    count: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    bits, count, weight, _, scale, _, *geometry, ctx.groups, _, _ = inputs
    ctx.geometry = tuple(geometry)
    save_product(ctx, bits, count, weight, scale)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    grads: Gradients = (None, None, None)
    if grad is not None:
        grads = conv2d_gradients(grad, ctx.saved_tensors, needed_gradients(ctx), ctx.geometry, ctx.groups)
    return product_gradients(grads, 6)


register_gradient("count_conv2d", _backward, _setup_context)
