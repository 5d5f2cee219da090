"""ordered_spikes and step_product: what test_operators.py does not ask of every operator."""

import sys

import pytest
import torch

from cases import CASES, raw_call
from exact import same
from tandem_cuda import IF, ops

X, WEIGHT = torch.ones(2, 3, 4, 4), torch.ones(5, 3, 3, 3, dtype=torch.int8)
RAW = torch.ops.tandem_cuda.ordered_spikes


COMBINED = {name: sys.modules[f"tandem_cuda.ops.{name}"]._on_cuda for name in ("ordered_spikes", "step_product")}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.operator in COMBINED and "RadixIF" not in case.name], ids=str
)
def test_what_cuda_calls_instead(case):
    """The operators that these two are combinations of there; here on the CPU."""
    for dtype in case.dtypes:
        operator, arguments = raw_call(case, **case.arguments(dtype, time_steps=9))
        same(COMBINED[case.operator](*arguments.values()), operator(**arguments))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": X.double()}, TypeError, "x must be float32, got torch.float64"),
        ({"weight": WEIGHT.float()}, TypeError, "weight must be int8 or int16, got torch.float32"),
        ({"weight": WEIGHT[:, :2]}, ValueError, r"weight must be \[O, 3, kH, kW\] for 3 input channels in 1 groups"),
        ({"time_steps": 0}, ValueError, "time_steps must be at least 1, got 0"),
        ({"mode": "series"}, ValueError, "mode must be one of constant, impulse, once, got 'series'"),
        ({"scale": torch.ones(4)}, ValueError, r"scale must be \[5\], got \[4\]"),
        ({"bias": torch.ones(5).double()}, TypeError, "bias must have the dtype of x, torch.float32, got"),
        ({"packed": torch.zeros(3, dtype=torch.int8)}, ValueError, "packed must be what pack_weight returns"),
        ({"neuron": 0.5}, TypeError, "neuron must be"),
        ({"x": X[..., :1], "padding": 0}, ValueError, "the dilated kernel is larger than the padded input"),
    ],
)
def test_errors(changed, error, message):
    with pytest.raises(error, match=f"ordered_spikes: {message}"):
        ops.ordered_spikes(**{"x": X, "weight": WEIGHT, "time_steps": 8, "padding": 1} | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": X.double()}, "input must be float32"),
        ({"weight": WEIGHT.float()}, "weight must be int8 or int16"),
        ({"mode": 2}, r"mode must be 0 \(constant\), 1 \(impulse\) or 3 \(once\), got 2"),
        ({"mode": 4}, "mode must be"),
        ({"time_steps": 0}, "time_steps must be at least 1"),
        ({"scale": torch.ones(4)}, r"scale must be \[5\]"),
        ({"bias": torch.ones(6)}, r"bias must be \[5\]"),
        ({"bias": torch.ones(5).double()}, "bias must have the dtype of input"),
        ({"packed": torch.zeros(3, dtype=torch.int8)}, "packed"),
        ({"neuron": 99}, "neuron must be"),
        ({"parameters": []}, "parameters of IF must be"),
        ({"stride": [0, 1]}, "stride must be"),
        ({"groups": 2}, "groups"),
    ],
)
def test_the_operator_itself_checks_what_guards_memory(changed, message):
    arguments = {
        "input": X,
        "weight": WEIGHT,
        "packed": None,
        "scale": None,
        "bias": None,
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "time_steps": 8,
        "mode": 0,
        "neuron": IF().kind,
        "parameters": IF().parameters,
    }
    assert RAW(**arguments).shape == (1, 2, 5, 4, 4)
    with pytest.raises(RuntimeError, match=message):
        RAW(**arguments | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"time_steps": 9}, "step_product: .*planes"),
        ({"bits": torch.full((1, 2, 3, 4, 4), 255, dtype=torch.uint8), "time_steps": 5}, "step_product: bits"),
        ({"scale": torch.ones(4)}, "step_product: scale must be"),
        ({"scale": None}, "step_product: scale must be"),
        ({"bias": torch.ones(6)}, "step_product: bias must be"),
        ({"packed": torch.zeros(3, dtype=torch.int8)}, "step_product: packed"),
        ({"padding": [0]}, "step_product: padding must be"),
    ],
)
def test_step_product_checks_what_guards_memory(changed, message):
    arguments = {
        "bits": torch.ones(1, 2, 3, 4, 4, dtype=torch.uint8),
        "weight": WEIGHT,
        "packed": None,
        "bias": None,
        "scale": torch.ones(5),
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "time_steps": 8,
    }
    operator = torch.ops.tandem_cuda.step_product
    assert operator(**arguments).shape == (8, 2, 5, 4, 4)
    with pytest.raises(RuntimeError, match=message):
        operator(**arguments | changed)


def test_no_samples():
    assert ops.ordered_spikes(X[:0], WEIGHT, 9, padding=1).shape == (2, 0, 5, 4, 4)


def test_refuses_tangents():
    with pytest.raises(NotImplementedError, match="ordered_spikes: forward-mode gradients"):
        torch.func.jvp(lambda x: ops.ordered_spikes(x, WEIGHT, 8, padding=1).float(), (X,), (X,))
