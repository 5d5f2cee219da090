"""Write the spiking twin: its modules, and their calls in a graph."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neuron import IF, Neuron
from ..nn import Decode, Encode, SpikeCat, SpikeRearrange, SpikeWindows, TandemAdd, TandemNeurons
from ..nn.learned_threshold import new_log_threshold
from .comparison import Origin
from .graph import Graph
from .layers import described, dropout_of, layer_of, norm_of, spiking_pool
from .nodes import common_path, steps_between, word_of, word_of_class
from .values import Analogue, Branch, Current, Options, Pooled, Real, Signs, Slope, SpikeSource, SpikingLayer, Train
from .weights import WeightCalls

aten = torch.ops.aten


class NeededWhole(Exception):
    """Neurons that read one part of a batch norm's output have computed it, and another call reads its real output."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(node.name)
        self.node = node


class Writer:
    """The SNN's graph under construction.

    Args:
        source: the graph of the ANN.
        options: what ``convert`` was asked for.
    """

    def __init__(self, source: Graph, options: Options) -> None:
        self.source, self.ann, self.options = source, source.ann, options
        self.calls = WeightCalls(source)
        self.signs = Signs(self)
        self.values: dict[fx.Node, Any] = {}
        """What the ANN's nodes have become."""
        self.graph = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.name_of_module = {id(module): name for name, module in self.ann.named_modules()}
        self.names = {*self.name_of_module.values()}
        self.encoded: dict[fx.Node, fx.Node] = {}
        """Real values, and their spikes."""
        self.decoding: dict[fx.Node, fx.Node] = {}
        """Spike trains, and their decoded counts."""
        self.reals: dict[fx.Node, fx.Node] = {}
        """The ANN's nodes, and what computes them on real values."""
        self.neurons: dict[tuple[fx.Node, bool], Train] = {}
        """The spikes of real values, by whether their channels are along the last dimension."""
        self.read: dict[fx.Node, Train] = {}
        """The spikes that weight calls read."""
        self.layers: list[SpikingLayer] = []
        """The tandem layers, TandemAdds and TandemNeurons, in order of execution."""
        self.pools: list[tuple[SpikingLayer, str | None]] = []
        """Average poolings with neurons, in order of execution, each with the layer whose level its input has."""
        self.origins: list[Origin] = []
        """What each module that replaces something of the ANN comes from."""
        self.readers: list[tuple[Any, tuple[SpikeSource, ...]]] = []
        """Modules that multiply the channels that they read by different weights of a spike, and the channels' sources.
        """
        self.cats: list[tuple[Any, list[str | None]]] = []
        """Concatenations of trains whose spikes differ in weight, and the level of each input."""
        self.like = next(self.ann.parameters(), torch.empty(0))
        """For the device and dtype of constants."""
        self.joins: dict[tuple[fx.Node, ...], tuple[fx.Node, Train]] = {}
        self.constants: set[str] = set()
        """The names of the ANN's tensors whose values have become constants."""
        self.normed: set[fx.Node] = set()
        """The calls of batch norm that have been written: statistics move once a call."""

    # -- values

    def value(self, node: fx.Node) -> Any:
        """Return what a node of the ANN has become."""
        return self.values[node]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the sizes of a node's value behind the first dimension.

        Raises:
            Analogue: the value is no tensor, or its sizes depend on the batch.
        """
        x = node.meta.get("val")
        if not isinstance(x, Tensor) or x.dim() < 2:
            raise Analogue("it is no tensor of samples")
        if not all(isinstance(size, int) for size in x.shape[1:]):
            raise Analogue("its sizes depend on the batch")
        return tuple(x.shape[1:])

    def real(self, node: fx.Node) -> fx.Node:
        """Return the node of the SNN that computes a node of the ANN on real values."""
        x = self.values[node]
        if isinstance(x, Real):
            return x.node
        if isinstance(x, Train):
            return self.decoded(x)
        return self.real_of_call(node)

    def real_of_call(self, node: fx.Node) -> fx.Node:
        """Return the node of the SNN that makes a call of the ANN on real values."""
        if node not in self.reals:
            self.reals[node] = self._copied(node)
        return self.reals[node]

    def _copied(self, node: fx.Node) -> fx.Node:
        """Copy a call, with real inputs."""
        if node.op == "get_attr":
            name = self.named("tensors." + str(node.target).replace(".", "_"), self.source.tensor(str(node.target)))
            return self.graph.get_attr(name)
        given: dict[fx.Node, fx.Node] = {}
        if (call := self.calls.found.get(node)) is not None:
            read = self.read.get(node)
            x = self.decoded(read) if read is not None and read.windows == 1 else self.real(call.input)
            if isinstance(call.layer, nn.Linear):
                x = self._innermost(x, read)
            if "computed" not in call.layer._modules:  # torch's layer computes what the call does
                return self.graph.call_module(self._own_module(call.name, call.layer), (x,))
            given[call.input] = x
        if node.target is aten.batch_norm.default and (norm := self.norm(node)) is not None:
            if node in self.normed:
                if isinstance(self.values[node], Current):
                    raise NeededWhole(node)
                return self.decoded(self.spikes(node))
            self.normed.add(node)
            x = self.real(node.all_input_nodes[0])
            return self.graph.call_module(self._own_module(self.name(node), norm), (x,))
        if (dropout := dropout_of(node)) is not None:
            return self.graph.call_module(self.named(node.name, dropout), (self.real(node.all_input_nodes[0]),))
        copied = self.graph.node_copy(node, lambda x: given[x] if x in given else self.real(x))
        if copied.target is aten.view.default:  # the SNN's values may lie otherwise in memory
            copied.target = aten.reshape.default
        copied.meta = {}
        return copied

    def _own_module(self, name: str, module: nn.Module) -> str:
        """Return the name of a module that both twins share, or that computes with the ANN's parameters."""
        own = self.name_of_module.get(id(module), name)
        if self.modules.get(own) is module:
            return own
        return self.named(own, module, replaces=True)

    def _innermost(self, x: fx.Node, read: Train | None) -> fx.Node:
        """Let a linear layer read lines or images in order: otherwise torch rounds differently in frozen networks."""
        if read is not None and not read.features and read.dims != 2:
            return self.graph.call_function(aten.contiguous.default, (x,))
        return x

    def norm(self, node: fx.Node) -> Any:
        """Return the batch norm of a call: the ANN's module; None if it has no running statistics, or is no module."""
        return norm_of(self.calls, node)

    def name(self, node: fx.Node) -> str:
        """Return the name of the module that computes a node alone; else the node's name."""
        if node.target is aten.batch_norm.default and (norm := self.norm(node)) is not None:
            return self.name_of_module.get(id(norm), node.name)
        return node.name

    def decoded(self, x: Train) -> fx.Node:
        """Return the real values that spikes stand for."""
        if x.node not in self.decoding:
            decode = Decode(x.signed)
            decode.of_features = x.features
            self.reads(decode, x)
            self.decoding[x.node] = self.graph.call_module(self.named("decode", decode), (x.node,))
        return self.decoding[x.node]

    def spikes(self, node: fx.Node, features: bool | None = None) -> Train:
        """Return a value as a spike train. Currents without a ReLU get neurons for both signs, real values neurons.

        Args:
            node: the ANN's node.
            features: whether channels must be along the last dimension, or must not; None for either.
        """
        x = self.values[node]
        if isinstance(x, Current):
            x = self.values[node] = self.write_neurons(node, x, signed=not x.is_positive)
        if isinstance(x, Pooled):
            x = self.pooled(x, "neurons")
        if isinstance(x, Train):
            if features is None or x.features == features or x.dims == 2:
                return x
            if x.sources is None and x.windows == 1:
                moved = self.rearranged(x, "pairs", -1 if features else 1) if x.signed else x
                return replace(moved, features=features)
        return self.encoded_value(node, bool(features))

    def encoded_value(self, node: fx.Node, features: bool) -> Train:
        """Return the spikes of neurons that read a real value."""
        shape = self.shape(node)
        features = features and len(shape) > 1
        if (node, features) not in self.neurons:
            options, signed = self.options, not self.signs.nonnegative(node)
            layer = TandemNeurons(options.time_steps, options.neuron, signed, features)
            name, dim = self.named(node.name, layer), len(shape) if features else 1
            # A channel with one value a sample has too few values for a level of its own.
            channels = shape[dim - 1] if options.per_channel and len(shape) > 1 else None
            self.layers.append(SpikingLayer(name, node, signed, math.inf, node, channels, dim))
            sources = None if channels is None else tuple((name, i) for i in range(channels))
            self.origins.append(
                Origin(
                    name, self.word(node), (node.name,), node.name, signed=signed, sources=sources, features=features
                )
            )
            spikes = self.graph.call_module(name, (self.real(node),))
            level = name if sources is None else None
            self.neurons[node, features] = Train(spikes, shape, level, sources, signed, features=features)
        return self.neurons[node, features]

    def encoded_input(self, node: fx.Node) -> Train:
        """Return the output of Encode for a real value that is computed from inputs alone."""
        x = self.real(node)
        if x not in self.encoded:
            steps, mode = self.options.time_steps, self.options.mode
            scale = 1 / steps if self.options.calibrated and mode == "constant" else 1.0
            name = self.named("encode", Encode(steps, mode, scale))
            self.encoded[x] = self.graph.call_module(name, (x,))
        return Train(self.encoded[x], self.shape(node))

    def pooled(self, x: Pooled, form: str) -> Train:
        """Write an average as "neurons", or as the spikes of its "windows" in a row."""
        if form not in x.forms:
            source = x.source if isinstance(x.source, Train) else self.pooled(x.source, "neurons")
            if source.features:
                raise Analogue("it averages features")
            if form == "windows":
                pool = x.module
                windows = SpikeWindows(pool.kernel_size, pool.stride, pool.padding, pool.divisor_override)
                train = replace(self.called(source, x.node, windows), windows=windows.size)
            else:
                train = self.called(source, x.node, spiking_pool(x.module, self.options))
                if train.sources is None:
                    name = str(train.node.target)
                    self.pools.append((SpikingLayer(name, x.node, train.signed), train.level))
                    train = replace(train, level=name)
            x.forms[form] = replace(train, shape=x.own_shape)
        train = x.forms[form]
        for step in x.deferred:
            train = step(train)
        return train

    # -- neurons

    def write_neurons(
        self,
        node: fx.Node,
        x: Any,
        *,
        signed: bool = False,
        bound: float | None = None,
        slope: Slope | None = None,
        level: float | None = None,
    ) -> Any:
        """Write the neurons for the values of a node. A ReLU changes neither spikes nor their average.

        Args:
            node: the ReLU that the neurons replace, or with ``signed`` the values themselves.
            x: what the ReLU reads.
            signed: write neurons for both signs.
            bound: the largest value that the activation returns.
            slope: with ``signed``, the slope of the activation below zero.
            level: the level of the neurons, of an activation that has one.
        """
        if isinstance(x, (Train, Pooled)):
            if bound is None and not x.signed:
                return x
            x = Current([Branch(x if isinstance(x, Train) else self.pooled(x, "neurons"))])
        normed = {branch.normed for branch in x.branches if branch.normed is not None}
        if (signed and x.wants_relu) or normed & self.normed:
            if bound is not None or slope is not None or not signed:
                raise Analogue("its input is computed on real values")
            return self.encoded_value(node, x.features)
        self.normed |= normed
        name = self._neurons(node, x, signed, bound, slope)
        values = x.origin if x.deferred and x.origin is not None else node
        shape, channels = self.shape(values), x.channels
        dim = len(shape) if x.features else 1
        largest = math.inf if bound is None else bound
        per_channel = channels if self.options.per_channel else None
        self.layers.append(SpikingLayer(name, node, signed, largest, values, channels, dim, level))
        sources = None if per_channel is None else tuple((name, i) for i in range(per_channel))
        neurons = self.graph.call_module(name, tuple(branch.train.node for branch in x.branches))
        features = x.features and len(shape) > 1
        train = Train(neurons, shape, name if sources is None else None, sources, signed, 1, features)
        for step in x.deferred:
            train = step(train)
        ann, names = self._parts(node, x, signed and slope is None and bound is None)
        steps = steps_between(neurons, train.node)
        self.origins.append(Origin(name, ann, names, node.name, steps, signed, bound, train.sources, train.features))
        return train

    def _neurons(self, node: fx.Node, x: Current, signed: bool, bound: float | None, slope: Slope | None) -> str:
        """Make the layer of the neurons, and return its name."""
        neuron: Any = self.options.neuron
        if bound is not None:  # the gradient is zero where the neurons are saturated
            neuron = replace(neuron, clip=True)
        learn, engine = self.options.learn_thresholds, self.options.engine
        (branch, *others) = x.branches
        if not others:
            layer = self._layer(branch, neuron, signed, slope, learn)
            return self.named(branch.name or node.name, layer, replaces=True)
        paths = [b.name.split(".")[:-1] for b in x.branches if b.layer is not None]
        alone = not signed and not self.options.per_channel  # otherwise each branch must hold the thresholds
        branches = [nn.Identity() if b.is_plain and alone else self._layer(b, IF(), signed, slope) for b in x.branches]
        module = TandemAdd(*branches, neuron=neuron, engine=engine, learn_threshold=learn)
        return self.named(".".join([*common_path(paths), "add"]), module)

    def _parts(self, node: fx.Node, x: Current, bare: bool) -> tuple[str, tuple[str, ...]]:
        """Return in words which parts of the ANN the neurons replace, and the names of these parts.

        ``bare``: there is no activation.
        """
        words, names = [], []
        for branch in x.branches:
            modules = [module for module in (branch.layer, branch.norm) if module is not None]
            names += [name for name in map(self.name_of_module.get, map(id, modules)) if name is not None]
            words.append(", ".join([*(word_of_class(module) for module in modules), *described(branch)] or ["spikes"]))
        word = " + ".join(words)
        if bare or x.is_positive:  # there is no activation, or it does nothing
            return word, tuple(names)
        return f"{word}, {self.word(node)}", (*names, self.place(node))

    def _layer(
        self, branch: Branch, neuron: Neuron, signed: bool, slope: Slope | None, learn_threshold: bool = False
    ) -> Any:
        """Make the tandem layer of a branch, and note what it reads."""
        layer = layer_of(branch, neuron, signed, self.options.engine, self.like, slope)
        if learn_threshold:
            layer.log_threshold = new_log_threshold(type(layer).__name__, True, self.like)
        self.reads(layer, branch.train)
        return layer

    # -- moves and joins

    def joined(self, node: fx.Node, every: tuple[fx.Node, ...], features: bool) -> Train:
        """Concatenate trains along the channels. If an earlier concatenation is of the first ones, take its result."""
        earlier = next((n for n in range(len(every) - 1, 1, -1) if every[:n] in self.joins), 0)
        trains = [self.joins[every[:earlier]][1]] if earlier else []
        trains += [self.spikes(x, features) for x in every[earlier:]]
        if any(train.windows > 1 for train in trains):
            raise Analogue("it concatenates windows")
        if len({train.dropout for train in trains}) > 1:
            raise Analogue("it concatenates spikes with and without dropout, which differ in weight in training")
        levels = list(dict.fromkeys(train.level for train in trains))
        differ = self.options.calibrated and (len(levels) > 1 or any(train.sources is not None for train in trains))
        cat = SpikeCat(*(train.signed for train in trains))
        sources = None
        if differ:
            each = [t.sources or tuple((t.level, i) for i in range(t.channels)) for t in trains]
            sources = tuple(itertools.chain(*each))
            self.cats.append((cat, [None if train.sources is not None else train.level for train in trains]))
        name = self.named(node.name, cat)
        self.origins.append(Origin(name, self.word(node), (node.name,), node.name))
        signed = any(train.signed for train in trains)
        call = self.graph.call_module(name, tuple(train.node for train in trains))
        level = None if differ else levels[0]
        whole = Train(call, self.shape(node), level, sources, signed, features=trains[0].features)
        self.joins[every] = node, whole
        return whole

    def called(self, train: Train, node: fx.Node, module: Any) -> Train:
        """Apply a module to a spike train, in place of the ANN's node."""
        name = self.named(node.name, module)
        origin = Origin(name, self.word(node), (self.place(node),), node.name)
        self.origins.append(replace(origin, signed=train.signed, sources=train.sources, features=train.features))
        return replace(train, node=self.graph.call_module(name, (train.node,)))

    def flattened(self, train: Train, start: int, end: int, shape: tuple[int, ...]) -> Train:
        """Flatten dimensions start to end of spikes to the sizes ``shape``."""
        times = math.prod(train.shape) // train.channels
        if train.windows > 1 and start < 2 and shape != (math.prod(train.shape),):
            raise Analogue("it flattens a part of windows")
        if len(shape) == 1:
            sources = train.sources
            if sources is not None:
                sources = sources * times if train.features else tuple(x for x in sources for _ in range(times))
            if train.signed and not train.features:
                flat = self.rearranged(train, "flatten")
            else:
                flat = replace(train, node=self.graph.call_method("flatten", (train.node, start, end)))
            return replace(flat, shape=shape, sources=sources, features=False)
        touched = range(start, end + 1)
        if (train.features and len(train.shape) in touched) or (not train.features and 1 in touched):
            raise Analogue("it flattens a part of the dimensions together with the channels")
        call = self.graph.call_method("flatten", (train.node, start, end))
        return replace(train, node=call, shape=shape)

    def rearranged(self, train: Train, how: str, *arguments: int, shape: tuple[int, ...] | None = None) -> Train:
        """Rearrange the neurons of a train, as :class:`SpikeRearrange` does; ``shape``: the sizes of the result."""
        module = SpikeRearrange(how, *arguments, signed=train.signed)
        sources = train.sources
        if sources is not None and how not in ("flatten", "pairs"):
            if train.features and how == "slice" and arguments[0] == train.dims - 1:
                sources = sources[slice(*arguments[1:])]
            elif train.features:
                if how not in ("unsqueeze", "slice"):
                    raise Analogue("it moves features that differ in weight")
            else:
                if any(source != sources[i - i % module.merged] for i, source in enumerate(sources)):
                    raise Analogue("it joins channels that differ in weight")
                sources = tuple(module.moved(sources))
        name = self.named(how, module)
        node = self.graph.call_module(name, (train.node,))
        return replace(train, node=node, sources=sources, shape=train.shape if shape is None else shape)

    def reads(self, module: Any, train: Train) -> None:
        """Note that a module weighs the spikes of each channel of a train, if they differ in weight."""
        if train.sources is not None:
            self.readers.append((module, train.sources))

    def keep(self, used: set[str]) -> None:
        """Forget layers that the graph does not call."""
        self.layers = [layer for layer in self.layers if layer.name in used]
        self.pools = [(pool, source) for pool, source in self.pools if pool.name in used]
        self.origins = [origin for origin in self.origins if origin.name in used]

    # -- names

    def named(self, name: str, module: Any, replaces: bool = False) -> str:
        """Add a module under a unique name. Only a module that replaces one of the ANN's may take its name."""
        first, _, rest = name.partition(".")
        if hasattr(fx.GraphModule, first):  # which is no name for a submodule
            name = f"{first}_.{rest}" if rest else f"{first}_"
        unique, i = name, 1
        while unique in self.modules or (unique in self.names and not (replaces and unique == name)):
            unique, i = f"{name}_{i}", i + 1
        self.modules[unique] = module
        return unique

    def word(self, node: fx.Node) -> str:
        """Return the class of torch's module that computes a node alone, or the name of its ATen call."""
        module = self.module(node)
        return word_of(node.target) if module is None else word_of_class(module)

    def place(self, node: fx.Node) -> str:
        """Return the name of the module of torch that computes a node alone, or the node's name."""
        module = self.module(node)
        return node.name if module is None else self.name_of_module[id(module)]

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module of torch, or with levels, whose forward this node is a part of; else None."""
        stack = [*(node.meta.get("nn_module_stack") or {}).values()]
        if not stack:
            return None
        path = str(stack[-1][0])
        try:
            module = self.ann.get_submodule(path)
        except AttributeError:
            return None
        known = type(module).__module__.startswith("torch.nn.modules") or path in self.options.levels
        return module if known and path else None
