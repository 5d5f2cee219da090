"""IF neurons with a refractory period: two state variables, the same in every path."""

import copy
import math

import pytest
import torch
from torch import nn

from exact import same
from tandem_cuda import (
    IF,
    Decode,
    Encode,
    FrozenNetwork,
    SpikeTrain,
    TandemAdd,
    TandemConv2d,
    TandemLinear,
    convert,
    freeze,
    ops,
    synops,
)
from tandem_cuda import reference as ref
from tandem_cuda.analysis import diagnose
from tensors import dyadic, normal, planes

NEURONS = [IF(0.75, refractory=1), IF(0.5, refractory=3), IF(0.7, initial=0.5, refractory=2), IF(refractory=11)]
STEPS = [1, 5, 8, 19]


def loop(neuron, currents):
    """Spikes and final potential of neurons driven by currents [T, ...]: each neuron by itself, from the definition."""
    threshold = torch.tensor(neuron.threshold)
    spikes, flat = torch.zeros_like(currents), currents.flatten(1)
    for i in range(flat.shape[1]):
        u, wait = torch.tensor(neuron.initial) * threshold, 0
        for t in range(len(flat)):
            if wait > 0:
                wait -= 1
                continue
            u = u + flat[t, i]
            if u >= threshold:
                spikes.flatten(1)[t, i] = 1
                u, wait = u - threshold, neuron.refractory
    return spikes


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
def test_definition(neuron, steps):
    # Multiples of 1/8, so that the order of the reset and the current does not matter.
    current = dyadic(steps, 3, 7, seed=steps)
    neuron = IF(round(neuron.threshold * 8) / 8, initial=neuron.initial, refractory=neuron.refractory)
    bits, _, state = ops.integrate_and_fire(current, steps, mode="series", neuron=neuron)
    same(ops.unpack_spikes(bits, steps), loop(neuron, current))
    assert state.shape == (2, 3, 7)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [False, True])
def test_operators(neuron, steps, dtype, given):
    def state(*shape):
        if not given:
            return None
        left = torch.randint(0, int(neuron.refractory) + 1, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        return torch.stack([dyadic(*shape, seed=6, dtype=dtype), left])

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


def test_saturation():
    for refractory in (1, 2, 4):
        neuron = IF(0.5, refractory=refractory)
        bits, _, _ = ops.integrate_and_fire(torch.full((1, 1), 100.0), 24, neuron=neuron)
        assert ops.spike_count(bits).item() == math.ceil(24 / (1 + refractory))
        assert neuron.activation(torch.tensor(0.5 * 24), 24) == pytest.approx(neuron.largest(24))


@pytest.mark.parametrize("refractory", [1, 2, 4])
@pytest.mark.parametrize("steps", [4, 8, 16, 64])
def test_the_activation_predicts_the_count(refractory, steps):
    """Of a constant current up to saturation; the docstring's figures."""
    neuron, current = IF(refractory=refractory), torch.linspace(0, 1, 4001, dtype=torch.float64)
    bits, _, _ = ops.integrate_and_fire(current[None], steps, neuron=neuron)
    error = (neuron.activation(steps * current, steps) - ops.spike_count(bits, torch.float64)[0]).abs()
    assert 0.215 < error.mean() < 0.375
    assert error.max() < 1


def network(neuron, steps, mode):
    torch.manual_seed(0)
    net = nn.Sequential(
        Encode(steps, mode),
        TandemConv2d(2, 6, 3, padding=1, norm="batch", neuron=neuron),
        TandemConv2d(6, 5, 3, stride=2, neuron=neuron),
        nn.Flatten(),
        TandemLinear(45, 7, norm="batch", neuron=neuron),
        Decode(),
        nn.Linear(7, 3),
    )
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    return net


@pytest.mark.parametrize("neuron", NEURONS[:3], ids=str)
@pytest.mark.parametrize("mode", ["constant", "impulse"])
def test_every_mode_of_a_network(neuron, mode, tmp_path):
    net, x = network(neuron, 9, mode), torch.rand(3, 2, 8, 8)
    net.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net[1].weight.grad.abs().sum() > 0
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


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_layers_are_those_of_the_reference(neuron):
    spikes = (torch.rand(11, 2, 4, 6, 6) < 0.4).float()
    layer, twin = (kind(4, 5, 3, padding=1, neuron=neuron) for kind in (TandemConv2d, ref.TandemConv2d))
    with torch.no_grad():
        layer.weight.copy_(dyadic(5, 4, 3, 3, seed=1) / 4)
        layer.bias.zero_()
        twin.load_state_dict(layer.state_dict())
    out, want = layer(SpikeTrain.from_dense(spikes)), twin(ref.DenseTrain(spikes))
    same(out.to_dense(), want.spikes)
    grad = dyadic(*out.shape, seed=3)
    (mine,) = torch.autograd.grad(out.count, layer.weight, grad)
    (theirs,) = torch.autograd.grad(want.count, twin.weight, grad)
    torch.testing.assert_close(mine, theirs)
    join = TandemAdd(copy.deepcopy(layer), copy.deepcopy(layer), neuron=neuron)
    twin_join = ref.TandemAdd(copy.deepcopy(twin), copy.deepcopy(twin), neuron=neuron)
    train, dense = SpikeTrain.from_dense(spikes), ref.DenseTrain(spikes)
    same(join(train, train).to_dense(), twin_join(dense, dense).spikes)


def test_diagnose_clamps_at_the_largest_count():
    layer = TandemLinear(4, 3, bias=False, neuron=IF(0.25, clip=True, refractory=3))
    nn.init.constant_(layer.weight, 10.0)
    (row,) = diagnose(nn.Sequential(Encode(8), layer, Decode()), torch.ones(2, 4), lambda y: y.sum())
    assert row.count_error < 1e-6  # both are 8 / (1 + 3); without a bound the activation would tend to 8 / 3


def test_what_cannot_have_one():
    ann = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="convert: neuron must have no refractory period with calibrate"):
        convert(ann, 4, neuron=IF(refractory=1), calibrate=torch.rand(8, 4))
    pytest.importorskip("nir")
    from tandem_cuda.exchange import to_nir

    net = nn.Sequential(Encode(4), TandemLinear(4, 3, neuron=IF(refractory=2)), Decode(), nn.Linear(3, 2))
    message = r"refractory must be 0, since NIR has no such neurons, got 2\.0; leave it out, as IF\(\) does"
    with pytest.raises(ValueError, match=message):
        to_nir(net, torch.rand(1, 4))
    net[1].neuron = IF()
    assert to_nir(net, torch.rand(1, 4)).nodes


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *((value, ValueError) for value in (-1, 2**24 + 1, 10**400, 1.5, 1e300, math.nan, math.inf)),
        (True, TypeError),
        ("1", TypeError),
    ],
)
def test_bad_values(value, error):
    with pytest.raises(error, match="IF: refractory must be"):
        IF(refractory=value)


