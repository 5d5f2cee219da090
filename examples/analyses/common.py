"""What the analyses share: the runs they look at, and how they write pictures and tables."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import plots
from finished import FinishedError, Run
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from tandem_cuda.neuron.radix_if import MOST_STEPS

SNN_COLOURS = (plots.SNN, "#e09f3e", "#7b2d26", "#d88c9a", "#a26769", "#f2c14e")
ANN_COLOURS = (plots.ANN, "#5b8e7d", "#1d3557", "#7aa5d2", "#4a6fa5", "#9bc1bc")


class NotApplicable(FinishedError):
    """An analysis that these runs do not have the data for."""


@dataclass(frozen=True)
class Work:
    """The runs to analyse, and where pictures and tables go."""

    runs: Sequence[Run]
    out: Path
    time_steps: Sequence[int]
    bits: Sequence[int]

    @property
    def snns(self) -> list[Run]:
        found = [run for run in self.runs if run.spiking]
        if not found:
            raise NotApplicable("it needs a run of a spiking network (--model.spiking true).")
        return found

    @property
    def anns(self) -> list[Run]:
        return [run for run in self.runs if not run.spiking]

    @property
    def source(self) -> str:
        return self.runs[0].results["data"]["source"]

    def steps_of(self, run: Run) -> list[int]:
        """The T of tables and pictures at which the run's neurons work, or an ANN's when it is transferred."""
        steps = {*self.time_steps, run.time_steps} if run.spiking else set(self.time_steps)
        return sorted(t for t in steps if not run.module.neuron.radix or t <= MOST_STEPS)

    def colour(self, run: Run) -> str:
        same = [other for other in self.runs if other.spiking == run.spiking]
        return (SNN_COLOURS if run.spiking else ANN_COLOURS)[same.index(run) % len(SNN_COLOURS)]

    def figure(self, name: str, figure: Any, title: str) -> None:
        """Write NAME.png, with a palette of 256 colours: a third of the bytes."""
        figure.suptitle(title)
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=110)
        plt.close(figure)
        Image.open(drawn).convert("RGB").quantize(256).save(self.out / f"{name}.png", optimize=True)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write NAME.csv, whole or not at all."""
        with tempfile.NamedTemporaryFile("w", dir=self.out, delete=False, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()})
        Path(file.name).chmod(0o644)
        Path(file.name).replace(self.out / f"{name}.csv")


def steps_axis(axes: Axes, steps: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set(xlabel="time steps T", xticks=list(steps))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.25)


def log_axis(axes: Axes, form: Callable[[float, Any], str] = lambda value, _: f"{value:g}") -> None:
    """A logarithmic y axis with numbers written out."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(form)
    axes.yaxis.set_minor_formatter(NullFormatter())
