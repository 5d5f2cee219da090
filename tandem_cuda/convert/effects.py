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

from .aliases import VIEW_FUNCTIONS, writes
from .nodes import asks_for_size, module_of, owner_of, scope_of, word_of

_FUNCTION, _NO_GRAD = "autograd.Function", "no_grad"
"""In the meta of nodes: the class of the function that makes the node, and whether gradients were disabled there."""
_APPLY = inspect.unwrap(vars(torch.autograd.Function)["apply"].__func__).__code__
_TRACE = inspect.unwrap(fx.Tracer.trace).__code__


def note_context(node: fx.Node) -> None:
    """Note in the meta of a node how the forward that is being traced calls it."""
    if not torch.is_grad_enabled():
        node.meta[_NO_GRAD] = True
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code is not _TRACE:
        if frame.f_code is _APPLY:
            node.meta[_FUNCTION] = frame.f_locals["cls"]
            return
        frame = frame.f_back


class Effects:
    """What forward has done to the ANN while it was traced."""

    def __init__(self, ann: nn.Module) -> None:
        self.ann = ann
        self.stored: set[str] = set()
        """The attributes in which forward stored results."""
        self.written: list[str] = []
        """The parameters and buffers that it has changed."""
        modules = [(name, x) for name, x in ann.named_modules() if not isinstance(x, LazyModuleMixin)]
        self._attributes = [(name, module, {**vars(module)}) for name, module in modules]
        self._held = [(name, module._buffers, {**module._buffers}) for name, module in modules]
        lazy = {id(x) for module in ann.modules() if isinstance(module, LazyModuleMixin) for x in module.buffers()}
        told = [(name, x) for name, x in _tensors(ann) if not _is_untold(x) and id(x) not in lazy]
        self._versions = [(name, x, x._version) for name, x in told]
        self._buffers = {id(x): x.detach().clone() for _, x in told if not isinstance(x, nn.Parameter)}

    @torch.no_grad()
    def undo(self) -> None:
        """Give buffers and attributes their values back. Constants that torch.fx has added stay."""
        for name, x, version in self._versions:
            before = self._buffers.get(id(x))
            if x._version != version or (before is not None and not _equal(x, before)):
                self.written.append(name)
                if before is not None:
                    x.copy_(before)
        self._versions = [(name, x, x._version) for name, x, _ in self._versions]
        for path, buffers, held in self._held:
            for name in [name for name, x in buffers.items() if x is not held.get(name)]:
                self.written.append(f"{path}.{name}" if path else name)
                buffers[name] = held.get(name)
        for path, module, attributes in self._attributes:
            for name, x in [*vars(module).items()]:
                known = attributes.get(name)
                if isinstance(x, fx.Proxy):
                    self.stored.add(f"{path}.{name}" if path else name)
                elif name == "training" or x is known or not isinstance(known, (bool, int, float, str)):
                    continue
                if name in attributes:
                    vars(module)[name] = known
                else:
                    del vars(module)[name]


def _tensors(ann: nn.Module) -> list[tuple[str, Tensor]]:
    return [*ann.named_parameters(remove_duplicate=False), *ann.named_buffers(remove_duplicate=False)]


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.is_meta or bool(((x == y) | ((x != x) & (y != y))).all())


def _is_untold(x: Tensor) -> bool:
    """Whether a tensor does not tell of its changes."""
    return nn.parameter.is_lazy(x) or x.is_inference()


@contextmanager
def undoing(ann: nn.Module) -> Iterator[Effects]:
    """Undo what forward does to the ANN while it is traced and compared with its graph."""
    effects = Effects(ann)
    try:
        yield effects
    finally:
        effects.undo()


def refuse_effects(graph: fx.Graph, ann: nn.Module, root: nn.Module) -> None:
    """Raise a ValueError for what forward does in training, and a graph of its calls does not.

    Args:
        graph: of a trace in training.
        ann: the network.
        root: the module that has the modules that the graph calls.
    """
    written, known = [], {_address(x): name for name, x in _tensors(ann) if not nn.parameter.is_lazy(x)}
    trained: set[fx.Node] = set()
    for node in graph.nodes:
        if (function := node.meta.get(_FUNCTION)) is not None:
            raise ValueError(
                f"convert: ann must use functions that torch.fx can trace, got the torch.autograd.Function "
                f"{function.__name__} in {scope_of(node, ann)}, whose backward would be lost: use functions of torch"
            )
        if _is_trained(node, root) or not trained.isdisjoint(node.all_input_nodes):
            trained.add(node)
            if node.meta.get(_NO_GRAD) and node.op != "get_attr" and not asks_for_size(node):
                raise ValueError(
                    "convert: ann must compute its gradients by all that its forward calls, got torch.no_grad() around "
                    f"{word_of(node.target)} in {scope_of(node, ann)}: call requires_grad_(False) for parameters that "
                    "are not trained"
                )
        if node.op not in ("placeholder", "output", "get_attr") and writes(root, node):
            address = _address(_memory_of(node.args[0], root)) if node.args else None
            if address is not None and address in known:
                written.append(known[address])
    refuse_written(written)


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
        return bool(getattr(*owner_of(root, str(node.target))).requires_grad)
    module = module_of(root, node)
    return module is not None and any(x.requires_grad for x in module.parameters())


def _memory_of(x: Any, root: nn.Module) -> Any:
    """Return the tensor whose memory a node returns, if it is one that the module holds; else None."""
    while isinstance(x, fx.Node) and x.op != "get_attr" and word_of(x.target) in VIEW_FUNCTIONS and x.args:
        x = x.args[0]
    return getattr(*owner_of(root, str(x.target))) if isinstance(x, fx.Node) and x.op == "get_attr" else None


def _address(x: Any) -> int | None:
    """Return the address of a tensor's memory; None if it has none."""
    return x.untyped_storage().data_ptr() or None if isinstance(x, Tensor) else None
