"""to_nir: export a network as a NIR graph."""

from __future__ import annotations

import functools
import math
import operator
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn

from .. import nn as tandem
from .._progress import progress
from ..convert import TandemNetwork
from ..neuron import Neuron
from ..nn.average_pool import SpikingAverage
from ..nn.frozen import class_of
from ..nn.modes import evaluating
from ..nn.spiking import Spiking
from ..nn.tandem import TandemLayer
from ..nn.wiring import over_inputs
from ..spike_train import SpikeTrain
from .nir_file import RESET, check_dt, nir, unsupported, write
from .nir_nodes import NEURONS, Product, array_of, convolution_node, dense, listed, pool_of, typed, windows_of

Shape = tuple[int, ...]
"""The shape of a value without the batch dimension."""


def to_nir(
    model: nn.Module,
    sample: Tensor | SpikeTrain,
    path: str | os.PathLike[str] | None = None,
    *,
    dt: float = 1e-4,
    groups: bool = True,
) -> nir.NIRGraph:
    """Export a network, as it is in eval mode, as a NIR graph. Batch norm is folded into the weights.

    The network may consist of ``Encode``, ``TandemConv1d``, ``TandemConv2d``, ``TandemLinear``, ``TandemElementwise``,
    ``TandemAdd``, average pooling of images, flattening, dropout, ``Decode``, and after it linear layers, convolutions,
    average pooling and sums. NIR has no word for anything else: the error lists all such parts.

    docs/exchange.md describes the nodes. A simulator that integrates NIR's equations by the forward Euler method, with
    a time step of dt, computes u[t] = leak * u[t-1] + x[t] - threshold * s[t-1], given that

    - the input is the input itself at every time step (``Encode(T, "constant")``); the input at the first step and
      zeros afterwards ("impulse"); or the recorded spikes (no ``Encode``);
    - neurons spike if u >= threshold, and a spike *subtracts* v_threshold - v_reset (reset "soft" or "subtract");
    - nodes add up their inputs, and outputs are added up over time: spikes, or a current after ``Decode``.

    The graph's metadata hold dt, T (``time_steps``), the encoding and the reset, "subtract".

    NIR has no integer weights. A quantised network (:func:`tandem_cuda.quantise`) is written with the floats that its
    integers stand for. The metadata of their node hold ``weight_bits``, and ``weight_scale`` [O], with batch norm
    folded in, so that round(weight / weight_scale) returns the integers. Sums of these floats are rounded, so other
    simulators may have other spikes.

    Args:
        model: the model, the result of :func:`tandem_cuda.convert` or any other that torch.fx can trace.
        sample: an input of the model, a Tensor or SpikeTrain [N, ...], which defines the shapes and T.
        path: the HDF5 file to write the graph to; by default none is written.
        dt: duration of a time step in seconds. snnTorch and SpikingJelly assume 1e-4.
        groups: False writes grouped convolutions, also for ``TandemElementwise`` and average pooling, as plain
            convolutions with zeros between the groups. They have as many times more weights as there are groups, but
            SpikingJelly, snnTorch, sinabs and norse read no grouped convolutions.

    Returns:
        The graph. Its weights have the values and dtype of the folded weights.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``dt`` is not positive; ``sample`` is empty or has radix spikes; parts of ``model`` cannot be
            exported (the message names all of them); or weights are not finite.
        OSError: the file cannot be written.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> from tandem_cuda.exchange import to_nir
        >>> graph = to_nir(net, torch.rand(1, 784))
        >>> [type(node).__name__ for node in graph.nodes.values()]
        ['Input', 'Affine', 'IF', 'Affine', 'Output']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_nir: model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(sample, (Tensor, SpikeTrain)):
        raise TypeError(f"to_nir: sample must be a Tensor or a SpikeTrain, got {type(sample).__name__}")
    if len(sample.shape) < 2 or 0 in sample.shape:
        raise ValueError(f"to_nir: sample must be [N, ...] and not empty, got {list(sample.shape)}")
    if isinstance(sample, SpikeTrain) and sample.radix:
        raise ValueError("to_nir: sample must have spikes that all weigh the same, as in NIR, got radix spikes")
    check_dt("to_nir", dt)
    if not isinstance(groups, bool):
        raise TypeError(f"to_nir: groups must be True or False, got {type(groups).__name__}")
    with evaluating(model), torch.no_grad():
        # With two samples, the batch dimension differs from dimensions of size 1.
        twice = sample[[0, 0]] if isinstance(sample, Tensor) else sample.rearranged(lambda bits: bits[:, [0, 0]])
        graph = _Export(twice, dt, groups).of(*_traced(model))
    if path is not None:
        write(graph, os.fspath(path))
    return graph


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _OWN) or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> tuple[nn.Module, list[fx.Node]]:
    """Return a module, and the calls of its forward pass that the output depends on."""
    if isinstance(model, TandemNetwork):
        model.check_twins()
        model = model.snn
    if isinstance(model, _OWN):
        model = nn.Sequential(OrderedDict({type(model).__name__.lower(): model}))
    try:
        graph = model.graph if isinstance(model, fx.GraphModule) else _Tracer().trace(model)
    except Exception as error:  # a user's forward may raise anything when it meets a proxy
        raise ValueError(f"to_nir: model must be traceable by torch.fx, got the error: {error}") from error
    read: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in read or node.op == "output":
            read.update((node, *node.all_input_nodes))
    return model, [node for node in graph.nodes if node in read or node.op == "placeholder"]


class _Signal(NamedTuple):
    """A value of the network, and the nodes whose outputs add up to it."""

    nodes: tuple[str, ...]
    value: Any
    """The value for the sample."""
    decoded: bool = False
    """Whether it comes after Decode."""
    gain: float = 1.0
    """The factor to multiply the nodes' outputs by."""
    scale: Tensor | None = None
    """A further factor, float64, which broadcasts over the shape."""
    windows: int = 1
    """The number of channels of the value, side by side, that one channel of the nodes is the sum of."""

    @property
    def shape(self) -> Shape:
        """The shape of the nodes' outputs."""
        channels, *size = _shape_of(self.value)
        return channels // self.windows, *size


