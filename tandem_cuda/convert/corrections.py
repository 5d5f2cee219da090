"""Correct the biases of a converted network, so that its layers have the means of the ANN's."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
_SAMPLE = 2**18
"""Values of a layer that are sampled."""
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


@dataclass
class Places:
    """Where a sample of a layer's values is: at some places of each sample of a batch, alike in every channel."""

    total: int
    """The number of values of a channel in a sample of the batch."""
    chosen: Tensor | None
    """Some of them, [N, K]; None for all."""

    @classmethod
    def drawn(cls, values: Tensor, share: float, seed: int) -> Places:
        """Choose about 2^18 times ``share`` of the values [C, N, M], and 512 times ``share`` of a channel at least.

        Batches must have different seeds, lest all have their samples in the same places of their images.
        """
        channels, samples, total = values.shape
        number = math.ceil(max(_SAMPLE // channels, 512) * share / samples)
        if number >= total:
            return cls(total, None)
        generator = torch.Generator().manual_seed(seed)
        return cls(total, torch.randint(total, (samples, number), generator=generator).to(values.device))

    def of_channels(self, values: Tensor) -> Tensor:
        """Return the chosen values of [C, N, M], as [C, N, K]."""
        if self.chosen is None:
            return values
        return values.gather(2, self.chosen.expand(len(values), -1, -1))

    def of_layer(self, values: Tensor, features: int) -> Tensor:
        """Return the chosen values of a layer's [N, ..., C, ...], with as many dimensions.

        ``features``: the dimension of C.
        """
        if self.chosen is None:
            return values
        rows = values.movedim(features, 1).flatten(2)
        if rows.shape[2] != self.total:
            raise RuntimeError(
                f"a channel has {self.total} values in the ANN, and {rows.shape[2]} in the spiking network"
            )
        found = rows.gather(2, self.chosen.unsqueeze(1).expand(-1, rows.shape[1], -1))
        return found.view(*found.shape, *[1] * (values.dim() - 3)).movedim(1, features)


class Activations:
    """The mean of each channel's activation in a sample."""

    def __init__(self, layers: Sequence[SpikingLayer]) -> None:
        self.layers = layers
        self.totals: dict[str, Any] = defaultdict(int)
        self.numbers: dict[str, int] = defaultdict(int)
        self.places: dict[str, list[Places]] = defaultdict(list)

    def add(self, layer: SpikingLayer, values: Tensor, share: float) -> None:
        """Add the activations of a batch, [C, N, M]."""
        places = self.places[layer.name]
        # Without channels, values are not in the order of the neurons.
        every = Places(values.shape[2], None)
        places.append(every if layer.channels is None else Places.drawn(values, share, seed=len(places)))
        sample = places[-1].of_channels(values).flatten(1)
        self.totals[layer.name] += sample.sum(1, dtype=torch.float64).cpu()
        self.numbers[layer.name] += sample.shape[1]

    def mean(self, name: str) -> Tensor:
        """Return the means of a layer, [C]."""
        mean: Tensor = self.totals[name] / self.numbers[name]
        return mean


def find_corrections(
    activations: Activations, batches: Sequence[Sequence[Tensor]], snn: fx.GraphModule, compared: int
) -> tuple[dict[str, Tensor], list[Any]]:
    """Correct the biases of the spiking network, layer by layer.

    Returns:
        The corrections, and the outputs of the corrected network for the first ``compared`` batches.

    A layer's correction shifts its pre-activations so that each channel's decoded activation has the mean of the ANN's
    activation, given the corrected layers before it (Li et al., "A Free Lunch From ANN: Towards Efficient, Accurate
    Spiking Neural Networks Calibration", 2021, arXiv:2106.06984). Both means are over the same sample. ``batches``: the
    tensors of each batch.
    """
    uncorrected = {layer.name: layer for layer in activations.layers if layer.name in activations.totals}
    corrections: dict[str, Tensor] = {}
    runs = [_started(snn, batch) for batch in batches]
    with evaluating(snn), torch.no_grad():
        for node in snn.graph.nodes:
            if not uncorrected:
                runs = runs[:compared]  # which go on to the outputs
            layer = uncorrected.pop(str(node.target), None) if node.op == "call_module" else None
            fired: list[tuple[Callable[[], SpikeTrain], Callable[[], Tensor]]] = []
            if layer is not None:
                module, places = snn.get_submodule(layer.name), activations.places[layer.name]
                most = _MOST_KEPT // len(runs)
                fired = [_fired(module, run, node, at, most) for run, at in zip(runs, places, strict=True)]
                holder = weight_layer(module)
                assert holder is not None
                corrections[layer.name] = _correct(holder, layer, activations.mean(layer.name), [x[1] for x in fired])
            for i, run in enumerate(runs):
                run.env[node] = run.run_node(node) if layer is None else fired[i][0]()
                for dead in run.user_to_last_uses.get(node, []):
                    del run.env[dead]
    return corrections, [run.env[snn.graph.output_node()][0] for run in runs[:compared]]


def _started(snn: fx.GraphModule, leaves: Sequence[Tensor]) -> fx.Interpreter:
    run = fx.Interpreter(snn)
    run.args_iter = iter(copied(tuple(leaves)))
    return run


def _fired(
    module: Any, run: fx.Interpreter, node: fx.Node, places: Places, most: int
) -> tuple[Callable[[], SpikeTrain], Callable[[], Tensor]]:
    """Return functions for the spikes of a layer with its present correction, and for what they stand for at places.

    The layer has no correction yet. Up to ``most`` numbers are kept; of more, the layer is computed anew.
    """
    inputs, _ = run.fetch_args_kwargs_from_env(node)
    holder, anew = weight_layer(module), functools.partial(run.run_node, node)
    assert holder is not None
    features = holder.synapses.features
    if not module.neuron.two_phase:
        return anew, lambda: places.of_layer(_decoded(anew()), features)
    # Such neurons fire once they have integrated all input. A correction is added to that, so one product will do.
    v, scale = module.integrated(*inputs), module.current_scale() if isinstance(module, TandemAdd) else None
    bias, sample = _bias(holder, scale, v), places.of_layer(v, features)

    def fired(v: Tensor) -> SpikeTrain:
        train: SpikeTrain = module.discharged(v + (_bias(holder, scale, v) - bias), *inputs)
        return train

    return anew if v.numel() > most else functools.partial(fired, v), lambda: _decoded(fired(sample))


def _bias(holder: TandemLayer, scale: Tensor | None, v: Tensor) -> Tensor:
    """Return what a layer adds to v [N, O, ...], with as many dimensions."""
    bias = holder.drive.affine().bias
    if bias is None:
        return v.new_zeros(())
    shape = [1] * v.dim()
    shape[holder.synapses.features] = -1
    return (bias if scale is None else bias * scale).view(shape)


def _decoded(train: SpikeTrain) -> Tensor:
    decoded: Tensor = train.value * train.amplitude
    return decoded


def _correct(holder: TandemLayer, layer: SpikingLayer, mean: Tensor, samples: Sequence[Callable[[], Tensor]]) -> Tensor:
    """Correct the bias of one layer, and return the correction.

    Args:
        holder: the tandem layer that holds the correction.
        layer: the spiking layer.
        mean: the mean of the ANN's activation, [C].
        samples: return the values of the layer's spikes, for each batch.
    """
    correction = torch.zeros_like(mean)
    for _ in range(_PASSES):
        set_correction(holder, correction, layer.signed)
        correction = correction + mean - _mean(holder, layer, samples)
    set_correction(holder, correction, layer.signed)
    return correction


def _mean(holder: TandemLayer, layer: SpikingLayer, samples: Sequence[Callable[[], Tensor]]) -> Tensor:
    """Return the mean of the values that the spikes of a layer stand for, [C]."""
    total: Any = 0
    number = 0
    for sample in samples:  # one batch at a time: the values of all would take much memory
        values = sample().movedim(holder.synapses.features, 0).flatten(1)
        total = total + values.sum(1, dtype=torch.float64).cpu()
        number += values.shape[1]
    mean: Tensor = total / number
    if holder.thresholds is not None:  # all branches have equal thresholds
        mean = mean * holder.thresholds.double().cpu()
    if layer.signed:
        mean = mean[::2] - mean[1::2]
    return mean.mean(0, keepdim=True) if layer.channels is None else mean
