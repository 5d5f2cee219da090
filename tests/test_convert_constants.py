"""Linear maps with constants: fixed filters, matrices, means of channels, factors and offsets of channels."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tandem_cuda import TandemConv2d, convert, freeze
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
    number = sum(type(module) is MIDDLES[name][1] for module in snn.snn.modules())
    assert number == (1 if name == "scaled" else 3)
    assert snn.report().analogue == ()
    with torch.no_grad():
        got, want = snn(images), ann(images)
        assert (got - want).norm() < 0.02 * want.norm()
        assert torch.equal(freeze(snn)(images), got)
        assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(snn)))(images), got)
        snn.double()
        torch.testing.assert_close(snn(images.double()).float(), got, rtol=0, atol=0.05)
        assert torch.equal(freeze(snn)(images.double()), snn(images.double()))
        snn.float()
        assert torch.equal(snn(images), got)
    snn.train()
    snn(images).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in ann.parameters())
    assert {*snn.state_dict()} - {"_extra_state"} == {*ann.state_dict()}


@pytest.mark.parametrize("name", ["edges", "scaled"])
def test_changed_constants(name):
    """Filters are the ANN's own buffers. Factors have become settings of neurons: changed ones are noticed."""
    ann, images, snn = made(name)
    with torch.no_grad():
        want = snn(images)
        buffer = ann.middle.filter if name == "edges" else ann.middle.factor
        buffer.mul_(2)
        if name == "edges":
            assert (snn(images) != want).any()
        else:
            with pytest.raises(RuntimeError, match=r"middle\.factor"):
                snn(images)
        buffer.div_(2)
        assert torch.equal(snn(images), want)
