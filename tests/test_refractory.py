"""IF neurons with a refractory period: their definition, their rate, and what refuses them."""

import math

import pytest
import torch
from torch import nn

from anns import Net
from tandem_cuda import IF, Decode, Encode, TandemAdd, TandemLinear, convert, freeze, ops, synops


def test_by_hand():
    """What comes while the neuron recovers is lost, and what is above the threshold waits."""
    neuron = IF(1.0, refractory=2)
    want = [  # current, u before its reset, steps left, spike
        (0.5, 0.5, 0, 0),
        (2.0, 2.5, 0, 1),
        (8.0, 1.5, 2, 0),
        (-8.0, 1.5, 1, 0),
        (0.25, 1.75, 0, 1),
        (0.0, 0.75, 2, 0),
        (0.5, 0.75, 1, 0),
        (0.125, 0.875, 0, 0),
        (0.125, 1.0, 0, 1),
    ]
    state = neuron.rest(torch.zeros(1))
    for current, u, left, spike in want:
        spikes, state = neuron.step(state, torch.tensor([current]))
        assert (*(x.item() for x in state), spikes.item()) == (u, left, spike)


def test_saturation():
    for refractory in (1, 2, 4):
        neuron = IF(0.5, refractory=refractory)
        bits, _, _ = ops.integrate_and_fire(torch.full((1, 1), 100.0), 24, neuron=neuron)
        assert ops.spike_count(bits).item() == math.ceil(24 / (1 + refractory))
        assert neuron.activation(torch.tensor(0.5 * 24), 24) == pytest.approx(neuron.largest(24))


@pytest.mark.parametrize("refractory", [1, 2, 4])
@pytest.mark.parametrize("steps", [4, 8, 16, 64])
def test_the_activation_predicts_the_count(refractory, steps):
    """Of a constant current up to saturation; the docstring's figures."""
    neuron, current = IF(refractory=refractory), torch.linspace(0, 1, 4001, dtype=torch.float64)
    bits, _, _ = ops.integrate_and_fire(current[None], steps, neuron=neuron)
    error = (neuron.activation(steps * current, steps) - ops.spike_count(bits, torch.float64)[0]).abs()
    assert 0.215 < error.mean() < 0.375
    assert error.max() < 1


def test_what_cannot_have_one():
    ann = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="convert: neuron must have no refractory period with calibrate"):
        convert(ann, 4, neuron=IF(refractory=1), calibrate=torch.rand(8, 4))
    pytest.importorskip("nir")
    from tandem_cuda.exchange import to_nir

    net = nn.Sequential(Encode(4), TandemLinear(4, 3, neuron=IF(refractory=2)), Decode(), nn.Linear(3, 2))
    message = r"refractory must be 0, since NIR has no such neurons, got 2\.0; leave it out, as IF\(\) does"
    with pytest.raises(ValueError, match=message):
        to_nir(net, torch.rand(1, 4))
    net[1].neuron = IF()
    assert to_nir(net, torch.rand(1, 4)).nodes


def test_the_longest_period():
    neuron = IF(refractory=2**24)
    assert neuron == IF(refractory=2.0**24) == eval(repr(neuron), {"IF": IF})


def test_saturated_neurons_are_counted():
    neuron = IF(0.5, refractory=2)
    join = TandemAdd(TandemLinear(3, 3), nn.Identity(), neuron=neuron)

    def run(n, x):
        x = n.first(n.encode(x))
        return n.join(x, x)

    net = Net(run, encode=Encode(8), first=TandemLinear(3, 3, neuron=neuron), join=join).eval()
    with torch.no_grad():
        for layer in (net.first, net.join.branches[0]):
            layer.weight.copy_(torch.eye(3))
            layer.bias.zero_()
    for model in (net, freeze(nn.Sequential(Encode(8), net.first))):
        table = synops(model, torch.tensor([[100.0, 0.1, 100.0]]))
        assert [row.saturation for row in table] == [pytest.approx(2 / 3)] * len(table)
