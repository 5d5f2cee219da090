"""Hooks of modules, which nothing calls once another module stands in their place."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .batch_norm import HOOKS


def compute_weight(module: nn.Module) -> bool:
    """Compute the weight of a layer whose only hooks are weight norm or spectral norm of torch.nn.utils.

    Returns:
        Whether the module is such a layer; others are left alone.
    """
    hooks = list(module._forward_pre_hooks.values())
    others = [hook for name in HOOKS if name != "_forward_pre_hooks" for hook in getattr(module, name).values()]
    if not hooks or others or not all(isinstance(hook, (WeightNorm, SpectralNorm)) for hook in hooks):
        return False
    for hook in hooks:
        hook(module, ())
    return True


def hooked(module: nn.Module) -> str:
    """Return what to do about a module's hooks; "" if it has none."""
    hooks = [hook for name in HOOKS for hook in getattr(module, name).values()]
    for hook in hooks:
        if isinstance(hook, WeightNorm):
            return "call torch.nn.utils.remove_weight_norm on it: its weight is computed by a hook"
        if isinstance(hook, SpectralNorm):
            return "call torch.nn.utils.remove_spectral_norm on it: its weight is computed by a hook"
        if isinstance(hook, BasePruningMethod):
            return "call torch.nn.utils.prune.remove on it: its pruned weight is computed by a hook"
    names = ", ".join(dict.fromkeys(getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks))
    return f"remove its hooks ({names}): nothing calls them in the spiking twin" if hooks else ""
