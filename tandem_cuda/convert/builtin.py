"""Registers the conversion rules for PyTorch's own layers and functions."""

from . import builtin_functions as builtin_functions
from . import builtin_modules as builtin_modules
from . import builtin_shapes as builtin_shapes
