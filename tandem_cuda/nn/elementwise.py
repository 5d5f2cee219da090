"""TandemElementwise: neurons that each read one neuron below, or the two neurons of a signed value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..neuron import IF, Neuron
from ..ops.geometry import Geometry
from ..spike_train import SpikeTrain
from .conv import TandemConv2d
from .tandem import Ends
from .weight_cache import SpikingWeights


class TandemElementwise(TandemConv2d):
    """Neurons that each read the neuron below: what batch norm, a factor or an offset of spikes becomes.

    Their current is norm(a * s[t] + b / T), with a constant factor a and offset b, which :meth:`maps` sets. It is a
    depthwise convolution with 1 x 1 kernels, for neurons in any number of dimensions. As a branch of
    :class:`TandemAdd` it is an identity for spikes that nn.Identity cannot read: signed values, and inputs with an
    ``input_scale``.

    Args:
        in_channels: number of input channels or features: C, or 2 C if the inputs are signed values.
        out_channels: number of outputs: C, or 2 C if the outputs are signed values.
        groups: C.
        bias: must be False.
        device: device of the constants.
        dtype: dtype of the constants, float32 or float64.
        neuron: IF(...) or LIF(...).
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``).

    Shape:
        SpikeTrain [N, in_channels, ...] -> SpikeTrain [N, out_channels, ...].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: a wrong number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        bias: bool = False,
        device: object = None,
        dtype: object = None,
        *,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
    ) -> None:
        if bias:
            raise ValueError("TandemElementwise: bias must be False, got True")
        super().__init__(
            in_channels,
            out_channels,
            1,
            groups=groups,
            bias=False,
            device=device,
            dtype=dtype,
            neuron=neuron,
            engine=engine,
            learn_threshold=learn_threshold,
        )
        for name, number in (("in_channels", in_channels), ("out_channels", out_channels)):
            if number not in (groups, 2 * groups):
                raise ValueError(
                    f"TandemElementwise: {name} must be groups or 2 * groups, {groups} or {2 * groups}, got {number}"
                )
        weight = self.weight.detach()
        del self.weight, self.bias
        self.register_buffer("weight", torch.ones_like(weight), persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def maps(self, factor: float, offset: float, like: Tensor) -> None:
        """Set the constants, on the device of ``like`` and in its dtype.

        Where there are two neurons for each value, they are those of its signs.
        """
        self.signed_input, self.signed = self.in_channels > self.groups, self.out_channels > self.groups
        self.weight = torch.full((self.groups, 1, 1, 1), factor, device=like.device, dtype=like.dtype)
        self.bias = None if offset == 0 else self.weight.new_full([self.groups], offset)

    def arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("in_channels", "out_channels", "groups")}

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        self._check_dims(shape)
        return (shape[0], self.out_channels, *shape[2:])

    def image(self) -> tuple[Any, Geometry]:
        return self.onto_product, Geometry((1, 1), (0, 0), (1, 1))

    def onto_product(self, y: Tensor) -> Tensor:
        return y if y.dim() == 5 else y.reshape(*y.shape[:3], -1, 1)

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = super().dense_product(x.reshape(*x.shape[:2], -1, 1), weight, bias)
        return y.reshape(len(y), -1, *x.shape[2:])

    def count_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        v = super().count_product(x, weights)
        return v.reshape(self.output_shape(x.shape))

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
        how: dict[str, Any] = {"want_sum": want_sum, "state": state, "want_state": want_state, "ends": ends}
        bits, total, state = super().spiking_product(x, weights, **how)
        shape = self.output_shape(x.shape)
        return bits.reshape(len(bits), *shape), total.reshape(shape) if want_sum else total, state

    def _check_dims(self, shape: Sequence[int]) -> None:
        if len(shape) < 2 or shape[1] != self.in_channels:
            raise ValueError(f"TandemElementwise: input must be [N, {self.in_channels}, ...], got {list(shape)}")
