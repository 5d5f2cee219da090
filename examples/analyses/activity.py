"""Synaptic operations and firing rates."""

from __future__ import annotations

import matplotlib.pyplot as plt
import plots

from analyses.common import Work, log_axis, steps_axis
from tandem_cuda import ActivityTable, LayerActivity, plot


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

    tables = {
        run.label: ActivityTable(LayerActivity(**layer) for layer in run.evaluated()["layers"]) for run in work.snns
    }
    layers = len({row["layer"] for row in rows})
    figure, axes = plt.subplots(figsize=(max(6.5, 1.2 * layers + 3), 4.6), layout="constrained")
    plot.firing_rates(tables, colors=[work.colour(run) for run in work.snns], ax=axes)
    axes.get_legend().remove()
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    work.figure("rates", figure, f"Firing rates: {work.source}, test set")
