"""Cascades of frozen networks: who stops where, and what that costs."""

import pytest
import torch
from torch import nn

from anns import Pair
from exact import same
from tandem_cuda import IF, Cascade, Encode, TandemLinear, convert, freeze
from tensors import generator

STEPS = (1, 2, 5)


def two_inputs():
    return Pair(
        lambda n, x, y: n.out(torch.relu(n.c(torch.relu(n.a(x))) + n.d(torch.relu(n.b(y))))),
        a=nn.Linear(5, 9), b=nn.Linear(3, 9), c=nn.Linear(9, 8), d=nn.Linear(9, 8), out=nn.Linear(8, 4),
    )  # fmt: skip


def stages(*, softmax=False, ann=None):
    """Frozen networks of one set of weights; and the network that they are from."""
    torch.manual_seed(0)
    last = [nn.Softmax(1)] if softmax else []
    if ann is None:
        ann = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4), *last)
    example = samples(1) if isinstance(ann, nn.Sequential) else (torch.zeros(1, 5), torch.zeros(1, 3))
    levels = dict.fromkeys(convert(ann, 1, example=example).spiking_layers, 0.5)
    neuron = IF(initial=0.5, two_phase=True)
    net = convert(ann, 1, mode="impulse", neuron=neuron, calibrate=levels, example=example).eval()
    with torch.no_grad():
        for p in ann.parameters():
            p.mul_(1.5 if p.dim() == 2 else 0.5)
        ann[4].weight.mul_(4) if isinstance(ann, nn.Sequential) else ann.out.weight.mul_(4)
    frozen = []
    for steps in STEPS:
        net.set_time_steps(steps)
        frozen.append(freeze(net))
    return frozen, net


def samples(n=60):
    return torch.rand(n, 6, generator=generator(1))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("exit_confidence", [0.3, 0.6, 0.8, 1])
def test_each_sample_stops_at_the_first_sure_network(exit_confidence, softmax):
    frozen, _ = stages(softmax=softmax)
    x = samples()
    got = Cascade(frozen).predict(x, exit_confidence)
    outputs = [network(x) for network in frozen]
    for n in range(len(x)):
        done = 0
        for steps, logits in zip(STEPS, outputs, strict=True):
            done += steps
            confidence, found = (logits[n] if softmax else logits[n].softmax(0)).max(0)
            if confidence >= exit_confidence:
                break
        assert (got.steps[n], got.classes[n]) == (done, found)
        torch.testing.assert_close(got.logits[n], logits[n], rtol=0, atol=1e-6)  # torch adds up by size of the batch
        torch.testing.assert_close(got.confidence[n], confidence, rtol=0, atol=1e-6)
    if exit_confidence == 0.6:
        assert len(got.steps.unique()) > 1


def test_accuracy_curve():
    frozen, _ = stages()
    batches = [(samples(), torch.arange(60) % 4), (samples(7), torch.arange(7) % 4)]
    curve = Cascade(frozen).accuracy_curve(batches, [0.6, 1.0])
    assert [point.steps for point in curve.over_time] == [1, 3, 8]
    spent = 0.0
    for steps, network, point in zip(STEPS, frozen, curve.over_time, strict=True):
        alone = network.accuracy_curve(batches, chunk=steps).over_time[-1]
        assert point.accuracy == pytest.approx(alone.accuracy)
        spent += alone.synops
        assert point.synops == pytest.approx(spent)
    for point in curve.over_confidence:
        found = [Cascade(frozen).predict(x, point.exit_confidence) for x, _ in batches]
        assert point.steps == pytest.approx(float(torch.cat([p.steps for p in found]).double().mean()))
        right = [p.classes == y for p, (_, y) in zip(found, batches, strict=True)]
        assert point.accuracy == pytest.approx(float(torch.cat(right).double().mean()))
    assert curve.over_confidence[0].synops < curve.over_confidence[1].synops == curve.over_time[-1].synops


def test_a_single_network_and_no_samples():
    frozen, _ = stages()
    x = samples()
    same(Cascade(frozen[1:2]).predict(x).logits, frozen[1](x))
    assert Cascade(frozen).predict(x[:0]).classes.shape == (0,)


def test_several_inputs():
    frozen, _ = stages(ann=two_inputs())
    x = torch.rand(9, 5, generator=generator(2)), torch.rand(9, 3, generator=generator(3))
    for given in (x, [*x]):  # as a DataLoader gives them
        got = Cascade(frozen).predict(given, 1)
        same(got.logits, frozen[-1](*x))
    assert Cascade(frozen).predict(x, 0.3).steps.tolist() == [1] * 9


def test_bad_inputs():
    """As FrozenNetwork.stream refuses them."""
    one, two = (Cascade(stages(ann=ann)[0]) for ann in (None, two_inputs()))
    for x, message in ((None, "stream: x must be given"), ((), "input must be a Tensor, got tuple")):
        with pytest.raises(TypeError, match=message):
            one.predict(x)
    with pytest.raises(TypeError, match="stream: x must be a tuple of 2 inputs, got Tensor"):
        two.predict(samples())
    with pytest.raises(ValueError, match=r"stream: inputs must have the same number of samples, got \[9, 1\]"):
        two.predict((torch.rand(9, 5), torch.rand(1, 3)))


def test_bad_networks():
    frozen, net = stages()
    with pytest.raises(TypeError, match="Cascade: networks must be FrozenNetworks, got TandemNetwork"):
        Cascade([net])
    with pytest.raises(ValueError, match="Cascade: networks must be one or more, got none"):
        Cascade([])
    with pytest.raises(ValueError, match=r"Cascade: networks must have increasing T, got \[2, 1\]"):
        Cascade([frozen[1], frozen[0]])
    with pytest.raises(ValueError, match=r"Cascade: networks must have increasing T, got \[2, 2\]"):
        Cascade([frozen[1], frozen[1]])
    with pytest.raises(ValueError, match="Cascade: networks must all end in a softmax or none"):
        Cascade([frozen[0], stages(softmax=True)[0][1]])
    ann = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    spiking = convert(ann, 2, mode="spikes", example=samples(1))
    with pytest.raises(ValueError, match="Cascade: networks must take real input"):
        Cascade([freeze(spiking)])
    train_out = freeze(nn.Sequential(Encode(2), TandemLinear(6, 5)))
    with pytest.raises(ValueError, match=r"predict: the network must end in a read-out"):
        Cascade([train_out]).predict(samples())
