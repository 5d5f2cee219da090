"""What forward of an ANN does differently in training."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import TreeSpec

aten = torch.ops.aten
_RANDOM = torch.Tag.nondeterministic_seeded


@dataclass
class Training:
    """What forward does differently in training. Dropout and batch norm count as the same."""

    notes: tuple[str, ...] = ()
    """What is random in training alone, and left out; in words."""
    outputs: fx.Graph | None = None
    """The graph in training, where forward returns more than in eval mode; else None."""
    out_spec: TreeSpec | None = None


class Differs(ValueError):
    """forward computes something else in training."""


def as_in_eval(graph: fx.Graph) -> None:
    """Write the calls of a graph in training as eval mode has them: batch norm, dropout and recurrent layers."""
    for node in graph.nodes:
        if node.target is aten.batch_norm.default and node.args[3] is not None:
            node.args = (*node.args[:5], False, *node.args[6:])
        elif node.target in (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default):
            node.args = (*node.args[:2], False)
        elif node.target in _TRAIN_FLAG:
            flag = _TRAIN_FLAG[node.target]
            node.args = (*node.args[:flag], False, *node.args[flag + 1 :])
        elif node.target is aten.instance_norm.default and node.args[3] is not None:
            node.args = (*node.args[:5], False, *node.args[6:])
        elif node.target is aten.scaled_dot_product_attention.default:
            args = [*node.args]
            if len(args) > 4:
                args[4] = 0.0
            node.args = tuple(args)
            node.kwargs = {key: 0.0 if key == "dropout_p" else x for key, x in node.kwargs.items()}


_TRAIN_FLAG = {aten.lstm.input: 6, aten.gru.input: 6, aten.rnn_tanh.input: 6, aten.rnn_relu.input: 6}


def compared(ours: fx.Graph, theirs: fx.Graph, spec: TreeSpec, spec_in_training: TreeSpec, drawn: bool) -> Training:
    """Compare the graphs in eval mode and in training.

    Args:
        ours: the graph in eval mode.
        theirs: the graph in training, with batch norm and dropout as in eval mode.
        spec: the structure of the outputs in eval mode.
        spec_in_training: the structure of the outputs in training.
        drawn: whether forward drew numbers from Python's ``random`` in training.

    Raises:
        Differs: forward computes something else in training that is not random.
    """
    same = spec == spec_in_training
    if same and _described(ours) == _described(theirs):
        return Training()
    found = found_in(theirs, ours)
    if found is not None:
        return Training(outputs=theirs, out_spec=spec_in_training)
    places = list(dict.fromkeys(_place(node) for node in theirs.nodes if is_random(node)))
    before = {_place(node) for node in ours.nodes if is_random(node)}
    places = [place for place in places if place not in before]
    if not places and drawn:
        places = ["forward, which draws from Python's random"]
    if not places:
        raise Differs(f"it computes something else in training than in eval mode{_first(ours, theirs)}")
    notes = [f"random in training alone, and left out: {', '.join(places[:6])}"]
    if not same:
        notes.append("outputs of training alone are left out: they depend on what is random")
    return Training(notes=tuple(notes))


def is_random(node: fx.Node) -> bool:
    """Whether a call draws random numbers."""
    return _RANDOM in getattr(node.target, "tags", ()) and node.target not in (
        aten.dropout.default,
        aten.feature_dropout.default,
        aten.alpha_dropout.default,
        aten.scaled_dot_product_attention.default,
        *_TRAIN_FLAG,
    )


def _place(node: fx.Node) -> str:
    stack = [*(node.meta.get("nn_module_stack") or {}).values()]
    path = stack[-1][0] if stack else ""
    return path or "forward"


def _first(ours: fx.Graph, theirs: fx.Graph) -> str:
    for one, other in zip(ours.nodes, theirs.nodes, strict=False):
        if one.target != other.target or one.op != other.op:
            if other.op == "call_function":
                return f": there, {getattr(other.target, '__name__', other.target)} in {_place(other)}"
            break
    return ""


def _described(graph: fx.Graph) -> list[str]:
    order: dict[fx.Node, int] = {}
    lines = []
    for node in graph.nodes:
        lines.append(operation(node, order))
        order[node] = len(order)
    return lines


def operation(node: fx.Node, order: dict[fx.Node, int]) -> str:
    """Return what a node does, by the positions of its inputs."""
    if node.op == "output":
        return "output"
    arguments: Any = fx.node.map_arg((node.args, node.kwargs), lambda x: f"%{order.get(x)}")
    return f"{node.op} {node.target} {arguments}"


def found_in(larger: fx.Graph, smaller: fx.Graph) -> dict[fx.Node, fx.Node] | None:
    """Find a graph within one that computes more.

    Returns:
        The node of ``larger`` for each node of ``smaller`` but its output, in the same order; None if one is missing.
    """
    order = {node: i for i, node in enumerate(larger.nodes)}
    alike = defaultdict(list)
    for node in larger.nodes:
        alike[operation(node, order)].append(node)
    found: dict[fx.Node, fx.Node] = {}
    positions: dict[fx.Node, int] = {}
    taken: set[fx.Node] = set()
    for node in smaller.nodes:
        if node.op == "output":
            break
        candidates = alike[operation(node, positions)]
        theirs = next((x for x in candidates if x not in taken), None)
        if theirs is None:
            return None
        taken.add(theirs)
        found[node], positions[node] = theirs, order[theirs]
    return found
