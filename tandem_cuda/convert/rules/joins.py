"""The rules of sums, factors, concatenations and batch norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from ...nn.computed import Computed
from ..call import Call
from ..values import Analogue, Current
from . import register, rules_for

aten = torch.ops.aten


@rules_for(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
def _sum(call: Call) -> Any:
    sign = 1.0 if call.node.target in (aten.add.Tensor, aten.add.Scalar) else -1.0
    one, other, alpha = call["self"], call["other"], call["alpha"]
    if not isinstance(alpha, (int, float)):
        raise Analogue("its alpha depends on the batch")
    of = call.swapped() if not _both(call, one, other) else None
    if of is None:
        return call.add(subtract=sign < 0, alpha=float(alpha))
    offset = call.constant(other if of is one else one, of)
    if offset is None:
        raise Analogue("it adds what is no constant of the channels")
    if of is one:
        return call.affine(offset=sign * float(alpha) * offset, of=of)
    return call.affine(sign * float(alpha), offset, of=of)


def _both(call: Call, one: Any, other: Any) -> bool:
    """Whether both are values that depend on the input."""
    return all(isinstance(x, fx.Node) and x not in call.writer.calls.of_parameters for x in (one, other))


register(aten.rsub.Scalar, lambda call: call.affine(-float(call["alpha"]), float(call["other"])))
register(aten.neg.default, lambda call: call.affine(-1.0))
register(aten.cat.default, lambda call: call.cat())


@rules_for(aten.mul.Tensor, aten.mul.Scalar)
def _multiply(call: Call) -> Any:
    one, other = call["self"], call["other"]
    if _both(call, one, other):
        raise Analogue("it multiplies values that depend on the input")
    of = call.swapped()
    given = other if of is one else one
    factor = call.constant(given, of)
    if factor is not None:
        return call.affine(factor, of=of)
    return call.multiplied(_depthwise(call, given, of), of)


def _depthwise(call: Call, factor: fx.Node, of: fx.Node) -> Any:
    """Return a depthwise layer whose weights are a factor of channels that depends on parameters."""
    shape, calls = call.writer.shape(of), call.writer.calls
    size = factor.meta["val"].shape
    sizes = [1] * (1 + len(shape) - len(size)) + list(size)
    if len(shape) != 3 or len(sizes) != 4 or sizes[0] != 1 or sizes[2:] != [1, 1] or sizes[1] not in (1, shape[0]):
        raise Analogue("its factor is not one for each channel of an image")
    channels = shape[0]
    layer = nn.Conv2d(channels, channels, 1, groups=channels, bias=False, device="meta")
    del layer.weight
    Computed.of(layer, "weight", Spread(calls.module(factor), channels))
    return layer


class Spread(nn.Module):
    """A factor, or one for each channel, as the weights of a depthwise layer."""

    def __init__(self, factor: nn.Module, channels: int) -> None:
        super().__init__()
        self.factor, self.channels = factor, channels

    def forward(self) -> torch.Tensor:
        factor: torch.Tensor = self.factor()
        return factor.reshape(-1, 1, 1, 1).expand(self.channels, 1, 1, 1)


@rules_for(aten.div.Tensor, aten.div.Scalar)
def _divide(call: Call) -> Any:
    divisor = call.constant(call["other"], call.source)
    if divisor is None or not bool((torch.as_tensor(divisor) != 0).all()):
        raise Analogue("its divisor is no constant of the channels other than 0")
    return call.affine(1 / divisor)


@rules_for(aten.batch_norm.default)
def _batch_norm(call: Call) -> Any:
    norm = call.writer.norm(call.node)
    if norm is None:
        raise Analogue("it has no running statistics")
    value = call.value
    if isinstance(value, Current) and value.features:
        raise Analogue("it normalises rows of features")
    return call.fold(norm)
