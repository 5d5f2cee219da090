"""from_nir: build a network from a NIR graph."""

from __future__ import annotations

import functools
import keyword
import math
import operator
import os
import re
from collections import Counter, OrderedDict
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from ..convert.nodes import closure
from ..freeze.functions import FUNCTIONS, FrozenFunction, decoded_argument
from ..neuron import IF, Neuron
from ..nn import Decode, Encode, SpikeRearrange, TandemAdd
from .nir_extension import Gate, TandemFunction, TandemGate, function_of
from .nir_file import read as read_graph
from .nir_format import ENCODINGS, RESET, check_dt, nir, unsupported
from .nir_maximum import Found, found_in, read
from .nir_nodes import (
    NEURONS,
    WEIGHTS,
    NirWeights,
    PartialShape,
    agrees,
    declared_shape,
    field_of,
    listed,
    neuron_of,
    whole,
)

_LARGEST_COUNT = 2**24  # the largest count up to which float32 is exact
_TYPES = (nir.Input, nir.Output, nir.Flatten, TandemFunction, TandemGate, *NEURONS, *WEIGHTS)


def from_nir(
    source: nir.NIRGraph | str | os.PathLike[str],
    *,
    time_steps: int | None = None,
    encoding: str | None = None,
    dt: float | None = None,
    reset: str | None = None,
) -> nn.Module:
    """Build a network from a NIR graph. This is the inverse of :func:`to_nir`, whose docstring describes the mapping.

    For a graph made by ``to_nir``, the network's spikes are bit-identical to the model's with batch norm folded
    into the weights. A read-out's bias may differ in the last digit if T is not a power of two. (Without gradients, a
    layer with batch norm applies its gain to the sums instead. This rounds differently: a neuron whose potential is
    within rounding error of the threshold may then spike one step earlier or later.)

    Args:
        source: a graph, or the path of a NIR file.
        time_steps: T; by default taken from the graph's metadata.
        encoding: "constant" or "impulse" put ``Encode(time_steps, encoding)`` before the first layer; with "spikes" the
            network takes spike trains. By default taken from the graph's metadata.
        dt: time step in seconds; by default taken from the graph's metadata, or else 1e-4.
        reset: "subtract" confirms that the network was trained with a reset that subtracts the threshold. By default
            taken from the graph's metadata, where ``to_nir`` writes it. NIR has no field for the reset, and defines
            that IF and LIF jump to v_reset; a network trained that way has other spike counts here.

    Returns:
        A network in eval mode, in the dtype of the weights (float64 if any are float64). It is an nn.Sequential of
        ``TandemConv1d``, ``TandemConv2d``, ``TandemLinear`` and nn.Flatten, named after the graph's weight nodes. If
        the graph continues after the last neurons, ``Decode`` and nn.Linear, nn.Conv1d, nn.Conv2d or nn.AvgPool2d
        follow. A graph with branches becomes a torch.fx.GraphModule, which may also contain ``TandemAdd``, and sums of
        read-outs. SumPool2d and AvgPool2d before neurons become a depthwise ``TandemConv2d``, and each maximum of two
        that ``to_nir`` writes a ``SpikingMaxPool2d`` of two pixels.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the file is not a NIR file; ``time_steps``, ``encoding`` or ``reset`` is out of range, or neither
            given nor in the metadata; or the graph is malformed or has nodes without a counterpart in this package (the
            message names all of them).
        OSError: the file cannot be read; a FileNotFoundError if it does not exist.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> from tandem_cuda.exchange import from_nir, to_nir
        >>> x = torch.rand(1, 784)
        >>> imported = from_nir(to_nir(net, x)).eval()
        >>> torch.allclose(imported(x), net(x))
        True
    """
    graph = read_graph(source)
    if graph.metadata is not None and not isinstance(graph.metadata, dict):
        raise ValueError(f"from_nir: the graph's metadata must be a dict, got {type(graph.metadata).__name__}")
    given = {"time_steps": time_steps, "encoding": encoding, "reset": reset}
    stated = {**(graph.metadata or {}), **{name: value for name, value in given.items() if value is not None}}
    if dt is None:
        dt = _stated_dt(stated)
    check_dt("from_nir", dt)
    for name in ("time_steps", "encoding"):
        if name not in stated:
            raise ValueError(f"from_nir: {name} must be given, since the graph's metadata does not state it, got None")
    steps, mode = whole("from_nir: time_steps", stated["time_steps"], 1), stated["encoding"]
    if steps > _LARGEST_COUNT:
        raise ValueError(f"from_nir: time_steps must be at most {_LARGEST_COUNT}, got {steps}")
    if not isinstance(mode, str) or mode not in ENCODINGS:
        raise ValueError(f"from_nir: encoding must be one of {', '.join(ENCODINGS)}, got {mode!r}")
    _check_reset(stated.get("reset"))
    encode = Encode(steps, "constant" if mode == "spikes" else mode)  # checks the steps
    return _Import(graph, steps, dt, None if mode == "spikes" else encode).network()


