"""An example of the ANN's inputs, which answers what forward asks about sizes while it is traced."""

from __future__ import annotations

import logging
import operator
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from ..nn.classes import is_of_torch
from ..nn.modes import evaluating
from .nodes import asks_for_size, closure, kept, leading_to, module_of, owner_of, word_of
from .trace_errors import ON_BATCH, ON_VALUES, Unanswered


@contextmanager
def running(mode: FakeTensorMode) -> Iterator[None]:
    """Run on fake tensors, and keep torch from logging what fails there."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True
    try:
        with mode, torch.no_grad():
            yield
    finally:
        log.disabled = disabled


class Example:
    """Answers questions about nodes of a graph by running it on fake tensors, of two batch sizes.

    ``parts``: modules that the graph calls and that ``root`` does not have, by target. More may follow.
    """

    def __init__(self, root: nn.Module, parts: Mapping[str, nn.Module], inputs: Sequence[Tensor]) -> None:
        self.root, self.parts, self.inputs = root, parts, inputs
        self.tracing, self.unprepared = True, False
        """Whether forward is being traced, and whether it has asked before torch._dynamo was there."""
        self.fakes: dict[int, tuple[Any, Any]] = {}
        """Parameters and buffers with their fake tensors, by the identity of the real ones."""
        self.values: dict[fx.Node, tuple[Any, ...]] = {}
        """The values of each node, for each batch size."""
        self.placeholders: list[fx.Node] = []
        self.sizes: list[set[int]] = [set() for _ in inputs]
        """The dimensions of each input whose sizes an answer depends on."""
        self.ranked = False
        """Whether an answer depends on a number of dimensions."""

    @cached_property
    def mode(self) -> FakeTensorMode:
        """Made for the first question: torch then imports torch._dynamo, which takes longer than most conversions.

        Not while a forward is traced: torch._dynamo would keep the functions that torch.fx has put in the place of
        Python's and torch's.
        """
        if self.tracing and "torch._dynamo" not in sys.modules:
            self.unprepared = True
            raise RuntimeError("fake tensors need torch._dynamo")
        return FakeTensorMode(allow_non_fake_inputs=True)

    def give(self, placeholders: Iterable[fx.Node]) -> None:
        """Take the inputs as the values of these nodes."""
        self.placeholders = [node for node, _ in zip(placeholders, self.inputs, strict=True)]

    def answer(self, node: fx.Node, length: bool = False) -> Any:
        """Return the value of a node, or its length.

        Raises:
            Unanswered: it depends on values of tensors or on the batch size.
        """
        before = leading_to([node])
        with running(self.mode):
            for x in node.graph.nodes:
                if x in before and x not in self.values:
                    self.values[x] = tuple(self._run(x, i) for i in range(len(_BATCHES)))
        numbers = [self.values[x] for x in self._computed_from(node)]
        if length:
            numbers.append(tuple(map(len, self.values[node])))
        elif self._is_tensor(node):
            raise Unanswered(ON_VALUES)
        if any(len({*x}) > 1 for x in numbers if isinstance(x[0], (bool, int, float))):
            raise Unanswered(ON_BATCH)
        self._note_sizes(before)
        if not length:
            return self.values[node][0]
        if self._is_tensor(node):
            self._note_all_sizes()
        self.ranked = self.ranked or asks_for_size(node)
        return len(self.values[node][0])

    def _is_tensor(self, node: fx.Node) -> bool:
        return any(isinstance(x, Tensor) for x in tree_leaves(self.values[node][0]))

    def _computed_from(self, node: fx.Node) -> set[fx.Node]:
        """Return the node and the nodes that it is computed from, without tensors and the nodes behind tensors."""

        def numbers(nodes: Iterable[fx.Node]) -> list[fx.Node]:
            return [x for x in nodes if not self._is_tensor(x)]

        return closure(numbers([node]), lambda x: numbers(x.all_input_nodes))

    def _run(self, node: fx.Node, i: int) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda x: self.values[x][i])
        target: Any = node.target
        if node.op == "placeholder":
            x = self.inputs[self.placeholders.index(node)]
            return torch.empty((_BATCHES[i], *x.shape[1:]), dtype=x.dtype, device=x.device)
        if node.op == "get_attr":
            return getattr(*owner_of(self.root, target))
        if node.op == "call_module":
            module = self.parts[target] if target in self.parts else self.root.get_submodule(target)
            with evaluating(module), self._faked(module):
                return module.forward(*args, **kwargs)
        return target(*args, **kwargs) if node.op == "call_function" else getattr(args[0], target)(*args[1:], **kwargs)

    @contextmanager
    def _faked(self, module: nn.Module) -> Iterator[None]:
        """Let a layer of torch hold fake tensors: real ones would be made fake anew by every call.

        The sizes of its results depend on sizes alone. Modules of other libraries may read values.
        """
        modules = [*module.modules()]
        real: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for x in modules if all(is_of_torch(type(x)) for x in modules) else ():
                for held in (vars(x)["_parameters"], x._buffers):
                    for name, tensor in held.items():
                        real.append((held, name, tensor))
                        held[name] = self._fake(tensor)
            yield
        finally:
            for held, name, tensor in real:
                held[name] = tensor

    def _fake(self, x: Any) -> Any:
        """Return the fake tensor of a tensor, or the tensor itself if there is none, as of a quantised one."""
        if id(x) not in self.fakes:
            try:
                self.fakes[id(x)] = x, x if x is None else self.mode.from_tensor(x)
            except Exception:  # torch refuses tensors of many kinds, each in its own way
                self.fakes[id(x)] = x, x
        return self.fakes[id(x)][1]

    def _note_sizes(self, nodes: Collection[fx.Node]) -> None:
        """Note which sizes these nodes read. Sizes of intermediate tensors may depend on all sizes of all inputs."""
        for node in nodes:
            if self._is_tensor(node):
                continue
            for x in node.all_input_nodes:
                if self._is_tensor(x):
                    rank = max(y.dim() for y in tree_leaves(self.values[x][0]) if isinstance(y, Tensor))
                    dims = {d % rank for d in _dims_read(node, rank, nodes)} - {0}
                    if x in self.placeholders:
                        self.sizes[self.placeholders.index(x)] |= dims
                    elif dims:
                        self._note_all_sizes()
                    self.ranked = self.ranked or _asks_for_rank(node)

    def _note_all_sizes(self) -> None:
        for x, dims in zip(self.inputs, self.sizes, strict=True):
            dims.update(range(1, x.dim()))

    def fix_sizes(self, graph: fx.Graph, root: nn.Module) -> None:
        """Write sizes into the graph as numbers, except for the batch size, and let it refuse inputs of other sizes."""
        with running(self.mode):
            for node in graph.nodes:
                if node.op != "output" and node not in self.values:
                    try:
                        self.values[node] = tuple(self._run(node, i) for i in range(len(_BATCHES)))
                    except Exception:  # without data, a call may raise anything
                        self.values[node] = (None,) * len(_BATCHES)
        numbers: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), lambda x: numbers.get(x, x))
            if self._is_fixed(node):
                number = self.values[node][0]
                numbers[node] = tuple(number) if isinstance(number, tuple) else number  # not a torch.Size
        for node in reversed(graph.nodes):
            is_read = node.op == "get_attr" or (node.op != "output" and _is_number(self.values[node][0]))
            if is_read and not node.users:
                graph.erase_node(node)
        self._note_all_sizes()
        self.ranked = True
        self.guard(graph, root)

    def shapes(self) -> dict[fx.Node, torch.Size]:
        """Return the sizes of all tensors whose values are known, for the first of two batch sizes."""
        return {node: x.shape for node, (x, *_) in self.values.items() if isinstance(x, Tensor)}

    def sizes_of(self, node: fx.Node) -> torch.Size | None:
        """Return the sizes of a tensor without the batch size; None if its first dimension is not the batch."""
        one, other = self.values[node]
        if not isinstance(one, Tensor) or (*one.shape[:1], *other.shape[:1]) != _BATCHES:
            return None
        return one.shape[1:] if one.shape[1:] == other.shape[1:] else None

    def _is_fixed(self, node: fx.Node) -> bool:
        """Whether a node, whose fixed arguments are numbers by now, is a number that all batch sizes have in common.

        A number that is computed from a batch size may be the same for both batch sizes, but is not for all.
        """
        if node not in self.values:
            return False
        depends = [x for x in node.all_input_nodes if not self._is_tensor(x)]
        if node.target is operator.getitem:  # of a shape, it takes a part
            depends = [x for x in depends if x is not node.args[0]]
        one, other = self.values[node]
        return not depends and _is_number(one) and one == other

    def dropped(self, graph: fx.Graph) -> None:
        """Remove the questions from the graph: calls that do not return tensors and are not used."""
        for node in reversed(graph.nodes):
            if node.op != "placeholder" and not node.users and node in self.values and not self._is_tensor(node):
                graph.erase_node(node)

    def guard(self, graph: fx.Graph, ann: nn.Module) -> None:
        """Make the graph raise an error for an input whose size would have got another answer."""
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        for node, x, dims in zip(placeholders, self.inputs, self.sizes, strict=True):
            checks = [user for user in node.users if user.target is sized_as_traced]
            users = [user for x in (node, *checks) for user in x.users]
            if 1 in dims and any(isinstance(module_of(ann, user), nn.modules.conv._ConvNd) for user in users):
                dims = dims - {1}  # the convolution refuses other numbers of channels
            if not dims and not self.ranked:
                continue
            sizes = tuple(size if d in dims else None for d, size in enumerate(x.shape))
            if checks:
                checks[0].args = node, sizes
                continue
            with graph.inserting_after(placeholders[-1]):
                checked = kept(graph.call_function(sized_as_traced, (node, sizes)))
            if node in self.values:
                self.values[checked] = self.values[node]
            node.replace_all_uses_with(checked, lambda user, checked=checked: user is not checked)


_BATCHES = 2, 11


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) or (isinstance(x, tuple) and all(map(_is_number, x)))


def _dims_read(node: fx.Node, rank: int, nodes: Collection[fx.Node]) -> Iterable[int]:
    """Return the dimensions of a tensor whose sizes ``nodes`` learn from ``node``, a call with the tensor."""
    if not asks_for_size(node):
        word = node.args[1] if node.target is getattr else word_of(node.target)
        return () if word in _WITHOUT_SIZES else range(rank)
    dims_given = [*node.args[1:], *node.kwargs.values()] if node.target == "size" else []
    if dims_given or node.target is len:
        return [x for x in dims_given if isinstance(x, int)] if dims_given else [0]
    users = [user for user in node.users if user in nodes and user.target is not len]
    read = [user.args[1] for user in users if user.target is operator.getitem]
    dims = [dim for dim in read if isinstance(dim, int)]
    return dims if len(dims) == len(users) else range(rank)


def _asks_for_rank(node: fx.Node) -> bool:
    words = {"dim", "ndim", "ndimension"}
    if node.target in words or (node.target is getattr and node.args[1] in words):
        return True
    return asks_for_size(node) and any(user.target is len for user in node.users)


_WITHOUT_SIZES = {"dim", "ndim", "ndimension", "dtype", "device", "is_cuda", "is_floating_point", "requires_grad"}
"""Attributes and methods of tensors that do not depend on sizes."""


def sized_as_traced(x: Tensor, sizes: Sequence[int | None]) -> Tensor:
    """Return x if it has the sizes that the ANN's control flow was traced for.

    Args:
        x: an input of the ANN.
        sizes: its sizes; None for any.

    Raises:
        ValueError: x has other sizes.
    """
    if len(x.shape) != len(sizes) or any(size not in (None, got) for size, got in zip(sizes, x.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(
            f"TandemNetwork: input must be [{wanted}], for which convert has traced the ANN, got {list(x.shape)}. Call "
            "convert again with an example of that size"
        )
    return x
