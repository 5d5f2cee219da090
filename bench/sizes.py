"""What is measured: the layers' sizes, and random spikes and weights for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tandem_cuda import ops


@dataclass(frozen=True)
class Case:
    """A spiking layer's data. All weights are dyadic: every sum is exact, so that all sides must agree to the bit."""

    name: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[T, N, ...]"""
        raise NotImplementedError

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[O, ...]"""
        raise NotImplementedError

    def spikes(self, rate: float, seed: int = 0) -> Tensor:
        """A dense float train [T, N, ...] with a mean firing rate of ``rate``."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(self.input_shape, generator=generator) < rate).float()

    def trained_spikes(self, rate: float, seed: int = 0) -> Tensor:
        """As spikes, in the pattern of trained networks: neurons are silent, or fire twice."""
        generator = torch.Generator().manual_seed(seed)
        active = torch.rand(self.input_shape[1:], generator=generator) < rate * self.input_shape[0] / 2
        steps = torch.rand(self.input_shape, generator=generator).argsort(0)
        return ((steps < 2) & active).float()

    def bits(self, rate: float, seed: int = 0) -> Tensor:
        return ops.pack_spikes(self.spikes(rate, seed))

    def weight(self, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-32, 33, self.weight_shape, generator=generator) * self._step()

    def int8_weight(self, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Weights int8 and their scale per output channel [O], a power of two."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randint(-127, 128, self.weight_shape, generator=generator, dtype=torch.int8)
        halved = torch.randint(0, 2, self.weight_shape[:1], generator=generator)
        return weight, self._step() / 4 / (1 + halved)

    def int16_weight(self, seed: int = 1) -> tuple[Tensor, Tensor]:
        """As int8_weight, with weights of 16 bits."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randint(-32639, 32640, self.weight_shape, generator=generator, dtype=torch.int16)
        return weight, self.int8_weight(seed)[1] / 256

    def bias(self, seed: int = 2) -> Tensor:
        """[O], per time step."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-8, 9, self.weight_shape[:1], generator=generator) / 512

    def _step(self) -> float:
        """The power of two that gives currents a standard deviation of about half a threshold at a rate of 5 %."""
        fan_in = math.prod(self.weight_shape[1:])
        return 2.0 ** -round(math.log2(37 * math.sqrt(0.05 * fan_in)))


@dataclass(frozen=True)
class ConvCase(Case):
    """A convolution padded by half its kernel."""

    channels: int
    out_channels: int
    stride: int
    size: int
    batch: int = 8
    time_steps: int = 8
    kernel: int = 3
    groups: int = 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.time_steps, self.batch, self.channels, self.size, self.size

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.channels // self.groups, self.kernel, self.kernel

    @property
    def geometry(self) -> tuple[int, int, int, int]:
        """Stride, padding, dilation, groups: arguments of F.conv2d."""
        return self.stride, self.kernel // 2, 1, self.groups

    def __str__(self) -> str:
        text = f"{self.channels}->{self.out_channels} {self.kernel}x{self.kernel}"
        text += f" s{self.stride}" if self.stride > 1 else ""
        text += f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{text} on {self.size}x{self.size}, batch {self.batch}, T = {self.time_steps}"

    def run(self, module: Any, bits: Tensor, weight: Tensor, bias: Tensor, **keywords: Any) -> Tensor:
        """Output bits of the operator, ``module`` being tandem_cuda.ops or tandem_cuda.reference."""
        keywords = {"want_sum": False, "want_state": False, **keywords}
        return module.spiking_conv2d(bits, weight, bias, *self.geometry, time_steps=self.time_steps, **keywords)[0]


@dataclass(frozen=True)
class LinearCase(Case):
    features: int
    out_features: int
    batch: int = 8
    time_steps: int = 8
    groups: int = 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.time_steps, self.batch, self.features

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.features

    def __str__(self) -> str:
        return f"linear {self.features}->{self.out_features}, batch {self.batch}, T = {self.time_steps}"

    def run(self, module: Any, bits: Tensor, weight: Tensor, bias: Tensor, **keywords: Any) -> Tensor:
        """As ConvCase.run."""
        keywords = {"want_sum": False, "want_state": False, **keywords}
        return module.spiking_linear(bits, weight, bias, time_steps=self.time_steps, **keywords)[0]


S1 = ConvCase("S1", 128, 256, 2, 32)
S2 = ConvCase("S2", 256, 512, 2, 16)
S3 = ConvCase("S3", 512, 1024, 1, 8)
SMALL = ConvCase("small", 32, 64, 2, 14)
LINEAR = LinearCase("linear", 4096, 1024)
POINTWISE = ConvCase("1x1", 256, 256, 1, 16, kernel=1)

# Shapes that no claim rests on.
OTHERS = (
    ConvCase("depthwise", 256, 256, 1, 16, groups=256),
    ConvCase("grouped", 256, 256, 1, 16, groups=8),
    ConvCase("5x5", 128, 128, 1, 16, kernel=5),
    ConvCase("batch 1", 256, 512, 2, 16, batch=1),
    ConvCase("T = 64", 256, 512, 2, 16, time_steps=64),
)
