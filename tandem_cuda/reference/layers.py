"""The layers in plain PyTorch: spike trains are float tensors [T, N, ...]."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..neuron import IF, Neuron, RadixIF
from ..neuron.radix_if import check_radix_steps
from .ops import check_time_steps, couple, neuron_loop, replace_value

__all__ = [
    "Decode",
    "DenseTrain",
    "Encode",
    "EncodedInput",
    "TandemAdd",
    "TandemConv1d",
    "TandemConv2d",
    "TandemConv3d",
    "TandemConvTranspose2d",
    "TandemDropout",
    "TandemDropout2d",
    "TandemLinear",
    "TandemNeurons",
]

Drive = tuple[Tensor | None, Sequence[Tensor]]
"""The ANN's pre-activation (None if no gradient is needed) and the current of every time step."""


class DenseTrain:
    """Spikes [T, N, ...] as a float tensor of 0 and 1, and their value [N, ...], which carries the tandem gradient.

    The value is what the next layer reads, in units of amplitude: the spike count or, of radix spikes, the sum over t
    of 2^(T-t) s[t].

    Examples:
        >>> train = reference.DenseTrain(torch.ones(4, 2, 3))
        >>> train.count.shape
        torch.Size([2, 3])
        >>> reference.DenseTrain(torch.ones(4, 1, 1), radix=True).value
        tensor([[15.]])
    """

    def __init__(
        self, spikes: Tensor, value: Tensor | None = None, amplitude: float = 1.0, radix: bool = False
    ) -> None:
        if radix:
            check_radix_steps("DenseTrain", spikes.shape[0])
        self.spikes = spikes
        self.amplitude = amplitude
        self.radix = radix
        # This sum, unlike spikes.sum(0), keeps the channels_last memory format.
        self.value = reduce(torch.add, weighted_spikes(spikes, radix)) if value is None else value

    @property
    def count(self) -> Tensor:
        """Number of spikes, [N, ...]; without a gradient if the spikes are radix spikes."""
        return reduce(torch.add, self.spikes) if self.radix else self.value

    @property
    def time_steps(self) -> int:
        """Number of time steps T."""
        return self.spikes.shape[0]

    @property
    def shape(self) -> torch.Size:
        """[N, ...]: batch and neurons, without the time dimension."""
        return self.spikes.shape[1:]

    def to_dense(self) -> Tensor:
        """Spikes [T, N, ...]."""
        return self.spikes

    def flatten(self, start_dim: int = 1, end_dim: int = -1) -> "DenseTrain":
        """Flatten dimensions of [N, ...]; time is not counted as a dimension. nn.Flatten calls this."""
        start, end = (d + 1 if d >= 0 else d for d in (start_dim, end_dim))
        value = self.value.flatten(start_dim, end_dim)
        return DenseTrain(self.spikes.flatten(start, end), value, self.amplitude, self.radix)

    def firing_rate(self) -> Tensor:
        """Mean number of spikes per neuron and time step, a scalar tensor."""
        return self.spikes.mean()


@dataclass(frozen=True)
class EncodedInput:
    """Real-valued input [N, ...] that a tandem layer turns into currents over time_steps steps.

    Examples:
        >>> isinstance(reference.Encode(4)(torch.rand(2, 3)), reference.EncodedInput)
        True
    """

    value: Tensor
    time_steps: int
    mode: str

    def flatten(self, start_dim: int = 1, end_dim: int = -1) -> "EncodedInput":
        """Flatten dimensions of [N, ...]; nn.Flatten calls this."""
        return EncodedInput(self.value.flatten(start_dim, end_dim), self.time_steps, self.mode)


