"""fold_norm: batch norm with running statistics as gain and bias of a layer's currents, in one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks
from .checked import checked_by
from .gradient import register_gradient
from .update_statistics import check_running


def _check(op: str, a: Any) -> None:
    check_running(op, a.running_mean, a.running_var)
    for name, value in (("gamma", a.gamma), ("beta", a.beta), ("bias", a.bias), ("unit", a.unit)):
        if value is not None:
            checks.check_like(op, name, value, a.running_mean, "running_mean", a.running_mean.shape)
    checks.check_number(op, "eps", a.eps)
    if not a.eps >= 0:
        raise ValueError(f"{op}: eps must not be negative, got {a.eps}")
    checks.check_positive(op, "amplitude", a.amplitude)
    checks.check_time_steps(op, a.time_steps)


@checked_by(_check)
def fold_norm(
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    unit: Tensor | None = None,
    eps: float = 1e-5,
    amplitude: float = 1.0,
    time_steps: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return batch norm with running statistics as a map from sums of weights to currents, gain * sum + bias.

    With g = gamma / sqrt(running_var + eps), the gain is unit * g * amplitude and the bias ((bias - running_mean) * g +
    beta) / time_steps (Wu et al. 2021, eq. 15; the authors' code omits eps). The root is rounded from double precision.
    Every other operation is rounded in the dtype of the statistics, from left to right, alike on all devices.

    Args:
        running_mean: float32 or float64 [C].
        running_var: [C].
        gamma: batch norm's weight, [C]; None for 1.
        beta: batch norm's bias, [C]; None for 0.
        bias: bias of the layer before batch norm, [C]; None for 0.
        unit: factor of the sums, [C], which sums of integer weights need; None for 1.
        eps: added to the variance.
        amplitude: weight of the input's spikes, positive.
        time_steps: T, over which the bias is spread.

    Returns:
        Gain and bias, each [C]. Twice differentiable.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or number.

    Examples:
        >>> mean, var = torch.tensor([1.0]), torch.tensor([4.0])
        >>> ops.fold_norm(mean, var, gamma=torch.tensor([6.0]), eps=0.0, time_steps=2)
        (tensor([3.]), tensor([-1.5000]))
    """
    statistics = running_mean, running_var, gamma, beta, bias, unit
    gain, shift = torch.ops.tandem_cuda.fold_norm(*statistics, eps, amplitude, time_steps)
    return gain, shift


@torch.library.register_fake("tandem_cuda::fold_norm")
def _(running_mean: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return running_mean.new_empty(running_mean.shape), running_mean.new_empty(running_mean.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps, ctx.amplitude, ctx.time_steps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_gain: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    mean, var, gamma, beta, bias, unit = ctx.saved_tensors
    variance = var + ctx.eps
    root = torch.sqrt(variance)
    g = 1 / root if gamma is None else gamma / root
    centred = -mean if bias is None else bias - mean
    of_gain, of_shift = grad_gain * ctx.amplitude, grad_bias / ctx.time_steps
    of_g = (of_gain if unit is None else of_gain * unit) + of_shift * centred
    of_centred = of_shift * g
    return (
        -of_centred,
        -of_g * g / (2 * variance),
        None if gamma is None else of_g / root,
        None if beta is None else of_shift,
        None if bias is None else of_centred,
        None if unit is None else of_gain * g,
        None,
        None,
        None,
    )


register_gradient("fold_norm", _backward, _setup_context)
