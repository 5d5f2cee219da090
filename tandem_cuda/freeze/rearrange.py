"""The frozen forms of SpikeRearrange, SpikeCat and TandemGate."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..neuron import Neuron, of_settings
from ..nn.gate import TandemGate
from ..nn.rearrange import SpikeCat, SpikeRearrange
from ..nn.sizes import REAL, SPIKES, Size, Value, check_count, halved
from ..spike_train import SpikeTrain
from .encode import FrozenDecode
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


class FrozenRearrange(FrozenLayer):
    """SpikeRearrange."""

    kind = "SpikeRearrange"
    format = 2

    def __init__(self, module: SpikeRearrange) -> None:
        super().__init__()
        self.module = module

    @classmethod
    def of(cls, module: SpikeRearrange, encoded: bool) -> FrozenRearrange:
        return cls(SpikeRearrange(module.how, *module.settings, signed=module.signed))

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenRearrange:
        check_settings(cls.kind, settings, {"how", "arguments", "signed"})
        check_tensors(cls.kind, tensors, {})
        arguments, signed = settings["arguments"], settings["signed"]
        if not isinstance(arguments, list) or not isinstance(signed, bool):
            raise ValueError(
                f"{cls.kind}: settings arguments and signed must be a list and true or false, got {arguments}, {signed}"
            )
        for number in arguments:
            frozen_numbers(cls.kind, "arguments", number, -(2**30))
        return cls(SpikeRearrange(settings["how"], *arguments, signed=signed))

    def settings(self) -> Settings:
        module = self.module
        return {"how": module.how, "arguments": list(module.settings), "signed": module.signed}

    def takes(self) -> str:
        return SPIKES

    def output(self, *inputs: Value) -> Value:
        x = single(inputs)
        x.check_kind(SPIKES)
        how, numbers = self.module.how, self.module.settings
        if x.shape is None:
            return Value(SPIKES)
        if how not in ("channels", "channel_shuffle", "flatten"):
            x.check_dims(2 if how == "unsqueeze" else 3)
        channels, *rest = x.shape
        channels = halved(channels) if self.module.signed else channels
        if how == "zero_pad":
            rest = [
                size.at_least(max(1, 1 - more)).through(partial(operator.add, more), 1, -more)
                for size, more in zip(rest, (numbers[2] + numbers[3], numbers[0] + numbers[1]), strict=True)
            ]
        elif how == "upsample":
            rest = [Size(size.least * factor, size.exact, factor) for size, factor in zip(rest, numbers, strict=True)]
        elif how in ("pixel_shuffle", "pixel_unshuffle"):
            (factor,) = numbers
            area = factor * factor
            if how == "pixel_shuffle":
                channels = _divided("channels", channels, area)
                rest = [Size(size.least * factor, size.exact, factor) for size in rest]
            else:
                channels = Size(channels.least * area, channels.exact, area)
                rest = [_divided("an image side", size, factor) for size in rest]
        elif how == "channel_shuffle":
            _divided("channels", channels, numbers[0])
        elif how == "channels":
            start, stop = numbers
            if channels.exact and stop > channels.least:
                raise ValueError(f"channels must be at least {stop}, got {channels}")
            channels = Size(stop - start, True)
        elif how == "unsqueeze":
            rest = [Size(1, True), *rest]
        else:
            least, exact = channels.least, channels.exact
            for size in rest:
                least, exact = least * size.least, exact and size.exact
            channels, rest = Size(least, exact), []
        if self.module.signed:
            channels = Size(2 * channels.least, channels.exact, 2)
        check_count("outputs", [size.least for size in (channels, *rest)])
        return x._replace(shape=(channels, *rest))

    def forward(self, span: Span, state: State | None, x: Any) -> tuple[SpikeTrain, None]:
        return self.module(x), None


def _divided(what: str, size: Size, factor: int) -> Size:
    if size.exact and size.least % factor:
        raise ValueError(f"{what} must be a multiple of {factor}, got {size}")
    return Size(-(-size.least // factor), size.exact)


class FrozenCat(FrozenLayer):
    """SpikeCat."""

    kind = "SpikeCat"
    format = 2

    def __init__(self, module: SpikeCat) -> None:
        super().__init__()
        self.module = module

    @classmethod
    def of(cls, module: SpikeCat, encoded: bool) -> FrozenCat:
        return cls(SpikeCat(*module.signed, amplitudes=module.amplitudes))

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenCat:
        check_settings(cls.kind, settings, {"signed", "amplitudes"})
        check_tensors(cls.kind, tensors, {})
        signed, amplitudes = settings["signed"], settings["amplitudes"]
        if not isinstance(signed, list) or not (amplitudes is None or isinstance(amplitudes, list)):
            raise ValueError(f"{cls.kind}: settings signed and amplitudes must be lists, got {signed}, {amplitudes}")
        for amplitude in amplitudes or ():
            frozen_scale(cls.kind, "amplitudes", amplitude)
        return cls(SpikeCat(*signed, amplitudes=amplitudes))

    def settings(self) -> Settings:
        amplitudes = self.module.amplitudes
        return {"signed": list(self.module.signed), "amplitudes": None if amplitudes is None else list(amplitudes)}

    def takes(self) -> str:
        return SPIKES

    def output(self, *inputs: Value) -> Value:
        if len(inputs) != len(self.module.signed):
            raise ValueError(f"number of inputs must be {len(self.module.signed)}, as in signed, got {len(inputs)}")
        total = Size(0, True)
        for x, signed in zip(inputs, self.module.signed, strict=True):
            x.check_kind(SPIKES)
            if x.shape is None:
                return Value(SPIKES)
            if len(x.shape) != len(inputs[0].shape or ()):
                raise ValueError(f"inputs must have the same dimensions, got {inputs[0]} and {x}")
            copies = 2 if any(self.module.signed) and not signed else 1
            total = Size(total.least + copies * x.shape[0].least, total.exact and x.shape[0].exact)
        rest = (inputs[0].shape or ())[1:]
        check_count("outputs", [size.least for size in (total, *rest)])
        return Value(SPIKES, (total, *rest))

    def forward(self, span: Span, state: State | None, *inputs: SpikeTrain) -> tuple[SpikeTrain, None]:
        return self.module(*inputs), None


class FrozenGate(FrozenLayer):
    """TandemGate.

    Args:
        neuron: its neurons.
        signed: as of the module.
        scale: [C], a factor of each channel of the spikes, or None.
    """

    kind = "TandemGate"
    format = 2
    waits = True

    def __init__(self, neuron: Neuron, signed: bool, scale: Tensor | None) -> None:
        super().__init__()
        for name, value in neuron.scales().items():
            frozen_scale(self.kind, name, value)
        self.gate = TandemGate(neuron, signed)
        self.decoded = FrozenDecode(signed, scale)
        self.gate.decode = self.decoded.decode

    @classmethod
    def of(cls, module: TandemGate, encoded: bool) -> FrozenGate:
        return cls(module.neuron, module.decode.signed, module.decode.scale)

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenGate:
        check_settings(cls.kind, settings, {"neuron", "signed"})
        scale = FrozenDecode.load({}, tensors).decode.scale
        return cls(of_settings(cls.kind, settings["neuron"]), settings["signed"], scale)

    def settings(self) -> Settings:
        return {"neuron": self.gate.neuron.settings(), "signed": self.gate.decode.signed}

    def tensors(self) -> dict[str, Tensor]:
        scale = self.gate.decode.scale
        return {} if scale is None else {"scale": scale}

    def branches(self) -> list[nn.Module]:
        return [nn.Identity()]

    def output(self, *inputs: Value) -> Value:
        if len(inputs) != 2:
            raise ValueError(f"number of inputs must be 2, spikes and gate, got {len(inputs)}")
        x, gate = inputs
        gate.check_kind(REAL)
        decoded = self.decoded.output(x)
        if decoded.shape is not None and gate.shape is not None:
            sizes = list(zip(decoded.shape, gate.shape, strict=False))
            wrong = any(g.exact and g.least != 1 and s.exact and g.least != s.least for s, g in sizes)
            if wrong or len(decoded.shape) != len(gate.shape):
                raise ValueError(f"the gate must broadcast over {decoded}, got {gate}")
        return x._replace(kind=SPIKES)

    def forward(self, span: Span, state: State | None, x: SpikeTrain, gate: Tensor) -> tuple[SpikeTrain, None]:
        v = self.gate.potential(x, gate)
        bits = self.gate.fired(v, span.now)
        return SpikeTrain.unchecked(bits, span.now, dtype=x.dtype, amplitude=self.gate.neuron.amplitude), None


register(SpikeRearrange, FrozenRearrange.of, FrozenRearrange.load)
register(SpikeCat, FrozenCat.of, FrozenCat.load)
register(TandemGate, FrozenGate.of, FrozenGate.load)
