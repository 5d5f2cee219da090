"""Memory layout of the operators' outputs. Fake kernels must return the same layout as the real ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import is_transformed


def empty_channels_last(like: Tensor, sizes: Sequence[int], dtype: torch.dtype, channel_dim: int) -> Tensor:
    """Return an uninitialised tensor of ``sizes`` with dimension ``channel_dim`` innermost in memory."""
    order = [d for d in range(len(sizes)) if d != channel_dim] + [channel_dim]
    strides = like.new_empty([sizes[d] for d in order], device="meta").stride()
    # Not a permuted view: the kernels return none, and compilers plan memory differently for views.
    return like.new_empty_strided(sizes, [strides[order.index(d)] for d in range(len(sizes))], dtype=dtype)


def canonical(x: Tensor) -> Tensor:
    """Return the same values with regular strides, also in dimensions of size 1.

    Strides of such dimensions have no meaning and may be anything. torch's convolution takes some for another layout
    and multiplies by the wrong weights. A tensor [N, C, ...] that is contiguous or channels last is not copied.
    """
    if 1 not in x.shape:
        return x
    if x.is_contiguous():
        return x.view(-1).view(x.shape)
    last = x.movedim(1, -1)
    return last.reshape(-1).view(last.shape).movedim(-1, 1)


def channels_last(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] with the channels innermost in memory; a copy unless they are already."""
    if is_transformed(x):  # vmap knows no memory formats
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def is_unsafe_in_onednn(weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Return whether oneDNN may compute wrong weight gradients of a 2-D convolution, and write past its memory.

    See csrc/ops/weight_gradient/cpu.cpp. The gradient of the pixels that it reads, without a stride, is right.
    """
    return tuple(weight.shape[2:]) == (1, 1) and weight.shape[1] < 16 and max(stride) > 1 and not any(padding)


def train_feature_dim(dims: int) -> int:
    """Return the feature dimension of a train [T or P, N, C, *spatial]: 2, or the last one if there are fewer."""
    return min(2, dims - 1)
