"""The report of a conversion: what became what, and how near the converted network is to its ANN."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from .._table import table
from ..nn import Encode, EncodedInput, SpikingAdaptiveAvgPool2d, SpikingAvgPool2d, TandemAdd, TandemGate
from ..nn.modes import evaluating
from ..nn.operations import branches_of, layer_macs
from ..nn.tandem import TandemLayer
from ..spike_train import SpikeTrain
from .nodes import kind_of, name_in_ann
from .record import Origin, Record
from .rules import RULES
from .trace import Traced, retraced

if TYPE_CHECKING:
    from .network import TandemNetwork

_AVERAGES = (SpikingAvgPool2d, SpikingAdaptiveAvgPool2d)
_WITH_NEURONS = (TandemLayer, TandemAdd, TandemGate, *_AVERAGES)
_CHUNK = 16  # samples at a time: the spike trains of all layers are kept for the comparison
_SATURATED = 0.05  # share of neurons from which on a layer is said to saturate
_AGREEING, _OUTPUT_ERROR = 0.9, 0.5  # an SNN is said to be unlike its ANN below this agreement, or above this error
_ONE_CLASS, _ANN_CLASS, _FEW = 0.9, 0.75, 8  # a class of most samples, but not the ANN's; not judged on fewer samples


@dataclass(frozen=True)
class ConvertedLayer:
    """A module of the spiking twin that replaces something of the ANN.

    Rates, errors and operations are averaged over samples, and None without samples. Only modules with neurons have
    them, and a threshold.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> layer = convert(ann, time_steps=8).report().layers[0]
        >>> layer.name, layer.snn, layer.threshold
        ('0', 'TandemConv2d', 1.0)
    """

    name: str
    """Qualified name in ``snn``."""
    ann: str
    """What it replaces, in words, such as "Conv2d, BatchNorm2d, ReLU". In a sum, "spikes" is an identity branch."""
    ann_names: tuple[str, ...]
    """The names of these parts in the ANN: of modules, or of nodes of the torch.fx graph."""
    snn: str
    """The class of the module."""
    spiking: bool
    """Whether it has neurons."""
    signed: bool
    """Whether its output stands for values of both signs: their positive and negative parts are two spike trains."""
    bound: float | None
    """The largest value that the ANN's activation returns, as 6 for a ReLU6."""
    threshold: float | None
    """The threshold, with the factor of one that learns. In a calibrated network this is the weight of a spike, in
    units of the ANN's activation. In others, that of an average is in units of the mean of its window. None if it
    differs between channels."""
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
    """Multiply-accumulates per sample of the same layer in the ANN."""
    saturates: bool = False
    """Whether more than 5 % of the neurons spike as often as they can, where the ANN's activation has no bound."""


@dataclass(frozen=True)
class ConversionReport:
    """What became of an ANN in a conversion. It prints as a table. Returned by ``TandemNetwork.report``.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> snn = convert(ann, time_steps=8)
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
    gates: tuple[str, ...]
    """The ANN's own modules that compute gates from spike counts, and so stay analogue."""
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
        if self.samples < _FEW:
            return False
        if self.agreement is not None:
            return self.agreement < _AGREEING
        return self.output_error is not None and self.output_error > _OUTPUT_ERROR

    @property
    def verdict(self) -> str:
        """How near the network is to its ANN, in a sentence; "" if it is not known."""
        if self.output_error is None:
            return ""
        parts = [f"the outputs differ from the ANN's by {self.output_error:.1%}"]
        if self.agreement is not None:
            parts.insert(
                0, f"the network gives the class of its ANN for {self.agreement:.1%} of {self.samples} samples"
            )
        if self.saturated:
            number = len(self.saturated)
            parts.append("a layer is saturated" if number == 1 else f"{number} layers are saturated")
        if self.is_unlike and (layer := self.error_starts) is not None:
            parts.append(f"the error starts at {layer.name} ({layer.error:.1%})")
        return ", ".join(parts)

    def __str__(self) -> str:
        how = "calibrated thresholds" if self.calibrated else "thresholds not calibrated"
        title = f"{self.ann} converted: T = {self.time_steps}, {how}, {self.samples or 'no'} samples"
        header = ["layer", "in the ANN", "in the SNN", "threshold", "firing rate", "saturated", "dead"]
        header += ["error", "in spikes", "SynOps", "ANN MACs"]
        rows = [header, *map(_row, self.layers)]
        known = [i for i in range(len(header)) if any(row[i] for row in rows[1:])]
        verdict = [f"{self.verdict[:1].upper()}{self.verdict[1:]}."] if self.verdict else []
        lines = [title, *verdict, "", table([[row[i] for i in known] for row in rows], texts=3)]
        if self.unchanged:
            lines.append(f"Unchanged: {_some(self.unchanged)}")
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


