"""Which class of torch.nn decides on what a module computes."""

from __future__ import annotations

import inspect
from collections.abc import Container
from typing import Any

from torch import nn

_HARMLESS = {"__init__", "__doc__", "__module__", "__annotations__", "__repr__", "extra_repr", "_get_name"}
_HARMLESS |= {"reset_parameters", "reset_running_stats", "_version", "__constants__"}
"""What a subclass may define anew without computing something else."""


def torch_class(kind: type[Any], known: Container[Any] = ()) -> type[Any]:
    """Return the class of torch.nn from which a class differs only by its constructor; else the class itself.

    Args:
        kind: a class of modules.
        known: classes that are handled for themselves. They and their subclasses are returned as they are.
    """
    base = kind
    while not is_of_torch(base):
        if base in known or len(base.__bases__) > 1 or base is object or _changes(base, base.__bases__[0]):
            return kind
        base = base.__bases__[0]
    return kind if base is nn.Module else base


def is_of_torch(kind: type[Any]) -> bool:
    """Whether a class is one of torch.nn."""
    return kind.__module__.startswith("torch.nn.")


def _changes(kind: type[Any], base: type[Any]) -> bool:
    """Whether a class replaces anything of its base class. What only the class itself has, its base does not call."""
    own = {name: x for name, x in vars(kind).items() if name not in _HARMLESS}
    return any(hasattr(base, name) or inspect.isdatadescriptor(x) for name, x in own.items())