class Encode(nn.Module):
    """Mark real-valued input [N, ...] as a current: constant (at every time step) or impulse (at the first one).

    With mode "radix", numbers from 0 to 1, such as pixels, become radix spikes, of which 1 is the largest value. Of
    pixels p / 255 and T = 8 the value is p. No gradient reaches the numbers.

    Examples:
        >>> encoded = reference.Encode(4, "impulse")(torch.rand(2, 3))
        >>> encoded.time_steps, encoded.mode
        (4, 'impulse')
        >>> reference.Encode(8, "radix")(torch.tensor([[51 / 255]])).value
        tensor([[51.]])
    """

    def __init__(self, time_steps: int, mode: str = "constant") -> None:
        super().__init__()
        check_time_steps("Encode", time_steps)
        if mode not in ("constant", "impulse", "radix"):
            raise ValueError(f"Encode: mode must be 'constant', 'impulse' or 'radix', got {mode!r}")
        if mode == "radix":
            check_radix_steps("Encode", time_steps)
        self.time_steps = time_steps
        self.mode = mode

    def forward(self, x: Tensor) -> EncodedInput | DenseTrain:
        """Wrap x [N, ...] unchanged, or return its spikes."""
        if self.mode == "radix":
            if not ((x >= 0) & (x <= 1)).all():
                raise ValueError("Encode: input must be from 0 to 1 in mode 'radix', got other numbers")
            neuron = RadixIF(2**self.time_steps / (2**self.time_steps - 1))
            spikes, _ = neuron.discharge(x.detach(), self.time_steps)
            return DenseTrain(spikes, amplitude=1 / (2**self.time_steps - 1), radix=True)
        return EncodedInput(x, self.time_steps, self.mode)


class Decode(nn.Module):
    """Convert a spike train to spike counts [N, ...], the input of an ordinary nn.Linear.

    Examples:
        >>> train = reference.DenseTrain(torch.ones(4, 2, 3))
        >>> reference.Decode()(train)[0]
        tensor([4., 4., 4.])
    """

    def forward(self, x: Any) -> Tensor:
        """Return the value of a spike train, [N, ...], times its amplitude."""
        return _weighed(x, value_of(x))


def weighted_spikes(spikes: Tensor, radix: bool) -> Tensor:
    """Return what each spike [T, N, ...] weighs: 1, or 2^(T-t) at step t of radix spikes."""
    steps = spikes.shape[0]
    return torch.stack([s * 2.0 ** (steps - t) for t, s in enumerate(spikes, 1)]) if radix else spikes


def _weighed(x: Any, spikes: Tensor) -> Tensor:
    """Return weighted spikes of a train, or their sum, times the amplitude."""
    return spikes if x.amplitude == 1 else x.amplitude * spikes


def _weighed_spikes(x: Any) -> Tensor:
    """Return the spikes of a train [T, N, ...] times what each of them weighs in the next layer."""
    return _weighed(x, weighted_spikes(x.to_dense(), is_radix(x)))


def value_of(x: Any) -> Tensor:
    """Return what the next layer reads of a train: its value or, of a train without radix spikes, its count."""
    value: Tensor = x.value if is_radix(x) else x.count
    return value


def is_radix(x: Any) -> bool:
    """Return whether a train, or a real input, is a train of radix spikes."""
    return getattr(x, "radix", False)


def binary_digits(value: Tensor, time_steps: int) -> Tensor:
    """Return the radix spikes [T, N, ...] of whole numbers below 2^T, [N, ...]."""
    whole = value.to(torch.int64)
    return torch.stack([whole >> (time_steps - t) & 1 for t in range(1, time_steps + 1)]).to(value.dtype)


def _check_neuron(name: str, neuron: Neuron, *inputs: Any) -> None:
    """Raise a ValueError if one-phase neurons read radix spikes, or radix neurons constant input."""
    if neuron.radix and any(getattr(x, "mode", None) == "constant" for x in inputs):
        raise ValueError(
            f"{name}: input of {type(neuron).__name__} neurons must be encoded with mode 'impulse' or 'radix', since "
            "constant input adds up to T times its value, got 'constant'"
        )
    if not neuron.two_phase and any(map(is_radix, inputs)):
        raise ValueError(
            f"{name}: neuron must wait for all time steps to read radix spikes, as RadixIF(...) and "
            f"IF(two_phase=True) do, got {neuron}"
        )


def _in_units(log_threshold: Tensor | None, v: Tensor | None, currents: Sequence[Tensor], levels: int) -> Drive:
    """Divide pre-activation and currents by exp(log_threshold), so that neurons with a fixed threshold follow it.

    As in LSQ (Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153, section 2.2), its gradient
    is divided by sqrt(neurons per sample * levels).
    """
    if log_threshold is None:
        return v, currents
    if v is not None:
        slope = log_threshold.new_tensor(1 / math.sqrt(math.prod(v.shape[1:]) * levels))
        v = v / torch.exp(replace_value(log_threshold, log_threshold, slope))
    with torch.no_grad():
        return v, [x / torch.exp(log_threshold) for x in currents]


