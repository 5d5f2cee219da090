"""TandemConv2d."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..neuron import IF, Neuron
from ..ops.count_conv2d import check_fit, check_geometry
from ..spike_train import SpikeTrain
from .layer import SpikingWeights, TandemLayer

Pair = int | tuple[int, int]


class TandemConv2d(TandemLayer, nn.Conv2d):  # type: ignore[misc]  # forward: spike trains, not tensors
    """A convolutional tandem layer: nn.Conv2d whose neurons spike (Wu et al. 2021, section III).

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: of the taps, an int or a pair.
        stride: an int or a pair.
        padding: zero padding, an int, a pair, "valid" or "same".
        dilation: spacing of the taps, an int or a pair.
        groups: blocks of channels.
        bias: learn an additive bias; the ANN receives it once, the spiking twin 1/T of it per time step.
        padding_mode: "zeros" alone.
        device: of the parameters.
        dtype: of the parameters, float32 or float64.
        norm: None or "batch": batch norm between weights and neurons, in the submodule ``norm`` (nn.BatchNorm2d).
        neuron: IF(...) or LIF(...).
        engine: "auto", "event" or "dense": of the products, as in :func:`tandem_cuda.ops.spiking_conv2d`.

    Shape:
        SpikeTrain [N, C, H, W] (or the EncodedInput that Encode returns) -> SpikeTrain [N, O, Ho, Wo].

    Raises:
        TypeError: the input is a Tensor, or of another dtype than the weights.
        ValueError: shapes that do not fit; another ``padding_mode``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: str | Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: object = None,
        dtype: object = None,
        *,
        norm: str | None = None,
        neuron: Neuron = IF(),
        engine: str = "auto",
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f"TandemConv2d: padding_mode must be 'zeros', got {padding_mode!r}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            norm=norm,
            neuron=neuron,
            engine=engine,
        )
        check_geometry("TandemConv2d", self.stride, 0 if isinstance(padding, str) else self.padding, self.dilation)

    def _geometry(self) -> dict[str, Any]:
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        return {name: getattr(self, name) for name in names}

    def _new_norm(self) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(self.out_channels, device=self.weight.device, dtype=self.weight.dtype)

    def _check_shape(self, value: Tensor) -> None:
        if value.dim() != 4 or value.shape[1] != self.in_channels:
            raise ValueError(f"TandemConv2d: input must be [N, {self.in_channels}, H, W], got {list(value.shape)}")
        if self.padding != "same":
            padding = (0, 0) if isinstance(self.padding, str) else self.padding
            check_fit("TandemConv2d", value, self.weight, self.stride, padding, self.dilation)

    def _normalise(self, v: Tensor) -> Tensor:
        assert self.norm is not None
        normalised: Tensor = self.norm(v)
        return normalised

    def _per_channel(self, x: Tensor) -> Tensor:
        return x.view(-1, 1, 1)

    def _dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The format of the input is that of the result, and a single channel has both unless its strides say otherwise.
        if x.shape[1] == 1:
            x = x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
        else:
            x = x.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _count_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        x, padding = self._padded(x)
        return ops.count_conv2d(
            x.bits,
            weights.weight,
            weights.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            packed=weights.packed,
            count=x.carried_count,
            engine=self.engine,
        )

    def _spiking_product(
        self,
        x: SpikeTrain,
        weights: SpikingWeights,
        *,
        want_sum: bool,
        potential: Tensor | None = None,
        want_potential: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, padding = self._padded(x)
        return ops.spiking_conv2d(
            x.bits,
            weights.weight,
            weights.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            potential,
            packed=weights.packed,
            scale=weights.scale,
            count=x.carried_count,
            time_steps=x.time_steps,
            threshold=self.neuron.threshold,
            leak=self.neuron.leak,
            want_sum=want_sum,
            want_potential=want_potential,
            engine=self.engine,
        )

    def _padded(self, x: SpikeTrain) -> tuple[SpikeTrain, tuple[int, ...]]:
        """The padding in numbers; "same" may ask for one row or column more at the end, which is added here."""
        if not isinstance(self.padding, str):
            return x, self.padding
        if self.padding == "valid":
            return x, (0, 0)
        total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        extra = (0, total[1] % 2, 0, total[0] % 2)
        if any(extra):
            count = None if x.carried_count is None else F.pad(x.carried_count, extra)
            x = SpikeTrain(F.pad(x.bits, extra), x.time_steps, count, x.dtype)
        return x, (total[0] // 2, total[1] // 2)
