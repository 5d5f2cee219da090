"""Average pooling of spike trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..neuron import IF, stacked
from ..neuron.if_ import TWO_PHASE
from ..neuron.parameter import AMPLITUDE, INITIAL, THRESHOLD
from ..ops.max_pool_spikes import windows_along
from ..ops.product import ENGINES
from ..spike_train import SpikeTrain
from . import schema
from .ann_twin import without_spikes
from .constants import constants
from .coupling import carrying, needs_gradient
from .frozen import Span, State
from .geometry import check_image, pad, pair
from .max_pool import Pooling, fixed
from .max_pool import SpikingGlobalMaxPool2d as SpikingGlobalMaxPool2d  # the names in pickles of earlier versions
from .max_pool import SpikingMaxPool2d as SpikingMaxPool2d
from .nir import NirWriter, Signal
from .schema import Settings, Tensors
from .sizes import Size


class _Axis:
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
_WINDOWS = dict.fromkeys(("kernel_size", "stride"), schema.whole(1, pairs=True))
_WINDOWS |= {"padding": schema.whole(0, pairs=True)}


class SpikingAverage(Pooling):
    """Base of both average poolings. The matching pooling module of torch must come next in the bases."""

    initial = 0.0  # of modules pickled by version 0.1
    two_phase = False  # likewise

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
        if engine not in ENGINES:
            raise ValueError(f"{name}: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        self.threshold = threshold
        self.amplitude = amplitude
        self.initial = initial
        self.two_phase = two_phase
        self.engine = engine

    def forward(self, x: SpikeTrain) -> SpikeTrain:
        check_image(self, x)
        with torch.no_grad():
            bits, _ = self.spikes(x)
        mean = self._mean(x.count) if needs_gradient(x.carried_count) else None
        return carrying(bits, x, mean, self.amplitude)

    def spikes(self, x: SpikeTrain, state: Tensor | None = None, want_state: bool = False) -> tuple[Tensor, Tensor]:
        """Return the bits and the neurons' final state; ``state`` continues an earlier call."""
        # Specialise the sizes: torch.compile cannot trace math.lcm with symbolic sizes.
        height, width = (len(range(s)) if torch.compiler.is_compiling() else s for s in x.shape[2:])
        rows, columns = self.windows(height, width)
        pooled = self._pooled_alike if rows.uniform() and columns.uniform() else self._pooled
        return pooled(x, rows, columns, state, want_state)

    def _pooled_alike(
        self, x: SpikeTrain, rows: _Axis, columns: _Axis, state: Tensor | None, want_state: bool
    ) -> tuple[Tensor, Tensor]:
        """Pool with a depthwise convolution whose weights are one."""
        bits = x.bits
        kernel = [axis.stops[0] - axis.starts[0] for axis in (rows, columns)]
        padding = [-axis.starts[0] for axis in (rows, columns)]
        behind = [axis.stops[-1] - axis.size - p for axis, p in zip((rows, columns), padding, strict=True)]
        bits = pad(bits, (0, max(behind[1], 0), 0, max(behind[0], 0)))
        channels = bits.shape[2]
        size = (channels, 1, *kernel)
        (ones,) = constants(
            bits, ("ones", size, x.dtype), lambda: (torch.ones(size, dtype=x.dtype, device=bits.device),)
        )
        pooled, _, state = ops.spiking_conv2d.trusted(
            bits,
            ones,
            stride=(rows.stride, columns.stride),
            padding=padding,
            groups=channels,
            state=state,
            time_steps=x.time_steps,
            neuron=self.neurons(self.divisors(rows, columns)[0]),
            want_sum=False,
            want_state=want_state,
            engine=self.engine,
        )
        return pooled, state

    def _pooled(
        self, x: SpikeTrain, rows: _Axis, columns: _Axis, state: Tensor | None, want_state: bool
    ) -> tuple[Tensor, Tensor]:
        """Pool with a linear map of each channel's image, as a matrix."""
        divisors = self.divisors(rows, columns)
        common = math.lcm(*divisors)

        def make() -> tuple[Tensor, Tensor]:
            covers = torch.einsum("iy,jx->ijyx", rows.membership().to(x.dtype), columns.membership().to(x.dtype))
            shares = torch.tensor([common // d for d in divisors], dtype=x.dtype)
            weight = (covers.flatten(2).flatten(0, 1) * shares.unsqueeze(1)).to(x.device)
            return weight, ops.pack_weight.trusted(weight)

        weight, packed = constants(x.bits, ("windows", rows.key(), columns.key(), *divisors, x.dtype), make)
        pooled, _, state = ops.spiking_linear.trusted(
            x.bits.flatten(3),
            weight,
            packed=packed,
            state=state,
            time_steps=x.time_steps,
            neuron=self.neurons(common),
            want_sum=False,
            want_state=want_state,
            engine=self.engine,
        )
        return pooled.reshape(*pooled.shape[:3], len(rows.starts), len(columns.starts)), state

    def neurons(self, divisor: int = 1) -> IF:
        """Return neurons for a current of ``divisor`` times the window's mean."""
        return IF(self.threshold * divisor, initial=self.initial, two_phase=self.two_phase)

    def divisors(self, rows: _Axis, columns: _Axis) -> list[int]:
        """Return the divisors of all windows, in order."""
        override = getattr(self, "divisor_override", None)
        return [override or r * c for r in rows.divisors for c in columns.divisors]

    @property
    def largest(self) -> float:
        """The largest average of inputs that are at most 1: the window over its divisor."""
        override = getattr(self, "divisor_override", None)
        return math.prod(pair(self.kernel_size)) / override if override else 1.0

    def windows(self, height: int, width: int) -> tuple[_Axis, _Axis]:
        """Return the vertical and horizontal windows for an image of this size."""
        raise NotImplementedError

    @property
    def needs_all_steps(self) -> bool:
        return self.two_phase

    @property
    def file_format(self) -> int:
        return 1 if self.initial == 0 and not self.two_phase else 2

    def settings(self) -> Settings:
        settings = super().settings()
        for name in ("initial", "two_phase"):  # left out if they are 0, so that older versions read the file
            if settings[name] == 0:
                del settings[name]
        return settings

    @classmethod
    def of(cls, settings: Settings, tensors: Tensors) -> Any:
        # Files of version 0.1 lack these settings. Newer files leave them out if they have these values.
        return super().of({"amplitude": 1.0, "initial": 0.0, "two_phase": False} | settings, tensors)

    @classmethod
    def made(cls, settings: Settings, tensors: Tensors) -> Any:
        pool = super().made(settings, tensors)
        pool.threshold = schema.frozen_scale(cls.__name__, "threshold", pool.threshold)
        pool.amplitude = schema.frozen_scale(cls.__name__, "amplitude", pool.amplitude)
        return pool

    def run(self, span: Span, state: State | None, *inputs: Any) -> tuple[SpikeTrain, State | None]:
        (x,) = inputs
        check_image(self, x)
        bits, carried = self.spikes(x, None if state is None else stacked(state), not span.ends)
        train = x.replace_unchecked(bits=bits, amplitude=x.amplitude * self.amplitude)
        return train, None if span.ends else carried.unbind(0)

    def extra_repr(self) -> str:
        engine = "" if self.engine == "auto" else f", engine={self.engine!r}"
        amplitude = "" if self.amplitude == 1 else f", amplitude={self.amplitude}"
        initial = "" if self.initial == 0 else f", initial={self.initial}"
        two_phase = ", two_phase=True" if self.two_phase else ""
        return f"{super().extra_repr()}, threshold={self.threshold}{amplitude}{initial}{two_phase}{engine}"

    def ann_twin(self, x: SpikeTrain) -> SpikeTrain:
        """Run the ANN twin alone; see :mod:`.ann_twin`."""
        return without_spikes(self._mean(x.count), x.time_steps, x.amplitude * self.amplitude, x.pair_dim)

    def _mean(self, count: Tensor) -> Tensor:
        """Return what the ANN computes of counts, in spikes."""
        mean: Tensor = super().forward(count)
        return mean / self.threshold

    def nir(self, writer: NirWriter, signal: Signal) -> Any:
        """Write the sums or means of windows and the neurons as nodes of NIR."""
        rows, columns = self.windows(*signal.shape[1:])
        return writer.pooled(signal, rows, columns, self.divisors(rows, columns), self.neurons)


class SpikingAvgPool2d(SpikingAverage, nn.AvgPool2d):  # type: ignore[misc]  # forward: spike trains, not tensors
    """Average pooling of spikes: integrate-and-fire neurons driven by the mean of their window at every time step.

    This is a depthwise convolution with constant weights, followed by IF neurons. With S[t] the number of spikes in the
    window at step t and D its divisor (kernel height times width, unless the arguments say otherwise)::

        u[t] = u[t-1] + S[t] / D - threshold * s[t-1],      s[t] = 1 if u[t] >= threshold else 0

    The potential is computed in units of 1 / D, so that all sums are integers and the spikes are the same on every
    device. The ANN twin, and so the gradient, is nn.AvgPool2d of the counts divided by ``threshold``. (A mean of counts
    is never negative, so its ReLU is the identity.)

    Args:
        kernel_size: size of the window, an int or a pair.
        stride: an int or a pair; defaults to ``kernel_size``.
        padding: silent neurons added around the image, an int or a pair.
        ceil_mode: let the last windows extend beyond the padded image.
        count_include_pad: include the padding in the divisor.
        divisor_override: the divisor to use instead.
        threshold: threshold of the neurons, in units of the mean.
        amplitude: weight of an output spike, in units of the input's ``amplitude``. If it equals the threshold,
            amplitude * count approximates the mean itself.
        initial: initial potential of the neurons as a fraction of the threshold, in [0, 1).
        two_phase: first integrate all T steps, then spike, as :class:`IF` says.
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, C, Ho, Wo].

    Raises:
        TypeError: the input is not a SpikeTrain, ``threshold`` or ``amplitude`` is not a number, or ``two_phase`` is
            not a bool.
        ValueError: the input is not [N, C, H, W], a window is larger than the padded image, or ``threshold``,
            ``amplitude``, ``initial`` or ``engine`` is invalid.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 1, 1, 2, 2))
        >>> SpikingAvgPool2d(2)(x).count
        tensor([[[[4.]]]])
    """

    SETTINGS: ClassVar = {
        **_WINDOWS,
        **dict.fromkeys(("ceil_mode", "count_include_pad"), schema.flag),
        "divisor_override": schema.whole_or_none,
        **_NEURONS,
    }

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        threshold: float = 1.0,
        amplitude: float = 1.0,
        initial: float = 0.0,
        two_phase: bool = False,
        engine: str = "auto",
    ) -> None:
        windows = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        neuron: dict[str, Any] = {"threshold": threshold, "amplitude": amplitude, "initial": initial}
        super().__init__(*windows, **neuron, two_phase=two_phase, engine=engine)

    def windows(self, height: int, width: int) -> tuple[_Axis, _Axis]:
        """Return the vertical and horizontal windows for an image of this size."""
        settings = zip(*map(pair, (self.kernel_size, self.stride, self.padding)), strict=True)
        rows, columns = (self._axis(size, *window) for size, window in zip((height, width), settings, strict=True))
        return rows, columns

    def _axis(self, size: int, kernel: int, stride: int, padding: int) -> _Axis:
        windows = []
        for i in range(windows_along(type(self).__name__, size, kernel, stride, padding, 1, self.ceil_mode)):
            start = i * stride - padding
            stop = min(start + kernel, size + padding)
            inside = min(stop, size) - max(start, 0)
            override = self.divisor_override is not None
            # A window that extends beyond the padding divides by what it covers, unless the divisor is given.
            windows.append(
                (start, start + kernel, 1 if override else stop - start if self.count_include_pad else inside)
            )
        return _Axis(size, windows)


def _check_output_size(kind: str, name: str, value: Any) -> None:
    for size in value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]:
        schema.whole_or_none(kind, name, size)


