"""spiking_linear: event-driven linear layer fused with the neuron loop."""

from __future__ import annotations

from torch import Tensor

from ..neuron import IF, Neuron
from .checked import checked_by
from .product import LINEAR, check_spiking, check_trusted, spiking_product


@checked_by(check_spiking)
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
    master: Tensor | None = None,
    unit: Tensor | None = None,
    added: Tensor | None = None,
    amplitude: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a linear layer to a spike train at every time step and feed integrate-and-fire neurons.

    Works as :func:`spiking_conv2d`, with x[t] = scale * (weight * s_in[t]) + bias.

    Args:
        bits: uint8 [P, N, ..., F].
        weight: float32, float64, float16, bfloat16, int8 or int16 [O, F]. With one of the last four, all other
            arguments and all results are float32. Each gradient has the dtype of its tensor.
        bias: [O], current per time step (the ANN's bias divided by T).
        state: [S, N, ..., O], the S state variables returned by an earlier call, to continue its simulation. The first
            variable is u[0] before its reset.
        packed: the result of ``pack_weight(weight)``, to avoid rearranging the weights in this call.
        scale: [O], one factor per output channel; required with int8 and int16 weights. It gets no gradient.
        count: [N, ..., F], the differentiable count of ``bits``, which gets the gradient. The forward pass does not
            read its values.
        time_steps: T.
        neuron: a neuron model, such as IF(...). ``clip`` and ``amplitude`` are ignored.
        want_sum: return the sum of the currents.
        want_state: return the final state.
        engine: "event": the work grows with the number of spikes. "dense": torch's own matrix product of unpacked
            spikes, at most 32 MiB at a time, whose rounding may depend on the batch size. "auto": the same as "event".
            With integer weights, "dense" is an engine of this library. On CUDA, "dense" uses tensor cores: it needs
            compute capability 8.0 or newer and does not support float64 weights. Sums of integer weights are exact, and
            on CUDA all sums are the same with every engine (see docs/cuda.md).
        master: float32, in the shape of ``weight``: the weights for which integers times ``unit`` stand. They get the
            gradient (straight-through: as if nothing were rounded). Their values are not read.
        unit: [O]; None for 1.
        added: what another branch of a sum adds to x[t]: currents [T, N, ..., O], or spikes uint8 [P, N, ..., O], each
            of which adds ``amplitude``. Not with two-phase neurons. It gets no gradient and is part of the sum.
        amplitude: [O], what a spike in ``added`` adds; None for 1.

    Returns:
        ``(bits, sum, state)``: uint8 [P, N, ..., O]; the sum over t of x[t], [N, ..., O], differentiable in
        ``weight``, ``bias`` and ``count``; the final state, [S, N, ..., O]. An output that was not requested is an
        empty tensor.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or T, an empty weight, or an engine that does not support the weights.
        RuntimeError: on the CPU, a weight, scale or bias that is not finite, or bits past T; out of memory.

    Examples:
        >>> bits = torch.tensor([[[0b1111, 0b0011]]], dtype=torch.uint8)  # [P, N, F]
        >>> out, v, state = ops.spiking_linear(bits, torch.tensor([[0.5, 0.25]]), time_steps=4)
        >>> bin(out.item()), v.item()
        ('0b110', 2.5)
    """
    check_trusted(weight, 2, scale, added)
    operands = bits, count, weight, packed, scale, bias
    options = LINEAR, engine, want_sum, want_state
    return spiking_product(
        "spiking_linear", operands, state, time_steps, neuron, *options, (master, unit), added, amplitude
    )
