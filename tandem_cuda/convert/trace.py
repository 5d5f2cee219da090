"""Trace the ANN's forward to a graph, and name its parts."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from ..nn.modes import evaluating
from ..nn.tandem import stored

DROPOUTS: dict[Any, type[nn.Module]] = {F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d}


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that stores a parameter or buffer, and its name there, even if it is parametrized."""
    path, _, key = name.rpartition(".")
    return stored(module.get_submodule(path), key)


class _Tracer(fx.Tracer):
    """Traces forward with optional arguments at their defaults. Whatever has a rule becomes one call."""

    def __init__(self, known: Collection[Any]) -> None:
        functions = [x for x in known if isinstance(x, FunctionType) and x.__module__.partition(".")[0] != "torch"]
        super().__init__(autowrap_functions=tuple(functions))
        self.known = known

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return kind_of(m) in self.known or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        function, inputs = super().create_args_for_root(*args, **kwargs)
        for i, x in enumerate(inputs):
            if isinstance(x, fx.Proxy) and x.node.args:  # a default
                inputs[i] = x.node.args[0]
                self.graph.erase_node(x.node)
        return function, inputs


def traced(ann: nn.Module, known: Collection[Any]) -> fx.Graph:
    """Trace forward in eval mode.

    Each call of a module whose class is ``known``, or of a ``known`` function, is one node. For dropout functions,
    ``meta["drops"]`` tells whether they drop in eval mode and in training.

    Raises:
        ValueError: torch.fx cannot trace the ANN, or the ANN does something different in training.
    """
    with evaluating(ann):
        try:
            graphs = [_Tracer(known).trace(ann.train(training)) for training in (False, True)]
        except Exception as error:  # a user's forward may raise anything when it meets a proxy
            raise ValueError(
                f"convert: ann must be traceable by torch.fx, got an error in {type(ann).__name__}: {error}. "
                "Control flow must not depend on the values of tensors"
            ) from error
    orders = [{node: i for i, node in enumerate(graph.nodes)} for graph in graphs]
    for mine, theirs in itertools.zip_longest(graphs[0].nodes, graphs[1].nodes):
        if mine is None or theirs is None or _done(mine, orders[0], ann) != _done(theirs, orders[1], ann):
            got = " and ".join(
                "nothing more" if node is None else f"{word_of(node.target)} in {scope_of(node, ann)}"
                for node in (mine, theirs)
            )
            raise ValueError(
                "convert: ann must do the same in eval mode and in training, except for dropout and batch norm, got "
                f"{got} (does a forward use self.training or random numbers?)"
            )
        if mine.target in DROPOUTS:
            mine.meta["drops"] = tuple(as_dropout(node)[1] for node in (mine, theirs))
    return graphs[0]


def _done(node: fx.Node, order: dict[fx.Node, int], ann: nn.Module) -> tuple[Any, ...]:
    """Return what a node does in a form comparable across traces: other nodes are given by their position."""
    if node.target in DROPOUTS:
        return node.op, node.target, [order[x] for x in node.all_input_nodes], as_dropout(node)[0]
    if node.op == "get_attr":
        owner, key = owner_of(ann, str(node.target))
        value = getattr(owner, key)
        if str(node.target).startswith("_tensor_constant"):  # a new tensor in each trace
            x = value.detach().flatten()
            return node.op, value.shape, value.dtype, value.is_meta or x.view(torch.uint8).cpu().numpy().tobytes()
        return node.op, id(value)
    return node.op, node.target, str(fx.node.map_arg((node.args, node.kwargs), lambda x: f"node {order[x]}"))


def check_traced(ann: nn.Module, graph: fx.Graph, x: Tensor) -> None:
    """Raise a ValueError if the graph does not compute what the ANN does: torch.fx does not see aliases in Python."""

    def run(f: Callable[[Tensor], Any]) -> list[Tensor]:
        return [y for y in tree_leaves(f(x.clone())) if isinstance(y, Tensor)]

    def alike(one: list[Tensor], other: list[Tensor]) -> bool:
        if [y.shape for y in one] != [y.shape for y in other]:
            return False
        pairs = [(a.double(), b.double()) for a, b in zip(one, other, strict=True)]
        return all(bool((a - b).norm() <= 1e-3 * b.norm()) for a, b in pairs)

    want, got = run(ann), run(fx.Interpreter(ann, graph=graph).run)
    if not alike(got, want) and alike(run(ann), want):  # an ANN that draws random numbers differs from itself
        raise ValueError(
            "convert: ann must compute the same as its torch.fx trace, got different outputs (does a forward write to "
            "a tensor that has another name, as in y = x; x += z, or use a context manager such as autocast?)"
        )


def as_dropout(node: fx.Node) -> tuple[float, bool]:
    """Return the probability of a dropout function's call, and whether it drops."""
    given = inspect.signature(F.dropout).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    return given.arguments["p"], bool(given.arguments["training"])


def dropout_of(node: fx.Node) -> nn.Module | None:
    """Return the module equivalent to a dropout function that follows the ANN's mode; else None."""
    follows = node.target in DROPOUTS and node.meta["drops"] == (False, True)
    return DROPOUTS[node.target](as_dropout(node)[0]) if follows else None


def asks_for_size(node: fx.Node) -> bool:
    """Whether a node only reads sizes."""
    return node.target in ("size", len) or (node.target is getattr and node.args[1] == "shape")


def word_of(target: Any) -> str:
    """Return the name of a function, method or module."""
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def scope_of(node: fx.Node, ann: nn.Module) -> str:
    """Return the name of the module whose forward contains a node."""
    stack = node.meta.get("nn_module_stack") or {}
    return (list(stack)[-1] if stack else "") or type(ann).__name__


def leading_to(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return these nodes and all nodes that they depend on."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def kind_of(module: nn.Module) -> type[nn.Module]:
    """Return the module's class, ignoring parametrizations, which change it."""
    return parametrize.type_before_parametrizations(module)


def parametrized(module: Any) -> list[tuple[str, Any]]:
    """Return the names of the module's parametrized tensors, each with its parametrizations."""
    return list(module.parametrizations.items()) if parametrize.is_parametrized(module) else []
