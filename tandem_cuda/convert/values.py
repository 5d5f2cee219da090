"""What is known of a value of the ANN in its spiking twin: it is real, spikes, or linear in spikes; and its sign."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neuron import Neuron

Slope = float | nn.Parameter
"""The slope of an activation below zero, as of LeakyReLU, or as a parameter of PReLU."""
SpikeSource = tuple[str | None, int]
"""Where the spikes of a channel come from: the layer whose level, divided by T, is the weight of a spike (None: the
weight is 1), and the channel's number there."""


@dataclass
class Real:
    """A real value, which both twins compute by the same call."""

    node: fx.Node
    analogue: bool = False
    """Whether it depends on the output of a weight layer. Other real values are inputs, or computed from inputs."""


@dataclass
class Train:
    """A spike train."""

    node: fx.Node
    shape: tuple[int, ...]
    """The sizes of the ANN's value behind the batch."""
    level: str | None = None
    """The layer whose level, divided by T, is the weight of a spike; None for recorded spikes, whose weight is 1."""
    sources: tuple[SpikeSource, ...] | None = None
    """The source of each channel, if the spikes of channels differ in weight. ``level`` is then None."""
    signed: bool = False
    """Whether there are two neurons for each value of the ANN, for its positive and its negative part."""
    windows: int = 1
    """The number of neurons for one value of the ANN, which is the sum of their activations."""
    features: bool = False
    """Whether channels are along the last dimension, of more than two, and not along dimension 1."""
    dropout: float = 1.0
    """The factor of a spike's weight in training: dropout has it."""

    @property
    def channels(self) -> int:
        """The size of the ANN's value along the dimension of channels."""
        return self.shape[-1] if self.features else self.shape[0]

    @property
    def dims(self) -> int:
        """The number of dimensions, including the batch."""
        return 1 + len(self.shape)


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
    layer: Any = None
    """The weight layer, a layer of torch with the ANN's parameters; None for norm(factor * x + offset)."""
    norm: nn.Module | None = None
    normed: fx.Node | None = None
    """The ANN's call of ``norm``."""
    encoded: bool = False
    """Whether ``train.node`` is the output of Encode instead."""
    factor: float | Tensor = 1.0
    """A number, or one for each channel, in double precision."""
    offset: float | Tensor = 0.0
    """Likewise."""
    resize: Resize | None = None
    """How the spikes' image is interpolated before the map."""

    @property
    def channels(self) -> int:
        """The number of channels or features of the result."""
        if self.layer is None:
            return self.train.channels
        number: int = getattr(self.layer, "out_channels", None) or self.layer.out_features
        return number

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
    def is_positive(self) -> bool:
        """Whether it is never negative: it needs neither a ReLU nor neurons for both signs."""
        if self.train.signed or self.norm is not None or self.encoded:
            return False
        numbers: Any = (self.factor, self.offset)
        if self.layer is not None:
            if self.layer._parameters.get("weight") is not None or "weight" not in self.layer._buffers:
                return False
            numbers = self.layer._buffers.values()
            if self.layer._parameters.get("bias") is not None:
                return False
        negative = self.resize is not None and self.resize.mode != "bilinear"
        return not negative and all(bool((torch.as_tensor(x) >= 0).all()) for x in numbers if x is not None)

    @property
    def is_plain(self) -> bool:
        """Whether nn.Identity can be this branch of a TandemAdd."""
        return self.is_identity and not self.train.signed and self.train.sources is None


@dataclass
class Current:
    """A pre-activation, whose neurons have not been written yet: a value that is linear in spikes."""

    branches: list[Branch]
    deferred: list[Callable[[Train], Train]] = field(default_factory=list)
    """Steps to apply after the neurons. The ANN applies them before its ReLU, which gives equal results."""
    wants_relu: bool = False
    """Whether a deferred step is right only if a ReLU follows."""
    origin: fx.Node | None = None
    """The ANN's node for the values of all neurons, if there are deferred steps."""
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
    def channels(self) -> int:
        """The number of channels before the deferred steps."""
        return self.branches[0].channels

    @property
    def features(self) -> bool:
        """As for a train."""
        return any(branch.features for branch in self.branches)


