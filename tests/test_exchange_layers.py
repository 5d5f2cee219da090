"""NIR graphs of what lies between weight layers: concatenations, rearrangements, values of both signs.

Weights are dyadic, so that sums are exact in any order and every comparison is.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anns import Net, per_layer
from exact import dyadic, same, train
from tandem_cuda import (
    IF,
    LIF,
    Decode,
    Encode,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemDropout,
    TandemDropout2d,
    TandemLinear,
    TandemStochasticDepth,
    convert,
    freeze,
    quantise,
)
from tandem_cuda.nn import SpikeCat, SpikeRearrange, SpikeWindows, TandemElementwise
from tandem_cuda.nn.wiring import Wiring

nir = pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")
pytest.importorskip("nirtorch", reason="pip install tandem_cuda[nir]")

import test_convert_layers as rules  # noqa: E402 (only where the extra is there)
from nir_interpreter import executed  # noqa: E402
from tandem_cuda.exchange import from_nir, to_nir  # noqa: E402
from tandem_cuda.exchange.nir_sources import NirGeometry, NirSource, convolution  # noqa: E402
from test_exchange_graphs import STEPS, filled, steps_of  # noqa: E402

REFUSED = {
    "bilinear": r"up \(TandemInterpolate\): NIR has no interpolation; use mode='nearest' or a convolution",
    "bilinear of corners": r"up \(TandemInterpolate\): NIR has no interpolation",
    "bilinear of values": r"interpolate \(TandemInterpolate\): NIR has no interpolation",
    "bilinear sum": r"add \(TandemAdd\): NIR has no interpolation",
    "bicubic": r"interpolate \(TandemInterpolate\): NIR has no interpolation",
    "bicubic before a ReLU": r"interpolate \(TandemInterpolate\): NIR has no interpolation",
    "unflattened": r"unflatten \(SpikeRearrange\): NIR cannot make images of features in front of neurons",
    "a view of values": r"unflatten \(SpikeRearrange\): NIR cannot make images of features in front of neurons",
}
EXPORTED = [name for name in rules.NETS if name not in REFUSED]


def made(name, neuron=IF(), **settings):
    """A converted network with dyadic weights and thresholds, and its input."""
    ann, x = rules.made(name)
    ann, x = rules.dyadic(ann), (x * 8).round() / 8
    levels = rules.converted(name, ann, STEPS, calibrate=x, **per_layer(neuron)).levels
    levels = {layer: 2.0 ** round(math.log2(level)) for layer, level in levels.items()}
    return rules.converted(name, ann, STEPS, calibrate=levels, neuron=neuron, **settings), x


def close(got, want):
    """Equal, but for the rounding of means over 6 or 9 or so numbers behind the last neurons."""
    torch.testing.assert_close(got, want, rtol=0, atol=1e-15)


def exchanged(net, x, path, **settings):
    """Export, execute, import and compare; returns the graph."""
    graph = to_nir(net, x, path / "net.nir", **settings)
    with torch.no_grad():
        want = net(x)
    want = want.count if isinstance(want, SpikeTrain) else want
    assert len(want.unique()) > 2
    steps = steps_of(x, graph.metadata["encoding"])
    close(executed(graph, steps), want.double())
    plain = SpikeTrain(x.bits, x.time_steps) if isinstance(x, SpikeTrain) else x
    for source in (graph, path / "net.nir"):
        back = from_nir(source)
        with torch.no_grad():
            got = back(plain)
        close((got.count if isinstance(got, SpikeTrain) else got).double(), want.double())
    again = to_nir(back, plain)
    assert len(again.nodes) == len(graph.nodes)
    close(executed(again, steps), want.double())
    return graph


@pytest.mark.parametrize("name", EXPORTED)
def test_rules(tmp_path, name):
    net, x = made(name)
    exchanged(net, x, tmp_path)


@pytest.mark.parametrize("name", EXPORTED)
def test_without_groups(tmp_path, name):
    net, x = made(name)
    graph = exchanged(net, x, tmp_path, groups=False)
    convolutions = [node for node in graph.nodes.values() if isinstance(node, (nir.Conv1d, nir.Conv2d))]
    assert all(node.groups == 1 for node in convolutions)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    net, x = made(name)
    with pytest.raises(ValueError, match=REFUSED[name]):
        to_nir(net, x)


def test_two_phases_are_refused():
    net, x = made("cat", IF(two_phase=True))
    with pytest.raises(ValueError, match=r"first \(TandemConv2d\): two_phase must be False"):
        to_nir(net, x)


@pytest.mark.parametrize("name", ["cat", "cat of values", "no ReLU", "pre-activation"])
def test_leaky_neurons_and_impulses(tmp_path, name):
    ann, x = rules.made(name)
    net = rules.converted(name, rules.dyadic(ann), STEPS, neuron=LIF(0.25, 0.5), mode="impulse")
    exchanged(net, (x * 8).round(), tmp_path)


def test_no_node_only_moves_values():
    """A concatenation is edges; windows and padding are part of the convolutions that read them."""
    kinds = {}
    for name in ("cat", "channel shuffle", "average of values", "pad", "crop", "PixelUnshuffle"):
        net, x = made(name)
        graph = to_nir(net, x)
        convolutions = [node for node in graph.nodes.values() if isinstance(node, nir.Conv2d)]
        kinds[name] = len(convolutions), sum(isinstance(node, nir.IF) for node in graph.nodes.values())
        layers = len(net.spiking_layers)
        assert kinds[name][1] == layers + (name == "crop")
    assert kinds["cat"] == (6, 4)
    assert kinds["average of values"] == (3, 3)
    last = to_nir(*made("average of values")).nodes["last"]
    assert last.weight.shape[2:] == (6, 6)
    assert tuple(last.stride) == (2, 2)


# --- networks by hand ------------------------------------------------------------------------------------------------


IMAGES = (torch.randint(0, 9, (3, 2, 9, 10), generator=torch.Generator().manual_seed(0)) / 8).float()


def behind(run, **modules):
    """A network of images behind a layer of 4 channels."""
    first = TandemConv2d(2, 4, 3, padding=1, neuron=IF(0.5, amplitude=0.5))
    return filled(Net(lambda n, x: run(n, n.first(n.encode(x))), encode=Encode(STEPS), first=first, **modules))


MOVES = {
    "padding": (4, (SpikeRearrange("zero_pad", 1, 0, 2, 3),)),
    "cropping": (4, (SpikeRearrange("zero_pad", -1, -2, -1, 0),)),
    "padding and cropping": (4, (SpikeRearrange("zero_pad", 2, -1, -1, 1),)),
    "cropping, then padding": (4, (SpikeRearrange("zero_pad", -1, -1, -1, -1), SpikeRearrange("zero_pad", 2, 0, 1, 1))),
    "channels": (2, (SpikeRearrange("channels", 1, 3),)),
    "shuffled": (4, (SpikeRearrange("channel_shuffle", 2),)),
    "unshuffled": (16, (SpikeRearrange("zero_pad", 0, 0, 0, 1), SpikeRearrange("pixel_unshuffle", 2))),
    "windows": (24, (SpikeWindows((2, 3), divisor_override=4),)),
    "overlapping windows": (36, (SpikeWindows(3, 2, 1, 8),)),
    "windows of windows": (64, (SpikeWindows(2, 1), SpikeWindows(2))),
    "all": (
        4,
        (
            SpikeRearrange("channel_shuffle", 2),
            SpikeRearrange("channels", 1, 3),
            SpikeRearrange("zero_pad", 1, 1, 0, 0),
            SpikeWindows((1, 2)),
        ),
    ),
}
READERS = {
    "plain": lambda c: TandemConv2d(c, 5, 3),
    "padded": lambda c: TandemConv2d(c, 5, 3, padding=1),
    "strided": lambda c: TandemConv2d(c, 5, (2, 3), stride=(2, 1), padding=(1, 1), dilation=(1, 2)),
    "same": lambda c: TandemConv2d(c, 5, 2, padding="same"),
    "grouped": lambda c: TandemConv2d(c, 6, 3, padding=1, groups=2),
    "transposed": lambda c: TandemConvTranspose2d(c, 5, 3, padding=1),
    "elementwise": lambda c: TandemElementwise(c, c, c),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("moved", MOVES)
def test_rearranged_images(tmp_path, moved, reader):
    channels, moves = MOVES[moved]
    layer = READERS[reader](channels)
    if reader == "elementwise":
        layer.maps(0.5, 0.25, IMAGES)
    net = behind(lambda n, x: n.layer(n.moves(x)), moves=nn.Sequential(*moves), layer=layer)
    exchanged(net, IMAGES, tmp_path)


@pytest.mark.parametrize("how", [("upsample", 2, 3), ("pixel_shuffle", 2), ("flatten",), ("zero_pad", -1, 2, 0, 1)])
def test_rearranged_features(tmp_path, how):
    """Whatever flattening follows is a matrix."""
    shape = SpikeRearrange(*how)(SpikeTrain.from_dense(torch.zeros(1, 1, 4, 9, 10))).shape
    net = behind(
        lambda n, x: n.out(n.decode(n.layer(n.flat(n.move(x))))),
        move=SpikeRearrange(*how), flat=nn.Flatten(), decode=Decode(),
        layer=TandemLinear(math.prod(shape), 7, neuron=IF(8.0)), out=nn.Linear(7, 3),
    )  # fmt: skip
    exchanged(net, IMAGES, tmp_path)


@pytest.mark.parametrize("told", [True, False], ids=["told", "by the train"])
def test_a_decoder_of_both_signs(tmp_path, told):
    """With factors, means, a flattening and a concatenation before the read-out."""

    def run(n, x):
        x = n.decode(n.cat(n.values(x), n.plain(x)))
        return n.out(n.flat(n.mean(x)))

    values = TandemConv2d(4, 6, 1, neuron=IF(0.5, amplitude=0.5))
    values.wiring, values.out_channels = Wiring(paired_outputs=True), 6
    values.weight, values.bias = nn.Parameter(torch.empty(3, 4, 1, 1)), nn.Parameter(torch.empty(3))
    net = behind(
        run, values=values, plain=TandemConv2d(4, 2, 3, padding=1, neuron=IF(0.25, amplitude=0.25)),
        cat=SpikeCat(told, False, amplitudes=(0.5, 0.25)), decode=Decode(signed=told),
        mean=nn.AvgPool2d(2), flat=nn.Flatten(), out=nn.Linear(100, 3),
    )  # fmt: skip
    net.decode.scale = torch.tensor([0.5, 0.5, 0.5, 0.25, 0.25])
    graph = exchanged(net, IMAGES, tmp_path)
    assert sum(target == "output" for _, target in graph.edges) == 2  # whose currents add up
    assert sum(isinstance(node, nir.AvgPool2d) for node in graph.nodes.values()) == 2
    back = from_nir(graph)
    with torch.no_grad():
        same(freeze(back)(IMAGES), back(IMAGES))


def test_decoded_values_alone(tmp_path):
    """Where no layer follows that could take the signs."""
    net = behind(lambda n, x: n.decode(x), decode=Decode(signed=True))
    exchanged(net, IMAGES, tmp_path)


def test_pooling_and_joins_of_concatenations(tmp_path):
    """Each part is pooled by itself; an identity of several parts is a map for each."""

    def run(n, x):
        x = n.pool(n.cat(x, n.a(x), n.part(x)))
        return n.add(x, n.b(x))

    net = behind(
        run, a=TandemConv2d(4, 3, 1, neuron=IF(0.5, amplitude=0.5)), part=SpikeRearrange("channels", 2, 4),
        cat=SpikeCat(False, False, False), pool=SpikingAvgPool2d(2), b=TandemConv2d(9, 9, 3, padding=1),
        add=TandemAdd(nn.Identity(), TandemConv2d(9, 9, 1), neuron=IF(0.5)),
    )  # fmt: skip
    exchanged(net, IMAGES, tmp_path)


@pytest.mark.parametrize("spikes", [True, False], ids=["spikes", "currents"])
@pytest.mark.parametrize("parts", [((0, 2),), ((2, 4),), ((0, 1), (0, 3))], ids=str)
def test_pooling_of_some_channels_before_the_read_out(tmp_path, spikes, parts):
    """The first channels in order are not all of them: pooling keeps those that nothing reads."""

    def run(n, x):
        x = n.cat(*(move(x) for move in n.moves))
        return n.out(n.flat(n.decode(n.pool(x)) if spikes else n.pool(n.decode(x))))

    moves = nn.ModuleList(SpikeRearrange("channels", *part) for part in parts)
    width = 20 * sum(last - first for first, last in parts)
    net = behind(
        run, moves=moves, cat=SpikeCat(*[False] * len(parts)), pool=(SpikingAvgPool2d if spikes else nn.AvgPool2d)(2),
        decode=Decode(), flat=nn.Flatten(), out=nn.Linear(width, 5),
    )  # fmt: skip
    assert exchanged(net, IMAGES, tmp_path).nodes["out"].weight.shape == (5, 80)


def test_pooling_of_the_first_channels_converted(tmp_path):
    ann = Net(
        lambda n, x: n.out(F.avg_pool2d(torch.chunk(F.relu(n.first(x)), 2, 1)[0], 2).flatten(1)),
        first=nn.Conv2d(2, 4, 3, padding=1), out=nn.Linear(40, 5),
    )  # fmt: skip
    exchanged(convert(filled(ann), STEPS, neuron=IF(), calibrate={"first": 2.0}), IMAGES, tmp_path)


@pytest.mark.parametrize("groups", [2, 12])
def test_grouped_convolutions_of_concatenations_that_need_neurons(tmp_path, groups):
    """Neurons put together what no single convolution reads, and the groups stay."""
    net = behind(
        lambda n, x: n.layer(n.cat(*[n.moved(x)] * 3)), moved=SpikeRearrange("zero_pad", -1, 1, 1, 1),
        cat=SpikeCat(False, False, False), layer=TandemConv2d(12, 24, (3, 2), padding=(0, 1), groups=groups),
    )  # fmt: skip
    graph = exchanged(net, IMAGES, tmp_path)
    assert graph.nodes["layer"].weight.shape == (24, 12 // groups, 3, 2)
    assert graph.nodes["layer"].groups == groups


def test_parts_that_nothing_reads(tmp_path):
    """They are not in the graph, as they could not come back from it."""
    net = behind(
        lambda n, x: n.out(n.flat(n.decode(n.part(n.cat(x, n.a(x)))))), a=TandemConv2d(4, 3, 1, neuron=IF(0.5)),
        cat=SpikeCat(False, False, amplitudes=(0.5, 1.0)), part=SpikeRearrange("channels", 1, 4), decode=Decode(),
        flat=nn.Flatten(), out=nn.Linear(270, 5),
    )  # fmt: skip
    assert [*exchanged(net, IMAGES, tmp_path).nodes] == ["input", "first", "first_neurons", "flat", "out", "output"]


def test_what_does_nothing_in_eval_mode(tmp_path):
    drops = nn.Sequential(TandemStochasticDepth(0.5), TandemDropout(0.5), TandemDropout2d(0.5))
    net = behind(lambda n, x: n.layer(n.drops(x)), drops=drops, layer=TandemConv2d(4, 5, 3))
    assert len(exchanged(net, IMAGES, tmp_path).nodes) == 6


def test_parts_of_different_strides(tmp_path):
    """One convolution for each, of which one strides."""
    net = behind(
        lambda n, x: n.layer(n.cat(n.a(x), n.down(n.pad(x)))), a=TandemConv2d(4, 3, 3, stride=2, padding=1),
        pad=SpikeRearrange("zero_pad", 0, 0, 0, 1), down=SpikeRearrange("pixel_unshuffle", 2),
        cat=SpikeCat(False, False, amplitudes=(1.0, 0.5)), layer=TandemConv2d(19, 5, 3, padding=1),
    )  # fmt: skip
    net.layer.input_scale = torch.tensor([1.0] * 3 + [0.5] * 16)
    graph = exchanged(net, IMAGES, tmp_path)
    assert [tuple(graph.nodes[name].stride) for name in ("layer_0", "layer_1")] == [(1, 1), (2, 2)]


def test_pooling_of_padded_images(tmp_path):
    net = behind(lambda n, x: n.pool(n.pad(x)), pad=SpikeRearrange("zero_pad", 1, 1, 0, 1), pool=SpikingAvgPool2d(3, 2))
    exchanged(net, IMAGES, tmp_path)


def test_lines(tmp_path):
    """Images of height 1 for the model are lines in the graph."""

    def run(n, x):
        x = n.first(x)
        x = n.flat(n.wide(n.pool(n.unsqueeze(n.cat(x, n.part(x))))))
        return n.out(n.decode(n.scaled(x)))

    scaled = TandemElementwise(5, 5, 5)
    scaled.maps(0.5, 0.5, IMAGES)
    net = Net(
        run, first=TandemConv1d(3, 4, 3, padding=1, neuron=IF(0.5, amplitude=0.5)),
        part=SpikeRearrange("channels", 1, 3), cat=SpikeCat(False, False), unsqueeze=SpikeRearrange("unsqueeze"),
        pool=SpikingAvgPool2d((1, 3), (1, 2), (0, 1)), wide=TandemConv2d(6, 5, (3, 2), padding=(1, 0)),
        flat=nn.Flatten(2), scaled=scaled, decode=Decode(), out=nn.Conv1d(5, 2, 2),
    )  # fmt: skip
    bits = SpikeTrain.from_dense(train(STEPS, 3, 3, 17, seed=1, rate=0.4).float()).bits
    graph = exchanged(filled(net), SpikeTrain(bits, STEPS), tmp_path)
    assert not any(isinstance(node, (nir.Conv2d, nir.AvgPool2d)) for node in graph.nodes.values())


@pytest.mark.parametrize("kernel", [(3, 3), (2, 1), (4, 2), (5, 2)], ids=str)
def test_same_padding_of_lines(tmp_path, kernel):
    """Only one row of the kernel is on the line."""
    wide = TandemConv2d(4, 5, kernel, padding="same", dilation=(2 if kernel[0] % 2 else 1, 1))
    net = Net(
        lambda n, x: n.wide(n.unsqueeze(n.first(x))), first=TandemConv1d(3, 4, 3, neuron=IF(0.5)), wide=wide,
        unsqueeze=SpikeRearrange("unsqueeze"),
    )  # fmt: skip
    net = filled(net)
    bits = SpikeTrain.from_dense(train(STEPS, 3, 3, 17, seed=1, rate=0.4).float()).bits
    x = SpikeTrain(bits, STEPS)
    graph = to_nir(Net(lambda n, x: n.flat(n.net(x)), net=net, flat=nn.Flatten(2)), x)
    with torch.no_grad():
        want = net(x).count.flatten(2)
    assert len(want.unique()) > 2
    same(executed(graph, steps_of(x, "spikes")).float(), want)


def test_lines_that_become_higher_are_named():
    x = SpikeTrain(SpikeTrain.from_dense(train(STEPS, 3, 3, 17, seed=1, rate=0.4).float()).bits, STEPS)
    for settings in ({"padding": 1, "kernel_size": 2}, {"padding": (1, 0), "kernel_size": (2, 1), "dilation": (2, 1)}):
        net = nn.Sequential(SpikeRearrange("unsqueeze"), TandemConv2d(3, 4, **settings), TandemConv2d(4, 4, 1))
        with pytest.raises(
            ValueError, match=r"1 \(TandemConv2d\): it reads lines, .*; change its kernel or padding, or"
        ):
            to_nir(net, x)


def test_sums_of_pools_with_windows_of_different_sizes(tmp_path):
    net = behind(
        lambda n, x: n.add(n.pool(n.a(x)), n.b(x)), a=TandemConv2d(4, 4, 1, neuron=IF(0.5)),
        pool=SpikingAdaptiveAvgPool2d(4), b=TandemConv2d(4, 4, (6, 7), neuron=IF(0.5)),
        add=TandemAdd(nn.Identity(), nn.Identity(), neuron=IF(1.5)),
    )  # fmt: skip
    exchanged(net, IMAGES, tmp_path)


LARGER = {
    "upsampled": SpikeRearrange("upsample", 2, 3),
    "resized": SpikeRearrange("resize", 13, 7),
    "shuffled": SpikeRearrange("pixel_shuffle", 2),
    "mirrored": SpikeRearrange("reflect_pad", 1, 2, 0, 3),
    "continued": SpikeRearrange("circular_pad", 0, 2, 3, 0),
    "shuffled and mirrored": nn.Sequential(
        SpikeRearrange("pixel_shuffle", 2), SpikeRearrange("replicate_pad", 1, 0, 1, 2)
    ),
}


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("moved", LARGER)
def test_larger_images(tmp_path, moved, groups):
    """Rows and columns are mapped one after the other, by convolutions whose stride is the size of the image."""
    channels = 1 if "shuffled" in moved else 4
    net = behind(
        lambda n, x: n.add(n.layer(n.move(x)), n.move(n.other(x))), move=LARGER[moved],
        layer=TandemConv2d(channels, channels, 3, padding=1, neuron=IF(0.5)), other=TandemConv2d(4, 4, 1),
        add=TandemAdd(nn.Identity(), nn.Identity(), neuron=IF(0.5)),
    )  # fmt: skip
    graph = exchanged(net, IMAGES, tmp_path, groups=groups)
    added = [name for name in graph.nodes if name.endswith(("_rows", "_columns"))]
    assert len(added) == 4


def test_larger_images_before_the_read_out(tmp_path):
    net = behind(
        lambda n, x: n.out(n.decode(n.up(x))), up=SpikeRearrange("upsample", 2, 2), decode=Decode(),
        out=nn.Conv2d(4, 3, 3, padding=1),
    )  # fmt: skip
    exchanged(net, IMAGES, tmp_path)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(tmp_path, mode):
    """Of a layer, and of a branch."""

    def run(n, x):
        return n.add(n.layer(x), x)

    net = behind(
        run, layer=TandemConv2d(4, 4, 3, padding=1, padding_mode=mode, neuron=IF(0.5)),
        add=TandemAdd(TandemConv2d(4, 5, (2, 4), padding="same", padding_mode=mode, stride=1), TandemConv2d(4, 5, 1)),
    )  # fmt: skip
    exchanged(net, IMAGES, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 3, "stride": (2, 1), "padding": 1, "output_padding": (1, 0), "groups": 2},
        {"kernel_size": (2, 3), "stride": (3, 2), "dilation": (1, 2), "output_padding": (2, 1)},
    ],
    ids=str,
)
def test_transposed_convolutions_with_strides(tmp_path, settings):
    """Alone, and as a branch of a join."""
    net = behind(lambda n, x: n.layer(x), layer=TandemConvTranspose2d(4, 6, **settings))
    exchanged(net, IMAGES, tmp_path)
    net = behind(
        lambda n, x: n.add(x, x),
        add=TandemAdd(TandemConvTranspose2d(4, 6, **settings), TandemConvTranspose2d(4, 6, **settings)),
    )
    exchanged(net, IMAGES, tmp_path)


class Turned(nn.Module):
    """A layer of one's own that swaps rows and columns."""

    def forward(self, x):
        return x.rearranged(lambda values: values.transpose(-1, -2))

    def nir(self, writer, signal):
        return writer.rearranged(signal, lambda values: values.transpose(-1, -2))


