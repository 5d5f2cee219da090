"""spiking_conv2d against the reference, bit for bit where sums are exact."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from exact import (
    ENGINES,
    FLOATS,
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
    firing_rate,
    generator,
    out_shape,
    planes,
    same,
    slow,
    train,
    variants,
)
from neurons import BRANCHES, any_neuron, every_kind, joining, state_of
from tandem_cuda import IF, LIF, ops
from tandem_cuda import reference as ref
from test_count_conv2d import BAD_CONV2D, BITS, NARROW_SUMS, WEIGHT
from test_spiking_linear import BAD_NEURONS


@examples(200)
@given(
    case=st.one_of(convolutions(), depthwise_convolutions()),
    time_steps=st.one_of(st.sampled_from(TIME_STEPS), st.integers(1, 70)),
    variant=variants(),
    rate=st.sampled_from(RATES),
    neuron=any_neuron(),
    bias=st.booleans(),
    state=st.booleans(),
    branch=st.sampled_from(BRANCHES),
    wanted=st.tuples(st.booleans(), st.booleans()),
    seed=SEEDS,
)
def test_matches_reference(case, time_steps, variant, rate, neuron, bias, state, branch, wanted, seed):
    bits = planes(time_steps, *case["input"], seed=seed, rate=rate)
    weight, scale = variant.operands(*case["weight"], seed=seed + 1)
    arguments = {
        "scale": scale,
        "bias": dyadic(case["weight"][0], seed=seed + 2, dtype=variant.dtype) if bias else None,
        "state": state_of(neuron, *out_shape(case), seed=seed + 3, span=2, dtype=variant.dtype) if state else None,
        **case["geometry"],
        "time_steps": time_steps,
        "neuron": neuron,
        "want_sum": wanted[0],
        "want_state": wanted[1],
        **joining(branch, time_steps, *out_shape(case), seed=seed + 4, dtype=variant.dtype),
    }
    want = ref.spiking_conv2d(bits, weight, **arguments)
    everywhere(want, ops.spiking_conv2d, bits, weight, **arguments, **variant.how(weight, arguments["groups"]))


@every_variant
@pytest.mark.parametrize(
    ("channels", "outputs", "groups"), [(3, 70, 1), (64, 40, 1), (65, 130, 1), (130, 20, 1), (48, 96, 48), (128, 32, 2)]
)
@pytest.mark.parametrize("shape", [(2, 9, 7), (3, 19, 17)])
def test_larger(channels, outputs, groups, shape, variant):
    """Several tiles for every thread; channels at and beside the borders of words and blocks."""
    bits = planes(11, shape[0], channels, *shape[1:], seed=0, rate=0.1)
    weight, scale = variant.operands(outputs, channels // groups, 3, 3, seed=1)
    bias = dyadic(outputs, seed=2, dtype=variant.dtype) / 8
    branch = "spikes" if channels % 2 else "currents"
    joined = joining(branch, 11, shape[0], outputs, *shape[1:], seed=3, dtype=variant.dtype)
    arguments = {"scale": scale, "padding": 1, "groups": groups, "time_steps": 11, **joined}
    want = ref.spiking_conv2d(bits, weight, bias, **arguments)
    assert 0.03 < firing_rate(want[0], 11) < 0.8
    everywhere(want, ops.spiking_conv2d, bits, weight, bias, **arguments, **variant.how(weight, groups))


@NARROW_SUMS
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_int8_sums_are_exact(shape, value, groups, rate):
    bits = planes(3, 2, groups * shape[1], *shape[2:], seed=0, rate=rate)
    weight = torch.full(shape, value, dtype=torch.int8)
    geometry = {"padding": 1, "groups": groups}
    steps = [F.conv2d(s, weight.double(), **geometry).float() for s in ref.unpack_spikes(bits, 3, torch.float64)]
    scale = torch.linspace(-1, 1, len(weight))
    want = ref.integrate_and_fire(scale.view(-1, 1, 1) * torch.stack(steps), 3, mode="series", neuron=IF(1000))
    named = {"scale": scale, "time_steps": 3, "neuron": IF(1000), **geometry}
    for packed in (None, ops.pack_weight(weight, groups)):
        everywhere(want, ops.spiking_conv2d, bits, weight, packed=packed, **named)


@every_variant
@pytest.mark.parametrize(("batch", "time_steps"), [(10, 8), (2, 44)])
@pytest.mark.parametrize(
    ("wanted", "state"), [(True, True), *(slow(*x) for x in ((True, False), (False, True), (False, False)))]
)
def test_large_images(batch, time_steps, wanted, state, variant):
    """More than the kernels' scratch memory holds at once: several samples, or several planes of one."""
    bits = planes(time_steps, batch, 16, 8, 64, seed=0, rate=0.1).repeat(1, 1, 1, 8, 1)
    weight, scale = variant.operands(5, 16, 3, 3, seed=1)
    arguments = {
        "scale": scale,
        "bias": dyadic(5, seed=2, dtype=variant.dtype) / 8,
        "padding": 1,
        "time_steps": time_steps,
        "neuron": LIF(leak=0.75),
        "state": dyadic(1, batch, 5, 64, 64, seed=3, span=2, dtype=variant.dtype) if state else None,
        "want_sum": wanted,
        "want_state": wanted,
    }
    want = ref.spiking_conv2d(bits, weight, **arguments)
    everywhere(want, ops.spiking_conv2d, bits, weight, **arguments, **variant.how(weight))


