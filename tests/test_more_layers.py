"""Convolutions in one dimension and transposed, padding modes and dropout, against plain PyTorch."""

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import ENGINES, dyadic, every_path, same, train, views
from layer_cases import CONVOLUTIONS, PLAIN, every
from layer_cases import named as layer_case
from layer_twins import Everything, agree, fronts, twins
from pairwise import pairs
from tandem_cuda import Encode, SpikeTrain, ops, synops
from tandem_cuda import reference as ref

every_convolution = every(CONVOLUTIONS)
every_layer = every((*CONVOLUTIONS, *PLAIN))

# --- convolutions ----------------------------------------------------------------------------------------------------


@every_convolution
@pytest.mark.parametrize(("time_steps", "batch"), [(1, 3), (9, 2), (17, 0)])
def test_convolutions(case, time_steps, batch):
    ours, theirs = twins(case, time_steps)
    spikes = train(time_steps, batch, *case.samples[0], seed=0, rate=0.4).double()
    agree(ours, theirs, *([x] for x in fronts(spikes)))


@every_layer
@pytest.mark.parametrize("engine", ENGINES)
def test_norm_and_amplitude(case, engine):
    ours, theirs = twins(case, 8, norm="batch")
    ours.engine = engine
    spikes = train(8, 3, *case.samples[0], seed=0, rate=0.4).double()
    agree(ours, theirs, *([x] for x in fronts(spikes, 0.5)))


@pairs(case=CONVOLUTIONS, mode=["constant", "impulse"], norm=[None, "batch"])
def test_convolutions_of_real_input(case, mode, norm):
    ours, theirs = twins(case, 8, norm=norm)
    x = dyadic(3, *case.samples[0], seed=5, scale=8, span=3, dtype=torch.float64)
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
def test_training(case, amplitude):
    """Batch statistics are rounded, in float64 too little to move a spike."""
    ours, theirs = twins(case, 8, norm="batch")
    for module in (ours, theirs):
        module.norm.eps = 1e-5
        module.train()
    spikes = train(8, 4, *case.samples[0], seed=0, rate=0.4).double()
    x, x_ref = fronts(spikes, amplitude)
    results = []
    for module, inputs in ((ours, x), (theirs, x_ref)):
        y = module(inputs)
        grads = torch.autograd.grad(y.count.square().sum(), [inputs.count, *module.parameters()])
        results.append((y.to_dense(), *grads, *module.norm.buffers()))
    same(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-9, atol=1e-9)


@every_convolution
def test_convolutions_of_any_memory(case):
    ours, theirs = twins(case, 9, torch.float32)
    spikes = train(9, 2, *case.samples[0], seed=0, rate=0.4).float()
    want = theirs(ref.DenseTrain(spikes)).spikes
    for bits in views(ops.pack_spikes(spikes)):
        same(ours(SpikeTrain(bits, 9)).to_dense(), want)


def test_new_weights_are_noticed():
    """The packed weights of a layer whose kernel is made from its weights are made again when these change."""
    for name in ("1d", "transposed stride"):
        case = layer_case(name)
        ours, theirs = twins(case, 8)
        x, x_ref = fronts(train(8, 2, *case.samples[0], seed=0, rate=0.4).double())
        for _ in range(2):
            with torch.no_grad():
                same(ours(x).to_dense(), theirs(x_ref).spikes)
                for module in (ours, theirs):
                    module.weight.neg_()


# --- errors ----------------------------------------------------------------------------------------------------------


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
    layers = twins(layer_case("linear"), 8, norm=norm)
    drops = tandem_cuda.TandemDropout(0.5), ref.TandemDropout(0.5)
    x, x_ref = fronts(spikes)
    torch.manual_seed(0)
    dropped = drops[0](x)
    torch.manual_seed(0)
    dropped_ref = drops[1](x_ref)
    agree(*layers, [dropped], [dropped_ref])
    same(tandem_cuda.Decode()(dropped), 2 * dropped.count)
    again = SpikeTrain.from_dense(dropped.to_dense()).replace(amplitude=2.0)
    with torch.no_grad():
        same(layers[0](again).bits, layers[0](dropped).bits)


# --- life in torch ---------------------------------------------------------------------------------------------------


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
