"""The base of readers, which go through the graph of a quantised network and collect its steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..convert.nodes import word_of
from .steps import (
    Branch,
    Code,
    Decoding,
    Encoding,
    Kept,
    Move,
    Moving,
    Network,
    Neurons,
    Product,
    ReadOut,
    Real,
    Spikes,
    Step,
    Sums,
    Unreadable,
)

_WINDOWS = {"kernel_size": None, "stride": None, "padding": 0}
_ROUNDING = {"threshold": 1.0, "amplitude": 1.0, "initial": 0.5, "two_phase": True, "engine": "auto"}
POOLS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "max_pool2d": ("SpikingMaxPool2d", {**_WINDOWS, "dilation": 1, "ceil_mode": False}, {}),
    "avg_pool2d": (
        "SpikingAvgPool2d",
        {**_WINDOWS, "ceil_mode": False, "count_include_pad": True, "divisor_override": None},
        _ROUNDING,
    ),
    "adaptive_avg_pool2d": ("SpikingAdaptiveAvgPool2d", {"output_size": None}, _ROUNDING),
}
"""For each pooling function the spiking layer; the function's arguments behind the input, in their order, with their
defaults; and the settings of the spiking layer that the pooling does not change."""
BROKEN = object()
"""The value of a node that has no stand-in."""
Showing: Any = object


def as_graph(model: nn.Module) -> fx.GraphModule:
    """Return the graph of a model's forward."""
    if isinstance(model, fx.GraphModule):
        return model
    try:
        return fx.GraphModule(model, fx.Tracer().trace(model))
    except Exception as error:
        raise ValueError(f"from_quantised: model must be traceable by torch.fx, got an error: {error}") from error


