"""freeze: a trained network as constants, run as a whole, in chunks of time, or until it is sure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import keystr, tree_leaves_with_path

from . import anytime, artefact
from .convert import TandemNetwork, flattened_to
from .nn.encode import FrozenEncode
from .nn.frozen import ANY, ENCODED, FORMS, LOADERS, REAL, SPIKES, FrozenLayer, Span, State, Value
from .nn.frozen_plain import VIEWS, frozen_call, is_softmax, writes, writes_alone, writes_in_place
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
        model: what :func:`tandem_cuda.convert` returns; nn.Sequential, nested or not; or a torch.fx.GraphModule. Of
            Encode, tandem layers, TandemAdd, pooling of spikes and Decode; in front of Encode and behind Decode of the
            modules and functions of plain PyTorch that :mod:`tandem_cuda.nn.frozen_plain` lists, between several inputs
            and outputs. Dropout and nn.Identity leave no trace. One such layer alone will do.

    Raises:
        TypeError: ``model`` is no nn.Module.
        ValueError: parts that cannot be frozen, all of them named; a batch norm without statistics or affine map; a
            layer whose weights or statistics are NaN or infinite; layers that do not fit each other.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"freeze: model must be an nn.Module, got {type(model).__name__}")
    calls = _calls(model.snn if isinstance(model, TandemNetwork) else model)
    refused = list(calls.refused)
    for name, module, _ in calls.layers:
        if not isinstance(module, FrozenLayer) and _type(module) not in FORMS:
            refused.append(f"{name or 'model'} ({type(module).__name__})")
    if refused:
        raise ValueError(
            "freeze: model must consist of tandem layers, of the modules and functions of plain PyTorch that "
            "docs/inference.md lists, and of modules that tandem_cuda.nn.frozen.register knows, "
            f"got {', '.join(refused)}"
        )
    nodes: list[Node] = []
    renamed, values = {name: name for name in calls.inputs}, {name: Value() for name in calls.inputs}
    for name, module, inputs in calls.layers:
        sources = tuple(renamed[i] for i in inputs)
        form = module
        if not isinstance(module, FrozenLayer):
            form = FORMS[_type(module)](module, any(values[i].kind == ENCODED for i in sources))
        if form is None:
            renamed[name] = sources[0]
            continue
        renamed[name] = name
        nodes.append(Node(name, form, sources))
        values[name] = _output("freeze", nodes[-1], values)
    return FrozenNetwork(nodes, _mapped(calls.output, renamed.__getitem__), calls.inputs)


class _Calls(NamedTuple):
    """What a model does."""

    layers: list[tuple[str, Any, tuple[str, ...]]]
    """In order: names, modules or frozen layers, and the names of their inputs."""
    output: Any
    """As of FrozenNetwork."""
    inputs: tuple[str, ...] = (INPUT,)
    refused: tuple[str, ...] = ()
    """What has no frozen form, and why."""


def _type(module: nn.Module) -> type[nn.Module]:
    return nn.utils.parametrize.type_before_parametrizations(module)


def _calls(model: nn.Module) -> _Calls:
    if isinstance(model, fx.GraphModule):
        return _GraphCalls(model).found()
    layers: list[tuple[str, Any, tuple[str, ...]]] = []
    last = INPUT
    for name, module in _chain("", model):
        layers.append((name, module, (last,)))
        last = name
    return _Calls(layers, last)


def _chain(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if _type(module) is nn.Sequential:
        for child, submodule in module._modules.items():  # a module that is there twice runs twice
            assert submodule is not None
            yield from _chain(f"{name}.{child}" if name else child, submodule)
    else:
        yield name or type(module).__name__, module


class _GraphCalls:
    """One pass over the graph of a model."""

    def __init__(self, model: fx.GraphModule) -> None:
        self.model = model
        self.layers: list[tuple[str, Any, tuple[str, ...]]] = []
        self.refused: list[str] = []
        placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
        placeholders = [node for node in placeholders if node.users or not node.args]  # else an argument with a default
        several = len(placeholders) > 1
        self.names = {node: f"<{node.name}>" if several else INPUT for node in placeholders}
        self.inputs = tuple(self.names.values())

    def found(self) -> _Calls:
        nodes = list(self.model.graph.nodes)
        (end,) = (node for node in nodes if node.op == "output")
        needed = {end}
        for node in reversed(nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        for node in nodes:
            if node.op not in ("placeholder", "output", "get_attr"):
                try:
                    if node in needed:
                        self._call(node)
                    elif writes(self.model, node):
                        raise ValueError("writes in place; use its result")
                except (TypeError, ValueError) as error:
                    self.names[node] = INPUT  # to go on, and name all of it
                    self.refused.append(f"{node.name} ({_target(node)}: {error})")
        output = self._structure(end.args[0])
        return _Calls(self.layers, output, self.inputs, tuple(self.refused))

    def _call(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self._module(node)
        elif (flatten := _flattening(node)) is not None:
            self._add(node, flatten, [node.args[0]])
        elif node.target in _DROPOUTS:
            if node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True):
                raise ValueError("is random as it was traced; use nn.Dropout, or trace the model in eval mode")
            self.names[node] = self.names[node.all_input_nodes[0]]
        else:
            self._add(node, *frozen_call(self.model, node))

    def _module(self, node: fx.Node) -> None:
        if node.kwargs or not node.args or not all(a in self.names for a in node.args):
            raise ValueError("has arguments beside the outputs of others")
        inputs, given = tuple(self.names[a] for a in node.args if isinstance(a, fx.Node)), True
        for name, module in _chain(node.name, self.model.get_submodule(str(node.target))):
            if given and writes_in_place(module) and not writes_alone(self.model, node):
                raise ValueError("writes in place into what is used elsewhere; set inplace=False")
            given = given and isinstance(module, VIEWS)
            self.layers.append((name, module, inputs))
            inputs = (name,)
        self.names[node] = inputs[0]

    def _add(self, node: fx.Node, layer: Any, inputs: Sequence[Any]) -> None:
        self.layers.append((node.name, layer, tuple(self.names[x] for x in inputs)))
        self.names[node] = node.name

    def _structure(self, value: Any) -> Any:
        if isinstance(value, fx.Node) and value in self.names:
            return self.names[value]
        if (type(value) is tuple or isinstance(value, list)) and value:
            return {"tuple" if type(value) is tuple else "list": [self._structure(x) for x in value]}
        if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
            return {"dict": {key: self._structure(x) for key, x in value.items()}}
        self.refused.append(f"output ({value!r} of type {type(value).__name__})")
        return INPUT


_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


def _target(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _flattening(node: fx.Node) -> nn.Module | None:
    """What a node does that flattens all but the batch; None where it does something else."""
    if node.op == "call_method" and node.target == "flatten" and not node.kwargs and len(node.args) == 3:
        return nn.Flatten(*node.args[1:])  # type: ignore[arg-type]
    return nn.Flatten() if node.target is flattened_to else None


def _mapped(output: Any, f: Callable[[str], Any]) -> Any:
    """The structure of an output with something in place of the names."""
    if isinstance(output, str):
        return f(output)
    ((form, parts),) = output.items()
    if form == "dict":
        return {form: {key: _mapped(part, f) for key, part in parts.items()}}
    return {form: [_mapped(part, f) for part in parts]}


def _names_in(output: Any) -> list[str]:
    """The names of nodes in the structure of an output; ValueError where it is none."""
    if isinstance(output, str):
        return [output]
    if isinstance(output, dict) and len(output) == 1:
        ((form, parts),) = output.items()
        if form == "dict" and isinstance(parts, dict) and parts and all(isinstance(key, str) for key in parts):
            return [name for part in parts.values() for name in _names_in(part)]
        if form in ("tuple", "list") and isinstance(parts, list) and parts:
            return [name for part in parts for name in _names_in(part)]
    raise ValueError(f"FrozenNetwork: output must be the name of a node, or a tuple, list or dict, got {output!r}")


def _built(output: Any, values: Mapping[str, Any]) -> Any:
    """What the network returns."""
    if isinstance(output, str):
        return values[output]
    ((form, parts),) = output.items()
    if form == "dict":
        return {key: _built(part, values) for key, part in parts.items()}
    built = [_built(part, values) for part in parts]
    return tuple(built) if form == "tuple" else built


def _input_kinds(nodes: Sequence[Node], inputs: Sequence[str], default: str) -> dict[str, str]:
    """The kind of value that each input of the network is, by what stands behind it."""
    wanted: dict[str, str] = {}
    for node in reversed(nodes):
        kind = node.layer.takes()
        if kind == ANY:  # its output is of the kind of its input
            kind = wanted.get(node.name, ANY)
        if kind != ANY:
            wanted |= dict.fromkeys(node.inputs, kind)
    return {name: wanted[name] if wanted.get(name) in (REAL, SPIKES) else default for name in inputs}


def _output(op: str, node: Node, values: Mapping[str, Value]) -> Value:
    """What is known of a node's output; ValueError, naming the node, where its inputs cannot be its layer's."""
    try:
        return node.layer.output(*(values[source] for source in node.inputs))
    except ValueError as error:
        raise ValueError(f"{op}: {node.layer.kind} {node.name!r}: {error}") from error


def _used(nodes: Sequence[Node], outputs: Sequence[str], *, later: bool = False) -> list[Node]:
    """Those that the outputs depend on; ``later`` where layers have a state."""
    used, kept = {*outputs}, []
    for node in reversed(nodes):
        if node.name in used:
            kept.append(node)
            if not (later and node.layer.resumes):
                used.update(node.inputs)
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
        output: the name of the node whose output is the network's; or {"tuple": [...]}, {"list": [...]} or
            {"dict": {...}} of such.
        inputs: the names of the network's inputs among those of the nodes.

    Shape:
        For each input a Tensor [N, ...], or a SpikeTrain [N, ...] where the layer behind it takes spikes -> what the
        last layers return, [N, K] of a read-out. T is that of Encode, or of the trains where there is none.

    Raises:
        TypeError: an input is not what it must be.
        ValueError: names that occur twice, or are used before they are there; several Encode of different T; layers
            whose tensors are not finite or whose inputs cannot be what the layers before put out.
    """

    def __init__(self, nodes: Sequence[Node], output: Any, inputs: Sequence[str] = (INPUT,)) -> None:
        super().__init__()
        steps = {node.layer.time_steps for node in nodes if isinstance(node.layer, FrozenEncode)}
        if len(steps) > 1:
            raise ValueError(f"FrozenNetwork: every Encode must have the same time_steps, got {sorted(steps)}")
        if not inputs or len({*inputs}) < len(inputs):
            raise ValueError(f"FrozenNetwork: inputs must be one or more different names, got {list(inputs)}")
        self.kinds = _input_kinds(nodes, inputs, REAL if steps else SPIKES)
        """Of each input, by its name."""
        values = {name: Value(kind, source=name) for name, kind in self.kinds.items()}
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
        outputs = _names_in(output)
        for name in outputs:
            if name not in values or name in self.kinds:
                raise ValueError(f"FrozenNetwork: output must be the name of a node, got {name!r}")
        nodes = _used(nodes, outputs)
        if not steps and SPIKES not in self.kinds.values():
            raise ValueError("FrozenNetwork: an input must be spikes or go through Encode: else there is no time")
        self.names = [node.name for node in nodes]
        self.inputs = [node.inputs for node in nodes]
        self.output = output
        self.layers = nn.ModuleList(node.layer for node in nodes)
        last = {source: i for i, node in enumerate(nodes) for source in node.inputs}
        self.done: list[list[str]] = [[] for _ in nodes]
        """What is not needed behind each of the nodes, so that its memory may go."""
        for source in last.keys() - {*outputs}:
            self.done[last[source]].append(source)
        later = {node.name for node in _used(nodes, outputs, later=True)}
        self.again = [name in later for name in self.names]
        """Which nodes run at every call, and not at the first one alone: all but what stands in front of the spikes."""
        self.probabilities = any(node.name == output and is_softmax(node.layer) for node in nodes)
        """Whether the output is that of a softmax."""
        self.steady = all(layer.mode == "constant" for layer in self.layers if isinstance(layer, FrozenEncode))
        self.time_steps: int | None = steps.pop() if steps else None
        """T of its Encode; None where spike trains bring their own."""

    @property
    def nodes(self) -> list[Node]:
        """The layers with their names and inputs, in order of execution."""
        layers = [layer for layer in self.layers if isinstance(layer, FrozenLayer)]
        return [Node(*node) for node in zip(self.names, layers, self.inputs, strict=True)]

    def forward(self, *inputs: Tensor | SpikeTrain) -> Any:
        total = self._total(inputs)
        return self.advance(inputs if len(inputs) > 1 else inputs[0], {}, Span(total, 0, total))[0]

    def _total(self, inputs: Sequence[Any]) -> int:
        """T of a run with these inputs."""
        if len(inputs) != len(self.kinds):
            raise TypeError(f"FrozenNetwork: inputs must be {len(self.kinds)}, got {len(inputs)}")
        steps = [] if self.time_steps is None else [self.time_steps]
        for (name, kind), x in zip(self.kinds.items(), inputs, strict=True):
            what = "input" if name == INPUT else f"input {name}"
            if kind == REAL:
                checks.check_tensor("FrozenNetwork", what, x)
            elif not isinstance(x, SpikeTrain):
                reason = " (the network has no Encode)" if self.time_steps is None else ""
                raise TypeError(f"FrozenNetwork: {what} must be a SpikeTrain{reason}, got {type(x).__name__}")
            else:
                steps.append(x.time_steps)
        if len({*steps}) > 1:
            raise ValueError(f"FrozenNetwork: inputs must have the same time steps, got {steps}")
        return steps[0]

    @torch.no_grad()
    def advance(self, x: Any, state: NetworkState, span: Span) -> tuple[Any, NetworkState]:
        """Run some of the time steps; :meth:`stream` keeps account of them for you.

        Args:
            x: the input, or a tuple of several: real ones, the same at every call; of trains the spikes of these
                ``span.now`` time steps.
            state: what the call before returned; {} at first.
            span: the time steps.

        Returns:
            ``(output, state)``. Decode returns what counts are estimated to come to at the end, where
            ``state`` is {}.
        """
        values: dict[str, Any] = dict(zip(self.kinds, x if len(self.kinds) > 1 else (x,), strict=True))
        after: NetworkState = {}
        for i, (name, layer) in enumerate(zip(self.names, self.layers, strict=True)):
            if span.done and not self.again[i]:
                continue
            inputs = (values.get(source) for source in self.inputs[i])
            values[name], carried = layer(span, state.get(name), *inputs)
            if carried is not None:
                after[name] = carried
            for source in self.done[i]:
                values.pop(source, None)
        return _built(self.output, values), after

    def stream(self, x: Any = None, *, time_steps: int | None = None) -> Stream:
        """Begin a run over chunks of time.

        Args:
            x: all of the input, as of a call of the network, or a tuple of several. Left out where spikes, as the only
                input, arrive chunk by chunk.
            time_steps: T, over which layers spread their bias; given just where ``x`` is not.

        Raises:
            TypeError: an argument of the wrong type, or both or none of them.
            ValueError: ``time_steps`` < 1.
        """
        if x is not None:
            if time_steps is not None:
                raise TypeError(f"stream: time_steps must be left out where x is given, got {time_steps}")
            inputs = (x,) if len(self.kinds) == 1 else x
            if not isinstance(inputs, (tuple, list)):
                raise TypeError(f"stream: x must be a tuple of {len(self.kinds)} inputs, got {type(x).__name__}")
            return Stream(self, inputs, self._total(inputs))
        if self.time_steps is not None or len(self.kinds) > 1:
            raise TypeError("stream: x must be given to a network with Encode or several inputs, got None")
        checks.check_time_steps("stream", time_steps)
        assert time_steps is not None
        return Stream(self, None, time_steps)

    def predict(
        self, x: Any, exit_confidence: float = 0.9, *, chunk: int = 1, min_steps: int = 1
    ) -> anytime.Prediction:
        """Classify, each sample for as many time steps as it takes; :func:`tandem_cuda.anytime.predict`."""
        return anytime.predict(self, x, exit_confidence, chunk=chunk, min_steps=min_steps)

    def accuracy_curve(
        self,
        batches: Iterable[tuple[Any, Tensor]],
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
        description: dict[str, Any] = {
            "nodes": [
                {"name": name, "kind": layer.kind, "inputs": list(inputs), "settings": layer.settings()}
                for name, layer, inputs in self.nodes
            ],
            "output": self.output,
        }
        version = max((layer.format for _, layer, _ in self.nodes), default=1)
        if not isinstance(self.output, str) or tuple(self.kinds) != (INPUT,):
            version = 2
        if version > 1:
            description["inputs"] = list(self.kinds)
        tensors = {f"{name}/{key}": tensor for name, layer, _ in self.nodes for key, tensor in layer.tensors().items()}
        artefact.write(path, description, tensors, version)

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
    if not isinstance(description, dict) or description.keys() - {"inputs"} != {"nodes", "output"}:
        raise ValueError("the description must hold nodes and output")
    names = description.get("inputs", [INPUT])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"inputs must be a list of names, got {names!r}")
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
    return FrozenNetwork(nodes, description["output"], names)


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

    def __init__(self, network: FrozenNetwork, inputs: Sequence[Tensor | SpikeTrain] | None, time_steps: int) -> None:
        self.network = network
        self.time_steps = time_steps
        """T."""
        self.done = 0
        """Time steps that are over."""
        self.state: NetworkState = {}
        """What layers carry: membrane potentials and counts, [N, ...]."""
        self.inputs = None if inputs is None else tuple(inputs)
        """The inputs, where all of them were given."""
        self.samples: int | None = None
        """N; None where no spikes have arrived yet."""
        if self.inputs is not None:
            sizes = [len(x) for x in self.inputs]
            if len({*sizes}) > 1:
                raise ValueError(f"stream: inputs must have the same number of samples, got {sizes}")
            self.samples = sizes[0]

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
        whole = self.inputs
        if whole is None and not isinstance(chunk, SpikeTrain):
            raise TypeError(f"advance: chunk must be a SpikeTrain, got {type(chunk).__name__}")
        if whole is not None and (isinstance(chunk, bool) or not isinstance(chunk, int)):
            raise TypeError(f"advance: chunk must be a number of time steps, got {type(chunk).__name__}")
        now = chunk.time_steps if isinstance(chunk, SpikeTrain) else chunk
        if not 1 <= now <= self.remaining:
            raise ValueError(f"advance: chunk must be of 1 to {self.remaining} time steps (the rest), got {now}")
        if isinstance(chunk, SpikeTrain):
            if self.samples not in (None, len(chunk)):
                raise ValueError(f"advance: chunk must hold {self.samples} samples, got {len(chunk)}")
            self.samples = len(chunk)
            inputs: tuple[Any, ...] = (chunk,)
        else:
            assert whole is not None
            done = self.done
            inputs = tuple(x.window(done, done + now) if isinstance(x, SpikeTrain) else x for x in whole)
        output, self.state = self.network.advance(
            inputs if len(inputs) > 1 else inputs[0],
            self.state,
            Span(now, self.done, self.time_steps, self.network.steady),
        )
        self.done += now
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
        if self.inputs is not None:
            self.inputs = tuple(
                x.rearranged(lambda values: values[:, samples]) if isinstance(x, SpikeTrain) else x[samples]
                for x in self.inputs
            )
        if self.samples is not None:
            self.samples = len(samples)
