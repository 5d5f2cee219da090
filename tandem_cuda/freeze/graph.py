"""The graph of a frozen network: its nodes, and the structure of its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..nn.frozen import FrozenLayer, State
from ..nn.sizes import ANY, REAL, SPIKES, Value

INPUT = "<input>"
"""The name by which nodes refer to the network's only input."""

NetworkState = dict[str, State]
"""The state of every layer that has one, by name."""


class Node(NamedTuple):
    """A layer in the graph of a network."""

    name: str
    layer: FrozenLayer
    inputs: tuple[str, ...]
    """Names of earlier nodes or of inputs of the network."""


def mapped(output: Any, f: Callable[[str], Any]) -> Any:
    """Apply a function to all names in the structure of an output."""
    if isinstance(output, str):
        return f(output)
    ((form, parts),) = output.items()
    if form == "dict":
        return {form: {key: mapped(part, f) for key, part in parts.items()}}
    return {form: [mapped(part, f) for part in parts]}


def names_in(output: Any) -> list[str]:
    """Return the names of nodes in the structure of an output; raise a ValueError if it is not a valid structure."""
    if isinstance(output, str):
        return [output]
    if isinstance(output, dict) and len(output) == 1:
        ((form, parts),) = output.items()
        if form == "dict" and isinstance(parts, dict) and parts and all(isinstance(key, str) for key in parts):
            return [name for part in parts.values() for name in names_in(part)]
        if form in ("tuple", "list") and isinstance(parts, list) and parts:
            return [name for part in parts for name in names_in(part)]
    raise ValueError(f"FrozenNetwork: output must be the name of a node, or a tuple, list or dict, got {output!r}")


def passed(arguments: Any) -> list[str]:
    """Return the names of inputs in the structure of a call's arguments; raise a ValueError if it is not valid."""
    if isinstance(arguments, str):
        return [arguments]
    if isinstance(arguments, dict) and len(arguments) == 1:
        ((form, parts),) = arguments.items()
        if form == "constant" and (parts is None or isinstance(parts, (bool, int, float, str))):
            return []
        if form == "dict" and isinstance(parts, dict) and all(isinstance(key, str) for key in parts):
            return [name for part in parts.values() for name in passed(part)]
        if form in ("tuple", "list") and isinstance(parts, list):
            return [name for part in parts for name in passed(part)]
    raise ValueError(f"FrozenNetwork: arguments must be a tuple, list or dict of names, got {arguments!r}")


def taken(arguments: Any, x: Any) -> dict[str, Any]:
    """Return the inputs in the arguments of a call, by name.

    Raises:
        TypeError: the arguments have another structure.
        ValueError: an argument that is no input has another value.
    """
    if isinstance(arguments, str):
        return {arguments: x}
    ((form, parts),) = arguments.items()
    if form == "constant":
        if x != parts:
            raise ValueError(f"FrozenNetwork: arguments must have {parts!r} as when it was frozen, got {x!r}")
        return {}
    if form == "dict":
        if not isinstance(x, dict) or x.keys() != parts.keys():
            got = f"a dict with {', '.join(map(str, x))}" if isinstance(x, dict) else type(x).__name__
            raise TypeError(f"FrozenNetwork: input must be a dict with {', '.join(parts)}, got {got}")
        pairs = [(part, x[key]) for key, part in parts.items()]
    else:
        if not isinstance(x, (tuple, list)) or len(x) != len(parts):
            got = f"{len(x)}" if isinstance(x, (tuple, list)) else type(x).__name__
            raise TypeError(f"FrozenNetwork: inputs must be {len(parts)}, got {got}")
        pairs = list(zip(parts, x, strict=True))
    return {name: value for part, inner in pairs for name, value in taken(part, inner).items()}


def returned(output: Any, values: Mapping[str, Any]) -> Any:
    """Return the network's output, built from the values of its nodes."""
    if isinstance(output, str):
        return values[output]
    ((form, parts),) = output.items()
    if form == "dict":
        return {key: returned(part, values) for key, part in parts.items()}
    built = [returned(part, values) for part in parts]
    return tuple(built) if form == "tuple" else built


def input_kinds(nodes: Sequence[Node], inputs: Sequence[str], default: str) -> dict[str, str]:
    """Return the kind of each input of the network, found from the layers that read it."""
    wanted: dict[str, str] = {}
    for node in reversed(nodes):
        kind = node.layer.takes()
        if kind == ANY:  # such a layer's input is of the same kind as its output
            kind = wanted.get(node.name, ANY)
        if kind != ANY:
            wanted |= dict.fromkeys(node.inputs, kind)
    return {name: wanted[name] if wanted.get(name) in (REAL, SPIKES) else default for name in inputs}


def output_value(op: str, node: Node, values: Mapping[str, Value]) -> Value:
    """Return what is known about a node's output; raise a ValueError that names the node if its inputs do not fit."""
    try:
        return node.layer.output(*(values[source] for source in node.inputs))
    except ValueError as error:
        raise ValueError(f"{op}: {node.layer.kind} {node.name!r}: {error}") from error


def needed(nodes: Sequence[Node], outputs: Sequence[str], *, later: bool = False) -> list[Node]:
    """Return the nodes that the outputs depend on: in the first chunk or, with ``later``, in all later chunks."""
    used, kept = {*outputs}, []
    for node in reversed(nodes):
        if node.name in used:
            kept.append(node)
            if not (later and node.layer.resumes):
                used.update(node.inputs)
    return kept[::-1]


def check_finite(node: Node) -> None:
    """Raise a ValueError if a tensor of the layer is not finite."""
    for name, tensor in node.layer.tensors().items():
        right = ~tensor.isnan() if node.layer.is_constant else tensor.isfinite()
        if not tensor.is_meta and not right.all():
            raise ValueError(
                f"FrozenNetwork: {node.layer.kind} {node.name!r}: {name} must be finite, got {tensor[~right][0].item()}"
            )


def float_like(nodes: Sequence[Node]) -> Tensor:
    """Return a tensor with the dtype and on the device of the network: a weight, unless there is none."""
    tensors = [x for node in nodes if not node.layer.is_constant for x in node.layer.tensors().values()]
    return next((x for x in tensors if x.is_floating_point()), torch.empty(0))
