"""Count a layer's synaptic operations and its ANN's multiply-accumulates: both of them by the synapses that exist."""

from __future__ import annotations

from torch import nn

from ..spike_train import SpikeTrain
from .encode import EncodedInput
from .spiking import Spiking
from .tandem import TandemLayer


def branches_of(layer: nn.Module) -> list[nn.Module]:
    """Return the modules that a spiking layer's inputs pass through, one per input; empty for other modules."""
    return layer.branch_layers() if isinstance(layer, Spiking) else []


def layer_macs(layer: nn.Module, x: SpikeTrain | EncodedInput, output: SpikeTrain) -> int:
    """Return the ANN's multiply-accumulates per sample; an identity or elementwise map has none."""
    if not isinstance(layer, TandemLayer):
        return 0
    inputs = (x.value if isinstance(x, EncodedInput) else x).shape
    shared = 1 if layer.wiring is None else layer.wiring.synapses_per_weight
    return layer.synapses.macs(inputs, output.shape) // shared
