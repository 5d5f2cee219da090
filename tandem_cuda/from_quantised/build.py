"""Make a frozen spiking network from the steps of a quantised network."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from ..freeze import LOADERS, FrozenNetwork, freeze
from ..neuron import RadixIF
from .steps import Code, Decoding, Encoding, Kept, Moving, Network, Neurons, Product, ReadOut, Spikes, Step

aten = torch.ops.aten
Drive = tuple[dict[str, Any], dict[str, Tensor]]
"""Settings and tensors of a layer, as files hold them."""


def bits_of(network: Network) -> int:
    """Return the number of bits of all integers; raise a ValueError if they differ."""
    bits = {step.name: step.code.bits for step in network.steps if isinstance(step, (Encoding, Neurons))}
    if not bits:
        raise ValueError("from_quantised: model must quantise activations, got none")
    if len({*bits.values()}) > 1:
        found = ", ".join(f"{name}: {number}" for name, number in bits.items())
        raise ValueError(
            "from_quantised: all activations must have the same number of bits, since they become spikes of the same "
            f"time steps, got {found}; signed integers lose one bit behind a ReLU, so choose unsigned ones (uint8)"
        )
    return next(iter(bits.values()))


def built(network: Network, time_steps: int) -> FrozenNetwork:
    """Return the spiking network."""
    builder = _Builder(network, time_steps)
    for step in network.steps:
        builder.add(step)
    return builder.finished()


class _Builder:
    """Makes the graph that :func:`tandem_cuda.freeze` takes."""

    def __init__(self, network: Network, time_steps: int) -> None:
        self.network = network
        self.time_steps = time_steps
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.nodes = {name: self.graph.placeholder(name) for name in network.inputs}
        self.taken = {*network.inputs, *(step.name for step in network.steps)}
        """The names of nodes."""
        self.padded: dict[tuple[Any, ...], str] = {}
        """The padded inputs, by input and padding."""
        self.encodings = {step.name: step for step in network.steps if isinstance(step, Encoding)}
        drives = [product for step in network.steps if isinstance(step, Neurons) for _, product in step.branches]
        self.convolves = any(product is not None and product.kind != "TandemLinear" for product in drives)
        """Whether images and lines have channels. Rows of other networks have features, along the last dimension."""

    def add(self, step: Step) -> None:
        """Add the layers of a step."""
        if isinstance(step, Encoding):
            self.nodes[step.name] = self._encoded(step.name, self.nodes[step.source], step.code)
        elif isinstance(step, Neurons):
            self._neurons(step)
        elif isinstance(step, Moving):
            self._layer(step.name, step.move.kind, (step.move.arguments, {}), step.source.name)
        elif isinstance(step, Decoding):
            self.nodes[step.name] = self._decoded(step.source, step.name)
        elif isinstance(step, ReadOut):
            values = self._decoded(step.source, self._new(f"{step.name}_input"))
            self.nodes[step.name] = self._module(step.name, _float_layer(step.product), values)
        else:
            self._kept(step)

    def finished(self) -> FrozenNetwork:
        """Return the network."""
        self.graph.output(tree_map(self.nodes.__getitem__, self.network.output))
        return freeze(fx.GraphModule(self.root, self.graph))

    def _module(self, name: str, module: nn.Module, *inputs: fx.Node) -> fx.Node:
        self.root.add_module(f"layer_{name}", module)  # so that it hides no attribute of modules
        return self.graph.create_node("call_module", f"layer_{name}", inputs, name=name)

    def _function(self, name: str, function: Callable[..., Any], *args: Any) -> fx.Node:
        return self.graph.create_node("call_function", function, args, name=name)

    def _new(self, name: str) -> str:
        """Return a name for a node beside the steps, which keep theirs."""
        while name in self.taken:
            name = f"{name}_"
        self.taken.add(name)
        return name

    def _layer(self, name: str, kind: str, drive: Drive, *sources: str) -> None:
        layer = LOADERS[kind](*drive)
        self.nodes[name] = self._module(name, layer, *(self.nodes[source] for source in sources))

    def _kept(self, step: Kept) -> None:
        node = step.node
        for x in node.all_input_nodes:
            if x.op == "get_attr" and x.name not in self.nodes:
                constant = operator.attrgetter(str(x.target))(self.network.root).detach()
                self.root.register_buffer(f"constant_{x.name}", constant)
                self.nodes[x.name] = self.graph.create_node("get_attr", f"constant_{x.name}", name=self._new(x.name))
        if node.op == "call_module":
            module = self.network.root.get_submodule(str(node.target))
            inputs: Any = fx.map_arg(node.args, lambda x: self.nodes[x.name])
            copied = self._module(step.name, module, *inputs)
        elif step.function is not None:
            args: Any = fx.map_arg(node.args, lambda x: self.nodes[x.name])
            named: Any = fx.map_arg(node.kwargs, lambda x: self.nodes[x.name])
            copied = self.graph.create_node("call_function", step.function, args, named, name=step.name)
        else:
            copied = self.graph.node_copy(node, lambda x: self.nodes[x.name])
        self.nodes[step.name] = copied

    # -- real numbers and integers

    def _encoded(self, name: str, x: fx.Node, code: Code) -> fx.Node:
        """Quantise as PyTorch does, and turn the integers into radix spikes."""
        most = 2**code.bits - 1
        calls = (aten.mul.Tensor, 1 / code.scale), (aten.round.default,), (aten.add.Tensor, code.zero)
        for function, *args in (*calls, (aten.clamp.default, 0, most), (aten.div.Tensor, most)):
            x = self._function(self._new(f"{name}_{function.__name__.partition('.')[0]}"), function, x, *args)
        settings = {"time_steps": self.time_steps, "mode": "radix", "scale": most * code.scale}
        return self._module(name, LOADERS["Encode"](settings, {}), x)

    def _decoded(self, source: Spikes, name: str) -> fx.Node:
        code, decode, spikes = source.code, LOADERS["Decode"]({}, {}), self.nodes[source.name]
        if not code.zero:
            return self._module(name, decode, spikes)
        x = self._module(self._new(f"{name}_decode"), decode, spikes)
        return self._function(name, aten.sub.Tensor, x, code.zero * code.scale)

    # -- layers of neurons

    def _neurons(self, step: Neurons) -> None:
        code = step.code
        neuron = RadixIF(2**code.bits * code.scale).settings()
        sources, offset = [], code.zero * code.scale  # the potential of the integer that stands for 0
        drives: list[Drive | None] = []
        for spikes, product in step.branches:
            offset -= 0 if product is not None else spikes.code.zero * spikes.code.scale
            name, product = self._padded(spikes, product)
            sources.append(name)
            drives.append(None if product is None else _drive(product, spikes.code))
        first = next((drive for drive in drives if drive is not None), None)
        if first is None and (offset or len(drives) == 1):
            first = drives[0] = self._identity(step.shape)
        if first is not None and (offset or "bias" in first[1]):
            first[1]["bias"] = first[1].get("bias", torch.zeros([], dtype=torch.float64)) + offset
        for drive in drives:
            if drive is not None and "bias" in drive[1]:
                drive[1]["bias"] = drive[1]["bias"].expand(len(drive[1]["weight"])).float()
        ends = {"neuron": neuron, "engine": "auto"}
        kinds = [
            product.kind if product else "Identity" if drive is None else "TandemElementwise"
            for (_, product), drive in zip(step.branches, drives, strict=True)
        ]
        if len(drives) == 1:
            assert first is not None
            settings, tensors = first
            self._layer(step.name, kinds[0], ({**settings, **ends, "takes_encoded": False}, tensors), *sources)
            return
        branches, tensors = [], {}
        for i, (kind, drive) in enumerate(zip(kinds, drives, strict=True)):
            # The neurons of branches are not used.
            branches.append({"kind": kind, **({} if drive is None else {**drive[0], **ends})})
            tensors |= {} if drive is None else {f"{i}.{key}": tensor for key, tensor in drive[1].items()}
        self._layer(step.name, "TandemAdd", ({"branches": branches, **ends}, tensors), *sources)

    def _identity(self, shape: list[int]) -> Drive:
        """Return settings and tensors of neurons that each read one neuron."""
        of_features = len(shape) > 2 and not self.convolves
        channels = shape[-1 if of_features else 1]
        settings = {"in_channels": channels, "out_channels": channels, "groups": channels}
        if of_features:
            settings["of_features"] = True
        return settings, {"weight": torch.ones(channels, 1, 1, 1, dtype=torch.int8), "scale": torch.ones(channels)}

    def _padded(self, spikes: Spikes, product: Product | None) -> tuple[str, Product | None]:
        """Return the source and the weights of a branch; padding by integers that are not 0 goes into the input."""
        padding = [] if product is None else product.arguments.get("padding", [])
        if product is None or not any(padding) or spikes.code.zero == 0:
            return spikes.name, product
        encoding = self.encodings[spikes.name]
        key = spikes.name, *padding
        if key not in self.padded:
            name = self.padded[key] = self._new(f"{spikes.name}_padded")
            sides = [side for p in reversed(padding) for side in (p, p)]
            padded = self._function(self._new(f"{name}_input"), aten.pad.default, self.nodes[encoding.source], sides)
            self.nodes[name] = self._encoded(name, padded, encoding.code)
        return self.padded[key], product._replace(arguments={**product.arguments, "padding": [0] * len(padding)})


def _drive(product: Product, code: Code) -> Drive:
    """Return settings and tensors of a layer that reads integers of a code. The bias is float64."""
    tensors = {"weight": product.weight, "scale": product.scale.float()}
    bias = None if product.bias is None else product.bias.double()
    if code.zero:
        of_zero = product.scale * code.scale * (product.weight.flatten(1).sum(1) * code.zero)
        bias = -of_zero if bias is None else bias - of_zero
    return product.arguments, tensors if bias is None else {**tensors, "bias": bias}


def _float_layer(product: Product) -> nn.Module:
    """Return the layer of torch with the floats that integer weights stand for."""
    kinds: dict[str, Any] = {"TandemLinear": nn.Linear, "TandemConv1d": nn.Conv1d, "TandemConv2d": nn.Conv2d}
    arguments = {name: tuple(x) if isinstance(x, list) else x for name, x in product.arguments.items()}
    layer: nn.Module = kinds[product.kind](**arguments, bias=product.bias is not None)
    scale = product.scale.float().view(-1, *[1] * (product.weight.dim() - 1))
    values = {"weight": product.weight.float() * scale}
    if product.bias is not None:
        values["bias"] = product.bias
    layer.load_state_dict(values)
    return layer.eval()