class _Export:
    """A NIR graph under construction.

    Every call runs on the sample. What follows a refused call is checked all the same, so that the error lists
    everything; its nodes are then connected to the inputs of the refused call.
    """

    name: str
    """The name of the nodes of the current call."""
    what: str
    """What error messages call it."""

    def __init__(self, sample: Tensor | SpikeTrain, dt: float, groups: bool) -> None:
        self.sample, self.dt, self.groups = sample, dt, groups
        self.nodes: dict[str, nir.NIRNode] = {"input": nir.Input(input_type=np.array(sample.shape[1:]))}
        self.edges: list[tuple[str, str]] = []
        self.encoding = (sample.time_steps, "spikes") if isinstance(sample, SpikeTrain) else None
        """T, and the encoding of the input."""
        self.problems: list[str] = []

    def of(self, root: nn.Module, calls: list[fx.Node]) -> nir.NIRGraph:
        """Return the graph of these calls."""
        values: dict[fx.Node, Any] = {}
        last = {x: node for node in calls for x in node.all_input_nodes}
        for node in progress(calls, "to_nir"):
            values[node] = self._called(root, node, values)
            for x in node.all_input_nodes:
                if last[x] is node:  # large networks have many values
                    del values[x]
        result = values[calls[-1]]
        self.name, self.what = "read_out", "output"
        if not isinstance(result, _Signal):
            self._refuse("it must be a single value")
        elif not self.problems and not any(isinstance(node, NEURONS) for node in self.nodes.values()):
            self._refuse("it must depend on a tandem layer")
        elif not self.problems:
            nodes = self._alone(result if result.decoded else result._replace(gain=1.0))
            self._put("output", nir.Output(output_type=np.array(result.shape)), nodes)
        if self.problems or self.encoding is None:
            raise unsupported("to_nir", self.problems)
        metadata = {"time_steps": self.encoding[0], "dt": float(self.dt), "encoding": self.encoding[1], "reset": RESET}
        return nir.NIRGraph(self.nodes, self.edges, metadata, type_check=False)  # the check takes quadratic time

    def _called(self, root: nn.Module, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Run a call and add its nodes. Return a signal, or what is no value of the network, such as a size."""
        word, module = str(getattr(node.target, "__name__", node.target)), None
        self.name, self.what = node.name, f"{word} ({node.op})"
        if node.op == "placeholder":
            if any(x.op == "placeholder" for x in values):
                raise self._refusal("the model must have only one input")
            return _Signal(("input",), self.sample, gain=getattr(self.sample, "amplitude", 1.0))
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(root)
        if node.op == "output":
            return values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        run: Any = node.target
        function = word.partition(".")[0]
        form = _FUNCTIONS.get(function, _NO_NODE)
        if function == "add" and node.kwargs:  # a factor
            form = _NO_NODE
        if node.op == "call_module":
            run = module = root.get_submodule(str(node.target))
            self.name, self.what, form = str(node.target), f"{node.target} ({type(module).__name__})", _form_of(module)
            if not all(bool(x.isfinite().all()) for x in (*module.parameters(), *module.buffers())):
                raise self._refusal("weights and bias must be finite, got NaN or infinite values")
        given: list[Any] = []
        fx.node.map_arg((node.args, node.kwargs), lambda x: given.append(values[x]))  # also several times
        inputs = [x for x in given if isinstance(x, _Signal)]
        why = form if isinstance(form, str) else form.refuses(inputs)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda x: getattr(values[x], "value", values[x]))
        try:
            module = module or pool_of(function, args[1:], kwargs)
            out = getattr(args[0], word)(*args[1:], **kwargs) if node.op == "call_method" else run(*args, **kwargs)
        except Exception as error:  # a module or function may raise anything
            raise self._refusal(why or str(error)) from error
        if not inputs or isinstance(out, _NO_VALUES):
            return out
        if why or isinstance(form, str):
            self._refuse(why)
            decoded = isinstance(out, Tensor) and any(x.decoded or not isinstance(x.value, Tensor) for x in inputs)
            return inputs[0]._replace(value=out, decoded=decoded)
        return form.write(self, module, out, *inputs)

    def _refuse(self, problem: str) -> None:
        """Note a problem, and go on to find others."""
        self.problems.append(f"{self.what}: {problem}")

    def _refusal(self, problem: str) -> ValueError:
        """Return the error for a problem without whose solution later values cannot be computed."""
        self._refuse(problem)
        return unsupported("to_nir", self.problems)

    # -- nodes

    def _put(self, name: str, node: nir.NIRNode, sources: Iterable[str]) -> tuple[str, ...]:
        """Add a node under a unique name that other libraries accept as the name of a module."""
        if name != "output":
            name = name.replace(".", "_")
            name = f"layer_{name}" if name[0].isdigit() else name
            while name in ("input", "output") or name in self.nodes:
                name += "_"
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return (name,)

    def _weights(self, x: _Signal, product: Product, after: Shape, more: str = "") -> tuple[str, ...]:
        """Add a node of weights with outputs of shape ``after``. ``more`` is appended to its name."""
        weight, bias, (*geometry, groups), rounding = product
        dims = max(weight.dim() - 1, 1)
        if len(x.shape) != dims:
            hint = "; put nn.Flatten before it" if dims == 1 else ""
            self._refuse(f"its input must be {_AXES[dims]}, got {listed(x.shape)}{hint}")
            return x.nodes
        if x.windows > 1:
            weight, whole = weight[:, : weight.shape[1] // x.windows], weight
            if groups > 1 or not torch.equal(weight.repeat(1, x.windows, *[1] * (whole.dim() - 2)), whole):
                self._refuse("its weights must be the same for all positions of a window")
        weight, factors = weight.detach().cpu() * x.gain, torch.ones(1, 1)
        if x.scale is not None and x.scale.shape[0] != x.shape[0]:  # two spike trains for each value
            self._refuse("spikes for values of both signs must have the same weight in all channels")
            return x.nodes
        if x.scale is not None:
            factors = x.scale.expand(x.shape).reshape(x.shape[0], -1)
            if bool((factors != factors[:, :1]).any()):
                self._refuse("all pixels of a channel must have the same factor")
            weight = weight * over_inputs(factors[:, 0].to(weight), weight.shape, groups)
        bias = None if bias is None else bias.detach().cpu() / (1 if self.encoding is None else self.encoding[0])
        if not all(bool(y.isfinite().all()) for y in (weight, bias) if y is not None):
            self._refuse("weights and bias must be finite, got NaN or infinite values")
        metadata: dict[str, Any] = {}
        if rounding is not None and len(torch.unique(factors)) == 1:  # otherwise no scale returns the integers
            bits, scale = rounding
            metadata = {"weight_bits": bits, "weight_scale": array_of(scale * (x.gain * float(factors[0, 0])))}
        if dims == 1:
            arrays = [array_of(y) for y in (weight, bias) if y is not None]
            node = (nir.Linear if bias is None else nir.Affine)(*arrays, metadata=metadata)
        else:
            weight, groups = (weight, groups) if self.groups else (dense(weight, groups), 1)
            node = convolution_node(weight, bias, geometry, groups, x.shape, after, metadata)
        return self._put(self.name + more, node, x.nodes)

    def _neurons(self, neuron: Neuron, sources: Sequence[str], out: SpikeTrain) -> _Signal:
        """Add neurons that sum the outputs of the sources, and return their spikes, ``out``."""
        try:
            form = neuron.to_nir(self.dt)
        except ValueError as error:
            self._refuse(str(error))
            return _Signal(tuple(sources), out)
        values = {name: np.full(out.shape[1:], value, dtype=np.float64) for name, value in form.values.items()}
        node = getattr(nir, form.node)(**values, metadata=form.metadata)
        return _Signal(self._put(f"{self.name}_neurons", node, sources), out, gain=out.amplitude)

    def _alone(self, x: _Signal, taken: Sequence[str] = (), more: str = "") -> tuple[str, ...]:
        """Return nodes whose outputs add up to the value itself, none of which is ``taken``; add one if need be."""
        if x.windows > 1:
            self._refuse(_IN_FRONT)
        if x.gain == 1 and x.scale is None and not {*x.nodes} & {*taken}:
            return x.nodes
        eye = torch.eye(x.shape[0], dtype=x.value.dtype)
        return self._weights(x, Product(eye.view(*eye.shape, *[1] * (len(x.shape) - 1))), x.shape, more)

    # -- layers, given their outputs and inputs

    def _encoded(self, module: Any, out: Any, x: _Signal) -> _Signal:
        if self.encoding not in (None, (module.time_steps, module.mode)):
            self._refuse(f"T and mode must be {self.encoding}, as in the other Encode")
        if module.mode == "radix":
            self._refuse("mode must be 'constant' or 'impulse', since all spikes weigh the same in NIR")
        self.encoding = module.time_steps, module.mode
        return x._replace(value=out, gain=module.scale)

    def _decoded(self, module: Any, out: Any, x: _Signal) -> _Signal:
        if module.pair_dim(x.value) is not None:
            self._refuse("NIR has no word for values of both signs after the last neurons")
        factors = module.factors(out.shape)
        return _Signal(x.nodes, out, True, x.gain, None if factors is None else factors.detach().cpu().double())

    def _layer(self, module: Any, out: Any, x: _Signal) -> _Signal:
        """Add weights and, for a tandem layer, neurons."""
        nodes = self._weights(x, Product.of(module, x.shape), _shape_of(out))
        return _Signal(nodes, out, True) if x.decoded else self._neurons(module.neuron, nodes, out)

    def _joined(self, module: Any, out: Any, *inputs: _Signal) -> _Signal:
        """Add the weights and neurons of a TandemAdd. The first branch with weights holds the sum of all biases."""
        what, nodes, forms = self.what, list[str](), [_form_of(branch) for branch in module.branches]
        refused = [f"{what}, branch {i}: {why}" for i, why in enumerate(forms) if isinstance(why, str)]
        if refused:
            self.problems += refused
            return _Signal(inputs[0].nodes, out)
        pairs = zip(module.branches, inputs, strict=True)
        weighted = [Product.of(branch, x.shape) if isinstance(branch, TandemLayer) else None for branch, x in pairs]
        biases = [product.bias for product in weighted if product is not None and product.bias is not None]
        total, scale = functools.reduce(torch.add, biases) if biases else None, module.current_scale()
        if scale is not None:
            total = None if total is None else total * scale
            inputs = tuple(x._replace(gain=x.gain * float(scale)) for x in inputs)
        for i, (product, x) in enumerate(zip(weighted, inputs, strict=True)):
            self.what = f"{what}, branch {i}"
            if product is None:
                nodes += self._alone(x, nodes, f"_{i}")
            else:
                nodes += self._weights(x, product._replace(bias=total), _shape_of(out), f"_{i}")
                total = None
        self.what = what
        return self._neurons(module.neuron, nodes, out)

    def _pooled(self, module: Any, out: Any, x: _Signal) -> _Signal:
        """Add sums or means of windows and, if the module has some, neurons."""
        pool = module
        if isinstance(module, nn.AdaptiveAvgPool2d) and x.decoded:
            pool = tandem.SpikingAdaptiveAvgPool2d(module.output_size)
        elif not isinstance(module, SpikingAverage):
            ends = getattr(module, "ceil_mode", False), getattr(module, "count_include_pad", True)
            windows = module.kernel_size, module.stride, module.padding
            pool = tandem.SpikingAvgPool2d(*windows, *ends, module.divisor_override)
        axes, neurons = pool.windows(*x.shape[1:]), isinstance(module, SpikingAverage)
        uniform, count = windows_of(axes), pool.divisors(*axes)[0]
        kernel, stride, padding = uniform or ((), (), ())
        mean = count == math.prod(kernel) and not any(padding)
        if uniform is None or (any(padding) and not neurons) or (x.decoded and not mean):
            self._refuse("NIR has only windows of one size and divisor, with padding only in front of neurons")
            return x._replace(value=out)
        mean = mean and (x.decoded or count & (count - 1) == 0)  # sums of spikes and of such means are exact
        after, more = (x.shape[0], *_shape_of(out)[1:]), "" if x.decoded else "_windows"
        if any(padding):  # importers ignore the padding of pooling, but not that of convolutions
            ones = Product(torch.ones(x.shape[0], 1, *kernel, dtype=out.dtype), None, (stride, padding, 1, x.shape[0]))
            nodes = self._weights(x._replace(gain=1.0), ones, after, more)
        else:
            node = (nir.AvgPool2d if mean else nir.SumPool2d)(*(np.array(y) for y in (kernel, stride, padding)))
            nodes = self._put(self.name + more, typed(node, x.shape, after), x.nodes)
        if neurons:
            return self._neurons(pool.neurons(1 if mean else count), nodes, out)
        gain = x.gain if mean else out.amplitude
        return x._replace(nodes=nodes, value=out, gain=gain, windows=getattr(module, "size", 1))

    def _mean(self, module: Any, out: Any, x: _Signal) -> _Signal:
        """Add the average over all pixels of decoded counts."""
        if module is None or len(x.shape) != 3:
            self._refuse(_NO_NODE)
            return x._replace(value=out)
        return self._flattened(None, out, self._pooled(module, x.value.mean((2, 3), keepdim=True), x))

    def _passed_on(self, module: Any, out: Any, x: _Signal) -> _Signal:
        if isinstance(out, Tensor) and not torch.equal(out, x.value):
            self._refuse("it must do nothing in eval mode")
        return x._replace(value=out)

    def _flattened(self, module: Any, out: Any, x: _Signal) -> _Signal:
        before, after = x.shape, x._replace(value=out).shape
        if before == after:
            return x._replace(value=out)
        ranges = [(i, j) for i in range(len(before)) for j in range(len(before) - 1, i, -1)]
        fit = [(i, j) for i, j in ranges if (*before[:i], math.prod(before[i : j + 1]), *before[j + 1 :]) == after]
        if not fit or len(getattr(out, "value", out)) != 2:
            self._refuse("it must flatten neighbouring dimensions, and leave the batch dimension alone")
            return x._replace(value=out)
        start, end = fit[0]
        if start == 0 and getattr(x.value, "pair_dim", None) == 1 and math.prod(before[1 : end + 1]) > 1:
            self._refuse(f"{_MOVES}, as flattening moves the two parts of values of both signs")
        scale = None if x.scale is None else x.scale.expand(before).flatten(start, end)
        node = nir.Flatten({"input": np.array(before)}, start, end)  # NIR has no batch dimension
        return x._replace(nodes=self._put(self.name, node, x.nodes), value=out, scale=scale)

    def _added(self, module: Any, out: Any, *inputs: _Signal) -> _Signal:
        """Add decoded values."""
        if len(inputs) != 2 or inputs[0].shape != inputs[1].shape:
            self._refuse(f"it must add two values of one shape, got {', '.join(listed(x.shape) for x in inputs)}")
            return inputs[0]._replace(value=out)
        nodes = self._alone(inputs[0], (), "_0")
        return _Signal(nodes + self._alone(inputs[1], nodes, "_1"), out, True)


# -- which layers and functions become nodes


class _Form(NamedTuple):
    """How a layer or function becomes nodes."""

    write: Callable[..., _Signal]
    """Takes the export, the module or None, the output and the inputs."""
    decoded: bool | None = None
    """Whether its inputs must, or must not, come after Decode."""
    windows: bool = False
    """Whether its inputs may be windows, as SpikeWindows returns them."""

    def refuses(self, inputs: Sequence[_Signal]) -> str:
        """Return why it does not take these inputs; "" if it takes them."""
        if self.decoded is not None and any(x.decoded != self.decoded for x in inputs):
            return f"it must come {'after' if self.decoded else 'before'} Decode"
        return "" if self.windows or all(x.windows == 1 for x in inputs) else _IN_FRONT


_NO_NODE = "NIR has no node for it"
_MOVES = "NIR has no node that concatenates, moves, selects or pads spikes"
_IN_FRONT = "NIR has pooling without neurons only in front of weights"
_AXES = {1: "[N, F]", 2: "[N, C, L]", 3: "[N, C, H, W]"}
_NO_VALUES = (int, float, str, torch.Size, torch.dtype, torch.device, type(None))
_DROPOUTS = (tandem.TandemDropout, tandem.TandemDropout2d, tandem.TandemDropout3d, tandem.TandemStochasticDepth)
_OWN = (Spiking, *_DROPOUTS)
_LAYERS: list[tuple[Any, _Form | str]] = [
    ((tandem.SpikingMaxPool2d, tandem.SpikingGlobalMaxPool2d), "NIR has no max pooling; use average pooling"),
    ((tandem.SpikeCat, tandem.SpikeRearrange), _MOVES),
    (tandem.TandemNeurons, "NIR has no node that encodes real values as spikes"),
    (tandem.TandemInterpolate, "NIR has no interpolation"),
    (tandem.TandemConvTranspose2d, "NIR has no transposed convolution"),
    (tandem.TandemConv3d, "NIR has no three-dimensional convolution"),
    (
        (tandem.SpikingMaxPool3d, tandem.SpikingAvgPool3d, tandem.SpikingAdaptiveAvgPool3d),
        "NIR has no three-dimensional pooling",
    ),
    (tandem.Encode, _Form(_Export._encoded, False)),
    (tandem.Decode, _Form(_Export._decoded)),
    (tandem.TandemAdd, _Form(_Export._joined, windows=True)),
    ((tandem.TandemConv1d, tandem.TandemConv2d, tandem.TandemLinear), _Form(_Export._layer, windows=True)),
    ((tandem.SpikingAvgPool2d, tandem.SpikingAdaptiveAvgPool2d, tandem.SpikeWindows), _Form(_Export._pooled)),
    (_DROPOUTS, _Form(_Export._passed_on, windows=True)),
]
"""How layers of this package become nodes, or why NIR has no word for them."""
_FLATTENED = _Form(_Export._flattened, windows=True)
_TORCH = {
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _Form(_Export._passed_on)),
    **dict.fromkeys((nn.Linear, nn.Conv1d, nn.Conv2d), _Form(_Export._layer, True)),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d), _Form(_Export._pooled, True)),
    nn.Flatten: _FLATTENED,
}
_FUNCTIONS: dict[str, _Form | str] = {
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze"), _FLATTENED),
    **dict.fromkeys(("clone", "contiguous", "detach", "dropout"), _Form(_Export._passed_on)),
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d"), _Form(_Export._pooled, True)),
    "add": _Form(_Export._added, True),
    "mean": _Form(_Export._mean, True),
}
"""How functions, methods and operators of ATen become nodes, by name."""


def _form_of(module: nn.Module) -> _Form | str:
    """Return how a module becomes nodes, or why NIR has no word for it."""
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode must be 'zeros', got {module.padding_mode!r}"
    forms = [form for kinds, form in _LAYERS if isinstance(module, kinds)]
    return forms[0] if forms else _TORCH.get(class_of(module), _NO_NODE)


def _shape_of(value: Any) -> Shape:
    """Return the shape without the batch dimension."""
    return tuple((value.value if isinstance(value, tandem.EncodedInput) else value).shape[1:])
