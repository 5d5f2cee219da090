"""spiking_conv2d: event-driven convolution fused with the neuron loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..neuron import IF, Neuron, check_neuron
from . import checks
from .geometry import out_size
from .product import ENGINES, check_conv2d, check_operand, terms_of


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve a spike train at every time step and feed integrate-and-fire neurons (Wu et al. 2021, eqs. 1-5).

    For t = 1..T, x[t] = scale * (weight * s_in[t]) + bias drives the neurons of :func:`integrate_and_fire`. The
    event-driven engine adds weights for inputs that spike and for no others, and stores neither a current nor a float
    spike of a single time step. Sums of int8 weights are exact integers, so that they are the same in any order.

    Args:
        bits: uint8 [P, N, C, H, W].
        weight: float32, float64, float16, bfloat16 or int8 [O, C/groups, kH, kW]. With the last three all other
            arguments and results are float32, but gradients have the dtype of what they are the gradient of.
        bias: [O], current per time step (the ANN's bias divided by T).
        stride: as in ``torch.nn.functional.conv2d``.
        padding: zero padding, an int or a pair.
        dilation: spacing of the taps.
        groups: blocks of channels.
        state: [S, N, O, Ho, Wo], the neuron's S state variables as an earlier call returned them, the first one u[0]
            before its reset; a simulation continues there.
        packed: :func:`pack_weight` of ``weight``, to save arranging it at this call.
        scale: [O], of the weights; must be given with int8 weights. No gradient flows to it.
        count: [N, C, H, W], the differentiable count of ``bits``; the gradient flows to it. Its value is not read in
            the forward pass.
        time_steps: T.
        neuron: IF(...) or LIF(...); ``clip`` and ``amplitude`` do not matter here.
        want_sum: compute the sum of currents.
        want_state: return the final state.
        engine: "event": work in proportion to the spikes; "dense": torch's own convolution on unpacked spikes, a sample
            at a time; "auto": for each sample, by its own spikes, the faster one. What a sample gives depends on no
            other. On a CUDA device
            "dense" is the tensor-core engine: not for float64 and int8 weights; compute capability 8.0 or newer. It
            multiplies float32 weights as precisely as ``torch.set_float32_matmul_precision`` asks: docs/cuda.md.

    Returns:
        ``(bits, sum, state)``: uint8 [P, N, O, Ho, Wo]; the sum over t of x[t], [N, O, Ho, Wo], which is the ANN's
        pre-activation and differentiable as such in ``weight``, ``bias`` and ``count``; the final state,
        [S, N, O, Ho, Wo]. Channels last in memory. An output that is not wanted is an empty tensor.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or T that does not fit; an engine that cannot serve the call.
        RuntimeError: on the CPU, a weight, scale or bias that is not finite, or bits past T; not enough memory.
    """
    op = "spiking_conv2d"
    geometry = check_conv2d(op, bits, count, weight, packed, scale, bias, stride, padding, dilation, groups, engine)
    checks.check_train(op, bits, time_steps)
    check_neuron(op, neuron)
    if state is not None:
        neurons = (bits.shape[1], weight.shape[0], *out_size(bits, weight, *geometry))
        check_operand(op, "state", state, weight, (neuron.states, *neurons))
    return torch.ops.tandem_cuda.spiking_product(
        bits,
        count,
        weight,
        packed,
        scale,
        bias,
        None if state is None else state.detach(),
        *geometry,
        groups,
        time_steps,
        neuron.kind,
        neuron.parameters,
        ENGINES.index(engine),
        terms_of(weight),
        want_sum,
        want_state,
    )
