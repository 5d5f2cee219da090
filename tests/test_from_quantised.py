"""Quantised networks as spiking networks: the same integers in every layer, and what is refused."""

import re

import pytest
import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from exact import ISAS
from quantised_anns import FIRST, INPUT, SECOND, Exported, Q, Weights, exported, images, rounded
from tandem_cuda import _C, Cascade, FrozenNetwork, RadixIF, SpikeTrain, convert, freeze, from_quantised
from tandem_cuda.nn import TandemAdd, TandemElementwise
from tandem_cuda.nn.quantiser import quantiser
from tensors import generator

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
EYE, WIDE = torch.eye(3).view(3, 3, 1, 1), torch.eye(20)
TORCH = tuple(int(x) for x in torch.__version__.split(".")[:2])


def results(graph_module, *inputs):
    """The results of all nodes."""
    found = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n):
            found[n] = super().run_node(n)
            return found[n]

    Recorder(graph_module).run(*inputs)
    return found


def values_of(snn, *inputs):
    """The integers of every node that returns spikes, without those of the network's input."""
    every = results(snn.snn, *inputs).items()
    return [y.value.int() for node, y in every if isinstance(y, SpikeTrain) and not node.name.startswith("encode")]


def integers_of(program, *inputs):
    """The integers of every quantised activation, less the least, without those of the network's input."""
    graph = program.module() if isinstance(program, torch.export.ExportedProgram) else program
    quantisers = [
        (node, y.int() - node.args[3])
        for node, y in results(graph, *inputs).items()
        if node.op == "call_function" and node.name.startswith("quantize_per_tensor")
    ]
    return [y for node, y in quantisers if node.args[0].op != "placeholder"]


def check_same(model, *inputs):
    """All outputs are the quantised network's, to the bit, and all integers, but for their zero points."""
    program = exported(model, *inputs)
    snn = from_quantised(program, inputs)
    found, expected = values_of(snn, *inputs), integers_of(program, *inputs)
    if len(found) == len(expected):
        assert all(len((a - b).unique()) == 1 for a, b in zip(found, expected, strict=True))
    got, want = (tree_leaves(f(*inputs)) for f in (snn, model))
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))
    return snn


def kinds(snn, kind):
    return sum(isinstance(module, kind) for module in snn.modules())


# -- the same integers


def test_every_integer_is_the_same():
    model, x = Exported(), images()
    program = exported(model, x)
    snn = from_quantised(program, x)
    found, expected = values_of(snn, x), integers_of(program, x)
    assert len(found) == len(expected) == 8  # 5 layers of neurons, 2 poolings and flatten
    for spikes, integers in zip(found, expected, strict=True):
        assert 5 < integers.float().std() < 128  # neither all 0 nor all 255
        assert torch.equal(spikes, integers)
    assert torch.equal(snn(x), model(x))  # of the read-out
    assert torch.equal(from_quantised(program.module(), x)(x), model(x))


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    """The weights have the integer -128, and the values all bytes."""
    model, x = Exported(), images()
    _C.set_cpu_isa(isa)
    assert torch.equal(from_quantised(exported(model, x), x)(x), model(x))


def test_the_network_keeps_the_integer_weights():
    model, x = Exported(), images()
    snn = from_quantised(exported(model, x), x)
    layer = snn.snn.conv2d
    weight, scale = quantiser(layer).integers(layer.weight)
    assert torch.equal(weight, model.conv1_weight)
    assert weight.min() == -128
    assert torch.equal(scale, model.conv1_scale)
    assert layer.neuron == RadixIF(256 * FIRST[0])
    assert layer.neuron.threshold_at(8) == FIRST[0]
    assert snn.time_steps == 8
    assert not snn.training
    assert snn(images(1)).shape == (1, 10)  # whatever the number of samples of the export
    snn.load_state_dict(snn.state_dict())
    assert torch.equal(snn(x), model(x))


