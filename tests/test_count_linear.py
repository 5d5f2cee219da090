"""count_linear against the reference, bit for bit where sums are exact."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import (
    CHANNELS,
    FLOATS,
    RATES,
    SEEDS,
    TIME_STEPS,
    dyadic,
    every_path,
    everywhere,
    features_last,
    generator,
    planes,
    same,
    views,
)
from tandem_cuda import ops
from tandem_cuda import reference as ref


@given(
    time_steps=st.one_of(st.sampled_from(TIME_STEPS), st.integers(1, 70)),
    batch=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    features=st.sampled_from(CHANNELS),
    outputs=st.sampled_from(CHANNELS),
    dtype=st.sampled_from(FLOATS),
    rate=st.sampled_from(RATES),
    bias=st.booleans(),
    seed=SEEDS,
)
def test_matches_reference(time_steps, batch, features, outputs, dtype, rate, bias, seed):
    bits = planes(time_steps, *batch, features, seed=seed, rate=rate)
    weight = dyadic(outputs, features, seed=seed + 1, dtype=dtype)
    b = dyadic(outputs, seed=seed + 2, dtype=dtype) if bias else None
    everywhere(ref.count_linear(bits, weight, b), ops.count_linear, bits, weight, b)


@pytest.mark.parametrize("rate", [0.5, 1.0])
@pytest.mark.parametrize("time_steps", [255, 256, 257, 300, 600])
def test_counts_beyond_a_byte(time_steps, rate):
    bits = planes(time_steps, 3, 67, seed=0, rate=rate)
    weight = dyadic(19, 67, seed=1)
    everywhere(ref.count_linear(bits, weight), ops.count_linear, bits, weight)


@pytest.mark.parametrize("dtype", FLOATS)
def test_inexact_weights(dtype):
    """Close to the reference, and the same for any number of threads."""
    bits = planes(20, 1001, 300, seed=0, rate=0.1)
    weight, bias = (torch.randn(s, generator=generator(1), dtype=dtype) / 17 for s in ((90, 300), (90,)))
    want = ref.count_linear(bits, weight, bias)
    results = {}
    for path, got in every_path(ops.count_linear, bits, weight, bias):
        torch.testing.assert_close(got, want)
        same(got, results.setdefault(path.split(",")[0], got), path)


def test_any_strides():
    bits, weight, bias = planes(9, 2, 3, 21, seed=0), dyadic(10, 21, seed=1), dyadic(10, seed=2)
    want = ref.count_linear(bits, weight, bias)
    for view in views(bits):
        same(ops.count_linear(view, weight, bias), want)
    for view in views(weight):
        same(ops.count_linear(bits, view, bias), want)
    same(ops.count_linear(bits, weight.t().contiguous().t(), bias), want)
    same(ops.count_linear(bits, weight, bias.repeat_interleave(3)[::3]), want)
    for narrow in (weight[:1].expand(10, 21), weight[:, :1].expand(10, 21), weight[:1, :1].expand(10, 21)):
        same(ops.count_linear(bits, narrow, bias[:1].expand(10)), ref.count_linear(bits, narrow, bias[:1].expand(10)))
    few = bits[:1, :1]
    same(ops.count_linear(few.expand(3, 4, 3, 21), weight), ref.count_linear(few.expand(3, 4, 3, 21), weight))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(value):
    """They spoil the sums of neurons whose input spikes; the others, and silent inputs, never see them."""
    bits = planes(9, 6, 70, seed=0)
    bits[:, :3, 5] = 0
    bits[0, 3:, 5] = 1
    weight = dyadic(20, 70, seed=1)
    want = ref.count_linear(bits, weight)
    weight[4, 5] = value
    want[3:, 4] = value
    everywhere(want, ops.count_linear, bits, weight)


def test_features_lie_last():
    assert features_last(ops.count_linear(planes(9, 2, 3, 21, seed=0), dyadic(10, 21, seed=1)), 2)


def gradients(op, bits, weight, bias, count, seed_grad):
    leaves = [x for x in (weight, bias, count) if x is not None]
    out = op(bits, weight, bias, count=count)
    return torch.autograd.grad(out, leaves, seed_grad)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [True, False])
@pytest.mark.parametrize("batch", [(3,), (3, 4), (0,)])
def test_gradients(bias, count, batch):
    bits = planes(20, *batch, 21, seed=0)
    weight = torch.randn(10, 21, generator=generator(1), dtype=torch.float64).requires_grad_()
    b = dyadic(10, seed=2, dtype=torch.float64).requires_grad_() if bias else None
    c = ref.spike_count(bits, torch.float64).requires_grad_() if count else None
    seed_grad = torch.randn(*batch, 10, generator=generator(3), dtype=torch.float64)
    got = gradients(ops.count_linear, bits, weight, b, c, seed_grad)
    want = gradients(ref.count_linear, bits, weight, b, c, seed_grad)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needed", ["weight", "bias", "count"])
def test_gradient_of_one_argument(needed):
    bits = planes(20, 3, 21, seed=0)
    leaves = {
        "weight": dyadic(10, 21, seed=1, dtype=torch.float64),
        "bias": dyadic(10, seed=2, dtype=torch.float64),
        "count": ref.spike_count(bits, torch.float64),
    }
    leaf = leaves[needed].requires_grad_()
    (got,) = torch.autograd.grad(ops.count_linear(bits, **leaves).square().sum(), leaf)
    (want,) = torch.autograd.grad(ref.count_linear(bits, **leaves).square().sum(), leaf)
    same(got, want)


def test_gradcheck():
    bits = planes(9, 3, 7, seed=0)
    weight, bias = (dyadic(*s, seed=1, dtype=torch.float64).requires_grad_() for s in ((4, 7), (4,)))
    assert torch.autograd.gradcheck(lambda w, b: ops.count_linear(bits, w, b), (weight, bias))


def test_value_of_count_is_not_read():
    bits, weight = planes(9, 3, 7, seed=0), dyadic(4, 7, seed=1)
    same(ops.count_linear(bits, weight, count=torch.full((3, 7), math.nan)), ref.count_linear(bits, weight))


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("batch", [(2,), (0,), (2, 3)])
def test_opcheck(batch, optional, requires_grad):
    bits, weight = planes(9, *batch, 7, seed=0), dyadic(4, 7, seed=1).requires_grad_(requires_grad)
    bias = dyadic(4, seed=2).requires_grad_(requires_grad) if optional else None
    count = ref.spike_count(bits).requires_grad_(requires_grad) if optional else None
    op = torch.ops.tandem_cuda.count_linear.default
    torch.library.opcheck(op, (bits, count, weight, bias))
    strided = weight.detach().t().contiguous().t().requires_grad_(requires_grad)
    torch.library.opcheck(op, (bits.mT.contiguous().mT, count, strided, bias))


BITS = torch.zeros(2, 4, 3, dtype=torch.uint8)
WEIGHT = torch.zeros(5, 3)
META = torch.device("meta")

# What is wrong with one argument: of all linear products.
BAD_LINEAR = [
    ({"bits": BITS.float()}, TypeError, "bits must be uint8, got torch.float32"),
    ({"bits": [1]}, TypeError, "bits must be a Tensor, got list"),
    ({"bits": BITS[:0]}, ValueError, r"bits must be .* at least one plane, got \[0, 4, 3\]"),
    ({"bits": BITS[0]}, ValueError, r"bits must be \[P, N, \.\.\., F\], got \[4, 3\]"),
    ({"weight": None}, TypeError, "weight must be a Tensor, got NoneType"),
    ({"weight": WEIGHT.half()}, TypeError, "weight must be float32 or float64, got torch.float16"),
    ({"weight": WEIGHT.int()}, TypeError, "weight must be float32 or float64, got torch.int32"),
    ({"weight": WEIGHT.to(META)}, ValueError, "weight must be on the device of bits, cpu, got meta"),
    ({"weight": WEIGHT[0]}, ValueError, r"weight must be \[O, 3\] .*, got \[3\]"),
    ({"weight": WEIGHT[..., None]}, ValueError, r"weight must be \[O, 3\] .*, got \[5, 3, 1\]"),
    ({"weight": WEIGHT.mT}, ValueError, r"weight must be \[O, 3\] .*, got \[3, 5\]"),
    ({"weight": WEIGHT[:0]}, ValueError, r"weight must be \[O, 3\] .*, got \[0, 3\]"),
    ({"bits": BITS[..., :0], "weight": WEIGHT[:, :0]}, ValueError, r"weight must be .*, got \[5, 0\]"),
    ({"bias": 1.0}, TypeError, "bias must be a Tensor, got float"),
    ({"bias": torch.zeros(3)}, ValueError, r"bias must be \[5\], got \[3\]"),
    ({"bias": torch.zeros(5, 1)}, ValueError, r"bias must be \[5\], got \[5, 1\]"),
    ({"bias": torch.zeros(5).double()}, TypeError, "bias must have the dtype of weight, torch.float32, got"),
    ({"bias": torch.zeros(5, device=META)}, ValueError, "bias must be on the device of weight, cpu, got meta"),
    ({"count": 1}, TypeError, "count must be a Tensor, got int"),
    ({"count": torch.zeros(3, 4)}, ValueError, r"count must be \[4, 3\], got \[3, 4\]"),
    ({"count": torch.zeros(2, 4, 3)}, ValueError, r"count must be \[4, 3\], got \[2, 4, 3\]"),
    ({"count": torch.zeros(4, 3).double()}, TypeError, "count must have the dtype of weight, torch.float32, got"),
    ({"count": torch.zeros(4, 3, device=META)}, ValueError, "count must be on the device of weight, cpu, got meta"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BAD_LINEAR)
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=f"count_linear: {message}"):
        ops.count_linear(**{"bits": BITS, "weight": WEIGHT} | wrong)
