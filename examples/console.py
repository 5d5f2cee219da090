"""What the training examples show of their progress, and how their threads wait. Imported before torch."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Mapping
from typing import Any

# Threads that wait for each other shall soon fall asleep. Spinning, as they would by default, they keep the thread they
# wait for from its core whenever another program is busy too: a training step then takes several times as long.
# Sleeping at once (OMP_WAIT_POLICY=PASSIVE) costs a quarter of the time on an idle machine. Read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:  # whoever sets it knows better
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, counting epochs from 1 and saying how many there are."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(f"  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")


class ProgressLines(lightning.Callback):
    """A line per epoch: progress for a log file, where a bar would redraw itself into one endless line.

    Args:
        formats: of each metric to show, e.g. {"loss": "loss {:.4f}"}.
    """

    def __init__(self, formats: Mapping[str, str]) -> None:
        self.formats = formats

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.start = time.perf_counter()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 1
        filled = round(20 * done / total)
        metrics = trainer.callback_metrics
        shown = [form.format(float(metrics[name])) for name, form in self.formats.items() if name in metrics]
        print(
            f"  epoch {done:>{len(str(total))}}/{total} [{'#' * filled}{'.' * (20 - filled)}]  {'  '.join(shown)}"
            f"  {time.perf_counter() - self.start:.1f} s",
            flush=True,
        )


def quieten_lightning() -> None:
    """Keep its progress bar; drop its advice on workers, loggers and cluster settings, none of which applies here."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
