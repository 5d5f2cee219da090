"""Quantised networks as spiking networks: the same integers in every layer, and what is refused."""

import copy
import importlib
import pickle
import re

import pytest
import torch
import torch.ao.nn.quantized as quantised
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub, get_default_qconfig, prepare, quantize_dynamic
from torch.ao.quantization import convert as convert_quantised
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.utils._pytree import tree_leaves

from exact import ISAS
from quantised_anns import FIRST, INPUT, SECOND, Eager, Exported, Q, Weights, exported, images, rounded, set_up
from tandem_cuda import _C, Cascade, FrozenNetwork, RadixIF, SpikeTrain, convert, from_quantised
from tandem_cuda.from_quantised import check
from tandem_cuda.from_quantised.eager import EagerReader
from tandem_cuda.from_quantised.reader import as_graph
from tandem_cuda.nn.frozen import Span
from tandem_cuda.nn.spiking import unwrapped
from tensors import generator

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
TORCH = tuple(int(x) for x in torch.__version__.split(".")[:2])
EXACT = [engine for engine in ("x86", "onednn", "fbgemm") if engine in torch.backends.quantized.supported_engines]
"""Engines that keep biases as floats; qnnpack rounds them."""
exact_in_torch = pytest.mark.skipif(
    check.saturates_here(), reason="without VNNI, torch's own products of 8-bit integers saturate"
)


@pytest.fixture(autouse=True)
def engine():
    before = torch.backends.quantized.engine
    if EXACT:
        torch.backends.quantized.engine = EXACT[0]
    yield
    torch.backends.quantized.engine = before


def values_of(snn, x):
    """The integers of every layer that returns spikes, by its name."""
    values, steps = dict(zip(snn.kinds, (x,), strict=True)), snn.time_steps
    for name, layer, inputs in snn.nodes:
        values[name], _ = layer(Span(steps, 0, steps), None, *(values[source] for source in inputs))
    return {name: y.value.int() for name, y in values.items() if isinstance(y, SpikeTrain)}


def quantised_of(ann, x, backend="x86"):
    """Quantise a network of floats in eager mode."""
    ann = copy.deepcopy(ann).eval()
    ann.qconfig = get_default_qconfig(backend)
    prepared = prepare(ann)
    prepared(x)
    return convert_quantised(prepared)


def integers_of(model, x):
    """The integers of the quantised network, by the names of layers in the spiking network."""
    return EagerReader(as_graph(model), (x,)).read().integers


def stubbed(*layers):
    return nn.Sequential(QuantStub(), *layers, DeQuantStub())


# -- the same integers


@exact_in_torch
@pytest.mark.parametrize("backend", EXACT)
def test_every_integer_of_an_eager_network_is_the_same(backend):
    torch.backends.quantized.engine = backend
    model, x = Eager(), images()
    found, expected = values_of(from_quantised(model, x), x), {}
    for name, module in model.named_children():
        if name not in ("dequant", "add"):
            module.register_forward_hook(lambda m, args, y, name=name: expected.update({name: y.int_repr().int()}))
    model(x)
    expected.pop("quant")
    assert {*expected} == {"conv1", "conv2", "pool", "conv3", "avg", "fc1", "fc2"}
    for name, integers in expected.items():
        assert 5 < integers.float().std() < 128, name  # neither all 0 nor all 255
        assert torch.equal(found[name], integers), name
    assert torch.equal(from_quantised(model, x)(x), model(x))


def test_every_integer_of_an_exported_network_is_the_same():
    model, x = Exported(), images()
    program = exported(model, x)
    snn = from_quantised(program, x)
    found, graph = values_of(snn, x), program.module()
    results = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n):
            results[n.name] = super().run_node(n)
            return results[n.name]

    Recorder(graph).run(x)
    layers = {
        n.args[0].name: n.name for n in graph.graph.nodes if "quantize_per_tensor" in n.name and "de" not in n.name
    }
    layers.pop("x")
    assert {*layers} <= {*found}
    assert len(layers) == 8  # 5 layers of neurons, 2 poolings and flatten
    for name, quantiser in layers.items():
        assert torch.equal(found[name], results[quantiser].int()), name
    assert torch.equal(snn(x), model(x))  # of the read-out
    assert torch.equal(from_quantised(graph, x)(x), model(x))


