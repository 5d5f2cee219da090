"""Train the networks of docs/results.md and their ANN twins, test them, and write tables and pictures into that page.

    python examples/results.py --data-dir FOLDER                    # all that FOLDER has data for
    python examples/results.py --data-dir FOLDER --only mnist nmnist
    python examples/results.py --data-dir FOLDER --only cifarnet    # on demand: another 20 minutes on two cores
    python examples/results.py --quick --data-dir FOLDER            # a few samples, to see that it works

Runs that are complete stay as they are, interrupted ones go on from their latest epoch: start it again at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "results.md"
BEGIN, END = "<!-- begin: written by examples/results.py -->", "<!-- end -->"
QUICK = ("--data.limit", "400", "--trainer.max_epochs", "1")
FOLDER = ("--data.source", "folder")
ANALYSED = 2000  # test samples that pictures are drawn from
# The C library would give the memory of large tensors back at once, and the system would clear new pages for the next
# step's: a third of the time of an ANN like the MNIST one, less of an SNN's. Other C libraries ignore this.
KEEP_MEMORY = "glibc.malloc.mmap_threshold=2147483648:glibc.malloc.trim_threshold=2147483648"
KINDS = {"snn": "true", "ann": "false"}  # --model.spiking


class ResultsError(Exception):
    """A message of one or two lines."""


@dataclass(frozen=True)
class Experiment:
    """A configuration of train.py, run with some seeds, as SNN and as ANN."""

    name: str
    title: str
    config: str
    needs: str
    """What must be there below --data-dir."""
    below: str = "."
    """--data.dir below --data-dir."""
    options: tuple[str, ...] = ()
    snn_options: tuple[str, ...] = ()
    ann_options: tuple[str, ...] = ()
    """Of runs of one kind alone."""
    quick_options: tuple[str, ...] = QUICK
    seeds: tuple[int, ...] = (0, 1, 2)
    remark: str = ""
    pictures: tuple[str, ...] = ("time_steps",)
    time_steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Of the pictures."""
    on_demand: bool = False
    """Whether it takes so long that it is run with --only alone."""


