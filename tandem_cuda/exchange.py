"""Exchange with other simulators through NIR, the Neuromorphic Intermediate Representation.

Needs ``pip install tandem_cuda[nir]``. NIR (Pedersen et al., "Neuromorphic intermediate representation", Nature
Communications 2024, doi:10.1038/s41467-024-52259-9) describes neurons in continuous time; both functions here and
docs/exchange.md say how that maps to time steps.
"""

from __future__ import annotations

import io
import keyword
import math
import os
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .convert import TandemNetwork, flattened_to
from .neuron import IF, LIF, Neuron
from .nn import (
    Decode,
    Encode,
    EncodedInput,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemLinear,
)
from .nn.layer import TandemLayer
from .nn.modes import evaluating
from .spike_train import SpikeTrain

try:
    import h5py
    import nir

    _version = str(getattr(nir, "__version__", ""))
    if _version and [int(number) for number in re.findall(r"\d+", _version)[:3]] < [1, 0, 7]:
        raise ImportError(f"got nir {_version}, whose graphs are not what this module reads and writes")
    from nirtorch.torch_tracer import NIRTorchTracer
except ImportError as error:
    raise ImportError(
        f"tandem_cuda.exchange needs nir >= 1.0.7 and nirtorch ({error}): pip install tandem_cuda[nir]"
    ) from error

__all__ = ["from_nir", "to_nir"]

_ENCODINGS = ("constant", "impulse", "spikes")
_RESET = "subtract"
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # in eval mode

# ---------------------------------------------------------------------------------------------------------------------
# Export
# ---------------------------------------------------------------------------------------------------------------------

_POOLS = (SpikingAvgPool2d, SpikingAdaptiveAvgPool2d)
_READ_OUTS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_MEANS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_FLATTENED = (torch.flatten, flattened_to, "flatten")
_LEAVES = (TandemLayer, TandemAdd, *_POOLS, SpikingMaxPool2d, Encode, Decode, nn.Flatten, *_IDLE)
_NO_MAXIMUM = "NIR has no max pooling; pool averages, or let the convolution stride"
_NO_NODE = "NIR has no node for it; real numbers go into Encode, and what Decode returns into linear layers"


def to_nir(
    model: nn.Module,
    sample: Tensor | SpikeTrain,
    path: str | os.PathLike[str] | None = None,
    *,
    dt: float = 1e-4,
) -> nir.NIRGraph:
    """Describe a network in NIR, batch norm folded into the weights, as it is in eval mode.

    With a time step of dt, a simulator that integrates NIR's equations by the forward Euler method computes what
    u[t] = leak * u[t-1] + x[t] - threshold * s[t-1] says:

    - IF: nir.IF with r = 1 / dt, v_threshold = threshold and v_reset = 0.
    - LIF: nir.LIF with tau = dt / (1 - leak), r = 1 / (1 - leak), v_leak = 0, v_threshold = threshold and v_reset =
      threshold * (1 - 1 / leak).
    - In continuous time a neuron spikes at v = v_threshold exactly, and setting v to v_reset is subtracting
      v_threshold - v_reset. In time steps it is not: the simulator has to *subtract* it, as its setting for resets
      ("soft", "subtract") makes it do. The potential leaks after that, and leak * (v_threshold - v_reset) = threshold.
    - A neuron spikes where u >= threshold.
    - Biases are those of one time step, b / T.
    - Weights are multiplied by the ``amplitude`` of the spikes they receive, or the ``scale`` of ``Encode``.
    - ``TandemAdd``: neurons with an edge from each branch, whose currents add up; the first branch has the biases of
      all. Spikes of amplitude 1 enter directly, others through a 1 x 1 convolution (of features, a matrix).
    - Average pooling: neurons behind AvgPool2d where the size of a window is a power of two and there is no padding,
      else with as many times the threshold behind SumPool2d or a depthwise convolution of ones, so that sums are exact.
      Windows of different sizes become a convolution of the whole image, which must be flattened behind the neurons.
    - Input: at every time step the input itself (``Encode(T, "constant")``), or that at the first step and zeros
      afterwards ("impulse"), or the recorded spikes (no ``Encode``).
    - Output: spikes, or behind ``Decode`` and linear layers a current; summed over the T steps it is what the model
      returns (the spike counts of a model that ends in a tandem layer).

    dt, T (``time_steps``), the encoding and the reset, "subtract", are in the graph's metadata, each LIF's leak in that
    of its node.

    Args:
        model: its forward pass, as torch.fx traces it, calls ``Encode``, tandem layers, ``TandemAdd``, average pooling
            of spikes, flattening, dropout, ``Decode`` and, behind it, nn.Linear, nn.Conv1d, nn.Conv2d and average
            pooling; branches may part and join. Also what :func:`tandem_cuda.convert` has returned.
        sample: an input of the model, Tensor or SpikeTrain [N, ...], for the shapes and T.
        path: where to write the graph, as HDF5; by default nowhere.
        dt: duration of a time step in seconds; 1e-4 is what snnTorch and SpikingJelly assume.

    Returns:
        The graph. Its weights have the values and dtype of the folded ones.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``dt`` is not positive, or ``sample`` is empty; ``model`` has parts that have no place in the graph,
            all of which the message names, or weights that are not finite.
        OSError: the file cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_nir: model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(sample, (Tensor, SpikeTrain)):
        raise TypeError(f"to_nir: sample must be a Tensor or a SpikeTrain, got {type(sample).__name__}")
    if len(sample.shape) < 2 or 0 in sample.shape:
        raise ValueError(f"to_nir: sample must be [N, ...] and not empty, got {list(sample.shape)}")
    _check_dt("to_nir", dt)
    with evaluating(model), torch.no_grad():
        value = sample[:1] if isinstance(sample, Tensor) else sample.rearranged(lambda bits: bits[:, :1])
        graph = _Export(dt, value).graph(*_traced(model))
    if path is not None:
        _write(graph, os.fspath(path))
    return graph


def _write(graph: nir.NIRGraph, path: str) -> None:
    contents = io.BytesIO()  # libhdf5's own errors do not say what the system said
    nir.write(contents, graph)
    try:
        Path(path).write_bytes(contents.getbuffer())
    except OSError as error:
        raise OSError(error.errno, f"to_nir: path cannot be written: {error.strerror}", path) from error


def _traced(model: nn.Module) -> tuple[nn.Module, list[fx.Node]]:
    """A module and what its forward pass calls; ValueError where that has no place in a graph."""
    if isinstance(model, _LEAVES):
        model = nn.Sequential(OrderedDict({type(model).__name__.lower(): model}))
    if isinstance(model, TandemNetwork):
        model = model.snn
    try:
        nodes = list(NIRTorchTracer(_LEAVES, autowrap_functions=(flattened_to,)).trace(model).nodes)
    except Exception as error:  # whatever a user's forward raises when it meets a proxy
        raise ValueError(f"to_nir: model must have a forward pass that torch.fx can trace, got {error}") from error
    nodes = _used(nodes)
    problems = []
    for node in nodes:
        what = f"{node.target} ({node.op})"
        wanted = 1
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            what = _name(node, module)
            if not isinstance(module, (*_LEAVES, *_READ_OUTS, *_MEANS)) or isinstance(module, SpikingMaxPool2d):
                problems.append(f"{what}: {_NO_MAXIMUM if isinstance(module, SpikingMaxPool2d) else _NO_NODE}")
                continue
            wanted = len(module.branches) if isinstance(module, TandemAdd) else 1
            if not all(bool(x.isfinite().all()) for x in (*module.parameters(), *module.buffers())):
                problems.append(f"{what}: its weights and bias must be finite, got NaN or infinite ones")
                continue
        elif node.op == "placeholder":
            wanted = 0
            if node is not nodes[0]:
                problems.append(f"{what}: a model with one input is what can be exported")
        elif node.op == "output":
            what = "output"
            if not isinstance(node.args[0], fx.Node):
                problems.append("output: it must be one value")
        elif not (node.op in ("call_method", "call_function") and node.target in _FLATTENED):
            problems.append(f"{what}: only calls of modules and flattening can be exported")
            continue
        inputs = [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, fx.Node)]
        if len(inputs) != wanted and node.op != "output":
            problems.append(f"{what}: it must have {wanted} inputs, got {len(inputs)}")
    if problems:
        raise _unsupported("to_nir: model", problems)
    return model, nodes


def _used(nodes: list[fx.Node]) -> list[fx.Node]:
    """The input, and what the output depends on."""
    found = {nodes[-1]}
    for node in reversed(nodes):
        if node in found:
            found.update(node.all_input_nodes)
    return [node for node in nodes if node in found or node.op == "placeholder"]


def _name(node: fx.Node, module: nn.Module) -> str:
    return f"{node.target} ({type(module).__name__})"


class _Signal(NamedTuple):
    """A value of the model, and the node of the graph that puts it out."""

    node: str
    value: Any
    """For the sample."""
    kind: str
    """"real", "encoded", "spikes", or "current": behind Decode."""
    gain: float
    """What the node's output is to be multiplied by."""
    shape: tuple[int, ...]
    """Of the node's output; that of the value but where it is to be flattened."""

    def flat_next(self) -> bool:
        """Whether nothing but flattening can follow."""
        return self.shape != _shape(self.value)


