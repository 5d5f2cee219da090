"""A layer of a user takes part in analysis by having the methods that it asks for."""

import pytest
import torch
from torch import fx, nn

from exact import same
from tandem_cuda import (
    IF,
    Decode,
    Encode,
    FiringRatePenalty,
    SpikeTrain,
    SynOpsPenalty,
    TandemAdd,
    TandemConv2d,
    TandemLinear,
    freeze,
    ops,
    synops,
)
from tandem_cuda.analysis import counts_and_activations, diagnose
from tandem_cuda.nn.ann_twin import without_spikes

IMAGES = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """Each neuron reads one neuron below."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.25, 1.5, features))
        self.neuron = IF(clip=True)

    def forward(self, x):
        weight = torch.diag(self.weight.detach())
        bits, _, _ = ops.spiking_linear(x.bits, weight, time_steps=x.time_steps, neuron=self.neuron)
        ann = self.ann_twin(x).count
        return SpikeTrain(bits, x.time_steps, ops.spike_count(bits) + (ann - ann.detach()))

    def synapses_by_input(self):
        return [None]

    def ann_twin(self, x):
        return without_spikes((x.count * self.weight).clamp(0, x.time_steps), x.time_steps, 1.0)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(Encode(8), TandemLinear(5, 6), Scaled(6), Decode(), nn.Linear(6, 3)).eval()


def test_operations(net):
    first, own, read_out = synops(net, IMAGES)
    counts = net[:2](IMAGES).count
    assert [first.name, own.name, read_out.name] == ["1", "2", "4"]
    assert own.synops == counts.sum().item() / 4
    assert own.macs == 0
    assert own.saturation == (net[:3](IMAGES).count == 8).double().mean().item()


def test_penalties(net):
    net.train()
    with FiringRatePenalty(net) as rates, SynOpsPenalty(net) as operations:
        net(IMAGES)
        assert len(rates._seen) == len(operations._seen) == 2
        (rates() + operations()).backward()
    assert net[2].weight.grad.abs().sum() > 0


def test_agreement(net):
    counts, activations = counts_and_activations(net, IMAGES)["2"]
    below = net[:2](IMAGES).count
    assert torch.equal(counts, net[:3](IMAGES).count)
    assert torch.equal(activations, (below * net[2].weight.detach()).clamp(0, 8))
    table = diagnose(net, IMAGES, lambda logits: logits.square().mean())
    assert [layer.name for layer in table] == ["1", "2"]
    assert table[1].gradient_cosine > 0.9


def joined(layer):
    """The graph of a sum of a layer and its input."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("join", (x, x)))
    return fx.GraphModule({"join": TandemAdd(layer, nn.Identity())}, graph).eval()


def test_a_buffer_that_frozen_layers_have():
    class Own(TandemConv2d):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.register_buffer("gain", torch.full((2,), 5.0))

    x = SpikeTrain.from_dense((torch.rand(4, 2, 2, 5, 5) < 0.5).float())
    plain = TandemConv2d(2, 2, 3, padding=1, norm="batch").eval()
    own = Own(2, 2, 3, padding=1, norm="batch").eval()
    own.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        want = TandemAdd(plain, nn.Identity())(x, x).bits
        same(freeze(joined(own))(x).bits, want)
