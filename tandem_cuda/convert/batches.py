"""Take calibration data in the forms in which users have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .nodes import inputs_of

_BATCH = 64
"""Samples in a batch of a Dataset."""

Batch = tuple[Tensor, ...]
"""A tensor for each input of the network."""


def calibration_batches(ann: nn.Module, data: Any) -> list[Batch]:
    """Return the inputs of a network in calibration data.

    Args:
        ann: the network.
        data: as ``calibrate`` of :func:`convert`.

    Raises:
        TypeError: ``data`` is neither a Tensor nor iterable.
        ValueError: there is no batch, or a batch lacks an input, or an input has no samples, has another number of
            samples than the first input, or is not finite.
    """
    names = inputs_of(ann) or ["input"]  # of *args, the first
    if isinstance(data, Tensor):
        data = [data]
    elif isinstance(data, Dataset):
        data = DataLoader(data, _BATCH)
    elif isinstance(data, (tuple, list)) and _is_batch(data, names):
        data = [data]
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
        raise TypeError(
            f"convert: calibrate must be a Tensor, a Dataset or an iterable of batches, got {type(data).__name__}"
        )
    batches = []
    for i, batch in enumerate(data):
        inputs = _matched(batch, names)
        if inputs is None:
            raise ValueError(f"convert: calibrate must yield {_wanted(names)}, got {_described(batch)} in batch {i}")
        _check(inputs, names, i)
        # An iterator may fill one memory again and again.
        batches.append(inputs if isinstance(data, (list, tuple)) else copied(inputs))
    if not batches:
        raise ValueError("convert: calibrate must yield at least one batch, got none")
    return batches


def names_inputs(ann: nn.Module, data: Any) -> bool:
    """Return whether calibration data are a dict of inputs, and not of levels, which are numbers or [C]."""
    names = inputs_of(ann) or ["input"]
    return isinstance(data, Mapping) and all(isinstance(x := data.get(name), Tensor) and x.dim() > 1 for name in names)


def _is_batch(data: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether a tuple or list is one batch: of several inputs, or of one with what can only be labels behind it.

    Labels are integers, or tensors of fewer dimensions, or no tensors. Other tensors may be batches.
    """
    inputs = _matched(data, names)
    if inputs is None or len(data) == 1:
        return False
    if len(names) > 1 and isinstance(data[0], Tensor):
        return True
    return all(_may_be_labels(x, inputs[0]) for x in data[1:])


def _may_be_labels(x: Any, inputs: Tensor) -> bool:
    if isinstance(x, Tensor):
        return len(x.shape) > 0 and len(x) == len(inputs) and (not x.is_floating_point() or x.dim() < inputs.dim())
    return not isinstance(x, (tuple, list, Mapping))


def copied(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return copies of the tensors in a batch, which a network may write to."""
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in batch)


def _matched(batch: Any, names: Sequence[str]) -> Batch | None:
    """Return the inputs in a batch; None if it lacks one."""
    if isinstance(batch, Tensor):
        return (batch,) if len(names) == 1 else None
    if isinstance(batch, Mapping):
        values = [batch.get(name) for name in names]
    elif isinstance(batch, (tuple, list)):
        values = list(batch[: len(names)])
        if values and isinstance(values[0], (tuple, list, Mapping)):
            return _matched(values[0], names)
    else:
        return None
    inputs = tuple(x for x in values if isinstance(x, Tensor))
    return inputs if len(inputs) == len(names) else None


def _wanted(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"a Tensor {names[0]}, a tuple that begins with it, or a dict with it"
    inputs = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"tuples that begin with the Tensors {inputs}, or dicts with them"


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a dict with {', '.join(map(str, batch)) or 'nothing'}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {', '.join(type(x).__name__ for x in batch) or 'nothing'}"
    return type(batch).__name__


def _check(inputs: Batch, names: Sequence[str], i: int) -> None:
    for name, x in zip(names, inputs, strict=True):
        if not x.dim() or not len(x):
            raise ValueError(
                f"convert: calibrate must yield batches of at least one sample, got {list(x.shape)} for {name} in "
                f"batch {i}"
            )
        if len(x) != len(inputs[0]):
            raise ValueError(
                f"convert: calibrate must yield as many samples of each input, got {len(inputs[0])} of {names[0]} and "
                f"{len(x)} of {name} in batch {i}"
            )
        if not torch.isfinite(x).all():
            raise ValueError(f"convert: calibrate must be finite, got NaN or infinity in batch {i}")
