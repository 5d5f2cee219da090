"""The settings of frozen weight layers, which define their connections, and the checks of what a file says."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..neuron import Neuron, of_settings
from ..nn.conv import TandemConv1d, TandemConv2d, TandemConvTranspose2d
from ..nn.elementwise import TandemElementwise
from ..nn.linear import TandemLinear
from ..nn.sizes import check_count
from ..nn.tandem import TandemLayer
from ..nn.weight_cache import Kernel
from ..nn.wiring import Wiring
from ..ops import LARGEST
from ..ops.checks import INTEGERS, check_finite
from .forms import Settings, Tensors, check_settings, class_of, frozen_numbers, frozen_scale

LAYERS = (TandemConv1d, TandemConv2d, TandemConvTranspose2d, TandemElementwise, TandemLinear)


def kernel_of(layer: TandemLayer) -> Kernel:
    """Return the weights of a layer. Raise a ValueError if they are rounded and not finite, which rounding may hide."""
    if layer.weights.bits is not None:
        check_finite(class_of(layer).__name__, "weight", layer.weights.stored().detach().cpu())
    return layer.weights.kernel()


def check_integers(kind: str, name: str, tensors: Tensors, scale: str) -> None:
    """Check the range of integer weights, and that they have a scale.

    The scale contains the gain of batch norm, so it may be zero or negative.
    """
    weight = tensors[name]
    if weight.dtype not in INTEGERS:
        return
    if scale not in tensors:
        raise ValueError(f"{kind}: tensors must contain {scale} with {weight.dtype} weights")
    most, values = LARGEST[8 * weight.itemsize], weight.to(torch.int32)
    beyond = values[values.abs() > most]
    if len(beyond):
        raise ValueError(f"{kind}: {name} must be from -{most} to {most} in {weight.dtype}, got {int(beyond[0])}")


def settings_of(layer: TandemLayer) -> Settings:
    """Return the arguments of the layer's constructor, without bias, norm, device and dtype.

    And how many synapses of the frozen layer stand for one of the ANN's, if several do.
    """
    settings = {**layer.arguments(), "neuron": layer.neuron.settings(), "engine": layer.engine}
    if isinstance(layer, TandemElementwise):  # has no synapses of the ANN
        return settings
    number = 1 if layer.wiring is None else layer.wiring.synapses_per_weight
    return settings if number == 1 else {**settings, "multiplicity": number}


def bare(layer_class: type[TandemLayer], settings: Settings) -> TandemLayer:
    """Make a layer from its settings, without bias and norm, on the meta device."""
    arguments: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    neuron = of_settings(layer_class.__name__, arguments.pop("neuron", None))
    multiplicity = arguments.pop("multiplicity", 1)
    layer = layer_class(**arguments, neuron=neuron, bias=False, device="meta")
    layer.wiring = None if multiplicity == 1 else Wiring(in_weight=multiplicity)
    return layer


_COUNTS = {"in_channels": 0, "out_channels": 0, "in_features": 0, "out_features": 0, "groups": 1}
_PER_AXIS = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
"""The minimum of each setting that is an int, and of each that is a list of ints."""


def _check_geometry(layer_class: type[TandemLayer], settings: Settings) -> None:
    """Raise a ValueError unless the settings are exactly the arguments of a layer, each in its range."""
    kind, transposed = layer_class.__name__, layer_class is TandemConvTranspose2d
    names = {"in_features", "out_features"}
    if layer_class is TandemElementwise:
        names = {"in_channels", "out_channels", "groups"}
    elif layer_class is not TandemLinear:
        names = {"in_channels", "out_channels", "groups", "padding_mode", *_PER_AXIS}
        names -= set() if transposed else {"output_padding"}
    shared = {"multiplicity"} & settings.keys()
    check_settings(kind, settings, {*names, *shared, "neuron", "engine"})
    for name in names & _COUNTS.keys():
        frozen_numbers(kind, name, settings[name], _COUNTS[name])
    if shared:
        _check_multiplicity(kind, settings)
    axes = 1 if layer_class is TandemConv1d else 2
    for name in names & _PER_AXIS.keys():
        value = settings[name]
        if name == "padding" and value in ("same", "valid") and not transposed:
            continue
        if not isinstance(value, list) or len(value) != axes:
            raise ValueError(f"{kind}: setting {name} must be a list of {axes} ints, got {value!r}")
        for number in value:
            frozen_numbers(kind, name, number, _PER_AXIS[name])
    if "padding_mode" in names:
        modes = ("zeros",) if transposed else ("zeros", "reflect", "replicate", "circular")
        if settings["padding_mode"] not in modes:
            raise ValueError(
                f"{kind}: setting padding_mode must be one of {', '.join(modes)}, got {settings['padding_mode']!r}"
            )
        check_count("weights of setting kernel_size", [settings["out_channels"], *settings["kernel_size"]])


def _check_multiplicity(kind: str, settings: Settings) -> None:
    number = settings["multiplicity"]
    frozen_numbers(kind, "multiplicity", number, 2)
    of_what = "features" if "in_features" in settings else "channels"
    inputs, outputs = settings[f"in_{of_what}"], settings[f"out_{of_what}"]
    if inputs * outputs % number:
        raise ValueError(f"{kind}: setting multiplicity must divide {inputs} * {outputs} {of_what}, got {number}")


def checked_layer(layer_class: type[TandemLayer], settings: Settings) -> TandemLayer:
    """Make a layer as _bare does, but from unchecked settings of a file."""
    kind = layer_class.__name__
    check_no_bool(kind, settings)
    _check_geometry(layer_class, settings)
    layer = bare(layer_class, settings)
    if json.dumps(settings_of(layer), sort_keys=True) != json.dumps(settings, sort_keys=True):
        raise ValueError(f"{kind}: settings must be {settings_of(layer)}, got {settings}")
    return layer


def check_no_bool(kind: str, settings: Any) -> None:
    """Raise a ValueError if a setting is true or false, which Python takes for ints."""
    if any(isinstance(value, bool) for value in tree_leaves(settings)):
        raise ValueError(f"{kind}: settings must not be true or false, got {settings}")


def format_of(neuron: Neuron) -> int:
    """Return the first version of the file format that has these neurons."""
    return 1 if neuron.settings().keys() == {"threshold", "leak", "amplitude"} else 2


def check_scales(kind: str, neuron: Neuron) -> None:
    """Raise a ValueError if potentials may leave the range of float32."""
    for name, value in neuron.scales().items():
        frozen_scale(kind, name, value)
