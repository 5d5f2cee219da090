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
    pairs = [checks.pair(op, *named) for named in (("stride", stride), ("padding", padding), ("dilation", dilation))]
    for name, (a, b), least in zip(Geometry._fields, pairs, (1, 0, 1), strict=True):
        if a < least or b < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {(a, b)}")
        if a > _MOST or b > _MOST:
            raise ValueError(f"{op}: {name} must be at most 2^30, got {(a, b)}")
    return Geometry(*pairs)


def check_fit(
    op: str, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> None:
    """Raise ValueError if the kernel is larger than the input x [..., H, W]."""
    for axis, size in zip(("height", "width"), out_size(x, weight, stride, padding, dilation), strict=True):
        if size < 1:
            raise ValueError(
                f"{op}: the dilated kernel is larger than the padded input along the {axis}: got weight "
                f"{list(weight.shape)}, input {list(x.shape)}, padding {list(padding)}, dilation {list(dilation)}"
            )


def out_size(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """Return height and width of the output for an input x [..., H, W]; below 1 if the kernel does not fit."""
    height, width = (
        (x.shape[i - 2] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    return height, width
