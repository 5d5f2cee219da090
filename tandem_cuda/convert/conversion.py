"""One pass over the ANN's graph, which writes the SNN's."""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from ..neuron import IF, Neuron
from ..nn import (
    Decode,
    Encode,
    SpikeWindows,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemDropout,
    TandemDropout2d,
)
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
from .rules import ADD, FUNCTIONS, LAYERS, NORMS, RELU, flattened_to
from .trace import DROPOUTS, as_dropout, kind_of, leading_to, owner_of, parametrized, scope_of, word_of
from .values import BatchSize, Branch, Broken, Current, Pooled, Real, Shape, Train

_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow}


class Conversion:
    """One pass over the ANN's graph, writing the SNN's."""

    def __init__(
        self,
        ann: nn.Module,
        graph: fx.Graph,
        time_steps: int,
        mode: str,
        neuron: Neuron,
        engine: str,
        scaled: bool,
        spiking: set[fx.Node] | None = None,
    ) -> None:
        self.ann = ann
        self.spiking = spiking
        """What leads to the layers that are to spike, and their activations; None for all that can."""
        self.nodes = list(graph.nodes)
        self.time_steps, self.mode, self.neuron, self.engine, self.scaled = time_steps, mode, neuron, engine, scaled
        self.graph = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.names = {name for name, _ in ann.named_modules()}
        self.values: dict[fx.Node, Any] = {}
        self.encoded: dict[fx.Node, fx.Node] = {}
        self.decoded: dict[fx.Node, fx.Node] = {}
        self.problems: list[Problem] = []
        self.tainted: set[fx.Node] = set()
        """What cannot be converted, and all behind it."""
        self.neurons: list[tuple[fx.Node, str]] = []
        """The ANN's activations, and the spiking layers in their places."""
        self.pools: list[tuple[fx.Node, str, str | None]] = []
        """Averages that have neurons of their own, with these, and the layer whose level the averaged spikes weigh."""
        self.before, self.last = self._order()
        for node in self.nodes:
            if not self.tainted.isdisjoint(node.all_input_nodes):
                self.tainted.add(node)
            self.values[node] = self._converted(node)
        self._check_hooks()

    def _check_hooks(self) -> None:
        """Note hooks that nothing would call: of the ANN itself, and of modules that are not in the SNN as they are."""
        if why := hooked(self.ann):
            self.problems.append(Problem(type(self.ann).__name__, type(self.ann).__name__, "", why, why))
        for node in self.nodes:
            if node.op == "call_module" and node not in self.tainted:
                module = self.ann.get_submodule(str(node.target))
                if (why := hooked(module)) and not any(x is module for x in self.modules.values()):
                    self._problem(node, why)

    def _value(self, node: fx.Node) -> Any:
        """What it is in the SNN; behind what cannot be converted, what to go on with."""
        x = self.values[node]
        return x.instead if isinstance(x, Broken) else x

    def written(self) -> fx.GraphModule:
        """The SNN.

        Raises:
            ValueError: what cannot be converted, all of it.
        """
        if self.problems:
            lines = "\n".join(listed(self.problems))
            raise ValueError(f"convert: ann must have nothing but what can be converted; this cannot:\n{lines}")
        if not self.neurons:
            raise ValueError("convert: ann must have a weight layer and a ReLU in front of its last weight layer")
        self.graph.lint()
        return fx.GraphModule(self.modules, self.graph, "SpikingTwin")

    def _order(self) -> tuple[set[fx.Node], set[fx.Node]]:
        """What has a spiking weight layer behind it; and the weight layers that stay as they are, the read-outs."""
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
        return node.op == "call_module" and kind_of(self.ann.get_submodule(str(node.target))) in LAYERS

    # -- one node

    def _converted(self, node: fx.Node) -> Any:
        values = [self._value(x) for x in node.all_input_nodes]
        if self.spiking is not None and node not in self.spiking and node.op != "placeholder":
            return self._copied(node, node.name, self._dropout(node))
        if self._overwrites(node):
            return self._problem(node, "write out of place: its input is used again behind it")
        if node.op == "call_module":
            module = self.ann.get_submodule(str(node.target))
            if kind_of(module) in LAYERS:
                return self._weight(node, module)
            if isinstance(module, nn.modules.conv._ConvNd) and node in self.before:
                return self._problem(
                    node, advice_for(type(module)), Train(self._stand_in())
                )  # not a part of what is in front
            return self._module(node, str(node.target), module)
        if node.target in WEIGHT_FUNCTIONS and node in self.before:
            why = "use the module of the same name, which has parameters to share"
            return self._problem(node, why, Train(self._stand_in()))
        if node.op == "placeholder" and self.mode == "spikes":
            return Train(self.graph.node_copy(node))
        if all(isinstance(x, Real) for x in values):
            return self._copied(node, node.name, self._dropout(node))
        if node.op in ("call_function", "call_method"):
            return self._function(node)
        return self._copied(node)  # the output

    def _module(self, node: fx.Node, name: str, module: nn.Module) -> Any:
        (x, *more) = [self._value(a) for a in node.all_input_nodes]
        if isinstance(module, nn.Identity) and not more:
            return x
        if more or isinstance(x, Real):
            return self._copied(node, name, module)
        if isinstance(x, Current) and len(node.all_input_nodes[0].users) > 1:
            return self._problem(node, "its input is used again; put a ReLU in front of what is used twice")
        if isinstance(module, nn.ReLU):
            return self._fired(node, x)
        if isinstance(module, NORMS):
            return self._norm(node, x, module)
        if isinstance(module, nn.Flatten):
            return self._flattened(x, module.start_dim, module.end_dim)
        spiking = self._spiking(module)
        if spiking is None:
            if getattr(module, "return_indices", False):
                return self._problem(node, "set return_indices=False: the maximum moves from step to step")
            return self._unknown(node, type(module), x)
        if isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
            if isinstance(x, Current) and not all(branch.layer is None for branch in x.branches):
                return self._problem(node, "put the ReLU in front of it: a mean of currents is no mean of spikes")
            return self._averaged(node, module, x)
        if isinstance(module, nn.MaxPool2d):
            x = self._spikes(x) if isinstance(x, Pooled) else x
        return self._behind(x, lambda value: self._applied(value, node, module, spiking))

    def _applied(self, value: Any, node: fx.Node, module: nn.Module, spiking: Any) -> Any:
        """The spiking form of a module; the module itself where an average is real."""
        if isinstance(value, Real):
            return self._called(value, node, module)
        if value.copies > 1:
            spiking.copies = value.copies
        return self._called(value, node, spiking)

    def _spiking(self, module: nn.Module) -> nn.Module | None:
        if type(module) is nn.AvgPool2d:
            return SpikingAvgPool2d(
                module.kernel_size,
                module.stride,
                module.padding,
                module.ceil_mode,
                module.count_include_pad,
                module.divisor_override,
                engine=self.engine,
            )
        if type(module) is nn.AdaptiveAvgPool2d:
            return SpikingAdaptiveAvgPool2d(module.output_size, engine=self.engine)
        if type(module) is nn.MaxPool2d and not module.return_indices:
            kernel, stride, padding, dilation = module.kernel_size, module.stride, module.padding, module.dilation
            return SpikingMaxPool2d(kernel, stride, padding, dilation, False, module.ceil_mode)
        if type(module) is nn.Dropout:
            return TandemDropout(module.p)
        if type(module) is nn.Dropout2d:
            return TandemDropout2d(module.p)
        return None

    def _weight(self, node: fx.Node, module: nn.Module) -> Any:
        argument = node.all_input_nodes[0]
        if (len(node.args), len(node.kwargs)) not in ((1, 0), (0, 1)) and node not in self.last:
            return self._problem(node, "call it with its input alone", Train(self._stand_in()))
        if (why := hooked(module)) and node not in self.last:
            return self._problem(node, why, Current([Branch(self._stand_in(), str(node.target), module)]))
        x = self._value(argument)
        if node in self.last:
            if isinstance(x, Real) or self._readable(x):
                return self._copied(node)
            return self._unfired(node, argument, Real(self._stand_in()))
        if not all(_is_shareable(parametrizations) for _, parametrizations in parametrized(module)):
            why = "remove the parametrization of its weight; of those, only quantise's is shared"
            return self._problem(node, why, Current([Branch(self._stand_in(), str(node.target), module)]))
        if isinstance(x, Real):
            return Current([Branch(self._encode(x.node), str(node.target), module, encoded=True)])
        if isinstance(x, Current) and self._readable(x):
            x = self._fired(argument, x)
        if isinstance(x, Current):
            branch = Branch(self._stand_in(), str(node.target), module)
            return self._unfired(node, argument, Current([branch]))
        if isinstance(x, Pooled):
            x = self._pooled(x, "windows" if x.folds_into(module) else "neurons")
        return Current([Branch(x.node, str(node.target), module, copies=x.copies)])

    def _readable(self, x: Any) -> bool:
        """Whether it is a train, or a sum of trains, which is never negative and needs no ReLU."""
        return isinstance(x, (Train, Pooled)) or (isinstance(x, Current) and all(b.layer is None for b in x.branches))

    def _norm(self, node: fx.Node, x: Any, norm: Any) -> Any:
        branch = x.branches[0] if isinstance(x, Current) and len(x.branches) == 1 and not x.then else None
        if branch is None or branch.layer is None or branch.norm is not None:
            if isinstance(self.values[node.all_input_nodes[0]], Broken):  # which may have been a weight layer
                return x
            return self._problem(node, "put it directly behind a weight layer, whose weights it can fold into")
        if type(norm) is not LAYERS[kind_of(branch.layer)][1]:
            return self._problem(node, f"use nn.{LAYERS[kind_of(branch.layer)][1].__name__} behind {branch.name}")
        if norm.running_mean is None or not norm.affine:
            return self._problem(node, "set affine=True and track_running_stats=True: the spiking twin folds them")
        return Current([replace(branch, norm=norm)])

    def _function(self, node: fx.Node) -> Any:
        arguments = [self._value(a) if isinstance(a, fx.Node) else a for a in node.args]
        x = arguments[0] if arguments else None
        target: Any = node.target
        if target in ADD and len(arguments) == 2 and not node.kwargs:
            return self._sum(node, arguments)
        if isinstance(x, Shape) and target is operator.getitem and arguments[1] == 0:
            return BatchSize()
        if not isinstance(x, (Train, Pooled, Current)):
            return self._problem(node, FUNCTION_ADVICE.get(target, NOTHING_ELSE))
        if target == "size":
            return Shape() if len(arguments) == 1 else BatchSize() if arguments[1:] == [0] else self._sized(node)
        if target is getattr and arguments[1] == "shape":
            return Shape()
        if target is len:
            return BatchSize()
        users = [user for user in node.args[0].users if not self._asks_for_size(user)]  # type: ignore[union-attr]
        if isinstance(x, Current) and len(users) > 1:
            return self._problem(node, "its input is used again; put a ReLU in front of what is used twice")
        if target in RELU:
            return self._fired(node, x)
        if target in ACTIVATIONS:
            return self._unknown(node, ACTIVATIONS[target], x)
        if target in FUNCTIONS:
            return self._module(node, node.name, FUNCTIONS[target](*node.args, **node.kwargs))
        if target in DROPOUTS:
            if node.meta["drops"] == (True, True):
                return self._problem(node, "use nn.Dropout, or training=self.training: it drops in eval mode too")
            return self._module(node, node.name, self._dropout(node) or nn.Identity())
        if target in (torch.flatten, "flatten"):
            dims = inspect.signature(lambda x, start_dim=0, end_dim=-1: None).bind(*node.args, **node.kwargs)
            dims.apply_defaults()
            return self._flattened(x, *dims.args[1:])
        if target in ("view", "reshape", torch.reshape):
            return self._reshaped(node, x, arguments[1:])
        if target in (torch.mean, "mean"):
            return self._mean(node, x)
        if target == "contiguous" and isinstance(x, (Train, Pooled)):
            return x
        return self._problem(node, FUNCTION_ADVICE.get(target, NOTHING_ELSE))

    def _asks_for_size(self, node: fx.Node) -> bool:
        return node.target in ("size", len) or (node.target is getattr and node.args[1] == "shape")

    def _sized(self, node: fx.Node) -> Any:
        return self._problem(node, "use nn.Flatten in place of a computed shape")

    def _reshaped(self, node: fx.Node, x: Any, sizes: list[Any]) -> Any:
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = [self._value(s) if isinstance(s, fx.Node) else s for s in sizes[0]]
        batch, features = sizes if len(sizes) == 2 else (None, None)
        if not (isinstance(batch, BatchSize) or batch == -1) or not isinstance(features, int):
            return self._sized(node)
        if features == -1:
            return self._flattened(x, 1, -1)

        def step(value: Any) -> Any:
            size = features * getattr(value, "copies", 1)
            return replace(value, node=self.graph.call_function(flattened_to, (value.node, size)))

        return self._behind(x, step, flat=True)

    def _mean(self, node: fx.Node, x: Any) -> Any:
        given = inspect.signature(lambda x, dim=None, keepdim=False, dtype=None: None).bind(*node.args, **node.kwargs)
        given.apply_defaults()
        _, dims, keepdim, dtype = given.args
        if dtype is not None or not isinstance(dims, (tuple, list)) or sorted(d % 4 for d in dims) != [2, 3]:
            return self._problem(node, "use nn.AdaptiveAvgPool2d(1): of spikes, only the mean over all pixels is known")
        if not self._readable(x):
            return self._problem(node, "put the ReLU in front of it: a mean of currents is no mean of spikes")
        pooled = self._averaged(node, nn.AdaptiveAvgPool2d(1), x)
        return pooled if keepdim else self._flattened(pooled, 1, -1)

    def _averaged(self, node: fx.Node, module: Any, x: Any) -> Any:
        """Average pooling of spikes. With calibration there is more that can become of it than neurons."""
        x = self._fired(node.all_input_nodes[0], x) if isinstance(x, Current) else x
        pooled = Pooled(node, module, x)
        return pooled if self.scaled else self._spikes(pooled)

    def _sum(self, node: fx.Node, values: list[Any]) -> Any:
        branches: list[Branch] = []
        for argument, x in zip(node.args, values, strict=True):
            if isinstance(x, Current) and not x.then and len(argument.users) == 1:  # type: ignore[union-attr]
                branches += x.branches
            elif isinstance(x, (Train, Pooled)):
                branches.append(Branch(self._spikes(x).node))
            elif isinstance(x, Current):
                return self._problem(node, "put a ReLU in front of what is pooled or used twice before it is added")
            else:
                return self._problem(node, "add spikes to spikes: real input and constants are none")
        if any(branch.encoded for branch in branches):
            return self._problem(node, "put a weight layer and a ReLU between the input of the network and the sum")
        return Current(branches)

    # -- what is written

    def _copied(self, node: fx.Node, name: str | None = None, module: nn.Module | None = None) -> Any:
        """The node as it is; trains it needs are decoded."""
        for argument in node.all_input_nodes:
            if not isinstance(self._value(argument), Real) and not self._readable(self._value(argument)):
                return self._unfired(node, argument, Real(self._stand_in()))
        if node.op == "call_module":
            module, name = self.ann.get_submodule(str(node.target)), str(node.target)
            if self.modules.get(name, module) is not module:  # it runs twice, as a spiking layer the first time
                name = self._register(name, module)
            self.modules[name] = module
            copied = self.graph.node_copy(node, self._real)
            copied.target = name
            return Real(copied)
        if module is not None:
            (x, *_) = node.all_input_nodes
            return Real(self.graph.call_module(self._register(str(name), module), (self._real(x),)))
        if node.op == "get_attr":
            owner, key = owner_of(self.ann, str(node.target))
            self.modules[str(node.target)] = getattr(owner, key)
        return Real(self.graph.node_copy(node, self._real))

    def _real(self, node: fx.Node) -> Any:
        x = self._value(node)
        if isinstance(x, Current):
            x = self._fired(node, x)
            self.values[node] = x
        return self._decoded(x).node

    def _decoded(self, x: Any) -> Any:
        if isinstance(x, Real):
            return x
        if isinstance(x, Pooled):
            return self._pooled(x, "real")
        if x.node not in self.decoded:
            name = self._register("decode", Decode())
            real = self.graph.call_module(name, (x.node,))
            if self.spiking is not None:  # the ANN writes in place and asks for views where it likes
                real = self.graph.call_method("clone", (real,), {"memory_format": torch.contiguous_format})
            self.decoded[x.node] = real
        return Real(self.decoded[x.node])

    def _pooled(self, x: Pooled, form: str) -> Any:
        """An average as the "real" mean of counts; as "neurons"; or as the spikes of its "windows", side by side."""
        if form not in x.made:
            pool: Any = x.module
            if form == "real":
                x.made[form] = self._called(self._decoded(x.source), x.node, pool)
            elif form == "windows":
                windows = SpikeWindows(pool.kernel_size, pool.stride, pool.padding, pool.divisor_override)
                x.made[form] = replace(self._called(self._spikes(x.source), x.node, windows), copies=windows.size)
            else:
                train = self._called(self._spikes(x.source), x.node, self._spiking(pool))
                name = str(train.node.target)
                self.pools.append((x.node, name, train.level))
                x.made[form] = replace(train, level=name)
        if form not in x.done:
            x.done[form] = x.made[form]
            for step in x.then:
                x.done[form] = step(x.done[form])
        return x.done[form]

    def _spikes(self, x: Any) -> Train:
        """A train, of neurons if it is an average."""
        train: Train = self._pooled(x, "neurons") if isinstance(x, Pooled) else x
        return train

    def _encode(self, x: fx.Node) -> fx.Node:
        if x not in self.encoded:
            scale = 1 / self.time_steps if self.scaled and self.mode == "constant" else 1.0
            name = self._register("encode", Encode(self.time_steps, self.mode, scale))
            self.encoded[x] = self.graph.call_module(name, (x,))
        return self.encoded[x]

    def _fired(self, node: fx.Node, x: Any) -> Any:
        """The neurons in place of the ReLU ``node``, which leaves spikes and averages of spikes as they are."""
        if isinstance(x, (Train, Pooled)):
            return x
        if node in self.tainted:  # no part of a layer can be relied on
            return Train(self._stand_in())
        if len(x.branches) == 1 and x.branches[0].layer is not None:
            (branch,) = x.branches
            name, module = branch.name, self._layer(branch, self.neuron)
        else:
            name = ".".join([*_common([b.name.split(".")[:-1] for b in x.branches if b.layer is not None]), "add"])
            branches = [nn.Identity() if b.layer is None else self._layer(b, IF()) for b in x.branches]
            module = TandemAdd(*branches, neuron=self.neuron, engine=self.engine)
        name = self._register(name, module, replaces=len(x.branches) == 1)
        self.neurons.append((node, name))
        train = Train(self.graph.call_module(name, tuple(branch.source for branch in x.branches)), name)
        for step in x.then:
            train = step(train)
        return train

    def _layer(self, branch: Branch, neuron: Neuron) -> Any:
        """The tandem layer that holds a weight layer's parameters and its norm."""
        module: Any = branch.layer
        tandem, _ = LAYERS[kind_of(module)]
        arguments = {
            name: getattr(module, name)
            for name in inspect.signature(kind_of(module)).parameters
            if name not in ("bias", "device", "dtype")
        }
        inputs = "in_features" if "in_features" in arguments else "in_channels"
        arguments[inputs] *= branch.copies
        layer: Any = tandem(**arguments, bias=False, device="meta", neuron=neuron, engine=self.engine)
        layer.copies = branch.copies
        layer.norm = branch.norm
        for name in ("weight", "bias"):
            owner, key = owner_of(module, name)
            setattr(layer, name, getattr(owner, key))
        for name, parametrizations in parametrized(module):
            for parametrization in parametrizations:
                parametrize.register_parametrization(layer, name, parametrization, unsafe=True)
        return layer

    def _register(self, name: str, module: nn.Module, replaces: bool = False) -> str:
        """Name a module; by the name of a module of the ANN only where it takes that one's place."""
        unique, i = name, 1
        while unique in self.modules or (unique in self.names and not (replaces and unique == name)):
            unique, i = f"{name}_{i}", i + 1
        self.modules[unique] = module
        return unique

    def _called(self, x: Any, node: fx.Node, module: Any) -> Any:
        """A module in the place of the ANN's node, applied to a train or a real value."""
        replaces = node.op == "call_module"
        name = self._register(str(node.target) if replaces else node.name, module, replaces)
        return replace(x, node=self.graph.call_module(name, (x.node,)))

    def _flattened(self, x: Any, start: int, end: int) -> Any:
        def step(value: Any) -> Any:
            return replace(value, node=self.graph.call_method("flatten", (value.node, start, end)))

        return self._behind(x, step, flat=start == 1 and end in (-1, 3))

    def _behind(self, x: Any, step: Callable[[Any], Any], flat: bool = False) -> Any:
        """Do it to a train, or later: behind the neurons, or to what becomes of an average."""
        if isinstance(x, Pooled):  # whose forms all that comes of it shares
            return replace(x, then=[*x.then, step], flat=x.flat or flat, done={})
        return step(x) if isinstance(x, Train) else Current(x.branches, [*x.then, step])

    def _dropout(self, node: fx.Node) -> nn.Module | None:
        """The module that a function of dropout is, where it has the mode of the ANN."""
        follows = node.target in DROPOUTS and node.meta["drops"] == (False, True)
        return DROPOUTS[node.target](as_dropout(node)[0]) if follows else None

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether it writes in place to spikes that are used again behind it, which would not see that in the SNN."""
        module = self.ann.get_submodule(str(node.target)) if node.op == "call_module" else None
        word = word_of(node.target)
        in_place = (
            word.endswith("_") and not word.endswith("__") if module is None else getattr(module, "inplace", False)
        )
        in_place = in_place or bool(node.kwargs.get("inplace")) or node.target in _IN_PLACE
        if not in_place or not node.args or not isinstance(node.args[0], fx.Node):
            return False
        written = node.args[0]
        if isinstance(module, nn.ReLU) or node.target in RELU or not isinstance(self._value(written), (Train, Pooled)):
            return False  # spikes are not negative; what is real stays in the ANN's order; the rest is used once
        behind = self.nodes[self.nodes.index(node) + 1 :]
        return any(user in behind for user in written.users)

    # -- what is said

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return str(node.target)
        return f"{node.name} ({word_of(node.target)} in forward of {scope_of(node, self.ann)})"

    def _problem(self, node: fx.Node, why: str, instead: Any = None, why_all: str | None = None) -> Broken:
        """Note it; behind it goes on ``instead``, by default the first of its inputs that is none of the real ones."""
        name, kind, place = self._name(node), word_of(node.target), f"{node.name} in {scope_of(node, self.ann)}"
        if node.op == "call_module":
            kind, place = type(self.ann.get_submodule(str(node.target))).__name__, name
            name += f" ({kind})"
        self.problems.append(Problem(kind, name, place, why, why_all or why))
        self.tainted.add(node)
        if instead is None:
            inputs = [self._value(x) for x in node.all_input_nodes]
            instead = next((x for x in inputs if isinstance(x, (Train, Pooled, Current))), None)
        return Broken(Train(self._stand_in()) if instead is None else instead)

    def _unknown(self, node: fx.Node, kind: type[nn.Module], x: Any) -> Any:
        """A module, or a function that does what it does, that has no spiking form."""
        problem = self._problem(node, advice_for(kind))
        if issubclass(kind, (*CURVED, *SQUASHING)):  # as if it were a ReLU
            return Train(self._stand_in())
        return x if issubclass(kind, NORMALISING) else problem

    def _unfired(self, node: fx.Node, argument: fx.Node, instead: Any) -> Any:
        """A weight layer or an output whose input is a pre-activation; behind it goes on as if it had fired."""
        self._problem(node, f"put a ReLU between {self._name(argument)} and it", why_all="put a ReLU in front of each")
        return instead

    def _stand_in(self) -> fx.Node:
        """A node for what is not there, in a graph that is not going to be written."""
        return self.graph.placeholder("stand_in")


def _is_shareable(parametrizations: Any) -> bool:
    """Whether two layers can hold them, on one parameter: what has an inverse changes it where it is registered."""
    return parametrizations.is_tensor and not any(hasattr(x, "right_inverse") for x in parametrizations)


def _common(paths: list[list[str]]) -> list[str]:
    """The beginning that all paths have."""
    together = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return [parts[0] for parts in together]


def cut(whole: Conversion, count: int, again: Callable[[set[fx.Node]], Conversion]) -> Conversion:
    """A conversion of the first layers only; the whole one where these are all, or where it has to say why not."""
    total = len(whole.neurons)
    if count < total or (count == total and whole.problems):
        if not whole.scaled:
            raise ValueError(
                f"convert: calibrate must be given with spiking_layers={count} of {total} (the ANN behind them expects "
                "its activations, not counts), got None"
            )
        return again(leading_to(node for node, _ in whole.neurons[:count]))
    if count > total and not whole.problems:
        raise ValueError(f"convert: spiking_layers must be at most the {total} that the ANN has, got {count}")
    return whole
