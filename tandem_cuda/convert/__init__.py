"""Convert a PyTorch network to a tandem SNN that shares its parameters."""

from . import rules as rules
from .calibrate import Calibration
from .call import Call
from .from_quantised import from_quantised
from .make import convert
from .network import TandemNetwork
from .options import Analogue
from .qcfs import from_qcfs
from .record import AnalogueCall
from .report import ConversionReport, ConvertedLayer
from .rules import activations as _activations  # noqa: F401  # registers the rules
from .rules import joins as _joins  # noqa: F401
from .rules import moves as _moves  # noqa: F401
from .rules import pools as _pools  # noqa: F401
from .rules import register

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
