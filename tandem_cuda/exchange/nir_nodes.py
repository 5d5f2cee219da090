"""Read, check and write the nodes of a NIR graph. Nodes that are read may hold arbitrary values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..neuron import MODELS, Neuron
from ..neuron.base import NirForm
from ..nn import SpikeWindows, TandemConv1d, TandemConv2d, TandemElementwise, TandemLinear
from ..nn.quantiser import quantiser
from ..nn.tandem import TandemLayer
from ..nn.weights import stored
from .nir_file import nir

_LARGEST = 2**31 - 1
_FLOAT32 = torch.finfo(torch.float32)
NEURONS = (nir.IF, nir.LIF)
POOLINGS = (nir.AvgPool2d, nir.SumPool2d)
WEIGHTS = (nir.Linear, nir.Affine, nir.Conv1d, nir.Conv2d, *POOLINGS)


def numbers_of(name: str, value: Any) -> Any:
    """Convert a number, array, Tensor or list to an array of finite floats. A ValueError begins with the name."""
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


def whole(name: str, value: Any, low: int | None = None) -> int:
    """Convert a number to an int. A ValueError begins with the name."""
    return _wholes(name, value, 1, low)[0]


def _wholes(name: str, value: Any, count: int, low: int | None = None) -> tuple[int, ...]:
    """Convert one number, or ``count`` numbers, to ``count`` ints. A ValueError begins with the name."""
    values = numbers_of(name, value).reshape(-1)
    if len(values) not in (1, count) or (values != np.floor(values)).any() or np.abs(values).max() > _LARGEST:
        wanted = "a whole number" if count == 1 else f"one or {count} whole numbers"
        raise ValueError(f"{name} must be {wanted} of magnitude at most {_LARGEST}, got {value!r}")
    if low is not None and values.min() < low:
        raise ValueError(f"{name} must be at least {low}, got {value!r}")
    numbers = [int(x) for x in values]
    return tuple(numbers * count if len(numbers) == 1 else numbers)


def field_of(node: Any, name: str, count: int, low: int | None = None) -> tuple[int, ...]:
    """Read ``count`` ints from a field of a node. A ValueError begins with the field's name."""
    return _wholes(name, getattr(node, name, None), count, low)


PartialShape = tuple[int | None, ...] | None
"""The shape of a value without the batch dimension; None where a graph does not state it."""


def declared_shape(name: str, types: Any) -> PartialShape:
    """Return the shape in a node's input_type or output_type, which may be a dict or the shape itself."""
    if isinstance(types, dict):
        types = next(iter(types.values()), None)
    if types is None:
        return None
    return _wholes(name, types, max(numbers_of(name, types).size, 1), 1)


def agrees(shape: PartialShape, other: PartialShape) -> bool:
    """Whether two shapes can be equal, as far as they are known."""
    if shape is None or other is None:
        return True
    return len(shape) == len(other) and all(a == b or None in (a, b) for a, b in zip(shape, other, strict=True))


def listed(shape: PartialShape) -> str:
    """Return a shape for error messages, with the batch dimension."""
    return "[N, ...]" if shape is None else f"[{', '.join(['N', *('?' if x is None else str(x) for x in shape)])}]"


