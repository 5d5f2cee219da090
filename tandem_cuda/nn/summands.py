"""The branches of a sum that drives neurons, without a gradient."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..neuron import Neuron
from ..ops.integrate_and_fire import discharge
from ..spike_train import SpikeTrain
from .firing import Firing
from .repeated import RadixCall
from .synapses import Synapses
from .weight_cache import SpikingWeights

Product = tuple[Synapses, SpikeTrain, SpikingWeights]
"""A product with spikes."""


class Summands:
    """Products and identities whose currents add up.

    One product drives the neurons, of the branch with the most inputs per neuron; all others add to its currents,
    products in their order before identities. Two-phase neurons take what all time steps bring at once.
    """

    def __init__(self, neuron: Neuron, engine: str, time_steps: int, dtype: torch.dtype) -> None:
        self.neuron, self.engine, self.time_steps, self.dtype = neuron, engine, time_steps, dtype
        self.products: list[Product] = []
        self.identities: list[tuple[SpikeTrain, Tensor | None]] = []
        """Spikes and the amplitude of each, [1], None for 1."""

    def radix_call(self, inputs: Sequence[SpikeTrain]) -> RadixCall | None:
        """Return how an operator fires these neurons, if that is so simple: two branches, of which one is a product."""
        if not (self.neuron.radix and len(self.products) + len(self.identities) == len(inputs) == 2 and self.products):
            return None
        (synapses, x, weights), others = self._largest()
        arguments = synapses.radix_arguments(x, weights, Firing(self.neuron, self.engine))
        main = 0 if inputs[0].bits is x.bits else 1
        if arguments is None or inputs[0].bits is inputs[1].bits:
            return None
        if others:
            ((of_other, _, its_weights),) = others
            return RadixCall(main, arguments, 1 - main, lambda other: of_other.count_product(other, its_weights))
        added, amplitude = self._joined([], synapses.outputs)
        return RadixCall(main, arguments, 1 - main, None, amplitude) if added is inputs[1 - main].bits else None

    def _largest(self) -> tuple[Product, list[Product]]:
        """Return the product with the most inputs per neuron, and all others."""
        sizes = [weights.kernel.weight[0].numel() for _, _, weights in self.products]
        at = sizes.index(max(sizes))
        return self.products[at], [*self.products[:at], *self.products[at + 1 :]]

    def fire(self, state: Tensor | None, want_state: bool) -> tuple[Tensor, Tensor]:
        """Return the bits and the neurons' final state; ``state`` continues an earlier call."""
        two_phase, steps = self.neuron.two_phase, self.time_steps
        if not self.products:
            added = self._currents([])
            if two_phase:
                return discharge(added, steps, self.neuron, want_state)
            options: dict[str, Any] = {"want_sum": False, "want_state": want_state}
            options |= {"mode": "series", "neuron": self.neuron}
            bits, _, final = ops.integrate_and_fire.trusted(added, steps, None, state, **options)
            return bits, final
        (synapses, x, weights), others = self._largest()
        if two_phase and (want_state or not self.neuron.radix):
            v = synapses.count_product(x, weights) + self._currents(others)
            return discharge(v, steps, self.neuron, want_state)
        firing = Firing(self.neuron, self.engine, *self._joined(others, synapses.outputs))
        fired = synapses.fire(x, weights, firing, state=state, want_state=want_state)
        return fired.bits, fired.state

    def _joined(self, others: list[Any], outputs: int) -> tuple[Tensor, Tensor | None]:
        """Return what joins a product: currents, or the spikes of a single identity and their amplitude, [O]."""
        # A single identity adds its bits, if the neurons read such bits as they are.
        if others or len(self.identities) > 1 or self.identities[0][0].code.radix != self.neuron.radix:
            currents = self._currents(others)
            return currents.unsqueeze(0) if self.neuron.radix else currents, None
        ((x, amplitude),) = self.identities
        return x.bits, None if amplitude is None else amplitude.to(self.dtype).expand(outputs)

    def _currents(self, products: list[Product]) -> Tensor:
        """Return the currents of some products and of all identities; for two-phase neurons of all steps at once."""
        at_once = self.neuron.two_phase
        currents = [
            synapses.count_product(x, weights) if at_once else synapses.step_product(x, weights)
            for synapses, x, weights in products
        ]
        for x, amplitude in self.identities:
            if at_once:
                current = x.value.to(self.dtype)
            else:
                current = ops.unpack_spikes.trusted(x.bits, self.time_steps, self.dtype)
            currents.append(current if amplitude is None else current * amplitude)
        return functools.reduce(torch.add, currents)
