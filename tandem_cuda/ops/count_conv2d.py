"""count_conv2d: event-driven convolution of spike counts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..neuron import Neuron
from .checked import checked_by
from .geometry import pairs
from .product import check_count, check_trusted, count_product


@checked_by(check_count)
def count_conv2d(
    bits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    packed: Tensor | None = None,
    scale: Tensor | None = None,
    count: Tensor | None = None,
    engine: str = "auto",
    master: Tensor | None = None,
    unit: Tensor | None = None,
    radix: int = 0,
    neuron: Neuron | None = None,
    time_steps: int = 0,
    added: Tensor | None = None,
    amplitude: Tensor | None = None,
) -> Tensor:
    """Convolve spike counts, v = scale * (weight * c) + bias: the ANN's pre-activation (Wu et al. 2021, eq. 9).

    Args:
        bits: uint8 [P, N, C, H, W]; c is the :func:`spike_count` of ``bits``.
        weight: float32, float64, float16, bfloat16, int8 or int16 [O, C/groups, kH, kW]. With one of the last four, all
            other arguments and all results are float32. Each gradient has the dtype of its tensor.
        bias: [O].
        stride: as in ``torch.nn.functional.conv2d``.
        padding: zero padding, an int or a pair.
        dilation: spacing of the kernel taps, an int or a pair.
        groups: number of channel groups, as in ``torch.nn.functional.conv2d``.
        packed: the result of ``pack_weight(weight, groups)``, to avoid rearranging the weights in this call.
        scale: [O], one factor per output channel; required with int8 and int16 weights. It gets no gradient.
        count: [N, C, H, W], the differentiable count of ``bits``, which gets the gradient. The forward pass does not
            read its values.
        engine: "event": the work grows with the number of spikes. "dense": torch's own convolution of float counts, one
            sample at a time. "auto": the faster of the two, chosen for each sample by its own counts, so that no result
            depends on the rest of the batch. With integer weights, "dense" is an engine of this library. On CUDA,
            "dense" uses tensor cores: it needs compute capability 8.0 or newer and does not support float64 weights.
            Sums of integer weights are exact, and on CUDA all sums are the same with every engine (see docs/cuda.md).
        master: float32, in the shape of ``weight``: the weights for which integers times ``unit`` stand. They get the
            gradient (straight-through: as if nothing were rounded). Their values are not read.
        unit: [O]; None for 1.
        radix: T of radix spikes (see :class:`tandem_cuda.neuron.RadixIF`), whose values take the place of the counts; 0
            for spikes that all weigh the same.
        neuron: a RadixIF, which v drives; None to return v.
        time_steps: T of that neuron's spikes.
        added: with ``neuron``, what another branch of a sum adds to v: numbers [N, O, Ho, Wo], or radix spikes of T
            steps, uint8 [1, N, O, Ho, Wo], whose values ``amplitude`` multiplies. It gets no gradient.
        amplitude: [O], factors of such values; None for 1.

    Returns:
        v, [N, O, Ho, Wo], channels last in memory; differentiable in ``weight``, ``bias`` and ``count``. With a neuron
        its bits, ``radix_spikes(v, time_steps, neuron)``, which have no gradient.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape or device, an empty weight, or an engine that does not support the weights.
        RuntimeError: on the CPU, a weight, scale or bias that is not finite; out of memory.

    Examples:
        >>> bits = ops.pack_spikes(torch.ones(4, 1, 1, 3, 3))
        >>> ops.count_conv2d(bits, torch.full((1, 1, 3, 3), 0.125)).flatten()
        tensor([4.5000])
    """
    check_trusted(weight, 4, scale)
    geometry = (*pairs(stride, padding, dilation), groups)
    operands = bits, count, weight, packed, scale, bias
    return count_product(operands, geometry, engine, master, unit, radix, neuron, time_steps, added, amplitude)
