"""Modules of version 0.1 whose contents are elsewhere now: importing from them works, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED: dict[str, dict[str, str]] = {
    "activity": {
        "tandem_cuda": "ActivityTable LayerActivity record_activity synops",
        "tandem_cuda.analysis": "ActivityRecord",
    },
    "anytime": {
        "tandem_cuda": "AccuracyCurve OperatingPoint Prediction",
        "tandem_cuda.freeze": "accuracy_curve predict",
        "tandem_cuda.freeze.anytime": "EXIT_CONFIDENCES",
    },
    "artefact": {"tandem_cuda.freeze.file": "FORMAT VERSION read write"},
    "diagnostics": {"tandem_cuda.analysis": "AgreementTable LayerAgreement counts_and_activations diagnose"},
    "lif_rate": {"tandem_cuda.neuron.lif": "lif_rate lif_rate_derivative"},
    "metrics": {
        "tandem_cuda.analysis.metrics": "ActivityMetric Energy EnergyRatio FiringRate OperationsRatio SaturatedNeurons "
        "SilentNeurons SynOps",
    },
    "penalties": {"tandem_cuda": "FiringRatePenalty SynOpsPenalty"},
}
"""For each old module: the modules to import from instead, and the names in each."""


class MovedModule(ModuleType):
    """An old module. It looks a name up in its new place when the name is asked for."""

    def __init__(self, old: str) -> None:
        super().__init__(f"tandem_cuda.{old}", "A module of version 0.1; its names have moved.")
        self._places = {name: place for place, names in MOVED[old].items() for name in names.split()}
        self.__all__ = list(self._places)
        self.__spec__ = ModuleSpec(self.__name__, None)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._places]

    def __getattr__(self, name: str) -> object:
        place = self._places.get(name)
        if place is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(place), name)
        message = f"{self.__name__}.{name} has moved: use {place}.{name}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return value


def install() -> None:
    """Let ``import tandem_cuda.<old>`` and the attribute ``tandem_cuda.<old>`` find the old modules."""
    for old in MOVED:
        module = sys.modules[f"tandem_cuda.{old}"] = MovedModule(old)
        setattr(sys.modules["tandem_cuda"], old, module)
