"""What becomes of which layers and functions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..nn import TandemConv1d, TandemConv2d, TandemConvTranspose2d, TandemLinear
from ..nn.layer import TandemLayer
from ..spike_train import SpikeTrain

LAYERS: dict[type, tuple[type[TandemLayer], type[nn.Module]]] = {
    nn.Conv1d: (TandemConv1d, nn.BatchNorm1d),
    nn.Conv2d: (TandemConv2d, nn.BatchNorm2d),
    nn.ConvTranspose2d: (TandemConvTranspose2d, nn.BatchNorm2d),
    nn.Linear: (TandemLinear, nn.BatchNorm1d),
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
RELU = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}


def _avg_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> nn.Module:
    return nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _max_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


# Functions, with the arguments that they have in torch, and the modules they are.
FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    F.avg_pool2d: _avg_pool,
    F.max_pool2d: _max_pool,
    F.adaptive_avg_pool2d: lambda input, output_size: nn.AdaptiveAvgPool2d(output_size),
}


def flattened_to(train: SpikeTrain, features: int) -> SpikeTrain:
    """Checks what x.view(-1, features) would have mixed up."""
    flat = train.flatten(1)
    if flat.shape[1] != features:
        raise ValueError(f"view: input must have {features} features a sample, got {flat.shape[1]}")
    return flat
