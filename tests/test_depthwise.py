"""Convolutions of one input channel a group, or of a pair of them, for which products have a kernel of their own."""

import pytest
import torch
import torch.nn.functional as F

from exact import (
    DEPTHWISE_CHANNELS,
    ENGINES,
    FLOATS,
    INTEGERS,
    MULTIPLIERS,
    RADIX,
    Variant,
    dyadic,
    every_variant,
    everywhere,
    firing_rate,
    generator,
    planes,
    same,
)
from pairwise import pairs
from tandem_cuda import IF, LIF, RadixIF, ops
from tandem_cuda import reference as ref

every_product = pytest.mark.parametrize("product", ["spiking_conv2d", "count_conv2d"])


def arguments(product, channels, multiplier, kernel, variant, time_steps, seed=0):
    """(weight, keywords) of a product, all of whose optional arguments are given."""
    outputs = channels * multiplier
    weight, scale = variant.operands(outputs, 1, *kernel, seed=seed)
    named = {"bias": dyadic(outputs, seed=seed + 2, dtype=variant.dtype) / 8, "scale": scale, "groups": channels}
    return weight, named | ({"time_steps": time_steps, "neuron": LIF(leak=0.75)} if product == "spiking_conv2d" else {})


@pairs(
    product=["spiking_conv2d", "count_conv2d", "values"],
    weights=[*FLOATS, *INTEGERS],
    multiplier=MULTIPLIERS,
    channels=DEPTHWISE_CHANNELS,
)
def test_sizes(channels, multiplier, weights, product):
    """At and beside the borders of vectors of channels, groups of 4 pixels, and halves of a plane of steps."""
    variant, values = Variant(weights, scaled=weights in INTEGERS), product == "values"
    product = "count_conv2d" if values else product
    for time_steps in (RADIX if values else (1, 3, 4, 5, 8, 9, 12, 20))[(channels + multiplier) % 3 :: 3]:
        bits = planes(time_steps, 3, channels, 3, 5, seed=time_steps, rate=0.6 if values else 0.3)
        weight, named = arguments(product, channels, multiplier, (3, 2), variant, time_steps, seed=time_steps)
        named |= {"padding": (1, 0), "dilation": (1, 2)}  # 27 output pixels
        named |= {"radix": time_steps} if values else {}
        want = getattr(ref, product)(bits, weight, **named)
        everywhere(want, getattr(ops, product), bits, weight, **named, engine="event")
        for engine in ENGINES:
            same(getattr(ops, product)(bits, weight, **named, engine=engine), want, engine)


@every_product
@every_variant
@pytest.mark.parametrize(("channels", "multiplier"), [(2, 1), (3, 3), (33, 1)])
def test_ranges_of_pixels(channels, multiplier, variant, product):
    """Enough pixels for two threads, of which one begins inside a row and both end with fewer than 4."""
    bits = planes(11, 2, channels, 33, 35, seed=0, rate=0.1)
    weight, named = arguments(product, channels, multiplier, (3, 3), variant, 11)
    named["padding"] = 1
    want = getattr(ref, product)(bits, weight, **named)
    assert product == "count_conv2d" or 0.02 < firing_rate(want[0], 11) < 0.8
    everywhere(want, getattr(ops, product), bits, weight, **named, **variant.how(weight, channels))


@every_product
@every_variant
def test_padding_beyond_the_image(variant, product):
    """Output pixels that see some of the image, one corner of it, or none."""
    bits = planes(9, 2, 17, 2, 3, seed=0)
    weight, named = arguments(product, 17, 2, (3, 2), variant, 9)
    named |= {"padding": (9, 11), "stride": (2, 3), "dilation": (3, 5)}
    want = getattr(ref, product)(bits, weight, **named)
    everywhere(want, getattr(ops, product), bits, weight, **named, **variant.how(weight, 17))


def full(*shape, seed):
    """Weights of -128 and -127: sums as large as they get, half of them odd."""
    return torch.randint(-128, -126, shape, dtype=torch.int8, generator=generator(seed))


