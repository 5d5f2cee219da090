"""The conversion itself: one pass over the ANN's graph that writes the SNN's graph."""

from __future__ import annotations

import operator
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_unflatten

from .call import Call
from .comparison import AnalogueCall, Record
from .functional import VIEWS
from .graph import Graph
from .nodes import leading_to
from .rules import RULES
from .values import SPIKES, Analogue, Branch, Current, Grouped, Options, Pieces, Pooled, Real, Train
from .weights import macs
from .writer import NeededWhole, Writer

aten = torch.ops.aten
_MOVES = {
    aten.sym_size.int, operator.getitem, operator.mul, operator.add, operator.floordiv, *VIEWS, aten.cat.default,
    aten.stack.default, aten.clone.default, aten.roll.default, aten.pad.default, aten.flip.default, aten.repeat.default,
    aten.slice_scatter.default, aten.select_scatter.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
    aten.zeros.default, aten.zeros_like.default, aten.ones.default, aten.full.default, aten.arange.default,
    aten.index_select.default, aten.gather.default, aten.constant_pad_nd.default, aten.expand.default,
}  # fmt: skip
"""Calls that move or drop values, or make constants: of real values, they compute nothing that a report should name."""


_SIZES = (aten.sym_size.int, operator.getitem, operator.mul, operator.add, operator.floordiv)


