"""The base of all tandem layers."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import ops
from ..neuron import IF, Neuron, check_neuron
from ..ops import autocast, checks
from ..ops.division import divided
from ..ops.gradient import refuse_tangents
from ..ops.product import ENGINES
from ..spike_train import SpikeTrain
from . import batch_norm, learned_threshold
from .coupling import coupled, coupled_behind_norm, needs_gradient
from .current import Affine, Norm, affine, corrected, folded_drive, per_step, spike_scale
from .encode import EncodedInput
from .quantiser import quantiser
from .weight_cache import Kernel, SpikingWeights, WeightCache, computes_weights, may_keep


class Ends(NamedTuple):
    """What a product ends in."""

    neuron: Neuron
    engine: str
    added: Tensor | None = None
    """What another branch brings: currents [T, N, O, ...] or bits [P, N, O, ...]."""
    amplitude: Tensor | None = None
    """Of its spikes, [O]."""


OF_CONVERSION = ("input_scale", "correction", "thresholds")
"""Buffers of tandem layers that conversion sets."""


class TandemLayer(nn.Module, ABC):
    """A weight layer whose spiking and ANN twin share parameters (Wu et al. 2021, section III).

    The spiking twin processes the input spikes, the ANN twin their counts. The output contains the spikes, and their
    count with the gradient of the ANN's activation.

    With ``norm="batch"`` the submodule ``norm`` (an nn.BatchNorm) holds gamma, beta and the statistics. In training the
    ANN normalises its pre-activation with the batch statistics. The spiking twin folds the running statistics, already
    updated with this batch, into the gain and bias of its currents. The gain multiplies sums of weights, never the
    weights themselves, so the spikes do not depend on whether a gradient is computed or the layer is frozen.

    With ``learn_threshold`` the layer has a further parameter, ``log_threshold`` (:mod:`.learned_threshold`), otherwise
    None. Gain and bias contain the factor exp(-log_threshold).

    In training the weights are rearranged for the kernels in every call. In eval mode without gradients the rearranged
    weights are cached, and :class:`WeightCache` notices when they change. Parametrised weights are never cached.

    With quantised weights (:class:`WeightQuantiser`) in float32 the products take integers and have exact sums. Their
    scales are part of the gain.

    A converted network may have several neurons for an input or output of the ANN, all of which share its weights:

    - ``copies`` inputs side by side, as :class:`SpikeWindows` arranges them.
    - With ``signed_input``, inputs 2i and 2i + 1 are the positive and the negative part of one value.
    - With ``signed``, outputs 2i and 2i + 1 are neurons for v and -v. So the layer needs no ReLU behind it: the
      difference of their counts is the rounded v.
    - ``input_scale``, [C] or None, multiplies the weights of each input of the ANN.

    ``in_channels``, ``out_channels`` and the like then number these neurons, not those of ``weight``.

    Calibration may set two tensors [O] more. Like ``input_scale``, they belong to the converted network alone and are
    not in the state dict. With both, and batch norm if any, v = (norm(W * c + b) + correction) / thresholds:

    - ``correction`` is added to the pre-activation.
    - ``thresholds`` are those of the neurons, whose model then has threshold 1.

    Under ``torch.autocast`` the product with real input runs in the lower precision, like any convolution. Products
    with spikes keep the precision of the weights, because rounding could move a potential across the threshold.

    Concrete layers list the weight layer after this class in their bases and implement the products.
    """

    copies: int = 1
    signed_input: bool = False
    signed: bool = False
    multiplicity: int = 1
    """Of a frozen layer, whose weights are arranged for all of these neurons: synapses for each one of the ANN's."""
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
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        self._parameters.setdefault("log_threshold", None)  # not in pickles of earlier versions
        for name in OF_CONVERSION:
            self._buffers.setdefault(name, None)  # likewise

    def reset_parameters(self) -> None:
        """Draw new weights and return to the neuron's own threshold."""
        super().reset_parameters()  # type: ignore[misc]  # of torch's layer
        log_threshold = self._parameters.get("log_threshold")  # torch's constructor calls this, too
        if log_threshold is not None:
            nn.init.zeros_(log_threshold)

    def forward(self, x: SpikeTrain | EncodedInput) -> SpikeTrain:
        if self.computes_weights() and not torch.compiler.is_compiling():
            with parametrize.cached():  # compute the weights once per call
                return self._run(x)
        return self._run(x)

    def _run(self, x: SpikeTrain | EncodedInput) -> SpikeTrain:
        if isinstance(x, SpikeTrain):
            return self._from_spikes(x)
        if isinstance(x, EncodedInput):
            return self._from_encoded(x)
        raise TypeError(
            f"{type(self).__name__}: input must be a SpikeTrain, got {type(x).__name__}; put Encode(time_steps) in "
            "front of the first tandem layer, or SpikeTrain.from_dense(spikes) for recorded spikes"
        )

    def _from_spikes(self, x: SpikeTrain) -> SpikeTrain:
        steps, dtype = x.time_steps, self.dtype
        checks.check_dtype(type(self).__name__, "weight", dtype)
        learns = torch.is_grad_enabled() and needs_gradient(*self.sources(), x.carried_count)
        if self.norm is None and learns:
            bits, v, _ = self.spiking_product(x, self._spiking(steps, x.amplitude, self.packed_kernel()), want_sum=True)
            return coupled(self.neuron, bits, self._learning(v, steps), steps, dtype)
        if self.norm is not None and (learns or self.norm.training):
            return self._in_training(x, self.packed_kernel())
        bits, _, _ = self.spiking_product(x, self._kept(steps, x.amplitude), want_sum=False)
        return coupled(self.neuron, bits, None, steps, dtype)

    def _in_training(self, x: SpikeTrain, kernel: Kernel) -> SpikeTrain:
        """Run spikes through a layer with batch norm, in training or where a gradient is needed."""
        steps = x.time_steps
        scale, unit = kernel.unit, None
        if self.neuron.two_phase and scale is not None:  # these neurons take the sums themselves
            scale, unit = torch.ones_like(scale), scale
        product = self.count_product(x, SpikingWeights(kernel, scale))
        couple = self._behind_norm(product, unit, steps, repeats=x.amplitude, missing=self.wired_bias())
        with torch.no_grad():
            weights = self._spiking(steps, x.amplitude, kernel)
            if self.neuron.two_phase:
                bits, _ = self.fired(product, steps, "impulse", (weights.scale, weights.bias))
            else:
                bits, _, _ = self.spiking_product(x.detach(), weights, want_sum=False)
        return couple(bits)

    def fired(
        self,
        current: Tensor,
        steps: int,
        mode: str,
        drive: tuple[Tensor | None, Tensor | None],
        state: Tensor | None = None,
        want_state: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return the bits of this layer's neurons and their final state.

        Args:
            current: [N, O, ...], as :func:`integrate_and_fire` takes it.
            steps: T.
            mode: not "series".
            drive: scale and bias.
            state: continues an earlier call.
            want_state: return the final state.
        """
        scale, bias = drive
        settings: dict[str, Any] = {"scale": scale, "mode": mode, "neuron": self.neuron}
        bits, _, after = ops.integrate_and_fire(
            current, steps, bias, state, **settings, want_sum=False, want_state=want_state
        )
        return bits, after

    def _units(self, sums: Tensor, unit: Tensor | None) -> Tensor:
        """Return W * c or W * X, given the sums of a kernel's weights and its unit."""
        return sums if unit is None else sums * self.per_channel(unit)

    def _from_encoded(self, x: EncodedInput) -> SpikeTrain:
        steps, constant, bias = x.time_steps, x.mode == "constant", self.wired_bias()
        kernel = self._encoding_kernel()
        owned = self.log_threshold is not None or self.thresholds is not None
        gained = self.norm is not None or owned or kernel.unit is not None
        current = self.encoded_current(x, None if gained else per_step(bias, steps), gained, kernel)
        if not torch.compiler.is_compiling():
            refuse_tangents(type(self).__name__, current)
        couple: Callable[[Tensor], SpikeTrain]
        if self.norm is not None:
            couple = self._behind_norm(current, kernel.unit, steps, repeats=steps if constant else 1, missing=bias)
        else:
            v = self._units(current, kernel.unit)  # with constant input v / T, the current of each step
            if needs_gradient(current, bias, self.log_threshold):  # otherwise v is not needed
                if bias is not None and (gained or not constant):
                    v = v + self.per_channel(divided(bias, steps) if constant else bias)
                v = self._in_thresholds(v, self._learning_unit(v.shape, steps))
            couple = self._couple(v, steps, 1 / steps if constant else 1.0)
        with torch.no_grad():
            drive = self._kept_drive(steps, constant, kernel)
            bits, _ = self.fired(current, steps, x.mode, (drive.scale, drive.bias))
        return couple(bits)

    def encoded_current(self, x: EncodedInput, bias: Tensor | None, gained: bool, kernel: Kernel) -> Tensor:
        """Return the product with real input, [N, O, ...]; ``Affine.encoded_drive`` says how it drives the neurons.

        With a gain (``gained``) that is W * X, or of integers their sums with X. Without, it is W * X + bias, the
        current of one step, if the input is constant, and W * X if it is an impulse.
        """
        value, weight = self._checked_value(x.value), kernel.weight
        if weight.dtype in checks.INTEGERS:
            return self.ordered_product(value, kernel)
        # Cast back: autocast may compute the product in a lower precision.
        return self.dense_product(value, weight, bias if x.mode == "constant" and not gained else None).to(weight.dtype)

    def encoded_spikes(
        self,
        x: EncodedInput,
        steps: int,
        bias: Tensor | None,
        drive: tuple[Tensor | None, Tensor | None],
        kernel: Kernel,
    ) -> Tensor:
        """Return the bits for real input whose current nobody else needs.

        Args:
            x: the input.
            steps: T.
            bias: of a step; part of the current if there is no gain.
            drive: scale and bias, as ``Affine.encoded_drive`` returns them.
            kernel: the weights, packed if they are integers.
        """
        scale, missing = drive
        if kernel.weight.dtype in checks.INTEGERS:  # these have a gain
            value = self._checked_value(x.value)
            return self.ordered_spikes(value, kernel, steps, scale=scale, bias=missing, mode=x.mode)
        return self.fired(self.encoded_current(x, bias, scale is not None, kernel), steps, x.mode, drive)[0]

    def _checked_value(self, value: Tensor) -> Tensor:
        name, weight = type(self).__name__, self.stored_weight()
        checks.check_dtype(name, "weight", self.dtype)
        if autocast.is_on(value.device) and value.is_floating_point():
            value = value.to(self.dtype)  # layers before Encode may return a lower precision
        if value.dtype != self.dtype:
            raise TypeError(f"{name}: input must have the dtype of weight, {self.dtype}, got {value.dtype}")
        checks.check_same_device(name, "input", value, weight, "weight")
        self._check_shape(value)
        return value

    def summand(self, x: SpikeTrain, kernel: Kernel) -> Tensor:
        """Return v as a branch of a TandemAdd. In training this updates the running statistics."""
        v = self._pre_activation(x, kernel)
        return self._in_thresholds(v if self.norm is None else self._batch_normalised(v), None)

    def summand_of(self, value: Tensor) -> Tensor:
        """Return v of real input: counts times their amplitude, or what an input adds up to."""
        v = self.dense_product(value, self.kernel_weight(), self.wired_bias())
        return self._in_thresholds(v if self.norm is None else self._batch_normalised(v), None)

    def _pre_activation(self, x: SpikeTrain, kernel: Kernel) -> Tensor:
        """Return W * (amplitude * c) + b, the input of batch norm."""
        scale = spike_scale(kernel.weight, x.amplitude, kernel.unit)
        return self.count_product(x, SpikingWeights(kernel, scale, self.wired_bias()))

    def _learning_unit(self, shape: Sequence[int], steps: int) -> Tensor | None:
        """Return 1 / exp(log_threshold) with its gradient, or None if the threshold does not learn."""
        if self.log_threshold is None:
            return None
        return learned_threshold.learning_unit(self.log_threshold, shape, steps)

    def _in_thresholds(self, v: Tensor, unit: Tensor | None) -> Tensor:
        """Return v in units of ``thresholds``, times ``unit``."""
        if self.thresholds is not None:
            v = v * self._over(v, 1 / self.thresholds)
        return v if unit is None else v * unit

    def _over(self, v: Tensor, x: Tensor) -> Tensor:
        """Reshape x, [O], so that it broadcasts over v, whatever the number of its dimensions."""
        return x if self.features == -1 else x.view(-1, *[1] * (v.dim() - 2))

    def _learning(self, v: Tensor, steps: int) -> Tensor:
        """Return v, in units of the learned threshold, with the gradient of ``log_threshold``."""
        if self.log_threshold is None:
            return v
        return v * learned_threshold.learning(self.log_threshold, v.shape, steps)

    def _couple(self, v: Tensor | None, steps: int, scale: float = 1.0) -> Callable[[Tensor], SpikeTrain]:
        """Return a function that couples bits with the pre-activation v / scale."""
        return lambda bits: coupled(self.neuron, bits, v, steps, self.dtype, scale)

    def _behind_norm(
        self, product: Tensor, unit: Tensor | None, steps: int, *, repeats: float, missing: Tensor | None
    ) -> Callable[[Tensor], SpikeTrain]:
        """Return a function that couples bits with the v behind batch norm, norm(repeats * unit * product + missing).

        Correction and thresholds are applied. In training this updates the running statistics.

        Args:
            product: what the kernel's weights sum up to. Batch norm with batch statistics cancels bias and factors, up
                to eps, so none of them is applied in advance.
            unit: of the kernel, or None for 1.
            steps: T.
            repeats: a factor of ``product``.
            missing: the bias, [O], or None for 0.
        """
        neuron, norm = self.neuron, batch_norm.checked_norm(type(self).__name__, self.norm)
        learns = needs_gradient(product, missing, norm.weight, norm.bias, self.log_threshold)
        threshold = neuron.relu_threshold
        in_thresholds = self._learning_unit(product.shape, steps) if learns else None
        if norm.training and threshold is not None and not self.signed and batch_norm.fuses(norm, product):
            statistics = batch_norm.update_statistics(norm, product, unit, repeats, missing)
            if not learns:
                return self._couple(None, steps)
            scale = in_thresholds
            if self.thresholds is not None:
                scale = 1 / self.thresholds if scale is None else scale / self.thresholds
            return lambda bits: coupled_behind_norm(
                neuron,
                threshold,
                norm,
                bits,
                product,
                unit,
                statistics,
                steps,
                repeats,
                missing,
                scale,
                self.correction,
            )
        if not learns and not norm.training:
            return self._couple(None, steps)
        v = self._units(product, unit)
        v = v if repeats == 1 else v * repeats
        v = self._batch_normalised(v if missing is None else v + self.per_channel(missing))
        return self._couple(self._in_thresholds(v, in_thresholds), steps)

    def _batch_normalised(self, v: Tensor) -> Tensor:
        """Return norm(v) + correction. In training the running statistics are updated once per batch."""
        if self.signed:
            positive = v.movedim(self.features, -1)[..., ::2].movedim(-1, self.features)
            v = batch_norm.normalised(self.norm, self.normalise, positive).movedim(self.features, -1)
            v = torch.stack([v, -v], -1).flatten(-2).movedim(-1, self.features)
        else:
            v = batch_norm.normalised(self.norm, self.normalise, v)
        return v if self.correction is None else v + self._over(v, self.correction)

    def uses_batch_statistics(self) -> bool:
        """Return whether there is a batch norm in training mode."""
        return self.norm is not None and self.norm.training

    # -- weights of the spiking twin

    def affine(self) -> Affine:
        """Return gain and bias of the sums of this layer's weights; differentiable, but not in ``log_threshold``."""
        norm = None if self.norm is None else batch_norm.checked_norm(type(self).__name__, self.norm)
        frozen = self._buffers.get("gain")  # of a frozen layer without norm
        if frozen is not None:
            return Affine(frozen, self.bias)
        gain, bias = affine(norm, self.bias)
        if self.signed:  # the weights have the signs already
            gain = None if gain is None else gain.repeat_interleave(2)
            bias = None if bias is None else _paired(bias)
        whole = Affine(gain, corrected(bias, self.correction))
        if self.thresholds is not None:
            whole = whole.times(1 / self.thresholds)
        if self.log_threshold is not None:
            whole = whole.times(learned_threshold.unit(self.log_threshold).repeat(self.outputs))
        return whole

    def wired_bias(self) -> Tensor | None:
        """Return what is added to the product, for each neuron: ``bias``, and ``correction`` if there is no norm."""
        bias: Tensor | None = self.bias
        if self.signed and bias is not None:
            bias = _paired(bias)
        return bias if self.norm is not None else corrected(bias, self.correction)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Return weight, in the shape that the products take, and bias, with gain and bias of ``affine`` folded in.

        Of integer weights, what they stand for.
        """
        weight, (gain, bias) = self.kernel_weight(), self.affine()
        return weight if gain is None else weight * gain.view(-1, *[1] * (weight.dim() - 1)), bias

    def sources(self) -> list[Tensor]:
        """Return all tensors that the spiking twin's weights depend on."""
        norm = self.norm
        weight = self.weight if self.computes_weights() else self.stored_weight()
        tensors = [weight, self.bias, self.log_threshold, self._buffers.get("gain")]
        tensors += [self._buffers[name] for name in OF_CONVERSION]
        if norm is not None:
            tensors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]  # None without an affine map
        return [x for x in tensors if x is not None]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of values: that of the weights, or float32 if they are integers."""
        dtype = self.stored_weight().dtype
        return torch.float32 if dtype in checks.INTEGERS else dtype

    def stored_weight(self) -> Tensor:
        """Return the weight, but of quantised weights those in full precision."""
        module, name = stored(self, "weight") if quantiser(self) is not None else (self, "weight")
        weight: Tensor = getattr(module, name)
        return weight

    def computes_weights(self) -> bool:
        """Return whether a parametrisation computes the weights, so that changes of its state go unnoticed."""
        return computes_weights(self)

    def bits(self) -> int | None:
        """Return the number of bits of the integers that the products take, or None if they take floats."""
        of_weight = quantiser(self)
        return of_weight.bits if of_weight is not None and self.dtype == torch.float32 else None

    def spiking_weights(self, steps: int, amplitude: float, kernel: Kernel | None = None) -> SpikingWeights:
        """Return the spiking twin's weights without a gradient, for input spikes of this amplitude.

        ``kernel``: of packed weights, if it is at hand.
        """
        return self._kept(steps, amplitude) if kernel is None else self._spiking(steps, amplitude, kernel)

    def kernel(self) -> Kernel:
        """Return the weights as the products take them, not packed; differentiable."""
        of_weight = quantiser(self)
        if of_weight is None or self.dtype != torch.float32:
            return Kernel(self.kernel_weight())
        master = self.arranged(self.stored_weight())
        weight, unit = of_weight.kernel(master)
        return Kernel(weight, unit=unit, master=master)

    def packed_kernel(self, keep: bool = False) -> Kernel:
        """Return the weights with ``packed``; with ``keep``, from the last call if they have not changed."""
        groups = getattr(self, "groups", 1)
        if keep:
            sources = [x for x in (self.stored_weight(), self.input_scale) if x is not None]
            return self._cache.kernel(sources, self.bits(), self.kernel, groups)
        kernel = self.kernel()
        never = self.computes_weights()
        packed = ops.pack_weight(kernel.weight, groups) if never else self._cache.pack(kernel.weight, groups)
        return kernel._replace(packed=packed)

    def _encoding_kernel(self) -> Kernel:
        """Return the weights for the product with real input."""
        if self.bits() is None:
            return Kernel(self.kernel_weight())
        return self.packed_kernel(keep=not torch.is_grad_enabled() and may_keep(self, [self]))

    def _spiking(self, steps: int, amplitude: float, kernel: Kernel) -> SpikingWeights:
        norm = self._lone_norm()
        if norm is not None:
            return SpikingWeights(kernel, *folded_drive(norm, self.bias, kernel.unit, steps, amplitude))
        # scale needs no gradient: without norm it is a constant
        return SpikingWeights(kernel, *self.affine().of_integers(kernel.unit).drive(kernel.weight, steps, amplitude))

    @torch.no_grad()
    def _kept(self, steps: int, amplitude: float) -> SpikingWeights:
        """Return the spiking twin's weights when no gradient is needed; cached in eval mode."""
        keep = may_keep(self, [self])
        make = functools.partial(self._made, steps, amplitude, keep)
        return self._cache.weights(keep, self.sources(), (steps, amplitude, self._eps(), self.bits()), make)

    def _made(self, steps: int, amplitude: float, keep: bool) -> SpikingWeights:
        return self._spiking(steps, amplitude, self.packed_kernel(keep))

    def _kept_drive(self, steps: int, constant: bool, kernel: Kernel) -> SpikingWeights:
        """Return scale and bias for an encoded current; cached in eval mode."""
        settings = "encoded", steps, constant, self._eps(), self.bits()
        return self._cache.weights(
            may_keep(self, [self]), self.sources(), settings, functools.partial(self._drive, steps, constant, kernel)
        )

    def _drive(self, steps: int, constant: bool, kernel: Kernel) -> SpikingWeights:
        checks.check_finite(type(self).__name__, "weight", self.stored_weight())
        norm = self._lone_norm()
        if norm is not None:
            return SpikingWeights(kernel, *folded_drive(norm, self.bias, kernel.unit, steps))
        return SpikingWeights(kernel, *self.affine().of_integers(kernel.unit).encoded_drive(steps, constant))

    def _lone_norm(self) -> Norm | None:
        """Return batch norm if neither signs nor thresholds nor a correction follow it, otherwise None."""
        follows = self.signed or not (self.correction is self.thresholds is self.log_threshold is None)
        return None if self.norm is None or follows else batch_norm.checked_norm(type(self).__name__, self.norm)

    def _eps(self) -> float | None:
        return None if self.norm is None else self.norm.eps

    @property
    def outputs(self) -> int:
        """O, the number of output channels or features."""
        number: int = getattr(self, "out_channels", None) or getattr(self, "out_features")  # noqa: B009 (of torch's layer)
        return number

    # -- implemented by concrete layers; v, sums and counts are [N, O, ...]

    def kernel_weight(self) -> Tensor:
        """Return ``weight`` in the shape that the products take, output channels first; differentiable."""
        return self.arranged(self.weight)

    def arranged(self, weight: Tensor) -> Tensor:
        """Convert a weight to the shape that the products take; differentiable."""
        return self.wired(weight)

    def wired(self, weight: Tensor) -> Tensor:
        """Arrange a weight [O, C/groups, ...] of the ANN for all neurons that share it."""
        ones = [1] * (weight.dim() - 2)
        if self.input_scale is not None:
            groups = getattr(self, "groups", 1)
            scale = self.input_scale.view(groups, 1, -1).expand(-1, len(weight) // groups, -1)
            weight = weight * scale.reshape(len(weight), -1, *ones)
        if self.signed_input:
            weight = torch.stack([weight, -weight], 2).flatten(1, 2)
        if self.copies > 1:
            weight = weight.repeat(1, self.copies, *ones)
        return torch.stack([weight, -weight], 1).flatten(0, 1) if self.signed else weight

    def own_weight(self, weight: Tensor) -> Tensor:
        """Return a weight as the products take it in the shape that layers of this class store."""
        return weight

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments that define the connections, as JSON types (but tuples for lists)."""

    @abstractmethod
    def _new_norm(self) -> nn.BatchNorm1d | nn.BatchNorm2d:
        """Create the module for norm="batch"."""

    @abstractmethod
    def _check_shape(self, value: Tensor) -> None:
        """Raise ValueError if a real input does not fit the weights."""

    @abstractmethod
    def normalise(self, v: Tensor) -> Tensor:
        """Apply ``norm`` to v."""

    features: int = 1
    """The dimension of v that has the O outputs."""

    @abstractmethod
    def per_channel(self, x: Tensor) -> Tensor:
        """Reshape [O] so that it broadcasts over v."""

    @abstractmethod
    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute weight * x + bias for real x."""

    @abstractmethod
    def ordered_product(self, x: Tensor, kernel: Kernel) -> Tensor:
        """Compute the kernel's integers * x for real x."""

    @abstractmethod
    def ordered_spikes(self, x: Tensor, kernel: Kernel, time_steps: int, **drive: Any) -> Tensor:
        """Return the bits of the neurons that such products drive, given bias, scale and mode."""

    def step_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        """Compute weight * spikes + bias for every time step, [T, N, O, ...], without a gradient.

        Here as a count product whose samples are trains of one step each.
        """
        steps = ops.unpack_spikes(x.bits, x.time_steps, torch.uint8).flatten(0, 1).unsqueeze(0)
        trains = SpikeTrain.unchecked(steps, 1, dtype=x.dtype, amplitude=x.amplitude)
        return torch.unflatten(self.count_product(trains, weights), 0, (x.time_steps, -1))

    @abstractmethod
    def count_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        """Compute weight * count + bias."""

    @abstractmethod
    def spiking_product(
        self,
        x: SpikeTrain,
        weights: SpikingWeights,
        *,
        want_sum: bool,
        state: Tensor | None = None,
        want_state: bool = False,
        ends: Ends | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return bits, sum of the currents and the neurons' final state; ``state`` continues an earlier call.

        ``ends``: the neurons that fire, if they are not this layer's.
        """

    def how(self, ends: Ends | None) -> dict[str, Any]:
        """Return the keyword arguments of a product that ends in these neurons, or None: in this layer's."""
        neuron, engine, added, amplitude = ends or Ends(self.neuron, self.engine)
        added = None if added is None else self.onto_product(added)
        return {"neuron": neuron, "engine": engine, "added": added, "amplitude": amplitude}

    @abstractmethod
    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape [N, O, ...] of the neurons for an input of shape [N, C, ...]."""

    def onto_product(self, y: Tensor) -> Tensor:
        """Convert neurons [..., N, O, ...] to the dimensions that the product's output has."""
        return y

    def extra_repr(self) -> str:
        engine = "" if self.engine == "auto" else f", engine={self.engine!r}"
        learns = "" if self.log_threshold is None else ", learn_threshold=True"
        return f"{super().extra_repr()}, neuron={self.neuron}{engine}{learns}"


def _paired(x: Tensor) -> Tensor:
    """Return [x0, -x0, x1, -x1, ...]."""
    return torch.stack([x, -x], 1).flatten()


def stored(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module and name that store a tensor: the module itself, or the tensor's parametrisation."""
    if parametrize.is_parametrized(module, name):
        return module.parametrizations[name], "original"  # type: ignore[index, return-value]  # a ModuleDict
    return module, name
