"""Batch norm between the weights of a tandem layer and its neurons.

In training the ANN normalises with the batch statistics. The spiking twin uses the running statistics, already updated
with this batch (:mod:`.drive`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import ops
from ..ops.update_statistics import check_batched
from .modes import recomputing

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""The classes of batch norm that fold into a layer."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def checked_norm(name: str, norm: Any) -> Any:
    """Return the batch norm; raise a ValueError, naming the layer, if the spiking twin cannot fold it."""
    if norm is None or norm.running_mean is None:
        raise ValueError(f"{name}: norm must keep running statistics (the spiking twin folds them), got {norm}")
    return norm


def fuses(norm: Any, product: Tensor) -> bool:
    """Return whether ``tandem_norm_count`` can replace ``norm`` and its stored output.

    False if ``norm`` is subclassed or has hooks, which could observe or change the result.
    """
    return (
        type(norm) in NORMS
        and norm.affine
        and (product.dim() == 2 or type(norm) is not nn.BatchNorm1d)  # channels are dimension 1
        and norm.momentum is not None
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)
        and product.numel() > product.shape[1]  # a single value has no variance: let torch raise its error
    )


def update_statistics(
    norm: Any, product: Tensor, unit: Tensor | None, repeats: float, missing: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Update the running statistics with the statistics of repeats * unit * product + missing, as batch norm does.

    Returns mean and biased variance of ``product`` itself, each [O].
    """
    mean, var = ops.batch_statistics.trusted(product.detach())
    if not recomputing():
        running = norm.running_mean, norm.running_var, norm.num_batches_tracked
        factors = {"unit": unit, "repeats": repeats, "momentum": norm.momentum}
        ops.update_statistics_.trusted(*running, mean, var, product, missing=missing, **factors)
    return mean, var


def normalised(norm: Any, v: Tensor, features: int) -> Tensor:
    """Return norm(v); running statistics move once per batch, not when recomputing.

    Args:
        norm: the batch norm.
        v: [N, O, ...].
        features: the dimension of v that has the O channels, 1 or -1.
    """
    if norm.training:
        check_batched(type(norm).__name__, norm.running_mean, v)
    if not norm.training or not recomputing():
        return _applied(norm, v, features)
    buffers = norm._buffers
    moved = dict(buffers)
    buffers.update({name: x.clone() for name, x in moved.items()})
    try:
        return _applied(norm, v, features)
    finally:
        buffers.update(moved)


def _applied(norm: Any, v: Tensor, features: int) -> Tensor:
    if features == -1 and v.dim() > 2:  # torch's batch norm wants the channels behind N
        flat: Tensor = norm(v.flatten(0, -2))
        return flat.view(v.shape)
    normalised: Tensor = norm(v)
    return normalised