def _some(names: Sequence[str]) -> str:
    """Return names as a list, but not too many."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def report_on(network: TandemNetwork, record: Record, inputs: Any, trace: Traced | None = None) -> ConversionReport:
    """Return the report of a converted network. ``TandemNetwork.report`` documents arguments and errors.

    ``trace``: of the ANN, if it is at hand.
    """
    calibrated, snn = network.levels is not None, network.snn
    given = _inputs(network, record, inputs)
    origins = {origin.name: origin for origin in record.origins}
    called = {str(node.target): node for node in snn.graph.nodes if node.op == "call_module"}
    own = {id(vars(module)) for module in network.ann().modules()}
    unchanged = [name for name in called if id(vars(snn.get_submodule(name))) in own]
    layers = [name for name in called if name in origins and name not in unchanged]
    sums = {name: _Sums() for name in layers if isinstance(snn.get_submodule(name), _WITH_NEURONS)}
    samples, answers = 0, _Answers()
    wanted = {origins[name].node for name in sums} if calibrated and given else None
    with (
        _traced(network.ann(), record, wanted, trace) as graph,
        evaluating(network.ann()),
        evaluating(snn),
        torch.no_grad(),
    ):
        for chunk in _chunks(given):
            samples += len(chunk[0])
            spiking = _Spiking(network, {called[name]: (origins[name], of) for name, of in sums.items()})
            outputs = spiking.run(*_copied(chunk))
            numbers = tuple(_numbers(x) for x in _copied(chunk))
            ann: Any = network.ann() if graph is None else _Comparison(*graph, spiking.trains).run
            answers.add(outputs, ann(*numbers))
    time_steps = next((x.time_steps for x in given if isinstance(x, SpikeTrain)), network.time_steps)
    converted = [_layer(network, origins[name], sums.get(name)) for name in layers]
    found = tuple(replace(layer, saturates=_saturates(network, layer, time_steps)) for layer in converted)
    report = ConversionReport(
        ann=type(network.ann()).__name__,
        time_steps=time_steps,
        calibrated=calibrated,
        samples=samples,
        layers=found,
        unchanged=tuple(name for name in map(name_in_ann, unchanged) if name not in record.gates),
        gates=record.gates,
        replaced=record.replaced,
        agreement=answers.agreement() if calibrated else None,
        output_error=answers.error() if calibrated else None,
        notes=tuple(_notes(network, record, found, sums, samples)),
        warnings=(),
    )
    return replace(report, warnings=(*_warnings(report), *answers.warnings()))


# -- inputs


def _inputs(network: TandemNetwork, record: Record, inputs: Any) -> tuple[Any, ...]:
    """Return one batch for each input of the network, on its device; none if there are no samples."""
    like = next(network.parameters(), torch.empty(0))
    if inputs is None:
        samples = record.sample.inputs
        return tuple(x.to(like.device, like.dtype if x.is_floating_point() else None) for x in samples)
    given = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    names = [str(node.target) for node in network.snn.graph.nodes if node.op == "placeholder"]
    if len(given) != len(names) and not any(name.startswith("*") for name in names):
        raise TypeError(f"report: inputs must be one batch for each of {', '.join(names)}, got {len(given)}")
    for x in given:
        if not isinstance(x, (Tensor, SpikeTrain)):
            raise TypeError(f"report: inputs must be Tensors or SpikeTrains, got {type(x).__name__}")
        if not len(x.shape) or not x.shape[0]:
            raise ValueError(f"report: inputs must have at least one sample, got {list(x.shape)}")
    sizes = [x.shape[0] for x in given]
    if len({*sizes}) > 1:
        raise ValueError(f"report: inputs must have the same number of samples, got {sizes}")
    steps = [x.time_steps for x in given if isinstance(x, SpikeTrain)]
    if network.levels is not None and {*steps} - {network.time_steps}:
        raise ValueError(
            f"report: inputs must have T = {network.time_steps}, which calibrated thresholds are for, got T = {steps}"
        )
    return tuple(x.to(like.device) for x in given)


def _chunks(inputs: tuple[Any, ...]) -> Iterable[tuple[Any, ...]]:
    for i in range(0, inputs[0].shape[0] if inputs else 0, _CHUNK):
        yield tuple(_part(x, slice(i, i + _CHUNK)) for x in inputs)


def _part(x: Any, samples: slice) -> Any:
    return x.rearranged(lambda y: y[:, samples]) if isinstance(x, SpikeTrain) else x[samples]


def _copied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy tensors, which the ANN may write to."""
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)