class _TandemLayer(nn.Module):
    """Apply the tandem rule to a weight layer, the next class in the method resolution order."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    log_threshold: nn.Parameter | None
    norm_class: type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]
    dims_behind: int  # dimensions behind the outputs
    output_dim = 0  # of the weight; if it is not 0, it holds the output channels of one group
    groups: int

    def __init__(
        self,
        *args: Any,
        norm: str | None = None,
        neuron: Neuron = IF(),
        form: str = "folded",
        learn_threshold: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if norm not in (None, "batch"):
            raise ValueError(f"{type(self).__name__}: norm must be None or 'batch', got {norm!r}")
        if form not in ("loop", "folded"):
            raise ValueError(f"{type(self).__name__}: form must be 'loop' or 'folded', got {form!r}")
        w = self.weight
        outputs = w.shape[self.output_dim] * (self.groups if self.output_dim else 1)
        self.norm = self.norm_class(outputs, device=w.device, dtype=w.dtype) if norm else None
        self.neuron = neuron
        self.form = form
        self.register_parameter("log_threshold", nn.Parameter(w.new_zeros(())) if learn_threshold else None)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the weight layer's product: x [N, ...] -> [N, ...]. Here a convolution, after any padding_mode."""
        out: Tensor = self._conv_forward(x, weight, bias)  # type: ignore[operator]  # of nn.Conv1d and nn.Conv2d
        return out

    def forward(self, x: Any) -> DenseTrain:
        """Process an EncodedInput or a spike train (anything with to_dense(), count, time_steps and amplitude).

        A train of radix spikes has radix and value, too.
        """
        if isinstance(x, Tensor):
            name = type(self).__name__
            raise TypeError(f"{name}: input must be spikes, got a Tensor; put Encode(time_steps) in front")
        _check_neuron(type(self).__name__, self.neuron, x)
        return _fire(self.neuron, x.time_steps, *self.drive(x))

    def drive(self, x: Any, neuron: Neuron | None = None) -> Drive:
        """Return the ANN's pre-activation (None if no gradient is needed) and the current of every time step.

        neuron: the neurons that these drive, if not the layer's own. The bias enters at every step, a T-th each time;
        for neurons with radix it enters once, so that the sum does not depend on T. In training with a norm, two-phase
        neurons take v itself.
        """
        neuron = self.neuron if neuron is None else neuron
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        time_steps: int = x.time_steps
        v = None
        if self.norm is not None and self.norm.training:
            # The ANN normalises with the batch statistics, and this call updates the running statistics.
            v = self.norm(self.product(self._ann_input(x), weight, bias))
        if self.norm is not None:
            # The SNN, and in eval mode the ANN too, folds the running statistics into weight and bias.
            weight, bias = self._fold(self.norm)
        if v is None and torch.is_grad_enabled():
            v = self.product(self._ann_input(x), weight, bias)
        currents: Sequence[Tensor]
        with torch.no_grad():
            if neuron.two_phase and self.norm is not None and self.norm.training:
                assert v is not None
                currents = [torch.zeros_like(v)] * (time_steps - 1) + [v.detach()]
            elif bias is None or not neuron.radix:
                currents = self._currents(x, weight, None if bias is None else bias / time_steps)
            else:
                *others, last = self._currents(x, weight, None)
                currents = [*others, last + bias.view(-1, *[1] * self.dims_behind)]
        return _in_units(self.log_threshold, v, currents, neuron.levels(time_steps))

    def _ann_input(self, x: Any) -> Tensor:
        """Return the input of the ANN layer: the SNN layer's input summed over time."""
        if not hasattr(x, "mode"):
            return _weighed(x, value_of(x))
        value: Tensor = x.value
        return x.time_steps * value if x.mode == "constant" else value

    def _fold(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
        """Fold the norm, with its running statistics, into weight and bias; differentiable."""
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"{type(self).__name__}: norm must keep running statistics, got none")
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shifted = -norm.running_mean if self.bias is None else self.bias - norm.running_mean
        if self.output_dim:
            inputs, outputs, *kernel = self.weight.shape
            grouped = self.weight.view(self.groups, inputs // self.groups, outputs, *kernel)
            weight = grouped * gain.view(self.groups, 1, outputs, *[1] * len(kernel))
            return weight.view_as(self.weight), shifted * gain + norm.bias
        return self.weight * gain.reshape(-1, *[1] * (self.weight.dim() - 1)), shifted * gain + norm.bias

    def _currents(self, x: Any, weight: Tensor, bias: Tensor | None) -> Sequence[Tensor]:
        """Return the input current of each time step; bias is the bias per step."""
        if hasattr(x, "mode"):
            first = self.product(x.value, weight, bias)
            rest = first if x.mode == "constant" else self.product(torch.zeros_like(x.value), weight, bias)
            return [first] + [rest] * (x.time_steps - 1)
        spikes = _weighed_spikes(x)
        if self.form == "loop":
            return [self.product(s, weight, bias) for s in spikes]
        return self.product(spikes.flatten(0, 1), weight, bias).chunk(x.time_steps)


def _fire(neuron: Neuron, time_steps: int, v: Tensor | None, currents: Sequence[Tensor]) -> DenseTrain:
    """Fire neurons driven by currents whose sum is v; the value carries the gradient of the ANN."""
    spikes, _ = neuron_loop(currents, neuron)
    train = DenseTrain(spikes, amplitude=neuron.amplitude_at(time_steps), radix=neuron.radix)
    if v is not None:
        train.value = couple(v, train.value, time_steps, neuron, neuron.upper(time_steps))
    return train


class TandemConv2d(_TandemLayer, nn.Conv2d):  # type: ignore[misc]  # forward: spike trains in and out, not tensors
    """Convolution, optional batch norm and spiking neurons, trained by the tandem rule.

    The constructor takes the arguments of nn.Conv2d, and norm (None, or "batch" for an nn.BatchNorm2d), neuron,
    learn_threshold (multiply the threshold by exp(log_threshold), a parameter) and form: "loop" for one convolution per
    time step, "folded" for one with time folded into the batch.

    Examples:
        >>> fast = TandemConv2d(1, 4, 3)
        >>> slow = reference.TandemConv2d(1, 4, 3)
        >>> _ = slow.load_state_dict(fast.state_dict())
        >>> x = torch.rand(2, 1, 6, 6)
        >>> slow(reference.Encode(8)(x)).spikes.shape
        torch.Size([8, 2, 4, 4, 4])
        >>> torch.equal(slow(reference.Encode(8)(x)).count, fast(Encode(8)(x)).count)
        True
    """

    dims_behind = 2
    norm_class = nn.BatchNorm2d


class TandemLinear(_TandemLayer, nn.Linear):  # type: ignore[misc]  # as above
    """Linear layer, optional batch norm (nn.BatchNorm1d) and spiking neurons; otherwise as TandemConv2d.

    Examples:
        >>> layer = reference.TandemLinear(20, 5)
        >>> layer(reference.Encode(8)(torch.rand(2, 20))).spikes.shape
        torch.Size([8, 2, 5])
    """

    dims_behind = 0
    norm_class = nn.BatchNorm1d

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the matrix product: x [N, ..., F] -> [N, ..., O]."""
        return F.linear(x, weight, bias)


class TandemConv1d(_TandemLayer, nn.Conv1d):  # type: ignore[misc]  # as above
    """Convolution of [N, C, L], optional batch norm (nn.BatchNorm1d) and spiking neurons; otherwise as TandemConv2d.

    Examples:
        >>> layer = reference.TandemConv1d(2, 4, kernel_size=5)
        >>> layer(reference.Encode(8)(torch.rand(3, 2, 100))).count.shape
        torch.Size([3, 4, 96])
    """

    dims_behind = 1
    norm_class = nn.BatchNorm1d


class TandemConv3d(_TandemLayer, nn.Conv3d):  # type: ignore[misc]  # as above
    """Convolution of [N, C, D, H, W], optional batch norm (nn.BatchNorm3d) and spiking neurons; as TandemConv2d.

    Examples:
        >>> layer = reference.TandemConv3d(2, 4, 3)
        >>> layer(reference.Encode(8)(torch.rand(3, 2, 4, 5, 6))).count.shape
        torch.Size([3, 4, 2, 3, 4])
    """

    dims_behind = 3
    norm_class = nn.BatchNorm3d


class TandemConvTranspose2d(_TandemLayer, nn.ConvTranspose2d):  # type: ignore[misc]  # as above
    """Transposed convolution, optional batch norm and spiking neurons; otherwise as TandemConv2d.

    Examples:
        >>> layer = reference.TandemConvTranspose2d(3, 8, 2, stride=2)
        >>> layer(reference.Encode(8)(torch.rand(2, 3, 4, 4))).count.shape
        torch.Size([2, 8, 8, 8])
    """

    dims_behind = 2
    norm_class = nn.BatchNorm2d
    output_dim = 1

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the transposed convolution: x [N, C, H, W] -> [N, O, Ho, Wo]."""
        geometry: Any = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return F.conv_transpose2d(x, weight, bias, *geometry)


class TandemAdd(nn.Module):
    """Neurons driven by the summed currents of several branches: tandem layers or nn.Identity, with one input each.

    Examples:
        >>> join = reference.TandemAdd(reference.TandemLinear(3, 3), nn.Identity())
        >>> train = reference.DenseTrain(torch.ones(4, 2, 3))
        >>> join(train, train).count.shape
        torch.Size([2, 3])
    """

    log_threshold: nn.Parameter | None

    def __init__(self, *branches: nn.Module, neuron: Neuron = IF(), learn_threshold: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.neuron = neuron
        like = next((p for p in self.parameters()), torch.empty(0))
        self.register_parameter("log_threshold", nn.Parameter(like.new_zeros(())) if learn_threshold else None)

    def forward(self, *inputs: Any) -> DenseTrain:
        """Add up the branches, with one spike train each."""
        _check_neuron("TandemAdd", self.neuron, *inputs)
        drives = []
        for branch, x in zip(self.branches, inputs, strict=True):
            if isinstance(branch, _TandemLayer):
                drives.append(branch.drive(x, self.neuron))
            else:
                drives.append((_weighed(x, value_of(x)), _weighed_spikes(x).unbind(0)))
        pre_activations, currents = zip(*drives, strict=True)
        v = None if any(v is None for v in pre_activations) else reduce(torch.add, pre_activations)
        steps = [reduce(torch.add, branches) for branches in zip(*currents, strict=True)]
        time_steps = inputs[0].time_steps
        drive = _in_units(self.log_threshold, v, steps, self.neuron.levels(time_steps))
        return _fire(self.neuron, time_steps, *drive)


class TandemNeurons(nn.Module):
    """Neurons whose input is a real value [N, C, ...]: its T-th part in every step, or all at once if they wait.

    With ``signed`` there are two neurons for each value v, side by side, for v and -v. Channels lie along dimension 1,
    or along the last one with ``features``.

    Examples:
        >>> reference.TandemNeurons(4)(torch.tensor([[0.0, 2.0, 9.0]])).count
        tensor([[0., 2., 4.]])
    """

    def __init__(self, time_steps: int, neuron: Neuron = IF(), signed: bool = False, features: bool = False) -> None:
        super().__init__()
        check_time_steps("TandemNeurons", time_steps)
        self.time_steps, self.neuron, self.signed = time_steps, neuron, signed
        self.dim = -1 if features else 1

    def forward(self, x: Tensor) -> DenseTrain:
        """Return the spikes of the neurons that x [N, C, ...] drives."""
        steps, dim = self.time_steps, self.dim % x.dim()
        v = torch.stack([x, -x], dim + 1).flatten(dim, dim + 1) if self.signed else x
        with torch.no_grad():
            waits = self.neuron.two_phase
            currents = [torch.zeros_like(v)] * (steps - 1) + [v] if waits else [v / steps] * steps
        return _fire(self.neuron, steps, v if torch.is_grad_enabled() else None, currents)


class TandemDropout(nn.Dropout):
    """Dropout with one mask for the spikes of all time steps and for their value; spikes weigh 1 / (1 - p).

    Examples:
        >>> reference.TandemDropout(0.5)(reference.DenseTrain(torch.ones(4, 2, 3))).amplitude
        2.0
    """

    def forward(self, x: Any) -> DenseTrain:  # type: ignore[override]
        """Drop neurons of a spike train."""
        if not self.training:
            train: DenseTrain = x
            return train
        value = value_of(x)
        mask = (torch.rand(self.mask_shape(x.shape)) >= self.p).to(value.dtype)
        amplitude = x.amplitude if self.p == 1 else x.amplitude / (1 - self.p)
        return DenseTrain(x.to_dense() * mask, value * mask, amplitude, is_radix(x))

    def mask_shape(self, shape: torch.Size) -> Sequence[int]:
        """Return the shape of the mask for neurons [N, ...]."""
        return shape


class TandemDropout2d(TandemDropout):
    """Dropout of whole channels: one draw per channel.

    Examples:
        >>> reference.TandemDropout2d(0.5)(reference.DenseTrain(torch.ones(4, 2, 3, 5, 5))).amplitude
        2.0
    """

    def mask_shape(self, shape: torch.Size) -> Sequence[int]:
        """Return the shape of the mask for neurons [N, C, H, W]."""
        return (*shape[:2], 1, 1)
