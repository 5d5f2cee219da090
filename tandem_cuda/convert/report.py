"""The report of a conversion: what became what, and how near the converted network is to its ANN."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from .._table import table
from ..nn import Encode, TandemAdd, TandemNeurons
from ..nn.average_pool import SpikingAverage
from ..nn.operations import synapses_by_input
from ..nn.tandem import TandemLayer
from ..spike_train import SpikeTrain
from .comparison import AnalogueCall, Converted, Likeness, Origin, Record, Sums, arguments_of, run_both
from .nodes import some, word_of_class

_WITH_NEURONS = (TandemLayer, TandemAdd, TandemNeurons, SpikingAverage)
_SATURATED = 0.05  # share of neurons from which on a layer is said to saturate
_MOST = 6  # names in a list


@dataclass(frozen=True)
class ConvertedLayer:
    """A module of the spiking twin that replaces something of the ANN.

    Rates, errors and operations are averaged over samples, and None without samples. Only modules with neurons have
    them, and a threshold.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> layer = convert(ann, time_steps=8, example=torch.rand(1, 1, 28, 28)).report().layers[0]
        >>> layer.name, layer.snn, layer.threshold
        ('0', 'TandemConv2d', 1.0)
    """

    name: str
    """Qualified name in ``snn``."""
    ann: str
    """What it replaces, in words, such as "Conv2d, BatchNorm2d, ReLU". In a sum, "spikes" is an identity branch."""
    ann_names: tuple[str, ...]
    """The names of these parts in the ANN: of modules, or of nodes of its graph."""
    snn: str
    """The class of the module."""
    spiking: bool
    """Whether it has neurons."""
    signed: bool
    """Whether its output stands for values of both signs: their positive and negative parts are two spike trains."""
    bound: float | None
    """The largest value that the ANN's activation returns, as 6 for a ReLU6."""
    threshold: float | None
    """The threshold, including the factor of a threshold that learns. In a calibrated network this is the weight of a
    spike, in units of the ANN's activation. In other networks the threshold of an average is in units of the mean of
    its window. None if it differs between channels."""
    neurons: int | None = None
    """Neurons per sample; two for each value if ``signed``."""
    firing_rate: float | None = None
    """Spikes per neuron and time step, in [0, 1]."""
    saturation: float | None = None
    """Share of neurons that spike as often as they can."""
    dead: float | None = None
    """Share of neurons that do not spike for any sample."""
    error: float | None = None
    """Mean of abs(amplitude * c - a), divided by the mean of abs(a). c are the counts (of signed values, the difference
    of the two) and a the ANN's own activations. None if the network is not calibrated; infinite if a is 0."""
    error_in_spikes: float | None = None
    """Mean of abs(c - a / amplitude)."""
    synops: float | None = None
    """Additions of a weight to a neuron per sample, as :func:`tandem_cuda.synops` counts them. 0 for a layer with real
    input, which does the ANN's ``macs``; None for an average."""
    macs: int | None = None
    """Multiply-accumulates per sample of the layer in the ANN."""
    saturates: bool = False
    """Whether more than 5 % of the neurons spike as often as they can, where the ANN's activation has no bound."""


