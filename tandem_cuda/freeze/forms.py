"""What remains of a layer once nothing learns any more: the base of frozen layers, and their registry.

A class of modules takes part in :func:`tandem_cuda.freeze` by one call of :func:`register`, which says how an instance
becomes a :class:`FrozenLayer` and how that is made again from a file.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops import checks

State = tuple[Tensor, ...]
"""What a frozen layer carries from one span of time steps to the next: tensors [N, ...], a row a sample."""
Settings = dict[str, Any]
"""What describes a frozen layer beside its tensors, in the types of JSON."""
Tensors = Mapping[str, Tensor]


class Span(NamedTuple):
    """The time steps that one call covers: ``now`` of ``total``, after the ``done`` that came before."""

    now: int
    done: int
    total: int
    steady: bool = True
    """Whether the input goes on to the end, so that counts grow with time; not so after an impulse."""

    @property
    def reached(self) -> int:
        """Time steps that are over after the call."""
        return self.done + self.now

    @property
    def ends(self) -> bool:
        """Whether no step follows, so that nothing need be carried on."""
        return self.reached == self.total


REAL, ENCODED, SPIKES, ANY = "a Tensor", "what Encode returns", "spikes", "anything"
"""Kinds of values, in the words of error messages."""

LARGEST = 2**31
"""Values that a layer takes or puts out for one sample: a file that says there are more is wrong."""


class Size(NamedTuple):
    """What is known of a size before there is an input."""

    least: int = 1
    exact: bool = False
    """Whether it is ``least``."""
    factor: int = 1
    """Divides it."""
    slope: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    """The network's input has at least slope * size + offset along this axis."""
    regular: bool = True
    """Whether that many and less than ``slope`` more is just what the input has."""

    def check(self, what: str, size: int) -> None:
        """ValueError unless it can be that."""
        if size != self.least if self.exact else size < self.least or size % self.factor:
            multiple = "" if self.factor == 1 else f" and a multiple of {self.factor}"
            raise ValueError(f"{what} must be {self if self.exact else f'at least {self.least}{multiple}'}, got {size}")

    @property
    def needs(self) -> int:
        """The least size of the network's input along this axis."""
        return max(1, math.ceil(self.slope * self.least + self.offset))

    def at_least(self, size: int) -> Size:
        """The size, which a layer needs to be that or more; ValueError where it is known to be less."""
        if self.exact and self.least < size:
            raise ValueError(f"the window must fit into the padded input: it needs {size}, got {self.least}")
        return self if self.exact else self._replace(least=max(self.least, size))

    def through(
        self, f: Callable[[int], int], slope: Fraction | int, offset: Fraction | int, *, regular: bool = True
    ) -> Size:
        """The size that a layer makes of it, by a function that never falls: size n out takes slope * n + offset."""
        return Size(
            max(f(self.least), 1),
            self.exact,
            slope=self.slope * slope,
            offset=self.slope * offset + self.offset,
            regular=self.regular and regular,
        )

    def __str__(self) -> str:
        return str(self.least) if self.exact else f">={self.least}"


class Value(NamedTuple):
    """What is known of an input or output of a layer before there is one."""

    kind: str = ANY
    shape: tuple[Size, ...] | None = None
    """Without the batch; None where not even the number of dimensions is known."""
    source: str | None = None
    """The one input of the network whose sizes those of ``shape`` come of."""

    def check_kind(self, *kinds: str) -> None:
        """ValueError unless it is one of these."""
        if self.kind not in (*kinds, ANY):
            raise ValueError(f"input must be {' or '.join(kinds)}, got {self.kind}")

    def check_dims(self, *dims: int) -> None:
        """ValueError unless it has one of these numbers of dimensions, without the batch."""
        if self.shape is not None and len(self.shape) not in dims:
            raise ValueError(f"input must have {' or '.join(str(1 + d) for d in dims)} dimensions, got {self}")

    def __str__(self) -> str:
        return "[N, ...]" if self.shape is None else f"[{', '.join(['N', *map(str, self.shape)])}]"


def check_count(what: str, sizes: Sequence[int]) -> None:
    """ValueError where a sample alone would not fit into memory."""
    if math.prod(sizes) > LARGEST:
        raise ValueError(f"{what} must be at most {LARGEST} values, got {' x '.join(map(str, sizes))}")


