"""Exchange with other simulators through NIR, the Neuromorphic Intermediate Representation.

Needs ``pip install tandem_cuda[nir]``. NIR (Pedersen et al., "Neuromorphic intermediate representation", Nature
Communications 2024, doi:10.1038/s41467-024-52259-9) describes neurons in continuous time. :func:`to_nir` and
docs/exchange.md explain how that maps to time steps.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .authors import from_authors

if TYPE_CHECKING:
    from .nir_export import to_nir
    from .nir_import import from_nir

__all__ = ["from_authors", "from_nir", "to_nir"]


def __getattr__(name: str) -> Any:
    """Import NIR only on demand: it is slow to import, and checkpoints do not need it."""
    if name not in ("from_nir", "to_nir"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(".nir_export" if name == "to_nir" else ".nir_import", __name__)
    return getattr(module, name)
