"""Take calibration data in the forms in which users have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, Dataset

from .inputs import names_of, signature_of

_BATCH = 64
"""Samples in a batch of a Dataset."""

Batch = tuple[Any, ...]
"""The arguments of forward: for each input a tensor, or a tuple, list or dict of tensors."""


def calibration_batches(ann: nn.Module, data: Any, count: int = 0) -> list[Batch]:
    """Return the inputs of a network in calibration data.

    Args:
        ann: the network.
        data: as ``calibrate`` of :func:`convert`.
        count: the number of inputs that an example has, which may be more than forward needs.

    Raises:
        TypeError: ``data`` is neither a Tensor nor iterable.
        ValueError: there is no batch, or a batch lacks an input, or an input has no samples, has another number of
            samples than the first input, or is not finite.
    """
    names = names_of(ann, count)
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
        _check(inputs, i)
        # An iterator may fill one memory again and again.
        batches.append(inputs if isinstance(data, (list, tuple)) else copied(inputs))
    if not batches:
        raise ValueError("convert: calibrate must yield at least one batch, got none")
    return batches


def names_inputs(ann: nn.Module, data: Any) -> bool:
    """Return whether calibration data are a dict of inputs, and not of levels, which are numbers or [C]."""
    if not isinstance(data, Mapping) or not data:
        return False
    return all(isinstance(x, Tensor) and x.dim() > 1 for x in data.values()) or all(
        isinstance(x := data.get(name), Tensor) and x.dim() > 1 for name in names_of(ann)
    )


def example_of(ann: nn.Module, example: Any) -> Batch:
    """Return the arguments of forward in ``example`` of :func:`convert`."""
    names = names_of(ann)
    if isinstance(example, Tensor):
        return (example,)
    if isinstance(example, Mapping):
        if not all(name in example for name in names):
            return (dict(example),)
        optional = [name for name in signature_of(ann).parameters if name in example and name not in names]
        wanted = {*names, *optional}
        for count in range(len(wanted) + 1):
            if {*names_of(ann, count)} == wanted:
                return tuple(example[name] for name in names_of(ann, count))
        raise ValueError(
            f"convert: example must have each argument of forward in front of {optional[-1]}, got {', '.join(example)}"
        )
    if not isinstance(example, (tuple, list)) or not example:
        raise TypeError(
            f"convert: example must be a Tensor, or a tuple of forward's arguments, got {type(example).__name__}"
        )
    return tuple(example)


def samples_of(batch: Batch) -> int:
    """Return the number of samples in a batch."""
    return next(len(x) for x in tree_leaves(batch) if isinstance(x, Tensor))


def copied(batch: Any) -> Any:
    """Return copies of the tensors in a batch, which a network may write to."""
    return tree_map_only(Tensor, torch.clone, batch)


def _is_batch(data: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether a tuple or list is one batch: of several inputs, or of one with what can only be labels behind it.

    Labels are integers, or tensors of fewer dimensions, or no tensors. Other tensors may be batches.
    """
    inputs = _matched(data, names)
    if inputs is None:
        return False
    if len(data) == 1:
        return isinstance(data, tuple) and isinstance(data[0], Mapping)
    if len(names) > 1 and isinstance(data[0], (Tensor, Mapping)):
        return True
    first = next(x for x in tree_leaves(inputs) if isinstance(x, Tensor))
    return all(_may_be_labels(x, first) for x in data[1:])


def _may_be_labels(x: Any, inputs: Tensor) -> bool:
    if isinstance(x, Tensor):
        return len(x.shape) > 0 and len(x) == len(inputs) and (not x.is_floating_point() or x.dim() < inputs.dim())
    return not isinstance(x, (tuple, list, Mapping))


def _matched(batch: Any, names: Sequence[str]) -> Batch | None:
    """Return the inputs in a batch; None if it lacks one."""
    if isinstance(batch, Tensor):
        return (batch,) if len(names) == 1 else None
    if isinstance(batch, Mapping):
        values = [batch.get(name) for name in names]
        if all(x is None for x in values) and len(names) == 1 and _has_tensors(batch):
            return (dict(batch),)
    elif isinstance(batch, (tuple, list)):
        values = list(batch[: len(names)])
        if values and isinstance(values[0], (tuple, list)):
            return _matched(values[0], names)
        if values and isinstance(values[0], Mapping) and (len(names) == 1 or all(name in values[0] for name in names)):
            return _matched(values[0], names)
    else:
        return None
    return tuple(values) if len(values) == len(names) and all(map(_has_tensors, values)) else None


def _has_tensors(x: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(x))


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


def _check(inputs: Batch, i: int) -> None:
    tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    for x in tensors:
        if not x.dim() or not len(x):
            raise ValueError(
                f"convert: calibrate must yield batches of at least one sample, got {list(x.shape)} in batch {i}"
            )
        if len(x) != len(tensors[0]):
            raise ValueError(
                f"convert: calibrate must yield as many samples of each input, got {len(tensors[0])} and {len(x)} in "
                f"batch {i}"
            )
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise ValueError(f"convert: calibrate must be finite, got NaN or infinity in batch {i}")
