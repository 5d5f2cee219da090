"""Tell how a model is quantised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

_PACKAGES = ("torch.ao.quantization", "torchao.quantization.pt2e")
_OBSERVERS = tuple(f"{package}.{module}" for package in _PACKAGES for module in ("observer", "fake_quantize"))


def refuse_quantised(ann: nn.Module) -> None:
    """Raise the ValueError of convert, which takes floats, for a quantised network."""
    if is_exported(ann):
        raise ValueError(
            "convert: ann must be a network of floats, got a graph of quantising and dequantising operators; call "
            "tandem_cuda.from_quantised(model, example)"
        )
    if found := quantised_otherwise(ann):
        raise ValueError(f"convert: ann must be a network of floats, got {found}, or convert the float network")


def is_exported(model: Any) -> bool:
    """Return whether a model is a graph with operators of PT2E quantisation."""
    return isinstance(model, fx.GraphModule) and any(
        operator_name(node).startswith("quantized_decomposed::") for node in model.graph.nodes
    )


def quantised_otherwise(model: nn.Module) -> str:
    """Return in words what else than PT2E has quantised a model, and what to do; "" if nothing has."""
    kinds = {type(x) for x in model.parameters()} | {type(x.data) for x in model.parameters()}
    named = {f"{kind.__module__}.{kind.__name__}" for kind in kinds if issubclass(kind, Tensor)}
    if foreign := sorted(name for name in named if name.startswith("torchao.")):
        return (
            f"weights of {', '.join(foreign)}, whose layers quantise their inputs in each call and return floats; "
            "quantise the float network with PT2E (torchao.quantization.pt2e) and call tandem_cuda.from_quantised"
        )
    modules = [type(module) for module in model.modules()]
    if any(kind.__module__.startswith(_OBSERVERS) for kind in modules):
        return "observers of quantisation; call convert_pt2e(model), then tandem_cuda.from_quantised"
    calls = model.graph.nodes if isinstance(model, fx.GraphModule) else ()
    of_floats = ("FloatFunctional", "FXFloatFunctional")  # they are in a package of quantised modules
    if any(node.target is torch.quantize_per_tensor for node in calls) or any(
        kind.__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))
        and kind.__name__ not in of_floats
        for kind in modules
    ):
        return (
            "quantised layers of torch.ao, which torch is to drop; quantise the float network with PT2E "
            "(torchao.quantization.pt2e) and call tandem_cuda.from_quantised"
        )
    return ""


def operator_name(node: fx.Node) -> str:
    """Return the name of the operator that a node calls, such as aten::relu; "" if it calls none."""
    target: Any = node.target
    return str(target._schema.name) if isinstance(target, torch._ops.OpOverload) else ""
