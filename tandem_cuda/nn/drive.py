"""The drive: from the sums of a layer's weights to its pre-activation, and to the current of each time step.

With the sums W * c of all time steps, a layer's pre-activation is::

    v = slope * (norm(A * unit * (W * c) + bias) + correction) / thresholds / exp(log_threshold)

A is the amplitude of the input's spikes, and ``unit`` is what an integer weight stands for. A layer need not have batch
norm, slope (:mod:`.leak`), correction and thresholds (of a converted network, the latter two constant), or
log_threshold (which learns). In the spiking twin batch norm uses its running statistics, in training already updated
with this batch. All of this is then one gain g and one bias b, and the current is::

    x[t] = (A * unit * g) * (W * s[t]) + b / T

The gain multiplies the sums, never the weights, so the spikes are equal in training, in eval mode, without gradients
and in a frozen network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..ops import checks
from ..ops.division import divided
from ..ops.update_statistics import check_batched
from . import all_processes, batch_norm, leak, learned_threshold
from .all_processes import Shared
from .coupling import NormalisedSums, PreActivation, needs_gradient
from .modes import recomputing
from .synapses import Synapses
from .weight_cache import Kernel, SpikingWeights, may_cache
from .weighted import WeightedLayer
from .weights import Weights
from .wiring import paired


class Affine(NamedTuple):
    """The map from a sum of weights to a current: gain * sum + bias. Each is [O], or None for gain 1 and bias 0."""

    gain: Tensor | None
    bias: Tensor | None

    def times(self, factor: Tensor) -> Affine:
        """Return the map with its result multiplied by ``factor``, [O]."""
        gain = factor if self.gain is None else self.gain * factor
        return Affine(gain, None if self.bias is None else self.bias * factor)

    def of_integers(self, unit: Tensor | None) -> Affine:
        """Return the map from a sum of integers, each of which stands for ``unit``, [O], or 1."""
        if unit is None:
            return self
        return self._replace(gain=unit if self.gain is None else unit * self.gain)

    def of_spikes(self, kernel: Kernel, steps: int, amplitude: float) -> SpikingWeights:
        """Return weights with scale and bias of each time step, for spikes of this amplitude."""
        return SpikingWeights(kernel, spike_scale(kernel.weight, amplitude, self.gain), per_step(self.bias, steps))

    def of_values(self, steps: int, constant: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return scale and bias of the current per time step, for a layer with real input.

        With constant input and no gain, the product already contains the bias. An impulse drives only the first step,
        so its bias is added here at every step.
        """
        return self.gain, None if constant and self.gain is None else per_step(self.bias, steps)


