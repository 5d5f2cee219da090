"""Neuron models: what a layer's neurons do with the current they receive, one model a file.

A model crosses the operator boundary as its kind, a number, and its parameters. docs/adding_a_neuron.md says how to add
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Neuron, stacked
from .if_ import IF
from .lif import LIF

MODELS: tuple[type[Neuron], ...] = (IF, LIF)
"""Every model, in the order in which settings are tried."""

KINDS: dict[int, type[Neuron]] = {kind: model for model in MODELS for kind in model.KINDS}
STATES: dict[int, int] = {number: kind.states for model in MODELS for number, kind in model.KINDS.items()}
"""The model of each kind, and its number of state variables."""


def of_parameters(kind: int, parameters: Sequence[float]) -> Neuron:
    """The neuron that an operator was given."""
    return KINDS[kind].of_parameters(kind, parameters)


def of_settings(name: str, settings: Any) -> Neuron:
    """The neuron that ``settings()`` describes.

    Raises:
        ValueError: no model has these settings, or one has no such values; ``name`` says whose they are.
    """
    if isinstance(settings, dict):
        for model in MODELS:
            neuron = model.of_settings(name, settings)
            if neuron is not None:
                return neuron
    expected = " or ".join(
        f"{', '.join(model.SETTINGS)} and perhaps {', '.join(model.OPTIONAL)} ({model.__name__})" for model in MODELS
    )
    raise ValueError(f"{name}: setting neuron must hold {expected}, got {settings!r}")


def check_neuron(name: str, neuron: Any) -> None:
    """TypeError, naming operator or layer, unless this is a neuron model."""
    if not isinstance(neuron, Neuron):
        models = " or ".join(f"{model.__name__}(...)" for model in MODELS)
        raise TypeError(f"{name}: neuron must be {models}, got {type(neuron).__name__}")


__all__ = [
    "IF",
    "KINDS",
    "LIF",
    "MODELS",
    "STATES",
    "Neuron",
    "check_neuron",
    "of_parameters",
    "of_settings",
    "stacked",
]