@exact_in_torch
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    """The weights have the integer -128, and the values all bytes."""
    model, x = Eager(), images()
    _C.set_cpu_isa(isa)
    assert torch.equal(from_quantised(model, x)(x), model(x))


def test_the_network_keeps_the_integer_weights():
    snn = from_quantised(Eager(), images())
    layers = {name: unwrapped(layer) for name, layer, _ in snn.nodes}
    assert torch.equal(layers["conv1"].weight, Eager().conv1.weight().int_repr())
    assert layers["conv1"].weight.dtype == torch.int8
    assert layers["conv1"].weight.min() == -128
    assert layers["conv1"].neuron == RadixIF(256 * FIRST[0])
    assert layers["conv1"].neuron.threshold_at(8) == FIRST[0]
    assert snn.time_steps == 8


def test_numbers_halfway_between_two_integers_are_rounded_up():
    """PyTorch rounds them to the even integer."""
    layer = Weights(1, (20, 30), (2.0**-3, 0), (2.0**-2, 0))
    layer.scale = torch.full([20], 2.0**-4).double()  # a sum of 32 is 1
    layer.bias = torch.zeros(20)
    layer.values = (layer.values // 16).to(torch.int8)
    model = nn.Sequential(
        quantised.Quantize(2.0**-3, 0, torch.quint8), set_up(quantised.Linear(30, 20), layer), quantised.DeQuantize()
    ).eval()
    x = torch.randint(0, 256, (400, 30), generator=generator(0)) * 2.0**-3
    found = from_quantised(model, x)(x) / 2.0**-2
    v = (x @ (layer.values.float() / 16).T) / 2.0**-2
    assert torch.equal(found, torch.floor(v + 0.5).clamp(0, 255))
    assert torch.equal(model(x) / 2.0**-2, torch.round(v).clamp(0, 255))
    different = found != model(x) / 2.0**-2
    assert 0.001 < different.float().mean() < 0.02  # half of 1 in 32, where the integer is in range
    assert bool((v[different] % 2 == 0.5).all())


@exact_in_torch
@pytest.mark.parametrize("per_channel", [True, False])
def test_trained_scales_change_few_integers(per_channel):
    torch.manual_seed(0)
    x = torch.rand(256, 3, 12, 12, generator=generator(0))
    ann = stubbed(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    )
    model = quantised_of(ann, x, "x86" if per_channel else "qnnpack")
    snn = from_quantised(model, x)
    expected = check.differences(snn, integers_of(model, x), (x,))
    averages = [name for name, layer, _ in snn.nodes if "Avg" in layer.kind]
    for name, (share, largest) in expected.items():
        assert largest <= 1, name
        assert share <= (0.16 if name in averages else 1e-3), name
    assert expected[averages[0]][0] > 0.05  # averages of four are often halfway between two integers
    assert (snn(x) - model(x)).abs().max() < 4 * model[-2].scale


# -- zero points, sums, ReLUs


@exact_in_torch
@pytest.mark.parametrize("between", [(), (nn.ReLU(),)], ids=["no ReLU", "a ReLU of its own"])
def test_a_zero_point_of_a_linear_layer(between):
    """Which a ReLU of its own, that drops negative integers, follows or none."""
    first = Weights(1, (12, 9), INPUT, (2.0**-4, 77))
    second = Weights(4, (5, 12), (2.0**-4, 77), (2.0**-2, 130))
    model = nn.Sequential(
        *(quantised.Quantize(*INPUT, torch.quint8), set_up(quantised.Linear(9, 12), first), *between),
        *(set_up(quantised.Linear(12, 5), second), quantised.DeQuantize()),
    ).eval()
    x = torch.randn(50, 9, generator=generator(0))
    assert torch.equal(from_quantised(model, x)(x), model(x))
    assert model(x).min() < 0 < model(x).max()


class Sums(nn.Module):
    """A sum without a ReLU, whose terms have zero points, of [N, F]."""

    def __init__(self):
        super().__init__()
        self.quant = quantised.Quantize(*INPUT, torch.quint8)
        self.first = set_up(quantised.Linear(9, 9), Weights(1, (9, 9), INPUT, (2.0**-4, 77)))
        self.add = quantised.QFunctional()
        self.add.scale, self.add.zero_point = 2.0**-5, 120
        self.last = set_up(quantised.Linear(9, 4), Weights(4, (4, 9), (2.0**-5, 120), (2.0**-2, 130)))
        self.dequant = quantised.DeQuantize()

    def forward(self, x):
        x = self.quant(x)
        return self.dequant(self.last(self.add.add(x, self.first(x))))


@exact_in_torch
def test_sums_of_integers_with_zero_points():
    x, model = torch.randn(50, 9, generator=generator(0)), Sums().eval()
    snn = from_quantised(model, x)
    assert torch.equal(snn(x), model(x))
    kinds = {name: layer.kind for name, layer, _ in snn.nodes}  # functions of the input have other names
    assert [kinds[name] for name in ("first", "add", "last", "dequant")] == [
        *("TandemLinear", "TandemAdd", "TandemLinear", "Aten")
    ]


class Two(Sums):
    """Two inputs and two outputs."""

    def forward(self, x, y):
        x, y = self.first(self.quant(x)), self.quant(y)
        return {"sum": self.dequant(self.last(self.add.add(x, y))), "first": self.dequant(x)}


@exact_in_torch
def test_several_inputs_and_outputs():
    x, y = torch.randn(2, 50, 9, generator=generator(0))
    model = Two().eval()
    found, expected = from_quantised(model, (x, y))(x, y), model(x, y)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Graph(nn.Module):
    """What PT2E makes of sums: the second term is not quantised; and integers are quantised anew."""

    def __init__(self, bound=None):
        super().__init__()
        for i, layer in enumerate((Weights(1, (9, 9), INPUT, FIRST), Weights(4, (4, 9), FIRST, (2.0**-2, 130)))):
            self.register_buffer(f"weight{i}", layer.values)
            self.register_buffer(f"scale{i}", layer.scale.float())
            self.register_buffer(f"zero{i}", torch.zeros(len(layer.values), dtype=torch.long))
            self.register_buffer(f"bias{i}", layer.bias)
        self.bound = bound

    def linear(self, x, i):
        weight, scale, zero, bias = (getattr(self, f"{name}{i}") for name in ("weight", "scale", "zero", "bias"))
        weight = Q.dequantize_per_channel(weight, scale, zero, 0, -128, 127, torch.int8)
        return nn.functional.linear(x, weight, bias)

    def forward(self, x):
        x = rounded(x, INPUT)
        y = torch.relu(self.linear(x, 0) + x)
        y = y if self.bound is None else nn.functional.hardtanh(y, 0.0, self.bound)
        y = rounded(y, FIRST)
        y = rounded(y, (FIRST[0] / 2, 3))  # no number is halfway between two integers
        return self.linear(rounded(y, (FIRST[0] / 4, 0)), 1)


def test_an_exported_sum_of_a_product_and_integers_quantised_anew():
    x, model = torch.randn(50, 9, generator=generator(0)), Graph()
    snn = from_quantised(exported(model, x), x)
    assert torch.equal(snn(x), model(x))
    kinds = [layer.kind for layer in snn.layers]
    assert kinds.count("TandemAdd") == 1
    assert kinds.count("TandemElementwise") == 2


def test_the_bound_of_a_relu():
    x = torch.randn(50, 9, generator=generator(0))
    model = Graph(bound=255 * FIRST[0])
    assert torch.equal(from_quantised(exported(model, x), x)(x), model(x))
    with pytest.raises(ValueError, match=r"for no more than the bound 3\.0 of its ReLU, got 15\.9375"):
        from_quantised(exported(Graph(bound=3.0), x), x)


# -- forms


def test_fx_mode():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)).eval()
    x = torch.rand(32, 3, 10, 10, generator=generator(0))
    prepared = prepare_fx(ann, {"": get_default_qconfig("x86")}, (x,))
    prepared(x)
    model = convert_fx(prepared)
    snn = from_quantised(model, x)
    assert (snn(x) - model(x)).abs().max() <= 1.01 * getattr(model, "3").scale
    assert [layer.kind for layer in snn.layers].count("Encode") == 1


