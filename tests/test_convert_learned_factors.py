"""Factors and offsets that the ANN learns become neurons that share them."""

import copy
import io

import pytest
import torch
from torch import nn

from anns import Net
from exact import generator, same
from tandem_cuda import convert, freeze


class Scaled(nn.Module):
    """Two convolutions, with factors and offsets of learned numbers behind them."""

    def __init__(self, shape=(1,), multiply=lambda scale, x: scale * x, add=lambda x, bias: x + bias):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.scale, self.bias = nn.Parameter(torch.full(shape, 1.25)), nn.Parameter(torch.full(shape, 0.125))
        self.multiply, self.add = multiply, add

    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            x = self.add(self.multiply(self.scale, torch.relu(self.norm(conv(x)))), self.bias)
        return self.fc(x.mean((2, 3)))


def times(shape):
    return Net(lambda n, x: x * n.factor, factor=nn.Parameter(torch.ones(shape)))


def images(n=6):
    return torch.randn(n, 3, 10, 10, generator=generator(0))


def near(snn, ann):
    with torch.no_grad():
        want = ann(images())
        assert (snn(images()) - want).norm() < 0.05 * want.norm()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1)])
def test_it_computes_what_the_ann_does(shape):
    ann = Scaled(shape).eval()
    snn = convert(ann, 8, calibrate=images())
    near(snn, ann)
    assert list(snn.state_dict()) == [*ann.state_dict(), "_extra_state"]
    assert {*snn.parameters()} == {*ann.parameters()}
    same(freeze(snn)(images()), snn(images()).detach())
    same(copy.deepcopy(snn)(images()), snn(images()))
    with torch.no_grad():  # both networks see it
        ann.scale.mul_(0.5)
        ann.bias.add_(0.25)
    near(snn, ann)
    same(freeze(snn)(images()), snn(images()).detach())


@pytest.mark.parametrize(
    ("multiply", "add"),
    [
        (lambda scale, x: x * scale, lambda x, bias: bias + x),
        (lambda scale, x: x.mul(scale), lambda x, bias: x.add(bias)),
        (lambda scale, x: torch.mul(scale, x), lambda x, bias: torch.add(x, bias)),
        (lambda scale, x: x.mul_(scale), lambda x, bias: x.add_(bias)),
        (lambda scale, x: x * scale, lambda x, bias: x),
    ],
)
def test_ways_to_write_it(multiply, add):
    ann = Scaled(multiply=multiply, add=add).eval()
    near(convert(ann, 8, calibrate=images()), ann)


def test_both_learn():
    """The gradients are those of the ANN with many time steps."""
    ann = Scaled((1, 6, 1, 1)).eval()
    snn = convert(ann, 8, calibrate=images())
    snn(images()).square().sum().backward()
    got = {name: p.grad.clone() for name, p in ann.named_parameters()}
    ann.zero_grad()
    ann(images()).square().sum().backward()
    for name in ("scale", "bias", "conv1.weight"):
        want = ann.get_parameter(name).grad
        assert (got[name] - want).norm() < 0.2 * want.norm(), name


def test_state_and_steps():
    ann = Scaled().eval()
    snn = convert(ann, 8, calibrate=images())
    file = io.BytesIO()
    torch.save(snn.state_dict(), file)
    file.seek(0)
    other = convert(Scaled().eval(), 8, calibrate=images())
    other.load_state_dict(torch.load(file))
    same(other(images()), snn(images()))
    snn.set_time_steps(7)
    near(snn, ann)


def test_what_has_no_neurons():
    """An offset without a factor has no weights that its neurons could share; a map of pixels has none at all."""
    with pytest.raises(ValueError, match="add a number, or to each channel the bias of a layer"):
        convert(Scaled(multiply=lambda scale, x: x), 8)
    for shape in ((1, 1, 8, 8), (2, 1, 1, 1)):
        ann = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), times(shape), nn.Flatten(), nn.Linear(384, 3))
        with pytest.raises(ValueError, match="multiply by a number, or each channel by the weight of a layer"):
            convert(ann, 8)


def test_rows_of_features():
    """Their channels are the last dimension."""
    ann = nn.Sequential(nn.Flatten(2), nn.Linear(64, 6), nn.ReLU(), times(()), nn.Flatten(), nn.Linear(18, 3))
    with pytest.raises(ValueError, match="multiply by a number, or each channel by the weight of a layer"):
        convert(ann, 8)
