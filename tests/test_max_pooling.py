"""Networks that max-pool: converted, frozen, in chunks of time, and compiled."""

import pytest
import torch
from torch import nn

import tandem_cuda
from exact import dyadic, generator, planes, same, slow
from freezable import in_chunks
from tandem_cuda import IF, Decode, Encode, FrozenNetwork, SpikeTrain, TandemConv2d, convert, freeze, synops

POOLS = {"2 x 2": (2,), "3 x 3, stride 2": (3, 2)}
every_pool = pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)


def ann(pool):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(*pool),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(*pool),
        nn.Flatten(), nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def images(n=16, seed=1):
    return torch.rand(n, 2, 16, 16, generator=generator(seed))


@every_pool
def test_converted_networks_converge(pool):
    """More time steps, smaller errors, as without max pooling."""
    net, x = ann(pool), images()
    want = net(x).detach()
    errors = []
    snn = convert(net, 16, calibrate=x, percentile=100)
    for time_steps in (16, 128, 1024):
        snn.set_time_steps(time_steps)
        with torch.no_grad():
            errors.append(((snn(x) - want).norm() / want.norm()).item())
    assert errors[0] < 0.5
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 4
    assert errors[2] < 0.01


@every_pool
def test_gradients_converge(pool):
    """With many steps the tandem gradient is the ANN's."""
    net, x = ann(pool), images()
    net(x)
    weights = torch.randn(len(x), 10, generator=generator(2))
    gradients = []
    for twin in (convert(net, 2048, calibrate=x, percentile=100), net):
        grads = torch.autograd.grad((twin(x) * weights).sum(), list(net.parameters()))
        gradients.append(torch.cat([g.flatten() for g in grads]))
    got, want = gradients
    assert (got - want).norm() < 0.02 * want.norm()


def network(time_steps, *, encode=True):
    """Dyadic, so that all sums are exact; its pools have windows that overlap, hang over and are padded."""
    front = [Encode(time_steps)] if encode else []
    net = nn.Sequential(
        *front,
        TandemConv2d(2, 12, 3, padding=1, bias=False, neuron=IF(0.5)),
        tandem_cuda.SpikingMaxPool2d(3, 2, 1),
        TandemConv2d(12, 6, 3, padding=1, bias=False, neuron=IF(0.75)),
        tandem_cuda.SpikingMaxPool2d((3, 2), 2, 1, (1, 2), ceil_mode=True),
        Decode(),
        nn.Flatten(),
        nn.Linear(6 * 3 * 2, 5),
    )
    for i, p in enumerate(net.parameters()):
        p.data = dyadic(*p.shape, seed=i) / 4 + 1 / 64
    return net.eval()


@pytest.mark.parametrize("time_steps", [1, 8, 9, 17, 150])
def test_frozen_networks_and_streams(time_steps, tmp_path):
    net, x = network(time_steps), dyadic(5, 2, 9, 5, seed=3) + 0.5
    frozen = freeze(net)
    with torch.no_grad():
        want = net(x)
    assert want.std(0).min() > 0 or time_steps == 1
    same(frozen(x), want)
    for sizes in ((1,), (8,), (3,), (2, 5, 1, 8), (16, 1), (100,)):
        same(in_chunks(frozen.stream(x), sizes), want, str(sizes))
    frozen.save(tmp_path / "net.safetensors")
    loaded = FrozenNetwork.load(tmp_path / "net.safetensors")
    same(loaded(x), want)
    same(in_chunks(loaded.stream(x), (3,)), want)


def test_events_that_arrive():
    net = network(33, encode=False)
    x = SpikeTrain(planes(33, 4, 2, 9, 5, seed=0), 33)
    with torch.no_grad():
        want = net(x)
    frozen = freeze(net)
    same(frozen(x), want)
    for sizes in ((1,), (8, 3), (20,)):
        same(in_chunks(frozen.stream(time_steps=33), sizes, x), want, str(sizes))


def test_samples_may_leave():
    """What stays is what it is without the others, whether chosen by hand or by `predict`."""
    frozen, x = freeze(network(17)), dyadic(6, 2, 9, 5, seed=3) + 0.5
    want = frozen(x)
    stream = frozen.stream(x)
    stream.advance(3)
    stream.select(torch.tensor([4, 1, 0]))
    stream.advance(7)
    stream.select(torch.tensor([2, 1]))
    same(in_chunks(stream, (4,)), want[[0, 1]])
    for confidence in (0.5, 0.9, 1.0):
        got = frozen.predict(x, confidence)
        history, stream = [], frozen.stream(x)
        while stream.remaining:
            history.append(stream.advance())
        then = torch.stack([history[step - 1][n] for n, step in enumerate(got.steps.tolist())])
        torch.testing.assert_close(got.logits, then, rtol=0, atol=1e-5)  # counts are extrapolated


def test_counts_are_carried_only_while_time_goes_on():
    frozen, x = freeze(network(9)), dyadic(3, 2, 9, 5, seed=3)
    stream = frozen.stream(x)
    stream.advance(4)
    pools = [name for name, layer, _ in frozen.nodes if layer.kind == "SpikingMaxPool2d"]
    assert [stream.state[name][0].dtype for name in pools] == [torch.int32] * 2
    assert [stream.state[name][0].shape for name in pools] == [(3, 12, 9, 5), (3, 6, 5, 3)]
    stream.advance(5)
    assert not {*pools} & {*stream.state}


def test_more_steps_than_are_counted():
    frozen = freeze(network(8, encode=False))
    stream = frozen.stream(time_steps=2**31)
    with pytest.raises(ValueError, match=r"SpikingMaxPool2d: time_steps must be below 2\^31, got 2147483648"):
        stream.advance(SpikeTrain(planes(8, 1, 2, 9, 5, seed=0), 8))


@pytest.mark.parametrize("training", [True, slow(False)])
def test_compile(training):
    """One graph, forward and backward."""
    net, x = network(9).train(training), dyadic(3, 2, 9, 5, seed=3)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    results = []
    for f in (net, compiled):
        y = f(x)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), list(net.parameters()))))
    same(*results)


def test_export():
    frozen, x = freeze(network(9)), dyadic(3, 2, 9, 5, seed=3)
    same(torch.export.export(frozen, (x,)).module()(x), frozen(x))


def test_pooling_costs_no_synops():
    rows = synops(network(9), dyadic(3, 2, 9, 5, seed=3))
    assert {row.name for row in rows}.isdisjoint({"2", "4"})
