"""Train the networks of docs/results.md and their ANN twins, test them, and write tables and pictures into that page.

    python examples/results.py --data-dir FOLDER                    # all that FOLDER has data for
    python examples/results.py --data-dir FOLDER --only mnist nmnist
    python examples/results.py --data-dir FOLDER --only cifar10     # on demand: two hours on two cores
    python examples/results.py --data-dir FOLDER --missing          # not what the page has figures of already
    python examples/results.py --quick --data-dir FOLDER            # a few samples, to see that it works

Runs that are complete stay as they are, interrupted ones go on from their latest epoch: start it again at any time.
Two run at a time, on a thread each: networks this small train faster so than one after the other on two threads.
What the page says of a run is kept in docs/results/runs, so that it stands when another --out has other runs.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import COMPARED_STEPS, EXPERIMENTS, Experiment, Network, as_published

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "results.md"
BEGIN, END = "<!-- begin: written by examples/results.py -->", "<!-- end -->"
ANALYSED = 2000  # test samples that pictures are drawn from
OF_ALL = ("early_exit",)
# The C library would give the memory of large tensors back at once, and the system would clear new pages for the next
# step's: a third of the time of an ANN like the MNIST one, less of an SNN's. Other C libraries ignore this.
KEEP_MEMORY = "glibc.malloc.mmap_threshold=2147483648:glibc.malloc.trim_threshold=2147483648"


RECORDED = (
    *("test", "test_at_time_steps", "network", "parameters", "spiking", "samples", "epochs", "fastest_epoch_seconds"),
    *("peak_memory_mib", "device", "threads", "versions", "build", "cpu", "lossy", "settings"),
)
"""Of a run's results, what the page is made of."""


class ResultsError(Exception):
    """A message of one or two lines."""


