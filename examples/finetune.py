"""A converted EfficientNet-Lite learns from its ANN, on photographs without labels, until it answers alike in 4 steps.

    python examples/finetune.py         # ten minutes on the ten photographs of the example pretrained.py
    python examples/finetune.py --photographs FOLDER --held-out FOLDER
    python examples/finetune.py --help

The spiking network is the student, and a copy of the ANN the teacher. The student gets the teacher's outputs right by
the tandem rule: its spikes run forward, and gradients flow through its own ANN. Batch norm's statistics stay as they
are. Both networks see random crops of photographs; nothing is downloaded, and no labels are needed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import console
import lightning
import photographs
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, IterableDataset

from tandem_cuda import TandemNetwork


class Crops(IterableDataset[Tensor]):
    """Batches of random crops of images, for ever."""

    def __init__(self, images: Sequence[Image.Image], batch_size: int, size: int, seed: int) -> None:
        self.images, self.batch_size, self.size, self.seed = images, batch_size, size, seed

    def __iter__(self) -> Iterator[Tensor]:
        start = self.seed
        order = torch.Generator().manual_seed(self.seed)
        while True:
            chosen = torch.randperm(len(self.images), generator=order).tolist()
            batch = [self.images[i] for i in (chosen * math.ceil(self.batch_size / len(chosen)))[: self.batch_size]]
            start += 1
            yield photographs.crops(batch, self.batch_size, self.size, seed=start, least=0.3)


class Distillation(lightning.LightningModule):
    """The student's outputs approach the teacher's: cross entropy between the two, softened by a temperature."""

    def __init__(self, student: TandemNetwork, teacher: nn.Module, args: argparse.Namespace) -> None:
        super().__init__()
        self.student = student
        self.teacher = (teacher,)  # in a tuple: it is neither trained nor set to training
        self.args = args
        self.begun = time.perf_counter()
        self.recent: list[float] = []

    def on_train_start(self) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        for module in self.student.modules():
            if isinstance(module, _BatchNorm):
                module.eval()

    def training_step(self, images: Tensor, batch_index: int) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher[0](images)
        temperature = self.args.temperature
        loss = F.kl_div(
            F.log_softmax(self.student(images) / temperature, 1),
            F.log_softmax(wanted / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        self.recent.append(loss.item())
        if len(self.recent) == 20:
            minutes = (time.perf_counter() - self.begun) / 60
            print(f"  {minutes:.1f} min, step {batch_index + 1}: loss {sum(self.recent) / 20:.4f}", flush=True)
            self.recent.clear()
        return loss

    def configure_optimizers(self) -> Any:
        decayed = [p for p in self.student.parameters() if p.dim() > 1]
        others = [p for p in self.student.parameters() if p.dim() < 2]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.args.lr, weight_decay=1e-4)
        # A cosine over the time, not over steps: nobody knows how many there will be.
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate), "interval": "step"}]

    def rate(self, step: int) -> float:
        share = min(1.0, (time.perf_counter() - self.begun) / (60 * self.args.minutes))
        return min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * share))


def agreement(snn: TandemNetwork, answers: dict[str, Tensor], sets: dict[str, Tensor]) -> dict[str, float]:
    """The share of images for which both networks give one class, by where the images come from."""
    snn.eval()
    return {name: photographs.agreement(photographs.outputs(snn, x), answers[name]) for name, x in sets.items()}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Convert EfficientNet-Lite, and train the spiking network to answer as its ANN does.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--network", type=int, default=0, choices=[*photographs.SIZES], help="EfficientNet-Lite0, 1 or 2")
    add("--time-steps", type=int, default=4, metavar="T", help="time steps of the spiking network")
    add("--minutes", type=float, default=10.0, help="how long to train")
    add("--photographs", type=Path, help="a folder of photographs to train on beside the ten")
    add("--held-out", type=Path, help="a folder of photographs to compare the networks on, none of which is trained on")
    add("--calibration", type=int, default=64, metavar="N", help="crops that the network is calibrated on")
    add("--images", type=int, default=200, metavar="N", help="crops to compare the networks on, from each source")
    add("--batch-size", type=int, default=16, help="crops in a training step")
    add("--lr", type=float, default=1e-4, help="highest learning rate")
    add("--temperature", type=float, default=1.0, help="of the softmax in the loss")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--seed", type=int, default=0, help="of the crops")
    add("--out", type=Path, default=Path("runs/finetune"), help="folder for the trained network and results.json")
    args = parser.parse_args()
    for name in ("calibration", "images", "threads", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"argument --{name.replace('_', '-')}: must be at least 1, got {getattr(args, name)}")
    for name in ("minutes", "lr", "temperature"):
        if not getattr(args, name) > 0:
            parser.error(f"argument --{name}: must be positive, got {getattr(args, name)}")
    if not 1 <= args.time_steps <= 8:
        parser.error(f"argument --time-steps: must be from 1 to 8, got {args.time_steps}")
    return args


def main() -> None:
    args = parse_arguments()
    console.quieten_lightning()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    size, ten = photographs.SIZES[args.network], photographs.photographs()
    teacher = photographs.efficientnet_lite(args.network)
    crops = photographs.crops(ten, args.calibration + args.images, size, seed=1)
    sets = {"other crops of the ten photographs": crops[args.calibration :]}
    if args.held_out is not None:
        others = photographs.opened(args.held_out, args.images)
        sets["photographs held out"] = photographs.crops(others, args.images, size, seed=2)
    answers = {name: photographs.outputs(teacher, images) for name, images in sets.items()}
    trained_on = ten + ([] if args.photographs is None else photographs.opened(args.photographs, 1000))

    snn = photographs.converted(teacher, args.time_steps, crops[: args.calibration])
    before = agreement(snn, answers, sets)
    print(f"Training EfficientNet-Lite{args.network}, T = {args.time_steps}, on {len(trained_on)} photographs:")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_time={"minutes": int(args.minutes), "seconds": round(args.minutes % 1 * 60)},
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    snn.train()
    batches = DataLoader(Crops(trained_on, args.batch_size, size, seed=1000 * (args.seed + 1)), batch_size=None)
    trainer.fit(Distillation(snn, teacher, args), batches)
    after = agreement(snn, answers, sets)
    for name, images in sets.items():
        print(f"{name}, {len(images)}: the ANN's class for {before[name]:.1%} before, {after[name]:.1%} after training")
    torch.save(snn.state_dict(), args.out / "network.pt")
    results = {"before": before, "after": after, "steps": trainer.global_step}
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    print(f"The network's state and the figures are in {args.out}.")


if __name__ == "__main__":
    main()
