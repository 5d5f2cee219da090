"""TandemAdd: neurons driven by the sum of several branches, as at the end of a residual block."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..neuron import IF, Neuron, check_neuron, of_settings, stacked
from ..ops.integrate_and_fire import discharge
from ..ops.product import check_engine
from ..spike_code import SpikeCode
from ..spike_train import SpikeTrain
from . import learned_threshold, schema
from .ann_twin import activated, value_of
from .coupling import coupled, needs_gradient
from .drive import Affine, spike_scale
from .firing import check_reads_radix
from .frozen import Span, State, class_of
from .leak import check_two_phase, folded, negative
from .prepared import PreparedLayer, Run
from .schema import Settings, Tensors
from .sizes import SPIKES, Value, agreed
from .spiking import KINDS
from .summands import Summands
from .synapses import Synapses
from .tandem import TandemLayer
from .trained_code import check_code, check_train
from .weight_cache import Kernel, SpikingWeights

BranchInput = tuple[Any, SpikeTrain]
"""A branch and its input."""
_DIMS = (1, 2, 3, 4)
"""How many dimensions a sample may have."""
_CONSTANTS = ("weight", "bias", "scale")
"""The constants of a branch."""


class TandemAdd(PreparedLayer):
    """Neurons driven by the summed currents of several branches, like the sum before the ReLU of a residual block.

    Branch i has the weights W_i and the bias b_i (batch norm folded in), the input spikes s_i and their counts c_i::

        x[t] = sum over i of (W_i * s_i[t] + b_i / T),      v = sum over i of (W_i * c_i + b_i)

    As in a single layer, x[t] summed over time is v, so the tandem rule holds. A branch is a tandem layer, of which
    only the weights and the norm are used, not the neurons; or nn.Identity, which adds the ``amplitude`` of each spike
    as a current. For a torchvision BasicBlock::

        join = TandemAdd(TandemConv2d(64, 64, 3, padding=1, norm="batch"), nn.Identity())
        y = join(hidden, x)        # relu(bn2(conv2(hidden)) + x)

    One operator computes the product of the branch with the most inputs per neuron, and runs the neurons. All other
    branches add to its currents at every time step: an identity adds its spikes, a layer the currents of its product.
    So x[t] is the current of that branch plus the sum of all others, layers in their order before identities; each
    addition is rounded once. The currents of all other layers are stored for all steps. Two-phase neurons need only
    one product of spike counts for each layer. The ANN twin computes v branch by branch.

    Args:
        branches: two or more tandem layers or nn.Identity modules.
        neuron: a neuron model, such as IF(...).
        engine: "auto", "event" or "dense", for the product that ends in the neurons. All other products
            use the engine of their branch; with "auto", products of every time step are event-driven.
        learn_threshold: learn the threshold, neuron.threshold * exp(``log_threshold``). The parameter ``log_threshold``
            is a scalar and starts at 0 (:mod:`tandem_cuda.nn.learned_threshold`: LSQ, arXiv:1902.08153). The sum of
            the branches is divided by exp(``log_threshold``).

    Shape:
        One SpikeTrain per branch -> SpikeTrain, in the common output shape of the branches.

    Raises:
        TypeError: a branch is neither a tandem layer nor nn.Identity, an input is not a SpikeTrain, or
            ``learn_threshold`` is no bool.
        ValueError: fewer than two branches; a branch has ``learn_threshold``; not one input per branch; output shapes
            or time steps differ.

    Examples:
        >>> join = TandemAdd(TandemConv2d(4, 4, 3, padding=1, norm="batch"), nn.Identity())
        >>> x = SpikeTrain.from_dense(torch.ones(8, 2, 4, 6, 6))
        >>> join(x, x)
        SpikeTrain([2, 4, 6, 6], time_steps=8, dtype=torch.float32, device=cpu)
    """

    log_threshold: nn.Parameter | None
    scale: Tensor | None
    """exp(-log_threshold) of a frozen TandemAdd, [1]."""

    def __init__(
        self, *branches: nn.Module, neuron: Neuron = IF(), engine: str = "auto", learn_threshold: bool = False
    ) -> None:
        super().__init__()
        if len(branches) < 2:
            raise ValueError(f"TandemAdd: branches must be two or more, got {len(branches)}")
        for branch in branches:
            if not isinstance(branch, (TandemLayer, nn.Identity)):
                raise TypeError(
                    f"TandemAdd: branches must be tandem layers or nn.Identity, got {type(branch).__name__}"
                )
            if isinstance(branch, TandemLayer) and branch.log_threshold is not None:
                raise ValueError(
                    "TandemAdd: branches must have learn_threshold=False (the neurons are those of the TandemAdd), got "
                    "True"
                )
        check_neuron("TandemAdd", neuron)
        check_engine("TandemAdd", engine)
        self.branches = nn.ModuleList(branches)
        self.neuron = neuron
        self.engine = engine
        like = next((layer.weight for layer in self._layers()), torch.empty(0))
        self.register_parameter(
            "log_threshold", learned_threshold.new_log_threshold("TandemAdd", learn_threshold, like)
        )
        self.register_buffer("scale", None)

    def forward(self, *inputs: SpikeTrain) -> SpikeTrain:
        pairs = self._checked(inputs)
        steps = inputs[0].time_steps
        v, kernels = None, None
        if self._needs_pre_activation(inputs):
            kernels = self._kernels()
            v = self._pre_activation(pairs, kernels)
            if self.log_threshold is not None:
                levels = self.neuron.levels(steps)
                v = v * learned_threshold.learning_inverse(self.log_threshold, v.shape, levels).to(v.dtype)
        with torch.no_grad():
            if v is not None and self.neuron.two_phase and self._uses_batch_statistics():
                bits, _ = discharge(v, steps, self.neuron)
            else:
                trains = [x.detach() for x in inputs]
                bits, _ = self._summands(pairs, steps, kernels).prepared(False, trains)(trains, None, False)
        return self._coupled(inputs, bits, v)

    def integrated(self, *inputs: SpikeTrain) -> Tensor:
        """Return what two-phase neurons integrate before they fire, up to rounding, in eval mode without a gradient."""
        v = self._pre_activation(list(zip(self.branches, inputs, strict=True)), self._kernels())
        scale = self.current_scale()
        return v if scale is None else v * scale

    def discharged(self, v: Tensor, *inputs: SpikeTrain) -> SpikeTrain:
        """Return the spikes of two-phase neurons that have integrated v from these inputs, without a gradient."""
        bits, _ = discharge(v, inputs[0].time_steps, self.neuron)
        return self._coupled(inputs, bits, None)

    def _coupled(self, inputs: Sequence[SpikeTrain], bits: Tensor, v: Tensor | None) -> SpikeTrain:
        pair_dim = self._sum_pair_dim(inputs)
        fired = coupled(self.neuron, bits, v, inputs[0].time_steps, self.dtype_of(inputs))
        return fired if pair_dim is None else self.with_pairs(fired.replace_unchecked(pair_dim=pair_dim))

    def _kernels(self) -> list[Kernel | None]:
        return [branch.weights.packed() if isinstance(branch, TandemLayer) else None for branch in self.branches]

    def with_pairs(self, fired: SpikeTrain) -> SpikeTrain:
        """Return paired spikes, folded (:func:`.leak.folded`) as the slopes of the branches say."""
        layer = next(iter(self._layers()), None)  # all have the same slopes
        return fired if layer is None else folded("TandemAdd", fired, layer, self.neuron.two_phase)

    @property
    def fires_pairs(self) -> bool:
        """Whether a branch has neurons 2i and 2i + 1 for v and -v."""
        return any(layer.fires_pairs for layer in self._layers())

    def pair_dim(self, dims: int | None) -> int | None:
        """Return the ``pair_dim`` of outputs with ``dims`` dimensions, None if not known, of branches with weights."""
        return next((layer.pair_dim(dims) for layer in self._layers() if layer.fires_pairs), None)

    def _sum_pair_dim(self, inputs: Sequence[SpikeTrain | Value]) -> int | None:
        """Return the ``pair_dim`` of the sums: of a branch that fires pairs, or of trains that are all paired."""
        shape = inputs[0].shape
        if self._layers():
            batch = 0 if isinstance(inputs[0], SpikeTrain) else 1
            return self.pair_dim(None if shape is None else batch + len(shape))
        dims = {x.pair_dim for x in inputs}
        if len(dims - {None}) > 1:
            raise ValueError(f"TandemAdd: pairs of all inputs must lie along the same dimension, got pair_dim = {dims}")
        return None if None in dims else dims.pop()

    def _checked(self, inputs: Sequence[Any]) -> list[BranchInput]:
        """Return the branches with their inputs; raise a TypeError or ValueError if these do not fit."""
        if len(inputs) != len(self.branches):
            raise ValueError(f"TandemAdd: inputs must be {len(self.branches)}, one per branch, got {len(inputs)}")
        for x in inputs:
            if not isinstance(x, SpikeTrain):
                raise TypeError(f"TandemAdd: inputs must be SpikeTrains, got {type(x).__name__}")
            if x.code.radix:
                check_reads_radix(self.neuron, "TandemAdd")
        if len({x.time_steps for x in inputs}) > 1:
            raise ValueError(
                f"TandemAdd: inputs must have the same number of time steps, got {[x.time_steps for x in inputs]}"
            )
        pairs = list(zip(self.branches, inputs, strict=True))
        for branch, x in pairs:
            if isinstance(branch, TandemLayer):
                check_train(branch, x.code.radix, "TandemAdd")
                branch.synapses.check_pairs(x)
        shapes = []
        for branch, x in pairs:
            dims = len(x.shape) - 1
            if dims not in _DIMS:
                allowed = "[N, F], [N, C, L], [N, C, H, W] or [N, C, D, H, W]"
                raise ValueError(f"TandemAdd: input must be {allowed}, got {list(x.shape)}")
            shapes.append(list(branch.synapses.output_shape(x.shape) if isinstance(branch, TandemLayer) else x.shape))
        if any(shape != shapes[0] for shape in shapes):  # not a set: hashing would specialise symbolic sizes
            raise ValueError(f"TandemAdd: branches must agree in shape, got {', '.join(map(str, shapes))}")
        return pairs

    def dtype_of(self, inputs: Sequence[SpikeTrain]) -> torch.dtype:
        for branch in self.branches:
            if isinstance(branch, TandemLayer):
                return branch.weights.dtype
        return inputs[0].dtype

    # -- ANN twin, branch by branch

    def _needs_pre_activation(self, inputs: Sequence[SpikeTrain]) -> bool:
        carried = [x.carried_value for x in inputs]
        return self._uses_batch_statistics() or needs_gradient(*self._sources(), *carried)

    def _uses_batch_statistics(self) -> bool:
        return any(branch.drive.uses_batch_statistics() for branch in self._layers())

    def _pre_activation(self, pairs: list[BranchInput], kernels: Sequence[Kernel | None]) -> Tensor:
        """Return the sum of the branches' v. In training this updates the running statistics.

        It is not yet divided by exp(log_threshold).
        """
        parts = []
        for (branch, x), kernel in zip(pairs, kernels, strict=True):
            if kernel is None:
                parts.append(value_of(x))
            else:
                scale = spike_scale(kernel.weight, x.amplitude, kernel.unit)
                drive = branch.drive
                v = branch.synapses.count_product(x, SpikingWeights(kernel, scale, drive.bias()))
                parts.append(drive.summand(v))
        return functools.reduce(torch.add, parts)

    def _layers(self) -> list[TandemLayer]:
        return [branch for branch in self.branches if isinstance(branch, TandemLayer)]

    def _sources(self) -> list[Tensor]:
        own = [x for x in (self.log_threshold, self.scale) if x is not None]
        return [x for layer in self._layers() for x in layer.weights.sources()] + own

    def current_scale(self) -> Tensor | None:
        """Return the factor of the summed currents, [1], or None for 1."""
        if self.log_threshold is None:
            return self.scale
        return learned_threshold.inverse_threshold(self.log_threshold).view(1)

    # -- spiking twin

    def _summands(
        self,
        pairs: list[BranchInput],
        steps: int,
        kernels: Sequence[Kernel | None] | None = None,
        frozen: bool = False,
    ) -> Summands:
        """Return what drives the neurons.

        Args:
            pairs: the branches with their inputs.
            steps: T, by which biases are divided.
            kernels: the branches' weights, if they are at hand; None for an identity.
            frozen: whether the branches are frozen, whose weights are constants.
        """
        now, dtype, scale = pairs[0][1].time_steps, self.dtype_of([x for _, x in pairs]), self.current_scale()
        total = 1 if self.neuron.two_phase else steps  # two-phase neurons take the whole bias at once
        summands = Summands(self.neuron, self.engine, now, dtype)
        for i, (branch, x) in enumerate(pairs):
            if isinstance(branch, TandemLayer):
                kernel = kernels[i] if kernels else None
                if frozen:
                    # Compiled code cannot see that weights have changed.
                    compiling = torch.compiler.is_compiling()
                    kernel = branch.weights.kernel() if compiling else branch.constant_kernel()
                    weights = Affine(branch.gain, branch.bias).of_spikes(kernel, total, x.amplitude)
                elif kernel is None:
                    weights = branch.drive.spiking_weights(branch.weights, total, x.amplitude)
                else:
                    weights = branch.drive.of_spikes(kernel, total, x.amplitude)
                summands.products.append((branch.synapses, i, _scaled(weights, scale)))
            else:
                amplitude = None if x.amplitude == 1 else torch.full([1], x.amplitude, dtype=dtype, device=x.device)
                summands.identities.append((i, amplitude if scale is None else scale * x.amplitude))
        return summands

    # -- frozen

    def settings(self) -> Settings:
        branches = []
        for branch in self.branches:
            settings = branch.synapse_settings() if isinstance(branch, TandemLayer) else {}
            branches.append({"kind": class_of(branch).__name__, **settings})
        return {"branches": branches, "neuron": self.neuron.settings(), "engine": self.engine}

    def constants(self) -> dict[str, Tensor]:
        """Return "<branch>.weight", and perhaps "<branch>.bias" and "<branch>.scale", and the factor "scale", [1]."""
        constants: dict[str, Tensor] = {}
        for i, branch in enumerate(self.branches):
            values = branch.constants() if isinstance(branch, TandemLayer) else {}
            constants |= {f"{i}.{name}": values[name] for name in _CONSTANTS if name in values}
        scale = self.current_scale()
        return constants if scale is None else {**constants, "scale": scale}

    @property
    def needs_all_steps(self) -> bool:
        return self.neuron.two_phase

    @classmethod
    def of(cls, settings: Settings, tensors: Tensors) -> Any:
        schema.check_settings("TandemAdd", settings, {"branches", "neuron", "engine"})
        given = settings["branches"]
        if not isinstance(given, list) or not all(isinstance(branch, dict) for branch in given):
            raise ValueError(f"TandemAdd: setting branches must be a list of objects, got {given!r}")
        branches: list[Any] = []
        shapes: dict[str, tuple[int, ...]] = {"scale": (1,)}
        kinds = {name: layer_class for name, layer_class in KINDS.items() if issubclass(layer_class, TandemLayer)}
        for i, branch in enumerate(given):
            kind, its_settings = branch.get("kind"), {name: value for name, value in branch.items() if name != "kind"}
            if kind not in ("Identity", *kinds):
                raise ValueError(
                    f"TandemAdd: kind of branch {i} must be Identity or one of {sorted(kinds)}, got {kind!r}"
                )
            if kind == "Identity":
                schema.check_settings(f"branch {i}", its_settings, set())
                branches.append(nn.Identity())
            else:
                branches.append(kinds[kind].checked(its_settings))
                shapes |= {f"{i}.{name}": shape for name, shape in branches[i].constant_shapes().items()}
        weights = tuple(name for name in shapes if name.endswith("weight"))
        schema.check_tensors("TandemAdd", tensors, shapes, tuple(shapes.keys() - {*weights}), weights)
        for name in weights:
            schema.check_integers("TandemAdd", name, tensors, name.removesuffix("weight") + "scale")
            i = int(name.removesuffix(".weight"))
            branches[i].with_constants({x: tensors[f"{i}.{x}"] for x in _CONSTANTS if f"{i}.{x}" in tensors})
        neuron = of_settings("TandemAdd", settings["neuron"])
        return cls._joined(branches, neuron, settings["engine"], tensors.get("scale"))

    def frozen(self, encoded: bool) -> Any:
        for layer in self._layers():
            check_two_phase("TandemAdd", layer, self.neuron.two_phase)
        branches = [
            branch.frozen_branch() if isinstance(branch, TandemLayer) else nn.Identity() for branch in self.branches
        ]
        with torch.no_grad():
            return self._joined(branches, self.neuron, self.engine, self.current_scale())

    @classmethod
    def _joined(cls, branches: Sequence[nn.Module], neuron: Neuron, engine: str, scale: Tensor | None) -> Any:
        join = cls(*branches, neuron=neuron, engine=engine)
        schema.check_scales("TandemAdd", neuron)
        join.scale = None if scale is None else schema.frozen_tensor(scale)
        return join

    def out_size(self, *inputs: Value) -> Value:
        if len(inputs) != len(self.branches):
            raise ValueError(f"number of inputs must be {len(self.branches)}, one per branch, got {len(inputs)}")
        joined: Value | None = None
        for i, (branch, x) in enumerate(zip(self.branches, inputs, strict=True)):
            x.check_kind(SPIKES)
            x.check_dims(*_DIMS)
            if x.radix:
                check_reads_radix(self.neuron)
            if isinstance(branch, TandemLayer):
                check_code(branch, x.radix)
            y = branch.synapses.out_size(x) if isinstance(branch, TandemLayer) else x
            joined = y if joined is None else agreed(i, joined, y)
        assert joined is not None
        return joined._replace(kind=SPIKES, pair_dim=self._sum_pair_dim(inputs), radix=self.neuron.radix)

    def forget_codes(self, *inputs: Value) -> None:
        for branch, x in zip(self.branches, inputs, strict=True):
            if isinstance(branch, TandemLayer):
                branch.forget_codes(x)

    def layers_with_constants(self) -> Sequence[nn.Module]:
        return [self, *self._layers()]

    def prepare(self, direct: bool, span: Span, *inputs: Any) -> Run:
        fire, steps = self._summands(self._checked(inputs), span.total, frozen=True).prepared(direct, inputs), span.now
        code = SpikeCode(self.neuron.amplitude_at(steps), self._sum_pair_dim(inputs), self.neuron.radix)
        folds, dtype = any(negative(layer) is not None for layer in self._layers()), self.dtype_of(inputs)

        def run(span: Span, state: State | None, *inputs: Any) -> tuple[SpikeTrain, State | None]:
            now, done, total, _ = span
            ends = now + done == total
            bits, after = fire(inputs, None if state is None else stacked(state), not ends)
            fired = SpikeTrain.coded(bits, steps, None, dtype, code)
            return self.with_pairs(fired) if folds else fired, None if ends else after.unbind(0)

        return run

    def extra_repr(self) -> str:
        engine = "" if self.engine == "auto" else f"engine={self.engine!r}, "
        learns = "" if self.log_threshold is None else ", learn_threshold=True"
        return f"{engine}neuron={self.neuron}{learns}"

    # -- what analysis and other programs ask

    def synapses_by_input(self) -> Sequence[Synapses | None]:
        """Return what reads the spikes of each branch; see :mod:`.operations`."""
        return [branch.synapses if isinstance(branch, TandemLayer) else None for branch in self.branches]

    def ann_twin(self, *inputs: SpikeTrain) -> SpikeTrain:
        """Run the ANN twin alone; see :mod:`.ann_twin`."""
        v = [
            branch.ann_summand(x) if isinstance(branch, TandemLayer) else value_of(x)
            for branch, x in zip(self.branches, inputs, strict=True)
        ]
        return activated(self, torch.stack(v).sum(0), inputs[0].time_steps)


def _scaled(weights: SpikingWeights, scale: Tensor | None) -> SpikingWeights:
    """Multiply the current by ``scale``, [1]."""
    if scale is None:
        return weights
    outputs = len(weights.kernel.weight)
    own, bias = weights.scale, weights.bias
    return weights._replace(
        scale=scale.repeat(outputs) if own is None else own * scale, bias=None if bias is None else bias * scale
    )
