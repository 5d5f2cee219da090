"""What layers make of their weights, and when it may be used again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

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
        self._packed: _Kept | None = None  # what it holds
        self._weights: _Kept | None = None

    def pack(self, weight: Tensor, groups: int) -> Tensor:
        """Pack weights, into the memory of the last call where it fits: large fresh memory costs more than packing."""
        if torch.compiler.is_compiling():  # compiled code has no memory of its own
            return ops.pack_weight(weight, groups)
        self._packed = self._weights = None  # both describe what is overwritten here
        if torch._C._functorch.is_functorch_wrapped_tensor(weight):  # nothing of a transform may outlive it
            return ops.pack_weight(weight.detach(), groups)
        memory = self._memory
        if memory is not None and (memory.is_inference() or not can_hold(memory, weight, groups)):
            memory = None
        self._memory = ops.pack_weight(weight.detach(), groups, out=memory)
        return self._memory

    def packed(self, source: Tensor, make: Callable[[], Tensor], groups: int) -> Tensor:
        """Packed weights, from the last call where ``source``, of which ``make`` makes them, has not changed."""
        state = _state([source])
        if self._memory is not None and _holds(self._packed, [source], state, groups):
            return self._memory
        packed = self.pack(make(), groups)
        self._packed = _kept([source], state, groups, None)
        return packed

    def weights(
        self, keep: bool, tensors: list[Tensor], settings: Any, make: Callable[[], SpikingWeights]
    ) -> SpikingWeights:
        """What ``make`` makes of tensors and settings; ``keep``: from the last call where none has changed since."""
        if not keep:
            return make()
        state = _state(tensors)
        kept = self._weights  # read and written once: threads may share the layer
        if kept is not None and _holds(kept, tensors, state, settings):
            return kept.made
        made = make()
        self._weights = _kept(tensors, state, settings, made)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return dict.fromkeys(self.__dict__)


def may_keep(module: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Whether the spiking weights of a module, made of those of layers, may be used again at the next call.

    Not in training, where they learn; not in compiled code; and not with a parametrisation, whose state nothing tells.
    """
    return not (
        module.training or torch.compiler.is_compiling() or any(parametrize.is_parametrized(layer) for layer in layers)
    )


_State = tuple[int, list[int], list[int]]
"""Fingerprint, versions and addresses of tensors."""


class _Kept(NamedTuple):
    """Something made of tensors, and their state then."""

    tensors: list[Tensor]
    memory: list[Tensor]
    """Held, so that no other tensor can get its address."""
    state: _State
    settings: Any
    made: Any


def _kept(tensors: list[Tensor], state: _State | None, settings: Any, made: Any) -> _Kept | None:
    return None if state is None else _Kept(tensors, [x.detach() for x in tensors], state, settings, made)


def _holds(kept: _Kept | None, tensors: list[Tensor], state: _State | None, settings: Any) -> bool:
    """Whether nothing has changed since."""
    return (
        kept is not None
        and kept.state == state
        and kept.settings == settings
        and all(a is b for a, b in zip(kept.tensors, tensors, strict=True))
    )


def _state(tensors: list[Tensor]) -> _State | None:
    """None where nothing tells whether tensors change."""
    memory = []
    try:
        for x in tensors:
            if not x.is_cpu:
                return None
            memory.append((x.data_ptr(), x.nbytes if x.is_contiguous() else _span(x)))
    except RuntimeError:  # tensors without memory, of transforms
        return None
    return _C.fingerprint(memory), _versions(tensors), [address for address, _ in memory]


def _versions(tensors: list[Tensor]) -> list[int]:
    try:
        return [x._version for x in tensors]
    except RuntimeError:  # tensors of inference mode keep none
        return [-1 if x.is_inference() else x._version for x in tensors]


def _span(x: Tensor) -> int:
    """Bytes from the first element to the last, with the gaps between them."""
    elements = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    return elements * x.element_size()
