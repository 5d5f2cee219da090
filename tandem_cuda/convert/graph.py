"""The graph of an ANN: the ATen calls of its forward in eval mode, as torch.export sees them."""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import io
import logging
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._pytree import TreeSpec, tree_leaves, tree_map_only, tree_unflatten

from ..nn.modes import evaluating
from ..nn.quantised import unquantise_layers, weight_layers
from ..nn.quantiser import WeightQuantiser
from .functional import Unwritable, functional, inlined
from .inputs import Inputs, copied
from .nodes import is_setting, word_of
from .training import Differs, Training, as_in_eval, compared, is_random

aten = torch.ops.aten
_TORCH = str(Path(torch.__file__).parent)
_ROUNDED = re.compile(r"(^|\.)parametrizations\.(\w+)\.original$")
"""The names of weights that a quantiser rounds."""
LIFTED = "_constant."
"""The first part of the names of constants that forward makes itself."""
_SAMPLES = 3
"""Samples of the example. torch.export takes 0 and 1 for sizes that are fixed; 2 is a common number of parts."""


@dataclass
class Graph:
    """The ATen calls of an ANN's forward.

    Parameters, buffers and constants are ``get_attr`` nodes, whose targets are their names. ``node.meta["val"]`` is a
    fake tensor with the sizes of the node's value. The batch size is a symbol in them.
    """

    ann: nn.Module
    graph: fx.Graph
    inputs: Inputs
    constants: dict[str, Tensor]
    """The tensors that are neither parameters nor buffers, by name."""
    out_spec: TreeSpec
    volatile: frozenset[tuple[str, str]] = frozenset()
    """The attributes that forward itself changes, by the names of module and attribute."""
    training: Training = field(default_factory=Training)
    """What forward does differently in training."""

    def tensor(self, name: str) -> Any:
        """Return a parameter, buffer or constant by its name. A weight is rounded if it was so at the export."""
        if name in self.constants:
            return self.constants[name]
        rounded = self._is_rounded(name)
        path, _, key = (_ROUNDED.sub(r"\1\2", name) if rounded else name).rpartition(".")
        with contextlib.nullcontext() if rounded else WeightQuantiser.transparent():
            return getattr(self.ann.get_submodule(path), key)

    def _is_rounded(self, name: str) -> bool:
        path, _, key = name.rpartition(".")
        if key != "original":
            return False
        holder = self.ann.get_submodule(path)
        return isinstance(holder, ParametrizationList) and isinstance(holder[0], WeightQuantiser)

    @property
    def rounded(self) -> frozenset[str]:
        """The names of the weights that the ANN rounded when it was exported."""
        names = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        return frozenset(_ROUNDED.sub(r"\1\2", name) for name in names - {*self.constants} if self._is_rounded(name))

    def copied(self) -> Graph:
        """Return the graph of a copy of the ANN, which rounds the weights that the ANN rounded at the export."""
        ann, rounded = copy.deepcopy(self.ann), self.rounded
        unquantise_layers(x for name, x in weight_layers(ann) if f"{name}.weight".lstrip(".") not in rounded)
        return replace(self, ann=ann)

    @property
    def description(self) -> str:
        """The calls and their arguments, to compare two graphs."""
        return described(self.graph)

    def run(self, batch: tuple[Any, ...], show: Callable[[fx.Node, Any], None]) -> Any:
        """Run the graph on the arguments of forward, and show the value of each node."""
        outputs = Showing(self, show).run(*self.inputs.leaves(batch))
        return tree_unflatten(list(outputs[0]), self.out_spec)


