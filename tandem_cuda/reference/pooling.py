"""Pooling of spike trains in plain PyTorch."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..neuron import IF, Neuron, RadixIF
from .layers import DenseTrain, binary_digits, is_radix, value_of, weighted_spikes
from .ops import neuron_loop, replace_value

__all__ = [
    "SpikingAdaptiveAvgPool2d",
    "SpikingAdaptiveAvgPool3d",
    "SpikingAvgPool2d",
    "SpikingAvgPool3d",
    "SpikingMaxPool2d",
    "SpikingMaxPool3d",
]


class _SpikingAverage(nn.Module):
    """IF neurons driven by a window's mean; torch's pooling is the next class in the method resolution order."""

    def __init__(
        self, *args: Any, threshold: float = 1.0, initial: float = 0.0, two_phase: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.threshold = threshold
        self.initial = initial
        self.two_phase = two_phase

    def forward(self, x: Any) -> DenseTrain:
        """Pool a spike train of images."""
        radix, value, steps = is_radix(x), value_of(x), x.time_steps
        divisors = self._divisors(torch.ones(1, 1, *x.shape[2:], dtype=value.dtype))
        # Use units in which every mean is an integer: sums of thirds, say, would be rounded.
        unit = math.lcm(*divisors.flatten().int().tolist())
        pool = super().forward
        with torch.no_grad():
            currents = [torch.round(pool(s) * unit) for s in weighted_spikes(x.to_dense(), radix)]
            if radix:  # whose last threshold is that of one unit
                neuron: Neuron = RadixIF(self.threshold * unit * 2**steps, initial=self.initial)
            else:
                neuron = IF(self.threshold * unit, initial=self.initial, two_phase=self.two_phase)
            spikes, _ = neuron_loop(currents, neuron)
        train = DenseTrain(spikes, amplitude=x.amplitude, radix=radix)
        train.value = replace_value(pool(value) / self.threshold, train.value)
        return train

    def _divisors(self, ones: Tensor) -> Tensor:
        """Return the divisors of the windows of an image [1, 1, H, W]: one over what a single spike adds to a mean."""
        flat = torch.eye(ones.numel(), dtype=ones.dtype).view(-1, 1, *ones.shape[2:])
        return torch.round(1 / super().forward(flat).amax(0))


class SpikingAvgPool2d(_SpikingAverage, nn.AvgPool2d):  # type: ignore[misc]  # as above
    """IF neurons driven by a window's mean at every time step.

    Takes the arguments of nn.AvgPool2d, threshold, initial and two_phase.

    Examples:
        >>> train = reference.DenseTrain(torch.ones(4, 1, 1, 2, 2))
        >>> reference.SpikingAvgPool2d(2)(train).count
        tensor([[[[4.]]]])
    """


class SpikingAdaptiveAvgPool2d(_SpikingAverage, nn.AdaptiveAvgPool2d):  # type: ignore[misc]  # as above
    """SpikingAvgPool2d with the windows and arguments of nn.AdaptiveAvgPool2d.

    Examples:
        >>> train = reference.DenseTrain(torch.ones(4, 1, 3, 6, 6))
        >>> reference.SpikingAdaptiveAvgPool2d(1)(train).count.flatten()
        tensor([4., 4., 4.])
    """


class SpikingAvgPool3d(_SpikingAverage, nn.AvgPool3d):  # type: ignore[misc]  # as above
    """SpikingAvgPool2d with the windows and arguments of nn.AvgPool3d.

    Examples:
        >>> train = reference.DenseTrain(torch.ones(4, 1, 1, 2, 2, 2))
        >>> reference.SpikingAvgPool3d(2)(train).count
        tensor([[[[[4.]]]]])
    """


class SpikingAdaptiveAvgPool3d(_SpikingAverage, nn.AdaptiveAvgPool3d):  # type: ignore[misc]  # as above
    """SpikingAvgPool2d with the windows and arguments of nn.AdaptiveAvgPool3d.

    Examples:
        >>> train = reference.DenseTrain(torch.ones(4, 1, 3, 2, 6, 6))
        >>> reference.SpikingAdaptiveAvgPool3d(1)(train).count.flatten()
        tensor([4., 4., 4.])
    """


class _SpikingMaximum(nn.Module):
    """Spike when the largest count of a window grows; torch's pooling is the next class in the resolution order."""

    def forward(self, x: Any) -> DenseTrain:
        """Pool a spike train of images or volumes."""
        radix, value, pool = is_radix(x), value_of(x), super().forward
        if radix:
            spikes = binary_digits(pool(value.detach()).clamp(min=0), x.time_steps)
        else:
            counts = x.to_dense().cumsum(0)
            most = torch.stack([pool(c) for c in (torch.zeros_like(counts[0]), *counts)]).clamp(min=0)
            spikes = most.diff(dim=0)
        train = DenseTrain(spikes, amplitude=x.amplitude, radix=radix)
        train.value = replace_value(pool(value), train.value)
        return train


class SpikingMaxPool2d(_SpikingMaximum, nn.MaxPool2d):
    """Spike when the largest count of a window grows: max pooling of the counts, in value and gradient.

    Examples:
        >>> train = reference.DenseTrain(torch.ones(4, 1, 1, 2, 2))
        >>> reference.SpikingMaxPool2d(2)(train).count
        tensor([[[[4.]]]])
    """


class SpikingMaxPool3d(_SpikingMaximum, nn.MaxPool3d):
    """SpikingMaxPool2d with the windows and arguments of nn.MaxPool3d.

    Examples:
        >>> train = reference.DenseTrain(torch.ones(4, 1, 1, 2, 2, 2))
        >>> reference.SpikingMaxPool3d(2)(train).count
        tensor([[[[[4.]]]]])
    """
