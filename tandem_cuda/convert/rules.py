"""The registry of conversion rules: what the calls of a class of modules, or of a function, become in the SNN.

A class or function takes part in :func:`tandem_cuda.convert` by one call of :func:`register`. What ``convert`` knows of
PyTorch's own layers and functions is registered so too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ..nn.tandem import TandemLayer
from .advice import FUNCTION_ADVICE, NOTHING_ELSE
from .trace import asks_for_size, kind_of
from .values import Branch, Broken, Current, Pooled, Real, Train, is_value

if TYPE_CHECKING:
    from .conversion import Conversion


class Unconvertible(Exception):
    """What a rule raises for a call that has no spiking form; ``convert`` lists all of them in its ValueError.

    Args:
        why: what to use instead, as in "use mode='nearest'".
        why_all: the same of several such calls; by default ``why``.
    """

    def __init__(self, why: str, why_all: str | None = None) -> None:
        super().__init__(why)
        self.why_all = why_all


class Call:
    """A call in the ANN's forward, as a rule sees it.

    A rule returns what one of the methods returns, or the input itself where nothing is done to it. It is not asked
    where all inputs are real, in front of the first weight layer or behind the last: there the ANN's call stays.
    """

    def __init__(self, conversion: Conversion, node: fx.Node, module: nn.Module | None = None) -> None:
        self._conversion = conversion
        self.node = node
        """The call in what torch.fx traced."""
        if module is None and node.op == "call_module":
            module = conversion.ann.get_submodule(str(node.target))
        self.module: Any = module
        """The module that is called; None where it is a function."""
        self.args: tuple[Any, ...] = fx.node.map_arg(node.args, conversion.value)
        """The arguments by position; in place of tensors what they are in the SNN."""
        self.kwargs: dict[str, Any] = fx.node.map_arg(node.kwargs, conversion.value)
        """The arguments by name."""

    @property
    def engine(self) -> str:
        """Of spiking products, as ``convert`` was given it."""
        return self._conversion.engine

    @property
    def value(self) -> Any:
        """The first argument: spikes, or the currents of weight layers whose neurons are still to come.

        Raises:
            Unconvertible: it is something else.
        """
        first = self._first()
        x = None if first is None else self._conversion.value(first)
        if not isinstance(x, (Train, Pooled, Current)):
            is_module = self.node.op == "call_module"
            raise Unconvertible(NOTHING_ELSE if is_module else FUNCTION_ADVICE.get(self.node.target, NOTHING_ELSE))
        return x

    @property
    def input(self) -> Any:
        """The same, to do something to it.

        Raises:
            Unconvertible: also where currents are used elsewhere too.
        """
        x, first = self.value, self._first()
        assert first is not None
        if isinstance(x, Current) and len([user for user in first.users if not asks_for_size(user)]) > 1:
            raise Unconvertible("its input is used again; put a ReLU in front of what is used twice")
        return x

    def fire(self) -> Any:
        """The neurons, in place of an activation; spikes stay as they are."""
        return self._conversion.fired(self.node, self.input)

    def apply(self, module: nn.Module, *, commutes: bool = False) -> Any:
        """A module that takes a SpikeTrain and returns one, in place of the call.

        Args:
            module: a new one for each call.
            commutes: whether the ANN's call gives the same in front of a ReLU and behind it, as max pooling does: then
                it may stand in front, where the module is put behind the neurons.
        """
        x = self.input if commutes else self._fired("put the ReLU in front of it")
        x = self._conversion.spikes(x) if isinstance(x, Pooled) else x
        return self._conversion.behind(x, lambda value: self._conversion.called(value, self.node, module))

    def average(self, pool: nn.AvgPool2d | nn.AdaptiveAvgPool2d, *, keepdim: bool = True) -> Any:
        """Average pooling of spikes: neurons or, in a calibrated network, what needs none; then flat if not keepdim."""
        x = self._fired("put the ReLU in front of it: a mean of currents is no mean of spikes")
        pooled = Pooled(self.node, pool, x)
        average = pooled if self._conversion.scaled else self._conversion.spikes(pooled)
        return average if keepdim else self._conversion.flattened(average)

    def drop(self, kind: type[Any]) -> Any:
        """Dropout of spikes by a class of modules, or of averages of them."""
        module = self.module

        def step(value: Any) -> Any:
            dropout = module
            if not isinstance(value, Real):
                dropout = kind(module.p)
                dropout.copies = value.copies
            return self._conversion.called(value, self.node, dropout)

        return self._conversion.behind(self.input, step)

    def flatten(self, start_dim: int = 1, end_dim: int = -1) -> Any:
        """``SpikeTrain.flatten``."""
        return self._conversion.flattened(self.input, start_dim, end_dim)

    def flatten_to(self, features: int) -> Any:
        """The same of all dimensions, which must come to so many features: else the SNN's forward raises."""
        return self._conversion.flattened_to(self.input, features)

    def add(self) -> Any:
        """The sum of all arguments: currents of weight layers, and spikes; a ReLU behind it is a TandemAdd."""
        branches: list[Branch] = []
        for argument in (*self.node.args, *self.node.kwargs.values()):
            x = self._conversion.value(argument) if isinstance(argument, fx.Node) else argument
            if isinstance(x, Current) and not x.then and len(argument.users) == 1:  # type: ignore[union-attr]
                branches += x.branches
            elif isinstance(x, (Train, Pooled)):
                branches.append(Branch(self._conversion.spikes(x).node))
            elif isinstance(x, Current):
                raise Unconvertible("put a ReLU in front of what is pooled or used twice before it is added")
            else:
                raise Unconvertible("add spikes to spikes: real input and constants are none")
        if any(branch.encoded for branch in branches):
            raise Unconvertible("put a weight layer and a ReLU between the input of the network and the sum")
        return Current(branches)

    def fold(self, norm: Any) -> Any:
        """Batch norm, into the weight layer in front of it."""
        x = self.input
        branch = x.branches[0] if isinstance(x, Current) and len(x.branches) == 1 and not x.then else None
        if branch is None or branch.layer is None or branch.norm is not None:
            if isinstance(self._conversion.values[self.node.all_input_nodes[0]], Broken):  # maybe a weight layer
                return x
            raise Unconvertible("put it directly behind a weight layer, whose weights it can fold into")
        wanted = weights_of(branch.layer).norm
        if type(norm) is not wanted:
            raise Unconvertible(f"use nn.{wanted.__name__} behind {branch.name}")
        if norm.running_mean is None or not norm.affine:
            raise Unconvertible("set affine=True and track_running_stats=True: the spiking twin folds them")
        return Current([replace(branch, norm=norm)])

    def like(self, module: nn.Module) -> Any:
        """What a call of another module would become: of ``nn.MaxPool2d(2)``, say, for a function that does just that.

        Raises:
            TypeError: there is no rule for its class, or it has weights.
        """
        rule = RULES.get(kind_of(module))
        if rule is None or isinstance(rule, WeightRule):
            raise TypeError(f"like: module must be of a class that has a rule, and no weights, got {module}")
        return rule(Call(self._conversion, self.node, module))

    def _first(self) -> fx.Node | None:
        inputs = self.node.all_input_nodes if self.node.op == "call_module" else self.node.args[:1]
        return inputs[0] if inputs and isinstance(inputs[0], fx.Node) else None

    def _fired(self, otherwise: str) -> Any:
        """The input as spikes: a sum of spikes is never negative, and needs no ReLU."""
        x = self.input
        if not isinstance(x, Current):
            return x
        if not self._conversion.readable(x):
            raise Unconvertible(otherwise)
        first = self._first()
        assert first is not None
        return self._conversion.fired(first, x)


