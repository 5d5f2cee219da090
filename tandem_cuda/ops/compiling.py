"""What torch.compile is told about functions of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def assume_constant_result(function: F) -> F:
    """torch.compiler.assume_constant_result, which would import all of torch._dynamo: that takes as long as torch."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
