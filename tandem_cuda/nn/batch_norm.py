"""Batch norm between the weights of a tandem layer and its neurons.

The ANN normalises with the batch's statistics in training; the spiking twin uses the running ones, as this batch has
left them (``current.affine``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .modes import recomputing

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def checked_norm(name: str, norm: Any) -> Any:
    """The batch norm; ValueError, naming the layer, where the spiking twin cannot use it."""
    if norm is None or norm.running_mean is None or not norm.affine:
        raise ValueError(
            f"{name}: norm must keep running statistics and an affine map (the spiking twin folds them), got {norm}"
        )
    return norm


def fuses(norm: Any, product: Tensor) -> bool:
    """Whether the normalised product need not be stored: ``tandem_norm_count`` computes it anew for the gradient.

    Not where ``norm`` is subclassed or has hooks: others may watch or change what it does.
    """
    return (
        type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
        and (product.dim() == 2 or type(norm) is nn.BatchNorm2d)  # channels are dimension 1
        and norm.momentum is not None
        and not any(getattr(norm, hooks) for hooks in HOOKS)
        and product.numel() > product.shape[1]  # of a single value there is no variance: torch says so
    )


@torch.no_grad()
def update_statistics(norm: Any, product: Tensor, repeats: int, missing: Tensor | None) -> tuple[Tensor, Tensor]:
    """Take those of repeats * product + missing into the running ones, as torch's batch norm does.

    Returns mean and biased variance of the product itself, each [O].
    """
    count = product.numel() // product.shape[1]
    mean, var = ops.batch_statistics(product)
    if recomputing():
        return mean, var
    norm.num_batches_tracked.add_(1)
    # Products and sums one by one: with alpha= torch rounds once or twice, in compiled code not as in eager mode.
    of_v = mean * repeats if missing is None else mean * repeats + missing
    norm.running_mean.mul_(1 - norm.momentum).add_(of_v * norm.momentum)
    norm.running_var.mul_(1 - norm.momentum).add_(var * (repeats**2 * norm.momentum * count / (count - 1)))
    return mean, var


def normalised(norm: Any, normalise: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """``normalise(v)``, which calls the norm; in training its running statistics move, but once a batch."""
    if not norm.training or not recomputing():
        return normalise(v)
    buffers = norm._buffers
    moved = dict(buffers)
    buffers.update({name: x.clone() for name, x in moved.items()})
    try:
        return normalise(v)
    finally:
        buffers.update(moved)
