"""The conversion rules for PyTorch's own layers and functions."""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

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
from .advice import NOTHING_ELSE
from .gates import PRODUCTS
from .rules import Call, Rule, Unconvertible, WeightRule, fire, register
from .trace import DROPOUTS, StochasticDepth, dropout_of
from .values import BatchSize, Grouped, ImageSize, Known, Pieces, Shape, is_value

_NO_INDICES = "set return_indices=False: the position of the maximum differs between time steps"
_SIZED = "use nn.Flatten in place of a computed shape"
_SPLIT = "split along dimension 1, the channels"
_DIVIDED = "divide by a number other than 0: spikes cannot be divided by others"
_WHOLE_IMAGE = (ImageSize(2), ImageSize(3))


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


def _row(size: Any, height: int = 1) -> tuple[int, int]:
    """Return a size along a line as that of an image."""
    (number,) = _single(size)
    return height, number


def _single(x: Any) -> tuple[int, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def _largest_of_all(call: Call) -> Any:
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
register(nn.Hardtanh, lambda call: _clamped(call, call.module.min_val, call.module.max_val))
register(nn.AvgPool1d, _average_line)
register(nn.AdaptiveAvgPool1d, _adaptive_average_line)
register(nn.MaxPool1d, _maximum_line)
register(nn.AdaptiveMaxPool2d, _largest_of_all)
register(nn.ZeroPad2d, lambda call: _padded(call, call.module.padding))
register(nn.ConstantPad2d, lambda call: _padded(call, call.module.padding, call.module.value))
register(nn.Upsample, lambda call: _upsampled(call, call.module.size, call.module.scale_factor, call.module.mode))
register(nn.UpsamplingNearest2d, lambda call: _upsampled(call, call.module.size, call.module.scale_factor))
register(nn.PixelShuffle, lambda call: call.rearrange("pixel_shuffle", call.module.upscale_factor))
register(nn.PixelUnshuffle, lambda call: call.rearrange("pixel_unshuffle", call.module.downscale_factor))
register(nn.ChannelShuffle, lambda call: call.rearrange("channel_shuffle", call.module.groups))
register(nn.Dropout, lambda call: call.drop(TandemDropout))
register(nn.Dropout2d, lambda call: call.drop(TandemDropout2d))


def _clamped(call: Call, low: Any, high: Any) -> Any:
    """Neurons between 0 and a bound."""
    _ = call.input
    if low != 0 or not isinstance(high, (int, float)) or not 0 < high < math.inf:
        raise Unconvertible("let it return values from 0 to a positive bound, as nn.Hardtanh(0, 6) does")
    return call.fire(float(high))


def _padded(call: Call, pads: Any, value: float = 0.0) -> Any:
    _ = call.input
    if value != 0:
        raise Unconvertible("pad with zeros: other values are not silent neurons")
    return call.rearrange("zero_pad", *pads)


def _upsampled(call: Call, size: Any, factor: Any, mode: str = "nearest") -> Any:
    _ = call.input
    factors = factor if isinstance(factor, (tuple, list)) else (factor, factor)
    if size is not None or mode != "nearest" or not all(f is not None and float(f).is_integer() for f in factors):
        raise Unconvertible("use mode='nearest' and a whole scale_factor: spikes are not interpolated")
    return call.rearrange("upsample", *(int(f) for f in factors))


# The helpers below have the signatures of torch's functions, without the first argument, the input.


def _avg_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> nn.Module:
    return nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


def _adaptive_avg_pool(output_size: Any) -> nn.Module:
    return nn.AdaptiveAvgPool2d(output_size)


def _adaptive_max_pool(output_size: Any, return_indices: bool = False) -> nn.Module:
    return nn.AdaptiveMaxPool2d(output_size, return_indices)


def _as_module(make: Any) -> Any:
    """Make the rule of a function that is equivalent to a module."""

    def rule(call: Call) -> Any:
        _ = call.input  # raises Unconvertible first, before bad arguments could raise something else
        args, kwargs = call.args[1:], call.kwargs
        if make is _avg_pool and args == (_WHOLE_IMAGE,) and not kwargs:
            return call.like(nn.AdaptiveAvgPool2d(1))
        if any(is_value(x) for x in tree_leaves((args, kwargs))):
            raise Unconvertible("pass sizes that do not depend on the input")
        return call.like(make(*args, **kwargs))

    return rule


def _dropout(call: Call) -> Any:
    _ = call.input
    if call.node.meta["drops"] == (True, True):
        raise Unconvertible("use nn.Dropout, or training=self.training: it drops in eval mode too")
    return call.like(dropout_of(call.node) or nn.Identity())


def _flatten_function(call: Call) -> Any:
    def dims(x: Any, start_dim: int = 0, end_dim: int = -1) -> tuple[int, int]:
        return start_dim, end_dim

    _ = call.input
    return call.flatten(*dims(*call.args, **call.kwargs))


def _reshape(call: Call) -> Any:
    _ = call.input
    sizes = call.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    batch, features = sizes if len(sizes) == 2 else (None, None)
    if not (isinstance(batch, BatchSize) or batch == -1) or not isinstance(features, int):
        raise Unconvertible(_SIZED)
    return call.flatten() if features == -1 else call.flatten_to(features)


def _mean(call: Call) -> Any:
    def given(x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> tuple[Any, bool, Any]:
        return dim, keepdim, dtype

    _ = call.input
    dims, keepdim, dtype = given(*call.args, **call.kwargs)
    axes = _axes(dims, call.value.dims)
    if dtype is not None or not axes:
        raise Unconvertible("use nn.AdaptiveAvgPool2d(1): spikes can only be averaged over rows, columns or both")
    if call.value.dims == 3:
        average = call.of_line(lambda image: image.average(nn.AdaptiveAvgPool2d(1)))
        return average if keepdim else call.flattened(average)
    if len(axes) == 2:
        return call.average(nn.AdaptiveAvgPool2d(1), keepdim=keepdim)
    average = call.average(nn.AdaptiveAvgPool2d((1, None) if axes == [2] else (None, 1)))
    return average if keepdim else call.flattened(average, 2, 3)


def _amax(call: Call) -> Any:
    def given(x: Any, dim: Any = (), keepdim: bool = False) -> tuple[Any, bool]:
        return dim, keepdim

    _ = call.input
    dims, keepdim = given(*call.args, **call.kwargs)
    if len(_axes(dims, call.value.dims)) != 2:
        raise Unconvertible("use nn.AdaptiveMaxPool2d(1): the maximum of spikes is taken over all pixels")
    largest = call.apply(SpikingGlobalMaxPool2d(), commutes=True)
    return largest if keepdim else call.flattened(largest)


def _axes(dims: Any, of: int | None) -> list[int]:
    """Return the dimensions of pixels that are meant, sorted; none if there are others.

    ``of``: the number of dimensions; where it is not known, both of an image may be meant, but not one alone.
    """
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    total = of or 4
    if not all(isinstance(d, int) and -total <= d < total for d in dims):
        return []
    axes = sorted(d % total for d in dims)
    allowed = {3: [[2]], 4: [[2], [3], [2, 3]], None: [[2, 3]]}.get(of, [])
    return axes if axes in allowed else []


def _sizes(call: Call) -> tuple[int, ...]:
    """Return the arguments of arithmetic on sizes; none if there are others."""
    return call.args if all(isinstance(x, int) for x in call.args) and not call.kwargs else ()


def _add(call: Call) -> Any:
    if sizes := _sizes(call):
        return Known(sum(sizes))
    if len(call.args) != 2 or call.kwargs:
        _ = call.input
        raise Unconvertible(NOTHING_ELSE)  # scaled by alpha
    numbers = [x for x in call.args if isinstance(x, (int, float))]
    if numbers:
        return call.swapped().affine(offset=float(numbers[0]))
    return call.add()


def _subtract(call: Call) -> Any:
    if len(call.args) != 2 or call.kwargs:
        _ = call.input
        raise Unconvertible(NOTHING_ELSE)
    one, other = call.args
    if isinstance(other, (int, float)):
        return call.affine(offset=-float(other))
    if isinstance(one, (int, float)):
        return call.swapped().affine(-1.0, float(one))
    return call.add(subtract=True)


def _multiply(call: Call) -> Any:
    if sizes := _sizes(call):
        return Known(math.prod(sizes))
    numbers = [x for x in call.args if isinstance(x, (int, float))]
    if len(call.args) == 2 and len(numbers) == 1 and not call.kwargs:
        return call.swapped().affine(float(numbers[0]))
    return call.gate()


def _divide(call: Call) -> Any:
    _ = call.input
    divisor = call.args[1] if len(call.args) == 2 and not call.kwargs else None
    if not isinstance(divisor, (int, float)) or divisor == 0:
        raise Unconvertible(_DIVIDED)
    return call.affine(1 / divisor)


def _divide_sizes(call: Call) -> Any:
    sizes = _sizes(call)
    if len(sizes) != 2 or sizes[1] == 0:
        _ = call.input
        raise Unconvertible(_DIVIDED)
    return Known(sizes[0] // sizes[1])


def _clamp(call: Call) -> Any:
    def given(x: Any, min: Any = None, max: Any = None) -> tuple[Any, Any]:
        return min, max

    _ = call.input
    low, high = given(*call.args, **call.kwargs)
    return call.fire() if low == 0 and high is None else _clamped(call, low, high)


def _hardtanh(call: Call) -> Any:
    def given(x: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> tuple[Any, Any]:
        return min_val, max_val

    _ = call.input
    return _clamped(call, *given(*call.args, **call.kwargs))


def _pad(call: Call) -> Any:
    def given(x: Any, pad: Any, mode: str = "constant", value: Any = None) -> tuple[Any, str, Any]:
        return pad, mode, value

    _ = call.input
    pads, mode, value = given(*call.args, **call.kwargs)
    if mode != "constant" or len(pads) not in (2, 4) or not all(isinstance(n, int) for n in pads):
        raise Unconvertible("pad rows and columns with zeros, by sizes that do not depend on the input")
    return _padded(call, [*pads, 0, 0][:4], value or 0.0)


def _interpolate(call: Call) -> Any:
    def given(
        x: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *rest: Any, **more: Any
    ) -> Any:
        return size, scale_factor, mode

    return _upsampled(call, *given(*call.args, **call.kwargs))


def _cat(call: Call) -> Any:
    def given(tensors: Any, dim: Any = 0, axis: Any = None) -> Any:
        return dim if axis is None else axis

    tensors = call.args[0] if call.args else call.kwargs.get("tensors")
    dims = [getattr(x, "dims", None) for x in tensors] if isinstance(tensors, (tuple, list)) else []
    if not all(_are_channels(given(*call.args, **call.kwargs), of) for of in dims):
        raise Unconvertible("concatenate along dimension 1, the channels")
    return call.cat()


def _chunk(call: Call) -> Any:
    def given(x: Any, chunks: int, dim: Any = 0) -> tuple[int, Any]:
        return chunks, dim

    _ = call.input
    chunks, dim = given(*call.args, **call.kwargs)
    if not _are_channels(dim, call.value.dims):
        raise Unconvertible(_SPLIT)
    return call.pieces(lambda channels: _evenly(channels, -(-channels // chunks)))


def _split(call: Call) -> Any:
    def given(x: Any, split_size: Any = None, dim: Any = 0, **more: Any) -> tuple[Any, Any]:
        return more.get("split_size_or_sections", split_size), dim

    _ = call.input
    sizes, dim = given(*call.args, **call.kwargs)
    if not _are_channels(dim, call.value.dims):
        raise Unconvertible(_SPLIT)
    if isinstance(sizes, int):
        return call.pieces(lambda channels: _evenly(channels, sizes))
    ends = [*itertools.accumulate(sizes)]
    return call.pieces(lambda channels: list(zip([0, *ends], ends, strict=False)))


def _are_channels(dim: Any, of: int | None) -> bool:
    """Whether this is dimension 1 of a tensor of ``of`` dimensions; None if it is not known how many it has."""
    return dim == 1 or (of is not None and isinstance(dim, int) and dim == 1 - of)


def _evenly(channels: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, channels)) for start in range(0, channels, size)]


def _transpose(call: Call) -> Any:
    x, one, other = (*call.args, None, None)[:3]
    if isinstance(x, Grouped) and {one, other} == {1, 2}:
        return replace(x, swapped=not x.swapped)
    _ = call.input
    raise Unconvertible(NOTHING_ELSE)


def _contiguous(call: Call) -> Any:
    return call.args[0] if isinstance(call.args[0], Grouped) else call.input


def _viewed(call: Call) -> Any:
    """A view or reshape: flattening, or a step of shuffling channels."""
    sizes = call.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    x = call.args[0]
    if isinstance(x, Grouped):
        channels = x.x.channels
        if not _views(sizes, [(channels, -1)]):
            raise Unconvertible(_SIZED)
        return call.shuffled(x) if x.swapped else x.x
    if len(sizes) == 5:
        train = call.spikes()
        groups, channels = sizes[1], train.channels
        if channels is None or not isinstance(groups, int) or groups < 1 or channels % groups:
            raise Unconvertible(_SIZED)
        if not _views(sizes, [(groups,), (channels // groups, -1)]):
            raise Unconvertible(_SIZED)
        return Grouped(train, groups)
    return _reshape(call)


def _views(sizes: tuple[Any, ...], channels: list[tuple[int, ...]]) -> bool:
    """Whether these are the sizes of images whose channels have one of the sizes given, in order."""
    if len(sizes) != 3 + len(channels) or sum(size == -1 for size in sizes) > 1 or sizes[-2:] != _WHOLE_IMAGE:
        return False
    batch, *given = sizes[:-2]
    fits = all(size in allowed for size, allowed in zip(given, channels, strict=True))
    return fits and (isinstance(batch, BatchSize) or batch == -1)


def _size(call: Call) -> Any:
    x = call.value
    dims = *call.args[1:], *call.kwargs.values()
    if len(dims) > 1 or not all(isinstance(dim, int) for dim in dims):
        raise Unconvertible(_SIZED)
    shape = Shape(x.channels, x.dims)
    return _size_at(shape, dims[0]) if dims else shape


def _size_at(shape: Shape, dim: int) -> Any:
    if dim < 0:
        if shape.dims is None:
            raise Unconvertible(_SIZED)
        dim += shape.dims
    if dim == 0:
        return BatchSize()
    if dim != 1:
        return ImageSize(dim)
    if shape.channels is None:
        raise Unconvertible(_SIZED)
    return Known(shape.channels)


def _length(call: Call) -> Any:
    _ = call.value
    return BatchSize()


def _attribute(call: Call) -> Any:
    x = call.value
    if call.args[1] != "shape":
        raise Unconvertible(NOTHING_ELSE)
    return Shape(x.channels, x.dims)


def _item(call: Call) -> Any:
    x, index = call.args
    if isinstance(x, Shape) and isinstance(index, int):
        return _size_at(x, index)
    if isinstance(x, Pieces) and isinstance(index, int):
        return call.piece(x, index)
    _ = call.input
    whole = slice(None)
    index = index if isinstance(index, tuple) else (index,)
    channels = index[1] if len(index) > 1 and index[0] == whole else None
    if (
        not isinstance(channels, slice)
        or channels.step not in (None, 1)
        or any(i not in (whole, ...) for i in index[2:])
    ):
        raise Unconvertible("select a range of channels, as in x[:, :8]")
    wanted: slice = channels
    return call.piece(call.pieces(lambda n: [wanted.indices(n)[:2]]), 0)


def _register_all(rule: Rule, *functions: Any) -> None:
    for function in functions:
        register(function, rule)


register(F.avg_pool2d, _as_module(_avg_pool))
register(F.max_pool2d, _as_module(_max_pool))
register(F.adaptive_avg_pool2d, _as_module(_adaptive_avg_pool))
register(F.adaptive_max_pool2d, _as_module(_adaptive_max_pool))
_register_all(fire, F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)
register(F.relu6, lambda call: call.fire(6.0))
register(F.hardtanh, _hardtanh)
_register_all(_clamp, torch.clamp, torch.clamp_, torch.Tensor.clamp, torch.Tensor.clamp_, torch.clip, torch.Tensor.clip)
_register_all(_dropout, *DROPOUTS)
_register_all(_flatten_function, torch.flatten, torch.Tensor.flatten)
_register_all(_viewed, torch.reshape, torch.Tensor.reshape, torch.Tensor.view)
_register_all(_transpose, torch.transpose, torch.Tensor.transpose)
_register_all(_mean, torch.mean, torch.Tensor.mean)
_register_all(_amax, torch.amax, torch.Tensor.amax)
_register_all(_add, operator.add, operator.iadd, torch.add, torch.Tensor.add, torch.Tensor.add_)
_register_all(_subtract, operator.sub, operator.isub, torch.sub, torch.Tensor.sub, torch.Tensor.sub_)
_register_all(_multiply, *PRODUCTS[:-2], torch.Tensor.mul, torch.Tensor.mul_)
_register_all(_divide, operator.truediv, operator.itruediv, torch.div, torch.Tensor.div, torch.Tensor.div_)
register(operator.floordiv, _divide_sizes)
_register_all(lambda call: call.affine(-1.0), operator.neg, torch.neg, torch.Tensor.neg)
_register_all(_cat, torch.cat, torch.concat, torch.concatenate)
_register_all(_chunk, torch.chunk, torch.Tensor.chunk)
_register_all(_split, torch.split, torch.Tensor.split)
_register_all(_interpolate, F.interpolate)
register(F.pad, _pad)
register(F.pixel_shuffle, lambda call: call.rearrange("pixel_shuffle", *call.args[1:], *call.kwargs.values()))
register(F.channel_shuffle, lambda call: call.rearrange("channel_shuffle", *call.args[1:], *call.kwargs.values()))
register(torch.Tensor.contiguous, _contiguous)
register(torch.Tensor.size, _size)
register(len, _length)
register(getattr, _attribute)
register(operator.getitem, _item)
