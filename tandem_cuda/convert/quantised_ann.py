"""Tell which form of quantised network a model is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

_OBSERVERS = tuple(
    f"{package}.{module}"
    for package in ("torch.ao.quantization", "torchao.quantization.pt2e")
    for module in ("observer", "fake_quantize")
)


def refuse_quantised(ann: nn.Module) -> None:
    """Raise the ValueError of convert, which takes floats, for a quantised network."""
    found = ""
    if is_eager(ann):
        found = "quantised layers of torch.ao"
    elif is_exported(ann):
        found = "a graph of quantising and dequantising operators"
    elif foreign := foreign_weights(ann):
        found = f"weights of {', '.join(foreign)}"
    elif has_observers(ann):
        found = "observers of quantisation"
    if found:
        raise ValueError(
            f"convert: ann must be a network of floats, got {found}; tandem_cuda.from_quantised takes networks that "
            "torch.ao.quantization or PT2E has quantised"
        )


def is_eager(model: nn.Module) -> bool:
    """Return whether a model has modules or functions of quantised tensors, as torch.ao.quantization makes them."""
    if any(_is_quantised(module) for module in model.modules()):
        return True
    if not isinstance(model, fx.GraphModule):
        return False
    return any(node.target is torch.quantize_per_tensor for node in model.graph.nodes)


def is_exported(model: Any) -> bool:
    """Return whether a model is a graph with operators of PT2E quantisation."""
    return isinstance(model, fx.GraphModule) and any(
        operator_name(node).startswith("quantized_decomposed::") for node in model.graph.nodes
    )


def operator_name(node: fx.Node) -> str:
    """Return the name of the operator that a node calls, such as aten::relu; "" if it calls none."""
    target: Any = node.target
    return str(target._schema.name) if isinstance(target, torch._ops.OpOverload) else ""


def foreign_weights(model: nn.Module) -> list[str]:
    """Return the classes of parameters that are tensors of torchao."""
    kinds = {type(x) for x in model.parameters()} | {type(x.data) for x in model.parameters()}
    named = {f"{kind.__module__}.{kind.__name__}" for kind in kinds if issubclass(kind, Tensor)}
    return sorted(name for name in named if name.startswith("torchao."))


def has_observers(model: nn.Module) -> bool:
    """Return whether a model is prepared for quantisation, but not converted."""
    return any(type(module).__module__.startswith(_OBSERVERS) for module in model.modules())


def _is_quantised(module: nn.Module) -> bool:
    kind = type(module)
    of_floats = kind.__name__ in ("FloatFunctional", "FXFloatFunctional")  # they are in a package of quantised modules
    return kind.__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")) and not of_floats
