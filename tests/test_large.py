"""Tensors of more than 2^31 elements: no index is 32 bits wide. Slow, and in need of memory."""

import gc
from pathlib import Path

import pytest
import torch

from tandem_cuda import ops

pytestmark = pytest.mark.slow

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
    bits, _, _ = ops.integrate_and_fire(current, 3, b, want_sum=False, want_potential=False)
    assert bits.numel() > 2**31
    assert torch.equal(bits[0][edges()], torch.full((len(EDGES), 2), 0b111, dtype=torch.uint8))
    assert total(bits) == 0b111 * SPIKES


def test_integrate_and_fire_series():
    """Currents of more than 2^31 elements, each step of fewer."""
    needs(12)
    current = torch.zeros(3, ROWS // 2, WIDE)
    current[2, -1, -1] = 1.0
    bits, _, potential = ops.integrate_and_fire(current, 3, mode="series", want_sum=False)
    assert current.numel() > 2**31
    assert bits[0, -1, -1] == 0b100
    assert total(bits) == 0b100
    assert potential[-1, -1] == 1


def test_spiking_linear_inputs():
    needs(8)
    weight = torch.zeros(1, WIDE)
    weight[0, SEEN] = torch.tensor([0.25, 0.75])
    bits, total_current, _ = ops.spiking_linear(marked(), weight, time_steps=1, want_potential=False)
    assert torch.equal(bits[0, list(EDGES), 0], torch.ones(len(EDGES), dtype=torch.uint8))
    assert total(bits) == len(EDGES)
    assert torch.equal(total_current[list(EDGES), 0], torch.ones(len(EDGES)))


def test_spiking_linear_outputs():
    needs(5)
    inputs = torch.zeros(1, ROWS, 1, dtype=torch.uint8)
    inputs[0, list(EDGES)] = 1
    weight = torch.zeros(WIDE, 1)
    weight[SEEN] = 1.0
    bits, _, _ = ops.spiking_linear(inputs, weight, time_steps=1, want_sum=False, want_potential=False)
    assert bits.numel() > 2**31
    assert torch.equal(bits[0][edges()], torch.ones(len(EDGES), 2, dtype=torch.uint8))
    assert total(bits) == SPIKES


def test_count_linear():
    needs(12)
    weight = torch.zeros(1, WIDE)
    weight[0, SEEN] = torch.tensor([0.25, 0.75])
    v = ops.count_linear(marked(value=0b1011), weight)
    assert torch.equal(v[list(EDGES), 0], torch.full((len(EDGES),), 3.0))
    assert v.sum() == 3 * len(EDGES)


def test_spiking_conv2d_inputs():
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
    out, _, _ = ops.spiking_conv2d(bits, weight, stride=2, time_steps=1, want_sum=False, want_potential=False)
    assert total(out) == 2
    assert out[0, -1, 0, -1, -1] == out[0, 0, 0, 0, 0] == 1


def test_spiking_conv2d_outputs():
    needs(6)
    side = 8
    batch = ROWS // side**2 + 1
    bits = torch.zeros(1, batch, 1, side, side, dtype=torch.uint8)
    bits[0, -1, 0, -1, -1] = 1
    weight = torch.zeros(WIDE, 1, 3, 3)
    weight[-1, 0, 1, 1] = 1.0
    out, _, _ = ops.spiking_conv2d(bits, weight, padding=1, time_steps=1, want_sum=False, want_potential=False)
    assert out.numel() > 2**31
    assert total(out) == out[0, -1, -1, -1, -1] == 1


def test_one_large_image():
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
    _, got, _ = ops.spiking_conv2d(bits, weight, time_steps=1, want_potential=False)
    ends = (slice(0, 2), slice(-2, None))
    for rows in ends:
        for columns in ends:
            assert torch.equal(got[..., rows, columns], want), (rows, columns)
