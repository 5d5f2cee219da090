"""The conversion itself: one pass over the ANN's graph that writes the SNN's graph."""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from ..neuron import IF, Neuron
from ..nn import (
    Decode,
    Encode,
    SpikeCat,
    SpikeRearrange,
    SpikeWindows,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    TandemAdd,
    TandemElementwise,
    TandemGate,
)
from ..nn.learned_threshold import new_log_threshold
from ..nn.wiring import Wiring
from ..spike_train import SpikeTrain
from .advice import (
    AFTER_ALL,
    COUNTED,
    CURVED,
    EXAMPLE,
    FUNCTION_ADVICE,
    GATES,
    NEGATIVE,
    NORMALISED,
    NORMALISING,
    NOTHING_ELSE,
    RECTIFIED,
    RECTIFYING,
    WEIGHT_FUNCTIONS,
    Problem,
    advice_for,
    hooked,
    listed,
)
from .gates import gated
from .nodes import (
    VIEWS,
    asks_for_size,
    dropout_of,
    kept,
    kind_of,
    leading_to,
    name_in_ann,
    overridden_methods,
    owner_of,
    parametrized,
    scope_of,
    word_of,
)
from .pixels import Pixels
from .record import Origin, Record
from .rules import Call, Unconvertible, WeightRule, advice_against, applied, fire, rule_for, weights_of
from .values import Branch, Broken, Current, Pooled, Real, Shape, Size, Sizes, Source, Train

_VIEWS = {
    *("view", "view_as", "reshape", "flatten", "unflatten", "contiguous", "transpose", "permute", "movedim", "narrow"),
    *("getitem", "chunk", "split", "squeeze", "unsqueeze", "expand", "expand_as", "detach", "select", "unbind", "t"),
    *("swapaxes", "swapdims", "moveaxis", "ravel", "tensor_split", "diagonal", "unfold", "getattr"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    *("float", "double", "to", "type"),
}
"""Functions and methods that may return the memory of their first argument."""
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow}

_IN_PLACE_ADVICE = "write out of place: its input is used again later"
_PARTS = {operator.getitem, getattr, torch._assert, torch.cat, torch.concat, torch.concatenate}
"""Of calls that return something other than a tensor, the functions that use it as their first argument."""
_UNKNOWN_SIZE = Size(1, (1,), (None,))
"""Goes on for a size that cannot be told."""