@pytest.mark.parametrize("rate", [0.99, 1.0])
@pytest.mark.parametrize("time_steps", [1000, 1080, 1081, 1200])
def test_int8_counts_at_the_limit_of_float32(time_steps, rate):
    """121 taps and 135 planes: the most whose sums float32 holds exactly; 1081 steps need one plane more."""
    bits = planes(time_steps, 2, 3, 11, 12, seed=0, rate=rate)
    weight, scale = full(6, 1, 11, 11, seed=1), torch.tensor([1.0, -1.0, 0.5, 2.0, 1.0, -4.0])
    sums = F.conv2d(ref.spike_count(bits, torch.float64), weight.double(), groups=3)
    assert time_steps > 1081 or sums.abs().max() < 2**24
    want = scale.view(-1, 1, 1) * sums.float()
    if sums.abs().max() < 2**24:
        everywhere(want, ops.count_conv2d, bits, weight, scale=scale, groups=3)
    else:  # sums of binary digits are exact, but not always the sum of these
        got = ops.count_conv2d(bits, weight, scale=scale, groups=3)
        torch.testing.assert_close(got, want, rtol=2**-23, atol=0)
        everywhere(got, ops.count_conv2d, bits, weight, scale=scale, groups=3)


@pytest.mark.parametrize("kernel", [(2, 257), (5, 103)])
@pytest.mark.parametrize("value", [254, 255])
def test_int8_values_at_the_limit_of_float32(kernel, value):
    """514 taps: the most whose sums of values float32 holds exactly; and 515."""
    bits = torch.full((1, 2, 3, *kernel), value, dtype=torch.uint8)
    bits[0, 1, :, :, -1] = 0
    weight, scale = full(6, 1, *kernel, seed=1), torch.tensor([1.0, -1.0, 0.5, 2.0, 1.0, -4.0])
    sums = F.conv2d(bits[0].double(), weight.double(), groups=3)
    assert kernel == (5, 103) or sums.abs().max() < 2**24
    want = scale.view(-1, 1, 1) * sums.float()
    for engine in ENGINES:
        everywhere(want, ops.count_conv2d, bits, weight, scale=scale, groups=3, engine=engine, radix=8)


@pytest.mark.parametrize("level", [1.0, 0.75])
@pytest.mark.parametrize("last", [25, 26])
@pytest.mark.parametrize("channels", [31, 32, 33, 64, 65, 100])
def test_int8_values_at_the_limit_of_16_bits(channels, last, level):
    """18 taps of weights that are 2184 in all, times 15 the most that 16 bits hold, and one more; with neurons, too."""
    bits = torch.randint(0, 16, (1, 2, channels, 5, 12), dtype=torch.uint8, generator=generator(0))
    bits[:, :, -2:, :3] = 15
    weight = torch.randint(-5, 6, (channels, 1, 2, 9), dtype=torch.int8, generator=generator(1))
    weight[-2:] = 127
    weight[-2:, 0, 1, 8] = last
    weight[-1] = -weight[-1]
    scale, bias = dyadic(channels, seed=2).abs() / 2**14 + 2**-12, dyadic(channels, seed=3)
    sums = F.conv2d(bits[0].double(), weight.double(), groups=channels).float()
    assert sums.abs().max() == 15 * (17 * 127 + last)
    want = scale.view(-1, 1, 1) * sums + bias.view(-1, 1, 1)
    named = {"scale": scale, "bias": bias, "groups": channels, "radix": 4}
    everywhere(want, ops.count_conv2d, bits, weight, **named)
    neuron = RadixIF(level)
    fired = ref.radix_spikes(want, 4, neuron)
    assert len(fired.unique()) > 8
    everywhere(fired, ops.count_conv2d, bits, weight, **named, neuron=neuron, time_steps=4)


