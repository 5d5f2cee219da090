"""Sections on integer weights: layers, frozen networks and training steps, against the ANN at its best."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import ann
import mnist_digits
import onnx_runtime
import tandem_cuda as tc
from layer_sections import check_activity, quantised_sides
from network_sections import ann_sides, check_ann, check_learning, inference, input_scale, with_neurons
from networks import TRAINED, T, activity, ann_twin, cifar_net, inputs, mnist_net, settle, training_step
from report import Figure, Run, check, cost, fastest
from sizes import S2, S3, ConvCase
from tandem_cuda import ops, reference

Bounds = tuple[float | None, float | None]  # must, aim
FREE: Bounds = (None, None)
TWO_PHASE = tc.IF(initial=0.5, two_phase=True)
RADIX, RADIX_STEPS = tc.RadixIF(level=4.0), 4


def ratio(name: str, medians: dict[str, float], side: str, other: str, bounds: Bounds = FREE) -> Figure:
    """A side's time over the fastest's of the others whose names start so."""
    found, seconds = fastest(medians, other)
    note = f"{medians[side] * 1e3:.3g} ms over {seconds * 1e3:.3g} ms, {found}"
    return cost(name, medians[side] / seconds, *bounds, note=note)


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------


def layer_sides(case: ConvCase, spikes: Tensor) -> ann.Sides:
    """Float weights, the same in 8 bits, and others in 16 bits, after checking them against the reference."""
    bits, bias = ops.pack_spikes(spikes), case.bias()
    weight, scale = case.int8_weight()
    wide, wide_scale = case.int16_weight()
    sides = {}
    for name, w, keywords in (
        ("kernel", weight * scale.view(-1, 1, 1, 1), {}),
        ("kernel, int8", weight, {"scale": scale}),
        ("kernel, int16", wide, {"scale": wide_scale}),
    ):
        packed = ops.pack_weight(w, case.groups)
        sides[name] = partial(case.run, ops, bits, w, bias, packed=packed, **keywords)
        expected = case.run(reference, bits, w, bias, **keywords)
        check_activity(f"{case.name}, {name}", expected, case.time_steps)
        check(torch.equal(sides[name](), expected), f"{case.name}: {name} and the reference give different spikes")
    return sides


def layer_anns(case: ConvCase, spikes: Tensor) -> ann.Sides:
    """The ANN's convolution of the counts, in float32 and in PyTorch's int8."""
    (weight, scale), bias = case.int8_weight(), case.bias()
    float_weight = weight * scale.view(-1, 1, 1, 1)
    layer = nn.Conv2d(case.channels, case.out_channels, case.kernel, *case.geometry)
    layer.load_state_dict({"weight": float_weight, "bias": bias})
    return {
        **ann.float_sides(nn.Sequential(layer), spikes.sum(0)),
        **quantised_sides(case, spikes, float_weight, scale, bias),
    }


@torch.no_grad()
def layers(run: Run) -> list[Figure]:
    """Wide convolutions at few and many spikes, random and in the pattern of trained networks."""
    figures = []
    for case in (S2, S3):
        anns = layer_anns(case, case.spikes(0.05))  # their times do not depend on the values
        for percent, pattern, bounds, wide_bounds in (
            (5, "random", (0.45, 0.35), (1.15, 1.0)),
            (5, "trained", FREE, FREE),
            (2, "random", (0.28, 0.2), FREE),
            (2, "trained", FREE, FREE),
            *([(40, "random", (1.5, 1.0), FREE)] if case is S3 else []),
        ):
            spikes = case.spikes(percent / 100) if pattern == "random" else case.trained_spikes(percent / 100)
            at = f"{case.name}, {pattern} spikes at {percent} %"
            medians = run.time(f"integer weights, {at}: {case}", {**layer_sides(case, spikes), **anns})
            figures += [
                ratio(f"{at}, float: time over the ANN's", medians, "kernel", "ANN"),
                ratio(f"{at}, int8: time over the ANN's", medians, "kernel, int8", "ANN", bounds),
                ratio(f"{at}, int8: time over PyTorch's int8", medians, "kernel, int8", "PyTorch int8"),
                cost(f"{at}, 16 bits: time over float", medians["kernel, int16"] / medians["kernel"], *wide_bounds),
            ]
    return figures


# ---------------------------------------------------------------------------------------------------------------------
# Frozen networks
# ---------------------------------------------------------------------------------------------------------------------

Networks = tuple[nn.Module, nn.Module, nn.Module, int]  # SNN, SNN on int8 weights, ANN, scale of the ANN's input


def settled(build: Any, shape: tuple[int, ...], neuron: Any = tc.IF(), **keywords: Any) -> Networks:
    """At a firing rate of 5 %; ``keywords`` of settle."""
    batches = inputs(8, *shape)
    torch.manual_seed(0)
    net = settle(with_neurons(build(tc), neuron), batches, **keywords)
    check_ann(net, ann_twin(net), batches[0])
    integer = copy.deepcopy(net)
    tc.quantise(integer, 8)
    return net, integer, ann_twin(net), input_scale(net)


@torch.no_grad()
def converted(build: Any, shape: tuple[int, ...], neuron: Any = tc.IF(), time_steps: int = T) -> Networks:
    """As initialised, batch norm with the statistics of the inputs, thresholds calibrated."""
    batches = inputs(8, *shape)
    torch.manual_seed(0)
    net = build()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    for batch in batches:
        net(batch)
    net.eval()
    how: dict[str, Any] = {"neuron": neuron, "calibrate": batches[0], "correct_bias": False}
    integer = tc.convert(copy.deepcopy(net), time_steps, **how, weights="int8")
    return tc.convert(net, time_steps, **how), integer, net, 1


@functools.cache
def digits_in_colour() -> tuple[mnist_digits.Digits, Tensor]:
    """MNIST digits of 32 x 32 pixels in three channels: those to train on, and 64 others."""
    to_train, others, _ = mnist_digits.digits()
    images = [F.pad(x, (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous() for x, _ in (to_train, others)]
    return (images[0], to_train[1]), images[1][:64]


@functools.cache
def learned(build: Callable[[], nn.Module]) -> nn.Module:
    """After an epoch."""
    torch.manual_seed(0)
    net = build().to(memory_format=torch.channels_last)
    mnist_digits.train(net, digits_in_colour()[0], 1)
    return net.to(memory_format=torch.contiguous_format)


def trained(build: Callable[[], nn.Module], shape: tuple[int, ...], neuron: tc.IF = tc.IF()) -> Networks:
    """After an epoch of digits, thresholds calibrated: at the rates that a trained network has."""
    net, ((images, _), _) = learned(build), digits_in_colour()
    float_net, integer = (
        tc.convert(copy.deepcopy(net), T, neuron=neuron, calibrate=images[:64], correct_bias=False, **weights)
        for weights in ({}, {"weights": "int8"})
    )
    return float_net, integer, net, 1


def resnet() -> nn.Module:
    """ResNet-18 for 32 x 32 pixels."""
    net = torchvision.models.resnet18(num_classes=10)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


def vgg() -> nn.Module:
    """VGG11 with batch norm for 32 x 32 pixels."""
    net = torchvision.models.vgg11_bn(num_classes=10)
    net.avgpool, net.classifier = nn.Identity(), nn.Linear(512, 10)
    return net


def mobilenet() -> nn.Module:
    """MobileNet-V2 with ReLU for 32 x 32 pixels: depthwise layers, and bottlenecks without ReLU."""
    net = torchvision.models.mobilenet_v2(num_classes=10)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    net.features[0][0].stride = net.features[2].conv[1][0].stride = (1, 1)
    return net


def densenet() -> nn.Module:
    """DenseNet-121 for 32 x 32 pixels: concatenations, each read through a batch norm of its own."""
    net = torchvision.models.densenet121(num_classes=10)
    net.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.features.pool0 = nn.Identity()
    return net


def noise(shape: tuple[int, ...]) -> Tensor:
    (images,) = inputs(64, *shape, batches=1)
    return images


def digits(shape: tuple[int, ...]) -> Tensor:
    return digits_in_colour()[1]


@dataclass(frozen=True)
class Network:
    name: str
    make: Callable[[tuple[int, ...]], Networks]
    shape: tuple[int, ...] = (3, 32, 32)
    batches: tuple[int, ...] = (1, 8, 64)
    bounds: dict[tuple[str, int], Bounds] = field(default_factory=dict)
    """By weights and batch size, over the ANN."""
    images: Callable[[tuple[int, ...]], Tensor] = noise
    """64 of them."""
    int8_ann: bool = True
    """Whether PyTorch's int8 can serve as the ANN: of random weights, it changes MobileNet's outputs by a third."""


MNIST_BOUNDS = {("int8", 64): (1.0, 0.7)}
RESNET_BOUNDS = {("float", 8): (1.2, 0.8), ("int8", 8): (0.9, 0.6)}
NETWORKS = (
    Network(
        "CifarNet",
        partial(settled, cifar_net),
        bounds={
            ("float", 8): (0.8, 0.6),
            ("int8", 1): (0.5, 0.35),
            ("int8", 8): (0.5, 0.35),
            ("int8", 64): (0.6, 0.45),
        },
    ),
    Network("CifarNet, trained pattern", partial(settled, cifar_net, gamma=TRAINED), batches=(8,)),
    Network("MNIST-size network", partial(settled, mnist_net), (1, 28, 28), bounds=MNIST_BOUNDS),
    Network("ResNet-18, trained", partial(trained, resnet), batches=(8,), bounds=RESNET_BOUNDS, images=digits),
    Network("ResNet-18", partial(converted, resnet)),
    Network("VGG11", partial(converted, vgg)),
    Network(
        "MNIST-size network, two-phase", partial(settled, mnist_net, neuron=TWO_PHASE), (1, 28, 28), (64,), MNIST_BOUNDS
    ),
    Network(
        "ResNet-18, trained, two-phase",
        partial(trained, resnet, neuron=TWO_PHASE),
        batches=(8,),
        bounds=RESNET_BOUNDS,
        images=digits,
    ),
    Network("ResNet-18, two-phase", partial(converted, resnet, neuron=TWO_PHASE), batches=(8,), bounds=RESNET_BOUNDS),
    Network("VGG11, two-phase", partial(converted, vgg, neuron=TWO_PHASE), batches=(8,)),
    Network("MobileNet-V2", partial(converted, mobilenet), batches=(8,), int8_ann=False),
    Network("MobileNet-V2, two-phase", partial(converted, mobilenet, neuron=TWO_PHASE), batches=(8,), int8_ann=False),
    Network("DenseNet-121", partial(converted, densenet), batches=(8,), int8_ann=False),
    Network("DenseNet-121, two-phase", partial(converted, densenet, neuron=TWO_PHASE), batches=(8,), int8_ann=False),
)


def frozen(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """The frozen network's side, after checking it against the network."""
    side = inference(tc.freeze(net), x)
    check(torch.equal(side(), inference(net, x)()), "the frozen network and the network give different outputs")
    return side


