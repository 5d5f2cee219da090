"""What lies between weight layers: every rule beside weights and ReLU, alone in a small network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anns import Net, kinds, per_layer
from pairwise import each
from tandem_cuda import IF, FrozenNetwork, SpikeTrain, convert, freeze, quantise, synops, unquantise
from tandem_cuda.nn import SpikeCat, SpikeRearrange, SpikingGlobalMaxPool2d, TandemElementwise, TandemNeurons

pytestmark = pytest.mark.filterwarnings("ignore:convert.* computed on real values")


def conv(inputs, outputs, kernel=3, **settings):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **settings)


def between(middle, channels, **modules):
    """A network of images of 8 x 12 with something between its first layer and its last ones."""

    def run(net, x):
        x = F.relu(net.last(middle(net, F.relu(net.norm(net.first(x))))))
        return net.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    ends = {"first": conv(3, 8), "norm": nn.BatchNorm2d(8), "last": conv(channels, 8), "fc": nn.Linear(8, 5)}
    return Net(run, **ends, **modules)


def shuffled(x, groups):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


def half_shuffled(net, x):
    one, other = x.chunk(2, dim=1)
    return shuffled(torch.cat([one, F.relu(net.a(other))], 1), 2)


def in_parts(net, x):
    one, other = torch.split(x, [3, 5], 1)
    return torch.cat((F.relu(net.a(other)), one), dim=1)


def residual(net, x):
    x = net.a(x)
    return x + net.c(F.relu(net.b(x)))


def pre_activated(net, x):
    x = net.first(x)
    x = x + net.a(F.relu(net.norm_a(F.relu(net.b(F.relu(net.norm_b(x)))))))
    return net.fc(F.relu(net.norm(x)).mean((2, 3)))


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        nn.init.constant_(self.reduce.bias, 0.5)

    def forward(self, x):
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


def flat(middle, features, channels=8, **modules):
    """With a linear layer behind something flat."""

    def run(net, x):
        return net.fc(F.relu(net.linear(middle(net, F.relu(net.first(x))))))

    return Net(run, first=conv(3, channels), linear=nn.Linear(features, 8), fc=nn.Linear(8, 5), **modules)


def line(pool, features):
    """Of lines [N, 3, 16]."""

    def run(net, x):
        return net.fc(F.relu(net.second(net.pool(F.relu(net.first(x))))).flatten(1))

    first, second = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 6, 3, padding=1)
    return Net(run, first=first, pool=pool, second=second, fc=nn.Linear(features, 5))


class Blur(nn.Module):
    """A binomial filter with stride 2."""

    def __init__(self, channels):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filter", (row[:, None] * row / 16).repeat(channels, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.filter, stride=2, padding=1, groups=8)


def grown(net, x):
    """As in DenseNet, where each layer reads the features of all layers before it."""
    one = net.act(net.a(x))
    other = net.act(net.b(torch.cat([x, one], 1)))
    return torch.cat([x, one, other, x, torch.cat([x, one, other], 1)], 1)


class Constants(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.linspace(-0.2, 0.3, channels).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.linspace(0.5, 2, channels).view(-1, 1, 1))
        self.register_buffer("matrix", torch.linspace(-1, 1, channels * 5).view(channels, 5).sin())


class Slopes(nn.PReLU):
    """PReLU with a slope for each channel."""

    def __init__(self, channels):
        super().__init__(channels)
        self.weight.data = torch.linspace(0, 1.25, channels).roll(1)


NETS = {
    "cat": lambda: between(
        lambda n, x: torch.cat([x, F.relu(n.a(x)), F.relu(n.b(x))], 1), 18, a=conv(8, 6, 1), b=conv(8, 4)
    ),
    "cat of values": lambda: between(
        lambda n, x: F.relu(n.bn(torch.cat([x, n.a(x)], 1))), 14, a=conv(8, 6, 1), bn=nn.BatchNorm2d(14)
    ),
    "grown cats": lambda: between(grown, 44, a=conv(8, 4), b=conv(12, 6), act=nn.ReLU()),
    "cat before the read-out": lambda: Net(
        lambda n, x: n.fc((lambda y: torch.cat([y, F.relu(n.a(y))], 1))(F.relu(n.first(x))).flatten(1)),
        first=conv(3, 4), a=conv(4, 3), fc=nn.Linear(7 * 96, 5),
    ),
    "no ReLU": lambda: between(
        lambda n, x: n.norm_b(n.b(F.relu(n.a(x)))), 6, a=conv(8, 12, 1), b=conv(12, 6, 1), norm_b=nn.BatchNorm2d(6)
    ),
    "residual without ReLU": lambda: between(residual, 6, a=conv(8, 6, 1), b=conv(6, 10), c=conv(10, 6)),
    "depthwise without ReLU": lambda: between(
        lambda n, x: F.relu(n.b(n.bn(n.a(x)))), 8, a=conv(8, 8, groups=8), bn=nn.BatchNorm2d(8), b=conv(8, 8, 1)
    ),
    "grouped behind values": lambda: between(
        lambda n, x: F.relu(n.b(n.a(x))), 6, a=conv(8, 8, 1), b=conv(8, 6, groups=2)
    ),
    "average of values": lambda: between(lambda n, x: F.avg_pool2d(n.a(x), 2), 8, a=conv(8, 8)),
    "sum with itself": lambda: between(
        lambda n, x: (lambda y: F.relu(n.bn(y + y)))(n.a(x)), 6, a=conv(8, 6), bn=nn.BatchNorm2d(6)
    ),
    "ReLU6": lambda: between(lambda n, x: n.relu(n.a(x) * 9), 6, a=conv(8, 6), relu=nn.ReLU6()),
    "Hardtanh of both signs": lambda: between(
        lambda n, x: n.act(n.bn(n.a(x))), 6, a=conv(8, 6), bn=nn.BatchNorm2d(6), act=nn.Hardtanh(-0.5, 0.5)
    ),
    "Hardsigmoid": lambda: between(lambda n, x: F.hardsigmoid(n.a(x) * 8), 6, a=conv(8, 6)),
    "LeakyReLU": lambda: between(
        lambda n, x: n.act(n.bn(n.a(x))), 6, a=conv(8, 6), bn=nn.BatchNorm2d(6), act=nn.LeakyReLU(0.25)
    ),
    "PReLU": lambda: between(lambda n, x: n.act(n.bn(n.a(x))), 6, a=conv(8, 6), bn=nn.BatchNorm2d(6), act=Slopes(6)),
    "PReLU of a sum": lambda: between(
        lambda n, x: n.act(n.a(x) - n.b(x)), 6, a=conv(8, 6), b=conv(8, 6), act=Slopes(6)
    ),
    "PReLU twice": lambda: between(
        lambda n, x: torch.cat([n.act(n.a(x)), n.act(n.b(x))], 1), 7, a=conv(8, 4), b=conv(8, 3), act=nn.PReLU()
    ),
    "PReLU of features": lambda: flat(lambda n, x: n.act(n.a(x.flatten(1))), 6, a=nn.Linear(768, 6), act=Slopes(6)),
    "clamp": lambda: between(lambda n, x: torch.clamp(n.a(x), 0, 0.3), 6, a=conv(8, 6)),
    "norm before weights": lambda: between(lambda n, x: n.bn(x), 8, bn=nn.BatchNorm2d(8)),
    "norm without map": lambda: between(
        lambda n, x: F.relu(n.bn(n.a(x))), 8, a=conv(8, 8), bn=nn.BatchNorm2d(8, affine=False)
    ),
    "norm of features": lambda: flat(lambda n, x: n.bn(x.flatten(1)), 4 * 96, 4, bn=nn.BatchNorm1d(4 * 96)),
    "factor": lambda: between(lambda n, x: F.relu(0.5 * n.a(x) + x - 0.1), 8, a=conv(8, 8)),
    "one minus": lambda: between(lambda n, x: F.relu(1 - x / 2), 8),
    "pad": lambda: between(lambda n, x: F.relu(n.a(F.pad(x, (1, 0, 0, 2)))), 6, a=conv(8, 6)),
    "interpolate to a size": lambda: between(lambda n, x: F.interpolate(n.a(x), (5, 9)), 8, a=conv(8, 8)),
    "bilinear": lambda: between(lambda n, x: F.relu(n.a(n.up(x))), 6, a=conv(8, 6),
        up=nn.Upsample(scale_factor=2, mode="bilinear")),
    "bilinear of values": lambda: between(
        lambda n, x: torch.cat([F.interpolate(n.a(x), size=(16, 24), mode="bilinear"), n.b(x)], 1), 14,
        a=conv(8, 8), b=nn.ConvTranspose2d(8, 6, 2, stride=2),
    ),
    "bicubic": lambda: between(lambda n, x: F.interpolate(x, scale_factor=(2, 1.5), mode="bicubic"), 8),
    "mirrored": lambda: between(lambda n, x: F.relu(n.a(n.pad(x))), 6, a=nn.Conv2d(8, 6, 3), pad=nn.ReflectionPad2d(1)),
    "padded by copies of values": lambda: between(
        lambda n, x: F.pad(F.pad(n.a(x), (1, 2, 0, 1), mode="replicate"), (0, 3, 1, 1), "circular"), 6, a=conv(8, 6)
    ),
    "mirrored 1d": lambda: line(nn.ReflectionPad1d(2), 6 * 20),
    "blurred": lambda: between(lambda n, x: F.relu(n.a(n.blur(x))), 6, a=conv(8, 6), blur=Blur(8)),
    "constants of channels of values": lambda: between(
        lambda n, x: F.relu(n.c.deviation * n.a(x) + x - n.c.mean), 8, a=conv(8, 8), c=Constants(8)
    ),
    "a matrix": lambda: flat(
        lambda n, x: F.relu(n.a(x.flatten(1))) @ n.c.matrix, 5, a=nn.Linear(768, 8), c=Constants(8)
    ),
    "PixelShuffle": lambda: between(lambda n, x: n.up(F.max_pool2d(x, 2)), 2, up=nn.PixelShuffle(2)),
    "PixelUnshuffle": lambda: between(lambda n, x: n.down(x), 32, down=nn.PixelUnshuffle(2)),
    "ChannelShuffle": lambda: between(lambda n, x: n.mix(n.a(x)), 8, a=conv(8, 8), mix=nn.ChannelShuffle(4)),
    "channel shuffle": lambda: between(half_shuffled, 8, a=conv(4, 4)),
    "split": lambda: between(in_parts, 9, a=conv(5, 6)),
    "AdaptiveMaxPool2d": lambda: flat(lambda n, x: F.adaptive_max_pool2d(x, 1).flatten(1), 8),
    "amax": lambda: flat(lambda n, x: x.amax((2, 3)), 8),
    "mean of rows": lambda: Net(
        lambda n, x: n.fc(F.relu(n.second(F.relu(n.first(x)).mean(3))).mean(2)),
        first=conv(3, 8), second=nn.Conv1d(8, 6, 3), fc=nn.Linear(6, 5),
    ),
    "gate in a residual block": lambda: between(
        lambda n, x: F.relu(n.b(n.gate(F.relu(n.a(x)))) + x), 8, a=conv(8, 8), b=conv(8, 8), gate=Gate(8)
    ),
    "dropout before ReLU6": lambda: between(
        lambda n, x: F.relu6(n.drop(n.a(x))), 6, a=conv(8, 6), drop=nn.Dropout(0.1)
    ),
    "pre-activation": lambda: Net(
        pre_activated, first=conv(3, 8), a=conv(8, 8), b=conv(8, 8), fc=nn.Linear(8, 5),
        norm=nn.BatchNorm2d(8), norm_a=nn.BatchNorm2d(8), norm_b=nn.BatchNorm2d(8),
    ),
    "MaxPool1d": lambda: line(nn.MaxPool1d(2), 6 * 8),
    "AvgPool1d with padding": lambda: line(nn.AvgPool1d(3, 2, 1, count_include_pad=False), 6 * 8),
    "max of columns": lambda: between(
        lambda n, x: F.relu(n.a(x)) + n.up(x.max(2, keepdim=True).values), 8,
        a=conv(8, 8), up=nn.Upsample(scale_factor=(8, 1)),
    ),
    "slices in space": lambda: between(
        lambda n, x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], n.a(x[:, :, ::2, 1::2])], 1), 20, a=conv(8, 4)
    ),
    "the last of a 1d line": lambda: Net(
        lambda n, x: n.fc(F.relu(n.second(F.relu(n.first(x))[:, :, -1]))),
        first=nn.Conv1d(3, 8, 3), second=nn.Linear(8, 6), fc=nn.Linear(6, 5),
    ),
    "unflattened": lambda: Net(
        lambda n, x: n.fc(F.relu(n.conv(n.shape(F.relu(n.linear(F.relu(n.first(x)).flatten(1)))))).mean((2, 3))),
        first=conv(3, 4), linear=nn.Linear(4 * 96, 48), shape=nn.Unflatten(1, (8, 2, 3)), conv=conv(8, 6),
        fc=nn.Linear(6, 5),
    ),
}  # fmt: skip
LINES = {name for name in NETS if "1d" in name}
SHUFFLED = {"PixelShuffle", "unflattened"}
"""These need spikes of one weight; with levels of channels they are computed on real values."""
ANALOGUE = {"gate in a residual block"}
"""These have calls without a spiking form."""
NEURONS = {"one phase": IF(initial=0.5), "two phases": IF(initial=0.5, two_phase=True)}
LEVELS = {
    "levels of layers": {"per_channel": False, "correct_bias": False},
    "levels of channels": {"per_channel": True, "correct_bias": True},
}


def settings(name, neuron, levels):
    """Settings of a conversion, as far as the network can have them."""
    return {"neuron": neuron, **(LEVELS["levels of layers"] if name in SHUFFLED else levels)}


def made(name):
    """A network with trained-looking batch norm, in eval mode and double precision, and images."""
    torch.manual_seed(0)
    ann = NETS[name]().double().eval()
    for norm in ann.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, 0, 0.3)
    return ann, torch.randn(8, *sizes(name), dtype=torch.float64)


def sizes(name):
    """Sides and channels differ, so that none can be taken for another."""
    return (3, 16) if name in LINES else (3, 8, 12)


def converted(name, ann, time_steps, **settings):
    example = torch.zeros(1, *sizes(name)).to(next(ann.parameters()))
    return convert(ann, time_steps, **{"example": example, **settings})


def operations(model, x):
    return {layer.name.removeprefix("snn."): layer for layer in synops(model, x)}


@each(name=list(NETS), neuron=NEURONS, levels=LEVELS)
def test_networks(name, neuron, levels):
    """One conversion says it all: a conversion takes longer than what is asked of it."""
    ann, x = made(name)
    snn = converted(name, ann, 4096, calibrate=x, percentile=100, **settings(name, neuron, levels))
    near_the_ann(name, snn, x, exact=neuron.two_phase and not levels["per_channel"])
    snn.set_time_steps(5)
    compare_with_synops(snn, x)
    trains(snn, x)


def near_the_ann(name, snn, x, exact):
    """With many steps: the outputs, every layer of the report, and the gradient in eval mode."""
    ann = snn.ann()
    with torch.no_grad():
        want = ann(x)
        error = (snn(x) - want).norm()
    assert 0 < error < 0.02 * want.norm()
    report = snn.report()
    assert [call.what for call in report.analogue] == [] or name in ANALOGUE
    layers = [layer for layer in report.layers if layer.spiking]
    assert {layer.name for layer in layers} >= {*snn.spiking_layers}
    for layer in layers:
        assert 0 < layer.error < 0.02, layer
    assert not [note for note in report.notes if "no error" in note]
    # Where several pixels are equal, rounding decides which one has the gradient of their maximum.
    if exact and not any(isinstance(m, nn.MaxPool1d) for m in ann.modules()) and "max" not in name.lower():
        assert error < 0.1 * (want - want.mean(0)).norm()  # what all images have in common says little
        got = torch.autograd.grad(snn(x).square().sum(), ann.first.weight)[0]
        want = torch.autograd.grad(ann(x).square().sum(), ann.first.weight)[0]
        assert (got - want).norm() < 0.05 * want.norm()


def compare_with_synops(snn, x):
    costs = operations(snn, x)
    counted = [layer for layer in snn.report().layers if layer.synops is not None]
    assert {layer.name for layer in counted} <= {*snn.spiking_layers}
    for layer in counted:
        of = costs[layer.name]
        assert (layer.synops, layer.macs, layer.neurons) == pytest.approx((of.synops, of.macs, of.neurons))
        assert (layer.firing_rate, layer.saturation) == pytest.approx((of.firing_rate, of.saturation))


def trains(snn, x):
    """Every parameter gets a gradient; in eval mode afterwards, outputs do not depend on whether one is asked for."""
    snn.train()(x).square().sum().backward()
    for name, parameter in snn.ann().named_parameters():
        if not (name.endswith("bias") and name != "fc.bias"):  # batch norm may cancel a bias
            assert parameter.grad.abs().sum() > 0, name
    snn.eval()
    want = snn(x)
    with torch.no_grad():
        assert torch.equal(snn(x), want)
    assert torch.equal(copy.deepcopy(snn)(x), want)


@each(name=list(NETS), neuron=NEURONS, levels=LEVELS)
def test_frozen_networks_are_the_same(name, neuron, levels, tmp_path):
    ann, x = made(name)
    snn = converted(name, ann, 5, calibrate=x, **settings(name, neuron, levels))
    with torch.no_grad():
        want = snn(x)
        frozen = freeze(snn)
        assert torch.equal(frozen(x), want)
        frozen.save(tmp_path / "net")
        loaded = FrozenNetwork.load(tmp_path / "net")
        assert torch.equal(loaded(x), want)
        of_loaded, of_snn = (sum(layer.synops for layer in operations(net, x).values()) for net in (loaded, snn))
        assert of_loaded == of_snn > 0
        if not neuron.two_phase and name not in ANALOGUE:
            stream = frozen.stream(x)
            assert torch.equal([stream.advance(n) for n in (1, 3, 1)][-1], want)


def dyadic(ann):
    """Make all weights multiples of 1/64, and batch norm powers of two, so that sums are exact."""
    with torch.no_grad():
        for module in ann.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.eps = 2**-10
                module.running_var.fill_(1 - 2**-10)
                module.running_mean.copy_((module.running_mean * 16).round() / 16)
        for parameter in ann.parameters():
            parameter.copy_((parameter * 64).round() / 64)
    return ann


TELLING = ["grown cats", "residual without ReLU", "PReLU of a sum", "bilinear", "pre-activation", "MaxPool1d"]


@each(name=TELLING, neuron=NEURONS)
def test_engines_have_the_same_spikes(name, neuron):
    ann, x = made(name)
    ann, x = dyadic(ann).float(), (x.float() * 8).round() / 8
    levels = converted(name, ann, 8, calibrate=x).levels
    levels = {layer: 2.0 ** round(torch.tensor(level).log2().item()) for layer, level in levels.items()}
    snn, found = converted(name, ann, 8, calibrate=levels, neuron=neuron), []
    for layer in snn.spiking_layers:
        snn.snn.get_submodule(layer).register_forward_hook(lambda m, args, out: found.append(out.bits))
    for engine in ("event", "dense"):
        for module in snn.modules():
            if hasattr(module, "engine"):
                module.engine = engine
        snn(x)
    half = len(snn.spiking_layers)
    assert len(found) == 2 * half
    for one, other in zip(found[:half], found[half:], strict=True):
        assert torch.equal(one, other)


@each(name=[*TELLING, "constants of channels of values", "blurred"], weights=["int8", "int16"], neuron=NEURONS)
def test_integers(name, weights, neuron):
    """With weights as they come: in every engine, with and without a gradient, and frozen. Both twins round alike."""
    ann, x = made(name)
    ann, x = ann.float(), x.float()
    how = {"calibrate": x, "percentile": 100, "weights": weights, **per_layer(NEURONS["two phases"])}
    snn = converted(name, ann, 256, **how)
    with torch.no_grad():
        want = ann(x)
        assert (snn(x) - want).norm() < 0.02 * want.norm()
    nets = [converted(name, ann, 8, engine=engine, neuron=neuron) for engine in ("event", "dense")]
    with torch.no_grad():
        want = nets[0](x)
        assert torch.equal(nets[1](x), want)
        assert torch.equal(freeze(nets[1])(x), want)
    assert torch.equal(nets[1](x), want)


@pytest.mark.parametrize(
    ("name", "module", "number"),
    [
        ("cat", SpikeCat, 1),
        ("pad", SpikeRearrange, 1),
        ("norm before weights", TandemElementwise, 1),
        ("norm without map", TandemElementwise, 0),
        ("factor", TandemElementwise, 3),
        ("gate in a residual block", TandemNeurons, 1),
        ("amax", SpikingGlobalMaxPool2d, 1),
    ],
)
def test_what_becomes_of_it(name, module, number):
    ann, _ = made(name)
    assert kinds(converted(name, ann, 4)).count(module) == number


def test_a_concatenation_reads_the_one_that_it_begins_with():
    ann, _ = made("grown cats")
    assert [len(x.signed) for x in converted("grown cats", ann, 4).modules() if isinstance(x, SpikeCat)] == [2, 2, 3]


def test_a_bounded_activation_saturates():
    torch.manual_seed(0)  # with others, no value of the second layer may be positive
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    ann = ann.eval()
    with torch.no_grad():
        ann[0].weight.mul_(100)
    x = torch.rand(4, 1, 6, 6)
    snn = convert(ann, 8, calibrate=x, percentile=100, **per_layer())
    assert snn.levels["0"] == 6
    assert snn.snn.get_submodule("0").neuron == IF(0.75, clip=True, amplitude=0.75)
    assert not snn.snn.get_submodule("2").neuron.clip


CALLS = {
    "bounds": (lambda x: F.hardtanh(x, -1, 2), "its bounds are neither 0 and b nor -b and b"),
    "product": (lambda x: x * x, "it multiplies values that depend on the input"),
    "transposed": (lambda x: F.relu(x).transpose(1, 2).transpose(1, 2), "it moves dimensions"),
    "rolled": (lambda x: x.roll(1, 2), "it has no rule"),
    "padded by ones": (lambda x: F.pad(x, (1, 1), value=1.0), "it pads with other values than 0"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_without_a_spiking_form(name):
    """They are computed on real values, and neurons encode the result."""
    what, why = CALLS[name]
    torch.manual_seed(0)
    ann, x = between(lambda n, x: what(n.a(x)), 8, a=conv(8, 8)).eval(), torch.rand(8, 3, 8, 12)
    snn = convert(ann, 256, calibrate=x, percentile=100, neuron=NEURONS["two phases"])
    with torch.no_grad():
        want = ann(x)
        assert (snn(x) - want).norm() < 0.02 * want.norm()
    assert any(isinstance(module, TandemNeurons) for module in snn.modules())
    assert [call.why for call in snn.report().analogue] == [why]
    with pytest.raises(ValueError, match=why):
        convert(ann, 8, calibrate=x, analogue=False)


def test_writes_in_place():
    """The graph has none: what is written is read by what comes later, as in the ANN."""

    def run(net, x):
        y = net.a(x)
        y[:, :4].relu_()
        y[:, 4:] += 1
        return F.relu(net.b(F.relu(y, inplace=True))) + y

    torch.manual_seed(0)
    ann, x = between(run, 8, a=conv(8, 8), b=conv(8, 8)).eval(), torch.rand(8, 3, 8, 12)
    snn = convert(ann, 256, calibrate=x, percentile=100, neuron=NEURONS["two phases"])
    with torch.no_grad():
        want = ann(x)
        assert (snn(x) - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("dropout", [nn.Dropout, nn.Dropout2d])
def test_dropout_drops_both_signs_of_a_value(dropout):
    ann = between(lambda n, x: n.drop(n.a(x)), 8, a=conv(8, 8), drop=dropout(0.5))
    snn, read = convert(ann, 4, example=torch.zeros(1, 3, 8, 12)), []
    (drop,) = (m.train() for name, m in snn.snn.named_modules() if "dropout" in name)
    drop.register_forward_pre_hook(lambda module, inputs: read.extend(inputs))
    snn(torch.rand(2, 3, 8, 12))
    assert [x.paired for x in read] == [True]
    kept = drop(SpikeTrain.from_dense(torch.ones(4, 16, 16, 8, 12)).replace(pair_dim=1)).count != 0
    positive, negative = kept.unflatten(1, (8, 2)).unbind(2)
    assert torch.equal(positive, negative)
    assert 0.3 < positive.float().mean() < 0.7


class SharedWeights(nn.Module):
    """Two layers with one weight, or one layer called twice, behind concatenations of different trains."""

    def __init__(self, calls):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 2)
        self.first = nn.Linear(6, 6)
        self.second = self.first if calls == "one layer" else nn.Linear(6, 6)
        if calls == "one weight":
            self.second.weight = self.first.weight
        with torch.no_grad():
            self.b.weight.mul_(3)  # its trains have a higher threshold

    def forward(self, x):
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        one, other = torch.cat([a, b], 1), torch.cat([b, a], 1)
        return self.last(F.relu(self.first(one)) + F.relu(self.second(other)))


@pytest.mark.parametrize("calls", ["two weights", "one weight", "one layer"])
def test_shared_integers_and_spikes_of_different_weight(calls):
    torch.manual_seed(0)
    ann, x = SharedWeights(calls).eval(), torch.rand(32, 4)
    if calls != "two weights":  # a weight is a weight, whoever holds it
        plainly = convert(ann, 8, calibrate=x)
        want = plainly(x)
        with pytest.raises(ValueError, match="with quantised weights must read channels of equal thresholds"):
            quantise(plainly, 8)
        assert torch.equal(plainly(x), want)
        ann.second = copy.deepcopy(ann.first)
    snn = convert(ann, 8, calibrate=x, weights="int8")
    quantise(snn, 4)
    for name, layer in ann.named_modules():
        if isinstance(layer, nn.Linear):
            assert torch.equal(layer.weight, snn.snn.get_submodule(name).weight)
    assert not torch.equal(ann.first.weight, ann.second.weight)
    snn(x)


def test_integers_and_spikes_of_different_weight():
    """The ANN rounds as its twin does, also in other numbers of steps, and notices if it no longer can."""
    ann, x = made("cat")
    ann, x = ann.float(), x.float()
    snn = convert(ann, 256, calibrate=x, percentile=100, neuron=NEURONS["two phases"])
    plain = ann(x)
    quantise(snn, 4)
    rounded = ann(x)
    assert (rounded - plain).norm() > 0.02 * plain.norm()
    assert (snn(x) - rounded).norm() < 0.02 * rounded.norm()
    other = convert(ann, 256, calibrate=x / 2, percentile=100, neuron=NEURONS["two phases"])
    assert (other(x / 2) - ann(x / 2)).norm() < 0.02 * ann(x / 2).norm()
    with pytest.raises(RuntimeError, match="another conversion of it has other thresholds of channels or concatenated"):
        snn(x)
    copied = copy.deepcopy(other)
    other.set_time_steps(128)
    assert torch.equal(other.ann()(x), ann(x))
    assert torch.equal(
        copied(x), convert(ann, 256, calibrate=other.calibration, example=x, neuron=NEURONS["two phases"])(x)
    )
    unquantise(other)
    assert torch.equal(ann(x), plain)


def test_stochastic_depth():
    """It is random in training alone: it is left out, and the report says so."""
    drop = pytest.importorskip("torchvision.ops").StochasticDepth(0.25, "row")
    ann = between(lambda n, x: F.relu(n.drop(n.a(x)) + x), 8, a=conv(8, 8), drop=drop).eval()
    x = torch.rand(16, 3, 8, 8)
    snn = convert(ann, 16, calibrate=x, neuron=NEURONS["two phases"])
    assert any("random in training alone, and left out: drop" in note for note in snn.report().notes)
    assert torch.equal(snn.train()(x), snn(x)) == torch.equal(snn.eval()(x), snn(x))


def test_dropout_before_a_concatenation():
    """In training, spikes with and without dropout differ in weight: they are concatenated as real values."""
    ann = between(lambda n, x: torch.cat([n.drop(x), F.relu(n.a(x))], 1), 14, a=conv(8, 6), drop=nn.Dropout(0.5))
    snn = convert(ann, 4, example=torch.zeros(1, 3, 8, 8)).train()
    assert not any(isinstance(module, SpikeCat) for module in snn.modules())
    for training in (True, False):
        assert snn.train(training)(torch.rand(2, 3, 8, 8)).isfinite().all()


def test_a_concatenation_that_is_not_needed(recwarn):
    """It cannot be written, as a later one that begins with it can."""

    def forward(net, x):
        a, b = (F.relu(x).flatten(1) for x in (net.a(x), net.b(x)))
        return net.fc(torch.cat([a, b, F.relu(net.c(x)).flatten(1)], 1)), torch.cat([a, b], 1)

    ann = Net(forward, a=conv(3, 4), b=conv(3, 4), c=conv(3, 4), fc=nn.Linear(12 * 16, 5)).eval()
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    got = convert(ann, 8, calibrate=x)(x)
    for part, want in zip(got, ann(x), strict=True):
        assert (part - want).norm() < 0.05 * want.norm()
