"""Finished runs of train.py: their networks, as trained, and their data."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import console  # noqa: F401 (sets up threads, so before torch)
import recipes
import torch
import train
from data import DataModule, ImageData
from tandem_module import CheckpointError, TandemModule, at_time_steps, evaluate
from torch import Tensor, nn

from tandem_cuda import SpikeTrain, convert

CALIBRATED_ON = 512  # training samples
DETAIL = 512  # test samples of what looks at every neuron
FILES = ("config.yaml", "results.json", "checkpoints/best.ckpt")


class FinishedError(Exception):
    """A folder that holds no finished run, or not the kind that is asked for; a message of one or two lines."""


@dataclass
class Run:
    """A finished run: the network of its best checkpoint and the data it was trained on."""

    name: str
    module: TandemModule
    data: DataModule
    results: dict[str, Any]
    folder: Path
    device: torch.device
    limit: int | None
    """Test samples to use; None: all."""
    _levels: dict[str, float] | None = None
    _batches: dict[Any, list[Any]] = field(default_factory=dict)
    _evaluated: dict[Any, dict[str, Any]] = field(default_factory=dict)

    @property
    def spiking(self) -> bool:
        return self.module.spiking

    @property
    def time_steps(self) -> int:
        return self.module.time_steps

    @property
    def largest(self) -> int:
        """The largest number that the spikes of a neuron stand for."""
        return self.module.neuron.levels(self.time_steps)

    @property
    def classifies(self) -> bool:
        return self.module.loss == "cross_entropy"

    @property
    def label(self) -> str:
        return f"{self.name}: SNN, T = {self.time_steps}" if self.spiking else f"{self.name}: ANN"

    def batches(self, time_steps: int | None = None, limit: int | None = None) -> list[tuple[Any, Tensor]]:
        """Test samples and targets; recordings in so many steps. A random choice where ``limit`` allows for few."""
        steps = self.time_steps if time_steps is None else time_steps
        key = (None if isinstance(self.data, ImageData) else steps, limit)
        if key not in self._batches:
            kept = self.data.limit
            limits = [n for n in (kept, self.limit, limit) if n is not None]
            self.data.limit = min(limits) if limits else None
            try:
                self._batches[key] = list(self.data.test_batches(steps))
            finally:
                self.data.limit = kept
        return self._batches[key]

    def detail(self) -> list[tuple[Any, Tensor]]:
        """A few test samples, on the device."""
        return [(x.to(self.device), target.to(self.device)) for x, target in self.batches(limit=DETAIL)]

    def network(self, time_steps: int | None = None) -> nn.Module:
        """The network as trained; or spiking with the same weights in so many steps, of an ANN the transferred one."""
        if self.spiking:
            known = time_steps is None or time_steps == self.time_steps
            net = self.module.net if known else self.module.network_at(time_steps)
        else:
            net = self.module.net if time_steps is None else self._transferred(time_steps)
        return net.to(self.device).eval()

    @contextmanager
    def at(self, time_steps: int | None) -> Iterator[nn.Module]:
        """``network(time_steps)``; of a spiking one with batch norm's statistics for so many steps, for that long."""
        if self.spiking and time_steps not in (None, self.time_steps):
            self.data.setup("fit")
            with at_time_steps(self.module, time_steps, self.data, self.device) as net:
                yield net.eval()
        else:
            yield self.network(time_steps)

    def _transferred(self, time_steps: int) -> nn.Module:
        """The trained ANN as a spiking network, thresholds from training samples, without further training."""
        how: dict[str, Any] = {"mode": self.module.encoding, "neuron": self.module.neuron}
        if self._levels is None:
            self.data.setup("fit")
            samples = self.data.parts["train"]
            order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(self.data.seed))
            chosen = samples.part(order[:CALIBRATED_ON].sort().values)  # without augmentation
            x, _ = chosen[torch.arange(len(chosen)), 0]
            x = (x.count if isinstance(x, SpikeTrain) else x).to(self.device)
            of_layers: dict[str, Any] = {"percentile": 99.9, "correct_bias": False}
            with warnings.catch_warnings():  # of networks unlike their ANN: a picture says how unlike
                warnings.simplefilter("ignore", UserWarning)
                self._levels = convert(self.module.net, time_steps, **how, calibrate=x, **of_layers).levels
        how["example"] = self.module.example(self.module.net)
        return convert(self.module.net, time_steps, **how, calibrate=self._levels)

    def evaluated(self, time_steps: int | None = None) -> dict[str, Any]:
        """What tandem_module.evaluate says of ``network(time_steps)`` on the test set; computed once."""
        if self.spiking and time_steps is None:
            time_steps = self.time_steps
        if time_steps not in self._evaluated:
            with self.at(time_steps) as net:
                self._evaluated[time_steps] = evaluate(self.module, net, self.batches(time_steps), self.device)
        return self._evaluated[time_steps]

    def validated(self, time_steps: int) -> dict[str, Any]:
        """The same on the validation set."""
        self.data.setup("fit")
        with self.at(time_steps) as net:
            return evaluate(self.module, net, self.data.loader(self.data.parts["val"]), self.device)


