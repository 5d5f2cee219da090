"""What is shared by the products of spikes and weights, linear or convolutional, with or without neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..neuron import Neuron, RadixIF
from . import checks
from .geometry import Geometry, check_fit, check_geometry, out_size
from .gradient import refuse_tangents
from .integrate_and_fire import check_whole, discharge, total_bias
from .pack_weight import check_packed

ENGINES = ("auto", "event", "dense")
LINEAR = (*Geometry(), 1)
"""Stride, padding, dilation and groups of a linear product."""

Operands = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""bits, count, weight, packed, scale and bias."""


def check_engine(op: str, engine: Any) -> None:
    """Raise a ValueError unless this is an engine of the products."""
    if engine not in ENGINES:
        raise ValueError(f"{op}: engine must be one of {', '.join(ENGINES)}, got {engine!r}")


def check_operands(
    op: str, bits: Tensor, count: Any, weight: Tensor, packed: Any, scale: Any, bias: Any, groups: int
) -> None:
    """Check count, packed weights, scale and bias, after bits and weight have been checked against each other."""
    if weight.dtype in checks.INTEGERS:
        name = str(weight.dtype).removeprefix("torch.")
        if scale is None:
            raise ValueError(f"{op}: scale must be given with {name} weights")
        if weight.numel() // weight.shape[0] > 2**24:
            raise ValueError(f"{op}: {name} weights must have at most 2^24 inputs per neuron, got {list(weight.shape)}")
    if scale is not None:
        check_operand(op, "scale", scale, weight, weight.shape[:1])
        if scale.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{op}: scale must not require a gradient; detach it, or multiply the weights by it")
    if bias is not None:
        check_operand(op, "bias", bias, weight, weight.shape[:1])
    if count is not None:
        check_operand(op, "count", count, weight, bits.shape[1:])
    if packed is not None:
        check_packed(op, "packed", packed, weight, groups)


def check_trusted(weight: Tensor, dims: int, *constants: Tensor | None) -> None:
    """Raise a ValueError for what C++ does not refuse.

    C++ would take the weight of a convolution for a matrix, or a matrix for the weight of a convolution. No gradient
    reaches ``constants``.
    """
    if weight.dim() != dims:
        raise ValueError(f"weight must have {dims} dimensions, got {list(weight.shape)}")
    if torch.is_grad_enabled():
        for x in constants:
            if x is not None and x.requires_grad:
                raise ValueError("scale and added must not require a gradient")


def count_product(
    operands: Operands,
    geometry: tuple[Any, ...],
    engine: str,
    master: Tensor | None,
    unit: Tensor | None,
    radix: int = 0,
    neuron: Neuron | None = None,
    time_steps: int = 0,
    added: Tensor | None = None,
    amplitude: Tensor | None = None,
) -> Tensor:
    """Multiply counts, or values of radix spikes; ``geometry`` is stride, padding, dilation and groups.

    With a neuron, return the bits of its radix spikes. The sums drive it, with ``added`` of another branch.
    """
    if neuron is None:
        options = ENGINES.index(engine), master, unit, radix
        return torch.ops.tandem_cuda.count_product(*operands, *geometry, *options)
    refuse_tangents("count_linear" if operands[2].dim() == 2 else "count_conv2d", operands)
    bits, _, *constants = operands
    if torch.is_grad_enabled():
        constants = [None if x is None else x.detach() for x in constants]
        added, amplitude = (None if x is None else x.detach() for x in (added, amplitude))
    arguments = radix_arguments(constants, geometry, engine, radix, neuron, time_steps)
    return torch.ops.tandem_cuda.radix_product(bits, *arguments, added, amplitude)


def radix_arguments(
    constants: Sequence[Tensor | None],
    geometry: tuple[Any, ...],
    engine: str,
    radix: int,
    neuron: Neuron,
    time_steps: int,
) -> tuple[Any, ...]:
    """Return what ``radix_product`` gets between the bits and what another branch adds.

    ``constants`` are weight, packed, scale and bias.
    """
    options = ENGINES.index(engine), radix, time_steps
    return *constants, *geometry, *options, neuron.threshold_at(time_steps), neuron.initial


