"""FiringRatePenalty, ActivePenalty and SynOpsPenalty: loss terms that make a network spike less."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..nn.modes import recomputing
from ..nn.operations import Operations, ann_macs, synapses_by_input
from ..nn.synapses import Synapses
from ..ops import checks
from ..spike_train import SpikeTrain

_Seen = TypeVar("_Seen")
_Self = TypeVar("_Self", bound="_Penalty[Any]")


class _Penalty(ABC, Generic[_Seen]):
    """Watches the spiking layers of a network and computes a penalty from the latest forward pass."""

    def __init__(self, model: nn.Module, target: float, end: float) -> None:
        name = type(self).__name__
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name}: model must be an nn.Module, got {type(model).__name__}")
        checks.check_number(name, "target", target)
        if not 0 <= target < end:
            raise ValueError(f"{name}: target must be in [0, {end:g}), got {target}")
        layers = [m for m in model.modules() if synapses_by_input(m) and hasattr(type(m), "ann_twin")]
        if not layers:
            raise ValueError(f"{name}: model must have tandem layers, got {type(model).__name__} without any")
        self.target = target
        self._seen: list[_Seen] = []
        self._handles = [layer.register_forward_hook(self._on_layer) for layer in layers]
        self._handles.append(model.register_forward_pre_hook(self._begin, prepend=True))

    @abstractmethod
    def _see(self, layer: Any, inputs: Any, output: SpikeTrain) -> _Seen:
        """Return what the penalty needs to know about a layer that ran."""

    @abstractmethod
    def _of(self, seen: list[_Seen]) -> Tensor:
        """Compute the penalty, a scalar."""

    def __call__(self) -> Tensor:
        """Return the penalty of the latest forward pass in training mode, a scalar, and forget the pass.

        Raises:
            ValueError: there was no such pass since the last call.
        """
        if not self._seen:
            name = type(self).__name__
            raise ValueError(f"{name}: model must run in training mode before each call of the penalty")
        seen, self._seen = self._seen, []
        return self._of(seen)

    def remove(self) -> None:
        """Stop watching. The end of a ``with`` block does this, too."""
        for handle in self._handles:
            handle.remove()
        self._seen = []

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.remove()

    def _begin(self, model: nn.Module, inputs: Any) -> None:
        self._seen = []

    def _on_layer(self, layer: nn.Module, inputs: Any, output: SpikeTrain) -> None:
        if layer.training and not recomputing():
            self._seen.append(self._see(layer, inputs, output))


class FiringRatePenalty(_Penalty[Tensor]):
    """The squared excess of firing rates over a target, summed over the spiking layers of a network.

    With r the mean number of spikes per neuron, sample and time step of a layer in the latest forward pass::

        penalty = sum over layers of max(0, r - target)^2

    The penalty is differentiable: counts have the gradient of the ANN's activations. Each spike costs an
    addition at every neuron that it reaches, so lower rates mean fewer operations::

        with FiringRatePenalty(net, target=0.05) as penalty:
            for images, labels in batches:
                loss = F.cross_entropy(net(images), labels) + 10 * penalty()

    Hooks watch the layers in training mode only, so validation in between has no effect. Reentrant activation
    checkpointing does not work, because its first pass has no graph.

    Args:
        model: any module that contains tandem layers or TandemAdd. Pooling is not counted.
        target: a firing rate, in [0, 1).

    Raises:
        TypeError: ``model`` is not an nn.Module, or ``target`` is not a number.
        ValueError: ``model`` has no tandem layer, or ``target`` is not in [0, 1).

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(2, 2, bias=False), Decode(), nn.Linear(2, 2))
        >>> _ = nn.init.eye_(net[1].weight)
        >>> with FiringRatePenalty(net, target=0.1) as penalty:
        ...     logits = net(torch.tensor([[1.0, 0.0]]))  # firing rates 1 and 0: 0.5 on average
        ...     round(penalty().item(), 4)
        0.16
    """

    def __init__(self, model: nn.Module, target: float = 0.0) -> None:
        super().__init__(model, target, end=1)

    def _see(self, layer: Any, inputs: Any, output: SpikeTrain) -> Tensor:
        return output.count.mean() / output.time_steps

    def _of(self, seen: list[Tensor]) -> Tensor:
        return (torch.stack(seen) - self.target).clamp(min=0).square().sum()


class ActivePenalty(FiringRatePenalty):
    """The squared excess of the share of active neurons over a target, summed over the spiking layers of a network.

    A neuron is active for a sample if it spikes at all. With a the mean share of active neurons of a layer in the
    latest forward pass::

        penalty = sum over layers of max(0, a - target)^2

    A product of spike counts, or of the values of radix spikes, has one operation for each active input and each neuron
    that it reaches, however often the input spikes. So this penalty makes networks fast whose neurons wait for all time
    steps, where :class:`FiringRatePenalty` makes spikes few.

    The share has no gradient of its own. Its gradient is that of the mean of q / (1 + q), with q the count or the
    value: it grows the closer a neuron is to silence. Layers are watched as by :class:`FiringRatePenalty`.

    Args:
        model: any module that contains tandem layers or TandemAdd. Pooling is not counted.
        target: a share of active neurons, in [0, 1).

    Raises:
        TypeError: ``model`` is not an nn.Module, or ``target`` is not a number.
        ValueError: ``model`` has no tandem layer, or ``target`` is not in [0, 1).

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(2, 2, bias=False), Decode(), nn.Linear(2, 2))
        >>> _ = nn.init.eye_(net[1].weight)
        >>> with ActivePenalty(net, target=0.1) as penalty:
        ...     logits = net(torch.tensor([[0.3, 0.0]]))  # one of two neurons spikes, once
        ...     round(penalty().item(), 4)
        0.16
    """

    def _see(self, layer: Any, inputs: Any, output: SpikeTrain) -> Tensor:
        value = output.value
        # Own hooks: otherwise checkpointing would expect these tensors again when it recomputes the layer.
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            soft = (value / (1 + value)).mean()
        return (value.detach() > 0).to(value.dtype).mean() + (soft - soft.detach())


@dataclass(frozen=True)
class _Branch:
    """A layer, or a branch of a TandemAdd, in one forward pass."""

    key: tuple[nn.Module, int]
    """The layer, and the number of its input."""
    synapses: Synapses | None
    counts: Tensor | None
    """Spike counts of its input, summed over the batch; None for real input."""
    multiplications: int
    """Multiply-accumulates of the ANN for the batch."""


class SynOpsPenalty(_Penalty[list[_Branch]]):
    """The squared excess of a network's synaptic operations over a share of its ANN's multiply-accumulates.

    With SynOps and MACs of all tandem layers in the latest forward pass, counted as by :func:`tandem_cuda.synops`::

        penalty = max(0, SynOps / MACs - target)^2

    Each spike is weighted by its cost, the number of neurons that it reaches. So layers with cheap spikes may use more
    of them, whereas :class:`FiringRatePenalty` has one target rate for all layers. Counts have the tandem gradient::

        with SynOpsPenalty(net, target=0.3) as penalty:
            for images, labels in batches:
                loss = F.cross_entropy(net(images), labels) + 100 * penalty()

    If a first layer reads real input, its MACs count as the ANN's, but not as SynOps, since spikes do not change them.
    Weights before Encode or after Decode do not count. Layers are watched as by :class:`FiringRatePenalty`.

    Args:
        model: any module that contains tandem layers or TandemAdd.
        target: SynOps divided by MACs, not negative.

    Raises:
        TypeError: ``model`` is not an nn.Module, or ``target`` is not a number.
        ValueError: ``model`` has no tandem layer, or ``target`` is not in [0, inf); when called, no layer of the pass
            had weights.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(2, 2, bias=False), TandemLinear(2, 3), Decode())
        >>> _ = nn.init.eye_(net[1].weight)
        >>> with SynOpsPenalty(net, target=0.5) as penalty:
        ...     counts = net(torch.tensor([[1.0, 0.0]]))  # 4 spikes that reach 3 neurons each
        ...     round(penalty().item(), 4)  # (4 * 3 / (4 + 6) - 0.5)^2
        0.49
    """

    def __init__(self, model: nn.Module, target: float = 0.0) -> None:
        super().__init__(model, target, end=math.inf)
        self._operations = Operations()

    def _see(self, layer: Any, inputs: Any, output: SpikeTrain) -> list[_Branch]:
        # A sum saves nothing for backward; saved tensors would confuse checkpointing when it recomputes the layer.
        return [
            _Branch(
                (layer, i),
                synapses,
                x.count.sum(0) if isinstance(x, SpikeTrain) else None,
                ann_macs(synapses, x, output) * output.shape[0],
            )
            for i, (synapses, x) in enumerate(zip(synapses_by_input(layer), inputs, strict=True))
        ]

    def _of(self, seen: list[list[_Branch]]) -> Tensor:
        branches = list(itertools.chain.from_iterable(seen))
        multiplications = sum(branch.multiplications for branch in branches)
        if multiplications == 0:
            raise ValueError("SynOpsPenalty: model must run a layer with weights on a non-empty batch")
        operations = [self._operations(x.key, x.synapses, x.counts) for x in branches if x.counts is not None]
        return (sum(operations, torch.zeros(())) / multiplications - self.target).clamp(min=0).square()
