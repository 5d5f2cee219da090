"""Neurons, the tandem rule and the operators, in plain PyTorch."""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..neuron import IF, Neuron

Pair = int | tuple[int, int]

# ---------------------------------------------------------------------------------------------------------------------
# The neuron
# ---------------------------------------------------------------------------------------------------------------------


def neuron_loop(
    currents: Sequence[Tensor], neuron: Neuron = IF(), state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Drive neurons with one current per time step.

    currents: T tensors [N, ...]; state: [S, N, ...], the S state variables returned by an earlier call.
    Returns the spikes [T, N, ...], 0 or 1 in the dtype of the currents, and the final state [S, N, ...]. The neuron's
    parameters are first rounded to that dtype. A potential that is NaN never fires. The outputs have no gradient: in
    tandem learning no gradient flows through spikes or through time. Neurons with two_phase receive all currents in the
    first step; they take no state.

    Examples:
        >>> spikes, state = reference.neuron_loop([torch.tensor([0.5])] * 4)
        >>> spikes.flatten()
        tensor([0., 1., 0., 1.])
    """
    with torch.no_grad():
        if neuron.two_phase:
            if state is not None:
                raise ValueError("neuron_loop: state must be None with two_phase")
            currents = [reduce(torch.add, currents)] + [torch.zeros_like(currents[0])] * (len(currents) - 1)
        variables = neuron.rest(currents[0]) if state is None else state.unbind(0)
        spikes = []
        for x in currents:
            spike, variables = neuron.step(variables, x)
            spikes.append(spike)
        return torch.stack(spikes), torch.stack(variables)


# ---------------------------------------------------------------------------------------------------------------------
# The tandem rule
# ---------------------------------------------------------------------------------------------------------------------


class _ReplaceValue(torch.autograd.Function):
    """Return `value` in the forward pass; in the backward pass pass the gradient, times `slope`, to `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


def replace_value(x: Tensor, value: Tensor, slope: Tensor | None = None) -> Tensor:
    """Return a tensor with this value whose gradient, times slope, goes to x."""
    slope = x.new_ones(()) if slope is None else slope
    # torch does not annotate autograd.Function.apply.
    replaced: Tensor = _ReplaceValue.apply(x, value.detach(), slope.detach())  # type: ignore[no-untyped-call]
    return replaced


def couple(v: Tensor, count: Tensor, time_steps: int, neuron: Neuron, upper: float) -> Tensor:
    """Return the activation of v with its gradient, but the actual spike count as its value.

    The gradient is zero where v > upper and where v is NaN.
    """
    with torch.no_grad():
        slope = torch.where(v <= upper, neuron.slope(v, time_steps), 0.0)
    return replace_value(v, count, slope)


# ---------------------------------------------------------------------------------------------------------------------
# Operators: tandem_cuda.ops in plain PyTorch. Values are specified, the memory layout of results is not.
# ---------------------------------------------------------------------------------------------------------------------


def pack_spikes(spikes: Tensor) -> Tensor:
    """Pack spikes [T, N, ...] of 0 and 1 (any dtype) into bits uint8 [P, N, ...]; bit i of plane p is step 8p + i.

    Examples:
        >>> spikes = torch.zeros(8, 1, 2)  # [T, N, F]
        >>> spikes[0, 0, 0] = spikes[7, 0, 0] = 1
        >>> reference.pack_spikes(spikes)
        tensor([[[129,   0]]], dtype=torch.uint8)
    """
    check_time_steps("pack_spikes", spikes.shape[0])
    planes = []
    for chunk in torch.split(spikes != 0, 8):
        plane = torch.zeros_like(chunk[0], dtype=torch.uint8)
        for i, spike in enumerate(chunk):
            plane |= spike.to(torch.uint8) << i
        planes.append(plane)
    return torch.stack(planes)


def unpack_spikes(bits: Tensor, time_steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack bits uint8 [P, N, ...] into spikes [T, N, ...], 0 or 1 in dtype.

    Examples:
        >>> bits = torch.tensor([[[0b101]]], dtype=torch.uint8)
        >>> reference.unpack_spikes(bits, time_steps=3).flatten()
        tensor([1., 0., 1.])
    """
    _check_bits("unpack_spikes", bits, time_steps)
    return torch.stack([(bits[t // 8] >> (t % 8)) & 1 for t in range(time_steps)]).to(dtype)


def max_pool_spikes(
    bits: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    *,
    time_steps: int,
    count: Tensor | None = None,
    want_count: bool = False,
) -> tuple[Tensor, Tensor]:
    """Spike when the largest count of a window grows.

    bits: [P, N, C, H, W]; count: int32 [N, C, H, W], spikes of earlier time steps. Returns bits [P, N, C, Ho, Wo] and
    the counts after the last step, or an empty tensor. A window entirely in the padding has no spikes.

    Examples:
        >>> bits = torch.tensor([[0b0001, 0b0111], [0b0000, 0b1000]], dtype=torch.uint8).view(1, 1, 1, 2, 2)
        >>> pooled, count = reference.max_pool_spikes(bits, 2, time_steps=4)
        >>> bin(pooled.item())
        '0b111'
    """
    start = torch.zeros(bits.shape[1:], dtype=torch.int32) if count is None else count
    counts = [start, *(start + c for c in unpack_spikes(bits, time_steps, torch.float64).cumsum(0))]
    most = [F.max_pool2d(c.double(), kernel_size, stride, padding, dilation, ceil_mode) for c in counts]
    spikes = [after > before for before, after in pairwise(most)]
    return pack_spikes(torch.stack(spikes)), counts[-1].int() if want_count else start.new_empty(0)


def spike_count(bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Count the spikes of bits uint8 [P, N, ...] per neuron, [N, ...]. Unused high bits are zero: T is not needed.

    Examples:
        >>> bits = torch.tensor([[[0b101, 0b111]]], dtype=torch.uint8)
        >>> reference.spike_count(bits)
        tensor([[2., 3.]])
    """
    return unpack_spikes(bits, 8 * bits.shape[0], dtype).sum(0)


def tandem_count(
    bits: Tensor,
    pre_activation: Tensor,
    time_steps: int,
    neuron: Neuron = IF(),
    upper: float = math.inf,
) -> Tensor:
    """Return the spike count of bits [P, N, ...] with the gradient of the ANN activation of pre_activation [N, ...].

    d count / d pre_activation is the neuron's slope, (v > 0) / threshold for IF; it is zero above `upper`. The result
    is [N, ...] in the dtype of pre_activation.

    Examples:
        >>> v = torch.tensor([[2.5, -1.0]], requires_grad=True)
        >>> bits, _, _ = reference.integrate_and_fire(v.detach() / 4, time_steps=4)
        >>> count = reference.tandem_count(bits, v, time_steps=4)
        >>> count.detach()
        tensor([[2., 0.]])
        >>> count.sum().backward()
        >>> v.grad
        tensor([[1., 0.]])
    """
    _check_bits("tandem_count", bits, time_steps)
    return couple(pre_activation, spike_count(bits, pre_activation.dtype), time_steps, neuron, upper)


def tandem_norm_count(
    bits: Tensor,
    product: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor,
    beta: Tensor,
    time_steps: int,
    *,
    unit: Tensor | None = None,
    eps: float = 1e-5,
    threshold: float = 1.0,
    upper: float = math.inf,
) -> Tensor:
    """Return tandem_count of IF neurons whose pre-activation is the batch-normalised unit * product [N, C, ...].

    mean, var: [C], mean and biased variance of product over all dimensions but C. Only the kernels use them. gamma,
    beta, unit: [C]. Returns [N, C, ...] in the dtype of product.

    Examples:
        >>> product = torch.tensor([[1.0], [3.0]], requires_grad=True)  # [N, O]
        >>> bits = torch.tensor([[[0b0000], [0b0001]]], dtype=torch.uint8)
        >>> mean, var = product.detach().mean(0), product.detach().var(0, unbiased=False)
        >>> count = reference.tandem_norm_count(bits, product, mean, var, torch.ones(1), torch.zeros(1), time_steps=4)
        >>> count.detach().flatten()
        tensor([0., 1.])
    """
    if unit is not None:
        product = product * unit.view(-1, *[1] * (product.dim() - 2))
    v = F.batch_norm(product, None, None, gamma, beta, training=True, eps=eps)
    return tandem_count(bits, v, time_steps, IF(threshold), upper)


def update_statistics_(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    mean: Tensor,
    var: Tensor,
    product: Tensor,
    *,
    missing: Tensor | None = None,
    unit: Tensor | None = None,
    momentum: float = 0.1,
    repeats: float = 1.0,
) -> None:
    """Update batch norm's running statistics [C] in place with those of repeats * unit * product + missing.

    mean, var: [C], mean and biased variance of product [N, C, ...]; missing, unit: [C].

    Examples:
        >>> product = torch.tensor([[1.0], [3.0]])
        >>> running_mean, running_var, batches = torch.zeros(1), torch.ones(1), torch.tensor(0)
        >>> mean, var = product.mean(0), product.var(0, unbiased=False)
        >>> reference.update_statistics_(running_mean, running_var, batches, mean, var, product, momentum=0.5)
        >>> running_mean, running_var, batches
        (tensor([1.]), tensor([1.5000]), tensor(1))
    """
    count = product.numel() // product.shape[1]
    if unit is not None:
        mean, var = mean * unit, var * unit * unit
    new = mean * repeats if missing is None else mean * repeats + missing
    # Separate products and sums: add_(alpha=) rounds once where the processor has fused multiply-add.
    running_mean.mul_(1 - momentum).add_(new * momentum)
    running_var.mul_(1 - momentum).add_(var * (repeats**2 * momentum * count / (count - 1)))
    num_batches_tracked.add_(1)


def fold_norm(
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    unit: Tensor | None = None,
    eps: float = 1e-5,
    amplitude: float = 1.0,
    time_steps: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return batch norm with running statistics as gain and bias of currents (Wu et al. 2021, eq. 15); all are [C].

    unit * g * amplitude and ((bias - running_mean) * g + beta) / time_steps, where g = gamma / sqrt(running_var + eps).

    Examples:
        >>> mean, var = torch.tensor([1.0]), torch.tensor([4.0])
        >>> reference.fold_norm(mean, var, gamma=torch.tensor([6.0]), eps=0.0, time_steps=2)
        (tensor([3.]), tensor([-1.5000]))
    """
    # torch's roots may be off by an ulp. One in double precision still rounds to the exact float32 root.
    root = torch.sqrt((running_var + eps).double()).to(running_var.dtype)
    gain = 1 / root if gamma is None else gamma / root
    shift = (-running_mean if bias is None else bias - running_mean) * gain
    shift = shift if beta is None else shift + beta
    gain = gain if unit is None else unit * gain
    return gain * amplitude, shift / shift.new_full((), time_steps)


def integrate_and_fire(
    current: Tensor,
    time_steps: int,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    mode: str = "constant",
    neuron: Neuron = IF(),
    want_sum: bool = True,
    want_state: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Drive neurons with a dense current, x[t] = scale * current[t] + bias.

    mode: "constant", current [N, C, ...] at every step; "impulse", current [N, C, ...] at t = 1 and zero afterwards;
    "series", current [T, N, C, ...]; "once", as "impulse", but with the bias at t = 1 alone. scale, bias: [C]; state:
    [S, N, C, ...].
    Returns bits [P, N, C, ...], the sum of x[t] (differentiable) [N, C, ...] and the final state [S, N, C, ...].

    Examples:
        >>> bits, total, state = reference.integrate_and_fire(torch.tensor([[0.5]]), time_steps=4)
        >>> bin(bits.item()), total.item(), state.item()
        ('0b1010', 2.0, 1.0)
    """
    check_time_steps("integrate_and_fire", time_steps)
    steps: Sequence[Tensor]
    if mode == "constant":
        steps = [current] * time_steps
    elif mode in ("impulse", "once"):
        steps = [current] + [torch.zeros_like(current)] * (time_steps - 1)
    elif mode == "series":
        steps = current.unbind(0)
        if len(steps) != time_steps:
            raise ValueError(f"integrate_and_fire: current must hold {time_steps} time steps, got {len(steps)}")
    else:
        raise ValueError(f"integrate_and_fire: mode must be 'constant', 'impulse', 'series' or 'once', got {mode!r}")
    if scale is not None:
        per_channel = scale.reshape(-1, *[1] * (steps[0].dim() - 2))
        steps = [x * per_channel for x in steps]
    if bias is not None:
        per_channel = bias.reshape(-1, *[1] * (steps[0].dim() - 2))
        steps = [x + per_channel for x in steps]
    if mode == "once":
        steps = [steps[0]] + [torch.zeros_like(current)] * (time_steps - 1)
    spikes, final = neuron_loop(steps, neuron, state)
    total = reduce(torch.add, steps)
    return pack_spikes(spikes), _wanted(want_sum, total), _wanted(want_state, final)


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
    _check_bits("spiking_linear", bits, time_steps)
    with torch.no_grad():
        steps = [_linear(s, weight, bias, scale) for s in unpack_spikes(bits, time_steps, _dtype(weight))]
        steps = _with(steps, added, amplitude, time_steps, -1)
    spikes, final = neuron_loop(steps, neuron, state)
    # In exact arithmetic the sum of the currents equals this product with the counts, which provides its gradient.
    bias_sum = None if bias is None else time_steps * bias
    product = count_linear(bits, weight, bias_sum, scale=scale, count=count)
    total = replace_value(product, reduce(torch.add, steps))
    return pack_spikes(spikes), _wanted(want_sum, total), _wanted(want_state, final)


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
    _check_bits("spiking_conv2d", bits, time_steps)
    with torch.no_grad():
        dense = unpack_spikes(bits, time_steps, _dtype(weight))
        steps = [_conv2d(s, weight, bias, scale, stride, padding, dilation, groups) for s in dense]
        steps = _with(steps, added, amplitude, time_steps, -3)
    spikes, final = neuron_loop(steps, neuron, state)
    bias_sum = None if bias is None else time_steps * bias
    product = count_conv2d(bits, weight, bias_sum, stride, padding, dilation, groups, scale=scale, count=count)
    total = replace_value(product, reduce(torch.add, steps))
    return pack_spikes(spikes), _wanted(want_sum, total), _wanted(want_state, final)


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


def _wanted(want: bool, x: Tensor) -> Tensor:
    return x if want else x.new_empty(0)


def check_time_steps(op: str, time_steps: int) -> None:
    """Raise ValueError if there is no time step."""
    if time_steps < 1:
        raise ValueError(f"{op}: time_steps must be at least 1, got {time_steps}")


def _check_bits(op: str, bits: Tensor, time_steps: int) -> None:
    check_time_steps(op, time_steps)
    if bits.dtype != torch.uint8:
        raise TypeError(f"{op}: bits must be uint8, got {bits.dtype}")
    if bits.shape[0] != math.ceil(time_steps / 8):
        expected = math.ceil(time_steps / 8)
        raise ValueError(f"{op}: bits must have {expected} planes for {time_steps} time steps, got {bits.shape[0]}")
