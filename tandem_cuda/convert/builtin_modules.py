"""The conversion rules for PyTorch's own layers."""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import nn

from ..nn import (
    SpikingGlobalMaxPool2d,
    SpikingMaxPool2d,
    SpikingMaxPool3d,
    TandemDropout,
    TandemDropout2d,
    TandemDropout3d,
    TandemStochasticDepth,
)
from ..nn.batch_norm import NORMS, FrozenBatchNorm2d
from ..nn.tandem import drop_ins
from .builtin_shapes import unflattened
from .nodes import StochasticDepth
from .rules import Call, Rule, Unconvertible, WeightRule, register, register_all, relu_rule
from .values import Resize


def _norm(call: Call) -> Any:
    return call.fold(call.module)


def _average(call: Call) -> Any:
    return call.average(call.module)


def _stochastic_depth(call: Call) -> Any:
    """Convert the layers of torchvision and timm, which name their attributes differently."""
    module = call.module
    p = module.p if hasattr(module, "p") else module.drop_prob
    mode, scale = getattr(module, "mode", "row"), getattr(module, "scale_by_keep", True)
    return call.drop_samples(lambda: TandemStochasticDepth(p or 0.0, mode, scale))


def _on_lines(kind: type[nn.Module]) -> Rule:
    """Make the rule of a pooling of lines: lines are images of height 1, for ``kind``, a pooling of images."""
    names = inspect.signature(kind).parameters

    def rule(call: Call) -> Any:
        _check_indices(call)
        pool = call.module
        settings = {name: _row(name, getattr(pool, name)) for name in names if hasattr(pool, name)}
        return call.of_line(lambda image: image.like(kind(**settings)))

    return rule


def _row(name: str, x: Any) -> Any:
    """Return a setting of a pooling of lines as a setting of a pooling of images."""
    if name not in ("kernel_size", "stride", "padding", "dilation", "output_size"):
        return x
    (number,) = _single(x)
    return 0 if name == "padding" else 1, number


