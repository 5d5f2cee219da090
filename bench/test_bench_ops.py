"""pytest-benchmark cases of every operator against its reference; equality is asserted before the clock starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import S2, SMALL, ConvCase
from tandem_cuda import ops, reference

T = 8
RATE = 0.05


def _dyadic(*shape: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-64, 65, shape, generator=generator) / 128


def _linear() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    spikes = (torch.rand((T, 64, 3136), generator=generator) < RATE).float()
    return ops.pack_spikes(spikes), _dyadic(128, 3136), _dyadic(128)


# name -> (operator's name, arguments, keyword arguments)
CASES: dict[str, Callable[[], tuple[str, tuple[Any, ...], dict[str, Any]]]] = {
    "pack_spikes": lambda: ("pack_spikes", (S2.spikes(RATE),), {}),
    "unpack_spikes": lambda: ("unpack_spikes", (S2.bits(RATE), T), {}),
    "spike_count": lambda: ("spike_count", (S2.bits(RATE),), {}),
    "max_pool_spikes": lambda: ("max_pool_spikes", (S2.bits(RATE), 2), {"time_steps": T}),
    "max_pool_spikes-T64": lambda: (
        "max_pool_spikes",
        (ConvCase("T = 64", 64, 64, 1, 16, time_steps=64).bits(RATE), 3, 2, 1),
        {"time_steps": 64},
    ),
    "tandem_count": lambda: ("tandem_count", (S2.bits(RATE), _dyadic(8, 256, 16, 16), T), {}),
    "integrate_and_fire": lambda: (
        "integrate_and_fire",
        (_dyadic(8, 128, 32, 32).contiguous(memory_format=torch.channels_last), T, _dyadic(128)),
        {"want_sum": False, "want_potential": False},
    ),
    "spiking_linear": lambda: ("spiking_linear", _linear(), {"time_steps": T}),
    "count_linear": lambda: ("count_linear", _linear(), {}),
    "spiking_conv2d-small": lambda: (
        "spiking_conv2d",
        (SMALL.bits(RATE), SMALL.weight(), SMALL.bias(), SMALL.stride, 1),
        {"time_steps": T},
    ),
    "spiking_conv2d-S2": lambda: (
        "spiking_conv2d",
        (S2.bits(RATE), S2.weight(), S2.bias(), S2.stride, 1),
        {"time_steps": T},
    ),
    "count_conv2d-S2": lambda: ("count_conv2d", (S2.bits(RATE), S2.weight(), S2.bias(), S2.stride, 1), {}),
}


@pytest.mark.parametrize("side", ["kernel", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_operator(benchmark: Any, case: str, side: str) -> None:
    name, arguments, keywords = CASES[case]()
    kernel, plain = getattr(ops, name), getattr(reference, name)
    torch.testing.assert_close(kernel(*arguments, **keywords), plain(*arguments, **keywords), rtol=0, atol=0)
    benchmark.group = case
    benchmark(kernel if side == "kernel" else plain, *arguments, **keywords)
