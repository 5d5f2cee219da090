"""Whether calibration data look like the data that an ANN was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from .graph import Graph
from .inputs import Batch, samples_of

_UNLIKE = 3.0
"""Photographs of other sources have variances of 0.5 to 1.4 times the running variance. Images from 0 to 1 in place of
-1 to 1 have 0.24, and images with another normalisation 4.6."""
_SHIFTED = 1.0
"""The largest squared distance of the mean from the running mean, in running variances."""
_FEW = 8
"""A calibration on fewer samples is doubted."""


class CalibrationData:
    """Compares calibration data with the statistics that the ANN's first batch norm has of the training data."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.read: fx.Node | None = None
        self.statistics: tuple[str, str] | None = None
        self.number = 0
        self.sum: Any = 0.0
        self.squares: Any = 0.0
        for node in graph.graph.nodes:
            if node.target is torch.ops.aten.batch_norm.default:
                mean, variance = node.args[3:5]
                if all(isinstance(x, fx.Node) and x.op == "get_attr" for x in (mean, variance)):
                    self.read, self.statistics = node.args[0], (mean.target, variance.target)
                return

    def see(self, node: fx.Node, value: Tensor) -> None:
        """Add the value of a node, if the batch norm reads it."""
        if node is self.read:
            values = value.movedim(1, 0).flatten(1)
            variance, mean = (x.double().cpu() for x in torch.var_mean(values, dim=1, correction=0))
            self.number += values.shape[1]
            self.sum = self.sum + values.shape[1] * mean
            self.squares = self.squares + values.shape[1] * (variance + mean.square())

    def doubts(self, batches: Sequence[Batch]) -> tuple[str, ...]:
        """Return what is doubtful about the data, in words."""
        samples, first = sum(map(samples_of, batches)), _images(batches[0])
        if len(batches) == 1 and samples > 1 and all((x == x[:1]).all() for x in first):
            return (f"all {samples} samples of calibrate are equal: activations for other data may exceed the levels",)
        images = [x.flatten(2) for x in first if x.dim() > 3 and x[0, 0].numel() > 1]
        if images and all((x == x[..., :1]).all() for x in images):
            return ("the samples of calibrate are plain images: activations for other data may exceed the levels",)
        found = []
        if doubt := self._scale():
            found.append(doubt)
        if 0 < samples < _FEW:
            number = "one sample" if samples == 1 else f"{samples} samples"
            found.append(f"calibrated on {number}: activations for other data may exceed the levels")
        return tuple(found)

    def _scale(self) -> str:
        if self.statistics is None or self.number < 2:
            return ""
        of_training, variances = (self.graph.tensor(name).detach().double().cpu() for name in self.statistics)
        used = variances > 0
        if not used.any() or bool((of_training == 0).all() and (variances == 1).all()):  # never trained
            return ""
        mean = self.sum / self.number
        variance = ((self.squares / self.number - mean.square()).clamp(min=0) / variances)[used].median()
        shift = ((mean - of_training).square() / variances)[used].median()
        if 1 / _UNLIKE <= variance <= _UNLIKE and shift <= _SHIFTED:
            return ""
        return (
            "the data of calibrate are unlike the data that the ANN was trained on: where its first batch norm reads "
            f"them, their variance is {variance:.2g} times the running variance, and their mean is "
            f"{shift.sqrt():.2g} standard deviations from the running mean. Are they scaled as for training?"
        )


def _images(batch: Batch) -> list[Tensor]:
    return [x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
