"""Quantised weights: their grid, their gradient, both twins, copies, files, frozen networks."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from anns import inputs, per_layer
from exact import generator, same, slow
from freezable import graph_of
from tandem_cuda import (
    IF,
    Decode,
    Encode,
    FrozenNetwork,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemLinear,
    convert,
    freeze,
    ops,
    quantise,
    unquantise,
)
from tandem_cuda.analysis import diagnose
from tandem_cuda.nn import quantiser as quantiser_module
from tandem_cuda.nn.tandem import TandemLayer
from tandem_cuda.quantisation import WeightQuantiser, quantiser

every_bits = pytest.mark.parametrize("bits", range(2, 9))


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.a(x).relu()
        return self.fc((self.norm(self.b(x)) + x).relu().mean((2, 3)))


every_model = pytest.mark.parametrize("make", [cnn, Residual])


def trained(make):
    torch.manual_seed(0)
    ann = make()
    for seed in range(10):
        ann(inputs(16, seed))
    return ann.eval()


def weights(shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


# --- the quantiser ---------------------------------------------------------------------------------------------------


@every_bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_on_the_grid(bits, dtype):
    w = weights((5, 3, 3, 3)).to(dtype)
    w[2] = 0
    quantise_weight = WeightQuantiser(bits)
    q = quantise_weight(w)
    codes, scale = quantise_weight.integers(w)
    assert q.dtype == dtype
    assert codes.dtype == torch.int8
    assert codes.abs().max() == 2 ** (bits - 1) - 1 == quantise_weight.largest
    same(q, codes.to(dtype) * scale.view(-1, 1, 1, 1))
    assert not q[2].any()
    assert scale[2] == 1
    assert all(len(channel.unique()) <= 2**bits - 1 for channel in q)


@every_bits
def test_scale_is_the_best_of_those_tried(bits):
    """By hand, with channels of which the largest weight is far from the rest."""
    w = weights((4, 40))
    w[0, 0], w[1, 0] = 20.0, -6.0
    q = 2 ** (bits - 1) - 1
    errors = []
    for share in range(5, 21):
        scale = w.abs().amax(1, keepdim=True) / q * (share / 20)
        errors.append(((w / scale).round().clamp(-q, q) * scale - w).square().sum(1))
    got = (WeightQuantiser(bits)(w) - w).square().sum(1)
    torch.testing.assert_close(got, torch.stack(errors).min(0).values)


@every_bits
def test_weights_on_the_grid_stay(bits):
    q = 2 ** (bits - 1) - 1
    codes = torch.randint(-q, q + 1, (6, 50), generator=generator(0))
    codes[:, 0] = q
    w = codes * torch.tensor([0.25, 0.5, 1, 2, 4, 8]).view(-1, 1)
    same(WeightQuantiser(bits)(w), w)


def test_more_bits_are_closer():
    w = weights((8, 200))
    errors = [(WeightQuantiser(bits)(w) - w).norm() for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * w.norm()


def test_channels_of_a_transposed_convolution():
    """[C, O/groups, ...]: one scale for each of the O outputs."""
    w = weights((6, 2, 3, 3))
    got = WeightQuantiser(3, groups=2)(w)
    for group in range(2):
        for output in range(2):
            channel = w[3 * group : 3 * group + 3, output]
            want = WeightQuantiser(3)(channel.reshape(1, -1)).view_as(channel)
            same(got[3 * group : 3 * group + 3, output], want)
    codes, scale = WeightQuantiser(3, groups=2).integers(w)
    assert codes.shape == w.shape
    assert scale.shape == (4,)


def test_gradient_is_straight_through():
    layer = nn.Linear(10, 4)
    quantise(layer, 2)
    parameter = layer.parametrizations.weight.original
    x, g = weights((7, 10)), weights((7, 4), 1)
    (layer(x) * g).sum().backward()
    torch.testing.assert_close(parameter.grad, g.T @ x)  # as of the weights themselves, whether or not clipped
    x = x.requires_grad_()
    (got,) = torch.autograd.grad((layer(x) * g).sum(), x)
    torch.testing.assert_close(got, g @ layer.weight)


# --- networks --------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("order", ["before", "behind"])
def test_both_twins_see_the_same_weights(make, order):
    ann = trained(make)
    parameters = list(ann.parameters())
    x = inputs()
    plain = ann(x).detach()
    if order == "before":
        quantise(ann, 3)
        snn = convert(ann, 256, calibrate=x, percentile=100, **per_layer())
    else:
        snn = convert(ann, 256, calibrate=x, percentile=100, **per_layer())
        quantise(snn, 3)
    assert {id(p) for p in ann.parameters()} == {id(p) for p in snn.parameters()} == {id(p) for p in parameters}
    layers = [m for m in snn.modules() if hasattr(m, "weight") and quantiser(m) is not None]
    twins = [m for m in ann.modules() if hasattr(m, "weight") and quantiser(m) is not None]
    assert len(layers) == len(twins) == 3
    for layer in layers:
        (twin,) = [m for m in twins if m.parametrizations.weight.original is layer.parametrizations.weight.original]
        same(layer.weight.detach(), twin.weight.detach())
        assert all(len(channel.unique()) <= 7 for channel in layer.weight)
    assert (ann(x) - plain).abs().max() > 1e-3
    assert (snn(x) - ann(x)).norm() < 0.1 * ann(x).norm()
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    snn.train()(x).square().sum().backward()
    optimizer.step()
    # Not of a bias that batch norm takes away again: its gradient is zero.
    assert all((p != q).any() for p, q in zip(parameters, before, strict=True) if p.dim() > 1)


@every_model
@pytest.mark.parametrize(("weights", "bits"), [("int8", 8), ("int16", 16)])
def test_convert_quantises_from_the_start(make, weights, bits):
    """The levels are those of the ANN as it is before. Then both twins are quantised."""
    x = inputs()
    for k in (None, 1):
        ann, other = trained(make), trained(make)
        snn = convert(ann, 8, calibrate=x, spiking_layers=k, weights=weights)
        levels = convert(trained(make), 8, calibrate=x, spiking_layers=k).levels
        torch.testing.assert_close(snn.levels, levels, rtol=0, atol=0)
        quantise(other, bits)
        want = convert(other, 8, calibrate=snn.calibration, spiking_layers=k, example=x)
        same(snn(x).detach(), want(x).detach())
        same(snn.ann()(x).detach(), other(x).detach())
        assert list(snn.state_dict()) == list(want.state_dict())
    layers = [m for m in convert(make(), 8, weights=weights, example=x).modules() if isinstance(m, TandemLayer)]
    assert layers
    assert all(quantiser(layer).bits == bits for layer in layers)


def test_a_failed_conversion_leaves_the_ann_as_it_was():
    ann = trained(cnn)
    broken = inputs() * torch.nan
    with pytest.raises(ValueError, match="finite"):
        convert(ann, 8, calibrate=broken, weights="int8")
    assert not any(quantiser(m) for m in ann.modules() if hasattr(m, "weight"))
    quantise(ann, 4)
    with pytest.raises(ValueError, match="finite"):
        convert(ann, 8, calibrate=broken, weights="int8")
    assert {quantiser(ann[i]).bits for i in (0, 3)} == {4}


@every_model
def test_hybrids_of_quantised_networks(make):
    ann = trained(make)
    x = inputs()
    quantise(ann, 4)
    snn = convert(ann, 256, calibrate=x, percentile=100, spiking_layers=1)
    assert (snn(x) - ann(x)).norm() < 0.05 * ann(x).norm()


@every_model
def test_state_dicts_are_those_of_plain_networks(make):
    ann = trained(make)
    names = set(ann.state_dict())
    x = inputs()
    snn = convert(ann, 8, calibrate=x, **per_layer())
    quantise(snn, 3)
    assert set(snn.state_dict()) == {*names, "_extra_state"}
    assert set(ann.state_dict()) == names
    torch.manual_seed(1)
    other = make().eval()
    for load in (snn, ann):
        state = (other if load is snn else trained(make)).state_dict()
        load.load_state_dict(state)
        found = load.state_dict()
        for name, value in state.items():
            same(found[name], value)
    plain = make().eval()
    plain.load_state_dict(snn.ann().state_dict())
    quantise(plain, 3)
    same(plain(x).detach(), ann(x).detach())
    same(convert(plain, 8, calibrate=snn.calibration, example=x)(x).detach(), snn(x).detach())
    outer = nn.ModuleDict({"net": snn})
    assert set(outer.state_dict()) == {f"net.{name}" for name in (*names, "_extra_state")}
    outer.load_state_dict(outer.state_dict())
    snn.load_state_dict({k: v.clone() for k, v in other.state_dict().items()}, assign=True)
    assert {id(p) for p in ann.parameters()} == {id(p) for p in snn.parameters()}
    snn.double()
    assert {p.dtype for p in [*ann.parameters(), *snn.parameters()]} == {torch.float64}
    assert snn(x.double()).dtype == torch.float64


@every_model
def test_undone(make):
    ann = trained(make)
    x = inputs()
    snn = convert(ann, 8, calibrate=x)
    want, names = snn(x).detach(), list(ann.state_dict())
    parameters = list(ann.parameters())
    quantise(snn, 2)
    copied = copy.deepcopy(snn)
    quantised = snn(x).detach()
    assert (quantised != want).any()
    unquantise(snn)
    same(snn(x).detach(), want)
    assert {id(p) for p in snn.parameters()} == {id(p) for p in parameters}
    assert list(snn.state_dict()) == [*names, "_extra_state"]
    assert [id(p) for p in ann.parameters()] == [id(p) for p in parameters]
    assert not any("arametrized" in type(m).__name__ for m in [*snn.modules(), *ann.modules()])
    snn.load_state_dict(trained(make).state_dict())
    unquantise(snn)  # nothing to undo
    same(copied(x).detach(), quantised)
    unquantise(copied)
    same(copied(x).detach(), want)


@every_model
def test_copies_after_training(make):
    ann = trained(make)
    snn = convert(ann, 8, calibrate=inputs())
    quantise(snn, 3)
    x = inputs()
    snn.train()(x).sum().backward()
    other = copy.deepcopy(snn)
    same(other.eval()(x).detach(), snn.eval()(x).detach())
    same(other.ann()(x).detach(), ann(x).detach())
    assert not {id(p) for p in other.parameters()} & {id(p) for p in snn.parameters()}
    with torch.no_grad():
        for p in other.ann().parameters():
            p.zero_()
    assert (other(x) != snn(x)).any()


@every_model
@every_bits
def test_frozen_network_has_the_quantised_weights(make, bits):
    ann = trained(make)
    x = inputs()
    snn = convert(ann, 11, calibrate=x)
    plain = freeze(snn)(x)
    quantise(snn, bits)
    frozen = freeze(snn)
    with torch.no_grad():
        same(frozen(x), snn.eval()(x))
    assert (frozen(x) != plain).any()
    assert not list(frozen.parameters())


def test_tandem_layers_without_convert():
    torch.manual_seed(0)
    net = nn.Sequential(
        Encode(8),
        TandemConv2d(2, 6, 3, padding=1, norm="batch"),
        TandemConvTranspose2d(6, 4, 2, stride=2, groups=2, neuron=IF(0.1)),
        nn.Flatten(2),
        TandemConv1d(4, 3, 3, neuron=IF(0.1)),
        nn.Flatten(),
        TandemLinear(762, 5, norm="batch"),
        Decode(),
        nn.Linear(5, 3),
    )
    x = inputs()
    quantise(net, 4)
    net(x).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
    net.eval()
    with torch.no_grad():
        same(freeze(net)(x), net(x))
    layer = net[1]
    with torch.no_grad():  # nothing stale is kept
        before = net(x)
        layer.parametrizations.weight.original.mul_(-1)
        assert (net(x) != before).any()


def test_a_join_keeps_nothing_stale():
    torch.manual_seed(0)
    join = TandemAdd(TandemConv2d(2, 2, 3, padding=1), nn.Identity())
    first = nn.Sequential(Encode(8), TandemConv2d(2, 2, 1, neuron=IF(0.1)))
    quantise(join, 4)
    train = first(inputs())
    with torch.no_grad():
        before = join(train, train).count
        join.branches[0].parametrizations.weight.original.mul_(-1)
        assert (join(train, train).count != before).any()


@every_bits
def test_integers_run_on_the_int8_engine(bits):
    """Sums of whole numbers times a scale: with scales of powers of two, bit for bit the layer's own."""
    q = 2 ** (bits - 1) - 1
    codes = torch.randint(-q, q + 1, (6, 40), generator=generator(0))
    codes[:, 0] = q
    layer = TandemLinear(40, 6, bias=False, neuron=IF(1.0))
    with torch.no_grad():
        layer.weight.copy_(codes / 64)
    quantise(layer, bits)
    first = TandemLinear(4, 40)
    train = first(Encode(8)(torch.rand(5, 4, generator=generator(1))))
    weight, scale = quantiser(layer).integers(layer.parametrizations.weight.original)
    bits_out, _, _ = ops.spiking_linear(train.bits, weight, scale=scale, time_steps=8)
    same(bits_out, layer(train).bits)