def networks(run: Run) -> list[Figure]:
    """Frozen networks, float and int8, of three batch sizes."""
    figures = []
    for network in NETWORKS:
        net, integer, twin, scale = network.make(network.shape)
        images = network.images(network.shape)
        for batch in network.batches:
            x, name = images[:batch], f"{network.name} frozen, batch {batch}"
            run.tell(f"{name}: activity on int8 weights", activity(integer, x, 0.005, 0.3))
            anns = ann.float_sides(twin, scale * x)
            if network.int8_ann:
                anns |= ann.int8_sides(twin, scale * x)
            medians = run.time(name, {"kernel": frozen(net, x), "kernel, int8": frozen(integer, x), **anns})
            for weights, side in (("float", "kernel"), ("int8", "kernel, int8")):
                bounds = network.bounds.get((weights, batch), FREE)
                figures.append(ratio(f"{name}, {weights}: time over the ANN's", medians, side, "ANN", bounds))
            if not network.int8_ann:
                continue
            bounds = (None, 1.2) if network.name == "CifarNet" else FREE
            figures.append(
                ratio(f"{name}, int8: time over PyTorch's int8", medians, "kernel, int8", "PyTorch int8", bounds)
            )
    return figures


def two_phase(run: Run) -> list[Figure]:
    """CifarNet frozen, int8, with two-phase neurons, whose time should not depend on the firing rate."""
    (x,) = inputs(8, 3, 32, 32, batches=1)
    rates = {}
    for percent in (5, 20, 40):
        _, integer, twin, scale = settled(cifar_net, (3, 32, 32), TWO_PHASE, rate=percent / 100)
        run.tell(f"CifarNet frozen, int8, two-phase, {percent} %: activity", activity(integer, x, 0.03, 0.5))
        rates[f"kernel, {percent} %"] = frozen(integer, x)
    anns = {**ann.float_sides(twin, scale * x), **ann.int8_sides(twin, scale * x)}
    medians = run.time("CifarNet frozen, int8, two-phase, batch 8", {**rates, **anns})
    figures = []
    for side in rates:
        at = f"CifarNet frozen, int8, two-phase, batch 8, {side.removeprefix('kernel, ')}"
        figures += [
            ratio(f"{at}: time over the ANN's", medians, side, "ANN", (0.4, 0.28)),
            ratio(f"{at}: time over PyTorch's int8", medians, side, "PyTorch int8", (1.5, 1.1)),
        ]
    return figures


