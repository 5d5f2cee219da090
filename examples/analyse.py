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
import copy
import csv
import functools
import io
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import console  # sets up threads, so before torch
    import matplotlib.pyplot as plt
    import plots
    import torch
    from data import DataError
    from finished import FinishedError, Run, load_all
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
    from PIL import Image
    from tandem_module import TandemModule, evaluate
except ImportError as error:
    raise SystemExit(
        f"examples/analyse.py needs matplotlib, Lightning, jsonargparse, TensorBoard and torchvision: {error}\n"
        "Install them with: pip install 'tandem_cuda[examples]'   (in the source tree: pip install -e '.[examples]')"
    ) from error

from torch import Tensor, nn

from tandem_cuda import convert, quantise, unquantise
from tandem_cuda.diagnostics import counts_and_activations, diagnose
from tandem_cuda.quantisation import quantiser

WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
READERS = 256  # random neurons that read counts and activations
BINARISED = math.degrees(math.acos(math.sqrt(2 / math.pi)))  # Anderson & Berg 2018: a Gaussian vector and its signs
SHOWN_IMAGES = 8

SNN_COLOURS = (plots.SNN, "#e09f3e", "#7b2d26", "#d88c9a", "#a26769", "#f2c14e")
TRANSFERRED = ((0, (6, 3)), (0, (2, 2)), "-.", (0, (9, 2, 1, 2, 1, 2)))  # lines of different T
ANN_COLOURS = (plots.ANN, "#5b8e7d", "#1d3557", "#7aa5d2", "#4a6fa5", "#9bc1bc")


class NotApplicable(FinishedError):
    """An analysis that these runs do not have the data for."""


@dataclass(frozen=True)
class Work:
    """What analyses are made of."""

    runs: Sequence[Run]
    out: Path
    time_steps: Sequence[int]
    bits: Sequence[int]

    @property
    def snns(self) -> list[Run]:
        found = [run for run in self.runs if run.spiking]
        if not found:
            raise NotApplicable("it needs a run of a spiking network (--model.spiking true).")
        return found

    @property
    def anns(self) -> list[Run]:
        return [run for run in self.runs if not run.spiking]

    @property
    def source(self) -> str:
        return self.runs[0].results["data"]["source"]

    def steps_of(self, run: Run) -> list[int]:
        return sorted({*self.time_steps, run.time_steps} if run.spiking else set(self.time_steps))

    def colour(self, run: Run) -> str:
        same = [other for other in self.runs if other.spiking == run.spiking]
        return (SNN_COLOURS if run.spiking else ANN_COLOURS)[same.index(run) % len(SNN_COLOURS)]

    def figure(self, name: str, figure: Any, title: str) -> None:
        """With a palette of 256 colours, which takes a third of the bytes."""
        figure.suptitle(title)
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=110)
        plt.close(figure)
        Image.open(drawn).convert("RGB").quantize(256).save(self.out / f"{name}.png", optimize=True)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """As a whole or not at all."""
        with tempfile.NamedTemporaryFile("w", dir=self.out, delete=False, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()})
        Path(file.name).chmod(0o644)
        Path(file.name).replace(self.out / f"{name}.csv")


def pearson(sums: Tensor) -> float:
    """Correlation from the sums of 1, x, y, x², y², xy; nan where x or y is constant."""
    n, x, y, xx, yy, xy = sums.tolist()
    variance = (n * xx - x * x) * (n * yy - y * y)
    return (n * xy - x * y) / math.sqrt(variance) if variance > 0 else math.nan


