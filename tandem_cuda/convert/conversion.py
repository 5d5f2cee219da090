"""The conversion itself: one pass over the ANN's graph that writes the SNN's graph."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from .advice import (
    AFTER_ALL,
    COUNTED,
    CURVED,
    EXAMPLE,
    FUNCTION_ADVICE,
    GATES,
    NORMALISED,
    NORMALISING,
    NOTHING_ELSE,
    NUMBER,
    NUMBERED,
    RECTIFYING,
    UNCOUNTED,
    WEIGHT_FUNCTIONS,
    Problem,
    advice_against,
    advice_for,
    hooked,
    rectified,
    refusal,
)
from .aliases import sharing, writes
from .call import Call
from .constants import constant_of, is_constant
from .example import sized_as_traced
from .gates import gated
from .nodes import (
    asks_for_size,
    closure,
    dropout_of,
    full_name,
    leading_to,
    module_of,
    overridden_methods,
    owner_of,
    parametrized,
    scope_of,
    word_of,
)
from .options import Options
from .proxy_types import NUMBERS, class_of
from .record import Record
from .rules import applied, relu_rule, rule_for
from .trace import Traced
from .values import SPIKES, UNKNOWN, Branch, Broken, Current, Pooled, Real, Shape, Size, Sizes, Train
from .weight_rules import Unconvertible, WeightRule
from .writer import Writer, name_of
from .writer import flattened_to as flattened_to  # the name in pickles of version 0.2

_IN_PLACE_ADVICE = "write out of place: its input is used again later"
_PARTS = {operator.getitem, getattr, torch._assert, torch.cat, torch.concat, torch.concatenate}
"""Functions whose first argument may be the result of a call that returns no tensor."""


class Conversion:
    """One pass over the ANN's graph that writes the SNN's graph."""

    def __init__(self, trace: Traced, options: Options, spiking: set[fx.Node] | None = None) -> None:
        self.trace, self.ann = trace, trace.root
        self.spiking = spiking
        """The nodes up to and including the activations of the layers that are to spike; None for all that can."""
        self.nodes = list(trace.graph.nodes)
        self.problems: list[Problem] = []
        self.writer = Writer(trace, options, spiking is not None)
        self.values, self.tainted, self.value = self.writer.values, self.writer.tainted, self.writer.value
        self.gates = self.writer.gates
        self.refused_gates = {} if options.gates else gated(self.nodes, self.ann)
        """The nodes that compute a gate and are refused, each with the product that is reported in its place."""
        self.reported_products: set[fx.Node] = set()
        self.copies: dict[fx.Node, Any] = {}
        """The ANN's nodes that the SNN has as they are, beside their spikes."""
        self.before, self.last = self._order()
        for node in self.nodes:
            if not self.tainted.isdisjoint(node.all_input_nodes):
                self.tainted.add(node)
            self.values[node] = self._converted(node)
        self._check_hooks()
        self._check_parameters()

    def _check_hooks(self) -> None:
        """Report code that would no longer be called: hooks and overridden methods of the ANN and its modules."""
        if why := _bypassed(self.ann):
            self.problems.append(Problem(type(self.ann).__name__, type(self.ann).__name__, "", why, why))
        for node in self.nodes:
            if node.op == "call_module" and node not in self.tainted:
                module = module_of(self.ann, node)
                if (why := _bypassed(module)) and not any(x is module for x in self.writer.modules.values()):
                    self._problem(node, why)

    def _check_parameters(self) -> None:
        """Report rules after which one twin lacks a parameter or buffer of the other.

        Nothing is checked if there are problems: the graph is then incomplete.
        """
        if self.problems:
            return
        modules = {name: module for name, module in self.writer.modules.items() if isinstance(module, nn.Module)}
        held = {id(x) for module in modules.values() for x in module.parameters()}
        held |= {id(getattr(*owner_of(self.ann, name))) for name in self.writer.constants}
        needed = leading_to(self.nodes[-1:])
        for node in self.nodes:
            module = module_of(self.ann, node) if node in needed else None
            if module is not None and not all(id(x) in held for x in module.parameters()):
                self._problem(node, "its rule must put its parameters into the spiking twin, to train them there")
        own = {id(x) for x in self.ann.state_dict(keep_vars=True).values()}
        own |= {id(getattr(modules[layer.name], "log_threshold", None)) for layer in self.writer.layers}
        why = "build it from parameters and buffers of the ANN: both twins have the ANN's state_dict"
        for name, module in modules.items():
            if not all(id(x) in own for x in module.state_dict(keep_vars=True).values()):
                kind = type(module).__name__
                self.problems.append(Problem(kind, f"{name} ({kind})", name, why, why))

    def written(self) -> fx.GraphModule:
        """Return the SNN.

        Raises:
            ValueError: parts of the ANN cannot be converted; the message lists all of them.
        """
        if self.problems:
            raise ValueError(refusal(self.problems))
        if not self.writer.layers:
            raise ValueError("convert: ann must have a weight layer and a ReLU before its last weight layer, got none")
        for node in reversed(self.writer.graph.nodes):  # numbers that a rule has read, and constants that are weights
            is_number = class_of(node) in NUMBERS
            computes = node.op in ("call_function", "call_method") and is_constant(node)
            if not node.users and (node.op == "get_attr" or is_number or computes):
                self.writer.graph.erase_node(node)
        self.writer.graph.lint()
        return fx.GraphModule(self.writer.modules, self.writer.graph, "SpikingTwin")

    def record(self) -> Record:
        """Return what a report of the conversion needs."""
        products = {origin.node for origin in self.writer.origins}
        gates = [node for node, product in self.gates.items() if product.name in products]
        modules = [name_of(node) for node in self.nodes if node in gates and node.op == "call_module"]
        gate_names, constants = modules or [node.name for node in gates], sorted(self.writer.constants)
        return Record(tuple(self.writer.origins), gates=tuple(gate_names), constants=tuple(constants))

    def _order(self) -> tuple[set[fx.Node], set[fx.Node]]:
        """Return the nodes that lead to a weight layer, and the last weight layers, which stay as they are."""
        before: set[fx.Node] = set()
        if self.spiking is not None:
            return self.spiking, set()
        last = set()
        for node in reversed(self.nodes):
            if any(user in before or self._is_weight(user) for user in node.users):
                before.add(node)
            elif self._is_weight(node):
                last.add(node)
        return before, last

    def _joins_numbers(self, node: fx.Node) -> bool:
        """Whether a node concatenates spikes and real numbers for the last weight layers, which read numbers."""
        if node.target not in (torch.cat, torch.concat, torch.concatenate):
            return False
        numbers = any(isinstance(self.value(x), Real) and not is_constant(x) for x in node.all_input_nodes)
        after = closure([node], lambda other: other.users) if numbers else ()
        return numbers and all(other in self.last for other in after if self._is_weight(other))

    def _has_weights(self, node: fx.Node) -> bool:
        return isinstance(rule_for(node, self.ann), WeightRule)

    def _is_weight(self, node: fx.Node) -> bool:
        return node not in self.gates and self._has_weights(node)

    # -- one node

    def _converted(self, node: fx.Node) -> Any:
        self.writer.now = node
        try:
            try:
                return self._value(node)
            except Unconvertible as refused:
                needed = node in self.before and not self._joins_numbers(node)
                if needed or refused.node is not None or str(refused) == EXAMPLE:
                    raise
                return self._copied(node)  # no weight layer follows that needs spikes
        except Unconvertible as refused:
            first = node.args[0] if node.args else None
            if node.target in _PARTS and isinstance(first, fx.Node) and isinstance(self.values[first], Broken):
                return self.values[first]  # its problem has been reported
            unknown = any(self.value(x) is UNKNOWN for x in node.all_input_nodes)
            if node in self.tainted and (unknown or str(refused) == COUNTED):
                return self._broken(node)  # because of a substitute
            if refused.node is None or refused.node is node:
                return self._problem(node, str(refused), why_all=refused.why_all)
            if refused.node not in self.tainted:
                self._problem(refused.node, str(refused), why_all=refused.why_all)
            self.tainted.add(node)
            return Broken(self._unknown_current(node)) if self._has_weights(node) else self._broken(node)

    def _value(self, node: fx.Node) -> Any:
        if self.spiking is not None and node not in self.spiking and node.op != "placeholder":
            return self._copied(node)
        if node.op == "call_module" and node.target in self.trace.failures:
            return self._problem(node, self.trace.failures[str(node.target)])
        if self._overwrites(node):
            return self._problem(node, _IN_PLACE_ADVICE)
        if node in self.gates and not self._selects(node):
            return self._copied(node)
        if node in self.refused_gates.values() and not self.tainted.isdisjoint(node.all_input_nodes):
            return self._problem(node, GATES)  # whatever else is refused
        rule = rule_for(node, self.ann)
        if isinstance(rule, WeightRule):
            return self._weight(node)
        unknown = rule is None or node.target in WEIGHT_FUNCTIONS
        if unknown and node in self.before and (why := self._weightless(node)):
            # It would have become a layer.
            dims = getattr(self.value(node.all_input_nodes[0]), "dims", None) if node.all_input_nodes else None
            return self._problem(node, why, self.writer.stand_in(dims=dims))
        if node.op == "placeholder" and self.writer.options.mode == "spikes":
            return Train(self.writer.graph.node_copy(node), dims=self.writer.dims_of(node))
        if node.target is sized_as_traced and isinstance(x := self.value(node.all_input_nodes[0]), Train):
            return replace(x, node=self.writer.graph.node_copy(node, lambda placeholder: self.value(placeholder).node))
        real = [isinstance(self.value(x), Real) for x in node.all_input_nodes]
        if node.op == "output" or all(real) or (node not in self.before and any(real)):
            return self._copied(node)
        return applied(self._unknown if rule is None else rule, Call(self.writer, node))

    def _selects(self, node: fx.Node) -> bool:
        """Whether a node takes a part of something that is no tensor."""
        first = node.args[0] if node.args else None
        is_part = node.target is operator.getitem and isinstance(first, fx.Node)
        return is_part and not isinstance(self.value(first), (*SPIKES, Real))  # type: ignore[arg-type]

    def _weightless(self, node: fx.Node) -> str | None:
        """Return the advice for a convolution or weight function that has no rule."""
        if (module := module_of(self.ann, node)) is not None:
            return advice_for(module) if isinstance(module, nn.modules.conv._ConvNd) else None
        why = WEIGHT_FUNCTIONS.get(node.target)
        constants = all(constant_of(x, self.ann) is not None for x in node.all_input_nodes[1:])
        if why is not None and constants and rule_for(node, self.ann) is not None:
            return None
        owner = self._owner(node)
        if why is None or not isinstance(owner, (nn.modules.conv._ConvNd, nn.Linear)):
            return why
        kind = type(owner).__name__
        return f"{why}, or register a WeightRule for {kind} if it computes the same"

    def _unknown(self, call: Call) -> Any:
        """Report a call that has no rule, and return a substitute so that later problems are found, too."""
        node = call.node
        if node not in self.before:
            return self._copied(node)
        for argument in node.all_input_nodes:
            if why := advice_against(self.value(argument)):
                raise Unconvertible(why)
        x = call.input
        if node.op != "call_module":
            why = FUNCTION_ADVICE.get(node.target, NOTHING_ELSE)
            kind = self._owner_kind(node) if why in RECTIFYING else None
            problem = self._problem(node, why if kind is None else rectified(kind, RECTIFYING[why]))
            if why == NORMALISED:
                return x
            return self.writer.stand_in(x.channels, x.dims) if why in RECTIFYING else problem
        if getattr(call.module, "return_indices", False):
            raise Unconvertible("set return_indices=False: the position of the maximum differs between time steps")
        problem = self._problem(node, advice_for(call.module))
        if isinstance(call.module, CURVED):  # as if it were a ReLU
            return self.writer.stand_in(x.channels, x.dims)
        return x if isinstance(call.module, NORMALISING) else problem

    def _owner(self, node: fx.Node) -> nn.Module:
        """Return the module whose forward contains a node."""
        path = scope_of(node, self.ann)
        return self.ann.get_submodule(path) if path in self.writer.names else self.ann

    def _owner_kind(self, node: fx.Node) -> str | None:
        """Return the class of the module whose forward contains a node; None if that forward does more."""
        owner, path = self._owner(node), scope_of(node, self.ann)
        alone = all(other.target == node.target for other in self.nodes if scope_of(other, self.ann) == path)
        if owner is self.ann or not alone or len([*owner.modules()]) > 1 or len([*owner.parameters()]):
            return None
        return full_name(type(owner))

    def _weight(self, node: fx.Node) -> Any:
        if node in self.last:
            return self._copied(node)
        module = module_of(self.ann, node)
        if (len(node.args), len(node.kwargs)) not in ((1, 0), (0, 1)):
            return self._problem(node, "call it with its input alone", self.writer.stand_in())
        if why := _bypassed(module):
            return self._problem(node, why, self._unknown_current(node))
        if not all(_is_shareable(parametrizations) for _, parametrizations in parametrized(module)):
            why = "remove the parametrization of its weight: only that of quantise can be shared"
            return self._problem(node, why, self._unknown_current(node))
        argument = node.all_input_nodes[0]
        x = self.value(argument)
        if isinstance(x, Real):
            encoded = Train(self.writer.encoded_input(x.node), dims=self.writer.dims_of(argument))
            return Current([Branch(encoded, str(node.target), module, encoded=True)])
        if isinstance(x, Pooled):
            x = self.writer.pooled(x, "windows" if x.folds_into(module) else "neurons")
        elif not isinstance(x, (Train, Current)):
            return self._problem(node, NOTHING_ELSE, self._unknown_current(node))
        train = self.writer.train(argument) if isinstance(x, Current) else x
        is_linear = isinstance(module, nn.Linear)
        train = self.writer.by_feature(argument, train) if is_linear else self.writer.by_channel(train, True)
        return Current([Branch(train, str(node.target), module)])

    def _unknown_current(self, node: fx.Node) -> Current:
        return Current([Branch(self.writer.stand_in(), str(node.target), module_of(self.ann, node))])

    # -- writing the graph

    def _copied(self, node: fx.Node) -> Any:
        """Copy the node unchanged, decoding its spike-train inputs."""
        for argument in node.all_input_nodes:
            if not isinstance(x := self.value(argument), (*SPIKES, Real, Size, Shape, Sizes)):
                return self._problem(node, advice_against(x) or NOTHING_ELSE, Real(self.writer.stand_in().node))
        if (module := module_of(self.ann, node)) is not None:
            name = str(node.target)
            if self.writer.modules.get(name, module) is not module:  # it runs twice, the first time as a spiking layer
                name = self.writer.named(name, module)
            self.writer.modules[name] = module
            copied = self.writer.graph.node_copy(node, self._real)
            copied.target = name
            if isinstance(module, nn.Linear):
                self._innermost(copied, node.all_input_nodes[0])
            return Real(copied)
        if (dropout := dropout_of(node)) is not None:
            (x, *_) = node.all_input_nodes
            return Real(self.writer.graph.call_module(self.writer.named(node.name, dropout), (self._real(x),)))
        if node.op == "get_attr":
            owner, key = owner_of(self.ann, str(node.target))
            self.writer.modules[str(node.target)] = getattr(owner, key)
        return Real(self.writer.graph.node_copy(node, self._real))

    def _innermost(self, copied: fx.Node, argument: fx.Node) -> None:
        """Let a linear layer read lines or images in order: otherwise torch rounds differently in frozen networks."""
        x = self.value(argument)
        if isinstance(x, Train) and not x.features and x.dims not in (2, None):
            (real,) = copied.all_input_nodes
            with self.writer.graph.inserting_before(copied):
                copied.replace_input_with(real, self.writer.graph.call_method("contiguous", (real,)))

    def _real(self, node: fx.Node) -> Any:
        x = self.value(node)
        if isinstance(x, Size):
            return self._size(x)
        if isinstance(x, Sizes):
            return tuple(map(self._size, x.sizes))
        if isinstance(x, Shape):
            return self._shape(x.of)
        if isinstance(x, Current) and x.is_fixed:
            if node not in self.copies:  # the ANN's call, of decoded spikes, needs no neurons
                self.copies[node] = self._copied(node)
            return self.copies[node].node
        if isinstance(x, Current):
            x = self.writer.train(node)
        return self.writer.decoded(x).node

    def _shape(self, node: fx.Node | None) -> fx.Node:
        """Write the shape of a node's value."""
        assert node is not None
        return self.writer.graph.call_function(getattr, (self._real(node), "shape"))

    def _size(self, x: Size) -> Any:
        """Write a product of sizes."""
        product: Any = x.number
        for dim, of in zip(x.dims, x.of, strict=True):
            if dim == 0:  # an input has as many samples
                placeholder = next(node for node in self.nodes if node.op == "placeholder")
                shape = self.writer.graph.call_function(getattr, (self.value(placeholder).node, "shape"))
            else:
                shape = self._shape(of)
            size = self.writer.graph.call_function(operator.getitem, (shape, dim))
            product = size if product == 1 else self.writer.graph.call_function(operator.mul, (product, size))
        return product

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether the node writes in place to memory that is read again later, by whatever name.

        In the SNN such a write has no effect, except on real values, which layers may read after the write.
        """
        if not writes(self.ann, node) or not node.args or not isinstance(node.args[0], fx.Node):
            return False
        written = node.args[0]
        x = self.value(written)
        if isinstance(x, (Train, Pooled)) and not x.signed and rule_for(node, self.ann) is relu_rule:
            return False  # ReLU does not change spikes
        shared = sharing(self.ann, written, node, self.values)
        values = [self.value(alias) for alias in shared]
        if any(isinstance(value, Real) and value.node in self.writer.encoded for value in values):
            return True
        if all(isinstance(value, Real) for value in values):
            return False  # the ANN's order is kept
        order = {other: i for i, other in enumerate(self.nodes)}
        return any(order[user] > order[node] for alias in shared for user in alias.users)

    # -- reporting problems

    def _problem(self, node: fx.Node, why: str, instead: Any = None, why_all: str | None = None) -> Broken:
        """Record a problem, and return ``instead`` to go on with: by default the first input that is not real."""
        where = node
        product = node if node in self.refused_gates.values() else self.refused_gates.get(node)
        if product is not None and why != _IN_PLACE_ADVICE:  # gates that stay analogue have no other problems
            where, why_all = product, None
            why = GATES
        elif why == NOTHING_ELSE and self.writer.options.mode == "spikes":
            why = AFTER_ALL
        elif why == NUMBER and self.trace.example is None:
            why = NUMBERED
        elif why == COUNTED and self.trace.example is None:
            why = UNCOUNTED
        if where not in self.reported_products:
            kind, scope = word_of(where.target), scope_of(where, self.ann)
            name, place = f"{where.name} ({kind} in forward of {scope})", f"{where.name} in {scope}"
            if (module := module_of(self.ann, where)) is not None:
                kind, place = type(module).__name__, str(where.target)
                name = f"{place} ({kind})"
            self.problems.append(Problem(kind, name, place, why, why_all or why))
        self.tainted.update((node, where))
        if product is not None:
            self.reported_products.add(where)
        return self._broken(node, instead)

    def _broken(self, node: fx.Node, instead: Any = None) -> Broken:
        """Return a broken value with a substitute, by default the first input that is not real."""
        inputs = [self.value(x) for x in node.all_input_nodes]
        if instead is None:
            instead = next((x for x in inputs if isinstance(x, SPIKES)), None)
        if asks_for_size(node) or (instead is None and any(isinstance(x, (Size, Shape, Sizes)) for x in inputs)):
            instead = UNKNOWN
        return Broken(self.writer.stand_in() if instead is None else instead)


def _bypassed(module: nn.Module) -> str:
    """Return the advice for a module with code that the spiking twin would not call; "" if it has none."""
    if why := hooked(module):
        return why
    names = overridden_methods(module)
    deleted = " and ".join(f"del module.{name}" for name in names)
    return f"remove what its instance overrides ({deleted}): nothing calls it in the spiking twin" if names else ""


def _is_shareable(parametrizations: Any) -> bool:
    """Whether two layers can both hold these parametrizations of one parameter.

    Parametrizations with a ``right_inverse`` cannot be shared: registering them changes the parameter.
    """
    return parametrizations.is_tensor and not any(hasattr(x, "right_inverse") for x in parametrizations)


def converted(trace: Traced, options: Options) -> Conversion:
    """Convert all layers, or only the first ``options.spiking_layers``; where problems leave fewer, report these."""
    whole, count = Conversion(trace, options), options.spiking_layers
    total = len(whole.writer.layers)
    if count is None:
        return whole
    if count < total or (count == total and whole.problems):
        if not options.calibrated:
            raise ValueError(
                f"convert: calibrate must be given with spiking_layers={count} of {total} (the ANN after them expects "
                "activations, not counts), got None"
            )
        return Conversion(trace, options, leading_to(layer.node for layer in whole.writer.layers[:count]))
    if count > total and not whole.problems:
        raise ValueError(f"convert: spiking_layers must be at most {total}, all that the ANN has, got {count}")
    return whole
