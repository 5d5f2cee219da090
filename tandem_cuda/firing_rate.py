"""FiringRatePenalty: a term of the loss that makes a network spike less."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .nn import TandemAdd
from .nn.layer import TandemLayer, _recomputing
from .ops import checks
from .spike_train import SpikeTrain


class FiringRatePenalty:
    """The squared excess of firing rates over a target, summed over the spiking layers of a network.

    With r the mean spikes per neuron, sample and time step of a layer's output in the latest forward pass::

        penalty = sum over layers of max(0, r - target)^2

    It is differentiable: the gradient of the counts is the tandem gradient, that of the ANN's activations. Each spike
    costs additions at all neurons that it reaches, so that lower rates are fewer operations::

        with FiringRatePenalty(net, target=0.05) as penalty:
            for images, labels in batches:
                loss = F.cross_entropy(net(images), labels) + 10 * penalty()

    Layers are watched by hooks, in training mode alone: validation in between leaves no trace. Activation checkpointing
    must not be of the reentrant kind, which computes without a graph at first.

    Args:
        model: any module with tandem layers or TandemAdd in it. Pooling is not counted.
        target: a firing rate, in [0, 1).

    Raises:
        TypeError: ``model`` is no nn.Module, ``target`` no number.
        ValueError: ``model`` has no tandem layer, ``target`` is not in [0, 1).
    """

    def __init__(self, model: nn.Module, target: float = 0.0) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"FiringRatePenalty: model must be an nn.Module, got {type(model).__name__}")
        checks.check_number("FiringRatePenalty", "target", target)
        if not 0 <= target < 1:
            raise ValueError(f"FiringRatePenalty: target must be in [0, 1), got {target}")
        joined = {id(branch) for join in model.modules() if isinstance(join, TandemAdd) for branch in join.branches}
        layers = [m for m in model.modules() if isinstance(m, (TandemLayer, TandemAdd)) and id(m) not in joined]
        if not layers:
            raise ValueError(f"FiringRatePenalty: model must have tandem layers, got {type(model).__name__} without")
        self.target = target
        self._rates: list[Tensor] = []
        self._handles = [layer.register_forward_hook(self._on_layer) for layer in layers]
        self._handles.append(model.register_forward_pre_hook(self._begin, prepend=True))

    def __call__(self) -> Tensor:
        """The penalty of the latest forward pass in training mode, a scalar; the pass is forgotten then.

        Raises:
            ValueError: there was none since the last call.
        """
        if not self._rates:
            raise ValueError("FiringRatePenalty: model must run in training mode before each call of the penalty")
        rates, self._rates = torch.stack(self._rates), []
        return (rates - self.target).clamp(min=0).square().sum()

    def remove(self) -> None:
        """Stop watching; also done at the end of a ``with`` block."""
        for handle in self._handles:
            handle.remove()
        self._rates = []

    def __enter__(self) -> FiringRatePenalty:
        return self

    def __exit__(self, *error: Any) -> None:
        self.remove()

    def _begin(self, model: nn.Module, inputs: Any) -> None:
        self._rates = []

    def _on_layer(self, layer: nn.Module, inputs: Any, output: SpikeTrain) -> None:
        if layer.training and not _recomputing():
            self._rates.append(output.count.mean() / output.time_steps)
