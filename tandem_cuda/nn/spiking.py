"""What a spiking layer says about itself, and the frozen layer that runs a spiking layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from .frozen import FrozenLayer, Span, State, class_of, register
from .schema import Check, Settings, Tensors, check_settings, check_tensors, with_tuples
from .sizes import ENCODED, SPIKES, Value


class Spiking(nn.Module):
    """A layer of spiking neurons, or one that moves, encodes or counts spikes. torch's module follows it in the bases.

    A frozen network does not share memory with the network that it was made from: it runs a copy of each layer, which
    :meth:`frozen` makes, or :meth:`of` from a file. Such a copy has constant buffers in place of parameters.
    """

    SETTINGS: ClassVar[Mapping[str, Check]] = {}
    """The arguments of the constructor that files contain, in their order, each with the check of its value."""
    reads: str = SPIKES
    """The kind of the inputs."""

    @property
    def needs_all_steps(self) -> bool:
        """Whether the neurons need the input of all time steps before they spike."""
        return False

    def settings(self) -> Settings:
        """Return what makes the layer again, together with the constants; in JSON types, but tuples for lists."""
        return {name: getattr(self, name) for name in self.SETTINGS}

    def constants(self) -> dict[str, Tensor]:
        """Return the tensors that the spiking twin needs in eval mode, by their names in files."""
        return {}

    @classmethod
    def of(cls, settings: Settings, tensors: Tensors) -> Any:
        """Make a frozen layer from the contents of a file; raise a TypeError or ValueError if they are wrong."""
        check_settings(cls.__name__, settings, {*cls.SETTINGS})
        cls.check(settings)
        check_tensors(cls.__name__, tensors, {})
        return cls.made(settings, tensors)

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Raise a ValueError unless the value of each setting of a file is right."""
        for name, check in cls.SETTINGS.items():
            check(cls.__name__, name, settings[name])

    @classmethod
    def made(cls, settings: Settings, tensors: Tensors) -> Any:
        """Make a frozen layer from what :meth:`settings` and :meth:`constants` return."""
        return cls(**with_tuples(settings))

    def frozen(self, encoded: bool) -> Any:
        """Return a frozen copy. ``encoded``: whether it reads the output of Encode instead of spikes."""
        return class_of(self).made(self.settings(), self.constants())

    def out_size(self, *inputs: Value) -> Value:
        """Return what is known about the output, given the inputs. Raise a ValueError if the inputs cannot be right."""
        raise NotImplementedError

    def forget_codes(self, *inputs: Value) -> None:
        """Forget with which spikes a frozen layer was trained, where it is known which spikes arrive."""

    def run(self, span: Span, state: State | None, *inputs: Any) -> tuple[Any, State | None]:
        """Run the spiking twin of a frozen layer alone; see :class:`.FrozenLayer`. Here of a layer without a state."""
        return self.forward(*inputs), None


class FrozenSpiking(FrozenLayer):
    """The spiking twin of a layer of this package.

    Args:
        layer: a frozen layer, which nothing else uses.
    """

    def __init__(self, layer: Spiking) -> None:
        super().__init__()
        self.kind = type(layer).__name__
        self.waits, self.resumes = layer.needs_all_steps, layer.reads == ENCODED
        self.layer = layer.eval()

    @classmethod
    def freezing(cls, layer: Spiking, encoded: bool) -> FrozenSpiking:
        return cls(layer.frozen(encoded))

    @classmethod
    def load(cls, layer_class: type[Spiking], settings: Settings, tensors: Tensors) -> FrozenSpiking:
        return cls(layer_class.of(settings, tensors))

    def forward(self, span: Span, state: State | None, *inputs: Any) -> tuple[Any, State | None]:
        layer: Any = self._modules["layer"]  # attributes of modules take longer
        return layer.run(span, state, *inputs)

    def settings(self) -> Settings:
        return self.layer.settings()

    def tensors(self) -> dict[str, Tensor]:
        return self.layer.constants()

    def takes(self) -> str:
        return self.layer.reads

    def output(self, *inputs: Value) -> Value:
        return self.layer.out_size(*inputs)

    def forget_codes(self, *inputs: Value) -> None:
        self.layer.forget_codes(*inputs)


def unwrapped(layer: nn.Module) -> nn.Module:
    """Return the layer that a frozen layer runs, if there is one, else the layer itself."""
    return layer.layer if isinstance(layer, FrozenSpiking) else layer


KINDS: dict[str, type[Any]] = {}
"""The classes of this package's own layers that files may name."""


def freezable(*layer_classes: type[Spiking]) -> None:
    """Let :func:`tandem_cuda.freeze` freeze layers of these classes, and load them from files."""
    for layer_class in layer_classes:
        KINDS[layer_class.__name__] = layer_class
        register(layer_class, FrozenSpiking.freezing, partial(FrozenSpiking.load, layer_class))
