"""What only moves values in a NIR graph: encoding, decoding, concatenations, rearrangements. They are no nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.nir import Shape
from ..spike_train import interleaved, signs
from .nir_builder import Builder, Signal, are_images, shape_of
from .nir_nodes import flatten_node
from .nir_sources import NirSource, is_image

_FLAT_NEXT = "must be followed by flattening to [N, F]: NIR has no other node for it"


class Moves(Builder):
    """The part of a :class:`~tandem_cuda.nn.nir.NirWriter` that adds no nodes, except for flattening."""

    def _spikes(self, sources: Sequence[NirSource], why: str = "") -> Signal:
        """Return the layer's output."""
        return Signal(tuple(sources), self.out, "spikes", self.out.amplitude, why)

    def encoded(self, signal: Signal, time_steps: int, mode: str, scale: float) -> Signal:
        if self.encoding not in (None, (time_steps, mode)):
            self._refuse(self.at, f"T and mode must be {self.encoding}, as in the other Encode")
        if mode == "radix":
            self._refuse(self.at, "mode must be 'constant' or 'impulse', since all spikes weigh the same in NIR")
        self.encoding = time_steps, mode
        return signal._replace(value=self.out, kind="encoded", gain=scale)

    def decoded(self, signal: Signal, pair_dim: int | None, scale: Tensor | None) -> Signal:
        if len(signal.shape) > 1 and not are_images(signal.sources, signal.shape):
            signal = self._as_images(self.at, signal) or signal  # before they have signs and factors
        sources: Sequence[NirSource] = signal.sources
        if pair_dim is not None:
            axis = _axis(pair_dim)
            positive = [source.moved(signal.shape, lambda x: signs(x, axis)[0]) for source in sources]
            negative = [source.moved(signal.shape, lambda x: signs(x, axis)[1]) for source in sources]
            minus = torch.full(self.shape, -1.0, dtype=torch.float64)
            sources = _used([*positive, *(source.times(minus) for source in negative)])
        if scale is not None:
            sources = [source.times(scale.detach().cpu().double()) for source in sources]
        return signal._replace(sources=tuple(sources), value=self.out, kind="current")

    def concatenated(self, signals: Sequence[Signal], silent: Sequence[bool], pair_dim: int | None) -> Signal:
        sources, start = [], 0

        def with_silent(x: Tensor) -> Tensor:
            return interleaved(x, torch.zeros_like(x), _axis(pair_dim or 1))

        for signal, adds in zip(signals, silent, strict=True):
            own = signal.sources
            channels, *size = signal.shape
            if adds:
                own = tuple(source.moved((channels, *size), with_silent) for source in own)
                channels *= 2 if pair_dim == 1 else 1
            for source in own:
                first, last = source.part or (0, channels)
                sources.append(source._replace(part=(start + first, start + last)))
            start += channels
        return self._spikes(sources, first_why(signals))

    def _padded(
        self, signal: Signal, pad: Any = (), mode: str = "constant", value: Any = None, **others: Any
    ) -> Signal:
        """Pad the input with zeros."""
        if signal.kind != "real" or mode != "constant" or value or not all(type(n) is int for n in pad):
            raise self._refusal(self.at, "it must pad the model's input with zeros, by numbers and before Encode")
        sources = [source.moved(signal.shape, lambda x: F.pad(x, [*pad])) for source in signal.sources]
        return signal._replace(sources=tuple(sources), value=F.pad(signal.value, [*pad]), why=_FLAT_NEXT)

    def rearranged(self, signal: Signal, move: Callable[[Tensor], Tensor], own: bool = True) -> Signal:
        if signal.kind != "spikes":
            problem = f"it must read spikes, which NIR can move like this, got {signal.kind} input"
            raise self._refusal(self.at, problem)
        value = self.out if own else signal.value.rearranged(move)
        shape, after = signal.shape, shape_of(value)

        def moved(source: NirSource) -> NirSource:
            return source.moved(shape, lambda x: move(x[None, None])[0, 0])

        sources = _used([moved(source) for source in signal.sources])
        # What NIR can express before this it may not express after it, such as cropping before padding.
        images = len(after) > 1 and is_image(moved(NirSource((), shape)), after)
        if images and not are_images(sources, after) and are_images(signal.sources, shape):
            sources = [moved(source) for source in self._as_node(self.at, signal).sources]
        why = signal.why or f"{self.at.what} before it {_FLAT_NEXT}"
        return Signal(self._flat(sources, len(after)), value, "spikes", value.amplitude, why)

    def _flatten(self, signal: Signal, start_dim: int | None = None, end_dim: int = -1) -> Signal:
        value, shape = signal.value, signal.shape
        if start_dim is None:
            start_dim = 0 if isinstance(value, Tensor) else 1
        start, end = (dim % (len(shape) + 1) for dim in (start_dim, end_dim))
        if start == 0:
            raise self._refusal(self.at, f"start_dim must leave the batch dimension alone, got {start_dim}")
        out = value.flatten(start, end)
        if start == end:
            return signal._replace(value=out)
        sources = [source.flattened(shape, start - 1, end - 1) for source in signal.sources]
        alike = all(len(source.shape) == len(shape) for source in sources)
        between = (start - 1, end - 1) if alike else None
        return signal._replace(sources=self._flat(sources, len(shape_of(out)), between), value=out)

    def _flat(
        self, sources: Sequence[NirSource], dims: int, between: tuple[int, int] | None = None
    ) -> tuple[NirSource, ...]:
        """Flatten outputs of nodes that have more dimensions: ``between`` two, or the last ones."""
        made: dict[tuple[str, ...], tuple[tuple[str, ...], Shape]] = {}
        flat = []
        for source in sources:
            if len(source.shape) > dims:
                if source.nodes not in made:
                    node, shape = flatten_node(source.shape, *(between or (dims - 1, len(source.shape) - 1)))
                    made[source.nodes] = (self.put(self.at.name, node, source.nodes),), shape
                nodes, shape = made[source.nodes]
                source = source._replace(nodes=nodes, shape=shape)
            flat.append(source)
        return tuple(flat)


def first_why(signals: Sequence[Signal]) -> str:
    """Return the first reason why only flattening may follow; "" if there is none."""
    return next((signal.why for signal in signals if signal.why), "")


def _axis(pair_dim: int) -> int:
    """Return the dimension of a value without the batch that is ``pair_dim`` of [N, ...]."""
    return 0 if pair_dim == 1 else -1


def _used(sources: Sequence[NirSource]) -> Sequence[NirSource]:
    """Leave out sources that nothing reads any more, but one."""
    return [source for source in sources if source.position is None or bool((source.position > 0).any())] or sources[:1]
