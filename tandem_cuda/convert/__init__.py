"""Convert a PyTorch CNN to a tandem SNN that shares its parameters."""

from . import builtin_functions as builtin_functions  # registers the rules for PyTorch's layers and functions
from .calibrate import Calibration
from .example import sized_as_traced
from .make import convert
from .network import TandemNetwork
from .qcfs import from_qcfs
from .report import ConversionReport, ConvertedLayer
from .writer import flattened_to

__all__ = [
    "Calibration",
    "ConversionReport",
    "ConvertedLayer",
    "TandemNetwork",
    "convert",
    "flattened_to",
    "from_qcfs",
    "sized_as_traced",
]
