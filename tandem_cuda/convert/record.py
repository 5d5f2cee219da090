"""What a conversion knows and a converted network keeps, for its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .values import SpikeSource

_SAMPLES = 64


@dataclass
class Origin:
    """What a module of the spiking twin replaces."""

    name: str
    """The name of the module in the spiking twin."""
    ann: str
    """What it replaces, in words: "Conv2d, BatchNorm2d, ReLU"."""
    names: tuple[str, ...]
    """The names of these parts in the ANN."""
    node: str
    """The name of the node in the ANN's graph whose values the spikes stand for."""
    steps: int = 0
    """The number of nodes in the spiking twin from the module to the spikes that stand for these values."""
    signed: bool = False
    """Whether the spikes stand for values of both signs."""
    bound: float | None = None
    """The largest value that the activation returns."""
    sources: tuple[SpikeSource, ...] | None = None
    """The source of each channel, if the spikes of channels differ in weight."""
    features: bool = False
    """Whether ``sources`` are of features, along the last dimension."""
    real: bool = False
    """Whether the module computes with real numbers, which are decoded counts."""


class Sample:
    """The first samples of the calibration data, on the CPU. Deep copies share them; pickles leave them out."""

    def __init__(self, inputs: Sequence[Tensor] = ()) -> None:
        self.inputs = tuple(x[:_SAMPLES].detach().to("cpu", copy=True) for x in inputs)
        """For each input of the network; none without calibration data."""

    def __deepcopy__(self, memo: Any) -> Sample:
        return self

    def __reduce__(self) -> tuple[type[Sample], tuple[()]]:
        return Sample, ()


@dataclass
class Record:
    """What a conversion knows."""

    origins: tuple[Origin, ...]
    sizes: tuple[tuple[torch.Size, torch.dtype], ...] | None = None
    """Sizes and dtypes of the inputs with which the ANN was traced; None if it was traced without an example."""
    gates: tuple[str, ...] = ()
    """The ANN's parts that compute gates and stay analogue."""
    replaced: tuple[str, ...] = ()
    """The ANN's modules that ``replace`` has replaced: "name (SiLU -> ReLU)"."""
    sample: Sample = field(default_factory=Sample)
    per_layer: tuple[str, ...] = ()
    """The ANN's parts that cannot take thresholds of channels, so that calibration found thresholds of layers."""
    constants: tuple[str, ...] = ()
    """The names of the ANN's tensors whose values are constants of the spiking twin."""

    def example(self, ann: nn.Module) -> tuple[Tensor, ...] | None:
        """Return inputs of the ANN with which it can be traced again."""
        if self.sizes is None:
            return None
        like = next(ann.parameters(), torch.empty(0))
        return tuple(
            like.new_zeros(size, dtype=None if dtype.is_floating_point else dtype) for size, dtype in self.sizes
        )
