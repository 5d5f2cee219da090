"""Find squeeze-and-excitation: the part of an ANN that computes factors of channels from a spike train."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .nodes import kind_of, module_of

PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_")
_SQUASHING_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax)
_SQUASHING = {
    *(torch.sigmoid, torch.sigmoid_, torch.softmax, F.sigmoid, F.hardsigmoid, F.softmax),
    *("sigmoid", "sigmoid_", "softmax", "hardsigmoid"),
}


def _squashes(node: fx.Node, ann: nn.Module) -> bool:
    """Whether the node's values are between 0 and 1."""
    if (module := module_of(ann, node)) is not None:
        kind = kind_of(module)
        # Other libraries have modules of their own with these names.
        return issubclass(kind, _SQUASHING_MODULES) or kind.__name__ in ("HardSigmoid", "HardSigmoidJit", "Sigmoid")
    return node.op in ("call_function", "call_method") and node.target in _SQUASHING


def gated(nodes: list[fx.Node], ann: nn.Module) -> dict[fx.Node, fx.Node]:
    """Return the nodes that only compute a gate, each with the product that applies it.

    A gate is a factor of a product that a sigmoid returns. A node that leads to the gate belongs to it if nothing else
    uses the node.
    """
    product_of: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node.target not in PRODUCTS or node.op not in ("call_function", "call_method"):
            continue
        for factor in node.all_input_nodes:
            if len(node.all_input_nodes) == 2 and len(factor.users) == 1 and _squashes(_source(factor), ann):
                _collect(factor, node, product_of)
                break
    return product_of


def _source(node: fx.Node) -> fx.Node:
    """Return the node whose values a chain of views shows."""
    views: set[Any] = {"view", "reshape", "unsqueeze", "expand", "expand_as", torch.reshape, torch.unsqueeze}
    views |= {"flatten", torch.flatten, "squeeze", torch.squeeze, operator.getitem}
    while node.target in views and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _collect(gate: fx.Node, product: fx.Node, product_of: dict[fx.Node, fx.Node]) -> None:
    waiting = [gate]
    while waiting:
        node = waiting.pop()
        if node.op in ("placeholder", "get_attr") or node in product_of:
            continue
        if node is gate or all(user in product_of and product_of[user] is product for user in node.users):
            product_of[node] = product
            waiting += node.all_input_nodes