def load(
    folder: Path, name: str, data_dir: str | None, device: torch.device, threads: int, limit: int | None = None
) -> Run:
    """The run in a folder that examples/train.py has finished.

    Recipes put back what they did to the network: thresholds, weights of few bits.

    Args:
        folder: --out of the training.
        name: in pictures and tables.
        data_dir: where the data are now; None: where they were.
        device: to compute on.
        threads: CPU threads.
        limit: test samples to use; None: all.

    Raises:
        FinishedError: no finished run; a configuration or a checkpoint that cannot be used.
    """
    for file in FILES:
        if not (folder / file).is_file():
            raise FinishedError(
                f"{folder} is no finished run of examples/train.py: it has no {file}.\n"
                "Give the folder that was --out of a training that came to its end."
            )
    try:
        results = json.loads((folder / "results.json").read_text())
        results["test"], results["data"]["source"]
    except (ValueError, KeyError, TypeError) as error:
        raise FinishedError(f"{folder / 'results.json'} is not what examples/train.py writes: {error!r}.") from error
    settings = ["--config", str(folder / "config.yaml"), "--out", str(folder), "--threads", str(threads)]
    settings += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    settings += [] if data_dir is None else ["--data.dir", data_dir]
    try:
        cli = train.command_line(settings)
        checkpoint = train.checkpoint_of(folder / "checkpoints" / "best.ckpt")
        for callback in cli.trainer.callbacks:
            if isinstance(callback, (recipes.Conversion, recipes.QuantiseWeights)):
                callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
                callback.on_fit_start(cli.trainer, cli.model)
        cli.model.check_checkpoint(checkpoint)
        cli.model.load_state_dict(checkpoint["state_dict"])
    except KeyError as error:
        raise FinishedError(f"the checkpoint in {folder} has no state of the callback {error}.") from error
    except SystemExit as error:  # jsonargparse, which has said why
        raise FinishedError(f"{folder / 'config.yaml'} is no configuration of examples/train.py.") from error
    except (train.RunError, CheckpointError, recipes.RecipeError) as error:
        reason = str(error).splitlines()[0]
        raise FinishedError(f"the run in {folder} cannot be loaded:\n{reason}") from error
    cli.model.to(device).eval()
    return Run(name, cli.model, cli.datamodule, results, folder, device, limit)


def load_all(folders: list[Path], **settings: Any) -> list[Run]:
    """Runs on the same data, named by as much of their paths as tells them apart."""
    depth = 1
    while depth < 4 and len({folder.resolve().parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    runs = [load(folder, "/".join(folder.resolve().parts[-depth:]), **settings) for folder in folders]
    kinds = {(run.results["data"]["source"], run.module.loss) for run in runs}
    if len(kinds) > 1:
        told = " and ".join(sorted(f"{source} ({loss})" for source, loss in kinds))
        raise FinishedError(f"the runs are of different data or losses: {told}.\nAnalyse them one after the other.")
    return runs
