"""Read networks of torch.ao.quantization, of eager mode or FX mode: modules and functions of quantised tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.nn.intrinsic.quantized as fused
import torch.ao.nn.quantized as quantised
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.ao.quantization import DeQuantStub, QuantStub

from .reader import POOLS, Reader
from .steps import Code, Product, Real, Spikes, Sums, Unreadable

_LAYERS: dict[type[nn.Module], tuple[str, bool]] = {
    quantised.Linear: ("TandemLinear", False),
    quantised.Conv1d: ("TandemConv1d", False),
    quantised.Conv2d: ("TandemConv2d", False),
    fused.LinearReLU: ("TandemLinear", True),
    fused.ConvReLU1d: ("TandemConv1d", True),
    fused.ConvReLU2d: ("TandemConv2d", True),
}
"""The tandem layers of quantised layers, and whether these have a ReLU."""
_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_POOLS: dict[type[nn.Module], str] = {
    nn.MaxPool2d: "max_pool2d",
    nn.AvgPool2d: "avg_pool2d",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
}
_RELUS: dict[Any, float | None] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu", "relu_")),
    **dict.fromkeys((nn.ReLU6, F.relu6, quantised.ReLU6), 6.0),
}
"""The bound of each ReLU."""
_SAME: set[Any] = {
    *(quantised.Dropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, F.dropout),
    *(nn.Identity, QuantStub, DeQuantStub, "contiguous", "clone"),
}
_FLATTEN: set[Any] = {nn.Flatten, torch.flatten, torch.reshape, "flatten", "view", "reshape"}
_ADD = {"quantized::add": False, "quantized::add_relu": True}
"""Whether each addition has a ReLU."""
_RANGES = {torch.quint8: (0, 255), torch.qint8: (-128, 127)}


class EagerReader(Reader):
    """Reads quantised tensors, each of which has its own scale and zero point."""

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target: Any = node.target
        module = self.model.get_submodule(target) if node.op == "call_module" else None
        what = target if module is None else type(module)
        x = args[0] if args else kwargs.get("input")
        if what in (quantised.Quantize, torch.quantize_per_tensor):
            return self._quantised(node, x)
        if what in _SAME and (isinstance(x, Spikes) or what is not F.dropout):  # which freeze refuses in training mode
            return x
        if what in (quantised.DeQuantize, "dequantize") and isinstance(x, Spikes):
            return Sums(node.name, ((x, None),), nodes=(node,))
        if isinstance(x, Real) and not getattr(what, "__module__", "").startswith("torch.ao."):
            return self.real(node)
        try:
            return self._operation(node, what, module, x, args, kwargs)
        except Unreadable:
            if isinstance(x, Sums):
                return self.real(node)
            raise

    def _operation(self, node: fx.Node, what: Any, module: Any, x: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an operation on integers, or on the floats that they stand for."""
        if what in _LAYERS:
            return self._layer(node, x, module)
        if what in _RELUS:
            return self._unchanged(node, x, self.relu(node, x, _RELUS[what]))
        if what in _FLATTEN:
            return self._unchanged(node, x, self.flattened(node, x))
        if what in _POOLS and module is not None:
            values = [getattr(module, name) for name in POOLS[_POOLS[what]][1]]
            return self._unchanged(node, x, self.pooled(node, x, _POOLS[what], values, {}))
        if module is None and (name := getattr(what, "__name__", "").lstrip("_")) in POOLS:
            named = {key: value for key, value in kwargs.items() if key != "input"}
            return self._unchanged(node, x, self.pooled(node, x, name, args[1:], named))
        if (operator := getattr(what, "_qualified_op_name", None)) in _ADD:
            if not all(isinstance(term, Spikes) for term in args[:2]):
                raise Unreadable("its inputs must be quantised tensors")
            total = self.added(node, *args[:2])
            return self._quantised(node, self.relu(node, total) if _ADD[operator] else total)
        raise Unreadable(_reason(what))

    def _quantised(self, node: fx.Node, x: Any) -> Spikes:
        """Return the integers that a node computes of real numbers."""
        result: Tensor = self.results[node]
        if result.dtype not in _RANGES or result.qscheme() != torch.per_tensor_affine:
            raise Unreadable(f"activations must be quint8 or qint8, one scale a tensor, got {result.dtype}")
        least, most = _RANGES[result.dtype]
        code = Code.of(result.q_scale(), result.q_zero_point(), least, most)
        return self.quantised(node, x, code, result.int_repr().int() - least)

    def _unchanged(self, node: fx.Node, before: Any, after: Any) -> Any:
        """Return the result of an operation that keeps scale and zero point of quantised tensors."""
        if not isinstance(before, Spikes) or isinstance(after, Spikes):
            return after
        result, code = self.results[node], before.code  # which may have lost its zero point to a ReLU
        return self.quantised(node, after, code, result.int_repr().int() - result.q_zero_point() + code.zero)

    def _layer(self, node: fx.Node, x: Any, module: Any) -> Spikes:
        kind, has_relu = _LAYERS[type(module)]
        weight: Tensor = module.weight()
        if weight.dtype != torch.qint8:
            raise Unreadable(f"weights must be qint8, got {weight.dtype}")
        if weight.qscheme() == torch.per_channel_affine:
            if weight.q_per_channel_axis() != 0:
                raise Unreadable(f"weights must have scales of outputs, got dimension {weight.q_per_channel_axis()}")
            scale, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
        elif weight.qscheme() == torch.per_tensor_affine:
            scale = torch.full([len(weight)], weight.q_scale())
            zeros = torch.tensor(weight.q_zero_point())
        else:
            raise Unreadable(f"weights must have one scale, or one for each output, got {weight.qscheme()}")
        if zeros.any():
            raise Unreadable("weights must be symmetric, with zero point 0, got another")
        names = ("in_features", "out_features") if kind == "TandemLinear" else _CONVOLUTION
        values = {name: getattr(module, name) for name in names}
        if values.get("padding_mode", "zeros") != "zeros":
            raise Unreadable(f"padding_mode must be zeros, got {values['padding_mode']}")
        arguments = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        bias = module.bias()
        bias = None if bias is None else bias.detach()
        total = self.product(node, x, Product(kind, arguments, weight.int_repr(), scale.double(), bias))
        return self._quantised(node, self.relu(node, total) if has_relu else total)


def _reason(what: Any) -> str:
    """Return why a module or function has no spiking form."""
    name = getattr(what, "__module__", "")
    if ".dynamic" in name:
        return "activations must have a constant scale, got dynamic quantisation, which computes it from each input"
    if isinstance(what, type) and name.startswith(("torch.ao.quantization", "torch.ao.nn.qat")):
        return "the model must be converted, got observers; call torch.ao.quantization.convert"
    return "quantised values have no spiking form for it"
