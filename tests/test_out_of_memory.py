"""Memory that there is not ends in an error that says how much was asked for, and for scratch memory by whom."""

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
    with pytest.raises(RuntimeError, match=rf"cannot allocate a tensor \[{SIDE * SIDE}\] of Float"):
        ops.pack_weight(HUGE)
