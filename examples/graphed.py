"""A training step as a CUDA graph: forward pass, loss, backward pass and update, replayed by one call of the driver.

The step of a small network is about a hundred short kernels. Launching them one by one from Python can take longer than
running them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3
"""Steps before the capture. Layers make their constants in the first one, and the optimizer its state."""


class GraphedAdamW(torch.optim.AdamW):
    """AdamW whose ``step(closure)`` is captured with its closure in a CUDA graph, and replayed from then on.

    The first three steps run as they are, on a stream of their own, and the fourth is captured. The closure must read
    its batch from the same tensors in every step, and must not wait for the device. Numbers and tensors that Python
    hands to an operator are part of the graph for good, except for the learning rates: those are tensors, which a
    scheduler fills.

    Args:
        params: parameters, or groups of them, on a CUDA device.
        lr: the learning rate, in the beginning.
        weight_decay: as of AdamW.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, fused=True, capturable=True)
        self._begin()

    def _begin(self) -> None:
        """Have nothing captured, and a tensor of its own for the learning rate of each group."""
        self._replay: Callable[[], Any] | None = None
        self._steps_before = WARM_UP
        for group in self.param_groups:
            lr = group["lr"]
            group["lr"] = torch.full((), float(lr), dtype=torch.float32, device=group["params"][0].device)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; what was captured before, of other tensors, is dropped."""
        super().load_state_dict(state_dict)
        self._begin()

    def step(self, closure: Callable[[], Any], captured: bool = True) -> Any:  # type: ignore[override]  # torch's closure is optional
        """Run the closure, which computes gradients, and update the parameters.

        Args:
            closure: of no argument. A graph has one batch size: a batch of another one has a closure of its own, with
                captured=False.
            captured: whether the step may be captured or replayed. Otherwise it runs as a step of AdamW.

        Returns:
            What the closure returned. When a step is replayed, the tensors that it returned when it was captured, with
            new values: read them before the next step.
        """

        def whole() -> Any:
            return super(GraphedAdamW, self).step(closure)

        if not captured:
            return whole()
        if self._replay is None and self._steps_before > 0:
            self._steps_before -= 1
            return on_a_stream_of_its_own(whole)
        if self._replay is None:
            self._replay = capture(whole)
        return self._replay()


def on_a_stream_of_its_own(f: Callable[[], Any]) -> Any:
    """What f returns. Steps before a capture must not run on the default stream, which graphs cannot use."""
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
