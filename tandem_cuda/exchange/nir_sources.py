"""Where the values of a network come from: the outputs of NIR's nodes, which may be concatenated and rearranged.

NIR has no node that concatenates, selects, shuffles or pads. All of these only move values, so they can be moved into
the weights that read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.nir import NirGeometry, dense, image


class NirSource(NamedTuple):
    """What a value takes from one place of the graph; a value is the sum of its sources."""

    nodes: tuple[str, ...]
    """The nodes whose outputs add up."""
    shape: tuple[int, ...]
    """The shape of their outputs."""
    position: Tensor | None = None
    """1 + the flat position in these outputs of each element of the value, or 0 for none; None: all, in their order."""
    weight: Tensor | None = None
    """The factor of each element of the value, float64; None for 1."""
    part: tuple[int, int] | None = None
    """The value's channels that come from here: the first, and the last + 1; None for all."""

    def alone(self, shape: Sequence[int]) -> tuple[NirSource, tuple[int, ...]]:
        """Return the source of ``part`` alone, and its shape, for a value of this shape."""
        if self.part is None:
            return self, tuple(shape)
        return self._replace(part=None), (self.part[1] - self.part[0], *shape[1:])

    def positions(self, shape: Sequence[int]) -> Tensor:
        """Return ``position`` for a value of this shape."""
        return torch.arange(1, math.prod(shape) + 1).view(*shape) if self.position is None else self.position

    def moved(self, shape: Sequence[int], move: Callable[[Tensor], Tensor]) -> NirSource:
        """Return the source of what ``move`` makes of a value of this shape: it moves, copies, drops or adds zeros."""
        source, own = self.alone(shape)
        start, stop = self.part or (0, own[0])
        around = (*[0] * (2 * len(own) - 2), start, shape[0] - stop)
        weight = None if source.weight is None else move(F.pad(source.weight, around))
        return source._replace(position=move(F.pad(source.positions(own), around)), weight=weight)

    def times(self, factor: Tensor) -> NirSource:
        """Multiply the value by a factor of its shape."""
        factor = factor if self.part is None else factor[slice(*self.part)]
        return self._replace(weight=factor if self.weight is None else self.weight * factor)

    def flattened(self, shape: Sequence[int], start: int, end: int) -> NirSource:
        """Return the source of a value of this shape whose dimensions from ``start`` to ``end`` are flattened."""
        part = self.part
        if part is not None and start == 0:
            size = math.prod(shape[1 : end + 1])
            part = part[0] * size, part[1] * size
        flat = [x if x is None else x.flatten(start, end) for x in (self.position, self.weight)]
        return self._replace(position=flat[0], weight=flat[1], part=part)

    def changed(self) -> bool:
        """Return whether elements have moved or have factors of their own."""
        return self[2:] != (None, None, None)

    def whole(self) -> bool:
        """Return whether the value is the nodes' output, up to its shape."""
        everything = self.part is None and (self.position is None or self._in_order())
        return everything and (self.weight is None or bool((self.weight == 1).all()))

    def _in_order(self) -> bool:
        position = self.positions(())
        return position.numel() == math.prod(self.shape) and torch.equal(
            position.flatten(), torch.arange(1, position.numel() + 1)
        )

    def features(self, weight: Tensor) -> Tensor:
        """Return the matrix [O, F'] for the nodes' outputs, given the matrix [O, F] for the value."""
        if self.part is not None:
            source, _ = self.alone(weight.shape[1:])
            return source.features(weight[:, slice(*self.part)])
        if self.whole():
            return weight
        used = self.positions(weight.shape[1:]) > 0
        index = self.positions(weight.shape[1:])[used] - 1
        factor = 1 if self.weight is None else self.weight[used].to(weight.dtype)
        return weight.new_zeros(len(weight), math.prod(self.shape)).index_add_(1, index, weight[:, used] * factor)


class NirConvolution(NamedTuple):
    """A convolution as NIR has it, with equal padding on both sides; or a matrix, which is one of single pixels."""

    weight: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class _Channels(NamedTuple):
    """How the channels of an image read channels of a node: pixel i of channel c is pixel i * step + offset[c]."""

    used: Tensor
    """The channels [C] that read any."""
    channel: Tensor
    """Which one, [C]."""
    step: tuple[int, int]
    offset: tuple[Tensor, Tensor]
    """[C] each."""
    factor: Tensor
    """[C]."""