def _single(x: Any) -> tuple[int, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def _check_indices(call: Call) -> None:
    if getattr(call.module, "return_indices", False):
        raise Unconvertible("set return_indices=False: the position of the maximum differs between time steps")


def _largest_of_line(call: Call) -> Any:
    _check_indices(call)
    if _single(call.module.output_size) != (1,):
        raise Unconvertible("use output_size=1 or nn.MaxPool1d: other windows depend on the length of the line")
    return call.of_line(lambda image: image.apply(SpikingGlobalMaxPool2d(), commutes=True, pairs=True))


def _largest_of_image(call: Call) -> Any:
    _check_indices(call)
    if _single(call.module.output_size) not in ((1,), (1, 1)):
        raise Unconvertible("use output_size=1 or nn.MaxPool2d: other windows depend on the size of the image")
    return call.apply(SpikingGlobalMaxPool2d(), commutes=True, pairs=True)


def _maximum(kind: type[SpikingMaxPool2d | SpikingMaxPool3d]) -> Rule:
    """Make the rule of a max pooling that ``kind`` replaces."""

    def rule(call: Call) -> Any:
        _check_indices(call)
        pool = call.module
        window = pool.kernel_size, pool.stride, pool.padding, pool.dilation
        return call.apply(kind(*window, False, pool.ceil_mode), commutes=True, pairs=True)

    return rule


def clamped(call: Call, low: Any, high: Any) -> Any:
    """Write neurons that saturate at a bound."""
    _ = call.input
    if not isinstance(high, (int, float)) or not 0 < high < math.inf or low not in (0, -high):
        raise Unconvertible(
            "let it return values from 0 or -b to a positive bound b, as nn.Hardtanh(0, 6) and nn.Hardtanh() do"
        )
    return call.fire(float(high), both=low != 0)


def hard_sigmoid(call: Call) -> Any:
    """Write neurons that saturate at 1, for x / 6 + 1/2."""
    return call.fire(1.0, of=call.affine(1 / 6, 0.5))


def padded(call: Call, pads: Any, value: float = 0.0) -> Any:
    """Put silent neurons around an image."""
    _ = call.input
    if value != 0:
        raise Unconvertible("pad with zeros: other values are not silent neurons")
    return call.rearrange("zero_pad", *pads)


def mirrored(call: Call, pads: Any, mode: str) -> Any:
    """Put copies of neurons around an image or a line."""
    _ = call.input
    if mode not in ("reflect", "replicate", "circular") or min(pads) < 0:
        raise Unconvertible("pad rows and columns with zeros, or with mode 'reflect', 'replicate' or 'circular'")
    if len(pads) == 2:
        return call.of_line(lambda image: image.rearrange(f"{mode}_pad", *pads, 0, 0))
    return call.rearrange(f"{mode}_pad", *pads)


def _mirrored(mode: str) -> Rule:
    return lambda call: mirrored(call, call.module.padding, mode)


def upsampled(call: Call, size: Any, factor: Any, mode: str = "nearest", align_corners: Any = None) -> Any:
    """Repeat every neuron, or interpolate between neurons."""
    _ = call.input
    both = [x if x is None or isinstance(x, (tuple, list)) else (x, x) for x in (size, factor)]
    numbers = all(isinstance(x, (int, float)) for pair in both for x in pair or ())
    if not numbers or mode not in ("nearest", "nearest-exact", "bilinear", "bicubic") or both.count(None) != 1:
        raise Unconvertible("use mode='nearest', 'bilinear' or 'bicubic', with numbers as size or scale_factor")
    size, factor = both
    if mode in ("bilinear", "bicubic"):
        factor = None if factor is None else tuple(map(float, factor))
        return call.interpolate(Resize(None if size is None else tuple(size), factor, mode, bool(align_corners)))
    if size is not None and mode == "nearest":
        return call.rearrange("resize", *size)
    if factor is None or not all(float(f).is_integer() for f in factor):
        raise Unconvertible("with mode='nearest', use a whole scale_factor: spikes are repeated")
    return call.rearrange("upsample", *(int(f) for f in factor))


def _upsampled_by(call: Call) -> Any:
    """Convert nn.Upsample and its subclasses in torch."""
    module = call.module
    if module.recompute_scale_factor:
        raise Unconvertible("set recompute_scale_factor=None")
    return upsampled(call, module.size, module.scale_factor, module.mode, module.align_corners)


for _of_torch, _tandem in drop_ins().items():
    register(_of_torch, WeightRule(_tandem, _tandem.norm_class))
register(nn.ReLU, relu_rule)
register(nn.Identity, lambda call: call.input)
register_all(_norm, *NORMS, nn.SyncBatchNorm, FrozenBatchNorm2d)
register(nn.Unflatten, lambda call: unflattened(call, call.module.dim, call.module.unflattened_size))
register(nn.Flatten, lambda call: call.flatten(call.module.start_dim, call.module.end_dim))
register_all(_average, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool3d)
register(nn.MaxPool2d, _maximum(SpikingMaxPool2d))
register(nn.MaxPool3d, _maximum(SpikingMaxPool3d))
register(StochasticDepth, _stochastic_depth)
register(nn.LeakyReLU, lambda call: call.fire(slope=float(call.module.negative_slope)))
register(nn.PReLU, lambda call: call.fire(slope=call.module.weight))
register(nn.Hardsigmoid, hard_sigmoid)
register(nn.ReLU6, lambda call: call.fire(6.0))
register(nn.Hardtanh, lambda call: clamped(call, call.module.min_val, call.module.max_val))
register(nn.AvgPool1d, _on_lines(nn.AvgPool2d))
register(nn.AdaptiveAvgPool1d, _on_lines(nn.AdaptiveAvgPool2d))
register(nn.MaxPool1d, _on_lines(nn.MaxPool2d))
register(nn.AdaptiveMaxPool1d, _largest_of_line)
register(nn.AdaptiveMaxPool2d, _largest_of_image)
register(nn.ZeroPad2d, lambda call: padded(call, call.module.padding))
register(nn.ConstantPad2d, lambda call: padded(call, call.module.padding, call.module.value))
register_all(_mirrored("reflect"), nn.ReflectionPad1d, nn.ReflectionPad2d)
register_all(_mirrored("replicate"), nn.ReplicationPad1d, nn.ReplicationPad2d)
register_all(_upsampled_by, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
register(nn.PixelShuffle, lambda call: call.rearrange("pixel_shuffle", call.module.upscale_factor))
register(nn.PixelUnshuffle, lambda call: call.rearrange("pixel_unshuffle", call.module.downscale_factor))
register(nn.ChannelShuffle, lambda call: call.rearrange("channel_shuffle", call.module.groups))
register(nn.Dropout, lambda call: call.drop(TandemDropout))
register(nn.Dropout2d, lambda call: call.drop(TandemDropout2d))
register(nn.Dropout3d, lambda call: call.drop(TandemDropout3d))
