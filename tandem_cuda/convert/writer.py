"""Writing the SNN's graph: its modules and their calls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from ..neuron import IF, Neuron
from ..nn import Decode, Encode, SpikeCat, SpikeRearrange, SpikeWindows, TandemAdd, TandemGate
from ..nn.learned_threshold import new_log_threshold
from ..spike_train import SpikeTrain
from .advice import COUNTED, NEGATIVE, SIZES
from .gates import gated
from .layers import described, layer_of
from .nodes import common_path, kept, kind_of, module_of, name_in_ann, steps_between, word_of
from .options import Options
from .pixels import Pixels
from .pools import spiking_pool
from .record import Origin
from .trace import Traced
from .values import Branch, Broken, Current, Pooled, Real, Slope, SpikeSource, SpikingLayer, Train
from .weight_rules import Unconvertible


class Writer:
    """The SNN's graph under construction.

    Args:
        trace: the trace of the ANN.
        options: what ``convert`` was asked for.
        hybrid: whether a part of the ANN follows the last spikes.
    """

    def __init__(self, trace: Traced, options: Options, hybrid: bool) -> None:
        self.trace, self.ann, self.options, self.hybrid = trace, trace.root, options, hybrid
        self.values: dict[fx.Node, Any] = {}
        """What the ANN's nodes have become."""
        self.tainted: set[fx.Node] = set()
        """The ANN's nodes that cannot be converted, and all nodes that depend on them."""
        self.gates = gated(list(trace.graph.nodes), self.ann) if options.gates else {}
        """The nodes that compute a gate from spikes and stay as they are, each with the product that applies it."""
        self.graph = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.name_of_module = {id(vars(module)): name for name, module in self.ann.named_modules()}
        """By what a module shares with modules that have its state."""
        self.names = {*self.name_of_module.values()}
        self.encoded: dict[fx.Node, fx.Node] = {}
        """Real values, and their spikes."""
        self.real: dict[fx.Node, fx.Node] = {}
        """Spike trains, and their decoded counts."""
        self.layers: list[SpikingLayer] = []
        """The tandem layers and TandemAdds, in order of execution."""
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
        self.now: fx.Node | None = None
        """The ANN's node that is being converted."""

    @cached_property
    def pixels(self) -> Pixels:
        """Which values of the ANN are images pooled to one pixel."""
        return Pixels(self.trace.graph.nodes, self.ann)

    def value(self, node: fx.Node) -> Any:
        """Return the value of a node in the SNN, or the substitute for a node that cannot be converted."""
        x = self.values[node]
        return x.instead if isinstance(x, Broken) else x

    def train(self, node: fx.Node) -> Train:
        """Return the node's value as a spike train. Currents without a ReLU get neurons for both signs."""
        x = self.value(node)
        if isinstance(x, Current):
            x = self.values[node] = self.write_neurons(node, x, signed=not x.is_positive)
        return self.spikes(x)

    def encoded_input(self, x: fx.Node) -> fx.Node:
        if x not in self.encoded:
            steps, mode = self.options.time_steps, self.options.mode
            scale = 1 / steps if self.options.calibrated and mode == "constant" else 1.0
            name = self.named("encode", Encode(steps, mode, scale))
            self.encoded[x] = self.graph.call_module(name, (x,))
        return self.encoded[x]

    def dims_of(self, node: fx.Node) -> int | None:
        """Return the number of dimensions of a value of the ANN, which an example tells; None without one."""
        size = self.trace.sizes.get(node)
        return None if size is None else len(size)

    def by_channel(self, train: Train, images: bool = False) -> Train:
        """Return a train for modules that read channels along dimension 1.

        ``images``: they read lines or images, so that channels cannot be features.
        """
        if not train.features or train.dims == 2 or (train.dims is None and not images):
            return train
        if train.sources is not None:
            raise Unconvertible(self._of_one_weight("put a weight layer between the concatenation and it"))
        moved = self.rearranged(train, "pairs", 1) if train.signed else train
        return replace(moved, channels=None, features=False)

    def by_feature(self, node: fx.Node, train: Train) -> Train:
        """Return the train of a node for a linear layer, which reads features along the last dimension."""
        if train.features or train.dims in (2, None):
            return train
        if train.sources is not None and self.options.per_channel:
            raise Unconvertible(self._of_one_weight(""))
        if train.sources is not None:  # a concatenation gets neurons of one weight
            train = self.write_neurons(node, Current([Branch(train, node.name)]), signed=train.signed)
        moved = self.rearranged(train, "pairs", -1) if train.signed else train
        return replace(moved, channels=None, features=True)

    def _of_one_weight(self, otherwise: str) -> str:
        """Return the advice for what cannot read spikes of different weight; ``otherwise`` if they are concatenated."""
        return f"{'pass per_channel=False' if self.options.per_channel else otherwise}: it needs spikes of one weight"

    def spikes(self, x: Train | Pooled) -> Train:
        """Return x as a spike train; an average gets neurons."""
        return self.pooled(x, "neurons") if isinstance(x, Pooled) else x

    def decoded(self, x: Any) -> Any:
        if isinstance(x, Real):
            return x
        if isinstance(x, Pooled):
            return self.pooled(x, "real")
        if x.node not in self.real:
            decode = Decode(x.signed)
            self.decodes(decode, x)
            real = self.graph.call_module(self.named("decode", decode), (x.node,))
            if self.hybrid:  # the rest of the ANN may write in place or take views
                real = self.graph.call_method("clone", (real,), {"memory_format": torch.contiguous_format})
            self.real[x.node] = real
        return Real(self.real[x.node])

    def pooled(self, x: Pooled, form: str) -> Any:
        """Write an average as the "real" mean of counts, as "neurons", or as the spikes of its "windows" in a row."""
        if form not in x.forms:
            pool: Any = x.module
            if form == "real":
                x.forms[form] = self.called(self.decoded(x.source), x.node, pool)
            elif form == "windows":
                windows = SpikeWindows(pool.kernel_size, pool.stride, pool.padding, pool.divisor_override)
                spikes = self.by_channel(self.spikes(x.source), True)
                x.forms[form] = replace(self.called(spikes, x.node, windows), windows=windows.size)
            else:
                spikes = self.by_channel(self.spikes(x.source), True)
                train = self.called(spikes, x.node, spiking_pool(pool, self.options))
                if train.sources is None:
                    name = str(train.node.target)
                    self.pools.append((SpikingLayer(name, x.node, train.signed), train.level))
                    train = replace(train, level=name)
                x.forms[form] = train
        if form not in x.results:
            x.results[form] = x.forms[form]
            for step in x.deferred:
                x.results[form] = step(x.results[form])
        return x.results[form]

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
            x = Current([Branch(self.spikes(x))])
        if node in self.tainted:  # the layer may be incomplete
            return self.stand_in(x.channels, x.dims)
        if signed and x.wants_relu:
            refused = Unconvertible(NEGATIVE)
            refused.node = x.wants_relu
            raise refused
        name = self._neurons(node, x, signed, bound, slope)
        channels, dims = x.of_neurons
        largest, values = math.inf if bound is None else bound, self._before_deferred(node, x)
        self.layers.append(SpikingLayer(name, node, signed, largest, values, channels, level=level))
        sources: tuple[SpikeSource, ...] | None = None
        if self.options.per_channel:
            assert channels is not None  # or else there would be no layer
            sources = tuple((name, i) for i in range(channels))
        neurons = self.graph.call_module(name, tuple(branch.train.node for branch in x.branches))
        train = Train(neurons, name if sources is None else None, 1, signed, channels, sources, dims, x.features)
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

    def _before_deferred(self, node: fx.Node, x: Current) -> fx.Node:
        """Return the ANN's node for the values of all neurons: before the steps that come after the neurons."""
        if not x.deferred:
            return node
        while node is not x.origin and (not isinstance(before := self.values.get(node), Current) or before.deferred):
            node = node.all_input_nodes[0]
        return node

    def _parts(self, node: fx.Node, x: Current, bare: bool) -> tuple[str, tuple[str, ...]]:
        """Return in words which parts of the ANN the neurons replace, and the names of these parts.

        ``bare``: there is no activation.
        """
        words, names = [], []
        for branch in x.branches:
            modules = [module for module in (branch.layer, branch.norm) if module is not None]
            found = (self.name_of_module.get(id(vars(module))) for module in modules)
            names += [name for name in found if name is not None]
            parts = [kind_of(module).__name__ for module in modules]
            parts += described(branch)
            words.append(", ".join(parts or ["spikes"]))
        word = " + ".join(words)
        if bare or x.is_positive:  # there is no activation, or it does nothing
            return word, tuple(names)
        return f"{word}, {self.word(node)}", (*names, name_of(node))

    def _layer(
        self, branch: Branch, neuron: Neuron, signed: bool, slope: Slope | None, learn_threshold: bool = False
    ) -> Any:
        """Make the tandem layer of a branch, and note what it reads."""
        layer = layer_of(branch, neuron, signed, self.options.engine, self.like, slope)
        if learn_threshold:
            layer.log_threshold = new_log_threshold(type(layer).__name__, True, self.like)
        self.reads(layer, branch.train)
        return layer

    def counted(self, train: Train, node: fx.Node) -> Train:
        """Return a train whose number of channels is known, if an example tells it."""
        size = self.trace.sizes.get(node)
        return train if train.channels is not None or size is None else replace(train, channels=size[1])

    def joined(self, node: fx.Node, every: tuple[fx.Node, ...]) -> Train:
        """Concatenate trains along the channels. If an earlier concatenation is of the first ones, take its result."""
        earlier = next((n for n in range(len(every) - 1, 1, -1) if every[:n] in self.joins), 0)
        found = [self.joins[every[:earlier]]] if earlier else []
        nodes, trains = map(list, zip(*found, *((x, self.train(x)) for x in every[earlier:]), strict=True))
        levels = list(dict.fromkeys(train.level for train in trains))
        differ = self.options.calibrated and (len(levels) > 1 or any(train.sources is not None for train in trains))
        if differ and any(train.features and train.dims is None for train in trains):
            raise Unconvertible(SIZES)  # does it concatenate features, or rows of them?
        of_rows = any(train.features and train.dims not in (2, None) for train in trains)
        if of_rows and (differ or not all(train.features for train in trains)):
            trains = [self.counted(self.by_channel(train), x) for train, x in zip(trains, nodes, strict=True)]
        channels = [None if of_rows and train.features else train.channels for train in trains]
        known = [number for number in channels if number is not None]
        if differ and len(known) < len(trains):
            raise Unconvertible(COUNTED)
        cat = SpikeCat(*(train.signed for train in trains))
        sources = None
        if differ:
            each = [t.sources or tuple((t.level, i) for i in range(n)) for t, n in zip(trains, known, strict=True)]
            sources = tuple(itertools.chain(*each))
            self.cats.append((cat, [None if train.sources is not None else train.level for train in trains]))
        name = self.named(node.name, cat)
        self.origins.append(Origin(name, self.word(node), (node.name,), node.name))
        whole = Train(
            self.graph.call_module(name, tuple(train.node for train in trains)),
            None if differ else levels[0],
            signed=any(train.signed for train in trains),
            channels=sum(known) if len(known) == len(trains) else None,
            sources=sources,
            dims=next((train.dims for train in trains if train.dims is not None), None),
            features=all(train.features for train in trains),
        )
        self.joins[every] = node, whole
        return whole

    def gated(self, node: fx.Node, train: Train, gate: Real) -> Train:
        """Write the neurons of a product of spikes and a gate."""
        module = TandemGate(self.options.neuron, train.signed)
        self.decodes(module.decode, train)
        name = self.named(node.name, module)
        self.layers.append(SpikingLayer(name, node, train.signed))
        self.origins.append(Origin(name, "spikes * gate", (node.name,), node.name, signed=train.signed))
        product = self.graph.call_module(name, (train.node, gate.node))
        return Train(product, name, 1, train.signed, train.channels, None, train.dims, train.features)

    def called(self, x: Any, node: fx.Node, module: Any) -> Any:
        """Apply a module to a spike train or a real value, in place of the ANN's node."""
        replaces = node.op == "call_module"
        name = self.named(str(node.target) if replaces else node.name, module, replaces)
        origin = Origin(name, self.word(node), (name_of(node),), node.name, real=not isinstance(x, Train))
        if isinstance(x, Train):
            origin = replace(origin, signed=x.signed, sources=x.sources, features=x.features)
        self.origins.append(origin)
        return replace(x, node=self.graph.call_module(name, (x.node,)))

    def flattened(self, x: Any, start: int = 1, end: int = -1) -> Any:
        """Flatten dimensions start to end of a spike train. For averages and currents, the step is deferred."""
        dims = x.dims
        if dims is not None and -dims <= start < dims and -dims <= end < dims:
            start, end = start % dims, end % dims
            dims -= max(end - start, 0)
        else:
            dims = 2 if (start, end) == (1, -1) else None
        whole = dims == 2 and start == 1
        size = None if self.now is None else self.trace.fixed_sizes(self.now)

        def step(value: Any) -> Any:
            features = isinstance(value, Train) and value.features
            channels = value.channels if start > 1 and isinstance(value, Train) and not features else None
            if isinstance(value, Train) and value.signed and start < 2 and not features:
                if not whole:
                    raise Unconvertible("flatten all dimensions, or put a ReLU before it")
                return _counted(replace(self.rearranged(value, "flatten"), channels=None, dims=2), size)
            flat = replace(value, node=self.graph.call_method("flatten", (value.node, start, end)))
            return _counted(replace(flat, channels=channels, dims=dims), size) if isinstance(value, Train) else flat

        flat = self.apply_or_defer(x, step, flat=whole)
        return replace(flat, dims=dims) if isinstance(flat, Pooled) else flat

    def flattened_to(self, x: Any, features: int) -> Any:
        """Flatten all dimensions but the first to ``features`` features."""

        def step(value: Any) -> Any:
            if isinstance(value, Real):
                return replace(value, node=kept(self.graph.call_function(flattened_to, (value.node, features))))
            size = features * value.windows * (1 + value.signed)
            if value.signed and not value.features:
                value = self.rearranged(value, "flatten")
            flat = kept(self.graph.call_function(flattened_to, (value.node, size)))
            return replace(value, node=flat, channels=features if value.sources is None else None, dims=2)

        flat = self.apply_or_defer(x, step, flat=True)
        return replace(flat, dims=2) if isinstance(flat, Pooled) else flat

    def rearranged(self, train: Train, how: str, *arguments: int) -> Train:
        """Rearrange the neurons of a train, as :class:`SpikeRearrange` does."""
        module = SpikeRearrange(how, *arguments, signed=train.signed)
        if how == "unflatten":  # only [N, F] is, whose features are along dimension 1
            train = replace(train, features=False)
        sources, channels = train.sources, train.channels
        of_channels = how in ("channels", "channel_shuffle", "channel_pad") or (how == "slice" and arguments[0] == 1)
        stays = of_channels or how in ("unsqueeze", "pairs", "slice")
        if train.features and train.dims is None and (of_channels or how == "slice") and sources is not None:
            raise Unconvertible(SIZES)  # are they features?
        if train.features and train.dims is not None and how == "slice" and arguments[0] == train.dims - 1:
            taken = slice(*arguments[1:])
            sources = None if sources is None else sources[taken]
            channels = None if channels is None else len(range(channels)[taken])
        elif train.features and train.dims != 2 and stays:
            pass  # features stay where they are
        elif train.features and how != "flatten":
            if sources is not None:
                raise Unconvertible(self._of_one_weight("put a weight layer between the concatenation and it"))
            channels = None
        elif sources is not None and how != "flatten":
            if any(source != sources[i - i % module.merged] for i, source in enumerate(sources)):
                raise Unconvertible(self._of_one_weight("put a weight layer between the concatenation and it"))
            sources = tuple(module.moved(sources))
        if channels is not None and (not train.features or (train.dims is None and of_channels)):
            channels = len(module.moved(range(channels)))
        name = self.named(how, module)
        dims = 4 if how in ("unsqueeze", "unflatten") else train.dims
        node = self.graph.call_module(name, (train.node,))
        return replace(train, node=node, sources=sources, channels=channels, dims=dims)

    def apply_or_defer(self, x: Any, step: Callable[[Any], Any], flat: bool = False) -> Any:
        """Apply a step to a spike train, or defer it: until after the neurons, or until the average has its form."""
        if isinstance(x, Train):
            return step(x)
        deferred = [*x.deferred, _blaming(self.now, step)]
        if isinstance(x, Pooled):  # copies share the forms made so far, but not the steps applied to them
            return replace(x, deferred=deferred, flat=x.flat or flat, results={})
        return replace(x, deferred=deferred)

    def reads(self, module: Any, train: Train) -> None:
        """Note that a module weighs the spikes of each channel of a train, if they differ in weight."""
        sources = train.sources
        if sources is not None and train.features and isinstance(module, nn.Linear):  # perhaps flattened rows
            rows, rest = divmod(module.weight.shape[1], len(sources))
            if rest or not rows:
                raise Unconvertible(SIZES)
            sources *= rows
        if sources is not None:
            self.readers.append((module, sources))

    def decodes(self, decode: Decode, train: Train) -> None:
        """Note that a Decode weighs the spikes of each channel or feature of a train, if they differ in weight."""
        rows = train.dims not in (2, None)
        decode.of_features = train.features and (rows or train.sources is not None)
        self.reads(decode, train)

    def named(self, name: str, module: nn.Module, replaces: bool = False) -> str:
        """Add a module under a unique name. Only a module that replaces one of the ANN's may take its name."""
        unique, i = name, 1
        while unique in self.modules or (unique in self.names and not (replaces and unique == name)):
            unique, i = f"{name}_{i}", i + 1
        self.modules[unique] = module
        return unique

    def word(self, node: fx.Node) -> str:
        """Return the class of the module that a node calls, or the name of its function."""
        module = module_of(self.ann, node)
        return word_of(node.target) if module is None else kind_of(module).__name__

    def stand_in(self, channels: int | None = None, dims: int | None = None) -> Train:
        """Return a placeholder for missing spikes. A graph with problems is never used, so it may be incomplete."""
        return Train(self.graph.placeholder("stand_in"), channels=channels, dims=dims)


def _counted(train: Train, size: torch.Size | None) -> Train:
    """Return a train of flattened images or rows, [N, F], whose features are counted if they have a fixed number."""
    if train.dims != 2 or size is None or len(size) != 1:
        return train
    sources, features = train.sources, size[0]
    if sources is not None:
        times = features // len(sources)
        sources = sources * times if train.features else tuple(x for x in sources for _ in range(times))
    return replace(train, channels=features, sources=sources)


def name_of(node: fx.Node) -> str:
    """Return the ANN's name for the module that a node calls, or the name of the node."""
    return name_in_ann(str(node.target)) if node.op == "call_module" else node.name


def _blaming(node: fx.Node | None, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let a step that is applied later say which of the ANN's nodes cannot be converted."""

    def blaming(value: Any) -> Any:
        try:
            return step(value)
        except Unconvertible as refused:
            refused.node = refused.node or node
            raise

    return blaming


def flattened_to(train: SpikeTrain, features: int) -> SpikeTrain:
    """Flatten a spike train like ``x.view(-1, features)``, but raise a ValueError where that would mix samples."""
    flat = train.flatten(1)
    if flat.shape[1] != features:
        raise ValueError(f"view: input must have {features} features per sample, got {flat.shape[1]}")
    return flat
