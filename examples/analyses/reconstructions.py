"""Images out of autoencoders."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import plots
import torch
from torch import Tensor

from analyses.common import NotApplicable, Work
from analyses.time_steps import error_against_time, figures_at

SHOWN_IMAGES = 8


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
            with run.at(steps) as net:
                pictures[f"T = {steps}"] = net(images)
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