class NirWeights(NamedTuple):
    """The contents of a weight node."""

    name: str
    """The name of the layer."""
    weight: Tensor
    """[O, F], [O, C/groups, K] or [O, C/groups, kH, kW]."""
    bias: Tensor | None
    """The bias per time step; None if it is zero."""
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    pools: Any = None
    """The class of a pooling node, AvgPool2d or SumPool2d; its weights are a depthwise convolution's."""

    @classmethod
    def of(cls, name: str, node: Any, shape: PartialShape) -> NirWeights:
        """Read a node whose input has the given shape; raise a ValueError if the node is malformed."""
        if isinstance(node, POOLINGS):
            if shape is None or len(shape) != 3 or shape[0] is None:
                raise ValueError(f"its input must be [N, C, H, W], got {listed(shape)}")
            kernel = field_of(node, "kernel_size", 2, 1)
            steps, around = field_of(node, "stride", 2, 1), field_of(node, "padding", 2, 0)
            _out_size(shape[1:], kernel, steps, around, (1, 1))  # checks the size before the kernel is allocated
            share = 1 / math.prod(kernel) if isinstance(node, nir.AvgPool2d) else 1.0
            ones = torch.full((shape[0], 1, *kernel), share)
            return cls(name, ones, None, steps, around, (1, 1), shape[0], type(node))
        values = numbers_of("weight", getattr(node, "weight", None))
        dims = 2 if isinstance(node, nir.Conv2d) else 1 if isinstance(node, nir.Conv1d) else 0
        axes = "[O, F]" if not dims else f"[O, C/groups, {'kH, kW' if dims == 2 else 'K'}]"
        if values.ndim != 2 + dims or 0 in values.shape:
            raise ValueError(f"weight must be {axes} and not empty, got {list(values.shape)}")
        weight, bias = torch.from_numpy(values), None
        if getattr(node, "bias", None) is not None:
            per_step = numbers_of("bias", node.bias)
            if per_step.shape != values.shape[:1]:
                raise ValueError(f"bias must be [{len(values)}], one for each output, got {list(per_step.shape)}")
            bias = torch.from_numpy(per_step).to(weight.dtype) if per_step.any() else None
        if not dims:
            return cls(name, weight, bias)
        stride, dilation = field_of(node, "stride", dims, 1), field_of(node, "dilation", dims, 1)
        padding: Any = getattr(node, "padding", None)
        if not isinstance(padding, str):
            padding = field_of(node, "padding", dims, 0)
        elif padding not in ("same", "valid"):
            raise ValueError(f"padding must be whole numbers, 'same' or 'valid', got {padding!r}")
        (groups,) = field_of(node, "groups", 1, 1)
        if len(weight) % groups:
            raise ValueError(f"groups must divide the {len(weight)} outputs, got {groups}")
        return cls(name, weight, bias, stride, padding, dilation, groups)

    def out_shape(self, shape: PartialShape) -> PartialShape:
        """Return the shape of the output; raise a ValueError if the input does not fit."""
        inputs = self.weight.shape[1] * self.groups
        size: Sequence[int | None] = [None] * len(self.stride) if shape is None else shape[1:]
        if not agrees(shape, (inputs, *size)) or len(size) != len(self.stride):
            axes = ["N", str(inputs), *("L" if len(self.stride) == 1 else "HW")[: len(self.stride)]]
            raise ValueError(f"its input must be [{', '.join(axes)}], got {listed(shape)}")
        if self.padding == "same":
            return len(self.weight), *size
        padding = (0,) * len(size) if isinstance(self.padding, str) else self.padding
        return len(self.weight), *_out_size(size, self.weight.shape[2:], self.stride, padding, self.dilation)

    def repeated(self, times: int) -> NirWeights:
        """Return the weights for inputs that stand side by side ``times`` times."""
        if times > 1 and self.groups > 1:
            raise ValueError(f"groups must be 1 after pooling without neurons, got {self.groups}")
        return self._replace(weight=self.weight.repeat(1, times, *[1] * len(self.stride)))

    def windows(self) -> SpikeWindows:
        """Make the pooling without neurons."""
        divisor = None if issubclass(self.pools, nir.AvgPool2d) else 1
        kernel: Any = tuple(self.weight.shape[2:])
        return SpikeWindows(kernel, self.stride, self.padding, divisor)  # type: ignore[arg-type]  # pairs

    def layer(self, neuron: Neuron, gain: float, steps: int) -> TandemLayer:
        """Make the tandem layer."""
        return self._module((TandemLinear, TandemConv1d, TandemConv2d), steps, gain, neuron=neuron)

    def read_out(self, steps: int) -> nn.Module:
        """Make the layer that reads decoded counts."""
        if self.pools is None:
            return self._module((nn.Linear, nn.Conv1d, nn.Conv2d), steps, 1.0)
        window: dict[str, Any] = {"kernel_size": tuple(self.weight.shape[2:]), "stride": self.stride}
        divisor = None if issubclass(self.pools, nir.AvgPool2d) else 1
        return nn.AvgPool2d(**window, padding=self.padding, divisor_override=divisor)  # type: ignore[arg-type]  # a pair

    def _module(self, kinds: Sequence[Any], steps: int, gain: float, **named: Any) -> Any:
        weight, bias = self.weight, self.bias
        if gain != 1:
            weight, bias = weight * gain, None if bias is None else bias * gain
        if bias is not None:
            bias = _times(bias, steps)
        if not all(bool(x.isfinite().all()) for x in (weight, bias) if x is not None):
            raise ValueError(f"weight and bias must be finite after multiplication by r * dt = {gain}, got infinity")
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


