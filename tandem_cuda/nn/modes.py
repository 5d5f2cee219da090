"""Tell whether a forward pass is training, evaluation, or recomputation in a backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode, then restore the mode of each module: parts of a model may be in eval mode already."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def recomputing() -> bool:
    """Return whether activation checkpointing is repeating a forward pass inside a backward pass.

    The first pass has already updated the running statistics. A second update would fold other statistics into the
    spiking twin, which would then fire other spikes than in the first pass.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