class Layers(nn.Module):
    """Linear layers of quantised weights, in the order of ``layers``."""

    def __init__(self, *layers):
        super().__init__()
        for i, layer in enumerate(layers):
            self.register_buffer(f"weight{i}", layer.values)
            self.register_buffer(f"scale{i}", layer.scale.float())
            self.register_buffer(f"zero{i}", torch.zeros(len(layer.values), dtype=torch.long))
            self.register_buffer(f"bias{i}", layer.bias)

    def weighted(self, i):
        weight, scale, zero, bias = (getattr(self, f"{name}{i}") for name in ("weight", "scale", "zero", "bias"))
        return Q.dequantize_per_channel(weight, scale, zero, 0, -128, 127, torch.int8), bias

    def linear(self, x, i):
        return nn.functional.linear(x, *self.weighted(i))

    def conv(self, x, i, **settings):
        return nn.functional.conv2d(x, *self.weighted(i), **settings)


def test_numbers_halfway_between_two_integers_are_rounded_up():
    """PyTorch rounds them to the even integer."""
    layer = Weights(1, (20, 30), (2.0**-3, 0), (2.0**-2, 0))
    layer.scale = torch.full([20], 2.0**-4).double()  # a sum of 32 is 1
    layer.bias = torch.zeros(20)
    layer.values = (layer.values // 16).to(torch.int8)

    class Ties(Layers):
        def forward(self, x):
            x = rounded(self.linear(rounded(x, (2.0**-3, 0)), 0), (2.0**-2, 0))
            return nn.functional.linear(x, WIDE)

    model = Ties(layer)
    x = torch.randint(0, 256, (400, 30), generator=generator(0)) * 2.0**-3
    found = from_quantised(exported(model, x), x)(x) / 2.0**-2
    v = (x @ (layer.values.float() / 16).T) / 2.0**-2
    assert torch.equal(found, torch.floor(v + 0.5).clamp(0, 255))
    assert torch.equal(model(x) / 2.0**-2, torch.round(v).clamp(0, 255))
    different = found != model(x) / 2.0**-2
    assert 0.001 < different.float().mean() < 0.02  # half of 1 in 32, where the integer is in range
    assert bool((v[different] % 2 == 0.5).all())


# -- zero points, sums, ReLUs


@pytest.mark.parametrize("between", [lambda x: x, torch.relu], ids=["no ReLU", "a ReLU of its own"])
def test_a_zero_point_of_a_linear_layer(between):
    """Which a ReLU of its own, that drops negative integers, follows or none."""

    class Two(Layers):
        def forward(self, x):
            x = between(rounded(self.linear(rounded(x, INPUT), 0), (2.0**-4, 77)))
            return rounded(
                self.linear(rounded(x, (2.0**-4, 77 if between is not torch.relu else 0)), 1), (2.0**-2, 130)
            )

    model = Two(Weights(1, (12, 9), INPUT, (2.0**-4, 77)), Weights(4, (5, 12), (2.0**-4, 77), (2.0**-2, 130)))
    x = torch.randn(50, 9, generator=generator(0))
    check_same(model, x)
    assert model(x).min() < 0 < model(x).max()


class Sums(Layers):
    """A sum without a ReLU, whose terms have zero points, of [N, F]."""

    def __init__(self):
        super().__init__(Weights(1, (9, 9), INPUT, (2.0**-4, 77)), Weights(4, (4, 9), (2.0**-5, 120), (2.0**-2, 130)))

    def forward(self, x):
        x = rounded(x, INPUT)
        x = rounded(x + rounded(self.linear(x, 0), (2.0**-4, 77)), (2.0**-5, 120))
        return rounded(self.linear(x, 1), (2.0**-2, 130))


def test_sums_of_integers_with_zero_points():
    snn = check_same(Sums(), torch.randn(50, 9, generator=generator(0)))
    assert kinds(snn, TandemAdd) == 1


class Two(Sums):
    """Two inputs and two outputs."""

    def forward(self, x, y):
        x, y = rounded(self.linear(rounded(x, INPUT), 0), (2.0**-4, 77)), rounded(y, INPUT)
        return {"sum": self.linear(rounded(x + y, (2.0**-5, 120)), 1), "first": x}


def test_several_inputs_and_outputs():
    check_same(Two(), *torch.randn(2, 50, 9, generator=generator(0)))


class Anew(Layers):
    """What PT2E makes of sums: the second term is not quantised; and integers are quantised anew."""

    def __init__(self, bound=None):
        super().__init__(Weights(1, (9, 9), INPUT, FIRST), Weights(4, (4, 9), FIRST, (2.0**-2, 130)))
        self.bound = bound

    def forward(self, x):
        x = rounded(x, INPUT)
        y = torch.relu(self.linear(x, 0) + x)
        y = y if self.bound is None else nn.functional.hardtanh(y, 0.0, self.bound)
        y = rounded(y, FIRST)
        y = rounded(y, (FIRST[0] / 2, 3))  # no number is halfway between two integers
        return self.linear(rounded(y, (FIRST[0] / 4, 0)), 1)


def test_a_sum_of_a_product_and_integers_quantised_anew():
    snn = check_same(Anew(), torch.randn(50, 9, generator=generator(0)))
    assert kinds(snn, TandemAdd) == 1
    assert kinds(snn, TandemElementwise) == 3  # two of integers anew, and the input in the sum


def test_the_bound_of_a_relu():
    x = torch.randn(50, 9, generator=generator(0))
    check_same(Anew(bound=255 * FIRST[0]), x)
    assert "for no more than its bound, 3.0, got 15.9375" in refused(exported(Anew(bound=3.0), x), x)


def test_signed_integers_with_a_zero_point():
    """What other quantisers make of activations: -128 stands for 0."""

    class Signed(Exported):
        def forward(self, x):
            x = nn.functional.conv2d(rounded(x, INPUT), *self.weighted("conv1"), padding=1)
            x = rounded(torch.relu(x), (FIRST[0], -128), -128, 127, torch.int8)
            x = nn.functional.conv2d(x, *self.weighted("conv2"), padding=1)
            return nn.functional.max_pool2d(rounded(x, (2.0**-5, 3), -128, 127, torch.int8), 2)

    check_same(Signed(), images())


def test_a_concatenation():
    """Of integers with two scales, quantised anew."""

    class Joined(Exported):
        def forward(self, x):
            x = rounded(torch.relu(conv(self, rounded(x, INPUT), "conv1")), FIRST)
            y = rounded(conv(self, x, "conv2"), (2.0**-5, 0))
            x = rounded(torch.cat([x[:, :4, 1:-1, 1:-1], y[:, :4]], 1), (2.0**-5, 0))
            return conv(self, x, "conv3", groups=2)

    check_same(Joined(), images())


def test_a_network_of_7_bits():
    """Signed integers with zero point 0, of which a ReLU leaves half; the input has 7 bits, too."""

    class Signed(Exported):
        def forward(self, x):
            x = rounded(x, (INPUT[0], 0), -64, 63, torch.int8)
            x = nn.functional.conv2d(x, *self.weighted("conv1"), padding=1)
            x = rounded(torch.relu(x), (FIRST[0], 0), -128, 127, torch.int8)
            return nn.functional.conv2d(x, *self.weighted("conv2"), padding=1)

    assert check_same(Signed(), images()).time_steps == 7


# -- real numbers around the quantised part


class Around(Exported):
    """The exported network, with functions of real numbers before and behind it."""

    def __init__(self, before, behind):
        super().__init__()
        self.before, self.behind = before, behind

    def forward(self, x):
        return self.behind(super().forward(self.before(x)))


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (lambda x: (x - 0.5) / 0.25, lambda y: torch.softmax(y, 1)),
        (lambda x: x.mul(2.0).clamp(min=-1.0), lambda y: nn.functional.dropout(torch.relu(y), training=False)),
        (lambda x: nn.functional.pad(x.narrow(2, 1, 8), (0, 0, 1, 1)), lambda y: y.view(-1, 2, 5).mean(2)),
        (lambda x: nn.functional.avg_pool2d(x, 3, 1, 1), lambda y: (y.argmax(1), torch.log_softmax(y, -1))),
        (lambda x: nn.functional.interpolate(x, scale_factor=1.0, mode="bilinear"), torch.erfinv),
        (torch.sigmoid, lambda y: {"logits": y, "best": y.topk(2)[0]}),
    ],
    ids=range(6),
)
def test_real_numbers_around_the_network(before, behind):
    model, x = Around(before, behind), images()
    got, want = (tree_leaves(f(x)) for f in (from_quantised(exported(model, x), x), model))
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