@pairs(
    weights=[*FLOATS, *INTEGERS],
    outputs=[1, 2],
    groups=[2, 3, 4, 5, 8, 9, 16, 33],
    kernel=[(1, 1), (3, 2)],
    time_steps=[1, 4, 8, 20],
    values=[False, True],
    scaled=[False, True],
)
def test_pairs_of_inputs(weights, outputs, groups, kernel, time_steps, values, scaled):
    """Outputs that read both signs of a value; also where the last pair is the last of all."""
    steps = min(time_steps, 8) if values else time_steps
    bits = planes(steps, 3, 2 * groups, 3, 5, seed=groups, rate=0.5)
    variant = Variant(weights, scaled=scaled or weights in INTEGERS)
    weight, scale = variant.operands(groups * outputs, 2, *kernel, seed=1)
    named = {"scale": scale, "bias": dyadic(groups * outputs, seed=2, dtype=variant.dtype), "groups": groups}
    named |= {"padding": (1, 0), "stride": (2, 1), "dilation": (1, 2)} if kernel != (1, 1) else {}
    named |= {"radix": steps} if values else {}
    want = ref.count_conv2d(bits, weight, **named)
    everywhere(want, ops.count_conv2d, bits, weight, **named, **variant.how(weight, groups))
    for engine in ENGINES:
        same(ops.count_conv2d(bits, weight, **named, engine=engine), want, engine)
    if values:
        neuron = RadixIF(0.75)
        fired = ref.radix_spikes(want, steps, neuron)
        everywhere(fired, ops.count_conv2d, bits, weight, **named, neuron=neuron, time_steps=steps)


@pytest.mark.parametrize("taps", [257, 264])
def test_int8_pairs_at_the_limit_of_float32(taps):
    """514 inputs: the most whose sums of values float32 holds exactly; and so many that they would be wrong."""
    bits = torch.full((1, 2, 6, 1, taps), 255, dtype=torch.uint8)
    bits[0, 1, :, :, -1] = 0
    weight, scale = full(3, 2, 1, taps, seed=1), torch.tensor([1.0, -1.0, 0.5])
    sums = F.conv2d(bits[0].double(), weight.double(), groups=3)
    assert (sums.abs().max() < 2**24) == (taps == 257)
    want = scale.view(-1, 1, 1) * sums.float()
    for engine in ENGINES:
        everywhere(want, ops.count_conv2d, bits, weight, scale=scale, groups=3, engine=engine, radix=8)
    in_float32 = ops.count_conv2d(bits, weight.float(), scale=scale, groups=3, radix=8)
    assert torch.equal(in_float32, want) == (taps == 257)


@pytest.mark.parametrize(("groups", "outputs"), [(5, 2), (33, 1)])
@pytest.mark.parametrize("time_steps", [8, 11])
def test_ranges_of_pixels_of_pairs(groups, outputs, time_steps):
    """Enough pixels for two threads and for several parts of a thread's, of which most begin inside a row."""
    bits = planes(time_steps, 2, 2 * groups, 33, 35, seed=0, rate=0.2)
    weight, bias = dyadic(groups * outputs, 2, 3, 3, seed=1), dyadic(groups * outputs, seed=2)
    named = {"bias": bias, "groups": groups, "padding": 1}
    everywhere(ref.count_conv2d(bits, weight, **named), ops.count_conv2d, bits, weight, **named)
    if time_steps == 8:
        named["radix"] = 8
        fired = ref.radix_spikes(ref.count_conv2d(bits, weight, **named), 8, RadixIF(0.75))
        everywhere(fired, ops.count_conv2d, bits, weight, **named, neuron=RadixIF(0.75), time_steps=8)


@pytest.mark.parametrize("size", [362, 363])
def test_int8_currents_at_the_limit_of_float32(size):
    """The most taps whose sum float32 holds exactly, and more."""
    bits = planes(2, 1, 2, size, size, seed=0, rate=1.0)
    weight, scale = full(2, 1, size, size, seed=1), torch.ones(2)
    sums = F.conv2d(ref.spike_count(bits, torch.float64) / 2, weight.double(), groups=2)
    assert (sums.abs().max() < 2**24) == (size == 362)
    want = ref.integrate_and_fire(sums.float(), 2, neuron=IF(1000))
    everywhere(want, ops.spiking_conv2d, bits, weight, scale=scale, groups=2, time_steps=2, neuron=IF(1000))
