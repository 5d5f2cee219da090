"""What torch.compile is told about functions of the library."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from .. import _C

F = TypeVar("F", bound=Callable[..., object])


def assume_constant_result(function: F) -> F:
    """torch.compiler.assume_constant_result, which would import all of torch._dynamo: that takes as long as torch."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_recording() -> bool:
    """Return whether torch records a graph of the call, to compile, export or trace it. It must hold the whole call."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def tag_compiled_graphs() -> None:
    """Keep graphs that torch.compile has cached with another version of the library from running with this one.

    AOTAutograd finds a graph by its forward pass. The backward pass and the outputs' sizes come with it: from an older
    version, it would compute that version's gradients, or call operators that no longer exist.
    """
    ops = Path(__file__).parent
    sources = sorted([*ops.glob("*.py"), *(ops.parent / "neuron").glob("*.py")])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    torch.compiler.config.cache_key_tag += f" tandem_cuda {_C.__version__} {digest}"
