"""Trains that are paired, through the layers of a network and its frozen form."""

import copy
import io
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exact import same
from tandem_cuda import (
    IF,
    Decode,
    Encode,
    FrozenNetwork,
    RadixIF,
    SpikeCat,
    SpikeRearrange,
    SpikeTrain,
    SpikingAvgPool2d,
    TandemAdd,
    TandemConv2d,
    TandemDropout,
    TandemDropout2d,
    TandemLinear,
    freeze,
)
from tandem_cuda.nn import TandemElementwise
from tandem_cuda.nn.wiring import Wiring

IMAGES = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5


def signed(inputs=3, values=4):
    """A convolution with two neurons for each of its values."""
    torch.manual_seed(1)
    layer = TandemConv2d(inputs, 2 * values, 3, padding=1)
    layer.wiring = Wiring(paired_outputs=True)
    layer.weight = nn.Parameter((layer.weight.detach()[::2] * 64).round() / 16)
    layer.bias = nn.Parameter((layer.bias.detach()[::2] * 64).round() / 64)
    return layer


BEHIND = {
    "decoded": [],
    "flattened": [nn.Flatten()],
    "flattened by a rearrangement": [SpikeRearrange("flatten")],
    "some channels": [SpikeRearrange("channels", 1, 3)],
    "averages": [SpikingAvgPool2d(2, two_phase=True)],
    "concatenated": [SpikeCat(False)],
}


@pytest.mark.parametrize("name", BEHIND)
def test_frozen_networks_know_pairs(tmp_path, name):
    """No layer is told: what reads a train sees it. The frozen network computes the same, also from its file."""
    net = nn.Sequential(Encode(16), signed(), *map(copy.deepcopy, BEHIND[name]), Decode()).eval()
    want = net(IMAGES)
    assert want.shape[1] == net[:-1](IMAGES).shape[1] // 2
    assert (want < 0).any()
    frozen = freeze(net)
    same(frozen(IMAGES), want)
    frozen.save(tmp_path / "net.safetensors")
    same(FrozenNetwork.load(tmp_path / "net.safetensors")(IMAGES), want)


def test_sums_of_pairs_are_pairs():
    x = signed()(Encode(16)(IMAGES))
    assert TandemAdd(nn.Identity(), nn.Identity())(x, x).paired
    plain = SpikeTrain(x.bits, 16)
    assert not TandemAdd(nn.Identity(), nn.Identity())(plain, plain).paired


def test_odd_channels_are_no_pairs():
    x = signed()(Encode(4)(IMAGES)).rearranged(lambda values: values[:, :, :3])
    with pytest.raises(ValueError, match=r"Decode: signed input must have 2 \* C channels, got \[2, 3, 6, 6\]"):
        Decode()(x)


def linear(inputs=5, values=4):
    """A linear layer with two neurons for each of its values."""
    layer = TandemLinear(inputs, 2 * values)
    layer.wiring = Wiring(paired_outputs=True)
    layer.weight, layer.bias = nn.Parameter(torch.randn(values, inputs)), nn.Parameter(torch.randn(values))
    return layer


def test_pairs_of_features_lie_along_the_last_dimension():
    layer, rows = linear(), SpikeTrain.from_dense((torch.rand(4, 2, 3, 5) < 0.5).float())
    assert layer(rows).pair_dim == -1
    assert layer(SpikeTrain(rows.bits[:, :, 0], 4)).pair_dim == 1


def features(*shape):
    """A train [*shape, 2 * 3] of pairs along the last dimension, and the values that they stand for."""
    bits = torch.randint(0, 256, (2, *shape, 6), dtype=torch.uint8)
    x = SpikeTrain(bits, 16, amplitude=0.5, pair_dim=-1)
    return x, (x.count[..., ::2] - x.count[..., 1::2]) * 0.5


MOVES = {
    "flatten": ((4,), lambda x: x.flatten(1)),
    "channels": ((4,), lambda x: x[:, 1:3], 1, 3),
    "channel_shuffle": ((4,), lambda x: F.channel_shuffle(x, 2), 2),
    "unsqueeze": ((4,), lambda x: x[:, :, None]),
    "zero_pad": ((4, 5), lambda x: F.pad(x, (1, 2, 0, 1)), 1, 2, 0, 1),
    "upsample": ((4, 5), lambda x: F.interpolate(x, scale_factor=2), 2, 2),
    "pixel_shuffle": ((4, 5), lambda x: F.pixel_shuffle(x, 2), 2),
    "pairs": ((4, 5), lambda x: x, 1),
}


@pytest.mark.parametrize("how", MOVES)
def test_rearrangements_keep_pairs_of_features(how):
    sizes, f, *arguments = MOVES[how]
    x, value = features(2, *sizes)
    moved = SpikeRearrange(how, *arguments)(x)
    same(Decode()(moved), f(value))
    assert moved.pair_dim == (1 if how in ("flatten", "pairs") else -1)
    same(SpikeTrain(moved.bits, 16, amplitude=0.5, pair_dim=moved.pair_dim).count, moved.count)


