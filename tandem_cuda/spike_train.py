"""SpikeTrain: the spikes of a layer over T time steps, eight steps per byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.data._utils.collate import default_collate_fn_map  # documented under default_collate

from . import ops
from .events import event_planes
from .ops import checks
from .ops.spike_count import spike_value
from .spike_code import NotATensor, check_count, check_pairs, check_radix, ending
from .spike_code import SpikeCode as SpikeCode


class SpikeTrain(NotATensor):
    """The spikes that flow between tandem layers, with the value that carries the tandem gradient.

    The value of a neuron is what the next layer reads, in units of ``amplitude``: its spike count c or, of radix
    spikes, which weigh 2^(T-t) at time step t = 1..T, the number q = sum over t of 2^(T-t) * s[t]
    (:class:`tandem_cuda.neuron.RadixIF`).

    SpikeTrain is registered as a pytree, so it works with ``torch.compile`` and ``functional_call``.

    Args:
        bits: uint8 [P, N, ...], P = ceil(T / 8): bit i of plane p is the spike at time step 8p + i. Bits past T must
            be zero. The CPU checks this; on CUDA, where a check would wait for the device, and in compiled or
            transformed (``torch.func``) code, such bits are cleared in a copy. With ``radix`` there is one plane, and
            each byte is the value q: bit T - t is the spike at time step t.
        time_steps: T; with ``radix`` at most 8.
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
        value: floating point [N, ...], the differentiable value of each neuron. Without ``radix`` it is the count, and
            only one of both may be given.
        radix: whether a spike of time step t weighs 2^(T-t). ``Decode``, max pooling, layers that move or silence
            neurons, and layers whose neurons are ``RadixIF`` or ``IF(two_phase=True)`` read such spikes.

    Raises:
        TypeError: ``bits`` is not a uint8 tensor, or ``count`` is not a float32 or float64 tensor.
        ValueError: the shapes of ``bits`` and ``count`` do not match ``time_steps`` or each other, or their devices
            differ; bits past T are set; ``amplitude`` is not positive and finite; more than 8 time steps, or a count,
            with ``radix``.

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

    __slots__ = ("_dtype", "_value", "bits", "code", "time_steps")

    def __init__(
        self,
        bits: Tensor,
        time_steps: int,
        count: Tensor | None = None,
        dtype: torch.dtype | None = None,
        *,
        amplitude: float = 1.0,
        pair_dim: int | None = None,
        value: Tensor | None = None,
        radix: bool = False,
    ) -> None:
        checks.check_train("SpikeTrain", bits, time_steps)
        check_radix(radix, time_steps)
        check_count(count, value, radix)
        for name, carried in (("count", count), ("value", value)):
            if carried is not None:
                checks.check_floating("SpikeTrain", name, carried)
                checks.check_same_device("SpikeTrain", name, carried, bits, "bits")
                checks.check_shape("SpikeTrain", name, carried, bits.shape[1:])
        checks.check_positive("SpikeTrain", "amplitude", amplitude)
        check_pairs(bits, pair_dim)
        code = SpikeCode(float(amplitude), pair_dim, radix)
        self._set(ending(bits, time_steps), time_steps, count if value is None else value, dtype, code)
        checks.check_dtype("SpikeTrain", "dtype", self._dtype)

    def _set(self, bits: Any, time_steps: int, value: Any, dtype: torch.dtype | None, code: SpikeCode) -> None:
        """Set all fields; nothing else sets them."""
        self.bits = bits
        self.time_steps = time_steps
        self.code = code
        self._value = value
        # While torch processes a pytree, its leaves may have any type.
        self._dtype = value.dtype if isinstance(value, Tensor) else dtype or torch.get_default_dtype()

    @classmethod
    def unchecked(
        cls,
        bits: Any,
        time_steps: int,
        value: Any = None,
        dtype: torch.dtype | None = None,
        *,
        amplitude: float = 1.0,
        pair_dim: int | None = None,
        radix: bool = False,
    ) -> SpikeTrain:
        """Create a train as the constructor does, but without checks: for the results of this library's operators."""
        train = cls.__new__(cls)
        train._set(bits, time_steps, value, dtype, SpikeCode(amplitude, pair_dim, radix))
        return train

    @classmethod
    def coded(cls, bits: Any, time_steps: int, value: Any, dtype: torch.dtype | None, code: SpikeCode) -> SpikeTrain:
        """Create a train as ``unchecked`` does, with this code."""
        train = cls.__new__(cls)
        train._set(bits, time_steps, value, dtype, code)
        return train

    def __getstate__(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "code"}
        return fields | self.code._asdict()  # plain values, which torch.load(weights_only=True) reads

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.code = SpikeCode(state["amplitude"], state["pair_dim"], state["radix"])
        for name in self.__slots__:
            if name != "code":
                setattr(self, name, state[name])

    @classmethod
    def from_dense(cls, spikes: Tensor, dtype: torch.dtype | None = None, *, radix: bool = False) -> SpikeTrain:
        """Create a train from a dense tensor of spikes.

        Args:
            spikes: [T, N, ...] of 0 and 1; floating point, bool or uint8.
            dtype: dtype of ``count`` and ``value``; defaults to the dtype of ``spikes`` if that is float32 or float64,
                otherwise to torch's default dtype.
            radix: whether a spike of time step t weighs 2^(T-t).

        Raises:
            TypeError: ``spikes`` is not a tensor of one of these dtypes.
            ValueError: ``spikes`` has fewer than two dimensions or no time step, or more than 8 with ``radix``.
            RuntimeError: an element is neither 0 nor 1 (checked on the CPU).
        """
        bits = ops.pack_spikes(spikes)
        check_radix(radix, spikes.shape[0])
        if radix:
            bits = ops.pack_spikes(spikes.flip(0))
        if dtype is None:
            dtype = spikes.dtype if spikes.dtype in (torch.float32, torch.float64) else torch.get_default_dtype()
        checks.check_dtype("SpikeTrain", "dtype", dtype)
        return cls.unchecked(bits, spikes.shape[0], dtype=dtype, radix=radix)

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
            trains: trains [N, ...] with equal time steps, neurons, code, dtype and device. If all trains carry a
                value, so does the result.

        Raises:
            TypeError: an element is not a SpikeTrain.
            ValueError: ``trains`` is empty, or the trains do not match.
        """
        return _concatenated("SpikeTrain.cat", list(trains))

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Unpack to a dense tensor [T, N, ...] of 0 and 1, by default in the dtype of ``count``."""
        dense = ops.unpack_spikes(self.bits, self.time_steps, dtype or self.dtype)
        return dense.flip(0) if self.code.radix else dense

    @property
    def count(self) -> Tensor:
        """Spikes per neuron over all time steps, [N, ...]. Carries the tandem gradient.

        With ``radix`` it has T / (2^T - 1) times the gradient of ``value``: the slope of a line from no spike at value
        0 to T spikes at the largest value.
        """
        if not self.code.radix:
            return self.value
        count, value = ops.spike_count.trusted(self.bits, self._dtype), self._value
        if value is None or not (value.requires_grad and torch.is_grad_enabled()):
            return count
        return count + (value - value.detach()) * (self.time_steps / (2**self.time_steps - 1))

    @property
    def value(self) -> Tensor:
        """What the next layer reads, [N, ...]: the count or, of radix spikes, their number. Carries the gradient."""
        if self._value is None:
            self._value = spike_value(self.bits, self._dtype, self.code.radix)
        return self._value

    @property
    def carried_value(self) -> Tensor | None:
        """``value`` if it exists already, else None. Never computes it."""
        return self._value

    @property
    def amplitude(self) -> float:
        """The weight of one spike, or of a radix spike of the last time step."""
        return self.code.amplitude

    @property
    def paired(self) -> bool:
        """Whether neurons 2i and 2i + 1 along ``pair_dim`` are the positive and the negative part of one value."""
        return self.code.pair_dim is not None

    @property
    def pair_dim(self) -> int | None:
        """The dimension of [N, ...] along which pairs lie, 1 or -1; None if there are no pairs."""
        return self.code.pair_dim

    @property
    def radix(self) -> bool:
        """Whether a spike of time step t weighs 2^(T-t)."""
        return self.code.radix

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
        """Dtype of ``count`` and ``value``."""
        return self._dtype

    def replace(self, **changes: Any) -> SpikeTrain:
        """Return a train with some fields changed and all others kept.

        Args:
            changes: any of the constructor's arguments. A change of ``bits``, ``time_steps`` or ``radix`` drops the old
                value; pass a new one if it should carry a gradient. A change of ``dtype`` casts the value.

        Raises:
            TypeError: an unknown field, or a value of the wrong type.
            ValueError: inconsistent values, as in the constructor.
        """
        check_count(changes.get("count"), changes.get("value"), changes.get("radix", self.radix))
        new = self.replace_unchecked(**changes)
        carried: dict[str, Any] = {"count" if "count" in changes else "value": new.carried_value}
        return SpikeTrain(new.bits, new.time_steps, dtype=new.dtype, **carried, **new.code._asdict())

    def replace_unchecked(self, **changes: Any) -> SpikeTrain:
        """Work as ``replace``, but do not check the values: for tensors that this library made."""
        fields = {"bits": self.bits, "time_steps": self.time_steps, "dtype": self._dtype, **self.code._asdict()}
        if "count" in changes:
            changes["value"] = changes.pop("count")
        unknown = changes.keys() - fields.keys() - {"value"}
        if unknown:
            raise TypeError(
                f"SpikeTrain.replace: changes must be among bits, time_steps, count, dtype, amplitude, pair_dim, value "
                f"and radix, got {', '.join(sorted(unknown))}"
            )
        if self._value is not None and not changes.keys() & {"bits", "time_steps", "value", "radix"}:
            changes["value"] = self._value if "dtype" not in changes else self._value.to(changes["dtype"])
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
        """Return a train whose neurons ``f`` selects and rearranges; the gradient of the value follows them.

        Args:
            f: maps the bits [P, N, ...], or the value as [1, N, ...], to the new neurons' bits or value. It may only
                move, copy, drop or zero elements.
        """
        value = None if self._value is None else f(self._value.unsqueeze(0)).squeeze(0)
        return self.replace_unchecked(bits=f(self.bits), value=value)

    def window(self, start: int, stop: int) -> SpikeTrain:
        """Return the spikes of time steps start + 1 to stop as a train of stop - start steps, without a gradient.

        Raises:
            TypeError: ``start`` or ``stop`` is not an int.
            ValueError: the window is empty or exceeds the train, or is a part of a train of radix spikes.
        """
        for name, step in (("start", start), ("stop", stop)):
            checks.check_int("SpikeTrain.window", name, step)
        if not 0 <= start < stop <= self.time_steps:
            raise ValueError(
                f"SpikeTrain.window: start and stop must be 0 <= start < stop <= {self.time_steps}, got {start}, {stop}"
            )
        if self.radix and stop - start < self.time_steps:
            raise ValueError(
                f"SpikeTrain.window: start and stop must be 0 and {self.time_steps} for radix spikes, which make a "
                f"number only together, got {start}, {stop}"
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
        """Move to a device and/or cast ``value``. Takes the arguments of ``Tensor.to``; the spikes stay uint8."""
        value = self.value.to(*args, **kwargs)
        return self.replace_unchecked(bits=self.bits.to(value.device), value=value)

    def pin_memory(self) -> SpikeTrain:
        """Return a copy in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        value = None if self._value is None else self._value.pin_memory()
        return self.replace_unchecked(bits=self.bits.pin_memory(), value=value)

    def detach(self) -> SpikeTrain:
        """Return the same spikes with their value detached from the graph."""
        value = None if self._value is None else self._value.detach()
        return self.replace_unchecked(value=value)

    def firing_rate(self) -> Tensor:
        """Return the mean number of spikes per neuron and time step, a scalar in [0, 1] (nan for an empty train)."""
        return self.count.detach().mean() / self.time_steps

    def __len__(self) -> int:
        return self.bits.shape[1]

    def __repr__(self) -> str:
        shape = ", ".join(str(size) for size in self.shape)
        amplitude = "" if self.amplitude == 1 else f", amplitude={self.amplitude}"
        amplitude += f", pair_dim={self.pair_dim}" if self.paired else ""
        amplitude += ", radix=True" if self.radix else ""
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


def _concatenated(op: str, trains: Sequence[SpikeTrain]) -> SpikeTrain:
    for train in trains:
        if not isinstance(train, SpikeTrain):
            raise TypeError(f"{op}: trains must be SpikeTrains, got {type(train).__name__}")
    if not trains:
        raise ValueError(f"{op}: trains must hold at least one train, got none")
    first = trains[0]
    for i, train in enumerate(trains):
        for name in ("time_steps", "amplitude", "pair_dim", "radix", "dtype", "device"):
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
    carried = [train.carried_value for train in trains if train.carried_value is not None]
    return first.replace_unchecked(bits=bits, value=torch.cat(carried) if len(carried) == len(trains) else None)


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
    return [train.bits, train.carried_value], (train.time_steps, train.dtype, train.code)


def _unflatten(leaves: Any, context: _Context) -> SpikeTrain:
    bits, value = leaves
    time_steps, dtype, code = context
    return SpikeTrain.unchecked(bits, time_steps, value, dtype, **code._asdict())


_pytree.register_pytree_node(
    SpikeTrain,
    _flatten,
    _unflatten,
    flatten_with_keys_fn=lambda train: (
        [(_pytree.GetAttrKey("bits"), train.bits), (_pytree.GetAttrKey("value"), train.carried_value)],
        _flatten(train)[1],
    ),
    serialized_type_name="tandem_cuda.SpikeTrain",
    to_dumpable_context=lambda context: [context[0], str(context[1]).removeprefix("torch."), *context[2]],
    from_dumpable_context=lambda context: (context[0], getattr(torch, context[1]), SpikeCode(*context[2:])),
)
