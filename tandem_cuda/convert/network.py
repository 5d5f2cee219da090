"""convert, and the network that it returns."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neuron import IF, Neuron, check_neuron
from ..ops import checks
from ..ops.product import ENGINES
from .calibrate import checked_levels, percentiles
from .conversion import Conversion, cut
from .rules import RULES, has_weights
from .trace import owner_of, traced


class TandemNetwork(nn.Module):
    """A converted network: the spiking twin of an ANN, on the ANN's own parameters and batch-norm modules.

    ``snn`` is the spiking twin, a torch.fx.GraphModule whose layers have the names that they have in the ANN;
    :meth:`ann` is the ANN that was given. Whatever trains, moves or loads one does it to the other. ``state_dict`` has
    the ANN's names, so that checkpoints of the two are the same.

    Raises:
        RuntimeError: in forward, train, eval and what reads, loads or moves state, where a parameter or module that the
            twins share was replaced in the ANN; while compiling, forward does not check.
    """

    spiking_layers: tuple[str, ...]
    """Names in ``snn`` of the layers with neurons (pooling aside), in order of execution: tandem layers and joins."""
    levels: dict[str, float] | None
    """By name of a spiking layer, T * threshold: the activation at which it fires at every step; and the same of
    averages that have neurons. As calibration found it, for :func:`convert` to be given again; None without."""

    def __init__(
        self,
        snn: fx.GraphModule,
        ann: nn.Module,
        spiking_layers: Iterable[str] = (),
        levels: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.snn = snn
        self.spiking_layers = tuple(spiking_layers)
        self.levels = None if levels is None else dict(levels)
        self._twin = (ann,)  # in a tuple, so that it is no submodule and its parameters are listed once
        self.tie_names()
        self.register_load_state_dict_post_hook(_tie_again)  # type: ignore[no-untyped-call]  # torch's
        self._arguments = _arguments(ann)
        modes = {name: module.training for name, module in ann.named_modules()}
        shared = {*ann.modules()}
        self.training = ann.training
        for name, module in snn.named_modules():
            if module not in shared:  # those have the mode that they have: parts of a model may be frozen
                module.training = modes.get(name, ann.training)

    def ann(self) -> nn.Module:
        """The ANN twin, with which this network shares parameters, statistics and train or eval mode."""
        return self._twin[0]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if not torch.compiler.is_compiling():
            self._check_twins()
        if named or len(inputs) != self._arguments.required:
            inputs = self._arguments.of(inputs, named)
        return self.snn(*inputs)

    def tie_names(self) -> None:
        """Find every name of the spiking twin's state in the ANN's, by what they stand for."""
        names = {id(x): name for name, x in self.ann().state_dict(keep_vars=True).items()}
        own = super().state_dict(keep_vars=True)
        self._names = {name: names[id(x)] for name, x in own.items() if id(x) in names}
        self._only_ann = sorted(set(names.values()) - set(self._names.values()))
        self._note_twins()

    def _note_twins(self) -> None:
        """Note what the twins share, to notice when the ANN holds something else in its place."""
        ann = self.ann()
        shared = {*self.snn.modules()} & {*ann.modules()}
        paths = {name: None for name, module in ann.named_modules() if module in shared}
        self._held: list[tuple[str, nn.Module, str, Any]] = []
        """What the ANN's modules hold: name of module and parameter, the module, the key, the parameter."""
        self._buffers_held: list[tuple[nn.Module, str, nn.Module, str, Tensor]] = []
        """The same of buffers of which the twins have modules of their own; first the spiking twin's."""
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
        self._placed: dict[str, tuple[nn.Module, str, nn.Module]] = {}
        """By name, the ANN's modules on the way: the module that holds each, under which key, and itself."""
        for path in paths:
            parent, name = ann, ""
            for key in path.split(".") if path else ():
                child, name = parent.get_submodule(key), f"{name}.{key}".lstrip(".")
                self._placed[name] = parent, key, child
                parent = child

    def _check_twins(self) -> None:
        """RuntimeError where the ANN no longer holds what the twins shared. Cheap: identities are compared.

        The spiking twin may hold other tensors for a while, as in torch.func.functional_call.
        """
        changed = [name for name, (parent, key, child) in self._placed.items() if parent._modules.get(key) is not child]
        changed += [name for name, owner, key, x in self._held if owner._parameters.get(key) is not x]
        if changed:
            more = "" if len(changed) < 4 else f" and {len(changed) - 3} more"
            raise RuntimeError(
                f"TandemNetwork: the ANN must hold the parameters and modules that its spiking twin shares; "
                f"{', '.join(changed[:3])}{more} of the ANN "
                f"{'was' if len(changed) == 1 else 'were'} replaced (by load_state_dict(assign=True), pruning, "
                "a parametrization or an assignment). Call convert on the ANN again (calibrate=snn.levels keeps the "
                "thresholds), or load with snn.load_state_dict"
            )
        for i, (mine, mine_key, owner, key, x) in enumerate(self._buffers_held):
            now = owner._buffers.get(key)
            if now is not x and now is not None:  # moved by the ANN's .to(), or loaded: it trains nothing
                setattr(mine, mine_key, now)
                self._buffers_held[i] = mine, mine_key, owner, key, now

    def _tie(self) -> None:
        """Make the ANN hold what the spiking twin holds, where something put another tensor in its place."""
        for name, theirs in self._names.items():
            (owner, key), (other, other_key) = owner_of(self, name), owner_of(self.ann(), theirs)
            x = getattr(owner, key)
            if getattr(other, other_key) is not x:
                setattr(other, other_key, x)
        self._note_twins()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The ANN's: its names, and all that it holds."""
        self._check_twins()
        return self.ann().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        self._check_twins()
        strict, missing, _, errors = args
        # The twin's own modules are loaded next, under the names they have there.
        renamed = {theirs: state_dict.pop(prefix + theirs) for theirs in self._used() if prefix + theirs in state_dict}
        for name, theirs in self._names.items():
            if theirs in renamed:
                state_dict[prefix + name] = renamed[theirs]
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

    def _used(self) -> list[str]:
        return list(dict.fromkeys(self._names.values()))

    def _apply(self, fn: Any, recurse: bool = True) -> TandemNetwork:
        self._check_twins()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._only_ann:  # .to() and the like are for all that the ANN holds
            owner, key = owner_of(self.ann(), name)
            x = getattr(owner, key)
            if isinstance(x, nn.Parameter):
                x.data = fn(x.data)
            else:
                setattr(owner, key, fn(x))
        self._tie()
        return self

    def train(self, mode: bool = True) -> TandemNetwork:
        """Train or eval mode of both twins."""
        if not torch.compiler.is_compiling():
            self._check_twins()  # also for compiled networks, which do not in forward
        super().train(mode)
        self.ann().train(mode)
        return self


