"""radix_spikes and what reads its bits: against the reference, the closed form and rational numbers, to the bit."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import FLOATS, SEEDS, dyadic, every_path, everywhere, features_last, generator, normal, planes, same, views
from hostile_calls import radix_spikes as raw_radix_spikes
from neurons import near_thresholds
from tandem_cuda import IF, LIF, ops
from tandem_cuda import reference as ref
from tandem_cuda.neuron import RadixIF
from tensors import integers

STEPS = range(1, 9)
MODES = ("constant", "impulse", "series", "once")
every_t = pytest.mark.parametrize("steps", STEPS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS)


def operands(channels, dtype, seed, scale=True, bias=True):
    return {
        "scale": normal(channels, seed=seed + 1, dtype=dtype) if scale else None,
        "bias": normal(channels, seed=seed + 2, dtype=dtype) if bias else None,
    }


# --- the spikes ------------------------------------------------------------------------------------------------------


@given(
    steps=st.sampled_from(STEPS),
    batch=st.integers(0, 3),
    channels=st.integers(1, 37),
    spatial=st.lists(st.integers(1, 5), max_size=3),
    level=st.floats(1e-3, 1e3),
    initial=st.sampled_from((0.0, 0.25, 0.5, 0.999)),
    dtype=st.sampled_from(FLOATS),
    scale=st.booleans(),
    bias=st.booleans(),
    seed=SEEDS,
)
def test_matches_reference(steps, batch, channels, spatial, level, initial, dtype, scale, bias, seed):
    """Also the closed form, which divides."""
    radix, shape = RadixIF(level, initial=initial), (batch, channels, *spatial)
    v = normal(*shape, seed=seed, dtype=dtype) * level
    named = operands(channels, dtype, seed, scale, bias)
    want = ref.radix_spikes(v, steps, radix, **named)
    everywhere(want, ops.radix_spikes, v, steps, radix, **named)
    x = v
    for operation, operand in ((torch.mul, named["scale"]), (torch.add, named["bias"])):
        x = x if operand is None else operation(x, operand.view(-1, *[1] * len(spatial)))
    same(want[0], radix.value(x, steps).to(torch.uint8))


@every_t
@every_dtype
@pytest.mark.parametrize("level", [1.0, 0.7, 255.0, 1e-20, 1e20])
@pytest.mark.parametrize("initial", [0.0, 0.5, 0.999])
def test_at_every_threshold(steps, dtype, level, initial):
    """The digits are the quotient's, of potentials at every multiple of theta and next to it; in rational numbers."""
    radix = RadixIF(level, initial=initial)
    v = near_thresholds(radix, steps, dtype)
    theta = torch.tensor(radix.threshold_at(steps), dtype=dtype)
    u = v + torch.tensor(initial, dtype=dtype) * theta
    levels = 2**steps - 1
    want = []
    for x in u.tolist():
        if math.isfinite(x):
            want.append(min(max(math.floor(Fraction(x) / Fraction(theta.item())), 0), levels))
        else:
            want.append(levels if x == math.inf else 0)
    assert {0, levels} <= {*want}
    for path, bits in every_path(ops.radix_spikes, v.view(1, -1), steps, radix):
        assert bits.flatten().tolist() == want, path


@every_t
@every_dtype
def test_thresholds_without_all_digits(steps, dtype):
    """Below the normal numbers: theta is one of the few numbers there, and its multiples are exact."""
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the least number of all
    for theta in (tiny, 3 * tiny, 1000 * tiny):
        multiples = torch.arange(-2, 2**steps + 3, dtype=dtype)
        u = (multiples * theta).view(1, -1)
        want = multiples.clamp(0, 2**steps - 1).to(torch.uint8).view(1, 1, -1)
        for path, (bits, _) in every_path(raw_radix_spikes, u, steps, threshold=theta, initial=0.0):
            same(bits, want, path)


@every_dtype
@pytest.mark.parametrize("channels", [1, 63, 64, 65, 127, 128, 129, 300])
def test_channels_and_blocks(channels, dtype):
    """Blocks of neurons start at any channel: each has the scale and bias of its own, and is written once."""
    radix = RadixIF(2.0)
    for steps in (1, 4, 7, 8):
        v = normal(3, channels, 5, seed=channels, dtype=dtype)
        named = operands(channels, dtype, seed=1)
        everywhere(ref.radix_spikes(v, steps, radix, **named), ops.radix_spikes, v, steps, radix, **named)


