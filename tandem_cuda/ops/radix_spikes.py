"""radix_spikes: the spikes of neurons whose train is a binary number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..neuron import RadixIF, check_neuron
from . import checks, layout
from .checked import checked_by


def _check(op: str, a: Any) -> None:
    checks.check_floating(op, "v", a.v)
    check_neuron(op, a.neuron, (RadixIF,))
    checks.check_radix_steps(op, a.time_steps)
    if a.v.dim() < 2:
        raise ValueError(f"{op}: v must be [N, C, ...], got {list(a.v.shape)}")
    for name, value in (("scale", a.scale), ("bias", a.bias)):
        if value is not None:
            checks.check_like(op, name, value, a.v, "v", a.v.shape[1:2])


@checked_by(_check)
def radix_spikes(
    v: Tensor, time_steps: int, neuron: RadixIF, *, scale: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Return the spikes of radix neurons (Stoeckl and Maass 2021, arXiv:2002.00860, section 3).

    With theta = ``neuron.threshold_at(T)`` and u[1] = scale * v + bias + initial * theta, at every time step t = 1..T::

        s[t] = 1 if u[t] >= theta * 2^(T-t) else 0
        u[t+1] = u[t] - theta * 2^(T-t) * s[t]

    The result is the number that has the spikes as its binary digits, the first step's in front::

        q = clip(floor(u[1] / theta), 0, 2^T - 1)

    A NaN gives 0.

    Args:
        v: float32 or float64 [N, C, ...]: the current summed over all time steps.
        time_steps: T, from 1 to 8.
        neuron: a neuron model with such spikes, RadixIF(...). ``clip`` is ignored.
        scale: [C], factor of v, for example batch norm's gain.
        bias: [C]. It is added once, not at each time step.

    Returns:
        The bits, uint8 [1, N, C, ...], features last in memory: each byte is a q. They have no gradient:
        see :func:`tandem_count`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or T.
        RuntimeError: a level that is too large or too small for the dtype of ``v``; out of memory.

    Examples:
        >>> from tandem_cuda.neuron import RadixIF
        >>> neuron = RadixIF(level=4.0)
        >>> bits = ops.radix_spikes(torch.tensor([[0.1, 1.1, 9.0]]), 2, neuron)
        >>> bits  # each from 0 to 3
        tensor([[[0, 1, 3]]], dtype=torch.uint8)
        >>> ops.tandem_count(bits, torch.zeros(1, 3), 2, neuron)
        tensor([[0., 1., 3.]])
    """
    scale, bias = (None if x is None else x.detach() for x in (scale, bias))
    return fire_radix(v.detach(), scale, bias, time_steps, neuron, False)[0]


def fire_radix(
    v: Tensor, scale: Tensor | None, bias: Tensor | None, time_steps: int, neuron: Any, want_state: bool
) -> tuple[Tensor, Tensor]:
    """Return the bits of :func:`radix_spikes`, and the potential that no spike stands for, [1, N, C, ...]."""
    theta = neuron.threshold_at(time_steps)
    return torch.ops.tandem_cuda.radix_spikes(v, scale, bias, time_steps, theta, neuron.initial, want_state)


@torch.library.register_fake("tandem_cuda::radix_spikes")
def _(current: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, want_state = others
    neurons = [1, *current.shape]
    bits = layout.empty_channels_last(current, neurons, torch.uint8, 2)
    state = layout.empty_channels_last(current, neurons if want_state else [0], current.dtype, 2 if want_state else 0)
    return bits, state
