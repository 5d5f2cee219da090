"""Calibrate a converted network: find the levels of its layers, and correct their biases."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from .._progress import progress
from ..neuron import IF, Neuron, RadixIF, check_neuron, of_settings
from ..neuron.radix_if import MOST_STEPS
from ..nn import TandemNeurons
from ..nn.modes import evaluating
from ..nn.tandem import TandemLayer
from ..ops import checks
from .calibration_data import CalibrationData
from .comparison import Likeness, OutputComparison
from .conversion import Conversion
from .corrections import Activations, Places, find_corrections, weight_layer
from .graph import Graph
from .inputs import Batch, copied, pieces, samples_of
from .values import SpikingLayer

_PIECE = 2**20
"""Numbers of an input that the networks take at a time. With all of 64 photographs at once, the runs of
EfficientNet-Lite0 and of its spiking network take 6.1 s in place of 3.7."""

Level = float | Tensor
"""T times a threshold: of all neurons of a layer, or of each channel or feature, [C]."""


@dataclass(frozen=True)
class Calibration:
    """What calibration found. Pass it to :func:`convert` as ``calibrate`` to use it again.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> images = torch.rand(16, 1, 28, 28)
        >>> snn = convert(ann, time_steps=8, calibrate=images)
        >>> list(snn.calibration.levels)
        ['0']
        >>> again = convert(ann, time_steps=8, calibrate=snn.calibration, example=images)
    """

    time_steps: int
    """The T for which it was made."""
    levels: Mapping[str, Level]
    """T * threshold of layers, by name: a number, or with ``per_channel`` a float64 Tensor [C]."""
    corrections: Mapping[str, Tensor] = field(default_factory=dict)
    """What ``correct_bias`` adds to the pre-activations of layers, by name: float64 Tensors [C]."""
    neuron: Neuron | None = None
    """The neurons for which it was made; their own threshold is replaced. None if not known."""

    def as_tensor(self) -> Tensor:
        """Return the calibration as JSON in uint8, so that state dicts and their files can hold it."""
        state = {
            "time_steps": self.time_steps,
            "levels": {name: _as_json(level) for name, level in self.levels.items()},
            "corrections": {name: _as_json(x) for name, x in self.corrections.items()},
            "neuron": None if self.neuron is None else {**self.neuron.settings(), "clip": self.neuron.clip},
        }
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

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
            state_dict: the state of a calibrated ``TandemNetwork``, or of a module that contains one.
            prefix: the name of the network in that module, with a dot: "net.".

        Raises:
            ValueError: ``state_dict`` has no calibration: it is the ANN's, or a network's that is not calibrated.

        Examples:
            >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
            >>> images = torch.rand(16, 1, 28, 28)
            >>> state = convert(ann, time_steps=8, calibrate=images).state_dict()
            >>> again = convert(ann, time_steps=8, calibrate=Calibration.of_state(state), example=images)
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


class Measure(Protocol):
    """What is measured of the ANN's activations, for each of some layers."""

    layers: Sequence[SpikingLayer]

    def add(self, layer: SpikingLayer, values: Tensor, share: float) -> None:
        """Add the activations of a batch, [C, N, M], which has ``share`` of all samples."""


def observe(
    graph: Graph, batches: Sequence[Batch], *measures: Measure, compared: int, data: CalibrationData | None = None
) -> list[Any]:
    """Run the ANN on each batch once, and show its activations to all measures, and all values to ``data``.

    Returns:
        The outputs for the first ``compared`` batches.

    Raises:
        ValueError: an activation is not finite.
    """
    seen: dict[fx.Node, list[tuple[SpikingLayer, Measure]]] = {}
    for measure in measures:
        for layer in measure.layers:
            seen.setdefault(layer.node, []).append((layer, measure))
    share = 0.0

    def show(node: fx.Node, value: Any) -> None:
        if data is not None:
            data.see(node, value)
        if node not in seen or not value.numel():
            return
        if not (value.sum().isfinite() or value.isfinite().all()):  # finite numbers may have an infinite sum
            raise ValueError(
                f"convert: activations of the ANN must be finite, got NaN or infinity after {seen[node][0][0].name}"
            )
        shown: dict[Any, Tensor] = {}  # measures of the same values share them
        for layer, measure in seen[node]:
            form = layer.signed, layer.bound, layer.channels, layer.dim
            if form not in shown:
                shown[form] = layer.by_channel(layer.activation(value))
            measure.add(layer, shown[form], share)

    samples = sum(map(samples_of, batches))
    kept: list[Any] = []
    with evaluating(graph.ann), torch.no_grad():
        for batch in progress(batches, "convert: calibrating"):
            share = samples_of(batch) / max(samples, 1)
            outputs = graph.run(copied(batch), show)
            if len(kept) < compared:
                kept.append(outputs)
    return kept


