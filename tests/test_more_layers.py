"""Convolutions in one dimension and transposed, padding modes, pooling, dropout and joins, against plain PyTorch."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import ENGINES, dyadic, every_path, generator, same, slow, train, views
from neurons import EVERY_KIND
from tandem_cuda import IF, LIF, Encode, SpikeTrain, ops, synops
from tandem_cuda import reference as ref

# (class, arguments, keywords, shape of a sample)
CONVOLUTIONS = {
    "1d": ("TandemConv1d", (3, 5, 3), {}, (3, 7)),
    "1d odd": ("TandemConv1d", (4, 6, 4), {"stride": 3, "padding": 2, "dilation": 2, "groups": 2}, (4, 17)),
    "1d same": ("TandemConv1d", (3, 5, 4), {"padding": "same", "bias": False}, (3, 9)),
    "1d reflect": ("TandemConv1d", (3, 5, 3), {"padding": 2, "padding_mode": "reflect"}, (3, 5)),
    "1d wide": ("TandemConv1d", (70, 66, 1), {}, (70, 1)),
    "transposed": ("TandemConvTranspose2d", (3, 5, 3), {}, (3, 4, 5)),
    "transposed stride": (
        "TandemConvTranspose2d",
        (4, 6, (3, 4)),
        {"stride": (2, 3), "padding": (1, 2), "output_padding": (1, 0), "groups": 2},
        (4, 5, 3),
    ),
    "transposed cropped": ("TandemConvTranspose2d", (3, 5, 2), {"padding": 3, "stride": 2, "bias": False}, (3, 6, 7)),
    "transposed dilated": ("TandemConvTranspose2d", (3, 4, 2), {"dilation": (2, 3), "stride": 2}, (3, 1, 2)),
    "transposed depthwise": ("TandemConvTranspose2d", (5, 10, 2), {"stride": 2, "groups": 5}, (5, 3, 3)),
    **{
        f"{mode} {padding}": (
            "TandemConv2d",
            (3, 5, (3, 2)),
            {"padding": padding, "padding_mode": mode, "stride": 1 if padding == "same" else (1, 2)},
            (3, 4, 5),
        )
        for mode in ("circular", "reflect", "replicate")
        for padding in ((2, 3), "same")
    },
}
every_convolution = pytest.mark.parametrize(
    ("name", "arguments", "named", "sample"), CONVOLUTIONS.values(), ids=CONVOLUTIONS
)
LAYERS = {
    **CONVOLUTIONS,
    "two-dimensional": ("TandemConv2d", (3, 5, 3), {"padding": 1}, (3, 4, 5)),
    "linear": ("TandemLinear", (12, 30), {}, (12,)),
    "linear to few": ("TandemLinear", (12, 5), {"bias": False}, (12,)),
}
every_layer = pytest.mark.parametrize(("name", "arguments", "named", "sample"), LAYERS.values(), ids=LAYERS)


def exact(layer, time_steps):
    """Dyadic parameters, also after norm is folded, whose share per time step is dyadic."""
    with torch.no_grad():
        for i, module in enumerate(layer.modules()):
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                module.weight.copy_(dyadic(*module.weight.shape, seed=10 * i))
                if module.bias is not None:
                    module.bias.copy_(time_steps * dyadic(len(module.bias), seed=10 * i + 1) / 4)
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                power = torch.randint(-1, 2, module.weight.shape, generator=generator(10 * i + 2))
                module.eps = 0.0
                module.running_var.copy_(4.0**power)
                module.weight.copy_(2.0**power * (1 - 2 * (power == 0).int()))
                module.running_mean.copy_(time_steps * dyadic(len(power), seed=10 * i + 3))
                module.bias.copy_(time_steps * dyadic(len(power), seed=10 * i + 4) / 4)
    return layer


def twins(name, arguments, named, time_steps, dtype=torch.float64):
    """The same exact layer of both packages."""
    ours = exact(getattr(tandem_cuda, name)(*arguments, **named, dtype=dtype).eval(), time_steps)
    theirs = getattr(ref, name)(*arguments, **named, dtype=dtype).eval()
    theirs.load_state_dict(ours.state_dict())
    if ours.norm is not None:
        theirs.norm.eps = 0.0
    return ours, theirs


def fronts(spikes, amplitude=1.0):
    """The same train with a differentiable count for both packages."""
    count = spikes.sum(0)
    ours = SpikeTrain(ops.pack_spikes(spikes), len(spikes), count.clone().requires_grad_(), amplitude=amplitude)
    return ours, ref.DenseTrain(spikes, count.clone().requires_grad_(), amplitude)


def agree(ours, theirs, inputs, inputs_ref, *, tolerance=None):
    """The same spikes and counts on every path, with and without gradients; and the same gradients."""
    want = theirs(*inputs_ref)
    assert len(want.spikes) == 1 or want.spikes.numel() == 0 or want.spikes.any()
    for path, got in every_path(ours, *inputs):
        same((got.to_dense(), got.count.detach()), (want.spikes, want.count.detach()), path)
        assert got.amplitude == want.amplitude
    with torch.no_grad():
        for _ in range(2):  # what is kept from the first serves the second
            same(ours(*inputs).to_dense(), want.spikes)
    seed_grad = dyadic(*want.shape, seed=3, dtype=want.count.dtype)
    leaves = [
        ([x.count for x in trains] + list(module.parameters()))
        for trains, module in ((inputs, ours), (inputs_ref, theirs))
    ]
    got = torch.autograd.grad(ours(*inputs).count, leaves[0], seed_grad)
    expected = torch.autograd.grad(want.count, leaves[1], seed_grad)
    if tolerance is None:
        same(got, expected)
    else:
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    return got


# --- convolutions ----------------------------------------------------------------------------------------------------


@every_convolution
@pytest.mark.parametrize(("time_steps", "batch"), [(1, 3), (9, 2), (17, 0)])
def test_convolutions(name, arguments, named, sample, time_steps, batch):
    ours, theirs = twins(name, arguments, named, time_steps)
    spikes = train(time_steps, batch, *sample, seed=0, rate=0.4).double()
    agree(ours, theirs, *([x] for x in fronts(spikes)))


@every_layer
@pytest.mark.parametrize("engine", ENGINES)
def test_norm_and_amplitude(name, arguments, named, sample, engine):
    ours, theirs = twins(name, arguments, {**named, "norm": "batch"}, 8)
    ours.engine = engine
    spikes = train(8, 3, *sample, seed=0, rate=0.4).double()
    agree(ours, theirs, *([x] for x in fronts(spikes, 0.5)))


@every_convolution
@pytest.mark.parametrize("mode", ["constant", "impulse"])
@pytest.mark.parametrize("norm", [None, "batch"])
def test_convolutions_of_real_input(name, arguments, named, sample, mode, norm):
    ours, theirs = twins(name, arguments, {**named, "norm": norm}, 8)
    x = dyadic(3, *sample, seed=5, scale=8, span=3, dtype=torch.float64)
    want = theirs(ref.Encode(8, mode)(x))
    for path, got in every_path(ours, Encode(8, mode)(x)):
        same(got.to_dense(), want.spikes, path)
    seed_grad = dyadic(*want.shape, seed=3, dtype=torch.float64)
    got, expected = (
        torch.autograd.grad(y.count, list(module.parameters()), seed_grad)
        for y, module in ((ours(Encode(8, mode)(x)), ours), (want, theirs))
    )
    same(got, expected)


@every_layer
@pytest.mark.parametrize("amplitude", [1.0, 0.5])
def test_training(name, arguments, named, sample, amplitude):
    """Batch statistics are rounded, in float64 too little to move a spike."""
    ours, theirs = twins(name, arguments, {**named, "norm": "batch"}, 8)
    for module in (ours, theirs):
        module.norm.eps = 1e-5
        module.train()
    spikes = train(8, 4, *sample, seed=0, rate=0.4).double()
    x, x_ref = fronts(spikes, amplitude)
    results = []
    for module, inputs in ((ours, x), (theirs, x_ref)):
        y = module(inputs)
        grads = torch.autograd.grad(y.count.square().sum(), [inputs.count, *module.parameters()])
        results.append((y.to_dense(), *grads, *module.norm.buffers()))
    same(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-9, atol=1e-9)


@every_convolution
def test_convolutions_of_any_memory(name, arguments, named, sample):
    ours, theirs = twins(name, arguments, named, 9, torch.float32)
    spikes = train(9, 2, *sample, seed=0, rate=0.4).float()
    want = theirs(ref.DenseTrain(spikes)).spikes
    for bits in views(ops.pack_spikes(spikes)):
        same(ours(SpikeTrain(bits, 9)).to_dense(), want)


PLAIN = [
    (tandem_cuda.TandemConv1d, nn.Conv1d, (4, 6, 3)),
    (tandem_cuda.TandemConvTranspose2d, nn.ConvTranspose2d, (4, 6, 3)),
]


@pytest.mark.parametrize(("tandem", "plain", "arguments"), PLAIN)
def test_drop_in(tandem, plain, arguments):
    ours, theirs = (list(inspect.signature(c).parameters.values()) for c in (tandem, plain))
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    assert [p.name for p in ours[len(theirs) :]] == ["norm", "neuron", "engine"]
    theirs = plain(*arguments)
    ours = tandem(*arguments)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    normed = tandem(*arguments, norm="batch", neuron=LIF(), dtype=torch.float64)
    assert normed.norm.num_features == 6
    assert normed.norm.weight.dtype == torch.float64
    assert "neuron=LIF" in repr(normed)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(normed)))
    same(tuple(copied.parameters()), tuple(normed.parameters()))


def test_new_weights_are_noticed():
    """The packed weights of a layer whose kernel is made from its weights are made again when these change."""
    for name in ("1d", "transposed stride"):
        layer, arguments, named, sample = CONVOLUTIONS[name]
        ours, theirs = twins(layer, arguments, named, 8)
        x, x_ref = fronts(train(8, 2, *sample, seed=0, rate=0.4).double())
        for _ in range(2):
            with torch.no_grad():
                same(ours(x).to_dense(), theirs(x_ref).spikes)
                for module in (ours, theirs):
                    module.weight.neg_()


# --- pooling ---------------------------------------------------------------------------------------------------------

AVERAGES = {
    "2": ("SpikingAvgPool2d", (2,), {}),
    "3x2": ("SpikingAvgPool2d", ((3, 2), (2, 1)), {"threshold": 0.5}),
    "padded": ("SpikingAvgPool2d", (3, 2, 1), {}),
    "ceil": ("SpikingAvgPool2d", (3, 2, 1), {"ceil_mode": True}),
    "inside": ("SpikingAvgPool2d", (3, 2, 1), {"count_include_pad": False}),
    "ceil inside": ("SpikingAvgPool2d", (2, 3), {"ceil_mode": True, "count_include_pad": False}),
    "override": ("SpikingAvgPool2d", (3, 2), {"divisor_override": 2, "ceil_mode": True}),
    "one window of many": ("SpikingAvgPool2d", (2, 8), {}),
    "one row of windows": ("SpikingAvgPool2d", (2, (8, 2), 1), {}),
    "global": ("SpikingAdaptiveAvgPool2d", (1,), {}),
    "adaptive": ("SpikingAdaptiveAvgPool2d", ((2, 3),), {}),
    "same height": ("SpikingAdaptiveAvgPool2d", ((None, 3),), {}),
    "larger": ("SpikingAdaptiveAvgPool2d", ((9, 4),), {"threshold": 0.25}),
}
MAXIMA = {
    "2": ("SpikingMaxPool2d", (2,), {}),
    "3 s2 p1": ("SpikingMaxPool2d", (3, 2, 1), {}),
    "ceil": ("SpikingMaxPool2d", ((3, 2), 2), {"ceil_mode": True}),
    "dilated": ("SpikingMaxPool2d", ((2, 3), 1, 1, (3, 2)), {}),
    "ceil padded": ("SpikingMaxPool2d", (2, 3, 1), {"ceil_mode": True}),
}


@pytest.mark.parametrize(("name", "arguments", "named"), [*AVERAGES.values(), *MAXIMA.values()])
@pytest.mark.parametrize(("time_steps", "batch", "size"), [(1, 2, (6, 6)), (9, 3, (7, 5)), (17, 0, (5, 8))])
def test_pooling(name, arguments, named, time_steps, batch, size):
    ours, theirs = (getattr(package, name)(*arguments, **named) for package in (tandem_cuda, ref))
    spikes = train(time_steps, batch, 3, *size, seed=1, rate=0.6).float()
    agree(ours, theirs, *([x] for x in fronts(spikes, 0.5)), tolerance=1e-6)


@pytest.mark.parametrize(("name", "arguments", "named"), [*AVERAGES.values(), *MAXIMA.values()])
def test_pooling_has_the_gradient_of_torch(name, arguments, named):
    pool = getattr(tandem_cuda, name)(*arguments, **named)
    plain = getattr(nn, name.removeprefix("Spiking"))
    plain = plain(*arguments, **{k: v for k, v in named.items() if k != "threshold"})
    x, x_ref = fronts(train(9, 2, 3, 7, 8, seed=2, rate=0.3).double())
    out = plain(x_ref.count) / named.get("threshold", 1.0)
    seed_grad = torch.randn(out.shape, generator=generator(1), dtype=torch.float64)
    got = torch.autograd.grad(pool(x).count, x.count, seed_grad)
    same(got, torch.autograd.grad(out, x_ref.count, seed_grad))


def test_average_counts_whole_thirds():
    """Nine steps of one spike in a window of three: three spikes, which sums of rounded thirds would not give."""
    spikes = torch.zeros(9, 1, 1, 1, 3)
    spikes[..., 1] = 1
    y = tandem_cuda.SpikingAvgPool2d((1, 3))(SpikeTrain.from_dense(spikes))
    assert y.to_dense().flatten().tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 1]


def test_maximum_of_neurons_that_take_turns():
    """The pooled neuron follows the one that leads; the gradient goes to the most active."""
    spikes = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]]).float().view(5, 1, 1, 1, 2)
    x, _ = fronts(spikes)
    y = tandem_cuda.SpikingMaxPool2d((1, 2))(x)
    assert y.to_dense().flatten().tolist() == [1, 1, 0, 0, 1]
    (grad,) = torch.autograd.grad(y.count.sum(), x.count)
    assert grad.flatten().tolist() == [0, 1]


@pytest.mark.parametrize(("name", "arguments", "named"), MAXIMA.values())
@pytest.mark.parametrize("time_steps", [1, 8, 9, 17, 300])
def test_maximum_counts_are_those_of_the_ann(name, arguments, named, time_steps):
    """Value and gradient, ties and all; in training as in eval mode."""
    pool, plain = getattr(tandem_cuda, name)(*arguments, **named), nn.MaxPool2d(*arguments, **named)
    for rate in (0.1, 0.5, 0.9):
        x, x_ref = fronts(train(time_steps, 2, 3, 7, 8, seed=time_steps, rate=rate).double())
        y, want = pool(x), plain(x_ref.count)
        same(y.count.detach(), want.detach())
        same(SpikeTrain(y.bits, time_steps, dtype=torch.float64).count, want.detach())
        seed_grad = torch.randn(want.shape, generator=generator(1), dtype=torch.float64)
        same(torch.autograd.grad(y.count, x.count, seed_grad), torch.autograd.grad(want, x_ref.count, seed_grad))
        with torch.no_grad():
            same(pool.eval()(SpikeTrain(x.bits, time_steps, dtype=torch.float64)).count, want.detach())


def test_maximum_of_a_window_in_the_padding():
    """Where torch finds minus infinity, nothing spikes, and the gradient stays finite."""
    x, _ = fronts(torch.ones(9, 1, 1, 2, 1))
    y = tandem_cuda.SpikingMaxPool2d((2, 1), 1, (1, 0), (3, 1))(x)
    assert y.count.tolist() == [[[[0]]]]
    (grad,) = torch.autograd.grad(y.count.sum(), x.count)
    assert grad.tolist() == [[[[0], [0]]]]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tandem_cuda.SpikingAvgPool2d(2, threshold=0.0), ValueError, "threshold must be positive"),
        (lambda: tandem_cuda.SpikingAvgPool2d(2, threshold="1"), TypeError, "threshold must be a number"),
        (lambda: tandem_cuda.SpikingAvgPool2d(2, engine="fast"), ValueError, "engine must be one of"),
        (lambda: tandem_cuda.SpikingMaxPool2d(2, return_indices=True), ValueError, "return_indices must be False"),
        (
            lambda: tandem_cuda.SpikingMaxPool2d(2)(torch.rand(1, 1, 4, 4)),
            TypeError,
            "must be a SpikeTrain, got Tensor",
        ),
        (lambda: tandem_cuda.SpikingMaxPool2d(5)(fronts(torch.ones(2, 1, 1, 3, 3))[0]), ValueError, "larger than"),
        (
            lambda: tandem_cuda.SpikingMaxPool2d(2)(fronts(torch.ones(2, 1, 3))[0]),
            ValueError,
            r"must be \[N, C, H, W\]",
        ),
        (lambda: tandem_cuda.TandemDropout(0.5)(torch.ones(2)), TypeError, "must be a SpikeTrain, got Tensor"),
        (lambda: tandem_cuda.TandemDropout(1.5), ValueError, "between 0 and 1"),
        (lambda: tandem_cuda.TandemDropout2d(0.5)(fronts(torch.ones(2, 1, 3))[0]), ValueError, r"\[N, C, H, W\]"),
        (lambda: IF(amplitude=0.0), ValueError, "amplitude must be positive"),
        (lambda: IF(amplitude="1"), TypeError, "amplitude must be a number"),
        (lambda: SpikeTrain(torch.zeros(1, 1, 1, dtype=torch.uint8), 1, amplitude=-1), ValueError, "amplitude must be"),
        (lambda: tandem_cuda.TandemAdd(nn.Identity()), ValueError, "two or more, got 1"),
        (lambda: tandem_cuda.TandemAdd(nn.Identity(), nn.ReLU()), TypeError, "got ReLU"),
        (
            lambda: tandem_cuda.TandemAdd(nn.Identity(), nn.Identity())(torch.ones(1)),
            ValueError,
            "2, one per branch, got 1",
        ),
        (
            lambda: tandem_cuda.TandemConv2d(1, 1, 3, padding=3, padding_mode="reflect")(
                fronts(torch.ones(1, 1, 1, 3, 3))[0]
            ),
            ValueError,
            "padding must be at most 2 for 3 pixels, got 3",
        ),
        (
            lambda: tandem_cuda.TandemConvTranspose2d(1, 1, 1, padding=3)(fronts(torch.ones(1, 1, 1, 5, 8))[0]),
            ValueError,
            "padding must leave at least one of 5 rows, but removes 6",
        ),
        (lambda: tandem_cuda.TandemConv1d(2, 1, 3)(fronts(torch.ones(1, 1, 1, 3))[0]), ValueError, r"\[N, 2, L\]"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TandemDropout", "TandemDropout2d"])
@pytest.mark.parametrize("p", [0.0, 0.5, 0.75, 1.0])
def test_dropout(name, p):
    spikes = train(9, 4, 6, 5, 3, seed=0, rate=0.5).float()
    modules = getattr(tandem_cuda, name)(p), getattr(ref, name)(p)
    results = []
    for module, x in zip(modules, fronts(spikes, 0.5), strict=True):
        torch.manual_seed(0)
        y = module(x)
        (grad,) = torch.autograd.grad(y.count.sum(), x.count)
        results.append((y.to_dense(), y.count.detach(), grad, torch.tensor(y.amplitude)))
    same(*results)
    dense, count, grad, amplitude = results[0]
    same(dense.sum(0), count)  # one mask for spikes and count
    assert amplitude == (0.5 if p == 1 else 0.5 / (1 - p))
    assert abs(grad.mean().item() - (1 - p)) < 0.35
    if name == "TandemDropout2d":
        assert all(len(channel.unique()) == 1 for sample in grad for channel in sample)
    x = fronts(spikes)[0]
    assert modules[0].eval()(x) is x


@pytest.mark.parametrize("norm", [None, "batch"])
def test_layer_behind_dropout(norm):
    """Its currents and its pre-activation are those of the scaled input; so is what Decode hands on."""
    spikes = train(8, 5, 12, seed=0, rate=0.5).double()
    layers = twins("TandemLinear", (12, 7), {"norm": norm}, 8)
    drops = tandem_cuda.TandemDropout(0.5), ref.TandemDropout(0.5)
    x, x_ref = fronts(spikes)
    torch.manual_seed(0)
    dropped = drops[0](x)
    torch.manual_seed(0)
    dropped_ref = drops[1](x_ref)
    agree(*layers, [dropped], [dropped_ref])
    same(tandem_cuda.Decode()(dropped), 2 * dropped.count)
    again = SpikeTrain.from_dense(dropped.to_dense())
    again.amplitude = 2.0
    with torch.no_grad():
        same(layers[0](again).bits, layers[0](dropped).bits)


# --- joins -----------------------------------------------------------------------------------------------------------


def conv(*arguments, name="TandemConv2d", **named):
    return name, arguments, named


IDENTITY = ("Identity", (), {})
JOINS = {
    "identity": ([conv(5, 5, 3, padding=1), IDENTITY], [(5, 6, 7), (5, 6, 7)]),
    "downsample": ([conv(6, 6, 3, padding=1), conv(4, 6, 1, stride=2, bias=False)], [(6, 3, 4), (4, 6, 8)]),
    "odd downsample": ([conv(6, 6, 3, padding=1), conv(4, 6, 1, stride=2)], [(6, 4, 3), (4, 7, 5)]),
    "bottleneck": ([conv(4, 8, 1), conv(6, 8, 1, stride=2)], [(4, 3, 3), (6, 6, 5)]),
    "two kernels": ([conv(3, 5, 3, padding=1), conv(4, 5, 5, padding=2)], [(3, 6, 6), (4, 6, 6)]),
    "strided": ([conv(3, 5, 3, stride=2, padding=1), IDENTITY], [(3, 7, 8), (5, 4, 4)]),
    "dilated, grouped": ([conv(4, 6, 3, padding=2, dilation=2, groups=2), conv(3, 6, 2)], [(4, 5, 5), (3, 6, 6)]),
    "three": ([conv(5, 5, 3, padding=1), IDENTITY, conv(2, 5, 1)], [(5, 4, 4), (5, 4, 4), (2, 4, 4)]),
    "valid": ([conv(3, 4, (2, 3)), conv(3, 4, 1, padding=1)], [(3, 5, 6), (3, 2, 2)]),
    "circular": ([conv(3, 3, 3, padding=1, padding_mode="circular"), IDENTITY], [(3, 4, 5), (3, 4, 5)]),
    "transposed": ([conv(3, 4, 2, stride=2, name="TandemConvTranspose2d"), IDENTITY], [(3, 3, 2), (4, 6, 4)]),
    "1d": ([conv(3, 3, 3, padding=1, name="TandemConv1d"), IDENTITY], [(3, 7), (3, 7)]),
    "linear": ([conv(6, 4, name="TandemLinear"), IDENTITY], [(6,), (4,)]),
    "identities": ([IDENTITY, IDENTITY], [(3, 2, 2), (3, 2, 2)]),
}


def join_twins(branches, time_steps, norm, neuron=IF()):
    made = []
    for package in (tandem_cuda, ref):
        layers = []
        for name, arguments, named in branches:
            if name == "Identity":
                layers.append(nn.Identity())
            else:
                layers.append(getattr(package, name)(*arguments, **named, norm=norm, dtype=torch.float64))
        made.append(package.TandemAdd(*layers, neuron=neuron).eval())
    exact(made[0], time_steps)
    made[1].load_state_dict(made[0].state_dict())
    for module in made[1].modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.eps = 0.0
    return made


def join_inputs(samples, time_steps, batch):
    amplitudes = (1.0, 0.5, 2.0)
    pairs = [
        fronts(train(time_steps, batch, *sample, seed=i, rate=0.4).double(), amplitudes[i])
        for i, sample in enumerate(samples)
    ]
    return [list(side) for side in zip(*pairs, strict=True)]


@pytest.mark.parametrize(("branches", "samples"), JOINS.values(), ids=JOINS)
@pytest.mark.parametrize(("time_steps", "batch", "norm"), [(1, 2, None), (9, 3, None), (8, 2, "batch"), (8, 0, None)])
def test_joins(branches, samples, time_steps, batch, norm):
    ours, theirs = join_twins(branches, time_steps, norm)
    agree(ours, theirs, *join_inputs(samples, time_steps, batch))


@pytest.mark.parametrize(
    "neuron", [IF(0.5, clip=True), *(neuron.scaled(0.5) for neuron in EVERY_KIND.values())], ids=str
)
def test_join_with_other_neurons(neuron):
    branches, samples = JOINS["downsample"]
    ours, theirs = join_twins(branches, 8, "batch", neuron)
    agree(ours, theirs, *join_inputs(samples, 8, 3), tolerance=1e-9)


@pytest.mark.parametrize(("branches", "samples"), [JOINS["identity"], JOINS["downsample"]])
def test_join_in_training(branches, samples):
    """Each branch's norm has the statistics of its own pre-activation, moved once."""
    ours, theirs = join_twins(branches, 8, "batch")
    results = []
    for module, inputs in zip((ours, theirs), join_inputs(samples, 8, 4), strict=True):
        module.train()
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eps = 1e-5
        y = module(*inputs)
        leaves = [*(x.count for x in inputs), *module.parameters()]
        results.append((y.to_dense(), *torch.autograd.grad(y.count.square().sum(), leaves), *module.buffers()))
    same(results[0][0], results[1][0])
    assert results[0][0].any()
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-9, atol=1e-9)


