"""Plots of spikes, activity and accuracy with matplotlib.

Needs ``pip install tandem_cuda[plot]``. Every function draws into ``ax``, or into a new figure of pyplot if ``ax`` is
None, and returns the Axes, so that titles, limits and colours can be changed afterwards::

    figure, (left, right) = plt.subplots(1, 2)
    plot.firing_rates(synops(snn, loader), ax=left)
    plot.accuracy_against_synops(frozen.accuracy_curve(loader), ax=right)
    figure.savefig("network.png")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from .analysis.activity_table import ActivityTable, LayerActivity
from .freeze import AccuracyCurve, OperatingPoint
from .neuron import RadixIF
from .ops import checks
from .spike_train import SpikeTrain

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm, is_color_like
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
except ImportError as error:
    raise ImportError(f"tandem_cuda.plot needs matplotlib ({error}): pip install tandem_cuda[plot]") from error

__all__ = [
    "accuracy_against_synops",
    "count_histogram",
    "counts_against_activations",
    "firing_rates",
    "histogram_against_activations",
    "spike_raster",
]


def spike_raster(spikes: SpikeTrain | Tensor, *, sample: int = 0, neurons: int = 150, ax: Axes | None = None) -> Axes:
    """Draw when the neurons of a layer spike for one sample: a line is a spike, a row a neuron.

    Neurons that do not spike are left out. If more than ``neurons`` spike, evenly spaced ones are drawn. The title
    says how many.

    Args:
        spikes: a SpikeTrain [N, ...], or a Tensor [T, N, ...] of zeros and other values, which are spikes.
        sample: the index of the sample.
        neurons: the most neurons to draw.
        ax: where to draw.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``spikes`` has too few dimensions or no time step, there is no such sample, or ``neurons`` is less
            than 1.

    Examples:
        >>> from tandem_cuda import plot
        >>> spikes = SpikeTrain.from_dense((torch.rand(8, 1, 50) < 0.2).float())
        >>> axes = plot.spike_raster(spikes)
        >>> axes.figure.savefig("spikes.png")
    """
    op = "spike_raster"
    if not isinstance(spikes, (SpikeTrain, Tensor)):
        raise TypeError(f"{op}: spikes must be a SpikeTrain or a Tensor, got {type(spikes).__name__}")
    if isinstance(spikes, Tensor) and spikes.dim() < 3:
        raise ValueError(f"{op}: spikes must be [T, N, ...], got {list(spikes.shape)}")
    if isinstance(spikes, Tensor) and len(spikes) == 0:
        raise ValueError(f"{op}: spikes must have at least one time step, got {list(spikes.shape)}")
    samples = len(spikes) if isinstance(spikes, SpikeTrain) else spikes.shape[1]
    if samples == 0:
        raise ValueError(f"{op}: spikes must have at least one sample, got none")
    for argument, number in (("sample", sample), ("neurons", neurons)):
        checks.check_int(op, argument, number)
    if not 0 <= sample < samples:
        raise ValueError(f"{op}: sample must be from 0 to {samples - 1}, got {sample}")
    if neurons < 1:
        raise ValueError(f"{op}: neurons must be at least 1, got {neurons}")
    ax = _axes(op, ax)
    if isinstance(spikes, SpikeTrain):
        dense = spikes.detach().rearranged(lambda bits: bits[:, sample : sample + 1]).to_dense()[:, 0]
    else:
        dense = spikes[:, sample].detach()
    fired = dense.flatten(1).cpu() != 0
    steps = len(fired)
    active = fired.any(0).nonzero().flatten()
    shown = active[torch.linspace(0, max(len(active) - 1, 0), min(neurons, len(active))).long()]
    step, row = fired[:, shown].nonzero(as_tuple=True)
    ax.hlines(row.tolist(), (step + 0.6).tolist(), (step + 1.4).tolist(), color="black", lw=1.1)
    ax.set(xlim=(0.4, steps + 0.6), ylim=(max(len(shown), 10) - 0.2, -0.8), xlabel="time step", ylabel="neuron")
    ax.set_title(f"{len(shown):,} of {len(active):,} active neurons")
    ax.xaxis.set_major_locator(MaxNLocator(min(8, steps), integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def count_histogram(counts: Tensor, activations: Tensor, time_steps: int, *, radix: bool = False) -> Tensor:
    """Count the pairs of spike count and ANN activation of a layer, for :func:`histogram_against_activations`.

    Histograms of several batches add up.

    Args:
        counts: spike counts, whole numbers from 0 to T, of any shape; or values of radix spikes, from 0 to 2^T - 1.
        activations: the ANN's activations divided by the threshold, in the shape of ``counts``;
            :func:`tandem_cuda.analysis.counts_and_activations` returns both.
        time_steps: T.
        radix: whether the spikes are radix spikes.

    Returns:
        int64 [A, L + 1] on the CPU, where L is the largest count or value: pairs by activation (A bins of equal width
        from 0 to 1.25 L; the last one also has all activations above, the first one all below) and by count.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the shapes differ, a count is no whole number from 0 to L, an activation is not finite, or T is
            more than 8 with radix spikes.

    Examples:
        >>> from tandem_cuda import plot
        >>> activations = 4 * torch.rand(1000)
        >>> histogram = plot.count_histogram(activations.floor(), activations, time_steps=4)
        >>> histogram.sum().item()
        1000
    """
    return _count_histogram("count_histogram", counts, activations, time_steps, radix)


def _count_histogram(op: str, counts: Tensor, activations: Tensor, time_steps: int, radix: bool) -> Tensor:
    checks.check_time_steps(op, time_steps)
    if not isinstance(radix, bool):
        raise TypeError(f"{op}: radix must be True or False, got {type(radix).__name__}")
    if radix:
        checks.check_radix_steps(op, time_steps)
    largest = RadixIF().levels(time_steps) if radix else time_steps
    for argument, tensor in (("counts", counts), ("activations", activations)):
        checks.check_tensor(op, argument, tensor)
        if tensor.is_complex():
            raise TypeError(f"{op}: {argument} must have a real dtype, got {tensor.dtype}")
    checks.check_shape(op, "activations", activations, counts.shape)
    counts, activations = counts.detach().flatten().cpu(), activations.detach().flatten().cpu()
    wrong = (counts < 0) | (counts > largest) | (counts != counts.long())
    if wrong.any():
        but = "" if radix else "; pass radix=True with values of radix spikes"
        got = counts[wrong][0].item()
        raise ValueError(f"{op}: counts must be whole numbers from 0 to {largest}, got {got}{but}")
    if not activations.isfinite().all():
        raise ValueError(f"{op}: activations must be finite, got NaN or infinity")
    columns, rows = _columns(largest), largest + 1
    column = (activations.double() * columns / (1.25 * largest)).clamp(0, columns - 1).long()
    return torch.bincount(column * rows + counts.long(), minlength=columns * rows).view(columns, rows)


def histogram_against_activations(histogram: Tensor, *, ax: Axes | None = None) -> Axes:
    """Draw a histogram of :func:`count_histogram`, and the line on which count = activation, at most the largest one.

    The colours are the shares of all pairs. ``ax.figure.colorbar(ax.collections[0], ax=ax)`` adds their scale.

    Args:
        histogram: int64 [A, L + 1].
        ax: where to draw.

    Raises:
        TypeError: ``histogram`` is no int64 Tensor, or ``ax`` no Axes.
        ValueError: ``histogram`` has another shape, or has a negative number or none but zeros.

    Examples:
        >>> from tandem_cuda import plot
        >>> activations = 4 * torch.rand(1000)
        >>> histogram = plot.count_histogram(activations.floor(), activations, time_steps=4)
        >>> axes = plot.histogram_against_activations(histogram)
    """
    return _draw_histogram("histogram_against_activations", histogram, ax)


def _draw_histogram(op: str, histogram: Tensor, ax: Axes | None) -> Axes:
    checks.check_tensor(op, "histogram", histogram)
    shape = list(histogram.shape)
    if len(shape) != 2 or shape[1] < 2 or shape[0] != _columns(shape[1] - 1):
        raise ValueError(f"{op}: histogram must be [A, L + 1] as from count_histogram, got {shape}")
    if histogram.dtype != torch.int64:
        raise TypeError(f"{op}: histogram must be int64, got {histogram.dtype}")
    largest, histogram = shape[1] - 1, histogram.cpu()
    if histogram.min() < 0:
        raise ValueError(f"{op}: histogram must have numbers from 0 up, got {int(histogram.min())}")
    total = int(histogram.sum())
    if total == 0:
        raise ValueError(f"{op}: histogram must have at least one pair, got none")
    share = histogram.T.double() / total
    highest = 1.25 * largest
    ax = _axes(op, ax)
    ax.pcolormesh(
        torch.linspace(0, highest, len(histogram) + 1).numpy(),
        (torch.arange(largest + 2) - 0.5).numpy(),
        share.where(share > 0, torch.nan).numpy(),
        cmap="viridis_r",
        norm=LogNorm(1e-7, 1),
        rasterized=True,
    )
    line = [0, largest, highest], [0, largest, largest]
    ax.plot(*line, color="C3", lw=1.3, label=f"count = activation, at most {largest}")
    ax.set(xlim=(0, highest), ylim=(-0.5, largest + 0.5))
    ax.set(xlabel="ANN activation / threshold", ylabel=f"count or value, at most {largest}")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def counts_against_activations(
    counts: Tensor, activations: Tensor, time_steps: int, *, radix: bool = False, ax: Axes | None = None
) -> Axes:
    """Draw how well the spike counts of a layer follow the ANN's activations, with their correlation in the title.

    For every layer of a network::

        found = tandem_cuda.analysis.counts_and_activations(snn, images)
        for name, (counts, activations) in found.items():  # radix=True: of a network of RadixIF neurons
            plot.counts_against_activations(counts, activations, time_steps, radix=True).set_xlabel(name)

    It takes the arguments of :func:`count_histogram`, and draws as :func:`histogram_against_activations` does.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the tensors are empty, or for the reasons of :func:`count_histogram`.

    Examples:
        >>> from tandem_cuda import plot
        >>> activations = 4 * torch.rand(1000)
        >>> axes = plot.counts_against_activations(activations.floor(), activations, time_steps=4)
    """
    op = "counts_against_activations"
    histogram = _count_histogram(op, counts, activations, time_steps, radix)
    if counts.numel() == 0:
        raise ValueError(f"{op}: counts must have at least one element, got {list(counts.shape)}")
    ax = _draw_histogram(op, histogram, ax)
    pairs = torch.stack([x.detach().flatten().cpu().double() for x in (counts, activations)])
    correlation = float(torch.corrcoef(pairs)[0, 1])
    ax.set_title("no correlation: constant" if math.isnan(correlation) else f"correlation {correlation:.3f}")
    return ax


def firing_rates(
    tables: ActivityTable | Mapping[str, ActivityTable],
    *,
    colors: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the firing rate of each spiking layer as a bar.

    Args:
        tables: the result of :func:`tandem_cuda.synops`, or several by label, whose bars stand side by side.
        colors: the networks' colours; by default matplotlib's cycle.
        ax: where to draw.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is no spiking layer, or ``colors`` has something else than colours of matplotlib.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> from tandem_cuda import plot
        >>> axes = plot.firing_rates(synops(net, torch.rand(8, 784)))
    """
    op = "firing_rates"
    for which, value in _labelled("tables", tables) if isinstance(tables, Mapping) else [("tables", tables)]:
        if not isinstance(value, Sequence) or not all(isinstance(layer, LayerActivity) for layer in value):
            expected = "an ActivityTable" if which != "tables" else "an ActivityTable, or several by label"
            raise TypeError(f"{op}: {which} must be {expected}, got {_types(value)}")
    several = tables if isinstance(tables, Mapping) else {"": tables}
    rates = {
        label: {layer.name: layer.firing_rate for layer in table if layer.firing_rate is not None}
        for label, table in several.items()
    }
    names = list(dict.fromkeys(name for found in rates.values() for name in found))
    if not names:
        raise ValueError(f"{op}: tables must have a spiking layer, got none")
    cycled, ax = _colors(op, colors), _axes(op, ax)
    width = 0.8 / len(rates)
    for i, (color, (label, found)) in enumerate(zip(cycled, rates.items(), strict=False)):
        at = [names.index(name) + (i - (len(rates) - 1) / 2) * width for name in found]
        bars = ax.bar(at, list(found.values()), width * 0.95, color=color, label=label)
        if len(rates) <= 2:  # otherwise they would overlap
            ax.bar_label(bars, [f"{rate:.1%}" for rate in found.values()], fontsize=8.5, padding=1)
    ax.set(xticks=range(len(names)), xticklabels=names)
    ax.set(xlabel="layer, from the input", ylabel="spikes per neuron and time step")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.25, axis="y")
    if isinstance(tables, Mapping):
        ax.legend(frameon=False)
    return ax


