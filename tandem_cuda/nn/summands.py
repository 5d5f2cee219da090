"""The branches of a sum that drives neurons, without a gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import ops
from ..neuron import Neuron
from ..ops.integrate_and_fire import discharge
from ..spike_train import SpikeTrain
from .firing import Firing
from .synapses import Synapses
from .weight_cache import SpikingWeights

Product = tuple[Synapses, int, SpikingWeights]
"""A product with the spikes of an input, which its place tells."""
Trains = Sequence[SpikeTrain]
Current = Callable[[Trains], Tensor]
Fire = Callable[[Trains, Tensor | None, bool], tuple[Tensor, Tensor]]


class Summands:
    """Products and identities whose currents add up.

    One product drives the neurons, of the branch with the most inputs per neuron; all others add to its currents,
    products in their order before identities. Two-phase neurons take what all time steps bring at once.
    """

    def __init__(self, neuron: Neuron, engine: str, time_steps: int, dtype: torch.dtype) -> None:
        self.neuron, self.engine, self.time_steps, self.dtype = neuron, engine, time_steps, dtype
        self.products: list[Product] = []
        self.identities: list[tuple[int, Tensor | None]] = []
        """Inputs, and the amplitude of their spikes, [1], None for 1."""

    def prepared(self, direct: bool, inputs: Trains) -> Fire:
        """Return a function that returns the bits and the neurons' final state, for trains like ``inputs``.

        Its arguments are the trains, ``state``, which continues an earlier call, and ``want_state``. With ``direct`` it
        calls operators directly.
        """
        neuron, products = self.neuron, [*self.products]
        if not products:
            return self._fired_by(self._sum_of(direct, inputs, products))
        sizes = [weights.kernel.weight[0].numel() for _, _, weights in products]
        synapses, main, weights = products.pop(sizes.index(max(sizes)))
        others = self._sum_of(direct, inputs, products)
        at_once = self._fired_by(lambda inputs: _sum(synapses.count_product(inputs[main], weights), others(inputs)))
        if neuron.two_phase and not neuron.radix:
            return at_once
        fire = synapses.prepared(direct, inputs[main], weights, Firing(neuron, self.engine))
        if not products and len(self.identities) == 1:
            ((other, amplitude),) = self.identities
            if inputs[other].code.radix == neuron.radix:  # neurons read these bits as they are
                factor = None if amplitude is None else amplitude.to(self.dtype).expand(synapses.outputs)
                return lambda inputs, *state: fire(inputs[main], *state, inputs[other].bits, factor)

        def fire_joined(inputs: Trains, state: Tensor | None, want_state: bool) -> tuple[Tensor, Tensor]:
            if neuron.radix and want_state:
                return at_once(inputs, state, want_state)
            return fire(inputs[main], state, want_state, others(inputs))

        return fire_joined

    def _fired_by(self, current: Current) -> Fire:
        """Return a function as ``prepared`` does, for neurons that a sum drives: of all steps at once, or of each."""
        neuron, steps = self.neuron, self.time_steps

        def fire(inputs: Trains, state: Tensor | None, want_state: bool) -> tuple[Tensor, Tensor]:
            if neuron.two_phase:
                return discharge(current(inputs), steps, neuron, want_state)
            bits, _, final = ops.integrate_and_fire.trusted(
                current(inputs), steps, None, state, mode="series", neuron=neuron, want_sum=False, want_state=want_state
            )
            return bits, final

        return fire

    def _sum_of(self, direct: bool, inputs: Trains, products: Sequence[Product]) -> Current:
        """Return the function for the currents of some products and of all identities.

        The currents are those of all steps at once for two-phase neurons, else of each step.
        """
        currents = [self._of_product(direct, inputs, *product) for product in products]
        currents += [functools.partial(self._of_identity, *identity) for identity in self.identities]
        return lambda inputs: functools.reduce(_sum, [current(inputs) for current in currents])

    def _of_product(
        self, direct: bool, inputs: Trains, synapses: Synapses, place: int, weights: SpikingWeights
    ) -> Current:
        if not self.neuron.two_phase:
            return lambda inputs: synapses.step_product(inputs[place], weights)
        sums = synapses.prepared_sums(direct, inputs[place], weights)
        return lambda inputs: sums(inputs[place])

    def _of_identity(self, place: int, amplitude: Tensor | None, inputs: Trains) -> Tensor:
        x = inputs[place]
        if self.neuron.two_phase:
            current = x.value.to(self.dtype)
        else:
            current = ops.unpack_spikes.trusted(x.bits, self.time_steps, self.dtype)
        return current if amplitude is None else current * amplitude


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of two tensors of the same shape."""
    if a.shape != b.shape:
        raise ValueError(f"TandemAdd: branches must agree in shape, got {list(a.shape)} and {list(b.shape)}")
    return a + b
