"""Anytime inference: each sample runs for as many time steps as its answer takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..nn.operations import fan_out
from ..nn.tandem import TandemLayer
from ..ops import checks
from ..spike_train import SpikeTrain
from .encode import FrozenDecode
from .functions import moves
from .plain import FrozenLinear, is_convolution

if TYPE_CHECKING:
    from .network import FrozenNetwork
    from .stream import Stream


class Prediction(NamedTuple):
    """What :func:`predict` returns."""

    classes: Tensor
    """int64 [N]."""
    steps: Tensor
    """int64 [N]: time steps that each sample ran for."""
    confidence: Tensor
    """[N]: the softmax of the class at its exit."""
    logits: Tensor
    """[N, K]: the read-out at the exit; probabilities where the network ends in a softmax."""


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
    :func:`tandem_cuda.synops`, but for the read-out, the first weights behind Decode, which adds its weights for every
    spike, as it has to be ready at any time). Multiplications of real numbers, in front of the spikes and behind the
    read-out, do not count."""


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
    x: Any,
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
        x: real input [N, ...] for a network with Encode, else the spikes, [N, ...] of T steps; or a tuple of several
            inputs.
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
    left = torch.arange(stream.samples or 0, device=_device(stream))
    found: list[tuple[Tensor, Tensor, Tensor]] = []  # of those that left: indices, steps, logits
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
    _check_finite("predict", "read-out", confidence)  # sums beyond the dtype's range
    return Prediction(classes, steps[order], confidence, logits)


EXIT_CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)


def accuracy_curve(
    network: FrozenNetwork,
    batches: Iterable[tuple[Any, Tensor]],
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
    return AccuracyCurve(over_time, over_confidence, samples, _not_counted(network))


def _observe(
    name: str, network: FrozenNetwork, x: Any, labels: Tensor, chunk: int
) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """At every look: time; and on the CPU whether each sample is right, its confidence, its SynOps so far."""
    checks.check_tensor(name, "labels", labels)
    _check_input(name, x)
    stream = network.stream(x)
    samples = stream.samples
    if labels.shape != (samples,):
        raise ValueError(f"{name}: labels must be [{samples}] for {samples} samples, got {list(labels.shape)}")
    spent = torch.zeros(len(labels), dtype=torch.float64, device=_device(stream))
    reached: dict[tuple[nn.Module, int], Tensor | int] = {}  # output neurons, by each neuron of an input
    decoders = {node.layer: node.name for node in network.nodes if isinstance(node.layer, FrozenDecode)}

    def count_synops(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal spent
        trains = [x for x in inputs[2:] if isinstance(x, SpikeTrain)]
        # A read-out adds its weights for every spike that Decode counts.
        branches = [layer] if isinstance(layer, FrozenDecode) else layer.branches()
        for i, (branch, train) in enumerate(zip(branches, trains, strict=False)):
            if (layer, i) not in reached:
                if isinstance(branch, TandemLayer):
                    reached[layer, i] = fan_out(branch, train.shape[1:], train.device)
                else:
                    reached[layer, i] = _read_out(network, decoders[branch], train) if branch in decoders else 1
            spent = spent + (train.count.double() * reached[layer, i]).flatten(1).sum(1)

    handles = [layer.register_forward_hook(count_synops) for layer in network.layers]
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


def _read_out(network: FrozenNetwork, decode: str, train: SpikeTrain) -> Tensor:
    """Outputs that each neuron reaches through the first weights behind Decode, float64; as fan_out finds them."""
    with torch.inference_mode(False), torch.enable_grad():
        sample = torch.zeros(1, *train.shape[1:], dtype=torch.float64, device=train.device, requires_grad=True)
        values, total = {decode: sample}, sample.sum() * 0
        for name, layer, inputs in network.nodes:
            x = values.get(inputs[0])
            if x is None:
                continue
            if (weighted := _with_ones(layer, x)) is not None:
                total = total + weighted.sum()
            elif moves(layer):
                values[name] = layer(None, None, x)[0]
        return torch.autograd.grad(total, sample)[0][0]


def _with_ones(layer: nn.Module, x: Tensor) -> Tensor | None:
    """What a layer makes of x with weights of one and no bias; None where it has no weights."""
    if isinstance(layer, FrozenLinear):
        return nn.functional.linear(x, torch.ones_like(layer.weight, dtype=x.dtype))
    if not is_convolution(layer):
        return None
    values = {"weight": torch.ones_like, "bias": torch.zeros_like}
    named = {name: values[name](tensor, dtype=x.dtype) for name, tensor in layer.tensors().items()}
    weighted: Tensor = torch.func.functional_call(layer.module, named, (x,))
    return weighted


def _not_counted(network: FrozenNetwork) -> tuple[str, ...]:
    """Layers that multiply and are neither spiking nor the first weights behind Decode."""
    missing = []
    decoded: set[str] = set()  # nodes that hold counts
    for name, layer, inputs in network.nodes:
        counts = inputs[0] in decoded
        if isinstance(layer, FrozenDecode) or (counts and moves(layer)):
            decoded.add(name)
        elif not layer.branches() and layer.tensors() and not (counts and _is_weight(layer)):
            missing.append(f"{name} ({layer.kind})")
    return tuple(missing)


def _is_weight(layer: nn.Module) -> bool:
    return isinstance(layer, FrozenLinear) or is_convolution(layer)


def _check_input(name: str, x: Any) -> None:
    """NaN is no reason for a neuron to fire, so that an answer to it would look like any other."""
    for value in tree_leaves(x):
        if isinstance(value, Tensor) and value.is_floating_point():
            _check_finite(name, "input", value)


def _device(stream: Stream) -> torch.device:
    assert stream.inputs is not None
    return stream.inputs[0].device


def _probabilities(network: FrozenNetwork, logits: Tensor) -> Tensor:
    return logits if network.probabilities else logits.softmax(1)


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
