"""integrate_and_fire against the reference. Its order of operations is fixed, so any currents give identical bits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import (
    FLOATS,
    LEAKS,
    SEEDS,
    THRESHOLDS,
    TIME_STEPS,
    dyadic,
    every_path,
    everywhere,
    firing_rate,
    generator,
    same,
)
from tandem_cuda import ops
from tandem_cuda import reference as ref

MODES = ("constant", "impulse", "series")


def currents(shape, mode, time_steps, dtype, seed):
    if mode == "series":
        shape = (time_steps, *shape)
    # Impulses must be large for neurons to go on firing.
    spread = 3.0 if mode == "impulse" else 1.0
    return spread * torch.randn(shape, generator=generator(seed), dtype=dtype)


@given(
    time_steps=st.one_of(st.sampled_from(TIME_STEPS), st.integers(1, 70)),
    batch=st.integers(0, 3),
    channels=st.integers(1, 37),
    spatial=st.lists(st.integers(1, 4), max_size=3),
    mode=st.sampled_from(MODES),
    dtype=st.sampled_from(FLOATS),
    threshold=st.sampled_from(THRESHOLDS),
    leak=st.sampled_from(LEAKS),
    scale=st.booleans(),
    bias=st.booleans(),
    potential=st.booleans(),
    wanted=st.tuples(st.booleans(), st.booleans()),
    seed=SEEDS,
)
def test_matches_reference(
    time_steps, batch, channels, spatial, mode, dtype, threshold, leak, scale, bias, potential, wanted, seed
):
    shape = (batch, channels, *spatial)
    current = currents(shape, mode, time_steps, dtype, seed)
    arguments = {
        "scale": torch.randn(channels, generator=generator(seed + 3), dtype=dtype) if scale else None,
        "bias": torch.randn(channels, generator=generator(seed + 1), dtype=dtype) / 4 if bias else None,
        "potential": torch.randn(shape, generator=generator(seed + 2), dtype=dtype) if potential else None,
        "mode": mode,
        "threshold": threshold,
        "leak": leak,
        "want_sum": wanted[0],
        "want_potential": wanted[1],
    }
    want = ref.integrate_and_fire(current, time_steps, **arguments)
    everywhere(want, ops.integrate_and_fire, current, time_steps, **arguments)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_many_neurons(mode, bias, dtype):
    """Enough of them for two threads, neither channels nor pixels a multiple of a vector."""
    shape = (3, 33, 31, 17)
    current = currents(shape, mode, 10, dtype, 0)
    arguments = {
        "bias": torch.randn(33, generator=generator(1), dtype=dtype) / 4 if bias else None,
        "potential": torch.randn(shape, generator=generator(2), dtype=dtype),
        "mode": mode,
    }
    want = ref.integrate_and_fire(current, 10, **arguments)
    assert 0.03 < firing_rate(want[0], 10) < 0.9
    everywhere(want, ops.integrate_and_fire, current, 10, **arguments)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 63, 64, 65, 127, 128, 129, 300])
def test_channels_and_blocks(mode, channels):
    """Blocks of neurons start at any channel: the bias must be that channel's, and each element be written once."""
    for time_steps in (5, 8, 20):
        current = currents((3, channels, 5), mode, time_steps, torch.float32, channels)
        bias = torch.randn(channels, generator=generator(1)) / 4
        arguments = {"bias": bias, "scale": torch.randn(channels, generator=generator(2)), "mode": mode}
        want = ref.integrate_and_fire(current, time_steps, **arguments)
        everywhere(want, ops.integrate_and_fire, current, time_steps, **arguments)


@pytest.mark.parametrize("mode", MODES)
def test_more_steps_than_a_byte_counts(mode):
    current = currents((2, 21), mode, 300, torch.float32, 0)
    want = ref.integrate_and_fire(current, 300, mode=mode, threshold=0.25)
    everywhere(want, ops.integrate_and_fire, current, 300, mode=mode, threshold=0.25)