class Rows(Layers):
    def __init__(self):
        layers = Weights(1, (6, 4), INPUT, FIRST), Weights(2, (4, 6), FIRST, SECOND), Weights(3, (2, 4), SECOND, FIRST)
        super().__init__(*layers)

    def forward(self, x):
        x = rounded(torch.relu(self.linear(rounded(x, INPUT), 0)), FIRST)
        return self.linear(rounded(self.linear(x, 1), SECOND), 2)


def test_rows_of_features():
    check_same(Rows(), torch.randn(16, 5, 4, generator=generator(0)))


class Line(Layers):
    def __init__(self):
        super().__init__(Weights(1, (8, 3, 3), INPUT, FIRST), Weights(2, (4, 8, 3), FIRST, SECOND))

    def forward(self, x):
        x = rounded(torch.relu(nn.functional.conv1d(rounded(x, INPUT), *self.weighted(0), padding=1)), FIRST)
        x = rounded(nn.functional.conv1d(x, *self.weighted(1), stride=2), SECOND)
        return nn.functional.linear(x.flatten(1), WIDE[:3])


def test_one_dimensional_convolutions():
    check_same(Line(), torch.randn(16, 3, 12, generator=generator(0)))


# -- torchao


def pt2e(ann, x, dynamic=False):
    """Quantise a network with PT2E of torchao."""
    pytest.importorskip("torchao", reason="pip install torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    settings = get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    prepared = prepare_pt2e(torch.export.export(ann, (x,)).module(), X86InductorQuantizer().set_global(settings))
    assert "got a GraphModule with observers of quantisation; call convert_pt2e" in refused(prepared, x)
    prepared(x)
    return convert_pt2e(prepared)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1, self.relu1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.norm2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.pool, self.conv3, self.relu3 = nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU6()
        self.average, self.out = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 10)

    def forward(self, x):
        x = self.relu1(self.norm1(self.conv1(x)))
        x = self.relu2(x + self.norm2(self.conv2(x)))
        x = self.relu3(self.conv3(self.pool(x)))
        return self.out(torch.flatten(self.average(x), 1))


