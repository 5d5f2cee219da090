"""Inference with trained networks: frozen networks, their files, streaming and early exit."""

from ..nn.sizes import Size, Value
from . import add as add  # this and the next five register the frozen forms of layers
from . import encode as encode
from . import plain as plain
from . import pool as pool
from . import rearrange as rearrange
from . import tandem as tandem
from .anytime import AccuracyCurve, OperatingPoint, Prediction, accuracy_curve, predict
from .cascade import Cascade, CascadeRun
from .forms import FORMS, LOADERS, FrozenLayer, Settings, Span, State, Tensors, register
from .graph import INPUT, NetworkState, Node
from .model import freeze
from .network import FrozenNetwork
from .stream import Stream

__all__ = [
    "FORMS",
    "INPUT",
    "LOADERS",
    "AccuracyCurve",
    "Cascade",
    "CascadeRun",
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
