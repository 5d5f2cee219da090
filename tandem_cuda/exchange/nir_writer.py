"""Build a NIR graph, node by node, from a network's modules."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from .._progress import progress
from ..convert import flattened_to
from ..neuron import Neuron
from ..nn import (
    Decode,
    Encode,
    SpikeCat,
    SpikeRearrange,
    SpikeWindows,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    TandemAdd,
    TandemStochasticDepth,
)
from ..nn.tandem import TandemLayer
from ..spike_train import SpikeTrain
from .nir_builder import Builder, Signal, shape_of, typed
from .nir_format import RESET, nir, unsupported
from .nir_sources import Channels, Geometry, Source, channels_of, convolution, is_image

# In eval mode.
IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, TandemStochasticDepth)
REARRANGEMENTS = (SpikeRearrange, SpikeWindows)
POOLS = (SpikingAvgPool2d, SpikingAdaptiveAvgPool2d)
READ_OUTS = (nn.Linear, nn.Conv1d, nn.Conv2d)
MEANS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_FLAT_NEXT = "must be followed by flattening to [N, F]: NIR has no other node for it"


def name_of(node: fx.Node, module: nn.Module) -> str:
    """Return the name of a module for error messages."""
    return f"{node.target} ({type(module).__name__})"


_TAKES: list[tuple[tuple[type, ...], tuple[str, ...]]] = [
    ((Encode,), ("real",)),
    ((TandemLayer,), ("spikes", "encoded")),
    ((TandemAdd, *POOLS, SpikeCat, *REARRANGEMENTS, Decode), ("spikes",)),
    ((*READ_OUTS, *MEANS), ("current",)),
]


class Export(Builder):
    """The NIR graph of a network, module by module."""

    def graph(self, root: nn.Module, calls: list[fx.Node]) -> nir.NIRGraph:
        signals: dict[fx.Node, Signal] = {}
        last = {x: node for node in calls for x in node.all_input_nodes}
        result = self.sample
        for node in progress(calls, "to_nir"):
            inputs = [signals[x] for x in (*node.args, *node.kwargs.values()) if isinstance(x, fx.Node)]
            what = f"{node.name} ({node.op})"
            if node.op == "placeholder":
                signals[node] = self.sample
            elif node.op == "output":
                result = inputs[0]
            elif node.op == "call_module":
                signals[node] = self.add(node, root.get_submodule(str(node.target)), inputs)
            elif node.target is operator.add:
                signals[node] = self._sum(what, *inputs)
            else:
                dims: Any = () if node.target is flattened_to else node.args[1:]
                named: Any = {name: x for name, x in node.kwargs.items() if not isinstance(x, fx.Node)}
                signals[node] = self._flatten(node.name, what, inputs[0], *dims, **named)
            for x in node.all_input_nodes:
                if last[x] is node:  # large networks have many values
                    del signals[x]
        read = {name for source in result.sources for name in source.nodes}
        if result.kind not in ("spikes", "current") or self.encoding is None or "input" in read:
            self.problems.append("output: it must depend on a tandem layer")
        else:
            result = self._for_output(result)
        if self.problems:
            raise unsupported("to_nir: model", self.problems)
        nodes = [name for source in result.sources for name in source.nodes]
        self._put("output", nir.Output(output_type=np.array(shape_of(result.value))), nodes)
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
        for name in reversed(self.nodes):  # nodes come after those that they read
            if name in read:
                read.update(sources[name])
        self.nodes = {name: node for name, node in self.nodes.items() if name in read}
        self.edges = [edge for edge in self.edges if edge[1] in read]

    def _for_output(self, result: Signal) -> Signal:
        """Return the output as nodes whose sum it is."""
        if result.kind == "spikes":
            result = result._replace(gain=1.0)
        if result.node() is None or result.gain != 1:
            result = result._replace(sources=(self._alone("read_out", "output", result),))
        if result.sources[0].shape != shape_of(result.value):
            self.problems.append(f"output: {result.why or 'NIR has no node that adds a dimension'}")
        return result

    def add(self, node: fx.Node, module: Any, inputs: list[Signal]) -> Signal:
        """Add the nodes of a module, and return its output."""
        what, name = name_of(node, module), str(node.target)
        if isinstance(module, IDLE):
            return inputs[0]
        if isinstance(module, nn.Flatten):
            return self._flatten(name, what, inputs[0], module.start_dim, module.end_dim)
        for signal in inputs:
            takes = next(takes for kinds, takes in _TAKES if isinstance(module, kinds))
            if signal.kind not in takes:
                hint = "; put it after Decode" if takes == ("current",) else ""
                self.problems.append(f"{what}: its input must be {' or '.join(takes)}, got {signal.kind}{hint}")
                raise unsupported("to_nir: model", self.problems)  # later values cannot be computed
        (signal, *_) = inputs
        out = module(*(signal.value for signal in inputs))
        if isinstance(module, Encode):
            encoding = module.time_steps, module.mode
            if self.encoding not in (None, encoding):
                self.problems.append(f"{what}: T and mode must be {self.encoding}, as in the other Encode")
            self.encoding = encoding
            return signal._replace(value=out, kind="encoded", gain=module.scale)
        if isinstance(module, Decode):
            return self._decoded(module, signal, out)
        if isinstance(module, SpikeCat):
            return self._concatenated(module, inputs, out)
        if isinstance(module, REARRANGEMENTS):
            return self._rearranged(name, what, module, signal, out)
        if isinstance(module, TandemLayer):
            source = self._weights(name, what, module, *module.weights.folded(), signal, out)
            return self._neurons(name, what, module.neuron, source, out)
        if isinstance(module, TandemAdd):
            return self._join(name, what, module, inputs, out)
        if isinstance(module, POOLS):
            return self._pool(name, what, module, signal, out)
        if isinstance(module, MEANS):
            return self._mean(name, what, module, signal, out)
        source = self._weights(name, what, module, module.weight, module.bias, signal, out)
        return Signal((source,), out, "current")

    # -- what only moves values: no nodes

    def _decoded(self, decode: Decode, signal: Signal, out: Tensor) -> Signal:
        shape = shape_of(signal.value)
        sources: Sequence[Source] = signal.sources
        if decode.signed:
            positive = [source.moved(shape, lambda x: x[::2]) for source in sources]
            negative = [source.moved(shape, lambda x: x[1::2]) for source in sources]
            minus = torch.full(shape_of(out), -1.0, dtype=torch.float64)
            sources = _used([*positive, *(source.times(minus) for source in negative)])
        if decode.scale is not None:
            scale = decode.scale.detach().cpu().double()
            scale = scale.repeat_interleave(out.shape[1] // len(scale)).view(-1, *[1] * (out.dim() - 2))
            scale = scale.expand(*shape_of(out))
            sources = [source.times(scale) for source in sources]
        return signal._replace(sources=tuple(sources), value=out, kind="current")

    def _concatenated(self, cat: SpikeCat, inputs: list[Signal], out: SpikeTrain) -> Signal:
        sources, start = [], 0
        for signal, signed in zip(inputs, cat.signed, strict=True):
            own = signal.sources
            channels, *size = shape_of(signal.value)
            if any(cat.signed) and not signed:  # with negative parts that are silent
                own = tuple(source.moved((channels, *size), _with_silent) for source in own)
                channels *= 2
            for source in own:
                first, last = source.part or (0, channels)
                sources.append(source._replace(part=(start + first, start + last)))
            start += channels
        why = next((signal.why for signal in inputs if signal.why), "")
        return Signal(tuple(sources), out, "spikes", out.amplitude, why)

    def _rearranged(
        self, name: str, what: str, module: SpikeRearrange | SpikeWindows, signal: Signal, out: SpikeTrain
    ) -> Signal:
        shape, after = shape_of(signal.value), shape_of(out)

        def moved(source: Source) -> Source:
            return source.moved(shape, lambda x: module.rearranged(x[None, None])[0, 0])

        sources = _used([moved(source) for source in signal.sources])
        # What NIR can express before this it may not express after it, such as cropping before padding.
        images = len(after) > 1 and is_image(moved(Source((), shape)), after)
        if images and not self._are_images(sources, after) and self._are_images(signal.sources, shape):
            sources = [moved(source) for source in self._as_node(name, what, signal).sources]
        why = signal.why or f"{what} before it {_FLAT_NEXT}"
        return Signal(self._flat(name, sources, len(after)), out, "spikes", out.amplitude, why)

    def _sum(self, what: str, first: Signal, second: Signal) -> Signal:
        """Add decoded values."""
        shapes = [list(shape_of(signal.value)) for signal in (first, second)]
        if (first.kind, second.kind) != ("current", "current") or shapes[0] != shapes[1]:
            got = " and ".join(f"{signal.kind} {shape}" for signal, shape in zip((first, second), shapes, strict=True))
            self.problems.append(f"{what}: it must add two currents (after Decode) of the same shape, got {got}")
            raise unsupported("to_nir: model", self.problems)
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
        return Signal(tuple(sources), out, "current", 1.0, first.why or second.why)

    def _join(self, name: str, what: str, join: TandemAdd, inputs: list[Signal], out: Any) -> Signal:
        folded = [branch.weights.folded() if isinstance(branch, TandemLayer) else None for branch in join.branches]
        biases = [pair[1] for pair in folded if pair is not None and pair[1] is not None]
        total = sum(biases[1:], biases[0]) if biases else None  # summed first, as the layer does
        scale = join.current_scale()
        if scale is not None:
            total = None if total is None else total * scale
            inputs = [signal._replace(gain=signal.gain * float(scale)) for signal in inputs]
        nodes: list[str] = []
        shapes = []
        for i, (branch, pair, signal) in enumerate(zip(join.branches, folded, inputs, strict=True)):
            part, what_part, same = f"{name}_{i}", f"{what}, branch {i}", signal.node()
            if pair is not None:
                source = self._weights(part, what_part, branch, pair[0], total, signal, out)
                total = None
            elif same is not None and signal.gain == 1 and not {*same.nodes} & {*nodes}:
                source = same
            else:
                source = self._alone(part, what_part, signal)
            nodes += source.nodes
            shapes.append(source.shape)
        why = next((signal.why for signal in inputs if signal.why), "")
        self._check_shapes(what, shapes, why)
        return self._neurons(name, what, join.neuron, Source(tuple(nodes), shapes[0]), out, why)

    def _channels(self, signal: Signal) -> list[tuple[Source, Channels]] | None:
        """Return the sources and how the value's channels read them, or None if some do not keep the image."""
        pairs = [(source, channels_of(source, shape_of(signal.value))) for source in signal.sources]
        found = [(source, channels) for source, channels in pairs if channels is not None]
        return found if len(found) == len(pairs) else None

    def _pool(self, name: str, what: str, pool: Any, signal: Signal, out: Any) -> Signal:
        """Add the sums or means of windows and the neurons of average pooling, for each source."""
        found = self._channels(signal)
        if found is None:
            found = self._channels(self._as_node(name, what, signal))
        rows, columns = pool.windows(*shape_of(signal.value)[1:])
        uneven = not (rows.uniform() and columns.uniform())
        sources, made = [], {}
        for i, (source, channels) in enumerate(found or []):
            part = name if len(found or []) == 1 else f"{name}_{i}"
            if source.nodes not in made:
                windows, neuron = self._sums(part, what, pool, rows, columns, source, out.dtype)
                (made[source.nodes],) = self._neurons(part, what, neuron, windows, out).sources
            sources.append(channels.source(made[source.nodes], shape_of(out)))
        why = f"the pooling before it has windows of different sizes and {_FLAT_NEXT}" if uneven else signal.why
        return Signal(tuple(sources) or signal.sources, out, "spikes", out.amplitude, why)

    def _sums(
        self, name: str, what: str, pool: Any, rows: Any, columns: Any, source: Source, dtype: torch.dtype
    ) -> tuple[Source, Neuron]:
        """Add the sums or means of windows, and return them and the neurons that they drive."""
        part, channels = f"{name}_windows", source.shape[0]
        divisors = pool.divisors(rows, columns)
        inputs = Source(source.nodes, source.shape)
        if not (rows.uniform() and columns.uniform()):
            covers = torch.einsum("iy,jx->ijyx", rows.membership().double(), columns.membership().double())
            common = math.lcm(*divisors)
            shares = torch.tensor([common // d for d in divisors], dtype=torch.float64)
            maps = covers.flatten(0, 1) * shares.view(-1, 1, 1)
            weight = maps.to(dtype).repeat(channels, 1, 1).unsqueeze(1)
            how = Geometry((1, 1), (0, 0), (1, 1), channels, (1, 1))
            return self._depthwise(part, what, weight, how, inputs), pool.neurons(common)
        kernel = [axis.stops[0] - axis.starts[0] for axis in (rows, columns)]
        before = (-rows.starts[0], -columns.starts[0])
        behind = [axis.stops[-1] - axis.size for axis in (rows, columns)]
        how = Geometry((rows.stride, columns.stride), before, (1, 1), channels, (len(rows.starts), len(columns.starts)))
        # Importers ignore the padding of pooling, but not that of convolutions. NIR cannot pool lines.
        if any(before) or max(behind) > 0 or len(source.shape) == 2:
            ones = torch.ones(channels, 1, *kernel, dtype=dtype)
            return self._depthwise(part, what, ones, how, inputs), pool.neurons(divisors[0])
        if divisors[0] == math.prod(kernel) and divisors[0] & (divisors[0] - 1) == 0:
            return self._windows(part, nir.AvgPool2d, kernel, how, inputs), pool.neurons()
        return self._windows(part, nir.SumPool2d, kernel, how, inputs), pool.neurons(divisors[0])

    def _mean(self, name: str, what: str, mean: Any, signal: Signal, out: Tensor) -> Signal:
        """Add average pooling of decoded counts, for each source."""
        if isinstance(mean, nn.AvgPool2d):
            settings = mean.ceil_mode, mean.count_include_pad, mean.divisor_override
            pool: Any = SpikingAvgPool2d(mean.kernel_size, mean.stride, mean.padding, *settings)
        else:
            pool = SpikingAdaptiveAvgPool2d(mean.output_size)
        axes = pool.windows(*shape_of(signal.value)[1:])
        kernel = [axis.stops[0] - axis.starts[0] for axis in axes]
        inside = all(axis.uniform() and axis.starts[0] == 0 and axis.stops[-1] <= axis.size for axis in axes)
        if not inside or getattr(mean, "divisor_override", None) not in (None, math.prod(kernel)):
            self.problems.append(f"{what}: it must have windows of one size, no padding and no other divisor")
        found = self._channels(signal)
        if found is None:
            signal = self._as_node(name, what, signal)
            found = self._channels(signal) or []
        rows, columns = axes
        size = len(rows.starts), len(columns.starts)
        sources, made = [], {}
        for i, (source, channels) in enumerate(found):
            if source.nodes not in made:
                part, inputs = name if len(found) == 1 else f"{name}_{i}", Source(source.nodes, source.shape)
                how = Geometry((rows.stride, columns.stride), (0, 0), (1, 1), source.shape[0], size)
                if len(source.shape) == 2:  # NIR cannot pool lines
                    share = torch.full((source.shape[0], 1, *kernel), 1 / math.prod(kernel), dtype=out.dtype)
                    made[source.nodes] = self._depthwise(part, what, share, how, inputs)
                else:
                    made[source.nodes] = self._windows(part, nir.AvgPool2d, kernel, how, inputs)
            sources.append(channels.source(made[source.nodes], shape_of(out)))
        return signal._replace(sources=tuple(sources) or signal.sources, value=out)

    def _depthwise(self, name: str, what: str, weight: Tensor, how: Geometry, source: Source) -> Source:
        product = convolution(source, source.shape, weight, how)
        assert product is not None
        node = self._convolution(what, product, None, how, source)
        return Source((self._put(name, node, source.nodes),), tuple(node.output_type["output"].tolist()))

    def _windows(self, name: str, kind: Any, kernel: Sequence[int], how: Geometry, source: Source) -> Source:
        """Add a node of type AvgPool2d or SumPool2d."""
        shape = (source.shape[0], *how.size)
        node = typed(kind(np.array(kernel), np.array(how.stride), np.array([0, 0])), source.shape, shape)
        return Source((self._put(name, node, source.nodes),), shape)

    def _flatten(self, name: str, what: str, signal: Signal, start_dim: Any = None, end_dim: int = -1) -> Signal:
        value, shape = signal.value, shape_of(signal.value)
        if start_dim is None:
            start_dim = 0 if isinstance(value, Tensor) else 1
        start, end = (dim % (len(shape) + 1) for dim in (start_dim, end_dim))
        if start == 0:
            self.problems.append(f"{what}: start_dim must leave the batch dimension alone, got {start_dim}")
            raise unsupported("to_nir: model", self.problems)
        out = value.flatten(start, end)
        if start == end:
            return signal._replace(value=out)
        sources = [source.flattened(shape, start - 1, end - 1) for source in signal.sources]
        alike = all(len(source.shape) == len(shape) for source in sources)
        between = (start - 1, end - 1) if alike else None
        return signal._replace(sources=self._flat(name, sources, len(shape_of(out)), between), value=out)

    def _flat(
        self, name: str, sources: Sequence[Source], dims: int, between: tuple[int, int] | None = None
    ) -> tuple[Source, ...]:
        """Flatten outputs of nodes that have more dimensions: ``between`` two, or the last ones."""
        made: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[int, ...]]] = {}
        flat = []
        for source in sources:
            if len(source.shape) > dims:
                if source.nodes not in made:
                    start, end = between or (dims - 1, len(source.shape) - 1)
                    node = nir.Flatten({"input": np.array(source.shape)}, start, end)  # NIR has no batch dimension
                    middle = math.prod(source.shape[start : end + 1])
                    shape = (*source.shape[:start], middle, *source.shape[end + 1 :])
                    made[source.nodes] = (self._put(name, node, source.nodes),), shape
                nodes, shape = made[source.nodes]
                source = source._replace(nodes=nodes, shape=shape)
            flat.append(source)
        return tuple(flat)


def _with_silent(x: Tensor) -> Tensor:
    return torch.stack([x, torch.zeros_like(x)], 1).flatten(0, 1)


def _used(sources: Sequence[Source]) -> Sequence[Source]:
    """Leave out sources that nothing reads any more, but one."""
    return [source for source in sources if source.position is None or bool((source.position > 0).any())] or sources[:1]
