"""What the spikes of a train stand for, and checks of it."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from .neuron.radix_if import check_radix_steps
from .ops import checks


class SpikeCode(NamedTuple):
    """What the spikes of a train stand for, the same for all of its neurons.

    Examples:
        >>> SpikeTrain.from_dense(torch.ones(4, 2, 3)).code
        SpikeCode(amplitude=1.0, pair_dim=None, radix=False)
    """

    amplitude: float = 1.0
    """The weight of one spike, or with ``radix`` of a spike of the last time step."""
    pair_dim: int | None = None
    """The dimension of [N, ...] along which neurons 2i and 2i + 1 are the positive and the negative part of value i.
    It is 1 or -1, or None if there are no pairs."""
    radix: bool = False
    """Whether a spike of time step t weighs ``amplitude`` * 2^(T-t), so that a train is a binary number."""


def refuse_part(name: str) -> NoReturn:
    """Raise the ValueError of the layer ``name``, which got radix spikes of some of the time steps."""
    raise ValueError(f"{name}: radix spikes must be those of all time steps, which make a number only together")


def check_radix(radix: Any, time_steps: int) -> None:
    """Raise a TypeError or ValueError unless ``radix`` is a bool, and trains of T steps may have radix spikes."""
    if not isinstance(radix, bool):
        raise TypeError(f"SpikeTrain: radix must be True or False, got {type(radix).__name__}")
    if radix:
        check_radix_steps("SpikeTrain", time_steps)


def check_count(count: Any, value: Any, radix: bool) -> None:
    """Raise a ValueError where a count is given that is not the value, or beside a value."""
    if count is not None and (radix or value is not None):
        reason = "with radix, where the value is another number" if radix else "with value, which is the count"
        raise ValueError(f"SpikeTrain: count must be None {reason}; got a count")


def check_pairs(bits: Tensor, pair_dim: Any) -> None:
    """Raise a TypeError or ValueError unless pairs of [N, ...] may lie along ``pair_dim``."""
    if pair_dim is not None and (isinstance(pair_dim, bool) or not isinstance(pair_dim, int)):
        raise TypeError(f"SpikeTrain: pair_dim must be 1, -1 or None, got {type(pair_dim).__name__}")
    if pair_dim not in (1, -1, None):
        raise ValueError(f"SpikeTrain: pair_dim must be 1, -1 or None, got {pair_dim}")
    if pair_dim is not None and (bits.dim() < 3 or bits.shape[pair_dim % (bits.dim() - 1) + 1] % 2):
        wanted = "[P, N, 2 * C, ...]" if pair_dim == 1 else "[P, N, ..., 2 * F]"
        raise ValueError(f"SpikeTrain: bits of pairs must be {wanted}, got {list(bits.shape)}")


def ending(bits: Tensor, time_steps: int) -> Tensor:
    """Return the bits with none set past ``time_steps``."""
    steps = time_steps % 8
    if steps == 0 or bits.numel() == 0:
        return bits
    if not bits.is_cpu or type(bits) is not Tensor or torch.compiler.is_compiling() or checks.is_transformed(bits):
        bits = bits.clone()
        bits[-1] &= (1 << steps) - 1
    elif (largest := int(bits[-1].amax())) >> steps:
        raise ValueError(
            f"SpikeTrain: bits past time_steps must be zero: with {time_steps} time steps the last plane holds {steps} "
            f"steps and its bytes must be below {1 << steps}, got {largest}"
        )
    return bits


class NotATensor:
    """Base of what layers of this package read, and functions of torch do not."""

    __slots__ = ()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.flatten:  # as nn.Flatten
            given = dict(zip(("input", "start_dim", "end_dim"), args, strict=False)) | (kwargs or {})
            return given.pop("input").flatten(**{"start_dim": 0} | given)
        name = getattr(func, "__name__", str(func))
        advice = next((text for word, text in _INSTEAD.items() if word in f"<{name}>"), "Decode() makes real numbers")
        raise TypeError(f"{name}: input must be a Tensor, got a {cls.__name__}; {advice}")


_INSTEAD = {
    "dropout": "use TandemDropout or TandemDropout2d",
    "max_pool": "use SpikingMaxPool2d",
    "avg_pool": "use SpikingAvgPool2d or SpikingAdaptiveAvgPool2d",
    "batch_norm": "pass norm='batch' to the layer before it",
    "<relu": "leave it out, since the neurons of tandem layers compute it",
    "conv": "use TandemConv2d",
    "linear": "use TandemLinear, or Decode() before a read-out",
    "<cat>": "use SpikeCat",
    "<add>": "use TandemAdd",
}
"""What to use in place of functions whose names, in angle brackets, contain these words."""
