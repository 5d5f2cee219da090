"""integrate_and_fire: the neuron loop on given currents."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, layout

_MODES = ("constant", "impulse", "series")


def integrate_and_fire(
    current: Tensor,
    time_steps: int,
    bias: Tensor | None = None,
    potential: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    mode: str = "constant",
    threshold: float = 1.0,
    leak: float = 1.0,
    want_sum: bool = True,
    want_potential: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run integrate-and-fire neurons on a current (Wu et al. 2021, eqs. 1-3).

    For t = 1..T, with u[0] = ``potential`` or 0 and s[t] = (u[t] >= threshold)::

        u[t] = leak * u[t-1] - threshold * s[t-1] + x[t]

    where x[t] is ``scale * current + bias`` at every step (mode "constant"), the same at t = 1 and ``bias`` afterwards
    ("impulse"), or ``scale * current[t] + bias`` ("series"). A NaN current makes a neuron fall silent: it never
    reaches the threshold again.

    Args:
        current: float32 or float64 [N, C, ...]; in mode "series" [T, N, C, ...].
        time_steps: T.
        bias: [C], current per time step.
        potential: [N, C, ...]: u[0] before its reset, as an earlier call returned it; a simulation continues there.
        scale: [C], of the current; batch norm's gain, for one.
        mode: how ``current`` spreads over time.
        threshold: firing threshold, positive.
        leak: in (0, 1]; 1 is IF, less is LIF.
        want_sum: compute the sum of currents.
        want_potential: return the final potential.

    Returns:
        ``(bits, sum, potential)``: uint8 [P, N, C, ...]; the sum over t of x[t], [N, C, ...]; u[T], [N, C, ...]. An
        output that is not wanted is an empty tensor. None of them has a gradient: see :func:`tandem_count`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device, mode, threshold, leak or T that does not fit.
    """
    op = "integrate_and_fire"
    checks.check_floating(op, "current", current)
    checks.check_time_steps(op, time_steps)
    checks.check_neuron(op, threshold, leak)
    if mode not in _MODES:
        raise ValueError(f"{op}: mode must be one of {', '.join(_MODES)}, got {mode!r}")
    series = mode == "series"
    if current.dim() < (3 if series else 2):
        expected = "[T, N, C, ...]" if series else "[N, C, ...]"
        raise ValueError(f"{op}: current must be {expected}, got {list(current.shape)}")
    if series and current.shape[0] != time_steps:
        raise ValueError(f"{op}: current must hold {time_steps} time steps, got {list(current.shape)}")
    neurons = current.shape[1:] if series else current.shape
    if scale is not None:
        checks.check_like(op, "scale", scale, current, "current", neurons[1:2])
    if bias is not None:
        checks.check_like(op, "bias", bias, current, "current", neurons[1:2])
    if potential is not None:
        checks.check_like(op, "potential", potential, current, "current", neurons)
    return torch.ops.tandem_cuda.integrate_and_fire(
        current.detach(),
        None if scale is None else scale.detach(),
        None if bias is None else bias.detach(),
        None if potential is None else potential.detach(),
        time_steps,
        _MODES.index(mode),
        threshold,
        leak,
        want_sum,
        want_potential,
    )


@torch.library.register_fake("tandem_cuda::integrate_and_fire")
def _(
    current: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    potential: Tensor | None,
    time_steps: int,
    mode: int,
    threshold: float,
    leak: float,
    want_sum: bool,
    want_potential: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    neurons = list(current.shape[1:] if _MODES[mode] == "series" else current.shape)
    bits = layout.empty_channels_last(current, [checks.planes_for(time_steps), *neurons], torch.uint8, 2)
    total = layout.empty_channels_last(current, neurons if want_sum else [0], current.dtype, 1 if want_sum else 0)
    final = layout.empty_channels_last(
        current, neurons if want_potential else [0], current.dtype, 1 if want_potential else 0
    )
    return bits, total, final
