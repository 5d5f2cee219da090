"""update_statistics_: move batch norm's running statistics, in one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks
from .checked import checked_by
from .gradient import register_in_place


def _check(op: str, a: Any) -> None:
    check_running(op, a.running_mean, a.running_var)
    checks.check_tensor(op, "num_batches_tracked", a.num_batches_tracked)
    if a.num_batches_tracked.dtype != torch.int64:
        raise TypeError(f"{op}: num_batches_tracked must be int64, got {a.num_batches_tracked.dtype}")
    checks.check_same_device(op, "num_batches_tracked", a.num_batches_tracked, a.running_mean, "running_mean")
    checks.check_shape(op, "num_batches_tracked", a.num_batches_tracked, ())
    channels = a.running_mean.shape[0]
    for name, value in (("mean", a.mean), ("var", a.var), ("missing", a.missing), ("unit", a.unit)):
        if value is not None or name in ("mean", "var"):
            checks.check_like(op, name, value, a.running_mean, "running_mean", (channels,))
    checks.check_tensor(op, "product", a.product)
    checks.check_like(op, "product", a.product, a.running_mean, "running_mean", a.product.shape)
    if a.product.dim() < 2 or a.product.shape[1] != channels:
        raise ValueError(f"{op}: product must be [N, {channels}, ...], got {list(a.product.shape)}")
    if a.product.numel() < 2 * channels or channels == 0:
        raise ValueError(f"{op}: product must have at least two values per channel, got {list(a.product.shape)}")
    if isinstance(a.momentum, Tensor):
        if a.momentum.dtype != torch.float64:
            raise TypeError(f"{op}: momentum must be a number or float64, got {a.momentum.dtype}")
        checks.check_same_device(op, "momentum", a.momentum, a.running_mean, "running_mean")
        checks.check_shape(op, "momentum", a.momentum, ())
    else:
        checks.check_number(op, "momentum", a.momentum)
    checks.check_positive(op, "repeats", a.repeats)


@checked_by(_check)
def update_statistics_(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    mean: Tensor,
    var: Tensor,
    product: Tensor,
    *,
    missing: Tensor | None = None,
    unit: Tensor | None = None,
    momentum: float | Tensor = 0.1,
    repeats: float = 1.0,
) -> None:
    """Update running statistics in place with the statistics of repeats * unit * product + missing, as batch norm does.

    running = (1 - momentum) * running + momentum * new, where the new variance is unbiased (Ioffe and Szegedy 2015,
    algorithm 2); and ``num_batches_tracked`` counts the call. Each factor is computed in double precision and rounded
    once to the dtype of the statistics; each product and each sum is then rounded, alike on all devices. No gradient.

    Args:
        running_mean: float32 or float64 [C], contiguous.
        running_var: like ``running_mean``.
        num_batches_tracked: int64 [].
        mean: [C], mean of ``product`` over all other dimensions.
        var: [C], biased variance of ``product``; see :func:`batch_statistics`.
        product: [N, C, ...], with two values or more per channel. Its values are not read.
        missing: [C], what is added to the product of each channel; None for 0.
        unit: [C], factor of the product of each channel; None for 1.
        momentum: weight of the new statistics; or a tensor, float64 [], which a CUDA graph reads anew in each replay.
        repeats: factor of ``product``, positive.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or number.
        RuntimeError: running statistics that are not contiguous, that a function captures which ``torch.func``
            transforms, or that ``vmap`` does not batch although it batches the product.

    Examples:
        >>> product = torch.tensor([[1.0], [3.0]])
        >>> running_mean, running_var, batches = torch.zeros(1), torch.ones(1), torch.tensor(0)
        >>> mean, var = ops.batch_statistics(product)
        >>> ops.update_statistics_(running_mean, running_var, batches, mean, var, product, momentum=0.5)
        >>> running_mean, running_var, batches
        (tensor([1.]), tensor([1.5000]), tensor(1))
    """
    update: Any = torch.ops.tandem_cuda.update_statistics_
    if is_transforming():
        values = [x for x in (mean, var, missing, unit) if x is not None]
        check_batched("update_statistics_", running_mean, *values)
        update = _composed if any(checks.is_transformed(x) for x in (running_mean, *values)) else update
    missing, unit = None if missing is None else missing.detach(), None if unit is None else unit.detach()
    running = running_mean.detach(), running_var.detach(), num_batches_tracked
    now = momentum if isinstance(momentum, Tensor) else None
    number = 0.0 if isinstance(momentum, Tensor) else momentum
    update(*running, mean.detach(), var.detach(), product.detach(), missing, number, repeats, unit, now)


def is_transforming() -> bool:
    """Return whether a transform of torch.func, such as vmap, is under way."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def check_batched(op: str, running_mean: Tensor, *values: Tensor) -> None:
    """Raise a RuntimeError if vmap batches values but not the running statistics that follow them."""
    if not is_transforming() or not set().union(*map(_vmap_levels, values)) - _vmap_levels(running_mean):
        return
    raise RuntimeError(
        f"{op}: under vmap, running statistics must be batched as the input is, got the same for all its samples; put "
        "the samples into dimension N instead, use eval mode, or vmap over the buffers of torch.func.stack_module_state"
    )


def _vmap_levels(x: Tensor) -> set[int]:
    """Return the levels of vmap, which may be nested, over which the tensor is batched."""
    functorch, levels = torch._C._functorch, set()
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            levels.add(functorch.maybe_get_level(x))
        x = functorch.get_unwrapped(x)
    return levels


def check_running(op: str, mean: Any, var: Any) -> None:
    """Check running statistics, [C]."""
    checks.check_floating(op, "running_mean", mean)
    if mean.dim() != 1:
        raise ValueError(f"{op}: running_mean must be [C], got {list(mean.shape)}")
    checks.check_like(op, "running_var", var, mean, "running_mean", mean.shape)


def _composed(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    mean: Tensor,
    var: Tensor,
    product: Tensor,
    missing: Tensor | None,
    momentum: float | Tensor,
    repeats: float,
    unit: Tensor | None,
    momentum_now: Tensor | None,
) -> None:
    """Update with torch's operations, which torch.func batches, or refuses where it cannot batch them."""
    momentum = momentum if momentum_now is None else momentum_now
    count = product.numel() // product.shape[1]
    num_batches_tracked.add_(1)
    if unit is not None:
        mean, var = mean * unit, var * unit * unit
    # Separate products and sums: add_(alpha=) rounds once where the processor has fused multiply-add.
    new = mean * repeats if missing is None else mean * repeats + missing
    running_mean.mul_(1 - momentum).add_(new * momentum)
    running_var.mul_(1 - momentum).add_(var * (repeats**2 * momentum * count / (count - 1)))


@torch.library.register_fake("tandem_cuda::update_statistics_")
def _(*arguments: Any) -> None:
    return None


register_in_place("update_statistics_", 3)
