"""Weights of few bits."""

from __future__ import annotations

import copy
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import PercentFormatter
from tandem_module import evaluate
from torch import nn

from analyses.common import Work
from tandem_cuda import quantise, unquantise
from tandem_cuda.quantisation import quantiser


def rounded(net: nn.Module, number: int | None) -> nn.Module:
    """A copy with weights of so many bits, rounded once; None: in full precision."""
    net = copy.deepcopy(net)
    values = []
    if number is not None:
        quantise(net, number)
        values = [(layer, layer.weight.detach()) for layer in net.modules() if quantiser(layer) is not None]
    unquantise(net)
    with torch.no_grad():
        for layer, value in values:
            layer.weight.copy_(value)
    return net


def bits(work: Work) -> None:
    """Weights rounded after training, in both networks."""
    rows = []
    what = "accuracy" if work.runs[0].classifies else "loss"
    for run in work.runs:
        trained_with = next((q.bits for q in map(quantiser, run.module.net.modules()) if q is not None), None)
        for number in [*work.bits, None]:
            tested = evaluate(run.module, rounded(run.module.net, number), run.batches(), run.device)
            row: dict[str, Any] = {"run": run.name, "network": "SNN" if run.spiking else "ANN"}
            row["time_steps"] = run.time_steps if run.spiking else None
            row |= {"bits": 32 if number is None else number, "trained_with_bits": trained_with}
            rows.append(row | {"loss": tested["loss"], "accuracy": tested.get("accuracy")})
    work.table("bits", rows)

    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    labels = [*map(str, work.bits), "32 (float)"]
    for run in work.runs:
        values = [row[what] for row in rows if row["run"] == run.name]
        axes.plot(labels, values, "o-" if run.spiking else "s--", ms=5, color=work.colour(run), label=run.label)
    axes.set(xlabel="bits of a weight", ylabel="mean squared error, test set")
    if what == "accuracy":
        axes.set(ylabel="accuracy, test set", ylim=(0, 1.03))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Rounded after training, one scale per output channel")
    axes.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    work.figure(
        "bits", figure, f"{'Accuracy' if what == 'accuracy' else 'Error'} against bits of the weights: {work.source}"
    )
