"""Convert a PyTorch network to a tandem SNN that shares its parameters."""

from . import rules as rules
from .calibrate import Calibration
from .call import Call
from .comparison import AnalogueCall
from .from_quantised import from_quantised
from .make import convert
from .network import TandemNetwork
from .qcfs import from_qcfs
from .report import ConversionReport, ConvertedLayer
from .rules import activations, joins, moves, pools, register  # noqa: F401  # rules register when they are imported
from .values import Analogue

__all__ = [
    "Analogue",
    "AnalogueCall",
    "Calibration",
    "Call",
    "ConversionReport",
    "ConvertedLayer",
    "TandemNetwork",
    "convert",
    "from_qcfs",
    "from_quantised",
    "register",
]
