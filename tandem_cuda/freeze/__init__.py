"""Inference with trained networks: frozen networks, their files, streaming and early exit."""

from ..nn.frozen import FORMS, LOADERS, FrozenLayer, Span, State, register
from ..nn.schema import Settings, Tensors
from ..nn.sizes import Size, Value
from .anytime import AccuracyCurve, OperatingPoint, Prediction, accuracy_curve, predict
from .cascade import Cascade
from .graph import Node
from .model import freeze
from .network import FrozenNetwork
from .stream import Stream

__all__ = [
    "FORMS",
    "LOADERS",
    "AccuracyCurve",
    "Cascade",
    "FrozenLayer",
    "FrozenNetwork",
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
