"""What remains of a layer once nothing learns any more: the base of frozen layers, and their registry.

A class of modules takes part in :func:`tandem_cuda.freeze` by one call of :func:`register`, which says how an instance
becomes a :class:`FrozenLayer` and how that is made again from a file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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


class FrozenLayer(nn.Module, ABC):
    """A layer without parameters, gradients and modes; its tensors are buffers, and constants.

    Called with a span, the state that its last call returned (None at first) and its inputs, it returns its output
    over the span and its state after it: None where it carries nothing, as always at the end of time.
    """

    kind: str
    """Name of the class of modules that it was registered for."""

    @abstractmethod
    def forward(self, span: Span, state: State | None, *inputs: Any) -> tuple[Any, State | None]: ...

    @abstractmethod
    def settings(self) -> Settings:
        """What the loader needs beside the tensors."""

    def train(self, mode: bool = True) -> Any:
        """Change nothing: frozen layers have no modes."""
        return self

    def tensors(self) -> dict[str, Tensor]:
        """What is saved: all of its buffers."""
        return dict(self.named_buffers())

    def encoded(self, *inputs: bool) -> bool:
        """Whether the output is an EncodedInput, given for each input whether it is one; ValueError if it must not."""
        return False


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


def frozen_numbers(kind: str, name: str, value: Any, least: int, *, pairs: bool = False) -> None:
    """ValueError unless a setting is an int, or a pair of them where pairs will do, of at least that and below 2^30."""
    numbers = value if pairs and isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= 2**30:
            what = "an int or a pair of ints" if pairs else "an int"
            raise ValueError(f"{kind}: setting {name} must be {what} from {least} to 2^30, got {value!r}")


class FrozenFlatten(FrozenLayer):
    """nn.Flatten."""

    kind = "Flatten"

    def __init__(self, start_dim: int, end_dim: int) -> None:
        super().__init__()
        for name, dim in (("start_dim", start_dim), ("end_dim", end_dim)):
            if isinstance(dim, bool) or not isinstance(dim, int):
                raise TypeError(f"Flatten: {name} must be an int, got {type(dim).__name__}")
        self.start_dim, self.end_dim = start_dim, end_dim

    @classmethod
    def of(cls, module: nn.Flatten, encoded: bool) -> FrozenFlatten:
        return cls(module.start_dim, module.end_dim)

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenFlatten:
        check_settings(cls.kind, settings, {"start_dim", "end_dim"})
        check_tensors(cls.kind, tensors, {})
        return cls(**settings)

    def settings(self) -> Settings:
        return {"start_dim": self.start_dim, "end_dim": self.end_dim}

    def encoded(self, *inputs: bool) -> bool:
        return inputs[0]

    def forward(self, span: Span, state: State | None, x: Any) -> tuple[Any, None]:
        return x.flatten(self.start_dim, self.end_dim), None


class FrozenLinear(FrozenLayer):
    """nn.Linear, as a read-out of spike counts.

    Args:
        weight: [O, F].
        bias: [O] or None.
    """

    kind = "Linear"
    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", frozen_tensor(weight))
        self.register_buffer("bias", None if bias is None else frozen_tensor(bias))

    @classmethod
    def of(cls, module: nn.Linear, encoded: bool) -> FrozenLinear:
        return cls(module.weight, module.bias)

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenLinear:
        check_settings(cls.kind, settings, {"in_features", "out_features"})
        sizes = settings["out_features"], settings["in_features"]
        check_tensors(cls.kind, tensors, {"weight": sizes, "bias": sizes[:1]}, optional=("bias",))
        return cls(tensors["weight"], tensors.get("bias"))

    def settings(self) -> Settings:
        return {"in_features": self.weight.shape[1], "out_features": self.weight.shape[0]}

    def forward(self, span: Span, state: State | None, x: Tensor) -> tuple[Tensor, None]:
        return F.linear(x, self.weight, self.bias), None

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


register(nn.Flatten, FrozenFlatten.of, FrozenFlatten.load)
register(nn.Linear, FrozenLinear.of, FrozenLinear.load)
for idle in (nn.Identity, nn.Dropout, nn.Dropout2d):
    register(idle, lambda module, encoded: None)
