"""Sections on whole networks: inference, training step, latency, memory."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import memory
import peers
import tandem_cuda as tc
from networks import (
    T,
    TandemLayer,
    activity,
    ann_twin,
    cifar_net,
    counts,
    fused,
    inputs,
    mnist_net,
    reference_twin,
    settle,
    spiking_weights,
    training_step,
    weights_and_norms,
)
from report import Figure, Run, check, cost, fastest, speed

LAST = torch.channels_last
Sides = dict[str, Callable[[], Any]]


def settled(build: Any, batches: list[Tensor]) -> nn.Sequential:
    torch.manual_seed(0)
    return settle(build(tc), batches)


# ---------------------------------------------------------------------------------------------------------------------
# Agreement: the twins compute the same network
# ---------------------------------------------------------------------------------------------------------------------


def check_spikes(name: str, got: list[Tensor], expected: list[Tensor]) -> str:
    """Spike counts of some layers, against the kernel's.

    Sums are not exact here: one in another order may put a neuron on the other side of its threshold.
    """
    differing = max(float((a != b).float().mean()) for a, b in zip(got, expected, strict=True))
    check(differing < 0.01, f"{name}: the counts of {differing:.1%} of a layer's neurons differ from the kernel's")
    return f"{name}: counts equal the kernel's in at least {1 - differing:.3%} of the neurons of {len(got)} layers"


@torch.no_grad()
def input_scale(net: nn.Sequential) -> int:
    """What the input of the ANN is multiplied by: constant input comes in every time step."""
    return net[0].time_steps if net[0].mode == "constant" else 1


def check_ann(net: nn.Sequential, ann: nn.Sequential, x: Tensor) -> str:
    """Given the spike counts of the layer below, every ANN layer's activation must go with its counts.

    They are not equal: a count is whole, and inputs that spike late, or cancel spikes already fired, leave a rest.
    """
    blocks, train, lowest = iter(ann), net[0](x), 1.0
    for layer in net[1:]:
        below = input_scale(net) * x if layer is net[1] else train.value * train.code.amplitude
        train = layer(train)
        block = next(blocks)
        if isinstance(layer, nn.Flatten):
            continue
        if not isinstance(layer, TandemLayer):
            break
        norm, relu = next(blocks), next(blocks)
        activation = relu(norm(block(below)))
        both = torch.stack((activation.flatten(), train.value.flatten()))
        lowest = min(lowest, float(torch.corrcoef(both)[0, 1]))
    check(lowest > 0.6, f"ANN: the activations of a layer correlate by only {lowest:.2f} with its spike counts")
    return f"ANN: activations correlate with spike counts by {lowest:.2f} or more in every layer"


def check_gradients(net: nn.Sequential, twin: nn.Sequential, x: Tensor) -> str:
    """One training step of both gives nearly the same gradient."""
    gradients = []
    for network in (net, twin):
        training_step(network, x)()
        gradients.append(torch.cat([parameter.grad.double().flatten() for parameter in network.parameters()]))
    cosine = float(nn.functional.cosine_similarity(*gradients, dim=0))
    check(cosine > 0.99, f"PyTorch, folded: its gradient and the kernel's have a cosine of only {cosine:.4f}")
    return f"PyTorch, folded: cosine of its gradient and the kernel's {cosine:.6f}"


def check_learning(name: str, net: nn.Module) -> None:
    """All weights have gradients. Biases in front of batch norm, which subtracts the mean, need none."""
    gradients = [parameter.grad for parameter in net.parameters() if parameter.dim() > 1]
    check(all(x is not None and bool(x.any()) for x in gradients), f"{name}: a weight's gradient is zero")


# ---------------------------------------------------------------------------------------------------------------------
# The sides
# ---------------------------------------------------------------------------------------------------------------------


def inference(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def infer() -> Tensor:
        with torch.no_grad():
            return net(x)

    return infer


def ann_sides(
    net: nn.Sequential, x: Tensor, side: Any, change: Callable[[nn.Sequential], nn.Module] = lambda ann: ann
) -> Sides:
    """The ANN twin in both memory formats; ``side``: inference or training_step."""
    plain, last = change(ann_twin(net)), change(ann_twin(net)).to(memory_format=LAST)
    return {
        "ANN": side(plain, T * x),
        "ANN, channels last": side(last, (T * x).contiguous(memory_format=LAST)),
    }


def reference_sides(net: nn.Sequential, build: Any, x: Tensor, side: Any) -> Sides:
    last = reference_twin(net, build, "folded").to(memory_format=LAST)
    return {
        "PyTorch, loop": side(reference_twin(net, build, "loop"), x),
        "PyTorch, folded": side(reference_twin(net, build, "folded"), x),
        "PyTorch, folded, channels last": side(last, x.contiguous(memory_format=LAST)),
    }


class WithReadout(nn.Module):
    """A peer's spiking layers, then the read-out of their spike counts."""

    def __init__(self, spiking: nn.Module, readout: nn.Linear) -> None:
        super().__init__()
        self.spiking = spiking
        self.readout = readout

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.spiking(x).sum(0))


