"""Leaky integrate-and-fire neurons, and the soft LIF rate that their ANN twin computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Kind, Neuron, NirForm, State, check_nir, check_nir_reset, nir_gain
from .if_ import IF
from .parameter import INITIAL, LEAK, THRESHOLD, Parameter


@dataclass(frozen=True, repr=False)
class LIF(Neuron):
    """Leaky integrate-and-fire neurons: :class:`IF` with u[t] = leak * u[t-1] + x[t] - threshold * s[t-1].

    The count has the gradient of T * r(v / T), the spikes of a neuron under a constant current: r is the soft LIF rate
    (Hunsberger & Eliasmith 2015, arXiv:1510.08829) of this reset. It predicts the count of a constant current, up to
    saturation, with a mean error of 0.055 spikes per step (at most 0.153) for leak 0.9 and T = 8, falling to 0.024 (at
    most 0.060) for T = 64; for leak 0.5 with one of 0.10 (at most 0.26) whatever T.

    Args:
        threshold: firing threshold, in units of the membrane potential; positive.
        leak: factor by which the membrane potential decays in a time step, in (0, 1].
        clip: zero the gradient where the ANN's pre-activation exceeds ``saturation`` * T.
        initial: where the membrane potential starts, as a share of the threshold, in [0, 1).

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a threshold that is not positive and finite, a leak outside (0, 1], an initial potential outside
            [0, 1).

    Examples:
        >>> current = torch.full((1, 1), 0.6)
        >>> bits = ops.integrate_and_fire(current, 8, neuron=LIF(threshold=1.0, leak=0.9))[0]
        >>> ops.spike_count(bits)
        tensor([[4.]])
    """

    KINDS: ClassVar[dict[int, Kind]] = {1: Kind(1, (THRESHOLD, LEAK, INITIAL))}
    PARAMETERS: ClassVar[tuple[Parameter, ...]] = (THRESHOLD, LEAK, INITIAL)

    threshold: float = 1.0
    leak: float = 0.9
    clip: bool = False
    initial: float = field(default=0.0, kw_only=True)

    def step(self, state: State, x: Tensor) -> tuple[Tensor, State]:
        (u,) = state
        u = (self.leak * u - self.threshold * (u >= self.threshold).to(x.dtype)) + x
        return (u >= self.threshold).to(x.dtype), (u,)

    @property
    def saturation(self) -> float:
        """The constant current from which on the neuron settles at a spike per step: threshold * (2 - leak)."""
        return self.threshold * (2 - self.leak)

    @property
    def relu_threshold(self) -> float | None:
        return self.threshold if self.leak == 1 else None

    def activation(self, v: Tensor, steps: int) -> Tensor:
        if self.leak == 1:
            return IF(self.threshold).activation(v, steps)
        return steps * lif_rate(v, steps, self.threshold, self.leak)

    def slope(self, v: Tensor, steps: int) -> Tensor:
        if self.leak == 1:
            return IF(self.threshold).slope(v, steps)
        return lif_rate_derivative(v, steps, self.threshold, self.leak)

    def calibrated(self, threshold: float) -> Neuron:
        raise ValueError(f"neuron must be IF(...) with calibrate (a leak bends the rate), got {self}")

    def to_nir(self, dt: float) -> NirForm:
        if self.leak == 1:
            return IF(self.threshold, initial=self.initial).to_nir(dt)
        check_nir(self)
        values = {
            "tau": dt / (1 - self.leak),
            "r": 1 / (1 - self.leak),
            "v_leak": 0.0,
            "v_threshold": self.threshold,
            "v_reset": self.threshold * (1 - 1 / self.leak),
        }
        return NirForm("LIF", values, {"leak": self.leak})  # 1 - dt / tau may differ in the last digit

    @classmethod
    def of_nir(cls, form: NirForm, dt: float) -> tuple[LIF, float] | None:
        if form.node != "LIF":
            return None
        values = form.values
        if values["v_leak"] != 0:
            raise ValueError(f"v_leak must be 0, got {values['v_leak']}")
        if not values["tau"] > dt:
            raise ValueError(f"tau must be greater than dt = {dt}, got {values['tau']}")
        leak = 1 - dt / values["tau"]
        if "leak" in form.metadata:  # which has all digits
            stated = form.metadata["leak"]
            if not math.isclose(stated, leak, rel_tol=1e-9):
                raise ValueError(f"leak in its metadata must be 1 - dt / tau = {leak}, got {stated!r}")
            leak = stated
        gain = nir_gain(values["r"] * dt / values["tau"])
        check_nir_reset(values, leak)
        return cls(values["v_threshold"], leak), gain


# Width of the smoothed onset of firing, relative to the current at which a LIF neuron starts to fire. At 0.1 the
# steepest slope of the rate is between 0.95 / threshold (leak 0.5) and 1.14 / threshold (leak near 1): close to the IF
# neuron's 1 / threshold, so that one learning rate suits both. At 0.02 it is 2 / threshold.
_SOFTNESS = 0.1


def lif_rate(v: Tensor, time_steps: int, threshold: float, leak: float) -> Tensor:
    """Spikes per time step of a LIF neuron (0 < leak < 1) under the constant current I = v / time_steps.

    v: any shape, the current summed over all time steps. The spike count is approximated by time_steps * lif_rate.

    The reset subtracts the threshold th *after* the leak has acted: u[t+1] = leak * u[t] - th + I = leak * u0 + I with
    u0 = th - th / leak. From u0 the potential approaches I / (1 - leak) and reaches th after::

        k = ln(1 + a / (I - i0)) / -ln(leak) steps,   i0 = th * (1 - leak),   a = i0 / leak,

    and the rate is 1 / k, exactly 1 at I = th * (2 - leak), from where on the neuron fires at every step. Where
    I <= i0 it never fires; a softplus smooths this corner, as in the soft LIF rate of Hunsberger & Eliasmith,
    "Spiking Deep Networks with LIF Neurons", 2015, arXiv:1510.08829::

        I - i0  ->  g * q,   q = ln(1 + exp(z)),   z = (I - i0) / g,   g = 0.1 * i0.

    Error of the rate against simulated counts / T, over -0.2 <= I / (th * (2 - leak)) <= 1, mean and max in spikes per
    step (times T: in spikes; an error that does not fall with T is one of the rate itself)::

        leak    T = 4           T = 8           T = 16          T = 64
        0.5     0.104  0.281    0.103  0.258    0.102  0.256    0.102  0.256
        0.7     0.082  0.247    0.072  0.191    0.065  0.158    0.061  0.151
        0.9     0.090  0.256    0.055  0.153    0.037  0.099    0.024  0.060
        0.95    0.096  0.251    0.052  0.138    0.031  0.080    0.015  0.038
        0.99    0.102  0.250    0.052  0.127    0.027  0.066    0.008  0.020

    The rate is nearly always too high, since neurons count whole spikes and wait for whole steps: the formula's time to
    threshold is rounded up by the network. (A reset that leaks, a = i0, would give a mean of 0.095 for leak 0.9 and
    T = 8, 0.064 for T = 64, and 0.312 for leak 0.5 and T = 8.)

    Stable form: ln q is computed, not q, because q underflows: ln q = z to machine precision where z < -37; and
    ln(1 + a / (g * q)) = logaddexp(0, ln(a / g) - ln q), where a / g = 1 / (0.1 * leak) is free of the threshold.

    Examples:
        >>> from tandem_cuda.neuron.lif import lif_rate
        >>> lif_rate(torch.tensor([0.0, 8.0, 12.0]), time_steps=8, threshold=1.0, leak=0.5)
        tensor([0.0533, 0.6309, 1.0000])
    """
    y, _, _ = _lif_terms(v, time_steps, threshold, leak)
    return -math.log(leak) / y


def lif_rate_derivative(v: Tensor, time_steps: int, threshold: float, leak: float) -> Tensor:
    """Derivative of the approximated spike count time_steps * lif_rate(v) with respect to v, in closed form.

    With y = ln(1 + k / q) and k = a / g in the notation of lif_rate::

        -ln(leak) / (g * y^2) * k / (k + q) * sigmoid(z) / q;   the last two factors tend to 1 where z < -37.

    Examples:
        >>> from tandem_cuda.neuron.lif import lif_rate_derivative
        >>> lif_rate_derivative(torch.tensor([8.0, 12.0]), time_steps=8, threshold=1.0, leak=0.5)
        tensor([0.7657, 0.7213])
    """
    y, z, log_q = _lif_terms(v, time_steps, threshold, leak)
    g = _SOFTNESS * threshold * (1 - leak)
    z = z.clamp(min=-37)
    share = torch.sigmoid(-math.log(_SOFTNESS * leak) - log_q)  # k / (k + q)
    return -math.log(leak) / (g * y * y) * share * (torch.sigmoid(z) / F.softplus(z, threshold=40))


def _lif_terms(v: Tensor, time_steps: int, threshold: float, leak: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return y = ln(1 + k / q), z and ln q of lif_rate."""
    threshold_current = threshold * (1 - leak)
    z = (v / time_steps - threshold_current) / (_SOFTNESS * threshold_current)
    log_q = F.softplus(z.clamp(min=-37), threshold=40).log() + (z + 37).clamp(max=0)
    log_ratio = -math.log(_SOFTNESS * leak) - log_q  # ln(k / q)
    return torch.logaddexp(log_ratio, torch.zeros_like(log_ratio)), z, log_q
