"""The products of spikes against the reference, bit for bit where sums are exact: counts and spikes, conv2d and linear.

What every operator does is tested in test_operators.py; convolutions of one channel a group in test_depthwise.py, and
gradients in test_product_gradients.py.
"""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import exact
from cases import raw
from exact import (
    AUTO,
    CHANNELS,
    DENSE,
    ENGINES,
    EVENT,
    FLOATS,
    INTEGERS,
    META,
    RADIX,
    RATES,
    SEEDS,
    THREADS,
    TIME_STEPS,
    VARIANTS,
    WEIGHTS,
    dyadic,
    every_path,
    everywhere,
    examples,
    firing_rate,
    generator,
    planes,
    same,
    slow,
    train,
)
from neurons import BRANCHES, any_neuron, every_kind, joining, state_of
from pairwise import pairs
from tandem_cuda import _C, IF, LIF, ops
from tandem_cuda import reference as ref
from tandem_cuda.neuron import RadixIF
from tandem_cuda.ops.radix_spikes import fire_radix
from tensors import integers

PRODUCTS = ("count_conv2d", "count_linear", "spiking_conv2d", "spiking_linear")


@st.composite
def matrices(draw):
    """Sizes of a linear product, as `exact.convolutions` has those of a convolution."""
    batch = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    features, outputs = draw(st.sampled_from(CHANNELS)), draw(st.sampled_from(CHANNELS))
    return {"input": (*batch, features), "weight": (outputs, features), "geometry": {}}


every_shape = pytest.mark.parametrize(
    ("kind", "shapes"),
    [("conv2d", st.one_of(exact.convolutions(), exact.depthwise_convolutions())), ("linear", matrices())],
    ids=["conv2d", "linear"],
)


def call(product, how, bits, weight, *arguments, **named):
    """What the reference returns, which the operator returns on every path, too."""
    want = getattr(ref, product)(bits, weight, *arguments, **named)
    everywhere(want, getattr(ops, product), bits, weight, *arguments, **named, **how)
    return want


def channelwise(values, weight):
    """Numbers of output channels, to broadcast with outputs [..., O, ...]."""
    return values.view(-1, *[1] * (weight.dim() - 2))


def product_of(inputs, weight, **geometry):
    """What torch makes of dense inputs and weights."""
    return F.linear(inputs, weight) if weight.dim() == 2 else F.conv2d(inputs, weight, **geometry)


# --- random arguments ------------------------------------------------------------------------------------------------


@every_shape
@examples(200)
@given(
    data=st.data(),
    time_steps=st.one_of(st.sampled_from(TIME_STEPS), st.integers(1, 70)),
    variant=exact.variants(),
    rate=st.sampled_from(RATES),
    radix=st.sampled_from((0, 0, 0, *RADIX)),
    bias=st.booleans(),
    seed=SEEDS,
)
def test_counts(kind, shapes, data, time_steps, variant, rate, radix, bias, seed):
    """Of spikes, and the values of radix spikes."""
    case = data.draw(shapes)
    bits = planes(radix or time_steps, *case["input"], seed=seed, rate=rate)
    weight, scale = variant.operands(*case["weight"], seed=seed + 1)
    bias = dyadic(case["weight"][0], seed=seed + 2, dtype=variant.dtype) if bias else None
    how = variant.how(weight, case["geometry"].get("groups", 1))
    call(f"count_{kind}", how, bits, weight, bias, scale=scale, **case["geometry"], radix=radix)


@every_shape
@examples(200)
@given(
    data=st.data(),
    time_steps=st.one_of(st.sampled_from(TIME_STEPS), st.integers(1, 70)),
    variant=exact.variants(),
    rate=st.sampled_from(RATES),
    neuron=any_neuron(),
    bias=st.booleans(),
    state=st.booleans(),
    branch=st.sampled_from(BRANCHES),
    wanted=st.tuples(st.booleans(), st.booleans()),
    seed=SEEDS,
)
def test_spikes(kind, shapes, data, time_steps, variant, rate, neuron, bias, state, branch, wanted, seed):
    case = data.draw(shapes)
    linear, outputs, dtype = kind == "linear", case["weight"][0], variant.dtype
    out_shape = (*case["input"][:-1], outputs) if linear else exact.out_shape(case)
    bits = planes(time_steps, *case["input"], seed=seed, rate=rate)
    weight, scale = variant.operands(*case["weight"], seed=seed + 1)
    arguments = {
        "scale": scale,
        "bias": dyadic(outputs, seed=seed + 2, dtype=dtype) if bias else None,
        "state": state_of(neuron, *out_shape, seed=seed + 3, span=2, dtype=dtype) if state else None,
        "time_steps": time_steps,
        "neuron": neuron,
        "want_sum": wanted[0],
        "want_state": wanted[1],
        **case["geometry"],
        **joining(branch, time_steps, *out_shape, axis=-1 if linear else 1, seed=seed + 4, dtype=dtype),
    }
    call(f"spiking_{kind}", variant.how(weight, case["geometry"].get("groups", 1)), bits, weight, **arguments)


STREAMED = {  # input, weight, geometry
    "conv2d": ((2, 4, 5, 5), (6, 2, 3, 3), {"stride": 2, "padding": 1, "groups": 2}),
    "linear": ((2, 3, 21), (10, 21), {}),
}