@dataclass(frozen=True)
class WeightRule:
    """The rule of a class of weight layers: with batch norm (or not) and an activation behind it, one tandem layer.

    The tandem layer holds the ANN layer's own parameters, and must compute the same from them.
    """

    tandem: type[TandemLayer]
    """Its class, derived from the same layer of torch.nn as the ANN's; made with the arguments of that."""
    norm: type[nn.Module]
    """The class of batch norm that folds into it."""

    def fits(self, kind: type[nn.Module]) -> bool:
        """Whether the tandem layer can hold what layers of a class hold."""
        layer = _layer_of_torch(kind)
        return layer is not nn.Module and issubclass(self.tandem, layer)

    def arguments(self, module: nn.Module) -> dict[str, Any]:
        """Those of the constructor, but for the bias."""
        names = inspect.signature(_layer_of_torch(kind_of(module))).parameters
        return {name: getattr(module, name) for name in names if name not in ("bias", "device", "dtype")}


Rule = Callable[[Call], Any]
RULES: dict[Any, Rule | WeightRule] = {}
"""By class or function; of methods of Tensor by name."""


def register(target: Any, rule: Rule | WeightRule) -> None:
    """Let calls of a class of modules, or of a function, be converted.

    Args:
        target: the class (not its subclasses, which may compute something else), whose modules torch.fx then traces as
            one call; or a function: one of torch, a method such as ``torch.Tensor.relu``, or one of your own that
            forwards call by its global name.
        rule: from a :class:`Call` to what it becomes. It raises :class:`Unconvertible` for what it does not convert.
            Of weight layers a :class:`WeightRule`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: there is a rule for ``target`` already, which the message names.
    """
    is_class = isinstance(target, type) and issubclass(target, nn.Module)
    if not is_class and (not _is_callable(target) or not hasattr(target, "__name__")):
        raise TypeError(f"register: target must be a class of nn.Module or a function, got {_word(target)}")
    if isinstance(rule, WeightRule):
        if not is_class or not rule.fits(target):
            derived = f"what {rule.tandem.__name__} is derived from, or a subclass of that"
            raise TypeError(f"register: target of a WeightRule must be {derived}, got {_word(target)}")
    elif not _is_callable(rule):
        raise TypeError(f"register: rule must be a function or a WeightRule, got {_word(rule)}")
    key, name = target, getattr(target, "__name__", "")
    if not is_class and getattr(torch.Tensor, name, None) is target:
        key = name  # by which torch.fx calls methods
    if key in RULES:
        raise ValueError(f"register: {_word(target)} must have one rule, got {_word(rule)} after {_word(RULES[key])}")
    RULES[key] = rule


