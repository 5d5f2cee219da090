"""What every tandem layer does, whatever its weights connect."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..neuron import IF, LIF, Neuron
from ..ops import checks
from ..spike_train import SpikeTrain
from .encode import EncodedInput


class TandemLayer(nn.Module, ABC):
    """A weight layer whose spiking and ANN twin share parameters (Wu et al. 2021, section III).

    The spiking twin runs on the spikes it is given; the ANN twin sees their counts. The output is the spikes, and
    their count with the gradient of the ANN's activation. With ``norm="batch"`` the ANN normalises its pre-activation
    with the batch's statistics in training, and the spiking twin folds the running statistics, as this batch has left
    them, into its weights and bias; ``norm`` (an nn.BatchNorm of this layer's own) keeps gamma, beta and statistics.

    Concrete layers put the weight layer behind this class in their bases and say how to multiply.
    """

    weight: Tensor
    bias: Any  # Tensor | None, which torch's own layers annotate in different ways
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    neuron: Neuron

    def __init__(self, *args: Any, norm: str | None = None, neuron: Neuron = IF(), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = type(self).__name__
        if norm not in (None, "batch"):
            raise ValueError(f"{name}: norm must be None or 'batch', got {norm!r}")
        if not isinstance(neuron, (IF, LIF)):
            raise TypeError(f"{name}: neuron must be IF(...) or LIF(...), got {type(neuron).__name__}")
        self.neuron = neuron
        self.norm = None if norm is None else self._new_norm()

    def forward(self, x: SpikeTrain | EncodedInput) -> SpikeTrain:
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
        if self._uses_batch_statistics():
            v = self._normalise(self._count_product(x, self.weight, self.bias))
            with torch.no_grad():
                weight, bias = self._folded()
                bits, _ = self._spiking_product(x.detach(), weight, _per_step(bias, steps), want_sum=False)
        else:
            weight, bias = self._folded()
            want_sum = _needs_gradient(weight, bias, x.carried_count)
            bits, v = self._spiking_product(x, weight, _per_step(bias, steps), want_sum=want_sum)
        return self._coupled(bits, v, steps)

    def _from_encoded(self, x: EncodedInput) -> SpikeTrain:
        steps, mode = x.time_steps, x.mode
        constant = mode == "constant"
        self._check_value(x.value)
        bias: Tensor | None  # current per time step that `current` does not hold yet
        if self._uses_batch_statistics():
            pre = self._dense_product(x.value * steps if constant else x.value, self.weight, self.bias)
            v = self._normalise(pre)
            with torch.no_grad():
                # The folded product, W' * X, is an affine function of the ANN's pre-activation.
                gain = self._gain()
                folded_bias = self._folded_bias(gain)
                raw_bias = folded_bias.new_zeros(()) if self.bias is None else self.bias * gain
                if constant:
                    gain, offset, bias = gain / steps, (folded_bias - raw_bias) / steps, None
                else:
                    offset, bias = -raw_bias, folded_bias / steps
                current = torch.addcmul(self._per_channel(offset), pre, self._per_channel(gain))
            scale = 1.0
        else:
            weight, folded = self._folded()
            bias = _per_step(folded, steps)
            if constant:
                current = self._dense_product(x.value, weight, bias)
                v, bias = current, None
            else:
                current = self._dense_product(x.value, weight, None)
                v = current if folded is None else current + self._per_channel(folded)
            scale = 1 / steps if constant else 1.0  # v is the current of one step where it is constant
        bits, _, _ = ops.integrate_and_fire(
            current,
            steps,
            bias,
            mode=mode,
            threshold=self.neuron.threshold,
            leak=self.neuron.leak,
            want_sum=False,
            want_potential=False,
        )
        return self._coupled(bits, v, steps, scale)

    def _check_value(self, value: Tensor) -> None:
        name = type(self).__name__
        checks.check_floating(name, "weight", self.weight)
        if value.dtype != self.weight.dtype:
            raise TypeError(f"{name}: input must have the dtype of weight, {self.weight.dtype}, got {value.dtype}")
        checks.check_same_device(name, "input", value, self.weight, "weight")
        self._check_shape(value)

    def _coupled(self, bits: Tensor, v: Tensor, steps: int, scale: float = 1.0) -> SpikeTrain:
        """The train whose count carries the gradient of the ANN's activation of the pre-activation v / scale."""
        neuron = self.neuron
        if not (torch.is_grad_enabled() and v.requires_grad):
            return SpikeTrain(bits, steps, dtype=self.weight.dtype)
        upper = neuron.saturation * steps * scale if neuron.clip else math.inf
        return SpikeTrain(bits, steps, ops.tandem_count(bits, v, steps, neuron.threshold * scale, neuron.leak, upper))

    # -- batch norm

    def _uses_batch_statistics(self) -> bool:
        return self.norm is not None and self.norm.training

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
        if self.norm is None:
            return self.weight, self.bias
        gain = self._gain()
        return self.weight * gain.view(-1, *[1] * (self.weight.dim() - 1)), self._folded_bias(gain)

    def _checked_norm(self) -> Any:
        norm = self.norm
        if norm is None or norm.running_mean is None or not norm.affine:
            raise ValueError(
                f"{type(self).__name__}: norm must keep running statistics and an affine map (the spiking twin folds "
                f"them), got {norm}"
            )
        return norm

    # -- what a concrete layer provides; v, sums and counts are [N, O, ...]

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
    def _count_product(self, x: SpikeTrain, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Weight * count + bias."""

    @abstractmethod
    def _spiking_product(
        self, x: SpikeTrain, weight: Tensor, bias: Tensor | None, *, want_sum: bool
    ) -> tuple[Tensor, Tensor]:
        """Bits and sum of currents; bias per time step."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, neuron={self.neuron}"


def _per_step(bias: Tensor | None, steps: int) -> Tensor | None:
    return None if bias is None else bias / steps


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