def test_what_only_flattening_may_follow_is_named(tmp_path):
    def refused(net, message):
        with pytest.raises(ValueError, match=message):
            to_nir(net, IMAGES)

    refused(
        behind(lambda n, x: n.pool(n.turn(x)), turn=Turned(), pool=SpikingAvgPool2d(2)),
        r"pool \(SpikingAvgPool2d\): turn \(Turned\) before it must be followed by flattening to \[N, F\]",
    )
    refused(
        behind(lambda n, x: n.layer(n.turn(x)), turn=Turned(), layer=TandemConv2d(4, 4, 3)),
        r"layer \(TandemConv2d\): turn \(Turned\) before it must be followed by flattening to \[N, F\]",
    )
    refused(behind(lambda n, x: n.turn(x), turn=Turned()), r"output: turn \(Turned\) before it must be followed by")
    refused(
        behind(lambda n, x: n.add(n.turn(x), n.turn(x)), turn=Turned(), add=TandemAdd(nn.Identity(), nn.Identity())),
        r"add \(TandemAdd\), branch 0: turn \(Turned\) before it",
    )
    flat = behind(
        lambda n, x: n.layer(n.flat(n.turn(x))),
        turn=Turned(),
        flat=nn.Flatten(),
        layer=TandemLinear(360, 5, neuron=IF(8.0)),
    )
    exchanged(flat, IMAGES, tmp_path)
    with pytest.raises(TypeError, match="to_nir: groups must be True or False, got int"):
        to_nir(behind(lambda n, x: x), IMAGES, groups=1)


