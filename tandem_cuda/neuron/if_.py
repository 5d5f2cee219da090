"""Integrate-and-fire neurons."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from .base import Kind, Neuron, NirForm, State, check_nir, check_nir_reset, nir_gain
from .parameter import AMPLITUDE, INITIAL, THRESHOLD, Parameter

# float32 counts whole numbers up to 2^24.
REFRACTORY = Parameter("refractory", "a whole number of steps up to 2^24", 0, 2**24, whole=True, optional=True)
TWO_PHASE = Parameter(
    "two_phase",
    "True or False",
    0,
    1,
    flag=True,
    optional=True,
    not_in_nir="the neurons of NIR spike while they integrate",
)


@dataclass(frozen=True, repr=False)
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
        refractory: steps after a spike in which the neuron integrates nothing and cannot fire. Under a constant current
            I = v / T a spike then takes threshold / I steps to build up and ``refractory`` steps to recover from, so
            that the ANN's activation is relu(v) / (threshold + refractory * v / T). It saturates at
            T / (1 + refractory). For currents from 0 to the threshold it differs from the count by 0.22 to 0.37 spikes
            on average, and by less than 1 spike, for 1, 2 and 4 steps and T = 4 to 64 (without: 0.5 and 1).
        two_phase: first integrate the input of all T steps, then spike in T steps without input, as the paper's
            encoding layer does (section II-B). With v the input summed over all steps, u[1] = v + initial * threshold
            and x[t] = 0 for t > 1, so that the count is clip(floor(v / threshold + initial), 0, T), whenever the
            spikes arrive. A one-phase neuron may miss it by several spikes. The ANN's activation and its gradient do
            not change. A layer cannot start before the layer below has finished: a network of L such layers takes L * T
            steps for one input, and a new input can enter every T steps. Few-spike neurons wait in the same way
            (Stoeckl & Maass 2021, arXiv:2002.00860), as do two-phase probabilistic neurons (arXiv:2502.14487).

    Raises:
        TypeError: a parameter is not a number, or ``two_phase`` is not a bool.
        ValueError: a threshold or amplitude that is not positive and finite, an initial potential outside [0, 1), a
            refractory period that is negative or not whole, or a refractory period with ``two_phase``.

    Examples:
        >>> IF(threshold=0.5, initial=0.5, two_phase=True)
        IF(threshold=0.5, clip=False, initial=0.5, two_phase=True)
        >>> current = torch.tensor([[0.3]])  # in each of 4 steps, so 1.2 in all
        >>> bits = ops.integrate_and_fire(current, 4, neuron=IF(threshold=0.5))[0]
        >>> bin(bits.item())  # spikes in steps 2 and 4
        '0b1010'
    """

    KINDS: ClassVar[dict[int, Kind]] = {
        0: Kind(1, (THRESHOLD, INITIAL)),
        2: Kind(2, (THRESHOLD, INITIAL, REFRACTORY)),
    }
    PARAMETERS: ClassVar[tuple[Parameter, ...]] = (
        THRESHOLD,
        AMPLITUDE,
        INITIAL,
        REFRACTORY,
        TWO_PHASE,
    )

    threshold: float = 1.0
    clip: bool = False
    amplitude: float = field(default=1.0, kw_only=True)
    initial: float = field(default=0.0, kw_only=True)
    refractory: float = field(default=0.0, kw_only=True)
    two_phase: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        refractory = self.refractory
        super().__post_init__()
        if self.two_phase and refractory:
            raise ValueError(f"IF: refractory must be 0 with two_phase, got {refractory}")

    @property
    def kind(self) -> int:
        return 2 if self.refractory else 0

    def rest(self, like: Tensor) -> State:
        (u,) = super().rest(like)
        return (u, torch.zeros_like(like)) if self.refractory else (u,)

    def step(self, state: State, x: Tensor) -> tuple[Tensor, State]:
        if self.refractory:
            u, left = state
            return self._refractory_step(u, left, x)
        (u,) = state
        u = (u - self.threshold * (u >= self.threshold).to(x.dtype)) + x
        return (u >= self.threshold).to(x.dtype), (u,)

    def _refractory_step(self, u: Tensor, left: Tensor, x: Tensor) -> tuple[Tensor, State]:
        """Run one step. ``left``: how many refractory steps were left at the last step, counting that step."""
        fired = (left == 0) & (u >= self.threshold)
        u = u - self.threshold * fired.to(x.dtype)
        left = torch.where(fired, self.refractory, (left - 1).clamp(min=0))
        u = torch.where(left == 0, u + x, u)
        return ((left == 0) & (u >= self.threshold)).to(x.dtype), (u, left)

    @property
    def relu_threshold(self) -> float | None:
        return None if self.refractory else self.threshold

    def largest(self, steps: int) -> float:
        return steps / (1 + self.refractory)

    def activation(self, v: Tensor, steps: int) -> Tensor:
        v = torch.relu(v)
        return v / (self.threshold + self.refractory * (v / steps)) if self.refractory else v / self.threshold

    def slope(self, v: Tensor, steps: int) -> Tensor:
        slope = (v > 0).to(v.dtype) / self.threshold
        if not self.refractory:
            return slope
        return slope / (1 + self.refractory * (torch.relu(v) / (steps * self.threshold))).square()

    def calibrated(self, threshold: float) -> IF:
        if self.refractory:
            raise ValueError(f"neuron must have no refractory period with calibrate (it bends the rate), got {self}")
        return replace(self, threshold=threshold, amplitude=threshold)

    def to_nir(self, dt: float) -> NirForm:
        check_nir(self)
        return NirForm("IF", {"r": 1 / dt, "v_threshold": self.threshold, "v_reset": 0.0}, {})

    @classmethod
    def of_nir(cls, form: NirForm, dt: float) -> tuple[IF, float] | None:
        if form.node != "IF":
            return None
        gain = nir_gain(form.values["r"] * dt)
        check_nir_reset(form.values, 1.0)
        return cls(form.values["v_threshold"]), gain
