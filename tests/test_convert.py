"""From PyTorch models to tandem SNNs on the same parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anns import (
    MODELS,
    Decoder,
    Functional,
    OneDimension,
    Residual,
    TwoHeads,
    cnn,
    every_model,
    inputs,
    kinds,
    made,
    per_layer,
    whole,
)
from exact import generator, same
from pairwise import each
from tandem_cuda import (
    IF,
    LIF,
    Decode,
    Encode,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemDropout,
    TandemLinear,
    TandemNetwork,
    convert,
    synops,
)


@every_model
def test_twins_share_everything(make):
    """Parameters and norms are the same objects, and a step of either network's optimiser is a step of both."""
    ann, snn = made(make, calibrate=inputs())
    assert isinstance(snn, TandemNetwork)
    assert snn.ann() is ann
    unused = {p for m in ann.modules() if m is getattr(ann, "unused", None) for p in m.parameters()}
    assert set(snn.parameters()) == set(ann.parameters()) - unused
    assert all(any(m is n for n in snn.modules()) for m in ann.modules() if isinstance(m, nn.BatchNorm2d))
    x = inputs()
    for owner, runs in ((snn, snn), (ann, ann), (snn, ann), (ann, snn)):
        before = [p.detach().clone() for p in snn.parameters()]
        outputs = whole(snn.eval()(x)).detach(), whole(ann(x)).detach()
        runs.train()
        optimizer = torch.optim.SGD(owner.parameters(), lr=0.01)
        whole(runs(x)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert any((p != q).any() for p, q in zip(snn.parameters(), before, strict=True))
        assert (whole(snn.eval()(x)) != outputs[0]).any()
        assert (whole(ann(x)) != outputs[1]).any()


@each(make=MODELS, mode=["constant", "impulse"])
def test_calibrated_network_approximates_its_ann(make, mode):
    """With many steps the counts are the activations, but for what an impulse's disorder adds."""
    torch.manual_seed(0)
    ann = make()
    for seed in range(3):
        ann(inputs(32, seed))  # statistics
    ann.eval()
    x = inputs(32)
    want = whole(ann(x)).detach()
    errors = []
    for steps in (8, 256):
        snn = convert(ann, steps, mode=mode, calibrate=x, percentile=100)
        with torch.no_grad():
            got = whole(snn(x))
        errors.append(((got - want).norm() / want.norm()).item())
    if mode == "constant":  # the disorder of an impulse may be larger than what few steps round
        assert errors[1] < errors[0]
    assert errors[1] < (0.02 if mode == "constant" else 0.15)


@pytest.mark.parametrize("make", [Functional, Residual, OneDimension, Decoder, TwoHeads])
def test_gradients_approach_those_of_the_ann(make):
    """With many steps the counts are the activations, hence the tandem gradient is the ANN's."""
    torch.manual_seed(0)
    ann = make()
    for seed in range(60):
        ann(inputs(32, seed % 3))  # statistics
    ann.eval()
    x = inputs(32)
    snn = convert(ann, 256, calibrate=x, percentile=100)
    weights = torch.randn(whole(ann(x)).shape, generator=generator(1))
    got, want = (
        torch.cat([g.flatten() for g in torch.autograd.grad((whole(net(x)) * weights).sum(), list(snn.parameters()))])
        for net in (snn, ann)
    )
    assert F.cosine_similarity(got, want, 0) > 0.99
    assert 0.95 < got.norm() / want.norm() < 1.05


@every_model
def test_every_parameter_gets_a_gradient(make):
    ann, snn = made(make)
    ann.eval()
    x = inputs().requires_grad_()
    y = snn(x)
    whole(y).square().sum().backward()
    for name, p in snn.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    assert x.grad.abs().sum() > 0


def test_exact_gradients():
    """A layer whose counts are exactly its activations hands on the ANN's gradient, T times for a constant input."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        ann[0].weight.copy_(torch.randint(-1, 2, (6, 4)))
    x = torch.eye(4)
    snn = convert(ann, 8, example=x)
    results = []
    for net, value in ((snn, x), (ann, 8 * x)):
        y = net(value)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), list(ann.parameters()))))
    torch.testing.assert_close(*results)


def test_what_becomes_of_a_network():
    ann, snn = made(cnn, neuron=LIF(0.5), engine="event")
    assert [type(m).__name__ for m in snn.snn.children()] == [
        "Encode", "TandemConv2d", "SpikingMaxPool2d", "TandemConv2d", "SpikingAvgPool2d", "TandemDropout2d",
        "TandemLinear", "TandemDropout", "Decode", "Linear",
    ]  # fmt: skip
    layers = dict(snn.snn.named_children())
    assert layers["0"].norm is ann[1]
    assert layers["9"].weight is ann[9].weight
    assert layers["13"] is ann[13]
    assert all(m.neuron == LIF(0.5) and m.engine == "event" for m in layers.values() if hasattr(m, "neuron"))
    assert layers["encode"].time_steps == 8
    assert [row.name for row in synops(snn, inputs())] == ["snn.0", "snn.4", "snn.9", "snn.13"]


def test_names_and_kinds():
    _, snn = made(Residual)
    names = [row.name for row in synops(snn, inputs())]
    layers = ("stem", "blocks.0.conv1", "blocks.0.add", "blocks.1.conv1", "blocks.1.add", "fc")
    assert names == [f"snn.{name}" for name in layers]
    assert kinds(snn).count(TandemAdd) == 2
    assert SpikingAdaptiveAvgPool2d in kinds(snn)
    for make, kind in ((OneDimension, TandemConv1d), (Decoder, TandemConvTranspose2d), (Functional, TandemDropout)):
        assert kind in kinds(made(make)[1])
    assert {SpikingMaxPool2d, SpikingAvgPool2d, Encode, Decode, TandemConv2d, TandemLinear} <= set(kinds(made(cnn)[1]))


def test_mode_is_the_twins():
    ann, snn = made(cnn)
    ann.eval()
    assert convert(ann, 8, example=inputs(1)).training is False
    assert snn.train().training is ann.training is True
    assert not any(m.training for m in [*snn.eval().modules(), *ann.modules()])


def test_functions_follow_the_mode():
    """The converted network drops in training alone, whatever the mode in which it was converted."""
    ann = Functional()
    for mode in (True, False):
        snn = convert(ann.train(mode), 8, calibrate=inputs())
        x = inputs()
        same(snn.eval()(x).detach(), snn(x).detach())
        assert (snn.train()(x) != snn(x)).any()


def test_a_layer_that_runs_twice():
    """Once with neurons and once as the read-out; its two forms share its parameters."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(F.relu(self.fc(F.relu(self.fc(x)))))

    torch.manual_seed(0)
    ann = Twice()
    x = torch.rand(32, 4)
    snn = convert(ann, 256, calibrate=x, percentile=100)
    assert list(snn.parameters()) == [ann.fc.weight, ann.fc.bias]
    torch.testing.assert_close(snn(x), ann(x), rtol=0, atol=0.02)
    assert list(snn.state_dict()) == ["fc.weight", "fc.bias", "_extra_state"]
    snn.load_state_dict({"fc.weight": torch.zeros(4, 4), "fc.bias": torch.ones(4)})
    same(snn(x).detach(), torch.ones(32, 4))


# --- calibration -----------------------------------------------------------------------------------------------------


def test_thresholds_are_percentiles():
    ann = cnn().eval()
    batches = [inputs(5, seed) for seed in range(3)]
    snn = convert(ann, 16, calibrate=[(x, None) for x in batches], percentile=90, **per_layer(IF(clip=True)))
    activations = [ann[:3](x).detach().flatten() for x in batches]
    want = sum(torch.quantile(a, 0.9, interpolation="higher").item() for a in activations) / 3 / 16
    neuron = dict(snn.snn.named_children())["0"].neuron
    assert neuron.clip
    assert neuron.threshold == neuron.amplitude == pytest.approx(want, rel=0.02)
    assert not ann.training


@pytest.mark.parametrize(("name", "joins"), [("resnet18", 8), ("mobilenet_v2", 10)])
def test_torchvision(name, joins):
    """Converted; training is slow: in test_convert_training."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        ann = getattr(models, name)(num_classes=10)
        image = torch.zeros(1, 3, 32, 32)
    assert kinds(convert(ann, 8, example=image)).count(TandemAdd) == joins
