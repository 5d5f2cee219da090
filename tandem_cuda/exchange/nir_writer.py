"""Build a NIR graph, node by node, from a network's modules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .._progress import progress
from ..convert import flattened_to
from ..neuron import Neuron
from ..nn import (
    Decode,
    Encode,
    EncodedInput,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    TandemAdd,
    TandemConv1d,
    TandemConvTranspose2d,
    TandemStochasticDepth,
)
from ..nn.quantiser import quantiser
from ..nn.tandem import TandemLayer, stored
from ..spike_train import SpikeTrain
from .nir_format import RESET, nir, unsupported

IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, TandemStochasticDepth)  # in eval mode
POOLS = (SpikingAvgPool2d, SpikingAdaptiveAvgPool2d)
READ_OUTS = (nn.Linear, nn.Conv1d, nn.Conv2d)
MEANS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_FLAT_NEXT = (
    "the pooling before it has windows of different sizes and must be followed by flattening to [N, F]: NIR has no "
    "other node for it"
)


def name_of(node: fx.Node, module: nn.Module) -> str:
    """Return the name of a module for error messages."""
    return f"{node.target} ({type(module).__name__})"


class _Signal(NamedTuple):
    """A value of the model, and the graph node whose output it is."""

    node: str
    value: Any
    """The value for the sample."""
    kind: str
    """"real", "encoded", "spikes", or, after Decode, "current"."""
    gain: float
    """The factor to multiply the node's output by."""
    shape: tuple[int, ...]
    """The shape of the node's output. It differs from the value's only if flattening must follow."""

    def flat_next(self) -> bool:
        """Whether flattening must follow."""
        return self.shape != _shape(self.value)


_TAKES: list[tuple[tuple[type, ...], tuple[str, ...]]] = [
    ((Encode,), ("real",)),
    ((TandemLayer,), ("spikes", "encoded")),
    ((TandemAdd, *POOLS, Decode), ("spikes",)),
    ((*READ_OUTS, *MEANS), ("current",)),
]


