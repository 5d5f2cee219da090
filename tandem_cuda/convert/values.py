"""What the values of the ANN's graph become in the SNN's graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

Slope = float | nn.Parameter
"""The slope of an activation below zero, as of LeakyReLU, or as a parameter of PReLU."""
SpikeSource = tuple[str | None, int]
"""Where the spikes of a channel come from: the layer whose level, divided by T, is the weight of a spike (None: the
weight is 1), and the channel's number there."""


@dataclass
class Real:
    """A value that both graphs compute, such as an ordinary tensor."""

    node: Any


@dataclass
class Train:
    """A spike train."""

    node: fx.Node
    level: str | None = None
    """The layer whose level, divided by T, is the weight of a spike; None for recorded spikes, whose weight is 1."""
    windows: int = 1
    """The number of neurons for one value of the ANN, which is the sum of their activations."""
    signed: bool = False
    """Whether there are two neurons for each value of the ANN, for its positive and its negative part."""
    channels: int | None = None
    """The number of channels or features of the ANN's value; None if it is not known."""
    sources: tuple[SpikeSource, ...] | None = None
    """The source of each channel, if the spikes of channels differ in weight. ``level`` is then None."""
    dims: int | None = None
    """The number of dimensions, including the batch; None if it is not known."""
    features: bool = False
    """Whether ``channels``, ``sources`` and pairs are along the last dimension, as behind a linear layer, and not along
    dimension 1. If rows of features are flattened, so are the values of the last dimension, row by row."""


@dataclass(frozen=True)
class Resize:
    """The interpolation of images, as :class:`tandem_cuda.nn.TandemInterpolate` takes it."""

    size: tuple[int, int] | None
    scale_factor: tuple[float, float] | None
    mode: str
    align_corners: bool


@dataclass
class Branch:
    """A summand of a pre-activation: the output of a weight layer (``name``, ``layer``), or of an elementwise map."""

    train: Train
    name: str = ""
    layer: nn.Module | None = None
    """The weight layer; None for norm(factor * x + offset)."""
    norm: nn.Module | None = None
    encoded: bool = False
    """Whether ``train.node`` is the output of Encode instead."""
    factor: float | Tensor = 1.0
    """A number, or one for each channel, in double precision."""
    offset: float | Tensor = 0.0
    """Likewise."""
    resize: Resize | None = None
    """How the spikes' image is interpolated before the map."""

    @property
    def channels(self) -> int | None:
        """As for a train."""
        layer: Any = self.layer
        if layer is None:
            return self.train.channels or getattr(self.norm, "num_features", None)
        number: int = getattr(layer, "out_channels", None) or layer.out_features
        return number

    @property
    def dims(self) -> int | None:
        """As for a train."""
        size = getattr(self.layer, "kernel_size", None)
        return self.train.dims if size is None else 2 + len(size)

    @property
    def features(self) -> bool:
        """As for a train."""
        if self.layer is None:
            return self.train.features
        return isinstance(self.layer, nn.Linear) and self.train.dims != 2

    @property
    def is_identity(self) -> bool:
        """Whether it adds the spikes themselves."""
        scalars = not isinstance(self.factor, Tensor) and not isinstance(self.offset, Tensor)
        plain = self.layer is None and self.norm is None and self.resize is None
        return bool(plain and scalars and self.factor == 1 and self.offset == 0)

    @property
    def is_fixed(self) -> bool:
        """Whether it is a linear map with constants, which the ANN's own call can compute from decoded spikes."""
        if self.layer is not None:
            return self.norm is None and "weight" in self.layer._buffers
        given = self.resize is not None or isinstance(self.factor, Tensor) or isinstance(self.offset, Tensor)
        return self.norm is None and given

    @property
    def is_positive(self) -> bool:
        """Whether it is never negative: it needs neither a ReLU nor neurons for both signs."""
        if self.train.signed or not (self.is_fixed or self.is_identity):
            return False
        numbers: Any = (self.factor, self.offset)
        if self.layer is not None:
            numbers = self.layer._buffers.values()
        negative = self.resize is not None and self.resize.mode != "bilinear"
        return not negative and all(bool((torch.as_tensor(x) >= 0).all()) for x in numbers if x is not None)

    @property
    def is_plain(self) -> bool:
        """Whether nn.Identity can be this branch of a TandemAdd."""
        return self.is_identity and not self.train.signed and self.train.sources is None


