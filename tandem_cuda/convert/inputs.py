"""The arguments of an ANN's forward, and the tensors in them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
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

from ..spike_train import SpikeTrain


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
