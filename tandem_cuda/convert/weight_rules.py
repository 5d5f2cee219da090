"""The rules of weight layers, the table of all rules, and what a rule raises for a call that has no spiking form."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..nn.tandem import TandemLayer
from .nodes import RULES as RULES
from .nodes import kind_of


class Unconvertible(Exception):
    """Raised by a rule for a call that has no spiking form. ``convert`` lists all such calls in its ValueError.

    Args:
        why: what to use instead, as in "use mode='nearest'".
        why_all: what to use for several such calls; by default ``why``.

    Examples:
        >>> from tandem_cuda.convert.rules import Unconvertible, register
        >>> class Reverse(nn.Module):
        ...     def forward(self, x):
        ...         return x.flip(1)
        >>> def refuse(call):
        ...     raise Unconvertible("reorder the weights of the next layer")
        >>> register(Reverse, refuse)
        >>> ann = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), Reverse(), nn.Linear(3, 2))
        >>> try:
        ...     convert(ann, time_steps=8)
        ... except ValueError as error:
        ...     print("reorder the weights" in str(error))
        True
    """

    def __init__(self, why: str, why_all: str | None = None) -> None:
        super().__init__(why)
        self.why_all = why_all
        self.node: fx.Node | None = None
        """The call that is refused, if it is not the call that is being converted."""


@dataclass(frozen=True)
class WeightRule:
    """The rule of a class of weight layers: with optional batch norm and an activation they become one tandem layer.

    The tandem layer holds the ANN layer's own parameters, and must compute from them what the ANN's layer computes.

    Examples:
        >>> from tandem_cuda.convert.rules import WeightRule, register
        >>> class MyLinear(nn.Linear):
        ...     pass
        >>> register(MyLinear, WeightRule(TandemLinear, nn.BatchNorm1d))
        >>> convert(nn.Sequential(MyLinear(4, 3), nn.ReLU(), nn.Linear(3, 2)), time_steps=8)(torch.rand(1, 4)).shape
        torch.Size([1, 2])
    """

    tandem: type[TandemLayer]
    """The class of the tandem layer. It has the same torch.nn base class as the ANN's layer, whose constructor
    arguments it takes."""
    norm: type[nn.Module]
    """The class of batch norm that folds into the layer."""

    def fits(self, kind: type[nn.Module]) -> bool:
        """Whether the tandem layer can hold the parameters of layers of class ``kind``."""
        layer = _layer_of_torch(kind)
        return layer is not nn.Module and issubclass(self.tandem, layer)

    def arguments(self, module: nn.Module) -> dict[str, Any]:
        """Return the constructor arguments that remake the layer, except ``bias``, ``device`` and ``dtype``."""
        names = inspect.signature(_layer_of_torch(kind_of(module))).parameters
        return {name: getattr(module, name) for name in names if name not in ("bias", "device", "dtype")}


Rule = Callable[[Any], Any]
"""A function that takes a Call."""


def weights_of(layer: nn.Module) -> WeightRule:
    """Return the rule of a weight layer."""
    rule = RULES[kind_of(layer)]
    assert isinstance(rule, WeightRule)
    return rule


def has_weights(module: nn.Module) -> bool:
    """Whether the module is a weight layer that can be converted."""
    return isinstance(RULES.get(kind_of(module)), WeightRule)


def _layer_of_torch(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class of torch.nn that ``kind`` is or is derived from."""
    return next(base for base in kind.__mro__ if base.__module__.startswith("torch.nn"))
