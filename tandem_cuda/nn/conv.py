"""Convolutional tandem layers. All of them compute their products as 2-D convolutions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..neuron import IF, Neuron
from ..ops.geometry import Geometry, check_fit, check_geometry, out_size
from ..ops.layout import canonical, channels_last
from ..spike_train import SpikeTrain
from .geometry import insert_zeros, pad
from .tandem import Ends, TandemLayer
from .weight_cache import Kernel, SpikingWeights

Pair = int | tuple[int, int]
Rearrange = Callable[[Tensor], Tensor]


class ConvolutionLayer(TandemLayer):
    """A tandem layer whose products are 2-D convolutions with ``kernel_weight`` [O, C/groups, kH, kW]."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    groups: int

    axes = "H, W"
    """The input's dimensions behind N and C."""

    @abstractmethod
    def image(self) -> tuple[Rearrange | None, Geometry]:
        """Return how inputs become images whose convolution, with this geometry, is this layer's product.

        The function takes bits or values [P, N, C, ...] and returns [P, N, C, H, W], with any padding that the products
        cannot add themselves. None: inputs are such images already.
        """

    def as_image(self, x: SpikeTrain) -> tuple[SpikeTrain, Geometry]:
        """Return images [N, C, H, W] and the geometry whose convolution is this layer's product."""
        self._check_dims(x.shape)
        rearrange, geometry = self.image()
        return x if rearrange is None else x.rearranged(rearrange), geometry

    def from_image(self, y: Tensor) -> Tensor:
        """Convert a convolved image [..., Ho, Wo] to the dimensions of this layer's output."""
        return y

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        self._check_dims(shape)
        rearrange, geometry = self.image()
        image = torch.empty(1, *shape, device="meta")
        image = image if rearrange is None else rearrange(image)
        kernel = (*[1] * (2 - len(self.kernel_size)), *self.kernel_size)
        size = [max(n, 0) for n in out_size(image, image.new_empty(1, 1, *kernel), *geometry)]
        return (*self.from_image(image.new_empty(shape[0], self.out_channels, *size)).shape,)

    def normalise(self, v: Tensor) -> Tensor:
        assert self.norm is not None
        normalised: Tensor = self.norm(v)
        return normalised

    def ordered_product(self, x: Tensor, kernel: Kernel) -> Tensor:
        image, geometry = self._value_as_image(x)
        unit = None if kernel.master is None else kernel.unit
        of_master: dict[str, Any] = {"packed": kernel.packed, "master": kernel.master, "unit": unit}
        return self.from_image(ops.ordered_product(image, kernel.weight, *geometry, self.groups, **of_master))

    def ordered_spikes(self, x: Tensor, kernel: Kernel, time_steps: int, **drive: Any) -> Tensor:
        image, geometry = self._value_as_image(x)
        drive |= {"packed": kernel.packed, "neuron": self.neuron}
        how: dict[str, Any] = {**geometry._asdict(), "groups": self.groups}
        return self.from_image(ops.ordered_spikes(image, kernel.weight, time_steps, **how, **drive))

    def _value_as_image(self, x: Tensor) -> tuple[Tensor, Geometry]:
        rearrange, geometry = self.image()
        return x if rearrange is None else rearrange(x.unsqueeze(0)).squeeze(0), geometry

    def step_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        if self.engine == "dense" or self.in_channels == self.groups:  # which have kernels for counts of their own
            return super().step_product(x, weights)
        x, geometry = self.as_image(x)
        how: dict[str, Any] = {**geometry._asdict(), "groups": self.groups}
        how |= {"packed": weights.kernel.packed, "scale": weights.scale}
        currents = ops.step_product(x.bits, weights.kernel.weight, x.time_steps, weights.bias, **how)
        return self.from_image(currents)

    def count_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        x, geometry = self.as_image(x)
        v = ops.count_conv2d(
            x.bits,
            weights.kernel.weight,
            weights.bias,
            *geometry,
            self.groups,
            **weights.operands(),
            count=x.carried_count,
            engine=self.engine,
        )
        return self.from_image(v)

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
        x, geometry = self.as_image(x)
        bits, total, state = ops.spiking_conv2d(
            x.bits,
            weights.kernel.weight,
            weights.bias,
            *geometry,
            self.groups,
            state,
            count=x.carried_count,
            time_steps=x.time_steps,
            want_sum=want_sum,
            want_state=want_state,
            **weights.operands() | self.how(ends),
        )
        return self.from_image(bits), self.from_image(total) if want_sum else total, state

    def _check_dims(self, shape: Sequence[int]) -> None:
        name, got = type(self).__name__, list(shape)
        if len(got) != 2 + len(self.axes.split(", ")) or got[1] != self.in_channels:
            raise ValueError(f"{name}: input must be [N, {self.in_channels}, {self.axes}], got {got}")


