"""Exchange with other simulators through NIR, the Neuromorphic Intermediate Representation.

Needs ``pip install tandem_cuda[nir]``. NIR (Pedersen et al., "Neuromorphic intermediate representation", Nature
Communications 2024, doi:10.1038/s41467-024-52259-9) describes neurons in continuous time. :func:`to_nir` and
docs/exchange.md explain how that maps to time steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .authors import from_authors

if TYPE_CHECKING:
    from .nir_export import to_nir
    from .nir_import import from_nir

__all__ = ["from_authors", "from_nir", "to_nir"]


def __getattr__(name: str) -> Any:
    """Import NIR only on demand: it is slow to import, and checkpoints do not need it."""
    if name == "to_nir":
        from .nir_export import to_nir

        return to_nir
    if name == "from_nir":
        from .nir_import import from_nir

        return from_nir
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
