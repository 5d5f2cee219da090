"""Run the graph of an ANN, and check that it computes what the ANN does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from .training_outputs import returns_both


def outputs_of(run: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run the ANN, or its graph, on copies of the inputs, and return the tensors in its result."""
    try:
        out = run(*(x.clone() for x in inputs))
    except Exception as error:  # a user's forward may raise anything
        got = " and ".join(str([*x.shape]) for x in inputs)
        raise ValueError(
            f"convert: ann must take inputs of the example's sizes, with any number of samples, but for {got} its "
            f"forward raises {type(error).__name__}: {error}"
        ) from error
    return [y for y in tree_leaves(out) if isinstance(y, Tensor)]


def check_traced(
    ann: nn.Module, graph: fx.Graph, *inputs: Tensor, root: nn.Module | None = None
) -> dict[fx.Node, torch.Size]:
    """Raise a ValueError if the graph does not compute what the ANN does: torch.fx does not see aliases in Python.

    Returns the sizes of all tensors.
    """
    sizes: dict[fx.Node, torch.Size] = {}

    def note(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            sizes[node] = value.shape

    def alike(one: list[Tensor], other: list[Tensor]) -> bool:
        if [y.shape for y in one] != [y.shape for y in other]:
            return False
        pairs = [(a.double(), b.double()) for a, b in zip(one, other, strict=True)]
        return all(bool((a - b).norm() <= 1e-3 * b.norm()) for a, b in pairs)

    want, got = outputs_of(ann, inputs), outputs_of(Showing(root or ann, graph, note).run, inputs)
    # An ANN that draws random numbers differs from itself.
    if not alike(got, want) and alike(outputs_of(ann, inputs), want):
        raise ValueError(
            "convert: ann must compute the same as its torch.fx trace, got different outputs (does a forward write to "
            "a tensor that has another name, as in y = x; x += z, or use a context manager such as autocast?)"
        )
    return sizes


class Showing(fx.Interpreter):
    """Runs a graph and shows the result of each node to a function: at once, for a later node may overwrite it.

    It returns what forward returns in eval mode.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, show: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(root, graph=graph)
        self.show = show

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        self.show(n, out)
        return out[0] if returns_both(n) else out
