"""Stride, padding and dilation of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from . import checks

_MOST = 2**30


class Geometry(NamedTuple):
    """Stride, padding and dilation of a 2-D convolution, each as (vertical, horizontal)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


def pairs(stride: Any, padding: Any, dilation: Any) -> tuple[Any, Any, Any]:
    """Return checked numbers as pairs."""
    if isinstance(stride, tuple) and isinstance(padding, tuple) and isinstance(dilation, tuple):
        return stride, padding, dilation  # what layers pass, in every call
    return checks.pair("", "", stride), checks.pair("", "", padding), checks.pair("", "", dilation)


def check_geometry(op: str, stride: Any, padding: Any, dilation: Any) -> Geometry:
    """Check the range of each number; return pairs."""
    return Geometry(*check_axes(op, 2, stride=stride, padding=padding, dilation=dilation))


def check_axes(op: str, axes: int, **numbers: Any) -> list[Any]:
    """Check ``kernel_size``, ``stride``, ``padding`` or ``dilation``; return the numbers of each for all axes."""
    checked = []
    for name, value in numbers.items():
        each, least = checks.per_axis(op, name, value, axes), 0 if name == "padding" else 1
        if min(each) < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
        if max(each) > _MOST:
            raise ValueError(f"{op}: {name} must be at most 2^30, got {value}")
        checked.append(each)
    return checked


def check_fit(
    op: str, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> None:
    """Raise ValueError if the kernel is larger than the input x [..., H, W] or [..., D, H, W]."""
    sizes = out_size(x, weight, stride, padding, dilation)
    for axis, size in zip(("depth", "height", "width")[-len(sizes) :], sizes, strict=True):
        if size < 1:
            raise ValueError(
                f"{op}: the dilated kernel is larger than the padded input along the {axis}: got weight "
                f"{list(weight.shape)}, input {list(x.shape)}, padding {list(padding)}, dilation {list(dilation)}"
            )


def out_size(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Return the sizes of the output, [Ho, Wo] or [Do, Ho, Wo]; below 1 if the kernel does not fit.

    The input x is [..., H, W] or [..., D, H, W].
    """
    axes = len(stride)
    return tuple(
        (x.shape[i - axes] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(axes)
    )
