"""Plain PyTorch in front of Encode and behind Decode, frozen: modules and functions of a list, by name.

Nothing but what is listed here is called, whatever a file says: names are looked up in tables, arguments are JSON.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..ops import checks
from .frozen import (
    LOADERS,
    REAL,
    FrozenFlatten,
    FrozenLayer,
    Settings,
    Size,
    Span,
    State,
    Tensors,
    Value,
    check_count,
    check_settings,
    check_tensors,
    frozen_numbers,
    frozen_tensor,
    register,
)

# ---------------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------------

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_WEIGHTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
MODULES: tuple[type[nn.Module], ...] = (
    *_NORMS,
    *_WEIGHTS,
    *(nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.LPPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.GLU),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign),
    *(nn.Unflatten, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
)
"""Classes of modules that can be frozen, beside nn.Linear, nn.Flatten, nn.Identity and dropout."""


def _parameters(module_class: type[nn.Module]) -> list[str]:
    """The constructor's arguments that an instance keeps."""
    dropped = ("device", "dtype", "inplace", "args", "kwargs", "min_value", "max_value")
    return [name for name in inspect.signature(module_class).parameters if name not in dropped]


_LEAST = {
    **dict.fromkeys(("kernel_size", "stride", "dilation", "groups", "num_groups"), 1),
    **dict.fromkeys(("padding", "output_padding", "output_size"), 0),
}
"""The least value of settings that are of ints."""


class FrozenModule(FrozenLayer):
    """A module of torch in eval mode.

    Args:
        module_class: one of MODULES.
        arguments: all that _parameters names.
        tensors: parameters and statistics, by name.
    """

    format = 2

    def __init__(self, module_class: type[nn.Module], arguments: Settings, tensors: Tensors) -> None:
        super().__init__()
        self.kind = module_class.__name__
        self.arguments = arguments
        module = self._without_values(module_class)
        expected = _tensors(module)
        check_tensors(self.kind, tensors, {name: tuple(x.shape) for name, x in expected.items()})
        for name, tensor in tensors.items():
            module._parameters.pop(name, None)
            module.register_buffer(name, frozen_tensor(tensor))
        module._buffers.pop("num_batches_tracked", None)
        self.module = module
        self.train(False)

    def _without_values(self, module_class: type[nn.Module]) -> nn.Module:
        with torch.device("meta"):
            return module_class(**{name: _tuples(value) for name, value in self.arguments.items()})

    @classmethod
    def of(cls, module: nn.Module, encoded: bool) -> FrozenModule:
        module_class = nn.utils.parametrize.type_before_parametrizations(module)
        if isinstance(module, _NORMS) and module.running_mean is None:
            raise ValueError(
                f"{module_class.__name__}: norm must keep running statistics: else outputs depend on other samples"
            )
        arguments = {name: getattr(module, name) for name in _parameters(module_class)}
        if "bias" in arguments:
            arguments["bias"] = arguments["bias"] is not None
        with torch.device("meta"):
            names = _tensors(module_class(**arguments))
        return cls(module_class, arguments, {name: getattr(module, name) for name in names})

    @classmethod
    def load(cls, module_class: type[nn.Module], settings: Settings, tensors: Tensors) -> FrozenModule:
        check_settings(module_class.__name__, settings, {*_parameters(module_class)})
        for name in settings.keys() & _LEAST.keys():
            for number in tree_leaves(settings[name]):
                if number not in (None, "same", "valid"):
                    frozen_numbers(module_class.__name__, name, number, _LEAST[name])
        return cls(module_class, dict(settings), tensors)

    def settings(self) -> Settings:
        return self.arguments

    def tensors(self) -> dict[str, Tensor]:
        return _tensors(self.module)

    def takes(self) -> str:
        return REAL

    def output(self, *inputs: Value) -> Value:
        if len(inputs) != 1:
            raise ValueError(f"inputs must be one, got {len(inputs)}")
        x = inputs[0]
        x.check_kind(REAL)
        if x.shape and isinstance(self.module, (*_WEIGHTS, *_NORMS)):
            name = "num_features" if isinstance(self.module, _NORMS) else "in_channels"
            x.shape[0].check(name, self.arguments[name])
        sketch = self._without_values(type(self.module)).eval()
        like = next(iter(self.tensors().values()), torch.empty(0))
        return _tried(sketch, self.module, inputs, like)

    def forward(self, span: Span, state: State | None, x: Tensor) -> tuple[Any, None]:
        return self.module(x), None

    def train(self, mode: bool = True) -> FrozenModule:
        """Frozen layers have no modes."""
        return super().train(False)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and statistics, but for the count of batches."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: x for name, x in named if name != "num_batches_tracked"}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, (list, tuple)) else value


