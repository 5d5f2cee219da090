"""Bits past T in the last plane are refused by every operator that knows T."""

import math

import pytest
import torch

from cases import CASES
from exact import RADIX, THREADS
from tensors import planes

# T whose last plane has bits past it, and one whose last plane has none.
TIME_STEPS = (1, 4, 7, 9, 15)


def knows(case):
    """Of the products, each kernel once. Not max_pool_spikes, which takes whatever a train holds.

    Nor count products, whose time steps are of the neurons that they drive: test_values_beyond_the_largest.
    """
    one_of_many = case.takes_engine and not case.name.endswith(("_linear", "3 x 3", "depthwise"))
    return {"bits", "time_steps"} <= set(case.arguments(case.dtypes[0])) and not (
        one_of_many or case.operator.startswith(("max_pool_spikes", "count_"))
    )


every_case = pytest.mark.parametrize("case", [case for case in CASES if knows(case)], ids=str)


def silent(case, time_steps, neurons=None):
    """Its arguments, of which no neuron of the layer below spikes."""
    arguments = case.arguments(case.dtypes[0], time_steps=time_steps, neurons=neurons, optional=False)
    return arguments | {"bits": torch.zeros_like(arguments["bits"])}


def refused(case, arguments, got=""):
    message = f"^{case.operator}: bits must be zero past time_steps = {arguments['time_steps']}, got 0x{got}"
    with pytest.raises(RuntimeError, match=message):
        case.run(**arguments)


@every_case
@pytest.mark.parametrize("time_steps", TIME_STEPS)
def test_refused(case, time_steps):
    """Every bit past T, wherever it is, in any order of memory."""
    for threads in THREADS:
        torch.set_num_threads(threads)
        for neuron in (0, -1):
            for bit in range(case.arguments(case.dtypes[0], time_steps=time_steps)["time_steps"] % 8 or 8, 8):
                arguments = silent(case, time_steps)
                bits = arguments["bits"].contiguous()
                bits[-1].view(-1)[neuron] = 1 << bit | 1
                wider = torch.cat([bits, torch.full_like(bits, 255)], -1)
                for view in (bits, bits.movedim(2, -1).contiguous().movedim(-1, 2), wider[..., : bits.shape[-1]]):
                    refused(case, arguments | {"bits": view}, f"{1 << bit | 1:02x} in the last plane$")


@pytest.mark.parametrize(
    "name",
    [
        product
        for kind in ("values", "radix neurons")
        for product in (f"count_conv2d, {kind}, 3 x 3", f"count_conv2d, {kind}, depthwise", f"count_linear, {kind}")
    ],
)
@pytest.mark.parametrize("radix", RADIX[:-1])
def test_values_beyond_the_largest(name, radix):
    """Of radix spikes, whose one plane is the last."""
    case = next(case for case in CASES if case.name == name)
    arguments = case.arguments(case.dtypes[0], optional=False) | {"radix": radix}
    for bit in range(radix, 8):
        for neuron in (0, -1):
            bits = torch.zeros_like(arguments["bits"])
            bits.view(-1)[neuron] = 1 << bit | 1
            message = (
                f"^{case.operator}: bits must be zero past time_steps = {radix}, got 0x{1 << bit | 1:02x} in the last"
            )
            with pytest.raises(RuntimeError, match=message):
                case.run(**arguments | {"bits": bits})


@every_case
@pytest.mark.parametrize("time_steps", [*TIME_STEPS, 8, 16])
def test_full_trains_are_taken(case, time_steps):
    arguments = silent(case, time_steps)
    bits = planes(arguments["time_steps"], *arguments["bits"].shape[1:], seed=0, rate=1)
    case.run(**arguments | {"bits": bits})


@every_case
def test_large(case):
    """More bytes than one thread looks at."""
    rest = case.neurons[1:]
    arguments = silent(case, 4, (300_000 // math.prod(rest), *rest))
    for threads in THREADS:
        torch.set_num_threads(threads)
        case.run(**arguments)
        last = arguments["bits"][-1].select(0, -1)
        last[(-1,) * last.dim()] |= 0x80
        refused(case, arguments)
        last[(-1,) * last.dim()] &= 0x0F
