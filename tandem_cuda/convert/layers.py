"""The tandem layers that the branches of a pre-activation become."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.utils import parametrize

from ..neuron import Neuron
from ..nn import TandemElementwise, TandemInterpolate
from ..nn.wiring import Wiring
from .advice import COUNTED
from .nodes import owner_of, parametrized
from .values import Branch, Slope
from .weight_rules import Unconvertible, weights_of


def layer_of(
    branch: Branch, neuron: Neuron, signed: bool, engine: str, like: Tensor, slope: Slope | None = None
) -> Any:
    """Make the tandem layer of a branch, which holds the ANN's parameters and batch norm.

    Args:
        branch: what the layer computes.
        neuron: the neuron model.
        signed: whether the layer has neurons for both signs.
        engine: as for the layer.
        like: a tensor of the dtype and on the device of constants.
        slope: with ``signed``, the slope of the activation below zero.
    """
    make = _elementwise if branch.layer is None else _weighted
    layer = make(branch, signed, {"device": "meta", "neuron": neuron, "engine": engine}, like)
    layer.norm = branch.norm
    if slope is not None:
        layer.set_slope(slope, like)
    return layer


def described(branch: Branch) -> list[str]:
    """Return in words what a branch without a weight layer computes; nothing for spikes themselves."""
    factor, offset = branch.factor, branch.offset
    words = [] if branch.resize is None else [f"{branch.resize.mode} interpolation"]
    if isinstance(factor, Tensor) or isinstance(offset, Tensor):
        return [*words, "constants of channels"]
    if branch.layer is not None or (factor, offset) == (1, 0):
        return words
    return [*words, f"{factor:g} * spikes" + (f" {offset:+g}" if offset else "")]


def _elementwise(branch: Branch, signed: bool, options: dict[str, Any], like: Tensor) -> Any:
    channels = branch.channels
    if channels is None:
        raise Unconvertible(COUNTED)
    ends = channels * (1 + branch.train.signed), channels * (1 + signed)
    layer: Any
    if branch.resize is None:
        layer = TandemElementwise(*ends, channels, **options)
        layer.of_features = branch.features
    else:
        how = branch.resize
        layer = TandemInterpolate(*ends, channels, how.size, how.scale_factor, how.mode, how.align_corners, **options)
    layer.maps(branch.factor, branch.offset, like)
    return layer


def _weighted(branch: Branch, signed: bool, options: dict[str, Any], like: Tensor) -> Any:
    module: Any = branch.layer
    rule, train = weights_of(module), branch.train
    arguments = rule.arguments(module)
    inputs, outputs = ("in_features", "out_features")
    if inputs not in arguments:
        inputs, outputs = ("in_channels", "out_channels")
    arguments[inputs] *= train.windows * (1 + train.signed)
    arguments[outputs] *= 1 + signed
    layer: Any = rule.tandem(**arguments, bias=False, **options)
    layer.wiring = Wiring(train.windows, train.signed, signed)
    if "weight" in module._buffers:
        layer.hold_constants(module.weight, module.bias, like)
        return layer
    for name in ("weight", "bias"):
        owner, key = owner_of(module, name)
        setattr(layer, name, getattr(owner, key))
    for name, parametrizations in parametrized(module):
        for parametrization in parametrizations:
            parametrize.register_parametrization(layer, name, parametrization, unsafe=True)
    return layer