def peer_networks(net: nn.Sequential) -> dict[str, WithReadout]:
    """As SpikingJelly's documentation builds it; and by hand: batch norm folded, the first current computed once."""
    networks = {"snnTorch": peers.snntorch(spiking_weights(net), True, T)}
    for node in peers.spikingjelly_nodes():
        for last in (False, True):
            built = peers.spikingjelly_with_norm(weights_and_norms(net), node, T)
            tuned = peers.spikingjelly(spiking_weights(net), node, True, T)
            for kind, network in (("", built), (" tuned", tuned)):
                name = f"SpikingJelly{kind}, {node}{', channels last' if last else ''}"
                networks[name] = network.to(memory_format=LAST) if last else network
    return {name: WithReadout(network, net[-1]).eval() for name, network in networks.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The sections
# ---------------------------------------------------------------------------------------------------------------------


def network(run: Run) -> list[Figure]:
    """CifarNet's inference against the ANN, PyTorch and the peers; the MNIST-size network's for information."""
    batches = inputs(8, 3, 32, 32)
    net, x = settled(cifar_net, batches), batches[0]
    run.tell("CifarNet's activity in inference", activity(net, x))
    expected = counts(net, x)
    agreement = [check_ann(net, ann_twin(net), x)]
    for form in ("loop", "folded"):
        found = counts(reference_twin(net, cifar_net, form), x)
        agreement.append(check_spikes(f"PyTorch, {form}", found, expected))
    others = peer_networks(net) if run.peers else {}
    for name, other in others.items():
        with torch.no_grad():
            agreement.append(check_spikes(f"{name}, the last layer", [other.spiking(x).sum(0)], expected[-1:]))
    run.tell("CifarNet's agreement", agreement)

    sides = {
        "kernel": inference(net, x),
        **reference_sides(net, cifar_net, x, inference),
        **ann_sides(net, x, inference),
        **{f"fused {name}": side for name, side in ann_sides(net, x, inference, fused).items()},
        **{name: inference(other, x) for name, other in others.items()},
    }
    medians = run.time("CifarNet, inference, batch 8", sides)
    kernel = medians["kernel"]
    layout, ann = fastest(medians, "ANN")
    form, plain = fastest(medians, "PyTorch")
    figures = [
        cost("CifarNet inference: time over the ANN's", kernel / ann, 1.0, 0.7, layout),
        cost(
            "CifarNet inference: time over the ANN's with batch norm folded",
            kernel / fastest(medians, "fused ANN")[1],
        ),
        speed("CifarNet inference: speed over the fastest PyTorch form", plain / kernel, 10, 16, form),
    ]
    for peer, label, bounds in (
        (
            ("SpikingJelly,", "SpikingJelly", (12, 16)),
            ("SpikingJelly tuned", "SpikingJelly, batch norm folded by hand", (None, None)),
            ("snnTorch", "snnTorch, batch norm folded by hand", (None, None)),
        )
        if run.peers
        else ()
    ):
        name, seconds = fastest(medians, peer)
        figures.append(speed(f"CifarNet inference: speed over {label}", seconds / kernel, *bounds, note=name))

    batches = inputs(64, 1, 28, 28)
    net, x = settled(mnist_net, batches), batches[0]
    run.tell("MNIST-size network's activity in inference", activity(net, x))
    run.tell("MNIST-size network's agreement", check_ann(net, ann_twin(net), x))
    sides = {
        "kernel": inference(net, x),
        **reference_sides(net, mnist_net, x, inference),
        **ann_sides(net, x, inference),
    }
    medians = run.time("MNIST-size network, inference, batch 64", sides)
    return [
        *figures,
        cost("MNIST-size inference: time over the ANN's", medians["kernel"] / fastest(medians, "ANN")[1]),
        speed("MNIST-size inference: speed over PyTorch", fastest(medians, "PyTorch")[1] / medians["kernel"]),
    ]


def training(run: Run) -> list[Figure]:
    """Forward, cross entropy, backward and SGD in training mode against the ANN's."""
    figures = []
    for name, build, shape, bounds in (
        ("CifarNet", cifar_net, (8, 3, 32, 32), (1.3, 0.9)),
        ("MNIST-size network", mnist_net, (64, 1, 28, 28), (1.5, 1.0)),
    ):
        batches = inputs(*shape)
        net, x = settled(build, batches), batches[0]
        agreement = [check_ann(net, ann_twin(net), x)]
        net.train()
        agreement.append(check_gradients(net, reference_twin(net, build, "folded"), x))
        run.tell(f"{name}: agreement in training", agreement)
        sides = {
            "kernel": training_step(net, x),
            **ann_sides(net, x, training_step),
            "PyTorch, folded": training_step(reference_twin(net, build, "folded"), x),
        }
        medians = run.time(f"{name}, training step, batch {shape[0]}", sides)
        check_learning(name, net)
        # The running statistics have followed this one batch: these are the rates that the steps ran at.
        run.tell(f"{name}: activity after the training steps", activity(net, x))
        layout, ann = fastest(medians, "ANN")
        figures += [
            cost(f"{name} training step: time over the ANN's", medians["kernel"] / ann, *bounds, note=layout),
            speed(f"{name} training step: speed over PyTorch, folded", medians["PyTorch, folded"] / medians["kernel"]),
        ]
    return figures


def with_neurons(net: nn.Sequential, neuron: tc.IF) -> nn.Sequential:
    """A copy of a network with other neurons."""
    twin = copy.deepcopy(net)
    for layer in twin:
        if isinstance(layer, TandemLayer):
            layer.neuron = neuron
    return twin


def two_phase(run: Run) -> list[Figure]:
    """CifarNet with two-phase neurons against one-phase ones that start alike, and against the ANN."""
    batches = inputs(8, 3, 32, 32)
    one, x = settled(cifar_net, batches), batches[0]
    one = with_neurons(one, tc.IF(initial=0.5))
    two = with_neurons(one, tc.IF(initial=0.5, two_phase=True))
    figures = []
    for name, side, bounds in (("inference", inference, (1.0, 0.8)), ("training step", training_step, (0.9, 0.75))):
        for net in (one, two):
            net.train(side is training_step)
        rates = {
            kind: [f"{float(c.mean()) / T:.1%}" for c in counts(net, x)] for kind, net in (("two", two), ("one", one))
        }
        run.tell(f"CifarNet, {name}: firing rates", [f"{kind}-phase {', '.join(of)}" for kind, of in rates.items()])
        sides = {"two-phase": side(two, x), "one-phase": side(one, x), **ann_sides(one, x, side)}
        medians = run.time(f"two-phase CifarNet, {name}, batch 8", sides)
        layout, ann = fastest(medians, "ANN")
        figures += [
            cost(
                f"two-phase CifarNet {name}: time over one-phase's",
                medians["two-phase"] / medians["one-phase"],
                *bounds,
            ),
            cost(f"two-phase CifarNet {name}: time over the ANN's", medians["two-phase"] / ann, note=layout),
        ]
    return figures


def latency(run: Run) -> list[Figure]:
    """CifarNet on one picture."""
    batches = inputs(8, 3, 32, 32)
    net, x = settled(cifar_net, batches), batches[0][:1]
    run.tell("CifarNet's activity at batch 1", activity(net, x))
    check_ann(net, ann_twin(net), x)
    medians = run.time("CifarNet, inference, batch 1", {"kernel": inference(net, x), **ann_sides(net, x, inference)})
    layout, ann = fastest(medians, "ANN")
    return [cost("CifarNet inference, batch 1: time over the ANN's", medians["kernel"] / ann, 1.0, 0.7, layout)]


def memory_growth(run: Run) -> list[Figure]:
    """Peak extra memory of a training step, T = 64 over T = 8, each in a process of its own."""
    name = "training step's peak extra memory, T = 64 over T = 8"
    if not memory.MEASURABLE:
        return [Figure(name, None, must=1.3, aim=1.1, note="needs Linux's /proc/self/clear_refs")]
    extra = {}
    for side, steps in (("kernel", 8), ("kernel", 64), ("ann", 8), ("reference", 8)):
        command = [sys.executable, str(Path(memory.__file__)), side, str(steps), str(run.threads)]
        done = subprocess.run(command, capture_output=True, text=True, env=memory.environment())
        check(done.returncode == 0, f"memory, {side}, T = {steps}: {done.stderr}")
        extra[f"{side}, T = {steps}"] = json.loads(done.stdout)
    run.tell(
        f"peak extra memory of a training step, {memory.NETWORK}",
        [f"{key}: {value['peak_extra'] / 2**20:.0f} MiB, activity {value['rates']}" for key, value in extra.items()],
    )
    peak = {key: value["peak_extra"] for key, value in extra.items()}
    return [
        Figure(name, peak["kernel, T = 64"] / peak["kernel, T = 8"], "x", 1.3, 1.1, False),
        Figure("training step's peak extra memory, T = 8", peak["kernel, T = 8"] / 2**20, "MiB"),
        Figure("training step's peak extra memory, T = 64", peak["kernel, T = 64"] / 2**20, "MiB"),
        Figure("training step's peak extra memory, T = 8, over the ANN's", peak["kernel, T = 8"] / peak["ann, T = 8"]),
        Figure("plain PyTorch's over ours, T = 8", peak["reference, T = 8"] / peak["kernel, T = 8"]),
    ]
