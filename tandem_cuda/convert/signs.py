"""Which values of an ANN are never negative, whatever its input: neurons for one sign are enough for these."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .values import Current, Pooled, Train

aten = torch.ops.aten
_NEVER_NEGATIVE = {
    aten.relu.default, aten.sigmoid.default, aten.softmax.int, aten._softmax.default, aten.abs.default,
    aten.exp.default, aten.softplus.default, aten.hardsigmoid.default, aten.square.default, aten.relu6.default,
    aten.sqrt.default,
}  # fmt: skip
_KEEP_SIGNS = {
    aten.add.Tensor, aten.mul.Tensor, aten.cat.default, aten.stack.default, aten.maximum.default,
    aten.max_pool2d.default, aten.max_pool1d.default, aten.max_pool3d.default, aten.avg_pool2d.default,
    aten.avg_pool1d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.adaptive_max_pool2d.default,
    aten.amax.default, aten.mean.dim, aten.sum.dim_IntList,
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int,
    aten.contiguous.default, aten.clone.default, aten.dropout.default, aten.feature_dropout.default,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default, aten.slice.Tensor, aten.select.int,
    aten.expand.default, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.roll.default,
    aten.pixel_shuffle.default, aten.div.Tensor, aten.unflatten.int, aten.flip.default, aten.squeeze.dims,
    aten.repeat.default, aten.repeat_interleave.self_int, aten.channel_shuffle.default, aten.pixel_unshuffle.default,
}  # fmt: skip
"""Calls whose result is not negative if no tensor or number among their arguments is."""


class Signs:
    """Finds values that are never negative, and remembers them.

    Args:
        writer: knows what the values of the ANN have become.
    """

    def __init__(self, writer: Any) -> None:
        self.writer, self._known = writer, dict[fx.Node, bool]()

    def nonnegative(self, node: fx.Node) -> bool:
        """Whether a node's value is never negative."""
        if node not in self._known:
            self._known[node] = self._found(node)
        return self._known[node]

    def _found(self, node: fx.Node) -> bool:
        x = self.writer.values.get(node)
        if isinstance(x, (Train, Pooled)):
            return not x.signed
        if isinstance(x, Current):
            return x.is_positive
        if node.op != "call_function":
            return False
        if node.target in _NEVER_NEGATIVE:
            return True
        if node.target in (aten.clamp.default, aten.clamp_min.default, aten.hardtanh.default):
            low = node.args[1] if len(node.args) > 1 else -1
            return isinstance(low, (int, float)) and low >= 0
        if node.target not in _KEEP_SIGNS:
            return False
        if node.target in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor):
            numbers = [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, (int, float))]
            if any(x < 0 for x in numbers):
                return False
        inputs = [x for x in node.all_input_nodes if isinstance(x.meta.get("val"), torch.Tensor)]
        return all(map(self.nonnegative, inputs))
