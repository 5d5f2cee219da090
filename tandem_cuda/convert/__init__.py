"""Convert a PyTorch network to a tandem SNN that shares its parameters."""

from . import rules as rules
from .calibrate import Calibration
from .call import Call
from .make import convert
from .network import TandemNetwork
from .qcfs import from_qcfs
from .record import AnalogueCall
from .report import ConversionReport, ConvertedLayer
from .rules import activations as _activations  # noqa: F401  # registers the rules
from .rules import joins as _joins  # noqa: F401
from .rules import moves as _moves  # noqa: F401
from .rules import pools as _pools  # noqa: F401
from .rules import register
from .writer import Analogue

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
    "register",
]

# TEMPORARY
import sys as _s, types as _t
for _n, _names in (("advice", ("hooked",)), ("aliases", ("VIEWS", "VIEW_FUNCTIONS", "module_writes", "writes", "writes_alone"))):
    _m = _t.ModuleType(f"tandem_cuda.convert.{_n}")
    for _x in _names:
        setattr(_m, _x, () if _x.isupper() else (lambda *a, **k: ""))
    _s.modules[_m.__name__] = _m
_m = _t.ModuleType("tandem_cuda.nn.gate"); _m.TandemGate = type("TandemGate", (), {}); _s.modules[_m.__name__] = _m
def flattened_to(*a): raise NotImplementedError
def sized_as_traced(*a): raise NotImplementedError
from torch import nn as _nn
from . import nodes as _nodes
_nodes.IDLE = (_nn.Identity, _nn.Dropout, _nn.Dropout1d, _nn.Dropout2d, _nn.Dropout3d, _nn.AlphaDropout, _nn.FeatureAlphaDropout)
