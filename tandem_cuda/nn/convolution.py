"""Synapses of convolutions. All of them compute their products as 2-D convolutions."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.geometry import Geometry, check_fit, out_size
from ..ops.layout import canonical, channels_last, is_unsafe_in_onednn
from ..spike_train import SpikeTrain
from .geometry import insert_zeros, pad
from .sizes import SPIKES, Size, Value, check_count
from .synapses import Synapses

Rearrange = Callable[[Tensor], Tensor]


class ConvolutionSynapses(Synapses):
    """Products that are 2-D convolutions with weights [O, C/groups, kH, kW]."""

    axes = "H, W"
    """The input's dimensions behind N and C."""

    def __init__(self, layer: Any) -> None:
        self.name, self.engine = type(layer).__name__, layer.engine
        self.inputs, self.outputs, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.per_weight = 1 if layer.wiring is None else layer.wiring.synapses_per_weight
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.padding_mode = layer.padding, layer.padding_mode
        self.pads = layer._reversed_padding_repeated_twice
        """The padding before and behind the last axis, then the padding of the axis before it."""

    @abstractmethod
    def image(self) -> tuple[Rearrange | None, Geometry]:
        """Return how inputs become images whose convolution, with this geometry, is this layer's product.

        The function takes bits or values [P, N, C, ...] and returns [P, N, C, H, W], with any padding that the products
        cannot add themselves. None: inputs are such images already.
        """

    # -- sizes

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (self.inputs // self.groups, *[1] * (2 - len(self.kernel_size)), *self.kernel_size)

    def check_shape(self, shape: Sequence[int]) -> None:
        got = list(shape)
        if len(got) != 2 + len(self.axes.split(", ")) or got[1] != self.inputs:
            raise ValueError(f"{self.name}: input must be [N, {self.inputs}, {self.axes}], got {got}")

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        self.check_shape(shape)
        rearrange, geometry = self.image()
        image = torch.empty(1, *shape, device="meta")
        image = image if rearrange is None else rearrange(image)
        size = [max(n, 0) for n in out_size(image, image.new_empty(1, *self.kernel_shape), *geometry)]
        return (*self.to_output(image.new_empty(image.shape[1], self.outputs, *size), shape).shape,)

    def out_size(self, x: Value) -> Value:
        dims = len(self.kernel_size)
        x.check_dims(1 + dims)
        channels, *sizes = (Size(),) * (1 + dims) if x.shape is None else x.shape
        channels.check("in_channels", self.inputs)
        sizes = [self._out_size(axis, size) for axis, size in enumerate(sizes)]
        check_count("outputs", [self.outputs, *(size.least for size in sizes)])
        check_count("input", [size.needs for size in sizes])
        return x._replace(kind=SPIKES, shape=(Size(self.outputs, True), *sizes))

    def _out_size(self, axis: int, size: Size) -> Size:
        """Return the output size along an axis of the image."""
        extent, stride = self._extent(axis), self.stride[axis]
        before, behind = self._pads_along(axis)
        needs = extent - before - behind
        if self.padding_mode in ("circular", "reflect"):
            most = max(before, behind)
            needs = max(needs, most + (self.padding_mode == "reflect" and most > 0))
        windows = size.at_least(needs)
        return windows.through(
            lambda n: (n + before + behind - extent) // stride + 1, stride, extent - before - behind - stride
        )

    def _extent(self, axis: int) -> int:
        """Return how many pixels the kernel spans."""
        return int(self.dilation[axis] * (self.kernel_size[axis] - 1) + 1)

    def _pads_along(self, axis: int) -> tuple[int, int]:
        """Return the padding before and behind, also of "same"."""
        before, behind = self.pads[2 * (len(self.kernel_size) - 1 - axis) :][:2]
        return before, behind

    def _padding(self) -> tuple[list[int], Sequence[int]]:
        """Return the padding that inputs get, in the order of ``pads``, and the zeros that products add, by axis."""
        if self.padding_mode != "zeros":
            return [*self.pads], [0] * len(self.kernel_size)
        if not isinstance(self.padding, str):
            return [0] * len(self.pads), self.padding
        both = [self._pads_along(axis) for axis in range(len(self.kernel_size))]
        more = [(0, behind - before) for before, behind in reversed(both)]  # odd padding has one more pixel at the end
        return [*itertools.chain(*more)], [before for before, _ in both]

    def macs(self, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        sizes = zip(inputs[2:], outputs[2:], strict=True)
        uses = math.prod(self._uses(axis, *pair) for axis, pair in enumerate(sizes))
        return self.inputs // self.groups * self.outputs * uses

    def _uses(self, axis: int, inputs: int, outputs: int) -> int:
        """Return how many pairs of a value and a tap are multiplied along an axis of the image."""
        taps, stride, dilation = (int(x[axis]) for x in (self.kernel_size, self.stride, self.dilation))
        if self.padding_mode != "zeros":
            return outputs * taps
        return _within(outputs, inputs, taps, stride, dilation, self._pads_along(axis)[0])

    # -- products

    def _value_as_image(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        rearrange, geometry = self.image()
        image = x if rearrange is None else rearrange(x.unsqueeze(0)).squeeze(0)
        return image, self._where(*geometry)

    def _as_image(self, x: SpikeTrain) -> tuple[SpikeTrain, dict[str, Any]]:
        self.check_shape(x.shape)
        rearrange, geometry = self.image()
        image = x if rearrange is None else x.rearranged(rearrange)
        return image, self._where(*geometry)

    def _where(self, stride: Any, padding: Any, dilation: Any) -> dict[str, Any]:
        return {"stride": stride, "padding": padding, "dilation": dilation, "groups": self.groups}

    def _counts_steps(self) -> bool:
        return self.engine == "dense" or self.kernel_shape[0] == 1  # depthwise counts have their own kernels


class Conv2dSynapses(ConvolutionSynapses):
    """A 2-D convolution."""

    def image(self) -> tuple[Rearrange | None, Geometry]:
        (pads, (above, left)), mode = self._padding(), self.padding_mode
        rearrange = (lambda image: pad(image, pads, mode)) if any(pads) else None
        return rearrange, Geometry(self.stride, (above, left), self.dilation)

    def check_value(self, value: Tensor, weight: Tensor) -> None:
        self.check_shape(value.shape)
        if self.padding != "same":
            padding = (0, 0) if isinstance(self.padding, str) else self.padding
            check_fit(self.name, value, weight, self.stride, padding, self.dilation)

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
        return _convolved(F.conv2d, self, x, canonical(weight), bias)

    def _puts_out_one_column(self, x: Tensor) -> bool:
        """Return whether the stride skips columns of the image and the output has a single column."""
        stride = self.stride[1]
        padding = 0 if isinstance(self.padding, str) else self.padding[1]  # torch allows "same" only with stride 1
        room = x.shape[-1] + 2 * padding - self.dilation[1] * (self.kernel_size[1] - 1) - 1
        return bool(stride > 1 and room < stride)


class Conv1dSynapses(ConvolutionSynapses):
    """A 1-D convolution, computed as a 2-D convolution of images of height 1."""

    axes = "L"

    def as_kernel(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(2)

    def from_kernel(self, weight: Tensor) -> Tensor:
        return weight.squeeze(2)

    def image(self) -> tuple[Rearrange | None, Geometry]:
        (pads, (padding,)), mode = self._padding(), self.padding_mode
        geometry = Geometry((1, self.stride[0]), (0, padding), (1, self.dilation[0]))
        return lambda line: pad(line.unsqueeze(3), [*pads, 0, 0], mode), geometry

    def to_output(self, y: Tensor, inputs: Sequence[int]) -> Tensor:
        return y.squeeze(-2)

    def to_image(self, y: Tensor) -> Tensor:
        return y.unsqueeze(-2)

    def check_value(self, value: Tensor, weight: Tensor) -> None:
        self.check_shape(value.shape)
        if self.padding != "same":
            padding = 0 if isinstance(self.padding, str) else self.padding[0]
            check_fit(self.name, value.unsqueeze(2), weight, (1, *self.stride), (0, padding), (1, *self.dilation))

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolved(F.conv1d, self, x, canonical(self.from_kernel(weight)), bias)


class Conv3dSynapses(ConvolutionSynapses):
    """A 3-D convolution, computed as a 2-D convolution with an image for each sample and depth of the output.

    The image has the kD * C channels of the slices that the kernel covers there: those of a group side by side, slice
    by slice. Bits take little memory, so that kD copies of them are cheap.
    """

    axes = "D, H, W"

    def for_images(self, weight: Tensor) -> Tensor:
        return weight.transpose(1, 2).flatten(1, 2)

    def from_kernel(self, weight: Tensor) -> Tensor:
        return torch.unflatten(weight, 1, (self.kernel_size[0], -1)).transpose(1, 2)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (self.inputs // self.groups * self.kernel_size[0], *self.kernel_size[1:])

    def image(self) -> tuple[Rearrange, Geometry]:
        (pads, (_, above, left)), mode = self._padding(), self.padding_mode
        if mode == "zeros":
            pads[4:] = self._pads_along(0)
        return lambda x: self._slices(pad(x, pads, mode)), Geometry(self.stride[1:], (above, left), self.dilation[1:])

    def _slices(self, x: Tensor) -> Tensor:
        """Put the slices that each output depth reads side by side: [P, N, C, D, H, W] to [P, N * Do, kD * C, H, W]."""
        stride, dilation = self.stride[0], self.dilation[0]
        last = torch.unflatten(x.movedim(2, -1), -1, (self.groups, -1))
        span = (self._windows(0, x.shape[3], padded=True) - 1) * stride + 1
        taps = [last[:, :, at : at + span : stride] for at in range(0, self._extent(0), dilation)]
        return torch.stack(taps, -2).flatten(-3).flatten(1, 2).movedim(-1, 2)

    def _windows(self, axis: int, size: int, padded: bool = False) -> int:
        """Return the number of outputs along an axis."""
        pads = 0 if padded else sum(self._pads_along(axis))
        return max((size + pads - self._extent(axis)) // int(self.stride[axis]) + 1, 0)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        self.check_shape(shape)
        return (shape[0], self.outputs, *(self._windows(axis, size) for axis, size in enumerate(shape[2:])))

    def to_output(self, y: Tensor, inputs: Sequence[int]) -> Tensor:
        return torch.unflatten(y, -4, (inputs[0], self._windows(0, inputs[2]))).movedim(-4, -3)

    def to_image(self, y: Tensor) -> Tensor:
        return y.movedim(-3, -4).flatten(-5, -4)

    def _as_image(self, x: SpikeTrain) -> tuple[SpikeTrain, dict[str, Any]]:
        self.check_shape(x.shape)
        self._check_fit(x.bits)
        return super()._as_image(x)

    def check_value(self, value: Tensor, weight: Tensor) -> None:
        self.check_shape(value.shape)
        self._check_fit(value)

    def _check_fit(self, x: Tensor) -> None:
        if self.padding != "same":
            padding = (0, 0, 0) if isinstance(self.padding, str) else self.padding
            weight = x.new_empty(self.outputs, self.inputs // self.groups, *self.kernel_size, device="meta")
            check_fit(self.name, x, weight, self.stride, padding, self.dilation)

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolved(F.conv3d, self, x, canonical(self.from_kernel(weight)), bias)


class ConvTranspose2dSynapses(ConvolutionSynapses):
    """A transposed convolution, computed as a convolution with mirrored kernels of an image with zeros in between."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.output_padding = layer.output_padding

    def as_kernel(self, weight: Tensor) -> Tensor:
        return _mirrored(weight, self.groups)

    from_kernel = as_kernel

    def image(self) -> tuple[Rearrange | None, Geometry]:
        padding = self.padding
        full = [d * (k - 1) - p for d, k, p in zip(self.dilation, self.kernel_size, padding, strict=True)]
        both = (max(full[0], 0), max(full[1], 0))
        pads: list[int] = []
        for axis in (1, 0):
            less = full[axis] - both[axis]
            pads += [less, less + self.output_padding[axis]]
        return lambda image: pad(insert_zeros(image, self.stride), pads), Geometry((1, 1), both, self.dilation)

    def check_value(self, value: Tensor, weight: Tensor) -> None:
        self.check_shape(value.shape)

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding, more, dilation = self.stride, self.padding, self.output_padding, self.dilation
        weight = canonical(self.from_kernel(weight))
        return F.conv_transpose2d(channels_last(x), weight, bias, stride, padding, more, self.groups, dilation)

    def _out_size(self, axis: int, size: Size) -> Size:
        extent, stride, extra = self._extent(axis), self.stride[axis], self.output_padding[axis]
        before, behind = self._pads_along(axis)
        if extra >= max(stride, self.dilation[axis]):
            raise ValueError(f"output_padding must be below stride or dilation, got {self.output_padding}")
        more = extent + extra - before - behind
        needs = 1 + max(0, math.ceil(Fraction(1 - more, stride)))
        spread = size.at_least(needs).through(
            lambda n: (n - 1) * stride + more, Fraction(1, stride), 1 - Fraction(more, stride), regular=stride == 1
        )
        return spread if more % stride else spread._replace(factor=stride)

    def _uses(self, axis: int, inputs: int, outputs: int) -> int:
        taps, stride, dilation = (int(x[axis]) for x in (self.kernel_size, self.stride, self.dilation))
        return _within(inputs, outputs, taps, stride, dilation, int(self.padding[axis]))  # some outputs are cut off


def _convolved(function: Any, of: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute torch's convolution with these sizes."""
    stride, padding = of.stride, of.padding
    if of.padding_mode != "zeros":
        x, padding = F.pad(x, of.pads, mode=of.padding_mode), [0] * len(stride)
    if is_unsafe_in_onednn(weight, stride, [] if padding == "valid" else padding):
        x, stride = canonical(channels_last(x[:, :, :: stride[0], :: stride[1]])), [1, 1]
    convolved: Tensor = function(x, weight, bias, stride, padding, of.dilation, of.groups)
    return convolved


def _mirrored(weight: Tensor, groups: int) -> Tensor:
    """Convert the weight [C, O/groups, kH, kW] of a transposed convolution to [O, C/groups, kH, kW], or back."""
    first, second, *kernel = weight.shape
    grouped = weight.view(groups, first // groups, second, *kernel).transpose(1, 2)
    return grouped.reshape(groups * second, first // groups, *kernel).flip(2, 3)


def _within(steps: int, size: int, taps: int, stride: int, dilation: int, before: int) -> int:
    """Count the pairs of a step and a tap for which step * stride + tap * dilation - before is in [0, size)."""
    total = 0
    for tap in range(taps):
        shift = before - tap * dilation
        first, last = max(0, -(-shift // stride)), min(steps - 1, (size - 1 + shift) // stride)
        total += max(0, last - first + 1)
    return total
