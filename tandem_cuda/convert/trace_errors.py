"""What stops a trace, in words: the line of forward, and what to do about it."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from .nodes import full_name

ON_SIZES = "pass example=, an input of ann, so that the trace knows the sizes that forward asks for"
ON_BATCH = "control flow must not depend on the batch size"
ON_VALUES = "control flow must not depend on the values of tensors"
_OF_DATA = DataDependentOutputException, DynamicOutputShapeException
_LIBRARIES = tuple(str(Path(package).parent) for package in (torch.__file__, __file__))


class Unanswered(fx.proxy.TraceError):
    """Forward asks what its trace does not know."""


class Untraceable(ValueError):
    """Raised for a forward that cannot be traced."""

    def __init__(self, ann: nn.Module, error: Exception) -> None:
        self.why = reason(error)
        super().__init__(f"convert: ann must be traceable by torch.fx, but {type(ann).__name__} is not: {self.why}")


def reason(error: Exception, module: nn.Module | None = None) -> str:
    """Return why a forward cannot be traced, and what to do. ``module``: the module, if it is not the whole network."""
    line, rule = _line(error), "" if module is None else f", or register a rule for {full_name(type(module))}"
    if isinstance(error, (Unanswered, *_OF_DATA)):
        why = str(error) if isinstance(error, Unanswered) else ON_VALUES
        return f"{why}, as in {line}" if why == ON_SIZES else f"{why}, as in {line}: use operations on tensors{rule}"
    # Errors of this kind come from the symbols in place of tensors, and their messages say nothing about forward.
    text = next(iter(str(error).splitlines()), "")
    is_of_trace = isinstance(error, (TypeError, NotImplementedError, fx.proxy.TraceError)) or any(
        word in text for word in ("Proxy", "_Answers", "_Attribute", "__array_")
    )
    got = "" if is_of_trace else f" ({type(error).__name__}: {text})"
    return f"{line} cannot be traced{got}: use functions of torch that return new tensors{rule}"


def _line(error: Exception) -> str:
    """Return the line of the user's code that failed, and its place."""
    frames = traceback.extract_tb(error.__traceback__)
    of_user = [x for x in frames if not x.filename.startswith((*_LIBRARIES, "<"))]
    if not of_user:
        return "its forward"
    frame = of_user[-1]
    code = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
    return f"`{code}` ({Path(frame.filename).name}, line {frame.lineno})"
