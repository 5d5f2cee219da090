"""The conversion rules: what an ATen call becomes in the spiking twin.

A rule takes a :class:`~tandem_cuda.convert.call.Call` and returns the result of one of its methods. Call
:func:`register` to add a rule for a further ATen call or for an operator of your own. A call without a rule is
*analogue*: the spiking twin computes it on real values, and neurons encode its result where a weight layer reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Rule = Callable[[Any], Any]
"""A function that takes a Call."""

RULES: dict[Any, Rule] = {}
"""The rule of each ATen call."""


def register(target: Any, rule: Rule) -> None:
    """Add a conversion rule for an ATen call or for an operator of your own.

    Args:
        target: an overload, such as ``torch.ops.aten.relu.default``, or that of a ``torch.library.custom_op``, such as
            ``torch.ops.mine.rectify.default``.
        rule: a function that takes a :class:`~tandem_cuda.convert.call.Call` and returns the result of one of its
            methods. It raises :class:`Analogue <tandem_cuda.convert.Analogue>` for calls without a spiking form.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``target`` has a rule already.

    Examples:
        >>> from tandem_cuda.convert import register
        >>> @torch.library.custom_op("docs::rectify", mutates_args=())
        ... def rectify(x: torch.Tensor) -> torch.Tensor:
        ...     return x.clamp(min=0)
        >>> _ = rectify.register_fake(torch.empty_like)
        >>> register(torch.ops.docs.rectify.default, lambda call: call.fire())  # neurons in its place, as for a ReLU
    """
    if not isinstance(target, torch._ops.OpOverload):
        raise TypeError(
            "register: target must be an overload of an operator, such as torch.ops.aten.relu.default, got "
            f"{getattr(target, '__name__', target)!r}"
        )
    if not callable(rule):
        raise TypeError(f"register: rule must be a function that takes a Call, got {type(rule).__name__}")
    if target in RULES:
        raise ValueError(f"register: {target} already has a rule")
    RULES[target] = rule


def rules_for(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the decorated rule for several ATen calls."""

    def registered(rule: Rule) -> Rule:
        for target in targets:
            register(target, rule)
        return rule

    return registered
