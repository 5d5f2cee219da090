"""Two-phase neurons, which integrate all time steps before they spike: the same in every path."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from anns import Net
from exact import SEEDS, everywhere, same
from layer_cases import with_weights
from pairwise import pairs
from tandem_cuda import (
    IF,
    Cascade,
    Decode,
    Encode,
    FrozenNetwork,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConv2d,
    TandemDropout,
    TandemLinear,
    convert,
    freeze,
    ops,
    synops,
)
from tandem_cuda import nn as tandem_nn
from tandem_cuda import reference as ref
from tensors import dyadic, generator, int8, normal, planes

NEURONS = [IF(two_phase=True), IF(0.75, initial=0.5, two_phase=True), IF(0.5, clip=True, amplitude=0.5, two_phase=True)]
STEPS = [1, 2, 7, 8, 9, 19]
every_neuron = pytest.mark.parametrize("neuron", NEURONS, ids=str)


def expected(neuron, v, steps):
    """The spikes of neurons whose input adds up to v: the first ones of all steps, as many as v has thresholds."""
    count = torch.floor(v.double() / neuron.threshold + neuron.initial).clamp(0, steps)
    return (torch.arange(steps).view(-1, *[1] * v.dim()) < count).to(v.dtype)


@every_neuron
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integrate_and_fire(neuron, steps, dtype):
    scale, bias = dyadic(5, seed=1, dtype=dtype), dyadic(5, seed=2, dtype=dtype) / 4
    for mode in ("constant", "impulse", "series", "once"):
        current = dyadic(*([steps] if mode == "series" else []), 3, 5, 4, seed=steps, dtype=dtype)
        named = {"mode": mode, "neuron": neuron, "scale": scale}
        want = ref.integrate_and_fire(current, steps, bias, **named)
        everywhere(want, ops.integrate_and_fire, current, steps, bias, **named)
        total = ref.integrate_and_fire(current, steps, bias, **{**named, "neuron": IF()})[1]
        same(want[1], total)
        same(ops.unpack_spikes(want[0], steps, dtype), expected(neuron, total, steps))


PRODUCTS = {
    "linear": (ops.spiking_linear, ref.spiking_linear, (3, 70), (35, 70), {}),
    "conv": (ops.spiking_conv2d, ref.spiking_conv2d, (2, 6, 5, 7), (33, 6, 3, 3), {"padding": 1, "stride": 2}),
    "groups": (ops.spiking_conv2d, ref.spiking_conv2d, (2, 6, 5, 7), (4, 3, 3, 2), {"dilation": 2, "groups": 2}),
    "depthwise": (ops.spiking_conv2d, ref.spiking_conv2d, (2, 6, 5, 7), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
}


@pairs(neuron=NEURONS, steps=[1, 5, 8, 19], name=list(PRODUCTS))
def test_products(name, steps, neuron):
    op, reference, inputs, shape, geometry = PRODUCTS[name]
    bits = planes(steps, *inputs, seed=steps)
    for weight, dtype in (
        (dyadic(*shape, seed=1) / 8, torch.float32),
        (dyadic(*shape, seed=1).double() / 8, torch.float64),
    ):
        bias, scale = dyadic(shape[0], seed=2, dtype=dtype) / 8, dyadic(shape[0], seed=3, dtype=dtype)
        for more in ({}, {"scale": scale}):
            named = {**geometry, **more, "bias": bias, "time_steps": steps, "neuron": neuron}
            want = reference(bits, weight, **named)
            for engine in ("auto", "event", "dense"):
                everywhere(want, op, bits, weight, **named, engine=engine)
            everywhere(want, op, bits, weight, **named, packed=ops.pack_weight(weight, geometry.get("groups", 1)))
    one_phase = reference(bits, weight, **{**named, "neuron": replace(neuron, two_phase=False)})
    if steps > 1 and name != "groups":  # of those too few reach a threshold
        assert not torch.equal(one_phase[0], want[0])
    same(ops.unpack_spikes(want[0], steps, dtype), expected(neuron, one_phase[1], steps))
    named = {**geometry, "scale": torch.full((shape[0],), 0.25), "time_steps": steps, "neuron": neuron}
    everywhere(reference(bits, int8(*shape, seed=4), **named), op, bits, int8(*shape, seed=4), **named)


@given(steps=st.integers(1, 20), threshold=st.sampled_from([0.25, 1.0, 0.7]), seed=SEEDS)
def test_the_order_of_the_input_does_not_matter(steps, threshold, seed):
    spikes = (torch.rand(steps, 2, 12, generator=generator(seed)) < 0.4).float()
    mixed = spikes[torch.randperm(steps, generator=generator(seed + 1))]
    weight, neuron = normal(9, 12, seed=seed), IF(threshold, initial=0.5, two_phase=True)
    outputs = [ops.spiking_linear(ops.pack_spikes(s), weight, time_steps=steps, neuron=neuron) for s in (spikes, mixed)]
    same(outputs[0], outputs[1])
    spikes = ops.unpack_spikes(outputs[0][0], steps)
    assert bool((spikes.diff(dim=0) <= 0).all()), "after its first silent step a neuron stays silent"


@every_neuron
def test_gradients_are_those_of_one_phase(neuron):
    bits, steps = planes(6, 4, 20, seed=0), 6
    grads = []
    for two_phase in (True, False):
        weight, bias = dyadic(7, 20, seed=1).requires_grad_(), dyadic(7, seed=2).requires_grad_()
        count = ops.spike_count(bits).requires_grad_()
        chosen = replace(neuron, two_phase=two_phase)
        _, v, _ = ops.spiking_linear(bits, weight, bias, count=count, time_steps=steps, neuron=chosen)
        (v * dyadic(4, 7, seed=3)).sum().backward()
        grads.append((v.detach(), weight.grad, bias.grad, count.grad))
    same(*grads)


@pairs(encoding=["constant", "impulse", "events"], norm=[None, "batch"], amplitude=[1.0, 0.5], neuron=NEURONS)
def test_layers_are_those_of_the_reference(encoding, norm, amplitude, neuron):
    steps = 4
    for case in with_weights():
        inputs = 2, *case.samples[0]
        layer, twin = (case.make(package, norm=norm, neuron=neuron) for package in (tandem_nn, ref))
        with torch.no_grad():
            for i, p in enumerate(layer.parameters()):
                p.copy_(dyadic(*p.shape, seed=i) / 4)
        if norm:  # statistics that make gain and bias dyadic
            layer.norm.eps = 1e-300
            layer.norm.running_var.fill_(4.0)
            layer.norm.eval()
        twin.load_state_dict(layer.state_dict())
        if norm:
            twin.norm.eps = 1e-300
            twin.norm.eval()
        if encoding == "events":
            dense = (torch.rand(steps, *inputs, generator=generator(5)) < 0.4).float()
            x = SpikeTrain.from_dense(dense).replace_unchecked(amplitude=amplitude)
            y = ref.DenseTrain(dense, amplitude=amplitude)
        else:
            value = dyadic(*inputs, seed=6)
            x, y = Encode(steps, encoding)(value), ref.Encode(steps, encoding)(value)
        got, want = layer(x), twin(y)
        same(got.to_dense(), want.spikes)
        same(got.count.detach(), want.count.detach())
        for train in (got, want):
            (train.count * dyadic(*train.count.shape, seed=9)).sum().backward()
        for p, q in zip(layer.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-5)


def block(neuron):
    conv, other = (TandemConv2d(6, 6, 3, padding=1, norm="batch", neuron=neuron) for _ in range(2))
    return Net(lambda n, x: n.join(n.conv(x), x), conv=conv, join=TandemAdd(other, nn.Identity(), neuron=neuron))


def network(neuron, steps, mode, joined=True):
    torch.manual_seed(0)
    pooling = {"initial": neuron.initial, "two_phase": True}
    net = nn.Sequential(
        Encode(steps, mode),
        TandemConv2d(2, 6, 3, padding=1, norm="batch", neuron=neuron),
        *([block(neuron)] if joined else []),
        SpikingMaxPool2d(2, 1),
        TandemDropout(0.3),
        SpikingAvgPool2d(2, **pooling),
        TandemConv2d(6, 5, 2, neuron=neuron),
        SpikingAdaptiveAvgPool2d((1, 2), **pooling),
        nn.Flatten(),
        TandemLinear(10, 7, norm="batch", neuron=neuron),
        Decode(),
        nn.Linear(7, 3),
    )
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    return net


@every_neuron
@pytest.mark.parametrize("mode", ["constant", "impulse"])
@pytest.mark.parametrize("steps", [3, 9])
def test_every_mode_of_a_network(neuron, mode, steps, tmp_path):
    net, x = network(neuron, steps, mode), torch.rand(3, 2, 8, 8, generator=generator(1)) * steps
    net.train()
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    want = net(x).detach()
    with torch.no_grad():
        same(net(x), want)
    with torch.inference_mode():
        same(net(x).clone(), want)
    net.train()
    for module in net.modules():  # frozen statistics, in training
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, TandemDropout)):
            module.eval()
    same(net(x).detach(), want)
    plain = network(neuron, steps, mode, joined=False).eval()  # a join inside a module of its own cannot be frozen
    want = plain(x).detach()
    frozen = freeze(plain)
    frozen.save(tmp_path / "net.safetensors")
    for form in (frozen, FrozenNetwork.load(tmp_path / "net.safetensors")):
        same(form(x), want)
        same(form.stream(x).advance(steps), want)


@pytest.mark.slow
def test_compiled():
    net = network(IF(0.5, initial=0.5, two_phase=True), 5, "impulse", joined=False).eval()
    x = torch.rand(2, 2, 8, 8, generator=generator(2)) * 5
    want = net(x).detach()
    same(torch.compile(net, fullgraph=True)(x).detach(), want)


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_pooling(initial):
    spikes = (torch.rand(13, 2, 3, 7, 6) < 0.5).float()
    for pool, mean in (
        (SpikingAvgPool2d(3, 2, 1, initial=initial, two_phase=True), lambda s: F.avg_pool2d(s, 3, 2, 1)),
        (SpikingAdaptiveAvgPool2d((3, 4), initial=initial, two_phase=True), lambda s: F.adaptive_avg_pool2d(s, (3, 4))),
    ):
        unit = math.lcm(*pool.divisors(*pool.windows(7, 6)))  # in which means are whole numbers
        total = torch.round(mean(spikes.sum(0)) * unit)
        out = pool(SpikeTrain.from_dense(spikes))
        same(out.to_dense(), expected(IF(float(unit), initial=initial), total, 13))
        arguments = (3, 2, 1) if isinstance(pool, SpikingAvgPool2d) else ((3, 4),)
        twin = getattr(ref, type(pool).__name__)(*arguments, initial=initial, two_phase=True)
        same(twin(ref.DenseTrain(spikes)).spikes, out.to_dense())


def test_convert():
    torch.manual_seed(0)  # of some weights a layer never fires
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8, 2))  # fmt: skip
    neuron = IF(initial=0.5, two_phase=True)
    x = torch.rand(5, 1, 10, 10, generator=generator(0))
    snn = convert(ann, 4, neuron=neuron, mode="impulse", example=x)
    waiting = [m.two_phase if hasattr(m, "two_phase") else m.neuron.two_phase for m in snn.modules()
               if hasattr(m, "two_phase") or hasattr(m, "neuron")]  # fmt: skip
    assert waiting == [True] * 3
    calibrated = convert(ann, 64, neuron=neuron, mode="impulse", calibrate=x, percentile=100)
    assert calibrated.snn.get_submodule("0").neuron.two_phase
    torch.testing.assert_close(calibrated(x), ann(x), atol=0.03, rtol=0)
    assert synops(snn.snn, x)


CASCADE = "for early exit, run networks with increasing T in a Cascade"
ONE_PHASE = r"to run in chunks, use neurons of one phase, such as IF\(initial=0\.5\)"


def test_streams_refuse_a_part_of_the_steps():
    net = freeze(network(IF(two_phase=True), 6, "constant", joined=False).eval())
    x = torch.rand(2, 2, 8, 8)
    wait = r"for which the neurons of 1, .* wait"
    with pytest.raises(
        ValueError, match=f"advance: chunk must be all 6 time steps, {wait}, got 2; {CASCADE}; {ONE_PHASE}$"
    ):
        net.stream(x).advance(2)
    with pytest.raises(ValueError, match=f"predict: chunk must be all 6 time steps, {wait}, got 1; {CASCADE}"):
        net.predict(x)
    with pytest.raises(ValueError, match=f"accuracy_curve: chunk must be all 6 time steps, {wait}, got 4; {CASCADE}"):
        net.accuracy_curve([(x, torch.tensor([0, 1]))], chunk=4)
    assert net.predict(x, chunk=6).steps.tolist() == net.predict(x, chunk=7).steps.tolist() == [6, 6]
    pooled = freeze(nn.Sequential(SpikingAvgPool2d(2, two_phase=True), Decode(), nn.Flatten(), nn.Linear(4, 2)))
    train = SpikeTrain.from_dense(torch.zeros(3, 1, 1, 4, 4))  # which a cascade does not take
    with pytest.raises(ValueError, match=f"for which the neurons of 0 wait, got 1; {ONE_PHASE}$"):
        pooled.stream(train).advance(1)


def test_a_cascade_or_neurons_of_one_phase_stop_early():
    """What the error recommends."""
    torch.manual_seed(0)
    ann, x = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)), torch.rand(9, 6)
    snn = convert(ann, 2, neuron=IF(initial=0.5, two_phase=True), example=x).eval()
    stages = []
    for steps in (2, 4):
        snn.set_time_steps(steps)
        stages.append(freeze(snn))
    with pytest.raises(ValueError, match=f"{CASCADE}; {ONE_PHASE}$"):
        stages[1].predict(x, 0.1)
    assert Cascade(stages).predict(x, 0.1).steps.tolist() == [2] * 9
    one_phase = freeze(convert(ann, 4, neuron=IF(initial=0.5), example=x).eval())
    assert one_phase.predict(x, 0.1).steps.tolist() == [1] * 9
    stream = one_phase.stream(x)
    stream.advance(1)
    same(stream.advance(3), one_phase(x))


def test_analogue_calls_wait_whatever_their_neurons():
    def run(n, x):
        x = torch.relu(n.first(x))
        x = x * torch.sigmoid(n.gate(x.mean((2, 3), keepdim=True)))
        return torch.relu(n.last(x)).mean((2, 3))

    x = torch.rand(5, 1, 8, 8, generator=generator(0))
    ann = Net(run, first=nn.Conv2d(1, 4, 3), gate=nn.Conv2d(4, 4, 1), last=nn.Conv2d(4, 2, 1))
    snn = convert(ann.eval(), 2, neuron=IF(initial=0.5), example=x).eval()
    stages = []
    for steps in (2, 4):
        snn.set_time_steps(steps)
        stages.append(freeze(snn))
    with pytest.raises(ValueError, match=f"for which the neurons of .* wait, got 1; {CASCADE}$"):
        stages[1].stream(x).advance(1)
    assert Cascade(stages).predict(x, 0.1).steps.tolist() == [2] * 5


def test_a_state_is_refused():
    neuron, bits = IF(two_phase=True), planes(8, 2, 6, seed=0)
    for op, arguments in (
        ("integrate_and_fire", (torch.zeros(2, 6), 8)),
        ("spiking_linear", (bits, torch.zeros(6, 6))),
    ):
        named = {} if op == "integrate_and_fire" else {"time_steps": 8}
        with pytest.raises(ValueError, match=f"{op}: state must be None with two_phase"):
            getattr(ops, op)(*arguments, **named, state=torch.zeros(1, 2, 6), neuron=neuron)
    with pytest.raises(ValueError, match="neuron_loop: state must be None with two_phase"):
        ref.integrate_and_fire(torch.zeros(2, 6), 8, state=torch.zeros(1, 2, 6), neuron=neuron)


def test_nir_says_that_it_has_no_such_neurons():
    pytest.importorskip("nir")
    from tandem_cuda.exchange import to_nir

    net = nn.Sequential(Encode(4), TandemLinear(4, 3, neuron=IF(two_phase=True)), Decode(), nn.Linear(3, 2))
    with pytest.raises(
        ValueError,
        match=r"two_phase must be False, since the neurons of NIR spike while they integrate, got True; "
        r"leave it out, as IF\(\) does",
    ):
        to_nir(net, torch.rand(1, 4))
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    x = torch.rand(1, 1, 6, 6)
    with pytest.raises(ValueError, match=r"leave it out, as IF\(\) does"):
        to_nir(convert(ann, 4, neuron=IF(two_phase=True), example=x), x)
    assert to_nir(convert(ann, 4, neuron=IF(), example=x), x).nodes


def test_bad_values():
    for wrong in (1, None, "yes"):
        with pytest.raises(TypeError, match="IF: two_phase must be True or False, got"):
            IF(two_phase=wrong)
        with pytest.raises(TypeError, match="SpikingAvgPool2d: two_phase must be True or False, got"):
            SpikingAvgPool2d(2, two_phase=wrong)
    with pytest.raises(ValueError, match="IF: refractory must be 0 with two_phase, got 2"):
        IF(refractory=2, two_phase=True)


def test_copies_and_repr():
    neuron = IF(0.5, initial=0.5, two_phase=True)
    assert repr(neuron) == "IF(threshold=0.5, clip=False, initial=0.5, two_phase=True)"
    assert neuron.scaled(2.0) == IF(1.0, initial=0.5, two_phase=True)
    assert neuron.calibrated(0.25) == IF(0.25, amplitude=0.25, initial=0.5, two_phase=True)
    assert "two_phase=True" in repr(SpikingAvgPool2d(2, two_phase=True))
    assert copy.deepcopy(SpikingAvgPool2d(2, two_phase=True)).two_phase