def _numbers(x: Any) -> Any:
    """Return the ANN's input: for spikes, their counts."""
    return x.count * x.amplitude if isinstance(x, SpikeTrain) else x


# -- running both networks


@contextmanager
def _traced(
    ann: nn.Module, record: Record, wanted: Collection[str] | None, trace: Traced | None
) -> Iterator[tuple[nn.Module, fx.Graph] | None]:
    """Yield the ANN's graph as it was in the conversion, which has the ``wanted`` nodes, and the module that it calls.

    If no nodes are wanted, yield None.

    Graphs cannot be pickled, so networks do not keep theirs.
    """
    if wanted is None:
        yield None
        return
    if trace is not None:
        yield trace.root, trace.graph
        return
    with retraced(ann, RULES, record.example(next(ann.parameters(), None))) as found:
        if missing := sorted({*wanted} - {node.name for node in found.graph.nodes}):
            raise RuntimeError(
                f"report: forward of the ANN must be as it was when it was converted, but lacks {', '.join(missing)}. "
                "Call convert on the ANN again (calibrate=snn.calibration keeps the thresholds)"
            )
        yield found.root, found.graph


@dataclass
class _Sums:
    """The figures of one layer, summed over samples."""

    samples: int = 0
    neurons: int = 0
    steps: int = 0
    spikes: float = 0.0
    saturated: int = 0
    fired: Any = False
    """bool, one per neuron."""
    operations: float = 0.0
    macs: int = 0
    values: int = 0
    """Of the ANN, that were compared."""
    error: float = 0.0
    error_in_spikes: float = 0.0
    size: float = 0.0
    """Of the ANN's values."""
    misfit: bool = False
    """Whether spikes and the ANN's values differ in number."""
    fan_outs: dict[int, Tensor] = field(default_factory=dict)

    def add(self, module: Any, inputs: tuple[Any, ...], train: SpikeTrain) -> None:
        """Add a forward pass of the layer."""
        count, steps = train.count, train.time_steps
        largest = module.neuron.largest(steps) if isinstance(module, (TandemLayer, TandemAdd)) else steps
        self.samples, self.neurons, self.steps = self.samples + len(count), count[0].numel(), steps
        self.spikes += float(count.sum(dtype=torch.float64))
        self.saturated += int((count >= largest).sum())
        self.fired = self.fired | (count > 0).any(0)
        for i, (branch, x) in enumerate(zip(branches_of(module), inputs, strict=False)):  # a gate is no spikes
            self.macs = (self.macs if i else 0) + layer_macs(branch, x, train)
            if isinstance(x, EncodedInput):
                continue
            if not isinstance(branch, TandemLayer):  # the identity in a sum
                self.operations += float(x.count.sum(dtype=torch.float64))
                continue
            if i not in self.fan_outs:
                self.fan_outs[i] = branch.synapses.fan_out(x.shape[1:], x.device)
            self.operations += float((x.count.sum(0, dtype=torch.float64) * self.fan_outs[i]).sum())

    def compare(self, train: SpikeTrain, signed: bool, weights: Tensor | None, activation: Tensor) -> None:
        """Add the difference of spikes from the ANN's activation.

        Args:
            train: [N, C, ...].
            signed: whether channels 2i and 2i + 1 are the positive and the negative part of channel i.
            weights: a further factor of each channel, or None.
            activation: of the ANN, with as many elements; its shape may lack dimensions of size 1.
        """
        value = train.count.double()
        value = value[:, ::2] - value[:, 1::2] if signed else value
        amplitude = torch.full([value.shape[1]], train.amplitude, dtype=torch.float64, device=value.device)
        if weights is not None:  # flattened channels have as many features as pixels
            amplitude = amplitude * weights.to(amplitude).repeat_interleave(len(amplitude) // len(weights))
        amplitude = amplitude.view(-1, *[1] * (value.dim() - 2))
        if value.numel() != activation.numel():
            self.misfit = True
            return
        wanted = activation.double().reshape(value.shape)
        error = (value * amplitude - wanted).abs()
        self.values += wanted.numel()
        self.error += float(error.sum())
        self.error_in_spikes += float((error / amplitude).sum())
        self.size += float(wanted.abs().sum())


class _Spiking(fx.Interpreter):
    """Runs the spiking twin, sums up what its layers do, and keeps the spikes to be compared."""

    def __init__(self, network: TandemNetwork, layers: Mapping[fx.Node, tuple[Origin, _Sums]]) -> None:
        super().__init__(network.snn)
        self.network, self.layers = network, layers
        self.results: dict[fx.Node, tuple[Origin, _Sums]] = {}
        for node, found in layers.items():
            for _ in range(found[0].steps):
                (node,) = node.users
            self.results[node] = found
        self.trains: dict[str, list[tuple[SpikeTrain, Tensor | None, Origin, _Sums]]] = {}
        """By node of the ANN: the spikes that stand for its values, and the weights of their channels."""

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n in self.layers:
            inputs, _ = self.fetch_args_kwargs_from_env(n)
            self.layers[n][1].add(self.network.snn.get_submodule(str(n.target)), inputs, out)
        if n in self.results:
            origin, sums = self.results[n]
            weights = None
            if origin.sources is not None:
                weights = torch.tensor([self.network.weight_of(*source) for source in origin.sources])
            self.trains.setdefault(origin.node, []).append((out, weights, origin, sums))
        return out


class _Comparison(fx.Interpreter):
    """Runs the ANN and compares its activations with spikes: at once, for what follows may overwrite them."""

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        trains: Mapping[str, list[tuple[SpikeTrain, Tensor | None, Origin, _Sums]]],
    ) -> None:
        super().__init__(root, graph=graph)
        self.trains = trains

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        for train, weights, origin, sums in self.trains.get(n.name, []):
            sums.compare(train, origin.signed, weights, out)
        return out


