"""Synapses: the products of a layer's weights with what arrives at it. They know sizes and hold no tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..neuron import Neuron
from ..ops import autocast, checks
from ..ops.geometry import pairs
from ..ops.integrate_and_fire import check_whole, discharge, total_bias
from ..ops.ordered_spikes import ordered_operator
from ..ops.product import ENGINES, LINEAR, check_trusted, radix_arguments
from ..spike_train import SpikeTrain
from .firing import Fired, Firing
from .sizes import SPIKES, Size, Value
from .weight_cache import Kernel, SpikingWeights

_NOTHING = torch.empty(0)
_OF_ONE_OPERATOR = ("fire", "radix_product", "ordered_spikes", "_counted", "to_output", "to_image")
"""Methods of synapses whose product with radix neurons is one operator, as a base class has them."""


class Synapses(ABC):
    """The connections of one layer, and its products. Sums and counts are [N, O, ...].

    Under ``torch.autocast`` the product with real input runs in the lower precision, like any convolution. Products
    with spikes keep the precision of the weights, because rounding could move a potential across the threshold.
    """

    name: str
    """The layer's class, for messages."""
    engine: str
    inputs: int
    """C or F, of all groups."""
    outputs: int
    """O."""
    groups: int = 1
    features: int = 1
    """The dimension of [N, O, ...] that has the outputs, 1 or -1."""
    per_weight: int = 1
    """How many synapses share a weight of the ANN."""
    is_linear: bool = False
    """Whether weights are [O, F]."""

    # -- sizes

    @abstractmethod
    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless [N, C, ...] is a shape that the layer reads."""

    def check_pairs(self, x: SpikeTrain) -> None:
        """Raise ValueError if the train's pairs lie along another dimension than the inputs of the weights."""
        if x.pair_dim not in (None, self.features) and len(x.shape) > 2:
            raise ValueError(
                f"{self.name}: pairs of its input must lie along dimension {self.features}, got pair_dim={x.pair_dim}; "
                f"put SpikeRearrange('pairs', {self.features}) before it"
            )

    @abstractmethod
    def out_size(self, x: Value) -> Value:
        """Return what is known about the output for spikes or encoded input; ValueError if they do not fit."""

    @abstractmethod
    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape [N, O, ...] of the neurons for an input of shape [N, C, ...]."""

    @property
    @abstractmethod
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape of an output's weights, [C/groups, kH, kW] or [F]."""

    def fan_out(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return the number of neurons that each input reaches, float64 in the shape [C, ...] of a sample.

        Computes one output channel per group and scales the result up.
        """
        ones = self.groups, *self.kernel_shape
        of_one = reached(lambda x, weight: self.dense_product(x, weight, None), shape, ones, device)
        return of_one * (self.outputs // self.groups)

    @abstractmethod
    def macs(self, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        """Return the products of a weight and a value per sample, for shapes [N, C, ...] and [N, O, ...].

        They are the synapses that ``fan_out`` counts: taps in the zero padding multiply nothing.
        """

    # -- the shape of weights

    def as_kernel(self, weight: Tensor) -> Tensor:
        """Convert a weight to [O, C/groups, ...] or [O, F], output channels first; differentiable."""
        return weight

    def for_images(self, weight: Tensor) -> Tensor:
        """Convert such a kernel to the shape that the products take; differentiable."""
        return weight

    def from_kernel(self, weight: Tensor) -> Tensor:
        """Convert a weight as the products take it to the shape that the layer stores."""
        return weight

    # -- products with real input

    def value_product(self, value: Tensor, kernel: Kernel, bias: Tensor | None = None) -> Tensor:
        """Return W * X + bias, or the integers * X of integer weights, which take no bias."""
        value, weight = self.checked_value(value, kernel.weight), kernel.weight
        if weight.dtype in checks.INTEGERS:
            return self.ordered_product(value, kernel)
        # Cast back: autocast may compute the product in a lower precision.
        return self.dense_product(value, weight, bias).to(weight.dtype)

    def checked_value(self, value: Tensor, weight: Tensor) -> Tensor:
        """Return real input in the dtype of the weights; TypeError or ValueError if it does not fit them."""
        dtype = torch.float32 if weight.dtype in checks.INTEGERS else weight.dtype
        checks.check_dtype(self.name, "weight", dtype)
        if autocast.is_on(value.device) and value.is_floating_point():
            value = value.to(dtype)  # layers before Encode may return a lower precision
        if value.dtype != dtype:
            raise TypeError(f"{self.name}: input must have the dtype of weight, {dtype}, got {value.dtype}")
        checks.check_same_device(self.name, "input", value, weight, "weight")
        self.check_value(value, weight)
        return value

    @abstractmethod
    def check_value(self, value: Tensor, weight: Tensor) -> None:
        """Raise ValueError if real input does not fit the weights."""

    @abstractmethod
    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute weight * x + bias for real x."""

    def ordered_product(self, x: Tensor, kernel: Kernel) -> Tensor:
        """Compute the kernel's integers * x for real x."""
        image, where = self._value_as_image(x)
        operands: dict[str, Any] = {"packed": kernel.packed, **kernel.full_precision()}
        return self.to_output(ops.ordered_product.trusted(image, kernel.weight, **where, **operands), x.shape)

    def ordered_spikes(self, x: Tensor, kernel: Kernel, time_steps: int, **drive: Any) -> Tensor:
        """Return the bits of the neurons that such products drive, given neuron, bias, scale and mode."""
        image, where = self._value_as_image(x)
        options: dict[str, Any] = {**where, "packed": kernel.packed, **drive}
        return self.to_output(ops.ordered_spikes.trusted(image, kernel.weight, time_steps, **options), x.shape)

    def ordered_arguments(
        self, x: Tensor, kernel: Kernel, time_steps: int, **drive: Any
    ) -> tuple[Callable[..., Tensor], tuple[Any, ...]] | None:
        """Return the operator of :meth:`ordered_spikes` and what it gets behind ``x``.

        None where inputs or results must be rearranged, or the product is more than that operator.
        """
        image, where = self._value_as_image(x)
        if image is not x or not self._is_one_operator():
            return None
        return ordered_operator(x, kernel.weight, time_steps, geometry=_geometry(where), packed=kernel.packed, **drive)

    # -- products with spikes

    def count_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        """Compute weight * count + bias."""
        return self._counted(x, weights)

    def radix_product(self, x: SpikeTrain, weights: SpikingWeights, firing: Firing) -> Tensor:
        """Return the bits of RadixIF neurons that such sums drive, without a gradient."""
        joined: dict[str, Any] = {"engine": firing.engine}
        if firing.added is not None:
            added = self.to_image(firing.added)
            joined["added"] = added if added.dtype == torch.uint8 else added.squeeze(0)
            joined["amplitude"] = firing.amplitude
        return self._counted(x, weights, neuron=firing.neuron, time_steps=x.time_steps, **joined)

    def prepared(
        self, direct: bool, x: SpikeTrain, weights: SpikingWeights, firing: Firing
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return :meth:`fire` without a sum, for trains like ``x``: they may differ in their sizes and spikes alone.

        The function takes a train, ``state``, ``want_state``, and perhaps ``added`` and ``amplitude`` of
        :class:`.Firing`; for RadixIF numbers in ``added`` are [N, O, ...]. It returns the bits and the state. With
        ``direct`` it runs one operator, if there is one that does all of this.
        """
        geometry, neuron, steps = self._geometry(x, weights) if direct else None, firing.neuron, x.time_steps
        constants = weights.kernel.weight, weights.kernel.packed, weights.scale, weights.bias
        operators, engine = torch.ops.tandem_cuda, firing.engine
        if geometry is not None and neuron.radix:
            radix = radix_arguments(constants, geometry, engine, steps if x.code.radix else 0, neuron, steps)

            def radix_product(x: Any, state: Any, want_state: bool, added: Any = None, amplitude: Any = None) -> Any:
                if want_state or state is not None:
                    raise ValueError(f"{self.name}: radix neurons need all time steps in one call")
                return operators.radix_product(x.bits, *radix, added, amplitude), _NOTHING

            return radix_product
        if geometry is not None and not neuron.two_phase:
            options = *geometry, steps, neuron.kind, neuron.parameters, ENGINES.index(engine), False

            def spiking_product(x: Any, state: Any, want_state: bool, added: Any = None, amplitude: Any = None) -> Any:
                arguments = *constants, state, *options, want_state, None, None, added, amplitude
                bits, _, after = operators.spiking_product(x.bits, None, *arguments)
                return bits, after

            return spiking_product

        def fire(x: Any, state: Any, want_state: bool, added: Any = None, amplitude: Any = None) -> Any:
            if neuron.radix and added is not None and added.dtype != torch.uint8:
                added = added.unsqueeze(0)
            joined = firing._replace(added=added, amplitude=amplitude)
            fired = self.fire(x, weights, joined, state=state, want_state=want_state)
            return fired.bits, fired.state

        return fire

    def prepared_sums(self, direct: bool, x: SpikeTrain, weights: SpikingWeights) -> Callable[[SpikeTrain], Tensor]:
        """Return :meth:`count_product` likewise."""
        geometry = self._geometry(x, weights) if direct else None
        if geometry is None:
            return partial(self.count_product, weights=weights)
        constants, radix = (weights.kernel.packed, weights.scale, weights.bias), x.time_steps if x.code.radix else 0
        options = weights.kernel.weight, *constants, *geometry, ENGINES.index(self.engine), None, None, radix
        return lambda x: torch.ops.tandem_cuda.count_product(x.bits, None, *options)

    def _geometry(self, x: SpikeTrain, weights: SpikingWeights) -> tuple[Any, ...] | None:
        """Return stride, padding, dilation and groups, or None if the products are more than one operator."""
        image, where = self._as_image(x)
        if image is not x or not self._is_one_operator():
            return None
        check_trusted(weights.kernel.weight, 2 if self.is_linear else 4, weights.scale)
        return _geometry(where)

    def _is_one_operator(self) -> bool:
        return all(getattr(type(self), name) is getattr(Synapses, name) for name in _OF_ONE_OPERATOR)

    def _counted(self, x: SpikeTrain, weights: SpikingWeights, **neurons: Any) -> Tensor:
        image, where = self._as_image(x)
        count = ops.count_linear if self.is_linear else ops.count_conv2d
        options: dict[str, Any] = {"engine": self.engine, **where, **weights.operands(), **neurons}
        options["count"] = image.carried_value
        if x.code.radix:
            options["radix"] = x.time_steps
        return self.to_output(count.trusted(image.bits, weights.kernel.weight, weights.bias, **options), x.shape)

    def step_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        """Compute weight * spikes + bias for every time step, [T, N, O, ...], without a gradient."""
        if self._counts_steps():
            steps = ops.unpack_spikes.trusted(x.bits, x.time_steps, torch.uint8).flatten(0, 1).unsqueeze(0)
            trains = SpikeTrain.unchecked(steps, 1, dtype=x.dtype, amplitude=x.amplitude)
            return torch.unflatten(self.count_product(trains, weights), 0, (x.time_steps, -1))
        image, where = self._as_image(x)
        options: dict[str, Any] = {**where, "packed": weights.kernel.packed, "scale": weights.scale}
        weight, bias = weights.kernel.weight, weights.bias
        return self.to_output(ops.step_product.trusted(image.bits, weight, x.time_steps, bias, **options), x.shape)

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
        """Drive neurons by the product with the spikes of every step; ``state`` continues an earlier call.

        The bias of the weights is for each of ``firing.neuron.shares(T)`` steps.
        """
        if firing.neuron.radix and not (want_sum or want_state):
            check_whole(self.name, state)
            return Fired(self.radix_product(x, weights, firing), _NOTHING, _NOTHING)
        if firing.neuron.two_phase:
            return self._fire_at_once(x, weights, firing, state, want_state)
        image, where = self._as_image(x)
        spiking = ops.spiking_linear if self.is_linear else ops.spiking_conv2d
        options: dict[str, Any] = {**where, "want_sum": want_sum, "want_state": want_state, **firing._asdict()}
        options |= {"count": image.carried_value, "time_steps": x.time_steps, **weights.operands()}
        options["state"] = None if state is None else self.to_image(state)
        if firing.added is not None:
            options["added"] = self.to_image(firing.added)
        bits, total, state = spiking.trusted(image.bits, weights.kernel.weight, weights.bias, **options)
        total = self.to_output(total, x.shape) if want_sum else total
        return Fired(self.to_output(bits, x.shape), total, self.to_output(state, x.shape) if want_state else state)

    def _fire_at_once(
        self,
        x: SpikeTrain,
        weights: SpikingWeights,
        firing: Firing,
        state: Tensor | None,
        want_state: bool,
    ) -> Fired:
        """Drive neurons that first integrate the input of all steps. The sum is returned in any case."""
        check_whole(self.name, state)
        neuron = firing.neuron
        bias = weights.bias if neuron.radix else total_bias(weights.bias, x.time_steps)
        v = self.count_product(x, weights._replace(bias=bias))
        if firing.added is not None:
            v = v + firing.values(v, self.features)
        return self.discharged(v, x.time_steps, neuron, want_state)

    def discharged(self, v: Tensor, steps: int, neuron: Neuron, want_state: bool = False) -> Fired:
        """Return the spikes of two-phase neurons that have integrated v, [N, O, ...]. The sum is v."""
        flat = self.features == -1 and v.dim() > 2  # the operator wants the neurons behind N
        current = v.flatten(0, -2) if flat else v
        bits, after = discharge(current, steps, neuron, want_state)
        if flat:
            bits, after = bits.view(len(bits), *v.shape), after.view(len(after), *v.shape) if want_state else after
        return Fired(bits, v, after)

    def _counts_steps(self) -> bool:
        """Return whether a step product is a count product whose samples are trains of one step each."""
        return self.engine == "dense"

    # -- what the operators read and return

    def _value_as_image(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return real input as the operators take it, and the arguments that say how weights move over it."""
        return x, {}

    def _as_image(self, x: SpikeTrain) -> tuple[SpikeTrain, dict[str, Any]]:
        """Do likewise with spikes."""
        return x, {}

    def to_output(self, y: Tensor, inputs: Sequence[int]) -> Tensor:
        """Convert an operator's result [..., N, O, ...] to this layer's output, for inputs of shape [N, C, ...]."""
        return y

    def to_image(self, y: Tensor) -> Tensor:
        """Convert neurons [..., N, O, ...] to the dimensions that an operator's result has."""
        return y


def _geometry(where: dict[str, Any]) -> tuple[Any, ...]:
    return LINEAR if not where else (*pairs(where["stride"], where["padding"], where["dilation"]), where["groups"])


class LinearSynapses(Synapses):
    """Every input reaches every output."""

    features = -1
    is_linear = True

    def __init__(self, layer: Any) -> None:
        self.name, self.engine = type(layer).__name__, layer.engine
        self.inputs, self.outputs = layer.in_features, layer.out_features
        self.per_weight = 1 if layer.wiring is None else layer.wiring.synapses_per_weight

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (self.inputs,)

    def check_shape(self, shape: Sequence[int]) -> None:
        if len(shape) < 2 or shape[-1] != self.inputs:
            raise ValueError(f"{self.name}: input must be [N, ..., {self.inputs}], got {list(shape)}")

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*shape[:-1], self.outputs)

    def out_size(self, x: Value) -> Value:
        if x.shape == ():
            raise ValueError(f"input must be [N, ..., F], got {x}")
        if x.last is not None:
            x.last.check("in_features", self.inputs)
        outputs = Size(self.outputs, True)
        if x.shape is None:
            return x._replace(kind=SPIKES, features=outputs)
        return x._replace(kind=SPIKES, shape=(*x.shape[:-1], outputs))

    def macs(self, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        return self.inputs * self.outputs * math.prod(outputs[1:-1])

    def check_value(self, value: Tensor, weight: Tensor) -> None:
        self.check_shape(value.shape)

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


def reached(
    product: Callable[[Tensor, Tensor], Tensor], shape: Sequence[int], kernel: Sequence[int], device: torch.device
) -> Tensor:
    """Compute the fan-out as the gradient of the summed outputs, with all weights set to one."""
    # Own hooks: otherwise activation checkpointing around the counted forward pass would expect these tensors again.
    kept = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.inference_mode(False), torch.enable_grad(), kept:
        ones = torch.ones(*kernel, dtype=torch.float64, device=device)
        sample = torch.zeros(1, *shape, dtype=torch.float64, device=device, requires_grad=True)
        (reached,) = torch.autograd.grad(product(sample, ones).sum(), sample)
    return reached[0]
