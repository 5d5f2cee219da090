"""The soft LIF rate and its derivative, by the name they have always had."""

from .neuron.lif import lif_rate, lif_rate_derivative

__all__ = ["lif_rate", "lif_rate_derivative"]
