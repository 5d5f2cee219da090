"""The rules of activations: neurons take their place."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..call import Call
from ..values import Analogue, Current
from . import rules_for

aten = torch.ops.aten


@rules_for(aten.relu.default, aten.relu6.default)
def _relu(call: Call) -> Any:
    return call.fire(6.0 if call.node.target is aten.relu6.default else None)


def _bounded(call: Call, low: Any, high: Any) -> Any:
    """Write neurons that saturate at a bound."""
    if high is None and low == 0:
        return call.fire()
    x = call.value
    if low is None and not (isinstance(x, Current) or x.signed):
        low = 0  # what cannot be negative is clamped at 0, too
    if not isinstance(high, (int, float)) or not 0 < high < math.inf or low not in (0, -high):
        raise Analogue("its bounds are neither 0 and b nor -b and b")
    return call.fire(float(high), both=low != 0)


@rules_for(aten.hardtanh.default)
def _hardtanh(call: Call) -> Any:
    return _bounded(call, call["min_val"], call["max_val"])


@rules_for(aten.clamp.default, aten.clip.default)
def _clamp(call: Call) -> Any:
    return _bounded(call, call["min"], call["max"])


@rules_for(aten.clamp_min.default)
def _clamp_min(call: Call) -> Any:
    return _bounded(call, call["min"], None)


@rules_for(aten.clamp_max.default)
def _clamp_max(call: Call) -> Any:
    return _bounded(call, None, call["max"])


@rules_for(aten.threshold.default)
def _threshold(call: Call) -> Any:
    if (call["threshold"], call["value"]) != (0, 0):
        raise Analogue("its threshold and value are not 0")
    return call.fire()


@rules_for(aten.leaky_relu.default)
def _leaky_relu(call: Call) -> Any:
    return call.fire(slope=float(call["negative_slope"]))


@rules_for(aten.prelu.default)
def _prelu(call: Call) -> Any:
    slope = call.parameter(call["weight"])
    if slope is None:
        raise Analogue("its slopes are no parameter of the ANN")
    return call.fire(slope=slope)


@rules_for(aten.hardsigmoid.default)
def _hard_sigmoid(call: Call) -> Any:
    return call.fire(1.0, of=call.affine(1 / 6, 0.5))
