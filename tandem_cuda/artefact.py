"""The public names of :mod:`tandem_cuda.freeze.file`."""

from .freeze.file import FORMAT, VERSION, read, write

__all__ = ["FORMAT", "VERSION", "read", "write"]
