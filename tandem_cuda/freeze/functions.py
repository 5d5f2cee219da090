"""The PyTorch functions and tensor methods that can be frozen before Encode and after Decode.

A file can call nothing but what is listed here: names are looked up in tables, and arguments are JSON.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..convert import sized_as_traced
from ..convert.aliases import VIEW_FUNCTIONS, writes, writes_alone
from ..convert.nodes import word_of
from ..nn.frozen import LOADERS, FrozenLayer, Span, State
from ..nn.schema import Settings, Tensors, check_settings, frozen_tensor
from ..nn.sizes import REAL, Value
from ..ops import checks
from .plain import tried


def _words(text: str) -> list[str]:
    return text.split()


_TORCH = _words("""
    abs acos add addmm amax amin argmax argmin argsort asin atan atan2 baddbmm bmm broadcast_to cat cdist ceil chunk
    clamp clamp_max clamp_min concat concatenate cos cosh cummax cummin cumprod cumsum detach diff div divide einsum eq
    erf exp expm1 flatten flip floor fmod frac gather ge gt hstack index_select le lerp log log10 log1p log2
    log_softmax logical_and logical_not logical_or logsumexp lt masked_fill matmul max maximum mean median min minimum
    mm movedim mul multiply nan_to_num narrow ne neg norm numel ones_like outer permute pow prod ravel reciprocal relu
    remainder repeat_interleave reshape roll round rsqrt select sigmoid sign sin sinh softmax sort split sqrt square
    squeeze stack std sub subtract sum swapaxes swapdims t tan tanh tensor_split tile topk transpose tril triu trunc
    unbind unflatten unsqueeze var vstack where zeros_like
""")
_FUNCTIONAL = _words("""
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d batch_norm celu channel_shuffle conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity elu fold gelu glu group_norm hardshrink
    hardsigmoid hardswish hardtanh interpolate layer_norm leaky_relu linear local_response_norm log_softmax logsigmoid
    lp_pool1d lp_pool2d max_pool1d max_pool2d max_pool3d mish normalize pad pixel_shuffle pixel_unshuffle prelu relu
    relu6 rms_norm selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink threshold unfold
""")
_OPERATOR = _words("add eq floordiv ge getitem gt le lt matmul mod mul ne neg pow sub truediv")
_METHODS = [name for name in _TORCH if hasattr(Tensor, name)]
_METHODS += _words("""
    bool clone contiguous dim double expand expand_as float int long new_full new_ones new_zeros repeat reshape_as size
    to type type_as view view_as
