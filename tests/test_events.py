"""SpikeTrain.from_events against an obvious reference."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tandem_cuda import SpikeTrain


def obvious(t, x, y, p, time_steps, size, start, stop, downsample=1):
    """Event by event, in exact numbers, into a dense train [T, 1, C, H, W]."""
    height, width = (-(-n // downsample) for n in size)
    spikes = torch.zeros(time_steps, 1, 1 if p is None else 2, height, width)
    for i in range(len(t)):
        if start <= t[i] < stop:
            step = (Fraction(int(t[i])) - start) * time_steps // (stop - start)
            spikes[int(step), 0, 0 if p is None else int(p[i]), y[i] // downsample, x[i] // downsample] = 1
    return spikes


def events(seed, number, size=(5, 7), last=1000):
    random = np.random.default_rng(seed)
    t, x, y, p = (random.integers(0, end, number) for end in (last, size[1], size[0], 2))
    return t, x, y, p


@given(
    seed=st.integers(0, 2**31),
    number=st.integers(1, 200),
    time_steps=st.integers(1, 20),
    downsample=st.integers(1, 8),
    polarity=st.booleans(),
    window=st.none() | st.tuples(st.integers(-10, 500), st.integers(1, 700)),
)
def test_reference(seed, number, time_steps, downsample, polarity, window):
    t, x, y, p = events(seed, number)
    p = p if polarity else None
    start, stop = (int(t.min()), int(t.max()) + 1) if window is None else (window[0], sum(window))
    got = SpikeTrain.from_events(
        t,
        x,
        y,
        p,
        time_steps=time_steps,
        size=(5, 7),
        downsample=downsample,
        window=None if window is None else (start, stop),
    )
    want = obvious(t, x, y, p, time_steps, (5, 7), start, stop, downsample)
    assert torch.equal(got.to_dense(), want)
    assert torch.equal(got.bits, SpikeTrain.from_dense(want).bits)


@pytest.mark.parametrize("dtype", [np.uint64, np.uint32, np.int64, np.float64])
def test_dtypes_of_times(dtype):
    """Late times in unsigned integers, as cameras write them; bool polarities and small coordinates."""
    t, x, y, p = events(3, 500)
    late = (t + 2**31).astype(dtype)
    window = (2**31, 2**31 + 1000)
    got = SpikeTrain.from_events(
        late, x.astype(np.uint16), y.astype(np.int16), p.astype(bool), time_steps=9, size=(5, 7), window=window
    )
    assert torch.equal(got.to_dense(), obvious(t, x, y, p, 9, (5, 7), 0, 1000))


EXTREMES = {
    "large floats": [0.0, 3e307, 6e307, 9e307],
    "all floats": [-1.7e308, -1e-300, 1e-300, 1.7e308],
    "tiny floats": [0.0, 5e-324, 1e-323, 2e-323],
    "float32": np.array([-3e38, 0, 1e38, 3e38], np.float32),
    "all integers": [-(2**63), -1, 0, 2**63 - 1],
    "large integers": [1, 2**61, 2**62, 2**63 - 1],
    "uint64": np.array([0, 2**62, 2**63 + 5, 2**64 - 1], np.uint64),
    "late": np.array([2**63, 2**63 + 1, 2**63 + 2, 2**63 + 3], np.uint64),
    "nanoseconds": [0, 10**18, 2 * 10**18, 4 * 10**18],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("time_steps", [1, 7, 16, 70])
@pytest.mark.parametrize("name", EXTREMES)
def test_times_of_any_size(name, time_steps):
    """Each event is a neuron of its own; by the window of all of them, and by others, some of them fractions."""
    t = EXTREMES[name]
    floats = np.asarray(t).dtype.kind == "f"
    exact = [Fraction(np.asarray(value).item()) for value in t]
    whole = min(exact), max(exact) + (0 if floats else 1)
    others = [(exact[1], exact[3]), (exact[0] - 1, exact[2]), (-(10**400), 10**400)]
    windows = [None, (0.5, 1.5), *(tuple(int(edge) for edge in window) for window in others)]
    for window in windows:
        start, stop = whole if window is None else map(Fraction, window)
        if start >= stop:
            continue
        got = SpikeTrain.from_events(t, range(4), [0] * 4, time_steps=time_steps, size=(1, 4), window=window)
        want = torch.zeros(time_steps, 4)
        for i, value in enumerate(exact):
            step = (value - start) * time_steps // (stop - start)
            if window is None and floats:
                step = min(step, time_steps - 1)
            if 0 <= step < time_steps:
                want[int(step), i] = 1
        assert torch.equal(got.to_dense()[:, 0, 0, 0], want), window


def test_floating_point_times():
    got = SpikeTrain.from_events([0.0, 0.25, 0.5, 1.0], [0, 1, 2, 3], [0] * 4, time_steps=4, size=(1, 4))
    assert got.to_dense()[:, 0, 0, 0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    alone = SpikeTrain.from_events([3.5], [0], [0], time_steps=4, size=1)
    assert alone.to_dense().flatten().tolist() == [1, 0, 0, 0]
    halves = SpikeTrain.from_events([1, 2], [0, 0], [0, 0], time_steps=2, size=1, window=(0.5, 2.5))
    assert halves.to_dense().flatten().tolist() == [1, 1]


def test_tensors_and_dtype():
    t, x, y, p = (torch.from_numpy(a) for a in events(0, 50))
    got = SpikeTrain.from_events(t, x, y, p, time_steps=8, size=(5, 7), dtype=torch.float64)
    assert got.dtype == got.count.dtype == torch.float64
    assert got.shape == (1, 2, 5, 7)
    assert got.bits.is_contiguous(memory_format=torch.channels_last) or got.bits.stride()[2] == 1


def test_no_events():
    train = SpikeTrain.from_events([], [], np.zeros(0, int), time_steps=9, size=4)
    assert train.shape == (1, 1, 4, 4)
    assert not train.bits.any()


GOOD = {"t": [0, 1], "x": [0, 6], "y": [0, 4], "p": [0, 1], "time_steps": 8, "size": (5, 7)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"t": [1j, 2j]}, TypeError, "t must be one-dimensional and numeric, got .* of complex128"),
        ({"x": [1j, 2j]}, TypeError, "x must be one-dimensional and numeric, got .* of complex128"),
        ({"t": [0, float("-inf")]}, ValueError, "t must be finite, got -inf"),
        ({"t": np.array([0, "1e4000"], np.longdouble)}, ValueError, r"t must be finite, got (1e\+4000|inf)"),
        ({"x": np.array([0, 2**64 - 1], np.uint64)}, ValueError, r"x must be in \[0, 7\), got 18446744073709551615"),
        ({"p": np.array([0, 2**63], np.uint64)}, ValueError, r"p must be in \[0, 2\), got 9223372036854775808"),
        ({"size": 2**62}, MemoryError, "[0-9]+ bytes for the bit planes cannot be allocated"),
        ({"time_steps": 2**62}, MemoryError, "[0-9]+ bytes for the bit planes cannot be allocated"),
        ({"window": (0, float("inf"))}, ValueError, "window must be"),
        ({"x": [0, 7]}, ValueError, r"x must be in \[0, 7\), got 7 \(1 of 2 events\)"),
        ({"x": np.array([0, 2**16 - 1], np.uint16)}, ValueError, r"x must be in \[0, 7\), got 65535"),
        ({"y": [-1, 0]}, ValueError, r"y must be in \[0, 5\), got -1"),
        ({"p": [1, -1]}, ValueError, r"p must be in \[0, 2\), got -1"),
        ({"p": [0.0, 1.0]}, TypeError, "p must contain integers, got float64"),
        ({"x": [1]}, ValueError, "x must have as many events as t, 2, got 1"),
        ({"t": [[0, 1]]}, TypeError, r"t must be one-dimensional and numeric, got \[1, 2\] of int64"),
        ({"t": ["a", "b"]}, TypeError, "t must be one-dimensional and numeric"),
        ({"t": [True, False]}, TypeError, "t must contain integers or floating point numbers, got bool"),
        ({"t": [0, float("nan")]}, ValueError, "t must be finite, got nan"),
        ({"time_steps": 0}, ValueError, "time_steps must be at least 1, got 0"),
        ({"size": 0}, ValueError, "size must be at least 1 x 1, got 0 x 0"),
        ({"size": 3.5}, TypeError, "size must be an int or a pair of ints"),
        ({"downsample": 0}, ValueError, "downsample must be at least 1, got 0"),
        ({"downsample": 1.5}, TypeError, "downsample must be an int, got float"),
        ({"window": (5, 5)}, ValueError, r"window must be \(start, stop\), finite and with start < stop, got \(5, 5\)"),
        ({"window": 5}, TypeError, "window must be a pair of times, got 5"),
        ({"window": (0, "1")}, TypeError, "window must be a number, got str"),
        ({"dtype": torch.float16}, TypeError, "SpikeTrain: dtype must be float32 or float64"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message if "SpikeTrain" in message else f"SpikeTrain.from_events: {message}"):
        SpikeTrain.from_events(**{**GOOD, **change})