def _tried(sketch: Callable[..., Any], f: Callable[..., Any], inputs: tuple[Value, ...], like: Tensor) -> Value:
    """What f makes of inputs whose sizes are all known, found by calling it.

    Before that ``sketch``, the same on tensors without values, says how large the result is.
    """
    if not all(x.kind == REAL and x.shape is not None and all(s.exact for s in x.shape) for x in inputs):
        return Value(REAL)
    shapes = [[2, *(size.least for size in x.shape or ())] for x in inputs]
    for shape in shapes:
        check_count("inputs", shape)
    try:
        y = sketch(*(torch.empty(shape, device="meta") for shape in shapes))
        if not isinstance(y, Tensor):
            return Value()
        check_count("outputs", y.shape)
        if max(y.numel(), *map(math.prod, shapes)) <= 2**16:  # without values not all is checked
            f(*(like.new_zeros(shape) for shape in shapes))
    except (TypeError, ValueError, IndexError, RuntimeError, ArithmeticError, AssertionError) as error:
        got = ", ".join(str(shape[1:]) for shape in shapes)
        raise ValueError(f"settings must fit inputs of {got} a sample: {error}") from error
    batch, *shape = y.shape or (0,)
    return Value(REAL, tuple(Size(n, True) for n in shape) if batch == 2 else None)


for module_class in MODULES:
    register(module_class, FrozenModule.of, partial(FrozenModule.load, module_class))

# ---------------------------------------------------------------------------------------------------------------------
# Functions and methods
# ---------------------------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return text.split()