_TAKES: list[tuple[tuple[type, ...], tuple[str, ...]]] = [
    ((Encode,), ("real",)),
    ((TandemLayer,), ("spikes", "encoded")),
    ((TandemAdd, *_POOLS, Decode), ("spikes",)),
    ((*_READ_OUTS, *_MEANS), ("current",)),
]


class _Export:
    """A NIR graph under construction."""

    def __init__(self, dt: float, sample: Tensor | SpikeTrain) -> None:
        self.dt = dt
        self.nodes: dict[str, nir.NIRNode] = {"input": nir.Input(input_type=np.array(sample.shape[1:]))}
        self.edges: list[tuple[str, str]] = []
        self.encoding: tuple[int, str] | None = None
        """T, and how real input enters."""
        spikes = isinstance(sample, SpikeTrain)
        if isinstance(sample, SpikeTrain):
            self.encoding = sample.time_steps, "spikes"
        gain = sample.amplitude if isinstance(sample, SpikeTrain) else 1.0
        self.sample = _Signal("input", sample, "spikes" if spikes else "real", gain, tuple(sample.shape[1:]))
        self.problems: list[str] = []

    def graph(self, root: nn.Module, calls: list[fx.Node]) -> nir.NIRGraph:
        signals: dict[fx.Node, _Signal] = {}
        result = self.sample
        for node in calls:
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
            self.problems.append("output: it must come from a tandem layer")
        if result.flat_next():
            self.problems.append(f"output: {_FLAT_NEXT}")
        if self.problems:
            raise _unsupported("to_nir: model", self.problems)
        if result.kind == "current" and result.gain != 1:
            result = self._scaled("read_out", "output", result)
        self._put("output", nir.Output(output_type=np.array(_shape(result.value))), [result.node])
        assert self.encoding is not None
        steps, mode = self.encoding
        metadata = {"time_steps": steps, "dt": float(self.dt), "encoding": mode, "reset": _RESET}
        return nir.NIRGraph(self.nodes, self.edges, metadata, type_check=False)  # it takes the square of the time

    def add(self, node: fx.Node, module: Any, inputs: list[_Signal]) -> _Signal:
        """What a module makes of its inputs."""
        what, name = _name(node, module), str(node.target)
        if isinstance(module, _IDLE):
            return inputs[0]
        if isinstance(module, nn.Flatten):
            return self._flatten(name, what, inputs[0], module.start_dim, module.end_dim)
        for signal in inputs:
            takes = next(takes for kinds, takes in _TAKES if isinstance(module, kinds))
            if signal.kind not in takes:
                hint = "; put it behind Decode" if takes == ("current",) else ""
                self.problems.append(f"{what}: its input must be {' or '.join(takes)}, got {signal.kind}{hint}")
                raise _unsupported("to_nir: model", self.problems)  # what follows cannot be computed
            if signal.flat_next():
                self.problems.append(f"{what}: {_FLAT_NEXT}")
        (signal, *_) = inputs
        out = module(*(signal.value for signal in inputs))
        if isinstance(module, Encode):
            encoding = module.time_steps, module.mode
            if self.encoding not in (None, encoding):
                self.problems.append(f"{what}: T and mode must be those of the other Encode, {self.encoding}")
            self.encoding = encoding
            return signal._replace(value=out, kind="encoded", gain=module.scale)
        if isinstance(module, Decode):
            return signal._replace(value=out, kind="current")
        if isinstance(module, TandemLayer):
            weights = self._weights(name, what, module, *module._folded(), signal, out)
            return self._neurons(name, module.neuron, [weights], out)
        if isinstance(module, TandemAdd):
            return self._join(name, what, module, inputs, out)
        if isinstance(module, _POOLS):
            return self._pool(name, what, module, signal, out)
        if isinstance(module, _MEANS):
            return self._mean(name, what, module, signal, out)
        weights = self._weights(name, what, module, module.weight, module.bias, signal, out)
        return _Signal(weights, out, "current", 1.0, _shape(out))

    # -- nodes

    def _put(self, name: str, node: nir.NIRNode, sources: Iterable[str]) -> str:
        """Add a node under a name that other libraries accept as that of a module, and that no other node has."""
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
        """The node of a layer's weights [O, ...] and bias, which is that of all T steps."""
        assert self.encoding is not None
        weight = weight * signal.gain
        per_step = None if bias is None else bias / self.encoding[0]
        if not all(bool(x.isfinite().all()) for x in (weight, per_step) if x is not None):
            self.problems.append(f"{what}: its weights and bias must be finite, got NaN or infinite ones")
        if isinstance(module, nn.Linear):
            if len(signal.shape) != 1:
                got = [1, *signal.shape]
                self.problems.append(f"{what}: its input must be [N, F], got {got}; put nn.Flatten in front")
                return name
            node = nir.Linear(_array(weight)) if per_step is None else nir.Affine(_array(weight), _array(per_step))
            return self._put(name, node, [signal.node])
        if module.padding_mode != "zeros":
            self.problems.append(f"{what}: padding_mode must be 'zeros', got {module.padding_mode!r}")
        stride, padding, dilation = module.stride, module.padding, module.dilation
        if isinstance(module, TandemConv1d):
            weight = module._own_weight(weight)
        elif isinstance(module, TandemConvTranspose2d):
            weight, padding = self._transposed(what, module, weight, signal)
            stride, dilation = (1, 1), (1, 1)
        return self._convolution(name, weight, per_step, stride, padding, dilation, module.groups, signal, _shape(out))

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
    ) -> str:
        """A node of type Conv1d or Conv2d."""
        size: Any = signal.shape[1:]
        geometry: list[Any] = [stride, padding if isinstance(padding, str) else tuple(padding), dilation]
        one_dimension = weight.dim() == 3
        if one_dimension:
            (size,) = size
            geometry = [x if isinstance(x, str) else x[0] for x in geometry]
        values = _array(weight)
        zeros = np.zeros(len(values), values.dtype)
        node = (nir.Conv1d if one_dimension else nir.Conv2d)(
            size, values, *geometry, groups, zeros if bias is None else _array(bias)
        )
        return self._put(name, _typed(node, signal, shape), [signal.node])

    def _transposed(
        self, what: str, module: TandemConvTranspose2d, weight: Tensor, signal: _Signal
    ) -> tuple[Tensor, list[int]]:
        """Kernel and padding of the convolution that does the same, which there is where no zeros go between pixels."""
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

    def _neurons(self, name: str, neuron: Neuron, sources: list[str], out: Any, shape: Any = None) -> _Signal:
        """The signal of neurons that sum what the sources put out."""
        threshold, leak = neuron.threshold, neuron.leak
        shape = _shape(out) if shape is None else shape

        def full(value: float) -> Any:
            return np.full(shape, value, dtype=np.float64)

        if leak == 1:
            node = nir.IF(r=full(1 / self.dt), v_threshold=full(threshold), v_reset=full(0))
        else:
            node = nir.LIF(
                tau=full(self.dt / (1 - leak)),
                r=full(1 / (1 - leak)),
                v_leak=full(0),
                v_threshold=full(threshold),
                v_reset=full(threshold * (1 - 1 / leak)),
                metadata={"leak": float(leak)},  # 1 - dt / tau may differ in the last digit
            )
        return _Signal(self._put(f"{name}_neurons", node, sources), out, "spikes", out.amplitude, shape)

    def _join(self, name: str, what: str, join: TandemAdd, inputs: list[_Signal], out: Any) -> _Signal:
        folded = [branch._folded() if isinstance(branch, TandemLayer) else None for branch in join.branches]
        biases = [pair[1] for pair in folded if pair is not None and pair[1] is not None]
        total = sum(biases[1:], biases[0]) if biases else None  # summed first, as the layer does
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
        return self._neurons(name, join.neuron, sources, out)

    def _scaled(self, name: str, what: str, signal: _Signal) -> _Signal:
        """A signal times its gain, by means that every importer knows."""
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
        """Neurons behind the sums or means of windows."""
        rows, columns = pool.windows(*signal.shape[1:])
        divisors = pool._divisors(rows, columns)
        channels, shape, threshold = signal.shape[0], _shape(out), float(pool.threshold)
        part = f"{name}_windows"
        if not (rows.uniform() and columns.uniform()):
            covers = torch.einsum("iy,jx->ijyx", rows.membership().double(), columns.membership().double())
            common = math.lcm(*divisors)
            shares = torch.tensor([common // d for d in divisors], dtype=torch.float64)
            maps = covers.flatten(0, 1) * shares.view(-1, 1, 1)
            weight = maps.to(signal.value.dtype).repeat(channels, 1, 1).unsqueeze(1)
            shape = (len(weight), 1, 1)
            weights = self._convolution(part, weight, None, (1, 1), (0, 0), (1, 1), channels, signal, shape)
            return self._neurons(name, IF(threshold * common), [weights], out, shape)
        kernel = [axis.stops[0] - axis.starts[0] for axis in (rows, columns)]
        before = [-axis.starts[0] for axis in (rows, columns)]
        behind = [axis.stops[-1] - axis.size for axis in (rows, columns)]
        stride = rows.stride, columns.stride
        if any(before) or max(behind) > 0:  # of pooling, importers forget the padding; of a convolution they do not
            ones, padding = _evenly_padded(torch.ones(channels, 1, *kernel, dtype=signal.value.dtype), before, behind)
            weights = self._convolution(part, ones, None, stride, padding, (1, 1), channels, signal, shape)
        elif divisors[0] == math.prod(kernel) and divisors[0] & (divisors[0] - 1) == 0:
            mean = self._windows(part, nir.AvgPool2d, kernel, stride, signal, shape)
            return self._neurons(name, IF(threshold), [mean], out)
        else:
            weights = self._windows(part, nir.SumPool2d, kernel, stride, signal, shape)
        return self._neurons(name, IF(threshold * divisors[0]), [weights], out)

    def _mean(self, name: str, what: str, mean: Any, signal: _Signal, out: Tensor) -> _Signal:
        """Average pooling of what Decode puts out."""
        if isinstance(mean, nn.AvgPool2d):
            settings = mean.ceil_mode, mean.count_include_pad, mean.divisor_override
            pool: Any = SpikingAvgPool2d(mean.kernel_size, mean.stride, mean.padding, *settings)
        else:
            pool = SpikingAdaptiveAvgPool2d(mean.output_size)
        axes = pool.windows(*signal.shape[1:])
        kernel = [axis.stops[0] - axis.starts[0] for axis in axes]
        inside = all(axis.uniform() and axis.starts[0] == 0 and axis.stops[-1] <= axis.size for axis in axes)
        if not inside or getattr(mean, "divisor_override", None) not in (None, math.prod(kernel)):
            self.problems.append(f"{what}: its windows must be of one size, without padding, and not divided otherwise")
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
        """A node of type AvgPool2d or SumPool2d."""
        node = kind(np.array(kernel), np.array(stride), np.array([0, 0]))
        return self._put(name, _typed(node, signal, shape), [signal.node])

    def _flatten(self, name: str, what: str, signal: _Signal, start_dim: Any = None, end_dim: int = -1) -> _Signal:
        value, dims = signal.value, len(signal.shape) + 1
        if start_dim is None:
            start_dim = 0 if isinstance(value, Tensor) else 1
        start, end = start_dim % dims, end_dim % dims
        if start == 0:
            self.problems.append(f"{what}: start_dim must leave the batch dimension alone, got {start_dim}")
            raise _unsupported("to_nir: model", self.problems)
        out = value.flatten(start, end)
        if start == end and not signal.flat_next():
            return signal._replace(value=out)
        if signal.flat_next() and len(_shape(out)) > 1:
            self.problems.append(f"{what}: {_FLAT_NEXT}")
        # NIR has no batch.
        node = self._put(name, nir.Flatten({"input": np.array(signal.shape)}, start - 1, end - 1), [signal.node])
        return signal._replace(node=node, value=out, shape=_shape(out))


_FLAT_NEXT = (
    "the pooling in front of it has windows of different sizes, for which NIR has no node unless flattening to [N, F] "
    "follows"
)


def _typed(node: nir.NIRNode, signal: _Signal, shape: tuple[int, ...]) -> nir.NIRNode:
    """The node with its types: nir itself takes all kernels for square ones and ignores groups."""
    node.input_type, node.output_type = {"input": np.array(signal.shape)}, {"output": np.array(shape)}
    return node


def _shape(value: Any) -> tuple[int, ...]:
    """Without the batch."""
    return tuple((value.value if isinstance(value, EncodedInput) else value).shape[1:])


def _evenly_padded(kernel: Tensor, before: Sequence[int], behind: Sequence[int]) -> tuple[Tensor, list[int]]:
    """The kernel for the same padding on both sides: with zeros in front where there is to be more behind the image."""
    more = [max(last - first, 0) for first, last in zip(before, behind, strict=True)]
    return F.pad(kernel, (more[1], 0, more[0], 0)), [first + m for first, m in zip(before, more, strict=True)]


def _array(x: Tensor) -> Any:
    return x.detach().cpu().contiguous().numpy().copy()


# ---------------------------------------------------------------------------------------------------------------------
# Import
# ---------------------------------------------------------------------------------------------------------------------

_LARGEST = 2**31 - 1
_LARGEST_COUNT = 2**24  # up to which float32 counts
_FLOAT32 = torch.finfo(torch.float32)
_NEURONS = (nir.IF, nir.LIF)
_CONVOLUTIONS = (nir.Conv1d, nir.Conv2d)
_POOLINGS = (nir.AvgPool2d, nir.SumPool2d)
_WEIGHTS = (nir.Linear, nir.Affine, *_CONVOLUTIONS, *_POOLINGS)
_TYPES = (nir.Input, nir.Output, nir.Flatten, *_NEURONS, *_WEIGHTS)


def from_nir(
    source: nir.NIRGraph | str | os.PathLike[str],
    *,
    time_steps: int | None = None,
    encoding: str | None = None,
    dt: float | None = None,
    reset: str | None = None,
) -> nn.Module:
    """Build a network from a NIR graph; the inverse of :func:`to_nir`, whose docstring has the mapping.

    Of a graph that ``to_nir`` has made, the network has bit-identical spikes to the model with its batch norm folded
    into the weights; a read-out's bias may differ in the last digit where T is no power of two. (Without gradients, a
    layer with batch norm applies its gain to the sums instead, which rounds differently: where sums are not exact, a
    potential within rounding of the threshold may then spike a step apart.)

    Args:
        source: a graph, or the path of a NIR file.
        time_steps: T; by default that in the graph's metadata.
        encoding: "constant" or "impulse": put ``Encode(time_steps, encoding)`` in front; "spikes": the network takes
            spike trains. By default that in the graph's metadata.
        dt: time step in seconds; by default that in the graph's metadata, else 1e-4.
        reset: "subtract", which says that the network was trained with a reset that subtracts the threshold. By default
            what the graph's metadata say, as those of ``to_nir`` do. NIR has no field for it and defines IF and LIF as
            jumping to v_reset; a network trained so counts other spikes here.

    Returns:
        In eval mode, in the dtype of the weights (float64 where any are): nn.Sequential of ``TandemConv1d``,
        ``TandemConv2d``, ``TandemLinear`` and nn.Flatten with the names of the graph's weight nodes; behind the last
        neurons ``Decode`` and nn.Linear, nn.Conv1d, nn.Conv2d or nn.AvgPool2d, where the graph goes on. A graph whose
        branches part or join becomes a torch.fx.GraphModule of the same and ``TandemAdd``. SumPool2d and AvgPool2d in
        front of neurons become a depthwise ``TandemConv2d``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a file that is no NIR file; ``time_steps``, ``encoding`` or ``reset`` neither given nor in the
            metadata, or out of range; a graph that is malformed or has parts that this package has no layer for: the
            message names every one.
        OSError: the file cannot be read; FileNotFoundError: there is none.
    """
    graph = _read(source)
    if graph.metadata is not None and not isinstance(graph.metadata, dict):
        raise ValueError(f"from_nir: the graph's metadata must be a dict, got {type(graph.metadata).__name__}")
    given = {"time_steps": time_steps, "encoding": encoding, "reset": reset}
    stated = {**(graph.metadata or {}), **{name: value for name, value in given.items() if value is not None}}
    if dt is None:
        dt = _stated_dt(stated)
    _check_dt("from_nir", dt)
    for name in ("time_steps", "encoding"):
        if name not in stated:
            raise ValueError(f"from_nir: {name} must be given, since the graph's metadata does not state it, got None")
    steps, mode = _whole("from_nir: time_steps", stated["time_steps"], 1), stated["encoding"]
    if steps > _LARGEST_COUNT:
        raise ValueError(f"from_nir: time_steps must be at most {_LARGEST_COUNT}, got {steps}")
    if not isinstance(mode, str) or mode not in _ENCODINGS:
        raise ValueError(f"from_nir: encoding must be one of {', '.join(_ENCODINGS)}, got {mode!r}")
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
            "from_nir: reset must be given, since the graph's metadata does not state it, got None. NIR defines IF and "
            "LIF as jumping to v_reset and cannot say what the network was trained with; neurons here subtract the "
            'threshold. Pass reset="subtract" if those of the network did too (as in files of to_nir before it noted '
            "the reset). A network trained with a hard reset counts other spikes here: train it on"
        )
    if not isinstance(reset, str) or reset != _RESET:
        raise ValueError(f"from_nir: reset must be {_RESET!r}, the only one that tandem layers have, got {reset!r}")


def _check_sizes(contents: bytes) -> None:
    """ValueError where a dataset claims more than the file can hold, even deflated (by 1,032 at most).

    HDF5 would fill in what was never written: terabytes, of a damaged size.
    """
    most = 1032 * len(contents)

    def check(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.nbytes > most:
            raise ValueError(f"{name} claims {item.nbytes} bytes in a file of {len(contents)}")

    with h5py.File(io.BytesIO(contents), "r") as file:
        file.visititems(check)


def _read(source: Any) -> nir.NIRGraph:
    if isinstance(source, nir.NIRGraph):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"from_nir: source must be a nir.NIRGraph or a path, got {type(source).__name__}")
    path = os.fspath(source)
    if not Path(path).exists():
        raise FileNotFoundError(f"from_nir: source must be an existing file, got {path}")
    contents = Path(path).read_bytes()
    try:
        _check_sizes(contents)
        # Without nir's check of types, which takes all kernels for square ones and ignores groups.
        graph = nir.read(io.BytesIO(contents), type_check=False)
    except Exception as error:  # whatever nir and libhdf5 make of a file that is damaged or of another kind
        raise ValueError(f"from_nir: source must be a NIR file, got {path}: {error!r}") from error
    if not isinstance(graph, nir.NIRGraph):
        raise ValueError(f"from_nir: source must hold a NIRGraph, got a {type(graph).__name__}")
    return graph


# -- numbers of a graph, which may be anything


def _numbers(name: str, value: Any) -> Any:
    """An array of finite floats from a number, an array, a Tensor, lists; ValueError that begins with the name."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        values = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, got {type(value).__name__}: {error}") from error
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be real numbers, got {type(value).__name__} of {values.dtype}")
    single = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    values = values.astype(np.float32 if single else np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite values")
    return values


def _whole(name: str, value: Any, low: int | None = None) -> int:
    return _wholes(name, value, 1, low)[0]


def _wholes(name: str, value: Any, count: int, low: int | None = None) -> tuple[int, ...]:
    """So many ints, of one or as many; ValueError that begins with the name."""
    values = _numbers(name, value).reshape(-1)
    if len(values) not in (1, count) or (values != np.floor(values)).any() or np.abs(values).max() > _LARGEST:
        wanted = "a whole number" if count == 1 else f"a whole number or {count}"
        raise ValueError(f"{name} must be {wanted} of at most {_LARGEST}, got {value!r}")
    if low is not None and values.min() < low:
        raise ValueError(f"{name} must be at least {low}, got {value!r}")
    numbers = [int(x) for x in values]
    return tuple(numbers * count if len(numbers) == 1 else numbers)


def _field(node: Any, name: str, count: int, low: int | None = None) -> tuple[int, ...]:
    return _wholes(name, getattr(node, name, None), count, low)


Shape = tuple[int | None, ...] | None
"""Of a value, without the batch; None where a graph does not say."""


def _declared(name: str, types: Any) -> Shape:
    """The shape that input_type or output_type of a node holds, in whatever form."""
    if isinstance(types, dict):
        types = next(iter(types.values()), None)
    if types is None:
        return None
    return _wholes(name, types, max(_numbers(name, types).size, 1), 1)


def _agrees(shape: Shape, other: Shape) -> bool:
    if shape is None or other is None:
        return True
    return len(shape) == len(other) and all(a == b or None in (a, b) for a, b in zip(shape, other, strict=True))


def _listed(shape: Shape) -> str:
    return "[N, ...]" if shape is None else f"[{', '.join(['N', *('?' if x is None else str(x) for x in shape)])}]"


class _Weights(NamedTuple):
    """What is known of a weight node."""

    name: str
    """Of the layer."""
    weight: Tensor
    """[O, F], [O, C/groups, K] or [O, C/groups, kH, kW]."""
    bias: Tensor | None
    """Per time step; None where it is zero."""
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @classmethod
    def of(cls, name: str, node: Any, shape: Shape) -> _Weights:
        """Of a node whose input has that shape; ValueError where it is malformed."""
        if isinstance(node, _POOLINGS):
            if shape is None or len(shape) != 3 or shape[0] is None:
                raise ValueError(f"its input must be [N, C, H, W], got {_listed(shape)}")
            kernel = _field(node, "kernel_size", 2, 1)
            steps, around = _field(node, "stride", 2, 1), _field(node, "padding", 2, 0)
            _out_size(shape[1:], kernel, steps, around, (1, 1))  # before there is memory for the kernel
            share = 1 / math.prod(kernel) if isinstance(node, nir.AvgPool2d) else 1.0
            ones = torch.full((shape[0], 1, *kernel), share)
            return cls(name, ones, None, steps, around, (1, 1), shape[0])
        values = _numbers("weight", getattr(node, "weight", None))
        dims = 2 if isinstance(node, nir.Conv2d) else 1 if isinstance(node, nir.Conv1d) else 0
        axes = "[O, F]" if not dims else f"[O, C/groups, {'kH, kW' if dims == 2 else 'K'}]"
        if values.ndim != 2 + dims or 0 in values.shape:
            raise ValueError(f"weight must be {axes} and not empty, got {list(values.shape)}")
        weight, bias = torch.from_numpy(values), None
        if getattr(node, "bias", None) is not None:
            per_step = _numbers("bias", node.bias)
            if per_step.shape != values.shape[:1]:
                raise ValueError(f"bias must be [{len(values)}], one for each output, got {list(per_step.shape)}")
            bias = torch.from_numpy(per_step).to(weight.dtype) if per_step.any() else None
        if not dims:
            return cls(name, weight, bias)
        stride, dilation = _field(node, "stride", dims, 1), _field(node, "dilation", dims, 1)
        padding: Any = getattr(node, "padding", None)
        if not isinstance(padding, str):
            padding = _field(node, "padding", dims, 0)
        elif padding not in ("same", "valid"):
            raise ValueError(f"padding must be whole numbers, 'same' or 'valid', got {padding!r}")
        (groups,) = _field(node, "groups", 1, 1)
        if len(weight) % groups:
            raise ValueError(f"groups must divide the {len(weight)} outputs, got {groups}")
        return cls(name, weight, bias, stride, padding, dilation, groups)

    def out_shape(self, shape: Shape) -> Shape:
        """The shape of what it puts out; ValueError where its input does not fit."""
        inputs = self.weight.shape[1] * self.groups
        size: Sequence[int | None] = [None] * len(self.stride) if shape is None else shape[1:]
        if not _agrees(shape, (inputs, *size)) or len(size) != len(self.stride):
            axes = ["N", str(inputs), *("L" if len(self.stride) == 1 else "HW")[: len(self.stride)]]
            raise ValueError(f"its input must be [{', '.join(axes)}], got {_listed(shape)}")
        if self.padding == "same":
            return len(self.weight), *size
        padding = (0,) * len(size) if isinstance(self.padding, str) else self.padding
        return len(self.weight), *_out_size(size, self.weight.shape[2:], self.stride, padding, self.dilation)

    def layer(self, neuron: Neuron, gain: float, bias: Tensor | None) -> TandemLayer:
        """The tandem layer; its bias is that of all steps."""
        return self._module((TandemLinear, TandemConv1d, TandemConv2d), gain, bias, neuron=neuron)

    def read_out(self, steps: int) -> nn.Module:
        return self._module((nn.Linear, nn.Conv1d, nn.Conv2d), 1.0, self.whole_bias(steps))

    def whole_bias(self, steps: int, gain: float = 1.0) -> Tensor | None:
        """That of all steps."""
        if self.bias is None:
            return None
        return _times(self.bias if gain == 1 else self.bias * gain, steps)

    def _module(self, kinds: Sequence[Any], gain: float, bias: Tensor | None, **named: Any) -> Any:
        weight = self.weight if gain == 1 else self.weight * gain
        if not all(bool(x.isfinite().all()) for x in (weight, bias) if x is not None):
            raise ValueError(f"weight and bias must be finite for r * dt = {gain}, got infinite ones")
        outputs, inputs, *kernel = weight.shape
        named |= {"bias": bias is not None, "dtype": weight.dtype}
        if kernel:
            geometry = kernel, self.stride, self.padding, self.dilation, self.groups
            layer = kinds[len(kernel)](inputs * self.groups, outputs, *geometry, **named)
        else:
            layer = kinds[0](inputs, outputs, **named)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        return layer


def _out_size(
    size: Sequence[int | None],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int | None, ...]:
    out: list[int | None] = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        room = None if n is None else n + 2 * p - d * (k - 1) - 1
        if room is not None and room < 0:
            raise ValueError(
                f"its window of {d * (k - 1) + 1} must fit into the padded input, got {room + d * (k - 1) + 1}"
            )
        out.append(None if room is None else room // s + 1)
    return tuple(out)


class _Value(NamedTuple):
    """What a node puts out."""

    call: str
    """The module that computes it, "" for the network's input."""
    kind: str
    """"encoded", "spikes", or "real" behind the last neurons."""
    shape: Shape
    weights: _Weights | None = None
    """Of a current, whose neurons are still to come; call and kind then are those of what the weights are given."""


class _Import:
    """A network under construction."""

    def __init__(self, graph: nir.NIRGraph, steps: int, dt: float, encode: Encode | None) -> None:
        self.steps, self.dt = steps, dt
        self.problems: list[str] = []
        self.nodes = _checked_nodes(graph)
        self.sources = _sources(graph, self.nodes)
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.inputs: dict[str, tuple[str, ...]] = {}
        """Of every module: the modules whose outputs it takes; "" for the network's input."""
        self.first = "" if encode is None else self._called("encode", encode, "")
        self.kind = "spikes" if encode is None else "encoded"
        self.decoded: dict[str, str] = {}

    def network(self) -> nn.Module:
        order, result = self._order()
        self.spiking = self._in_front_of_neurons(order)
        values: dict[str, _Value] = {}
        for name in order:
            # Behind what is refused, nothing can be said.
            if all(source in values for source in self.sources[name]):
                try:
                    values[name] = self._value(name, [values[source] for source in self.sources[name]])
                except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
                    behind = f" (behind {', '.join(self.sources[name])})" if self.sources[name] else ""
                    self.problems.append(f"{self._what(name)}: {error}{behind}")
        if self.problems:
            raise _unsupported("from_nir: source", self.problems)
        dtypes = {x.dtype for module in self.modules.values() for x in module.parameters()}
        net = self._wired(values[result].call)
        return (net.double() if torch.float64 in dtypes else net).eval()

    def _what(self, name: str) -> str:
        return f"{name} ({type(self.nodes[name]).__name__})"

    # -- the order of the nodes

    def _order(self) -> tuple[list[str], str]:
        """The nodes on the way from the input to the output, each behind its sources, and the output."""
        following: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, sources in self.sources.items():
            for source in sources:
                following[source].append(name)
        inputs = [name for name, node in self.nodes.items() if isinstance(node, nir.Input)]
        outputs = [name for name, node in self.nodes.items() if isinstance(node, nir.Output)]
        outputs = outputs or [name for name in self.nodes if not following[name]]  # old graphs do not mark it
        for what, names in (("Input", inputs), ("Output", outputs)):
            if len(names) != 1:
                self.problems.append(f"{len(names)} {what} nodes, where one must be: {', '.join(names) or 'none'}")
        for name, node in self.nodes.items():
            if not isinstance(node, _TYPES):
                self.problems.append(f"{self._what(name)}: no layer here does what it does")
        if self.problems:
            raise _unsupported("from_nir: source", self.problems)
        between = _reached(inputs[0], following) & _reached(outputs[0], self.sources)
        for name in self.nodes:
            if name not in between:
                self.problems.append(f"{self._what(name)}: not on the way from {inputs[0]} to {outputs[0]}")
        waiting = {name: len(sources) for name, sources in self.sources.items()}
        ready, order = deque(name for name in self.nodes if not waiting[name]), []
        while ready:
            order.append(ready.popleft())
            for name in following[order[-1]]:
                waiting[name] -= 1
                if not waiting[name]:
                    ready.append(name)
        circle = sorted(self.nodes.keys() - set(order))
        if circle:
            self.problems.append(f"{', '.join(circle)}: on a cycle or behind one, and recurrent layers there are none")
        if self.problems:
            raise _unsupported("from_nir: source", self.problems)
        return order, outputs[0]

    def _in_front_of_neurons(self, order: list[str]) -> set[str]:
        found: set[str] = set()
        for name in reversed(order):
            if name in found or isinstance(self.nodes[name], _NEURONS):
                found.update(self.sources[name])
        return found

    # -- one node

    def _value(self, name: str, inputs: list[_Value]) -> _Value:
        node = self.nodes[name]
        if isinstance(node, nir.Input):
            if inputs:
                raise ValueError("nothing may lead to it")
            return _Value(self.first, self.kind, _declared("input_type", getattr(node, "input_type", None)))
        if isinstance(node, _NEURONS):
            return self._fired(name, node, inputs)
        if len(inputs) != 1:
            raise ValueError(f"it must have one input, got {len(inputs)}: only currents of neurons add up here")
        (x,) = inputs
        if x.weights is not None:
            raise ValueError(f"{x.weights.name} in front of it has no neurons")
        if isinstance(node, nir.Output):
            declared = _declared("output_type", getattr(node, "output_type", None))
            if not _agrees(declared, x.shape):
                raise ValueError(f"it must have the shape of its input, {_listed(x.shape)}, got {_listed(declared)}")
            if x.kind == "encoded" or not x.call:
                raise ValueError("no neurons are in front of it")
            return x
        if isinstance(node, nir.Flatten):
            return self._flattened(name, node, x)
        if name in self.spiking:
            weights = _Weights.of(self._key(name), node, x.shape)
            return x._replace(shape=weights.out_shape(x.shape), weights=weights)
        return self._read_out(name, node, x)

    def _fired(self, name: str, node: Any, inputs: list[_Value]) -> _Value:
        """A layer, or a join of several, whose neurons a node describes."""
        neuron, gain, own = _neuron(node, self.dt)
        shape = inputs[0].shape
        if not all(_agrees(x.shape, shape) for x in inputs):
            got = zip(self.sources[name], inputs, strict=True)
            shapes = ", ".join(f"{source} {_listed(x.shape)}" for source, x in got)
            raise ValueError(f"its inputs must have one shape, got {shapes}")
        if shape is not None and None in shape and len(own) == len(shape) and _agrees(shape, own):
            shape = own
        if math.prod(own) != 1 and not _agrees(own, shape) and (shape is None or own != shape[:1]):
            raise ValueError(f"its parameters must have the shape of its input, {_listed(shape)}, got {list(own)}")
        if len(inputs) == 1:
            (x,) = inputs
            if x.weights is None:
                raise ValueError("no weights in front of it")
            layer: nn.Module = x.weights.layer(neuron, gain, x.weights.whole_bias(self.steps, gain))
            return _Value(self._called(x.weights.name, layer, x.call), "spikes", shape)
        return _Value(self._joined(name, neuron, gain, inputs), "spikes", shape)

    def _joined(self, name: str, neuron: Neuron, gain: float, inputs: list[_Value]) -> str:
        branches: list[nn.Module] = []
        strides = set()
        for x in inputs:
            if x.kind == "encoded":
                raise ValueError("real input cannot be added to spikes: put a layer of neurons in between")
            if x.weights is not None:
                branches.append(x.weights.layer(IF(), gain, x.weights.whole_bias(self.steps, gain)))
                if x.weights.stride and max(x.weights.weight.shape[2:]) > 1:
                    strides.add(x.weights.stride)
            elif gain != 1:
                raise ValueError(f"its r * dt must be 1 where spikes enter without weights, got {gain}")
            elif x.shape is not None and len(x.shape) > 3:
                raise ValueError(
                    f"spikes must be [N, F], [N, C, L] or [N, C, H, W] to be added, got {_listed(x.shape)}"
                )
            else:
                branches.append(nn.Identity())
        if len(strides) > 1:
            raise ValueError(f"the convolutions that it adds up must have one stride, got {sorted(strides)}")
        return self._called(
            self._key(name.removesuffix("_neurons")), TandemAdd(*branches, neuron=neuron), *(x.call for x in inputs)
        )

    def _flattened(self, name: str, node: Any, x: _Value) -> _Value:
        (start,), (end,) = (_field(node, dim, 1) for dim in ("start_dim", "end_dim"))
        shape = x.shape
        if shape is not None:
            dims = len(shape)
            if not (-dims <= start < dims and -dims <= end < dims and start % dims <= end % dims):
                raise ValueError(
                    f"start_dim and end_dim must be dimensions of {_listed(shape)} without N, got {start}, {end}"
                )
            start, end = start % dims, end % dims
            middle = shape[start : end + 1]
            size = None if None in middle else math.prod(n for n in middle if n is not None)
            shape = (*shape[:start], size, *shape[end + 1 :])
        module = nn.Flatten(start + (start >= 0), end + (end >= 0))
        return x._replace(call=self._called(self._key(name), module, x.call), shape=shape)

    def _read_out(self, name: str, node: Any, x: _Value) -> _Value:
        """What real numbers, decoded from spikes, go through."""
        if x.kind == "encoded" or not x.call:
            raise ValueError("no neurons in front of it or behind it")
        if x.kind == "spikes":
            if x.call not in self.decoded:
                self.decoded[x.call] = self._called(self._key("decode"), Decode(), x.call)
            x = x._replace(call=self.decoded[x.call], kind="real")
        key = self._key(name)
        weights = _Weights.of(key, node, x.shape)
        shape = weights.out_shape(x.shape)
        if isinstance(node, _POOLINGS):
            divisor = None if isinstance(node, nir.AvgPool2d) else 1
            # Of any length, or padded by name, are weights alone: a pooling has two numbers of each.
            size: Any = tuple(weights.weight.shape[2:])
            window: dict[str, Any] = {"kernel_size": size, "stride": weights.stride, "padding": weights.padding}
            module: nn.Module = nn.AvgPool2d(**window, divisor_override=divisor)
        else:
            module = weights.read_out(self.steps)
        return x._replace(call=self._called(key, module, x.call), shape=shape)

    # -- the modules

    def _key(self, name: str) -> str:
        """A name for a module, like that of the node, which torch takes and no other module has."""
        key = re.sub(r"\W", "_", name) or "node"
        while key in self.modules or hasattr(_ANY_NETWORK, key) or keyword.iskeyword(key):
            key += "_"
        return key

    def _called(self, key: str, module: nn.Module, *inputs: str) -> str:
        key = self._key(key)  # anew: two neurons may share weights
        self.modules[key], self.inputs[key] = module, inputs
        return key

    def _wired(self, result: str) -> nn.Module:
        """nn.Sequential where every module takes what the one before puts out."""
        keys = list(self.modules)
        if keys[-1] == result and all(
            self.inputs[key] == (last,) for last, key in zip(["", *keys], keys, strict=False)
        ):
            return nn.Sequential(self.modules)
        graph = fx.Graph()
        outputs = {"": graph.placeholder("input")}
        for key in keys:
            outputs[key] = graph.call_module(key, tuple(outputs[x] for x in self.inputs[key]))
        graph.output(outputs[result])
        return fx.GraphModule(dict(self.modules), graph, "NIRNetwork")


_ANY_NETWORK = fx.GraphModule({}, fx.Graph())  # for the names that its attributes take


def _checked_nodes(graph: nir.NIRGraph) -> dict[str, nir.NIRNode]:
    nodes = graph.nodes
    if not isinstance(nodes, dict) or not nodes:
        raise ValueError(f"from_nir: the graph's nodes must be a dict with entries, got {nodes!r}")
    for name, node in nodes.items():
        if not isinstance(name, str) or not isinstance(node, nir.NIRNode):
            raise ValueError(f"from_nir: nodes must be NIR nodes under names, got {name!r}: {type(node).__name__}")
    return nodes


def _sources(graph: nir.NIRGraph, nodes: dict[str, nir.NIRNode]) -> dict[str, list[str]]:
    """Of every node: the nodes that lead to it."""
    try:
        edges = [(source, target) for source, target in graph.edges]
    except (TypeError, ValueError) as error:
        raise ValueError(f"from_nir: the graph's edges must be pairs of names, got {graph.edges!r}") from error
    for edge in edges:
        for name in edge:
            if not isinstance(name, str) or name not in nodes:
                raise ValueError(f"from_nir: edges must lead from node to node, got {edge} without a node {name!r}")
    twice = [edge for edge, times in Counter(edges).items() if times > 1]
    if twice:
        raise ValueError(f"from_nir: no edge may be there twice, got {', '.join(map(str, twice))}")
    sources: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        sources[target].append(source)
    return sources


def _reached(start: str, following: dict[str, list[str]]) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        for name in following[waiting.pop()]:
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _neuron(node: Any, dt: float) -> tuple[Neuron, float, tuple[int, ...]]:
    """The neurons of a node, what their input is multiplied by, and the shape of their parameters.

    ValueError where there are no such neurons here.
    """
    values, shapes = {}, set()
    for name in ("r", "v_threshold", "v_reset", *(("tau", "v_leak") if isinstance(node, nir.LIF) else ())):
        value = getattr(node, name, None)
        numbers = _numbers(name, 0.0 if value is None and name == "v_reset" else value)
        distinct = np.unique(numbers)
        if len(distinct) != 1:
            raise ValueError(f"{name} must be the same for all neurons, got {len(distinct)} values")
        values[name] = float(distinct[0])
        if numbers.size > 1:
            shapes.add(numbers.shape)
    if len(shapes) > 1:
        raise ValueError(f"its parameters must have one shape, got {', '.join(str(list(x)) for x in sorted(shapes))}")
    threshold, leak, gain = values["v_threshold"], 1.0, values["r"] * dt
    if not _FLOAT32.tiny <= threshold <= _FLOAT32.max:
        raise ValueError(f"v_threshold must be positive, and so in float32, got {threshold}")
    if isinstance(node, nir.LIF):
        if values["v_leak"] != 0:
            raise ValueError(f"v_leak must be 0, got {values['v_leak']}")
        if not values["tau"] > dt:
            raise ValueError(f"tau must be greater than dt = {dt}, got {values['tau']}")
        leak = _leak(node, 1 - dt / values["tau"])
        gain /= values["tau"]
    if not (gain != 0 and math.isfinite(gain)):
        raise ValueError(f"r * dt, or r * dt / tau, must be finite and not zero, got {gain}")
    reset = threshold * (1 - 1 / leak)
    if not math.isclose(values["v_reset"], reset, rel_tol=1e-6, abs_tol=1e-9 * threshold):
        raise ValueError(
            f"v_reset must be v_threshold * (1 - 1 / leak) = {reset:.6g}, so that the reset subtracts the threshold, "
            f"got {values['v_reset']:.6g}"
        )
    gain = 1.0 if math.isclose(gain, 1, rel_tol=1e-9) else gain
    neuron = IF(threshold) if leak == 1 else LIF(threshold, leak)
    return neuron, gain, shapes.pop() if shapes else ()


def _leak(node: Any, leak: float) -> float:
    """That in the node's metadata, which has all digits, where it is the same."""
    metadata = getattr(node, "metadata", None)
    if not isinstance(metadata, dict) or "leak" not in metadata:
        return leak
    stated = _numbers("leak in its metadata", metadata["leak"])
    if stated.size != 1 or not math.isclose(float(stated.reshape(-1)[0]), leak, rel_tol=1e-9):
        raise ValueError(f"leak in its metadata must be 1 - dt / tau = {leak}, got {metadata['leak']!r}")
    return float(stated.reshape(-1)[0])


def _times(per_step: Tensor, steps: int) -> Tensor:
    """The bias b whose share b / steps is per_step to the bit; the nearest one where rounding leaves no such b."""
    bias = per_step * steps
    best = bias
    up = down = bias
    for _ in range(2):
        up, down = (torch.nextafter(x, torch.full_like(x, y)) for x, y in ((up, math.inf), (down, -math.inf)))
        for candidate in (up, down):
            hit = (candidate / steps == per_step) & (best / steps != per_step)
            best = torch.where(hit, candidate, best)
    return best


def _check_dt(caller: str, dt: Any) -> None:
    if isinstance(dt, bool) or not isinstance(dt, (int, float)):
        raise TypeError(f"{caller}: dt must be a number, got {type(dt).__name__}")
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"{caller}: dt must be positive and finite, got {dt}")


def _unsupported(what: str, problems: list[str]) -> ValueError:
    supported = (
        "made of Encode, tandem layers, TandemAdd, average pooling of spikes, flattening, dropout, Decode and linear "
        "layers behind it"
        if what.startswith("to_nir")
        else "made of Conv1d, Conv2d, Linear, Affine, AvgPool2d or SumPool2d with IF or LIF behind them, Flatten, and "
        "weights behind the last neurons"
    )
    return ValueError(f"{what} must be {supported}, got:\n" + "\n".join(f"  {problem}" for problem in problems))
