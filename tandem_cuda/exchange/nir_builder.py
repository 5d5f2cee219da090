"""A NIR graph under construction: its nodes for weights and neurons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..neuron import IF, Neuron
from ..nn import EncodedInput
from ..nn.nir import NirGeometry, Product, Shape, dense, image, linear_map
from ..spike_train import SpikeTrain
from .nir_extension import computed, function_node
from .nir_format import nir, unsupported
from .nir_nodes import array_of, convolution_node, neurons_node
from .nir_sources import NirConvolution, NirSource, Plane, convolution, is_image, planes_of

_DIMENSIONS = "its input must be [N, F], [N, C, L] or [N, C, H, W]"


class Signal(NamedTuple):
    """A value of the model, and where the graph has it."""

    sources: tuple[NirSource, ...]
    """What adds up to it, without the factor ``gain``."""
    value: Any
    """The value for the sample."""
    kind: str
    """"real", "encoded", "spikes", or, after Decode, "current"."""
    gain: float = 1.0
    """The factor to multiply by."""
    why: str = ""
    """Why only flattening may follow, if NIR has no node for anything else."""

    @property
    def shape(self) -> Shape:
        return shape_of(self.value)

    @property
    def pair_dim(self) -> int | None:
        return self.value.pair_dim if isinstance(self.value, SpikeTrain) else None

    def times(self, factor: float) -> Signal:
        return self._replace(gain=self.gain * factor)

    def node(self) -> NirSource | None:
        """Return the source that is the value itself, if there is one."""
        (source, *others) = self.sources
        return source if not others and source.whole() else None


class Place(NamedTuple):
    """The module, or the part of a module, whose nodes are being written."""

    name: str
    """The name of its nodes."""
    what: str
    """What error messages call it."""

    def part(self, i: int, of: int, what: str = "") -> Place:
        """Return the place of part i; the only part keeps the name."""
        return self if of == 1 else Place(f"{self.name}_{i}", self.what + what)


class Builder:
    """A NIR graph under construction: nodes, edges, and what cannot be written."""

    at: Place
    out: Any
    """The output of the current module for the sample."""

    def __init__(self, dt: float, sample: Tensor | SpikeTrain, groups: bool) -> None:
        self.dt, self.groups = dt, groups
        self.nodes: dict[str, nir.NIRNode] = {"input": nir.Input(input_type=np.array(sample.shape[1:]))}
        self.edges: list[tuple[str, str]] = []
        self.encoding: tuple[int, str] | None = None
        """T, and the encoding of the input."""
        self.problems: list[str] = []
        sources = (NirSource(("input",), tuple(sample.shape[1:])),)
        if isinstance(sample, SpikeTrain):
            self.encoding = sample.time_steps, "spikes"
            self.sample = Signal(sources, sample, "spikes", sample.amplitude)
        else:
            self.sample = Signal(sources, sample, "real")

    @property
    def shape(self) -> Shape:
        return shape_of(self.out)

    def _refuse(self, at: Place, problem: str) -> None:
        """Note a problem, and go on to find others."""
        self.problems.append(f"{at.what}: {problem}")

    def _refusal(self, at: Place, problem: str) -> ValueError:
        """Return the error for a problem without whose solution later values cannot be computed."""
        self._refuse(at, problem)
        return unsupported("to_nir: model", self.problems)

    def put(self, name: str, node: nir.NIRNode, sources: Iterable[str]) -> str:
        """Add a node under a unique name that other libraries accept as the name of a module."""
        if name != "output":
            name = name.replace(".", "_")
            name = f"layer_{name}" if name[0].isdigit() else name
            while name in ("input", "output") or name in self.nodes:
                name += "_"
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    # -- weights

    def _product(self, at: Place, signal: Signal, product: Product) -> NirSource:
        """Add the nodes of a layer's weights."""
        shape = signal.shape
        if product.geometry is None and len(shape) != 1:
            self._refuse(at, f"its input must be [N, F], got {[1, *shape]}; put nn.Flatten before it")
            return NirSource((), self.shape)
        if len(shape) > 3:
            self._refuse(at, f"{_DIMENSIONS}, got {[1, *shape]}")
            return NirSource((), self.shape)
        return self._by_source(at, signal, product)

    def _by_source(self, at: Place, signal: Signal, product: Product) -> NirSource:
        """Add a node of weights for each source of the signal. The first one has the bias."""
        assert self.encoding is not None
        weight, bias, geometry, rounding = product
        scaled = weight.detach().cpu() * signal.gain
        per_step = None if bias is None else bias / self.encoding[0]
        if not all(bool(x.isfinite().all()) for x in (scaled, per_step) if x is not None):
            self._refuse(at, "weights and bias must be finite, got NaN or infinite values")
        if geometry is not None and any(source.part is not None for source in signal.sources):
            scaled, geometry = dense(scaled, geometry.groups), geometry._replace(groups=1)
        products: dict[Any, tuple[NirSource, NirConvolution, dict[str, Any]]] = {}
        for source in signal.sources:
            if geometry is None:
                own: NirConvolution | None = NirConvolution(source.features(scaled))
            else:
                own = convolution(source, signal.shape, scaled, geometry)
            if own is None:
                readable = are_images(signal.sources, signal.shape)
                images = self._as_node(at, signal) if readable else self._as_images(at, signal)
                if images is None:
                    raise self._refusal(at, signal.why)
                return self._by_source(at, images, product)
            key, metadata = (source.nodes, own[1:], own.weight.shape), _rounded(rounding, source, signal.gain)
            if key in products:  # such as the two signs of a value
                _, earlier, other = products[key]
                if bool(((earlier.weight != 0) & (own.weight != 0)).any()) or not _same_rounding(metadata, other):
                    metadata = {}  # a sum of integers may need more bits
                own = own._replace(weight=earlier.weight + own.weight)
            products[key] = source, own, metadata
        nodes: list[str] = []
        shapes: list[Shape] = []
        for i, (source, own, metadata) in enumerate(products.values()):
            if geometry is None:
                values = [array_of(x) for x in (own.weight, per_step) if x is not None]
                node = (nir.Linear if per_step is None else nir.Affine)(*values, metadata=metadata)
                shapes.append((len(own.weight),))
            else:
                node = self._convolution(at, own, per_step, geometry.size, source, metadata)
                shapes.append(tuple(node.output_type["output"].tolist()))
            nodes.append(self.put(at.part(i, len(products)).name, node, source.nodes))
            per_step = None  # added once
        self._check_shapes(at, shapes, signal.why)
        return NirSource(tuple(nodes), shapes[0])

    def _check_shapes(self, at: Place, shapes: list[Shape], why: str) -> None:
        """Currents that add up must agree in shape also if the model sees some lines as images of height 1."""
        if len({*shapes}) > 1 and not self.problems:
            hint = why or "flatten each before it"
            self._refuse(at, f"what it adds must have one shape in NIR, got {shapes}; {hint}")

    def _convolution(
        self,
        at: Place,
        conv: NirConvolution,
        bias: Tensor | None,
        size: tuple[int, int],
        source: NirSource,
        metadata: dict[str, Any],
    ) -> nir.NIRNode:
        """Return a node of type Conv1d or Conv2d for the source's nodes."""
        if not self.groups:
            conv = conv._replace(weight=dense(conv.weight, conv.groups), groups=1)
        try:
            return convolution_node(conv, bias, source.shape, size, metadata)
        except ValueError as error:
            raise self._refusal(at, str(error)) from None

    def depthwise(self, at: Place, weight: Tensor, geometry: NirGeometry, source: NirSource) -> NirSource:
        """Add a depthwise convolution of a node with constant weights."""
        conv = convolution(source, source.shape, weight, geometry)
        assert conv is not None
        node = self._convolution(at, conv, None, geometry.size, source, {})
        return NirSource((self.put(at.name, node, source.nodes),), tuple(node.output_type["output"].tolist()))

    # -- functions of real numbers

    def function(self, at: Place, call: Any, compute: Callable[..., Any], signals: Sequence[Signal]) -> Signal:
        """Add a node for a call, a FrozenModule or FrozenFunction; ``compute`` takes the values of its inputs."""
        try:
            value = computed(compute, [signal.value for signal in signals])
        except (ValueError, TypeError, RuntimeError) as error:
            raise self._refusal(at, str(error)) from None
        inputs = [self.real(at._replace(name=f"{at.name}_of"), signal) for signal in signals]
        shape = shape_of(value)
        name = self.put(at.name, function_node(call, inputs, shape), dict.fromkeys(inputs))
        return Signal((NirSource((name,), shape),), value, "current")

    def real(self, at: Place, signal: Signal) -> str:
        """Return the node whose sum over all steps is the value; add one if there is none."""
        source = signal.node()
        if source is None or source.shape != signal.shape:
            source, signal = self._alone(at, signal), signal._replace(gain=1.0)
        if source.shape != signal.shape:
            wanted = f"NIR has no node for its input {[1, *signal.shape]}, whose neurons are {[1, *source.shape]}"
            raise self._refusal(at, signal.why or wanted)
        if len(source.nodes) == 1 and signal.gain == 1:
            return source.nodes[0]
        if len(source.shape) == 1:
            return self._alone(at, signal._replace(sources=(source,))).nodes[0]
        factor = torch.full((source.shape[0], 1, 1, 1), signal.gain, dtype=signal.value.dtype)
        geometry = NirGeometry((1, 1), (0, 0), (1, 1), source.shape[0], image(source.shape)[1:])
        return self.depthwise(at, factor, geometry, source).nodes[0]

    # -- values as nodes

    def _alone(self, at: Place, signal: Signal) -> NirSource:
        """Add nodes whose output is the value itself, using only nodes that every importer supports."""
        shape = signal.shape
        if len(shape) > 3:
            self._refuse(at, f"{_DIMENSIONS}, got {[1, *shape]}")
            return NirSource((), shape)
        eye = torch.eye(shape[0], dtype=signal.value.dtype)
        if len(shape) == 1:
            return self._by_source(at, signal, Product(eye))
        if not are_images(signal.sources, shape):
            images = self._as_images(at, signal)
            if images is None:
                self._refuse(at, signal.why)
                return NirSource((), shape)
            signal = images
        geometry = NirGeometry((1, 1), (0, 0), (1, 1), 1, image(shape)[1:])
        return self._by_source(at, signal, Product(eye[..., None, None], None, geometry))

    def _as_images(self, at: Place, signal: Signal) -> Signal | None:
        """Add nodes for sources that no convolution reads: for rows and for columns, with neurons that repeat spikes.

        Return None for a signal of other values than spikes, and if rows or columns do not move together.
        """
        sources = []
        for i, source in enumerate(signal.sources):
            if not is_image(source, signal.shape):
                own, shape = source.alone(signal.shape)
                planes = planes_of(own, shape) if signal.kind == "spikes" and len(own.shape) > 1 else None
                if planes is None:
                    return None
                place = at.part(i, len(signal.sources))
                source = self._mapped(place, own, planes, shape)._replace(part=source.part)
            sources.append(source)
        return signal._replace(sources=tuple(sources))

    def _mapped(self, at: Place, source: NirSource, planes: Sequence[Plane], shape: Shape) -> NirSource:
        """Add nodes that map the rows of each plane, and then its columns and channel."""
        width = image(source.shape)[2]
        to, channel, rows, columns = zip(*planes, strict=True)
        every = range(len(planes))
        alike = torch.eye(len(rows[0])).expand(len(planes), -1, -1), torch.eye(width).expand(len(planes), -1, -1)
        steps = (
            ("rows", channel, every, len(planes), torch.stack(rows), alike[1]),
            ("columns", every, to, shape[0], alike[0], torch.stack(columns)),
        )
        source = NirSource(source.nodes, source.shape)
        for name, reads, writes, outputs, down, right in steps:
            inputs = source.shape[0]
            kernel, geometry = linear_map(down, right, math.gcd(inputs, outputs))
            if inputs == outputs and [*reads] == [*writes] == [*range(inputs)] and kernel[0].numel() == 1:
                continue
            blocks = inputs // geometry.groups, outputs // geometry.groups
            if any(r // blocks[0] != w // blocks[1] for r, w in zip(reads, writes, strict=True)):
                blocks, geometry = (inputs, outputs), geometry._replace(groups=1)
            weight = kernel.new_zeros(outputs, blocks[0], *kernel.shape[1:], dtype=self.out.dtype)
            weight[list(writes), [r % blocks[0] for r in reads]] = kernel.to(weight)
            place = at._replace(name=f"{at.name}_{name}")
            source = self._neurons(place, IF(), self.depthwise(place, weight, geometry, source))
        return source

    def _as_node(self, at: Place, signal: Signal) -> Signal:
        """Add nodes that pass on the value: an identity, and for spikes neurons that repeat each at once."""
        at = at._replace(name=f"{at.name}_input")
        spikes = signal.kind == "spikes"
        passed = self._alone(at, signal._replace(gain=1.0) if spikes else signal)
        if not spikes:
            return signal._replace(sources=(passed,), gain=1.0)
        return signal._replace(sources=(self._neurons(at, IF(), passed),), why="")

    def _neurons(self, at: Place, neuron: Neuron, source: NirSource) -> NirSource:
        """Add neurons that sum the outputs of a source."""
        try:
            form = neuron.to_nir(self.dt)
        except ValueError as error:
            raise self._refusal(at, str(error)) from None
        node = neurons_node(form, source.shape)
        return NirSource((self.put(f"{at.name}_neurons", node, source.nodes),), source.shape)


def are_images(sources: Sequence[NirSource], shape: Shape) -> bool:
    """Return whether a convolution of each source's nodes is the value of this shape."""
    return all(is_image(source, shape) for source in sources)


def _rounded(rounding: tuple[int, Tensor] | None, source: NirSource, gain: float) -> dict[str, Any]:
    """Return the metadata of quantised weights: their bits, and what the integer 1 stands for in each channel.

    The metadata are empty if values of different weight, or several values that read one spike, leave no integers.
    """
    if rounding is None:
        return {}
    used = None if source.position is None else source.position[source.position > 0]
    if used is not None and len(torch.unique(used)) != len(used):
        return {}
    if source.weight is not None:
        factors = torch.unique(source.weight[source.weight != 0].abs())
        if len(factors) != 1:
            return {}
        gain = gain * float(factors)
    bits, scale = rounding
    return {"weight_bits": bits, "weight_scale": array_of(scale * gain)}


def _same_rounding(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def shape_of(value: Any) -> Shape:
    """Return the shape without the batch dimension."""
    return tuple((value.value if isinstance(value, EncodedInput) else value).shape[1:])
