"""Read networks of PT2E quantisation: exported graphs that quantise and dequantise around float operations."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from ..convert.quantised_ann import operator_name
from ..freeze.aten import operator_of
from .reader import POOLS, Reader
from .steps import Code, Product, Real, Spikes, Sums, Unreadable

_QUANTISE, _DEQUANTISE = "quantized_decomposed::quantize_per_tensor", "quantized_decomposed::dequantize_per_tensor"
_DEQUANTISE_CHANNELS = "quantized_decomposed::dequantize_per_channel"
_LAYERS = {"aten::conv1d": "TandemConv1d", "aten::conv2d": "TandemConv2d", "aten::linear": "TandemLinear"}
_POOLS = {f"aten::{name}": name for name in POOLS}
_RELUS = {"aten::relu": None, "aten::relu_": None, "aten::relu6": 6.0}
_SAME = {"aten::dropout", "aten::contiguous", "aten::clone", "aten::alias", "aten::detach"}
_FLATTEN = {"aten::flatten", "aten::view", "aten::reshape", "aten::_unsafe_view"}


class _Weights:
    """Integer weights as the floats that they stand for."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.weight, self.scale = weight, scale


class ExportedReader(Reader):
    """Reads floats that are integers times a scale between a quantising and a dequantising operator."""

    def __init__(self, model: fx.GraphModule, example: tuple[Tensor, ...]) -> None:
        super().__init__(model, example)
        self._quantisers: dict[str, tuple[Any, ...]] = {}
        """The arguments of the call that quantised, by the names of steps."""

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        name, x = operator_name(node), args[0] if args else None
        if name == _QUANTISE:
            return self._quantised(node, x, self._constants(args))
        if name == _DEQUANTISE:
            return self._dequantised(node, x, self._constants(args))
        if name == _DEQUANTISE_CHANNELS:
            return self._weights(x, args[1], args[2], args[3])
        if name.startswith("quantized_decomposed::choose_qparams") or "per_token" in name:
            raise Unreadable("activations must have a constant scale, got dynamic quantisation")
        if name in _SAME:
            if name == "aten::dropout" and args[2]:
                raise Unreadable("the model must be exported in eval mode, got a dropout in training mode")
            return x
        inputs = [self.values[y] for y in node.all_input_nodes]
        if any(isinstance(y, Real) for y in inputs):
            return self.real(node)
        try:
            return self._operation(node, name, x, args, kwargs)
        except Unreadable:
            if any(isinstance(y, Sums) for y in inputs):
                return self.real(node)
            raise

    def _operation(self, node: fx.Node, name: str, x: Any, args: Any, kwargs: Any) -> Sums:
        """Return the result of an operation on integers, as the floats that they stand for."""
        if name in _LAYERS:
            return self._layer(node, name, args, kwargs)
        if name in _RELUS:
            return self.relu(node, x, _RELUS[name])
        if name in ("aten::hardtanh", "aten::hardtanh_", "aten::clamp") and args[1] == 0:
            return self.relu(node, x, args[2])
        if name in ("aten::add", "aten::add_"):
            if kwargs.get("alpha", 1) != 1 or not all(isinstance(term, (Sums, Spikes)) for term in args):
                raise Unreadable("it must add two quantised values or products")
            return self.added(node, *args)
        if name in _POOLS:
            return self.pooled(node, x, _POOLS[name], args[1:], kwargs)
        if name in _FLATTEN:
            return self.flattened(node, x)
        raise Unreadable("it has no spiking form")

    def _constants(self, args: Any) -> tuple[Any, ...]:
        """Return scale, zero point, least and largest integer, and dtype."""
        return *(x.item() if isinstance(x, Tensor) else x for x in args[1:5]), args[5]

    def _quantised(self, node: fx.Node, x: Any, constants: tuple[Any, ...]) -> Spikes:
        scale, zero_point, least, most, _ = constants
        if isinstance(x, Tensor):
            raise Unreadable("weights must be folded to int8, got floats; convert_pt2e(model) does that")
        spikes = self.quantised(node, x, Code.of(scale, zero_point, least, most), self.results[node].int() - least)
        self._quantisers[spikes.name] = constants
        return spikes

    def _dequantised(self, node: fx.Node, x: Any, constants: tuple[Any, ...]) -> Any:
        if isinstance(x, Tensor):
            return self._weights(x, torch.tensor(constants[0]), torch.tensor(constants[1]), 0)
        if not isinstance(x, Spikes) or self._quantisers.get(x.name, constants) != constants:
            raise Unreadable(f"it must have scale, zero point and dtype of its input, got {constants}")
        return Sums(node.name, ((x, None),), nodes=(node,))

    def function(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            return None
        name, overload = operator_name(node).removesuffix("_"), getattr(node.target, "_overloadname", None)
        args: Any = fx.map_arg(node.args, self.results.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, self.results.__getitem__)
        try:
            known = operator_of(name, overload)
            if _same(known(*args, **kwargs), self.results[node]):
                return known
        except (TypeError, ValueError, RuntimeError):
            pass
        raise Unreadable("real numbers before the first quantisation or behind the last cannot be kept with it")

    def _weights(self, weight: Any, scale: Tensor, zero_point: Tensor, axis: int) -> _Weights:
        if not isinstance(weight, Tensor) or weight.dtype != torch.int8:
            raise Unreadable("weights must be int8 and constant")
        if zero_point.any():
            raise Unreadable("weights must be symmetric, with zero point 0, got another")
        if scale.dim() and axis != 0:
            raise Unreadable(f"weights must have scales of outputs, got scales of dimension {axis}")
        return _Weights(weight, scale.double().expand(len(weight)))

    def _layer(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> Sums:
        x, weights, *rest = args
        bias, geometry = (rest or [None])[0], list(rest[1:])
        if kwargs or not isinstance(weights, _Weights) or not isinstance(bias, (Tensor, type(None))):
            raise Unreadable("its weights must be quantised and constant")
        weight = weights.weight
        arguments: dict[str, Any] = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
        if name != "aten::linear":
            axes = weight.dim() - 2
            defaults: list[Any] = [[1], [0], [1], 1]
            stride, padding, dilation, groups = geometry + defaults[len(geometry) :]
            arguments = {
                "in_channels": weight.shape[1] * groups,
                "out_channels": weight.shape[0],
                "kernel_size": list(weight.shape[2:]),
                "stride": _per_axis(stride, axes),
                "padding": _per_axis(padding, axes),
                "dilation": _per_axis(dilation, axes),
                "groups": groups,
                "padding_mode": "zeros",
            }
        product = Product(_LAYERS[name], arguments, weight, weights.scale, None if bias is None else bias.detach())
        return self.product(node, x, product)


def _same(a: Any, b: Any) -> bool:
    """Return whether results are equal."""
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


def _per_axis(values: Any, axes: int) -> list[int]:
    if not isinstance(values, (list, tuple)):
        raise Unreadable(f"padding must be numbers, got {values!r}")
    return list(values) * (axes if len(values) == 1 else 1)
