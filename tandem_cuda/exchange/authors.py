"""Checkpoints of the networks that the paper's authors published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WEIGHTS = ("conv1d", "conv2d", "linear")
_NORMS = ("bn1d", "bn2d")


def from_authors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the entries of a checkpoint from https://github.com/deepspike/tandem_learning to those of tandem layers.

    There a layer holds its weights in a submodule conv1d, conv2d or linear and its batch norm in bn1d or bn2d; here it
    is itself the convolution or linear layer and holds ``norm``::

        conv1.conv2d.weight -> conv1.weight        fc5.linear.bias       -> fc5.bias
        conv1.bn2d.weight   -> conv1.norm.weight   fc5.bn1d.running_mean -> fc5.norm.running_mean

    What has no such submodule in its name (a read-out such as fc6.weight) keeps its name. Load the result into a
    network whose layers have the names of theirs, nn.Sequential(OrderedDict(encode=..., conv1=TandemConv2d(...), ...)).
    Their batch norms have eps = 1e-4 and momentum = 0.9: set ``norm.eps`` and ``norm.momentum``. They leave eps out
    where they fold the norm into the spiking twin, which tandem layers do not.

    Args:
        state_dict: of a network as published; "module." in front, of nn.DataParallel, is dropped.

    Returns:
        The same values under other names.

    Raises:
        TypeError: ``state_dict`` is no mapping of names.
        ValueError: two entries would get the same name.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"from_authors: state_dict must be a mapping, got {type(state_dict).__name__}")
    renamed: dict[str, Any] = {}
    for name, value in state_dict.items():
        if not isinstance(name, str):
            raise TypeError(f"from_authors: state_dict must have names for keys, got {name!r}")
        parts = [
            "norm" if part in _NORMS else part
            for part in name.removeprefix("module.").split(".")
            if part not in _WEIGHTS
        ]
        new = ".".join(parts)
        if new in renamed:
            raise ValueError(f"from_authors: state_dict must have one entry for {new}, got another in {name}")
        renamed[new] = value
    return renamed
