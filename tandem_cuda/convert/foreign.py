"""Layers of timm and torchvision, as calls of the layers of torch.nn that compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from ..nn.batch_norm import FrozenBatchNorm2d
from .nodes import is_of_class

Part = Callable[[Any, type[nn.Module], Any], Any]
"""A function that calls a module, as one of another class, with an input."""


def forward_of(module: nn.Module, sized: bool) -> Callable[[Part, Any, Any], Any] | None:
    """Return what computes a layer of another library from layers of torch.nn, if there is such a function.

    It takes a :data:`Part`, the layer and its input, whose sizes are known if ``sized``.
    """
    for (package, name), (forward, needs_sizes) in _FORWARDS.items():
        if is_of_class(module, package, name) and (sized or not needs_sizes):
            return forward
    return None


def _batch_norm_act(part: Part, m: Any, x: Any) -> Any:
    return m.act(m.drop(part(m, nn.BatchNorm2d, x)))


def _linear(part: Part, m: Any, x: Any) -> Any:
    return part(m, nn.Linear, x)


def _frozen_norm(part: Part, m: Any, x: Any) -> Any:
    return part(m, FrozenBatchNorm2d, x)


def _conv_same(part: Part, m: Any, x: Any) -> Any:
    (top, bottom), (left, right) = _same(m, x)
    return part(m, nn.Conv2d, F.pad(x, (left, right, top, bottom)) if any((left, right, top, bottom)) else x)


def _max_pool_same(part: Part, m: Any, x: Any) -> Any:
    """The padding has no values: where it is on one side alone, the last windows extend beyond the image."""
    pads = _same(m, x)
    ceil_mode = any(before != behind for before, behind in pads)
    if any(before != behind and (before or step == 1) for (before, behind), step in zip(pads, m.stride, strict=True)):
        return m.forward(x)  # whose padding is refused
    return F.max_pool2d(x, m.kernel_size, m.stride, [before for before, _ in pads], m.dilation, ceil_mode)


def _same(m: Any, x: Any) -> list[tuple[int, int]]:
    """Return the padding of rows and columns as TensorFlow has it: outputs have 1/stride of the size, rounded up."""
    pads = []
    for size, taps, step, dilation in zip(x.shape[2:], m.kernel_size, m.stride, m.dilation, strict=True):
        total = max((math.ceil(int(size) / step) - 1) * step + dilation * (taps - 1) + 1 - int(size), 0)
        pads.append((total // 2, total - total // 2))
    return pads


_FORWARDS: dict[tuple[str, str], tuple[Callable[[Part, Any, Any], Any], bool]] = {
    ("timm.layers", "BatchNormAct2d"): (_batch_norm_act, False),
    ("timm.layers", "Linear"): (_linear, False),
    ("timm.layers", "Conv2dSame"): (_conv_same, True),
    ("timm.layers.pool2d_same", "MaxPool2dSame"): (_max_pool_same, True),
    ("torchvision.ops", "FrozenBatchNorm2d"): (_frozen_norm, False),
}
"""By package and class: the function, and whether it needs sizes."""
