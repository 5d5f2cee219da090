"""What a forward pass is part of: training, evaluation, or a backward pass that repeats it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, then for each module the mode it had: parts of a model may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def recomputing() -> bool:
    """Whether activation checkpointing runs a forward pass again, in a backward pass.

    Statistics have moved already then. To move them twice would fold others into the spiking twin, which then fired
    other spikes than it did.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
