"""tandem_count: couple spike counts with the gradient of the ANN's activation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import neuron as models
from ..neuron import IF, Neuron, RadixIF
from . import checks
from .checked import checked_by
from .gradient import register_gradient
from .spike_count import empty_count


def _check(op: str, a: Any) -> None:
    checks.check_train(op, a.bits, a.time_steps)
    checks.check_floating(op, "pre_activation", a.pre_activation)
    checks.check_same_device(op, "pre_activation", a.pre_activation, a.bits, "bits")
    checks.check_shape(op, "pre_activation", a.pre_activation, a.bits.shape[1:])
    checks.check_firing(op, a.neuron, a.time_steps)
    checks.check_number(op, "upper", a.upper)
    if not a.upper > 0:
        raise ValueError(f"{op}: upper must be positive, got {a.upper}")


@checked_by(_check)
def tandem_count(
    bits: Tensor,
    pre_activation: Tensor,
    time_steps: int,
    neuron: Neuron = IF(),
    upper: float = math.inf,
) -> Tensor:
    """Return spike counts that carry the gradient of the ANN's activation (Wu et al. 2021, section III-C).

    Forward: the actual counts, :func:`spike_count` of ``bits``; for RadixIF neurons the values of
    :func:`radix_spikes`. Backward, with v = ``pre_activation``: the derivative of the ANN's activation
    ``neuron.activation(v, T)`` where v <= upper, else 0. For IF neurons the activation is relu(v) / threshold, so
    that::

        dc/dv = 1 / threshold  where 0 < v <= upper, else 0

    Args:
        bits: uint8 [P, N, ...].
        pre_activation: float32 or float64 [N, ...]: the current summed over all time steps. It may be in other units if
            the neuron (see ``neuron.scaled``) and ``upper`` are in the same units.
        time_steps: T.
        neuron: a neuron model, such as IF(...). ``clip`` and ``amplitude`` are ignored.
        upper: the gradient is zero where v > upper or v is NaN. The default, inf, sets no bound.

    Returns:
        [N, ...] in the dtype of ``pre_activation``, features last in memory.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, T or upper.
        RuntimeError: on the CPU, bits past T. On CUDA such bits are ignored.

    Examples:
        >>> v = torch.tensor([[2.5, -1.0]], requires_grad=True)
        >>> bits, _, _ = ops.integrate_and_fire(v.detach() / 4, time_steps=4)
        >>> count = ops.tandem_count(bits, v, time_steps=4)
        >>> count.detach()
        tensor([[2., 0.]])
        >>> count.sum().backward()
        >>> v.grad
        tensor([[1., 0.]])
    """
    # Radix neurons have the activation of IF neurons, relu(v) / theta.
    twin = IF(neuron.threshold_at(time_steps)) if isinstance(neuron, RadixIF) else neuron
    return torch.ops.tandem_cuda.tandem_count(
        bits, pre_activation, time_steps, twin.kind, twin.parameters, upper, neuron.radix
    )


@torch.library.register_fake("tandem_cuda::tandem_count")
def _(bits: Tensor, pre_activation: Tensor, *others: Any) -> Tensor:
    return empty_count(bits, pre_activation.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, pre_activation, ctx.time_steps, kind, parameters, ctx.upper, _ = inputs
    ctx.neuron = models.of_parameters(kind, parameters)
    ctx.save_for_backward(pre_activation)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (v,) = ctx.saved_tensors
    threshold = ctx.neuron.relu_threshold
    if threshold is not None:
        grad = torch.ops.tandem_cuda.tandem_count_backward(grad, v, threshold, ctx.upper)
    else:
        grad = torch.where(v <= ctx.upper, grad * ctx.neuron.slope(v, ctx.time_steps), 0.0)
    return None, grad, *[None] * 5


register_gradient("tandem_count", _backward, _setup_context)


@torch.library.register_fake("tandem_cuda::tandem_count_backward")
def _(grad: Tensor, pre_activation: Tensor, threshold: float, upper: float) -> Tensor:
    return torch.empty_like(pre_activation)


def _setup_context_twice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, pre_activation, ctx.threshold, ctx.upper = inputs
    ctx.save_for_backward(pre_activation)


def _backward_twice(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # The gradient is linear in the incoming gradient and piecewise constant in pre_activation.
    (v,) = ctx.saved_tensors
    return torch.ops.tandem_cuda.tandem_count_backward(grad, v, ctx.threshold, ctx.upper), None, None, None


register_gradient("tandem_count_backward", _backward_twice, _setup_context_twice)