class Conversion:
    """One pass over the ANN's graph that writes the SNN's graph.

    Args:
        source: the graph of the ANN.
        options: what ``convert`` was asked for.
        spiking: the nodes up to and including the activations of the layers that are to spike; None for all that can.
        encoded: the batch norms whose whole output becomes spikes, before it is split.
    """

    def __init__(
        self,
        source: Graph,
        options: Options,
        spiking: set[fx.Node] | None = None,
        encoded: Collection[fx.Node] = (),
    ) -> None:
        self.source, self.ann, self.options, self.spiking = source, source.ann, options, spiking
        self.nodes, self.encoded = list(source.graph.nodes), encoded
        self.writer = Writer(source, options)
        self.values, self.calls = self.writer.values, self.writer.calls
        self.analogue: list[AnalogueCall] = []
        self.before = self._before()
        self.whole = self._whole_modules()
        inside = {x for _, _, nodes in self.whole.values() for x in nodes}
        for node in self.nodes:
            if node not in inside:
                self.values[node] = self._output(node) if node.op == "output" else self._converted(node)
            if node in encoded:
                self.writer.spikes(node)

    def _before(self) -> set[fx.Node]:
        """Return the nodes that lead to a weight layer."""
        if self.spiking is not None:
            return self.spiking
        before: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if any(user in before or user in self.calls.found for user in node.users):
                before.add(node)
        return before

    def _whole_modules(self) -> dict[fx.Node, tuple[fx.Node, str, list[fx.Node]]]:
        """Return the last node of each call of a module whose level is known.

        For each its input, the module's name, and the nodes before it.
        """
        found: dict[str, list[fx.Node]] = {}
        for node in self.nodes:
            for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
                if path in self.options.levels:
                    found.setdefault(key, []).append(node)
        whole = {}
        for nodes in found.values():
            inside = {*nodes}
            inputs = {x for n in nodes for x in n.all_input_nodes} - inside - self.calls.of_parameters
            outputs = [n for n in nodes if any(user not in inside for user in n.users)]
            if len(inputs) == 1 and len(outputs) == 1:
                stack = nodes[0].meta["nn_module_stack"].values()
                path = next(path for path, _ in stack if path in self.options.levels)
                whole[outputs[0]] = inputs.pop(), path, [n for n in nodes if n is not outputs[0]]
        return whole

    def _read_by(self, nodes: list[fx.Node]) -> set[str]:
        """Return the names of the ANN's tensors that calls read, such as the threshold of an activation."""
        inputs = {x for node in nodes for x in node.all_input_nodes} & self.calls.of_parameters
        return {str(leaf.target) for x in inputs for leaf in self.calls.leaves(x)}

    def _converted(self, node: fx.Node) -> Any:
        if node in self.whole:
            source, path, inside = self.whole[node]
            if isinstance(x := self.values[source], SPIKES):
                bound, level = self.options.levels[path]
                with suppress(Analogue):
                    neurons = self.writer.write_neurons(node, x, bound=bound, level=level)
                    self.writer.constants |= self._read_by([*inside, node])
                    return neurons
            for inner in inside:
                self.values[inner] = self._converted(inner)
        if node.op == "placeholder":
            copied = self.writer.graph.node_copy(node)
            copied.meta = {}
            if self.options.mode == "spikes":
                return Train(copied, self.writer.shape(node))
            return Real(copied)
        if node in self.calls.of_parameters or (self.spiking is not None and node not in self.spiking):
            return self._real(node)
        if node in self.calls.found:
            return self._weight(node)
        spiking = any(isinstance(self.values[x], (*SPIKES, Grouped, Pieces)) for x in node.all_input_nodes)
        spiking = spiking or "code" in node.meta  # of quantised networks, whose real input becomes spikes
        if not spiking or node.target is aten.sym_size.int:
            return self._real(node)
        if node.target is operator.getitem:
            x = self.values[node.all_input_nodes[0]]
            return self._tried(node, lambda: x.take(node)) if isinstance(x, Pieces) else self._real(node)
        rule = RULES.get(node.target)
        if rule is None:
            return self._real(node, "it has no rule")
        return self._tried(node, lambda: rule(Call(self.writer, node)))

    def _tried(self, node: fx.Node, rule: Any) -> Any:
        try:
            x = rule()
        except Analogue as why:
            return self._real(node, str(why))
        if not isinstance(x, (*SPIKES, Pieces, Grouped, Real)):
            raise TypeError(
                "convert: a rule must return the result of a method of its call, got "
                f"{type(x).__name__} from the rule of {node.target}"
            )
        return x

    def _weight(self, node: fx.Node) -> Any:
        call = self.calls.found[node]
        x = self.values[call.input]
        if isinstance(x, Real) and not x.analogue:
            if node not in self.before:
                return self._real(node)
            train = self.writer.encoded_input(call.input)
            if self.options.mode == "radix":
                self.writer.read[node] = train
            return Current([Branch(train, call.name, call.layer, encoded=True)])
        is_linear = isinstance(call.layer, nn.Linear)
        of_weights = isinstance(x, Current) and any(branch.layer is not None for branch in x.branches)
        if node not in self.before and not (of_weights or isinstance(x, (Real, Grouped, Pieces))):
            return self._real(node)  # the last weight layer reads decoded spikes, or their averages
        try:
            if isinstance(x, Pooled) and x.folds_into(call.layer) and node in self.before:
                train = self.writer.pooled(x, "windows")
            else:
                shape = self.writer.shape(call.input)
                train = self.writer.spikes(call.input, features=is_linear and len(shape) > 1)
        except Analogue as why:
            return self._real(node, str(why))
        self.writer.read[node] = train
        if node not in self.before:
            return self._real(node)
        return Current([Branch(train, call.name, call.layer)])

    def _real(self, node: fx.Node, why: str = "its input is real") -> Real:
        """Compute a call on real values; note it if it is between weight layers, and more than a move."""
        inputs = [self.values[x] for x in node.all_input_nodes]
        is_weight = node in self.calls.found
        analogue = is_weight or any(not isinstance(x, Real) or x.analogue for x in inputs)
        analogue = analogue and node not in self.calls.of_parameters
        # A move of real values computes nothing; one that spikes cannot follow makes them real.
        moves = node.target in _SIZES or (node.target in _MOVES and all(isinstance(x, Real) for x in inputs))
        if analogue and not is_weight and self.spiking is None and node in self.before and not moves:
            stack = [*(node.meta.get("nn_module_stack") or {}).values()]
            place = str(stack[-1][0]) if stack else ""
            self.analogue.append(AnalogueCall(node.name, self.writer.word(node), place, why))
        return Real(self.writer.real_of_call(node), analogue)

    def _share(self) -> float:
        """Return the share of the multiply-accumulates that spikes carry."""
        spikes = sum(macs(node, self.calls.found[node].layer) for node in self.writer.read)
        every = sum(macs(node, call.layer) for node, call in self.calls.found.items())
        every += sum(macs(node) for node in self.nodes if node not in self.calls.found)
        return spikes / every if every else 0.0

    def _output(self, node: fx.Node) -> Any:
        """Return what forward returns in eval mode, and what it returns in training if that is more."""
        specs: list[Any] = [self.source.out_spec, self.source.training.out_spec]
        returned: Any = node.args[0]
        results = [
            _plain(tree_unflatten([self.writer.real(x) if isinstance(x, fx.Node) else x for x in flat], spec))
            for flat, spec in zip(returned, specs, strict=False)
        ]
        self.writer.graph.output(tuple(results))
        return None

    def written(self) -> fx.GraphModule:
        """Return the SNN.

        Raises:
            ValueError: no layer spikes; or calls have no spiking form, and ``analogue=False``.
        """
        if not self.writer.layers:
            raise ValueError(
                "convert: ann must have a weight layer whose output another weight layer reads, got "
                f"{len(self.calls.found)} weight layers"
            )
        if self.analogue and not self.options.analogue:
            lines = [
                f"{call.what} ({call.name}{f' in {call.place}' if call.place else ''}): {call.why}"
                for call in self.analogue
            ]
            raise ValueError(
                "convert: ann must have a spiking form for each call with analogue=False, but these have none:\n  "
                + "\n  ".join(lines)
            )
        graph = self.writer.graph
        for node in reversed(graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                graph.erase_node(node)
        graph.lint()
        used = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
        modules = {name: x for name, x in self.writer.modules.items() if name in used}
        self.writer.keep(used)
        return fx.GraphModule(modules, graph, "SpikingTwin")

    def record(self) -> Record:
        """Return what a report of the conversion needs."""
        return Record(
            tuple(self.writer.origins),
            inputs=self.source.inputs,
            analogue=tuple(self.analogue),
            constants=tuple(sorted(self.writer.constants)),
            spiking_macs=self._share(),
            notes=self.source.training.notes,
            outputs=(self.source.out_spec, self.source.training.out_spec),
        )


def _plain(x: Any) -> Any:
    """Return a structure with tuples in place of named tuples, whose names generated code does not know."""
    if isinstance(x, (tuple, list)):
        return (list if isinstance(x, list) else tuple)(map(_plain, x))
    return {key: _plain(part) for key, part in x.items()} if isinstance(x, dict) else x


def converted(source: Graph, options: Options) -> Conversion:
    """Convert all layers, or only the first ``options.spiking_layers``."""
    whole, count = _of_all_layers(source, options), options.spiking_layers
    total = len(whole.writer.layers)
    if count is None or count == total:
        return whole
    if count > total:
        raise ValueError(f"convert: spiking_layers must be at most {total}, all that the ANN has, got {count}")
    if not options.calibrated:
        raise ValueError(
            f"convert: calibrate must be given with spiking_layers={count} of {total} (the ANN after them expects "
            "activations, not counts), got None"
        )
    return Conversion(source, options, leading_to(layer.node for layer in whole.writer.layers[:count]), whole.encoded)


def _of_all_layers(source: Graph, options: Options, encoded: Collection[fx.Node] = ()) -> Conversion:
    try:
        return Conversion(source, options, encoded=encoded)
    except NeededWhole as norm:
        return _of_all_layers(source, options, {*encoded, norm.node})