class Reader(ABC):
    """Reads one form of quantised networks.

    Args:
        model: the network, as a graph.
        example: its inputs.
    """

    def __init__(self, model: fx.GraphModule, example: tuple[Tensor, ...]) -> None:
        self.model = model
        self.values: dict[fx.Node, Any] = {}
        self.steps: list[Step] = []
        self.integers: dict[str, Tensor] = {}
        self.problems: list[str] = []
        self.results: dict[fx.Node, Any] = {}
        run = Showing(model, model.graph, self.results.__setitem__)
        try:
            with torch.no_grad():
                run.run(*example)
        except Exception as error:
            raise ValueError(f"from_quantised: model must take example, got an error: {error}") from error

    def read(self) -> Network:
        """Return the network; raise a ValueError that names everything that has no spiking form."""
        inputs: list[str] = []
        output: Any = None
        for node in self.model.graph.nodes:
            if any(self.values.get(x) is BROKEN for x in node.all_input_nodes):
                self.values[node] = BROKEN
                continue
            try:
                if node.op == "placeholder":
                    inputs.append(node.name)
                    self.values[node] = Real(node.name)
                elif node.op == "output":
                    named: Any = fx.map_arg(node.args[0], self._returned)
                    output = self.model.graph.process_outputs(named)
                else:
                    self.values[node] = self._node(node)
            except Unreadable as error:
                self.values[node] = self._stand_in(node)
                self.problems.append(f"{self.where(node)}: {error}")
        if self.problems:
            lines = "".join(f"\n  {problem}" for problem in self.problems)
            raise ValueError(f"from_quantised: every part of model must have a spiking form; these have none:{lines}")
        return Network(inputs, self.steps, output, self.model, self.integers)

    def _stand_in(self, node: fx.Node) -> Any:
        """Return a value in place of one that cannot be read, so that later problems are found, too."""
        result, inputs = self.results.get(node), [self.values[x] for x in node.all_input_nodes]
        x = next((x for x in inputs if isinstance(x, (Spikes, Sums))), None)
        if not isinstance(result, Tensor):
            return BROKEN
        if x is None:
            return next((x for x in inputs if isinstance(x, Real)), BROKEN)
        spikes = Spikes(node.name, (x if isinstance(x, Spikes) else x.branches[0][0]).code)
        self.integers[node.name] = result
        return Sums(node.name, ((spikes, None),)) if result.is_floating_point() and not result.is_quantized else spikes

    @abstractmethod
    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Return the value of a call; raise Unreadable if it has no spiking form.

        Args:
            node: the call.
            args: its arguments, with values for nodes.
            kwargs: likewise, by name.
        """

    def where(self, node: fx.Node) -> str:
        """Return how messages name a node."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.model.get_submodule(str(node.target))).__name__})"
        return f"{node.name} ({word_of(node.target)})"

    def _node(self, node: fx.Node) -> Any:
        result = self.results.get(node)
        if node.op == "get_attr":
            return result
        if not any(isinstance(x, Tensor) for x in tree_leaves(result)):  # sizes, which the shapes of results tell
            return result
        args, kwargs = (fx.map_arg(x, self.values.__getitem__) for x in (node.args, node.kwargs))
        return self.call(node, args, kwargs)

    def _returned(self, node: fx.Node) -> str:
        x = self.values[node]
        if isinstance(x, Sums):
            x = self.read_out(x)
        if not isinstance(x, Real):
            raise Unreadable("outputs must be real numbers, got integers; dequantise them")
        return x.name

    # -- operations on values

    def shape(self, node: fx.Node) -> list[int]:
        """Return the shape of a node's result for the example."""
        return list(self.results[node].shape)

    def real(self, node: fx.Node) -> Real:
        """Keep a node that maps real numbers to real numbers."""
        read = [self.read_out(x) if isinstance(x, Sums) else x for x in map(self.values.get, node.all_input_nodes)]
        self._keep(node)
        return Real(node.name, any(isinstance(x, Real) and x.is_output for x in read))

    def _keep(self, node: fx.Node) -> None:
        for x in node.all_input_nodes:
            if not isinstance(self.values.get(x), (Real, Sums, Tensor)):
                raise Unreadable(f"outside of the quantised part it must read tensors alone, got {x.name}")
        self.steps.append(Kept(node.name, node, self.function(node)))

    def function(self, node: fx.Node) -> Any:
        """Return what a frozen network calls for a node that stays, None for its target; else raise Unreadable."""
        return None

    def sums(self, x: Any) -> Sums:
        """Return what integers stand for as real numbers."""
        if isinstance(x, Sums):
            return x
        if isinstance(x, Spikes):
            return Sums(x.name, ((x, None),))
        raise Unreadable("its input must be quantised, got real numbers")

    def product(self, node: fx.Node, x: Any, product: Product) -> Sums:
        """Return the product of weights and quantised values."""
        sums = self.sums(x)
        if sums.source is None or sums.relu:
            raise Unreadable(f"its input must be quantised, got the sums of {sums.name}, which are not")
        if sums.moves:
            raise Unreadable(f"its input must be quantised, got the result of {sums.moves[-1].name}, which is not")
        padding = product.arguments.get("padding", [])
        if any(padding) and sums.source.code.zero and not self._is_input(sums.source):
            raise Unreadable(
                "padding must be 0 if the zero point of its input is not the least integer (padding has no spikes), "
                f"got {padding} and zero point {sums.source.code.zero}; behind a ReLU it is the least"
            )
        return Sums(node.name, ((sums.source, product),), nodes=(node,))

    def _is_input(self, spikes: Spikes) -> bool:
        return any(isinstance(step, Encoding) and step.name == spikes.name for step in self.steps)

    def added(self, node: fx.Node, *terms: Any) -> Sums:
        """Return the sum of two values."""
        branches: list[Branch] = []
        for x in terms:
            sums = self.sums(x)
            if sums.relu or sums.moves:
                raise Unreadable(f"its inputs must be quantised, or products, got the result of {sums.name}")
            branches += sums.branches
        added = [x for x in node.all_input_nodes if isinstance(self.values[x], (Spikes, Sums))]
        shapes = [self.shape(x) for x in added]
        if any(shape != self.shape(node) for shape in shapes):
            raise Unreadable(f"its inputs must agree in shape, got {' and '.join(map(str, shapes))}")
        return Sums(node.name, tuple(branches))

    def relu(self, node: fx.Node, x: Any, bound: float | None = None) -> Sums:
        """Return the positive part of a value, at most ``bound``."""
        sums = self.sums(x)
        if sums.moves:
            raise Unreadable(f"a ReLU must come before pooling, got one behind {sums.moves[-1].name}")
        bounds = [b for b in (sums.bound, bound) if b is not None]
        nodes = (*sums.nodes, node) if sums.nodes else ()
        return sums._replace(name=node.name, relu=True, bound=min(bounds, default=None), nodes=nodes)

    def pooled(self, node: fx.Node, x: Any, how: str, args: Iterable[Any], kwargs: Any) -> Sums:
        """Return the result of a pooling function. ``args``: its arguments behind the input."""
        kind, defaults, constant = POOLS[how]
        given = {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}
        if given.pop("return_indices", False):
            raise Unreadable("return_indices must be False, got True")
        if "stride" in given:
            given["stride"] = given["stride"] or given["kernel_size"]
        if unknown := given.keys() - defaults.keys():
            raise Unreadable(f"its arguments must be {', '.join(defaults)}, got {', '.join(sorted(unknown))}")
        given |= constant
        settings = {name: list(x) if isinstance(x, (tuple, list)) else x for name, x in given.items()}
        return self._moving(node, x, Move(node.name, kind, settings))

    def flattened(self, node: fx.Node, x: Any) -> Any:
        """Return the result of a function that changes the shape: that of flatten behind the batch."""
        before, after = self.shape(node.all_input_nodes[0]), self.shape(node)
        if after == before:
            return x
        if len(after) != 2 or after[0] != before[0]:
            raise Unreadable(f"shapes may only change as in torch.flatten(x, 1), got {before} to {after}")
        return self._moving(node, x, Move(node.name, "Flatten", {"start_dim": 1, "end_dim": -1}))

    def _moving(self, node: fx.Node, x: Any, move: Move) -> Sums:
        sums = self.sums(x)
        return sums._replace(moves=(*sums.moves, move), nodes=(*sums.nodes, node) if sums.nodes else ())

    # -- quantisation

    def quantised(self, node: fx.Node, x: Any, code: Code, integers: Tensor) -> Spikes:
        """Return the integers of real numbers.

        Args:
            node: the call that quantises.
            x: the real numbers.
            code: what the integers stand for.
            integers: the integers of this code for the example.
        """
        if not code.scale > 0 or not 0 <= code.zero < 2**code.bits:
            raise Unreadable(f"scale must be positive and the zero point one of the integers, got {code}")
        if isinstance(x, Real):
            if x.is_output:
                raise Unreadable(
                    f"what it quantises must have a spiking form, got {x.name}, computed with real numbers"
                )
            self.steps.append(Encoding(node.name, x.name, code))
            return self._recorded(Spikes(node.name, code), integers)
        sums = self.sums(x)
        if sums.relu and sums.bound is not None and round(sums.bound / code.scale) + code.zero < 2**code.bits - 1:
            raise Unreadable(
                f"the largest integer must stand for no more than the bound {sums.bound} of its ReLU, got "
                f"{code.scale * (2**code.bits - 1 - code.zero)}"
            )
        spikes = self._requantised(node, sums, code) if sums.source is not None else self._fired(sums, code)
        spikes = self._moved(spikes, sums.moves)
        return self._recorded(spikes, integers - (code.zero if spikes.code != code else 0))

    def _fired(self, x: Sums, code: Code) -> Spikes:
        for move in x.moves:
            if "Avg" in move.kind:
                raise Unreadable(
                    f"the input of average pooling {move.name} must be quantised, got sums that are not; the quantiser "
                    "fuses a layer and its ReLU if that is an nn.ReLU module"
                )
        node = next(node for node in self.results if node.name == x.name)
        code = code.positive() if x.relu else code
        self.steps.append(Neurons(x.name, x.branches, code, self.shape(node)))
        return Spikes(x.name, code)

    def _requantised(self, node: fx.Node, x: Sums, code: Code) -> Spikes:
        """Return spikes as integers of another code, or without negative values."""
        spikes = x.source
        assert spikes is not None
        if code == spikes.code and not (x.relu and code.zero):
            return spikes
        if any("Avg" in move.kind for move in x.moves):
            raise Unreadable(f"average pooling must keep scale and zero point, got {spikes.code} and {code}")
        if x.relu and code == spikes.code:  # all positive values fit
            fired = Code(code.scale, 0, code.bits)
        else:
            fired = code.positive() if x.relu else code
        name = x.name if x.relu else node.name
        self.steps.append(Neurons(name, x.branches, fired, list(self.integers[spikes.name].shape)))
        return Spikes(name, fired)

    def _moved(self, spikes: Spikes, moves: Iterable[Move]) -> Spikes:
        for move in moves:
            if "Avg" in move.kind and spikes.code.zero and move.arguments.get("padding"):
                raise Unreadable(f"padding of average pooling must be 0 with zero point {spikes.code.zero}, got some")
            self.steps.append(Moving(move.name, move, spikes))
            spikes = Spikes(move.name, spikes.code)
        return spikes

    def _recorded(self, spikes: Spikes, integers: Tensor) -> Spikes:
        self.integers[spikes.name] = integers.to(torch.uint8)
        return spikes

    def read_out(self, x: Sums) -> Real:
        """Keep the nodes that make real numbers, of a product or of dequantised integers, that nobody quantises."""
        if not x.nodes:
            raise Unreadable(f"outputs must be products or dequantised integers, got the result of {x.name}")
        done = {step.name: type(step) for step in self.steps}
        first, *rest = x.nodes
        ((spikes, product),) = x.branches
        if done.get(first.name) is Neurons:
            raise Unreadable(f"{first.name} must be either quantised or an output, got both")
        if first.name not in done:
            self.steps.append(Decoding(first.name, spikes) if product is None else ReadOut(first.name, spikes, product))
        for node in rest:
            if node.name not in done:
                self._keep(node)
        return Real(x.nodes[-1].name, True)
