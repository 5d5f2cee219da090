"""The base class of neuron models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from .parameter import CLIP, Parameter

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
        >>> leaky = LIF().KINDS[LIF().kind]
        >>> leaky.states, [parameter.name for parameter in leaky.parameters]
        (1, ['threshold', 'leak', 'initial'])
    """

    states: int
    """Number S of state variables. The first one is the membrane potential before its reset."""
    parameters: tuple[Parameter, ...]
    """The parameters that it takes, in this order."""


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
    PARAMETERS: ClassVar[tuple[Parameter, ...]]
    """All parameters but ``clip``, which only training needs."""

    threshold: float
    leak: float = 1.0
    """Factor by which the membrane potential decays in a time step: 1, no leak."""
    clip: bool
    amplitude: float = 1.0
    """What one spike weighs in the layer behind."""
    initial: float
    two_phase: bool = False
    """Whether the neuron first integrates the input of all time steps, and only then spikes."""
    radix: bool = False
    """Whether a spike of time step t weighs 2^(T-t) in the layer behind, in units of the amplitude; otherwise 1."""

    def __post_init__(self) -> None:
        owner = type(self).__name__
        CLIP.check(owner, getattr(self, "clip", False))  # a model of one's own may have none
        for parameter in self.PARAMETERS:
            value = getattr(self, parameter.name)
            parameter.check(owner, value)
            if type(value) is not float and not parameter.flag:  # torch does not accept ints of more than 64 bits
                object.__setattr__(self, parameter.name, float(value))  # past the dataclass's own lock

    def __repr__(self) -> str:
        """Positional arguments, and keyword arguments that are not their defaults."""
        whole = {parameter.name for parameter in self.PARAMETERS if parameter.whole}
        shown = []
        for argument in fields(self):  # type: ignore[arg-type]  # every model is a dataclass
            value = getattr(self, argument.name)
            if not argument.kw_only or value != argument.default:
                shown.append(f"{argument.name}={int(value) if argument.name in whole else value}")
        return f"{type(self).__name__}({', '.join(shown)})"

    # -- across the operator boundary

    @property
    def kind(self) -> int:
        """The number of the model in the compiled library."""
        return next(iter(self.KINDS))

    @property
    def parameters(self) -> list[float]:
        """The parameters that the compiled library takes."""
        return [getattr(self, parameter.name) for parameter in self.KINDS[self.kind].parameters]

    @classmethod
    def of_parameters(cls: type[Self], kind: int, parameters: Sequence[float]) -> Self:
        """The neuron of that kind with these ``parameters``."""
        names = [parameter.name for parameter in cls.KINDS[kind].parameters]
        return cls(**dict(zip(names, parameters, strict=True)))

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

    def threshold_at(self, steps: int) -> float:
        """Return the threshold of the last of T = ``steps`` time steps."""
        return self.threshold

    def discharge(self, v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Spike in T = ``steps`` time steps, after the input of all steps, v [N, ...]; of neurons with ``radix``.

        Returns the spikes [T, N, ...], 0 or 1 in the dtype of v, and the potential that is left, [1, N, ...].
        """
        raise NotImplementedError

    # -- its ANN twin

    def amplitude_at(self, steps: int) -> float:
        """Return what a spike weighs in the layer behind; with ``radix``, a spike of the last of T time steps."""
        return self.amplitude

    @property
    def saturation(self) -> float:
        """The constant current above which the spike count does not grow."""
        return self.threshold

    def largest(self, steps: int) -> float:
        """Return the approximate spike count of a neuron whose current is at or above ``saturation``."""
        return steps

    def levels(self, steps: int) -> int:
        """Return the largest number that T = ``steps`` spikes can stand for, in units of the amplitude."""
        return steps

    @property
    def relu_threshold(self) -> float | None:
        """The threshold if the activation is relu(v) / threshold, else None.

        The gradient of such an activation has faster kernels.
        """
        return None

    def relu_threshold_at(self, steps: int) -> float | None:
        """Return ``relu_threshold`` for T = ``steps`` time steps."""
        return self.relu_threshold

    def shares(self, steps: int) -> int:
        """Return into how many parts T = ``steps`` time steps divide a bias or a level: T or, with ``radix``, 1."""
        return steps

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
        potentials = {p.name: getattr(self, p.name) * factor for p in self.PARAMETERS if p.potential}
        return replace(self, **potentials)  # type: ignore[type-var]  # every model is a dataclass

    def calibrated(self, threshold: float) -> Neuron:
        """Return the neuron with this threshold, or with ``radix`` with this level, whose output approximates relu(v).

        Raises:
            ValueError: the model has no such neuron.
        """
        raise ValueError(f"neuron must be IF(...) or RadixIF(...) with calibrate, got {self}")

    # -- in files

    def settings(self) -> dict[str, Any]:
        """Return what frozen files store of the neuron: its model, and all parameters but ``clip``.

        Only training needs ``clip``.
        """
        return {"model": type(self).__name__, **{p.name: getattr(self, p.name) for p in self.PARAMETERS}}

    def scales(self) -> dict[str, float]:
        """Return the settings that scale potentials, none of which can be 0."""
        return {p.name: getattr(self, p.name) for p in self.PARAMETERS if not p.holds(0)}

    def to_nir(self, dt: float) -> NirForm:
        """Return the NIR form of the neuron, for time steps of length ``dt``.

        Raises:
            ValueError: NIR cannot describe the neuron.
        """
        raise ValueError(f"neuron must have a form in NIR, got {self}")

    @classmethod
    def of_nir(cls, form: NirForm, dt: float) -> tuple[Neuron, float] | None:
        """Return the neuron and the factor of its input, or None if the node belongs to another model.

        Raises:
            ValueError: the model has no such neuron.
        """
        return None


def stacked(variables: Sequence[Tensor]) -> Tensor:
    """Stack state variables [N, ...] into [S, N, ...], as operators take them. A single one is not copied."""
    return variables[0].unsqueeze(0) if len(variables) == 1 else torch.stack([*variables])


def check_nir(neuron: Neuron) -> None:
    """Raise a ValueError unless all optional parameters are 0."""
    for parameter in neuron.PARAMETERS:
        value = getattr(neuron, parameter.name)
        if parameter.optional and value != 0:
            nothing = False if parameter.flag else 0
            raise ValueError(
                f"{parameter.name} must be {nothing}, since {parameter.not_in_nir}, got {value}; leave it out, as "
                f"{type(neuron).__name__}() does"
            )


def nir_gain(gain: float) -> float:
    """Return the factor of a NIR node's input in one time step; exactly 1 if it differs from 1 only by rounding."""
    if not (gain != 0 and math.isfinite(gain)):
        raise ValueError(f"r * dt, or r * dt / tau, must be finite and not zero, got {gain}")
    return 1.0 if math.isclose(gain, 1, rel_tol=1e-9) else gain


def check_nir_reset(values: dict[str, float], leak: float) -> None:
    """Raise a ValueError unless a NIR node's reset subtracts the threshold. The leak of the next step acts on it."""
    threshold = values["v_threshold"]
    reset = threshold * (1 - 1 / leak)
    if not math.isclose(values["v_reset"], reset, rel_tol=1e-6, abs_tol=1e-9 * threshold):
        raise ValueError(
            f"v_reset must be v_threshold * (1 - 1 / leak) = {reset:.6g}, so that the reset subtracts the threshold, "
            f"got {values['v_reset']:.6g}"
        )