class Padded(nn.Module):
    """Pads its input, as "same" convolutions with strides do."""

    def __init__(self, **how):
        super().__init__()
        self.how, self.encode, self.decode = how, Encode(STEPS), Decode()
        self.first, self.out = TandemConv2d(2, 4, 3, 2, padding=1, neuron=IF(0.5)), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.out(self.decode(self.first(self.encode(F.pad(x, (0, 1, 2, -1), **self.how)))))


def test_a_padded_input(tmp_path):
    graph = exchanged(filled(Padded()), IMAGES, tmp_path)
    assert list(graph.nodes) == ["input", "first", "first_neurons", "out", "output"]
    for how in ({"mode": "reflect"}, {"value": 0.5}):
        with pytest.raises(ValueError, match=r"pad \(call_function\): it must pad the model's input with zeros"):
            to_nir(Padded(**how), IMAGES)


def test_sums_of_read_outs(tmp_path):
    """Also of the same spikes, and of what weighs differently."""
    net = behind(
        lambda n, x: n.out(n.flat(n.decode(x) + n.decode(n.b(x)) + n.decode(x))),
        b=TandemConv2d(4, 4, 3, padding=1, neuron=IF(0.5, amplitude=0.25)),
        decode=Decode(), flat=nn.Flatten(), out=nn.Linear(360, 3),
    )  # fmt: skip
    exchanged(net, IMAGES, tmp_path)


