"""LeakyReLU and PReLU: neurons for both signs, of which the negative ones are weighted by the slope below zero."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from anns import Net as Network
from anns import per_layer
from exact import SEEDS, examples, generator
from tandem_cuda import IF, FrozenNetwork, convert, freeze
from tandem_cuda.analysis import diagnose
from tandem_cuda.convert import Calibration
from tandem_cuda.neuron import RadixIF

NEURONS = (RadixIF(), IF(initial=0.5, two_phase=True), IF(two_phase=True), IF(initial=0.5))
WAITING = NEURONS[:3]
RISING, FALLING = (0.0, 0.25, 1.0, 1.5), (-0.5, 0.25, 0.0, -2.0)


def dyadic(g, *shape):
    """Multiples of 1/8 between -2 and 2."""
    return torch.randint(-16, 17, shape, generator=g) / 8


class Net(nn.Module):
    """Weights and inputs are multiples of 1/8 and 1/4, so that sums are exact."""

    def __init__(self, g, kind, activation, channels):
        super().__init__()
        self.kind = kind
        features = {"conv": nn.Conv2d(3, channels, 3, padding=1), "linear": nn.Linear(5, channels)}[kind]
        self.first, self.act = features, activation
        self.second = nn.Conv2d(channels, channels, 1) if kind == "conv" else nn.Linear(channels, channels)
        self.fc = nn.Linear(channels * (12 if kind == "conv" else 1), 4)
        for p in self.parameters():
            if p is not getattr(activation, "weight", None):
                p.data = dyadic(g, *p.shape)

    def forward(self, x):
        x = self.act(self.first(x))
        return self.fc(self.act(self.second(x) + x).flatten(1))


def slopes(values):
    """PReLU with these slopes, one for each channel."""
    act = nn.PReLU(len(values))
    act.weight.data = torch.tensor(values)
    return act


def images(g, kind, n=5):
    return torch.randint(-8, 9, (n, 3, 3, 4) if kind == "conv" else (n, 5), generator=g) / 4


def saturating(y, theta, most):
    """Values rounded to multiples of theta, halves up, as neurons for both signs say them."""
    return ((y.abs() / theta + 0.5).floor().clamp(max=most) * theta).copysign(y)


@examples(20)
@given(SEEDS, st.sampled_from(["conv", "linear"]), st.sampled_from(WAITING[:2]), st.data())
def test_neurons_round_the_activation(seed, kind, neuron, data):
    """Bit by bit, for slopes of every sign and all T: what the neurons of both layers say, and the answer."""
    g, steps = generator(seed), data.draw(st.sampled_from([1, 2, 5, 8] if neuron.radix else [1, 3, 8, 9, 16, 17]))
    values = data.draw(st.lists(st.sampled_from([-1.5, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0]), min_size=1, max_size=9))
    act = slopes(values) if len(values) > 1 else nn.LeakyReLU(values[0])
    ann = Net(g, kind, act, len(values)).double().eval()
    x = images(g, kind).double()
    theta = 2.0 ** data.draw(st.integers(-3, 2))
    level, most = (theta * 2**steps, 2**steps - 1) if neuron.radix else (theta * steps, steps)
    snn = convert(ann, steps, neuron=neuron, calibrate={"first": level, "add": level}, example=x, mode="impulse").eval()
    with torch.no_grad():
        one = saturating(ann.act(ann.first(x)), theta, most)
        two = saturating(ann.act(ann.second(one) + one), theta, most)
        assert torch.equal(snn(x), ann.fc(two.flatten(1)))
        assert torch.equal(freeze(snn)(x), snn(x))


@pytest.mark.parametrize("values", [RISING, FALLING], ids=["rising", "falling"])
@pytest.mark.parametrize("neuron", WAITING, ids=str)
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_gradients_are_those_of_the_ann(kind, neuron, values):
    """Of all parameters, with the slopes, and also of a slope that is exactly 0. With many levels."""
    g = generator(3)
    ann, steps = Net(g, kind, slopes(values), 4).double().eval(), 8 if neuron.radix else 4096
    x = torch.randn(9, *images(g, kind).shape[1:], generator=g, dtype=torch.float64)
    snn = convert(ann, steps, calibrate=x, percentile=100, mode="impulse", **per_layer(neuron))
    got = torch.autograd.grad(snn(x).square().sum(), [*ann.parameters()])
    want = torch.autograd.grad(ann(x).square().sum(), [*ann.parameters()])
    for (name, _), one, other in zip(ann.named_parameters(), got, want, strict=True):
        assert (one - other).norm() < 0.05 * other.norm(), name
    slope = got[[name for name, _ in ann.named_parameters()].index("act.weight")]
    assert (slope != 0).all()


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_slopes_are_trained(neuron):
    """In training mode with batch norm, and in eval mode afterwards the new slopes count, frozen too."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), slopes((*RISING[1:], 0.5)), nn.Flatten(), nn.Linear(48, 6)),
        *(nn.PReLU(), nn.Linear(6, 3)),
    )
    x, labels = torch.randn(64, 3, 5, 6), torch.arange(64) % 3
    for _ in range(20):
        ann(x)
    snn = convert(ann.eval(), 8, calibrate=x, neuron=neuron).train()
    before, first = ann[2].weight.detach().clone(), snn(x)
    optimizer = torch.optim.SGD(snn.parameters(), 0.05)
    loss = F.cross_entropy(first, labels)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(snn(x), labels).backward()
        optimizer.step()
    assert F.cross_entropy(snn(x), labels) < loss
    assert (ann[2].weight != before).all()
    assert any(p is ann[2].weight for p in snn.parameters())
    with torch.no_grad():
        want = snn.eval()(x)
        assert torch.equal(freeze(snn)(x), want)
    assert torch.equal(snn(x), want)


