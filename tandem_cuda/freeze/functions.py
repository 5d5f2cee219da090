"""The PyTorch functions and tensor methods that can be frozen before Encode and after Decode.

A file can call nothing but what is listed here: names are looked up in tables, and arguments are JSON.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..convert import sized_as_traced
from ..convert.aliases import VIEW_FUNCTIONS, writes, writes_alone
from ..nn.frozen import LOADERS, FrozenLayer, Span, State
from ..nn.schema import Settings, Tensors, check_settings, check_tensors, frozen_tensor
from ..nn.sizes import REAL, Value
from ..ops import checks
from .plain import tried


def _words(text: str) -> list[str]:
    return text.split()


_TORCH = _words("""
    abs add amax amin bmm cat chunk clamp concat div exp flatten log log_softmax logsumexp matmul maximum mean minimum
    movedim mul neg permute pow relu reshape round rsqrt sigmoid softmax split sqrt square squeeze stack sub sum tanh
    transpose unflatten unsqueeze
""")
_FUNCTIONAL = _words("""
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d celu conv1d conv2d elu
    gelu glu hardsigmoid hardswish hardtanh interpolate layer_norm leaky_relu linear log_softmax logsigmoid max_pool1d
    max_pool2d mish normalize pad pixel_shuffle pixel_unshuffle prelu relu relu6 selu sigmoid silu softmax softmin
    softplus softsign tanh
""")
_OPERATOR = _words("add floordiv getitem matmul mul neg pow sub truediv")
_METHODS = _words("""
    abs add amax amin chunk clamp clone contiguous dim div double exp expand flatten float log log_softmax matmul mean
    mul neg permute pow relu reshape sigmoid size softmax split sqrt square squeeze sub sum tanh transpose unflatten
    unsqueeze view
