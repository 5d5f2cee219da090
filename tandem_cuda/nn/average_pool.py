"""What average poolings of images and volumes share: their windows and neurons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor

from .. import ops
from ..neuron import IF, RadixIF, stacked
from ..neuron.if_ import TWO_PHASE
from ..neuron.parameter import AMPLITUDE, INITIAL, THRESHOLD
from ..ops import checks
from ..ops.integrate_and_fire import discharge
from ..ops.max_pool_spikes import windows_along
from ..ops.product import check_engine
from ..spike_train import SpikeTrain
from . import schema
from .ann_twin import without_spikes
from .constants import constants
from .coupling import carrying, needs_gradient
from .frozen import Span, State
from .geometry import check_image, pad, per_axis
from .max_pool import Pooling
from .prepared import PreparedLayer, Run
from .schema import Check, Settings, Tensors
from .sizes import Size

Fire = Callable[[Tensor, Tensor | None, bool], tuple[Tensor, Tensor]]


class Axis:
    """The windows along one dimension: the positions that each one sums, and the divisor of the sum."""

    def __init__(self, size: int, windows: list[tuple[int, int, int]]) -> None:
        self.size = size
        self.starts, self.stops, self.divisors = ([window[i] for window in windows] for i in range(3))
        # For a single window: a stride so large that the convolution has no second one.
        alone = max(1, size - self.starts[0] - self.stops[0] + 1)
        self.stride = self.starts[1] - self.starts[0] if len(windows) > 1 else alone

    def key(self) -> tuple[int, ...]:
        """Return what identifies the windows."""
        return (self.size, len(self.starts), *self.starts, *self.stops)

    def repeated(self, times: int, divisor: int) -> Axis:
        """Return the windows where each position stands ``times`` in a row, with ``divisor`` times the divisors."""
        windows = zip(self.starts, self.stops, self.divisors, strict=True)
        return Axis(self.size * times, [(times * start, times * stop, divisor * d) for start, stop, d in windows])

    def uniform(self) -> bool:
        """Return whether a convolution with a common divisor has these windows."""
        starts = [self.starts[0] + i * self.stride for i in range(len(self.starts))]
        lengths = {stop - start for start, stop in zip(self.starts, self.stops, strict=True)}
        return self.stride > 0 and starts == self.starts and len(lengths) == 1 and len(set(self.divisors)) == 1

    def membership(self) -> Tensor:
        """Return [windows, size]: 1 where a window covers a position."""
        at = torch.arange(self.size)
        starts, stops = (torch.tensor(x).unsqueeze(1) for x in (self.starts, self.stops))
        return (at >= starts) & (at < stops)


_NEURONS = dict.fromkeys(("threshold", "amplitude", "initial"), schema.any_value)
_NEURONS |= {"two_phase": schema.flag, "engine": schema.any_value}


def sizes_of_windows(axes: int) -> dict[str, Check]:
    """Return the checks of the settings of windows."""
    return {"kernel_size": schema.whole(1, axes), "stride": schema.whole(1, axes), "padding": schema.whole(0, axes)}


class SpikingAverage(PreparedLayer, Pooling):
    """Base of average poolings. The matching pooling module of torch must come next in the bases."""

    by_size = True

    def __init__(
        self,
        *args: Any,
        threshold: float = 1.0,
        amplitude: float = 1.0,
        initial: float = 0.0,
        two_phase: bool = False,
        engine: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        name = type(self).__name__
        for parameter, value in ((THRESHOLD, threshold), (AMPLITUDE, amplitude), (INITIAL, initial)):
            parameter.check(name, value)
        TWO_PHASE.check(name, two_phase)
        check_engine(name, engine)
        self.threshold = threshold
        self.amplitude = amplitude
        self.initial = initial
        self.two_phase = two_phase
        self.engine = engine

    def forward(self, x: SpikeTrain) -> SpikeTrain:
        self._check_input(x)
        with torch.no_grad():
            bits = self.spikes(x)
        mean = self._mean(x.value) if needs_gradient(x.carried_value) else None
        return carrying(bits, x, mean, self.amplitude)

    def _check_input(self, x: SpikeTrain) -> None:
        check_image(self, x, self.axes)

    def spikes(self, x: SpikeTrain) -> Tensor:
        """Return the bits."""
        return self._pooling(x)(x.bits, None, False)[0]

    def _pooling(self, x: SpikeTrain) -> Fire:
        """Return the function that pools trains of this size.

        Its arguments are the bits, the neurons' state, which continues an earlier call, and whether the final state is
        wanted. It returns the pooled bits and that state.
        """
        # Specialise the sizes: torch.compile cannot trace math.lcm with symbolic sizes.
        sizes = [len(range(s)) if torch.compiler.is_compiling() else s for s in x.shape[2:]]
        *depth, rows, columns = self.windows(*sizes)
        return self._of_volumes(x, depth[0], rows, columns) if depth else self._of_images(x, rows, columns)

    def _of_volumes(self, x: SpikeTrain, depth: Axis, rows: Axis, columns: Axis) -> Fire:
        """Pool volumes, one output depth after the other.

        The slices of its window become one image, which has the rows of all slices in turn: a window of that image
        holds just the neurons of the window of the volume.
        """
        slices = []
        for start, stop, divisor in zip(depth.starts, depth.stops, depth.divisors, strict=True):
            first, last = max(start, 0), min(stop, depth.size)
            slices.append((first, last, self._of_images(x, rows.repeated(last - first, divisor), columns)))

        def fire(bits: Tensor, state: Tensor | None, want_state: bool) -> tuple[Tensor, Tensor]:
            parts, states = [], []
            befores = [None] * len(slices) if state is None else state.unbind(3)
            for (first, last, pool), before in zip(slices, befores, strict=True):
                image = bits[:, :, :, first:last].movedim(3, 4).flatten(3, 4)
                pooled, after = pool(image, before, want_state)
                parts.append(pooled.movedim(2, -1))
                states.append(after)
            stacked = torch.stack(parts, 2).movedim(-1, 2)  # channels are innermost in memory
            return stacked, torch.stack(states, 3) if want_state else states[0]

        return fire

    def _of_images(self, x: SpikeTrain, rows: Axis, columns: Axis) -> Fire:
        """Pool images: with a linear map of each channel's image, as a matrix, if windows differ in size."""
        if rows.uniform() and columns.uniform():
            return self._of_equal_windows(x, rows, columns)
        divisors = self.divisors(rows, columns)
        common = math.lcm(*divisors)

        def make() -> tuple[Tensor, Tensor]:
            covers = torch.einsum("iy,jx->ijyx", rows.membership().to(x.dtype), columns.membership().to(x.dtype))
            shares = torch.tensor([common // d for d in divisors], dtype=x.dtype)
            weight = (covers.flatten(2).flatten(0, 1) * shares.unsqueeze(1)).to(x.device)
            return weight, ops.pack_weight.trusted(weight)

        weight, packed = constants(x.bits, ("windows", rows.key(), columns.key(), *divisors, x.dtype), make)
        of_pixels = self._neurons(x, weight, common, {"packed": packed})
        height, width = len(rows.starts), len(columns.starts)

        def fire(bits: Tensor, state: Tensor | None, want_state: bool) -> tuple[Tensor, Tensor]:
            pooled, after = of_pixels(bits.flatten(3), state, want_state)
            return pooled.reshape(*pooled.shape[:3], height, width), after

        return fire

    def _of_equal_windows(self, x: SpikeTrain, rows: Axis, columns: Axis) -> Fire:
        """Pool with a depthwise convolution whose weights are one."""
        axes = rows, columns
        padding = -rows.starts[0], -columns.starts[0]
        below, right = (max(axis.stops[-1] - axis.size - p, 0) for axis, p in zip(axes, padding, strict=True))
        channels = x.shape[1]
        size = (channels, 1, *(axis.stops[0] - axis.starts[0] for axis in axes))
        key = "ones", size, x.dtype
        (ones,) = constants(x.bits, key, lambda: (torch.ones(size, dtype=x.dtype, device=x.device),))
        windows: dict[str, Any] = {"stride": (rows.stride, columns.stride), "padding": padding, "groups": channels}
        pool = self._neurons(x, ones, self.divisors(rows, columns)[0], windows)
        return lambda bits, *state: pool(pad(bits, (0, right, 0, below)), *state)

    def _neurons(self, x: SpikeTrain, weight: Tensor, divisor: int, options: dict[str, Any]) -> Fire:
        """Return the neurons for ``divisor`` times the windows' means: products with ``weight`` and these options."""
        steps, linear = x.time_steps, weight.dim() == 2
        how = {**options, "engine": self.engine}
        if x.code.radix:
            count, how["radix"] = ops.count_linear if linear else ops.count_conv2d, steps
            radix = RadixIF(self.threshold * divisor * 2**steps, initial=self.initial)
            return lambda bits, _, want_state: discharge(count.trusted(bits, weight, **how), steps, radix, want_state)
        spiking = ops.spiking_linear if linear else ops.spiking_conv2d
        how |= {"neuron": self.neurons(divisor), "time_steps": steps, "want_sum": False}

        def fire(bits: Tensor, state: Tensor | None, want_state: bool) -> tuple[Tensor, Tensor]:
            bits, _, after = spiking.trusted(bits, weight, state=state, want_state=want_state, **how)
            return bits, after

        return fire

    def neurons(self, divisor: int = 1) -> IF:
        """Return neurons for a current of ``divisor`` times the window's mean."""
        return IF(self.threshold * divisor, initial=self.initial, two_phase=self.two_phase)

    def divisors(self, rows: Axis, columns: Axis) -> list[int]:
        """Return the divisors of all windows, in order."""
        override = getattr(self, "divisor_override", None)
        return [override or r * c for r in rows.divisors for c in columns.divisors]

    @property
    def largest(self) -> float:
        """The largest average of inputs that are at most 1: the window over its divisor."""
        override = getattr(self, "divisor_override", None)
        return math.prod(per_axis(self.kernel_size, self.axes)) / override if override else 1.0

    def windows(self, *sizes: int) -> Sequence[Axis]:
        """Return the windows along each dimension of an image, or volume, of this size."""
        raise NotImplementedError

    @property
    def needs_all_steps(self) -> bool:
        return self.two_phase

    @classmethod
    def made(cls, settings: Settings, tensors: Tensors) -> Any:
        pool = super().made(settings, tensors)
        pool.threshold = schema.frozen_scale(cls.__name__, "threshold", pool.threshold)
        pool.amplitude = schema.frozen_scale(cls.__name__, "amplitude", pool.amplitude)
        return pool

    def prepare(self, direct: bool, span: Span, *inputs: Any) -> Run:
        (x,) = inputs
        self._check_input(x)
        pool, code, steps, dtype = self._pooling(x), x.code, x.time_steps, x.dtype
        code = code._replace(amplitude=code.amplitude * self.amplitude)

        def run(span: Span, state: State | None, x: SpikeTrain) -> tuple[SpikeTrain, State | None]:
            now, done, total, _ = span
            ends = now + done == total
            bits, after = pool(x.bits, None if state is None else stacked(state), not ends)
            return SpikeTrain.coded(bits, steps, None, dtype, code), None if ends else after.unbind(0)

        return run

    def extra_repr(self) -> str:
        engine = "" if self.engine == "auto" else f", engine={self.engine!r}"
        amplitude = "" if self.amplitude == 1 else f", amplitude={self.amplitude}"
        initial = "" if self.initial == 0 else f", initial={self.initial}"
        two_phase = ", two_phase=True" if self.two_phase else ""
        return f"{super().extra_repr()}, threshold={self.threshold}{amplitude}{initial}{two_phase}{engine}"

    def ann_twin(self, x: SpikeTrain) -> SpikeTrain:
        """Run the ANN twin alone; see :mod:`.ann_twin`."""
        return without_spikes(self._mean(x.value), x.time_steps, x.amplitude * self.amplitude, x.pair_dim, x.radix)

    def _mean(self, count: Tensor) -> Tensor:
        """Return what the ANN computes of counts, in spikes."""
        mean: Tensor = super().forward(count)
        return mean / self.threshold


class WindowAverage(SpikingAverage):
    """Average pooling with windows of a given size."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.check_windows("stride")
        if (divisor := cast(Any, self).divisor_override) is not None:
            divisor = int(divisor) if isinstance(divisor, Integral) else divisor
            checks.check_at_least_1(type(self).__name__, "divisor_override", divisor)

    def windows(self, *sizes: int) -> Sequence[Axis]:
        layer: Any = self
        settings = [per_axis(x, self.axes) for x in (layer.kernel_size, layer.stride, layer.padding)]
        return [self._axis(*window) for window in zip(sizes, *settings, strict=True)]

    def _axis(self, size: int, kernel: int, stride: int, padding: int) -> Axis:
        windows, layer = [], cast(Any, self)
        for i in range(windows_along(type(self).__name__, size, kernel, stride, padding, 1, layer.ceil_mode)):
            start = i * stride - padding
            stop = min(start + kernel, size + padding)
            inside = min(stop, size) - max(start, 0)
            override = layer.divisor_override is not None
            # A window that extends beyond the padding divides by what it covers, unless the divisor is given.
            windows.append(
                (start, start + kernel, 1 if override else stop - start if layer.count_include_pad else inside)
            )
        return Axis(size, windows)


class AdaptiveAverage(SpikingAverage):
    """Average pooling with one window for each pixel of an output of a given size."""

    output_size: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        size, name = self.output_size, type(self).__name__
        if isinstance(size, (tuple, list)) and len(size) != self.axes:
            raise ValueError(f"{name}: output_size must be one number or {self.axes}, got {size}")
        for n in per_axis(size, self.axes):
            if n is not None:
                checks.check_at_least_1(name, "output_size", int(n) if isinstance(n, Integral) else n)

    def windows(self, *sizes: int) -> Sequence[Axis]:
        axes = []
        for size, outputs in zip(sizes, per_axis(self.output_size, self.axes), strict=True):
            n = size if outputs is None else outputs
            bounds = [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]
            axes.append(Axis(size, [(start, stop, stop - start) for start, stop in bounds]))
        return axes

    def image_size(self, image: Sequence[Size]) -> Sequence[Size]:
        outputs = per_axis(self.output_size, self.axes)
        return [size if n is None else size.fixed(n) for size, n in zip(image, outputs, strict=True)]


def window_settings(axes: int) -> dict[str, Check]:
    """Return the checks of the settings of a pooling with windows of a given size."""
    flags = dict.fromkeys(("ceil_mode", "count_include_pad"), schema.flag)
    return {**sizes_of_windows(axes), **flags, "divisor_override": schema.whole_or_none, **_NEURONS}


def adaptive_settings(axes: int) -> dict[str, Check]:
    """Return the checks of the settings of a pooling to a given size."""

    def check(kind: str, name: str, value: Any) -> None:
        for size in value if isinstance(value, (list, tuple)) and len(value) == axes else [value]:
            schema.whole_or_none(kind, name, size)

    return {"output_size": check, **_NEURONS}
