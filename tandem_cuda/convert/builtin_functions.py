"""The conversion rules for PyTorch's functions and operators."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..nn import SpikingGlobalMaxPool2d
from .advice import FUNCTION_ADVICE
from .builtin_maps import mean_of_channels
from .builtin_modules import clamped, hard_sigmoid, mirrored, padded, upsampled
from .builtin_shapes import DIVIDED, WHOLE_IMAGE, are_of_input, of_sizes
from .learned_factors import multiplied, shifted
from .nodes import DROPOUTS, dropout_of
from .rules import Call, Rule, Unconvertible, arguments_of, converts, register, register_all, relu_rule
from .values import SPIKES, Current, Grouped, Maxima, Real

_SPLIT = "split along dimension 1, the channels"


def _forms(*names: str) -> list[Any]:
    """Return torch's functions and Tensor's methods of these names, and their in-place forms."""
    owners = (torch, torch.Tensor)
    return [getattr(owner, f) for name in names for f in (name, f"{name}_") for owner in owners if hasattr(owner, f)]


def _as_module(make: Callable[..., nn.Module]) -> Rule:
    """Make the rule of a function that is equivalent to the module that ``make`` returns for its arguments."""

    def rule(call: Call) -> Any:
        sizes = (*call.args[1:], *call.kwargs.values())
        if make is nn.AvgPool2d and sizes == (WHOLE_IMAGE,) and all(are_of_input(size, call) for size in sizes[0]):
            return call.like(nn.AdaptiveAvgPool2d(1))
        return call.like(arguments_of(call, make))

    return rule


def _max_pool(kind: Callable[..., nn.Module]) -> Rule:
    """Make the rule of a function for max pooling, whose last two parameters are in another order than the module's."""
    return _as_module(
        lambda kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False: kind(
            kernel_size, stride, padding, dilation, return_indices, ceil_mode
        )
    )


def _dropout(call: Call) -> Any:
    _ = call.input
    if call.node.meta["drops"] == (True, True):
        raise Unconvertible("use nn.Dropout, or training=self.training: it drops in eval mode too")
    return call.like(dropout_of(call.node) or nn.Identity())


