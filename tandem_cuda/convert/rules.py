"""The registry of conversion rules. A rule says what calls of a module class or function become in the SNN.

Call :func:`register` once to let :func:`tandem_cuda.convert` convert a further class or function. The rules for
PyTorch's own layers and functions are registered in the same way.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from .advice import NUMBER
from .call import Call as Call
from .nodes import kind_of, module_of
from .values import VALUES, Shape, Size
from .weight_rules import RULES as RULES
from .weight_rules import Rule as Rule
from .weight_rules import Unconvertible as Unconvertible
from .weight_rules import WeightRule as WeightRule


def register(target: Any, rule: Rule | WeightRule) -> None:
    """Add a conversion rule for a class of modules or for a function.

    Args:
        target: a module class or a function. The rule does not apply to subclasses, which may compute something else;
            torch.fx then traces modules of the class as one call. A function may be one of torch, a method such as
            ``torch.Tensor.relu``, or one of your own that forwards call by its global name.
        rule: a function that takes a :class:`Call` and returns what it becomes. It raises :class:`Unconvertible` for
            calls that it cannot convert. For weight layers, a :class:`WeightRule`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``target`` has a rule already; the message names it.

    Examples:
        >>> from tandem_cuda.convert.rules import register
        >>> class Rectifier(nn.Module):
        ...     def forward(self, x):
        ...         return x.clamp(min=0)
        >>> register(Rectifier, lambda call: call.fire())  # neurons in its place, as for a ReLU
        >>> ann = nn.Sequential(nn.Linear(4, 3), Rectifier(), nn.Linear(3, 2))
        >>> convert(ann, time_steps=8)(torch.rand(1, 4)).shape
        torch.Size([1, 2])
    """
    is_class = isinstance(target, type) and issubclass(target, nn.Module)
    if not is_class and (not _is_callable(target) or not hasattr(target, "__name__")):
        raise TypeError(f"register: target must be a class of nn.Module or a function, got {_word(target)}")
    if isinstance(rule, WeightRule):
        if not is_class or not rule.fits(target):
            derived = f"the torch.nn base class of {rule.tandem.__name__} or a subclass of it"
            raise TypeError(f"register: target of a WeightRule must be {derived}, got {_word(target)}")
    elif not _is_callable(rule):
        raise TypeError(f"register: rule must be a function or a WeightRule, got {_word(rule)}")
    key, name = target, getattr(target, "__name__", "")
    if not is_class and getattr(torch.Tensor, name, None) is target:
        key = name  # by which torch.fx calls methods
    if key in RULES:
        raise ValueError(f"register: {_word(target)} already has the rule {_word(RULES[key])}, got {_word(rule)}")
    RULES[key] = rule


def relu_rule(call: Call) -> Any:
    """The rule of nn.ReLU: replace it by neurons."""
    return call.fire()


def rule_for(node: fx.Node, ann: nn.Module) -> Rule | WeightRule | None:
    """Return the rule for what a node of the ANN's graph calls; None if there is none."""
    if (module := module_of(ann, node)) is not None:
        return RULES.get(kind_of(module))
    return RULES.get(node.target) if node.op in ("call_function", "call_method") else None


def applied(rule: Rule, call: Call) -> Any:
    """Apply a rule to a call and check the result.

    Raises:
        TypeError: the rule returned something other than its call's input or the result of one of the call's methods.
    """
    x = rule(call)
    if not isinstance(x, VALUES):
        raise TypeError(
            f"convert: a rule must return its call's input or the result of a method of the call, got "
            f"{type(x).__name__} from {_word(rule)}"
        )
    return x


def _is_callable(x: Any) -> bool:
    return callable(x) and not isinstance(x, (type, nn.Module))


def _word(x: Any) -> str:
    """Return the name of a class, function or rule for error messages."""
    if isinstance(x, WeightRule):
        return f"WeightRule({x.tandem.__name__}, {x.norm.__name__})"
    name = getattr(x, "__qualname__", None)
    return repr(x) if name is None else f"{x.__module__}.{name}" if getattr(x, "__module__", None) else name


def arguments_of(call: Call, signature: Callable[..., Any], *, sizes: bool = False) -> Any:
    """Return ``signature`` of all arguments of a call but the first, the input.

    Raises:
        Unconvertible: the input is no spikes, ``signature`` does not take these arguments, or without ``sizes`` some
            are sizes that depend on the input.
    """
    _ = call.input
    positional = call.args[1:]
    named = {"dim" if name == "axis" else name: x for name, x in call.kwargs.items()}
    parameters = inspect.signature(signature)
    try:
        parameters.bind(*positional, **named)
    except TypeError:
        raise Unconvertible(f"pass no arguments but {', '.join(parameters.parameters)}") from None
    if not sizes and any(isinstance(x, (Size, Shape)) for x in tree_leaves((positional, named))):
        raise Unconvertible(NUMBER)
    return signature(*positional, **named)


def converts(*functions: Any, sizes: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a rule for functions. After the call, it takes their arguments, which :func:`arguments_of` checks."""

    def registered(rule: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(rule)
        def of_call(call: Call) -> Any:
            return arguments_of(call, functools.partial(rule, call), sizes=sizes)

        register_all(of_call, *functions)
        return rule

    return registered


def register_all(rule: Rule, *functions: Any) -> None:
    """Add the same rule for several functions."""
    for function in functions:
        register(function, rule)
