"""Anytime inference: each sample stops as soon as the network is confident of its class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .._progress import progress
from ..nn.encode import Decode
from ..nn.operations import synapses_by_input
from ..nn.spiking import unwrapped
from ..nn.synapses import Synapses
from ..ops import checks
from ..spike_train import SpikeTrain
from .stream import Answers, Network, Run


class Prediction(NamedTuple):
    """The result of :func:`predict`.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> prediction = freeze(net).predict(torch.rand(5, 784), exit_confidence=0.9)
        >>> prediction.classes.shape, prediction.steps.shape, prediction.logits.shape
        (torch.Size([5]), torch.Size([5]), torch.Size([5, 10]))
    """

    classes: Tensor
    """int64 [N]: the predicted classes."""
    steps: Tensor
    """int64 [N]: the number of time steps that each sample ran for."""
    confidence: Tensor
    """[N]: the softmax probability of the class at the exit."""
    logits: Tensor
    """[N, K]: the read-out at the exit; probabilities if the network ends in a softmax."""


@dataclass(frozen=True)
class OperatingPoint:
    """Accuracy and cost of one rule for when to stop.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> point = freeze(net).accuracy_curve([(torch.rand(5, 784), torch.arange(5))]).over_time[-1]
        >>> point.steps, point.exit_confidence
        (4.0, None)
    """

    exit_confidence: float | None
    """Confidence at which a sample stops; None if all samples stop after the same number of steps."""
    steps: float
    """Mean number of time steps per sample."""
    accuracy: float
    """Share of samples classified correctly."""
    synops: float
    """Mean synaptic operations per sample up to its exit: additions of one weight to one neuron. They are counted as by
    :func:`tandem_cuda.synops`, except for the read-out (the first weights after Decode): it must be ready at any time,
    so it adds its weights for every spike. Multiplications of real values, before the spikes and after the read-out,
    are not counted."""


@dataclass(frozen=True)
class AccuracyCurve:
    """The result of :func:`accuracy_curve`.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> data = [(torch.rand(5, 784), torch.arange(5))]
        >>> curve = freeze(net).accuracy_curve(data)
        >>> [point.steps for point in curve.over_time], curve.samples
        ([1.0, 2.0, 3.0, 4.0], 5)
    """

    over_time: list[OperatingPoint]
    """One point for each t at which all samples may stop: the multiples of ``chunk`` up to T, and T."""
    over_confidence: list[OperatingPoint]
    """One point for each of ``exit_confidences``."""
    samples: int
    """Number of samples."""
    not_counted: tuple[str, ...] = ()
    """Layers whose operations ``synops`` leaves out: layers before Encode, and layers after Decode but the read-out."""


def predict(
    network: Answers,
    x: Any,
    exit_confidence: float = 0.9,
    *,
    chunk: int = 1,
    min_steps: int = 1,
) -> Prediction:
    """Classify a batch with early exit: a sample stops as soon as its confidence is high enough.

    After every ``chunk`` time steps the read-out W * (k * c) + b is computed from the counts c after t of T steps, with
    k = T / t for constant and event input and k = 1 for an impulse. k * c estimates the final counts. So read-outs at
    all t have the scale that the network was trained for, and the read-out at t = T is the network's own output. A
    sample whose largest softmax probability reaches ``exit_confidence`` stops: its membrane potentials are dropped, and
    all other samples continue as a smaller batch.

    Args:
        network: a network that ends in a read-out [N, K], K > 1, or a :class:`Cascade` of such networks, each of which
            runs as a whole: ``chunk`` then has no effect.
        x: real input [N, ...] for a network with Encode, else a SpikeTrain [N, ...] of T steps; or a tuple of several
            inputs.
        exit_confidence: the confidence at which a sample stops, in (0, 1]. With 1, samples stop early only if the
            softmax rounds to 1.
        chunk: the number of time steps between two checks. A check costs one read-out, and on a GPU a wait for it.
        min_steps: the number of time steps before the first exit. Counts of only a few steps are unreliable, yet their
            scaled read-outs can be large.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``exit_confidence`` is outside (0, 1]; ``chunk`` or ``min_steps`` is < 1; ``chunk`` is < T, and
            there are neurons that wait for all T steps (``two_phase``, or a TandemNeurons's); the network has no
            read-out; or inputs or logits are NaN or infinite.
    """
    _check_confidence("predict", exit_confidence)
    checks.check_at_least_1("predict", "chunk", chunk)
    checks.check_at_least_1("predict", "min_steps", min_steps)
    _check_input("predict", x)
    stream = _stream("predict", network, x, chunk)
    left = torch.arange(stream.samples or 0, device=stream.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []  # of samples that have stopped: indices, steps, logits
    while True:
        logits = _readout("predict", stream.advance(min(chunk, stream.remaining)))
        if stream.remaining == 0:
            found.append((left, torch.full_like(left, stream.done), logits))
            break
        if stream.done < min_steps:
            continue
        sure = _probabilities(network, logits).amax(1) >= exit_confidence
        out = sure.nonzero().flatten()
        if len(out) == 0:
            continue
        found.append((left[out], torch.full_like(out, stream.done), logits[out]))
        stay = (~sure).nonzero().flatten()
        if len(stay) == 0:
            break
        left = left[stay]
        stream.select(stay)
    indices, steps, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = indices.argsort()
    logits = logits[order]
    confidence, classes = _probabilities(network, logits).max(1)
    _check_finite("predict", "read-out", confidence)  # sums may overflow
    return Prediction(classes, steps[order], confidence, logits)


EXIT_CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)


def accuracy_curve(
    network: Answers,
    batches: Iterable[tuple[Any, Tensor]],
    exit_confidences: Sequence[float] = EXIT_CONFIDENCES,
    *,
    chunk: int = 1,
    min_steps: int = 1,
) -> AccuracyCurve:
    """Measure accuracy, time steps and synaptic operations for each stopping time and each exit confidence.

    Every sample runs only once, over all T steps. What :func:`predict` would do at each confidence is derived from the
    intermediate read-outs.

    Args:
        network: a network that ends in a read-out [N, K], K > 1, or a :class:`Cascade`.
        batches: an iterable of pairs of inputs and labels, int64 [N], such as a DataLoader. Spike trains of all batches
            must have the same T.
        exit_confidences: the confidences to evaluate, each in (0, 1].
        chunk: as in :func:`predict`.
        min_steps: as in :func:`predict`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a confidence is outside (0, 1]; labels do not fit the inputs; there are no samples; batches differ
            in T; ``chunk`` is < T, and there are neurons that wait for all T steps; or inputs or logits are NaN or
            infinite.
    """
    name = "accuracy_curve"
    for exit_confidence in exit_confidences:
        _check_confidence(name, exit_confidence)
    checks.check_at_least_1(name, "chunk", chunk)
    checks.check_at_least_1(name, "min_steps", min_steps)
    times: list[int] = []
    collected: list[tuple[Tensor, Tensor, Tensor]] = []  # per batch: correct, confidence, SynOps, each [checks, N]
    for i, batch in enumerate(progress(batches, name)):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"{name}: batches must yield pairs of inputs and labels, got {type(batch).__name__} {i}")
        x, labels = batch
        looked, *values = _observe(name, network, x, labels, chunk)
        if times and looked != times:
            raise ValueError(f"{name}: batches must have the same number of time steps, got {times[-1]}, {looked[-1]}")
        times = looked
        collected.append((values[0], values[1], values[2]))
    samples = sum(part[0].shape[1] for part in collected)
    if samples == 0:
        raise ValueError(f"{name}: batches must hold at least one sample, got none")
    correct, confidence, synops = (torch.cat(parts, 1) for parts in zip(*collected, strict=True))
    steps = torch.tensor(times, dtype=torch.float64)

    def point(exit_confidence: float | None, exits: Tensor) -> OperatingPoint:
        at = exits[None]
        return OperatingPoint(
            exit_confidence,
            float(steps[exits].mean()),
            float(correct.gather(0, at).double().mean()),
            float(synops.gather(0, at).mean()),
        )

    over_time = [point(None, torch.full((samples,), i)) for i in range(len(times))]
    may_exit = (steps >= min_steps)[:, None]
    over_confidence = []
    for exit_confidence in exit_confidences:
        sure = (confidence >= exit_confidence) & may_exit
        sure[-1] = True
        over_confidence.append(point(float(exit_confidence), sure.int().argmax(0)))  # the first exit
    missing = dict.fromkeys(name for part in network.networks for name in _not_counted(part))
    return AccuracyCurve(over_time, over_confidence, samples, tuple(missing))


def _stream(name: str, network: Answers, x: Any, chunk: int) -> Run:
    """Start a run."""
    run = network.stream(x)
    run.check_chunk(name, chunk)
    return run


def _observe(
    name: str, network: Answers, x: Any, labels: Tensor, chunk: int
) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """Run a batch. Return for every check the time, and on the CPU each sample's correctness, confidence and SynOps."""
    checks.check_tensor(name, "labels", labels)
    _check_input(name, x)
    stream = _stream(name, network, x, chunk)
    samples = stream.samples
    if labels.shape != (samples,):
        raise ValueError(f"{name}: labels must be [{samples}] for {samples} samples, got {list(labels.shape)}")
    spent = torch.zeros(len(labels), dtype=torch.float64, device=stream.device)
    reached: dict[tuple[nn.Module, int], Tensor | int] = {}  # output neurons reached by each input neuron
    decoders: dict[Any, tuple[Network, str]] = {}
    """Each Decode, with its network and its name there."""
    for part in network.networks:
        decoders |= {node.layer: (part, node.name) for node in part.nodes if isinstance(unwrapped(node.layer), Decode)}

    def count_synops(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal spent
        trains = [x for x in inputs[2:] if isinstance(x, SpikeTrain)]
        every: Sequence[Synapses | None] = [None] if layer in decoders else synapses_by_input(unwrapped(layer))
        for i, (synapses, train) in enumerate(zip(every, trains, strict=False)):
            if (layer, i) not in reached:
                if layer in decoders:  # a read-out adds its weights for every spike that Decode counts
                    reached[layer, i] = _read_out(*decoders[layer], train)
                else:
                    reached[layer, i] = 1 if synapses is None else synapses.fan_out(train.shape[1:], train.device)
            spent = spent + (train.count.double() * reached[layer, i]).flatten(1).sum(1)

    layers = [layer for part in network.networks for layer in part.layers]
    handles = [layer.register_forward_hook(count_synops) for layer in layers]
    times, rights, confidences, costs = [], [], [], []
    try:
        while stream.remaining:
            logits = _readout(name, stream.advance(min(chunk, stream.remaining)))
            confidence, classes = _probabilities(network, logits).max(1)
            times.append(stream.done)
            rights.append(classes == labels.to(classes.device))
            confidences.append(confidence)
            costs.append(spent)
    finally:
        for handle in handles:
            handle.remove()
    right, confident, cost = (torch.stack(values).cpu() for values in (rights, confidences, costs))
    _check_finite(name, "read-out", confident)
    return times, right, confident, cost


def _read_out(network: Network, decode: str, train: SpikeTrain) -> Tensor:
    """Return how many outputs each neuron reaches through the first weights after Decode."""
    with torch.inference_mode(False), torch.enable_grad():
        sample = torch.zeros(1, *train.shape[1:], dtype=torch.float64, device=train.device, requires_grad=True)
        values, total = {decode: sample}, sample.sum() * 0
        for name, layer, inputs in network.nodes:
            x = values.get(next(iter(inputs), ""))
            if x is None:
                continue
            if layer.has_weights:
                total = total + layer.with_ones(x).sum()
            elif layer.only_moves:
                values[name] = layer(None, None, x)[0]
        return torch.autograd.grad(total, sample)[0][0]


def _not_counted(network: Network) -> tuple[str, ...]:
    """Return the layers that multiply but are neither spiking nor the first weights after Decode."""
    missing = []
    decoded: set[str] = set()  # nodes that hold counts
    constants = {node.name for node in network.nodes if node.layer.is_constant}
    for name, layer, inputs in network.nodes:
        counts = next(iter(inputs), "") in decoded
        if isinstance(unwrapped(layer), Decode) or (counts and layer.only_moves):
            decoded.add(name)
        elif name in constants or synapses_by_input(unwrapped(layer)) or (counts and layer.has_weights):
            continue
        elif layer.tensors() or constants & {*inputs}:
            missing.append(f"{name} ({layer.kind})")
    return tuple(missing)


def _check_input(name: str, x: Any) -> None:
    """Raise a ValueError if an input is not finite. NaN never makes a neuron fire, so outputs would hide it."""
    for value in tree_leaves(x):
        if isinstance(value, Tensor) and value.is_floating_point():
            _check_finite(name, "input", value)


def _probabilities(network: Answers, logits: Tensor) -> Tensor:
    return logits if network.probabilities else logits.softmax(1)


def _check_finite(name: str, argument: str, value: Tensor) -> None:
    wrong = ~value.isfinite()
    if wrong.any():
        raise ValueError(f"{name}: {argument} must be finite, got {value[wrong][0].item()}")


def _readout(name: str, logits: Any) -> Tensor:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name}: the network must end in a read-out [N, K] of two or more classes, got {got}")
    return logits


def _check_confidence(name: str, value: Any) -> None:
    checks.check_number(name, "exit_confidence", value)
    if not 0 < value <= 1:
        raise ValueError(f"{name}: exit_confidence must be in (0, 1], got {value}")
