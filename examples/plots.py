"""The pictures of mnist.py and early_exit.py, and the style of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files, needs no display

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, PercentFormatter
from torch import Tensor

from tandem_cuda import AccuracyCurve

SNN, ANN, GREY = "#c8553d", "#28666e", "#8a8a8a"
RASTER_NEURONS = 150

plt.rcParams.update(
    {
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.titlesize": 13,
        "savefig.dpi": 150,
    }
)


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)


def training_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]], test_accuracies: Mapping[str, float], path: Path
) -> None:
    """Loss and training accuracy of every epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (name, history), colour in zip(histories.items(), (SNN, ANN), strict=True):
        epochs = range(1, len(history) + 1)
        left.plot(epochs, [h["loss"] for h in history], "o-", ms=3, color=colour, label=name)
        label = f"{name} (test digits, after training: {test_accuracies[name]:.1%})"
        right.plot(epochs, [h["accuracy"] for h in history], "o-", ms=3, color=colour, label=label)
    left.set(title="Loss", xlabel="epoch", ylabel="cross entropy", yscale="log")
    right.set(title="Accuracy", xlabel="epoch", ylabel="accuracy on training digits")
    right.yaxis.set_major_formatter(PercentFormatter(1))
    for axes, corner in ((left, "upper right"), (right, "lower right")):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc=corner)
    figure.suptitle("Training on the same distorted digits, batch by batch")
    save(figure, path)


