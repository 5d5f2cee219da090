"""SpikeTrain: the spikes of a layer over T time steps, eight steps per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.data._utils.collate import default_collate_fn_map  # documented under default_collate

from . import ops
from .events import event_planes
from .ops import checks


class SpikeCode(NamedTuple):
    """What the spikes of a train stand for, the same for all of its neurons.

    Examples:
        >>> SpikeTrain.from_dense(torch.ones(4, 2, 3)).code
        SpikeCode(amplitude=1.0, pair_dim=None)
    """

    amplitude: float = 1.0
    """The weight of one spike."""
    pair_dim: int | None = None
    """The dimension of [N, ...] along which neurons 2i and 2i + 1 are the positive and the negative part of value i.
    It is 1 or -1, or None if there are no pairs."""


class SpikeTrain:
    """The spikes that flow between tandem layers, with the count that carries the tandem gradient.

    SpikeTrain is registered as a pytree, so it works with ``torch.compile`` and ``functional_call``.

    Args:
        bits: uint8 [P, N, ...], P = ceil(T / 8): bit i of plane p is the spike at time step 8p + i. Bits past T must
            be zero. The CPU checks this; on CUDA, where a check would wait for the device, and in compiled or
            transformed (``torch.func``) code, such bits are cleared in a copy.
        time_steps: T.
        count: floating point [N, ...], the differentiable number of spikes per neuron. If omitted, it is computed from
            ``bits`` on first use and has no gradient.
        dtype: dtype of a count computed later; defaults to torch's default dtype.
        amplitude: the weight of one spike: the next layer's input is ``amplitude * s[t]``, and ``Decode`` returns
            ``amplitude * count``. It is 1 by default, 1 / (1 - p) after dropout, and a threshold in networks converted
            with calibration. ``count`` is the number of spikes for any amplitude.
        pair_dim: the dimension of [N, ...] along which neurons 2i and 2i + 1 are the positive and the negative part of
            one value, as in converted networks where no ReLU follows a layer: 1 for channels, or -1 for the features of
            a linear layer. By default there are no pairs. ``Decode`` returns differences of pairs, and layers that move
            or silence neurons keep both together.

    Raises:
        TypeError: ``bits`` is not a uint8 tensor, or ``count`` is not a float32 or float64 tensor.
        ValueError: the shapes of ``bits`` and ``count`` do not match ``time_steps`` or each other, or their devices
            differ; bits past T are set; ``amplitude`` is not positive and finite.

    Examples:
        >>> spikes = SpikeTrain.from_dense(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))  # [T, N, F]
        >>> spikes
        SpikeTrain([1, 2], time_steps=2, dtype=torch.float32, device=cpu)
        >>> spikes.bits
        tensor([[[3, 2]]], dtype=torch.uint8)
        >>> spikes.count
        tensor([[2., 1.]])
        >>> spikes.to_dense().shape
        torch.Size([2, 1, 2])
    """

    __slots__ = ("_count", "_dtype", "bits", "code", "time_steps")

    def __init__(
        self,
        bits: Tensor,
        time_steps: int,
        count: Tensor | None = None,
        dtype: torch.dtype | None = None,
        *,
        amplitude: float = 1.0,
        pair_dim: int | None = None,
    ) -> None:
        checks.check_train("SpikeTrain", bits, time_steps)
        if count is not None:
            checks.check_floating("SpikeTrain", "count", count)
            checks.check_same_device("SpikeTrain", "count", count, bits, "bits")
            checks.check_shape("SpikeTrain", "count", count, bits.shape[1:])
        checks.check_number("SpikeTrain", "amplitude", amplitude)
        if not 0 < amplitude < math.inf:
            raise ValueError(f"SpikeTrain: amplitude must be positive and finite, got {amplitude}")
        _check_pairs(bits, pair_dim)
        self._set(_ending(bits, time_steps), time_steps, count, dtype, SpikeCode(float(amplitude), pair_dim))
        checks.check_dtype("SpikeTrain", "dtype", self._dtype)

    def _set(self, bits: Any, time_steps: int, count: Any, dtype: torch.dtype | None, code: SpikeCode) -> None:
        """Set all fields; nothing else sets them."""
        self.bits = bits
        self.time_steps = time_steps
        self.code = code
        self._count = count
        # While torch processes a pytree, its leaves may have any type.
        self._dtype = count.dtype if isinstance(count, Tensor) else dtype or torch.get_default_dtype()

    @classmethod
    def unchecked(
        cls,
        bits: Any,
        time_steps: int,
        count: Any = None,
        dtype: torch.dtype | None = None,
        *,
        amplitude: float = 1.0,
        pair_dim: int | None = None,
    ) -> SpikeTrain:
        """Create a train as the constructor does, but without checks: for the results of this library's operators."""
        train = cls.__new__(cls)
        train._set(bits, time_steps, count, dtype, SpikeCode(amplitude, pair_dim))
        return train

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "code"}
        return None, fields | self.code._asdict()  # plain values, which torch.load(weights_only=True) reads

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        fields = state[1]
        fields["code"] = SpikeCode(fields.pop("amplitude"), fields.pop("pair_dim", None))  # earlier versions: no pairs
        for name, value in fields.items():
            setattr(self, name, value)

    @classmethod
    def from_dense(cls, spikes: Tensor, dtype: torch.dtype | None = None) -> SpikeTrain:
        """Create a train from a dense tensor of spikes.

        Args:
            spikes: [T, N, ...] of 0 and 1; floating point, bool or uint8.
            dtype: dtype of ``count``; defaults to the dtype of ``spikes`` if that is float32 or float64, otherwise to
                torch's default dtype.

        Raises:
            TypeError: ``spikes`` is not a tensor of one of these dtypes.
            ValueError: ``spikes`` has fewer than two dimensions or no time step.
            RuntimeError: an element is neither 0 nor 1 (checked on the CPU).
        """
        bits = ops.pack_spikes(spikes)
        if dtype is None:
            dtype = spikes.dtype if spikes.dtype in (torch.float32, torch.float64) else torch.get_default_dtype()
        checks.check_dtype("SpikeTrain", "dtype", dtype)
        return cls.unchecked(bits, spikes.shape[0], dtype=dtype)

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

        A neuron spikes in a time step if at least one event of its pixels and polarity falls into the step. Step i
        (counted from 0) covers the times from start + i * (stop - start) / T, inclusive, to
        start + (i + 1) * (stop - start) / T, exclusive.

        Args:
            t: [E] times of E events, in any order and unit; integers or floating point.
            x: [E] columns, integers in [0, W).
            y: [E] rows, integers in [0, H).
            p: [E] polarities, 0 and 1 or bool; each becomes a channel. With None all events share one channel.
            time_steps: T.
            size: H and W of the sensor, an int or a pair.
            window: start and stop in the unit of ``t``; events outside are dropped. Defaults to the time from the first
                event to the last one (for integer times, to the end of the last tick).
            downsample: merge blocks of this many rows and columns into one pixel; blocks at the border may be smaller.
            dtype: dtype of ``count``; defaults to torch's default dtype.

        ``t``, ``x``, ``y`` and ``p`` may be numpy arrays, CPU Tensors or lists.

        Returns:
            A train of one sample on the CPU, [1, C, ceil(H / downsample), ceil(W / downsample)]; without events it has
            no spikes. Use :meth:`cat` or the default collate of a DataLoader to batch several trains.

        Raises:
            TypeError: an argument of the wrong type, dtype or number of dimensions.
            ValueError: ``t``, ``x``, ``y`` and ``p`` of different lengths; a coordinate or polarity out of range; a
                time that is not finite; ``time_steps``, ``size``, ``window`` or ``downsample`` out of range.
        """
        dtype = dtype or torch.get_default_dtype()
        checks.check_dtype("SpikeTrain", "dtype", dtype)
        return cls.unchecked(event_planes(t, x, y, p, time_steps, size, window, downsample), time_steps, dtype=dtype)

    @staticmethod
    def cat(trains: Sequence[SpikeTrain]) -> SpikeTrain:
        """Concatenate trains along the batch dimension.

        The default collate of ``torch.utils.data.DataLoader`` does this to trains of one sample each.

        Args:
            trains: trains [N, ...] with equal time steps, neurons, amplitude, dtype and device. If all trains carry a
                count, so does the result.

        Raises:
            TypeError: an element is not a SpikeTrain.
            ValueError: ``trains`` is empty, or the trains do not match.
        """
        return _concatenated("SpikeTrain.cat", list(trains))

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Unpack to a dense tensor [T, N, ...] of 0 and 1, by default in the dtype of ``count``."""
        return ops.unpack_spikes(self.bits, self.time_steps, dtype or self.dtype)

    @property
    def count(self) -> Tensor:
        """Spikes per neuron over all time steps, [N, ...]. Carries the tandem gradient."""
        if self._count is None:
            self._count = ops.spike_count.trusted(self.bits, self._dtype)
        return self._count

    @property
    def carried_count(self) -> Tensor | None:
        """``count`` if it exists already, else None. Never computes it."""
        return self._count

    @property
    def amplitude(self) -> float:
        """The weight of one spike."""
        return self.code.amplitude

    @amplitude.setter
    def amplitude(self, amplitude: float) -> None:
        self.code = self.code._replace(amplitude=amplitude)

    @property
    def paired(self) -> bool:
        """Whether neurons 2i and 2i + 1 along ``pair_dim`` are the positive and the negative part of one value."""
        return self.code.pair_dim is not None

    @property
    def pair_dim(self) -> int | None:
        """The dimension of [N, ...] along which pairs lie, 1 or -1; None if there are no pairs."""
        return self.code.pair_dim

    @property
    def shape(self) -> torch.Size:
        """[N, ...]: batch and neurons, without the time dimension."""
        return self.bits.shape[1:]

    @property
    def device(self) -> torch.device:
        """Device of the spikes."""
        return self.bits.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of ``count``."""
        return self._dtype

    def replace(self, **changes: Any) -> SpikeTrain:
        """Return a train with some fields changed and all others kept.

        Args:
            changes: any of the constructor's arguments ``bits``, ``time_steps``, ``count``, ``dtype``, ``amplitude``
                and ``pair_dim``. A change of ``bits`` or ``time_steps`` drops the old count; pass a new count if it
                should carry a gradient. A change of ``dtype`` casts the count.

        Raises:
            TypeError: an unknown field, or a value of the wrong type.
            ValueError: inconsistent values, as in the constructor.
        """
        new = self.replace_unchecked(**changes)
        return SpikeTrain(new.bits, new.time_steps, new.carried_count, new.dtype, **new.code._asdict())

    def replace_unchecked(self, **changes: Any) -> SpikeTrain:
        """Work as ``replace``, but do not check the values: for tensors that this library made."""
        fields = {"bits": self.bits, "time_steps": self.time_steps, "dtype": self._dtype}
        fields |= self.code._asdict()
        unknown = changes.keys() - fields.keys() - {"count"}
        if unknown:
            raise TypeError(
                f"SpikeTrain.replace: changes must be among bits, time_steps, count, dtype, amplitude and pair_dim, "
                f"got {', '.join(sorted(unknown))}"
            )
        if self._count is not None and not changes.keys() & {"bits", "time_steps", "count"}:
            changes["count"] = self._count if "dtype" not in changes else self._count.to(changes["dtype"])
        return SpikeTrain.unchecked(**(fields | changes))

    def flatten(self, start_dim: int = 1, end_dim: int = -1) -> SpikeTrain:
        """Flatten dimensions of [N, ...], as ``torch.flatten`` does; time is not counted as a dimension.

        Raises:
            ValueError: the range includes the batch dimension, or ends before it starts.
            IndexError: a dimension is out of range.
        """
        dims = len(self.shape)
        for name, dim in (("start_dim", start_dim), ("end_dim", end_dim)):
            if not -dims <= dim < dims:
                raise IndexError(f"SpikeTrain.flatten: {name} must be from {-dims} to {dims - 1}, got {dim}")
        start, end = start_dim % dims, end_dim % dims
        if start == 0:
            raise ValueError(f"SpikeTrain.flatten: start_dim must leave the batch dimension alone, got {start_dim}")

        def flat(x: Tensor) -> Tensor:
            if start > 1 or self.code.pair_dim != 1:  # pairs along the last dimension stay side by side
                return x.flatten(start + 1, end + 1)
            positive, negative = signs(x, 2)
            return interleaved(positive.flatten(2, end + 1), negative.flatten(2, end + 1), 2)

        flattened = self.rearranged(flat)
        if self.code.pair_dim is None or len(flattened.shape) > 2:
            return flattened
        return flattened.replace_unchecked(pair_dim=1)

    def rearranged(self, f: Callable[[Tensor], Tensor]) -> SpikeTrain:
        """Return a train whose neurons ``f`` selects and rearranges; the gradient of the count follows them.

        Args:
            f: maps the bits [P, N, ...], or the count as [1, N, ...], to the new neurons' bits or count. It may only
                move, copy, drop or zero elements.
        """
        count = None if self._count is None else f(self._count.unsqueeze(0)).squeeze(0)
        return self.replace_unchecked(bits=f(self.bits), count=count)

    def window(self, start: int, stop: int) -> SpikeTrain:
        """Return the spikes of time steps start + 1 to stop as a train of stop - start steps, without a gradient.

        Raises:
            TypeError: ``start`` or ``stop`` is not an int.
            ValueError: the window is empty or exceeds the train.
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
        return self.replace_unchecked(bits=bits, time_steps=steps)

    def to(self, *args: Any, **kwargs: Any) -> SpikeTrain:
        """Move to a device and/or cast ``count``. Takes the arguments of ``Tensor.to``; the spikes stay uint8."""
        count = self.count.to(*args, **kwargs)
        return self.replace_unchecked(bits=self.bits.to(count.device), count=count)

    def pin_memory(self) -> SpikeTrain:
        """Return a copy in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        count = None if self._count is None else self._count.pin_memory()
        return self.replace_unchecked(bits=self.bits.pin_memory(), count=count)

    def detach(self) -> SpikeTrain:
        """Return the same spikes with their count detached from the graph."""
        count = None if self._count is None else self._count.detach()
        return self.replace_unchecked(count=count)

    def firing_rate(self) -> Tensor:
        """Return the mean number of spikes per neuron and time step, a scalar in [0, 1] (nan for an empty train)."""
        return self.count.detach().mean() / self.time_steps

    def __len__(self) -> int:
        return self.bits.shape[1]

    def __repr__(self) -> str:
        shape = ", ".join(str(size) for size in self.shape)
        amplitude = "" if self.amplitude == 1 else f", amplitude={self.amplitude}"
        amplitude += f", pair_dim={self.pair_dim}" if self.paired else ""
        return (
            f"SpikeTrain([{shape}], time_steps={self.time_steps}, dtype={self.dtype}, device={self.device}{amplitude})"
        )


def signs(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the positive and the negative parts, which lie in pairs along a dimension."""
    before = (slice(None),) * (dim % x.dim())
    return x[(*before, slice(0, None, 2))], x[(*before, slice(1, None, 2))]


