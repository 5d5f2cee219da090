"""Parts of an ANN that cannot be converted, and what to use instead."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..nn.batch_norm import HOOKS
from ..nn.classes import is_of_torch
from ..nn.tandem import drop_ins
from .nodes import full_name, word_of
from .values import Grouped, Maxima, Pieces, Shape, Size, Sizes

CURVED = (
    *(nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Threshold),
    *(nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Sigmoid, nn.Tanh, nn.Softmax, nn.Softmax2d),
    *(nn.Softmin, nn.LogSoftmax),
)
NORMALISING = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
_PADDING = (
    *(nn.ConstantPad1d, nn.CircularPad1d, nn.CircularPad2d),
    *(nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd),
)
_ACTIVATION_NAMES = {kind.__name__.lower() for kind in CURVED} - {"softmax2d", "logsoftmax"} | {"log_softmax"}
_CONVERTED = [kind.__name__ for kind in drop_ins()]
WEIGHT_FUNCTIONS: dict[Any, str] = {
    getattr(F, re.sub("(?<=[a-z])(?=[A-Z])", "_", kind).lower()): f"use nn.{kind}, which has parameters to share"
    for kind in _CONVERTED
}
_NEAREST = {"tanh": nn.Hardtanh, "softsign": nn.Hardtanh, "sigmoid": nn.Hardsigmoid, "rrelu": nn.LeakyReLU}
"""The activation with a spiking form that is nearest to another one; ReLU for all others."""
_FORMS = {nn.ReLU: "relu", nn.Hardtanh: "hardtanh", nn.Hardsigmoid: "hardsigmoid", nn.LeakyReLU: "leaky_relu"}


def rectified(kind: str, name: str) -> str:
    """Return the advice for modules of a class: an activation of this name, in lower case."""
    nearest = _NEAREST.get(name, nn.ReLU).__name__
    return f"use nn.{nearest}, as replace={{{kind}: nn.{nearest}}} does: it has no spiking form"


def _rectifying(name: str) -> str:
    kind = _NEAREST.get(name, nn.ReLU)
    new = _FORMS[kind]
    return f"call F.{new} in its place, as replace={{{name!r}: nn.{kind.__name__}}} does: it has no spiking form"


RECTIFYING = {_rectifying(name): name for name in _ACTIVATION_NAMES}
"""The advice for functions that are activations, each with the name of the activation."""
GATED = "use a * torch.sigmoid(b) with a, b = x.chunk(2, 1), and pass gates='analogue'"
NORMALISED = "use batch norm: its statistics are constants, whereas these depend on the spikes of each input"
_CONVOLVED = "use " + " or".join(", ".join(f"nn.{kind}" for kind in _CONVERTED if "Conv" in kind).rsplit(",", 1))
_DROPPED = "use nn.Dropout, nn.Dropout2d or nn.Dropout3d"
_ATTENDED = "use convolutions and linear layers"
MULTIPLIED = "remove it, or move it after the last weight layer: spikes cannot be multiplied"
BY_A_TENSOR = (
    "multiply by a number, or each channel by the weight of a layer such as nn.Conv2d(8, 8, 1, groups=8, bias=False): "
    "spikes cannot be multiplied by tensors"
)
_LINEAR = "use nn.Linear: spikes are multiplied only by the weights of layers"
_LARGER = "use y + torch.relu(x - y), which is the larger of two, or torch.relu(x) if y is 0"
_SMALLER = "use x - torch.relu(x - y), which is the smaller of two, or torch.clamp(x, 0, y) if y is a number"
_SUMMED = "use x.mean((2, 3), keepdim=True) times the number of pixels: pixels are only averaged"
_NORM_MODULE = "use nn.BatchNorm1d, nn.BatchNorm2d or nn.BatchNorm3d, which has parameters to share"
GATES = "pass gates='analogue', which keeps squeeze-and-excitation: spikes cannot be multiplied"
NOTHING_ELSE = "move it before the first weight layer or after the last one"
AFTER_ALL = "move it after the last weight layer"
"""Takes the place of NOTHING_ELSE in mode "spikes"."""
COUNTED = "put it where the number of channels is known: before the flattening, or behind a weight layer"
UNCOUNTED = f"pass example=, an input of ann, so that features are counted, or {COUNTED}"
"""Takes the place of COUNTED without an example."""
EXAMPLE = "pass example=, an input of ann, so that the trace knows the sizes that forward compares"
SIZES = "pass example=, an input of ann, so that the trace knows the number of dimensions"
NUMBER = "use a number in place of a size that depends on the input"
NUMBERED = "pass example=, an input of ann, so that the sizes that forward computes with are numbers"
"""Takes the place of NUMBER without an example."""
TWO_PHASE = (
    "pass neuron=RadixIF() or IF(initial=0.5, two_phase=True), which wait for all time steps: its slope below zero is "
    "negative"
)
NEGATIVE = "put a ReLU before it: its input has negative values"
_ADVICE: list[tuple[tuple[type, ...], str]] = [
    ((nn.GLU,), GATED),
    (NORMALISING, NORMALISED),
    ((nn.LPPool1d,), "use nn.MaxPool1d or nn.AvgPool1d"),
    ((nn.LPPool2d, nn.FractionalMaxPool2d), "use nn.MaxPool2d or nn.AvgPool2d"),
    ((nn.LPPool3d, nn.FractionalMaxPool3d, nn.AdaptiveMaxPool3d), "use nn.MaxPool3d or nn.AvgPool3d"),
    ((nn.ConvTranspose1d, nn.ConvTranspose3d), _CONVOLVED),
    ((nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Dropout1d), _DROPPED),
    ((nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.TransformerEncoderLayer), _ATTENDED),
    (_PADDING, "pad with zeros, by the next layer or nn.ZeroPad2d"),
]
_FUNCTIONS: dict[str, str] = {
    **{name: why for why, name in RECTIFYING.items()},
    **dict.fromkeys(("mul", "multiply"), MULTIPLIED),
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "bilinear"), _LINEAR),
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "local_response_norm", "normalize"), NORMALISED),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose3d"), _CONVOLVED),
    **dict.fromkeys(("dropout1d", "alpha_dropout", "feature_alpha_dropout"), _DROPPED),
    "rms_norm": NORMALISED,
    "scaled_dot_product_attention": _ATTENDED,
    "batch_norm": _NORM_MODULE,
    "glu": GATED,
    "maximum": _LARGER,
    "minimum": _SMALLER,
    "sum": _SUMMED,
}
FUNCTION_ADVICE: dict[Any, str] = {
    function: why
    for name, why in _FUNCTIONS.items()
    for function in (name, f"{name}_", *(getattr(f, n, name) for f in (F, torch) for n in (name, f"{name}_")))
} | {operator.mul: MULTIPLIED, operator.imul: MULTIPLIED, operator.matmul: _LINEAR}
_NAMES = 6
"""The number of names that a message lists for each kind of problem."""


@dataclass
class Problem:
    """A part of the ANN that cannot be converted."""

    kind: str
    name: str
    place: str
    """The name in a list of several problems of one kind."""
    why: str
    why_all: str
    """The advice for several problems of one kind."""


def listed(problems: list[Problem]) -> list[str]:
    """Return message lines: for each kind of problem the advice, the number of problems, and the first names."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.kind, problem.why_all), []).append(problem)
    lines = []
    for (kind, why_all), group in groups.items():
        if len(group) == 1:
            lines.append(f"  {group[0].name}: {group[0].why}")
            continue
        more = [f"and {len(group) - _NAMES} more"] if len(group) > _NAMES else []
        places = ", ".join([problem.place for problem in group[:_NAMES]] + more)
        lines += [f"  {len(group)} {kind}: {why_all}", f"      {places}"]
    return lines