def convolution(source: NirSource, shape: Sequence[int], weight: Tensor, how: NirGeometry) -> NirConvolution | None:
    """Return the convolution of the nodes' outputs that equals a convolution of the value, or None if there is none.

    Args:
        source: a source of the value.
        shape: the shape of the value, [C, L] or [C, H, W].
        weight: [O, C/groups, kH, kW].
        how: which pixels it reads.
    """
    if source.part is not None:
        weight, how = dense(weight, how.groups)[:, slice(*source.part)], how._replace(groups=1)
        source, shape = source.alone(shape)
    node, value = image(source.shape), image(shape)
    channels, *size = node
    if source.whole() and node == value:
        return _placed(weight, how, size)
    reach = [
        (max(b, 0), max(s * (o - 1) - b + d * (k - 1) - n + 1, 0))
        for s, b, d, k, o, n in zip(
            how.stride, how.before, how.dilation, weight.shape[2:], how.size, value[1:], strict=True
        )
    ]
    reads = _channels(source, node, value, reach)
    if reads is None:
        return None
    lowest = [int(offset[reads.used].min()) for offset in reads.offset]
    highest = [int(offset[reads.used].max()) for offset in reads.offset]
    taps = [step * d for step, d in zip(reads.step, how.dilation, strict=True)]
    span = [
        t * (k - 1) + high - low + 1 for t, k, low, high in zip(taps, weight.shape[2:], lowest, highest, strict=True)
    ]
    how = how._replace(
        stride=_pair(s * step for s, step in zip(how.stride, reads.step, strict=True)),
        before=_pair(b * step - low for b, step, low in zip(how.before, reads.step, lowest, strict=True)),
        named="",
    )
    alike = bool(reads.used.all()) and bool((reads.factor == 1).all()) and lowest == highest
    if alike and value[0] == channels and torch.equal(reads.channel, torch.arange(channels)):
        return _placed(weight, how._replace(dilation=_pair(taps)), size)
    weight = dense(weight, how.groups) * reads.factor.to(weight.dtype).view(-1, 1, 1)
    if lowest == highest:
        spread = weight.new_zeros(len(weight), channels, *weight.shape[2:])
        spread.index_add_(1, reads.channel[reads.used], weight[:, reads.used])
        return _placed(spread, how._replace(dilation=_pair(taps), groups=1), size)
    spread = weight.new_zeros(len(weight), channels, *span)
    places = torch.stack(reads.offset, 1)
    for place in torch.unique(places[reads.used], dim=0):
        here = reads.used & (places == place).all(1)
        rows, columns = (
            slice(first, first + t * (k - 1) + 1, t)
            for first, t, k in zip((place - torch.tensor(lowest)).tolist(), taps, weight.shape[2:], strict=True)
        )
        spread[:, :, rows, columns].index_add_(1, reads.channel[here], weight[:, here])
    return _placed(spread, how._replace(dilation=(1, 1), groups=1), size)


def is_image(source: NirSource, shape: Sequence[int]) -> bool:
    """Return whether some convolution of the nodes' outputs is the value, [C, L] or [C, H, W]."""
    source, shape = source.alone(shape)
    node, value = image(source.shape), image(shape)
    return (source.whole() and node == value) or _channels(source, node, value, [(0, 0), (0, 0)]) is not None


class Plane(NamedTuple):
    """What a channel of a value reads in one channel of a node: rows @ image @ columns.T."""

    to: int
    channel: int
    rows: Tensor
    columns: Tensor