@pytest.mark.parametrize(
    ("neuron", "act", "weights"),
    [
        (WAITING[0], lambda: slopes(FALLING), None),
        (WAITING[1], lambda: nn.LeakyReLU(-0.3), "int8"),
        (WAITING[2], lambda: slopes(FALLING), "int16"),
    ],
)
def test_negative_slopes_in_files(neuron, act, weights, tmp_path):
    """Also behind max pooling and an average, and as a branch of a sum."""

    def run(n, x):
        x = F.max_pool2d(n.act(n.first(x)), 2)
        x = F.avg_pool2d(n.act(n.second(x) + x), 2)
        return n.fc(F.leaky_relu(n.last(x), -0.1).mean((2, 3)))

    torch.manual_seed(0)
    first, second, last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3)
    ann = Network(run, first=first, second=second, act=act(), last=last, fc=nn.Linear(6, 5)).eval()
    x = torch.randn(16, 3, 16, 16)
    snn = convert(ann, 8, calibrate=x, neuron=neuron, weights=weights)
    with torch.no_grad():
        want = snn(x)
        assert (want - ann(x)).norm() < (0.05 if neuron.radix else 0.6) * ann(x).norm()
        frozen = freeze(snn)
        frozen.save(tmp_path / "net")
        for net in (frozen, FrozenNetwork.load(tmp_path / "net"), copy.deepcopy(snn)):
            assert torch.equal(net(x), want)


def test_state_dicts():
    """The slope is the ANN's, under its name; a network loads the ANN's checkpoint and its own state."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 3, 4)
    nets = [Net(generator(seed), "conv", slopes(RISING), 4) for seed in (0, 1)]
    nets[1].act.weight.data += 0.25
    one, other = (convert(net.eval(), 4, calibrate=x) for net in nets)
    assert [name for name in one.state_dict() if "slope" in name] == []
    assert one.state_dict().keys() - {"_extra_state"} == nets[0].state_dict().keys()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(x), one(x))
    again = convert(nets[1], 4, calibrate=Calibration.of_state(one.state_dict()), example=x)
    assert torch.equal(again(x), one(x))
    one.double()
    assert nets[0].act.weight.dtype == torch.float64
    assert (one(x.double()) - other(x)).norm() < 1e-3 * other(x).norm()


def test_the_ann_twin_alone():
    """diagnose compares the spikes with the ANN's activations, for slopes of both signs."""
    ann = Net(generator(2), "conv", slopes(FALLING), 4).eval()
    x = images(generator(3), "conv", 16)
    snn = convert(ann, 8, calibrate=x)
    for row in diagnose(snn, x, lambda y: y.square().sum()):
        assert row.count_cosine > 0.999


