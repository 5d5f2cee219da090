"""The branches of a sum that drives neurons, without a gradient."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..neuron import Neuron
from ..ops.integrate_and_fire import discharge
from ..spike_train import SpikeTrain
from .firing import Firing
from .synapses import Synapses
from .weight_cache import SpikingWeights


class Summands:
    """Products and identities whose currents add up.

    One product drives the neurons, of the branch with the most inputs per neuron; all others add to its currents,
    products in their order before identities. Two-phase neurons take what all time steps bring at once.
    """

    def __init__(self, neuron: Neuron, engine: str, time_steps: int, dtype: torch.dtype) -> None:
        self.neuron, self.engine, self.time_steps, self.dtype = neuron, engine, time_steps, dtype
        self.products: list[tuple[Synapses, SpikeTrain, SpikingWeights]] = []
        self.identities: list[tuple[SpikeTrain, Tensor | None]] = []
        """Spikes and the amplitude of each, [1], None for 1."""

    def fire(self, state: Tensor | None, want_state: bool) -> tuple[Tensor, Tensor]:
        """Return the bits and the neurons' final state; ``state`` continues an earlier call."""
        two_phase, steps = self.neuron.two_phase, self.time_steps
        if not self.products:
            added = self._currents([])
            if two_phase:
                return first_two(discharge(added, steps, self.neuron, False, want_state))
            options: dict[str, Any] = {"want_sum": False, "want_state": want_state}
            options |= {"mode": "series", "neuron": self.neuron}
            return first_two(ops.integrate_and_fire.trusted(added, steps, None, state, **options))
        sizes = [weights.kernel.weight[0].numel() for _, _, weights in self.products]
        largest = sizes.index(max(sizes))
        synapses, x, weights = self.products[largest]
        others = [*self.products[:largest], *self.products[largest + 1 :]]
        if two_phase and (want_state or not self.neuron.radix):
            v = synapses.count_product(x, weights) + self._currents(others)
            return first_two(discharge(v, steps, self.neuron, False, want_state))
        firing = Firing(self.neuron, self.engine, *self._joined(others, synapses.outputs))
        return first_two(synapses.fire(x, weights, firing, state=state, want_state=want_state))

    def _joined(self, others: list[Any], outputs: int) -> tuple[Tensor, Tensor | None]:
        """Return what joins a product: currents, or the spikes of a single identity and their amplitude, [O]."""
        if others or len(self.identities) > 1 or not self._fits(self.identities[0][0]):
            return self._currents(others), None
        ((x, amplitude),) = self.identities
        return x.bits, None if amplitude is None else amplitude.to(self.dtype).expand(outputs)

    def _fits(self, x: SpikeTrain) -> bool:
        """Return whether the neurons read such bits as they are."""
        return x.code.radix == self.neuron.radix

    def _currents(self, products: list[tuple[Synapses, SpikeTrain, SpikingWeights]]) -> Tensor:
        """Return the currents of some products and of all identities; for two-phase neurons of all steps at once."""
        of_product, of_identity = Synapses.step_product, self._steps
        if self.neuron.two_phase:
            of_product, of_identity = Synapses.count_product, self._value
        currents = [of_product(*product) for product in products]
        for x, amplitude in self.identities:
            current = of_identity(x)
            currents.append(current if amplitude is None else current * amplitude)
        return functools.reduce(torch.add, currents)

    def _steps(self, x: SpikeTrain) -> Tensor:
        return ops.unpack_spikes.trusted(x.bits, self.time_steps, self.dtype)

    def _value(self, x: SpikeTrain) -> Tensor:
        return x.value.to(self.dtype)


def first_two(outputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return bits and state of (bits, sum, state)."""
    return outputs[0], outputs[2]
