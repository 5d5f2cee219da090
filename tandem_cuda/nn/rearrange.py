"""Concatenate, select and rearrange neurons: the spikes only move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..ops import checks
from ..spike_train import SpikeTrain, interleaved, signs
from . import schema
from .frozen import single
from .movements import MOVEMENTS
from .schema import Settings, Tensors
from .sizes import SPIKES, Size, Value, check_count, with_pairs, without_pairs
from .spiking import Spiking


class SpikeRearrange(Spiking):
    """Move, copy or drop neurons, as a function of images does. The layer has no neurons itself.

    | ``how`` and its arguments | what this does to the counts |
    |---|---|
    | "zero_pad", left, right, top, bottom | nn.ZeroPad2d; negative numbers remove rows or columns |
    | "reflect_pad", "replicate_pad" or "circular_pad", left, right, top, bottom | nn.ReflectionPad2d and so on |
    | "upsample", rows, columns | nn.Upsample with mode "nearest" and these factors |
    | "resize", H, W | F.interpolate to this size with mode "nearest" |
    | "pixel_shuffle", r; "pixel_unshuffle", r | nn.PixelShuffle, nn.PixelUnshuffle |
    | "channel_shuffle", groups | nn.ChannelShuffle |
    | "channels", start, stop | x[:, start:stop] |
    | "channel_pad", before, after | silent channels before and after the input's channels |
    | "slice", dim, start, stop, step | x[..., start:stop:step] of dimension ``dim``, from 1; 2^30 as stop is the end |
    | "flatten" | nn.Flatten |
    | "unflatten", C, H, W | nn.Unflatten(1, (C, H, W)), images for features [N, F] |
    | "unsqueeze" | x[:, :, None], images of height 1 for lines [N, C, L] |
    | "pairs", dim | nothing: pairs, if there are any, then lie along dimension 1 or -1 (``SpikeTrain.pair_dim``); 0: |
    | | neurons are then no pairs |

    Args:
        how: the rearrangement.
        arguments: its arguments, ints.
        signed: whether channels 2i and 2i + 1 are the positive and the negative part of channel i, which stay
            together. A train that is ``paired`` says so itself, and along which dimension.

    Shape:
        SpikeTrain [N, C, ...] -> SpikeTrain. Channels count twice if ``signed``.

    Raises:
        TypeError: the input is not a SpikeTrain, or an argument is not an int.
        ValueError: an unknown rearrangement, or arguments that do not fit it or the input.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 2, 3, 6, 6))
        >>> SpikeRearrange("upsample", 2, 2)(x).shape
        torch.Size([2, 3, 12, 12])
        >>> SpikeRearrange("channels", 0, 1)(x).shape
        torch.Size([2, 1, 6, 6])
    """

    SETTINGS: ClassVar = dict.fromkeys(("how", "arguments", "signed"), schema.any_value)

    def __init__(self, how: str, *arguments: int, signed: bool = False) -> None:
        super().__init__()
        if not isinstance(how, str) or how not in MOVEMENTS:
            raise ValueError(f"SpikeRearrange: how must be one of {', '.join(MOVEMENTS)}, got {how!r}")
        _, number, least, *_ = MOVEMENTS[how]
        if len(arguments) != number:
            raise ValueError(f"SpikeRearrange: {how!r} must have {number} arguments, got {len(arguments)}")
        for argument in arguments:
            if isinstance(argument, bool) or not isinstance(argument, int):
                raise TypeError(f"SpikeRearrange: arguments must be ints, got {type(argument).__name__}")
            if least is not None and argument < least:
                raise ValueError(f"SpikeRearrange: arguments of {how!r} must be at least {least}, got {argument}")
        if how == "channels" and arguments[0] >= arguments[1]:
            raise ValueError(f"SpikeRearrange: start must be below stop, got {arguments[0]} and {arguments[1]}")
        if how == "slice" and (arguments[0] < 1 or arguments[3] < 1):
            dim, *_, step = arguments
            raise ValueError(f"SpikeRearrange: dimension and step of 'slice' must be at least 1, got {dim} and {step}")
        if how == "pairs" and arguments[0] not in (1, -1, 0):
            raise ValueError(f"SpikeRearrange: the dimension of 'pairs' must be 1, -1 or 0, got {arguments[0]}")
        self.how = how
        self.arguments = arguments
        self.signed = signed

    @property
    def _f(self) -> Callable[..., Tensor]:
        return MOVEMENTS[self.how][0]

    def forward(self, x: SpikeTrain) -> SpikeTrain:
        if not isinstance(x, SpikeTrain):
            raise TypeError(f"SpikeRearrange: input must be a SpikeTrain, got {type(x).__name__}")
        before = self._pair_dim(x)
        moved = x.rearranged(lambda values: self._moved(values, before))
        after = self._new_pair_dim(before, len(moved.shape))
        return moved if after == x.pair_dim else moved.replace_unchecked(pair_dim=after)

    def _pair_dim(self, x: SpikeTrain | Value) -> int | None:
        """Return the dimension of the input along which pairs lie; None if there are none, or none any more."""
        if self.how == "pairs" and self.arguments[0] == 0:
            return None
        return 1 if self.signed and x.pair_dim is None else x.pair_dim

    def _new_pair_dim(self, before: int | None, dims: int | None) -> int | None:
        """Return that dimension of the output, which has ``dims`` dimensions."""
        if before is None:
            return None
        return 1 if dims == 2 else self.arguments[0] if self.how == "pairs" else before

    def moved(self, values: Sequence[Any]) -> list[Any]:
        """Return where the values of channels go: one entry for each output channel."""
        how, arguments = self.how, self.arguments
        if how == "pixel_unshuffle":
            return [value for value in values for _ in range(arguments[0] ** 2)]
        if how in ("pixel_shuffle", "unflatten"):
            return list(values[:: self.merged])
        if how == "channel_pad":  # silent channels have no source of their own
            return [values[0]] * arguments[0] + list(values) + [values[0]] * arguments[1]
        if how not in ("channels", "channel_shuffle") and (how != "slice" or arguments[0] > 1):
            return list(values)
        index = torch.arange(len(values)).view(1, 1, -1, 1, 1)
        return [values[i] for i in self._f(index, *arguments).flatten().tolist()]

    @property
    def merged(self) -> int:
        """How many neighbouring channels or features become one channel."""
        if self.how == "pixel_shuffle":
            return self.arguments[0] ** 2
        return self.arguments[1] * self.arguments[2] if self.how == "unflatten" else 1

    def rearranged(self, x: Tensor) -> Tensor:
        """Return where bits, counts or any other values [P, N, C, ...] go."""
        return self._moved(x, 1 if self.signed else None)

    def _moved(self, x: Tensor, pair_dim: int | None) -> Tensor:
        if pair_dim is None:
            return self._f(x, *self.arguments)
        planes = len(x)
        moved = self._f(torch.cat(signs(x, _axis(pair_dim))), *self.arguments)
        after = self._new_pair_dim(pair_dim, moved.dim() - 1)
        assert after is not None
        return interleaved(moved[:planes], moved[planes:], _axis(after))

    @classmethod
    def check(cls, settings: Settings) -> None:
        arguments, signed = settings["arguments"], settings["signed"]
        if not isinstance(arguments, list) or not isinstance(signed, bool):
            raise ValueError(
                "SpikeRearrange: settings arguments and signed must be a list and true or false, "
                f"got {arguments}, {signed}"
            )
        for number in arguments:
            schema.frozen_numbers("SpikeRearrange", "arguments", number, -(2**30))

    @classmethod
    def made(cls, settings: Settings, tensors: Tensors) -> Any:
        return cls(settings["how"], *settings["arguments"], signed=settings["signed"])

    def out_size(self, *inputs: Value) -> Value:
        x = single(inputs, SPIKES)
        how, numbers, pair_dim = self.how, self.arguments, self._pair_dim(x)
        if x.shape is None:
            return Value(SPIKES, pair_dim=self._new_pair_dim(pair_dim, 2 if how == "flatten" else None), radix=x.radix)
        if dims := MOVEMENTS[how].dims:
            x.check_dims(*dims)
        sizes = MOVEMENTS[how].sizes(without_pairs(x, pair_dim).shape or (), numbers)
        moved = x._replace(shape=sizes, pair_dim=None)
        moved = with_pairs(moved, self._new_pair_dim(pair_dim, 1 + len(sizes)))
        check_count("outputs", [size.least for size in moved.shape or ()])
        return moved

    def extra_repr(self) -> str:
        return ", ".join([repr(self.how), *map(str, self.arguments), *(["signed=True"] if self.signed else [])])


class SpikeCat(Spiking):
    """Concatenate trains along the channels, like torch.cat(trains, 1).

    Args:
        signed: for each input, whether its channels 2i and 2i + 1 are the positive and the negative part of channel i.
            If some are, so is the output; the channels of all others then get a silent negative part. A train that is
            ``paired`` says so itself, and along which dimension, which must be the same for all such trains.
        amplitudes: the ``amplitude`` of each input, if these differ. The output then has amplitude 1: layers that read
            it must multiply each channel by its amplitude, as their ``input_scale``.

    Shape:
        SpikeTrains [N, C_i, ...] -> SpikeTrain [N, sum of C_i, ...]. Channels count twice if they are signed.

    Raises:
        TypeError: an input is not a SpikeTrain.
        ValueError: the number of inputs is not len(``signed``), or they differ in time steps, ``radix``, device, dtype
            or a dimension other than the channels; or their amplitudes are neither equal nor ``amplitudes``, up to a
            common factor. Dropout in training changes the amplitude, so it must not be in some branches only.

    Examples:
        >>> x = SpikeTrain.from_dense(torch.ones(4, 2, 3, 6, 6))
        >>> SpikeCat(False, False)(x, x).shape
        torch.Size([2, 6, 6, 6])
    """

    SETTINGS: ClassVar = dict.fromkeys(("signed", "amplitudes"), schema.any_value)

    def __init__(self, *signed: bool, amplitudes: Sequence[float] | None = None) -> None:
        super().__init__()
        if not signed or not all(isinstance(x, bool) for x in signed):
            raise TypeError(f"SpikeCat: signed must be one bool for each input, got {signed}")
        self.signed = signed
        self.amplitudes = None if amplitudes is None else tuple(amplitudes)
        if self.amplitudes is not None:
            if len(self.amplitudes) != len(signed):
                raise ValueError(f"SpikeCat: amplitudes must be {len(signed)}, got {len(self.amplitudes)}")
            for amplitude in self.amplitudes:
                checks.check_positive("SpikeCat", "amplitudes", amplitude)

    def forward(self, *inputs: SpikeTrain) -> SpikeTrain:
        if len(inputs) != len(self.signed):
            raise ValueError(f"SpikeCat: inputs must be {len(self.signed)}, as many as signed, got {len(inputs)}")
        for x in inputs:
            if not isinstance(x, SpikeTrain):
                raise TypeError(f"SpikeCat: inputs must be SpikeTrains, got {type(x).__name__}")
        pair_dim, silent = self._pairs(inputs)
        if pair_dim is not None:
            axis = _axis(pair_dim)
            inputs = tuple(
                x.rearranged(lambda y: interleaved(y, torch.zeros_like(y), axis)) if adds else x
                for x, adds in zip(inputs, silent, strict=True)
            )
        first = inputs[0]
        for i, x in enumerate(inputs):
            for name in ("time_steps", "radix", "dtype", "device"):
                if getattr(x, name) != getattr(first, name):
                    raise ValueError(
                        f"SpikeCat: inputs must have the same {name}, got {getattr(first, name)} and, for input {i}, "
                        f"{getattr(x, name)}"
                    )
            if (x.shape[0], *x.shape[2:]) != (first.shape[0], *first.shape[2:]):
                raise ValueError(
                    f"SpikeCat: inputs must agree in all dimensions but the channels, got {list(first.shape)} and, for "
                    f"input {i}, {list(x.shape)}"
                )
        amplitude = self._amplitude(inputs)
        # Channels stay innermost in memory.
        bits = torch.cat([x.bits.movedim(2, -1) for x in inputs], -1).movedim(-1, 2)
        carried = any(x.carried_value is not None and x.carried_value.requires_grad for x in inputs)
        value = torch.cat([x.value for x in inputs], 1) if carried and torch.is_grad_enabled() else None
        return first.replace_unchecked(bits=bits, value=value, amplitude=amplitude, pair_dim=pair_dim)

    def _pairs(self, inputs: Sequence[SpikeTrain | Value]) -> tuple[int | None, list[bool]]:
        """Return the ``pair_dim`` of the output, and for each input whether it gets a silent negative part."""
        dims = [1 if s and x.pair_dim is None else x.pair_dim for x, s in zip(inputs, self.signed, strict=True)]
        found = {dim for dim in dims if dim is not None}
        if len(found) > 1:
            raise ValueError(
                f"SpikeCat: pairs of all inputs must lie along the same dimension, got pair_dim = {dims}; put "
                "SpikeRearrange('pairs', 1) before it"
            )
        return next(iter(found), None), [bool(found) and dim is None for dim in dims]

    def _amplitude(self, inputs: Sequence[SpikeTrain]) -> float:
        """Return the amplitude of the output."""
        expected = self.amplitudes or (1.0,) * len(inputs)
        ratios = [x.amplitude / amplitude for x, amplitude in zip(inputs, expected, strict=True)]
        if any(abs(ratio - ratios[0]) > 1e-6 * ratios[0] for ratio in ratios):
            wanted = "equal" if self.amplitudes is None else f"{self.amplitudes}, up to a common factor"
            raise ValueError(
                f"SpikeCat: the amplitudes of inputs must be {wanted}, got {tuple(x.amplitude for x in inputs)} "
                "(dropout in some branches only?)"
            )
        return ratios[0]

    @classmethod
    def check(cls, settings: Settings) -> None:
        signed, amplitudes = settings["signed"], settings["amplitudes"]
        if not isinstance(signed, list) or not (amplitudes is None or isinstance(amplitudes, list)):
            raise ValueError(f"SpikeCat: settings signed and amplitudes must be lists, got {signed}, {amplitudes}")
        for amplitude in amplitudes or ():
            schema.frozen_scale("SpikeCat", "amplitudes", amplitude)

    @classmethod
    def made(cls, settings: Settings, tensors: Tensors) -> Any:
        return cls(*settings["signed"], amplitudes=settings["amplitudes"])

    def out_size(self, *inputs: Value) -> Value:
        if len(inputs) != len(self.signed):
            raise ValueError(f"number of inputs must be {len(self.signed)}, as in signed, got {len(inputs)}")
        total, (pair_dim, silent), radix = Size(0, True), self._pairs(inputs), _common_radix(inputs)
        inputs = tuple(with_pairs(x, pair_dim) if adds else x for x, adds in zip(inputs, silent, strict=True))
        for x in inputs:
            x.check_kind(SPIKES)
            if x.shape is None:
                return Value(SPIKES, pair_dim=pair_dim, radix=radix)
            if len(x.shape) != len(inputs[0].shape or ()):
                raise ValueError(f"inputs must have the same dimensions, got {inputs[0]} and {x}")
            total = Size(total.least + x.shape[0].least, total.exact and x.shape[0].exact)
        rest = (inputs[0].shape or ())[1:]
        check_count("outputs", [size.least for size in (total, *rest)])
        return Value(SPIKES, (total, *rest), pair_dim=pair_dim, radix=radix)

    def extra_repr(self) -> str:
        amplitudes = [] if self.amplitudes is None else [f"amplitudes={self.amplitudes}"]
        return ", ".join([*map(str, self.signed), *amplitudes])


def _common_radix(inputs: Sequence[Value]) -> bool | None:
    """Return the ``radix`` of all inputs, None if it is not known; raise a ValueError if they differ."""
    found = {x.radix for x in inputs if x.radix is not None}
    if len(found) > 1:
        raise ValueError(f"inputs must have the same radix, got {[x.radix for x in inputs]}")
    return next(iter(found), None)


def _axis(pair_dim: int) -> int:
    """Return the dimension of bits [P, N, ...] that is ``pair_dim`` of [N, ...]."""
    return 2 if pair_dim == 1 else -1
