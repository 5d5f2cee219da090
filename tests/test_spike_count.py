"""spike_count against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import FLOATS, RATES, SEEDS, everywhere, planes
from tandem_cuda import ops
from tandem_cuda import reference as ref


@given(
    time_steps=st.integers(1, 300),
    neurons=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    dtype=st.sampled_from(FLOATS),
    rate=st.sampled_from(RATES),
    seed=SEEDS,
)
def test_matches_reference(time_steps, neurons, dtype, rate, seed):
    bits = planes(time_steps, *neurons, seed=seed, rate=rate)
    want = ref.spike_count(bits, dtype)
    everywhere(want, ops.spike_count, bits, dtype)


@pytest.mark.parametrize("neurons", [(1, 1), (3, 257), (2, 40_001)])
def test_every_byte(neurons):
    """All 256 bytes, and enough neurons for two threads."""
    total = neurons[0] * neurons[1]
    bits = (torch.arange(3 * total) * 37 % 256).to(torch.uint8).view(3, *neurons)
    want = torch.tensor([[b.bit_count() for b in plane] for plane in bits.flatten(1).tolist()]).sum(0).view(neurons)
    everywhere(want.float(), ops.spike_count, bits)


def test_counts_beyond_a_byte_and_a_short():
    for planes_ in (31, 32, 40, 8192, 8200):
        bits = torch.full((planes_, 1, 70), 255, dtype=torch.uint8)
        everywhere(torch.full((1, 70), 8.0 * planes_), ops.spike_count, bits)


BITS = torch.zeros(2, 2, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((BITS.bool(),), TypeError, "bits must be uint8, got torch.bool"),
        ((None,), TypeError, "bits must be a Tensor, got NoneType"),
        ((BITS[:0],), ValueError, r"bits must be .* at least one plane, got \[0, 2, 3\]"),
        ((BITS[:, 0, 0],), ValueError, r"bits must be \[P, N, \.\.\.\].*, got \[2\]"),
        ((BITS, torch.int64), TypeError, "dtype must be float32 or float64, got torch.int64"),
        ((BITS, torch.bfloat16), TypeError, "dtype must be float32 or float64, got torch.bfloat16"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=f"spike_count: {message}"):
        ops.spike_count(*arguments)
