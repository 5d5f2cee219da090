"""The current that drives a layer's neurons: one formula for training, eval, ``no_grad`` and frozen networks.

With gain g and bias b of whole sums (batch norm's, or 1 and the layer's own), amplitude A of the input's spikes::

    x[t] = (A * g) * (W * s[t]) + b / T

The gain multiplies sums, never weights, so that the same floats come out whatever else is computed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

Norm = nn.BatchNorm1d | nn.BatchNorm2d


class Affine(NamedTuple):
    """What happens to the sum of a layer's weights: gain * sum + bias; each [O], or None for 1 and 0."""

    gain: Tensor | None
    bias: Tensor | None

    def drive(self, weight: Tensor, steps: int, amplitude: float) -> tuple[Tensor | None, Tensor | None]:
        """Scale and bias of the current of one step behind spikes of this amplitude."""
        scale = self.gain
        if scale is None:
            scale = spike_scale(weight, amplitude)
        elif amplitude != 1:
            scale = scale * amplitude
        return scale, per_step(self.bias, steps)

    def encoded_drive(self, steps: int, constant: bool) -> tuple[Tensor | None, Tensor | None]:
        """Scale and bias of the current of one step behind what real input and weights came to.

        Without a gain the bias is in there already, where the input is ``constant``: otherwise it is an impulse, which
        drives the first step alone.
        """
        return self.gain, None if constant and self.gain is None else per_step(self.bias, steps)


def affine(norm: Norm | None, bias: Tensor | None) -> Affine:
    """What a batch norm with its running statistics and a layer's bias do to a sum (Wu et al. 2021, eq. 15).

    g = gamma / sqrt(running_var + eps), b' = (b - running_mean) * g + beta. (The authors' code leaves eps out.)
    """
    if norm is None:
        return Affine(None, bias)
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None  # which checked_norm has seen to
    assert var is not None
    # In double precision, which rounds to float32's exact root: torch's own in float32 may be an ulp off.
    gain = norm.weight / torch.sqrt((var + norm.eps).double()).to(var.dtype)
    return Affine(gain, (-mean if bias is None else bias - mean) * gain + norm.bias)


def spike_scale(weight: Tensor, amplitude: float) -> Tensor | None:
    """The amplitude of the input's spikes as the products take it, [O]; None where it is 1."""
    return None if amplitude == 1 else weight.new_full(weight.shape[:1], amplitude)


def per_step(bias: Tensor | None, steps: int) -> Tensor | None:
    """The share of a bias in the current of one time step."""
    return None if bias is None else bias / steps
