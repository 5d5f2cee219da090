"""convert: a tandem SNN from a PyTorch CNN, on the same parameters."""

from __future__ import annotations

import inspect
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from .neuron import IF, LIF, Neuron
from .nn import (
    Decode,
    Encode,
    SpikeWindows,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemDropout,
    TandemDropout2d,
    TandemLinear,
)
from .nn.layer import HOOKS, TandemLayer, stored
from .nn.modes import evaluating
from .ops import checks
from .ops.product import ENGINES
from .spike_train import SpikeTrain


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
        self._tie_names()
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

    def _tie_names(self) -> None:
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
            owner, key = _owner(ann, theirs)
            paths[path] = None
            if owner is not layer:
                paths[f"{path}.parametrizations.{theirs.rpartition('.')[2]}".lstrip(".")] = None
            if layer in shared:
                continue
            if key in owner._buffers:
                self._buffers_held.append((*_owner(self, mine), owner, key, getattr(owner, key)))
                continue
            self._held.append((theirs, owner, key, getattr(owner, key)))
            if _kind(layer) in _LAYERS and getattr(layer, "bias", None) is None:
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
            (owner, key), (other, other_key) = _owner(self, name), _owner(self.ann(), theirs)
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
            owner, key = _owner(self.ann(), name)
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
            owner, key = _owner(self.ann(), name)
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


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, key = name.rpartition(".")
    return stored(module.get_submodule(path), key)


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
    defaults; a call of the SNN may name its inputs, as one of the ANN.

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
    if not isinstance(neuron, (IF, LIF)):
        raise TypeError(f"convert: neuron must be IF(...) or LIF(...), got {type(neuron).__name__}")
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
    if calibrate is not None and not isinstance(neuron, IF):
        raise ValueError(f"convert: neuron must be IF(...) with calibrate (a leak bends the rate), got {neuron}")
    _check_dtypes(ann)
    graph = _traced(ann)
    settings = time_steps, mode, neuron, engine, calibrate is not None
    conversion = _Conversion(ann, graph, *settings)
    if spiking_layers is not None:
        conversion = _cut(conversion, spiking_layers, lambda spiking: _Conversion(ann, graph, *settings, spiking))
    snn = conversion.written()
    names = [name for _, name in conversion.neurons]
    if calibrate is None:
        return TandemNetwork(snn, ann, names)
    assert isinstance(neuron, IF)
    if isinstance(calibrate, Mapping):
        levels = _checked_levels(names, [name for _, name, _ in conversion.pools], calibrate)
    else:
        batches = [calibrate] if isinstance(calibrate, Tensor) else calibrate
        measured = [*conversion.neurons, *((node, name) for node, name, _ in conversion.pools)]
        levels = _percentiles(ann, graph, measured, batches, percentile)
    for name in names:
        layer: Any = snn.get_submodule(name)
        layer.neuron = replace(neuron, threshold=levels[name] / time_steps, amplitude=levels[name] / time_steps)
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


class _Tracer(fx.Tracer):
    """Traces forward with its optional arguments at their defaults."""

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        function, inputs = super().create_args_for_root(*args, **kwargs)
        for i, x in enumerate(inputs):
            if isinstance(x, fx.Proxy) and x.node.args:  # a default
                inputs[i] = x.node.args[0]
                self.graph.erase_node(x.node)
        return function, inputs


def _traced(ann: nn.Module) -> fx.Graph:
    """What forward does in eval mode; functions of dropout have whether they drop in ``meta``, in eval and training.

    Raises:
        ValueError: it cannot be traced, or does something else in training.
    """
    with evaluating(ann):
        try:
            graphs = [_Tracer().trace(ann.train(training)) for training in (False, True)]
        except Exception as error:  # whatever a user's forward raises when it meets a proxy
            raise ValueError(
                f"convert: ann must be traceable by torch.fx, whose trace of {type(ann).__name__} failed: {error}. "
                "Control flow must not depend on the values of tensors"
            ) from error
    orders = [{node: i for i, node in enumerate(graph.nodes)} for graph in graphs]
    for mine, theirs in itertools.zip_longest(graphs[0].nodes, graphs[1].nodes):
        if mine is None or theirs is None or _done(mine, orders[0], ann) != _done(theirs, orders[1], ann):
            got = " and ".join(
                "nothing more" if node is None else f"{_word(node.target)} in {_scope(node, ann)}"
                for node in (mine, theirs)
            )
            raise ValueError(
                "convert: ann must do the same in eval mode and in training, but for dropout and batch norm, got "
                f"{got} (self.training in a forward, or random numbers?)"
            )
        if mine.target in _DROPOUTS:
            mine.meta["drops"] = tuple(_as_dropout(node)[1] for node in (mine, theirs))
    return graphs[0]


def _done(node: fx.Node, order: dict[fx.Node, int], ann: nn.Module) -> tuple[Any, ...]:
    """What a node does, to be compared with one of another trace; other nodes are meant by their places in order."""
    if node.target in _DROPOUTS:
        return node.op, node.target, [order[x] for x in node.all_input_nodes], _as_dropout(node)[0]
    if node.op == "get_attr":
        owner, key = _owner(ann, str(node.target))
        value = getattr(owner, key)
        if str(node.target).startswith("_tensor_constant"):  # a new one in each trace
            x = value.detach().flatten()
            return node.op, value.shape, value.dtype, value.is_meta or x.view(torch.uint8).cpu().numpy().tobytes()
        return node.op, id(value)
    return node.op, node.target, str(fx.node.map_arg((node.args, node.kwargs), lambda x: f"node {order[x]}"))


