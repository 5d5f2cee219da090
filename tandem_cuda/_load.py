"""Import the compiled library, or raise an error that says how to fix it.

It is two files: libtandem_cuda.so with the operators, which every Python shares, and the module ``_C`` of each Python,
which loads that file from its own folder.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import torch  # must come before the library, which resolves torch's symbols in the process


def load_library() -> ModuleType:
    """Import ``tandem_cuda._C``, which registers the operators in ``torch.ops.tandem_cuda``.

    Raises:
        ImportError: the library was not built for this Python, is incomplete, or does not load under this torch. The
            message says which, and what to do.
    """
    try:
        return importlib.import_module("tandem_cuda._C")
    except ImportError as error:
        raise ImportError(_explain(error), name="tandem_cuda._C", path=error.path) from error


def _explain(error: ImportError) -> str:
    package = Path(__file__).resolve().parent
    if isinstance(error, ModuleNotFoundError) and error.name == "tandem_cuda._C":
        others = sorted(path.name for path in package.glob("_C.*.so"))
        found = f"found {', '.join(others)}, built for another Python" if others else "it was never built"
        in_tree = (package.parent / "CMakeLists.txt").exists()
        where = f"in the source tree {package.parent}" if in_tree else f"in {package}"
        return f"tandem_cuda: no compiled library for this Python {where}: {found}. {_repair(package)}"
    if not (package / "libtandem_cuda.so").exists():
        return (
            f"tandem_cuda: the compiled library in {package} is incomplete: there is no libtandem_cuda.so with the "
            f"operators. {_repair(package)}"
        )
    if re.search("of version|tandem_cuda_interface", str(error)):  # the function that says the version
        return f"tandem_cuda: the files of the compiled library do not fit together: {error}. {_repair(package)}"
    message = f"tandem_cuda: the compiled library does not load under torch {torch.__version__}: {error}."
    if "undefined symbol" in str(error):
        message += (
            " It needs torch >= 2.11. With torch 2.11 or newer installed, rebuild the library by running this in the "
            "source tree: pip install --force-reinstall --no-deps --no-build-isolation ."
        )
    return message


def _repair(package: Path) -> str:
    if (package.parent / "CMakeLists.txt").exists():
        return "Build it by running this command there: pip install -e . --no-build-isolation"
    return "Reinstall tandem_cuda: pip install --force-reinstall --no-deps tandem_cuda"