# Of CIFAR-10. Low thresholds where a spike costs few additions; the regulariser holds their sum below 0.6 of the MACs.
THRESHOLDS = "{conv1: 0.25, conv2: 0.25, conv3: 0.4, conv4: 0.4, conv5: 0.25, hidden: 0.25}"
FEW_SPIKES = '[{"class_path": "recipes.SynOpsRegulariser", "init_args": {"weight": 100, "target": 0.58}}]'
EXPERIMENTS = (
    Experiment(
        "mnist",
        "MNIST",
        "mnist",
        "MNIST/raw/train-images-idx3-ubyte",
        pictures=("counts", "angles", "gradients", "curves", "time_steps", "synops", "rates", "bits"),
    ),
    Experiment("fashion_mnist", "Fashion-MNIST", "fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
    Experiment(
        "nmnist",
        "N-MNIST",
        "nmnist",
        "NMNIST/Train",
        remark="N-MNIST has 60,000 recordings to train and 10,000 to test. Figures from a part of it "
        "are not comparable with the paper's.",
        pictures=("time_steps", "rates"),
    ),
    Experiment(
        "cifar10",
        "CIFAR-10, small network",
        "cifar10",
        "cifar10/train",
        below="cifar10",
        options=(*FOLDER, "--model.ann", "tandem_cuda.models.small_cifarnet", "--trainer.max_epochs", "20"),
        snn_options=("--model.threshold", THRESHOLDS, "--model.clip", "true", f"--trainer.callbacks={FEW_SPIKES}"),
        seeds=(0,),
        remark="This network has a sixteenth of CifarNet's channels and is trained for 20 epochs; not comparable with "
        "the paper's figures.",
        pictures=("counts", "curves", "time_steps"),
    ),
    Experiment(
        "cifarnet",
        "CIFAR-10, CifarNet as in the paper",
        "cifar10",
        "cifar10/train",
        below="cifar10",
        options=(*FOLDER, "--trainer.max_epochs", "1"),
        seeds=(0,),
        remark="One epoch, to show its cost. The network is far from trained.",
        pictures=(),
        on_demand=True,
    ),
    Experiment(
        "mnist_autoencoder",
        "Autoencoder, MNIST",
        "mnist_autoencoder",
        "MNIST/raw/train-images-idx3-ubyte",
        ann_options=("--trainer.callbacks", "null"),  # no conversion: the ANN for all of the epochs
        quick_options=(
            *("--data.limit", "400", "--trainer.max_epochs", "2"),
            '--trainer.callbacks=[{"class_path": "recipes.AnnFirst", "init_args": {"epochs": 1}}]',
        ),
        pictures=("reconstructions", "curves"),
        time_steps=(2, 4, 8, 16, 32),
    ),
)


def as_published(experiment: Experiment) -> Experiment:
    """The same with CIFAR-10 itself in place of a folder of its images."""
    if experiment.options[: len(FOLDER)] != FOLDER:
        return experiment
    options = experiment.options[len(FOLDER) :]
    return replace(experiment, needs="cifar-10-batches-py/data_batch_1", below=".", options=options)


@dataclass(frozen=True)
class Training:
    """One run of train.py: a network of an experiment with a seed."""

    experiment: Experiment
    kind: str
    seed: int
    out: Path
    quick: bool

    @property
    def folder(self) -> Path:
        return self.out / self.experiment.name / f"{self.kind}_seed{self.seed}"

    @property
    def settings(self) -> list[str]:
        """The options that decide the result."""
        options = [*self.experiment.options, *(self.experiment.quick_options if self.quick else ())]
        options += self.experiment.snn_options if self.kind == "snn" else self.experiment.ann_options
        return [*options, "--model.spiking", KINDS[self.kind], "--seed_everything", str(self.seed)]

    def started(self) -> dict[str, Any]:
        """What was noted when the run began."""
        path = self.folder / "started.json"
        record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"settings": None}
        if record["settings"] != self.settings:
            raise ResultsError(
                f"{self.folder} holds a run of other settings: {record['settings']}.\n"
                "Remove that folder, or choose another --out."
            )
        return record

    def results(self) -> dict[str, Any] | None:
        """What the run wrote in the end, with what it ran on; None where it is not complete."""
        path = self.folder / "results.json"
        return {**json.loads(path.read_text()), **self.started()} if path.is_file() else None

    def train(self, data_dir: Path, threads: int) -> bool:
        """Whether train.py came to its end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        goes_on = (self.folder / "checkpoints" / "last.ckpt").exists()
        if goes_on:
            self.started()
        else:
            started = {
                "settings": self.settings,
                "cpu": processor(),
                "lossy": is_lossy(data_dir / self.experiment.needs),
            }
            write(self.folder / "started.json", json.dumps(started) + "\n")
        command = [sys.executable, str(HERE / "train.py"), "--config", f"{HERE}/configs/{self.experiment.config}.yaml"]
        command += ["--data.dir", str(data_dir / self.experiment.below), "--out", str(self.folder)]
        command += [*self.settings, "--threads", str(threads), *(["--ckpt_path", "last"] if goes_on else [])]
        say(f"{'going on with' if goes_on else 'training'} {self.folder}:\n  {shlex.join(command)}")
        environment = {"GLIBC_TUNABLES": KEEP_MEMORY, **os.environ}
        return subprocess.run(command, check=False, env=environment).returncode == 0


def is_lossy(path: Path) -> bool:
    """Whether data are JPEG files."""
    return path.is_dir() and any(path.glob("*/*.jp*g"))


def say(text: str) -> None:
    print(text, flush=True)


def processor() -> str:
    """Its name, as far as the system tells."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def write(path: Path, text: str) -> None:
    """As a whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def trainings(experiment: Experiment, out: Path, quick: bool) -> Iterator[Training]:
    for seed in experiment.seeds[:1] if quick else experiment.seeds:
        for kind in KINDS:
            yield Training(experiment, kind, seed, out, quick)


def analyse(experiment: Experiment, args: argparse.Namespace) -> bool:
    """Pictures of the first seed's runs, copied beside the page; False where analyse.py fails."""
    pair = [run for run in trainings(experiment, args.out, args.quick) if run.seed == experiment.seeds[0]]
    unknown = any(run.results() is None for run in pair) or not (args.data_dir / experiment.needs).exists()
    if unknown or not experiment.pictures:
        return True
    folder = args.out / experiment.name / "analysis"
    command = [sys.executable, str(HERE / "analyse.py"), *(str(run.folder) for run in pair), "--out", str(folder)]
    command += ["--limit", "100" if args.quick else str(ANALYSED), "--only", *experiment.pictures]
    command += ["--time-steps", *map(str, experiment.time_steps)]
    stamp = folder / "complete.txt"
    newest = max((run.folder / "results.json").stat().st_mtime for run in pair)
    if not (stamp.is_file() and stamp.stat().st_mtime > newest and stamp.read_text() == shlex.join(command)):
        say(f"analysing {experiment.name}:\n  {shlex.join(command)}")
        where = ["--data-dir", str(args.data_dir / experiment.below), "--threads", str(args.threads)]
        if subprocess.run([*command, *where], check=False).returncode:
            return False
        write(stamp, shlex.join(command))
    pictures = args.page.parent / "results"
    pictures.mkdir(parents=True, exist_ok=True)
    for name in experiment.pictures:
        shutil.copyfile(folder / f"{name}.png", pictures / f"{experiment.name}_{name}.png")
    return True


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------

