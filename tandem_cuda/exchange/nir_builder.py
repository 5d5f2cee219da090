"""A NIR graph under construction: its nodes for weights and neurons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..neuron import IF, Neuron
from ..nn import EncodedInput, TandemConvTranspose2d, TandemElementwise
from ..nn.quantiser import quantiser
from ..nn.tandem import TandemLayer
from ..nn.weights import stored
from ..spike_train import SpikeTrain
from .nir_format import nir, unsupported
from .nir_sources import Convolution, Geometry, Source, convolution, dense, image, is_image

_DIMENSIONS = "its input must be [N, F], [N, C, L] or [N, C, H, W]"


class Signal(NamedTuple):
    """A value of the model, and where the graph has it."""

    sources: tuple[Source, ...]
    """What adds up to it, without the factor ``gain``."""
    value: Any
    """The value for the sample."""
    kind: str
    """"real", "encoded", "spikes", or, after Decode, "current"."""
    gain: float = 1.0
    """The factor to multiply by."""
    why: str = ""
    """Why only flattening may follow, if NIR has no node for anything else."""

    def node(self) -> Source | None:
        """Return the source that is the value itself, if there is one."""
        (source, *others) = self.sources
        return source if not others and source.whole() else None


class Builder:
    """A NIR graph under construction: nodes, edges, and what cannot be written."""

    def __init__(self, dt: float, sample: Tensor | SpikeTrain, groups: bool) -> None:
        self.dt, self.groups = dt, groups
        self.nodes: dict[str, nir.NIRNode] = {"input": nir.Input(input_type=np.array(sample.shape[1:]))}
        self.edges: list[tuple[str, str]] = []
        self.encoding: tuple[int, str] | None = None
        """T, and the encoding of the input."""
        spikes = isinstance(sample, SpikeTrain)
        if isinstance(sample, SpikeTrain):
            self.encoding = sample.time_steps, "spikes"
        gain = sample.amplitude if isinstance(sample, SpikeTrain) else 1.0
        sources = (Source(("input",), tuple(sample.shape[1:])),)
        self.sample = Signal(sources, sample, "spikes" if spikes else "real", gain)
        self.problems: list[str] = []

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
        self, name: str, what: str, module: Any, weight: Tensor, bias: Tensor | None, signal: Signal, out: Any
    ) -> Source:
        """Add the nodes of a layer's weights [O, ...] and bias. The bias given is the sum over all T steps."""
        shape = shape_of(signal.value)
        if isinstance(module, nn.Linear):
            if len(shape) != 1:
                self.problems.append(f"{what}: its input must be [N, F], got {[1, *shape]}; put nn.Flatten before it")
                return Source((), shape_of(out))
            return self._product(name, what, module, weight, bias, None, signal)
        if isinstance(module, TandemElementwise):
            if len(shape) > 3:
                self.problems.append(f"{what}: {_DIMENSIONS}, got {[1, *shape]}")
                return Source((), shape_of(out))
            if len(shape) == 1:
                return self._product(name, what, module, dense(weight, module.groups)[:, :, 0, 0], bias, None, signal)
            how = Geometry((1, 1), (0, 0), (1, 1), module.groups, image(shape)[1:])
            return self._product(name, what, module, weight, bias, how, signal)
        size = image(shape_of(out))[1:]
        if module.padding_mode != "zeros":
            self.problems.append(f"{what}: padding_mode must be 'zeros', got {module.padding_mode!r}")
        weight = weight.unsqueeze(2) if weight.dim() == 3 else weight
        stride, dilation = ((1, *x)[-2:] for x in (module.stride, module.dilation))
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if isinstance(module, TandemConvTranspose2d):
            if any(s > 1 and n > 1 for s, n in zip(stride, shape[1:], strict=True)):
                self.problems.append(
                    f"{what}: its stride must be 1 (NIR has no transposed convolution), got {module.stride}"
                )
            before = spans[0] - module.padding[0], spans[1] - module.padding[1]
            how = Geometry((1, 1), before, dilation, module.groups, size)
        else:
            named = module.padding if isinstance(module.padding, str) else ""
            before = (0, 0) if named else (0, *module.padding)[-2:]
            if named == "same":
                before = spans[0] // 2, spans[1] // 2
            how = Geometry(stride, before, dilation, module.groups, size, named)
        return self._product(name, what, module, weight, bias, how, signal)

    def _product(
        self,
        name: str,
        what: str,
        module: Any,
        weight: Tensor,
        bias: Tensor | None,
        how: Geometry | None,
        signal: Signal,
    ) -> Source:
        """Add weights [O, F], or those of a convolution, and the bias of all T steps: a node for each source.

        module: whose weights may be quantised; None: the weights only move values.
        """
        assert self.encoding is not None
        scaled = weight.detach().cpu() * signal.gain
        per_step = None if bias is None else bias / self.encoding[0]
        if not all(bool(x.isfinite().all()) for x in (scaled, per_step) if x is not None):
            self.problems.append(f"{what}: weights and bias must be finite, got NaN or infinite values")
        reads = how
        if how is not None and any(source.part is not None for source in signal.sources):
            scaled, reads = dense(scaled, how.groups), how._replace(groups=1)
        products: dict[Any, tuple[Source, Any, dict[str, Any]]] = {}
        for source in signal.sources:
            key: Any = source.nodes
            product: Any
            if reads is None:
                product = source.features(scaled)
            else:
                product = convolution(source, shape_of(signal.value), scaled, reads)
                if product is None:
                    return self._product(name, what, module, weight, bias, how, self._as_node(name, what, signal))
                key = (source.nodes, product[1:], product.weight.shape)
            rounding = _rounding(module, source, signal.gain)
            if key in products:  # such as the two signs of a value
                _, earlier, other = products[key]
                one, two = (earlier, product) if reads is None else (earlier.weight, product.weight)
                product = one + two if reads is None else earlier._replace(weight=one + two)
                if bool(((one != 0) & (two != 0)).any()) or not _same_rounding(rounding, other):
                    rounding = {}  # a sum of integers may need more bits
            products[key] = source, product, rounding
        nodes: list[str] = []
        shapes: list[tuple[int, ...]] = []
        for i, (source, product, metadata) in enumerate(products.values()):
            if reads is None:
                values = [array_of(x) for x in (product, per_step) if x is not None]
                node = (nir.Linear if per_step is None else nir.Affine)(*values, metadata=metadata)
                shapes.append((len(product),))
            else:
                node = self._convolution(what, product, per_step, reads, source, metadata)
                shapes.append(tuple(node.output_type["output"].tolist()))
            nodes.append(self._put(name if len(products) == 1 else f"{name}_{i}", node, source.nodes))
            per_step = None  # added once
        self._check_shapes(what, shapes, signal.why)
        return Source(tuple(nodes), shapes[0])

    def _check_shapes(self, what: str, shapes: list[tuple[int, ...]], why: str) -> None:
        """Currents that add up must agree in shape also if the model sees some lines as images of height 1."""
        if len({*shapes}) > 1 and not self.problems:
            hint = why or "flatten each before it"
            self.problems.append(f"{what}: what it adds must have one shape in NIR, got {shapes}; {hint}")

    def _convolution(
        self,
        what: str,
        conv: Convolution,
        bias: Tensor | None,
        how: Geometry,
        source: Source,
        metadata: dict[str, Any] | None = None,
    ) -> nir.NIRNode:
        """Return a node of type Conv1d or Conv2d for the source's nodes."""
        weight, stride, padding, dilation, groups = conv
        if not self.groups:
            weight, groups = dense(weight, groups), 1
        size: Any = source.shape[1:]
        geometry: list[Any] = [stride, padding, dilation]
        shape: tuple[int, ...] = (len(weight), *how.size)
        kind = nir.Conv2d
        if len(size) == 1:  # lines, which the model may see as images of height 1
            row, rest = divmod(how.before[0] if isinstance(padding, str) else padding[0], dilation[0])
            if how.size[0] != 1 or rest or row >= weight.shape[2]:
                self.problems.append(
                    f"{what}: it reads lines, so its output must have height 1 and a row of its kernel must be on the "
                    f"line, got height {how.size[0]}; change its kernel or padding, or begin with images"
                )
                raise unsupported("to_nir: model", self.problems)  # later shapes would not fit
            kind, weight, shape, (size,) = nir.Conv1d, weight[:, :, row], (len(weight), how.size[1]), size
            geometry = [x if isinstance(x, str) else x[1] for x in geometry]
        values = array_of(weight)
        zeros = np.zeros(len(values), values.dtype)
        node = kind(size, values, *geometry, groups, zeros if bias is None else array_of(bias), metadata=metadata or {})
        return typed(node, source.shape, shape)

    def _alone(self, name: str, what: str, signal: Signal) -> Source:
        """Add nodes whose output is the value itself, using only nodes that every importer supports."""
        shape = shape_of(signal.value)
        if len(shape) > 3:
            self.problems.append(f"{what}: {_DIMENSIONS}, got {[1, *shape]}")
            return Source((), shape)
        eye = torch.eye(shape[0], dtype=signal.value.dtype)
        if len(shape) == 1:
            return self._product(name, what, None, eye, None, None, signal)
        how = Geometry((1, 1), (0, 0), (1, 1), 1, image(shape)[1:])
        if not self._are_images(signal.sources, shape):
            self.problems.append(f"{what}: {signal.why}")
            return Source((), shape)
        return self._product(name, what, None, eye[..., None, None], None, how, signal)

    def _as_node(self, name: str, what: str, signal: Signal) -> Signal:
        """Add nodes that pass on the value: an identity, and for spikes neurons that repeat each at once."""
        passed = self._alone(f"{name}_input", what, signal._replace(gain=1.0) if signal.kind == "spikes" else signal)
        if signal.kind != "spikes":
            return signal._replace(sources=(passed,), gain=1.0)
        return self._neurons(f"{name}_input", what, IF(), passed, signal.value)._replace(gain=signal.gain)

    def _neurons(self, name: str, what: str, neuron: Neuron, source: Source, out: Any, why: str = "") -> Signal:
        """Add neurons that sum the outputs of a source."""
        try:
            form = neuron.to_nir(self.dt)
        except ValueError as error:
            self.problems.append(f"{what}: {error}")
            raise unsupported("to_nir: model", self.problems) from None
        node = getattr(nir, form.node)(
            **{parameter: np.full(source.shape, value, dtype=np.float64) for parameter, value in form.values.items()},
            metadata=form.metadata,
        )
        fired = Source((self._put(f"{name}_neurons", node, source.nodes),), source.shape)
        return Signal((fired,), out, "spikes", out.amplitude, why)

    def _are_images(self, sources: Iterable[Source], shape: tuple[int, ...]) -> bool:
        return all(is_image(source, shape) for source in sources)