def test_the_longest_period():
    neuron = IF(refractory=2**24)
    assert neuron == IF(refractory=2.0**24) == eval(repr(neuron), {"IF": IF})


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_layers_take_another_period():
    """torch.compile traces a number that has changed as one that it does not know."""
    layer, x = TandemLinear(6, 4), torch.rand(5, 6)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for neuron in (IF(0.25, refractory=1), IF(0.5, refractory=2), IF(0.5, initial=0.5, refractory=3), IF(0.75)):
        layer.neuron = neuron
        gradients = []
        for run in (compiled, layer):
            layer.zero_grad()
            run(Encode(9)(x)).count.square().sum().backward()
            gradients.append(layer.weight.grad.clone())
        torch.testing.assert_close(*gradients)


def test_saturated_neurons_are_counted():
    neuron = IF(0.5, refractory=2)
    join = TandemAdd(TandemLinear(3, 3), nn.Identity(), neuron=neuron)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.join, self.encode = TandemLinear(3, 3, neuron=neuron), join, Encode(8)

        def forward(self, x):
            x = self.first(self.encode(x))
            return self.join(x, x)

    net = Network().eval()
    with torch.no_grad():
        for layer in (net.first, net.join.branches[0]):
            layer.weight.copy_(torch.eye(3))
            layer.bias.zero_()
    for model in (net, freeze(nn.Sequential(Encode(8), net.first))):
        table = synops(model, torch.tensor([[100.0, 0.1, 100.0]]))
        assert [row.saturation for row in table] == [pytest.approx(2 / 3)] * len(table)


def test_a_state_of_another_model():
    current, neuron = torch.rand(2, 5), IF(refractory=1)
    for state, message in (
        (torch.zeros(1, 2, 5), r"\[2, 2, 5\], got \[1, 2, 5\]"),
        (torch.zeros(2, 5), r"\[2, 2, 5\]"),
    ):
        with pytest.raises(ValueError, match=f"integrate_and_fire: state must be {message}"):
            ops.integrate_and_fire(current, 4, state=state, neuron=neuron)
    with pytest.raises(ValueError, match=r"state must be \[1, 2, 5\], got \[2, 2, 5\]"):
        ops.integrate_and_fire(current, 4, state=torch.zeros(2, 2, 5), neuron=IF())
