"""Checks of what a file says about a frozen layer: its settings, in JSON types, and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..neuron import Neuron
from ..ops import LARGEST, checks

Settings = dict[str, Any]
"""The description of a frozen layer without its tensors, in JSON types."""
Tensors = Mapping[str, Tensor]
Check = Callable[[str, str, Any], None]
"""Raises a ValueError, given the kind of layer and the name of a setting, unless its value is right."""


def check_settings(kind: str, settings: Settings, names: set[str]) -> None:
    """Raise a ValueError unless exactly these settings are given."""
    if settings.keys() != names:
        raise ValueError(f"{kind}: settings must be {sorted(names)}, got {sorted(settings)}")


def check_no_bool(kind: str, settings: Any) -> None:
    """Raise a ValueError if a setting is true or false, which Python takes for ints."""
    if any(isinstance(value, bool) for value in tree_leaves(settings)):
        raise ValueError(f"{kind}: settings must not be true or false, got {settings}")


def with_tuples(value: Any) -> Any:
    """Return a setting, or a dict of settings, with tuples for lists."""
    if isinstance(value, dict):
        return {name: with_tuples(x) for name, x in value.items()}
    return tuple(with_tuples(x) for x in value) if isinstance(value, (list, tuple)) else value


# -- one setting


def frozen_numbers(kind: str, name: str, value: Any, least: int, most: int = 2**30, *, axes: int = 1) -> None:
    """Raise a ValueError unless a setting is an int from least to most, or perhaps one for each of several axes."""
    numbers = value if axes > 1 and isinstance(value, (list, tuple)) and len(value) == axes else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            what = {1: "an int", 2: "an int or a pair of ints", 3: "an int or three ints"}[axes]
            raise ValueError(f"{kind}: setting {name} must be {what} from {least} to {most}, got {value!r}")


def frozen_scale(kind: str, name: str, value: Any) -> float:
    """Return a setting that scales membrane potentials; raise a ValueError if products may leave float32's range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-30 <= abs(value) <= 1e30:
        raise ValueError(f"{kind}: setting {name} must be a number of magnitude 1e-30 to 1e30, got {value!r}")
    return float(value)


def check_scales(kind: str, neuron: Neuron) -> None:
    """Raise a ValueError if the neurons' potentials may leave the range of float32."""
    for name, value in neuron.scales().items():
        frozen_scale(kind, name, value)


def whole(least: int, axes: int = 1) -> Check:
    """An int of at least ``least``; with several axes perhaps one for each."""
    return lambda kind, name, value: frozen_numbers(kind, name, value, least, axes=axes)


def whole_or_none(kind: str, name: str, value: Any) -> None:
    """An int of at least 1, or None."""
    if value is not None:
        frozen_numbers(kind, name, value, 1)


def per_axis(axes: int, least: int, names: tuple[str, ...] = ()) -> Check:
    """A list of one int for each axis, each at least ``least``; or one of these names."""

    def check(kind: str, name: str, value: Any) -> None:
        if isinstance(value, str) and value in names:
            return
        if not isinstance(value, list) or len(value) != axes:
            raise ValueError(f"{kind}: setting {name} must be a list of {axes} ints, got {value!r}")
        for number in value:
            frozen_numbers(kind, name, number, least)

    return check


def one_of(*values: str) -> Check:
    """One of these strings."""

    def check(kind: str, name: str, value: Any) -> None:
        if value not in values:
            raise ValueError(f"{kind}: setting {name} must be one of {', '.join(values)}, got {value!r}")

    return check


def flag(kind: str, name: str, value: Any) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{kind}: setting {name} must be true or false, got {value!r}")


def any_value(kind: str, name: str, value: Any) -> None:
    """Anything: the layer's constructor checks it."""


# -- tensors


def check_tensors(
    kind: str,
    tensors: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    optional: tuple[str, ...] = (),
    integers: tuple[str, ...] = (),
) -> None:
    """Check that names and shapes are right, and that all tensors are float32 or all are float64.

    Tensors in ``integers`` may be int8 or int16, if all other tensors are float32.
    """
    missing, unknown = shapes.keys() - tensors.keys() - {*optional}, tensors.keys() - shapes.keys()
    if missing or unknown:
        raise ValueError(f"{kind}: tensors must be {sorted(shapes)}, got {sorted(tensors)}")
    dtypes = set()
    for name, tensor in tensors.items():
        is_integer = name in integers and tensor.dtype in checks.INTEGERS
        if name in integers and tensor.dtype not in (*checks.FLOATING, *checks.INTEGERS):
            raise TypeError(f"{kind}: {name} must be float32, float64, int8 or int16, got {tensor.dtype}")
        if not is_integer:
            checks.check_floating(kind, name, tensor)
        checks.check_shape(kind, name, tensor, shapes[name])
        dtypes.add(torch.float32 if is_integer else tensor.dtype)
    if len(dtypes) > 1:
        raise TypeError(f"{kind}: tensors must be of one dtype, got {[str(x.dtype) for x in tensors.values()]}")


def check_integers(kind: str, name: str, tensors: Tensors, scale: str) -> None:
    """Check the range of integer weights, and that they have a scale.

    The scale contains the gain of batch norm, so it may be zero or negative. int8 may have all its values, also -128,
    which WeightQuantiser does not use.
    """
    weight = tensors[name]
    if weight.dtype not in checks.INTEGERS:
        return
    if scale not in tensors:
        raise ValueError(f"{kind}: tensors must contain {scale} with {weight.dtype} weights")
    if weight.dtype == torch.int8:
        return
    most, values = LARGEST[16], weight.to(torch.int32)
    beyond = values[values.abs() > most]
    if len(beyond):
        raise ValueError(f"{kind}: {name} must be from -{most} to {most} in {weight.dtype}, got {int(beyond[0])}")


def frozen_tensor(tensor: Tensor) -> Tensor:
    """Return a contiguous copy without gradient, so that a loaded network computes exactly as the saved one.

    Never an inference tensor, whose changes nobody counts.
    """
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().clone(memory_format=torch.contiguous_format)