def test_exactly_at_threshold_fires():
    """1 reaches 1 at every step; 1/4 at the fourth; the float below 1 not at the first."""
    below = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    current = torch.tensor([[1.0, 0.25, below, -1.0, 0.0]])
    want = torch.tensor([[[0b1111, 0b1000, 0b1110, 0, 0]]], dtype=torch.uint8)
    for path, (bits, _, _) in every_path(ops.integrate_and_fire, current, 4):
        same(bits, want, path)


def test_not_finite():
    """NaN silences a neuron from then on, and it alone; infinity fires at every step, minus infinity never again."""
    nan, inf = math.nan, math.inf
    current = torch.tensor([[[2, 2, 2, 0.5]], [[2, nan, inf, 0.5]], [[2, 2, 0, 0.5]], [[2, 2, 0, -inf]]])
    want = torch.tensor([[[0b1111, 0b0001, 0b1111, 0b0010]]], dtype=torch.uint8)
    for path, (bits, _, _) in every_path(ops.integrate_and_fire, current.repeat(1, 1, 9), 4, mode="series"):
        same(bits, want.repeat(1, 1, 9), path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("leak", [1.0, 0.5])
def test_not_finite_anywhere(value, mode, leak):
    """In the current, the bias or the carried potential, among neurons that go on as if nothing had happened."""
    for place in ("current", "bias", "potential"):
        current = currents((2, 19), mode, 11, torch.float32, 0)
        bias, potential = dyadic(19, seed=1), dyadic(2, 19, seed=2)
        {"current": current, "bias": bias, "potential": potential}[place][..., 3] = value
        want = ref.integrate_and_fire(current, 11, bias, potential, mode=mode, leak=leak)
        everywhere(want, ops.integrate_and_fire, current, 11, bias, potential, mode=mode, leak=leak)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("leak", [1.0, 0.5])
def test_not_finite_in_whole_vectors(mode, leak, dtype):
    """The same in rows so long that vectors do the work: what tells a spike there must not take NaN for a number."""
    values = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0], dtype=dtype)
    time_steps = 11
    choose = torch.randint(0, 28, (time_steps, 2, 300), generator=generator(0))
    series = torch.where(choose < 7, values[choose % 7], currents((2, 300), "series", time_steps, dtype, 1))
    current = series if mode == "series" else series[0].contiguous()
    bias, potential = series[1, 0].contiguous(), series[2].contiguous()
    for given_bias, given_potential in ((None, None), (bias, None), (None, potential), (bias, potential)):
        arguments = {"bias": given_bias, "potential": given_potential, "mode": mode, "leak": leak}
        want = ref.integrate_and_fire(current, time_steps, **arguments)
        everywhere(want, ops.integrate_and_fire, current, time_steps, **arguments)
        arguments.update(want_sum=False, want_potential=False)
        for path, (bits, _, _) in every_path(ops.integrate_and_fire, current, time_steps, **arguments):
            same(bits, want[0], path)


@given(
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    multiples=st.booleans(),
    leak=st.sampled_from(LEAKS),
    mode=st.sampled_from(("constant", "series")),
    seed=SEEDS,
)
def test_streaming(cuts, multiples, leak, mode, seed):
    """In pieces, each with the potential that the last one returned, a train is what it is in one."""
    cuts = [8 * c for c in cuts] if multiples else cuts
    time_steps = sum(cuts)
    current = currents((2, 21, 3), mode, time_steps, torch.float32, seed)
    bias = dyadic(21, seed=seed)
    whole, _, final = ops.integrate_and_fire(current, time_steps, bias, mode=mode, leak=leak)
    pieces, potential, start = [], None, 0
    for steps in cuts:
        part = current[start : start + steps] if mode == "series" else current
        bits, _, potential = ops.integrate_and_fire(part, steps, bias, potential, mode=mode, leak=leak)
        pieces.append(ops.unpack_spikes(bits, steps))
        start += steps
    same(torch.cat(pieces), ops.unpack_spikes(whole, time_steps))
    same(potential, final)


