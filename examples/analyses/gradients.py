"""The tandem gradient against the ANN's."""

from __future__ import annotations

import copy
import functools
from dataclasses import asdict
from typing import Any

import matplotlib.pyplot as plt
import plots
import torch
from finished import Run
from tandem_module import TandemModule
from torch import Tensor

from analyses.common import Work, log_axis
from tandem_cuda.analysis import diagnose


def untrained(run: Run) -> TandemModule:
    """A copy with fresh weights, and statistics of batch norm from a few samples."""
    module = copy.deepcopy(run.module)
    torch.manual_seed(run.module.seed)
    for layer in module.net.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    module.net.train()
    with torch.no_grad():
        for x, _ in run.detail():
            module.net(x)
    return module.eval()


def gradients(work: Work) -> None:
    """The tandem gradient against the ANN's, layer by layer."""
    rows: list[dict[str, Any]] = []
    for run in work.snns:
        states = {"trained": run.module}
        if run.module.net.levels is None or run.module.level is not None:  # no thresholds measured on these weights
            states = {"untrained": untrained(run), **states}
        for state, module in states.items():
            tables = []
            for x, target in run.detail():
                tables.append(diagnose(module.net.snn, x, functools.partial(loss_of, module, target)))
            for layers in zip(*tables, strict=True):
                row: dict[str, Any] = {"run": run.name, "weights": state, "layer": layers[0].name}
                row |= {"time_steps": run.time_steps, "batches": len(layers)}
                for name in list(asdict(layers[0]))[1:]:
                    values = torch.tensor([getattr(layer, name) for layer in layers], dtype=torch.float64)
                    row |= {name: float(values.mean()), f"{name}_deviation": float(values.std(correction=0))}
                rows.append(row)
    work.table("gradients", rows)

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.6), layout="constrained")
    for run in work.snns:
        for state, style in (("untrained", "s:"), ("trained", "o-")):
            of = [row for row in rows if (row["run"], row["weights"]) == (run.name, state)]
            if not of:
                continue
            names, colour = [row["layer"] for row in of], work.colour(run)
            for axes, what in ((left, "gradient_cosine"), (right, "gradient_norm_ratio")):
                means = torch.tensor([row[what] for row in of])
                deviations = torch.tensor([row[f"{what}_deviation"] for row in of])
                if axes is right:  # stays positive on the logarithmic axis
                    deviations = torch.stack([deviations.minimum(means * 0.9), deviations])
                label = f"{run.label}, {state}" if axes is left else None
                axes.errorbar(
                    names, means.numpy(), deviations.numpy(), fmt=style, ms=5, capsize=3, color=colour, label=label
                )
    least = -1 if any(row["gradient_cosine"] - row["gradient_cosine_deviation"] < 0 for row in rows) else 0
    left.set(title="Direction", ylabel="cosine of the angle between the gradients", ylim=(least - 0.05, 1.05))
    left.axhline(0, color=plots.GREY, lw=0.8)
    log_axis(right)
    right.set(title="Length", ylabel="norm: tandem gradient / ANN gradient")
    for axes in (left, right):
        axes.axhline(1, color=plots.GREY, ls="--", lw=1)
        axes.set_xlabel("layer, from the input")
        axes.tick_params(axis="x", rotation=25)
        axes.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    size = len(work.snns[0].detail()[0][1])
    title = f"Tandem gradient against the ANN's: mean and deviation over batches of {size} test samples"
    work.figure("gradients", figure, title)


def loss_of(module: TandemModule, target: Tensor, output: Tensor) -> Tensor:
    return module.loss_of(output, target)
