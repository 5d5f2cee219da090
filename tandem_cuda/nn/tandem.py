"""The tandem learning rule: the base of all tandem layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..ops import checks
from ..ops.gradient import refuse_tangent
from ..spike_train import SpikeTrain
from .ann_twin import activated, value_of
from .coupling import coupled, needs_gradient
from .drive import Drive, per_step
from .encode import EncodedInput
from .firing import Firing, check_reads_radix, mode_for, run_neurons
from .spiking import KINDS
from .spiking_twin import SpikingTwin
from .synapses import Synapses
from .trained_code import check_train
from .weight_cache import SpikingWeights
from .weights import Weights


def drop_ins() -> dict[type[nn.Module], type[TandemLayer]]:
    """Return the tandem layers that take the place of a layer of torch, by torch's class, their other base."""
    layers = [kind for kind in KINDS.values() if issubclass(kind, TandemLayer)]
    return {base: kind for kind in layers for base in kind.__bases__ if base.__module__.startswith("torch.nn")}


class TandemLayer(SpikingTwin):
    """A weight layer whose spiking and ANN twin share parameters (Wu et al. 2021, section III).

    The spiking twin processes the input spikes s_in[t] of t = 1..T, the ANN twin their counts c_in::

        spiking twin    x[t] = W * s_in[t] + b / T,  u[t] = u[t-1] - theta * s[t-1] + x[t],  s[t] = 1 if u[t] >= theta
        ANN twin        v = W * c_in + b = sum over t of x[t],  a = relu(v) / theta
        coupling        the output is c = sum over t of s[t], with the gradient of a

    This is for IF neurons; :mod:`tandem_cuda.neuron` has the equations of all models.

    Three objects know what the rule needs. They are made in every call and hold no tensors of their own:

    - ``synapses`` (:class:`.synapses.Synapses`): the products of weights with spikes, counts and real input.
    - ``weights`` (:class:`.weights.Weights`): from the parameter to what products take.
    - ``drive`` (:class:`.drive.Drive`): from sums of weights to v and to currents. It has batch norm (``norm``, whose
      running statistics the spiking twin uses, already updated with this batch) and the learned threshold
      (``log_threshold``, see :mod:`.learned_threshold`).
    """

    @property
    def weights(self) -> Weights:
        """What products take as weights."""
        return Weights(self)

    @property
    def drive(self) -> Drive:
        """The map from sums of weights to pre-activations and currents."""
        return Drive(self)

    def forward(self, x: SpikeTrain | EncodedInput) -> SpikeTrain:
        """Fire the spiking twin; let its count carry the gradient of the ANN twin (Wu et al. 2021, section III)."""
        weights = Weights(self)
        if weights.computed and not torch.compiler.is_compiling():
            computed = self._modules.get("computed")
            # Compute the weights once per call.
            with parametrize.cached() if computed is None else computed.cached():  # type: ignore[operator]
                fired = self._both_twins(x, weights)
        else:
            fired = self._both_twins(x, weights)
        return self.with_pairs(fired)

    def _both_twins(self, x: SpikeTrain | EncodedInput, weights: Weights) -> SpikeTrain:
        synapses, dtype = weights.synapses, weights.dtype
        drive = Drive(self, synapses)
        self._check_input(x, drive, dtype)
        if isinstance(x, EncodedInput):
            return self._from_values(x, weights, drive)
        steps = x.time_steps
        normalises = drive.uses_batch_statistics()
        learns = normalises or (torch.is_grad_enabled() and needs_gradient(*weights.sources(), x.carried_value))
        if normalises or (learns and drive.norm is not None):
            return self._behind_norm(x, weights, drive)
        # The currents of all steps add up to v, so one product serves both twins.
        now = drive.spiking_weights(weights, self.neuron.shares(steps), x.amplitude, learns)
        fired = synapses.fire(x, now, Firing(self.neuron, self.engine), want_sum=learns)
        v = drive.learning(fired.sum, steps) if learns else None
        return coupled(self.neuron, fired.bits, v, steps, dtype)

    def integrated(self, x: SpikeTrain | EncodedInput) -> Tensor:
        """Return what two-phase neurons integrate before they fire, up to rounding, in eval mode without a gradient."""
        weights, drive = self.weights, self.drive
        if isinstance(x, SpikeTrain):
            return drive.synapses.count_product(x.detach(), drive.spiking_weights(weights, 1, x.amplitude))
        kernel = weights.for_values()
        sums = drive.synapses.value_product(x.value, kernel)
        return drive.of_sums(sums * x.time_steps if x.mode == "constant" else sums, kernel.unit)

    def discharged(self, v: Tensor, x: SpikeTrain | EncodedInput) -> SpikeTrain:
        """Return the spikes of two-phase neurons that have integrated v from this input, without a gradient."""
        bits = self.synapses.discharged(v, x.time_steps, self.neuron).bits
        return self.with_pairs(coupled(self.neuron, bits, None, x.time_steps, v.dtype))

    def _check_input(self, x: Any, drive: Drive, dtype: torch.dtype) -> None:
        """Raise TypeError or ValueError if the layer cannot take the input."""
        name, synapses = type(self).__name__, drive.synapses
        if drive.norm is not None and self.wiring is not None and synapses.features != 1:
            shape = list(x.value.shape if isinstance(x, EncodedInput) else x.shape)
            if len(shape) > 2:
                raise ValueError(
                    f"{name}: input of a converted layer with batch norm must be [N, F], got {shape}; pass example= to "
                    "convert, since nn.BatchNorm1d normalises dimension 1"
                )
        if isinstance(x, EncodedInput):
            return
        if not isinstance(x, SpikeTrain):
            raise TypeError(
                f"{name}: input must be a SpikeTrain, got {type(x).__name__}; put Encode(time_steps) in front of the "
                "first tandem layer, or SpikeTrain.from_dense(spikes) for recorded spikes"
            )
        if x.code.radix:
            check_reads_radix(self.neuron, name)
        check_train(self, x.code.radix, name)
        synapses.check_pairs(x)
        checks.check_dtype(name, "weight", dtype)

    def _behind_norm(self, x: SpikeTrain, weights: Weights, drive: Drive) -> SpikeTrain:
        """Run spikes through a layer with batch norm, in training or where a gradient is needed."""
        synapses, kernel, steps = drive.synapses, weights.packed(), x.time_steps
        scale, unit = kernel.unit, None
        if self.neuron.two_phase and scale is not None:  # these neurons take the sums themselves
            scale, unit = torch.ones_like(scale), scale
        sums = synapses.count_product(x, SpikingWeights(kernel, scale))
        v = drive.pre_activation(sums, unit, steps, x.amplitude)  # first: it moves the statistics that the drive has
        if self.neuron.two_phase and drive.uses_batch_statistics():
            return v.couple(v.fire(synapses.features))
        with torch.no_grad():
            now = drive.of_spikes(kernel, self.neuron.shares(steps), x.amplitude)
            if self.neuron.two_phase:
                mode = "once" if self.neuron.radix else "impulse"
                fired = run_neurons(self.neuron, sums, steps, mode, now.scale, now.bias, synapses.features)
            else:
                fired = synapses.fire(x.detach(), now, Firing(self.neuron, self.engine))
        return v.couple(fired.bits)

    def _from_values(self, x: EncodedInput, weights: Weights, drive: Drive) -> SpikeTrain:
        """Run real input, whose product with the weights drives the neurons of both twins."""
        synapses, kernel, steps, constant = drive.synapses, weights.for_values(), x.time_steps, x.mode == "constant"
        mode = mode_for(type(self).__name__, self.neuron, x.mode)
        bias = per_step(drive.bias(), steps) if constant and not drive.has_gain(kernel) else None
        sums = synapses.value_product(x.value, kernel, bias)
        if not torch.compiler.is_compiling():
            refuse_tangent(type(self).__name__, sums)
        v = drive.pre_activation_of_values(sums, kernel, steps, constant)
        if self.neuron.two_phase and drive.uses_batch_statistics():
            return v.couple(v.fire(synapses.features))
        with torch.no_grad():
            now = drive.value_weights(weights, kernel, self.neuron.shares(steps), constant)
            fired = run_neurons(self.neuron, sums, steps, mode, now.scale, now.bias, synapses.features)
        return v.couple(fired.bits)

    # -- what analysis and other programs ask

    def synapses_by_input(self) -> Sequence[Synapses | None]:
        """Return what reads the spikes; see :mod:`.operations`."""
        return [self.synapses]

    def ann_twin(self, x: SpikeTrain | EncodedInput) -> SpikeTrain:
        """Run the ANN twin alone; see :mod:`.ann_twin`."""
        return activated(self, self.ann_summand(x), x.time_steps)

    def ann_summand(self, x: SpikeTrain | EncodedInput) -> Tensor:
        """Return the ANN's pre-activation, before the learned threshold."""
        v = self.synapses.dense_product(value_of(x), self.weights.floats(), self.drive.bias())
        return self.drive.summand(v)
