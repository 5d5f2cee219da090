"""What a value of the ANN's graph is in the SNN's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn


@dataclass
class Real:
    """An ordinary value."""

    node: Any


@dataclass
class Train:
    """A spike train."""

    node: fx.Node
    level: str | None = None
    """The layer whose level, over T, its spikes weigh; None of recorded spikes, which weigh 1."""
    copies: int = 1
    """So many neurons stand for one of the ANN, whose activation is the sum of theirs."""


@dataclass
class Branch:
    """A summand of a pre-activation: a weight layer, whose name it is, or a train as it is."""

    source: fx.Node
    name: str = ""
    layer: nn.Module | None = None
    norm: nn.Module | None = None
    encoded: bool = False
    copies: int = 1


@dataclass
class Current:
    """A pre-activation: the neurons are still to come."""

    branches: list[Branch]
    then: list[Callable[[Train], Train]] = field(default_factory=list)
    """Done behind the neurons, though the ANN does it in front of its ReLU, which does not mind."""


@dataclass
class Pooled:
    """An average of spikes. What it goes into says what becomes of it: weights, a real value, or neurons of its own."""

    node: fx.Node
    module: nn.AvgPool2d | nn.AdaptiveAvgPool2d
    source: Train | Pooled
    then: list[Callable[[Any], Any]] = field(default_factory=list)
    """Done to the average, whatever it is."""
    flat: bool = False
    made: dict[str, Any] = field(default_factory=dict)
    """The average, by what has become of it."""
    done: dict[str, Any] = field(default_factory=dict)
    """The same behind ``then``."""

    def folds_into(self, layer: Any) -> bool:
        """Whether weights can take the spikes of all windows as they are, in place of their average."""
        pool = self.module
        alike = isinstance(pool, nn.AvgPool2d) and not pool.ceil_mode
        if not alike or not (pool.count_include_pad or pool.divisor_override or pool.padding in (0, (0, 0))):
            return False  # windows of different sizes, or of a size that the image decides
        return self.flat if isinstance(layer, nn.Linear) else layer.groups == 1


class BatchSize:
    """The size of the first dimension of a train."""


class Shape:
    """All sizes of a train."""


@dataclass
class Broken:
    """What comes of something that cannot be converted."""

    instead: Any
    """What to go on with, to find what else cannot."""


def is_value(x: object) -> bool:
    """Whether it is what a value of the ANN can be in the SNN."""
    return isinstance(x, (Real, Train, Current, Pooled, BatchSize, Shape, Broken))