def test_join_notices_changes():
    branches, samples = JOINS["downsample"]
    ours, theirs = join_twins(branches, 8, "batch")
    inputs, inputs_ref = join_inputs(samples, 8, 3)
    seen = set()
    for name, _ in ours.named_parameters():
        with torch.no_grad():
            got = ours(*inputs).to_dense()
            same(got, theirs(*inputs_ref).spikes)
            seen.add(got.sum().item())
            for module in (ours, theirs):
                module.get_parameter(name).neg_()
    assert len(seen) > 2
    copied = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
    with torch.no_grad():
        same(copied(*inputs).bits, ours(*inputs).bits)


def test_join_refuses():
    x, y = (fronts(train(8, 2, 3, size, 4, seed=0).double())[0] for size in (4, 5))
    layer = tandem_cuda.TandemConv2d(3, 3, 3, padding=1, dtype=torch.float64)
    strided = tandem_cuda.TandemConv2d(3, 3, 3, padding=1, stride=2, dtype=torch.float64)
    with pytest.raises(ValueError, match="branches must agree in shape"):
        tandem_cuda.TandemAdd(layer, nn.Identity())(x, y)
    big = fronts(train(8, 2, 3, 8, 8, seed=0).double())[0]
    with pytest.raises(ValueError, match="must have one stride"):
        tandem_cuda.TandemAdd(layer, strided)(x, big)
    other = fronts(train(9, 2, 3, 4, 4, seed=0).double())[0]
    with pytest.raises(ValueError, match=r"same number of time steps, got \[8, 9\]"):
        tandem_cuda.TandemAdd(layer, nn.Identity())(x, other)
    with pytest.raises(TypeError, match="inputs must be SpikeTrains, got Tensor"):
        tandem_cuda.TandemAdd(layer, nn.Identity())(x, torch.ones(1))