def accuracy_against_synops(
    curves: AccuracyCurve | Mapping[str, Sequence[OperatingPoint]],
    *,
    ann: tuple[float, float] | None = None,
    cost: str = "synops",
    colors: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw accuracy against synaptic operations, or against time steps.

    Points have the number of time steps beside them, or the confidence at which samples stop.

    Args:
        curves: the result of ``FrozenNetwork.accuracy_curve``, drawn as two curves: all samples stop together, or each
            when it is sure. Or curves by label.
        ann: MACs per sample and accuracy of the ANN, drawn as a star; against time steps, its accuracy as a line.
        cost: "synops" (per sample) or "steps" (mean time steps per sample).
        colors: the curves' colours; by default matplotlib's cycle. The ANN is black.
        ax: where to draw.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is no point, ``cost`` is neither of the two, or ``colors`` has something else than colours of
            matplotlib.

    Examples:
        >>> net = nn.Sequential(Encode(4), TandemLinear(784, 50), Decode(), nn.Linear(50, 10)).eval()
        >>> from tandem_cuda import plot
        >>> curve = freeze(net).accuracy_curve([(torch.rand(5, 784), torch.arange(5))])
        >>> axes = plot.accuracy_against_synops(curve)
    """
    op = "accuracy_against_synops"
    if cost not in ("synops", "steps"):
        raise ValueError(f"{op}: cost must be 'synops' or 'steps', got {cost!r}")
    named: Mapping[str, Sequence[OperatingPoint]]
    if isinstance(curves, AccuracyCurve):
        named = {"all samples stop together": curves.over_time, "each sample stops when sure": curves.over_confidence}
    elif isinstance(curves, Mapping):
        named = curves
        for which, points in _labelled("curves", named):
            if not isinstance(points, Sequence) or not all(isinstance(point, OperatingPoint) for point in points):
                raise TypeError(f"{op}: {which} must be a sequence of OperatingPoint, got {_types(points)}")
    else:
        raise TypeError(f"{op}: curves must be an AccuracyCurve, or points by label, got {type(curves).__name__}")
    if ann is not None:
        if not isinstance(ann, Sequence) or len(ann) != 2:
            raise TypeError(f"{op}: ann must be a pair (MACs, accuracy), got {ann!r}")
        for i, number in enumerate(ann):
            checks.check_number(op, f"ann[{i}]", number)
    if not any(len(points) > 0 for points in named.values()):
        raise ValueError(f"{op}: curves must have at least one point, got none")
    cycled, ax = _colors(op, colors), _axes(op, ax)
    for color, (label, points) in zip(cycled, named.items(), strict=False):
        if len(points) == 0:
            continue
        x = [point.synops if cost == "synops" else point.steps for point in points]
        y = [point.accuracy for point in points]
        ax.plot(x, y, "o-", ms=4, color=color, label=label)
        for point, at in zip(points, zip(x, y, strict=True), strict=True):
            if point.exit_confidence is None and cost == "steps":
                continue  # the axis says it
            text = f"{point.steps:g}" if point.exit_confidence is None else f"{point.exit_confidence:g}"
            ax.annotate(text, at, (3, 3), textcoords="offset points", fontsize=7, color=color)
    if ann is not None:
        macs, accuracy = ann
        if cost == "synops":
            ax.plot([macs], [accuracy], "*", ms=12, color="black", label="ANN, MACs")
        else:
            ax.axhline(accuracy, color="black", ls="--", lw=1.2, label="ANN")
    if cost == "synops":
        ax.set_xlabel("synaptic operations per sample" if ann is None else "SynOps, or MACs of the ANN, per sample")
        ax.xaxis.set_major_formatter(EngFormatter())
    else:
        ax.set_xlabel("time steps per sample, mean")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    return ax


def _axes(op: str, ax: Axes | None) -> Axes:
    """Return where to draw. Without ``ax`` this opens a figure, so all other arguments are checked before."""
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"{op}: ax must be an Axes, got {type(ax).__name__}")
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _colors(op: str, colors: Sequence[str] | None) -> cycle[str]:
    """Return colours without end."""
    if colors is not None and (isinstance(colors, str) or not isinstance(colors, Sequence)):
        raise TypeError(f"{op}: colors must be a sequence of colours, got {colors!r}")
    for color in colors or ():
        if not is_color_like(color):
            raise ValueError(f"{op}: colors must be colours of matplotlib, got {color!r}")
    return cycle(colors or [f"C{i}" for i in range(10)])


def _labelled(argument: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the values with what an error calls them."""
    return [(f"{argument}[{label!r}]", value) for label, value in values.items()]


def _types(value: Any) -> str:
    """Return the type of a value, or of the sequence and its elements."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return type(value).__name__
    return f"{type(value).__name__} of {', '.join(sorted({type(element).__name__ for element in value}))}"


def _columns(time_steps: int) -> int:
    """Return the number of bins of activations."""
    return max(100, math.ceil(1.25 * time_steps))