class FrozenLayer(nn.Module, ABC):
    """A layer without parameters, gradients and modes; its tensors are buffers, and constants.

    Called with a span, the state that its last call returned (None at first) and its inputs, it returns its output
    over the span and its state after it: None where it carries nothing, as always at the end of time.
    """

    kind: str
    """Name of the class of modules that it was registered for."""
    format: int = 1
    """The version of files in which the kind came."""
    resumes: bool = False
    """Whether it needs its inputs no more once it has a state."""

    @abstractmethod
    def forward(self, span: Span, state: State | None, *inputs: Any) -> tuple[Any, State | None]: ...

    @abstractmethod
    def settings(self) -> Settings:
        """What the loader needs beside the tensors."""

    def train(self, mode: bool = True) -> Any:
        """Eval mode, whatever is asked for: frozen layers have no other."""
        return super().train(False)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved: all of its buffers."""
        return dict(self.named_buffers())

    def branches(self) -> list[nn.Module]:
        """What the spikes of its inputs go through, one for each input, if it is spiking."""
        return []

    def takes(self) -> str:
        """The kind of value that its inputs are; ANY where that depends on the layers around it."""
        return ANY

    def output(self, *inputs: Value) -> Value:
        """What is known of its output, given what is known of its inputs; ValueError if they cannot be that."""
        return Value()


Form = Callable[[Any, bool], FrozenLayer | None]
Loader = Callable[[Settings, Tensors], FrozenLayer]
FORMS: dict[type[nn.Module], Form] = {}
LOADERS: dict[str, Loader] = {}


def register(module: type[nn.Module], form: Form, load: Loader | None = None) -> None:
    """Let modules of this class (not of its subclasses, which may compute something else) be frozen.

    Args:
        module: the class; its name is the ``kind`` of the frozen layer.
        form: from a module, and whether its input is an EncodedInput, to its frozen form as eval mode computes; None
            for a module that only hands its input on.
        load: from settings and tensors of a file to the frozen layer. TypeError or ValueError where these are not
            what the frozen layer saves.
    """
    FORMS[module] = form
    if load is not None:
        LOADERS[module.__name__] = load


def class_of(module: nn.Module) -> type[Any]:
    """Its class; of a parametrized module the one that it had before."""
    return nn.utils.parametrize.type_before_parametrizations(module)


def frozen_tensor(tensor: Tensor) -> Tensor:
    """A copy without gradient, in one memory layout whatever the model's: what is loaded computes as what was saved."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def check_settings(kind: str, settings: Settings, names: set[str]) -> None:
    """ValueError unless just these settings are there."""
    if settings.keys() != names:
        raise ValueError(f"{kind}: settings must be {sorted(names)}, got {sorted(settings)}")


def check_tensors(
    kind: str, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], optional: tuple[str, ...] = ()
) -> None:
    """Check names and shapes; and that all are float32 or all float64."""
    missing, unknown = shapes.keys() - tensors.keys() - {*optional}, tensors.keys() - shapes.keys()
    if missing or unknown:
        raise ValueError(f"{kind}: tensors must be {sorted(shapes)}, got {sorted(tensors)}")
    for name, tensor in tensors.items():
        checks.check_floating(kind, name, tensor)
        checks.check_shape(kind, name, tensor, shapes[name])
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        raise TypeError(f"{kind}: tensors must be of one dtype, got {[str(x.dtype) for x in tensors.values()]}")


def frozen_numbers(kind: str, name: str, value: Any, least: int, most: int = 2**30, *, pairs: bool = False) -> None:
    """ValueError unless a setting is an int, or a pair of them where pairs will do, in that range."""
    numbers = value if pairs and isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            what = "an int or a pair of ints" if pairs else "an int"
            raise ValueError(f"{kind}: setting {name} must be {what} from {least} to {most}, got {value!r}")


def single(inputs: tuple[Value, ...]) -> Value:
    """The one input of a layer that takes one."""
    if len(inputs) != 1:
        raise ValueError(f"inputs must be one, got {len(inputs)}")
    return inputs[0]


def frozen_scale(kind: str, name: str, value: Any) -> float:
    """A setting that potentials are measured in; ValueError where products with it may leave float32's range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-30 <= abs(value) <= 1e30:
        raise ValueError(f"{kind}: setting {name} must be a number of magnitude 1e-30 to 1e30, got {value!r}")
    return float(value)