def spike_raster(image: Tensor, label: int, trains: Mapping[str, Tensor], path: Path) -> None:
    """The spikes that one digit [28, 28] causes; trains: spikes [T, ...] of each layer."""
    figure = plt.figure(figsize=(3 + 2.6 * len(trains), 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 1 + len(trains), height_ratios=(1, 4))
    picture = figure.add_subplot(grid[1, 0])
    picture.imshow(image, cmap="gray_r", vmin=0, vmax=1)
    picture.set(title=f'input: a "{label}"', xticks=[], yticks=[])
    picture.spines[:].set_visible(True)
    picture.spines[:].set_color(GREY)

    highest = max(float(spikes.flatten(1).mean(1).max()) for spikes in trains.values())
    first_rate: Axes | None = None
    for column, (name, spikes) in enumerate(trains.items(), start=1):
        spikes = spikes.flatten(1)
        steps, neurons = spikes.shape
        time = range(1, steps + 1)
        active = spikes.any(0).nonzero().flatten()
        chosen = active[torch.linspace(0, max(len(active) - 1, 0), min(RASTER_NEURONS, len(active))).long()]

        rate = figure.add_subplot(grid[0, column], sharey=first_rate)
        rate.bar(time, spikes.mean(1), color=SNN, width=0.8)
        rate.set(
            title=f"{name}: {neurons:,} neurons", xlim=(0.4, steps + 0.6), xticks=[], ylim=(0, 1.1 * highest + 1e-9)
        )
        rate.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        rate.yaxis.set_major_locator(MaxNLocator(3))

        raster = figure.add_subplot(grid[1, column])
        step, neuron = spikes[:, chosen].nonzero(as_tuple=True)
        raster.hlines(neuron, step + 0.6, step + 1.4, color="black", lw=1.1)
        raster.set(
            xlim=(0.4, steps + 0.6),
            ylim=(max(len(chosen), 10) - 0.2, -0.8),
            xlabel="time step",
            title=f"{len(chosen):,} of {len(active):,} that fire",
        )
        raster.xaxis.set_major_locator(MaxNLocator(min(8, steps), integer=True))
        raster.yaxis.set_major_locator(MaxNLocator(integer=True))
        if first_rate is None:
            first_rate = rate
            rate.set_ylabel("neurons\nfiring")
            raster.set_ylabel("neuron (a line is a spike)")
        else:
            rate.tick_params(labelleft=False)
    figure.suptitle("Spikes caused by one test digit")
    save(figure, path)


def accuracy_against_synops(panels: Mapping[str, Mapping[str, Sequence[tuple[str, float, float]]]], path: Path) -> None:
    """One panel an experiment: a curve over T for each network, and the ANN's point at its MACs."""
    size = (2.6 + 6 * len(panels), 5.2)
    figure, row = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axes, (title, curves) in zip(row[0], panels.items(), strict=True):
        for (name, points), colour in zip(curves.items(), plt.get_cmap("tab10").colors, strict=False):
            labels, operations, accuracies = zip(*points, strict=True)
            alone = len(points) == 1
            axes.plot(operations, accuracies, "*" if alone else "o-", ms=13 if alone else 4, color=colour, label=name)
            for label, x, y in zip(labels, operations, accuracies, strict=True):
                axes.annotate(label, (x, y), (3, 3), textcoords="offset points", fontsize=7, color=colour)
        axes.set(title=title, xlabel="SynOps (ANN: MACs) per sample, millions", xscale="log")
        axes.set(ylabel="test accuracy", yscale="logit")
        axes.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
    figure.legend(*row[0][0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right upper")
    figure.suptitle("Accuracy against operations. Numbers: T", fontsize=11)
    save(figure, path)


def count_against_activation(layers: Mapping[str, tuple[Tensor, Tensor]], time_steps: int, path: Path) -> None:
    """How well spike counts follow the ANN; layers: ANN activation and spike count of the same neurons, [N, ...]."""
    figure, row = plt.subplots(
        1,
        len(layers),
        figsize=(1.2 + 3 * len(layers), 4.1),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    highest = time_steps * 1.25
    bins_per_unit = 10 if time_steps <= 16 else 1
    bins = int(highest * bins_per_unit)
    mesh = None
    for axes, (name, (activation, count)) in zip(row[0], layers.items(), strict=True):
        activation, count = activation.flatten().double().cpu(), count.flatten().double().cpu()
        correlation = float(torch.corrcoef(torch.stack([activation, count]))[0, 1])
        x = (activation.clamp(0, highest - 1e-6) * bins_per_unit).long()
        flat = x * (time_steps + 1) + count.long()
        share = torch.bincount(flat, minlength=(bins + 1) * (time_steps + 1)).view(-1, time_steps + 1)[:bins].T
        share = share.double() / share.sum()
        edges = torch.arange(bins + 1) / bins_per_unit
        mesh = axes.pcolormesh(
            edges,
            torch.arange(time_steps + 2) - 0.5,
            share.where(share > 0, torch.nan),
            cmap="viridis_r",
            norm=LogNorm(1e-6, 1),
            rasterized=True,
        )
        (line,) = axes.plot([0, time_steps, highest], [0, time_steps, time_steps], color=SNN, lw=1.3)
        axes.set(title=f"{name}: correlation {correlation:.3f}", xlabel="ANN activation, relu(v) / threshold")
        axes.set(xlim=(0, highest), ylim=(-0.5, time_steps + 0.5))
    row[0, 0].set_ylabel(f"spike count in {time_steps} steps")
    row[0, 0].yaxis.set_major_locator(MaxNLocator(integer=True))
    row[0, 0].legend([line], ["count = activation, at most T"], frameon=False, loc="lower right", fontsize=9)
    figure.colorbar(mesh, ax=row[0], label="share of neurons and test digits", pad=0.01)
    figure.suptitle("Spike count of every neuron against its ANN twin, both given the spike counts of the layer below")
    save(figure, path)


def accuracy_over_time(accuracies: Sequence[float], ann_accuracy: float, digits: int, path: Path) -> None:
    """Accuracy of a read-out after t = 1..T time steps."""
    steps = range(1, len(accuracies) + 1)
    figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    axes.axhline(ann_accuracy, color=ANN, ls="--", lw=1.3, label=f"ANN: {ann_accuracy:.1%}")
    axes.plot(steps, accuracies, "o-", color=SNN, label=f"SNN: {accuracies[-1]:.1%} after {len(accuracies)} steps")
    axes.set(xlabel="time steps until the read-out decides", ylabel=f"accuracy on {digits} test digits", ylim=(0, 1.04))
    axes.set_title("Accuracy against time")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    save(figure, path)


def early_exit(curve: AccuracyCurve, chosen: float, path: Path) -> None:
    """Accuracy against mean time steps and SynOps: all digits stop together, or each when it is sure."""
    figure, row = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    ways = (
        ("all digits stop together", curve.over_time, ANN, "o-"),
        ("each stops when it is sure", curve.over_confidence, SNN, "s-"),
    )
    for axes, cost in zip(row, ("steps", "synops"), strict=True):
        for label, points, colour, style in ways:
            costs = [getattr(point, cost) for point in points]
            axes.plot(costs, [point.accuracy for point in points], style, ms=4, color=colour, label=label)
        for point in curve.over_confidence:
            if point.exit_confidence == chosen:
                at = (getattr(point, cost), point.accuracy)
                axes.plot(*at, "s", ms=9, color=SNN)
                axes.annotate(
                    f"confidence {chosen:g}", at, (0, -22), textcoords="offset points", ha="center", color=SNN
                )
        axes.grid(alpha=0.25)
    row[0].set(xlabel="time steps of a digit, mean", ylabel=f"accuracy on {curve.samples} test digits")
    row[1].set(xlabel="synaptic operations of a digit, mean")
    row[0].yaxis.set_major_formatter(PercentFormatter(1))
    row[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    row[1].xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    row[0].legend(frameon=False, loc="lower right")
    figure.suptitle("What time buys: accuracy against time steps and against synaptic operations")
    save(figure, path)
