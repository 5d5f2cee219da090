"""Reference operators: products of weights with spikes, counts and real input."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..neuron import IF, Neuron, RadixIF
from .ops import (
    Pair,
    check_bits,
    fire,
    integrate_and_fire,
    per_channel,
    radix_spikes,
    replace_value,
    spike_value,
    unpack_spikes,
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
    steps = _currents(bits, weight, bias, scale, time_steps, added, amplitude)
    # In exact arithmetic the sum of the currents equals this product with the counts, which provides its gradient.
    bias_sum = None if bias is None else time_steps * bias
    product = count_linear(bits, weight, bias_sum, scale=scale, count=count)
    return fire(steps, neuron, state, want_sum, want_state, product)


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
    geometry = stride, padding, dilation, groups
    steps = _currents(bits, weight, bias, scale, time_steps, added, amplitude, *geometry)
    bias_sum = None if bias is None else time_steps * bias
    product = count_conv2d(bits, weight, bias_sum, *geometry, scale=scale, count=count)
    return fire(steps, neuron, state, want_sum, want_state, product)


def count_linear(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    count: Tensor | None = None,
    radix: int = 0,
    neuron: RadixIF | None = None,
    time_steps: int = 0,
    added: Tensor | None = None,
    amplitude: Tensor | None = None,
) -> Tensor:
    """Return scale * (weight * (spike count of bits)) + bias: bits [P, N, ..., F], weight [O, F] -> [N, ..., O].

    weight: of any dtype of `tandem_cuda.ops`, int8 only with a scale; bias, scale: [O], the scale gets no gradient;
    count: [N, ..., F], gets the gradient of the counts, but its value is not read; radix: T of radix spikes, whose
    values, the bytes of their one plane, take the place of the counts, or 0; neuron: with it, the bits of
    radix_spikes(v + a, time_steps, neuron), uint8 [1, N, ..., O], take the place of v; added: a [N, ..., O], or uint8
    [1, N, ..., O] for a = amplitude * added, with amplitude [O] or None for 1.

    Examples:
        >>> bits = torch.tensor([[[0b1111, 0b0011]]], dtype=torch.uint8)
        >>> reference.count_linear(bits, torch.tensor([[0.5, 0.25]]))
        tensor([[2.5000]])
    """
    v = _affine(_count(bits, count, _dtype(weight), radix), weight, bias, scale)
    return v if neuron is None else radix_spikes(_joined(v, added, amplitude, weight.dim() - 2), time_steps, neuron)


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
    radix: int = 0,
    neuron: RadixIF | None = None,
    time_steps: int = 0,
    added: Tensor | None = None,
    amplitude: Tensor | None = None,
) -> Tensor:
    """Work as count_linear, with a 2-D convolution: [P, N, C, H, W], weight [O, C/groups, kH, kW] -> [N, O, Ho, Wo].

    Examples:
        >>> bits = reference.pack_spikes(torch.ones(4, 1, 1, 3, 3))
        >>> reference.count_conv2d(bits, torch.full((1, 1, 3, 3), 0.125)).flatten()
        tensor([4.5000])
    """
    counts = _count(bits, count, _dtype(weight), radix)
    v = _affine(counts, weight, bias, scale, stride, padding, dilation, groups)
    return v if neuron is None else radix_spikes(_joined(v, added, amplitude, weight.dim() - 2), time_steps, neuron)


def _joined(v: Tensor, added: Tensor | None, amplitude: Tensor | None, trailing: int) -> Tensor:
    """Return v and what another branch adds to it, without a gradient."""
    if added is None:
        return v.detach()
    if added.dtype == torch.uint8:
        added = added[0].to(v.dtype)
        added = added if amplitude is None else added * per_channel(amplitude, trailing)
    return v.detach() + added.detach()


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
    inputs = torch.unflatten(inputs, 1, (groups, kernel.shape[1], kernel[0, 0].numel()))  # [N, G, C/G, taps, pixels]
    rows = kernel.detach().reshape(groups, len(kernel) // groups, kernel.shape[1], -1)  # [G, O/G, C/G, taps]
    total = inputs.new_zeros(len(image), groups, rows.shape[1], inputs.shape[-1])
    for tap in range(rows.shape[3]):
        for channel in range(rows.shape[2]):
            total = total + inputs[:, :, None, channel, tap] * rows[:, :, channel, tap, None]
    if master is not None:
        smooth = master.view(kernel.shape)
        kernel = replace_value(smooth if unit is None else smooth / per_channel(unit, 3), kernel)
    product = F.conv2d(image, kernel, None, stride, padding, dilation, groups)
    out = replace_value(product, total.view(product.shape))
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
    spikes = unpack_spikes(bits, time_steps, _dtype(weight))
    currents = _affine(spikes.flatten(0, 1), weight, bias, scale, stride, padding, dilation, groups)
    return torch.unflatten(currents, 0, spikes.shape[:2])


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

    bias, scale: [O]; mode: "constant", "impulse" or "once"; other arguments as for :func:`ordered_product`.

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
    whole = (weight / per_channel(scale, weight.dim() - 1)).round().clamp(-largest, largest)
    return whole.to(dtype), scale


def _currents(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    time_steps: int,
    added: Tensor | None,
    amplitude: Tensor | None,
    *geometry: Any,
) -> list[Tensor]:
    """Return the current of each time step: a product and another branch.

    The branch, ``added``, is currents [T, ...], or amplitude [O] times spikes, uint8 [P, ...].
    """
    with torch.no_grad():
        spikes = unpack_spikes(bits, time_steps, _dtype(weight))
        steps = [_affine(s, weight, bias, scale, *geometry) for s in spikes]
        if added is None:
            return steps
        if added.dtype == torch.uint8:
            added = unpack_spikes(added, time_steps, spikes.dtype)
            added = added if amplitude is None else added * per_channel(amplitude, weight.dim() - 2)
        return [x + more for x, more in zip(steps, added, strict=True)]


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, *geometry: Any) -> Tensor:
    """Return scale * (weight * x) + bias; a convolution, with stride to groups as geometry, or a linear product."""

    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.dim() == 2:
            return F.linear(x, weight, bias)
        # Make strides regular: torch's convolution mistakes some strides of dimensions of size 1 for another layout.
        return F.conv2d(x, weight.reshape(-1).view(weight.shape), bias, *geometry)

    if scale is None:
        return product(x, weight.to(x.dtype), bias)
    dims = weight.dim() - 2
    if weight.is_floating_point():
        sums = product(x, weight.to(x.dtype))
    else:  # sums of integers are exact, and rounded once
        sums = product(x.double(), weight.double()).to(x.dtype)
    scaled = per_channel(scale.detach(), dims) * sums
    return scaled if bias is None else scaled + per_channel(bias, dims)


def _dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of the currents: float32 for narrower weights."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _count(bits: Tensor, count: Tensor | None, dtype: torch.dtype, radix: int) -> Tensor:
    """Return the spike counts of bits, or values of radix spikes; their gradient goes to count."""
    if radix:
        check_bits("count_product", bits, radix)
    counted = spike_value(bits, dtype, radix > 0)
    return counted if count is None else replace_value(count, counted)
