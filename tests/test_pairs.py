"""Trains that are paired, through the layers of a network and its frozen form."""

import copy
import io
import json

import pytest
import torch
from torch import nn

from exact import same
from tandem_cuda import (
    Decode,
    Encode,
    FrozenNetwork,
    SpikeCat,
    SpikeRearrange,
    SpikeTrain,
    SpikingAvgPool2d,
    SpikingGlobalMaxPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConv2d,
    TandemGate,
    TandemLinear,
    freeze,
)
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


def test_gates_keep_pairs():
    x = signed()(Encode(16)(IMAGES))
    y = TandemGate()(x, torch.full((2, 4, 1, 1), 0.5))
    assert y.paired
    same(Decode()(y), Decode(signed=True)(SpikeTrain(y.bits, 16)))


def test_sums_of_pairs_are_pairs():
    x = signed()(Encode(16)(IMAGES))
    assert TandemAdd(nn.Identity(), nn.Identity())(x, x).paired
    plain = SpikeTrain(x.bits, 16)
    assert not TandemAdd(nn.Identity(), nn.Identity())(plain, plain).paired


@pytest.mark.parametrize("pool", [SpikingMaxPool2d(2), SpikingGlobalMaxPool2d()], ids=lambda pool: type(pool).__name__)
def test_no_maximum_of_differences(pool):
    message = "input must not be paired, since the largest difference is no difference of maxima"
    with pytest.raises(ValueError, match=f"{type(pool).__name__}: {message}"):
        pool(signed()(Encode(4)(IMAGES)))
    with pytest.raises(ValueError, match=message):
        freeze(nn.Sequential(Encode(4), signed(), pool, Decode()).eval())


def test_odd_channels_are_no_pairs():
    x = signed()(Encode(4)(IMAGES)).rearranged(lambda values: values[:, :, :3])
    with pytest.raises(ValueError, match=r"Decode: signed input must have 2 \* C channels, got \[2, 3, 6, 6\]"):
        Decode()(x)


def test_pairs_of_features_are_not_taken_for_channels():
    layer = TandemLinear(5, 8)
    layer.wiring = Wiring(paired_outputs=True)
    layer.weight, layer.bias = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(4))
    rows = SpikeTrain.from_dense((torch.rand(4, 2, 3, 5) < 0.5).float())
    assert not layer(rows).paired
    assert layer(SpikeTrain(rows.bits[:, :, 0], 4)).paired


def test_a_plain_reader_reads_pickled_trains():
    x = SpikeTrain(torch.ones(1, 2, 4, dtype=torch.uint8), 1, amplitude=0.5, paired=True)
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
