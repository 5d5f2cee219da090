"""The conversion rules for PyTorch's own layers and functions."""

from __future__ import annotations

import inspect
import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable
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
from .advice import EXAMPLE, FUNCTION_ADVICE, NOTHING_ELSE, NUMBER
from .gates import PRODUCTS
from .nodes import DROPOUTS, StochasticDepth, asks_for_size, dropout_of
from .rules import Call, Rule, Unconvertible, WeightRule, fire, register
from .values import Current, Grouped, Pieces, Pooled, Real, Shape, Size, Sizes, Train

_NO_INDICES = "set return_indices=False: the position of the maximum differs between time steps"
_SIZED = "use nn.Flatten in place of a computed shape"
_SPLIT = "split along dimension 1, the channels"
_DIVIDED = "divide by a number other than 0: spikes cannot be divided by others"
_COMPARISONS = operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge
_BATCH = Size(1, (0,), (None,))
_WHOLE_IMAGE = (Size(1, (2,), (None,)), Size(1, (3,), (None,)))


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
register(nn.AdaptiveMaxPool1d, _largest_of_line)
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
    if size is not None or mode != "nearest" or not all(map(_is_whole, factors)):
        raise Unconvertible("use mode='nearest' and a whole scale_factor: spikes are not interpolated")
    return call.rearrange("upsample", *(int(f) for f in factors))


def _given(call: Call, signature: Callable[..., Any], *, sizes: bool = False) -> Any:
    """Return what ``signature``, which has the parameters of the function that is called, returns for its arguments.

    Raises:
        Unconvertible: the input is no spikes, there are other arguments, or without ``sizes`` some are sizes that
            depend on the input.
    """
    _ = call.input
    named = {"dim" if name == "axis" else name: x for name, x in call.kwargs.items()}
    parameters = inspect.signature(signature)
    try:
        parameters.bind(*call.args, **named)
    except TypeError:
        names = ", ".join(name for name in parameters.parameters if name != "x")
        raise Unconvertible(f"pass no arguments but {names}") from None
    if not sizes and any(isinstance(x, (Size, Shape)) for x in tree_leaves((call.args[1:], named))):
        raise Unconvertible(NUMBER)
    return signature(*call.args, **named)


def _is_whole(x: Any) -> bool:
    return isinstance(x, (int, float)) and float(x).is_integer()


# The helpers below have the signatures of torch's functions.


