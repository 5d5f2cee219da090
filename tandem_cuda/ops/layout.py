"""Memory layout of the operators' outputs, as their fake kernels must promise it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_channels_last(like: Tensor, sizes: Sequence[int], dtype: torch.dtype, channel_dim: int) -> Tensor:
    """An uninitialised tensor of ``sizes`` whose dimension ``channel_dim`` is innermost in memory."""
    order = [d for d in range(len(sizes)) if d != channel_dim] + [channel_dim]
    strides = like.new_empty([sizes[d] for d in order], device="meta").stride()
    # No permuted view: kernels return none, and compilers plan other memory for views.
    return like.new_empty_strided(sizes, [strides[order.index(d)] for d in range(len(sizes))], dtype=dtype)


def canonical(x: Tensor) -> Tensor:
    """The same values with the strides that their order in memory implies, in dimensions of size 1 too.

    There strides mean nothing, and a tensor may have any; torch's convolution takes some of them for another layout
    and multiplies by the wrong weights. No copy of a tensor [N, C, ...] that is contiguous or channels last.
    """
    if 1 not in x.shape:
        return x
    if x.is_contiguous():
        return x.view(-1).view(x.shape)
    last = x.movedim(1, -1)
    return last.reshape(-1).view(last.shape).movedim(-1, 1)


def train_feature_dim(dims: int) -> int:
    """Feature dimension of a train [T or P, N, C, *spatial]; the last one where there is no dimension 2."""
    return min(2, dims - 1)
