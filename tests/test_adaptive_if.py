"""IF neurons with an adaptive threshold: their definition, their rate, and the same spikes in every path."""

import copy
import math

import pytest
import torch
from torch import nn

from exact import same
from tandem_cuda import (
    IF,
    AdaptiveIF,
    Decode,
    Encode,
    FrozenNetwork,
    TandemConv2d,
    TandemLinear,
    convert,
    freeze,
    ops,
    quantise,
)
from tandem_cuda import reference as ref
from tandem_cuda.analysis import diagnose
from tensors import dyadic, normal, planes

NEURONS = [
    AdaptiveIF(0.5, 0.25, 0.5),
    AdaptiveIF(0.7, 1.4, 0.9),
    AdaptiveIF(0.5, 1.0, 0.75, initial=0.5),
    AdaptiveIF(0.5, 0.5, 0.0),
]
STEPS = [1, 5, 8, 19]


def loop(neuron, currents):
    """Spikes of neurons driven by currents [T, ...]: each neuron by itself, from the definition, in float64."""
    spikes, flat = torch.zeros_like(currents), currents.flatten(1)
    for i in range(flat.shape[1]):
        u, b, spike, threshold = neuron.initial * neuron.threshold, 0.0, 0, 0.0
        for t in range(len(flat)):
            u = u + flat[t, i].item() - threshold * spike
            b = neuron.decay * b + (1 - neuron.decay) * spike
            threshold = neuron.threshold + neuron.adaptation * b
            spike = int(u >= threshold)
            spikes.flatten(1)[t, i] = spike
    return spikes


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
def test_definition(neuron, steps):
    current = normal(steps, 3, 7, seed=steps, dtype=torch.float64)
    bits, _, state = ops.integrate_and_fire(current, steps, mode="series", neuron=neuron)
    same(ops.unpack_spikes(bits, steps, torch.float64), loop(neuron, current))
    assert state.shape == (2, 3, 7)
    assert ((state[1] >= 0) & (state[1] <= 1)).all()


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


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [False, True])
def test_operators(neuron, steps, dtype, given):
    def state(*shape):
        b = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
        return torch.stack([dyadic(*shape, seed=6, dtype=dtype), b]) if given else None

    for mode, shape in (("series", (steps, 3, 21)), ("constant", (3, 21)), ("impulse", (3, 21))):
        named = {"mode": mode, "neuron": neuron, "state": state(3, 21)}
        current = normal(*shape, seed=steps, dtype=dtype)
        same(ops.integrate_and_fire(current, steps, **named), ref.integrate_and_fire(current, steps, **named))
    weight, train = dyadic(21, 13, seed=1, dtype=dtype) / 4, planes(steps, 4, 13, seed=2)
    named = {"time_steps": steps, "neuron": neuron, "state": state(4, 21)}
    same(ops.spiking_linear(train, weight, **named), ref.spiking_linear(train, weight, **named))
    image, kernel = planes(steps, 2, 5, 4, 6, seed=3), dyadic(7, 5, 3, 3, seed=4, dtype=dtype) / 4
    named = {"padding": 1, "time_steps": steps, "neuron": neuron, "state": state(2, 7, 4, 6)}
    for engine in ("event", "dense"):
        same(ops.spiking_conv2d(image, kernel, engine=engine, **named), ref.spiking_conv2d(image, kernel, **named))
    depthwise = dyadic(5, 1, 3, 3, seed=5, dtype=dtype) / 4
    named |= {"groups": 5, "state": state(2, 5, 4, 6)}
    same(ops.spiking_conv2d(image, depthwise, **named), ref.spiking_conv2d(image, depthwise, **named))


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_streaming(neuron):
    current = normal(29, 2, 9, seed=0)
    whole, _, final = ops.integrate_and_fire(current, 29, mode="series", neuron=neuron)
    pieces, state, start = [], None, 0
    for steps in (1, 8, 3, 16, 1):
        piece = current[start : start + steps]
        bits, _, state = ops.integrate_and_fire(piece, steps, state=state, mode="series", neuron=neuron)
        pieces.append(ops.unpack_spikes(bits, steps))
        start += steps
    same(torch.cat(pieces), ops.unpack_spikes(whole, 29))
    same(state, final)


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
        bits, v, _ = ops.integrate_and_fire(current, steps, neuron=neuron)
        activation = neuron.activation(v, steps).clamp(max=steps)
        error = (activation - ops.spike_count(bits, torch.float64)).abs() / steps
        assert error.mean() == pytest.approx(mean, abs=0.0007)
        assert error.max() == pytest.approx(largest, abs=0.0007)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
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


