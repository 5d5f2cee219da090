"""freeze: collect the calls of a model and replace each layer by its frozen form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import fx, nn

from ..convert import TandemNetwork, flattened_to
from ..convert.advice import hooked
from ..convert.aliases import VIEWS, module_writes, writes, writes_alone
from ..convert.nodes import leading_to, word_of
from ..nn.classes import is_of_torch
from ..nn.frozen import FORMS, FrozenLayer, class_of
from ..nn.sizes import ENCODED, Value
from .functions import constants_of, frozen_call
from .graph import INPUT, Node, mapped, output_value
from .network import FrozenNetwork


def freeze(model: nn.Module) -> FrozenNetwork:
    """Freeze a trained network for inference: fold batch norm, pack weights, and drop the ANN, gradients and modes.

    The outputs of the frozen network equal the outputs of ``model.eval()`` under ``torch.no_grad()``, bit for bit. It
    shares no memory with the model.

    Args:
        model: the result of :func:`tandem_cuda.convert`, an nn.Sequential (nested or not), a torch.fx.GraphModule, or a
            single layer. It may contain Encode, tandem layers, TandemAdd, spiking pooling and Decode. Before Encode and
            after Decode it may also contain the PyTorch modules and functions that :mod:`tandem_cuda.freeze.plain` and
            :mod:`tandem_cuda.freeze.functions` list. It may have several inputs and outputs. Dropout and nn.Identity
            are removed.

    Raises:
        TypeError: ``model`` is not an nn.Module.
        ValueError: parts of the model cannot be frozen (the message names all of them); a module has forward hooks or a
            ``forward`` of its own; a batch norm has no running statistics; weights or statistics are NaN or infinite;
            or layers do not fit each other.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> frozen = freeze(net)
        >>> x = torch.rand(2, 784)
        >>> torch.equal(frozen(x), net(x))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"freeze: model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, FrozenNetwork):
        raise ValueError("freeze: model must be a network that trains, got a FrozenNetwork, which is frozen already")
    _check_hooks(model)
    if isinstance(model, TandemNetwork):
        model.check_twins()
        model = model.snn
    calls = _calls(model)
    refused = list(calls.refused)
    for name, module, _ in calls.layers:
        if not isinstance(module, FrozenLayer) and class_of(module) not in FORMS:
            refused.append(f"{name} ({_refusal(module)})")
    if refused:
        raise ValueError(
            "freeze: model must contain only tandem layers, the PyTorch modules and functions that freeze supports "
            "(docs/inference.md), and modules registered with tandem_cuda.freeze.register, "
            f"got {', '.join(refused)}"
        )
    nodes: list[Node] = []
    renamed, values = {name: name for name in calls.inputs}, {name: Value() for name in calls.inputs}
    for name, module, inputs in calls.layers:
        sources = tuple(renamed[i] for i in inputs)
        form = module
        if not isinstance(module, FrozenLayer):
            try:
                form = FORMS[class_of(module)](module, any(values[i].kind == ENCODED for i in sources))
            except ValueError as error:
                raise ValueError(f"freeze: {name!r}: {error}") from error
        if form is None:
            renamed[name] = sources[0]
            continue
        renamed[name] = name
        nodes.append(Node(name, form, sources))
        values[name] = output_value("freeze", nodes[-1], values)
    return FrozenNetwork(nodes, mapped(calls.output, renamed.__getitem__), calls.inputs)


def _refusal(module: Any) -> str:
    """Return the class of a module that cannot be frozen, and what to do about layers in it."""
    kind = type(module).__name__
    parts = () if is_of_torch(type(module)) else module.modules()
    if not any(isinstance(part, FrozenLayer) or class_of(part) in FORMS for part in parts):
        return kind
    return f"{kind}: its forward is not read; put its layers into an nn.Sequential, or convert its ANN"


def _check_hooks(model: nn.Module) -> None:
    """Raise a ValueError for code that would no longer be called. Weights that hooks compute may be out of date."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, FrozenLayer):  # becomes part of the frozen network as it is
            continue
        why = hooked(module) if module._forward_hooks or module._forward_pre_hooks else ""
        if "forward" in vars(module):
            why = "it has a forward of its own, which nothing calls in the frozen network"
        if why:
            found.append(f"{name or type(module).__name__!r}: {why}")
    if found:
        raise ValueError(f"freeze: {'; '.join(found)}")


class _Calls(NamedTuple):
    """The calls that make up a model's forward."""

    layers: list[tuple[str, Any, tuple[str, ...]]]
    """In order of execution: the name, the module or frozen layer, and the names of its inputs."""
    output: Any
    """The ``output`` of the FrozenNetwork."""
    inputs: tuple[str, ...] = (INPUT,)
    refused: tuple[str, ...] = ()
    """The calls that have no frozen form, each with the reason."""


