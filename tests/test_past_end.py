"""Bits past T in the last plane are refused by every operator that knows T."""

import pytest
import torch

from exact import THREADS, dyadic, planes
from tandem_cuda import ops

# T whose last plane has bits past it, and one whose last plane has none.
TIME_STEPS = (1, 4, 7, 9, 15)


def spiking_linear(bits, time_steps):
    return ops.spiking_linear(bits, dyadic(4, bits.shape[-1], seed=1), time_steps=time_steps)


def spiking_conv2d(bits, time_steps):
    return ops.spiking_conv2d(bits, dyadic(4, bits.shape[2], 1, 1, seed=1), time_steps=time_steps)


def depthwise(bits, time_steps):
    channels = bits.shape[2]
    return ops.spiking_conv2d(bits, dyadic(channels, 1, 1, 1, seed=1), groups=channels, time_steps=time_steps)


def tandem_count(bits, time_steps):
    return ops.tandem_count(bits, torch.zeros(bits.shape[1:]), time_steps)


def tandem_norm_count(bits, time_steps):
    channels = torch.ones(bits.shape[2])
    return ops.tandem_norm_count(bits, torch.zeros(bits.shape[1:]), *[channels] * 4, time_steps)


OPERATORS = {
    "unpack_spikes": ops.unpack_spikes,
    "tandem_count": tandem_count,
    "tandem_norm_count": tandem_norm_count,
    "spiking_linear": spiking_linear,
    "spiking_conv2d": spiking_conv2d,
    "depthwise": depthwise,
}
every_operator = pytest.mark.parametrize("name", OPERATORS)


@every_operator
@pytest.mark.parametrize("time_steps", TIME_STEPS)
def test_refused(name, time_steps):
    """Every bit past T, wherever it is, in any order of memory."""
    for threads in THREADS:
        torch.set_num_threads(threads)
        for place in ((0, 0, 0, 0), (1, 4, 2, 3)):
            for bit in range(time_steps % 8, 8):
                bits = planes(time_steps, 2, 5, 3, 4, seed=0, rate=0)
                bits[-1][place] = 1 << bit | 1
                op = "spiking_conv2d" if name == "depthwise" else name
                got = f"got 0x{1 << bit | 1:02x} in the last plane"
                for view in (bits, bits.movedim(2, -1).contiguous().movedim(-1, 2), bits[..., :4]):
                    message = f"^{op}: bits must be zero past time_steps = {time_steps}, {got}$"
                    with pytest.raises(RuntimeError, match=message):
                        OPERATORS[name](view, time_steps)
    torch.set_num_threads(1)


@every_operator
@pytest.mark.parametrize("time_steps", [*TIME_STEPS, 8, 16])
def test_full_trains_are_taken(name, time_steps):
    OPERATORS[name](planes(time_steps, 2, 5, 3, 4, seed=0, rate=1), time_steps)


@every_operator
def test_large(name):
    """More bytes than one thread looks at."""
    bits = planes(4, 9, 32, 33, 32, seed=0)
    for threads in THREADS:
        torch.set_num_threads(threads)
        OPERATORS[name](bits, 4)
        bits.view(-1)[-1] |= 0x80
        with pytest.raises(RuntimeError, match="bits must be zero past time_steps = 4"):
            OPERATORS[name](bits, 4)
        bits.view(-1)[-1] &= 0x0F
    torch.set_num_threads(1)
