"""The operators and layers of tandem_cuda in plain PyTorch, slow and obvious.

This file is the specification: every kernel is tested against it and timed against it. It needs neither the compiled
library nor any other code of the package than the neuron descriptions. The operators have the names and signatures of
`tandem_cuda.ops`, less what says how to compute (`packed`, `engine`); the layers have the constructors of the package's
own, less the same, but pass time-major float spike trains on, as a user of plain PyTorch would.

Names of sizes: T time steps, P = ceil(T / 8) bit planes, N batch, C channels, F features in, O features out.
The learning rule is that of Wu et al., "A Tandem Learning Rule for Effective Training and Rapid Inference of Deep
Spiking Neural Networks", IEEE TNNLS 2021, doi:10.1109/TNNLS.2021.3095724.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_cuda.neuron import IF, Neuron

Pair = int | tuple[int, int]

# ---------------------------------------------------------------------------------------------------------------------
# The neuron
# ---------------------------------------------------------------------------------------------------------------------


def neuron_loop(
    currents: Sequence[Tensor], neuron: Neuron = IF(), state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Drive neurons with one current per time step.

    currents: T tensors [N, ...]; state: [S, N, ...], the S state variables of the neuron after an earlier step.
    Returns the spikes [T, N, ...], 0 or 1 in the dtype of the currents, and the final state [S, N, ...]. The neuron's
    parameters are rounded to that dtype first; a potential that is NaN never fires. Nothing is differentiable here: in
    tandem learning no gradient flows through spikes or through time.
    """
    with torch.no_grad():
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
    """`value` in the forward pass; in the backward pass the gradient goes to `x`, times `slope`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


def _replace_value(x: Tensor, value: Tensor, slope: Tensor | None = None) -> Tensor:
    slope = x.new_ones(()) if slope is None else slope
    # torch does not annotate autograd.Function.apply.
    replaced: Tensor = _ReplaceValue.apply(x, value.detach(), slope.detach())  # type: ignore[no-untyped-call]
    return replaced


def _couple(v: Tensor, count: Tensor, time_steps: int, neuron: Neuron, upper: float) -> Tensor:
    """The activation of pre-activation v, its value replaced by the actual spike count, its gradient kept.

    The gradient is zero where v > upper and where v is NaN.
    """
    with torch.no_grad():
        slope = torch.where(v <= upper, neuron.slope(v, time_steps), 0.0)
    return _replace_value(v, count, slope)


# ---------------------------------------------------------------------------------------------------------------------
# Operators: tandem_cuda.ops in plain PyTorch. The layout of results in memory is left to PyTorch; only values count.
# ---------------------------------------------------------------------------------------------------------------------


def pack_spikes(spikes: Tensor) -> Tensor:
    """Spikes [T, N, ...] of 0 and 1 (any dtype) -> bits uint8 [P, N, ...]: bit i of plane p is the spike at 8p + i."""
    _check_time_steps("pack_spikes", spikes.shape[0])
    planes = []
    for chunk in torch.split(spikes != 0, 8):
        plane = torch.zeros_like(chunk[0], dtype=torch.uint8)
        for i, spike in enumerate(chunk):
            plane |= spike.to(torch.uint8) << i
        planes.append(plane)
    return torch.stack(planes)


def unpack_spikes(bits: Tensor, time_steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bits uint8 [P, N, ...] -> spikes [T, N, ...], 0 or 1 in dtype."""
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
    """The spikes with which the largest count of each window grows.

    bits: [P, N, C, H, W]; count: int32 [N, C, H, W], spikes of earlier time steps. Returns bits [P, N, C, Ho, Wo] and
    the counts after the last step, or an empty tensor. A window that lies in the padding as a whole has no spikes.
    """
    start = torch.zeros(bits.shape[1:], dtype=torch.int32) if count is None else count
    counts = [start, *(start + c for c in unpack_spikes(bits, time_steps, torch.float64).cumsum(0))]
    most = [F.max_pool2d(c.double(), kernel_size, stride, padding, dilation, ceil_mode) for c in counts]
    spikes = [after > before for before, after in pairwise(most)]
    return pack_spikes(torch.stack(spikes)), counts[-1].int() if want_count else start.new_empty(0)


