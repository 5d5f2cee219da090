"""freeze: a trained network as constants, run as a whole, in chunks of time, or until it is sure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import keystr, tree_leaves_with_path

from . import anytime, artefact
from .convert import TandemNetwork, flattened_to
from .nn.encode import FrozenEncode
from .nn.frozen import ANY, ENCODED, FORMS, LOADERS, REAL, SPIKES, FrozenLayer, Span, State, Value
from .ops import checks
from .spike_train import SpikeTrain

INPUT = "<input>"
"""The name of the network's input among those of its nodes."""

NetworkState = dict[str, State]
"""State of every layer that carries one, by name."""


class Node(NamedTuple):
    """A layer in the graph of a network."""

    name: str
    layer: FrozenLayer
    inputs: tuple[str, ...]
    """Names of nodes, or INPUT."""


def freeze(model: nn.Module) -> FrozenNetwork:
    """Turn a trained network into constants: batch norm folded, weights packed, no ANN, no gradients, no modes.

    The frozen network computes what ``model.eval()`` computes under ``torch.no_grad()``, to the bit, and shares no
    memory with it.

    Args:
        model: what :func:`tandem_cuda.convert` returns; nn.Sequential, nested or not; or a torch.fx.GraphModule that
            calls modules and ``flatten`` alone. Of Encode, tandem layers, TandemAdd, pooling of spikes, nn.Flatten,
            Decode and nn.Linear; dropout and nn.Identity leave no trace. One such layer alone will do.

    Raises:
        TypeError: ``model`` is no nn.Module.
        ValueError: modules that cannot be frozen, all of them named; a batch norm without statistics or affine map; a
            layer whose weights or statistics are NaN or infinite; layers that do not fit each other.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"freeze: model must be an nn.Module, got {type(model).__name__}")
    refused: list[str] = []
    calls, result = _calls(model, refused)
    for name, module, _ in calls:
        if _type(module) not in FORMS:
            refused.append(f"{name or 'model'} ({type(module).__name__})")
    if refused:
        known = ", ".join(sorted(kind.__name__ for kind in FORMS))
        raise ValueError(f"freeze: model must consist of {known}, got {', '.join(refused)}")

    nodes: list[Node] = []
    renamed, values = {INPUT: INPUT}, {INPUT: Value()}
    for name, module, inputs in calls:
        sources = tuple(renamed[i] for i in inputs)
        form = FORMS[_type(module)](module, any(values[i].kind == ENCODED for i in sources))
        if form is None:
            renamed[name] = sources[0]
            continue
        renamed[name] = name
        nodes.append(Node(name, form, sources))
        values[name] = _output("freeze", nodes[-1], values)
    return FrozenNetwork(nodes, renamed[result])


Call = tuple[str, nn.Module, tuple[str, ...]]


def _type(module: nn.Module) -> type[nn.Module]:
    return nn.utils.parametrize.type_before_parametrizations(module)


def _calls(model: nn.Module, refused: list[str]) -> tuple[list[Call], str]:
    """The layers that a model calls, in order, with the names of their inputs; and the name of its output."""
    if isinstance(model, TandemNetwork):
        model = model.snn
    if isinstance(model, fx.GraphModule):
        return _graph_calls(model, refused)
    calls: list[Call] = []
    last = INPUT
    for name, module in _chain("", model):
        calls.append((name, module, (last,)))
        last = name
    return calls, last


def _chain(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if _type(module) is nn.Sequential:
        for child, submodule in module._modules.items():  # a module that is there twice runs twice
            assert submodule is not None
            yield from _chain(f"{name}.{child}" if name else child, submodule)
    else:
        yield name or type(module).__name__, module


def _graph_calls(model: fx.GraphModule, refused: list[str]) -> tuple[list[Call], str]:
    calls: list[Call] = []
    names: dict[fx.Node, str] = {}
    result = INPUT
    for node in model.graph.nodes:
        if node.op == "placeholder" and INPUT not in names.values():
            names[node] = INPUT
        elif node.op == "output" and isinstance(node.args[0], fx.Node):
            result = names.get(node.args[0], INPUT)
        elif node.op == "call_module" and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args):
            last = INPUT if not node.args else names.get(node.args[0], INPUT)
            inputs = tuple(names.get(argument, INPUT) for argument in node.args)
            for name, module in _chain(node.name, model.get_submodule(str(node.target))):
                calls.append((name, module, inputs))
                inputs, last = (name,), name
            names[node] = last
        elif (flatten := _flattening(node)) is not None:
            calls.append((node.name, flatten, (names.get(node.args[0], INPUT),)))
            names[node] = node.name
        else:
            refused.append(f"{node.name} ({node.op} {node.target})")
    return calls, result


def _flattening(node: fx.Node) -> nn.Module | None:
    """What a node does that flattens all but the batch; None where it does something else."""
    if node.op == "call_method" and node.target == "flatten" and not node.kwargs and len(node.args) == 3:
        return nn.Flatten(*node.args[1:])  # type: ignore[arg-type]
    return nn.Flatten() if node.target is flattened_to else None


def _input_kind(nodes: Sequence[Node], default: str) -> str:
    """The kind of value that the network takes, by what stands behind its input."""
    wanted: dict[str, str] = {}
    for node in reversed(nodes):
        kind = node.layer.takes()
        if kind == ANY:  # its output is of the kind of its input
            kind = wanted.get(node.name, ANY)
        if kind != ANY:
            wanted |= dict.fromkeys(node.inputs, kind)
    kind = wanted.get(INPUT, ANY)
    return kind if kind in (REAL, SPIKES) else default


def _output(op: str, node: Node, values: Mapping[str, Value]) -> Value:
    """What is known of a node's output; ValueError, naming the node, where its inputs cannot be its layer's."""
    try:
        return node.layer.output(*(values[source] for source in node.inputs))
    except ValueError as error:
        raise ValueError(f"{op}: {node.layer.kind} {node.name!r}: {error}") from error


def _used(nodes: Sequence[Node], output: str) -> list[Node]:
    """Those that the output depends on."""
    used, kept = {output}, []
    for node in reversed(nodes):
        if node.name in used:
            used.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _check_finite(node: Node) -> None:
    for name, tensor in node.layer.tensors().items():
        if not tensor.is_meta and not tensor.isfinite().all():
            raise ValueError(
                f"FrozenNetwork: {node.layer.kind} {node.name!r}: {name} must be finite, got "
                f"{tensor[~tensor.isfinite()][0].item()}"
            )


class FrozenNetwork(nn.Module):
    """What :func:`freeze` returns: layers without parameters, and how they are connected.

    Args:
        nodes: in order of execution. Those that the output does not depend on are left out.
        output: the name of the node whose output is the network's.

    Shape:
        Tensor [N, ...] for a network that begins with Encode, else SpikeTrain [N, ...] of any T -> what the last
        layer returns, [N, K] of a read-out.

    Raises:
        TypeError: the input is neither.
        ValueError: names that occur twice, or are used before they are there; several Encode of different T; layers
            whose tensors are not finite or whose inputs cannot be what the layers before put out.
    """

    def __init__(self, nodes: Sequence[Node], output: str) -> None:
        super().__init__()
        steps = {node.layer.time_steps for node in nodes if isinstance(node.layer, FrozenEncode)}
        if len(steps) > 1:
            raise ValueError(f"FrozenNetwork: every Encode must have the same time_steps, got {sorted(steps)}")
        self.kind = _input_kind(nodes, SPIKES if not steps else REAL)
        values = {INPUT: Value(self.kind, source=INPUT)}
        for node in nodes:
            if node.name in values:
                raise ValueError(f"FrozenNetwork: names of nodes must differ, got {node.name!r} twice")
            unknown = [source for source in node.inputs if source not in values]
            if unknown or not node.inputs:
                raise ValueError(
                    f"FrozenNetwork: inputs of {node.name!r} must be the network's or nodes before it, "
                    f"got {', '.join(map(repr, unknown)) or 'none'}"
                )
            _check_finite(node)
            values[node.name] = _output("FrozenNetwork", node, values)
        if output not in values or output == INPUT:
            raise ValueError(f"FrozenNetwork: output must be the name of a node, got {output!r}")
        nodes = _used(nodes, output)
        self.names = [node.name for node in nodes]
        self.inputs = [node.inputs for node in nodes]
        self.output = output
        self.layers = nn.ModuleList(node.layer for node in nodes)
        last = {source: i for i, node in enumerate(nodes) for source in node.inputs}
        self.done: list[list[str]] = [[] for _ in nodes]
        """What is not needed behind each of the nodes, so that its memory may go."""
        for source, i in last.items():
            if source != output:
                self.done[i].append(source)
        self.steady = all(layer.mode == "constant" for layer in self.layers if isinstance(layer, FrozenEncode))
        self.time_steps: int | None = steps.pop() if steps else None
        """T of its Encode; None where spike trains bring their own."""

    @property
    def nodes(self) -> list[Node]:
        """The layers with their names and inputs, in order of execution."""
        layers = [layer for layer in self.layers if isinstance(layer, FrozenLayer)]
        return [Node(*node) for node in zip(self.names, layers, self.inputs, strict=True)]

    def forward(self, x: Tensor | SpikeTrain) -> Any:
        total = self._total(x)
        return self.advance(x, {}, Span(total, 0, total))[0]

    def _total(self, x: Any) -> int:
        if self.time_steps is not None:
            checks.check_tensor("FrozenNetwork", "input", x)
            return self.time_steps
        if not isinstance(x, SpikeTrain):
            raise TypeError(
                f"FrozenNetwork: input must be a SpikeTrain (the network has no Encode), got {type(x).__name__}"
            )
        return x.time_steps

    @torch.no_grad()
    def advance(self, x: Tensor | SpikeTrain, state: NetworkState, span: Span) -> tuple[Any, NetworkState]:
        """Run some of the time steps; :meth:`stream` keeps account of them for you.

        Args:
            x: the real input, the same at every call; or the spikes of these ``span.now`` time steps.
            state: what the call before returned; {} at first.
            span: the time steps.

        Returns:
            ``(output, state)``. Decode returns what counts are estimated to come to at the end, where
            ``state`` is {}.
        """
        values: dict[str, Any] = {INPUT: x}
        after: NetworkState = {}
        for name, layer, inputs, done in zip(self.names, self.layers, self.inputs, self.done, strict=True):
            values[name], carried = layer(span, state.get(name), *(values[source] for source in inputs))
            if carried is not None:
                after[name] = carried
            for source in done:
                del values[source]
        return values[self.output], after

    def stream(self, x: Tensor | SpikeTrain | None = None, *, time_steps: int | None = None) -> Stream:
        """Begin a run over chunks of time.

        Args:
            x: all of the input, as of a call of the network. Left out where spikes arrive chunk by chunk.
            time_steps: T, over which layers spread their bias; given just where ``x`` is not.

        Raises:
            TypeError: an argument of the wrong type, or both or none of them.
            ValueError: ``time_steps`` < 1.
        """
        if x is not None:
            if time_steps is not None:
                raise TypeError(f"stream: time_steps must be left out where x is given, got {time_steps}")
            return Stream(self, x, self._total(x))
        if self.time_steps is not None:
            raise TypeError("stream: x must be given to a network with Encode, got None")
        checks.check_time_steps("stream", time_steps)
        assert time_steps is not None
        return Stream(self, None, time_steps)

    def predict(
        self, x: Tensor | SpikeTrain, exit_confidence: float = 0.9, *, chunk: int = 1, min_steps: int = 1
    ) -> anytime.Prediction:
        """Classify, each sample for as many time steps as it takes; :func:`tandem_cuda.anytime.predict`."""
        return anytime.predict(self, x, exit_confidence, chunk=chunk, min_steps=min_steps)

    def accuracy_curve(
        self,
        batches: Iterable[tuple[Tensor | SpikeTrain, Tensor]],
        exit_confidences: Sequence[float] = anytime.EXIT_CONFIDENCES,
        *,
        chunk: int = 1,
        min_steps: int = 1,
    ) -> anytime.AccuracyCurve:
        """Accuracy and cost against time and exit confidence; :func:`tandem_cuda.anytime.accuracy_curve`."""
        return anytime.accuracy_curve(self, batches, exit_confidences, chunk=chunk, min_steps=min_steps)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the network to one file; see :mod:`tandem_cuda.artefact`.

        Raises:
            ImportError: safetensors is missing.
            OSError: the file, which the message names, cannot be written, as where the disk is full; an earlier file of
                that name is then as it was, and nothing else is left behind.
        """
        description = {
            "nodes": [
                {"name": name, "kind": layer.kind, "inputs": list(inputs), "settings": layer.settings()}
                for name, layer, inputs in self.nodes
            ],
            "output": self.output,
        }
        tensors = {f"{name}/{key}": tensor for name, layer, _ in self.nodes for key, tensor in layer.tensors().items()}
        artefact.write(path, description, tensors)

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: torch.device | str = "cpu") -> FrozenNetwork:
        """Read a network that :meth:`save` wrote.

        Args:
            path: of the file.
            device: where the network is to run.

        Raises:
            ImportError: safetensors is missing.
            OSError: the file cannot be read.
            ValueError: it is damaged, of another kind, of a newer format, or does not describe a network; the message
                says which.
        """
        description, tensors = artefact.read(path)
        try:
            network = _network(description, tensors)
        except (TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
            raise ValueError(f"FrozenNetwork.load: {path} does not describe a network: {error}") from error
        return network.to(device)


def _network(description: Any, tensors: Mapping[str, Tensor]) -> FrozenNetwork:
    """Make a network of a description, every part of which is checked."""
    if not isinstance(description, dict) or description.keys() != {"nodes", "output"}:
        raise ValueError("the description must hold nodes and output")
    if not isinstance(description["nodes"], list):
        raise ValueError("nodes must be a list")
    owners: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, tensor_name = key.rpartition("/")
        owners.setdefault(name, {})[tensor_name] = tensor
    nodes = []
    for node in description["nodes"]:
        if not isinstance(node, dict) or node.keys() != {"name", "kind", "inputs", "settings"}:
            raise ValueError(f"a node must hold name, kind, inputs and settings, got {node!r}")
        name, inputs, settings = node["name"], node["inputs"], node["settings"]
        _check_numbers(name, settings)
        if not isinstance(name, str) or not isinstance(settings, dict):
            raise ValueError(f"a node's name must be a string and its settings an object, got {node!r}")
        if not isinstance(inputs, list) or not all(isinstance(i, str) for i in inputs):
            raise ValueError(f"inputs of {name!r} must be a list of names, got {inputs!r}")
        loader = _loader(node["kind"])
        try:
            layer = loader(settings, owners.pop(name, {}))
        except (TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
            raise ValueError(f"node {name!r}: {error}") from error
        nodes.append(Node(name, layer, tuple(inputs)))
    if owners:
        raise ValueError(f"tensors must belong to nodes, got one of {min(owners)!r}")
    return FrozenNetwork(nodes, description["output"])


def _check_numbers(name: str, settings: Any) -> None:
    """JSON has no infinity, but 1e999."""
    for path, value in tree_leaves_with_path(settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"node {name!r}: setting {keystr(path)} must be finite, got {value}")


def _loader(kind: Any) -> Callable[[dict[str, Any], Mapping[str, Tensor]], FrozenLayer]:
    if not isinstance(kind, str) or kind not in LOADERS:
        raise ValueError(f"kind must be one of {', '.join(sorted(LOADERS))}, got {kind!r}")
    return LOADERS[kind]


class Stream:
    """A run of a frozen network over chunks of time; what :meth:`FrozenNetwork.stream` returns.

    After the last of the T steps the output is, to the bit, that of the network on all of them at once. Where a
    network ends in a spiking layer, each output is the train of its chunk.
    """

    def __init__(self, network: FrozenNetwork, x: Tensor | SpikeTrain | None, time_steps: int) -> None:
        self.network = network
        self.time_steps = time_steps
        """T."""
        self.done = 0
        """Time steps that are over."""
        self.state: NetworkState = {}
        """What layers carry: membrane potentials and counts, [N, ...]."""
        self.x = x
        """The input, where all of it was given."""
        self._samples = None if x is None else len(x)

    @property
    def remaining(self) -> int:
        """Time steps that are to come."""
        return self.time_steps - self.done

    def advance(self, chunk: int | SpikeTrain = 1) -> Any:
        """Run the next time steps.

        Args:
            chunk: how many; or their spikes, [N, ...] of that many steps, where the stream began without input.

        Returns:
            The output after these steps: the read-out of the counts so far, times T / (steps so far) unless the input
            was an impulse.

        Raises:
            TypeError: a chunk of the wrong type.
            ValueError: more steps than remain, or another number of samples than before.
        """
        if self.x is None and not isinstance(chunk, SpikeTrain):
            raise TypeError(f"advance: chunk must be a SpikeTrain, got {type(chunk).__name__}")
        if self.x is not None and (isinstance(chunk, bool) or not isinstance(chunk, int)):
            raise TypeError(f"advance: chunk must be a number of time steps, got {type(chunk).__name__}")
        now = chunk.time_steps if isinstance(chunk, SpikeTrain) else chunk
        if not 1 <= now <= self.remaining:
            raise ValueError(f"advance: chunk must be of 1 to {self.remaining} time steps (the rest), got {now}")
        x = chunk if isinstance(chunk, SpikeTrain) else self.x
        assert x is not None
        if self._samples not in (None, len(x)):
            raise ValueError(f"advance: chunk must hold {self._samples} samples, got {len(x)}")
        if isinstance(self.x, SpikeTrain):
            x = self.x.window(self.done, self.done + now)
        output, self.state = self.network.advance(
            x, self.state, Span(now, self.done, self.time_steps, self.network.steady)
        )
        self.done += now
        self._samples = len(x)
        return output

    def select(self, samples: Tensor) -> None:
        """Go on with some of the samples.

        Args:
            samples: their indices, int64 [M].

        Raises:
            TypeError: no such tensor.
            IndexError: an index of no sample.
        """
        checks.check_tensor("select", "samples", samples)
        if samples.dtype != torch.int64 or samples.dim() != 1:
            raise TypeError(f"select: samples must be int64 [M], got {samples.dtype} {list(samples.shape)}")
        self.state = {name: tuple(x[samples] for x in carried) for name, carried in self.state.items()}
        if isinstance(self.x, SpikeTrain):
            self.x = self.x.rearranged(lambda values: values[:, samples])
        elif self.x is not None:
            self.x = self.x[samples]
        if self._samples is not None:
            self._samples = len(samples)