def of_radix(build: Any, layers: Any) -> nn.Sequential:
    """A network for RADIX_STEPS time steps, the first of which has the whole input."""
    net = build(layers, RADIX_STEPS)
    net[0] = layers.Encode(RADIX_STEPS, "impulse")
    return net


def radix(run: Run) -> list[Figure]:
    """Frozen networks of radix spikes on int8 weights: a layer is one product of bytes."""
    figures = []
    for percent in (5, 20, 40):
        made = settled(partial(of_radix, cifar_net), (3, 32, 32), RADIX, rate=percent / 100)
        for batch in (1, 8, 64):
            figures += radix_figures(run, f"CifarNet, {percent} %", made, noise((3, 32, 32))[:batch], (1.1, 0.95))
    made = settled(partial(of_radix, mnist_net), (1, 28, 28), RADIX)
    for batch, bounds in ((1, (1.5, 1.0)), (64, (1.3, 1.0))):
        figures += radix_figures(run, "MNIST-size network", made, noise((1, 28, 28))[:batch], bounds)
    for name, build, bounds in (
        ("ResNet-18", resnet, (1.2, 1.0)),
        ("VGG11", vgg, (1.2, 1.0)),
        ("MobileNet-V2", mobilenet, (1.0, 0.6)),
        ("DenseNet-121", densenet, (0.8, 0.5)),
    ):
        made = converted(build, (3, 32, 32), RADIX, RADIX_STEPS)
        figures += radix_figures(run, name, made, noise((3, 32, 32))[:8], bounds, build in (resnet, vgg))
    return figures