class Conversion:
    """One pass over the ANN's graph that writes the SNN's graph."""

    def __init__(
        self,
        ann: nn.Module,
        graph: fx.Graph,
        time_steps: int,
        mode: str,
        neuron: Neuron,
        engine: str,
        scaled: bool,
        learn_thresholds: bool,
        gates: bool = False,
        per_channel: bool = False,
        sizes: Mapping[fx.Node, torch.Size] = MappingProxyType({}),
        spiking: set[fx.Node] | None = None,
    ) -> None:
        self.ann = ann
        self.sizes = sizes
        """The sizes of the ANN's tensors for an example of its inputs; empty without one."""
        self.spiking = spiking
        """The nodes up to and including the activations of the layers that are to spike; None for all that can."""
        self.nodes = list(graph.nodes)
        self.pixels = Pixels(self.nodes, ann)
        self.time_steps, self.mode, self.neuron, self.engine, self.scaled = time_steps, mode, neuron, engine, scaled
        self.learn_thresholds, self.per_channel = learn_thresholds, per_channel
        self.graph = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.names = {name for name, _ in ann.named_modules()}
        self.values: dict[fx.Node, Any] = {}
        self.encoded: dict[fx.Node, fx.Node] = {}
        self.decoded: dict[fx.Node, fx.Node] = {}
        self.problems: list[Problem] = []
        self.tainted: set[fx.Node] = set()
        """Nodes that cannot be converted, and all nodes that depend on them."""
        self.neurons: list[tuple[fx.Node, str]] = []
        """The ANN's activations, each with the name of the spiking layer that replaces it."""
        self.pools: list[tuple[fx.Node, str, str | None]] = []
        """Average poolings with neurons: ANN node, name in the SNN, layer whose level scales the input."""
        self.unmeasured: set[str] = set()
        """Those of signed values, whose positive and negative parts are averaged apart: no node of the ANN has them."""
        self.signed: set[str] = set()
        """The spiking layers with neurons for both signs."""
        self.bounds: dict[str, float] = {}
        """The spiking layers that replace a bounded activation, and the bound."""
        self.origins: list[Origin] = []
        """What each module that replaces something of the ANN comes from."""
        self.targets: dict[str, tuple[fx.Node, int]] = {}
        """Of spiking layers, the ANN's node for the values of all neurons, with or without ReLU, and their number of
        channels."""
        self.readers: list[tuple[Any, tuple[Source, ...]]] = []
        """Modules that multiply the channels that they read by different weights of a spike, and their sources."""
        self.cats: list[tuple[Any, list[str | None]]] = []
        """Concatenations of trains whose spikes differ in weight, and the level of each input."""
        self.like = next(ann.parameters(), torch.empty(0))
        """For the device and dtype of constants."""
        found = gated(self.nodes, ann)
        self.gates = found if gates else {}
        """The nodes that compute a gate from spikes, and stay as they are."""
        self.refused_gates = {} if gates else found
        """The same if they are refused: each with the product that is reported in its place."""
        self.refused: set[fx.Node] = set()
        """The products among them that have been reported."""
        self.now: fx.Node | None = None
        """The node that is being converted."""
        self.before, self.last = self._order()
        for node in self.nodes:
            if not self.tainted.isdisjoint(node.all_input_nodes):
                self.tainted.add(node)
            self.values[node] = self._converted(node)
        self._check_hooks()
        self._check_parameters()

    def _check_hooks(self) -> None:
        """Report code that would no longer be called: hooks of the ANN, hooks and own methods of replaced modules."""
        if why := _bypassed(self.ann):
            self.problems.append(Problem(type(self.ann).__name__, type(self.ann).__name__, "", why, why))
        for node in self.nodes:
            if node.op == "call_module" and node not in self.tainted:
                module = self.ann.get_submodule(str(node.target))
                if (why := _bypassed(module)) and not any(x is module for x in self.modules.values()):
                    self._problem(node, why)

    def _check_parameters(self) -> None:
        """Report rules that leave the twins without some of each other's parameters or buffers.

        Skipped where there are problems already, since the graph is then incomplete.
        """
        if self.problems:
            return
        modules = {name: module for name, module in self.modules.items() if isinstance(module, nn.Module)}
        held = {id(x) for module in modules.values() for x in module.parameters()}
        needed = leading_to(self.nodes[-1:])
        for node in self.nodes:
            if node.op == "call_module" and node in needed:
                module = self.ann.get_submodule(str(node.target))
                if not all(id(x) in held for x in module.parameters()):
                    self._problem(node, "its rule must put its parameters into the spiking twin, to train them there")
        own = {id(x) for x in self.ann.state_dict(keep_vars=True).values()}
        own |= {id(getattr(modules[name], "log_threshold", None)) for _, name in self.neurons}
        why = "build it from parameters and buffers of the ANN: both twins have the ANN's state_dict"
        for name, module in modules.items():
            if not all(id(x) in own for x in module.state_dict(keep_vars=True).values()):
                kind = type(module).__name__
                self.problems.append(Problem(kind, f"{name} ({kind})", name, why, why))

    def value(self, node: fx.Node) -> Any:
        """Return what the node is in the SNN, or the substitute for a node that cannot be converted."""
        x = self.values[node]
        return x.instead if isinstance(x, Broken) else x

    def written(self) -> fx.GraphModule:
        """Return the SNN.

        Raises:
            ValueError: parts of the ANN cannot be converted; the message lists all of them.
        """
        if self.problems:
            lines = "\n".join(listed(self.problems))
            raise ValueError(f"convert: every part of ann must be convertible; these are not:\n{lines}")
        if not self.neurons:
            raise ValueError("convert: ann must have a weight layer and a ReLU before its last weight layer, got none")
        self.graph.lint()
        return fx.GraphModule(self.modules, self.graph, "SpikingTwin")

    def record(self) -> Record:
        """Return what a report of the conversion needs."""
        products = {origin.node for origin in self.origins}
        gates = [node for node, product in self.gates.items() if product.name in products]
        modules = [_name_of(node) for node in self.nodes if node in gates and node.op == "call_module"]
        return Record(tuple(self.origins), gates=tuple(modules or [node.name for node in gates]))

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

    def _is_weight(self, node: fx.Node) -> bool:
        return node not in self.gates and isinstance(rule_for(node, self.ann), WeightRule)

    # -- one node

    def _converted(self, node: fx.Node) -> Any:
        self.now = node
        try:
            try:
                return self._value(node)
            except Unconvertible as refused:
                if node in self.before or refused.node is not None or str(refused) == EXAMPLE:
                    raise
                return self._copied(node, node.name, dropout_of(node))  # no weight layer follows that needs spikes
        except Unconvertible as refused:
            first = node.args[0] if node.args else None
            if node.target in _PARTS and isinstance(first, fx.Node) and isinstance(self.values[first], Broken):
                return self.values[first]  # its problem has been reported
            if node in self.tainted and (str(refused) == COUNTED or self._reads_unknown_size(node)):
                return self._broken(node)  # because of a substitute
            if refused.node is None or refused.node is node:
                return self._problem(node, str(refused), why_all=refused.why_all)
            if refused.node not in self.tainted:
                self._problem(refused.node, str(refused), why_all=refused.why_all)
            self.tainted.add(node)
            if isinstance(rule_for(node, self.ann), WeightRule):
                return Broken(self._unknown_current(node, self.ann.get_submodule(str(node.target))))
            return self._broken(node)

    def _value(self, node: fx.Node) -> Any:
        if self.spiking is not None and node not in self.spiking and node.op != "placeholder":
            return self._copied(node, node.name, dropout_of(node))
        if self._overwrites(node):
            return self._problem(node, _IN_PLACE_ADVICE)
        if node in self.gates and not self._selects(node):
            return self._copied(node, node.name, dropout_of(node))
        rule = rule_for(node, self.ann)
        if isinstance(rule, WeightRule):
            return self._weight(node, rule)
        if rule is None and node in self.before and (why := self._weightless(node)):
            # It would have been a layer of its own.
            dims = getattr(self.value(node.all_input_nodes[0]), "dims", None) if node.all_input_nodes else None
            return self._problem(node, why, Train(self._stand_in(), dims=dims))
        if node.op == "placeholder" and self.mode == "spikes":
            return Train(self.graph.node_copy(node))
        real = [isinstance(self.value(x), Real) for x in node.all_input_nodes]
        if node.op == "output" or all(real) or (node not in self.before and any(real)):
            return self._copied(node, node.name, dropout_of(node))
        return applied(self._unknown if rule is None else rule, Call(self, node))

    def _selects(self, node: fx.Node) -> bool:
        """Whether a node takes a part of what is no tensor."""
        first = node.args[0] if node.args else None
        is_part = node.target is operator.getitem and isinstance(first, fx.Node)
        return is_part and not isinstance(self.value(first), (Real, Train, Pooled, Current))  # type: ignore[arg-type]

    def _weightless(self, node: fx.Node) -> str | None:
        """Return the advice for a convolution or weight function that has no rule."""
        if node.op == "call_module":
            module = self.ann.get_submodule(str(node.target))
            return advice_for(module) if isinstance(module, nn.modules.conv._ConvNd) else None
        why = WEIGHT_FUNCTIONS.get(node.target)
        owner = self._owner(node)
        if why is None or not isinstance(owner, (nn.modules.conv._ConvNd, nn.Linear)):
            return why
        kind = type(owner).__name__
        return f"{why}, or register a WeightRule for {kind} if it computes the same"

    def _unknown(self, call: Call) -> Any:
        """Report a call that has no rule, and return a substitute so that later problems are found, too."""
        node = call.node
        if node not in self.before:
            return self._copied(node, node.name, dropout_of(node))
        for argument in node.all_input_nodes:
            if why := advice_against(self.value(argument)):
                raise Unconvertible(why)
        x = call.input
        if node.op != "call_module":
            why = FUNCTION_ADVICE.get(node.target, NOTHING_ELSE)
            kind = self._owner_kind(node) if why == RECTIFYING else None
            problem = self._problem(node, why if kind is None else RECTIFIED.format(kind=kind))
            if why == NORMALISED:
                return x
            return self._like(x) if why == RECTIFYING else problem
        if getattr(call.module, "return_indices", False):
            raise Unconvertible("set return_indices=False: the position of the maximum differs between time steps")
        problem = self._problem(node, advice_for(call.module))
        if isinstance(call.module, CURVED):  # as if it were a ReLU
            return self._like(x)
        return x if isinstance(call.module, NORMALISING) else problem

    def _like(self, x: Any) -> Train:
        return Train(self._stand_in(), channels=x.channels, dims=x.dims)

    def _owner(self, node: fx.Node) -> nn.Module:
        """Return the module whose forward contains a node."""
        path = scope_of(node, self.ann)
        return self.ann.get_submodule(path) if path in self.names else self.ann

    def _owner_kind(self, node: fx.Node) -> str | None:
        """Return the class of the module whose forward contains a node, if it does nothing but that; else None."""
        owner, path = self._owner(node), scope_of(node, self.ann)
        alone = all(other.target == node.target for other in self.nodes if scope_of(other, self.ann) == path)
        if owner is self.ann or not alone or len([*owner.modules()]) > 1 or len([*owner.parameters()]):
            return None
        return f"{type(owner).__module__}.{type(owner).__qualname__}".removeprefix("__main__.")

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a node does not depend on the network's input."""
        return all(other.op != "placeholder" for other in leading_to([node]))

    def _weight(self, node: fx.Node, rule: WeightRule) -> Any:
        module = self.ann.get_submodule(str(node.target))
        argument = node.all_input_nodes[0]
        if (len(node.args), len(node.kwargs)) not in ((1, 0), (0, 1)) and node not in self.last:
            return self._problem(node, "call it with its input alone", Train(self._stand_in()))
        if (why := _bypassed(module)) and node not in self.last:
            return self._problem(node, why, self._unknown_current(node, module))
        x = self.value(argument)
        if node in self.last:
            return self._copied(node)
        if not all(_is_shareable(parametrizations) for _, parametrizations in parametrized(module)):
            why = "remove the parametrization of its weight: only that of quantise can be shared"
            return self._problem(node, why, self._unknown_current(node, module))
        if isinstance(x, Real):
            return Current([Branch(Train(self._encode(x.node)), str(node.target), module, encoded=True)])
        if isinstance(x, Pooled):
            x = self._pooled(x, "windows" if x.folds_into(module) else "neurons")
        elif not isinstance(x, (Train, Current)):
            return self._problem(node, NOTHING_ELSE, self._unknown_current(node, module))
        return Current([Branch(self.train(argument) if isinstance(x, Current) else x, str(node.target), module)])

    def _unknown_current(self, node: fx.Node, module: nn.Module) -> Current:
        return Current([Branch(Train(self._stand_in()), str(node.target), module)])

    def train(self, node: fx.Node) -> Train:
        """Return the node's value as a spike train. What has no ReLU gets neurons for both signs."""
        x = self.value(node)
        if isinstance(x, Current):
            x = self.values[node] = self.fired(node, x, signed=not _is_positive(x))
        return self.spikes(x)

    # -- writing the graph

    def _copied(self, node: fx.Node, name: str | None = None, module: nn.Module | None = None) -> Any:
        """Copy the node unchanged, decoding its spike-train inputs."""
        for argument in node.all_input_nodes:
            if not isinstance(x := self.value(argument), (Real, Train, Pooled, Current, Size, Shape, Sizes)):
                return self._problem(node, advice_against(x) or NOTHING_ELSE, Real(self._stand_in()))
        if node.op == "call_module":
            module, name = self.ann.get_submodule(str(node.target)), str(node.target)
            if self.modules.get(name, module) is not module:  # it runs twice, the first time as a spiking layer
                name = self._named(name, module)
            self.modules[name] = module
            copied = self.graph.node_copy(node, self._real)
            copied.target = name
            return Real(copied)
        if module is not None:
            (x, *_) = node.all_input_nodes
            return Real(self.graph.call_module(self._named(str(name), module), (self._real(x),)))
        if node.op == "get_attr":
            owner, key = owner_of(self.ann, str(node.target))
            self.modules[str(node.target)] = getattr(owner, key)
        return Real(self.graph.node_copy(node, self._real))

    def _real(self, node: fx.Node) -> Any:
        x = self.value(node)
        if isinstance(x, Size):
            return self._size(x)
        if isinstance(x, Sizes):
            return tuple(map(self._size, x.sizes))
        if isinstance(x, Shape):
            return self._shape(x.of)
        if isinstance(x, Current):
            x = self.train(node)
        return self._decoded(x).node

    def _shape(self, of: fx.Node | None) -> fx.Node:
        """Write the shape of a value of the ANN."""
        assert of is not None
        return self.graph.call_function(getattr, (self._real(of), "shape"))

    def _size(self, x: Size) -> Any:
        """Write a product of sizes."""
        product: Any = x.number
        for dim, of in zip(x.dims, x.of, strict=True):
            if dim == 0:  # an input has as many samples
                given = next(node for node in self.nodes if node.op == "placeholder")
                shape = self.graph.call_function(getattr, (self.value(given).node, "shape"))
            else:
                shape = self._shape(of)
            size = self.graph.call_function(operator.getitem, (shape, dim))
            product = size if product == 1 else self.graph.call_function(operator.mul, (product, size))
        return product

    def _decoded(self, x: Any) -> Any:
        if isinstance(x, Real):
            return x
        if isinstance(x, Pooled):
            return self._pooled(x, "real")
        if x.node not in self.decoded:
            decode = Decode(x.signed)
            self.reads(decode, x)
            name = self._named("decode", decode)
            real = self.graph.call_module(name, (x.node,))
            if self.spiking is not None:  # the rest of the ANN may write in place or take views
                real = self.graph.call_method("clone", (real,), {"memory_format": torch.contiguous_format})
            self.decoded[x.node] = real
        return Real(self.decoded[x.node])

    def _pooled(self, x: Pooled, form: str) -> Any:
        """Write an average as "real" mean of counts, as "neurons", or as the spikes of its "windows" side by side."""
        if form not in x.made:
            pool: Any = x.module
            if form == "real":
                x.made[form] = self.called(self._decoded(x.source), x.node, pool)
            elif form == "windows":
                windows = SpikeWindows(pool.kernel_size, pool.stride, pool.padding, pool.divisor_override)
                x.made[form] = replace(self.called(self.spikes(x.source), x.node, windows), copies=windows.size)
            else:
                train = self.called(self.spikes(x.source), x.node, _spiking_pool(pool, self.neuron, self.engine))
                if train.sources is None:
                    name = str(train.node.target)
                    self.pools.append((x.node, name, train.level))
                    if train.signed:
                        self.unmeasured.add(name)
                    train = replace(train, level=name)
                x.made[form] = train
        if form not in x.done:
            x.done[form] = x.made[form]
            for step in x.then:
                x.done[form] = step(x.done[form])
        return x.done[form]

    def spikes(self, x: Any) -> Train:
        """Return x as a spike train; an average gets neurons."""
        train: Train = self._pooled(x, "neurons") if isinstance(x, Pooled) else x
        return train

    def _encode(self, x: fx.Node) -> fx.Node:
        if x not in self.encoded:
            scale = 1 / self.time_steps if self.scaled and self.mode == "constant" else 1.0
            name = self._named("encode", Encode(self.time_steps, self.mode, scale))
            self.encoded[x] = self.graph.call_module(name, (x,))
        return self.encoded[x]

    def fired(self, node: fx.Node, x: Any, *, signed: bool = False, bound: float | None = None) -> Any:
        """Write the neurons for the values of a node. A ReLU of spikes or of their average changes nothing.

        Args:
            node: the ReLU that they replace, or with ``signed`` the values themselves.
            x: what the ReLU reads.
            signed: write neurons for both signs.
            bound: the largest value that the activation returns.
        """
        if isinstance(x, (Train, Pooled)):
            if bound is None and not x.signed:
                return x
            x = Current([Branch(self.spikes(x))])
        if node in self.tainted:  # the layer may be incomplete
            return Train(self._stand_in(), channels=x.channels, dims=x.dims)
        if signed and x.wants_relu:
            refused = Unconvertible(NEGATIVE)
            refused.node = x.wants_relu
            raise refused
        neuron = self.neuron if bound is None else _bounded(self.neuron)
        (branch, *others) = x.branches
        if not others:
            name = branch.name or node.name
            module: Any = self._layer(branch, neuron, signed, self.learn_thresholds)
        else:
            name = ".".join([*_common([b.name.split(".")[:-1] for b in x.branches if b.layer is not None]), "add"])
            alone = not signed and not self.per_channel  # otherwise each branch must hold the thresholds
            branches = [nn.Identity() if b.is_plain and alone else self._layer(b, IF(), signed) for b in x.branches]
            module = TandemAdd(*branches, neuron=neuron, engine=self.engine, learn_threshold=self.learn_thresholds)
        name = self._named(name, module, replaces=not others)
        self.neurons.append((node, name))
        if signed:
            self.signed.add(name)
        if bound is not None:
            self.bounds[name] = bound
        inputs = tuple(b.train.node for b in x.branches)
        level: str | None = name
        sources: tuple[Source, ...] | None = None
        channels, dims = x.of_neurons
        if channels is not None:
            self.targets[name] = self._target(node, x), channels
        if self.per_channel:
            assert channels is not None  # or else there would be no layer
            level, sources = None, tuple((name, i) for i in range(channels))
        called = self.graph.call_module(name, inputs)
        train = Train(called, level, signed=signed, channels=channels, sources=sources, dims=dims)
        fired = train.node
        for step in x.then:
            train = step(train)
        ann, names = self._parts(node, x, signed)
        steps = _between(fired, train.node)
        self.origins.append(Origin(name, ann, names, node.name, steps, signed, bound, train.sources))
        return train

    def _parts(self, node: fx.Node, x: Current, signed: bool) -> tuple[str, tuple[str, ...]]:
        """Return in words what the neurons for the values of a node replace, and the names of these parts."""
        words, names, known = [], [], list(self.ann.named_modules())
        for branch in x.branches:
            modules = [module for module in (branch.layer, branch.norm) if module is not None]
            names += [name for module in modules for name, other in known if vars(other) is vars(module)]
            parts = [kind_of(module).__name__ for module in modules]
            if branch.layer is None and (branch.factor, branch.offset) != (1, 0):
                parts.append(f"{branch.factor:g} * spikes" + (f" {branch.offset:+g}" if branch.offset else ""))
            words.append(", ".join(parts or ["spikes"]))
        word = " + ".join(words)
        if signed or _is_positive(x):  # there is no activation, or it does nothing
            return word, tuple(names)
        return f"{word}, {self._word(node)}", (*names, _name_of(node))

    def _word(self, node: fx.Node) -> str:
        """Return the class of the module that a node calls, or the name of its function."""
        is_module = node.op == "call_module"
        return kind_of(self.ann.get_submodule(str(node.target))).__name__ if is_module else word_of(node.target)

    def _target(self, node: fx.Node, x: Current) -> fx.Node:
        """Return the ANN's node for the values of all neurons: before the steps that come after the neurons."""
        if not x.then:
            return node
        while not isinstance(before := self.values.get(node), Current) or before.then:
            node = node.all_input_nodes[0]
        return node

    def _layer(self, branch: Branch, neuron: Neuron, signed: bool, learn_threshold: bool = False) -> Any:
        """Make the tandem layer of a branch, which holds the ANN's parameters and batch norm."""
        layer = (
            self._elementwise(branch, neuron, signed)
            if branch.layer is None
            else self._weighted(branch, neuron, signed)
        )
        layer.norm = branch.norm
        if learn_threshold:
            layer.log_threshold = new_log_threshold(type(layer).__name__, True, self.like)
        self.reads(layer, branch.train)
        return layer

    def _elementwise(self, branch: Branch, neuron: Neuron, signed: bool) -> Any:
        channels = branch.channels
        if channels is None:
            raise Unconvertible(COUNTED)
        ends = channels * (1 + branch.train.signed), channels * (1 + signed)
        layer = TandemElementwise(*ends, channels, device="meta", neuron=neuron, engine=self.engine)
        layer.maps(branch.factor, branch.offset, self.like)
        return layer

    def _weighted(self, branch: Branch, neuron: Neuron, signed: bool) -> Any:
        module: Any = branch.layer
        rule, train = weights_of(module), branch.train
        arguments = rule.arguments(module)
        inputs, outputs = ("in_features", "out_features")
        if inputs not in arguments:
            inputs, outputs = ("in_channels", "out_channels")
        arguments[inputs] *= train.copies * (1 + train.signed)
        arguments[outputs] *= 1 + signed
        layer: Any = rule.tandem(**arguments, bias=False, device="meta", neuron=neuron, engine=self.engine)
        layer.wiring = Wiring(train.copies, train.signed, signed)
        for name in ("weight", "bias"):
            owner, key = owner_of(module, name)
            setattr(layer, name, getattr(owner, key))
        for name, parametrizations in parametrized(module):
            for parametrization in parametrizations:
                parametrize.register_parametrization(layer, name, parametrization, unsafe=True)
        return layer

    def joined(self, node: fx.Node, trains: list[Train]) -> Train:
        """Concatenate trains along the channels."""
        levels = list(dict.fromkeys(train.level for train in trains))
        differ = self.scaled and (len(levels) > 1 or any(train.sources is not None for train in trains))
        channels = [train.channels for train in trains]
        known = [number for number in channels if number is not None]
        if differ and len(known) < len(trains):
            raise Unconvertible(COUNTED)
        cat = SpikeCat(*(train.signed for train in trains))
        sources = None
        if differ:
            each = [t.sources or tuple((t.level, i) for i in range(n)) for t, n in zip(trains, known, strict=True)]
            sources = tuple(source for part in each for source in part)
            self.cats.append((cat, [None if train.sources is not None else train.level for train in trains]))
        name = self._named(node.name, cat)
        self.origins.append(Origin(name, self._word(node), (node.name,), node.name))
        return Train(
            self.graph.call_module(name, tuple(train.node for train in trains)),
            None if differ else levels[0],
            signed=any(train.signed for train in trains),
            channels=sum(known) if len(known) == len(trains) else None,
            sources=sources,
            dims=next((train.dims for train in trains if train.dims is not None), None),
        )

    def gated(self, node: fx.Node, train: Train, gate: Real) -> Train:
        """Write the neurons of a product of spikes and a gate."""
        module = TandemGate(self.neuron, train.signed)
        self.reads(module.decode, train)
        name = self._named(node.name, module)
        self.neurons.append((node, name))
        if train.signed:
            self.signed.add(name)
        self.origins.append(Origin(name, "spikes * gate", (node.name,), node.name, signed=train.signed))
        node_of = self.graph.call_module(name, (train.node, gate.node))
        return Train(node_of, name, signed=train.signed, channels=train.channels, dims=train.dims)

    def reads(self, module: Any, train: Train) -> None:
        """Note that a module weighs the spikes of each channel of a train."""
        if train.sources is not None:
            self.readers.append((module, train.sources))

    def _named(self, name: str, module: nn.Module, replaces: bool = False) -> str:
        """Add a module under a unique name. Only a module that replaces one of the ANN may take that one's name."""
        unique, i = name, 1
        while unique in self.modules or (unique in self.names and not (replaces and unique == name)):
            unique, i = f"{name}_{i}", i + 1
        self.modules[unique] = module
        return unique

    def called(self, x: Any, node: fx.Node, module: Any) -> Any:
        """Apply a module to a spike train or a real value, in place of the ANN's node."""
        replaces = node.op == "call_module"
        name = self._named(str(node.target) if replaces else node.name, module, replaces)
        kept = {"signed": x.signed, "sources": x.sources} if isinstance(x, Train) else {"real": True}
        self.origins.append(Origin(name, self._word(node), (_name_of(node),), node.name, **kept))
        return replace(x, node=self.graph.call_module(name, (x.node,)))

    def flattened(self, x: Any, start: int = 1, end: int = -1) -> Any:
        """Flatten dimensions start to end of a spike train. For averages and currents, this is deferred."""
        dims = x.dims
        if dims is not None and -dims <= start < dims and -dims <= end < dims:
            start, end = start % dims, end % dims
            dims -= max(end - start, 0)
        else:
            dims = 2 if (start, end) == (1, -1) else None
        whole = dims == 2 and start == 1

        def step(value: Any) -> Any:
            channels = value.channels if start > 1 and isinstance(value, Train) else None
            if isinstance(value, Train) and value.signed and start < 2:
                if not whole:
                    raise Unconvertible("flatten all dimensions, or put a ReLU before it")
                return replace(self.moved(value, "flatten"), channels=None, dims=2)
            flat = replace(value, node=self.graph.call_method("flatten", (value.node, start, end)))
            return replace(flat, channels=channels, dims=dims) if isinstance(value, Train) else flat

        flat = self.behind(x, step, flat=whole)
        return replace(flat, dims=dims) if isinstance(flat, Pooled) else flat

    def flattened_to(self, x: Any, features: int) -> Any:
        """Flatten all dimensions but the first to ``features`` features."""

        def step(value: Any) -> Any:
            if isinstance(value, Real):
                return replace(value, node=kept(self.graph.call_function(flattened_to, (value.node, features))))
            size = features * value.copies * (1 + value.signed)
            if value.signed:
                value = self.moved(value, "flatten")
            flat = kept(self.graph.call_function(flattened_to, (value.node, size)))
            return replace(value, node=flat, channels=features if value.sources is None else None, dims=2)

        flat = self.behind(x, step, flat=True)
        return replace(flat, dims=2) if isinstance(flat, Pooled) else flat

    def moved(self, train: Train, how: str, *arguments: int) -> Train:
        """Rearrange the neurons of a train."""
        module = SpikeRearrange(how, *arguments, signed=train.signed)
        sources, channels = train.sources, train.channels
        if sources is not None and how != "flatten":
            size = arguments[0] ** 2 if how == "pixel_shuffle" else 1
            if any(source != sources[i - i % size] for i, source in enumerate(sources)):
                remedy = (
                    "pass per_channel=False"
                    if self.per_channel
                    else "put a weight layer between the concatenation and it"
                )
                raise Unconvertible(f"{remedy}: it needs spikes of one weight")
            sources = tuple(module.moved(sources))
        if channels is not None:
            channels = len(module.moved(range(channels)))
        name = self._named(how, module)
        dims = 4 if how == "unsqueeze" else train.dims
        node = self.graph.call_module(name, (train.node,))
        return replace(train, node=node, sources=sources, channels=channels, dims=dims)

    def behind(self, x: Any, step: Callable[[Any], Any], flat: bool = False) -> Any:
        """Apply a step to a spike train, or defer it: until after the neurons, or until the average has its form."""
        if not isinstance(x, Train):
            step = _blaming(self.now, step)
        if isinstance(x, Pooled):  # copies share the forms made so far, but not the steps applied to them
            return replace(x, then=[*x.then, step], flat=x.flat or flat, done={})
        return step(x) if isinstance(x, Train) else replace(x, then=[*x.then, step])

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether the node writes in place to memory that is read again later, by whatever name.

        In the SNN such a write has no effect, except on real values. Layers may read those after the write: when they
        fire.
        """
        if not self._writes(node) or not node.args or not isinstance(node.args[0], fx.Node):
            return False
        written = node.args[0]
        x = self.value(written)
        if isinstance(x, (Train, Pooled)) and not x.signed and rule_for(node, self.ann) is fire:
            return False  # ReLU does not change spikes
        shared = self._sharing(written, node)
        values = [self.value(alias) for alias in shared]
        if any(isinstance(value, Real) and value.node in self.encoded for value in values):
            return True
        if all(isinstance(value, Real) for value in values):
            return False  # the ANN's order is kept
        order = {other: i for i, other in enumerate(self.nodes)}
        return any(order[user] > order[node] for alias in shared for user in alias.users)

    def _writes(self, node: fx.Node) -> bool:
        """Whether a node writes to its first argument."""
        if node.op == "call_module":
            return bool(getattr(self.ann.get_submodule(str(node.target)), "inplace", False))
        word = word_of(node.target)
        if node.target in _IN_PLACE or (word.endswith("_") and not word.endswith("__")):
            return True
        if not inspect.isfunction(node.target):
            return bool(node.kwargs.get("inplace"))
        return bool(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get("inplace"))

    def _shares(self, node: fx.Node) -> bool:
        """Whether a node may return the memory of its first argument."""
        if self._writes(node):
            return True
        if node.op == "call_module":
            return isinstance(self.ann.get_submodule(str(node.target)), VIEWS)
        return word_of(node.target) in _VIEWS

    def _sharing(self, node: fx.Node, writer: fx.Node) -> set[fx.Node]:
        """Return the nodes that may have the memory of a node, without what a writer returns and what follows that."""
        first = node
        while self._shares(first) and first.args and isinstance(first.args[0], fx.Node):
            first = first.args[0]
        found, waiting = {first}, [first]
        while waiting:
            for user in waiting.pop().users:
                if user is not writer and user not in found and user in self.values and self._shares(user):
                    found.add(user)
                    waiting.append(user)
        return found

    # -- reporting problems

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return str(node.target)
        return f"{node.name} ({word_of(node.target)} in forward of {scope_of(node, self.ann)})"

    def _problem(self, node: fx.Node, why: str, instead: Any = None, why_all: str | None = None) -> Broken:
        """Record a problem and go on with ``instead``, by default the node's first input that is not real."""
        where = node
        product = node if node in self.refused_gates.values() else self.refused_gates.get(node)
        if product is not None and why != _IN_PLACE_ADVICE:  # gates that stay analogue have no other problems
            where, why_all = product, None
            why = GATES
        elif why == NOTHING_ELSE and self.mode == "spikes":
            why = AFTER_ALL
        if where not in self.refused:
            name, kind, place = self._name(where), word_of(where.target), f"{where.name} in {scope_of(where, self.ann)}"
            if where.op == "call_module":
                kind, place = type(self.ann.get_submodule(str(where.target))).__name__, name
                name += f" ({kind})"
            self.problems.append(Problem(kind, name, place, why, why_all or why))
        self.tainted |= {node, where}
        if product is not None:
            self.refused.add(where)
        return self._broken(node, instead)

    def _broken(self, node: fx.Node, instead: Any = None) -> Broken:
        """Return the result of a problem, and what to go on with."""
        inputs = [self.value(x) for x in node.all_input_nodes]
        if instead is None:
            instead = next((x for x in inputs if isinstance(x, (Train, Pooled, Current))), None)
        if asks_for_size(node) or (instead is None and any(isinstance(x, (Size, Shape, Sizes)) for x in inputs)):
            instead = _UNKNOWN_SIZE
        return Broken(Train(self._stand_in()) if instead is None else instead)

    def _reads_unknown_size(self, node: fx.Node) -> bool:
        return any(self.value(x) is _UNKNOWN_SIZE for x in node.all_input_nodes)

    def _stand_in(self) -> fx.Node:
        """Return a placeholder for a missing value. A graph with problems is never used, so it may be incomplete."""
        return self.graph.placeholder("stand_in")