def _cut(whole: _Conversion, count: int, again: Callable[[set[fx.Node]], _Conversion]) -> _Conversion:
    """A conversion of the first layers only; the whole one where these are all, or where it has to say why not."""
    total = len(whole.neurons)
    if count < total or (count == total and whole.problems):
        if not whole.scaled:
            raise ValueError(
                f"convert: calibrate must be given with spiking_layers={count} of {total} (the ANN behind them expects "
                "its activations, not counts), got None"
            )
        return again(_leading_to(node for node, _ in whole.neurons[:count]))
    if count > total and not whole.problems:
        raise ValueError(f"convert: spiking_layers must be at most the {total} that the ANN has, got {count}")
    return whole


# ---------------------------------------------------------------------------------------------------------------------
# Calibration
# ---------------------------------------------------------------------------------------------------------------------


class _Recorder(fx.Interpreter):
    """Runs the ANN and keeps the percentile of what the nodes named put out."""

    def __init__(self, ann: nn.Module, graph: fx.Graph, measured: list[tuple[fx.Node, str]], percentile: float) -> None:
        super().__init__(ann, graph=graph)
        self.names = dict(measured)
        self.levels: dict[str, float] = {}
        self.percentile = percentile

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n in self.names:
            self.levels[self.names[n]] = self._level(self.names[n], out)
        return out

    def _level(self, name: str, out: Tensor) -> float:
        if not out.isfinite().all():
            raise ValueError(f"convert: activations of the ANN must be finite, got NaN or infinity behind {name}")
        if not out.numel():
            return 0.0
        rank = max(1, math.ceil(self.percentile / 100 * out.numel()))
        level = float(out.flatten().kthvalue(rank).values)
        return level if level > 0 else float(out.max())  # where hardly any neuron is active


def _checked_levels(names: list[str], pools: list[str], levels: Mapping[str, float]) -> dict[str, float]:
    """Those of the layers that there are, all of them; and of the pools that it has."""
    missing = [name for name in names if name not in levels]
    if missing:
        raise ValueError(f"convert: calibrate must hold a level for each spiking layer, got none for {missing}")
    found = {name: levels[name] for name in [*names, *pools] if name in levels}
    for name, level in found.items():
        checks.check_number("convert", f"calibrate[{name!r}]", level)
        if not math.isfinite(level):
            raise ValueError(f"convert: calibrate[{name!r}] must be finite, got {level}")
        if not level > 0:
            raise ValueError(f"convert: calibrate[{name!r}] must be positive, got {level}")
    return {name: float(level) for name, level in found.items()}


def _check_traced(ann: nn.Module, graph: fx.Graph, x: Tensor) -> None:
    """ValueError where the graph does not compute what the ANN does: what Python does to aliases, fx does not see."""

    def run(f: Callable[[Tensor], Any]) -> list[Tensor]:
        return [y for y in tree_leaves(f(x.clone())) if isinstance(y, Tensor)]

    def alike(one: list[Tensor], other: list[Tensor]) -> bool:
        if [y.shape for y in one] != [y.shape for y in other]:
            return False
        pairs = [(a.double(), b.double()) for a, b in zip(one, other, strict=True)]
        return all(bool((a - b).norm() <= 1e-3 * b.norm()) for a, b in pairs)

    want, got = run(ann), run(fx.Interpreter(ann, graph=graph).run)
    if not alike(got, want) and alike(run(ann), want):  # the latter is not so where it draws random numbers
        raise ValueError(
            "convert: ann must compute what torch.fx traces of it, got other outputs (a tensor written in place under "
            "another name, as in y = x; x += z, or a context such as autocast in a forward?)"
        )


def _percentiles(
    ann: nn.Module, graph: fx.Graph, measured: list[tuple[fx.Node, str]], batches: Iterable[Any], percentile: float
) -> dict[str, float]:
    """Of what the nodes put out, by the names that go with them, the mean over batches."""
    recorder = _Recorder(ann, graph, measured, percentile)
    totals, count = {name: 0.0 for _, name in measured}, 0
    with evaluating(ann), torch.no_grad():
        for batch in batches:
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(x, Tensor) or not x.dim() or not len(x):
                raise ValueError(
                    f"convert: calibrate must yield batches of at least one sample, got {type(x).__name__}"
                )
            if not x.isfinite().all():
                raise ValueError(f"convert: calibrate must be finite, got NaN or infinity in batch {count}")
            if not count:
                _check_traced(ann, graph, x)
            recorder.run(x)
            totals = {name: total + recorder.levels[name] for name, total in totals.items()}
            count += 1
    if not count:
        raise ValueError("convert: calibrate must yield at least one batch, got none")
    levels = {name: total / count for name, total in totals.items()}
    for name, level in levels.items():
        if not level > 0:
            raise ValueError(
                f"convert: calibrate must make every layer active, but behind {name} the ANN is never positive"
            )
    return levels


# ---------------------------------------------------------------------------------------------------------------------
# What a value of the ANN's graph is in the SNN's
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _Real:
    """An ordinary value."""

    node: Any


@dataclass
class _Train:
    """A spike train."""

    node: fx.Node
    level: str | None = None
    """The layer whose level, over T, its spikes weigh; None of recorded spikes, which weigh 1."""
    copies: int = 1
    """So many neurons stand for one of the ANN, whose activation is the sum of theirs."""


