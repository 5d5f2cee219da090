"""Rearrange images of bits and counts [P, N, C, H, W], or [P, N, C, D, H, W], with channels innermost in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spike_train import SpikeTrain


def pad(x: Tensor, pads: Sequence[int], mode: str = "zeros") -> Tensor:
    """Pad the last dimensions by (left, right, top, bottom, ...), with the ``padding_mode`` of torch's convolutions.

    With mode "zeros", a negative padding removes rows or columns.

    Raises:
        ValueError: no rows or columns are left, or another mode would repeat the image more than once.
    """
    if not any(pads):
        return x
    axes = range(x.dim() - len(pads) // 2, x.dim())
    both = [(axis, pads[at], pads[at + 1]) for axis, at in zip(axes, range(len(pads) - 2, -1, -2), strict=True)]
    if mode == "zeros":
        for axis, before, after in both:
            size, less, what = x.shape[axis], before + after, _LINES[x.dim() - axis]
            if less < 0 and size + less < 1:
                raise ValueError(f"padding must leave at least one of {size} {what}, but removes {-less}")
        return F.pad(x.movedim(2, -1), (0, 0, *pads)).movedim(-1, 2)
    for axis, before, after in both:
        if before or after:
            index = _source(x.shape[axis], before, after, mode, x.device)
            x = x.movedim(2, -1).index_select(axis - 1, index).movedim(-1, 2)
    return x


_LINES = {1: "columns", 2: "rows", 3: "slices"}
"""What a dimension counts, by its place from the last one."""


def _source(size: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """Return the source index of each element of a padded axis."""
    limit = {"circular": size, "reflect": size - 1, "replicate": before + after if size else 0}[mode]
    if max(before, after) > limit:
        got = max(before, after)
        raise ValueError(f"padding_mode {mode!r}: padding must be at most {limit} for {size} pixels, got {got}")
    at = torch.arange(-before, size + after, device=device)
    if mode == "circular":
        return at % size
    if mode == "replicate":
        return at.clamp(0, size - 1)
    return (size - 1) - ((size - 1) - at.abs()).abs()


def insert_zeros(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Place rows and columns ``stride`` apart with zeros in between: size S becomes (S - 1) * stride + 1."""
    if tuple(stride) == (1, 1):
        return x
    planes, batch, channels, *size = x.shape
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        size = [len(range(s)) for s in size]  # specialised: Inductor fails on the gradient of a symbolic size
    height, width = ((s - 1) * step + 1 for s, step in zip(size, stride, strict=True))
    out = x.new_zeros(planes, batch, height, width, channels)
    out[:, :, :: stride[0], :: stride[1]] = x.movedim(2, -1)
    return out.movedim(-1, 2)


SHAPES = {2: "[N, C, H, W]", 3: "[N, C, D, H, W]"}
"""Images and volumes, by the number of dimensions behind the channels, as error messages name them."""
PAIRS_OF_COLUMNS = "pairs must lie along the channels, got pair_dim=-1; put SpikeRearrange('pairs', 1) before it"


def check_image(module: nn.Module, x: Any, axes: int = 2) -> None:
    """Check that a pooling's input is a SpikeTrain of images, or with three axes of volumes."""
    name = type(module).__name__
    if not isinstance(x, SpikeTrain):
        raise TypeError(f"{name}: input must be a SpikeTrain, got {type(x).__name__}")
    if len(x.shape) != 2 + axes or 0 in x.shape[2:]:
        raise ValueError(f"{name}: input must be {SHAPES[axes]}, got {list(x.shape)}")
    if x.pair_dim == -1:
        raise ValueError(f"{name}: {PAIRS_OF_COLUMNS}")


def per_axis(value: Any, axes: int) -> tuple[Any, ...]:
    """Return a number, or one for each axis, as one for each axis."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes


def pair(value: Any) -> tuple[int, int]:
    """Return an int or a pair of ints as a pair."""
    first, second = (value, value) if isinstance(value, int) else value
    return first, second
