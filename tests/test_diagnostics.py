"""diagnose against ANNs written out in plain PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anns import Pair, per_layer
from tandem_cuda import IF, LIF, AdaptiveIF, Decode, Encode, SpikeTrain, TandemConv2d, TandemLinear, convert
from tandem_cuda.analysis import LayerAgreement, counts_and_activations, diagnose
from tandem_cuda.neuron.lif import lif_rate

LABELS = torch.arange(6) % 3
IMAGES = torch.rand(6, 2, 6, 7, generator=torch.Generator().manual_seed(0)).double()


def loss(logits):
    return F.cross_entropy(logits, LABELS)


def network(neuron=IF(0.8), norm="batch", mode="constant"):
    torch.manual_seed(0)
    net = nn.Sequential(
        Encode(8, mode),
        TandemConv2d(2, 6, 3, padding=1, norm=norm, neuron=neuron),
        nn.Flatten(),
        TandemLinear(252, 9, norm=norm, neuron=neuron),
        Decode(),
        nn.Dropout(0.5),
        nn.Linear(9, 3),
    ).double()
    with torch.no_grad():
        for layer in (net[1], net[3]):
            layer.weight.mul_(2)
            layer.bias.uniform_(0, 4)
            if norm:
                layer.norm.bias.fill_(2.0)
                layer.norm.running_mean.uniform_(-1, 1)
    return net


def activation(v, neuron):
    a = torch.relu(v) / neuron.threshold if neuron.leak == 1 else 8 * lif_rate(v, 8, neuron.threshold, neuron.leak)
    return a.clamp(max=8) if neuron.clip else a


def norm_of(layer, v):
    if layer.norm is None:
        return v
    norm = layer.norm
    return F.batch_norm(v, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def mean_cosine(a, b):
    return F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).mean().item()


@pytest.mark.parametrize("mode", ["constant", "impulse"])
@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("neuron", [IF(0.8), IF(clip=True), LIF(0.5, 0.8)], ids=str)
def test_against_an_ann_written_out(neuron, norm, mode):
    net = network(neuron, norm, mode)
    conv, linear, read_out = net[1], net[3], net[6]
    got = diagnose(net, IMAGES, loss)
    assert [layer.name for layer in got] == ["1", "3"]

    net.eval()
    counts = [net[:2](IMAGES).count.detach(), net[:4](IMAGES).count.detach()]
    first = activation(
        norm_of(conv, F.conv2d(IMAGES * (8 if mode == "constant" else 1), conv.weight, conv.bias, 1, 1)), neuron
    )
    of_counts = activation(norm_of(linear, F.linear(counts[0].flatten(1), linear.weight, linear.bias)), neuron)
    alone = activation(norm_of(linear, F.linear(first.flatten(1), linear.weight, linear.bias)), neuron)
    weights = [conv.weight, linear.weight]
    exact = torch.autograd.grad(loss(read_out(alone)), weights)
    tandem = torch.autograd.grad(loss(net(IMAGES)), weights)
    for layer, count, a, own, gradients in zip(
        got, counts, (first, of_counts), (first, alone), zip(tandem, exact, strict=True), strict=True
    ):
        assert 0 < count.mean() < 8
        assert layer.count_error == pytest.approx((count - a).abs().mean().item(), rel=1e-9)
        assert layer.count_cosine == pytest.approx(mean_cosine(count, a), rel=1e-9)
        assert layer.accumulated_error == pytest.approx((count - own).abs().mean().item(), rel=1e-9)
        assert layer.accumulated_cosine == pytest.approx(mean_cosine(count, own), rel=1e-9)
        assert layer.gradient_cosine == pytest.approx(mean_cosine(*(g[None] for g in gradients)), rel=1e-7)
        ours, theirs = (g.norm().item() for g in gradients)
        assert layer.gradient_norm_ratio == pytest.approx(ours / theirs, rel=1e-7)
    pairs = counts_and_activations(net.train(), IMAGES)
    assert net.training
    assert list(pairs) == ["1", "3"]
    for (count, a), wanted in zip(pairs.values(), zip(counts, (first, of_counts), strict=True), strict=True):
        assert torch.equal(count, wanted[0])
        torch.testing.assert_close(a, wanted[1])
    assert got[0].count_error == got[0].accumulated_error  # nothing is below the first layer
    assert got[1].count_error != got[1].accumulated_error


@pytest.mark.parametrize("neuron", [IF(0.25, clip=True, refractory=3), AdaptiveIF(0.25, 0.25, clip=True)], ids=str)
def test_activations_end_at_the_largest_count(neuron):
    """8 / (1 + 3), where the activation of a refractory neuron would tend to 8 / 3, and 8."""
    layer = TandemLinear(4, 3, bias=False, neuron=neuron)
    nn.init.constant_(layer.weight, 10.0)
    (row,) = diagnose(nn.Sequential(Encode(8), layer, Decode()), torch.ones(2, 4), lambda y: y.sum())
    assert row.count_error < 1e-6


class Residual(nn.Module):
    """A join with weights on both sides, a join with an identity, and the three kinds of pooling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.short = nn.Conv2d(8, 12, 1)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.max, self.mean, self.all = nn.MaxPool2d(2), nn.AvgPool2d((1, 3)), nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        x = self.max(torch.relu(self.stem(x)))
        x = torch.relu(self.body(x) + self.short(x))
        x = self.mean(torch.relu(self.second(x) + x))
        return self.last(self.drop(torch.flatten(self.all(x), 1)))


