"""Build a NIR graph, layer by layer."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .._progress import progress
from ..convert import flattened_to
from ..freeze.functions import FrozenFunction, constants_of, frozen_call
from ..freeze.plain import FrozenModule
from ..neuron import Neuron
from ..nn import SpikingAdaptiveAvgPool2d, SpikingAvgPool2d
from ..nn.nir import MaxAxis, NirGeometry, Product, Windows, image, linear_map
from ..nn.nir import convolution as product_of_convolution
from ..nn.quantiser import quantiser
from ..nn.weights import stored
from .nir_builder import Place, Signal, shape_of
from .nir_extension import TandemGate, is_function
from .nir_format import RESET, nir, unsupported
from .nir_maximum import larger, stages
from .nir_moves import Moves, first_why
from .nir_nodes import pooling_node
from .nir_sources import Channels, NirSource, channels_of

_MOST_WEIGHTS = 2**28
FLATTENED = (torch.flatten, flattened_to, "flatten")


class ModuleForm(NamedTuple):
    """How a module becomes nodes of NIR."""

    write: Callable[..., Signal]
    """Takes the writer and the inputs."""
    takes: tuple[str, ...] | None
    """Kinds of its inputs; None for a module that passes on any value and need not run."""
    by_input: bool = False
    """Whether each input has its own kind, in order."""
    leaf: bool = True
    """Whether tracing stops at such modules. It stops at other modules of torch.nn anyway, but not at a network."""


def form_of(module: nn.Module) -> ModuleForm | None:
    """Return how a module becomes nodes, or None for a module that NIR cannot express."""
    layer: Any = module
    if getattr(layer, "no_nir", None):  # also of a class that inherits the method
        return None
    if callable(getattr(type(layer), "nir", None)):
        return ModuleForm(layer.nir, getattr(layer, "nir_takes", ("spikes",)), getattr(layer, "nir_by_input", False))
    for kinds, write, takes in _TORCH:
        if isinstance(module, kinds):
            return ModuleForm(partial(write, module=module), takes, leaf=takes is None)
    return ModuleForm(partial(NirGraphWriter._function, module=module), ("current",)) if is_function(module) else None


def is_add(node: fx.Node) -> bool:
    """Return whether a node adds two values of the network."""
    return node.target is operator.add and all(isinstance(x, fx.Node) and x.op != "get_attr" for x in node.args)


def name_of(node: fx.Node, module: nn.Module) -> str:
    """Return the name of a module for error messages."""
    return f"{node.target} ({type(module).__name__})"


class NirGraphWriter(Moves):
    """The NIR graph of a network. Its public methods are the :class:`~tandem_cuda.nn.nir.NirWriter` of layers."""

    def graph(self, root: fx.GraphModule, calls: list[fx.Node]) -> nir.NIRGraph:
        signals: dict[fx.Node, Signal] = {}
        constants = constants_of(root)
        named: dict[str, Any]
        last = {x: node for node in calls for x in node.all_input_nodes}
        result = self.sample
        for node in progress(calls, "to_nir"):
            if node in constants:
                continue
            inputs = [
                signals[x] for x in (*node.args, *node.kwargs.values()) if isinstance(x, fx.Node) and x in signals
            ]
            self.at = Place(node.name, f"{node.name} ({node.op})")
            kinds = {signals[x].kind for x in node.all_input_nodes if x in signals}
            if node.op == "placeholder":
                signals[node] = self.sample
            elif node.op == "output":
                result = inputs[0]
            elif node.op == "call_module":
                signals[node] = self._called(node, root.get_submodule(str(node.target)), inputs)
            elif is_add(node) and not (kinds == {"current"} and inputs[0].shape != inputs[1].shape):
                signals[node] = self._sum(*inputs)
            elif kinds == {"current"} and node.target not in FLATTENED:
                call, reads = frozen_call(root, node, constants)
                signals[node] = self.function(self.at, call, call.call, [signals[x] for x in reads])
            elif node.target is F.pad:
                named = dict(zip(("pad", "mode", "value"), node.args[1:], strict=False))
                named |= {name: x for name, x in node.kwargs.items() if name != "input"}
                signals[node] = self._padded(inputs[0], **named)
            elif node.target not in FLATTENED:
                wanted = "its input must be current (after Decode), as functions of real numbers take it"
                raise self._refusal(self.at, f"{wanted}, got {', '.join(sorted(kinds)) or 'none'}")
            else:
                dims: Any = () if node.target is flattened_to else node.args[1:]
                named = {name: x for name, x in node.kwargs.items() if not isinstance(x, fx.Node)}
                signals[node] = self._flatten(inputs[0], *dims, **named)
            for x in node.all_input_nodes:
                if last[x] is node:  # large networks have many values
                    signals.pop(x, None)
        self.at = Place("read_out", "output")
        read = {name for source in result.sources for name in source.nodes}
        if result.kind not in ("spikes", "current") or self.encoding is None or "input" in read:
            self._refuse(self.at, "it must depend on a tandem layer")
        else:
            result = self._for_output(result)
        if self.problems:
            raise unsupported("to_nir: model", self.problems)
        nodes = [name for source in result.sources for name in source.nodes]
        self.put("output", nir.Output(output_type=np.array(result.shape)), nodes)
        self._leave_out_unread()
        assert self.encoding is not None
        steps, mode = self.encoding
        metadata = {"time_steps": steps, "dt": float(self.dt), "encoding": mode, "reset": RESET}
        return nir.NIRGraph(self.nodes, self.edges, metadata, type_check=False)  # the check takes quadratic time

    def _leave_out_unread(self) -> None:
        """Leave out nodes without a path to the output, such as a part of a concatenation that nothing reads."""
        sources: dict[str, list[str]] = {name: [] for name in self.nodes}
        for source, target in self.edges:
            sources[target].append(source)
        read = {"input", "output"}
        for name in reversed(self.nodes):  # nodes come after the nodes that they read
            if name in read:
                read.update(sources[name])
        self.nodes = {name: node for name, node in self.nodes.items() if name in read}
        self.edges = [edge for edge in self.edges if edge[1] in read]

    def _for_output(self, result: Signal) -> Signal:
        """Return the output as nodes whose sum it is."""
        if result.kind == "spikes":
            result = result._replace(gain=1.0)
        if result.node() is None or result.gain != 1:
            result = result._replace(sources=(self._alone(self.at, result),))
        if result.sources[0].shape != result.shape:
            self._refuse(self.at, result.why or "NIR has no node that adds a dimension")
        return result

    def _called(self, node: fx.Node, module: nn.Module, inputs: list[Signal]) -> Signal:
        """Add the nodes of a module, and return its output."""
        self.at = Place(str(node.target), name_of(node, module))
        form = form_of(module)
        assert form is not None
        if form.takes is None:
            return form.write(self, *inputs)
        for i, signal in enumerate(inputs):
            takes = (form.takes[i],) if form.by_input else form.takes
            if signal.kind not in takes:
                hint = "; put it after Decode" if takes == ("current",) else ""
                wanted = " or ".join(takes)
                raise self._refusal(self.at, f"its input must be {wanted}, got {signal.kind}{hint}")
        self.out = module(*(signal.value for signal in inputs))
        return form.write(self, *inputs)

    # -- sums and neurons

    def neurons(self, neuron: Neuron, inputs: Sequence[tuple[Signal, Product | None]]) -> Signal:
        nodes: list[str] = []
        shapes = []
        for i, (signal, product) in enumerate(inputs):
            at, same = self.at.part(i, len(inputs), f", branch {i}"), signal.node()
            if product is not None:
                source = self._product(at, signal, product)
            elif same is not None and signal.gain == 1 and not {*same.nodes} & {*nodes}:
                source = same
            else:
                source = self._alone(at, signal)
            nodes += source.nodes
            shapes.append(source.shape)
        why = first_why([signal for signal, _ in inputs]) if len(inputs) > 1 else ""
        self._check_shapes(self.at, shapes, why)
        return self._spikes([self._neurons(self.at, neuron, NirSource(tuple(nodes), shapes[0]))], why)

    def _sum(self, first: Signal, second: Signal) -> Signal:
        """Add decoded values."""
        shapes = [list(signal.shape) for signal in (first, second)]
        if (first.kind, second.kind) != ("current", "current") or shapes[0] != shapes[1]:
            got = " and ".join(f"{signal.kind} {shape}" for signal, shape in zip((first, second), shapes, strict=True))
            raise self._refusal(self.at, f"it must add two currents (after Decode) of the same shape, got {got}")
        out = first.value + second.value
        one, other = first.node(), second.node()
        alike = one and other and first.gain == second.gain and one.shape == other.shape
        if one and other and alike and not {*one.nodes} & {*other.nodes}:
            return first._replace(sources=(one._replace(nodes=one.nodes + other.nodes),), value=out)
        sources = [
            source.times(torch.full(shape_of(out), signal.gain, dtype=torch.float64))
            for signal in (first, second)
            for source in signal.sources
        ]
        return Signal(tuple(sources), out, "current", 1.0, first_why([first, second]))

    def gated(self, neuron: Neuron, signal: Signal, gate: Signal, decode: Any) -> Signal:
        pair_dim = decode.pair_dim(signal)
        if pair_dim == -1 and len(signal.shape) > 1:
            raise self._refusal(self.at, "pairs must lie along the channels; put SpikeRearrange('pairs', 1) before it")
        channels, *size = signal.shape
        factors = decode.factors([1, channels // (1 if pair_dim is None else 2), *size])
        factor = torch.tensor(signal.gain, dtype=gate.value.dtype) if factors is None else factors * signal.gain
        if bool((factor != 1).any()):
            product = FrozenFunction("operator.mul", [{"input": 0}, {"tensor": "0"}], {}, {"0": factor})
            gate = self.function(self.at._replace(name=f"{self.at.name}_gate"), product, product.call, [gate])
        if signal.node() is None or signal.sources[0].shape != signal.shape or len(signal.sources[0].nodes) > 1:
            signal = self._as_node(self.at, signal)
        inputs = [self.real(self.at, x) for x in (signal._replace(gain=1.0), gate)]
        node = TandemGate(json.dumps(inputs), int(pair_dim is not None), np.array(signal.shape))
        name = self.put(f"{self.at.name}_product", node, inputs)
        return self._spikes([self._neurons(self.at, neuron, NirSource((name,), signal.shape))])

    # -- pooling

    def pooled(
        self, signal: Signal, rows: Windows, columns: Windows, divisors: Sequence[int], neurons: Callable[..., Neuron]
    ) -> Signal:
        uneven = not (rows.uniform() and columns.uniform())
        count = math.lcm(*divisors)  # of the windows of uneven pooling; the only divisor of others

        def fire(at: Place, source: NirSource) -> NirSource:
            windows, windows_at = _geometry(rows, columns, source), at._replace(name=f"{at.name}_windows")
            if uneven:
                shares = torch.tensor([count // d for d in divisors]).view(len(rows.starts), len(columns.starts))
                down = shares[:, :1] // math.gcd(*shares[:, 0].tolist()) * rows.membership()
                right = shares[0].unsqueeze(1) // down.amax(1)[0] * columns.membership()
                size = source.shape[0] * down.numel() * right.numel()
                if size > _MOST_WEIGHTS:
                    wanted = f"its windows of different sizes need {size} weights in NIR"
                    raise self._refusal(at, f"{wanted}; use windows of one size, or padding that counts")
                ones, geometry = linear_map(down, right, source.shape[0])
                weight = ones.to(self.out.dtype).expand(source.shape[0], 1, -1, -1)
                return self._neurons(at, neurons(count), self.depthwise(windows_at, weight, geometry, source))
            kernel = _kernel(rows, columns)
            behind = [axis.stops[-1] - axis.size for axis in (rows, columns)]
            # Importers ignore the padding of pooling, but not of convolutions. NIR cannot pool lines.
            if any(windows.before) or max(behind) > 0 or len(source.shape) == 2:
                ones = torch.ones(source.shape[0], 1, *kernel, dtype=self.out.dtype)
                return self._neurons(at, neurons(count), self.depthwise(windows_at, ones, windows, source))
            mean = count == math.prod(kernel) and count & (count - 1) == 0
            sums = self._windows(windows_at, nir.AvgPool2d if mean else nir.SumPool2d, kernel, windows, source)
            return self._neurons(at, neurons() if mean else neurons(count), sums)

        sources, _ = self._by_channel(signal, fire)
        return self._spikes(sources, signal.why)

    def maximum(self, signal: Signal, rows: MaxAxis, columns: MaxAxis) -> Signal:
        signed = signal.pair_dim is not None
        parts = stages(rows, columns, *image(signal.shape)[1:])
        if not parts and signal.shape != self.shape:  # windows of one pixel
            return self.rearranged(signal, lambda x: _thinned(x, rows, columns))
        if signed and parts:
            signal = self._with_edges(signal, rows, columns)
            within = rows._replace(padding=0), columns._replace(padding=0)
            parts = stages(*within, *image(signal.shape)[1:])

        def largest(at: Place, source: NirSource) -> NirSource:
            for i, part in enumerate(parts):
                source = larger(self, at.part(i, len(parts)), source, part, signed)
            return source

        if not signed:
            sources, _ = self._by_channel(signal, largest)
            return self._spikes(sources, signal.why)
        if not all(source.alone(signal.shape)[0].whole() for source in signal.sources):
            signal = self._as_node(self.at, signal)
        several = len(signal.sources)
        pooled = [
            largest(self.at.part(i, several), source)._replace(part=source.part)
            for i, source in enumerate(signal.sources)
        ]
        return self._spikes(pooled, signal.why)

    def _with_edges(self, signal: Signal, *axes: MaxAxis) -> Signal:
        """Repeat the first and last pixels of values of both signs: the zeros of a padding may be the largest ones."""
        index = []
        for axis, size in zip(axes, image(signal.shape)[1:], strict=True):
            end = (axis.outputs - 1) * axis.stride + axis.dilation * (axis.kernel - 1) + 1 - axis.padding
            if axis.dilation > 1 and (axis.padding or end > size):
                problem = "windows of values of both signs must have dilation 1, or no padding and no ceil_mode"
                raise self._refusal(self.at, f"{problem}; put a ReLU before it")
            index.append(torch.arange(-axis.padding, max(end, size)).clamp(0, size - 1))
        if any(len(own) > size for own, size in zip(index, image(signal.shape)[1:], strict=True)):
            edges = self.rearranged(signal, lambda x: x[..., index[0], :][..., index[1]], own=False)
            signal = self._as_images(self.at, edges) or signal
        return signal

    def _mean(self, signal: Signal, module: Any) -> Signal:
        """Add average pooling of decoded counts."""
        if isinstance(module, nn.AvgPool2d):
            settings = module.ceil_mode, module.count_include_pad, module.divisor_override
            pool: Any = SpikingAvgPool2d(module.kernel_size, module.stride, module.padding, *settings)
        else:
            pool = SpikingAdaptiveAvgPool2d(module.output_size)
        rows, columns = axes = pool.windows(*signal.shape[1:])
        kernel = _kernel(rows, columns)
        inside = all(axis.uniform() and axis.starts[0] == 0 and axis.stops[-1] <= axis.size for axis in axes)
        if not inside or getattr(module, "divisor_override", None) not in (None, math.prod(kernel)):
            self._refuse(self.at, "it must have windows of one size, no padding and no other divisor")

        def average(at: Place, source: NirSource) -> NirSource:
            windows = _geometry(rows, columns, source)._replace(before=(0, 0))
            if len(source.shape) == 2:  # NIR cannot pool lines
                share = torch.full((source.shape[0], 1, *kernel), 1 / math.prod(kernel), dtype=self.out.dtype)
                return self.depthwise(at, share, windows, source)
            return self._windows(at, nir.AvgPool2d, kernel, windows, source)

        sources, gain = self._by_channel(signal, average)
        return signal._replace(sources=sources, value=self.out, gain=gain)

    def _by_channel(
        self, signal: Signal, add: Callable[[Place, NirSource], NirSource]
    ) -> tuple[tuple[NirSource, ...], float]:
        """Add nodes that treat each channel alone, to the nodes of each source; return their sources and the gain."""
        found = _channels(signal)
        if found is None:
            signal = self._as_node(self.at, signal)
            found = _channels(signal) or []
        sources, added = [], {}
        for i, (source, channels) in enumerate(found):
            if source.nodes not in added:
                added[source.nodes] = add(self.at.part(i, len(found)), NirSource(source.nodes, source.shape))
            sources.append(channels.source(added[source.nodes], self.shape))
        return tuple(sources) or signal.sources, signal.gain

    def _windows(
        self, at: Place, kind: Any, kernel: Sequence[int], windows: NirGeometry, source: NirSource
    ) -> NirSource:
        """Add a node of type AvgPool2d or SumPool2d."""
        shape = (source.shape[0], *windows.size)
        node = pooling_node(kind, kernel, windows.stride, source.shape, shape)
        return NirSource((self.put(at.name, node, source.nodes),), shape)

    # -- layers of torch

    def _read_out(self, signal: Signal, module: Any) -> Signal:
        """Add the weights of a linear layer or a convolution of decoded counts."""
        rounds = quantiser(module)
        rounding = None
        if rounds is not None:
            _, scale = rounds.integers(getattr(*stored(module, "weight")))
            rounding = rounds.bits, scale
        product = Product(module.weight, module.bias, None, rounding)
        if not isinstance(module, nn.Linear):
            if module.padding_mode != "zeros":
                self._refuse(self.at, f"padding_mode must be 'zeros', got {module.padding_mode!r}")
            product = product_of_convolution(module, module.weight, module.bias, self.shape, rounding)
        return Signal((self._product(self.at, signal, product),), self.out, "current")

    def _function(self, signal: Signal, module: nn.Module) -> Signal:
        """Add a function of real numbers."""
        try:
            call = FrozenModule.of(module, False)
        except ValueError as error:
            raise self._refusal(self.at, str(error)) from None
        return self.function(self.at, call, module, [signal])

    def _flattened(self, signal: Signal, module: nn.Flatten) -> Signal:
        return self._flatten(signal, module.start_dim, module.end_dim)

    def _passed_on(self, signal: Signal, module: nn.Module) -> Signal:
        """Add no node for a module that does nothing in eval mode."""
        return signal


Torch = tuple[tuple[type[nn.Module], ...], Callable[..., Signal], tuple[str, ...] | None]
_TORCH: list[Torch] = [
    ((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), NirGraphWriter._passed_on, None),
    ((nn.Flatten,), NirGraphWriter._flattened, None),
    ((nn.Linear, nn.Conv1d, nn.Conv2d), NirGraphWriter._read_out, ("current",)),
    ((nn.AvgPool2d, nn.AdaptiveAvgPool2d), NirGraphWriter._mean, ("current",)),
]
"""Modules of torch, how they are written, and the inputs that they take."""


def _thinned(x: Tensor, rows: MaxAxis, columns: MaxAxis) -> Tensor:
    """Return what windows of one pixel select of values [P, N, C, H, W]."""
    padded = F.pad(x, (*[columns.padding] * 2, *[rows.padding] * 2))
    return padded[..., :: rows.stride, :: columns.stride][..., : rows.outputs, : columns.outputs]


def _kernel(rows: Windows, columns: Windows) -> list[int]:
    """Return the size of windows that all have the same size."""
    return [axis.stops[0] - axis.starts[0] for axis in (rows, columns)]


def _geometry(rows: Windows, columns: Windows, source: NirSource) -> NirGeometry:
    """Return the convolution of each channel that reads such windows."""
    before, size = (-rows.starts[0], -columns.starts[0]), (len(rows.starts), len(columns.starts))
    return NirGeometry((rows.stride, columns.stride), before, (1, 1), source.shape[0], size)


def _channels(signal: Signal) -> list[tuple[NirSource, Channels]] | None:
    """Return the sources and how the value's channels read them, or None if some do not keep the image."""
    pairs = [(source, channels_of(source, signal.shape)) for source in signal.sources]
    found = [(source, channels) for source, channels in pairs if channels is not None]
    return found if len(found) == len(pairs) else None
