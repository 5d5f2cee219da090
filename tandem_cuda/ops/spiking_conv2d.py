"""spiking_conv2d: event-driven convolution fused with the neuron loop."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..neuron import IF, Neuron
from .checked import checked_by
from .geometry import pairs
from .product import check_spiking, check_trusted, spiking_product


@checked_by(check_spiking)
def spiking_conv2d(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    state: Tensor | None = None,
    *,
    packed: Tensor | None = None,
    scale: Tensor | None = None,
    count: Tensor | None = None,
    time_steps: int,
    neuron: Neuron = IF(),
    want_sum: bool = True,
    want_state: bool = True,
    engine: str = "auto",
    master: Tensor | None = None,
    unit: Tensor | None = None,
    added: Tensor | None = None,
    amplitude: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve a spike train at every time step and feed integrate-and-fire neurons (Wu et al. 2021, eqs. 1-5).

    For t = 1..T, x[t] = scale * (weight * s_in[t]) + bias drives the neurons of :func:`integrate_and_fire`. The
    event-driven engine adds weights only for inputs that spike, and stores neither the currents nor float spikes of the
    time steps. Sums of int8 and int16 weights are exact integers, equal in any order.

    Args:
        bits: uint8 [P, N, C, H, W].
        weight: float32, float64, float16, bfloat16, int8 or int16 [O, C/groups, kH, kW]. With one of the last four, all
            other arguments and all results are float32. Each gradient has the dtype of its tensor.
        bias: [O], current per time step (the ANN's bias divided by T).
        stride: as in ``torch.nn.functional.conv2d``.
        padding: zero padding, an int or a pair.
        dilation: spacing of the kernel taps, an int or a pair.
        groups: number of channel groups, as in ``torch.nn.functional.conv2d``.
        state: [S, N, O, Ho, Wo], the S state variables returned by an earlier call, to continue its simulation. The
            first variable is u[0] before its reset.
        packed: the result of ``pack_weight(weight, groups)``, to avoid rearranging the weights in this call.
        scale: [O], one factor per output channel; required with int8 and int16 weights. It gets no gradient.
        count: [N, C, H, W], the differentiable count of ``bits``, which gets the gradient. The forward pass does not
            read its values.
        time_steps: T.
        neuron: a neuron model, such as IF(...). ``clip`` and ``amplitude`` are ignored.
        want_sum: return the sum of the currents.
        want_state: return the final state.
        engine: "event": the work grows with the number of spikes. "dense": torch's own convolution of unpacked spikes,
            one sample at a time. "auto": the faster of the two, chosen for each sample by its own spikes, so that no
            result depends on the rest of the batch. With integer weights, "dense" is an engine of this library. On
            CUDA, "dense" uses tensor cores: it needs compute capability 8.0 or newer and does not support float64
            weights. Sums of integer weights are exact, and on CUDA all sums are the same with every engine (see
            docs/cuda.md).
        master: float32, in the shape of ``weight``: the weights for which integers times ``unit`` stand. They get the
            gradient (straight-through: as if nothing were rounded). Their values are not read.
        unit: [O]; None for 1.
        added: what another branch of a sum adds to x[t]: currents [T, N, O, Ho, Wo], or spikes uint8 [P, N, O, Ho, Wo],
            each of which adds ``amplitude``. Not with two-phase neurons. It gets no gradient and is part of the sum.
        amplitude: [O], what a spike in ``added`` adds; None for 1.

    Returns:
        ``(bits, sum, state)``: uint8 [P, N, O, Ho, Wo]; the sum over t of x[t], [N, O, Ho, Wo]; the final state,
        [S, N, O, Ho, Wo]. All are channels last in memory. The sum is the ANN's pre-activation and is differentiable in
        ``weight``, ``bias`` and ``count``. An output that was not requested is an empty tensor.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or T, an empty weight, or an engine that does not support the weights.
        RuntimeError: on the CPU, a weight, scale or bias that is not finite, or bits past T; out of memory.

    Examples:
        >>> bits = ops.pack_spikes(torch.ones(4, 1, 1, 3, 3))
        >>> out, v, state = ops.spiking_conv2d(bits, torch.full((1, 1, 3, 3), 0.125), time_steps=4)
        >>> bin(out.item()), v.item()
        ('0b1111', 4.5)
    """
    check_trusted(weight, 4, scale, added)
    operands = bits, count, weight, packed, scale, bias
    options = (*pairs(stride, padding, dilation), groups), engine, want_sum, want_state
    return spiking_product(
        "spiking_conv2d", operands, state, time_steps, neuron, *options, (master, unit), added, amplitude
    )
