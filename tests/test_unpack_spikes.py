"""unpack_spikes against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import RATES, SEEDS, TIME_STEPS, everywhere, same, train
from tandem_cuda import ops
from tandem_cuda import reference as ref

DTYPES = (torch.float32, torch.float64, torch.bool, torch.uint8)


@given(
    time_steps=st.sampled_from(TIME_STEPS),
    neurons=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    rate=st.sampled_from(RATES),
    seed=SEEDS,
)
def test_matches_reference_and_inverts_pack(time_steps, neurons, dtype, rate, seed):
    spikes = train(time_steps, *neurons, seed=seed, rate=rate).to(dtype)
    bits = ops.pack_spikes(spikes)
    same(ref.unpack_spikes(bits, time_steps, dtype), spikes)
    everywhere(spikes, ops.unpack_spikes, bits, time_steps, dtype)


def test_many_neurons():
    """Enough of them for two threads."""
    spikes = train(11, 3, 50, 33, 31, seed=0).float()
    bits = ref.pack_spikes(spikes)
    everywhere(spikes, ops.unpack_spikes, bits, 11)


BITS = torch.zeros(2, 2, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((BITS.float(), 9), TypeError, "bits must be uint8, got torch.float32"),
        (("bits", 9), TypeError, "bits must be a Tensor, got str"),
        ((BITS[:0], 9), ValueError, r"bits must be .* at least one plane, got \[0, 2, 3\]"),
        ((BITS[:, 0, 0], 9), ValueError, r"bits must be \[P, N, \.\.\.\].*, got \[2\]"),
        ((BITS, 8), ValueError, r"bits must have .* 1 planes for 8 time steps, got \[2, 2, 3\]"),
        ((BITS, 17), ValueError, r"bits must have .* 3 planes for 17 time steps, got \[2, 2, 3\]"),
        ((BITS, 0), ValueError, "time_steps must be at least 1, got 0"),
        ((BITS, -9), ValueError, "time_steps must be at least 1, got -9"),
        ((BITS, 9.0), TypeError, "time_steps must be an int, got float"),
        ((BITS, True), TypeError, "time_steps must be an int, got bool"),
        ((BITS, None), TypeError, "time_steps must be an int, got NoneType"),
        ((BITS, 9, torch.float16), TypeError, "dtype must be .*, got torch.float16"),
        ((BITS, 9, torch.int32), TypeError, "dtype must be .*, got torch.int32"),
        ((BITS, 9, "float32"), TypeError, "dtype must be .*, got float32"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=f"unpack_spikes: {message}"):
        ops.unpack_spikes(*arguments)
