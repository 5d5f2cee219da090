"""Products of spikes and weights under autocast: sums in full precision, gradients in the lower one.

Neurons compare sums with a threshold, so rounding a sum can change a spike. Like torch's own operators that need full
precision, the products take their inputs in float32 (float64 stays float64), also where engine "dense" calls torch's
products. Their gradients are products of real numbers like any convolution's and have autocast's precision.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from .gradient import implement_autocast


class _Running(threading.local):
    """The product that runs under autocast; ``gradients``: the dtype that autocast asks for, None without a product."""

    gradients: torch.dtype | None = None


running = _Running()


def lower_gradients(name: str) -> None:
    """Register a product to run in float32 under autocast, and its gradients in the dtype of autocast."""
    op = getattr(torch.ops.tandem_cuda, name).default

    def register(device: str) -> None:
        excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

        def product(*arguments: Any) -> Any:
            before, running.gradients = running.gradients, torch.get_autocast_dtype(device)
            try:
                with torch._C._ExcludeDispatchKeyGuard(excluded):
                    return op(*map(_widened, arguments))
            finally:
                running.gradients = before

        implement_autocast(name, device, product)

    for device in ("cpu", "cuda"):
        register(device)


def _widened(x: Any) -> Any:
    narrow = isinstance(x, torch.Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if narrow else x


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
