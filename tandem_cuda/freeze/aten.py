"""Calls of ATen operators, and constants: what is real, not spikes, in a converted network."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._pytree import tree_leaves

from ..nn.frozen import LOADERS, FrozenLayer, Span, State
from ..nn.schema import Settings, Tensors, check_settings, frozen_tensor
from ..nn.sizes import ANY, REAL, Value
from .plain import tried

_REFUSED = re.compile(
    # Uninitialised memory, memory layouts, files, a flag that skips checks, and tensors packed for one backend.
    r"aten::(_|(new_)?empty|as_strided|resize|set|pin_memory|from_file|segment_reduce|.*_backward|"
    r"fbgemm|quantized|q_|mkldnn|to_mkldnn|cudnn|miopen|sparse|to_sparse|nested)"
)
"""Operators whose result or safety depends on more than their arguments. A file may come from anyone."""
_TYPES = {"Tensor", "int", "float", "number", "bool", "str", "Device"}
"""What operators take and return, beside lists. Sizes, dtypes, layouts and memory formats count as ints."""
_OPERATORS = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg)
_COMPARISONS = operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge
_SIZES: dict[str, Callable[..., Any]] = {
    **{f"operator.{f.__name__}": f for f in (operator.getitem, *_OPERATORS, *_COMPARISONS)},
    **{f"torch.{f.__name__}": f for f in (torch.sym_int, torch.sym_float, torch.sym_max, torch.sym_min, torch.sym_not)},
    **{f"math.{f.__name__}": f for f in (math.trunc, math.ceil, math.floor)},
}
"""Functions of sizes, and of the tuples that operators return."""
_METHODS = {"aten::sym_size": Tensor.size, "aten::sym_numel": Tensor.numel, "aten::sym_stride": Tensor.stride}
"""Methods that torch.compile takes in place of operators that return sizes."""
_NAMES_OF_SIZES = {f: name for name, f in _SIZES.items()}
_NUMBERS = int, float, torch.SymInt, torch.SymFloat, torch.SymBool
_MOVES = ("aten::reshape", "aten::flatten", "aten::clone", "operator.getitem")
"""Functions that only move values, beside views."""
_OWN_DEVICE = {"own": "device"}
_ADVICE = (
    "only ATen operators can be frozen, of which convert makes networks; convert the ANN, or put layers into an "
    "nn.Sequential"
)


def operator_of(name: Any, overload: Any) -> Callable[..., Any]:
    """Return the operator of these names; raise a ValueError unless a frozen network may call it.

    It must be an operator of ATen that is functional, safe whatever its arguments, and about numbers and tensors alone;
    or a function of sizes, whose overload is "".
    """
    if overload == "" and isinstance(name, str) and name in _SIZES:
        return _SIZES[name]
    found, kernel = None, f"{name}.{overload}".removesuffix(".default")
    if isinstance(name, str) and isinstance(overload, str) and re.fullmatch(r"aten::[a-z]\w*(\.\w+)?", kernel):
        packet = getattr(torch.ops.aten, name.removeprefix("aten::"), None)
        found = getattr(packet, overload, None) if isinstance(packet, OpOverloadPacket) else None
    # TorchScript's functions, such as aten::save, have no kernel.
    if not isinstance(found, OpOverload) or not torch._C._dispatch_has_kernel(kernel):
        raise ValueError(f"operator must be one of ATen's in torch {torch.__version__}, got {name!r}, {overload!r}")
    schema = found._schema
    types = {re.sub(r"(Optional|List)\[|\]", "", str(x.type)) for x in (*schema.arguments, *schema.returns)}
    if schema.is_mutable or _REFUSED.match(name) or not types <= _TYPES or not schema.returns:
        what = "functional and safe, and take and return tensors and numbers alone"
        raise ValueError(f"operator must be {what}, got {name!r}, {overload!r}")
    return found


def _check_values(op: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Raise a ValueError if an operator would be random, train, or choose its device with these arguments."""
    if not isinstance(op, OpOverload):
        return
    parameters = op._schema.arguments
    given = {x.name: x.default_value for x in parameters if x.has_default_value()}
    given |= dict(zip((x.name for x in parameters if not x.kwarg_only), args, strict=False)) | kwargs
    trains = given.get("train", given.get("training"))
    if trains not in (None, False) or (given.get("use_input_stats") and given.get("running_mean") is not None):
        raise ValueError(f"{op} must not train, since its outputs would depend on the batch")
    if any("Device" in str(x.type) and given.get(x.name) not in (None, _OWN_DEVICE) for x in parameters):
        raise ValueError(f"{op} must be called for the device of the network")
    dropped = given.get("dropout_p", given.get("p"))
    if torch.Tag.nondeterministic_seeded in op.tags and trains is None and dropped != 0:
        raise ValueError(f"{op} must not be random")