def refusal(problems: list[Problem]) -> str:
    """Return the message about all problems of a network."""
    lines = "\n".join(listed(problems))
    return f"convert: every part of ann must be convertible; these are not:\n{lines}"


def hooked(module: nn.Module) -> str:
    """Return the advice for a module whose hooks would not be called once a spiking module replaces it; else ""."""
    hooks = [hook for name in HOOKS for hook in getattr(module, name).values()]
    for hook in hooks:
        if isinstance(hook, WeightNorm):
            return "call torch.nn.utils.remove_weight_norm on it: its weight is computed by a hook"
        if isinstance(hook, SpectralNorm):
            return "call torch.nn.utils.remove_spectral_norm on it: its weight is computed by a hook"
        if isinstance(hook, BasePruningMethod):
            return "call torch.nn.utils.prune.remove on it: its pruned weight is computed by a hook"
    names = ", ".join(dict.fromkeys(word_of(getattr(hook, "__qualname__", type(hook).__qualname__)) for hook in hooks))
    return f"remove its hooks ({names}): nothing calls them in the spiking twin" if hooks else ""


def advice_for(module: nn.Module) -> str:
    """Return what to use instead of a module."""
    kind = parametrize.type_before_parametrizations(module)
    if issubclass(kind, CURVED):
        activation = next(base for base in kind.__mro__ if base in CURVED).__name__.lower()
        return rectified(f"nn.{kind.__name__}" if is_of_torch(kind) else full_name(kind), activation)
    return next((why for kinds, why in _ADVICE if issubclass(kind, kinds)), NOTHING_ELSE)


def advice_against(x: Any) -> str | None:
    """Return the advice for a value that is no spikes; None if it depends on the use of the value."""
    if isinstance(x, (Size, Sizes, Shape)):
        return NUMBER
    if isinstance(x, Maxima):
        return "use its values, as in x.max(2).values: positions differ between time steps"
    if isinstance(x, Pieces):
        return "use its pieces one by one, as in x.chunk(2, 1)[0]"
    if isinstance(x, Grouped):
        return "use nn.ChannelShuffle: channels are viewed in groups only to shuffle them"
    return None
