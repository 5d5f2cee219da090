"""Notice that a forward draws random numbers, which its trace would repeat in every call."""

from __future__ import annotations

import ctypes
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


@contextmanager
def refusing_random_numbers(ann: nn.Module) -> Iterator[None]:
    """Raise a ValueError if random numbers are drawn: from the global generators or from one that a module holds."""
    generators = [x for module in ann.modules() for x in vars(module).values() if isinstance(x, _GENERATORS)]
    before = _states(generators)
    yield
    if _states(generators) != before:
        raise ValueError(
            "convert: ann must not draw random numbers in forward, whose trace would hold one draw for good. Use "
            "nn.Dropout, or torchvision.ops.StochasticDepth to skip blocks"
        )


def _states(generators: list[Any]) -> list[bytes]:
    """Return the states of the generators and of the global ones as bytes."""
    states = [random.getstate(), np.random.get_state(), _bytes(torch.get_rng_state())]  # noqa: NPY002 (the global one)
    for x in generators:
        if isinstance(x, random.Random):
            states.append(x.getstate())
        elif isinstance(x, torch.Generator):
            states.append(_bytes(x.get_state()))
        else:
            states.append(x.get_state() if isinstance(x, np.random.RandomState) else x.bit_generator.state)
    return [pickle.dumps(state) for state in states]


def _bytes(state: torch.Tensor) -> bytes:
    """Return the bytes of a generator's state. No operators: under a fake mode they take only fake tensors."""
    return ctypes.string_at(state.data_ptr(), state.nbytes)
