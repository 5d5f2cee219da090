"""What a conversion knows, and running its network beside the ANN: the spikes of all layers, and both answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ..nn import TandemAdd
from ..nn.modes import evaluating
from ..nn.operations import Operations, ann_macs, synapses_by_input
from ..nn.tandem import TandemLayer
from ..spike_train import SpikeTrain, signs
from .graph import Graph, exported
from .inputs import Inputs, copied
from .values import SpikeSource

_KEPT = 64


@dataclass
class Origin:
    """What a module of the spiking twin replaces."""

    name: str
    """The name of the module in the spiking twin."""
    ann: str
    """What it replaces, in words: "Conv2d, BatchNorm2d, ReLU"."""
    names: tuple[str, ...]
    """The names of these parts in the ANN."""
    node: str
    """The name of the node in the ANN's graph whose values the spikes stand for."""
    steps: int = 0
    """The number of nodes in the spiking twin from the module to the spikes that stand for these values."""
    signed: bool = False
    """Whether the spikes stand for values of both signs."""
    bound: float | None = None
    """The largest value that the activation returns."""
    sources: tuple[SpikeSource, ...] | None = None
    """The source of each channel, if the spikes of channels differ in weight."""
    features: bool = False
    """Whether ``sources`` are of features, along the last dimension."""


class Sample:
    """The first samples of the calibration data, on the CPU. Deep copies share them; pickles leave them out."""

    def __init__(self, inputs: Sequence[Any] = ()) -> None:
        self.inputs = tree_map_only(Tensor, lambda x: x[:_KEPT].detach().to("cpu", copy=True), tuple(inputs))
        """The arguments of the network; none without calibration data."""

    def __deepcopy__(self, memo: Any) -> Sample:
        return self

    def __reduce__(self) -> tuple[type[Sample], tuple[()]]:
        return Sample, ()


@dataclass(frozen=True)
class AnalogueCall:
    """A call between weight layers that the spiking twin computes on real values.

    Examples:
        >>> ann = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
        >>> (call,) = convert(ann, time_steps=8, example=torch.rand(1, 4)).report().analogue
        >>> call.what, call.place, call.why
        ('SiLU', '1', 'it has no rule')
    """

    name: str
    """The name of the node."""
    what: str
    """The ATen call, or the class of torch's module that makes it."""
    place: str
    """The name of the module whose forward makes the call."""
    why: str
    """Why it has no spiking form."""


@dataclass
class Record:
    """What a conversion knows."""

    origins: tuple[Origin, ...]
    inputs: Inputs
    analogue: tuple[AnalogueCall, ...] = ()
    """The calls between weight layers that are computed on real values."""
    spiking_macs: float = 0.0
    """The share of the multiply-accumulates that spikes carry."""
    constants: tuple[str, ...] = ()
    """The names of the ANN's tensors whose values are constants of the spiking twin."""
    notes: tuple[str, ...] = ()
    """What is random in training alone, and left out."""
    replaced: tuple[str, ...] = ()
    """The activations that ``replace`` has replaced: "silu in features.0"."""
    sample: Sample = field(default_factory=Sample)
    outputs: tuple[Any, Any] = (None, None)
    """The structures of forward's outputs in eval mode, and in training where it is another one."""
    doubts: tuple[str, ...] = ()
    """What is doubtful about the calibration data."""
    rewrite: Callable[[Any], Any] | None = None
    """What rewrites the exported graph of the ANN before it is converted."""


_CHUNK = 16  # samples at a time: the spike trains of all layers are kept for the comparison
_ONE_CLASS, _ANN_CLASS, _FEW = 0.9, 0.75, 8  # a class of most samples, but not the ANN's; not judged on fewer samples
_AGREEING, _OUTPUT_ERROR = 0.9, 0.5  # an SNN is said to be unlike its ANN below this agreement, or above this error


class Converted(Protocol):
    """What a comparison needs of a :class:`TandemNetwork`."""

    snn: fx.GraphModule
    time_steps: int

    @property
    def levels(self) -> Mapping[str, float | Tensor] | None: ...

    def ann(self) -> nn.Module: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def weights_of(self, sources: Sequence[SpikeSource]) -> list[float]: ...