def _stated_dt(metadata: dict[str, Any]) -> float:
    try:
        return float(metadata.get("dt", 1e-4))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"from_nir: dt in the graph's metadata must be a number, got {metadata['dt']!r}") from error


def _check_reset(reset: Any) -> None:
    if reset is None:
        raise ValueError(
            "from_nir: reset must be given, since the graph's metadata does not state it, got None. NIR does not "
            "record the reset that a network was trained with; neurons here subtract the threshold. Pass "
            'reset="subtract" if the network was trained that way, too (true for files that early versions of to_nir '
            "wrote). A network trained with a reset to v_reset has other spike counts here and needs further training"
        )
    if not isinstance(reset, str) or reset != RESET:
        raise ValueError(f"from_nir: reset must be {RESET!r}, the only one that tandem layers have, got {reset!r}")


class _NodeOutput(NamedTuple):
    """The output of a node."""

    call: str
    """The module that computes it; "" for the network's input."""
    kind: str
    """"encoded", "spikes", or, after the last neurons, "real"."""
    shape: PartialShape
    weights: NirWeights | Gate | None = None
    """The weights of a current that has no neurons yet; ``call`` and ``kind`` then describe the weights' input."""


class _Import:
    """A network under construction."""

    def __init__(self, graph: nir.NIRGraph, steps: int, dt: float, encode: Encode | None) -> None:
        self.steps, self.dt = steps, dt
        self.problems: list[str] = []
        self.nodes = _checked_nodes(graph)
        self.sources = _sources(graph, self.nodes)
        self.maxima = self._taken_together()
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.inputs: dict[str, tuple[str, ...]] = {}
        """For every module, the modules whose outputs it takes; "" is the network's input. Without a module: a sum."""
        self.first = "" if encode is None else self._called("encode", encode, "")
        self.kind = "spikes" if encode is None else "encoded"
        self.decoded: dict[str, str] = {}
        self.functions: dict[str, FrozenFunction] = {}
        """Calls of functions, which are no modules."""

    def _taken_together(self) -> dict[str, tuple[Found, dict[str, nir.NIRNode]]]:
        """Replace the nodes of each maximum of two by one node; return the nodes, by the name of the new one."""
        found = {}
        for name, parts in found_in(self.nodes, self.sources, self._readers()).items():
            found[name] = parts, {part: self.nodes[part] for part in (*parts[:-1], name)}
            self.sources[name] = [parts.source]
        inner = {part for parts, _ in found.values() for part in parts[:-1]}
        self.nodes = {name: node for name, node in self.nodes.items() if name not in inner}
        self.sources = {name: sources for name, sources in self.sources.items() if name not in inner}
        return found

    def _readers(self) -> dict[str, list[str]]:
        """Return the nodes that read each node."""
        readers: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, sources in self.sources.items():
            for source in sources:
                readers[source].append(name)
        return readers

    def network(self) -> nn.Module:
        order, result = self._order()
        self.spiking = self._in_front_of_neurons(order)
        values: dict[str, _NodeOutput] = {}
        for name in order:
            # Nodes after a refused one cannot be checked.
            if all(source in values for source in self.sources[name]):
                try:
                    values[name] = self._value(name, [values[source] for source in self.sources[name]])
                except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
                    behind = f" (after {', '.join(self.sources[name])})" if self.sources[name] else ""
                    self.problems.append(f"{self._what(name)}: {error}{behind}")
        if self.problems:
            raise unsupported("from_nir: source", self.problems)
        dtypes = {x.dtype for module in self.modules.values() for x in module.parameters()}
        net = self._wired(values[result].call)
        return (net.double() if torch.float64 in dtypes else net).eval()

    def _what(self, name: str) -> str:
        return f"{name} ({type(self.nodes[name]).__name__})"

    # -- the order of the nodes

    def _order(self) -> tuple[list[str], str]:
        """Return the nodes between the input and the output in topological order, and the output."""
        following = self._readers()
        inputs = [name for name, node in self.nodes.items() if isinstance(node, nir.Input)]
        outputs = [name for name, node in self.nodes.items() if isinstance(node, nir.Output)]
        outputs = outputs or [name for name in self.nodes if not following[name]]  # old graphs have no Output node
        for what, names in (("Input", inputs), ("Output", outputs)):
            if len(names) != 1:
                self.problems.append(f"there must be one {what} node, got {len(names)}: {', '.join(names) or 'none'}")
        for name, node in self.nodes.items():
            if not isinstance(node, _TYPES) and name not in self.maxima:
                self.problems.append(f"{self._what(name)}: this package has no such layer")
        if self.problems:
            raise unsupported("from_nir: source", self.problems)
        behind, before = closure(inputs, following.__getitem__), closure(outputs, self.sources.__getitem__)
        between = behind & before
        for name in self.nodes:
            if name not in between:
                self.problems.append(f"{self._what(name)}: it must be on a path from {inputs[0]} to {outputs[0]}")
        sorter = TopologicalSorter(self.sources)
        order: list[str] = []
        with suppress(CycleError):  # it still returns the nodes before the cycle
            sorter.prepare()
        while ready := sorter.get_ready():
            order += ready
            sorter.done(*ready)
        circle = sorted(self.nodes.keys() - set(order))
        if circle:
            self.problems.append(f"{', '.join(circle)}: on a cycle or after one; recurrent networks are not supported")
        if self.problems:
            raise unsupported("from_nir: source", self.problems)
        return order, outputs[0]

    def _in_front_of_neurons(self, order: list[str]) -> set[str]:
        found: set[str] = set()
        for name in reversed(order):
            behind = isinstance(self.nodes[name], (TandemFunction, TandemGate))
            if name in self.maxima or isinstance(self.nodes[name], NEURONS) or (name in found and not behind):
                found.update(self.sources[name])
        return found

    # -- one node

    def _value(self, name: str, inputs: list[_NodeOutput]) -> _NodeOutput:
        node = self.nodes[name]
        if isinstance(node, nir.Input):
            if inputs:
                raise ValueError("it must not have inputs")
            return _NodeOutput(self.first, self.kind, declared_shape("input_type", getattr(node, "input_type", None)))
        if isinstance(node, NEURONS):
            return self._fired(name, node, inputs)
        if isinstance(node, (TandemFunction, TandemGate)):
            return self._extended(name, node, dict(zip(self.sources[name], inputs, strict=True)))
        if len(inputs) != 1 and (name in self.spiking or not inputs):
            raise ValueError(f"it must have one input, got {len(inputs)}: only neurons and read-outs may have several")
        for x in inputs:
            if x.weights is not None:
                raise ValueError(f"{x.weights.name} before it must be followed by neurons")
        if name in self.maxima:
            return self._maximum(name, inputs[0])
        x = inputs[0] if len(inputs) == 1 else self._added(name, inputs)
        if isinstance(node, nir.Output):
            declared = declared_shape("output_type", getattr(node, "output_type", None))
            if not agrees(declared, x.shape):
                raise ValueError(f"it must have the shape of its input, {listed(x.shape)}, got {listed(declared)}")
            if x.kind == "encoded" or not x.call:
                raise ValueError("there must be neurons before it")
            return x
        if isinstance(node, nir.Flatten):
            return self._flattened(name, node, x)
        if name in self.spiking:
            weights = NirWeights.of(self._key(name), node, x.shape)
            return x._replace(shape=weights.out_shape(x.shape), weights=weights)
        return self._read_out(name, node, x)

    def _fired(self, name: str, node: Any, inputs: list[_NodeOutput]) -> _NodeOutput:
        """Make the tandem layer, or the TandemAdd, whose neurons a node describes."""
        neuron, gain, own = neuron_of(node, self.dt)
        shape = inputs[0].shape
        self._check_shapes(name, inputs)
        if shape is not None and None in shape and len(own) == len(shape) and agrees(shape, own):
            shape = own
        if math.prod(own) != 1 and not agrees(own, shape) and (shape is None or own != shape[:1]):
            raise ValueError(f"its parameters must have the shape of its input, {listed(shape)}, got {list(own)}")
        if len(inputs) == 1:
            (x,) = inputs
            if x.weights is None:
                raise ValueError("there must be weights before it")
            gate = x.weights if isinstance(x.weights, Gate) else None
            layer = x.weights.layer(neuron, gain, self.steps)
            call = self._called(x.weights.name, layer, x.call, *(() if gate is None else gate.more))
            if gate is not None and gate.signed:
                call = self._called(gate.name, SpikeRearrange("pairs", 0), call)
            return _NodeOutput(call, "spikes", shape)
        return _NodeOutput(self._joined(name, neuron, gain, inputs), "spikes", shape)

    def _joined(self, name: str, neuron: Neuron, gain: float, inputs: list[_NodeOutput]) -> str:
        branches: list[nn.Module] = []
        for x in inputs:
            if x.kind == "encoded":
                raise ValueError("its inputs must be spikes, got real input: put weights and neurons in between")
            if isinstance(x.weights, Gate):
                raise ValueError(f"neurons behind {x.weights.name} must have no other input")
            if x.weights is not None:
                branches.append(x.weights.layer(IF(), gain, self.steps))
            elif gain != 1:
                raise ValueError(f"its r * dt must be 1 if spikes enter without weights, got {gain}")
            elif x.shape is not None and len(x.shape) > 3:
                raise ValueError(f"spikes must be [N, F], [N, C, L] or [N, C, H, W] to be added, got {listed(x.shape)}")
            else:
                branches.append(nn.Identity())
        return self._called(
            self._key(name.removesuffix("_neurons")), TandemAdd(*branches, neuron=neuron), *(x.call for x in inputs)
        )

    def _extended(self, name: str, node: Any, inputs: dict[str, _NodeOutput]) -> _NodeOutput:
        """Make what a node that extends NIR stands for."""
        names = node.names()
        if not names or {*names} != inputs.keys():
            raise ValueError(f"inputs must name the nodes that it reads, {', '.join(inputs)}, got {node.inputs}")
        read, shapes = [inputs[source] for source in names], [_known(inputs[source].shape) for source in names]
        if any(x.weights is not None or x.kind == "encoded" for x in read):
            raise ValueError("its inputs must be spikes or functions of spikes")
        key, shape = self._key(name), declared_shape("shape", node.shape)
        if isinstance(node, TandemGate):
            x, gate, signed = read[0], read[-1], whole("signed", node.signed, 0) != 0
            kinds = [x.kind for x in read]
            if kinds != ["spikes", "real"] or shape != x.shape or (signed and shapes[0][0] % 2):
                got = ", ".join(f"{kind} {listed(shape)}" for kind, shape in zip(kinds, shapes, strict=True))
                raise ValueError(f"it must multiply spikes of its shape by a function of spikes, got {got}")
            return _NodeOutput(x.call, "spikes", shape, Gate(key.removesuffix("_product"), signed, (gate.call,)))
        made, calls = function_of(node, shapes), [self._decoded(x).call for x in read]
        if isinstance(made, FrozenFunction):
            self.functions[key], self.inputs[key] = made, tuple(calls)
        else:
            key = self._called(key, made, *calls)
        return _NodeOutput(key, "real", shape)

    def _maximum(self, name: str, x: _NodeOutput) -> _NodeOutput:
        """Make the max pooling of windows of two pixels."""
        if x.kind != "spikes":
            raise ValueError("there must be neurons before it")
        found, nodes = self.maxima[name]
        modules, shape = read(nodes, name, found, x.shape, self.dt, self.steps)
        for module in modules:
            x = x._replace(call=self._called(self._key(name), module, x.call))
        return x._replace(shape=shape)

    def _flattened(self, name: str, node: Any, x: _NodeOutput) -> _NodeOutput:
        (start,), (end,) = (field_of(node, dim, 1) for dim in ("start_dim", "end_dim"))
        shape = x.shape
        if shape is not None:
            dims = len(shape)
            if not (-dims <= start < dims and -dims <= end < dims and start % dims <= end % dims):
                raise ValueError(
                    f"start_dim and end_dim must be dimensions of {listed(shape)} without N, got {start}, {end}"
                )
            start, end = start % dims, end % dims
            middle = shape[start : end + 1]
            size = None if None in middle else math.prod(n for n in middle if n is not None)
            shape = (*shape[:start], size, *shape[end + 1 :])
        module = nn.Flatten(start + (start >= 0), end + (end >= 0))
        return x._replace(call=self._called(self._key(name), module, x.call), shape=shape)

    def _decoded(self, x: _NodeOutput) -> _NodeOutput:
        if x.kind == "encoded" or not x.call:
            raise ValueError("there must be neurons before it or after it")
        if x.kind == "spikes":
            if x.call not in self.decoded:
                self.decoded[x.call] = self._called(self._key("decode"), Decode(), x.call)
            x = x._replace(call=self.decoded[x.call], kind="real")
        return x

    def _added(self, name: str, inputs: list[_NodeOutput]) -> _NodeOutput:
        """Add decoded values."""
        self._check_shapes(name, inputs)
        key = self._key("sum")
        self.inputs[key] = tuple([self._decoded(x).call for x in inputs])
        return _NodeOutput(key, "real", inputs[0].shape)

    def _check_shapes(self, name: str, inputs: list[_NodeOutput]) -> None:
        if not all(agrees(x.shape, inputs[0].shape) for x in inputs):
            got = zip(self.sources[name], inputs, strict=True)
            shapes = ", ".join(f"{source} {listed(x.shape)}" for source, x in got)
            raise ValueError(f"its inputs must have one shape, got {shapes}")

    def _read_out(self, name: str, node: Any, x: _NodeOutput) -> _NodeOutput:
        """Make a layer that reads decoded spikes."""
        x = self._decoded(x)
        key = self._key(name)
        weights = NirWeights.of(key, node, x.shape)
        shape = weights.out_shape(x.shape)
        return x._replace(call=self._called(key, weights.read_out(self.steps), x.call), shape=shape)

    # -- the modules

    def _key(self, name: str) -> str:
        """Make a unique name for a module from the name of its node."""
        key = re.sub(r"\W", "_", name) or "node"
        while key in self.inputs or hasattr(_ANY_NETWORK, key) or keyword.iskeyword(key):
            key += "_"
        return key

    def _called(self, key: str, module: nn.Module, *inputs: str) -> str:
        key = self._key(key)  # again, since two nodes of neurons may share weights
        self.modules[key], self.inputs[key] = module, inputs
        return key

    def _wired(self, result: str) -> nn.Module:
        """Return an nn.Sequential if the modules form a chain, else a GraphModule."""
        keys = list(self.inputs)
        if (
            keys[-1] == result
            and self.modules.keys() == self.inputs.keys()
            and all(self.inputs[key] == (last,) for last, key in zip(["", *keys], keys, strict=False))
        ):
            return nn.Sequential(self.modules)
        graph = fx.Graph()
        outputs, root = {"": graph.placeholder("input")}, dict[str, Any](self.modules)
        for key in keys:
            parts = [outputs[x] for x in self.inputs[key]]
            if key in self.modules:
                outputs[key] = graph.call_module(key, tuple(parts))
            elif key in self.functions:
                outputs[key] = self._function_called(graph, root, key, parts)
            else:
                outputs[key] = functools.reduce(lambda x, y: graph.call_function(operator.add, (x, y)), parts)
        graph.output(outputs[result])
        return fx.GraphModule(root, graph, "NIRNetwork")

    def _function_called(self, graph: fx.Graph, root: dict[str, Any], key: str, parts: list[fx.Node]) -> fx.Node:
        """Add the call of a function to a graph, and its constants to the attributes of the network."""

        def constant(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            name = self._key(f"{key}_constant")
            self.inputs[name], root[name] = (), x
            return graph.get_attr(name)

        call = self.functions[key]
        args, kwargs = (
            decoded_argument(call.args, parts, call.tensors()),
            {name: decoded_argument(x, parts, call.tensors()) for name, x in call.kwargs.items()},
        )
        args, kwargs = tuple(map_aggregate(args, constant)), dict(map_aggregate(kwargs, constant))
        kind, _, method = call.function.partition(".")
        if kind == "Tensor":
            return graph.call_method(method, args, kwargs)
        return graph.call_function(FUNCTIONS[call.function], args, kwargs)


def _known(shape: PartialShape) -> tuple[int, ...]:
    """Return a shape; raise a ValueError if it is not known."""
    sizes = tuple(n for n in shape or () if n is not None)
    if len(sizes) != len(shape or (None,)):
        raise ValueError(f"the shapes of its inputs must be known, got {listed(shape)}")
    return sizes


_ANY_NETWORK = fx.GraphModule({}, fx.Graph())  # modules must not have the names of its attributes


def _checked_nodes(graph: nir.NIRGraph) -> dict[str, nir.NIRNode]:
    nodes = graph.nodes
    if not isinstance(nodes, dict) or not nodes:
        raise ValueError(f"from_nir: the graph's nodes must be a dict with entries, got {nodes!r}")
    for name, node in nodes.items():
        if not isinstance(name, str) or not isinstance(node, nir.NIRNode):
            raise ValueError(f"from_nir: nodes must map names to NIR nodes, got {name!r}: {type(node).__name__}")
    return nodes


def _sources(graph: nir.NIRGraph, nodes: dict[str, nir.NIRNode]) -> dict[str, list[str]]:
    """Return the sources of every node."""
    try:
        edges = [(source, target) for source, target in graph.edges]
    except (TypeError, ValueError) as error:
        raise ValueError(f"from_nir: the graph's edges must be pairs of names, got {graph.edges!r}") from error
    for edge in edges:
        for name in edge:
            if not isinstance(name, str) or name not in nodes:
                raise ValueError(f"from_nir: edges must connect nodes, got {edge}, but there is no node {name!r}")
    twice = [edge for edge, times in Counter(edges).items() if times > 1]
    if twice:
        raise ValueError(f"from_nir: edges must not occur twice, got {', '.join(map(str, twice))}")
    sources: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        sources[target].append(source)
    return sources
