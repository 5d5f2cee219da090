"""The base class of neuron models."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""The state variables of a model, each [N, ...]; operators take and return them as one tensor [S, N, ...]."""

Self = TypeVar("Self", bound="Neuron")


class NirForm(NamedTuple):
    """How NIR (Neuromorphic Intermediate Representation) describes neurons in continuous time.

    Examples:
        >>> form = IF(threshold=0.5).to_nir(dt=0.5)
        >>> form.node, form.values
        ('IF', {'r': 2.0, 'v_threshold': 0.5, 'v_reset': 0.0})
    """

    node: str
    """The class of the node, "IF" or "LIF"."""
    values: dict[str, float]
    """Its parameters, the same for all neurons."""
    metadata: dict[str, Any]


class Kind(NamedTuple):
    """What the compiled library knows of a model.

    Examples:
        >>> IF().KINDS[IF().kind]
        Kind(states=1, parameters=('threshold', 'initial'))
        >>> LIF().KINDS[LIF().kind].parameters
        ('threshold', 'leak', 'initial')
    """

    states: int
    """Number S of state variables. The first one is the membrane potential before its reset."""
    parameters: tuple[str, ...]
    """The fields that it takes, in this order."""


class Neuron:
    """A neuron model: a frozen dataclass that says how neurons spike and what their ANN twin computes.

    The compiled library has the same step in ``csrc/neuron``. A model's parameters cross the operator boundary as a
    vector of floats. Every model must override the methods that raise NotImplementedError here.

    Examples:
        >>> from tandem_cuda.neuron import Neuron
        >>> isinstance(IF(), Neuron), isinstance(LIF(), Neuron)
        (True, True)
    """

    KINDS: ClassVar[dict[int, Kind]]
    """The C++ models that this class uses, by their numbers in ``csrc/neuron/models.h``."""
    SETTINGS: ClassVar[tuple[str, ...]]
    """The fields and properties that frozen files always store, as floats."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ("initial",)
    """The fields that frozen files store only if they are not 0."""

    threshold: float
    clip: bool
    amplitude: float
    initial: float
    two_phase: bool = False
    """Whether the neuron first integrates the input of all time steps, and only then spikes."""

    # -- across the operator boundary

    @property
    def kind(self) -> int:
        """The number of the model in the compiled library."""
        return next(iter(self.KINDS))

    @property
    def parameters(self) -> list[float]:
        """The parameters that the compiled library takes."""
        return [getattr(self, name) for name in self.KINDS[self.kind].parameters]

    @classmethod
    def of_parameters(cls: type[Self], kind: int, parameters: Sequence[float]) -> Self:
        """The neuron of that kind with these ``parameters``."""
        return cls(**dict(zip(cls.KINDS[kind].parameters, parameters, strict=True)))

    @property
    def states(self) -> int:
        """Number S of state variables."""
        return self.KINDS[self.kind].states

    # -- the spiking neuron

    def rest(self, like: Tensor) -> State:
        """Return the state before the first time step.

        Args:
            like: a current [N, ...] of one time step; gives shape, dtype and device.
        """
        return (torch.full_like(like, self.initial) * self.threshold,)

    def step(self, state: State, x: Tensor) -> tuple[Tensor, State]:
        """Run one time step with the current x [N, ...].

        Returns the spikes, 0 or 1 in the dtype of x, and the new state. The compiled library performs the same
        operations in the same order, so that both round alike.
        """
        raise NotImplementedError

    # -- its ANN twin

    @property
    def saturation(self) -> float:
        """The constant current above which the spike count does not grow."""
        return self.threshold

    def largest(self, steps: int) -> float:
        """Return the approximate spike count of a neuron whose current is at or above ``saturation``."""
        return steps

    @property
    def relu_threshold(self) -> float | None:
        """The threshold if the activation is relu(v) / threshold, else None.

        The gradient of such an activation has faster kernels.
        """
        return None

    def upper(self, steps: int, scale: float = 1.0) -> float:
        """Return the pre-activation, times ``scale``, above which the gradient is zero."""
        return self.saturation * steps * scale if self.clip else math.inf

    def activation(self, v: Tensor, steps: int) -> Tensor:
        """Return the ANN's activation, in spikes, of the pre-activation v: the current summed over T = ``steps``."""
        raise NotImplementedError

    def slope(self, v: Tensor, steps: int) -> Tensor:
        """Return the derivative of ``activation`` with respect to v."""
        raise NotImplementedError

    def scaled(self: Self, factor: float) -> Self:
        """Return the same neuron for potentials and currents that are ``factor`` times as large."""
        return replace(self, threshold=self.threshold * factor)  # type: ignore[type-var]  # every model is a dataclass

    def calibrated(self, threshold: float) -> Neuron:
        """Return the neuron with this threshold whose amplitude * count approximates relu(v).

        Raises:
            ValueError: the model has no such neuron.
        """
        raise ValueError(f"neuron must be IF(...) with calibrate (a leak bends the rate), got {self}")

    # -- in files

    def settings(self) -> dict[str, float]:
        """Return what frozen files store of the neuron; all but ``clip``, which only training needs."""
        required = {name: float(getattr(self, name)) for name in self.SETTINGS}
        return required | {name: value for name in self.OPTIONAL if (value := float(getattr(self, name))) != 0}

    @classmethod
    def of_settings(cls, name: str, settings: dict[str, Any]) -> Neuron | None:
        """Return the neuron with these settings, or None if they belong to another model."""
        raise NotImplementedError

    def scales(self) -> dict[str, float]:
        """Return the settings that scale potentials."""
        return {name: float(getattr(self, name)) for name in self.SETTINGS}

    @classmethod
    def has_settings(cls, settings: dict[str, Any]) -> bool:
        """Whether the names are those of this model's settings."""
        return {*cls.SETTINGS} <= settings.keys() <= {*cls.SETTINGS, *cls.OPTIONAL}

    def to_nir(self, dt: float) -> NirForm:
        """Return the NIR form of the neuron, for time steps of length ``dt``.

        Raises:
            ValueError: NIR cannot describe the neuron.
        """
        raise NotImplementedError

    @classmethod
    def of_nir(cls, form: NirForm, dt: float) -> tuple[Neuron, float] | None:
        """Return the neuron and the factor of its input, or None if the node belongs to another model.

        Raises:
            ValueError: the model has no such neuron.
        """
        raise NotImplementedError