@pytest.mark.parametrize("name", ["no ReLU", "cat", "depthwise without ReLU", "average of values"])
def test_integers(name):
    """The metadata return the integers, also those of both signs and of spikes that differ in weight."""
    ann, x = rules.made(name)
    ann, x = ann.float(), x.float()
    net = convert(ann, STEPS, calibrate=x, **per_layer())
    quantise(net, 8)
    found = []
    for node in to_nir(net, x).nodes.values():
        if "weight_scale" in (node.metadata or {}):
            whole = node.weight / node.metadata["weight_scale"].reshape(-1, *[1] * (node.weight.ndim - 1))
            assert np.abs(whole - whole.round()).max() < 1e-3
            found.append(np.abs(whole).max().round())
    assert len(found) >= len(net.spiking_layers)
    assert max(found) == 127


def quantised_cat(*parts, flat=False):
    """An int8 layer that reads these channels of one node, side by side."""
    width = sum(last - first for first, last in parts)
    layer = TandemLinear(90 * width, 5, neuron=IF(8.0)) if flat else TandemConv2d(width, 5, 3, padding=1)
    net = behind(
        lambda n, x: n.layer(n.flat(n.cat(*(move(x) for move in n.moves)))),
        moves=nn.ModuleList(SpikeRearrange("channels", *part) for part in parts), cat=SpikeCat(*[False] * len(parts)),
        flat=nn.Flatten() if flat else nn.Identity(), layer=layer,
    )  # fmt: skip
    quantise(net, 8)
    return net


