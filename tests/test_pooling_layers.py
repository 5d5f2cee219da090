"""Average and maximum pooling of spikes."""

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import generator, same, train
from layer_cases import AVERAGES, MAXIMA, every
from layer_twins import agree, fronts
from tandem_cuda import SpikeTrain
from tandem_cuda import reference as ref


def _sized(case, size):
    """The shape of a sample whose images have this size."""
    return (*case.samples[0][:-2], *size)


@every((*AVERAGES, *MAXIMA))
@pytest.mark.parametrize(("time_steps", "batch", "size"), [(1, 2, (6, 6)), (9, 3, (7, 5)), (17, 0, (5, 8))])
def test_pooling(case, time_steps, batch, size):
    ours, theirs = (case.make(package) for package in (tandem_cuda, ref))
    spikes = train(time_steps, batch, *_sized(case, size), seed=1, rate=0.6).float()
    agree(ours, theirs, *([x] for x in fronts(spikes, 0.5)), tolerance=1e-6)


@every((*AVERAGES, *MAXIMA))
def test_pooling_has_the_gradient_of_torch(case):
    pool, plain = case.make(), getattr(nn, case.kind.removeprefix("Spiking"))
    plain = plain(*case.arguments, **{k: v for k, v in case.named.items() if k not in ("threshold", "initial")})
    x, x_ref = fronts(train(9, 2, *_sized(case, (7, 8)), seed=2, rate=0.3).double())
    out = plain(x_ref.count) / case.named.get("threshold", 1.0)
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


@every(MAXIMA)
@pytest.mark.parametrize("time_steps", [1, 8, 9, 17, 300])
def test_maximum_counts_are_those_of_the_ann(case, time_steps):
    """Value and gradient, ties and all; in training as in eval mode."""
    pool, plain = case.make(), getattr(nn, case.kind.removeprefix("Spiking"))(*case.arguments, **case.named)
    for rate in (0.1, 0.5, 0.9):
        x, x_ref = fronts(train(time_steps, 2, *_sized(case, (7, 8)), seed=time_steps, rate=rate).double())
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
