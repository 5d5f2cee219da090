"""pack_spikes: pack a dense spike train into bit planes."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, layout


def pack_spikes(spikes: Tensor) -> Tensor:
    """Pack a dense spike train into bit planes, eight time steps to a byte.

    Args:
        spikes: [T, N, ...] of 0 and 1; any floating point dtype, bool or uint8; any strides.

    Returns:
        uint8 [P, N, ...], P = ceil(T / 8); bit i of plane p is the spike at time step 8p + i.

    Raises:
        TypeError: ``spikes`` is not a tensor of one of these dtypes.
        ValueError: fewer than two dimensions, or no time step.
        RuntimeError: an element is neither 0 nor 1 (on the CPU). On CUDA the call does not wait for the kernel, which
            prints the element, where the driver still shows it, and traps. As after a device-side assertion, the next
            synchronising call raises an error, and so does every later CUDA call of the process.

    Examples:
        >>> spikes = torch.zeros(8, 1, 2)  # [T, N, F]
        >>> spikes[0, 0, 0] = spikes[7, 0, 0] = 1
        >>> ops.pack_spikes(spikes)
        tensor([[[129,   0]]], dtype=torch.uint8)
    """
    checks.check_tensor("pack_spikes", "spikes", spikes)
    if not (spikes.dtype.is_floating_point or spikes.dtype in (torch.bool, torch.uint8)):
        raise TypeError(f"pack_spikes: spikes must be floating point, bool or uint8, got {spikes.dtype}")
    if spikes.dim() < 2 or spikes.shape[0] < 1:
        raise ValueError(f"pack_spikes: spikes must be [T, N, ...] with T >= 1, got {list(spikes.shape)}")
    if spikes.dtype.is_floating_point and spikes.dtype not in checks.FLOATING:
        spikes = spikes.float()  # exact for every float16 and bfloat16 value
    return torch.ops.tandem_cuda.pack_spikes(spikes.detach())


@torch.library.register_fake("tandem_cuda::pack_spikes")
def _(spikes: Tensor) -> Tensor:
    sizes = [checks.planes_for(spikes.shape[0]), *spikes.shape[1:]]
    return layout.empty_channels_last(spikes, sizes, torch.uint8, layout.train_feature_dim(spikes.dim()))
