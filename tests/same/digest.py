"""What a case computed, as text that is equal only if it is equal to the bit."""

import hashlib
import re
from collections.abc import Mapping

import torch

from tandem_cuda import SpikeTrain


def digest(x):
    """Text that stands for a value: tensors by dtype, shape and a hash of their bytes, whatever their strides."""
    if isinstance(x, SpikeTrain):
        count = digest(x.count.detach())
        return f"SpikeTrain({digest(x.bits)}, T={x.time_steps}, count={count}, amplitude={x.amplitude!r})"
    if isinstance(x, torch.Tensor):
        data = x.detach().cpu().contiguous()
        data = data.resolve_conj().resolve_neg().flatten().view(torch.uint8) if data.numel() else data
        hashed = hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16]
        return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)} {hashed}"
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{key}: {digest(value)}" for key, value in x.items()) + "}"
    if isinstance(x, (list, tuple)):
        return "[" + ", ".join(map(digest, x)) + "]"
    return str(x)


def refusal(error):
    """An error as text, without addresses and names of base classes."""
    text = " ".join(str(error).split())
    text = re.sub(r"0x[0-9a-f]+", "0x", re.sub(r"\w+\.forward\(\)", "forward()", text))
    return f"{type(error).__name__}: {text}"


def attempt(function, *arguments, **named):
    """The digest of what a function returns, or of the error that it raises."""
    try:
        return digest(function(*arguments, **named))
    except Exception as error:
        return refusal(error)


def state_of(module):
    """The state dict, for `digest`."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def gradients_of(module):
    """The gradients of all parameters, for `digest`."""
    return {name: p.grad for name, p in module.named_parameters()}