def test_joins_and_pooling_of_a_converted_network():
    """By itself, what the table calls the ANN is the ANN that was converted, to rounding."""
    torch.manual_seed(0)
    ann = Residual().double().eval()
    net = convert(ann, 8, calibrate=IMAGES, **per_layer())
    layers = {layer.name.removeprefix("snn."): layer for layer in diagnose(net, IMAGES, loss)}
    assert list(layers) == ["stem", "add", "add_1"]
    hidden = ann.max(torch.relu(ann.stem(IMAGES)))
    joined = torch.relu(ann.body(hidden) + ann.short(hidden))
    activations = {
        "stem": torch.relu(ann.stem(IMAGES)),
        "add": joined,
        "add_1": torch.relu(ann.second(joined) + joined),
    }
    trains = {}
    handles = [
        module.register_forward_hook(lambda module, args, out, name=name: trains.update({name: out}))
        for name, module in net.snn.named_modules()
        if name in layers
    ]
    net(IMAGES)
    for handle in handles:
        handle.remove()
    for name, layer in layers.items():
        want = activations[name] / trains[name].amplitude
        error = (trains[name].count - want).abs().mean().item()
        assert error > 0
        assert layer.accumulated_error == pytest.approx(error, rel=1e-9)
        assert layer.accumulated_cosine == pytest.approx(mean_cosine(trains[name].count, want), rel=1e-9)
    assert layers["stem"].count_error == pytest.approx(layers["stem"].accumulated_error, rel=1e-9)
    weights = {"stem": [ann.stem], "add": [ann.body[0], ann.short], "add_1": [ann.second]}
    for name, modules in weights.items():
        group = [module.weight for module in modules]
        tandem = torch.autograd.grad(loss(net(IMAGES)), group)
        exact = torch.autograd.grad(loss(ann(IMAGES)), group)
        want = mean_cosine(*(torch.cat([g.flatten() for g in gradients])[None] for gradients in (tandem, exact)))
        assert layers[name].gradient_cosine == pytest.approx(want, rel=1e-9)
        assert want > 0.5


def test_networks_of_several_inputs():
    torch.manual_seed(0)
    x, y = torch.rand(8, 4), torch.rand(8, 3)
    ann = Pair(
        lambda n, x, y: n.out(torch.cat([n.a(x).relu(), n.b(y).relu()], 1)),
        a=nn.Linear(4, 6), b=nn.Linear(3, 6), out=nn.Linear(12, 2),
    )  # fmt: skip
    snn = convert(ann, 4, calibrate=(x, y))
    assert [row.name for row in diagnose(snn, (x, y), lambda out: out.square().sum())] == ["snn.a", "snn.b"]
    counts, activations = counts_and_activations(snn, (x, y))["snn.b"]
    assert counts.shape == activations.shape == (8, 6)


