"""Tandem layers, to be composed in nn.Sequential with nn.Flatten and, behind Decode, nn.Linear."""

from .conv import TandemConv2d
from .encode import Decode, Encode, EncodedInput
from .linear import TandemLinear

__all__ = ["Decode", "Encode", "EncodedInput", "TandemConv2d", "TandemLinear"]