class Drive:
    """The map from the sums of one layer's weights to its pre-activation."""

    def __init__(self, layer: WeightedLayer, synapses: Synapses | None = None) -> None:
        self.name, self.neuron = type(layer).__name__, layer.neuron
        self.synapses = layer.synapses if synapses is None else synapses
        self.norm: Any = layer.norm
        self._own_bias: Tensor | None = layer.bias
        self.correction, self.thresholds = layer.correction, layer.thresholds
        self.log_threshold = layer.log_threshold
        self._paired = layer.wiring is not None and layer.wiring.paired_outputs
        self.slope: Tensor | None = layer.slope if layer.wiring is not None and layer.wiring.slopes else None

    # -- of the spiking twin

    def affine(self) -> Affine:
        """Return gain and bias of sums of floats; differentiable, but not in ``log_threshold`` and ``slope``."""
        gain, bias = self._folded() if self.norm is not None else (None, self._own_bias)
        if self._paired:  # the weights have the signs already
            gain = None if gain is None else gain.repeat_interleave(2)
            bias = None if bias is None else paired(bias)
        whole = Affine(gain, _sum(bias, self.correction))
        if self.slope is not None:
            whole = whole.times(leak.factors(self.slope.detach(), self.synapses.outputs))
        if self.thresholds is not None:
            whole = whole.times(1 / self.thresholds)
        if self.log_threshold is not None:
            whole = whole.times(learned_threshold.inverse_threshold(self.log_threshold).repeat(self.synapses.outputs))
        return whole

    def of_sums(self, sums: Tensor, unit: Tensor | None) -> Tensor:
        """Return v for sums [N, O, ...] of integers that stand for ``unit``, or of floats."""
        gain, bias = self.affine().of_integers(unit)
        v = sums if gain is None else sums * self._over(sums, gain)
        return v if bias is None else v + self._over(v, bias)

    def bias(self) -> Tensor | None:
        """Return the bias [O] that is added before batch norm; without batch norm, the bias with its correction."""
        bias: Tensor | None = self._own_bias
        if self._paired and bias is not None:
            bias = paired(bias)
        return bias if self.norm is not None else _sum(bias, self.correction)

    def of_spikes(self, kernel: Kernel, steps: int, amplitude: float) -> SpikingWeights:
        """Return weights with scale and bias of each time step, for spikes of this amplitude."""
        if self._is_norm_alone():
            return SpikingWeights(kernel, *self._folded(kernel.unit, steps, amplitude))
        # The scale needs no gradient: without norm it is a constant.
        return self.affine().of_integers(kernel.unit).of_spikes(kernel, steps, amplitude)

    def of_values(self, kernel: Kernel, steps: int, constant: bool) -> SpikingWeights:
        """Return weights with scale and bias of the current that real input causes."""
        if self._is_norm_alone():
            return SpikingWeights(kernel, *self._folded(kernel.unit, steps))
        return SpikingWeights(kernel, *self.affine().of_integers(kernel.unit).of_values(steps, constant))

    def spiking_weights(self, weights: Weights, steps: int, amplitude: float, learns: bool = False) -> SpikingWeights:
        """Return the spiking twin's weights for spikes of this amplitude.

        With ``learns``, they carry gradients. Otherwise, they are cached in eval mode.
        """
        if learns:
            return self.of_spikes(weights.packed(), steps, amplitude)
        with torch.no_grad():
            if not may_cache(weights.layer):
                return self.of_spikes(weights.packed(), steps, amplitude)
            return self._cached(
                weights, (steps, amplitude), lambda: self.of_spikes(weights.packed(keep=True), steps, amplitude)
            )

    def value_weights(self, weights: Weights, kernel: Kernel, steps: int, constant: bool) -> SpikingWeights:
        """Return the kernel with scale and bias of the current that real input causes; cached in eval mode."""
        if not may_cache(weights.layer):
            return self._of_finite(weights, kernel, steps, constant)
        make = functools.partial(self._of_finite, weights, kernel, steps, constant)
        return self._cached(weights, ("encoded", steps, constant), make)

    def _of_finite(self, weights: Weights, kernel: Kernel, steps: int, constant: bool) -> SpikingWeights:
        checks.check_finite(self.name, "weight", weights.stored())
        of_values = self.of_values(kernel, steps, constant)
        for name, x in (("scale", of_values.scale), ("bias", of_values.bias)):
            if x is not None:
                checks.check_finite(self.name, f"{name} of its currents", x)
        return of_values

    def _cached(self, weights: Weights, settings: Any, make: Callable[[], SpikingWeights]) -> SpikingWeights:
        settings = *settings, None if self.norm is None else self.norm.eps, weights.bits
        return weights.layer._cache.weights(weights.sources(), settings, make)

    def folded(self, weights: Weights) -> tuple[Tensor, Tensor | None]:
        """Return weight, in the shape that the products take, and bias, with gain and bias of the drive folded in.

        Integers are returned as the floats that they stand for.
        """
        weight, (gain, bias) = weights.floats(), self.affine()
        return weight if gain is None else weight * gain.view(-1, *[1] * (weight.dim() - 1)), bias

    def rounding(self, weights: Weights) -> tuple[int, Tensor] | None:
        """Return the bits of quantised weights, and what the integer 1 of each output stands for, or None for floats.

        The gain of the drive is folded in.
        """
        if weights.quantiser is None:
            return None
        _, scale = weights.quantiser.integers(weights.stored())
        gain = self.affine().gain
        scale = scale.repeat_interleave(2) if weights.layer.fires_pairs else scale
        return weights.quantiser.bits, scale if gain is None else scale * gain

    def has_gain(self, kernel: Kernel) -> bool:
        """Return whether the spiking twin multiplies the sums of these weights."""
        return any(x is not None for x in (self.norm, self.log_threshold, self.thresholds, self.slope, kernel.unit))

    def _folded(self, unit: Tensor | None = None, steps: int = 1, amplitude: float = 1) -> tuple[Tensor, Tensor]:
        """Return scale and bias of each time step with batch norm folded into them, by one operator."""
        norm = batch_norm.checked_norm(self.name, self.norm)
        statistics = norm.running_mean, norm.running_var, norm.weight, norm.bias
        options: dict[str, Any] = {"eps": norm.eps, "amplitude": amplitude, "time_steps": steps}
        return ops.fold_norm.trusted(*statistics, self._own_bias, unit=unit, **options)

    def _is_norm_alone(self) -> bool:
        """Return whether there is batch norm, and neither signs nor thresholds nor a correction behind it."""
        follows = self._paired or not (self.correction is self.thresholds is self.log_threshold is None)
        return self.norm is not None and not follows

    # -- of the ANN twin

    def uses_batch_statistics(self) -> bool:
        """Return whether there is a batch norm in training mode."""
        return self.norm is not None and self.norm.training

    def pre_activation(
        self, sums: Tensor, unit: Tensor | None, steps: int, factor: float = 1.0
    ) -> PreActivation | NormalisedSums:
        """Return v = drive(factor * unit * sums), ready to be coupled; differentiable.

        In training this moves the running statistics of batch norm, which the spiking twin then uses.

        Args:
            sums: W * c or W * X of the kernel's weights, [N, O, ...]. Batch norm with batch statistics cancels bias and
                factors, up to eps, so bias and factors are not applied in advance.
            unit: what an integer stands for, [O], or None for 1.
            steps: T.
            factor: factor of the sums.
        """
        norm = batch_norm.checked_norm(self.name, self.norm)
        neuron, bias = self.neuron, self.bias()
        learns = needs_gradient(sums, bias, norm.weight, norm.bias, self.log_threshold, self.slope)
        learned = self._learned_inverse(sums, steps) if learns else None
        threshold = neuron.relu_threshold_at(steps)
        if (
            norm.training
            and threshold is not None
            and not self._paired
            and batch_norm.fuses(norm, sums, self.synapses.features)
        ):
            mean, var, shared = _moved_statistics(norm, sums, unit, factor, bias)
            if not learns and not neuron.two_phase:
                return PreActivation(neuron, None, steps, sums.dtype)
            scale = learned
            if self.thresholds is not None:
                scale = 1 / self.thresholds if scale is None else scale / self.thresholds
            factors = steps, factor, bias, scale, self.correction, shared
            return NormalisedSums(neuron, threshold, norm, sums, unit, (mean, var), *factors)
        if not learns and not norm.training:
            return PreActivation(neuron, None, steps, sums.dtype)
        v = self.in_units(sums, unit)
        v = v if factor == 1 else v * factor
        v = self._normalised(v if bias is None else v + self._over(v, bias))
        return PreActivation(neuron, self._in_thresholds(v, learned), steps, sums.dtype)

    def pre_activation_of_values(
        self, sums: Tensor, kernel: Kernel, steps: int, constant: bool
    ) -> PreActivation | NormalisedSums:
        """Return the pre-activation for the product with real input, which ``Synapses.value_product`` returns.

        With constant input they are the sums of one time step, v / T.
        """
        bias = self.bias()
        if self.norm is not None:
            return self.pre_activation(sums, kernel.unit, steps, factor=steps if constant else 1)
        v = self.in_units(sums, kernel.unit)
        if needs_gradient(sums, bias, self.log_threshold, self.slope):  # otherwise v is not needed
            if bias is not None and (self.has_gain(kernel) or not constant):
                v = v + self._over(v, divided(bias, steps) if constant else bias)
            v = self._in_thresholds(v, self._learned_inverse(v, steps))
        return PreActivation(self.neuron, v, steps, sums.dtype, 1 / steps if constant else 1.0)

    def learning(self, v: Tensor, steps: int) -> Tensor:
        """Return the sums of the spiking twin's currents, v, with the gradients of log_threshold and of the slope."""
        if self.slope is not None:
            v = v * self._over(v, leak.ones(self.slope, self.synapses.outputs))
        return learned_threshold.learning(v, self.log_threshold, self.neuron.levels(steps))

    def summand(self, v: Tensor) -> Tensor:
        """Return the layer's part of a sum of branches, given W * c + bias. In training statistics move."""
        return self._in_thresholds(v if self.norm is None else self._normalised(v), None)

    def in_units(self, sums: Tensor, unit: Tensor | None) -> Tensor:
        """Return W * c or W * X, given the sums of a kernel's integers and the weight that 1 stands for."""
        return sums if unit is None else sums * self._over(sums, unit)

    def _learned_inverse(self, v: Tensor, steps: int) -> Tensor | None:
        """Return 1 / exp(log_threshold) with its gradient, or None if the threshold does not learn."""
        if self.log_threshold is None:
            return None
        return learned_threshold.learning_inverse(self.log_threshold, v.shape, self.neuron.levels(steps))

    def _in_thresholds(self, v: Tensor, learned: Tensor | None) -> Tensor:
        """Return v times the slope, in units of ``thresholds``, times ``learned``."""
        if self.slope is not None:
            v = v * self._over(v, leak.factors(self.slope, self.synapses.outputs))
        if self.thresholds is not None:
            v = v * self._over(v, 1 / self.thresholds)
        return v if learned is None else v * learned

    def _normalised(self, v: Tensor) -> Tensor:
        """Return norm(v) + correction. In training the running statistics move once per batch."""
        norm, features, correction = self.norm, self.synapses.features, self.correction
        if self._paired:
            positive = v.movedim(features, -1)[..., ::2].movedim(-1, features)
            v = _normalised(norm, positive, features).movedim(features, -1)
            v = torch.stack([v, -v], -1).flatten(-2).movedim(-1, features)
        else:
            v = _normalised(norm, v, features)
        return v if correction is None else v + self._over(v, correction)

    def _over(self, v: Tensor, x: Tensor) -> Tensor:
        """Reshape x, [O], so that it broadcasts over v."""
        return x if self.synapses.features == -1 else x.view(-1, *[1] * (v.dim() - 2))


