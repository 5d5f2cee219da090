"""update_statistics_: batch norm's running statistics in place."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from exact import SEEDS, same, slow
from tandem_cuda import SpikeTrain, TandemLinear, ops
from tandem_cuda import reference as ref
from tensors import FLOATS, META, normal, planes


def running(channels=3, dtype=torch.float32, seed=0):
    mean, var = normal(channels, seed=seed, dtype=dtype), normal(channels, seed=seed + 1, dtype=dtype).square()
    return [mean, var, torch.tensor(5)]


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4).filter(lambda s: math.prod(s) >= 2 * s[1]),
    dtype=st.sampled_from(FLOATS),
    momentum=st.sampled_from((0, 0.0, 1e-3, 0.1, 0.3, 1, 1.0)) | st.floats(0, 1),
    repeats=st.sampled_from((1, 1.0, 3, 8, 1 / 3)) | st.floats(1e-3, 1e3),
    missing=st.booleans(),
    unit=st.booleans(),
    seed=SEEDS,
)
def test_is_the_reference(shape, dtype, momentum, repeats, missing, unit, seed):
    product = 3 * normal(*shape, seed=seed, dtype=dtype) + 1
    settings = {"momentum": momentum, "repeats": repeats}
    settings["missing"] = normal(shape[1], seed=seed + 1, dtype=dtype) if missing else None
    settings["unit"] = normal(shape[1], seed=seed + 2, dtype=dtype).abs() if unit else None
    got, want = (running(shape[1], dtype, seed) for _ in range(2))
    ops.update_statistics_(*got, *ops.batch_statistics(product), product, **settings)
    held = running(shape[1], dtype, seed)
    as_tensor = settings | {"momentum": torch.tensor(float(momentum), dtype=torch.float64)}
    ops.update_statistics_(*held, *ops.batch_statistics(product), product, **as_tensor)
    same(held, got)
    ref.update_statistics_(*want, *ops.batch_statistics(product), product, **settings)
    same(got, want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_factors_are_rounded_once(dtype):
    """Those of many sizes of batches, in the order in which Python computes them."""
    mean, var = torch.ones(1, dtype=dtype), torch.ones(1, dtype=dtype)
    for n in (2, 3, 5, 7, 11, 100, 12345):
        for momentum in (0.1, 0.7, 1 / 3):
            for repeats in (1, 8, 0.1):
                product = torch.empty(n, 1, dtype=dtype)
                got = [torch.full((1,), 0.3, dtype=dtype), torch.full((1,), 0.7, dtype=dtype), torch.tensor(0)]
                want = [x.clone() for x in got]
                ops.update_statistics_(*got, mean, var, product, momentum=momentum, repeats=repeats)
                ref.update_statistics_(*want, mean, var, product, momentum=momentum, repeats=repeats)
                same(got, want)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e-45, 3e38])
def test_numbers_at_the_ends_of_the_range(value):
    for place in range(2):
        for what in ("running", "new", "missing", "unit"):
            product = normal(4, 3, seed=0)
            got, new, missing, unit = running(), list(ops.batch_statistics(product)), *normal(2, 3, seed=3)
            {"running": got, "new": new, "missing": [missing] * 2, "unit": [unit] * 2}[what][place][1] = value
            want = [x.clone() for x in got]
            for f, to in ((ops.update_statistics_, got), (ref.update_statistics_, want)):
                f(*to, *new, product, missing=missing, unit=unit, repeats=3.0)
            same(got, want)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 2)])
@pytest.mark.parametrize("repeats", [1, 4])
def test_are_those_of_torch(shape, repeats):
    product, missing = normal(*shape, seed=0, dtype=torch.float64), normal(3, seed=1, dtype=torch.float64)
    got, want = running(dtype=torch.float64), running(dtype=torch.float64)
    mean, var = ops.batch_statistics(product)
    unit = torch.tensor([0.5, 2.0, 0.01], dtype=torch.float64)
    ops.update_statistics_(*got, mean, var, product, missing=missing, unit=unit, momentum=0.2, repeats=repeats)
    missing, unit = (x.view(-1, *[1] * (len(shape) - 2)) for x in (missing, unit))
    F.batch_norm(repeats * unit * product + missing, *want[:2], training=True, momentum=0.2)
    torch.testing.assert_close(got[:2], want[:2])
    assert got[2] == 6


def test_versions_count_up():
    """So that autograd does not take a statistic that has changed for what it has saved."""
    product = normal(4, 3, seed=0)
    statistics, gamma = running(), torch.ones(3, requires_grad=True)
    arguments = (*statistics, *ops.batch_statistics(product), product)
    before = [x._version for x in arguments]
    gain, _ = ops.fold_norm(*statistics[:2], gamma)
    ops.update_statistics_(*arguments)
    assert [x._version - b for x, b in zip(arguments, before, strict=True)] == [1, 1, 1, 0, 0, 0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gain.sum().backward()


@pytest.mark.parametrize("backend", ["aot_eager", slow("inductor")])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(backend, dynamic):
    """The caller's tensors change, in place."""

    def f(statistics, product):
        mean, var = ops.batch_statistics(product)
        ops.update_statistics_(*statistics, mean, var, product, repeats=2.0)
        gain, bias = ops.fold_norm(*statistics[:2])
        ops.update_statistics_(*statistics, mean, var, product)
        return gain + bias, statistics[0] * 2

    compiled = torch.compile(f, backend=backend, fullgraph=True, dynamic=dynamic)
    got, want = running(), running()
    places = [x.data_ptr() for x in got]
    for n in (4, 5) if dynamic else (4, 4):
        product = normal(n, 3, seed=n)
        same(compiled(got, product), f(want, product))
        same(got, want)
    assert [x.data_ptr() for x in got] == places
    assert got[2] == 9


