"""tandem_norm_count against autograd through torch's batch norm and the reference's tandem_count."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tandem_cuda as tc
from exact import FLOATS, META, SEEDS, every_path, features_last, generator, planes, replace_operator, same, slow, views
from tandem_cuda import ops
from tandem_cuda import reference as ref
from tandem_cuda.nn import all_processes, batch_norm
from tandem_cuda.ops.tandem_norm_count import norm_gradients

OP = norm_gradients
SUMS, GRADIENT = torch.ops.tandem_cuda.tandem_norm_count_sums, torch.ops.tandem_cuda.tandem_norm_count_gradient
EPS = 1e-5
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-4}


def operands(shape, dtype, seed):
    """(bits, product, mean, var, gamma, beta); of the channels some have no or a negative gain."""
    draw = generator(seed)
    product = torch.randn(shape, generator=draw, dtype=dtype) * 3 + 0.5
    gamma, beta = (torch.randn(shape[1], generator=draw, dtype=dtype) for _ in range(2))
    gamma[::5] = 0
    if product.numel() == 0:
        return planes(9, *shape, seed=seed), product, beta, beta.square(), gamma, beta
    var, mean = torch.var_mean(product, [d for d in range(product.dim()) if d != 1], correction=0)
    return planes(9, *shape, seed=seed), product, mean, var, gamma, beta


def units(channels, dtype, seed):
    """Scales of integers."""
    return torch.rand(channels, generator=generator(seed), dtype=dtype) / 64 + 1e-3


def gradients(f, bits, product, mean, var, gamma, beta, seed_grad, **named):
    leaves = [x.detach().requires_grad_() for x in (product, gamma, beta)]
    count = f(bits, leaves[0], mean, var, *leaves[1:], 9, **named)
    return count.detach(), torch.autograd.grad(count, leaves, seed_grad)


@given(
    batch=st.integers(2, 9),
    channels=st.sampled_from((1, 2, 7, 16, 17, 33, 70)),
    spatial=st.lists(st.integers(1, 7), max_size=2),
    dtype=st.sampled_from(FLOATS),
    threshold=st.sampled_from((0.7, 1.0)),
    upper=st.sampled_from((math.inf, 1.5)),
    with_unit=st.booleans(),
    seed=SEEDS,
)
def test_gradient_is_that_of_batch_norm(batch, channels, spatial, dtype, threshold, upper, with_unit, seed):
    shape = (batch, channels, *spatial)
    arguments = operands(shape, dtype, seed)
    seed_grad = torch.randn(shape, generator=generator(seed + 1), dtype=dtype)
    named = {"threshold": threshold, "upper": upper, "unit": units(channels, dtype, seed) if with_unit else None}
    count, want = gradients(ref.tandem_norm_count, *arguments, seed_grad, **named)
    for path, (got_count, got) in every_path(gradients, ops.tandem_norm_count, *arguments, seed_grad, **named):
        same(got_count, count, path)
        for g, w in zip(got, want, strict=True):
            tolerance = TOLERANCES[dtype] * max(1.0, w.abs().max().item())
            torch.testing.assert_close(g, w, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(16, 40, 9, 9), (1300, 5), (3, 129, 17, 16)])
def test_many_rows_on_every_path(shape, dtype):
    """Several chunks of rows: the same bits with any number of threads; the right numbers on every path."""
    arguments = operands(shape, dtype, 0)
    seed_grad = torch.randn(shape, generator=generator(1), dtype=dtype)
    want = gradients(ref.tandem_norm_count, *arguments, seed_grad)[1]
    first = None
    for path, (_, got) in every_path(gradients, ops.tandem_norm_count, *arguments, seed_grad):
        first = got if first is None else first
        same(got, first, path)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=TOLERANCES[dtype] * max(1.0, w.abs().max().item()))


def test_closed_and_open_gates():
    """At 0 and above the bound there is no gradient, whatever arrives; nor for NaN."""
    product = torch.tensor([[-2.0], [0.0], [2.0], [math.nan]])
    ones, zeros = torch.ones(1), torch.zeros(1)
    arriving = torch.tensor([[math.inf], [math.nan], [3.0], [math.inf]])
    # mean 0, variance 4: normalised values are -1, 0, 1 and NaN.
    for upper, beta, want in ((math.inf, 0.0, 3.0), (1.0, 0.0, 3.0), (0.5, 0.0, 0.0)):
        grads = OP(arriving, product, zeros, 4 * ones, ones, ones * beta, 0.0, 1.0, upper, None)
        assert grads[2].item() == want


@pytest.mark.parametrize("with_unit", [False, True])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 3)])
def test_gradient_of_the_gradient(shape, with_unit):
    bits, product, _, _, gamma, beta = operands(shape, torch.float64, 0)
    gamma[0] = 0.8
    unit = units(3, torch.float64, 0) if with_unit else None
    leaves = [x.requires_grad_() for x in (product, gamma, beta)]
    arriving = torch.randn(shape, generator=generator(2), dtype=torch.float64)

    def first(f):
        var, mean = torch.var_mean(product.detach(), [d for d in range(product.dim()) if d != 1], correction=0)
        count = f(bits, product, mean, var, gamma, beta, 9, upper=2.0, unit=unit)
        return torch.autograd.grad(count, leaves, arriving, create_graph=True)

    results = []
    for f in (ops.tandem_norm_count, ref.tandem_norm_count):
        total = sum((g * (i + 1)).square().sum() for i, g in enumerate(first(f)))
        results.append(torch.autograd.grad(total, leaves[:2]))
    assert all(g.abs().max() > 0 for g in results[0])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", FLOATS)
def test_parts_of_a_batch(dtype):
    """With the statistics and the sums of the whole batch, a part has the gradient that it has there."""
    _, product, mean, var, gamma, beta = operands((700, 6, 2), dtype, 0)
    grad = torch.randn(product.shape, generator=generator(1), dtype=dtype)
    named, how = (mean, var, gamma, beta), (EPS, 0.7, 1.5, units(6, dtype, 2))
    want = norm_gradients(grad, product, *named, *how)
    rows, parts = torch.full((1,), 1400, dtype=dtype), (slice(0, 1), slice(1, 300), slice(300, 700))
    sums = [torch.stack(SUMS(grad[part], product[part], *named, *how)) for part in parts]
    totals = torch.stack(sums).sum(0)
    got = [
        norm_gradients(grad[part], product[part], *named, *how, rows, lambda sums: sums.copy_(totals)) for part in parts
    ]
    tolerance = TOLERANCES[dtype] * max(1.0, *(x.abs().max().item() for x in want))
    torch.testing.assert_close(torch.cat([x[0] for x in got]), want[0], rtol=0, atol=tolerance)
    for own, (_, *of_part) in zip(sums, got, strict=True):
        same(of_part, own.unbind())
    torch.testing.assert_close(totals, torch.stack(want[1:]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize(
    ("mode", "neuron"), [("impulse", tc.RadixIF(level=2.0)), ("constant", tc.IF(0.5, initial=0.5, two_phase=True))]
)
def test_a_layer_with_half_of_a_batch(mode, neuron, weights, monkeypatch):
    """As if another process had the same half: statistics and gradients are the ones of both halves in one process."""
    half = torch.rand(5, 3, 8, 8, generator=generator(3), dtype=torch.float64)

    def trained(x, whole):
        torch.manual_seed(0)
        conv = tc.TandemConv2d(3, 6, 3, norm="batch", neuron=neuron, dtype=torch.float64)
        conv.norm.momentum = 0.3
        net = nn.Sequential(tc.Encode(4, mode), conv)
        if weights:
            tc.quantise(net, 8)
        net = net if whole else nn.SyncBatchNorm.convert_sync_batchnorm(net)
        factors = 1 + torch.arange(6.0, dtype=torch.float64).view(-1, 1, 1)
        value = net(x).value
        (value * factors).sum().backward()
        return value[:5].detach(), [p.grad for p in net.parameters()], [*net[1].norm.buffers()]

    want = trained(half.repeat(2, 1, 1, 1), True)
    monkeypatch.setattr(all_processes, "group_of", lambda norm: "a group")
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "all_gather", lambda to, own, group: [x.copy_(own) for x in to])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums, group: sums.mul_(2))
    got = trained(half, False)
    same(got[0], want[0])
    for g, w in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(2 * g, w, rtol=1e-10, atol=1e-10)
    for g, w in zip(got[2], want[2], strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


def test_a_layer_without_rows(monkeypatch):
    """The batch is another process's alone: its statistics, and no gradient."""
    sent = torch.tensor([0.5] * 6 + [2.0] * 6 + [10.0], dtype=torch.float64)
    own = []

    def all_gather(to, part, group):
        own.append(part)
        for x, from_ in zip(to, (part, sent), strict=True):
            x.copy_(from_)

    monkeypatch.setattr(all_processes, "group_of", lambda norm: "a group")
    monkeypatch.setattr(batch_norm, "group_of", lambda norm: "a group")
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums, group: None)
    layer = tc.TandemLinear(4, 6, norm="batch", bias=False, dtype=torch.float64)
    layer.norm = nn.SyncBatchNorm(6, dtype=torch.float64)
    layer(tc.SpikeTrain(planes(8, 0, 4, seed=0), 8, dtype=torch.float64)).count.sum().backward()
    assert [part.tolist() for part in own] == [[0.0] * 13]
    torch.testing.assert_close(layer.norm.running_mean, torch.full((6,), 0.05, dtype=torch.float64))
    torch.testing.assert_close(layer.norm.running_var, torch.full((6,), 0.9 + 0.2 * 10 / 9, dtype=torch.float64))
    assert not layer.weight.grad.any()