@pytest.mark.parametrize("flat", [False, True], ids=["convolution", "matrix"])
@pytest.mark.parametrize("parts", [((0, 4), (0, 4)), ((0, 3), (2, 4))], ids=["twice", "overlapping"])
def test_sums_of_integers_are_not_called_integers(parts, flat):
    """Weights that read one spike add up: two integers of 8 bits may need 9."""
    net = quantised_cat(*parts, flat=flat)
    node = to_nir(net, IMAGES).nodes["layer"]
    assert "weight_scale" not in node.metadata
    assert "weight_bits" not in node.metadata


@pytest.mark.parametrize("flat", [False, True], ids=["convolution", "matrix"])
@pytest.mark.parametrize("parts", [((0, 4), (0, 4)), ((0, 3), (2, 4)), ((2, 4), (0, 2))], ids=str)
def test_integers_of_parts_come_back(tmp_path, parts, flat):
    """With scales that are powers of two, sums are exact in floats, too."""
    net = quantised_cat(*parts, flat=flat)
    with torch.no_grad():
        for module in (net.first, net.layer):
            weight = module.parametrizations.weight.original
            weight.copy_((dyadic(*weight.shape, seed=3) * 4).clamp(-127 / 32, 127 / 32))
            weight.flatten(1)[:, 0] = 127 / 32  # all integers are multiples of 1 / 32
            assert torch.equal(module.weight, weight)
    exchanged(net, IMAGES, tmp_path)