def test_diagnose_of_a_quantised_network():
    snn = convert(trained(cnn), 64, calibrate=inputs())
    quantise(snn, 8)
    table = diagnose(snn, inputs(), lambda y: y.square().sum())
    assert all(row.gradient_cosine > 0.5 for row in table)


def small():
    return nn.Sequential(Encode(8), TandemConv2d(2, 6, 3, norm="batch"), Decode())


@pytest.mark.parametrize("make", [small, slow(lambda: convert(trained(cnn), 8, calibrate=inputs()), id="converted")])
@pytest.mark.filterwarnings("error:tandem_cuda")
def test_compile(make, monkeypatch):
    if make is small:  # the search is unrolled: with all 16 shares the graph takes most of the time
        monkeypatch.setattr(quantiser_module, "_SHARES", quantiser_module._SHARES[::8])
    torch.compiler.reset()
    snn, x = make().eval(), inputs()
    quantise(snn, 4)
    compiled = torch.compile(snn, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), snn(x))


def test_it_learns():
    """What four bits can: a loss that falls."""
    torch.manual_seed(0)
    ann = cnn()
    quantise(ann, 4)
    x, y = inputs(32), torch.arange(32) % 5
    snn = convert(ann, 8, example=x)
    optimizer = torch.optim.Adam(snn.parameters(), 0.01)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(snn(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_bits_can_be_changed():
    layer = nn.Linear(30, 4)
    quantise(layer, 2)
    quantise(layer, 6)
    assert quantiser(layer).bits == 6
    assert len(layer.parametrizations.weight) == 1
    assert 3 < len(layer.weight[0].unique()) <= 63
    assert list(layer.state_dict()) in (["weight", "bias"], ["bias", "weight"])


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 9, 0, -4])
def test_bits_out_of_range(bits):
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=f"quantise: bits must be from 2 to 8, or 16, got {bits}"):
        quantise(layer, bits)
    with pytest.raises(ValueError, match=f"WeightQuantiser: bits must be from 2 to 8, or 16, got {bits}"):
        WeightQuantiser(bits)
    assert type(layer) is nn.Linear


