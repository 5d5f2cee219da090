"""ordered_spikes: ordered_product and the neurons that it drives, without the currents between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..neuron import IF, Neuron
from . import checks, layout
from .checked import checked_by
from .geometry import pairs
from .gradient import implement_on_cuda, refuse_tangent
from .integrate_and_fire import MODES, at_once
from .ordered_product import check_ordered
from .product_gradient import feature_dim, neurons_of


def _check(op: str, a: Any) -> None:
    check_ordered(op, a.x, a.weight, a.stride, a.padding, a.dilation, a.groups, a.packed)
    checks.check_firing(op, a.neuron, a.time_steps)
    if a.mode not in MODES or a.mode == "series":
        raise ValueError(f"{op}: mode must be one of constant, impulse, once, got {a.mode!r}")
    for name, value in (("scale", a.scale), ("bias", a.bias)):
        if value is not None:
            checks.check_like(op, name, value, a.x, "x", a.weight.shape[:1])


@checked_by(_check)
def ordered_spikes(
    x: Tensor,
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
    mode: str = "constant",
    neuron: Neuron = IF(),
) -> Tensor:
    """Multiply real input by integer weights and let the sums drive neurons.

    Returns the bits that :func:`integrate_and_fire` would return for the sums of :func:`ordered_product`. On the CPU,
    the sums of a few output pixels go straight to their neurons; no tensor holds all sums.

    Args:
        x: float32 [N, C, H, W], or [N, ..., F] for a linear product.
        weight: int8 or int16 [O, C/groups, kH, kW], or [O, F].
        time_steps: T.
        bias: [O], current per time step.
        stride: as in ``torch.nn.functional.conv2d``. It and the next three must be 1, 0, 1 and 1 for a linear product.
        padding: zero padding, an int or a pair.
        dilation: spacing of the kernel taps, an int or a pair.
        groups: number of channel groups.
        packed: the result of ``pack_weight(weight, groups)``, to avoid rearranging the weights in this call.
        scale: [O], factor of the sums.
        mode: "constant", "impulse" or "once", as in :func:`integrate_and_fire`.
        neuron: a neuron model, such as IF(...). ``clip`` and ``amplitude`` are ignored.

    Returns:
        The bits, uint8 [P, N, O, Ho, Wo], or [P, N, ..., O]; features last in memory. They have no gradient.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, mode or T, or an empty weight.
        NotImplementedError: forward-mode differentiation of ``x``.
        RuntimeError: on the CPU, an int16 weight beyond 32639; out of memory.

    Examples:
        >>> q = torch.tensor([[1, 2]], dtype=torch.int8)
        >>> bits = ops.ordered_spikes(torch.tensor([[0.5, 0.25]]), q, 4, scale=torch.tensor([0.5]))
        >>> bin(bits.item())
        '0b1010'
    """
    if not torch.compiler.is_compiling():
        refuse_tangent("ordered_spikes", x)
    geometry = *pairs(stride, padding, dilation), groups
    operator, arguments = ordered_operator(x, weight, time_steps, bias, geometry, packed, scale, mode, neuron)
    return operator(x.detach(), *arguments)


def ordered_operator(
    x: Tensor,
    weight: Tensor,
    time_steps: int,
    bias: Tensor | None,
    geometry: tuple[Any, ...],
    packed: Tensor | None,
    scale: Tensor | None,
    mode: str,
    neuron: Neuron,
) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """Return the operator of :func:`ordered_spikes` and what it gets behind the input.

    ``geometry`` is stride, padding, dilation and groups.
    """
    scale, bias = (None if value is None else value.detach() for value in (scale, bias))
    if neuron.two_phase:
        scale, bias = at_once(scale, bias, mode, time_steps, x, weight.shape[0])
        mode = "once"
    constants = weight, packed, scale, bias
    if neuron.radix:
        firing = time_steps, neuron.threshold_at(time_steps), neuron.initial
        return torch.ops.tandem_cuda.ordered_radix_spikes, (*constants, *geometry, *firing)
    options = time_steps, MODES.index(mode), neuron.kind, neuron.parameters
    return torch.ops.tandem_cuda.ordered_spikes, (*constants, *geometry, *options)


def _rows(sums: Tensor, weight: Tensor) -> Tensor:
    """Return the sums with the channels behind N."""
    return sums if weight.dim() == 4 else sums.flatten(0, -2)


def _on_cuda(x: Tensor, weight: Tensor, packed: Tensor | None, scale: Any, bias: Any, *options: Any) -> Tensor:
    """Call the two operators one after the other."""
    operators = torch.ops.tandem_cuda
    *geometry, time_steps, mode, neuron, parameters = options
    sums = operators.ordered_product(x, weight, packed, *geometry, None, None)
    bits = operators.integrate_and_fire(
        _rows(sums, weight), scale, bias, None, time_steps, mode, neuron, parameters, want_sum=False, want_state=False
    )[0]
    return _of_all(bits, sums, weight)


def _of_all(bits: Tensor, sums: Tensor, weight: Tensor) -> Tensor:
    """Return the bits in the shape of the sums."""
    # A view of the same shape could have other strides in dimensions of size 1.
    return bits if weight.dim() == 4 else bits.view(len(bits), *sums.shape)


def _radix_on_cuda(x: Tensor, weight: Tensor, packed: Tensor | None, scale: Any, bias: Any, *options: Any) -> Tensor:
    operators = torch.ops.tandem_cuda
    *geometry, time_steps, threshold, initial = options
    sums = operators.ordered_product(x, weight, packed, *geometry, None, None)
    firing = time_steps, threshold, initial, False
    return _of_all(operators.radix_spikes(_rows(sums, weight), scale, bias, *firing)[0], sums, weight)


implement_on_cuda("ordered_spikes", _on_cuda)
implement_on_cuda("ordered_radix_spikes", _radix_on_cuda)


@torch.library.register_fake("tandem_cuda::ordered_radix_spikes")
@torch.library.register_fake("tandem_cuda::ordered_spikes")
def _(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    stride, padding, dilation, _, time_steps, *_ = others[3:]
    neurons = neurons_of(x.unsqueeze(0), weight, stride, padding, dilation)
    shape = [checks.planes_for(time_steps), *neurons]
    return layout.empty_channels_last(x, shape, torch.uint8, 1 + feature_dim(weight, neurons))
