"""The arguments of an ANN's forward. The spiking twin takes only the inputs among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .nodes import signature_of


@dataclass
class Arguments:
    """The arguments of the ANN's forward."""

    names: list[str]
    defaults: dict[str, Any]
    """The arguments that keep their defaults. The spiking twin takes all others."""
    open: bool
    """Whether forward has *args."""

    @property
    def required(self) -> int:
        """The number of arguments that the spiking twin takes."""
        return len(self.names) - len(self.defaults)

    def of(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the spiking twin's inputs for a call of the network."""
        if self.open and not named:
            return inputs
        values = dict(zip(self.names, inputs, strict=False))
        wrong = [name for name in named if name in values or name not in self.names]
        missing = [name for name in self.names if name not in self.defaults and name not in {*values, *named}]
        if len(inputs) > len(self.names) or wrong or missing:
            raise TypeError(
                f"TandemNetwork: inputs must match the ANN's forward({', '.join(self.names)}), got {len(inputs)} "
                f"by position and {', '.join(named) or 'none'} by name"
            )
        values |= named
        for name, default in self.defaults.items():
            x = values.get(name, default)
            if x is not default and (isinstance(x, Tensor) or isinstance(default, Tensor) or x != default):
                raise ValueError(f"TandemNetwork: {name} must keep its default, {default!r}, got {x!r}")
        return tuple(values[name] for name in self.names if name not in self.defaults)


def arguments_of(ann: nn.Module, inputs: Collection[str]) -> Arguments:
    """Return the arguments of forward. ``inputs``: the names of the arguments that the spiking twin takes."""
    parameters = signature_of(ann).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    defaults = {p.name: p.default for p in named if p.name not in inputs}
    return Arguments([p.name for p in named], defaults, any(p.kind is p.VAR_POSITIONAL for p in parameters))