class FloatSums(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 64, 5)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x) + x)
        x = x + x
        return self.fc(torch.flatten(x + self.conv2(x), 1))


def test_sums_in_fx_mode():
    """Their scales are nodes of the graph, as are their inputs."""
    torch.manual_seed(0)
    x = torch.rand(32, 3, 10, 10, generator=generator(0))
    prepared = prepare_fx(FloatSums().eval(), {"": get_default_qconfig("x86")}, (x,))
    prepared(x)
    model = convert_fx(prepared)
    snn = from_quantised(model, x)
    kinds = [layer.kind for layer in snn.layers]
    assert kinds.count("TandemAdd") == 3
    for layer, (share, largest) in check.differences(snn, integers_of(model, x), (x,)).items():
        assert share < 0.01, layer
        assert largest <= 1, layer


EYE = torch.eye(3).view(3, 3, 1, 1)


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
        (lambda x: nn.functional.conv2d(x, EYE), lambda y: nn.functional.hardtanh(y, 0, 3)),
        (torch.sigmoid, lambda y: {"logits": y, "best": y.topk(2)[0]}),
    ],
    ids=range(6),
)
def test_real_numbers_around_an_exported_network(before, behind):
    model, x = Around(before, behind), images()
    got, want = (tree_leaves(f(x)) for f in (from_quantised(exported(model, x), x), model))
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_real_numbers_around_an_exported_network_that_cannot_be_kept():
    random = Around(lambda x: torch.bernoulli(x.sigmoid()), lambda y: torch.bernoulli(y.sigmoid()))
    of_both = "real numbers before the first quantisation or behind the last cannot be kept with it"
    assert refused(exported(random, images()), images()).count(f"(bernoulli.default): {of_both}") == 2


