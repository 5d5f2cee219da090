"""Average and maximum pooling of spikes."""

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import generator, same, train
from layer_twins import agree, fronts
from tandem_cuda import SpikeTrain
from tandem_cuda import reference as ref

AVERAGES = {
    "2": ("SpikingAvgPool2d", (2,), {}),
    "3x2": ("SpikingAvgPool2d", ((3, 2), (2, 1)), {"threshold": 0.5}),
    "padded": ("SpikingAvgPool2d", (3, 2, 1), {}),
    "ceil": ("SpikingAvgPool2d", (3, 2, 1), {"ceil_mode": True}),
    "inside": ("SpikingAvgPool2d", (3, 2, 1), {"count_include_pad": False}),
    "ceil inside": ("SpikingAvgPool2d", (2, 3), {"ceil_mode": True, "count_include_pad": False}),
    "override": ("SpikingAvgPool2d", (3, 2), {"divisor_override": 2, "ceil_mode": True}),
    "one window of many": ("SpikingAvgPool2d", (2, 8), {}),
    "one row of windows": ("SpikingAvgPool2d", (2, (8, 2), 1), {}),
    "initial": ("SpikingAvgPool2d", (2,), {"threshold": 0.75, "initial": 0.5}),
    "global": ("SpikingAdaptiveAvgPool2d", (1,), {}),
    "adaptive": ("SpikingAdaptiveAvgPool2d", ((2, 3),), {}),
    "same height": ("SpikingAdaptiveAvgPool2d", ((None, 3),), {}),
    "larger": ("SpikingAdaptiveAvgPool2d", ((9, 4),), {"threshold": 0.25}),
}


MAXIMA = {
    "2": ("SpikingMaxPool2d", (2,), {}),
    "3 s2 p1": ("SpikingMaxPool2d", (3, 2, 1), {}),
    "ceil": ("SpikingMaxPool2d", ((3, 2), 2), {"ceil_mode": True}),
    "dilated": ("SpikingMaxPool2d", ((2, 3), 1, 1, (3, 2)), {}),
    "ceil padded": ("SpikingMaxPool2d", (2, 3, 1), {"ceil_mode": True}),
}


@pytest.mark.parametrize(("name", "arguments", "named"), [*AVERAGES.values(), *MAXIMA.values()])
@pytest.mark.parametrize(("time_steps", "batch", "size"), [(1, 2, (6, 6)), (9, 3, (7, 5)), (17, 0, (5, 8))])
def test_pooling(name, arguments, named, time_steps, batch, size):
    ours, theirs = (getattr(package, name)(*arguments, **named) for package in (tandem_cuda, ref))
    spikes = train(time_steps, batch, 3, *size, seed=1, rate=0.6).float()
    agree(ours, theirs, *([x] for x in fronts(spikes, 0.5)), tolerance=1e-6)


@pytest.mark.parametrize(("name", "arguments", "named"), [*AVERAGES.values(), *MAXIMA.values()])
def test_pooling_has_the_gradient_of_torch(name, arguments, named):
    pool = getattr(tandem_cuda, name)(*arguments, **named)
    plain = getattr(nn, name.removeprefix("Spiking"))
    plain = plain(*arguments, **{k: v for k, v in named.items() if k not in ("threshold", "initial")})
    x, x_ref = fronts(train(9, 2, 3, 7, 8, seed=2, rate=0.3).double())
    out = plain(x_ref.count) / named.get("threshold", 1.0)
    seed_grad = torch.randn(out.shape, generator=generator(1), dtype=torch.float64)
    got = torch.autograd.grad(pool(x).count, x.count, seed_grad)
    same(got, torch.autograd.grad(out, x_ref.count, seed_grad))


def test_average_counts_whole_thirds():
    """Nine steps of one spike in a window of three: three spikes, which sums of rounded thirds would not give."""
    spikes = torch.zeros(9, 1, 1, 1, 3)
    spikes[..., 1] = 1
    y = tandem_cuda.SpikingAvgPool2d((1, 3))(SpikeTrain.from_dense(spikes))
    assert y.to_dense().flatten().tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 1]


def test_maximum_of_neurons_that_take_turns():
    """The pooled neuron follows the one that leads; the gradient goes to the most active."""
    spikes = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]]).float().view(5, 1, 1, 1, 2)
    x, _ = fronts(spikes)
    y = tandem_cuda.SpikingMaxPool2d((1, 2))(x)
    assert y.to_dense().flatten().tolist() == [1, 1, 0, 0, 1]
    (grad,) = torch.autograd.grad(y.count.sum(), x.count)
    assert grad.flatten().tolist() == [0, 1]


@pytest.mark.parametrize(("name", "arguments", "named"), MAXIMA.values())
@pytest.mark.parametrize("time_steps", [1, 8, 9, 17, 300])
def test_maximum_counts_are_those_of_the_ann(name, arguments, named, time_steps):
    """Value and gradient, ties and all; in training as in eval mode."""
    pool, plain = getattr(tandem_cuda, name)(*arguments, **named), nn.MaxPool2d(*arguments, **named)
    for rate in (0.1, 0.5, 0.9):
        x, x_ref = fronts(train(time_steps, 2, 3, 7, 8, seed=time_steps, rate=rate).double())
        y, want = pool(x), plain(x_ref.count)
        same(y.count.detach(), want.detach())
        same(SpikeTrain(y.bits, time_steps, dtype=torch.float64).count, want.detach())
        seed_grad = torch.randn(want.shape, generator=generator(1), dtype=torch.float64)
        same(torch.autograd.grad(y.count, x.count, seed_grad), torch.autograd.grad(want, x_ref.count, seed_grad))
        with torch.no_grad():
            same(pool.eval()(SpikeTrain(x.bits, time_steps, dtype=torch.float64)).count, want.detach())


def test_maximum_of_a_window_in_the_padding():
    """Where torch finds minus infinity, nothing spikes, and the gradient stays finite."""
    x, _ = fronts(torch.ones(9, 1, 1, 2, 1))
    y = tandem_cuda.SpikingMaxPool2d((2, 1), 1, (1, 0), (3, 1))(x)
    assert y.count.tolist() == [[[[0]]]]
    (grad,) = torch.autograd.grad(y.count.sum(), x.count)
    assert grad.tolist() == [[[[0], [0]]]]