# --- life in torch ---------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """One of each."""

    def __init__(self):
        super().__init__()
        self.encode = Encode(8)
        self.first = tandem_cuda.TandemConv2d(2, 6, 3, padding=1, padding_mode="circular", norm="batch")
        self.max = tandem_cuda.SpikingMaxPool2d(3, 2, 1)
        self.drop = tandem_cuda.TandemDropout2d(0.25)
        self.second = tandem_cuda.TandemConv2d(6, 6, 3, padding=1, norm="batch")
        self.join = tandem_cuda.TandemAdd(tandem_cuda.TandemConv2d(6, 6, 3, padding=1, norm="batch"), nn.Identity())
        self.up = tandem_cuda.TandemConvTranspose2d(6, 4, 2, stride=2, norm="batch")
        self.mean = tandem_cuda.SpikingAdaptiveAvgPool2d((3, 2), threshold=0.5)
        self.line = tandem_cuda.TandemConv1d(4, 5, 3)
        self.decode = tandem_cuda.Decode()

    def forward(self, x):
        x = self.drop(self.max(self.first(self.encode(x))))
        x = self.mean(self.up(self.join(self.second(x), x)))
        return self.decode(self.line(x.flatten(2)))


@pytest.mark.parametrize("training", [True, slow(False)])
@pytest.mark.filterwarnings("error:tandem_cuda")
def test_compile(training):
    """One graph, forward and backward, with the results of eager mode."""
    torch.compiler.reset()
    torch.manual_seed(0)
    net = Everything().train(training)
    net.drop.p = 0.0
    other = copy.deepcopy(net)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    x = 3 * torch.rand(3, 2, 8, 8, generator=generator(0))
    outputs = net(x), compiled(x)
    same(outputs[1].detach(), outputs[0].detach())
    grads = [
        torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in zip(outputs, (net, other), strict=True)
    ]
    torch.testing.assert_close(grads[1], grads[0])
    assert all(g.isfinite().all() for g in grads[0])


