"""max_pool_spikes: max pooling of spike trains by count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks, layout
from .checked import checked_by
from .geometry import check_axes


def _check(op: str, a: Any) -> None:
    checks.check_train(op, a.bits, a.time_steps)
    if a.time_steps >= 2**31:
        raise ValueError(f"{op}: time_steps must be below 2^31, got {a.time_steps}")
    if a.radix:
        checks.check_radix(op, a.bits, a.time_steps)
        if a.count is not None or a.want_count:
            raise ValueError(f"{op}: count and want_count must be left out with radix, whose spikes have no counts")
    if a.bits.dim() != 5 or 0 in a.bits.shape[2:]:
        raise ValueError(f"{op}: bits must be [P, N, C, H, W] with channels and pixels, got {list(a.bits.shape)}")
    if not isinstance(a.ceil_mode, bool):
        raise TypeError(f"{op}: ceil_mode must be a bool, got {type(a.ceil_mode).__name__}")
    if a.count is not None:
        checks.check_tensor(op, "count", a.count)
        if a.count.dtype != torch.int32:
            raise TypeError(f"{op}: count must be int32, got {a.count.dtype}")
        checks.check_same_device(op, "count", a.count, a.bits, "bits")
        checks.check_shape(op, "count", a.count, a.bits.shape[1:])
    stride = a.kernel_size if a.stride is None else a.stride
    size, stride, padding, dilation = check_axes(
        op, 2, kernel_size=a.kernel_size, stride=stride, padding=a.padding, dilation=a.dilation
    )
    pooled_size(op, a.bits.shape[3:], size, stride, padding, dilation, a.ceil_mode)


@checked_by(_check)
def max_pool_spikes(
    bits: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    *,
    time_steps: int,
    count: Tensor | None = None,
    want_count: bool = False,
    radix: bool = False,
) -> tuple[Tensor, Tensor]:
    """Max-pool spikes by count: after every time step the pooled count is the maximum of the counts.

    Let c_i[t] be the number of spikes of neuron i up to step t. A pooled neuron spikes when the largest count of its
    window grows::

        M[t] = max over i of c_i[t],      s[t] = M[t] - M[t-1]

    A count grows by at most one per step, and so does M, so s[t] is 0 or 1. Like the rule of Rueckauer et al. 2017
    (doi:10.3389/fnins.2017.00682), this passes on the spikes of the neuron with the largest count. Unlike it, it drops
    the spikes with which another neuron only catches up, so the count of s is exactly ``max_pool2d`` of the counts. For
    T = 1 the result is the OR of the window's spikes.

    Args:
        bits: uint8 [P, N, C, H, W].
        kernel_size: size of the window, an int or a pair.
        stride: an int or a pair; defaults to ``kernel_size``.
        padding: silent neurons added around the image, an int or a pair; at most half of the window.
        dilation: spacing of the window's neurons, an int or a pair.
        ceil_mode: let the last windows extend beyond the padded image.
        time_steps: T, below 2^31.
        count: int32 [N, C, H, W], the counts c_i[0] returned by an earlier call; zero by default. With it, a train
            pooled in pieces gives the same result as in one call. All pieces together must have fewer than 2^31 steps.
        want_count: return the counts after the last step.
        radix: whether ``bits`` are radix spikes, of which the pooled neuron has the largest value.

    Returns:
        ``(bits, count)``: uint8 [P, N, C, Ho, Wo]; the counts c_i[T], int32 [N, C, H, W], or an empty tensor if they
        were not requested. Both are channels last in memory and have no gradient.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, window or T.

    Examples:
        >>> bits = torch.tensor([[0b0001, 0b0111], [0b0000, 0b1000]], dtype=torch.uint8).view(1, 1, 1, 2, 2)
        >>> pooled, count = ops.max_pool_spikes(bits, 2, time_steps=4)
        >>> bin(pooled.item())
        '0b111'
    """
    stride = kernel_size if stride is None else stride
    windows = [[*checks.pair("", "", x)] for x in (kernel_size, stride, padding, dilation)]
    return torch.ops.tandem_cuda.max_pool_spikes(bits, count, *windows, ceil_mode, time_steps, want_count, radix)


def pooled_size(
    name: str,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """Return the number of windows along each axis, as torch's pooling has them; ValueError if there are none."""
    axes = zip(size, kernel_size, stride, padding, dilation, strict=True)
    return [windows_along(name, *axis, ceil_mode) for axis in axes]


def check_padding(name: str, kernel: int, padding: int) -> None:
    """Raise ValueError if padding could fill a window."""
    if padding > kernel // 2:
        raise ValueError(f"{name}: padding must be at most half of the kernel size {kernel}, got {padding}")


def windows_along(name: str, size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Return the number of windows along one axis."""
    check_padding(name, kernel, padding)
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    outputs = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (outputs - 1) * stride >= size + padding:
        outputs -= 1  # the last window would begin in the padding
    if outputs < 1:
        raise ValueError(f"{name}: the window of {kernel} is larger than the padded input of {size + 2 * padding}")
    return outputs


@torch.library.register_fake("tandem_cuda::max_pool_spikes")
def _(bits: Tensor, count: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
    size, stride, padding, dilation, ceil_mode, _, want_count, *_ = others
    pooled = pooled_size("max_pool_spikes", bits.shape[3:], size, stride, padding, dilation, ceil_mode)
    out = layout.empty_channels_last(bits, [*bits.shape[:3], *pooled], torch.uint8, 2)
    neurons = bits.shape[1:] if want_count else [0]
    return out, layout.empty_channels_last(bits, neurons, torch.int32, 1 if want_count else 0)
