"""pack_weight: rearrange weights into the order in which the event-driven kernels add them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _C
from . import checks
from .checked import checked_by

# Narrow floats are packed in a wider dtype that holds every value and is faster to add.
_PACKED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
# Bytes of a sum of integers.
_SUM_BYTES = {torch.int8: 2, torch.int16: 4}
# Tensor cores: the fewest input and output channels of a group.
_WIDE = 16
# Tensor cores: the bytes of integer weights of 64 outputs and 128 inputs.
_STEP_BYTES = 64 * 128
# Matrix tiles of a CPU: the 8-bit digits of a weight, and the fewest input channels of a group.
_DIGITS = {torch.int8: 1, torch.int16: 2, torch.float32: 3}
_FILLING = 8
# Tensor cores: the bf16 terms that are stored for each float weight.
_TERMS = {torch.float32: 3, torch.float16: 2, torch.bfloat16: 1}


def _check(op: str, a: Any) -> None:
    checks.check_weight(op, a.weight)
    if a.weight.dim() not in (2, 4) or 0 in a.weight.shape:
        raise ValueError(
            f"{op}: weight must be [O, C/groups, kH, kW] or [O, F] with no empty dimension, got {list(a.weight.shape)}"
        )
    if isinstance(a.groups, bool) or not isinstance(a.groups, int):
        raise TypeError(f"{op}: groups must be an int, got {type(a.groups).__name__}")
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
        [n] in the dtype of ``weight``, but float32 for float16 and bfloat16. The order of the elements is an
        implementation detail. No gradient.

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
    if out is None:
        return torch.ops.tandem_cuda.pack_weight(weight.detach(), groups)
    torch.ops.tandem_cuda.pack_weight_out(weight.detach(), groups, out)
    return out


def check_packed(op: str, argument: str, packed: Any, weight: Tensor, groups: int) -> None:
    """Check that ``packed`` has the size, dtype and device of ``pack_weight(weight, groups)``."""
    checks.check_tensor(op, argument, packed)
    size, dtype = packed_like(weight, groups)
    sizes = {size} if weight.is_cuda else {size, _rows(weight, groups), _with_panels(weight, groups)}
    if packed.dtype != dtype or packed.dim() != 1 or packed.numel() not in sizes:
        raise ValueError(
            f"{op}: {argument} must be what pack_weight returns for this weight, {dtype} [{size}], got {packed.dtype} "
            f"{list(packed.shape)}"
        )
    checks.check_same_device(op, argument, packed, weight, "weight")


def can_hold(packed: Tensor, weight: Tensor, groups: int) -> bool:
    """Return whether ``packed`` has the size, dtype and device of the packed ``weight``, whatever it holds now."""
    return (packed.numel(), packed.dtype) == packed_like(weight, groups) and packed.device == weight.device


def packed_like(weight: Tensor, groups: int) -> tuple[int, torch.dtype]:
    """Return number of elements and dtype of packed weights; csrc/ops/product/packed_layout.h defines the layout.

    On CUDA, weights of layers with 16 or more input and output channels per group are packed twice: in rows, and for
    tensor cores, which take no float64 (csrc/ops/product/fragment_layout.h for integers, term_layout.h for floats).
    On a CPU with matrix tiles, weights of layers with 8 or more input channels per group are, too (matrix_layout.h).
    """
    dtype = _PACKED.get(weight.dtype, weight.dtype)
    outputs = weight.shape[0] // groups
    if weight.is_cuda:
        rows = _rows(weight, groups)
        if dtype != torch.float64 and min(outputs, weight.shape[1]) >= _WIDE:
            return rows + _fragment_bytes(weight, groups) // dtype.itemsize, dtype
        return rows, dtype
    return (_with_panels if _C.cpu_isa() == "amx" else _rows)(weight, groups), dtype


def _block(weight: Tensor, groups: int) -> int:
    """Return the output channels in a row of packed weights."""
    dtype = _PACKED.get(weight.dtype, weight.dtype)
    outputs, lanes = weight.shape[0] // groups, 64 // _SUM_BYTES.get(dtype, dtype.itemsize)
    return lanes if outputs <= lanes else 2 * lanes if outputs <= 2 * lanes else 4 * lanes


def _rows(weight: Tensor, groups: int) -> int:
    """Return the elements of the rows of packed weights."""
    block = _block(weight, groups)
    return groups * -(-weight.shape[0] // groups // block) * block * (weight.numel() // weight.shape[0])


def _with_panels(weight: Tensor, groups: int) -> int:
    """Return the elements of packed weights with their form for the matrix tiles of a CPU, if they have one."""
    dtype, rows, channels = _PACKED.get(weight.dtype, weight.dtype), _rows(weight, groups), weight.shape[1]
    if dtype not in _DIGITS or channels < _FILLING:
        return rows
    taps, block = math.prod(weight.shape[2:]), _block(weight, groups)
    depth = -(-taps * -(-channels // 4) * 4 // 64) * 64
    panels = groups * -(-weight.shape[0] // groups // block)
    return rows - (-(panels * block * (_DIGITS[dtype] * depth + 4) + 64) // dtype.itemsize)


def _fragment_bytes(weight: Tensor, groups: int) -> int:
    outputs, channels, taps = weight.shape[0] // groups, weight.shape[1], math.prod(weight.shape[2:])
    if weight.dtype in _TERMS:
        width = 16 if outputs <= 16 else 32
        return groups * -(-outputs // width) * width * taps * -(-channels // 16) * 16 * 2 * _TERMS[weight.dtype]
    chunks = -(-channels // 32)
    blocks, steps = -(-outputs * weight.dtype.itemsize // 64), -(-taps * chunks // 4)
    return groups * blocks * steps * _STEP_BYTES + max(3 * _STEP_BYTES, 32 * chunks)


@torch.library.register_fake("tandem_cuda::pack_weight")
def _(weight: Tensor, groups: int) -> Tensor:
    size, dtype = packed_like(weight, groups)
    return weight.new_empty([size], dtype=dtype)


@torch.library.register_fake("tandem_cuda::pack_weight_out")
def _(weight: Tensor, groups: int, out: Tensor) -> None:
    return None
