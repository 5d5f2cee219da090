"""What nodes of a graph and modules of an ANN are: their names, owners and settings."""

from __future__ import annotations

import enum
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import fx, nn

from ..nn.weights import stored


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that stores a parameter or buffer, and its name there, even if it is parametrized."""
    path, _, key = name.rpartition(".")
    return stored(module.get_submodule(path), key)


def same_modules(one: nn.Module, other: nn.Module) -> set[nn.Module]:
    """Return the modules in ``one`` that share their state with a module in ``other``."""
    states = {id(vars(module)) for module in other.modules()}
    return {module for module in one.modules() if id(vars(module)) in states}


def unite(snn: nn.Module, ann: nn.Module) -> None:
    """Let modules of both twins share their state again, as before copying or pickling."""
    states = {id(module._parameters): vars(module) for module in ann.modules()}
    for module in snn.modules():
        module.__dict__ = states.get(id(module._parameters), vars(module))


_SETTINGS = (bool, int, float, complex, str, torch.dtype, torch.device, enum.Enum, type(None))
_INTERNAL = {*vars(nn.Module()), "training"}


def settings(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that decide on what a module computes, but no tensors, and not train or eval mode.

    These are numbers, strings, functions, copies of collections of these, and methods that the instance overrides.
    """
    own = {key: x for key, x in vars(module).items() if key not in _INTERNAL}
    copies = {key: snapshot(x) for key, x in own.items() if is_setting(x)}
    return copies | {key: own[key] for key in overridden_methods(module)}


def is_setting(x: Any) -> bool:
    """Whether x is a number, a string, a function or a collection of these."""
    if isinstance(x, (tuple, list, set, frozenset)):
        return all(map(is_setting, x))
    if isinstance(x, dict):
        return all(map(is_setting, x.values()))
    return isinstance(x, _SETTINGS) or inspect.isroutine(x) or isinstance(x, functools.partial)


def snapshot(x: Any) -> Any:
    """Return a setting, or a copy of it if it is a collection that may change."""
    if isinstance(x, (tuple, list)):
        copy = tuple(map(snapshot, x))
        return x if isinstance(x, tuple) and all(a is b for a, b in zip(copy, x, strict=True)) else copy
    if isinstance(x, dict):
        return {key: snapshot(value) for key, value in x.items()}
    return frozenset(x) if isinstance(x, (set, frozenset)) else x


def overridden_methods(module: nn.Module) -> list[str]:
    """Return the names of the methods that an instance overrides, such as forward, which may compute something."""
    names = [key for key, x in vars(module).items() if callable(x) and callable(getattr(type(module), key, None))]
    return [name for name in names if name in ("forward", "_call_impl") or not hasattr(nn.Module, name)]


def word_of(target: Any) -> str:
    """Return the name of an ATen call, function, method or module."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.rpartition("::")[2]
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def word_of_class(module: nn.Module) -> str:
    """Return the class of a module, ignoring parametrizations."""
    return nn.utils.parametrize.type_before_parametrizations(module).__name__


_Node = TypeVar("_Node")


def closure(nodes: Iterable[_Node], following: Callable[[_Node], Iterable[_Node]]) -> set[_Node]:
    """Return these nodes, the nodes that follow them, the nodes that follow those, and so on."""
    found: set[_Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += following(node)
    return found


def leading_to(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return these nodes and all nodes that they depend on."""
    return closure(nodes, lambda node: node.all_input_nodes)


def some(names: Sequence[str], most: int) -> str:
    """Return the first names as a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def steps_between(first: fx.Node, last: fx.Node) -> int:
    """Return the number of steps from one node to another, each of which has one input."""
    steps = 0
    while last is not first:
        (last,), steps = last.all_input_nodes, steps + 1
    return steps


def common_path(paths: list[list[str]]) -> list[str]:
    """Return the longest common prefix of the paths."""
    together = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return [parts[0] for parts in together]
