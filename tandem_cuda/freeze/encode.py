"""The frozen forms of Encode and Decode."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nn.encode import Decode, Encode, EncodedInput
from ..nn.sizes import ENCODED, REAL, SPIKES, Value, halved
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
    frozen_tensor,
    register,
    single,
)


class FrozenEncode(FrozenLayer):
    """Encode."""

    kind = "Encode"

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        # float32 cannot count further than 2^24, and no device would run that many steps.
        frozen_numbers(self.kind, "time_steps", encode.time_steps, 1, 2**24)
        frozen_scale(self.kind, "scale", encode.scale)
        self.encode = encode

    @classmethod
    def of(cls, module: Encode, encoded: bool) -> FrozenEncode:
        return cls(Encode(module.time_steps, module.mode, module.scale))

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenEncode:
        check_settings(cls.kind, settings, {"time_steps", "mode", "scale"})
        check_tensors(cls.kind, tensors, {})
        return cls(Encode(**settings))

    @property
    def time_steps(self) -> int:
        """T."""
        return self.encode.time_steps

    @property
    def mode(self) -> str:
        """The mode of Encode."""
        return self.encode.mode

    def settings(self) -> Settings:
        return {name: getattr(self.encode, name) for name in ("time_steps", "mode", "scale")}

    def takes(self) -> str:
        return REAL

    def output(self, *inputs: Value) -> Value:
        x = single(inputs)
        x.check_kind(REAL)
        return x._replace(kind=ENCODED)

    def forward(self, span: Span, state: State | None, x: Tensor) -> tuple[EncodedInput, None]:
        encoded: EncodedInput = self.encode(x)
        return encoded._replace(time_steps=span.now), None


class FrozenDecode(FrozenLayer):
    """Decode. After t of T steps it returns the counts times T / t, the final counts if firing rates stay the same.

    For an impulse, whose whole input arrives in the first step, firing rates fall over time. The counts so far are then
    the better estimate and are returned unchanged.
    """

    kind = "Decode"

    def __init__(self, signed: bool = False, scale: Tensor | None = None) -> None:
        super().__init__()
        if not isinstance(signed, bool):
            raise ValueError(f"Decode: setting signed must be true or false, got {signed!r}")
        self.format = 2 if signed or scale is not None else 1
        self.decode = Decode(signed)
        self.decode.scale = None if scale is None else frozen_tensor(scale)

    @classmethod
    def of(cls, module: Decode, encoded: bool) -> FrozenDecode:
        return cls(module.signed, module.scale)

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenDecode:
        check_settings(cls.kind, settings, {"signed"} if settings else set())
        if tensors:
            number = next(iter(tensors.values())).numel()
            check_tensors(cls.kind, tensors, {"scale": (number,)})
            if number == 0:
                raise ValueError(f"{cls.kind}: scale must not be empty")
        return cls(settings.get("signed", False), tensors.get("scale"))

    def settings(self) -> Settings:  # left out if it is false, so that older versions read the file
        return {"signed": True} if self.decode.signed else {}

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.decode.scale is None else {"scale": self.decode.scale}

    def takes(self) -> str:
        return SPIKES

    def output(self, *inputs: Value) -> Value:
        x = single(inputs)
        x.check_kind(SPIKES)
        if x.shape is None or not x.shape:
            return x._replace(kind=REAL)
        channels, *rest = x.shape
        if self.decode.signed:
            channels = halved(channels)
        if self.decode.scale is not None:
            number = len(self.decode.scale)
            if rest:
                channels.check("channels", number)
            elif channels.exact and channels.least % number:  # features may be all pixels of each channel
                raise ValueError(f"features must be a multiple of {number}, got {channels}")
        return x._replace(kind=REAL, shape=(channels, *rest))

    def forward(self, span: Span, state: State | None, x: Any) -> tuple[Tensor, State | None]:
        if not isinstance(x, SpikeTrain):
            raise TypeError(f"Decode: input must be a SpikeTrain, got {type(x).__name__}")
        count = x.count if state is None else x.count + state[0]
        factor = x.amplitude * (span.total / span.reached) if span.steady else x.amplitude
        return self.decode.weighted(count if factor == 1 else count * factor), None if span.ends else (count,)


register(Encode, FrozenEncode.of, FrozenEncode.load)
register(Decode, FrozenDecode.of, FrozenDecode.load)
