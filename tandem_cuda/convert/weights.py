"""The weight layers of an ANN, found by their ATen calls: layers of torch that hold the ANN's parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..nn.computed import Computed, OwnTensor
from ..nn.quantiser import quantiser
from ..nn.weights import stored
from .graph import LIFTED, Graph
from .training import is_random

aten = torch.ops.aten

_CONVOLUTIONS: dict[Any, type[nn.Module]] = {
    aten.conv1d.default: nn.Conv1d, aten.conv2d.default: nn.Conv2d, aten.conv3d.default: nn.Conv3d,
    aten.conv1d.padding: nn.Conv1d, aten.conv2d.padding: nn.Conv2d, aten.conv3d.padding: nn.Conv3d,
}  # fmt: skip
_TRANSPOSED: dict[Any, type[nn.Module]] = {
    aten.conv_transpose1d.default: nn.ConvTranspose1d, aten.conv_transpose2d.input: nn.ConvTranspose2d,
    aten.conv_transpose3d.input: nn.ConvTranspose3d,
}  # fmt: skip
_MATRICES = {aten.linear.default, aten.matmul.default, aten.mm.default, aten.addmm.default}
WEIGHT_CALLS = {*_CONVOLUTIONS, *_TRANSPOSED, *_MATRICES}


@dataclass
class WeightCall:
    """A call that multiplies a value by weights."""

    input: fx.Node
    name: str
    """The name of the layer: of the module that holds its weight, or of the node."""
    layer: Any
    """A layer of torch with the ANN's own parameters; the ANN's layer itself where it computes the same."""
    own: bool
    """Whether ``layer`` is the ANN's."""


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of an ATen call by their names, with defaults."""
    target: Any = node.target
    schema = target._schema
    named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    named |= dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    return named | dict(node.kwargs)


def macs(node: fx.Node, layer: Any = None) -> int:
    """Return the multiply-accumulates of a sample in a weight call, or in a product of two values; 0 for all else."""
    if layer is not None:
        outputs = math.prod(_sizes(node))
        if isinstance(layer, nn.Linear):
            return outputs * layer.in_features
        taps = math.prod(layer.kernel_size) * layer.in_channels // layer.groups
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            inputs = math.prod(_sizes(node.all_input_nodes[0]))
            return inputs * math.prod(layer.kernel_size) * layer.out_channels // layer.groups
        return outputs * taps
    if node.target in _PRODUCTS:
        left = _sizes(node.all_input_nodes[0], 0)
        return math.prod(_sizes(node)) * (left[-1] if left else 0)
    if node.target is aten.scaled_dot_product_attention.default:
        query, key = (_sizes(x) for x in node.all_input_nodes[:2])
        return 2 * math.prod(query) * key[-2]
    return 0


_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default)


def _sizes(node: fx.Node, first: int = 1) -> list[int]:
    """Return the sizes of a value behind the batch; sizes that depend on the batch as in the example."""
    x = node.meta.get("val")
    return [int(size) for size in x.shape[first:]] if isinstance(x, Tensor) else []


class WeightCalls:
    """Finds the weight calls in a graph.

    Args:
        graph: the graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.found = graph, dict[fx.Node, WeightCall]()
        self.norms: dict[fx.Node, nn.Module] = {}
        """The batch norms that no module of torch computes, by the node of their running mean."""
        self.of_parameters: set[fx.Node] = set()
        """The nodes that depend on no input."""
        for node in graph.graph.nodes:
            fixed = node.op == "call_function" and not is_random(node)
            if node.op == "get_attr" or (fixed and all(x in self.of_parameters for x in node.all_input_nodes)):
                self.of_parameters.add(node)
        for node in graph.graph.nodes:
            if node.target in WEIGHT_CALLS and node not in self.of_parameters and (call := self._call(node)):
                self.found[node] = call

    def leaves(self, node: fx.Node) -> list[fx.Node]:
        """Return the tensors that a node computed from parameters depends on."""
        found, waiting = dict[fx.Node, None](), [node]
        while waiting:
            node = waiting.pop()
            if node.op == "get_attr":
                found[node] = None
            waiting += node.all_input_nodes
        return list(found)

    def is_learned(self, node: fx.Node) -> bool:
        """Whether a node computed from parameters depends on a Parameter, not on buffers and constants alone."""
        return any(isinstance(self._raw(leaf), nn.Parameter) for leaf in self.leaves(node))

    def _raw(self, leaf: fx.Node) -> Any:
        path, _, key = str(leaf.target).rpartition(".")
        if str(leaf.target) in self.graph.constants:
            return self.graph.constants[str(leaf.target)]
        return getattr(self.graph.ann.get_submodule(path), key)

    def value(self, node: fx.Node) -> Tensor:
        """Compute the present value of a node that depends on no input."""
        values: dict[fx.Node, Any] = {}

        def computed(x: fx.Node) -> Any:
            if x not in values:
                if x.op == "get_attr":
                    values[x] = self.graph.tensor(str(x.target))
                else:
                    target: Any = x.target
                    args, kwargs = fx.node.map_arg((x.args, x.kwargs), computed)
                    values[x] = target(*args, **kwargs)
            return values[x]

        with torch.no_grad():
            found: Tensor = computed(node)
        return found

    def module(self, node: fx.Node) -> fx.GraphModule:
        """Return a module without inputs that computes a node from the ANN's own parameters."""
        graph, tensors, copies = fx.Graph(), dict[str, Any](), dict[fx.Node, fx.Node]()

        def copied(x: fx.Node) -> fx.Node:
            if x not in copies:
                if x.op == "get_attr":
                    key = str(x.target).replace(".", "_")
                    tensors[key] = self._raw(x)
                    copies[x] = graph.get_attr(key)
                else:
                    copies[x] = graph.node_copy(x, copied)
            return copies[x]

        graph.output(copied(node))
        holder = nn.Module()
        for key, x in tensors.items():
            if isinstance(x, nn.Parameter):
                holder.register_parameter(key, x)
            else:
                holder.register_buffer(key, x, persistent=False)
        return fx.GraphModule(holder, graph, "ComputedWeight")

    # -- one call

    def _call(self, node: fx.Node) -> WeightCall | None:
        given = bound_arguments(node)
        bias, transposed = given.get("bias"), False
        if node.target in _MATRICES:
            names = {aten.linear.default: ("input", "weight"), aten.addmm.default: ("mat1", "mat2")}
            names |= {aten.mm.default: ("self", "mat2"), aten.matmul.default: ("self", "other")}
            x, weight = (given[name] for name in names[node.target])
            transposed = node.target is not aten.linear.default
            if node.target is aten.addmm.default:
                bias = given["self"]
                if (given["alpha"], given["beta"]) != (1, 1):
                    return None
        else:
            x, weight = given["input"], given["weight"]
        if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or x in self.of_parameters:
            return None
        if weight not in self.of_parameters or (isinstance(bias, fx.Node) and bias not in self.of_parameters):
            return None
        size = weight.meta["val"].shape
        if len(x.meta["val"].shape) < 2 or (node.target in _MATRICES and len(size) != 2):
            return None
        if node.target not in _MATRICES and len(x.meta["val"].shape) != len(size):
            return None  # a sample without a batch
        if isinstance(bias, fx.Node) and bias.meta["val"].dim() != 1:
            return None
        if transposed and weight.target in (aten.t.default, aten.transpose.int, aten.permute.default):
            inner = weight.args[0]
            if isinstance(inner, fx.Node) and len(inner.meta["val"].shape) == 2:
                weight, transposed = inner, False
                size = weight.meta["val"].shape
        kind, settings = self._settings(node, given, size, transposed)
        if settings is None:
            return None
        owner_path = self._owner(weight)
        own = None if transposed else self._own_layer(owner_path, kind, settings, weight, bias)
        name = owner_path or node.name
        if own is not None:
            return WeightCall(x, name, own, True)
        return WeightCall(x, name, self._made(kind, settings, weight, bias, transposed), False)

    def _settings(self, node: fx.Node, given: dict[str, Any], size: Any, transposed: bool) -> tuple[Any, Any]:
        """Return the class of the layer, and the arguments of its constructor."""
        if node.target in _MATRICES:
            outputs, inputs = (size[1], size[0]) if transposed else (size[0], size[1])
            return nn.Linear, {"in_features": inputs, "out_features": outputs}
        kind = _CONVOLUTIONS.get(node.target) or _TRANSPOSED[node.target]
        n = len(size) - 2
        groups = given["groups"]
        settings: dict[str, Any] = {"kernel_size": tuple(size[2:]), "groups": groups}
        for name in ("stride", "padding", "dilation", "output_padding"):
            if name not in given or (name == "output_padding" and node.target not in _TRANSPOSED):
                continue
            x = given[name]
            if isinstance(x, str):
                settings[name] = x
                continue
            x = [x] if isinstance(x, int) else list(x)
            if not all(isinstance(number, int) for number in x):
                return None, None
            settings[name] = tuple(x * n if len(x) == 1 else x)
        if node.target in _TRANSPOSED:
            settings |= {"in_channels": size[0], "out_channels": size[1] * groups}
        else:
            settings |= {"in_channels": size[1] * groups, "out_channels": size[0]}
        return kind, settings

    def _owner(self, weight: fx.Node) -> str:
        """Return the name of the module that holds a weight, or what it is computed from."""
        paths = [str(leaf.target).rpartition(".")[0] for leaf in self.leaves(weight) if not self._is_constant(leaf)]
        paths = [path.partition(".parametrizations.")[0] for path in paths]
        return paths[0] if paths and len({*paths}) == 1 else ""

    def _is_constant(self, leaf: fx.Node) -> bool:
        return str(leaf.target).startswith(LIFTED)

    def _own_layer(self, path: str, kind: Any, settings: dict[str, Any], weight: fx.Node, bias: Any) -> Any:
        """Return the ANN's layer at a path if it computes what the call does; else None."""
        try:
            owner: Any = self.graph.ann.get_submodule(path) if path else None
        except AttributeError:
            return None
        if owner is None or not isinstance(owner, kind):
            return None
        base: Any = parametrize.type_before_parametrizations(owner)
        plain = base.forward is kind.forward and getattr(base, "_conv_forward", None) is getattr(
            kind, "_conv_forward", None
        )
        if base is not kind and base.__module__.startswith("torch."):
            return None  # a class of torch for its own layers
        if not plain or "forward" in vars(owner) or getattr(owner, "padding_mode", "zeros") != "zeros":
            return None
        if any(not _equal(getattr(owner, name), x) for name, x in settings.items()):
            return None
        tensors = {"weight": weight, "bias": bias if isinstance(bias, fx.Node) else None}
        for key, node in tensors.items():
            if node is None:
                if owner._parameters.get(key) is not None:
                    return None
            elif not self._is_of(owner, path, key, node):
                return None
        return owner

    def _is_of(self, owner: nn.Module, path: str, key: str, node: fx.Node) -> bool:
        """Whether a node is what a module has as its weight or bias."""
        prefix = f"{path}." if path else ""
        if parametrize.is_parametrized(owner, key):
            inside = f"{prefix}parametrizations.{key}."
            return all(str(leaf.target).startswith(inside) or self._is_constant(leaf) for leaf in self.leaves(node))
        if owner._forward_pre_hooks and key not in owner._parameters:
            return _hooked(owner) and all(str(leaf.target).startswith(f"{prefix}{key}_") for leaf in self.leaves(node))
        return node.op == "get_attr" and self._raw(node) is getattr(owner, key, None)

    def _made(self, kind: Any, settings: dict[str, Any], weight: fx.Node, bias: Any, transposed: bool) -> Any:
        """Make a layer of torch that holds the ANN's tensors, or modules that compute them."""
        layer: Any = kind(**settings, bias=False, device="meta")
        for key, node in (("weight", weight), ("bias", bias)):
            if not isinstance(node, fx.Node):
                continue
            held = self._raw(node) if node.op == "get_attr" and not transposed else None
            layer._parameters.pop(key, None)
            if isinstance(held, nn.Parameter):
                layer.register_parameter(key, held)
            elif held is not None:
                layer.register_buffer(key, held, persistent=False)
            else:
                module = self.module(node)
                Computed.of(layer, key, _Transposed(module) if transposed and key == "weight" else module)
        return layer


