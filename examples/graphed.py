"""Gradients by a CUDA graph: forward pass, loss and backward pass, replayed by one call of the driver.

The step of a small network is about a hundred short kernels. Launching them one by one from Python can take longer than
running them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Calls before the capture. Layers make their constants in the first one."""


class GraphedGradients:
    """Call a closure that computes gradients: captured in a CUDA graph, and replayed from then on.

    The first three calls run as they are, on a stream of their own, and the fourth is captured. The closure must read
    its batch from the same tensors in every call, and must not wait for the device. Numbers and tensors that Python
    hands to an operator are part of the graph for good. Any optimizer may take its step afterwards: replayed gradients
    stay where they are until the next call.

    Args:
        parameters: what gets gradients, on a CUDA device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [*parameters]
        self._replay: Callable[[], Any] | None = None
        self._calls_before = WARM_UP

    def __call__(self, closure: Callable[[], Any], captured: bool = True) -> Any:
        """Run the closure; the gradients of earlier calls are gone.

        Args:
            closure: of no argument. A graph has one batch size: a batch of another one has a closure of its own, with
                captured=False.
            captured: whether the call may be captured or replayed.

        Returns:
            What the closure returned. When a call is replayed, the tensors that it returned when it was captured, with
            new values: read them before the next call.
        """

        def whole() -> tuple[Any, list[Tensor | None]]:
            for p in self._parameters:
                p.grad = None
            out = closure()
            return out, [p.grad for p in self._parameters]

        if not captured:
            return whole()[0]
        if self._replay is None and self._calls_before > 0:
            self._calls_before -= 1
            return on_a_stream_of_its_own(whole)[0]
        if self._replay is None:
            self._replay = capture(whole)
        out, gradients = self._replay()
        for p, gradient in zip(self._parameters, gradients, strict=True):
            p.grad = gradient  # which a call that was not captured has replaced
        return out


def on_a_stream_of_its_own(f: Callable[[], Any]) -> Any:
    """What f returns. Calls before a capture must not run on the default stream, which graphs cannot use."""
    here, other = torch.cuda.current_stream(), torch.cuda.Stream()
    other.wait_stream(here)
    with torch.cuda.stream(other):
        out = f()
    here.wait_stream(other)
    return out


def capture(f: Callable[[], Any]) -> Callable[[], Any]:
    """Capture f, without running it: what runs it, and returns the tensors that f returned."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = f()

    def replay() -> Any:
        graph.replay()
        return out

    return replay


def copied(to: list[Any], batch: list[Any]) -> bool:
    """Copy a batch's tensors to those that a graph reads; False, and nothing is copied, if shapes or dtypes differ."""
    pairs = list(zip(to, batch, strict=True))
    if any(isinstance(x, Tensor) and (x.shape, x.dtype) != (y.shape, y.dtype) for x, y in pairs):
        return False
    for x, y in pairs:
        if isinstance(x, Tensor):
            x.copy_(y)
    return True