def _moved_statistics(
    norm: Any, product: Tensor, unit: Tensor | None, repeats: float, missing: Tensor | None
) -> tuple[Tensor, Tensor, Shared | None]:
    """Update the running statistics with the statistics of repeats * unit * product + missing, as batch norm does.

    Returns mean and biased variance of ``product`` itself, each [O]; with SyncBatchNorm, of the products of all
    processes, and what the gradient needs to know of them.
    """
    group = all_processes.group_of(norm)
    if group is not None:
        rows = product.numel() // product.shape[1]
        if rows:
            mean, var = ops.batch_statistics.trusted(product.detach())
        else:  # the other processes wait for this one
            mean = var = product.new_zeros(product.shape[1])
        mean, var, shared = all_processes.statistics_of_all(mean, var, rows, group)
        if not recomputing():
            all_processes.move_statistics(norm, mean, var, shared, unit, repeats, missing)
        return mean, var, shared
    mean, var = ops.batch_statistics.trusted(product.detach())
    if not recomputing():
        running = norm.running_mean, norm.running_var, norm.num_batches_tracked
        factors = {"unit": unit, "repeats": repeats, "momentum": norm.momentum}
        ops.update_statistics_.trusted(*running, mean, var, product, missing=missing, **factors)
    return mean, var, None


