"""Which nodes of an ANN's graph share memory, and which write to it in place."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Container

from torch import fx, nn

from .nodes import VIEWS, word_of

VIEW_FUNCTIONS = {
    *("view", "view_as", "reshape", "flatten", "unflatten", "contiguous", "transpose", "permute", "movedim", "narrow"),
    *("getitem", "chunk", "split", "squeeze", "unsqueeze", "expand", "expand_as", "detach", "select", "unbind", "t"),
    *("swapaxes", "swapdims", "moveaxis", "ravel", "tensor_split", "diagonal", "unfold", "getattr"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    *("float", "double", "to", "type"),
}
"""Functions and methods that may return the memory of their first argument."""
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow}


def writes(ann: nn.Module, node: fx.Node) -> bool:
    """Whether a node writes to its first argument."""
    if node.op == "call_module":
        return bool(getattr(ann.get_submodule(str(node.target)), "inplace", False))
    word = word_of(node.target)
    if node.target in _IN_PLACE or (word.endswith("_") and not word.endswith("__")):
        return True
    if not inspect.isfunction(node.target):
        return bool(node.kwargs.get("inplace"))
    return bool(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get("inplace"))


def _shares(ann: nn.Module, node: fx.Node) -> bool:
    """Whether a node may return the memory of its first argument."""
    if writes(ann, node):
        return True
    if node.op == "call_module":
        return isinstance(ann.get_submodule(str(node.target)), VIEWS)
    return word_of(node.target) in VIEW_FUNCTIONS


def sharing(ann: nn.Module, node: fx.Node, writer: fx.Node, seen: Container[fx.Node]) -> set[fx.Node]:
    """Return the nodes that may have the memory of a node, without what a writer returns and what follows that.

    Only nodes in ``seen`` are followed.
    """
    first = node
    while _shares(ann, first) and first.args and isinstance(first.args[0], fx.Node):
        first = first.args[0]
    found, waiting = {first}, [first]
    while waiting:
        for user in waiting.pop().users:
            if user is not writer and user not in found and user in seen and _shares(ann, user):
                found.add(user)
                waiting.append(user)
    return found