@dataclass
class Current:
    """A pre-activation, whose neurons have not been written yet."""

    branches: list[Branch]
    deferred: list[Callable[[Train], Train]] = field(default_factory=list)
    """Steps to apply after the neurons. The ANN applies them before its ReLU, which gives equal results."""
    wants_relu: fx.Node | None = None
    """The ANN's node for a deferred step that is right only if a ReLU follows; None if there is none."""
    origin: fx.Node | None = None
    """The ANN's node that computes both a map of one channel and the first deferred steps, if there is one."""
    rescales: bool = False
    """Whether a step scales values in training, so that they are no longer bounded as the ANN bounds them."""

    @property
    def is_sum(self) -> bool:
        """Whether it can be part of a larger sum: it reads spikes, and nothing comes after the neurons."""
        return not self.deferred and not any(branch.encoded for branch in self.branches)

    @property
    def is_positive(self) -> bool:
        """Whether it is a sum of what is never negative, which needs no ReLU."""
        return all(branch.is_positive for branch in self.branches)

    @property
    def is_fixed(self) -> bool:
        """Whether it is a linear map of one spike train with constants, and perhaps deferred steps behind it."""
        return len(self.branches) == 1 and self.branches[0].is_fixed

    @property
    def of_neurons(self) -> tuple[int | None, int | None]:
        """The numbers of channels and of dimensions before the deferred steps; None where not known."""
        channels = (branch.channels for branch in self.branches)
        dims = (branch.dims for branch in self.branches)
        return next((n for n in channels if n is not None), None), next((n for n in dims if n is not None), None)

    @property
    def features(self) -> bool:
        """As for a train."""
        return any(branch.features for branch in self.branches)

    @property
    def channels(self) -> int | None:
        """As for a train; None behind deferred steps."""
        return None if self.deferred else self.of_neurons[0]

    @property
    def dims(self) -> int | None:
        """As for a train; None behind deferred steps."""
        return None if self.deferred else self.of_neurons[1]


Average = nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.AvgPool3d | nn.AdaptiveAvgPool3d


@dataclass
class Pooled:
    """An average of spikes. Its consumer decides its form: folded into weights, a real value, or neurons of its own."""

    node: fx.Node
    module: Average
    source: Train | Pooled
    deferred: list[Callable[[Any], Any]] = field(default_factory=list)
    """Steps to apply to the average, whatever its form."""
    flat: bool = False
    dims: int | None = None
    """As for a train."""
    forms: dict[str, Any] = field(default_factory=dict)
    """The average in each form written so far, before the deferred steps."""
    results: dict[str, Any] = field(default_factory=dict)
    """The average in each form written so far, after the deferred steps."""

    @property
    def signed(self) -> bool:
        """Whether it is an average of signed values."""
        return self.source.signed

    @property
    def channels(self) -> int | None:
        """As for a train; None if it is flattened."""
        return None if self.flat or self.source.features else self.source.channels

    @property
    def features(self) -> bool:
        """As for a train."""
        return False

    def folds_into(self, layer: Any) -> bool:
        """Whether the layer's weights can read the spikes of all windows directly instead of their average."""
        pool = self.module
        if not isinstance(pool, nn.AvgPool2d) or pool.ceil_mode:
            return False  # the size of windows depends on the image
        if not (pool.count_include_pad or pool.divisor_override or pool.padding in (0, (0, 0))):
            return False  # windows at the border are smaller
        return self.flat if isinstance(layer, nn.Linear) else layer.groups == 1