def test_a_slope_of_one_number_for_rows_of_features():
    """nn.PReLU takes dimension 1 for channels: rows, where a linear layer has its features last."""
    torch.manual_seed(0)
    x = torch.randn(16, 6, 5)
    ann = nn.Sequential(nn.Linear(5, 7), slopes([0.1, 0.5, -0.5, 1.0, 0.0, 2.0]), nn.Linear(7, 3)).eval()
    snn = convert(ann, 8, calibrate=x)
    assert (snn(x) - ann(x)).norm() < 0.05 * ann(x).norm()
    assert torch.equal(freeze(snn)(x), snn(x))


def test_negative_slopes_need_neurons_that_wait():
    x = torch.rand(2, 5)
    with pytest.warns(UserWarning, match="1 PReLU is computed on real values"):
        convert(nn.Sequential(nn.Linear(5, 4), slopes(FALLING), nn.Linear(4, 3)), 8, example=x)
    ann = nn.Sequential(nn.Linear(5, 4), slopes(RISING), nn.Linear(4, 3))
    snn = convert(ann, 8, example=x)
    ann[1].weight.data[2] = -0.5  # as training may make it
    message = r"slopes below zero must not be negative with neurons that spike while they integrate: convert with neuro"
    with pytest.raises(RuntimeError, match=f"TandemLinear: {message}"):
        snn(x)
    with pytest.raises(ValueError, match=f"TandemLinear: {message}.*got negative slopes of values \\[2\\]"):
        freeze(snn)
    convert(ann, 8, neuron=RadixIF(), example=x)(x)


@pytest.mark.parametrize("act", [nn.LeakyReLU, nn.PReLU])
def test_a_slope_of_nothing_that_is_negative(act):
    ann = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), act(), nn.Linear(4, 3))
    assert convert(ann, 8, example=torch.rand(1, 5)).spiking_layers == ("0",)


def test_slopes_that_forward_computes_are_analogue():
    layers = {"a": nn.Linear(5, 4), "b": nn.Linear(4, 3), "slope": nn.Parameter(torch.full((1,), -0.5))}
    ann, x = Network(lambda n, x: n.b(F.prelu(n.a(x), n.slope.abs())), **layers), torch.randn(16, 5)
    with pytest.warns(UserWarning, match="1 prelu is computed on real values"):
        snn = convert(ann.eval(), 8, calibrate=x)
    assert (snn(x) - ann(x)).norm() < 0.05 * ann(x).norm()
    snn(x).square().sum().backward()
    assert ann.slope.grad.abs() > 0


@pytest.mark.parametrize("folds", [[], [4], [1, 0], [0, 0], [True], "all", 3])
def test_wrong_folds_of_files(folds):
    from tandem_cuda.nn import TandemLinear

    frozen = freeze(
        convert(
            nn.Sequential(nn.Linear(5, 4), slopes(FALLING), nn.Linear(4, 3)),
            8,
            neuron=RadixIF(),
            example=torch.rand(1, 5),
        )
    )
    layer = next(m for m in frozen.modules() if type(m) is TandemLinear)
    settings, tensors = layer.settings(), layer.constants()
    assert settings["folds"] == [0, 3]
    TandemLinear.of(settings, tensors)
    with pytest.raises(ValueError, match="TandemLinear: setting folds must list some of the signed values in order"):
        TandemLinear.of({**settings, "folds": folds}, tensors)
