"""Replace activations that have no spiking form by activations that have one."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

Replacement = Mapping[type[nn.Module], type[nn.Module] | nn.Module]


def check_replacements(replace: Any, ann: nn.Module) -> None:
    """Raise a TypeError or ValueError unless ``replace`` maps classes of modules in ``ann`` to classes or modules."""
    if not isinstance(replace, Mapping):
        raise TypeError(f"convert: replace must be a dict of module classes, got {type(replace).__name__}")
    kinds = {type(module) for module in ann.modules()}
    for old, new in replace.items():
        if not (isinstance(old, type) and issubclass(old, nn.Module)):
            raise TypeError(
                f"convert: keys of replace must be module classes, got {old!r}; functions are replaced in forward"
            )
        if not (isinstance(new, nn.Module) or (isinstance(new, type) and issubclass(new, nn.Module))):
            raise TypeError(f"convert: replace[{old.__name__}] must be a module class or a module, got {new!r}")
        if old not in kinds:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(
                f"convert: replace must name classes of modules in ann, got {old.__name__}; it has {names}"
            )


@contextmanager
def replaced(ann: nn.Module, replace: Replacement) -> Iterator[list[str]]:
    """Replace modules of ``ann`` itself by new ones; undo it if the body of the context fails.

    Yields:
        The replaced modules in words: "name (SiLU -> ReLU)".
    """
    originals: list[tuple[nn.Module, str, nn.Module]] = []
    names = []
    for path, parent in list(ann.named_modules()):
        for name, child in list(parent._modules.items()):  # named_children skips repeats
            if child is not None and type(child) in replace:
                new = replace[type(child)]
                module = new if isinstance(new, nn.Module) else new()
                module.train(child.training)
                setattr(parent, name, module)
                originals.append((parent, name, child))
                names.append(f"{path}.{name}".lstrip(".") + f" ({type(child).__name__} -> {type(module).__name__})")
    try:
        yield names
    except BaseException:
        for parent, name, child in originals:
            setattr(parent, name, child)
        raise
    if originals:
        counts = Counter(type(child).__name__ for _, _, child in originals)
        what = ", ".join(f"{number} {kind}" for kind, number in counts.items())
        warnings.warn(
            f"convert: {what} of the ANN were replaced. It now computes something else and wants fine-tuning",
            stacklevel=5,
        )