_TORCH = _words("""
    abs add amax amin bmm cat chunk clamp concat div exp flatten log log_softmax logsumexp matmul maximum mean minimum
    movedim mul neg permute pow relu reshape rsqrt sigmoid softmax split sqrt square squeeze stack sub sum tanh
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
}
"""What a file may call, by name."""
_NAMES = {f: name for name, f in FUNCTIONS.items() if not name.startswith("Tensor.")}
_IN_PLACE: dict[Any, str] = {
    **{f"{name}_": f"Tensor.{name}" for name in _METHODS},
    **{getattr(torch, f"{name}_"): f"torch.{name}" for name in _TORCH if hasattr(torch, f"{name}_")},
    **{getattr(F, f"{name}_"): f"torch.nn.functional.{name}" for name in _FUNCTIONAL if hasattr(F, f"{name}_")},
    **{getattr(operator, f"i{name}"): f"operator.{name}" for name in _OPERATOR if hasattr(operator, f"i{name}")},
}
"""What writes into its first argument, with the function that computes the same elsewhere."""
_VIEWS = {
    *(f"Tensor.{name}" for name in _words("contiguous double expand float view")),
    *(
        f"{owner}.{name}"
        for owner in ("Tensor", "torch")
        for name in _words("chunk flatten movedim permute reshape split squeeze transpose unflatten unsqueeze")
    ),
    "operator.getitem",
}
"""Functions whose result may be the memory of their input."""
SOFTMAX = ("Tensor.softmax", "torch.softmax", "torch.nn.functional.softmax")


IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
for idle in IDLE:
    register(idle, lambda module, encoded: None)
VIEWS = (*IDLE, nn.Flatten, nn.Unflatten)
"""Modules whose output may be the memory of their input."""
_UNKNOWN = "is none of the functions in docs/inference.md; make it a module that nn.frozen.register knows"
_SHARED = "writes into what is used elsewhere; do it out of place"


def function_name(model: fx.GraphModule, node: fx.Node) -> str:
    """The name of what a node calls; ValueError, saying why, where it cannot be frozen."""
    target: Any = node.target
    if target is getattr:
        if node.args[1:] != ("shape",):
            raise ValueError("asks for an attribute; of those, shape alone can be frozen")
        return "shape"
    if target in _IN_PLACE:
        name: str | None = _IN_PLACE[target]
    elif node.op == "call_method":
        name = f"Tensor.{target}" if target in _METHODS else None
    else:
        name = "len" if target is len else _NAMES.get(target)
    if name is None:
        raise ValueError(_UNKNOWN)
    if (target in _IN_PLACE or node.kwargs.get("inplace")) and not writes_alone(model, node):
        raise ValueError(_SHARED)
    return name


def writes_in_place(module: nn.Module) -> bool:
    """Whether a module changes its input."""
    return bool(getattr(module, "inplace", False)) and not isinstance(module, IDLE)


def writes(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node changes anything but its result."""
    if node.op == "call_module":
        return any(writes_in_place(module) for module in model.get_submodule(str(node.target)).modules())
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = node.target in _IN_PLACE or node.target is operator.setitem or name.endswith("_")
    return in_place or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def writes_alone(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether nothing else sees what a node writes into its first argument."""
    x = node.args[0]
    while isinstance(x, fx.Node) and x.op != "placeholder":
        if len(x.users) > 1 or x.op == "get_attr":
            return False
        if x.op == "call_module":
            views = isinstance(model.get_submodule(str(x.target)), (*VIEWS, nn.Sequential))
        else:
            target: Any = x.target
            views = (f"Tensor.{target}" if x.op == "call_method" else _NAMES.get(target, "")) in _VIEWS
        if not views:
            return True
        x = x.args[0]
    return not isinstance(x, fx.Node) or len(x.users) == 1


def frozen_call(model: fx.GraphModule, node: fx.Node) -> tuple[FrozenFunction, list[fx.Node]]:
    """The frozen form of a node that calls a function, and the nodes that are its inputs; ValueError if it has none."""
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
    """A call of a function or method of a tensor.

    Args:
        function: a name in FUNCTIONS.
        args: in the types of JSON: {"input": i} is the i-th input, {"tensor": name} one of ``tensors``; "tuple",
            "slice", "dtype", "memory_format" and "ellipsis" are written likewise.
        kwargs: the same by name.
        tensors: constants.
    """

    kind = "Function"
    format = 2

    def __init__(self, function: str, args: list[Any], kwargs: dict[str, Any], tensors: Tensors) -> None:
        super().__init__()
        if not isinstance(function, str) or function not in FUNCTIONS:
            raise ValueError(
                f"{self.kind}: setting function must be one of tandem_cuda.nn.frozen_plain, got {function!r}"
            )
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ValueError(
                f"{self.kind}: settings args and kwargs must be a list and an object, got {args}, {kwargs}"
            )
        if kwargs.get("inplace") or "out" in kwargs:
            raise ValueError(f"{self.kind}: setting kwargs must not write anywhere, got {kwargs}")
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

    def takes(self) -> str:
        return REAL

    def output(self, *inputs: Value) -> Value:
        if len(inputs) != self.uses:
            raise ValueError(f"inputs must be {self.uses}, as many as args name, got {len(inputs)}")
        for x in inputs:
            x.check_kind(REAL)
        if self.constants or not inputs:
            return Value()
        y = _tried(self._called, self._called, inputs, torch.empty(0))
        return y if y.shape is not None else Value()  # sizes, parts and tuples are no tensors

    def _called(self, *inputs: Any) -> Any:
        decoded = partial(_decoded, inputs=inputs, tensors=self.tensors())
        kwargs = {name: decoded(value) for name, value in self.kwargs.items()}
        return FUNCTIONS[self.function](*decoded(self.args), **kwargs)

    def forward(self, span: Span, state: State | None, *inputs: Any) -> tuple[Any, None]:
        return self._called(*inputs), None

    def extra_repr(self) -> str:
        return self.function


def moves(layer: nn.Module) -> bool:
    """Whether a layer does nothing but place values elsewhere."""
    if isinstance(layer, FrozenFunction):
        return layer.function in {"Tensor.clone", *_VIEWS} - {"Tensor.float", "Tensor.double"}
    return isinstance(layer, FrozenFlatten) or (isinstance(layer, FrozenModule) and layer.kind == "Unflatten")


def is_convolution(layer: nn.Module) -> TypeGuard[FrozenModule]:
    """Whether it multiplies with weights, as nn.Conv2d does."""
    return isinstance(layer, FrozenModule) and isinstance(layer.module, _WEIGHTS)


def is_softmax(layer: nn.Module) -> bool:
    """Whether its outputs are probabilities of classes, [N, K]."""
    if isinstance(layer, FrozenModule):
        return isinstance(layer.module, nn.Softmax) and layer.module.dim in (1, -1)
    if isinstance(layer, FrozenFunction) and layer.function in SOFTMAX:
        dim = layer.kwargs.get("dim", layer.args[1] if len(layer.args) > 1 else None)
        return dim in (1, -1)
    return False


class _Collector:
    """Looks anything up, and notes what."""

    def __init__(self, seen: set[Any]) -> None:
        self.seen = seen

    def __getitem__(self, key: Any) -> None:
        self.seen.add(key)


def _decoded(value: Any, inputs: Any, tensors: Any) -> Any:
    """Arguments from JSON; ValueError where it is none of its forms."""
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
    """The inverse of _decoded; ValueError for what has no form there."""
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
