"""Weights that are computed from parameters, once a call: weight norm, merged branches, low-rank updates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .hooks import compute_weight


class Computed(nn.ModuleDict):
    """Modules without inputs that compute tensors of a layer, by the names of the tensors.

    A layer that has one as ``computed`` finds ``weight`` and ``bias`` there if it does not hold them itself.
    """

    _values: dict[str, Tensor] | None = None

    def tensor(self, name: str) -> Tensor:
        """Return a tensor: computed now, or once within :meth:`cached`."""
        values = self._values
        if values is None:
            return self[name]()
        if name not in values:
            values[name] = self[name]()
        return values[name]

    @contextmanager
    def cached(self) -> Iterator[None]:
        """Compute each tensor at most once."""
        before, self._values = self._values, {}
        try:
            yield
        finally:
            self._values = before

    @classmethod
    def of(cls, layer: Any, name: str, module: nn.Module) -> None:
        """Let a layer compute a tensor by a module."""
        if "computed" not in layer._modules:
            layer.add_module("computed", cls())
        layer._modules["computed"][name] = module

    @classmethod
    def in_(cls, layer: nn.Module, name: str) -> nn.Module | None:
        """Return the module that computes a tensor of a layer; None if nothing does."""
        computed = layer._modules.get("computed")
        return computed[name] if isinstance(computed, cls) and name in computed else None


class OwnTensor(nn.Module):
    """A tensor that another layer computes when it is asked for it, by parametrizations or by hooks of torch.

    Args:
        owner: the layer.
        name: the name of the tensor.
    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        super().__init__()
        self.owner, self.name = owner, name

    def forward(self) -> Tensor:
        compute_weight(self.owner)
        tensor: Tensor = getattr(self.owner, self.name)
        return tensor
