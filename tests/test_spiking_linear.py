"""spiking_linear against the reference, bit for bit where sums are exact."""

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
    every_variant,
    everywhere,
    examples,
    firing_rate,
    generator,
    planes,
    same,
    train,
    variants,
)
from neurons import BRANCHES, any_neuron, every_kind, joining, state_of
from tandem_cuda import IF, ops
from tandem_cuda import reference as ref
from test_count_linear import BAD_LINEAR, BITS, NARROW_SUMS, WEIGHT


@examples(200)
@given(
    time_steps=st.one_of(st.sampled_from(TIME_STEPS), st.integers(1, 70)),
    batch=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    features=st.sampled_from(CHANNELS),
    outputs=st.sampled_from(CHANNELS),
    variant=variants(),
    rate=st.sampled_from(RATES),
    neuron=any_neuron(),
    bias=st.booleans(),
    state=st.booleans(),
    branch=st.sampled_from(BRANCHES),
    wanted=st.tuples(st.booleans(), st.booleans()),
    seed=SEEDS,
)
def test_matches_reference(
    time_steps, batch, features, outputs, variant, rate, neuron, bias, state, branch, wanted, seed
):
    bits = planes(time_steps, *batch, features, seed=seed, rate=rate)
    weight, scale = variant.operands(outputs, features, seed=seed + 1)
    arguments = {
        "scale": scale,
        "bias": dyadic(outputs, seed=seed + 2, dtype=variant.dtype) if bias else None,
        "state": state_of(neuron, *batch, outputs, seed=seed + 3, span=2, dtype=variant.dtype) if state else None,
        "time_steps": time_steps,
        "neuron": neuron,
        "want_sum": wanted[0],
        "want_state": wanted[1],
        **joining(branch, time_steps, *batch, outputs, axis=-1, seed=seed + 4, dtype=variant.dtype),
    }
    want = ref.spiking_linear(bits, weight, **arguments)
    everywhere(want, ops.spiking_linear, bits, weight, **variant.how(weight), **arguments)


@every_variant
@pytest.mark.parametrize(("time_steps", "batch"), [(8, 67), (13, 1001), (300, 67)])
def test_larger(time_steps, batch, variant):
    """Several tiles for every thread, and counts that exceed a byte."""
    bits = planes(time_steps, batch, 130, seed=0, rate=0.1)
    weight, scale = variant.operands(70, 130, seed=1)
    arguments = {"bias": dyadic(70, seed=2, dtype=variant.dtype) / 8, "scale": scale, "time_steps": time_steps}
    want = ref.spiking_linear(bits, weight, **arguments)
    assert 0.05 < firing_rate(want[0], time_steps) < 0.8
    everywhere(want, ops.spiking_linear, bits, weight, **variant.how(weight), **arguments)


@NARROW_SUMS
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_int8_sums_are_exact(outputs, features, value, rate):
    bits, weight = planes(3, 5, features, seed=0, rate=rate), torch.full((outputs, features), value, dtype=torch.int8)
    scale, bias = torch.linspace(-1, 1, outputs), dyadic(outputs, seed=1)
    series = scale * (ref.unpack_spikes(bits, 3, torch.int64) @ weight.long().t()).float() + bias
    want = ref.integrate_and_fire(series, 3, mode="series", neuron=IF(1000))
    named = {"scale": scale, "time_steps": 3, "neuron": IF(1000)}
    for packed in (None, ops.pack_weight(weight)):
        everywhere(want, ops.spiking_linear, bits, weight, bias, packed=packed, **named)


def test_exactly_at_threshold_fires():
    weight = torch.tensor([[0.5, 0.5], [0.5, 0.25], [1.0, -1.0]])
    bits = torch.tensor([[[0b011, 0b110]]], dtype=torch.uint8)  # currents 1/2, 1, 1/2; 1/2, 3/4, 1/4; 1, 0, -1
    want = torch.tensor([[[0b110, 0b010, 0b001]]], dtype=torch.uint8)
    for path, (got, total, state) in every_path(ops.spiking_linear, bits, weight, time_steps=3):
        same(got, want, path)
        same(total, torch.tensor([[2.0, 1.5, 0.0]]), path)
        same(state, torch.tensor([[[1.0, 0.5, -1.0]]]), path)


