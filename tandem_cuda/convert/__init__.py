"""A tandem SNN from a PyTorch CNN, on the same parameters."""

from .network import TandemNetwork, convert
from .rules import flattened_to

__all__ = ["TandemNetwork", "convert", "flattened_to"]