@every_dtype
@pytest.mark.parametrize("neurons", [*range(1, 35), 40_003])
def test_any_size(neurons, dtype):
    """Around the borders of vectors; and enough for two threads."""
    v = normal(1, neurons, seed=0, dtype=dtype)
    everywhere(ref.radix_spikes(v, 5, RadixIF(2.0)), ops.radix_spikes, v, 5, RadixIF(2.0))


def test_every_spike_is_where_it_belongs():
    """The first step's spike is the highest of T bits, the last one's the lowest; no bit is set past T."""
    for steps in STEPS:
        values = torch.arange(2**steps)
        bits, left = raw_radix_spikes(0.5 * values.view(1, -1), steps, threshold=0.5, initial=0.0)
        assert bits.flatten().tolist() == values.tolist()
        assert not left.any()


def test_any_strides():
    v, radix = normal(2, 5, 4, 3, seed=0), RadixIF(2.0)
    named = operands(5, torch.float32, seed=0)
    want = ref.radix_spikes(v, 6, radix, **named)
    for view in views(v):
        bits = ops.radix_spikes(view, 6, radix, **named)
        same(bits, want)
        assert features_last(bits, 2)
    for name, x in named.items():
        for view in views(x):
            same(ops.radix_spikes(v, 6, radix, **named | {name: view}), want)


def test_no_gradient():
    v = torch.ones(2, 3, requires_grad=True)
    named = {name: x.requires_grad_() for name, x in operands(3, torch.float32, seed=0).items()}
    assert not ops.radix_spikes(v, 4, RadixIF(), **named).requires_grad


# --- in the other operators ------------------------------------------------------------------------------------------


@given(
    steps=st.sampled_from(STEPS),
    mode=st.sampled_from(MODES),
    dtype=st.sampled_from(FLOATS),
    scale=st.booleans(),
    bias=st.booleans(),
    wanted=st.tuples(st.booleans(), st.booleans()),
    seed=SEEDS,
)
def test_integrate_and_fire(steps, mode, dtype, scale, bias, wanted, seed):
    """The currents add up as in the reference, also where the sum is rounded."""
    shape = (2, 19, 3)
    current = normal(*((steps, *shape) if mode == "series" else shape), seed=seed, dtype=dtype)
    arguments = {**operands(19, dtype, seed, scale, bias), "mode": mode, "neuron": RadixIF(1.7)}
    arguments |= {"want_sum": wanted[0], "want_state": wanted[1]}
    want = ref.integrate_and_fire(current, steps, **arguments)
    everywhere(want, ops.integrate_and_fire, current, steps, **arguments)


@every_t
@every_dtype
def test_what_is_left(steps, dtype):
    """The potential that no spike stands for, of saturated neurons, too, and of those that never spike."""
    radix = RadixIF(1.0)
    v = near_thresholds(radix, steps, dtype).view(1, -1)
    want = ref.integrate_and_fire(v, steps, mode="once", neuron=radix)
    everywhere(want, ops.integrate_and_fire, v, steps, mode="once", neuron=radix)


