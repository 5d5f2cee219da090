"""Argument checks. Messages name the operator and the argument, what was expected and what was given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..neuron import check_neuron, radix_if

FLOATING = (torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.int16)
NARROW = (torch.float16, torch.bfloat16, *INTEGERS)  # weight dtypes whose products are float32


def check_tensor(op: str, argument: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {argument} must be a Tensor, got {type(value).__name__}")


def check_floating(op: str, argument: str, value: Any) -> None:
    check_tensor(op, argument, value)
    check_dtype(op, argument, value.dtype)


def check_weight(op: str, weight: Any) -> None:
    check_tensor(op, "weight", weight)
    if weight.dtype not in (*FLOATING, *NARROW):
        raise TypeError(f"{op}: weight must be float32, float64, float16, bfloat16, int8 or int16, got {weight.dtype}")


def check_dtype(op: str, argument: str, dtype: torch.dtype) -> None:
    if dtype not in FLOATING:
        raise TypeError(f"{op}: {argument} must be float32 or float64, got {dtype}")


def check_shape(op: str, argument: str, tensor: Tensor, expected: Sequence[int]) -> None:
    if tensor.shape != torch.Size(expected):
        raise ValueError(f"{op}: {argument} must be {list(expected)}, got {list(tensor.shape)}")


def check_like(op: str, argument: str, value: Any, like: Tensor, like_name: str, expected: Sequence[int]) -> None:
    """Check that a tensor has the dtype and device of ``like`` and the expected shape."""
    check_tensor(op, argument, value)
    if value.dtype != like.dtype:
        raise TypeError(f"{op}: {argument} must have the dtype of {like_name}, {like.dtype}, got {value.dtype}")
    check_same_device(op, argument, value, like, like_name)
    check_shape(op, argument, value, expected)


def check_same_device(op: str, argument: str, value: Tensor, like: Tensor, like_name: str) -> None:
    if value.device != like.device:
        raise ValueError(f"{op}: {argument} must be on the device of {like_name}, {like.device}, got {value.device}")


def check_time_steps(op: str, time_steps: Any) -> None:
    if isinstance(time_steps, bool) or not isinstance(time_steps, (int, torch.SymInt)):
        raise TypeError(f"{op}: time_steps must be an int, got {type(time_steps).__name__}")
    if time_steps < 1:
        raise ValueError(f"{op}: time_steps must be at least 1, got {time_steps}")


def check_radix_steps(op: str, time_steps: Any) -> None:
    """Check T of radix spikes."""
    check_time_steps(op, time_steps)
    radix_if.check_radix_steps(op, time_steps)


def check_firing(op: str, neuron: Any, time_steps: Any) -> None:
    """Check neurons that are to spike in so many time steps."""
    check_time_steps(op, time_steps)
    check_neuron(op, neuron)
    if neuron.radix:
        check_radix_steps(op, time_steps)


def check_int(op: str, argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {argument} must be an int, got {type(value).__name__}")


def check_at_least_1(op: str, argument: str, value: Any) -> None:
    check_int(op, argument, value)
    if value < 1:
        raise ValueError(f"{op}: {argument} must be at least 1, got {value}")


def check_bits(op: str, bits: Any) -> None:
    check_tensor(op, "bits", bits)
    if bits.dtype != torch.uint8:
        raise TypeError(f"{op}: bits must be uint8, got {bits.dtype}")
    if bits.dim() < 2 or bits.shape[0] < 1:
        raise ValueError(f"{op}: bits must be [P, N, ...] with at least one plane, got {list(bits.shape)}")


def check_train(op: str, bits: Any, time_steps: Any) -> None:
    """Check bit planes: there must be exactly as many as ``time_steps`` needs."""
    check_bits(op, bits)
    check_time_steps(op, time_steps)
    planes = planes_for(time_steps)
    if bits.shape[0] != planes:
        raise ValueError(
            f"{op}: bits must have ceil(time_steps / 8) = {planes} planes for {time_steps} time steps, "
            f"got {list(bits.shape)}"
        )


def check_radix(op: str, bits: Tensor, radix: Any) -> None:
    """Check T of radix spikes, which fill one plane; 0 for spikes that all weigh the same."""
    check_int(op, "radix", radix)
    if not 0 <= radix <= 8:
        raise ValueError(f"{op}: radix must be from 0 to 8, got {radix}")
    if radix and len(bits) != 1:
        raise ValueError(f"{op}: bits of radix spikes must have one plane, got {list(bits.shape)}")


def check_number(op: str, argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {argument} must be a number, got {type(value).__name__}")


def check_finite(op: str, argument: str, value: Tensor) -> None:
    """Raise ValueError if a CPU tensor contains NaN or infinity.

    A neuron whose current is NaN never fires, so without this check NaN would disappear into finite spike counts. The
    check is skipped on other devices, where it would have to wait, and under torch.compile, where it would break the
    graph.
    """
    if torch.compiler.is_compiling() or not value.is_cpu:
        return
    value = value.detach()
    try:
        if math.isfinite(value.sum()) or bool(value.isfinite().all()):  # a sum of finite values may overflow
            return
        wrong = value[~value.isfinite()][0].item()
    except RuntimeError:  # tensors inside torch.func transforms may have no values
        return
    raise ValueError(f"{op}: {argument} must be finite, got {wrong}")


def check_share(op: str, argument: str, value: Tensor, remedy: str = "") -> None:
    """Raise ValueError if a CPU tensor contains numbers outside [0, 1]. Where check_finite is skipped, this is, too."""
    if torch.compiler.is_compiling() or not value.is_cpu or value.numel() == 0:
        return
    value = value.detach()
    try:
        low, high = (x.item() for x in torch.aminmax(value))
    except RuntimeError:  # tensors inside torch.func transforms may have no values
        return
    if not (low >= 0 and high <= 1):
        wrong = low if not low >= 0 else high
        raise ValueError(f"{op}: {argument} must be from 0 to 1, got {wrong}{remedy}")


def is_transformed(x: Tensor) -> bool:
    """Return whether a transform of torch.func, such as vmap, has wrapped the tensor."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def check_positive(op: str, argument: str, value: Any) -> None:
    check_number(op, argument, value)
    if not 0 < value < math.inf:  # torch.compile can trace a comparison of symbolic numbers
        raise ValueError(f"{op}: {argument} must be positive and finite, got {value}")


def planes_for(time_steps: int) -> int:
    """Return the number of bit planes that hold ``time_steps`` steps: ceil(T / 8)."""
    return (time_steps + 7) // 8


def pair(op: str, argument: str, value: Any) -> tuple[int, int]:
    """Return an int or a pair of ints as a pair, as nn.Conv2d does."""
    if type(value) is int:  # what layers pass, in every call
        return value, value
    if type(value) is tuple and [*map(type, value)] == [int, int]:
        return value
    first, second = per_axis(op, argument, value, 2)
    return first, second


def per_axis(op: str, argument: str, value: Any, axes: int) -> tuple[int, ...]:
    """Return an int, or one for each axis, as one for each axis."""
    values = (value,) * axes if isinstance(value, Integral) else value
    if not isinstance(values, Sequence) or len(values) != axes or not all(isinstance(v, Integral) for v in values):
        many = {1: "a tuple of one", 2: "a pair of ints", 3: "three ints"}[axes]
        raise TypeError(f"{op}: {argument} must be an int or {many}, got {value!r}")
    return tuple(map(int, values))
