"""Pictures of the results."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Times = dict[str, dict[str, list[float]]]
# Start of the sides' names -> label, colour.
KINDS = {
    "kernel": ("tandem_cuda", "#0b6e4f"),
    "ANN": ("ANN", "#6c757d"),
    "PyTorch,": ("plain PyTorch", "#c8553d"),
    "SpikingJelly": ("SpikingJelly", "#588bae"),
    "snnTorch": ("snnTorch", "#a5a58d"),
}
ENGINES = {"event": ("#c8553d", "-"), "dense": ("#588bae", "-"), "auto": ("#0b6e4f", "--")}


def draw(out: Path, times: Times) -> list[str]:
    """Draw what has been measured; the names of the files written."""
    medians = {
        group: {side: statistics.median(seconds) * 1e3 for side, seconds in sides.items()}
        for group, sides in times.items()
    }
    shapes = {group: sides for group, sides in medians.items() if re.match(r"S\d at 5 %:", group)}
    networks = {group: sides for group, sides in medians.items() if "inference" in group or "training" in group}
    written = []
    if shapes:
        title = "Spiking convolution, T = 8, batch 8, 5 % firing rate"
        _bars(out / "convolutions.png", shapes, title)
        written.append("convolutions.png")
    if networks:
        _bars(out / "networks.png", networks, "Whole networks, T = 8, firing rate 5 %")
        written.append("networks.png")
    if sweep := _sweep(medians):
        _density(out / "density.png", sweep)
        written.append("density.png")
    return written


def _bars(path: Path, groups: dict[str, dict[str, float]], title: str) -> None:
    """One panel a group; of each kind of side the fastest form."""
    panels = {
        group: {
            kind: min(ms for side, ms in sides.items() if side.startswith(kind))
            for kind in KINDS
            if any(side.startswith(kind) for side in sides)
        }
        for group, sides in groups.items()
    }
    bars_each = [len(panel) for panel in panels.values()]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(8, 0.8 + 0.6 * len(panels) + 0.25 * sum(bars_each)),
        gridspec_kw={"height_ratios": bars_each},
        layout="constrained",
        squeeze=False,
    )
    for axis, (group, panel) in zip(axes[:, 0], panels.items(), strict=True):
        names, colours = zip(*(KINDS[kind] for kind in panel), strict=True)
        bars = axis.barh(names, panel.values(), color=colours)
        axis.bar_label(bars, [f"{ms:.0f} ms" if ms >= 100 else f"{ms:.3g} ms" for ms in panel.values()], padding=3)
        axis.margins(x=0.12)
        axis.invert_yaxis()
        axis.set_title(group, loc="left", fontsize="medium")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("milliseconds, median (less is better)")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _sweep(medians: dict[str, dict[str, float]]) -> dict[str, dict[int, dict[str, float]]]:
    """Shape -> density in % -> engine -> ms."""
    sweep: dict[str, dict[int, dict[str, float]]] = {}
    for group, sides in medians.items():
        if match := re.match(r"density, (\S+), (\d+) %: (.*)", group):
            sweep.setdefault(f"{match[1]}: {match[3].split(', ')[0]}", {})[int(match[2])] = sides
    return sweep


def _density(path: Path, sweep: dict[str, dict[int, dict[str, float]]]) -> None:
    columns = min(3, len(sweep))
    rows = -(-len(sweep) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.4 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(sweep) :]:
        axis.remove()
    for axis, (shape, points) in zip(axes.flat, sweep.items(), strict=False):
        for engine, (colour, style) in ENGINES.items():
            values = [sides[engine] for sides in points.values()]
            axis.plot(list(points), values, style, color=colour, marker=".", label=engine)
        axis.set_xscale("symlog", linthresh=1, linscale=0.5)  # logarithmic, but with a place for 0
        axis.set_yscale("log")
        ticks = [0, 1, 2, 5, 10, 20, 50, 100]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_title(shape, fontsize="medium")
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("milliseconds, median")
    for axis in axes[-1]:
        axis.set_xlabel("firing rate of the input, %")
    axes[0, 0].legend(title="engine")
    figure.suptitle("Event-driven and dense engine, and the automatic choice (T = 8, batch 8)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
