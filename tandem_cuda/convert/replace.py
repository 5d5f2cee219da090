"""Replace activations that have no spiking form by activations that have one: modules, and functions in forward."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any, ClassVar

from torch import fx, nn
from torch.overrides import TorchFunctionMode

from .nodes import kind_of, module_of, scope_of, word_of
from .weight_rules import RULES


class Applied(nn.Module):
    """A function in the place of a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def check_replacements(replace: Any, ann: nn.Module) -> None:
    """Raise a TypeError or ValueError unless ``replace`` maps classes of modules in ``ann``, functions and names.

    What replaces them must be classes of modules, modules, or functions.
    """
    if not isinstance(replace, Mapping):
        raise TypeError(f"convert: replace must be a dict, got {type(replace).__name__}")
    kinds = {type(module) for module in ann.modules()}
    for old, new in replace.items():
        is_function = callable(old) and not isinstance(old, (type, nn.Module)) and hasattr(old, "__name__")
        if not isinstance(old, str) and not _is_module_class(old) and not is_function:
            raise TypeError(f"convert: keys of replace must be module classes, functions or names, got {old!r}")
        if isinstance(old, FunctionType) and old.__module__.partition(".")[0] != "torch":
            raise TypeError(
                f"convert: functions in replace must be torch's, got {old.__module__}.{old.__name__}: make it a module "
                "of the ANN, whose class replace can name"
            )
        if not callable(new) or (isinstance(new, type) and not _is_module_class(new)):
            raise TypeError(
                f"convert: replace[{_word(old)}] must be a module class, a module or a function, got {new!r}"
            )
        if _is_module_class(old) and old not in kinds:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(
                f"convert: replace must name classes of modules in ann, got {old.__name__}; it has {names}"
            )


def plain(name: str) -> str:
    """Return the name that all forms of an activation have in common: SiLU, silu and silu_."""
    return name.lower().replace("_", "")


@contextmanager
def replaced(ann: nn.Module, replace: Mapping[Any, Any]) -> Iterator[list[str]]:
    """Replace modules of ``ann`` itself, and functions that its forward calls; undo it if the context's body fails.

    Functions and names stand for all forms of an activation: of modules, functions and methods.

    Yields:
        The replaced modules in words: "name (SiLU -> ReLU)".
    """
    by_name = {plain(_word(old)): new for old, new in replace.items() if not _is_module_class(old)}
    originals: list[tuple[nn.Module, str, nn.Module]] = []
    names, kind = [], type(ann)
    for path, parent in list(ann.named_modules()):
        for name, child in list(parent._modules.items()):  # named_children skips repeats
            new = replace.get(type(child), by_name.get(plain(type(child).__name__)))
            if child is None or new is None:
                continue
            module = new if isinstance(new, nn.Module) else new() if _is_module_class(new) else Applied(new)
            module.train(child.training)
            setattr(parent, name, module)
            originals.append((parent, name, child))
            names.append(f"{path}.{name}".lstrip(".") + f" ({type(child).__name__} -> {_word(new)})")
    try:
        if by_name:
            ann.__class__ = with_functions(kind, {name: as_function(new) for name, new in by_name.items()})
        yield names
    except BaseException:
        ann.__class__ = kind
        for parent, name, child in originals:
            setattr(parent, name, child)
        raise


# -- functions


class _Calling(TorchFunctionMode):
    """Calls other functions in the place of torch's."""

    def __init__(self, functions: Mapping[str, Any]) -> None:
        super().__init__()
        self.functions = functions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        new = self.functions.get(_plain_of(func))
        if new is None or any(isinstance(x, fx.Proxy) for x in args):  # torch.fx traces the call as it is
            return func(*args, **(kwargs or {}))
        x = args[0] if args else kwargs["input"]
        y = new(x)
        return x.copy_(y) if _is_in_place(word_of(func), kwargs) else y


@functools.lru_cache(maxsize=1024)
def _plain_of(func: Any) -> str:
    return plain(word_of(func))


class WithFunctions:
    """The first base class of an ANN's class after ``replace`` has replaced functions that forward calls."""

    functions: ClassVar[Mapping[str, Any]]
    original: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = getattr(self, "__getstate__", lambda: self.__dict__)()
        return _remade, (type(self).original, dict(type(self).functions)), state


def with_functions(kind: type[nn.Module], functions: Mapping[str, Any]) -> type[nn.Module]:
    """Return a class of modules whose forward calls ``functions`` in place of torch's functions of these names."""
    functions = {**functions_of(kind), **functions}
    original: Any = getattr(kind, "original", kind) if issubclass(kind, WithFunctions) else kind
    calling = _Calling(functions)

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with calling:
            return original.forward(self, *args, **kwargs)

    # torch.fx looks for functions to wrap among the globals of forward.
    forward = FunctionType(run.__code__, original.forward.__globals__, "forward", None, run.__closure__)
    functools.update_wrapper(forward, original.forward)
    body = {"forward": forward, "functions": functions, "original": original, "__module__": original.__module__}
    return type(original.__name__, (WithFunctions, original), body)


