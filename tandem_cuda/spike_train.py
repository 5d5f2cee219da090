"""SpikeTrain: the spikes of a layer over T time steps, eight steps to a byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from . import ops
from .events import event_planes
from .ops import checks


class SpikeTrain:
    """The spikes that flow between tandem layers, and the count that carries the tandem gradient.

    Registered as a pytree, so it passes through ``torch.compile``, ``functional_call`` and friends.

    Args:
        bits: uint8 [P, N, ...], P = ceil(T / 8): bit i of plane p is the spike at time step 8p + i; bits past
            T are zero.
        time_steps: T.
        count: floating point [N, ...]: spikes per neuron, differentiable. Computed from ``bits`` when first asked for
            if it is not given; such a count has no gradient.
        dtype: of a count computed later; by default torch's default dtype.
        amplitude: what one spike weighs in the layer behind, whose input is ``amplitude * s[t]``, and in ``Decode``. 1,
            but 1 / (1 - p) behind dropout, and a threshold where a network was converted with calibration. ``count``
            counts spikes, whatever they weigh.

    Raises:
        TypeError: ``bits`` is no uint8 tensor, ``count`` none of float32 or float64.
        ValueError: ``bits`` or ``count`` do not have the shape that ``time_steps`` and each other demand, or are on
            different devices; ``amplitude`` is not positive and finite.
    """

    __slots__ = ("_count", "_dtype", "amplitude", "bits", "time_steps")

    def __init__(
        self,
        bits: Tensor,
        time_steps: int,
        count: Tensor | None = None,
        dtype: torch.dtype | None = None,
        *,
        amplitude: float = 1.0,
    ) -> None:
        checks.check_train("SpikeTrain", bits, time_steps)
        if count is not None:
            checks.check_floating("SpikeTrain", "count", count)
            checks.check_same_device("SpikeTrain", "count", count, bits, "bits")
            checks.check_shape("SpikeTrain", "count", count, bits.shape[1:])
        self.bits = bits
        checks.check_number("SpikeTrain", "amplitude", amplitude)
        if not 0 < amplitude < math.inf:
            raise ValueError(f"SpikeTrain: amplitude must be positive and finite, got {amplitude}")
        self.time_steps = time_steps
        self.amplitude = amplitude
        self._count = count
        self._dtype = count.dtype if count is not None else dtype or torch.get_default_dtype()
        checks.check_dtype("SpikeTrain", "dtype", self._dtype)

    @classmethod
    def from_dense(cls, spikes: Tensor, dtype: torch.dtype | None = None) -> SpikeTrain:
        """Pack a dense train.

        Args:
            spikes: [T, N, ...] of 0 and 1; floating point, bool or uint8.
            dtype: of ``count``; by default that of ``spikes`` if it is float32 or float64, else torch's default dtype.

        Raises:
            TypeError: ``spikes`` is not a tensor of such a dtype.
            ValueError: ``spikes`` has fewer than two dimensions or no time step.
            RuntimeError: an element is neither 0 nor 1 (checked on the CPU).
        """
        bits = ops.pack_spikes(spikes)
        if dtype is None:
            dtype = spikes.dtype if spikes.dtype in (torch.float32, torch.float64) else torch.get_default_dtype()
        return cls(bits, spikes.shape[0], dtype=dtype)

    @classmethod
    def from_events(
        cls,
        t: Any,
        x: Any,
        y: Any,
        p: Any = None,
        *,
        time_steps: int,
        size: int | Sequence[int],
        window: tuple[float, float] | None = None,
        downsample: int = 1,
        dtype: torch.dtype | None = None,
    ) -> SpikeTrain:
        """Bin a recording of an event camera into time steps, directly into bit planes.

        A neuron spikes in a step if one or more events of its pixels and polarity fall into it. Step i (from 0 on)
        takes the times from start + i * (stop - start) / T, inclusive, to start + (i + 1) * (stop - start) / T,
        exclusive.

        Args:
            t: [E] times of E events, in any order and unit; integers or floating point.
            x: [E] columns, integers in [0, W).
            y: [E] rows, integers in [0, H).
            p: [E] polarities, 0 and 1 or bool, which become channels; None makes one channel of all events.
            time_steps: T.
            size: H and W of the sensor, an int or a pair.
            window: start and stop in the unit of ``t``; other events are left out. By default from the first event to
                the last (of integers: to the end of that tick).
            downsample: blocks of this many rows and columns are one pixel; those at the border may be smaller.
            dtype: of ``count``; by default torch's default dtype.

        Arguments of one dimension may be numpy arrays, CPU Tensors or lists.

        Returns:
            A train of one sample on the CPU, [1, C, ceil(H / downsample), ceil(W / downsample)]; without events it has
            no spikes. For a batch: ``SpikeTrain(torch.cat([train.bits for train in trains], 1), T)``.

        Raises:
            TypeError: an argument of the wrong type, dtype or number of dimensions.
            ValueError: events of different number; a coordinate or polarity out of its range; a time that is not
                finite; ``time_steps``, ``size``, ``window`` or ``downsample`` out of its range.
        """
        return cls(event_planes(t, x, y, p, time_steps, size, window, downsample), time_steps, dtype=dtype)

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Unpack to [T, N, ...] of 0 and 1, by default in the dtype of ``count``."""
        return ops.unpack_spikes(self.bits, self.time_steps, dtype or self.dtype)

    @property
    def count(self) -> Tensor:
        """Spikes per neuron over all time steps, [N, ...]; carries the tandem gradient."""
        if self._count is None:
            self._count = ops.spike_count(self.bits, self._dtype)
        return self._count

    @property
    def carried_count(self) -> Tensor | None:
        """``count`` where it exists already, else None: asks for no computation."""
        return self._count

    @property
    def shape(self) -> torch.Size:
        """[N, ...]: the batch and the neurons, without time."""
        return self.bits.shape[1:]

    @property
    def device(self) -> torch.device:
        """Device of the spikes."""
        return self.bits.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of ``count``."""
        return self._dtype

    def flatten(self, start_dim: int = 1, end_dim: int = -1) -> SpikeTrain:
        """Flatten dimensions of [N, ...], as ``torch.flatten`` does; time and batch stay apart.

        Raises:
            ValueError: the range would flatten the batch dimension, or ends before it starts.
            IndexError: a dimension that is not there.
        """
        dims = len(self.shape)
        for name, dim in (("start_dim", start_dim), ("end_dim", end_dim)):
            if not -dims <= dim < dims:
                raise IndexError(f"SpikeTrain.flatten: {name} must be from {-dims} to {dims - 1}, got {dim}")
        start, end = start_dim % dims, end_dim % dims
        if start == 0:
            raise ValueError(f"SpikeTrain.flatten: start_dim must leave the batch dimension alone, got {start_dim}")
        count = None if self._count is None else self._count.flatten(start, end)
        bits = self.bits.flatten(start + 1, end + 1)
        return SpikeTrain(bits, self.time_steps, count, self._dtype, amplitude=self.amplitude)

    def rearranged(self, f: Callable[[Tensor], Tensor]) -> SpikeTrain:
        """The train of other neurons, chosen and placed by ``f``; the gradient of their counts follows.

        Args:
            f: given the bits [P, N, ...] or the count as [1, N, ...], returns the same of the new neurons. It must do
                nothing but move, copy, drop or zero elements.
        """
        count = None if self._count is None else f(self._count.unsqueeze(0)).squeeze(0)
        return SpikeTrain(f(self.bits), self.time_steps, count, self._dtype, amplitude=self.amplitude)

    def window(self, start: int, stop: int) -> SpikeTrain:
        """The spikes of time steps start+1 to stop, as a train of stop - start steps; its count has no gradient.

        Raises:
            TypeError: no ints.
            ValueError: no step, or steps outside of the train.
        """
        for name, step in (("start", start), ("stop", stop)):
            if isinstance(step, bool) or not isinstance(step, int):
                raise TypeError(f"SpikeTrain.window: {name} must be an int, got {type(step).__name__}")
        if not 0 <= start < stop <= self.time_steps:
            raise ValueError(
                f"SpikeTrain.window: start and stop must be 0 <= start < stop <= {self.time_steps}, got {start}, {stop}"
            )
        steps, (first, shift) = stop - start, divmod(start, 8)
        planes = checks.planes_for(steps)
        bits = self.bits[first : first + planes] >> shift
        if shift:
            following = self.bits[first + 1 : first + 1 + planes]
            bits[: len(following)] |= following << (8 - shift)
        if steps % 8:
            bits[-1] &= (1 << steps % 8) - 1
        return SpikeTrain(bits, steps, dtype=self._dtype, amplitude=self.amplitude)

    def to(self, *args: Any, **kwargs: Any) -> SpikeTrain:
        """Move to a device and/or cast ``count``; arguments of ``Tensor.to``. The spikes stay uint8."""
        count = self.count.to(*args, **kwargs)
        return SpikeTrain(self.bits.to(count.device), self.time_steps, count, amplitude=self.amplitude)

    def detach(self) -> SpikeTrain:
        """The same spikes, their count cut off from the graph."""
        count = None if self._count is None else self._count.detach()
        return SpikeTrain(self.bits, self.time_steps, count, self._dtype, amplitude=self.amplitude)

    def firing_rate(self) -> Tensor:
        """Mean spikes per neuron and time step, a scalar in [0, 1] (nan for an empty train)."""
        return self.count.detach().mean() / self.time_steps

    def __len__(self) -> int:
        return self.bits.shape[1]

    def __repr__(self) -> str:
        shape = ", ".join(str(size) for size in self.shape)
        amplitude = "" if self.amplitude == 1 else f", amplitude={self.amplitude}"
        return (
            f"SpikeTrain([{shape}], time_steps={self.time_steps}, dtype={self.dtype}, device={self.device}{amplitude})"
        )


_Context = tuple[int, torch.dtype, float]


def _flatten(train: SpikeTrain) -> tuple[list[Any], _Context]:
    return [train.bits, train.carried_count], (train.time_steps, train.dtype, train.amplitude)


def _unflatten(leaves: Any, context: _Context) -> SpikeTrain:
    # Leaves may be placeholders of any type while torch rearranges a tree: no checks here.
    train = SpikeTrain.__new__(SpikeTrain)
    train.bits, train._count = leaves
    train.time_steps, train._dtype, train.amplitude = context
    return train


_pytree.register_pytree_node(
    SpikeTrain,
    _flatten,
    _unflatten,
    serialized_type_name="tandem_cuda.SpikeTrain",
    to_dumpable_context=lambda context: [context[0], str(context[1]).removeprefix("torch."), context[2]],
    from_dumpable_context=lambda context: (context[0], getattr(torch, context[1]), context[2]),
)
