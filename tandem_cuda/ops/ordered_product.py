"""ordered_product: real input times integer weights, added in one order everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import autocast, checks, layout
from .checked import checked_by
from .geometry import check_fit, check_geometry, pairs
from .gradient import register_gradient
from .pack_weight import check_packed
from .product import check_groups, check_master, check_not_empty
from .product_gradient import feature_dim, gradients_of, neurons_of


def _check(op: str, a: Any) -> None:
    check_ordered(op, a.x, a.weight, a.stride, a.padding, a.dilation, a.groups, a.packed)
    check_master(op, a.weight, a.master, a.unit)


@checked_by(_check)
def ordered_product(
    x: Tensor,
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    packed: Tensor | None = None,
    master: Tensor | None = None,
    unit: Tensor | None = None,
) -> Tensor:
    """Multiply real input by integer weights, with the same result on every instruction set, device and batch.

    Each product is rounded to float32 and added to the sum of the products before it, in the order of the taps, with
    input channels innermost. A network with integer weights needs this for the layer that encodes its input.

    Args:
        x: float32 [N, C, H, W], or [N, ..., F] for a linear product.
        weight: int8 or int16 [O, C/groups, kH, kW], or [O, F].
        stride: as in ``torch.nn.functional.conv2d``. It and the next three must be 1, 0, 1 and 1 for a linear product.
        padding: zero padding, an int or a pair.
        dilation: spacing of the kernel taps, an int or a pair.
        groups: number of channel groups.
        packed: the result of ``pack_weight(weight, groups)``, to avoid rearranging the weights in this call.
        master: float32, in the shape of ``weight``: the weights for which ``unit * weight`` stands. They get the
            gradient (straight-through: as if nothing were rounded). Their values are not read.
        unit: [O]; None for 1.

    Returns:
        float32 [N, O, Ho, Wo], or [N, ..., O]; features last in memory, differentiable in ``x`` and ``master``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device, or an empty weight.
        RuntimeError: on the CPU, an int16 weight beyond 32639; out of memory.

    Examples:
        >>> q = torch.tensor([[1, 2, 3]], dtype=torch.int8)
        >>> ops.ordered_product(torch.tensor([[0.5, 0.25, 1.0]]), q)
        tensor([[4.]])
    """
    geometry = (*pairs(stride, padding, dilation), groups)
    return torch.ops.tandem_cuda.ordered_product(x, weight, packed, *geometry, master, unit)


def check_ordered(
    op: str, x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: Any, packed: Any
) -> None:
    """Check what ordered products take."""
    checks.check_tensor(op, "x", x)
    checks.check_tensor(op, "weight", weight)
    if x.dtype != torch.float32:
        raise TypeError(f"{op}: x must be float32, got {x.dtype}")
    if weight.dtype not in checks.INTEGERS:
        raise TypeError(f"{op}: weight must be int8 or int16, got {weight.dtype}")
    checks.check_same_device(op, "weight", weight, x, "x")
    geometry = check_geometry(op, stride, padding, dilation)
    if weight.dim() == 2:
        if x.dim() < 2 or weight.shape[1] != x.shape[-1]:
            raise ValueError(
                f"{op}: weight must be [O, {x.shape[-1] if x.dim() else 'F'}] for x {list(x.shape)}, got "
                f"{list(weight.shape)}"
            )
        check_not_empty(op, weight)
    else:
        if x.dim() != 4 or weight.dim() != 4:
            raise ValueError(
                f"{op}: x must be [N, C, H, W] and weight [O, C/groups, kH, kW], got {list(x.shape)} and "
                f"{list(weight.shape)}"
            )
        check_groups(op, x.shape[1], weight, groups)
        check_fit(op, x, weight, *geometry)
    if packed is not None:
        check_packed(op, "packed", packed, weight, groups)


@torch.library.register_fake("tandem_cuda::ordered_product")
def _(x: Tensor, weight: Tensor, packed: Tensor | None, *geometry: Any) -> Tensor:
    stride, padding, dilation = geometry[:3]
    neurons = neurons_of(x.unsqueeze(0), weight, stride, padding, dilation)
    return layout.empty_channels_last(x, neurons, torch.float32, feature_dim(weight, neurons))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *convolution, _, unit = inputs
    ctx.convolution, ctx.dtype = tuple(convolution), autocast.running.gradients
    ctx.save_for_backward(x, weight, unit)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    x, weight, unit = ctx.saved_tensors
    needed = ctx.needs_input_grad[0], ctx.needs_input_grad[7]
    grad_x, grad_master = gradients_of(grad, x, weight, unit, needed, ctx.convolution, None, ctx.dtype)
    return grad_x, *[None] * 6, grad_master, None


register_gradient("ordered_product", _backward, _setup)
autocast.lower_gradients("ordered_product")
