"""What a conversion knows and a converted network keeps, for its report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .values import Source

_SAMPLES = 64


@dataclass
class Origin:
    """What a module of the spiking twin replaces."""

    name: str
    """Of the module in the spiking twin."""
    ann: str
    """What it replaces, in words: "Conv2d, BatchNorm2d, ReLU"."""
    names: tuple[str, ...]
    """The names of these parts in the ANN."""
    node: str
    """The name of the node in the ANN's graph whose values the module's output stands for."""
    steps: int = 0
    """The number of nodes behind the module in the spiking twin after which that is so."""
    signed: bool = False
    """Whether the spikes stand for values of both signs."""
    bound: float | None = None
    """The largest value that the activation returns."""
    sources: tuple[Source, ...] | None = None
    """Of each channel, if their spikes differ in weight."""
    real: bool = False
    """Whether the module computes with real numbers, which are decoded counts."""


class Sample:
    """The first samples of the calibration data, on the CPU. Deep copies share them; pickles leave them out."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None

    def of(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Return the batches, and keep samples of the first one when it is taken."""
        return _Sampled(self, batches)

    def __deepcopy__(self, memo: Any) -> Sample:
        return self

    def __reduce__(self) -> tuple[type[Sample], tuple[()]]:
        return Sample, ()


class _Sampled:
    """Batches on their way to calibration."""

    def __init__(self, sample: Sample, batches: Iterable[Any]) -> None:
        self.sample, self.batches = sample, batches

    def __iter__(self) -> Iterator[Any]:
        for i, batch in enumerate(self.batches):
            x = batch[0] if i == 0 and isinstance(batch, (tuple, list)) else batch
            if i == 0 and isinstance(x, Tensor) and x.dim():
                self.sample.inputs = x[:_SAMPLES].detach().to("cpu", copy=True)
            yield batch

    def __len__(self) -> int:
        if not isinstance(self.batches, Sized):
            raise TypeError(f"{type(self.batches).__name__} has no len()")
        return len(self.batches)


@dataclass
class Record:
    """What a conversion knows."""

    origins: tuple[Origin, ...]
    with_example: bool
    """Whether the ANN was traced with an example of its inputs."""
    gates: tuple[str, ...] = ()
    """The ANN's parts that compute gates and stay analogue."""
    replaced: tuple[str, ...] = ()
    """The ANN's modules that ``replace`` has replaced: "name (SiLU -> ReLU)"."""
    sample: Sample = field(default_factory=Sample)
