"""Memory that there is not ends in an error that says which operator asked for how much."""

import pytest
import torch

from tandem_cuda import ops

SIDE = 2**23
# 2^46 weights, which take 256 TiB once they are written down.
HUGE = torch.zeros(1, 1).expand(SIDE, SIDE)


@pytest.mark.parametrize(("name", "named"), [("spiking_linear", {"time_steps": 8}), ("count_linear", {})])
def test_scratch_memory(name, named):
    bits = torch.zeros(1, 1, SIDE, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=f"^{name}: cannot allocate {SIDE * SIDE} times 4 bytes of scratch memory$"):
        getattr(ops, name)(bits, HUGE, **named)


def test_tensors():
    message = r"^pack_weight: cannot allocate a tensor \[(\d+)\] of Float, \1 times 4 bytes$"
    with pytest.raises(RuntimeError, match=message):
        ops.pack_weight(HUGE)
    bits = torch.zeros(1, 1, 1, 1, 1, dtype=torch.uint8).expand(1, 2**20, 1, 2**14, 2**14)
    for name, call in {
        "count_conv2d": lambda: ops.count_conv2d(bits, torch.ones(1, 1, 1, 1)),
        "spike_count": lambda: ops.spike_count(bits),
        "unpack_spikes": lambda: ops.unpack_spikes(bits, 8),
    }.items():
        with pytest.raises(RuntimeError, match=rf"^{name}: cannot allocate a tensor \[.*\] of .*, \d+ times \d bytes$"):
            call()
