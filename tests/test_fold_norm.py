"""fold_norm: batch norm with running statistics as gain and bias."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from exact import same
from tandem_cuda import TandemConv2d, TandemLinear, ops, quantise
from tandem_cuda import reference as ref
from tensors import FLOATS, META, normal

NAMES = ("gamma", "beta", "bias", "unit")
SUBSETS = [chosen for n in range(5) for chosen in itertools.combinations(NAMES, n)]
every_subset = pytest.mark.parametrize("chosen", SUBSETS, ids="-".join)


def drawn(channels, dtype, chosen=NAMES):
    """Mean and variance, and the optional vectors."""
    mean, var = normal(channels, seed=0, dtype=dtype), normal(channels, seed=1, dtype=dtype).square()
    return (mean, var), {name: normal(channels, seed=2 + NAMES.index(name), dtype=dtype) for name in chosen}


def with_numpy(mean, var, gamma=None, beta=None, bias=None, unit=None, eps=1e-5, amplitude=1.0, time_steps=1):
    """The formula, whose roots are exact in float64, too."""
    number = var.numpy().dtype.type
    mean, var, gamma, beta, bias, unit = (
        None if x is None else x.numpy() for x in (mean, var, gamma, beta, bias, unit)
    )
    with np.errstate(all="ignore"):
        root = np.sqrt((var + number(eps)).astype(np.float64)).astype(number)
        g = (number(1) if gamma is None else gamma) / root
        shift = (-mean if bias is None else bias - mean) * g
        shift = shift if beta is None else shift + beta
        gain = g if unit is None else unit * g
        return torch.from_numpy(gain * number(amplitude)), torch.from_numpy(shift / number(time_steps))


@every_subset
@pytest.mark.parametrize(("amplitude", "time_steps"), [(1, 1), (1 / 3, 7), (0.3, 2**24 + 1)])
def test_every_choice_of_arguments(chosen, amplitude, time_steps):
    """Bit for bit: the reference in float32, NumPy in both dtypes. torch's roots of float64 may be off by an ulp."""
    for dtype in FLOATS:
        statistics, vectors = drawn(2000, dtype, chosen)
        settings = {"eps": 1e-3, "amplitude": amplitude, "time_steps": time_steps}
        got = ops.fold_norm(*statistics, **vectors, **settings)
        same(got, with_numpy(*statistics, **vectors, **settings))
        if dtype == torch.float32:
            same(got, ref.fold_norm(*statistics, **vectors, **settings))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-5])
def test_numbers_at_the_ends_of_the_range(dtype, eps):
    values = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.0, -1.0, 3e38, -3e38, math.inf, -math.inf, math.nan]
    mean, var, gamma, bias = (
        torch.tensor(x, dtype=dtype) for x in zip(*itertools.product(values, repeat=4), strict=True)
    )
    vectors = {"gamma": gamma, "bias": bias, "time_steps": 3}
    same(ops.fold_norm(mean, var, **vectors, eps=eps), with_numpy(mean, var, **vectors, eps=eps))


def test_no_channels():
    same(ops.fold_norm(torch.zeros(0), torch.zeros(0)), (torch.zeros(0), torch.zeros(0)))


def test_is_batch_norm_in_eval_mode():
    (mean, var), vectors = drawn(5, torch.float64, NAMES[:3])
    sums = normal(4, 5, seed=9, dtype=torch.float64)
    gain, bias = ops.fold_norm(mean, var, **vectors)
    want = nn.functional.batch_norm(sums + vectors["bias"], mean, var, vectors["gamma"], vectors["beta"])
    torch.testing.assert_close(gain * sums + bias, want)


def function(chosen, **settings):
    def f(mean, var, *vectors):
        return ops.fold_norm(mean, var, **dict(zip(chosen, vectors, strict=True)), **settings)

    return f


@every_subset
def test_gradients(chosen):
    """Of every argument, twice, and those of the reference."""
    (mean, var), vectors = drawn(3, torch.float64, chosen)
    leaves = [x.requires_grad_() for x in (mean, var + 0.5, *vectors.values())]
    settings = {"eps": 0.1, "amplitude": 0.75, "time_steps": 5}
    assert torch.autograd.gradcheck(function(chosen, **settings), leaves)
    assert torch.autograd.gradgradcheck(function(chosen, **settings), leaves)
    arriving = [normal(3, seed=7 + i, dtype=torch.float64) for i in range(2)]
    got, want = (
        torch.autograd.grad(f(*leaves[:2], **dict(zip(chosen, leaves[2:], strict=True)), **settings), leaves, arriving)
        for f in (ops.fold_norm, ref.fold_norm)
    )
    torch.testing.assert_close(got, want)


