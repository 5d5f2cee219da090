"""Constants of an ANN: what its forward computes from buffers and numbers alone, and layers that hold them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from .nodes import leading_to, owner_of


def is_constant(node: fx.Node) -> bool:
    """Whether a node does not depend on the network's input."""
    return all(before.op != "placeholder" for before in leading_to([node]))


def constant_of(node: fx.Node, ann: nn.Module) -> Tensor | None:
    """Compute a constant of an ANN, in double precision on the CPU.

    Returns None for what depends on the input or on parameters that are trained: the spiking twin would not share them.
    """
    needed = leading_to([node])
    read = [operator.attrgetter(str(each.target))(ann) for each in needed if each.op == "get_attr"]
    if not is_constant(node) or any(isinstance(x, nn.Parameter) and x.requires_grad for x in read):
        return None
    run = fx.Interpreter(ann, graph=node.graph)
    with torch.no_grad():
        for each in node.graph.nodes:
            if each in needed:
                run.env[each] = run.run_node(each)
    return torch.as_tensor(run.env[node]).detach().to("cpu", torch.float64)


def names_of(node: fx.Node) -> set[str]:
    """Return the names of the ANN's tensors from which a constant is computed."""
    names = {str(each.target) for each in leading_to([node]) if each.op == "get_attr"}
    return {name for name in names if not name.startswith("_tensor_constant")}


def constant_layer(kind: type[Any], weight: Tensor, bias: Tensor | None = None, **settings: Any) -> nn.Module:
    """Make a layer of torch with constants, as buffers, in place of parameters."""
    sizes: tuple[Any, ...] = (weight.shape[1], weight.shape[0])
    if kind is not nn.Linear:
        sizes = (weight.shape[1] * settings.get("groups", 1), weight.shape[0], tuple(weight.shape[2:]))
    layer: nn.Module = kind(*sizes, bias=False, device="meta", **settings)
    for name, x in (("weight", weight), ("bias", bias)):
        layer._parameters.pop(name)
        layer.register_buffer(name, x, persistent=False)
    return layer


def of_channels(x: Tensor, channels: int | None, dims: int | None, features: bool) -> Tensor | None:
    """Return constants that broadcast to values as one number, or as one for each channel; None for other constants.

    Args:
        x: the constants.
        channels: the number of channels of the values.
        dims: the number of dimensions of the values; None if it is not known.
        features: whether channels are along the last dimension.
    """
    if x.numel() == 1:
        return x.reshape(())
    rank = dims or (4 if x.dim() in (3, 4) else None)
    if rank is None or x.dim() > rank or channels is None:
        return None
    shape = [1] * rank
    shape[-1 if features else 1] = channels
    given = [1] * (rank - x.dim()) + list(x.shape)
    return x.reshape(-1) if given == shape else None


class Snapshot:
    """The constants of an ANN as they were, by name."""

    def __init__(self, ann: nn.Module, names: tuple[str, ...]) -> None:
        held = {name: _held(ann, name) for name in names}
        self.values = {name: x.detach().clone() for name, x in held.items()}
        self.seen = {name: (x, _writes(x)) for name, x in held.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "seen": {}}

    def changes(self, ann: nn.Module) -> list[str]:
        """Return the names of the constants whose values are others now. Values are read only after a write."""
        changed = []
        for name, before in self.values.items():
            now = _held(ann, name)
            version = _writes(now)
            seen, number = self.seen.get(name, (None, None))
            if seen is now and version is not None and number == version:
                continue
            if now.shape == before.shape and torch.equal(now.detach(), before.to(now)):
                self.seen[name] = now, version
            else:
                changed.append(name)
        return changed


def _writes(x: Tensor) -> int | None:
    """Return how many times a tensor has been written to; None for tensors of inference mode, which do not count."""
    return None if x.is_inference() else x._version


def _held(ann: nn.Module, name: str) -> Tensor:
    x: Tensor = getattr(*owner_of(ann, name))
    return x
