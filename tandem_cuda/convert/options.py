"""What the graph of a spiking twin depends on beside the ANN, and what a rule raises for a call without spikes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..neuron import Neuron


@dataclass(frozen=True)
class Options:
    """The arguments of :func:`convert` that decide on the graph of the spiking twin."""

    time_steps: int
    mode: str
    neuron: Neuron
    engine: str
    learn_thresholds: bool
    calibrated: bool
    """Whether thresholds will be calibrated, so that spikes differ in weight."""
    per_channel: bool
    """Whether each channel will have a threshold."""
    spiking_layers: int | None
    """The number of spiking layers; None for all."""
    analogue: bool = True
    """Whether calls without a spiking form are computed on real values."""
    levels: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By the names of modules that are activations with levels: the largest value, and the level of the neurons."""


class Analogue(Exception):
    """Raised by a rule for a call that has no spiking form: it is computed on real values.

    Args:
        why: the reason, for the report.

    Examples:
        >>> from tandem_cuda.convert import Analogue, Call
        >>> def transposed(call: Call):
        ...     raise Analogue("it moves dimensions")
    """
