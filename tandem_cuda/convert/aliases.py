"""Which nodes of a model's graph share memory, and which write to it in place: for convert and for freeze."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Container

from torch import fx, nn

from .nodes import IDLE, closure, module_of, word_of

VIEWS = (*IDLE, nn.Flatten, nn.Unflatten)
"""Modules whose output may share memory with their input."""
VIEW_FUNCTIONS = {
    *("view", "view_as", "reshape", "flatten", "unflatten", "contiguous", "transpose", "permute", "movedim", "narrow"),
    *("getitem", "chunk", "split", "squeeze", "unsqueeze", "expand", "expand_as", "detach", "select", "unbind", "t"),
    *("swapaxes", "swapdims", "moveaxis", "ravel", "tensor_split", "diagonal", "unfold", "getattr"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    *("float", "double", "to", "type"),
}
"""Functions and methods that may return the memory of their first argument."""
_IN_PLACE = {
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow),
    *(operator.imatmul, operator.setitem),
    *("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__ipow__"),
}


def module_writes(module: nn.Module, training: bool = True) -> bool:
    """Whether a module writes to its input. Dropout does so only in training."""
    return bool(getattr(module, "inplace", False)) and (training or not isinstance(module, IDLE))


def writes(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node writes to its first argument."""
    if (module := module_of(root, node)) is not None:
        return module_writes(module)
    word = word_of(node.target)
    if node.target in _IN_PLACE or (word.endswith("_") and not word.endswith("__")):
        return True
    if not inspect.isfunction(node.target):
        return bool(node.kwargs.get("inplace"))
    return bool(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get("inplace"))


def _is_view(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node may return the memory of its first argument unchanged."""
    module = module_of(root, node)
    if module is None:
        return word_of(node.target) in VIEW_FUNCTIONS
    parts = module.modules() if isinstance(module, nn.Sequential) else [module]
    return all(isinstance(part, VIEWS) for part in parts if not isinstance(part, nn.Sequential))


def sharing(root: nn.Module, node: fx.Node, writer: fx.Node, known: Container[fx.Node]) -> set[fx.Node]:
    """Return the nodes that may share a node's memory, without ``writer`` and nodes that share it only through that.

    Only nodes in ``known`` are followed.
    """

    def shares(x: fx.Node) -> bool:
        return _is_view(root, x) or writes(root, x)

    first = node
    while shares(first) and first.args and isinstance(first.args[0], fx.Node):
        first = first.args[0]
    return closure(
        [first], lambda x: [user for user in x.users if user is not writer and user in known and shares(user)]
    )


def writes_alone(root: nn.Module, node: fx.Node) -> bool:
    """Whether nothing else reads the memory of the first argument, to which a node writes."""
    x = node.args[0]
    while isinstance(x, fx.Node) and x.op != "placeholder":
        if len(x.users) > 1 or x.op == "get_attr":
            return False
        if not _is_view(root, x):
            return True
        x = x.args[0]
    return not isinstance(x, fx.Node) or len(x.users) == 1