def test_a_product_that_is_quantised_and_an_output():
    class Both(Exported):
        def forward(self, x):
            y = nn.functional.conv2d(rounded(x, INPUT), *self.weighted("conv1"))
            return rounded(y, SECOND), y

    assert "conv2d must be either quantised or an output, got both" in refused(exported(Both(), images()), images())


def test_rows_of_features_of_any_number():
    torch.manual_seed(0)
    model = stubbed(nn.Linear(4, 6), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    x, more = torch.rand(16, 5, 4, generator=generator(0)), torch.rand(3, 7, 4, generator=generator(1))
    model = quantised_of(model, x)
    snn = from_quantised(model, x)
    assert [layer.kind for layer in snn.layers].count("TandemElementwise") == 1
    assert (snn(more) - model(more)).abs().max() <= 1.01 * model[4].scale
    same_rows = torch.cat([snn(more[:, i : i + 1]) for i in range(7)], 1)
    assert torch.equal(snn(more), same_rows)


def test_one_dimensional_convolutions_and_float_layers_around():
    torch.manual_seed(0)
    ann = nn.Sequential(
        *(nn.BatchNorm1d(3), QuantStub(), nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32, 5), DeQuantStub(), nn.Softmax(1)),
    )
    ann[0].running_mean += 0.5
    x = torch.rand(32, 3, 10, generator=generator(0))
    model = quantised_of(ann, x)
    assert isinstance(model[0], nn.BatchNorm1d)
    snn = from_quantised(model, x)
    assert (snn(x) - model(x)).abs().max() < 0.02
    assert snn.probabilities


