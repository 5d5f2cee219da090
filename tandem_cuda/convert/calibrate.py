"""Calibrate a converted network: find the levels of its layers, and the corrections of their biases."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._progress import progress
from ..neuron import Neuron, of_settings
from ..nn import TandemAdd
from ..nn.modes import evaluating
from ..nn.tandem import TandemLayer
from ..ops import checks
from ..spike_train import SpikeTrain
from .batches import Batch, copied

Level = float | Tensor
"""T times a threshold: of all neurons of a layer, or of each channel or feature, [C]."""


@dataclass(frozen=True)
class Calibration:
    """What calibration found. Pass it to :func:`convert` as ``calibrate`` to use it again.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> snn = convert(ann, time_steps=8, calibrate=torch.rand(16, 1, 28, 28))
        >>> list(snn.calibration.levels)
        ['0']
        >>> again = convert(ann, time_steps=8, calibrate=snn.calibration)
    """

    time_steps: int
    """T, for which it was made."""
    levels: Mapping[str, Level]
    """T * threshold of layers, by name: a number, or with ``per_channel`` a float64 Tensor [C]."""
    corrections: Mapping[str, Tensor] = field(default_factory=dict)
    """What ``correct_bias`` adds to the pre-activations of layers, by name: float64 Tensors [C]."""
    neuron: Neuron | None = None
    """The neurons for which it was made, with a threshold of their own that it replaces; None if not known."""

    def as_tensor(self) -> Tensor:
        """Return all of it as JSON in uint8, so that state dicts and their files can hold it."""
        found = {
            "time_steps": self.time_steps,
            "levels": {name: _as_json(level) for name, level in self.levels.items()},
            "corrections": {name: _as_json(x) for name, x in self.corrections.items()},
            "neuron": None if self.neuron is None else {**self.neuron.settings(), "clip": self.neuron.clip},
        }
        return torch.frombuffer(bytearray(json.dumps(found).encode()), dtype=torch.uint8)

    @classmethod
    def of_tensor(cls, state: Tensor) -> Calibration:
        """Undo :meth:`as_tensor`.

        Raises:
            ValueError: ``state`` is something else.
        """
        try:
            found = json.loads(bytes(state.cpu().tolist()))
            neuron = found["neuron"]
            if neuron is not None:
                clip = bool(neuron.pop("clip"))
                neuron = replace(of_settings("Calibration", neuron), clip=clip)  # type: ignore[type-var]  # a dataclass
            return cls(
                int(found["time_steps"]),
                {name: _of_json(level) for name, level in found["levels"].items()},
                {name: torch.tensor(x, dtype=torch.float64) for name, x in found["corrections"].items()},
                neuron,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Calibration: the extra state must be that of a TandemNetwork, got {error!r}") from None

    @classmethod
    def of_state(cls, state_dict: Mapping[str, Any], prefix: str = "") -> Calibration:
        """Return the calibration of the network whose ``state_dict`` this is.

        With it, :func:`convert` makes a network that can load the state, in another process too.

        Args:
            state_dict: of a calibrated ``TandemNetwork``, or of a module that contains one.
            prefix: the name of the network in that module, with a dot: "net.".

        Raises:
            ValueError: ``state_dict`` has none, as that of the ANN or of a network that is not calibrated.

        Examples:
            >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
            >>> state = convert(ann, time_steps=8, calibrate=torch.rand(16, 1, 28, 28)).state_dict()
            >>> again = convert(ann, time_steps=8, calibrate=Calibration.of_state(state))
            >>> again.load_state_dict(state)
            <All keys matched successfully>
        """
        if prefix + EXTRA_STATE not in state_dict:
            raise ValueError(
                f"Calibration: state_dict must be that of a calibrated TandemNetwork, got one without "
                f"{prefix + EXTRA_STATE!r}"
            )
        return cls.of_tensor(state_dict[prefix + EXTRA_STATE])


EXTRA_STATE = "_extra_state"
"""torch's key in state dicts for what is neither parameter nor buffer: here the calibration."""


def _as_json(x: Level) -> Any:
    return x.tolist() if isinstance(x, Tensor) else x


def _of_json(x: Any) -> Level:
    return torch.tensor(x, dtype=torch.float64) if isinstance(x, list) else float(x)


@dataclass(frozen=True)
class Measured:
    """A value of the ANN, and the spiking layer that stands for it."""

    name: str
    node: fx.Node
    signed: bool = False
    """Whether there are neurons for both signs."""
    bound: float = math.inf
    """The largest value that the activation returns."""
    channels: int | None = None
    """The number of channels or features that each have a level or a correction; None for one of the whole layer."""
    dim: int = 1
    """The dimension of channels or features."""

    def activation(self, v: Tensor) -> Tensor:
        """Return what the neurons stand for."""
        return v if self.signed else v.clamp(0, self.bound)

    def groups(self, v: Tensor) -> Tensor:
        """Return [C, ...], or [1, ...] without channels."""
        return v.flatten().unsqueeze(0) if self.channels is None else v.movedim(self.dim, 0).flatten(1)


