"""from_nir: build a network from a NIR graph."""

from __future__ import annotations

import functools
import keyword
import math
import operator
import os
import re
from collections import Counter, OrderedDict
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from ..neuron import IF, Neuron
from ..nn import Decode, Encode, TandemAdd
from .nir_file import ENCODINGS, NO_SUCH_LAYER, RESET, check_dt, nir, read, unsupported
from .nir_nodes import (
    NEURONS,
    POOLINGS,
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
_TYPES = (nir.Input, nir.Output, nir.Flatten, *NEURONS, *WEIGHTS)


def from_nir(
    source: nir.NIRGraph | str | os.PathLike[str],
    *,
    time_steps: int | None = None,
    encoding: str | None = None,
    dt: float | None = None,
    reset: str | None = None,
) -> nn.Module:
    """Build a network from a NIR graph, as docs/exchange.md describes. This is the inverse of :func:`to_nir`.

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
        A network in eval mode, in the dtype of the weights (float64 if any are float64): an nn.Sequential, or a
        torch.fx.GraphModule if the graph has branches. Its layers are named after the graph's weight nodes. If the
        graph continues after the last neurons, ``Decode`` and layers of torch follow.

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
        >>> torch.allclose(from_nir(to_nir(net, x))(x), net(x))
        True
    """
    graph = read(source)
    if graph.metadata is not None and not isinstance(graph.metadata, dict):
        raise ValueError(f"from_nir: the graph's metadata must be a dict, got {type(graph.metadata).__name__}")
    given = {"time_steps": time_steps, "encoding": encoding, "reset": reset}
    stated = {**(graph.metadata or {}), **{name: value for name, value in given.items() if value is not None}}
    if dt is None:
        try:
            dt = float(stated.get("dt", 1e-4))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"from_nir: dt in the graph's metadata must be a number, got {stated['dt']!r}") from error
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


def _check_reset(reset: Any) -> None:
    if reset is None:
        raise ValueError(
            "from_nir: reset must be given, since the graph's metadata does not state it, got None. NIR does not "
            "record the reset that a network was trained with; neurons here subtract the threshold. Pass "
            'reset="subtract" if the network was trained that way, too. A network trained with a reset to v_reset has '
            "other spike counts here and needs further training"
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
    weights: NirWeights | None = None
    """The weights of a current that has no neurons yet; ``call`` and ``kind`` then describe the weights' input."""
    windows: int = 1
    """The number of channels of the module's output, side by side, that one channel of the node is the sum of."""


class _Import:
    """A network under construction."""

    def __init__(self, graph: nir.NIRGraph, steps: int, dt: float, encode: Encode | None) -> None:
        self.steps, self.dt = steps, dt
        self.problems: list[str] = []
        self.nodes = _checked_nodes(graph)
        self.sources = _sources(graph, self.nodes)
        self.readers: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, sources in self.sources.items():
            for source in sources:
                self.readers[source].append(name)
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.inputs: dict[str, tuple[str, ...]] = {}
        """For every module, the modules whose outputs it takes; "" is the network's input. Without a module: a sum."""
        self.first = "" if encode is None else self._called("encode", encode, "")
        self.kind = "spikes" if encode is None else "encoded"
        self.decoded: dict[str, str] = {}

    def network(self) -> nn.Module:
        order, result = self._order()
        self.spiking: set[str] = set()
        """The nodes in front of neurons."""
        for name in reversed(order):
            if isinstance(self.nodes[name], NEURONS) or name in self.spiking:
                self.spiking.update(self.sources[name])
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
            raise unsupported("from_nir", self.problems)
        dtypes = {x.dtype for module in self.modules.values() for x in module.parameters()}
        net = self._wired(values[result].call)
        return (net.double() if torch.float64 in dtypes else net).eval()

    def _what(self, name: str) -> str:
        return f"{name} ({type(self.nodes[name]).__name__})"

    # -- the order of the nodes

    def _order(self) -> tuple[list[str], str]:
        """Return the nodes between the input and the output in topological order, and the output."""
        inputs = [name for name, node in self.nodes.items() if isinstance(node, nir.Input)]
        outputs = [name for name, node in self.nodes.items() if isinstance(node, nir.Output)]
        outputs = outputs or [name for name in self.nodes if not self.readers[name]]  # old graphs have no Output node
        for what, names in (("Input", inputs), ("Output", outputs)):
            if len(names) != 1:
                self.problems.append(f"there must be one {what} node, got {len(names)}: {', '.join(names) or 'none'}")
        for name, node in self.nodes.items():
            if not isinstance(node, _TYPES):
                self.problems.append(f"{self._what(name)}: {NO_SUCH_LAYER}")
        if self.problems:
            raise unsupported("from_nir", self.problems)
        try:
            order = [*TopologicalSorter(self.sources).static_order()]
        except CycleError as error:
            circle = ", ".join(sorted({*error.args[1]}))
            raise unsupported("from_nir", [f"{circle}: on a cycle; recurrent networks are not supported"]) from error
        behind, before = {*inputs}, {*outputs}
        for name in order:
            behind.update([name] if behind.intersection(self.sources[name]) else [])
        for name in reversed(order):
            before.update(self.sources[name] if name in before else [])
        for name in self.nodes:
            if name not in behind & before:
                self.problems.append(f"{self._what(name)}: it must be on a path from {inputs[0]} to {outputs[0]}")
        if self.problems:
            raise unsupported("from_nir", self.problems)
        return order, outputs[0]

    # -- one node

    def _value(self, name: str, inputs: list[_NodeOutput]) -> _NodeOutput:
        node = self.nodes[name]
        if isinstance(node, nir.Input):
            if inputs:
                raise ValueError("it must not have inputs")
            return _NodeOutput(self.first, self.kind, declared_shape("input_type", getattr(node, "input_type", None)))
        if any(x.windows > 1 for x in inputs) and (name not in self.spiking or isinstance(node, (*NEURONS, *POOLINGS))):
            raise ValueError("pooling before it must be followed by neurons or by weights")
        if isinstance(node, NEURONS):
            return self._fired(name, node, inputs)
        if len(inputs) != 1 and (name in self.spiking or not inputs):
            raise ValueError(f"it must have one input, got {len(inputs)}: only neurons and read-outs may have several")
        for x in inputs:
            if x.weights is not None:
                raise ValueError(f"{x.weights.name} before it must be followed by neurons")
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
            shape = weights.out_shape(x.shape)
            if weights.pools is None or any(isinstance(self.nodes[reader], NEURONS) for reader in self.readers[name]):
                return x._replace(shape=shape, weights=weights.repeated(x.windows), windows=1)
            if x.kind != "spikes":
                raise ValueError("there must be neurons before it or after it")
            windows = weights.windows()
            return x._replace(call=self._called(weights.name, windows, x.call), shape=shape, windows=windows.size)
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
            return _NodeOutput(
                self._called(x.weights.name, x.weights.layer(neuron, gain, self.steps), x.call), "spikes", shape
            )
        return _NodeOutput(self._joined(name, neuron, gain, inputs), "spikes", shape)

    def _joined(self, name: str, neuron: Neuron, gain: float, inputs: list[_NodeOutput]) -> str:
        branches: list[nn.Module] = []
        for x in inputs:
            if x.kind == "encoded":
                raise ValueError("its inputs must be spikes, got real input: put weights and neurons in between")
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
            else:
                outputs[key] = functools.reduce(lambda x, y: graph.call_function(operator.add, (x, y)), parts)
        graph.output(outputs[result])
        return fx.GraphModule(root, graph, "NIRNetwork")


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
