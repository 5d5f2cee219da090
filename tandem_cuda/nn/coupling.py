"""The tandem coupling: a count with the value of the spikes and the gradient of the ANN's activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..neuron import Neuron
from ..spike_train import SpikeTrain


def coupled(
    neuron: Neuron, bits: Tensor, v: Tensor | None, steps: int, dtype: torch.dtype, scale: float = 1.0
) -> SpikeTrain:
    """Return a layer's spikes as a train whose count carries the gradient of the activation of v / scale.

    Args:
        neuron: the layer's neuron.
        bits: uint8 [P, N, ...].
        v: the pre-activation times ``scale``, [N, ...]. If it is None or needs no gradient, the train carries no count.
        steps: T.
        dtype: dtype of the count.
        scale: the factor in v.
    """
    if v is None or not (torch.is_grad_enabled() and v.requires_grad):
        return SpikeTrain.unchecked(bits, steps, dtype=dtype, amplitude=neuron.amplitude)
    scaled = neuron if scale == 1 else neuron.scaled(scale)
    count = ops.tandem_count(bits, v, steps, scaled, neuron.upper(steps, scale))
    return SpikeTrain.unchecked(bits, steps, count, amplitude=neuron.amplitude)


def coupled_behind_norm(
    neuron: Neuron,
    threshold: float,
    norm: Any,
    bits: Tensor,
    product: Tensor,
    unit: Tensor | None,
    statistics: tuple[Tensor, Tensor],
    steps: int,
    repeats: float,
    missing: Tensor | None,
    scale: Tensor | None = None,
    correction: Tensor | None = None,
) -> SpikeTrain:
    """Couple the spikes with v = scale * (norm(repeats * unit * product + missing) + correction); v is not stored.

    ``norm`` normalises with batch statistics.

    Args:
        neuron: the layer's neuron.
        threshold: the neuron's ``relu_threshold``.
        norm: the batch norm.
        bits: uint8 [P, N, ...].
        product: [N, O, ...].
        unit: [O], or None for 1.
        statistics: mean and biased variance of ``product``, each [O].
        steps: T.
        repeats: factor of ``product``.
        missing: the bias, [O], not yet added to ``product``. Batch norm cancels it.
        scale: [] or [O], or None for 1.
        correction: [O], or None for 0.
    """
    mean, var = statistics
    beta = norm.bias if missing is None else torch.add(norm.bias, missing, alpha=0)  # gives the bias a zero gradient
    gamma, beta = norm.weight, beta if correction is None else beta + correction
    if scale is not None:
        gamma, beta = gamma * scale, beta * scale
    count = ops.tandem_norm_count(
        bits,
        product,
        mean,
        var,
        gamma,
        beta,
        steps,
        unit=unit,
        eps=norm.eps / repeats**2,
        threshold=threshold,
        upper=neuron.upper(steps),
    )
    return SpikeTrain.unchecked(bits, steps, count, amplitude=neuron.amplitude)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd records operations on any of these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
