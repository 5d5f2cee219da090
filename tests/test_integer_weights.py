"""Layers with integer weights: the same spikes everywhere, whatever the weights have learned."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

from exact import ISAS, generator, same, slow
from freezable import in_chunks
from pairwise import pairs
from tandem_cuda import (
    _C,
    IF,
    LIF,
    Decode,
    Encode,
    FrozenNetwork,
    SpikeTrain,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemLinear,
    convert,
    freeze,
    models,
    ops,
    quantise,
    reference,
)
from tandem_cuda.freeze import FrozenLayer
from tandem_cuda.nn.tandem import TandemLayer

every_bits = pytest.mark.parametrize("bits", [slow(4), 8, slow(16)])
NEURONS = {
    "one phase": IF(0.1),
    "two phases": IF(0.1, initial=0.5, two_phase=True),
    "leaky": LIF(0.1, leak=0.9),
    "refractory": IF(0.1, refractory=1),
}


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 20, 3, padding=1),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.Conv2d(20, 40, 3, stride=2),
        nn.BatchNorm2d(40),
        nn.ReLU(),
        nn.Conv2d(40, 40, 3, groups=40, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(40, 30, 1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(120, 50),
        nn.ReLU(),
        nn.Linear(50, 10),
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.down, self.short = nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.Conv2d(24, 32, 1, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (24, 24, 32, 32))
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.norms[0](self.stem(x)).relu()
        x = (self.norms[1](self.conv(x)) + x).relu()
        x = (self.norms[2](self.down(x)) + self.norms[3](self.short(x))).relu()
        return self.fc(x.mean((2, 3)))


every_model = pytest.mark.parametrize("make", [cnn, Residual])


def trained(make, neuron, bits, mode="impulse"):
    """A network with weights, statistics and gains as training leaves them, and an input."""
    torch.manual_seed(0)
    net = convert(make(), 5, mode=mode, neuron=neuron, example=inputs(1, 0))
    quantise(net, bits)
    optimiser = torch.optim.SGD(net.parameters(), 0.01)
    for seed in range(3):
        optimiser.zero_grad()
        net(inputs(8, seed)).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimiser.step()
    return net.eval(), inputs(3, 7)


def inputs(n, seed):
    return torch.randn(n, 2, 11, 11, generator=generator(seed))


class Watch:
    """The counts of all weight layers of a network, of all of its calls."""

    def __init__(self, net):
        self.counts = []
        self.net = net

    def _keep(self, module, inputs, output):
        train = output[0] if isinstance(output, tuple) else output
        weighs = isinstance(module, (TandemLayer, TandemAdd)) or module.kind.startswith("Tandem")
        if weighs and isinstance(train, SpikeTrain):
            self.counts.append(train.detach().count)

    def __call__(self, *batches):
        """Of all samples together, layer by layer."""
        self.counts.clear()
        watched = [x for x in self.net.modules() if isinstance(x, (TandemLayer, TandemAdd, FrozenLayer))]
        hooks = [module.register_forward_hook(self._keep) for module in watched]
        for batch in batches:
            self.net(batch)
        for hook in hooks:
            hook.remove()
        layers = len(self.counts) // len(batches)
        return [torch.cat(self.counts[i::layers]) for i in range(layers)]


def all_the_same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        same(a, b)


def everywhere():
    for isa in ISAS:
        for threads in (1, 2):
            yield isa, threads


@every_bits
@every_model
@pytest.mark.parametrize("neuron", ["one phase", "two phases", slow("leaky"), slow("refractory")])
@pytest.mark.parametrize("mode", ["impulse", slow("constant")])
def test_the_same_spikes_everywhere(make, neuron, bits, mode, tmp_path):
    """Every engine, instruction set, number of threads and batch, with and without gradients, frozen and loaded."""
    net, x = trained(make, NEURONS[neuron], bits, mode)
    watched = Watch(net)
    want = watched(x)
    assert all((count > 0).float().mean() > 0.01 for count in want[:2])
    frozen = freeze(net)
    frozen.save(tmp_path / "net.tandem")
    others = [Watch(frozen), Watch(FrozenNetwork.load(tmp_path / "net.tandem"))]
    for isa, threads in everywhere():
        _C.set_cpu_isa(isa)
        torch.set_num_threads(threads)
        for engine in ("auto", "event", "dense"):
            for module in (*net.modules(), *frozen.modules()):
                if hasattr(module, "engine"):
                    module.engine = engine
            with torch.no_grad():
                all_the_same(watched(x), want)
                all_the_same(watched(*x.split(1)), want)
            for other in others:
                all_the_same(other(x), want)
        all_the_same(watched(x), want)  # where gradients are needed, nothing is cached


@every_model
def test_integers_are_those_of_the_weights(make):
    """The ANN sees the rounded weights, so its pre-activations are those of the spiking twin but for rounding."""
    net, x = trained(make, IF(0.1, two_phase=True), 8)
    watched = Watch(net.snn)
    with torch.no_grad():
        counts = watched(x)
    plain = copy.deepcopy(net.snn)  # alone, for its ANN keeps its quantisers
    for module in plain.modules():
        if isinstance(module, TandemLayer):
            rounded = module.weight.detach()
            del module.parametrizations
            module.__class__ = type(module).__mro__[1]
            module.register_parameter("weight", nn.Parameter(rounded))
    with torch.no_grad():
        floats = Watch(plain)(x)
    for a, b in zip(counts, floats, strict=True):
        assert (a != b).float().mean() < 0.001


@every_bits
@pytest.mark.parametrize("size", [1, 2, 3])
def test_streams(bits, size):
    net, x = trained(Residual, NEURONS["one phase"], bits)
    frozen = freeze(net)
    same(in_chunks(frozen.stream(x), (size,)), frozen(x))


LAYERS = {
    "conv1d": (lambda **kw: TandemConv1d(4, 6, 3, padding=2, dilation=2, **kw), (4, 9)),
    "same": (lambda **kw: TandemConv2d(4, 6, 2, padding="same", **kw), (4, 7, 5)),
    "reflect": (lambda **kw: TandemConv2d(4, 6, 3, padding=1, padding_mode="reflect", **kw), (4, 7, 5)),
    "transposed": (lambda **kw: TandemConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, **kw), (4, 5, 4)),
    "linear": (lambda **kw: TandemLinear(9, 6, **kw), (9,)),
    "features last": (lambda **kw: TandemLinear(5, 7, **kw), (7, 5)),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


@pairs(layer=list(LAYERS), norm=[None, "batch"], two_phase=[False, True], kind=["impulse", "constant", "spikes"])
def test_layers(layer, norm, two_phase, kind):
    """Spikes are equal in training and eval mode unless these normalise differently; gradients use rounded weights."""
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    net = nn.Sequential(make(norm=norm, neuron=IF(0.2, two_phase=two_phase)))
    quantise(net, 8)
    values = torch.randn(5, *shape)
    spikes = SpikeTrain.from_dense((torch.rand(6, 5, *shape) < 0.4).float())
    x = spikes if kind == "spikes" else Encode(6, mode=kind)(values)
    net.train()
    in_training = net(x)
    assert in_training.count.any()
    net.train(two_phase and norm is not None)  # two-phase neurons fire from what the batch's statistics normalise
    same(net(x).bits, in_training.bits)
    with torch.no_grad():
        same(net(x).bits, in_training.bits)
    net.eval()

    def gradients(module):
        count = module(x).count
        master = next(p for name, p in module.named_parameters() if "weight" in name and p.dim() > 1)
        (count * torch.linspace(-1, 1, count.numel()).view_as(count)).sum().backward()
        return master.grad

    plain = nn.Sequential(make(norm=norm, neuron=IF(0.2, two_phase=two_phase)))
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        plain[0].weight.copy_(net[0].weight)
    plain.eval()
    # Where a count differs by rounding, so does a gate; there are few.
    difference = (gradients(net) - gradients(plain)).abs()
    assert (difference > 1e-3).float().mean() < 0.05


def test_features_last_are_not_mistaken_for_channels():
    """Of [N, 7, 5] -> [N, 7, 7] either 7 could be meant by scale and bias."""
    for norm in (None, "batch"):
        layer = TandemLinear(5, 7, norm=norm, neuron=IF(0.3)).eval()
        with torch.no_grad():
            layer.bias.copy_(torch.linspace(-1, 1, 7))
        x = torch.randn(2, 7, 5, generator=generator(0))
        with torch.no_grad():
            rows = [layer(Encode(4)(x[:, i])).count for i in range(7)]
            same(layer(Encode(4)(x)).count, torch.stack(rows, 1))


@pytest.mark.parametrize("change", ["weight", "bits"])
def test_eval_mode_notices(change):
    net, x = trained(cnn, NEURONS["one phase"], 8)
    with torch.no_grad():
        before = Watch(net)(x)
        if change == "bits":
            quantise(net, 3)
        else:
            net.snn.get_submodule("0").parametrizations.weight.original.data.mul_(2)
        after = Watch(net)(x)
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        all_the_same(Watch(copy.deepcopy(net))(x), after)


@pytest.mark.parametrize("engine", ["auto", "event", "dense"])
def test_sums_that_nearly_fill_32_bits(engine):
    """70,000 inputs, of weights whose magnitudes add up to just less than 2^31."""
    inputs, neuron = 70_000, IF(1.0)
    weight = torch.full((3, inputs), 30000, dtype=torch.int16)
    weight[1] *= -1
    weight[2, ::2] = 7
    bits = torch.full((1, 2, inputs), 0b101, dtype=torch.uint8)
    bits[:, 1, 1000:] = 0
    scale, bias = torch.tensor([2.0**-31, 2.0**-30, 2.0**-31]), torch.tensor([0.25, 0.0, -0.5])
    named = {"scale": scale, "time_steps": 3, "neuron": neuron}
    got = ops.spiking_linear(bits, weight, bias, engine=engine, **named)
    for a, b in zip(got, reference.spiking_linear(bits, weight, bias, **named), strict=True):
        same(a, b)
    same(
        ops.count_linear(bits, weight, bias, scale=scale, engine=engine),
        reference.count_linear(bits, weight, bias, scale=scale),
    )


@pytest.mark.parametrize("engine", ["auto", "event", "dense"])
def test_sums_beyond_32_bits_are_refused(engine):
    weight, bits = torch.full((3, 70_000), 32639, dtype=torch.int16), torch.ones(1, 2, 70_000, dtype=torch.uint8)
    weight[1:] = 0
    named = {"scale": torch.ones(3), "engine": engine}
    message = "the magnitudes of a neuron's Short weights must add up to less than 2\\^31"
    with pytest.raises(RuntimeError, match=f"spiking_linear: {message}"):
        ops.spiking_linear(bits, weight, time_steps=3, **named)
    with pytest.raises(RuntimeError, match=f"count_linear: {message}"):
        ops.count_linear(bits, weight, **named)


@pytest.mark.parametrize("shape", [(3, 5), (4, 1, 3, 3)])
@pytest.mark.parametrize("value", [32640, -32640])
def test_weights_that_two_digits_do_not_hold(shape, value):
    weight = torch.zeros(shape, dtype=torch.int16)
    weight[2] = value
    with pytest.raises(RuntimeError, match=f"pack_weight: 16-bit weights must be from -32639 to 32639, got {value}"):
        ops.pack_weight(weight)
    bits = torch.ones(1, 2, 5) if len(shape) == 2 else torch.ones(1, 2, 4, 3, 3)  # the second one is depthwise
    product = ops.count_linear if len(shape) == 2 else lambda *a, **kw: ops.count_conv2d(*a, groups=4, **kw)
    with pytest.raises(RuntimeError, match=f"16-bit weights must be from -32639 to 32639, got {value}"):
        product(bits.to(torch.uint8), weight, scale=torch.ones(shape[0]))


def test_more_inputs_than_integers_take():
    inputs = 2**24 + 1
    bits, weight = torch.empty(1, 1, inputs, dtype=torch.uint8, device="meta"), torch.empty(1, inputs, device="meta")
    message = r"linear: int16 weights must have at most 2\^24 inputs per neuron, got \[1, 16777217\]"
    with pytest.raises(ValueError, match=message):
        ops.count_linear(bits, weight.to(torch.int16), scale=torch.ones(1, device="meta"))
    with pytest.raises(ValueError, match=message):
        ops.spiking_linear(bits, weight.to(torch.int16), scale=torch.ones(1, device="meta"), time_steps=1)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scales_that_are_not_finite(dtype, value):
    """Zero and negative ones are what batch norm's gain can make of them."""
    bits, weight, one = torch.ones(1, 2, 5, dtype=torch.uint8), torch.ones(3, 5, dtype=dtype), torch.ones(3)
    wrong = torch.tensor([1.0, value, 1.0])
    products = {
        "spiking_linear": functools.partial(ops.spiking_linear, bits, weight, time_steps=1),
        "count_linear": functools.partial(ops.count_linear, bits, weight),
    }
    for name, product in products.items():
        with pytest.raises(RuntimeError, match=f"{name}: scale must be finite, got {value} at "):
            product(scale=wrong)
        with pytest.raises(ValueError, match=f"{name}: unit must be finite, got {value}"):
            product(scale=one, master=weight.float(), unit=wrong)
        with pytest.raises(ValueError, match=f"{name}: scale must be given with int"):
            product()
        for scale in (0.0, -1.0):
            product(scale=scale * one)