@dataclass(frozen=True)
class Training:
    """One run of train.py: a network of an experiment with a seed."""

    experiment: Experiment
    network: Network
    seed: int
    out: Path
    quick: bool

    @property
    def folder(self) -> Path:
        return self.out / self.experiment.name / f"{self.network.name}_seed{self.seed}"

    @property
    def settings(self) -> list[str]:
        """The options that decide the result."""
        options = [*self.experiment.options, *self.network.options]
        if self.quick:
            options += [
                option for option in self.experiment.quick_options if self.network.spiking or "recipes." not in option
            ]
        return [*options, "--seed_everything", str(self.seed)]

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

    @property
    def goes_on(self) -> bool:
        """Whether it was interrupted after an epoch or more."""
        return (self.folder / "checkpoints" / "last.ckpt").exists()

    def results(self) -> dict[str, Any] | None:
        """What the run wrote in the end, with what it ran on; None where it is not complete."""
        path = self.folder / "results.json"
        return {**json.loads(path.read_text()), **self.started()} if path.is_file() else None

    def recorded(self, folder: Path) -> dict[str, Any] | None:
        """What the page says of the run: of this one, or of an earlier one with the same settings; else None."""
        path = folder / f"{self.experiment.name}_{self.folder.name}.json"
        results = self.results()
        if results is None:
            record: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
            return record if record is not None and record["settings"] == self.settings else None
        results = {name: value for name, value in results.items() if name in RECORDED}
        results["test"] = {name: value for name, value in results["test"].items() if name != "layers"}
        folder.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(results, indent=1) + "\n")
        return results

    def train(self, data_dir: Path, threads: int) -> bool:
        """Whether train.py came to its end. What it prints goes to output.txt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.goes_on:
            started = {
                "settings": self.settings,
                "cpu": processor(),
                "lossy": is_lossy(data_dir / self.experiment.needs),
            }
            write(self.folder / "started.json", json.dumps(started) + "\n")
        command = [sys.executable, str(HERE / "train.py"), "--config", f"{HERE}/configs/{self.experiment.config}.yaml"]
        command += ["--data.dir", str(data_dir / self.experiment.below), "--out", str(self.folder)]
        steps = ",".join(map(str, filter(self.network.takes, self.experiment.time_steps)))
        command += [
            *self.settings,
            "--test_time_steps",
            f"[{steps}]",
            "--threads",
            str(threads),
            *(["--ckpt_path", "last"] if self.goes_on else []),
        ]
        say(f"{'going on with' if self.goes_on else 'training'} {self.folder}:\n  {shlex.join(command)}")
        environment = {"GLIBC_TUNABLES": KEEP_MEMORY, **os.environ}
        path = self.folder / "output.txt"
        with path.open("a") as output:
            status = subprocess.run(command, check=False, env=environment, stdout=output, stderr=output).returncode
        if status:
            last = "\n  ".join(path.read_text().splitlines()[-20:])
            say(f"{self.folder}: failed with exit status {status}; the end of {path}:\n  {last}")
        else:
            say(f"{self.folder}: trained and tested")
        return status == 0


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
        for network in experiment.networks:
            yield Training(experiment, network, seed, out, quick)


def analyse(experiment: Experiment, args: argparse.Namespace) -> bool:
    """Pictures of runs of the first seed, copied beside the page; False where analyse.py fails."""
    first = [run for run in trainings(experiment, args.out, args.quick) if run.seed == experiment.seeds[0]]
    of_all = [name for name in experiment.pictures if name in OF_ALL]
    return all(
        [
            draw(experiment, [first[0], first[-1]], [n for n in experiment.pictures if n not in OF_ALL], args),
            draw(experiment, [run for run in first if run.network.spiking], of_all, args),
        ]
    )


def draw(experiment: Experiment, runs: Sequence[Training], names: Sequence[str], args: argparse.Namespace) -> bool:
    """Some pictures of some runs, once these are complete."""
    unknown = any(run.results() is None for run in runs) or not (args.data_dir / experiment.needs).exists()
    if unknown or not names:
        return True
    folder = args.out / experiment.name / "analysis"
    command = [sys.executable, str(HERE / "analyse.py"), *(str(run.folder) for run in runs), "--out", str(folder)]
    command += ["--limit", "100" if args.quick else str(ANALYSED), "--only", *names]
    steps = [t for t in experiment.time_steps if all(run.network.takes(t) for run in runs)]
    command += ["--time-steps", *map(str, steps)]
    stamp = folder / f"complete_{names[0]}.txt"
    newest = max((run.folder / "results.json").stat().st_mtime for run in runs)
    if not (stamp.is_file() and stamp.stat().st_mtime > newest and stamp.read_text() == shlex.join(command)):
        say(f"analysing {experiment.name}:\n  {shlex.join(command)}")
        where = ["--data-dir", str(args.data_dir / experiment.below), "--threads", str(args.threads)]
        if subprocess.run([*command, *where], check=False).returncode:
            return False
        write(stamp, shlex.join(command))
    pictures = args.page.parent / "results"
    pictures.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(folder / f"{name}.png", pictures / f"{experiment.name}_{name}.png")
    return True


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------

Cell = Callable[[dict[str, Any]], float | None]
Summary = Callable[[Sequence[float]], str]


def mean_and_spread(form: Callable[[float], str]) -> Summary:
    """Mean and sample standard deviation; a single value as it is."""

    def summary(values: Sequence[float]) -> str:
        mean = form(statistics.fmean(values))
        return mean if len(values) < 2 else f"{mean} ± {form(statistics.stdev(values))}"

    return summary


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def columns(results: Sequence[dict[str, Any]], anns: Sequence[dict[str, Any]]) -> dict[str, tuple[Cell, Summary]]:
    """By header: what to take from a run, and how to write the values of all seeds."""
    classifies = "accuracy" in results[0]["test"]
    what = "accuracy" if classifies else "loss"
    quality = mean_and_spread(percent if classifies else lambda value: f"{value:.5f}")
    steps = sorted({int(t) for r in results for t in r["test_at_time_steps"]})

    def at(t: int) -> Cell:
        return lambda r: r["test_at_time_steps"].get(str(t), {}).get(what)

    mean = statistics.fmean(r["test"][what] for r in anns) if anns else None

    def against(r: dict[str, Any]) -> float | None:
        """Points that a network is behind its ANN, or its error over the ANN's."""
        if mean is None or any(r is ann for ann in anns):
            return None
        return 100 * (mean - r["test"][what]) if classifies else r["test"][what] / mean

    return {
        "test accuracy" if classifies else "test error (MSE)": (lambda r: r["test"][what], quality),
        "points behind the ANN" if classifies else "over the ANN's": (
            against,
            mean_and_spread(lambda value: f"{value:.2f}"),
        ),
        **{f"T = {t}": (at(t), quality) for t in steps},
        "firing rate": (lambda r: r["test"].get("firing_rate"), mean_and_spread(percent)),
        "active neurons": (lambda r: r["test"].get("active"), mean_and_spread(percent)),
        "SynOps": (lambda r: r["test"].get("synops_per_sample"), mean_and_spread(whole)),
        "MACs": (lambda r: r["test"].get("snn_macs_per_sample", None), mean_and_spread(whole)),
        "MACs of its ANN": (lambda r: r["test"].get("ann_macs_per_sample"), mean_and_spread(whole)),
        # Of all seeds: the one that other programs disturbed least.
        "epoch, s": (lambda r: r.get("fastest_epoch_seconds"), lambda values: f"{min(values):.1f}"),
        "peak memory, MiB": (lambda r: r["peak_memory_mib"], mean_and_spread(whole)),
    }


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def section(experiment: Experiment, args: argparse.Namespace) -> list[str]:
    """The part of the page on one experiment."""
    lines = [f"### {experiment.title}", ""]
    runs = {run: run.recorded(args.records) for run in trainings(experiment, args.out, args.quick)}
    found = [results for results in runs.values() if results is not None]
    if not found:
        reason = "" if (args.data_dir / experiment.needs).exists() else f": data not available (no {experiment.needs})"
        return [*lines, f"Not measured{reason}.", ""]
    first = found[0]
    samples = first["samples"]
    lines += [
        f"{samples['train']:,} samples for training, {samples['val']:,} for validation, "
        f"{first['test']['samples']:,} for testing; `{first['network'].rpartition('.')[2]}`, "
        f"{first['parameters']:,} parameters.",
    ]
    if args.quick:
        lines.append("A quick run: so few samples and epochs only show that the program works.")
    if first["lossy"]:
        lines.append("The images are JPEG files: lossy copies, so the figures do not apply to the published data set.")
    if experiment.remark:
        lines.append(experiment.remark)
    anns = [results for run, results in runs.items() if results is not None and not run.network.spiking]
    table = columns(found, anns)
    rows = [["network", "seeds", *table]]
    for network in experiment.networks:
        known = [results for run, results in runs.items() if run.network == network and results is not None]
        cells = []
        for cell, summary in table.values():
            numbers = [value for value in map(cell, known) if value is not None]
            cells.append(summary(numbers) if numbers else "")
        rows.append([network.label, str(len(known)), *cells] if known else [network.label, "not measured", *cells])
    lines += ["", *markdown(rows), ""]
    threads = {f"{r['device'] if r['device'] != 'cpu' else r['cpu']}, threads: {r['threads']}" for r in found}
    versions = {f"torch {r['versions']['torch']}, tandem_cuda {r['versions']['tandem_cuda']}" for r in found}
    kernels = {
        f"{r['build']['cpu_isa']} kernels" for r in found if r["device"] == "cpu" or not r["build"]["cuda_usable"]
    }
    lines += [f"{'; '.join(sorted(threads))}; {'; '.join(sorted(versions | kernels))}. Commands:", "", "```bash"]
    command = ["python", "examples/train.py", "--config", f"examples/configs/{experiment.config}.yaml"]
    seeds = [str(run.seed) for run in runs if run.network.name == "ann"]
    chosen = seeds[0] if len(seeds) == 1 else f"{{{','.join(seeds)}}}"
    lines.append(f"export GLIBC_TUNABLES={KEEP_MEMORY}")
    for network in experiment.networks:
        settings = Training(experiment, network, 0, args.out, args.quick).settings[:-2]
        lines.append(f"{shlex.join([*command, *settings])} --seed_everything {chosen} --data.dir FOLDER")
    lines += ["```", ""]
    pictures = [
        name for name in experiment.pictures if (args.page.parent / "results" / picture(experiment, name)).exists()
    ]
    for name in pictures:
        lines += [f"![{experiment.title}: {name.replace('_', ' ')}](results/{picture(experiment, name)})", ""]
    return lines


