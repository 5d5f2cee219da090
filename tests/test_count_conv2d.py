"""count_conv2d against the reference, bit for bit where sums are exact."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from exact import (
    ENGINES,
    FLOATS,
    META,
    RATES,
    SEEDS,
    TIME_STEPS,
    convolutions,
    depthwise_convolutions,
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
from test_count_linear import bad_operands


@examples(200)
@given(
    case=st.one_of(convolutions(), depthwise_convolutions()),
    time_steps=st.one_of(st.sampled_from(TIME_STEPS), st.integers(1, 70)),
    variant=variants(),
    rate=st.sampled_from(RATES),
    bias=st.booleans(),
    seed=SEEDS,
)
def test_matches_reference(case, time_steps, variant, rate, bias, seed):
    bits = planes(time_steps, *case["input"], seed=seed, rate=rate)
    weight, scale = variant.operands(*case["weight"], seed=seed + 1)
    b = dyadic(case["weight"][0], seed=seed + 2, dtype=variant.dtype) if bias else None
    named = {"scale": scale, **case["geometry"]}
    want = ref.count_conv2d(bits, weight, b, **named)
    everywhere(want, ops.count_conv2d, bits, weight, b, **named, **variant.how(weight, named["groups"]))


@every_variant
@pytest.mark.parametrize("rate", [0.5, 1.0])
@pytest.mark.parametrize("time_steps", [255, 256, 257, 300])
def test_counts_beyond_a_byte(time_steps, rate, variant):
    bits = planes(time_steps, 2, 9, 5, 4, seed=0, rate=rate)
    weight, scale = variant.operands(19, 9, 3, 3, seed=1)
    want = ref.count_conv2d(bits, weight, scale=scale, padding=1)
    everywhere(want, ops.count_conv2d, bits, weight, scale=scale, padding=1, **variant.how(weight))


# Sums of int8 weights about to overflow 16 bits or beyond that: taps that share a list of rows and taps that do not.
NARROW_SUMS = pytest.mark.parametrize(
    ("shape", "value", "groups"),
    [
        ((3, 1, 15, 17), -128, 1),
        ((40, 1, 16, 16), -128, 1),
        ((6, 1, 1, 257), 127, 6),
        ((70, 30, 3, 3), -128, 1),
        ((130, 64, 2, 2), -128, 1),
        ((66, 130, 3, 1), -128, 2),
        ((40, 64, 3, 3), -128, 1),
    ],
)


@NARROW_SUMS
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_int8_sums_are_exact(shape, value, groups, rate):
    bits = planes(3, 2, groups * shape[1], *shape[2:], seed=0, rate=rate)
    weight = torch.full(shape, value, dtype=torch.int8)
    sums = F.conv2d(ref.spike_count(bits, torch.float64), weight.double(), padding=1, groups=groups)
    scale = torch.linspace(-1, 1, len(weight))
    want = scale.view(-1, 1, 1) * sums.float()
    for packed in (None, ops.pack_weight(weight, groups)):
        everywhere(want, ops.count_conv2d, bits, weight, packed=packed, scale=scale, padding=1, groups=groups)


@every_variant
@pytest.mark.parametrize(("batch", "time_steps"), [(10, 8), (1, 264)])
def test_large_images(batch, time_steps, variant):
    """More than the kernels' scratch memory holds at once: several samples, or several binary digits of counts."""
    few = planes(time_steps, batch, 16, 8, 96, seed=0, rate=0.99)
    bits = few.repeat(1, 1, 1, 12, 1)
    assert time_steps == 8 or ref.spike_count(few).max() > 255
    weight, scale = variant.operands(5, 16, 3, 3, seed=1)
    named = {"bias": dyadic(5, seed=2, dtype=variant.dtype), "scale": scale, "padding": 1}
    want = ref.count_conv2d(bits, weight, **named)
    everywhere(want, ops.count_conv2d, bits, weight, **named, **variant.how(weight))


