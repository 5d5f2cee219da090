"""What the graph of a spiking twin depends on beside the ANN."""

from __future__ import annotations

from dataclasses import dataclass

from ..neuron import Neuron


@dataclass(frozen=True)
class Options:
    """The arguments of :func:`convert` that decide on the graph of the spiking twin."""

    time_steps: int
    mode: str
    neuron: Neuron
    engine: str
    learn_thresholds: bool
    gates: bool
    """Whether gates stay analogue."""
    calibrated: bool
    """Whether thresholds will be calibrated, so that spikes differ in weight."""
    per_channel: bool | None
    """Whether each channel will have a threshold; None: yes, unless a part of the ANN cannot take that."""
    spiking_layers: int | None
    """The number of spiking layers; None for all."""
