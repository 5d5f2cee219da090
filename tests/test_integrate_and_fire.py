"""integrate_and_fire against the reference. Its order of operations is fixed, so any currents give identical bits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import (
    FLOATS,
    SEEDS,
    TIME_STEPS,
    dyadic,
    every_path,
    everywhere,
    firing_rate,
    generator,
    normal,
    same,
)
from neurons import EVERY_KIND, any_neuron, every_kind, state_of
from pairwise import pairs
from tandem_cuda import IF, ops
from tandem_cuda import reference as ref

MODES = ("constant", "impulse", "series", "once")


def currents(shape, mode, time_steps, dtype, seed):
    if mode == "series":
        shape = (time_steps, *shape)
    # Impulses must be large for neurons to go on firing.
    spread = 3.0 if mode in ("impulse", "once") else 1.0
    return spread * torch.randn(shape, generator=generator(seed), dtype=dtype)


@given(
    time_steps=st.one_of(st.sampled_from(TIME_STEPS), st.integers(1, 70)),
    batch=st.integers(0, 3),
    channels=st.integers(1, 37),
    spatial=st.lists(st.integers(1, 4), max_size=3),
    mode=st.sampled_from(MODES),
    dtype=st.sampled_from(FLOATS),
    neuron=any_neuron(),
    scale=st.booleans(),
    bias=st.booleans(),
    state=st.booleans(),
    wanted=st.tuples(st.booleans(), st.booleans()),
    seed=SEEDS,
)
def test_matches_reference(time_steps, batch, channels, spatial, mode, dtype, neuron, scale, bias, state, wanted, seed):
    shape = (batch, channels, *spatial)
    current = currents(shape, mode, time_steps, dtype, seed)
    arguments = {
        "scale": torch.randn(channels, generator=generator(seed + 3), dtype=dtype) if scale else None,
        "bias": torch.randn(channels, generator=generator(seed + 1), dtype=dtype) / 4 if bias else None,
        "state": state_of(neuron, *shape, draw=normal, seed=seed + 2, dtype=dtype) if state else None,
        "mode": mode,
        "neuron": neuron,
        "want_sum": wanted[0],
        "want_state": wanted[1],
    }
    want = ref.integrate_and_fire(current, time_steps, **arguments)
    everywhere(want, ops.integrate_and_fire, current, time_steps, **arguments)


@pairs(mode=MODES, bias=[True, False], dtype=FLOATS, neuron=EVERY_KIND)
def test_many_neurons(mode, bias, dtype, neuron):
    """Enough of them for two threads, neither channels nor pixels a multiple of a vector."""
    shape = (3, 33, 31, 17)
    current = currents(shape, mode, 10, dtype, 0)
    arguments = {
        "bias": torch.randn(33, generator=generator(1), dtype=dtype) / 4 if bias else None,
        "state": state_of(neuron, *shape, draw=normal, seed=2, dtype=dtype),
        "mode": mode,
        "neuron": neuron,
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
    want = ref.integrate_and_fire(current, 300, mode=mode, neuron=IF(0.25))
    everywhere(want, ops.integrate_and_fire, current, 300, mode=mode, neuron=IF(0.25))


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


@pairs(value=[math.nan, math.inf, -math.inf], mode=MODES, neuron=EVERY_KIND)
def test_not_finite_anywhere(value, mode, neuron):
    """In the current, the bias or the carried potential, among neurons that go on as if nothing had happened."""
    for place in ("current", "bias", "potential"):
        current = currents((2, 19), mode, 11, torch.float32, 0)
        bias, state = dyadic(19, seed=1), state_of(neuron, 2, 19, seed=2)
        {"current": current, "bias": bias, "potential": state[0]}[place][..., 3] = value
        want = ref.integrate_and_fire(current, 11, bias, state, mode=mode, neuron=neuron)
        everywhere(want, ops.integrate_and_fire, current, 11, bias, state, mode=mode, neuron=neuron)


@pairs(dtype=FLOATS, mode=MODES, neuron=EVERY_KIND)
def test_not_finite_in_whole_vectors(mode, neuron, dtype):
    """The same in rows so long that vectors do the work: what tells a spike there must not take NaN for a number."""
    values = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0], dtype=dtype)
    time_steps = 11
    choose = torch.randint(0, 28, (time_steps, 2, 300), generator=generator(0))
    series = torch.where(choose < 7, values[choose % 7], currents((2, 300), "series", time_steps, dtype, 1))
    current = series if mode == "series" else series[0].contiguous()
    bias, state = series[1, 0].contiguous(), state_of(neuron, 2, 300, seed=2, dtype=dtype)
    state[0] = series[2]
    for given_bias, given_state in ((None, None), (bias, None), (None, state), (bias, state)):
        arguments = {"bias": given_bias, "state": given_state, "mode": mode, "neuron": neuron}
        want = ref.integrate_and_fire(current, time_steps, **arguments)
        everywhere(want, ops.integrate_and_fire, current, time_steps, **arguments)
        arguments.update(want_sum=False, want_state=False)
        for path, (bits, _, _) in every_path(ops.integrate_and_fire, current, time_steps, **arguments):
            same(bits, want[0], path)


@given(
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    multiples=st.booleans(),
    neuron=any_neuron((1.0,)),
    mode=st.sampled_from(("constant", "series")),
    seed=SEEDS,
)
def test_streaming(cuts, multiples, neuron, mode, seed):
    """In pieces, each with the state that the last one returned, a train is what it is in one."""
    cuts = [8 * c for c in cuts] if multiples else cuts
    time_steps = sum(cuts)
    current = currents((2, 21, 3), mode, time_steps, torch.float32, seed)
    bias = dyadic(21, seed=seed)
    whole, _, final = ops.integrate_and_fire(current, time_steps, bias, mode=mode, neuron=neuron)
    pieces, state, start = [], None, 0
    for steps in cuts:
        part = current[start : start + steps] if mode == "series" else current
        bits, _, state = ops.integrate_and_fire(part, steps, bias, state, mode=mode, neuron=neuron)
        pieces.append(ops.unpack_spikes(bits, steps))
        start += steps
    same(torch.cat(pieces), ops.unpack_spikes(whole, time_steps))
    same(state, final)


def test_unwanted_outputs():
    """Empty, and not one tensor twice: outputs of an operator must not alias each other."""
    _, total, state = ops.integrate_and_fire(torch.zeros(2, 5), 9, want_sum=False, want_state=False)
    assert total.shape == state.shape == (0,)
    assert total.untyped_storage()._cdata != state.untyped_storage()._cdata


CURRENT = torch.zeros(2, 3, 4)
STATE = CURRENT[None]


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
        ((CURRENT, 8), {"neuron": 1.0}, TypeError, "neuron must be .*, got float"),
        ((CURRENT, 8), {"neuron": None}, TypeError, "neuron must be .*, got NoneType"),
        ((CURRENT, 8), {"neuron": IF}, TypeError, "neuron must be .*, got type"),
        ((CURRENT, 8), {"bias": torch.zeros(4)}, ValueError, r"bias must be \[3\], got \[4\]"),
        ((CURRENT, 8), {"scale": torch.zeros(4)}, ValueError, r"scale must be \[3\], got \[4\]"),
        ((CURRENT, 8), {"bias": torch.zeros(3, 1)}, ValueError, r"bias must be \[3\], got \[3, 1\]"),
        ((CURRENT, 8), {"bias": torch.zeros(3).double()}, TypeError, "bias must have the dtype of current"),
        ((CURRENT, 8), {"bias": torch.zeros(3, device="meta")}, ValueError, "bias must be on the device of current"),
        ((CURRENT, 8), {"bias": 0.5}, TypeError, "bias must be a Tensor, got float"),
        ((CURRENT, 8), {"state": CURRENT}, ValueError, r"state must be \[1, 2, 3, 4\], got \[2, 3, 4\]"),
        ((CURRENT, 8), {"state": STATE[:, :1]}, ValueError, r"state must be \[1, 2, 3, 4\], got \[1, 1, 3, 4\]"),
        ((CURRENT, 8), {"state": STATE.double()}, TypeError, "state must have the dtype of current"),
        ((CURRENT, 8), {"state": STATE.to("meta")}, ValueError, "state must be on the device of current"),
        ((CURRENT, 8), {"state": 0.0}, TypeError, "state must be a Tensor, got float"),
    ],
)
def test_bad_input(arguments, named, error, message):
    with pytest.raises(error, match=f"integrate_and_fire: {message}"):
        ops.integrate_and_fire(*arguments, **named)


@every_kind
def test_state_of_another_model(neuron):
    for states in (neuron.states - 1, neuron.states + 1):
        message = rf"integrate_and_fire: state must be \[{neuron.states}, 2, 3, 4\], got \[{states}, 2, 3, 4\]"
        with pytest.raises(ValueError, match=message):
            ops.integrate_and_fire(CURRENT, 8, state=torch.zeros(states, *CURRENT.shape), neuron=neuron)
