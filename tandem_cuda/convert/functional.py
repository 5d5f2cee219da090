"""Write an exported graph without calls that write in place, and without nested graphs."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

VIEWS = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.slice.Tensor,
    aten.select.int, aten.narrow.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.transpose.int, aten.permute.default, aten.t.default, aten.expand.default,
    aten.expand_as.default, aten.view_as.default, aten.detach.default, aten.alias.default, aten.chunk.default,
    aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.movedim.int, aten.swapaxes.default,
    aten.contiguous.default, aten.diagonal.default, aten.unfold.default, aten.numpy_T.default, aten.mT.default,
    aten.split.sizes, aten.tensor_split.sections, aten.hsplit.int, aten.vsplit.int, aten.dropout.default,
    aten.feature_dropout.default, aten.swapdims.default, aten.movedim.intlist, aten.to.dtype, aten.view.dtype,
}  # fmt: skip
"""Calls whose result may share memory with their first argument."""


_UNINITIALISED: dict[Any, Any] = {
    aten.empty_like.default: aten.zeros_like.default,
    aten.new_empty.default: aten.new_zeros.default,
    aten.empty.memory_format: aten.zeros.default,
}
"""Calls that return memory as it is, and calls that return zeros."""


class Unwritable(Exception):
    """A write in place that has no functional form."""


def inlined(graph: fx.Graph, module: fx.GraphModule) -> None:
    """Write the nested graphs of ``torch.no_grad`` and of disabled autocast into the graph itself.

    Raises:
        Unwritable: forward computes under autocast.
    """
    hops = torch.ops.higher_order
    for node in [n for n in graph.nodes if n.op == "call_function"]:
        if node.target is hops.wrap_with_set_grad_enabled:
            enabled, inner, *operands = node.args
            outputs = _inserted(graph, module, node, inner, operands, detach=not enabled)
        elif node.target is hops.wrap_with_autocast:
            *_, enabled, _, inner = node.args[:5]
            operands = node.args[5:]
            if enabled:
                raise Unwritable("it calls torch.autocast; call the network under torch.autocast instead")
            outputs = _inserted(graph, module, node, inner, operands, detach=False)
        else:
            continue
        for user in list(node.users):
            if user.target is not operator.getitem:
                raise Unwritable(f"it calls {node.target} in a form that is not known")
            user.replace_all_uses_with(outputs[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _inserted(graph: fx.Graph, module: fx.GraphModule, at: fx.Node, inner: Any, operands: Any, detach: bool) -> Any:
    nested: Any = module
    for key in str(inner.target).split("."):
        nested = getattr(nested, key)
    inlined(nested.graph, nested)
    values = dict(zip((n for n in nested.graph.nodes if n.op == "placeholder"), operands, strict=True))
    with graph.inserting_before(at):
        for node in nested.graph.nodes:
            if node.op == "output":
                outputs = fx.node.map_arg(node.args[0], values.__getitem__)
            elif node.op != "placeholder":
                values[node] = graph.node_copy(node, values.__getitem__)
        if detach:
            detached = []
            for output in outputs:
                one = graph.call_function(aten.detach.default, (output,))
                one.meta = {k: v for k, v in output.meta.items() if k in ("val", "nn_module_stack")}
                detached.append(one)
            outputs = detached
    return outputs


def functional(graph: fx.Graph) -> None:
    """Replace calls that write in place by calls that return what they would have written.

    Later reads of the memory read the result. A write to a view changes the tensor that it shows a part of, and all
    other views of it. Inputs stay as they are.

    Raises:
        Unwritable: a write to a view that cannot be undone, or to a parameter or buffer.
    """
    _Functional(graph).run()


class _Functional:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.now: dict[fx.Node, fx.Node] = {}
        """For each node of the old graph, the node that holds its present value."""
        self.base: dict[fx.Node, fx.Node] = {}
        """For each view the node that it is a view of."""

    def run(self) -> None:
        for node in list(self.graph.nodes):
            original = node.args, node.kwargs
            node.args = fx.node.map_arg(node.args, self._present)
            node.kwargs = fx.node.map_arg(node.kwargs, self._present)
            if node.op != "call_function":
                continue
            if node.target is aten.lift_fresh_copy.default or node.target is aten.lift_fresh.default:
                self.now[node] = node.args[0]
                continue
            if node.target in _UNINITIALISED:  # all of it is written before it is read
                node.target = _UNINITIALISED[node.target]
            if node.target in VIEWS or (node.target is operator.getitem and original[0][0] in self.base):
                self.base[node] = original[0][0]
            schema = getattr(node.target, "_schema", None)
            if schema is None or not schema.is_mutable:
                continue
            self._written(node, original[0])
        for node in reversed(self.graph.nodes):
            if node in self.now and not node.users:
                self.graph.erase_node(node)
        self.graph.eliminate_dead_code()

    def _present(self, node: fx.Node) -> fx.Node:
        return self.now.get(node, node)

    def _written(self, node: fx.Node, original: tuple[Any, ...]) -> None:
        """Replace a call that writes to its first argument."""
        target: Any = node.target
        if target is aten.batch_norm.default or target is aten.instance_norm.default:
            return
        arguments = target._schema.arguments
        written = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
        name = target._schema.name.removeprefix("aten::")
        if written != [arguments[0].name] or not target._schema.name.startswith("aten::"):
            raise Unwritable(f"it calls {name}, which writes in place; use a form that returns its result")
        with self.graph.inserting_before(node):
            new = self._functional_call(node, target, name)
        new.meta = dict(node.meta)
        self.now[node] = new
        self._propagate(original[0], new)

    def _random_call(self, node: fx.Node, name: str) -> fx.Node | None:
        """Return a call that draws numbers of the size of its first argument; None for calls that do not."""
        normal = aten.normal_functional.default
        form = {"bernoulli_": aten.bernoulli.p, "uniform_": aten.uniform.default, "normal_": normal}.get(name)
        return None if form is None else self.graph.call_function(form, node.args, node.kwargs)

    def _functional_call(self, node: fx.Node, target: Any, name: str) -> fx.Node:
        if name == "copy_":
            return self._copied(node)
        if (drawn := self._random_call(node, name)) is not None:
            return drawn
        if name == "zero_":
            return self.graph.call_function(aten.zeros_like.default, (node.args[0],))
        packet = getattr(aten, name.removesuffix("_"), None)
        overload = getattr(packet, target._overloadname, None)
        if overload is None and target._overloadname == "default" and packet is not None:
            overload = next((getattr(packet, x) for x in packet.overloads() if x in ("Tensor", "default")), None)
        if overload is None:
            raise Unwritable(f"it calls {name}, which has no form that returns its result")
        return self.graph.call_function(overload, node.args, node.kwargs)

    def _copied(self, node: fx.Node) -> fx.Node:
        x: Any = node.args[0]
        source: Any = node.args[1]
        wanted, given = x.meta["val"], source.meta["val"] if isinstance(source, fx.Node) else None
        new = source
        if given is None or given.dtype != wanted.dtype:
            raise Unwritable("it writes values of another dtype in place")
        if given.shape != wanted.shape:
            new = self.graph.call_function(aten.expand_as.default, (source, x))
            new.meta = {"val": wanted}
        return self.graph.call_function(aten.clone.default, (new,))

    def _propagate(self, view: fx.Node, value: fx.Node) -> None:
        """Note that the memory of ``view`` now holds ``value``."""
        self.now[view] = value
        chain = [view]
        while chain[-1] in self.base:
            chain.append(self.base[chain[-1]])
        last = value
        for inner, outer in itertools.pairwise(chain):
            with self.graph.inserting_after(last):
                new = self._put(inner, self._present(outer), last)
            if "val" not in new.meta:
                new.meta = {k: v for k, v in outer.meta.items() if k in ("val", "nn_module_stack")}
            self.now[outer] = last = new
        root = chain[-1]
        if root.op == "get_attr":
            raise Unwritable(f"it writes in place to {root.target}; write to a copy")
        for other in list(self.base):  # views of what has changed are read anew
            if other not in chain and self._root(other) is root:
                with self.graph.inserting_after(last):
                    again = self.graph.node_copy(other, self._present)
                again.meta = dict(other.meta)
                self.now[other] = last = again

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self.base:
            node = self.base[node]
        return node

    def _put(self, view: fx.Node, whole: fx.Node, value: fx.Node) -> fx.Node:
        """Return the whole of which ``view`` shows a part, with ``value`` in its place."""
        call, target = self.graph.call_function, view.target
        args: Any = view.args[1:]
        sizes = list(whole.meta["val"].shape)
        if target is aten.slice.Tensor:
            return call(aten.slice_scatter.default, (whole, value, *args))
        if target is aten.select.int:
            return call(aten.select_scatter.default, (whole, value, *args))
        if target is aten.narrow.default:
            dim, start, length = args
            return call(aten.slice_scatter.default, (whole, value, dim, start, start + length))
        if target is aten.unsqueeze.default:
            return call(aten.squeeze.dim, (value, *args))
        if target is aten.transpose.int:
            return call(aten.transpose.int, (value, *args))
        if target is aten.t.default:
            return call(aten.t.default, (value,))
        if target is aten.permute.default:
            order = [d % len(args[0]) for d in args[0]]
            return call(aten.permute.default, (value, [order.index(i) for i in range(len(order))]))
        same = (aten.detach.default, aten.alias.default, aten.contiguous.default, aten.dropout.default,
                aten.feature_dropout.default, aten.to.dtype)  # fmt: skip
        if target in same and list(value.meta.get("val", view.meta["val"]).shape) == sizes:
            return call(aten.clone.default, (value,)) if target in same[3:] else value
        reshaped = (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int,
                    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)  # fmt: skip
        if target in reshaped and sum(not isinstance(s, int) for s in sizes) <= 1:
            return call(aten.reshape.default, (value, [s if isinstance(s, int) else -1 for s in sizes]))
        raise Unwritable(f"it writes in place to the result of {target}; write to a copy")
