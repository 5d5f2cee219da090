"""pack_spikes against the reference; its inverse is in test_unpack_spikes.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import RATES, SEEDS, TIME_STEPS, everywhere, planes, same, train
from tandem_cuda import ops
from tandem_cuda import reference as ref

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8)


@given(
    time_steps=st.sampled_from(TIME_STEPS),
    neurons=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    rate=st.sampled_from(RATES),
    seed=SEEDS,
)
def test_matches_reference(time_steps, neurons, dtype, rate, seed):
    spikes = train(time_steps, *neurons, seed=seed, rate=rate)
    want = ref.pack_spikes(spikes)
    everywhere(want, ops.pack_spikes, spikes.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_many_neurons(dtype):
    """Enough of them for two threads."""
    spikes = train(11, 3, 50, 33, 31, seed=0).to(dtype)
    want = ref.pack_spikes(spikes)
    everywhere(want, ops.pack_spikes, spikes)


def test_negative_zero_is_no_spike():
    assert ops.pack_spikes(torch.tensor([[-0.0, 1.0]])).tolist() == [[0, 1]]


@pytest.mark.parametrize("odd", [2.0, 0.5, -1.0, 1e-30, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_zeros_and_ones(odd, dtype):
    for at in (0, 1000, -1):
        spikes = torch.ones(3, 40_000, dtype=dtype)
        spikes[1, at] = odd
        with pytest.raises(RuntimeError, match="pack_spikes: spikes must be 0 or 1, got"):
            ops.pack_spikes(spikes)


def test_only_zeros_and_ones_in_bytes():
    with pytest.raises(RuntimeError, match="pack_spikes: spikes must be 0 or 1, got 2"):
        ops.pack_spikes(torch.full((1, 3), 2, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("spikes", "error", "message"),
    [
        ([[0.0, 1.0]], TypeError, "spikes must be a Tensor, got list"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "spikes must be .*, got torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, "spikes must be .*, got torch.complex64"),
        (torch.ones(()), ValueError, r"spikes must be \[T, N, \.\.\.\].*, got \[\]"),
        (torch.ones(3), ValueError, r"spikes must be \[T, N, \.\.\.\].*, got \[3\]"),
        (torch.ones(0, 3), ValueError, r"spikes must be \[T, N, \.\.\.\].*, got \[0, 3\]"),
    ],
)
def test_bad_input(spikes, error, message):
    with pytest.raises(error, match=f"pack_spikes: {message}"):
        ops.pack_spikes(spikes)


def test_planes_helper():
    """What other tests draw is what this operator makes."""
    same(ops.pack_spikes(train(9, 2, 3, seed=1)), planes(9, 2, 3, seed=1))