def functions_of(kind: type) -> Mapping[str, Any]:
    """Return what modules of a class call in place of torch's functions, by the functions' plain names."""
    return kind.functions if issubclass(kind, WithFunctions) else {}


def _remade(kind: type[nn.Module], functions: Mapping[str, Any]) -> nn.Module:
    remade = with_functions(kind, functions)
    return remade.__new__(remade)


def as_function(new: Any) -> Callable[[Any], Any]:
    """Return what replaces a function, a function or the forward of a module.

    Raises:
        ValueError: a module with parameters, which would be no part of the ANN.
    """
    if not _is_module_class(new) and not isinstance(new, nn.Module):
        function: Callable[[Any], Any] = new
        return function
    module = new if isinstance(new, nn.Module) else new()
    if next(module.parameters(), None) is not None:
        raise ValueError(
            f"convert: modules that replace functions must have no parameters, got {_word(new)}: make it a module of "
            "the ANN, and call it in forward"
        )
    forward: Callable[[Any], Any] = module.forward
    return forward


def swap(graph: fx.Graph, ann: nn.Module, checked: bool) -> tuple[str, ...]:
    """Replace the calls in a graph that forward of the ANN replaces when it runs.

    Args:
        graph: the graph.
        ann: the ANN.
        checked: whether the graph will be compared with the ANN.

    Returns:
        The calls in words: "silu in features.0".

    Raises:
        ValueError: a call overwrites a value that is used again; or without ``checked``, there is a module that may
            call the functions where torch.fx does not see it.
    """
    names, functions = [], functions_of(type(ann))
    for node in [x for x in graph.nodes if x.op in ("call_function", "call_method")] if functions else []:
        new, word = functions.get(_plain_of(node.target)), word_of(node.target)
        if new is None:
            continue
        x, place = node.args[0] if node.args else node.kwargs["input"], f"{word} in {scope_of(node, ann)}"
        if _is_in_place(word, node.kwargs) and len(x.users) > 1:
            raise ValueError(
                f"convert: functions that are replaced must not overwrite a value that is used again, got {place}: "
                "call it out of place"
            )
        before = node.prev
        with graph.inserting_before(node):
            if new in RULES:  # then it is one call, whatever it computes
                out = graph.call_function(new, (x,))
            else:
                out = new(fx.Proxy(x, fx.proxy.GraphAppendingTracer(graph))).node
        while (before := before.next) is not node:
            before.meta |= {key: value for key, value in node.meta.items() if key == "nn_module_stack"}
        names.append(place)
        node.replace_all_uses_with(out)
        graph.erase_node(node)
    opaque = [x.target for x in graph.nodes if x.op == "call_module" and _is_opaque(module_of(ann, x))]
    if names and opaque and not checked:
        raise ValueError(
            f"convert: example must be given if functions are replaced in a network with {opaque[0]}, which may call "
            "them, too, got None"
        )
    return tuple(names)


def _is_opaque(module: nn.Module) -> bool:
    """Whether torch.fx sees one call in place of the functions that a module may call."""
    kind = kind_of(module)
    own = not kind.__module__.startswith(("torch.", "tandem_cuda."))
    return own or isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer))


def _is_in_place(word: str, kwargs: Any) -> bool:
    return word.endswith("_") or (kwargs or {}).get("inplace") is True


# -- what convert says about it


def check_found(
    replace: Mapping[Any, Any], ann: nn.Module, modules: Sequence[str], calls: Sequence[str], graph: fx.Graph
) -> None:
    """Raise a ValueError if the ANN has nothing that a function or a name in ``replace`` stands for.

    If forward calls none of the functions, the ANN gets its own class back.
    """
    kind: Any = type(ann)
    if not calls and issubclass(kind, WithFunctions):
        ann.__class__ = kind.original
    found = {*map(plain, _words(modules, calls))}
    for old in replace:
        if not _is_module_class(old) and plain(_word(old)) not in found:
            nodes = [x for x in graph.nodes if x.op in ("call_function", "call_method")]
            words = ", ".join(sorted({word_of(x.target) for x in nodes})) or "none"
            raise ValueError(
                f"convert: replace must name modules of the ANN or functions that its forward calls, got {_word(old)}; "
                f"it calls {words}"
            )


def warn_of(modules: Sequence[str], calls: Sequence[str], effect: str) -> None:
    """Warn that the ANN computes something else; ``effect`` says how far it is from what it did."""
    if not modules and not calls:
        return
    what = ", ".join(f"{number} {word}" for word, number in Counter(_words(modules, calls)).items())
    warnings.warn(
        f"convert: {what} of the ANN were replaced. It now computes something else and wants fine-tuning{effect}",
        stacklevel=3,
    )


def _words(modules: Sequence[str], calls: Sequence[str]) -> list[str]:
    """Return the names of the classes and functions that were replaced, from what names them with their places."""
    return [x.rpartition(" (")[2].partition(" ->")[0] for x in modules] + [x.partition(" in ")[0] for x in calls]


def _is_module_class(x: Any) -> bool:
    return isinstance(x, type) and issubclass(x, nn.Module)


def _word(x: Any) -> str:
    return type(x).__name__ if isinstance(x, nn.Module) else word_of(x)