@every_t
@pytest.mark.parametrize("wanted", [(True, True), (False, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8])
def test_products(steps, wanted, dtype):
    """Of rate trains, whose bias enters at every step."""
    radix, whole = RadixIF(2.0), not dtype.is_floating_point
    real = torch.float32 if whole else dtype
    named = {"time_steps": steps, "neuron": radix, "want_sum": wanted[0], "want_state": wanted[1]}
    for op, shape, kernel in (
        ("spiking_linear", (3, 21), (10, 21)),
        ("spiking_linear", (2, 3, 21), (10, 21)),
        ("spiking_conv2d", (2, 6, 5, 4), (8, 6, 3, 3)),
    ):
        bits = planes(steps, *shape, seed=steps)
        weight = integers(*kernel, seed=1, dtype=dtype) if whole else dyadic(*kernel, seed=1, dtype=dtype)
        scale = dyadic(kernel[0], seed=2, dtype=real) / (64 if whole else 1)
        arguments = bits, weight, dyadic(kernel[0], seed=3, dtype=real) / 8
        want = getattr(ref, op)(*arguments, scale=scale, **named)
        everywhere(want, getattr(ops, op), *arguments, scale=scale, **named)
        assert want[0].any()


@every_t
@pytest.mark.parametrize("mode", ["constant", "impulse", "once"])
def test_ordered_spikes(steps, mode):
    weight, image = integers(9, 4, 3, 3, seed=1, dtype=torch.int8), normal(2, 4, 6, 5, seed=0)
    scale, bias = normal(9, seed=2).abs() / 256, normal(9, seed=3)
    named = {"scale": scale, "mode": mode, "neuron": RadixIF(4.0)}
    want = ref.ordered_spikes(image, weight, steps, bias, padding=1, **named)
    everywhere(want, ops.ordered_spikes, image, weight, steps, bias, padding=1, **named)
    rows = normal(2, 3, 7, seed=0), integers(9, 7, seed=1, dtype=torch.int8), steps, bias
    everywhere(ref.ordered_spikes(*rows, **named), ops.ordered_spikes, *rows, **named)
    assert want.any()


# --- the coupling ----------------------------------------------------------------------------------------------------


def gradient(op, bits, v, *arguments, seed_grad, **named):
    leaf = v.detach().requires_grad_()
    value = op(bits, leaf, *arguments, **named)
    return value.detach(), torch.autograd.grad(value, leaf, seed_grad)[0]


@given(
    steps=st.sampled_from(STEPS),
    neurons=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    dtype=st.sampled_from(FLOATS),
    clip=st.booleans(),
    seed=SEEDS,
)
def test_tandem_count(steps, neurons, dtype, clip, seed):
    radix = RadixIF(1.5, clip=clip)
    bits = planes(steps, *neurons, seed=seed, rate=0.5)
    v = dyadic(*neurons, seed=seed, span=2, scale=8, dtype=dtype)  # often 0 and often at the level
    arriving = dyadic(*neurons, seed=seed + 1, dtype=dtype)
    arguments = steps, radix, radix.upper(steps)
    want_value, want_grad = gradient(ref.tandem_count, bits, v, *arguments, seed_grad=arriving)
    same(want_value, bits[0].to(dtype))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for path, (value, grad) in every_path(gradient, ops.tandem_count, bits, v, *arguments, seed_grad=arriving):
        same(value, want_value, path)
        torch.testing.assert_close(grad, want_grad, rtol=tolerance, atol=0)
        assert torch.equal(grad == 0, want_grad == 0), path


@every_t
@every_dtype
def test_every_value(steps, dtype):
    bits = torch.arange(2**steps, dtype=torch.uint8).view(1, 1, -1)
    v = torch.zeros(1, 2**steps, dtype=dtype)
    everywhere(bits[0].to(dtype), ops.tandem_count, bits, v, steps, RadixIF())
    many = bits.repeat(1, 1, 40_000 // 2**steps)  # enough for two threads
    v = torch.zeros(many.shape[1:], dtype=dtype)
    everywhere(many[0].to(dtype), ops.tandem_count, many, v, steps, RadixIF())


@every_t
@every_dtype
def test_tandem_norm_count(steps, dtype):
    product = 3 * normal(4, 5, 3, seed=0, dtype=dtype)
    var, mean = torch.var_mean(product, [0, 2], correction=0)
    gamma, beta = (normal(5, seed=seed, dtype=dtype) for seed in (1, 2))
    bits = planes(steps, 4, 5, 3, seed=3, rate=0.5)
    theta = RadixIF(1.5).threshold_at(steps)
    arriving = normal(4, 5, 3, seed=4, dtype=dtype)

    def run(op):
        leaves = [x.clone().requires_grad_() for x in (product, gamma, beta)]
        value = op(bits, leaves[0], mean, var, *leaves[1:], steps, threshold=theta, upper=1.5, radix=True)
        return value.detach(), *torch.autograd.grad(value, leaves, arriving)

    want = run(ref.tandem_norm_count)
    same(want[0], bits[0].to(dtype))
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    for path, got in every_path(run, ops.tandem_norm_count):
        same(got[0], want[0], path)
        for grad, expected in zip(got[1:], want[1:], strict=True):
            torch.testing.assert_close(grad, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_gradients_are_those_of_counts():
    """Of neurons with the threshold theta: only the value in front differs."""
    steps, radix = 5, RadixIF(1.5)
    bits, v = planes(steps, 3, 40, seed=0), normal(3, 40, seed=1)
    arriving = normal(3, 40, seed=2)
    _, grad = gradient(ops.tandem_count, bits, v, steps, radix, 1.5, seed_grad=arriving)
    _, want = gradient(ops.tandem_count, bits, v, steps, IF(radix.threshold_at(steps)), 1.5, seed_grad=arriving)
    same(grad, want)


def test_calls_of_version_0_2():
    """Without the argument that says whether bits are values, as exported programs of that version call them."""
    bits, v = planes(4, 2, 3, seed=0, rate=0.7), torch.zeros(2, 3)
    call = torch.ops.tandem_cuda.tandem_count
    leaf = v.clone().requires_grad_()
    count = call(bits, leaf, 4, IF().kind, IF().parameters, math.inf)
    count.sum().backward()
    same(count.detach(), ref.spike_count(bits))
    vectors = torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3)
    leaf = v.clone().requires_grad_()
    count = torch.ops.tandem_cuda.tandem_norm_count(bits, leaf, *vectors, 1e-5, 4, 1.0, math.inf, None)
    count.sum().backward()
    same(count.detach(), ref.spike_count(bits))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, -1, 9, 16])