@converts(*_forms("mean"))
def _mean(call: Call, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    axes, dims = _axes(dim, call.value.dims), call.value.dims
    if dtype is None and dims is not None and dims < 5 and _single(dim) in (1, 1 - dims) and (keepdim or dims > 2):
        return mean_of_channels(call, keepdim)
    if dtype is not None or not axes:
        others = {2: "nn.Linear", 3: "nn.AdaptiveAvgPool1d(1)", 5: "nn.AdaptiveAvgPool3d"}
        other = others.get(dims, "nn.AdaptiveAvgPool2d(1)")
        raise Unconvertible(f"use {other}: spikes can only be averaged over rows, columns or both")
    if dims == 3:
        average = call.of_line(lambda image: image.average(nn.AdaptiveAvgPool2d(1)))
        return average if keepdim else call.flattened(average)
    if len(axes) > 1:
        return call.average(nn.AdaptiveAvgPool3d(1) if len(axes) == 3 else nn.AdaptiveAvgPool2d(1), keepdim=keepdim)
    average = call.average(nn.AdaptiveAvgPool2d((1, None) if axes == [2] else (None, 1)))
    return average if keepdim else call.flattened(average, 2, 3)


@converts(*_forms("amax"))
def _amax(call: Call, dim: Any = (), keepdim: bool = False) -> Any:
    rank, axes = call.value.dims, _axes(dim, call.value.dims)
    if not axes or rank == 5:
        raise Unconvertible(_all_pixels(call))
    if rank == 3:
        line = call.like(nn.AdaptiveMaxPool1d(1))
        return line if keepdim else call.flattened(line)
    largest = call.apply(SpikingGlobalMaxPool2d(axes), commutes=True, pairs=True)
    if keepdim:
        return largest
    return call.flattened(largest) if len(axes) == 2 else call.flattened(largest, 2, 3)


def _single(dim: Any) -> Any:
    """Return the only one of several dimensions, or what is given."""
    return dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim


def _axes(dims: Any, rank: int | None) -> list[int]:
    """Return the dimensions of pixels, sorted; none if ``dims`` has dimensions of something else.

    ``rank``: the number of dimensions. If it is not known, only both dimensions of an image can be told from channels.
    """
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    total = rank or 4
    if not all(isinstance(d, int) and -total <= d < total for d in dims):
        return []
    axes = sorted(d % total for d in dims)
    allowed = {3: [[2]], 4: [[2], [3], [2, 3]], 5: [[2, 3, 4]], None: [[2, 3]]}.get(rank, [])
    return axes if axes in allowed else []


def _all_pixels(call: Call) -> str:
    if call.value.dims == 5:
        return "use nn.MaxPool3d: the maximum of spikes is taken over windows"
    dims = "2" if call.value.dims == 3 else "(2, 3)"
    return f"use x.amax({dims}): the maximum of spikes is taken over all pixels"


def _larger(call: Call) -> Any:
    """Convert torch.max along a dimension. Refuse the maximum of all values, and of two tensors."""
    _ = call.input
    other = call.args[1] if len(call.args) > 1 else call.kwargs.get("other")
    if isinstance(other, (*SPIKES, Real)):
        raise Unconvertible(FUNCTION_ADVICE[torch.maximum])
    if other is None and "dim" not in call.kwargs:
        raise Unconvertible(_all_pixels(call))
    return Maxima(arguments_of(call, functools.partial(_amax, call)))


def _sum(sign: float) -> Rule:
    """Make the rule of torch.add, or with a negative sign of torch.sub."""

    def rule(call: Call) -> Any:
        one, other, alpha = _summands(call)
        if len(call.args) == 2:
            if (offset := call.constants_of_channels(1, 0)) is not None:
                return call.affine(offset=sign * alpha * offset)
            if (offset := call.constants_of_channels(0, 1)) is not None:
                return call.swapped().affine(sign * float(alpha), offset)
            if sign * alpha == 1 and (sum_ := shifted(call)) is not None:
                return sum_
        if isinstance(other, (int, float)):
            return call.affine(offset=sign * float(other * alpha))
        if isinstance(one, (int, float)):
            return call.swapped().affine(sign * float(alpha), float(one))
        return call.add(subtract=sign < 0, alpha=float(alpha))

    return rule


def _summands(call: Call) -> tuple[Any, Any, Any]:
    """Return the arguments of a sum: two numbers or tensors, and the factor of the second."""

    def given(x: Any, other: Any, *, alpha: Any = 1) -> tuple[Any, Any, Any]:
        return x, other, alpha

    try:
        one, other, alpha = given(*call.args, **call.kwargs)
    except TypeError:
        raise Unconvertible("pass no arguments but other, alpha") from None
    if not isinstance(alpha, (int, float)):
        raise Unconvertible("pass a number as alpha")
    return one, other, alpha


def _multiply(call: Call) -> Any:
    numbers = [x for x in (*call.args, *call.kwargs.values()) if isinstance(x, (int, float))]
    if len(numbers) == 1:
        return call.swapped().affine(float(numbers[0]))
    if len(call.args) == 2:
        for place in (0, 1):
            if (factor := call.constants_of_channels(place, 1 - place)) is not None:
                return call.swapped().affine(factor)
    return multiplied(call) or call.gate()


def _divide(call: Call) -> Any:
    _ = call.input
    divisor = call.args[1] if len(call.args) == 2 and not call.kwargs else None
    if isinstance(divisor, Real) and (found := call.constants_of_channels(1, 0)) is not None:
        divisor = found
    if isinstance(divisor, torch.Tensor) and bool((divisor != 0).all()):
        return call.affine(1 / divisor)
    if not isinstance(divisor, (int, float)) or divisor == 0:
        raise Unconvertible(DIVIDED)
    return call.affine(1 / divisor)


def _divide_down(call: Call) -> Any:
    _ = call.input
    raise Unconvertible("use /: spikes are not rounded down")


@converts(*_forms("clamp", "clip"))
def _clamp(call: Call, min: Any = None, max: Any = None) -> Any:
    return _clamped_below(call, min) if max is None else clamped(call, min, max)


@converts(*_forms("clamp_min"))
def _clamped_below(call: Call, min: Any) -> Any:
    return call.fire() if isinstance(min, (int, float)) and min == 0 else clamped(call, min, None)


@converts(*_forms("clamp_max"))
def _clamp_max(call: Call, max: Any) -> Any:
    """Clamp from above. Values that cannot be negative count as clamped at 0, too."""
    x = call.value
    return clamped(call, None if isinstance(x, Current) or x.signed else 0, max)


@converts(F.hardtanh, F.hardtanh_)
def _hardtanh(call: Call, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Any:
    return clamped(call, min_val, max_val)


@converts(F.hardsigmoid)
def _hard_sigmoid(call: Call, inplace: bool = False) -> Any:
    return hard_sigmoid(call)


@converts(F.leaky_relu, F.leaky_relu_)
def _leaky_relu(call: Call, negative_slope: Any = 0.01, inplace: bool = False) -> Any:
    if not isinstance(negative_slope, (int, float)):
        raise Unconvertible("pass a number as negative_slope")
    return call.fire(slope=float(negative_slope))


@converts(F.prelu, torch.Tensor.prelu)
def _prelu(call: Call, weight: Any) -> Any:
    slope = call.parameter(1, "weight")
    if slope is None:
        raise Unconvertible("use nn.PReLU, or F.leaky_relu with a number: its slopes must be a parameter of the ANN")
    return call.fire(slope=slope)


@converts(F.pad)
def _pad(call: Call, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    if len(pad) not in (2, 4, 6) or not all(isinstance(n, int) for n in pad):
        raise Unconvertible("pad rows and columns with zeros")
    if mode != "constant":
        return mirrored(call, pad, mode)
    left, right, top, bottom, *channels = [*pad, 0, 0][: max(len(pad), 4)]
    if channels and (call.value.dims not in (None, 4) or min(channels) < 0 or any((left, right, top, bottom))):
        raise Unconvertible("pad rows and columns with zeros")
    if any(channels) and not value:
        return call.rearrange("channel_pad", *channels)
    if call.value.dims == 3 and len(pad) == 2:
        return call.of_line(lambda image: padded(image, (left, right, 0, 0), value or 0.0))
    return padded(call, (left, right, top, bottom), value or 0.0)


@converts(F.interpolate)
def _interpolate(
    call: Call,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: Any = False,
) -> Any:
    if recompute_scale_factor or antialias:
        raise Unconvertible("leave out recompute_scale_factor and antialias")
    return upsampled(call, size, scale_factor, mode, align_corners)


def _cat(call: Call) -> Any:
    def channels(tensors: Any, dim: Any = 0, axis: Any = None) -> Any:
        return dim if axis is None else axis

    tensors = call.args[0] if call.args else call.kwargs.get("tensors")
    dims = [getattr(x, "dims", None) for x in tensors] if isinstance(tensors, (tuple, list)) else []
    try:
        dim = channels(*call.args, **call.kwargs)
    except TypeError:
        raise Unconvertible("pass no arguments but tensors, dim") from None
    if not all(_are_channels(dim, rank) for rank in dims):
        raise Unconvertible("concatenate along dimension 1, the channels")
    return call.cat()


@converts(*_forms("chunk"))
def _chunk(call: Call, chunks: int, dim: Any = 0) -> Any:
    if not _are_channels(dim, call.value.dims):
        raise Unconvertible(_SPLIT)
    return call.pieces(lambda channels: _evenly(channels, -(-channels // chunks)))


@converts(*_forms("split"))
def _split(call: Call, split_size: Any = None, dim: Any = 0, **more: Any) -> Any:
    sizes = more.get("split_size_or_sections", split_size)
    if not _are_channels(dim, call.value.dims):
        raise Unconvertible(_SPLIT)
    if isinstance(sizes, int):
        return call.pieces(lambda channels: _evenly(channels, sizes))
    ends = [*itertools.accumulate(sizes)]
    return call.pieces(lambda channels: list(zip([0, *ends], ends, strict=False)))


def _are_channels(dim: Any, rank: int | None) -> bool:
    """Whether this is dimension 1 of a tensor of ``rank`` dimensions."""
    return dim == 1 or (rank is not None and isinstance(dim, int) and dim == 1 - rank)


def _evenly(channels: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, channels)) for start in range(0, channels, size)]


_REPEATED = "repeat channels, as in x.repeat(1, 2, 1, 1), or rows and columns by nn.Upsample"


@converts(torch.Tensor.repeat, torch.Tensor.tile)
def _repeat(call: Call, *times: Any) -> Any:
    times = tuple(times[0]) if len(times) == 1 and isinstance(times[0], (tuple, list)) else times
    one, channels, *rest = (*times, 1, 1)[: max(len(times), 2)]
    ones = all(number == 1 for number in (one, *rest))
    if not ones or not isinstance(channels, int) or channels < 1 or call.value.dims not in (None, len(times)):
        raise Unconvertible(_REPEATED)
    return call.repeated(channels)


@converts(torch.repeat_interleave, torch.Tensor.repeat_interleave)
def _repeat_interleave(call: Call, repeats: Any, dim: Any = None) -> Any:
    if not isinstance(repeats, int) or repeats < 1 or not isinstance(dim, int):
        raise Unconvertible(_REPEATED)
    rank = call.value.dims or 4
    if dim % rank == 1:
        return call.shuffled(Grouped(call.repeated(repeats), repeats))
    if rank != 4 or dim % rank == 0:
        raise Unconvertible(_REPEATED)
    return call.rearrange("upsample", *((repeats, 1) if dim % rank == 2 else (1, repeats)))


@converts(F.pixel_shuffle)
def _pixel_shuffle(call: Call, upscale_factor: Any) -> Any:
    return call.rearrange("pixel_shuffle", upscale_factor)


@converts(F.pixel_unshuffle)
def _pixel_unshuffle(call: Call, downscale_factor: Any) -> Any:
    return call.rearrange("pixel_unshuffle", downscale_factor)


@converts(F.channel_shuffle)
def _channel_shuffle(call: Call, groups: Any) -> Any:
    return call.rearrange("channel_shuffle", groups)


register(F.avg_pool1d, _as_module(nn.AvgPool1d))
register(F.avg_pool2d, _as_module(nn.AvgPool2d))
register_all(_max_pool(nn.MaxPool1d), F.max_pool1d, torch.max_pool1d)
register_all(_max_pool(nn.MaxPool2d), F.max_pool2d, torch.max_pool2d)
register(F.avg_pool3d, _as_module(nn.AvgPool3d))
register_all(_max_pool(nn.MaxPool3d), F.max_pool3d, torch.max_pool3d)
register(F.adaptive_avg_pool3d, _as_module(nn.AdaptiveAvgPool3d))
register(F.adaptive_avg_pool1d, _as_module(nn.AdaptiveAvgPool1d))
register(F.adaptive_avg_pool2d, _as_module(nn.AdaptiveAvgPool2d))
register(F.adaptive_max_pool1d, _as_module(nn.AdaptiveMaxPool1d))
register(F.adaptive_max_pool2d, _as_module(nn.AdaptiveMaxPool2d))
register_all(relu_rule, F.relu, *_forms("relu"))
register(F.relu6, lambda call: call.fire(6.0))
register_all(_dropout, *DROPOUTS)
register_all(_larger, *_forms("max"))
register_all(of_sizes(operator.add, _sum(1)), operator.add, operator.iadd, *_forms("add"))
register_all(of_sizes(operator.sub, _sum(-1)), operator.sub, operator.isub, *_forms("sub", "subtract"))
register_all(of_sizes(operator.mul, _multiply), operator.mul, operator.imul, *_forms("mul", "multiply"))
register_all(
    of_sizes(operator.truediv, _divide),
    *(operator.truediv, operator.itruediv, torch.true_divide, *_forms("div", "divide")),
)
register_all(of_sizes(operator.floordiv, _divide_down), operator.floordiv, operator.ifloordiv)
register_all(lambda call: call.affine(-1.0), operator.neg, torch.neg, torch.Tensor.neg, torch.negative)
register_all(_cat, torch.cat, torch.concat, torch.concatenate)
