"""Division by a number, rounded alike on all devices."""

from __future__ import annotations

from torch import Tensor


def divided(x: Tensor, number: float) -> Tensor:
    """Return x / number, rounded as IEEE 754 says.

    On CUDA, torch divides by a Python number by multiplying with its reciprocal, which may round otherwise.
    """
    return x / x.new_full((), number)
