"""Calibrate a conversion: which settings, on which data, and what belongs to which layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ..neuron import IF, Neuron, RadixIF, check_neuron
from ..neuron.radix_if import MOST_STEPS
from ..nn import TandemNeurons
from ..nn.quantiser import WeightQuantiser
from ..nn.tandem import TandemLayer
from ..ops import checks
from .batches import Batch, samples_of
from .calibrate import Calibration, LeastErrors, Percentiles, checked_levels, observe
from .comparison import Likeness, OutputComparison
from .conversion import Conversion
from .corrections import Means, find_corrections, weight_layer
from .values import SpikingLayer

COUNTING = IF(initial=0.5, two_phase=True)
"""The most accurate neurons of which each spike counts alike."""


def most_accurate(time_steps: int, mode: str | None) -> Neuron:
    """Return the neurons of a calibrated conversion, unless ``neuron`` says otherwise."""
    return RadixIF() if time_steps <= MOST_STEPS and mode != "constant" else COUNTING


@dataclass(frozen=True)
class CalibrationSettings:
    """The arguments of :func:`convert` that say how to calibrate."""

    calibrate: Any
    percentile: float | None
    per_channel: bool | None
    correct_bias: bool | None

    def earlier(self, time_steps: int) -> Calibration | None:
        """Return the earlier calibration that is to be used again; None for new data or no calibration."""
        if isinstance(self.calibrate, Mapping):
            return Calibration(time_steps, self.calibrate)
        return self.calibrate if isinstance(self.calibrate, Calibration) else None

    @property
    def on_data(self) -> bool:
        """Whether ``calibrate`` is inputs of the ANN."""
        return self.calibrate is not None and not isinstance(self.calibrate, (Mapping, Calibration))

    def check(self, mode: str) -> None:
        """Raise a TypeError or ValueError if an argument is wrong or does not fit another one."""
        if self.percentile is not None:
            checks.check_number("convert", "percentile", self.percentile)
            if not 0 < self.percentile <= 100:
                raise ValueError(f"convert: percentile must be in (0, 100], got {self.percentile}")
        for name in ("per_channel", "correct_bias"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, bool)):
                raise TypeError(f"convert: {name} must be True, False or None, got {type(value).__name__}")
            if value and not self.on_data:
                got = "None" if self.calibrate is None else "the result of an earlier calibration"
                raise ValueError(f"convert: calibrate must be inputs of the ANN with {name}=True, got {got}")
        if self.correct_bias and mode == "spikes":
            raise ValueError("convert: mode must be that of Encode with correct_bias=True, got 'spikes'")

    def neuron(self, neuron: Neuron | None, time_steps: int, mode: str | None) -> Neuron:
        """Return the neurons of the network: ``neuron``, or the default.

        Raises:
            TypeError: ``neuron`` is not a neuron model.
            ValueError: ``neuron`` cannot be calibrated.
        """
        if neuron is None:
            found = self.calibrate.neuron if isinstance(self.calibrate, Calibration) else None
            neuron = found or (IF() if self.calibrate is None else most_accurate(time_steps, mode))
        check_neuron("convert", neuron)
        if self.calibrate is not None:
            try:
                neuron.calibrated(1.0)
            except ValueError as error:
                raise ValueError(f"convert: {error}") from None
        return neuron

    def channels(self, earlier: Calibration | None) -> bool:
        """Whether each channel gets a threshold."""
        if self.calibrate is None:
            return False
        if earlier is not None:
            return any(isinstance(level, Tensor) and level.dim() for level in earlier.levels.values())
        return self.per_channel is not False

    def not_default(self, neuron: Neuron | None, time_steps: int, mode: str | None) -> list[str]:
        """Return the names of the arguments that make a network less accurate than the defaults.

        ``neuron`` and ``mode`` are the arguments of the call.
        """
        best = most_accurate(time_steps, None)
        worse = {
            "mode": mode == "constant" and best.radix,
            "neuron": neuron is not None and neuron != best,
            "percentile": self.percentile is not None,
            "per_channel": self.per_channel is False,
            "correct_bias": self.correct_bias is False,
        }
        return [name for name, differs in worse.items() if differs]


class Calibrator:
    """Finds the levels and the corrections for the layers of a conversion.

    Args:
        conversion: the conversion.
        snn: the spiking twin that it has written.
        settings: how to calibrate.
    """

    def __init__(self, conversion: Conversion, snn: fx.GraphModule, settings: CalibrationSettings) -> None:
        self.graph, self.writer = conversion.source, conversion.writer
        self.options, self.snn, self.settings = conversion.writer.options, snn, settings
        self.means: Means | None = None
        self.outputs_of_ann: Any = None

    def calibration(self, batches: Sequence[Batch]) -> Calibration:
        """Measure the level of each spiking layer, and of average poolings with neurons.

        The same runs of the ANN measure what :meth:`corrections` needs.
        """
        unknown = [layer for layer in self.writer.layers if layer.level is None]
        layers = [self._measured(layer, self._has_level_of_channels(layer)) for layer in unknown]
        # Signed poolings cannot be measured: the ANN never computes the average of the positive part alone.
        layers += [pool for pool, _ in self.writer.pools if not pool.signed]
        measure: Percentiles | LeastErrors
        if self.settings.percentile is not None:
            measure = Percentiles(layers, self.settings.percentile)
        else:
            measure = LeastErrors(layers, self.options.time_steps, self.options.neuron)
        corrects = self.settings.correct_bias is not False and self.options.mode != "spikes"
        self.means = self._means() if corrects else None
        self.outputs_of_ann = observe(self.graph, batches, measure, *() if self.means is None else [self.means])
        return self.fitting(Calibration(self.options.time_steps, measure.levels()))

    def fitting(self, earlier: Calibration) -> Calibration:
        """Return the part of an earlier calibration that is for the layers of this network, and their own levels.

        Raises:
            TypeError: a level is not a number.
            ValueError: a layer has no level, or its level is not positive and finite, has another shape, or differs
                from the level of its activation.
        """
        layers = self.writer.layers
        channels = {layer.name: layer.channels if self._has_level_of_channels(layer) else None for layer in layers}
        own = {layer.name: layer.level for layer in layers if layer.level is not None}
        pools = [pool.name for pool, _ in self.writer.pools]
        levels = checked_levels(channels, pools, {**own, **earlier.levels})
        for name, level in own.items():
            if bool((torch.as_tensor(levels[name]) != level).any()):
                raise ValueError(
                    f"convert: calibrate[{name!r}] must be {level:.6g}, the level of the ANN's own activation, got "
                    f"{earlier.levels[name]}; leave it out (calibrate={{}} leaves out all)"
                )
        corrections = {name: x for name, x in earlier.corrections.items() if name in channels}
        return replace(earlier, levels=levels, corrections=corrections, neuron=self.options.neuron)

    def corrections(self, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], Likeness]:
        """Correct the biases of the spiking twin, which has its levels.

        Returns:
            The corrections, and how near the outputs for the first batch are then.
        """
        if self.means is None or self._rounds():  # the levels may change how the ANN's weights are rounded
            self.means = self._means()
            self.outputs_of_ann = observe(self.graph, batches, self.means)
        found, outputs = find_corrections(self.means, [self.graph.inputs.leaves(x) for x in batches], self.snn)
        answers = OutputComparison()
        answers.samples = samples_of(batches[0])
        answers.add(outputs, self.outputs_of_ann)
        return found, answers.likeness()

    def _means(self) -> Means:
        corrected = [layer for layer in self.writer.layers if self._holder(layer) is not None]
        return Means([self._measured(layer, True) for layer in corrected])

    def _rounds(self) -> bool:
        return any(isinstance(module, WeightQuantiser) for module in self.snn.modules())

    def _holder(self, layer: SpikingLayer) -> TandemLayer | None:
        return weight_layer(self.snn.get_submodule(layer.name))

    def _has_level_of_channels(self, layer: SpikingLayer) -> bool:
        module = self.snn.get_submodule(layer.name)
        return self.options.per_channel and (isinstance(module, TandemNeurons) or self._holder(layer) is not None)

    def _measured(self, layer: SpikingLayer, each_channel: bool) -> SpikingLayer:
        """Return a layer with the node whose values are measured, of each channel or of the whole layer."""
        if not each_channel:
            return replace(layer, channels=None)
        assert layer.values is not None
        return replace(layer, node=layer.values)