SPIKES = (Train, Pooled, Current)
"""Values that are spikes, or will be."""


@dataclass
class Pieces:
    """Parts of a spike train along the channels, as torch.chunk and torch.split return them."""

    train: Train
    bounds: list[tuple[int, int]]


@dataclass
class Maxima:
    """What torch.max along dimensions returns: the largest values, and their positions."""

    values: Any


@dataclass
class Grouped:
    """A spike train whose channels are viewed as groups: a step of shuffling them."""

    x: Any
    groups: int
    swapped: bool = False
    """Whether the two dimensions of channels have been transposed."""


@dataclass(frozen=True)
class Size:
    """A product of a number and sizes of a value: ``Size(8)``, or ``Size(1, (2, 3))`` for height times width."""

    number: float
    """The number, including known sizes: the numbers of channels."""
    dims: tuple[int, ...] = ()
    """The dimensions whose sizes depend on the input, sorted. Dimension 0 is the batch."""
    of: tuple[fx.Node | None, ...] = field(default=(), compare=False)
    """For each dimension in ``dims``, the ANN's node whose value has this size."""


def number_of(x: Any) -> Any:
    """Return the number of a size that is known."""
    return x.number if isinstance(x, Size) and not x.dims else x


BATCH = Size(1, (0,), (None,))
UNKNOWN = Size(1, (1,), (None,))
"""A size that is not known."""


@dataclass(frozen=True)
class Shape:
    """The shape of a value."""

    channels: int | None
    dims: int | None
    of: fx.Node | None = None
    """The ANN's node for the value."""
    channel_dim: int = 1
    """The dimension whose size is ``channels``."""


def shape_of(x: Any, of: fx.Node | None = None) -> Shape:
    """Return what is known about the shape of spikes or currents; ``of``: the ANN's node for them."""
    if x.features and x.dims is not None and x.channels is not None:
        return Shape(x.channels, x.dims, of, x.dims - 1)
    return Shape(x.channels, x.dims, of)


def number_of_channels(x: Any) -> int | None:
    """Return the size of spikes or currents along dimension 1; None if it is not known."""
    shape = shape_of(x)
    return shape.channels if shape.channel_dim == 1 else None


@dataclass(frozen=True)
class Sizes:
    """A part of a shape, as in ``x.shape[2:]``."""

    sizes: tuple[Size, ...]


@dataclass
class Broken:
    """The result of something that cannot be converted."""

    instead: Any
    """A substitute to go on with, so that later problems are found, too."""


@dataclass(frozen=True)
class SpikingLayer:
    """A layer of neurons in the SNN, and the values of the ANN that they stand for."""

    name: str
    node: fx.Node
    """The ANN's activation."""
    signed: bool = False
    """Whether there are neurons for both signs."""
    bound: float = math.inf
    """The largest value that the activation returns."""
    values: fx.Node | None = None
    """The ANN's node for the values of all neurons, before the activation or behind it."""
    channels: int | None = None
    """The number of channels or features of these values; None if it is not known."""
    dim: int = 1
    """The dimension of channels or features."""
    level: float | None = None
    """The level that the activation itself has, so that none is measured; None for other activations."""

    def activation(self, v: Tensor) -> Tensor:
        """Return the values that the neurons stand for."""
        return v.clamp(-self.bound if self.signed else 0, self.bound)

    def by_channel(self, v: Tensor) -> Tensor:
        """Return values as [C, ...], or as [1, ...] if ``channels`` is None."""
        if self.channels is None or self.channels == 1:
            return v.flatten().unsqueeze(0)
        return v.movedim(self.dim, 0).flatten(1)


VALUES = (Real, *SPIKES, Pieces, Maxima, Grouped, Size, Shape, Sizes, Broken)