def _check_types(op: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Raise a ValueError unless an operator takes arguments of these types. What is not given has a default."""
    if not isinstance(op, OpOverload):
        return
    parameters: dict[str, Any] = {x.name: x for x in op._schema.arguments}
    positions = [x.name for x in op._schema.arguments if not x.kwarg_only]
    given = dict(zip(positions, args, strict=False)) | kwargs
    required = {name for name, x in parameters.items() if not x.has_default_value()}
    if len(args) > len(positions) or kwargs.keys() & {*positions[: len(args)]} or not required <= given.keys():
        raise ValueError(f"{op} must be called with its arguments, each given once, got {args!r}, {kwargs!r}")
    for name, x in given.items():
        parameter = parameters.get(name)
        if parameter is None:
            raise ValueError(f"{op} must be called with its arguments, got {name}={x!r}")
        # A list of a fixed length may be one number.
        if not _is_of(x, str(parameter.type)) and not (type(x) is int and parameter.N is not None):
            raise ValueError(f"{op}: {name} must be {parameter.type}, got {x!r}")


def _is_of(x: Any, wanted: str) -> bool:
    """Whether an argument in JSON is of a type, as a schema writes it."""
    outer, _, inner = wanted.removesuffix("]").partition("[")
    if outer == "Optional":
        return x is None or _is_of(x, inner)
    if outer == "List":
        return isinstance(x, list) and all(_is_of(part, inner) for part in x)
    if type(x) is dict:
        return wanted in _TYPES_OF_FORMS.get(next(iter(x), ""), ())
    if wanted in ("int", "number", "Tensor") and type(x) is int:
        return -(2**63) <= x < 2**63
    return type(x) in _JSON_TYPES.get(wanted, ())


_TYPES_OF_FORMS = {
    "input": ("Tensor", "int", "float", "number", "bool"),
    "own": ("int", "Device"),
    "number": ("float", "number", "Tensor"),
    **dict.fromkeys(("dtype", "memory_format", "layout"), ("int",)),
}
_JSON_TYPES = {
    "float": (float, int),
    "number": (float, bool),
    "Tensor": (float, bool),
    "bool": (bool,),
    "str": (str,),
    "Device": (str,),
}


def _by_name(*values: Any) -> dict[str, Any]:
    return {str(value).removeprefix("torch."): value for value in values}


_DTYPES = _by_name(
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
_WORDS: dict[str, dict[str, Any]] = {
    "dtype": _DTYPES,
    "memory_format": _by_name(
        *(torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
    ),
    "layout": _by_name(torch.strided),
    "number": _by_name(math.inf, -math.inf, math.nan),
}
"""The values that JSON gives by name, by the form that says what they are."""


def _forms_in(x: Any) -> Iterator[tuple[str, Any]]:
    """Return the forms in arguments in JSON; raise a ValueError for an unknown one."""
    if isinstance(x, list):
        for part in x:
            yield from _forms_in(part)
    elif isinstance(x, dict):
        form, content = next(iter(x.items())) if len(x) == 1 else ("", None)
        place = form == "input" and type(content) is int and content >= 0
        own = form == "own" and content in ("dtype", "device")
        if not (place or own or (isinstance(content, str) and content in _WORDS.get(form, {}))):
            raise ValueError(f"an argument must be of a known form, got {x!r}")
        yield form, content


def _filled(x: Any, inputs: Sequence[Any], like: Any) -> Any:
    """Return an argument of a call, given in JSON."""
    if type(x) is list:
        return [_filled(part, inputs, like) for part in x]
    if type(x) is not dict:
        return x
    ((form, content),) = x.items()
    if form == "input":
        return inputs[content]
    return getattr(like, content) if form == "own" else _WORDS[form][content]


def encoded(x: Any, nodes: Mapping[fx.Node, Any], own: torch.dtype) -> Any:
    """Return the JSON of an argument; raise a ValueError if that is impossible.

    Args:
        x: the argument.
        nodes: the JSON of the nodes in it.
        own: the dtype of the network. It is written as such, so that it changes with the network.
    """
    if isinstance(x, fx.Node):
        return nodes[x]
    if isinstance(x, (list, tuple)):
        return [encoded(part, nodes, own) for part in x]
    if isinstance(x, torch.device):
        return _OWN_DEVICE
    if isinstance(x, torch.dtype) and x == own:
        return {"own": "dtype"}
    if x is None or isinstance(x, (bool, int, str)) or (isinstance(x, float) and math.isfinite(x)):
        return x
    word = str(x).removeprefix("torch.")
    for form, words in _WORDS.items():
        if type(x) is type(words.get(word)):
            return {form: word}
    raise ValueError(f"an argument must be of a type that files have, got {x!r}")


class FrozenAten(FrozenLayer):
    """A call of an operator.

    Args:
        operator: its name, such as "aten::silu", or that of a function of sizes, such as "operator.mul".
        overload: such as "default"; "" for functions of sizes.
        args: the positional arguments, in JSON types. {"input": i} is the i-th input; {"own": "dtype"} and {"own":
            "device"} are those of the network. Further forms are "dtype", "memory_format" and "layout", and "number"
            for infinities.
        kwargs: the keyword arguments likewise.
    """

    kind = "Aten"
    like: Tensor | None
    """An empty tensor with the dtype and on the device of the network; None if no argument depends on them."""

    def __init__(self, operator: str, overload: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.operator, self.overload, self.args, self.kwargs = operator, overload, args, kwargs
        self._function = operator_of(operator, overload)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ValueError(f"args and kwargs must be a list and an object, got {args!r}, {kwargs!r}")
        forms = [*_forms_in([*args, *kwargs.values()])]
        _check_types(self._function, args, kwargs)
        _check_values(self._function, args, kwargs)
        used = {place for form, place in forms if form == "input"}
        self.uses = len(used)
        if used != {*range(self.uses)}:
            raise ValueError(f"args and kwargs must name every input, got {sorted(used)}")
        depends = any(form == "own" for form, _ in forms)
        self.register_buffer("like", torch.empty(0) if depends else None, persistent=False)

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenAten:
        check_settings(cls.kind, settings, {"operator", "overload", "args", "kwargs"})
        if tensors:
            raise ValueError(f"{cls.kind}: tensors must be none, got {sorted(tensors)}")
        return cls(**settings)

    def settings(self) -> Settings:
        return {"operator": self.operator, "overload": self.overload, "args": self.args, "kwargs": self.kwargs}

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def place(self, like: Tensor) -> None:
        if self.like is not None:
            self.like = like.new_empty(0)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_function": None}  # torch cannot pickle operators

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        self._function = operator_of(self.operator, self.overload)

    @property
    def only_moves(self) -> bool:
        return self.uses == 1 and (self.operator in _MOVES or getattr(self._function, "is_view", False))

    @property
    def is_softmax(self) -> bool:
        return self.operator == "aten::softmax" and self.args[1:2] in ([1], [-1])

    def takes(self) -> str:
        return REAL

    def output(self, *inputs: Value) -> Value:
        if len(inputs) != self.uses:
            raise ValueError(f"number of inputs must be {self.uses}, as in args, got {len(inputs)}")
        if not isinstance(self._function, OpOverload):
            for x in inputs:
                if x.kind != ANY:
                    raise ValueError(f"inputs of {self.operator} must be sizes, got {x.kind}; {_ADVICE}")
            return Value()
        for x in inputs:
            x.check_kind(REAL)
        if [str(x.type) for x in self._function._schema.returns] != ["Tensor"]:
            return Value()
        return Value(REAL) if self.like is not None else tried(self.call, self.call, inputs, torch.empty(0))

    def call(self, *inputs: Any) -> Any:
        """Call the operator."""
        if not self.overload:
            kinds = (tuple, list) if self.operator == "operator.getitem" else _NUMBERS
            if not all(isinstance(x, kinds) for x in inputs):
                got = ", ".join(type(x).__name__ for x in inputs)
                raise TypeError(f"{self.operator}: inputs must be sizes, or the results of an operator, got {got}")
        like = self._buffers["like"]
        function: Any = _METHODS.get(self.operator, self._function)
        kwargs = {name: _filled(x, inputs, like) for name, x in self.kwargs.items()}
        return function(*_filled(self.args, inputs, like), **kwargs)

    def forward(self, span: Span, state: State | None, *inputs: Any) -> tuple[Any, None]:
        return self.call(*inputs), None

    def extra_repr(self) -> str:
        return f"{self.operator}.{self.overload}".removesuffix(".")


class FrozenConstant(FrozenLayer):
    """A tensor that depends on no input of the network."""

    kind = "Constant"
    is_constant = True
    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        if value.dtype not in _DTYPES.values():
            raise TypeError(f"a constant must have one of the dtypes {', '.join(_DTYPES)}, got {value.dtype}")
        self.register_buffer("value", frozen_tensor(value))

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenConstant:
        check_settings(cls.kind, settings, set())
        if tensors.keys() != {"value"}:
            raise ValueError(f"{cls.kind}: tensors must be ['value'], got {sorted(tensors)}")
        return cls(tensors["value"])

    def settings(self) -> Settings:
        return {}

    def output(self, *inputs: Value) -> Value:
        return Value(REAL)

    def forward(self, span: Span, state: State | None) -> tuple[Tensor, None]:
        return self.value, None


LOADERS |= {FrozenAten.kind: FrozenAten.load, FrozenConstant.kind: FrozenConstant.load}


# -- from graphs


def constants_of(model: fx.GraphModule) -> dict[fx.Node, Any]:
    """Return the values of nodes that depend on no input: tensors of the model, and what operators make of these."""
    constants: dict[fx.Node, Any] = {}
    for node in model.graph.nodes:
        if node.op == "get_attr":
            constants[node] = operator.attrgetter(str(node.target))(model)
        elif node.op == "call_function" and constants.keys() >= {*node.all_input_nodes} and is_pure(node.target):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), constants.__getitem__)
            with torch.no_grad():
                constants[node] = node.target(*args, **kwargs)
    return constants


def is_pure(function: Any) -> bool:
    """Return whether a function does nothing but return the same result for the same arguments."""
    if not isinstance(function, OpOverload):
        return function in _NAMES_OF_SIZES
    random = torch.Tag.nondeterministic_seeded in function.tags
    return function.namespace == "aten" and not function._schema.is_mutable and not random


def frozen_call(node: fx.Node, constants: Mapping[fx.Node, Any], own: torch.dtype) -> tuple[FrozenAten, list[fx.Node]]:
    """Return the frozen form of a call, and its input nodes; raise a ValueError if it cannot be frozen.

    Args:
        node: the call.
        constants: the values of nodes that depend on no input. Numbers and sizes become part of the call.
        own: the dtype of the network.
    """
    if node.op != "call_function" or not (isinstance(node.target, OpOverload) or node.target in _NAMES_OF_SIZES):
        raise ValueError(_ADVICE)
    known = {x: constants[x] for x in node.all_input_nodes if x in constants}
    numbers = {x: value for x, value in known.items() if not any(isinstance(y, Tensor) for y in tree_leaves(value))}
    inputs = [x for x in node.all_input_nodes if x not in numbers]
    forms = {x: encoded(value, {}, own) for x, value in numbers.items()} | {
        x: {"input": i} for i, x in enumerate(inputs)
    }
    args = [encoded(x, forms, own) for x in node.args]
    kwargs = {name: encoded(x, forms, own) for name, x in node.kwargs.items() if name != "pin_memory"}
    if not isinstance(node.target, OpOverload):
        return FrozenAten(_NAMES_OF_SIZES[node.target], "", args, kwargs), inputs
    schema = node.target._schema
    if not any("Tensor" in str(x.type) for x in schema.arguments) and any(x.name == "device" for x in schema.arguments):
        kwargs["device"] = _OWN_DEVICE  # not the default one
    return FrozenAten(schema.name, schema.overload_name or "default", args, kwargs), inputs
