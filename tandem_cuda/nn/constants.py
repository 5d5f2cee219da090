"""Tensors that layers make once for each device, not in every call."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_MOST = 64
_kept: dict[Hashable, tuple[Tensor, ...]] = {}


def constants(like: Tensor, key: Hashable, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return what ``make`` returns, from the last call with this key if it is still kept.

    Making tensors from Python numbers copies them to the device and waits for it, which a CUDA graph cannot capture.
    Nobody may change the tensors.

    Args:
        like: what the tensors are for; its device is part of the key.
        key: all else that ``make`` depends on, dtypes included.
        make: makes them.
    """
    # Compilers have constants of their own, and stand-ins for tensors must not meet real ones.
    if torch.compiler.is_compiling() or type(like) is not Tensor:
        return make()
    full = (key, like.device)
    kept = _kept.get(full)
    if kept is None:
        with torch.inference_mode(False), torch.no_grad():  # inference tensors are of no use elsewhere
            kept = make()
        if any(type(x) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(x) for x in kept):
            return kept
        if len(_kept) >= _MOST:
            _kept.clear()
        _kept[full] = kept
    return kept