def test_any_strides():
    bits, product, mean, var, gamma, beta = operands((3, 5, 4, 2), torch.float32, 0)
    grad = torch.randn(product.shape, generator=generator(1))
    want = OP(grad, product, mean, var, gamma, beta, EPS, 1.0, math.inf, None)
    assert features_last(want[0], 1)
    for view in views(product):
        for given_grad in views(grad):
            same(OP(given_grad, view, mean, var, gamma, beta, EPS, 1.0, math.inf, None), want)
    for view in views(gamma.view(1, -1)):
        same(OP(grad, product, mean, var, view[0], beta, EPS, 1.0, math.inf, None), want)
    assert ops.tandem_norm_count(bits[..., :0], product[..., :0], mean, var, gamma, beta, 9).shape == (3, 5, 4, 0)
    empty = OP(grad[:0], product[:0], mean, var, gamma, beta, EPS, 1.0, math.inf, None)
    assert empty[0].shape == (0, 5, 4, 2)
    same(empty[1:], (torch.zeros(5), torch.zeros(5)))


@pytest.mark.parametrize("shape", [slow((4, 3)), (2, 5, 4, 3), slow((0, 3))])
def test_opcheck(shape):
    bits, product, mean, var, gamma, beta = operands(shape, torch.float64, 0)
    leaves = [x.clone().requires_grad_() for x in (product, gamma, beta)]
    op = torch.ops.tandem_cuda.tandem_norm_count.default
    torch.library.opcheck(op, (bits, leaves[0], mean, var, *leaves[1:], EPS, 9, 1.0, 1.5, None))
    torch.library.opcheck(op, (bits, product, mean, var, gamma, beta, EPS, 9, 1.0, math.inf, None))
    unit = units(len(gamma), torch.float64, 0)
    torch.library.opcheck(op, (bits, leaves[0], mean, var, *leaves[1:], EPS, 9, 1.0, 1.5, unit))
    grad = torch.ones_like(product)
    arguments, how = (grad, product, mean, var, gamma, beta), (EPS, 1.0, math.inf, None)
    torch.library.opcheck(SUMS.default, (*arguments, *how))
    for rows in (None, torch.full((1,), 30.0, dtype=torch.float64)):
        torch.library.opcheck(GRADIENT.default, (*arguments, gamma, beta, rows, *how))