def spike_count(bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bits uint8 [P, N, ...] -> spikes per neuron [N, ...]. Unused high bits are zero, so T does not matter."""
    return unpack_spikes(bits, 8 * bits.shape[0], dtype).sum(0)


def tandem_count(
    bits: Tensor,
    pre_activation: Tensor,
    time_steps: int,
    neuron: Neuron = IF(),
    upper: float = math.inf,
) -> Tensor:
    """Spike count of bits [P, N, ...] with the gradient of the ANN activation of pre_activation [N, ...].

    d count / d pre_activation is the neuron's slope, (v > 0) / threshold for IF; zero above `upper`. Returns [N, ...]
    in the dtype of pre_activation.
    """
    _check_bits("tandem_count", bits, time_steps)
    return _couple(pre_activation, spike_count(bits, pre_activation.dtype), time_steps, neuron, upper)


def tandem_norm_count(
    bits: Tensor,
    product: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor,
    beta: Tensor,
    time_steps: int,
    *,
    eps: float = 1e-5,
    threshold: float = 1.0,
    upper: float = math.inf,
) -> Tensor:
    """tandem_count of IF neurons for the pre-activation that batch norm makes of product [N, C, ...], differentiably.

    mean, var: [C], those of product over all dimensions but C, for kernels that need not compute them; var is biased.
    gamma, beta: [C]. Returns [N, C, ...] in the dtype of product.
    """
    v = F.batch_norm(product, None, None, gamma, beta, training=True, eps=eps)
    return tandem_count(bits, v, time_steps, IF(threshold), upper)


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
    """Neurons driven by a dense current: x[t] = scale * current + bias, or as the mode says.

    constant: current [N, C, ...] at every step; impulse: the same at t = 1 only, the bias [C] at every step; series:
    current [T, N, C, ...]. state: [S, N, C, ...].
    Returns bits [P, N, C, ...], the sum of x[t] (differentiable) [N, C, ...] and the final state [S, N, C, ...].
    """
    _check_time_steps("integrate_and_fire", time_steps)
    steps: Sequence[Tensor]
    if mode == "constant":
        steps = [current] * time_steps
    elif mode == "impulse":
        steps = [current] + [torch.zeros_like(current)] * (time_steps - 1)
    elif mode == "series":
        steps = current.unbind(0)
        if len(steps) != time_steps:
            raise ValueError(f"integrate_and_fire: current: expected {time_steps} time steps, got {len(steps)}")
    else:
        raise ValueError(f"integrate_and_fire: mode: expected 'constant', 'impulse' or 'series', got {mode!r}")
    if scale is not None:
        per_channel = scale.reshape(-1, *[1] * (steps[0].dim() - 2))
        steps = [x * per_channel for x in steps]
    if bias is not None:
        per_channel = bias.reshape(-1, *[1] * (steps[0].dim() - 2))
        steps = [x + per_channel for x in steps]
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Spiking neurons behind a linear layer: x[t] = scale * (weight * s[t]) + bias.

    bits: [P, N, ..., F]; weight: [O, F], narrower than float32 too, int8 only with a scale; bias: [O], per time step;
    state: [S, N, ..., O]; scale: [O], no gradient; count: [N, ..., F], to which the gradient of the sum flows; its
    value is not read.
    Returns bits [P, N, ..., O], the sum of x[t] (differentiable) [N, ..., O] and the final state [S, N, ..., O].
    """
    _check_bits("spiking_linear", bits, time_steps)
    with torch.no_grad():
        steps = [_linear(s, weight, bias, scale) for s in unpack_spikes(bits, time_steps, _dtype(weight))]
    spikes, final = neuron_loop(steps, neuron, state)
    # In exact arithmetic the sum of the currents is this product with the counts, which carries its gradient.
    bias_sum = None if bias is None else time_steps * bias
    product = count_linear(bits, weight, bias_sum, scale=scale, count=count)
    total = _replace_value(product, reduce(torch.add, steps))
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
) -> tuple[Tensor, Tensor, Tensor]:
    """spiking_linear with a 2-D convolution.

    bits: [P, N, C, H, W]; weight: [O, C/groups, kH, kW]; bias: [O], per time step; state: [S, N, O, Ho, Wo]; scale:
    [O]; count: [N, C, H, W]. Returns bits [P, N, O, Ho, Wo], the sum [N, O, Ho, Wo] and the final state
    [S, N, O, Ho, Wo].
    """
    _check_bits("spiking_conv2d", bits, time_steps)
    with torch.no_grad():
        dense = unpack_spikes(bits, time_steps, _dtype(weight))
        steps = [_conv2d(s, weight, bias, scale, stride, padding, dilation, groups) for s in dense]
    spikes, final = neuron_loop(steps, neuron, state)
    bias_sum = None if bias is None else time_steps * bias
    product = count_conv2d(bits, weight, bias_sum, stride, padding, dilation, groups, scale=scale, count=count)
    total = _replace_value(product, reduce(torch.add, steps))
    return pack_spikes(spikes), _wanted(want_sum, total), _wanted(want_state, final)


