"""Correct the biases of a converted network, so that its layers have the means of the ANN's."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..nn import TandemAdd
from ..nn.modes import evaluating
from ..nn.tandem import TandemLayer
from ..nn.wiring import paired
from ..spike_train import SpikeTrain
from .inputs import copied
from .values import SpikingLayer

_PASSES = 4
"""A correction changes which neurons fire, so it is found in several steps."""
_SAMPLES = 4
"""The number of samples whose values are summed at a time."""
_MOST_KEPT = 2**26
"""Numbers that are kept from step to step, in all batches."""


def weight_layer(layer: Any) -> TandemLayer | None:
    """Return the tandem layer that holds the correction of a spiking layer; None if there is none that could."""
    if isinstance(layer, TandemAdd):
        return next((branch for branch in layer.branches if isinstance(branch, TandemLayer)), None)
    return layer if isinstance(layer, TandemLayer) else None


def set_correction(layer: TandemLayer, correction: Tensor, signed: bool) -> None:
    """Add [C] to the pre-activations of a layer."""
    if signed:
        correction = paired(correction)
    layer.correction = correction.to(layer.weights.stored())


class Means:
    """The mean of each channel's activation."""

    def __init__(self, layers: Sequence[SpikingLayer]) -> None:
        self.layers = layers
        self.totals: dict[str, Any] = defaultdict(int)
        self.numbers: dict[str, int] = defaultdict(int)

    def add(self, layer: SpikingLayer, values: Tensor, share: float) -> None:
        """Add the activations of a batch, [C, M]."""
        self.totals[layer.name] += values.sum(1).double().cpu()  # in float64, the sum takes 30 times as long
        self.numbers[layer.name] += values.shape[1]

    def of(self, name: str) -> Tensor:
        """Return the means of a layer, [C]."""
        mean: Tensor = self.totals[name] / self.numbers[name]
        return mean


def find_corrections(
    means: Means, batches: Sequence[Sequence[Tensor]], snn: fx.GraphModule
) -> tuple[dict[str, Tensor], Any]:
    """Correct the biases of the spiking network, layer by layer.

    Returns:
        The corrections, and the outputs of the corrected network for the first batch.

    A layer's correction shifts its pre-activations so that each channel's decoded activation has the mean of the ANN's
    activation, given the corrected layers before it (Li et al., "A Free Lunch From ANN: Towards Efficient, Accurate
    Spiking Neural Networks Calibration", 2021, arXiv:2106.06984). ``batches``: the tensors of each batch.
    """
    uncorrected = {layer.name: layer for layer in means.layers if layer.name in means.totals}
    corrections: dict[str, Tensor] = {}
    runs = [_started(snn, batch) for batch in batches]
    with evaluating(snn), torch.no_grad():
        for node in snn.graph.nodes:
            if not uncorrected:
                runs = runs[:1]  # which goes on to the outputs
            layer = uncorrected.pop(str(node.target), None) if node.op == "call_module" else None
            if layer is not None:
                holder = weight_layer(snn.get_submodule(layer.name))
                assert holder is not None
                module, most = snn.get_submodule(layer.name), _MOST_KEPT // len(runs)
                results = [_result(module, holder, run, node, most) for run in runs]
                corrections[layer.name] = _correct(holder, layer, means.of(layer.name), results)
            for i, run in enumerate(runs):
                run.env[node] = run.run_node(node) if layer is None else results[i]()
                for dead in run.user_to_last_uses.get(node, []):
                    del run.env[dead]
    return corrections, runs[0].env[snn.graph.output_node()][0]


def _started(snn: fx.GraphModule, leaves: Sequence[Tensor]) -> fx.Interpreter:
    run = fx.Interpreter(snn)
    run.args_iter = iter(copied(tuple(leaves)))
    return run


def _result(
    module: Any, holder: TandemLayer, run: fx.Interpreter, node: fx.Node, most: int
) -> Callable[[], SpikeTrain]:
    """Return a function that returns the spikes of a layer with its present correction; now it has none.

    It keeps up to ``most`` numbers; of more, it computes the layer anew in each call.
    """
    inputs, _ = run.fetch_args_kwargs_from_env(node)
    if not module.neuron.two_phase:
        return functools.partial(run.run_node, node)
    # Such neurons fire once they have integrated all input. A correction is added to that, so one product will do.
    v, scale = module.integrated(*inputs), module.current_scale() if isinstance(module, TandemAdd) else None
    if v.numel() > most:
        return functools.partial(run.run_node, node)
    bias = _bias(holder, scale, v)

    def result() -> SpikeTrain:
        fired: SpikeTrain = module.discharged(v + (_bias(holder, scale, v) - bias), *inputs)
        return fired

    return result


def _bias(holder: TandemLayer, scale: Tensor | None, v: Tensor) -> Tensor:
    """Return what a layer adds to v [N, O, ...], with as many dimensions."""
    bias = holder.drive.affine().bias
    if bias is None:
        return v.new_zeros(())
    shape = [1] * v.dim()
    shape[holder.synapses.features] = -1
    return (bias if scale is None else bias * scale).view(shape)


def _correct(
    holder: TandemLayer, layer: SpikingLayer, mean: Tensor, results: Sequence[Callable[[], SpikeTrain]]
) -> Tensor:
    """Correct the bias of one layer, and return the correction.

    Args:
        holder: the tandem layer that holds the correction.
        layer: the spiking layer.
        mean: the mean of the ANN's activation, [C].
        results: runs the spiking layer, for each batch.
    """
    correction = torch.zeros_like(mean)
    for _ in range(_PASSES):
        set_correction(holder, correction, layer.signed)
        correction = correction + mean - _decoded(holder, results, layer)
    set_correction(holder, correction, layer.signed)
    return correction


def _decoded(holder: TandemLayer, results: Sequence[Callable[[], SpikeTrain]], layer: SpikingLayer) -> Tensor:
    """Return the mean of the values that the spikes of a layer stand for, [C]."""
    total: Any = 0
    neurons = 0
    for result in results:  # one batch at a time: the values of all would take much memory
        train = result()
        total = total + _total(train, layer.dim) * train.amplitude
        neurons += math.prod(train.shape)
    mean: Tensor = total / (neurons / len(total))
    if holder.thresholds is not None:  # all branches have equal thresholds
        mean = mean * holder.thresholds.double().cpu()
    if layer.signed:
        mean = mean[::2] - mean[1::2]
    return mean.mean(0, keepdim=True) if layer.channels is None else mean


def _total(train: SpikeTrain, dim: int) -> Tensor:
    """Return the sum of values over all dimensions but one: of whole numbers, whose sums in a sample are near exact."""
    pixels = [d for d in range(1, len(train.shape)) if d != dim % len(train.shape)]
    total: Any = 0
    # A few samples at a time, so that their values stay in a cache.
    for values in train.bits[0].split(_SAMPLES) if train.radix else [train.value]:
        values = values.float() if train.radix else values
        of_samples = values.sum(pixels) if pixels else values
        total = total + of_samples.sum(0, dtype=torch.float64)
    found: Tensor = total.cpu()
    return found