def test_perfect_agreement():
    """Where counts are the activations, all cosines are 1 and all errors 0."""
    net = nn.Sequential(
        Encode(4), TandemLinear(3, 3, bias=False), TandemLinear(3, 3, bias=False), Decode(), nn.Linear(3, 2)
    )
    with torch.no_grad():
        for layer in net[1:3]:
            layer.weight.copy_(torch.eye(3))
    x = torch.tensor([[0.0, 0.25, 1.0], [0.5, 0.75, 0.0]])
    for layer in diagnose(net, x, lambda y: F.cross_entropy(y, torch.tensor([0, 1]))):
        assert layer == LayerAgreement(layer.name, 0.0, *(pytest.approx(v, abs=1e-6) for v in (1, 0, 1, 1, 1)))


def test_agreement_improves_with_time():
    """More steps leave less rounding, so counts relative to T, and gradients, come nearer to the ANN's."""
    net = network(norm=None).float()
    errors, cosines = [], []
    for steps in (4, 64):
        net[0].time_steps = steps
        layers = diagnose(net, IMAGES.float(), loss)
        errors.append(layers[1].accumulated_error / steps)
        cosines.append(layers[1].accumulated_cosine)
    assert errors[1] < 0.5 * errors[0]
    assert cosines[1] > cosines[0]


def test_recorded_spikes():
    net = network(norm=None)[1:]
    spikes = (torch.rand(8, 6, 2, 6, 7, generator=torch.Generator().manual_seed(1)) < 0.3).double()
    layers = diagnose(net, SpikeTrain.from_dense(spikes), loss)
    want = torch.relu(F.conv2d(spikes.sum(0), net[0].weight, net[0].bias, 1, 1)) / 0.8
    count = net(SpikeTrain.from_dense(spikes)), net[0](SpikeTrain.from_dense(spikes)).count
    assert layers[0].count_error == pytest.approx((count[1] - want).abs().mean().item(), rel=1e-9)


def test_model_is_left_as_it_was():
    net = network().train()
    net[1].norm.eval()
    state = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    diagnose(net, IMAGES, loss)
    with pytest.raises(ZeroDivisionError):
        diagnose(net, IMAGES, lambda logits: 1 / 0)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(not module._forward_hooks and "forward" not in module.__dict__ for module in net.modules())
    with torch.no_grad():
        diagnose(net, IMAGES, loss)  # also where gradients are off


def test_table():
    header, _, *rows = str(diagnose(network(), IMAGES, loss)).splitlines()
    assert header.split() == [
        *("layer", "count", "error", "cosine", "accumulated", "error", "cosine", "gradient", "cosine", "norm", "ratio")
    ]
    assert [row.split()[0] for row in rows] == ["1", "3"]


def test_bad_input():
    net = network()
    with pytest.raises(TypeError, match=r"diagnose: model must be an nn\.Module, got int"):
        diagnose(3, IMAGES, loss)
    with pytest.raises(TypeError, match="diagnose: loss must return a Tensor, got float"):
        diagnose(net, IMAGES, lambda logits: 1.0)
    with pytest.raises(ValueError, match=r"diagnose: loss must return a scalar, got \[6, 3\]"):
        diagnose(net, IMAGES, lambda logits: logits)
    with pytest.raises(ValueError, match="diagnose: model must run a tandem layer"):
        diagnose(nn.Linear(2, 3), torch.rand(6, 2), loss)
    with pytest.raises(TypeError, match=r"counts_and_activations: model must be an nn\.Module, got int"):
        counts_and_activations(3, IMAGES)
    with pytest.raises(ValueError, match="counts_and_activations: model must run a tandem layer"):
        counts_and_activations(nn.Linear(2, 3), torch.rand(6, 2))
    layer = TandemLinear(3, 3)
    with pytest.raises(ValueError, match="diagnose: model must run each tandem layer once, got '0' twice"):
        diagnose(nn.Sequential(layer, layer, Decode()), SpikeTrain.from_dense(torch.ones(8, 6, 3)), loss)
    with pytest.raises(
        ValueError, match="diagnose: every layer must have weights that require gradients, but '1' has none"
    ):
        diagnose(net.requires_grad_(False), IMAGES, loss)