class _Answers:
    """The classes that both networks choose, for each output [N, classes], and the sizes of the outputs."""

    def __init__(self) -> None:
        self.chosen: dict[int, list[Tensor]] = {}
        self.squares: dict[int, Tensor] = {}
        """Of each output: the sums of the squared differences and of the ANN's squared values."""

    def add(self, snn: Any, ann: Any) -> None:
        """Add the outputs of both for some samples."""
        for i, (mine, theirs) in enumerate(zip(tree_leaves(snn), tree_leaves(ann), strict=True)):
            if isinstance(mine, Tensor) and mine.is_floating_point():
                pair = torch.stack([x.double().square().sum().cpu() for x in (mine - theirs, theirs)])
                self.squares[i] = self.squares.get(i, 0) + pair
            if isinstance(mine, Tensor) and mine.is_floating_point() and mine.dim() == 2 and mine.shape[1] > 1:
                self.chosen.setdefault(i, []).append(torch.stack([mine.argmax(1), theirs.argmax(1)]).cpu())

    def agreement(self) -> float | None:
        """Return the share of samples on which they agree; None if there are no classes."""
        every = [torch.cat(parts, 1) for parts in self.chosen.values()]
        return min((float((mine == theirs).double().mean()) for mine, theirs in every), default=None)

    def error(self) -> float | None:
        """Return the relative error of the output with the largest; None if there are no outputs."""
        errors = [(of[0] / of[1]).sqrt().nan_to_num(0.0).item() for of in self.squares.values()]
        return max(errors, default=None)

    def warnings(self) -> list[str]:
        """Return a warning for each output that is nearly always the same class, unlike the ANN's."""
        found = []
        for i, parts in self.chosen.items():
            mine, theirs = torch.cat(parts, 1)
            top = int(mine.mode().values)
            share, of_ann = (float((x == x.mode().values).double().mean()) for x in (mine, theirs))
            if len(mine) >= _FEW and share >= _ONE_CLASS and of_ann <= _ANN_CLASS:
                where = f" of output {i}" if len(self.chosen) > 1 else ""
                found.append(
                    f"the network answers class {top}{where} for {share:.1%} of the samples, the ANN no class for more "
                    f"than {of_ann:.1%}"
                )
        return found


