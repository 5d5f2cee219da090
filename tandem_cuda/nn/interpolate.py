"""TandemInterpolate: neurons that each read a weighted mean of neighbouring pixels, as interpolation computes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..neuron import IF, Neuron
from ..ops.integrate_and_fire import total_bias
from ..spike_train import SpikeTrain, signs
from . import schema
from .elementwise import ElementwiseSynapses, TandemElementwise, as_currents
from .firing import Fired, Firing
from .sizes import SPIKES, Size, Value
from .weight_cache import SpikingWeights
from .wiring import Wiring

MODES = ("bilinear", "bicubic")


class TandemInterpolate(TandemElementwise):
    """Neurons for an image of another size: their current is that of :class:`TandemElementwise`, interpolated.

    The pre-activation v is F.interpolate of the decoded values, which torch computes, with no weights but those of the
    interpolation. Neurons with two phases and radix neurons need one interpolation of the values, and neurons with one
    phase one for each time step: 4 multiplications and additions for each neuron with mode "bilinear", 16 with
    "bicubic". A spike reaches as many neurons as depend on its pixel: those are its synaptic operations.

    Args:
        in_channels: number of input channels: C, or 2 C if the inputs are signed values.
        out_channels: number of outputs: C, or 2 C if the outputs are signed values.
        groups: C.
        size: Ho and Wo, a pair of ints, or None.
        scale_factor: Ho / H and Wo / W, a pair of floats, if ``size`` is None.
        mode: "bilinear" or "bicubic".
        align_corners: whether the corner pixels of input and output are at the same places, as in F.interpolate.
        bias: must be False.
        device: device of the constants.
        dtype: dtype of the constants, float32 or float64.
        neuron: a neuron model, such as IF(...).
        engine: "auto", "event" or "dense"; without effect.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``).

    Shape:
        SpikeTrain [N, in_channels, H, W] -> SpikeTrain [N, out_channels, Ho, Wo].

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: a wrong number of channels, an unknown mode, or not one of ``size`` and ``scale_factor``.

    Examples:
        >>> ann = nn.Sequential(
        ...     nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"),
        ...     nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(200, 3))
        >>> images = torch.rand(1, 1, 8, 8)
        >>> convert(ann, time_steps=8, example=images)(images).shape
        torch.Size([1, 3])
    """

    SETTINGS: ClassVar = {
        **TandemElementwise.SETTINGS,
        "size": schema.any_value,
        "scale_factor": schema.any_value,
        "mode": schema.one_of(*MODES),
    }
    FLAGS: ClassVar = ("align_corners",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        size: Sequence[int] | None = None,
        scale_factor: Sequence[float] | None = None,
        mode: str = "bilinear",
        align_corners: bool = False,
        bias: bool = False,
        device: object = None,
        dtype: object = None,
        *,
        neuron: Neuron = IF(),
        engine: str = "auto",
        learn_threshold: bool = False,
    ) -> None:
        options: dict[str, Any] = {"neuron": neuron, "engine": engine, "learn_threshold": learn_threshold}
        super().__init__(in_channels, out_channels, groups, bias, device, dtype, **options)
        if mode not in MODES:
            raise ValueError(f"TandemInterpolate: mode must be one of {', '.join(MODES)}, got {mode!r}")
        if (size is None) == (scale_factor is None):
            raise ValueError(
                f"TandemInterpolate: one of size and scale_factor must be given, got {size} and {scale_factor}"
            )
        if size is not None:
            schema.per_axis(2, 1)("TandemInterpolate", "size", list(size))
        for factor in scale_factor or ():
            schema.frozen_scale("TandemInterpolate", "scale_factor", factor)
        self.size = None if size is None else tuple(size)
        self.scale_factor = None if scale_factor is None else tuple(float(factor) for factor in scale_factor)
        if len(self.scale_factor or (1, 1)) != 2 or min(self.scale_factor or (1,)) <= 0:
            raise ValueError(f"TandemInterpolate: scale_factor must be a pair above 0, got {scale_factor}")
        self.mode, self.align_corners = mode, align_corners
        ones = torch.ones_like(self.weight[:groups, :1])
        self.weight = Wiring(1, in_channels > groups, out_channels > groups).arrange(ones)

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | ({"align_corners": True} if self.align_corners else {})

    @property
    def synapses(self) -> Any:
        return InterpolatingSynapses(self)


class InterpolatingSynapses(ElementwiseSynapses):
    """Each output reads the pixels around its place in one channel, or in a pair of channels."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.size, self.factor = layer.size, layer.scale_factor
        self.mode, self.align_corners = layer.mode, layer.align_corners

    def interpolated(self, x: Tensor) -> Tensor:
        """Return images [N, C, H, W] in the size of the output."""
        how: dict[str, Any] = {"size": self.size, "scale_factor": self.factor, "mode": self.mode}
        # In one memory format, since torch's kernels for another one may round differently.
        return F.interpolate(x.contiguous(), **how, align_corners=self.align_corners)

    # -- sizes

    def check_shape(self, shape: Sequence[int]) -> None:
        if len(shape) != 4 or shape[1] != self.inputs:
            raise ValueError(f"{self.name}: input must be [N, {self.inputs}, H, W], got {list(shape)}")

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        self.check_shape(shape)
        return (shape[0], self.outputs, *(self._length(n, axis) for axis, n in enumerate(shape[2:])))

    def _length(self, n: int, axis: int) -> int:
        """Return the size of the output along an axis of the image."""
        return int(self.size[axis]) if self.factor is None else math.floor(n * self.factor[axis])

    def out_size(self, x: Value) -> Value:
        if x.shape is None:
            return x._replace(kind=SPIKES)
        x.check_dims(3)
        x.shape[0].check("in_channels", self.inputs)
        rest = [self._out_length(size, axis) for axis, size in enumerate(x.shape[1:])]
        return x._replace(kind=SPIKES, shape=(Size(self.outputs, True), *rest))

    def _out_length(self, size: Size, axis: int) -> Size:
        if self.factor is None:
            return size.fixed(self._length(size.least, axis))
        length = self._length(size.least, axis)
        if size.exact and not length:
            raise ValueError(f"the interpolated image must have pixels, got {size} times {self.factor[axis]}")
        return size.fixed(max(length, 1), size.exact, regular=False)

    def fan_out(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return the number of neurons that depend on each input, float64 in the shape [C, H, W] of a sample."""
        rows, columns = (self._readers(n, axis, device) for axis, n in enumerate(shape[1:]))
        of_pixel = torch.outer(rows, columns) * (self.outputs // self.groups)
        return of_pixel.expand(shape[0], -1, -1)

    def _readers(self, n: int, axis: int, device: torch.device) -> Tensor:
        """Return how many lines of the output depend on each of n lines of the input."""
        lines = torch.eye(n, dtype=torch.float64, device=device).unsqueeze(2)  # the channels are one line each
        size, factor = (None if s is None else (s[axis], 1) for s in (self.size, self.factor))
        weights = F.interpolate(lines.unsqueeze(0), size, factor, self.mode, self.align_corners)[0, :, :, 0]
        return (weights != 0).sum(1).double()

    # -- products

    def dense_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.inputs > self.groups:  # the weights of a pair differ in sign alone
            positive, negative = signs(x, 1)
            x, weight = positive - negative, weight[:, :1]
        values = self.interpolated(x)
        if self.outputs > self.groups:
            values = values.repeat_interleave(2, 1)
        v = values * weight.view(-1, 1, 1)
        return v if bias is None else v + bias.view(-1, 1, 1)

    def count_product(self, x: SpikeTrain, weights: SpikingWeights) -> Tensor:
        self.check_shape(x.shape)
        v = self.dense_product(x.value, weights.kernel.weight, None)
        v = v if weights.scale is None else v * weights.scale.view(-1, 1, 1)
        return v if weights.bias is None else v + weights.bias.view(-1, 1, 1)

    def fire(
        self,
        x: SpikeTrain,
        weights: SpikingWeights,
        firing: Firing,
        *,
        want_sum: bool = False,
        state: Tensor | None = None,
        want_state: bool = False,
    ) -> Fired:
        if firing.neuron.two_phase:
            return self._fire_at_once(x, weights, firing, state, want_state)
        self.check_shape(x.shape)
        steps = x.time_steps
        current = self.step_product(x.detach(), weights)
        if firing.added is not None:
            added = firing.added
            current = current + (added if added.is_floating_point() else as_currents(added, firing.amplitude, steps))
        wants: dict[str, Any] = {"want_sum": False, "want_state": want_state}
        bits, total, state = ops.integrate_and_fire.trusted(
            current, steps, None, state, mode="series", neuron=firing.neuron, **wants
        )
        if want_sum:
            total = self.count_product(x, weights._replace(bias=total_bias(weights.bias, steps)))
        return Fired(bits, total, state)
