"""max_pool_spikes against the reference, and the counts of its trains against torch's max pooling."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from exact import RATES, SEEDS, every_path, everywhere, examples, generator, same, train
from tandem_cuda import ops
from tandem_cuda import reference as ref

# Around the borders of a plane, and of the 15 planes after which counts are made anew.
TIME_STEPS = (1, 7, 8, 9, 16, 17, 120, 121, 300)
CHANNELS = (1, 2, 3, 8, 15, 16, 17, 31, 33, 63, 64, 65, 70, 130)
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def poolings(draw):
    """Height and width, and the arguments of max pooling that fit."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride, dilation = draw(PAIRS), draw(PAIRS)
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 4))
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    return size, (kernel, stride, padding, dilation, draw(st.booleans()))


def uneven(time_steps, *neurons, seed):
    """Bits of neurons each of which has a rate of its own, so that they overtake each other."""
    rates = torch.rand(neurons, generator=generator(seed))
    return ref.pack_spikes(torch.rand(time_steps, *neurons, generator=generator(seed + 1)) < rates)


@examples(60)
@given(
    pooling=poolings(),
    time_steps=st.sampled_from(TIME_STEPS),
    batch=st.integers(0, 3),
    channels=st.sampled_from(CHANNELS),
    largest=st.sampled_from((None, 1, 100, 1000, 2**31 - 301)),
    want_count=st.booleans(),
    seed=SEEDS,
)
def test_matches_reference(pooling, time_steps, batch, channels, largest, want_count, seed):
    size, arguments = pooling
    bits = uneven(time_steps, batch, channels, *size, seed=seed)
    count = None
    if largest is not None:
        count = torch.randint(0, largest + 1, bits.shape[1:], generator=generator(seed + 2), dtype=torch.int32)
    named = {"time_steps": time_steps, "count": count, "want_count": want_count}
    want = ref.max_pool_spikes(bits, *arguments, **named)
    everywhere(want, ops.max_pool_spikes, bits, *arguments, **named)


@pytest.mark.parametrize("time_steps", [1, 8, 9, 17, 300])
@pytest.mark.parametrize(
    "arguments", [(2,), (3, 2), (3, 2, 1), ((2, 3), (1, 2), (1, 0), (3, 1)), (2, 3, 1, 1, True), (7, 1, 3)]
)
def test_counts_are_those_of_max_pooling(time_steps, arguments):
    """Against torch itself, after every number of steps."""
    for rate in RATES:
        spikes = train(time_steps, 2, 5, 9, 7, seed=time_steps, rate=rate).float()
        want = torch.stack([F.max_pool2d(c, *arguments) for c in spikes.cumsum(0)])
        for path, (bits, _) in every_path(
            ops.max_pool_spikes, ops.pack_spikes(spikes), *arguments, time_steps=time_steps
        ):
            same(ops.unpack_spikes(bits, time_steps).cumsum(0), want, path)


def test_one_step_is_an_or():
    spikes = train(1, 2, 40, 6, 6, seed=0)
    bits, _ = ops.max_pool_spikes(ops.pack_spikes(spikes), 2, time_steps=1)
    same(bits, F.max_pool2d(spikes[0].float(), 2).byte().unsqueeze(0))


def test_who_catches_up_is_not_heard_until_it_leads():
    """Neurons that lie further and further behind, for many more steps than a byte counts, and then come back."""
    spikes = torch.zeros(1500, 1, 70, 1, 2, dtype=torch.uint8)
    for channel in range(70):
        lead = 10 * channel + 1
        spikes[:lead, 0, channel, 0, 0] = 1
        spikes[lead : 2 * lead + 5, 0, channel, 0, 1] = 1
    want = torch.zeros(1500, 1, 70, 1, 1, dtype=torch.uint8)
    for channel in range(70):
        lead = 10 * channel + 1
        want[:lead, 0, channel] = 1
        want[2 * lead : 2 * lead + 5, 0, channel] = 1
    everywhere((ref.pack_spikes(want), torch.empty(0, dtype=torch.int32)),
        ops.max_pool_spikes, ref.pack_spikes(spikes), (1, 2), time_steps=1500)  # fmt: skip


@given(cuts=st.lists(st.integers(1, 40), min_size=2, max_size=6), channels=st.sampled_from((3, 64, 70)), seed=SEEDS)
@examples(40)
def test_streaming(cuts, channels, seed):
    """In pieces, each with the counts that the last one returned, a train is pooled as it is in one."""
    time_steps = sum(cuts)
    spikes = ref.unpack_spikes(uneven(time_steps, 2, channels, 5, 4, seed=seed), time_steps, torch.uint8)
    whole, final = ops.max_pool_spikes(ops.pack_spikes(spikes), 3, 2, 1, time_steps=time_steps, want_count=True)
    pieces, count = [], None
    for chunk in spikes.split(cuts):
        steps = len(chunk)
        bits, count = ops.max_pool_spikes(
            ops.pack_spikes(chunk), 3, 2, 1, time_steps=steps, count=count, want_count=True
        )
        pieces.append(ops.unpack_spikes(bits, steps, torch.uint8))
    same(torch.cat(pieces), ops.unpack_spikes(whole, time_steps, torch.uint8))
    same(count, final)


