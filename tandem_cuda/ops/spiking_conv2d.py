"""spiking_conv2d: event-driven convolution fused with the neuron loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks, layout
from .count_conv2d import check_conv2d, conv2d_gradients, out_size, save_product


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
    count: Tensor | None = None,
    time_steps: int,
    threshold: float = 1.0,
    leak: float = 1.0,
    want_sum: bool = True,
    want_potential: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve a spike train at every time step and feed integrate-and-fire neurons (Wu et al. 2021, eqs. 1-5).

    For t = 1..T, x[t] = weight * s_in[t] + bias drives the neurons of :func:`integrate_and_fire`. Weights are added for
    inputs that spike and for no others; no current and no float spike of a single time step is ever stored.

    Args:
        bits: uint8 [P, N, C, H, W].
        weight: float32 or float64 [O, C/groups, kH, kW].
        bias: [O], current per time step (the ANN's bias divided by T).
        stride: as in ``torch.nn.functional.conv2d``.
        padding: zero padding, an int or a pair.
        dilation: spacing of the taps.
        groups: blocks of channels.
        potential: [N, O, Ho, Wo]: u[0] before its reset, as an earlier call returned it; a simulation continues there.
        count: [N, C, H, W], the differentiable count of ``bits``; the gradient flows to it. Its value is not read in
            the forward pass.
        time_steps: T.
        threshold: firing threshold, positive.
        leak: in (0, 1]; 1 is IF, less is LIF.
        want_sum: compute the sum of currents.
        want_potential: return the final potential.

    Returns:
        ``(bits, sum, potential)``: uint8 [P, N, O, Ho, Wo]; the sum over t of x[t] [N, O, Ho, Wo], which is the ANN's
        pre-activation and differentiable as such in ``weight``, ``bias`` and ``count``; u[T] [N, O, Ho, Wo]. Channels
        last in memory. An output that is not wanted is an empty tensor.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device, threshold, leak or T that does not fit.
    """
    op = "spiking_conv2d"
    geometry = check_conv2d(op, bits, count, weight, bias, stride, padding, dilation, groups)
    checks.check_train(op, bits, time_steps)
    checks.check_neuron(op, threshold, leak)
    if potential is not None:
        neurons = (bits.shape[1], weight.shape[0], *out_size(bits, weight, *geometry))
        checks.check_like(op, "potential", potential, weight, "weight", neurons)
    return torch.ops.tandem_cuda.spiking_conv2d(
        bits,
        count,
        weight,
        bias,
        None if potential is None else potential.detach(),
        *geometry,
        groups,
        time_steps,
        threshold,
        leak,
        want_sum,
        want_potential,
    )


def empty_spiking_outputs(
    bits: Tensor, weight: Tensor, neurons: list[int], feature_dim: int, want_sum: bool, want_potential: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What a spiking product returns, uninitialised."""
    out = layout.empty_channels_last(bits, [bits.shape[0], *neurons], torch.uint8, feature_dim + 1)
    total, final = (
        layout.empty_channels_last(weight, neurons, weight.dtype, feature_dim) if want else weight.new_empty([0])
        for want in (want_sum, want_potential)
    )
    return out, total, final


@torch.library.register_fake("tandem_cuda::spiking_conv2d")
def _(
    bits: Tensor,
    count: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    potential: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    time_steps: int,
    threshold: float,
    leak: float,
    want_sum: bool,
    want_potential: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    neurons = [bits.shape[1], weight.shape[0], *out_size(bits, weight, stride, padding, dilation)]
    return empty_spiking_outputs(bits, weight, neurons, 1, want_sum, want_potential)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    bits, count, weight, _, _, stride, padding, dilation, ctx.groups, ctx.time_steps, *_, want_sum, _ = inputs
    ctx.geometry = (stride, padding, dilation)
    save_product(ctx, bits, count, weight)
    ctx.mark_non_differentiable(output[0], output[2], *([] if want_sum else [output[1]]))


def _backward(ctx: Any, _bits: None, grad: Tensor | None, _potential: None) -> tuple[Tensor | None, ...]:
    grads: tuple[Tensor | None, ...] = (None, None, None)
    if grad is not None:
        grads = conv2d_gradients(grad, ctx.saved_tensors, ctx.needs_input_grad[1:4], ctx.geometry, ctx.groups)
    count, weight, bias = grads
    # The bias acts at every time step.
    bias = None if bias is None else bias * ctx.time_steps
    return None, count, weight, bias, *[None] * 10


torch.library.register_autograd("tandem_cuda::spiking_conv2d", _backward, setup_context=_setup_context)
