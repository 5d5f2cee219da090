"""Trace the ANN's forward to a graph."""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..nn.batch_norm import HOOKS
from ..nn.classes import is_of_torch
from ..nn.modes import evaluating
from .effects import Effects, note_context, noting_functions, refuse_effects, refuse_written, undoing
from .example import Example
from .foreign import forward_of
from .nodes import (
    DROPOUTS,
    PLAIN,
    StochasticDepth,
    all_settings,
    as_dropout,
    inputs_of,
    kept,
    kind_of,
    module_of,
    overridden_methods,
    owner_of,
    parametrized,
    scope_of,
    set_drops,
    signature_of,
    word_of,
)
from .proxy_types import CLASS_OF_ATTRIBUTE, answering_for_types, class_of
from .randomness import refusing_random_numbers
from .replace import swap
from .run_graph import check_traced, outputs_of
from .trace_errors import ON_SIZES, ON_VALUES, Unanswered, Untraceable, reason
from .training_outputs import found_in, return_both, writes_to

_TUPLES = (nn.RNN, nn.LSTM, nn.GRU, nn.MultiheadAttention)
"""Modules that return tuples."""
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
"""Modules that call another, on several devices."""


class _Answers(fx.Proxy):
    """A proxy that answers what forward asks about shapes and types.

    Types are known without an example of the inputs, and sizes only with one.
    """

    tracer: Any

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("data", "grad", "requires_grad"):
            raise fx.proxy.TraceError(f"forward sets {name} of a tensor")
        super().__setattr__(name, value)

    def __getattr__(self, k: str) -> _Attribute:
        return _Attribute(self, k)

    def __int__(self) -> int:
        return int(self.tracer.answer(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.answer(self))

    def __float__(self) -> float:
        return float(self.tracer.answer(self))

    def __len__(self) -> int:
        return int(self.tracer.answer(self, length=True))


class _Attribute(fx.proxy.Attribute, _Answers):
    """An attribute of a proxy, which answers, too."""


def _check(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


class _Tracer(fx.Tracer):
    """Traces forward with its inputs as proxies and all other arguments at their defaults.

    Whatever has a rule becomes one call. With an ``example`` of the inputs, control flow may depend on the sizes of
    tensors, except for the batch size, which stays unknown.
    """

    def __init__(self, known: Collection[Any], ann: nn.Module, example: tuple[Tensor, ...] | None) -> None:
        functions = [x for x in known if isinstance(x, FunctionType) and x.__module__.partition(".")[0] != "torch"]
        super().__init__(autowrap_functions=tuple(functions))
        self.known = known
        self.parts: dict[str, nn.Module] = {}
        """The torch.nn layers that layers of other libraries contain, by target."""
        self.failures: dict[str, str] = {}
        """The modules that cannot be traced and become one call, and why."""
        self.names = {id(x): name for name, x in ann.named_parameters()}
        self.example = None if example is None else Example(ann, self.parts, example)
        self.answering = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kind = kind_of(m)
        is_leaf = kind in self.known or kind is StochasticDepth or super().is_leaf_module(m, module_qualified_name)
        is_leaf = is_leaf or (is_of_torch(kind) and not issubclass(kind, nn.Sequential))
        return is_leaf and kind not in _PARALLEL

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.answering or not isinstance(attr_val, nn.Parameter):
            return attr_val
        name = self.names.get(id(attr_val))  # torch.fx would look through all parameters
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.answering:  # a part of a leaf
            return forward(*args, **kwargs)
        if isinstance(m, _PARALLEL):
            forward = m.module
        of_parts = forward_of(m, self.example is not None)
        changed = kind_of(m) in self.known or any(getattr(m, name) for name in HOOKS) or parametrized(m)
        if of_parts is not None and not changed:
            forward = functools.partial(of_parts, self._part, m)
        nodes, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # a user's forward may raise anything when it meets a proxy
            if (target := self.path_of_module(m)) == "":
                raise
            self.failures[target] = reason(error, m)
            self.module_stack = stack
            for node in reversed([*self.graph.nodes][nodes:]):
                self.graph.erase_node(node)
            return self.create_proxy("call_module", target, args, kwargs)

    def _part(self, m: nn.Module, kind: type[nn.Module], x: Any) -> fx.Proxy:
        """Call the torch.nn layer that a layer of another library contains."""
        target = f"{PLAIN}.{self.path_of_module(m)}"
        self.parts[target] = _plain(m, kind)
        return self.create_proxy("call_module", target, (x,), {})

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        names = inputs_of(self.root, 0 if self.example is None else len(self.example.inputs))
        if names is None:
            function, inputs = super().create_args_for_root(root_fn, is_module, concrete_args)
            for i, x in enumerate(inputs):
                if isinstance(x, fx.Proxy) and x.node.args:  # a default
                    inputs[i] = x.node.args[0]
                    self.graph.erase_node(x.node)
        else:
            inputs = [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

            def function(root: nn.Module, *inputs: Any) -> Any:
                arguments = signature_of(self.root).bind_partial()
                arguments.arguments.update(zip(names, inputs, strict=True))
                run = self.root.module if isinstance(self.root, _PARALLEL) else functools.partial(root_fn, root)
                return run(*arguments.args, **arguments.kwargs)

            function.__annotations__ = {}  # torch.fx would write them to the code of the graph
        if self.example is not None:
            self.example.give(x.node for x in inputs if isinstance(x, fx.Proxy))
        return function, inputs

    # -- questions that forward asks

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Answers(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        note_context(node)
        return node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> Any:
        if target is torch._assert and self.example is not None:
            with suppress(fx.proxy.TraceError):  # it depends on values
                return _check(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *more, **named)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.answer(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        proxy: Any = obj
        return iter([proxy[i] for i in range(self.answer(obj, length=True))])

    def create_arg(self, a: Any) -> Any:
        is_dict = isinstance(a, dict)
        if is_dict and is_dataclass(a):  # which torch.fx would take for a plain dict
            given = {field.name: self.create_arg(getattr(a, field.name)) for field in fields(a)}
            return kept(self.create_node("call_function", type(a), (), given))
        return super().create_arg(a)

    def class_of(self, proxy: fx.Proxy) -> type:
        """Return the class of the value that a proxy stands for; if it is not known, the proxy's own class."""
        if isinstance(proxy, fx.proxy.Attribute):
            kind = CLASS_OF_ATTRIBUTE.get(proxy.attr)
        elif (module := module_of(self.root, proxy.node)) is not None and kind_of(module) in _TUPLES:
            kind = tuple
        else:
            kind = class_of(proxy.node)
        return type(proxy) if kind is None else kind

    def answer(self, proxy: fx.Proxy, length: bool = False) -> Any:
        """Return the value of a proxy, or its length, if it depends only on shapes and types.

        Raises:
            Unanswered: it depends on values of tensors or on the batch size, or there is no example.
        """
        if self.example is None:
            is_value = not length and class_of(proxy.node) in (Tensor, None)
            raise Unanswered(ON_VALUES if is_value else ON_SIZES)
        self.answering = True
        try:
            return self.example.answer(proxy.node, length)
        finally:
            self.answering = False


def _plain(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Return a module of class ``kind``, which computes what the module does, that shares the state of ``module``."""
    plain = kind.__new__(kind)
    plain.__dict__ = module.__dict__
    return plain


@contextmanager
def retraced(ann: nn.Module, known: Collection[Any], example: Sequence[Tensor] | None) -> Iterator[Traced]:
    """Trace a converted ANN once more, without running it, and leave nothing behind. See :func:`traced`."""
    before = {*vars(ann)}
    try:
        yield traced(ann, known, example, samples=())
    finally:
        for name in {*vars(ann)} - before:  # constants that torch.fx has added
            delattr(ann, name)


@dataclass(frozen=True)
class Traced:
    """The graph of an ANN."""

    graph: fx.Graph
    root: nn.Module
    """The module that has the modules that the graph calls: the ANN, or a copy of it that has the ANN's children and
    the torch.nn layers that timm's layers contain."""
    sizes: Mapping[fx.Node, torch.Size]
    """The sizes of the tensors for an example; empty without one."""
    description: tuple[str, ...]
    """What each node does, in words that a later trace of the same forward repeats."""
    volatile: frozenset[tuple[str, str]]
    """The attributes that forward itself changes, such as a counter of its calls: names of module and attribute."""
    example: Example | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    """The modules that cannot be traced, so that the graph calls them, and why."""
    replaced: tuple[str, ...] = ()
    """The calls of functions that the ANN's class replaces, in words."""
    stored: tuple[str, ...] = ()
    """The attributes in which forward stores tensors."""
    fixed: bool = False
    """Whether the graph takes only inputs of the sizes of the example, so that its sizes are numbers."""

    def fix_sizes(self) -> Traced:
        """Return the same graph, in which all sizes but the batch size are numbers. The graph itself is changed."""
        assert self.example is not None
        self.example.fix_sizes(self.graph, self.root)
        return replace(self, fixed=True, sizes={**self.example.shapes(), **self.sizes})

    def fixed_sizes(self, node: fx.Node) -> torch.Size | None:
        """Return the sizes of a tensor [N, ...] without N; None if they are not fixed."""
        return self.example.sizes_of(node) if self.fixed and self.example is not None else None


def traced(
    ann: nn.Module,
    known: Collection[Any],
    example: Tensor | Sequence[Tensor] | None = None,
    *,
    samples: Collection[int] = (2, 3),
) -> Traced:
    """Trace forward in eval mode, or in training if it returns more there and computes the same besides.

    Each call of a module whose class is ``known``, or of a ``known`` function, is one node. For dropout functions,
    ``meta["drops"]`` tells whether they drop in eval mode and in training. Layers of timm that contain a layer of
    torch.nn, such as batch norm with activation, are several nodes. The graph is compared with the ANN on these numbers
    of ``samples`` of the example. Without any, random numbers are not refused either.

    Raises:
        TypeError: ``example`` is neither a Tensor nor several.
        ValueError: torch.fx cannot trace the ANN, the ANN does something different in training or in the next call, its
            forward draws random numbers or is overridden on the instance, or with an ``example`` it computes something
            other than the graph.
    """
    refuse_compiled(ann)
    if "forward" in vars(ann):
        raise ValueError(
            f"convert: ann must have the forward of its class, got a {' and '.join(overridden_methods(ann))} of its "
            "own, set on the instance (by a wrapper of layers?)"
        )
    inputs = None if example is None else tuple(example) if isinstance(example, (tuple, list)) else (example,)
    if inputs is not None:
        _check_example(ann, inputs)
    with undoing(ann) as effects:
        found = _traced(ann, known, inputs, samples, effects)
    refuse_written(effects.written)
    return replace(found, stored=tuple(sorted(effects.stored)))


def _traced(
    ann: nn.Module,
    known: Collection[Any],
    inputs: tuple[Tensor, ...] | None,
    samples: Collection[int],
    effects: Effects,
) -> Traced:
    before = all_settings(ann)
    with evaluating(ann), refusing_random_numbers(ann) if samples else nullcontext(), torch.enable_grad():
        tracers = _tracers(known, ann, inputs, effects)
        if not tracers:
            importlib.import_module("torch._dynamo")
            tracers = _tracers(known, ann, inputs, effects)
    volatile = frozenset(key for key, x in all_settings(ann).items() if key not in before or before[key] != x)
    effects.undo()
    for tracer in tracers:
        if tracer.example is not None:
            tracer.example.dropped(tracer.graph)
    tracer = tracers[_check_repeats(ann, *(tracer.graph for tracer in tracers))]
    graph = tracer.graph
    in_training, root = (_with_parts(ann, x.parts) if x.parts else ann for x in (tracers[1], tracer))
    refuse_effects(tracers[1].graph, ann, in_training, effects.functions)
    replaced = swap(graph, root, inputs is not None or not samples)
    description, sizes = described(graph, ann), {}
    if inputs is not None and tracer.example is not None:
        tracer.example.guard(graph, root)
        with evaluating(ann), torch.no_grad():
            for n in () if tracer.failures else samples:  # the graph must not depend on it
                batch = [x[torch.arange(n, device=x.device) % len(x)] for x in inputs]
                sizes = check_traced(ann, graph, *batch, root=root)
    return Traced(graph, root, sizes, description, volatile, tracer.example, tracer.failures, replaced)


def _tracers(
    known: Collection[Any], ann: nn.Module, inputs: tuple[Tensor, ...] | None, effects: Effects
) -> list[_Tracer]:
    """Trace forward in eval mode, in training, and in eval mode again; return [] if that needs torch._dynamo first."""
    tracers = [_Tracer(known, ann, inputs) for _ in range(3)]
    examples = [tracer.example for tracer in tracers if tracer.example is not None]
    try:
        with answering_for_types(ann), noting_functions(effects):
            for tracer, mode in zip(tracers, (False, True, False), strict=True):
                tracer.trace(ann.train(mode))
    except Exception as error:  # a user's forward may raise anything when it meets a proxy
        if not any(x.unprepared for x in examples):
            if examples:
                with evaluating(ann), torch.no_grad():
                    outputs_of(ann, examples[0].inputs)  # raises an error of its own if the example is no input
            raise Untraceable(ann, error) from error
    for x in examples:
        x.tracing = False
    return [] if any(x.unprepared for x in examples) else tracers  # forward may have caught the error


def refuse_compiled(ann: nn.Module) -> None:
    """Raise a ValueError for a network whose forward is not Python."""
    if isinstance(ann, torch.jit.ScriptModule) or "_orig_mod" in ann._modules:
        is_scripted = isinstance(ann, torch.jit.ScriptModule)
        got, how = (f"a {type(ann).__name__}", "torch.jit") if is_scripted else ("an OptimizedModule", "torch.compile")
        raise ValueError(f"convert: ann must be a network in Python, got {got}: pass the network that {how} was given")


def _check_example(ann: nn.Module, example: tuple[Any, ...]) -> None:
    for x in example:
        if not isinstance(x, Tensor):
            raise TypeError(f"convert: example must be a Tensor or several, got {type(x).__name__}")
        if not x.dim() or not len(x):
            raise ValueError(f"convert: example must be [N, ...] with N > 0, got {list(x.shape)}")
    names = inputs_of(ann, len(example))
    if names is None:
        raise ValueError("convert: example must be None if forward takes *args")
    if len(names) != len(example):
        raise ValueError(f"convert: example must hold {', '.join(names)}, got {len(example)} tensors")


def _with_parts(ann: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of the ANN with the ANN's children, whose get_submodule finds further modules."""
    plain = nn.Module()
    for target, part in parts.items():
        parent = plain
        *path, name = target.split(".")[1:]
        for key in path:
            if key not in parent._modules:
                parent.add_module(key, nn.Module())
            parent = parent.get_submodule(key)
        parent.add_module(name, part)
    root = copy.copy(ann)
    vars(root)[PLAIN] = plain  # not a child: forward may loop over its children
    return root


def _check_repeats(ann: nn.Module, once: fx.Graph, training: fx.Graph, again: fx.Graph) -> int:
    """Raise a ValueError if the graphs of eval mode, of training and of another call in eval mode differ.

    In training, forward may return more, computed from the same values. ``training`` then returns both results.

    Returns:
        The number of the graph to convert.
    """
    if got := _difference(ann, once, again):
        raise ValueError(
            f"convert: ann must do the same in every call, got {got} (does a forward change attributes that it reads?)"
        )
    if not (got := _difference(ann, once, training)):
        for mine, theirs in zip(once.nodes, training.nodes, strict=True):
            if mine.target in DROPOUTS:
                mine.meta["drops"] = tuple(as_dropout(node)[1] for node in (mine, theirs))
        return 0
    pairs = found_in(training, once, lambda node, order: _operation(node, order, ann))
    if pairs is None or writes_to({*pairs.values()}, training, ann):
        raise ValueError(
            "convert: ann must do the same in eval mode and in training, except for dropout, batch norm and outputs "
            f"in training alone, got {got} (does a forward use self.training?)"
        )
    in_eval = {theirs: mine for mine, theirs in pairs.items()}
    for node in training.nodes:
        if node.target in DROPOUTS:
            node.meta["drops"] = node in in_eval and as_dropout(in_eval[node])[1], as_dropout(node)[1]
            set_drops(node, node.meta["drops"][0])  # the graph is run in eval mode
    return_both(training, fx.node.map_arg(once.output_node().args[0], pairs.__getitem__))
    return 1


def _difference(ann: nn.Module, *graphs: fx.Graph) -> str:
    """Return in words the first nodes in which two graphs differ; "" if there are none."""
    orders = [{node: i for i, node in enumerate(graph.nodes)} for graph in graphs]
    for nodes in itertools.zip_longest(*(graph.nodes for graph in graphs)):
        operations = [node and _operation(node, order, ann) for node, order in zip(nodes, orders, strict=True)]
        if operations[0] != operations[1]:
            return " and ".join(
                "nothing more" if node is None else f"{word_of(node.target)} in {scope_of(node, ann)}" for node in nodes
            )
    return ""


def _operation(node: fx.Node, order: dict[fx.Node, int], ann: nn.Module) -> tuple[Any, ...]:
    """Return what a node does, in a form that can be compared across traces: with the positions of other nodes."""
    if node.target in DROPOUTS:
        return node.op, node.target, [order[x] for x in node.all_input_nodes], as_dropout(node)[0]
    if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):  # a new tensor in each trace
        value = getattr(*owner_of(ann, str(node.target)))
        x = value.detach().flatten()
        return node.op, value.shape, value.dtype, value.is_meta or x.view(torch.uint8).cpu().numpy().tobytes()
    return node.op, node.target, str(fx.node.map_arg((node.args, node.kwargs), lambda x: f"node {order[x]}"))


def described(graph: fx.Graph, ann: nn.Module) -> tuple[str, ...]:
    """Return what each node does, in words that another trace of the same forward repeats."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    address = re.compile(r" at 0x[0-9a-f]+")  # of functions
    return tuple(address.sub("", str(_operation(node, order, ann))) for node in graph.nodes)
