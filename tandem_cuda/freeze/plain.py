"""The PyTorch modules that can be frozen before Encode and after Decode."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.batch_norm import NORMS
from ..nn.frozen import FrozenLayer, Span, State, class_of, register, single
from ..nn.schema import (
    Settings,
    Tensors,
    check_settings,
    check_tensors,
    flag,
    frozen_numbers,
    frozen_tensor,
    with_tuples,
)
from ..nn.sizes import REAL, Size, Value, check_count
from ..ops import checks

IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
"""Modules that return their input unchanged in eval mode."""
VIEWS = (*IDLE, nn.Flatten, nn.Unflatten)
"""Modules that may return the memory of their input."""
_WEIGHTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MODULES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    *NORMS,
    *_WEIGHTS,
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm),
    *(nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.LPPool1d, nn.LPPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.GLU),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign),
    *(nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold),
    *(nn.Unflatten, nn.Unfold, nn.Fold, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    *(nn.ZeroPad1d, nn.ConstantPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d),
    *(nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
)
"""Module classes that can be frozen, in addition to nn.Flatten, nn.Identity and dropout."""


def _parameters(module_class: type[nn.Module]) -> list[str]:
    """Return the names of the constructor arguments that an instance keeps as attributes."""
    dropped = ("device", "dtype", "inplace", "args", "kwargs", "min_value", "max_value")
    return [name for name in inspect.signature(module_class).parameters if name not in dropped]


_LEAST = {
    **dict.fromkeys(("kernel_size", "stride", "dilation", "groups", "num_groups"), 1),
    **dict.fromkeys(("padding", "output_padding", "output_size", "in_features", "out_features"), 0),
}
"""The minimum of settings that are ints."""


class FrozenModule(FrozenLayer):
    """A PyTorch module in eval mode.

    Args:
        module_class: one of MODULES.
        arguments: the constructor arguments that _parameters names.
        tensors: parameters and statistics, by name.
    """

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
        self.module = module.eval()

    def _without_values(self, module_class: type[nn.Module]) -> nn.Module:
        with torch.device("meta"):
            return module_class(**with_tuples(self.arguments))

    @classmethod
    def of(cls, module: nn.Module, encoded: bool) -> FrozenModule:
        module_class = class_of(module)
        if isinstance(module, NORMS) and module.running_mean is None:
            raise ValueError(
                f"{module_class.__name__}: norm must keep running statistics: without them outputs depend on the batch"
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
            _check_sizes(module_class.__name__, name, settings[name])
        if "bias" in settings:
            flag(module_class.__name__, "bias", settings["bias"])
        return cls(module_class, dict(settings), tensors)

    def settings(self) -> Settings:
        return self.arguments

    def tensors(self) -> dict[str, Tensor]:
        return _tensors(self.module)

    def takes(self) -> str:
        return REAL

    def output(self, *inputs: Value) -> Value:
        x, module = single(inputs, REAL), self.module
        if isinstance(module, nn.Linear):
            return self._linear_output(x, module.in_features, module.out_features)
        if x.shape and isinstance(module, (*_WEIGHTS, *NORMS)):
            name = "num_features" if isinstance(module, NORMS) else "in_channels"
            x.shape[0].check(name, self.arguments[name])
        like = next(iter(self.tensors().values()), torch.empty(0))
        return tried(self._without_values(type(module)).eval(), module, inputs, like)

    def _linear_output(self, x: Value, inputs: int, outputs: int) -> Value:
        if x.shape == ():
            raise ValueError(f"input must have features, got {x}")
        if x.last is not None:
            x.last.check("in_features", inputs)
        if x.shape is None:
            return Value(REAL, features=Size(outputs, True))
        return Value(REAL, (*x.shape[:-1], Size(outputs, True)))

    def forward(self, span: Span, state: State | None, x: Tensor) -> tuple[Any, None]:
        features = self.arguments.get("in_features")
        if features is not None and x.shape[-1:] != (features,):
            raise ValueError(f"{self.kind}: input must be [N, ..., {features}], got {list(x.shape)}")
        return self.module.forward(x), None

    @property
    def only_moves(self) -> bool:
        return isinstance(self.module, nn.Unflatten)

    @property
    def is_softmax(self) -> bool:
        return isinstance(self.module, nn.Softmax) and self.module.dim in (1, -1)

    @property
    def has_weights(self) -> bool:
        return isinstance(self.module, (nn.Linear, *_WEIGHTS))

    def with_ones(self, x: Tensor) -> Tensor:
        values = {"weight": torch.ones_like, "bias": torch.zeros_like}
        named = {name: values[name](tensor, dtype=x.dtype) for name, tensor in self.tensors().items()}
        weighted: Tensor = torch.func.functional_call(self.module, named, (x,))
        return weighted


def _check_sizes(kind: str, name: str, value: Any) -> None:
    """Raise an error unless a setting is an int, or has one for each axis, or for each side that is padded."""
    if value is None or (name == "padding" and value in ("same", "valid")):
        return
    axes = int(kind[-2]) * (2 if "Pad" in kind else 1) if kind[-2:] in ("1d", "2d", "3d") else None
    if isinstance(value, list) and axes not in (None, len(value)):
        raise ValueError(f"{kind}: setting {name} must have {axes} ints, got {value}")
    for number in value if isinstance(value, list) else [value]:
        if number is not None or name != "output_size":
            frozen_numbers(kind, name, number, _LEAST[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and statistics, without ``num_batches_tracked``."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: x for name, x in named if name != "num_batches_tracked"}


def tried(sketch: Callable[..., Any], f: Callable[..., Any], inputs: tuple[Value, ...], like: Tensor) -> Value:
    """Find the output of ``f`` for inputs whose sizes are all known, by calling it.

    ``sketch``, the same function on meta tensors, is called first to find out how large the output is.
    """
    if not all(x.kind == REAL and x.shape is not None and all(s.exact for s in x.shape) for x in inputs):
        return Value(REAL)
    shapes = [[2, *(size.least for size in x.shape or ())] for x in inputs]
    for shape in shapes:
        check_count("inputs", shape)
    try:
        y = sketch(*(torch.empty(shape, device="meta") for shape in shapes))
        if not isinstance(y, Tensor) or not y.is_floating_point():
            return Value()
        check_count("outputs", y.shape)
        if max(y.numel(), *map(math.prod, shapes)) <= 2**16:  # meta tensors skip some checks
            f(*(like.new_zeros(shape) for shape in shapes))
    except (TypeError, ValueError, IndexError, RuntimeError, ArithmeticError, AssertionError) as error:
        got = ", ".join(str(shape[1:]) for shape in shapes)
        raise ValueError(f"settings must fit inputs of {got} per sample: {error}") from error
    batch, *shape = y.shape or (0,)
    return Value(REAL, tuple(Size(n, True) for n in shape) if batch == 2 else None)


class FrozenFlatten(FrozenLayer):
    """nn.Flatten."""

    kind = "Flatten"
    only_moves = True

    def __init__(self, start_dim: int, end_dim: int) -> None:
        super().__init__()
        for name, dim in (("start_dim", start_dim), ("end_dim", end_dim)):
            checks.check_int("Flatten", name, dim)
        self.start_dim, self.end_dim = start_dim, end_dim

    @classmethod
    def of(cls, module: nn.Flatten, encoded: bool) -> FrozenFlatten:
        return cls(module.start_dim, module.end_dim)

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenFlatten:
        check_settings(cls.kind, settings, {"start_dim", "end_dim"})
        check_tensors(cls.kind, tensors, {})
        return cls(**settings)

    def settings(self) -> Settings:
        return {"start_dim": self.start_dim, "end_dim": self.end_dim}

    def output(self, *inputs: Value) -> Value:
        x = single(inputs)
        if self.start_dim == 0:
            raise ValueError("start_dim must leave the batch dimension alone, got 0")
        if x.shape is None:
            if (self.start_dim, self.end_dim) != (1, -1):
                return x._replace(features=None)
            last = x.last or Size()
            return x._replace(shape=(Size(last.least, factor=last.least if last.exact else last.factor),))
        dims = 1 + len(x.shape)
        for name, dim in (("start_dim", self.start_dim), ("end_dim", self.end_dim)):
            if not -dims <= dim < dims:
                raise ValueError(f"{name} must be from {-dims} to {dims - 1} for {x}, got {dim}")
        start, end = self.start_dim % dims - 1, self.end_dim % dims - 1
        if not 0 <= start <= end:
            raise ValueError(
                f"start_dim and end_dim must be after the batch dimension of {x} and in order, got {self.start_dim}, "
                f"{self.end_dim}"
            )
        sizes = x.shape[start : end + 1]
        factor = math.prod(size.least if size.exact else size.factor for size in sizes)
        flat = Size(math.prod(size.least for size in sizes), all(size.exact for size in sizes), factor)
        return x._replace(shape=(*x.shape[:start], flat, *x.shape[end + 1 :]))

    def forward(self, span: Span, state: State | None, x: Any) -> tuple[Any, None]:
        return x.flatten(self.start_dim, self.end_dim), None


for module_class in MODULES:
    register(module_class, FrozenModule.of, partial(FrozenModule.load, module_class))
register(nn.Flatten, FrozenFlatten.of, FrozenFlatten.load)
for idle in IDLE:
    register(idle, lambda module, encoded: None)