@pytest.mark.parametrize("flat", [False, True], ids=["convolution", "matrix"])
def test_integers_side_by_side_stay_integers(flat):
    node = to_nir(quantised_cat((2, 4), (0, 2), flat=flat), IMAGES).nodes["layer"]
    assert node.metadata["weight_bits"] == 8
    whole = node.weight / node.metadata["weight_scale"].reshape(-1, *[1] * (node.weight.ndim - 1))
    assert np.abs(whole - whole.round()).max() < 1e-3
    assert np.abs(whole).max().round() == 127


def test_integers_of_two_scales_are_not_called_integers():
    """Side by side behind one node, where no scale of an output channel is that of all its integers."""
    net = behind(
        lambda n, x: n.out(n.decode(n.cat(n.first_two(x), n.last_two(x)))),
        first_two=SpikeRearrange("channels", 0, 2), last_two=SpikeRearrange("channels", 2, 4),
        cat=SpikeCat(False, False), decode=Decode(), out=nn.Conv2d(4, 5, 3),
    )  # fmt: skip
    quantise(net, 8)
    assert to_nir(net, IMAGES).nodes["out"].metadata["weight_bits"] == 8
    net.decode.scale = torch.tensor([1.0, 1.0, 0.5, 0.5])
    assert "weight_bits" not in to_nir(net, IMAGES).nodes["out"].metadata


