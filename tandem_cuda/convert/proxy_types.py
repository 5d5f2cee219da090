"""Let values in a trace tell their class: forward may ask with isinstance, torch.is_tensor or type."""

from __future__ import annotations

import builtins
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

CLASS_OF_ATTRIBUTE: dict[str, type] = {
    **dict.fromkeys(("T", "mT", "H", "mH", "data", "real", "imag"), Tensor),
    **dict.fromkeys(("ndim", "itemsize", "nbytes"), int),
    **dict.fromkeys(("is_cuda", "is_cpu", "is_leaf", "is_sparse", "is_quantized", "is_meta", "requires_grad"), bool),
    "shape": torch.Size,
    "dtype": torch.dtype,
    "device": torch.device,
}
_CLASS_OF_METHOD: dict[str, type] = {
    **dict.fromkeys(("dim", "ndimension", "numel", "nelement", "element_size", "storage_offset", "__len__"), int),
    **dict.fromkeys(("is_floating_point", "is_complex", "is_contiguous", "is_signed", "is_inference"), bool),
    **dict.fromkeys(("chunk", "split", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit", "stride"), tuple),
    "tolist": list,
    "size": torch.Size,
}
_NUMBERS = (bool, int, float)
NUMBERS = (*_NUMBERS, torch.Size)
_COMPARISONS = {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.not_}


def class_of(node: fx.Node) -> type | None:
    """Return the class of a node's value in the ANN's graph; None if it is not known."""
    return _class_of(node, {})


def _class_of(node: fx.Node, known: dict[fx.Node, type | None]) -> type | None:
    """Return the class of a node. ``known``: the classes found so far, for graphs have many paths to a node."""
    if node not in known:
        known[node] = _class_by_inputs(node, known)
    return known[node]


def _class_by_inputs(node: fx.Node, known: dict[fx.Node, type | None]) -> type | None:
    if node.op in ("placeholder", "get_attr", "call_module"):
        return Tensor
    first = _class_of(node.args[0], known) if node.args and isinstance(node.args[0], fx.Node) else None
    if node.op == "call_method":
        word = str(node.target)
        if first is not Tensor:
            return None
        one_size = word == "size" and (len(node.args) > 1 or bool(node.kwargs))
        return int if one_size else _CLASS_OF_METHOD.get(word, None if word == "item" else Tensor)
    return _class_of_call(node, first, known)


def _class_of_call(node: fx.Node, first: type | None, known: dict[fx.Node, type | None]) -> type | None:
    """Return the class of a function's result. ``first``: the class of the first argument."""
    target: Any = node.target
    if target is getattr:
        return CLASS_OF_ATTRIBUTE.get(str(node.args[1])) if first is Tensor else None
    if target is len:
        return int
    classes = [_class_of(x, known) for x in node.all_input_nodes]
    if classes and all(kind in _NUMBERS for kind in classes):
        if target in _COMPARISONS:
            return bool
        divides = target in (operator.truediv, operator.itruediv)
        return float if divides or float in classes or any(isinstance(x, float) for x in node.args) else int
    if target is operator.getitem:
        if first is torch.Size:
            return torch.Size if isinstance(node.args[1], slice) else int
        return Tensor if first in (Tensor, tuple) else None
    return _CLASS_OF_METHOD.get(getattr(target, "__name__", ""), Tensor if Tensor in classes else None)


def _known(x: Any) -> type:
    """Return the class of x; of a proxy, the class of the value that it stands for."""
    if not isinstance(x, fx.Proxy):
        return builtins.type(x)
    tracer: Any = x.tracer
    kind: type = tracer.class_of(x)
    return kind


class _Metatype(builtins.type):
    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, builtins.type)

    def __subclasscheck__(cls, x: Any) -> bool:
        return issubclass(x, builtins.type)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _known(args[0]) if len(args) == 1 else builtins.type(*args, **kwargs)


class _Type(metaclass=_Metatype):
    """Replaces ``type`` in the ANN's own modules while it is traced."""

    def __class_getitem__(cls, item: Any) -> Any:
        return builtins.type[item]


def _isinstance(x: Any, kinds: Any) -> bool:
    """Replaces ``isinstance`` in the ANN's own modules while it is traced."""
    return isinstance(x, kinds) or (isinstance(x, fx.Proxy) and issubclass(_known(x), kinds))


def _len(x: Any) -> Any:
    """Replaces ``len`` in the ANN's own modules while it is traced: the number of samples is a symbol."""
    if isinstance(x, fx.Proxy) and _known(x) is Tensor:
        return x.tracer.create_proxy("call_function", builtins.len, (x,), {})
    return builtins.len(x)


def _is_tensor(x: Any) -> bool:
    """Replaces ``torch.is_tensor`` while the ANN is traced."""
    return _isinstance(x, Tensor)


@contextmanager
def answering_for_types(ann: nn.Module) -> Iterator[None]:
    """Let proxies have the class of the value that they stand for, in the functions that forward calls.

    ``__class__`` of a proxy cannot be that class: torch's C++ code would take the proxy for a real tensor.
    """
    answers = {"type": _Type, "isinstance": _isinstance, "len": _len}
    is_tensor = torch.is_tensor
    changed = []
    for names in _globals_of(ann):
        new = {word: answer for word, answer in answers.items() if word not in names}
        new |= {word: _is_tensor for word, x in names.items() if x is is_tensor}  # imported by its name
        changed.append((names, {word: names[word] for word in new if word in names}, new))
        names.update(new)
    torch.is_tensor = _is_tensor  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.is_tensor = is_tensor
        for names, old, new in changed:
            for word in new:
                del names[word]
            names.update(old)


def _globals_of(ann: nn.Module) -> list[dict[str, Any]]:
    """Return the global names of the ANN's methods, and of the functions and classes found under these names."""
    kinds = {kind for module in ann.modules() for kind in type(module).__mro__ if _is_foreign(kind.__module__)}
    waiting = [f for kind in kinds for f in vars(kind).values()]
    found: dict[int, dict[str, Any]] = {}
    seen = set()
    while waiting:
        function = _plain(waiting.pop())
        if function is None or function.__code__ in seen or not _is_foreign(function.__globals__.get("__name__", "")):
            continue
        seen.add(function.__code__)
        names = function.__globals__
        if id(names) not in found:
            found[id(names)] = names
            waiting += [x for x in names.values() if isinstance(x, FunctionType) and _is_foreign(x.__module__)]
        waiting += _named(function)
    return list(found.values())


def _named(function: FunctionType) -> Iterator[Any]:
    """Yield the functions of modules, and the methods of classes, that a function's code names, and its closure."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it is empty
            yield cell.cell_contents
    words = _words(function.__code__)
    for x in (function.__globals__.get(word) for word in words):
        if isinstance(x, ModuleType) and _is_foreign(x.__name__):
            yield from (vars(x)[word] for word in words if isinstance(vars(x).get(word), FunctionType))
        elif isinstance(x, type) and _is_foreign(x.__module__):
            yield from vars(x).values()


def _words(code: CodeType) -> list[str]:
    """Return the global names and attributes in a function's code, and in functions that it defines."""
    inner = [x for x in code.co_consts if isinstance(x, CodeType)]
    return [*code.co_names, *(word for x in inner for word in _words(x))]


def _plain(x: Any) -> FunctionType | None:
    """Return the function of a method, a property or a decorated function."""
    x = getattr(x, "__func__", x.fget if isinstance(x, property) else x)
    inner: Callable[..., Any] = getattr(x, "__wrapped__", x)
    return inner if isinstance(inner, FunctionType) else None


def _is_foreign(module: str | None) -> bool:
    """Whether a module belongs to the user or a library: not to Python, numpy, torch or this package."""
    package = (module or "").partition(".")[0]
    return package not in ("torch", "numpy", __name__.partition(".")[0]) and package not in sys.stdlib_module_names
