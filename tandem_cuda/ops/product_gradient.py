"""Fake kernels and gradients of the two product operators.

With a weight [O, F] a product is a linear layer, with [O, C/groups, kH, kW] a convolution.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor

from .. import _C
from .. import neuron as models
from . import autocast, checks, layout
from .geometry import out_size
from .gradient import implement_on_cuda, register_gradient
from .product import current_dtype
from .spike_count import spike_value

IntPair = list[int]

# bits (None if there is a count), count, weight, scale, unit
Saved = tuple[Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Gradients of the count, of the weight (or of the float weights that integers stand for) and of the bias."""
Convolution = tuple[IntPair, IntPair, IntPair, int]
"""Stride, padding, dilation and groups."""


def neurons_of(bits: Tensor, weight: Tensor, stride: IntPair, padding: IntPair, dilation: IntPair) -> list[int]:
    """Return the shape of the output neurons."""
    if weight.dim() == 2:
        return [*bits.shape[1:-1], weight.shape[0]]
    return [bits.shape[1], weight.shape[0], *out_size(bits, weight, stride, padding, dilation)]


def feature_dim(weight: Tensor, neurons: list[int]) -> int:
    """Return the dimension of the output channels in ``neurons``."""
    return len(neurons) - 1 if weight.dim() == 2 else 1


