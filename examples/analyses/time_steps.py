"""Trained weights in fewer and more time steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from analyses.common import Work, steps_axis


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
    """Draw one column of ``figures_at`` against T."""
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