def test_synops_of_every_layer():
    torch.manual_seed(0)
    net = Everything()
    rows = {row.name: row for row in synops(net, torch.rand(3, 2, 8, 8))}
    assert list(rows) == ["first", "second", "join", "up", "line"]
    # Each spike reaches what it reaches: against the products with ones, of which the bias of nothing is a part.
    spikes = train(8, 2, 6, 5, 4, seed=0)
    x = SpikeTrain.from_dense(spikes)
    count = x.count.double()
    for layer, plain, named in (
        (tandem_cuda.TandemConvTranspose2d, nn.functional.conv_transpose2d, {"stride": 2, "padding": 1, "groups": 2}),
        (tandem_cuda.TandemConv2d, nn.functional.conv2d, {"stride": 2, "padding": 1, "groups": 3}),
    ):
        module = layer(6, 12, 3, **named)
        ones = torch.ones_like(module.weight, dtype=torch.float64)
        (row,) = synops(nn.Sequential(module), x)
        assert row.synops == plain(count, ones, **named).sum().item() / 2
    circular = tandem_cuda.TandemConv2d(6, 5, 3, padding=1, padding_mode="circular")
    (row,) = synops(nn.Sequential(circular), x)
    assert row.synops == count.sum().item() * 5 * 9 / 2
    up = tandem_cuda.TandemConvTranspose2d(6, 12, 3, stride=2)
    (row,) = synops(nn.Sequential(up), x)
    assert row.macs == 6 * 5 * 4 * 12 * 9