def picture(experiment: Experiment, name: str) -> str:
    return f"{experiment.name}_{name}.png"


def front(args: argparse.Namespace) -> None:
    """The picture that the page begins with: accuracy against SynOps of every recipe."""
    panels = {}
    for experiment in args.experiments:
        if not experiment.name.startswith("recipes"):
            continue
        runs = [(run.network, run.recorded(args.records)) for run in trainings(experiment, args.out, args.quick)]
        if all(results is not None for _, results in runs):
            panels[experiment.title] = panel(experiment, runs)
    if not panels:
        return
    import plots  # matplotlib takes a while

    folder = args.page.parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    plots.accuracy_against_synops(panels, folder / "recipes.png")


def every_t(args: argparse.Namespace) -> None:
    """The picture of README: one network at every T, and what networks of other libraries reach at theirs."""
    experiment = next(e for e in args.experiments if e.name == "compared_cifar10")
    every = [(run.network, run.recorded(args.records)) for run in trainings(experiment, args.out, args.quick)]
    runs = [(network, results) for network, results in every if results is not None]
    if {network.name for network, _ in runs} != {network.name for network in experiment.networks}:
        return

    def mean(name: str, T: int | None = None) -> float:
        """The mean over the seeds that have been trained, at a T that is not the network's own if ``T`` is given."""
        found = [results for network, results in runs if network.name == name]
        at = [r["test"] if T is None else r["test_at_time_steps"][str(T)] for r in found]
        return statistics.fmean(tested["accuracy"] for tested in at)

    import plots  # matplotlib takes a while

    # Of the networks of radix spikes, the validation sets of two seeds prefer this one, from T = 2 on.
    one = {"radix8": "one network, radix spikes, trained at T = 8", "t8": "one network, counts, trained at T = 8"}
    each = {"spikingjelly": "SpikingJelly, a network for each T", "snntorch": "snnTorch, a network for each T"}
    plots.accuracy_at_time_steps(
        {label: {T: mean(name, T) for T in experiment.time_steps} for name, label in one.items()},
        {label: {T: mean(f"{name}{T}") for T in COMPARED_STEPS} for name, label in each.items()},
        mean("ann"),
        experiment.title,
        args.page.parent / "results" / "every_t.png",
    )