def test_unwanted_outputs():
    """Empty, and not one tensor twice: outputs of an operator must not alias each other."""
    _, total, potential = ops.integrate_and_fire(torch.zeros(2, 5), 9, want_sum=False, want_potential=False)
    assert total.shape == potential.shape == (0,)
    assert total.untyped_storage()._cdata != potential.untyped_storage()._cdata


CURRENT = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "named", "error", "message"),
    [
        ((None, 8), {}, TypeError, "current must be a Tensor, got NoneType"),
        ((CURRENT.half(), 8), {}, TypeError, "current must be float32 or float64, got torch.float16"),
        ((CURRENT.int(), 8), {}, TypeError, "current must be float32 or float64, got torch.int32"),
        ((CURRENT[0, 0], 8), {}, ValueError, r"current must be \[N, C, \.\.\.\], got \[4\]"),
        ((CURRENT[0], 3), {"mode": "series"}, ValueError, r"current must be \[T, N, C, \.\.\.\], got \[3, 4\]"),
        ((CURRENT, 3), {"mode": "series"}, ValueError, r"current must hold 3 time steps, got \[2, 3, 4\]"),
        ((CURRENT, 0), {}, ValueError, "time_steps must be at least 1, got 0"),
        ((CURRENT, -1), {}, ValueError, "time_steps must be at least 1, got -1"),
        ((CURRENT, 8.0), {}, TypeError, "time_steps must be an int, got float"),
        ((CURRENT, True), {}, TypeError, "time_steps must be an int, got bool"),
        ((CURRENT, None), {}, TypeError, "time_steps must be an int, got NoneType"),
        ((CURRENT, 8), {"mode": "ramp"}, ValueError, "mode must be .*, got 'ramp'"),
        ((CURRENT, 8), {"mode": None}, ValueError, "mode must be .*, got None"),
        ((CURRENT, 8), {"threshold": 0.0}, ValueError, "threshold must be positive and finite, got 0"),
        ((CURRENT, 8), {"threshold": -1.0}, ValueError, "threshold must be positive and finite, got -1"),
        ((CURRENT, 8), {"threshold": math.inf}, ValueError, "threshold must be positive and finite, got inf"),
        ((CURRENT, 8), {"threshold": math.nan}, ValueError, "threshold must be positive and finite, got nan"),
        ((CURRENT, 8), {"threshold": "1"}, TypeError, "threshold must be .*str"),
        ((CURRENT, 8), {"leak": 0.0}, ValueError, r"leak must be in \(0, 1\], got 0"),
        ((CURRENT, 8), {"leak": 1.01}, ValueError, r"leak must be in \(0, 1\], got 1.01"),
        ((CURRENT, 8), {"leak": math.nan}, ValueError, r"leak must be in \(0, 1\], got nan"),
        ((CURRENT, 8), {"leak": None}, TypeError, "leak must be .*NoneType"),
        ((CURRENT, 8), {"bias": torch.zeros(4)}, ValueError, r"bias must be \[3\], got \[4\]"),
        ((CURRENT, 8), {"scale": torch.zeros(4)}, ValueError, r"scale must be \[3\], got \[4\]"),
        ((CURRENT, 8), {"bias": torch.zeros(3, 1)}, ValueError, r"bias must be \[3\], got \[3, 1\]"),
        ((CURRENT, 8), {"bias": torch.zeros(3).double()}, TypeError, "bias must have the dtype of current"),
        ((CURRENT, 8), {"bias": torch.zeros(3, device="meta")}, ValueError, "bias must be on the device of current"),
        ((CURRENT, 8), {"bias": 0.5}, TypeError, "bias must be a Tensor, got float"),
        ((CURRENT, 8), {"potential": CURRENT[:1]}, ValueError, r"potential must be \[2, 3, 4\], got \[1, 3, 4\]"),
        ((CURRENT, 8), {"potential": CURRENT.double()}, TypeError, "potential must have the dtype of current"),
        ((CURRENT, 8), {"potential": CURRENT.to("meta")}, ValueError, "potential must be on the device of current"),
    ],
)
def test_bad_input(arguments, named, error, message):
    with pytest.raises(error, match=f"integrate_and_fire: {message}"):
        ops.integrate_and_fire(*arguments, **named)