def arguments_of(network: Converted, record: Record, inputs: Any) -> tuple[Any, ...]:
    """Return one batch for each argument of the network, on its device; none if there are no samples."""
    like = next(network.parameters(), torch.empty(0))
    if inputs is None:
        samples = record.sample.inputs
        return tree_map_only(
            Tensor, lambda x: x.to(like.device, like.dtype if x.is_floating_point() else None), samples
        )
    batches = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    names = record.inputs.names
    if len(batches) != len(names):
        raise TypeError(f"report: inputs must be one batch for each of {', '.join(names)}, got {len(batches)}")
    leaves = tree_leaves(batches, is_leaf=_is_train)
    for x in leaves:
        if not isinstance(x, (Tensor, SpikeTrain)):
            raise TypeError(f"report: inputs must be Tensors or SpikeTrains, got {type(x).__name__}")
        if not len(x.shape) or not x.shape[0]:
            raise ValueError(f"report: inputs must have at least one sample, got {list(x.shape)}")
    sizes = [x.shape[0] for x in leaves]
    if len({*sizes}) > 1:
        raise ValueError(f"report: inputs must have the same number of samples, got {sizes}")
    steps = [x.time_steps for x in leaves if isinstance(x, SpikeTrain)]
    if network.levels is not None and {*steps} - {network.time_steps}:
        raise ValueError(
            f"report: inputs must have T = {network.time_steps}, which calibrated thresholds are for, got T = {steps}"
        )
    return _mapped(batches, lambda x: x.to(like.device))


def _is_train(x: Any) -> bool:
    return isinstance(x, SpikeTrain)


def _mapped(arguments: Any, f: Any) -> Any:
    """Apply a function to the tensors and spike trains in arguments."""
    return tree_map(lambda x: f(x) if isinstance(x, (Tensor, SpikeTrain)) else x, arguments, is_leaf=_is_train)


def _chunks(arguments: tuple[Any, ...]) -> Iterable[tuple[Any, ...]]:
    """Yield a few samples at a time."""

    def part(x: Any, samples: slice) -> Any:
        return x.rearranged(lambda y: y[:, samples]) if isinstance(x, SpikeTrain) else x[samples]

    leaves = tree_leaves(arguments, is_leaf=_is_train)
    for i in range(0, next((x.shape[0] for x in leaves if hasattr(x, "shape")), 0), _CHUNK):
        yield _mapped(arguments, lambda x, at=i: part(x, slice(at, at + _CHUNK)))


def _numbers_of(x: Any) -> Any:
    """Return the ANN's input: for spikes, their counts."""
    return x.value * x.amplitude if isinstance(x, SpikeTrain) else x


def _graph_again(ann: nn.Module, record: Record, wanted: Collection[str] | None, graph: Graph | None) -> Graph | None:
    """Return the graph, or the ANN's as it was in the conversion, with the ``wanted`` nodes; None if none are wanted.

    Graphs cannot be pickled, so networks do not keep theirs.
    """
    if wanted is None or graph is not None:
        return graph
    found = exported(ann, record.inputs.example(ann))
    if record.rewrite is not None:
        record.rewrite(found)
    if missing := sorted({*wanted} - {node.name for node in found.graph.nodes}):
        raise RuntimeError(
            f"report: forward of the ANN must be as it was when it was converted, but lacks {', '.join(missing)}. "
            "Call convert on the ANN again (calibrate=snn.calibration keeps the thresholds)"
        )
    return found


