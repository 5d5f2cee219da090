"""Frozen layers that keep weights packed."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from .. import ops
from ..nn.tandem import TandemLayer
from ..nn.weight_cache import Kernel
from .forms import FrozenLayer


class Packed(FrozenLayer):
    """A frozen layer that keeps weights packed for the kernels of their device.

    The packed weights are not part of files, pickles and state dicts. What replaces the weights packs the new ones, and
    so does a call that finds that they have changed in place, by autograd's versions. If a call gets other weights
    (``torch.func.functional_call``), the operators pack those.
    """

    @abstractmethod
    def packed_layers(self) -> dict[str, TandemLayer]:
        """Return the layers whose weights are packed, by the names of the buffers that hold them."""

    def keep_packed(self) -> None:
        """Pack the weights, and again whenever they are replaced."""
        self.pack()
        self.register_load_state_dict_post_hook(_pack_again)  # type: ignore[no-untyped-call]  # torch's

    def pack(self) -> None:
        """Pack the weights for the kernels of their device."""
        packed_from = {}
        for name, layer in self.packed_layers().items():
            packed_from[name] = layer.weight, None if layer.weight.is_inference() else layer.weight._version
            weight = layer.weights.floats()
            # FrozenNetwork reports weights that are not finite: its message names the layer.
            good = weight.is_meta or bool(weight.isfinite().all())
            packed = ops.pack_weight(weight, getattr(layer, "groups", 1)) if good else None
            self.register_buffer(name, packed, persistent=False)
        self._packed_from = packed_from

    def packed_kernel(self, name: str, layer: TandemLayer) -> Kernel:
        """Return a layer's weights with ``packed``, if it is theirs."""
        weight, version = self._packed_from.get(name, (None, None))
        if layer.weight is not weight or version is None:  # None: the tensor has no version
            return layer.weights.kernel()
        if weight._version != version:
            self.pack()
        return layer.weights.kernel()._replace(packed=getattr(self, name))

    def __getstate__(self) -> dict[str, Any]:
        buffers = {**self._buffers, **dict.fromkeys(self.packed_layers())}
        return {**self.__dict__, "_buffers": buffers, "_packed_from": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        self.pack()  # in the order of the device, which may be another one than that of the pickled network

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        converted = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        self.pack()
        return converted


def _pack_again(module: Packed, incompatible_keys: Any) -> None:
    module.pack()
