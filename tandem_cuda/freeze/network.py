"""FrozenNetwork: a trained network for inference over all time steps, in chunks of time, or with early exit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.encode import Encode
from ..nn.frozen import FrozenLayer, Span
from ..nn.neurons import TandemNeurons
from ..nn.sizes import REAL, SPIKES, Value
from ..nn.spiking import unwrapped
from ..ops import checks
from ..ops.gradient import refuse_tangents
from ..spike_train import SpikeTrain
from . import anytime, file
from .graph import (
    INPUT,
    NetworkState,
    Node,
    check_finite,
    float_like,
    input_kinds,
    names_in,
    needed,
    output_value,
    passed,
    returned,
    taken,
)
from .stream import Stream


class FrozenNetwork(nn.Module):
    """A network that :func:`freeze` has made: a graph of layers without parameters.

    Args:
        nodes: the layers, in order of execution. Nodes that the output does not depend on are dropped.
        output: the name of the node whose output the network returns; or {"tuple": [...]}, {"list": [...]} or
            {"dict": {...}} of such names.
        inputs: the names by which nodes refer to the network's inputs.
        arguments: how a call passes the inputs, where it passes tuples, lists or dicts of them: a structure of names
            like ``output``, in which {"constant": x} is an argument that is no input.

    Shape:
        For each input a Tensor [N, ...], or a SpikeTrain [N, ...] if the layer that reads it takes spikes -> the output
        of the last layers, such as [N, K] of a read-out. Several inputs are passed by position. T is set by Encode, or
        by the spike trains if there is no Encode.

    Raises:
        TypeError: an input has the wrong type.
        ValueError: a name occurs twice or is used before it is defined; Encode layers differ in T; a layer's tensors
            are not finite; or a layer cannot take the output of the layer before it.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> frozen = freeze(net)
        >>> frozen.save("net.safetensors")
        >>> loaded = FrozenNetwork.load("net.safetensors")
        >>> x = torch.rand(2, 784)
        >>> torch.equal(loaded(x), frozen(x))
        True
    """

    def __init__(
        self, nodes: Sequence[Node], output: Any, inputs: Sequence[str] = (INPUT,), arguments: Any = None
    ) -> None:
        super().__init__()
        layers = [unwrapped(node.layer) for node in nodes]
        encodes = [layer for layer in layers if isinstance(layer, Encode)]
        steps = {layer.time_steps for layer in layers if isinstance(layer, (Encode, TandemNeurons))}
        if len(steps) > 1:
            raise ValueError(
                f"FrozenNetwork: Encode and TandemNeurons must have the same time_steps, got {sorted(steps)}"
            )
        if not inputs or len({*inputs}) < len(inputs):
            raise ValueError(f"FrozenNetwork: inputs must be one or more different names, got {list(inputs)}")
        self.kinds = input_kinds(nodes, inputs, REAL if steps else SPIKES)
        """The kind of each input, by name."""
        values = {name: Value(kind, source=name) for name, kind in self.kinds.items()}
        for node in nodes:
            if node.name in values:
                raise ValueError(f"FrozenNetwork: names of nodes must differ, got {node.name!r} twice")
            unknown = [source for source in node.inputs if source not in values]
            if unknown or node.layer.is_constant != (not node.inputs):
                wanted = "none" if node.layer.is_constant else "inputs of the network or earlier nodes"
                got = ", ".join(map(repr, unknown or node.inputs)) or "none"
                raise ValueError(f"FrozenNetwork: inputs of {node.name!r} must be {wanted}, got {got}")
            check_finite(node)
            values[node.name] = output_value("FrozenNetwork", node, values)
            node.layer.forget_codes(*(values[source] for source in node.inputs))
        outputs = names_in(output)
        for name in outputs:
            if name not in values or name in self.kinds:
                raise ValueError(f"FrozenNetwork: output must be the name of a node, got {name!r}")
        nodes = needed(nodes, outputs)
        if not steps and SPIKES not in self.kinds.values():
            raise ValueError(
                "FrozenNetwork: the network must take spikes or contain Encode, got neither (convert makes ANNs spike)"
            )
        like = float_like(nodes)
        self.names = [node.name for node in nodes]
        self.inputs = [node.inputs for node in nodes]
        self.output, self.arguments = output, arguments
        if arguments is not None and sorted(passed(arguments)) != sorted(self.kinds):
            raise ValueError(f"FrozenNetwork: arguments must pass each of {list(self.kinds)} once, got {arguments!r}")
        self.layers = nn.ModuleList(node.layer for node in nodes)
        for node in nodes:
            node.layer.place(like)
            _put_in_state_dict(node.layer)
        last = {source: i for i, node in enumerate(nodes) for source in node.inputs}
        self.done: list[list[str]] = [[] for _ in nodes]
        """For each node, the values that no later node needs, so that their memory can be freed."""
        for source in last.keys() - {*outputs}:
            self.done[last[source]].append(source)
        later = {node.name for node in needed(nodes, outputs, later=True)}
        self.again = [name in later for name in self.names]
        """Whether each node runs in every chunk. Nodes before the first spikes run only in the first chunk."""
        self.probabilities = any(node.name == output and node.layer.is_softmax for node in nodes)
        """Whether the network ends in a softmax."""
        self.steady = all(encode.mode == "constant" for encode in encodes)
        self.time_steps: int | None = steps.pop() if steps else None
        """T of Encode; None if the network has no Encode, and its spike trains set T."""

    @property
    def nodes(self) -> list[Node]:
        """The layers with their names and inputs, in order of execution."""
        layers = [layer for layer in self.layers if isinstance(layer, FrozenLayer)]
        return [Node(*node) for node in zip(self.names, layers, self.inputs, strict=True)]

    def _description(self) -> dict[str, Any]:
        """Return all but the tensors."""
        nodes = [
            {"name": name, "kind": layer.kind, "inputs": list(inputs), "settings": layer.settings()}
            for name, layer, inputs in self.nodes
        ]
        described = {"nodes": nodes, "inputs": list(self.kinds), "output": self.output}
        return described if self.arguments is None else {**described, "arguments": self.arguments}

    def get_extra_state(self) -> Tensor:
        """Return what ``state_dict`` says of the network beside its tensors: JSON, as uint8 [n]."""
        return file.state_of(self._description(), self.nodes)

    def set_extra_state(self, state: Any) -> None:
        """Raise ValueError unless a state dict is of a network that differs in its tensors' values alone."""
        file.check_state(state, self.get_extra_state())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        dtype = fn(torch.empty(0)).dtype
        if dtype != torch.float32:
            for name, layer, _ in self.nodes:
                if any(x.dtype in checks.INTEGERS for x in layer.tensors().values()):
                    raise TypeError(
                        f"FrozenNetwork.to: dtype must be torch.float32, in which {name} scales its integer weights, "
                        f"got {dtype}; freeze a network of float weights instead"
                    )
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's

    @property
    def networks(self) -> tuple[FrozenNetwork]:
        """The network itself, as the only one of a cascade."""
        return (self,)

    # x by itself, so that torch.export sees a forward of one argument in a network of one input.
    def forward(self, x: Any, *others: Any) -> Any:
        if self.arguments is not None:
            found = taken(self.arguments, (x, *others))
            inputs = tuple(found[name] for name in self.kinds)
        else:
            inputs = (x, *others)
        total = self._total(inputs)
        return self.advance(inputs if len(inputs) > 1 else inputs[0], {}, Span(total, 0, total))[0]

    def _total(self, inputs: Sequence[Any]) -> int:
        """Return T for these inputs."""
        if len(inputs) != len(self.kinds):
            raise TypeError(f"FrozenNetwork: number of inputs must be {len(self.kinds)}, got {len(inputs)}")
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
        """Run a chunk of the time steps. :meth:`stream` is more convenient: it keeps track of state and time.

        Args:
            x: the input, or a tuple of several. Real inputs must be the same in every call; spike trains hold only the
                ``span.now`` time steps of this chunk.
            state: the state that the previous call returned; {} in the first call.
            span: the time steps to run.

        Returns:
            ``(output, state)``. Before the last time step, Decode returns an estimate of the final counts. After it,
            ``state`` is {}.

        Raises:
            ValueError: ``span`` has only some of the time steps, and there are neurons that wait for all of them
                (``two_phase``, or a TandemNeurons's).
        """
        now, done, total, _ = span
        if now < total:
            self.check_chunk("advance", now, total)
        values: dict[str, Any] = dict(zip(self.kinds, x if len(self.kinds) > 1 else (x,), strict=True))
        refuse_tangents("FrozenNetwork", [value for value in values.values() if isinstance(value, Tensor)])
        after: NetworkState = {}
        layers: Any = self._modules["layers"]  # attributes of modules take longer
        nodes = zip(self.names, layers._modules.values(), self.inputs, self.done, self.again, strict=True)
        for name, layer, sources, last, again in nodes:
            if again or not done:
                values[name], carried = layer(span, state.get(name), *map(values.get, sources))
                if carried is not None:
                    after[name] = carried
                for source in last:
                    values.pop(source, None)
        return returned(self.output, values), after

    def check_chunk(self, op: str, now: int, total: int) -> None:
        """Raise a ValueError that names ``op`` if neurons wait for all ``total`` time steps and ``now`` are fewer."""
        waiting = [node for node in self.nodes if node.layer.waits] if now < total else []
        if not waiting:
            return
        advice = ""
        if SPIKES not in self.kinds.values():
            advice += "; for early exit, run networks with increasing T in a Cascade"
        if not any(
            isinstance(unwrapped(node.layer), TandemNeurons) for node in waiting
        ):  # which need the counts of all steps
            advice += "; to run in chunks, use neurons of one phase, such as IF(initial=0.5)"
        names = ", ".join(node.name for node in waiting)
        raise ValueError(
            f"{op}: chunk must be all {total} time steps, for which the neurons of {names} wait, got {now}{advice}"
        )

    def stream(self, x: Any = None, *, time_steps: int | None = None) -> Stream:
        """Start a run over chunks of time. Pass either ``x`` or ``time_steps``.

        Args:
            x: the whole input, as for a call of the network, or a tuple of several inputs. Leave it out if the network
                has one input, of spikes, and these arrive chunk by chunk.
            time_steps: T of such a run. Layers spread their bias over T steps.

        Raises:
            TypeError: an argument has the wrong type, or both or neither were given.
            ValueError: ``time_steps`` < 1.
        """
        if x is not None:
            if time_steps is not None:
                raise TypeError(f"stream: time_steps must be left out if x is given, got {time_steps}")
            inputs = (x,) if len(self.kinds) == 1 else x
            if not isinstance(inputs, (tuple, list)):
                raise TypeError(f"stream: x must be a tuple of {len(self.kinds)} inputs, got {type(x).__name__}")
            return Stream(self, inputs, self._total(inputs))
        if self.time_steps is not None or len(self.kinds) > 1:
            raise TypeError("stream: x must be given for a network with Encode or several inputs, got None")
        checks.check_time_steps("stream", time_steps)
        assert time_steps is not None
        return Stream(self, None, time_steps)

    def predict(
        self, x: Any, exit_confidence: float = 0.9, *, chunk: int = 1, min_steps: int = 1
    ) -> anytime.Prediction:
        """Classify with early exit; see :func:`tandem_cuda.freeze.predict`."""
        return anytime.predict(self, x, exit_confidence, chunk=chunk, min_steps=min_steps)

    def accuracy_curve(
        self,
        batches: Iterable[tuple[Any, Tensor]],
        exit_confidences: Sequence[float] = anytime.EXIT_CONFIDENCES,
        *,
        chunk: int = 1,
        min_steps: int = 1,
    ) -> anytime.AccuracyCurve:
        """Measure accuracy and cost over time and confidence; see :func:`tandem_cuda.freeze.accuracy_curve`."""
        return anytime.accuracy_curve(self, batches, exit_confidences, chunk=chunk, min_steps=min_steps)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the network to one file, whose format :mod:`tandem_cuda.freeze.file` describes.

        Raises:
            ImportError: safetensors is missing.
            OSError: the file cannot be written, for example because the disk is full; the message names the file. An
                earlier file of that name is left unchanged, and no temporary file remains.
        """
        tensors = {f"{name}/{key}": tensor for name, layer, _ in self.nodes for key, tensor in layer.tensors().items()}
        file.write(path, self._description(), tensors)

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: torch.device | str = "cpu") -> FrozenNetwork:
        """Read a network that :meth:`save` wrote.

        Args:
            path: the file to read.
            device: the device to put the network on.

        Raises:
            ImportError: safetensors is missing.
            OSError: the file cannot be read.
            ValueError: the file is damaged, of another kind or of another format version, or it does not describe a
                network; the message says which.
        """
        description, tensors = file.read(path)
        try:
            network = cls(*file.parsed(description, tensors))
        except (TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
            raise ValueError(f"FrozenNetwork.load: {path} does not describe a network: {error}") from error
        return network.to(device)


def _put_in_state_dict(layer: FrozenLayer) -> None:
    """Let a state dict have all tensors that a file has, of which networks that are not frozen compute some."""
    saved = {id(tensor) for tensor in layer.tensors().values()}
    for module in layer.modules():
        module._non_persistent_buffers_set -= {name for name, x in module._buffers.items() if id(x) in saved}
