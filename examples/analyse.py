"""The tandem-learning paper's analyses of finished runs of train.py, as pictures and tables.

    python examples/analyse.py runs/mnist_cnn runs/mnist_ann --out runs/analysis
    python examples/analyse.py runs/mnist_cnn --only counts angles --limit 1000
    python examples/analyse.py --help

Runs of the same data, spiking or ANN, go together. Each analysis writes NAME.png and NAME.csv to --out. Nothing is
trained; the test set is looked at for the figures alone. Networks compute in full precision, whatever they were trained
in. docs/results.md says what each picture shows.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

try:
    import console  # sets up threads, so before torch
    import torch
    from analyses.activity import rates, synops
    from analyses.angles import angles
    from analyses.bits import bits
    from analyses.common import NotApplicable, Work
    from analyses.counts import counts
    from analyses.curves import curves
    from analyses.early_exit import early_exit
    from analyses.gradients import gradients
    from analyses.reconstructions import reconstructions
    from analyses.time_steps import time_steps
    from data import DataError
    from finished import FinishedError, load_all
except ImportError as error:
    raise SystemExit(
        f"examples/analyse.py needs matplotlib, Lightning, jsonargparse, TensorBoard and torchvision: {error}\n"
        "Install them with: pip install 'tandem_cuda[examples]'   (in the source tree: pip install -e '.[examples]')"
    ) from error

ANALYSES: dict[str, Callable[[Work], None]] = {
    "counts": counts,
    "angles": angles,
    "gradients": gradients,
    "curves": curves,
    "time_steps": time_steps,
    "synops": synops,
    "rates": rates,
    "bits": bits,
    "early_exit": early_exit,
    "reconstructions": reconstructions,
}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "runs", nargs="+", type=Path, help="folders that were --out of examples/train.py, SNNs and ANNs of one data set"
    )
    add("--out", type=Path, default=Path("runs/analysis"), help="folder for the pictures and tables")
    add("--only", nargs="+", choices=list(ANALYSES), metavar="NAME", help=f"some of: {', '.join(ANALYSES)}")
    add("--data-dir", help="folder of the data; by default where they were in training")
    add("--limit", type=_at_least(4), help="test samples to use, a random choice; by default those of the training run")
    add("--time-steps", nargs="+", type=_at_least(1), default=[1, 2, 4, 8, 16], metavar="T", help="T to test at")
    add("--bits", nargs="+", type=int, choices=range(2, 9), default=[2, 3, 4, 5, 6, 7, 8], metavar="B", help="2 to 8")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    add("--threads", type=_at_least(1), default=torch.get_num_threads(), help="CPU threads")
    return parser.parse_args(argv)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return number


def analyse(args: argparse.Namespace) -> None:
    settings = {"data_dir": args.data_dir, "device": torch.device(args.device), "threads": args.threads}
    runs = load_all(args.runs, limit=args.limit, **settings)
    work = Work(runs, args.out, sorted(set(args.time_steps)), sorted(set(args.bits)))
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only or ANALYSES:
        left_out = attempt(name, work)
        if left_out and args.only:
            raise FinishedError(f"{name}: {left_out}")
        print(f"{name}: left out, {left_out}" if left_out else f"{name}: {args.out / name}.png and .csv", flush=True)


def attempt(name: str, work: Work) -> str:
    """Make an analysis; returns why that cannot be, or nothing."""
    try:
        ANALYSES[name](work)
    except NotApplicable as error:
        return str(error)
    return ""


def main(argv: Sequence[str] | None = None) -> None:
    console.quieten_lightning()
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    try:
        analyse(arguments(argv))
    except (FinishedError, DataError) as error:
        raise SystemExit(f"examples/analyse.py: {error}") from error


if __name__ == "__main__":
    main()
