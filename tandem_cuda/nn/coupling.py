"""The tandem coupling: a count with the value of the spikes and the gradient of the ANN's activation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..neuron import Neuron
from ..spike_train import SpikeTrain
from .all_processes import NormCount, Shared
from .firing import run_neurons


def coupled(
    neuron: Neuron, bits: Tensor, v: Tensor | None, steps: int, dtype: torch.dtype, scale: float = 1.0
) -> SpikeTrain:
    """Return a layer's spikes as a train whose count carries the gradient of the activation of v / scale.

    Args:
        neuron: the layer's neuron.
        bits: uint8 [P, N, ...].
        v: the pre-activation times ``scale``, [N, ...]. If it is None or needs no gradient, the train carries no count.
        steps: T.
        dtype: dtype of the count.
        scale: the factor in v.
    """
    count: Tensor | None = None
    if v is not None and torch.is_grad_enabled() and v.requires_grad:
        scaled = neuron if scale == 1 else neuron.scaled(scale)
        count = ops.tandem_count.trusted(bits, v, steps, scaled, neuron.upper(steps, scale))
    return fired_train(neuron, bits, steps, count, dtype)


def fired_train(
    neuron: Neuron, bits: Tensor, steps: int, value: Tensor | None, dtype: torch.dtype, pair_dim: int | None = None
) -> SpikeTrain:
    """Return the spikes of neurons, uint8 [P, N, ...], as a train with their amplitude and code.

    ``value`` is what carries the gradient, if one is needed.
    """
    amplitude, radix = neuron.amplitude_at(steps), neuron.radix
    return SpikeTrain.unchecked(bits, steps, value, dtype, amplitude=amplitude, pair_dim=pair_dim, radix=radix)


class PreActivation(NamedTuple):
    """v * scale, whose gradient the spikes will carry; None if no gradient is needed."""

    neuron: Neuron
    v: Tensor | None
    steps: int
    dtype: torch.dtype
    scale: float = 1.0

    def couple(self, bits: Tensor) -> SpikeTrain:
        """Return the spikes, whose count carries the gradient of the ANN's activation."""
        return coupled(self.neuron, bits, self.v, self.steps, self.dtype, self.scale)

    def fire(self, features: int) -> Tensor:
        """Return the bits of two-phase neurons that v drives, with ``features`` as in :func:`.firing.run_neurons`."""
        assert self.v is not None
        return run_neurons(self.neuron, self.v.detach(), self.steps, "once", None, None, features).bits


class NormalisedSums(NamedTuple):
    """v = scale * (norm(factor * unit * sums + bias) + correction) with batch statistics; v is not stored."""

    neuron: Neuron
    threshold: float
    """The neuron's ``relu_threshold_at(steps)``."""
    norm: Any
    sums: Tensor
    unit: Tensor | None
    statistics: tuple[Tensor, Tensor]
    """Mean and biased variance of the sums, each [O]."""
    steps: int
    factor: float
    bias: Tensor | None
    """The layer's bias. Batch norm cancels it."""
    scale: Tensor | None
    correction: Tensor | None
    shared: Shared | None
    """Of a batch of which other processes have parts."""

    def couple(self, bits: Tensor) -> SpikeTrain:
        """Return the spikes, whose count carries the gradient of the ANN's activation."""
        norm, bias = self.norm, self.bias
        beta = norm.bias if bias is None else torch.add(norm.bias, bias, alpha=0)  # gives the bias a zero gradient
        gamma, beta = norm.weight, beta if self.correction is None else beta + self.correction
        if self.scale is not None:
            gamma, beta = gamma * self.scale, beta * self.scale
        arguments = bits, self.sums, *self.statistics, gamma, beta, self.steps
        how = {"eps": norm.eps / self.factor**2, "threshold": self.threshold, "upper": self.neuron.upper(self.steps)}
        how["radix"] = self.neuron.radix
        if self.shared is None:
            count = ops.tandem_norm_count.trusted(*arguments, unit=self.unit, **how)
        else:
            count = NormCount.apply(*arguments, self.unit, how, self.shared)  # type: ignore[no-untyped-call]  # torch's
        return fired_train(self.neuron, bits, self.steps, count, count.dtype)

    def fire(self, features: int) -> Tensor:
        """Return the bits of two-phase neurons that v drives, with ``features`` as in :func:`.firing.run_neurons`."""
        with torch.no_grad():
            norm, unit = self.norm, self.factor if self.unit is None else self.unit * self.factor
            mean, var = self.statistics
            affine = norm.weight, norm.bias, None
            gain, bias = ops.fold_norm.trusted(
                mean * unit, var * unit**2, *affine, unit=self.unit, eps=norm.eps, amplitude=self.factor, time_steps=1
            )
            bias = bias if self.correction is None else bias + self.correction
            if self.scale is not None:
                gain, bias = gain * self.scale, bias * self.scale
            return run_neurons(self.neuron, self.sums.detach(), self.steps, "once", gain, bias, features).bits


def carrying(bits: Tensor, x: SpikeTrain, ann: Tensor | None, factor: float = 1.0) -> SpikeTrain:
    """Return pooled spikes of a train, whose value has the gradient of the ANN's activation.

    A spike weighs ``factor`` times what one of the train weighs.
    """
    code = x.code._replace(amplitude=x.amplitude * factor)
    pooled = SpikeTrain.unchecked(bits, x.time_steps, dtype=x.dtype, **code._asdict())
    return pooled if ann is None else pooled.replace_unchecked(value=pooled.value + (ann - ann.detach()))


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd records operations on any of these tensors."""
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False
