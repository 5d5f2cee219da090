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
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from analyses.common import Work
from analyses.measures import pearson, sums_of
from tandem_cuda.diagnostics import counts_and_activations


@dataclass(frozen=True)
class Bins:
    """The bins of the histograms, for a network of so many time steps."""

    steps: int

    @property
    def highest(self) -> float:
        """The activation where the histogram ends."""
        return 1.25 * self.steps

    @property
    def per_unit(self) -> int:
        """Bins for each threshold of activation."""
        return max(1, round(80 / self.steps))

    @property
    def columns(self) -> int:
        return math.ceil(self.highest * self.per_unit)

    @property
    def residuals(self) -> Tensor:
        """Edges of the bins of residuals."""
        return torch.arange(-self.steps - 0.5, self.steps + 0.51, 0.1)


@dataclass(frozen=True)
class Tally:
    """What is kept of a layer's pairs of count and activation; tallies of different batches add up."""

    neurons: int
    density: Tensor  # pairs by activation and count
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


def tally_of(count: Tensor, activation: Tensor, bins: Bins) -> Tally:
    """The tally of one layer on one batch, [N, ...]."""
    neurons = count[0].numel()
    count, activation = count.flatten().cpu(), activation.flatten().cpu()
    column = (activation * bins.per_unit).long().clamp(0, bins.columns - 1)
    rows = bins.steps + 1
    flat = torch.bincount(column * rows + count.long(), minlength=bins.columns * rows)
    residual = (count - activation).double()
    edges = bins.residuals
    inside = residual.clamp(float(edges[0]), float(edges[-1]))
    parts = {
        "pairs": torch.ones_like(residual),
        "error": residual.abs(),
        "residual": residual,
        "square": residual**2,
        "silent": (count == 0).double(),
        "within_one": (residual.abs() <= 1).double(),
        "saturated": (~(activation < bins.steps)).double(),
    }
    return Tally(
        neurons,
        flat.view(bins.columns, rows),
        torch.histogram(inside.float(), edges).hist.double(),
        sums_of(activation, count),
        {name: float(part.sum()) for name, part in parts.items()},
    )


def tallies(run: Run, bins: Bins) -> dict[str, Tally]:
    """The tally of every layer over the samples of ``run.detail()``."""
    found: dict[str, Tally] = {}
    for x, _ in run.detail():
        for name, (count, activation) in counts_and_activations(run.module.net.snn, x).items():
            tally = tally_of(count, activation, bins)
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


def draw_density(axes: Axes, row: Mapping[str, Any], density: Tensor, bins: Bins, shown: int) -> tuple[Any, Any]:
    """Draw counts, up to the one given, against activations; returns mesh and line, for colour bar and legend."""
    share = density.T.double() / density.sum()
    mesh = axes.pcolormesh(
        (torch.arange(bins.columns + 1) / bins.per_unit).numpy(),
        (torch.arange(bins.steps + 2) - 0.5).numpy(),
        share.where(share > 0, torch.nan).numpy(),
        cmap="viridis_r",
        norm=LogNorm(1e-7, 1),
        rasterized=True,
    )
    (line,) = axes.plot([0, bins.steps, bins.highest], [0, bins.steps, bins.steps], color=plots.SNN, lw=1.3)
    axes.set(title=f"{row['layer']}\n{row['neurons']:,} neurons, r = {row['correlation']:.3f}")
    axes.set(xlabel="ANN activation / threshold", xlim=(0, 1.25 * shown), ylim=(-0.5, shown + 0.5))
    return mesh, line


def draw_residuals(axes: Axes, row: Mapping[str, Any], residuals: Tensor, bins: Bins) -> None:
    share = residuals / residuals.sum()
    axes.stairs(share.numpy(), bins.residuals.numpy(), fill=True, color=plots.ANN)
    axes.set(yscale="log", xlabel="residual: count - activation", xlim=(-3, 3), ylim=(1e-7, 2))
    axes.axvline(0, color=plots.SNN, lw=1)
    axes.set_title(f"mean |residual| {row['mean_absolute_residual']:.3f} spikes", fontsize=9.5)


def draw(work: Work, run: Run, rows: Sequence[Mapping[str, Any]], found: Mapping[str, Tally], bins: Bins) -> None:
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
    shown = min(bins.steps, highest + 1)
    for (above, below), row in zip(grid.T, rows, strict=True):
        tally = found[row["layer"]]
        mesh, line = draw_density(above, row, tally.density, bins, shown)
        draw_residuals(below, row, tally.residuals, bins)
    grid[0, 0].set_ylabel(f"spike count in T = {bins.steps} steps")
    grid[0, 0].yaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 0].legend([line], ["count = activation,\nat most T"], frameon=False, loc="upper left", fontsize=8.5)
    grid[1, 0].set_ylabel("share of neurons and samples")
    figure.colorbar(mesh, ax=list(grid[0]), label="share of neurons and samples", pad=0.01)
    number = rows[0]["samples"]
    work.figure("counts", figure, f"Spike counts against ANN activations: {run.label}; {number} test samples")


def counts(work: Work) -> None:
    """Spike count of every neuron against its ANN activation, given the counts from below."""
    run = work.snns[0]
    bins = Bins(run.time_steps)
    found = tallies(run, bins)
    rows = [row_of(run, name, tally) for name, tally in found.items()]
    work.table("counts", rows)
    draw(work, run, rows, found, bins)
