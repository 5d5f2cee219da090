"""What layers make of their weights, and when it may be used again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .. import _C, ops
from ..ops.pack_weight import can_hold


class SpikingWeights(NamedTuple):
    """What the spiking twin multiplies spikes with: x[t] = scale * (weight * s[t]) + bias."""

    weight: Tensor
    packed: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None
    """Per time step."""


class WeightCache:
    """Packed weights of one layer or join, and what else its spiking twin needs.

    Many things change weights without a word to autograd's version counter: fused optimisers, ``parameter.data``, numpy
    views, collectives of other processes. So nothing is used again where weights may be about to learn (``pack``), and
    elsewhere (``packed``, ``weights``) only while the tensors are the same objects with the same version and the same
    :func:`fingerprint <tandem_cuda._C.fingerprint>` of their memory. On other devices than the CPU, where a look
    at the memory would wait for the device, nothing is used again.

    Copies and pickles of a cache are empty.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None  # of packed weights
        self._packed: _Stamp | None = None  # of what it holds
        self._weights: tuple[_Stamp, SpikingWeights] | None = None

    def pack(self, weight: Tensor, groups: int) -> Tensor:
        """Pack weights, into the memory of the last call where it fits: large fresh memory costs more than packing."""
        self._packed = self._weights = None  # both describe what is overwritten here
        memory = self._memory
        if memory is not None and (memory.is_inference() or not can_hold(memory, weight, groups)):
            memory = None
        self._memory = ops.pack_weight(weight.detach(), groups, out=memory)
        return self._memory

    def packed(self, source: Tensor, make: Callable[[], Tensor], groups: int) -> Tensor:
        """Packed weights, from the last call where ``source``, of which ``make`` makes them, has not changed."""
        stamp = _Stamp.of([source], groups)
        if stamp is None or self._packed is None or not self._packed.holds(stamp):
            packed = self.pack(make(), groups)
            self._packed = stamp
            return packed
        assert self._memory is not None
        return self._memory

    def weights(self, tensors: Sequence[Tensor], settings: Any, make: Callable[[], SpikingWeights]) -> SpikingWeights:
        """What ``make`` makes of tensors and settings, from the last call where none of these has changed."""
        stamp = _Stamp.of(tensors, settings)
        kept = self._weights  # read and written once: threads may share the layer
        if stamp is None or kept is None or not kept[0].holds(stamp):
            made = make()
            self._weights = None if stamp is None else (stamp, made)
            return made
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return dict.fromkeys(self.__dict__)


class _Stamp:
    """The state of tensors and settings at one time."""

    def __init__(self, tensors: Sequence[Tensor], settings: Any) -> None:
        self._tensors = tensors
        self._settings = settings
        self._versions = [-1 if x.is_inference() else x._version for x in tensors]
        self._addresses = [x.data_ptr() for x in tensors]
        self._fingerprint = _C.fingerprint([_memory(x) for x in tensors])
        self._held = [x.detach() for x in tensors]  # so that no other tensor can get its address

    @classmethod
    def of(cls, tensors: Sequence[Tensor], settings: Any) -> _Stamp | None:
        """None where nothing tells whether tensors change."""
        if not all(x.is_cpu for x in tensors):
            return None
        try:
            return cls(tensors, settings)
        except RuntimeError:  # tensors without memory, of transforms
            return None

    def holds(self, now: _Stamp) -> bool:
        """Whether nothing has changed between this stamp and a later one."""
        return (
            self._fingerprint == now._fingerprint
            and self._versions == now._versions
            and self._addresses == now._addresses
            and self._settings == now._settings
            and all(a is b for a, b in zip(self._tensors, now._tensors, strict=True))
        )


def _memory(x: Tensor) -> tuple[int, int]:
    """Address and bytes of the memory that elements lie in, with the gaps between them."""
    if x.is_contiguous():
        return x.data_ptr(), x.nbytes
    elements = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    return x.data_ptr(), elements * x.element_size()
