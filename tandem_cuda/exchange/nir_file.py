"""The nir package, and NIR files, which may be damaged."""

from __future__ import annotations

import io
import math
import os
import re
import struct
from pathlib import Path
from typing import Any

try:
    import h5py
    import nir

    _version = str(getattr(nir, "__version__", ""))
    if _version and [int(number) for number in re.findall(r"\d+", _version)[:3]] < [1, 0, 7]:
        raise ImportError(f"got nir {_version}, whose graphs have an older format")
except ImportError as error:
    raise ImportError(f"tandem_cuda.exchange needs nir >= 1.0.7 ({error}): pip install tandem_cuda[nir]") from error

__all__ = ["ENCODINGS", "NO_SUCH_LAYER", "RESET", "check_dt", "nir", "read", "unsupported", "write"]

ENCODINGS = ("constant", "impulse", "spikes")
RESET = "subtract"
NO_SUCH_LAYER = "this package has no such layer"
_SUPPORTED = {
    "to_nir": "Encode, tandem layers of features, lines and images, TandemAdd, average pooling, flattening, dropout, "
    "Decode, and linear layers after it",
    "from_nir": "Conv1d, Conv2d, Linear, Affine, AvgPool2d or SumPool2d followed by IF or LIF, Flatten, and weights "
    "after the last neurons",
}
_HEAP = b"GCOL\x01\0\0\0"


def check_dt(caller: str, dt: Any) -> None:
    """Raise a TypeError or ValueError unless dt can be the duration of a time step."""
    if isinstance(dt, bool) or not isinstance(dt, (int, float)):
        raise TypeError(f"{caller}: dt must be a number, got {type(dt).__name__}")
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"{caller}: dt must be positive and finite, got {dt}")


def unsupported(caller: str, problems: list[str]) -> ValueError:
    """Make the error that lists all parts of a network or graph that cannot be exchanged."""
    argument = {"to_nir": "model", "from_nir": "source"}[caller]
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ValueError(f"{caller}: {argument} must be made of {_SUPPORTED[caller]}, got:\n{lines}")


def write(graph: nir.NIRGraph, path: str) -> None:
    """Write a graph to a file; :func:`to_nir` documents the errors."""
    contents = io.BytesIO()  # libhdf5's own errors do not include the system's message
    nir.write(contents, graph)
    try:
        Path(path).write_bytes(contents.getbuffer())
    except OSError as error:
        raise OSError(error.errno, f"to_nir: path cannot be written: {error.strerror}", path) from error


def read(source: Any) -> nir.NIRGraph:
    """Return a graph, read from a file if ``source`` is a path; :func:`from_nir` documents the errors."""
    if isinstance(source, nir.NIRGraph):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"from_nir: source must be a nir.NIRGraph or a path, got {type(source).__name__}")
    path = os.fspath(source)
    if not Path(path).exists():
        raise FileNotFoundError(f"from_nir: source must be an existing file, got {path}")
    contents = Path(path).read_bytes()
    unknown: list[str] = []
    try:
        _check_heaps(contents)
        _check_datasets(contents)
        with h5py.File(io.BytesIO(contents), "r") as file:
            data = nir.serialization.hdf2dict(file["node"])
        for name, fields in data["nodes"].items():
            if isinstance(kind := fields["type"], str) and not hasattr(nir, kind):
                unknown.append(f"{name} ({kind}): {NO_SUCH_LAYER}")
        # nir's type check assumes square kernels and ignores groups.
        graph = None if unknown else nir.dict2NIRNode({**data, "type_check": False})
    except Exception as error:  # nir and libhdf5 may raise anything for a file that is damaged or of another kind
        raise ValueError(f"from_nir: source must be a NIR file, got {path}: {error!r}") from error
    if unknown:
        raise unsupported("from_nir", unknown)
    if not isinstance(graph, nir.NIRGraph):
        raise ValueError(f"from_nir: source must hold a NIRGraph, got a {type(graph).__name__}")
    return graph


def _check_datasets(contents: bytes) -> None:
    """Raise a ValueError for a dataset whose description is damaged.

    HDF5 fills in missing data, which for a damaged size can be terabytes: no dataset holds more than its file, even
    compressed (deflate: at most 1,032:1). Reading arrays of any length other than strings can crash it.
    """
    most = 1032 * len(contents)

    def check(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            if item.nbytes > most:
                raise ValueError(f"{name} claims {item.nbytes} bytes in a file of {len(contents)}")
            if item.dtype.hasobject and h5py.check_string_dtype(item.dtype) is None:
                raise ValueError(f"{name} must hold numbers or strings, got objects")

    with h5py.File(io.BytesIO(contents), "r") as file:
        file.visititems(check)


def _check_heaps(contents: bytes) -> None:
    """Raise a ValueError if free space in a heap of strings has size 0, for which HDF5 would loop forever.

    A heap is "GCOL", a version byte (1), 3 zeros, its size (8 bytes), and objects. An object is an index and a
    reference count (2 bytes each), 4 zeros, a size (8 bytes), and that many bytes, padded to a multiple of 8. Free
    space has index 0.
    """
    at = contents.find(_HEAP)
    while at >= 0:
        (size,) = struct.unpack_from("<Q", contents, at + 8) if at + 16 <= len(contents) else (0,)
        end, here = min(at + size, len(contents)), at + 16
        while here + 16 <= end:
            index, _, _, room = struct.unpack_from("<HHIQ", contents, here)
            if index == 0 and room == 0:
                raise ValueError(f"a heap of strings is damaged at byte {here}")
            here += -(-room // 8) * 8 + (16 if index else 0)
        at = contents.find(_HEAP, at + 1)
