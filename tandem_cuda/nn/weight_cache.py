"""Cache the weights that layers prepare for the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _C, ops
from ..ops.pack_weight import STATE_WORDS, pack_weight_if_changed, packed_like
from .constants import capturing
from .quantiser import parametrisation


class Kernel(NamedTuple):
    """A layer's weights as the products take them."""

    weight: Tensor
    """[O, C/groups, kH, kW] or [O, F]; integers of a quantised layer."""
    packed: Tensor | None = None
    unit: Tensor | None = None
    """For integers: the scale [O], by which they become weights."""
    master: Tensor | None = None
    """For integers: the weights in full precision, which get the gradient."""

    def full_precision(self) -> dict[str, Any]:
        """Return the operands through which the gradient of integer weights flows."""
        return {"master": self.master, "unit": None if self.master is None else self.unit}


class SpikingWeights(NamedTuple):
    """The weights of the spiking twin: x[t] = scale * (weight * s[t]) + bias."""

    kernel: Kernel
    scale: Tensor | None = None
    bias: Tensor | None = None
    """Per time step."""

    def operands(self) -> dict[str, Any]:
        """Return the keyword arguments of a product beside weight and bias."""
        return {"packed": self.kernel.packed, "scale": self.scale, **self.kernel.full_precision()}


class WeightCache:
    """Cache the packed weights of one layer, and the other tensors that its spiking twin needs.

    Weights can change without autograd's version counter noticing: by fused optimisers, ``parameter.data``, numpy views
    or collectives of other processes. In training, ``pack`` therefore reuses no values. Elsewhere, ``kernel`` and
    ``weights`` reuse values only while the tensors are the same objects with the same version and the same
    :func:`fingerprint <tandem_cuda._C.fingerprint>` of their memory: of tensors up to 4 MiB all of it, of larger ones
    256 cache lines, which may miss a small change that autograd does not know of.

    On CUDA, reading the memory would wait for the device, so the device itself compares the fingerprints of weights
    from 1 MiB on, of all their memory, and packs them only if they have changed. Nothing else is reused there. A buffer
    belongs to the stream that it was made in. A layer that changes streams gets a new one, so that no stream overwrites
    or frees what another one reads.

    Copies and pickles of a cache are empty.
    """

    def __init__(self) -> None:
        self._buffer: _Buffer | None = None
        self._packed: _Cached | None = None  # describes what the buffer holds
        self._weights: _Cached | None = None

    def pack(self, weight: Tensor, groups: int, watch: bool = False) -> Tensor:
        """Pack weights, reusing the buffer of the last call if it fits: a large allocation costs more than packing.

        With ``watch``, a CUDA device packs large weights only if they have changed since the last such call.
        """
        # Compiled code cannot keep a buffer. A graph writes to its own in every replay, so nothing else may use it.
        if torch.compiler.is_compiling() or capturing(weight):
            return ops.pack_weight.trusted(weight.detach(), groups)
        self._packed = self._weights = None  # both describe the buffer, which is overwritten below
        if torch._C._functorch.is_functorch_wrapped_tensor(weight):  # must not outlive its transform
            return ops.pack_weight.trusted(weight.detach(), groups)
        stream, buffer = _stream(weight), self._buffer
        memory: Tensor | None = None
        if buffer is not None:  # which may hold what else has its size
            memory = buffer.memory
            sizes, dtype = packed_like(weight, groups)
            fits = (memory.numel(), memory.dtype, memory.device) == (sizes[0], dtype, weight.device)
            memory = memory if fits and buffer.stream == stream and not memory.is_inference() else None
        self._buffer = None  # an operator that fails may have filled a part
        if watch and _watches(weight):
            buffer = _watched(weight, groups, None if memory is None else buffer, stream)
        else:
            buffer = _Buffer(ops.pack_weight.trusted(weight.detach(), groups, out=memory), stream)
        self._buffer = buffer
        return buffer.memory

    def kernel(self, sources: list[Tensor], settings: Any, make: Callable[[], Kernel], groups: int) -> Kernel:
        """Return what ``make`` computes from tensors and settings, packed; from the last call if nothing changed."""
        state = _state(sources)
        cached, buffer = self._packed, self._buffer
        if buffer is not None and cached is not None and cached.holds(sources, state, (settings, groups)):
            kernel: Kernel = cached.result
            return kernel._replace(packed=buffer.memory)
        kernel = make()
        packed = self.pack(kernel.weight, groups, watch=True)
        lasting = Kernel(kernel.weight.detach(), unit=kernel.unit)
        self._packed = _cached(sources, state, (settings, groups), lasting)
        return kernel._replace(packed=packed)

    def weights(self, tensors: list[Tensor], settings: Any, make: Callable[[], SpikingWeights]) -> SpikingWeights:
        """Return what ``make`` computes from tensors and settings; from the last call if nothing has changed."""
        state = _state(tensors)
        cached = self._weights  # read and written once: threads may share the layer
        if cached is not None and cached.holds(tensors, state, settings):
            return cached.result
        result = make()
        self._weights = _cached(tensors, state, settings, result)
        return result

    def __getstate__(self) -> dict[str, Any]:
        return dict.fromkeys(self.__dict__)


