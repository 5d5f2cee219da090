"""Dropout of spiking neurons, with the same mask at all time steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..ops import checks
from ..spike_train import SpikeTrain
from .geometry import SHAPES


class _Dropout:
    """What these dropouts share; torch's dropout must come next in the bases."""

    p: float
    training: bool
    copies: int = 1
    """Number of copies of the neurons that share a mask, side by side as :class:`SpikeWindows` arranges them."""
    signed: bool = False
    """Whether neurons 2i and 2i + 1, of the two signs of a value, share a mask; always if the train is ``paired``."""

    def _dropped(self, x: SpikeTrain, shape: Sequence[int]) -> SpikeTrain:
        """Silence neurons by one mask of this shape."""
        if not self.training or self.p == 0:
            return x
        samples, neurons, *rest = shape
        dim = 1 if self.signed and x.pair_dim is None else x.pair_dim
        sizes = [samples, neurons // self.copies, *rest]
        if dim is not None and sizes[dim] == 1:  # all columns share a mask
            dim = None
        if dim is not None:
            sizes[dim] //= 2
        mask = torch.rand(sizes, device=x.device) >= self.p
        if dim is not None:
            mask = mask.repeat_interleave(2, dim)
        if self.copies > 1:
            mask = mask.repeat(1, self.copies, *[1] * len(rest))
        masked = x.rearranged(lambda values: values * mask.to(values.dtype))
        return masked if self.p == 1 else masked.replace_unchecked(amplitude=x.amplitude / (1 - self.p))


class TandemDropout(_Dropout, nn.Dropout):
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

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(8, 2, 10))
        >>> TandemDropout(0.5)(x).amplitude
        2.0
        >>> TandemDropout(0.5).eval()(x).amplitude
        1.0
    """

    def forward(self, x: SpikeTrain) -> SpikeTrain:  # type: ignore[override]
        _check_train(self, x)
        return self._dropped(x, x.shape)


class _ChannelDropout(_Dropout):
    """Dropout of whole channels; torch's dropout must come next in the bases."""

    axes = 2
    """The number of dimensions behind the channels."""

    def forward(self, x: SpikeTrain) -> SpikeTrain:
        _check_train(self, x)
        if len(x.shape) != 2 + self.axes:
            raise ValueError(f"{type(self).__name__}: input must be {SHAPES[self.axes]}, got {list(x.shape)}")
        return self._dropped(x, (*x.shape[:2], *[1] * self.axes))


class TandemDropout2d(_ChannelDropout, nn.Dropout2d):  # type: ignore[misc]  # forward: spike trains, not tensors
    """:class:`TandemDropout` of whole channels: one draw for each sample and channel.

    Takes the arguments of nn.Dropout2d: ``p``, the probability of silencing a channel, in [0, 1], and ``inplace``,
    which is ignored.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, C, H, W].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: ``p`` is outside [0, 1], or the input is not [N, C, H, W].

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(8, 2, 3, 5, 5))
        >>> counts = TandemDropout2d(0.5)(x).count  # a channel is silent or whole
        >>> bool(((counts == 0) | (counts == 8)).all())
        True
    """


class TandemDropout3d(_ChannelDropout, nn.Dropout3d):  # type: ignore[misc]  # as above
    """:class:`TandemDropout` of whole channels of volumes: one draw for each sample and channel.

    Takes the arguments of nn.Dropout3d: ``p``, the probability of silencing a channel, in [0, 1], and ``inplace``,
    which is ignored.

    Shape:
        SpikeTrain [N, C, D, H, W] -> SpikeTrain [N, C, D, H, W].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: ``p`` is outside [0, 1], or the input is not [N, C, D, H, W].

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(8, 2, 3, 4, 5, 5))
        >>> TandemDropout3d(0.5)(x).amplitude
        2.0
    """

    axes = 3


class TandemStochasticDepth(nn.Module):
    """Stochastic depth of spikes: in training, the branch of a residual block is silent for some samples.

    (Huang et al., "Deep Networks with Stochastic Depth", 2016, arXiv:1603.09382.) Like :class:`TandemDropout`, with one
    draw for each sample, or for the whole batch.

    Args:
        p: the probability of silencing a sample, in [0, 1].
        mode: "row" for one draw for each sample, or "batch" for one for all.
        scale: whether the amplitude gets the factor 1 / (1 - p).

    Shape:
        SpikeTrain [N, ...] -> SpikeTrain [N, ...].

    Raises:
        TypeError: the input is not a SpikeTrain, or ``p`` is not a number.
        ValueError: ``p`` is outside [0, 1], or ``mode`` is neither "row" nor "batch".

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(8, 2, 10))
        >>> TandemStochasticDepth(1.0)(x).count.sum()
        tensor(0.)
    """

    def __init__(self, p: float, mode: str = "row", scale: bool = True) -> None:
        super().__init__()
        checks.check_number("TandemStochasticDepth", "p", p)
        if not 0 <= p <= 1:
            raise ValueError(f"TandemStochasticDepth: p must be in [0, 1], got {p}")
        if mode not in ("row", "batch"):
            raise ValueError(f"TandemStochasticDepth: mode must be 'row' or 'batch', got {mode!r}")
        self.p, self.mode, self.scale = p, mode, scale

    def forward(self, x: SpikeTrain) -> SpikeTrain:
        _check_train(self, x)
        if not self.training or self.p == 0:
            return x
        samples = len(x) if self.mode == "row" else 1
        mask = torch.rand(samples, *[1] * (len(x.shape) - 1), device=x.device) >= self.p
        masked = x.rearranged(lambda values: values * mask.to(values.dtype))
        scales = self.scale and self.p < 1
        return masked.replace_unchecked(amplitude=x.amplitude / (1 - self.p)) if scales else masked

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode!r}, scale={self.scale}"


def _check_train(module: Any, x: Any) -> None:
    if not isinstance(x, SpikeTrain):
        raise TypeError(f"{type(module).__name__}: input must be a SpikeTrain, got {type(x).__name__}")