@dataclass
class Pooled:
    """An average of spikes. Its reader decides its form: folded into weights, a real value, or neurons of its own."""

    node: fx.Node
    module: Any
    source: Train | Pooled
    own_shape: tuple[int, ...]
    """The sizes of the average behind the batch, before the deferred steps."""
    shape: tuple[int, ...]
    """The sizes of the ANN's average behind the batch, after the deferred steps."""
    deferred: list[Callable[[Train], Train]] = field(default_factory=list)
    """Steps to apply to the spikes of the average."""
    flat: bool = False
    forms: dict[str, Train] = field(default_factory=dict)
    """The average in each form written so far, before the deferred steps."""

    @property
    def signed(self) -> bool:
        """Whether it is an average of signed values."""
        return self.source.signed

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
    """What a call that returns several tensors returns, such as torch.chunk or torch.max along a dimension."""

    take: Callable[[fx.Node], Any]
    """Returns the value of the node that takes one of the tensors."""


@dataclass
class Grouped:
    """Spikes whose channels are viewed as groups: a step of shuffling them."""

    x: Train
    groups: int
    swapped: bool = False
    """Whether the two dimensions of channels have been transposed."""


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
    """The number of channels or features of these values; None if the layer has one level for all."""
    dim: int = 1
    """The dimension of channels or features."""
    level: float | None = None
    """The level that the activation itself has, so that none is measured; None for other activations."""

    def activation(self, v: Tensor) -> Tensor:
        """Return the values that the neurons stand for."""
        if not self.signed and self.bound == math.inf and v.numel() and bool(v.min() >= 0):
            return v  # as behind a ReLU: a copy takes ten times as long
        return v.clamp(-self.bound if self.signed else 0, self.bound)

    def by_channel(self, v: Tensor) -> Tensor:
        """Return values of a batch [N, ...] as [C, N, M], or as [1, N, M] if ``channels`` is None."""
        if self.channels is None or self.channels == 1:
            return v.reshape(1, len(v), -1)
        return v.movedim(self.dim, 0).reshape(self.channels, len(v), -1)


aten = torch.ops.aten
_NEVER_NEGATIVE = {
    aten.relu.default, aten.sigmoid.default, aten.softmax.int, aten._softmax.default, aten.abs.default,
    aten.exp.default, aten.softplus.default, aten.hardsigmoid.default, aten.square.default, aten.relu6.default,
    aten.sqrt.default,
}  # fmt: skip
_KEEP_SIGNS = {
    aten.add.Tensor, aten.mul.Tensor, aten.cat.default, aten.stack.default, aten.maximum.default,
    aten.max_pool2d.default, aten.max_pool1d.default, aten.max_pool3d.default, aten.avg_pool2d.default,
    aten.avg_pool1d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.adaptive_max_pool2d.default,
    aten.amax.default, aten.mean.dim, aten.sum.dim_IntList,
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int,
    aten.contiguous.default, aten.clone.default, aten.dropout.default, aten.feature_dropout.default,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default, aten.slice.Tensor, aten.select.int,
    aten.expand.default, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.roll.default,
    aten.pixel_shuffle.default, aten.div.Tensor, aten.unflatten.int, aten.flip.default, aten.squeeze.dims,
    aten.repeat.default, aten.repeat_interleave.self_int, aten.channel_shuffle.default, aten.pixel_unshuffle.default,
}  # fmt: skip
"""Calls whose result is not negative if no tensor or number among their arguments is."""


class Signs:
    """Finds values that are never negative, and remembers them.

    Args:
        writer: knows what the values of the ANN have become.
    """

    def __init__(self, writer: Any) -> None:
        self.writer, self._known = writer, dict[fx.Node, bool]()

    def nonnegative(self, node: fx.Node) -> bool:
        """Whether a node's value is never negative."""
        if node not in self._known:
            self._known[node] = self._found(node)
        return self._known[node]

    def _found(self, node: fx.Node) -> bool:
        x = self.writer.values.get(node)
        if isinstance(x, (Train, Pooled)):
            return not x.signed
        if isinstance(x, Current):
            return x.is_positive
        if node.op != "call_function":
            return False
        if node.target in _NEVER_NEGATIVE:
            return True
        if node.target in (aten.clamp.default, aten.clamp_min.default, aten.hardtanh.default):
            low = node.args[1] if len(node.args) > 1 else -1
            return isinstance(low, (int, float)) and low >= 0
        if node.target not in _KEEP_SIGNS:
            return False
        if node.target in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor):
            numbers = [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, (int, float))]
            if any(x < 0 for x in numbers):
                return False
        inputs = [x for x in node.all_input_nodes if isinstance(x.meta.get("val"), torch.Tensor)]
        return all(map(self.nonnegative, inputs))


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
