"""The current that drives a layer's neurons: one formula for training, eval, ``no_grad`` and frozen networks.

With amplitude A of the input's spikes, and gain g and bias b (batch norm's, or 1 and the layer's own bias; the bias
with its ``correction``, and both divided by ``thresholds`` and exp(log_threshold), where there are any)::

    x[t] = (A * g) * (W * s[t]) + b / T

The gain multiplies the sums, never the weights, so the floats are the same in every mode. Of integer weights, each of
which stands for a ``unit``, the gain is unit * g.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from .. import ops
from ..ops.division import divided

Norm = nn.BatchNorm1d | nn.BatchNorm2d


class Affine(NamedTuple):
    """The map from a sum of weights to a current: gain * sum + bias. Each is [O], or None for gain 1 and bias 0."""

    gain: Tensor | None
    bias: Tensor | None

    def times(self, factor: Tensor) -> Affine:
        """Return the map with its result multiplied by ``factor``, [O]."""
        gain = factor if self.gain is None else self.gain * factor
        return Affine(gain, None if self.bias is None else self.bias * factor)

    def drive(self, weight: Tensor, steps: int, amplitude: float) -> tuple[Tensor | None, Tensor | None]:
        """Return scale and bias of the current per time step, for input spikes of this amplitude."""
        return spike_scale(weight, amplitude, self.gain), per_step(self.bias, steps)

    def of_integers(self, unit: Tensor | None) -> Affine:
        """Return the map from a sum of integers, each of which stands for ``unit``, [O], or 1."""
        if unit is None:
            return self
        return self._replace(gain=unit if self.gain is None else unit * self.gain)

    def encoded_drive(self, steps: int, constant: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return scale and bias of the current per time step, for a layer with real input.

        With constant input and no gain, the encoded current already contains the bias. An impulse drives only the first
        step, so its bias is added here at every step.
        """
        return self.gain, None if constant and self.gain is None else per_step(self.bias, steps)


def affine(norm: Norm | None, bias: Tensor | None) -> Affine:
    """Return a layer's bias, [O], folded with its batch norm, using the running statistics."""
    return Affine(None, bias) if norm is None else Affine(*folded_drive(norm, bias))


def folded_drive(
    norm: Norm, bias: Tensor | None, unit: Tensor | None = None, steps: int = 1, amplitude: float = 1
) -> tuple[Tensor, Tensor]:
    """Return ``affine(norm, bias).of_integers(unit).drive(weight, steps, amplitude)``, computed by one operator."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None  # ensured by checked_norm
    assert var is not None
    return ops.fold_norm(
        mean, var, norm.weight, norm.bias, bias, unit=unit, eps=norm.eps, amplitude=amplitude, time_steps=steps
    )


def corrected(bias: Tensor | None, correction: Tensor | None) -> Tensor | None:
    """Return the sum of a bias and its correction, each [O] or None for 0."""
    if bias is None or correction is None:
        return correction if bias is None else bias
    return bias + correction


def spike_scale(weight: Tensor, amplitude: float, gain: Tensor | None = None) -> Tensor | None:
    """Return gain times the amplitude of the input's spikes as a scale [O] for the products; None if it is 1."""
    if gain is not None:
        return gain if amplitude == 1 else gain * amplitude
    return None if amplitude == 1 else weight.new_full(weight.shape[:1], amplitude)


def per_step(bias: Tensor | None, steps: int) -> Tensor | None:
    """Return the part of a bias that enters at each time step."""
    return None if bias is None else divided(bias, steps)
