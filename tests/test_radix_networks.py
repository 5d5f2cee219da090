"""Networks of radix spikes: conversion, calibration, every T, cascades, penalties, compiled and exported."""

import math

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import same
from tandem_cuda import (
    IF,
    LIF,
    ActivePenalty,
    Decode,
    Encode,
    FiringRatePenalty,
    RadixIF,
    SynOpsPenalty,
    TandemConv2d,
    TandemLinear,
    convert,
    freeze,
    synops,
)
from tensors import normal


class Joined(nn.Module):
    """A sum, a concatenation, poolings and a branch without ReLU, so that neurons come in pairs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.third = nn.Conv2d(8, 6, 1)
        self.last = nn.Linear(14, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = nn.functional.max_pool2d(torch.relu(self.second(x) + x), 2)
        x = torch.cat([x, torch.relu(self.third(nn.functional.avg_pool2d(x, 3, 1, 1)))], 1)
        return self.last(x.mean((2, 3)))


def example(make=Joined):
    torch.manual_seed(0)
    ann = make().train()
    x = torch.rand(48, 3, 8, 8)
    with torch.no_grad():
        for _ in range(20):
            ann(x)
    return ann.eval(), x


@torch.no_grad()
@pytest.mark.parametrize(("per_channel", "mode"), [(False, None), (True, "radix")])
def test_a_calibrated_network_tends_to_its_ann(per_channel, mode):
    """One conversion for T = 4 serves every T."""
    ann, x = example()
    snn = convert(ann, 4, neuron=RadixIF(), calibrate=x, per_channel=per_channel, mode=mode)
    want = ann(x)
    errors = {}
    for steps in (1, 2, 3, 4, 8):
        snn.set_time_steps(steps)
        frozen = freeze(snn)
        same(frozen(x), snn(x))
        errors[steps] = ((snn(x) - want).abs().mean() / want.abs().mean()).item()
    assert errors[8] <= errors[4] < errors[2] < errors[1]
    assert errors[4] < 0.1
    counts = convert(ann, 4, neuron=IF(initial=0.5, two_phase=True), calibrate=x, per_channel=per_channel)
    assert ((counts(x) - want).abs().mean() / want.abs().mean()).item() > errors[4]


@torch.no_grad()
def test_calibrations_are_taken_over():
    ann, x = example()
    snn = convert(ann, 3, neuron=RadixIF(), calibrate=x)
    assert snn.calibration.neuron == RadixIF()
    again = convert(ann, 3, calibrate=snn.calibration, example=x)
    same(again(x), snn(x))
    other = convert(ann, 3, neuron=RadixIF(), calibrate=x * 0.5)
    other.load_state_dict(snn.state_dict())
    same(other(x), snn(x))
    levels = convert(ann, 3, neuron=RadixIF(), calibrate=snn.levels, example=x)
    assert levels.levels.keys() == snn.levels.keys()
    snn.set_time_steps(5)
    assert snn.levels.keys() == levels.levels.keys()
    with pytest.raises(ValueError, match=r"set_time_steps: time_steps of radix spikes must be from 1 to 8, .* got 9"):
        snn.set_time_steps(9)
    assert snn.time_steps == 5


@torch.no_grad()
def test_corrections_shrink():
    """Like the threshold, by half with every step."""
    ann, x = example()
    snn = convert(ann, 4, neuron=RadixIF(), calibrate=x)
    before = {
        name: m.correction.clone() for name, m in snn.named_modules() if getattr(m, "correction", None) is not None
    }
    assert before
    for steps in (2, 4, 7):
        snn.set_time_steps(steps)
        for name, module in snn.named_modules():
            if name in before:
                same(module.correction, before[name] * 2.0 ** (4 - steps))


@torch.no_grad()
@pytest.mark.parametrize("weights", ["int8", "int16"])
def test_integer_weights(weights, tmp_path):
    ann, x = example()
    snn = convert(ann, 4, neuron=RadixIF(), calibrate=x, weights=weights)
    frozen = freeze(snn)
    same(frozen(x), snn(x))
    frozen.save(tmp_path / "net.pt")
    loaded = tandem_cuda.FrozenNetwork.load(tmp_path / "net.pt")
    same(loaded(x), snn(x))
    for n in (1, 7):  # torch's read-out sums floats in another order
        torch.testing.assert_close(torch.cat([loaded(part) for part in x.split(n)]), snn(x), rtol=1e-4, atol=1e-6)


def test_training_improves_a_network():
    """At T = 2, whose spikes say little; one set of weights then serves T = 2 and T = 8."""
    ann, x = example(lambda: nn.Sequential(*cnn_layers()))
    y = normal(48, 3 * 64, seed=2).matmul(normal(3 * 64, 5, seed=3)).argmax(1)
    snn = convert(ann, 2, neuron=RadixIF(2.0, clip=True), example=x).train()
    optimizer = torch.optim.AdamW(snn.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(snn(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.4 * losses[0]
    accuracy = {}
    with torch.no_grad():
        for _ in range(50):
            snn(x)
        for steps in (2, 8):
            snn.eval().set_time_steps(steps)
            accuracy[steps] = (snn(x).argmax(1) == y).double().mean().item()
    assert min(accuracy.values()) > 0.8


def cnn_layers():
    return (
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5)),
    )


@torch.no_grad()
def test_cascades():
    """T = 2, then 4, then 8 for unsure samples, of one set of weights."""
    ann, x = example()
    ann.last.weight.mul_(10)
    networks = []
    snn = convert(ann, 4, neuron=RadixIF(), calibrate=x)
    for steps in (2, 4, 8):
        snn.set_time_steps(steps)
        networks.append(freeze(snn))
    cascade = tandem_cuda.Cascade(networks)
    outputs = torch.stack([network(x) for network in networks])
    for confidence, stops in ((0.1, 1), (0.7, 3), (1.0, 1)):
        prediction = cascade.predict(x, exit_confidence=confidence)
        unsure = outputs.softmax(2).amax(2) < confidence
        last = unsure[:-1].cumprod(0).sum(0)
        assert len(last.unique()) == stops
        same(prediction.steps, torch.tensor([2, 2 + 4, 2 + 4 + 8])[last])
        logits = outputs[last, torch.arange(len(x))]
        same(prediction.classes, logits.argmax(1))
        torch.testing.assert_close(prediction.logits, logits)


def penalised():
    """A network in training mode, and samples."""
    torch.manual_seed(0)
    net = nn.Sequential(
        Encode(3, "impulse"),
        TandemLinear(6, 5, neuron=RadixIF()),
        TandemLinear(5, 4, neuron=RadixIF()),
        Decode(),
        nn.Linear(4, 2),
    ).train()
    return net, torch.rand(16, 6) * 3


@pytest.mark.parametrize("penalty_class", [FiringRatePenalty, ActivePenalty, SynOpsPenalty])
def test_penalties(penalty_class):
    """Spikes get the gradient of a line from no spike at 0 to T at the largest value."""
    net, x = penalised()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    values = []
    with penalty_class(net) as penalty:
        for _ in range(10):
            net(x)
            value = penalty()
            optimizer.zero_grad()
            value.backward()
            assert net[1].weight.grad.abs().sum() > 0
            optimizer.step()
            values.append(value.item())
    assert values[-1] < 0.5 * values[0]


def test_the_share_of_active_neurons():
    """Of each layer, those with a spike at any step."""
    net, x = penalised()
    dense = []
    for layer in net[1:3]:
        layer.register_forward_hook(lambda module, inputs, output: dense.append(output.to_dense(torch.bool)))
    with ActivePenalty(net, target=0.05) as penalty:
        net(x)
        value = penalty()
    shares = [spikes.any(0).double().mean().item() for spikes in dense]
    assert len(shares) == 2
    assert 0.05 < min(shares) <= max(shares) < 1
    assert value.item() == pytest.approx(sum((share - 0.05) ** 2 for share in shares))
    value.backward()
    for layer in net[1:3]:
        assert layer.weight.grad.isfinite().all()
        assert layer.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_activity():
    ann, x = example()
    snn = convert(ann, 4, neuron=RadixIF(), calibrate=x)
    table = synops(snn, x)
    assert all(0 < a.firing_rate < 1 for a in table if a.firing_rate is not None)
    assert all(0 <= layer.saturation < 0.5 for layer in snn.report(x).layers if layer.saturation is not None)


def test_learned_thresholds():
    """Their gradients are those of relu(v) / theta in the range of the neurons, shared as in LSQ."""
    ann, x = example()
    snn = convert(ann, 3, neuron=RadixIF(clip=True), calibrate=x, learn_thresholds=True)
    learned = [snn.snn.get_submodule(name) for name in snn.spiking_layers]
    snn.train()(x).square().mean().backward()
    assert all(layer.log_threshold.grad.isfinite() and layer.log_threshold.grad != 0 for layer in learned)
    snn.eval().zero_grad()
    calls = {}

    def keep(layer, inputs, output):
        output.value.retain_grad()
        calls[layer] = inputs, output

    for layer in learned:
        nn.init.constant_(layer.log_threshold, 0.1)
    hooks = [layer.register_forward_hook(keep) for layer in learned]
    snn(x).square().mean().backward()
    assert calls.keys() == {*learned}
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for layer, (inputs, output) in calls.items():
            v, theta = layer.integrated(*inputs), layer.neuron.threshold_at(3)
            inside = (v > 0) & (v <= 7 * theta)
            want = -(output.value.grad * v * inside).sum() / theta / math.sqrt(v[0].numel() * 7)
            torch.testing.assert_close(layer.log_threshold.grad, want, rtol=1e-4, atol=0)
        same(freeze(snn)(x), snn(x))


@pytest.mark.slow
@torch.no_grad()
def test_compiled():
    net = nn.Sequential(
        Encode(3, "radix"),
        TandemConv2d(3, 8, 3, padding=1, norm="batch", neuron=RadixIF(2.5)),
        nn.Flatten(),
        TandemLinear(8 * 64, 12, neuron=RadixIF(2.5)),
        Decode(),
        nn.Linear(12, 5),
    ).eval()
    x = torch.rand(4, 3, 8, 8)
    want = net(x)
    same(torch.compile(net, backend="aot_eager", fullgraph=True)(x), want)
    same(torch.export.export(freeze(net), (x,)).module()(x), want)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_steps": 9}, r"time_steps of radix spikes must be from 1 to 8, .* got 9"),
        ({"neuron": LIF(), "mode": "radix"}, r"neuron must wait for all time steps with mode 'radix', .* got LIF"),
    ],
)
def test_bad_settings(settings, message):
    ann, x = example()
    with pytest.raises(ValueError, match=f"^convert: {message}"):
        convert(ann, **{"time_steps": 4, "neuron": RadixIF(), "example": x} | settings)


def test_nir_refuses_them():
    from tandem_cuda.exchange import to_nir

    pytest.importorskip("nir")
    ann, x = example(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)))
    with pytest.raises(ValueError, match=r"RadixIF\(.*\); use IF\(\)"):
        to_nir(convert(ann, 4, neuron=RadixIF(), example=x), x[:1])
    to_nir(convert(ann, 4, neuron=IF(), example=x), x[:1])
    with pytest.raises(ValueError, match="since all spikes weigh the same in NIR"):
        to_nir(convert(ann, 4, neuron=IF(two_phase=True), mode="radix", example=x), x[:1])
