"""LeakyReLU and PReLU: neurons for both signs, of which the negative ones are weighted by the slope below zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .advice import COUNTED, TWO_PHASE
from .values import Branch, Current, Slope
from .weight_rules import Unconvertible
from .writer import Writer


def leaking(call: Any, writer: Writer, slope: Slope) -> Any:
    """Write the neurons of a call of LeakyReLU or PReLU.

    Currents become these neurons themselves, unless pooling or another step comes first. All else that may be negative
    gets neurons of its own.

    Raises:
        Unconvertible: a slope is negative, but the neurons do not wait for all time steps; or the number of channels is
            not known.
    """
    x, slopes = call.input, torch.as_tensor(slope)
    if not isinstance(slope, nn.Parameter) and (x.is_positive if isinstance(x, Current) else not x.signed):
        return writer.write_neurons(call.node, x)
    if bool((slopes < 0).any()) and not writer.options.neuron.two_phase:
        raise Unconvertible(TWO_PHASE)
    of_channels = slopes.numel() > 1
    rows = of_channels and x.features and x.dims not in (2, None)  # channels are dimension 1, features are the last
    if rows or not isinstance(x, Current) or x.deferred:
        train = writer.by_channel(call.spikes()) if rows else call.spikes()
        train = replace(train, channels=slopes.numel()) if of_channels else train
        if train.channels is None:
            raise Unconvertible(COUNTED)
        name = str(call.node.target) if call.module is not None else call.node.name
        x = Current([Branch(train, name)])
    return writer.write_neurons(call.node, x, signed=True, slope=slope)
