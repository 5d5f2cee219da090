"""What a batch passes to a model."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ..convert import TandemNetwork
from ..freeze import FrozenNetwork
from ..nn.encode import EncodedInput
from ..spike_train import SpikeTrain

KINDS = (Tensor, SpikeTrain, EncodedInput)
"""What layers read."""


def inputs_of(model: nn.Module) -> int:
    """Return the number of inputs that a model needs; 1 if its forward takes ``*args``."""
    if isinstance(model, FrozenNetwork):
        return len(model.kinds)
    if isinstance(model, TandemNetwork):
        return sum(node.op == "placeholder" for node in model.snn.graph.nodes)
    parameters = inspect.signature(model.forward).parameters.values()
    required = sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return max(1, required)


def is_batch(model: nn.Module, inputs: Any) -> bool:
    """Return whether inputs are one batch: what layers read, or a tuple or list of it for a model of several inputs."""
    return isinstance(inputs, KINDS) or (
        isinstance(inputs, (tuple, list)) and inputs_of(model) > 1 and isinstance(next(iter(inputs), None), KINDS)
    )


def arguments(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    """Return what one batch passes to a model: the inputs that a tuple or list begins with, or that its first has."""
    if isinstance(batch, KINDS) or not isinstance(batch, (tuple, list)):
        return (batch,)
    number = inputs_of(model)
    if number > 1 and batch and isinstance(batch[0], (tuple, list)) and not isinstance(batch[0], KINDS):
        batch = batch[0]
    return tuple(batch[:number])