def interleaved(positive: Tensor, negative: Tensor, dim: int) -> Tensor:
    """Put positive and negative parts in pairs along a dimension."""
    dim = dim % positive.dim()
    return torch.stack([positive, negative], dim + 1).flatten(dim, dim + 1)


def _check_pairs(bits: Tensor, pair_dim: Any) -> None:
    if pair_dim is not None and (isinstance(pair_dim, bool) or not isinstance(pair_dim, int)):
        raise TypeError(f"SpikeTrain: pair_dim must be 1, -1 or None, got {type(pair_dim).__name__}")
    if pair_dim not in (1, -1, None):
        raise ValueError(f"SpikeTrain: pair_dim must be 1, -1 or None, got {pair_dim}")
    if pair_dim is not None and (bits.dim() < 3 or bits.shape[pair_dim % (bits.dim() - 1) + 1] % 2):
        wanted = "[P, N, 2 * C, ...]" if pair_dim == 1 else "[P, N, ..., 2 * F]"
        raise ValueError(f"SpikeTrain: bits of pairs must be {wanted}, got {list(bits.shape)}")


def _ending(bits: Tensor, time_steps: int) -> Tensor:
    """Return the bits with none set past ``time_steps``."""
    steps = time_steps % 8
    if steps == 0 or bits.numel() == 0:
        return bits
    if not bits.is_cpu or type(bits) is not Tensor or torch.compiler.is_compiling() or checks.is_transformed(bits):
        bits = bits.clone()
        bits[-1] &= (1 << steps) - 1
    elif (largest := int(bits[-1].amax())) >> steps:
        raise ValueError(
            f"SpikeTrain: bits past time_steps must be zero: with {time_steps} time steps the last plane holds {steps} "
            f"steps and its bytes must be below {1 << steps}, got {largest}"
        )
    return bits