def _avg_pool(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> nn.Module:
    return nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _avg_pool_line(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> nn.Module:
    return nn.AvgPool1d(kernel_size, stride, padding, ceil_mode, count_include_pad)


def _max_pool(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


def _max_pool_line(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    return nn.MaxPool1d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


def _adaptive_avg_pool(x: Any, output_size: Any) -> nn.Module:
    return nn.AdaptiveAvgPool2d(output_size)


def _adaptive_avg_pool_line(x: Any, output_size: Any) -> nn.Module:
    return nn.AdaptiveAvgPool1d(output_size)


def _adaptive_max_pool(x: Any, output_size: Any, return_indices: bool = False) -> nn.Module:
    return nn.AdaptiveMaxPool2d(output_size, return_indices)


def _adaptive_max_pool_line(x: Any, output_size: Any, return_indices: bool = False) -> nn.Module:
    return nn.AdaptiveMaxPool1d(output_size, return_indices)


def _as_module(make: Callable[..., nn.Module]) -> Rule:
    """Make the rule of a function that is equivalent to a module."""

    def rule(call: Call) -> Any:
        sizes = (*call.args[1:], *call.kwargs.values())
        if make is _avg_pool and sizes == (_WHOLE_IMAGE,) and all(_are_of_input(size, call) for size in sizes[0]):
            return call.like(nn.AdaptiveAvgPool2d(1))
        return call.like(_given(call, make))

    return rule


def _dropout(call: Call) -> Any:
    _ = call.input
    if call.node.meta["drops"] == (True, True):
        raise Unconvertible("use nn.Dropout, or training=self.training: it drops in eval mode too")
    return call.like(dropout_of(call.node) or nn.Identity())


def _flatten_function(call: Call) -> Any:
    def dims(x: Any, start_dim: int = 0, end_dim: int = -1) -> tuple[int, int]:
        return start_dim, end_dim

    return call.flatten(*_given(call, dims))


def _reshape(call: Call, sizes: tuple[Any, ...]) -> Any:
    """Flatten all dimensions but the first, or all but the first two."""
    x = call.input
    features = Size(1, tuple(range(1, x.dims or 2)))
    if x.channels is not None:
        features = Size(x.channels, features.dims[1:])
    batch, *others = sizes
    if len(others) == 1:
        (number,) = others
        if batch in (_BATCH, -1) and isinstance(number, int):
            return call.flatten() if number == -1 else call.flatten_to(number)
        # With as many samples as before, there can be no other number of features.
        if isinstance(number, Size) and (batch == _BATCH or (batch == -1 and _is(number, features, call))):
            return call.flatten()
    if len(others) == 2 and x.dims == 4 and batch == _BATCH and others[0] == x.channels and not _is_known(others[1]):
        return call.flatten(2)
    raise Unconvertible(_SIZED)


def _is_known(size: Any) -> bool:
    """Whether a size of a view is a number, which another image need not have."""
    return isinstance(size, int) and size != -1


def _is(size: Size, other: Size, call: Call) -> bool:
    """Whether these are equal sizes of the call's input."""
    return size == other and _are_of_input(size, call)


def _are_of_input(size: Size, call: Call) -> bool:
    return all(of is call.node.all_input_nodes[0] for of in size.of)


def _mean(call: Call) -> Any:
    def given(x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> tuple[Any, bool, Any]:
        return dim, keepdim, dtype

    dims, keepdim, dtype = _given(call, given)
    axes = _axes(dims, call.value.dims)
    if dtype is not None or not axes:
        other = {2: "nn.Linear", 3: "nn.AdaptiveAvgPool1d(1)"}.get(call.value.dims, "nn.AdaptiveAvgPool2d(1)")
        raise Unconvertible(f"use {other}: spikes can only be averaged over rows, columns or both")
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

    dims, keepdim = _given(call, given)
    if call.value.dims == 3 and _axes(dims, 3):
        line = call.like(nn.AdaptiveMaxPool1d(1))
        return line if keepdim else call.flattened(line)
    if len(_axes(dims, call.value.dims)) != 2:
        raise Unconvertible(_all_pixels(call))
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


def _all_pixels(call: Call) -> str:
    dims = "2" if call.value.dims == 3 else "(2, 3)"
    return f"use x.amax({dims}): the maximum of spikes is taken over all pixels"


def _larger(call: Call) -> Any:
    """torch.max, of one or two tensors."""
    _ = call.input
    other = call.args[1] if len(call.args) > 1 else call.kwargs.get("other")
    if isinstance(other, (Train, Pooled, Current, Real)):
        raise Unconvertible(FUNCTION_ADVICE[torch.maximum])
    raise Unconvertible(_all_pixels(call))


def _of_sizes(operation: Callable[..., Any], rule: Rule) -> Rule:
    """Make the rule of an operation on numbers that may also get tensors: then it is ``rule``."""

    def either(call: Call) -> Any:
        sizes = [Size(x) if isinstance(x, (int, float)) else x for x in call.args]
        if call.kwargs or not all(isinstance(x, Size) for x in sizes):
            if any(isinstance(x, (Size, Shape)) for x in call.args):
                raise Unconvertible(NUMBER)
            return rule(call)
        if operation is operator.mul:
            return _product(sizes)
        if operation is operator.floordiv and sizes[1].dims:
            return _quotient(*sizes)
        if len(sizes) == 2 and operation in (operator.truediv, operator.floordiv) and sizes[1].number == 0:
            raise Unconvertible(_DIVIDED)
        if operation is operator.floordiv and sizes[0].number % sizes[1].number == 0:
            return replace(sizes[0], number=sizes[0].number // sizes[1].number)
        if any(x.dims for x in sizes):
            raise Unconvertible(EXAMPLE if operation in _COMPARISONS else NUMBER)
        return Size(operation(*(x.number for x in sizes)))

    return either


def _product(sizes: list[Size]) -> Size:
    parts = sorted(((dim, of) for x in sizes for dim, of in zip(x.dims, x.of, strict=True)), key=lambda part: part[0])
    dims, of = tuple(dim for dim, _ in parts), tuple(of for _, of in parts)
    return Size(math.prod(x.number for x in sizes), dims, of)


def _quotient(one: Size, other: Size) -> Size:
    """Cancel sizes, as in ``x.numel() // x.size(0)``."""
    rest = Counter(zip(one.dims, one.of, strict=True))
    rest.subtract(zip(other.dims, other.of, strict=True))
    if min(rest.values()) < 0 or one.number % other.number:
        raise Unconvertible(NUMBER)
    parts = [Size(1, (dim,), (of,)) for dim, of in rest.elements()]
    return _product([Size(one.number // other.number), *parts])


def _scaled_by(x: Any, other: Any, *, alpha: Any = 1) -> tuple[Any, Any, Any]:
    """The signature of torch.add and torch.sub."""
    return x, other, alpha


def _add(call: Call) -> Any:
    one, other, alpha = _scaled(call)
    if isinstance(other, (int, float)):
        return call.affine(offset=float(other * alpha))
    if isinstance(one, (int, float)):
        return call.swapped().affine(float(alpha), float(one))
    return call.add(alpha=float(alpha))


def _subtract(call: Call) -> Any:
    one, other, alpha = _scaled(call)
    if isinstance(other, (int, float)):
        return call.affine(offset=-float(other * alpha))
    if isinstance(one, (int, float)):
        return call.swapped().affine(-float(alpha), float(one))
    return call.add(subtract=True, alpha=float(alpha))


def _scaled(call: Call) -> tuple[Any, Any, Any]:
    """Return the arguments of a sum: two numbers or tensors, and the factor of the second."""
    try:
        one, other, alpha = _scaled_by(*call.args, **call.kwargs)
    except TypeError:
        raise Unconvertible("pass no arguments but other, alpha") from None
    if not isinstance(alpha, (int, float)):
        raise Unconvertible("pass a number as alpha")
    return one, other, alpha


def _multiply(call: Call) -> Any:
    numbers = [x for x in (*call.args, *call.kwargs.values()) if isinstance(x, (int, float))]
    if len(numbers) == 1:
        return call.swapped().affine(float(numbers[0]))
    return call.gate()


def _divide(call: Call) -> Any:
    _ = call.input
    divisor = call.args[1] if len(call.args) == 2 and not call.kwargs else None
    if not isinstance(divisor, (int, float)) or divisor == 0:
        raise Unconvertible(_DIVIDED)
    return call.affine(1 / divisor)


def _divide_down(call: Call) -> Any:
    _ = call.input
    raise Unconvertible("use /: spikes are not rounded down")


def _clamp(call: Call) -> Any:
    def given(x: Any, min: Any = None, max: Any = None) -> tuple[Any, Any]:
        return min, max

    low, high = _given(call, given)
    return _clamped_below(call, low) if high is None else _clamped(call, low, high)


def _clamped_below(call: Call, low: Any) -> Any:
    return call.fire() if isinstance(low, (int, float)) and low == 0 else _clamped(call, low, None)


def _clamp_min(call: Call) -> Any:
    def given(x: Any, min: Any) -> Any:
        return min

    return _clamped_below(call, _given(call, given))


def _clamp_max(call: Call) -> Any:
    """Of what cannot be negative."""

    def given(x: Any, max: Any) -> Any:
        return max

    high, x = _given(call, given), call.value
    return _clamped(call, None if isinstance(x, Current) or x.signed else 0, high)


def _hardtanh(call: Call) -> Any:
    def given(x: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> tuple[Any, Any]:
        return min_val, max_val

    return _clamped(call, *_given(call, given))


def _pad(call: Call) -> Any:
    def given(x: Any, pad: Any, mode: str = "constant", value: Any = None) -> tuple[Any, str, Any]:
        return pad, mode, value

    pads, mode, value = _given(call, given)
    if mode != "constant" or len(pads) not in (2, 4) or not all(isinstance(n, int) for n in pads):
        raise Unconvertible("pad rows and columns with zeros")
    return _padded(call, [*pads, 0, 0][:4], value or 0.0)


def _interpolate(call: Call) -> Any:
    def given(
        x: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *rest: Any, **more: Any
    ) -> Any:
        return size, scale_factor, mode

    return _upsampled(call, *_given(call, given, sizes=True))


def _cat(call: Call) -> Any:
    def given(tensors: Any, dim: Any = 0, axis: Any = None) -> Any:
        return dim if axis is None else axis

    tensors = call.args[0] if call.args else call.kwargs.get("tensors")
    dims = [getattr(x, "dims", None) for x in tensors] if isinstance(tensors, (tuple, list)) else []
    try:
        dim = given(*call.args, **call.kwargs)
    except TypeError:
        raise Unconvertible("pass no arguments but tensors, dim") from None
    if not all(_are_channels(dim, of) for of in dims):
        raise Unconvertible("concatenate along dimension 1, the channels")
    return call.cat()


def _chunk(call: Call) -> Any:
    def given(x: Any, chunks: int, dim: Any = 0) -> tuple[int, Any]:
        return chunks, dim

    chunks, dim = _given(call, given)
    if not _are_channels(dim, call.value.dims):
        raise Unconvertible(_SPLIT)
    return call.pieces(lambda channels: _evenly(channels, -(-channels // chunks)))


def _split(call: Call) -> Any:
    def given(x: Any, split_size: Any = None, dim: Any = 0, **more: Any) -> tuple[Any, Any]:
        return more.get("split_size_or_sections", split_size), dim

    sizes, dim = _given(call, given)
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
    sizes = (*call.args[1:], *call.kwargs.values())
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
    if len(sizes) < 2:
        _ = call.input
        raise Unconvertible(_SIZED)
    return _reshape(call, sizes)


def _views(sizes: tuple[Any, ...], channels: list[tuple[int, ...]]) -> bool:
    """Whether these are the sizes of images whose channels have one of the sizes given, in order."""
    if len(sizes) != 3 + len(channels) or sum(size == -1 for size in sizes) > 1 or sizes[-2:] != _WHOLE_IMAGE:
        return False
    batch, *given = sizes[:-2]
    fits = all(size in allowed for size, allowed in zip(given, channels, strict=True))
    return fits and batch in (_BATCH, -1)


def _shape(call: Call) -> Shape:
    x, of = call.value, call.node.all_input_nodes[0]
    return Shape(x.channels, x.dims, of)


def _size(call: Call) -> Any:
    def given(dim: Any = None) -> Any:
        return dim

    shape = _shape(call)
    dim = given(*call.args[1:], **call.kwargs)
    if dim is None:
        return shape
    if not isinstance(dim, int):
        raise Unconvertible(NUMBER)
    return _size_at(shape, dim)


def _size_at(shape: Shape, dim: int) -> Size:
    if dim < 0:
        if shape.dims is None:
            raise Unconvertible("count dimensions from the first: the number of dimensions is not known")
        dim += shape.dims
    return Size(1, (dim,), (shape.of,)) if dim != 1 or shape.channels is None else Size(shape.channels)


def _numel(call: Call) -> Any:
    shape = _shape(call)
    if shape.dims is None:
        raise Unconvertible(NUMBER)
    return _product([_size_at(shape, dim) for dim in range(shape.dims)])


def _length(call: Call) -> Any:
    x = call.args[0]
    if isinstance(x, Shape) and x.dims is not None:
        return Size(x.dims)
    return replace(_BATCH, of=(_shape(call).of,))


def _rank(call: Call) -> Any:
    dims = call.value.dims
    if dims is None:
        raise Unconvertible(EXAMPLE)
    return Size(dims)


def _attribute(call: Call) -> Any:
    x, word = call.value, call.args[1]
    if word == "shape":
        return _shape(call)
    if word == "ndim":
        return _rank(call)
    if word == "data" and all(map(asks_for_size, call.node.users)):
        return x
    raise Unconvertible(NOTHING_ELSE)


def _asserted(call: Call) -> Any:
    condition = call.args[0] if call.args else call.kwargs.get("condition")
    if condition is True:
        return Size(1)
    raise Unconvertible(EXAMPLE)


def _item(call: Call) -> Any:
    x, index = call.args
    if isinstance(x, Shape):
        if isinstance(index, int):
            return _size_at(x, index)
        if isinstance(index, slice) and x.dims is not None:
            return Sizes(tuple(_size_at(x, dim) for dim in range(x.dims)[index]))
        raise Unconvertible(NUMBER)
    if isinstance(x, tuple):  # a part of a shape
        x = tuple(Size(size) if isinstance(size, int) else size for size in x)
        return x[index] if isinstance(index, int) else Sizes(x[index])
    if isinstance(x, Pieces) and isinstance(index, int):
        return call.piece(x, index)
    _ = call.input
    whole = slice(None)
    index = index if isinstance(index, tuple) else (index,)
    channels = index[1] if len(index) > 1 and index[0] == whole else None
    if (
        not isinstance(channels, slice)
        or channels.step not in (None, 1)
        or not all(end is None or isinstance(end, int) for end in (channels.start, channels.stop))
        or any(i not in (whole, ...) for i in index[2:])
    ):
        raise Unconvertible("select a range of channels, as in x[:, :8]")
    wanted: slice = channels
    return call.piece(call.pieces(lambda n: [wanted.indices(n)[:2]]), 0)


def _register_all(rule: Rule, *functions: Any) -> None:
    for function in functions:
        register(function, rule)


def _as_unknown(call: Call) -> Any:
    """Of comparisons, which only sizes have."""
    _ = call.input
    raise Unconvertible(NOTHING_ELSE)


def _rearranged(how: str, argument: Any) -> Rule:
    """Make the rule of a function whose only further parameter is given by a signature."""
    return lambda call: call.rearrange(how, _given(call, argument))


_register_all(_as_module(_avg_pool), F.avg_pool2d)
_register_all(_as_module(_avg_pool_line), F.avg_pool1d)
_register_all(_as_module(_max_pool), F.max_pool2d, torch.max_pool2d)
_register_all(_as_module(_max_pool_line), F.max_pool1d, torch.max_pool1d)
_register_all(_as_module(_adaptive_avg_pool), F.adaptive_avg_pool2d)
_register_all(_as_module(_adaptive_avg_pool_line), F.adaptive_avg_pool1d)
_register_all(_as_module(_adaptive_max_pool), F.adaptive_max_pool2d)
_register_all(_as_module(_adaptive_max_pool_line), F.adaptive_max_pool1d)
_register_all(fire, F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)
register(F.relu6, lambda call: call.fire(6.0))
register(F.hardtanh, _hardtanh)
_register_all(_clamp, torch.clamp, torch.clamp_, torch.Tensor.clamp, torch.Tensor.clamp_)
_register_all(_clamp, torch.clip, torch.clip_, torch.Tensor.clip, torch.Tensor.clip_)
_register_all(_clamp_min, torch.clamp_min, torch.clamp_min_, torch.Tensor.clamp_min, torch.Tensor.clamp_min_)
_register_all(_clamp_max, torch.clamp_max, torch.clamp_max_, torch.Tensor.clamp_max, torch.Tensor.clamp_max_)
_register_all(_dropout, *DROPOUTS)
_register_all(_flatten_function, torch.flatten, torch.Tensor.flatten)
_register_all(_viewed, torch.reshape, torch.Tensor.reshape, torch.Tensor.view)
_register_all(_transpose, torch.transpose, torch.Tensor.transpose)
_register_all(_mean, torch.mean, torch.Tensor.mean)
_register_all(_amax, torch.amax, torch.Tensor.amax)
_register_all(_larger, torch.max, torch.Tensor.max)
_register_all(
    _of_sizes(operator.add, _add), operator.add, operator.iadd, torch.add, torch.Tensor.add, torch.Tensor.add_
)
_register_all(
    _of_sizes(operator.sub, _subtract),
    *(operator.sub, operator.isub, torch.sub, torch.Tensor.sub, torch.Tensor.sub_),
    *(torch.subtract, torch.Tensor.subtract, torch.Tensor.subtract_),
)
_register_all(_of_sizes(operator.mul, _multiply), *(product for product in PRODUCTS if not isinstance(product, str)))
_register_all(
    _of_sizes(operator.mul, _multiply),
    *(torch.Tensor.mul, torch.Tensor.mul_, torch.Tensor.multiply, torch.Tensor.multiply_),
)
_register_all(
    _of_sizes(operator.truediv, _divide),
    *(operator.truediv, operator.itruediv, torch.div, torch.Tensor.div, torch.Tensor.div_),
    *(torch.divide, torch.Tensor.divide, torch.Tensor.divide_, torch.true_divide),
)
_register_all(_of_sizes(operator.floordiv, _divide_down), operator.floordiv, operator.ifloordiv)
for _compare in _COMPARISONS:
    register(_compare, _of_sizes(_compare, _as_unknown))
_register_all(lambda call: call.affine(-1.0), operator.neg, torch.neg, torch.Tensor.neg, torch.negative)
_register_all(_cat, torch.cat, torch.concat, torch.concatenate)
_register_all(_chunk, torch.chunk, torch.Tensor.chunk)
_register_all(_split, torch.split, torch.Tensor.split)
_register_all(_interpolate, F.interpolate)
register(F.pad, _pad)
register(F.pixel_shuffle, _rearranged("pixel_shuffle", lambda x, upscale_factor: upscale_factor))
register(F.pixel_unshuffle, _rearranged("pixel_unshuffle", lambda x, downscale_factor: downscale_factor))
register(F.channel_shuffle, _rearranged("channel_shuffle", lambda x, groups: groups))
register(torch.Tensor.contiguous, _contiguous)
register(torch.Tensor.size, _size)
_register_all(_numel, torch.numel, torch.Tensor.numel, torch.Tensor.nelement)
_register_all(_rank, torch.Tensor.dim, torch.Tensor.ndimension)
register(len, _length)
register(getattr, _attribute)
register(torch._assert, _asserted)
register(operator.getitem, _item)
