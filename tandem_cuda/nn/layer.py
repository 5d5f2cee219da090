"""What every tandem layer does, whatever its weights connect."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import ops
from ..neuron import IF, Neuron, check_neuron
from ..ops import autocast, checks
from ..ops.product import ENGINES
from ..spike_train import SpikeTrain
from .encode import EncodedInput
from .weight_cache import SpikingWeights, WeightCache

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class TandemLayer(nn.Module, ABC):
    """A weight layer whose spiking and ANN twin share parameters (Wu et al. 2021, section III).

    The spiking twin runs on the spikes it is given; the ANN twin sees their counts. The output is the spikes, and
    their count with the gradient of the ANN's activation. With ``norm="batch"`` the ANN normalises its pre-activation
    with the batch's statistics in training, and the spiking twin folds the running statistics, as this batch has left
    them, into the gain and bias of its currents; ``norm`` (an nn.BatchNorm of this layer's own) keeps gamma, beta and
    statistics. The gain multiplies sums of weights, never the weights: so a spike train is the same whether a gradient
    is asked for, whether the layer trains and whether it is frozen.

    In eval mode, where no gradient is asked for, the rearranged weights are kept from call to call, and
    :class:`WeightCache` notices when they change. In training they are rearranged at every call. Of parametrised
    weights nothing is kept.

    Under ``torch.autocast`` the product with real input runs in the lower precision, as that of any convolution. What
    has to do with spikes keeps the precision of the weights: spiking is a threshold, which rounding moves.

    Concrete layers put the weight layer behind this class in their bases and say how to multiply.
    """

    copies: int = 1
    """So many inputs side by side share each weight, as :class:`SpikeWindows` puts them."""
    weight: Tensor
    bias: Any  # Tensor | None, which torch's own layers annotate in different ways
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    neuron: Neuron
    engine: str

    def __init__(
        self, *args: Any, norm: str | None = None, neuron: Neuron = IF(), engine: str = "auto", **kwargs: Any
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

    def forward(self, x: SpikeTrain | EncodedInput) -> SpikeTrain:
        if self._computes_weights() and not torch.compiler.is_compiling():
            with parametrize.cached():  # once for all that reads them
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
        steps = x.time_steps
        checks.check_floating(type(self).__name__, "weight", self.weight)
        learns = torch.is_grad_enabled() and needs_gradient(*self._tensors(), x.carried_count)
        if self.norm is None and learns:
            weights = self._scaled(steps, x.amplitude, self._packed())
            bits, v, _ = self._spiking_product(x, weights, want_sum=True)
            return self._coupled(bits, v, steps)
        if self.norm is not None and (learns or self.norm.training):
            packed = self._packed()
            couple = self._behind_norm(self._pre_activation(x, packed), steps)
            with torch.no_grad():
                weights = self._scaled(steps, x.amplitude, packed)
                bits, _, _ = self._spiking_product(x.detach(), weights, want_sum=False)
            return couple(bits)
        bits, v, _ = self._spiking_product(x, self._kept(steps, x.amplitude), want_sum=False)
        return self._coupled(bits, v, steps)

    def _from_encoded(self, x: EncodedInput) -> SpikeTrain:
        steps, constant = x.time_steps, x.mode == "constant"
        normed = self.norm is not None
        current = self._encoded_current(x, None if normed else per_step(self.bias, steps), normed)
        couple: Callable[[Tensor], SpikeTrain]
        if normed:
            couple = self._behind_norm(current, steps, repeats=steps if constant else 1, missing=self.bias)
        elif constant:  # the current of one step is v / T
            couple = functools.partial(self._coupled, v=current, steps=steps, scale=1 / steps)
        else:
            v = current
            if self.bias is not None and needs_gradient(current, self.bias):  # else nobody asks for v
                v = current + self._per_channel(self.bias)
            couple = functools.partial(self._coupled, v=v, steps=steps)
        with torch.no_grad():
            drive = self._kept_drive(steps, constant)
            bits, _, _ = ops.integrate_and_fire(
                current,
                steps,
                drive.bias,
                scale=drive.scale,
                mode=x.mode,
                neuron=self.neuron,
                want_sum=False,
                want_state=False,
            )
        return couple(bits)

    def _encoded_current(self, x: EncodedInput, bias: Tensor | None, normed: bool) -> Tensor:
        """What real input and weights come to, [N, O, ...]; :func:`encoded_drive` says how it drives the neurons.

        Behind batch norm W * X; without it the current of one step, W * X + bias, or of the impulse alone, W * X.
        """
        value, weight = self._checked_value(x.value), self._kernel_weight()
        return self._current(value, weight, bias if x.mode == "constant" and not normed else None)

    def _checked_value(self, value: Tensor) -> Tensor:
        name = type(self).__name__
        checks.check_floating(name, "weight", self.weight)
        if autocast.is_on(value.device) and value.is_floating_point():
            value = value.to(self.weight.dtype)  # layers before Encode may have left another; the product casts anyway
        if value.dtype != self.weight.dtype:
            raise TypeError(f"{name}: input must have the dtype of weight, {self.weight.dtype}, got {value.dtype}")
        checks.check_same_device(name, "input", value, self.weight, "weight")
        self._check_shape(value)
        return value

    def _current(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Weight * x + bias in the dtype of the weights, in whatever precision autocast computes products."""
        return self._dense_product(x, weight, bias).to(weight.dtype)

    def _coupled(self, bits: Tensor, v: Tensor, steps: int, scale: float = 1.0) -> SpikeTrain:
        """The train whose count carries the gradient of the ANN's activation of the pre-activation v / scale."""
        neuron = self.neuron
        if not (torch.is_grad_enabled() and v.requires_grad):
            return SpikeTrain._of(bits, steps, dtype=self.weight.dtype, amplitude=neuron.amplitude)
        scaled = neuron if scale == 1 else neuron.scaled(scale)
        count = ops.tandem_count(bits, v, steps, scaled, neuron.upper(steps, scale))
        return SpikeTrain._of(bits, steps, count, amplitude=neuron.amplitude)

    def _pre_activation(self, x: SpikeTrain, packed: Tensor | None) -> Tensor:
        """W * (amplitude * c) + b, what batch norm is given."""
        weight = self._kernel_weight()
        return self._count_product(x, SpikingWeights(weight, packed, spike_scale(weight, x.amplitude), self.bias))

    def _behind_norm(
        self, product: Tensor, steps: int, *, repeats: int = 1, missing: Tensor | None = None
    ) -> Callable[[Tensor], SpikeTrain]:
        """The coupling for the v that batch norm makes of a product, W * c + b.

        In training the running statistics are brought up to date here. The fused operator never materialises v.

        Args:
            product: W * c + b over ``repeats``, but for the bias where that is ``missing``: what batch norm takes away
                again need be neither multiplied nor added.
            steps: T.
            repeats: how often the product enters.
            missing: the bias, [O].
        """
        norm, neuron = self._checked_norm(), self.neuron
        threshold = neuron.relu_threshold
        learns = needs_gradient(product, missing, norm.weight, norm.bias)
        fuses = norm.training and self._fuses_norm(product)
        if (learns or norm.training) and not fuses:
            v = product if repeats == 1 else product * repeats
            v = v if missing is None else v + self._per_channel(missing)
            return functools.partial(self._coupled, v=self._batch_normalised(v), steps=steps)
        if fuses:
            mean, var = self._updated_statistics(product, repeats, missing)
        if not learns:
            return functools.partial(self._coupled, v=product, steps=steps)  # nobody asks for v
        assert threshold is not None  # which the fused operator needs
        beta = norm.bias if missing is None else norm.bias + 0 * missing  # whose gradient is zero
        return lambda bits: SpikeTrain._of(
            bits,
            steps,
            ops.tandem_norm_count(
                bits,
                product,
                mean,
                var,
                norm.weight,
                beta,
                steps,
                eps=norm.eps / repeats**2,
                threshold=threshold,
                upper=neuron.upper(steps),
            ),
            amplitude=neuron.amplitude,
        )

    # -- batch norm

    def _uses_batch_statistics(self) -> bool:
        return self.norm is not None and self.norm.training

    def _fuses_norm(self, product: Tensor) -> bool:
        """Whether the normalised product need not be stored: the operator that leads the gradient on makes it anew.

        Not where ``norm`` is subclassed or has hooks: others may watch or change what it does.
        """
        norm = self._checked_norm()
        return (
            self.neuron.relu_threshold is not None
            and type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
            and (product.dim() == 2 or type(norm) is nn.BatchNorm2d)  # channels are dimension 1
            and norm.momentum is not None
            and not any(getattr(norm, hooks) for hooks in HOOKS)
            and product.numel() > product.shape[1]  # of a single value there is no variance: torch says so
        )

    @torch.no_grad()
    def _updated_statistics(self, product: Tensor, repeats: int, missing: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and biased variance [O] of a product, and those of repeats * product + missing into the running ones."""
        norm = self._checked_norm()
        count = product.numel() // product.shape[1]
        mean, var = ops.batch_statistics(product)
        if _recomputing():
            return mean, var
        norm.num_batches_tracked.add_(1)
        # Products and sums one by one: with alpha= torch rounds once or twice, in compiled code not as in eager mode.
        of_v = mean * repeats if missing is None else mean * repeats + missing
        norm.running_mean.mul_(1 - norm.momentum).add_(of_v * norm.momentum)
        norm.running_var.mul_(1 - norm.momentum).add_(var * (repeats**2 * norm.momentum * count / (count - 1)))
        return mean, var

    def _batch_normalised(self, v: Tensor) -> Tensor:
        """``norm`` applied to v = W * c + b; in training its running statistics move, but once a batch."""
        if not self._uses_batch_statistics() or not _recomputing():
            return self._normalise(v)
        buffers = self._checked_norm()._buffers
        moved = dict(buffers)
        buffers.update({name: x.clone() for name, x in moved.items()})
        try:
            return self._normalise(v)
        finally:
            buffers.update(moved)

    def _gain(self) -> Tensor:
        """g = gamma / sqrt(running_var + eps), [O] (eq. 15; the authors' code leaves eps out)."""
        norm = self._checked_norm()
        # In double precision, which rounds to float32's exact root: torch's own in float32 may be an ulp off.
        deviation = torch.sqrt((norm.running_var + norm.eps).double()).to(norm.running_var.dtype)
        return norm.weight / deviation

    def _folded_bias(self, gain: Tensor) -> Tensor:
        """b' = (b - running_mean) * g + beta, [O]."""
        norm = self._checked_norm()
        bias = -norm.running_mean if self.bias is None else self.bias - norm.running_mean
        return bias * gain + norm.bias

    def _folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight, in the shape that products take, and bias with batch norm in them; their own without norm."""
        weight = self._kernel_weight()
        if self.norm is None:
            return weight, self.bias
        gain = self._gain()
        return weight * gain.view(-1, *[1] * (weight.dim() - 1)), self._folded_bias(gain)

    def _scaled(self, steps: int, amplitude: float, packed: Tensor | None) -> SpikingWeights:
        """The spiking twin's: batch norm's gain, which has no gradient here, applied to sums, not to the weights."""
        weight = self._kernel_weight()
        if self.norm is None:
            return SpikingWeights(weight, packed, spike_scale(weight, amplitude), per_step(self.bias, steps))
        gain = self._gain()
        scale = gain if amplitude == 1 else gain * amplitude
        return SpikingWeights(weight, packed, scale, per_step(self._folded_bias(gain), steps))

    def _computes_weights(self) -> bool:
        """Whether they come of a parametrisation, whose state nothing tells."""
        return parametrize.is_parametrized(self)

    def _tensors(self) -> list[Tensor]:
        """All that the spiking twin's weights depend on."""
        norm = self.norm
        tensors = [self.weight, self.bias]
        if norm is not None:
            tensors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        return [x for x in tensors if x is not None]

    @torch.no_grad()
    def _kept(self, steps: int, amplitude: float) -> SpikingWeights:
        """As _scaled, in eval mode from the last call where nothing has changed since; for calls without gradient."""
        if self.training or self._cannot_be_watched():
            return self._scaled(steps, amplitude, self._packed())
        settings = steps, amplitude, None if self.norm is None else self.norm.eps
        return self._cache.weights(
            self._tensors(), settings, lambda: self._scaled(steps, amplitude, self._packed(True))
        )

    def _drive(self, steps: int, constant: bool) -> SpikingWeights:
        """Scale and bias of the currents that an encoded current drives neurons with."""
        checks.check_finite(type(self).__name__, "weight", self.weight)
        gain = None if self.norm is None else self._gain()
        bias = per_step(self.bias if gain is None else self._folded_bias(gain), steps)
        scale, bias = encoded_drive(gain, bias, constant)
        return SpikingWeights(self.weight, None, scale, bias)

    def _kept_drive(self, steps: int, constant: bool) -> SpikingWeights:
        """As _drive, in eval mode from the last call where nothing has changed since."""
        if self.training or self._cannot_be_watched():
            return self._drive(steps, constant)
        settings = "encoded", steps, constant, None if self.norm is None else self.norm.eps
        return self._cache.weights(self._tensors(), settings, lambda: self._drive(steps, constant))

    def _packed(self, keep: bool = False) -> Tensor:
        """The weights, rearranged for the kernels; ``keep``: from the last call where they have not changed since."""
        groups = getattr(self, "groups", 1)
        if self._cannot_be_watched():
            return ops.pack_weight(self._kernel_weight(), groups)
        if keep:
            return self._cache.packed(self.weight, self._kernel_weight, groups)
        return self._cache.pack(self._kernel_weight(), groups)

    def _cannot_be_watched(self) -> bool:
        """Whether weights come of something that does not tell when they change."""
        return torch.compiler.is_compiling() or self._computes_weights()

    def _checked_norm(self) -> Any:
        norm = self.norm
        if norm is None or norm.running_mean is None or not norm.affine:
            raise ValueError(
                f"{type(self).__name__}: norm must keep running statistics and an affine map (the spiking twin folds "
                f"them), got {norm}"
            )
        return norm

    # -- what a concrete layer provides; v, sums and counts are [N, O, ...]

    def _kernel_weight(self) -> Tensor:
        """``weight`` in the shape that the products take, output channels first; differentiable."""
        return self._repeated(self.weight)

    def _repeated(self, weight: Tensor) -> Tensor:
        """A weight [O, C, ...] for all ``copies`` of its inputs."""
        return weight if self.copies == 1 else weight.repeat(1, self.copies, *[1] * (weight.dim() - 2))

    def _own_weight(self, weight: Tensor) -> Tensor:
        """The inverse of _kernel_weight."""
        return weight

    @abstractmethod
    def _geometry(self) -> dict[str, Any]:
        """The constructor's arguments that say what is connected, in the types of JSON (tuples for lists)."""

    @abstractmethod
    def _new_norm(self) -> nn.BatchNorm1d | nn.BatchNorm2d:
        """The module for norm="batch"."""

    @abstractmethod
    def _check_shape(self, value: Tensor) -> None:
        """ValueError where a real input does not fit the weights."""

    @abstractmethod
    def _normalise(self, v: Tensor) -> Tensor:
        """``norm`` applied to v."""

    @abstractmethod
    def _per_channel(self, x: Tensor) -> Tensor:
        """[O] shaped so that it broadcasts over v."""

    @abstractmethod
    def _dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Weight * x + bias for real x."""

    @abstractmethod
    def _count_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        """Weight * count + bias."""

    @abstractmethod
    def _spiking_product(
        self,
        x: SpikeTrain,
        weights: SpikingWeights,
        *,
        want_sum: bool,
        state: Tensor | None = None,
        want_state: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bits, sum of currents and the neurons' final state, starting from one that was returned before."""

    def extra_repr(self) -> str:
        engine = "" if self.engine == "auto" else f", engine={self.engine!r}"
        return f"{super().extra_repr()}, neuron={self.neuron}{engine}"


def encoded_drive(gain: Tensor | None, bias: Tensor | None, constant: bool) -> tuple[Tensor | None, Tensor | None]:
    """Scale and bias [O] of the currents x[t] = scale * current + bias that an encoded current drives neurons with.

    Args:
        gain: batch norm's, None without.
        bias: of a time step.
        constant: the input's mode; otherwise it is an impulse, which drives the first step alone.
    """
    return gain, None if constant and gain is None else bias


def spike_scale(weight: Tensor, amplitude: float) -> Tensor | None:
    """The amplitude of the input's spikes as the products take it, [O]; None where it is 1."""
    return None if amplitude == 1 else weight.new_full(weight.shape[:1], amplitude)


def per_step(bias: Tensor | None, steps: int) -> Tensor | None:
    """The share of a bias in the current of one time step."""
    return None if bias is None else bias / steps


def _recomputing() -> bool:
    """Whether activation checkpointing runs a forward pass again, in a backward pass.

    Statistics have moved already then. To move them twice would fold others into the spiking twin, which then fired
    other spikes than it did.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def stored(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Where a module keeps one of its tensors: in itself, or behind the tensor's parametrisation."""
    if parametrize.is_parametrized(module, name):
        return module.parametrizations[name], "original"  # type: ignore[index, return-value]  # a ModuleDict
    return module, name


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd would follow an operation on any of these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