# -- the report


def _layer(network: TandemNetwork, origin: Origin, sums: _Sums | None) -> ConvertedLayer:
    module: Any = network.snn.get_submodule(origin.name)
    kind = kind_of(module).__name__ + (" of counts" if origin.real else "")
    known: dict[str, Any] = {}
    if sums is not None and sums.samples:
        pairs = sums.neurons * sums.samples
        known |= {
            "neurons": sums.neurons,
            "firing_rate": sums.spikes / (pairs * sums.steps),
            "saturation": sums.saturated / pairs,
            "dead": 1 - float(sums.fired.double().mean()),
        }
        if branches_of(module):
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


def _threshold(network: TandemNetwork, origin: Origin, module: Any) -> float | None:
    if origin.sources is not None:
        return None
    if isinstance(module, _AVERAGES):
        levels = network.levels
        return float(module.threshold) if levels is None else float(levels[origin.name]) / network.time_steps
    learned = getattr(module, "log_threshold", None)
    return module.neuron.threshold * (1.0 if learned is None else math.exp(float(learned.detach())))


def _notes(
    network: TandemNetwork, record: Record, layers: Sequence[ConvertedLayer], sums: Mapping[str, _Sums], samples: int
) -> Iterable[str]:
    signed = [layer.name for layer in layers if layer.signed and layer.spiking]
    if signed:
        yield (
            f"no ReLU follows {_some(signed)}. The values travel as the difference of two spike trains, of "
            "neurons for either sign"
        )
    averages = [name for name in sums if isinstance(network.snn.get_submodule(name), _AVERAGES)]
    if averages:
        yield f"averages with neurons of their own, which round once more: {_some(averages)}"
    if record.gates:
        yield f"gates that stay analogue, computed from the counts of all time steps: {_some(record.gates)}"
    if record.per_layer:
        yield f"thresholds of layers and not of channels, which {_some(record.per_layer)} cannot take"
    if record.replaced:
        yield f"activations of the ANN itself were replaced, and it wants fine-tuning: {_some(record.replaced)}"
    if any(float(x.detach()) for name, x in network.snn.named_parameters() if name.endswith("log_threshold")):
        yield "thresholds have learned. The ANN does not have them, so errors contain what they have changed"
    if misfits := [name for name, of in sums.items() if of.misfit]:
        yield f"no error for {_some(misfits)}: they have another number of values than the ANN"
    if not samples:
        spikes = "" if any(isinstance(module, Encode) for module in network.snn.modules()) else ", spike trains"
        yield f"no rates, errors and operations without samples: call report({_wanted(network)}){spikes}"
    elif network.levels is None:
        yield "no errors: without calibrate, counts do not approximate the ANN's own activations"


def _wanted(network: TandemNetwork) -> str:
    """Return the arguments that a report needs, in words."""
    nodes = [node for node in network.snn.graph.nodes if node.op == "placeholder"]
    names = [str(node.target).lstrip("*") for node in nodes]
    return ", ".join(names) if len(names) == 1 else f"({', '.join(names)})"


def _warnings(report: ConversionReport) -> Iterable[str]:
    calibrated = report.calibrated
    saturated = [f"{layer.name} ({layer.saturation:.1%})" for layer in report.saturated]
    if saturated and (not calibrated or report.is_unlike):  # levels of least error let some neurons saturate
        remedy = "calibrate=, with a higher percentile, lets" if calibrated else "calibrate=, or higher thresholds, let"
        yield f"saturated, many neurons spike as often as they can: {_some(saturated)}; {remedy} larger values through"
    dead = [layer.name for layer in report.layers if layer.firing_rate == 0]
    if dead:
        remedy = (
            "more time steps, IF(initial=0.5) or a lower percentile"
            if calibrated
            else "calibrate=, or lower thresholds"
        )
        yield f"dead, no neuron spikes: {_some(dead)}; try {remedy}"


def _saturates(network: TandemNetwork, layer: ConvertedLayer, time_steps: int) -> bool:
    """Whether many neurons spike as often as they can, though the ANN's activation has no bound there."""
    if layer.saturation is None or layer.saturation <= _SATURATED or time_steps == 1:  # where every spike is the last
        return False
    if layer.bound is None or network.levels is None:
        return True
    return float(torch.as_tensor(network.levels[layer.name]).min()) < layer.bound