def planes_of(source: NirSource, shape: Sequence[int]) -> list[Plane] | None:
    """Return what each channel of a value [C, ...] reads, or None if rows do not move together, or columns do not."""
    node, value = image(source.shape), image(shape)
    index, planes = source.positions(value).reshape(*value) - 1, []
    if source.weight is not None:
        return None
    of, row, column = (index // (node[1] * node[2]), index // node[2] % node[1], index % node[2])
    for to in range(value[0]):
        active = index[to] >= 0
        for channel in torch.unique(of[to][active]).tolist():
            here = active & (of[to] == channel)
            down = torch.where(here, row[to], -1).amax(1)
            right = torch.where(here, column[to], -1).amax(0)
            alike = torch.equal(here, (down >= 0).unsqueeze(1) & (right >= 0)) and bool(
                ((row[to] == down.unsqueeze(1)) & (column[to] == right))[here].all()
            )
            if not alike:
                return None
            rows, columns = (
                (at.unsqueeze(1) == torch.arange(n)).float() for at, n in ((down, node[1]), (right, node[2]))
            )
            planes.append(Plane(to, channel, rows, columns))
    return planes


class Channels(NamedTuple):
    """A value whose channels are channels of a node, each with a factor."""

    channel: Tensor
    """1 + the node's channel that each channel of the value reads, or 0 for none; [C]."""
    factor: Tensor
    """[C]."""
    part: tuple[int, int] | None
    """As ``part`` of a source."""

    def source(self, of: NirSource, shape: Sequence[int]) -> NirSource:
        """Return the source of a value of this shape, like this one, of other nodes with as many channels."""
        of, own = of._replace(part=self.part).alone(shape)
        everything = torch.equal(self.channel, torch.arange(1, of.shape[0] + 1))
        if everything and bool((self.factor == 1).all()):
            return of._replace(part=self.part)
        first = (self.channel - 1) * math.prod(own[1:]) + 1
        position = torch.where(self.channel > 0, first, 0).view(-1, 1) + torch.arange(math.prod(own[1:]))
        position = torch.where(self.channel.view(-1, 1) > 0, position, 0).view(*own)
        factor = self.factor.view(-1, *[1] * (len(own) - 1)).expand(*own)
        return NirSource(of.nodes, of.shape, position, None if bool((self.factor == 1).all()) else factor, self.part)


def channels_of(source: NirSource, shape: Sequence[int]) -> Channels | None:
    """Return how the channels of a value are channels of a node, or None if they are not."""
    part = source.part
    source, shape = source.alone(shape)
    node, value = image(source.shape), image(shape)
    if node[1:] != value[1:]:
        return None
    reads = _channels(source, node, value, [(0, 0), (0, 0)])
    if reads is None or any(bool(offset[reads.used].any()) for offset in reads.offset):
        return None
    channel = torch.where(reads.used, reads.channel + 1, 0)
    return Channels(channel, torch.where(reads.used, reads.factor, 1.0), part)


def _channels(
    source: NirSource, node: Sequence[int], value: Sequence[int], reach: Sequence[tuple[int, int]]
) -> _Channels | None:
    """Find how the value's channels read the node's; None if no rule holds for all pixels, also within ``reach``.

    A convolution also reads ``reach`` pixels around the value: zeros, which must be beyond the node's image, too.
    """
    _, height, width = node
    index = source.positions(value).reshape(*value)
    active = index > 0
    used = active.flatten(1).any(1)
    if not bool(used.any()):
        return None
    step = _pair(_step(index, node, dim) for dim in (1, 2))
    at = torch.where(active, torch.arange(math.prod(value[1:])).view(1, *value[1:]), math.prod(value[1:]))
    first = at.flatten(1).amin(1).clamp(max=math.prod(value[1:]) - 1)
    position = torch.where(used, index.flatten(1).gather(1, first.unsqueeze(1)).squeeze(1) - 1, 0)
    channel = position // (height * width)
    offset = (
        position // width % height - step[0] * (first // value[2]),
        position % width - step[1] * (first % value[2]),
    )
    (top, bottom), (left, right) = reach
    rows = offset[0].unsqueeze(1) + step[0] * torch.arange(-top, value[1] + bottom)
    columns = offset[1].unsqueeze(1) + step[1] * torch.arange(-left, value[2] + right)
    inside = ((rows >= 0) & (rows < height)).unsqueeze(2) & ((columns >= 0) & (columns < width)).unsqueeze(1)
    place = channel.view(-1, 1, 1) * height * width + rows.unsqueeze(2) * width + columns.unsqueeze(1) + 1
    expected = torch.where(inside & used.view(-1, 1, 1), place, 0)
    if not torch.equal(F.pad(index, (left, right, top, bottom)), expected):
        return None
    factor = torch.ones(value[0], dtype=torch.float64)
    if source.weight is not None:
        weight = source.weight.reshape(*value)
        factor = torch.where(used, weight.flatten(1).gather(1, first.unsqueeze(1)).squeeze(1), 0.0)
        if not torch.equal(torch.where(active, weight, 0.0), torch.where(active, factor.view(-1, 1, 1), 0.0)):
            return None
    return _Channels(used, channel, step, offset, factor)


def _step(index: Tensor, node: Sequence[int], dim: int) -> int:
    """Return the distance in the node of neighbouring rows (``dim`` 1) or columns (2) of the value."""
    _, height, width = node
    position = (index - 1) // width % height if dim == 1 else (index - 1) % width
    count = index.shape[dim] - 1
    near, far = (index.narrow(dim, start, count) > 0 for start in (0, 1))
    both = near & far
    if not bool(both.any()):  # so far apart that no second one is within the node
        return height if dim == 1 else width
    steps = position.narrow(dim, 1, count) - position.narrow(dim, 0, count)
    return max(int(steps[both][0]), 1)


def _placed(weight: Tensor, how: NirGeometry, size: Sequence[int]) -> NirConvolution:
    """Pad evenly: zeros in the kernel skip padding in front, or keep the number of windows."""
    if how.named:
        return NirConvolution(weight, how.stride, how.named, how.dilation, how.groups)
    padding, extra = [], []
    spans = [d * (k - 1) + 1 for d, k in zip(how.dilation, weight.shape[2:], strict=True)]
    for n, k, s, before, out in zip(size, spans, how.stride, how.before, how.size, strict=True):
        behind = (out - 1) * s - before + k - n
        most = max(before, behind, 0)
        padding.append(most)
        extra.append((most - before, (most - behind) // s * s))
    if any(any(more) for more in extra):
        spread = weight.new_zeros(*weight.shape[:2], *spans)
        spread[..., :: how.dilation[0], :: how.dilation[1]] = weight
        weight = F.pad(spread, (*extra[1], *extra[0]))
        how = how._replace(dilation=(1, 1))
    return NirConvolution(weight, how.stride, _pair(padding), how.dilation, how.groups)


def _pair(values: Iterable[int]) -> tuple[int, int]:
    first, second = values
    return first, second
