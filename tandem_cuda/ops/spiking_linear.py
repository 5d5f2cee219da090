"""spiking_linear: event-driven linear layer fused with the neuron loop."""

from __future__ import annotations

import torch
from torch import Tensor

from ..neuron import IF, Neuron, check_neuron
from . import checks
from .geometry import Geometry
from .product import ENGINES, check_linear, check_operand, terms_of


def spiking_linear(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
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
    """Apply a linear layer to a spike train at every time step and feed integrate-and-fire neurons.

    As :func:`spiking_conv2d`, with x[t] = scale * (weight * s_in[t]) + bias.

    Args:
        bits: uint8 [P, N, ..., F].
        weight: float32, float64, float16, bfloat16 or int8 [O, F]. With the last three all other
            arguments and results are float32, but gradients have the dtype of what they are the gradient of.
        bias: [O], current per time step (the ANN's bias divided by T).
        state: [S, N, ..., O], the neuron's S state variables as an earlier call returned them, the first one u[0]
            before its reset; a simulation continues there.
        packed: :func:`pack_weight` of ``weight``, to save arranging it at this call.
        scale: [O], of the weights; must be given with int8 weights. No gradient flows to it.
        count: [N, ..., F], the differentiable count of ``bits``; the gradient flows to it. Its value is not read in the
            forward pass.
        time_steps: T.
        neuron: IF(...) or LIF(...); ``clip`` and ``amplitude`` do not matter here.
        want_sum: compute the sum of currents.
        want_state: return the final state.
        engine: "event": work in proportion to the spikes; "dense": torch's own matrix product on unpacked spikes, at
            most 32 MiB at a time, whose roundings may depend on the size of the batch; "auto": "event". On a CUDA
            device "dense" is the tensor-core engine: not for float64 and int8 weights; compute capability 8.0 or newer.
            It multiplies float32 weights as precisely as ``torch.set_float32_matmul_precision`` asks: docs/cuda.md.

    Returns:
        ``(bits, sum, state)``: uint8 [P, N, ..., O]; the sum over t of x[t], [N, ..., O], differentiable in
        ``weight``, ``bias`` and ``count``; the final state, [S, N, ..., O]. An output that is not wanted is an empty
        tensor.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or T that does not fit; an engine that cannot serve the call.
        RuntimeError: on the CPU, a weight, scale or bias that is not finite, or bits past T; not enough memory.
    """
    op = "spiking_linear"
    check_linear(op, bits, count, weight, packed, scale, bias, engine)
    checks.check_train(op, bits, time_steps)
    check_neuron(op, neuron)
    if state is not None:
        check_operand(op, "state", state, weight, (neuron.states, *bits.shape[1:-1], weight.shape[0]))
    return torch.ops.tandem_cuda.spiking_product(
        bits,
        count,
        weight,
        packed,
        scale,
        bias,
        None if state is None else state.detach(),
        *Geometry(),
        1,
        time_steps,
        neuron.kind,
        neuron.parameters,
        ENGINES.index(engine),
        terms_of(weight),
        want_sum,
        want_state,
    )
