"""A tandem SNN from a PyTorch CNN, on the same parameters."""

from . import builtin as builtin  # registers the rules of PyTorch's layers and functions
from .conversion import flattened_to
from .network import TandemNetwork, convert

__all__ = ["TandemNetwork", "convert", "flattened_to"]
