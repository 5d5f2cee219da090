"""The conversion itself: one pass over the ANN's graph that writes the SNN's graph."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from ..neuron import IF, Neuron
from ..nn import Decode, Encode, SpikeWindows, SpikingAdaptiveAvgPool2d, SpikingAvgPool2d, TandemAdd
from ..nn.learned_threshold import new_log_threshold
from ..spike_train import SpikeTrain
from .advice import (
    ACTIVATIONS,
    CURVED,
    FUNCTION_ADVICE,
    NORMALISING,
    NOTHING_ELSE,
    SQUASHING,
    WEIGHT_FUNCTIONS,
    Problem,
    advice_for,
    hooked,
    listed,
)
from .rules import Call, Unconvertible, WeightRule, applied, fire, rule_for, weights_of
from .trace import dropout_of, leading_to, owner_of, parametrized, scope_of, word_of
from .values import Branch, Broken, Current, Pooled, Real, Train

_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow}


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
        spiking: set[fx.Node] | None = None,
    ) -> None:
        self.ann = ann
        self.spiking = spiking
        """The nodes up to and including the activations of the layers that are to spike; None for all that can."""
        self.nodes = list(graph.nodes)
        self.time_steps, self.mode, self.neuron, self.engine, self.scaled = time_steps, mode, neuron, engine, scaled
        self.learn_thresholds = learn_thresholds
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
        self.before, self.last = self._order()
        for node in self.nodes:
            if not self.tainted.isdisjoint(node.all_input_nodes):
                self.tainted.add(node)
            self.values[node] = self._converted(node)
        self._check_hooks()
        self._check_parameters()

    def _check_hooks(self) -> None:
        """Report hooks that would no longer be called: those of the ANN itself and of modules that the SNN replaces."""
        if why := hooked(self.ann):
            self.problems.append(Problem(type(self.ann).__name__, type(self.ann).__name__, "", why, why))
        for node in self.nodes:
            if node.op == "call_module" and node not in self.tainted:
                module = self.ann.get_submodule(str(node.target))
                if (why := hooked(module)) and not any(x is module for x in self.modules.values()):
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
        return isinstance(rule_for(node, self.ann), WeightRule)

    # -- one node

    def _converted(self, node: fx.Node) -> Any:
        if self.spiking is not None and node not in self.spiking and node.op != "placeholder":
            return self._copied(node, node.name, dropout_of(node))
        if self._overwrites(node):
            return self._problem(node, "write out of place: its input is used again later")
        rule = rule_for(node, self.ann)
        if isinstance(rule, WeightRule):
            return self._weight(node, rule)
        if rule is None and node in self.before and (why := self._weightless(node)):
            return self._problem(node, why, Train(self._stand_in()))  # would have been a layer of its own
        if node.op == "placeholder" and self.mode == "spikes":
            return Train(self.graph.node_copy(node))
        if node.op == "output" or all(isinstance(self.value(x), Real) for x in node.all_input_nodes):
            return self._copied(node, node.name, dropout_of(node))
        try:
            return applied(self._unknown if rule is None else rule, Call(self, node))
        except Unconvertible as refused:
            return self._problem(node, str(refused), why_all=refused.why_all)

    def _weightless(self, node: fx.Node) -> str | None:
        """Return the advice for a convolution or weight function that has no rule."""
        if node.target in WEIGHT_FUNCTIONS:
            return "use the module of the same name, which has parameters to share"
        if node.op != "call_module":
            return None
        module = self.ann.get_submodule(str(node.target))
        return advice_for(type(module)) if isinstance(module, nn.modules.conv._ConvNd) else None

    def _unknown(self, call: Call) -> Any:
        """Report a call that has no rule, and return a substitute so that later problems are found, too."""
        node = call.node
        if node.op == "call_module" and len(node.all_input_nodes) > 1:
            return self._copied(node)
        x = call.input
        kind = type(call.module) if node.op == "call_module" else ACTIVATIONS.get(node.target)
        if getattr(call.module, "return_indices", False):
            raise Unconvertible("set return_indices=False: the position of the maximum differs between time steps")
        if kind is None:
            raise Unconvertible(FUNCTION_ADVICE.get(node.target, NOTHING_ELSE))
        problem = self._problem(node, advice_for(kind))
        if issubclass(kind, (*CURVED, *SQUASHING)):  # as if it were a ReLU
            return Train(self._stand_in())
        return x if issubclass(kind, NORMALISING) else problem

    def _weight(self, node: fx.Node, rule: WeightRule) -> Any:
        module = self.ann.get_submodule(str(node.target))
        argument = node.all_input_nodes[0]
        if (len(node.args), len(node.kwargs)) not in ((1, 0), (0, 1)) and node not in self.last:
            return self._problem(node, "call it with its input alone", Train(self._stand_in()))
        if (why := hooked(module)) and node not in self.last:
            return self._problem(node, why, Current([Branch(self._stand_in(), str(node.target), module)]))
        x = self.value(argument)
        if node in self.last:
            if isinstance(x, Real) or self.readable(x):
                return self._copied(node)
            return self._unfired(node, argument, Real(self._stand_in()))
        if not all(_is_shareable(parametrizations) for _, parametrizations in parametrized(module)):
            why = "remove the parametrization of its weight: only that of quantise can be shared"
            return self._problem(node, why, Current([Branch(self._stand_in(), str(node.target), module)]))
        if isinstance(x, Real):
            return Current([Branch(self._encode(x.node), str(node.target), module, encoded=True)])
        if isinstance(x, Current) and self.readable(x):
            x = self.fired(argument, x)
        if isinstance(x, Current):
            branch = Branch(self._stand_in(), str(node.target), module)
            return self._unfired(node, argument, Current([branch]))
        if isinstance(x, Pooled):
            x = self._pooled(x, "windows" if x.folds_into(module) else "neurons")
        return Current([Branch(x.node, str(node.target), module, copies=x.copies)])

    def readable(self, x: Any) -> bool:
        """Whether x is a spike train or a sum of them. Such a sum is never negative and needs no ReLU."""
        return isinstance(x, (Train, Pooled)) or (isinstance(x, Current) and all(b.layer is None for b in x.branches))

    # -- writing the graph

    def _copied(self, node: fx.Node, name: str | None = None, module: nn.Module | None = None) -> Any:
        """Copy the node unchanged, decoding its spike-train inputs."""
        for argument in node.all_input_nodes:
            if not isinstance(self.value(argument), Real) and not self.readable(self.value(argument)):
                return self._unfired(node, argument, Real(self._stand_in()))
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
        if isinstance(x, Current):
            x = self.fired(node, x)
            self.values[node] = x
        return self._decoded(x).node

    def _decoded(self, x: Any) -> Any:
        if isinstance(x, Real):
            return x
        if isinstance(x, Pooled):
            return self._pooled(x, "real")
        if x.node not in self.decoded:
            name = self._named("decode", Decode())
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
                name = str(train.node.target)
                self.pools.append((x.node, name, train.level))
                x.made[form] = replace(train, level=name)
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

    def fired(self, node: fx.Node, x: Any) -> Any:
        """Write the neurons that replace the ReLU ``node``. A ReLU of spikes or of their average changes nothing."""
        if isinstance(x, (Train, Pooled)):
            return x
        if node in self.tainted:  # the layer may be incomplete
            return Train(self._stand_in())
        if len(x.branches) == 1 and x.branches[0].layer is not None:
            (branch,) = x.branches
            name, module = branch.name, self._layer(branch, self.neuron, self.learn_thresholds)
        else:
            name = ".".join([*_common([b.name.split(".")[:-1] for b in x.branches if b.layer is not None]), "add"])
            branches = [nn.Identity() if b.layer is None else self._layer(b, IF()) for b in x.branches]
            module = TandemAdd(*branches, neuron=self.neuron, engine=self.engine, learn_threshold=self.learn_thresholds)
        name = self._named(name, module, replaces=len(x.branches) == 1)
        self.neurons.append((node, name))
        train = Train(self.graph.call_module(name, tuple(branch.source for branch in x.branches)), name)
        for step in x.then:
            train = step(train)
        return train

    def _layer(self, branch: Branch, neuron: Neuron, learn_threshold: bool = False) -> Any:
        """Make the tandem layer that holds a weight layer's parameters and its batch norm."""
        module: Any = branch.layer
        rule = weights_of(module)
        arguments = rule.arguments(module)
        inputs = "in_features" if "in_features" in arguments else "in_channels"
        arguments[inputs] *= branch.copies
        layer: Any = rule.tandem(**arguments, bias=False, device="meta", neuron=neuron, engine=self.engine)
        layer.copies = branch.copies
        layer.norm = branch.norm
        for name in ("weight", "bias"):
            owner, key = owner_of(module, name)
            setattr(layer, name, getattr(owner, key))
        if learn_threshold:
            layer.log_threshold = new_log_threshold(type(layer).__name__, True, layer.weight)
        for name, parametrizations in parametrized(module):
            for parametrization in parametrizations:
                parametrize.register_parametrization(layer, name, parametrization, unsafe=True)
        return layer

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
        return replace(x, node=self.graph.call_module(name, (x.node,)))

    def flattened(self, x: Any, start: int = 1, end: int = -1) -> Any:
        """Flatten dimensions start to end of a spike train. For averages and currents, this is deferred."""

        def step(value: Any) -> Any:
            return replace(value, node=self.graph.call_method("flatten", (value.node, start, end)))

        return self.behind(x, step, flat=start == 1 and end in (-1, 3))

    def flattened_to(self, x: Any, features: int) -> Any:
        """Flatten all dimensions but the first to ``features`` features."""

        def step(value: Any) -> Any:
            size = features * getattr(value, "copies", 1)
            return replace(value, node=self.graph.call_function(flattened_to, (value.node, size)))

        return self.behind(x, step, flat=True)

    def behind(self, x: Any, step: Callable[[Any], Any], flat: bool = False) -> Any:
        """Apply a step to a spike train, or defer it: until after the neurons, or until the average has its form."""
        if isinstance(x, Pooled):  # copies share the forms made so far, but not the steps applied to them
            return replace(x, then=[*x.then, step], flat=x.flat or flat, done={})
        return step(x) if isinstance(x, Train) else Current(x.branches, [*x.then, step])

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether the node writes in place to spikes that are used again later. In the SNN that write has no effect."""
        module = self.ann.get_submodule(str(node.target)) if node.op == "call_module" else None
        word = word_of(node.target)
        in_place = (
            word.endswith("_") and not word.endswith("__") if module is None else getattr(module, "inplace", False)
        )
        in_place = in_place or bool(node.kwargs.get("inplace")) or node.target in _IN_PLACE
        if not in_place or not node.args or not isinstance(node.args[0], fx.Node):
            return False
        written = node.args[0]
        if rule_for(node, self.ann) is fire or not isinstance(self.value(written), (Train, Pooled)):
            return False  # ReLU does not change spikes; real values keep the ANN's order; currents are used only once
        behind = self.nodes[self.nodes.index(node) + 1 :]
        return any(user in behind for user in written.users)

    # -- reporting problems

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return str(node.target)
        return f"{node.name} ({word_of(node.target)} in forward of {scope_of(node, self.ann)})"

    def _problem(self, node: fx.Node, why: str, instead: Any = None, why_all: str | None = None) -> Broken:
        """Record a problem and go on with ``instead``, by default the node's first input that is not real."""
        name, kind, place = self._name(node), word_of(node.target), f"{node.name} in {scope_of(node, self.ann)}"
        if node.op == "call_module":
            kind, place = type(self.ann.get_submodule(str(node.target))).__name__, name
            name += f" ({kind})"
        self.problems.append(Problem(kind, name, place, why, why_all or why))
        self.tainted.add(node)
        if instead is None:
            inputs = [self.value(x) for x in node.all_input_nodes]
            instead = next((x for x in inputs if isinstance(x, (Train, Pooled, Current))), None)
        return Broken(Train(self._stand_in()) if instead is None else instead)

    def _unfired(self, node: fx.Node, argument: fx.Node, instead: Any) -> Any:
        """Report a weight layer or output that reads a pre-activation, and go on with ``instead``."""
        self._problem(node, f"put a ReLU between {self._name(argument)} and it", why_all="put a ReLU before each")
        return instead

    def _stand_in(self) -> fx.Node:
        """Return a placeholder for a missing value. A graph with problems is never used, so it may be incomplete."""
        return self.graph.placeholder("stand_in")


