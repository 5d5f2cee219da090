"""Train a network of the tandem-learning paper, or its ANN twin, and test it.

    python examples/train.py --config examples/configs/mnist.yaml --data.dir FOLDER
    python examples/train.py --config examples/configs/mnist.yaml --data.dir FOLDER --ckpt_path last     # go on
    python examples/train.py --help

Trains, takes the checkpoint that is best on the validation set, tests that once, and writes results.json to --out.
docs/training.md says where data go, what is logged and how to resume.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

try:
    import console  # sets up threads, so before torch
    import data
    import jsonargparse
    import lightning
    import recipes
    import tandem_module
    import tensorboard  # noqa: F401 (a logger's)
    import torchvision
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.utilities import rank_zero_only
except ImportError as error:
    raise SystemExit(
        f"examples/train.py needs Lightning, jsonargparse, TensorBoard and torchvision: {error}\n"
        "Install them with: pip install 'tandem_cuda[examples]'   (in the source tree: pip install -e '.[examples]')"
    ) from error

import torch

import tandem_cuda
from tandem_cuda.neuron.radix_if import MOST_STEPS

SHOWN = {
    "train_loss": "training loss {:.4f}",
    "val_loss": "validation loss {:.4f}",
    "val_accuracy": "validation accuracy {:6.1%}",
}


class RunError(Exception):
    """Settings that do not fit each other; a message of one or two lines."""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of ``path`` when all has gone well."""
    part = path.with_name(path.name + ".part")  # in the same folder, so in the same file system
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class WholeCheckpoints(TorchCheckpointIO):
    """A checkpoint is the former or the new one, never a part of it, whenever the process ends.

    Lightning writes to the system's folder for temporary files, and moving from another disk is copying.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replaced(Path(path)) as part:
            torch.save(checkpoint, part)


def largest(time_steps: int | list[int]) -> int:
    """The one number of time steps that recordings are cut into."""
    return time_steps if isinstance(time_steps, int) else max(time_steps, default=0)


def smallest(time_steps: int | list[int]) -> int:
    return time_steps if isinstance(time_steps, int) else min(time_steps)


class CLI(LightningCLI):
    """Arguments for the model, the data and the trainer, and a few of this program's own."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        positive = jsonargparse.typing.PositiveInt
        add = parser.add_argument
        add("--out", type=str, default="runs/train", help="folder for checkpoints, logs and results.json")
        add("--ckpt_path", type=str | None, default=None, help="go on from it: a file, or 'last', the latest in --out")
        add("--early_stopping", type=positive | None, help="stop after so many epochs without progress")
        add("--threads", type=positive, default=torch.get_num_threads(), help="CPU threads of each process")
        add("--cuda_graph", type=bool, default=False, help="capture training steps in a CUDA graph, replay them")
        add("--test_time_steps", type=list[positive] | None, help="further T to test (default: 2, 4, 8; of counts 16)")
        parser.link_arguments("cuda_graph", "model.cuda_graph")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("model.time_steps", "data.init_args.time_steps", largest)

    def instantiate_classes(self) -> None:
        """What a class refuses is a message of its own, under those that jsonargparse puts around it."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, data.DataError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise RunError(str(cause)) from error

    def before_instantiate_classes(self) -> None:
        torch.set_num_threads(self.config.threads)
        steps, encoding = self.config.model.time_steps, self.config.model.encoding
        if not steps or smallest(steps) < 1:
            raise RunError(f"--model.time_steps must be at least 1, got {steps}.")
        if encoding == "spikes" and isinstance(steps, list) and len(steps) > 1:
            raise RunError(f"--model.time_steps must be one number with recorded spikes, got {steps}.")
        radix = self.config.model.spiking and (self.config.model.radix or encoding == "radix")
        tested = self.config.test_time_steps
        if tested is None:
            self.config.test_time_steps = [2, 4, 8] if radix else [2, 4, 8, 16]
        elif radix and max(tested, default=0) > MOST_STEPS:
            raise RunError(f"--test_time_steps must be at most {MOST_STEPS} with radix spikes, got {tested}.")

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        out = Path(self.config.out)
        monitor = "val_accuracy" if self.model.loss == "cross_entropy" else "val_loss"
        mode = "max" if monitor == "val_accuracy" else "min"
        kept: dict[str, Any] = {
            "dirpath": out / "checkpoints",
            "enable_version_counter": False,  # replaced as a whole
            "save_on_train_epoch_end": True,  # when all of the epoch is done, schedule included
        }
        self.checkpoints = ModelCheckpoint(filename="best", monitor=monitor, mode=mode, **kept)
        shows_bar = sys.stdout.isatty()
        callbacks = [
            self.checkpoints,
            ModelCheckpoint(filename="last", **kept),  # behind the other, whose latest choice it holds
            console.ProgressBar() if shows_bar else console.ProgressLines(SHOWN),
        ]
        if self.config.early_stopping is not None:
            patience = int(self.config.early_stopping)  # of a type of jsonargparse, which checkpoints could not hold
            callbacks.append(EarlyStopping(monitor, mode=mode, patience=patience, check_on_train_epoch_end=True))
        trainer_config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        trainer_config["plugins"] = [*(trainer_config.get("plugins") or []), WholeCheckpoints()]
        trainer_config["enable_progress_bar"] = shows_bar
        trainer_config["logger"] = [
            CSVLogger(out, name="csv"),
            TensorBoardLogger(out, name="tensorboard", version="", default_hp_metric=False),
        ]
        if self.config.cuda_graph and trainer_config.get("callbacks"):
            raise RunError("--cuda_graph must be false with --trainer.callbacks: what they change is not in the graph.")
        if self.config.cuda_graph and trainer_config.get("detect_anomaly"):
            raise RunError("--cuda_graph must be false with --trainer.detect_anomaly, which waits to see values.")
        trainer = self._instantiate_trainer(trainer_config, callbacks)
        if self.config.cuda_graph:
            tandem_module.check_graph_trainer(trainer)
        return trainer


def checkpoint_of(path: Path) -> dict[str, Any]:
    """What a file holds, in memory of the CPU."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"]
    except Exception as error:  # whatever a damaged file leads to
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise tandem_module.CheckpointError(
            f"the checkpoint {path} cannot be read: {reason}\nGo on from another one, or start anew in another --out."
        ) from error
    return checkpoint


