"""Exchange with other simulators through NIR, the Neuromorphic Intermediate Representation.

Needs ``pip install tandem_cuda[nir]``. NIR (Pedersen et al., "Neuromorphic intermediate representation", Nature
Communications 2024, doi:10.1038/s41467-024-52259-9) describes neurons in continuous time; both functions here and
docs/exchange.md say how that maps to time steps.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .activity import _evaluating
from .convert import TandemNetwork
from .neuron import IF, LIF, Neuron
from .nn import (
    Decode,
    Encode,
    EncodedInput,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConv2d,
    TandemLinear,
)
from .nn.layer import TandemLayer
from .spike_train import SpikeTrain

try:
    import nir
    from nirtorch.torch_tracer import NIRTorchTracer
except ImportError as error:
    raise ImportError(f"tandem_cuda.exchange needs nir and nirtorch ({error}): pip install tandem_cuda[nir]") from error

__all__ = ["from_nir", "to_nir"]

_ENCODINGS = ("constant", "impulse", "spikes")
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # in eval mode

# ---------------------------------------------------------------------------------------------------------------------
# Export
# ---------------------------------------------------------------------------------------------------------------------


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
    - Input: at every time step the input itself (``Encode(T, "constant")``), or that at the first step and zeros
      afterwards ("impulse"), or the recorded spikes (no ``Encode``).
    - Output: spikes, or behind ``Decode`` and nn.Linear a current; summed over the T steps it is what the model returns
      (the spike counts of a model that ends in a tandem layer).

    dt, T (``time_steps``) and the encoding are in the graph's metadata, each LIF's leak in that of its node.

    Args:
        model: its forward pass, as traced by torch.fx, is a chain of ``Encode``, ``TandemConv2d``, ``TandemLinear``,
            flattening, dropout, ``Decode`` and, at the end, nn.Linear; also one that :func:`tandem_cuda.convert` has
            returned.
        sample: an input of the model, Tensor or SpikeTrain [N, ...], for the shapes and T.
        path: where to write the graph, as HDF5; by default nowhere.
        dt: duration of a time step in seconds; 1e-4 is what snnTorch and SpikingJelly assume.

    Returns:
        The graph. Its weights have the values and dtype of the folded ones.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``dt`` is not positive; ``model`` is no such chain: the message names every part of it that has no
            place in the graph.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_nir: model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(sample, (Tensor, SpikeTrain)):
        raise TypeError(f"to_nir: sample must be a Tensor or a SpikeTrain, got {type(sample).__name__}")
    _check_dt("to_nir", dt)
    export = _Export(dt)
    with _evaluating(model), torch.no_grad():
        value: Any = sample[:1] if isinstance(sample, Tensor) else sample.rearranged(lambda bits: bits[:, :1])
        export.begin(value)
        for name, module in _steps(model):
            value = export.add(name, module, value)
    graph = export.finish(value)
    if path is not None:
        nir.write(os.fspath(path), graph)
    return graph


def _steps(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a model's forward pass applies one after another; ValueError where it is no such chain."""
    places = (TandemConv2d, TandemLinear, Encode, Decode)
    leaves = (TandemLayer, TandemAdd, SpikingAvgPool2d, SpikingAdaptiveAvgPool2d, SpikingMaxPool2d, *places, *_IDLE)
    if isinstance(model, leaves):
        model = nn.Sequential(OrderedDict({type(model).__name__.lower(): model}))
    if isinstance(model, TandemNetwork):
        model = model.snn
    try:
        nodes = list(NIRTorchTracer(leaves).trace(model).nodes)
    except torch.fx.proxy.TraceError as error:
        raise ValueError(f"to_nir: model must have a forward pass that torch.fx can trace, got {error}") from error
    steps: list[tuple[str, nn.Module]] = []
    problems = []
    for i, node in enumerate(nodes):
        what = f"{node.target} ({node.op})"
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            what = f"{node.target} ({type(module).__name__})"
            steps.append((str(node.target), module))
            if not isinstance(module, (*places, nn.Flatten, nn.Linear, *_IDLE)):
                problems.append(what)
        elif node.op in ("call_method", "call_function") and node.target in ("flatten", torch.flatten):
            steps.append((node.name, nn.Flatten(*node.args[1:], **node.kwargs)))
        elif node.op not in ("placeholder", "output"):
            problems.append(what)
        if node.op != "placeholder" and list(node.all_input_nodes) != [nodes[i - 1]]:
            problems.append(f"{what}: the input of a step must be the output of the step before alone")
    if problems:
        raise _unsupported("to_nir: model", problems)
    yield from steps


