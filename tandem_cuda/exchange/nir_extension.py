"""What NIR has no words for: functions of real numbers, and currents that such a function multiplies.

Two types of nodes extend the format. NIR's own reader, and so every importer, refuses a file that has one. Their inputs
have an order, so each names the nodes that it reads. Both need the sums of their inputs over all T steps. A graph that
has any is run node by node: each node reads the values of all steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..freeze.functions import FrozenFunction
from ..freeze.plain import MODULES, FrozenModule
from ..neuron import Neuron
from ..nn import TandemGate as GateLayer
from ..nn.frozen import class_of
from ..nn.nir import Shape
from ..nn.sizes import REAL, Size, Value, check_count
from .nir_format import nir
from .nir_nodes import array_of

_NN = "torch.nn."
_MODULES = {_NN + kind.__name__: kind for kind in MODULES}


class _Node(nir.NIRNode):  # type: ignore[misc]  # nir has no types
    """A node with several inputs, in order."""

    def __post_init__(self) -> None:
        self.input_type, self.output_type = {"input": None}, {"output": np.asarray(self.shape)}

    def names(self) -> list[str]:
        """Return the names of the nodes that it reads; a ValueError begins with the field."""
        names = _of_json("inputs", self.inputs)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"inputs must be a list of names, got {self.inputs!r}")
        return names


@dataclass(eq=False)
class TandemFunction(_Node):
    """A function of real numbers: of the sums of its inputs over all steps. It puts out its value in the last step."""

    function: str
    """A module of torch.nn, or a function or method of Tensor, by its name in torch."""
    settings: str
    """JSON: the arguments of the module, or "args" and "kwargs" of the function."""
    inputs: str
    """JSON: the names of the nodes that it reads, in order."""
    tensors: dict[str, Any]
    """Parameters and statistics of the module, or constants of the function, by name."""
    shape: Any
    """The shape of its output."""


@dataclass(eq=False)
class TandemGate(_Node):
    """A current of g * c / T in each of the T steps, for the first input's count c and the sum g of the second one.

    With ``signed``, channels 2i and 2i + 1 are the positive and the negative part of channel i: c is their difference,
    and the currents come from g * c and from -g * c.
    """

    inputs: str
    signed: int
    shape: Any


_NODES = {"TandemFunction": TandemFunction, "TandemGate": TandemGate}


def _of_json(name: str, text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be JSON, got {text!r}") from error


# -- writing


def function_node(call: FrozenModule | FrozenFunction, inputs: Sequence[str], shape: Shape) -> TandemFunction:
    """Make the node of a call."""
    settings = dict(call.settings())
    name = settings.pop("function") if isinstance(call, FrozenFunction) else _NN + call.kind
    tensors = {key: array_of(x)[()] for key, x in call.tensors().items()}  # numbers: HDF5 does not compress them
    return TandemFunction(name, json.dumps(settings), json.dumps([*inputs]), tensors, np.array(shape))


def computed(call: Callable[..., Any], values: Sequence[Tensor]) -> Tensor:
    """Return the value of a call; raise a ValueError unless it is a Tensor [N, F, ...], alike for each sample."""
    y, more = call(*values), call(*(torch.cat([x, 2 * x + 1, -x - 1]) for x in values))
    if not isinstance(y, Tensor) or not y.is_floating_point() or y.dim() < 2 or len(y) != len(values[0]):
        got = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"its result must be real numbers [N, F, ...], got {got}")
    if more.shape[0] != 3 * len(y) or not torch.allclose(more[: len(y)], y, equal_nan=True):
        raise ValueError("its result for a sample must not depend on the other samples of a batch, but it does")
    return y


# -- reading


def graph_of(file: Any) -> Any:
    """Return the graph in an open HDF5 file, without NIR's type check."""
    data = nir.serialization.hdf2dict(file["node"])
    if "type_check" in data:
        raise ValueError("node must not hold type_check")
    nodes = data.get("nodes", {})
    own = {name: x for name, x in nodes.items() if isinstance(x, dict) and x.get("type") in _NODES}
    if own:
        data["nodes"] = {name: x for name, x in nodes.items() if name not in own}
    graph = nir.dict2NIRNode({**data, "type_check": False})
    for name, fields in own.items():
        named = {key: value for key, value in fields.items() if key != "type"}
        graph.nodes[name] = _NODES[fields["type"]](**named)
    return graph


class Gate(NamedTuple):
    """Currents that a gate multiplies, which stand for the weights in front of neurons."""

    name: str
    """The name of the layer."""
    signed: bool
    more: tuple[str, ...]
    """The module that computes the gate, the second input."""

    def layer(self, neuron: Neuron, gain: float, steps: int) -> GateLayer:
        """Make the layer."""
        if gain != 1:
            raise ValueError(f"its r * dt must be 1 behind a TandemGate, got {gain}")
        return GateLayer(neuron, self.signed)


def function_of(node: TandemFunction, shapes: Sequence[Shape]) -> nn.Module | FrozenFunction:
    """Return the module or the call of a node whose inputs have these shapes, without the batch.

    Raises:
        ValueError: it is no function that :func:`tandem_cuda.freeze` takes, or does not fit the shapes.
    """
    settings = _of_json("settings", node.settings)
    if not isinstance(settings, dict) or not isinstance(node.tensors, Mapping):
        raise ValueError(f"settings and tensors must be objects, got {settings!r} and {node.tensors!r}")
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in node.tensors.items()}
    made: nn.Module | FrozenFunction
    call: Callable[..., Any]
    if isinstance(node.function, str) and node.function in _MODULES:
        call = made = FrozenModule.load(_MODULES[node.function], settings, tensors).trainable()
    elif isinstance(node.function, str) and "." in node.function:
        made = FrozenFunction.load({**settings, "function": node.function}, tensors)
        made.output(*(Value(REAL, tuple(Size(n, True) for n in shape)) for shape in shapes))
        call = made.call
    else:
        raise ValueError(f"function must be a function of torch that freeze takes, got {node.function!r}")
    for shape in shapes:
        check_count("inputs", shape)
    dtype = next((x.dtype for x in tensors.values() if x.is_floating_point()), torch.float32)
    with torch.no_grad():
        y = computed(call, [torch.zeros(1, *shape, dtype=dtype) for shape in shapes])
    declared = np.asarray(node.shape).tolist()
    if list(y.shape[1:]) != declared:
        raise ValueError(f"shape must be that of its output, {list(y.shape[1:])}, got {declared}")
    return made


def is_function(module: nn.Module) -> bool:
    """Return whether a module is a function of real numbers."""
    return class_of(module) in MODULES
