"""Inference with trained networks as constants: frozen networks, their files, streams and early exit."""

from . import encode as encode  # registers the frozen forms of layers, as the next three do
from . import plain as plain
from . import pool as pool
from . import tandem as tandem
from .anytime import AccuracyCurve, OperatingPoint, Prediction, accuracy_curve, predict
from .forms import FORMS, LOADERS, FrozenLayer, Settings, Size, Span, State, Tensors, Value, register
from .graph import INPUT, NetworkState, Node
from .model import freeze
from .network import FrozenNetwork
from .stream import Stream

__all__ = [
    "FORMS",
    "INPUT",
    "LOADERS",
    "AccuracyCurve",
    "FrozenLayer",
    "FrozenNetwork",
    "NetworkState",
    "Node",
    "OperatingPoint",
    "Prediction",
    "Settings",
    "Size",
    "Span",
    "State",
    "Stream",
    "Tensors",
    "Value",
    "accuracy_curve",
    "freeze",
    "predict",
    "register",
]
