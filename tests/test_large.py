"""Tensors of more than 2^31 elements: no index is 32 bits wide; and what does not grow. Nightly; needs memory."""

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from tandem_cuda import ops
from tandem_cuda.neuron import RadixIF

pytestmark = pytest.mark.nightly

GIB = 1 << 30
WIDE = 2048
ROWS = 2**20 + 3  # ROWS * WIDE is a little more than 2^31
EDGES = (0, 1, 2**20 - 1, 2**20, ROWS - 1)  # rows at both ends and beside element 2^31
SEEN = [5, WIDE - 1]  # neurons of these rows that spike


def available():
    """Bytes of memory that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return 0


@pytest.fixture(autouse=True)
def _two_threads():
    torch.set_num_threads(2)
    yield
    gc.collect()


def needs(gib):
    """Skip where less memory is free."""
    if available() < gib * GIB:
        pytest.skip(f"needs {gib} GiB of memory, {available() / GIB:.1f} are free")


def edges(*columns):
    """Index of the neurons in `columns` of the EDGES."""
    return torch.tensor(EDGES).unsqueeze(1), torch.tensor(columns or SEEN)


def marked(planes=1, value=0b1):
    """Bits [planes, ROWS, WIDE], all zero but `value` in the last plane at the SEEN neurons of the EDGES."""
    bits = torch.zeros(planes, ROWS, WIDE, dtype=torch.uint8)
    bits[-1][edges()] = value
    return bits


def total(x):
    """Sum of all elements, exactly."""
    return sum(part.sum(dtype=torch.int64).item() for part in x.flatten().split(2**28))


SPIKES = len(EDGES) * len(SEEN)


def test_spike_count():
    needs(12)
    count = ops.spike_count(marked(value=0b1011))
    assert count.numel() > 2**31
    assert torch.equal(count[edges()], torch.full((len(EDGES), 2), 3.0))
    assert total(count) == 3 * SPIKES


def test_spike_count_of_many_planes():
    """Fewer neurons than 2^31, more bytes."""
    needs(6)
    bits = torch.zeros(3, 2**30 // WIDE + 1, WIDE, dtype=torch.uint8)
    bits[:, -1, -1] = 255
    count = ops.spike_count(bits)
    assert bits.numel() > 2**31
    assert count[-1, -1] == 24
    assert total(count) == 24


def test_pack_spikes():
    needs(7)
    spikes = marked().bool()
    bits = ops.pack_spikes(spikes)
    assert bits.numel() > 2**31
    assert torch.equal(bits[0][edges()], torch.ones(len(EDGES), 2, dtype=torch.uint8))
    assert total(bits) == SPIKES


def test_pack_spikes_over_time():
    """Each step has fewer neurons than 2^31."""
    needs(5)
    spikes = torch.zeros(3, ROWS // 2, WIDE, dtype=torch.uint8)
    spikes[2, -1, -1] = 1
    bits = ops.pack_spikes(spikes)
    assert spikes.numel() > 2**31
    assert bits[0, -1, -1] == 0b100
    assert total(bits) == 0b100


def test_unpack_spikes():
    needs(7)
    spikes = ops.unpack_spikes(marked(), 1, torch.uint8)
    assert spikes.numel() > 2**31
    assert torch.equal(spikes[0][edges()], torch.ones(len(EDGES), 2, dtype=torch.uint8))
    assert total(spikes) == SPIKES


@pytest.mark.parametrize("bias", [True, False])
def test_integrate_and_fire(bias):
    needs(12)
    current = torch.zeros(ROWS, WIDE)
    current[edges()] = 1.0
    b = torch.zeros(WIDE) if bias else None
    bits, _, _ = ops.integrate_and_fire(current, 3, b, want_sum=False, want_state=False)
    assert bits.numel() > 2**31
    assert torch.equal(bits[0][edges()], torch.full((len(EDGES), 2), 0b111, dtype=torch.uint8))
    assert total(bits) == 0b111 * SPIKES


@pytest.mark.parametrize("bias", [True, False])
def test_radix_spikes(bias):
    needs(12)
    v = torch.zeros(ROWS, WIDE)
    v[edges()] = 1.0
    b = torch.zeros(WIDE) if bias else None
    bits = ops.radix_spikes(v, 3, RadixIF(0.5), bias=b)
    assert bits.numel() > 2**31
    assert torch.equal(bits[0][edges()], torch.full((len(EDGES), 2), 0b111, dtype=torch.uint8))
    assert total(bits) == 0b111 * SPIKES


def test_integrate_and_fire_series():
    """Currents of more than 2^31 elements, each step of fewer."""
    needs(14)
    current = torch.zeros(3, ROWS // 3 + 1, WIDE)
    current[2, -1, -1] = 1.0
    bits, _, state = ops.integrate_and_fire(current, 3, mode="series", want_sum=False)
    assert current.numel() > 2**31
    assert bits[0, -1, -1] == 0b100
    assert total(bits) == 0b100
    assert state[0, -1, -1] == 1


def test_pack_weight():
    needs(8)
    weight = torch.zeros(2**17 + 1, 2**14, dtype=torch.int8)
    weight[-1, -1], weight[0, 0] = 1, 2
    packed = ops.pack_weight(weight)
    assert weight.numel() > 2**31
    assert total(packed) == 3 * (packed.numel() // weight.numel())  # matrix tiles read a second form of the weights
    bits = torch.zeros(1, 2, 2**14, dtype=torch.uint8)
    bits[0, 0, 0] = bits[0, 1, -1] = 1
    scale = torch.ones(len(weight))
    out, _, _ = ops.spiking_linear(bits, weight, packed=packed, scale=scale, time_steps=1, want_sum=False)
    assert total(out) == 2
    assert out[0, 0, 0] == out[0, 1, -1] == 1


def test_int8_fan_in():
    """Sums of more rows than 32 bits can add up are refused or right, not wrong."""
    needs(4)
    features = 2**24 + 1
    bits, weight = torch.ones(1, 1, features, dtype=torch.uint8), torch.full((1, features), -128, dtype=torch.int8)
    try:
        v = ops.count_linear(bits, weight, scale=torch.ones(1))
    except (RuntimeError, ValueError) as error:
        assert "weight" in str(error)  # noqa: PT017
    else:
        assert v.item() == torch.tensor(-128.0 * features).item()


every_engine = pytest.mark.parametrize("engine", ["event", "dense"])


@every_engine
def test_spiking_linear_inputs(engine):
    needs(8)
    weight = torch.zeros(1, WIDE)
    weight[0, SEEN] = torch.tensor([0.25, 0.75])
    bits, total_current, _ = ops.spiking_linear(marked(), weight, time_steps=1, want_state=False, engine=engine)
    assert torch.equal(bits[0, list(EDGES), 0], torch.ones(len(EDGES), dtype=torch.uint8))
    assert total(bits) == len(EDGES)
    assert torch.equal(total_current[list(EDGES), 0], torch.ones(len(EDGES)))


@every_engine
def test_spiking_linear_outputs(engine):
    needs(5)
    inputs = torch.zeros(1, ROWS, 1, dtype=torch.uint8)
    inputs[0, list(EDGES)] = 1
    weight = torch.zeros(WIDE, 1)
    weight[SEEN] = 1.0
    unwanted = {"want_sum": False, "want_state": False}
    bits, _, _ = ops.spiking_linear(inputs, weight, time_steps=1, **unwanted, engine=engine)
    assert bits.numel() > 2**31
    assert torch.equal(bits[0][edges()], torch.ones(len(EDGES), 2, dtype=torch.uint8))
    assert total(bits) == SPIKES


@every_engine
def test_count_linear(engine):
    needs(14)
    weight = torch.zeros(1, WIDE)
    weight[0, SEEN] = torch.tensor([0.25, 0.75])
    v = ops.count_linear(marked(value=0b1011), weight, engine=engine)
    assert torch.equal(v[list(EDGES), 0], torch.full((len(EDGES),), 3.0))
    assert v.sum() == 3 * len(EDGES)


@every_engine
def test_spiking_conv2d_inputs(engine):
    """[1, N, C, H, W] of more than 2^31 elements, channels last in memory as layers leave them."""
    needs(8)
    side = 8
    batch = ROWS // side**2 + 1
    bits = torch.zeros(1, batch, side, side, WIDE, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    assert bits.numel() > 2**31
    bits[0, -1, -1, -1, -1] = 1
    bits[0, 0, 0, 0, 0] = 1
    weight = torch.zeros(1, WIDE, 2, 2)
    weight[0, -1, 1, 1] = 1.0
    weight[0, 0, 0, 0] = 1.0
    unwanted = {"want_sum": False, "want_state": False}
    out, _, _ = ops.spiking_conv2d(bits, weight, stride=2, time_steps=1, **unwanted, engine=engine)
    assert total(out) == 2
    assert out[0, -1, 0, -1, -1] == out[0, 0, 0, 0, 0] == 1


@every_engine
def test_spiking_conv2d_outputs(engine):
    needs(6)
    side = 8
    batch = ROWS // side**2 + 1
    bits = torch.zeros(1, batch, 1, side, side, dtype=torch.uint8)
    bits[0, -1, 0, -1, -1] = 1
    weight = torch.zeros(WIDE, 1, 3, 3)
    weight[-1, 0, 1, 1] = 1.0
    unwanted = {"want_sum": False, "want_state": False}
    out, _, _ = ops.spiking_conv2d(bits, weight, padding=1, time_steps=1, **unwanted, engine=engine)
    assert out.numel() > 2**31
    assert total(out) == out[0, -1, -1, -1, -1] == 1


@every_engine
def test_one_large_image(engine):
    """What the kernels keep of a single image passes 2^32 bytes."""
    needs(12)
    side = 8192
    bits = torch.zeros(1, 1, 1, side, side, dtype=torch.uint8)
    corner = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.uint8)
    ends = (slice(0, 4), slice(-4, None))
    for rows in ends:
        for columns in ends:
            bits[..., rows, columns] = corner
    weight = torch.arange(9.0).view(1, 1, 3, 3)
    _, want, _ = ops.spiking_conv2d(corner.view(1, 1, 1, 4, 4), weight, time_steps=1)
    _, got, _ = ops.spiking_conv2d(bits, weight, time_steps=1, want_state=False, engine=engine)
    ends = (slice(0, 2), slice(-2, None))
    for rows in ends:
        for columns in ends:
            assert torch.equal(got[..., rows, columns], want), (rows, columns)


CLEAR = Path("/proc/self/clear_refs")


def status(key):
    """A value of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def peak_extra(engine, byte, time_steps):
    """Bytes that a product takes beside its arguments and results, at most."""
    torch.set_num_threads(2)
    bits = torch.full((time_steps // 8, 1, 64, 64, 64), byte, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    weight = torch.ones(16, 64, 3, 3)
    named = {"padding": 1, "want_sum": False, "want_state": False, "engine": engine}
    ops.spiking_conv2d(bits[:1], weight, **named, time_steps=8)  # what a first call loads is not counted
    before = status("VmRSS")
    CLEAR.write_text("5")  # resets the peak, VmHWM
    out, _, _ = ops.spiking_conv2d(bits, weight, **named, time_steps=time_steps)
    return status("VmHWM") - before - out.numel()


def in_a_process(monkeypatch, f, *arguments):
    """What f returns in a process whose allocator hands memory back at once: what was freed is not counted."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(f, *arguments).result()


@pytest.mark.skipif(not CLEAR.exists(), reason="no way to measure the peak of a process's memory")
@pytest.mark.parametrize("byte", [0, 255])
@every_engine
def test_memory_does_not_grow_with_time(engine, byte, monkeypatch):
    peaks = [in_a_process(monkeypatch, peak_extra, engine, byte, time_steps) for time_steps in (64, 640)]
    assert peaks[1] < 1.1 * peaks[0] + 2**21
    assert peaks[1] < 2**27


def kept_after_calls():
    """Bytes of writable address space that calls of many shapes leave behind."""
    torch.set_num_threads(2)

    def call(channels, outputs, size, batch):
        bits = torch.zeros(1, batch, size, size, channels, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
        bits[..., 0, 0] = 1
        weight = torch.ones(1).expand(outputs, channels, 3, 3)
        ops.count_conv2d(bits, weight, padding=1, engine="event")
        grad, count = torch.ones(1).expand(batch, outputs, size, size), ops.spike_count(bits)
        torch.ops.tandem_cuda.conv2d_weight_gradient(grad, count, weight, [1, 1], [1, 1], [1, 1], 1)

    call(2, 128, 2, 1)  # what a first call loads is not counted
    before = status("VmData")
    for channels in (3, 16, 64, 200, 700):
        for outputs in (128, 300, 1000):
            for size, batch in ((1, 1), (5, 2), (16, 4), (40, 3)):
                call(channels, outputs, size, batch)
    return status("VmData") - before


@pytest.mark.skipif(not CLEAR.exists(), reason="no way to measure a process's memory")
def test_memory_that_is_kept_from_call_to_call(monkeypatch):
    kept = in_a_process(monkeypatch, kept_after_calls)
    assert kept < 2**27 + 2**22
