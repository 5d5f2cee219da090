"""The conversion rules for PyTorch's functions and operators."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..nn import SpikingGlobalMaxPool2d
from .advice import FUNCTION_ADVICE
from .builtin_modules import clamped, padded, upsampled
from .builtin_shapes import WHOLE_IMAGE, are_of_input, of_sizes
from .gates import PRODUCTS
from .nodes import DROPOUTS, dropout_of
from .rules import Call, Rule, Unconvertible, arguments_of, fire, register, register_all
from .values import Current, Pooled, Real, Train

_SPLIT = "split along dimension 1, the channels"
_DIVIDED = "divide by a number other than 0: spikes cannot be divided by others"


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
        if make is _avg_pool and sizes == (WHOLE_IMAGE,) and all(are_of_input(size, call) for size in sizes[0]):
            return call.like(nn.AdaptiveAvgPool2d(1))
        return call.like(arguments_of(call, make))

    return rule


def _dropout(call: Call) -> Any:
    _ = call.input
    if call.node.meta["drops"] == (True, True):
        raise Unconvertible("use nn.Dropout, or training=self.training: it drops in eval mode too")
    return call.like(dropout_of(call.node) or nn.Identity())


def _mean(call: Call) -> Any:
    def given(x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> tuple[Any, bool, Any]:
        return dim, keepdim, dtype

    dims, keepdim, dtype = arguments_of(call, given)
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

    dims, keepdim = arguments_of(call, given)
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

    low, high = arguments_of(call, given)
    return _clamped_below(call, low) if high is None else clamped(call, low, high)


def _clamped_below(call: Call, low: Any) -> Any:
    return call.fire() if isinstance(low, (int, float)) and low == 0 else clamped(call, low, None)


def _clamp_min(call: Call) -> Any:
    def given(x: Any, min: Any) -> Any:
        return min

    return _clamped_below(call, arguments_of(call, given))


def _clamp_max(call: Call) -> Any:
    """Of what cannot be negative."""

    def given(x: Any, max: Any) -> Any:
        return max

    high, x = arguments_of(call, given), call.value
    return clamped(call, None if isinstance(x, Current) or x.signed else 0, high)


def _hardtanh(call: Call) -> Any:
    def given(x: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> tuple[Any, Any]:
        return min_val, max_val

    return clamped(call, *arguments_of(call, given))


def _pad(call: Call) -> Any:
    def given(x: Any, pad: Any, mode: str = "constant", value: Any = None) -> tuple[Any, str, Any]:
        return pad, mode, value

    pads, mode, value = arguments_of(call, given)
    if mode != "constant" or len(pads) not in (2, 4) or not all(isinstance(n, int) for n in pads):
        raise Unconvertible("pad rows and columns with zeros")
    return padded(call, [*pads, 0, 0][:4], value or 0.0)


def _interpolate(call: Call) -> Any:
    def given(
        x: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *rest: Any, **more: Any
    ) -> Any:
        return size, scale_factor, mode

    return upsampled(call, *arguments_of(call, given, sizes=True))


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

    chunks, dim = arguments_of(call, given)
    if not _are_channels(dim, call.value.dims):
        raise Unconvertible(_SPLIT)
    return call.pieces(lambda channels: _evenly(channels, -(-channels // chunks)))


def _split(call: Call) -> Any:
    def given(x: Any, split_size: Any = None, dim: Any = 0, **more: Any) -> tuple[Any, Any]:
        return more.get("split_size_or_sections", split_size), dim

    sizes, dim = arguments_of(call, given)
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


def _rearranged(how: str, argument: Any) -> Rule:
    """Make the rule of a function whose only further parameter is given by a signature."""
    return lambda call: call.rearrange(how, arguments_of(call, argument))


register_all(_as_module(_avg_pool), F.avg_pool2d)
register_all(_as_module(_avg_pool_line), F.avg_pool1d)
register_all(_as_module(_max_pool), F.max_pool2d, torch.max_pool2d)
register_all(_as_module(_max_pool_line), F.max_pool1d, torch.max_pool1d)
register_all(_as_module(_adaptive_avg_pool), F.adaptive_avg_pool2d)
register_all(_as_module(_adaptive_avg_pool_line), F.adaptive_avg_pool1d)
register_all(_as_module(_adaptive_max_pool), F.adaptive_max_pool2d)
register_all(_as_module(_adaptive_max_pool_line), F.adaptive_max_pool1d)
register_all(fire, F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)
register(F.relu6, lambda call: call.fire(6.0))
register(F.hardtanh, _hardtanh)
register_all(_clamp, torch.clamp, torch.clamp_, torch.Tensor.clamp, torch.Tensor.clamp_)
register_all(_clamp, torch.clip, torch.clip_, torch.Tensor.clip, torch.Tensor.clip_)
register_all(_clamp_min, torch.clamp_min, torch.clamp_min_, torch.Tensor.clamp_min, torch.Tensor.clamp_min_)
register_all(_clamp_max, torch.clamp_max, torch.clamp_max_, torch.Tensor.clamp_max, torch.Tensor.clamp_max_)
register_all(_dropout, *DROPOUTS)
register_all(_mean, torch.mean, torch.Tensor.mean)
register_all(_amax, torch.amax, torch.Tensor.amax)
register_all(_larger, torch.max, torch.Tensor.max)
register_all(of_sizes(operator.add, _add), operator.add, operator.iadd, torch.add, torch.Tensor.add, torch.Tensor.add_)
register_all(
    of_sizes(operator.sub, _subtract),
    *(operator.sub, operator.isub, torch.sub, torch.Tensor.sub, torch.Tensor.sub_),
    *(torch.subtract, torch.Tensor.subtract, torch.Tensor.subtract_),
)
register_all(of_sizes(operator.mul, _multiply), *(product for product in PRODUCTS if not isinstance(product, str)))
register_all(
    of_sizes(operator.mul, _multiply),
    *(torch.Tensor.mul, torch.Tensor.mul_, torch.Tensor.multiply, torch.Tensor.multiply_),
)
register_all(
    of_sizes(operator.truediv, _divide),
    *(operator.truediv, operator.itruediv, torch.div, torch.Tensor.div, torch.Tensor.div_),
    *(torch.divide, torch.Tensor.divide, torch.Tensor.divide_, torch.true_divide),
)
register_all(of_sizes(operator.floordiv, _divide_down), operator.floordiv, operator.ifloordiv)
register_all(lambda call: call.affine(-1.0), operator.neg, torch.neg, torch.Tensor.neg, torch.negative)
register_all(_cat, torch.cat, torch.concat, torch.concatenate)
register_all(_chunk, torch.chunk, torch.Tensor.chunk)
register_all(_split, torch.split, torch.Tensor.split)
register_all(_interpolate, F.interpolate)
register(F.pad, _pad)
register(F.pixel_shuffle, _rearranged("pixel_shuffle", lambda x, upscale_factor: upscale_factor))
register(F.pixel_unshuffle, _rearranged("pixel_unshuffle", lambda x, downscale_factor: downscale_factor))
register(F.channel_shuffle, _rearranged("channel_shuffle", lambda x, groups: groups))
