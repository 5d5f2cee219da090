"""No layer waits for its device, nor copies from the host, once it has run: a CUDA graph could not capture that.

Without a device, modes refuse what would do so on one (waiting.py).
"""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tandem_cuda import (
    IF,
    Decode,
    Encode,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConv2d,
    TandemDropout,
    TandemLinear,
    TandemNeurons,
    quantise,
)
from tandem_cuda.nn import constants as constants_of_layers
from tandem_cuda.nn.quantiser import WeightQuantiser
from tandem_cuda.ops import checks
from waiting import Refused, never_waiting


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch):
    """Values are checked on the CPU alone: test_finite.py has the devices."""
    monkeypatch.setattr(checks, "check_finite", lambda *named: None)


class Layers(nn.Module):
    """One of each."""

    def __init__(self, bits, neuron, padding_mode):
        super().__init__()
        same = {"padding": 1, "bias": False, "norm": "batch", "neuron": neuron}
        self.encode = Encode(8)
        self.stem = TandemConv2d(3, 16, 3, padding_mode=padding_mode, **same)
        self.pool = SpikingAvgPool2d(2)
        self.join = TandemAdd(TandemConv2d(16, 16, 3, **same), nn.Identity(), neuron=neuron)
        self.conv = TandemConv2d(16, 32, 3, **same)
        self.uneven = SpikingAdaptiveAvgPool2d(3)
        self.most = SpikingMaxPool2d(3)
        self.dropout = TandemDropout(0.2)
        self.hidden = TandemLinear(32, 20, neuron=neuron)
        self.decode = Decode()
        if bits is not None:
            quantise(self, bits)

    def forward(self, x):
        x = self.pool(self.stem(self.encode(x)))
        x = self.join(x, x)
        x = self.most(self.uneven(self.conv(x)))
        return self.decode(self.hidden(self.dropout(x.flatten(1))))


KINDS = {
    "float32": (None, IF(0.5), "zeros"),
    "reflect": (None, IF(0.5, initial=0.5), "reflect"),
    "circular": (None, IF(0.5), "circular"),
    "replicate": (None, IF(0.5), "replicate"),
    "two phases": (None, IF(0.5, two_phase=True), "zeros"),
    "int8": (8, IF(0.5), "zeros"),
    "int16, two phases": (16, IF(0.5, two_phase=True), "zeros"),
}


def step(net, optimizer, x, labels):
    loss = nn.functional.cross_entropy(net(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_training(kind):
    torch.manual_seed(0)
    net = Layers(*KINDS[kind])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    x, labels = torch.randn(4, 3, 10, 10), torch.arange(4)
    step(net, optimizer, x, labels)
    with never_waiting() as mode:
        step(net, optimizer, x, labels)
    assert mode.launches > 50


@pytest.mark.parametrize("kind", KINDS)
def test_inference(kind):
    net, x = Layers(*KINDS[kind]).eval(), torch.randn(4, 3, 10, 10)
    with torch.no_grad():
        want = net(x)
        with never_waiting():
            got = net(x)
    assert torch.equal(got, want)


class DividesByNumbers(TorchDispatchMode):
    """Notes divisions by a number, for which CUDA multiplies by its reciprocal: the CPU may round otherwise."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::div", "aten::div_") and not isinstance(args[1], torch.Tensor):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_inference_rounds_alike_on_all_devices(kind):
    net = Layers(*KINDS[kind]).eval()
    neurons = TandemNeurons(3, IF(0.5), signed=True)
    net.encode = Encode(3)
    with torch.no_grad(), DividesByNumbers() as mode:
        net(torch.randn(4, 3, 10, 10))
        neurons(torch.randn(2, 4, 5, 5))
        for bits in (4, 8, 16):
            WeightQuantiser(bits)(torch.randn(3, 5))
        torch.ones(1) / 3
    assert len(mode.found) == 1  # the last line's


@pytest.mark.parametrize(("bits", "forward", "backward"), [(None, 7, 4), (8, 8, 8)])
def test_launches_of_a_layer_with_batch_norm(bits, forward, backward):
    """docs/cuda.md has these numbers."""
    layer = TandemConv2d(16, 16, 3, padding=1, bias=False, norm="batch")
    if bits is not None:
        quantise(nn.Sequential(layer), bits)
    below = TandemConv2d(16, 16, 1)
    x = below(SpikeTrain.from_dense((torch.rand(8, 2, 16, 6, 6) < 0.3).float()))  # whose counts need a gradient
    layer(x)
    with never_waiting() as mode:
        y = layer(x)
    assert mode.launches == forward
    grad = torch.rand(y.count.shape)
    with never_waiting() as mode:
        torch.autograd.grad(y.count, (x.count, *layer.parameters()), grad, allow_unused=True)
    assert mode.launches == backward


@pytest.fixture
def constants(monkeypatch):
    """Counts up each time that it makes a tensor."""
    monkeypatch.setattr(constants_of_layers, "_cached", {})
    monkeypatch.setattr(constants_of_layers, "_in_graphs", {})
    numbers = iter(range(1000))

    def f(key):
        (made,) = constants_of_layers.constants(torch.ones(1), key, lambda: (torch.tensor(next(numbers)),))
        return int(made)

    return f


def test_constants_that_a_graph_makes_are_its_own(constants, monkeypatch):
    monkeypatch.setattr(constants_of_layers, "capturing", lambda like: True)
    assert [constants("a"), constants("a")] == [0, 1]  # they have no values until it is replayed
    monkeypatch.setattr(constants_of_layers, "capturing", lambda like: False)
    assert [constants("a"), constants("a")] == [2, 2]


def test_constants_that_a_graph_reads_stay(constants, monkeypatch):
    assert [constants("a"), constants("b")] == [0, 1]
    monkeypatch.setattr(constants_of_layers, "capturing", lambda like: True)
    assert constants("a") == 0
    monkeypatch.setattr(constants_of_layers, "capturing", lambda like: False)
    for i in range(100):
        constants(i)
    assert constants("a") == 0
    assert constants("b") > 1


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x * torch.tensor([1.0, 2.0, 3.0]),
        lambda x: x + torch.arange(3),
        lambda x: torch.equal(x, x),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x.new_tensor([1.0]),
        lambda x: x[[0, 2]],
        lambda x: x[None, [0, 2]],
    ],
)
def test_what_waits_is_refused(f):
    x = torch.ones(3)
    f(x)
    with pytest.raises(Refused), never_waiting():
        f(x)