""")


def _method(name: str, x: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(x, Tensor):
        raise TypeError(f"Tensor.{name}: input must be a Tensor, got {type(x).__name__}")
    return getattr(x, name)(*args, **kwargs)


def _shape(x: Any) -> torch.Size:
    if not isinstance(x, Tensor):
        raise TypeError(f"shape: input must be a Tensor, got {type(x).__name__}")
    return x.shape


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"torch.{name}": getattr(torch, name) for name in _TORCH},
    **{f"torch.nn.functional.{name}": getattr(F, name) for name in _FUNCTIONAL},
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATOR},
    **{f"Tensor.{name}": partial(_method, name) for name in _METHODS},
    "shape": _shape,
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
_MOVING -= {"Tensor.double", "Tensor.float"}
"""Functions that only move values."""
SOFTMAX = ("Tensor.softmax", "torch.softmax", "torch.nn.functional.softmax")


_UNKNOWN = "is not listed in docs/inference.md; wrap it in a module class and register that with nn.frozen.register"
_SHARED = "writes in place to a tensor that is used elsewhere; use the out-of-place function"


def function_name(model: fx.GraphModule, node: fx.Node) -> str:
    """Return the name of the function that a node calls; raise a ValueError with the reason if it cannot be frozen."""
    target: Any = node.target
    if target is getattr:
        if node.args[1:] != ("shape",):
            raise ValueError("reads an attribute other than shape, which cannot be frozen")
        return "shape"
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


def frozen_call(model: fx.GraphModule, node: fx.Node) -> tuple[FrozenFunction, list[fx.Node]]:
    """Return the frozen form of a function call, and its input nodes; raise a ValueError if it cannot be frozen."""
    name = function_name(model, node)
    constants = [x for x in node.all_input_nodes if x.op == "get_attr"]
    inputs = [x for x in node.all_input_nodes if x.op != "get_attr"]
    kwargs = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "_stacklevel")}
    args = node.args[:1] if name == "shape" else node.args
    numbers, names = {x: i for i, x in enumerate(inputs)}, {x: str(i) for i, x in enumerate(constants)}
    encoded = [encoded_argument(x, numbers, names) for x in args]
    named = {key: encoded_argument(x, numbers, names) for key, x in kwargs.items()}
    tensors = {names[x]: operator.attrgetter(str(x.target))(model) for x in constants}
    for tensor in tensors.values():
        checks.check_floating("a tensor of the model", "it", tensor)
    return FrozenFunction(name, encoded, named, tensors), inputs


class FrozenFunction(FrozenLayer):
    """A call of a function or tensor method.

    Args:
        function: a name in FUNCTIONS.
        args: the positional arguments, in JSON types. {"input": i} is the i-th input and {"tensor": name} is one of
            ``tensors``. "tuple", "slice", "dtype", "memory_format" and "ellipsis" are written likewise.
        kwargs: the keyword arguments, in JSON types likewise.
        tensors: constants.
    """

    kind = "Function"
    format = 2

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
        self.function, self.args, self.kwargs = function, args, kwargs
        self.constants = sorted(tensors)
        for i, name in enumerate(self.constants):
            self.register_buffer(f"constant{i}", frozen_tensor(tensors[name]))
        used: set[Any] = set()
        _decoded([*args, *kwargs.values()], _Collector(used), _Collector(used))
        self.uses = len({x for x in used if isinstance(x, int)})
        if used != {*range(self.uses), *tensors}:
            raise ValueError(f"{self.kind}: args must name every input and tensor, got {sorted(map(str, used))}")

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenFunction:
        check_settings(cls.kind, settings, {"function", "args", "kwargs"})
        for name, tensor in tensors.items():
            check_tensors(cls.kind, {name: tensor}, {name: tuple(tensor.shape)})
        return cls(**settings, tensors=tensors)

    def settings(self) -> Settings:
        return {"function": self.function, "args": self.args, "kwargs": self.kwargs}

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"constant{i}") for i, name in enumerate(self.constants)}

    @property
    def only_moves(self) -> bool:
        return self.function in _MOVING

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
        y = tried(self._called, self._called, inputs, torch.empty(0))
        return y if y.shape is not None else Value()  # sizes, chunks and tuples are not tensors

    def _called(self, *inputs: Any) -> Any:
        decoded = partial(_decoded, inputs=inputs, tensors=self.tensors())
        kwargs = {name: decoded(value) for name, value in self.kwargs.items()}
        return FUNCTIONS[self.function](*decoded(self.args), **kwargs)

    def forward(self, span: Span, state: State | None, *inputs: Any) -> tuple[Any, None]:
        return self._called(*inputs), None

    def extra_repr(self) -> str:
        return self.function


class _Collector:
    """A mapping stand-in that records which keys are looked up."""

    def __init__(self, seen: set[Any]) -> None:
        self.seen = seen

    def __getitem__(self, key: Any) -> None:
        self.seen.add(key)


def _decoded(value: Any, inputs: Any, tensors: Any) -> Any:
    """Decode an argument from JSON; raise a ValueError if it has none of the known forms."""
    decoded = partial(_decoded, inputs=inputs, tensors=tensors)
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
        if form == "tuple" and isinstance(content, list):
            return tuple(decoded(content))
        if form == "slice" and isinstance(content, list) and len(content) == 3:
            return slice(*decoded(content))
        if form == "ellipsis":
            return ...
        if form == "dtype" and content in ("float32", "float64"):
            return getattr(torch, content)
        if form == "memory_format" and content in ("contiguous_format", "channels_last", "preserve_format"):
            return getattr(torch, content)
    raise ValueError(f"an argument must be of a known form, got {value!r}")


def encoded_argument(value: Any, inputs: Mapping[fx.Node, int], tensors: Mapping[fx.Node, str]) -> Any:
    """Encode an argument as JSON, the inverse of _decoded; raise a ValueError if that is impossible."""
    encoded = partial(encoded_argument, inputs=inputs, tensors=tensors)
    if isinstance(value, fx.Node):
        return {"tensor": tensors[value]} if value in tensors else {"input": inputs[value]}
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
        _decoded(encoding, (), {})
        return encoding
    raise ValueError(f"an argument of type {type(value).__name__} cannot be frozen")


LOADERS[FrozenFunction.kind] = FrozenFunction.load