class Export:
    """A NIR graph under construction."""

    def __init__(self, dt: float, sample: Tensor | SpikeTrain) -> None:
        self.dt = dt
        self.nodes: dict[str, nir.NIRNode] = {"input": nir.Input(input_type=np.array(sample.shape[1:]))}
        self.edges: list[tuple[str, str]] = []
        self.encoding: tuple[int, str] | None = None
        """T, and the encoding of the input."""
        spikes = isinstance(sample, SpikeTrain)
        if isinstance(sample, SpikeTrain):
            self.encoding = sample.time_steps, "spikes"
        gain = sample.amplitude if isinstance(sample, SpikeTrain) else 1.0
        self.sample = _Signal("input", sample, "spikes" if spikes else "real", gain, tuple(sample.shape[1:]))
        self.problems: list[str] = []

    def graph(self, root: nn.Module, calls: list[fx.Node]) -> nir.NIRGraph:
        signals: dict[fx.Node, _Signal] = {}
        result = self.sample
        for node in progress(calls, "to_nir"):
            inputs = [signals[x] for x in (*node.args, *node.kwargs.values()) if isinstance(x, fx.Node)]
            if node.op == "placeholder":
                signals[node] = self.sample
            elif node.op == "output":
                result = inputs[0]
            elif node.op == "call_module":
                signals[node] = self.add(node, root.get_submodule(str(node.target)), inputs)
            else:
                dims: Any = () if node.target is flattened_to else node.args[1:]
                named: Any = {name: x for name, x in node.kwargs.items() if not isinstance(x, fx.Node)}
                signals[node] = self._flatten(node.name, f"{node.name} ({node.op})", inputs[0], *dims, **named)
        if result.kind not in ("spikes", "current") or self.encoding is None or result.node == "input":
            self.problems.append("output: it must depend on a tandem layer")
        if result.flat_next():
            self.problems.append(f"output: {_FLAT_NEXT}")
        if self.problems:
            raise unsupported("to_nir: model", self.problems)
        if result.kind == "current" and result.gain != 1:
            result = self._scaled("read_out", "output", result)
        self._put("output", nir.Output(output_type=np.array(_shape(result.value))), [result.node])
        assert self.encoding is not None
        steps, mode = self.encoding
        metadata = {"time_steps": steps, "dt": float(self.dt), "encoding": mode, "reset": RESET}
        return nir.NIRGraph(self.nodes, self.edges, metadata, type_check=False)  # the check takes quadratic time

    def add(self, node: fx.Node, module: Any, inputs: list[_Signal]) -> _Signal:
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
            if signal.flat_next():
                self.problems.append(f"{what}: {_FLAT_NEXT}")
        (signal, *_) = inputs
        out = module(*(signal.value for signal in inputs))
        if isinstance(module, Encode):
            encoding = module.time_steps, module.mode
            if self.encoding not in (None, encoding):
                self.problems.append(f"{what}: T and mode must be {self.encoding}, as in the other Encode")
            self.encoding = encoding
            return signal._replace(value=out, kind="encoded", gain=module.scale)
        if isinstance(module, Decode):
            return signal._replace(value=out, kind="current")
        if isinstance(module, TandemLayer):
            weights = self._weights(name, what, module, *module.folded(), signal, out)
            return self._neurons(name, what, module.neuron, [weights], out)
        if isinstance(module, TandemAdd):
            return self._join(name, what, module, inputs, out)
        if isinstance(module, POOLS):
            return self._pool(name, what, module, signal, out)
        if isinstance(module, MEANS):
            return self._mean(name, what, module, signal, out)
        weights = self._weights(name, what, module, module.weight, module.bias, signal, out)
        return _Signal(weights, out, "current", 1.0, _shape(out))

    # -- nodes

    def _put(self, name: str, node: nir.NIRNode, sources: Iterable[str]) -> str:
        """Add a node under a unique name that other libraries accept as the name of a module."""
        if name != "output":
            name = name.replace(".", "_")
            name = f"layer_{name}" if name[0].isdigit() else name
            while name in ("input", "output") or name in self.nodes:
                name += "_"
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def _weights(
        self, name: str, what: str, module: Any, weight: Tensor, bias: Tensor | None, signal: _Signal, out: Any
    ) -> str:
        """Add the node of a layer's weights [O, ...] and bias. The bias given is the sum over all T steps."""
        assert self.encoding is not None
        metadata = _rounding(module, signal.gain)
        weight = weight * signal.gain
        per_step = None if bias is None else bias / self.encoding[0]
        if not all(bool(x.isfinite().all()) for x in (weight, per_step) if x is not None):
            self.problems.append(f"{what}: weights and bias must be finite, got NaN or infinite values")
        if isinstance(module, nn.Linear):
            if len(signal.shape) != 1:
                got = [1, *signal.shape]
                self.problems.append(f"{what}: its input must be [N, F], got {got}; put nn.Flatten before it")
                return name
            values = [_array(x) for x in (weight, per_step) if x is not None]
            node = (nir.Linear if per_step is None else nir.Affine)(*values, metadata=metadata)
            return self._put(name, node, [signal.node])
        if module.padding_mode != "zeros":
            self.problems.append(f"{what}: padding_mode must be 'zeros', got {module.padding_mode!r}")
        stride, padding, dilation = module.stride, module.padding, module.dilation
        if isinstance(module, TandemConv1d):
            weight = module.own_weight(weight)
        elif isinstance(module, TandemConvTranspose2d):
            weight, padding = self._transposed(what, module, weight, signal)
            stride, dilation = (1, 1), (1, 1)
        geometry = stride, padding, dilation, module.groups
        return self._convolution(name, weight, per_step, *geometry, signal, _shape(out), metadata)

    def _convolution(
        self,
        name: str,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int] | str,
        dilation: Sequence[int],
        groups: int,
        signal: _Signal,
        shape: tuple[int, ...],
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Add a node of type Conv1d or Conv2d."""
        size: Any = signal.shape[1:]
        geometry: list[Any] = [stride, padding if isinstance(padding, str) else tuple(padding), dilation]
        one_dimension = weight.dim() == 3
        if one_dimension:
            (size,) = size
            geometry = [x if isinstance(x, str) else x[0] for x in geometry]
        values = _array(weight)
        zeros = np.zeros(len(values), values.dtype)
        node = (nir.Conv1d if one_dimension else nir.Conv2d)(
            size, values, *geometry, groups, zeros if bias is None else _array(bias), metadata=metadata or {}
        )
        return self._put(name, _typed(node, signal, shape), [signal.node])

    def _transposed(
        self, what: str, module: TandemConvTranspose2d, weight: Tensor, signal: _Signal
    ) -> tuple[Tensor, list[int]]:
        """Return kernel and padding of the equivalent convolution, if the stride puts no zeros between pixels."""
        if any(s > 1 and size > 1 for s, size in zip(module.stride, signal.shape[1:], strict=True)):
            self.problems.append(
                f"{what}: its stride must be 1 (NIR has no transposed convolution), got {module.stride}"
            )
        taps = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        spread = weight.new_zeros(*weight.shape[:2], taps[0] + 1, taps[1] + 1)
        spread[..., :: module.dilation[0], :: module.dilation[1]] = weight
        padding: Any = module.padding
        before = [tap - p for tap, p in zip(taps, padding, strict=True)]
        if min(before) < 0:
            self.problems.append(f"{what}: its padding must be at most {taps}, got {padding}")
        behind = [b + more for b, more in zip(before, module.output_padding, strict=True)]
        return _evenly_padded(spread, before, behind)

    def _neurons(
        self, name: str, what: str, neuron: Neuron, sources: list[str], out: Any, shape: Any = None
    ) -> _Signal:
        """Add neurons that sum the outputs of the sources."""
        shape = _shape(out) if shape is None else shape
        try:
            form = neuron.to_nir(self.dt)
        except ValueError as error:
            self.problems.append(f"{what}: {error}")
            raise unsupported("to_nir: model", self.problems) from None
        node = getattr(nir, form.node)(
            **{parameter: np.full(shape, value, dtype=np.float64) for parameter, value in form.values.items()},
            metadata=form.metadata,
        )
        return _Signal(self._put(f"{name}_neurons", node, sources), out, "spikes", out.amplitude, shape)

    def _join(self, name: str, what: str, join: TandemAdd, inputs: list[_Signal], out: Any) -> _Signal:
        folded = [branch.folded() if isinstance(branch, TandemLayer) else None for branch in join.branches]
        biases = [pair[1] for pair in folded if pair is not None and pair[1] is not None]
        total = sum(biases[1:], biases[0]) if biases else None  # summed first, as the layer does
        scale = join.current_scale()
        if scale is not None:
            total = None if total is None else total * scale
            inputs = [signal._replace(gain=signal.gain * float(scale)) for signal in inputs]
        sources: list[str] = []
        for i, (branch, pair, signal) in enumerate(zip(join.branches, folded, inputs, strict=True)):
            part = f"{name}_{i}"
            if pair is not None:
                source = self._weights(part, f"{what}, branch {i}", branch, pair[0], total, signal, out)
                total = None
            elif signal.gain == 1 and signal.node not in sources:
                source = signal.node
            else:
                source = self._scaled(part, f"{what}, branch {i}", signal).node
            sources.append(source)
        return self._neurons(name, what, join.neuron, sources, out)

    def _scaled(self, name: str, what: str, signal: _Signal) -> _Signal:
        """Multiply a signal by its gain, using only nodes that every importer supports."""
        channels, *size = signal.shape
        weight = signal.gain * torch.eye(channels, dtype=signal.value.dtype)
        if len(size) > 2:
            self.problems.append(
                f"{what}: its input must be [N, F], [N, C, L] or [N, C, H, W], got {[1, *signal.shape]}"
            )
            return signal
        if size:
            ones = [1] * len(size)
            weight = weight.view(channels, channels, *ones)
            node = self._convolution(name, weight, None, ones, [0] * len(size), ones, 1, signal, signal.shape)
        else:
            node = self._put(name, nir.Linear(_array(weight)), [signal.node])
        return signal._replace(node=node, gain=1.0)

    def _pool(self, name: str, what: str, pool: Any, signal: _Signal, out: Any) -> _Signal:
        """Add the sums or means of windows and the neurons of average pooling."""
        rows, columns = pool.windows(*signal.shape[1:])
        divisors = pool.divisors(rows, columns)
        channels, shape = signal.shape[0], _shape(out)
        part = f"{name}_windows"
        if not (rows.uniform() and columns.uniform()):
            covers = torch.einsum("iy,jx->ijyx", rows.membership().double(), columns.membership().double())
            common = math.lcm(*divisors)
            shares = torch.tensor([common // d for d in divisors], dtype=torch.float64)
            maps = covers.flatten(0, 1) * shares.view(-1, 1, 1)
            weight = maps.to(signal.value.dtype).repeat(channels, 1, 1).unsqueeze(1)
            shape = (len(weight), 1, 1)
            weights = self._convolution(part, weight, None, (1, 1), (0, 0), (1, 1), channels, signal, shape)
            return self._neurons(name, what, pool.neurons(common), [weights], out, shape)
        kernel = [axis.stops[0] - axis.starts[0] for axis in (rows, columns)]
        before = [-axis.starts[0] for axis in (rows, columns)]
        behind = [axis.stops[-1] - axis.size for axis in (rows, columns)]
        stride = rows.stride, columns.stride
        if any(before) or max(behind) > 0:  # importers ignore the padding of pooling, but not that of convolutions
            ones, padding = _evenly_padded(torch.ones(channels, 1, *kernel, dtype=signal.value.dtype), before, behind)
            weights = self._convolution(part, ones, None, stride, padding, (1, 1), channels, signal, shape)
        elif divisors[0] == math.prod(kernel) and divisors[0] & (divisors[0] - 1) == 0:
            mean = self._windows(part, nir.AvgPool2d, kernel, stride, signal, shape)
            return self._neurons(name, what, pool.neurons(), [mean], out)
        else:
            weights = self._windows(part, nir.SumPool2d, kernel, stride, signal, shape)
        return self._neurons(name, what, pool.neurons(divisors[0]), [weights], out)

    def _mean(self, name: str, what: str, mean: Any, signal: _Signal, out: Tensor) -> _Signal:
        """Add average pooling of decoded counts."""
        if isinstance(mean, nn.AvgPool2d):
            settings = mean.ceil_mode, mean.count_include_pad, mean.divisor_override
            pool: Any = SpikingAvgPool2d(mean.kernel_size, mean.stride, mean.padding, *settings)
        else:
            pool = SpikingAdaptiveAvgPool2d(mean.output_size)
        axes = pool.windows(*signal.shape[1:])
        kernel = [axis.stops[0] - axis.starts[0] for axis in axes]
        inside = all(axis.uniform() and axis.starts[0] == 0 and axis.stops[-1] <= axis.size for axis in axes)
        if not inside or getattr(mean, "divisor_override", None) not in (None, math.prod(kernel)):
            self.problems.append(f"{what}: it must have windows of one size, no padding and no other divisor")
        means = self._windows(name, nir.AvgPool2d, kernel, [axis.stride for axis in axes], signal, _shape(out))
        return signal._replace(node=means, value=out, shape=_shape(out))

    def _windows(
        self,
        name: str,
        kind: Any,
        kernel: Sequence[int],
        stride: Sequence[int],
        signal: _Signal,
        shape: tuple[int, ...],
    ) -> str:
        """Add a node of type AvgPool2d or SumPool2d."""
        node = kind(np.array(kernel), np.array(stride), np.array([0, 0]))
        return self._put(name, _typed(node, signal, shape), [signal.node])

    def _flatten(self, name: str, what: str, signal: _Signal, start_dim: Any = None, end_dim: int = -1) -> _Signal:
        value, dims = signal.value, len(signal.shape) + 1
        if start_dim is None:
            start_dim = 0 if isinstance(value, Tensor) else 1
        start, end = start_dim % dims, end_dim % dims
        if start == 0:
            self.problems.append(f"{what}: start_dim must leave the batch dimension alone, got {start_dim}")
            raise unsupported("to_nir: model", self.problems)
        out = value.flatten(start, end)
        if start == end and not signal.flat_next():
            return signal._replace(value=out)
        if signal.flat_next() and len(_shape(out)) > 1:
            self.problems.append(f"{what}: {_FLAT_NEXT}")
        # NIR has no batch dimension.
        node = self._put(name, nir.Flatten({"input": np.array(signal.shape)}, start - 1, end - 1), [signal.node])
        return signal._replace(node=node, value=out, shape=_shape(out))


def _typed(node: nir.NIRNode, signal: _Signal, shape: tuple[int, ...]) -> nir.NIRNode:
    """Set the node's input and output types: nir itself assumes square kernels and ignores groups."""
    node.input_type, node.output_type = {"input": np.array(signal.shape)}, {"output": np.array(shape)}
    return node


def _rounding(module: Any, gain: float) -> dict[str, Any]:
    """Return the metadata of quantised weights: their bits, and what the integer 1 stands for in each channel."""
    rounds = quantiser(module)
    if rounds is None:
        return {}
    _, scale = rounds.integers(getattr(*stored(module, "weight")))
    if isinstance(module, TandemLayer) and (own := module.affine().gain) is not None:
        scale = scale * own
    return {"weight_bits": rounds.bits, "weight_scale": _array(scale * gain)}


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape without the batch dimension."""
    return tuple((value.value if isinstance(value, EncodedInput) else value).shape[1:])


def _evenly_padded(kernel: Tensor, before: Sequence[int], behind: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Return an equivalent kernel for equal padding on both sides: its leading zeros skip extra padding in front."""
    more = [max(last - first, 0) for first, last in zip(before, behind, strict=True)]
    return F.pad(kernel, (more[1], 0, more[0], 0)), [first + m for first, m in zip(before, more, strict=True)]


def _array(x: Tensor) -> Any:
    return x.detach().cpu().contiguous().numpy().copy()