class _Transposed(nn.Module):
    """The transpose of a computed matrix."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self) -> Tensor:
        transposed: Tensor = self.module().t()
        return transposed


def _hooked(owner: nn.Module) -> bool:
    """Whether the only hooks of a layer are torch's, which compute its weight."""
    kinds = {f"{type(hook).__module__}.{type(hook).__name__}" for hook in owner._forward_pre_hooks.values()}
    return kinds <= {"torch.nn.utils.weight_norm.WeightNorm", "torch.nn.utils.spectral_norm.SpectralNorm"}


def _equal(one: Any, other: Any) -> bool:
    one, other = (tuple(x) if isinstance(x, (list, tuple)) else x for x in (one, other))
    if isinstance(one, int) and isinstance(other, tuple):
        return all(x == one for x in other)
    return bool(one == other)


def share(layer: Any, module: nn.Module) -> None:
    """Let a tandem layer hold what a layer of torch holds as weight and bias, or compute it as that layer does."""
    for key in ("weight", "bias"):
        computed = Computed.in_(module, key)
        if computed is not None:
            layer._parameters.pop(key, None)
            Computed.of(layer, key, computed)
        elif parametrize.is_parametrized(module, key):
            if key == "weight" and (rounding := quantiser(module)) is not None:
                layer.register_parameter(key, getattr(*stored(module, key)))
                parametrize.register_parametrization(layer, key, rounding, unsafe=True)
            else:
                layer._parameters.pop(key, None)
                Computed.of(layer, key, OwnTensor(module, key))
        elif key not in module._parameters and key not in module._buffers and module._forward_pre_hooks:
            layer._parameters.pop(key, None)
            Computed.of(layer, key, OwnTensor(module, key))
        elif key in module._buffers:
            layer._parameters.pop(key, None)
            layer.register_buffer(key, module._buffers[key], persistent=False)
        else:
            layer.register_parameter(key, module._parameters.get(key))