class SpikingAdaptiveAvgPool2d(SpikingAverage, nn.AdaptiveAvgPool2d):  # type: ignore[misc]  # as above
    """Adaptive average pooling of spikes: :class:`SpikingAvgPool2d` with one window per output pixel.

    The windows are as in nn.AdaptiveAvgPool2d: from floor(i * H / Ho) to ceil((i + 1) * H / Ho). If their sizes differ,
    the means are computed as a matrix product over the pixels of each channel, in units of 1 / (least common multiple
    of the sizes).

    Args:
        output_size: Ho and Wo, an int or a pair; None keeps the size of the input.
        threshold: threshold of the neurons, in units of the mean.
        amplitude: weight of an output spike, in units of the input's ``amplitude``. If it equals the threshold,
            amplitude * count approximates the mean itself.
        initial: initial potential of the neurons as a fraction of the threshold, in [0, 1).
        two_phase: first integrate all T steps, then spike, as :class:`IF` says.
        engine: "auto", "event" or "dense", as in :func:`tandem_cuda.ops.spiking_conv2d`.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, C, Ho, Wo].

    Raises:
        TypeError: the input is not a SpikeTrain, ``threshold`` or ``amplitude`` is not a number, or ``two_phase`` is
            not a bool.
        ValueError: the input is not [N, C, H, W], or ``threshold``, ``amplitude``, ``initial`` or ``engine`` is
            invalid.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 1, 3, 6, 6))
        >>> SpikingAdaptiveAvgPool2d(1)(x).count.flatten()
        tensor([4., 4., 4.])
    """

    SETTINGS: ClassVar = {"output_size": _check_output_size, **_NEURONS}

    def __init__(
        self,
        output_size: int | tuple[int | None, int | None] | None,
        *,
        threshold: float = 1.0,
        amplitude: float = 1.0,
        initial: float = 0.0,
        two_phase: bool = False,
        engine: str = "auto",
    ) -> None:
        neuron: dict[str, Any] = {"threshold": threshold, "amplitude": amplitude, "initial": initial}
        super().__init__(output_size, **neuron, two_phase=two_phase, engine=engine)

    def windows(self, height: int, width: int) -> tuple[_Axis, _Axis]:
        """Return the vertical and horizontal windows for an image of this size."""
        wanted: Any = self.output_size
        wanted = wanted if isinstance(wanted, (tuple, list)) else (wanted, wanted)
        axes = []
        for size, outputs in zip((height, width), wanted, strict=True):
            n = size if outputs is None else outputs
            bounds = [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]
            axes.append(_Axis(size, [(start, stop, stop - start) for start, stop in bounds]))
        return axes[0], axes[1]

    def image_size(self, image: Sequence[Size]) -> Sequence[Size]:
        wanted: Any = self.output_size
        outputs = wanted if isinstance(wanted, (tuple, list)) else (wanted, wanted)
        return [size if n is None else fixed(size, n) for size, n in zip(image, outputs, strict=True)]


