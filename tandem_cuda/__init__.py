"""Deep spiking neural networks trained by the tandem learning rule, at the cost of the ANNs they mirror.

Wu et al., "A Tandem Learning Rule for Effective Training and Rapid Inference of Deep Spiking Neural Networks",
IEEE TNNLS 2021, doi:10.1109/TNNLS.2021.3095724. Sizes in docstrings: T time steps, N batch, C channels, F features.
"""

from typing import TYPE_CHECKING

from . import neuron as neuron
from . import reference
from ._load import load_library

__all__ = [
    "IF",
    "LIF",
    "AccuracyCurve",
    "ActivePenalty",
    "ActivityTable",
    "AdaptiveIF",
    "Calibration",
    "Cascade",
    "FiringRatePenalty",
    "FrozenNetwork",
    "LayerActivity",
    "OperatingPoint",
    "Prediction",
    "RadixIF",
    "SpikeTrain",
    "Stream",
    "SynOpsPenalty",
    "TandemNetwork",
    "build_info",
    "convert",
    "freeze",
    "from_authors",
    "from_qcfs",
    "from_quantised",
    "library_path",
    "models",
    "ops",
    "quantise",
    "record_activity",
    "reference",
    "synops",
    "unquantise",
]

try:
    _C = load_library()
except ImportError as error:
    _unloaded = error

    if not TYPE_CHECKING:  # type checkers would accept any attribute of the package

        def __getattr__(name: str) -> object:
            """Raise the load error at the first use of anything but neuron and reference."""
            if name.startswith("__") and name != "__version__":  # Python itself looks up optional module attributes
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
            raise ImportError(_unloaded.msg, name=_unloaded.name, path=_unloaded.path) from _unloaded

else:
    from . import models, nn, ops
    from .analysis import (
        ActivePenalty,
        ActivityTable,
        FiringRatePenalty,
        LayerActivity,
        SynOpsPenalty,
        record_activity,
        synops,
    )
    from .build_info import build_info
    from .convert import Calibration, TandemNetwork, convert, from_qcfs, from_quantised
    from .exchange import from_authors
    from .freeze import AccuracyCurve, Cascade, FrozenNetwork, OperatingPoint, Prediction, Stream, freeze
    from .neuron import IF, LIF, AdaptiveIF, RadixIF
    from .nn import *  # noqa: F403 (the layers; nn.__all__ lists them)
    from .quantisation import quantise, unquantise
    from .spike_train import SpikeTrain

    __all__ += nn.__all__
    __version__: str = _C.__version__
    library_path: str = _C.library_path
    """The shared library with the operators, for C++ programs, which load it without Python."""
