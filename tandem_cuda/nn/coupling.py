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
    count = ops.tandem_count.trusted(bits, v, steps, scaled, neuron.upper(steps, scale))
    return SpikeTrain.unchecked(bits, steps, count, amplitude=neuron.amplitude)


def carrying(bits: Tensor, x: SpikeTrain, ann: Tensor | None, factor: float = 1.0) -> SpikeTrain:
    """Return pooled spikes of a train, whose count has the gradient of the ANN's activation.

    A spike weighs ``factor`` times what one of the train weighs.
    """
    code: dict[str, Any] = {"amplitude": x.amplitude * factor, "pair_dim": x.pair_dim}
    if ann is None:
        return SpikeTrain.unchecked(bits, x.time_steps, dtype=x.dtype, **code)
    count = ops.spike_count.trusted(bits, x.dtype) + (ann - ann.detach())
    return SpikeTrain.unchecked(bits, x.time_steps, count, **code)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd records operations on any of these tensors."""
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False
