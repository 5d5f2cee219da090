"""batch_statistics: the mean and variance that batch norm uses in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks
from .checked import checked_by


def _check(op: str, a: Any) -> None:
    checks.check_floating(op, "x", a.x)
    if a.x.dim() < 2 or a.x.numel() == 0:
        raise ValueError(f"{op}: x must be [N, C, ...] and not empty, got {list(a.x.shape)}")


@checked_by(_check)
def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and variance of every channel over the batch and all pixels.

    Calls the kernel of torch's own batch norm, which on the CPU is ten times as fast as ``torch.var_mean``. The results
    carry no gradient.

    Args:
        x: float32 or float64 [N, C, ...], not empty.

    Returns:
        Mean and biased variance, each [C].

    Raises:
        TypeError: ``x`` is not a float32 or float64 tensor.
        ValueError: ``x`` has fewer than two dimensions or no elements.

    Examples:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> ops.batch_statistics(x)
        (tensor([2.]), tensor([1.]))
    """
    direct = type(x) is Tensor and not x.is_meta and not torch.compiler.is_compiling()
    return _of_torch(x.detach()) if direct else _batch_statistics(x.detach())


def _of_torch(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
    return mean, var


# A custom operator, because torch.compile cannot lower torch.batch_norm_update_stats, and meta tensors have none.
# Elsewhere its overhead would exceed the time that the statistics of a small layer take.
_batch_statistics = torch.library.custom_op("tandem_cuda::batch_statistics", _of_torch, mutates_args=())


@_batch_statistics.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
