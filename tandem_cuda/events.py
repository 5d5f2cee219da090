"""Recordings of event cameras to bit planes, without a dense train in between."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """What ``SpikeTrain.from_events`` makes of these arguments: uint8 [P, 1, C, H, W], channels last in memory."""
    checks.check_time_steps(_OP, time_steps)
    height, width = checks.pair(_OP, "size", size)
    if min(height, width) < 1:
        raise ValueError(f"{_OP}: size must be at least 1 x 1, got {height} x {width}")
    if isinstance(downsample, bool) or not isinstance(downsample, int):
        raise TypeError(f"{_OP}: downsample must be an int, got {type(downsample).__name__}")
    if downsample < 1:
        raise ValueError(f"{_OP}: downsample must be at least 1, got {downsample}")
    times = _column("t", t, None)
    if times.dtype.kind not in "iuf":
        raise TypeError(f"{_OP}: t must be of integers or floating point numbers, got {times.dtype}")
    if times.dtype.kind == "f" and not np.isfinite(times).all():
        raise ValueError(f"{_OP}: t must be finite, got {times[~np.isfinite(times)][0]}")
    # np.int64 also for what is unsigned: differences of unsigned numbers wrap around.
    times = times.astype(np.float64 if times.dtype.kind == "f" else np.int64)
    column, row = (
        _coordinates(name, value, len(times), end) for name, value, end in (("x", x, width), ("y", y, height))
    )
    channel = np.zeros(len(times), np.int64) if p is None else _coordinates("p", p, len(times), 2)
    step, kept = _steps(times, time_steps, window)

    planes, channels = checks.planes_for(time_steps), 1 if p is None else 2
    height, width = -(-height // downsample), -(-width // downsample)
    flat = np.zeros(planes * height * width * channels, np.uint8)
    index = ((step // 8 * height + row // downsample) * width + column // downsample) * channels + channel
    index, bit = index[kept], step[kept] % 8
    for i in range(8):  # events that meet in one neuron and step all write the same value
        flat[index[bit == i]] |= np.uint8(1 << i)
    return torch.from_numpy(flat.reshape(planes, 1, height, width, channels)).permute(0, 1, 4, 2, 3)


def _steps(times: _Array, time_steps: int, window: tuple[float, float] | None) -> tuple[_Array, Any]:
    """The time step of each event, from 0 on, and which events are in the window."""
    if window is None:
        if not len(times):
            return times.astype(np.int64), slice(None)
        start, duration = times.min(), times.max() - times.min()
        # Integers are ticks: the last one lasts one tick. The last of floats belongs to the last step.
        duration = duration + 1 if times.dtype == np.int64 else duration or 1.0
        kept: Any = slice(None)
    else:
        if not isinstance(window, (tuple, list)) or len(window) != 2:
            raise TypeError(f"{_OP}: window must be a pair of times, got {window!r}")
        for value in window:
            checks.check_number(_OP, "window", value)
        start, stop = window
        if not (start < stop and math.isfinite(start) and math.isfinite(stop)):
            raise ValueError(f"{_OP}: window must be (start, stop) with start < stop, got {window}")
        duration, kept = stop - start, (times >= start) & (times < stop)
    step = np.floor((times - start) * time_steps / duration) if _fractional(times, start, duration) else None
    if step is None:
        step = (times - int(start)) * time_steps // int(duration)
    return np.minimum(step, time_steps - 1).astype(np.int64), kept


def _fractional(times: _Array, *values: Any) -> bool:
    return times.dtype != np.int64 or any(value != int(value) for value in values)


def _column(argument: str, value: Any, length: int | None) -> _Array:
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise TypeError(
            f"{_OP}: {argument} must be one-dimensional and of numbers, got {list(array.shape)} of {array.dtype}"
        )
    if length is not None and len(array) != length:
        raise ValueError(f"{_OP}: {argument} must have as many events as t, {length}, got {len(array)}")
    return array


def _coordinates(argument: str, value: Any, length: int, end: int) -> _Array:
    array = _column(argument, value, length)
    if array.dtype.kind == "f" and length:  # an empty list is one of floats
        raise TypeError(f"{_OP}: {argument} must be of integers, got {array.dtype}")
    wrong = array.astype(np.int64)
    wrong = wrong[(wrong < 0) | (wrong >= end)]
    if len(wrong):
        raise ValueError(f"{_OP}: {argument} must be in [0, {end}), got {wrong[0]} ({len(wrong)} of {length} events)")
    return array.astype(np.int64)