of_torchao = pytest.mark.skipif(
    TORCH < (2, 13), reason="with an older torch, this quantiser of torchao 0.18 quantises nothing"
)


@of_torchao
def test_the_x86_quantiser_of_torchao():
    torch.manual_seed(0)
    x = torch.randn(64, 3, 10, 10, generator=generator(0))
    model = pt2e(Residual().eval(), x)
    with pytest.raises(ValueError, match="convert: ann must be a network of floats, got a graph of quantising"):
        convert(model, 4, example=x)
    snn = from_quantised(model, x)
    assert kinds(snn, TandemAdd) == 1
    assert [*snn.spiking_layers] == ["conv1", "add", "conv3"]
    found, expected = values_of(snn, x), integers_of(model, x)
    assert len(found) == len(expected) == 6
    for spikes, integers in zip(found[:4], expected[:4], strict=True):
        assert (spikes - integers).abs().max() <= 1
        assert (spikes != integers).float().mean() < 1e-3
    assert (snn(x) - model(x)).abs().max() < 0.05 * model(x).abs().max()
    assert "conv1" in str(snn.report(x[:8]))

    linear, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval(), torch.rand(4, 8)
    assert "got dynamic quantisation" in refused(pt2e(linear, x, dynamic=True), x)


@of_torchao
@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11", "mobilenet_v2"])
def test_networks_of_torchvision(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    ann = getattr(models, name)(weights=None)
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    x = torch.randn(4, 3, 96, 96, generator=generator(0))
    ann.train()(x)  # sets the statistics of batch norm
    model = pt2e(ann.eval(), x)
    snn = from_quantised(model, x)
    assert (snn(x) - model(x)).abs().max() < 0.05 * model(x).abs().max()


def test_weights_of_quantize_are_refused():
    quantization = pytest.importorskip("torchao.quantization", reason="pip install torchao")
    ann = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    quantization.quantize_(ann, quantization.Int8DynamicActivationInt8WeightConfig())
    x = torch.rand(2, 64)
    with pytest.raises(ValueError, match=r"got a Sequential with weights of torchao\.quantization.*Int8Tensor"):
        from_quantised(ann, x)
    with pytest.raises(ValueError, match=r"convert: ann must be a network of floats, got weights of torchao"):
        convert(ann, 4, example=x)


# -- the spiking network


def test_files(tmp_path):
    model, x = Exported(), images()
    snn = freeze(from_quantised(exported(model, x), x))
    assert torch.equal(snn(x), model(x))
    snn.save(tmp_path / "net")
    assert torch.equal(FrozenNetwork.load(tmp_path / "net")(x), model(x))


def test_fewer_steps():
    model, x = Exported(), images(64)
    program, expected = exported(model, x), model(x)
    networks = [from_quantised(program, x, time_steps=steps) for steps in (2, 4, 6, 8)]
    errors = [float((snn(x) - expected).detach().abs().mean()) for snn in networks]
    assert errors[0] > errors[1] > errors[2] > errors[3] == 0
    networks[3].set_time_steps(4)
    assert torch.equal(networks[3](x), networks[1](x))
    networks[3].set_time_steps(8)
    assert torch.equal(networks[3](x), expected)
    prediction = Cascade([freeze(snn) for snn in networks]).predict(x, 0.9)
    assert set(prediction.steps.tolist()) <= {2, 6, 12, 20}


# -- refusals


def refused(model, x):
    with pytest.raises(ValueError, match=r"^from_quantised: ") as raised:
        from_quantised(model, x)
    return str(raised.value)


def test_models_of_other_forms():
    quantization = pytest.importorskip("torch.ao.quantization")
    x = torch.rand(2, 4)
    ann = nn.Sequential(quantization.QuantStub(), nn.Linear(4, 3), nn.ReLU(), quantization.DeQuantStub()).eval()
    assert "got a Sequential with floats only; tandem_cuda.convert takes these" in refused(ann, x)
    ann.qconfig = quantization.get_default_qconfig("x86")
    prepared = quantization.prepare(ann)
    for model, message in (
        (prepared, "observers of"),
        (quantization.convert(prepared), "quantised layers of torch.ao"),
    ):
        assert f"got a Sequential with {message}" in refused(model, x)
        with pytest.raises(ValueError, match=f"convert: ann must be a network of floats, got {message}"):
            convert(model, 8, example=x)
    with pytest.raises(TypeError, match=r"from_quantised: model must be an nn\.Module or an ExportedProgram, got int"):
        from_quantised(3, x)
    program = exported(Exported(), images())
    with pytest.raises(TypeError, match="example must be a Tensor, or a tuple"):
        from_quantised(program, "x")
    with pytest.raises(ValueError, match="at least one sample"):
        from_quantised(program, images(0))


class Changed(Exported):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def conv(net, x, name, **settings):
    return nn.functional.conv2d(x, *net.weighted(name), **settings)


def first(net, x, code=FIRST):
    return rounded(torch.relu(conv(net, rounded(x, INPUT), "conv1", padding=1)), code)


def signed(net, x):
    x = torch.relu(conv(net, rounded(x, INPUT), "conv1", padding=1))
    return conv(net, rounded(x, (FIRST[0], 0), -128, 127, torch.int8), "conv2")


def averaged(net, x):
    x = torch.relu(conv(net, rounded(x, INPUT), "conv1", padding=1))
    return conv(net, rounded(nn.functional.avg_pool2d(x, 2), FIRST), "conv2")


def of_zero_point(net, x):
    x = rounded(conv(net, rounded(x, INPUT), "conv1"), (2.0**-4, 77))
    return behind(net, conv(net, x, "conv2", padding=1))


def padded_average(net, x):
    x = rounded(conv(net, rounded(x, INPUT), "conv1"), (2.0**-4, 77))
    return conv(net, rounded(nn.functional.avg_pool2d(x, 2, padding=1), (2.0**-4, 77)), "conv2")


def used_twice(net, x):
    y = conv(net, rounded(x, INPUT), "conv1")
    return conv(net, rounded(y, SECOND), "conv2"), y


def halves(net, x):
    return nn.functional.avg_pool2d(first(net, x), 2)


def behind(net, x):
    """A last layer, which reads integers."""
    return conv(net, rounded(x, SECOND)[:, :4], "conv3")


REFUSALS = {
    "bits": (
        signed,
        "must have the same number of bits.* got .*: 8, .*: 7; signed integers lose one bit behind a ReLU",
    ),
    "average": (averaged, "avg_pool2d.*its input must be quantised|its values must be quantised"),
    "padding": (of_zero_point, r"conv2d_1 .*padding must be 0 if the zero point .* got \[1, 1\] and 77 more"),
    "padded average": (padded_average, "its padding must be 0 if the zero point"),
    "rescaled average": (
        lambda net, x: conv(net, rounded(nn.functional.avg_pool2d(first(net, x), 2), SECOND), "conv2"),
        "average pooling must keep scale and zero point",
    ),
    "unrounded average": (
        lambda net, x: behind(net, conv(net, nn.functional.avg_pool2d(first(net, x), 2), "conv2")),
        "conv2d_1 .*its input must be quantised, got real numbers",
    ),
    "averages of averages": (
        lambda net, x: conv(net, rounded(nn.functional.avg_pool2d(halves(net, x), 2), FIRST), "conv2", padding=1),
        "its input must be quantised, and its divisor_override None",
    ),
    "sum of averages": (
        lambda net, x: conv(net, rounded(halves(net, x) + 1, FIRST), "conv2"),
        "add .*its input must be quantised, got averages that are not",
    ),
    "real numbers": (
        lambda net, x: conv(net, rounded(nn.functional.hardswish(first(net, x)), FIRST), "conv2"),
        "hardswish .*it has no rule",
    ),
    "not quantised": (
        lambda net, x: behind(net, conv(net, torch.relu(conv(net, rounded(x, INPUT), "conv1")), "conv2")),
        "conv2d_1 .*its input must be quantised, got real numbers",
    ),
    "an output, too": (used_twice, "conv2d: its values must be quantised, once"),
    "zero points": (
        lambda net, x: conv(net, rounded(rounded(conv(net, rounded(x, INPUT), "conv1"), SECOND) * 2, SECOND), "conv2"),
        "the zero point of its input must be the least integer",
    ),
    "nothing": (lambda net, x: conv(net, x, "conv1"), "must read quantised activations, but there is none"),
    "one layer": (lambda net, x: conv(net, rounded(x, INPUT), "conv1"), "must read the output of another one"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    run, message = REFUSALS[name]
    assert re.search(message, refused(exported(Changed(run), images()), images()))


def test_all_problems_at_once():
    def run(net, x):
        x = rounded(conv(net, rounded(x, INPUT), "conv1"), (2.0**-4, 77))
        x = rounded(nn.functional.avg_pool2d(x, 2, padding=1), (2.0**-4, 77))
        return conv(net, rounded(torch.relu(conv(net, x, "conv2")), (0.1, 3))[:, :4], "conv3")

    message = refused(exported(Changed(run), images()), images())
    assert "its padding must be 0 if the zero point" in message
    assert "the zero point behind a ReLU must be the least integer" in message


@pytest.mark.parametrize(
    ("steps", "message"), [(9, "must be at most 8, the bits of activations, got 9"), (0, "must be at least 1")]
)
def test_time_steps(steps, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_quantised(exported(Exported(), images()), images(), time_steps=steps)
