"""What time buys: networks for one T, one network for several, and the latter with early exit."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from finished import Run
from matplotlib.ticker import PercentFormatter

from analyses.common import NotApplicable, Work
from tandem_cuda import Cascade, OperatingPoint, SpikeTrain, freeze, plot

CONFIDENCES = (0.5, 0.7, 0.9, 0.95, 0.99, 0.999)
RADIX_STEPS = (2, 4, 8)
"""Numbers of time steps at which networks of radix neurons run, whichever they were trained for."""


def points_of(run: Run) -> dict[str, list[OperatingPoint]]:
    """By kind: a network as a whole at each T that its weights are for; with several T, also their cascade."""
    steps = sorted(run.module.trained_steps) if not run.module.neuron.radix else RADIX_STEPS
    stages = []
    for t in steps:
        with run.at(t) as net:
            stages.append(freeze(net))
    # A cascade of one network runs as a whole, whatever its neurons.
    alone = [Cascade([stage]).accuracy_curve(run.batches(t), []) for stage, t in zip(stages, steps, strict=True)]
    found = {"as a whole": [curve.over_time[-1] for curve in alone]}
    if len(steps) > 1:
        found["early exit"] = Cascade(stages).accuracy_curve(run.batches(), CONFIDENCES).over_confidence
    return found


def early_exit(work: Work) -> None:
    """Accuracy against time steps and SynOps of every SNN, at the T that it was trained for and between them."""
    runs = work.snns
    if not work.runs[0].classifies:
        raise NotApplicable("it needs runs of a classifier.")
    if any(isinstance(run.batches()[0][0], SpikeTrain) for run in runs):
        raise NotApplicable("it needs runs on real input: recordings have a T of their own.")
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[OperatingPoint]] = {}
    colors: list[str] = []
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True, layout="constrained")
    for run in runs:
        label = f"{run.name}: SNN, T = {', '.join(map(str, sorted(run.module.trained_steps)))}"
        for kind, points in points_of(run).items():
            curves[f"{label}, {kind}"] = points
            colors.append(work.colour(run))
            rows += [
                {
                    "run": run.name,
                    "kind": kind,
                    "exit_confidence": point.exit_confidence,
                    "steps": point.steps,
                    "synops_per_sample": point.synops,
                    "accuracy": point.accuracy,
                    "samples": sum(len(labels) for _, labels in run.batches()),
                }
                for point in points
            ]
    work.table("early_exit", rows)
    for axes, cost in zip(panels, ("steps", "synops"), strict=True):
        plot.accuracy_against_synops(curves, cost=cost, colors=colors, ax=axes)
        for line in axes.lines:
            if line.get_label().endswith("early exit"):
                line.set(marker="s", linestyle=":")
        axes.get_legend().remove()
        axes.set_ylabel("")
    panels[0].set_ylabel(f"accuracy on {rows[0]['samples']:,} test samples")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    work.figure("early_exit", figure, f"Accuracy against time steps and operations: {work.source}")
