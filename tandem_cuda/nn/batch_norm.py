"""Batch norm between the weights of a tandem layer and its neurons: which modules can stand there.

:mod:`.drive` applies them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .all_processes import group_of

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""The classes of batch norm that fold into a layer."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def checked_norm(name: str, norm: Any) -> Any:
    """Return the batch norm; raise a ValueError, naming the layer, if the spiking twin cannot fold it."""
    if norm is None or norm.running_mean is None:
        raise ValueError(f"{name}: norm must keep running statistics (the spiking twin folds them), got {norm}")
    return norm


def fuses(norm: Any, product: Tensor, features: int) -> bool:
    """Return whether ``tandem_norm_count`` can replace ``norm`` and its stored output.

    False if ``norm`` is subclassed or has hooks, which could observe or change the result. ``features``: the dimension
    of the channels.
    """
    return (
        (type(norm) in NORMS or type(norm) is nn.SyncBatchNorm)
        and norm.affine
        and norm.bias is not None
        and (product.dim() == 2 or (type(norm) is not nn.BatchNorm1d and features == 1))
        and norm.momentum is not None
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)
        # A single value has no variance: let torch raise its error, unless other processes have more values.
        and (product.numel() > product.shape[1] or group_of(norm) is not None)
    )