def neuron_of(node: Any, dt: float) -> tuple[Neuron, float, tuple[int, ...]]:
    """Return the neurons of a node, the factor of their input, and the shape of their parameters.

    Raises:
        ValueError: this package has no such neurons.
    """
    values, shapes = {}, set()
    for name in ("r", "v_threshold", "v_reset", *(("tau", "v_leak") if isinstance(node, nir.LIF) else ())):
        value = getattr(node, name, None)
        numbers = numbers_of(name, 0.0 if value is None and name == "v_reset" else value)
        distinct = np.unique(numbers)
        if len(distinct) != 1:
            raise ValueError(f"{name} must be the same for all neurons, got {len(distinct)} values")
        values[name] = float(distinct[0])
        if numbers.size > 1:
            shapes.add(numbers.shape)
    if len(shapes) > 1:
        raise ValueError(f"its parameters must have one shape, got {', '.join(str(list(x)) for x in sorted(shapes))}")
    threshold = values["v_threshold"]
    if not _FLOAT32.tiny <= threshold <= _FLOAT32.max:
        raise ValueError(f"v_threshold must be positive and in float32's range, got {threshold}")
    form = NirForm(type(node).__name__, values, _metadata(node))
    neuron, gain = next(made for model in MODELS if (made := model.of_nir(form, dt)) is not None)
    return neuron, gain, shapes.pop() if shapes else ()


def _metadata(node: Any) -> dict[str, float]:
    """Return the leak in a node's metadata, which is exact; empty if there is none."""
    metadata = getattr(node, "metadata", None)
    if not isinstance(metadata, dict) or "leak" not in metadata:
        return {}
    stated = numbers_of("leak in its metadata", metadata["leak"]).reshape(-1)
    if stated.size != 1:
        raise ValueError(f"leak in its metadata must be a number, got {metadata['leak']!r}")
    return {"leak": float(stated[0])}


def _times(per_step: Tensor, steps: int) -> Tensor:
    """Return a bias b with b / steps == per_step exactly, or the nearest b if rounding leaves no such value."""
    bias = per_step * steps
    best = bias
    up = down = bias
    for _ in range(2):
        up, down = (torch.nextafter(x, torch.full_like(x, y)) for x, y in ((up, math.inf), (down, -math.inf)))
        for candidate in (up, down):
            hit = (candidate / steps == per_step) & (best / steps != per_step)
            best = torch.where(hit, candidate, best)
    return best


# -- writing


class Product(NamedTuple):
    """Weights that read a value."""

    weight: Tensor
    """[O, F], or [O, C/groups, K] or [O, C/groups, kH, kW] for a convolution."""
    bias: Tensor | None = None
    """The sum over all time steps, [O]."""
    geometry: tuple[Any, ...] = (1, 0, 1, 1)
    """Stride, padding, dilation and groups of a convolution."""
    rounding: tuple[int, Tensor] | None = None
    """The bits of quantised weights, and what the integer 1 of each output stands for, [O]."""

    @classmethod
    def of(cls, layer: Any, inputs: tuple[int, ...]) -> Product:
        """Return the weights of a layer for inputs of this shape, with gain and bias of its drive folded in."""
        if not isinstance(layer, TandemLayer):
            rounds, rounding = quantiser(layer), None
            if rounds is not None:
                rounding = rounds.bits, rounds.integers(getattr(*stored(layer, "weight")))[1]
            return cls(layer.weight, layer.bias, _geometry_of(layer), rounding)
        weight, bias = layer.drive.folded(layer.weights)
        if isinstance(layer, TandemElementwise):
            if layer.of_features or len(inputs) == 1:
                return cls(dense(weight, layer.groups)[:, :, 0, 0], bias)
            return cls(weight.view(*weight.shape[:2], *[1] * (len(inputs) - 1)), bias, (1, 0, 1, layer.groups))
        weight = weight.squeeze(2) if isinstance(layer, TandemConv1d) else weight
        return cls(weight, bias, _geometry_of(layer), layer.drive.rounding(layer.weights))