def _is_shareable(parametrizations: Any) -> bool:
    """Whether two layers can both hold these parametrizations of one parameter.

    Registering a parametrization that has a ``right_inverse`` changes the parameter, so such a one cannot be shared.
    """
    return parametrizations.is_tensor and not any(hasattr(x, "right_inverse") for x in parametrizations)


def _spiking_pool(pool: Any, neuron: Neuron, engine: str) -> nn.Module:
    """Make the spiking layer for average pooling. Its neurons start, and wait, as those of the other layers."""
    how: dict[str, Any] = {"initial": neuron.initial, "two_phase": neuron.two_phase, "engine": engine}
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        return SpikingAdaptiveAvgPool2d(pool.output_size, **how)
    windows = pool.kernel_size, pool.stride, pool.padding
    settings = pool.ceil_mode, pool.count_include_pad, pool.divisor_override
    return SpikingAvgPool2d(*windows, *settings, **how)


def flattened_to(train: SpikeTrain, features: int) -> SpikeTrain:
    """Flatten a spike train like ``x.view(-1, features)``, but raise a ValueError where that would mix samples."""
    flat = train.flatten(1)
    if flat.shape[1] != features:
        raise ValueError(f"view: input must have {features} features per sample, got {flat.shape[1]}")
    return flat


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