def layer_and_loss():
    layer, x = TandemLinear(5, 4, norm="batch"), SpikeTrain(planes(8, 6, 5, seed=0), 8)
    return layer, lambda parameters, buffers: functional_call(layer, (parameters, buffers), (x,)).count.square().sum()


def test_captured_statistics_are_refused():
    layer, loss = layer_and_loss()
    before = [x.clone() for x in layer.buffers()]
    parameters = {name: x.detach() for name, x in layer.named_parameters()}
    with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
        grad(loss)(parameters, {})
    same(list(layer.buffers()), before)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_ensembles():
    """vmap over the states of several networks moves the statistics of each."""
    layer, loss = layer_and_loss()
    layers = [layer, TandemLinear(5, 4, norm="batch")]
    parameters, buffers = stack_module_state(layers)
    losses = vmap(loss)(parameters, buffers)
    for i, one in enumerate(layers):
        own = {name: x.clone() for name, x in one.named_buffers()}
        same(losses[i], loss(dict(one.named_parameters()), own).detach())
        same([buffers[name][i] for name in own], list(own.values()))


@pytest.mark.parametrize("place", [0, 1])
def test_not_contiguous(place):
    statistics = running()
    statistics[place] = torch.ones(3, 2)[:, 0]
    name = ("running_mean", "running_var")[place]
    product = normal(4, 3, seed=0)
    with pytest.raises(RuntimeError, match=rf"update_statistics_: {name} must be contiguous, got \[3\] with stride 2"):
        ops.update_statistics_(*statistics, *ops.batch_statistics(product), product)


def test_gradients_do_not_flow():
    product = normal(4, 3, seed=0).requires_grad_()
    statistics, missing = running(), nn.Parameter(torch.ones(3))
    ops.update_statistics_(*statistics, *ops.batch_statistics(product), product, missing=missing)
    assert not any(x.requires_grad for x in statistics)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"running_mean": [0.0]}, TypeError, "running_mean must be a Tensor, got list"),
        (
            {"running_mean": torch.zeros(3).half()},
            TypeError,
            "running_mean must be float32 or float64, got torch.float16",
        ),
        ({"running_mean": torch.zeros(())}, ValueError, "running_mean must be [C], got []"),
        ({"running_var": torch.ones(2)}, ValueError, "running_var must be [3], got [2]"),
        ({"num_batches_tracked": 5}, TypeError, "num_batches_tracked must be a Tensor, got int"),
        ({"num_batches_tracked": torch.tensor(5.0)}, TypeError, "num_batches_tracked must be int64, got torch.float32"),
        ({"num_batches_tracked": torch.tensor([5])}, ValueError, "num_batches_tracked must be [], got [1]"),
        (
            {"num_batches_tracked": torch.tensor(5, device=META)},
            ValueError,
            "num_batches_tracked must be on the device",
        ),
        ({"mean": torch.zeros(4)}, ValueError, "mean must be [3], got [4]"),
        ({"var": None}, TypeError, "var must be a Tensor, got NoneType"),
        ({"missing": torch.zeros(3).double()}, TypeError, "missing must have the dtype of running_mean"),
        ({"unit": torch.zeros(2)}, ValueError, "unit must be [3], got [2]"),
        ({"product": torch.zeros(3)}, ValueError, "product must be [N, 3, ...], got [3]"),
        ({"product": torch.zeros(4, 2)}, ValueError, "product must be [N, 3, ...], got [4, 2]"),
        ({"product": torch.zeros(1, 3)}, ValueError, "product must have at least two values per channel, got [1, 3]"),
        ({"product": torch.zeros(4, 3).double()}, TypeError, "product must have the dtype of running_mean"),
        ({"momentum": None}, TypeError, "momentum must be a number, got NoneType"),
        ({"repeats": 0}, ValueError, "repeats must be positive and finite, got 0"),
    ],
)
def test_bad_input(wrong, error, message):
    good = dict(zip(("running_mean", "running_var", "num_batches_tracked"), running(), strict=True))
    good |= {"mean": torch.zeros(3), "var": torch.ones(3), "product": torch.zeros(4, 3)}
    with pytest.raises(error, match=f"^update_statistics_: {re.escape(message)}"):
        ops.update_statistics_(**good | wrong)
    same([good["running_mean"], good["num_batches_tracked"]], [running()[0], torch.tensor(5)])
