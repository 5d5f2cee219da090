"""Import of the compiled library, with an error that says what to do where it fails."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import torch  # before the library, which takes torch's symbols from the process


def load_library() -> ModuleType:
    """Import ``tandem_cuda._C``, which registers the operators ``torch.ops.tandem_cuda``.

    Raises:
        ImportError: it was not built for this Python, or does not load under this torch; the message says which.
    """
    try:
        return importlib.import_module("tandem_cuda._C")
    except ImportError as error:
        raise ImportError(_explain(error), name="tandem_cuda._C", path=error.path) from error


def _explain(error: ImportError) -> str:
    package = Path(__file__).resolve().parent
    if isinstance(error, ModuleNotFoundError) and error.name == "tandem_cuda._C":
        others = sorted(path.name for path in package.glob("_C.*.so"))
        found = f"there is {', '.join(others)}, built for another Python" if others else "it was never built"
        if (package.parent / "CMakeLists.txt").exists():
            return (
                f"tandem_cuda: no compiled library for this Python in the source tree {package.parent}: {found}. "
                "To build it, run there: pip install -e . --no-build-isolation"
            )
        return f"tandem_cuda: no compiled library for this Python in {package}: {found}. Install tandem_cuda again."
    message = f"tandem_cuda: the compiled library does not load under torch {torch.__version__}: {error}."
    if "undefined symbol" in str(error):
        message += (
            " It needs torch >= 2.11; with such a torch, build the library again: "
            "pip install --force-reinstall --no-deps --no-build-isolation, from the source tree."
        )
    return message
