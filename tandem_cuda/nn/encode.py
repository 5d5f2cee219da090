"""Encode and Decode: from real numbers to spike trains, and from spike counts back to real numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..neuron import RadixIF
from ..neuron.radix_if import check_radix_steps
from ..ops import checks
from ..spike_code import refuse_part
from ..spike_train import SpikeTrain, signs
from . import schema
from .frozen import Span, State, single
from .schema import Settings, Tensors
from .sizes import ENCODED, REAL, SPIKES, Value, without_pairs
from .spiking import Spiking

_MODES = ("constant", "impulse", "radix")


class EncodedInput(NamedTuple):
    """Real input for the first tandem layer, which turns it into currents. Returned by :class:`Encode`.

    It is a tuple, hence a pytree, and works with ``torch.compile``.

    Examples:
        >>> encoded = Encode(4)(torch.ones(2, 3, 5))
        >>> isinstance(encoded, EncodedInput), encoded.flatten().value.shape
        (True, torch.Size([2, 15]))
    """

    value: Tensor
    """[N, ...], the input times ``scale`` of Encode."""
    time_steps: int
    """T."""
    mode: str
    """"constant" or "impulse"."""

    def flatten(self, start_dim: int = 1, end_dim: int = -1) -> EncodedInput:
        """Flatten dimensions of ``value``; ``nn.Flatten`` calls this."""
        return self._replace(value=self.value.flatten(start_dim, end_dim))


class Encode(Spiking):
    """Mark a real input X to be encoded by the first tandem layer (Wu et al. 2021, section II-B).

    At time step t the neurons of the next layer, with weight W and bias b, receive the current

    - mode "constant": W * X + b / T for every t; the ANN's input is T * X. W * X is computed once, not T times.
    - mode "impulse": W * X + b / T for t = 1, b / T afterwards; the ANN's input is X.

    With mode "radix", pixels become spikes (see :class:`tandem_cuda.RadixIF`), and the next layer reads these: no
    product has a real input. The value of a pixel is X * (2^T - 1), rounded; with T = 8 the bytes of an image are its
    spikes. No gradient reaches X.

    Args:
        time_steps: T, at least 1; with mode "radix" at most 8.
        mode: "constant", "impulse" or "radix".
        scale: factor of the input, not 0; with mode "radix" positive. With mode "constant" and scale 1 / T the ANN's
            input is X.

    Shape:
        Tensor [N, ...] -> :class:`EncodedInput`, or SpikeTrain [N, ...] with mode "radix". The input is floating point
        and with mode "radix", before its scale, from 0 to 1, or uint8, for 255 times as much.

    Raises:
        TypeError: ``time_steps`` is not an int, ``scale`` is not a number, or the input is not a Tensor of such a dtype
            (for recorded spikes use ``SpikeTrain.from_dense``).
        ValueError: ``time_steps`` or ``scale`` is out of range, or an unknown mode; on the CPU, an input that contains
            NaN or infinity or, with mode "radix", numbers outside [0, 1]. Compiled and exported programs do not look
            at their input.

    Examples:
        >>> encoded = Encode(time_steps=4, mode="impulse")(torch.rand(2, 1, 28, 28))
        >>> encoded.value.shape, encoded.time_steps, encoded.mode
        (torch.Size([2, 1, 28, 28]), 4, 'impulse')
        >>> Encode(time_steps=2, mode="radix")(torch.tensor([[0.0, 0.3, 1.0]])).value
        tensor([[0., 1., 3.]])
    """

    SETTINGS: ClassVar = dict.fromkeys(("time_steps", "mode", "scale"), schema.any_value)
    reads = REAL

    def __init__(self, time_steps: int, mode: str = "constant", scale: float = 1.0) -> None:
        super().__init__()
        checks.check_time_steps("Encode", time_steps)
        if mode not in _MODES:
            raise ValueError(f"Encode: mode must be one of {', '.join(_MODES)}, got {mode!r}")
        checks.check_number("Encode", "scale", scale)
        if scale == 0 or not math.isfinite(scale):
            raise ValueError(f"Encode: scale must be finite and not 0, got {scale}")
        if mode == "radix":
            check_radix_steps("Encode", time_steps)
            if scale < 0:
                raise ValueError(f"Encode: scale must be positive with mode 'radix', got {scale}")
        self.time_steps = time_steps
        self.mode = mode
        self.scale = float(scale)

    def forward(self, x: Tensor) -> EncodedInput | SpikeTrain:
        checks.check_tensor("Encode", "input", x)
        pixels = self.mode == "radix"
        if not x.is_floating_point() and not (pixels and x.dtype == torch.uint8):
            expected = "floating point or uint8" if pixels else "floating point"
            raise TypeError(
                f"Encode: input must be {expected}, got {x.dtype}; pass images as images / 255, and recorded spikes as "
                "SpikeTrain.from_dense(spikes), without Encode"
            )
        if pixels:
            return self._spikes(x)
        checks.check_finite("Encode", "input", x)
        return EncodedInput(x if self.scale == 1 else x * self.scale, self.time_steps, self.mode)

    def _spikes(self, x: Tensor) -> SpikeTrain:
        """Return radix spikes of pixels."""
        value = x.detach() if x.dtype in checks.FLOATING else x.detach().float()
        if x.dtype == torch.uint8:
            value = value / 255
        else:
            remedy = "; pass images / 255, or with other numbers use mode 'impulse'"
            checks.check_share("Encode", "input", value, remedy)
        steps = self.time_steps
        levels = 2**steps - 1
        # 1 is the largest value; 1 / levels is the same double, whether it is rounded before or after the division.
        neuron = RadixIF(2**steps / levels)
        bits, _, _ = ops.integrate_and_fire.trusted(
            value, steps, mode="once", neuron=neuron, want_sum=False, want_state=False
        )
        return SpikeTrain.unchecked(bits, steps, dtype=value.dtype, amplitude=self.scale / levels, radix=True)

    @property
    def needs_all_steps(self) -> bool:
        return self.mode == "radix"

    @classmethod
    def made(cls, settings: Settings, tensors: Tensors) -> Any:
        encode = cls(**settings)
        # float32 cannot count further than 2^24, and no device would run that many steps.
        schema.frozen_numbers("Encode", "time_steps", encode.time_steps, 1, 2**24)
        schema.frozen_scale("Encode", "scale", encode.scale)
        return encode

    def out_size(self, *inputs: Value) -> Value:
        radix = self.mode == "radix"
        return single(inputs, REAL)._replace(kind=SPIKES if radix else ENCODED, radix=radix)

    def run(self, span: Span, state: State | None, *inputs: Any) -> tuple[EncodedInput | SpikeTrain, None]:
        encoded = self.forward(*inputs)
        if span.now == span.total:
            return encoded, None
        if not isinstance(encoded, EncodedInput):
            refuse_part("Encode")
        return encoded._replace(time_steps=span.now), None

    def extra_repr(self) -> str:
        scale = "" if self.scale == 1 else f", scale={self.scale}"
        return f"{self.time_steps}, mode={self.mode!r}{scale}"


class Decode(Spiking):
    """Return the spike counts of the last tandem layer, as input for an ordinary layer (aggregate membrane potential).

    An ``nn.Linear`` after Decode computes W * c + b, the membrane potential of output neurons that never spike after T
    steps.

    Args:
        signed: whether channels 2i and 2i + 1 are the positive and the negative part of channel i. The output is then
            their difference, [N, C / 2, ...]. A train that is ``paired`` says so itself, and along which dimension.

    Shape:
        SpikeTrain [N, C, ...] -> Tensor [N, C, ...], the train's differentiable ``value``, for most trains the spike
        counts, times its ``amplitude``.

    Raises:
        TypeError: the input is not a SpikeTrain.

    Examples:
        >>> spikes = SpikeTrain.from_dense(torch.ones(4, 2, 10))  # 2 samples, 10 neurons that fire in all 4 steps
        >>> Decode()(spikes)[0]
        tensor([4., 4., 4., 4., 4., 4., 4., 4., 4., 4.])
    """

    scale: Tensor | None
    """A further factor of each output channel, [C] or None, set by conversion (``input_scale`` of a tandem layer)."""
    of_features: bool
    """Whether the spikes are of features, along the last dimension. ``scale`` then has a factor for each feature."""

    def __init__(self, signed: bool = False) -> None:
        super().__init__()
        self.signed = signed
        self.of_features = False
        self.register_buffer("scale", None, persistent=False)

    def forward(self, x: Any) -> Tensor:
        if not isinstance(x, SpikeTrain):
            raise TypeError(f"Decode: input must be a SpikeTrain, got {type(x).__name__}")
        return self.weighted(x.value if x.amplitude == 1 else x.value * x.amplitude, x)

    def pair_dim(self, x: SpikeTrain | Value) -> int | None:
        """Return the dimension of the input along which pairs lie; None if there are none."""
        return 1 if self.signed and x.pair_dim is None else x.pair_dim

    def weighted(self, count: Tensor, x: SpikeTrain) -> Tensor:
        """Return the values that counts of a train, times the amplitude, stand for."""
        dim = self.pair_dim(x)
        if dim is not None:
            if count.shape[dim] % 2:
                wanted = "2 * C channels" if dim == 1 else "2 * F features"
                raise ValueError(f"Decode: signed input must have {wanted}, got {list(count.shape)}")
            positive, negative = signs(count, dim)
            count = positive - negative
        factors = self.factors(count.shape)
        value = count if factors is None else count * factors
        # torch's linear layers round differently where features are not innermost.
        return value.contiguous() if dim == -1 or self.of_features else value

    def factors(self, shape: Sequence[int]) -> Tensor | None:
        """Return the factors of values, ``scale`` as it broadcasts over their shape."""
        scale = self._buffers["scale"]
        if scale is None:
            return None
        number = shape[-1 if self.of_features else 1]
        if number != len(scale) and number % len(scale):
            raise ValueError(f"Decode: input must have a multiple of {len(scale)} features, got {number}")
        if self.of_features:  # flattened rows: all features of a row side by side
            return scale if number == len(scale) else scale.repeat(number // len(scale))
        # Flattened images: all pixels of a channel side by side.
        wide = scale if number == len(scale) else scale.repeat_interleave(number // len(scale))
        return wide.view(-1, *[1] * (len(shape) - 2))

    def settings(self) -> Settings:  # which leave out what is false
        return {name: True for name in ("signed", "of_features") if getattr(self, name)}

    def constants(self) -> dict[str, Tensor]:
        return {} if self.scale is None else {"scale": self.scale}

    @classmethod
    def of(cls, settings: Settings, tensors: Tensors) -> Any:
        schema.check_settings("Decode", settings, {"signed", "of_features"} & settings.keys())
        if tensors:
            number = next(iter(tensors.values())).numel()
            schema.check_tensors("Decode", tensors, {"scale": (number,)})
            if number == 0:
                raise ValueError("Decode: scale must not be empty")
        return cls.made(settings, tensors)

    @classmethod
    def made(cls, settings: Settings, tensors: Tensors) -> Any:
        for name, value in settings.items():
            schema.flag("Decode", name, value)
        decode = cls(settings.get("signed", False))
        decode.of_features = settings.get("of_features", False)
        decode.scale = schema.frozen_tensor(tensors["scale"]) if tensors else None
        return decode

    def out_size(self, *inputs: Value) -> Value:
        x = single(inputs, SPIKES)
        value = without_pairs(x, self.pair_dim(x))._replace(kind=REAL, radix=None)
        if self.scale is None or not (value.shape or value.last):
            return value
        number, shape = len(self.scale), value.shape
        if shape is not None and len(shape) > 1 and not self.of_features:
            shape[0].check("channels", number)
            return value
        found = value.last if self.of_features or shape is None else shape[0]
        # Features may be all pixels of each channel, or all rows.
        if found is not None and found.exact and found.least % number:
            raise ValueError(f"features must be a multiple of {number}, got {found}")
        return value

    def run(self, span: Span, state: State | None, *inputs: Any) -> tuple[Tensor, State | None]:
        """Return the counts after t of T steps times T / t: the final counts if firing rates stay as they are.

        For an impulse, whose whole input arrives in the first step, firing rates fall over time. The counts so far are
        then the better estimate and are returned unchanged.
        """
        (x,) = inputs
        if not isinstance(x, SpikeTrain):
            raise TypeError(f"Decode: input must be a SpikeTrain, got {type(x).__name__}")
        now, done, total, steady = span
        if x.code.radix and now < total:
            refuse_part("Decode")
        count = x.value if state is None else x.value + state[0]
        factor = x.code.amplitude * (total / (now + done)) if steady else x.code.amplitude
        value = self.weighted(count if factor == 1 else count * factor, x)
        return value, None if now + done == total else (count,)

    def extra_repr(self) -> str:
        return "signed=True" if self.signed else ""
