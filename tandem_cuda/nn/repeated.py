"""Calls of a frozen layer that differ from the call before in the spikes, or the pixels, alone.

Small layers would spend most of their time in Python, finding out again what they have found out before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_, itemgetter
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as _forward_ad
from torch import Tensor, nn

from ..spike_train import SpikeTrain
from .encode import EncodedInput


class OrderedCall(NamedTuple):
    """A call of the operator whose products with real input drive RadixIF neurons."""

    operator: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    """What the operator gets behind the input."""

    def run(self, inputs: Sequence[EncodedInput]) -> Tensor:
        return self.operator(inputs[0].value, *self.arguments)


class RadixCall(NamedTuple):
    """A call of the operator whose sums drive RadixIF neurons."""

    main: int
    """The input that the weights multiply."""
    arguments: tuple[Any, ...]
    """What the operator gets behind the bits of that input, without what another branch adds."""
    joined: int | None = None
    """The input of another branch of a sum."""
    product: Callable[[SpikeTrain], Tensor] | None = None
    """What the branch makes of it; None where it adds its spikes."""
    amplitude: Tensor | None = None
    """The weight of these spikes' values."""

    def run(self, inputs: Sequence[SpikeTrain]) -> Tensor:
        added = None
        if self.joined is not None:
            x = inputs[self.joined]
            added = x.bits if self.product is None else self.product(x.detach())
        bits = inputs[self.main].bits
        return torch.ops.tandem_cuda.radix_product(bits, *self.arguments, added, self.amplitude)


class Repeated:
    """What a call was like. Calls that are like it run the operator at once, unless a layer of the call has changed.

    Args:
        call: what the operator got.
        layers: the layers of the call, whose buffers are its constants: the layer itself, and the branches of a sum.
        inputs: the layer's.
        fired: the output.
    """

    def __init__(
        self,
        call: RadixCall | OrderedCall,
        layers: Sequence[nn.Module],
        inputs: Sequence[SpikeTrain | EncodedInput],
        fired: SpikeTrain,
    ) -> None:
        self._call: Any = call
        self._inputs = [_traits(x) for x in inputs]
        self._constants = [
            (layer._buffers, name, tensor, None if tensor is None else tensor._version)
            for layer in layers
            for name, tensor in layer._buffers.items()
        ]
        self._settings = []
        for module in layers:
            names = [name for name in vars(module) if not name.startswith("_")]
            get = itemgetter(*names)
            self._settings.append((vars(module), get, get(vars(module))))
        modules = [module for layer in layers for module in layer.modules()]
        self._modules = [(module._modules, (*module._modules.values(),)) for module in modules if module._modules]
        self._steps, self._fired = fired.time_steps, {"dtype": fired.dtype, **fired.code._asdict()}

    @staticmethod
    def applies(layers: Sequence[nn.Module], inputs: Sequence[SpikeTrain | EncodedInput]) -> bool:
        """Return whether constants tell of their changes, and inputs are plain tensors, all on a CPU."""
        constants = [x for layer in layers for x in layer._buffers.values() if x is not None]
        counted = all(type(x) is Tensor and x.is_cpu and not x.is_inference() for x in constants)
        return counted and _is_plain(inputs)

    def run(self, inputs: Sequence[Any], steps: int) -> SpikeTrain | None:
        """Return the output for T = ``steps``, or None where the call is not like the one before."""
        if len(inputs) != len(self._inputs) or steps != self._steps:
            return None
        for x, known in zip(inputs, self._inputs, strict=True):
            if type(x) not in (SpikeTrain, EncodedInput) or _traits(x) != known:
                return None
        for buffers, name, tensor, version in self._constants:
            if buffers.get(name) is not tensor or (tensor is not None and tensor._version != version):
                return None
        for attributes, get, values in self._settings:
            if not all(map(is_, get(attributes), values)):
                return None
        for children, modules in self._modules:
            if len(children) != len(modules) or not all(map(is_, children.values(), modules)):
                return None
        if torch.is_grad_enabled() or _forward_ad._current_level >= 0 or not _is_plain(inputs):
            return None
        return SpikeTrain.unchecked(self._call.run(inputs), steps, **self._fired)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()  # copies and pickles begin anew


def _traits(x: SpikeTrain | EncodedInput) -> tuple[Any, ...]:
    """Return what a call's constants depend on."""
    if isinstance(x, SpikeTrain):
        return x.bits.shape, x.code, x.time_steps
    return x.value.shape, x.value.dtype, x.mode, x.time_steps


def _is_plain(inputs: Sequence[SpikeTrain | EncodedInput]) -> bool:
    tensors = [x.bits if isinstance(x, SpikeTrain) else x.value for x in inputs]
    return all(type(x) is Tensor and x.is_cpu for x in tensors)