def sums_of(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.flatten().double(), y.flatten().double()
    return torch.stack([x.new_tensor(len(x)), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]).cpu()


def angles_between(a: Tensor, b: Tensor) -> Tensor:
    """Degrees between the vectors of each sample, nan where one is zero; float64 [N]."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    norms = a.norm(dim=1) * b.norm(dim=1)
    cosine = ((a * b).sum(1) / norms).clamp(-1, 1)
    return torch.rad2deg(torch.acos(cosine)).where(norms > 0, torch.nan).cpu()


def spread(values: Tensor) -> dict[str, float]:
    """Mean, 5th and 95th percentile of those that are numbers."""
    known = values[~values.isnan()]
    if not len(known):
        return dict.fromkeys(("mean", "p05", "p95"), math.nan)
    low, high = torch.quantile(known, torch.tensor([0.05, 0.95], dtype=known.dtype)).tolist()
    return {"mean": float(known.mean()), "p05": low, "p95": high}


def steps_axis(axes: Axes, steps: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set(xlabel="time steps T", xticks=list(steps))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.25)


def log_axis(axes: Axes, form: Callable[[float, Any], str] = lambda value, _: f"{value:g}") -> None:
    """A logarithmic y axis with numbers written out."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(form)
    axes.yaxis.set_minor_formatter(NullFormatter())


# ---------------------------------------------------------------------------------------------------------------------
# Counts, angles, gradients
# ---------------------------------------------------------------------------------------------------------------------


def counts(work: Work) -> None:
    """Spike count of every neuron against its ANN activation, given the counts from below."""
    run = work.snns[0]
    steps, samples = run.time_steps, run.detail()
    highest, per_unit = 1.25 * steps, max(1, round(80 / steps))
    columns = math.ceil(highest * per_unit)
    edges = torch.arange(-steps - 0.5, steps + 0.51, 0.1)  # of residuals
    density: dict[str, Tensor] = {}
    residuals: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    figures: dict[str, Tensor] = {}
    neurons: dict[str, int] = {}
    for x, _ in samples:
        for name, (count, activation) in counts_and_activations(run.module.net.snn, x).items():
            neurons[name] = count[0].numel()
            count, activation = count.flatten().cpu(), activation.flatten().cpu()
            inside = (activation * per_unit).long().clamp(0, columns - 1)
            flat = torch.bincount(inside * (steps + 1) + count.long(), minlength=columns * (steps + 1))
            residual = (count - activation).double()
            limits = residual.clamp(float(edges[0]), float(edges[-1]))
            below = activation < steps
            parts = {
                "pairs": torch.ones_like(residual),
                "error": residual.abs(),
                "residual": residual,
                "square": residual**2,
                "silent": (count == 0).double(),
                "within_one": (residual.abs() <= 1).double(),
                "saturated": (~below).double(),
            }
            for kept, value in (
                (density, flat.view(columns, steps + 1)),
                (residuals, torch.histogram(limits.float(), edges).hist.double()),
                (sums, sums_of(activation, count)),
                (figures, torch.stack([part.sum() for part in parts.values()])),
            ):
                kept[name] = kept[name] + value if name in kept else value
    rows = []
    for name in density:
        pairs, error, residual, square, silent, within_one, saturated = figures[name].tolist()
        mean = residual / pairs
        rows.append(
            {
                "run": run.name,
                "layer": name,
                "time_steps": steps,
                "neurons": neurons[name],
                "samples": round(pairs) // neurons[name],
                "correlation": pearson(sums[name]),
                "mean_absolute_residual": error / pairs,
                "mean_residual": mean,
                "residual_deviation": math.sqrt(max(0.0, square / pairs - mean**2)),
                "share_within_one_spike": within_one / pairs,
                "share_silent": silent / pairs,
                "share_activation_above_T": saturated / pairs,
            }
        )
    work.table("counts", rows)

    figure, grid = plt.subplots(
        2,
        len(rows),
        figsize=(1.4 + 2.7 * len(rows), 6.6),
        sharex="row",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    shown = max(int(found.sum(0).nonzero().max()) for found in density.values())  # the highest count
    shown = min(steps, shown + 1)
    mesh = None
    for (above, below_axes), row in zip(grid.T, rows, strict=True):
        name = row["layer"]
        share = density[name].T.double() / density[name].sum()
        mesh = above.pcolormesh(
            (torch.arange(columns + 1) / per_unit).numpy(),
            (torch.arange(steps + 2) - 0.5).numpy(),
            share.where(share > 0, torch.nan).numpy(),
            cmap="viridis_r",
            norm=LogNorm(1e-7, 1),
            rasterized=True,
        )
        (line,) = above.plot([0, steps, highest], [0, steps, steps], color=plots.SNN, lw=1.3)
        above.set(title=f"{name}\n{row['neurons']:,} neurons, r = {row['correlation']:.3f}")
        above.set(xlabel="ANN activation / threshold", xlim=(0, 1.25 * shown), ylim=(-0.5, shown + 0.5))
        hist = residuals[name] / residuals[name].sum()
        below_axes.stairs(hist.numpy(), edges.numpy(), fill=True, color=plots.ANN)
        below_axes.set(yscale="log", xlabel="residual: count - activation", xlim=(-3, 3), ylim=(1e-7, 2))
        below_axes.axvline(0, color=plots.SNN, lw=1)
        below_axes.set_title(f"mean |residual| {row['mean_absolute_residual']:.3f} spikes", fontsize=9.5)
    grid[0, 0].set_ylabel(f"spike count in T = {steps} steps")
    grid[0, 0].yaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 0].legend([line], ["count = activation,\nat most T"], frameon=False, loc="upper left", fontsize=8.5)
    grid[1, 0].set_ylabel("share of neurons and samples")
    figure.colorbar(mesh, ax=list(grid[0]), label="share of neurons and samples", pad=0.01)
    number = rows[0]["samples"]
    work.figure("counts", figure, f"Spike counts against ANN activations: {run.label}; {number} test samples")


def random_network(features: int, width: int, deviation: float) -> nn.Sequential:
    """Gaussian weights; pre-activations with mean 0 and the deviation given, once statistics of a batch are taken."""
    norm = nn.BatchNorm1d(width, momentum=1.0)
    layers = nn.Linear(features, width, bias=False), nn.Linear(width, 2)
    nn.init.normal_(layers[0].weight)
    nn.init.constant_(norm.weight, deviation)
    return nn.Sequential(nn.Flatten(), layers[0], norm, nn.ReLU(), layers[1])


def angles(work: Work) -> None:
    """Angle between count vector and activation vector, random layers of growing width and the layers of runs."""
    first = work.snns[0]
    steps = first.time_steps
    samples = first.detail()
    x = torch.cat([x for x, _ in samples]) if isinstance(samples[0][0], Tensor) else samples[0][0]
    features, number = math.prod(x.shape[1:]), x.shape[0]
    rows: list[dict[str, Any]] = []
    deviations = sorted({1.0, max(1.0, steps / 4)})
    for deviation in deviations:
        for width in WIDTHS:
            torch.manual_seed(width)
            net = convert(random_network(features, width, deviation), steps, mode=first.module.encoding)
            net.to(first.device).train()
            with torch.no_grad():
                net(x)  # batch norm's statistics
            ((count, activation),) = counts_and_activations(net.snn, x).values()
            readers = torch.randn(width, READERS, dtype=torch.float64).to(count.device)
            sums = sums_of(activation.double() @ readers, count.double() @ readers)
            kind = f"random, deviation {deviation:g}"
            rows.append(_angles(kind, f"width {width}", steps, count, activation) | {"dot_correlation": pearson(sums)})
    for run in work.snns:
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for batch, _ in run.detail():
            for name, pair in counts_and_activations(run.module.net.snn, batch).items():
                found.setdefault(name, []).append((pair[0].flatten(1), pair[1].flatten(1)))
        for name, pairs in found.items():
            count, activation = (torch.cat(part) for part in zip(*pairs, strict=True))
            torch.manual_seed(0)
            readers = torch.randn(count.shape[1], READERS).to(count.device)
            sums = sums_of(activation.float() @ readers, count.float() @ readers)
            rows.append(_angles(run.name, name, run.time_steps, count, activation) | {"dot_correlation": pearson(sums)})
    work.table("angles", rows)

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for deviation, colour in zip(deviations, (plots.GREY, "black"), strict=False):
        of = [row for row in rows if row["network"] == f"random, deviation {deviation:g}"]
        widths = [row["neurons"] for row in of]
        label = f"random weights, deviation of pre-activations {deviation:g} threshold{'s' * (deviation != 1)}"
        left.plot(widths, [row["angle"] for row in of], "o-", ms=4, color=colour, label=label)
        left.fill_between(
            widths, [r["angle_p05"] for r in of], [r["angle_p95"] for r in of], color=colour, alpha=0.15, lw=0
        )
        right.plot(widths, [row["dot_correlation"] for row in of], "o-", ms=4, color=colour)
    for run in work.snns:
        of = [row for row in rows if row["network"] == run.name]
        widths, means = [row["neurons"] for row in of], [row["angle"] for row in of]
        low = [row["angle"] - row["angle_p05"] for row in of]
        high = [row["angle_p95"] - row["angle"] for row in of]
        label = f"trained, {run.label}"
        low, high = ([max(0.0, v) for v in values] for values in (low, high))
        left.errorbar(widths, means, (low, high), fmt="s", ms=5, color=work.colour(run), capsize=2, lw=1, label=label)
        right.plot(widths, [row["dot_correlation"] for row in of], "s", ms=5, color=work.colour(run))
        if run is first:
            for row in of:
                at = (row["neurons"], row["angle"])
                left.annotate(
                    row["layer"].rpartition(".")[2],
                    at,
                    (6, 3),
                    textcoords="offset points",
                    fontsize=8,
                    color=work.colour(run),
                )
    left.axhline(BINARISED, color=plots.ANN, ls=":", lw=1.2)
    left.annotate(
        f"a Gaussian vector and its signs: {BINARISED:.0f}°",
        (0.98, BINARISED),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=plots.ANN,
    )
    left.set(
        title="Angle; bars and bands: 5 % to 95 % of samples", ylabel="degrees", ylim=(0, 92), yticks=range(0, 91, 15)
    )
    right.set(title=f"Sums of {READERS} random neurons that read the layer", ylim=(min(0.5, *_dots(rows)), 1.01))
    right.set_ylabel("correlation of W · counts with W · activations")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("neurons of the layer")
        axes.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    work.figure("angles", figure, f"Spike counts and ANN activations as vectors: {work.source}, {number} test samples")


def _dots(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["dot_correlation"] for row in rows if not math.isnan(row["dot_correlation"])]


def _angles(network: str, layer: str, steps: int, count: Tensor, activation: Tensor) -> dict[str, Any]:
    angle = angles_between(count, activation)
    of = spread(angle)
    return {
        "network": network,
        "layer": layer,
        "time_steps": steps,
        "neurons": count[0].numel(),
        "samples": len(count),
        "angle": of["mean"],
        "angle_p05": of["p05"],
        "angle_p95": of["p95"],
        "cosine": float(torch.cos(torch.deg2rad(angle)).nanmean()),
        "share_silent_samples": float(angle.isnan().double().mean()),
    }


def untrained(run: Run) -> TandemModule:
    """A copy with fresh weights, and statistics of batch norm from a few samples."""
    module = copy.deepcopy(run.module)
    torch.manual_seed(run.module.seed)
    for layer in module.net.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    module.net.train()
    with torch.no_grad():
        for x, _ in run.detail():
            module.net(x)
    return module.eval()


def gradients(work: Work) -> None:
    """The tandem gradient against the ANN's, layer by layer."""
    rows: list[dict[str, Any]] = []
    for run in work.snns:
        states = {"trained": run.module}
        if run.module.net.levels is None:  # thresholds are of these weights otherwise
            states = {"untrained": untrained(run), **states}
        for state, module in states.items():
            tables = []
            for x, target in run.detail():
                tables.append(diagnose(module.net.snn, x, functools.partial(loss_of, module, target)))
            for layers in zip(*tables, strict=True):
                row: dict[str, Any] = {"run": run.name, "weights": state, "layer": layers[0].name}
                row |= {"time_steps": run.time_steps, "batches": len(layers)}
                for name in list(asdict(layers[0]))[1:]:
                    values = torch.tensor([getattr(layer, name) for layer in layers], dtype=torch.float64)
                    row |= {name: float(values.mean()), f"{name}_deviation": float(values.std(correction=0))}
                rows.append(row)
    work.table("gradients", rows)

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.6), layout="constrained")
    for run in work.snns:
        for state, style in (("untrained", "s:"), ("trained", "o-")):
            of = [row for row in rows if (row["run"], row["weights"]) == (run.name, state)]
            if not of:
                continue
            names, colour = [row["layer"] for row in of], work.colour(run)
            for axes, what in ((left, "gradient_cosine"), (right, "gradient_norm_ratio")):
                means = torch.tensor([row[what] for row in of])
                deviations = torch.tensor([row[f"{what}_deviation"] for row in of])
                if axes is right:  # stays positive on the logarithmic axis
                    deviations = torch.stack([deviations.minimum(means * 0.9), deviations])
                label = f"{run.label}, {state}" if axes is left else None
                axes.errorbar(
                    names, means.numpy(), deviations.numpy(), fmt=style, ms=5, capsize=3, color=colour, label=label
                )
    least = -1 if any(row["gradient_cosine"] - row["gradient_cosine_deviation"] < 0 for row in rows) else 0
    left.set(title="Direction", ylabel="cosine of the angle between the gradients", ylim=(least - 0.05, 1.05))
    left.axhline(0, color=plots.GREY, lw=0.8)
    log_axis(right)
    right.set(title="Length", ylabel="norm: tandem gradient / ANN gradient")
    for axes in (left, right):
        axes.axhline(1, color=plots.GREY, ls="--", lw=1)
        axes.set_xlabel("layer, from the input")
        axes.tick_params(axis="x", rotation=25)
        axes.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    size = len(work.snns[0].detail()[0][1])
    title = f"Tandem gradient against the ANN's: mean and deviation over batches of {size} test samples"
    work.figure("gradients", figure, title)


