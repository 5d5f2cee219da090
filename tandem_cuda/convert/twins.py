"""What the two networks of a conversion share, and what of the ANN must not change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import TandemAdd, TandemElementwise, TandemNeurons
from ..nn.encode import Decode
from ..nn.quantised import scale_integers
from ..nn.quantiser import quantiser
from ..nn.tandem import TandemLayer, drop_ins
from ..nn.weighted import OF_CONVERSION
from ..nn.weights import stored
from .graph import LIFTED, Graph, exported
from .nodes import is_setting, overridden_methods, owner_of, settings, snapshot, some

_AGAIN = "(calibrate=snn.calibration keeps the thresholds)"
_WITH_OWN_TENSORS = (TandemLayer, TandemAdd, TandemNeurons, Decode)
_OWN_TENSORS = (*OF_CONVERSION, "log_threshold", "scale")


class Twins:
    """The ties between an ANN and its spiking twin.

    Args:
        network: the module that holds the spiking twin.
        state: its state by name, with the parameters and buffers themselves.
        ann: the ANN.
    """

    def __init__(self, network: nn.Module, state: Mapping[str, Tensor], ann: nn.Module) -> None:
        self.network, self.ann = network, ann
        names = {id(x): name for name, x in ann.state_dict(keep_vars=True).items()}
        self.names = {name: names[id(x)] for name, x in state.items() if id(x) in names}
        """The ANN's name for each tensor of the state that both have."""
        self.only_snn = {name: name.removeprefix("snn.") for name in state if name.endswith(".log_threshold")}
        """State of the spiking twin alone: the thresholds that learn, and their names in a state dict."""
        self.only_ann = sorted(set(names.values()) - set(self.names.values()))
        """State of the ANN alone."""
        self._note()

    def _note(self) -> None:
        """Note what is shared, to notice later if the ANN has replaced it."""
        ann, network = self.ann, self.network
        shared = {*network.modules()} & {*ann.modules()}
        paths = {name: None for name, module in ann.named_modules() if module in shared}
        held = ((theirs, *owner_of(network, mine)) for mine, theirs in self.names.items())
        self._mine = [(theirs, owner, key) for theirs, owner, key in held if owner not in shared]
        """Shared tensors that modules of the spiking twin alone hold: the ANN's name, the module, the key in it."""
        self._held: list[tuple[str, nn.Module, str, Any]] = []
        """The ANN's shared parameters: qualified name, owning module, key in that module, parameter."""
        self._buffers: list[tuple[nn.Module, str, nn.Module, str, Tensor]] = []
        """Buffers held by a module of each twin: the spiking twin's module and key, the ANN's, the buffer."""
        for mine, theirs in self.names.items():
            path, _, _ = theirs.rpartition(".")
            layer = ann.get_submodule(path)
            owner, key = owner_of(ann, theirs)
            paths[path] = None
            if owner is not layer:
                paths[f"{path}.parametrizations.{theirs.rpartition('.')[2]}".lstrip(".")] = None
            if layer in shared:
                continue
            if key in owner._buffers:
                self._buffers.append((*owner_of(network, mine), owner, key, getattr(owner, key)))
                continue
            self._held.append((theirs, owner, key, getattr(owner, key)))
            if isinstance(layer, tuple(drop_ins())) and getattr(layer, "bias", None) is None:
                self._held.append((f"{path}.bias".lstrip("."), layer, "bias", None))
        self._note_unsaved_buffers(shared)
        self._weights = [*self._weight_twins()]
        """Layers that share a weight, and the ANN's name for it."""
        self._note_own_tensors()
        self._placed: dict[str, tuple[nn.Module, str, nn.Module]] = {}
        """The ANN's modules on the path to anything shared, by name: parent module, key in the parent, the module."""
        for path in paths:
            parent, name = ann, ""
            for key in path.split(".") if path else ():
                child, name = parent.get_submodule(key), f"{name}.{key}".lstrip(".")
                self._placed[name] = parent, key, child
                parent = child
        self.scale_integers()

    def _note_unsaved_buffers(self, shared: set[nn.Module]) -> None:
        saved = {*self.names.values()}
        of_ann = {id(x): name for name, x in self.ann.named_buffers() if name not in saved}
        for name, x in self.network.named_buffers():
            unsaved = of_ann.get(id(x))
            if unsaved is not None and self.ann.get_submodule(unsaved.rpartition(".")[0]) not in shared:
                self._buffers.append((*owner_of(self.network, name), *owner_of(self.ann, unsaved), x))

    def _weight_twins(self) -> Iterator[tuple[Any, str, Any]]:
        """Yield each weight layer of the spiking twin, the ANN's name for its weight, and the ANN's layer."""
        for mine, theirs in self.names.items():
            path, _, key = mine.rpartition(".")
            path = path.removesuffix(".parametrizations.weight")
            layer = self.network.get_submodule(path)
            if isinstance(layer, TandemLayer) and key in ("weight", "original"):
                name = theirs.rpartition(".")[0].removesuffix(".parametrizations.weight")
                yield layer, theirs, self.ann.get_submodule(name)

    def _note_own_tensors(self) -> None:
        """Note the modules with tensors of the spiking twin alone, and the ANN's parameters that these follow."""
        self._own: list[tuple[Any, nn.Module, str]] = []
        likes = {id(mine): owner_of(self.ann, theirs) for mine, theirs, _ in self._weights}
        first = next((owner_of(self.ann, name) for name, _ in self.ann.named_parameters()), None)
        if first is not None:
            own = [module for module in self.network.modules() if isinstance(module, _WITH_OWN_TENSORS)]
            self._own = [(module, *likes.get(id(module), first)) for module in own]
        self._kinds = self._kinds_of_ann()

    # -- checks

    def check_shared(self) -> None:
        """Raise a RuntimeError if the ANN has replaced something that both have. It compares identities."""
        changed = [name for name, (parent, key, child) in self._placed.items() if parent._modules.get(key) is not child]
        changed += [name for name, owner, key, x in self._held if owner._parameters.get(key) is not x]
        if changed:
            raise RuntimeError(
                "TandemNetwork: the ANN must keep the parameters and modules that it shares with its spiking twin, "
                f"but {some(changed, 3)} {'was' if len(changed) == 1 else 'were'} replaced (by "
                "load_state_dict(assign=True), pruning, "
                f"a parametrization or an assignment). Call convert on the ANN again {_AGAIN}, or load with "
                "snn.load_state_dict"
            )
        for mine, name, other in self._weights:
            bits = [getattr(quantiser(layer), "bits", None) for layer in (mine, other)]
            if bits[0] != bits[1]:
                raise RuntimeError(
                    f"TandemNetwork: the ANN must round its weights as its spiking twin does, but {name} has "
                    f"{_in_words(bits[1])} there and {_in_words(bits[0])} in the twin (did another conversion or "
                    "quantise change one of the two?). Call quantise on the TandemNetwork, or convert on the ANN again "
                    f"{_AGAIN}"
                )
        # That they are the ANN's, functional_call would break for a while.
        if lost := [n for n, owner, key in self._mine if key not in owner._parameters and key not in owner._buffers]:
            raise RuntimeError(
                f"TandemNetwork: the spiking twin must keep what it shares with its ANN, but {some(lost, 3)} "
                f"{'was' if len(lost) == 1 else 'were'} replaced in it (by pruning or a parametrization). Prune the "
                f"ANN instead, make it permanent, and call convert on it again {_AGAIN}"
            )

    def check_scales(self) -> None:
        """Raise a RuntimeError if another conversion makes the ANN's weights stand for other integers."""
        if any(not _same(rounding.input_scale, scale) for rounding, scale in self.scaled):
            raise RuntimeError(
                "TandemNetwork: the ANN must round its weights as its spiking twin does, but another conversion of it "
                f"has other thresholds of channels or concatenated trains. Call convert again {_AGAIN}"
            )

    # -- repairs

    def follow_buffers(self) -> None:
        """Let the spiking twin hold the ANN's buffers again after the ANN was moved or loaded: nobody trains them."""
        for i, (mine, mine_key, owner, key, x) in enumerate(self._buffers):
            now = owner._buffers.get(key)
            if now is not x and now is not None:
                setattr(mine, mine_key, now)
                self._buffers[i] = mine, mine_key, owner, key, now

    def ann_has_moved(self) -> bool:
        """Return whether the spiking twin's own tensors have another dtype or device than the ANN."""
        return bool(self._own) and self._kinds != self._kinds_of_ann()

    def _kinds_of_ann(self) -> list[tuple[torch.dtype, torch.device]]:
        # Pruning makes a plain tensor of a parameter.
        found = (owner._parameters.get(key, vars(owner).get(key)) for _, owner, key in self._own)
        return [(x.dtype, x.device) for x in found if x is not None]

    @torch.inference_mode(False)  # inference tensors would be of no use in training
    @torch.no_grad()
    def move_own_tensors(self) -> None:
        """Give the spiking twin's own tensors the ANN's dtype and device."""
        for module, owner, key in self._own:
            like = getattr(owner, key)
            for name, x in _own_tensors(module).items():
                if name in module._parameters:
                    x.data = x.data.to(like)
                else:
                    setattr(module, name, x.to(like))
            if _has_constants(module):
                module.maps_on(like)
        self._kinds = self._kinds_of_ann()

    def tie(self) -> None:
        """Make the ANN hold the spiking twin's tensors again after loading or moving has replaced some."""
        for mine, mine_key, owner, key, _ in self._buffers:
            setattr(owner, key, getattr(mine, mine_key))
        for name, theirs in self.names.items():
            (owner, key), (other, other_key) = owner_of(self.network, name), owner_of(self.ann, theirs)
            x = getattr(owner, key)
            if getattr(other, other_key) is not x:
                setattr(other, other_key, x)
        self._note()

    def scale_integers(self) -> None:
        """Make the ANN round its weights as the spiking twin does, whatever another conversion has made of them.

        Raises:
            ValueError: calls of a layer with quantised weights read channels of different thresholds.
        """
        layers = [mine for mine, _, _ in self._weights if quantiser(mine)]
        for mine in layers:
            scale_integers(mine)
        self.scaled: list[tuple[Any, Any]] = []
        """The ANN's quantisers, and the scale of inputs that each must have."""
        for twin, mine in self._rounded_as(layers).items():
            scale_integers(mine, twin)
            rounding: Any = quantiser(twin)
            self.scaled.append((rounding, rounding.input_scale))

    def _rounded_as(self, layers: list[Any]) -> dict[nn.Module, Any]:
        """Return which of ``layers``, of the spiking twin, each quantised layer of the ANN must round as."""
        held = [(layer, getattr(*stored(layer, "weight"))) for layer in self.ann.modules() if quantiser(layer)]
        names = {module: name.removeprefix("snn.") for name, module in self.network.named_modules()}
        of_ann = dict(self.ann.named_modules())
        found: dict[nn.Module, Any] = {}
        for mine in layers:
            weight = mine.weights.stored()
            twins = [layer for layer, x in held if x is weight]
            namesake = of_ann.get(names[mine])  # of tied weights, each layer has its own rounding
            for twin in [namesake] if namesake in twins else twins:
                other = found.setdefault(twin, mine)
                if not _same(mine.input_scale, other.input_scale):
                    raise ValueError(
                        "TandemNetwork: calls of a layer with quantised weights must read channels of equal "
                        f"thresholds, which {names[other]} and {names[mine]} do not. Give each call a layer of its "
                        "own, or keep the weights in floating point"
                    )
        return found


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _has_constants(module: nn.Module) -> bool:
    """Whether weight and bias of a module of the spiking twin are constants and no parameters of the ANN."""
    return isinstance(module, TandemElementwise)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module of the spiking twin that the ANN does not have."""
    names = ("weight", "bias", *_OWN_TENSORS) if _has_constants(module) else _OWN_TENSORS
    held = module._parameters | module._buffers
    return {name: x for name in names if (x := held.get(name)) is not None}


def _in_words(bits: int | None) -> str:
    return "weights that are not quantised" if bits is None else f"{bits} bits"


_MISSING = object()


class Watch:
    """The modules of an ANN, their settings, and the tensors that have become constants.

    Args:
        ann: the ANN.
        graph: its graph.
        constants: the names of tensors whose values are constants of the spiking twin.
    """

    def __init__(self, ann: nn.Module, graph: Graph, constants: tuple[str, ...]) -> None:
        self.ann, self.inputs, self.description = ann, graph.inputs, graph.description
        held = {name: _held(ann, name) for name in constants if not name.startswith(LIFTED)}
        self.constants = {name: x.detach().clone() for name, x in held.items()}
        self.seen = {name: (x, _writes(x)) for name, x in held.items()}
        """The constants and how often each had been written to when its value was last read."""
        self.volatile = graph.volatile
        self.read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
        """The names of the tensors that the graph reads."""
        self.note()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "noted": None, "seen": {}}  # identities do not outlive the process

    def note(self) -> None:
        """Note the ANN's modules and settings as they are now."""
        self.noted = []
        for name, module in self.ann.named_modules():
            values, children = vars(module), tuple(module._modules.items())
            known = [(key, x) for key, x in _compared(module).items() if (name, key) not in self.volatile]
            plain = {key: x for key, x in values.items() if isinstance(x, Tensor)}  # neither parameters nor buffers
            tensors = [(key, x) for key, x in plain.items() if f"{name}.{key}".lstrip(".") in self.read]
            self.noted.append((name, module, values, children, known, tensors, len(values)))

    def changes(self) -> str:
        """Return in words the changes that make the ANN compute something else; "" if there are none."""
        tensors = [
            f"{name}.{key}".lstrip(".")
            for name, _, values, _, _, held, _ in self.noted
            for key, x in held
            if values.get(key) is not x
        ]
        tensors += self._changed_constants()
        suspects = [*tensors, *self._suspects()]
        if not suspects:
            return ""
        if not tensors:
            try:
                again = exported(self.ann, self.inputs.example(self.ann))
                if again.description == self.description:
                    self.note()  # what changed does not matter to forward
                    return ""
            except Exception:  # forward may raise anything
                pass
        return some(suspects, 3)

    def _changed_constants(self) -> Iterator[str]:
        """Yield the names of constants with other values, which are read only after a write: reading waits for CUDA."""
        for name, noted in self.constants.items():
            x = _held(self.ann, name)
            writes = _writes(x)
            seen, before = self.seen.get(name, (None, None))
            if seen is x and writes is not None and writes == before:
                continue
            if x is not None and x.shape == noted.shape and torch.equal(x.detach().to(noted), noted):
                self.seen[name] = x, writes
            else:
                yield name

    def _suspects(self) -> Iterator[str]:
        """Yield in words what has changed. It compares only identities and settings, for every forward pass asks."""
        for name, module, values, children, known, _, number in self.noted:
            if tuple(values["_modules"].items()) != children:
                yield from _replaced(name, dict(children), module._modules)
            for key, x in known:
                now = values.get(key, _MISSING)
                if now is not x and (not is_setting(now) or snapshot(now) != x):
                    yield f"{name}.{key}".lstrip(".")
            if len(values) != number:
                had = {key for key, _ in known}
                yield from (f"{name}.{key}".lstrip(".") for key in _compared(module) if key not in had)


def _held(ann: nn.Module, name: str) -> Any:
    path, _, key = name.rpartition(".")
    return getattr(ann.get_submodule(path), key, None)


def _writes(x: Any) -> int | None:
    """Return how many times a tensor has been written to; None for what does not count writes."""
    return None if not isinstance(x, Tensor) or x.is_inference() else x._version


def _replaced(name: str, before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*before, *now]):
        if before.get(key) is not now.get(key):
            yield f"{name}.{key}".lstrip(".")


def _compared(module: nn.Module) -> dict[str, Any]:
    """Return the settings that must not change: for batch norm, which both twins hold, overridden methods."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {key: getattr(module, key) for key in overridden_methods(module)}
    return settings(module)
