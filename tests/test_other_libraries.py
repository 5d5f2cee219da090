"""examples/other_libraries.py: networks that are trained beside tandem networks."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from exact import generator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
other_libraries = pytest.importorskip("other_libraries")


class Thresholds(other_libraries.SurrogateGradient):
    """Neurons that spike wherever their current is positive, in every step."""

    def __init__(self, network="mnist_cnn", time_steps=3):
        super().__init__(network, time_steps, nn.Identity)

    def fire(self, neurons, currents):
        return (currents > 0).float()


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        ([nn.Conv2d(3, 4, 3, padding=1)], (3, 5, 6)),
        ([nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)], (4, 7, 5)),
        ([nn.Conv2d(2, 3, (2, 3), dilation=2)], (2, 6, 7)),
        ([nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5)], (2, 3, 4)),
    ],
)
def test_fan_out(block, shape):
    """Each input's is the number of outputs that change with it."""
    before = [p.detach().clone() for layer in block for p in layer.parameters()]
    layers = nn.Sequential(*(layer for layer in block if not isinstance(layer, nn.BatchNorm1d)))
    inputs = torch.eye(torch.Size(shape).numel()).view(-1, *shape)
    with torch.no_grad():
        reached = layers(inputs) != layers(torch.zeros(1, *shape))
    assert torch.equal(other_libraries.fan_out(block, shape), reached.flatten(1).sum(1).float().view(shape))
    assert all(
        torch.equal(p, q) for p, q in zip(before, (p for layer in block for p in layer.parameters()), strict=True)
    )


def test_activity():
    """Spikes per neuron and step; SynOps as the sum of the spikes' fan-out, per sample. Training does not count."""
    torch.manual_seed(0)
    net, x = Thresholds(), torch.randn(4, 1, 28, 28, generator=generator(0))
    net.train()(x)
    net.eval()
    first = net(x[:1])
    net(x[1:])
    with torch.no_grad():
        spikes, number, neurons, synops = x, 0.0, 0, 0.0
        for block, reader in zip(net.hidden, [*net.hidden[1:], net.readout], strict=True):
            spikes = (block(spikes) > 0).float()
            reached = other_libraries.fan_out(reader, spikes.shape[1:])
            number, neurons, synops = number + spikes.sum(), neurons + spikes.numel(), synops + (spikes * reached).sum()
        torch.testing.assert_close(first, net.readout(spikes[:1]))
    activity = net.activity()
    assert activity["synops_per_sample"] == pytest.approx(float(3 * synops / 4))
    assert activity["firing_rate"] == pytest.approx(float(number / neurons))
    net.forget()
    net(x[:1])
    assert net.activity()["synops_per_sample"] != activity["synops_per_sample"]


MAKERS = {
    "SpikingJelly": ("spikingjelly", {"time_steps": 3}),
    "SnnTorch": ("snntorch", {"time_steps": 3}),
    "QuantisationAware": ("brevitas", {"bits": 2}),
}


@pytest.mark.parametrize(("kind", "package", "how"), [(kind, *made) for kind, made in MAKERS.items()], ids=MAKERS)
@pytest.mark.parametrize("network", ["mnist_cnn", "small_cifarnet"])
def test_networks(kind, package, how, network):
    """They have a gradient in every weight, and the same output at every call in eval mode."""
    pytest.importorskip(package)
    torch.manual_seed(0)
    net = getattr(other_libraries, kind)(network, **how)
    x = torch.rand(4, *((1, 28, 28) if network == "mnist_cnn" else (3, 32, 32)), generator=generator(0))
    net(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters() if p.dim() > 1)
    with torch.no_grad():
        first, again = net.eval()(x), net(x)
    assert first.shape == (4, 10)
    assert torch.equal(first, again)


@pytest.mark.parametrize("kind", MAKERS)
def test_refused(kind, monkeypatch):
    monkeypatch.setattr(other_libraries.importlib, "import_module", lambda name: exec(f"import {name}_of_nobody"))
    make = getattr(other_libraries, kind)
    with pytest.raises(ValueError, match=r"is missing \(No module named .*\): pip install 'tandem_cuda\[bench\]'"):
        make()
    monkeypatch.undo()
    pytest.importorskip(MAKERS[kind][0])
    with pytest.raises(ValueError, match=f"{kind}: network must be a function of tandem_cuda.models, got '_cnn'"):
        make("_cnn")
    if kind == "SnnTorch":
        with pytest.raises(ValueError, match=r"SnnTorch: surrogate must be a function of snntorch\.surrogate, got 'at"):
            make(surrogate="atom")


def test_time_steps():
    with pytest.raises(ValueError, match="Thresholds: time_steps must be at least 1, got 0"):
        Thresholds(time_steps=0)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("nobody", "X: network must be a function of tandem_cuda.models, got 'nobody'"),
        ("autoencoder", "X: network must be made of convolutions and linear layers, got"),
    ],
)
def test_layers_of_a_network(network, message):
    with pytest.raises(ValueError, match=message):
        other_libraries.Blocks(network, "X")
    hidden = other_libraries.Blocks("mnist_cnn", "X").hidden
    assert [type(block[-2]).__name__ for block in hidden] == ["Conv2d", "Conv2d", "Conv2d", "Linear"]
