"""From a layer's parameter to what its products take."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import ops
from ..ops import checks
from .drive import Drive
from .quantiser import parametrisation
from .synapses import Synapses
from .weight_cache import Kernel, SpikingWeights, may_cache
from .weighted import WeightedLayer
from .wiring import scaled_inputs


class Weights:
    """The weights of a layer: parametrised, rounded to integers, wired, packed for the kernels, cached.

    In training the weights are packed in every call. In eval mode without gradients the packed weights are cached, and
    :class:`WeightCache` notices when they change. Weights that a parametrisation computes are never cached.

    Quantised weights (:class:`WeightQuantiser`) in float32 become integers, whose sums are exact. Their scales are part
    of the drive.
    """

    def __init__(self, layer: WeightedLayer) -> None:
        self.layer = layer
        self._synapses: Synapses | None = None
        self.quantiser, self.computed = parametrisation(layer)
        """``computed``: whether another parametrisation computes weights, so that changes of its state go unnoticed."""
        self._stored: Tensor | None = None

    @property
    def synapses(self) -> Synapses:
        """The products that the weights are for."""
        if self._synapses is None:
            self._synapses = self.layer.synapses
        return self._synapses

    # -- the parameter

    def stored(self) -> Tensor:
        """Return the parameter: of quantised weights, in full precision."""
        if self._stored is None:
            layer: Any = self.layer
            quantised = self.quantiser is not None
            self._stored = layer.parametrizations["weight"].original if quantised else layer.weight
        return self._stored

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of values: the weights' dtype, or float32 if the weights are integers."""
        dtype = self.stored().dtype
        return torch.float32 if dtype in checks.INTEGERS else dtype

    @property
    def bits(self) -> int | None:
        """The number of bits of the integers that the products take, or None if they take floats."""
        return None if self.quantiser is None or self.dtype != torch.float32 else self.quantiser.bits

    def sources(self) -> list[Tensor]:
        """Return all tensors that products and drive depend on."""
        layer = self.layer
        weight = layer.weight if self.computed else self.stored()
        tensors = [weight, layer.bias, layer.log_threshold, layer.input_scale, layer.correction, layer.thresholds]
        if layer.norm is not None:
            norm = layer.norm
            tensors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]  # None without an affine map
        return [x for x in tensors if x is not None]

    # -- what products take

    def arrange(self, weight: Tensor) -> Tensor:
        """Convert the parameter to the shape that the products take, for all neurons that share it; differentiable."""
        synapses, scale, wiring = self.synapses, self.layer.input_scale, self.layer.wiring
        weight = synapses.as_kernel(weight)
        if scale is not None:
            weight = scaled_inputs(weight, scale, synapses.groups)
        return synapses.for_images(weight if wiring is None else wiring.arrange(weight))

    def floats(self) -> Tensor:
        """Return the weights as floats [O, C/groups, kH, kW] or [O, F]; differentiable."""
        return self.arrange(self.layer.weight)

    def kernel(self) -> Kernel:
        """Return the weights for the products, not packed; differentiable."""
        if self.quantiser is None or self.bits is None:
            return Kernel(self.floats())
        master = self.arrange(self.stored())
        weight, unit = self.quantiser.kernel(master)
        return Kernel(weight, unit=unit, master=master)

    def packed(self, keep: bool = False) -> Kernel:
        """Return the weights for the products, packed; with ``keep``, from the cache if nothing has changed."""
        layer, groups = self.layer, self.synapses.groups
        if keep:
            sources = [x for x in (self.stored(), layer.input_scale) if x is not None]
            return layer._cache.kernel(sources, self.bits, self.kernel, groups)
        kernel = self.kernel()
        if self.computed:
            packed = ops.pack_weight.trusted(kernel.weight.detach(), groups)
        else:
            packed = layer._cache.pack(kernel.weight, groups)
        return kernel._replace(packed=packed)

    def for_values(self) -> Kernel:
        """Return the weights for the product with real input, which takes floats as they are."""
        if self.bits is None:
            return Kernel(self.floats())
        return self.packed(keep=not torch.is_grad_enabled() and may_cache(self.layer))

    # -- with the drive

    def driving(self, drive: Drive, steps: int, amplitude: float, learns: bool = False) -> SpikingWeights:
        """Return the spiking twin's weights for spikes of this amplitude.

        With ``learns``, they carry gradients. Otherwise, they are cached in eval mode.
        """
        if learns:
            return drive.of_spikes(self.packed(), steps, amplitude)
        with torch.no_grad():
            if not may_cache(self.layer):
                return drive.of_spikes(self.packed(), steps, amplitude)
            settings = steps, amplitude, self._eps(), self.bits
            make = functools.partial(self._driving, drive, steps, amplitude)
            return self.layer._cache.weights(self.sources(), settings, make)

    def _driving(self, drive: Drive, steps: int, amplitude: float) -> SpikingWeights:
        return drive.of_spikes(self.packed(keep=True), steps, amplitude)

    def driving_values(self, drive: Drive, steps: int, constant: bool, kernel: Kernel) -> SpikingWeights:
        """Return scale and bias for the sums of real input; cached in eval mode."""
        if not may_cache(self.layer):
            return self._driving_values(drive, steps, constant, kernel)
        settings = "encoded", steps, constant, self._eps(), self.bits
        make = functools.partial(self._driving_values, drive, steps, constant, kernel)
        return self.layer._cache.weights(self.sources(), settings, make)

    def _driving_values(self, drive: Drive, steps: int, constant: bool, kernel: Kernel) -> SpikingWeights:
        checks.check_finite(type(self.layer).__name__, "weight", self.stored())
        return drive.of_values(kernel, steps, constant)

    def _eps(self) -> float | None:
        return None if self.layer.norm is None else self.layer.norm.eps

    # -- for other programs

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Return weight, in the shape that the products take, and bias, with gain and bias of the drive folded in.

        Integers are returned as the floats that they stand for.
        """
        weight, (gain, bias) = self.floats(), Drive(self.layer).affine()
        return weight if gain is None else weight * gain.view(-1, *[1] * (weight.dim() - 1)), bias

    def rounding(self) -> tuple[int, Tensor] | None:
        """Return the bits of quantised weights, and what the integer 1 of each output stands for, or None for floats.

        The gain of the drive is folded in.
        """
        if self.quantiser is None:
            return None
        _, scale = self.quantiser.integers(self.stored())
        gain = Drive(self.layer).affine().gain
        scale = scale.repeat_interleave(2) if self.layer.fires_pairs else scale
        return self.quantiser.bits, scale if gain is None else scale * gain


def stored(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module and name that store a tensor: the module itself, or the tensor's parametrisation."""
    if parametrize.is_parametrized(module, name):
        return module.parametrizations[name], "original"  # type: ignore[index, return-value]  # a ModuleDict
    return module, name
