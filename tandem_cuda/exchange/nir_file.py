"""Read and write NIR files, which may be damaged."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

from .nir_extension import graph_of
from .nir_format import h5py, nir

_HEAP = b"GCOL\x01\0\0\0"


def write(graph: nir.NIRGraph, path: str) -> None:
    """Write a graph to a file; :func:`to_nir` documents the errors."""
    contents = io.BytesIO()  # libhdf5's own errors do not include the system's message
    nir.write(contents, graph)
    try:
        Path(path).write_bytes(contents.getbuffer())
    except OSError as error:
        raise OSError(error.errno, f"to_nir: path cannot be written: {error.strerror}", path) from error


def _check_sizes(contents: bytes) -> None:
    """Raise a ValueError if a dataset claims more than the file can hold, even compressed (deflate: at most 1,032:1).

    HDF5 fills in missing data, which for a damaged size can be terabytes.
    """
    most = 1032 * len(contents)

    def check(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.nbytes > most:
            raise ValueError(f"{name} claims {item.nbytes} bytes in a file of {len(contents)}")

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
    try:
        _check_heaps(contents)
        _check_sizes(contents)
        # nir's type check assumes square kernels and ignores groups.
        with h5py.File(io.BytesIO(contents), "r") as file:
            graph = graph_of(file)
    except Exception as error:  # nir and libhdf5 may raise anything for a file that is damaged or of another kind
        raise ValueError(f"from_nir: source must be a NIR file, got {path}: {error!r}") from error
    if not isinstance(graph, nir.NIRGraph):
        raise ValueError(f"from_nir: source must hold a NIRGraph, got a {type(graph).__name__}")
    return graph
