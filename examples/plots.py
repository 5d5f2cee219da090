"""The pictures of mnist.py and early_exit.py, and the style of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files, needs no display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullFormatter, PercentFormatter
from torch import Tensor

from tandem_cuda import AccuracyCurve, OperatingPoint, SpikeTrain, plot

SNN, ANN, GREY = "#c8553d", "#28666e", "#8a8a8a"

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


def spike_raster(image: Tensor, label: int, trains: Mapping[str, SpikeTrain], path: Path) -> None:
    """Draw the spikes that one digit [28, 28] causes: the first sample of the spike train of each layer."""
    figure = plt.figure(figsize=(3 + 2.6 * len(trains), 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 1 + len(trains), height_ratios=(1, 4))
    picture = figure.add_subplot(grid[1, 0])
    picture.imshow(image, cmap="gray_r", vmin=0, vmax=1)
    picture.set(title=f'input: a "{label}"', xticks=[], yticks=[])
    picture.spines[:].set_visible(True)
    picture.spines[:].set_color(GREY)

    first_rate: Axes | None = None
    for column, (name, train) in enumerate(trains.items(), start=1):
        raster = plot.spike_raster(train, ax=figure.add_subplot(grid[1, column]))
        spikes = train.to_dense()[:, 0].flatten(1).cpu()
        rate = figure.add_subplot(grid[0, column], sharex=raster, sharey=first_rate)
        rate.bar(range(1, len(spikes) + 1), spikes.mean(1), color=SNN, width=0.8)
        rate.set(title=f"{name}: {spikes.shape[1]:,} neurons", xlim=raster.get_xlim())
        rate.tick_params(labelbottom=False)
        rate.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        rate.yaxis.set_major_locator(MaxNLocator(3))
        if first_rate is None:
            first_rate = rate
            rate.set_ylabel("neurons\nfiring")
            raster.set_ylabel("neuron (a line is a spike)")
        else:
            rate.tick_params(labelleft=False)
            raster.set_ylabel("")
    figure.suptitle("Spikes caused by one test digit")
    save(figure, path)


def accuracy_against_synops(
    panels: Mapping[str, tuple[Mapping[str, Sequence[tuple[int, float, float]]], tuple[float, float] | None]],
    path: Path,
) -> None:
    """One panel an experiment: T, SynOps and accuracy of each network, and MACs and accuracy of the ANN."""
    size = (2.6 + 6 * len(panels), 5.2)
    figure, row = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axes, (title, (curves, ann)) in zip(row[0], panels.items(), strict=True):
        points = {name: [OperatingPoint(None, t, y, x) for t, x, y in curve] for name, curve in curves.items()}
        plot.accuracy_against_synops(points, ann=ann, ax=axes)
        axes.get_legend().remove()
        axes.set(title=title, ylabel="test accuracy", xscale="log", yscale="logit")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(*row[0][0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right upper")
    figure.suptitle("Accuracy against operations. Numbers: T", fontsize=11)
    save(figure, path)


def accuracy_at_time_steps(
    one: Mapping[str, Mapping[int, float]], each: Mapping[str, Mapping[int, float]], ann: float, title: str, path: Path
) -> None:
    """Accuracy by T: of networks that run at every T with the same weights, and where each T has weights of its own."""
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    axes.axhline(ann, color=ANN, ls="--", lw=1.3, label=f"ANN: {ann:.1%}")
    for (name, accuracies), colour in zip(one.items(), (SNN, "#e0a458"), strict=False):
        axes.plot([*accuracies], [*accuracies.values()], "o-", color=colour, label=name)
    for (name, accuracies), marker in zip(each.items(), "s^", strict=False):
        axes.plot([*accuracies], [*accuracies.values()], f"{marker}:", color=GREY, lw=1, label=name)
    axes.set(xlabel="time steps T", ylabel="test accuracy", title=title)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 8]))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    save(figure, path)


def values_against_activations(layers: Mapping[str, tuple[Tensor, Tensor]], time_steps: int, path: Path) -> None:
    """How well radix spikes follow the ANN; layers: value and ANN activation of the same neurons, [N, ...]."""
    figure, row = plt.subplots(
        1,
        len(layers),
        figsize=(1.2 + 3 * len(layers), 4.1),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (name, (value, activation)) in zip(row[0], layers.items(), strict=True):
        plot.counts_against_activations(value, activation, time_steps, radix=True, ax=axes)
        axes.set(title=f"{name}: {axes.get_title()}")
        axes.label_outer()
    row[0, 0].legend(frameon=False, loc="lower right", fontsize=9)
    figure.colorbar(axes.collections[0], ax=row[0], label="share of neurons and test digits", pad=0.01)
    figure.suptitle("Value of every neuron's spikes against its ANN twin, both given the spikes of the layer below")
    save(figure, path)


def early_exit(curve: AccuracyCurve, chosen: float, path: Path) -> None:
    """Accuracy against mean time steps and SynOps: all digits stop together, or each when it is sure."""
    figure, row = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for axes, cost in zip(row, ("steps", "synops"), strict=True):
        plot.accuracy_against_synops(curve, cost=cost, colors=(ANN, SNN), ax=axes)
        for point in curve.over_confidence:
            if point.exit_confidence == chosen:
                at = (getattr(point, cost), point.accuracy)
                axes.plot(*at, "s", ms=9, color=SNN)
                axes.annotate(
                    f"confidence {chosen:g}", at, (0, -22), textcoords="offset points", ha="center", color=SNN
                )
    row[0].set_ylabel(f"accuracy on {curve.samples} test digits")
    row[1].set_ylabel("")
    row[1].get_legend().remove()
    figure.suptitle("What time buys: accuracy against time steps and against synaptic operations")
    save(figure, path)