# ---- In a layer


def trained(make, x, fused, monkeypatch):
    """Counts, gradients and buffers after two steps."""
    with monkeypatch.context() as patch:
        if not fused:
            patch.setattr(batch_norm, "fuses", lambda *_: False)
        return two_steps(make, x)


def two_steps(make, x):
    torch.manual_seed(0)
    net = make()
    for _ in range(2):
        net.zero_grad()
        out = net(x)
        (out.count - 1).square().sum().backward()
    return out, [p.grad for p in net.parameters()], list(net.buffers())


NETS = {
    "conv2d": lambda: nn.Sequential(
        tc.Encode(8),
        tc.TandemConv2d(3, 8, 3, padding=1, norm="batch", neuron=tc.IF(0.3)),
        tc.TandemConv2d(8, 20, 3, stride=2, padding=1, norm="batch", bias=False, neuron=tc.IF(0.3)),
        tc.TandemConv2d(20, 6, 3, norm="batch", neuron=tc.IF(0.2, clip=True)),
    ),
    "linear": lambda: nn.Sequential(
        nn.Flatten(),
        tc.Encode(11),
        tc.TandemLinear(192, 20, norm="batch", neuron=tc.IF(0.3)),
        tc.TandemLinear(20, 7, norm="batch", neuron=tc.IF(0.3)),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_a_layer_trains_alike(name, monkeypatch):
    """With the operator and without: the same spikes, statistics and gradients."""
    x = torch.rand(6, 3, 8, 8, generator=generator(3), dtype=torch.float64)
    fused, plain = (trained(lambda: NETS[name]().double(), x, flag, monkeypatch) for flag in (True, False))
    same(fused[0].bits, plain[0].bits)
    assert fused[0].count.sum() > 0
    for got, want in ((fused[1], plain[1]), (fused[2], plain[2])):
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=1e-10 * max(1.0, w.abs().max().item()))


def test_where_a_layer_takes_it(monkeypatch):
    """Only where nobody could see the normalised product, or ask for one of another kind."""
    called, operator = [], ops.tandem_norm_count

    def counted(*arguments, **named):
        called.append(1)
        return operator(*arguments, **named)

    replace_operator(monkeypatch, "tandem_norm_count", counted)
    x = tc.SpikeTrain.from_dense((torch.rand(8, 4, 5, generator=generator(0)) < 0.3).float())

    def takes(neuron=None, **changed):
        layer = tc.TandemLinear(5, 3, norm="batch", neuron=neuron or tc.IF())
        for name, value in changed.items():
            setattr(layer.norm, name, value)
        called.clear()
        layer(x)
        return bool(called)

    assert takes()
    assert not takes(neuron=tc.LIF())
    assert not takes(momentum=None)
    assert not takes(training=False)
    layer = tc.TandemLinear(5, 3, norm="batch")
    layer.norm.register_forward_hook(lambda *_: None)
    called.clear()
    layer(x)
    with torch.no_grad():
        tc.TandemLinear(5, 3, norm="batch")(x)
    layer.norm = nn.SyncBatchNorm(3).eval()
    layer(x)
    assert not called


def test_a_layer_compiles_with_it():
    torch.manual_seed(0)
    nets = [tc.TandemLinear(5, 3, norm="batch").double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    bits = planes(8, 6, 5, seed=0)
    results = []
    compiled = torch.compile(nets[1], backend="aot_eager", fullgraph=True)
    for f, net in zip((nets[0], compiled), nets, strict=True):
        count = f(tc.SpikeTrain(bits, 8, dtype=torch.float64)).count
        count.sum().backward()
        results.append((count.detach(), net.weight.grad, net.norm.weight.grad, net.norm.running_var))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


BITS = torch.zeros(2, 4, 3, dtype=torch.uint8)
GOOD = {
    "bits": BITS,
    "product": torch.zeros(4, 3),
    **{name: torch.ones(3) for name in ("mean", "var", "gamma", "beta")},
    "time_steps": 9,
}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"bits": BITS.float()}, TypeError, "bits must be uint8, got torch.float32"),
        ({"bits": BITS[0]}, ValueError, "bits must have .* planes"),
        ({"time_steps": 8}, ValueError, "bits must have .* = 1 planes for 8"),
        ({"product": torch.zeros(4, 3).half()}, TypeError, "product must be float32 or float64, got torch.float16"),
        ({"product": torch.zeros(4, 2)}, ValueError, r"product must be \[4, 3\], got \[4, 2\]"),
        ({"product": torch.zeros(4, 3).to(META)}, ValueError, "product must be on the device of bits, cpu, got meta"),
        ({"mean": torch.ones(4)}, ValueError, r"mean must be \[3\], got \[4\]"),
        ({"var": torch.ones(3).double()}, TypeError, "var must have the dtype of product, torch.float32, got"),
        ({"gamma": None}, TypeError, "gamma must be a Tensor, got NoneType"),
        ({"beta": torch.ones(3, 1)}, ValueError, r"beta must be \[3\], got \[3, 1\]"),
        ({"unit": torch.ones(2)}, ValueError, r"unit must be \[3\], got \[2\]"),
        ({"unit": 0.5}, TypeError, "unit must be a Tensor, got float"),
        ({"eps": -1.0}, ValueError, "eps must not be negative, got -1.0"),
        ({"eps": math.nan}, ValueError, "eps must not be negative, got nan"),
        ({"threshold": 0.0}, ValueError, "threshold must be positive and finite, got 0.0"),
        ({"upper": 0.0}, ValueError, "upper must be positive, got 0.0"),
    ],
)
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=f"tandem_norm_count: {message}"):
        ops.tandem_norm_count(**GOOD | wrong)


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(4, 2), "grad must be"),
        (1, torch.zeros(4), "product must be"),
        (1, torch.zeros(4, 3).long(), "product must be float32 or float64"),
        (2, torch.zeros(2), "mean must be"),
        (3, torch.zeros(3).double(), "var must have the dtype of product"),
        (4, torch.zeros(3, 1), "gamma must be"),
        (5, torch.zeros(0), "beta must be"),
        (6, -1.0, "eps must not be negative"),
        (7, math.inf, "threshold must be positive and finite"),
        (8, math.nan, "upper must be positive"),
        (9, torch.ones(2), "unit must be"),
    ],
)
def test_direct_calls(place, wrong, message):
    arguments = [torch.zeros(4, 3), torch.zeros(4, 3), *(torch.ones(3) for _ in range(4)), EPS, 1.0, 1.0, None]
    arguments[place] = wrong
    with pytest.raises(RuntimeError, match=f"tandem_norm_count_sums: {message}"):
        SUMS(*arguments)
    arguments[6:6] = torch.ones(3), torch.ones(3), None
    with pytest.raises(RuntimeError, match=f"tandem_norm_count_gradient: {message}"):
        GRADIENT(*arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((torch.ones(2), torch.ones(3), None), "grad_gamma must be"),
        ((torch.ones(3), torch.ones(3).double(), None), "grad_beta must have the dtype of product"),
        ((torch.ones(3), torch.ones(3), torch.ones(2)), "rows must be"),
    ],
)
def test_sums_of_another_batch(wrong, message):
    tensors = torch.zeros(4, 3), torch.zeros(4, 3), *(torch.ones(3) for _ in range(4))
    with pytest.raises(RuntimeError, match=f"tandem_norm_count_gradient: {message}"):
        GRADIENT(*tensors, *wrong, EPS, 1.0, 1.0, None)


