"""What frozen layers make ready once: the operators that their calls run, with the arguments that stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_, itemgetter
from typing import Any

import torch
import torch.autograd.forward_ad as _forward_ad
from torch import Tensor, nn

from ..ops.compiling import is_recording
from ..spike_train import SpikeTrain
from .encode import EncodedInput
from .frozen import Span, State
from .spiking import Spiking

Run = Callable[..., tuple[Any, State | None]]
"""A function with the arguments and results of :meth:`Spiking.run`."""


class PreparedLayer(Spiking):
    """A layer whose frozen form finds out once what its calls have to do, from the kind of the inputs."""

    by_size: bool = False
    """Whether what a call has to do depends on the sizes of the inputs, beside the batch."""
    _prepared: Prepared | None = None

    def run(self, span: Span, state: State | None, *inputs: Any) -> tuple[Any, State | None]:
        if is_recording():  # the graph must hold the whole call
            return self.prepare(False, span, *inputs)(span, state, *inputs)
        prepared = self._prepared
        if prepared is None or not prepared.holds(span, inputs):
            self._prepared = prepared = Prepared(self, span, inputs)
        try:
            return prepared.run(span, state, *inputs)
        except Exception:  # of an operator, in C++'s words
            pass
        return self.prepare(False, span, *inputs)(span, state, *inputs)  # which says in Python's what is wrong

    def prepare(self, direct: bool, span: Span, *inputs: Any) -> Run:
        """Return a function that runs the spiking twin on inputs of this kind, in a span of as many time steps.

        Args:
            direct: call operators directly where that is possible. Otherwise, the function checks its inputs.
            span: the time steps.
            inputs: examples, which tell the kind.

        Raises:
            TypeError: an input has the wrong type.
            ValueError: the layer cannot take the inputs.
        """
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_prepared"}  # copies begin anew

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._prepared = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's

    def layers_with_constants(self) -> Sequence[nn.Module]:
        """Return the modules whose buffers and attributes the function depends on."""
        return [self]


class Prepared:
    """A function for inputs of one kind. It holds until a buffer or an attribute of the layer changes.

    Autograd's versions tell of changes in place. Where they do not, and for inputs and buffers that are not on the CPU,
    whose streams may differ from call to call, nothing holds.
    """

    def __init__(self, layer: PreparedLayer, span: Span, inputs: Sequence[Any]) -> None:
        self._span, self._by_size = (span.now, span.total), layer.by_size
        kinds = self._kinds = [_kind(x, layer.by_size) for x in inputs]
        layers = layer.layers_with_constants()
        # C++ does not check tensors that never reach it.
        direct = None not in kinds and all(map(_is_real, _buffers(layers)))
        with torch.inference_mode(False):  # inference tensors would be of no use in other calls
            self.run = layer.prepare(direct, span, *inputs)
        self._holds = direct and all(kind and kind[0] for kind in kinds) and all(map(_tells, _buffers(layers)))
        if not self._holds:
            return
        self._constants = [
            (layer._buffers, name, x, None if x is None else x._version)
            for layer in layers
            for name, x in layer._buffers.items()
        ]
        self._settings = []
        for attributes in map(vars, layers):
            get = itemgetter(*(name for name in attributes if not name.startswith("_")))
            self._settings.append((attributes, get, get(attributes)))
        children = [module._modules for layer in layers for module in layer.modules() if module._modules]
        self._modules = [(modules, (*modules.values(),)) for modules in children]

    def holds(self, span: Span, inputs: Sequence[Any]) -> bool:
        """Return whether the function serves these inputs, and nothing that it was made from has changed."""
        if not self._holds or (span.now, span.total) != self._span or len(inputs) != len(self._kinds):
            return False
        for x, kind in zip(inputs, self._kinds, strict=True):
            if _kind(x, self._by_size) != kind:
                return False
        for buffers, name, tensor, version in self._constants:
            if buffers.get(name) is not tensor or (tensor is not None and tensor._version != version):
                return False
        for attributes, get, values in self._settings:
            if not all(map(is_, get(attributes), values)):
                return False
        for children, modules in self._modules:
            if len(children) != len(modules) or not all(map(is_, children.values(), modules)):
                return False
        return True


def _kind(x: Any, by_size: bool) -> tuple[Any, ...] | None:
    """Return what decides how an input is read; None for an input whose calls differ in more than that."""
    if type(x) is SpikeTrain:
        bits = x.bits
        if type(bits) is Tensor and not bits.is_meta:
            return bits.is_cpu, x.code, x.time_steps, x.dtype, bits.shape[2:] if by_size else bits.dim()
    elif type(x) is EncodedInput and _forward_ad._current_level < 0:
        value = x.value
        if type(value) is Tensor and not value.is_meta:
            return value.is_cpu, x.mode, value.dtype, value.dim()
    return None


def _buffers(layers: Sequence[nn.Module]) -> list[Tensor]:
    return [x for layer in layers for x in layer._buffers.values() if x is not None]


def _is_real(x: Tensor) -> bool:
    """Return whether a tensor has memory."""
    return type(x) in (Tensor, nn.Parameter) and not x.is_meta


def _tells(x: Tensor) -> bool:
    """Return whether what was made of a tensor may be kept until the tensor's version tells of a change."""
    return x.is_cpu and not x.requires_grad and not x.is_inference()
