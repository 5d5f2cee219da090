"""The public names of :mod:`tandem_cuda.analysis.penalties`."""

from .analysis.penalties import FiringRatePenalty, SynOpsPenalty

__all__ = ["FiringRatePenalty", "SynOpsPenalty"]