def test_pairs_move_between_channels_and_features():
    x, value = features(2, 4)
    channels = SpikeRearrange("pairs", 1)(x)
    assert (channels.pair_dim, channels.shape) == (1, (2, 8, 3))
    same(Decode()(channels), value)
    same(SpikeRearrange("pairs", -1)(channels).bits, x.bits)
    assert SpikeRearrange("pairs", 1)(x.replace(pair_dim=None)).shape == x.shape
    plain = SpikeRearrange("pairs", 0)(channels)
    assert plain.pair_dim is None
    same(plain.bits, channels.bits)
    with pytest.raises(ValueError, match="SpikeRearrange: the dimension of 'pairs' must be 1, -1 or 0, got 2"):
        SpikeRearrange("pairs", 2)


@pytest.mark.parametrize("range_", [(1, -1), (1, 2), (2, 3), (2, 2)])
def test_flattened_pairs_of_features(range_):
    x, value = features(2, 4, 5)
    same(Decode()(x.flatten(*range_)), value.flatten(*range_))


def test_readers_of_pairs_of_features():
    x, value = features(2, 4)
    y, other = features(2, 3)
    plain = SpikeTrain(y.bits[..., ::2], 16, amplitude=0.5)
    same(Decode()(SpikeCat(False, False)(x, y)), torch.cat([value, other], 1))
    same(Decode()(SpikeCat(False, False)(x, plain)), torch.cat([value, plain.count * 0.5], 1))
    assert TandemAdd(nn.Identity(), nn.Identity())(x, x).pair_dim == -1
    channels = x.replace(pair_dim=1)
    for join in (SpikeCat(False, False), TandemAdd(nn.Identity(), nn.Identity())):
        with pytest.raises(ValueError, match=f"{type(join).__name__}: pairs of all inputs must lie along the same"):
            join(x, channels)
    with pytest.raises(ValueError, match=r"SpikingAvgPool2d: pairs must lie along the channels, got pair_dim=-1"):
        SpikingAvgPool2d(2)(features(2, 4, 5)[0])


def test_dropout_keeps_pairs_of_features_together():
    x, _ = features(64, 8)
    x = x.replace(bits=torch.full_like(x.bits, 255))
    kept = (TandemDropout(0.5)(x).count != 0).unflatten(2, (3, 2))
    same(kept[..., 0], kept[..., 1])
    assert 0.4 < kept.float().mean() < 0.6
    x = features(64, 8, 2)[0]
    kept = TandemDropout2d(0.5)(x.replace(bits=torch.full_like(x.bits, 255))).count != 0
    assert (kept.flatten(2).all(2) | ~kept.flatten(2).any(2)).all()  # whole channels


def test_odd_features_are_no_pairs():
    x = features(2, 4)[0].rearranged(lambda values: values[..., :3])
    with pytest.raises(ValueError, match=r"Decode: signed input must have 2 \* F features, got \[2, 4, 3\]"):
        Decode()(x)


def test_a_plain_reader_reads_pickled_trains():
    x = SpikeTrain(torch.ones(1, 2, 4, dtype=torch.uint8), 1, amplitude=0.5, pair_dim=1)
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    with torch.serialization.safe_globals([SpikeTrain]):
        back = torch.load(file, weights_only=True)
    assert back.code == x.code
    same(back.bits, x.bits)


def test_files_say_pairs_only_where_neurons_share_weights():
    layer = freeze(nn.Sequential(Encode(4), signed(), Decode()).eval()).nodes[1].layer
    settings, tensors = json.loads(json.dumps(layer.settings())), layer.tensors()
    assert settings["paired"] is True
    for wrong in (False, 1, "yes"):
        with pytest.raises(ValueError, match="TandemConv2d: setting paired must be true beside multiplicity, got"):
            type(layer).load(TandemConv2d, settings | {"paired": wrong}, tensors)


@pytest.mark.parametrize("neuron", [RadixIF(), IF(), IF(initial=0.5, two_phase=True)], ids=str)
@pytest.mark.parametrize("engine", ["auto", "event", "dense"])
def test_elementwise_layers_of_empty_batches(engine, neuron):
    """Of features and of images, whose inputs are values of both signs, or not."""
    for of_features, pixels in ((True, ()), (False, ()), (False, (4,)), (False, (3, 5))):
        for inputs in (3, 6):
            layer = TandemElementwise(inputs, 3, 3, neuron=neuron, engine=engine, of_features=of_features).eval()
            layer.maps(0.5, 0.25, torch.empty(0))
            bits = torch.zeros(1, 0, inputs, *pixels, dtype=torch.uint8)
            assert layer(SpikeTrain(bits, 4, radix=neuron.radix)).shape == (0, 3, *pixels)


@pytest.mark.parametrize("time_steps", [8, 9, 16, 33])
def test_elementwise_layers_compute_the_same_with_a_gradient(time_steps):
    """Torch multiplies then, and a kernel does otherwise: also of factors whose products are rounded."""
    bits = torch.randint(0, 256, (-(-time_steps // 8), 4, 64, 9, 9), dtype=torch.uint8)
    bits[-1] &= 2 ** ((time_steps - 1) % 8 + 1) - 1
    layer = TandemElementwise(64, 64, 32, neuron=IF(0.2, initial=0.5, two_phase=True)).eval()
    layer.maps(0.1, 0.0, torch.rand(32))  # sums are at thresholds, but for rounding
    x = SpikeTrain(bits, time_steps)
    want, got = layer(x), layer(SpikeTrain(bits, time_steps, x.count.requires_grad_()))
    assert got.count.requires_grad
    same(got.bits, want.bits)
