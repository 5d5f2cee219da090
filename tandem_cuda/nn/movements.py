"""What SpikeRearrange does to neurons: one function of bits or counts for each movement, and what it does to sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import pad
from .sizes import Size

Sizes = tuple[Size, ...]


class Movement(NamedTuple):
    """A movement of neurons."""

    move: Callable[..., Tensor]
    """The function of bits or counts [P, N, C, ...] and of the arguments."""
    arguments: int
    """The number of arguments."""
    least: int | None
    """The minimum of each argument."""
    sizes: Callable[[Sizes, Sequence[int]], Sizes]
    """What is known about the sizes of a result, given the sizes [C, ...] and the arguments."""
    dims: tuple[int, ...] = ()
    """The numbers of dimensions that an input may have, without the batch; empty if any number is right."""


def _images(name: str, x: Tensor) -> None:
    if x.dim() != 5:
        raise ValueError(f"SpikeRearrange: input of {name!r} must be [N, C, H, W], got {list(x.shape[1:])}")


def _check_multiple(name: str, size: int, factor: int) -> None:
    if size % factor:
        raise ValueError(f"SpikeRearrange: {name} must be a multiple of {factor}, got {size}")


# -- images


def _zero_pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    _images("zero_pad", x)
    return pad(x, (left, right, top, bottom))


def _mirror_pad(mode: str) -> Callable[..., Tensor]:
    """Return the function that fills the padding with the image's own spikes, as a padding mode of torch does."""

    def move(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
        _images(f"{mode}_pad", x)
        return pad(x, (left, right, top, bottom), mode)

    return move


def _padded(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    left, right, top, bottom = numbers
    rest = (
        size.at_least(max(1, 1 - more)).through(partial(operator.add, more), 1, -more)
        for size, more in zip(sizes[1:], (top + bottom, left + right), strict=True)
    )
    return (sizes[0], *rest)


def _upsample(x: Tensor, rows: int, columns: int) -> Tensor:
    _images("upsample", x)
    return x.movedim(2, -1).repeat_interleave(rows, 2).repeat_interleave(columns, 3).movedim(-1, 2)


def _upsampled(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    return (sizes[0], *(size.times(factor) for size, factor in zip(sizes[1:], numbers, strict=True)))


def _resize(x: Tensor, height: int, width: int) -> Tensor:
    _images("resize", x)
    rows, columns = _nearest(x.shape[3], height, x), _nearest(x.shape[4], width, x)
    return x.movedim(2, -1).index_select(2, rows).index_select(3, columns).movedim(-1, 2)


def _nearest(before: int, after: int, x: Tensor) -> Tensor:
    """Return which line of an image F.interpolate takes for each line of the result."""
    lines = torch.arange(before, dtype=torch.float32, device=x.device).view(1, 1, -1)
    return F.interpolate(lines, after, mode="nearest").flatten().long()


def _resized(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    return (sizes[0], *(size.fixed(n) for size, n in zip(sizes[1:], numbers, strict=True)))


def _pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    _images("pixel_shuffle", x)
    _check_multiple("channels", x.shape[2], factor * factor)
    return F.pixel_shuffle(x, factor)


def _shuffled(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    (factor,) = numbers
    return (sizes[0].over(factor**2, "channels"), *(size.times(factor) for size in sizes[1:]))


def _pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    _images("pixel_unshuffle", x)
    for name, size in (("height", x.shape[3]), ("width", x.shape[4])):
        _check_multiple(name, size, factor)
    return F.pixel_unshuffle(x, factor)


def _unshuffled(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    (factor,) = numbers
    return (sizes[0].times(factor**2), *(size.over(factor, "an image side") for size in sizes[1:]))


# -- channels


def _channel_shuffle(x: Tensor, groups: int) -> Tensor:
    _check_multiple("channels", x.shape[2], groups)
    last = x.movedim(2, -1)
    return last.reshape(*last.shape[:-1], groups, -1).transpose(-1, -2).flatten(-2).movedim(-1, 2)


def _in_groups(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    sizes[0].over(numbers[0], "channels")
    return sizes


def _channels(x: Tensor, start: int, stop: int) -> Tensor:
    if not 0 <= start < stop <= x.shape[2]:
        raise ValueError(
            f"SpikeRearrange: channels must be 0 <= start < stop <= {x.shape[2]}, got start={start}, stop={stop}"
        )
    return x[:, :, start:stop]


def _selected(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    start, stop = numbers
    if sizes[0].exact and stop > sizes[0].least:
        raise ValueError(f"channels must be at least {stop}, got {sizes[0]}")
    return (Size(stop - start, True), *sizes[1:])


def _channel_pad(x: Tensor, before: int, after: int) -> Tensor:
    return F.pad(x.movedim(2, -1), (before, after)).movedim(-1, 2)


def _more_channels(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    return (Size(sizes[0].least + sum(numbers), sizes[0].exact), *sizes[1:])


# -- any dimension

END = 2**30
"""The end of a slice that goes to the last element."""


def _slice(x: Tensor, dim: int, start: int, stop: int, step: int) -> Tensor:
    if dim + 1 >= x.dim():
        raise ValueError(f"SpikeRearrange: input of 'slice' must have dimension {dim}, got {list(x.shape[1:])}")
    count = len(range(x.shape[dim + 1])[start:stop:step])
    if not count:
        raise ValueError(
            f"SpikeRearrange: slice {start}:{'' if stop == END else stop}:{step} of dimension {dim} must not be empty, "
            f"got {list(x.shape[1:])}"
        )
    return x[(slice(None),) * (dim + 1) + (slice(start, stop, step),)]


def _sliced(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    dim, start, stop, step = numbers
    if dim > len(sizes):
        raise ValueError(f"input must have dimension {dim}, got {1 + len(sizes)} dimensions")
    size = sizes[dim - 1]

    def length(n: int) -> int:
        return len(range(n)[start:stop:step])

    if size.exact and not length(size.least):
        raise ValueError(f"a slice of dimension {dim} must not be empty, got {start}:{stop}:{step} of {size}")
    if start >= 0 and (stop == END or stop < 0):
        cut = start - (0 if stop == END else stop)
        part = size.at_least(cut + 1).through(length, step, cut - step + 1)
    else:  # the result grows no further where the image does
        part = size.fixed(max(length(size.least), 1), size.exact, regular=False)
    return (*sizes[: dim - 1], part, *sizes[dim:])


def _flatten(x: Tensor) -> Tensor:
    return x.flatten(2)


def _flat(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    product = Size(1, True)
    for size in sizes:
        product = Size(product.least * size.least, product.exact and size.exact)
    return (product,)


def _unflatten(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    if x.dim() != 3 or x.shape[2] != channels * height * width:
        expected = f"[N, {channels} * {height} * {width}]"
        raise ValueError(f"SpikeRearrange: input of 'unflatten' must be {expected}, got {list(x.shape[1:])}")
    image = x.view(*x.shape[:2], channels, height * width).transpose(2, 3).contiguous()
    return image.view(*x.shape[:2], height, width, channels).movedim(-1, 2)


def _unflat(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    channels, height, width = numbers
    sizes[0].check("features", channels * height * width)
    return Size(channels, True), Size(height, True), Size(width, True)


def _unsqueeze(x: Tensor) -> Tensor:
    if x.dim() != 4:
        raise ValueError(f"SpikeRearrange: input of 'unsqueeze' must be [N, C, L], got {list(x.shape[1:])}")
    return x.unsqueeze(3)


def _taller(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    return (sizes[0], Size(1, True), *sizes[1:])


def _in_place(x: Tensor, dim: int) -> Tensor:
    return x


def _as_before(sizes: Sizes, numbers: Sequence[int]) -> Sizes:
    return sizes


MOVEMENTS: dict[str, Movement] = {
    "zero_pad": Movement(_zero_pad, 4, None, _padded, (3,)),
    "reflect_pad": Movement(_mirror_pad("reflect"), 4, 0, _padded, (3,)),
    "replicate_pad": Movement(_mirror_pad("replicate"), 4, 0, _padded, (3,)),
    "circular_pad": Movement(_mirror_pad("circular"), 4, 0, _padded, (3,)),
    "upsample": Movement(_upsample, 2, 1, _upsampled, (3,)),
    "resize": Movement(_resize, 2, 1, _resized, (3,)),
    "pixel_shuffle": Movement(_pixel_shuffle, 1, 1, _shuffled, (3,)),
    "pixel_unshuffle": Movement(_pixel_unshuffle, 1, 1, _unshuffled, (3,)),
    "channel_shuffle": Movement(_channel_shuffle, 1, 1, _in_groups),
    "channels": Movement(_channels, 2, 0, _selected),
    "channel_pad": Movement(_channel_pad, 2, 0, _more_channels),
    "slice": Movement(_slice, 4, None, _sliced),
    "flatten": Movement(_flatten, 0, 0, _flat),
    "unflatten": Movement(_unflatten, 3, 1, _unflat, (1,)),
    "unsqueeze": Movement(_unsqueeze, 0, 0, _taller, (2,)),
    "pairs": Movement(_in_place, 1, None, _as_before),
}