def typed(node: nir.NIRNode, before: tuple[int, ...], shape: tuple[int, ...]) -> nir.NIRNode:
    """Set the node's input and output types: nir itself assumes square kernels and ignores groups."""
    node.input_type, node.output_type = {"input": np.array(before)}, {"output": np.array(shape)}
    return node


def _rounding(module: Any, source: Source, gain: float) -> dict[str, Any]:
    """Return the metadata of quantised weights: their bits, and what the integer 1 stands for in each channel.

    There are none if values of different weight, or several that read one spike, leave no such integers.
    """
    rounds = None if module is None else quantiser(module)
    if rounds is None:
        return {}
    used = None if source.position is None else source.position[source.position > 0]
    if used is not None and len(torch.unique(used)) != len(used):
        return {}
    if source.weight is not None:
        factors = torch.unique(source.weight[source.weight != 0].abs())
        if len(factors) != 1:
            return {}
        gain = gain * float(factors)
    _, scale = rounds.integers(getattr(*stored(module, "weight")))
    if isinstance(module, TandemLayer):
        scale = scale.repeat_interleave(2) if module.wiring and module.wiring.paired_outputs else scale
        if (own := module.drive.affine().gain) is not None:
            scale = scale * own
    return {"weight_bits": rounds.bits, "weight_scale": array_of(scale * gain)}


def _same_rounding(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape without the batch dimension."""
    return tuple((value.value if isinstance(value, EncodedInput) else value).shape[1:])


def array_of(x: Tensor) -> Any:
    """Return a copy as a NumPy array."""
    return x.detach().cpu().contiguous().numpy().copy()
