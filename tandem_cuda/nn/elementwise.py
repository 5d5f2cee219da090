"""TandemElementwise: neurons that each read one neuron below, or the two neurons of a signed value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import ops
from ..neuron import IF, Neuron
from ..ops.geometry import Geometry
from ..ops.integrate_and_fire import total_bias
from ..spike_train import SpikeTrain
from . import schema
from .conv import TandemConv2d
from .convolution import Conv2dSynapses
from .coupling import needs_gradient
from .firing import Fired, Firing
from .sizes import SPIKES, Size, Value
from .synapses import Synapses
from .weight_cache import Kernel, SpikingWeights
from .wiring import Wiring


class TandemElementwise(TandemConv2d):
    """Neurons that each read the neuron below: what batch norm, a factor or an offset of spikes becomes.

    Their current is norm(a * s[t] + b / T), with a constant factor a and offset b, which :meth:`maps` sets. It is a
    depthwise convolution with 1 x 1 kernels, for neurons in any number of dimensions. As a branch of
    :class:`TandemAdd` it is an identity for spikes that nn.Identity cannot read: signed values, and inputs with an
    ``input_scale``.

    Args:
        in_channels: number of input channels or features: C, or 2 C if the inputs are signed values.
        out_channels: number of outputs: C, or 2 C if the outputs are signed values.
        groups: C.
        bias: must be False.
        device: device of the constants.
        dtype: dtype of the constants, float32 or float64.
        neuron: a neuron model, such as IF(...).
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``).
        of_features: whether inputs and outputs are features, along the last dimension, instead of channels.

    Shape:
        SpikeTrain [N, in_channels, ...] -> SpikeTrain [N, out_channels, ...]; with ``of_features``
        SpikeTrain [N, ..., in_channels] -> SpikeTrain [N, ..., out_channels].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: a wrong number of channels.

    Examples:
        >>> ann = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
        >>> snn = convert(ann, time_steps=8, example=torch.rand(1, 4))  # batch norm after a ReLU: neurons of its own
        >>> type(snn.snn.get_submodule("2")).__name__
        'TandemElementwise'
    """

    SETTINGS: ClassVar = {"in_channels": schema.whole(0), "out_channels": schema.whole(0), "groups": schema.whole(1)}
    FLAGS: ClassVar = ("of_features",)
    of_features = False
    synapses_per_weight = 1  # the ANN has no such weights

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        bias: bool = False,
        device: object = None,
        dtype: object = None,
        *,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
        of_features: bool = False,
    ) -> None:
        if bias:
            raise ValueError("TandemElementwise: bias must be False, got True")
        options: dict[str, Any] = {"neuron": neuron, "engine": engine, "learn_threshold": learn_threshold}
        super().__init__(in_channels, out_channels, 1, groups=groups, bias=False, device=device, dtype=dtype, **options)
        for name, number in (("in_channels", in_channels), ("out_channels", out_channels)):
            if number not in (groups, 2 * groups):
                raise ValueError(
                    f"TandemElementwise: {name} must be groups or 2 * groups, {groups} or {2 * groups}, got {number}"
                )
        weight = self.weight.detach()
        del self.weight, self.bias
        self.register_buffer("weight", torch.ones_like(weight), persistent=False)
        self.register_buffer("bias", None, persistent=False)
        self.factor: float | Tensor = 1.0
        self.offset: float | Tensor = 0.0
        self.of_features = of_features

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | ({"of_features": True} if self.of_features else {})

    def maps(self, factor: float | Tensor, offset: float | Tensor, like: Tensor) -> None:
        """Set the constants, on the device of ``like`` and in its dtype.

        Each is a number or one for each channel, float64 [C]. Where there are two neurons for each value, they are for
        its two signs.
        """
        self.wiring = Wiring(1, self.in_channels > self.groups, self.out_channels > self.groups)
        self.factor, self.offset = factor, offset
        self.maps_on(like)

    def maps_on(self, like: Tensor) -> None:
        """Round the constants to the dtype of ``like``, on its device."""
        one = torch.ones(self.groups, dtype=torch.float64)
        factors, offsets = (one * (x.cpu() if isinstance(x, Tensor) else x) for x in (self.factor, self.offset))
        self.weight = factors.to(like).view(-1, 1, 1, 1)
        self.bias = offsets.to(like) if offsets.any() else None

    @property
    def fires_pairs(self) -> bool:
        return self.out_channels > self.groups

    @property
    def synapses(self) -> Any:  # not of images if of_features
        return FeaturewiseSynapses(self) if self.of_features else ElementwiseSynapses(self)


class ElementwiseSynapses(Conv2dSynapses):
    """Each output reads one input, or a pair of inputs."""

    def check_shape(self, shape: Sequence[int]) -> None:
        halves = self.inputs == 2 * self.groups  # the products get one input of each pair
        if len(shape) < 2 or (shape[1] != self.inputs and not (halves and shape[1] == self.groups)):
            raise ValueError(f"TandemElementwise: input must be [N, {self.inputs}, ...], got {list(shape)}")

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        self.check_shape(shape)
        return (shape[0], self.outputs, *shape[2:])

    def out_size(self, x: Value) -> Value:
        if x.shape is None or not x.shape:
            return x._replace(kind=SPIKES, features=None)  # channels may be the last dimension, or not
        x.shape[0].check("in_channels", self.inputs)
        return x._replace(kind=SPIKES, shape=(Size(self.outputs, True), *x.shape[1:]))

    def macs(self, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        return 0

    def image(self) -> tuple[Any, Geometry]:
        return self.to_image, Geometry((1, 1), (0, 0), (1, 1))

    def to_image(self, y: Tensor) -> Tensor:
        size = math.prod(y.shape[3:])  # -1 has none in an empty batch
        return y if y.dim() == 5 else y.reshape(*y.shape[:3], size, 1)

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = super().dense_product(x.reshape(*x.shape[:2], -1, 1), weight, bias)
        return y.reshape(len(y), -1, *x.shape[2:])

    def _counts_steps(self) -> bool:
        return True

    def count_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        shape = self.output_shape(x.shape)
        if self.inputs == self.groups or self._has_kernel(x, weights):
            return super().count_product(x, weights).reshape(shape)
        # Elsewhere, operators take the two inputs of an output for a group of two channels, which is much slower.
        first, second = weights.kernel.weight.view(self.groups, -1, 2).unbind(2)
        count = x.value.movedim(1, -1).unsqueeze(-1)  # channels are innermost in memory
        v = (count[..., ::2, :] * first + count[..., 1::2, :] * second).flatten(-2)
        v = v if weights.scale is None else v * weights.scale
        return (v if weights.bias is None else v + weights.bias).movedim(-1, 1)

    def _has_kernel(self, x: SpikeTrain, weights: SpikingWeights) -> bool:
        """Return whether an operator has a kernel for pairs of inputs: on the CPU, without a gradient."""
        on_cpu = self.engine != "dense" and x.bits.device.type == "cpu"
        return on_cpu and not needs_gradient(x.carried_value, weights.scale, weights.bias)

    def fire(
        self,
        x: SpikeTrain,
        weights: SpikingWeights,
        firing: Firing,
        *,
        want_sum: bool = False,
        state: Tensor | None = None,
        want_state: bool = False,
    ) -> Fired:
        shape, steps = self.output_shape(x.shape), x.time_steps
        at_once = firing.neuron.radix and not (want_sum or want_state) and self._has_kernel(x, weights)
        if self.inputs == self.groups or at_once:
            bits, total, state = super().fire(x, weights, firing, want_sum=want_sum, state=state, want_state=want_state)
            return Fired(bits.reshape(len(bits), *shape), total.reshape(shape) if want_sum else total, state)
        if firing.neuron.two_phase:
            return self._fire_at_once(x, weights, firing, state, want_state)
        total = x.value.new_empty(0)
        if want_sum:
            total = self.count_product(x, weights._replace(bias=total_bias(weights.bias, steps)))
        # The product takes one input of each pair; the spikes of the other input are added to its currents.
        weight = weights.kernel.weight
        second = weight[:, 1].flatten()
        amplitude: Tensor | None = second if weights.scale is None else second * weights.scale
        added = x.bits.movedim(2, -1)[..., 1::2]
        added = (added if self.outputs == self.groups else added.repeat_interleave(2, -1)).movedim(-1, 2)
        other = firing.added
        if other is not None:
            other = other if other.is_floating_point() else as_currents(other, firing.amplitude, steps)
            added, amplitude = as_currents(added, amplitude, steps) + other, None
        halves = x.detach().rearranged(lambda y: y[:, :, ::2])
        one = weights._replace(kernel=Kernel(weight[:, :1]))
        joined = firing._replace(added=added, amplitude=amplitude)
        bits, _, state = super().fire(halves, one, joined, state=state, want_state=want_state)
        return Fired(bits.reshape(len(bits), *shape), total, state)


class FeaturewiseSynapses(Synapses):
    """Each output reads one feature, or a pair of them: the synapses of channels, with features as channels."""

    features = -1

    def __init__(self, layer: Any) -> None:
        self.of_channels = ElementwiseSynapses(layer)
        self.name, self.engine, self.per_weight = type(layer).__name__, layer.engine, self.of_channels.per_weight
        self.inputs, self.outputs, self.groups = layer.in_channels, layer.out_channels, layer.groups

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return self.of_channels.kernel_shape

    def check_shape(self, shape: Sequence[int]) -> None:
        if len(shape) < 2 or shape[-1] != self.inputs:
            raise ValueError(f"{self.name}: input must be [N, ..., {self.inputs}], got {list(shape)}")

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        self.check_shape(shape)
        return (*shape[:-1], self.outputs)

    def out_size(self, x: Value) -> Value:
        if x.last is not None:
            x.last.check("in_channels", self.inputs)
        outputs = Size(self.outputs, True)
        if not x.shape:
            return x._replace(kind=SPIKES, features=outputs)
        return x._replace(kind=SPIKES, shape=(*x.shape[:-1], outputs))

    def macs(self, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        return 0

    def check_value(self, value: Tensor, weight: Tensor) -> None:
        self.check_shape(value.shape)

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.of_channels.dense_product(x.movedim(-1, 1), weight, bias).movedim(1, -1)

    def count_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        return self.of_channels.count_product(self._as_channels(x), weights).movedim(1, -1)

    def fire(self, x: SpikeTrain, weights: SpikingWeights, firing: Firing, **how: Any) -> Fired:
        added = None if firing.added is None else firing.added.movedim(-1, 2)
        fired = self.of_channels.fire(self._as_channels(x), weights, firing._replace(added=added), **how)
        total = fired.sum.movedim(1, -1) if how.get("want_sum", False) else fired.sum
        return Fired(fired.bits.movedim(2, -1), total, fired.state)

    def _as_channels(self, x: SpikeTrain) -> SpikeTrain:
        self.check_shape(x.shape)
        return x.rearranged(lambda y: y.movedim(-1, 2))

    def _counts_steps(self) -> bool:
        return True


def as_currents(bits: Tensor, amplitude: Tensor | None, time_steps: int) -> Tensor:
    """Return the currents [T, N, O, ...] of spikes that weigh ``amplitude``, [O]."""
    dtype = torch.float32 if amplitude is None else amplitude.dtype
    spikes = ops.unpack_spikes.trusted(bits, time_steps, dtype)
    return spikes if amplitude is None else spikes * amplitude.view(-1, *[1] * (spikes.dim() - 3))