def test_bad_time_steps(steps):
    v, radix = torch.ones(2, 3), RadixIF()
    bits = torch.zeros(max(1, math.ceil(steps / 8)), 2, 3, dtype=torch.uint8)
    image, weight = torch.ones(2, 3), torch.ones(4, 3, dtype=torch.int8)
    vectors = [torch.ones(3) for _ in range(4)]
    calls = {
        "radix_spikes": lambda: ops.radix_spikes(v, steps, radix),
        "integrate_and_fire": lambda: ops.integrate_and_fire(v, steps, neuron=radix),
        "tandem_count": lambda: ops.tandem_count(bits, v, steps, radix),
        "tandem_norm_count": lambda: ops.tandem_norm_count(bits, v, *vectors, steps, radix=True),
        "ordered_spikes": lambda: ops.ordered_spikes(image, weight, steps, neuron=radix),
        "spiking_linear": lambda: ops.spiking_linear(bits, weight.float(), time_steps=steps, neuron=radix),
    }
    message = "at least 1" if steps < 1 else "from 1 to 8, since .* fills a byte"
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: time_steps .*must be {message}, got {steps}"):
            call()


def test_bad_arguments():
    v, radix = torch.ones(2, 3), RadixIF()
    for wrong, error, message in (
        ({"v": v.half()}, TypeError, "v must be float32 or float64, got torch.float16"),
        ({"v": v.int()}, TypeError, "v must be float32 or float64, got torch.int32"),
        ({"v": [1.0]}, TypeError, "v must be a Tensor, got list"),
        ({"v": v[0]}, ValueError, r"v must be \[N, C, \.\.\.\], got \[3\]"),
        ({"time_steps": 4.0}, TypeError, "time_steps must be an int, got float"),
        ({"time_steps": True}, TypeError, "time_steps must be an int, got bool"),
        ({"neuron": IF()}, TypeError, r"neuron must be RadixIF\(\.\.\.\), got IF"),
        ({"neuron": LIF()}, TypeError, r"neuron must be RadixIF\(\.\.\.\), got LIF"),
        ({"scale": torch.ones(2)}, ValueError, r"scale must be \[3\], got \[2\]"),
        ({"bias": torch.ones(3, 1)}, ValueError, r"bias must be \[3\], got \[3, 1\]"),
        ({"bias": torch.ones(3).half()}, TypeError, "bias must have the dtype of v, torch.float32, got torch.float16"),
    ):
        with pytest.raises(error, match=f"^radix_spikes: {message}$"):
            ops.radix_spikes(**{"v": v, "time_steps": 4, "neuron": radix} | wrong)


def test_levels_beyond_the_dtype():
    """Which float64 has, and float32 has not."""
    for level, message in (
        (1e-60, "threshold must be positive in the dtype of the potential, got "),
        (
            1e60,
            r"threshold \* 2\^\(time_steps - 1\) must be finite in the dtype of the potential, got .* and 4 time steps",
        ),
    ):
        v = torch.ones(2, 3)
        with pytest.raises(RuntimeError, match=f"^radix_spikes: {message}"):
            ops.radix_spikes(v, 4, RadixIF(level))
        same(ops.radix_spikes(v.double(), 4, RadixIF(level))[0].double(), RadixIF(level).value(v.double(), 4))


def test_bits_past_the_end():
    bits, v = torch.full((1, 2, 3), 16, dtype=torch.uint8), torch.zeros(2, 3)
    vectors = [torch.ones(3) for _ in range(4)]
    for call in (
        lambda: ops.tandem_count(bits, v, 4, RadixIF()),
        lambda: ops.tandem_norm_count(bits, v, *vectors, 4, radix=True),
    ):
        with pytest.raises(RuntimeError, match="bits must be zero past time_steps = 4, got 0x10 in the last plane"):
            call()


def test_no_state():
    with pytest.raises(ValueError, match="integrate_and_fire: state must be None with two_phase"):
        ops.integrate_and_fire(torch.ones(2, 3), 4, state=torch.zeros(1, 2, 3), neuron=RadixIF())


def test_wide_rows_in_threads():
    """Channels that neither blocks nor shares of threads divide."""
    v = torch.randn(7, 1001, 11, generator=generator(0))
    named = operands(1001, torch.float32, seed=0)
    everywhere(ref.radix_spikes(v, 8, RadixIF(2.0), **named), ops.radix_spikes, v, 8, RadixIF(2.0), **named)
