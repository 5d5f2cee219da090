"""Tensors that layers make once for each device, not in every call."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_MOST = 64
_Key = tuple[Hashable, torch.device]
_cached: dict[_Key, tuple[Tensor, ...]] = {}
_in_graphs: dict[_Key, tuple[Tensor, ...]] = {}
"""What CUDA graphs were captured with: they read it whenever they are replayed, so it is kept for good."""


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
    in_graph = capturing(like)
    cached = _in_graphs.get(full) or _cached.get(full)
    if cached is not None:
        if in_graph:
            _in_graphs[full] = cached
        return cached
    with torch.inference_mode(False), torch.no_grad():  # inference tensors are of no use elsewhere
        result = make()
    # What a graph makes has values only once it is replayed.
    if in_graph or any(type(x) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(x) for x in result):
        return result
    if len(_cached) >= _MOST:
        _wait({device for _, device in _cached})
        _cached.clear()
    _wait({like.device})
    _cached[full] = result
    return result


def capturing(like: Tensor) -> bool:
    """Return whether a CUDA graph captures what happens to a tensor."""
    if not like.is_cuda or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's; fake tensors
        return False
    return torch.cuda.is_current_stream_capturing()


def _wait(devices: set[torch.device]) -> None:
    """Wait for devices before their tensors change hands: the streams that make, read and free them may differ."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
