"""The rule of quantised activations, and the graph that it needs: unsigned integers, whose zero point is 0.

PT2E writes a quantised value as quantise(x), dequantise(q), for the numbers scale * (q - zero). :func:`unsigned` makes
one call of each pair, ``aten.fake_quantize_per_tensor_affine``, and moves zero points into biases: radix spikes stand
for scale * q, and what reads them subtracts scale * zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ...nn import Encode
from ..call import Call
from ..graph import Graph
from ..nodes import word_of
from ..values import Analogue, Branch, Current, Pooled, Real, Train
from ..weights import WeightCalls, bound_arguments
from . import rules_for

aten = torch.ops.aten
_QUANTISE = aten.fake_quantize_per_tensor_affine.default
_MOVES = {
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.amax.default,
    aten.adaptive_max_pool2d.default, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
    aten.unflatten.int, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.dropout.default,
    aten.feature_dropout.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
    aten.slice.Tensor, aten.select.int, aten.permute.default, aten.transpose.int, aten.pixel_shuffle.default,
    aten.channel_shuffle.default, aten.upsample_nearest2d.vec,
}  # fmt: skip
"""Calls that select and move values, so that they give the same result before and after quantisation."""
_AVERAGES = {
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.mean.dim,
}  # fmt: skip
_RELUS: dict[Any, tuple[Any, Any]] = {
    aten.relu.default: (0, None), aten.relu6.default: (0, 6.0), aten.hardtanh.default: ("min_val", "max_val"),
    aten.clamp.default: ("min", "max"), aten.clamp_min.default: ("min", None),
}  # fmt: skip
"""The least and the largest result of each call, or the names of the arguments that say it."""
_WITH_BIAS = {aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}


class Code(NamedTuple):
    """What radix spikes stand for: scale * q, with q from 0 to 2^bits - 1."""

    scale: float
    bits: int


class Integers(NamedTuple):
    """Radix spikes in the rewritten graph. The quantised network has their values less ``shift``."""

    code: Code
    shift: float
    averaged: bool = False
    """Whether they are averages of integers, which are not rounded yet."""


class Refused(ValueError):
    """Says why a call has no exact spiking form."""


@rules_for(_QUANTISE)
def _quantise(call: Call) -> Any:
    code: Code | None = call.node.meta.get("code")
    if code is None:
        raise Analogue("it has no rule")
    writer, x = call.writer, call.writer.value(call.source)
    if isinstance(x, Real):
        if x.analogue:
            raise Analogue("it quantises a value that has no spiking form")
        largest = (2**code.bits - 1) * code.scale
        share = writer.graph.call_function(aten.div.Scalar, (x.node, largest))
        share = writer.graph.call_function(aten.clamp.default, (share, 0, 1))
        name = writer.named("encode", Encode(writer.options.time_steps, "radix", largest))
        return Train(writer.graph.call_module(name, (share,)), call.shape)
    x = call.input
    if isinstance(x, Pooled):  # whose neurons round the averages to integers of the same code
        return writer.pooled(x, "neurons")
    x = Current([Branch(x)]) if isinstance(x, Train) else x
    return writer.write_neurons(call.node, x, level=code.scale * 2**code.bits)


def unsigned(graph: Graph) -> dict[int, Tensor]:
    """Rewrite the graph of a quantised network to unsigned activations.

    Returns:
        The scales [O] of the outputs of each quantised weight, by the id of the constant that holds the weight.

    Raises:
        ValueError: a part of the network has no exact spiking form. The message lists all of them.
    """
    return _Rewriting(graph).done()


def refuse(problems: list[str]) -> None:
    """Raise a ValueError that names all parts of a network without an exact spiking form."""
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"from_quantised: every part of model must have a spiking form; these have none:{lines}")


class _Rewriting:
    def __init__(self, graph: Graph) -> None:
        self.source, self.graph, self.calls = graph, graph.graph, WeightCalls(graph)
        self.problems, self.scales = list[str](), dict[int, Tensor]()
        self.values = dict[fx.Node, Integers]()
        self.inputs = dict[fx.Node, fx.Node]()
        """By the nodes of encoded values, the calls that quantise them."""

    def done(self) -> dict[int, Tensor]:
        """Rewrite the graph, and return the scales of weights."""
        self._each(self._dequantised)
        self._each(self._paired)
        self.calls = WeightCalls(self.source)
        nodes = list(self.graph.nodes)
        self.before, self.behind = set[fx.Node](), set[fx.Node]()
        """The nodes that lead to a weight layer; and the weight layers and the nodes that depend on them."""
        for node in reversed(nodes):
            if any(user in self.before or user in self.calls.found for user in node.users):
                self.before.add(node)
        for node in nodes:
            if node in self.calls.found or any(x in self.behind for x in node.all_input_nodes):
                self.behind.add(node)
        self._each(self._without_relu, reverse=True)
        self._each(self._without_zero_point)
        self._each(self._of_real_values)
        bits = {node.name: node.meta["code"].bits for node in self.graph.nodes if "code" in node.meta}
        if not bits:
            self.problems.append("a weight layer must read quantised activations, but there is none")
        if len({*bits.values()}) > 1:
            found = ", ".join(f"{name}: {number}" for name, number in bits.items())
            self.problems.append(
                "activations must have the same number of bits, since they are spikes of the same time steps, got "
                f"{found}; signed integers lose one bit behind a ReLU, so choose unsigned ones (uint8)"
            )
        refuse(self.problems)
        return self.scales

    def _each(self, step: Callable[[fx.Node], None], reverse: bool = False) -> None:
        nodes = list(self.graph.nodes)
        for node in reversed(nodes) if reverse else nodes:
            self._tried(step, node)
        self.graph.eliminate_dead_code()
        for node in [n for n in self.graph.nodes if n.op == "get_attr" and not n.users]:
            self.graph.erase_node(node)

    def _tried(self, step: Callable[[fx.Node], None], node: fx.Node) -> None:
        try:
            step(node)
        except Refused as error:
            self.problems.append(f"{node.name} ({word_of(node.target)}): {error}")

    # -- nodes

    def _call(self, before: fx.Node, target: Any, *args: Any) -> fx.Node:
        """Insert a call."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args)
        known: Any = fx.node.map_arg(args, lambda x: x.meta["val"])
        node.meta["val"] = target(*known) if target is aten.constant_pad_nd.default else known[0]
        return node

    def _constant(self, layer: fx.Node, key: str, value: Tensor) -> fx.Node:
        """Insert a constant before a weight call, named after the module that makes the call."""
        path = [path for path, _ in (layer.meta.get("nn_module_stack") or {}).values()][-1:]
        name = base = f"{path[0] if path and path[0] else f'_constant.{layer.name}'}.quantised_{key}"
        while name in self.source.constants:
            name = f"{base}_{len(self.source.constants)}"
        self.source.constants[name] = value
        with self.graph.inserting_before(layer):
            node = self.graph.create_node("get_attr", name)
        node.meta["val"] = value
        self.calls.of_parameters.add(node)
        return node

    def _value(self, x: Any) -> Any:
        return self.calls.value(x) if isinstance(x, fx.Node) else x

    # -- pairs of calls

    def _dequantised(self, node: fx.Node) -> None:
        """Replace the dequantised weights of a call by constants."""
        if node not in self.calls.found:
            return
        for key, x in zip(("weight", "bias"), node.args[1:3], strict=False):
            if isinstance(x, fx.Node) and operator_name(x).startswith("quantized_decomposed::dequantize_per_"):
                value = self.calls.value(x)
                if key == "weight":
                    self.scales[id(value)] = self._scale(node, x)
                node.args = tuple(self._constant(node, key, value) if y is x else y for y in node.args)

    def _scale(self, node: fx.Node, x: fx.Node) -> Tensor:
        given = bound_arguments(x)
        keys = ("scales", "zero_points") if "scales" in given else ("scale", "zero_point")
        weight, scale, zero = (torch.as_tensor(self._value(given[key])) for key in ("input", *keys))
        if weight.dtype != torch.int8 or zero.any():
            raise Refused(
                f"its weights must be int8 and symmetric, with zero point 0, got {weight.dtype} and {zero.max()}"
            )
        if node.target not in _WITH_BIAS or (scale.dim() and given.get("axis", 0) != 0):
            raise Refused("its weights must be of a convolution or linear layer, with a scale of each output")
        return scale.flatten().float().expand(len(weight)).clone()

    def _paired(self, node: fx.Node) -> None:
        """Write a quantising call and the dequantising ones behind it as one call, or as an equal one."""
        name = operator_name(node).removeprefix("quantized_decomposed::")
        if name.startswith("choose_qparams") or "per_token" in name:
            raise Refused("activations must have a constant scale, got dynamic quantisation")
        if not name.startswith("quantize_per_"):
            return
        if name != "quantize_per_tensor":
            raise Refused("activations must have one scale for all channels")
        scale, zero, least, most, _ = given = self._settings(node)
        if any(
            not operator_name(x).endswith("::dequantize_per_tensor") or self._settings(x) != given for x in node.users
        ):
            raise Refused(f"integers must be dequantised with scale, zero point and dtype of this call, {given}")
        if (most - least + 1) & (most - least) or not 1 <= most - least <= 255:
            raise Refused(f"activations must be integers with a power of two of values, got {least} to {most}")
        if not scale > 0 or not least <= zero <= most:
            raise Refused(f"its scale must be positive and its zero point one of the integers, got {scale} and {zero}")
        source: Any = node.args[0]
        args = source, scale, zero, least, most
        found = next((x for x in source.users if x.target is _QUANTISE and x.args == args), None)
        found = found or self._call(node, _QUANTISE, *args)
        for reader in list(node.users):
            reader.replace_all_uses_with(found)

    def _settings(self, node: fx.Node) -> tuple[Any, ...]:
        """Return scale, zero point, least and largest integer, and dtype."""
        given = bound_arguments(node)
        values = [given[key] for key in ("scale", "zero_point", "quant_min", "quant_max", "dtype")]
        if any(isinstance(x, fx.Node) and x not in self.calls.of_parameters for x in values):
            raise Refused("activations must have a constant scale, got dynamic quantisation")
        return tuple(x.item() if isinstance(x, Tensor) else x for x in map(self._value, values))

    def _ends(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield what reads a value, behind calls that move it."""
        for user in node.users:
            yield from self._ends(user) if user.target in _MOVES and user.users else (user,)

    def _without_relu(self, node: fx.Node) -> None:
        """Leave out a ReLU whose values are quantised: the least integer stands for 0."""
        if node.target not in _RELUS or node not in self.behind:
            return
        low, high = (bound_arguments(node)[x] if isinstance(x, str) else x for x in _RELUS[node.target])
        ends = [*self._ends(node)]
        if low != 0 or any(end.target is not _QUANTISE or end not in self.before for end in ends):
            return
        for end in ends:
            args: Any = end.args
            source, scale, zero, least, most = args
            if high is not None and round(high / scale) + zero < most:
                raise Refused(
                    f"the largest integer must stand for no more than its bound, {high}, got {scale * (most - zero)}; "
                    "quantise the network with data that reach it"
                )
            if (most - zero + 1) & (most - zero):
                raise Refused(f"the zero point behind a ReLU must be the least integer {least}, got {zero}")
            end.args = source, scale, 0, 0, most - zero
        before: Any = node.args[0]
        node.replace_all_uses_with(before)
        self.graph.erase_node(node)

    # -- zero points

    def _without_zero_point(self, node: fx.Node) -> None:
        """Move a zero point into biases: those of what drives the neurons, and of what reads their spikes."""
        read = [x for x in node.all_input_nodes if x in self.values]
        if node.target is _QUANTISE and node in self.before:
            self._quantised(node)
        elif node in self.calls.found and node in self.before:
            self._weighted(node)
        elif read and node.target in _MOVES:
            self.values[node] = self.values[read[0]]
        elif read and node.target in _AVERAGES:
            given, known = bound_arguments(node), self.values[read[0]]
            padding = given.get("padding") or 0
            if known.shift and padding not in (0, [0], [0, 0], [0, 0, 0]):
                raise Refused("its padding must be 0 if the zero point of its input is not the least integer")
            if known.averaged or given.get("divisor_override") is not None:
                raise Refused("its input must be quantised, and its divisor_override None")
            self.values[node] = known._replace(averaged=True)
        else:
            for x in read:
                if node in self.before and self.values[x].averaged:
                    raise Refused("its input must be quantised, got averages that are not")
                if shift := self.values[x].shift:  # it reads what the quantised network has
                    if node in self.before and node.target not in (*_RELUS, aten.add.Tensor):
                        raise Refused("the zero point of its input must be the least integer")
                    node.replace_input_with(x, self._call(node, aten.sub.Tensor, x, shift))

    def _quantised(self, node: fx.Node) -> None:
        args: Any = node.args
        x, scale, zero, least, most = args
        code, shift = Code(float(scale), (most - least).bit_length()), float(scale) * (zero - least)
        known = self.values.get(x)
        if known is None and x not in self.behind:
            self._encoded(node, code, shift)
            return
        if known is not None and known[:2] != (code, shift):
            if known.averaged:
                raise Refused(
                    f"average pooling must keep scale and zero point, got scales {known.code.scale} and {scale}; give "
                    "its input and its output one observer"
                )
            self._add(node, x, shift - known.shift)
        elif known is None:
            self._add(node, x, shift)
        elif not known.averaged:
            node.replace_all_uses_with(x)
            self.graph.erase_node(node)
            return
        node.args, node.meta["code"] = (node.args[0], scale, 0, 0, most - least), code
        self.values[node] = Integers(code, shift)

    def _encoded(self, node: fx.Node, code: Code, shift: float) -> fx.Node:
        """Encode the network's input, behind the call that quantises it."""
        readers = list(node.users)
        x = self._call(node.next, aten.add.Tensor, node, shift) if shift else node
        encoded = self._call(x.next, _QUANTISE, x, code.scale, 0, 0, 2**code.bits - 1)
        for reader in readers:
            reader.replace_input_with(node, encoded)
        encoded.meta["code"], self.inputs[encoded], self.values[encoded] = code, node, Integers(code, shift)
        return encoded

    def _add(self, reader: fx.Node, x: Any, number: float) -> None:
        """Let a call read x + number."""
        once = len(x.users) == 1
        if not number:
            return
        if once and x in self.calls.found and x.target in _WITH_BIAS:
            self._bias(x, number)
        elif once and x.target in _MOVES and x not in self.values:
            self._add(x, x.args[0], number)
        elif once and x.target is aten.sub.Tensor and isinstance(x.args[1], float):
            x.args = x.args[0], x.args[1] - number
        elif once and x.target is aten.add.Tensor and len(x.all_input_nodes) == 2:
            self._add(x, max(x.all_input_nodes, key=lambda y: y in self.calls.found), number)
        else:
            reader.replace_input_with(x, self._call(reader, aten.add.Tensor, x, number))

    def _bias(self, node: fx.Node, more: float | Tensor) -> None:
        """Add numbers to the bias of a weight call, in double precision."""
        weight = self._value(node.args[1])
        bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device) + more
        if len(node.args) > 2 and node.args[2] is not None:
            bias += self._value(node.args[2])
        node.args = (*node.args[:2], self._constant(node, "bias", bias.to(weight)), *node.args[3:])

    def _weighted(self, node: fx.Node) -> None:
        x = next(x for x in node.all_input_nodes if x not in self.calls.of_parameters)
        known = self.values.get(x)
        if (known is None and x in self.behind) or (known is not None and known.averaged):
            raise Refused("its input must be quantised, got real numbers")
        if known is None or not known.shift:
            return
        zero = round(known.shift / known.code.scale)
        if node.target not in _WITH_BIAS:
            raise Refused(f"the zero point of its input must be the least integer, got {zero} more")
        padding = bound_arguments(node).get("padding", [0])
        if any(padding) and x not in self.inputs:
            raise Refused(
                "padding must be 0 if the zero point of its input is not the least integer (padding has no spikes), "
                f"got {list(padding)} and {zero} more than the least; behind a ReLU it is the least"
            )
        if any(padding):  # the network's input is padded before it is quantised
            size, quantise = node.meta["val"].dim() - 2, self.inputs[x]
            sides = [side for p in reversed([*padding] * (size // len(padding))) for side in (p, p)]
            wide = self._call(quantise, aten.constant_pad_nd.default, quantise.args[0], sides)
            x = self._encoded(self._call(quantise, _QUANTISE, wide, *quantise.args[1:]), known.code, known.shift)
            node.args = (x, *node.args[1:4], [0] * size, *node.args[5:])
        self._bias(node, -known.shift * self._value(node.args[1]).double().flatten(1).sum(1))

    def _of_real_values(self, node: fx.Node) -> None:
        """Write a call that quantises real values as PyTorch computes it."""
        if node.target is _QUANTISE and "code" not in node.meta:
            args: Any = node.args
            x, scale, zero, least, most = args
            steps: Any = (aten.mul.Tensor, 1 / scale), (aten.round.default,), (aten.add.Tensor, zero)
            steps += (aten.clamp.default, least, most), (aten.sub.Tensor, zero), (aten.mul.Tensor, scale)
            for target, *args in steps:
                x = self._call(node, target, x, *args)
            node.replace_all_uses_with(x)


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
