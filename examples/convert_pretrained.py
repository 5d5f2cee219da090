"""A trained AlexNet becomes a spiking network: converted, calibrated, then trained on by the tandem rule.

    python examples/convert_pretrained.py --data-dir FOLDER
    python examples/convert_pretrained.py --help

FOLDER has the folders train and test, and these one folder of images per class, as torchvision's ImageFolder reads
them; images are resized to 32 x 32. The ANN is torchvision's AlexNet with a stem for such images. It is trained briefly
and converted with thresholds from its activations; then the spiking network is trained further. The two share all
parameters. The test images are looked at for the figures alone, never to choose anything.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import time
import warnings
from pathlib import Path

# See console.py: threads that wait shall soon fall asleep. Read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from tandem_cuda import TandemNetwork, convert, synops

try:
    import lightning
    from torchvision.datasets import ImageFolder
    from torchvision.models import alexnet
    from torchvision.transforms import v2
except ImportError as error:
    raise SystemExit(
        f"examples/convert_pretrained.py needs Lightning and torchvision: {error}\n"
        "Install them with: pip install 'tandem_cuda[examples]'   (in the source tree: pip install -e '.[examples]')"
    ) from error


def load(folder: Path, limit: int, seed: int) -> TensorDataset:
    """Up to `limit` images of all classes, [N, 3, 32, 32] with mean 0 and deviation 1 or so, and labels [N]."""
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((32, 32), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )
    try:
        images = ImageFolder(folder, transform)
    except FileNotFoundError as error:
        raise SystemExit(f"--data-dir: no images in class folders under {folder}: {error}") from error
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:limit].tolist()
    pixels, labels = zip(*Subset(images, order), strict=True)
    return TensorDataset(torch.stack(pixels), torch.tensor(labels))


def network(classes: int) -> nn.Module:
    """torchvision's AlexNet, its first convolution for 32 x 32 in place of 224 x 224."""
    net = alexnet(num_classes=classes)
    net.features[0] = nn.Conv2d(3, 64, 3, stride=2, padding=1)
    for module in net.modules():  # as it comes, currents shrink from layer to layer
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return net


class Classifier(lightning.LightningModule):
    """Cross entropy and AdamW; images are mirrored and shifted. Nothing here knows whether the network spikes."""

    def __init__(self, net: nn.Module, learning_rate: float, seed: int) -> None:
        super().__init__()
        self.net = net
        self.learning_rate = learning_rate
        self.generator = torch.Generator().manual_seed(seed)
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        mirrored = torch.rand(len(images), generator=self.generator) < 0.5
        images = torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
        top, left = torch.randint(0, 5, (2,), generator=self.generator).tolist()
        images = F.pad(images, (2, 2, 2, 2))[..., top : top + 32, left : left + 32]
        loss = F.cross_entropy(self.net(images), labels)
        self.losses.append(loss.item())
        return loss

    def on_train_epoch_start(self) -> None:
        self.start, self.first = time.perf_counter(), len(self.losses)

    def on_train_epoch_end(self) -> None:
        losses = self.losses[self.first :]
        print(
            f"  epoch {self.trainer.current_epoch + 1}/{self.trainer.max_epochs}  loss {sum(losses) / len(losses):.4f}"
            f"  {time.perf_counter() - self.start:.1f} s",
            flush=True,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=self.learning_rate)


def train(net: nn.Module, images: TensorDataset, epochs: int, learning_rate: float, args: argparse.Namespace) -> None:
    """Train in place, and leave it in eval mode."""
    net.train()
    order = torch.Generator().manual_seed(args.seed)
    loader = DataLoader(images, min(args.batch_size, len(images)), shuffle=True, drop_last=True, generator=order)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(net, learning_rate, args.seed), loader)
    net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, images: TensorDataset) -> float:
    correct = sum(int((net(x).argmax(1) == y).sum()) for x, y in DataLoader(images, 100))
    return correct / len(images)


