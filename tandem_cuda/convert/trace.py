"""What the ANN's forward does, as a graph, and the names of its parts."""

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
    """The module that stores a parameter or buffer, and its name there: elsewhere where it is parametrized."""
    path, _, key = name.rpartition(".")
    return stored(module.get_submodule(path), key)


class _Tracer(fx.Tracer):
    """Traces forward with its optional arguments at their defaults, and what has a rule as one call."""

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
    """What forward does in eval mode; functions of dropout have whether they drop in ``meta``, in eval and training.

    Calls of ``known`` classes of modules, and functions, are one node each.

    Raises:
        ValueError: it cannot be traced, or does something else in training.
    """
    with evaluating(ann):
        try:
            graphs = [_Tracer(known).trace(ann.train(training)) for training in (False, True)]
        except Exception as error:  # whatever a user's forward raises when it meets a proxy
            raise ValueError(
                f"convert: ann must be traceable by torch.fx, whose trace of {type(ann).__name__} failed: {error}. "
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
                "convert: ann must do the same in eval mode and in training, but for dropout and batch norm, got "
                f"{got} (self.training in a forward, or random numbers?)"
            )
        if mine.target in DROPOUTS:
            mine.meta["drops"] = tuple(as_dropout(node)[1] for node in (mine, theirs))
    return graphs[0]


def _done(node: fx.Node, order: dict[fx.Node, int], ann: nn.Module) -> tuple[Any, ...]:
    """What a node does, to be compared with one of another trace; other nodes are meant by their places in order."""
    if node.target in DROPOUTS:
        return node.op, node.target, [order[x] for x in node.all_input_nodes], as_dropout(node)[0]
    if node.op == "get_attr":
        owner, key = owner_of(ann, str(node.target))
        value = getattr(owner, key)
        if str(node.target).startswith("_tensor_constant"):  # a new one in each trace
            x = value.detach().flatten()
            return node.op, value.shape, value.dtype, value.is_meta or x.view(torch.uint8).cpu().numpy().tobytes()
        return node.op, id(value)
    return node.op, node.target, str(fx.node.map_arg((node.args, node.kwargs), lambda x: f"node {order[x]}"))


def check_traced(ann: nn.Module, graph: fx.Graph, x: Tensor) -> None:
    """ValueError where the graph does not compute what the ANN does: what Python does to aliases, fx does not see."""

    def run(f: Callable[[Tensor], Any]) -> list[Tensor]:
        return [y for y in tree_leaves(f(x.clone())) if isinstance(y, Tensor)]

    def alike(one: list[Tensor], other: list[Tensor]) -> bool:
        if [y.shape for y in one] != [y.shape for y in other]:
            return False
        pairs = [(a.double(), b.double()) for a, b in zip(one, other, strict=True)]
        return all(bool((a - b).norm() <= 1e-3 * b.norm()) for a, b in pairs)

    want, got = run(ann), run(fx.Interpreter(ann, graph=graph).run)
    if not alike(got, want) and alike(run(ann), want):  # the latter is not so where it draws random numbers
        raise ValueError(
            "convert: ann must compute what torch.fx traces of it, got other outputs (a tensor written in place under "
            "another name, as in y = x; x += z, or a context such as autocast in a forward?)"
        )


def as_dropout(node: fx.Node) -> tuple[float, bool]:
    """The probability of a function of dropout, and whether it drops."""
    given = inspect.signature(F.dropout).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    return given.arguments["p"], bool(given.arguments["training"])


def dropout_of(node: fx.Node) -> nn.Module | None:
    """The module that a function of dropout is, where it has the mode of the ANN."""
    follows = node.target in DROPOUTS and node.meta["drops"] == (False, True)
    return DROPOUTS[node.target](as_dropout(node)[0]) if follows else None


def asks_for_size(node: fx.Node) -> bool:
    """Whether a node asks for nothing but sizes."""
    return node.target in ("size", len) or (node.target is getattr and node.args[1] == "shape")


def word_of(target: Any) -> str:
    """The name of a function, method or module."""
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def scope_of(node: fx.Node, ann: nn.Module) -> str:
    """The module whose forward does what a node does."""
    stack = node.meta.get("nn_module_stack") or {}
    return (list(stack)[-1] if stack else "") or type(ann).__name__


def leading_to(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """These nodes and all that they depend on."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def kind_of(module: nn.Module) -> type[nn.Module]:
    """Its class; that which it had before its parameters were parametrized."""
    return parametrize.type_before_parametrizations(module)


def parametrized(module: Any) -> list[tuple[str, Any]]:
    """The names of its tensors that have parametrizations, with these."""
    return list(module.parametrizations.items()) if parametrize.is_parametrized(module) else []
