"""Factors and offsets that the ANN learns become layers that share them."""

import copy

import pytest
import torch
from torch import nn

from exact import generator, same
from tandem_cuda import convert, freeze


class Scaled(nn.Module):
    """Two convolutions, with a learned factor and offset behind each of them."""

    def __init__(self, shape):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.scale, self.bias = nn.Parameter(torch.full(shape, 1.25)), nn.Parameter(torch.full(shape, 0.125))

    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            x = self.scale * torch.relu(self.norm(conv(x))) + self.bias
        return self.fc(x.mean((2, 3)))


def images(n=6):
    return torch.randn(n, 3, 10, 10, generator=generator(0))


@pytest.mark.filterwarnings("ignore:convert.* computed on real values")
@pytest.mark.parametrize("shape", [(), (1, 6, 1, 1)])
def test_both_networks_share_them(shape):
    torch.manual_seed(0)
    ann = Scaled(shape).eval()
    snn = convert(ann, 8, calibrate=images())

    def near():
        with torch.no_grad():
            want = ann(images())
            assert (snn(images()) - want).norm() < 0.05 * want.norm()

    near()
    assert list(snn.state_dict()) == [*ann.state_dict(), "_extra_state"]
    assert {*snn.parameters()} == {*ann.parameters()}
    same(copy.deepcopy(snn)(images()), snn(images()))
    with torch.no_grad():  # both networks see it
        ann.scale.mul_(0.5)
        ann.bias.add_(0.25)
    near()
    same(freeze(snn)(images()), snn(images()).detach())
    snn(images()).square().sum().backward()
    got = {name: p.grad.clone() for name, p in ann.named_parameters()}
    ann.zero_grad()
    ann(images()).square().sum().backward()
    for name in ("scale", "bias", "conv1.weight"):
        want = ann.get_parameter(name).grad
        assert (got[name] - want).norm() < 0.2 * want.norm(), name
