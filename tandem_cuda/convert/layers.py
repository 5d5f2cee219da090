"""The layers of the spiking twin: tandem layers for the branches of a pre-activation, poolings, dropout, batch norm."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neuron import Neuron
from ..nn import (
    SpikingAdaptiveAvgPool2d,
    SpikingAdaptiveAvgPool3d,
    SpikingAvgPool2d,
    SpikingAvgPool3d,
    TandemElementwise,
    TandemInterpolate,
)
from ..nn.batch_norm import NORMS
from ..nn.tandem import drop_ins
from ..nn.wiring import Wiring
from .values import Branch, Options, Slope
from .weights import WeightCalls, bound_arguments, share

aten = torch.ops.aten


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
    module, train = branch.layer, branch.train
    kind = next(base for base in drop_ins() if isinstance(module, base))
    names = inspect.signature(kind).parameters
    arguments = {name: getattr(module, name) for name in names if name not in ("bias", "device", "dtype")}
    inputs, outputs = ("in_features", "out_features")
    if inputs not in arguments:
        inputs, outputs = ("in_channels", "out_channels")
    arguments[inputs] *= train.windows * (1 + train.signed)
    arguments[outputs] *= 1 + signed
    layer: Any = drop_ins()[kind](**arguments, bias=False, **options)
    layer.wiring = Wiring(train.windows, train.signed, signed)
    share(layer, module)
    return layer


def norm_of(calls: WeightCalls, node: fx.Node) -> Any:
    """Return the ANN's module of a batch norm, or one that holds its tensors; None without running statistics."""
    given = bound_arguments(node)
    mean, ann = given["running_mean"], calls.graph.ann
    if not isinstance(mean, fx.Node) or mean.op != "get_attr" or given["training"]:
        return None
    path = str(mean.target).rpartition(".")[0]
    owner: Any = ann.get_submodule(path)
    names = {name: given[name] for name in ("weight", "bias", "running_mean", "running_var")}
    if not all(x is None or x.op == "get_attr" for x in names.values()):
        return None
    tensors: dict[str, Any] = {
        name: None if x is None else calls.graph.tensor(str(x.target)) for name, x in names.items()
    }
    kind = _NORMS.get(len(node.meta["val"].shape), nn.BatchNorm2d)
    held = all(getattr(owner, name, None) is x for name, x in tensors.items())
    if held and isinstance(owner, (*NORMS, nn.SyncBatchNorm)) and owner.eps == given["eps"]:
        base = type(owner)
        if base.forward in (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward):
            return owner
    if mean not in calls.norms:
        norm: Any = kind(len(tensors["running_mean"]), given["eps"], given["momentum"], device="meta")
        for name, x in tensors.items():
            norm._parameters.pop(name, None)
            norm._buffers.pop(name, None)
            if x is None or isinstance(x, nn.Parameter):
                norm.register_parameter(name, x)
            else:
                norm.register_buffer(name, x)
        norm.affine = tensors["weight"] is not None
        norm._buffers["num_batches_tracked"] = getattr(owner, "num_batches_tracked", None)
        calls.norms[mean] = norm
    return calls.norms[mean]


_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


_DROPOUTS = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}


def dropout_of(node: fx.Node) -> Any:
    """Return the module equivalent to a dropout that follows the ANN's mode; None for all else."""
    if node.target not in (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default):
        return None
    given = bound_arguments(node)
    if given["train"]:
        return None  # it drops in eval mode, too
    if node.target is aten.alpha_dropout.default:
        return nn.AlphaDropout(given["p"])
    if node.target is aten.dropout.default:
        return nn.Dropout(given["p"])
    kind = _DROPOUTS.get(node.meta["val"].dim())
    return None if kind is None else kind(given["p"])


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
    kind: Any = _POOLS[type(pool)]
    if hasattr(pool, "output_size"):
        return kind(pool.output_size, **neurons)
    windows = pool.kernel_size, pool.stride, pool.padding
    spiking = kind(*windows, pool.ceil_mode, pool.count_include_pad, pool.divisor_override, **neurons)
    spiking.threshold = spiking.amplitude = max(spiking.largest, 1.0)
    return spiking
