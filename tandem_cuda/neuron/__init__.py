"""Neuron models, one per file.

Operators receive a model as a number, its kind, and a list of parameters. docs/adding_a_neuron.md explains how to add a
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .adaptive_if import AdaptiveIF
from .base import Neuron, stacked
from .if_ import IF
from .lif import LIF
from .parameter import Parameter
from .radix_if import RadixIF

MODELS: tuple[type[Neuron], ...] = (IF, LIF, AdaptiveIF, RadixIF)
"""All models. Settings are offered to them in this order."""

KINDS: dict[int, type[Neuron]] = {kind: model for model in MODELS for kind in model.KINDS}
STATES: dict[int, int] = {number: kind.states for model in MODELS for number, kind in model.KINDS.items()}
"""The model of each kind, and its number of state variables."""


def of_parameters(kind: int, parameters: Sequence[float]) -> Neuron:
    """Return the neuron that an operator received."""
    return KINDS[kind].of_parameters(kind, parameters)


def of_settings(name: str, settings: Any) -> Neuron:
    """Return the neuron that ``settings()`` describes.

    Args:
        name: of the layer; error messages begin with it.
        settings: from a file.

    Raises:
        ValueError: no model has these settings, or a value is out of range.
    """
    if isinstance(settings, dict):
        for model in MODELS:
            neuron = model.of_settings(name, settings)
            if neuron is not None:
                return neuron
    names = [(model.names(optional=False), model.names(optional=True), model.__name__) for model in MODELS]
    expected = " or ".join(f"{', '.join(held)} and perhaps {', '.join(more)} ({model})" for held, more, model in names)
    raise ValueError(f"{name}: setting neuron must hold {expected}, got {settings!r}")


def check_neuron(name: str, neuron: Any, models: tuple[type[Neuron], ...] = MODELS) -> None:
    """TypeError unless the neuron is of one of these models; ``name`` is the operator or layer that was given it."""
    if not isinstance(neuron, models):
        *names, last = (f"{model.__name__}(...)" for model in models)
        expected = f"{', '.join(names)} or {last}" if names else last
        raise TypeError(f"{name}: neuron must be {expected}, got {type(neuron).__name__}")


__all__ = [
    "IF",
    "KINDS",
    "LIF",
    "MODELS",
    "STATES",
    "AdaptiveIF",
    "Neuron",
    "Parameter",
    "RadixIF",
    "check_neuron",
    "of_parameters",
    "of_settings",
    "stacked",
]