class SpikeWindows(Pooling):
    """Average pooling without neurons: pass on the spikes of each window side by side, as channels.

    A tandem layer after it repeats its weights for every position in the window (:class:`.wiring.Wiring`) and so adds
    the window's spikes up. It has exactly the currents that it would have after an average pooling. The output has the
    input's ``amplitude``, divided by the divisor.

    Args:
        kernel_size: size of the window, an int or a pair.
        stride: an int or a pair; defaults to ``kernel_size``.
        padding: silent neurons added around the image, an int or a pair.
        divisor_override: divisor of a window's sum; defaults to the number of positions in the window.

    Shape:
        SpikeTrain [N, C, H, W] -> SpikeTrain [N, kH * kW * C, Ho, Wo], grouped by position.

    Raises:
        TypeError: the input is not a SpikeTrain.
        ValueError: the input is not [N, C, H, W], or a window is larger than the padded image.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 1, 3, 6, 6))
        >>> windows = SpikeWindows(2)(x)
        >>> windows.shape, windows.amplitude
        (torch.Size([1, 12, 3, 3]), 0.25)
    """

    SETTINGS: ClassVar = {**_WINDOWS, "divisor_override": schema.whole_or_none}

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = pair(kernel_size)
        self.stride = self.kernel_size if stride is None else pair(stride)
        self.padding = pair(padding)
        self.divisor_override = divisor_override

    @property
    def size(self) -> int:
        """Number of positions in a window."""
        return math.prod(self.kernel_size)

    def forward(self, x: SpikeTrain) -> SpikeTrain:
        check_image(self, x)
        return x.rearranged(self.rearranged).replace_unchecked(
            amplitude=x.amplitude / (self.divisor_override or self.size)
        )

    def rearranged(self, image: Tensor) -> Tensor:
        """Return where bits, counts or any other values [P, N, C, H, W] go."""
        (top, left), settings = self.padding, zip(self.kernel_size, self.stride, self.padding, strict=True)
        rows, columns = (
            [slice(first, first + (n - 1) * stride + 1, stride) for first in range(kernel)]
            for size, (kernel, stride, padding) in zip(image.shape[3:], settings, strict=True)
            for n in [windows_along("SpikeWindows", size, kernel, stride, padding, 1, False)]
        )
        padded = pad(image, (left, left, top, top)).movedim(2, -1)
        return torch.cat([padded[:, :, row, column] for row in rows for column in columns], -1).movedim(-1, 2)

    def channels(self, channels: Size) -> Size:
        return Size(channels.least * self.size, channels.exact, channels.factor * self.size)

    def extra_repr(self) -> str:
        divisor = "" if self.divisor_override is None else f", divisor_override={self.divisor_override}"
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}{divisor}"

    def nir(self, writer: NirWriter, signal: Signal) -> Any:
        """Let what reads the windows read the image."""
        return writer.rearranged(signal, self.rearranged)