@pytest.mark.parametrize("engine", ["event", "dense"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("outputs", [5, 20, 90])  # blocks of all three sizes
def test_inexact_weights(dtype, engine, outputs):
    """Close to the reference; events also the same on every instruction set, with any number of threads."""
    bits = planes(20, 3, 30, 19, 17, seed=0, rate=0.1)
    weight, bias = (torch.randn(s, generator=generator(1), dtype=dtype) / 17 for s in ((outputs, 30, 3, 3), (outputs,)))
    want = ref.count_conv2d(bits, weight, bias)
    first = None
    for path, got in every_path(ops.count_conv2d, bits, weight, bias, engine=engine):
        torch.testing.assert_close(got, want)
        if engine == "event":
            first = got if first is None else first
            same(got, first, path)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("groups", [1, 2])
def test_lists_of_several_passes(groups, dtype):
    """More tiles than have their lists of counts at once."""
    bits = planes(3, 1, 64, 160, 150, seed=0, rate=0.05)
    weight = dyadic(6, 64 // groups, 5, 5, seed=1, dtype=dtype)
    want = ref.count_conv2d(bits, weight, groups=groups)
    everywhere(want, ops.count_conv2d, bits, weight, groups=groups, engine="event")


def test_ints_and_pairs():
    bits, weight = planes(9, 2, 3, 9, 8, seed=0), dyadic(4, 3, 3, 2, seed=1)
    want = ref.count_conv2d(bits, weight, None, (2, 2), (1, 1), (2, 2))
    same(ops.count_conv2d(bits, weight, None, 2, 1, 2), want)
    same(ops.count_conv2d(bits, weight, None, [2, 2], torch.Size((1, 1)), (2, 2)), want)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("groups", [1, 3])
def test_image_without_pixels(groups, engine):
    """Padding alone: the bias everywhere."""
    bits = torch.zeros(1, 2, 3, 0, 2, dtype=torch.uint8)
    weight, bias = dyadic(6, 3 // groups, 1, 2, seed=0), dyadic(6, seed=1)
    want = bias.view(1, 6, 1, 1).expand(2, 6, 2, 3)
    everywhere(want, ops.count_conv2d, bits, weight, bias, padding=1, groups=groups, engine=engine)


BITS = torch.zeros(2, 3, 4, 6, 5, dtype=torch.uint8)
WEIGHT = torch.zeros(8, 4, 3, 2)

# What is wrong with one argument: of all convolutional products.
BAD_CONV2D = [
    ({"bits": BITS.float()}, TypeError, "bits must be uint8, got torch.float32"),
    ({"bits": None}, TypeError, "bits must be a Tensor, got NoneType"),
    ({"bits": BITS[:0]}, ValueError, r"bits must be .* at least one plane, got \[0, 3, 4, 6, 5\]"),
    ({"bits": BITS[0]}, ValueError, r"bits must be \[P, N, C, H, W\], got \[3, 4, 6, 5\]"),
    ({"weight": [1.0]}, TypeError, "weight must be a Tensor, got list"),
    ({"weight": WEIGHT.to(torch.complex64)}, TypeError, "weight must be .* or int16, got torch.complex64"),
    ({"weight": WEIGHT.to(META)}, ValueError, "weight must be on the device of bits, cpu, got meta"),
    ({"weight": WEIGHT[0]}, ValueError, r"weight must be \[O, C/groups, kH, kW\], got \[4, 3, 2\]"),
    ({"weight": WEIGHT[:, :3]}, ValueError, r"weight must be \[O, 4, kH, kW\] .*, got \[8, 3, 3, 2\]"),
    ({"weight": WEIGHT[:0]}, ValueError, r"weight must .*, got \[0, 4, 3, 2\]"),
    ({"weight": WEIGHT[:, :, :0]}, ValueError, r"weight must .*, got \[8, 4, 0, 2\]"),
    ({"bits": BITS[:, :, :0], "weight": WEIGHT[:, :0]}, ValueError, r"weight must .*, got \[8, 0, 3, 2\]"),
    ({"bias": 1.0}, TypeError, "bias must be a Tensor, got float"),
    ({"bias": torch.zeros(4)}, ValueError, r"bias must be \[8\], got \[4\]"),
    ({"bias": torch.zeros(8, 1, 1)}, ValueError, r"bias must be \[8\], got \[8, 1, 1\]"),
    ({"bias": torch.zeros(8).double()}, TypeError, "bias must have the dtype of weight, torch.float32, got"),
    ({"bias": torch.zeros(8, device=META)}, ValueError, "bias must be on the device of weight, cpu, got meta"),
    ({"count": torch.zeros(4, 6, 5)}, ValueError, r"count must be \[3, 4, 6, 5\], got \[4, 6, 5\]"),
    ({"count": torch.zeros(3, 4, 6, 5).double()}, TypeError, "count must have the dtype of weight"),
    ({"count": torch.zeros(3, 4, 6, 5, device=META)}, ValueError, "count must be on the device of weight"),
    ({"stride": 0}, ValueError, r"stride must be at least 1, got \(0, 0\)"),
    ({"stride": (1, -1)}, ValueError, r"stride must be at least 1, got \(1, -1\)"),
    ({"stride": 1.0}, TypeError, "stride must be an int or a pair of ints, got 1.0"),
    ({"stride": (1, 1, 1)}, TypeError, r"stride must be an int or a pair of ints, got \(1, 1, 1\)"),
    ({"stride": "same"}, TypeError, "stride must be an int or a pair of ints, got 'same'"),
    ({"padding": -1}, ValueError, r"padding must be at least 0, got \(-1, -1\)"),
    ({"padding": (0, 0.5)}, TypeError, r"padding must be an int or a pair of ints, got \(0, 0.5\)"),
    ({"padding": None}, TypeError, "padding must be an int or a pair of ints, got None"),
    ({"dilation": 0}, ValueError, r"dilation must be at least 1, got \(0, 0\)"),
    ({"dilation": (1,)}, TypeError, r"dilation must be an int or a pair of ints, got \(1,\)"),
    ({"dilation": 5}, ValueError, "the dilated kernel is larger than the padded input along the (height|width)"),
    ({"weight": torch.zeros(8, 4, 7, 1)}, ValueError, "kernel is larger than the padded input along the height"),
    ({"weight": torch.zeros(8, 4, 1, 6)}, ValueError, "kernel is larger than the padded input along the width"),
    ({"groups": 0}, ValueError, r"groups must divide .* \(4\) .* \(8\), got 0"),
    ({"groups": -1}, ValueError, r"groups must divide .* \(4\) .* \(8\), got -1"),
    ({"groups": 3}, ValueError, r"groups must divide .* \(4\) .* \(8\), got 3"),
    ({"groups": 8}, ValueError, r"groups must divide .* \(4\) .* \(8\), got 8"),
    ({"groups": 2}, ValueError, r"weight must be \[O, 2, kH, kW\] .* 2 groups, got \[8, 4, 3, 2\]"),
    ({"groups": 1.0}, TypeError, "groups must be .*float"),
    ({"groups": "1"}, TypeError, "groups must be .*str"),
    ({"groups": None}, TypeError, "groups must be .*NoneType"),
    *bad_operands(WEIGHT),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BAD_CONV2D)
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=f"count_conv2d: .*{message}"):
        ops.count_conv2d(**{"bits": BITS, "weight": WEIGHT} | wrong)


@pytest.mark.parametrize("argument", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("size", [2**31, 2**62, 2**70])
def test_absurd_geometry(argument, size):
    with pytest.raises(ValueError, match=f"count_conv2d: .*{argument}"):
        ops.count_conv2d(BITS, WEIGHT, **{argument: size})
