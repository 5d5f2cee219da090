"""Fake kernels and gradients of the two product operators.

With a weight [O, F] a product is a linear layer, with [O, C/groups, kH, kW] a convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import neuron as models
from . import autocast, layout
from .geometry import out_size
from .gradient import register_gradient
from .product import current_dtype
from .spike_count import spike_count

Pair = list[int]

# bits (None if there is a count), count, weight, scale
Saved = tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of count, weight and bias."""
Convolution = tuple[Pair, Pair, Pair, int]
"""Stride, padding, dilation and groups."""


def _neurons(bits: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> list[int]:
    """Return the shape of the output neurons."""
    if weight.dim() == 2:
        return [*bits.shape[1:-1], weight.shape[0]]
    return [bits.shape[1], weight.shape[0], *out_size(bits, weight, stride, padding, dilation)]


def _feature_dim(weight: Tensor, neurons: list[int]) -> int:
    return len(neurons) - 1 if weight.dim() == 2 else 1


@torch.library.register_fake("tandem_cuda::spiking_product")
def _(
    bits: Tensor,
    count: Tensor | None,
    weight: Tensor,
    packed: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    state: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    time_steps: int,
    neuron: int,
    parameters: list[float],
    engine: int,
    terms: int,
    want_sum: bool,
    want_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    neurons, dtype = _neurons(bits, weight, stride, padding, dilation), current_dtype(weight)
    dim = _feature_dim(weight, neurons)
    none = weight.new_empty([0], dtype=dtype)
    states = models.STATES[neuron]
    return (
        layout.empty_channels_last(bits, [bits.shape[0], *neurons], torch.uint8, dim + 1),
        layout.empty_channels_last(weight, neurons, dtype, dim) if want_sum else none,
        layout.empty_channels_last(weight, [states, *neurons], dtype, dim + 1) if want_state else none.clone(),
    )


@torch.library.register_fake("tandem_cuda::count_product")
def _(
    bits: Tensor,
    count: Tensor | None,
    weight: Tensor,
    packed: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    engine: int,
    terms: int,
) -> Tensor:
    neurons = _neurons(bits, weight, stride, padding, dilation)
    return layout.empty_channels_last(weight, neurons, current_dtype(weight), _feature_dim(weight, neurons))


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


# -- gradients


def _save(ctx: Any, bits: Tensor, count: Tensor | None, weight: Tensor, scale: Tensor | None) -> None:
    """Save the tensors for the gradient of a product: the count rather than the bits, since bits grow with T."""
    ctx.save_for_backward(None if count is not None else bits, count, weight, scale)
    ctx.set_materialize_grads(False)


def _values(saved: Saved, dtype: torch.dtype) -> Tensor:
    """Return the counts that entered a product."""
    bits, count, _, _ = saved
    if count is not None:
        return count
    assert bits is not None
    return spike_count(bits, dtype)


def _gradients(ctx: Any, grad: Tensor | None) -> Gradients:
    """Return the gradients of scale * (weight * count) + bias that are needed."""
    if grad is None:
        return None, None, None
    needs, saved = ctx.needs_input_grad, ctx.saved_tensors  # activation checkpointing allows one read
    needed = needs[1], needs[2], needs[5]
    if saved[2].dim() == 2:
        return _linear_gradients(grad, saved, needed)
    return _conv2d_gradients(grad, saved, needed, ctx.convolution)


@autocast.without_autocast
def _conv2d_gradients(
    grad: Tensor,
    saved: Saved,
    needed: tuple[bool, bool, bool],
    convolution: Convolution,
) -> Gradients:
    """Return the needed gradients of scale * (weight * count) + bias with respect to count, weight and bias."""
    values, weight, scale = _values(saved, grad.dtype), saved[2].to(grad.dtype), saved[3]
    stride, padding, dilation, groups = convolution
    settings = (stride, padding, dilation, False, [0, 0], groups)
    grad_bias = grad.sum([0, 2, 3]) if needed[2] else None
    if scale is not None:
        grad = grad * scale.view(-1, 1, 1)
    grad, values, weight = layout.canonical(grad), layout.canonical(values), layout.canonical(weight)
    grad_count = grad_weight = None
    # conv2d_weight_gradient runs on the CPU only and is not differentiable itself.
    if grad.device.type != "cpu" or torch.is_grad_enabled():
        mask = [*needed[:2], False]
        grad_count, grad_weight, _ = torch.ops.aten.convolution_backward(grad, values, weight, None, *settings, mask)
    else:
        if needed[1]:
            grad_weight = torch.ops.tandem_cuda.conv2d_weight_gradient(grad, values, weight, *convolution)
        if needed[0]:
            if weight.numel() > values.numel() + grad.numel():
                # Convert the smaller tensors: otherwise torch converts the weights to the layout of the activations.
                grad, values = grad.contiguous(), values.contiguous()
            only_count = [True, False, False]
            grad_count = torch.ops.aten.convolution_backward(grad, values, weight, None, *settings, only_count)[0]
    return grad_count, None if grad_weight is None else grad_weight.to(saved[2].dtype), grad_bias


@autocast.without_autocast
def _linear_gradients(grad: Tensor, saved: Saved, needed: tuple[bool, bool, bool]) -> Gradients:
    """Return the needed gradients of scale * (weight * count) + bias with respect to count, weight and bias."""
    weight, scale = saved[2].to(grad.dtype), saved[3]
    # reshape, because is_grads_batched has no batching rule for flatten
    grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if needed[2] else None
    if scale is not None:
        grad = grad * scale
    grad_count = grad @ weight if needed[0] else None
    grad_weight = None
    if needed[1]:
        grad_weight = (grad.reshape(-1, grad.shape[-1]).t() @ _values(saved, grad.dtype).flatten(0, -2)).to(
            saved[2].dtype
        )
    return grad_count, grad_weight, grad_bias


# -- registration


def _setup_spiking(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    bits, count, weight, _, scale, _, _, *convolution, ctx.time_steps, _, _, _, _, want_sum, _ = inputs
    ctx.convolution = tuple(convolution)
    _save(ctx, bits, count, weight, scale)
    ctx.mark_non_differentiable(output[0], output[2], *([] if want_sum else [output[1]]))


def _spiking_backward(ctx: Any, _bits: None, grad: Tensor | None, _state: None) -> tuple[Tensor | None, ...]:
    count, weight, bias = _gradients(ctx, grad)
    bias = None if bias is None else bias * ctx.time_steps  # the bias enters at every time step
    return None, count, weight, None, None, bias, *[None] * 12


def _setup_count(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    bits, count, weight, _, scale, _, *convolution, _, _ = inputs
    ctx.convolution = tuple(convolution)
    _save(ctx, bits, count, weight, scale)


def _count_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    count, weight, bias = _gradients(ctx, grad)
    return None, count, weight, None, None, bias, *[None] * 6


def register_products() -> None:
    """Register the gradients and the autocast rule of the products."""
    register_gradient("spiking_product", _spiking_backward, _setup_spiking)
    register_gradient("count_product", _count_backward, _setup_count)
    for name in ("spiking_product", "count_product"):
        autocast.keep_precision(name)
