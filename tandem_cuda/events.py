"""Bin recordings of event cameras into bit planes without a dense train in between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .ops import checks

_OP = "SpikeTrain.from_events"
_Array = npt.NDArray[Any]


def event_planes(
    t: Any,
    x: Any,
    y: Any,
    p: Any,
    time_steps: int,
    size: int | Sequence[int],
    window: tuple[float, float] | None,
    downsample: int,
) -> Tensor:
    """Return the bit planes of ``SpikeTrain.from_events``: uint8 [P, 1, C, H, W], channels last in memory."""
    checks.check_time_steps(_OP, time_steps)
    height, width = checks.pair(_OP, "size", size)
    if min(height, width) < 1:
        raise ValueError(f"{_OP}: size must be at least 1 x 1, got {height} x {width}")
    checks.check_at_least_1(_OP, "downsample", downsample)
    times = _times(t)
    column, row = (
        _coordinates(name, value, len(times), end) for name, value, end in (("x", x, width), ("y", y, height))
    )
    channel = np.zeros(len(times), np.int64) if p is None else _coordinates("p", p, len(times), 2)

    planes, channels = checks.planes_for(time_steps), 1 if p is None else 2
    height, width = -(-height // downsample), -(-width // downsample)
    flat = _zeros(planes * height * width * channels)
    step = _steps(times, time_steps, window)
    index = ((step // 8 * height + row // downsample) * width + column // downsample) * channels + channel
    kept = (step >= 0) & (step < time_steps)
    index, bit = index[kept], step[kept] % 8
    for i in range(8):  # duplicate events of a neuron and step write the same value
        flat[index[bit == i]] |= np.uint8(1 << i)
    return torch.from_numpy(flat.reshape(planes, 1, height, width, channels)).permute(0, 1, 4, 2, 3)


def _zeros(size: int) -> _Array:
    try:
        return np.zeros(size, np.uint8)
    except (MemoryError, ValueError, OverflowError) as error:  # which one numpy raises depends on the size
        raise MemoryError(f"{_OP}: {size} bytes for the bit planes cannot be allocated") from error


def _steps(times: _Array, time_steps: int, window: tuple[float, float] | None) -> _Array:
    """Return the time step of each event, counted from 0: -1 before the window, ``time_steps`` after it."""
    if not len(times):
        return np.zeros(0, np.int64)
    start, stop = _bounds(times, window)
    # Use exact fractions: differences of times and their products with T can overflow or round in the times' dtype.
    edges = [start + (stop - start) * Fraction(i, time_steps) for i in range(time_steps + 1)]
    step = np.searchsorted(_first_at_or_after(edges, times.dtype), times, side="right") - 1
    if window is None:  # with float times, the last event lies on the end of the last step
        step = np.minimum(step, time_steps - 1)
    return step.astype(np.int64)


def _bounds(times: _Array, window: tuple[float, float] | None) -> tuple[Fraction, Fraction]:
    """Return start and stop of the window."""
    if window is None:
        start, stop = Fraction(times.min().item()), Fraction(times.max().item())
        # Integer times are ticks: the window ends when the last tick does.
        return start, stop + 1 if times.dtype.kind != "f" or start == stop else stop
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"{_OP}: window must be a pair of times, got {window!r}")
    for value in window:
        checks.check_number(_OP, "window", value)
    if not (window[0] < window[1] and all(isinstance(value, int) or math.isfinite(value) for value in window)):
        raise ValueError(f"{_OP}: window must be (start, stop), finite and with start < stop, got {window}")
    return Fraction(window[0]), Fraction(window[1])


def _first_at_or_after(edges: Sequence[Fraction], dtype: np.dtype[Any]) -> _Array:
    """Return the smallest number of a dtype at or after each edge; edges beyond its range are dropped."""
    if dtype.kind == "f":
        largest = Fraction(np.finfo(dtype).max)
        rounded = [float(max(edge, -largest)) for edge in edges if edge <= largest]
        # Comparing a Fraction with a float is exact.
        return np.array([np.nextafter(x, np.inf) if x < edge else x for x, edge in zip(rounded, edges, strict=False)])
    limits = np.iinfo(dtype)
    ticks = [max(math.ceil(edge), int(limits.min)) for edge in edges]
    return np.array([tick for tick in ticks if tick <= limits.max], dtype)


def _times(t: Any) -> _Array:
    """Return the times, [E], as int64, uint64 or float64."""
    times = _column("t", t, None)
    if times.dtype.kind not in "iuf":
        raise TypeError(f"{_OP}: t must contain integers or floating point numbers, got {times.dtype}")
    if times.dtype.kind != "f":
        return times.astype(np.int64 if times.dtype.kind == "i" else np.uint64)
    with np.errstate(over="ignore"):  # long doubles may overflow
        finite = times.astype(np.float64)
    if not np.isfinite(finite).all():
        raise ValueError(f"{_OP}: t must be finite, got {times[~np.isfinite(finite)][0]}")
    return finite


def _column(argument: str, value: Any, length: int | None) -> _Array:
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise TypeError(
            f"{_OP}: {argument} must be one-dimensional and numeric, got {list(array.shape)} of {array.dtype}"
        )
    if length is not None and len(array) != length:
        raise ValueError(f"{_OP}: {argument} must have as many events as t, {length}, got {len(array)}")
    return array


def _coordinates(argument: str, value: Any, length: int, end: int) -> _Array:
    array = _column(argument, value, length)
    if array.dtype.kind == "f" and length:  # numpy makes an empty list a float array
        raise TypeError(f"{_OP}: {argument} must contain integers, got {array.dtype}")
    wrong = array[(array < 0) | (array >= end)]
    if len(wrong):
        raise ValueError(f"{_OP}: {argument} must be in [0, {end}), got {wrong[0]} ({len(wrong)} of {length} events)")
    return array.astype(np.int64)
