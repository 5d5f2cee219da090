"""A small spiking network, trained, exported to NIR, imported again and compared spike by spike.

    python examples/export_nir.py            # writes runs/nir/digits.nir
    python examples/export_nir.py --help

The data are the 8 x 8 digits that come with scikit-learn: nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_cuda import IF, LIF, Decode, Encode, TandemConv2d, TandemLinear

try:
    from sklearn.datasets import load_digits

    from tandem_cuda.exchange import from_nir, to_nir
except ImportError as error:
    raise SystemExit(
        f"examples/export_nir.py needs scikit-learn and nir: {error}\n"
        "Install them with: pip install 'tandem_cuda[examples,nir]'   "
        "(in the source tree: pip install -e '.[examples,nir]')"
    ) from error


def network(time_steps: int, neuron: IF | LIF) -> nn.Sequential:
    return nn.Sequential(
        Encode(time_steps),
        TandemConv2d(1, 16, 3, padding=1, norm="batch", neuron=neuron),
        TandemConv2d(16, 32, 3, stride=2, padding=1, norm="batch", neuron=neuron),
        nn.Flatten(),
        TandemLinear(32 * 4 * 4, 64, norm="batch", neuron=neuron),
        Decode(),
        nn.Linear(64, 10),
    )


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"  epoch {epoch}/{epochs}  loss {loss.item():.3f}", flush=True)


def spike_counts(net: nn.Sequential, images: Tensor) -> list[Tensor]:
    """Of every tandem layer. With gradients on, batch norm is folded into the weights, as in the exported file."""
    counts = []
    x = images
    for module in net:
        x = module(x)
        if hasattr(module, "neuron"):
            counts.append(x.count.detach())
    return counts


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--time-steps", type=positive, default=8)
    parser.add_argument("--epochs", type=positive, default=5)
    parser.add_argument("--leak", type=float, default=1.0, help="of the neurons; 1: integrate-and-fire (default)")
    parser.add_argument("--out", type=Path, default=Path("runs/nir"))
    args = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(images))
    test, rest = order[:300], order[300:]

    net = network(args.time_steps, IF() if args.leak == 1 else LIF(leak=args.leak))
    print(f"Training on {len(rest)} digits of scikit-learn, T = {args.time_steps}:")
    train(net, images[rest], labels[rest], args.epochs)
    net.eval()

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "digits.nir"
    graph = to_nir(net, images[:1], path)
    back = from_nir(path)
    print(f"\nExported to {path} ({path.stat().st_size / 1024:.0f} KiB):")
    for name, node in graph.nodes.items():
        print(f"  {name:<18}{type(node).__name__:<9}{node.output_type['output'].tolist()}")

    print(f"\nSpike counts of {len(test)} test digits, exported and imported network:")
    for name, ours, theirs in zip(
        ("first convolution", "second convolution", "hidden layer"),
        spike_counts(net, images[test]),
        spike_counts(back, images[test]),
        strict=True,
    ):
        print(f"  {name:<20}{int(ours.sum()):>8} spikes, {int((ours != theirs).sum())} neurons differ")
    with torch.no_grad():
        accuracies = [(model(images[test]).argmax(1) == labels[test]).float().mean().item() for model in (net, back)]
    print(f"\nAccuracy: {accuracies[0]:.1%} before, {accuracies[1]:.1%} after")


if __name__ == "__main__":
    main()
