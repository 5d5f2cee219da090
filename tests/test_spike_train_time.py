"""The time steps of spike trains: windows, and bits past the last step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anns import Net
from exact import SEEDS, planes, same, train
from tandem_cuda import SpikeTrain


@pytest.mark.parametrize("time_steps", [1, 4, 7, 9, 15])
def test_bits_past_time_steps(time_steps):
    clean = planes(time_steps, 2, 3, 4, seed=0)
    for bit in range(time_steps % 8, 8):
        bits = clean.clone()
        bits[-1, 1, 2, 3] |= 1 << bit
        message = rf"must be zero: .* below {1 << time_steps % 8}, got {bits[-1, 1, 2, 3]}"
        for made in (
            lambda bits=bits: SpikeTrain(bits, time_steps),
            lambda bits=bits: SpikeTrain(clean, time_steps).replace(bits=bits),
            lambda bits=bits: SpikeTrain(bits, 8 * len(bits)).replace(time_steps=time_steps),
        ):
            with pytest.raises(ValueError, match=f"SpikeTrain: bits past time_steps {message}"):
                made()
    same(SpikeTrain(clean, time_steps).bits, clean)
    assert SpikeTrain(clean, time_steps).bits is clean


def test_bits_past_time_steps_of_no_samples():
    assert len(SpikeTrain(torch.zeros(2, 0, 3, dtype=torch.uint8), 9)) == 0


def test_compiled_code_clears_bits_past_time_steps():
    dirty = torch.full((2, 3, 4), 0xF5, dtype=torch.uint8)
    given = dirty.clone()

    def count(bits):
        return SpikeTrain(bits, 12).count

    torch.compiler.reset()
    for got in (
        torch.compile(count, backend="aot_eager", fullgraph=True)(given),
        torch.export.export(Net(lambda n, bits: count(bits)), (given,)).module()(given),
    ):
        same(got, torch.full((3, 4), 6.0 + 2))
    same(given, dirty)


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_devices_clear_bits_past_time_steps(device):
    given = torch.full((2, 3, 4), 0xF5, dtype=torch.uint8, device=device)
    x = SpikeTrain(given, 12)
    assert x.bits is not given
    if device == "cuda":
        same(x.count.cpu(), torch.full((3, 4), 8.0))
        same(given.cpu(), torch.full((2, 3, 4), 0xF5, dtype=torch.uint8))


@given(time_steps=st.integers(1, 40), cut=st.tuples(st.integers(0, 40), st.integers(0, 40)), seed=SEEDS)
def test_windows_of_a_train(time_steps, cut, seed):
    spikes = train(time_steps, 3, 5, seed=seed).float()
    x = SpikeTrain.from_dense(spikes)
    start, stop = cut
    if not 0 <= start < stop <= time_steps:
        with pytest.raises(ValueError, match=r"SpikeTrain.window: start and stop must be 0 <= start < stop <="):
            x.window(start, stop)
        return
    window = x.window(start, stop)
    want = SpikeTrain.from_dense(spikes[start:stop])
    same(window.bits, want.bits)  # bits past the end are zero
    assert (window.time_steps, window.dtype) == (stop - start, torch.float32)
    same(x.to_dense(), spikes)


def test_bad_windows():
    with pytest.raises(TypeError, match=r"SpikeTrain.window: stop must be an int, got float"):
        SpikeTrain.from_dense(torch.zeros(3, 1, 1)).window(0, 1.0)