def _normalised(norm: Any, v: Tensor, features: int) -> Tensor:
    """Return norm(v); running statistics move once per batch, not when recomputing.

    Args:
        norm: the batch norm.
        v: [N, O, ...].
        features: the dimension of v that has the O channels, 1 or -1.
    """
    if norm.training:
        check_batched(type(norm).__name__, norm.running_mean, v)
    if not norm.training or not recomputing():
        return _applied(norm, v, features)
    buffers = norm._buffers
    moved = dict(buffers)
    buffers.update({name: x.clone() for name, x in moved.items()})
    try:
        return _applied(norm, v, features)
    finally:
        buffers.update(moved)


def _applied(norm: Any, v: Tensor, features: int) -> Tensor:
    if features == -1 and v.dim() > 2:  # torch's batch norm wants the channels behind N
        flat: Tensor = norm(v.flatten(0, -2))
        return flat.view(v.shape)
    normalised: Tensor = norm(v)
    return normalised


def _sum(bias: Tensor | None, correction: Tensor | None) -> Tensor | None:
    """Return the sum of a bias and its correction, each [O] or None for 0."""
    if bias is None or correction is None:
        return correction if bias is None else bias
    return bias + correction


def spike_scale(weight: Tensor, amplitude: float, gain: Tensor | None = None) -> Tensor | None:
    """Return gain times the amplitude of the input's spikes as a scale [O] for the products; None if it is 1."""
    if gain is not None:
        return gain if amplitude == 1 else gain * amplitude
    return None if amplitude == 1 else weight.new_full(weight.shape[:1], amplitude)


def per_step(bias: Tensor | None, steps: int) -> Tensor | None:
    """Return the part of a bias that enters at each time step."""
    return bias if bias is None or steps == 1 else divided(bias, steps)