class TandemConv2d(ConvolutionLayer, nn.Conv2d):  # type: ignore[misc]  # forward: spike trains, not tensors
    """A convolutional tandem layer: nn.Conv2d whose neurons spike (Wu et al. 2021, section III).

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an int or a pair.
        stride: an int or a pair.
        padding: an int, a pair, "valid" or "same".
        dilation: spacing of the kernel taps, an int or a pair.
        groups: number of channel groups.
        bias: learn an additive bias. The ANN adds it once, the spiking twin adds 1/T of it at every time step.
        padding_mode: "zeros", or "reflect", "replicate" or "circular" to fill the padding with the image's spikes.
        device: device of the parameters.
        dtype: dtype of the parameters, float32 or float64.
        norm: None, or "batch" for batch norm between weights and neurons, in the submodule ``norm`` (nn.BatchNorm2d).
        neuron: IF(...) or LIF(...).
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``). The parameter ``log_threshold``
            is a scalar and starts at 0 (:mod:`tandem_cuda.nn.learned_threshold`: LSQ, arXiv:1902.08153).

    Shape:
        SpikeTrain [N, C, H, W] (or EncodedInput from Encode) -> SpikeTrain [N, O, Ho, Wo].

    Raises:
        TypeError: the input is a Tensor, or its dtype differs from that of the weights; ``learn_threshold`` is no bool.
        ValueError: a wrong input shape, or more padding than the image has pixels for.

    Examples:
        >>> layer = TandemConv2d(3, 16, 3, padding=1, norm="batch", neuron=IF(threshold=0.5))
        >>> x = Encode(time_steps=8)(torch.rand(2, 3, 32, 32))
        >>> layer(x)
        SpikeTrain([2, 16, 32, 32], time_steps=8, dtype=torch.float32, device=cpu)
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
        learn_threshold: bool = False,
    ) -> None:
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
            learn_threshold=learn_threshold,
        )
        check_geometry("TandemConv2d", self.stride, 0 if isinstance(padding, str) else self.padding, self.dilation)

    def arguments(self) -> dict[str, Any]:
        return _arguments(self)

    def _new_norm(self) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(self.out_channels, device=self.weight.device, dtype=self.weight.dtype)

    def _check_shape(self, value: Tensor) -> None:
        self._check_dims(value.shape)
        if self.padding != "same":
            padding = (0, 0) if isinstance(self.padding, str) else self.padding
            check_fit("TandemConv2d", value, self.stored_weight(), self.stride, padding, self.dilation)

    def per_channel(self, x: Tensor) -> Tensor:
        return x.view(-1, 1, 1)

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # torch returns the memory format of the input. With one channel, only the strides tell the formats apart.
        if x.shape[1] == 1:
            if self._puts_out_one_column(x):  # torch's channels-last convolution is wrong here
                x = x.contiguous().view(-1).view(x.shape)
            elif torch.compiler.is_compiling():  # Inductor cannot sort symbolic strides of a view
                x = x.clone(memory_format=torch.channels_last)
            else:
                x = x.reshape(x.shape[0], *x.shape[2:], 1).permute(0, 3, 1, 2)
        else:
            x = channels_last(x)
        return self._conv_forward(x, canonical(weight), bias)

    def _puts_out_one_column(self, x: Tensor) -> bool:
        """Return whether the stride skips columns of the image and the output has a single column."""
        stride = self.stride[1]
        padding = 0 if isinstance(self.padding, str) else self.padding[1]  # torch allows "same" only with stride 1
        room = x.shape[-1] + 2 * padding - self.dilation[1] * (self.kernel_size[1] - 1) - 1
        return bool(stride > 1 and room < stride)

    def image(self) -> tuple[Rearrange | None, Geometry]:
        stride, dilation = _pair(self.stride), _pair(self.dilation)
        if self.padding_mode != "zeros":
            pads, mode = self._reversed_padding_repeated_twice, self.padding_mode
            return lambda image: pad(image, pads, mode), Geometry(stride, (0, 0), dilation)
        if self.padding == "valid":
            return None, Geometry(stride, (0, 0), dilation)
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            extra = (0, total[1] % 2, 0, total[0] % 2)  # odd padding has one more row or column at the end
            more = (lambda image: pad(image, extra)) if any(extra) else None
            return more, Geometry(stride, (total[0] // 2, total[1] // 2), dilation)
        return None, Geometry(stride, _pair(self.padding), dilation)


class TandemConv1d(ConvolutionLayer, nn.Conv1d):  # type: ignore[misc]  # forward: spike trains, not tensors
    """A convolutional tandem layer over one dimension: nn.Conv1d whose neurons spike (Wu et al. 2021, section III).

    It is computed as a 2-D convolution of images of height 1.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: number of taps.
        stride: an int.
        padding: an int, "valid" or "same".
        dilation: spacing of the kernel taps.
        groups: number of channel groups.
        bias: learn an additive bias. The ANN adds it once, the spiking twin adds 1/T of it at every time step.
        padding_mode: "zeros", or "reflect", "replicate" or "circular" to fill the padding with the input's spikes.
        device: device of the parameters.
        dtype: dtype of the parameters, float32 or float64.
        norm: None, or "batch" for batch norm between weights and neurons, in the submodule ``norm`` (nn.BatchNorm1d).
        neuron: IF(...) or LIF(...).
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``). The parameter ``log_threshold``
            is a scalar and starts at 0 (:mod:`tandem_cuda.nn.learned_threshold`: LSQ, arXiv:1902.08153).

    Shape:
        SpikeTrain [N, C, L] (or EncodedInput from Encode) -> SpikeTrain [N, O, Lo].

    Raises:
        TypeError: the input is a Tensor, or its dtype differs from that of the weights; ``learn_threshold`` is no bool.
        ValueError: a wrong input shape, or more padding than the input has values for.

    Examples:
        >>> layer = TandemConv1d(2, 4, kernel_size=5)
        >>> layer(Encode(time_steps=8)(torch.rand(3, 2, 100)))
        SpikeTrain([3, 4, 96], time_steps=8, dtype=torch.float32, device=cpu)
    """

    axes = "L"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: object = None,
        dtype: object = None,
        *,
        norm: str | None = None,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
    ) -> None:
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
            learn_threshold=learn_threshold,
        )
        number = 0 if isinstance(padding, str) else self.padding[0]
        check_geometry("TandemConv1d", self.stride[0], number, self.dilation[0])

    def arguments(self) -> dict[str, Any]:
        return _arguments(self)

    def _new_norm(self) -> nn.BatchNorm1d:
        return nn.BatchNorm1d(self.out_channels, device=self.weight.device, dtype=self.weight.dtype)

    def arranged(self, weight: Tensor) -> Tensor:
        return self.wired(weight).unsqueeze(2)

    def own_weight(self, weight: Tensor) -> Tensor:
        return weight.squeeze(2)

    def _check_shape(self, value: Tensor) -> None:
        self._check_dims(value.shape)
        if self.padding != "same":
            padding = 0 if isinstance(self.padding, str) else self.padding[0]
            weight = self.stored_weight().unsqueeze(2)
            check_fit("TandemConv1d", value.unsqueeze(2), weight, (1, *self.stride), (0, padding), (1, *self.dilation))

    def per_channel(self, x: Tensor) -> Tensor:
        return x.view(-1, 1)

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, canonical(self.own_weight(weight)), bias)

    def image(self) -> tuple[Rearrange | None, Geometry]:
        padding, pads, mode = 0, [0, 0], "zeros"
        if self.padding_mode != "zeros":
            pads, mode = self._reversed_padding_repeated_twice, self.padding_mode
        elif self.padding == "same":
            total = self.dilation[0] * (self.kernel_size[0] - 1)
            padding, pads = total // 2, [0, total % 2]  # odd padding has one more value at the end
        elif not isinstance(self.padding, str):
            padding = self.padding[0]
        geometry = Geometry((1, self.stride[0]), (0, padding), (1, self.dilation[0]))
        return lambda line: pad(line.unsqueeze(3), [*pads, 0, 0], mode), geometry

    def from_image(self, y: Tensor) -> Tensor:
        """Remove the height."""
        return y.squeeze(-2)

    def onto_product(self, y: Tensor) -> Tensor:
        return y.unsqueeze(-2)


class TandemConvTranspose2d(ConvolutionLayer, nn.ConvTranspose2d):  # type: ignore[misc]  # as above
    """A transposed convolution as a tandem layer: nn.ConvTranspose2d whose neurons spike (Wu et al. 2021, section III).

    It is computed as a convolution with mirrored kernels over the image with stride - 1 zeros between its pixels
    (Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", 2016, arXiv:1603.07285, section 4). The
    event-driven engine does no work for the zeros. The gradient is dense and does stride^2 times the work of an
    ordinary transposed convolution's gradient.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an int or a pair.
        stride: an int or a pair.
        padding: rows and columns removed from each side of the output, an int or a pair.
        output_padding: rows and columns added at the end of the output, an int or a pair.
        groups: number of channel groups.
        bias: learn an additive bias. The ANN adds it once, the spiking twin adds 1/T of it at every time step.
        dilation: spacing of the kernel taps, an int or a pair.
        padding_mode: "zeros", the only mode of nn.ConvTranspose2d.
        device: device of the parameters.
        dtype: dtype of the parameters, float32 or float64.
        norm: None, or "batch" for batch norm between weights and neurons, in the submodule ``norm`` (nn.BatchNorm2d).
        neuron: IF(...) or LIF(...).
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``). The parameter ``log_threshold``
            is a scalar and starts at 0 (:mod:`tandem_cuda.nn.learned_threshold`: LSQ, arXiv:1902.08153).

    Shape:
        SpikeTrain [N, C, H, W] (or EncodedInput from Encode) -> SpikeTrain [N, O, Ho, Wo].

    Raises:
        TypeError: the input is a Tensor, or its dtype differs from that of the weights; ``learn_threshold`` is no bool.
        ValueError: a wrong input shape.

    Examples:
        >>> layer = TandemConvTranspose2d(3, 8, 2, stride=2)
        >>> layer(Encode(time_steps=8)(torch.rand(2, 3, 16, 16))).shape
        torch.Size([2, 8, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        output_padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pair = 1,
        padding_mode: str = "zeros",
        device: object = None,
        dtype: object = None,
        *,
        norm: str | None = None,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
            norm=norm,
            neuron=neuron,
            engine=engine,
            learn_threshold=learn_threshold,
        )
        check_geometry("TandemConvTranspose2d", self.stride, self.padding, self.dilation)

    def arguments(self) -> dict[str, Any]:
        return {**_arguments(self), "output_padding": self.output_padding}

    def _new_norm(self) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(self.out_channels, device=self.weight.device, dtype=self.weight.dtype)

    def arranged(self, weight: Tensor) -> Tensor:
        return self.wired(_mirrored(weight, self.groups))

    def own_weight(self, weight: Tensor) -> Tensor:
        return _mirrored(weight, self.groups)

    def _check_shape(self, value: Tensor) -> None:
        self._check_dims(value.shape)

    def per_channel(self, x: Tensor) -> Tensor:
        return x.view(-1, 1, 1)

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv_transpose2d(
            channels_last(x),
            canonical(self.own_weight(weight)),
            bias,
            _pair(self.stride),
            _pair(self.padding),
            _pair(self.output_padding),
            self.groups,
            _pair(self.dilation),
        )

    def image(self) -> tuple[Rearrange | None, Geometry]:
        padding = _pair(self.padding)
        full = [d * (k - 1) - p for d, k, p in zip(self.dilation, self.kernel_size, padding, strict=True)]
        both = (max(full[0], 0), max(full[1], 0))
        pads: list[int] = []
        for axis in (1, 0):
            less = full[axis] - both[axis]
            pads += [less, less + self.output_padding[axis]]
        return lambda image: pad(insert_zeros(image, self.stride), pads), Geometry((1, 1), both, _pair(self.dilation))


def _arguments(layer: Any) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(layer, name) for name in names}


def _mirrored(weight: Tensor, groups: int) -> Tensor:
    """Convert the weight [C, O/groups, kH, kW] of a transposed convolution to [O, C/groups, kH, kW], or back."""
    first, second, *kernel = weight.shape
    grouped = weight.view(groups, first // groups, second, *kernel).transpose(1, 2)
    return grouped.reshape(groups * second, first // groups, *kernel).flip(2, 3)


def _pair(values: tuple[int, ...] | str) -> tuple[int, int]:
    """Return the pair that torch's modules store for an int or a pair."""
    assert not isinstance(values, str)
    first, second = values
    return first, second