@torch.library.register_fake("tandem_cuda::spiking_product")
def _(bits: Tensor, count: Tensor | None, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation, _, _, neuron, _, _, want_sum, want_state, *_ = others[4:]
    neurons, dtype = neurons_of(bits, weight, stride, padding, dilation), current_dtype(weight)
    dim = feature_dim(weight, neurons)
    none = weight.new_empty([0], dtype=dtype)
    states = models.STATES[neuron]
    return (
        layout.empty_channels_last(bits, [bits.shape[0], *neurons], torch.uint8, dim + 1),
        layout.empty_channels_last(weight, neurons, dtype, dim) if want_sum else none,
        layout.empty_channels_last(weight, [states, *neurons], dtype, dim + 1) if want_state else none.clone(),
    )


@torch.library.register_fake("tandem_cuda::count_product")
def _(bits: Tensor, count: Tensor | None, weight: Tensor, *others: Any) -> Tensor:
    stride, padding, dilation, *_ = others[3:]
    neurons = neurons_of(bits, weight, stride, padding, dilation)
    return layout.empty_channels_last(weight, neurons, current_dtype(weight), feature_dim(weight, neurons))


def _radix_on_cuda(bits: Tensor, *others: Any) -> Tensor:
    """Call the two operators one after the other."""
    *product, radix, time_steps, threshold, initial, added, amplitude = others
    operators = torch.ops.tandem_cuda
    sums = operators.count_product(bits, None, *product, None, None, radix)
    if added is not None:
        sums += _numbers(added, amplitude, sums, product[0].dim() - 2)
    rows = sums if product[0].dim() == 4 else sums.flatten(0, -2)
    fired = operators.radix_spikes(rows, None, None, time_steps, threshold, initial, False)[0]
    return fired if rows is sums else fired.view(1, *sums.shape)


def _numbers(added: Tensor, amplitude: Tensor | None, like: Tensor, trailing: int) -> Tensor:
    """Return what another branch adds to sums: numbers, or the values of spikes times the amplitude."""
    spikes = added.dtype == torch.uint8
    values = added[0].to(like.dtype) if spikes else added
    if values.shape != like.shape:  # it would be broadcast
        raise ValueError(f"added must have the shape of the sums, {list(like.shape)}, got {list(values.shape)}")
    return values * amplitude.view(-1, *[1] * trailing) if spikes and amplitude is not None else values


implement_on_cuda("radix_product", _radix_on_cuda)


@torch.library.register_fake("tandem_cuda::radix_product")
def _(bits: Tensor, weight: Tensor, *others: Any) -> Tensor:
    stride, padding, dilation, *_ = others[3:]
    neurons = neurons_of(bits, weight, stride, padding, dilation)
    return layout.empty_channels_last(bits, [1, *neurons], torch.uint8, 1 + feature_dim(weight, neurons))


@torch.library.register_fake("tandem_cuda::conv2d_weight_gradient")
def _(grad: Tensor, count: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


# -- gradients


def _save(
    ctx: Any, bits: Tensor, count: Tensor | None, weight: Tensor, scale: Tensor | None, unit: Tensor | None
) -> None:
    """Save the tensors for the gradient of a product: the count rather than the bits, since bits grow with T."""
    ctx.dtype = autocast.running.gradients
    ctx.save_for_backward(None if count is not None else bits, count, weight, scale, unit)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, at: int) -> Gradients:
    """Return the gradients of scale * (weight * count) + bias that are needed; ``at``: the place of ``master``."""
    if grad is None:
        return None, None, None
    needs, saved = ctx.needs_input_grad, ctx.saved_tensors  # activation checkpointing allows one read
    needed = needs[1], needs[2] or needs[at], needs[5]
    return _product_gradients(grad, saved, needed, ctx.convolution, ctx.radix, ctx.dtype)


@autocast.without_autocast
def _product_gradients(
    grad: Tensor,
    saved: Saved,
    needed: tuple[bool, bool, bool],
    convolution: Convolution,
    radix: bool,
    dtype: torch.dtype | None,
) -> Gradients:
    """Return the needed gradients of scale * (weight * count) + bias with respect to count, weight and bias."""
    bits, count, weight, scale, unit = saved
    linear = weight.dim() == 2
    # reshape, because is_grads_batched has no batching rule for flatten
    grad_bias = None
    if needed[2]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if linear else grad.sum([0, 2, 3])
    values = spike_value(cast(Tensor, bits), grad.dtype, radix) if count is None else count
    return *gradients_of(grad, values, weight, unit, needed[:2], convolution, scale, dtype), grad_bias


@autocast.without_autocast
def gradients_of(
    grad: Tensor,
    values: Tensor,
    weight: Tensor,
    unit: Tensor | None,
    needed: tuple[bool, bool],
    convolution: Convolution,
    scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the needed gradients of scale * (weight * values) with respect to values and weight.

    Integer weights get no gradient. The gradient returned for them belongs to the float weights, unit * weight.
    ``dtype``: what autocast asks for; float64 stays float64.
    """
    precision = dtype if dtype is not None and grad.dtype == torch.float32 else grad.dtype
    products = functools.partial(_unscaled_gradients, convolution=convolution, precision=precision)
    if weight.is_floating_point() or not needed[1]:
        unit = None
    if scale is None and unit is None:
        return products(grad, values, weight, needed)
    per_weight, per_neuron = [-1, *[1] * (weight.dim() - 1)], [-1, *[1] * (weight.dim() - 2)]
    if grad.numel() <= weight.numel():  # multiply the smaller tensor by the factors
        scaled = grad if scale is None else grad * scale.view(per_neuron)
        if unit is None:
            return products(scaled, values, weight, needed)
        grad_values = products(scaled, values, weight, (needed[0], False))[0]
        scaled = _over_unit(grad, scale, unit, per_neuron)
        return grad_values, products(scaled, values, weight, (False, True))[1]
    floats = weight
    if scale is not None:  # in the dtype of the gradient, so that grad_weight is rounded only after it is scaled
        floats = weight.to(grad.dtype) * scale.view(per_weight) if needed[0] else weight.to(grad.dtype)
    grad_values, grad_weight = products(grad, values, floats, needed)
    if grad_weight is not None:
        grad_weight = _over_unit(grad_weight, scale, unit, per_weight)
        grad_weight = grad_weight.to(weight.dtype) if weight.is_floating_point() else grad_weight
    return grad_values, grad_weight


def _over_unit(x: Tensor, scale: Tensor | None, unit: Tensor | None, shape: list[int]) -> Tensor:
    """Return scale * x / unit, without a quotient that overflows where unit is nearly 0 and so is scale, or x."""
    if unit is None:
        return x * cast(Tensor, scale).view(shape)
    return x / (unit if scale is None else unit / scale).view(shape)


def _unscaled_gradients(
    grad: Tensor,
    values: Tensor,
    weight: Tensor,
    needed: tuple[bool, bool],
    convolution: Convolution,
    precision: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the needed gradients of weight * values with respect to values and weight."""
    dtypes = grad.dtype, weight.dtype if weight.is_floating_point() else grad.dtype
    grad, values = grad.to(precision), values.to(precision)
    if weight.dim() == 2:
        grad_values, grad_weight = _linear_gradients(grad, values, weight, needed)
    else:
        # The gradient of the weights needs their shape alone.
        floats = weight.to(precision) if needed[0] else torch.empty_like(weight, dtype=precision)
        if _rounds_every_sum(precision, grad.device):
            grad, values, floats = grad.float(), values.float(), floats.float()
        grad_values, grad_weight = _conv2d_gradients(grad, values, floats, needed, convolution)
        grad_values, grad_weight = _cast(grad_values, precision), _cast(grad_weight, precision)
    return _cast(grad_values, dtypes[0]), _cast(grad_weight, dtypes[1])


def _rounds_every_sum(precision: torch.dtype, device: torch.device) -> bool:
    """Return whether torch's convolutions round every partial sum to ``precision``, as without instructions for it."""
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return device.type == "cpu" and precision in supported and not getattr(torch.ops.mkldnn, supported[precision])()


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)


def _conv2d_gradients(
    grad: Tensor, values: Tensor, weight: Tensor, needed: tuple[bool, bool], convolution: Convolution
) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = convolution
    settings = (stride, padding, dilation, False, [0, 0], groups)
    grad, values, weight = layout.canonical(grad), layout.canonical(values), layout.canonical(weight)
    grad_values = grad_weight = None
    # conv2d_weight_gradient runs on the CPU only, in full precision, and is not differentiable itself.
    if grad.device.type != "cpu" or torch.is_grad_enabled() or grad.dtype not in checks.FLOATING:
        if needed[1] and layout.is_unsafe_in_onednn(weight, stride, padding):
            if needed[0]:
                grad_values, _ = _conv2d_gradients(grad, values, weight, (True, False), convolution)
            values, settings = layout.canonical(values[:, :, :: stride[0], :: stride[1]]), ([1, 1], *settings[1:])
            needed = False, True
        mask = [*needed, False]
        found = torch.ops.aten.convolution_backward(grad, values, weight, None, *settings, mask)
        grad_values, grad_weight = found[0] if needed[0] else grad_values, found[1]
    else:
        if needed[1]:
            grad_weight = torch.ops.tandem_cuda.conv2d_weight_gradient(grad, values, weight, *convolution)
        if needed[0]:
            if weight.numel() > values.numel() + grad.numel():
                # Convert the smaller tensors: otherwise torch converts the weights to the layout of the activations.
                grad, values = grad.contiguous(), values.contiguous()
            only_values = [True, False, False]
            grad_values = torch.ops.aten.convolution_backward(grad, values, weight, None, *settings, only_values)[0]
    return grad_values, grad_weight


def _linear_gradients(
    grad: Tensor, values: Tensor, weight: Tensor, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    grad_weight = None
    if needed[1]:
        grad_weight = _large_product(grad.reshape(-1, grad.shape[-1]).t(), values.flatten(0, -2))
    return _times(grad, weight) if needed[0] else None, grad_weight


def _large_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, on the CPU in huge pages: clearing small ones takes longer than a product of few terms."""
    if not a.is_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling() or not (_is_plain(a) and _is_plain(b)):
        return a @ b
    out = a.new_empty(len(a), b.shape[1])
    _C.prefer_huge_pages(out.data_ptr(), out.nbytes)
    return torch.mm(a, b, out=out)


def _is_plain(x: Tensor) -> bool:
    """Return whether x is a plain tensor: of no subclass, and not wrapped by a transform of torch.func."""
    functorch = torch._C._functorch
    return (
        type(x) is Tensor and not functorch.is_functorch_wrapped_tensor(x) and not functorch.is_legacy_batchedtensor(x)
    )


_TOGETHER = 1 << 22
"""The most weights converted at a time. Their 16 MiB are used again, so that the system need not clear fresh pages."""


def _times(grad: Tensor, weight: Tensor) -> Tensor:
    """Return grad @ weight, in the dtype of grad."""
    if weight.dtype == grad.dtype:
        return grad @ weight
    rows = max(1, _TOGETHER // weight.shape[1])
    parts = zip(torch.split(grad, rows, -1), torch.split(weight, rows), strict=True)
    return functools.reduce(torch.add, (along @ part.to(grad.dtype) for along, part in parts))


# -- registration


def _setup_spiking(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    bits, count, weight, _, scale, _, _, *convolution, ctx.time_steps, _, _, _, want_sum, _, _, unit, _, _ = inputs
    ctx.convolution, ctx.radix = tuple(convolution), False
    _save(ctx, bits, count, weight, scale, unit)
    ctx.mark_non_differentiable(output[0], output[2], *([] if want_sum else [output[1]]))


def _spiking_backward(ctx: Any, _bits: None, grad: Tensor | None, _state: None) -> tuple[Tensor | None, ...]:
    count, weight, bias = _gradients(ctx, grad, 17)
    bias = None if bias is None else bias * ctx.time_steps  # the bias enters at every time step
    weight, master = (weight, None) if ctx.needs_input_grad[2] else (None, weight)
    return None, count, weight, None, None, bias, *[None] * 11, master, None, None, None


def _setup_count(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    bits, count, weight, _, scale, _, *convolution, _, _, unit, radix = inputs
    ctx.convolution, ctx.radix = tuple(convolution), radix > 0
    _save(ctx, bits, count, weight, scale, unit)


def _count_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    count, weight, bias = _gradients(ctx, grad, 11)
    weight, master = (weight, None) if ctx.needs_input_grad[2] else (None, weight)
    return None, count, weight, None, None, bias, *[None] * 5, master, None, None


def register_products() -> None:
    """Register the gradients and the autocast rule of the products."""
    register_gradient("spiking_product", _spiking_backward, _setup_spiking)
    register_gradient("count_product", _count_backward, _setup_count)
    for name in ("spiking_product", "count_product", "radix_product"):
        autocast.lower_gradients(name)