@dataclass
class _Branch:
    """A summand of a pre-activation: a weight layer, whose name it is, or a train as it is."""

    source: fx.Node
    name: str = ""
    layer: nn.Module | None = None
    norm: nn.Module | None = None
    encoded: bool = False
    copies: int = 1


@dataclass
class _Current:
    """A pre-activation: the neurons are still to come."""

    branches: list[_Branch]
    then: list[Callable[[_Train], _Train]] = field(default_factory=list)
    """Done behind the neurons, though the ANN does it in front of its ReLU, which does not mind."""


@dataclass
class _Pooled:
    """An average of spikes. What it goes into says what becomes of it: weights, a real value, or neurons of its own."""

    node: fx.Node
    module: nn.AvgPool2d | nn.AdaptiveAvgPool2d
    source: _Train | _Pooled
    then: list[Callable[[Any], Any]] = field(default_factory=list)
    """Done to the average, whatever it is."""
    flat: bool = False
    made: dict[str, Any] = field(default_factory=dict)
    """The average, by what has become of it."""
    done: dict[str, Any] = field(default_factory=dict)
    """The same behind ``then``."""

    def folds_into(self, layer: Any) -> bool:
        """Whether weights can take the spikes of all windows as they are, in place of their average."""
        pool = self.module
        alike = isinstance(pool, nn.AvgPool2d) and not pool.ceil_mode
        if not alike or not (pool.count_include_pad or pool.divisor_override or pool.padding in (0, (0, 0))):
            return False  # windows of different sizes, or of a size that the image decides
        return self.flat if _kind(layer) is nn.Linear else layer.groups == 1


class _BatchSize:
    """The size of the first dimension of a train."""


class _Shape:
    """All sizes of a train."""


@dataclass
class _Broken:
    """What comes of something that cannot be converted."""

    instead: Any
    """What to go on with, to find what else cannot."""


@dataclass
class _Problem:
    """A part of the ANN that cannot be converted."""

    kind: str
    name: str
    place: str
    """The name, for a list of several of the kind."""
    why: str
    why_all: str
    """What to do about all of the kind."""


_LAYERS: dict[type, tuple[type[TandemLayer], type[nn.Module]]] = {
    nn.Conv1d: (TandemConv1d, nn.BatchNorm1d),
    nn.Conv2d: (TandemConv2d, nn.BatchNorm2d),
    nn.ConvTranspose2d: (TandemConvTranspose2d, nn.BatchNorm2d),
    nn.Linear: (TandemLinear, nn.BatchNorm1d),
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}


def _avg_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> nn.Module:
    return nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _max_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


# Functions, with the arguments that they have in torch, and the modules they are.
_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    F.avg_pool2d: _avg_pool,
    F.max_pool2d: _max_pool,
    F.adaptive_avg_pool2d: lambda input, output_size: nn.AdaptiveAvgPool2d(output_size),
}
_DROPOUTS: dict[Any, type[nn.Module]] = {F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d}
_CURVED = (
    *(nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Threshold),
)
_SQUASHING = (nn.Sigmoid, nn.Tanh, nn.Softmax, nn.LogSoftmax)
_NORMALISING = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.modules.instancenorm._InstanceNorm)
_ACTIVATION_NAMES: dict[str, type[nn.Module]] = {
    kind.__name__.lower(): kind for kind in (*_CURVED, nn.Sigmoid, nn.Tanh, nn.Softmax)
} | {"leaky_relu": nn.LeakyReLU, "log_softmax": nn.LogSoftmax}
# Functions and methods by the modules that they are.
_ACTIVATIONS: dict[Any, type[nn.Module]] = {
    function: kind
    for name, kind in _ACTIVATION_NAMES.items()
    for function in (name, f"{name}_", *(getattr(f, n, name) for f in (F, torch) for n in (name, f"{name}_")))
}
_WEIGHT_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.linear)
_ADVICE: list[tuple[tuple[type, ...], str]] = [
    (_CURVED, "use nn.ReLU: a spike count is neither negative nor curved"),
    (_SQUASHING, "use nn.ReLU, or move it behind the last layer"),
    (_NORMALISING, "use nn.BatchNorm2d between weights and ReLU: its running statistics fold into the weights"),
    ((nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d), "use a strided nn.Conv1d, or images of height 1"),
    ((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.LPPool2d), "use nn.MaxPool2d or nn.AdaptiveAvgPool2d"),
    ((nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d), "use nn.Conv1d, nn.Conv2d or nn.ConvTranspose2d"),
    ((nn.Upsample,), "use nn.ConvTranspose2d"),
    ((nn.AlphaDropout, nn.Dropout1d, nn.Dropout3d), "use nn.Dropout or nn.Dropout2d"),
    ((nn.RNNBase, nn.MultiheadAttention), "use convolutions and linear layers"),
]
_CONCATENATED = "add branches of equal width instead: trains are not concatenated"
_MULTIPLIED = "remove it, or move it behind the last layer: spikes are not multiplied"
_FUNCTION_ADVICE: dict[Any, str] = {
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _CONCATENATED),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _MULTIPLIED),
}
_NOTHING_ELSE = "move it in front of the first weight layer or behind the last one"
_NAMES = 6
"""So many names of parts that cannot be converted, of each kind, are given."""