# --- convolutions of what has moved ----------------------------------------------------------------------------------


def numbers(draw, low, high, count=2):
    return tuple(int(draw.integers(low, high + 1)) for _ in range(count))


def rearranged(draw, seed):
    """A node's output, a value made of it by a few random rearrangements, and the source of the value."""
    channels, size = int(draw.integers(1, 5)), numbers(draw, 1, 7)
    node = dyadic(2, channels, *size, seed=seed).double()
    value, source = node, NirSource(("node",), (channels, *size))
    for kind in draw.integers(0, 6, draw.integers(0, 4)):
        shape = tuple(value.shape[1:])
        chosen = torch.from_numpy(draw.permutation(shape[0]))[: int(draw.integers(1, shape[0] + 1))]
        silent = (int(draw.integers(0, 3)), 1)
        move = (
            SpikeRearrange("zero_pad", *numbers(draw, -2, 2, 4)).rearranged,
            SpikeRearrange("pixel_unshuffle", int(draw.integers(1, 4))).rearranged,
            SpikeWindows(numbers(draw, 1, 3), numbers(draw, 1, 3), numbers(draw, 0, 1)).rearranged,
            lambda x, chosen=chosen: x[:, :, chosen],
            lambda x, silent=silent: F.pad(x.movedim(2, -1), silent).movedim(-1, 2),
            None,
        )[kind]
        if move is None:
            factor = (2.0 ** torch.arange(shape[0]).double()).view(-1, 1, 1).expand(shape)
            source, value = source.times(factor), value * factor
            continue
        try:
            after = move(value.unsqueeze(0)).squeeze(0)
        except (ValueError, RuntimeError):
            continue  # for images of other sizes
        if after.numel():
            value, source = after, source.moved(shape, lambda x, move=move: move(x[None, None])[0, 0])
    return node, value, source


def test_random_rearrangements():
    """A convolution of the node's output equals that of the value, or there is none."""
    found = {True: 0, False: 0}
    for seed in range(400):
        draw = np.random.default_rng(seed)
        node, value, source = rearranged(draw, seed)
        shape = tuple(value.shape[1:])
        groups = 2 if shape[0] % 2 == 0 and draw.integers(0, 2) else 1
        kernel, stride, padding, dilation = (numbers(draw, *bounds) for bounds in ((1, 3), (1, 2), (0, 2), (1, 2)))
        if any(n + 2 * p <= d * (k - 1) for n, p, d, k in zip(shape[1:], padding, dilation, kernel, strict=True)):
            continue
        weight = dyadic(4, shape[0] // groups, *kernel, seed=seed + 1).double()
        want = F.conv2d(value, weight, None, stride, padding, dilation, groups)
        geometry = NirGeometry(stride, padding, dilation, groups, tuple(want.shape[2:]))
        moved = convolution(source, shape, weight, geometry)
        found[moved is not None] += source.changed()
        if moved is not None:
            same(F.conv2d(node, moved.weight, None, *moved[1:]), want)
    assert found[False] > 20
    assert found[True] > 150
