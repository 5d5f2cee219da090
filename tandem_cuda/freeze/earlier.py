"""The names that pickles of version 0.2 have for frozen layers, in modules that are gone."""

import sys

from ..nn.spiking import FrozenSpiking

FrozenAdd = FrozenCat = FrozenDecode = FrozenEncode = FrozenGate = FrozenPool = FrozenRearrange = FrozenTandem = (
    FrozenSpiking
)


def _pack_again(module: FrozenSpiking, incompatible_keys: object) -> None:
    """A hook in such pickles. It is removed when they are loaded, since layers pack their weights themselves."""


for name in ("add", "encode", "packed", "pool", "rearrange", "tandem"):
    sys.modules[f"{__package__}.{name}"] = sys.modules[__name__]