class _Conversion:
    """One pass over the ANN's graph, writing the SNN's."""

    def __init__(
        self,
        ann: nn.Module,
        graph: fx.Graph,
        time_steps: int,
        mode: str,
        neuron: Neuron,
        engine: str,
        scaled: bool,
        spiking: set[fx.Node] | None = None,
    ) -> None:
        self.ann = ann
        self.spiking = spiking
        """What leads to the layers that are to spike, and their activations; None for all that can."""
        self.nodes = list(graph.nodes)
        self.time_steps, self.mode, self.neuron, self.engine, self.scaled = time_steps, mode, neuron, engine, scaled
        self.graph = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.names = {name for name, _ in ann.named_modules()}
        self.values: dict[fx.Node, Any] = {}
        self.encoded: dict[fx.Node, fx.Node] = {}
        self.decoded: dict[fx.Node, fx.Node] = {}
        self.problems: list[_Problem] = []
        self.tainted: set[fx.Node] = set()
        """What cannot be converted, and all behind it."""
        self.neurons: list[tuple[fx.Node, str]] = []
        """The ANN's activations, and the spiking layers in their places."""
        self.pools: list[tuple[fx.Node, str, str | None]] = []
        """Averages that have neurons of their own, with these, and the layer whose level the averaged spikes weigh."""
        self.before, self.last = self._order()
        for node in self.nodes:
            if not self.tainted.isdisjoint(node.all_input_nodes):
                self.tainted.add(node)
            self.values[node] = self._converted(node)
        self._check_hooks()

    def _check_hooks(self) -> None:
        """Note hooks that nothing would call: of the ANN itself, and of modules that are not in the SNN as they are."""
        if why := _hooked(self.ann):
            self.problems.append(_Problem(type(self.ann).__name__, type(self.ann).__name__, "", why, why))
        for node in self.nodes:
            if node.op == "call_module" and node not in self.tainted:
                module = self.ann.get_submodule(str(node.target))
                if (why := _hooked(module)) and not any(x is module for x in self.modules.values()):
                    self._problem(node, why)

    def _value(self, node: fx.Node) -> Any:
        """What it is in the SNN; behind what cannot be converted, what to go on with."""
        x = self.values[node]
        return x.instead if isinstance(x, _Broken) else x

    def written(self) -> fx.GraphModule:
        """The SNN.

        Raises:
            ValueError: what cannot be converted, all of it.
        """
        if self.problems:
            lines = "\n".join(_listed(self.problems))
            raise ValueError(f"convert: ann must have nothing but what can be converted; this cannot:\n{lines}")
        if not self.neurons:
            raise ValueError("convert: ann must have a weight layer and a ReLU in front of its last weight layer")
        self.graph.lint()
        return fx.GraphModule(self.modules, self.graph, "SpikingTwin")

    def _order(self) -> tuple[set[fx.Node], set[fx.Node]]:
        """What has a spiking weight layer behind it; and the weight layers that stay as they are, the read-outs."""
        before: set[fx.Node] = set()
        if self.spiking is not None:
            return self.spiking, set()
        last = set()
        for node in reversed(self.nodes):
            if any(user in before or self._is_weight(user) for user in node.users):
                before.add(node)
            elif self._is_weight(node):
                last.add(node)
        return before, last

    def _is_weight(self, node: fx.Node) -> bool:
        return node.op == "call_module" and _kind(self.ann.get_submodule(str(node.target))) in _LAYERS

    # -- one node

    def _converted(self, node: fx.Node) -> Any:
        values = [self._value(x) for x in node.all_input_nodes]
        if self.spiking is not None and node not in self.spiking and node.op != "placeholder":
            return self._copied(node, node.name, self._dropout(node))
        if self._overwrites(node):
            return self._problem(node, "write out of place: its input is used again behind it")
        if node.op == "call_module":
            module = self.ann.get_submodule(str(node.target))
            if _kind(module) in _LAYERS:
                return self._weight(node, module)
            if isinstance(module, nn.modules.conv._ConvNd) and node in self.before:
                return self._problem(
                    node, _advice(type(module)), _Train(self._stand_in())
                )  # not a part of what is in front
            return self._module(node, str(node.target), module)
        if node.target in _WEIGHT_FUNCTIONS and node in self.before:
            why = "use the module of the same name, which has parameters to share"
            return self._problem(node, why, _Train(self._stand_in()))
        if node.op == "placeholder" and self.mode == "spikes":
            return _Train(self.graph.node_copy(node))
        if all(isinstance(x, _Real) for x in values):
            return self._copied(node, node.name, self._dropout(node))
        if node.op in ("call_function", "call_method"):
            return self._function(node)
        return self._copied(node)  # the output

    def _module(self, node: fx.Node, name: str, module: nn.Module) -> Any:
        (x, *more) = [self._value(a) for a in node.all_input_nodes]
        if isinstance(module, nn.Identity) and not more:
            return x
        if more or isinstance(x, _Real):
            return self._copied(node, name, module)
        if isinstance(x, _Current) and len(node.all_input_nodes[0].users) > 1:
            return self._problem(node, "its input is used again; put a ReLU in front of what is used twice")
        if isinstance(module, nn.ReLU):
            return self._fired(node, x)
        if isinstance(module, _NORMS):
            return self._norm(node, x, module)
        if isinstance(module, nn.Flatten):
            return self._flattened(x, module.start_dim, module.end_dim)
        spiking = self._spiking(module)
        if spiking is None:
            if getattr(module, "return_indices", False):
                return self._problem(node, "set return_indices=False: the maximum moves from step to step")
            return self._unknown(node, type(module), x)
        if isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
            if isinstance(x, _Current) and not all(branch.layer is None for branch in x.branches):
                return self._problem(node, "put the ReLU in front of it: a mean of currents is no mean of spikes")
            return self._averaged(node, module, x)
        if isinstance(module, nn.MaxPool2d):
            x = self._spikes(x) if isinstance(x, _Pooled) else x
        return self._behind(x, lambda value: self._applied(value, node, module, spiking))

    def _applied(self, value: Any, node: fx.Node, module: nn.Module, spiking: Any) -> Any:
        """The spiking form of a module; the module itself where an average is real."""
        if isinstance(value, _Real):
            return self._called(value, node, module)
        if value.copies > 1:
            spiking.copies = value.copies
        return self._called(value, node, spiking)

    def _spiking(self, module: nn.Module) -> nn.Module | None:
        if type(module) is nn.AvgPool2d:
            return SpikingAvgPool2d(
                module.kernel_size,
                module.stride,
                module.padding,
                module.ceil_mode,
                module.count_include_pad,
                module.divisor_override,
                engine=self.engine,
            )
        if type(module) is nn.AdaptiveAvgPool2d:
            return SpikingAdaptiveAvgPool2d(module.output_size, engine=self.engine)
        if type(module) is nn.MaxPool2d and not module.return_indices:
            kernel, stride, padding, dilation = module.kernel_size, module.stride, module.padding, module.dilation
            return SpikingMaxPool2d(kernel, stride, padding, dilation, False, module.ceil_mode)
        if type(module) is nn.Dropout:
            return TandemDropout(module.p)
        if type(module) is nn.Dropout2d:
            return TandemDropout2d(module.p)
        return None

    def _weight(self, node: fx.Node, module: nn.Module) -> Any:
        argument = node.all_input_nodes[0]
        if (len(node.args), len(node.kwargs)) not in ((1, 0), (0, 1)) and node not in self.last:
            return self._problem(node, "call it with its input alone", _Train(self._stand_in()))
        if (why := _hooked(module)) and node not in self.last:
            return self._problem(node, why, _Current([_Branch(self._stand_in(), str(node.target), module)]))
        x = self._value(argument)
        if node in self.last:
            if isinstance(x, _Real) or self._readable(x):
                return self._copied(node)
            return self._unfired(node, argument, _Real(self._stand_in()))
        if not all(_is_shareable(parametrizations) for _, parametrizations in _parametrized(module)):
            why = "remove the parametrization of its weight; of those, only quantise's is shared"
            return self._problem(node, why, _Current([_Branch(self._stand_in(), str(node.target), module)]))
        if isinstance(x, _Real):
            return _Current([_Branch(self._encode(x.node), str(node.target), module, encoded=True)])
        if isinstance(x, _Current) and self._readable(x):
            x = self._fired(argument, x)
        if isinstance(x, _Current):
            branch = _Branch(self._stand_in(), str(node.target), module)
            return self._unfired(node, argument, _Current([branch]))
        if isinstance(x, _Pooled):
            x = self._pooled(x, "windows" if x.folds_into(module) else "neurons")
        return _Current([_Branch(x.node, str(node.target), module, copies=x.copies)])

    def _readable(self, x: Any) -> bool:
        """Whether it is a train, or a sum of trains, which is never negative and needs no ReLU."""
        return isinstance(x, (_Train, _Pooled)) or (
            isinstance(x, _Current) and all(b.layer is None for b in x.branches)
        )

    def _norm(self, node: fx.Node, x: Any, norm: Any) -> Any:
        branch = x.branches[0] if isinstance(x, _Current) and len(x.branches) == 1 and not x.then else None
        if branch is None or branch.layer is None or branch.norm is not None:
            if isinstance(self.values[node.all_input_nodes[0]], _Broken):  # which may have been a weight layer
                return x
            return self._problem(node, "put it directly behind a weight layer, whose weights it can fold into")
        if type(norm) is not _LAYERS[_kind(branch.layer)][1]:
            return self._problem(node, f"use nn.{_LAYERS[_kind(branch.layer)][1].__name__} behind {branch.name}")
        if norm.running_mean is None or not norm.affine:
            return self._problem(node, "set affine=True and track_running_stats=True: the spiking twin folds them")
        return _Current([replace(branch, norm=norm)])

    def _function(self, node: fx.Node) -> Any:
        arguments = [self._value(a) if isinstance(a, fx.Node) else a for a in node.args]
        x = arguments[0] if arguments else None
        target: Any = node.target
        if target in _ADD and len(arguments) == 2 and not node.kwargs:
            return self._sum(node, arguments)
        if isinstance(x, _Shape) and target is operator.getitem and arguments[1] == 0:
            return _BatchSize()
        if not isinstance(x, (_Train, _Pooled, _Current)):
            return self._problem(node, _FUNCTION_ADVICE.get(target, _NOTHING_ELSE))
        if target == "size":
            return _Shape() if len(arguments) == 1 else _BatchSize() if arguments[1:] == [0] else self._sized(node)
        if target is getattr and arguments[1] == "shape":
            return _Shape()
        if target is len:
            return _BatchSize()
        users = [user for user in node.args[0].users if not self._asks_for_size(user)]  # type: ignore[union-attr]
        if isinstance(x, _Current) and len(users) > 1:
            return self._problem(node, "its input is used again; put a ReLU in front of what is used twice")
        if target in _RELU:
            return self._fired(node, x)
        if target in _ACTIVATIONS:
            return self._unknown(node, _ACTIVATIONS[target], x)
        if target in _FUNCTIONS:
            return self._module(node, node.name, _FUNCTIONS[target](*node.args, **node.kwargs))
        if target in _DROPOUTS:
            if node.meta["drops"] == (True, True):
                return self._problem(node, "use nn.Dropout, or training=self.training: it drops in eval mode too")
            return self._module(node, node.name, self._dropout(node) or nn.Identity())
        if target in (torch.flatten, "flatten"):
            dims = inspect.signature(lambda x, start_dim=0, end_dim=-1: None).bind(*node.args, **node.kwargs)
            dims.apply_defaults()
            return self._flattened(x, *dims.args[1:])
        if target in ("view", "reshape", torch.reshape):
            return self._reshaped(node, x, arguments[1:])
        if target in (torch.mean, "mean"):
            return self._mean(node, x)
        if target == "contiguous" and isinstance(x, (_Train, _Pooled)):
            return x
        return self._problem(node, _FUNCTION_ADVICE.get(target, _NOTHING_ELSE))

    def _asks_for_size(self, node: fx.Node) -> bool:
        return node.target in ("size", len) or (node.target is getattr and node.args[1] == "shape")

    def _sized(self, node: fx.Node) -> Any:
        return self._problem(node, "use nn.Flatten in place of a computed shape")

    def _reshaped(self, node: fx.Node, x: Any, sizes: list[Any]) -> Any:
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = [self._value(s) if isinstance(s, fx.Node) else s for s in sizes[0]]
        batch, features = sizes if len(sizes) == 2 else (None, None)
        if not (isinstance(batch, _BatchSize) or batch == -1) or not isinstance(features, int):
            return self._sized(node)
        if features == -1:
            return self._flattened(x, 1, -1)

        def step(value: Any) -> Any:
            size = features * getattr(value, "copies", 1)
            return replace(value, node=self.graph.call_function(flattened_to, (value.node, size)))

        return self._behind(x, step, flat=True)

    def _mean(self, node: fx.Node, x: Any) -> Any:
        given = inspect.signature(lambda x, dim=None, keepdim=False, dtype=None: None).bind(*node.args, **node.kwargs)
        given.apply_defaults()
        _, dims, keepdim, dtype = given.args
        if dtype is not None or not isinstance(dims, (tuple, list)) or sorted(d % 4 for d in dims) != [2, 3]:
            return self._problem(node, "use nn.AdaptiveAvgPool2d(1): of spikes, only the mean over all pixels is known")
        if not self._readable(x):
            return self._problem(node, "put the ReLU in front of it: a mean of currents is no mean of spikes")
        pooled = self._averaged(node, nn.AdaptiveAvgPool2d(1), x)
        return pooled if keepdim else self._flattened(pooled, 1, -1)

    def _averaged(self, node: fx.Node, module: Any, x: Any) -> Any:
        """Average pooling of spikes. With calibration there is more that can become of it than neurons."""
        x = self._fired(node.all_input_nodes[0], x) if isinstance(x, _Current) else x
        pooled = _Pooled(node, module, x)
        return pooled if self.scaled else self._spikes(pooled)

    def _sum(self, node: fx.Node, values: list[Any]) -> Any:
        branches: list[_Branch] = []
        for argument, x in zip(node.args, values, strict=True):
            if isinstance(x, _Current) and not x.then and len(argument.users) == 1:  # type: ignore[union-attr]
                branches += x.branches
            elif isinstance(x, (_Train, _Pooled)):
                branches.append(_Branch(self._spikes(x).node))
            elif isinstance(x, _Current):
                return self._problem(node, "put a ReLU in front of what is pooled or used twice before it is added")
            else:
                return self._problem(node, "add spikes to spikes: real input and constants are none")
        if any(branch.encoded for branch in branches):
            return self._problem(node, "put a weight layer and a ReLU between the input of the network and the sum")
        return _Current(branches)

    # -- what is written

    def _copied(self, node: fx.Node, name: str | None = None, module: nn.Module | None = None) -> Any:
        """The node as it is; trains it needs are decoded."""
        for argument in node.all_input_nodes:
            if not isinstance(self._value(argument), _Real) and not self._readable(self._value(argument)):
                return self._unfired(node, argument, _Real(self._stand_in()))
        if node.op == "call_module":
            module, name = self.ann.get_submodule(str(node.target)), str(node.target)
            if self.modules.get(name, module) is not module:  # it runs twice, as a spiking layer the first time
                name = self._register(name, module)
            self.modules[name] = module
            copied = self.graph.node_copy(node, self._real)
            copied.target = name
            return _Real(copied)
        if module is not None:
            (x, *_) = node.all_input_nodes
            return _Real(self.graph.call_module(self._register(str(name), module), (self._real(x),)))
        if node.op == "get_attr":
            owner, key = _owner(self.ann, str(node.target))
            self.modules[str(node.target)] = getattr(owner, key)
        return _Real(self.graph.node_copy(node, self._real))

    def _real(self, node: fx.Node) -> Any:
        x = self._value(node)
        if isinstance(x, _Current):
            x = self._fired(node, x)
            self.values[node] = x
        return self._decoded(x).node

    def _decoded(self, x: Any) -> Any:
        if isinstance(x, _Real):
            return x
        if isinstance(x, _Pooled):
            return self._pooled(x, "real")
        if x.node not in self.decoded:
            name = self._register("decode", Decode())
            real = self.graph.call_module(name, (x.node,))
            if self.spiking is not None:  # the ANN writes in place and asks for views where it likes
                real = self.graph.call_method("clone", (real,), {"memory_format": torch.contiguous_format})
            self.decoded[x.node] = real
        return _Real(self.decoded[x.node])

    def _pooled(self, x: _Pooled, form: str) -> Any:
        """An average as the "real" mean of counts; as "neurons"; or as the spikes of its "windows", side by side."""
        if form not in x.made:
            pool: Any = x.module
            if form == "real":
                x.made[form] = self._called(self._decoded(x.source), x.node, pool)
            elif form == "windows":
                windows = SpikeWindows(pool.kernel_size, pool.stride, pool.padding, pool.divisor_override)
                x.made[form] = replace(self._called(self._spikes(x.source), x.node, windows), copies=windows.size)
            else:
                train = self._called(self._spikes(x.source), x.node, self._spiking(pool))
                name = str(train.node.target)
                self.pools.append((x.node, name, train.level))
                x.made[form] = replace(train, level=name)
        if form not in x.done:
            x.done[form] = x.made[form]
            for step in x.then:
                x.done[form] = step(x.done[form])
        return x.done[form]

    def _spikes(self, x: Any) -> _Train:
        """A train, of neurons if it is an average."""
        train: _Train = self._pooled(x, "neurons") if isinstance(x, _Pooled) else x
        return train

    def _encode(self, x: fx.Node) -> fx.Node:
        if x not in self.encoded:
            scale = 1 / self.time_steps if self.scaled and self.mode == "constant" else 1.0
            name = self._register("encode", Encode(self.time_steps, self.mode, scale))
            self.encoded[x] = self.graph.call_module(name, (x,))
        return self.encoded[x]

    def _fired(self, node: fx.Node, x: Any) -> Any:
        """The neurons in place of the ReLU ``node``, which leaves spikes and averages of spikes as they are."""
        if isinstance(x, (_Train, _Pooled)):
            return x
        if node in self.tainted:  # no part of a layer can be relied on
            return _Train(self._stand_in())
        if len(x.branches) == 1 and x.branches[0].layer is not None:
            (branch,) = x.branches
            name, module = branch.name, self._layer(branch, self.neuron)
        else:
            name = ".".join([*_common([b.name.split(".")[:-1] for b in x.branches if b.layer is not None]), "add"])
            branches = [nn.Identity() if b.layer is None else self._layer(b, IF()) for b in x.branches]
            module = TandemAdd(*branches, neuron=self.neuron, engine=self.engine)
        name = self._register(name, module, replaces=len(x.branches) == 1)
        self.neurons.append((node, name))
        train = _Train(self.graph.call_module(name, tuple(branch.source for branch in x.branches)), name)
        for step in x.then:
            train = step(train)
        return train

    def _layer(self, branch: _Branch, neuron: Neuron) -> Any:
        """The tandem layer that holds a weight layer's parameters and its norm."""
        module: Any = branch.layer
        tandem, _ = _LAYERS[_kind(module)]
        arguments = {
            name: getattr(module, name)
            for name in inspect.signature(_kind(module)).parameters
            if name not in ("bias", "device", "dtype")
        }
        inputs = "in_features" if "in_features" in arguments else "in_channels"
        arguments[inputs] *= branch.copies
        layer: Any = tandem(**arguments, bias=False, device="meta", neuron=neuron, engine=self.engine)
        layer.copies = branch.copies
        layer.norm = branch.norm
        for name in ("weight", "bias"):
            owner, key = _owner(module, name)
            setattr(layer, name, getattr(owner, key))
        for name, parametrizations in _parametrized(module):
            for parametrization in parametrizations:
                parametrize.register_parametrization(layer, name, parametrization, unsafe=True)
        return layer

    def _register(self, name: str, module: nn.Module, replaces: bool = False) -> str:
        """Name a module; by the name of a module of the ANN only where it takes that one's place."""
        unique, i = name, 1
        while unique in self.modules or (unique in self.names and not (replaces and unique == name)):
            unique, i = f"{name}_{i}", i + 1
        self.modules[unique] = module
        return unique

    def _called(self, x: Any, node: fx.Node, module: Any) -> Any:
        """A module in the place of the ANN's node, applied to a train or a real value."""
        replaces = node.op == "call_module"
        name = self._register(str(node.target) if replaces else node.name, module, replaces)
        return replace(x, node=self.graph.call_module(name, (x.node,)))

    def _flattened(self, x: Any, start: int, end: int) -> Any:
        def step(value: Any) -> Any:
            return replace(value, node=self.graph.call_method("flatten", (value.node, start, end)))

        return self._behind(x, step, flat=start == 1 and end in (-1, 3))

    def _behind(self, x: Any, step: Callable[[Any], Any], flat: bool = False) -> Any:
        """Do it to a train, or later: behind the neurons, or to what becomes of an average."""
        if isinstance(x, _Pooled):  # whose forms all that comes of it shares
            return replace(x, then=[*x.then, step], flat=x.flat or flat, done={})
        return step(x) if isinstance(x, _Train) else _Current(x.branches, [*x.then, step])

    def _dropout(self, node: fx.Node) -> nn.Module | None:
        """The module that a function of dropout is, where it has the mode of the ANN."""
        follows = node.target in _DROPOUTS and node.meta["drops"] == (False, True)
        return _DROPOUTS[node.target](_as_dropout(node)[0]) if follows else None

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether it writes in place to spikes that are used again behind it, which would not see that in the SNN."""
        module = self.ann.get_submodule(str(node.target)) if node.op == "call_module" else None
        word = _word(node.target)
        in_place = (
            word.endswith("_") and not word.endswith("__") if module is None else getattr(module, "inplace", False)
        )
        in_place = in_place or bool(node.kwargs.get("inplace")) or node.target in _IN_PLACE
        if not in_place or not node.args or not isinstance(node.args[0], fx.Node):
            return False
        written = node.args[0]
        if (
            isinstance(module, nn.ReLU)
            or node.target in _RELU
            or not isinstance(self._value(written), (_Train, _Pooled))
        ):
            return False  # spikes are not negative; what is real stays in the ANN's order; the rest is used once
        behind = self.nodes[self.nodes.index(node) + 1 :]
        return any(user in behind for user in written.users)

    # -- what is said

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return str(node.target)
        return f"{node.name} ({_word(node.target)} in forward of {_scope(node, self.ann)})"

    def _problem(self, node: fx.Node, why: str, instead: Any = None, why_all: str | None = None) -> _Broken:
        """Note it; behind it goes on ``instead``, by default the first of its inputs that is none of the real ones."""
        name, kind, place = self._name(node), _word(node.target), f"{node.name} in {_scope(node, self.ann)}"
        if node.op == "call_module":
            kind, place = type(self.ann.get_submodule(str(node.target))).__name__, name
            name += f" ({kind})"
        self.problems.append(_Problem(kind, name, place, why, why_all or why))
        self.tainted.add(node)
        if instead is None:
            inputs = [self._value(x) for x in node.all_input_nodes]
            instead = next((x for x in inputs if isinstance(x, (_Train, _Pooled, _Current))), None)
        return _Broken(_Train(self._stand_in()) if instead is None else instead)

    def _unknown(self, node: fx.Node, kind: type[nn.Module], x: Any) -> Any:
        """A module, or a function that does what it does, that has no spiking form."""
        problem = self._problem(node, _advice(kind))
        if issubclass(kind, (*_CURVED, *_SQUASHING)):  # as if it were a ReLU
            return _Train(self._stand_in())
        return x if issubclass(kind, _NORMALISING) else problem

    def _unfired(self, node: fx.Node, argument: fx.Node, instead: Any) -> Any:
        """A weight layer or an output whose input is a pre-activation; behind it goes on as if it had fired."""
        self._problem(node, f"put a ReLU between {self._name(argument)} and it", why_all="put a ReLU in front of each")
        return instead

    def _stand_in(self) -> fx.Node:
        """A node for what is not there, in a graph that is not going to be written."""
        return self.graph.placeholder("stand_in")


def _listed(problems: list[_Problem]) -> list[str]:
    """For each kind of problem what to do, how many there are, and their names or the first of them."""
    groups: dict[tuple[str, str], list[_Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.kind, problem.why_all), []).append(problem)
    lines = []
    for (kind, why_all), group in groups.items():
        if len(group) == 1:
            lines.append(f"  {group[0].name}: {group[0].why}")
            continue
        more = [f"and {len(group) - _NAMES} more"] if len(group) > _NAMES else []
        places = ", ".join([problem.place for problem in group[:_NAMES]] + more)
        lines += [f"  {len(group)} {kind}: {why_all}", f"      {places}"]
    return lines


def _as_dropout(node: fx.Node) -> tuple[float, bool]:
    """The probability of a function of dropout, and whether it drops."""
    given = inspect.signature(F.dropout).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    return given.arguments["p"], bool(given.arguments["training"])


def _word(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _scope(node: fx.Node, ann: nn.Module) -> str:
    """The module whose forward does what a node does."""
    stack = node.meta.get("nn_module_stack") or {}
    return (list(stack)[-1] if stack else "") or type(ann).__name__


def _leading_to(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """These nodes and all that they depend on."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _hooked(module: nn.Module) -> str:
    """What to do about the hooks of a module that are not called where a spiking one takes its place."""
    hooks = [hook for name in HOOKS for hook in getattr(module, name).values()]
    for hook in hooks:
        if isinstance(hook, WeightNorm):
            return "call torch.nn.utils.remove_weight_norm on it: its weight is computed by a hook"
        if isinstance(hook, SpectralNorm):
            return "call torch.nn.utils.remove_spectral_norm on it: its weight is computed by a hook"
        if isinstance(hook, BasePruningMethod):
            return "call torch.nn.utils.prune.remove on it: its pruned weight is computed by a hook"
    names = ", ".join(dict.fromkeys(_word(getattr(hook, "__qualname__", type(hook).__qualname__)) for hook in hooks))
    return f"remove its hooks ({names}): nothing calls them in the spiking twin" if hooks else ""


def _kind(module: nn.Module) -> type[nn.Module]:
    return parametrize.type_before_parametrizations(module)


def _parametrized(module: Any) -> list[tuple[str, Any]]:
    """The names of its tensors that have parametrizations, with these."""
    return list(module.parametrizations.items()) if parametrize.is_parametrized(module) else []


def _is_shareable(parametrizations: Any) -> bool:
    """Whether two layers can hold them, on one parameter: what has an inverse changes it where it is registered."""
    return parametrizations.is_tensor and not any(hasattr(x, "right_inverse") for x in parametrizations)


def _advice(kind: type[nn.Module]) -> str:
    return next((why for kinds, why in _ADVICE if issubclass(kind, kinds)), _NOTHING_ELSE)


def _common(paths: list[list[str]]) -> list[str]:
    """The beginning that all paths have."""
    together = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return [parts[0] for parts in together]


def flattened_to(train: SpikeTrain, features: int) -> SpikeTrain:
    """Checks what x.view(-1, features) would have mixed up."""
    flat = train.flatten(1)
    if flat.shape[1] != features:
        raise ValueError(f"view: input must have {features} features a sample, got {flat.shape[1]}")
    return flat