def activity(net: TandemNetwork, images: Tensor) -> tuple[str, float]:
    """A line a layer, and the SNN's operations per MAC of the ANN."""
    lines = [f"  {'layer':18}{'firing rate':>12}{'SynOps':>14}{'ANN MACs':>14}"]
    operations = macs = 0.0
    for row in synops(net, images):
        rate = "" if row.firing_rate is None else f"{row.firing_rate:.1%}"
        done = row.macs if row.analogue else row.synops  # the first layer multiplies real pixels
        lines.append(f"  {row.name:18}{rate:>12}{done:>14,.0f}{row.macs:>14,}")
        operations, macs = operations + done, macs + row.macs
    lines.append(f"  {'total':18}{'':>12}{operations:>14,.0f}{macs:>14,.0f}")
    return "\n".join(lines), operations / macs


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train AlexNet on small images, convert it to a spiking network, train that by the tandem rule.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="folder with train/CLASS/*.jpg and test/CLASS/*.jpg (or .png)")
    add("--time-steps", type=int, default=8, metavar="T", help="time steps of the spiking network")
    add(
        "--percentile",
        type=float,
        default=99.0,
        help="of each layer's activations: where its neurons fire all the time",
    )
    add("--epochs", type=int, default=8, help="passes over the training images for the ANN")
    add("--tandem-epochs", type=int, default=2, help="passes for the spiking network, after conversion")
    add("--batch-size", type=int, default=64, help="images per training step")
    add("--lr", type=float, default=3e-4, help="learning rate of the ANN; a third of it for the spiking network")
    add("--limit", type=int, default=4000, help="training images; a quarter as many test images")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--seed", type=int, default=0, help="of the choice of images, the weights and the batches")
    add("--out", type=Path, default=Path("runs/convert_pretrained"), help="folder for results.json")
    args = parser.parse_args()
    for name, least in {
        "time_steps": 1,
        "epochs": 1,
        "tandem_epochs": 0,
        "batch_size": 2,
        "limit": 8,
        "threads": 1,
    }.items():
        if getattr(args, name) < least:
            parser.error(f"argument --{name.replace('_', '-')}: must be at least {least}, got {getattr(args, name)}")
    return args


def main() -> None:
    args = parse_arguments()
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    train_set = load(args.data_dir / "train", args.limit, args.seed)
    test_set = load(args.data_dir / "test", max(args.limit // 4, 1), args.seed)
    classes = int(max(x.tensors[1].max() for x in (train_set, test_set))) + 1
    print(f"Data: {len(train_set):,} training and {len(test_set):,} test images of {args.data_dir}, {classes} classes.")

    print("Training the ANN:")
    ann = network(classes)
    train(ann, train_set, args.epochs, args.lr, args)
    results = {"ANN": accuracy(ann, test_set)}

    # A batch of training images is enough for percentiles. The plain conversion is for comparison.
    batch = train_set.tensors[0][:256]
    plain = convert(copy.deepcopy(ann), args.time_steps, example=batch)
    results["SNN, converted without calibration"] = accuracy(plain, test_set)
    snn = convert(ann, args.time_steps, calibrate=batch, percentile=args.percentile)
    results["SNN, converted with calibration"] = accuracy(snn, test_set)
    if args.tandem_epochs:
        print("Training the SNN, and with it the ANN, whose parameters it shares:")
        train(snn, train_set, args.tandem_epochs, args.lr / 3, args)
        results["SNN, after tandem training"] = accuracy(snn, test_set)
        results["ANN, after the SNN's training"] = accuracy(snn.ann(), test_set)

    print(f"\nAccuracy on {len(test_set):,} test images, T = {args.time_steps}:")
    for name, value in results.items():
        print(f"  {name:36}{value:7.1%}")
    table, ratio = activity(snn, test_set.tensors[0][:100])
    print(f"\nOperations per image:\n{table}\n  SNN / ANN: {ratio:.2f}")
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(args).items()}
    report = {"settings": settings, "accuracy": results, "operations_per_mac": ratio}
    (args.out / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nresults.json is in {args.out}/.")


if __name__ == "__main__":
    main()