@dataclass(frozen=True)
class ConversionReport:
    """What became of an ANN in a conversion. It prints as a table. Returned by ``TandemNetwork.report``.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> snn = convert(ann, time_steps=8, example=torch.rand(1, 1, 28, 28))
        >>> report = snn.report()
        >>> report.time_steps, len(report.layers)
        (8, 1)
    """

    ann: str
    """The class of the ANN."""
    time_steps: int
    """T."""
    calibrated: bool
    """Whether the thresholds were calibrated."""
    samples: int
    """The number of samples that rates, errors and operations are averaged over."""
    layers: tuple[ConvertedLayer, ...]
    """In order of execution. Modules that only move spikes are not listed, nor Encode and Decode."""
    unchanged: tuple[str, ...]
    """The ANN's own modules in the spiking network."""
    analogue: tuple[AnalogueCall, ...]
    """The calls between weight layers that are computed on real values, each with the reason."""
    spiking_macs: float
    """The share of the ANN's multiply-accumulates whose input is spikes, in [0, 1]."""
    replaced: tuple[str, ...]
    """The ANN's modules that ``replace`` has replaced."""
    agreement: float | None
    """Share of samples whose largest output is the ANN's, for outputs [N, classes]; the smallest if there are several.
    None if the network is not calibrated, and without samples."""
    output_error: float | None
    """Norm of the difference of the outputs from the ANN's, relative to the norm of the ANN's; the largest if there are
    several. None if the network is not calibrated, and without samples."""
    notes: tuple[str, ...]
    """How the conversion differs from a ReLU for each neuron."""
    warnings: tuple[str, ...]
    """What is probably wrong."""

    @property
    def saturated(self) -> tuple[ConvertedLayer, ...]:
        """The layers in which many neurons spike as often as they can (``ConvertedLayer.saturates``)."""
        return tuple(layer for layer in self.layers if layer.saturates)

    @property
    def error_starts(self) -> ConvertedLayer | None:
        """The first layer whose error is at least half of the largest; None if no error is known."""
        known = [layer for layer in self.layers if layer.error is not None]
        largest = max((layer.error or 0.0 for layer in known), default=0.0)
        return next((layer for layer in known if (layer.error or 0.0) >= largest / 2 > 0), None)

    @property
    def is_unlike(self) -> bool:
        """Whether the network does not compute what its ANN does, by at least 8 samples.

        It then gives another class for more than 10 % of them or, without classes, ``output_error`` exceeds 1/2.
        """
        return self._likeness.is_unlike

    @property
    def _likeness(self) -> Likeness:
        return Likeness(self.samples, self.agreement, self.output_error)

    @property
    def verdict(self) -> str:
        """How near the network is to its ANN, in a sentence; "" if it is not known."""
        if self.output_error is None:
            return ""
        parts = [str(self._likeness)]
        if self.saturated:
            number = len(self.saturated)
            parts.append("a layer is saturated" if number == 1 else f"{number} layers are saturated")
        if self.is_unlike and (layer := self.error_starts) is not None:
            parts.append(f"the error starts at {layer.name} ({layer.error:.1%})")
        return ", ".join(parts)

    def __str__(self) -> str:
        thresholds = "calibrated thresholds" if self.calibrated else "thresholds not calibrated"
        title = f"{self.ann} converted: T = {self.time_steps}, {thresholds}, {self.samples or 'no'} samples"
        header = ["layer", "in the ANN", "in the SNN", "threshold", "firing rate", "saturated", "dead"]
        header += ["error", "in spikes", "SynOps", "ANN MACs"]
        rows = [header, *map(_row, self.layers)]
        known = [i for i in range(len(header)) if any(row[i] for row in rows[1:])]
        verdict = [f"{self.verdict[:1].upper()}{self.verdict[1:]}."] if self.verdict else []
        lines = [title, *verdict, "", table([[row[i] for i in known] for row in rows], texts=3)]
        if self.unchanged:
            lines.append(f"Unchanged: {some(self.unchanged, _MOST)}")
        lines += [f"Note: {note}" for note in self.notes]
        lines += [f"Warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def _row(layer: ConvertedLayer) -> list[str]:
    of_snn = layer.snn + (", both signs" if layer.signed and layer.spiking else "")
    percents = layer.firing_rate, layer.saturation, layer.dead, layer.error
    cells = ["" if x is None else f"{x:.1%}" for x in percents]
    threshold = "" if layer.threshold is None else f"{layer.threshold:.4g}"
    spikes = "" if layer.error_in_spikes is None else f"{layer.error_in_spikes:.2f}"
    operations = ["" if x is None else f"{x:,.0f}" if x else "-" for x in (layer.synops, layer.macs)]
    return [layer.name, layer.ann, of_snn, threshold, *cells, spikes, *operations]


def report_on(network: Converted, record: Record, inputs: Any) -> ConversionReport:
    """Return the report of a converted network. ``TandemNetwork.report`` documents arguments and errors.

    Args:
        network: the network.
        record: what its conversion knows.
        inputs: the samples; None for the record's.
    """
    calibrated, snn = network.levels is not None, network.snn
    batches = arguments_of(network, record, inputs)
    origins = {origin.name: origin for origin in record.origins}
    called = dict.fromkeys(str(node.target) for node in snn.graph.nodes if node.op == "call_module")
    own = {id(vars(module)) for module in network.ann().modules()}
    unchanged = [name for name in called if id(vars(snn.get_submodule(name))) in own]
    layers = [name for name in called if name in origins and name not in unchanged]
    sums = {name: Sums() for name in layers if isinstance(snn.get_submodule(name), _WITH_NEURONS)}
    answers = run_both(network, record, batches, sums, None)
    found = answers.likeness() if calibrated else Likeness(answers.samples, None, None)
    time_steps = next(
        (x.time_steps for x in tree_leaves(batches, is_leaf=_is_train) if _is_train(x)), network.time_steps
    )
    converted = [_layer(network, origins[name], sums.get(name)) for name in layers]
    rows = tuple(replace(layer, saturates=_saturates(network, layer, time_steps)) for layer in converted)
    report = ConversionReport(
        ann=type(network.ann()).__name__,
        time_steps=time_steps,
        calibrated=calibrated,
        samples=found.samples,
        layers=rows,
        unchanged=tuple(unchanged),
        analogue=record.analogue,
        spiking_macs=record.spiking_macs,
        replaced=record.replaced,
        agreement=found.agreement,
        output_error=found.output_error,
        notes=tuple(_notes(network, record, rows, sums, answers.samples)),
        warnings=(),
    )
    return replace(report, warnings=(*_warnings(report), *answers.warnings(), *record.doubts))


def analogue_in_words(record: Record) -> str:
    """Return how many analogue calls of each kind there are, and the share of products that spikes carry."""
    counts = Counter(call.what for call in record.analogue)
    calls = some([f"{number} {what}" for what, number in counts.most_common()], _MOST)
    verb = "is" if len(record.analogue) == 1 else "are"
    return f"{calls} {verb} computed on real values; spikes carry {record.spiking_macs:.0%} of the multiply-accumulates"


def _is_train(x: Any) -> bool:
    return isinstance(x, SpikeTrain)


def _layer(network: Converted, origin: Origin, sums: Sums | None) -> ConvertedLayer:
    module: Any = network.snn.get_submodule(origin.name)
    kind = word_of_class(module)
    known: dict[str, Any] = {}
    if sums is not None and sums.samples:
        pairs = sums.neurons * sums.samples
        known |= {
            "neurons": sums.neurons,
            "firing_rate": sums.spikes / (pairs * sums.steps),
            "saturation": sums.saturated / pairs,
            "dead": 1 - float(sums.fired.double().mean()),
        }
        if synapses_by_input(module):
            known |= {"synops": sums.operations / sums.samples, "macs": sums.macs}
        if sums.values:
            known["error"] = sums.error / sums.size if sums.size else math.inf if sums.error else 0.0
            known["error_in_spikes"] = sums.error_in_spikes / sums.values
    return ConvertedLayer(
        name=origin.name,
        ann=origin.ann,
        ann_names=origin.names,
        snn=kind,
        spiking=sums is not None,
        signed=origin.signed,
        bound=origin.bound,
        threshold=None if sums is None else _threshold(network, origin, module),
        **known,
    )


def _threshold(network: Converted, origin: Origin, module: Any) -> float | None:
    if origin.sources is not None:
        return None
    if isinstance(module, SpikingAverage):
        return float(module.threshold) if network.levels is None else network.weights_of([(origin.name, 0)])[0]
    learned = getattr(module, "log_threshold", None)
    threshold: float = module.neuron.threshold_at(network.time_steps)
    return threshold * (1.0 if learned is None else math.exp(float(learned.detach())))


def _notes(
    network: Converted, record: Record, layers: Sequence[ConvertedLayer], sums: Mapping[str, Sums], samples: int
) -> Iterable[str]:
    signed = [layer.name for layer in layers if layer.signed and layer.spiking]
    if signed:
        yield (
            f"values of both signs travel as the difference of two spike trains, of neurons for either sign: "
            f"{some(signed, _MOST)}"
        )
    averages = [name for name in sums if isinstance(network.snn.get_submodule(name), SpikingAverage)]
    if averages:
        yield f"averages with neurons of their own, which round once more: {some(averages, _MOST)}"
    if record.analogue:
        yield analogue_in_words(record)
    yield from record.notes
    if record.replaced:
        yield f"activations of the ANN itself were replaced, and it wants fine-tuning: {some(record.replaced, _MOST)}"
    if any(float(x.detach()) for name, x in network.snn.named_parameters() if name.endswith("log_threshold")):
        yield "thresholds have learned. The ANN does not have them, so errors contain what they have changed"
    if misfits := [name for name, of in sums.items() if of.misfit]:
        yield f"no error for {some(misfits, _MOST)}: they have another number of values than the ANN"
    if not samples:
        spikes = "" if any(isinstance(module, Encode) for module in network.snn.modules()) else ", spike trains"
        names = record.inputs.names
        wanted = names[0] if len(names) == 1 else f"({', '.join(names)})"
        yield f"no rates, errors and operations without samples: call report({wanted}){spikes}"
    elif network.levels is None:
        yield "no errors: without calibrate, counts do not approximate the ANN's own activations"


def _warnings(report: ConversionReport) -> Iterable[str]:
    calibrated = report.calibrated
    saturated = [f"{layer.name} ({layer.saturation:.1%})" for layer in report.saturated]
    if saturated and (not calibrated or report.is_unlike):  # levels of least error let some neurons saturate
        remedy = "calibrate=, with a higher percentile, lets" if calibrated else "calibrate=, or higher thresholds, let"
        which = some(saturated, _MOST)
        yield f"saturated, many neurons spike as often as they can: {which}; {remedy} larger values through"
    dead = [layer.name for layer in report.layers if layer.firing_rate == 0]
    if dead:
        remedy = "calibrate=, or lower thresholds"
        if calibrated:
            remedy = f"a lower level: calibrate={{**snn.levels, {dead[0]!r}: LEVEL}}"
        yield f"dead, no neuron spikes: {some(dead, _MOST)}; try {remedy}"


def _saturates(network: Converted, layer: ConvertedLayer, time_steps: int) -> bool:
    """Whether many neurons spike as often as they can, though the ANN's activation has no bound there."""
    if layer.saturation is None or layer.saturation <= _SATURATED or time_steps == 1:
        return False  # with one step, every neuron that spikes does so as often as it can
    if layer.bound is None or network.levels is None:
        return True
    return float(torch.as_tensor(network.levels[layer.name]).min()) < layer.bound
