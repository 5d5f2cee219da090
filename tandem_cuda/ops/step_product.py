"""step_product: the currents of a spiking product, without its neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks, layout
from .checked import checked_by
from .geometry import pairs
from .gradient import implement_on_cuda
from .product import LINEAR, check_arguments, current_dtype
from .product_gradient import feature_dim, neurons_of


def _check(op: str, a: Any) -> None:
    weight, scale, bias = (x.detach() if isinstance(x, Tensor) else x for x in (a.weight, a.scale, a.bias))
    linear = isinstance(weight, Tensor) and weight.dim() == 2
    geometry = None if linear else (a.stride, a.padding, a.dilation, a.groups)
    check_arguments(op, a.bits, weight, bias, geometry, a.packed, scale)
    checks.check_train(op, a.bits, a.time_steps)


@checked_by(_check)
def step_product(
    bits: Tensor,
    weight: Tensor,
    time_steps: int,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    packed: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Multiply the spikes of every time step by weights: the currents that a branch adds to a sum.

    For t = 1..T, x[t] = scale * (weight * s[t]) + bias. On the CPU the event-driven engine computes it, on CUDA
    products of the spikes of each step.

    Args:
        bits: uint8 [P, N, C, H, W], or [P, N, ..., F] for a linear product.
        weight: float32, float64, float16, bfloat16, int8 or int16 [O, C/groups, kH, kW], or [O, F]. With one of the
            last four, all other arguments and the result are float32.
        time_steps: T.
        bias: [O], current per time step.
        stride: as in ``torch.nn.functional.conv2d``. It and the next three must be 1, 0, 1 and 1 for a linear product.
        padding: zero padding, an int or a pair.
        dilation: spacing of the kernel taps, an int or a pair.
        groups: number of channel groups.
        packed: the result of ``pack_weight(weight, groups)``, to avoid rearranging the weights in this call.
        scale: [O], one factor per output channel; required with int8 and int16 weights.

    Returns:
        The currents, [T, N, O, Ho, Wo] or [T, N, ..., O], features last in memory. They have no gradient.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or T, or an empty weight.
        RuntimeError: on the CPU, a weight, scale or bias that is not finite, or bits past T; out of memory.

    Examples:
        >>> bits = ops.pack_spikes(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
        >>> ops.step_product(bits, torch.tensor([[0.5, 0.25]]), time_steps=2).flatten()
        tensor([0.5000, 0.7500])
    """
    geometry = LINEAR if weight.dim() == 2 else (*pairs(stride, padding, dilation), groups)
    scale, bias = (None if x is None else x.detach() for x in (scale, bias))
    return torch.ops.tandem_cuda.step_product(bits, weight.detach(), packed, scale, bias, *geometry, time_steps)


def _on_cuda(bits: Tensor, weight: Tensor, packed: Tensor | None, scale: Any, bias: Any, *options: Any) -> Tensor:
    """Treat every time step as a sample of one step."""
    operators = torch.ops.tandem_cuda
    *geometry, time_steps = options
    steps = operators.unpack_spikes(bits, time_steps, torch.uint8).flatten(0, 1).unsqueeze(0)
    product = operators.count_product(steps, None, weight, packed, scale, bias, *geometry, 0, None, None)
    # Through memory order: the strides of dimensions of size 0 and 1 are then the ones that the fake kernel returns.
    channel_dim = feature_dim(weight, list(product.shape))
    sums = product.movedim(channel_dim, -1)
    return sums.view(time_steps, bits.shape[1], *sums.shape[1:]).movedim(-1, 1 + channel_dim)


implement_on_cuda("step_product", _on_cuda)


@torch.library.register_fake("tandem_cuda::step_product")
def _(bits: Tensor, weight: Tensor, *others: Any) -> Tensor:
    stride, padding, dilation, _, time_steps = others[3:]
    neurons = neurons_of(bits, weight, stride, padding, dilation)
    shape = [time_steps, *neurons]
    return layout.empty_channels_last(bits, shape, current_dtype(weight), 1 + feature_dim(weight, neurons))
