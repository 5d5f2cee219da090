"""Accuracy of a QCFS network and of the spiking network that counts its levels, on MNIST, beside SpikingJelly's.

    OMP_NUM_THREADS=1 python bench/qcfs.py --data-dir FOLDER --seeds 0 1

FOLDER has MNIST as torchvision's MNIST reads it. Two networks of the same layers are trained for one epoch on 59,000
digits, one with QCFS activations of L = 4 levels, one with ReLU. SpikingJelly converts ReLU alone: of its recipes, the
one counts that is best on the other 1,000 training digits, for each T. All accuracies are of the 10,000 test digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conversion import recipes, theirs
from tandem_cuda import IF, convert, from_qcfs

LEVELS, BATCH, LEARNING_RATE = 4, 100, 2e-3
STEPS = LEVELS // 2, LEVELS, 2 * LEVELS
THEIR_STEPS = [*STEPS, 16, 32]


class QCFS(nn.Module):
    """Rounds to L levels of a learned threshold; the gradient goes straight through the rounding."""

    def __init__(self, threshold: float = 2.0) -> None:
        super().__init__()
        self.thresh = nn.Parameter(torch.tensor([threshold]))
        self.L = LEVELS

    def forward(self, x: Tensor) -> Tensor:
        share = (x / self.thresh).clamp(0, 1) * self.L
        rounded = share + ((share + 0.5).floor() - share).detach()
        return rounded / self.L * self.thresh


def network(activation: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), activation(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), activation(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 128), activation(), nn.Linear(128, 10)),
    )


def trained(activation: Callable[[], nn.Module], images: Tensor, labels: Tensor, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    net = network(activation)
    optimiser = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=len(images) // BATCH)
    for batch in torch.randperm(len(images)).split(BATCH):
        loss = F.cross_entropy(net(images[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def accuracies(outputs: Callable[[Tensor], list[Tensor]], images: Tensor, labels: Tensor) -> list[float]:
    """Of several outputs, in %."""
    parts = zip(images.split(500), labels.split(500), strict=True)
    right = torch.tensor([[int((y.argmax(1) == label).sum()) for y in outputs(x)] for x, label in parts])
    return [100 * float(number) / len(images) for number in right.sum(0)]


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    return accuracies(lambda x: [net(x)], images, labels)[0]


@torch.no_grad()
def differing(ann: nn.Sequential, images: Tensor) -> str:
    """How many counts at T = L are not the ANN's levels. Each network computes with its own."""
    snn, found, number, different = from_qcfs(ann, QCFS, example=images[:1]), [], 0, 0
    handles = [
        snn.snn.get_submodule(name).register_forward_hook(lambda _, __, train: found.append(train.value))
        for name in snn.spiking_layers
    ]
    for x in images.split(500):
        found.clear()
        snn(x)
        counts = iter([*found])
        for module in ann:
            x = module(x)
            if isinstance(module, QCFS):
                levels = (x / module.thresh * module.L).round()
                number, different = number + levels.numel(), different + int((levels != next(counts)).sum())
    for handle in handles:
        handle.remove()
    return f"{different} of {number}"


def shown(values: list[float]) -> str:
    return "  ".join(f"{value:6.2f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--without-peers", action="store_true", help="leave SpikingJelly out")
    args = parser.parse_args()
    from torchvision.datasets import MNIST

    train, test = (MNIST(args.data_dir, part) for part in (True, False))
    images, x = (data.data.unsqueeze(1).float() / 255 for data in (train, test))
    (images, validation), (labels, answers) = images.split([59000, 1000]), train.targets.split([59000, 1000])
    y, sample = test.targets, images[:500]
    print(f"T = {STEPS}; SpikingJelly: T = {THEIR_STEPS}; {torch.get_num_threads()} threads")
    for seed in args.seeds:
        ann = trained(QCFS, images, labels, seed)
        print(f"seed {seed}: QCFS ANN {accuracy(ann, x, y):.2f}; counts at T = L that differ: {differing(ann, x)}")
        for neuron in (IF(initial=0.5, two_phase=True), IF(initial=0.5)):
            found = [accuracy(from_qcfs(ann, QCFS, steps, neuron=neuron, example=sample), x, y) for steps in STEPS]
            print(f"  SNN, {neuron}: {shown(found)}")
        plain = trained(nn.ReLU, images, labels, seed)
        found = [accuracy(convert(plain, steps, calibrate=sample), x, y) for steps in STEPS]
        print(f"  ReLU ANN {accuracy(plain, x, y):.2f}; convert with radix spikes: {shown(found)}", flush=True)
        if args.without_peers:
            continue
        tried = {
            name: accuracies(theirs(plain, recipe, THEIR_STEPS), validation, answers)
            for name, recipe in recipes(images, sample).items()
        }
        for i, steps in enumerate(THEIR_STEPS):
            best = max(tried, key=lambda name: tried[name][i])
            found = accuracies(theirs(plain, recipes(images, sample)[best], [steps]), x, y)
            print(f"  ReLU ANN, SpikingJelly, {best}, T = {steps}: {shown(found)}", flush=True)


if __name__ == "__main__":
    main()
