"""spiking_conv2d: event-driven convolution fused with the neuron loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks, layout
from .count_conv2d import check_conv2d, conv2d_gradients, out_size
from .gradient import register_gradient
from .product import (
    ENGINES,
    Gradients,
    check_operand,
    current_dtype,
    needed_gradients,
    product_gradients,
    save_product,
    terms_of,
)


def spiking_conv2d(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
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
        potential: [N, O, Ho, Wo]: u[0] before its reset, as an earlier call returned it; a simulation continues there.
        packed: :func:`pack_weight` of ``weight``, to save arranging it at this call.
        scale: [O], of the weights; must be given with int8 weights. No gradient flows to it.
        count: [N, C, H, W], the differentiable count of ``bits``; the gradient flows to it. Its value is not read in
            the forward pass.
        time_steps: T.
        threshold: firing threshold, positive.
        leak: in (0, 1]; 1 is IF, less is LIF.
        want_sum: compute the sum of currents.
        want_potential: return the final potential.
        engine: "event": work in proportion to the spikes; "dense": torch's own convolution on unpacked spikes, a sample
            at a time; "auto": for each sample, by its own spikes, the faster one. What a sample gives depends on no
            other. On a CUDA device
            "dense" is the tensor-core engine: not for float64 and int8 weights; compute capability 8.0 or newer. It
            multiplies float32 weights as precisely as ``torch.set_float32_matmul_precision`` asks: docs/cuda.md.

    Returns:
        ``(bits, sum, potential)``: uint8 [P, N, O, Ho, Wo]; the sum over t of x[t], [N, O, Ho, Wo], which is the ANN's
        pre-activation and differentiable as such in ``weight``, ``bias`` and ``count``; u[T], [N, O, Ho, Wo]. Channels
        last in memory. An output that is not wanted is an empty tensor.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device, threshold, leak or T that does not fit; an engine that cannot serve the call.
        RuntimeError: on the CPU, a weight, scale or bias that is not finite, or bits past T; not enough memory.
    """
    op = "spiking_conv2d"
    geometry = check_conv2d(op, bits, count, weight, packed, scale, bias, stride, padding, dilation, groups, engine)
    checks.check_train(op, bits, time_steps)
    checks.check_neuron(op, threshold, leak)
    if potential is not None:
        neurons = (bits.shape[1], weight.shape[0], *out_size(bits, weight, *geometry))
        check_operand(op, "potential", potential, weight, neurons)
    return torch.ops.tandem_cuda.spiking_conv2d(
        bits,
        count,
        weight,
        packed,
        scale,
        bias,
        None if potential is None else potential.detach(),
        *geometry,
        groups,
        time_steps,
        threshold,
        leak,
        ENGINES.index(engine),
        terms_of(weight),
        want_sum,
        want_potential,
    )


def empty_spiking_outputs(
    bits: Tensor, weight: Tensor, neurons: list[int], feature_dim: int, want_sum: bool, want_potential: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What a spiking product returns, uninitialised."""
    out = layout.empty_channels_last(bits, [bits.shape[0], *neurons], torch.uint8, feature_dim + 1)
    dtype = current_dtype(weight)
    total, final = (
        layout.empty_channels_last(weight, neurons, dtype, feature_dim) if want else weight.new_empty([0], dtype=dtype)
        for want in (want_sum, want_potential)
    )
    return out, total, final


@torch.library.register_fake("tandem_cuda::spiking_conv2d")
def _(
    bits: Tensor,
    count: Tensor | None,
    weight: Tensor,
    packed: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    potential: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    time_steps: int,
    threshold: float,
    leak: float,
    engine: int,
    terms: int,
    want_sum: bool,
    want_potential: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    neurons = [bits.shape[1], weight.shape[0], *out_size(bits, weight, stride, padding, dilation)]
    return empty_spiking_outputs(bits, weight, neurons, 1, want_sum, want_potential)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    bits, count, weight, _, scale, _, _, stride, padding, dilation, ctx.groups, ctx.time_steps, *_, want_sum, _ = inputs
    ctx.geometry = (stride, padding, dilation)
    save_product(ctx, bits, count, weight, scale)
    ctx.mark_non_differentiable(output[0], output[2], *([] if want_sum else [output[1]]))


def _backward(ctx: Any, _bits: None, grad: Tensor | None, _potential: None) -> tuple[Tensor | None, ...]:
    grads: Gradients = (None, None, None)
    if grad is not None:
        grads = conv2d_gradients(grad, ctx.saved_tensors, needed_gradients(ctx), ctx.geometry, ctx.groups)
    return product_gradients(per_time_step(grads, ctx.time_steps), 12)


def per_time_step(gradients: Gradients, time_steps: int) -> Gradients:
    """The gradients of a sum over time: the bias acts at every time step."""
    count, weight, bias = gradients
    return count, weight, None if bias is None else bias * time_steps


register_gradient("spiking_conv2d", _backward, _setup_context)