def test_statistics_of_all(monkeypatch):
    """Of parts of a batch, of different sizes."""
    x = torch.randn(40, 5, 3, generator=generator(0), dtype=torch.float64) + 3
    parts = [ops.batch_statistics(part) for part in (x[:1], x[1:30], x[30:])]
    sent = [torch.cat([*part, part[0].new_tensor([3.0 * n])]) for part, n in zip(parts, (1, 29, 10), strict=True)]
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 3)

    def all_gather(to, own, group):
        assert any(torch.equal(own, part) for part in sent)
        for each, part in zip(to, sent, strict=True):
            each.copy_(part)

    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    for part, n in zip(parts, (1, 29, 10), strict=True):
        mean, var, shared = all_processes.statistics_of_all(*part, 3 * n, "a group")
        torch.testing.assert_close((mean, var), ops.batch_statistics(x), rtol=1e-12, atol=1e-12)
        assert (shared.group, shared.rows.tolist()) == ("a group", [120.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 3), (4, 70, 3, 5), (2, 1, 1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batch_statistics(shape, dtype, memory_format):
    x = 3 * torch.randn(shape, generator=generator(1), dtype=dtype) + 2
    if x.dim() == 4:
        x = x.contiguous(memory_format=memory_format)
    var, mean = torch.var_mean(x.double(), [d for d in range(x.dim()) if d != 1], correction=0)
    torch.testing.assert_close(ops.batch_statistics(x.requires_grad_()), (mean.to(dtype), var.to(dtype)))
    torch.library.opcheck(torch.ops.tandem_cuda.batch_statistics.default, (x.detach(),))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"x must be \[N, C, ...\] and not empty, got \[3\]"),
        (torch.zeros(0, 3), ValueError, r"x must be \[N, C, ...\] and not empty, got \[0, 3\]"),
        (torch.zeros(2, 3).long(), TypeError, "x must be float32 or float64, got torch.int64"),
    ],
)
def test_bad_input_of_batch_statistics(x, error, message):
    with pytest.raises(error, match=f"batch_statistics: {message}"):
        ops.batch_statistics(x)
