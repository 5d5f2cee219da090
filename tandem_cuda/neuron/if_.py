"""Integrate-and-fire neurons."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Kind, Neuron, NirForm, State, check_nir_reset, check_positive, nir_gain, store_floats


@dataclass(frozen=True)
class IF(Neuron):
    """Integrate-and-fire neurons without leak (Wu et al. 2021, eqs. 1-3).

    With input current x[t] and u[0] = s[0] = 0, at every time step t = 1..T::

        u[t] = u[t-1] + x[t] - threshold * s[t-1]        (reset by subtraction)
        s[t] = 1 if u[t] >= threshold else 0

    Args:
        threshold: firing threshold, in units of the membrane potential; positive.
        clip: zero the gradient where the ANN's pre-activation exceeds ``saturation`` * T, since a neuron cannot spike
            more than T times.
        amplitude: what one spike weighs in the layer behind. With amplitude = threshold, amplitude * count approximates
            the activation of the ANN, relu(v), itself, and not relu(v) / threshold.

    Raises:
        TypeError: a parameter that is no number.
        ValueError: a threshold or amplitude that is not positive and finite.
    """

    KINDS: ClassVar[dict[int, Kind]] = {0: Kind(1, ("threshold",))}
    SETTINGS: ClassVar[tuple[str, ...]] = ("threshold", "leak", "amplitude")

    threshold: float = 1.0
    clip: bool = False
    amplitude: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        check_positive("IF", "threshold", self.threshold)
        check_positive("IF", "amplitude", self.amplitude)
        store_floats(self, "threshold", "amplitude")

    def __repr__(self) -> str:
        amplitude = "" if self.amplitude == 1 else f", amplitude={self.amplitude}"
        return f"IF(threshold={self.threshold}, clip={self.clip}{amplitude})"

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
        if settings.keys() != {*cls.SETTINGS} or settings["leak"] != 1:
            return None
        return cls(settings["threshold"], amplitude=settings["amplitude"])

    def to_nir(self, dt: float) -> NirForm:
        return NirForm("IF", {"r": 1 / dt, "v_threshold": self.threshold, "v_reset": 0.0}, {})

    @classmethod
    def of_nir(cls, form: NirForm, dt: float) -> tuple[IF, float] | None:
        if form.node != "IF":
            return None
        gain = nir_gain(form.values["r"] * dt)
        check_nir_reset(form.values, 1.0)
        return cls(form.values["v_threshold"]), gain
