"""What the values of the ANN's graph become in the SNN's graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn


@dataclass
class Real:
    """A value that is the same in both graphs, such as an ordinary tensor."""

    node: Any


@dataclass
class Train:
    """A spike train."""

    node: fx.Node
    level: str | None = None
    """The layer whose level, divided by T, is the weight of a spike; None for recorded spikes, whose weight is 1."""
    copies: int = 1
    """The number of neurons per neuron of the ANN. The ANN's activation is the sum of theirs."""


@dataclass
class Branch:
    """A summand of a pre-activation: the output of a weight layer (``name``, ``layer``), or a spike train itself."""

    source: fx.Node
    name: str = ""
    layer: nn.Module | None = None
    norm: nn.Module | None = None
    encoded: bool = False
    copies: int = 1


@dataclass
class Current:
    """A pre-activation, whose neurons have not been written yet."""

    branches: list[Branch]
    then: list[Callable[[Train], Train]] = field(default_factory=list)
    """Steps to apply after the neurons. The ANN applies them before its ReLU, with the same result."""


@dataclass
class Pooled:
    """An average of spikes. Its consumer decides its form: folded into weights, a real value, or neurons of its own."""

    node: fx.Node
    module: nn.AvgPool2d | nn.AdaptiveAvgPool2d
    source: Train | Pooled
    then: list[Callable[[Any], Any]] = field(default_factory=list)
    """Steps to apply to the average, whatever its form."""
    flat: bool = False
    made: dict[str, Any] = field(default_factory=dict)
    """The average in each form written so far."""
    done: dict[str, Any] = field(default_factory=dict)
    """The same after the steps of ``then``."""

    def folds_into(self, layer: Any) -> bool:
        """Whether the layer's weights can read the spikes of all windows directly instead of their average."""
        pool = self.module
        alike = isinstance(pool, nn.AvgPool2d) and not pool.ceil_mode
        if not alike or not (pool.count_include_pad or pool.divisor_override or pool.padding in (0, (0, 0))):
            return False  # windows differ in size, or their size depends on the image
        return self.flat if isinstance(layer, nn.Linear) else layer.groups == 1


class BatchSize:
    """The size of the first dimension of a spike train."""


class Shape:
    """The shape of a spike train."""


@dataclass
class Broken:
    """The result of something that cannot be converted."""

    instead: Any
    """A substitute to go on with, so that later problems are found, too."""


def is_value(x: object) -> bool:
    """Whether x is of one of the classes above."""
    return isinstance(x, (Real, Train, Current, Pooled, BatchSize, Shape, Broken))
