"""freeze: collect the calls of a model and replace each layer by its frozen form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..convert import TandemNetwork
from ..nn.classes import is_of_torch
from ..nn.frozen import FORMS, FrozenLayer, class_of
from ..nn.hooks import compute_weight, hooked
from ..nn.modes import evaluating
from ..nn.sizes import ENCODED, Value
from ..nn.spiking import Spiking
from .aten import FrozenConstant, constants_of, frozen_call, is_pure
from .graph import INPUT, Node, mapped, output_value
from .network import FrozenNetwork
from .plain import VIEWS


def freeze(model: nn.Module) -> FrozenNetwork:
    """Freeze a trained network for inference: fold batch norm, pack weights, and drop the ANN, gradients and modes.

    The outputs of the frozen network equal the outputs of ``model.eval()`` under ``torch.no_grad()``, bit for bit. It
    shares no memory with the model.

    Args:
        model: the result of :func:`tandem_cuda.convert`, an nn.Sequential (nested or not), a torch.fx.GraphModule, or a
            single layer. It may contain Encode, tandem layers, TandemAdd, spiking pooling and Decode. What takes and
            returns Tensors may also be the PyTorch modules that :mod:`tandem_cuda.freeze.plain` lists and, in a graph,
            functional operators of ATen. It may have several inputs and outputs. Dropout and nn.Identity are removed.

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
    with evaluating(model):  # weights may be computed in another way in training, as by spectral norm
        return _frozen(model)


def _frozen(model: nn.Module) -> FrozenNetwork:
    _check_hooks(model)
    arguments = None
    if isinstance(model, TandemNetwork):
        model.check_twins()
        arguments = model.arguments
        model = model.snn
    calls = _calls(model)
    refused = list(calls.refused)
    for name, module, _ in calls.layers:
        if not isinstance(module, FrozenLayer) and class_of(module) not in FORMS:
            refused.append(f"{name} ({_refusal(module)})")
    if refused:
        raise ValueError(
            "freeze: model must contain only tandem layers, the PyTorch modules that freeze supports "
            "(docs/inference.md), modules registered with tandem_cuda.freeze.register, and ATen operators, "
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
    if arguments is not None:
        arguments = _structure(arguments, iter(calls.inputs))
    return FrozenNetwork(nodes, mapped(calls.output, renamed.__getitem__), calls.inputs, arguments)


def _structure(arguments: Any, names: Iterator[str]) -> Any:
    """Return the structure of a call's arguments with the names of inputs in place of Ellipsis."""
    if arguments is ...:
        return next(names)
    if isinstance(arguments, dict):
        if not all(isinstance(key, str) for key in arguments):
            raise ValueError("freeze: keys of dicts among the inputs must be strings")
        return {"dict": {key: _structure(x, names) for key, x in arguments.items()}}
    if isinstance(arguments, (tuple, list)):
        form = "tuple" if isinstance(arguments, tuple) else "list"
        return {form: [_structure(x, names) for x in arguments]}
    if arguments is not None and not isinstance(arguments, (bool, int, float, str)):
        raise ValueError(f"freeze: arguments must be Tensors, numbers, strings or None, got {type(arguments).__name__}")
    return {"constant": arguments}


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
        why = ""
        if (module._forward_hooks or module._forward_pre_hooks) and not compute_weight(module):
            why = hooked(module)
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
        weights = (p for module in model.modules() if isinstance(module, Spiking) for p in module.parameters())
        self.dtype = next((p.dtype for p in weights if p.is_floating_point()), torch.float32)

    def found(self) -> _Calls:
        (end,) = self.model.graph.find_nodes(op="output")
        needed = {end}
        for node in reversed(self.model.graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        for node in self.model.graph.nodes:
            if node.op not in ("placeholder", "output") and node not in self.constants:
                try:
                    self._call(node, node in needed)
                except (TypeError, ValueError) as error:
                    self.names[node] = INPUT  # a substitute, so that later problems are found, too
                    self.refused.append(f"{node.name} ({_word(node.target)}: {error})")
        output = self._structure(end.args[0])
        return _Calls(self.layers, output, self.inputs, tuple(self.refused))

    def _call(self, node: fx.Node, needed: bool) -> None:
        if node.op == "call_module":
            self._module(node, needed)
        elif (flatten := _flattening(node)) is not None:
            self._add(node, flatten, [node.args[0]])
        elif node.op == "call_method" and node.target == "clone":  # nothing in a frozen network writes in place
            self.names[node] = self._name(node.args[0])
        elif needed or not is_pure(node.target):
            self._add(node, *frozen_call(node, self.constants, self.dtype))

    def _module(self, node: fx.Node, needed: bool) -> None:
        parts = list(_chain(node.name, self.model.get_submodule(str(node.target))))
        first = next((module for _, module in parts if not isinstance(module, VIEWS)), None)
        if getattr(first, "inplace", False) and not all(map(self._is_alone, node.all_input_nodes)):
            raise ValueError("may write in place to a tensor that is used elsewhere; set inplace=False")
        if not needed:
            return
        if node.kwargs or not node.args or not all(isinstance(x, fx.Node) for x in node.args):
            raise ValueError("must be called with outputs of other layers only, by position")
        inputs = tuple(map(self._name, node.args))
        for name, module in parts:
            self.layers.append((name, module, inputs))
            inputs = (name,)
        self.names[node] = inputs[0]

    def _is_alone(self, node: fx.Node) -> bool:
        """Return whether a value surely has memory of its own, and one user."""
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else nn.Identity()
        return len(node.users) == 1 and not isinstance(module, (*VIEWS, nn.Sequential))

    def _add(self, node: fx.Node, layer: Any, inputs: Sequence[Any]) -> None:
        self.layers.append((node.name, layer, tuple(map(self._name, inputs))))
        self.names[node] = node.name

    def _name(self, node: Any) -> str:
        """Return the name of a node's value, and let a constant have one."""
        if node not in self.names:
            value = self.constants[node]
            if isinstance(value, Tensor) and (node.op == "get_attr" or value.is_contiguous()):
                self._add(node, FrozenConstant(value), ())
            else:  # tensors in a list; or a file has no strides, on which the rounding of products depends
                self._add(node, *frozen_call(node, self.constants, self.dtype))
        return self.names[node]

    def _structure(self, value: Any) -> Any:
        if isinstance(value, fx.Node) and (value in self.names or isinstance(self.constants.get(value), Tensor)):
            return self._name(value)
        if (type(value) is tuple or isinstance(value, list)) and value:
            return {"tuple" if type(value) is tuple else "list": [self._structure(x) for x in value]}
        if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
            return {"dict": {key: self._structure(x) for key, x in value.items()}}
        self.refused.append(f"output ({value!r} of type {type(value).__name__})")
        return INPUT


def _word(target: Any) -> str:
    """Return the name of a function, method or module."""
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _flattening(node: fx.Node) -> nn.Module | None:
    """Return the nn.Flatten equivalent to a node; None if there is none."""
    dims: Any = node.args[1:]
    if node.target not in ("flatten", torch.flatten) or node.kwargs or not dims:
        return None
    return nn.Flatten(*dims) if all(isinstance(dim, int) for dim in dims) else None