def _name_of(node: fx.Node) -> str:
    """Return the name of the module that a node calls, or its own."""
    return name_in_ann(str(node.target)) if node.op == "call_module" else node.name


def _bypassed(module: nn.Module) -> str:
    """Return the advice for a module with code that the spiking twin would not call; else ""."""
    if why := hooked(module):
        return why
    names = overridden_methods(module)
    deleted = " and ".join(f"del module.{name}" for name in names)
    return f"remove what its instance overrides ({deleted}): nothing calls it in the spiking twin" if names else ""


def _blaming(node: fx.Node | None, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let a step that is applied later say which of the ANN's nodes cannot be converted."""

    def blaming(value: Any) -> Any:
        try:
            return step(value)
        except Unconvertible as refused:
            refused.node = refused.node or node
            raise

    return blaming


def _between(first: fx.Node, last: fx.Node) -> int:
    """Return the number of steps from one node to another, each of which has one input."""
    steps = 0
    while last is not first:
        (last,), steps = last.all_input_nodes, steps + 1
    return steps


def _is_shareable(parametrizations: Any) -> bool:
    """Whether two layers can both hold these parametrizations of one parameter.

    Registering a parametrization that has a ``right_inverse`` changes the parameter, so such a one cannot be shared.
    """
    return parametrizations.is_tensor and not any(hasattr(x, "right_inverse") for x in parametrizations)


def _spiking_pool(pool: Any, neuron: Neuron, engine: str) -> nn.Module:
    """Make the spiking layer for average pooling. Its neurons start, and wait, as those of the other layers.

    Where the divisor is smaller than the window, a spike stands for more than one spike of the window.
    """
    how: dict[str, Any] = {"initial": neuron.initial, "two_phase": neuron.two_phase, "engine": engine}
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        return SpikingAdaptiveAvgPool2d(pool.output_size, **how)
    windows = pool.kernel_size, pool.stride, pool.padding
    settings = pool.ceil_mode, pool.count_include_pad, pool.divisor_override
    spiking = SpikingAvgPool2d(*windows, *settings, **how)
    spiking.threshold = spiking.amplitude = max(spiking.largest, 1.0)
    return spiking


def flattened_to(train: SpikeTrain, features: int) -> SpikeTrain:
    """Flatten a spike train like ``x.view(-1, features)``, but raise a ValueError where that would mix samples."""
    flat = train.flatten(1)
    if flat.shape[1] != features:
        raise ValueError(f"view: input must have {features} features per sample, got {flat.shape[1]}")
    return flat


def _is_positive(x: Current) -> bool:
    """Whether x is a sum of spikes, which needs no ReLU."""
    return all(b.is_identity and not b.train.signed for b in x.branches)


def _bounded(neuron: Neuron) -> Neuron:
    """Return neurons whose gradient is zero where they are saturated."""
    return replace(neuron, clip=True)  # type: ignore[type-var]  # every neuron is a dataclass


def _common(paths: list[list[str]]) -> list[str]:
    """Return the longest common prefix of the paths."""
    together = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return [parts[0] for parts in together]


def cut(whole: Conversion, count: int, again: Callable[[set[fx.Node]], Conversion]) -> Conversion:
    """Convert only the first ``count`` layers. Return ``whole`` if those are all, or if its problems are to be told."""
    total = len(whole.neurons)
    if count < total or (count == total and whole.problems):
        if not whole.scaled:
            raise ValueError(
                f"convert: calibrate must be given with spiking_layers={count} of {total} (the ANN after them expects "
                "activations, not counts), got None"
            )
        return again(leading_to(node for node, _ in whole.neurons[:count]))
    if count > total and not whole.problems:
        raise ValueError(f"convert: spiking_layers must be at most {total}, all that the ANN has, got {count}")
    return whole
