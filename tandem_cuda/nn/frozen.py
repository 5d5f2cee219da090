"""The base class of frozen layers, and the registry of frozen forms.

Call :func:`register` once to let :func:`tandem_cuda.freeze` freeze a further class of modules. It says how to make a
:class:`FrozenLayer` from an instance, and how to load one from a file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from .classes import torch_class
from .schema import Settings, Tensors
from .sizes import ANY, Value

State = tuple[Tensor, ...]
"""What a frozen layer carries from one span of time steps to the next: tensors [N, ...], one row per sample."""


class Span(NamedTuple):
    """The time steps of one call: the next ``now`` steps after the first ``done`` of ``total``."""

    now: int
    done: int
    total: int
    steady: bool = True
    """Whether the input lasts until the end, so that counts keep growing; False for an impulse."""

    @property
    def reached(self) -> int:
        """The number of time steps done after the call."""
        return self.done + self.now

    @property
    def ends(self) -> bool:
        """Whether this is the last span, so that no state need be kept."""
        return self.reached == self.total

    @property
    def whole(self) -> bool:
        """Whether this is the only span, so that no state comes in either."""
        return self.now == self.total


class FrozenLayer(nn.Module, ABC):
    """A layer without parameters, gradients and modes. Its tensors are constant buffers.

    A call takes a span, the state that the previous call returned (None in the first call), and the inputs. It returns
    the output over the span and the state after it. The state is None if the layer carries nothing, and always after
    the last time step.

    Examples:
        >>> from tandem_cuda.freeze import FrozenLayer
        >>> frozen = freeze(nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval())
        >>> [layer.kind for layer in frozen.modules() if isinstance(layer, FrozenLayer)]
        ['Encode', 'TandemLinear', 'Decode', 'Linear']
    """

    kind: str
    """The name of the module class that the layer is registered for."""
    resumes: bool = False
    """Whether the layer no longer needs its inputs once it has a state."""
    is_constant: bool = False
    """Whether the layer has no input. Its tensors may hold infinities, as masks do."""
    waits: bool = False
    """Whether the layer's neurons need the input of all time steps before they spike, as with ``two_phase``."""

    @abstractmethod
    def forward(self, span: Span, state: State | None, *inputs: Any) -> tuple[Any, State | None]: ...

    @abstractmethod
    def settings(self) -> Settings:
        """Return what the loader needs in addition to the tensors."""

    def train(self, mode: bool = True) -> Any:
        """Stay in eval mode: frozen layers have no training mode."""
        return super().train(False)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save: all buffers."""
        return dict(self.named_buffers())

    def takes(self) -> str:
        """Return the kind of the inputs; ANY if it depends on the surrounding layers."""
        return ANY

    # Early exit reads these properties of layers that take real values.

    @property
    def only_moves(self) -> bool:
        """Whether the layer moves values without changing them."""
        return False

    @property
    def is_softmax(self) -> bool:
        """Whether the outputs are class probabilities, [N, K]."""
        return False

    @property
    def has_weights(self) -> bool:
        """Whether the layer multiplies values by weights, as nn.Linear does; it then has :meth:`with_ones`."""
        return False

    def with_ones(self, x: Tensor) -> Tensor:
        """Return the output with all weights 1 and no bias."""
        raise NotImplementedError

    def output(self, *inputs: Value) -> Value:
        """Return what is known about the output, given the inputs. Raise a ValueError if the inputs cannot be right."""
        return Value()

    def place(self, like: Tensor) -> None:
        """Learn the dtype and the device of the network from one of its tensors."""

    def forget_codes(self, *inputs: Value) -> None:
        """Forget with which spikes the layer was trained, where the inputs say which spikes arrive."""


Form = Callable[[Any, bool], FrozenLayer | None]
Loader = Callable[[Settings, Tensors], FrozenLayer]
FORMS: dict[type[nn.Module], Form] = {}
LOADERS: dict[str, Loader] = {}


def register(module: type[nn.Module], form: Form, load: Loader | None = None) -> None:
    """Let :func:`tandem_cuda.freeze` freeze modules of a class, but not of its subclasses, which may differ.

    Args:
        module: the class. Its name is the ``kind`` of the frozen layer.
        form: a function that takes a module, and whether its input is an EncodedInput, and returns the frozen form,
            which computes what the module computes in eval mode; None for a module that returns its input unchanged.
        load: a function that takes settings and tensors from a file and returns the frozen layer. It raises a TypeError
            or ValueError if these are not what the frozen layer saves.

    Examples:
        >>> from tandem_cuda.freeze import register
        >>> class Probe(nn.Identity):
        ...     pass
        >>> register(Probe, lambda module, encoded: None)  # frozen networks leave it out
        >>> net = nn.Sequential(Encode(4), TandemLinear(6, 5), Probe(), Decode(), nn.Linear(5, 2))
        >>> freeze(net.eval())(torch.rand(1, 6)).shape
        torch.Size([1, 2])
    """
    FORMS[module] = form
    if load is not None:
        LOADERS[module.__name__] = load


def class_of(module: nn.Module) -> type[Any]:
    """Return the module's class, ignoring parametrizations, which change it, and constructors of subclasses."""
    return torch_class(nn.utils.parametrize.type_before_parametrizations(module), FORMS)


def single(inputs: tuple[Value, ...], kind: str = ANY) -> Value:
    """Return the input of a layer that takes exactly one; raise a ValueError if it cannot be of this kind."""
    if len(inputs) != 1:
        raise ValueError(f"number of inputs must be 1, got {len(inputs)}")
    if kind != ANY:
        inputs[0].check_kind(kind)
    return inputs[0]
