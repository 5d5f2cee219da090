"""What a conversion knows and a converted network keeps, for its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from .inputs import Inputs
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


class Sample:
    """The first samples of the calibration data, on the CPU. Deep copies share them; pickles leave them out."""

    def __init__(self, inputs: Sequence[Any] = ()) -> None:
        self.inputs = tree_map_only(Tensor, lambda x: x[:_SAMPLES].detach().to("cpu", copy=True), tuple(inputs))
        """The arguments of the network; none without calibration data."""

    def __deepcopy__(self, memo: Any) -> Sample:
        return self

    def __reduce__(self) -> tuple[type[Sample], tuple[()]]:
        return Sample, ()


@dataclass(frozen=True)
class AnalogueCall:
    """A call between weight layers that the spiking twin computes on real values.

    Examples:
        >>> ann = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
        >>> (call,) = convert(ann, time_steps=8, example=torch.rand(1, 4)).report().analogue
        >>> call.what, call.place, call.why
        ('SiLU', '1', 'it has no rule')
    """

    name: str
    """The name of the node."""
    what: str
    """The ATen call, or the class of torch's module that makes it."""
    place: str
    """The name of the module whose forward makes the call."""
    why: str
    """Why it has no spiking form."""


@dataclass
class Record:
    """What a conversion knows."""

    origins: tuple[Origin, ...]
    inputs: Inputs
    analogue: tuple[AnalogueCall, ...] = ()
    """The calls between weight layers that are computed on real values."""
    spiking_macs: float = 0.0
    """The share of the multiply-accumulates that spikes carry."""
    constants: tuple[str, ...] = ()
    """The names of the ANN's tensors whose values are constants of the spiking twin."""
    notes: tuple[str, ...] = ()
    """What is random in training alone, and left out."""
    replaced: tuple[str, ...] = ()
    """The activations that ``replace`` has replaced: "silu in features.0"."""
    sample: Sample = field(default_factory=Sample)
    outputs: tuple[Any, Any] = (None, None)
    """The structures of forward's outputs in eval mode, and in training where it is another one."""
    rewrite: Callable[[Any], Any] | None = None
    """What rewrites the exported graph of the ANN before it is converted."""
