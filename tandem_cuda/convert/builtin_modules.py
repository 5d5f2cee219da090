"""The conversion rules for PyTorch's own layers."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ..nn import (
    SpikingGlobalMaxPool2d,
    SpikingMaxPool2d,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemDropout,
    TandemDropout2d,
    TandemLinear,
    TandemStochasticDepth,
)
from .nodes import StochasticDepth
from .rules import Call, Unconvertible, WeightRule, fire, register

_NO_INDICES = "set return_indices=False: the position of the maximum differs between time steps"


def _unchanged(call: Call) -> Any:
    return call.input


def _norm(call: Call) -> Any:
    return call.fold(call.module)


def _flatten(call: Call) -> Any:
    return call.flatten(call.module.start_dim, call.module.end_dim)


def _average(call: Call) -> Any:
    return call.average(call.module)


def _stochastic_depth(call: Call) -> Any:
    """torchvision's and timm's, which differ in their attributes."""
    module = call.module
    p = module.p if hasattr(module, "p") else module.drop_prob
    mode, scale = getattr(module, "mode", "row"), getattr(module, "scale_by_keep", True)
    return call.drop_samples(lambda: TandemStochasticDepth(p or 0.0, mode, scale))


def _average_line(call: Call) -> Any:
    pool = call.module
    kernel, stride, padding = _row(pool.kernel_size), _row(pool.stride), _row(pool.padding, 0)
    window = nn.AvgPool2d(kernel, stride, padding, pool.ceil_mode, pool.count_include_pad)
    return call.of_line(lambda image: image.average(window))


def _adaptive_average_line(call: Call) -> Any:
    average = nn.AdaptiveAvgPool2d(_row(call.module.output_size))
    return call.of_line(lambda image: image.average(average))


def _maximum_line(call: Call) -> Any:
    pool = call.module
    if pool.return_indices:
        raise Unconvertible(_NO_INDICES)
    kernel, stride, padding = _row(pool.kernel_size), _row(pool.stride), _row(pool.padding, 0)
    maximum = SpikingMaxPool2d(kernel, stride, padding, _row(pool.dilation), False, pool.ceil_mode)
    return call.of_line(lambda image: image.apply(maximum, commutes=True))


def _largest_of_line(call: Call) -> Any:
    if call.module.return_indices:
        raise Unconvertible(_NO_INDICES)
    if _single(call.module.output_size) != (1,):
        raise Unconvertible("use output_size=1 or nn.MaxPool1d: other windows depend on the length of the line")
    return call.of_line(lambda image: image.apply(SpikingGlobalMaxPool2d(), commutes=True))


def _row(size: Any, height: int = 1) -> tuple[int, int]:
    """Return a size along a line as that of an image."""
    (number,) = _single(size)
    return height, number


def _single(x: Any) -> tuple[int, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def _largest_of_all(call: Call) -> Any:
    if call.module.return_indices:
        raise Unconvertible(_NO_INDICES)
    size = call.module.output_size
    if tuple(size if isinstance(size, (tuple, list)) else (size, size)) != (1, 1):
        raise Unconvertible("use output_size=1 or nn.MaxPool2d: other windows depend on the size of the image")
    return call.apply(SpikingGlobalMaxPool2d(), commutes=True)


def _maximum(call: Call) -> Any:
    pool = call.module
    if pool.return_indices:
        raise Unconvertible(_NO_INDICES)
    window = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    return call.apply(SpikingMaxPool2d(*window, False, pool.ceil_mode), commutes=True)


def clamped(call: Call, low: Any, high: Any) -> Any:
    """Neurons between 0 and a bound."""
    _ = call.input
    if low != 0 or not isinstance(high, (int, float)) or not 0 < high < math.inf:
        raise Unconvertible("let it return values from 0 to a positive bound, as nn.Hardtanh(0, 6) does")
    return call.fire(float(high))


def padded(call: Call, pads: Any, value: float = 0.0) -> Any:
    """Silent neurons around an image."""
    _ = call.input
    if value != 0:
        raise Unconvertible("pad with zeros: other values are not silent neurons")
    return call.rearrange("zero_pad", *pads)


def _is_whole(x: Any) -> bool:
    return isinstance(x, (int, float)) and float(x).is_integer()


def upsampled(call: Call, size: Any, factor: Any, mode: str = "nearest") -> Any:
    """Every neuron several times."""
    _ = call.input
    factors = factor if isinstance(factor, (tuple, list)) else (factor, factor)
    if size is not None or mode != "nearest" or not all(map(_is_whole, factors)):
        raise Unconvertible("use mode='nearest' and a whole scale_factor: spikes are not interpolated")
    return call.rearrange("upsample", *(int(f) for f in factors))


register(nn.Conv1d, WeightRule(TandemConv1d, nn.BatchNorm1d))
register(nn.Conv2d, WeightRule(TandemConv2d, nn.BatchNorm2d))
register(nn.ConvTranspose2d, WeightRule(TandemConvTranspose2d, nn.BatchNorm2d))
register(nn.Linear, WeightRule(TandemLinear, nn.BatchNorm1d))
register(nn.ReLU, fire)
register(nn.Identity, _unchanged)
register(nn.BatchNorm1d, _norm)
register(nn.BatchNorm2d, _norm)
register(nn.Flatten, _flatten)
register(nn.AvgPool2d, _average)
register(nn.AdaptiveAvgPool2d, _average)
register(nn.MaxPool2d, _maximum)
register(nn.SyncBatchNorm, _norm)
register(StochasticDepth, _stochastic_depth)
register(nn.ReLU6, lambda call: call.fire(6.0))
register(nn.Hardtanh, lambda call: clamped(call, call.module.min_val, call.module.max_val))
register(nn.AvgPool1d, _average_line)
register(nn.AdaptiveAvgPool1d, _adaptive_average_line)
register(nn.MaxPool1d, _maximum_line)
register(nn.AdaptiveMaxPool1d, _largest_of_line)
register(nn.AdaptiveMaxPool2d, _largest_of_all)
register(nn.ZeroPad2d, lambda call: padded(call, call.module.padding))
register(nn.ConstantPad2d, lambda call: padded(call, call.module.padding, call.module.value))
register(nn.Upsample, lambda call: upsampled(call, call.module.size, call.module.scale_factor, call.module.mode))
register(nn.UpsamplingNearest2d, lambda call: upsampled(call, call.module.size, call.module.scale_factor))
register(nn.PixelShuffle, lambda call: call.rearrange("pixel_shuffle", call.module.upscale_factor))
register(nn.PixelUnshuffle, lambda call: call.rearrange("pixel_unshuffle", call.module.downscale_factor))
register(nn.ChannelShuffle, lambda call: call.rearrange("channel_shuffle", call.module.groups))
register(nn.Dropout, lambda call: call.drop(TandemDropout))
register(nn.Dropout2d, lambda call: call.drop(TandemDropout2d))
