"""Factors and offsets that are parameters of the ANN: neurons that share them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from .constants import of_channels
from .nodes import parametrized
from .values import SPIKES, Branch, Current, shape_of


class Spread(nn.Module):
    """A parametrization: one number, or one for each channel, as weights of this shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *[1] * (len(self.shape) - 1)).expand(self.shape)


def multiplied(call: Any) -> Current | None:
    """Multiply images by a parameter; None if the call does something else."""
    if (found := _parameter(call)) is None:
        return None
    factor, _, channels = found
    return Current([Branch(call.swapped().spikes(), call._name(), _layer(channels, factor))])


def shifted(call: Any) -> Current | None:
    """Add a parameter to images that another one multiplies; None if the call does something else."""
    if (found := _parameter(call)) is None:
        return None
    offset, x, channels = found
    if not isinstance(x, Current) or len(x.branches) != 1 or x.deferred or x.branches[0].norm is not None:
        return None
    maps = dict(parametrized(x.branches[0].layer))
    if "weight" not in maps or "bias" in maps or not isinstance(maps["weight"][0], Spread):
        return None
    layer = _layer(channels, maps["weight"].original, offset)
    return Current([replace(x.branches[0], name=call._name(), layer=layer)])


def _parameter(call: Any) -> tuple[nn.Parameter, Any, int] | None:
    """Return an argument that is a parameter of channels, the images that it meets, and their number of channels."""
    for place in (0, 1) if len(call.node.args) == 2 else ():
        found, node = call.parameter(place, ""), call.node.args[1 - place]
        other = call._writer.value(node) if isinstance(node, fx.Node) else None
        if found is None or not isinstance(other, SPIKES):
            continue
        shape = shape_of(other)
        if shape.channels is None or shape.dims not in (4, None) or other.features:
            return None
        fits = of_channels(found.detach(), shape.channels, 4, False) is not None
        return (found, other, shape.channels) if fits else None
    return None


def _layer(channels: int, factor: nn.Parameter, offset: nn.Parameter | None = None) -> nn.Conv2d:
    layer = nn.Conv2d(channels, channels, 1, groups=channels, bias=False, device="meta")
    for name, parameter, shape in (("weight", factor, (channels, 1, 1, 1)), ("bias", offset, (channels,))):
        if parameter is not None:
            setattr(layer, name, parameter)
            parametrize.register_parametrization(layer, name, Spread(*shape), unsafe=True)
    return layer
