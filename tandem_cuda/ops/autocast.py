"""Keep the products of spikes and weights in full precision under autocast.

Neurons compare sums with a threshold, so rounding a sum can change a spike. Like torch's own operators that need full
precision, the products take their inputs in float32 (float64 stays float64). Nor does autocast lower the precision of
the torch products that engine "dense" and the gradients call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def keep_precision(name: str) -> None:
    """Register a product to run in float32 under autocast, on CPU and CUDA."""
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(f"tandem_cuda::{name}", device, torch.float32)


def is_on(device: torch.device) -> bool:
    """Return whether autocast is enabled for a device type that the products run on."""
    return device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)


def without_autocast(gradients: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function whose first argument is a gradient, so that it computes in the precision of its arguments.

    ``backward()`` may be called while autocast is enabled.
    """

    @wraps(gradients)
    def inner(grad: torch.Tensor, *arguments: Any) -> Any:
        if not is_on(grad.device):
            return gradients(grad, *arguments)
        with torch.autocast(grad.device.type, enabled=False):
            return gradients(grad, *arguments)

    return inner
