"""tandem_cuda.plot: what is in the pictures."""

import numpy as np
import pytest
import torch

from exact import imported_without
from freezable import small_network
from tandem_cuda import (
    ActivityTable,
    LayerActivity,
    OperatingPoint,
    SpikeTrain,
    convert,
    freeze,
    models,
    plot,
    synops,
)
from tandem_cuda.analysis import counts_and_activations

T = 12


@pytest.fixture(autouse=True)
def plt():
    """matplotlib.pyplot without a display."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    yield plt
    plt.close("all")


def spikes(rate=0.2):
    return (torch.rand(T, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) < rate).float()


def raster_of(ax):
    """The spikes in a raster, as pairs of time step and row."""
    (lines,) = ax.collections
    return {(round((a + b) / 2), round(y)) for (a, y), (b, _) in (segment.tolist() for segment in lines.get_segments())}


# ---- Every function


DRAWN = {
    "spike_raster": lambda **named: plot.spike_raster(spikes(), **named),
    "counts_against_activations": lambda **named: plot.counts_against_activations(
        torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.2, 1.4, 2.1]), 4, **named
    ),
    "histogram_against_activations": lambda **named: plot.histogram_against_activations(
        plot.count_histogram(torch.ones(3), torch.ones(3), 4), **named
    ),
    "firing_rates": lambda **named: plot.firing_rates(table(conv1=0.1, conv2=0.05), **named),
    "accuracy_against_synops": lambda **named: plot.accuracy_against_synops({"SNN": points(4)}, **named),
}


def table(**rates):
    layers = [
        LayerActivity(name, 10, T, rate, saturation=0.0, silent=0.5, dead=0.0, synops=1.0, macs=10, analogue=False)
        for name, rate in rates.items()
    ]
    return ActivityTable(layers)


def points(number, confidence=None):
    return [OperatingPoint(confidence, float(t), 0.5 + t / 20, 1e6 * t) for t in range(1, number + 1)]


def test_all_functions_are_tested():
    assert set(plot.__all__) == {*DRAWN, "count_histogram"}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=list(DRAWN))
def test_draws_where_it_is_told(plt, draw):
    _, (left, right) = plt.subplots(1, 2)
    assert draw(ax=right) is right
    assert right.has_data()
    assert not left.has_data()
    right.figure.canvas.draw()


@pytest.mark.parametrize("draw", DRAWN.values(), ids=list(DRAWN))
def test_draws_into_a_new_figure(draw):
    first, second = draw(), draw()
    assert first.figure is not second.figure
    assert first.get_xlabel()
    assert first.get_ylabel()
    first.figure.canvas.draw()


@pytest.mark.parametrize("name", DRAWN)
def test_axes_of_another_kind_are_refused(plt, name):
    for wrong, kind in ((plt.figure(), "Figure"), (plt.subplots(2)[1], "ndarray")):
        figures = plt.get_fignums()
        with pytest.raises(TypeError, match=f"^{name}: ax must be an Axes, got {kind}$"):
            DRAWN[name](ax=wrong)
        assert plt.get_fignums() == figures  # no new one for nothing


@pytest.mark.parametrize("name", ["firing_rates", "accuracy_against_synops"])
def test_colors_that_are_none(name):
    with pytest.raises(TypeError, match=f"^{name}: colors must be a sequence of colours, got 'red'"):
        DRAWN[name](colors="red")
    with pytest.raises(ValueError, match=f"^{name}: colors must be colours of matplotlib, got 'rde'"):
        DRAWN[name](colors=["red", "rde"])


def test_missing_extra_is_named(monkeypatch):
    with pytest.raises(ImportError, match=r"tandem_cuda.plot needs matplotlib .*: pip install tandem_cuda\[plot\]"):
        imported_without(monkeypatch, "tandem_cuda.plot", "matplotlib")


# ---- Spike rasters


@pytest.mark.parametrize("form", [lambda x: x, SpikeTrain.from_dense], ids=["dense", "train"])
def test_raster_has_every_spike(form):
    dense = spikes()
    ax = plot.spike_raster(form(dense), sample=1)
    of = dense[:, 1].flatten(1)
    active = of.any(0).nonzero().flatten().tolist()
    expected = {(t + 1, active.index(i)) for t, i in of.nonzero().tolist()}
    assert raster_of(ax) == expected
    assert ax.get_title() == f"{len(active)} of {len(active)} active neurons"
    assert ax.get_xlim() == (0.4, T + 0.6)


def test_raster_of_some_neurons():
    ax = plot.spike_raster(spikes(), neurons=7)
    active = int(spikes()[:, 0].flatten(1).any(0).sum())
    assert len({row for _, row in raster_of(ax)}) == 7
    assert ax.get_title() == f"7 of {active} active neurons"


def test_raster_of_no_spikes():
    ax = plot.spike_raster(spikes(rate=0))
    assert raster_of(ax) == set()
    assert ax.get_title() == "0 of 0 active neurons"


def test_raster_refuses():
    with pytest.raises(TypeError, match="spike_raster: spikes must be a SpikeTrain or a Tensor, got list"):
        plot.spike_raster([1])
    with pytest.raises(ValueError, match=r"spike_raster: spikes must be \[T, N, ...\], got \[12, 2\]"):
        plot.spike_raster(torch.zeros(12, 2))
    for form in (spikes(), SpikeTrain.from_dense(spikes())):
        for sample in (-1, 2):
            with pytest.raises(ValueError, match=f"spike_raster: sample must be from 0 to 1, got {sample}"):
                plot.spike_raster(form, sample=sample)
    with pytest.raises(ValueError, match="spike_raster: neurons must be at least 1, got 0"):
        plot.spike_raster(spikes(), neurons=0)
    with pytest.raises(TypeError, match="spike_raster: neurons must be an int, got float"):
        plot.spike_raster(spikes(), neurons=1.5)
    with pytest.raises(TypeError, match="spike_raster: sample must be an int, got str"):
        plot.spike_raster(spikes(), sample="0")
    with pytest.raises(ValueError, match=r"spike_raster: spikes must have at least one time step, got \[0, 2, 3\]"):
        plot.spike_raster(torch.zeros(0, 2, 3))
    with pytest.raises(ValueError, match="spike_raster: spikes must have at least one sample, got none"):
        plot.spike_raster(torch.zeros(4, 0, 3))


# ---- Counts against activations


def test_histogram():
    """In T = 4 steps, the 100 bins end at an activation of 5."""
    counts = torch.tensor([0, 0, 2, 4, 4, 1]).view(2, 3).float()
    activations = torch.tensor([0.0, -3.0, 2.49, 99.0, 1e30, 0.051]).view(2, 3)
    histogram = plot.count_histogram(counts, activations, 4)
    assert histogram.shape == (100, 5)
    assert histogram.dtype == torch.int64
    assert histogram.nonzero().tolist() == [[0, 0], [1, 1], [49, 2], [99, 4]]
    assert histogram[0, 0] == histogram[99, 4] == 2
    assert torch.equal(2 * histogram, histogram + plot.count_histogram(counts, activations, 4))


@pytest.mark.parametrize("steps", [1, 3, 8, 16, 200])
def test_histogram_in_the_picture(steps):
    """Every count c lies at activation c + 1/2, in the mesh as in the data."""
    counts = torch.arange(steps + 1.0)
    histogram = plot.count_histogram(counts, counts + 0.5 if steps > 2 else counts, steps)
    (mesh,) = plot.histogram_against_activations(histogram).collections
    shares = torch.as_tensor(mesh.get_array().filled(0)).view(steps + 1, -1)
    assert shares.sum() == pytest.approx(1)
    edges = torch.as_tensor(mesh.get_coordinates()[0, :, 0])
    assert edges[-1] == pytest.approx(1.25 * steps)
    for count, column in shares.nonzero().tolist():
        wanted = count + 0.5 if steps > 2 else count
        assert edges[column] <= wanted + 1e-6
        assert wanted < edges[column + 1] + 1e-6 or column == len(edges) - 2


def test_correlation():
    activations = torch.tensor([0.1, 1.2, 2.3, 3.4])
    ax = plot.counts_against_activations(torch.tensor([0.0, 1, 2, 3]), activations, 4)
    assert ax.get_title() == "correlation 1.000"
    ax = plot.counts_against_activations(torch.tensor([3.0, 2, 1, 0]), activations, 4)
    assert ax.get_title() == "correlation -1.000"
    ax = plot.counts_against_activations(torch.zeros(4), activations, 4)
    assert ax.get_title() == "no correlation: constant"


def test_layers_of_a_network():
    """As the docstring shows it."""
    net = small_network().eval()
    found = counts_and_activations(net, torch.rand(2, 2, 8, 8))
    assert len(found) >= 2
    for name, (counts, activations) in found.items():
        ax = plot.counts_against_activations(counts, activations, 8)
        expected = np.corrcoef(counts.flatten().numpy(), activations.detach().flatten().numpy())[0, 1]
        assert ax.get_title() == f"correlation {expected:.3f}", name


def test_values_of_radix_spikes():
    """The values of T = 4 radix spikes reach 15, the axes too; the message of the plain call says what to pass."""
    ann, x = models.mnist_cnn().eval(), torch.rand(16, 1, 28, 28)
    found = counts_and_activations(convert(ann, 4, calibrate=x).snn, x)
    assert max(int(values.max()) for values, _ in found.values()) == 15
    for name, (values, activations) in found.items():
        ax = plot.counts_against_activations(values, activations, 4, radix=True)
        assert ax.get_ylim() == (-0.5, 15.5), name
        assert plot.count_histogram(values, activations, 4, radix=True).sum() == values.numel()
    with pytest.raises(ValueError, match=r"from 0 to 4, got \d+\.0; pass radix=True with values of radix spikes"):
        plot.count_histogram(torch.tensor([15.0]), torch.ones(1), 4)
    with pytest.raises(ValueError, match=r"from 0 to 15, got 16\.0$"):
        plot.count_histogram(torch.tensor([16.0]), torch.ones(1), 4, radix=True)
    with pytest.raises(ValueError, match="time_steps of radix spikes must be from 1 to 8"):
        plot.count_histogram(torch.ones(1), torch.ones(1), 9, radix=True)
    with pytest.raises(TypeError, match="count_histogram: radix must be True or False, got int"):
        plot.count_histogram(torch.ones(1), torch.ones(1), 4, radix=1)


def test_counts_refuse():
    ones = torch.ones(3)
    with pytest.raises(TypeError, match=r"^counts_against_activations: time_steps must be an int"):
        plot.counts_against_activations(ones, ones, 4.0)
    with pytest.raises(ValueError, match=r"^counts_against_activations: counts must have at least one .*, got \[0\]"):
        plot.counts_against_activations(ones[:0], ones[:0], 4)
    with pytest.raises(TypeError, match=r"^count_histogram: counts must have a real dtype, got torch\.complex64"):
        plot.count_histogram(ones + 0j, ones, 4)
    with pytest.raises(TypeError, match="count_histogram: counts must be a Tensor, got list"):
        plot.count_histogram([1], ones, 4)
    with pytest.raises(ValueError, match=r"count_histogram: activations must be \[3\], got \[2\]"):
        plot.count_histogram(ones, ones[:2], 4)
    for wrong in (-1.0, 4.5, 5.0):
        with pytest.raises(ValueError, match=f"counts must be whole numbers from 0 to 4, got {wrong}"):
            plot.count_histogram(torch.tensor([1.0, wrong]), torch.ones(2), 4)
    with pytest.raises(ValueError, match="count_histogram: activations must be finite"):
        plot.count_histogram(ones, torch.full((3,), torch.nan), 4)
    for shape in ((), (100,), (50, 5), (100, 1)):
        with pytest.raises(ValueError, match=r"histogram must be .* as from count_histogram, got"):
            plot.histogram_against_activations(torch.ones(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="histogram must have at least one pair, got none"):
        plot.histogram_against_activations(torch.zeros(100, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="histogram must have numbers from 0 up, got -1"):
        plot.histogram_against_activations(-torch.ones(100, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"histogram must be int64, got torch\.float32"):
        plot.histogram_against_activations(torch.ones(100, 5))


def test_counts_and_activations_of_different_dtypes():
    ax = plot.counts_against_activations(torch.arange(4), torch.arange(4).double(), 4)
    assert ax.get_title() == "correlation 1.000"


# ---- Firing rates


def test_rates_of_a_network():
    net = models.small_cifarnet(1, size=8)
    x = torch.rand(4, 1, 8, 8)
    measured = synops(convert(net, time_steps=4, example=x), x)
    ax = plot.firing_rates(measured)
    spiking = [layer for layer in measured if layer.firing_rate is not None]
    assert [bar.get_height() for bar in ax.patches] == [layer.firing_rate for layer in spiking]
    assert [label.get_text() for label in ax.get_xticklabels()] == [layer.name for layer in spiking]
    assert ax.get_legend() is None


def test_rates_of_several_networks():
    tables = {"one": table(conv1=0.1, conv2=0.2), "two": table(conv1=0.3, extra=0.4)}
    ax = plot.firing_rates(tables, colors=["red", "blue"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["conv1", "conv2", "extra"]
    centres = [round(bar.get_x() + bar.get_width() / 2, 2) for bar in ax.patches]
    assert centres == [-0.2, 0.8, 0.2, 2.2]
    assert [bar.get_height() for bar in ax.patches] == [0.1, 0.2, 0.3, 0.4]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    assert ax.patches[0].get_facecolor() == (1, 0, 0, 1)


def test_rates_need_a_spiking_layer():
    for tables in (ActivityTable(), {}, {"readout": table(readout=None)}):
        with pytest.raises(ValueError, match="firing_rates: tables must have a spiking layer, got none"):
            plot.firing_rates(tables)


def test_rates_refuse():
    for wrong, kind in ((0.5, "float"), ([0.5, "a"], "list of float, str"), (points(1), "list of OperatingPoint")):
        expected = f"firing_rates: tables must be an ActivityTable, or several by label, got {kind}"
        with pytest.raises(TypeError, match=expected):
            plot.firing_rates(wrong)
        with pytest.raises(TypeError, match=rf"firing_rates: tables\['a'\] must be an ActivityTable, got {kind}"):
            plot.firing_rates({"a": wrong})


# ---- Accuracy against SynOps


def test_accuracy_of_a_frozen_network():
    net = small_network().eval()
    batch = torch.rand(6, 2, 8, 8)
    labels = torch.zeros(6, dtype=torch.int64)
    curve = freeze(net).accuracy_curve([(batch, labels)], (0.4, 0.9))
    ax = plot.accuracy_against_synops(curve, ann=(1e6, 0.9))
    over_time, over_confidence, ann = ax.lines
    assert over_time.get_xdata().tolist() == [point.synops for point in curve.over_time]
    assert over_confidence.get_ydata().tolist() == [point.accuracy for point in curve.over_confidence]
    assert (ann.get_xdata()[0], ann.get_ydata()[0]) == (1e6, 0.9)
    assert [text.get_text() for text in ax.texts] == [*(f"{t}" for t in range(1, 9)), "0.4", "0.9"]
    assert len(ax.get_legend().get_texts()) == 3


def test_accuracy_against_steps():
    ax = plot.accuracy_against_synops(
        {"whole": points(3), "sure": points(2, 0.9), "none": []}, cost="steps", ann=(1e6, 0.9), colors=["red", "blue"]
    )
    whole, sure, ann = ax.lines
    assert whole.get_xdata().tolist() == [1, 2, 3]
    assert whole.get_color() == "red"
    assert sure.get_color() == "blue"
    assert ann.get_ydata() == [0.9, 0.9]
    assert [text.get_text() for text in ax.texts] == ["0.9", "0.9"]
    assert ax.get_xlabel() == "time steps per sample, mean"


def test_accuracy_refuses():
    with pytest.raises(ValueError, match="cost must be 'synops' or 'steps', got 'energy'"):
        plot.accuracy_against_synops({"a": points(1)}, cost="energy")
    for curves in ({}, {"a": []}):
        with pytest.raises(ValueError, match="curves must have at least one point, got none"):
            plot.accuracy_against_synops(curves)
    with pytest.raises(TypeError, match="curves must be an AccuracyCurve, or points by label, got list"):
        plot.accuracy_against_synops(points(1))
    with pytest.raises(TypeError, match=r"curves\['a'\] must be a sequence of OperatingPoint, got list of float"):
        plot.accuracy_against_synops({"a": [0.5]})
    with pytest.raises(TypeError, match=r"curves\['a'\] must be a sequence of OperatingPoint, got float"):
        plot.accuracy_against_synops({"a": 0.5})
    with pytest.raises(TypeError, match=r"ann must be a pair \(MACs, accuracy\), got 0\.9"):
        plot.accuracy_against_synops({"a": points(1)}, ann=0.9)
    with pytest.raises(TypeError, match=r"ann\[1\] must be a number, got str"):
        plot.accuracy_against_synops({"a": points(1)}, ann=(1e6, "90 %"))
