"""The network that convert returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from ..neuron.radix_if import check_radix_steps
from ..nn import TandemAdd, TandemConvTranspose2d, TandemNeurons
from ..nn.encode import Decode, Encode
from ..nn.trained_code import read_code, written_code
from ..nn.weighted import WeightedLayer
from ..ops import checks
from ..spike_train import SpikeTrain
from .calibrate import EXTRA_STATE, Calibration, Level
from .conversion import Conversion
from .corrections import set_correction, weight_layer
from .nodes import owner_of, same_modules, unite
from .report import ConversionReport, report_on
from .twins import Twins, Watch
from .values import SpikeSource


class TandemNetwork(nn.Module):
    """A converted network: the spiking twin of an ANN, sharing the ANN's parameters and batch-norm modules.

    ``snn`` is the spiking twin, a torch.fx.GraphModule whose layers keep their names in the ANN. :meth:`ann` returns
    the original ANN. Training, moving or loading either network does the same to the other. ``state_dict`` uses the
    ANN's names, and loads the ANN's checkpoints. It holds two things more. In a calibrated network, "_extra_state" is
    the calibration as a uint8 Tensor: loading it brings the thresholds back, and
    :meth:`Calibration.of_state <tandem_cuda.convert.Calibration.of_state>` reads it. Thresholds that learn are
    "<layer>.log_threshold" for each of ``spiking_layers``.

    Raises:
        ValueError: the input is a spike train of another T than ``time_steps``, and the network is calibrated.
        RuntimeError: the ANN no longer computes what it did when it was converted. A parameter or module was replaced,
            or a setting or the bits of quantised weights changed. Checked in forward (but not in compiled code), in
            train and eval, when the network is frozen or exported, and when state is read, loaded or moved.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> images = torch.rand(2, 1, 28, 28)
        >>> snn = convert(ann, time_steps=8, example=images)
        >>> snn.ann() is ann, snn.time_steps
        (True, 8)
        >>> snn.set_time_steps(4)  # the same weights, fewer steps
        >>> snn(images).shape
        torch.Size([2, 10])
    """

    spiking_layers: tuple[str, ...]
    """Names in ``snn`` of the tandem layers and TandemAdds, in order of execution. Pooling layers are not listed."""
    levels: dict[str, Level] | None
    """T * threshold of each spiking layer, or the level of its RadixIF neurons, and of each average-pooling layer that
    has neurons, by name: the activation at which it fires at every step; a Tensor [C] with ``per_channel``. None if the
    network was not calibrated. Without the factor exp(log_threshold) of thresholds that learn, which
    ``load_state_dict(old.state_dict(), strict=False)`` takes over from another conversion."""
    calibration: Calibration | None
    """What calibration found: pass it to :func:`convert` as ``calibrate`` to use it again. None if the network was not
    calibrated."""
    time_steps: int
    """T. In mode "spikes" the input decides on T, unless the network is calibrated: its thresholds are for this T."""
    _in_training: tuple[fx.GraphModule] | None = None

    def __init__(
        self, snn: fx.GraphModule, ann: nn.Module, calibration: Calibration | None, conversion: Conversion
    ) -> None:
        super().__init__()
        writer, record = conversion.writer, conversion.record()
        self.snn = snn
        self.spiking_layers = tuple(layer.name for layer in writer.layers)
        self.calibration = calibration
        self._signed = frozenset(layer.name for layer in writer.layers if layer.signed)
        self._pools = tuple((pool.name, source) for pool, source in writer.pools)
        self._readers, self._cats = tuple(writer.readers), tuple(writer.cats)
        self._record = record
        self._totals: dict[Encode, float] = {}  # of constant input: scale * T
        self.set_time_steps(writer.options.time_steps)
        self._twin = (ann,)  # in a tuple, so that it is not a submodule and its parameters are listed only once
        self.tie_names()
        self.register_load_state_dict_post_hook(_tie_again)  # type: ignore[no-untyped-call]  # torch's
        modes = {name: module.training for name, module in ann.named_modules()}
        shared = same_modules(snn, ann)
        self.training = ann.training
        for name, module in snn.named_modules():
            if module not in shared:  # shared modules keep their mode: parts of a model may be frozen
                module.training = modes.get(name, ann.training)
        self._watch = Watch(ann, conversion.source, record.constants)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        unite(self.snn, self.ann())
        self._watch.note()

    def split(self) -> None:
        """Return more in training than in eval mode, if the graph returns both.

        The two graphs call the same modules.
        """
        results: Any = self.snn.graph.output_node().args[0]
        if len(results) == 2:
            training = fx.GraphModule(self.snn, _returning(self.snn.graph, 1), "SpikingTwinInTraining")
            training.recompile()
            self._in_training = (training,)  # in a tuple: it is no submodule, for it holds snn's modules
        self.snn.graph = _returning(self.snn.graph, 0)
        self.snn.recompile()

    @property
    def arguments(self) -> Any:
        """The structure of forward's arguments, with Ellipsis for tensors; None if each argument is a tensor."""
        return self._record.inputs.structure

    def ann(self) -> nn.Module:
        """Return the ANN twin. It shares parameters, statistics and train or eval mode with this network."""
        return self._twin[0]

    @torch.inference_mode(False)  # inference tensors would be of no use in training
    def set_time_steps(self, time_steps: int) -> None:
        """Run with another number of time steps from now on, on the same weights.

        The currents of all steps add up to the same pre-activations: constant input is scaled by T_before / T. A
        calibrated network keeps its ``levels``. Its thresholds are the levels divided by T, or by 2^T for RadixIF
        neurons, times exp(log_threshold) if they learn, and corrections of biases shrink like them. Other thresholds
        stay. The levels of least error depend on T, so convert anew for the best ones. To serve several T well, a
        network must be trained with them: draw T anew for every batch. RadixIF neurons keep their range at every T, so
        a network of them only needs batch norm's statistics of the new T, if it was trained for another one.

        Args:
            time_steps: T, at least 1. In mode "spikes", the T of the spike trains that follow.

        Raises:
            TypeError: ``time_steps`` is not an int.
            ValueError: ``time_steps`` < 1, or > 8 with RadixIF neurons.
        """
        checks.check_time_steps("set_time_steps", time_steps)
        for name in self.spiking_layers:
            neuron: Any = self.snn.get_submodule(name).neuron
            if neuron.radix:
                remedy = "convert the ANN with neuron=IF(initial=0.5, two_phase=True) for more"
                check_radix_steps("set_time_steps", time_steps, remedy)
        self.time_steps = time_steps
        for encode in (module for module in self.snn.modules() if isinstance(module, Encode)):
            if encode.mode == "constant":
                encode.scale = self._total(encode) / time_steps
            encode.time_steps = time_steps
        for neurons in (module for module in self.snn.modules() if isinstance(module, TandemNeurons)):
            neurons.time_steps = time_steps
        calibration = self.calibration
        self.levels = None if calibration is None else dict(calibration.levels)
        if calibration is None or self.levels is None:
            return
        for name in self.spiking_layers:
            layer: Any = self.snn.get_submodule(name)
            neuron = layer.neuron
            self._set_threshold(name, layer, self.levels[name] / neuron.shares(time_steps))
            if name in calibration.corrections:
                holder = weight_layer(layer)
                assert holder is not None
                before = calibration.time_steps
                ratio = 2.0 ** (before - time_steps) if neuron.radix else before / time_steps
                set_correction(holder, calibration.corrections[name] * ratio, name in self._signed)
        for name, source in self._pools:  # in order of execution: the source's level is known by now
            below = time_steps if source is None else float(self.levels[source])
            pool: Any = self.snn.get_submodule(name)
            bound = below * pool.largest  # no average of values up to ``below`` exceeds it
            level = self.levels[name] = min(float(self.levels.get(name, bound)), bound)
            pool.threshold = pool.amplitude = level / below
        for cat, levels in self._cats:
            cat.amplitudes = tuple(self.weights_of([(level, 0) for level in levels]))
        for module, sources in self._readers:
            self._set_scale(module, torch.tensor(self.weights_of(sources), dtype=torch.float64))
        if "_twins" in self.__dict__:  # otherwise when they are there
            self._twins.scale_integers()

    def report(self, inputs: Any = None) -> ConversionReport:
        """Compare the network with its ANN, layer by layer: ``print(snn.report())``.

        Args:
            inputs: a batch for the network, or a tuple with one batch for each of its inputs. By default up to 64
                samples of the first batch that ``convert`` was given as ``calibrate``. Deep copies of the network share
                them, pickles do not have them. Without samples, the report has no rates, errors and operations.

        Returns:
            The report, whose ``str`` is a table. Both networks run in eval mode without gradient, on 16 samples at a
            time; afterwards each module has its own mode again.

        Raises:
            TypeError: ``inputs`` is not what the network takes.
            ValueError: ``inputs`` has no samples, or spike trains of another T than a calibrated network.
        """
        self.check_twins()
        return report_on(self, self._record, inputs)

    def _set_threshold(self, name: str, layer: Any, threshold: Level) -> None:
        """Set the threshold of a spiking layer, or the thresholds of its channels."""
        if not isinstance(threshold, Tensor):
            layer.neuron = layer.neuron.calibrated(threshold)
            return
        layer.neuron = layer.neuron.calibrated(1.0)
        if isinstance(layer, TandemNeurons):
            layer.thresholds = threshold.to(next(self.parameters(), torch.empty(0)))
            return
        if name in self._signed:
            threshold = threshold.repeat_interleave(2)
        branches: list[Any] = [*layer.branches] if isinstance(layer, TandemAdd) else [layer]
        for branch in branches:
            branch.thresholds = threshold.to(branch.weights.stored())

    def weights_of(self, sources: Sequence[SpikeSource]) -> list[float]:
        """Return the weight of a spike of each source's channel, or 1."""
        if self.levels is None:
            return [1.0] * len(sources)
        # Deep networks have many sources, and reading an element of a tensor takes long.
        names = {name for name, _ in sources if name is not None}
        levels = {name: torch.as_tensor(self.levels[name], dtype=torch.float64).tolist() for name in names}
        layer: Any = self.snn.get_submodule(self.spiking_layers[0])
        shares: int = layer.neuron.shares(self.time_steps)

        def weight(name: str, channel: int) -> float:
            level = levels[name]
            return (level[channel] if isinstance(level, list) else level) / shares

        return [1.0 if name is None else weight(name, channel) for name, channel in sources]

    def _set_scale(self, module: Any, scale: Tensor) -> None:
        """Make a tandem layer or Decode multiply each channel that it reads."""
        if isinstance(module, Decode):
            like = next(self.snn.parameters(), torch.empty(0))
            module.scale = scale.to(like)
            return
        inputs = module.weight.shape[1] * getattr(module, "groups", 1)
        if isinstance(module, TandemConvTranspose2d):
            inputs = len(module.weight)
        if inputs % len(scale):
            raise ValueError(f"TandemNetwork: inputs must be a multiple of {len(scale)} channels, got {inputs}")
        module.input_scale = scale.repeat_interleave(inputs // len(scale)).to(module.weights.stored())

    def _total(self, encode: Encode) -> float:
        """Return scale * T, from the last call unless ``encode`` has been changed since: rounding must not add up."""
        total = self._totals.get(encode)
        if total is None or encode.scale != total / encode.time_steps:
            total = 1.0 if encode.scale == 1 / encode.time_steps else encode.scale * encode.time_steps
            self._totals[encode] = total
        return total

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if not torch.compiler.is_compiling():
            self.check_twins()
        arguments = self._record.inputs
        leaves = arguments.leaves(arguments.of_call(inputs, named))
        arguments.check_sizes(leaves)
        if self.levels is not None:
            for x in leaves:
                if isinstance(x, SpikeTrain) and x.time_steps != self.time_steps:
                    raise ValueError(
                        f"TandemNetwork: input must have T = {self.time_steps}, which calibrated thresholds are for "
                        f"(set_time_steps changes it), got T = {x.time_steps}"
                    )
        spec, spec_in_training = self._record.outputs
        if self.training and self._in_training:  # with snn's own modules, wherever they are
            return tree_unflatten(
                tree_leaves(type(self._in_training[0]).forward(self.snn, *leaves)), spec_in_training or spec
            )
        return tree_unflatten(tree_leaves(self.snn(*leaves)), spec)

    def tie_names(self) -> None:
        """Find anew which tensors both twins hold, and under which names."""
        self._twins = Twins(self, super().state_dict(keep_vars=True), self.ann())

    def _move_own_tensors(self) -> None:
        self._twins.move_own_tensors()
        if self.calibration is not None:
            self.set_time_steps(self.time_steps)  # whose constants are rounded anew

    def check_twins(self) -> None:
        """Raise a RuntimeError if the ANN no longer computes what its spiking twin stands for.

        Cheap as long as nothing has changed: it compares identities and settings. Which tensors the spiking twin
        holds is not compared, only that it holds them: torch.func.functional_call swaps them temporarily.
        """
        self._twins.check_shared()
        if changes := self._watch.changes():
            raise RuntimeError(
                f"TandemNetwork: the ANN must compute what it did when it was converted, but {changes} changed. Call "
                "convert on the ANN again (calibrate=snn.calibration keeps the thresholds), or from_qcfs"
            )
        self._twins.check_scales()
        self._twins.follow_buffers()
        if self._twins.ann_has_moved():
            self._move_own_tensors()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the ANN's state_dict, under the ANN's names, and thresholds that learn."""
        self.check_twins()
        state = self.ann().state_dict(*args, **kwargs)
        options = dict(zip(("destination", "prefix", "keep_vars"), args, strict=False)) | kwargs
        prefix = options.get("prefix", "")
        for name, public in self._twins.only_snn.items():
            x = getattr(*owner_of(self, name))
            state[prefix + public] = x if options.get("keep_vars", False) else x.detach()
        calibration = self.calibration
        if calibration is not None:
            state[prefix + EXTRA_STATE] = calibration.as_tensor()
        if hasattr(state, "_metadata"):
            metadata = state._metadata.setdefault(prefix[:-1], {})
            metadata[_CODES] = {name: codes for name, layer in self._weighted() if (codes := written_code(layer))}
            if calibration is None and self.levels is None:
                metadata[_UNCALIBRATED] = True
        return state

    def _weighted(self) -> Iterator[tuple[str, WeightedLayer]]:
        return ((name, layer) for name, layer in self.snn.named_modules() if isinstance(layer, WeightedLayer))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        self.check_twins()
        strict, missing, unexpected, errors = args
        state = state_dict.pop(prefix + EXTRA_STATE, None)
        if problem := self._load_calibration(state, local_metadata):  # as a key, which strict=False ignores
            (missing if state is None else unexpected).append(f"{prefix}{EXTRA_STATE} ({problem})")
        # The spiking twin's modules load themselves next, so they need the names they have in the spiking twin.
        shared = {theirs for theirs in self._twins.names.values() if prefix + theirs in state_dict}
        renamed = {theirs: state_dict.pop(prefix + theirs) for theirs in shared}
        for name, theirs in self._twins.names.items():
            if theirs in renamed:
                state_dict[prefix + name] = renamed[theirs]
        self._drop_aliases(state_dict, prefix, {*shared, *self._twins.only_ann})
        for name, public in self._twins.only_snn.items():
            if prefix + public in state_dict:
                state_dict[prefix + name] = state_dict.pop(prefix + public)
        for name in self._twins.only_ann:
            if prefix + name not in state_dict:
                missing += [prefix + name] if strict else []
                continue
            owner, key = owner_of(self.ann(), name)
            old, new = getattr(owner, key), state_dict.pop(prefix + name)
            if old.shape != new.shape:
                errors.append(f"size mismatch for {prefix + name}: got {list(new.shape)}, expected {list(old.shape)}.")
            elif local_metadata.get("assign_to_params_buffers", False):
                setattr(owner, key, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
            else:
                with torch.no_grad():
                    old.copy_(new)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        for name, layer in self._weighted():
            read_code(layer, local_metadata.get(_CODES, {}).get(name, {}))

    def _drop_aliases(self, state_dict: Any, prefix: str, loaded: set[str]) -> None:
        """Take out the other names of tensors that are loaded: of weights or modules that the ANN has in two places."""
        state = self.ann().state_dict(keep_vars=True)
        ids = {id(state[name]) for name in loaded if name in state}
        for name, x in state.items():
            if id(x) in ids and name not in loaded:
                state_dict.pop(prefix + name, None)

    def _load_calibration(self, state: Any, metadata: Any) -> str:
        """Take over the thresholds of the network whose state is loaded. Return why that is impossible, or ""."""
        mine = self.calibration
        if state is None:
            if mine is None or not metadata.get(_UNCALIBRATED, False):
                return ""
            return (
                "the state is of a converted network without calibration, whose neurons have other thresholds: load it "
                "into a conversion without calibrate, or into snn.ann()"
            )
        try:
            saved = Calibration.of_tensor(state)
        except ValueError as error:
            return str(error)
        remedy = (
            "call convert(ann, time_steps, calibrate=Calibration.of_state(state)), and load the state into the result"
        )
        if mine is None:
            return f"the state is of a calibrated network, whose thresholds this network cannot take over: {remedy}"
        if _shapes(saved.levels) != _shapes(mine.levels):
            return f"the state is of a network with other layers or with thresholds for other channels: {remedy}"
        if saved.neuron != mine.neuron:
            return f"the state is of a network with {saved.neuron}, this network has {mine.neuron}: {remedy}"
        for name in mine.corrections:
            holder = weight_layer(self.snn.get_submodule(name))
            if holder is not None and name not in saved.corrections:
                holder.correction = None
        self.calibration = saved
        self.set_time_steps(self.time_steps)
        return ""

    def _apply(self, fn: Any, recurse: bool = True) -> TandemNetwork:
        self.check_twins()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._twins.only_ann:  # .to(), for example, also moves what only the ANN holds
            owner, key = owner_of(self.ann(), name)
            x = getattr(owner, key)
            if isinstance(x, nn.Parameter):
                x.data = fn(x.data)
            else:
                setattr(owner, key, fn(x))
        self._twins.tie()
        self._move_own_tensors()
        return self

    def train(self, mode: bool = True) -> TandemNetwork:
        """Set train or eval mode of both twins."""
        if not torch.compiler.is_compiling():
            self.check_twins()  # compiled networks do not check in forward, so they check here
        super().train(mode)
        self.ann().train(mode)
        return self


_UNCALIBRATED = "uncalibrated"
"""In the metadata of a state dict: the state of a converted network without calibration."""
_CODES = "trained_codes"
"""In these metadata: for each layer of the spiking twin, with which spikes it was trained."""


def _shapes(levels: Mapping[str, Level]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(level.shape) if isinstance(level, Tensor) else () for name, level in levels.items()}


def _tie_again(network: TandemNetwork, incompatible_keys: Any) -> None:
    network._twins.tie()


def _returning(graph: fx.Graph, number: int) -> fx.Graph:
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    results: Any = part.graph_copy(graph, copies)
    part.output(results[number])
    for node in reversed(part.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            part.erase_node(node)
    return part
