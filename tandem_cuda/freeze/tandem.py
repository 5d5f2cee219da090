"""The frozen forms of tandem layers and TandemAdd: their spiking twins."""

from __future__ import annotations

import json
from abc import abstractmethod
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from .. import ops
from ..neuron import Neuron, of_settings, stacked
from ..nn.add import TandemAdd
from ..nn.conv import TandemConv1d, TandemConv2d, TandemConvTranspose2d
from ..nn.drive import Affine, per_step
from ..nn.dropout import TandemDropout, TandemDropout2d, TandemStochasticDepth
from ..nn.elementwise import TandemElementwise
from ..nn.encode import EncodedInput
from ..nn.firing import Firing, run_neurons
from ..nn.linear import TandemLinear
from ..nn.sizes import ENCODED, SPIKES, Size, Value, check_count
from ..nn.tandem import TandemLayer
from ..nn.weight_cache import Kernel
from ..nn.wiring import Wiring
from ..ops import LARGEST
from ..ops.checks import INTEGERS, check_finite
from ..spike_train import SpikeTrain
from .forms import (
    FrozenLayer,
    Settings,
    Span,
    State,
    Tensors,
    check_settings,
    check_tensors,
    class_of,
    frozen_numbers,
    frozen_scale,
    frozen_tensor,
    register,
    single,
)


