"""IF neurons with an adaptive threshold: their definition, their rate, and what refuses them."""

import math

import pytest
import torch
from torch import nn

from exact import same
from tandem_cuda import IF, AdaptiveIF, Decode, Encode, TandemConv2d, TandemLinear, convert, freeze, ops
from tensors import normal


def test_by_hand():
    """u, B and spikes of AdaptiveIF(1, 1, 0.5) under a constant current of 1."""
    neuron = AdaptiveIF(1.0, 1.0, 0.5)
    want = [  # u before its reset, b; the threshold is 1 + b
        (1.0, 0.0, 1),
        (1.0, 0.5, 0),
        (2.0, 0.25, 1),
        (1.75, 0.625, 1),
        (1.125, 0.8125, 0),
        (2.125, 0.40625, 1),
    ]
    state = neuron.rest(torch.zeros(1))
    for u, b, spike in want:
        spikes, state = neuron.step(state, torch.ones(1))
        assert (*(x.item() for x in state), spikes.item()) == (u, b, spike)


TABLE = {
    0.0: ((0.067, 0.250), (0.036, 0.125), (0.027, 0.129), (0.031, 0.133)),
    0.5: ((0.068, 0.250), (0.033, 0.125), (0.015, 0.062), (0.014, 0.043)),
    0.8: ((0.062, 0.249), (0.033, 0.125), (0.016, 0.062), (0.005, 0.016)),
    0.9: ((0.057, 0.250), (0.031, 0.125), (0.016, 0.062), (0.003, 0.015)),
    0.95: ((0.055, 0.250), (0.029, 0.125), (0.015, 0.062), (0.004, 0.016)),
}
"""The docstring's table: of every decay, mean and largest error for these T."""


@pytest.mark.parametrize("decay", TABLE)
def test_the_activation_predicts_the_count(decay):
    """Of a constant current up to saturation; the docstring's figures."""
    neuron = AdaptiveIF(decay=decay)
    current = neuron.saturation * torch.linspace(-0.2, 1, 2401, dtype=torch.float64)[None]
    for steps, (mean, largest) in zip((4, 8, 16, 64), TABLE[decay], strict=True):
        bits, v, state = ops.integrate_and_fire(current, steps, neuron=neuron)
        assert ((state[1] >= 0) & (state[1] <= 1)).all()  # a moving average of spikes
        activation = neuron.activation(v, steps).clamp(max=steps)
        error = (activation - ops.spike_count(bits, torch.float64)).abs() / steps
        assert error.mean() == pytest.approx(mean, abs=0.0007)
        assert error.max() == pytest.approx(largest, abs=0.0007)


@pytest.mark.parametrize(
    "neuron",
    [AdaptiveIF(0.5, 0.25, 0.5), AdaptiveIF(0.7, 1.4, 0.9), AdaptiveIF(0.5, 1.0, 0.75), AdaptiveIF(0.5, 0.5, 0.0)],
    ids=str,
)
def test_the_activation_solves_its_equation(neuron):
    """I = r * (threshold + m * adaptation * r), with the mean m worked out step by step."""
    v = torch.linspace(0.0, 20.0, 101, dtype=torch.float64)
    for steps in (1, 2, 8, 50):
        mean = sum(1 - neuron.decay**t for t in range(steps)) / steps
        rate = neuron.activation(v, steps) / steps
        torch.testing.assert_close(rate * (neuron.threshold + mean * neuron.adaptation * rate), v / steps)


def test_one_step_has_no_adaptation():
    neuron, v = AdaptiveIF(0.5, 3.0, 0.9), normal(50, seed=0)
    same(neuron.activation(v, 1), IF(0.5).activation(v, 1))
    same(neuron.slope(v, 1), IF(0.5).slope(v, 1))


def test_a_spike_raises_the_threshold():
    """The first spike comes when an IF neuron's does; intervals then grow up to those of the rate."""
    current = torch.full((1, 1), 0.4)
    trains = [
        ops.unpack_spikes(ops.integrate_and_fire(current, 400, neuron=neuron)[0], 400).flatten().nonzero().flatten()
        for neuron in (IF(), AdaptiveIF(adaptation=4.0, decay=0.98))
    ]
    assert trains[0][0] == trains[1][0]
    intervals = trains[1].diff()
    assert intervals[0] < intervals[:8].float().mean() < intervals[-8:].float().mean()
    assert 1 / intervals[-8:].double().mean() == pytest.approx((math.sqrt(1 + 4 * 4 * 0.4) - 1) / 8, rel=0.05)


def test_training_with_it_and_autocast():
    """Fitted to random labels, also in bfloat16: the gradient of the rate descends."""
    x, label = torch.rand(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
    for cast in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(Encode(8), *(TandemLinear(n, 32, neuron=AdaptiveIF()) for n in (6, 32)), Decode())
        net.append(nn.Linear(32, 3))
        optimizer, losses = torch.optim.Adam(net.parameters(), 1e-2), []
        for _ in range(80):
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                loss = nn.functional.cross_entropy(net(x), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert min(losses[-5:]) < 0.6 * losses[0]


def test_convert():
    torch.manual_seed(0)
    ann, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), torch.rand(3, 1, 8, 8)
    net = convert(ann, 16, neuron=AdaptiveIF(0.1, 0.1), example=x)
    (layer,) = (module for module in net.modules() if isinstance(module, TandemConv2d))
    assert layer.neuron == AdaptiveIF(0.1, 0.1)
    same(freeze(net.eval())(x), net(x).detach())


@pytest.mark.parametrize("steps", [1, 2, 8, 64])
def test_clip_ends_at_the_largest_count(steps):
    neuron = AdaptiveIF(0.5, 1.0, 0.9, clip=True)
    upper = neuron.upper(steps)
    assert neuron.activation(torch.tensor(upper, dtype=torch.float64), steps).item() == pytest.approx(steps)
    v = (upper * torch.tensor([[0.5, 0.999, 1.001, 2.0]])).requires_grad_()
    bits = ops.integrate_and_fire((v / steps).detach(), steps, neuron=neuron)[0]
    count = ops.tandem_count(bits, v, steps, neuron, upper)
    (slope,) = torch.autograd.grad(count.sum(), v)
    assert (slope != 0).tolist() == [[True, True, False, False]]
    assert count[0, 3].item() == steps  # and not more, which it would take to follow the activation


def test_what_cannot_have_one():
    ann = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"convert: neuron must be IF\(\.\.\.\) with calibrate \(a threshold"):
        convert(ann, 4, neuron=AdaptiveIF(), calibrate=torch.rand(8, 4))
    pytest.importorskip("nir")
    from tandem_cuda.exchange import to_nir

    net = nn.Sequential(Encode(4), TandemLinear(4, 3, neuron=AdaptiveIF()), Decode(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"neuron must have a form in NIR, got AdaptiveIF"):
        to_nir(net, torch.rand(1, 4))
