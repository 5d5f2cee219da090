"""What autocast does to the products of spikes and weights: nothing.

Neurons compare sums with a threshold, so that a rounded sum is another spike. As torch does for operators that need
their precision, the products take their inputs in float32 (float64 stays), and torch's own products, which engine
"dense" and the gradients call, are kept from choosing a lower one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def keep_precision(name: str) -> None:
    """Register the rule for a product, on CPU and CUDA."""
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(f"tandem_cuda::{name}", device, torch.float32)


def is_on(device: torch.device) -> bool:
    """Whether autocast is on for this kind of device, one that the products run on."""
    return device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)


def without_autocast(gradients: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of a gradient, its first argument, compute in the precision of its arguments.

    ``backward()`` may be called where autocast is on.
    """

    @wraps(gradients)
    def inner(grad: torch.Tensor, *arguments: Any) -> Any:
        if not is_on(grad.device):
            return gradients(grad, *arguments)
        with torch.autocast(grad.device.type, enabled=False):
            return gradients(grad, *arguments)

    return inner
