"""SpikeRearrange against the functions of images that it does to counts, with and without pairs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tandem_cuda import Decode, Encode, FrozenNetwork, SpikeTrain, TandemConv2d, TandemLinear, freeze
from tandem_cuda.nn import SpikeRearrange, SpikingGlobalMaxPool2d
from tensors import planes, train

END = 2**30
MOVES = {
    "every other pixel": (("slice", 2, 0, END, 2), (4, 7, 6), lambda x: x[:, :, ::2]),
    "last columns": (("slice", 3, -3, END, 1), (4, 7, 6), lambda x: x[..., -3:]),
    "inner columns": (("slice", 3, 1, -1, 2), (4, 7, 6), lambda x: x[..., 1:-1:2]),
    "first rows": (("slice", 2, 0, 5, 1), (4, 7, 6), lambda x: x[:, :, :5]),
    "channels": (("slice", 1, 1, END, 2), (5, 7, 6), lambda x: x[:, 1::2]),
    "of a line": (("slice", 2, 2, END, 3), (4, 9), lambda x: x[:, :, 2::3]),
    "of a volume": (("slice", 4, 1, END, 1), (2, 3, 4, 5), lambda x: x[..., 1:]),
    "reflect_pad": (("reflect_pad", 2, 1, 0, 3), (3, 4, 5), lambda x: F.pad(x, (2, 1, 0, 3), "reflect")),
    "replicate_pad": (("replicate_pad", 2, 1, 0, 3), (3, 4, 5), lambda x: F.pad(x, (2, 1, 0, 3), "replicate")),
    "circular_pad": (("circular_pad", 2, 1, 0, 3), (3, 4, 5), lambda x: F.pad(x, (2, 1, 0, 3), "circular")),
    "resize": (("resize", 5, 9), (4, 7, 6), lambda x: F.interpolate(x, (5, 9))),
    "channel_pad": (("channel_pad", 1, 2), (3, 4, 5), lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))),
    "unflatten": (("unflatten", 2, 3, 4), (24,), lambda x: x.unflatten(1, (2, 3, 4))),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("signed", [False, True])
def test_counts_move_alike(name, signed):
    (how, *arguments), size, want = MOVES[name]
    neurons = 2 * size[0] if signed else size[0]
    x = SpikeTrain(planes(11, 3, neurons, *size[1:], seed=1, rate=0.5), 11, pair_dim=1 if signed else None)
    value = x.value.clone().requires_grad_()
    y = SpikeRearrange(how, *arguments)(x.replace(value=value))
    decoded = Decode()(y)
    values = x.count[:, ::2] - x.count[:, 1::2] if signed else x.count
    assert torch.equal(decoded, want(values))
    assert torch.equal(y.value, SpikeTrain(y.bits, 11).value)
    decoded.sum().backward()
    assert int(value.grad.abs().sum()) == decoded.numel() * (1 + signed) or how == "resize" or how.endswith("_pad")


def network(*move):
    return nn.Sequential(
        Encode(8), TandemConv2d(2, 4, 3, padding=1), SpikeRearrange(*move), TandemConv2d(4, 3, 3, padding=1), Decode()
    ).eval()


@pytest.mark.parametrize("move", [("slice", 2, 1, END, 2), ("slice", 3, -4, -1, 1), ("slice", 2, 2, 6, 1)])
def test_frozen_networks_know_sizes(move, tmp_path):
    net, x = network(*move), torch.rand(2, 2, 8, 9)
    frozen = freeze(net)
    with torch.no_grad():
        assert torch.equal(frozen(x), net(x))
    frozen.save(tmp_path / "net.safetensors")
    loaded = FrozenNetwork.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))
    if move[1] == 2 and move[3] == END:
        with pytest.raises(ValueError, match=r"slice 1::2 of dimension 2 must not be empty, got \[2, 4, 1, 9\]"):
            loaded(x[:, :, :1])


def test_features_become_images():
    net = nn.Sequential(
        Encode(4),
        TandemLinear(5, 24),
        SpikeRearrange("unflatten", 4, 2, 3),
        TandemConv2d(4, 3, 2),
        Decode(),
        nn.Flatten(),
    ).eval()
    with torch.no_grad():
        assert torch.equal(freeze(net)(torch.ones(2, 5)), net(torch.ones(2, 5)))
    wrong = nn.Sequential(Encode(4), TandemLinear(5, 23), SpikeRearrange("unflatten", 4, 2, 3), Decode()).eval()
    with pytest.raises(ValueError, match=r"must be \[N, 4 \* 2 \* 3\], got \[2, 23\]"):
        freeze(wrong)(torch.ones(2, 5))


@pytest.mark.parametrize(
    ("move", "size", "message"),
    [
        (("slice", 2, 5, END, 1), (2, 4, 4), r"slice 5::1 of dimension 2 must not be empty, got \[1, 2, 4, 4\]"),
        (("slice", 3, 0, END, 1), (2, 4), r"input of 'slice' must have dimension 3, got \[1, 2, 4\]"),
        (("unflatten", 2, 2, 2), (9,), r"input of 'unflatten' must be \[N, 2 \* 2 \* 2\], got \[1, 9\]"),
    ],
)
def test_wrong_inputs(move, size, message):
    with pytest.raises(ValueError, match=f"SpikeRearrange: {message}"):
        SpikeRearrange(*move)(SpikeTrain.from_dense(torch.ones(3, 1, *size)))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="dimension and step of 'slice' must be at least 1, got 0 and 1"):
        SpikeRearrange("slice", 0, 0, 1, 1)
    with pytest.raises(
        ValueError, match=r"SpikingGlobalMaxPool2d: dims must be \(2,\), \(3,\) or \(2, 3\), got \(1,\)"
    ):
        SpikingGlobalMaxPool2d((1,))


@pytest.mark.parametrize("dims", [(2,), (3,)])
@pytest.mark.parametrize("signed", [False, True])
def test_maxima_of_rows_and_of_columns(dims, signed, tmp_path):
    spikes = train(9, 2, 6, 5, 4, seed=3, rate=0.5)
    x = SpikeTrain.from_dense(spikes.float()).replace(pair_dim=1 if signed else None)
    values = x.count[:, ::2] - x.count[:, 1::2] if signed else x.count
    assert torch.equal(Decode()(SpikingGlobalMaxPool2d(dims)(x)), values.amax(dims, keepdim=True))
    net = nn.Sequential(Encode(4), TandemConv2d(2, 4, 3), SpikingGlobalMaxPool2d(dims), Decode(), nn.Flatten()).eval()
    frozen, image = freeze(net), torch.rand(3, 2, 7, 6)
    frozen.save(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(FrozenNetwork.load(tmp_path / "net.safetensors")(image), net(image))
