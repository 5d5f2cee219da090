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
"""All models. Nodes of NIR are offered to them in this order."""

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
        TypeError: a value has the wrong type.
        ValueError: no model has these settings, or a value is out of range.
    """
    given = dict(settings) if isinstance(settings, dict) else {}
    name_of_model = given.pop("model", None)
    model = next((model for model in MODELS if model.__name__ == name_of_model), None)
    if model is None:
        known = ", ".join(model.__name__ for model in MODELS)
        raise ValueError(f"{name}: setting neuron must have a model, one of {known}, got {settings!r}")
    parameters = [parameter.name for parameter in model.PARAMETERS]
    if given.keys() != {*parameters}:
        expected = ", ".join(parameters)
        raise ValueError(f"{name}: setting neuron must hold {expected} of the model {model.__name__}, got {settings!r}")
    return model(**given)


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
