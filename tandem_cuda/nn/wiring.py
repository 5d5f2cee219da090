"""How several neurons of a converted network share the weights of the ANN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Wiring:
    """Which neurons of a converted network share a weight. A layer that a user makes has None.

    A layer's ``in_channels``, ``out_channels``, ``in_features`` and ``out_features`` count these neurons.
    """

    windows: int = 1
    """Inputs side by side, as :class:`SpikeWindows` arranges them."""
    paired_inputs: bool = False
    """Inputs 2i and 2i + 1 are the positive and the negative part of one value."""
    paired_outputs: bool = False
    """Outputs 2i and 2i + 1 are neurons for v and -v. So no ReLU is needed: the difference of their counts is the
    rounded v."""
    in_weight: int = 1
    """For frozen layers: how many entries of the stored weight belong to one weight of the ANN."""

    in_pairs: bool = False
    """Outputs 2i and 2i + 1 are neurons for v and -v, and the stored weight already holds both."""
    slopes: str = ""
    """With paired outputs, whether the layer has a tensor ``slope``, the slope of the activation below zero
    (:mod:`.leak`): "constant", or "learned" for a parameter of the ANN; "" if it has none."""
    folds: tuple[int, ...] = ()
    """The values i whose slope is a negative constant: spikes of neuron 2i + 1 are counted as spikes of neuron 2i."""

    @property
    def synapses_per_weight(self) -> int:
        """The number of synapses that share a weight of the ANN."""
        return self.in_weight * self.windows * (1 + self.paired_inputs) * (1 + self.paired_outputs)

    def arrange(self, weight: Tensor) -> Tensor:
        """Repeat a weight [O, C/groups, ...] of the ANN for all neurons that share it; differentiable."""
        if self.paired_inputs:
            weight = torch.stack([weight, -weight], 2).flatten(1, 2)
        if self.windows > 1:
            weight = weight.repeat(1, self.windows, *[1] * (weight.dim() - 2))
        return torch.stack([weight, -weight], 1).flatten(0, 1) if self.paired_outputs else weight


def scaled_inputs(weight: Tensor, scale: Tensor, groups: int) -> Tensor:
    """Multiply the weights [O, C/groups, ...] of each input by its scale, [C]; differentiable."""
    return weight * over_inputs(scale, weight.shape, groups)


def over_inputs(scale: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    """Return the scale of each input, [C], so that it broadcasts over weights [O, C/groups, ...] of this shape."""
    ones = [1] * (len(shape) - 2)
    if groups == 1:
        return scale.view(1, -1, *ones)
    return scale.view(groups, 1, -1).expand(-1, shape[0] // groups, -1).reshape(shape[0], -1, *ones)


def paired(x: Tensor) -> Tensor:
    """Return [x0, -x0, x1, -x1, ...]: the values of paired outputs."""
    return torch.stack([x, -x], 1).flatten()
