"""Slopes below zero: LeakyReLU and PReLU as neurons for both signs.

With the slope a, the activation is y = v above zero and a * v below. The two neurons of a pair stand for y and -y, so
the second one is driven by -a * v: the slope is one more factor of the gain and bias of every second neuron. Whatever
reads pairs then reads y. Where a is negative, y is positive on both sides of zero. The second neuron is driven by
abs(a) * -v, and its spikes are counted as the first one's (:func:`folded`), of which at most one fires if the neurons
wait for all time steps.

A slope that learns has the gradient of the ANN's activation, dy/da = v below zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..spike_train import SpikeTrain, interleaved, signs
from .constants import constants

_LEAST = 2.0**-60
"""In place of a slope of 0: too small for a spike, but the sign of v and the gradient of the slope remain."""


def factors(slope: Tensor, outputs: int) -> Tensor:
    """Return the factors [1, abs(a), 1, abs(a), ...] of the neurons, [outputs]; differentiable.

    ``slope``: a for each value, [outputs / 2], or one for all, [1].
    """
    size = torch.where(slope < 0, -slope, slope)
    size = (size + (_LEAST - size.detach()).clamp(min=0)).expand(outputs // 2)
    return torch.stack([torch.ones_like(size), size], 1).flatten()


def ones(slope: Tensor, outputs: int) -> Tensor:
    """Return factors of exactly 1 that give ``slope`` the gradient of :func:`factors`, for what has them already."""
    size = factors(slope, outputs)
    return size / size.detach()


def negative(layer: Any) -> Tensor | None:
    """Return which slopes are negative, bool [C] or [1]; None if none can be, or for a layer without slopes."""
    wiring = layer.wiring
    if wiring is None:
        return None
    if wiring.folds:
        number, like = layer.synapses.outputs // 2, layer.weight
        (mask,) = constants(like, ("folds", number, wiring.folds), lambda: (_mask(number, wiring.folds, like.device),))
        return mask
    return layer.slope.detach() < 0 if wiring.slopes == "learned" else None


def _mask(number: int, indices: tuple[int, ...], device: torch.device) -> Tensor:
    mask = torch.zeros(number, dtype=torch.bool)
    mask[list(indices)] = True
    return mask.to(device)


def folds_of(layer: Any) -> tuple[int, ...]:
    """Return the values of a layer whose slope is negative."""
    wiring = layer.wiring
    if wiring is None or wiring.slopes != "learned":
        return () if wiring is None else tuple(wiring.folds)
    return tuple((layer.slope < 0).expand(layer.synapses.outputs // 2).nonzero().flatten().tolist())


def check_folds(kind: str, folds: Any, values: float = math.inf) -> None:
    """Raise a ValueError unless a file's setting lists some of the values of a layer, in order."""
    numbers = isinstance(folds, (list, tuple)) and all(type(i) is int and 0 <= i < values for i in folds)
    if not numbers or not folds or sorted({*folds}) != [*folds]:
        raise ValueError(f"{kind}: setting folds must list some of the signed values in order, got {folds!r}")


def check_two_phase(name: str, layer: Any, two_phase: bool) -> None:
    """Raise a ValueError if a slope is negative, but the neurons spike while they integrate."""
    if not two_phase and (folds := folds_of(layer)):
        raise ValueError(f"{name}: {_ONE_PHASE}, got negative slopes of values {list(folds[:6])}")


_ONE_PHASE = (
    "slopes below zero must not be negative with neurons that spike while they integrate: convert with "
    "neuron=RadixIF() or IF(initial=0.5, two_phase=True)"
)


def folded(name: str, train: SpikeTrain, layer: Any, two_phase: bool) -> SpikeTrain:
    """Give the first neuron of each pair the spikes of the second one where the layer's slope is negative.

    Raises:
        ValueError: slopes of channels meet features, along another dimension.
        RuntimeError: a slope is negative, but the neurons are one-phase neurons.
    """
    mask, dim = negative(layer), train.pair_dim
    if mask is None or dim is None:
        return train
    if dim != 1 and len(mask) > 1 and layer.wiring.slopes == "learned":
        raise ValueError(
            f"{name}: input of a converted layer with a slope for each channel must be [N, F], got "
            f"{len(train.shape)} dimensions; pass example= to convert, since nn.PReLU takes dimension 1 for channels"
        )
    if not two_phase:
        torch._assert_async(~mask.any(), f"{name}: {_ONE_PHASE}")  # waits for no device
        return train
    if not torch.compiler.is_compiling() and mask.device.type == "cpu" and not bool(mask.any()):
        return train

    def moved(x: Tensor, dim: int) -> Tensor:
        """Move what lies in the second places of pairs to the first ones: at most one of the two is not 0."""
        first, second = signs(x.movedim(dim, -1), -1)  # where channels are in memory
        both = first + second if x.is_floating_point() else first | second
        pairs = interleaved(torch.where(mask, both, first), torch.where(mask, 0, second), -1)
        return pairs.movedim(-1, dim)

    value = train.carried_value
    changes = {} if value is None else {"value": moved(value, dim)}
    return train.replace_unchecked(bits=moved(train.bits, dim if dim == -1 else dim + 1), **changes)
