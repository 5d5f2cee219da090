"""spiking_linear: event-driven linear layer fused with the neuron loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks
from .count_conv2d import save_product
from .count_linear import check_linear, linear_gradients
from .spiking_conv2d import empty_spiking_outputs


def spiking_linear(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    potential: Tensor | None = None,
    *,
    count: Tensor | None = None,
    time_steps: int,
    threshold: float = 1.0,
    leak: float = 1.0,
    want_sum: bool = True,
    want_potential: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a linear layer to a spike train at every time step and feed integrate-and-fire neurons.

    As :func:`spiking_conv2d`, with x[t] = weight * s_in[t] + bias.

    Args:
        bits: uint8 [P, N, ..., F].
        weight: float32 or float64 [O, F].
        bias: [O], current per time step (the ANN's bias divided by T).
        potential: [N, ..., O]: u[0] before its reset, as an earlier call returned it; a simulation continues there.
        count: [N, ..., F], the differentiable count of ``bits``; the gradient flows to it. Its value is not read in the
            forward pass.
        time_steps: T.
        threshold: firing threshold, positive.
        leak: in (0, 1]; 1 is IF, less is LIF.
        want_sum: compute the sum of currents.
        want_potential: return the final potential.

    Returns:
        ``(bits, sum, potential)``: uint8 [P, N, ..., O]; the sum over t of x[t] [N, ..., O], differentiable in
        ``weight``, ``bias`` and ``count``; u[T] [N, ..., O]. An output that is not wanted is an empty tensor.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device, threshold, leak or T that does not fit.
    """
    op = "spiking_linear"
    check_linear(op, bits, count, weight, bias)
    checks.check_train(op, bits, time_steps)
    checks.check_neuron(op, threshold, leak)
    if potential is not None:
        checks.check_like(op, "potential", potential, weight, "weight", (*bits.shape[1:-1], weight.shape[0]))
    return torch.ops.tandem_cuda.spiking_linear(
        bits,
        count,
        weight,
        bias,
        None if potential is None else potential.detach(),
        time_steps,
        threshold,
        leak,
        want_sum,
        want_potential,
    )


@torch.library.register_fake("tandem_cuda::spiking_linear")
def _(
    bits: Tensor,
    count: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    potential: Tensor | None,
    time_steps: int,
    threshold: float,
    leak: float,
    want_sum: bool,
    want_potential: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    neurons = [*bits.shape[1:-1], weight.shape[0]]
    return empty_spiking_outputs(bits, weight, neurons, len(neurons) - 1, want_sum, want_potential)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    bits, count, weight, _, _, ctx.time_steps, _, _, want_sum, _ = inputs
    save_product(ctx, bits, count, weight)
    ctx.mark_non_differentiable(output[0], output[2], *([] if want_sum else [output[1]]))


def _backward(ctx: Any, _bits: None, grad: Tensor | None, _potential: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    count, weight, bias = linear_gradients(grad, ctx.saved_tensors, ctx.needs_input_grad[1:4])
    # The bias acts at every time step.
    return None, count, weight, None if bias is None else bias * ctx.time_steps, *[None] * 6


torch.library.register_autograd("tandem_cuda::spiking_linear", _backward, setup_context=_setup_context)
