"""The tandem learning rule: the base of all tandem layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..neuron import IF, Neuron, check_neuron
from ..ops import checks
from ..ops.gradient import refuse_tangents
from ..ops.product import ENGINES
from ..spike_train import SpikeTrain
from . import learned_threshold
from .coupling import coupled, needs_gradient
from .drive import Drive, per_step
from .encode import EncodedInput
from .firing import Firing, run_neurons
from .synapses import Synapses
from .weight_cache import SpikingWeights, WeightCache
from .weights import Weights
from .wiring import Wiring, of_attributes

OF_CONVERSION = ("input_scale", "correction", "thresholds")
"""Buffers of tandem layers that conversion sets."""


class TandemLayer(nn.Module, ABC):
    """A weight layer whose spiking and ANN twin share parameters (Wu et al. 2021, section III).

    The spiking twin processes the input spikes s[t], the ANN twin their counts c. The output contains the spikes, and
    their count with the gradient of the ANN's activation of v = W * c + b.

    Three objects know what the rule needs. They are made in every call and hold no tensors of their own:

    - ``synapses`` (:class:`.synapses.Synapses`): the products of weights with spikes, counts and real input.
    - ``weights`` (:class:`.weights.Weights`): from the parameter to what products take.
    - ``drive`` (:class:`.drive.Drive`): from sums of weights to v and to currents. It has batch norm (``norm``, whose
      running statistics the spiking twin uses, already updated with this batch) and the learned threshold
      (``log_threshold``, see :mod:`.learned_threshold`).

    A converted network sets what its layers share with the ANN: ``wiring`` (:class:`.wiring.Wiring`), and the buffers
    ``input_scale``, [C], a factor of the weights of each input, ``correction`` and ``thresholds``, [O]. They are not in
    the state dict. With ``thresholds`` the neuron model has threshold 1.

    Concrete layers list the weight layer after this class in their bases.
    """

    wiring: Wiring | None = None
    input_scale: Tensor | None
    correction: Tensor | None
    thresholds: Tensor | None
    weight: Tensor
    bias: Any  # Tensor | None; torch's layers annotate it differently
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    log_threshold: nn.Parameter | None
    neuron: Neuron
    engine: str

    def __init__(
        self,
        *args: Any,
        norm: str | None = None,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        name = type(self).__name__
        if norm not in (None, "batch"):
            raise ValueError(f"{name}: norm must be None or 'batch', got {norm!r}")
        check_neuron(name, neuron)
        if engine not in ENGINES:
            raise ValueError(f"{name}: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        self.neuron = neuron
        self.engine = engine
        self._cache = WeightCache()
        self.norm = None if norm is None else self._new_norm()
        log_threshold = learned_threshold.new_log_threshold(name, learn_threshold, self.weight)
        self.register_parameter("log_threshold", log_threshold)
        for name in OF_CONVERSION:
            self.register_buffer(name, None, persistent=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        wiring = of_attributes(state)
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        if wiring is not None:
            self.wiring = wiring
        self._parameters.setdefault("log_threshold", None)  # not in pickles of earlier versions
        for name in OF_CONVERSION:
            self._buffers.setdefault(name, None)  # likewise

    def reset_parameters(self) -> None:
        """Draw new weights and return to the neuron's own threshold."""
        super().reset_parameters()  # type: ignore[misc]  # of torch's layer
        log_threshold = self._parameters.get("log_threshold")  # torch's constructor calls this, too
        if log_threshold is not None:
            nn.init.zeros_(log_threshold)

    @property
    @abstractmethod
    def synapses(self) -> Synapses:
        """The products of this layer's weights."""

    @property
    def weights(self) -> Weights:
        """What products take as weights."""
        return Weights(self)

    @property
    def drive(self) -> Drive:
        """The map from sums of weights to pre-activations and currents."""
        return Drive(self)

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments that define the connections, as JSON types (but tuples for lists)."""

    @abstractmethod
    def _new_norm(self) -> nn.BatchNorm1d | nn.BatchNorm2d:
        """Create the module for norm="batch"."""

    # -- the rule

    def forward(self, x: SpikeTrain | EncodedInput) -> SpikeTrain:
        """Fire the spiking twin; let its count carry the gradient of the ANN twin (Wu et al. 2021, section III)."""
        if self.weights.computed and not torch.compiler.is_compiling():
            with parametrize.cached():  # compute the weights once per call
                return self._coupled_twins(x)
        return self._coupled_twins(x)

    def _coupled_twins(self, x: SpikeTrain | EncodedInput) -> SpikeTrain:
        if isinstance(x, EncodedInput):
            return self._from_values(x)
        if not isinstance(x, SpikeTrain):
            raise TypeError(
                f"{type(self).__name__}: input must be a SpikeTrain, got {type(x).__name__}; put Encode(time_steps) in "
                "front of the first tandem layer, or SpikeTrain.from_dense(spikes) for recorded spikes"
            )
        weights, drive, steps = self.weights, self.drive, x.time_steps
        dtype = weights.dtype
        checks.check_dtype(type(self).__name__, "weight", dtype)
        learns = torch.is_grad_enabled() and needs_gradient(*weights.sources(), x.carried_count)
        if self.norm is not None and (learns or self.norm.training):
            return self._behind_norm(x)
        # The currents of all steps add up to v, so one product serves both twins.
        amplitude, firing = x.amplitude, Firing(self.neuron, self.engine)
        now = drive.of_spikes(weights.packed(), steps, amplitude) if learns else weights.driving(steps, amplitude)
        fired = self.synapses.fire(x, now, firing, want_sum=learns)
        return coupled(self.neuron, fired.bits, drive.learning(fired.sum, steps) if learns else None, steps, dtype)

    def _behind_norm(self, x: SpikeTrain) -> SpikeTrain:
        """Run spikes through a layer with batch norm, in training or where a gradient is needed."""
        synapses, drive, kernel, steps = self.synapses, self.drive, self.weights.packed(), x.time_steps
        scale, unit = kernel.unit, None
        if self.neuron.two_phase and scale is not None:  # these neurons take the sums themselves
            scale, unit = torch.ones_like(scale), scale
        sums = synapses.count_product(x, SpikingWeights(kernel, scale))
        v = drive.pre_activation(sums, unit, steps, x.amplitude)  # first: the drive has the statistics that this moves
        with torch.no_grad():
            now = drive.of_spikes(kernel, steps, x.amplitude)
            if self.neuron.two_phase:
                fired = run_neurons(self.neuron, sums, steps, "impulse", now.scale, now.bias, synapses.features)
            else:
                fired = synapses.fire(x.detach(), now, Firing(self.neuron, self.engine))
        return v.couple(fired.bits)

    def _from_values(self, x: EncodedInput) -> SpikeTrain:
        """Run real input, whose product with the weights drives the neurons of both twins."""
        synapses, weights, drive = self.synapses, self.weights, self.drive
        kernel, steps, constant = weights.for_values(), x.time_steps, x.mode == "constant"
        bias = per_step(drive.bias(), steps) if constant and not drive.has_gain(kernel) else None
        sums = synapses.value_product(x.value, kernel, bias)
        if not torch.compiler.is_compiling():
            refuse_tangents(type(self).__name__, sums)
        v = drive.pre_activation_of_values(sums, kernel, steps, constant)
        with torch.no_grad():
            now = weights.driving_values(steps, constant, kernel)
            fired = run_neurons(self.neuron, sums, steps, x.mode, now.scale, now.bias, synapses.features)
        return v.couple(fired.bits)

    def extra_repr(self) -> str:
        engine = "" if self.engine == "auto" else f", engine={self.engine!r}"
        learns = "" if self.log_threshold is None else ", learn_threshold=True"
        return f"{super().extra_repr()}, neuron={self.neuron}{engine}{learns}"