class _Packed(FrozenLayer):
    """A frozen layer that keeps weights packed for the kernels of their device.

    The packed weights are not part of files, pickles and state dicts. What replaces the weights packs the new ones, and
    so does a call that finds that they have changed in place, by autograd's versions. If a call gets other weights
    (``torch.func.functional_call``), the operators pack those.
    """

    @abstractmethod
    def packed_layers(self) -> dict[str, TandemLayer]:
        """Return the layers whose weights are packed, by the names of the buffers that hold them."""

    def keep_packed(self) -> None:
        """Pack the weights, and again whenever they are replaced."""
        self.pack()
        self.register_load_state_dict_post_hook(_pack_again)  # type: ignore[no-untyped-call]  # torch's

    def pack(self) -> None:
        """Pack the weights for the kernels of their device."""
        packed_from = {}
        for name, layer in self.packed_layers().items():
            packed_from[name] = layer.weight, None if layer.weight.is_inference() else layer.weight._version
            weight = layer.weights.floats()
            # FrozenNetwork reports weights that are not finite: its message names the layer.
            good = weight.is_meta or bool(weight.isfinite().all())
            packed = ops.pack_weight(weight, getattr(layer, "groups", 1)) if good else None
            self.register_buffer(name, packed, persistent=False)
        self._packed_from = packed_from

    def packed_kernel(self, name: str, layer: TandemLayer) -> Kernel:
        """Return a layer's weights with ``packed``, if it is theirs."""
        weight, version = self._packed_from.get(name, (None, None))
        if layer.weight is not weight or version is None:  # None: the tensor has no version
            return layer.weights.kernel()
        if weight._version != version:
            self.pack()
        return layer.weights.kernel()._replace(packed=getattr(self, name))

    def __getstate__(self) -> dict[str, Any]:
        buffers = {**self._buffers, **dict.fromkeys(self.packed_layers())}
        return {**self.__dict__, "_buffers": buffers, "_packed_from": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        self.pack()  # in the order of the device, which may be another one than that of the pickled network

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        converted = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        self.pack()
        return converted


def _pack_again(module: _Packed, incompatible_keys: Any) -> None:
    module.pack()


class FrozenTandem(_Packed):
    """The spiking twin of a tandem layer, with folded batch norm and packed weights.

    Args:
        layer: defines the product and the neurons. It has no bias and no norm; its weight parameter is replaced.
        weight: the weights, of the shape of the layer's own; int8 or int16 of a quantised layer.
        scale: [O], the gain of batch norm, divided by exp(log_threshold) if the threshold has learned, and times the
            scale of integer weights; applied to the layer's sums. None for 1.
        bias: [O], spread evenly over the T time steps.
        takes_encoded: whether the input is the output of Encode instead of a SpikeTrain.
    """

    scale: Tensor | None
    bias: Tensor | None
    packed: Tensor | None

    def __init__(
        self, layer: TandemLayer, weight: Tensor, scale: Tensor | None, bias: Tensor | None, takes_encoded: bool
    ) -> None:
        super().__init__()
        self.kind = type(layer).__name__
        _check_neuron(self.kind, layer.neuron)
        newer = weight.dtype in INTEGERS or isinstance(layer, TandemElementwise) or layer.wiring is not None
        self.format = 2 if newer else _format(layer.neuron)
        self.takes_encoded = self.resumes = takes_encoded
        self.waits = layer.neuron.two_phase
        del layer.weight
        layer.register_buffer("weight", frozen_tensor(weight))
        self.layer = layer
        self.register_buffer("scale", None if scale is None else frozen_tensor(scale))
        self.register_buffer("bias", None if bias is None else frozen_tensor(bias))
        self.keep_packed()

    @classmethod
    @torch.no_grad()
    def of(cls, layer: TandemLayer, encoded: bool) -> FrozenTandem:
        """Freeze a layer. Batch norm is kept as gain and bias of the currents, as in eval mode."""
        kernel = _kernel(layer)
        gain, bias = layer.drive.affine().of_integers(kernel.unit)
        weight = layer.synapses.from_kernel(kernel.weight)
        return cls(_bare(class_of(layer), _settings(layer)), weight, gain, bias, encoded)

    @classmethod
    def load(cls, layer_class: type[TandemLayer], settings: Settings, tensors: Tensors) -> FrozenTandem:
        kind, given = layer_class.__name__, dict(settings)
        encoded = given.pop("takes_encoded", None)
        if not isinstance(encoded, bool):
            raise ValueError(f"{kind}: setting takes_encoded must be true or false, got {encoded!r}")
        layer = _checked(layer_class, given)
        outputs = _outputs(layer)
        shapes = {"weight": tuple(layer.weight.shape), "bias": outputs, "scale": outputs}
        check_tensors(kind, tensors, shapes, optional=("scale", "bias"), integers=("weight",))
        _check_integers(kind, "weight", tensors, "scale")
        return cls(layer, tensors["weight"], tensors.get("scale"), tensors.get("bias"), encoded)

    def settings(self) -> Settings:
        return {**_settings(self.layer), "takes_encoded": self.takes_encoded}

    def tensors(self) -> dict[str, Tensor]:
        tensors = {"weight": self.layer.weight, "scale": self.scale, "bias": self.bias}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def branches(self) -> list[nn.Module]:
        return [self.layer]

    def takes(self) -> str:
        return ENCODED if self.takes_encoded else SPIKES

    def output(self, *inputs: Value) -> Value:
        x = single(inputs)
        x.check_kind(self.takes())
        return self.layer.synapses.out_size(x)

    def forward(self, span: Span, state: State | None, x: Any) -> tuple[SpikeTrain, State | None]:
        affine, kernel = Affine(self.scale, self.bias), self._kernel()
        carried: State | None = None
        if self.takes_encoded and span.whole:
            bits = self._from_values(span, x, affine, kernel)
        elif self.takes_encoded:
            bits, carried = self._from_part_of_values(span, state, x, affine, kernel)
        elif isinstance(x, SpikeTrain):
            bits, _, neurons = self.layer.synapses.fire(
                x,
                affine.of_spikes(kernel, span.total, x.amplitude),
                Firing(self.layer.neuron, self.layer.engine),
                state=None if state is None else stacked(state),
                want_state=not span.ends,
            )
            carried = None if span.ends else neurons.unbind(0)
        else:
            raise TypeError(f"{self.kind}: input must be a SpikeTrain, got {type(x).__name__}")
        dtype, amplitude = self.layer.weights.dtype, self.layer.neuron.amplitude
        train = SpikeTrain.unchecked(bits, span.now, dtype=dtype, amplitude=amplitude)
        return train, None if span.ends else carried

    def _from_values(self, span: Span, x: EncodedInput, affine: Affine, kernel: Kernel) -> Tensor:
        """Return the bits of all time steps for real input."""
        synapses, neuron = self.layer.synapses, self.layer.neuron
        scale, bias = affine.of_values(span.total, x.mode == "constant")
        if kernel.weight.dtype in INTEGERS:  # one operator, which stores no sums
            value = synapses.checked_value(x.value, kernel.weight)
            options: dict[str, Any] = {"scale": scale, "bias": bias, "mode": x.mode, "neuron": neuron}
            return synapses.ordered_spikes(value, kernel, span.now, **options)
        current = self._current(span, x, affine, kernel)
        return run_neurons(neuron, current, span.now, x.mode, scale, bias, synapses.features).bits

    def _current(self, span: Span, x: EncodedInput, affine: Affine, kernel: Kernel) -> Tensor:
        """Return the product with real input, with the bias of a time step if it is constant and there is no gain."""
        adds = x.mode == "constant" and affine.gain is None
        return self.layer.synapses.value_product(x.value, kernel, per_step(affine.bias, span.total) if adds else None)

    def _from_part_of_values(
        self, span: Span, state: State | None, x: EncodedInput, affine: Affine, kernel: Kernel
    ) -> tuple[Tensor, State]:
        layer, bias = self.layer, per_step(affine.bias, span.total)
        if state is None:
            current = self._current(span, x, affine, kernel)
            mode, before, constant = x.mode, None, x.mode == "constant"
        else:  # the state holds the current of the first chunk
            (current, *variables), mode, constant = state, "constant", True
            before = stacked(variables)
        scale, of_step = affine.of_values(span.total, constant)
        features = layer.synapses.features
        how: dict[str, Any] = {"state": before, "want_state": not span.ends}
        bits, _, neurons = run_neurons(layer.neuron, current, span.now, mode, scale, of_step, features, **how)
        if not constant:  # after the first step of an impulse, only the bias is left
            current = torch.zeros_like(current)
            if bias is not None and affine.gain is None:  # with a gain, the bias is added after the gain instead
                current = current + (bias if features == -1 else bias.view(-1, *[1] * (current.dim() - 2)))
        return bits, (current, *neurons.unbind(0))

    def packed_layers(self) -> dict[str, TandemLayer]:
        return {} if self._is_dense() else {"packed": self.layer}

    def _kernel(self) -> Kernel:
        if self._is_dense():
            return self.layer.weights.kernel()
        if torch.compiler.is_compiling():
            return self.layer.weights.kernel()._replace(packed=self.packed)
        return self.packed_kernel("packed", self.layer)

    def _is_dense(self) -> bool:
        """Return whether torch computes the product, which takes weights as they are."""
        return self.takes_encoded and self.layer.weight.dtype not in INTEGERS


def _kernel(layer: TandemLayer) -> Kernel:
    """Return the weights of a layer. Raise a ValueError if they are rounded and not finite, which rounding may hide."""
    if layer.weights.bits is not None:
        check_finite(class_of(layer).__name__, "weight", layer.weights.stored().detach().cpu())
    return layer.weights.kernel()


def _check_integers(kind: str, name: str, tensors: Tensors, scale: str) -> None:
    """Check the range of integer weights, and that they have a scale.

    The scale contains the gain of batch norm, so it may be zero or negative.
    """
    weight = tensors[name]
    if weight.dtype not in INTEGERS:
        return
    if scale not in tensors:
        raise ValueError(f"{kind}: tensors must contain {scale} with {weight.dtype} weights")
    most, values = LARGEST[8 * weight.itemsize], weight.to(torch.int32)
    beyond = values[values.abs() > most]
    if len(beyond):
        raise ValueError(f"{kind}: {name} must be from -{most} to {most} in {weight.dtype}, got {int(beyond[0])}")


_OF_BRANCHES = {"weight": "weight", "bias": "bias", "scale": "gain"}
"""The tensors of a branch, and the attributes of its layer that hold them."""


class FrozenAdd(_Packed):
    """The spiking twin of a TandemAdd, with batch norms folded into the currents of its branches, and packed weights.

    Args:
        join: a TandemAdd whose branches have no norm. Their parameters are replaced.
        tensors: of every branch that is not an identity weight [O, ...], optional bias [O] and optional scale [O], the
            gain of batch norm and of integer weights, named "<branch>.weight" and so on; "scale" [1], a factor of the
            summed currents, if the threshold has learned.
    """

    kind = "TandemAdd"

    def __init__(self, join: TandemAdd, tensors: Tensors) -> None:
        super().__init__()
        _check_neuron(self.kind, join.neuron)
        scale = tensors.get("scale")
        # Format 1 folds the gain of a branch into its weights.
        newer = any(name.endswith("scale") for name in tensors)
        newer = newer or any(isinstance(x, TandemElementwise) or x.wiring is not None for _, x in _layers(join))
        self.format = 2 if newer else _format(join.neuron)
        join.scale = None if scale is None else frozen_tensor(scale)
        self.waits = join.neuron.two_phase
        for i, branch in _layers(join):
            for name, attribute in _OF_BRANCHES.items():
                tensor = tensors.get(f"{i}.{name}")
                if attribute != "gain":
                    delattr(branch, attribute)
                branch.register_buffer(attribute, None if tensor is None else frozen_tensor(tensor))
        self.join = join.eval()
        self.keep_packed()

    @classmethod
    @torch.no_grad()
    def of(cls, join: TandemAdd, encoded: bool) -> FrozenAdd:
        twins: list[nn.Module] = []
        tensors: dict[str, Tensor] = {}
        for i, branch in enumerate(join.branches):
            if not isinstance(branch, TandemLayer):
                twins.append(nn.Identity())
                continue
            twins.append(_bare(class_of(branch), _settings(branch)))
            kernel = _kernel(branch)
            gain, bias = branch.drive.affine().of_integers(kernel.unit)
            tensors[f"{i}.weight"] = branch.synapses.from_kernel(kernel.weight)
            if gain is not None:
                tensors[f"{i}.scale"] = gain
            if bias is not None:
                tensors[f"{i}.bias"] = bias
        scale = join.current_scale()
        if scale is not None:
            tensors["scale"] = scale
        return cls(TandemAdd(*twins, neuron=join.neuron, engine=join.engine), tensors)

    @classmethod
    def load(cls, settings: Settings, tensors: Tensors) -> FrozenAdd:
        check_settings(cls.kind, settings, {"branches", "neuron", "engine"})
        branches = settings["branches"]
        if not isinstance(branches, list) or not all(isinstance(branch, dict) for branch in branches):
            raise ValueError(f"{cls.kind}: setting branches must be a list of objects, got {branches!r}")
        twins: list[nn.Module] = []
        shapes: dict[str, tuple[int, ...]] = {"scale": (1,)}
        for i, branch in enumerate(branches):
            kind = branch.get("kind")
            kinds = {layer_class.__name__: layer_class for layer_class in LAYERS}
            if kind not in ("Identity", *kinds):
                raise ValueError(
                    f"{cls.kind}: kind of branch {i} must be Identity or one of {sorted(kinds)}, got {kind!r}"
                )
            given = {name: value for name, value in branch.items() if name != "kind"}
            if kind == "Identity":
                check_settings(f"branch {i}", given, set())
                twins.append(nn.Identity())
                continue
            twin = _checked(kinds[kind], given)
            shapes |= {f"{i}.{name}": _outputs(twin) for name in _OF_BRANCHES} | {f"{i}.weight": (*twin.weight.shape,)}
            twins.append(twin)
        weights = tuple(name for name in shapes if name.endswith("weight"))
        check_tensors(cls.kind, tensors, shapes, tuple(name for name in shapes if name not in weights), weights)
        for name in weights:
            _check_integers(cls.kind, name, tensors, name.removesuffix("weight") + "scale")
        _check_no_bool(cls.kind, settings["neuron"])
        neuron = of_settings(cls.kind, settings["neuron"])
        return cls(TandemAdd(*twins, neuron=neuron, engine=settings["engine"]), tensors)

    def settings(self) -> Settings:
        branches = [
            {"kind": class_of(branch).__name__, **(_settings(branch) if isinstance(branch, TandemLayer) else {})}
            for branch in self.join.branches
        ]
        return {"branches": branches, "neuron": self.join.neuron.settings(), "engine": self.join.engine}

    def tensors(self) -> dict[str, Tensor]:
        branches = _layers(self.join)
        named = {f"{i}.{name}": getattr(x, at) for i, x in branches for name, at in _OF_BRANCHES.items()}
        named["scale"] = self.join.scale
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def packed_layers(self) -> dict[str, TandemLayer]:
        return {f"packed_{i}": branch for i, branch in _layers(self.join)}

    def branches(self) -> list[nn.Module]:
        return list(self.join.branches)

    def takes(self) -> str:
        return SPIKES

    def output(self, *inputs: Value) -> Value:
        branches = self.join.branches
        if len(inputs) != len(branches):
            raise ValueError(f"number of inputs must be {len(branches)}, one per branch, got {len(inputs)}")
        joined: Value | None = None
        for i, (branch, x) in enumerate(zip(branches, inputs, strict=True)):
            x.check_kind(SPIKES)
            x.check_dims(1, 2, 3)
            y = branch.synapses.out_size(x) if isinstance(branch, TandemLayer) else x
            joined = y if joined is None else _agreed(i, joined, y)
        assert joined is not None
        return joined._replace(kind=SPIKES)

    def forward(self, span: Span, state: State | None, *inputs: SpikeTrain) -> tuple[SpikeTrain, State | None]:
        join = self.join
        join.check_inputs(inputs)
        pairs = list(zip(join.branches, inputs, strict=True))
        before = None if state is None else stacked(state)
        kernels: list[Kernel | None] = [None] * len(pairs)
        drives: list[Affine | None] = [None] * len(pairs)
        for i, branch in _layers(join):
            # Compiled code cannot see that weights have changed.
            compiling = torch.compiler.is_compiling()
            kernels[i] = branch.weights.kernel() if compiling else self.packed_kernel(f"packed_{i}", branch)
            drives[i] = Affine(branch.gain, branch.bias)
        bits, carried = join.spikes(pairs, span.total, before, not span.ends, kernels, drives)
        train = SpikeTrain.unchecked(bits, span.now, dtype=join.dtype_of(inputs), amplitude=join.neuron.amplitude)
        return train, None if span.ends else carried.unbind(0)


def _agreed(branch: int, a: Value, b: Value) -> Value:
    """Combine what two branches say about the same value."""
    if a.shape is None or b.shape is None:
        return b if a.shape is None else a
    known = a.source is not None and a.source == b.source
    pairs = list(zip(a.shape, b.shape, strict=False))
    if len(a.shape) != len(b.shape) or not all(_may_agree(*pair, known) for pair in pairs):
        raise ValueError(f"branches must agree in shape, got {a} and, for branch {branch}, {b}")
    shape = tuple(one if one.exact or one.least >= other.least else other for one, other in pairs)
    return Value(a.kind, shape, a.source if known else None)


def _may_agree(one: Size, other: Size, same_source: bool) -> bool:
    """Whether two sizes can be equal, given what is known about them."""
    if one.exact or other.exact:
        exact, rest = (one, other) if one.exact else (other, one)
        return rest.least == exact.least if rest.exact else rest.least <= exact.least
    if same_source and one.regular and other.regular and one.slope == other.slope:
        return abs(one.offset - other.offset) < one.slope
    return True


def _layers(join: TandemAdd) -> list[tuple[int, Any]]:
    return [(i, branch) for i, branch in enumerate(join.branches) if isinstance(branch, TandemLayer)]


def _settings(layer: TandemLayer) -> Settings:
    """Return the arguments of the layer's constructor, without bias, norm, device and dtype.

    And how many synapses of the frozen layer stand for one of the ANN's, if several do.
    """
    settings = {**layer.arguments(), "neuron": layer.neuron.settings(), "engine": layer.engine}
    if isinstance(layer, TandemElementwise):  # has no synapses of the ANN
        return settings
    number = 1 if layer.wiring is None else layer.wiring.synapses_per_weight
    return settings if number == 1 else {**settings, "multiplicity": number}


def _bare(layer_class: type[TandemLayer], settings: Settings) -> TandemLayer:
    """Make a layer from its settings, without bias and norm, on the meta device."""
    arguments: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    neuron = of_settings(layer_class.__name__, arguments.pop("neuron", None))
    multiplicity = arguments.pop("multiplicity", 1)
    layer = layer_class(**arguments, neuron=neuron, bias=False, device="meta")
    layer.wiring = None if multiplicity == 1 else Wiring(in_weight=multiplicity)
    return layer


_COUNTS = {"in_channels": 0, "out_channels": 0, "in_features": 0, "out_features": 0, "groups": 1}
_PER_AXIS = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
"""The minimum of each setting that is an int, and of each that is a list of ints."""


def _check_geometry(layer_class: type[TandemLayer], settings: Settings) -> None:
    """Raise a ValueError unless the settings are exactly the arguments of a layer, each in its range."""
    kind, transposed = layer_class.__name__, layer_class is TandemConvTranspose2d
    names = {"in_features", "out_features"}
    if layer_class is TandemElementwise:
        names = {"in_channels", "out_channels", "groups"}
    elif layer_class is not TandemLinear:
        names = {"in_channels", "out_channels", "groups", "padding_mode", *_PER_AXIS}
        names -= set() if transposed else {"output_padding"}
    shared = {"multiplicity"} & settings.keys()
    check_settings(kind, settings, {*names, *shared, "neuron", "engine"})
    for name in names & _COUNTS.keys():
        frozen_numbers(kind, name, settings[name], _COUNTS[name])
    if shared:
        _check_multiplicity(kind, settings)
    axes = 1 if layer_class is TandemConv1d else 2
    for name in names & _PER_AXIS.keys():
        value = settings[name]
        if name == "padding" and value in ("same", "valid") and not transposed:
            continue
        if not isinstance(value, list) or len(value) != axes:
            raise ValueError(f"{kind}: setting {name} must be a list of {axes} ints, got {value!r}")
        for number in value:
            frozen_numbers(kind, name, number, _PER_AXIS[name])
    if "padding_mode" in names:
        modes = ("zeros",) if transposed else ("zeros", "reflect", "replicate", "circular")
        if settings["padding_mode"] not in modes:
            raise ValueError(
                f"{kind}: setting padding_mode must be one of {', '.join(modes)}, got {settings['padding_mode']!r}"
            )
        check_count("weights of setting kernel_size", [settings["out_channels"], *settings["kernel_size"]])


def _check_multiplicity(kind: str, settings: Settings) -> None:
    number = settings["multiplicity"]
    frozen_numbers(kind, "multiplicity", number, 2)
    of_what = "features" if "in_features" in settings else "channels"
    inputs, outputs = settings[f"in_{of_what}"], settings[f"out_{of_what}"]
    if inputs * outputs % number:
        raise ValueError(f"{kind}: setting multiplicity must divide {inputs} * {outputs} {of_what}, got {number}")


def _checked(layer_class: type[TandemLayer], settings: Settings) -> TandemLayer:
    """Make a layer as _bare does, but from unchecked settings of a file."""
    kind = layer_class.__name__
    _check_no_bool(kind, settings)
    _check_geometry(layer_class, settings)
    layer = _bare(layer_class, settings)
    if json.dumps(_settings(layer), sort_keys=True) != json.dumps(settings, sort_keys=True):
        raise ValueError(f"{kind}: settings must be {_settings(layer)}, got {settings}")
    return layer


def _check_no_bool(kind: str, settings: Any) -> None:
    if any(isinstance(value, bool) for value in tree_leaves(settings)):  # Python's bool is an int
        raise ValueError(f"{kind}: settings must not be true or false, got {settings}")


def _outputs(layer: TandemLayer) -> tuple[int]:
    return (layer.out_channels if isinstance(layer, _ConvNd) else cast(nn.Linear, layer).out_features,)


def _format(neuron: Neuron) -> int:
    """Return the first version of the file format that has these neurons."""
    return 1 if neuron.settings().keys() == {"threshold", "leak", "amplitude"} else 2


def _check_neuron(kind: str, neuron: Neuron) -> None:
    for name, value in neuron.scales().items():
        frozen_scale(kind, name, value)


LAYERS = (TandemConv1d, TandemConv2d, TandemConvTranspose2d, TandemElementwise, TandemLinear)
for layer_class in LAYERS:
    register(layer_class, FrozenTandem.of, partial(FrozenTandem.load, layer_class))
register(TandemAdd, FrozenAdd.of, FrozenAdd.load)
for idle in (TandemDropout, TandemDropout2d, TandemStochasticDepth):
    register(idle, lambda module, encoded: None)
