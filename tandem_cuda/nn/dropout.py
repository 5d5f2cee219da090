"""Dropout of spiking neurons, with the same mask at all time steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..spike_train import SpikeTrain


class TandemDropout(nn.Dropout):
    """Dropout that silences whole neurons: one mask for the spikes of all time steps and for their count.

    A spike is 0 or 1 and cannot be scaled, so the train's ``amplitude`` carries the factor 1 / (1 - p) of inverted
    dropout (Srivastava et al., "Dropout", JMLR 2014). With mask m, the next layer computes
    x[t] = W * (m * s[t]) / (1 - p) + b / T in the spiking twin and v = W * (m * c) / (1 - p) + b in the ANN twin. Both
    twins see the same input, whose expectation is the input in eval mode. In eval mode dropout does nothing.

    Takes the arguments of nn.Dropout: ``p``, the probability of silencing a neuron, in [0, 1], and ``inplace``, which
    is ignored.

    Shape:
        SpikeTrain [N, ...] -> SpikeTrain [N, ...].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: ``p`` is outside [0, 1].
    """

    copies: int = 1
    """Number of copies of the neurons that share a mask, side by side as :class:`SpikeWindows` arranges them."""

    def forward(self, x: SpikeTrain) -> SpikeTrain:  # type: ignore[override]
        return _dropped(self, x, x.shape if isinstance(x, SpikeTrain) else None)


class TandemDropout2d(nn.Dropout2d):
    """:class:`TandemDropout` of whole channels: one draw for each sample and channel.

    Takes the arguments of nn.Dropout2d: ``p``, the probability of silencing a channel, in [0, 1], and ``inplace``,
    which is ignored.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, C, H, W].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: ``p`` is outside [0, 1], or the input is not [N, C, H, W].
    """

    copies: int = 1
    """Number of copies of the neurons that share a mask, side by side as :class:`SpikeWindows` arranges them."""

    def forward(self, x: SpikeTrain) -> SpikeTrain:  # type: ignore[override]
        if isinstance(x, SpikeTrain) and len(x.shape) != 4:
            raise ValueError(f"TandemDropout2d: input must be [N, C, H, W], got {list(x.shape)}")
        return _dropped(self, x, (*x.shape[:2], 1, 1) if isinstance(x, SpikeTrain) else None)


def _dropped(module: TandemDropout | TandemDropout2d, x: Any, shape: Any) -> SpikeTrain:
    if not isinstance(x, SpikeTrain):
        raise TypeError(f"{type(module).__name__}: input must be a SpikeTrain, got {type(x).__name__}")
    if not module.training or module.p == 0:
        return x
    samples, neurons, *rest = shape
    mask = torch.rand((samples, neurons // module.copies, *rest), device=x.device) >= module.p
    if module.copies > 1:
        mask = mask.repeat(1, module.copies, *[1] * len(rest))

    def masked(values: Tensor) -> Tensor:
        return values * mask.to(values.dtype)

    return x.rearranged(masked).replace_unchecked(
        amplitude=x.amplitude if module.p == 1 else x.amplitude / (1 - module.p)
    )
