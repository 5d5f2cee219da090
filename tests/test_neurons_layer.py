"""TandemNeurons: spikes for real values."""

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import dyadic, same
from freezable import graph_of
from tandem_cuda import IF, LIF, AdaptiveIF, Decode, Encode, FrozenNetwork, RadixIF, TandemLinear, TandemNeurons, freeze
from tandem_cuda import reference as ref

NEURONS = (
    IF(),
    IF(0.5, initial=0.5, amplitude=0.25),
    IF(2.0, initial=0.5, two_phase=True, clip=True),
    LIF(0.9),
    AdaptiveIF(0.5, 0.5),
    RadixIF(8.0),
)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("time_steps", [1, 3, 8])
@pytest.mark.parametrize(
    ("shape", "named"),
    [((3, 5), {}), ((2, 3, 4, 5), {"signed": True}), ((2, 4, 3), {"signed": True, "features": True})],
    ids=["features", "signed images", "signed rows"],
)
def test_as_the_reference(neuron, time_steps, shape, named):
    """Spikes, values and gradients, with dyadic values whose share per step is dyadic."""
    x = (4 * time_steps * dyadic(*shape, seed=0, dtype=torch.float64)).requires_grad_()
    got, want = (package.TandemNeurons(time_steps, neuron, **named)(x) for package in (tandem_cuda, ref))
    assert got.to_dense().any()
    same((got.to_dense(), got.value.detach()), (want.spikes, want.value.detach()))
    assert (got.amplitude, got.radix, got.paired) == (want.amplitude, want.radix, "signed" in named)
    seed = dyadic(*want.shape, seed=1, dtype=torch.float64)
    same(*(torch.autograd.grad(train.value, x, seed)[0] for train in (got, want)))
    if neuron == NEURONS[2]:  # which round
        value, level = Decode()(got), 2.0 * time_steps
        low = -level if "signed" in named else 0.0
        assert ((value * 2 - x.clamp(low, level)).abs() <= 1).all()


def test_thresholds_of_channels():
    """As values over the threshold of their channel."""
    x, thresholds = 4 * dyadic(2, 3, 5, seed=0), torch.tensor([0.5, 1.0, 2.0])
    layer, plain = TandemNeurons(4, signed=True), TandemNeurons(4, signed=True)
    layer.thresholds = thresholds
    same(layer(x).bits, plain(x / thresholds[:, None]).bits)
    rows = TandemNeurons(4, features=True)
    rows.thresholds = thresholds
    same(rows(x.mT).bits, TandemNeurons(4)(x / thresholds[:, None]).bits.mT)
    with pytest.raises(ValueError, match=r"input must have 3 channels along dimension 1, got \[2, 4\]"):
        layer(torch.zeros(2, 4))


@pytest.mark.parametrize("neuron", [IF(0.5), RadixIF(2.0)], ids=str)
def test_in_a_frozen_network(neuron, tmp_path):
    """Between spiking layers; the frozen network and its file compute the same."""
    torch.manual_seed(0)
    neurons = TandemNeurons(4, neuron, signed=True)
    neurons.thresholds = torch.rand(6) + 0.5
    modules = nn.ModuleDict(
        {
            "encode": Encode(4, "impulse"), "first": TandemLinear(5, 6, neuron=neuron), "decode": Decode(),
            "norm": nn.LayerNorm(6), "neurons": neurons, "last": TandemLinear(12, 4, neuron=neuron), "out": Decode(),
        }
    )  # fmt: skip
    names = ["x", *modules]
    net = graph_of(modules, {name: (names[i],) for i, name in enumerate(modules)}).eval()
    x = 4 * torch.randn(3, 5)
    with torch.no_grad():
        want = net(x)
    assert want.any()
    frozen = freeze(net)
    same(frozen(x), want)
    frozen.save(tmp_path / "net.safetensors")
    same(FrozenNetwork.load(tmp_path / "net.safetensors")(x), want)


def test_autocast():
    """Values in the lower precision are encoded in float32."""
    x = 4 * dyadic(2, 3, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train = TandemNeurons(4)(x.bfloat16())
    assert train.dtype == torch.float32
    same(train.bits, TandemNeurons(4)(x).bits)


def test_refused():
    neurons = TandemNeurons(4)
    calls = [
        (lambda: TandemNeurons(0), ValueError, "TandemNeurons: time_steps must be"),
        (lambda: TandemNeurons(True), TypeError, "TandemNeurons: time_steps must be an int"),
        (lambda: TandemNeurons(4, "IF"), TypeError, "TandemNeurons: neuron must be"),
        (
            lambda: neurons(neurons(torch.ones(1, 1))),
            TypeError,
            "TandemNeurons: input must be a Tensor, got SpikeTrain",
        ),
        (lambda: neurons(torch.ones(3)), ValueError, r"input must be \[N, C, ...\], got \[3\]"),
        (lambda: neurons(torch.ones(1, 1).half()), TypeError, "must be float32 or float64, got torch.float16"),
        (
            lambda: neurons(torch.ones(1, 1, dtype=torch.int64)),
            TypeError,
            "float64, got torch.int64",
        ),
        (lambda: TandemNeurons(9, RadixIF())(torch.ones(1, 1)), ValueError, "8"),
    ]
    for call, error, message in calls:
        with pytest.raises(error, match=message):
            call()