def _concatenated(op: str, trains: Sequence[SpikeTrain]) -> SpikeTrain:
    for train in trains:
        if not isinstance(train, SpikeTrain):
            raise TypeError(f"{op}: trains must be SpikeTrains, got {type(train).__name__}")
    if not trains:
        raise ValueError(f"{op}: trains must hold at least one train, got none")
    first = trains[0]
    for i, train in enumerate(trains):
        for name in ("time_steps", "amplitude", "pair_dim", "dtype", "device"):
            if getattr(train, name) != getattr(first, name):
                raise ValueError(
                    f"{op}: trains must have the same {name}, got {getattr(first, name)} and, for train {i}, "
                    f"{getattr(train, name)}"
                )
        if train.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"{op}: trains must have the same neurons, got {list(first.shape)} and, for train {i}, "
                f"{list(train.shape)}"
            )
    # Keep channels innermost, the layout that the products expect and from_events makes.
    axis = min(2, first.bits.dim() - 1)
    bits = torch.cat([train.bits.movedim(axis, -1) for train in trains], 1).movedim(-1, axis)
    counts = [train.carried_count for train in trains]
    carried = [count for count in counts if count is not None]
    return first.replace_unchecked(bits=bits, count=torch.cat(carried) if len(carried) == len(counts) else None)


