"""What forward of an ANN does differently in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import TreeSpec

from .nodes import leading_to, word_of

aten = torch.ops.aten
_RANDOM = torch.Tag.nondeterministic_seeded


@dataclass
class Training:
    """What forward does differently in training. Dropout and batch norm count as the same."""

    notes: tuple[str, ...] = ()
    """What is random in training alone, and left out; in words."""
    out_spec: TreeSpec | None = None
    """The structure of the outputs in training, where it is another one than in eval mode; else None."""


class Differs(ValueError):
    """forward computes something else in training."""


def as_in_eval(graph: fx.Graph) -> None:
    """Write the calls of a graph in training as eval mode has them: batch norm, dropout and recurrent layers.

    Dropout that drops nothing in training gets the rate 0.
    """
    for node in graph.nodes:
        flag = _TRAIN_FLAG.get(node.target)
        if node.target in _DROPOUTS:
            x, p, train = node.args
            node.args = (x, p if train else 0.0, False)
        elif flag is not None and (node.target not in _NORMS or node.args[3] is not None):
            node.args = (*node.args[:flag], False, *node.args[flag + 1 :])
        elif node.target is aten.scaled_dot_product_attention.default:
            node.args = (*node.args[:4], *(0.0 for _ in node.args[4:5]), *node.args[5:])
            node.kwargs = {key: 0.0 if key == "dropout_p" else x for key, x in node.kwargs.items()}


_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
_NORMS = (aten.batch_norm.default, aten.instance_norm.default)
_RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
_TRAIN_FLAG = {**dict.fromkeys(_NORMS, 5), **dict.fromkeys(_RECURRENT, 6)}
"""The place of the argument that says whether a call trains; of norms without running statistics, it stays."""


def compared(ours: fx.Graph, theirs: fx.Graph, spec: TreeSpec, spec_in_training: TreeSpec, drawn: bool) -> Training:
    """Compare the graphs in eval mode and in training. Add outputs of training alone to the graph in eval mode.

    Dropout in the graph in eval mode gets the rate that it has in training.

    Args:
        ours: the graph in eval mode.
        theirs: the graph in training, with batch norm and dropout as in eval mode.
        spec: the structure of the outputs in eval mode.
        spec_in_training: the structure of the outputs in training.
        drawn: whether forward drew numbers from Python's ``random`` in training.

    Raises:
        Differs: forward computes something else in training that is not random.
    """
    numbers: dict[str, int] = {}  # of each operation; calls that do the same have the same number
    ours_of: dict[int, fx.Node] = {}
    number: dict[fx.Node, int] = {}
    drops_of: dict[int, list[fx.Node]] = {}  # dropout has the number of its input
    for node in ours.nodes:
        if node.target in _DROPOUTS:
            number[node] = number[node.args[0]]
            drops_of.setdefault(number[node], []).append(node)
        else:
            number[node] = numbers.setdefault(operation(node, number), len(numbers))
            ours_of.setdefault(number[node], node)
    found: dict[fx.Node, fx.Node] = {}
    missing: list[fx.Node] = []
    noise: set[fx.Node] = set()  # what depends on random numbers and sizes alone
    places: dict[str, None] = {}  # where values meet noise
    met: set[fx.Node] = set()  # values that have met noise
    scaled: set[fx.Node] = set()  # values that are divided by the share of samples that stay, before they meet noise
    spread: set[fx.Node] = set()  # noise times what training alone computes, as a standard deviation
    for node in theirs.nodes:
        if node.op == "output":
            break
        if node.target in _DROPOUTS:
            number[node] = number[node.args[0]]
            if drops_of.get(number[node]):
                found[node] = dropout = drops_of[number[node]].pop(0)
                dropout.args = (dropout.args[0], node.args[1], dropout.args[2])
            else:
                missing.append(node)
            continue
        number[node] = numbers.setdefault(operation(node, number), len(numbers))
        if number[node] in ours_of:
            found[node] = ours_of[number[node]]
        elif _makes_noise(node, noise):
            noise.add(node)
        elif (
            (source := _meets(node, noise, found, scaled)) is not None
            or (source := _share_of(node, met)) is not None
            or (source := _mean_of(node, spread, found)) is not None
        ):
            number[node], found[node] = number[source], found[source]
            met.add(node)
            places[_place(node)] = None
        else:
            missing.append(node)
            if not noise.isdisjoint(_tensors(node)):
                spread.add(node)
    dropped = [
        node
        for node in missing
        if node.target in _DROPOUTS and node.args[1] and any(user in found for user in node.users)
    ]
    notes = [f"random in training alone, and left out: {_place(node)}" for node in dropped]
    if places:
        notes.append(f"random in training alone, and left out: {', '.join([*places][:6])}")
    if drawn:
        notes.append("random in training alone, and left out: forward draws from Python's random")
    returned: Any = ours.output_node().args[0]
    returned_in_training: Any = theirs.output_node().args[0]
    (in_eval,), (in_training,) = returned, returned_in_training
    alike = spec == spec_in_training
    if alike and all(number.get(x, x) == number.get(y, y) for x, y in zip(in_training, in_eval, strict=True)):
        return Training(notes=tuple(notes))
    needed = leading_to(x for x in in_training if isinstance(x, fx.Node))
    unknown = [node for node in missing if node in needed and node not in scaled]
    mixed = [_place(node) for node in unknown if not noise.isdisjoint(node.all_input_nodes)]
    if drawn and not mixed:
        mixed = ["forward, which draws from Python's random"]
    first = next((node for node in unknown if isinstance(node.meta.get("val"), torch.Tensor)), None)
    sure = first is not None and noise.isdisjoint(first.all_input_nodes) and not drawn  # it is not random
    if mixed and not (alike and sure):  # a form of randomness that the comparison does not know
        notes.append(f"random in training alone, and left out with all that depends on it: {', '.join(mixed[:6])}")
        if not alike:
            notes.append("outputs of training alone are left out: they depend on what is random")
        return Training(notes=tuple(notes))
    if alike:
        what = "" if first is None else f": there, {word_of(first.target)} in {_place(first)}"
        raise Differs(f"it computes something else in training than in eval mode{what}")
    output = ours.output_node()
    with ours.inserting_before(output):
        for node in missing:
            if node in needed:
                found[node] = ours.node_copy(node, found.__getitem__)
                found[node].meta = dict(node.meta)
    output.args = ((in_eval, tuple(found[x] if isinstance(x, fx.Node) else x for x in in_training)),)
    return Training(notes=tuple(notes), out_spec=spec_in_training)


def _makes_noise(node: fx.Node, noise: set[fx.Node]) -> bool:
    """Whether a value depends on random numbers, constants and sizes alone."""
    if is_random(node) and not _tensors(node):
        return True
    if node.target in _OF_SIZES:
        return True
    tensors = _tensors(node)
    return bool(tensors) and all(x in noise for x in tensors)


def _meets(node: fx.Node, noise: set[fx.Node], found: dict[fx.Node, fx.Node], scaled: set[fx.Node]) -> fx.Node | None:
    """Return the value that a call multiplies by noise, or chooses by it; None for all other calls."""
    values = [x for x in _tensors(node) if x not in noise]
    if len(values) != 1 or len(_tensors(node)) == len(values):
        return None
    (x,) = values
    if x not in found and x.target in (aten.div.Tensor, aten.mul.Tensor, aten.div.Scalar, aten.mul.Scalar):
        inner = _tensors(x)
        if len(inner) == 1 and inner[0] in found:  # divided by the share of samples that stay
            scaled.add(x)
            x = inner[0]
    same = "val" in node.meta and "val" in x.meta and str(node.meta["val"].shape) == str(x.meta["val"].shape)
    return x if x in found and same else None


def _share_of(node: fx.Node, met: set[fx.Node]) -> fx.Node | None:
    """Return the value that has met noise and that a call divides by the share of samples that stay; else None."""
    if node.target not in (aten.div.Tensor, aten.div.Scalar):
        return None
    x, share = node.args[:2]
    return x if isinstance(x, fx.Node) and x in met and isinstance(share, float) and 0 < share < 1 else None


def _mean_of(node: fx.Node, spread: set[fx.Node], found: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """Return the value to which a call adds noise of its own spread; else None."""
    if node.target not in (aten.add.Tensor, aten.sub.Tensor):
        return None
    known = [x for x in _tensors(node) if x in found]
    return known[0] if len(known) == 1 and len(_tensors(node)) == 2 and not spread.isdisjoint(node.args) else None


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [x for x in node.all_input_nodes if isinstance(x.meta.get("val"), torch.Tensor)]


_OF_SIZES = {
    aten.new_empty.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
    aten.empty_like.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
    aten.rand_like.default, aten.randn_like.default, aten.zeros.default, aten.ones.default, aten.full.default,
    aten.empty.memory_format,
}  # fmt: skip
"""Calls whose result has the sizes of a tensor, but not its values."""


def is_random(node: fx.Node) -> bool:
    """Whether a call draws random numbers."""
    return _RANDOM in getattr(node.target, "tags", ()) and node.target not in (
        *_DROPOUTS,
        aten.scaled_dot_product_attention.default,
        *_RECURRENT,
    )


def _place(node: fx.Node) -> str:
    stack = [*(node.meta.get("nn_module_stack") or {}).values()]
    path = stack[-1][0] if stack else ""
    return path or "forward"


def operation(node: fx.Node, order: dict[fx.Node, int]) -> str:
    """Return what a node does, by the positions of its inputs; arguments that have their defaults are left out."""
    args, kwargs = node.args, dict(node.kwargs)
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema.arguments
        kwargs = dict(zip((a.name for a in schema), args, strict=False)) | kwargs
        defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
        args = ()
        kwargs = {name: x for name, x in kwargs.items() if isinstance(x, fx.Node) or x != defaults.get(name, schema)}
    arguments: Any = fx.node.map_arg((args, kwargs), lambda x: f"%{order.get(x)}")
    return f"{node.op} {node.target} {arguments}"
