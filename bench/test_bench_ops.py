"""pytest-benchmark cases of every operator against its reference; equality is asserted before the clock starts.

The operators are those of tests/cases.py, in the sizes of a layer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cases import CASES, Case, Convolution, convolution, linear
from neurons import EVERY_MODEL
from tandem_cuda import IF

T = 8
RATE = 0.05
NEURONS = (8, 256, 16, 16)
CONVOLUTIONS = {
    "small": Convolution(8, 32, (14, 14), 64, stride=(2, 2), rate=RATE),
    "S2": Convolution(8, 256, (16, 16), 512, stride=(2, 2), rate=RATE),
}


def timed() -> list[Case]:
    """Those with a function for users and a reference, of IF neurons; and products of these sizes."""
    models = tuple(f", {model}" for model in EVERY_MODEL)
    found = [
        case
        for case in CASES
        if not (case.takes_engine or case.kernel or case.operator == "pack_weight" or case.name.endswith(models))
    ]
    for kind, neuron in (("spiking", IF()), ("count", None)):
        for name, sizes in CONVOLUTIONS.items():
            operator = f"{kind}_conv2d"
            found.append(Case(f"{operator}, {name}", operator, convolution(neuron, sizes), sizes.input))
        found.append(Case(f"{kind}_linear", f"{kind}_linear", linear(neuron, 128, RATE), (64, 3136)))
    return found


@pytest.mark.parametrize("side", ["kernel", "reference"])
@pytest.mark.parametrize("case", timed(), ids=str)
def test_operator(benchmark: Any, case: Case, side: str) -> None:
    neurons = case.neurons if case.operator.endswith(("conv2d", "linear")) else NEURONS
    arguments = case.arguments(case.dtypes[0], time_steps=T, neurons=neurons, optional=False)
    torch.testing.assert_close(case.run(**arguments), case.expected(**arguments), rtol=0, atol=0)
    benchmark.group = str(case)
    benchmark(case.run if side == "kernel" else case.expected, **arguments)
