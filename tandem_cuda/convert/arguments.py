"""The arguments of an ANN's forward, of which the spiking twin takes those that are inputs."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Arguments:
    """The arguments of the ANN's forward. The spiking twin takes only those that are inputs."""

    names: list[str]
    defaults: dict[str, Any]
    open: bool
    """Whether forward has *args."""

    @property
    def required(self) -> int:
        """The number of inputs."""
        return len(self.names) - len(self.defaults)

    def of(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the spiking twin's inputs for a call of the network."""
        if self.open and not named:
            return inputs
        given = dict(zip(self.names, inputs, strict=False))
        twice = [name for name in named if name in given or name not in self.names]
        missing = [name for name in self.names if name not in self.defaults and name not in {*given, *named}]
        if len(inputs) > len(self.names) or twice or missing:
            raise TypeError(
                f"TandemNetwork: inputs must match the ANN's forward({', '.join(self.names)}), got {len(inputs)} "
                f"by position and {', '.join(named) or 'none'} by name"
            )
        given |= named
        for name, default in self.defaults.items():
            x = given.get(name, default)
            if x is not default and (isinstance(x, Tensor) or isinstance(default, Tensor) or x != default):
                raise ValueError(f"TandemNetwork: {name} must keep its default, {default!r}, got {x!r}")
        return tuple(given[name] for name in self.names if name not in self.defaults)


def arguments_of(ann: nn.Module, inputs: Collection[str]) -> Arguments:
    """Return the arguments of forward. ``inputs``: the names of those that the spiking twin takes."""
    parameters = inspect.signature(ann.forward).parameters.values()
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = [parameter for parameter in parameters if parameter.kind not in many]
    defaults = {p.name: p.default for p in single if p.name not in inputs}
    return Arguments([p.name for p in single], defaults, any(p.kind is many[0] for p in parameters))
