"""count_linear against the reference, bit for bit where sums are exact."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import (
    CHANNELS,
    FLOATS,
    META,
    RATES,
    SEEDS,
    TIME_STEPS,
    dyadic,
    every_path,
    every_variant,
    everywhere,
    examples,
    generator,
    planes,
    same,
    variants,
)
from tandem_cuda import ops
from tandem_cuda import reference as ref
from tensors import normal


@examples(200)
@given(
    time_steps=st.one_of(st.sampled_from(TIME_STEPS), st.integers(1, 70)),
    batch=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    features=st.sampled_from(CHANNELS),
    outputs=st.sampled_from(CHANNELS),
    variant=variants(),
    rate=st.sampled_from(RATES),
    bias=st.booleans(),
    seed=SEEDS,
)
def test_matches_reference(time_steps, batch, features, outputs, variant, rate, bias, seed):
    bits = planes(time_steps, *batch, features, seed=seed, rate=rate)
    weight, scale = variant.operands(outputs, features, seed=seed + 1)
    b = dyadic(outputs, seed=seed + 2, dtype=variant.dtype) if bias else None
    want = ref.count_linear(bits, weight, b, scale=scale)
    everywhere(want, ops.count_linear, bits, weight, b, scale=scale, **variant.how(weight))


@every_variant
@pytest.mark.parametrize("rate", [0.5, 1.0])
@pytest.mark.parametrize("time_steps", [255, 256, 257, 300, 600])
def test_counts_beyond_a_byte(time_steps, rate, variant):
    bits = planes(time_steps, 3, 67, seed=0, rate=rate)
    weight, scale = variant.operands(19, 67, seed=1)
    want = ref.count_linear(bits, weight, scale=scale)
    everywhere(want, ops.count_linear, bits, weight, scale=scale, **variant.how(weight))


# Sums of int8 weights about to overflow 16 bits or beyond that, and too long ones for a float of 24 bits to count.
NARROW_SUMS = pytest.mark.parametrize(
    ("outputs", "features", "value"),
    [(3, 255, -128), (40, 256, -128), (70, 257, 127), (130, 1000, -128), (2, 65537, -128), (33, 65537, 127)],
)


@NARROW_SUMS
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_int8_sums_are_exact(outputs, features, value, rate):
    bits, weight = planes(3, 5, features, seed=0, rate=rate), torch.full((outputs, features), value, dtype=torch.int8)
    scale, bias = torch.linspace(-1, 1, outputs), dyadic(outputs, seed=1)
    want = scale * (ref.spike_count(bits, torch.int64) @ weight.long().t()).float() + bias
    for packed in (None, ops.pack_weight(weight)):
        everywhere(want, ops.count_linear, bits, weight, bias, packed=packed, scale=scale)


@pytest.mark.parametrize("engine", ["event", "dense"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_inexact_weights(dtype, engine):
    """Close to the reference; events also the same for any number of threads."""
    bits = planes(20, 1001, 300, seed=0, rate=0.1)
    weight, bias = (torch.randn(s, generator=generator(1), dtype=dtype) / 17 for s in ((90, 300), (90,)))
    want = ref.count_linear(bits, weight, bias)
    results = {}
    for path, got in every_path(ops.count_linear, bits, weight, bias, engine=engine):
        torch.testing.assert_close(got, want)
        if engine == "event":
            same(got, results.setdefault(path.split(",")[0], got), path)


def test_value_of_count_is_not_read():
    bits, weight = planes(9, 3, 7, seed=0), dyadic(4, 7, seed=1)
    same(ops.count_linear(bits, weight, count=torch.full((3, 7), math.nan)), ref.count_linear(bits, weight))


BITS = torch.zeros(2, 4, 3, dtype=torch.uint8)
WEIGHT = torch.zeros(5, 3)


def bad_operands(weight):
    """What is wrong with engine, scale or packed: of all products with this weight."""
    n, scale, packed = len(weight), torch.ones(len(weight)), ops.pack_weight(weight)
    int8 = {"weight": weight.to(torch.int8), "scale": scale}
    float32, float64 = "torch.float32", "torch.float64"
    wrong = "packed must be what pack_weight returns for this weight, "
    return [
        ({"engine": "fast"}, ValueError, "engine must be one of auto, event, dense, got 'fast'"),
        ({"engine": None}, ValueError, "engine must be one of auto, event, dense, got None"),
        ({**int8, "scale": None}, ValueError, "scale must be given with int8 weights"),
        ({**int8, "scale": 1.0}, TypeError, "scale must be a Tensor, got float"),
        ({**int8, "scale": scale.double()}, TypeError, f"scale must be float32 with int8 weights, got {float64}"),
        ({**int8, "scale": scale.to(META)}, ValueError, "scale must be on the device of weight, cpu, got meta"),
        ({**int8, "scale": scale[1:]}, ValueError, rf"scale must be \[{n}\], got \[{n - 1}\]"),
        ({**int8, "bias": scale.double()}, TypeError, f"bias must be float32 with int8 weights, got {float64}"),
        ({"weight": weight.half(), "bias": scale.half()}, TypeError, "bias must be float32 with float16 weights, got"),
        ({"weight": weight.bfloat16(), "scale": scale.double()}, TypeError, "scale must be float32 with bfloat16 .*"),
        ({"weight": weight.half(), "packed": packed.half()}, ValueError, f"{wrong}{float32} .*, got torch.float16"),
        ({**int8, "packed": packed}, ValueError, f"{wrong}torch.int8 .*, got {float32}"),
        ({"scale": [1.0]}, TypeError, "scale must be a Tensor, got list"),
        ({"scale": scale.double()}, TypeError, f"scale must have the dtype of weight, {float32}, got {float64}"),
        ({"scale": scale.to(META)}, ValueError, "scale must be on the device of weight, cpu, got meta"),
        ({"scale": scale[:, None]}, ValueError, rf"scale must be \[{n}\], got \[{n}, 1\]"),
        ({"scale": torch.ones(n, requires_grad=True)}, ValueError, "scale must not require a gradient; detach it"),
        ({"packed": [1.0]}, TypeError, "packed must be a Tensor, got list"),
        ({"packed": packed.double()}, ValueError, f"{wrong}{float32} .*, got {float64}"),
        ({"packed": packed[1:]}, ValueError, rf"{wrong}.*, got {float32} \[{len(packed) - 1}\]"),
        ({"packed": packed[None]}, ValueError, rf"{wrong}.*, got {float32} \[1, {len(packed)}\]"),
        ({"packed": ops.pack_weight(torch.cat([weight, weight], 1))}, ValueError, wrong),
        ({"packed": packed.to(META)}, ValueError, "packed must be on the device of weight, cpu, got meta"),
    ]


# What is wrong with one argument: of all linear products.
BAD_LINEAR = [
    ({"bits": BITS.float()}, TypeError, "bits must be uint8, got torch.float32"),
    ({"bits": [1]}, TypeError, "bits must be a Tensor, got list"),
    ({"bits": BITS[:0]}, ValueError, r"bits must be .* at least one plane, got \[0, 4, 3\]"),
    ({"bits": BITS[0]}, ValueError, r"bits must be \[P, N, \.\.\., F\], got \[4, 3\]"),
    ({"weight": None}, TypeError, "weight must be a Tensor, got NoneType"),
    ({"weight": WEIGHT.to(torch.complex64)}, TypeError, "weight must be .* or int16, got torch.complex64"),
    ({"weight": WEIGHT.int()}, TypeError, "weight must be float32, .*, bfloat16, int8 or int16, got torch.int32"),
    ({"weight": WEIGHT.to(META)}, ValueError, "weight must be on the device of bits, cpu, got meta"),
    ({"weight": WEIGHT[0]}, ValueError, r"weight must be \[O, 3\] .*, got \[3\]"),
    ({"weight": WEIGHT[..., None]}, ValueError, r"weight must be \[O, 3\] .*, got \[5, 3, 1\]"),
    ({"weight": WEIGHT.mT}, ValueError, r"weight must be \[O, 3\] .*, got \[3, 5\]"),
    ({"weight": WEIGHT[:0]}, ValueError, r"weight must have no empty dimension, got \[0, 3\]"),
    (
        {"bits": BITS[..., :0], "weight": WEIGHT[:, :0]},
        ValueError,
        r"weight must have no empty dimension, got \[5, 0\]",
    ),
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
    *bad_operands(WEIGHT),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BAD_LINEAR)
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=f"count_linear: {message}"):
        ops.count_linear(**{"bits": BITS, "weight": WEIGHT} | wrong)


def test_more_inputs_than_a_tile_can_list():
    """So many features that a tile of fewer samples than usual has room for its lists."""
    features = 700_000
    bits = (torch.rand(1, 64, features, generator=generator(0)) < 0.01).to(torch.uint8)
    weight = dyadic(5, features, seed=1)
    everywhere(bits[0].float() @ weight.t(), ops.count_linear, bits, weight)


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_in_huge_pages(dtype):
    """Of weights of several MiB, whose gradient is computed into memory that was allocated for it."""
    bits, weight = planes(8, 3, 1500, seed=0), dyadic(1000, 1500, seed=1, dtype=dtype).requires_grad_()
    arriving = dyadic(3, 1000, seed=2, dtype=dtype)
    ops.count_linear(bits, weight).backward(arriving)
    same(weight.grad, arriving.t() @ ref.spike_count(bits, dtype))
    # Twice differentiable all the same
    count = ref.spike_count(bits, dtype).requires_grad_()
    (grad,) = torch.autograd.grad(
        (ops.count_linear(bits, weight, count=count) * arriving).sum(), weight, create_graph=True
    )
    (of_count,) = torch.autograd.grad(grad.sum(), count)
    same(of_count, arriving.sum(1, keepdim=True).expand_as(count))


FLOAT_WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("of_count", [False, True])
@pytest.mark.parametrize("dtype", [*FLOAT_WEIGHTS, torch.int8, torch.int16])
def test_gradients_of_scaled_products(dtype, of_count, rows):
    """Whichever is larger, the weights or the gradient that arrives, and whoever needs one."""
    integers = not dtype.is_floating_point
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bits, grad = planes(9, rows, 5, seed=0), normal(rows, 4, seed=1, dtype=wide)
    weight = torch.randint(-9, 10, (4, 5), generator=generator(2)).to(dtype)
    scale, unit = (normal(4, seed=seed, dtype=wide).abs() + 0.1 for seed in (3, 4))
    count = ref.spike_count(bits, wide).requires_grad_(of_count)
    leaf = torch.zeros(4, 5, requires_grad=True) if integers else weight.requires_grad_()
    named = {"master": leaf, "unit": unit} if integers else {}
    y = ops.count_linear(bits, weight, scale=scale, count=count, **named)
    got = torch.autograd.grad(y, [leaf, *([count] if of_count else [])], grad)
    scaled = grad * scale
    want = [(scaled / unit if integers else scaled).t() @ count.detach(), scaled @ weight.detach().to(wide)]
    for g, w in zip(got, want, strict=False):
        torch.testing.assert_close(g, w.to(g.dtype), rtol=max(1e-5, 2 * torch.finfo(g.dtype).eps), atol=1e-5)


def test_gradients_of_half_weights_are_rounded_once():
    """In between, they may be larger than any number in half precision."""
    bits = torch.full((1, 2000, 1), 255, dtype=torch.uint8)
    weight = torch.ones(1, 1, dtype=torch.float16, requires_grad=True)
    y = ops.count_linear(bits, weight, scale=torch.tensor([0.01]))
    (got,) = torch.autograd.grad(y, weight, torch.full_like(y, 10.0))
    assert got.item() == 1600


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_of_tiny_units(scaled, rows):
    """Their reciprocals are infinite."""
    unit, count = torch.full((4,), 1e-39), torch.ones(rows, 5)
    master = torch.zeros(4, 5, requires_grad=True)
    weight = torch.ones(4, 5, dtype=torch.int8)
    scale = unit if scaled else torch.ones(4)
    y = ops.count_linear(torch.ones(1, rows, 5, dtype=torch.uint8), weight, scale=scale, master=master, unit=unit)
    (got,) = torch.autograd.grad(y, master, torch.full_like(y, 1.0 if scaled else 1e-39))
    torch.testing.assert_close(got, count.sum(0).expand(4, 5), rtol=1e-4, atol=0)
