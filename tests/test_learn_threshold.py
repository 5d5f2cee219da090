"""Thresholds that learn: the reference's layers, the gradient, and the same spikes in every mode."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import tandem_cuda
from anns import Residual, inputs
from exact import VANISHING, generator, same
from freezable import graph_of
from layer_cases import with_weights
from pairwise import pairs
from tandem_cuda import (
    IF,
    LIF,
    AdaptiveIF,
    Decode,
    Encode,
    FrozenNetwork,
    SpikeTrain,
    SpikingAvgPool2d,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemLinear,
    convert,
    freeze,
    quantise,
    synops,
)
from tandem_cuda import reference as ref
from tandem_cuda.analysis import counts_and_activations, diagnose
from tandem_cuda.nn import learned_threshold

NEURONS = {
    "IF": IF(0.5),
    "clip": IF(0.5, clip=True),
    "two_phase": IF(0.5, clip=True, initial=0.5, two_phase=True),
    "refractory": IF(0.5, refractory=1),
    "LIF": LIF(0.5, 0.75),
    "adaptive": AdaptiveIF(0.5, 0.5, 0.75),
}
every_neuron = pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
KINDS = {case.kind: (case.arguments, *case.samples) for case in with_weights()}
every_kind = pytest.mark.parametrize("kind", KINDS)
ENCODINGS = ["constant", "impulse", "events"]


def twins(kind, neuron, norm=None, scale=0.4):
    """A layer and that of the reference, with the same parameters of float64."""
    torch.manual_seed(0)
    arguments, _ = KINDS[kind]
    made = [
        getattr(package, kind)(*arguments, norm=norm, neuron=neuron, learn_threshold=True, dtype=torch.float64)
        for package in (tandem_cuda, ref)
    ]
    layer, twin = made
    with torch.no_grad():
        layer.log_threshold.fill_(scale)
        layer.weight.mul_(2)
    twin.load_state_dict(layer.state_dict())
    return layer, twin


def fronts(kind, encoding, steps=5, batch=3):
    """The same input for both packages."""
    shape = batch, *KINDS[kind][1]
    if encoding != "events":
        value = torch.randn(shape, generator=generator(1), dtype=torch.float64)
        return Encode(steps, encoding)(value), ref.Encode(steps, encoding)(value)
    dense = (torch.rand(steps, *shape, generator=generator(2)) < 0.4).double()
    train = SpikeTrain.from_dense(dense).replace_unchecked(amplitude=0.75)
    counts = [dense.sum(0).requires_grad_() for _ in range(2)]
    return train.replace_unchecked(count=counts[0]), ref.DenseTrain(dense, counts[1], amplitude=0.75)


def random_like(x, seed=9):
    return torch.randn(x.shape, generator=generator(seed), dtype=x.dtype)


@pairs(neuron=NEURONS, kind=list(KINDS), encoding=ENCODINGS, norm=[None, "batch"])
def test_layers_are_those_of_the_reference(kind, neuron, encoding, norm):
    layer, twin = twins(kind, neuron, norm)
    x, y = fronts(kind, encoding)
    for training in (True, False):
        got, want = layer.train(training)(x), twin.train(training)(y)
        same(got.to_dense(), want.spikes)
        same(got.count.detach(), want.count.detach())
        assert 0 < got.firing_rate() < 1
        grads = []
        for train, module, front in ((got, layer, x), (want, twin, y)):
            leaves = [*module.parameters(), *([front.count] if encoding == "events" else [])]
            grads.append(torch.autograd.grad((train.count * random_like(train.count)).sum(), leaves, allow_unused=True))
        for (name, _), g, w in zip([*layer.named_parameters(), ("count", None)], *grads, strict=False):
            g, w = (torch.zeros(()) if grad is None else grad for grad in (g, w))
            torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
        assert grads[0][[name for name, _ in layer.named_parameters()].index("log_threshold")] != 0


@pairs(clip=[False, True], encoding=ENCODINGS, norm=[None, "batch"], two_phase=[False, True])
def test_gradient_is_that_of_the_formula(clip, encoding, norm, two_phase):
    """dc/dl = -v / threshold where the tandem rule passes a gradient, shared by the neurons of a sample and T."""
    steps = 5
    layer, _ = twins("TandemConv2d", IF(0.125, clip, two_phase=two_phase), norm)
    x, _ = fronts("TandemConv2d", encoding, steps)
    out = layer(x)
    weight = random_like(out.count)
    (grad,) = torch.autograd.grad((out.count * weight).sum(), [layer.log_threshold])
    value = x.count * x.amplitude if encoding == "events" else x.value * (steps if encoding == "constant" else 1)
    v = F.conv2d(value, layer.weight, layer.bias)
    if norm:
        v = F.batch_norm(v, None, None, layer.norm.weight, layer.norm.bias, training=True)
    v = v / torch.exp(layer.log_threshold)
    gate = (v > 0) & ((v <= 0.125 * steps) | (not clip))
    assert (v > 0.125 * steps).any()
    want = -(weight * v * gate).sum() / 0.125 / math.sqrt(v[0].numel() * steps)
    torch.testing.assert_close(grad, want.detach(), rtol=1e-9, atol=1e-9)


def test_it_is_lsq_before_batch_norm():
    """The gradient of s in s * c, c = clip(round(v / s)), where what follows does not depend on its scale."""
    steps = 4
    layer = TandemLinear(
        12, 6, neuron=IF(clip=True, initial=0.5, two_phase=True), learn_threshold=True, dtype=torch.float64
    )
    norm = nn.BatchNorm1d(6, eps=VANISHING, dtype=torch.float64)
    x = torch.randn(16, 12, generator=generator(0), dtype=torch.float64) * 3
    goal = random_like(torch.empty(16, 6, dtype=torch.float64))
    (norm(layer(Encode(steps, "impulse")(x)).count) * goal).sum().backward()
    s = torch.ones((), dtype=torch.float64, requires_grad=True)
    v = F.linear(x, layer.weight, layer.bias).detach()
    in_range = (v > 0) & (v <= steps)
    ratio = torch.where(in_range, v / s, (v > steps) * steps)
    rounded = ratio + (torch.floor(ratio + 0.5).clamp(0, steps) - ratio).detach()
    (norm(s * rounded) * goal).sum().backward()
    torch.testing.assert_close(layer.log_threshold.grad * math.sqrt(6 * steps), s.grad)


@pairs(kind=list(KINDS), norm=[None, "batch"], encoding=ENCODINGS)
def test_zero_changes_nothing(kind, norm, encoding):
    """A new layer spikes as one that does not learn, to the bit, and its other gradients are the same."""
    torch.manual_seed(3)
    plain = getattr(tandem_cuda, kind)(*KINDS[kind][0], norm=norm, neuron=IF(0.5))
    layer = getattr(tandem_cuda, kind)(*KINDS[kind][0], norm=norm, neuron=IF(0.5), learn_threshold=True)
    layer.load_state_dict(plain.state_dict(), strict=False)
    x, _ = fronts(kind, encoding)
    x = SpikeTrain.from_dense(x.to_dense().float()) if encoding == "events" else Encode(5, encoding)(x.value.float())
    outs = [module(x) for module in (layer, plain)]
    # W * X + b is one operation of torch without a gain, and two with it.
    assert float((outs[0].count - outs[1].count).abs().mean().detach()) < (
        1e-9 if norm or encoding != "constant" else 0.05
    )
    for out in outs:
        (out.count * random_like(out.count)).sum().backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(layer.get_parameter(name).grad, p.grad, rtol=1e-4, atol=1e-4)


# --- the same spikes in every mode -----------------------------------------------------------------------------------


def network(neuron, steps, mode, norm="batch"):
    torch.manual_seed(0)
    pooling = {"initial": neuron.initial, "two_phase": neuron.two_phase}
    how = {"neuron": neuron, "learn_threshold": True}
    net = nn.Sequential(
        Encode(steps, mode),
        TandemConv2d(2, 6, 3, padding=1, norm=norm, **how),
        TandemConv2d(6, 6, 3, padding=1, norm=norm, **how),
        SpikingAvgPool2d(2, **pooling),
        TandemConvTranspose2d(6, 5, 2, norm="batch", **how),
        nn.Flatten(2),
        TandemConv1d(5, 3, 2, **how),
        nn.Flatten(),
        TandemLinear(72, 7, norm=norm, **how),
        Decode(),
        nn.Linear(7, 3),
    )
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.rand((), generator=generator(len(name))) - 0.7 if "log" in name else p * 2)
    return net


def frozen_statistics(net):
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@pairs(neuron=NEURONS, mode=["constant", "impulse"], norm=[None, "batch"])
def test_every_mode_of_a_network(neuron, mode, norm, tmp_path):
    steps = 9
    net, x = network(neuron, steps, mode, norm), torch.rand(3, 2, 8, 8, generator=generator(1)) * steps
    net.train()
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    want = net(x).detach()
    assert want.std() > 0.01
    for guard in (torch.no_grad, torch.inference_mode):
        for _ in range(2):  # the second time, weights are cached
            with guard():
                same(net(x).clone(), want)
    frozen = freeze(net)
    frozen.save(tmp_path / "net.safetensors")
    for form in (frozen, FrozenNetwork.load(tmp_path / "net.safetensors")):
        same(form(x), want)
        stream = form.stream(x)
        if not neuron.two_phase:
            stream.advance(4)
        same(stream.advance(steps if neuron.two_phase else 5), want)
    frozen_statistics(net)
    same(net(x).detach(), want)


@pytest.mark.parametrize("identity", [False, True])
@every_neuron
def test_joins(identity, neuron, tmp_path):
    torch.manual_seed(0)  # with other weights, no LIF neuron may fire
    branches = [("TandemConv2d", (4, 4, 3), {"padding": 1}), ("TandemConv2d", (4, 4, 1), {"norm": "batch"})]
    joins = []
    for package in (tandem_cuda, ref):
        made = [getattr(package, kind)(*args, **named, dtype=torch.float64) for kind, args, named in branches]
        made += [nn.Identity()] * identity
        joins.append(package.TandemAdd(*made, neuron=neuron, learn_threshold=True))
    ours, theirs = joins
    with torch.no_grad():
        ours.log_threshold.fill_(0.7)
    theirs.load_state_dict(ours.state_dict())
    dense = (torch.rand(9, 3, 4, 5, 5, generator=generator(0)) < 0.4).double()
    amplitudes = (1.0, 0.5, 2.0)[: 2 + identity]
    x = [SpikeTrain.from_dense(dense).replace_unchecked(amplitude=a) for a in amplitudes]
    y = [ref.DenseTrain(dense, amplitude=a) for a in amplitudes]
    for training in (True, False):
        got, want = ours.train(training)(*x), theirs.train(training)(*y)
        same(got.to_dense(), want.spikes)
        assert 0 < got.firing_rate() < 1
        grads = [
            torch.autograd.grad((train.count * random_like(train.count)).sum(), list(join.parameters()))
            for train, join in ((got, ours), (want, theirs))
        ]
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
        assert dict(zip([name for name, _ in ours.named_parameters()], grads[0], strict=True))["log_threshold"] != 0
    with torch.no_grad():
        for _ in range(2):
            same(ours(*x).bits, got.bits)
        ours.log_threshold.data.neg_()  # cached weights notice
        changed = ours(*x).bits
        assert (changed != got.bits).any()
        same(copy.deepcopy(ours)(*x).bits, changed)


def joined(neuron, learn=True):
    """A join behind layers, and one of identities alone."""
    torch.manual_seed(0)
    net, how = nn.Module(), {"neuron": neuron, "learn_threshold": learn}
    net.encode = Encode(9, "impulse")
    net.first = TandemConv2d(2, 6, 3, padding=1, norm="batch", **how)
    net.join = TandemAdd(TandemConv2d(6, 6, 3, padding=1, norm="batch"), nn.Identity(), **how)
    net.sum = TandemAdd(nn.Identity(), nn.Identity(), **how)
    net.decode = Decode()
    calls = {"encode": ("x",), "first": ("encode",), "join": ("first",) * 2, "sum": ("first", "join")}
    return graph_of(net, calls | {"decode": ("sum",)})


@pytest.mark.parametrize("name", ["clip", "two_phase", "LIF"])
def test_every_mode_of_joins(name, tmp_path):
    net, x = joined(NEURONS[name]), torch.rand(3, 2, 6, 6, generator=generator(1)) * 9
    with torch.no_grad():
        for layer, scale in ((net.first, 0.3), (net.join, -0.4), (net.sum, 0.6)):
            layer.log_threshold.fill_(scale)
    net.train()(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    want = net.eval()(x).detach()
    with torch.no_grad():
        same(net(x), want)
    frozen = freeze(net)
    frozen.save(tmp_path / "net.safetensors")
    for form in (frozen, FrozenNetwork.load(tmp_path / "net.safetensors")):
        same(form(x), want)
        scales = [layer.tensors()["scale"] for layer in form.layers if layer.kind == "TandemAdd"]
        assert [scale.shape for scale in scales] == [(1,), (1,)]
    frozen_statistics(net)
    same(net(x).detach(), want)
    plain = [layer for layer in freeze(joined(IF(), learn=False).eval()).layers if layer.kind == "TandemAdd"]
    assert ["scale" in layer.tensors() for layer in plain] == [False, False]


def test_changes_are_noticed():
    layer, _ = twins("TandemConv2d", IF(0.5), "batch")
    layer.eval()
    for encoding in ENCODINGS:
        x, _ = fronts("TandemConv2d", encoding)
        with torch.no_grad():
            before = layer(x).bits
            layer.log_threshold.data.add_(0.5)
            after = layer(x).bits
            same(copy.deepcopy(layer)(x).bits, after)
            assert (after != before).any()


def test_a_larger_scale_is_a_larger_threshold():
    layer, _ = twins("TandemLinear", IF(0.5))
    x, _ = fronts("TandemLinear", "events")
    for module in (layer, LIF(0.5, 0.75)):
        if isinstance(module, LIF):
            layer.neuron = module
        got = layer(x).bits
        neuron = layer.neuron.scaled(math.exp(0.4))
        plain = TandemLinear(*KINDS["TandemLinear"][0], dtype=torch.float64, neuron=neuron)
        plain.load_state_dict(layer.state_dict(), strict=False)
        same(plain(x).bits, got)


def test_units_round_alike():
    l = torch.linspace(-3, 3, 1001)  # noqa: E741
    want = torch.exp(-l.double()).float()
    for i in range(0, 1001, 50):
        same(learned_threshold.inverse_threshold(l[i]), want[i])


def test_functional_calls():
    layer, _ = twins("TandemConv2d", IF(0.5), "batch")
    x, _ = fronts("TandemConv2d", "events")
    layer.eval()
    named = dict(layer.named_parameters())

    def loss(named):
        return functional_call(layer, named, (x,)).count.square().sum()

    got = torch.func.grad(loss)(named)
    loss(named).backward()
    same(got["log_threshold"], layer.log_threshold.grad)


def compilable(neuron, mode):
    torch.manual_seed(0)
    how = {"neuron": neuron, "learn_threshold": True}
    net = nn.Module()
    net.encode = Encode(5, mode)
    net.first = TandemConv2d(2, 4, 3, padding=1, norm="batch" if mode == "impulse" else None, **how)
    net.join = TandemAdd(TandemConv2d(4, 4, 1, norm="batch"), nn.Identity(), **how)
    net.flatten = nn.Flatten()
    net.last = TandemLinear(64, 5, **how)
    net.decode = Decode()
    calls = {"encode": ("x",), "first": ("encode",), "join": ("first",) * 2, "flatten": ("join",)}
    return graph_of(net, calls | {"last": ("flatten",), "decode": ("last",)}).double()


@pytest.mark.parametrize(
    ("backend", "dynamic", "name"),
    [
        pytest.param(*how, marks=pytest.mark.slow)
        for how in (("aot_eager", False, "clip"), ("aot_eager", True, "two_phase"), ("inductor", True, "clip"))
    ],
)
def test_compiled(name, dynamic, backend):
    for mode in ("constant", "impulse"):
        torch.compiler.reset()
        net = compilable(NEURONS[name], mode)
        twin = copy.deepcopy(net)
        compiled = torch.compile(twin, fullgraph=True, dynamic=dynamic, backend=backend)
        for batch in (3, 4):
            x = torch.rand(batch, 2, 4, 4, generator=generator(batch), dtype=torch.float64) * 5
            outs = net(x), compiled(x)
            torch.testing.assert_close(outs[1].detach(), outs[0].detach(), rtol=1e-12, atol=1e-12)
            grads = [
                torch.autograd.grad(out.square().sum(), [*module.parameters()])
                for out, module in zip(outs, (net, twin), strict=True)
            ]
            torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


# --- convert ----------------------------------------------------------------------------------------------------------


def learning(calibrated=False, **named):
    torch.manual_seed(0)
    ann = Residual().eval()
    calibrate = inputs() if calibrated else None
    snn = convert(ann, 8, learn_thresholds=True, calibrate=calibrate, example=inputs(), **named)
    for i, name in enumerate(snn.spiking_layers):
        with torch.no_grad():
            snn.snn.get_submodule(name).log_threshold.fill_(0.1 * (i + 1))
    return ann, snn


@pytest.mark.parametrize("calibrated", [False, True])
def test_convert(calibrated):
    ann, snn = learning(calibrated)
    assert list(convert(ann, 8, example=inputs()).state_dict()) == list(ann.state_dict())
    own = [f"{name}.log_threshold" for name in snn.spiking_layers]
    assert any(name.endswith("add.log_threshold") for name in own)
    assert list(snn.state_dict()) == [*ann.state_dict(), *own, *(["_extra_state"] if calibrated else [])]
    assert list(nn.ModuleDict({"net": snn}).state_dict()) == [f"net.{name}" for name in snn.state_dict()]
    assert all(x.requires_grad for name, x in snn.state_dict(keep_vars=True).items() if name in own)
    assert not any(x.requires_grad for x in snn.state_dict().values())
    learned = [p for name, p in snn.named_parameters() if name.endswith("log_threshold")]
    assert len(learned) == len(own)
    assert {*snn.parameters()} == {*ann.parameters(), *learned}
    assert len([*snn.parameters()]) == len([*ann.parameters()]) + len(own)
    snn(inputs()).square().sum().backward()
    assert all(p.grad is not None and p.grad != 0 for p in learned)
    same(freeze(snn)(inputs()), snn(inputs()).detach())
    assert synops(snn.snn, inputs())


def test_state_of_a_converted_network():
    ann, snn = learning()
    x, state = inputs(), {k: v.clone() for k, v in snn.state_dict().items()}
    want = snn(x).detach()
    _, other = learning()
    for network, prefix in ((other, ""), (nn.ModuleDict({"net": other}), "net.")):
        for assign in (False, True):
            other._apply(torch.zeros_like)
            network.load_state_dict({prefix + k: v.clone() for k, v in state.items()}, assign=assign)
            same(other(x).detach(), want)
    file = io.BytesIO()
    torch.save(snn, file)
    file.seek(0)
    for copied in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn)), torch.load(file, weights_only=False)):
        same(copied(x).detach(), want)
        same(tuple(copied.state_dict().values()), tuple(state.values()))
        assert not {*copied.parameters()} & {*snn.parameters()}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*log_threshold"):
        snn.load_state_dict(ann.state_dict())
    with pytest.raises(RuntimeError, match=r"size mismatch for .*log_threshold"):
        snn.load_state_dict({**state, f"{snn.spiking_layers[0]}.log_threshold": torch.zeros(2)})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\).*"a.log_threshold"'):
        snn.load_state_dict({**state, "a.log_threshold": torch.zeros(())})
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*log_threshold"):
        convert(ann, 8, example=inputs()).load_state_dict(state)
    stage = convert(ann, 8, learn_thresholds=True, calibrate=inputs(), spiking_layers=2)
    stage.load_state_dict(snn.state_dict(), strict=False)
    learned = [stage.snn.get_submodule(name).log_threshold for name in stage.spiking_layers]
    torch.testing.assert_close(torch.stack([*learned]).detach(), torch.tensor([0.1, 0.2]))
    assert {x.dtype for x in snn.double().state_dict().values() if x.is_floating_point()} == {torch.float64}
    assert snn(x.double()).dtype == torch.float64


def test_set_time_steps():
    ann, snn = learning(calibrated=True)
    other = convert(ann, 5, learn_thresholds=True, calibrate=snn.calibration, example=inputs())
    other.load_state_dict(snn.state_dict())
    snn.set_time_steps(5)
    same(snn(inputs()).detach(), other(inputs()).detach())


def test_analyses():
    _, snn = learning(calibrated=True, neuron=IF(clip=True, initial=0.5))
    agreement = diagnose(snn.snn, inputs(), lambda y: y.square().sum())
    assert all(layer.count_cosine > 0.95 for layer in agreement)
    assert all(layer.count_error < 0.25 for layer in agreement)
    for name, (count, activation) in counts_and_activations(snn.snn, inputs()).items():
        assert float((count - activation).mean().abs()) < 0.1, name
    snn.train()
    penalties = [kind(snn) for kind in (tandem_cuda.FiringRatePenalty, tandem_cuda.SynOpsPenalty)]
    snn(inputs())
    for penalty in penalties:
        stem = snn.snn.get_submodule("stem").log_threshold
        (grad,) = torch.autograd.grad(penalty(), [stem], retain_graph=True)
        assert grad != 0
    for penalty in penalties:
        penalty.remove()
    quantise(snn.eval(), 4)
    same(freeze(snn)(inputs()), snn(inputs()).detach())


def test_nir():
    pytest.importorskip("nir")
    from nir_interpreter import executed
    from tandem_cuda.exchange import from_nir, to_nir

    torch.manual_seed(0)
    layers = TandemConv2d(2, 4, 3, norm="batch", learn_threshold=True), TandemLinear(64, 5, learn_threshold=True)
    net = nn.Sequential(Encode(6), layers[0], nn.Flatten(), layers[1], Decode(), nn.Linear(5, 3)).double().eval()
    for model, shape in ((net, (2, 2, 6, 6)), (joined(IF()).double().eval(), (2, 2, 5, 5))):
        x = torch.rand(shape, generator=generator(0), dtype=torch.float64) * 6
        with torch.no_grad():
            for i, m in enumerate(m for m in model.modules() if getattr(m, "log_threshold", None) is not None):
                m.log_threshold.fill_(0.2 - 0.3 * i)
        graph = to_nir(model, x)
        steps = [x] * 6 if model is net else [x] + [torch.zeros_like(x)] * 8
        want = model(x).detach()
        torch.testing.assert_close(executed(graph, steps), want)
        torch.testing.assert_close(decoded(from_nir(graph).double()(x)).detach(), want)


def decoded(x):
    return x.count if isinstance(x, SpikeTrain) else x


# --- refusals and descriptions ----------------------------------------------------------------------------------------


@every_kind
def test_bad_values(kind):
    with pytest.raises(TypeError, match=f"{kind}: learn_threshold must be True or False, got int"):
        getattr(tandem_cuda, kind)(*KINDS[kind][0], learn_threshold=1)


def test_bad_values_elsewhere():
    with pytest.raises(TypeError, match="TandemAdd: learn_threshold must be True or False, got str"):
        TandemAdd(nn.Identity(), nn.Identity(), learn_threshold="yes")
    with pytest.raises(ValueError, match="TandemAdd: branches must have learn_threshold=False"):
        TandemAdd(TandemLinear(2, 2, learn_threshold=True), nn.Identity())


def test_parameter():
    layer = TandemLinear(3, 2, learn_threshold=True, dtype=torch.float64)
    assert layer.log_threshold.shape == ()
    assert layer.log_threshold.dtype == torch.float64
    assert "learn_threshold=True" in repr(layer)
    with torch.no_grad():
        layer.log_threshold.fill_(1)
    layer.reset_parameters()
    assert layer.log_threshold == 0
    plain = TandemLinear(3, 2)
    assert plain.log_threshold is None
    assert list(plain.state_dict()) == ["weight", "bias"]
    join = TandemAdd(TandemLinear(2, 2, dtype=torch.float64), nn.Identity(), learn_threshold=True)
    assert join.log_threshold.dtype == torch.float64
    assert "learn_threshold=True" in repr(join)
    assert list(TandemAdd(nn.Identity(), nn.Identity()).state_dict()) == []
