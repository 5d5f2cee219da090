"""The ANN twin alone, by which :func:`tandem_cuda.analysis.diagnose` judges the spiking twin.

A layer with an ANN twin has a method ``ann_twin(*inputs)``. It takes trains whose counts are activations of the ANN
below, and returns such a train, without spikes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..spike_train import SpikeTrain
from . import learned_threshold
from .encode import EncodedInput


def value_of(x: SpikeTrain | EncodedInput) -> Tensor:
    """Return the input of the ANN."""
    if isinstance(x, SpikeTrain):
        return x.value if x.amplitude == 1 else x.value * x.amplitude
    return x.value * x.time_steps if x.mode == "constant" else x.value


def activated(layer: Any, v: Tensor, time_steps: int) -> SpikeTrain:
    """Return the activation of v, the pre-activation before the learned threshold, of a layer with neurons."""
    if layer.log_threshold is not None:
        v = v * learned_threshold.inverse_threshold(layer.log_threshold).to(v.dtype)
    neuron = layer.neuron
    activation: Tensor = neuron.activation(v, time_steps)
    count = activation.clamp(max=neuron.largest(time_steps)) if neuron.clip else activation
    pair_dim = layer.pair_dim(count.dim())
    train = without_spikes(count, time_steps, neuron.amplitude_at(time_steps), pair_dim, neuron.radix)
    return train if pair_dim is None else layer.with_pairs(train)


def without_spikes(
    value: Tensor, time_steps: int, amplitude: float, pair_dim: int | None = None, radix: bool = False
) -> SpikeTrain:
    """Return a train for modules that read only values."""
    planes = -(-time_steps // 8)
    bits = torch.zeros((), dtype=torch.uint8, device=value.device).expand(planes, *value.shape)
    return SpikeTrain.unchecked(bits, time_steps, value, amplitude=amplitude, pair_dim=pair_dim, radix=radix)