class _Recorder(fx.Interpreter):
    """Runs the ANN and shows values to a function."""

    def __init__(
        self, ann: nn.Module, graph: fx.Graph, measured: Sequence[Measured], see: Callable[[Measured, Tensor], None]
    ) -> None:
        super().__init__(ann, graph=graph)
        self.of_node: dict[fx.Node, list[Measured]] = {}
        for what in measured:
            self.of_node.setdefault(what.node, []).append(what)
        self.see = see

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        for what in self.of_node.get(n, []):
            if not out.isfinite().all():
                raise ValueError(
                    f"convert: activations of the ANN must be finite, got NaN or infinity after {what.name}"
                )
            if out.numel():
                self.see(what, what.activation(out))
        return out


def checked_levels(names: Mapping[str, int | None], pools: list[str], levels: Mapping[str, Any]) -> dict[str, Level]:
    """Return the given levels of all layers, and of those pools that have one.

    ``names``: the spiking layers, and the numbers of their channels that each have a level.
    """
    missing = [name for name in names if name not in levels]
    if missing:
        raise ValueError(f"convert: calibrate must hold a level for each spiking layer, got none for {missing}")
    return {name: _checked_level(name, levels[name], names.get(name)) for name in [*names, *pools] if name in levels}


def _checked_level(name: str, level: Any, channels: int | None) -> Level:
    if isinstance(level, Tensor):
        expected = () if channels is None else (channels,)
        if level.shape != expected:
            raise ValueError(f"convert: calibrate[{name!r}] must be {list(expected)}, got {list(level.shape)}")
        level = level.detach().double().cpu()
        worst = level.flatten()[level.flatten().nan_to_num(-1, math.inf).argmin()].item()
        worst = worst if level.isfinite().all() else level[~level.isfinite()][0].item()
    else:
        checks.check_number("convert", f"calibrate[{name!r}]", level)
        worst = level = float(level)
    if not math.isfinite(worst):
        raise ValueError(f"convert: calibrate[{name!r}] must be finite, got {worst}")
    if not worst > 0:
        raise ValueError(f"convert: calibrate[{name!r}] must be positive, got {worst}")
    if channels is None:
        return float(level)
    return torch.as_tensor(level, dtype=torch.float64).expand(channels)


def percentiles(
    ann: nn.Module, graph: fx.Graph, measured: Sequence[Measured], inputs: Sequence[Batch], percentile: float
) -> dict[str, Level]:
    """Return a percentile of each value, averaged over the batches (Rueckauer et al. 2017)."""
    totals = {what.name: torch.zeros(what.channels or 1, dtype=torch.float64) for what in measured}

    def see(what: Measured, value: Tensor) -> None:
        values = what.groups(value.abs())
        rank = max(1, math.ceil(percentile / 100 * values.shape[1]))
        level = values.kthvalue(rank, 1).values
        level = torch.where(level > 0, level, values.amax(1))  # the percentile is 0 where few neurons are active
        totals[what.name] += level.double().cpu() / len(inputs)

    _run(ann, graph, measured, inputs, see)
    return _positive(measured, totals)


def least_errors(
    ann: nn.Module,
    graph: fx.Graph,
    measured: Sequence[Measured],
    inputs: Sequence[Batch],
    time_steps: int,
    initial: float,
) -> dict[str, Level]:
    """Return the level at which each value a differs least from what neurons make of it.

    The level L minimises the sum of (a - theta * clip(floor(a / theta + initial), 0, T))^2, theta = L / T: the error of
    rounding to whole spikes and that of clipping at T spikes. Candidates are the largest activation times
    2^(-k / 12), k = 0..83. The sum is that of a sample of the activations, the same in every call.
    """
    largest = {what.name: torch.zeros(what.channels or 1, dtype=torch.float64) for what in measured}
    errors: dict[str, Tensor] = {}
    factors = [2 ** (-k / 12) for k in range(84)]

    def find_largest(what: Measured, value: Tensor) -> None:
        found = what.groups(value.abs()).amax(1).double().cpu()
        largest[what.name] = torch.maximum(largest[what.name], found)

    def add_errors(what: Measured, value: Tensor) -> None:
        values = _sample(what.groups(value.abs()))
        top = largest[what.name].to(values).unsqueeze(1)
        top = torch.where(top > 0, top, 1)
        found = []
        for factor in factors:
            threshold = top * (factor / time_steps)
            count = (values / threshold + initial).floor_().clamp_(0, time_steps)
            found.append((values - count.mul_(threshold)).square_().sum(1, dtype=torch.float64).cpu())
        errors[what.name] = errors.get(what.name, 0) + torch.stack(found)

    _run(ann, graph, measured, inputs, find_largest)
    _positive(measured, largest)
    _run(ann, graph, measured, inputs, add_errors)
    scale = torch.tensor(factors, dtype=torch.float64)
    return _positive(measured, {name: largest[name] * scale[error.argmin(0)] for name, error in errors.items()})