@pytest.mark.parametrize("kind", STREAMED)
@given(
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    multiples=st.booleans(),
    neuron=any_neuron((1.0,)),
    variant=exact.variants(),
    seed=SEEDS,
)
def test_streaming(kind, cuts, multiples, neuron, variant, seed):
    """In pieces, each with the state that the last one returned, a train is what it is in one."""
    inputs, shape, geometry = STREAMED[kind]
    spiking = getattr(ops, f"spiking_{kind}")
    cuts = [8 * c for c in cuts] if multiples else cuts
    time_steps = sum(cuts)
    spikes = train(time_steps, *inputs, seed=seed)
    weight, _ = variant.operands(*shape, seed=seed + 1)
    if variant.weights == torch.int16:
        weight = weight >> 8  # so that sums of all currents, too, are exact
    bias, scale = (dyadic(shape[0], seed=seed + i, dtype=variant.dtype) / 4 for i in (2, 3))  # their sums are exact
    named = {"neuron": neuron, "scale": scale if variant.scaled else None, **geometry}
    named |= variant.how(weight, geometry.get("groups", 1))
    whole, total, final = spiking(ref.pack_spikes(spikes), weight, bias, time_steps=time_steps, **named)
    pieces, totals, state, start = [], [], None, 0
    for steps in cuts:
        # Whole planes are cut without a copy; other pieces are packed anew.
        cut = slice(start, start + steps)
        part = ref.pack_spikes(spikes)[start // 8 : (start + steps) // 8] if multiples else ref.pack_spikes(spikes[cut])
        bits, part_total, state = spiking(part, weight, bias, state=state, time_steps=steps, **named)
        pieces.append(ops.unpack_spikes(bits, steps))
        totals.append(part_total)
        start += steps
    same(torch.cat(pieces), ops.unpack_spikes(whole, time_steps))
    same(state, final)
    same(sum(totals), total)


# --- sizes -----------------------------------------------------------------------------------------------------------


@pairs(
    sizes=[(3, 70, 1), (64, 40, 1), (65, 130, 1), (130, 20, 1), (48, 96, 48), (128, 32, 2)],
    shape=[(2, 9, 7), (3, 19, 17)],
    variant=VARIANTS,
)
def test_larger_images(sizes, shape, variant):
    """Several tiles for every thread; channels at and beside the borders of words and blocks."""
    channels, outputs, groups = sizes
    bits = planes(11, shape[0], channels, *shape[1:], seed=0, rate=0.1)
    weight, scale = variant.operands(outputs, channels // groups, 3, 3, seed=1)
    bias = dyadic(outputs, seed=2, dtype=variant.dtype) / 8
    branch = "spikes" if channels % 2 else "currents"
    joined = joining(branch, 11, shape[0], outputs, *shape[1:], seed=3, dtype=variant.dtype)
    named = {"scale": scale, "padding": 1, "groups": groups, "time_steps": 11, **joined}
    spikes, *_ = call("spiking_conv2d", variant.how(weight, groups), bits, weight, bias, **named)
    assert 0.03 < firing_rate(spikes, 11) < 0.8


@exact.every_variant
@pytest.mark.parametrize(("time_steps", "batch"), [(8, 67), (13, 1001), (300, 67)])
def test_larger_batches(time_steps, batch, variant):
    """Several tiles for every thread, and counts that exceed a byte."""
    bits = planes(time_steps, batch, 130, seed=0, rate=0.1)
    weight, scale = variant.operands(70, 130, seed=1)
    named = {"bias": dyadic(70, seed=2, dtype=variant.dtype) / 8, "scale": scale, "time_steps": time_steps}
    spikes, *_ = call("spiking_linear", variant.how(weight), bits, weight, **named)
    assert 0.05 < firing_rate(spikes, time_steps) < 0.8


# Channels a group and outputs in all, at and beside the borders of words, blocks, vectors and quads of bytes; groups.
OF_VALUES = [(1, 1, 1), (3, 17, 1), (4, 16, 1), (22, 34, 2), (63, 64, 1), (64, 66, 2), (65, 129, 1), (1, 21, 7)]


@pairs(
    sizes=OF_VALUES,
    radix=RADIX,
    dtype=WEIGHTS,
    engine=ENGINES,
    drawn=["even", "sparse", "largest", "high", "none"],
    bias=[False, True],
    power_of_two=[False, True],
)
def test_values(sizes, radix, dtype, engine, drawn, bias, power_of_two):
    """Of radix spikes, largest and zero ones, and those from 128 on, which a signed byte does not hold."""
    channels, outputs, groups = sizes
    shape = (2, groups * channels, 7, 6)
    rate = {"even": 0.5, "high": 0.5, "sparse": 0.03, "largest": 1.0, "none": 0.0}[drawn]
    bits = planes(radix, *shape, seed=radix, rate=rate)
    if drawn == "high":
        bits |= 1 << (radix - 1)
    variant = exact.Variant(dtype, scaled=dtype in INTEGERS or radix % 2 == 0, packed=radix > 4, engine=engine)
    weight, scale = variant.operands(outputs, channels, 3, 2, seed=1)
    bias = dyadic(outputs, seed=2, dtype=variant.dtype) if bias else None
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": groups}
    how = variant.how(weight, groups)
    call("count_conv2d", how, bits, weight, bias, scale=scale, radix=radix, **geometry)
    # And not what torch makes of these numbers alone
    sums = F.conv2d(bits[0].double(), weight.double(), **geometry)
    got = ops.count_conv2d(bits, weight, scale=scale, radix=radix, **geometry, **how)
    same(got, sums.to(got.dtype) if scale is None else channelwise(scale, weight) * sums.to(got.dtype))
    level = max(1.0, got.abs().max().item() / 2)
    level = 2.0 ** round(math.log2(level)) if power_of_two else level * 1.01
    fires = {"neuron": RadixIF(level, initial=0.25 * (radix % 3)), "time_steps": 1 + radix % 8}
    call("count_conv2d", how, bits, weight, bias, scale=scale, radix=radix, **geometry, **fires)


@pairs(
    sizes=[(8, 17, 1), (33, 64, 1), (16, 70, 2)],
    steps=[(1, 8), (3, 5), (4, 4), (8, 2)],
    dtype=[*INTEGERS, torch.float32],
    engine=ENGINES,
    theta=[0.7, 1.3e-20, 1.9e20],
    seed=[1, 2],
)
def test_sums_at_thresholds(sizes, steps, dtype, engine, theta, seed):
    """Sums at and beside multiples of a threshold that is no power of two: the spikes that single steps make."""
    channels, outputs, groups = sizes
    bits = planes(steps[1], 2, groups * channels, 5, 4, seed=seed)
    weight = integers(groups * outputs, channels, 3, 3, seed=seed, dtype=torch.int8).clamp(-20, 20).to(dtype)
    radix = RadixIF(theta * 2 ** steps[0], initial=0.25 * seed)
    scale = torch.full(weight.shape[:1], radix.threshold_at(steps[0]) / (1 + 6 * seed))
    named = {"padding": 1, "groups": groups, "scale": scale, "radix": steps[1], "engine": engine}
    sums = ops.count_conv2d(bits, weight, **named)
    want, _ = fire_radix(sums, None, None, steps[0], radix, True)
    same(ops.count_conv2d(bits, weight, **named, neuron=radix, time_steps=steps[0]), want)
    assert len(want.unique()) > min(steps[0], 4)


@pairs(
    sizes=[(3, 70, 1), (65, 130, 1), (48, 96, 48), (128, 32, 2)],
    shape=[(2, 9, 7), (3, 19, 17)],
    radix=[2, 5, 8],
    rate=[0.01, 0.1, 0.5],
    variant=VARIANTS,
)
def test_values_of_larger_images(sizes, shape, radix, rate, variant):
    channels, outputs, groups = sizes
    bits = planes(radix, shape[0], channels, *shape[1:], seed=0, rate=rate)
    weight, scale = variant.operands(outputs, channels // groups, 3, 3, seed=1)
    named = {"bias": dyadic(outputs, seed=2, dtype=variant.dtype), "scale": scale, "padding": 1, "groups": groups}
    v = call("count_conv2d", variant.how(weight, groups), bits, weight, **named, radix=radix)
    fires = {"neuron": RadixIF(max(1.0, v.abs().max().item() / 2)), "time_steps": radix}
    bits_out = call("count_conv2d", variant.how(weight, groups), bits, weight, **named, radix=radix, **fires)
    assert len(bits_out.unique()) > 2


@pairs(
    channels=[2, 8, 21, 66],
    outputs=[31, 32, 33, 66, 200],
    groups=[1, 2],
    dtype=INTEGERS,
    trains=[(1, 1), (4, 4), (7, 7), (8, 8), (8, 0), (72, 0)],
    opposite=["outputs", "inputs", "both"],
    packed=[True, False],
    size=[(2, 4, 3), (5, 11, 13)],
)
def test_signed_values_share_products(channels, outputs, groups, dtype, trains, opposite, packed, size):
    """Outputs, or inputs, 2i + 1 have the weights of those before them with the other sign.

    Where one weight of the last pair is another, none may be taken for the negative of its neighbour. Both inputs of a
    value may have spikes.
    """
    steps, radix = trains
    bits = planes(steps, size[0], groups * channels, *size[1:], seed=0)
    variant = exact.Variant(dtype, scaled=True, packed=packed, engine="dense")
    weight, scale = variant.operands(groups * outputs, channels, 3, 2, seed=1)
    weight, bias = weight.clamp(min=-127), dyadic(groups * outputs, seed=2)
    if opposite != "inputs":
        weight[1::2] = -weight[: len(weight) // 2 * 2 : 2]
    if opposite != "outputs":
        weight[:, 1::2] = -weight[:, : channels // 2 * 2 : 2]
    other = weight.clone()
    other[len(weight) // 2 * 2 - 1, channels // 2 * 2 - 1, -1, -1] += 1
    named = {"bias": bias, "scale": scale, "padding": 1, "stride": (1, 2), "groups": groups, "radix": radix}
    for w in (weight, other):
        v = call("count_conv2d", variant.how(w, groups), bits, w, **named)
        if radix:
            fires = {"neuron": RadixIF(2.0 ** round(math.log2(v.abs().max().item()))), "time_steps": radix}
            call("count_conv2d", variant.how(w, groups), bits, w, **named, **fires)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("inputs", [65_793, 65_794])
def test_largest_sums_of_values(inputs, dtype, engine):
    """The most inputs whose products with 8 bits of weights fit 32 bits, and one more; all as large as they get."""
    least, most = {torch.int8: (-128, 127), torch.int16: (-32639, 32639)}[dtype]
    weight = torch.empty(3, inputs, dtype=dtype)
    weight[0], weight[1] = least, most
    weight[2, ::2], weight[2, 1::2] = least, most
    bits = torch.full((1, 2, inputs), 255, dtype=torch.uint8)
    bits[0, 1, -1] = 0
    scale = torch.tensor([1.0, -0.3, 2.0**-20])
    want = scale * (bits[0].double() @ weight.double().t()).float()
    for packed in (None, ops.pack_weight(weight)):
        everywhere(want, ops.count_linear, bits, weight, scale=scale, engine=engine, packed=packed, radix=8)


BEYOND_A_BYTE = {"conv2d": ((2, 9, 5, 4), (19, 9, 3, 3), {"padding": 1}), "linear": ((3, 67), (19, 67), {})}


@pairs(kind=list(BEYOND_A_BYTE), time_steps=[255, 256, 257, 300, 600], rate=[0.5, 1.0], variant=VARIANTS)
def test_counts_beyond_a_byte(kind, time_steps, rate, variant):
    inputs, shape, geometry = BEYOND_A_BYTE[kind]
    weight, scale = variant.operands(*shape, seed=1)
    bits = planes(time_steps, *inputs, seed=0, rate=rate)
    call(f"count_{kind}", variant.how(weight), bits, weight, scale=scale, **geometry)


def test_more_steps_than_a_byte_counts():
    bits, weight = planes(300, 2, 5, 4, 5, seed=0), dyadic(17, 5, 3, 3, seed=1)
    spikes, *_ = call("spiking_conv2d", {}, bits, weight, padding=1, time_steps=300)
    assert ref.spike_count(spikes).max() > 255


# Weights, their value, groups: sums of int8 about to overflow 16 bits or beyond that, of taps that share a list of rows
# and taps that do not; and sums too long for a float of 24 bits to count.
NARROW = [
    ((3, 1, 15, 17), -128, 1),
    ((40, 1, 16, 16), -128, 1),
    ((6, 1, 1, 257), 127, 6),
    ((70, 30, 3, 3), -128, 1),
    ((130, 64, 2, 2), -128, 1),
    ((66, 130, 3, 1), -128, 2),
    ((40, 64, 3, 3), -128, 1),
    *(((outputs, features), -128, 1) for outputs, features in ((3, 255), (40, 256), (130, 1000), (2, 65537))),
    *(((outputs, features), 127, 1) for outputs, features in ((70, 257), (33, 65537))),
]


@pairs(narrow=NARROW, rate=[0.5, 1.0], kind=["count", "spiking", "value"])
def test_int8_sums_are_exact(narrow, rate, kind):
    shape, value, groups = narrow
    linear = len(shape) == 2
    inputs, geometry = ((5, shape[1]), {}) if linear else ((2, groups * shape[1], *shape[2:]), {"padding": 1})
    geometry |= {} if linear else {"groups": groups}
    steps = 8 if kind == "value" else 3
    bits, weight = planes(steps, *inputs, seed=0, rate=rate), torch.full(shape, value, dtype=torch.int8)
    scale, bias = torch.linspace(-1, 1, shape[0]), dyadic(shape[0], seed=1) if linear else None
    dense = ref.unpack_spikes(bits, steps, torch.float64)
    entering = {"spiking": dense, "count": dense.sum(0, keepdim=True), "value": bits.double()}[kind]
    sums = [product_of(x, weight.double(), **geometry) for x in entering]
    want = channelwise(scale, weight) * torch.stack(sums).float() + (bias if linear else 0)
    named = {"scale": scale, **geometry}
    if kind == "spiking":
        want = ref.integrate_and_fire(want, 3, mode="series", neuron=IF(1000))
        named |= {"time_steps": 3, "neuron": IF(1000)}
    else:
        want = want[0]
        named |= {"radix": 8} if kind == "value" else {}
    product = getattr(ops, f"{'spiking' if kind == 'spiking' else 'count'}_{'linear' if linear else 'conv2d'}")
    for packed in (None, ops.pack_weight(weight, groups)):
        everywhere(want, product, bits, weight, bias, packed=packed, **named)


@exact.every_variant
@pytest.mark.parametrize(("batch", "time_steps", "radix"), [(10, 8, 0), (1, 264, 0), (10, 7, 7)])
def test_counts_of_large_images(batch, time_steps, radix, variant):
    """More than the kernels' scratch memory holds at once: several samples, or several binary digits of counts."""
    few = planes(time_steps, batch, 16, 8, 96, seed=0, rate=0.99)
    assert time_steps <= 8 or ref.spike_count(few).max() > 255
    weight, scale = variant.operands(5, 16, 3, 3, seed=1)
    named = {"bias": dyadic(5, seed=2, dtype=variant.dtype), "scale": scale, "padding": 1}
    call("count_conv2d", variant.how(weight), few.repeat(1, 1, 1, 12, 1), weight, **named, radix=radix)


WANTED = [(True, False), (False, True), (False, False)]


@pytest.mark.parametrize(
    ("batch", "time_steps", "wanted", "state", "variant"),
    [
        row
        for i, variant in enumerate(VARIANTS.values())
        for batch, time_steps in ((10, 8), (2, 44))
        for row in (
            (batch, time_steps, True, True, variant), slow(batch, time_steps, *WANTED[(i + batch) % 3], variant)
        )
    ],
)  # fmt: skip
def test_spikes_of_large_images(batch, time_steps, wanted, state, variant):
    """More than the kernels' scratch memory holds at once: several samples, or several planes of one."""
    bits = planes(time_steps, batch, 16, 8, 64, seed=0, rate=0.1).repeat(1, 1, 1, 8, 1)
    weight, scale = variant.operands(5, 16, 3, 3, seed=1)
    named = {
        "scale": scale,
        "bias": dyadic(5, seed=2, dtype=variant.dtype) / 8,
        "padding": 1,
        "time_steps": time_steps,
        "neuron": LIF(leak=0.75),
        "state": dyadic(1, batch, 5, 64, 64, seed=3, span=2, dtype=variant.dtype) if state else None,
        "want_sum": wanted,
        "want_state": wanted,
    }
    call("spiking_conv2d", variant.how(weight), bits, weight, **named)


@exact.every_variant
@pytest.mark.parametrize("byte", [0, 255])
def test_all_or_nothing_spikes(byte, variant):
    """What makes the lists of spikes longest and shortest."""
    bits = torch.full((3, 2, 130, 9, 7), byte, dtype=torch.uint8)
    weight, scale = variant.operands(40, 130, 3, 3, seed=1)
    named, how = {"scale": scale, "padding": 1}, variant.how(weight)
    call("spiking_conv2d", how, bits, weight, **named, time_steps=24)
    call("count_conv2d", how, bits, weight, **named)
    call("count_conv2d", how, bits[:1], weight, **named, radix=8)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("state", [True, False])
@every_kind
def test_dense_passes(wanted, state, neuron):
    """More than the dense engine unpacks at once: it carries states and sums from pass to pass."""
    bits, weight = planes(44, 2, 8, 64, 128, seed=0), dyadic(24, 8, 1, 1, seed=1)
    named = {
        "bias": dyadic(24, seed=2) / 8,
        "time_steps": 44,
        "neuron": neuron,
        "state": state_of(neuron, 2, 24, 64, 128, seed=3, span=2) if state else None,
        "want_sum": wanted,
        "want_state": wanted,
    }
    call("spiking_conv2d", {"engine": "dense"}, bits, weight, **named)


def test_high_definition():
    """One frame of 1280 x 720 with many channels, of which the kernels keep a lot."""
    bits = torch.zeros(1, 1, 720, 1280, 64, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    corner = planes(1, 1, 64, 4, 4, seed=0)
    ends = (slice(0, 4), slice(-4, None))
    for rows in ends:
        for columns in ends:
            bits[..., rows, columns] = corner
    weight = dyadic(3, 64, 3, 3, seed=1)
    want = ref.spiking_conv2d(corner, weight, time_steps=1)
    got = ops.spiking_conv2d(bits, weight, time_steps=1)
    ends = (slice(0, 2), slice(-2, None))
    for rows in ends:
        for columns in ends:
            same([x[..., rows, columns] for x in got], want, f"{rows}, {columns}")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("groups", [1, 2])
def test_lists_of_several_passes(groups, dtype):
    """More tiles than have their lists of counts at once."""
    bits = planes(3, 1, 64, 160, 150, seed=0, rate=0.05)
    weight = dyadic(6, 64 // groups, 5, 5, seed=1, dtype=dtype)
    for radix in (0, 3):
        call("count_conv2d", {"engine": "event"}, bits, weight, groups=groups, radix=radix)


def test_more_inputs_than_a_tile_can_list():
    """So many features that a tile of fewer samples than usual has room for its lists."""
    features = 700_000
    bits = (torch.rand(1, 64, features, generator=generator(0)) < 0.01).to(torch.uint8)
    weight = dyadic(5, features, seed=1)
    everywhere(bits[0].float() @ weight.t(), ops.count_linear, bits, weight)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("groups", [1, 3])
def test_image_without_pixels(groups, engine):
    """Padding alone: the bias everywhere, which drives the neurons."""
    bits = torch.zeros(1, 2, 3, 0, 2, dtype=torch.uint8)
    weight, bias = dyadic(6, 3 // groups, 1, 2, seed=0), dyadic(6, seed=1)
    counts = bias.view(1, 6, 1, 1).expand(2, 6, 2, 3)
    named = {"padding": 1, "groups": groups, "engine": engine}
    everywhere(counts, ops.count_conv2d, bits, weight, bias, **named)
    everywhere(counts, ops.count_conv2d, bits, weight, bias, **named, radix=8)
    want = ref.integrate_and_fire(counts, 8)
    everywhere(want, ops.spiking_conv2d, bits, weight, bias, **named, time_steps=8)


# --- sums that are rounded -------------------------------------------------------------------------------------------

INEXACT = {  # time steps, input, weight; outputs in blocks of all three sizes
    "count_conv2d, 5": (20, (3, 30, 19, 17), (5, 30, 3, 3)),
    "count_conv2d, 20": (20, (3, 30, 19, 17), (20, 30, 3, 3)),
    "count_conv2d, 90": (20, (3, 30, 19, 17), (90, 30, 3, 3)),
    "count_linear": (20, (1001, 300), (90, 300)),
    "spiking_conv2d": (12, (2, 30, 12, 11), (90, 30, 3, 3)),
    "spiking_linear": (12, (50, 300), (90, 300)),
}


@pytest.mark.parametrize("engine", ["event", "dense"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", INEXACT)
def test_inexact_weights(name, dtype, engine):
    """Close to the reference; events also the same with any number of threads, and convolved counts everywhere."""
    product, (time_steps, inputs, shape) = name.split(",")[0], INEXACT[name]
    fires = product.startswith("spiking")
    bits = planes(time_steps, *inputs, seed=0, rate=0.1)
    numbers = (torch.randn(s, generator=generator(1), dtype=dtype) for s in (shape, shape[:1]))
    weight, bias = (x / (10 if fires else 17) for x in numbers)
    named = {"time_steps": time_steps} if fires else {}
    want = getattr(ref, product)(bits, weight, bias, **named)
    assert not fires or 0.05 < firing_rate(want[0], time_steps) < 0.8
    results = {}
    for path, got in every_path(getattr(ops, product), bits, weight, bias, engine=engine, **named):
        torch.testing.assert_close(got[1] if fires else got, want[1] if fires else want)
        assert not fires or (got[0] != want[0]).float().mean() < 1e-3, path
        if engine == "event":
            same(got, results.setdefault("" if product == "count_conv2d" else path.split(",")[0], got), path)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("share", "value", "engine"), [(0.4, 255, "event"), (0.6, 1, "dense")])
def test_auto_goes_by_the_share_of_values(share, value, engine, threads):
    """Of float weights and radix spikes, not by ones: sums tell which engine added them up."""
    torch.set_num_threads(threads)
    if _C.cpu_isa() == "amx":
        _C.set_cpu_isa("avx512vbmi2")  # matrix tiles have a crossover of their own
    bits = value * train(1, 2, 64, 32, 32, seed=0, rate=share)
    weight = torch.randn(64, 64, 3, 3, generator=generator(1))
    got, event, dense = (
        ops.count_conv2d(bits, weight, padding=1, engine=which, radix=8) for which in ("auto", "event", "dense")
    )
    assert not torch.equal(event, dense)
    same(got, event if engine == "event" else dense)


def test_exactly_at_threshold_fires():
    weight = torch.tensor([[0.5, 0.5], [0.5, 0.25], [1.0, -1.0]])
    bits = torch.tensor([[[0b011, 0b110]]], dtype=torch.uint8)  # currents 1/2, 1, 1/2; 1/2, 3/4, 1/4; 1, 0, -1
    want = torch.tensor([[[0b110, 0b010, 0b001]]], dtype=torch.uint8)
    for path, (got, total, state) in every_path(ops.spiking_linear, bits, weight, time_steps=3):
        same(got, want, path)
        same(total, torch.tensor([[2.0, 1.5, 0.0]]), path)
        same(state, torch.tensor([[[1.0, 0.5, -1.0]]]), path)


# --- outputs -------------------------------------------------------------------------------------------

BITS = {
    "conv2d": torch.zeros(2, 3, 4, 6, 5, dtype=torch.uint8),
    "linear": torch.zeros(2, 4, 3, dtype=torch.uint8),
}
WEIGHT = {"conv2d": torch.zeros(8, 4, 3, 2), "linear": torch.zeros(5, 3)}
every_spiking = pytest.mark.parametrize("kind", ["conv2d", "linear"])


@every_spiking
def test_unwanted_outputs(kind):
    """Empty, and not one tensor twice: outputs of an operator must not alias each other."""
    spiking = getattr(ops, f"spiking_{kind}")
    _, total, state = spiking(BITS[kind], WEIGHT[kind], time_steps=9, want_sum=False, want_state=False)
    assert total.shape == state.shape == (0,)
    assert total.untyped_storage()._cdata != state.untyped_storage()._cdata


@pytest.mark.parametrize("want_sum", [True, False])
@pytest.mark.parametrize(
    ("kind", "inputs", "shape", "outputs"),
    [("conv2d", (2, 3, 4, 3), (4, 3, 2, 2), (2, 4, 3, 2)), ("linear", (3, 7), (4, 7), (3, 4))],
)
def test_only_the_sum_has_a_gradient(kind, inputs, shape, outputs, want_sum):
    bits, weight = planes(9, *inputs, seed=0), dyadic(*shape, seed=1).requires_grad_()
    state = dyadic(1, *outputs, seed=2).requires_grad_()
    out = getattr(ops, f"spiking_{kind}")(bits, weight, state=state, time_steps=9, want_sum=want_sum)
    assert [x.requires_grad for x in out] == [False, want_sum, False]


def test_value_of_count_is_not_read():
    bits, weight = planes(9, 3, 7, seed=0), dyadic(4, 7, seed=1)
    same(ops.count_linear(bits, weight, count=torch.full((3, 7), math.nan)), ref.count_linear(bits, weight))


def test_ints_and_pairs():
    bits, weight = planes(9, 2, 3, 9, 8, seed=0), dyadic(4, 3, 3, 2, seed=1)
    want = ref.count_conv2d(bits, weight, None, (2, 2), (1, 1), (2, 2))
    same(ops.count_conv2d(bits, weight, None, 2, 1, 2), want)
    same(ops.count_conv2d(bits, weight, None, [2, 2], torch.Size((1, 1)), (2, 2)), want)


# --- wrong arguments -------------------------------------------------------------------------------------------------


def shape(tensor_or_sizes):
    """As an error message shows it, for a regular expression."""
    return re.escape(str([*getattr(tensor_or_sizes, "shape", tensor_or_sizes)]))


def wrong_of_all(bits, weight):
    """What is wrong with one argument of any product with these bits and weights."""
    n, count = len(weight), bits[0].float()
    scale, packed = torch.ones(n), ops.pack_weight(weight)
    float32, float64 = "torch.float32", "torch.float64"
    found = [
        ({"bits": bits.float()}, TypeError, f"bits must be uint8, got {float32}"),
        ({"bits": None}, TypeError, "bits must be a Tensor, got NoneType"),
        ({"bits": bits[:0]}, ValueError, f"bits must be .* at least one plane, got {shape(bits[:0])}"),
        ({"weight": [1.0]}, TypeError, "weight must be a Tensor, got list"),
        ({"weight": weight.to(torch.complex64)}, TypeError, "weight must be .* or int16, got torch.complex64"),
        ({"weight": weight.int()}, TypeError, "weight must be float32, .*, bfloat16, int8 or int16, got torch.int32"),
        ({"weight": weight.to(META)}, ValueError, "weight must be on the device of bits, cpu, got meta"),
        ({"weight": weight[:0]}, ValueError, f"weight must .*, got {shape(weight[:0])}"),
        ({"bits": bits[:, :, :0] if weight.dim() > 2 else bits[..., :0], "weight": weight[:, :0]}, ValueError,
         f"weight must .*, got {shape(weight[:, :0])}"),
        ({"engine": "fast"}, ValueError, "engine must be one of auto, event, dense, got 'fast'"),
        ({"engine": None}, ValueError, "engine must be one of auto, event, dense, got None"),
    ]  # fmt: skip
    for name, right in (("bias", scale), ("count", count), ("scale", scale)):
        must = f"{name} must"
        found += [
            ({name: 1.0}, TypeError, f"{must} be a Tensor, got float"),
            ({name: right[1:]}, ValueError, rf"{must} be {shape(right)}, got {shape(right[1:])}"),
            ({name: right[None]}, ValueError, rf"{must} be {shape(right)}, got {shape(right[None])}"),
            ({name: right.double()}, TypeError, f"{must} have the dtype of weight, {float32}, got {float64}"),
            ({name: right.to(META)}, ValueError, f"{must} be on the device of weight, cpu, got meta"),
        ]
    int8 = {"weight": weight.to(torch.int8), "scale": scale}
    wrong = "packed must be what pack_weight returns for this weight, "
    return [
        *found,
        ({**int8, "scale": None}, ValueError, "scale must be given with int8 weights"),
        ({**int8, "scale": 1.0}, TypeError, "scale must be a Tensor, got float"),
        ({**int8, "scale": scale.double()}, TypeError, f"scale must be float32 with int8 weights, got {float64}"),
        ({**int8, "scale": scale.to(META)}, ValueError, "scale must be on the device of weight, cpu, got meta"),
        ({**int8, "scale": scale[1:]}, ValueError, rf"scale must be \[{n}\], got \[{n - 1}\]"),
        ({**int8, "bias": scale.double()}, TypeError, f"bias must be float32 with int8 weights, got {float64}"),
        ({"weight": weight.half(), "bias": scale.half()}, TypeError, "bias must be float32 with float16 weights, got"),
        ({"weight": weight.bfloat16(), "scale": scale.double()}, TypeError, "scale must be float32 with bfloat16 .*"),
        ({"scale": torch.ones(n, requires_grad=True)}, ValueError, "scale must not require a gradient; detach it"),
        ({"packed": [1.0]}, TypeError, "packed must be a Tensor, got list"),
        ({"packed": packed.double()}, ValueError, f"{wrong}{float32} .*, got {float64}"),
        ({"packed": packed[1:]}, ValueError, rf"{wrong}.*, got {float32} \[{len(packed) - 1}\]"),
        ({"packed": packed[None]}, ValueError, rf"{wrong}.*, got {float32} \[1, {len(packed)}\]"),
        ({"packed": ops.pack_weight(torch.cat([weight, weight], 1))}, ValueError, wrong),
        ({"packed": packed.to(META)}, ValueError, "packed must be on the device of weight, cpu, got meta"),
        ({"weight": weight.half(), "packed": packed.half()}, ValueError, f"{wrong}{float32} .*, got torch.float16"),
        ({**int8, "packed": packed}, ValueError, f"{wrong}torch.int8 .*, got {float32}"),
    ]


IMAGES, KERNEL = BITS["conv2d"], WEIGHT["conv2d"]
ROWS, MATRIX = BITS["linear"], WEIGHT["linear"]
WRONG_CONV2D = [
    ({"bits": IMAGES[0]}, ValueError, r"bits must be \[P, N, C, H, W\], got \[3, 4, 6, 5\]"),
    ({"weight": KERNEL[0]}, ValueError, r"weight must be \[O, C/groups, kH, kW\], got \[4, 3, 2\]"),
    ({"weight": KERNEL[:, :3]}, ValueError, r"weight must be \[O, 4, kH, kW\] .*, got \[8, 3, 3, 2\]"),
    ({"weight": KERNEL[:, :, :0]}, ValueError, r"weight must .*, got \[8, 4, 0, 2\]"),
    ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ({"stride": (1, -1)}, ValueError, r"stride must be at least 1, got \(1, -1\)"),
    ({"stride": 1.0}, TypeError, "stride must be an int or a pair of ints, got 1.0"),
    ({"stride": (1, 1, 1)}, TypeError, r"stride must be an int or a pair of ints, got \(1, 1, 1\)"),
    ({"stride": "same"}, TypeError, "stride must be an int or a pair of ints, got 'same'"),
    ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    ({"padding": (0, 0.5)}, TypeError, r"padding must be an int or a pair of ints, got \(0, 0.5\)"),
    ({"padding": None}, TypeError, "padding must be an int or a pair of ints, got None"),
    ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
    ({"dilation": (1,)}, TypeError, r"dilation must be an int or a pair of ints, got \(1,\)"),
    ({"dilation": 5}, ValueError, "the dilated kernel is larger than the padded input along the (height|width)"),
    ({"weight": torch.zeros(8, 4, 7, 1)}, ValueError, "kernel is larger than the padded input along the height"),
    ({"weight": torch.zeros(8, 4, 1, 6)}, ValueError, "kernel is larger than the padded input along the width"),
    *(({"groups": n}, ValueError, rf"groups must divide .* \(4\) .* \(8\), got {n}") for n in (0, -1, 3, 8)),
    ({"groups": 2}, ValueError, r"weight must be \[O, 2, kH, kW\] .* 2 groups, got \[8, 4, 3, 2\]"),
    ({"groups": 1.0}, TypeError, "groups must be .*float"),
    ({"groups": "1"}, TypeError, "groups must be .*str"),
    ({"groups": None}, TypeError, "groups must be .*NoneType"),
]
WRONG_LINEAR = [
    ({"bits": ROWS[0]}, ValueError, r"bits must be \[P, N, \.\.\., F\], got \[4, 3\]"),
    ({"weight": MATRIX[0]}, ValueError, r"weight must be \[O, 3\] .*, got \[3\]"),
    ({"weight": MATRIX[..., None]}, ValueError, r"weight must be \[O, 3\] .*, got \[5, 3, 1\]"),
    ({"weight": MATRIX.mT}, ValueError, r"weight must be \[O, 3\] .*, got \[3, 5\]"),
]


WRONG_RADIX = [
    *(({"radix": n}, ValueError, f"radix must be from 0 to 8, got {n}") for n in (-1, 9, 2**70)),
    *(({"radix": x}, TypeError, f"radix must be an int, got {t}") for x, t in ((8.0, "float"), (True, "bool"))),
    ({"radix": None}, TypeError, "radix must be an int, got NoneType"),
    ({"radix": 8}, ValueError, r"bits of radix spikes must have one plane, got \[2, "),
    ({"neuron": IF(), "time_steps": 4}, TypeError, r"neuron must be None or a RadixIF, got IF\("),
    ({"neuron": RadixIF}, TypeError, "neuron must be None or a RadixIF, got <class"),
    ({"neuron": RadixIF()}, ValueError, "time_steps must be at least 1, got 0"),
    ({"neuron": RadixIF(), "time_steps": 9}, ValueError, "time_steps of radix spikes must be from 1 to 8, .*, got 9"),
    ({"neuron": RadixIF(), "time_steps": 4.0}, TypeError, "time_steps must be an int, got float"),
    ({"time_steps": 4}, ValueError, "time_steps must be 0 without neuron, got 4"),
]


def wrong_of_spiking(*outputs):
    """What is wrong with one argument of a product that fires, of 9 steps, with neurons of this shape."""
    state, added = torch.zeros(1, *outputs), torch.zeros(9, *outputs)
    channels, amplitude = outputs[1], torch.ones(outputs[1])
    return [
        ({"time_steps": 8}, ValueError, "bits must have .* 1 planes for 8 time steps, got"),
        ({"time_steps": 17}, ValueError, "bits must have .* 3 planes for 17 time steps, got"),
        ({"time_steps": 0}, ValueError, "time_steps must be at least 1, got 0"),
        ({"time_steps": -9}, ValueError, "time_steps must be at least 1, got -9"),
        ({"time_steps": 9.0}, TypeError, "time_steps must be an int, got float"),
        ({"time_steps": True}, TypeError, "time_steps must be an int, got bool"),
        ({"time_steps": None}, TypeError, "time_steps must be an int, got NoneType"),
        ({"neuron": 1.0}, TypeError, "neuron must be .*, got float"),
        ({"neuron": None}, TypeError, "neuron must be .*, got NoneType"),
        ({"neuron": "IF"}, TypeError, "neuron must be .*, got str"),
        ({"neuron": IF}, TypeError, "neuron must be .*, got type"),
        ({"state": 0.0}, TypeError, "state must be a Tensor, got float"),
        ({"state": state[0]}, ValueError, f"state must be {shape(state)}, got {shape(outputs)}"),
        ({"state": state[..., 1:]}, ValueError, f"state must be {shape(state)}, got {shape(state[..., 1:])}"),
        ({"state": torch.zeros(channels)}, ValueError, rf"state must be {shape(state)}, got \[{channels}\]"),
        ({"state": state.double()}, TypeError, "state must have the dtype of weight"),
        ({"state": state.to(META)}, ValueError, "state must be on the device of weight"),
        ({"added": 1.0}, TypeError, "added must be a Tensor, got float"),
        ({"added": added[1:]}, ValueError, f"added must be {shape(added)}, got {shape(added[1:])}"),
        ({"added": added[..., 1:]}, ValueError, f"added must be {shape(added)}, got {shape(added[..., 1:])}"),
        ({"added": added[:1].byte()}, ValueError, f"added must be {shape((2, *outputs))}, got"),
        ({"added": added.double()}, TypeError, "added must have the dtype of weight"),
        ({"added": added.to(META)}, ValueError, "added must be on the device of weight"),
        ({"added": added.clone().requires_grad_()}, ValueError, "added must not require a gradient"),
        ({"added": added, "neuron": IF(two_phase=True)}, ValueError, "added must be None for two-phase neurons"),
        ({"added": added, "amplitude": 1.0}, TypeError, "amplitude must be a Tensor, got float"),
        ({"added": added, "amplitude": amplitude[1:]}, ValueError, rf"amplitude must be \[{channels}\], got"),
        ({"amplitude": amplitude}, ValueError, "amplitude must be None without added, got a tensor"),
    ]


WRONG = {
    kind: wrong_of_all(BITS[kind], WEIGHT[kind]) + own
    for kind, own in (("conv2d", WRONG_CONV2D), ("linear", WRONG_LINEAR))
}
WRONG_SPIKING = {"conv2d": wrong_of_spiking(3, 8, 4, 4), "linear": wrong_of_spiking(4, 5)}


@pytest.mark.parametrize(
    ("product", "wrong", "error", "message"),
    [
        (product, *row)
        for product in PRODUCTS
        for kind in [product.partition("_")[2]]
        for row in WRONG[kind] + (WRONG_SPIKING[kind] if product.startswith("spiking") else WRONG_RADIX)
    ],
)
def test_bad_input(product, wrong, error, message):
    kind = product.partition("_")[2]
    named = {"bits": BITS[kind], "weight": WEIGHT[kind]} | ({"time_steps": 9} if product.startswith("spiking") else {})
    with pytest.raises(error, match=f"^{product}: .*{message}"):
        getattr(ops, product)(**named | wrong)


@pytest.mark.parametrize("engine", [EVENT, DENSE, AUTO])
@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_bad_radix_of_the_operator(kind, engine):
    """Called with no Python in between."""
    bits, weight = BITS[kind], WEIGHT[kind]
    geometry = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "engine": engine}
    for radix in (-1, 9, -(2**63)):
        with pytest.raises(RuntimeError, match=f"^count_{kind}: radix must be from 0 to 8, got {radix}"):
            raw("count_product", bits=bits[:1], weight=weight, **geometry, radix=radix)
    with pytest.raises(RuntimeError, match=rf"^count_{kind}: bits of radix spikes must have one plane, got \[2, "):
        raw("count_product", bits=bits, weight=weight, **geometry, radix=8)


@pytest.mark.parametrize("argument", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("size", [2**31, 2**62, 2**70])
def test_absurd_geometry(argument, size):
    with pytest.raises(ValueError, match=f"count_conv2d: .*{argument}"):
        ops.count_conv2d(IMAGES, KERNEL, **{argument: size})


def test_added_spikes_end_with_the_train():
    added = planes(16, 3, 8, 4, 4, seed=0, rate=0.9)
    with pytest.raises(RuntimeError, match="spiking_conv2d: added must be zero past time_steps = 9, got 0x"):
        ops.spiking_conv2d(IMAGES, KERNEL, time_steps=9, added=added)


@every_kind
@pytest.mark.parametrize(("kind", "outputs"), [("conv2d", (3, 8, 4, 4)), ("linear", (4, 5))])
def test_state_of_another_model(neuron, kind, outputs):
    wrong = torch.zeros(neuron.states + 1, *outputs)
    message = f"state must be {shape((neuron.states, *outputs))}, got {shape(wrong)}"
    with pytest.raises(ValueError, match=f"spiking_{kind}: {message}"):
        getattr(ops, f"spiking_{kind}")(BITS[kind], WEIGHT[kind], state=wrong, time_steps=9, neuron=neuron)
