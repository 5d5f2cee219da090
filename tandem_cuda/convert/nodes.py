"""What nodes of a graph and modules of an ANN are: their names, classes, owners and settings."""

from __future__ import annotations

import enum
import functools
import inspect
import itertools
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

from ..nn.classes import torch_class
from ..nn.weights import stored

RULES: dict[Any, Any] = {}
"""The conversion rule of each class or function; methods of Tensor are listed by name."""

IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
DROPOUTS: dict[Any, type[nn.Module]] = {F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d, F.dropout3d: nn.Dropout3d}


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that stores a parameter or buffer, and its name there, even if it is parametrized."""
    path, _, key = name.rpartition(".")
    return stored(module.get_submodule(path), key)


class StochasticDepth(nn.Module):
    """The kind (:func:`kind_of`) of layers that zero whole samples in training (arXiv:1603.09382).

    These are torchvision's StochasticDepth and timm's DropPath.
    """


_STOCHASTIC_DEPTH = (("torchvision.ops", "StochasticDepth"), ("timm.layers", "DropPath"))


def is_of_class(module: nn.Module, package: str, name: str) -> bool:
    """Whether the module is of a class of another package, which need not be installed."""
    kind = getattr(sys.modules.get(package), name, None)
    return kind is not None and _own_class(module) is kind


def _own_class(module: nn.Module) -> type[nn.Module]:
    """Return the module's class, ignoring parametrizations, which change it."""
    # Read from _modules: while torch.fx traces, getattr of a module is slow.
    return parametrize.type_before_parametrizations(module) if "parametrizations" in module._modules else type(module)


def kept(node: fx.Node) -> fx.Node:
    """Keep a call as one node when a pickled graph is loaded, which torch.fx then traces anew."""
    node.meta["is_wrapped"] = True
    return node


def signature_of(ann: nn.Module) -> inspect.Signature:
    """Return the arguments of forward; for a wrapper with ``*args`` around one module, the arguments of the module."""
    signature, children = inspect.signature(ann.forward), [*ann.children()]
    kinds = [p.kind for p in signature.parameters.values()]
    passes_on = set(kinds) <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return signature_of(children[0]) if kinds and passes_on and len(children) == 1 else signature


def inputs_of(ann: nn.Module, count: int = 0) -> list[str] | None:
    """Return the names of forward's arguments that are inputs: the first ``count``, and all without a default.

    If all have a default, the first is an input. Returns None for a forward that takes ``*args``.
    """
    parameters = list(signature_of(ann).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    parameters = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    required = sum(p.default is p.empty for p in parameters)
    return [p.name for i, p in enumerate(parameters) if i < max(count, not required) or p.default is p.empty]


PLAIN = "plain"
"""Where :func:`traced` puts the torch.nn layer that another library's layer contains."""


def name_in_ann(target: str) -> str:
    """Return the ANN's name for the module that a node calls."""
    return target.removeprefix(f"{PLAIN}.")


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


def all_settings(ann: nn.Module) -> dict[tuple[str, str], Any]:
    """Return the settings of all modules, by the names of module and attribute."""
    return {(name, key): x for name, module in ann.named_modules() for key, x in settings(module).items()}


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


def as_dropout(node: fx.Node) -> tuple[float, bool]:
    """Return the probability of a dropout function's call, and whether it drops."""
    arguments = _bound_dropout(node).arguments
    return arguments["p"], bool(arguments["training"])


def set_drops(node: fx.Node, drops: bool) -> None:
    """Let a call of a dropout function drop, or not."""
    call = _bound_dropout(node)
    call.arguments["training"] = drops
    node.args, node.kwargs = call.args, call.kwargs


def _bound_dropout(node: fx.Node) -> inspect.BoundArguments:
    call = inspect.signature(F.dropout).bind(*node.args, **node.kwargs)
    call.apply_defaults()
    return call


def dropout_of(node: fx.Node) -> nn.Module | None:
    """Return the module equivalent to a dropout function that follows the ANN's mode; else None."""
    follows = node.target in DROPOUTS and node.meta["drops"] == (False, True)
    return DROPOUTS[node.target](as_dropout(node)[0]) if follows else None


def module_of(root: nn.Module, node: fx.Node) -> Any:
    """Return the module that a node calls; None for a node that calls no module."""
    if node.op != "call_module":
        return None
    module: Any = root
    for key in str(node.target).split("."):  # as get_submodule does, whose checks take most of its time
        module = module._modules[key] if key in module._modules else getattr(module, key)
    return module


def asks_for_size(node: fx.Node) -> bool:
    """Whether a node only reads sizes."""
    return node.target in ("size", len) or (node.target is getattr and node.args[1] == "shape")


def reads_batch_size(node: fx.Node) -> bool:
    """Whether a node reads the size of a tensor along its first dimension."""
    asks: Any = node
    index: Any = 0
    if node.target is operator.getitem:
        asks, index = node.args
    elif node.target == "size":
        index = next(iter((*node.args[1:], *node.kwargs.values())), None)
    elif node.target is not len:
        return False
    return index == 0 and isinstance(asks, fx.Node) and asks_for_size(asks) and isinstance(asks.args[0], fx.Node)


_OF_SAMPLES = {
    *("add", "sub", "mul", "truediv", "div", "relu", "clamp", "interpolate", "pad", "normalize", "float", "contiguous"),
    "sized_as_traced",
}


def keeps_samples(node: fx.Node, ann: nn.Module) -> bool:
    """Whether a node's result surely has the samples of its input along the first dimension."""
    if (module := module_of(ann, node)) is not None:
        return isinstance(module, (nn.Identity, nn.Upsample, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm))
    return node.op in ("placeholder", "get_attr") or word_of(node.target) in _OF_SAMPLES


def word_of(target: Any) -> str:
    """Return the name of a function, method or module."""
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def full_name(kind: type) -> str:
    """Return a class as a user would write it."""
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("__main__.")


def scope_of(node: fx.Node, ann: nn.Module) -> str:
    """Return the name of the module whose forward contains a node."""
    stack = node.meta.get("nn_module_stack") or {}
    return (list(stack)[-1] if stack else "") or type(ann).__name__


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


def kind_of(module: nn.Module) -> type[nn.Module]:
    """Return the module's class, ignoring parametrizations, which change it.

    A subclass of a torch.nn class that has only a constructor of its own, and no rule, counts as that class. Stochastic
    depth has the kind StochasticDepth, whatever its library.
    """
    if any(is_of_class(module, *name) for name in _STOCHASTIC_DEPTH):
        return StochasticDepth
    return torch_class(_own_class(module), RULES)


def some(names: Sequence[str], most: int) -> str:
    """Return the first names as a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def parametrized(module: Any) -> list[tuple[str, Any]]:
    """Return the names of the module's parametrized tensors, each with its parametrizations."""
    return list(module.parametrizations.items()) if parametrize.is_parametrized(module) else []


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
