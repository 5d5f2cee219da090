"""Neuron models: what a layer's neurons do with the current they receive."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


def _check(name: str, threshold: Any, leak: Any = 1.0, amplitude: Any = 1.0) -> None:
    for argument, value in (("threshold", threshold), ("leak", leak), ("amplitude", amplitude)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: {argument} must be a number, got {type(value).__name__}")
    if not (threshold > 0 and math.isfinite(threshold)):
        raise ValueError(f"{name}: threshold must be positive and finite, got {threshold}")
    if not 0 < leak <= 1:
        raise ValueError(f"{name}: leak must be in (0, 1], got {leak}")
    if not (amplitude > 0 and math.isfinite(amplitude)):
        raise ValueError(f"{name}: amplitude must be positive and finite, got {amplitude}")


def _as_floats(neuron: IF | LIF, *names: str) -> None:
    """Floats for the ints among its numbers: torch takes no int beyond 64 bits, where it takes the float."""
    for name in names:
        object.__setattr__(neuron, name, float(getattr(neuron, name)))  # past the dataclass's own lock


@dataclass(frozen=True)
class IF:
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
    """

    threshold: float = 1.0
    clip: bool = False
    amplitude: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        _check("IF", self.threshold, amplitude=self.amplitude)
        _as_floats(self, "threshold", "amplitude")

    def __repr__(self) -> str:
        amplitude = "" if self.amplitude == 1 else f", amplitude={self.amplitude}"
        return f"IF(threshold={self.threshold}, clip={self.clip}{amplitude})"

    @property
    def leak(self) -> float:
        """Factor by which the membrane potential decays in a time step: 1, no leak."""
        return 1.0

    @property
    def saturation(self) -> float:
        """The constant current from which on the neuron spikes at every step: the threshold."""
        return self.threshold


@dataclass(frozen=True)
class LIF:
    """Leaky integrate-and-fire neurons: :class:`IF` with u[t] = leak * u[t-1] + x[t] - threshold * s[t-1].

    The count has the gradient of T * r(v / T), the spikes of a neuron under a constant current: r is the soft LIF rate
    (Hunsberger & Eliasmith 2015, arXiv:1510.08829) of this reset. It predicts the count of a constant current, up to
    saturation, with a mean error of 0.055 spikes per step (at most 0.153) for leak 0.9 and T = 8, falling to 0.024 (at
    most 0.060) for T = 64; for leak 0.5 with one of 0.10 (at most 0.26) whatever T.

    Args:
        threshold: firing threshold, in units of the membrane potential; positive.
        leak: factor by which the membrane potential decays in a time step, in (0, 1].
        clip: zero the gradient where the ANN's pre-activation exceeds ``saturation`` * T.
    """

    threshold: float = 1.0
    leak: float = 0.9
    clip: bool = False

    def __post_init__(self) -> None:
        _check("LIF", self.threshold, self.leak)
        _as_floats(self, "threshold", "leak")

    @property
    def amplitude(self) -> float:
        """What one spike weighs in the layer behind: 1."""
        return 1.0

    @property
    def saturation(self) -> float:
        """The constant current from which on the neuron settles at a spike per step: threshold * (2 - leak)."""
        return self.threshold * (2 - self.leak)


Neuron = IF | LIF