def radix_figures(
    run: Run, name: str, made: Networks, x: Tensor, bounds: Bounds, int8_ann: bool = True
) -> list[Figure]:
    """Over the ANN in float32 and in int8: PyTorch's and ONNX Runtime's, unless it changes the outputs by too much."""
    _, integer, twin, _ = made
    name = f"{name}, radix spikes, T = {RADIX_STEPS}, frozen, int8, batch {len(x)}"
    run.tell(f"{name}: activity", activity(integer, x, 0.005, 0.6))
    anns = ann.float_sides(twin, x)
    over = {"ANN": ("the ANN's", FREE if int8_ann else bounds)}
    if int8_ann:
        anns |= ann.int8_sides(twin, x)
        over["PyTorch int8"] = "PyTorch's int8", bounds
    if int8_ann and run.peers:
        anns |= onnx_runtime.int8_sides(twin, x)
        over["ONNX Runtime int8"] = "ONNX Runtime's int8", FREE
    medians = run.time(name, {"kernel, int8": frozen(integer, x), **anns})
    return [
        ratio(f"{name}: time over {whose}", medians, "kernel, int8", side, limits)
        for side, (whose, limits) in over.items()
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def training(run: Run) -> list[Figure]:
    """Steps on int8 weights, over those on float weights and the ANN's."""
    figures = []
    cifar, mnist = (8, 3, 32, 32), (64, 1, 28, 28)
    for name, neuron, build, shape, bounds in (
        ("CifarNet", tc.IF(), cifar_net, cifar, (1.0, 0.8)),
        ("MNIST-size network", tc.IF(), mnist_net, mnist, (1.3, 1.1)),
        ("CifarNet, two-phase", TWO_PHASE, cifar_net, cifar, (1.0, 0.8)),
        ("MNIST-size network, two-phase", TWO_PHASE, mnist_net, mnist, (1.3, 1.1)),
        ("CifarNet, radix", RADIX, partial(of_radix, cifar_net), cifar, (0.75, 0.65)),
        ("MNIST-size network, radix", RADIX, partial(of_radix, mnist_net), mnist, (0.95, 0.8)),
    ):
        net, integer, _, _ = settled(build, shape[1:], neuron)
        (x,) = inputs(*shape, batches=1)
        for network in (net, integer):
            network.train()
        found = training_figures(run, name, net, integer, ann_sides(net, x, training_step), x, bounds)
        for network in (net, integer):
            check_learning(name, network)
        run.tell(f"{name}: activity after the steps", activity(integer, x, 0.005, 0.3))
        figures += found
    net, integer, twin, scale = converted(resnet, (3, 32, 32), RADIX, RADIX_STEPS)
    x = noise((3, 32, 32))[:8]
    last = copy.deepcopy(twin).to(memory_format=torch.channels_last)
    sides = {
        "ANN": training_step(twin.train(), scale * x),
        "ANN, channels last": training_step(last.train(), (scale * x).contiguous(memory_format=torch.channels_last)),
    }
    return figures + training_figures(run, "ResNet-18, radix", net.train(), integer.train(), sides, x, (0.95, 0.8))


def training_figures(
    run: Run, name: str, net: nn.Module, integer: nn.Module, sides: ann.Sides, x: Tensor, bounds: Bounds
) -> list[Figure]:
    """Of a network on float and on int8 weights, and its ANN."""
    at = f"{name}, step on int8 weights, batch {len(x)}"
    medians = run.time(at, {"kernel": training_step(net, x), "kernel, int8": training_step(integer, x), **sides})
    figures = [cost(f"{at}: time over float's", medians["kernel, int8"] / medians["kernel"], 1.1, 0.9)]
    for weights, side in (("int8", "kernel, int8"), ("float", "kernel")):
        over = f"{name}, step on {weights} weights, batch {len(x)}: time over the ANN's"
        figures.append(ratio(over, medians, side, "ANN", bounds))
    return figures
