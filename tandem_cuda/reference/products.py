"""Reference operators: products of weights with spikes, counts and real input."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..neuron import IF, Neuron
from .ops import (
    Pair,
    check_bits,
    integrate_and_fire,
    neuron_loop,
    pack_spikes,
    replace_value,
    spike_count,
    unpack_spikes,
    wanted,
)


def spiking_linear(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    count: Tensor | None = None,
    time_steps: int,
    neuron: Neuron = IF(),
    want_sum: bool = True,
    want_state: bool = True,
    added: Tensor | None = None,
    amplitude: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Drive spiking neurons with a linear layer: x[t] = scale * (weight * s[t]) + bias.

    bits: [P, N, ..., F]; weight: [O, F], of any dtype of `tandem_cuda.ops`, int8 only with a scale; bias: [O], per time
    step; state: [S, N, ..., O]; scale: [O], gets no gradient; count: [N, ..., F], gets the gradient of the sum, but its
    value is not read.
    Returns bits [P, N, ..., O], the sum of x[t] (differentiable) [N, ..., O] and the final state [S, N, ..., O].

    Examples:
        >>> bits = torch.tensor([[[0b1111, 0b0011]]], dtype=torch.uint8)  # [P, N, F]
        >>> out, v, state = reference.spiking_linear(bits, torch.tensor([[0.5, 0.25]]), time_steps=4)
        >>> bin(out.item()), v.item()
        ('0b110', 2.5)
    """
    check_bits("spiking_linear", bits, time_steps)
    with torch.no_grad():
        steps = [_linear(s, weight, bias, scale) for s in unpack_spikes(bits, time_steps, _dtype(weight))]
        steps = _with(steps, added, amplitude, time_steps, -1)
    spikes, final = neuron_loop(steps, neuron, state)
    # In exact arithmetic the sum of the currents equals this product with the counts, which provides its gradient.
    bias_sum = None if bias is None else time_steps * bias
    product = count_linear(bits, weight, bias_sum, scale=scale, count=count)
    total = replace_value(product, reduce(torch.add, steps))
    return pack_spikes(spikes), wanted(want_sum, total), wanted(want_state, final)


