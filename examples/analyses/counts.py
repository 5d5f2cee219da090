"""Spike counts against ANN activations, neuron by neuron."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import plots
import torch
from finished import Run
from matplotlib.axes import Axes
from torch import Tensor

from analyses.common import Work
from analyses.measures import pearson, sums_of
from tandem_cuda import plot
from tandem_cuda.analysis import counts_and_activations


def residual_edges(largest: int) -> Tensor:
    """The edges of the bins of residuals, for a network whose spikes stand for at most this number."""
    return torch.arange(-largest - 0.5, largest + 0.51, 0.1)


@dataclass(frozen=True)
class Tally:
    """What is kept of a layer's pairs of count and activation; tallies of different batches add up."""

    neurons: int
    density: Tensor  # pairs by activation and count, see plot.count_histogram
    residuals: Tensor  # pairs by count - activation
    sums: Tensor  # see measures.sums_of
    totals: Mapping[str, float]

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.neurons,
            self.density + other.density,
            self.residuals + other.residuals,
            self.sums + other.sums,
            {name: total + other.totals[name] for name, total in self.totals.items()},
        )


def tally_of(count: Tensor, activation: Tensor, run: Run) -> Tally:
    """The tally of one layer on one batch, [N, ...]; of radix spikes, counts are their values."""
    radix, largest = run.module.neuron.radix, run.largest
    neurons = count[0].numel()
    count, activation = count.flatten().cpu(), activation.flatten().cpu()
    residual = (count - activation).double()
    edges = residual_edges(largest)
    inside = residual.clamp(float(edges[0]), float(edges[-1]))
    parts = {
        "pairs": torch.ones_like(residual),
        "error": residual.abs(),
        "residual": residual,
        "square": residual**2,
        "silent": (count == 0).double(),
        "within_one": (residual.abs() <= 1).double(),
        "saturated": (~(activation < largest)).double(),
    }
    return Tally(
        neurons,
        plot.count_histogram(count, activation, run.time_steps, radix=radix),
        torch.histogram(inside.float(), edges).hist.double(),
        sums_of(activation, count),
        {name: float(part.sum()) for name, part in parts.items()},
    )


def tallies(run: Run) -> dict[str, Tally]:
    """The tally of every layer over the samples of ``run.detail()``."""
    found: dict[str, Tally] = {}
    for x, _ in run.detail():
        for name, (count, activation) in counts_and_activations(run.module.net.snn, x).items():
            tally = tally_of(count, activation, run)
            found[name] = found[name] + tally if name in found else tally
    return found


def row_of(run: Run, layer: str, tally: Tally) -> dict[str, Any]:
    total = tally.totals
    pairs = total["pairs"]
    mean = total["residual"] / pairs
    return {
        "run": run.name,
        "layer": layer,
        "time_steps": run.time_steps,
        "largest": run.largest,
        "neurons": tally.neurons,
        "samples": round(pairs) // tally.neurons,
        "correlation": pearson(tally.sums),
        "mean_absolute_residual": total["error"] / pairs,
        "mean_residual": mean,
        "residual_deviation": math.sqrt(max(0.0, total["square"] / pairs - mean**2)),
        "share_within_one_spike": total["within_one"] / pairs,
        "share_silent": total["silent"] / pairs,
        "share_activation_above_T": total["saturated"] / pairs,
    }


def draw_residuals(axes: Axes, row: Mapping[str, Any], residuals: Tensor) -> None:
    share = residuals / residuals.sum()
    axes.stairs(share.numpy(), residual_edges(row["largest"]).numpy(), fill=True, color=plots.ANN)
    axes.set(yscale="log", xlabel="residual: count - activation", xlim=(-3, 3), ylim=(1e-7, 2))
    axes.axvline(0, color=plots.SNN, lw=1)
    axes.set_title(f"mean |residual| {row['mean_absolute_residual']:.3f}", fontsize=9.5)


def draw(work: Work, run: Run, rows: Sequence[Mapping[str, Any]], found: Mapping[str, Tally]) -> None:
    figure, grid = plt.subplots(
        2,
        len(rows),
        figsize=(1.4 + 2.7 * len(rows), 6.6),
        sharex="row",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    highest = max(int(tally.density.sum(0).nonzero().max()) for tally in found.values())
    shown = min(run.largest, highest + 1)
    for (above, below), row in zip(grid.T, rows, strict=True):
        tally = found[row["layer"]]
        plot.histogram_against_activations(tally.density, ax=above)
        above.set(title=f"{row['layer']}\n{row['neurons']:,} neurons, r = {row['correlation']:.3f}")
        above.set(xlim=(0, 1.25 * shown), ylim=(-0.5, shown + 0.5))
        above.set_ylabel(above.get_ylabel() if above is grid[0, 0] else "")
        draw_residuals(below, row, tally.residuals)
    lines = grid[0, 0].lines
    grid[0, 0].legend(
        lines, [f"count = activation,\nat most {run.largest}"], frameon=False, loc="upper left", fontsize=8.5
    )
    grid[1, 0].set_ylabel("share of neurons and samples")
    figure.colorbar(above.collections[0], ax=list(grid[0]), label="share of neurons and samples", pad=0.01)
    number = rows[0]["samples"]
    work.figure("counts", figure, f"Spike counts against ANN activations: {run.label}; {number} test samples")


def counts(work: Work) -> None:
    """Spike count of every neuron against its ANN activation, given the counts from below."""
    run = work.snns[0]
    found = tallies(run)
    rows = [row_of(run, name, tally) for name, tally in found.items()]
    work.table("counts", rows)
    draw(work, run, rows, found)
