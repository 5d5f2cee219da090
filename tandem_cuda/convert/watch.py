"""Notice when an ANN no longer computes what it did when it was converted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .graph import LIFTED, Graph, exported
from .nodes import is_setting, overridden_methods, settings, snapshot, some

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
