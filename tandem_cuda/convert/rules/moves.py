"""The rules of calls that move, copy or drop values: spikes stay spikes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from ...nn import TandemDropout, TandemDropout2d, TandemDropout3d
from ..call import Call
from ..values import Analogue, Resize
from . import register, rules_for

aten = torch.ops.aten


@rules_for(aten.contiguous.default, aten.clone.default, aten.alias.default)
def _same(call: Call) -> Any:
    return call.passed()


@rules_for(aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.to.device, aten.type_as.default)
def _to(call: Call) -> Any:
    if call.source.meta["val"].dtype != call.node.meta["val"].dtype:
        raise Analogue("it changes the dtype")
    return call.passed()


@rules_for(
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten._unsafe_view.default, aten.expand.default,
    aten.view_as.default, aten.reshape_as.default,
)  # fmt: skip
def _reshaped(call: Call) -> Any:
    """Convert a call by the sizes before and after it: it flattens, unflattens, or is a step of shuffling channels."""
    if call.is_grouped:
        return call.ungrouped()
    before, after = call.shape, call.shape_after
    if not call.keeps_samples:
        raise Analogue("it joins or splits samples")
    if before == after:
        return call.passed()
    if math.prod(before) != math.prod(after):
        raise Analogue("it repeats values")
    if len(after) == 1:
        return call.flatten()
    if len(before) == 3 and len(after) == 2 and after[0] == before[0]:
        return call.flatten(2)
    if len(before) == 4 and len(after) == 2 and after[0] == before[0]:
        return call.flatten(2)
    if len(before) == 1 and len(after) in (2, 3):
        return call.unflattened(after)
    if len(before) == 2 and len(after) == 3 and after[1] == 1 and after[0] == before[0]:
        return call.rearrange("unsqueeze")
    if len(before) == 3 and len(after) == 4 and after[0] * after[1] == before[0] and after[2:] == before[1:]:
        return call.grouped(after[0])
    raise Analogue("it has no form for spikes with these sizes")


@rules_for(aten.transpose.int, aten.permute.default, aten.swapaxes.default)
def _permuted(call: Call) -> Any:
    rank = len(call.node.meta["val"].shape)
    if call.node.target is aten.permute.default:
        order = [d % rank for d in call.ints("dims")]
    else:
        names = ("dim0", "dim1") if call.node.target is aten.transpose.int else ("axis0", "axis1")
        one, other = (call.ints(name) % rank for name in names)
        order = list(range(rank))
        order[one], order[other] = other, one
    if order == sorted(order):
        return call.passed()
    if call.is_grouped and order == [0, 2, 1, 3, 4]:
        return call.swapped_groups()
    raise Analogue("it moves dimensions")


@rules_for(aten.slice.Tensor, aten.narrow.default)
def _slice(call: Call) -> Any:
    if call.node.target is aten.narrow.default:
        dim, start = call.ints("dim"), call.ints("start")
        end, step = start + call.ints("length"), 1
    else:
        dim, start, end, step = (call.ints(name) for name in ("dim", "start", "end", "step"))
    rank = 1 + len(call.shape)
    dim = dim % rank
    if call.keeps_samples and call.shape == call.shape_after:
        return call.passed()
    if dim == 0:
        raise Analogue("it selects samples")
    return call.sliced(dim, slice(start, end, step))


@rules_for(aten.select.int)
def _select(call: Call) -> Any:
    rank = 1 + len(call.shape)
    dim, index = call.ints("dim") % rank, call.ints("index")
    size = call.shape[dim - 1] if dim else 0
    channel = dim == 1 and not (getattr(call.value, "features", False) and rank == 3)
    if dim == 0 or channel or rank not in (3, 4):
        raise Analogue("it selects one channel or sample")
    index %= size
    return call.sliced(dim, slice(index, index + 1), single=True)


def _bounds(call: Call) -> tuple[int, list[tuple[int, int]]]:
    """Return the dimension along which a call splits, and the bounds of the pieces."""
    dim = call.ints("dim") % (1 + len(call.shape))
    if dim == 0:
        raise Analogue("it splits samples")
    size = call.shape[dim - 1]
    if call.node.target is aten.split_with_sizes.default:
        ends = list(itertools.accumulate(call.ints("split_sizes")))
    else:
        part = call.ints("split_size") if call.node.target is aten.split.Tensor else -(-size // call.ints("chunks"))
        ends = [*range(part, size, part), size]
    return dim, list(zip([0, *ends], ends, strict=False))


@rules_for(aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default)
def _split(call: Call) -> Any:
    dim, bounds = _bounds(call)
    return call.parts(lambda part: part.sliced(dim, slice(*bounds[part.index])))


@rules_for(aten.pad.default, aten.constant_pad_nd.default)
def _pad(call: Call) -> Any:
    pad, value = list(call.ints("pad")), call["value"]
    mode = call["mode"] if call.node.target is aten.pad.default else "constant"
    dims = len(call.shape)
    if dims != 3 and not (dims == 2 and len(pad) == 2):
        raise Analogue("it pads no image")
    if mode == "constant":
        if value:
            raise Analogue("it pads with other values than 0")
        if len(pad) == 6 and any(pad[4:]):
            if any(pad[:4]) or min(pad[4:]) < 0:
                raise Analogue("it pads channels and pixels")
            return call.rearrange("channel_pad", *pad[4:])
        if len(pad) > 4 and any(pad[4:]):
            raise Analogue("it pads samples")
        return call.line_or_image("zero_pad", (*pad, 0, 0)[:4] if len(pad) < 4 else pad[:4])
    if mode not in ("reflect", "replicate", "circular") or min(pad) < 0 or len(pad) > 4:
        raise Analogue("it pads in another mode than reflect, replicate or circular")
    return call.line_or_image(f"{mode}_pad", (*pad, 0, 0)[:4])


@rules_for(aten.upsample_nearest2d.vec)
def _nearest(call: Call) -> Any:
    rows, columns = call.shape[1:]
    after = call.shape_after[1:]
    factors = call["scale_factors"]
    whole = factors is not None and all(float(f).is_integer() for f in factors)
    if whole or (factors is None and after[0] % rows == 0 and after[1] % columns == 0):
        return call.rearrange("upsample", after[0] // rows, after[1] // columns)
    if factors is not None:
        raise Analogue("its factors are not whole")
    return call.rearrange("resize", *after)


@rules_for(aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec)
def _interpolated(call: Call) -> Any:
    mode = "bilinear" if call.node.target is aten.upsample_bilinear2d.vec else "bicubic"
    factors = call["scale_factors"]
    factor = None if factors is None else (float(factors[0]), float(factors[1]))
    size: Any = None if factors is not None else call.shape_after[1:]
    return call.interpolate(Resize(size, factor, mode, bool(call["align_corners"])))


register(aten.pixel_shuffle.default, lambda call: call.rearrange("pixel_shuffle", call.ints("upscale_factor")))
register(aten.pixel_unshuffle.default, lambda call: call.rearrange("pixel_unshuffle", call.ints("downscale_factor")))
register(aten.channel_shuffle.default, lambda call: call.rearrange("channel_shuffle", call.ints("groups")))


@rules_for(aten.repeat_interleave.self_int)
def _repeat_interleave(call: Call) -> Any:
    times, dim = call.ints("repeats"), call.ints("dim")
    if dim is None or len(call.shape) != 3 or dim % 4 not in (2, 3):
        raise Analogue("it repeats other values than rows or columns")
    return call.rearrange("upsample", *((times, 1) if dim % 4 == 2 else (1, times)))


@rules_for(aten.dropout.default, aten.feature_dropout.default)
def _dropout(call: Call) -> Any:
    if call["train"]:
        raise Analogue("it drops in eval mode, too")
    if call["p"] == 0:
        return call.passed()
    if call.node.target is aten.dropout.default:
        return call.drop(TandemDropout)
    kind = {3: TandemDropout2d, 4: TandemDropout3d}.get(len(call.shape))
    if kind is None:
        raise Analogue("it drops lines")
    return call.drop(kind)
