"""Measure the levels of layers from the ANN's activations."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._progress import progress
from ..nn.modes import evaluating
from ..ops import checks
from .trace import check_traced


class _Recorder(fx.Interpreter):
    """Runs the ANN and keeps a percentile of the output of each measured node."""

    def __init__(
        self,
        ann: nn.Module,
        graph: fx.Graph,
        measured: list[tuple[fx.Node, str]],
        percentile: float,
        signed: Collection[str],
    ) -> None:
        super().__init__(ann, graph=graph)
        self.names = dict(measured)
        self.levels: dict[str, float] = {}
        self.percentile = percentile
        self.signed = signed

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n in self.names:
            self.levels[self.names[n]] = self._level(self.names[n], out)
        return out

    def _level(self, name: str, out: Tensor) -> float:
        out = out.abs() if name in self.signed else out
        if not out.isfinite().all():
            raise ValueError(f"convert: activations of the ANN must be finite, got NaN or infinity after {name}")
        if not out.numel():
            return 0.0
        rank = max(1, math.ceil(self.percentile / 100 * out.numel()))
        level = float(out.flatten().kthvalue(rank).values)
        return level if level > 0 else float(out.max())  # the percentile is 0 where hardly any neuron is active


def checked_levels(names: list[str], pools: list[str], levels: Mapping[str, float]) -> dict[str, float]:
    """Return the given levels of all layers, and of those pools that have one."""
    missing = [name for name in names if name not in levels]
    if missing:
        raise ValueError(f"convert: calibrate must hold a level for each spiking layer, got none for {missing}")
    found = {name: levels[name] for name in [*names, *pools] if name in levels}
    for name, level in found.items():
        checks.check_number("convert", f"calibrate[{name!r}]", level)
        if not math.isfinite(level):
            raise ValueError(f"convert: calibrate[{name!r}] must be finite, got {level}")
        if not level > 0:
            raise ValueError(f"convert: calibrate[{name!r}] must be positive, got {level}")
    return {name: float(level) for name, level in found.items()}


def percentiles(
    ann: nn.Module,
    graph: fx.Graph,
    measured: list[tuple[fx.Node, str]],
    batches: Iterable[Any],
    percentile: float,
    signed: Collection[str] = (),
) -> dict[str, float]:
    """Return the percentile of each measured node's output, averaged over the batches, by the node's given name.

    Those in ``signed`` count without their sign.
    """
    recorder = _Recorder(ann, graph, measured, percentile, signed)
    totals, count = {name: 0.0 for _, name in measured}, 0
    with evaluating(ann), torch.no_grad():
        for batch in progress(batches, "convert: calibrating"):
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(x, Tensor) or not x.dim() or not len(x):
                raise ValueError(
                    f"convert: calibrate must yield batches of at least one sample, got {type(x).__name__}"
                )
            if not x.isfinite().all():
                raise ValueError(f"convert: calibrate must be finite, got NaN or infinity in batch {count}")
            if not count:
                check_traced(ann, graph, x)
            recorder.run(x)
            totals = {name: total + recorder.levels[name] for name, total in totals.items()}
            count += 1
    if not count:
        raise ValueError("convert: calibrate must yield at least one batch, got none")
    levels = {name: total / count for name, total in totals.items()}
    for name, level in levels.items():
        if not level > 0:
            raise ValueError(
                f"convert: calibrate must activate every layer, got data that never makes the output of {name} positive"
            )
    return levels
