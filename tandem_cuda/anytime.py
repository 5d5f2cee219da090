"""Anytime inference: each sample runs for as many time steps as its answer takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .activity import branches_of, fan_out
from .nn.encode import FrozenDecode
from .nn.frozen import FrozenFlatten, FrozenLinear
from .nn.layer import TandemLayer
from .ops import checks
from .spike_train import SpikeTrain

if TYPE_CHECKING:
    from .freeze import FrozenNetwork


class Prediction(NamedTuple):
    """What :func:`predict` returns."""

    classes: Tensor
    """int64 [N]."""
    steps: Tensor
    """int64 [N]: time steps that each sample ran for."""
    confidence: Tensor
    """[N]: the softmax of the class at its exit."""
    logits: Tensor
    """[N, K]: the read-out at the exit."""


@dataclass(frozen=True)
class OperatingPoint:
    """Accuracy and cost of one way to decide when to stop."""

    exit_confidence: float | None
    """Confidence at which a sample stops; None where all stop after the same number of steps."""
    steps: float
    """Mean time steps of a sample."""
    accuracy: float
    """Share of samples classified correctly."""
    synops: float
    """Mean synaptic operations of a sample up to its exit: additions of one weight to one neuron (as in
    :func:`tandem_cuda.synops`, but for the read-out, which adds its weights for every spike, as it has to be ready at
    any time). Multiplications of real input, once for all T, do
    not count."""


@dataclass(frozen=True)
class AccuracyCurve:
    """What :func:`accuracy_curve` returns."""

    over_time: list[OperatingPoint]
    """All samples stop after t = 1..T time steps (the multiples of the chunk, and T)."""
    over_confidence: list[OperatingPoint]
    """Samples stop at each confidence asked for."""
    samples: int
    """Number of samples."""
    not_counted: tuple[str, ...] = ()
    """Layers whose operations are in no ``synops``: what is in front of Encode, or behind Decode and no read-out."""


def predict(
    network: FrozenNetwork,
    x: Tensor | SpikeTrain,
    exit_confidence: float = 0.9,
    *,
    chunk: int = 1,
    min_steps: int = 1,
) -> Prediction:
    """Classify a batch; samples whose answer is sure leave it early.

    After every ``chunk`` time steps the read-out W * (k * c) + b is computed from the counts c after t of T steps, with
    k = T / t for constant and event input, k = 1 after an impulse: k * c is what the counts are to come to, so that
    read-outs at all t are on the scale that the network was trained for, and the one at t = T is the network's own. A
    sample whose largest softmax reaches ``exit_confidence`` stops: its row leaves the membrane potentials, and what
    remains is a smaller batch.

    Args:
        network: ends in a read-out [N, K].
        x: real input [N, ...] for a network with Encode, else the spikes, [N, ...] of T steps.
        exit_confidence: in (0, 1]; 1 lets samples stop early only where the softmax rounds to 1.
        chunk: time steps between two looks. Looking costs a read-out, and on a device a wait for its result.
        min_steps: time steps before the first exit. Counts of few steps say little, in large numbers.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``exit_confidence`` outside (0, 1], ``chunk`` or ``min_steps`` < 1; a network without read-out;
            input or logits that are NaN or infinite.
    """
    _check_confidence("predict", exit_confidence)
    _check_count("predict", "chunk", chunk)
    _check_count("predict", "min_steps", min_steps)
    _check_input("predict", x)
    stream = network.stream(x)
    left = torch.arange(len(x), device=x.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []  # of those that left: indices, steps, logits
    while True:
        logits = _readout("predict", stream.advance(min(chunk, stream.remaining)))
        if stream.remaining == 0:
            found.append((left, torch.full_like(left, stream.done), logits))
            break
        if stream.done < min_steps:
            continue
        sure = logits.softmax(1).amax(1) >= exit_confidence
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
    confidence, classes = logits.softmax(1).max(1)
    _check_finite("predict", "read-out", confidence)  # sums beyond the dtype's range
    return Prediction(classes, steps[order], confidence, logits)


EXIT_CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)


def accuracy_curve(
    network: FrozenNetwork,
    batches: Iterable[tuple[Tensor | SpikeTrain, Tensor]],
    exit_confidences: Sequence[float] = EXIT_CONFIDENCES,
    *,
    chunk: int = 1,
    min_steps: int = 1,
) -> AccuracyCurve:
    """Accuracy, time steps and synaptic operations, against time and against the confidence at which samples stop.

    Every sample runs once, over all T steps; what :func:`predict` would have done at each confidence follows from the
    read-outs on the way.

    Args:
        network: ends in a read-out [N, K].
        batches: of input and labels int64 [N]; a DataLoader, for one. Trains of all batches have the same T.
        exit_confidences: each in (0, 1].
        chunk: as in :func:`predict`.
        min_steps: as in :func:`predict`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a confidence outside (0, 1], labels that do not fit, no samples, batches of different T, or input or
            logits that are NaN or infinite.
    """
    name = "accuracy_curve"
    for exit_confidence in exit_confidences:
        _check_confidence(name, exit_confidence)
    _check_count(name, "chunk", chunk)
    _check_count(name, "min_steps", min_steps)
    times: list[int] = []
    collected: list[tuple[Tensor, Tensor, Tensor]] = []  # of each batch: correct, confidence, SynOps, all [looks, N]
    for x, labels in batches:
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
        over_confidence.append(point(float(exit_confidence), sure.int().argmax(0)))  # the first of them
    return AccuracyCurve(over_time, over_confidence, samples, tuple(_readouts(network)[1]))


def _observe(
    name: str, network: FrozenNetwork, x: Tensor | SpikeTrain, labels: Tensor, chunk: int
) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """At every look: time; and on the CPU whether each sample is right, its confidence, its SynOps so far."""
    checks.check_tensor(name, "labels", labels)
    _check_input(name, x)
    stream = network.stream(x)
    if labels.shape != (len(x),):
        raise ValueError(f"{name}: labels must be [{len(x)}] for {len(x)} samples, got {list(labels.shape)}")
    spent = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    # Output neurons, by each neuron of an input.
    reached: dict[tuple[nn.Module, int], Tensor | int] = {(layer, 0): n for layer, n in _readouts(network)[0].items()}

    def count_synops(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal spent
        trains = [x for x in inputs[2:] if isinstance(x, SpikeTrain)]
        # A read-out adds its weights for every spike that Decode counts.
        branches = [layer] if isinstance(layer, FrozenDecode) and (layer, 0) in reached else branches_of(layer)
        for i, (branch, train) in enumerate(zip(branches, trains, strict=False)):
            if (layer, i) not in reached:
                reached[layer, i] = (
                    fan_out(branch, train.shape[1:], train.device) if isinstance(branch, TandemLayer) else 1
                )
            spent = spent + (train.count.double() * reached[layer, i]).flatten(1).sum(1)

    handles = [layer.register_forward_hook(count_synops) for layer in network.layers]
    times, rights, confidences, costs = [], [], [], []
    try:
        while stream.remaining:
            logits = _readout(name, stream.advance(min(chunk, stream.remaining)))
            confidence, classes = logits.softmax(1).max(1)
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


def _readouts(network: FrozenNetwork) -> tuple[dict[nn.Module, int], list[str]]:
    """Output neurons that a neuron reaches in the read-outs behind each Decode; and what is not counted."""
    reached: dict[nn.Module, int] = {}
    not_counted = []
    decoded: dict[str, nn.Module] = {}  # nodes that hold counts, by the Decode that counted them
    for node in network.nodes:
        layer, source = node.layer, decoded.get(node.inputs[0])
        if isinstance(layer, FrozenDecode):
            decoded[node.name] = layer
        elif isinstance(layer, FrozenFlatten) and source is not None:
            decoded[node.name] = source
        elif isinstance(layer, FrozenLinear) and source is not None:
            reached[source] = reached.get(source, 0) + layer.weight.shape[0]
        elif not branches_of(layer) and (layer.tensors() or any(True for _ in layer.parameters())):
            not_counted.append(f"{node.name} ({layer.kind})")
    return reached, not_counted


def _check_input(name: str, x: Any) -> None:
    """NaN is no reason for a neuron to fire, so that an answer to it would look like any other."""
    value = x.carried_count if isinstance(x, SpikeTrain) else x
    if isinstance(value, Tensor):
        _check_finite(name, "input", value)


def _check_finite(name: str, argument: str, value: Tensor) -> None:
    wrong = ~value.isfinite()
    if wrong.any():
        raise ValueError(f"{name}: {argument} must be finite, got {value[wrong][0].item()}")


def _readout(name: str, logits: Any) -> Tensor:
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name}: the network must end in a read-out [N, K], got {got}")
    return logits


def _check_confidence(name: str, value: Any) -> None:
    checks.check_number(name, "exit_confidence", value)
    if not 0 < value <= 1:
        raise ValueError(f"{name}: exit_confidence must be in (0, 1], got {value}")


def _check_count(name: str, argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: {argument} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: {argument} must be at least 1, got {value}")