def _calls(model: nn.Module) -> _Calls:
    if isinstance(model, fx.GraphModule):
        return _GraphCalls(model).found()
    layers: list[tuple[str, Any, tuple[str, ...]]] = []
    last = INPUT
    for name, module in _chain("", model):
        layers.append((name, module, (last,)))
        last = name
    return _Calls(layers, last)


def _chain(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if class_of(module) is nn.Sequential:
        for child, submodule in module._modules.items():  # children() skips repeats
            assert submodule is not None
            yield from _chain(f"{name}.{child}" if name else child, submodule)
    else:
        yield name or type(module).__name__, module


class _GraphCalls:
    """Collects the calls in the graph of a model."""

    def __init__(self, model: fx.GraphModule) -> None:
        self.model = model
        self.layers: list[tuple[str, Any, tuple[str, ...]]] = []
        self.refused: list[str] = []
        placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
        placeholders = [node for node in placeholders if node.users or not node.args]  # unused defaults
        several = len(placeholders) > 1
        self.names = {node: f"<{node.name}>" if several else INPUT for node in placeholders}
        self.inputs = tuple(self.names.values())
        self.constants = constants_of(model)

    def found(self) -> _Calls:
        nodes = list(self.model.graph.nodes)
        (end,) = (node for node in nodes if node.op == "output")
        needed = leading_to([end])
        for node in nodes:
            if node.op not in ("placeholder", "output") and node not in self.constants:
                try:
                    if node in needed:
                        self._call(node)
                    elif self._writes(node):
                        raise ValueError("writes in place, but its result is not used; use the result")
                except (TypeError, ValueError) as error:
                    self.names[node] = INPUT  # a substitute, so that later problems are found, too
                    self.refused.append(f"{node.name} ({word_of(node.target)}: {error})")
        output = self._structure(end.args[0])
        return _Calls(self.layers, output, self.inputs, tuple(self.refused))

    def _writes(self, node: fx.Node) -> bool:
        """Whether a node writes to anything but its result."""
        if node.op == "call_module":
            modules = self.model.get_submodule(str(node.target)).modules()
            return any(module_writes(module, training=False) for module in modules)
        return "out" in node.kwargs or writes(self.model, node)

    def _call(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self._module(node)
        elif (flatten := _flattening(node)) is not None:
            self._add(node, flatten, [node.args[0]])
        elif node.target in _DROPOUTS:
            if node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True):
                raise ValueError("was traced in training mode; use nn.Dropout, or trace the model in eval mode")
            (x,) = node.all_input_nodes
            if x in self.constants:
                self.constants[node] = self.constants[x]
            else:
                self.names[node] = self.names[x]
        else:
            self._add(node, *frozen_call(self.model, node, self.constants))

    def _module(self, node: fx.Node) -> None:
        if node.kwargs or not node.args or not all(a in self.names for a in node.args):
            raise ValueError("must be called with outputs of other layers only, by position")
        inputs, given = tuple(self.names[a] for a in node.args if isinstance(a, fx.Node)), True
        for name, module in _chain(node.name, self.model.get_submodule(str(node.target))):
            if given and module_writes(module, training=False) and not writes_alone(self.model, node):
                raise ValueError("writes in place to a tensor that is used elsewhere; set inplace=False")
            given = given and isinstance(module, VIEWS)
            self.layers.append((name, module, inputs))
            inputs = (name,)
        self.names[node] = inputs[0]

    def _add(self, node: fx.Node, layer: Any, inputs: Sequence[Any]) -> None:
        self.layers.append((node.name, layer, tuple(self.names[x] for x in inputs)))
        self.names[node] = node.name

    def _structure(self, value: Any) -> Any:
        if isinstance(value, fx.Node) and value in self.names:
            return self.names[value]
        if (type(value) is tuple or isinstance(value, list)) and value:
            return {"tuple" if type(value) is tuple else "list": [self._structure(x) for x in value]}
        if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
            return {"dict": {key: self._structure(x) for key, x in value.items()}}
        self.refused.append(f"output ({value!r} of type {type(value).__name__})")
        return INPUT


_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


def _flattening(node: fx.Node) -> nn.Module | None:
    """Return the nn.Flatten equivalent to a node; None if there is none."""
    dims: Any = node.args[1:]
    if node.op == "call_method" and node.target == "flatten" and not node.kwargs and dims:
        return nn.Flatten(*dims) if all(isinstance(dim, int) for dim in dims) else None
    return nn.Flatten() if node.target is flattened_to else None
