"""Neurons, the tandem rule and the operators, in plain PyTorch."""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..neuron import IF, Neuron, RadixIF

Pair = int | tuple[int, int]

# -- The neuron


def neuron_loop(
    currents: Sequence[Tensor], neuron: Neuron = IF(), state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Drive neurons with one current per time step.

    currents: T tensors [N, ...]; state: [S, N, ...], the S state variables returned by an earlier call.
    Returns the spikes [T, N, ...], 0 or 1 in the dtype of the currents, and the final state [S, N, ...]. The neuron's
    parameters are first rounded to that dtype. A potential that is NaN never fires. The outputs have no gradient: in
    tandem learning no gradient flows through spikes or through time. Neurons with two_phase receive all currents in the
    first step; they take no state. Of neurons with radix, the final state is the potential that no spike stands for.

    Examples:
        >>> spikes, state = reference.neuron_loop([torch.tensor([0.5])] * 4)
        >>> spikes.flatten()
        tensor([0., 1., 0., 1.])
    """
    with torch.no_grad():
        if neuron.two_phase:
            if state is not None:
                raise ValueError("neuron_loop: state must be None with two_phase")
            total = reduce(torch.add, currents)
            if neuron.radix:
                return neuron.discharge(total, len(currents))
            currents = [total] + [torch.zeros_like(total)] * (len(currents) - 1)
        variables = neuron.rest(currents[0]) if state is None else state.unbind(0)
        spikes = []
        for x in currents:
            spike, variables = neuron.step(variables, x)
            spikes.append(spike)
        return torch.stack(spikes), torch.stack(variables)


def fire(
    currents: Sequence[Tensor],
    neuron: Neuron,
    state: Tensor | None,
    want_sum: bool,
    want_state: bool,
    product: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Drive neurons as neuron_loop does; return what operators return: bits, the sum of the currents, final state.

    The bits of neurons with radix are one plane, whose bytes are the neurons' values: bit T - t is step t.
    product: a tensor that equals the sum in exact arithmetic and gets its gradient; None for the currents themselves.
    """
    spikes, final = neuron_loop(currents, neuron, state)
    total = reduce(torch.add, currents)
    if product is not None:
        total = replace_value(product, total)
    bits = pack_spikes(spikes.flip(0) if neuron.radix else spikes)
    return bits, total if want_sum else total.new_empty(0), final if want_state else final.new_empty(0)


def per_channel(x: Tensor, dims: int) -> Tensor:
    """View values [C] as [C, 1, ...], to multiply tensors [N, C, ...] that have so many more dimensions."""
    return x.reshape(-1, *[1] * dims)


# -- The tandem rule


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


# -- Operators: tandem_cuda.ops in plain PyTorch. Values are specified, the memory layout of results is not


def pack_spikes(spikes: Tensor) -> Tensor:
    """Pack spikes [T, N, ...] of 0 and 1 (any dtype) into bits uint8 [P, N, ...]; bit i of plane p is step 8p + i.

    Examples:
        >>> spikes = torch.zeros(8, 1, 2)  # [T, N, F]
        >>> spikes[0, 0, 0] = spikes[7, 0, 0] = 1
        >>> reference.pack_spikes(spikes)
        tensor([[[129,   0]]], dtype=torch.uint8)
    """
    check_time_steps("pack_spikes", spikes.shape[0])
    fired = (spikes != 0).to(torch.uint8)
    return torch.stack([reduce(torch.add, (s << i for i, s in enumerate(eight))) for eight in torch.split(fired, 8)])


def unpack_spikes(bits: Tensor, time_steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack bits uint8 [P, N, ...] into spikes [T, N, ...], 0 or 1 in dtype.

    Examples:
        >>> bits = torch.tensor([[[0b101]]], dtype=torch.uint8)
        >>> reference.unpack_spikes(bits, time_steps=3).flatten()
        tensor([1., 0., 1.])
    """
    check_bits("unpack_spikes", bits, time_steps)
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
    radix: bool = False,
) -> tuple[Tensor, Tensor]:
    """Spike when the largest count of a window grows.

    bits: [P, N, C, H, W]; count: int32 [N, C, H, W], spikes of earlier time steps. Returns bits [P, N, C, Ho, Wo] and
    the counts after the last step, or an empty tensor. A window entirely in the padding has no spikes. radix: bits are
    radix spikes, of which the largest value is returned.

    Examples:
        >>> bits = torch.tensor([[0b0001, 0b0111], [0b0000, 0b1000]], dtype=torch.uint8).view(1, 1, 1, 2, 2)
        >>> pooled, count = reference.max_pool_spikes(bits, 2, time_steps=4)
        >>> bin(pooled.item())
        '0b111'
    """
    if radix:
        largest = F.max_pool2d(bits[0].double(), kernel_size, stride, padding, dilation, ceil_mode)
        return largest.clamp(min=0).byte().unsqueeze(0), torch.empty(0, dtype=torch.int32)
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
    is [N, ...] in the dtype of pre_activation. For neurons with radix it is the value of the spikes, not their count.

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
    check_bits("tandem_count", bits, time_steps)
    value = spike_value(bits, pre_activation.dtype, neuron.radix)
    return couple(pre_activation, value, time_steps, neuron, upper)


def spike_value(bits: Tensor, dtype: torch.dtype, radix: bool) -> Tensor:
    """Return the spike counts of bits, or the values of radix spikes, which are their bytes."""
    return bits[0].to(dtype) if radix else spike_count(bits, dtype)


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
    radix: bool = False,
) -> Tensor:
    """Return tandem_count of IF neurons whose pre-activation is the batch-normalised unit * product [N, C, ...].

    mean, var: [C], mean and biased variance of product over all dimensions but C. Only the kernels use them. gamma,
    beta, unit: [C]; radix: whether the bits are the values of neurons with radix, whose last threshold is `threshold`.
    Returns [N, C, ...] in the dtype of product.

    Examples:
        >>> product = torch.tensor([[1.0], [3.0]], requires_grad=True)  # [N, O]
        >>> bits = torch.tensor([[[0b0000], [0b0001]]], dtype=torch.uint8)
        >>> mean, var = product.detach().mean(0), product.detach().var(0, unbiased=False)
        >>> count = reference.tandem_norm_count(bits, product, mean, var, torch.ones(1), torch.zeros(1), time_steps=4)
        >>> count.detach().flatten()
        tensor([0., 1.])
    """
    if unit is not None:
        product = product * per_channel(unit, product.dim() - 2)
    v = F.batch_norm(product, None, None, gamma, beta, training=True, eps=eps)
    check_bits("tandem_norm_count", bits, time_steps)
    return couple(v, spike_value(bits, v.dtype, radix), time_steps, IF(threshold), upper)


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
    """Update batch norm's running statistics [C] in place, with the statistics of repeats * unit * product + missing.

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
    nothing = torch.zeros_like(current)
    if mode == "series":
        steps = [*current]
        if len(steps) != time_steps:
            raise ValueError(f"integrate_and_fire: current must hold {time_steps} time steps, got {len(steps)}")
    elif mode in ("constant", "impulse", "once"):
        steps = [current] + [current if mode == "constant" else nothing] * (time_steps - 1)
    else:
        raise ValueError(f"integrate_and_fire: mode must be 'constant', 'impulse', 'series' or 'once', got {mode!r}")
    dims = steps[0].dim() - 2
    if scale is not None:
        steps = [x * per_channel(scale, dims) for x in steps]
    if bias is not None:
        steps = [x + per_channel(bias, dims) for x in steps]
    if mode == "once":
        steps[1:] = [nothing] * (time_steps - 1)
    return fire(steps, neuron, state, want_sum, want_state)


def radix_spikes(
    v: Tensor, time_steps: int, neuron: RadixIF, *, scale: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Return the bits of neurons with radix whose currents add up to scale * v + bias.

    v: [N, C, ...]; scale, bias: [C]. Returns uint8 [1, N, C, ...], the neurons' values.

    Examples:
        >>> from tandem_cuda.neuron import RadixIF
        >>> reference.radix_spikes(torch.tensor([[0.1, 1.1, 9.0]]), 2, RadixIF(level=4.0))
        tensor([[[0, 1, 3]]], dtype=torch.uint8)
    """
    return integrate_and_fire(v, time_steps, bias, scale=scale, mode="once", neuron=neuron)[0]


def check_time_steps(op: str, time_steps: int) -> None:
    """Raise ValueError if there is no time step."""
    if time_steps < 1:
        raise ValueError(f"{op}: time_steps must be at least 1, got {time_steps}")


def check_bits(op: str, bits: Tensor, time_steps: int) -> None:
    """Raise an error unless these are the bit planes of so many time steps."""
    check_time_steps(op, time_steps)
    if bits.dtype != torch.uint8:
        raise TypeError(f"{op}: bits must be uint8, got {bits.dtype}")
    expected = math.ceil(time_steps / 8)
    if bits.shape[0] != expected:
        raise ValueError(f"{op}: bits must have {expected} planes for {time_steps} time steps, got {bits.shape[0]}")