""")
_ATTRIBUTES = _words("device dtype mT ndim shape")
_PAIRS = _words("cummax cummin max median min sort topk")
"""Functions that may return values and indices."""
_PARTS = {"values": 0, "indices": 1}


def _method(name: str, x: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(x, Tensor):
        raise TypeError(f"Tensor.{name}: input must be a Tensor, got {type(x).__name__}")
    return getattr(x, name)(*args, **kwargs)


def _attribute(name: str, x: Any) -> Any:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: input must be a Tensor, got {type(x).__name__}")
    return getattr(x, name)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"torch.{name}": getattr(torch, name) for name in _TORCH},
    **{f"torch.nn.functional.{name}": getattr(F, name) for name in _FUNCTIONAL},
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATOR},
    **{f"Tensor.{name}": partial(_method, name) for name in _METHODS},
    **{name: partial(_attribute, name) for name in _ATTRIBUTES},
    "len": len,
    "tandem_cuda.sized_as_traced": sized_as_traced,
}
"""The functions that a file may call, by name."""
_NAMES = {f: name for name, f in FUNCTIONS.items() if not name.startswith("Tensor.")}
_OUT_OF_PLACE: dict[Any, str] = {
    **{f"{name}_": f"Tensor.{name}" for name in _METHODS},
    **{getattr(torch, f"{name}_"): f"torch.{name}" for name in _TORCH if hasattr(torch, f"{name}_")},
    **{getattr(F, f"{name}_"): f"torch.nn.functional.{name}" for name in _FUNCTIONAL if hasattr(F, f"{name}_")},
    **{getattr(operator, f"i{name}"): f"operator.{name}" for name in _OPERATOR if hasattr(operator, f"i{name}")},
}
"""Functions that write to their first argument, each with its out-of-place counterpart."""
_MOVING = {"Tensor.clone", *(name for name in FUNCTIONS if name.rpartition(".")[2] in VIEW_FUNCTIONS)}
_MOVING -= {f"Tensor.{name}" for name in ("double", "float", "to", "type")}
"""Functions that only move values."""
SOFTMAX = ("Tensor.softmax", "torch.softmax", "torch.nn.functional.softmax")


_UNKNOWN = (
    "is not supported by freeze (docs/inference.md); wrap it in a module class and register that with "
    "tandem_cuda.freeze.register"
)
_SHARED = "writes in place to a tensor that is used elsewhere; use the out-of-place function"


def function_name(model: fx.GraphModule, node: fx.Node) -> str:
    """Return the name of the function that a node calls; raise a ValueError with the reason if it cannot be frozen."""
    target: Any = node.target
    if target is getattr:
        of, attribute = node.args
        if attribute in _PARTS and isinstance(of, fx.Node) and word_of(of.target) in _PAIRS:
            return "operator.getitem"
        if attribute not in _ATTRIBUTES:
            wanted = f"{', '.join(_ATTRIBUTES)}, values and indices"
            raise ValueError(f"reads {attribute}, which cannot be frozen: only {wanted} can")
        return str(attribute)
    if target in _OUT_OF_PLACE:
        name: str | None = _OUT_OF_PLACE[target]
    elif node.op == "call_method":
        name = f"Tensor.{target}" if target in _METHODS else None
    else:
        name = "len" if target is len else _NAMES.get(target)
    if name is None:
        raise ValueError(_UNKNOWN)
    if writes(model, node) and not writes_alone(model, node):
        raise ValueError(_SHARED)
    return name


def frozen_call(
    model: fx.GraphModule, node: fx.Node, constants: Mapping[fx.Node, Any]
) -> tuple[FrozenFunction, list[fx.Node]]:
    """Return the frozen form of a function call, and its input nodes; raise a ValueError if it cannot be frozen.

    ``constants``: the values of nodes that depend on no input.
    """
    name, args, kwargs = _called(model, node)
    inputs = [x for x in node.all_input_nodes if x not in constants]
    forms: dict[fx.Node, Any] = {x: {"input": i} for i, x in enumerate(inputs)}
    tensors: dict[str, Tensor] = {}
    for i, x in enumerate([x for x in node.all_input_nodes if x in constants]):
        value = constants[x]
        if not isinstance(value, Tensor):
            forms[x] = encoded_argument(value, {})
            continue
        _check_constant("a tensor of the model", "it", value)
        tensors[str(i)], dims = _in_memory_order(value)
        forms[x] = {"tensor": str(i)} if dims is None else {"permuted": [str(i), dims]}
    encoded = [encoded_argument(x, forms) for x in args]
    named = {key: encoded_argument(x, forms) for key, x in kwargs.items()}
    return FrozenFunction(name, encoded, named, tensors), inputs


@torch.no_grad()
def constants_of(model: fx.GraphModule) -> dict[fx.Node, Any]:
    """Return the values of nodes that depend on no input: tensors of the model, and functions of these."""
    constants: dict[fx.Node, Any] = {}
    for node in model.graph.nodes:
        if node.op == "get_attr":
            constants[node] = operator.attrgetter(str(node.target))(model)
        elif node.op in ("call_function", "call_method") and constants.keys() >= {*node.all_input_nodes}:
            with suppress(TypeError, ValueError):  # frozen_call says why
                name, args, kwargs = _called(model, node)
                args, kwargs = fx.node.map_arg((args, kwargs), constants.__getitem__)
                constants[node] = FUNCTIONS[name](*args, **kwargs)
    return constants


def _called(model: fx.GraphModule, node: fx.Node) -> tuple[str, Any, dict[str, Any]]:
    """Return the name of the function that a node calls, and its arguments."""
    name, args = function_name(model, node), node.args
    if node.target is getattr:
        args = (args[0], _PARTS[str(args[1])]) if name == "operator.getitem" else args[:1]
    left_out = {"inplace", "_stacklevel"} | ({"out"} if node.kwargs.get("out") is None else set())
    return name, args, {key: value for key, value in node.kwargs.items() if key not in left_out}


def _in_memory_order(tensor: Tensor) -> tuple[Tensor, list[int] | None]:
    """Return a contiguous tensor and the dimensions that permute it into this one; None if it is contiguous.

    A matrix product of a transposed matrix rounds in another order than one of its contiguous copy.
    """
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
    stored = tensor.permute(order)
    if tensor.is_contiguous() or not stored.is_contiguous():  # a file cannot keep gaps
        return tensor, None
    return stored, [order.index(dim) for dim in range(tensor.dim())]


def _check_constant(what: str, name: str, tensor: Tensor) -> None:
    """Raise a TypeError unless a tensor has real numbers, or can be an index or a mask."""
    if tensor.dtype not in (*checks.FLOATING, torch.int64, torch.bool):
        raise TypeError(f"{what}: {name} must be float32, float64, int64 or bool, got {tensor.dtype}")


class FrozenFunction(FrozenLayer):
    """A call of a function or tensor method.

    Args:
        function: a name in FUNCTIONS.
        args: the positional arguments, in JSON types. {"input": i} is the i-th input and {"tensor": name} is one of
            ``tensors``; {"permuted": [name, dims]} permutes its dimensions. "tuple", "slice", "dtype",
            "memory_format" and "ellipsis" are written likewise.
        kwargs: the keyword arguments, in JSON types likewise.
        tensors: constants.
    """

    kind = "Function"

    def __init__(self, function: str, args: list[Any], kwargs: dict[str, Any], tensors: Tensors) -> None:
        super().__init__()
        if not isinstance(function, str) or function not in FUNCTIONS:
            raise ValueError(
                f"{self.kind}: setting function must be listed in tandem_cuda.freeze.functions, got {function!r}"
            )
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ValueError(
                f"{self.kind}: settings args and kwargs must be a list and an object, got {args}, {kwargs}"
            )
        if kwargs.get("inplace") or "out" in kwargs:
            raise ValueError(f"{self.kind}: setting kwargs must not contain inplace=True or out, got {kwargs}")
        if function.endswith(".batch_norm") and (kwargs.get("training") or any(args[5:6])):
            raise ValueError(
                f"{self.kind}: batch_norm must have training=False, since outputs would depend on the batch, got True"
            )
        self.function, self.args, self.kwargs = function, args, kwargs
        self.constants = sorted(tensors)
        for i, name in enumerate(self.constants):
            self.register_buffer(f"constant{i}", frozen_tensor(tensors[name]))
        used: set[Any] = set()
        decoded_argument([*args, *kwargs.values()], _Collector(used, {}), _Collector(used, tensors))
        self.uses = len({x for x in used if isinstance(x, int)})
        if used != {*range(self.uses), *tensors}:
            raise ValueError(f"{self.kind}: args must name every input and tensor, got {sorted(map(str, used))}")

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenFunction:
        check_settings(cls.kind, settings, {"function", "args", "kwargs"})
        for name, tensor in tensors.items():
            _check_constant(cls.kind, name, tensor)
        return cls(**settings, tensors=tensors)

    def settings(self) -> Settings:
        return {"function": self.function, "args": self.args, "kwargs": self.kwargs}

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"constant{i}") for i, name in enumerate(self.constants)}

    @property
    def only_moves(self) -> bool:
        return self.function in _MOVING and self.uses == 1

    @property
    def is_softmax(self) -> bool:
        dim = self.kwargs.get("dim", self.args[1] if len(self.args) > 1 else None)
        return self.function in SOFTMAX and dim in (1, -1)

    def takes(self) -> str:
        return REAL

    def output(self, *inputs: Value) -> Value:
        if len(inputs) != self.uses:
            raise ValueError(f"number of inputs must be {self.uses}, as in args, got {len(inputs)}")
        for x in inputs:
            x.check_kind(REAL)
        if self.constants or not inputs:
            return Value()
        y = tried(self.call, self.call, inputs, torch.empty(0))
        return y if y.shape is not None else Value()  # sizes, chunks and tuples are not tensors

    def call(self, *inputs: Any) -> Any:
        """Call the function."""
        decoded = partial(decoded_argument, inputs=inputs, tensors=self.tensors())
        kwargs = {name: decoded(value) for name, value in self.kwargs.items()}
        return FUNCTIONS[self.function](*decoded(self.args), **kwargs)

    def forward(self, span: Span, state: State | None, *inputs: Any) -> tuple[Any, None]:
        return self.call(*inputs), None

    def extra_repr(self) -> str:
        return self.function


class _Collector:
    """A mapping stand-in that records which keys are looked up."""

    def __init__(self, seen: set[Any], tensors: Tensors) -> None:
        self.seen, self.tensors = seen, tensors

    def __getitem__(self, key: Any) -> Tensor:
        self.seen.add(key)
        return self.tensors.get(key, torch.empty(0))


def decoded_argument(value: Any, inputs: Any, tensors: Any) -> Any:
    """Decode an argument from JSON; raise a ValueError if it has none of the known forms."""
    decoded = partial(decoded_argument, inputs=inputs, tensors=tensors)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [decoded(x) for x in value]
    if isinstance(value, dict) and len(value) == 1:
        ((form, content),) = value.items()
        if form == "input" and isinstance(content, int) and not isinstance(content, bool) and content >= 0:
            return inputs[content]
        if form == "tensor" and isinstance(content, str):
            return tensors[content]
        if form == "permuted" and isinstance(content, list) and len(content) == 2 and isinstance(content[0], str):
            return tensors[content[0]].permute(decoded(content[1]))
        if form == "tuple" and isinstance(content, list):
            return tuple(decoded(content))
        if form == "slice" and isinstance(content, list) and len(content) == 3:
            return slice(*decoded(content))
        if form == "ellipsis":
            return ...
        if form == "dtype" and content in ("float32", "float64", "int64", "bool"):
            return getattr(torch, content)
        if form == "memory_format" and content in ("contiguous_format", "channels_last", "preserve_format"):
            return getattr(torch, content)
    raise ValueError(f"an argument must be of a known form, got {value!r}")


def encoded_argument(value: Any, forms: Mapping[fx.Node, Any]) -> Any:
    """Encode an argument as JSON, the inverse of decoded_argument; raise a ValueError if that is impossible."""
    encoded = partial(encoded_argument, forms=forms)
    if isinstance(value, fx.Node):
        return forms[value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return {"tuple": [encoded(x) for x in value]}
    if isinstance(value, list):
        return [encoded(x) for x in value]
    if isinstance(value, slice):
        return {"slice": [encoded(x) for x in (value.start, value.stop, value.step)]}
    if value is ...:
        return {"ellipsis": True}
    if isinstance(value, (torch.dtype, torch.memory_format)):
        form = "dtype" if isinstance(value, torch.dtype) else "memory_format"
        encoding = {form: str(value).removeprefix("torch.")}
        decoded_argument(encoding, (), {})
        return encoding
    raise ValueError(f"an argument of type {type(value).__name__} cannot be frozen")


LOADERS[FrozenFunction.kind] = FrozenFunction.load