@exact_in_torch
def test_float_layers_behind_the_last_integers():
    layer = Weights(1, (4, 3, 3, 3), INPUT, FIRST)
    model = nn.Sequential(
        *(quantised.Quantize(*INPUT, torch.quint8), set_up(quantised.Conv2d(3, 4, 3), layer), quantised.DeQuantize()),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Flatten(2), nn.Flatten(), nn.Linear(4, 3)),
    ).eval()
    x = images()
    snn = from_quantised(model, x)
    assert torch.equal(snn(x), model(x))
    kinds = [layer.kind for layer in snn.layers][-7:]
    assert kinds == ["Decode", "ReLU", "AdaptiveAvgPool2d", "ReLU", "Flatten", "Flatten", "Linear"]


@pytest.mark.skipif(TORCH < (2, 13), reason="with an older torch, this quantiser of torchao 0.18 quantises nothing")
def test_the_x86_quantiser_of_torchao():
    pytest.importorskip("torchao", reason="pip install torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

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

    torch.manual_seed(0)
    x = torch.randn(64, 3, 10, 10, generator=generator(0))
    program = torch.export.export(Residual().eval(), (x,))
    prepared = prepare_pt2e(
        program.module(), X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    )
    prepared(x)
    model = convert_pt2e(prepared)
    with pytest.raises(ValueError, match="convert: ann must be a network of floats, got a graph of quantising"):
        convert(model, 4)
    snn = from_quantised(model, x)
    assert [layer.kind for layer in snn.layers].count("TandemAdd") == 1
    assert (snn(x) - model(x)).abs().max() < 0.05 * model(x).abs().max()

    linear, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval(), torch.rand(4, 8)
    dynamic = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_dynamic=True))
    prepared = prepare_pt2e(torch.export.export(linear, (x,)).module(), dynamic)
    prepared(x)
    assert "got dynamic quantisation" in refused(convert_pt2e(prepared), x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_networks_of_torchvision(name):
    models = pytest.importorskip("torchvision.models.quantization")
    torch.manual_seed(0)
    ann = getattr(models, name)(weights=None, quantize=False)
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    x = torch.randn(4, 3, 96, 96, generator=generator(0))
    ann.train()(x)  # sets the statistics of batch norm
    ann.eval().fuse_model(is_qat=False)
    model = quantised_of(ann, x)
    snn = from_quantised(model, x)
    for layer, (share, largest) in check.differences(snn, integers_of(model, x), (x,)).items():
        assert share < 1e-3, layer
        assert largest <= 1, layer


def test_weights_of_quantize_are_refused():
    quantization = pytest.importorskip("torchao.quantization", reason="pip install torchao")
    ann = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    quantization.quantize_(ann, quantization.Int8DynamicActivationInt8WeightConfig())
    x = torch.rand(2, 64)
    with pytest.raises(ValueError, match=r"got a Sequential with weights of torchao\.quantization.*Int8Tensor"):
        from_quantised(ann, x)
    with pytest.raises(ValueError, match=r"convert: ann must be a network of floats, got weights of torchao"):
        convert(ann, 4)


# -- the spiking network


@exact_in_torch
def test_files_and_pickles(tmp_path):
    model, x = Eager(), images()
    snn = from_quantised(model, x)
    snn.save(tmp_path / "net")
    loaded = FrozenNetwork.load(tmp_path / "net")
    assert torch.equal(loaded(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(snn))(x), model(x))


def test_a_cascade_of_fewer_steps():
    torch.manual_seed(0)
    x = torch.rand(256, 3, 12, 12, generator=generator(0))
    ann = stubbed(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 36, 32), nn.ReLU(), nn.Linear(32, 10)),
    )
    model = quantised_of(ann, x)
    networks = [from_quantised(model, x, time_steps=steps) for steps in (2, 4, 6, 8)]
    errors = [float((snn(x) - model(x)).abs().mean()) for snn in networks]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3]
    assert errors[3] < 0.05 * model[-2].scale
    prediction = Cascade(networks).predict(x, 1.0)
    assert torch.equal(prediction.logits, networks[-1](x))
    assert set(Cascade(networks).predict(x, 0.11).steps.tolist()) <= {2, 6, 12, 20}