def _run(
    ann: nn.Module,
    graph: fx.Graph,
    measured: Sequence[Measured],
    inputs: Sequence[Batch],
    see: Callable[[Measured, Tensor], None],
) -> None:
    recorder = _Recorder(ann, graph, measured, see)
    with evaluating(ann), torch.no_grad():
        for x in progress(inputs, "convert: calibrating"):
            recorder.run(*copied(x))


def _sample(values: Tensor) -> Tensor:
    """Return up to about 2^18 of the values [C, M], for each channel the same positions."""
    channels, number = values.shape
    wanted = max(2**18 // channels, 512)
    if number <= wanted:
        return values
    at = torch.randint(number, (wanted,), generator=torch.Generator().manual_seed(0))
    return values[:, at.to(values.device)]


def _positive(measured: Sequence[Measured], found: Mapping[str, Tensor]) -> dict[str, Level]:
    """Return levels. Channels that the data never activate get the layer's largest."""
    levels: dict[str, Level] = {}
    for what in measured:
        level = found[what.name]
        if not level.max() > 0:
            raise ValueError(
                "convert: calibrate must activate every layer, got data that never makes the output of "
                f"{what.name} positive"
            )
        level = torch.where(level > 0, level, level.max())
        levels[what.name] = float(level) if what.channels is None else level
    return levels


# -- corrections of biases

_PASSES = 4
"""A correction changes which neurons fire, so it is found in several steps."""


def weight_layer(layer: Any) -> TandemLayer | None:
    """Return the tandem layer that holds the correction of a spiking layer; None if it has no place for one."""
    if isinstance(layer, TandemAdd):
        return next((branch for branch in layer.branches if isinstance(branch, TandemLayer)), None)
    return layer if isinstance(layer, TandemLayer) else None


def set_correction(layer: TandemLayer, correction: Tensor, signed: bool) -> None:
    """Add [C] to the pre-activations of a layer."""
    if signed:
        correction = torch.stack([correction, -correction], 1).flatten()
    layer.correction = correction.to(layer.weights.stored())


def find_corrections(
    ann: nn.Module, graph: fx.Graph, snn: fx.GraphModule, measured: Sequence[Measured], inputs: Sequence[Batch]
) -> dict[str, Tensor]:
    """Correct the biases of the spiking network, layer by layer, and return the corrections.

    A layer's correction shifts its pre-activations so that each channel's decoded activation has the mean of the ANN's
    activation, given the corrected layers before it (Li et al., "A Free Lunch From ANN: Towards Efficient, Accurate
    Spiking Neural Networks Calibration", 2021, arXiv:2106.06984).
    """
    totals: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}

    def see(what: Measured, value: Tensor) -> None:
        values = what.groups(value)
        totals[what.name] = totals.get(what.name, 0) + values.sum(1, dtype=torch.float64).cpu()
        numbers[what.name] = numbers.get(what.name, 0) + values.shape[1]

    _run(ann, graph, measured, inputs, see)
    wanted = {what.name: what for what in measured if what.name in totals}
    corrections: dict[str, Tensor] = {}
    runs = [_started(snn, x) for x in inputs]
    with evaluating(snn), torch.no_grad():
        for node in snn.graph.nodes:
            if not wanted:
                break
            what = wanted.pop(str(node.target), None) if node.op == "call_module" else None
            if what is not None:
                mean = totals[what.name] / numbers[what.name]
                corrections[what.name] = _corrected(snn.get_submodule(what.name), node, what, mean, runs)
            for run in runs:
                run.env[node] = run.run_node(node)
                for dead in run.user_to_last_uses.get(node, []):
                    del run.env[dead]
    return corrections


def _started(snn: fx.GraphModule, x: Batch) -> fx.Interpreter:
    run = fx.Interpreter(snn)
    run.args_iter = iter(copied(x))
    return run


def _corrected(layer: Any, node: fx.Node, what: Measured, mean: Tensor, runs: Sequence[fx.Interpreter]) -> Tensor:
    """Find the correction of one layer, whose inputs are known."""
    holder = weight_layer(layer)
    assert holder is not None
    correction = torch.zeros_like(mean)
    for _ in range(_PASSES):
        set_correction(holder, correction, what.signed)
        total, number = torch.zeros_like(mean), 0
        for run in runs:
            values = what.groups(_decoded(layer, run.run_node(node), what))
            total += values.sum(1, dtype=torch.float64).cpu()
            number += values.shape[1]
        correction = correction + mean - total / number
    set_correction(holder, correction, what.signed)
    return correction


def _decoded(layer: Any, train: SpikeTrain, what: Measured) -> Tensor:
    """Return what the spikes of a layer stand for."""
    value = train.count * train.amplitude
    holder = weight_layer(layer)
    if holder is not None and (thresholds := holder.thresholds) is not None:  # all branches have the same
        shape = [1] * value.dim()
        shape[what.dim] = -1
        value = value * thresholds.view(shape)
    if what.signed:
        value = value.movedim(what.dim, -1)
        value = (value[..., ::2] - value[..., 1::2]).movedim(-1, what.dim)
    return value
