"""The tandem coupling: the count has the value of the spikes and the gradient of the ANN's activation."""

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
    """The train of a layer's spikes, whose count carries the gradient of the activation of v / scale.

    Args:
        neuron: of the layer.
        bits: uint8 [P, N, ...].
        v: the pre-activation times ``scale``, [N, ...]; without a gradient, or None, nothing is carried.
        steps: T.
        dtype: of the count.
        scale: the unit of v.
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
    statistics: tuple[Tensor, Tensor],
    steps: int,
    repeats: int,
    missing: Tensor | None,
) -> SpikeTrain:
    """The same for the v that batch norm in training makes of repeats * product + missing, never storing v.

    Args:
        neuron: of the layer.
        threshold: its ``relu_threshold``.
        norm: the batch norm.
        bits: uint8 [P, N, ...].
        product: [N, O, ...].
        statistics: mean and biased variance of the product, each [O].
        steps: T.
        repeats: how often the product enters.
        missing: the bias, [O], which batch norm takes away again.
    """
    mean, var = statistics
    beta = norm.bias if missing is None else norm.bias + 0 * missing  # whose gradient is zero
    count = ops.tandem_norm_count(
        bits,
        product,
        mean,
        var,
        norm.weight,
        beta,
        steps,
        eps=norm.eps / repeats**2,
        threshold=threshold,
        upper=neuron.upper(steps),
    )
    return SpikeTrain.unchecked(bits, steps, count, amplitude=neuron.amplitude)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd would follow an operation on any of these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