@dataclass
class Sums:
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
    """The number of the ANN's values that were compared."""
    error: float = 0.0
    error_in_spikes: float = 0.0
    size: float = 0.0
    """The sum of the absolute values of the ANN."""
    misfit: bool = False
    """Whether spikes and the ANN's values differ in number."""
    count_operations: Operations = field(default_factory=Operations)

    def add(self, module: Any, inputs: tuple[Any, ...], train: SpikeTrain) -> None:
        """Add a forward pass of the layer."""
        count, steps = train.count, train.time_steps
        largest = 2**steps - 1 if train.radix else steps
        if isinstance(module, (TandemLayer, TandemAdd)):
            largest = module.neuron.largest(steps)
        self.samples, self.neurons, self.steps = self.samples + len(count), count[0].numel(), steps
        self.spikes += float(count.sum(dtype=torch.float64))
        self.saturated += int((train.value >= largest).sum())
        self.fired = self.fired | (count > 0).any(0)
        for i, (synapses, x) in enumerate(zip(synapses_by_input(module), inputs, strict=False)):  # a gate is no spikes
            self.macs = (self.macs if i else 0) + ann_macs(synapses, x, train)
            if isinstance(x, SpikeTrain):
                self.operations += float(self.count_operations(i, synapses, x.count.sum(0, dtype=torch.float64)))

    def compare(self, train: SpikeTrain, origin: Origin, weights: Tensor | None, activation: Tensor) -> None:
        """Add the difference of spikes from the ANN's activation.

        Args:
            train: [N, C, ...].
            origin: what the spikes stand for.
            weights: a further factor of each channel or feature, or None.
            activation: of the ANN, with as many elements; its shape may lack dimensions of size 1.
        """
        value = train.value
        pair_dim = 1 if origin.signed and train.pair_dim is None else train.pair_dim
        if pair_dim is not None:
            positive, negative = signs(value, pair_dim)
            value = positive - negative
        number = value.shape[-1 if origin.features else 1]
        amplitude = torch.full([number], train.amplitude, dtype=value.dtype, device=value.device)
        if weights is not None and origin.features:  # flattened rows have all features of each row
            amplitude = amplitude * weights.to(amplitude).repeat(number // len(weights))
        elif weights is not None:  # flattened channels have as many features as pixels
            amplitude = amplitude * weights.to(amplitude).repeat_interleave(number // len(weights))
        amplitude = amplitude if origin.features else amplitude.view(-1, *[1] * (value.dim() - 2))
        if value.numel() != activation.numel():
            self.misfit = True
            return
        wanted = activation.to(value).reshape(value.shape)
        error = (value * amplitude).sub_(wanted).abs_()
        self.values += wanted.numel()
        self.error += float(error.sum(dtype=torch.float64))
        self.error_in_spikes += float(error.div_(amplitude).sum(dtype=torch.float64))
        self.size += float(wanted.abs().sum(dtype=torch.float64))


class SpikingRun(fx.Interpreter):
    """Runs the spiking twin, sums up what its layers do, and keeps the spikes to be compared."""

    def __init__(self, network: Converted, layers: Mapping[fx.Node, tuple[Origin, Sums]]) -> None:
        super().__init__(network.snn)
        self.network, self.layers = network, layers
        self.results: dict[fx.Node, tuple[Origin, Sums]] = {}
        for node, found in layers.items():
            for _ in range(found[0].steps):
                (node,) = node.users
            self.results[node] = found
        self.trains: dict[str, list[tuple[SpikeTrain, Tensor | None, Origin, Sums]]] = {}
        """By node of the ANN: the spikes that stand for its values, the weights of their channels, and their layer."""

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n in self.layers:
            inputs, _ = self.fetch_args_kwargs_from_env(n)
            self.layers[n][1].add(self.network.snn.get_submodule(str(n.target)), inputs, out)
        if n in self.results:
            origin, sums = self.results[n]
            weights = None
            if origin.sources is not None:
                weights = torch.tensor(self.network.weights_of(origin.sources))
            self.trains.setdefault(origin.node, []).append((out, weights, origin, sums))
        return out

    def compare(self, node: fx.Node, activation: Any) -> None:
        """Compare the value of a node of the ANN with the spikes that stand for it."""
        for train, weights, origin, sums in self.trains.get(node.name, []):
            sums.compare(train, origin, weights, activation)


@dataclass(frozen=True)
class Likeness:
    """How near the outputs of a network are to the outputs of its ANN."""

    samples: int
    agreement: float | None
    """Share of samples with the same class, for outputs [N, classes]; the smallest if there are several."""
    output_error: float | None
    """Norm of the difference of the outputs, relative to the norm of the ANN's; the largest if there are several."""

    @property
    def is_unlike(self) -> bool:
        """Whether the network does not compute what its ANN does, by at least 8 samples."""
        if self.samples < _FEW:
            return False
        if self.agreement is not None:
            return self.agreement < _AGREEING
        return self.output_error is not None and self.output_error > _OUTPUT_ERROR

    def is_nearer_than(self, other: Likeness) -> bool:
        """Whether more samples have the ANN's class or, without classes, the outputs differ less."""
        if self.agreement is not None and other.agreement is not None:
            return self.agreement > other.agreement
        errors = [math.inf if x.output_error is None else x.output_error for x in (self, other)]
        return errors[0] < errors[1]

    def in_place_of(self, other: Likeness) -> str:
        """What was measured of two networks on the same samples."""
        if self.agreement is None or other.agreement is None:
            return f"a difference of {self.output_error:.1%}, in place of {other.output_error:.1%}"
        return f"{self.agreement:.1%} of {self.samples} samples, in place of {other.agreement:.1%}"

    def __str__(self) -> str:
        parts = []
        if self.agreement is not None:
            parts += [f"the network gives the class of its ANN for {self.agreement:.1%} of {self.samples} samples"]
        if self.output_error is not None:
            parts += [f"the outputs differ from the ANN's by {self.output_error:.1%}"]
        return ", ".join(parts)


class OutputComparison:
    """The classes that both networks choose, for each output [N, classes], and the sizes of the outputs."""

    def __init__(self) -> None:
        self.samples = 0
        self.chosen: dict[int, list[Tensor]] = {}
        self.squares: dict[int, Tensor] = {}
        """For each output the sums of the squared differences and of the ANN's squared values."""

    def add(self, snn: Any, ann: Any) -> None:
        """Add the outputs of both for some samples."""
        for i, (mine, theirs) in enumerate(zip(tree_leaves(snn), tree_leaves(ann), strict=True)):
            if isinstance(mine, Tensor) and mine.is_floating_point():
                pair = torch.stack([x.double().square().sum().cpu() for x in (mine - theirs, theirs)])
                self.squares[i] = self.squares.get(i, 0) + pair
            if isinstance(mine, Tensor) and mine.is_floating_point() and mine.dim() == 2 and mine.shape[1] > 1:
                self.chosen.setdefault(i, []).append(torch.stack([mine.argmax(1), theirs.argmax(1)]).cpu())

    def likeness(self) -> Likeness:
        """Return how near both networks are."""
        return Likeness(self.samples, self._agreement(), self._error())

    def _agreement(self) -> float | None:
        every = [torch.cat(parts, 1) for parts in self.chosen.values()]
        return min((float((mine == theirs).double().mean()) for mine, theirs in every), default=None)

    def _error(self) -> float | None:
        errors = [(of[0] / of[1]).sqrt().nan_to_num(0.0).item() for of in self.squares.values()]
        return max(errors, default=None)

    def warnings(self) -> list[str]:
        """Return a warning for each output that nearly always is one class, unlike the ANN's output."""
        warnings = []
        for i, parts in self.chosen.items():
            mine, theirs = torch.cat(parts, 1)
            top = int(mine.mode().values)
            share, of_ann = (float((x == x.mode().values).double().mean()) for x in (mine, theirs))
            if len(mine) >= _FEW and share >= _ONE_CLASS and of_ann <= _ANN_CLASS:
                where = f" of output {i}" if len(self.chosen) > 1 else ""
                warnings.append(
                    f"the network answers class {top}{where} for {share:.1%} of the samples, the ANN no class for more "
                    f"than {of_ann:.1%}"
                )
        return warnings


def run_both(
    network: Converted, record: Record, batches: tuple[Any, ...], sums: Mapping[str, Sums], graph: Graph | None
) -> OutputComparison:
    """Run the network and its ANN on a batch for each input, and return the answers of both.

    Args:
        network: the network.
        record: what its conversion knows.
        batches: a batch for each argument.
        sums: the sums of layers with neurons, to be added to.
        graph: the graph of the ANN in its conversion, whose weights are rounded as they were then. By default the
            ANN is run as it is, and exported again where ``sums`` want its activations.
    """
    ann, snn, answers = network.ann(), network.snn, OutputComparison()
    origins = {origin.name: origin for origin in record.origins}
    nodes = {str(node.target): node for node in snn.graph.nodes if node.op == "call_module"}
    compared = {origins[name].node for name in sums} if network.levels is not None and batches else None
    again = _graph_again(ann, record, compared if sums else None, graph)
    with evaluating(ann), evaluating(snn), torch.no_grad():
        for chunk in _chunks(batches):
            spiking = SpikingRun(network, {nodes[name]: (origins[name], of_layer) for name, of_layer in sums.items()})
            outputs = spiking.run(*record.inputs.leaves(copied(chunk)))
            numbers = _mapped(copied(chunk), _numbers_of)
            if again is None:
                args, kwargs = record.inputs.call(numbers)
                wanted = ann(*args, **kwargs)
            else:
                wanted = again.run(numbers, spiking.compare)
            answers.add(outputs, wanted)
            answers.samples += next(x.shape[0] for x in tree_leaves(numbers) if isinstance(x, Tensor))
    return answers


def likeness(network: Converted, record: Record, graph: Graph) -> Likeness:
    """Return how near a network is to its ANN, on the samples of its conversion."""
    return run_both(network, record, arguments_of(network, record, None), {}, graph).likeness()
