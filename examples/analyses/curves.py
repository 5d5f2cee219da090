"""Learning curves."""

from __future__ import annotations

import csv
import math
from typing import Any

import matplotlib.pyplot as plt
from finished import FinishedError, Run
from matplotlib.ticker import MaxNLocator, PercentFormatter

from analyses.common import Work, log_axis

TRANSFERRED = ((0, (6, 3)), (0, (2, 2)), "-.", (0, (9, 2, 1, 2, 1, 2)))  # lines of different T


def logged(run: Run) -> list[dict[str, float]]:
    """What the CSV logs say of each epoch; where a run was started again, the later start counts."""
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
