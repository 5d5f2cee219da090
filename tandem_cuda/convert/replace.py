"""Replace activations of an ANN by activations that have a spiking form, and keep the means of its layers.

A ReLU in the place of a SiLU shifts the mean of every channel, and so the input of all layers behind. On calibration
data, each bias is corrected so that the mean of the layer's output stays as it was, and each running mean of batch norm
is moved as far as the mean of its input has moved. Nagel et al. correct quantised networks in this way ("Data-Free
Quantization Through Weight Equalization and Bias Correction", 2019, arXiv:1906.04721).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ..nn.modes import evaluating
from .comparison import OutputComparison
from .inputs import Batch, copied
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


_See = Callable[[Any, Tensor, int], Tensor]
"""Takes a module, a value and the dimension of its channels, and returns what takes the place of the value."""


@contextmanager
def replacing(
    ann: nn.Module, replace: Mapping[str, str], batches: Sequence[Batch], correct: bool
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Replace activations of the ANN, and with ``correct`` its biases; undo it if the body of the context fails.

    Yields:
        The replacements in words, and how far the ANN's outputs on the batches are from what they were.
    """
    means = _Means(len(batches))
    outputs = _run(ann, batches, means.note) if replace else []
    with replaced(ann, replace):
        if not outputs:
            yield tuple(f"{old} -> {new}" for old, new in replace.items()), ""
            return
        if correct:
            _run(ann, batches, means.restore)
        before = means.corrected() if correct else []
        try:
            effect = _effect(outputs, _run(ann, batches, lambda module, x, dim: x), bool(before))
            yield called(ann, replace), effect
        except BaseException:
            for tensor, old in before:
                tensor.data.copy_(old)
            raise


class _Means:
    """The means of channels, of each call of a module, and how far later calls must be shifted to have them.

    ``calls``: the number of batches. Modules that are called more often have one bias for several means, and keep it.
    """

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.means: dict[Any, list[Tensor]] = {}
        self.shifts: dict[Any, list[Tensor]] = {}

    def note(self, module: Any, x: Tensor, dim: int) -> Tensor:
        self.means.setdefault(module, []).append(_mean(x, dim))
        return x

    def restore(self, module: Any, x: Tensor, dim: int) -> Tensor:
        known, shifts = self.means.get(module, []), self.shifts.setdefault(module, [])
        if len(known) != self.calls or len(shifts) >= self.calls:
            return x
        shifts.append(known[len(shifts)] - _mean(x, dim))
        return x + shifts[-1].to(x).view(-1, *[1] * (x.dim() - 1 - dim % x.dim()))

    def corrected(self) -> list[tuple[Tensor, Tensor]]:
        """Correct the modules that are called once for each batch; return what changed and the values before."""
        before = []
        for module, shifts in self.shifts.items():
            is_norm = isinstance(module, _BatchNorm)
            tensor = module.running_mean if is_norm else module.bias
            if len(shifts) == self.calls and bool((shift := torch.stack(shifts).mean(0)).any()):
                before.append((tensor, tensor.detach().clone()))
                tensor.data.sub_(shift.to(tensor)) if is_norm else tensor.data.add_(shift.to(tensor))
        return before


def _mean(x: Tensor, dim: int) -> Tensor:
    return x.movedim(dim, -1).flatten(0, -2).mean(0, dtype=torch.float64)


def _run(ann: nn.Module, batches: Sequence[Batch], see: _See) -> list[Any]:
    """Run the ANN in eval mode; show the input of each batch norm, and the output of each layer with a bias."""
    hooks = []
    for module in ann.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(lambda m, inputs: (see(m, inputs[0], 1), *inputs[1:])))
        elif isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and module._parameters.get("bias") is not None:
            dim = -1 if isinstance(module, nn.Linear) else 1
            hooks.append(module.register_forward_hook(lambda m, inputs, y, dim=dim: see(m, y, dim)))
    try:
        with evaluating(ann), torch.no_grad():
            return [ann(*copied(batch)) for batch in batches]
    finally:
        for hook in hooks:
            hook.remove()


def _effect(before: Sequence[Any], after: Sequence[Any], corrected: bool) -> str:
    """Return in words how far the ANN's outputs are from what they were."""
    answers = OutputComparison()
    for old, new in zip(before, after, strict=True):
        answers.add(new, old)
    found = answers.likeness()
    error, agreement = found.output_error, found.agreement
    parts = [] if error is None else [f"its outputs differ from before by {error:.1%}"]
    parts += [] if agreement is None else [f"it gives the class as before for {agreement:.1%} of the samples"]
    how = ", with biases that keep the means of its layers" if corrected else ""
    return f": {', '.join(parts)}{how}" if parts else ""