def count_linear(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """Return scale * (weight * (spike count of bits)) + bias: bits [P, N, ..., F], weight [O, F] -> [N, ..., O].

    weight: narrower than float32 too, int8 only with a scale; bias, scale: [O], no gradient flows to the scale; count:
    [N, ..., F], to which the gradient of the counts flows; its value is not read.
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
    """count_linear with a 2-D convolution: bits [P, N, C, H, W], weight [O, C/groups, kH, kW] -> [N, O, Ho, Wo]."""
    dense = _count(bits, count, _dtype(weight))
    return _conv2d(dense, weight, bias, scale, stride, padding, dilation, groups)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """scale * (weight * x) + bias: x [..., F] -> [..., O]."""
    weight = weight.to(x.dtype)
    if scale is None:
        return F.linear(x, weight, bias)
    scaled = scale.detach() * F.linear(x, weight)
    return scaled if bias is None else scaled + bias


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, *geometry: Any) -> Tensor:
    """The same with a convolution; geometry: stride to groups, as F.conv2d takes them."""
    # A view with plain strides: torch's convolution reads others of dimensions of size 1 as another layout.
    weight = weight.to(x.dtype).reshape(-1).view(weight.shape)
    if scale is None:
        return F.conv2d(x, weight, bias, *geometry)
    scaled = scale.detach().reshape(-1, 1, 1) * F.conv2d(x, weight, None, *geometry)
    return scaled if bias is None else scaled + bias.reshape(-1, 1, 1)


def _dtype(weight: Tensor) -> torch.dtype:
    """That of the currents: narrower weights have float32 ones."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _count(bits: Tensor, count: Tensor | None, dtype: torch.dtype) -> Tensor:
    counted = spike_count(bits, dtype)
    return counted if count is None else _replace_value(count, counted)


def _wanted(want: bool, x: Tensor) -> Tensor:
    return x if want else x.new_empty(0)


def _check_time_steps(op: str, time_steps: int) -> None:
    if time_steps < 1:
        raise ValueError(f"{op}: time_steps: expected at least 1, got {time_steps}")


def _check_bits(op: str, bits: Tensor, time_steps: int) -> None:
    _check_time_steps(op, time_steps)
    if bits.dtype != torch.uint8:
        raise TypeError(f"{op}: bits: expected dtype torch.uint8, got {bits.dtype}")
    if bits.shape[0] != math.ceil(time_steps / 8):
        expected = math.ceil(time_steps / 8)
        raise ValueError(f"{op}: bits: expected {expected} planes for {time_steps} time steps, got {bits.shape[0]}")


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------


class DenseTrain:
    """Spikes [T, N, ...] as a float tensor of 0 and 1, and their count [N, ...], which carries the tandem gradient.

    amplitude: what one spike weighs in the layer behind.
    """

    def __init__(self, spikes: Tensor, count: Tensor | None = None, amplitude: float = 1.0) -> None:
        self.spikes = spikes
        self.amplitude = amplitude
        # This sum, unlike spikes.sum(0), keeps the channels_last memory format.
        self.count = reduce(torch.add, spikes) if count is None else count

    @property
    def time_steps(self) -> int:
        """Number of time steps T."""
        return self.spikes.shape[0]

    @property
    def shape(self) -> torch.Size:
        """[N, ...]: without the time."""
        return self.spikes.shape[1:]

    def to_dense(self) -> Tensor:
        """Spikes [T, N, ...]."""
        return self.spikes

    def flatten(self, start_dim: int = 1, end_dim: int = -1) -> "DenseTrain":
        """Merge dimensions of [N, ...], numbered without the time; nn.Flatten calls this."""
        start, end = (d + 1 if d >= 0 else d for d in (start_dim, end_dim))
        return DenseTrain(self.spikes.flatten(start, end), self.count.flatten(start_dim, end_dim), self.amplitude)

    def firing_rate(self) -> Tensor:
        """Mean number of spikes per neuron and time step, a scalar tensor."""
        return self.spikes.mean()


@dataclass(frozen=True)
class EncodedInput:
    """Real-valued input [N, ...] that a tandem layer turns into currents over time_steps steps."""

    value: Tensor
    time_steps: int
    mode: str

    def flatten(self, start_dim: int = 1, end_dim: int = -1) -> "EncodedInput":
        """Merge dimensions of [N, ...]; nn.Flatten calls this."""
        return EncodedInput(self.value.flatten(start_dim, end_dim), self.time_steps, self.mode)


class Encode(nn.Module):
    """Real-valued input [N, ...] as current: constant (at every time step) or impulse (at the first one only)."""

    def __init__(self, time_steps: int, mode: str = "constant") -> None:
        super().__init__()
        _check_time_steps("Encode", time_steps)
        if mode not in ("constant", "impulse"):
            raise ValueError(f"Encode: mode: expected 'constant' or 'impulse', got {mode!r}")
        self.time_steps = time_steps
        self.mode = mode

    def forward(self, x: Tensor) -> EncodedInput:
        """Take x [N, ...] and leave it as it is."""
        return EncodedInput(x, self.time_steps, self.mode)


class Decode(nn.Module):
    """Spike train -> spike counts [N, ...], the input of an ordinary nn.Linear."""

    def forward(self, x: Any) -> Tensor:
        """Take a spike train and return its count [N, ...], times what a spike weighs."""
        count: Tensor = x.count if x.amplitude == 1 else x.amplitude * x.count
        return count


class _TandemLayer(nn.Module):
    """The tandem rule around a weight layer, the next class of the method resolution order."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    norm_class: type[nn.BatchNorm1d | nn.BatchNorm2d]
    output_dim = 0  # of the weights; behind another one it holds the output channels of each group
    groups: int

    def __init__(
        self,
        *args: Any,
        norm: str | None = None,
        neuron: Neuron = IF(),
        form: str = "folded",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if norm not in (None, "batch"):
            raise ValueError(f"{type(self).__name__}: norm: expected None or 'batch', got {norm!r}")
        if form not in ("loop", "folded"):
            raise ValueError(f"{type(self).__name__}: form: expected 'loop' or 'folded', got {form!r}")
        w = self.weight
        outputs = w.shape[self.output_dim] * (self.groups if self.output_dim else 1)
        self.norm = self.norm_class(outputs, device=w.device, dtype=w.dtype) if norm else None
        self.neuron = neuron
        self.form = form

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The weight layer itself: x [N, ...] -> [N, ...]."""
        raise NotImplementedError

    def forward(self, x: Any) -> DenseTrain:
        """Take an EncodedInput or a spike train (anything with to_dense(), count, time_steps and amplitude)."""
        if isinstance(x, Tensor):
            name = type(self).__name__
            raise TypeError(f"{name}: input: expected spikes, got a Tensor; put Encode(time_steps) in front")
        return _fire(self.neuron, x.time_steps, *self.drive(x))

    def drive(self, x: Any) -> tuple[Tensor | None, Sequence[Tensor]]:
        """The ANN's pre-activation (None where no gradient is asked for) and the current of every time step."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        time_steps: int = x.time_steps
        v = None
        if self.norm is not None and self.norm.training:
            # The ANN normalises with the statistics of this batch, and this call updates the running ones ...
            v = self.norm(self.product(self._ann_input(x), weight, bias))
        if self.norm is not None:
            # ... which the SNN, and in evaluation the ANN too, folds into weight and bias.
            weight, bias = self._fold(self.norm)
        if v is None and torch.is_grad_enabled():
            v = self.product(self._ann_input(x), weight, bias)
        with torch.no_grad():
            return v, self._currents(x, weight, None if bias is None else bias / time_steps)

    def _ann_input(self, x: Any) -> Tensor:
        """What the ANN layer receives: the sum over time of what the SNN layer receives."""
        if not hasattr(x, "mode"):
            ann_input: Tensor = x.count if x.amplitude == 1 else x.amplitude * x.count
        else:
            ann_input = x.time_steps * x.value if x.mode == "constant" else x.value
        return ann_input

    def _fold(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        """Weight and bias that do what the weight layer and the norm with its running statistics do, differentiably."""
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"{type(self).__name__}: norm: expected running statistics, got none")
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shifted = -norm.running_mean if self.bias is None else self.bias - norm.running_mean
        if self.output_dim:
            inputs, outputs, *kernel = self.weight.shape
            grouped = self.weight.view(self.groups, inputs // self.groups, outputs, *kernel)
            weight = grouped * gain.view(self.groups, 1, outputs, *[1] * len(kernel))
            return weight.view_as(self.weight), shifted * gain + norm.bias
        return self.weight * gain.reshape(-1, *[1] * (self.weight.dim() - 1)), shifted * gain + norm.bias

    def _currents(self, x: Any, weight: Tensor, bias: Tensor | None) -> Sequence[Tensor]:
        """Input current of each time step; bias is that of one step."""
        if hasattr(x, "mode"):
            first = self.product(x.value, weight, bias)
            rest = first if x.mode == "constant" else self.product(torch.zeros_like(x.value), weight, bias)
            return [first] + [rest] * (x.time_steps - 1)
        spikes: Tensor = x.to_dense() if x.amplitude == 1 else x.amplitude * x.to_dense()
        if self.form == "loop":
            return [self.product(s, weight, bias) for s in spikes]
        return self.product(spikes.flatten(0, 1), weight, bias).chunk(x.time_steps)


def _fire(neuron: Neuron, time_steps: int, v: Tensor | None, currents: Sequence[Tensor]) -> DenseTrain:
    """The spikes of neurons driven by currents whose sum is v; their count carries the gradient of the ANN."""
    spikes, _ = neuron_loop(currents, neuron)
    train = DenseTrain(spikes, amplitude=neuron.amplitude)
    if v is not None:
        train.count = _couple(v, train.count, time_steps, neuron, neuron.upper(time_steps))
    return train


class TandemConv2d(_TandemLayer, nn.Conv2d):  # type: ignore[misc]  # forward: spike trains in and out, not tensors
    """Convolution, optional batch norm and spiking neurons, trained by the tandem rule.

    The constructor is that of nn.Conv2d, then norm (None or "batch": an nn.BatchNorm2d, `norm`), neuron (IF or LIF)
    and form: one convolution per time step ("loop") or one with time folded into the batch ("folded").
    """

    norm_class = nn.BatchNorm2d

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution: x [N, C, H, W] -> [N, O, Ho, Wo]."""
        out: Tensor = self._conv_forward(x, weight, bias)  # F.conv2d, after whatever padding_mode asks for
        return out


class TandemLinear(_TandemLayer, nn.Linear):  # type: ignore[misc]  # as above
    """Linear layer, optional batch norm (nn.BatchNorm1d) and spiking neurons; otherwise as TandemConv2d."""

    norm_class = nn.BatchNorm1d

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The matrix product: x [N, ..., F] -> [N, ..., O]."""
        return F.linear(x, weight, bias)


class TandemConv1d(_TandemLayer, nn.Conv1d):  # type: ignore[misc]  # as above
    """Convolution of [N, C, L], optional batch norm (nn.BatchNorm1d) and spiking neurons; otherwise as TandemConv2d."""

    norm_class = nn.BatchNorm1d

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution: x [N, C, L] -> [N, O, Lo]."""
        out: Tensor = self._conv_forward(x, weight, bias)
        return out


class TandemConvTranspose2d(_TandemLayer, nn.ConvTranspose2d):  # type: ignore[misc]  # as above
    """Transposed convolution, optional batch norm and spiking neurons; otherwise as TandemConv2d."""

    norm_class = nn.BatchNorm2d
    output_dim = 1

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The transposed convolution: x [N, C, H, W] -> [N, O, Ho, Wo]."""
        geometry: Any = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return F.conv_transpose2d(x, weight, bias, *geometry)


class TandemAdd(nn.Module):
    """Neurons driven by the sum of what drives several branches, tandem layers or nn.Identity, with one input each."""

    def __init__(self, *branches: nn.Module, neuron: Neuron = IF()) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.neuron = neuron

    def forward(self, *inputs: Any) -> DenseTrain:
        """Take one spike train per branch."""
        drives = []
        for branch, x in zip(self.branches, inputs, strict=True):
            if isinstance(branch, _TandemLayer):
                drives.append(branch.drive(x))
            else:
                drives.append((x.amplitude * x.count, (x.amplitude * x.to_dense()).unbind(0)))
        pre_activations, currents = zip(*drives, strict=True)
        v = None if any(v is None for v in pre_activations) else reduce(torch.add, pre_activations)
        steps = [reduce(torch.add, branches) for branches in zip(*currents, strict=True)]
        return _fire(self.neuron, inputs[0].time_steps, v, steps)


class _SpikingAverage(nn.Module):
    """IF neurons on the mean of a window, the next class of the method resolution order being torch's pooling."""

    def __init__(self, *args: Any, threshold: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.threshold = threshold

    def forward(self, x: Any) -> DenseTrain:
        """Take a spike train of images."""
        divisors = self._divisors(torch.ones(1, 1, *x.shape[2:], dtype=x.count.dtype))
        # In units in which every mean is a whole number: sums of thirds would be rounded.
        unit = math.lcm(*divisors.flatten().int().tolist())
        pool = super().forward
        with torch.no_grad():
            currents = [torch.round(pool(s) * unit) for s in x.to_dense()]
            spikes, _ = neuron_loop(currents, IF(self.threshold * unit))
        train = DenseTrain(spikes, amplitude=x.amplitude)
        train.count = _replace_value(pool(x.count) / self.threshold, train.count)
        return train

    def _divisors(self, ones: Tensor) -> Tensor:
        """Of the windows of an image [1, 1, H, W]: the reciprocals of what a single spike adds to their means."""
        flat = torch.eye(ones.numel(), dtype=ones.dtype).view(-1, 1, *ones.shape[2:])
        return torch.round(1 / super().forward(flat).amax(0))


class SpikingAvgPool2d(_SpikingAverage, nn.AvgPool2d):  # type: ignore[misc]  # as above
    """IF neurons on the mean of a window at every time step: the constructor of nn.AvgPool2d, then threshold."""


class SpikingAdaptiveAvgPool2d(_SpikingAverage, nn.AdaptiveAvgPool2d):  # type: ignore[misc]  # as above
    """The same with the constructor of nn.AdaptiveAvgPool2d."""


class SpikingMaxPool2d(nn.MaxPool2d):
    """The spikes with which the largest count of a window grows; max pooling of the counts, in value and gradient."""

    def forward(self, x: Any) -> DenseTrain:
        """Take a spike train of images."""
        pool = super().forward
        counts = x.to_dense().cumsum(0)
        most = torch.stack([pool(c) for c in (torch.zeros_like(counts[0]), *counts)]).clamp(min=0)
        train = DenseTrain(most.diff(dim=0), amplitude=x.amplitude)
        train.count = _replace_value(pool(x.count), train.count)
        return train


class TandemDropout(nn.Dropout):
    """One mask for the spikes of all time steps and for their count; what is left weighs 1 / (1 - p)."""

    def forward(self, x: Any) -> DenseTrain:  # type: ignore[override]
        """Take a spike train."""
        if not self.training:
            train: DenseTrain = x
            return train
        mask = (torch.rand(self.mask_shape(x.shape)) >= self.p).to(x.count.dtype)
        amplitude = x.amplitude if self.p == 1 else x.amplitude / (1 - self.p)
        return DenseTrain(x.to_dense() * mask, x.count * mask, amplitude)

    def mask_shape(self, shape: torch.Size) -> Sequence[int]:
        """Of the draws for neurons [N, ...]."""
        return shape


class TandemDropout2d(TandemDropout):
    """The same with one draw a channel."""

    def mask_shape(self, shape: torch.Size) -> Sequence[int]:
        """Of the draws for neurons [N, C, H, W]."""
        return (*shape[:2], 1, 1)
