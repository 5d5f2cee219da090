"""Guess an example of the inputs where none was given, to list all problems of a network at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..nn.modes import evaluating
from .example import running
from .nodes import inputs_of

_SIZES = 224, 32, 28, 64, 96, 299, 128, 16, 8
"""Usual sizes of images."""


def guessed_example(ann: nn.Module) -> Tensor | None:
    """Return an input that the ANN takes, without data; None if none is found."""
    names = inputs_of(ann)
    like = next((x for x in ann.parameters() if x.is_floating_point()), None)
    if names is None or len(names) != 1 or like is None:
        return None
    for shape in _shapes(ann):
        x = torch.zeros(shape, dtype=like.dtype, device=like.device)
        # For another size, forward may raise anything.
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with suppress(Exception), evaluating(ann), running(mode):
            ann(mode.from_tensor(x))
            return x
    return None


def _shapes(ann: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield the shapes that an input may have, by the first weight layer."""
    for layer in ann.modules():
        if isinstance(layer, nn.Linear):
            side = math.isqrt(layer.in_features)
            yield 1, layer.in_features
            yield 1, 1, side, side
            return
        if isinstance(layer, nn.modules.conv._ConvNd):
            pixels = len(layer.kernel_size)
            for size in _SIZES:
                yield 1, layer.in_channels, *([16] * (pixels - 2)), *([size] * min(pixels, 2))
            return
