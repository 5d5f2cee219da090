"""What every tandem layer does, whatever its weights connect."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import ops
from ..neuron import IF, LIF, Neuron
from ..ops import autocast, checks
from ..ops.pack_weight import can_hold
from ..ops.product import ENGINES
from ..spike_train import SpikeTrain
from .encode import EncodedInput

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class SpikingWeights(NamedTuple):
    """What the spiking twin multiplies spikes with: x[t] = scale * (weight * s[t]) + bias."""

    weight: Tensor
    packed: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None
    """Per time step."""


class TandemLayer(nn.Module, ABC):
    """A weight layer whose spiking and ANN twin share parameters (Wu et al. 2021, section III).

    The spiking twin runs on the spikes it is given; the ANN twin sees their counts. The output is the spikes, and
    their count with the gradient of the ANN's activation. With ``norm="batch"`` the ANN normalises its pre-activation
    with the batch's statistics in training, and the spiking twin folds the running statistics, as this batch has left
    them, into its weights and bias; ``norm`` (an nn.BatchNorm of this layer's own) keeps gamma, beta and statistics.

    Where no gradient is asked for and batch norm is in eval mode, the folded and rearranged weights are kept from call
    to call until a parameter or a statistic changes. Changes that go around autograd's version counter, in place
    through ``parameter.data``, are noticed at the next ``train()`` or ``eval()``. Of parametrised weights nothing is
    kept.

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
        if not isinstance(neuron, (IF, LIF)):
            raise TypeError(f"{name}: neuron must be IF(...) or LIF(...), got {type(neuron).__name__}")
        if engine not in ENGINES:
            raise ValueError(f"{name}: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        self.neuron = neuron
        self.engine = engine
        self._pack: tuple[Stamp, Tensor] | None = None
        self._frozen: tuple[Stamp, SpikingWeights] | None = None
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
        if self._uses_batch_statistics():
            packed = self._packed()
            self._frozen = None  # batch norm changes its statistics and does not tell
            couple = self._behind_norm(self._pre_activation(x, packed), steps)
            with torch.no_grad():
                weights = self._scaled(steps, x.amplitude, packed)
                bits, _, _ = self._spiking_product(x.detach(), weights, want_sum=False)
            return couple(bits)
        if needs_gradient(*self._tensors(), x.carried_count):
            weight, bias = self._folded()
            weights = SpikingWeights(weight, None, spike_scale(weight, x.amplitude), per_step(bias, steps))
            bits, v, _ = self._spiking_product(x, weights, want_sum=True)
        else:
            bits, v, _ = self._spiking_product(x, self._kept(steps, x.amplitude), want_sum=False)
        return self._coupled(bits, v, steps)

    def _from_encoded(self, x: EncodedInput) -> SpikeTrain:
        steps, mode = x.time_steps, x.mode
        constant = mode == "constant"
        value = self._checked_value(x.value)
        gain: Tensor | None = None  # of `current`, and
        bias: Tensor | None  # current per time step that it does not hold yet
        couple: Callable[[Tensor], SpikeTrain]
        if self._uses_batch_statistics():
            pre = self._current(value * steps if constant else value, self._kernel_weight(), self.bias)
            couple = self._behind_norm(pre, steps)
            with torch.no_grad():
                # The folded product, W' * X, is an affine function of the ANN's pre-activation.
                gain = self._gain()
                folded_bias = self._folded_bias(gain)
                raw_bias = folded_bias.new_zeros(()) if self.bias is None else self.bias * gain
                if constant:
                    current, gain, bias = pre, gain / steps, (folded_bias - raw_bias) / steps
                else:
                    current = torch.addcmul(self._per_channel(-raw_bias), pre, self._per_channel(gain))
                    gain, bias = None, folded_bias / steps
        else:
            weight, folded = self._folded()
            bias = per_step(folded, steps)
            if constant:
                current = self._current(value, weight, bias)
                v, bias = current, None
            else:
                current = self._current(value, weight, None)
                v = current if folded is None else current + self._per_channel(folded)
            scale = 1 / steps if constant else 1.0  # v is the current of one step where it is constant
            couple = functools.partial(self._coupled, v=v, steps=steps, scale=scale)
        bits, _, _ = ops.integrate_and_fire(
            current,
            steps,
            bias,
            scale=gain,
            mode=mode,
            threshold=self.neuron.threshold,
            leak=self.neuron.leak,
            want_sum=False,
            want_potential=False,
        )
        return couple(bits)

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
            return SpikeTrain(bits, steps, dtype=self.weight.dtype, amplitude=neuron.amplitude)
        upper = neuron.saturation * steps * scale if neuron.clip else math.inf
        count = ops.tandem_count(bits, v, steps, neuron.threshold * scale, neuron.leak, upper)
        return SpikeTrain(bits, steps, count, amplitude=neuron.amplitude)

    def _pre_activation(self, x: SpikeTrain, packed: Tensor | None) -> Tensor:
        """W * (amplitude * c) + b, what batch norm is given."""
        weight = self._kernel_weight()
        return self._count_product(x, SpikingWeights(weight, packed, spike_scale(weight, x.amplitude), self.bias))

    def _behind_norm(self, product: Tensor, steps: int) -> Callable[[Tensor], SpikeTrain]:
        """Bring the running statistics up to date with a product; returns _coupled for the v that ``norm`` makes of it.

        Behind the operator that leads the gradient through batch norm itself there is no v.
        """
        if not self._fuses_norm(product):
            return functools.partial(self._coupled, v=self._batch_normalised(product), steps=steps)
        norm, neuron = self._checked_norm(), self.neuron
        mean, var = self._updated_statistics(product)
        return lambda bits: SpikeTrain(
            bits,
            steps,
            ops.tandem_norm_count(
                bits,
                product,
                mean,
                var,
                norm.weight,
                norm.bias,
                steps,
                eps=norm.eps,
                threshold=neuron.threshold,
                upper=neuron.saturation * steps if neuron.clip else math.inf,
            ),
            amplitude=neuron.amplitude,
        )

    # -- batch norm

    def _uses_batch_statistics(self) -> bool:
        return self.norm is not None and self.norm.training

    def _fuses_norm(self, product: Tensor) -> bool:
        """Whether the normalised product need not be stored: the operator that leads the gradient on makes it anew.

        Not where others could be watching or changing what ``norm`` does.
        """
        norm = self._checked_norm()
        return (
            self.neuron.leak == 1
            and needs_gradient(product, norm.weight, norm.bias)
            and type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
            and (product.dim() == 2 or type(norm) is nn.BatchNorm2d)  # channels are dimension 1
            and norm.momentum is not None
            and not any(getattr(norm, hooks) for hooks in HOOKS)
            and product.numel() > product.shape[1]  # of a single value there is no variance: torch says so
        )

    @torch.no_grad()
    def _updated_statistics(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance [O] of a product, by which the running ones have been brought up to date."""
        norm = self._checked_norm()
        count = product.numel() // product.shape[1]
        mean, var = ops.batch_statistics(product)
        if _recomputing():
            return mean, var
        norm.num_batches_tracked.add_(1)
        # Products and sums one by one: with alpha= torch rounds once or twice, in compiled code not as in eager mode.
        norm.running_mean.mul_(1 - norm.momentum).add_(mean * norm.momentum)
        norm.running_var.mul_(1 - norm.momentum).add_(var * (norm.momentum * count / (count - 1)))
        return mean, var

    def _batch_normalised(self, v: Tensor) -> Tensor:
        """``norm`` applied to v in training; its statistics move, but once a batch."""
        if not _recomputing():
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
        return norm.weight / torch.sqrt(norm.running_var + norm.eps)

    def _folded_bias(self, gain: Tensor) -> Tensor:
        """b' = (b - running_mean) * g + beta, [O]."""
        norm = self._checked_norm()
        bias = -norm.running_mean if self.bias is None else self.bias - norm.running_mean
        return bias * gain + norm.bias

    def _folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the spiking twin: batch norm folded in, W' = W * g; their own without norm."""
        weight = self._kernel_weight()
        if self.norm is None:
            return weight, self.bias
        gain = self._gain()
        return weight * gain.view(-1, *[1] * (weight.dim() - 1)), self._folded_bias(gain)

    def _scaled(self, steps: int, amplitude: float, packed: Tensor | None) -> SpikingWeights:
        """The spiking twin's, for use without gradients: batch norm's gain applied to sums, not to the weights."""
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
            tensors += [norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.num_batches_tracked]
        return [x for x in tensors if x is not None]

    @torch.no_grad()
    def _kept(self, steps: int, amplitude: float) -> SpikingWeights:
        """As _scaled, from the last call where nothing has changed since."""
        if torch.compiler.is_compiling() or self._computes_weights():
            return self._scaled(steps, amplitude, self._packed())
        stamp = Stamp(self._tensors(), (steps, amplitude, None if self.norm is None else self.norm.eps))
        frozen = self._frozen  # read and written once: threads may share the layer
        if frozen is None or not frozen[0].holds(stamp):
            frozen = stamp, self._scaled(steps, amplitude, self._packed())
            self._frozen = frozen
        return frozen[1]

    def _packed(self) -> Tensor:
        """The weights, rearranged for the kernels; from the last call where they have not changed since."""
        groups = getattr(self, "groups", 1)
        if torch.compiler.is_compiling() or self._computes_weights():
            return ops.pack_weight(self._kernel_weight(), groups)
        stamp, pack = Stamp([self.weight], None), self._pack
        if pack is None or not pack[0].holds(stamp):
            # Where they were serves again: large fresh memory costs more than the packing.
            out = None if pack is None else pack[1]
            weight = self._kernel_weight().detach()
            if out is not None and (out.is_inference() or not can_hold(out, weight, groups)):
                out = None
            self._frozen = None  # it may refer to what is overwritten here
            pack = stamp, ops.pack_weight(weight, groups, out=out)
            self._pack = pack
        return pack[1]

    def train(self, mode: bool = True) -> Any:
        self._pack = self._frozen = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pack": None, "_frozen": None}  # for pickle and deepcopy

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
        potential: Tensor | None = None,
        want_potential: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bits, sum of currents and final potential, starting from ``potential``, one that was returned before."""

    def extra_repr(self) -> str:
        engine = "" if self.engine == "auto" else f", engine={self.engine!r}"
        return f"{super().extra_repr()}, neuron={self.neuron}{engine}"


class Stamp:
    """The state of tensors and settings, to tell whether something made from them still holds."""

    def __init__(self, tensors: Sequence[Tensor], settings: Any) -> None:
        self._settings = settings
        self._tensors = tensors
        self._states: list[tuple[int, int]] | None
        try:
            self._states = [(x._version, x.data_ptr()) for x in tensors]
            self._memory = [x.detach() for x in tensors]  # held, so that no other tensor can get its address
        except RuntimeError:  # tensors that keep no version (of inference mode) or no data (of transforms)
            self._states = None

    def holds(self, now: Stamp) -> bool:
        """Whether nothing has changed between this stamp and a later one."""
        return (
            self._states is not None
            and self._states == now._states
            and self._settings == now._settings
            and all(a is b for a, b in zip(self._tensors, now._tensors, strict=True))
        )


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
