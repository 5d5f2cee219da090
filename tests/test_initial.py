"""Neurons whose membrane potential starts at a share of the threshold: the same in every path."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exact import same
from tandem_cuda import (
    IF,
    LIF,
    Decode,
    Encode,
    FrozenNetwork,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    TandemAdd,
    TandemConv2d,
    TandemLinear,
    convert,
    freeze,
    ops,
)
from tandem_cuda import reference as ref
from tandem_cuda.neuron import MODELS
from tensors import dyadic, normal, planes

NEURONS = [IF(0.75, initial=0.5), IF(0.7, initial=0.25), LIF(0.75, 0.5, initial=0.5), LIF(0.7, 0.9, initial=0.875)]
STEPS = [1, 5, 8, 19]


def loop(neuron, currents):
    """Spikes of neurons driven by currents [T, ...], one float32 at a time."""
    threshold, leak = (torch.tensor(x) for x in (neuron.threshold, neuron.leak))
    u, spike = torch.tensor(neuron.initial) * threshold, torch.tensor(0.0)
    spikes = []
    for x in currents:
        u = leak * u - threshold * spike + x
        spike = (u >= threshold).float()
        spikes.append(spike)
    return torch.stack(spikes)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators(neuron, steps, dtype):
    current = normal(steps, 3, 21, seed=steps, dtype=dtype) / 2
    bits, _, state = ops.integrate_and_fire(current, steps, mode="series", neuron=neuron)
    want, _, want_state = ref.integrate_and_fire(current, steps, mode="series", neuron=neuron)
    same(bits, want)
    same(state, want_state)
    if dtype == torch.float32:
        same(ops.unpack_spikes(bits, steps), loop(neuron, current))
    halves = dyadic(21, 13, seed=1, dtype=dtype) / 4
    train = planes(steps, 4, 13, seed=2)
    same(ops.spiking_linear(train, halves, time_steps=steps, neuron=neuron), ref.spiking_linear(
        train, halves, time_steps=steps, neuron=neuron))  # fmt: skip
    image, kernel = planes(steps, 2, 5, 4, 6, seed=3), dyadic(7, 5, 3, 3, seed=4, dtype=dtype) / 4
    for engine in ("event", "dense"):
        got = ops.spiking_conv2d(image, kernel, padding=1, time_steps=steps, neuron=neuron, engine=engine)
        same(got, ref.spiking_conv2d(image, kernel, padding=1, time_steps=steps, neuron=neuron))
    depthwise = dyadic(5, 1, 3, 3, seed=5, dtype=dtype) / 4
    named = {"padding": 1, "groups": 5, "time_steps": steps, "neuron": neuron}
    same(ops.spiking_conv2d(image, depthwise, **named), ref.spiking_conv2d(image, depthwise, **named))


def test_a_given_state_is_where_the_simulation_goes_on():
    current, neuron = normal(2, 9, seed=0), IF(initial=0.5)
    whole, _, final = ops.integrate_and_fire(current, 16, neuron=neuron)
    first, _, state = ops.integrate_and_fire(current, 8, neuron=neuron)
    second, _, last = ops.integrate_and_fire(current, 8, state=state, neuron=neuron)
    same(torch.cat([first, second]), whole)
    same(last, final)


@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_half_a_threshold_rounds_the_count(threshold):
    v = torch.linspace(0, 8 * threshold, 257)[None]
    bits, _, _ = ops.integrate_and_fire(v / 8, 8, neuron=IF(threshold, initial=0.5))
    same(ops.spike_count(bits), torch.floor(v / threshold + 0.5).clamp(max=8))
    bits, _, _ = ops.integrate_and_fire(v / 8, 8, neuron=IF(threshold))
    same(ops.spike_count(bits), torch.floor(v / threshold))


class Joined(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.join = TandemAdd(TandemConv2d(6, 6, 3, padding=1, norm="batch"), nn.Identity(), neuron=neuron)

    def forward(self, x):
        return self.join(x, x)


def network(neuron, steps, mode):
    torch.manual_seed(0)
    net = nn.Sequential(
        Encode(steps, mode),
        TandemConv2d(2, 6, 3, padding=1, norm="batch", neuron=neuron),
        Joined(neuron),
        SpikingAvgPool2d(2, initial=neuron.initial),
        TandemConv2d(6, 5, 3, neuron=neuron),
        SpikingAdaptiveAvgPool2d((1, 2), initial=neuron.initial),
        nn.Flatten(),
        TandemLinear(10, 7, neuron=neuron),
        Decode(),
        nn.Linear(7, 3),
    )
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    return net


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("mode", ["constant", "impulse"])
def test_every_mode_of_a_network(neuron, mode, tmp_path):
    net, x = network(neuron, 9, mode), torch.rand(3, 2, 8, 8)
    without = copy.deepcopy(net)
    for module in without.modules():
        if hasattr(module, "initial"):
            module.initial = 0.0
        if hasattr(module, "neuron"):
            module.neuron = type(neuron)(**{**vars(neuron), "initial": 0.0})
    net.train()
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    want = net(x).detach()
    with torch.no_grad():
        same(net(x), want)
    assert not torch.equal(without.eval()(x), want)
    # Frozen, whole, in chunks and from a file; a join inside a module of its own cannot be frozen.
    plain = nn.Sequential(*(m for m in net if not isinstance(m, Joined))).eval()
    want = plain(x).detach()
    frozen = freeze(plain)
    frozen.save(tmp_path / "net.safetensors")
    for form in (frozen, FrozenNetwork.load(tmp_path / "net.safetensors")):
        same(form(x), want)
        stream = form.stream(x)
        for steps in (1, 3, 5):
            out = stream.advance(steps)
        same(out, want)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_layers_are_those_of_the_reference(neuron):
    spikes = (torch.rand(11, 2, 4, 6, 6) < 0.4).float()
    layer, twin = (kind(4, 5, 3, padding=1, neuron=neuron) for kind in (TandemConv2d, ref.TandemConv2d))
    with torch.no_grad():
        layer.weight.copy_(dyadic(5, 4, 3, 3, seed=1) / 4)
        layer.bias.copy_(dyadic(5, seed=2) * 11 / 16)  # of which an 11th enters at every step
        twin.load_state_dict(layer.state_dict())
    out, want = layer(SpikeTrain.from_dense(spikes)), twin(ref.DenseTrain(spikes))
    same(out.to_dense(), want.spikes)
    join = TandemAdd(copy.deepcopy(layer), copy.deepcopy(layer), neuron=neuron)
    twin_join = ref.TandemAdd(copy.deepcopy(twin), copy.deepcopy(twin), neuron=neuron)
    train, dense = SpikeTrain.from_dense(spikes), ref.DenseTrain(spikes)
    same(join(train, train).to_dense(), twin_join(dense, dense).spikes)


@pytest.mark.parametrize("initial", [0.25, 0.5])
def test_pooling(initial):
    spikes = (torch.rand(13, 2, 3, 7, 6) < 0.5).float()
    for pool, mean in (
        (SpikingAvgPool2d(3, 2, 1, initial=initial), lambda s: F.avg_pool2d(s, 3, 2, 1)),
        (SpikingAdaptiveAvgPool2d((3, 4), initial=initial), lambda s: F.adaptive_avg_pool2d(s, (3, 4))),
    ):
        unit = math.lcm(*pool.divisors(*pool.windows(7, 6)))  # in which means are whole numbers
        currents = torch.stack([torch.round(mean(s) * unit) for s in spikes])
        same(pool(SpikeTrain.from_dense(spikes)).to_dense(), loop(IF(float(unit), initial=initial), currents))


def test_convert_gives_it_to_every_layer():
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8, 2))  # fmt: skip
    snn = convert(ann, 4, neuron=IF(initial=0.5))
    starts = [m.initial if hasattr(m, "initial") else m.neuron.initial for m in snn.modules()
              if hasattr(m, "initial") or hasattr(m, "neuron")]  # fmt: skip
    assert starts == [0.5] * 3


def test_nir_says_that_it_has_no_field_for_it():
    pytest.importorskip("nir")
    from tandem_cuda.exchange import to_nir

    for model in (IF, LIF):
        net = nn.Sequential(Encode(4), TandemLinear(4, 3, neuron=model(initial=0.5)), Decode(), nn.Linear(3, 2))
        with pytest.raises(
            ValueError,
            match=rf"initial must be 0, since NIR has no field .* got 0\.5; leave it out, as {model.__name__}\(\) does",
        ):
            to_nir(net, torch.rand(1, 4))
        net[1].neuron = model()
        assert model.__name__ in [type(node).__name__ for node in to_nir(net, torch.rand(1, 4)).nodes.values()]
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    for neuron in (IF(initial=0.5), IF(initial=0.5, two_phase=True)):
        with pytest.raises(ValueError, match=r"got 0\.5; leave it out, as IF\(\) does"):
            to_nir(convert(ann, 4, neuron=neuron), torch.rand(1, 1, 6, 6))
    assert to_nir(convert(ann, 4, neuron=IF()), torch.rand(1, 1, 6, 6)).nodes


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("value", "error"),
    [*((x, ValueError) for x in (1.0, -0.1, math.nan, 1 - 1e-9)), (True, TypeError), ("0", TypeError)],
)
def test_bad_values(model, value, error):
    with pytest.raises(error, match=f"{model.__name__}: initial must be"):
        model(initial=value)
    with pytest.raises(error, match="SpikingAvgPool2d: initial must be"):
        SpikingAvgPool2d(2, initial=value)


def test_files_name_it_only_where_it_is_not_zero():
    assert "initial" not in IF().settings()
    assert LIF(initial=0.5).settings()["initial"] == 0.5
    frozen = freeze(nn.Sequential(Encode(2), TandemConv2d(1, 1, 1), SpikingAvgPool2d(2), Decode()))
    assert all("initial" not in layer.settings() for layer in frozen.layers)
