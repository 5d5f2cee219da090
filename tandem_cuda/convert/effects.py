"""What forward does beside returning outputs: the graph of a trace, and so the spiking network, would not do it."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_leaves

from .. import _C
from .aliases import VIEW_FUNCTIONS, writes
from .nodes import asks_for_size, module_of, owner_of, scope_of, word_of

_FUNCTION, _NO_GRAD = "autograd.Function", "no_grad"
"""In the meta of nodes: the class of the function that makes the node, and whether gradients were disabled there."""
_APPLY = vars(torch.autograd.Function)["apply"]
_APPLY_CODE = inspect.unwrap(_APPLY.__func__).__code__
_TRACE = inspect.unwrap(fx.Tracer.trace).__code__
_COPYING = {"to", "type", "float", "double", "contiguous", "reshape"}
"""Functions of VIEW_FUNCTIONS that may make a copy."""


def note_context(node: fx.Node) -> None:
    """Note in the meta of a node how the forward that is being traced calls it."""
    if not torch.is_grad_enabled():
        node.meta[_NO_GRAD] = True
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code is not _TRACE:
        if frame.f_code is _APPLY_CODE:
            function = frame.f_locals["cls"]
            if _is_of_torch(function):  # as a checkpoint's, which computes gradients by its own means
                node.meta.pop(_NO_GRAD, None)
            else:
                node.meta[_FUNCTION] = function
            return
        frame = frame.f_back


def _is_of_torch(function: type[Any]) -> bool:
    return function.__module__.partition(".")[0] == "torch"


class Effects:
    """What forward has done to the ANN while it was traced."""

    def __init__(self, ann: nn.Module) -> None:
        self.stored: set[str] = set()
        """The attributes in which forward stored results."""
        self.written: list[str] = []
        """The parameters and buffers that it has changed."""
        self.functions: list[type[Any]] = []
        """The functions with a backward of their own that it has called."""
        modules = [(name, x) for name, x in ann.named_modules() if not isinstance(x, LazyModuleMixin)]
        self._held = [(name, module._buffers, {**module._buffers}) for name, module in modules]
        self._attributes = [(name, module, {**vars(module)}, _contents(module)) for name, module in modules]
        lazy = {id(x) for module in ann.modules() if isinstance(module, LazyModuleMixin) for x in module.buffers()}
        self._watched = [(name, x) for name, x in _tensors(ann) if id(x) not in lazy and not _hides_changes(x)]
        self._states = [_state(x) for _, x in self._watched]
        self._buffers = {id(x): x.detach().clone() for _, x in self._watched if not isinstance(x, nn.Parameter)}

    @torch.no_grad()
    def undo(self) -> None:
        """Give buffers and attributes their values back. Parameters keep theirs, and what forward has added stays."""
        for i, (name, x) in enumerate(self._watched):
            if _state(x) != self._states[i]:
                self.written.append(name)
                x.requires_grad_(self._states[i][0])
                if id(x) in self._buffers:
                    x.copy_(self._buffers[id(x)])
                self._states[i] = _state(x)
        for path, buffers, held in self._held:
            for name in [name for name, x in held.items() if buffers.get(name) is not x]:
                self.written.append(f"{path}.{name}".lstrip("."))
                buffers[name] = held[name]
        for path, module, attributes, contents in self._attributes:
            for name, x in [*vars(module).items()]:
                if name in _INTERNAL or name == "training":
                    continue
                proxies = _proxies(x)
                if not all(_is_size(proxy.node) for proxy in proxies):
                    self.stored.add(f"{path}.{name}".lstrip("."))
                if not proxies and not isinstance(attributes.get(name), _PLAIN):
                    continue
                if name not in attributes:
                    del vars(module)[name]
                elif attributes[name] is not x:
                    vars(module)[name] = attributes[name]
                elif isinstance(x, list):
                    x[:] = contents[name]
                elif isinstance(x, dict):
                    x.clear()
                    x.update(contents[name])


_PLAIN = (bool, int, float, str)
_INTERNAL = {*vars(nn.Module())}


def _contents(module: nn.Module) -> dict[str, Any]:
    """Return copies of the lists and dicts among the attributes of a module."""
    return {name: x.copy() for name, x in vars(module).items() if isinstance(x, (list, dict)) and name not in _INTERNAL}


def _proxies(x: Any) -> list[fx.Proxy]:
    leaves = tree_leaves(x) if type(x) in (list, tuple, dict) else [x]
    return [leaf for leaf in leaves if isinstance(leaf, fx.Proxy)]


def _is_size(node: fx.Node) -> bool:
    """Whether a node computes sizes, and no tensor."""
    if asks_for_size(node):
        return True
    return bool(node.all_input_nodes) and node.op == "call_function" and all(map(_is_size, node.all_input_nodes))


def _tensors(ann: nn.Module) -> list[tuple[str, Tensor]]:
    return [*ann.named_parameters(remove_duplicate=False), *ann.named_buffers(remove_duplicate=False)]


def _state(x: Tensor) -> tuple[bool, int, int]:
    """Return what changes with a tensor: whether it is trained, its version, and on a CPU a fingerprint of its values.

    The fingerprint of a large tensor may miss a small change.
    """
    behind = int(x.untyped_storage().nbytes() - x.storage_offset() * x.element_size()) if x.is_cpu else 0
    return x.requires_grad, x._version, _C.fingerprint([(x.data_ptr(), min(x.nbytes, behind))] if behind else [])


def _hides_changes(x: Tensor) -> bool:
    """Whether changes of a tensor cannot be seen by its version and its memory."""
    return nn.parameter.is_lazy(x) or x.layout != torch.strided or x.is_nested or x.is_quantized or x.is_inference()


@contextmanager
def undoing(ann: nn.Module) -> Iterator[Effects]:
    """Undo what forward does to the ANN while it is traced and compared with its graph."""
    effects = Effects(ann)
    try:
        yield effects
    finally:
        effects.undo()


@contextmanager
def noting_functions(effects: Effects) -> Iterator[None]:
    """Note which functions with a backward of their own forward calls. torch._dynamo must not be imported meanwhile.

    Forward calls ``apply`` of classes that are not known before, and they inherit it: so their base class is patched.
    """

    def apply(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(x, fx.Proxy) for x in (*args, *kwargs.values())) and not _is_of_torch(cls):
            effects.functions.append(cls)  # which may return its input, so that no node tells of it
        return _APPLY.__func__(cls, *args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]  # a patch
    try:
        yield
    finally:
        torch.autograd.Function.apply = _APPLY  # type: ignore[method-assign]  # ends the patch


def refuse_effects(graph: fx.Graph, ann: nn.Module, root: nn.Module, functions: Sequence[type[Any]]) -> None:
    """Raise a ValueError for what forward does in training, and a graph of its calls does not.

    Args:
        graph: of a trace in training.
        ann: the network.
        root: the module that has the modules that the graph calls.
        functions: the functions with a backward of their own that forward has called.
    """
    written, known = [], {_address(x): name for name, x in _tensors(ann)}
    trained: set[fx.Node] = set()
    for node in graph.nodes:
        if (function := node.meta.get(_FUNCTION)) is not None:
            _refuse_function(function, scope_of(node, ann))
        if _is_size(node) or word_of(node.target) == "detach":
            continue
        if _is_trained(node, root) or not trained.isdisjoint(node.all_input_nodes):
            trained.add(node)
            if node.meta.get(_NO_GRAD) and node.op != "get_attr":
                raise ValueError(
                    "convert: ann must compute its gradients by all that its forward calls, got torch.no_grad() around "
                    f"{word_of(node.target)} in {scope_of(node, ann)}: call requires_grad_(False) for parameters that "
                    "are not trained"
                )
        if node.op not in ("placeholder", "output", "get_attr") and writes(root, node):
            address = _address(_memory_of(node.args[0], root)) if node.args else None
            if address is not None and address in known:
                written.append(known[address])
    for function in functions:
        _refuse_function(function, type(ann).__name__)
    refuse_written(written)


def _refuse_function(function: type[Any], where: str) -> None:
    raise ValueError(
        f"convert: ann must use functions that torch.fx can trace, got the torch.autograd.Function "
        f"{function.__name__} in {where}, whose backward would be lost: use functions of torch"
    )


def refuse_written(names: list[str]) -> None:
    """Raise a ValueError if forward has changed parameters or buffers of these names."""
    if names:
        raise ValueError(
            "convert: ann must not change parameters or buffers in forward, which the spiking network would not do, "
            f"got changes of {', '.join(dict.fromkeys(names))}: change them outside of forward, as behind each step "
            "of the optimizer"
        )


def warn_of_stored(attributes: Sequence[str]) -> None:
    """Warn that forward stores tensors in these attributes."""
    if attributes:
        warnings.warn(
            f"convert: forward stores tensors in {', '.join(attributes)}, which the spiking network will not do. To "
            "change that: return them, in training alone if they are needed there alone",
            stacklevel=3,
        )


def _is_trained(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node has parameters that are trained."""
    if node.op == "get_attr":
        return bool(getattr(getattr(*owner_of(root, str(node.target))), "requires_grad", False))
    module = module_of(root, node)
    return module is not None and any(x.requires_grad for x in module.parameters())


def _memory_of(x: Any, root: nn.Module) -> Any:
    """Return the tensor whose memory a node returns, if it is one that the module holds; else None."""
    views = VIEW_FUNCTIONS - _COPYING
    while isinstance(x, fx.Node) and x.op != "get_attr" and word_of(x.target) in views and x.args:
        x = x.args[0]
    return getattr(*owner_of(root, str(x.target))) if isinstance(x, fx.Node) and x.op == "get_attr" else None


def _address(x: Any) -> int | None:
    """Return the address of a tensor's memory; None if it has none."""
    return None if not isinstance(x, Tensor) or _hides_changes(x) else x.untyped_storage().data_ptr() or None
