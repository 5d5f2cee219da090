"""The frozen form of spiking pooling."""

from __future__ import annotations

from fractions import Fraction
from functools import partial, reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..neuron import stacked
from ..nn.geometry import check_image
from ..nn.max_pool import SpikingGlobalMaxPool2d, SpikingMaxPool2d
from ..nn.pool import SpikeWindows, SpikingAdaptiveAvgPool2d, SpikingAverage, SpikingAvgPool2d, pair
from ..nn.sizes import SPIKES, Size, Value, check_count
from ..ops.max_pool_spikes import windows_along
from ..spike_train import SpikeTrain
from .forms import (
    FrozenLayer,
    Settings,
    Span,
    State,
    Tensors,
    check_settings,
    check_tensors,
    frozen_numbers,
    frozen_scale,
    register,
    single,
)


class FrozenPool(FrozenLayer):
    """Spiking pooling.

    Average pooling carries the membrane potentials of its neurons as its state; max pooling carries the counts of its
    inputs.

    Args:
        pool: the layer.
        gate: for max pooling only. "count" computes what the layer computes. "any" passes a spike whenever any neuron
            of the window spikes; files without this setting mean "any".
    """

    SETTINGS: ClassVar[dict[type[nn.Module], tuple[str, ...]]] = {
        SpikingAvgPool2d: (
            *("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
            *("threshold", "amplitude", "initial", "two_phase", "engine"),
        ),
        SpikingAdaptiveAvgPool2d: ("output_size", "threshold", "amplitude", "initial", "two_phase", "engine"),
        SpikingMaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
        SpikingGlobalMaxPool2d: (),
        SpikeWindows: ("kernel_size", "stride", "padding", "divisor_override"),
    }

    GATES: ClassVar[tuple[str, ...]] = ("count", "any")

    def __init__(self, pool: Any, gate: str = "count") -> None:
        super().__init__()
        self.kind = type(pool).__name__
        if isinstance(pool, SpikingAverage):
            pool.threshold = frozen_scale(self.kind, "threshold", pool.threshold)
            pool.amplitude = frozen_scale(self.kind, "amplitude", pool.amplitude)
            self.waits = pool.two_phase
            self.format = 1 if pool.initial == 0 and not pool.two_phase else 2
        elif isinstance(pool, SpikingGlobalMaxPool2d):
            self.format = 2
        self.pool = pool
        self.gate = gate

    @classmethod
    def made(cls, pool_class: type[nn.Module], settings: Settings, gate: str = "count") -> FrozenPool:
        """Make the layer from the arguments of its constructor."""
        return cls(pool_class(**settings), gate)

    @classmethod
    def of(cls, module: nn.Module, encoded: bool) -> FrozenPool:
        return cls.made(type(module), {name: getattr(module, name) for name in cls.SETTINGS[type(module)]})

    @classmethod
    def load(cls, pool_class: type[nn.Module], settings: Settings, tensors: Tensors) -> FrozenPool:
        kind, gate = pool_class.__name__, "count"
        if pool_class is SpikingMaxPool2d:
            settings = {"gate": "any"} | settings  # the only gate of version 0.1
            gate = settings.pop("gate")
            if gate not in cls.GATES:
                raise ValueError(f"{kind}: setting gate must be one of {', '.join(cls.GATES)}, got {gate!r}")
        if issubclass(pool_class, SpikingAverage):
            # Left out by version 0.1, and where they have these values.
            settings = {"amplitude": 1.0, "initial": 0.0, "two_phase": False} | settings
        check_settings(kind, settings, {*cls.SETTINGS[pool_class]})
        check_tensors(kind, tensors, {})
        for name, value in settings.items():
            if name in ("ceil_mode", "count_include_pad", "two_phase"):
                if not isinstance(value, bool):
                    raise ValueError(f"{kind}: setting {name} must be true or false, got {value!r}")
            elif name == "divisor_override":
                if value is not None:
                    frozen_numbers(kind, name, value, 1)
            elif name == "output_size":
                sizes = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
                for size in sizes:
                    if size is not None:
                        frozen_numbers(kind, name, size, 1)
            elif name not in ("threshold", "amplitude", "initial", "engine"):  # the constructor checks these
                frozen_numbers(kind, name, value, 0 if name == "padding" else 1, pairs=True)
        return cls.made(pool_class, {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}, gate)

    def settings(self) -> Settings:
        gate = {"gate": self.gate} if isinstance(self.pool, SpikingMaxPool2d) else {}
        settings = {name: getattr(self.pool, name) for name in self.SETTINGS[type(self.pool)]}
        for name in ("initial", "two_phase"):  # left out if they are 0, so that older versions read the file
            if settings.get(name) == 0:
                del settings[name]
        return settings | gate

    def takes(self) -> str:
        return SPIKES

    def output(self, *inputs: Value) -> Value:
        x = single(inputs)
        x.check_kind(SPIKES)
        x.check_dims(3)
        channels, *image = (Size(),) * 3 if x.shape is None else x.shape
        if isinstance(self.pool, SpikingGlobalMaxPool2d):
            sizes = [Size(1, True, 1, Fraction(0), Fraction(size.needs)) for size in image]
        elif isinstance(self.pool, SpikingAdaptiveAvgPool2d):
            wanted = self.pool.output_size
            outputs = wanted if isinstance(wanted, (tuple, list)) else (wanted, wanted)
            sizes = [
                size if n is None else Size(n, True, 1, Fraction(0), Fraction(size.needs))
                for size, n in zip(image, outputs, strict=True)
            ]
        else:
            sizes = self._windows(image)
        if isinstance(self.pool, SpikeWindows):
            copies = self.pool.size
            channels = Size(channels.least * copies, channels.exact, channels.factor * copies)
        check_count("outputs", [size.least for size in (channels, *sizes)])
        return x._replace(kind=SPIKES, shape=(channels, *sizes))

    def _windows(self, image: list[Size]) -> list[Size]:
        """Return the output sizes for an image of these sizes."""
        pool: Any = self.pool
        kernels, strides, paddings = map(pair, (pool.kernel_size, pool.stride, pool.padding))
        dilations, ceil_mode = pair(getattr(pool, "dilation", 1)), getattr(pool, "ceil_mode", False)
        sizes = []
        for size, kernel, stride, padding, dilation in zip(image, kernels, strides, paddings, dilations, strict=True):
            # The minimum size that a window fits into.
            fits = dilation * (kernel - 1) + 1 - 2 * padding - (stride - 1 if ceil_mode else 0)
            how = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
            windows = partial(windows_along, self.kind, ceil_mode=ceil_mode, **how)
            sizes.append(size.at_least(fits).through(windows, stride, fits - stride, regular=not ceil_mode))
        check_count("input", [size.needs for size in sizes])
        return sizes

    def forward(self, span: Span, state: State | None, x: Any) -> tuple[Any, State | None]:
        if isinstance(self.pool, SpikeWindows):  # it has no state
            return self.pool(x), None
        check_image(self.pool, x)
        if self.gate == "any":
            return x.replace_unchecked(bits=_any_spikes(self.pool, x)), None
        if not isinstance(self.pool, SpikingAverage) and span.total >= 2**31:  # its counts are int32
            raise ValueError(f"{self.kind}: time_steps must be below 2^31, got {span.total}")
        averages = isinstance(self.pool, SpikingAverage)
        before = None if state is None else stacked(state) if averages else state[0]
        bits, carried = self.pool.spikes(x, before, not span.ends)
        train = x.replace_unchecked(bits=bits, amplitude=x.amplitude * getattr(self.pool, "amplitude", 1.0))
        return train, None if span.ends else carried.unbind(0) if averages else (carried,)


def _any_spikes(pool: Any, x: SpikeTrain) -> Tensor:
    """Return the output of a max pooling that spikes whenever any neuron of its window spikes."""
    bits = x.bits.movedim(2, -1)
    settings = map(pair, (pool.kernel_size, pool.stride, pool.padding, pool.dilation))
    for dim, (kernel, stride, padding, dilation) in zip((2, 3), zip(*settings, strict=True), strict=True):
        size = bits.shape[dim]
        n = windows_along("SpikingMaxPool2d", size, kernel, stride, padding, dilation, pool.ceil_mode)
        behind = max((n - 1) * stride + dilation * (kernel - 1) + 1 - padding - size, 0)
        pads = (0, 0) * (4 - dim) + (padding, behind)
        padded = nn.functional.pad(bits, pads)
        taps = [
            padded[(slice(None),) * dim + (slice(at, at + (n - 1) * stride + 1, stride),)]
            for at in range(0, dilation * kernel, dilation)
        ]
        bits = reduce(torch.bitwise_or, taps)
    return bits.movedim(-1, 2)


for pool_class in FrozenPool.SETTINGS:
    register(pool_class, FrozenPool.of, partial(FrozenPool.load, pool_class))