@every_variant
@pytest.mark.parametrize("byte", [0, 255])
def test_all_or_nothing_spikes(byte, variant):
    """With the count product: what makes the lists of spikes longest and shortest."""
    bits = torch.full((3, 2, 130, 9, 7), byte, dtype=torch.uint8)
    weight, scale = variant.operands(40, 130, 3, 3, seed=1)
    named, how = {"scale": scale, "padding": 1}, variant.how(weight)
    want = ref.spiking_conv2d(bits, weight, **named, time_steps=24)
    everywhere(want, ops.spiking_conv2d, bits, weight, **named, **how, time_steps=24)
    everywhere(ref.count_conv2d(bits, weight, **named), ops.count_conv2d, bits, weight, **named, **how)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("state", [True, False])
@every_kind
def test_dense_passes(wanted, state, neuron):
    """More than the dense engine unpacks at once: it carries states and sums from pass to pass."""
    bits, weight = planes(44, 2, 8, 64, 128, seed=0), dyadic(24, 8, 1, 1, seed=1)
    arguments = {
        "bias": dyadic(24, seed=2) / 8,
        "time_steps": 44,
        "neuron": neuron,
        "state": state_of(neuron, 2, 24, 64, 128, seed=3, span=2) if state else None,
        "want_sum": wanted,
        "want_state": wanted,
    }
    want = ref.spiking_conv2d(bits, weight, **arguments)
    everywhere(want, ops.spiking_conv2d, bits, weight, **arguments, engine="dense")


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


def test_more_steps_than_a_byte_counts():
    bits, weight = planes(300, 2, 5, 4, 5, seed=0), dyadic(17, 5, 3, 3, seed=1)
    want = ref.spiking_conv2d(bits, weight, padding=1, time_steps=300)
    assert ref.spike_count(want[0]).max() > 255
    everywhere(want, ops.spiking_conv2d, bits, weight, padding=1, time_steps=300)