class _Export:
    """A NIR graph under construction: a chain that grows at its end."""

    def __init__(self, dt: float) -> None:
        self.dt = dt
        self.nodes: dict[str, nir.NIRNode] = {}
        self.time_steps = 0
        self.encoding = "spikes"
        self.decoded = False
        self.scale = 1.0  # of real input
        self.amplitude = 1.0  # of the spikes that are decoded
        self.ended = False
        self.problems: list[str] = []

    def begin(self, value: Tensor | SpikeTrain) -> None:
        self.nodes["input"] = nir.Input(input_type=np.array(value.shape[1:]))
        if isinstance(value, SpikeTrain):
            self.time_steps = value.time_steps

    def add(self, name: str, module: nn.Module, value: Any) -> Any:
        """Append a module and return what it makes of the value."""
        if isinstance(module, _IDLE):
            return value
        out = module(value)
        what = f"{name} ({type(module).__name__})"
        name = self._free(name)
        if self.ended:
            self.problems.append(f"{what}: nothing may follow the read-out")
        if isinstance(module, Encode):
            self.time_steps, self.encoding, self.scale = module.time_steps, module.mode, module.scale
        elif isinstance(module, TandemLayer):
            shape = value.value.shape if isinstance(value, EncodedInput) else value.shape
            weight, bias = module._folded()
            if isinstance(module, TandemConv2d) and module.padding_mode != "zeros":
                self.problems.append(f"{what}: padding_mode must be 'zeros', got {module.padding_mode!r}")
            weight = weight * (value.amplitude if isinstance(value, SpikeTrain) else self.scale)
            self._weights(name, what, module, weight, bias, shape, out.shape)
            self.nodes[self._free(f"{name}_neurons")] = self._neurons(module.neuron, out.shape[1:])
        elif isinstance(module, nn.Flatten):
            self._flatten(name, module, value)
        elif isinstance(module, Decode):
            self.decoded, self.amplitude = True, value.amplitude
        elif isinstance(module, nn.Linear):
            if not self.decoded:
                self.problems.append(f"{what}: must stand behind Decode")
            self._weights(name, what, module, module.weight * self.amplitude, module.bias, value.shape, out.shape)
            self.ended = True
        return out

    def finish(self, value: Any) -> nir.NIRGraph:
        if self.problems:
            raise _unsupported("to_nir: model", self.problems)
        self.nodes["output"] = nir.Output(output_type=np.array(value.shape[1:]))
        names = list(self.nodes)
        metadata = {"time_steps": self.time_steps, "dt": float(self.dt), "encoding": self.encoding}
        return nir.NIRGraph(self.nodes, list(pairwise(names)), metadata)

    def _free(self, name: str) -> str:
        """A name for a node that other libraries accept as that of a module, and that no other node has."""
        name = name.replace(".", "_")
        name = f"layer_{name}" if name[0].isdigit() else name
        while name in ("input", "output") or name in self.nodes:
            name += "_"
        return name

    def _weights(
        self,
        name: str,
        what: str,
        module: nn.Module,
        weight: Tensor,
        bias: Tensor | None,
        shape: torch.Size,
        out_shape: torch.Size,
    ) -> None:
        values = _array(weight)
        per_step = None if bias is None else _array(bias / self.time_steps)
        if isinstance(module, nn.Conv2d):
            node: nir.NIRNode = nir.Conv2d(
                input_shape=tuple(shape[2:]),
                weight=values,
                stride=module.stride,
                padding=module.padding,
                dilation=module.dilation,
                groups=module.groups,
                bias=np.zeros(len(values), values.dtype) if per_step is None else per_step,
            )
            # nir itself takes all kernels for square ones and ignores groups.
            node.input_type = {"input": np.array(shape[1:])}
            node.output_type = {"output": np.array(out_shape[1:])}
        elif len(shape) != 2:
            self.problems.append(f"{what}: its input must be [N, F], got {list(shape)}; put nn.Flatten in front")
            return
        else:
            node = nir.Linear(values) if per_step is None else nir.Affine(values, per_step)
        self.nodes[name] = node

    def _neurons(self, neuron: Neuron, shape: torch.Size) -> nir.NIRNode:
        threshold, leak = neuron.threshold, neuron.leak

        def full(value: float) -> Any:
            return np.full(tuple(shape), value, dtype=np.float64)

        if leak == 1:
            return nir.IF(r=full(1 / self.dt), v_threshold=full(threshold), v_reset=full(0))
        return nir.LIF(
            tau=full(self.dt / (1 - leak)),
            r=full(1 / (1 - leak)),
            v_leak=full(0),
            v_threshold=full(threshold),
            v_reset=full(threshold * (1 - 1 / leak)),
            metadata={"leak": float(leak)},  # 1 - dt / tau may differ in the last digit
        )

    def _flatten(self, name: str, module: nn.Flatten, value: Any) -> None:
        shape = value.value.shape if isinstance(value, EncodedInput) else value.shape
        start, end = (dim % len(shape) - 1 for dim in (module.start_dim, module.end_dim))  # NIR has no batch
        if len(shape) > 2:  # else it leaves the shape as it is
            self.nodes[name] = nir.Flatten({"input": np.array(shape[1:])}, start, end)