def may_cache(layer: nn.Module) -> bool:
    """Return whether the spiking weights of a layer may be used again in the next call.

    False in training, where weights change; in compiled code; and with parametrisations, whose changes go unnoticed,
    except for :class:`WeightQuantiser`'s.
    """
    return not (layer.training or torch.compiler.is_compiling() or parametrisation(layer)[1])


_WATCHED_BYTES = 2**20
"""From how many bytes on a device watches weights: it packs fewer about as fast as it launches a kernel (predicted)."""


class _Buffer(NamedTuple):
    """Memory of packed weights."""

    memory: Tensor
    stream: int
    """The CUDA stream in which it is written, read and freed."""
    layout: Any = None
    """How watched weights lie in memory."""
    state: Tensor | None = None
    """What the device knows of watched weights."""


def _watches(weight: Tensor) -> bool:
    return weight.is_cuda and weight.nbytes >= _WATCHED_BYTES


def _watched(weight: Tensor, groups: int, buffer: _Buffer | None, stream: int) -> _Buffer:
    """Pack weights if they are not what the buffer holds; into a new one if there is none for this layout."""
    layout = (weight.shape, weight.stride(), weight.dtype, groups)
    if buffer is None or buffer.layout != layout:
        sizes, dtype = packed_like(weight, groups)
        with torch.inference_mode(False):  # inference tensors could not be written to elsewhere
            memory = torch.empty(sizes[0], dtype=dtype, device=weight.device)
            state = torch.zeros(STATE_WORDS, dtype=torch.int64, device=weight.device)
        buffer = _Buffer(memory, stream, layout, state)
    assert buffer.state is not None
    pack_weight_if_changed(weight, groups, buffer.memory, buffer.state)
    return buffer


def _stream(weight: Tensor) -> int:
    if not weight.is_cuda or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's; fake tensors
        return 0
    return torch._C._cuda_getCurrentRawStream(weight.device.index)


_State = tuple[int, list[int], list[int]]
"""Fingerprint, versions and addresses of tensors."""


class _Cached(NamedTuple):
    """A cached result, with the tensors it was made from and their state."""

    tensors: list[Tensor]
    memory: list[Tensor]
    """Keeps the memory alive, so that no other tensor can get its address."""
    state: _State
    settings: Any
    result: Any

    def holds(self, tensors: list[Tensor], state: _State | None, settings: Any) -> bool:
        """Return whether nothing has changed since."""
        alike = self.state == state and self.settings == settings and len(self.tensors) == len(tensors)
        return alike and all(a is b for a, b in zip(self.tensors, tensors, strict=True))


def _cached(tensors: list[Tensor], state: _State | None, settings: Any, result: Any) -> _Cached | None:
    return None if state is None else _Cached(tensors, [x.detach() for x in tensors], state, settings, result)


def _state(tensors: list[Tensor]) -> _State | None:
    """Return the state of tensors, or None if their changes cannot be detected."""
    memory = []
    try:
        for x in tensors:
            if not x.is_cpu:
                return None
            memory.append((x.data_ptr(), x.nbytes if x.is_contiguous() else _span(x)))
    except RuntimeError:  # tensors inside torch.func transforms may have no memory
        return None
    return _C.fingerprint(memory), _versions(tensors), [address for address, _ in memory]


def _versions(tensors: list[Tensor]) -> list[int]:
    try:
        return [x._version for x in tensors]
    except RuntimeError:  # inference tensors have no version counter
        return [-1 if x.is_inference() else x._version for x in tensors]


def _span(x: Tensor) -> int:
    """Return the number of bytes from the first element to the last, including gaps."""
    elements = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    return elements * x.element_size()