@pytest.mark.parametrize("engine", ["event", "dense"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_inexact_weights(dtype, engine):
    """Close to the reference; events also the same for any number of threads."""
    bits = planes(12, 50, 300, seed=0, rate=0.1)
    weight, bias = (torch.randn(s, generator=generator(1), dtype=dtype) / 10 for s in ((90, 300), (90,)))
    want_bits, want_total, _ = ref.spiking_linear(bits, weight, bias, time_steps=12)
    assert 0.05 < firing_rate(want_bits, 12) < 0.8
    results = {}
    for path, got in every_path(ops.spiking_linear, bits, weight, bias, time_steps=12, engine=engine):
        torch.testing.assert_close(got[1], want_total)
        assert (got[0] != want_bits).float().mean() < 1e-3, path
        if engine == "event":
            same(got, results.setdefault(path.split(",")[0], got), path)


@given(
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    multiples=st.booleans(),
    neuron=any_neuron((1.0,)),
    variant=variants(),
    seed=SEEDS,
)
def test_streaming(cuts, multiples, neuron, variant, seed):
    """In pieces, each with the state that the last one returned, a train is what it is in one."""
    cuts = [8 * c for c in cuts] if multiples else cuts
    time_steps = sum(cuts)
    spikes = train(time_steps, 2, 3, 21, seed=seed)
    weight, _ = variant.operands(10, 21, seed=seed + 1)
    if variant.weights == torch.int16:
        weight = weight >> 8  # so that sums of all currents, too, are exact
    bias, scale = (dyadic(10, seed=seed + i, dtype=variant.dtype) / 4 for i in (2, 3))  # their sums are exact
    named = {"neuron": neuron, "scale": scale if variant.scaled else None, **variant.how(weight)}
    whole, total, final = ops.spiking_linear(ref.pack_spikes(spikes), weight, bias, time_steps=time_steps, **named)
    pieces, totals, state, start = [], [], None, 0
    for steps in cuts:
        # Whole planes are cut without a copy; other pieces are packed anew.
        cut = slice(start, start + steps)
        part = ref.pack_spikes(spikes)[start // 8 : (start + steps) // 8] if multiples else ref.pack_spikes(spikes[cut])
        bits, part_total, state = ops.spiking_linear(part, weight, bias, state, time_steps=steps, **named)
        pieces.append(ops.unpack_spikes(bits, steps))
        totals.append(part_total)
        start += steps
    same(torch.cat(pieces), ops.unpack_spikes(whole, time_steps))
    same(state, final)
    same(sum(totals), total)


def test_unwanted_outputs():
    """Empty, and not one tensor twice: outputs of an operator must not alias each other."""
    _, total, state = ops.spiking_linear(BITS, WEIGHT, time_steps=9, want_sum=False, want_state=False)
    assert total.shape == state.shape == (0,)
    assert total.untyped_storage()._cdata != state.untyped_storage()._cdata


@pytest.mark.parametrize("want_sum", [True, False])
def test_only_the_sum_has_a_gradient(want_sum):
    bits, weight = planes(9, 3, 7, seed=0), dyadic(4, 7, seed=1).requires_grad_()
    state = dyadic(1, 3, 4, seed=2).requires_grad_()
    out = ops.spiking_linear(bits, weight, state=state, time_steps=9, want_sum=want_sum)
    assert [x.requires_grad for x in out] == [False, want_sum, False]


BAD_NEURONS = [
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
]
BAD_STATE = [
    ({"state": 0.0}, TypeError, "state must be a Tensor, got float"),
    ({"state": torch.zeros(4, 5)}, ValueError, r"state must be \[1, 4, 5\], got \[4, 5\]"),
    ({"state": torch.zeros(1, 4, 3)}, ValueError, r"state must be \[1, 4, 5\], got \[1, 4, 3\]"),
    ({"state": torch.zeros(5)}, ValueError, r"state must be \[1, 4, 5\], got \[5\]"),
    ({"state": torch.zeros(1, 4, 5).double()}, TypeError, "state must have the dtype of weight"),
    ({"state": torch.zeros(1, 4, 5, device="meta")}, ValueError, "state must be on the device of weight"),
    ({"added": torch.zeros(9, 4, 4)}, ValueError, r"added must be \[9, 4, 5\], got \[9, 4, 4\]"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BAD_LINEAR + BAD_NEURONS + BAD_STATE)
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=f"spiking_linear: {message}"):
        ops.spiking_linear(**{"bits": BITS, "weight": WEIGHT, "time_steps": 9} | wrong)


@every_kind
def test_state_of_another_model(neuron):
    wrong = torch.zeros(neuron.states + 1, 4, 5)
    message = rf"spiking_linear: state must be \[{neuron.states}, 4, 5\], got \[{neuron.states + 1}, 4, 5\]"
    with pytest.raises(ValueError, match=message):
        ops.spiking_linear(BITS, WEIGHT, state=wrong, time_steps=9, neuron=neuron)