def test_bad_arguments():
    for bits in (4.0, True, "4"):
        with pytest.raises(TypeError, match="quantise: bits must be an int"):
            quantise(nn.Linear(3, 2), bits)
    with pytest.raises(TypeError, match=r"quantise: model must be an nn\.Module, got Tensor"):
        quantise(torch.zeros(3), 4)
    with pytest.raises(TypeError, match=r"unquantise: model must be an nn\.Module, got Tensor"):
        unquantise(torch.zeros(3))
    with pytest.raises(ValueError, match="quantise: model must have weight layers, got a ReLU without any"):
        quantise(nn.ReLU(), 4)
    for weights in (8, "int4", "float"):
        with pytest.raises(ValueError, match=f"convert: weights must be None, 'int8' or 'int16', got {weights!r}"):
            convert(cnn(), 8, weights=weights)
    message = r"convert: ann must have parameters of float32 with weights='int8', got float64 in 0\.weight"
    with pytest.raises(TypeError, match=message):
        convert(cnn().double(), 8, weights="int8")


@pytest.mark.parametrize("compute", [prune.identity, nn.utils.spectral_norm], ids=["prune", "spectral_norm"])
def test_weights_that_hooks_compute_are_refused(compute):
    """Before anything has changed."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    compute(net[2], "weight")
    message = "quantise: model must have weights that are parameters, got one that a hook computes in layer 2; remove "
    with pytest.raises(ValueError, match=message):
        quantise(net, 8)
    assert not any(quantiser(layer) for layer in (net[0], net[2]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_weights_that_are_not_finite(bits, value):
    ann = cnn()
    with torch.no_grad():
        ann[3].weight[1, 2, 0, 0] = value
    with pytest.raises(ValueError, match=f"quantise: model must have finite weights, got {value} in layer 3"):
        quantise(ann, bits)
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, value)
    with pytest.raises(ValueError, match=f"quantise: model must have finite weights, got {value} in layer Linear"):
        quantise(layer, bits)
    for name in ("int8", "int16"):
        with pytest.raises(ValueError, match=f"convert: ann must have finite weights, got {value} in layer 3"):
            convert(ann, 8, weights=name)
    assert not any(quantiser(ann[i]) for i in (0, 3, 7))
    with pytest.raises(ValueError, match=f"WeightQuantiser: weight must be finite, got {value}"):
        WeightQuantiser(bits).integers(ann[3].weight)
    with pytest.raises((ValueError, RuntimeError), match="weight must be finite"):
        WeightQuantiser(bits).kernel(ann[3].weight)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("name", ["a", "b", "join"])
def test_weights_that_are_no_longer_finite(bits, value, name):
    """Of a layer behind Encode, one that takes spikes, and one in a join: rounded, NaN would look like a zero."""
    net = nn.Module()
    net.encode, net.a, net.b = Encode(4), TandemLinear(3, 4), TandemLinear(4, 4)
    net.join, net.decode = TandemAdd(TandemLinear(4, 4), nn.Identity()), Decode()
    calls = {"encode": ("x",), "a": ("encode",), "b": ("a",), "join": ("b", "a"), "decode": ("join",)}
    net = graph_of(net, calls)
    quantise(net, bits)
    layer = net.join.branches[0] if name == "join" else net.get_submodule(name)
    with torch.no_grad():
        layer.parametrizations.weight.original[1, 2] = value
    with pytest.raises((ValueError, RuntimeError), match=r"(quantise_weight|Quantiser|Linear): weight must be finite"):
        net(torch.ones(2, 3))
    with pytest.raises(ValueError, match=f"freeze: '{name}': TandemLinear: weight must be finite, got {value}"):
        freeze(net)


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_channels_of_zeros(bits, tmp_path):
    net = nn.Sequential(Encode(4), TandemLinear(3, 6, norm="batch", neuron=IF(0.1)), TandemLinear(6, 4, neuron=IF(0.1)))
    net.eval()
    with torch.no_grad():
        net[1].weight[2] = 0
        net[1].norm.weight[3] = 0  # a gain, and with it the scale of a frozen layer, may be zero or negative
        net[1].norm.weight[4] = -1
        net[2].weight.zero_()
    quantise(net, bits)
    x = torch.ones(2, 3)
    freeze(net).save(tmp_path / "net")
    frozen = FrozenNetwork.load(tmp_path / "net")
    same(frozen(x).bits, net(x).bits)
    assert not net[1].weight[2].any()
    net.train()(x).count.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_weights_that_cannot_be_quantised():
    half = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).half())
    message = r"quantise: model must have weights of float32 or float64, got torch\.float16 in layer 1"
    with pytest.raises(TypeError, match=message):
        quantise(half, 8)
    empty = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2))
    empty[1].weight = nn.Parameter(torch.empty(0, 3))
    message = r"quantise: model must have weights that are not empty, got \[0, 3\] in layer 1"
    with pytest.raises(ValueError, match=message):
        quantise(empty, 8)
    assert type(half[0]) is type(empty[0]) is nn.Linear
    for bits in (8.0, True, [8], None):
        with pytest.raises(TypeError, match="quantise_weight: bits must be an int, got"):
            ops.quantise_weight(torch.ones(2, 3), bits)
    for bits in (2, 9, 32):
        with pytest.raises(ValueError, match=f"quantise_weight: bits must be 8 or 16, got {bits}"):
            ops.quantise_weight(torch.ones(2, 3), bits)


def test_other_parametrisations_are_refused():
    ann = cnn()
    nn.utils.parametrizations.weight_norm(ann[3])
    with pytest.raises(
        ValueError, match="quantise: model must have no other parametrisations of weights, got one in layer 3"
    ):
        quantise(ann, 4)
    assert quantiser(ann[0]) is None
    with pytest.raises(ValueError, match="convert: ann must have no other parametrisations of weights, got one in"):
        convert(ann, 8, weights="int8")
    assert quantiser(ann[0]) is None
    assert convert(ann, 8, example=inputs())(inputs()).isfinite().all()
