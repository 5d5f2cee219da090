"""A spiking network that answers as soon as it is sure: accuracy and synaptic operations against time steps.

    python examples/early_exit.py       # trains, freezes, draws; writes to runs/early_exit
    python examples/early_exit.py --help

The network, the digits and the training are taken from mnist.py. The trained network is frozen and saved, loaded again,
and run step by step; a digit leaves the batch once the softmax of the read-out is confident enough.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mnist  # says what to install where something is missing; sets up threads before torch is loaded
import plots
import torch
from torch import nn

import tandem_cuda
from tandem_cuda import AccuracyCurve, FrozenNetwork, OperatingPoint, freeze

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def trained_network(args: argparse.Namespace, device: torch.device) -> tuple[nn.Sequential, Any]:
    """The SNN of mnist.py after training, and the test digits."""
    train_set, test_set = mnist.load_digits(args.limit, args.seed)
    print(f"Data: {len(train_set):,} training and {len(test_set):,} test digits, a stratified split of {mnist.DATA}.")
    torch.manual_seed(args.seed)
    net = mnist.spiking_network(tandem_cuda, args.time_steps, args.encoding)
    print(f"Training on {device.type}, {args.encoding} encoding, T = {args.time_steps}:", flush=True)
    mnist.train(net, train_set, device, args)
    return net, test_set


def curve_table(points: Sequence[OperatingPoint], time_steps: int) -> str:
    rows = [("stops", "steps", "of T", "accuracy", "SynOps")]
    for point in points:
        stops = (
            f"after {point.steps:g}" if point.exit_confidence is None else f"at confidence {point.exit_confidence:g}"
        )
        share = f"{point.steps / time_steps:.0%}"
        rows.append((stops, f"{point.steps:.2f}", share, f"{point.accuracy:.1%}", f"{point.synops:,.0f}"))
    return mnist.table(rows)


def check_prediction(network: FrozenNetwork, test: tuple[torch.Tensor, torch.Tensor], curve: AccuracyCurve) -> None:
    """What the curve says of a confidence is what predict() does, but for rounding in smaller batches."""
    images, labels = test
    for point in curve.over_confidence:
        assert point.exit_confidence is not None
        prediction = network.predict(images, point.exit_confidence)
        steps, accuracy = prediction.steps.double().mean(), (prediction.classes == labels).double().mean()
        if abs(float(steps) - point.steps) > 0.05 or abs(float(accuracy) - point.accuracy) > 0.01:
            raise SystemExit(f"predict() took {steps:.2f} steps with accuracy {accuracy:.1%}, the curve says {point}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a spiking network on MNIST digits, freeze it, and let each digit stop when it is sure.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to run; auto: a GPU if it can be used")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--time-steps", type=int, default=8, metavar="T", help="time steps of the spiking network")
    add("--encoding", choices=["constant", "impulse"], default="impulse", help="how a digit becomes input current")
    add("--exit-confidence", type=float, default=0.9, help="softmax at which a digit stops, in (0, 1]; marked")
    add("--epochs", type=int, default=8, help="passes over the training digits")
    add("--batch-size", type=int, default=64, help="digits per training step")
    add("--lr", type=float, default=5e-3, help="highest learning rate of the cycle")
    add("--seed", type=int, default=0, help="of the split, the initial weights, the batches and their distortions")
    add("--limit", type=int, default=5000, help="use this many digits only, for a quick try (at least 100)")
    add("--out", type=Path, default=Path("runs/early_exit"), help="folder for the picture, the network, results.json")
    args = parser.parse_args()
    for name, least in {"threads": 1, "time_steps": 1, "epochs": 1, "batch_size": 2, "limit": 100}.items():
        if getattr(args, name) < least:
            parser.error(f"argument --{name.replace('_', '-')}: must be at least {least}, got {getattr(args, name)}")
    if not args.lr > 0:
        parser.error(f"argument --lr: must be positive, got {args.lr}")
    if not 0 < args.exit_confidence <= 1:
        parser.error(f"argument --exit-confidence: must be in (0, 1], got {args.exit_confidence}")
    return args


def main() -> None:
    args = parse_arguments()
    mnist.console.quieten_lightning()
    torch.set_num_threads(args.threads)
    device = mnist.choose_device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)

    net, test_set = trained_network(args, device)
    images, labels = (x.to(device) for x in test_set.tensors)
    path = args.out / "network.safetensors"
    freeze(net).save(path)
    network = FrozenNetwork.load(path, device=device)
    with torch.no_grad():
        if not torch.equal(network(images), net(images)):
            raise SystemExit("the frozen network, loaded again, does not compute what the trained one does")
    print(f"Frozen and loaded again: the same outputs to the bit, {path.stat().st_size / 1e6:.2f} MB.")

    confidences = sorted({*CONFIDENCES, args.exit_confidence})
    curve = network.accuracy_curve([(images, labels)], confidences)
    check_prediction(network, (images, labels), curve)
    print(f"\nAccuracy and operations per digit, {curve.samples} test digits, T = {args.time_steps}:")
    print(curve_table([*curve.over_time, *curve.over_confidence], args.time_steps))
    print(
        "  SynOps: additions of a weight, one for each spike and each neuron it reaches, the read-out's too; without\n"
        "  the first layer's multiplications of pixels, which are the same whatever the time."
    )
    plots.early_exit(curve, args.exit_confidence, args.out / "early_exit.png")
    results = {
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()},
        "samples": curve.samples,
        "over_time": [asdict(point) for point in curve.over_time],
        "over_confidence": [asdict(point) for point in curve.over_confidence],
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nThe picture, the network and results.json are in {args.out}/.")


if __name__ == "__main__":
    main()
