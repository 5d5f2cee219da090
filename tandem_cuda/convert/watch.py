"""Notice when an ANN no longer computes what it did when it was converted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .constants import Snapshot
from .nodes import is_setting, kind_of, name_in_ann, overridden_methods, settings, snapshot, some
from .record import Record
from .rules import RULES
from .trace import Traced, retraced

_MISSING = object()


class Watch:
    """The modules of an ANN and their settings, which its trace depends on.

    Settings of batch norm, and of modules without a spiking form, may change: these modules belong to both twins.
    """

    def __init__(self, ann: nn.Module, traced: Traced, record: Record) -> None:
        self.ann, self.record, self.description, self.volatile = ann, record, traced.description, traced.volatile
        self.called = _called(traced)
        self.read = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
        """The names of the tensors that forward itself reads."""
        self.constants = Snapshot(ann, record.constants)
        self.note()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "noted": None}  # identities do not outlive the process

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
        if constants := self.__dict__.get("constants"):  # absent from networks pickled by earlier versions
            tensors += constants.changes(self.ann)
        suspects = [*tensors, *self._suspects()]
        if not suspects:
            return ""
        try:
            with retraced(self.ann, RULES, self.record.example(self.ann)) as found:
                same = found.description == self.description and _alike(self.called, _called(found))
        except Exception:  # forward may raise anything
            same = False
        if tensors or not same:
            return some(suspects, 3)
        self.note()  # what changed does not matter to forward
        return ""

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


def _replaced(name: str, before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*before, *now]):
        if before.get(key) is not now.get(key):
            yield f"{name}.{key}".lstrip(".")


def _compared(module: nn.Module) -> dict[str, Any]:
    """Return the settings that must not change: for a module in both twins, only the methods that it overrides."""
    kind = kind_of(module)
    is_norm = isinstance(module, nn.modules.batchnorm._NormBase)
    if is_norm or (kind.__module__.startswith("torch.") and kind not in RULES):
        return {key: getattr(module, key) for key in overridden_methods(module)}
    return settings(module)


def _called(traced: Traced) -> dict[str, Any]:
    """Return class and settings of each module that a graph calls."""
    targets = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    modules = {name_in_ann(target): traced.root.get_submodule(target) for target in targets}
    return {name: (kind_of(module), _compared(module)) for name, module in modules.items()}


def _alike(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether all modules compute what they did. New attributes do not matter, nor does a change to out-of-place."""
    if before.keys() != now.keys():
        return False
    for name, (kind, known) in before.items():
        kind_now, values = now[name]
        same = all(values.get(key, _MISSING) == x or (key == "inplace" and not values[key]) for key, x in known.items())
        if kind is not kind_now or not same or any(key in values and key not in known for key in _METHODS):
            return False
    return True


_METHODS = ("forward", "_conv_forward", "_call_impl")
