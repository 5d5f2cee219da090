"""Integrate-and-fire neurons."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import (
    Kind,
    Neuron,
    NirForm,
    State,
    check_initial,
    check_nir_initial,
    check_nir_reset,
    check_positive,
    nir_gain,
    store_floats,
)


@dataclass(frozen=True)
class IF(Neuron):
    """Integrate-and-fire neurons without leak (Wu et al. 2021, eqs. 1-3).

    With input current x[t], u[0] = initial * threshold and s[0] = 0, at every time step t = 1..T::

        u[t] = u[t-1] + x[t] - threshold * s[t-1]        (reset by subtraction)
        s[t] = 1 if u[t] >= threshold else 0

    Args:
        threshold: firing threshold, in units of the membrane potential; positive.
        clip: zero the gradient where the ANN's pre-activation exceeds ``saturation`` * T, since a neuron cannot spike
            more than T times.
        amplitude: what one spike weighs in the layer behind. With amplitude = threshold, amplitude * count approximates
            the activation of the ANN, relu(v), itself, and not relu(v) / threshold.
        initial: where the membrane potential starts, as a share of the threshold, in [0, 1). With 0, as in the paper,
            the count of an even current is floor(v / threshold); with 0.5 it is rounded, and neurons fire earlier.

    Raises:
        TypeError: a parameter that is no number.
        ValueError: a threshold or amplitude that is not positive and finite, an initial potential outside [0, 1).
    """

    KINDS: ClassVar[dict[int, Kind]] = {0: Kind(1, ("threshold", "initial"))}
    SETTINGS: ClassVar[tuple[str, ...]] = ("threshold", "leak", "amplitude")

    threshold: float = 1.0
    clip: bool = False
    amplitude: float = field(default=1.0, kw_only=True)
    initial: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_positive("IF", "threshold", self.threshold)
        check_positive("IF", "amplitude", self.amplitude)
        check_initial("IF", self.initial)
        store_floats(self, "threshold", "amplitude", "initial")

    def __repr__(self) -> str:
        amplitude = "" if self.amplitude == 1 else f", amplitude={self.amplitude}"
        initial = "" if self.initial == 0 else f", initial={self.initial}"
        return f"IF(threshold={self.threshold}, clip={self.clip}{amplitude}{initial})"

    @property
    def leak(self) -> float:
        """Factor by which the membrane potential decays in a time step: 1, no leak."""
        return 1.0

    def step(self, state: State, x: Tensor) -> tuple[Tensor, State]:
        (u,) = state
        u = (u - self.threshold * (u >= self.threshold).to(x.dtype)) + x
        return (u >= self.threshold).to(x.dtype), (u,)

    @property
    def relu_threshold(self) -> float | None:
        return self.threshold

    def activation(self, v: Tensor, steps: int) -> Tensor:
        return torch.relu(v) / self.threshold

    def slope(self, v: Tensor, steps: int) -> Tensor:
        return (v > 0).to(v.dtype) / self.threshold

    def calibrated(self, threshold: float) -> IF:
        return replace(self, threshold=threshold, amplitude=threshold)

    @classmethod
    def of_settings(cls, name: str, settings: dict[str, Any]) -> IF | None:
        if not cls.has_settings(settings) or settings["leak"] != 1:
            return None
        others = {name: value for name, value in settings.items() if name != "leak"}
        return cls(**others)

    def to_nir(self, dt: float) -> NirForm:
        check_nir_initial(self)
        return NirForm("IF", {"r": 1 / dt, "v_threshold": self.threshold, "v_reset": 0.0}, {})

    @classmethod
    def of_nir(cls, form: NirForm, dt: float) -> tuple[IF, float] | None:
        if form.node != "IF":
            return None
        gain = nir_gain(form.values["r"] * dt)
        check_nir_reset(form.values, 1.0)
        return cls(form.values["v_threshold"]), gain
