"""The rule of quantised activations, and the graph that it needs: unsigned integers, whose zero point is 0.

PT2E writes a quantised value as quantise(x), dequantise(q), for the numbers scale * (q - zero). :func:`unsigned` makes
one call of each pair, ``aten.fake_quantize_per_tensor_affine``, and moves zero points into biases: radix spikes stand
for scale * q, and what reads them subtracts scale * zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ...nn import Encode
from ..call import Call
from ..graph import Graph
from ..nodes import word_of
from ..quantised_ann import operator_name
from ..values import Branch, Current, Pooled, Real, Train
from ..weights import WeightCalls, bound_arguments
from ..writer import Analogue
from . import rules_for

aten = torch.ops.aten
_FAKE = aten.fake_quantize_per_tensor_affine.default
_Q = "quantized_decomposed"
_MOVES = {
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.amax.default,
    aten.adaptive_max_pool2d.default, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
    aten._unsafe_view.default, aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten.dropout.default, aten.feature_dropout.default, aten.clone.default, aten.alias.default,
    aten.detach.default, aten.contiguous.default, aten.slice.Tensor, aten.select.int, aten.narrow.default,
    aten.permute.default, aten.transpose.int, aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
    aten.channel_shuffle.default, aten.upsample_nearest2d.vec,
}  # fmt: skip
"""Calls that select and move values, so that they give the same result before and after quantisation."""
_AVERAGES = {
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.mean.dim,
}  # fmt: skip
_RELUS = {
    aten.relu.default: (None, None), aten.relu6.default: (0, 6.0), aten.hardtanh.default: ("min_val", "max_val"),
    aten.clamp.default: ("min", "max"), aten.clamp_min.default: ("min", None),
}  # fmt: skip
_WITH_BIAS = {aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}


class Code(NamedTuple):
    """What radix spikes stand for: scale * q, with q from 0 to 2^bits - 1."""

    scale: float
    bits: int

    @property
    def most(self) -> int:
        """The largest integer."""
        return 2**self.bits - 1


class Integers(NamedTuple):
    """Radix spikes in the rewritten graph. The quantised network has their values less ``shift``."""

    code: Code
    shift: float
    averaged: bool = False
    """Whether they are averages of integers, which are not rounded yet."""


class Refused(ValueError):
    """Says why a call has no exact spiking form."""


@rules_for(_FAKE)
def _quantise(call: Call) -> Any:
    code: Code | None = call.node.meta.get("code")
    if code is None:
        raise Analogue("it has no rule")
    writer, source = call._writer, call.source
    x = writer.value(source)
    if isinstance(x, Real):
        if x.analogue:
            raise Analogue("it quantises a value that has no spiking form")
        largest = code.most * code.scale
        share = writer.graph.call_function(aten.div.Scalar, (x.node, largest))
        share = writer.graph.call_function(aten.clamp.default, (share, 0, 1))
        name = writer.named("encode", Encode(writer.options.time_steps, "radix", largest))
        return Train(writer.graph.call_module(name, (share,)), call.shape)
    x = call.input
    if isinstance(x, Pooled):  # whose neurons round the averages to integers of the same code
        return writer.pooled(x, "neurons")
    if isinstance(x, Train):
        x = Current([Branch(x)])
    return writer.write_neurons(call.node, x, level=code.scale * 2**code.bits)


def unsigned(graph: Graph) -> dict[int, Tensor]:
    """Rewrite the graph of a quantised network to unsigned activations.

    Returns:
        The scales [O] of the outputs of each quantised weight, by the id of the constant that holds the weight.

    Raises:
        ValueError: a part of the network has no exact spiking form. The message lists all of them.
    """
    return _Rewriting(graph).done()


class _Rewriting:
    def __init__(self, graph: Graph) -> None:
        self.source, self.graph, self.calls = graph, graph.graph, WeightCalls(graph)
        self.problems: list[str] = []
        self.scales: dict[int, Tensor] = {}
        self.values: dict[fx.Node, Integers] = {}
        self.padded: dict[tuple[Any, ...], fx.Node] = {}
        self.inputs: dict[fx.Node, fx.Node] = {}
        """By the nodes of encoded values, the calls that quantise them."""

    def done(self) -> dict[int, Tensor]:
        """Rewrite the graph, and return the scales of weights."""
        self._each(self._constants, list(self.graph.nodes))
        self._each(self._pair, list(self.graph.nodes))
        self._clean()
        self.calls = WeightCalls(self.source)
        self.before, self.behind = self._leading(), self._following()
        if not any(node.target is _FAKE and node in self.before for node in self.graph.nodes):
            self.problems.append("a weight layer must read quantised activations, but there is none")
        self._each(self._merged, list(self.graph.nodes))
        self._each(self._without_relu, list(self.graph.nodes))
        self._each(self._without_zero_point, list(self.graph.nodes))
        self._each(self._on_real_values, list(self.graph.nodes))
        self._clean()
        codes = {node.name: node.meta["code"].bits for node in self.graph.nodes if "code" in node.meta}
        if len({*codes.values()}) > 1:
            found = ", ".join(f"{name}: {bits}" for name, bits in codes.items())
            self.problems.append(
                f"activations must have the same number of bits, since they are spikes of the same time steps, got {found}; "
                "signed integers lose one bit behind a ReLU, so choose unsigned ones (uint8)"
            )
        refuse(self.problems)
        return self.scales

    def _each(self, step: Any, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            try:
                step(node)
            except Refused as error:
                self.problems.append(f"{node.name} ({word_of(node.target)}): {error}")

    def _clean(self) -> None:
        self.graph.eliminate_dead_code()
        for node in [n for n in self.graph.nodes if n.op == "get_attr" and not n.users]:
            self.graph.erase_node(node)
        self.graph.lint()

    def _leading(self) -> set[fx.Node]:
        """Return the nodes that lead to a weight layer."""
        found: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if any(user in found or user in self.calls.found for user in node.users):
                found.add(node)
        return found

    def _following(self) -> set[fx.Node]:
        """Return the weight layers and the nodes that depend on them."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node in self.calls.found or any(x in found for x in node.all_input_nodes):
                found.add(node)
        return found

    # -- nodes

    def _call(self, before: fx.Node, target: Any, *args: Any) -> fx.Node:
        """Insert a call."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args)
        known: Any = fx.node.map_arg(args, lambda x: x.meta["val"])
        node.meta["val"] = target(*known) if target is aten.constant_pad_nd.default else known[0]
        return node

    def _constant(self, before: fx.Node, layer: fx.Node, key: str, value: Tensor) -> fx.Node:
        """Insert a constant, named after the module that made a call."""
        path = [path for path, _ in (layer.meta.get("nn_module_stack") or {}).values()][-1:]
        base = name = f"{path[0] if path and path[0] else f'_constant.{layer.name}'}.quantised_{key}"
        while name in self.source.constants:
            name = f"{base}_{len(self.source.constants)}"
        self.source.constants[name] = value
        with self.graph.inserting_before(before):
            node = self.graph.create_node("get_attr", name)
        node.meta["val"] = value
        return node

    # -- quantised weights

    def _constants(self, node: fx.Node) -> None:
        """Replace the dequantised weights of a call by constants."""
        if node not in self.calls.found:
            return
        for key, x in (("weight", node.args[1]), *([("bias", node.args[2])] if len(node.args) > 2 else [])):
            if not isinstance(x, fx.Node) or not operator_name(x).startswith(f"{_Q}::dequantize_per_"):
                continue
            value = self.calls.value(x)
            constant = self._constant(node, node, key, value)
            node.replace_input_with(x, constant)
            if key == "weight":
                self.scales[id(value)] = self._scale(node, x)

    def _scale(self, node: fx.Node, x: fx.Node) -> Tensor:
        given = bound_arguments(x)
        weight, scale, zero = (
            self.calls.value(y) if isinstance(y := given[key], fx.Node) else torch.as_tensor(y)
            for key in ("input", *(("scales", "zero_points") if "scales" in given else ("scale", "zero_point")))
        )
        if weight.dtype != torch.int8:
            raise Refused(f"its weights must be int8, got {weight.dtype}")
        if zero is not None and zero.any():
            raise Refused("its weights must be symmetric, with zero point 0, got another")
        if node.target not in _WITH_BIAS or (scale.dim() and given["axis"] != 0):
            raise Refused("its weights must be of a convolution or linear layer, with a scale of each output")
        return scale.flatten().float().expand(len(weight)).clone()

    # -- quantised activations

    def _pair(self, node: fx.Node) -> None:
        """Write a quantising call and the dequantising ones behind it as one call."""
        name = operator_name(node)
        if name.startswith((f"{_Q}::choose_qparams", f"{_Q}::quantize_per_token")):
            raise Refused("activations must have a constant scale, got dynamic quantisation")
        if not name.startswith(f"{_Q}::quantize_per_"):
            return
        if name != f"{_Q}::quantize_per_tensor":
            raise Refused("activations must have one scale for all channels")
        scale, zero, least, most, dtype = given = self._settings(node)
        readers = list(node.users)
        if not all(operator_name(x) == f"{_Q}::dequantize_per_tensor" and self._settings(x) == given for x in readers):
            raise Refused(f"integers must be dequantised with scale, zero point and dtype of this call, {given}")
        levels = most - least + 1
        if levels & (levels - 1) or not 2 <= levels <= 256:
            raise Refused(f"activations must be integers with a power of two of values, got {least} to {most}")
        if not scale > 0 or not least <= zero <= most:
            raise Refused(f"its scale must be positive and its zero point one of the integers, got {scale} and {zero}")
        fake = self._call(node, _FAKE, node.args[0], scale, zero, least, most)
        for reader in readers:
            reader.replace_all_uses_with(fake)

    def _settings(self, node: fx.Node) -> tuple[Any, ...]:
        """Return scale, zero point, least and largest integer, and dtype."""
        given = bound_arguments(node)
        values = [given[key] for key in ("scale", "zero_point", "quant_min", "quant_max", "dtype")]
        for i, x in enumerate(values):
            if isinstance(x, fx.Node):
                if x not in self.calls.of_parameters:
                    raise Refused("activations must have a constant scale, got dynamic quantisation")
                values[i] = self.calls.value(x).item()
        return tuple(values)

    def _merged(self, node: fx.Node) -> None:
        """Let equal calls on one value be one call."""
        if node.target is not _FAKE:
            return
        source: Any = node.args[0]
        first = next(x for x in source.users if x.target is _FAKE and x.args == node.args)
        if first is not node:
            node.replace_all_uses_with(first)
            self.graph.erase_node(node)

    def _ends(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield what reads a value, behind calls that move it."""
        for user in node.users:
            yield from self._ends(user) if user.target in _MOVES and user.users else (user,)

    def _without_relu(self, node: fx.Node) -> None:
        """Leave out a ReLU whose values are quantised: the least integer stands for 0."""
        if node.target not in _RELUS or node not in self.behind or node not in self.before:
            return
        low, high = (bound_arguments(node)[x] if isinstance(x, str) else x for x in _RELUS[node.target])
        ends = [*self._ends(node)]
        if low not in (0, None) or (low is None and high is not None):
            return
        if not all(end.target is _FAKE and end in self.before for end in ends):
            return
        for end in ends:
            source, scale, zero, least, most = end.args
            if high is not None and round(high / scale) + zero < most:
                raise Refused(
                    f"the largest integer must stand for no more than its bound {high}, got {scale * (most - zero)}; "
                    "quantise the network with data that reach it"
                )
            if (most - zero + 1) & (most - zero):
                raise Refused(f"the zero point behind a ReLU must be the least integer {least}, got {zero}")
            end.args = source, scale, 0, 0, most - zero
        node.replace_all_uses_with(node.args[0])

    # -- zero points

    def _without_zero_point(self, node: fx.Node) -> None:
        if node.target is _FAKE and node in self.before:
            return self._quantised(node)
        if node in self.calls.found:
            return self._weighted(node)
        read = [x for x in node.all_input_nodes if x in self.values]
        if not read:
            return None
        x = self.values[read[0]]
        if node.target in _MOVES:
            self.values[node] = x
        elif node.target in _AVERAGES:
            given = bound_arguments(node)
            padding = given.get("padding") or 0
            if x.shift and padding and any(padding if isinstance(padding, (list, tuple)) else (padding,)):
                raise Refused("padding of average pooling must be 0, since the zero point of its input is not the least")
            if given.get("divisor_override") is not None:
                raise Refused("average pooling must have no divisor_override")
            self.values[node] = x._replace(averaged=True)
        elif node.target in _RELUS and not x.shift and len(node.users) and node.target is aten.relu.default:
            self.values[node] = x
        else:
            for value in read:
                self._subtracted(node, value)
        return None

    def _subtracted(self, node: fx.Node, x: fx.Node) -> None:
        """Let a call read the values that the quantised network has."""
        if shift := self.values[x].shift:
            node.replace_input_with(x, self._call(node, aten.sub.Tensor, x, shift))

    def _quantised(self, node: fx.Node) -> None:
        x, scale, zero, least, most = node.args
        code = Code(float(scale), (most - least + 1).bit_length() - 1)
        shift = float(scale) * (zero - least)
        known = self.values.get(x)
        if known is not None and known.averaged and (known.code, known.shift) != (code, shift):
            raise Refused(
                f"average pooling must keep scale and zero point, got {known.code.scale} and {code.scale}; "
                "give its input and its output one observer"
            )
        if known is not None and (known.code, known.shift) == (code, shift):
            if known.averaged:
                node.args, node.meta["code"] = (x, scale, 0, 0, code.most), code
                self.values[node] = known._replace(averaged=False)
            else:
                node.replace_all_uses_with(x)
            return
        if known is None and x not in self.behind:
            self.values[self._encoded(node, code, shift)] = Integers(code, shift)
            return
        if known is not None:
            self._subtracted(node, x)
        if shift and not self._added(node, node.args[0], shift):
            node.args = (self._call(node, aten.add.Tensor, node.args[0], shift), *node.args[1:])
        node.args, node.meta["code"] = (node.args[0], scale, 0, 0, code.most), code
        self.values[node] = Integers(code, shift)

    def _encoded(self, node: fx.Node, code: Code, shift: float) -> fx.Node:
        """Encode the network's input, behind the call that quantises it."""
        readers = list(node.users)
        x = self._call(node.next, aten.add.Tensor, node, shift) if shift else node
        encoded = self._call(x.next, _FAKE, x, code.scale, 0, 0, code.most)
        encoded.meta["code"] = code
        self.inputs[encoded] = node
        for reader in readers:
            reader.replace_input_with(node, encoded)
        return encoded

    def _added(self, node: fx.Node, x: Any, number: float) -> bool:
        """Add a number to the bias that a value has; return whether it has one. ``node``: the only reader."""
        if len(x.users) != 1:
            return False
        if x in self.calls.found and x.target in _WITH_BIAS:
            size = self.calls.value(x.args[1]).shape[0]
            self._bias(x, torch.full([size], number, dtype=torch.float64))
            return True
        if x.target in _MOVES:
            return self._added(node, x.args[0], number)
        if x.target is aten.add.Tensor:
            return any(self._added(node, y, number) for y in x.args if isinstance(y, fx.Node))
        return False

    def _bias(self, node: fx.Node, more: Tensor) -> None:
        """Add numbers, in double precision, to the bias of a weight call."""
        given = node.args[2] if len(node.args) > 2 else None
        like = self.calls.value(node.args[1])
        bias = more if given is None else more.to(like.device) + self.calls.value(given).double()
        constant = self._constant(node, node, "bias", bias.to(like))
        self.calls.of_parameters.add(constant)
        node.args = (*node.args[:2], constant, *node.args[3:])

    def _on_real_values(self, node: fx.Node) -> None:
        """Write what stays a call on real values as PyTorch computes it."""
        if node.target is not _FAKE or "code" in node.meta:
            return
        x, scale, zero, least, most = node.args
        steps = (aten.mul.Tensor, 1 / scale), (aten.round.default,), (aten.add.Tensor, zero)
        for target, *args in (*steps, (aten.clamp.default, least, most), (aten.sub.Tensor, zero), (aten.mul.Tensor, scale)):
            x = self._call(node, target, x, *args)
        node.replace_all_uses_with(x)

    def _weighted(self, node: fx.Node) -> None:
        x = next(x for x in node.all_input_nodes if x not in self.calls.of_parameters)
        known = self.values.get(x)
        if known is None:
            if x in self.behind and node in self.before:
                raise Refused("its input must be quantised, got real numbers")
            return
        if known.averaged and node in self.before:
            raise Refused("its input must be quantised, got averages that are not")
        if not known.shift:
            return
        if node not in self.before:
            return self._subtracted(node, x)
        if node.target not in _WITH_BIAS:
            raise Refused(f"the zero point of its input must be the least integer, got {known.shift / known.code.scale:g} more")
        padding = bound_arguments(node).get("padding", [0])
        if any(padding):
            x = self._padded(node, x, padding)
        weight: Any = node.args[1]
        total = self.calls.value(weight).double().flatten(1).sum(1)
        self._bias(node, -known.shift * total)

    def _padded(self, node: fx.Node, x: fx.Node, padding: Any) -> fx.Node:
        """Pad the network's input before it is quantised: padding that stands for 0 is no 0 of the spikes."""
        known = self.values[x]
        if x not in self.inputs:
            raise Refused(
                "padding must be 0 if the zero point of its input is not the least integer (padding has no spikes), got "
                f"{list(padding)} and a zero point {known.shift / known.code.scale:g} above it; behind a ReLU it is the least"
            )
        size = len(x.meta["val"].shape) - 2
        sides = [side for p in reversed([*padding] * (size if len(padding) == 1 else 1)) for side in (p, p)]
        if (key := (x, *sides)) not in self.padded:
            fake = self.inputs[x]
            wide = self._call(fake, aten.constant_pad_nd.default, fake.args[0], sides)
            again = self._call(fake, _FAKE, wide, *fake.args[1:])
            self.padded[key] = self._encoded(again, known.code, known.shift)
        arguments = list(node.args)
        arguments[0], arguments[4] = self.padded[key], [0] * size
        node.args = tuple(arguments)
        return self.padded[key]


def refuse(problems: list[str]) -> None:
    """Raise a ValueError that names all parts of a network without an exact spiking form."""
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"from_quantised: every part of model must have a spiking form; these have none:{lines}")
