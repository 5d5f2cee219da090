"""Time finished runs of examples/train.py, frozen with int8 weights, over their ANNs at their best.

python bench/trained.py RUN [RUN ...] --data-dir FOLDER
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import finished
import torch

import ann
import tandem_cuda as tc
from report import Figure, Run, cost, fastest, table


def figures_of(trained: finished.Run, run: Run, batches: Sequence[int]) -> list[Figure]:
    """Of each batch size the time over the ANN in float32 and in PyTorch's int8.

    The ANN has the network's own weights, as trained.
    """
    integer, twin = copy.deepcopy(trained.network()), trained.module.ann.eval()
    tc.quantise(integer, 8)
    frozen = tc.freeze(integer)
    images, _ = trained.batches(limit=max(batches))[0]
    found = []
    for batch in batches:
        x = images[:batch]
        name = f"{trained.name}, frozen, int8, batch {batch}"
        sides = {"SNN": ann.inference(frozen, x), **ann.float_sides(twin, x), **ann.int8_sides(twin, x)}
        medians = run.time(name, sides)
        for start, whose in (("ANN", "the ANN's"), ("PyTorch int8", "PyTorch's int8")):
            side, seconds = fastest(medians, start)
            found.append(cost(f"{name}: time over {whose}", medians["SNN"] / seconds, note=f"fastest: {side}"))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="--out of a finished training")
    parser.add_argument("--data-dir", required=True, help="where the data are")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64], metavar="N")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=21)
    args = parser.parse_args(argv)
    run, found = Run(args.repeats, 0.05, args.threads, peers=False), []
    for folder in args.runs:
        trained = finished.load(folder, folder.name, args.data_dir, torch.device("cpu"), args.threads)
        torch.set_num_threads(args.threads)
        found += figures_of(trained, run, args.batches)
    print(table(found))


if __name__ == "__main__":
    main()