# -- refusals


def refused(model, x):
    with pytest.raises(ValueError, match=r"^from_quantised: ") as raised:
        from_quantised(model, x)
    return str(raised.value)


def test_models_of_other_forms():
    ann = stubbed(nn.Linear(4, 3), nn.ReLU())
    x = torch.rand(2, 4)
    assert "got a Sequential with floats only; tandem_cuda.convert takes these" in refused(ann, x)
    ann.qconfig = get_default_qconfig("x86")
    assert "with observers; call torch.ao.quantization.convert or convert_pt2e" in refused(prepare(ann.eval()), x)
    dynamic = quantize_dynamic(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    message = refused(dynamic, x)
    assert message.count("got dynamic quantisation, which computes it from each input") == 2
    with pytest.raises(TypeError, match=r"from_quantised: model must be an nn\.Module or an ExportedProgram, got int"):
        from_quantised(3, x)
    with pytest.raises(TypeError, match="from_quantised: example must be a Tensor, got str"):
        from_quantised(Eager(), "x")
    with pytest.raises(ValueError, match=r"example must be \[N, \.\.\.\] and not empty, got \[0, 3, 10, 10\]"):
        from_quantised(Eager(), images(0))
    assert "model must take example, got an error" in refused(Eager(), torch.rand(2, 4))


def test_convert_points_to_from_quantised():
    with pytest.raises(ValueError, match="got a graph of quantising and dequantising operators"):
        convert(exported(Exported(), images()).module(), 8)
    ann = stubbed(nn.Linear(4, 3), nn.ReLU()).eval()
    ann.qconfig = get_default_qconfig("x86")
    with pytest.raises(ValueError, match="got observers of quantisation"):
        convert(prepare(ann), 8)


def test_all_problems_at_once():
    model = Eager()
    model.pool, model.avg = nn.AvgPool2d(2, padding=1), nn.Hardswish()
    model.fc1 = quantised.dynamic.Linear(6 * 36, 16)

    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            x = self.net.conv1(self.net.quant(x))
            x = self.net.pool(self.net.conv2(x))  # whose zero point is not 0
            return self.net.dequant(nn.functional.sigmoid(x)), self.net.quant(torch.sigmoid(x.dequantize()))

    message = refused(Wrong().eval(), images())
    assert "net.pool (AvgPool2d): padding of average pooling must be 0 with zero point 131, got some" in message


def test_padding_of_a_layer_whose_input_has_a_zero_point():
    model = nn.Sequential(
        quantised.Quantize(*INPUT, torch.quint8),
        set_up(quantised.Conv2d(3, 4, 1), Weights(1, (4, 3, 1, 1), INPUT, (2.0**-4, 77))),
        set_up(quantised.Conv2d(4, 4, 3, padding=1), Weights(1, (4, 4, 3, 3), (2.0**-4, 77), FIRST)),
        quantised.DeQuantize(),
    ).eval()
    message = refused(model, images())
    assert "2 (Conv2d): padding must be 0 if the zero point of its input is not the least integer" in message
    assert "got [1, 1] and zero point 77; behind a ReLU it is the least" in message


def test_averages_of_numbers_that_are_not_quantised():
    class Unquantised(Exported):
        def forward(self, x):
            x = torch.relu(nn.functional.conv2d(rounded(x, INPUT), *self.weighted("conv1"), padding=1))
            return rounded(nn.functional.avg_pool2d(x, 2), FIRST)

    message = refused(exported(Unquantised(), images()), images())
    assert "the input of average pooling avg_pool2d must be quantised, got sums that are not" in message


def test_real_numbers_between_integers():
    layer = Weights(1, (4, 3, 3, 3), INPUT, FIRST)
    model = nn.Sequential(
        *(quantised.Quantize(*INPUT, torch.quint8), set_up(quantised.Conv2d(3, 4, 3), layer), quantised.DeQuantize()),
        *(nn.Hardswish(), quantised.Quantize(*INPUT, torch.quint8), quantised.DeQuantize()),
    ).eval()
    message = refused(model, images())
    assert "4 (Quantize): what it quantises must have a spiking form, got _3, computed with real numbers" in message


def test_integers_of_different_ranges():
    class Signed(Exported):
        def forward(self, x):
            x = torch.relu(nn.functional.conv2d(rounded(x, INPUT), *self.weighted("conv1"), padding=1))
            return rounded(x, (FIRST[0], 0), -128, 127, torch.int8)

    message = refused(exported(Signed(), images()), images())
    assert "all activations must have the same number of bits" in message
    assert "quantize_per_tensor: 8, relu: 7; signed integers lose one bit behind a ReLU" in message


def test_signed_integers_with_a_zero_point():
    """What other quantisers make of activations: -128 stands for 0."""

    class Signed(Exported):
        def forward(self, x):
            x = nn.functional.conv2d(rounded(x, INPUT), *self.weighted("conv1"), padding=1)
            x = rounded(torch.relu(x), (FIRST[0], -128), -128, 127, torch.int8)
            return rounded(
                nn.functional.conv2d(x, *self.weighted("conv2"), padding=1), (2.0**-5, 3), -128, 127, torch.int8
            )

    model, x = Signed(), images()
    assert torch.equal(from_quantised(exported(model, x), x)(x), model(x))


def test_the_comparison_with_the_example_finds_a_wrong_layer():
    model, x = Eager(), images()
    integers = {"conv3": from_quantised_integers(model, x)["conv3"] + 2}
    snn = from_quantised(model, x)
    assert check.differences(snn, integers, (x,))["conv3"][1] >= 2
    model.conv2.padding = (0, 0)  # the convolution itself has its own
    with pytest.raises(RuntimeError, match=r"the shape of layer conv2 must be \[6, 8, 10, 10\] .*, got \[6, 8, 8, 8\]"):
        from_quantised(model, x)


def test_saturation_of_torch_is_a_warning(monkeypatch):
    """On processors without VNNI, where the comparison would blame the spiking network."""
    model, x = Eager(), images()

    class Wrong(EagerReader):
        def read(self):
            network = super().read()
            return network._replace(integers={"conv3": network.integers["conv3"] + 300})

    package = importlib.import_module("tandem_cuda.from_quantised")
    monkeypatch.setattr(package, "_reader", lambda model: Wrong)
    monkeypatch.setattr(package, "saturates_here", lambda: True)
    with pytest.warns(UserWarning, match=r"integers of 1 layers could not be compared, such as layer conv3 .*VNNI"):
        from_quantised(model, x)
    monkeypatch.setattr(package, "saturates_here", lambda: False)
    with pytest.raises(RuntimeError, match="the integers of layer conv3 must be those of the quantised network"):
        from_quantised(model, x)


def from_quantised_integers(model, x):
    return {name: value.to(torch.int16) for name, value in values_of(from_quantised(model, x), x).items()}


@pytest.mark.parametrize(
    ("steps", "message"), [(9, "must be at most 8, the bits of activations, got 9"), (0, "must be at least 1")]
)
def test_time_steps(steps, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_quantised(Eager(), images(), time_steps=steps)


def test_training_mode():
    assert "model must be in eval mode" in refused(Eager().train(), images())
