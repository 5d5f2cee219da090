"""Turn networks of QCFS activations into spiking networks that count the levels of these activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..neuron import Neuron, check_neuron
from ..nn.modes import evaluating
from .calibrate import COUNTING, Calibration, Level
from .make import network_of
from .network import TandemNetwork
from .nodes import some


def from_qcfs(
    ann: nn.Module,
    activation: type[nn.Module],
    time_steps: int | None = None,
    *,
    threshold: str = "thresh",
    levels: str = "L",
    neuron: Neuron = COUNTING,
    calibrate: Tensor | Iterable[Any] | Calibration | Mapping[str, Level] | None = None,
    **options: Any,
) -> TandemNetwork:
    """Turn an ANN that was trained with QCFS activations into a spiking network with the same levels.

    QCFS (Bu et al., "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks", ICLR
    2022) rounds activations to L levels of a learned threshold. Two-phase neurons at T = L time steps count them::

        ANN:  thresh * clamp(floor(x / thresh * L + 1/2) / L, 0, 1)
        SNN:  theta * count, theta = thresh / T, count = clip(floor(x / theta + 1/2), 0, T)

    So theta * count is the ANN's activation, in every layer. Only where the rounding of floats puts x / theta + 1/2 on
    the other side of a whole number does a count differ, by one, and then what the layers behind it see. Averages that
    need neurons of their own are rounded once more (:meth:`TandemNetwork.report` names them). Another T, given here or
    to ``set_time_steps``, has the same range in T levels: the network computes the ANN with L = T, an approximation.

    The result is a conversion by :func:`convert`, which shares the ANN's parameters. Its thresholds are constants: if
    the ANN's thresholds change, by training or loading, the network raises a RuntimeError; then convert again.

    Args:
        ann: the ANN, with its checkpoint loaded. It computes QCFS, not the spikes of its own simulation.
        activation: the class of its QCFS activations. All modules of this class are run on numbers around their levels,
            to check that they compute the formula above.
        time_steps: T, by default L.
        threshold: the attribute of the activations that holds the threshold: one positive number.
        levels: the attribute that holds L, a whole number. Checkpoints do not hold it, so set it as in training.
        neuron: other neurons. ``IF(initial=0.5)`` spike while they integrate, as the authors' do, and approximate the
            levels. ``RadixIF()`` is exact for L = 2^T - 1, and refused for another L.
        calibrate: as for :func:`convert`. Needed if the ANN has other values before its last weight layer that get
            neurons, such as nn.ReLU's or a sum's without an activation.
        options: other arguments of :func:`convert`. By default, ``mode`` is "impulse", or "constant" for neurons that
            spike while they integrate, and ``correct_bias`` is False.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``ann`` has no such activations, they compute something else or have different L (give
            ``time_steps``), or :func:`convert` refuses the network.

    Examples:
        >>> class QCFS(nn.Module):
        ...     def __init__(self, L=4):
        ...         super().__init__()
        ...         self.thresh, self.L = nn.Parameter(torch.tensor([2.0])), L
        ...     def forward(self, x):
        ...         x = (x / self.thresh).clamp(0, 1)
        ...         return (x * self.L + 0.5).floor() / self.L * self.thresh
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), QCFS(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> snn = from_qcfs(ann, QCFS, example=torch.zeros(1, 1, 28, 28))
        >>> snn.time_steps, snn.levels
        (4, {'0': 2.0})
    """
    if not isinstance(ann, nn.Module):
        raise TypeError(f"from_qcfs: ann must be an nn.Module, got {type(ann).__name__}")
    if not (isinstance(activation, type) and issubclass(activation, nn.Module)):
        raise TypeError(f"from_qcfs: activation must be a class of modules, got {activation!r}")
    check_neuron("from_qcfs", neuron)
    modules = {name: module for name, module in ann.named_modules() if type(module) is activation}
    if not modules:
        kinds = ", ".join(sorted({type(module).__name__ for module in ann.modules()}))
        raise ValueError(
            f"from_qcfs: activation must be the class of modules in ann, got {activation.__name__}; it has {kinds}"
        )
    rule = QCFS(threshold, levels)
    read = {name: rule.read(name, module) for name, module in modules.items()}
    if time_steps is None:
        numbers = {name: number for name, (_, number) in read.items()}
        if len({*numbers.values()}) > 1:
            found = some([f"{number} ({name})" for name, number in numbers.items()], 6)
            raise ValueError(
                f"from_qcfs: time_steps must be given if {levels} differs, since no T is exact for all, got {found}"
            )
        (most,) = {*numbers.values()}
        time_steps = most.bit_length() if neuron.radix else most
    if neuron.radix and (other := {name: n for name, (_, n) in read.items() if n != neuron.levels(time_steps)}):
        found = some([f"{number} ({name})" for name, number in other.items()], 6)
        raise ValueError(
            f"from_qcfs: {levels} must be {neuron.levels(time_steps)}, the levels of {time_steps} radix spikes, got "
            f"{found}; pass neuron=IF(initial=0.5, two_phase=True) for other numbers"
        )
    mode = "impulse" if neuron.two_phase else "constant"
    options = {"mode": mode, "correct_bias": False, **options}
    scale = {name: 2**time_steps / number if neuron.radix else 1.0 for name, (_, number) in read.items()}
    known = {name: (threshold, threshold * scale[name]) for name, (threshold, _) in read.items()}
    return network_of(
        ann, time_steps, known, neuron=neuron, calibrate={} if calibrate is None else calibrate, **options
    )


@dataclass(frozen=True)
class QCFS:
    """A class of QCFS activations.

    ``threshold`` and ``levels`` are the names of attributes, as in :func:`from_qcfs`.
    """

    threshold: str
    levels: str

    def read(self, name: str, module: nn.Module) -> tuple[float, int]:
        """Return threshold and number of levels of a module, named for messages.

        Raises:
            ValueError: they are missing or out of range, or the module computes something else.
        """
        try:
            threshold, levels = (self._number(module, key) for key in (self.threshold, self.levels))
            if not 0 < threshold < math.inf:
                raise ValueError(f"it must have a positive threshold, got {self.threshold} = {threshold:.6g}")
            if not (levels.is_integer() and levels >= 1):
                raise ValueError(f"it must have a whole number of levels, got {self.levels} = {levels:.6g}")
            self._check(module, threshold, int(levels))
        except ValueError as error:
            raise ValueError(f"from_qcfs: {name} ({type(module).__name__}): {error}") from None
        return threshold, int(levels)

    def _number(self, module: nn.Module, name: str) -> float:
        x = getattr(module, name, None)
        if isinstance(x, (int, float)):
            return float(x)
        if isinstance(x, Tensor) and x.numel() == 1:
            return float(x.detach())
        got = f"of shape {list(x.shape)}" if isinstance(x, Tensor) else "missing" if x is None else repr(x)
        raise ValueError(
            "call tandem_cuda.from_qcfs with threshold= and levels=, the names of the attributes that hold one "
            f"threshold and the number of levels: its {name} is {got}"
        )

    def _check(self, module: nn.Module, threshold: float, levels: int) -> None:
        """Raise ValueError unless the module computes QCFS of numbers a quarter from where it steps."""
        like = getattr(module, self.threshold)
        v = torch.arange(-2, levels + 2, dtype=torch.float64).unsqueeze(1) + torch.tensor([0.25, 0.75])
        expected = (v + 0.5).floor().clamp(0, levels) * (threshold / levels)
        x = (v * (threshold / levels)).to(like if isinstance(like, Tensor) else torch.empty(0))
        formula = f"{self.threshold} * clamp(floor(x / {self.threshold} * {self.levels} + 1/2) / {self.levels}, 0, 1)"
        try:
            with evaluating(module), torch.no_grad():
                y = module(x).to(expected).reshape(expected.shape)
            wrong = ((y - expected).abs() * levels > 1e-3 * threshold) | y.isnan()
            got = f"it returns {y[wrong][0]:.6g} for {x[wrong][0]:.6g}" if wrong.any() else ""
        except Exception as error:  # forward may raise anything
            got = f"it raises {type(error).__name__}: {error}"
        if got:
            raise ValueError(f"let it compute {formula}, and no spikes: {got}")
