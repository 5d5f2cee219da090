"""From a layer's parameter to what its products take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import ops
from ..ops import checks
from .quantiser import parametrisation
from .synapses import Synapses
from .weight_cache import Kernel, may_cache
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
        self.synapses: Synapses = layer.synapses
        """The products that the weights are for."""
        self.quantiser, self.computed = parametrisation(layer)
        """``computed``: whether another parametrisation computes weights, so that changes of its state go unnoticed."""
        self._stored: Tensor | None = None

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
        if layer.wiring is not None and layer.wiring.slopes:
            tensors.append(layer.slope)
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


def stored(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module and name that store a tensor: the module itself, or the tensor's parametrisation."""
    if parametrize.is_parametrized(module, name):
        return module.parametrizations[name], "original"  # type: ignore[index, return-value]  # a ModuleDict
    return module, name