def test_gradient_of_one_argument_and_one_output():
    (mean, var), vectors = drawn(3, torch.float64)
    vectors["unit"].requires_grad_()
    gain, bias = ops.fold_norm(mean, var, **vectors)
    (got,) = torch.autograd.grad(gain.sum(), vectors["unit"], retain_graph=True)
    torch.testing.assert_close(got, ops.fold_norm(mean, var, vectors["gamma"])[0])
    (got,) = torch.autograd.grad(bias.sum(), vectors["unit"])
    assert not got.any()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms():
    (mean, var), vectors = drawn(3, torch.float64)
    gamma = vectors.pop("gamma")

    def f(gamma):
        return sum(x.square().sum() for x in ops.fold_norm(mean, var, gamma, **vectors))

    leaf = gamma.clone().requires_grad_()
    want = torch.autograd.grad(f(leaf), leaf)[0]
    torch.testing.assert_close(grad(f)(gamma), want)
    many = torch.stack([gamma, 2 * gamma])
    torch.testing.assert_close(vmap(grad(f))(many), torch.stack([want, grad(f)(2 * gamma)]))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="fold_norm: forward-mode"):
        f(torch.autograd.forward_ad.make_dual(gamma, torch.ones_like(gamma)))


@pytest.mark.filterwarnings("error")
def test_opcheck_with_gradients():
    (mean, var), vectors = drawn(3, torch.float32)
    tensors = [x.requires_grad_() for x in (mean, var, *vectors.values())]
    torch.library.opcheck(torch.ops.tandem_cuda.fold_norm.default, (*tensors, 1e-5, 0.5, 3))


def layer_of(kind):
    torch.manual_seed(0)
    if kind == "linear":
        layer = TandemLinear(6, 5, norm="batch")
    else:
        layer = TandemConv2d(6, 5, 3, norm="batch", bias=kind != "no bias")
    if kind == "int8":
        quantise(nn.Sequential(layer), 8)
    norm = layer.norm
    for x in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(x)
    nn.init.uniform_(norm.running_var, 0.1, 2)
    if kind == "not affine":
        norm.weight = norm.bias = None
    return layer


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "convolution", "no bias", "not affine", "int8"])
@pytest.mark.parametrize(("steps", "amplitude"), [(1, 1.0), (7, 1.0), (7, 0.3)])
def test_scale_and_bias_of_a_layer(kind, steps, amplitude):
    """One launch makes of them what several make of a frozen layer, whose gain and bias are stored."""
    layer = layer_of(kind)
    kernel = layer.weights.packed()
    stored = layer.drive.affine().of_integers(kernel.unit).of_spikes(kernel, steps, amplitude)
    weights = layer.drive.of_spikes(kernel, steps, amplitude)
    same((weights.scale, weights.bias), (stored.scale, stored.bias))


def test_a_layer_in_eval_mode_does_not_lose_the_gradient_of_its_gain():
    layer = layer_of("convolution").eval()
    gain, bias = layer.drive.affine()
    (gain.sum() + bias.square().sum()).backward()
    norm = layer.norm
    got = [x.grad.clone() for x in (norm.weight, norm.bias, layer.bias)]
    layer.zero_grad()
    gain, bias = ref.fold_norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, layer.bias)
    (gain.sum() + bias.square().sum()).backward()
    torch.testing.assert_close(got, [x.grad for x in (norm.weight, norm.bias, layer.bias)])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"running_mean": [0.0]}, TypeError, "running_mean must be a Tensor, got list"),
        (
            {"running_mean": torch.zeros(3).half()},
            TypeError,
            "running_mean must be float32 or float64, got torch.float16",
        ),
        ({"running_mean": torch.zeros(3, 1)}, ValueError, "running_mean must be [C], got [3, 1]"),
        ({"running_var": torch.ones(2)}, ValueError, "running_var must be [3], got [2]"),
        ({"running_var": torch.ones(3, device=META)}, ValueError, "running_var must be on the device of running_mean"),
        ({"gamma": torch.ones(3).double()}, TypeError, "gamma must have the dtype of running_mean"),
        ({"beta": torch.ones(4)}, ValueError, "beta must be [3], got [4]"),
        ({"bias": 0.5}, TypeError, "bias must be a Tensor, got float"),
        ({"unit": torch.ones(1)}, ValueError, "unit must be [3], got [1]"),
        ({"eps": "0"}, TypeError, "eps must be a number, got str"),
        ({"eps": -1e-5}, ValueError, "eps must not be negative, got -1e-05"),
        ({"eps": math.nan}, ValueError, "eps must not be negative, got nan"),
        ({"amplitude": 0.0}, ValueError, "amplitude must be positive and finite, got 0.0"),
        ({"time_steps": 0}, ValueError, "time_steps must be at least 1, got 0"),
        ({"time_steps": 1.0}, TypeError, "time_steps must be an int, got float"),
    ],
)
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=f"^fold_norm: {re.escape(message)}"):
        ops.fold_norm(**{"running_mean": torch.zeros(3), "running_var": torch.ones(3)} | wrong)