def _geometry_of(layer: Any) -> tuple[Any, ...]:
    return (layer.stride, layer.padding, layer.dilation, layer.groups) if hasattr(layer, "stride") else (1, 0, 1, 1)


def dense(weight: Tensor, groups: int) -> Tensor:
    """Return a grouped weight [O, C/groups, ...] as [O, C, ...]."""
    if groups == 1:
        return weight
    outputs, inputs, *kernel = weight.shape
    blocks = weight.new_zeros(groups, outputs // groups, groups, inputs, *kernel)
    each = torch.arange(groups)
    blocks[each, :, each] = weight.view(groups, outputs // groups, inputs, *kernel)
    return blocks.view(outputs, groups * inputs, *kernel)


def pool_of(function: str, arguments: Sequence[Any], named: dict[str, Any]) -> nn.Module | None:
    """Return the average pooling that a function with these arguments computes, if it computes one."""
    numbers: list[Any] = [tuple(x) or None if isinstance(x, (list, tuple)) else x for x in arguments]
    if function == "avg_pool2d":
        return nn.AvgPool2d(*numbers, **named)
    if function == "adaptive_avg_pool2d":
        return nn.AdaptiveAvgPool2d(*numbers, **named)
    dims = [*numbers, named.get("dim")][0] if function == "mean" else None
    return nn.AdaptiveAvgPool2d(1) if isinstance(dims, (list, tuple)) and {dim % 4 for dim in dims} == {2, 3} else None


def windows_of(axes: Sequence[Any]) -> tuple[tuple[int, ...], ...] | None:
    """Return kernel, stride and padding of a pooling, or None if no convolution has such windows."""
    windows = [(axis.stops[0] - axis.starts[0], axis.stride, -axis.starts[0]) for axis in axes]
    for axis, (kernel, stride, padding) in zip(axes, windows, strict=True):
        if not axis.uniform() or (axis.size + 2 * padding - kernel) // stride + 1 != len(axis.starts):
            return None
    return tuple(zip(*windows, strict=True))


def convolution_node(
    weight: Tensor,
    bias: Tensor | None,
    geometry: Sequence[Any],
    groups: int,
    before: tuple[int, ...],
    after: tuple[int, ...],
    metadata: dict[str, Any],
) -> nir.NIRNode:
    """Make a Conv1d or Conv2d for inputs and outputs of these shapes. ``geometry``: stride, padding and dilation."""
    values = array_of(weight)
    biases = np.zeros(len(values), values.dtype) if bias is None else array_of(bias)
    axes = len(before) - 1
    numbers = [x if isinstance(x, (str, tuple)) else (x,) * axes for x in geometry]
    if axes == 1:
        numbers = [x if isinstance(x, str) else x[0] for x in numbers]
        return typed(nir.Conv1d(before[1], values, *numbers, groups, biases, metadata=metadata), before, after)
    return typed(nir.Conv2d(before[1:], values, *numbers, groups, biases, metadata=metadata), before, after)


def array_of(x: Tensor) -> Any:
    """Return a copy as a NumPy array."""
    return x.detach().cpu().contiguous().numpy().copy()


def typed(node: nir.NIRNode, before: tuple[int, ...], after: tuple[int, ...]) -> nir.NIRNode:
    """Set the node's input and output types: nir itself assumes square kernels and ignores groups."""
    node.input_type, node.output_type = {"input": np.array(before)}, {"output": np.array(after)}
    return node
