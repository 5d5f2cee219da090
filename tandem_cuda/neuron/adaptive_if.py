"""Integrate-and-fire neurons whose threshold adapts to their own spikes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from .base import Kind, Neuron, State
from .parameter import INITIAL, THRESHOLD, Parameter

ADAPTATION = replace(THRESHOLD, name="adaptation")
DECAY = Parameter("decay", "in [0, 1)", 0, 1 - 2.0**-25, "[)")  # what is nearer to 1 is 1 in float32


@dataclass(frozen=True, repr=False)
class AdaptiveIF(Neuron):
    """Integrate-and-fire neurons with an adaptive threshold, as in Bellec et al. 2018, without leak.

    Every spike raises the threshold, which then falls back (arXiv:1803.09574, section 2, adaptive LIF neurons or ALIF;
    ``adaptation`` is their beta, ``decay`` their rho). At every time step t = 1..T, with b[0] = s[0] = 0::

        b[t] = decay * b[t-1] + (1 - decay) * s[t-1]          (in [0, 1]: a moving average of the spikes)
        B[t] = threshold + adaptation * b[t]                  (the threshold of this step)
        u[t] = u[t-1] + x[t] - B[t-1] * s[t-1]                (reset by subtraction)
        s[t] = 1 if u[t] >= B[t] else 0

    A constant current I = v / T makes r spikes per step, each of which subtracts B: I = r * B. Before step t the moving
    average of r spikes per step is r * (1 - decay^(t-1)); over t = 1..T its mean is m * r with::

        m = 1 - (1 - decay^T) / (T * (1 - decay))             (0 for T = 1, 1 for T to infinity)

    With this mean for b[t], I = r * (threshold + m * adaptation * r). Its solution is the ANN's activation::

        T * r = 2 * relu(v) / (threshold + sqrt(threshold^2 + 4 * m * adaptation * relu(v) / T))

    It grows like v at first and like the square root of v later. It ignores that b has its lowest value when a neuron
    spikes, just before the jump. Error of min(r, 1) against simulated counts / T, for I from -0.2 to 1 times
    ``saturation`` and adaptation = threshold, mean and max in spikes per step::

        decay   T = 4           T = 8           T = 16          T = 64
        0       0.067  0.250    0.036  0.125    0.027  0.129    0.031  0.133
        0.5     0.068  0.250    0.033  0.125    0.015  0.062    0.014  0.043
        0.8     0.062  0.249    0.033  0.125    0.016  0.062    0.005  0.016
        0.9     0.057  0.250    0.031  0.125    0.016  0.062    0.003  0.015
        0.95    0.055  0.250    0.029  0.125    0.015  0.062    0.004  0.016

    Args:
        threshold: firing threshold of a neuron that has not spiked yet, in units of the membrane potential; positive.
        adaptation: by how much the threshold of a neuron that spikes in every step rises in the end, in units of the
            membrane potential; positive.
        decay: factor by which the rise decays in a time step, in [0, 1): exp(-1 / tau) with the time constant tau.
        clip: zero the gradient where the ANN's activation exceeds T.
        initial: where the membrane potential starts, as a share of the threshold, in [0, 1).

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a threshold or adaptation that is not positive and finite, a decay outside [0, 1), an initial
            potential outside [0, 1).

    Examples:
        >>> neuron = AdaptiveIF(threshold=1.0, adaptation=1.0, decay=0.5)
        >>> bits = ops.integrate_and_fire(torch.ones(1, 1), 8, neuron=neuron)[0]
        >>> bin(bits.item())  # spikes in steps 1, 3, 4, 6 and 7
        '0b1101101'
        >>> neuron.activation(torch.tensor(8.0), steps=8)
        tensor(5.3316)
    """

    KINDS: ClassVar[dict[int, Kind]] = {3: Kind(2, (THRESHOLD, ADAPTATION, DECAY, INITIAL))}
    PARAMETERS: ClassVar[tuple[Parameter, ...]] = (THRESHOLD, ADAPTATION, DECAY, INITIAL)

    threshold: float = 1.0
    adaptation: float = 1.0
    decay: float = 0.9
    clip: bool = False
    initial: float = field(default=0.0, kw_only=True)

    def rest(self, like: Tensor) -> State:
        return (*super().rest(like), torch.zeros_like(like))

    def step(self, state: State, x: Tensor) -> tuple[Tensor, State]:
        u, b = state
        above = u - self.adaptation * b
        fired = above >= self.threshold
        spike = fired.to(x.dtype)
        u = torch.where(fired, above - self.threshold, u) + x
        b = spike + self.decay * (b - spike)
        return (u - self.adaptation * b >= self.threshold).to(x.dtype), (u, b)

    @property
    def saturation(self) -> float:
        """The constant current from which on the neuron settles at a spike per step: threshold + adaptation."""
        return self.threshold + self.adaptation

    def upper(self, steps: int, scale: float = 1.0) -> float:
        """Return the pre-activation, times ``scale``, at which the activation is T, if there is ``clip``."""
        largest = self.threshold + self.adaptation * self._settled(steps)
        return largest * steps * scale if self.clip else math.inf

    def activation(self, v: Tensor, steps: int) -> Tensor:
        v = torch.relu(v) / self.threshold
        return 2 * v / (1 + self._root(v, steps))

    def slope(self, v: Tensor, steps: int) -> Tensor:
        above = (v > 0).to(v.dtype) / self.threshold
        return above / self._root(torch.relu(v) / self.threshold, steps)

    def _root(self, v: Tensor, steps: int) -> Tensor:
        """The root of ``activation``, of v and itself in units of the threshold."""
        return torch.sqrt(1 + 4 * self._settled(steps) * (self.adaptation / self.threshold) * (v / steps))

    def _settled(self, steps: int) -> float:
        """The mean of the rise over T = ``steps`` steps from rest, as a share of what it settles at: m."""
        return 1 - (1 - self.decay**steps) / (steps * (1 - self.decay))

    def calibrated(self, threshold: float) -> Neuron:
        raise ValueError(f"neuron must be IF(...) with calibrate (a threshold that adapts bends the rate), got {self}")