def fire(call: Call) -> Any:
    """The rule of nn.ReLU: neurons."""
    return call.fire()


def rule_for(node: fx.Node, ann: nn.Module) -> Rule | WeightRule | None:
    """The rule for what a node of the ANN's graph calls."""
    if node.op == "call_module":
        return RULES.get(kind_of(ann.get_submodule(str(node.target))))
    return RULES.get(node.target) if node.op in ("call_function", "call_method") else None


def weights_of(layer: nn.Module) -> WeightRule:
    """The rule of a weight layer."""
    rule = RULES[kind_of(layer)]
    assert isinstance(rule, WeightRule)
    return rule


def has_weights(module: nn.Module) -> bool:
    """Whether it is a weight layer that can be converted."""
    return isinstance(RULES.get(kind_of(module)), WeightRule)


def applied(rule: Rule, call: Call) -> Any:
    """What a rule returns.

    Raises:
        TypeError: it is nothing that a value of the ANN can be.
    """
    x = rule(call)
    if not is_value(x):
        raise TypeError(
            f"convert: a rule must return its call's input or what a method of the call returns, got "
            f"{type(x).__name__} of {_word(rule)}"
        )
    return x


def _is_callable(x: Any) -> bool:
    return callable(x) and not isinstance(x, (type, nn.Module))


def _layer_of_torch(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of torch.nn that it is, or is derived from."""
    return next(base for base in kind.__mro__ if base.__module__.startswith("torch.nn"))


def _word(x: Any) -> str:
    """A class, function or rule as error messages name it."""
    if isinstance(x, WeightRule):
        return f"WeightRule({x.tandem.__name__}, {x.norm.__name__})"
    name = getattr(x, "__qualname__", None)
    return repr(x) if name is None else f"{x.__module__}.{name}" if getattr(x, "__module__", None) else name
