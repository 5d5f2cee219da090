"""The rules of activations: neurons take their place."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..call import Call
from ..values import Analogue, Current
from . import register, rules_for

aten = torch.ops.aten


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


register(aten.relu.default, lambda call: call.fire())
register(aten.relu6.default, lambda call: call.fire(6.0))
register(aten.hardtanh.default, lambda call: _bounded(call, call["min_val"], call["max_val"]))
register(aten.clamp.default, lambda call: _bounded(call, call["min"], call["max"]))
register(aten.clip.default, lambda call: _bounded(call, call["min"], call["max"]))
register(aten.clamp_min.default, lambda call: _bounded(call, call["min"], None))
register(aten.clamp_max.default, lambda call: _bounded(call, None, call["max"]))
register(aten.leaky_relu.default, lambda call: call.fire(slope=float(call["negative_slope"])))
register(aten.hardsigmoid.default, lambda call: call.fire(1.0, of=call.affine(1 / 6, 0.5)))


@rules_for(aten.threshold.default)
def _threshold(call: Call) -> Any:
    if (call["threshold"], call["value"]) != (0, 0):
        raise Analogue("its threshold and value are not 0")
    return call.fire()


@rules_for(aten.prelu.default)
def _prelu(call: Call) -> Any:
    slope = call.parameter(call["weight"])
    if slope is None:
        raise Analogue("its slopes are no parameter of the ANN")
    return call.fire(slope=slope)
