"""pack_weight: rearrange weights into the order in which the event-driven kernels add them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _C
from . import checks
from .checked import checked_by
from .compiling import assume_constant_result

# Narrow floats are packed in a wider dtype that holds every value and is faster to add; on CUDA, all floats but float64
# as whole numbers, whose sums are exact.
_PACKED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_PACKED_ON_CUDA = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.int32)
# Bytes of a sum of integers.
_SUM_BYTES = {torch.int8: 2, torch.int16: 4}
# Tensor cores: the fewest input and output channels of a group.
_WIDE = 16
# Tensor cores: the bytes of 8-bit digits of 64 rows and 128 inputs.
_STEP_BYTES = 64 * 128
# CPUs that multiply bytes: the 8-bit digits of a weight, the bytes of an output's unit; the bytes behind the panel of a
# block; the fewest inputs of a group.
_DIGIT_BYTES = {torch.int8: (1, 0), torch.int16: (2, 0), torch.float32: (3, 4)}
_LINE = 64
_FILLING = 8
# CUDA: the words of 64 bits in which a device remembers what it has packed (csrc/ops/product/watch_weight.cuh).
STATE_WORDS = 256


def _check(op: str, a: Any) -> None:
    checks.check_weight(op, a.weight)
    if a.weight.dim() not in (2, 4) or 0 in a.weight.shape:
        raise ValueError(
            f"{op}: weight must be [O, C/groups, kH, kW] or [O, F] with no empty dimension, got {list(a.weight.shape)}"
        )
    checks.check_int(op, "groups", a.groups)
    if a.groups < 1 or a.weight.shape[0] % a.groups or (a.weight.dim() == 2 and a.groups != 1):
        raise ValueError(
            f"{op}: groups must divide the {a.weight.shape[0]} output channels and be 1 for a linear layer, got "
            f"{a.groups}"
        )
    if a.out is not None:
        check_packed(op, "out", a.out, a.weight, a.groups)


@checked_by(_check)
def pack_weight(weight: Tensor, groups: int = 1, *, out: Tensor | None = None) -> Tensor:
    """Rearrange weights for the event-driven engine, once for many calls.

    Pass the result to the products as ``packed``; otherwise they rearrange the weights in every call. The result is a
    copy and does not follow later changes of ``weight``. Tandem layers pack their weights themselves.

    Args:
        weight: float32, float64, float16, bfloat16, int8 or int16 [O, C/groups, kH, kW] or [O, F].
        groups: number of channel groups of the convolution.
        out: the result of an earlier call for weights of the same shape and dtype; it is overwritten and returned.

    Returns:
        [n] in the dtype of ``weight``, but float32 for float16 and bfloat16, and on CUDA int32 for these and float32.
        The elements are an implementation detail. No gradient.

    Raises:
        TypeError: wrong dtype.
        ValueError: a shape or number of groups that no product accepts, or an ``out`` of the wrong size, dtype or
            device.
        RuntimeError: on the CPU, a weight that is not finite, or an int16 weight beyond 32639.

    Examples:
        >>> weight = torch.rand(16, 8, 3, 3)
        >>> packed = ops.pack_weight(weight)
        >>> bits = ops.pack_spikes(torch.ones(4, 1, 8, 6, 6))
        >>> out = ops.spiking_conv2d(bits, weight, packed=packed, time_steps=4)[0]  # packs nothing
        >>> torch.equal(out, ops.spiking_conv2d(bits, weight, time_steps=4)[0])
        True
    """
    if out is None and torch.compiler.is_compiling():
        # The size stands in the graph then, so that code in Inductor's cache serves no other instruction set.
        sizes, dtype = packed_like(weight, groups)
        out = weight.new_empty([sizes[0]], dtype=dtype)
    if out is None:
        return torch.ops.tandem_cuda.pack_weight(weight.detach(), groups)
    torch.ops.tandem_cuda.pack_weight_out(weight.detach(), groups, out)
    return out


def pack_weight_if_changed(weight: Tensor, groups: int, out: Tensor, state: Tensor) -> None:
    """On CUDA, pack weights into ``out`` if they differ from the weights of the last call with this ``state``.

    The device finds out by itself, from a fingerprint of all weights, so the host does not wait for it. Weights of all
    calls with the same ``out`` and ``state`` must have the same shape, strides and dtype, and be packed in one stream.

    Args:
        weight: as for :func:`pack_weight`.
        groups: as for :func:`pack_weight`.
        out: the packed weights of the last call, of the size and dtype that :func:`packed_like` returns.
        state: int64 [256], zeros before the first call.
    """
    torch.ops.tandem_cuda.pack_weight_if_changed(weight.detach(), groups, out, state)


def check_packed(op: str, argument: str, packed: Any, weight: Tensor, groups: int) -> None:
    """Check that ``packed`` has the size, dtype and device of ``pack_weight(weight, groups)``."""
    checks.check_tensor(op, argument, packed)
    sizes, dtype = packed_like(weight, groups)
    if packed.dtype != dtype or packed.dim() != 1 or packed.numel() not in sizes:
        raise ValueError(
            f"{op}: {argument} must be what pack_weight returns for this weight, {dtype} [{sizes[0]}], got "
            f"{packed.dtype} {list(packed.shape)}"
        )
    checks.check_same_device(op, argument, packed, weight, "weight")


def packed_like(weight: Tensor, groups: int) -> tuple[tuple[int, ...], torch.dtype]:
    """Return the numbers of elements that packed weights may have, and their dtype.

    The first is what pack_weight returns now. csrc/ops/product/packed_layout.h defines the layout.

    On CUDA, weights of layers with 16 or more input and output channels per group are packed twice: in rows, and for
    tensor cores, which take no float64 (csrc/ops/product/fragment_layout.h). Behind them are the units of floats, one
    for each output channel (whole_weight.h). On a CPU that multiplies bytes, weights of layers with 8 or more input
    channels per group are packed twice, too (panel_layout.h): integers with AVX2 or dot products of aarch64, floats
    with matrix tiles alone. The instruction set of a CPU may change.
    """
    dtype = (_PACKED_ON_CUDA if weight.is_cuda else _PACKED).get(weight.dtype, weight.dtype)
    channels = weight.shape[1]
    outputs, lanes = weight.shape[0] // groups, 64 // _SUM_BYTES.get(dtype, dtype.itemsize)
    block = lanes if outputs <= lanes else 2 * lanes if outputs <= 2 * lanes else 4 * lanes
    blocks, inputs = groups * -(-outputs // block), weight.numel() // weight.shape[0]
    rows = blocks * block * inputs
    if weight.is_cuda:
        wide = dtype != torch.float64 and min(outputs, channels) >= _WIDE
        fragments = _fragment_bytes(weight, groups, dtype.itemsize) // dtype.itemsize if wide else 0
        units = weight.shape[0] if dtype == torch.int32 else 0
        return (rows + fragments + units,), dtype
    if dtype not in _DIGIT_BYTES or channels < _FILLING:
        return (rows,), dtype
    digits, unit = _DIGIT_BYTES[dtype]
    depth = -(-(inputs // channels * -(-channels // 4) * 4) // 64) * 64
    line = 64 // dtype.itemsize
    both = -(-rows // line) * line + blocks * (block * (digits * depth + unit) + _LINE) // dtype.itemsize
    return (both, rows) if _reads_panels(dtype) else (rows, both), dtype


@assume_constant_result
def _reads_panels(dtype: torch.dtype) -> bool:
    return _C.cpu_isa() == "amx" or (not dtype.is_floating_point and _C.cpu_isa() not in ("scalar", "neon"))


def _fragment_bytes(weight: Tensor, groups: int, digits: int) -> int:
    outputs, channels, taps = weight.shape[0] // groups, weight.shape[1], math.prod(weight.shape[2:])
    chunks = -(-channels // 32)
    blocks, steps = -(-outputs * digits // 64), -(-taps * chunks // 4)
    return groups * blocks * steps * _STEP_BYTES + max(3 * _STEP_BYTES, 32 * chunks)


@torch.library.register_fake("tandem_cuda::pack_weight")
def _(weight: Tensor, groups: int) -> Tensor:
    sizes, dtype = packed_like(weight, groups)
    return weight.new_empty([sizes[0]], dtype=dtype)


@torch.library.register_fake("tandem_cuda::pack_weight_out")
def _(weight: Tensor, groups: int, out: Tensor) -> None:
    return None


@torch.library.register_fake("tandem_cuda::pack_weight_if_changed")
def _(weight: Tensor, groups: int, out: Tensor, state: Tensor) -> None:
    return None