def stacked(variables: Sequence[Tensor]) -> Tensor:
    """Stack state variables [N, ...] into [S, N, ...], as operators take them. A single one is not copied."""
    return variables[0].unsqueeze(0) if len(variables) == 1 else torch.stack([*variables])


def check_number(name: str, argument: str, value: Any) -> None:
    """TypeError unless a parameter is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: {argument} must be a number, got {type(value).__name__}")


def check_positive(name: str, argument: str, value: Any) -> None:
    """TypeError or ValueError unless a parameter is a positive and finite number."""
    check_number(name, argument, value)
    # Comparisons, which torch.compile traces with numbers that it does not know; an int may exceed every float.
    if not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name}: {argument} must be positive and finite, got {value}")


def check_initial(name: str, value: Any) -> None:
    """TypeError or ValueError unless this is a number in [0, 1) that float32 does not round to 1."""
    check_number(name, "initial", value)
    if not 0 <= value < 1 - 2.0**-25:  # what is nearer to 1 is 1 in float32
        raise ValueError(f"{name}: initial must be in [0, 1), got {value}")


def check_nir_initial(neuron: Neuron) -> None:
    """ValueError unless the neurons start at 0."""
    if neuron.initial != 0:
        raise ValueError(
            f"initial must be 0, since NIR has no field for the potential at the start, got {neuron.initial}; leave it "
            f"out, as {type(neuron).__name__}() does"
        )


def store_floats(neuron: Neuron, *names: str) -> None:
    """Convert these fields to float. torch does not accept ints of more than 64 bits, but does accept floats."""
    for name in names:
        object.__setattr__(neuron, name, float(getattr(neuron, name)))  # past the dataclass's own lock


def nir_gain(gain: float) -> float:
    """Return the factor of a NIR node's input in one time step; exactly 1 if it differs from 1 only by rounding."""
    if not (gain != 0 and math.isfinite(gain)):
        raise ValueError(f"r * dt, or r * dt / tau, must be finite and not zero, got {gain}")
    return 1.0 if math.isclose(gain, 1, rel_tol=1e-9) else gain


def check_nir_reset(values: dict[str, float], leak: float) -> None:
    """ValueError unless a NIR node's reset subtracts the threshold. The leak of the next step acts on the reset."""
    threshold = values["v_threshold"]
    reset = threshold * (1 - 1 / leak)
    if not math.isclose(values["v_reset"], reset, rel_tol=1e-6, abs_tol=1e-9 * threshold):
        raise ValueError(
            f"v_reset must be v_threshold * (1 - 1 / leak) = {reset:.6g}, so that the reset subtracts the threshold, "
            f"got {values['v_reset']:.6g}"
        )
