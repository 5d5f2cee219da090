"""Load checkpoints of the networks that the paper's authors published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WEIGHTS = ("conv1d", "conv2d", "linear")
_NORMS = ("bn1d", "bn2d")


def from_authors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the entries of a checkpoint from https://github.com/deepspike/tandem_learning to names of tandem layers.

    The authors' layers hold their weights in a submodule conv1d, conv2d or linear, and their batch norm in bn1d or
    bn2d. A tandem layer is itself the convolution or linear layer, and its batch norm is ``norm``::

        conv1.conv2d.weight -> conv1.weight        fc5.linear.bias       -> fc5.bias
        conv1.bn2d.weight   -> conv1.norm.weight   fc5.bn1d.running_mean -> fc5.norm.running_mean

    Entries without such a submodule in their name, such as fc6.weight of a read-out, keep their name. Load the result
    into a network whose layers have the authors' names: nn.Sequential(OrderedDict(encode=..., conv1=TandemConv2d(...),
    ...)). Their batch norms have eps = 1e-4 and momentum = 0.9: set ``norm.eps`` and ``norm.momentum``. Their code
    omits eps when it folds batch norm into the spiking twin; tandem layers include it.

    Args:
        state_dict: the state_dict of a published network. The prefix "module." of nn.DataParallel is dropped.

    Returns:
        The same values under the new names.

    Raises:
        TypeError: ``state_dict`` is not a mapping whose keys are names.
        ValueError: two entries would get the same name.

    Examples:
        >>> list(from_authors({"module.conv1.conv2d.weight": torch.zeros(1), "fc6.weight": torch.zeros(1)}))
        ['conv1.weight', 'fc6.weight']
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"from_authors: state_dict must be a mapping, got {type(state_dict).__name__}")
    renamed: dict[str, Any] = {}
    for name, value in state_dict.items():
        if not isinstance(name, str):
            raise TypeError(f"from_authors: keys of state_dict must be strings, got {name!r}")
        parts = [
            "norm" if part in _NORMS else part
            for part in name.removeprefix("module.").split(".")
            if part not in _WEIGHTS
        ]
        new = ".".join(parts)
        if new in renamed:
            raise ValueError(f"from_authors: state_dict must have only one entry for {new}, got a second one, {name}")
        renamed[new] = value
    return renamed