def checked_levels(names: Mapping[str, int | None], pools: list[str], levels: Mapping[str, Any]) -> dict[str, Level]:
    """Return the given levels of all layers, and of the pools that have a level.

    ``names``: the spiking layers, each with the number of its channels if every channel has a level.
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
        worst = level.min().item() if level.isfinite().all() else level[~level.isfinite()][0].item()
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


class Percentiles:
    """Levels that are a percentile of each activation, averaged over the batches (Rueckauer et al. 2017)."""

    def __init__(self, layers: Sequence[SpikingLayer], percentile: float) -> None:
        self.layers, self.percentile = layers, percentile
        self.found: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}

    def add(self, layer: SpikingLayer, values: Tensor, share: float) -> None:
        """Add the activations of a batch, [C, N, M]."""
        values = values.abs().flatten(1)
        rank = max(1, math.ceil(self.percentile / 100 * values.shape[1]))
        level = values.kthvalue(rank, 1).values
        level = torch.where(level > 0, level, values.amax(1))  # the percentile is 0 where few neurons are active
        self.found[layer.name].append(level.double().cpu())

    def levels(self) -> dict[str, Level]:
        """Return the level of each layer."""
        none = torch.zeros(1)
        found = {name: torch.stack(levels).mean(0) if levels else none for name, levels in self.found.items()}
        return _positive(self.layers, found)


class LeastErrors:
    """Levels at which the neurons' answers differ least from the activations.

    The level L minimises the sum over activations a of (a - theta * clip(floor(a / theta + initial), 0, T))^2, theta =
    L / T: the error of rounding to whole spikes and the error of clipping at T spikes. Of radix spikes, the largest
    value is 2^T - 1 and theta is L / 2^T. Candidates are the largest activation times 2^(-k / 12), k = 0..83. The sum
    is taken over a sample of the activations, which is drawn alike in every call.
    """

    def __init__(self, layers: Sequence[SpikingLayer], time_steps: int, neuron: Neuron) -> None:
        self.layers = layers
        self.parts = 2**time_steps if neuron.radix else time_steps
        self.most, self.initial = neuron.levels(time_steps), neuron.initial
        self.largest = {layer.name: torch.zeros(layer.channels or 1, dtype=torch.float64) for layer in layers}
        self.samples: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}

    def add(self, layer: SpikingLayer, values: Tensor, share: float) -> None:
        """Add the activations of a batch, [C, N, M]."""
        values = values.abs() if layer.signed else values
        self.largest[layer.name] = torch.maximum(self.largest[layer.name], values.amax((1, 2)).double().cpu())
        samples = self.samples[layer.name]
        samples.append(Places.drawn(values, share, seed=len(samples)).of_channels(values).flatten(1))

    def levels(self) -> dict[str, Level]:
        """Return the level of each layer."""
        found = {}
        for name, samples in self.samples.items():
            largest = self.largest[name].to(samples[0]).unsqueeze(1)
            factor = self._best_factor(torch.cat(samples, 1), torch.where(largest > 0, largest, 1))
            found[name] = self.largest[name] * factor
        return _positive(self.layers, found)

    def _best_factor(self, values: Tensor, largest: Tensor) -> Tensor:
        """Return the factor of the largest activation [C, 1] with the least error for values [C, M], [C] in float64."""
        least = torch.full([len(values)], math.inf, dtype=torch.float64, device=values.device)
        best = torch.ones_like(least)
        for k in range(84):
            factor = 2 ** (-k / 12)
            threshold = largest * (factor / self.parts)
            # Smaller levels clip more. Where clipping alone costs as much as the best level, no smaller one is better.
            if k % 4 == 3 and (_norms((values - self.most * threshold).relu_()) >= least).all():
                break
            count = (values / threshold + self.initial).floor_().clamp_(0, self.most)
            error = _norms(count.mul_(threshold).sub_(values))
            best = torch.where(error < least, factor, best)
            least = torch.minimum(error, least)
        return best.cpu()


def _norms(errors: Tensor) -> Tensor:
    """Return the norm of each row. It is computed in float32 at least: in float64 it would take eight times as long."""
    precision = torch.promote_types(errors.dtype, torch.float32)
    return torch.linalg.vector_norm(errors, dim=1, dtype=precision).double()


def _positive(layers: Sequence[SpikingLayer], measured: Mapping[str, Tensor]) -> dict[str, Level]:
    """Return levels that are positive.

    Channels that the data never activate get the largest level of the layer, and layers without any such level get 1.
    """
    levels: dict[str, Level] = {}
    for layer in layers:
        level = measured[layer.name]
        if not level.max() > 0:
            warnings.warn(
                f"convert: the calibration data never make the output of {layer.name} positive, so its level is 1. If "
                "other data will, calibrate on them",
                stacklevel=7,  # the caller of convert
            )
        level = torch.where(level > 0, level, level.max() if level.max() > 0 else 1.0)
        levels[layer.name] = float(level) if layer.channels is None else level
    return levels


COUNTING = IF(initial=0.5, two_phase=True)
"""The most accurate neurons of which each spike counts alike."""


def most_accurate(time_steps: int, mode: str | None) -> Neuron:
    """Return the neurons of a calibrated conversion, unless ``neuron`` says otherwise."""
    return RadixIF() if time_steps <= MOST_STEPS and mode != "constant" else COUNTING


@dataclass(frozen=True)
class CalibrationSettings:
    """The arguments of :func:`convert` that say how to calibrate."""

    calibrate: Any
    percentile: float | None
    per_channel: bool
    correct_bias: bool | None

    def earlier(self, time_steps: int) -> Calibration | None:
        """Return the earlier calibration that is to be used again; None for new data or no calibration."""
        if isinstance(self.calibrate, Mapping):
            return Calibration(time_steps, self.calibrate)
        return self.calibrate if isinstance(self.calibrate, Calibration) else None

    @property
    def on_data(self) -> bool:
        """Whether ``calibrate`` is inputs of the ANN."""
        return self.calibrate is not None and not isinstance(self.calibrate, (Mapping, Calibration))

    def check(self, mode: str) -> None:
        """Raise a TypeError or ValueError if an argument is wrong or does not fit another one."""
        if self.percentile is not None:
            checks.check_number("convert", "percentile", self.percentile)
            if not 0 < self.percentile <= 100:
                raise ValueError(f"convert: percentile must be in (0, 100], got {self.percentile}")
        for name, kinds, words in (
            ("per_channel", bool, "True or False"),
            ("correct_bias", (bool, type(None)), "True, False or None"),
        ):
            value = getattr(self, name)
            if not isinstance(value, kinds):
                raise TypeError(f"convert: {name} must be {words}, got {type(value).__name__}")
        for name in ("per_channel", "correct_bias"):
            if getattr(self, name) and not self.on_data:
                got = "None" if self.calibrate is None else "the result of an earlier calibration"
                raise ValueError(f"convert: calibrate must be inputs of the ANN with {name}=True, got {got}")
        if self.correct_bias and mode == "spikes":
            raise ValueError("convert: mode must be that of Encode with correct_bias=True, got 'spikes'")

    def neuron(self, neuron: Neuron | None, time_steps: int, mode: str | None) -> Neuron:
        """Return the neurons of the network: ``neuron``, or the default.

        Raises:
            TypeError: ``neuron`` is not a neuron model.
            ValueError: ``neuron`` cannot be calibrated.
        """
        if neuron is None:
            found = self.calibrate.neuron if isinstance(self.calibrate, Calibration) else None
            neuron = found or (IF() if self.calibrate is None else most_accurate(time_steps, mode))
        check_neuron("convert", neuron)
        if self.calibrate is not None:
            try:
                neuron.calibrated(1.0)
            except ValueError as error:
                raise ValueError(f"convert: {error}") from None
        return neuron

    def channels(self, earlier: Calibration | None) -> bool:
        """Whether each channel gets a threshold."""
        if self.calibrate is None:
            return False
        if earlier is not None:
            return any(isinstance(level, Tensor) and level.dim() for level in earlier.levels.values())
        return self.per_channel

    def not_default(self, neuron: Neuron | None, time_steps: int, mode: str | None) -> list[str]:
        """Return the names of the arguments that make a network less accurate than the defaults.

        ``neuron`` and ``mode`` are the arguments of the call.
        """
        best = most_accurate(time_steps, None)
        worse = {
            "mode": mode == "constant" and best.radix,
            "neuron": neuron is not None and neuron != best,
            "percentile": self.percentile is not None,
            "per_channel": self.per_channel,
            "correct_bias": self.correct_bias is False,
        }
        return [name for name, differs in worse.items() if differs]


class Calibrator:
    """Finds the levels and the corrections for the layers of a conversion.

    Args:
        conversion: the conversion.
        snn: the spiking twin that it has written.
        settings: how to calibrate.
    """

    def __init__(self, conversion: Conversion, snn: fx.GraphModule, settings: CalibrationSettings) -> None:
        self.graph, self.writer = conversion.source, conversion.writer
        self.options, self.snn, self.settings = conversion.writer.options, snn, settings
        self.activations: Activations | None = None
        self.outputs_of_ann: list[Any] = []
        self.data = CalibrationData(self.graph)

    def calibration(self, batches: Sequence[Batch]) -> Calibration:
        """Measure the level of each spiking layer, and of average poolings with neurons.

        The same runs of the ANN measure what :meth:`corrections` needs.
        """
        unknown = [layer for layer in self.writer.layers if layer.level is None]
        layers = [self._measured(layer, self._has_level_of_channels(layer)) for layer in unknown]
        # Signed poolings cannot be measured: the ANN never computes the average of the positive part alone.
        layers += [pool for pool, _ in self.writer.pools if not pool.signed]
        measure: Percentiles | LeastErrors
        if self.settings.percentile is not None:
            measure = Percentiles(layers, self.settings.percentile)
        else:
            measure = LeastErrors(layers, self.options.time_steps, self.options.neuron)
        corrects = self.settings.correct_bias is not False and self.options.mode != "spikes"
        self.activations = self._activations() if corrects else None
        measures = [measure] if self.activations is None else [measure, self.activations]
        parts, compared = self._parts(batches)
        self.outputs_of_ann = observe(self.graph, parts, *measures, compared=compared, data=self.data)
        return self.fitting(Calibration(self.options.time_steps, measure.levels()))

    def fitting(self, earlier: Calibration) -> Calibration:
        """Return the part of an earlier calibration that is for the layers of this network, and their own levels.

        Raises:
            TypeError: a level is not a number.
            ValueError: a layer has no level, or its level is not positive and finite, has another shape, or differs
                from the level of its activation.
        """
        layers = self.writer.layers
        channels = {layer.name: layer.channels if self._has_level_of_channels(layer) else None for layer in layers}
        own = {layer.name: layer.level for layer in layers if layer.level is not None}
        pools = [pool.name for pool, _ in self.writer.pools]
        levels = checked_levels(channels, pools, {**own, **earlier.levels})
        for name, level in own.items():
            if bool((torch.as_tensor(levels[name]) != level).any()):
                raise ValueError(
                    f"convert: calibrate[{name!r}] must be {level:.6g}, the level of the ANN's own activation, got "
                    f"{earlier.levels[name]}; leave it out (calibrate={{}} leaves out all)"
                )
        corrections = {name: x for name, x in earlier.corrections.items() if name in channels}
        return replace(earlier, levels=levels, corrections=corrections, neuron=self.options.neuron)

    def corrections(self, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], Likeness]:
        """Correct the biases of the spiking twin, which has its levels.

        Returns:
            The corrections, and how near the outputs for the first batch are then.
        """
        answers = OutputComparison()
        answers.samples = samples_of(batches[0])
        parts, compared = self._parts(batches)
        if self.activations is None or self.graph.rounded:  # the levels may change how the ANN's weights are rounded
            self.activations = self._activations()
            self.outputs_of_ann = observe(self.graph, parts, self.activations, compared=compared)
        leaves = [self.graph.inputs.leaves(x) for x in parts]
        found, outputs = find_corrections(self.activations, leaves, self.snn, compared)
        for mine, theirs in zip(outputs, self.outputs_of_ann, strict=True):
            answers.add(mine, theirs)
        return found, answers.likeness()

    def _parts(self, batches: Sequence[Batch]) -> tuple[list[Batch], int]:
        """Return batches whose activations fit the caches, and how many of them make up the first batch."""
        if self.settings.percentile is not None:  # which is of a whole batch
            return list(batches), 1
        found = [pieces(batch, _PIECE) for batch in batches]
        return list(chain.from_iterable(found)), len(found[0])

    def _activations(self) -> Activations:
        corrected = [layer for layer in self.writer.layers if self._holder(layer) is not None]
        return Activations([self._measured(layer, True) for layer in corrected])

    def _holder(self, layer: SpikingLayer) -> TandemLayer | None:
        return weight_layer(self.snn.get_submodule(layer.name))

    def _has_level_of_channels(self, layer: SpikingLayer) -> bool:
        module = self.snn.get_submodule(layer.name)
        return self.options.per_channel and (isinstance(module, TandemNeurons) or self._holder(layer) is not None)

    def _measured(self, layer: SpikingLayer, each_channel: bool) -> SpikingLayer:
        """Return a layer with the node whose values are measured, of each channel or of the whole layer."""
        if not each_channel:
            return replace(layer, channels=None)
        assert layer.values is not None
        return replace(layer, node=layer.values)
