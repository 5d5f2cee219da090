"""Replace activations of an ANN by activations that have a spiking form, whatever calls them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from .nodes import word_of


def check_replacements(replace: Any) -> None:
    """Raise a TypeError or ValueError unless ``replace`` maps names of activations to names of activations."""
    if replace is None:
        return
    if not isinstance(replace, Mapping):
        raise TypeError(f"convert: replace must be a dict, got {type(replace).__name__}")
    for old, new in replace.items():
        for name in (old, new):
            if not isinstance(name, str):
                raise TypeError(
                    f"convert: replace must map names of torch.nn.functional, such as {{'silu': 'relu'}}, got {name!r}"
                )
            if not callable(getattr(F, name, None)):
                raise ValueError(f"convert: replace must map names of torch.nn.functional, got {name!r}")


class _Calling(TorchFunctionMode):
    """Calls other functions in the place of torch's, and notes which ones were called.

    ``before``: for functions that were replaced once before, the function that took their place then.
    """

    def __init__(self, functions: Mapping[str, str], before: Mapping[str, str]) -> None:
        super().__init__()
        self.functions, self.before = functions, before
        self.called: set[str] = set()
        self.inside = False  # torch.export shows this mode the calls that it makes itself

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        word = word_of(func)
        name = word.removesuffix("_")
        new = self.functions.get(name)
        if new is None or self.inside:
            return func(*args, **(kwargs or {}))
        self.called |= {name, self.before.get(name, name)}
        x = args[0] if args else kwargs["input"]
        self.inside = True
        try:
            y = getattr(F, new)(x)
        finally:
            self.inside = False
        in_place = word.endswith("_") or (kwargs or {}).get("inplace") is True
        return x.copy_(y) if in_place else y


class WithFunctions:
    """The first base class of an ANN's class after ``replace`` has replaced functions that forward calls."""

    functions: ClassVar[Mapping[str, str]]
    original: ClassVar[type[nn.Module]]
    calling: ClassVar[_Calling]

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = getattr(self, "__getstate__", lambda: self.__dict__)()
        return _remade, (type(self).original, dict(type(self).functions)), state


def with_functions(kind: type[nn.Module], functions: Mapping[str, str]) -> type[nn.Module]:
    """Return a class of modules whose forward calls other functions in place of torch's of these names."""
    before = dict(kind.functions) if issubclass(kind, WithFunctions) else {}
    functions = {**{old: functions.get(new, new) for old, new in before.items()}, **functions}
    original: Any = getattr(kind, "original", kind) if issubclass(kind, WithFunctions) else kind
    calling = _Calling(functions, before)

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with calling:
            return original.forward(self, *args, **kwargs)

    forward = FunctionType(run.__code__, run.__globals__, "forward", None, run.__closure__)
    functools.update_wrapper(forward, original.forward)
    body = {"forward": forward, "functions": functions, "original": original, "calling": calling}
    return type(original.__name__, (WithFunctions, original), {**body, "__module__": original.__module__})


def _remade(kind: type[nn.Module], functions: Mapping[str, str]) -> nn.Module:
    remade = with_functions(kind, functions)
    return remade.__new__(remade)


@contextmanager
def replaced(ann: nn.Module, replace: Mapping[str, str]) -> Iterator[None]:
    """Let forward of an ANN call other functions; undo it if the context's body fails."""
    kind = type(ann)
    try:
        if replace:
            ann.__class__ = with_functions(kind, replace)
        yield
    except BaseException:
        ann.__class__ = kind
        raise


def called(ann: nn.Module, replace: Mapping[str, str]) -> tuple[str, ...]:
    """Return the replacements in words; raise a ValueError for a function that forward has not called."""
    if not replace:
        return ()
    kind: Any = type(ann)
    found = kind.calling.called
    if missing := [name for name in replace if name not in found]:
        raise ValueError(f"convert: replace must name functions that forward calls, got {', '.join(missing)}")
    return tuple(f"{old} -> {new}" for old, new in replace.items())


def warn_of(names: tuple[str, ...], effect: str) -> None:
    """Warn that the ANN computes something else; ``effect`` says how far it is from what it did."""
    if names:
        warnings.warn(
            f"convert: activations of the ANN were replaced ({', '.join(names)}). It now computes something else and "
            f"wants fine-tuning{effect}",
            stacklevel=4,
        )