class Showing(fx.Interpreter):
    """Runs a graph, and shows the value of each node to a function."""

    def __init__(self, graph: Graph, show: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(graph.ann, graph=graph.graph)
        self.source, self.show = graph, show

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.source.tensor(target)

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        self.show(n, out)
        return out


def described(graph: fx.Graph) -> str:
    """Return the calls of a graph and their arguments in words, whatever the names of nodes."""
    words: dict[fx.Node, str] = {}
    lines: list[str] = []
    for node in graph.nodes:
        if node.op == "get_attr":
            words[node] = _ROUNDED.sub(r"\1\2", str(node.target))
            continue
        given = node.args
        if node.target is aten.batch_norm.default:
            given = (*given[:6], *given[7:])  # both twins have the module's present momentum
        args: Any = fx.node.map_arg((given, node.kwargs), words.__getitem__)
        words[node] = f"%{len(lines)}"
        lines.append(f"{node.op} {'' if node.op == 'placeholder' else node.target} {args}")
    return "\n".join(lines)


def exported(ann: nn.Module, example: tuple[Any, ...]) -> Graph:
    """Export the forward of an ANN.

    Args:
        ann: the ANN.
        example: the arguments of forward, of at least one sample.

    Raises:
        ValueError: torch.export cannot export forward; the message has its reason, and the line of forward. Or the
            batch size is fixed, or forward changes buffers in eval mode.
    """
    if isinstance(ann, torch.export.ExportedProgram):
        raise TypeError("exported: ann must be a module, got an ExportedProgram; pass program.module()")
    inputs = Inputs.of(ann, example)
    samples = inputs.resized(example, _SAMPLES)
    with evaluating(ann), _unchanged(ann) as changed, _quiet():
        graph = _of_program(ann, _exported(ann, inputs, samples), inputs)
    graph.volatile = frozenset(changed)
    try:
        graph.training = _in_training(graph, samples)
    except Differs as error:
        raise ValueError(f"convert: forward of {type(ann).__name__} cannot be converted: {error}") from None
    return graph


def check_one_sample(graph: Graph, example: tuple[Any, ...]) -> None:
    """Run forward on one sample, and compare it with the graph.

    Raises:
        ValueError: forward computes something else for one sample: torch.export looks at larger batches. Or it calls
            functions with a backward of their own, which the graph does not have.
    """
    ann = graph.ann
    sample = tree_map_only(Tensor, _with_gradient, graph.inputs.resized(example, 1))
    with evaluating(ann), _unchanged(ann) as changed, _quiet(), torch.enable_grad():
        args, kwargs = graph.inputs.call(copied(sample))  # forward may write to its inputs
        theirs = tree_leaves(ann(*args, **kwargs))
        ours = tree_leaves(graph.run(sample, lambda *_: None))
    graph.volatile |= changed
    name = type(ann).__name__
    if function := _own_backward([x.grad_fn for x in theirs if isinstance(x, Tensor)]):
        raise ValueError(
            f"convert: forward of {name} cannot be converted: it calls torch.autograd.Function {function}, whose "
            "backward would be lost"
        )
    if any(is_random(node) for node in graph.graph.nodes) or any(x.is_meta for x in ann.parameters()):
        return
    pairs = [(x, y) for x, y in zip(ours, theirs, strict=False) if isinstance(x, Tensor) and x.is_floating_point()]
    alike = all(x.shape == y.shape and (x - y).norm() <= 1e-2 * y.norm() for x, y in pairs if y.isfinite().all())
    if len(ours) != len(theirs) or not alike:
        raise ValueError(
            f"convert: forward of {name} must take any number of samples, but for one sample it computes something "
            "else than for several"
        )


def _with_gradient(x: Tensor) -> Tensor:
    return x.requires_grad_() if x.is_floating_point() else x


def _own_backward(waiting: list[Any]) -> str:
    """Return the name of a function with a backward of its own among those that lead to these; "" if there is none."""
    seen: set[Any] = set()
    while waiting:
        function = waiting.pop()
        if function is not None and function not in seen:
            seen.add(function)
            waiting += [before for before, _ in function.next_functions]
            kind = getattr(function, "_forward_cls", None)
            if kind is not None and not kind.__module__.startswith("torch."):
                return str(kind.__name__)
    return ""


def _in_training(graph: Graph, samples: tuple[Any, ...]) -> Training:
    """Export forward in training mode, and return how it differs."""
    ann = graph.ann
    if not any(_depends_on_mode(module) for module in ann.modules()):
        return Training()
    modes = [(module, module.training) for module in ann.modules()]
    before = random.getstate()
    try:
        ann.train()
        for module in ann.modules():
            if _iterates(module):  # its weights move in training alone; the twins compute them by this module
                module.training = False
        with _unchanged(ann), _quiet():
            try:
                program = _exported(ann, graph.inputs, samples)
            except ValueError as error:
                reason = str(error).removeprefix("convert: ")
                return Training(notes=(f"trains as in eval mode, because in training mode {reason}",))
            theirs = _of_program(ann, program, graph.inputs, training=True)
    finally:
        drawn = random.getstate() != before
        random.setstate(before)
        for module, mode in modes:
            module.training = mode
    return compared(graph.graph, theirs.graph, graph.out_spec, theirs.out_spec, drawn)


def _iterates(module: nn.Module) -> bool:
    """Whether a module is torch's spectral norm, or has it as a hook: in training it moves its vectors."""
    hooks = module._forward_pre_hooks.values()
    named = any(type(hook).__module__ == "torch.nn.utils.spectral_norm" for hook in hooks)
    return named or isinstance(module, torch.nn.utils.parametrizations._SpectralNorm)


def _depends_on_mode(module: nn.Module) -> bool:
    """Whether a module may compute something else in training, beside what torch's own modules do."""
    return not type(module).__module__.startswith("torch.nn.modules")


def _exported(ann: nn.Module, inputs: Inputs, samples: tuple[Any, ...]) -> Any:
    args, kwargs = inputs.call(samples)
    if any(isinstance(module, LazyModuleMixin) for module in ann.modules()):
        with torch.no_grad():
            ann(*args, **kwargs)  # makes its parameters
    named = inspect.signature(ann.forward).bind(*args, **kwargs).arguments
    shapes = {name: _free_batch(x) for name, x in named.items()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # torch.export prints the graph so far before it raises.
        with contextlib.redirect_stderr(io.StringIO()), _uncollected():
            return torch.export.export(ann, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # forward may raise anything
        raise ValueError(_reason(ann, error)) from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Put off garbage collection, which takes a quarter of the time of an export."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _free_batch(x: Any) -> Any:
    """Return torch.export's description of sizes: the first dimension of each tensor is free."""
    if isinstance(x, Tensor):
        return {0: torch.export.Dim.AUTO} if x.dim() else None
    if isinstance(x, dict):
        return {key: _free_batch(value) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(*map(_free_batch, x)) if hasattr(x, "_fields") else type(x)(map(_free_batch, x))
    return None


def _reason(ann: nn.Module, error: Exception) -> str:
    """Return why forward cannot be exported, in one line, with the line of forward."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    where = ""
    if "The following call raised this error:" in text:
        lines = text.split("The following call raised this error:")[1].strip().splitlines()
        where = " ".join(line.strip() for line in lines[:2])
    else:
        here, in_forward = error.__traceback__, False
        while here is not None:  # the innermost line of the user
            code, module = here.tb_frame.f_code, here.tb_frame.f_locals.get("self")
            is_forward = code.co_name == "forward" and isinstance(module, nn.Module)
            in_forward = in_forward or is_forward
            if in_forward and not (where and code.co_filename.startswith(_TORCH)):
                of = f" of {type(module).__name__}" if is_forward else ""
                where = f'File "{code.co_filename}", line {here.tb_lineno}, in {code.co_name}{of}'
            here = here.tb_next
    return f"convert: torch.export cannot export forward of {type(ann).__name__}: {first.rstrip('.')}" + (
        f" ({where})" if where else ""
    )


def _of_program(ann: nn.Module, program: Any, inputs: Inputs, training: bool = False) -> Graph:
    """Return the graph of an exported program."""
    graph, constants, copies = fx.Graph(), dict[str, Tensor](), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(program.graph_module.graph, copies))
    original = {copy: node.name for node, copy in copies.items()}
    name, fixed = type(ann).__name__, list[str]()
    signature = program.graph_signature
    held = {spec.arg.name: spec for spec in signature.input_specs}
    tensors = iter(inputs.leaf_names)
    for node in [n for n in graph.nodes if n.op == "placeholder"]:
        spec = held[original[node]]
        if spec.kind is torch.export.graph_signature.InputKind.USER_INPUT:
            if not isinstance(node.meta.get("val"), Tensor):  # a constant of the example
                if node.users:
                    raise ValueError(f"convert: inputs of {name} must be Tensors, got {node.name}")
                graph.erase_node(node)
                continue
            where = next(tensors)
            if node.users:
                fixed += _assumed(where, node.meta["val"].shape[0])
            continue
        target = str(spec.target)
        if spec.kind is torch.export.graph_signature.InputKind.CONSTANT_TENSOR:
            target = target if _has(ann, target) else LIFTED + target
            constants[target] = program.constants[str(spec.target)]
        with graph.inserting_before(node):
            held_tensor = graph.create_node("get_attr", target, name=node.name)
        held_tensor.meta = dict(node.meta)
        node.replace_all_uses_with(held_tensor)
        graph.erase_node(node)
    if fixed:
        raise ValueError(
            f"convert: forward of {name} must take any number of samples, but it wants the batch size of "
            f"{', '.join(dict.fromkeys(fixed))} (does it compare the size with a number, or view it as one?)"
        )
    output = graph.output_node()
    changed = [spec for spec in signature.output_specs if spec.kind.name not in ("USER_OUTPUT",)]
    if changed:
        raise ValueError(f"convert: forward of {name} must not change {changed[0].target}")
    try:
        inlined(graph, program.graph_module)
        if training:
            as_in_eval(graph)
            _leave_out_statistics(graph)
        functional(graph)
    except Unwritable as error:
        raise ValueError(f"convert: forward of {name} cannot be converted: {error}") from None
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _ASSERTIONS:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    returned: Any = output.args[0]
    output.args = ((tuple(returned),),)
    for node in [n for n in graph.nodes if n.op == "get_attr" and not n.users]:
        graph.erase_node(node)
    return Graph(ann, _numbered(graph), inputs, constants, program.call_spec.out_spec)


def _numbered(graph: fx.Graph) -> fx.Graph:
    """Return a graph whose calls of each operator are numbered: names do not depend on writes in place."""
    numbered, copies, counts = fx.Graph(), dict[fx.Node, fx.Node](), Counter[str]()
    for node in graph.nodes:
        if node.op == "call_function":
            word = word_of(node.target).strip("_")
            node.name = f"{word}_{counts[word]}" if counts[word] else word
            counts[word] += 1
        copies[node] = numbered.node_copy(node, copies.__getitem__)
    numbered.lint()
    return numbered


def _assumed(where: str, size: Any) -> Iterator[str]:
    """Yield in words what the export has assumed of the batch size of an input."""
    if isinstance(size, int) or size.node.expr.is_number:
        yield f"{where} to be {size}"
        return
    symbols = size.node.shape_env
    for condition in (symbols.replace(guard.expr) for guard in symbols.guards):
        # torch's CUDA kernels of batch norm are for less samples than that, and it has other ones.
        many = getattr(condition, "rel_op", "") in ("<", "<=") and condition.lhs == size.node.expr
        many = many and condition.rhs.is_number and condition.rhs >= 2**15
        if size.node.expr in condition.free_symbols and not many:
            yield f"{where}, N, to obey {str(condition).replace(str(size.node.expr), 'N')}"


_ASSERTIONS = (aten._assert_scalar.default, aten._assert_tensor_metadata.default, aten._assert_async.msg)


def _has(ann: nn.Module, name: str) -> bool:
    path, _, key = name.rpartition(".")
    with contextlib.suppress(AttributeError):
        return isinstance(getattr(ann.get_submodule(path), key), Tensor)
    return False


def _leave_out_statistics(graph: fx.Graph) -> None:
    """Drop the counting of batches, which batch norm does in training."""
    for node in list(graph.nodes):
        counts = node.target is aten.add_.Tensor and isinstance(node.args[0], fx.Node)
        if counts and node.args[0].op == "get_attr" and str(node.args[0].target).endswith("num_batches_tracked"):
            node.replace_all_uses_with(node.args[0])  # of batch norms that are called twice
            graph.erase_node(node)


@contextlib.contextmanager
def _unchanged(ann: nn.Module) -> Iterator[set[tuple[str, str]]]:
    """Undo what forward writes to attributes: after an export these would hold fake tensors.

    Yields:
        A set that holds the names of these attributes, and of their modules, when the context ends.
    """
    kept = [(name, vars(module), _plain(module)) for name, module in ann.named_modules()]
    changed: set[tuple[str, str]] = set()
    try:
        yield changed
    finally:
        for name, values, before in kept:
            was = {key: x for key, (x, _) in before.items()}
            changed |= {(name, key) for key in {*values, *was} if not _same(values.get(key), was.get(key))}
            for key in [key for key in values if key not in before]:
                del values[key]
            for key, (x, copy) in before.items():
                values[key] = x
                if type(x) is list:
                    x[:] = copy
                elif type(x) is dict:
                    x.clear()
                    x.update(copy)


def _same(one: Any, other: Any) -> bool:
    """Whether two attributes are one object, or equal settings: torch.export makes new tuples of the old ones."""
    return one is other or (is_setting(one) and is_setting(other) and bool(one == other))


def _plain(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return the attributes of a module, with copies of lists and dicts."""
    return {key: (x, type(x)(x) if type(x) in (list, dict) else None) for key, x in vars(module).items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch.export says while it looks for a graph, and let quantised weights pass as they are."""
    names = "torch.fx.experimental.symbolic_shapes", "torch._export", "torch.export", "torch._subclasses.fake_tensor"
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), WeightQuantiser.transparent():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
