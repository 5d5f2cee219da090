"""The conversion rules for linear maps whose weights are constants: convolutions, matrices and means of channels."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .advice import COUNTED, FUNCTION_ADVICE, SIZES
from .constants import constant_layer
from .rules import Call, Rule, Unconvertible, register, register_all
from .values import shape_of

_FIXED = "pass constants as weight and bias, and numbers as stride, padding, dilation and groups"


def _convolved(kind: type[nn.Module], dims: int) -> Rule:
    """Make the rule of a function that convolves with constants as ``kind``, a layer of torch, does with parameters."""

    def rule(call: Call) -> Any:
        names = "weight", "bias", "stride", "padding", "dilation", "groups"
        given = dict(zip(names, call.args[1:], strict=False)) | call.kwargs
        tensors = [call.constant(i + 1) if len(call.args) > i + 1 else call.constant(names[i]) for i in range(2)]
        given.pop("weight", None)
        bias_given = given.pop("bias", None) is not None
        fits = call.value.dims in (None, dims) and all(map(_is_number, given.values()))
        if not fits or tensors[0] is None or (bias_given and tensors[1] is None):
            raise Unconvertible(_FIXED)
        settings = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items()}
        return call.mapped(constant_layer(kind, tensors[0], tensors[1], **settings))

    return rule


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, str)) or (isinstance(x, (tuple, list)) and all(isinstance(n, int) for n in x))


def _linear(call: Call) -> Any:
    weight, given = call.constant(1), len(call.args) > 2 or "bias" in call.kwargs
    weight = call.constant("weight") if weight is None else weight
    bias = call.constant(2) if len(call.args) > 2 else call.constant("bias")
    _ = call.input
    if weight is None or (given and bias is None) or weight.dim() != 2:
        raise Unconvertible(_FIXED)
    return call.mapped(constant_layer(nn.Linear, weight, bias))


def _matmul(call: Call) -> Any:
    """Convert a product with a matrix of constants: of features from the right, of rows of features from the left."""
    right = call.constant(1)
    if right is not None and right.dim() == 2:
        _ = call.input
        return call.mapped(constant_layer(nn.Linear, right.T.contiguous()))
    left = call.constant(0)
    if left is not None and left.dim() == 2:
        rows = call.swapped()
        if rows.value.dims == 3:
            return rows.mapped(constant_layer(nn.Conv1d, left.unsqueeze(2)))
    raise Unconvertible(FUNCTION_ADVICE[operator.matmul])


def mean_of_channels(call: Call, keepdim: bool) -> Any:
    """Average over dimension 1: channels, or rows of features."""
    shape = shape_of(call.value)
    number = shape.channels if shape.channel_dim == 1 else None if call.example_size is None else call.example_size[1]
    if number is None:
        raise Unconvertible(COUNTED if shape.channel_dim == 1 else SIZES)
    if not keepdim and shape.channel_dim == 1:
        raise Unconvertible("pass keepdim=True: the mean of channels is then an image or a line of one channel")
    dims: Any = shape.dims
    share = torch.full((1, number, *[1] * (dims - 2)), 1 / number, dtype=torch.float64)
    mean = call.mapped(constant_layer({2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d}[dims], share))
    return mean if keepdim else call.flattened(mean)


register(F.conv1d, _convolved(nn.Conv1d, 3))
register(F.conv2d, _convolved(nn.Conv2d, 4))
register(F.linear, _linear)
register_all(_matmul, operator.matmul, torch.matmul, torch.Tensor.matmul)
