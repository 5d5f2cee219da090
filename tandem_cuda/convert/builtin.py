"""The conversion rules for PyTorch's own layers and functions."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..nn import (
    SpikingMaxPool2d,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemDropout,
    TandemDropout2d,
    TandemLinear,
)
from .advice import NOTHING_ELSE
from .rules import Call, Rule, Unconvertible, WeightRule, fire, register
from .trace import DROPOUTS, dropout_of
from .values import BatchSize, Shape

_SIZED = "use nn.Flatten in place of a computed shape"


def _unchanged(call: Call) -> Any:
    return call.input


def _norm(call: Call) -> Any:
    return call.fold(call.module)


def _flatten(call: Call) -> Any:
    return call.flatten(call.module.start_dim, call.module.end_dim)


def _average(call: Call) -> Any:
    return call.average(call.module)


def _maximum(call: Call) -> Any:
    pool = call.module
    if pool.return_indices:
        raise Unconvertible("set return_indices=False: the position of the maximum differs between time steps")
    window = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    return call.apply(SpikingMaxPool2d(*window, False, pool.ceil_mode), commutes=True)


register(nn.Conv1d, WeightRule(TandemConv1d, nn.BatchNorm1d))
register(nn.Conv2d, WeightRule(TandemConv2d, nn.BatchNorm2d))
register(nn.ConvTranspose2d, WeightRule(TandemConvTranspose2d, nn.BatchNorm2d))
register(nn.Linear, WeightRule(TandemLinear, nn.BatchNorm1d))
register(nn.ReLU, fire)
register(nn.Identity, _unchanged)
register(nn.BatchNorm1d, _norm)
register(nn.BatchNorm2d, _norm)
register(nn.Flatten, _flatten)
register(nn.AvgPool2d, _average)
register(nn.AdaptiveAvgPool2d, _average)
register(nn.MaxPool2d, _maximum)
register(nn.Dropout, lambda call: call.drop(TandemDropout))
register(nn.Dropout2d, lambda call: call.drop(TandemDropout2d))


# The helpers below have the signatures of torch's functions, without the first argument, the input.


def _avg_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> nn.Module:
    return nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


def _adaptive_avg_pool(output_size: Any) -> nn.Module:
    return nn.AdaptiveAvgPool2d(output_size)


def _as_module(make: Any) -> Any:
    """Make the rule of a function that is equivalent to a module."""

    def rule(call: Call) -> Any:
        _ = call.input  # raises Unconvertible first, before bad arguments could raise something else
        return call.like(make(*call.args[1:], **call.kwargs))

    return rule


def _dropout(call: Call) -> Any:
    _ = call.input
    if call.node.meta["drops"] == (True, True):
        raise Unconvertible("use nn.Dropout, or training=self.training: it drops in eval mode too")
    return call.like(dropout_of(call.node) or nn.Identity())


def _flatten_function(call: Call) -> Any:
    def dims(x: Any, start_dim: int = 0, end_dim: int = -1) -> tuple[int, int]:
        return start_dim, end_dim

    _ = call.input
    return call.flatten(*dims(*call.args, **call.kwargs))


def _reshape(call: Call) -> Any:
    _ = call.input
    sizes = call.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    batch, features = sizes if len(sizes) == 2 else (None, None)
    if not (isinstance(batch, BatchSize) or batch == -1) or not isinstance(features, int):
        raise Unconvertible(_SIZED)
    return call.flatten() if features == -1 else call.flatten_to(features)


def _mean(call: Call) -> Any:
    def given(x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> tuple[Any, bool, Any]:
        return dim, keepdim, dtype

    _ = call.input
    dims, keepdim, dtype = given(*call.args, **call.kwargs)
    if dtype is not None or not isinstance(dims, (tuple, list)) or sorted(d % 4 for d in dims) != [2, 3]:
        raise Unconvertible("use nn.AdaptiveAvgPool2d(1): spikes can only be averaged over all pixels")
    return call.average(nn.AdaptiveAvgPool2d(1), keepdim=keepdim)


def _add(call: Call) -> Any:
    if len(call.args) == 2 and not call.kwargs:
        return call.add()
    _ = call.input
    raise Unconvertible(NOTHING_ELSE)  # scaled by alpha


def _size(call: Call) -> Any:
    _ = call.value
    dims = *call.args[1:], *call.kwargs.values()
    if dims not in ((), (0,)):
        raise Unconvertible(_SIZED)
    return BatchSize() if dims else Shape()


def _length(call: Call) -> Any:
    _ = call.value
    return BatchSize()


def _attribute(call: Call) -> Any:
    _ = call.value
    if call.args[1] != "shape":
        raise Unconvertible(NOTHING_ELSE)
    return Shape()


def _item(call: Call) -> Any:
    if isinstance(call.args[0], Shape) and call.args[1] == 0:
        return BatchSize()
    _ = call.input
    raise Unconvertible(NOTHING_ELSE)


def _register_all(rule: Rule, *functions: Any) -> None:
    for function in functions:
        register(function, rule)


register(F.avg_pool2d, _as_module(_avg_pool))
register(F.max_pool2d, _as_module(_max_pool))
register(F.adaptive_avg_pool2d, _as_module(_adaptive_avg_pool))
_register_all(fire, F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)
_register_all(_dropout, *DROPOUTS)
_register_all(_flatten_function, torch.flatten, torch.Tensor.flatten)
_register_all(_reshape, torch.reshape, torch.Tensor.reshape, torch.Tensor.view)
_register_all(_mean, torch.mean, torch.Tensor.mean)
_register_all(_add, operator.add, operator.iadd, torch.add, torch.Tensor.add, torch.Tensor.add_)
register(torch.Tensor.contiguous, _unchanged)
register(torch.Tensor.size, _size)
register(len, _length)
register(getattr, _attribute)
register(operator.getitem, _item)
