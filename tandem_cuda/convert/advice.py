"""Parts of an ANN that cannot be converted, and what to use instead."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..nn.batch_norm import HOOKS
from .trace import word_of

CURVED = (
    *(nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Threshold),
)
SQUASHING = (nn.Sigmoid, nn.Tanh, nn.Softmax, nn.LogSoftmax)
NORMALISING = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.modules.instancenorm._InstanceNorm)
_ACTIVATION_NAMES: dict[str, type[nn.Module]] = {
    kind.__name__.lower(): kind for kind in (*CURVED, nn.Sigmoid, nn.Tanh, nn.Softmax)
} | {"leaky_relu": nn.LeakyReLU, "log_softmax": nn.LogSoftmax}
# The module class equivalent to each activation function or method.
ACTIVATIONS: dict[Any, type[nn.Module]] = {
    function: kind
    for name, kind in _ACTIVATION_NAMES.items()
    for function in (name, f"{name}_", *(getattr(f, n, name) for f in (F, torch) for n in (name, f"{name}_")))
}
WEIGHT_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.linear)
_ADVICE: list[tuple[tuple[type, ...], str]] = [
    (CURVED, "use nn.ReLU, as replace={{nn.{kind}: nn.ReLU}} does: spiking neurons approximate only ReLU"),
    (SQUASHING, "use nn.ReLU, or move it after the last weight layer; gates='analogue' keeps squeeze-and-excitation"),
    (NORMALISING, "use nn.BatchNorm2d: its statistics are constants, whereas these depend on the spikes of each input"),
    ((nn.AdaptiveMaxPool1d, nn.LPPool2d), "use nn.MaxPool2d or nn.AdaptiveAvgPool2d"),
    ((nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d), "use nn.Conv1d, nn.Conv2d or nn.ConvTranspose2d"),
    ((nn.AlphaDropout, nn.Dropout1d, nn.Dropout3d), "use nn.Dropout or nn.Dropout2d"),
    ((nn.RNNBase, nn.MultiheadAttention), "use convolutions and linear layers"),
]
_MULTIPLIED = "remove it, or move it after the last weight layer: spikes cannot be multiplied"
FUNCTION_ADVICE: dict[Any, str] = dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _MULTIPLIED)
NOTHING_ELSE = "move it before the first weight layer or after the last one"
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


def advice_for(kind: type[nn.Module]) -> str:
    """Return what to use instead of a class of modules."""
    why = next((why for kinds, why in _ADVICE if issubclass(kind, kinds)), NOTHING_ELSE)
    return why.format(kind=kind.__name__) if "{kind}" in why else why
