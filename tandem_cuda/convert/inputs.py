"""The arguments of an ANN's forward: the tensors in them, and the forms in which users have calibration data."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten,
    tree_leaves,
    tree_leaves_with_path,
    tree_map,
    tree_map_only,
)
from torch.utils.data import DataLoader, Dataset

from ..spike_train import SpikeTrain

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


def part(batch: Any, samples: slice) -> Any:
    """Return some samples of a batch."""
    return tree_map_only(Tensor, operator.itemgetter(samples), batch)


def pieces(batch: Batch, numbers: int) -> list[Batch]:
    """Split a batch into pieces of up to ``numbers`` numbers of an input, and at least one sample."""
    largest = max(x[0].numel() for x in tree_leaves(batch) if isinstance(x, Tensor))
    step = max(1, numbers // max(1, largest))
    return [part(batch, slice(i, i + step)) for i in range(0, samples_of(batch), step)]


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


def signature_of(ann: nn.Module) -> inspect.Signature:
    """Return the arguments of forward; for a wrapper with ``*args`` around one module, the arguments of the module."""
    signature, children = inspect.signature(ann.forward), [*ann.children()]
    kinds = [p.kind for p in signature.parameters.values()]
    passes_on = set(kinds) <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return signature_of(children[0]) if kinds and passes_on and len(children) == 1 else signature


def names_of(ann: nn.Module, count: int = 0) -> list[str]:
    """Return the names of forward's arguments that are inputs: those without a default if there are ``count`` of them.

    Otherwise the first ``count``, and all without a default. If all have a default, the first is an input. Arguments of
    ``*args`` have the names "args[0]" and so on.
    """
    parameters = [p for p in signature_of(ann).parameters.values() if p.kind is not p.VAR_KEYWORD]
    plain = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    required = sum(p.default is p.empty for p in plain)
    count = 0 if count == required else count
    names = [p.name for i, p in enumerate(plain) if i < max(count, not required) or p.default is p.empty]
    every = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    if every is not None:
        names += [f"{every}[{i}]" for i in range(max(count, 1 - len(names), 0) - len(names))]
    return names


@dataclass
class Inputs:
    """The arguments of forward that the spiking twin takes, and the tensors in them.

    An argument may be a tuple, list or dict of tensors. Other leaves than tensors keep the values that they have in the
    example, and arguments that the example lacks keep their defaults.
    """

    names: list[str]
    """The names of the arguments that the example has."""
    defaults: dict[str, Any]
    """The arguments that keep their defaults."""
    keywords: frozenset[str]
    """The arguments that must be passed by name."""
    order: list[str]
    """All arguments that can be passed by position, in the order of forward."""
    arguments: tuple[Any, ...]
    """The arguments of the example, with Ellipsis in place of tensors."""
    shapes: tuple[torch.Size, ...]
    """The sizes of the tensors, of one sample."""
    dtypes: tuple[torch.dtype, ...]

    def __getstate__(self) -> dict[str, Any]:
        return {key: x for key, x in vars(self).items() if key != "_flat"}

    @cached_property
    def _flat(self) -> tuple[list[Any], TreeSpec]:
        """The leaves of the arguments, with Ellipsis in place of tensors, and their structure."""
        return tree_flatten(self.arguments)

    @classmethod
    def of(cls, ann: nn.Module, example: Sequence[Any]) -> Inputs:
        """Return what an example of forward's arguments says about its inputs."""
        names = names_of(ann, len(example))
        if len(example) != len(names):
            raise ValueError(
                f"convert: example must have a value for each input of forward, {', '.join(names)}, got {len(example)}"
            )
        parameters = signature_of(ann).parameters
        defaults = {
            p.name: p.default
            for p in parameters.values()
            if p.name not in names and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        keywords = frozenset(p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY)
        of_every = [(p, [name for name in names if name.startswith(f"{p.name}[")]) for p in parameters.values()]
        order = [
            name
            for p, many in of_every
            if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)
            for name in (many if p.kind is p.VAR_POSITIONAL else [p.name])
        ]
        found = [x for x in tree_leaves(tuple(example)) if isinstance(x, Tensor)]
        if not found:
            raise ValueError("convert: example must hold at least one Tensor, got none")
        if any(not x.dim() or not len(x) for x in found):
            raise ValueError(
                "convert: example must have at least one sample in each Tensor, got "
                f"{', '.join(str(list(x.shape)) for x in found)}"
            )
        return cls(
            names, defaults, keywords, order, tree_map_only(Tensor, lambda x: ..., tuple(example)),
            tuple(x.shape[1:] for x in found), tuple(x.dtype for x in found),
        )  # fmt: skip

    @property
    def leaf_names(self) -> list[str]:
        """The names of the tensors: the argument's, or "batch['image']" of a tensor in it."""
        found: list[tuple[Any, Any]] = tree_leaves_with_path(self.arguments)
        return [self.names[path[0].idx] + keystr(path[1:]) for path, x in found if x is ...]

    def leaves(self, arguments: Sequence[Any]) -> list[Any]:
        """Return the tensors, or spike trains, in the arguments of a call.

        Raises:
            TypeError: the arguments have another structure than the example.
            ValueError: a leaf that is no tensor differs from the example's.
        """
        if self._is_plain and not any(isinstance(x, (tuple, list, dict)) for x in arguments):
            return list(arguments)
        try:
            leaves = self._flat[1].flatten_up_to(tuple(arguments))
        except ValueError as error:
            raise TypeError(f"TandemNetwork: inputs must have the structure of the example: {error}") from None
        pairs = list(zip(leaves, self._flat[0], strict=True))
        for x, constant in pairs:
            if constant is not ... and x is not constant and (isinstance(x, Tensor) or x != constant):
                raise ValueError(f"TandemNetwork: inputs must have {constant!r} as in the example, got {x!r}")
        return [x for x, constant in pairs if constant is ...]

    @property
    def _is_plain(self) -> bool:
        """Whether each argument is a tensor."""
        return all(x is ... for x in self.arguments)

    @property
    def structure(self) -> Any:
        """The arguments, with Ellipsis for tensors; None if each argument is a tensor."""
        return None if self._is_plain else self.arguments

    def check_sizes(self, leaves: Sequence[Any]) -> None:
        """Raise a TypeError or ValueError unless the tensors of a call have the sizes of the example's."""
        for x, shape, i in zip(leaves, self.shapes, range(len(self.shapes)), strict=True):
            if not isinstance(x, (Tensor, SpikeTrain)):
                raise TypeError(f"TandemNetwork: {self.leaf_names[i]} must be a Tensor, got {type(x).__name__}")
            if x.shape[1:] != shape or not len(x.shape):
                wanted = ", ".join(["N", *map(str, shape)])
                raise ValueError(
                    f"TandemNetwork: {self.leaf_names[i]} must be [{wanted}], the sizes of the example that convert "
                    f"was given, got {list(x.shape)}"
                )

    def call(self, arguments: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments as forward takes them: by position, and by name."""
        pairs = list(zip(self.names, arguments, strict=True))
        positional = tuple(x for name, x in pairs if name not in self.keywords)
        return positional, {name: x for name, x in pairs if name in self.keywords}

    def of_call(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the arguments that the spiking twin takes, for a call of the network.

        Raises:
            TypeError: arguments are missing, given twice, or unknown.
            ValueError: an argument that keeps its default has another value.
        """
        if not named and len(inputs) == len(self.names) and self.names == self.order[: len(inputs)]:
            return inputs
        names = [*self.order, *sorted(self.keywords)]
        values = dict(zip(self.order, inputs, strict=False))
        wrong = [name for name in named if name in values or name not in names]
        missing = [name for name in self.names if name not in {*values, *named}]
        if len(inputs) > len(self.order) or wrong or missing:
            raise TypeError(
                f"TandemNetwork: inputs must match the ANN's forward({', '.join(names)}), got {len(inputs)} "
                f"by position and {', '.join(named) or 'none'} by name"
            )
        values |= named
        for name, default in self.defaults.items():
            x = values.get(name, default)
            if x is not default and (isinstance(x, Tensor) or isinstance(default, Tensor) or x != default):
                raise ValueError(f"TandemNetwork: {name} must keep its default, {default!r}, got {x!r}")
        return tuple(values[name] for name in self.names)

    def resized(self, arguments: Sequence[Any], samples: int) -> tuple[Any, ...]:
        """Return arguments with this number of samples: the first ones, repeated if there are fewer."""

        def taken(x: Tensor) -> Tensor:
            return x[torch.arange(samples, device=x.device) % len(x)].detach().clone()

        return tree_map_only(Tensor, taken, tuple(arguments))

    def example(self, ann: nn.Module) -> tuple[Any, ...]:
        """Return arguments of zeros, of one sample."""
        like = next(ann.parameters(), torch.empty(0))
        sizes = iter(zip(self.shapes, self.dtypes, strict=True))

        def made(x: Any) -> Any:
            if x is not ...:
                return x
            shape, dtype = next(sizes)
            return like.new_zeros((1, *shape), dtype=None if dtype.is_floating_point else dtype)

        return tree_map(made, self.arguments)