def resumed_from(config: Any, module: Any) -> Path | None:
    """The checkpoint to go on from, after a look into it; None for a new run."""
    last = Path(config.out) / "checkpoints" / "last.ckpt"
    if config.ckpt_path is None:
        if rank_zero_only.rank == 0 and last.exists():
            raise RunError(
                f"--out {config.out} holds a run already.\n"
                "Go on with it by --ckpt_path last, or choose another folder: nothing is overwritten."
            )
        return None
    path = last if config.ckpt_path == "last" else Path(config.ckpt_path)
    if not path.is_file():
        raise tandem_module.CheckpointError(f"no checkpoint {path}.\nLeave out --ckpt_path to start a new run.")
    module.check_checkpoint(checkpoint_of(path))
    return path


def check(module: Any, datamodule: data.DataModule) -> None:
    """Whether the network takes the samples and has an output for each class."""
    datamodule.prepare_data()
    datamodule.setup("fit")
    classes, samples = datamodule.classes, datamodule.parts["train"]
    if (samples.time_steps is not None) != (module.encoding == "spikes"):
        wanted = "spikes" if samples.time_steps is not None else "constant, impulse or radix"
        raise RunError(f"--model.encoding must be {wanted} for these data, got {module.encoding}.")
    x, target = samples[torch.arange(2), 0]
    module.eval()
    try:
        with torch.no_grad():
            output = module(x)
    except (ValueError, RuntimeError, TypeError) as error:
        raise RunError(
            f"--model.ann does not take samples of {list(x.shape[1:])}:\n{str(error).splitlines()[0]}"
        ) from error
    module.train()
    wanted_shape = [classes] if module.loss == "cross_entropy" else list(target.shape[1:])
    if list(output.shape[1:]) != wanted_shape or (target.dim() == 1) != (module.loss == "cross_entropy"):
        raise RunError(
            f"--model.ann puts out {list(output.shape[1:])} for a sample. With --model.loss {module.loss} these data\n"
            f"({classes} classes, targets of {list(target.shape[1:])}) need another network or loss."
        )


def begin(cli: CLI) -> None:
    """Write the configuration and say what is going to happen."""
    write(Path(cli.config.out) / "config.yaml", cli.parser.dump(cli.config, skip_none=False))
    steps = ", ".join(map(str, sorted(cli.model.trained_steps)))
    twin = f"spiking twin, T = {steps}" if cli.model.spiking else "ANN"
    numbers = [f"{len(cli.datamodule.parts[part]):,}" for part in ("train", "val")]
    print(
        f"Training the {twin}, on {numbers[0]} samples, {numbers[1]} held out for validation, "
        f"seed {cli.config.seed_everything}:",
        flush=True,
    )


