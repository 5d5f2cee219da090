"""Outputs that forward returns in training alone, such as the logits of auxiliary heads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from .aliases import sharing, writes

_BOTH = "returns both"
"""In the meta of an output node."""


def found_in(
    training: fx.Graph, evaluated: fx.Graph, operation: Callable[[fx.Node, dict[fx.Node, int]], Any]
) -> dict[fx.Node, fx.Node] | None:
    """Find a graph within one that computes more.

    Args:
        training: the larger graph.
        evaluated: the smaller graph.
        operation: returns what a node does, by the positions of its inputs.

    Returns:
        The node of ``training`` for each node of ``evaluated`` but its output, in the same order; None if one is
        missing.
    """
    order = {node: i for i, node in enumerate(training.nodes)}
    alike = defaultdict(list)
    for node in training.nodes:
        alike[str(operation(node, order))].append(node)
    found: dict[fx.Node, fx.Node] = {}
    positions: dict[fx.Node, int] = {}
    for node in evaluated.nodes:
        if node.op == "output":
            break
        candidates = alike[str(operation(node, positions))]
        last = max(positions.values(), default=-1)
        theirs = next((x for x in candidates if order[x] > last), None)
        if theirs is None:
            return None
        found[node], positions[node] = theirs, order[theirs]
    return found


def writes_to(part: set[fx.Node], graph: fx.Graph, root: nn.Module) -> bool:
    """Whether a node outside ``part`` of a graph writes in place to what a node of it returns."""
    rest = [node for node in graph.nodes if node not in part]
    written = [(node, node.args[0]) for node in rest if writes(root, node) and isinstance(node.args[0], fx.Node)]
    return any(not part.isdisjoint(sharing(root, x, node, {*graph.nodes})) for node, x in written)


def return_both(graph: fx.Graph, in_eval: Any) -> None:
    """Let a graph return what forward returns in eval mode, beside what it returns in training."""
    output = graph.output_node()
    output.args = ((in_eval, output.args[0]),)
    output.meta[_BOTH] = True


def returns_both(node: fx.Node) -> bool:
    """Whether a node is the output of such a graph."""
    return _BOTH in node.meta


def split(snn: fx.GraphModule) -> fx.GraphModule | None:
    """Leave in a graph that returns both what leads to the first result, and return a module for the second one.

    The two modules hold the same modules. Return None if the graph returns one result.
    """
    output = snn.graph.output_node()
    if not returns_both(output):
        return None
    in_training = fx.GraphModule(snn, _returning(snn.graph, 1), "SpikingTwinInTraining")
    snn.graph = _returning(snn.graph, 0)
    for module in (snn, in_training):
        module.graph.eliminate_dead_code()
        module.recompile()
    return in_training


def _returning(graph: fx.Graph, number: int) -> fx.Graph:
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    results: Any = part.graph_copy(graph, copies)
    part.output(results[number])
    return part
