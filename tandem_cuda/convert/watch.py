"""Notice that an ANN no longer computes what it did when it was converted."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from .nodes import kind_of, name_in_ann, settings
from .record import Record
from .rules import RULES
from .trace import retraced

if TYPE_CHECKING:
    from .trace import Traced

_MISSING = object()


class Watch:
    """What the trace of an ANN depends on beside tensors: its modules, their classes and their settings.

    Modules that both twins hold, such as batch norm, may change their settings: the spiking twin follows.
    """

    def __init__(self, ann: nn.Module, traced: Traced, shared: Collection[nn.Module], record: Record) -> None:
        self.ann, self.record, self.description = ann, record, traced.description
        self.shared = {id(vars(module)) for module in shared}
        self.called = _called(traced, self.shared)
        self.volatile = traced.volatile
        self._note()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "shared": None, "noted": None}  # identities do not outlive the process

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def resume(self, shared: Collection[nn.Module]) -> None:
        """Go on after copying or pickling, with the shared modules as they are now."""
        self.shared = {id(vars(module)) for module in shared}
        self._note()

    def _note(self) -> None:
        self.noted = []
        for name, module in self.ann.named_modules():
            values, children = vars(module), tuple(module._modules.items())
            self.noted.append((name, module, values, children, self._settings(name, module), len(values)))

    def _settings(self, name: str, module: nn.Module) -> tuple[tuple[str, Any], ...]:
        if id(vars(module)) in self.shared:
            return ()
        return tuple((key, x) for key, x in settings(module).items() if (name, key) not in self.volatile)

    def changes(self) -> str:
        """Return in words what makes the ANN compute something else; "" if nothing does."""
        suspects = list(self._suspects())
        if not suspects:
            return ""
        try:
            with retraced(self.ann, RULES, self.record.example(next(self.ann.parameters(), None))) as found:
                same = found.description == self.description and _called(found, self.shared) == self.called
        except ValueError:
            same = False
        if not same:
            return ", ".join(suspects[:3]) + (f" and {len(suspects) - 3} more" if len(suspects) > 3 else "")
        self._note()  # what changed does not matter to forward
        return ""

    def _suspects(self) -> Iterator[str]:
        """Yield what has changed, in words. Compares identities and numbers only, as every forward pass asks."""
        for name, module, values, children, known, number in self.noted:
            if tuple(values["_modules"].items()) != children:
                yield from _replaced(name, dict(children), module._modules)
            for key, x in known:
                now = values.get(key, _MISSING)
                if now is not x and now != x:
                    yield f"{name}.{key}".lstrip(".")
            if len(values) != number:
                yield from (f"{name}.{key}".lstrip(".") for key in {*settings(module)} - {key for key, _ in known})


def _replaced(name: str, before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*before, *now]):
        if before.get(key) is not now.get(key):
            yield f"{name}.{key}".lstrip(".")


def _called(traced: Traced, shared: set[int]) -> dict[str, Any]:
    """Return class and settings of the modules that a graph calls, by name, but of shared ones the class alone."""
    found = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module = traced.root.get_submodule(str(node.target))
            found[name_in_ann(str(node.target))] = (
                kind_of(module),
                None if id(vars(module)) in shared else settings(module),
            )
    return found