def spiking_product(
    op: str,
    operands: Operands,
    state: Tensor | None,
    time_steps: int,
    neuron: Neuron,
    geometry: tuple[Any, ...],
    engine: str,
    want_sum: bool,
    want_state: bool,
    masters: tuple[Tensor | None, Tensor | None],
    added: Tensor | None,
    amplitude: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the product and the neurons. Neurons with ``two_phase`` need only the counts' product.

    ``op`` is the name of the Python function, and ``geometry`` is stride, padding, dilation and groups.
    """
    if neuron.two_phase:
        check_whole(op, state)
        v = count_product((*operands[:5], total_bias(operands[5], time_steps)), geometry, engine, *masters)
        bits, final = discharge(v, time_steps, neuron, want_state)
        return bits, v if want_sum else v.new_empty(0), final
    state = None if state is None else state.detach()
    options = neuron.kind, neuron.parameters, ENGINES.index(engine), want_sum, want_state
    return torch.ops.tandem_cuda.spiking_product(
        *operands, state, *geometry, time_steps, *options, *masters, added, amplitude
    )


def current_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of currents, scales and biases: float32 for weights narrower than that."""
    return torch.float32 if weight.dtype in checks.NARROW else weight.dtype


def check_operand(op: str, argument: str, value: Any, weight: Tensor, expected: Sequence[int]) -> None:
    """Check the dtype, device and shape of a count, scale, bias or state."""
    if weight.dtype not in checks.NARROW:
        checks.check_like(op, argument, value, weight, "weight", expected)
        return
    checks.check_tensor(op, argument, value)
    if value.dtype != torch.float32:
        name = str(weight.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {argument} must be float32 with {name} weights, got {value.dtype}")
    checks.check_same_device(op, argument, value, weight, "weight")
    checks.check_shape(op, argument, value, expected)


def check_added(
    op: str,
    added: Any,
    amplitude: Any,
    weight: Tensor,
    bits: Sequence[int],
    currents: Sequence[int],
) -> None:
    """Check what another branch adds to what drives neurons, given the shapes of spikes and of currents."""
    if added is None:
        if amplitude is not None:
            raise ValueError(f"{op}: amplitude must be None without added, got a tensor")
        return
    if amplitude is not None:
        check_operand(op, "amplitude", amplitude, weight, weight.shape[:1])
    checks.check_tensor(op, "added", added)
    if added.dtype == torch.uint8:
        checks.check_same_device(op, "added", added, weight, "weight")
        checks.check_shape(op, "added", added, bits)
    else:
        check_operand(op, "added", added, weight, currents)
        if amplitude is not None:
            raise ValueError(f"{op}: amplitude must be None where added is no spikes of uint8, got a tensor")


def check_arguments(
    op: str,
    bits: Any,
    weight: Any,
    bias: Any,
    geometry: tuple[Any, Any, Any, Any] | None,
    packed: Any,
    scale: Any,
    count: Any = None,
    engine: Any = "auto",
) -> Geometry:
    """Check the arguments that all products have; return stride, padding and dilation as pairs.

    ``geometry`` is stride, padding, dilation and groups; None for a linear product.
    """
    checks.check_bits(op, bits)
    checks.check_weight(op, weight)
    checks.check_same_device(op, "weight", weight, bits, "bits")
    check_engine(op, engine)
    if geometry is None:
        if bits.dim() < 3:
            raise ValueError(f"{op}: bits must be [P, N, ..., F], got {list(bits.shape)}")
        if weight.dim() != 2 or weight.shape[1] != bits.shape[-1]:
            raise ValueError(
                f"{op}: weight must be [O, {bits.shape[-1]}] for bits of shape {list(bits.shape)}, got "
                f"{list(weight.shape)}"
            )
        check_not_empty(op, weight)
        check_operands(op, bits, count, weight, packed, scale, bias, 1)
        return Geometry()
    if bits.dim() != 5:
        raise ValueError(f"{op}: bits must be [P, N, C, H, W], got {list(bits.shape)}")
    if weight.dim() != 4:
        raise ValueError(f"{op}: weight must be [O, C/groups, kH, kW], got {list(weight.shape)}")
    *where, groups = geometry
    check_groups(op, bits.shape[2], weight, groups)
    check_operands(op, bits, count, weight, packed, scale, bias, groups)
    pairs = check_geometry(op, *where)
    check_fit(op, bits, weight, *pairs)
    return pairs


def check_count(op: str, a: Any) -> None:
    """Check the arguments of count_linear or count_conv2d, whichever ``op`` is."""
    geometry = None if op == "count_linear" else (a.stride, a.padding, a.dilation, a.groups)
    pairs = check_arguments(op, a.bits, a.weight, a.bias, geometry, a.packed, a.scale, a.count, a.engine)
    check_master(op, a.weight, a.master, a.unit)
    checks.check_radix(op, a.bits, a.radix)
    if a.neuron is not None:
        if not isinstance(a.neuron, RadixIF):
            raise TypeError(f"{op}: neuron must be None or a RadixIF, got {a.neuron!r}")
        checks.check_firing(op, a.neuron, a.time_steps)
        if a.added is not None or a.amplitude is not None:
            neurons = _neurons(a, geometry, pairs)
            check_added(op, a.added, a.amplitude, a.weight, (1, *neurons), neurons)
        return
    if a.time_steps:
        raise ValueError(f"{op}: time_steps must be 0 without neuron, got {a.time_steps}")
    for name, value in (("added", a.added), ("amplitude", a.amplitude)):
        if value is not None:
            raise ValueError(f"{op}: {name} must be None without neuron, got a tensor")


def check_spiking(op: str, a: Any) -> None:
    """Check the arguments of spiking_linear or spiking_conv2d, whichever ``op`` is."""
    geometry = None if op == "spiking_linear" else (a.stride, a.padding, a.dilation, a.groups)
    pairs = check_arguments(op, a.bits, a.weight, a.bias, geometry, a.packed, a.scale, a.count, a.engine)
    checks.check_train(op, a.bits, a.time_steps)
    checks.check_firing(op, a.neuron, a.time_steps)
    check_master(op, a.weight, a.master, a.unit)
    if a.state is None and a.added is None and a.amplitude is None:
        return
    neurons = _neurons(a, geometry, pairs)
    if a.neuron.two_phase and a.added is not None:
        raise ValueError(f"{op}: added must be None for two-phase neurons (add products of the counts), got a tensor")
    if isinstance(a.added, Tensor) and a.added.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: added must not require a gradient; detach it")
    check_added(op, a.added, a.amplitude, a.weight, (len(a.bits), *neurons), (a.time_steps, *neurons))
    if a.state is not None:
        if a.neuron.two_phase:
            check_whole(op, a.state)
        check_operand(op, "state", a.state, a.weight, (a.neuron.states, *neurons))


def _neurons(a: Any, geometry: Any, pairs: Any) -> tuple[int, ...]:
    """Return the shape of the neurons that the operator of these arguments drives."""
    batch = a.bits.shape[1:-1] if geometry is None else a.bits.shape[1:2]
    pixels = () if geometry is None else out_size(a.bits, a.weight, *pairs)
    return (*batch, a.weight.shape[0], *pixels)


def check_groups(op: str, channels: int, weight: Tensor, groups: Any) -> None:
    """Check a weight [O, C/groups, kH, kW] against the input's channels."""
    checks.check_int(op, "groups", groups)
    if groups < 1 or channels % groups or weight.shape[0] % groups:
        raise ValueError(
            f"{op}: groups must divide the input channels ({channels}) and the output channels ({weight.shape[0]}), "
            f"got {groups}"
        )
    if weight.shape[1] != channels // groups:
        raise ValueError(
            f"{op}: weight must be [O, {channels // groups}, kH, kW] for {channels} input channels in {groups} groups, "
            f"got {list(weight.shape)}"
        )
    check_not_empty(op, weight)


def check_not_empty(op: str, weight: Tensor) -> None:
    """Refuse weights without outputs, inputs or taps. Batches may be empty."""
    if 0 in weight.shape:
        raise ValueError(f"{op}: weight must have no empty dimension, got {list(weight.shape)}")


def check_master(op: str, weight: Tensor, master: Any, unit: Any) -> None:
    """Check the float weights that integers stand for, and the unit of the integers."""
    if master is not None:
        if weight.dtype not in checks.INTEGERS:
            raise ValueError(f"{op}: master must be None for weights that are no integers, got a tensor")
        for name, value, expected in (("master", master, weight.shape), ("unit", unit, weight.shape[:1])):
            if value is None:
                continue
            checks.check_tensor(op, name, value)
            if value.dtype != torch.float32:
                raise TypeError(f"{op}: {name} must be float32, got {value.dtype}")
            checks.check_same_device(op, name, value, weight, "weight")
            checks.check_shape(op, name, value, expected)
        if unit is not None:
            checks.check_finite(op, "unit", unit)
    elif unit is not None:
        raise ValueError(f"{op}: unit must be None without master, got a tensor")