def write(path: Path, text: str) -> None:
    """As a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as part:
        part.write_text(text)


def test(cli: CLI) -> dict[str, Any]:
    """The best checkpoint on the test set, at its T and at others (tandem_module.at_time_steps).

    Weights that training kept in float32 are tested without autocast.
    """
    module, device = cli.model, cli.trainer.strategy.root_device
    best = Path(cli.checkpoints.best_model_path)
    module.load_state_dict(checkpoint_of(best)["state_dict"])
    module.to(device)
    steps = module.time_steps
    mixed = str(cli.trainer.precision).endswith("mixed")
    with nullcontext() if mixed else cli.trainer.precision_plugin.val_step_context():
        tested = tandem_module.evaluate(module, module.net, cli.datamodule.test_batches(steps), device)
        others: dict[int, Any] = {}
        for t in sorted({*cli.config.test_time_steps, *module.trained_steps} if module.spiking else set()):
            others[t] = tested
            if t != steps:
                batches = cli.datamodule.test_batches(t)
                with tandem_module.at_time_steps(module, t, cli.datamodule, device) as net:
                    others[t] = tandem_module.evaluate(module, net, batches, device)
    kept = ("loss", "accuracy", "firing_rate", "synops_per_sample")
    return {
        "test": tested,
        "test_at_time_steps": {t: {name: r[name] for name in kept if name in r} for t, r in others.items()},
    }


def results_of(cli: CLI) -> dict[str, Any]:
    trainer, module = cli.trainer, cli.model
    device = trainer.strategy.root_device
    score = cli.checkpoints.best_model_score
    return {
        **test(cli),
        "validation": {cli.checkpoints.monitor: None if score is None else float(score)},
        "network": cli.config.model.ann.class_path,
        "parameters": sum(p.numel() for p in module.parameters()),
        "spiking": module.spiking,
        "time_steps": module.time_steps,
        "trained_time_steps": sorted(module.trained_steps),
        "encoding": module.encoding,
        "samples": {name: len(samples) for name, samples in cli.datamodule.parts.items()},
        "data": {"source": cli.datamodule.source, "dir": str(cli.datamodule.dir)},
        "seed": cli.config.seed_everything,
        "epochs": trainer.current_epoch,
        "training_seconds": module.seconds,
        "fastest_epoch_seconds": module.fastest_epoch,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "processes": trainer.world_size,
        "threads": cli.config.threads,
        "precision": str(trainer.precision),
        "versions": {
            "tandem_cuda": tandem_cuda.__version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        "build": tandem_cuda.build_info(),
    }


def report(results: dict[str, Any], out: Path) -> str:
    tested = results["test"]
    lines = [f"\nTest set, {tested['samples']:,} samples: loss {tested['loss']:.4f}"]
    if "accuracy" in tested:
        lines[0] += f", accuracy {tested['accuracy']:.2%}"
    for t, other in results["test_at_time_steps"].items():
        accuracy = f", accuracy {other['accuracy']:7.2%}" if "accuracy" in other else ""
        mark = " (as trained)" if t in results["trained_time_steps"] else ""
        lines.append(f"  T = {t:>2}: loss {other['loss']:.4f}{accuracy}, firing rate {other['firing_rate']:5.1%}{mark}")
    if results["spiking"]:
        lines.append(
            f"Per sample: {tested['synops_per_sample']:,.0f} SynOps and {tested['snn_macs_per_sample']:,} MACs; "
            f"its ANN: {tested['ann_macs_per_sample']:,} MACs"
        )
    lines.append(f"{results['training_seconds']:.0f} s of training. Everything is in {out}/.")
    return "\n".join(lines)


def command_line(args: ArgsType = None) -> CLI:
    """The model, the data and the trainer that arguments ask for."""
    return CLI(
        tandem_module.TandemModule,
        data.DataModule,
        subclass_mode_data=True,
        run=False,
        args=args,
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        trainer_defaults={
            "max_epochs": 10,
            "accelerator": "auto",
            "devices": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "use_distributed_sampler": False,  # data.Batches shares out the samples
            "inference_mode": False,  # validation compares gradients
        },
        parser_kwargs={"description": __doc__.splitlines()[0]},
    )


def run(args: ArgsType = None) -> None:
    cli = command_line(args)
    checkpoint = resumed_from(cli.config, cli.model)
    leads = rank_zero_only.rank == 0
    if leads:  # before Lightning makes files of logs
        check(cli.model, cli.datamodule)
        begin(cli)
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    except SystemExit as signal:  # Lightning's answer to SIGINT and SIGTERM
        last = Path(cli.config.out) / "checkpoints" / "last.ckpt"
        advice = "Go on by the same command with --ckpt_path last." if last.exists() else "No epoch was complete."
        raise RunError(f"interrupted in epoch {cli.trainer.current_epoch + 1}.\n{advice}") from signal
    if not cli.checkpoints.best_model_path:
        raise RunError("no epoch was left to train.\nRaise --trainer.max_epochs, or start a new run in another --out.")
    if leads:
        out = Path(cli.config.out)
        results = results_of(cli)
        write(out / "results.json", json.dumps(results, indent=2) + "\n")
        print(report(results, out))


def main() -> None:
    console.quieten_lightning()
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of small convolutions
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")  # before a capture
    try:
        run()
    except (RunError, data.DataError, tandem_module.CheckpointError, recipes.RecipeError) as error:
        raise SystemExit(f"examples/train.py: {error}") from error


if __name__ == "__main__":
    main()
