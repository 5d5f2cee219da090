"""Batch norm with the statistics of all processes' batches, as torch.nn.SyncBatchNorm has them.

:mod:`.coupling` fires neurons with it, :mod:`.drive` moves its running statistics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import ops
from ..ops.tandem_norm_count import norm_gradients


class Shared(NamedTuple):
    """A batch of which other processes have parts."""

    group: Any
    """The group of these processes."""
    rows: Tensor
    """[1], the number of values of each channel in all processes, in the dtype of the product."""


def group_of(norm: nn.Module) -> Any:
    """Return the group over which a norm computes its statistics, or None if it has the whole batch."""
    distributed = torch.distributed
    if type(norm) is not nn.SyncBatchNorm or not distributed.is_available() or not distributed.is_initialized():
        return None
    group = norm.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


def statistics_of_all(mean: Tensor, var: Tensor, rows: int, group: Any) -> tuple[Tensor, Tensor, Shared]:
    """Combine the statistics of processes (Chan, Golub and LeVeque 1979).

    Args:
        mean: [C], of this process.
        var: [C], biased.
        rows: the number of values of each channel.
        group: the group of processes.

    Returns:
        Mean and biased variance of all values, and what the gradient needs.
    """
    own = torch.cat([mean, var, torch.full_like(mean[:1], rows)])
    parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, own, group)
    every, channels = torch.stack(parts).double(), len(mean)
    means, variances, counts = every[:, :channels], every[:, channels:-1], every[:, -1:]
    total = counts.sum(0)
    whole = (means * counts).sum(0) / total
    variance = ((variances + (means - whole).square()) * counts).sum(0) / total
    return whole.to(mean.dtype), variance.to(mean.dtype), Shared(group, total.to(mean.dtype))


def move_statistics(
    norm: Any, mean: Tensor, var: Tensor, shared: Shared, unit: Tensor | None, repeats: float, missing: Tensor | None
) -> None:
    """Move the running statistics of a norm towards the ones of repeats * unit * product + missing.

    ``ops.update_statistics_`` does so for a batch that is in one process.
    """
    factor = repeats if unit is None else unit * repeats
    mean = mean * factor if missing is None else mean * factor + missing.detach()
    var = var * factor**2 * (shared.rows / (shared.rows - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, var)):
        running.add_((new - running) * norm.momentum)
    norm.num_batches_tracked.add_(1)


class NormCount(torch.autograd.Function):
    """``ops.tandem_norm_count`` of a batch of which other processes have parts. Differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        bits: Tensor,
        product: Tensor,
        mean: Tensor,
        var: Tensor,
        gamma: Tensor,
        beta: Tensor,
        steps: int,
        unit: Tensor | None,
        how: dict[str, Any],
        shared: Shared,
    ) -> Tensor:
        """Return the counts, or the values of radix spikes. how: the other arguments of the operator."""
        ctx.save_for_backward(product, mean, var, gamma, beta, unit, shared.rows)
        ctx.how, ctx.group = how, shared.group
        return ops.tandem_norm_count.trusted(bits, product, mean, var, gamma, beta, steps, unit=unit, **how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients. The gradients of gamma and beta are of this process's part of the batch."""
        product, mean, var, gamma, beta, unit, rows = ctx.saved_tensors

        def added_up(sums: Tensor) -> None:
            torch.distributed.all_reduce(sums, group=ctx.group)

        how = ctx.how["eps"], ctx.how["threshold"], ctx.how["upper"], unit, rows, added_up
        grad_product, grad_gamma, grad_beta = norm_gradients(grad, product, mean, var, gamma, beta, *how)
        return None, grad_product, None, None, grad_gamma, grad_beta, *[None] * 4
