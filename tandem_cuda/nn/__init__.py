"""Tandem layers. Compose them with nn.Sequential, nn.Flatten and, after Decode, nn.Linear."""

from .add import TandemAdd
from .conv import TandemConv1d, TandemConv2d, TandemConv3d, TandemConvTranspose2d
from .dropout import TandemDropout, TandemDropout2d, TandemDropout3d, TandemStochasticDepth
from .elementwise import TandemElementwise
from .encode import Decode, Encode, EncodedInput
from .frozen import register as _register
from .interpolate import TandemInterpolate
from .linear import TandemLinear
from .max_pool import SpikingGlobalMaxPool2d, SpikingMaxPool2d
from .neurons import TandemNeurons
from .pool import SpikeWindows, SpikingAdaptiveAvgPool2d, SpikingAvgPool2d
from .pool3d import SpikingAdaptiveAvgPool3d, SpikingAvgPool3d, SpikingMaxPool3d
from .rearrange import SpikeCat, SpikeRearrange
from .spiking import freezable as _freezable

__all__ = [
    "Decode",
    "Encode",
    "EncodedInput",
    "SpikeCat",
    "SpikeRearrange",
    "SpikeWindows",
    "SpikingAdaptiveAvgPool2d",
    "SpikingAdaptiveAvgPool3d",
    "SpikingAvgPool2d",
    "SpikingAvgPool3d",
    "SpikingGlobalMaxPool2d",
    "SpikingMaxPool2d",
    "SpikingMaxPool3d",
    "TandemAdd",
    "TandemConv1d",
    "TandemConv2d",
    "TandemConv3d",
    "TandemConvTranspose2d",
    "TandemDropout",
    "TandemDropout2d",
    "TandemDropout3d",
    "TandemElementwise",
    "TandemInterpolate",
    "TandemLinear",
    "TandemNeurons",
    "TandemStochasticDepth",
]

_freezable(TandemConv1d, TandemConv2d, TandemConv3d, TandemConvTranspose2d, TandemLinear)
_freezable(TandemAdd, TandemElementwise, TandemInterpolate, TandemNeurons)
_freezable(SpikingAvgPool2d, SpikingAdaptiveAvgPool2d, SpikingMaxPool2d, SpikingGlobalMaxPool2d, SpikeWindows)
_freezable(SpikingAvgPool3d, SpikingAdaptiveAvgPool3d, SpikingMaxPool3d)
_freezable(Encode, Decode, SpikeCat, SpikeRearrange)
for _dropout in (TandemDropout, TandemDropout2d, TandemDropout3d, TandemStochasticDepth):
    _register(_dropout, lambda module, encoded: None)
