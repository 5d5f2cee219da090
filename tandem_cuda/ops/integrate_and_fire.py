"""integrate_and_fire: run the neuron loop on given currents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import neuron as models
from ..neuron import IF, Neuron
from . import checks, layout
from .checked import checked_by
from .radix_spikes import fire_radix

MODES = ("constant", "impulse", "series", "once")


def _check(op: str, a: Any) -> None:
    checks.check_floating(op, "current", a.current)
    checks.check_firing(op, a.neuron, a.time_steps)
    if a.mode not in MODES:
        raise ValueError(f"{op}: mode must be one of {', '.join(MODES)}, got {a.mode!r}")
    series = a.mode == "series"
    if a.current.dim() < (3 if series else 2):
        expected = "[T, N, C, ...]" if series else "[N, C, ...]"
        raise ValueError(f"{op}: current must be {expected}, got {list(a.current.shape)}")
    if series and a.current.shape[0] != a.time_steps:
        raise ValueError(f"{op}: current must hold {a.time_steps} time steps, got {list(a.current.shape)}")
    neurons = a.current.shape[1:] if series else a.current.shape
    if a.scale is not None:
        checks.check_like(op, "scale", a.scale, a.current, "current", neurons[1:2])
    if a.bias is not None:
        checks.check_like(op, "bias", a.bias, a.current, "current", neurons[1:2])
    if a.state is not None:
        if a.neuron.two_phase:
            check_whole(op, a.state)
        checks.check_like(op, "state", a.state, a.current, "current", (a.neuron.states, *neurons))


@checked_by(_check)
def integrate_and_fire(
    current: Tensor,
    time_steps: int,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    mode: str = "constant",
    neuron: Neuron = IF(),
    want_sum: bool = True,
    want_state: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run spiking neurons on a current (Wu et al. 2021, eqs. 1-3).

    At time step t = 1..T the current x[t] drives the neurons (see :class:`tandem_cuda.IF`). By mode, x[t] is

    - "constant": ``scale * current + bias`` at every step;
    - "impulse": ``scale * current + bias`` at t = 1, ``bias`` afterwards;
    - "series": ``scale * current[t] + bias``;
    - "once": ``scale * current + bias`` at t = 1, 0 afterwards.

    Neurons with ``two_phase`` receive the sum of all x[t] at t = 1, and 0 afterwards; RadixIF neurons are such, see
    :func:`radix_spikes`. A neuron that receives a NaN current never fires again.

    Args:
        current: float32 or float64 [N, C, ...]; in mode "series" [T, N, C, ...].
        time_steps: T.
        bias: [C], current per time step.
        state: [S, N, C, ...], the S state variables returned by an earlier call, to continue its simulation. The first
            variable is u[0] before its reset. Not for neurons with ``two_phase``, which take all steps at once.
        scale: [C], factor of the current, for example batch norm's gain.
        mode: "constant", "impulse", "series" or "once".
        neuron: a neuron model, such as IF(...). ``clip`` and ``amplitude`` are ignored.
        want_sum: return the sum of the currents.
        want_state: return the final state.

    Returns:
        ``(bits, sum, state)``: uint8 [P, N, C, ...]; the sum over t of x[t], [N, C, ...]; the final state,
        [S, N, C, ...], of RadixIF neurons the potential after the last step, [1, N, C, ...]. An output that was not
        requested is an empty tensor. The outputs have no gradient: see :func:`tandem_count`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, mode or T, or a state of neurons with ``two_phase``.

    Examples:
        >>> bits, total, state = ops.integrate_and_fire(torch.tensor([[0.5]]), time_steps=4)
        >>> bin(bits.item()), total.item(), state.item()
        ('0b1010', 2.0, 1.0)
    """
    series = mode == "series"
    current = current.detach()
    scale = None if scale is None else scale.detach()
    bias = None if bias is None else bias.detach()
    state = None if state is None else state.detach()
    if neuron.two_phase:
        check_whole("integrate_and_fire", state)
    if neuron.radix:
        if want_sum or mode != "once":
            current, scale, bias = _total(current, scale, bias, time_steps, mode), None, None
        bits, after = fire_radix(current, scale, bias, time_steps, neuron, want_state)
        return bits, current if want_sum else current.new_empty(0), after
    if neuron.two_phase:
        if series:
            current, scale, bias = _total(current, scale, bias, time_steps, mode), None, None
        else:
            scale, bias = at_once(scale, bias, mode, time_steps, current, current.shape[1])
        mode = "once"
    return _run(current, scale, bias, state, time_steps, mode, neuron, want_sum, want_state)


def _total(current: Tensor, scale: Tensor | None, bias: Tensor | None, time_steps: int, mode: str) -> Tensor:
    """Return the sum of the currents of all steps, which one-phase neurons add up."""
    steps = 1 if mode == "once" else time_steps
    _, total, _ = _run(current, scale, bias, None, steps, mode, IF(), True, False)
    return total


def _run(
    current: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    state: Tensor | None,
    time_steps: int,
    mode: str,
    neuron: Neuron,
    want_sum: bool,
    want_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.tandem_cuda.integrate_and_fire(
        *(current, scale, bias, state, time_steps, MODES.index(mode)),
        *(neuron.kind, neuron.parameters, want_sum, want_state),
    )


def discharge(v: Tensor, time_steps: int, neuron: Neuron, want_state: bool = False) -> tuple[Tensor, Tensor]:
    """Return the bits of neurons with ``two_phase`` whose input adds up to v, and their final state."""
    if neuron.radix:
        return fire_radix(v.detach(), None, None, time_steps, neuron, want_state)
    bits, _, state = _run(v.detach(), None, None, None, time_steps, "once", neuron, False, want_state)
    return bits, state


def at_once(
    scale: Tensor | None, bias: Tensor | None, mode: str, time_steps: int, like: Tensor, channels: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return scale and bias [C] of the sum over all steps of a current that drives neurons in this mode."""
    if mode == "once":
        return scale, bias
    if mode == "constant":
        scale = like.new_full([channels], time_steps) if scale is None else scale * time_steps
    return scale, total_bias(bias, time_steps)


def total_bias(bias: Tensor | None, time_steps: int) -> Tensor | None:
    """Return the sum over all steps of a bias per step."""
    return None if bias is None else bias * time_steps


def check_whole(op: str, state: Tensor | None) -> None:
    """Raise a ValueError if neurons with ``two_phase`` are to continue an earlier call."""
    if state is not None:
        raise ValueError(f"{op}: state must be None with two_phase (such neurons need all time steps in one call)")


@torch.library.register_fake("tandem_cuda::integrate_and_fire")
def _(current: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    time_steps, mode, neuron, _, want_sum, want_state = others[3:]
    neurons = list(current.shape[1:] if MODES[mode] == "series" else current.shape)
    bits = layout.empty_channels_last(current, [checks.planes_for(time_steps), *neurons], torch.uint8, 2)
    total = layout.empty_channels_last(current, neurons if want_sum else [0], current.dtype, 1 if want_sum else 0)
    states = models.STATES[neuron]
    final = layout.empty_channels_last(
        current, [states, *neurons] if want_state else [0], current.dtype, 2 if want_state else 0
    )
    return bits, total, final
