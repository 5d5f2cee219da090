"""What is measured: the layers' sizes, and random spikes and weights for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tandem_cuda import ops


@dataclass(frozen=True)
class ConvCase:
    """A 3 x 3 convolution with padding 1, with batch 8 and T = 8 unless said otherwise."""

    name: str
    channels: int
    out_channels: int
    stride: int
    size: int
    batch: int = 8
    time_steps: int = 8

    def spikes(self, rate: float, seed: int = 0) -> Tensor:
        """A dense float train [T, N, C, H, W] with a mean firing rate of ``rate``."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.time_steps, self.batch, self.channels, self.size, self.size)
        return (torch.rand(shape, generator=generator) < rate).float()

    def bits(self, rate: float, seed: int = 0) -> Tensor:
        return ops.pack_spikes(self.spikes(rate, seed))

    def weight(self, seed: int = 1) -> Tensor:
        """Dyadic weights [O, C, 3, 3]: every sum is exact, so that all sides must agree to the bit."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.out_channels, self.channels, 3, 3)
        return torch.randint(-32, 33, shape, generator=generator) / 512

    def bias(self, seed: int = 2) -> Tensor:
        """[O], per time step."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-8, 9, (self.out_channels,), generator=generator) / 512


S1 = ConvCase("S1", 128, 256, 2, 32)
S2 = ConvCase("S2", 256, 512, 2, 16)
S3 = ConvCase("S3", 512, 1024, 1, 8)
SMALL = ConvCase("small", 32, 64, 2, 14)