@pytest.mark.parametrize("engine", ["event", "dense"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_inexact_weights(dtype, engine):
    """Close to the reference; events also the same for any number of threads."""
    bits = planes(12, 2, 30, 12, 11, seed=0, rate=0.1)
    weight, bias = (torch.randn(s, generator=generator(1), dtype=dtype) / 10 for s in ((90, 30, 3, 3), (90,)))
    want_bits, want_total, _ = ref.spiking_conv2d(bits, weight, bias, time_steps=12)
    assert 0.05 < firing_rate(want_bits, 12) < 0.8
    results = {}
    for path, got in every_path(ops.spiking_conv2d, bits, weight, bias, time_steps=12, engine=engine):
        torch.testing.assert_close(got[1], want_total)
        assert (got[0] != want_bits).float().mean() < 1e-3, path
        if engine == "event":
            same(got, results.setdefault(path.split(",")[0], got), path)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("groups", [1, 3])
def test_image_without_pixels(groups, engine):
    """Padding alone: the bias drives the neurons."""
    bits = torch.zeros(1, 2, 3, 0, 2, dtype=torch.uint8)
    weight, bias = dyadic(6, 3 // groups, 1, 2, seed=0), dyadic(6, seed=1)
    want = ref.integrate_and_fire(bias.view(1, 6, 1, 1).expand(2, 6, 2, 3), 8)
    named = {"padding": 1, "groups": groups, "time_steps": 8, "engine": engine}
    everywhere(want, ops.spiking_conv2d, bits, weight, bias, **named)


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
    spikes = train(time_steps, 2, 4, 5, 5, seed=seed)
    weight, _ = variant.operands(6, 2, 3, 3, seed=seed + 1)
    if variant.weights == torch.int16:
        weight = weight >> 8  # so that sums of all currents, too, are exact
    bias, scale = (dyadic(6, seed=seed + i, dtype=variant.dtype) / 4 for i in (2, 3))  # their sums are exact
    named = {"stride": 2, "padding": 1, "groups": 2, "neuron": neuron, "scale": scale if variant.scaled else None}
    named |= variant.how(weight, 2)
    whole, total, final = ops.spiking_conv2d(ref.pack_spikes(spikes), weight, bias, time_steps=time_steps, **named)
    pieces, totals, state, start = [], [], None, 0
    for steps in cuts:
        # Whole planes are cut without a copy; other pieces are packed anew.
        cut = slice(start, start + steps)
        part = ref.pack_spikes(spikes)[start // 8 : (start + steps) // 8] if multiples else ref.pack_spikes(spikes[cut])
        bits, part_total, state = ops.spiking_conv2d(part, weight, bias, state=state, time_steps=steps, **named)
        pieces.append(ops.unpack_spikes(bits, steps))
        totals.append(part_total)
        start += steps
    same(torch.cat(pieces), ops.unpack_spikes(whole, time_steps))
    same(state, final)
    same(sum(totals), total)


def test_unwanted_outputs():
    """Empty, and not one tensor twice: outputs of an operator must not alias each other."""
    _, total, state = ops.spiking_conv2d(BITS, WEIGHT, time_steps=9, want_sum=False, want_state=False)
    assert total.shape == state.shape == (0,)
    assert total.untyped_storage()._cdata != state.untyped_storage()._cdata


@pytest.mark.parametrize("want_sum", [True, False])
def test_only_the_sum_has_a_gradient(want_sum):
    bits, weight = planes(9, 2, 3, 4, 3, seed=0), dyadic(4, 3, 2, 2, seed=1).requires_grad_()
    state = dyadic(1, 2, 4, 3, 2, seed=2).requires_grad_()
    out = ops.spiking_conv2d(bits, weight, state=state, time_steps=9, want_sum=want_sum)
    assert [x.requires_grad for x in out] == [False, want_sum, False]


def test_added_spikes_end_with_the_train():
    added = planes(16, 3, 8, 4, 4, seed=0, rate=0.9)
    with pytest.raises(RuntimeError, match="spiking_conv2d: added must be zero past time_steps = 9, got 0x"):
        ops.spiking_conv2d(BITS, WEIGHT, time_steps=9, added=added)


BAD_ADDED = [
    ({"added": 1.0}, TypeError, "added must be a Tensor, got float"),
    ({"added": torch.zeros(8, 3, 8, 4, 4)}, ValueError, r"added must be \[9, 3, 8, 4, 4\], got \[8, 3, 8, 4, 4\]"),
    ({"added": BITS[:1]}, ValueError, r"added must be \[2, 3, 8, 4, 4\], got"),
    ({"added": torch.zeros(9, 3, 8, 4, 4).double()}, TypeError, "added must have the dtype of weight"),
    ({"added": torch.zeros(9, 3, 8, 4, 4, device="meta")}, ValueError, "added must be on the device of weight"),
    ({"added": torch.zeros(9, 3, 8, 4, 4, requires_grad=True)}, ValueError, "added must not require a gradient"),
    (
        {"added": torch.zeros(9, 3, 8, 4, 4), "neuron": IF(two_phase=True)},
        ValueError,
        "added must be None for two-phase neurons",
    ),
    ({"added": torch.zeros(9, 3, 8, 4, 4), "amplitude": 1.0}, TypeError, "amplitude must be a Tensor, got float"),
    ({"added": torch.zeros(9, 3, 8, 4, 4), "amplitude": torch.ones(7)}, ValueError, r"amplitude must be \[8\], got"),
    ({"amplitude": torch.ones(8)}, ValueError, "amplitude must be None without added, got a tensor"),
]
BAD_STATE = [
    ({"state": 0.0}, TypeError, "state must be a Tensor, got float"),
    ({"state": torch.zeros(3, 8, 4, 4)}, ValueError, r"state must be \[1, 3, 8, 4, 4\], got \[3, 8, 4, 4\]"),
    ({"state": torch.zeros(1, 3, 8, 6, 5)}, ValueError, r"state must be \[1, 3, 8, 4, 4\], got \[1, 3, 8, 6, 5\]"),
    ({"state": torch.zeros(8)}, ValueError, r"state must be \[1, 3, 8, 4, 4\], got \[8\]"),
    ({"state": torch.zeros(1, 3, 8, 4, 4).double()}, TypeError, "state must have the dtype of weight"),
    ({"state": torch.zeros(1, 3, 8, 4, 4, device="meta")}, ValueError, "state must be on the device of weight"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BAD_CONV2D + BAD_NEURONS + BAD_STATE + BAD_ADDED)
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=f"spiking_conv2d: .*{message}"):
        ops.spiking_conv2d(**{"bits": BITS, "weight": WEIGHT, "time_steps": 9} | wrong)


@every_kind
def test_state_of_another_model(neuron):
    wrong = torch.zeros(neuron.states + 1, 3, 8, 4, 4)
    expected, got = (rf"\[{states}, 3, 8, 4, 4\]" for states in (neuron.states, neuron.states + 1))
    with pytest.raises(ValueError, match=f"spiking_conv2d: state must be {expected}, got {got}"):
        ops.spiking_conv2d(BITS, WEIGHT, state=wrong, time_steps=9, neuron=neuron)
