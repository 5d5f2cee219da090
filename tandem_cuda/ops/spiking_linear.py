"""spiking_linear: event-driven linear layer fused with the neuron loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks
from .count_linear import check_linear, linear_gradients
from .gradient import register_gradient
from .product import ENGINES, Gradients, check_operand, needed_gradients, product_gradients, save_product, terms_of
from .spiking_conv2d import empty_spiking_outputs, per_time_step


def spiking_linear(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    potential: Tensor | None = None,
    *,
    packed: Tensor | None = None,
    scale: Tensor | None = None,
    count: Tensor | None = None,
    time_steps: int,
    threshold: float = 1.0,
    leak: float = 1.0,
    want_sum: bool = True,
    want_potential: bool = True,
    engine: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a linear layer to a spike train at every time step and feed integrate-and-fire neurons.

    As :func:`spiking_conv2d`, with x[t] = scale * (weight * s_in[t]) + bias.

    Args:
        bits: uint8 [P, N, ..., F].
        weight: float32, float64, float16, bfloat16 or int8 [O, F]. With the last three all other
            arguments and results are float32, but gradients have the dtype of what they are the gradient of.
        bias: [O], current per time step (the ANN's bias divided by T).
        potential: [N, ..., O]: u[0] before its reset, as an earlier call returned it; a simulation continues there.
        packed: :func:`pack_weight` of ``weight``, to save arranging it at this call.
        scale: [O], of the weights; must be given with int8 weights. No gradient flows to it.
        count: [N, ..., F], the differentiable count of ``bits``; the gradient flows to it. Its value is not read in the
            forward pass.
        time_steps: T.
        threshold: firing threshold, positive.
        leak: in (0, 1]; 1 is IF, less is LIF.
        want_sum: compute the sum of currents.
        want_potential: return the final potential.
        engine: "event": work in proportion to the spikes; "dense": torch's own matrix product on unpacked spikes, at
            most 32 MiB at a time, whose roundings may depend on the size of the batch; "auto": "event". On a CUDA
            device "dense" is the tensor-core engine: not for float64 and int8 weights; compute capability 8.0 or newer.
            It multiplies float32 weights as precisely as ``torch.set_float32_matmul_precision`` asks: docs/cuda.md.

    Returns:
        ``(bits, sum, potential)``: uint8 [P, N, ..., O]; the sum over t of x[t], [N, ..., O], differentiable in
        ``weight``, ``bias`` and ``count``; u[T], [N, ..., O]. An output that is not wanted is an empty tensor.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device, threshold, leak or T that does not fit; an engine that cannot serve the call.
        RuntimeError: on the CPU, a weight, scale or bias that is not finite, or bits past T; not enough memory.
    """
    op = "spiking_linear"
    check_linear(op, bits, count, weight, packed, scale, bias, engine)
    checks.check_train(op, bits, time_steps)
    checks.check_neuron(op, threshold, leak)
    if potential is not None:
        neurons = (*bits.shape[1:-1], weight.shape[0])
        check_operand(op, "potential", potential, weight, neurons)
    return torch.ops.tandem_cuda.spiking_linear(
        bits,
        count,
        weight,
        packed,
        scale,
        bias,
        None if potential is None else potential.detach(),
        time_steps,
        threshold,
        leak,
        ENGINES.index(engine),
        terms_of(weight),
        want_sum,
        want_potential,
    )


@torch.library.register_fake("tandem_cuda::spiking_linear")
def _(
    bits: Tensor,
    count: Tensor | None,
    weight: Tensor,
    packed: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    potential: Tensor | None,
    time_steps: int,
    threshold: float,
    leak: float,
    engine: int,
    terms: int,
    want_sum: bool,
    want_potential: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    neurons = [*bits.shape[1:-1], weight.shape[0]]
    return empty_spiking_outputs(bits, weight, neurons, len(neurons) - 1, want_sum, want_potential)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    bits, count, weight, _, scale, _, _, ctx.time_steps, _, _, _, _, want_sum, _ = inputs
    save_product(ctx, bits, count, weight, scale)
    ctx.mark_non_differentiable(output[0], output[2], *([] if want_sum else [output[1]]))


def _backward(ctx: Any, _bits: None, grad: Tensor | None, _potential: None) -> tuple[Tensor | None, ...]:
    grads: Gradients = (None, None, None)
    if grad is not None:
        grads = linear_gradients(grad, ctx.saved_tensors, needed_gradients(ctx))
    return product_gradients(per_time_step(grads, ctx.time_steps), 8)


register_gradient("spiking_linear", _backward, _setup_context)