@pytest.mark.parametrize("channels", [24, 128])
@pytest.mark.parametrize("time_steps", [8, 20])
def test_many_neurons(time_steps, channels):
    """Enough of them for two threads, each of which writes next to the other."""
    bits = uneven(time_steps, 3, channels, 33, 31, seed=0)
    for arguments in ((2,), (3, 2, 1)):
        want = ref.max_pool_spikes(bits, *arguments, time_steps=time_steps, want_count=True)
        everywhere(want, ops.max_pool_spikes, bits, *arguments, time_steps=time_steps, want_count=True)


def test_a_window_in_the_padding_is_silent():
    bits = torch.full((2, 1, 3, 2, 1), 255, dtype=torch.uint8)
    arguments = ((2, 1), 1, (1, 0), (3, 1))
    assert F.max_pool2d(bits[0].float(), *arguments).eq(-torch.inf).all()
    count = torch.full(bits.shape[1:], 7, dtype=torch.int32)
    for start in (None, count):
        for path, (out, _) in every_path(ops.max_pool_spikes, bits, *arguments, time_steps=16, count=start):
            same(out, torch.zeros(2, 1, 3, 1, 1, dtype=torch.uint8), path)
        same(ref.max_pool_spikes(bits, *arguments, time_steps=16, count=start)[0], out)


BITS = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8)
COUNT = torch.zeros(2, 3, 4, 4, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "named", "error", "message"),
    [
        ((BITS.bool(), 2), {}, TypeError, "bits must be uint8, got torch.bool"),
        ((BITS[0], 2), {"time_steps": 9}, ValueError, r"bits must be \[P, N, C, H, W\].*, got \[2, 3, 4, 4\]"),
        ((BITS[:, :, :0], 2), {}, ValueError, r"bits must be \[P, N, C, H, W\].*, got \[1, 2, 0, 4, 4\]"),
        ((BITS, 2), {"time_steps": 9}, ValueError, r"bits must have ceil\(time_steps / 8\) = 2 planes"),
        ((BITS, 2), {"time_steps": 0}, ValueError, "time_steps must be at least 1, got 0"),
        ((BITS.expand(2**28, -1, -1, -1, -1), 2), {"time_steps": 2**31}, ValueError, "time_steps must be below 2"),
        ((BITS, 0), {}, ValueError, "kernel_size must be at least 1, got 0"),
        ((BITS, 2.0), {}, TypeError, "kernel_size must be an int or a pair of ints, got 2.0"),
        ((BITS, 2, (1, 0)), {}, ValueError, r"stride must be at least 1, got \(1, 0\)"),
        ((BITS, 2, 1, -1), {}, ValueError, "padding must be at least 0, got -1"),
        ((BITS, 3, 1, 2), {}, ValueError, "padding must be at most half of the kernel size 3, got 2"),
        ((BITS, 2, 1, 0, (1, 2, 3)), {}, TypeError, r"dilation must be an int or a pair of ints, got \(1, 2, 3\)"),
        ((BITS, 2, 1, 0, 0), {}, ValueError, "dilation must be at least 1, got 0"),
        ((BITS, 2, 1, 0, 1, 1), {}, TypeError, "ceil_mode must be a bool, got int"),
        ((BITS, 5), {}, ValueError, "the window of 5 is larger than the padded input of 4"),
        ((BITS, 2), {"count": 1}, TypeError, "count must be a Tensor, got int"),
        ((BITS, 2), {"count": COUNT.float()}, TypeError, "count must be int32, got torch.float32"),
        ((BITS, 2), {"count": COUNT[:1]}, ValueError, r"count must be \[2, 3, 4, 4\], got \[1, 3, 4, 4\]"),
        ((BITS, 2), {"radix": True, "want_count": True}, ValueError, "count and want_count must be left out"),
        ((BITS, 2), {"radix": True, "count": COUNT}, ValueError, "count and want_count must be left out"),
        ((BITS.tile(2, 1, 1, 1, 1), 2), {"radix": True, "time_steps": 16}, ValueError, "radix must be from 0 to 8"),
        ((BITS, 2), {"count": COUNT.to("meta")}, ValueError, "count must be on the device of bits"),
    ],
)
def test_bad_input(arguments, named, error, message):
    with pytest.raises(error, match=f"max_pool_spikes: {message}"):
        ops.max_pool_spikes(*arguments, **{"time_steps": 8} | named)
