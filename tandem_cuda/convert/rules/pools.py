"""The rules of poolings."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn

from ...nn import SpikingGlobalMaxPool2d, SpikingMaxPool2d, SpikingMaxPool3d
from ..call import Call
from ..values import Analogue
from . import register, rules_for

aten = torch.ops.aten


def _tuple(x: Any, n: int) -> tuple[int, ...]:
    x = [x] if isinstance(x, int) else list(x)
    return tuple(x * n if len(x) == 1 else x)


def _windows(call: Call, n: int) -> dict[str, Any]:
    """Return the windows of a pooling of ``n`` dimensions."""
    kernel = _tuple(call.ints("kernel_size"), n)
    stride = call.ints("stride")
    return {
        "kernel_size": kernel,
        "stride": _tuple(stride, n) if stride else kernel,
        "padding": _tuple(call.ints("padding"), n),
        "ceil_mode": call["ceil_mode"],
    }


def _maximum(n: int, kind: Any) -> Any:
    def rule(call: Call) -> Any:
        windows = _windows(call, n)
        ceil = windows.pop("ceil_mode")
        return call.apply(
            kind(*windows.values(), _tuple(call.ints("dilation"), n), False, ceil), commutes=True, pairs=True
        )

    return rule


def _average(n: int, kind: Any) -> Any:
    def rule(call: Call) -> Any:
        more = {"count_include_pad": call["count_include_pad"], "divisor_override": call["divisor_override"]}
        return call.average(kind(**_windows(call, n), **more))

    return rule


register(aten.max_pool2d.default, _maximum(2, SpikingMaxPool2d))
register(aten.max_pool3d.default, _maximum(3, SpikingMaxPool3d))
register(aten.avg_pool2d.default, _average(2, nn.AvgPool2d))
register(aten.avg_pool3d.default, _average(3, nn.AvgPool3d))


def _row(call: Call, name: str, default: Any, one: int = 1) -> Any:
    """Return an argument of a pooling of lines for images of height 1, whose rows have ``one``."""
    return (one, *_tuple(call.ints(name) or default, 1))


@rules_for(aten.max_pool1d.default)
def _max_pool1d(call: Call) -> Any:
    kernel = _row(call, "kernel_size", None)
    stride, padding, dilation = _row(call, "stride", kernel[1]), _row(call, "padding", 0, 0), _row(call, "dilation", 1)
    return call.of_line(SpikingMaxPool2d(kernel, stride, padding, dilation, False, call["ceil_mode"]))


@rules_for(aten.avg_pool1d.default)
def _avg_pool1d(call: Call) -> Any:
    kernel = _row(call, "kernel_size", None)
    stride, padding = _row(call, "stride", kernel[1]), _row(call, "padding", 0, 0)
    return call.average(nn.AvgPool2d(kernel, stride, padding, call["ceil_mode"], call["count_include_pad"]))


def _adaptive(n: int, kind: Any) -> Any:
    return lambda call: call.average(kind((*[1] * (2 - n), *_tuple(call.ints("output_size"), n))))


register(aten.adaptive_avg_pool1d.default, _adaptive(1, nn.AdaptiveAvgPool2d))
register(aten.adaptive_avg_pool2d.default, _adaptive(2, nn.AdaptiveAvgPool2d))
register(aten.adaptive_avg_pool3d.default, _adaptive(3, nn.AdaptiveAvgPool3d))


def _pixels(call: Call) -> list[int]:
    """Return the dimensions of pixels over which a call reduces a line, image or volume."""
    x = call.ints("dim")
    dims = sorted(d % (1 + len(call.shape)) for d in ([x] if isinstance(x, int) else x or ()))
    value = call.value
    features = getattr(value, "features", False)
    if features or dims not in {2: [[2]], 3: [[2], [3], [2, 3]], 4: [[2, 3, 4]]}.get(len(call.shape), []):
        raise Analogue("it reduces other dimensions than the pixels")
    return dims


@rules_for(aten.mean.dim)
def _mean(call: Call) -> Any:
    dims = _pixels(call)
    if call["dtype"] is not None:
        raise Analogue("it has a dtype of its own")
    if len(call.shape) == 4:
        return call.average(nn.AdaptiveAvgPool3d(1))
    size: Any = {2: (1, 1), 3: {(2, 3): (1, 1), (2,): (1, None), (3,): (None, 1)}.get(tuple(dims))}[len(call.shape)]
    return call.average(nn.AdaptiveAvgPool2d(size))


@rules_for(aten.amax.default)
def _amax(call: Call) -> Any:
    dims = _pixels(call)
    if len(call.shape) == 4:
        raise Analogue("it reduces a volume")
    if len(call.shape) == 2:
        return call.of_line(SpikingGlobalMaxPool2d())
    return call.apply(SpikingGlobalMaxPool2d(dims), commutes=True, pairs=True)


@rules_for(aten.max.dim)
def _max(call: Call) -> Any:
    if any(user.args[1] != 0 for user in call.node.users if user.target is operator.getitem):
        raise Analogue("it returns positions")
    return call.parts(lambda part: _amax(part))


@rules_for(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool1d.default)
def _adaptive_max_pool(call: Call) -> Any:
    if any(x != 1 for x in _tuple(call.ints("output_size"), 1)):
        raise Analogue("its windows depend on the size of the image")
    if len(call.shape) == 2:
        return call.parts(lambda part: part.of_line(SpikingGlobalMaxPool2d()))
    return call.parts(lambda part: part.apply(SpikingGlobalMaxPool2d(), commutes=True, pairs=True))