def spiking_conv2d(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    state: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    count: Tensor | None = None,
    time_steps: int,
    neuron: Neuron = IF(),
    want_sum: bool = True,
    want_state: bool = True,
    added: Tensor | None = None,
    amplitude: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Work as spiking_linear, with a 2-D convolution.

    bits: [P, N, C, H, W]; weight: [O, C/groups, kH, kW]; bias: [O], per time step; state: [S, N, O, Ho, Wo]; scale:
    [O]; count: [N, C, H, W]. Returns bits [P, N, O, Ho, Wo], the sum [N, O, Ho, Wo] and the final state
    [S, N, O, Ho, Wo].

    Examples:
        >>> bits = reference.pack_spikes(torch.ones(4, 1, 1, 3, 3))
        >>> out, v, state = reference.spiking_conv2d(bits, torch.full((1, 1, 3, 3), 0.125), time_steps=4)
        >>> bin(out.item()), v.item()
        ('0b1111', 4.5)
    """
    check_bits("spiking_conv2d", bits, time_steps)
    with torch.no_grad():
        dense = unpack_spikes(bits, time_steps, _dtype(weight))
        steps = [_conv2d(s, weight, bias, scale, stride, padding, dilation, groups) for s in dense]
        steps = _with(steps, added, amplitude, time_steps, -3)
    spikes, final = neuron_loop(steps, neuron, state)
    bias_sum = None if bias is None else time_steps * bias
    product = count_conv2d(bits, weight, bias_sum, stride, padding, dilation, groups, scale=scale, count=count)
    total = replace_value(product, reduce(torch.add, steps))
    return pack_spikes(spikes), wanted(want_sum, total), wanted(want_state, final)


def _with(
    steps: list[Tensor], added: Tensor | None, amplitude: Tensor | None, time_steps: int, axis: int
) -> list[Tensor]:
    """Add another branch's currents [T, ...], or amplitude [O] times its spikes, uint8 [P, ...], to those of a product.

    axis: that of the O channels in a current, counted from the last.
    """
    if added is None:
        return steps
    if added.dtype == torch.uint8:
        added = unpack_spikes(added, time_steps, steps[0].dtype)
        if amplitude is not None:
            added = added * amplitude.view(-1, *[1] * (-1 - axis))
    return [x + more for x, more in zip(steps, added, strict=True)]


def count_linear(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """Return scale * (weight * (spike count of bits)) + bias: bits [P, N, ..., F], weight [O, F] -> [N, ..., O].

    weight: of any dtype of `tandem_cuda.ops`, int8 only with a scale; bias, scale: [O], the scale gets no gradient;
    count: [N, ..., F], gets the gradient of the counts, but its value is not read.

    Examples:
        >>> bits = torch.tensor([[[0b1111, 0b0011]]], dtype=torch.uint8)
        >>> reference.count_linear(bits, torch.tensor([[0.5, 0.25]]))
        tensor([[2.5000]])
    """
    return _linear(_count(bits, count, _dtype(weight)), weight, bias, scale)


def count_conv2d(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """Work as count_linear, with a 2-D convolution: [P, N, C, H, W], weight [O, C/groups, kH, kW] -> [N, O, Ho, Wo].

    Examples:
        >>> bits = reference.pack_spikes(torch.ones(4, 1, 1, 3, 3))
        >>> reference.count_conv2d(bits, torch.full((1, 1, 3, 3), 0.125)).flatten()
        tensor([4.5000])
    """
    dense = _count(bits, count, _dtype(weight))
    return _conv2d(dense, weight, bias, scale, stride, padding, dilation, groups)


def ordered_product(
    x: Tensor,
    weight: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    master: Tensor | None = None,
    unit: Tensor | None = None,
) -> Tensor:
    """Return weight * x, adding one rounded product after the other: taps in order, channels innermost.

    x: float32 [N, C, H, W] or [N, ..., F]; weight: int8 or int16 [O, C/groups, kH, kW] or [O, F]; master: in the shape
    of the weight, gets the gradient of weight * unit, but its value is not read; unit: [O], or None for 1.

    Examples:
        >>> q = torch.tensor([[1, 2, 3]], dtype=torch.int8)
        >>> reference.ordered_product(torch.tensor([[0.5, 0.25, 1.0]]), q)
        tensor([[4.]])
    """
    linear = weight.dim() == 2
    image, kernel = x, weight.to(x.dtype)
    if linear:
        image, kernel = x.reshape(-1, x.shape[-1], 1, 1), kernel[..., None, None]
    inputs = F.unfold(image.detach(), kernel.shape[2:], dilation, padding, stride)  # [N, C * taps, pixels]
    inputs = inputs.view(
        len(image), groups, kernel.shape[1], kernel[0, 0].numel(), inputs.shape[-1]
    )  # [N, G, C/G, taps, pixels]
    rows = kernel.detach().reshape(groups, len(kernel) // groups, kernel.shape[1], -1)  # [G, O/G, C/G, taps]
    total = inputs.new_zeros(len(image), groups, rows.shape[1], inputs.shape[-1])
    for tap in range(rows.shape[3]):
        for channel in range(rows.shape[2]):
            total = total + inputs[:, :, None, channel, tap] * rows[:, :, channel, tap, None]
    float_weight = kernel
    if master is not None:
        along = 1 if unit is None else unit.view(-1, 1, 1, 1)
        float_weight = replace_value(master.view(kernel.shape) / along, kernel)
    smooth = F.conv2d(image, float_weight, None, stride, padding, dilation, groups)
    out = replace_value(smooth, total.view(smooth.shape))
    return out.view(*x.shape[:-1], len(weight)) if linear else out


def step_product(
    bits: Tensor,
    weight: Tensor,
    time_steps: int,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
) -> Tensor:
    """Return x[t] = scale * (weight * s[t]) + bias for t = 1..T, [T, N, O, Ho, Wo] or [T, N, ..., O].

    bits: uint8 [P, N, C, H, W] or [P, N, ..., F]; weight: [O, C/groups, kH, kW] or [O, F]; bias, scale: [O].

    Examples:
        >>> bits = reference.pack_spikes(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
        >>> reference.step_product(bits, torch.tensor([[0.5, 0.25]]), time_steps=2).flatten()
        tensor([0.5000, 0.7500])
    """
    steps = unpack_spikes(bits, time_steps, torch.uint8).flatten(0, 1).unsqueeze(0)
    if weight.dim() == 2:
        currents = count_linear(steps, weight, bias, scale=scale)
    else:
        currents = count_conv2d(steps, weight, bias, stride, padding, dilation, groups, scale=scale)
    return torch.unflatten(currents, 0, (time_steps, len(currents) // time_steps))


def ordered_spikes(
    x: Tensor,
    weight: Tensor,
    time_steps: int,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    mode: str = "constant",
    neuron: Neuron = IF(),
) -> Tensor:
    """Return the bits of :func:`integrate_and_fire` on the sums of :func:`ordered_product`, whose features lie last.

    bias, scale: [O]; mode: "constant", "impulse" or "once"; other arguments as there.

    Examples:
        >>> q = torch.tensor([[1, 2]], dtype=torch.int8)
        >>> bits = reference.ordered_spikes(torch.tensor([[0.5, 0.25]]), q, 4, scale=torch.tensor([0.5]))
        >>> bin(bits.item())
        '0b1010'
    """
    sums = ordered_product(x, weight, stride, padding, dilation, groups)
    rows = sums.flatten(0, -2) if weight.dim() == 2 else sums
    bits, _, _ = integrate_and_fire(rows, time_steps, bias, scale=scale, mode=mode, neuron=neuron)
    return bits.view(len(bits), *sums.shape)


def quantise_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the nearest integers to weight / scale, and the scale [O]: a channel's largest weight over 127 or 32639.

    weight: float32 [O, ...]; bits: 8 or 16. The integers are int8 or int16; a channel of zeros has scale 1.

    Examples:
        >>> q, scale = reference.quantise_weight(torch.tensor([[0.5, -1.0], [2.0, 0.0]]), 8)
        >>> q
        tensor([[  64, -127],
                [ 127,    0]], dtype=torch.int8)
        >>> scale * 127
        tensor([1., 2.])
    """
    largest, dtype = (127, torch.int8) if bits == 8 else (32639, torch.int16)
    scale = weight.abs().flatten(1).amax(1) / largest
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    whole = (weight / scale.view(-1, *[1] * (weight.dim() - 1))).round().clamp(-largest, largest)
    return whole.to(dtype), scale


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """Return scale * (weight * x) + bias: x [..., F] -> [..., O]."""
    if scale is None:
        return F.linear(x, weight.to(x.dtype), bias)
    scaled = scale.detach() * _product(F.linear, x, weight)
    return scaled if bias is None else scaled + bias


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, *geometry: Any) -> Tensor:
    """Work as _linear, with a convolution; geometry: stride to groups, as F.conv2d takes them."""
    # Make strides regular: torch's convolution mistakes some strides of dimensions of size 1 for another layout.
    weight = weight.reshape(-1).view(weight.shape)
    if scale is None:
        return F.conv2d(x, weight.to(x.dtype), bias, *geometry)
    scaled = scale.detach().reshape(-1, 1, 1) * _product(F.conv2d, x, weight, None, *geometry)
    return scaled if bias is None else scaled + bias.reshape(-1, 1, 1)


def _product(product: Callable[..., Tensor], x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    """Return weight * x in the dtype of x. Sums of integers are exact, and rounded once."""
    if weight.is_floating_point():
        return product(x, weight.to(x.dtype), *arguments)
    return product(x.double(), weight.double(), *arguments).to(x.dtype)


def _dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of the currents: float32 for narrower weights."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _count(bits: Tensor, count: Tensor | None, dtype: torch.dtype) -> Tensor:
    counted = spike_count(bits, dtype)
    return counted if count is None else replace_value(count, counted)
