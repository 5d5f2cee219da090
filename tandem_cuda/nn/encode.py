"""Encode and Decode: where real numbers become spike trains and spike counts become real numbers again."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..ops import checks
from ..spike_train import SpikeTrain
from .frozen import (
    ENCODED,
    REAL,
    SPIKES,
    FrozenLayer,
    Settings,
    Span,
    State,
    Tensors,
    Value,
    check_settings,
    check_tensors,
    frozen_numbers,
    frozen_scale,
    register,
    single,
)

_MODES = ("constant", "impulse")


class EncodedInput(NamedTuple):
    """Real input on its way to the first tandem layer, which turns it into currents; what :class:`Encode` returns.

    A tuple, hence a pytree: it passes through ``torch.compile`` and friends.
    """

    value: Tensor
    """[N, ...], the input, times the factor of Encode."""
    time_steps: int
    """T."""
    mode: str
    """"constant" or "impulse"."""

    def flatten(self, start_dim: int = 1, end_dim: int = -1) -> EncodedInput:
        """Flatten dimensions of ``value``; ``nn.Flatten`` calls this."""
        return self._replace(value=self.value.flatten(start_dim, end_dim))


class Encode(nn.Module):
    """Mark a real input X for encoding by the first tandem layer (Wu et al. 2021, section II-B).

    The layer behind it receives, with weight W and bias b, at time step t the current

    - mode "constant": W * X + b / T for every t; the ANN's input is T * X. W * X is computed once, not T times.
    - mode "impulse": W * X + b / T for t = 1, b / T afterwards; the ANN's input is X.

    Args:
        time_steps: T, at least 1.
        mode: "constant" or "impulse".
        scale: factor of the input, not 0; with mode "constant" and scale 1 / T the ANN's input is X.

    Shape:
        Tensor [N, ...] -> :class:`EncodedInput`.

    Raises:
        TypeError: ``time_steps`` is no int, ``scale`` no number, or the input is not a floating point Tensor (recorded
            spikes enter through ``SpikeTrain.from_dense`` instead).
        ValueError: ``time_steps`` < 1, an unknown mode, or ``scale`` is 0 or not finite; NaN or an infinity in an input
            on the CPU.
    """

    def __init__(self, time_steps: int, mode: str = "constant", scale: float = 1.0) -> None:
        super().__init__()
        checks.check_time_steps("Encode", time_steps)
        if mode not in _MODES:
            raise ValueError(f"Encode: mode must be one of {', '.join(_MODES)}, got {mode!r}")
        checks.check_number("Encode", "scale", scale)
        if scale == 0 or not math.isfinite(scale):
            raise ValueError(f"Encode: scale must be finite and not 0, got {scale}")
        self.time_steps = time_steps
        self.mode = mode
        self.scale = float(scale)

    def forward(self, x: Tensor) -> EncodedInput:
        checks.check_tensor("Encode", "input", x)
        if not x.is_floating_point():
            raise TypeError(
                f"Encode: input must be floating point, got {x.dtype}; recorded spikes enter through "
                "SpikeTrain.from_dense(spikes) without Encode"
            )
        checks.check_finite("Encode", "input", x)
        return EncodedInput(x if self.scale == 1 else x * self.scale, self.time_steps, self.mode)

    def extra_repr(self) -> str:
        scale = "" if self.scale == 1 else f", scale={self.scale}"
        return f"{self.time_steps}, mode={self.mode!r}{scale}"


class Decode(nn.Module):
    """Hand the spike counts of the last tandem layer to an ordinary layer (aggregate membrane potential).

    ``nn.Linear`` behind it computes W * c + b: what output neurons that never spike would have gathered after T steps.

    Shape:
        SpikeTrain of [N, ...] -> Tensor [N, ...], the differentiable spike counts, times the train's ``amplitude``.

    Raises:
        TypeError: the input is no SpikeTrain.
    """

    def forward(self, x: Any) -> Tensor:
        if not isinstance(x, SpikeTrain):
            raise TypeError(f"Decode: input must be a SpikeTrain, got {type(x).__name__}")
        return x.count if x.amplitude == 1 else x.count * x.amplitude


class FrozenEncode(FrozenLayer):
    """Encode."""

    kind = "Encode"

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        # More spikes than 2^24 no float32 counts, and no device runs.
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
        """Of Encode."""
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
    """Decode: the counts after t of T steps times T / t, what they come to if the rates stay as they are.

    After an impulse all of the input is there from the first step on and rates fall: the counts so far then are the
    better estimate.
    """

    kind = "Decode"

    @classmethod
    def of(cls, module: Decode, encoded: bool) -> FrozenDecode:
        return cls()

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenDecode:
        check_settings(cls.kind, settings, set())
        check_tensors(cls.kind, tensors, {})
        return cls()

    def settings(self) -> Settings:
        return {}

    def takes(self) -> str:
        return SPIKES

    def output(self, *inputs: Value) -> Value:
        x = single(inputs)
        x.check_kind(SPIKES)
        return x._replace(kind=REAL)

    def forward(self, span: Span, state: State | None, x: Any) -> tuple[Tensor, State | None]:
        if not isinstance(x, SpikeTrain):
            raise TypeError(f"Decode: input must be a SpikeTrain, got {type(x).__name__}")
        count = x.count if state is None else x.count + state[0]
        factor = x.amplitude * (span.total / span.reached) if span.steady else x.amplitude
        return count if factor == 1 else count * factor, None if span.ends else (count,)


register(Encode, FrozenEncode.of, FrozenEncode.load)
register(Decode, FrozenDecode.of, FrozenDecode.load)