@pytest.mark.parametrize("two_phase", [False, True])
def test_compiled_and_functional(two_phase):
    torch.manual_seed(0)
    net = nn.Sequential(TandemLinear(9, 6, norm="batch", neuron=IF(0.2, two_phase=two_phase))).eval()
    quantise(net, 8)
    x = Encode(4, mode="impulse")(torch.randn(5, 9))
    want = net(x).count
    same(torch.compile(net, backend="aot_eager", fullgraph=True)(x).count.detach(), want.detach())
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def total(parameters):
        return torch.func.functional_call(net, parameters, (x,)).count.square().sum()

    got = torch.func.grad(total)(parameters)
    want.square().sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(got[name], p.grad)


@pytest.mark.parametrize(("bits", "share"), [(8, 0.27), (16, 0.52)])
def test_frozen_files_shrink(bits, share, tmp_path):
    sizes = []
    for quantised in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(Encode(4), TandemConv2d(3, 64, 3, norm="batch"), TandemConv2d(64, 64, 3), Decode()).eval()
        if quantised:
            quantise(net, bits)
        freeze(net).save(tmp_path / "net.tandem")
        sizes.append((tmp_path / "net.tandem").stat().st_size)
    assert sizes[1] < share * sizes[0]


@pytest.mark.slow
def test_the_frozen_file_of_the_paper_s_network(tmp_path):
    """CifarNet, 44 million weights: with 8 bits its file is at most 26 % of that with floats."""
    ann, sizes = models.cifarnet().eval(), []
    snn = convert(ann, 8, example=torch.zeros(1, 3, 32, 32))
    for name in ("float", "int8"):
        if name == "int8":
            quantise(snn, 8)
        freeze(snn).save(tmp_path / name)
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[1] <= 0.26 * sizes[0], sizes
