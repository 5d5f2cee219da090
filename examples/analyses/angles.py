"""Spike counts and ANN activations as vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import plots
import torch
from finished import Run
from matplotlib.axes import Axes
from torch import Tensor, nn

from analyses.common import Work
from analyses.measures import angles_between, pearson, spread, sums_of
from tandem_cuda import convert
from tandem_cuda.analysis import counts_and_activations

WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
READERS = 256  # random neurons that read counts and activations
BINARISED = math.degrees(math.acos(math.sqrt(2 / math.pi)))  # Anderson & Berg 2018: a Gaussian vector and its signs


def random_network(features: int, width: int, deviation: float) -> nn.Sequential:
    """Gaussian weights; pre-activations with mean 0 and the deviation given, once statistics of a batch are taken."""
    norm = nn.BatchNorm1d(width, momentum=1.0)
    layers = nn.Linear(features, width, bias=False), nn.Linear(width, 2)
    nn.init.normal_(layers[0].weight)
    nn.init.constant_(norm.weight, deviation)
    return nn.Sequential(nn.Flatten(), layers[0], norm, nn.ReLU(), layers[1])


def row_of(network: str, layer: str, steps: int, count: Tensor, activation: Tensor, readers: Tensor) -> dict[str, Any]:
    """Angles between the count and activation vectors [N, F], and what readers [F, R] of either would see."""
    angle = angles_between(count, activation)
    of = spread(angle)
    sums = sums_of(activation.to(readers) @ readers, count.to(readers) @ readers)
    return {
        "network": network,
        "layer": layer,
        "time_steps": steps,
        "neurons": count[0].numel(),
        "samples": len(count),
        "angle": of["mean"],
        "angle_p05": of["p05"],
        "angle_p95": of["p95"],
        "cosine": float(torch.cos(torch.deg2rad(angle)).nanmean()),
        "share_silent_samples": float(angle.isnan().double().mean()),
        "dot_correlation": pearson(sums),
    }


def of_random_layers(run: Run, x: Any, deviation: float) -> list[dict[str, Any]]:
    """Rows of random layers of growing width, given the run's samples x."""
    rows = []
    features, steps = math.prod(x.shape[1:]), run.time_steps
    for width in WIDTHS:
        torch.manual_seed(width)
        ann, example = random_network(features, width, deviation), torch.zeros(1, *x.shape[1:])
        net = convert(ann, steps, mode=run.module.encoding, example=example)
        net.to(run.device).train()
        with torch.no_grad():
            net(x)  # batch norm's statistics
        ((count, activation),) = counts_and_activations(net.snn, x).values()
        readers = torch.randn(width, READERS, dtype=torch.float64).to(count.device)
        rows.append(row_of(random_name(deviation), f"width {width}", steps, count, activation, readers))
    return rows


def of_trained_layers(run: Run) -> list[dict[str, Any]]:
    """Rows of the layers of a run."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for batch, _ in run.detail():
        for name, pair in counts_and_activations(run.module.net.snn, batch).items():
            found.setdefault(name, []).append((pair[0].flatten(1), pair[1].flatten(1)))
    rows = []
    for name, pairs in found.items():
        count, activation = (torch.cat(part) for part in zip(*pairs, strict=True))
        torch.manual_seed(0)
        readers = torch.randn(count.shape[1], READERS).to(count.device)
        rows.append(row_of(run.name, name, run.time_steps, count, activation, readers))
    return rows


def random_name(deviation: float) -> str:
    return f"random, deviation {deviation:g}"


def draw_random(left: Axes, right: Axes, rows: Sequence[Mapping[str, Any]], deviation: float, colour: str) -> None:
    widths = [row["neurons"] for row in rows]
    label = f"random weights, deviation of pre-activations {deviation:g} threshold{'s' * (deviation != 1)}"
    left.plot(widths, [row["angle"] for row in rows], "o-", ms=4, color=colour, label=label)
    low, high = ([row[name] for row in rows] for name in ("angle_p05", "angle_p95"))
    left.fill_between(widths, low, high, color=colour, alpha=0.15, lw=0)
    right.plot(widths, [row["dot_correlation"] for row in rows], "o-", ms=4, color=colour)


def draw_trained(left: Axes, right: Axes, rows: Sequence[Mapping[str, Any]], run: Run, colour: str) -> None:
    widths, means = [row["neurons"] for row in rows], [row["angle"] for row in rows]
    # The mean of few samples may lie outside the percentiles; an error bar has no negative length.
    low = [max(0.0, row["angle"] - row["angle_p05"]) for row in rows]
    high = [max(0.0, row["angle_p95"] - row["angle"]) for row in rows]
    label = f"trained, {run.label}"
    left.errorbar(widths, means, (low, high), fmt="s", ms=5, color=colour, capsize=2, lw=1, label=label)
    right.plot(widths, [row["dot_correlation"] for row in rows], "s", ms=5, color=colour)


def annotate(axes: Axes, rows: Sequence[Mapping[str, Any]], colour: str) -> None:
    """The names of a run's layers, beside their angles."""
    for row in rows:
        name, at = row["layer"].rpartition(".")[2], (row["neurons"], row["angle"])
        axes.annotate(name, at, (6, 3), textcoords="offset points", fontsize=8, color=colour)


def draw_binarised(axes: Axes) -> None:
    axes.axhline(BINARISED, color=plots.ANN, ls=":", lw=1.2)
    axes.annotate(
        f"a Gaussian vector and its signs: {BINARISED:.0f}°",
        (0.98, BINARISED),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=plots.ANN,
    )


def draw(work: Work, rows: Sequence[Mapping[str, Any]], deviations: Sequence[float], samples: int) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for deviation, colour in zip(deviations, (plots.GREY, "black"), strict=False):
        of = [row for row in rows if row["network"] == random_name(deviation)]
        draw_random(left, right, of, deviation, colour)
    for run in work.snns:
        of = [row for row in rows if row["network"] == run.name]
        draw_trained(left, right, of, run, work.colour(run))
        if run is work.snns[0]:
            annotate(left, of, work.colour(run))
    draw_binarised(left)
    left.set(
        title="Angle; bars and bands: 5 % to 95 % of samples", ylabel="degrees", ylim=(0, 92), yticks=range(0, 91, 15)
    )
    correlations = [row["dot_correlation"] for row in rows if not math.isnan(row["dot_correlation"])]
    right.set(title=f"Sums of {READERS} random neurons that read the layer", ylim=(min(0.5, *correlations), 1.01))
    right.set_ylabel("correlation of W · counts with W · activations")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("neurons of the layer")
        axes.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    work.figure("angles", figure, f"Spike counts and ANN activations as vectors: {work.source}, {samples} test samples")


def angles(work: Work) -> None:
    """Angle between count vector and activation vector, random layers of growing width and the layers of runs."""
    first = work.snns[0]
    samples = first.detail()
    x = torch.cat([x for x, _ in samples]) if isinstance(samples[0][0], Tensor) else samples[0][0]
    deviations = sorted({1.0, max(1.0, first.time_steps / 4)})
    rows = [row for deviation in deviations for row in of_random_layers(first, x, deviation)]
    rows += [row for run in work.snns for row in of_trained_layers(run)]
    work.table("angles", rows)
    draw(work, rows, deviations, x.shape[0])
