"""Neurons at the end of a product, and neurons that currents drive."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .. import ops
from ..neuron import Neuron


class Firing(NamedTuple):
    """The neurons that a product drives, and what drives them beside the product."""

    neuron: Neuron
    engine: str
    added: Tensor | None = None
    """What another branch adds: currents [T, N, O, ...], added up for RadixIF (T = 1), or bits [P, N, O, ...]."""
    amplitude: Tensor | None = None
    """The weight of spikes in ``added``, or of their values, [O]; None for 1."""

    def values(self, like: Tensor, features: int) -> Tensor:
        """Return what RadixIF neurons [N, O, ...] get from the other branch, in the dtype of ``like``.

        ``features`` is the dimension of the O neurons, 1 or -1.
        """
        assert self.added is not None
        values = self.added.squeeze(0).to(like.dtype)
        if self.amplitude is None:
            return values
        return values * (self.amplitude if features == -1 else self.amplitude.view(-1, *[1] * (like.dim() - 2)))


class Fired(NamedTuple):
    """What a product with neurons returns."""

    bits: Tensor
    sum: Tensor
    """The currents of all time steps, added up; empty unless asked for."""
    state: Tensor
    """The neurons' final state; empty unless asked for."""


def check_reads_radix(neuron: Neuron, name: str | None = None) -> None:
    """Raise ValueError if neurons cannot read radix spikes, which make a number only together.

    name: of the layer, for the message; None where the caller adds it.
    """
    if not neuron.two_phase:
        raise ValueError(
            f"{f'{name}: ' if name else ''}neuron must wait for all time steps to read radix spikes, as RadixIF(...) "
            f"and IF(two_phase=True) do, got {neuron}"
        )


def mode_for(name: str, neuron: Neuron, mode: str) -> str:
    """Return the mode in which real input of Encode's ``mode`` drives the neurons; ValueError if there is none."""
    if not neuron.radix:
        return mode
    if mode == "constant":
        raise ValueError(
            f"{name}: input of {type(neuron).__name__} neurons must be encoded with mode 'impulse' or 'radix', since "
            "constant input adds up to T times its value, got 'constant'"
        )
    return "once"


def run_neurons(
    neuron: Neuron,
    current: Tensor,
    steps: int,
    mode: str,
    scale: Tensor | None,
    bias: Tensor | None,
    features: int,
    *,
    state: Tensor | None = None,
    want_state: bool = False,
) -> Fired:
    """Drive neurons by a current; the sum of the currents is not returned.

    Args:
        neuron: the neuron model.
        current: [N, O, ...], as :func:`tandem_cuda.ops.integrate_and_fire` takes it.
        steps: T.
        mode: "constant", "impulse" or "once".
        scale: factor of the current, [O].
        bias: added in every time step, [O].
        features: the dimension of the current that has the O neurons, 1 or -1.
        state: continues an earlier call.
        want_state: return the final state.
    """
    shape = current.shape
    flat = features == -1 and current.dim() > 2
    if flat:  # the operator wants the neurons behind N
        current, state = current.flatten(0, -2), None if state is None else state.flatten(1, -2)
    settings: dict[str, Any] = {"scale": scale, "mode": mode, "neuron": neuron}
    bits, total, after = ops.integrate_and_fire.trusted(
        current, steps, bias, state, **settings, want_sum=False, want_state=want_state
    )
    if flat:
        bits, after = bits.view(len(bits), *shape), after.view(len(after), *shape) if want_state else after
    return Fired(bits, total, after)