def loss_of(module: TandemModule, target: Tensor, output: Tensor) -> Tensor:
    return module.loss_of(output, target)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def logged(run: Run) -> list[dict[str, float]]:
    """By epoch what the CSV logs have; later starts of a run go before earlier ones."""
    epochs: dict[int, dict[str, float]] = {}
    files = sorted(run.folder.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for path in files:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                at = epochs.setdefault(int(row["epoch"]), {})
                at |= {name: float(value) for name, value in row.items() if value and name != "epoch"}
    if not epochs:
        raise FinishedError(f"{run.folder} has no csv/version_N/metrics.csv, which learning curves are drawn from.")
    return [{"epoch": epoch, **epochs[epoch]} for epoch in sorted(epochs)]


def curves(work: Work) -> None:
    """Tandem training against training the ANN and transferring it."""
    rows: list[dict[str, Any]] = []
    names = ("train_loss", "val_loss", *(["train_accuracy", "val_accuracy"] if work.runs[0].classifies else []))
    for run in work.runs:
        steps = run.time_steps if run.spiking else None
        for at in logged(run):
            row = {"run": run.name, "network": "SNN" if run.spiking else "ANN", "time_steps": steps}
            rows.append({**row, "epoch": int(at["epoch"]) + 1} | {name: at.get(name) for name in names})
    transferred = []
    for run in work.anns:
        for steps in sorted({snn.time_steps for snn in work.runs if snn.spiking}):
            tested = run.validated(steps)
            row = {"run": run.name, "network": "transferred ANN", "time_steps": steps, "epoch": None}
            row |= dict.fromkeys(names)
            row |= {"val_loss": tested["loss"]} | ({"val_accuracy": tested["accuracy"]} if run.classifies else {})
            transferred.append(row)
    work.table("curves", rows + transferred)

    plotted = ("val_loss", "val_accuracy") if work.runs[0].classifies else ("val_loss",)
    figure, grid = plt.subplots(
        1, len(plotted), figsize=(0.5 + 5.2 * len(plotted), 4.8), squeeze=False, layout="constrained"
    )
    for axes, what in zip(grid[0], plotted, strict=True):
        for run in work.runs:
            of = [row for row in rows if row["run"] == run.name]
            epochs, colour = [row["epoch"] for row in of], work.colour(run)
            values = [math.nan if row[what] is None else row[what] for row in of]
            label = run.label if axes is grid[0, 0] else None
            axes.plot(epochs, values, "o-" if run.spiking else "s-", ms=3, lw=1.4, color=colour, label=label)
            if what == "val_loss":
                trained = [math.nan if row["train_loss"] is None else row["train_loss"] for row in of]
                axes.plot(epochs, trained, ":", lw=1.2, color=colour)
        for row in transferred:
            run = next(run for run in work.anns if run.name == row["run"])
            label = f"{run.name}: ANN transferred, T = {row['time_steps']}" if axes is grid[0, 0] else None
            style = TRANSFERRED[
                sorted({r["time_steps"] for r in transferred}).index(row["time_steps"]) % len(TRANSFERRED)
            ]
            axes.axhline(row[what], color=work.colour(run), ls=style, lw=1.3, label=label)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    measure = "cross entropy" if work.runs[0].classifies else "mean squared error"
    grid[0, 0].set(title="Loss; dotted: on training samples", ylabel=measure)
    log_axis(grid[0, 0])
    if len(plotted) == 2:
        grid[0, 1].set(title="Accuracy", ylabel="accuracy on the validation set")
        grid[0, 1].yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    work.figure("curves", figure, f"Learning curves: {work.source}, validation set")


# ---------------------------------------------------------------------------------------------------------------------
# Time steps, operations, rates, bits
# ---------------------------------------------------------------------------------------------------------------------


def figures_at(work: Work) -> list[dict[str, Any]]:
    """Every run on the test set at every T, ANNs as they are and transferred."""
    rows = []
    for run in work.runs:
        cases: list[int | None] = list(work.steps_of(run))
        if not run.spiking:
            cases.insert(0, None)
        for steps in cases:
            tested = run.evaluated(steps)
            network = "ANN" if steps is None else "SNN" if run.spiking else "transferred ANN"
            row: dict[str, Any] = {"run": run.name, "network": network, "time_steps": steps}
            row["trained_at_T"] = run.time_steps if run.spiking else None
            row |= {"samples": tested["samples"], "loss": tested["loss"], "accuracy": tested.get("accuracy")}
            row["firing_rate"] = tested.get("firing_rate")
            for name in ("synops_per_sample", "snn_macs_per_sample", "ann_macs_per_sample"):
                row[name] = tested.get(name)
            rows.append(row)
    return rows


def error_against_time(work: Work, axes: Axes, rows: Sequence[Mapping[str, Any]], what: str) -> None:
    """One figure of ``figures_at`` against T."""
    for run in work.runs:
        colour = work.colour(run)
        of = {row["time_steps"]: row[what] for row in rows if row["run"] == run.name}
        ann = of.pop(None, None)
        label = run.label if run.spiking else f"{run.name}: ANN transferred, not trained further"
        axes.plot(list(of), list(of.values()), "o-" if run.spiking else "s:", ms=4, color=colour, label=label)
        if run.spiking:
            axes.plot(run.time_steps, of[run.time_steps], "o", ms=10, mfc="none", mec=colour, mew=1.6)
        else:
            axes.axhline(ann, color=colour, ls="--", lw=1.3, label=run.label)
    steps_axis(axes, sorted({row["time_steps"] for row in rows if row["time_steps"] is not None}))
    axes.set_title("The same weights at every T; circles: T in training")


def time_steps(work: Work) -> None:
    """The same weights in fewer and more time steps."""
    rows = figures_at(work)
    what = "accuracy" if work.runs[0].classifies else "loss"
    kept = ("run", "network", "time_steps", "trained_at_T", "samples", "loss", "accuracy", "firing_rate")
    work.table("time_steps", [{name: row[name] for name in kept} for row in rows])

    figure, axes = plt.subplots(figsize=(7.4, 5), layout="constrained")
    error_against_time(work, axes, rows, what)
    number = f"{rows[0]['samples']:,} test samples"
    if what == "accuracy":
        axes.set(ylabel=f"accuracy on {number}", ylim=(0, 1.03))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        axes.set(ylabel=f"mean squared error of {number}", ylim=(0, None))
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    work.figure(
        "time_steps", figure, f"{'Accuracy' if what == 'accuracy' else 'Error'} against time steps: {work.source}"
    )


def synops(work: Work) -> None:
    """Synaptic operations against time steps and the ANN's multiplications."""
    rows = []
    for run in work.snns:
        for steps in work.steps_of(run):
            tested = run.evaluated(steps)
            layers = [*tested["layers"], None]
            for layer in layers:
                total = layer is None
                rows.append(
                    {
                        "run": run.name,
                        "time_steps": steps,
                        "layer": "total" if total else layer["name"],
                        "synops": tested["synops_per_sample"] if total else layer["synops"],
                        "snn_macs": tested["snn_macs_per_sample"] if total else layer["macs"] * layer["analogue"],
                        "ann_macs": tested["ann_macs_per_sample"] if total else layer["macs"],
                    }
                )
    for row in rows:
        row["synops_per_ann_mac"] = row["synops"] / row["ann_macs"] if row["ann_macs"] else None
    work.table("synops", rows)

    totals = [row for row in rows if row["layer"] == "total"]
    figure, axes = plt.subplots(figsize=(7.4, 4.8), layout="constrained")
    for run in work.snns:
        of = [row for row in totals if row["run"] == run.name]
        steps, colour = [row["time_steps"] for row in of], work.colour(run)
        axes.plot(steps, [row["synops"] for row in of], "o-", ms=4, color=colour, label=f"SynOps, {run.label}")
        at = steps.index(run.time_steps)
        axes.plot(run.time_steps, of[at]["synops"], "o", ms=10, mfc="none", mec=colour, mew=1.6)
    for what, label, style in (
        ("ann_macs", "MACs of the ANN", "--"),
        ("snn_macs", "MACs of the SNN, on real input", ":"),
    ):
        of = {row[what]: row["run"] for row in totals if row[what]}  # most often the runs are of one network
        for value, name in of.items():
            label_of = label if len(of) == 1 else f"{label}, {name}"
            axes.axhline(value, color=plots.ANN, ls=style, lw=1.4, label=label_of)
    steps_axis(axes, sorted({row["time_steps"] for row in totals}))
    log_axis(axes, lambda value, _: f"{value / 1e6:g}")
    axes.set(ylabel="operations per sample, millions")
    axes.set_title("The same weights at every T; circles: T in training")
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    work.figure("synops", figure, f"Operations against time steps: {work.source}")


def rates(work: Work) -> None:
    """Firing rate of every layer."""
    rows = []
    kept = ("firing_rate", "silent", "dead", "saturation")
    for run in work.snns:
        for layer in run.evaluated()["layers"]:
            if layer["firing_rate"] is not None:
                row = {"run": run.name, "time_steps": run.time_steps, "layer": layer["name"]}
                rows.append(row | {"neurons": layer["neurons"]} | {name: float(layer[name]) for name in kept})
    work.table("rates", rows)

    names = list(dict.fromkeys(row["layer"] for row in rows))
    figure, axes = plt.subplots(figsize=(max(6.5, 1.2 * len(names) + 3), 4.6), layout="constrained")
    width = 0.8 / len(work.snns)
    for i, run in enumerate(work.snns):
        of = {row["layer"]: row["firing_rate"] for row in rows if row["run"] == run.name}
        at = [names.index(name) + (i - (len(work.snns) - 1) / 2) * width for name in of]
        bars = axes.bar(at, list(of.values()), width * 0.95, color=work.colour(run), label=run.label)
        if len(work.snns) <= 2:
            axes.bar_label(bars, [f"{rate:.1%}" for rate in of.values()], fontsize=8.5, padding=1)
    axes.set(xticks=range(len(names)), xticklabels=names, xlabel="layer, from the input")
    axes.set(ylabel="spikes per neuron and time step")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.grid(alpha=0.25, axis="y")
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    work.figure("rates", figure, f"Firing rates: {work.source}, test set")


def rounded(net: nn.Module, number: int | None) -> nn.Module:
    """A copy with weights of so many bits, rounded once; None: in full precision."""
    net = copy.deepcopy(net)
    values = []
    if number is not None:
        quantise(net, number)
        values = [(layer, layer.weight.detach()) for layer in net.modules() if quantiser(layer) is not None]
    unquantise(net)
    with torch.no_grad():
        for layer, value in values:
            layer.weight.copy_(value)
    return net


def bits(work: Work) -> None:
    """Weights rounded after training, in both networks."""
    rows = []
    what = "accuracy" if work.runs[0].classifies else "loss"
    for run in work.runs:
        trained_with = next((q.bits for q in map(quantiser, run.module.net.modules()) if q is not None), None)
        for number in [*work.bits, None]:
            tested = evaluate(run.module, rounded(run.module.net, number), run.batches(), run.device)
            row: dict[str, Any] = {"run": run.name, "network": "SNN" if run.spiking else "ANN"}
            row["time_steps"] = run.time_steps if run.spiking else None
            row |= {"bits": 32 if number is None else number, "trained_with_bits": trained_with}
            rows.append(row | {"loss": tested["loss"], "accuracy": tested.get("accuracy")})
    work.table("bits", rows)

    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    labels = [*map(str, work.bits), "32 (float)"]
    for run in work.runs:
        values = [row[what] for row in rows if row["run"] == run.name]
        axes.plot(labels, values, "o-" if run.spiking else "s--", ms=5, color=work.colour(run), label=run.label)
    axes.set(xlabel="bits of a weight", ylabel="mean squared error, test set")
    if what == "accuracy":
        axes.set(ylabel="accuracy, test set", ylim=(0, 1.03))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Rounded after training, one scale per output channel")
    axes.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    work.figure(
        "bits", figure, f"{'Accuracy' if what == 'accuracy' else 'Error'} against bits of the weights: {work.source}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Autoencoders
# ---------------------------------------------------------------------------------------------------------------------


def reconstructions(work: Work) -> None:
    """Images out of an autoencoder, and their error against time steps."""
    if work.runs[0].classifies:
        raise NotApplicable("it needs runs of an autoencoder (--model.loss mse); these classify.")
    run = work.snns[0]
    rows = [
        {name: row[name] for name in ("run", "network", "time_steps", "trained_at_T", "samples", "loss")}
        for row in figures_at(work)
    ]
    for row in rows:
        row["mean_squared_error"] = row.pop("loss")
        row["psnr_db"] = -10 * math.log10(row["mean_squared_error"])
    work.table("reconstructions", rows)

    images = run.detail()[0][0][:SHOWN_IMAGES]
    pictures: dict[str, Tensor] = {"input": images}
    with torch.no_grad():
        if work.anns:
            pictures["ANN"] = work.anns[0].network()(images)
        for steps in work.steps_of(run):
            pictures[f"T = {steps}"] = run.network(steps)(images)
    figure = plt.figure(figsize=(0.7 * len(images) + 5.6, 0.7 * len(pictures) + 0.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(0.7 * len(images) + 1.2, 4.4))
    grid = left.subplots(len(pictures), len(images), squeeze=False)
    for row_axes, (name, shown) in zip(grid, pictures.items(), strict=True):
        for axes, image in zip(row_axes, shown.cpu().clamp(0, 1), strict=True):
            axes.imshow(
                image.movedim(0, -1).squeeze(-1).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest"
            )
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        colour = plots.ANN if name == "ANN" else "black" if name == "input" else plots.SNN
        trained = "\n(as trained)" if name == f"T = {run.time_steps}" else ""
        label = name if name in ("input", "ANN") else f"SNN, {name}{trained}"
        row_axes[0].set_ylabel(label, rotation=0, ha="right", va="center", color=colour, fontsize=9)
    axes = right.subplots()
    error_against_time(work, axes, rows, "mean_squared_error")
    axes.set(ylabel=f"mean squared error, {rows[0]['samples']:,} test samples", ylim=(0, None))
    axes.legend(frameon=False, loc="lower left", fontsize=8.5)
    work.figure("reconstructions", figure, f"Test images out of the autoencoder {run.name}, and the error of all")


ANALYSES: dict[str, Callable[[Work], None]] = {
    "counts": counts,
    "angles": angles,
    "gradients": gradients,
    "curves": curves,
    "time_steps": time_steps,
    "synops": synops,
    "rates": rates,
    "bits": bits,
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