def _collate(batch: Sequence[SpikeTrain], *, collate_fn_map: Any = None) -> SpikeTrain:
    for i, train in enumerate(batch):
        if isinstance(train, SpikeTrain) and len(train) != 1:
            raise ValueError(
                f"default_collate: trains must have one sample each, [1, ...], got {list(train.shape)} for train {i}; "
                "use SpikeTrain.cat to join batches"
            )
    return _concatenated("default_collate", batch)


default_collate_fn_map[SpikeTrain] = _collate


_Context = tuple[int, torch.dtype, SpikeCode]


def _flatten(train: SpikeTrain) -> tuple[list[Any], _Context]:
    return [train.bits, train.carried_count], (train.time_steps, train.dtype, train.code)


def _unflatten(leaves: Any, context: _Context) -> SpikeTrain:
    bits, count = leaves
    time_steps, dtype, code = context
    return SpikeTrain.unchecked(bits, time_steps, count, dtype, **code._asdict())


_pytree.register_pytree_node(
    SpikeTrain,
    _flatten,
    _unflatten,
    serialized_type_name="tandem_cuda.SpikeTrain",
    to_dumpable_context=lambda context: [context[0], str(context[1]).removeprefix("torch."), *context[2]],
    from_dumpable_context=lambda context: (context[0], getattr(torch, context[1]), SpikeCode(*context[2:])),
)
