"""Integrate-and-fire neurons with radix spikes: the spikes of a train are the digits of a binary number."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from .base import Kind, Neuron, NirForm
from .parameter import INITIAL, THRESHOLD, Parameter

LEVEL = replace(THRESHOLD, name="level")

MOST_STEPS = 8
"""The largest T of radix trains: their value fills a byte."""


@dataclass(frozen=True, repr=False)
class RadixIF(Neuron):
    """Integrate-and-fire neurons whose spike of time step t weighs 2^(T-t), the first step most.

    The neuron first integrates the input of all T steps, as ``IF(two_phase=True)`` does, then spikes in T steps without
    input. Its threshold halves from step to step: level / 2, level / 4, ... With v the input summed over all steps,
    theta = level / 2^T the last threshold and u[1] = v + initial * theta, at every time step t = 1..T::

        s[t] = 1 if u[t] >= theta * 2^(T-t) else 0
        u[t+1] = u[t] - theta * 2^(T-t) * s[t]

    The spikes are the binary digits of the neuron's *value* q, which the layer behind reads in place of a count::

        q = sum over t of 2^(T-t) * s[t] = clip(floor(v / theta + initial), 0, 2^T - 1)

    A spike of step t weighs theta * 2^(T-t) = level / 2^t in the layer behind, so that theta * q approximates relu(v)
    up to ``level``. T sets how fine the values are, not their range: one set of weights serves every T. So there is no
    ``amplitude``, which would have to change with T.

    Stoeckl & Maass ("Optimized spiking neurons can classify images with high accuracy through temporal coding with two
    spikes", 2021, arXiv:2002.00860) call them few-spike (FS) neurons, here with T(t) = h(t) = d(t) = theta * 2^(T-t).
    Wang et al. ("Efficient spiking neural networks with radix encoding", 2024, arXiv:2105.06943) call the code radix
    encoding. Phase coding has weights 2^-t (Kim et al., "Deep neural networks with weighted spikes", Neurocomputing,
    2018).

    Args:
        level: twice the threshold of the first step, in units of the membrane potential; positive. It is the end of
            the neuron's range: a neuron that spikes in every step puts out level - theta.
        clip: zero the gradient where the ANN's pre-activation exceeds the largest output, level - theta.
        initial: where the membrane potential starts, as a share of theta, in [0, 1). With 0.5 values are rounded, with
            0 they are floored.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a level that is not positive and finite, an initial potential outside [0, 1).

    Examples:
        >>> from tandem_cuda.neuron import RadixIF
        >>> neuron = RadixIF(level=8)
        >>> neuron.threshold_at(steps=4)  # 16 * 0.5 = 8
        0.5
        >>> spikes, _ = neuron.discharge(torch.tensor([3.1]), steps=4)
        >>> spikes.flatten()  # 6, which is 3.1 / 0.5 rounded, in binary digits
        tensor([0., 1., 1., 0.])
        >>> neuron.value(torch.tensor([3.1, -1.0, 9.0]), steps=4)
        tensor([ 6.,  0., 15.])
    """

    KINDS: ClassVar[dict[int, Kind]] = {}
    PARAMETERS: ClassVar[tuple[Parameter, ...]] = (LEVEL, INITIAL)
    two_phase = True
    radix = True

    level: float = 1.0
    clip: bool = False
    initial: float = field(default=0.5, kw_only=True)

    @property
    def kind(self) -> int:
        raise TypeError("RadixIF: neurons with radix spikes have no time loop; see tandem_cuda.ops.radix_spikes")

    # -- the spiking neuron

    def threshold_at(self, steps: int) -> float:
        """Return theta, the threshold of the last of T = ``steps`` time steps.

        Raises:
            ValueError: T is not from 1 to 8.
        """
        check_radix_steps("RadixIF", steps)
        # Not level * 2**-steps: where torch.compile traces the level as a variable, its cache mixes up products that
        # are both an operator's argument and a factor. It takes what ldexp returns for a constant.
        return math.ldexp(self.level, -steps)

    def amplitude_at(self, steps: int) -> float:
        return self.threshold_at(steps)

    def discharge(self, v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        u, spikes = self._charged(v, steps), []
        theta = torch.tensor(self.threshold_at(steps), dtype=v.dtype).item()  # rounded as the kernels round it
        for t in range(1, steps + 1):
            h = theta * 2.0 ** (steps - t)
            fired = u >= h
            u = torch.where(fired, u - h, u)
            spikes.append(fired.to(v.dtype))
        return torch.stack(spikes), u.unsqueeze(0)

    def value(self, v: Tensor, steps: int) -> Tensor:
        """Return q = clip(floor(v / theta + initial), 0, 2^T - 1), [N, ...], of the input v summed over all steps.

        It is the value of :meth:`discharge`, to the bit. Every difference of ``discharge`` is exact unless the neuron
        saturates: it subtracts h from u with h <= u < 2 h (Sterbenz's lemma). So its value is the quotient of u[1] and
        theta, rounded down without an error of the division, as here. NaN has the value 0.
        """
        # In units of a power of two and in double precision, so that nothing overflows or loses digits.
        mantissa, exponent = math.frexp(torch.tensor(self.threshold_at(steps), dtype=v.dtype).item())
        u = torch.nan_to_num(self._charged(v, steps).double(), nan=0.0, posinf=math.inf) * 2.0**-exponent
        floor = torch.div(u.clamp(0, 2**steps), mantissa, rounding_mode="floor")
        return floor.clamp(max=self.levels(steps)).to(v.dtype)

    def _charged(self, v: Tensor, steps: int) -> Tensor:
        """Return the potential before the first spike."""
        return v + torch.full_like(v, self.initial) * self.threshold_at(steps)

    # -- its ANN twin

    def relu_threshold_at(self, steps: int) -> float:
        return self.threshold_at(steps)

    def shares(self, steps: int) -> int:
        return 1

    def levels(self, steps: int) -> int:
        """Return the largest value, 2^T - 1."""
        check_radix_steps("RadixIF", steps)
        return 2**steps - 1

    def largest(self, steps: int) -> float:
        """Return the largest value, 2^T - 1."""
        return self.levels(steps)

    def upper(self, steps: int, scale: float = 1.0) -> float:
        """Return the pre-activation, times ``scale``, above which the gradient is zero: the largest output."""
        return self.threshold_at(steps) * self.levels(steps) * scale if self.clip else math.inf

    def activation(self, v: Tensor, steps: int) -> Tensor:
        """Return the ANN's activation in units of theta, relu(v) / theta."""
        return torch.relu(v) / self.threshold_at(steps)

    def calibrated(self, threshold: float) -> RadixIF:
        """Return the neuron with this level."""
        return replace(self, level=threshold)

    def slope(self, v: Tensor, steps: int) -> Tensor:
        return (v > 0).to(v.dtype) / self.threshold_at(steps)

    def to_nir(self, dt: float) -> NirForm:
        raise ValueError(f"neuron must have a form in NIR (whose spikes all weigh the same), got {self}; use IF()")


def check_radix_steps(name: str, steps: int, remedy: str = "neurons such as IF take more") -> None:
    """Raise a ValueError unless radix trains may have T = ``steps`` time steps. ``remedy``: what to do for more."""
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(
            f"{name}: time_steps of radix spikes must be from 1 to {MOST_STEPS}, since a value of T binary digits "
            f"fills a byte, got {steps}" + (f"; {remedy}" if steps > MOST_STEPS else "")
        )