Cell = Callable[[dict[str, Any]], float | None]


def mean_and_spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Mean and sample standard deviation; a single value as it is."""
    mean = form(statistics.fmean(values))
    return mean if len(values) < 2 else f"{mean} ± {form(statistics.stdev(values))}"


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def columns(results: Sequence[dict[str, Any]]) -> dict[str, tuple[Cell, Callable[[float], str]]]:
    """By header: what to take from a run, and how to write it."""
    classifies = "accuracy" in results[0]["test"]
    what = "accuracy" if classifies else "loss"
    form = percent if classifies else lambda value: f"{value:.5f}"
    steps = sorted({int(t) for r in results for t in r["test_at_time_steps"]})

    def at(t: int) -> Cell:
        return lambda r: r["test_at_time_steps"].get(str(t), {}).get(what)

    return {
        "test accuracy" if classifies else "test error (MSE)": (lambda r: r["test"][what], form),
        **{f"T = {t}": (at(t), form) for t in steps},
        "firing rate": (lambda r: r["test"].get("firing_rate"), percent),
        "SynOps": (lambda r: r["test"].get("synops_per_sample"), whole),
        "MACs": (lambda r: r["test"].get("snn_macs_per_sample", None), whole),
        "MACs of its ANN": (lambda r: r["test"].get("ann_macs_per_sample"), whole),
        "training, s": (lambda r: r["training_seconds"], whole),
        "peak memory, MiB": (lambda r: r["peak_memory_mib"], whole),
    }


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def section(experiment: Experiment, args: argparse.Namespace) -> list[str]:
    """The part of the page on one experiment."""
    lines = [f"### {experiment.title}", ""]
    runs = {run: run.results() for run in trainings(experiment, args.out, args.quick)}
    found = [results for results in runs.values() if results is not None]
    if not found:
        reason = "" if (args.data_dir / experiment.needs).exists() else f": data not available (no {experiment.needs})"
        return [*lines, f"Not measured{reason}.", ""]
    first = found[0]
    samples, steps = first["samples"], first["time_steps"]
    lines += [
        f"{samples['train']:,} samples for training, {samples['val']:,} for validation, "
        f"{first['test']['samples']:,} for testing; `{first['network'].rpartition('.')[2]}`, "
        f"{first['parameters']:,} parameters, trained with T = {steps}.",
    ]
    if args.quick:
        lines.append("A quick run: so few samples and epochs only show that the program works.")
    if first["lossy"]:
        lines.append("The images are JPEG files: lossy copies, so the figures do not apply to the published data set.")
    if experiment.remark:
        lines.append(experiment.remark)
    table = columns(found)
    rows = [["network", "seed", *table]]
    for kind in KINDS:
        of = {run.seed: results for run, results in runs.items() if run.kind == kind}
        name = f"SNN, T = {steps}" if kind == "snn" else "ANN"
        for seed, results in of.items():
            if results is None:
                rows.append([name, str(seed), "not measured", *[""] * (len(table) - 1)])
                continue
            values = [(cell(results), form) for cell, form in table.values()]
            rows.append([name, str(seed), *("" if value is None else form(value) for value, form in values)])
        known = [results for results in of.values() if results is not None]
        if len(known) > 1:
            cells = []
            for cell, form in table.values():
                numbers = [value for value in map(cell, known) if value is not None]
                cells.append(mean_and_spread(numbers, form) if numbers else "")
            rows.append([f"{name}, mean ± deviation", f"{len(known)} seeds", *cells])
    lines += ["", *markdown(rows), ""]
    threads = {f"{r['device'] if r['device'] != 'cpu' else r['cpu']}, {r['threads']} threads" for r in found}
    versions = {f"torch {r['versions']['torch']}, tandem_cuda {r['versions']['tandem_cuda']}" for r in found}
    kernels = {
        f"{r['build']['cpu_isa']} kernels" for r in found if r["device"] == "cpu" or not r["build"]["cuda_usable"]
    }
    lines += [f"{'; '.join(sorted(threads))}; {'; '.join(sorted(versions | kernels))}. Commands:", "", "```bash"]
    command = ["python", "examples/train.py", "--config", f"examples/configs/{experiment.config}.yaml"]
    seeds = [str(run.seed) for run in runs if run.kind == "snn"]
    seeds = seeds[0] if len(seeds) == 1 else f"{{{','.join(seeds)}}}"
    settings = [*experiment.options, *(experiment.quick_options if args.quick else ())]
    lines += [
        f"export GLIBC_TUNABLES={KEEP_MEMORY}",
        f"{shlex.join([*command, *settings, *experiment.snn_options])} --model.spiking true --seed_everything {seeds} "
        "--data.dir FOLDER",
        f"{shlex.join([*command, *settings, *experiment.ann_options])} --model.spiking false --seed_everything {seeds} "
        "--data.dir FOLDER",
        *("```", ""),
    ]
    pictures = [
        name for name in experiment.pictures if (args.page.parent / "results" / picture(experiment, name)).exists()
    ]
    for name in pictures:
        lines += [f"![{experiment.title}: {name.replace('_', ' ')}](results/{picture(experiment, name)})", ""]
    return lines


def picture(experiment: Experiment, name: str) -> str:
    return f"{experiment.name}_{name}.png"


def write_page(args: argparse.Namespace) -> None:
    text = PAGE.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ResultsError(f"{PAGE} has no lines '{BEGIN}' and '{END}' to write between.")
    lines = [line for experiment in args.experiments for line in section(experiment, args)]
    args.page.parent.mkdir(parents=True, exist_ok=True)
    write(args.page, "\n".join([before + BEGIN, "", *lines, END + after]))
    say(f"tables and pictures: {args.page}")


# ---------------------------------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [experiment.name for experiment in EXPERIMENTS]
    by_default = [experiment.name for experiment in EXPERIMENTS if not experiment.on_demand]
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="with MNIST/, FashionMNIST/, NMNIST/, cifar10/ (default: data)",
    )
    add("--out", type=Path, help="folder of the runs (default: runs/results; with --quick runs/results_quick)")
    add(
        "--only",
        nargs="+",
        choices=names,
        default=by_default,
        metavar="NAME",
        help=f"train only some of: {', '.join(names)} (default: {', '.join(by_default)})",
    )
    add(
        "--cifar10",
        choices=("folder", "CIFAR10"),
        default="folder",
        help="cifar10/train/CLASS/*, or the data set itself",
    )
    add("--quick", action="store_true", help="a few hundred samples, one epoch, one seed; the page goes to --out")
    add("--threads", type=int, default=2, help="CPU threads (default: 2)")
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error(f"--threads must be at least 1, got {args.threads}")
    args.experiments = [as_published(e) if args.cifar10 == "CIFAR10" else e for e in EXPERIMENTS]
    args.out = args.out or Path("runs/results_quick" if args.quick else "runs/results")
    args.page = args.out / "results.md" if args.quick else PAGE
    return args


def run(args: argparse.Namespace) -> None:
    failed = []
    for experiment in args.experiments:
        if experiment.name not in args.only:
            continue
        for training in trainings(experiment, args.out, args.quick):
            if training.results() is not None:
                say(f"{training.folder}: complete")
            elif not (args.data_dir / experiment.needs).exists():
                say(f"{training.folder}: left out, no {args.data_dir / experiment.needs}")
            elif not training.train(args.data_dir, args.threads):
                failed.append(str(training.folder))
        if not analyse(experiment, args):
            failed.append(f"{args.out / experiment.name} (pictures)")
    write_page(args)
    if failed:
        raise ResultsError(f"failed, as said above: {', '.join(failed)}.\nThe same command tries again.")


def main(argv: Sequence[str] | None = None) -> None:
    try:
        run(arguments(argv))
    except ResultsError as error:
        raise SystemExit(f"examples/results.py: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("examples/results.py: interrupted.\nThe same command goes on.") from None


if __name__ == "__main__":
    main()
