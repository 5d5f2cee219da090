"""Count a layer's synaptic operations and its ANN's multiply-accumulates, both over the synapses that exist.

A layer whose operations are counted has a method ``synapses_by_input()``. For each input of spikes it returns the
:class:`Synapses` that read them, or None if each spike reaches one neuron, as through an identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..spike_train import SpikeTrain
from .encode import EncodedInput
from .synapses import Synapses


def synapses_by_input(layer: nn.Module) -> Sequence[Synapses | None]:
    """Return the synapses that read each of a layer's inputs; empty for a module whose operations are not counted."""
    counted: Any = layer
    return counted.synapses_by_input() if hasattr(type(layer), "synapses_by_input") else []


def ann_macs(synapses: Synapses | None, x: SpikeTrain | EncodedInput, output: SpikeTrain) -> int:
    """Return the ANN's multiply-accumulates per sample; an identity or elementwise map has none."""
    inputs = (x.value if isinstance(x, EncodedInput) else x).shape
    return 0 if synapses is None else synapses.macs(inputs, output.shape) // synapses.per_weight


class Operations:
    """Counts synaptic operations. Keeps how many neurons each input of a layer reaches, which takes time to compute."""

    def __init__(self) -> None:
        self._fan_outs: dict[Any, Tensor] = {}

    def __call__(self, layer: Any, synapses: Synapses | None, counts: Tensor) -> Tensor:
        """Return spikes times the neurons that they reach, a scalar.

        Args:
            layer: anything that tells the layer's input from all other inputs.
            synapses: what reads the input.
            counts: the spikes of each neuron, [C, ...].
        """
        if synapses is None:
            return counts.sum()
        key = layer, counts.shape, counts.device, counts.dtype
        if key not in self._fan_outs:
            self._fan_outs[key] = synapses.fan_out(counts.shape, counts.device).to(counts.dtype)
        return (counts * self._fan_outs[key]).sum()
