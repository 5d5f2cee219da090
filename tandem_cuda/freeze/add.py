"""The frozen form of TandemAdd: its spiking twin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..neuron import of_settings, stacked
from ..nn.add import TandemAdd
from ..nn.drive import Affine
from ..nn.elementwise import TandemElementwise
from ..nn.sizes import SPIKES, Size, Value
from ..nn.tandem import TandemLayer
from ..nn.weight_cache import Kernel
from ..spike_train import SpikeTrain
from .connections import (
    LAYERS,
    bare,
    check_integers,
    check_no_bool,
    check_scales,
    checked_layer,
    format_of,
    kernel_of,
    settings_of,
)
from .forms import Settings, Span, State, Tensors, check_settings, check_tensors, class_of, frozen_tensor, register
from .packed import Packed

_OF_BRANCHES = {"weight": "weight", "bias": "bias", "scale": "gain"}
"""The tensors of a branch, and the attributes of its layer that hold them."""


class FrozenAdd(Packed):
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
        check_scales(self.kind, join.neuron)
        scale = tensors.get("scale")
        # Format 1 folds the gain of a branch into its weights.
        newer = any(name.endswith("scale") for name in tensors)
        newer = newer or any(isinstance(x, TandemElementwise) or x.wiring is not None for _, x in _layers(join))
        self.format = 2 if newer else format_of(join.neuron)
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
            twins.append(bare(class_of(branch), settings_of(branch)))
            kernel = kernel_of(branch)
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
            twin = checked_layer(kinds[kind], given)
            shapes |= {f"{i}.{name}": (twin.synapses.outputs,) for name in _OF_BRANCHES}
            shapes[f"{i}.weight"] = (*twin.weight.shape,)
            twins.append(twin)
        weights = tuple(name for name in shapes if name.endswith("weight"))
        check_tensors(cls.kind, tensors, shapes, tuple(name for name in shapes if name not in weights), weights)
        for name in weights:
            check_integers(cls.kind, name, tensors, name.removesuffix("weight") + "scale")
        check_no_bool(cls.kind, settings["neuron"])
        neuron = of_settings(cls.kind, settings["neuron"])
        return cls(TandemAdd(*twins, neuron=neuron, engine=settings["engine"]), tensors)

    def settings(self) -> Settings:
        branches = [
            {"kind": class_of(branch).__name__, **(settings_of(branch) if isinstance(branch, TandemLayer) else {})}
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


register(TandemAdd, FrozenAdd.of, FrozenAdd.load)
