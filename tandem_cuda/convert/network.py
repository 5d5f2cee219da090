"""convert, and the network that it returns."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced_fields
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neuron import IF, Neuron, check_neuron
from ..nn import TandemAdd, TandemConvTranspose2d, TandemElementwise
from ..nn.encode import Decode, Encode
from ..nn.quantised import check_quantisable, quantise_layers, scale_integers, unquantise_layers, weight_layers
from ..nn.quantiser import quantiser
from ..nn.tandem import OF_CONVERSION, TandemLayer, stored
from ..ops import checks
from ..ops.product import ENGINES
from ..spike_train import SpikeTrain
from .batches import Batch, calibration_batches
from .calibrate import (
    EXTRA_STATE,
    Calibration,
    Level,
    Measured,
    checked_levels,
    find_corrections,
    least_errors,
    percentiles,
    set_correction,
    weight_layer,
)
from .conversion import Conversion, cut
from .record import Record, Sample
from .replace import check_replacements, replaced
from .report import ConversionReport, report_on
from .rules import RULES, has_weights
from .trace import Traced, check_traced, inputs_of, owner_of, same_modules, traced, unite
from .values import Source
from .watch import Watch

_BITS = {"int8": 8, "int16": 16}
"""Of what ``convert`` takes as ``weights``."""


class TandemNetwork(nn.Module):
    """A converted network: the spiking twin of an ANN, sharing the ANN's parameters and batch-norm modules.

    ``snn`` is the spiking twin, a torch.fx.GraphModule whose layers keep their names in the ANN. :meth:`ann` returns
    the original ANN. Training, moving or loading either network does the same to the other. ``state_dict`` uses the
    ANN's names, so the two have the same checkpoints. Only thresholds that learn are not in the ANN: ``state_dict``
    then also holds "<layer>.log_threshold" for each of ``spiking_layers``.

    Raises:
        ValueError: the input is a spike train of another T than ``time_steps``, and the network is calibrated.
        RuntimeError: a parameter or module that the twins share has been replaced in the ANN. Checked in forward (but
            not in compiled code), in train and eval, and when state is read, loaded or moved.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> snn = convert(ann, time_steps=8)
        >>> snn.ann() is ann, snn.time_steps
        (True, 8)
        >>> snn.set_time_steps(4)  # the same weights, fewer steps
        >>> snn(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    spiking_layers: tuple[str, ...]
    """Names in ``snn`` of the tandem layers and TandemAdds, in order of execution. Pooling layers are not listed."""
    levels: dict[str, Level] | None
    """T * threshold of each spiking layer, and of each average-pooling layer that has neurons, by name: the activation
    at which it fires at every step; a Tensor [C] with ``per_channel``. None if the network was not calibrated. Without
    the factor exp(log_threshold) of thresholds that learn, which ``load_state_dict(old.state_dict(), strict=False)``
    takes over from another conversion."""
    calibration: Calibration | None
    """What calibration found: pass it to :func:`convert` as ``calibrate`` to use it again. None if the network was not
    calibrated."""
    time_steps: int
    """T. In mode "spikes" the input decides on T, unless the network is calibrated: its thresholds are for this T."""
    _only_snn: Mapping[str, str] = {}  # of networks pickled by earlier versions
    _readers: tuple[tuple[Any, tuple[Source, ...]], ...] = ()  # likewise
    _cats: tuple[tuple[Any, list[str | None]], ...] = ()  # likewise
    _record: Record | None = None  # likewise
    _watch: Watch | None = None  # likewise
    _own: Sequence[tuple[Any, nn.Module, str]] = ()  # likewise; modules with tensors of the spiking twin alone
    _weight_twins: Sequence[
        tuple[Any, str, Any]
    ] = ()  # likewise; layers that share a weight, and the ANN's name for it
    _scaled: Sequence[tuple[Any, Any]] = ()  # likewise; the ANN's quantisers, and the scale that each must have

    def __init__(
        self,
        snn: fx.GraphModule,
        ann: nn.Module,
        time_steps: int,
        spiking_layers: Iterable[str] = (),
        calibration: Calibration | None = None,
        pools: Iterable[tuple[str, str | None]] = (),
        readers: Iterable[tuple[Any, tuple[Source, ...]]] = (),
        cats: Iterable[tuple[Any, list[str | None]]] = (),
        signed: Iterable[str] = (),
        record: Record | None = None,
        traced: Traced | None = None,
    ) -> None:
        super().__init__()
        self.snn = snn
        self.spiking_layers = tuple(spiking_layers)
        self.calibration = calibration
        self._signed = frozenset(signed)  # spiking layers with neurons for both signs
        self._pools = tuple(pools)  # average poolings with neurons, and the layers whose levels their inputs have
        self._readers = tuple(readers)  # modules that weigh the spikes of each channel, and where these come from
        self._cats = tuple(cats)  # concatenations of trains whose spikes differ in weight, and their levels
        self._record = record
        self._totals: dict[Encode, float] = {}  # of constant input: scale * T
        self.set_time_steps(time_steps)
        self._twin = (ann,)  # in a tuple, so that it is not a submodule and its parameters are listed only once
        self.tie_names()
        self.register_load_state_dict_post_hook(_tie_again)  # type: ignore[no-untyped-call]  # torch's
        self._arguments = _arguments(ann, [node.target for node in snn.graph.nodes if node.op == "placeholder"])
        modes = {name: module.training for name, module in ann.named_modules()}
        shared = same_modules(snn, ann)
        self.training = ann.training
        for name, module in snn.named_modules():
            if module not in shared:  # shared modules keep their mode: parts of a model may be frozen
                module.training = modes.get(name, ann.training)
        if traced is not None and record is not None:
            self._watch = Watch(ann, traced, shared, record)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        unite(self.snn, self.ann())
        if self._watch is not None:
            self._watch.resume(same_modules(self.snn, self.ann()))

    def ann(self) -> nn.Module:
        """Return the ANN twin. It shares parameters, statistics and train or eval mode with this network."""
        return self._twin[0]

    def set_time_steps(self, time_steps: int) -> None:
        """Run with another number of time steps from now on, on the same weights.

        The currents of all steps add up to the same pre-activations: constant input is scaled by T_before / T, and the
        thresholds of a calibrated network are its ``levels`` divided by T, times exp(log_threshold) if they learn.
        Corrections of biases shrink like the thresholds: by the T of ``calibration`` over T. Other thresholds stay. The
        levels of least error depend on T, so convert anew for the best ones. To serve several T well, a network must be
        trained with them: draw T anew for every batch.

        Args:
            time_steps: T, at least 1. In mode "spikes", the T of the spike trains that follow.

        Raises:
            TypeError: ``time_steps`` is not an int.
            ValueError: ``time_steps`` < 1.
            RuntimeError: the network was pickled by an earlier version.
        """
        checks.check_time_steps("set_time_steps", time_steps)
        if "calibration" not in self.__dict__:
            raise RuntimeError(
                "set_time_steps: the network was pickled by an earlier version. Call convert on its ANN again "
                "(calibrate=snn.levels keeps the thresholds)"
            )
        self.time_steps = time_steps
        for encode in self._encoders():
            if encode.mode == "constant":
                encode.scale = self._total(encode) / time_steps
            encode.time_steps = time_steps
        found = self.calibration
        self.levels = None if found is None else dict(found.levels)
        if found is None or self.levels is None:
            return
        for name in self.spiking_layers:
            layer: Any = self.snn.get_submodule(name)
            self._set_threshold(name, layer, self.levels[name] / time_steps)
            if name in found.corrections:
                holder = weight_layer(layer)
                assert holder is not None
                share = found.corrections[name] * (found.time_steps / time_steps)
                set_correction(holder, share, name in self._signed)
        for name, source in self._pools:  # in order of execution: the source's level is known by now
            below = time_steps if source is None else float(self.levels[source])
            pool: Any = self.snn.get_submodule(name)
            bound = below * pool.largest  # no average of values up to ``below`` exceeds it
            level = self.levels[name] = min(float(self.levels.get(name, bound)), bound)
            pool.threshold = pool.amplitude = level / below
        for cat, levels in self._cats:
            cat.amplitudes = tuple(self.weight_of(level, 0) for level in levels)
        for module, sources in self._readers:
            self._set_scale(module, torch.tensor([self.weight_of(*source) for source in sources], dtype=torch.float64))
        if hasattr(self, "_twin"):  # otherwise when it is there
            self._scale_integers()

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
            RuntimeError: the network was not made by ``convert``, or was pickled by an earlier version.
        """
        self.check_twins()
        if self._record is None:
            raise RuntimeError(
                "report: the network must be made by convert of this version. Call convert on its ANN again "
                "(calibrate=snn.calibration keeps the thresholds)"
            )
        return report_on(self, self._record, inputs)

    def _set_threshold(self, name: str, layer: Any, threshold: Level) -> None:
        """Set the threshold of a spiking layer, or those of its channels."""
        if not isinstance(threshold, Tensor):
            layer.neuron = layer.neuron.calibrated(threshold)
            return
        layer.neuron = layer.neuron.calibrated(1.0)
        if name in self._signed:
            threshold = threshold.repeat_interleave(2)
        branches: list[Any] = [*layer.branches] if isinstance(layer, TandemAdd) else [layer]
        for branch in branches:
            branch.thresholds = threshold.to(branch.stored_weight())

    def weight_of(self, level: str | None, channel: int) -> float:
        """Return the weight of a spike of a layer's channel, or 1."""
        if level is None or self.levels is None:
            return 1.0
        found = self.levels[level]
        return float(found[channel] if isinstance(found, Tensor) else found) / self.time_steps

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
        module.input_scale = scale.repeat_interleave(inputs // len(scale)).to(module.stored_weight())

    def _scale_integers(self) -> None:
        """Make both twins round the weights alike that multiply spikes of different weight."""
        scaled = []
        for module, _ in self._readers:
            if not isinstance(module, TandemLayer) or quantiser(module) is None:
                continue
            weight = module.stored_weight()
            twin = next(
                layer
                for layer in self.ann().modules()
                if layer is not module and quantiser(layer) is not None and getattr(*stored(layer, "weight")) is weight
            )
            scale_integers(module, twin)
            of_weight: Any = quantiser(twin)
            scaled.append((of_weight, of_weight.input_scale))
        self._scaled = scaled

    def _total(self, encode: Encode) -> float:
        """Return scale * T, from the last call unless ``encode`` has been changed since: rounding must not add up."""
        total = self._totals.get(encode)
        if total is None or encode.scale != total / encode.time_steps:
            total = 1.0 if encode.scale == 1 / encode.time_steps else encode.scale * encode.time_steps
            self._totals[encode] = total
        return total

    def _encoders(self) -> list[Encode]:
        return [module for module in self.snn.modules() if isinstance(module, Encode)]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if not torch.compiler.is_compiling():
            self.check_twins()
        if named or len(inputs) != self._arguments.required:
            inputs = self._arguments.of(inputs, named)
        if self.levels is not None:
            for x in inputs:
                if isinstance(x, SpikeTrain) and x.time_steps != self.time_steps:
                    raise ValueError(
                        f"TandemNetwork: input must have T = {self.time_steps}, which calibrated thresholds are for "
                        f"(set_time_steps changes it), got T = {x.time_steps}"
                    )
        return self.snn(*inputs)

    def tie_names(self) -> None:
        """Map each state name of the spiking twin to the ANN's name for the same tensor."""
        names = {id(x): name for name, x in self.ann().state_dict(keep_vars=True).items()}
        own = super().state_dict(keep_vars=True)
        self._names = {name: names[id(x)] for name, x in own.items() if id(x) in names}
        self._only_snn = {name: name.removeprefix("snn.") for name in own if name.endswith(".log_threshold")}
        """State of the spiking twin alone: the thresholds that learn, and their names in ``state_dict``."""
        self._only_ann = sorted(set(names.values()) - set(self._names.values()))
        self._note_twins()
        self._scale_integers()

    def _note_twins(self) -> None:
        """Record what the twins share, to detect later that the ANN has replaced it."""
        ann = self.ann()
        shared = {*self.snn.modules()} & {*ann.modules()}
        paths = {name: None for name, module in ann.named_modules() if module in shared}
        self._held: list[tuple[str, nn.Module, str, Any]] = []
        """The ANN's shared parameters: qualified name, owning module, key in that module, parameter."""
        self._buffers_held: list[tuple[nn.Module, str, nn.Module, str, Tensor]] = []
        """Buffers held by a module of each twin: the spiking twin's module and key, the ANN's, the buffer."""
        for mine, theirs in self._names.items():
            path, _, _ = theirs.rpartition(".")
            layer = ann.get_submodule(path)
            owner, key = owner_of(ann, theirs)
            paths[path] = None
            if owner is not layer:
                paths[f"{path}.parametrizations.{theirs.rpartition('.')[2]}".lstrip(".")] = None
            if layer in shared:
                continue
            if key in owner._buffers:
                self._buffers_held.append((*owner_of(self, mine), owner, key, getattr(owner, key)))
                continue
            self._held.append((theirs, owner, key, getattr(owner, key)))
            if has_weights(layer) and getattr(layer, "bias", None) is None:
                self._held.append((f"{path}.bias".lstrip("."), layer, "bias", None))
        self._weight_twins = [*self._find_weight_twins()]
        likes = {id(mine): owner_of(ann, theirs) for mine, theirs, _ in self._weight_twins}
        first = next((owner_of(ann, name) for name, _ in ann.named_parameters()), None)
        if first is not None:
            own = [module for module in self.snn.modules() if isinstance(module, _WITH_OWN_TENSORS)]
            self._own = [(module, *likes.get(id(module), first)) for module in own]
        self._placed: dict[str, tuple[nn.Module, str, nn.Module]] = {}
        """The ANN's modules on the path to anything shared, by name: parent module, key in the parent, the module."""
        for path in paths:
            parent, name = ann, ""
            for key in path.split(".") if path else ():
                child, name = parent.get_submodule(key), f"{name}.{key}".lstrip(".")
                self._placed[name] = parent, key, child
                parent = child

    def _find_weight_twins(self) -> Iterator[tuple[Any, str, Any]]:
        """Yield each weight layer of the spiking twin, the ANN's name for its weight, and the ANN's layer."""
        for mine, theirs in self._names.items():
            path, _, key = mine.rpartition(".")
            path = path.removesuffix(".parametrizations.weight")
            layer = self.get_submodule(path)
            if isinstance(layer, TandemLayer) and key in ("weight", "original"):
                name = theirs.rpartition(".")[0].removesuffix(".parametrizations.weight")
                yield layer, theirs, self.ann().get_submodule(name)

    def _follow(self) -> None:
        """Give tensors of the spiking twin alone the dtype and device of the ANN's, which may have been moved."""
        for module, owner, key in self._own:
            like = getattr(owner, key)
            own = _own_tensors(module)
            if any(x.dtype != like.dtype or x.device != like.device for x in own.values()):
                self._move_own_tensors()
                return

    def _move_own_tensors(self) -> None:
        for module, owner, key in self._own:
            like = getattr(owner, key)
            for name, x in _own_tensors(module).items():
                if name in module._parameters:
                    x.data = x.data.to(like)
                else:
                    setattr(module, name, x.to(like))
            if isinstance(module, TandemElementwise):
                module.maps_on(like)
        self.set_time_steps(self.time_steps)  # whose constants are rounded anew

    def check_twins(self) -> None:
        """Raise a RuntimeError if the ANN no longer is what its spiking twin stands for.

        Cheap as long as nothing has changed: it compares identities and settings.

        The spiking twin itself is not checked: torch.func.functional_call swaps its tensors temporarily.
        """
        changed = [name for name, (parent, key, child) in self._placed.items() if parent._modules.get(key) is not child]
        changed += [name for name, owner, key, x in self._held if owner._parameters.get(key) is not x]
        if changed:
            more = "" if len(changed) < 4 else f" and {len(changed) - 3} more"
            raise RuntimeError(
                "TandemNetwork: the ANN must keep the parameters and modules that it shares with its spiking twin, "
                f"but {', '.join(changed[:3])}{more} "
                f"{'was' if len(changed) == 1 else 'were'} replaced (by load_state_dict(assign=True), pruning, "
                "a parametrization or an assignment). Call convert on the ANN again (calibrate=snn.calibration keeps "
                "the thresholds), or load with snn.load_state_dict"
            )
        for mine, name, other in self._weight_twins:
            bits = [None if (of_weight := quantiser(layer)) is None else of_weight.bits for layer in (mine, other)]
            if bits[0] != bits[1]:
                raise RuntimeError(
                    f"TandemNetwork: the ANN must round its weights as its spiking twin does, but {name} has "
                    f"{_in_words(bits[1])} there and {_in_words(bits[0])} in the twin (did another conversion or "
                    "quantise change one of the two?). Call quantise on the TandemNetwork, or convert on the ANN again "
                    "(calibrate=snn.calibration keeps the thresholds)"
                )
        if self._watch is not None and (changes := self._watch.changes()):
            raise RuntimeError(
                f"TandemNetwork: the ANN must compute what it did when it was converted, but {changes} changed. Call "
                "convert on the ANN again (calibrate=snn.calibration keeps the thresholds)"
            )
        if any(of_weight.input_scale is not scale for of_weight, scale in self._scaled):
            raise RuntimeError(
                "TandemNetwork: the ANN must round its weights as its spiking twin does, but another conversion of it "
                "has other thresholds of channels or concatenated trains. Call convert again "
                "(calibrate=snn.calibration keeps the thresholds)"
            )
        for i, (mine, mine_key, owner, key, x) in enumerate(self._buffers_held):
            now = owner._buffers.get(key)
            if now is not x and now is not None:  # the ANN was moved or loaded; buffers are not trained
                setattr(mine, mine_key, now)
                self._buffers_held[i] = mine, mine_key, owner, key, now
        self._follow()

    def _tie(self) -> None:
        """Make the ANN hold the spiking twin's tensors again after loading or moving has replaced some of them."""
        for name, theirs in self._names.items():
            (owner, key), (other, other_key) = owner_of(self, name), owner_of(self.ann(), theirs)
            x = getattr(owner, key)
            if getattr(other, other_key) is not x:
                setattr(other, other_key, x)
        self._note_twins()
        self._scale_integers()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the ANN's state_dict, under the ANN's names, and thresholds that learn."""
        self.check_twins()
        state = self.ann().state_dict(*args, **kwargs)
        given = dict(zip(("destination", "prefix", "keep_vars"), args, strict=False)) | kwargs
        for name, public in self._only_snn.items():
            x = getattr(*owner_of(self, name))
            state[given.get("prefix", "") + public] = x if given.get("keep_vars", False) else x.detach()
        prefix = given.get("prefix", "")
        if self.calibration is not None:
            state[prefix + EXTRA_STATE] = self.calibration.as_tensor()
        elif hasattr(state, "_metadata"):
            state._metadata.setdefault(prefix[:-1], {})[_UNCALIBRATED] = True
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        self.check_twins()
        strict, missing, _, errors = args
        self._load_calibration(state_dict.pop(prefix + EXTRA_STATE, None), local_metadata, errors)
        # The spiking twin's modules load themselves next, so they need the names they have in the spiking twin.
        renamed = {theirs: state_dict.pop(prefix + theirs) for theirs in self._used() if prefix + theirs in state_dict}
        for name, theirs in self._names.items():
            if theirs in renamed:
                state_dict[prefix + name] = renamed[theirs]
        for name, public in self._only_snn.items():
            if prefix + public in state_dict:
                state_dict[prefix + name] = state_dict.pop(prefix + public)
        for name in self._only_ann:
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

    def _load_calibration(self, state: Any, metadata: Any, errors: list[str]) -> None:
        """Take over the thresholds of the network whose state is loaded. Add to ``errors`` if that is impossible."""
        mine = self.calibration
        if state is None:
            if mine is not None and metadata.get(_UNCALIBRATED, False):
                errors.append(
                    "the state is of a converted network without calibration, whose neurons have other thresholds: "
                    "load it into a conversion without calibrate, or into snn.ann()"
                )
            return
        saved = Calibration.of_tensor(state)
        if mine is None:
            errors.append(
                "the state is of a calibrated network, whose thresholds this network cannot take over: call "
                "convert(ann, time_steps, calibrate=Calibration.of_state(state)), and load the state into the result"
            )
        elif {k: _channels_of(x) for k, x in saved.levels.items()} != {
            k: _channels_of(x) for k, x in mine.levels.items()
        }:
            errors.append(
                "the state is of a network with other layers or with thresholds for other channels: call convert(ann, "
                "time_steps, calibrate=Calibration.of_state(state)), and load the state into the result"
            )
        elif saved.neuron != mine.neuron:
            errors.append(f"the state is of a network with {saved.neuron}, whereas this network has {mine.neuron}")
        else:
            for name in mine.corrections:
                holder = weight_layer(self.snn.get_submodule(name))
                if holder is not None and name not in saved.corrections:
                    holder.correction = None
            self.calibration = saved
            self.set_time_steps(self.time_steps)

    def _used(self) -> list[str]:
        return list(dict.fromkeys(self._names.values()))

    def _apply(self, fn: Any, recurse: bool = True) -> TandemNetwork:
        self.check_twins()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._only_ann:  # .to() and the like also apply to what only the ANN holds
            owner, key = owner_of(self.ann(), name)
            x = getattr(owner, key)
            if isinstance(x, nn.Parameter):
                x.data = fn(x.data)
            else:
                setattr(owner, key, fn(x))
        self._tie()
        self._move_own_tensors()
        return self

    def train(self, mode: bool = True) -> TandemNetwork:
        """Set train or eval mode of both twins."""
        if not torch.compiler.is_compiling():
            self.check_twins()  # compiled networks do not check in forward, so they check here
        super().train(mode)
        self.ann().train(mode)
        return self


@dataclass
class _Arguments:
    """The arguments of the ANN's forward. The spiking twin takes only those that are inputs."""

    names: list[str]
    defaults: dict[str, Any]
    open: bool
    """Whether forward has *args."""

    @property
    def required(self) -> int:
        """The number of inputs."""
        return len(self.names) - len(self.defaults)

    def of(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the spiking twin's inputs for a call of the network."""
        if self.open and not named:
            return inputs
        given = dict(zip(self.names, inputs, strict=False))
        twice = [name for name in named if name in given or name not in self.names]
        missing = [name for name in self.names if name not in self.defaults and name not in {*given, *named}]
        if len(inputs) > len(self.names) or twice or missing:
            raise TypeError(
                f"TandemNetwork: inputs must match the ANN's forward({', '.join(self.names)}), got {len(inputs)} "
                f"by position and {', '.join(named) or 'none'} by name"
            )
        given |= named
        for name, default in self.defaults.items():
            x = given.get(name, default)
            if x is not default and (isinstance(x, Tensor) or isinstance(default, Tensor) or x != default):
                raise ValueError(f"TandemNetwork: {name} must keep its default, {default!r}, got {x!r}")
        return tuple(given[name] for name in self.names if name not in self.defaults)


def _arguments(ann: nn.Module, inputs: Collection[str]) -> _Arguments:
    parameters = inspect.signature(ann.forward).parameters.values()
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = [parameter for parameter in parameters if parameter.kind not in many]
    defaults = {p.name: p.default for p in single if p.name not in inputs}
    return _Arguments([p.name for p in single], defaults, any(p.kind is many[0] for p in parameters))


_UNCALIBRATED = "uncalibrated"
"""In the metadata of a state dict: the state of a converted network without calibration."""


def _channels_of(level: Level) -> tuple[int, ...]:
    return tuple(level.shape) if isinstance(level, Tensor) else ()


_WITH_OWN_TENSORS = (TandemLayer, TandemAdd, Decode)
_OWN_TENSORS = (*OF_CONVERSION, "log_threshold", "scale")


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module of the spiking twin that the ANN does not have."""
    names = ("weight", "bias", *_OWN_TENSORS) if isinstance(module, TandemElementwise) else _OWN_TENSORS
    held = module._parameters | module._buffers
    return {name: x for name in names if (x := held.get(name)) is not None}


def _in_words(bits: int | None) -> str:
    return "weights that are not quantised" if bits is None else f"{bits} bits"


def _tie_again(network: TandemNetwork, incompatible_keys: Any) -> None:
    network._tie()


def convert(
    ann: nn.Module,
    time_steps: int,
    *,
    mode: str = "constant",
    neuron: Neuron | None = None,
    calibrate: Tensor | Iterable[Any] | Calibration | Mapping[str, Level] | None = None,
    percentile: float | None = None,
    per_channel: bool | None = None,
    correct_bias: bool | None = None,
    spiking_layers: int | None = None,
    engine: str = "auto",
    learn_thresholds: bool = False,
    weights: str | None = None,
    replace: Mapping[type[nn.Module], type[nn.Module] | nn.Module] | None = None,
    gates: str | None = None,
    example: Tensor | Sequence[Tensor] | None = None,
) -> TandemNetwork:
    """Convert an ANN to a tandem SNN (Wu et al. 2021) that shares its parameters.

    The ANN's forward is traced with torch.fx. Each weight layer with its batch norm and ReLU becomes one tandem layer,
    which holds the ANN's own Parameters and batch-norm module: training either network trains both. Everything before
    the first weight layer stays as it is; ``Encode`` follows it. The last weight layer stays analogue: it reads the
    output of ``Decode``, and everything after it stays as it is, too. In mode "spikes" there is no ``Encode``: the SNN
    takes spike trains, the ANN takes their counts, and everything up to the last weight layer must be convertible.

    | in the ANN | in the SNN |
    |---|---|
    | nn.Conv1d, nn.Conv2d, then optionally batch norm, then ReLU | TandemConv1d, TandemConv2d |
    | nn.ConvTranspose2d, nn.Linear, then the same | TandemConvTranspose2d, TandemLinear |
    | sums of such branches and of activations, then ReLU | TandemAdd |
    | average pooling, adaptive or not, or the mean over all pixels | SpikingAvgPool2d, SpikingAdaptiveAvgPool2d |
    | max pooling, dropout, dropout2d, also before the ReLU | SpikingMaxPool2d, TandemDropout, TandemDropout2d |
    | nn.Flatten, torch.flatten, x.view(len(x), -1) and the like | SpikeTrain.flatten |
    | nn.Identity; ReLU of non-negative values | nothing |

    ReLU, pooling, dropout and flatten may be modules, functions or methods. Optional arguments of forward keep their
    defaults. Inputs of the SNN may be passed by name, as for the ANN. :func:`tandem_cuda.convert.rules.register` adds
    rules for other classes and functions.

    Without ``calibrate``, every layer uses ``neuron`` as given, as in the paper; train the network afterwards. With
    ``calibrate``, start from a trained ANN: each layer's threshold becomes its level, a large activation of the ANN,
    divided by T (level by percentile: Rueckauer et al., "Conversion of continuous-valued deep networks to efficient
    event-driven networks for image classification", 2017, doi:10.3389/fnins.2017.00682; correction of biases: Li et
    al., "A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration", 2021,
    arXiv:2106.06984; thresholds layer by layer for T steps, then tandem learning: Wu et al., "Progressive Tandem
    Learning for Pattern Recognition with Deep Spiking Neural Networks", 2022, doi:10.1109/TPAMI.2021.3114196). A spike
    then has the weight of one threshold (``IF.amplitude``), and in mode "constant" the input is divided by T. So
    amplitude * count approximates the ANN's activation, and weights, biases and batch norms are used unchanged. For few
    steps use ``IF(initial=0.5, two_phase=True)``, ``per_channel`` and ``correct_bias``. Average pooling then adds no
    rounding error: before the read-out it averages decoded counts, and before a spiking layer it is folded into that
    layer's weights (:class:`SpikeWindows`). Folding requires windows of one size that does not depend on the image;
    otherwise the pooling layer has neurons with a level of their own. In deep networks, rounding to whole spikes
    accumulates errors; further training, with gradients through the ANN as always, reduces them.

    With ``spiking_layers=k`` the result is a hybrid: the first k spiking layers, then ``Decode``, then the rest of the
    ANN unchanged (Wu et al. 2022). All stages share the ANN's parameters, so the next stage is a conversion with k + 1.
    Layers are counted in the order in which the ANN's forward runs their activations. A sum of branches with its ReLU
    is one layer. A cut inside a residual block is therefore always before the sum: spiking branches are decoded, and
    the ANN adds them. Pooling after the last spiking layer is the ANN's. Nothing after the cut needs to be convertible.

    Args:
        ann: the ANN. The SNN takes over its train or eval mode.
        time_steps: T.
        mode: "constant" or "impulse", as for ``Encode``, or "spikes".
        neuron: the neurons of every spiking layer. With ``calibrate`` it must be IF(...); its threshold and amplitude
            are replaced.
        calibrate: inputs for the ANN: one batch, or an iterable of batches or of tuples that begin with a batch, such
            as a DataLoader. The ANN runs on them in eval mode without gradient. Alternatively the result of an earlier
            calibration, ``TandemNetwork.calibration`` or ``levels``, which is valid for any T: levels of layers that
            this network lacks are ignored, and pooling layers without a level use that of the layer they average over.
            With a Mapping of levels alone, biases are not corrected. The batches are held in memory meanwhile.
        percentile: take as level of a layer this percentile of its activations in each batch, in (0, 100], averaged
            over the batches. By default, the level is the one at which the activations, rounded to whole spikes and
            clipped at T, differ least from the ANN's (least squares). It depends on ``time_steps``.
        per_channel: find a level for each channel or feature instead of one for each layer. Gains and biases of the
            layer, and the weights of the layers that read it, then contain the thresholds. Average poolings with
            neurons fire at the thresholds of their input.
        correct_bias: shift the pre-activations of the spiking twin, layer by layer, so that the mean of each channel's
            decoded spikes is that of the ANN's activations on ``calibrate``. The ANN's parameters stay as they are. For
            networks that are not trained further. Not in mode "spikes", where ``calibrate`` has no spike trains.
        spiking_layers: the number of spiking layers, at least 1; by default all. A smaller number than all requires
            ``calibrate``: the ANN after the cut expects activations, not counts.
        engine: "auto", "event" or "dense": how spiking products are computed.
        learn_thresholds: whether every spiking layer and TandemAdd learns its threshold (``learn_threshold``), starting
            from that of ``neuron`` or of calibration. Average poolings with neurons keep theirs.
        replace: replace modules of the ANN itself, as in ``{nn.SiLU: nn.ReLU}``: classes of modules that have no
            spiking form, and the classes (called without arguments) or modules to put in their place. The ANN then
            computes something else and wants fine-tuning; a warning says so.
        gates: "analogue" to keep squeeze-and-excitation: the factors of channels are computed from spike counts, by the
            ANN's own layers and without spikes (:class:`tandem_cuda.nn.TandemGate`). By default it is refused.
        weights: "int8" or "int16" to compute with integer weights of 8 or 16 bits in both twins, as
            :func:`tandem_cuda.quantise` does: the ANN is changed, too. Calibration measures the quantised ANN. By
            default weights stay as they are.
        example: an input of the ANN, or one for each of its inputs, of at least one sample. Required if control flow in
            forward depends on the sizes of tensors, but not on the batch size. The network then refuses inputs of other
            sizes, as far as the control flow depends on them. The ANN runs on the example, with two batch sizes, to
            check that the trace computes the same.

    Returns:
        A TandemNetwork. ``.ann()`` is the ANN; ``print(snn.report())`` shows what became of each layer.

    Raises:
        TypeError: an argument has the wrong type, or a parameter is neither float32 nor float64, or not float32 with
            integer ``weights``.
        ValueError: an argument is out of range; inputs, activations or weights to be quantised are not finite; torch.fx
            cannot trace the model; the model does something different in training than in eval mode; or parts of it
            cannot be converted. The message lists all of these parts and what to use instead.

    Examples:
        >>> ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        >>> images = torch.rand(16, 1, 28, 28)
        >>> snn = convert(ann, time_steps=8, calibrate=images)
        >>> snn(images).shape
        torch.Size([16, 10])
    """
    if not isinstance(ann, nn.Module):
        raise TypeError(f"convert: ann must be an nn.Module, got {type(ann).__name__}")
    checks.check_time_steps("convert", time_steps)
    _check_choices(mode, engine, weights, gates, learn_thresholds, spiking_layers)
    found = Calibration(time_steps, calibrate) if isinstance(calibrate, Mapping) else calibrate
    found = found if isinstance(found, Calibration) else None
    on_data = calibrate is not None and found is None
    _check_calibration(mode, percentile, per_channel, correct_bias, on_data, calibrate)
    if neuron is None:
        of_calibration = None if found is None else found.neuron
        neuron = of_calibration or (IF() if calibrate is None else CALIBRATED)
    check_neuron("convert", neuron)
    if calibrate is not None:
        try:
            neuron.calibrated(1.0)
        except ValueError as error:
            raise ValueError(f"convert: {error}") from None
    if found is not None:
        per_channel = any(isinstance(level, Tensor) and level.dim() for level in found.levels.values())
    _check_dtypes(ann, weights)
    check_quantisable("convert", "ann", weight_layers(ann) if weights else [])
    batches = calibration_batches(ann, calibrate) if on_data else []
    if example is None and batches and inputs_of(ann) is not None:
        example = tuple(x[:1] for x in batches[0])
    with ExitStack() as undone_on_error:
        names_replaced: Sequence[str] = ()
        if replace is not None:
            check_replacements(replace, ann)
            names_replaced = undone_on_error.enter_context(replaced(ann, replace))
        trace = traced(ann, RULES, example)
        make = functools.partial(
            Conversion,
            *(trace.root, trace.graph, time_steps, mode, neuron, engine, calibrate is not None, learn_thresholds),
            gates=gates is not None,
            sizes=trace.sizes,
        )
        conversion, per_layer = _converted(make, spiking_layers, per_channel if calibrate is not None else False)
        snn = conversion.written()
        record = conversion.record()
        record.replaced, record.per_layer = tuple(names_replaced), per_layer
        record.sizes = None if example is None else _sizes(example)
        names = [name for _, name in conversion.neurons]
        with _quantised(ann, snn, weights):
            if calibrate is None:
                return TandemNetwork(snn, ann, time_steps, names, record=record, traced=trace)
            if found is None:
                check_traced(ann, trace.graph, *batches[0], root=trace.root)
                levels = _levels(conversion, trace, snn, batches, percentile)
                found = Calibration(time_steps, levels, neuron=neuron)
            else:
                found = _fitting(found, conversion, snn, neuron)
            pools = [(name, source) for _, name, source in conversion.pools]
            wiring = pools, conversion.readers, conversion.cats, conversion.signed, record, trace
            network = TandemNetwork(snn, ann, time_steps, names, found, *wiring)
            if on_data and mode != "spikes":  # for counts do not tell when the spikes come
                record.sample = Sample(batches[0])
                if correct_bias is not False:
                    network.calibration = replaced_fields(
                        found, corrections=_corrections(conversion, trace, snn, batches)
                    )
                _warn_if_unlike(network, trace, neuron, percentile, per_channel, correct_bias)
            return network


CALIBRATED = IF(initial=0.5, two_phase=True)
"""The neurons of a calibrated conversion, unless ``neuron`` says otherwise."""


def _converted(
    make: Callable[..., Conversion], spiking_layers: int | None, per_channel: bool | None
) -> tuple[Conversion, tuple[str, ...]]:
    """Convert with thresholds of channels or of layers; with None, of channels if that is possible.

    Returns:
        The conversion, and what in the ANN rules out thresholds of channels where ``per_channel`` is None.
    """

    def made(channels: bool) -> Conversion:
        whole = make(per_channel=channels)
        if spiking_layers is None:
            return whole
        return cut(whole, spiking_layers, lambda spiking: make(per_channel=channels, spiking=spiking))

    if per_channel is not None:
        return made(per_channel), ()
    channels = made(True)
    if not channels.problems:
        return channels, ()
    layers = made(False)
    return layers, tuple(dict.fromkeys(problem.name for problem in channels.problems))


def _levels(
    conversion: Conversion, trace: Traced, snn: fx.GraphModule, batches: Sequence[Batch], percentile: float | None
) -> dict[str, Level]:
    measured = [_measured(conversion, snn, name) for _, name in conversion.neurons]
    measured += [Measured(name, node) for node, name, _ in conversion.pools if name not in conversion.unmeasured]
    if percentile is not None:
        return percentiles(trace.root, trace.graph, measured, batches, percentile)
    return least_errors(trace.root, trace.graph, measured, batches, conversion.time_steps, conversion.neuron.initial)


def _fitting(found: Calibration, conversion: Conversion, snn: fx.GraphModule, neuron: Neuron) -> Calibration:
    """Return the part of a calibration that is for the layers of a network."""
    channels = {name: _channels(conversion, snn, name) for _, name in conversion.neurons}
    levels = checked_levels(channels, [name for _, name, _ in conversion.pools], found.levels)
    corrections = {name: x for name, x in found.corrections.items() if name in channels}
    return replaced_fields(found, levels=levels, corrections=corrections, neuron=neuron)


def _corrections(
    conversion: Conversion, trace: Traced, snn: fx.GraphModule, batches: Sequence[Batch]
) -> dict[str, Tensor]:
    names = [name for _, name in conversion.neurons if weight_layer(snn.get_submodule(name))]
    means = [_measured(conversion, snn, name, True) for name in names]
    return find_corrections(trace.root, trace.graph, snn, means, batches)


def _sizes(example: Tensor | Sequence[Tensor]) -> tuple[tuple[torch.Size, torch.dtype], ...]:
    inputs = [example] if isinstance(example, Tensor) else example
    return tuple((torch.Size([1, *x.shape[1:]]), x.dtype) for x in inputs)


def _warn_if_unlike(
    network: TandemNetwork,
    trace: Traced,
    neuron: Neuron,
    percentile: float | None,
    per_channel: bool | None,
    correct_bias: bool | None,
) -> None:
    """Warn if a calibrated network does not compute what its ANN does, and say what to change."""
    assert network._record is not None
    report = report_on(network, network._record, None, trace)
    if not report.is_unlike:
        return
    worse = {
        "neuron": neuron != CALIBRATED,
        "percentile": percentile is not None,
        "per_channel": per_channel is False,
        "correct_bias": correct_bias is False,
    }
    changed = " and ".join(name for name, differs in worse.items() if differs)
    defaults = f"leave out {changed}, since the defaults are better; " if changed else ""
    warnings.warn(
        f"convert: {report.verdict}. To change that: {defaults}use more time steps than {network.time_steps}; or train "
        "the network further. print(snn.report()) shows all layers",
        stacklevel=3,
    )


def _check_choices(
    mode: Any, engine: Any, weights: Any, gates: Any, learn_thresholds: Any, spiking_layers: Any
) -> None:
    if mode not in ("constant", "impulse", "spikes"):
        raise ValueError(f"convert: mode must be 'constant', 'impulse' or 'spikes', got {mode!r}")
    if engine not in ENGINES:
        raise ValueError(f"convert: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if weights not in (None, *_BITS):
        raise ValueError(f"convert: weights must be None, {' or '.join(map(repr, _BITS))}, got {weights!r}")
    if gates not in (None, "analogue"):
        raise ValueError(f"convert: gates must be None or 'analogue', got {gates!r}")
    if not isinstance(learn_thresholds, bool):
        raise TypeError(f"convert: learn_thresholds must be True or False, got {type(learn_thresholds).__name__}")
    if spiking_layers is not None:
        if isinstance(spiking_layers, bool) or not isinstance(spiking_layers, int):
            raise TypeError(f"convert: spiking_layers must be an int, got {type(spiking_layers).__name__}")
        if spiking_layers < 1:
            raise ValueError(
                f"convert: spiking_layers must be at least 1 (with none, use the ANN itself), got {spiking_layers}"
            )


def _check_calibration(
    mode: str, percentile: Any, per_channel: Any, correct_bias: Any, on_data: bool, calibrate: Any
) -> None:
    if percentile is not None:
        checks.check_number("convert", "percentile", percentile)
        if not 0 < percentile <= 100:
            raise ValueError(f"convert: percentile must be in (0, 100], got {percentile}")
    for name, value in (("per_channel", per_channel), ("correct_bias", correct_bias)):
        if not (value is None or isinstance(value, bool)):
            raise TypeError(f"convert: {name} must be True, False or None, got {type(value).__name__}")
        if value and not on_data:
            got = "None" if calibrate is None else "the result of an earlier calibration"
            raise ValueError(f"convert: calibrate must be inputs of the ANN with {name}=True, got {got}")
    if correct_bias and mode == "spikes":
        raise ValueError("convert: mode must be 'constant' or 'impulse' with correct_bias=True, got 'spikes'")


def _channels(conversion: Conversion, snn: fx.GraphModule, name: str) -> int | None:
    """Return the number of channels of a spiking layer that each have a level; None if it has one for all."""
    if not conversion.per_channel or weight_layer(snn.get_submodule(name)) is None:
        return None
    return conversion.targets[name][1]


def _measured(conversion: Conversion, snn: fx.GraphModule, name: str, per_channel: bool = False) -> Measured:
    """Return what to measure of the ANN for a spiking layer."""
    node = next(node for node, of in conversion.neurons if of == name)
    layer = weight_layer(snn.get_submodule(name))
    dim = -1 if isinstance(layer, nn.Linear) else 1
    signed, bound = name in conversion.signed, conversion.bounds.get(name, math.inf)
    channels = _channels(conversion, snn, name)
    if per_channel or channels is not None:
        node, channels = conversion.targets[name]
    return Measured(name, node, signed, bound, channels, dim)


@contextmanager
def _quantised(ann: nn.Module, snn: nn.Module, weights: str | None) -> Iterator[None]:
    """Quantise the weights of both twins; undo it if what follows fails."""
    layers = [layer for _, layer in weight_layers(ann, snn)] if weights else []
    before = [(layer, None if (of_weight := quantiser(layer)) is None else of_weight.bits) for layer in layers]
    if weights:
        quantise_layers(layers, _BITS[weights])
    try:
        yield
    except BaseException:
        unquantise_layers(layer for layer, bits in before if bits is None)
        for layer, bits in before:
            if bits is not None:
                quantise_layers([layer], bits)
        raise


def _check_dtypes(ann: nn.Module, weights: str | None) -> None:
    """Raise a TypeError if a parameter has a dtype that spiking layers do not support."""
    dtypes = torch.float32, torch.float64
    floats = {name: p.dtype for name, p in ann.named_parameters() if p.is_floating_point()}
    other = {name: dtype for name, dtype in floats.items() if dtype not in dtypes}
    if weights and not other and torch.float64 in floats.values():
        name = next(name for name, dtype in floats.items() if dtype == torch.float64)
        raise TypeError(f"convert: ann must have parameters of float32 with weights={weights!r}, got float64 in {name}")
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        got = ", ".join(sorted({str(dtype) for dtype in other.values()}))
        names = ", ".join(list(other)[:3])
        raise TypeError(
            f"convert: ann must have parameters of float32 or float64, got {got} in {names}{more}; call ann.float() "
            "first (products still run in lower precision under torch.autocast)"
        )
