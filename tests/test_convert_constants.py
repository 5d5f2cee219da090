"""Linear maps with constants: fixed filters, matrices, means of channels, factors and offsets of channels."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tandem_cuda import IF, Decode, SpikeTrain, TandemConv2d, TandemLinear, convert, freeze, quantise
from tandem_cuda.nn import TandemElementwise


class Net(nn.Module):
    """With something linear between its convolutions."""

    def __init__(self, middle, channels=6):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(channels, 4, 3, padding=1)
        self.fc, self.middle = nn.Linear(4, 3), middle

    def forward(self, x):
        x = self.middle(torch.relu(self.first(x)))
        return self.fc(torch.relu(self.second(x)).mean((2, 3)))


class Blur(nn.Module):
    """As the anti-aliasing of timm and of antialiased-cnns, with zeros around the image."""

    def __init__(self):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filter", (row[:, None] * row / 16)[None, None], persistent=False)

    def forward(self, x):
        return F.conv2d(x, self.filter.expand(6, 1, 3, 3), stride=2, padding=1, groups=6)


class Edges(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("filter", torch.tensor([[[[-1.0, 0, 1]]]]).repeat(6, 1, 1, 1))
        self.register_buffer("offset", torch.linspace(-0.2, 0.2, 6))

    def forward(self, x):
        return F.conv2d(x, self.filter, self.offset, padding=(0, 1), groups=6)


class Scaled(nn.Module):
    """Of each channel."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.linspace(0.5, 2, 6).view(1, 6, 1, 1))
        self.register_buffer("offset", torch.linspace(-0.3, 0.3, 6).view(6, 1, 1))

    def forward(self, x):
        return x * self.factor + self.offset


def exact(module):
    return getattr(module, "exact", None)


MIDDLES = {
    "blur": (Blur, TandemConv2d),
    "edges": (Edges, TandemConv2d),
    "scaled": (Scaled, TandemElementwise),
}


def made(name, **settings):
    torch.manual_seed(0)
    ann, images = Net(MIDDLES[name][0]()).eval(), torch.rand(12, 2, 8, 8)
    return ann, images, convert(ann, settings.pop("time_steps", 8), calibrate=images, **settings)


@pytest.mark.parametrize("name", MIDDLES)
def test_networks(name):
    ann, images, snn = made(name)
    kinds = [type(module) for module in snn.snn.modules() if "weight" in module._buffers]
    assert {*kinds} == {MIDDLES[name][1]}
    with torch.no_grad():
        got, want = snn(images), ann(images)
        assert (got - want).norm() < 0.02 * want.norm()
        assert torch.equal(freeze(snn)(images), got)
        assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(snn)))(images), got)
        snn.double()
        torch.testing.assert_close(snn(images.double()).float(), got, rtol=0, atol=0.05)
        assert torch.equal(freeze(snn)(images.double()), snn(images.double()))
        assert all(torch.equal(m.weight, m.exact[0]) for m in snn.snn.modules() if exact(m))
        snn.float()
        assert torch.equal(snn(images), got)
    snn.train()
    snn(images).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in ann.parameters())
    assert {*snn.state_dict()} - {"_extra_state"} == {*ann.state_dict()}


@pytest.mark.parametrize("name", ["blur", "edges"])
def test_the_pre_activation_is_the_map_of_decoded_values(name):
    """With two-phase neurons, whose spikes tell what v was."""
    ann, images, snn = made(name, neuron=IF(initial=0.5, two_phase=True), per_channel=False, correct_bias=False)
    layer = next(module for module in snn.snn.modules() if isinstance(module, TandemConv2d) and module.exact)
    caught = []
    hook = layer.register_forward_hook(lambda module, inputs, output: caught.append((inputs[0], output)))
    with torch.no_grad():
        snn(images)
    hook.remove()
    ((before, after),) = caught
    with torch.no_grad():
        value = Decode()(before)
        v = ann.middle(value)
    theta = layer.neuron.threshold
    got = Decode()(after) / after.amplitude
    count = torch.floor(v.abs() / theta + 0.5).clamp(0, 8) * v.sign()
    if layer.fires_pairs:  # which round v and -v alike
        count = torch.floor(v / theta + 0.5).clamp(0, 8) - torch.floor(-v / theta + 0.5).clamp(0, 8)
    assert (got != count).float().mean() < 0.002  # where the sums are rounded in another order


def test_integer_weights_are_those_of_layers():
    _, images, snn = made("blur")
    quantise(snn, 8)
    with torch.no_grad():
        assert torch.equal(freeze(snn)(images), snn(images))


@pytest.mark.parametrize("change", ["in place", "assigned"])
def test_changed_constants_are_noticed(change):
    ann, images, snn = made("edges")
    state = {name: x.clone() for name, x in ann.state_dict().items()}
    snn.load_state_dict(snn.state_dict())  # the same values
    with torch.no_grad():
        want = snn(images)
    if change == "in place":
        ann.middle.filter.mul_(2)
    else:
        ann.middle.filter = ann.middle.filter * 2
    with pytest.raises(RuntimeError, match=r"middle\.filter"):
        snn(images)
    ann.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(snn(images), want)


def test_matrices():
    layer = TandemLinear(3, 2, bias=False)
    layer.hold_constants(torch.tensor([[1.0, 0, 2], [0, 1, 0]]).double(), None, torch.ones(1))
    got = layer(SpikeTrain.from_dense(torch.ones(4, 1, 3)))
    assert got.count.tolist() == [[4.0, 4.0]]
    assert [*layer.parameters()] == []
