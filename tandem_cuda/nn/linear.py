"""The fully connected tandem layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..neuron import IF, Neuron
from ..spike_train import SpikeTrain
from .tandem import Ends, TandemLayer
from .weight_cache import Kernel, SpikingWeights


class TandemLinear(TandemLayer, nn.Linear):  # type: ignore[misc]  # forward: spike trains, not tensors
    """A fully connected tandem layer: nn.Linear whose neurons spike (Wu et al. 2021, section III).

    Args:
        in_features: F.
        out_features: O.
        bias: learn an additive bias. The ANN adds it once, the spiking twin adds 1/T of it at every time step.
        device: device of the parameters.
        dtype: dtype of the parameters, float32 or float64.
        norm: None, or "batch" for batch norm between weights and neurons, in the submodule ``norm`` (nn.BatchNorm1d).
        neuron: IF(...) or LIF(...).
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_linear`.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``). The parameter ``log_threshold``
            is a scalar and starts at 0 (:mod:`tandem_cuda.nn.learned_threshold`: LSQ, arXiv:1902.08153).

    Shape:
        SpikeTrain [N, ..., F] (or EncodedInput from Encode) -> SpikeTrain [N, ..., O].

    Raises:
        TypeError: the input is a Tensor, or its dtype differs from that of the weights; ``learn_threshold`` is no bool.
        ValueError: a wrong input shape.

    Examples:
        >>> layer = TandemLinear(20, 5)
        >>> spikes = layer(Encode(time_steps=8)(torch.rand(2, 20)))
        >>> spikes.count.sum().backward()  # through the ANN
        >>> layer.weight.grad.shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: object = None,
        dtype: object = None,
        *,
        norm: str | None = None,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            device,
            dtype,
            norm=norm,
            neuron=neuron,
            engine=engine,
            learn_threshold=learn_threshold,
        )

    features = -1

    def arguments(self) -> dict[str, Any]:
        return {"in_features": self.in_features, "out_features": self.out_features}

    def _new_norm(self) -> nn.BatchNorm1d:
        return nn.BatchNorm1d(self.out_features, device=self.weight.device, dtype=self.weight.dtype)

    def _check_shape(self, value: Tensor) -> None:
        if value.dim() < 2 or value.shape[-1] != self.in_features:
            raise ValueError(f"TandemLinear: input must be [N, ..., {self.in_features}], got {list(value.shape)}")

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*shape[:-1], self.out_features)

    def normalise(self, v: Tensor) -> Tensor:
        assert self.norm is not None
        normalised: Tensor = self.norm(v.flatten(0, -2))
        return normalised.view(v.shape)

    def per_channel(self, x: Tensor) -> Tensor:
        return x

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def fired(
        self,
        current: Tensor,
        steps: int,
        mode: str,
        drive: tuple[Tensor | None, Tensor | None],
        state: Tensor | None = None,
        want_state: bool = False,
    ) -> tuple[Tensor, Tensor]:
        if current.dim() == 2:
            return super().fired(current, steps, mode, drive, state, want_state)
        # Features lie last, but integrate_and_fire wants channels behind N.
        before = None if state is None else state.flatten(1, -2)
        bits, after = super().fired(current.flatten(0, -2), steps, mode, drive, before, want_state)
        shape = current.shape
        return bits.view(len(bits), *shape), after.view(len(after), *shape) if want_state else after

    def ordered_product(self, x: Tensor, kernel: Kernel) -> Tensor:
        unit = None if kernel.master is None else kernel.unit
        return ops.ordered_product(x, kernel.weight, packed=kernel.packed, master=kernel.master, unit=unit)

    def ordered_spikes(self, x: Tensor, kernel: Kernel, time_steps: int, **drive: Any) -> Tensor:
        drive |= {"packed": kernel.packed, "neuron": self.neuron}
        return ops.ordered_spikes(x, kernel.weight, time_steps, **drive)

    def step_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        if self.engine == "dense":
            return super().step_product(x, weights)
        how: dict[str, Any] = {"packed": weights.kernel.packed, "scale": weights.scale}
        return ops.step_product(x.bits, weights.kernel.weight, x.time_steps, weights.bias, **how)

    def count_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        return ops.count_linear(
            x.bits,
            weights.kernel.weight,
            weights.bias,
            **weights.operands(),
            count=x.carried_count,
            engine=self.engine,
        )

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
        return ops.spiking_linear(
            x.bits,
            weights.kernel.weight,
            weights.bias,
            state,
            **weights.operands(),
            count=x.carried_count,
            time_steps=x.time_steps,
            want_sum=want_sum,
            want_state=want_state,
            **self.how(ends),
        )