def network(neuron, steps, mode):
    torch.manual_seed(0)
    net = nn.Sequential(
        Encode(steps, mode),
        TandemConv2d(2, 6, 3, padding=1, norm="batch", neuron=neuron),
        TandemConv2d(6, 5, 3, stride=2, neuron=neuron),
        nn.Flatten(),
        TandemLinear(45, 7, norm="batch", neuron=neuron, learn_threshold=True),
        Decode(),
        nn.Linear(7, 3),
    )
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    return net


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("mode", ["constant", "impulse"])
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_every_form_of_a_network(neuron, mode, integers, tmp_path):
    net, x = network(neuron, 9, mode), torch.rand(3, 2, 8, 8)
    net.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net[1].weight.grad.abs().sum() > 0
    if integers:
        quantise(net, 8)
    net.eval()
    want = net(x).detach()
    with torch.no_grad():
        same(net(x), want)
    frozen = freeze(net)
    frozen.save(tmp_path / "net.safetensors")
    for form in (frozen, FrozenNetwork.load(tmp_path / "net.safetensors")):
        same(form(x), want)
        stream = form.stream(x)
        stream.advance(1)
        stream.advance(3)
        stream.select(torch.tensor([2, 0]))
        same(stream.advance(5), want[[2, 0]])
    with torch.no_grad():
        without = copy.deepcopy(net)
        for module in without:
            if hasattr(module, "neuron"):
                module.neuron = IF(neuron.threshold, initial=neuron.initial)
        assert not torch.equal(without(x), want)


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
    net = convert(ann, 16, neuron=AdaptiveIF(0.1, 0.1))
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


def test_diagnose_clamps_at_the_largest_count():
    layer = TandemLinear(4, 3, bias=False, neuron=AdaptiveIF(0.25, 0.25, clip=True))
    nn.init.constant_(layer.weight, 10.0)
    (row,) = diagnose(nn.Sequential(Encode(8), layer, Decode()), torch.ones(2, 4), lambda y: y.sum())
    assert row.count_error < 1e-6  # both are 8


def test_what_cannot_have_one():
    ann = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"convert: neuron must be IF\(\.\.\.\) with calibrate \(a threshold"):
        convert(ann, 4, neuron=AdaptiveIF(), calibrate=torch.rand(8, 4))
    pytest.importorskip("nir")
    from tandem_cuda.exchange import to_nir

    net = nn.Sequential(Encode(4), TandemLinear(4, 3, neuron=AdaptiveIF()), Decode(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"neuron must have a form in NIR, got AdaptiveIF"):
        to_nir(net, torch.rand(1, 4))


def test_a_state_of_another_model():
    current = torch.rand(2, 5)
    with pytest.raises(ValueError, match=r"integrate_and_fire: state must be \[2, 2, 5\], got \[1, 2, 5\]"):
        ops.integrate_and_fire(current, 4, state=torch.zeros(1, 2, 5), neuron=AdaptiveIF())


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_layers_take_other_parameters():
    """torch.compile traces a number that has changed as one that it does not know."""
    layer, x = TandemLinear(6, 4), torch.rand(5, 6)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for neuron in (AdaptiveIF(0.25), AdaptiveIF(0.5, 0.7), AdaptiveIF(0.5, 0.3, 0.5), AdaptiveIF(0.4, 0.3, 0.25), IF()):
        layer.neuron = neuron
        gradients = []
        for run in (compiled, layer):
            layer.zero_grad()
            run(Encode(9)(x)).count.square().sum().backward()
            gradients.append(layer.weight.grad.clone())
        torch.testing.assert_close(*gradients)
