"""Thresholds that learn: one scale per layer, in logarithms, that training fits (LSQ).

A layer with ``learn_threshold`` has the parameter l = ``log_threshold``, a scalar that starts at 0. Its threshold is
``neuron.threshold`` * exp(l). The neuron itself stays as it is: potentials and currents are in units of exp(l), so the
layer divides its currents and its pre-activation v by exp(l). To the kernels this is one more factor of gain and bias.

The count c ~ relu(v) / (threshold * exp(l)) keeps its amplitude, and l gets the gradient of the ANN's activation:
dc/dl = -v / (threshold * exp(l)) where the tandem rule passes a gradient, else 0. If a scale-invariant layer follows,
such as batch norm, this is LSQ's gradient (Esser et al., "Learned Step Size Quantization", ICLR 2020,
arXiv:1902.08153, eq. 3). With the step s, c rounded v / s in 0..T, and a = s * c as the layer's output, LSQ has::

    da/ds = c - v/s  for v in range, T above, 0 below   =   c + (-v/s  for v in range, 0 above and below)

The loss does not depend on the scale of a, so the gradient g of a fulfils sum(g * a) = 0, hence sum(g * c) = 0. What is
left is -v/s in range, as here: with the gradient s * g of c, and dl = ds / s, both are sum(-g * v) over v in range. The
range ends at T thresholds for neurons with ``clip``.

As in LSQ (section 2.2), the gradient is divided by sqrt(neurons per sample * levels), so that a step of plain gradient
descent changes l about as much as the weights, relative to their size. The levels are the largest count, T, or the
largest value of radix spikes, 2^T - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def new_log_threshold(name: str, learn: Any, like: Tensor) -> nn.Parameter | None:
    """Return the parameter of a layer, [], with the device and dtype of ``like``; None if it does not learn.

    Raises:
        TypeError: ``learn`` is not a bool.
    """
    if not isinstance(learn, bool):
        raise TypeError(f"{name}: learn_threshold must be True or False, got {type(learn).__name__}")
    return nn.Parameter(like.new_zeros(())) if learn else None


def inverse_threshold(log_threshold: Tensor) -> Tensor:
    """Return exp(-l), the factor of currents, [], without gradient."""
    # The exponential in double precision rounds to the same float32 everywhere.
    return torch.exp(-log_threshold.detach().double()).to(log_threshold.dtype)


def learning(v: Tensor, log_threshold: Tensor | None, levels: int) -> Tensor:
    """Return a pre-activation [N, ...], which is in units of exp(l) already, with the gradient of l.

    If the threshold does not learn, l is None, and v is returned.
    """
    return v if log_threshold is None else v * _one(log_threshold, v.shape, levels)


def learning_inverse(log_threshold: Tensor, shape: Sequence[int], levels: int) -> Tensor:
    """Return :func:`inverse_threshold` with the gradient of l, for neurons [N, ...] of which each has these levels."""
    return inverse_threshold(log_threshold) * _one(log_threshold, shape, levels)


def _one(log_threshold: Tensor, shape: Sequence[int], levels: int) -> Tensor:
    """Return a factor of exactly 1, [], whose gradient with respect to l is -1 / sqrt(neurons per sample * levels)."""
    share = 1 / math.sqrt(max(1, math.prod(shape[1:])) * levels)
    return torch.exp((log_threshold.detach() - log_threshold) * share)