def panel(
    experiment: Experiment, runs: Sequence[tuple[Network, Any]]
) -> tuple[dict[str, list[tuple[int, float, float]]], tuple[float, float] | None]:
    """T, SynOps and accuracy of every SNN, and MACs and accuracy of the ANN; all are means over seeds."""
    curves, ann = {}, None
    for network in experiment.networks:
        found = [results for other, results in runs if other == network]
        if not network.spiking:
            macs = next(results for _, results in runs if results["spiking"])["test"]["ann_macs_per_sample"]
            ann = macs, statistics.fmean(r["test"]["accuracy"] for r in found)
            continue
        at = [{int(t): tested for t, tested in r["test_at_time_steps"].items()} for r in found]
        curves[network.label] = [
            (
                t,
                statistics.fmean(tested[t]["synops_per_sample"] for tested in at),
                statistics.fmean(tested[t]["accuracy"] for tested in at),
            )
            for t in experiment.time_steps
        ]
    return curves, ann


def write_page(args: argparse.Namespace) -> None:
    text = PAGE.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ResultsError(f"{PAGE} has no lines '{BEGIN}' and '{END}' to write between.")
    front(args)
    every_t(args)
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
    add("--missing", action="store_true", help="leave out runs of which docs/results/runs has a record")
    add("--quick", action="store_true", help="a few hundred samples, one epoch, one seed; the page goes to --out")
    add("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    add("--threads", type=int, default=1, help="CPU threads of each (default: 1)")
    args = parser.parse_args(argv)
    for name in ("jobs", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    args.experiments = [as_published(e) if args.cifar10 == "CIFAR10" else e for e in EXPERIMENTS]
    args.out = args.out or Path("runs/results_quick" if args.quick else "runs/results")
    args.page = args.out / "results.md" if args.quick else PAGE
    args.records = args.page.parent / "results" / "runs"
    return args


def complete(training: Training, args: argparse.Namespace) -> bool:
    """Trains a network unless that is done; False where it fails."""
    needed = args.data_dir / training.experiment.needs
    record = training.recorded(args.records)
    if training.results() is not None:
        say(f"{training.folder}: complete")
    elif args.missing and record is not None and record["settings"] == training.settings:
        say(f"{training.folder}: recorded")
    elif not needed.exists():
        say(f"{training.folder}: left out, no {needed}")
    else:
        return training.train(args.data_dir, args.threads)
    return True


def run(args: argparse.Namespace) -> None:
    experiments = [experiment for experiment in args.experiments if experiment.name in args.only]
    runs = [training for experiment in experiments for training in trainings(experiment, args.out, args.quick)]
    for training in runs:  # before anything else takes its time
        if training.results() is None and training.goes_on:
            training.started()
    with ThreadPoolExecutor(args.jobs) as pool:
        done = pool.map(lambda training: complete(training, args), runs)
        failed = [str(training.folder) for training, well in zip(runs, done, strict=True) if not well]
        pictures = pool.map(lambda experiment: analyse(experiment, args), experiments)
        failed += [f"{args.out / e.name} (pictures)" for e, well in zip(experiments, pictures, strict=True) if not well]
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