def _array(x: Tensor) -> Any:
    return x.detach().cpu().contiguous().numpy().copy()


# ---------------------------------------------------------------------------------------------------------------------
# Import
# ---------------------------------------------------------------------------------------------------------------------


def from_nir(
    source: nir.NIRGraph | str | os.PathLike[str],
    *,
    time_steps: int | None = None,
    encoding: str | None = None,
    dt: float | None = None,
) -> nn.Sequential:
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

    Returns:
        nn.Sequential of ``TandemConv2d``, ``TandemLinear`` and nn.Flatten with the names of the graph's weight nodes,
        and where the graph ends in weights ``Decode`` and nn.Linear; in eval mode, in the dtype of the weights. A
        SumPool2d in front of neurons becomes a depthwise ``TandemConv2d`` of ones.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a file that is no NIR file; ``time_steps`` or ``encoding`` neither given nor in the metadata, or out
            of range; a graph with parts that this package has no layer for: the message names every one.
        FileNotFoundError: no such file.
    """
    graph = _read(source)
    metadata = dict(graph.metadata)
    dt = float(metadata.get("dt", 1e-4)) if dt is None else dt
    _check_dt("from_nir", dt)
    for name, value in (("time_steps", time_steps), ("encoding", encoding)):
        if value is None and name not in metadata:
            raise ValueError(f"from_nir: {name} must be given, since the graph's metadata does not state it, got None")
    steps = int(metadata["time_steps"]) if time_steps is None else time_steps
    mode = str(metadata["encoding"]) if encoding is None else encoding
    if mode not in _ENCODINGS:
        raise ValueError(f"from_nir: encoding must be one of {', '.join(_ENCODINGS)}, got {mode!r}")
    encode = Encode(steps, "constant" if mode == "spikes" else mode)  # checks the steps

    modules: OrderedDict[str, nn.Module] = OrderedDict()
    if mode != "spikes":
        modules["encode"] = encode
    problems: list[str] = []
    weights: _Weights | None = None  # that wait for their neurons
    channels = 0
    for name, node in _chain(graph, problems):
        what = f"{name} ({type(node).__name__})"
        key = name.replace(".", "_")
        while key in modules:
            key += "_"
        if isinstance(node, nir.Input):
            channels = int(node.input_type["input"][0])
        elif isinstance(node, nir.Output):
            continue
        elif isinstance(node, (nir.Conv2d, nir.Linear, nir.Affine, nir.SumPool2d)):
            if weights is not None:
                problems.append(f"{what}: {weights.name} in front of it has no neurons")
            weights = _Weights(key, node, channels)
            channels = channels if isinstance(node, nir.SumPool2d) else len(node.weight)
        elif weights is not None and isinstance(node, (nir.IF, nir.LIF)):
            try:
                neuron, gain = _neuron(node, dt)
                modules[weights.name] = weights.layer(neuron, gain, steps)
            except ValueError as error:
                problems.append(f"{what}: {error}")
            weights = None
        elif weights is None and isinstance(node, nir.Flatten):
            start, end = (int(dim) + (int(dim) >= 0) for dim in (node.start_dim, node.end_dim))
            modules[key] = nn.Flatten(start, end)
        elif isinstance(node, (nir.IF, nir.LIF)):
            problems.append(f"{what}: no weights in front of it")
        else:
            problems.append(what)
    if weights is not None:
        if isinstance(weights.node, (nir.Linear, nir.Affine)):
            modules["decode"], modules[weights.name] = Decode(), weights.read_out(steps)
        else:
            problems.append(f"{weights.name} ({type(weights.node).__name__}): no neurons behind it")
    if problems:
        raise _unsupported("from_nir: source", problems)
    return nn.Sequential(modules).eval()


def _read(source: Any) -> nir.NIRGraph:
    if isinstance(source, nir.NIRGraph):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"from_nir: source must be a nir.NIRGraph or a path, got {type(source).__name__}")
    path = os.fspath(source)
    if not Path(path).exists():
        raise FileNotFoundError(f"from_nir: source must be an existing file, got {path}")
    try:
        # Without nir's check of types, which takes all kernels for square ones and ignores groups.
        graph = nir.read(path, type_check=False)
    except (OSError, KeyError, AssertionError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"from_nir: source must be a NIR file, got {path}: {error}") from error
    if not isinstance(graph, nir.NIRGraph):
        raise ValueError(f"from_nir: source must hold a NIRGraph, got a {type(graph).__name__}")
    return graph


def _chain(graph: nir.NIRGraph, problems: list[str]) -> list[tuple[str, nir.NIRNode]]:
    """The nodes from input to output; notes those that branch or that no path reaches."""
    following: dict[str, list[str]] = {name: [] for name in graph.nodes}
    before: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        following[source].append(target)
        before[target].append(source)
    inputs = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(inputs) != 1:
        problems.append(f"{len(inputs)} Input nodes: {', '.join(inputs) or 'none'}")
        return []
    chain, name = [], inputs[0]
    while True:
        chain.append(name)
        if len(following[name]) > 1 or len(before[name]) > 1:
            problems.append(f"{name} ({type(graph.nodes[name]).__name__}): it must have one input and one output")
        name = next((x for x in following[name] if x not in chain), "")
        if not name:
            break
    problems += [
        f"{name} ({type(node).__name__}): not on the way from {inputs[0]} to the output"
        for name, node in graph.nodes.items()
        if name not in chain
    ]
    return [(name, graph.nodes[name]) for name in chain]


class _Weights(NamedTuple):
    """A weight node whose neurons are still to come."""

    name: str
    node: Any
    channels: int
    """Of its input."""

    def layer(self, neuron: Neuron, gain: float, steps: int) -> TandemLayer:
        node = self.node
        if isinstance(node, nir.SumPool2d):
            layer: Any = TandemConv2d(
                self.channels,
                self.channels,
                _pair(node.kernel_size),
                _pair(node.stride),
                _pair(node.padding),
                groups=self.channels,
                bias=False,
                neuron=neuron,
            )
            with torch.no_grad():
                layer.weight.fill_(gain)
            return layer
        weight, bias = self._parameters(gain, steps)
        if isinstance(node, nir.Conv2d):
            groups = int(node.groups)
            layer = TandemConv2d(
                weight.shape[1] * groups,
                len(weight),
                _pair(weight.shape[2:]),
                _pair(node.stride),
                node.padding if isinstance(node.padding, str) else _pair(node.padding),
                _pair(node.dilation),
                groups,
                bias is not None,
                dtype=weight.dtype,
                neuron=neuron,
            )
        else:
            layer = TandemLinear(weight.shape[1], len(weight), bias is not None, dtype=weight.dtype, neuron=neuron)
        _load(layer, weight, bias)
        return layer

    def read_out(self, steps: int) -> nn.Linear:
        weight, bias = self._parameters(1.0, steps)
        layer = nn.Linear(weight.shape[1], len(weight), bias is not None, dtype=weight.dtype)
        _load(layer, weight, bias)
        return layer

    def _parameters(self, gain: float, steps: int) -> tuple[Tensor, Tensor | None]:
        """Weight, and bias of all steps (None where it is zero), for a neuron with so much gain at its input."""
        weight, per_step = _tensor(self.node.weight), getattr(self.node, "bias", None)
        if gain != 1:
            weight = weight * gain
        if per_step is None or not np.any(per_step):
            return weight, None
        bias = _tensor(per_step).to(weight.dtype)
        return weight, _times(bias if gain == 1 else bias * gain, steps)


def _neuron(node: Any, dt: float) -> tuple[Neuron, float]:
    """The neurons of a node, and what their input is multiplied by; ValueError where there are no such neurons here."""
    values = {}
    for name in ("r", "v_threshold", "v_reset", "tau", "v_leak"):
        if hasattr(node, name):
            distinct = np.unique(np.asarray(getattr(node, name), dtype=np.float64))
            if len(distinct) != 1:
                raise ValueError(f"{name} must be the same for all neurons, got {len(distinct)} values")
            values[name] = float(distinct[0])
    threshold, leak, gain = values["v_threshold"], 1.0, values["r"] * dt
    if not threshold > 0:
        raise ValueError(f"v_threshold must be positive, got {threshold}")
    if isinstance(node, nir.LIF):
        if values["v_leak"] != 0:
            raise ValueError(f"v_leak must be 0, got {values['v_leak']}")
        if not values["tau"] > dt:
            raise ValueError(f"tau must be greater than dt = {dt}, got {values['tau']}")
        leak = 1 - dt / values["tau"]
        stated = float(node.metadata.get("leak", leak))
        leak = stated if math.isclose(stated, leak, rel_tol=1e-9) else leak
        gain /= values["tau"]
    reset = threshold * (1 - 1 / leak)
    if not math.isclose(values["v_reset"], reset, rel_tol=1e-6, abs_tol=1e-9 * threshold):
        raise ValueError(
            f"v_reset must be v_threshold * (1 - 1 / leak) = {reset:.6g}, so that the reset subtracts the threshold, "
            f"got {values['v_reset']:.6g}"
        )
    gain = 1.0 if math.isclose(gain, 1, rel_tol=1e-9) else gain
    return IF(threshold) if leak == 1 else LIF(threshold, leak), gain


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


def _load(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)


def _tensor(x: Any) -> Tensor:
    values = np.asarray(x)
    return torch.from_numpy(values.astype(np.float64 if values.dtype == np.float64 else np.float32))


def _pair(x: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(np.asarray(x), 2).tolist()
    return int(first), int(second)


def _check_dt(caller: str, dt: Any) -> None:
    if isinstance(dt, bool) or not isinstance(dt, (int, float)):
        raise TypeError(f"{caller}: dt must be a number, got {type(dt).__name__}")
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"{caller}: dt must be positive and finite, got {dt}")


def _unsupported(what: str, problems: list[str]) -> ValueError:
    supported = (
        "a chain of Encode, TandemConv2d, TandemLinear, flattening, dropout, Decode and a last nn.Linear"
        if what.startswith("to_nir")
        else "a chain of Conv2d, Linear, Affine or SumPool2d, each with IF or LIF behind it, Flatten, and a last "
        "Linear or Affine"
    )
    return ValueError(f"{what} must be {supported}, got:\n" + "\n".join(f"  {problem}" for problem in problems))
