"""The spiking layers for the ANN's average poolings."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..nn import SpikingAdaptiveAvgPool2d, SpikingAdaptiveAvgPool3d, SpikingAvgPool2d, SpikingAvgPool3d
from .options import Options

_POOLS: dict[type[nn.Module], type[nn.Module]] = {
    nn.AvgPool2d: SpikingAvgPool2d,
    nn.AvgPool3d: SpikingAvgPool3d,
    nn.AdaptiveAvgPool2d: SpikingAdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d: SpikingAdaptiveAvgPool3d,
}


def spiking_pool(pool: Any, options: Options) -> Any:
    """Make the spiking layer for average pooling. Its neurons start and wait as the neurons of all layers do.

    Where the divisor is smaller than the window, a spike stands for more than one spike of the window.
    """
    initial, two_phase = options.neuron.initial, options.neuron.two_phase
    neurons: dict[str, Any] = {"initial": initial, "two_phase": two_phase, "engine": options.engine}
    kind: Any = next(spiking for of_ann, spiking in _POOLS.items() if isinstance(pool, of_ann))
    if hasattr(pool, "output_size"):
        return kind(pool.output_size, **neurons)
    windows = pool.kernel_size, pool.stride, pool.padding
    settings = pool.ceil_mode, pool.count_include_pad, pool.divisor_override
    spiking = kind(*windows, *settings, **neurons)
    spiking.threshold = spiking.amplitude = max(spiking.largest, 1.0)
    return spiking
