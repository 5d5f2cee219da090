"""tandem_norm_count: the tandem coupling after batch norm, with a gradient in two passes over memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import checks, layout
from .checked import checked_by
from .gradient import register_gradient
from .spike_count import empty_count


def _check(op: str, a: Any) -> None:
    checks.check_train(op, a.bits, a.time_steps)
    if a.radix:
        checks.check_radix_steps(op, a.time_steps)
    checks.check_floating(op, "product", a.product)
    if a.bits.dim() < 3:
        raise ValueError(f"{op}: bits must be [P, N, C, ...], got {list(a.bits.shape)}")
    checks.check_same_device(op, "product", a.product, a.bits, "bits")
    checks.check_shape(op, "product", a.product, a.bits.shape[1:])
    for name, value in (("mean", a.mean), ("var", a.var), ("gamma", a.gamma), ("beta", a.beta)):
        checks.check_like(op, name, value, a.product, "product", a.product.shape[1:2])
    if a.unit is not None:
        checks.check_like(op, "unit", a.unit, a.product, "product", a.product.shape[1:2])
    checks.check_number(op, "eps", a.eps)
    if not a.eps >= 0:
        raise ValueError(f"{op}: eps must not be negative, got {a.eps}")
    checks.check_positive(op, "threshold", a.threshold)
    checks.check_number(op, "upper", a.upper)
    if not a.upper > 0:
        raise ValueError(f"{op}: upper must be positive, got {a.upper}")


@checked_by(_check)
def tandem_norm_count(
    bits: Tensor,
    product: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor,
    beta: Tensor,
    time_steps: int,
    *,
    unit: Tensor | None = None,
    eps: float = 1e-5,
    threshold: float = 1.0,
    upper: float = math.inf,
    radix: bool = False,
) -> Tensor:
    """Return spike counts that carry the gradient of the ANN's activation of a batch-normalised product.

    Forward: the actual counts, :func:`spike_count` of ``bits``, or with ``radix`` the values of :func:`radix_spikes`.
    Backward: the gradient of :func:`tandem_count` with IF neurons and v = gamma * (product - mean) / sqrt(var + eps) +
    beta, then through batch norm (Ioffe and Szegedy 2015, section 3). The backward pass recomputes v from ``product``;
    v is never stored. With ``unit``, batch norm gets unit * product::

        v = gamma * unit * (product - mean) / sqrt(unit^2 * var + eps) + beta

    Args:
        bits: uint8 [P, N, C, ...].
        product: float32 or float64 [N, C, ...]: the input of batch norm, over ``unit``.
        mean: [C], mean of ``product`` over all other dimensions.
        var: [C], biased variance of ``product`` over all other dimensions. The gradient of ``product`` includes the
            parts through ``mean`` and ``var``, which get no gradient themselves.
        gamma: [C], batch norm's weight.
        beta: [C], batch norm's bias.
        time_steps: T.
        unit: [C], factor of a product of integers; None for 1. It gets no gradient.
        eps: added to the variance.
        threshold: firing threshold, positive; of radix neurons ``neuron.threshold_at(T)``.
        upper: the gradient is zero where v > upper or v is NaN.
        radix: whether the bits come from :func:`radix_spikes`.

    Returns:
        [N, C, ...] in the dtype of ``product``, channels last in memory. Twice differentiable in ``product``, ``gamma``
        and ``beta``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, eps, threshold, T or upper.
        RuntimeError: on the CPU, bits past T. On CUDA such bits are ignored.

    Examples:
        >>> product = torch.tensor([[1.0], [3.0]], requires_grad=True)  # [N, O]
        >>> bits = torch.tensor([[[0b0000], [0b0001]]], dtype=torch.uint8)
        >>> mean, var = product.detach().mean(0), product.detach().var(0, unbiased=False)
        >>> count = ops.tandem_norm_count(bits, product, mean, var, torch.ones(1), torch.zeros(1), time_steps=4)
        >>> count.detach().flatten()
        tensor([0., 1.])
    """
    unit = None if unit is None else unit.detach()
    return torch.ops.tandem_cuda.tandem_norm_count(
        bits, product, mean.detach(), var.detach(), gamma, beta, eps, time_steps, threshold, upper, unit, radix
    )


@torch.library.register_fake("tandem_cuda::tandem_norm_count")
def _(bits: Tensor, product: Tensor, *others: Any) -> Tensor:
    return empty_count(bits, product.dtype)


@torch.library.register_fake("tandem_cuda::tandem_norm_count_sums")
def _(grad: Tensor, product: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    def empty() -> Tensor:
        return torch.empty_like(gamma, memory_format=torch.contiguous_format)

    return empty(), empty()


@torch.library.register_fake("tandem_cuda::tandem_norm_count_gradient")
def _(grad: Tensor, product: Tensor, *others: Any) -> Tensor:
    return layout.empty_channels_last(product, list(product.shape), product.dtype, 1)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *tensors, ctx.eps, _, ctx.threshold, ctx.upper, unit, _ = inputs
    ctx.save_for_backward(*tensors, unit)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    product, mean, var, gamma, beta, unit = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: the gradient must be differentiable
        grads = _composed(grad, product, gamma, beta, unit, ctx.eps, ctx.threshold, ctx.upper)
    else:
        grads = norm_gradients(grad, product, mean, var, gamma, beta, ctx.eps, ctx.threshold, ctx.upper, unit)
    return None, grads[0], None, None, grads[1], grads[2], *[None] * 6


def norm_gradients(
    grad: Tensor,
    product: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    threshold: float,
    upper: float,
    unit: Tensor | None,
    rows: Tensor | None = None,
    added_up: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of product, gamma and beta, given the gradient of the counts, [N, C, ...].

    Of a part of a batch, ``mean`` and ``var`` are of the whole batch, ``rows``, [1], is the number of its values of a
    channel, and ``added_up`` adds up a tensor over all parts, in place. The gradients of gamma and beta are the part's.
    """
    named = mean, var, gamma, beta
    how = eps, threshold, upper, unit
    sums = totals = torch.ops.tandem_cuda.tandem_norm_count_sums(grad, product, *named, *how)
    if added_up is not None:
        whole = torch.stack(sums)
        added_up(whole)
        totals = whole.unbind()
    gradient = torch.ops.tandem_cuda.tandem_norm_count_gradient(grad, product, *named, *totals, rows, *how)
    return gradient, *sums


def _composed(
    grad: Tensor,
    product: Tensor,
    gamma: Tensor,
    beta: Tensor,
    unit: Tensor | None,
    eps: float,
    threshold: float,
    upper: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the operator's gradients from differentiable operations."""
    if unit is not None:
        factor = unit.view(-1, *[1] * (product.dim() - 2))
        grad_product, *rest = _composed(grad, product * factor, gamma, beta, None, eps, threshold, upper)
        return grad_product * factor, rest[0], rest[1]
    others = [d for d in range(product.dim()) if d != 1]
    var, mean = torch.var_mean(product, others, correction=0, keepdim=True)
    gain = torch.rsqrt(var + eps)
    normal = (product - mean) * gain
    gamma, beta = (x.view(-1, *[1] * (product.dim() - 2)) for x in (gamma, beta))
    gated = torch.ops.tandem_cuda.tandem_count_backward(grad, gamma * normal + beta, threshold, upper)
    along = gated * normal
    inner = gated - gated.mean(others, keepdim=True) - normal * along.mean(others, keepdim=True)
    return gamma * gain * inner, along.sum(others), gated.sum(others)


register_gradient("tandem_norm_count", _backward, _setup_context)