@dataclass
class _Arguments:
    """Those of the ANN's forward, of which the spiking twin takes the ones without a default."""

    names: list[str]
    defaults: dict[str, Any]
    open: bool
    """Whether forward takes any number of arguments."""

    @property
    def required(self) -> int:
        """How many arguments have no default."""
        return len(self.names) - len(self.defaults)

    def of(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """The inputs of the spiking twin in a call of the network."""
        if self.open and not named:
            return inputs
        given = dict(zip(self.names, inputs, strict=False))
        twice = [name for name in named if name in given or name not in self.names]
        missing = [name for name in self.names if name not in self.defaults and name not in {*given, *named}]
        if len(inputs) > len(self.names) or twice or missing:
            raise TypeError(
                f"TandemNetwork: inputs must be those of the ANN's forward, {', '.join(self.names)}, got {len(inputs)} "
                f"by position and {', '.join(named) or 'none'} by name"
            )
        given |= named
        for name, default in self.defaults.items():
            x = given.get(name, default)
            if x is not default and (isinstance(x, Tensor) or isinstance(default, Tensor) or x != default):
                raise ValueError(f"TandemNetwork: {name} must be {default!r}, its default in the conversion, got {x!r}")
        return tuple(given[name] for name in self.names if name not in self.defaults)


def _arguments(ann: nn.Module) -> _Arguments:
    parameters = inspect.signature(ann.forward).parameters.values()
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = [parameter for parameter in parameters if parameter.kind not in many]
    defaults = {p.name: p.default for p in single if p.default is not inspect.Parameter.empty}
    return _Arguments([p.name for p in single], defaults, len(single) < len(parameters))


def _tie_again(network: TandemNetwork, incompatible_keys: Any) -> None:
    network._tie()


def convert(
    ann: nn.Module,
    time_steps: int,
    *,
    mode: str = "constant",
    neuron: Neuron = IF(),
    calibrate: Tensor | Iterable[Any] | Mapping[str, float] | None = None,
    percentile: float = 99.9,
    spiking_layers: int | None = None,
    engine: str = "auto",
) -> TandemNetwork:
    """Make the tandem SNN of an ANN (Wu et al. 2021), on the same parameters.

    The ANN's forward is traced with torch.fx. Each weight layer with its batch norm and ReLU becomes one tandem layer,
    which holds the ANN's own Parameters and its own batch-norm module: training either network trains both. What stands
    in front of the first weight layer stays as it is, then comes ``Encode``; the last weight layer stays analogue,
    behind ``Decode``, with all that follows it. With mode "spikes" there is no ``Encode``: the SNN takes spike trains,
    whose counts are what its ANN takes, and all up to the last weight layer must be convertible.

    ==================================================================  ================================================
    in the ANN                                                          in the SNN
    ==================================================================  ================================================
    nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear,                TandemConv1d, TandemConv2d,
    then nn.BatchNorm1d or 2d (or not), then ReLU                       TandemConvTranspose2d, TandemLinear
    sums of such branches and of activations, then ReLU                 TandemAdd
    average pooling, adaptive or not, or the mean over all pixels       SpikingAvgPool2d, SpikingAdaptiveAvgPool2d
    max pooling, dropout, dropout2d; also in front of the ReLU          SpikingMaxPool2d, TandemDropout, TandemDropout2d
    nn.Flatten, torch.flatten, x.view(len(x), -1) and the like          SpikeTrain.flatten
    nn.Identity; ReLU of what is not negative                           nothing
    ==================================================================  ================================================

    ReLU, pooling, dropout and flatten may be modules, functions or methods. Optional arguments of forward keep their
    defaults; a call of the SNN may name its inputs, as one of the ANN. :func:`tandem_cuda.convert.rules.register` adds
    rules for other classes and functions.

    Without ``calibrate`` every layer has the neurons given, as in the paper, and is to be trained. With it, the ANN is
    one that has been trained: each layer's threshold becomes the given percentile of its ANN activations over T
    (percentile: Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven networks for
    image classification", 2017, doi:10.3389/fnins.2017.00682; thresholds layer by layer for T steps, then tandem
    learning: Wu et al., "Progressive Tandem Learning for Pattern Recognition with Deep Spiking Neural Networks", 2022,
    doi:10.1109/TPAMI.2021.3114196). A spike then weighs a threshold (``IF.amplitude``), and the input is divided by T
    in mode "constant", so that amplitude * count approximates the ANN's activation, and weights, biases and batch norms
    hold as they are. Average pooling then rounds nothing: the read-out averages decoded counts, and into spiking
    weights it is folded (:class:`SpikeWindows`), where its windows have one size that the image does not decide; else
    its neurons get a level of their own. In deep networks the errors of rounding to whole spikes add up; training on,
    with gradients through the ANN as always, is for taking them back.

    With ``spiking_layers=k`` the result is a hybrid: the first k spiking layers, ``Decode``, and behind it the ANN as
    it is (Wu et al. 2022). As all stages share the ANN's parameters, the next stage is a conversion with k + 1. Layers
    are counted in the order in which the ANN's forward runs their activations. A sum of branches with its ReLU is one
    layer, so that the cut goes through a residual block only in front of the sum: then the branches that spike are
    decoded and the ANN adds. The pooling behind the last spiking layer is the ANN's. What stands behind the cut need
    not be convertible.

    Args:
        ann: the ANN. Its mode, train or eval, becomes that of the SNN.
        time_steps: T.
        mode: "constant" or "impulse", as for ``Encode``; or "spikes".
        neuron: of every spiking layer; with ``calibrate`` IF(...), whose threshold and amplitude are replaced.
        calibrate: inputs of the ANN: a batch, or an iterable of batches, or of tuples that begin with one, as a
            DataLoader yields them. Run through the ANN in eval mode without gradient. Or what came of it before,
            ``TandemNetwork.levels``, which hold for any T; those of layers that this network has not are ignored, and
            averages without a level fire at that of the layer they average over.
        percentile: of a layer's activations in a batch, in (0, 100]; averaged over the batches.
        spiking_layers: how many spike, from 1 to all of them; by default all. For less than all ``calibrate`` must be
            given: the ANN behind the cut expects its activations, not counts.
        engine: "auto", "event" or "dense": of all spiking products.

    Returns:
        A TandemNetwork. ``.ann()`` is the ANN.

    Raises:
        TypeError: an argument of the wrong type, or parameters of another dtype than float32 or float64.
        ValueError: an argument out of its range; inputs or activations that are not finite; a model that torch.fx
            cannot trace, or that does something else in training than in eval mode; or one with parts that cannot be
            converted, all of which the message lists, with what to use instead.
    """
    if not isinstance(ann, nn.Module):
        raise TypeError(f"convert: ann must be an nn.Module, got {type(ann).__name__}")
    checks.check_time_steps("convert", time_steps)
    if mode not in ("constant", "impulse", "spikes"):
        raise ValueError(f"convert: mode must be 'constant', 'impulse' or 'spikes', got {mode!r}")
    check_neuron("convert", neuron)
    if spiking_layers is not None:
        if isinstance(spiking_layers, bool) or not isinstance(spiking_layers, int):
            raise TypeError(f"convert: spiking_layers must be an int, got {type(spiking_layers).__name__}")
        if spiking_layers < 1:
            raise ValueError(
                f"convert: spiking_layers must be at least 1 (without any it is the ANN), got {spiking_layers}"
            )
    checks.check_number("convert", "percentile", percentile)
    if not 0 < percentile <= 100:
        raise ValueError(f"convert: percentile must be in (0, 100], got {percentile}")
    if engine not in ENGINES:
        raise ValueError(f"convert: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if calibrate is not None:
        try:
            neuron.calibrated(1.0)
        except ValueError as error:
            raise ValueError(f"convert: {error}") from None
    _check_dtypes(ann)
    graph = traced(ann, RULES)
    settings = time_steps, mode, neuron, engine, calibrate is not None
    conversion = Conversion(ann, graph, *settings)
    if spiking_layers is not None:
        conversion = cut(conversion, spiking_layers, lambda spiking: Conversion(ann, graph, *settings, spiking))
    snn = conversion.written()
    names = [name for _, name in conversion.neurons]
    if calibrate is None:
        return TandemNetwork(snn, ann, names)
    if isinstance(calibrate, Mapping):
        levels = checked_levels(names, [name for _, name, _ in conversion.pools], calibrate)
    else:
        batches = [calibrate] if isinstance(calibrate, Tensor) else calibrate
        measured = [*conversion.neurons, *((node, name) for node, name, _ in conversion.pools)]
        levels = percentiles(ann, graph, measured, batches, percentile)
    for name in names:
        layer: Any = snn.get_submodule(name)
        layer.neuron = neuron.calibrated(levels[name] / time_steps)
    for _, name, source in conversion.pools:  # in the order of execution, so that a source has its level
        below = time_steps if source is None else levels[source]
        level = levels[name] = min(levels.get(name, below), below)  # no average is larger than what it is of
        pool: Any = snn.get_submodule(name)
        pool.threshold = pool.amplitude = level / below
    return TandemNetwork(snn, ann, names, levels)


def _check_dtypes(ann: nn.Module) -> None:
    """TypeError where parameters have a dtype that spiking layers do not compute in."""
    dtypes = torch.float32, torch.float64
    other = {name: p.dtype for name, p in ann.named_parameters() if p.is_floating_point() and p.dtype not in dtypes}
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        got = ", ".join(sorted({str(dtype) for dtype in other.values()}))
        names = ", ".join(list(other)[:3])
        raise TypeError(
            f"convert: ann must have parameters of float32 or float64, got {got} in {names}{more}; call ann.float() "
            "first (under torch.autocast products run in lower precision)"
        )
