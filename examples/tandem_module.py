"""TandemModule: a network and its training as PyTorch Lightning runs it, spiking or not."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Literal

import graphed
import lightning
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import SingleDeviceStrategy
from other_libraries import SurrogateGradient
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils._pytree import tree_flatten, tree_unflatten

from tandem_cuda import IF, RadixIF, SpikeTrain, TandemNetwork, convert, record_activity
from tandem_cuda.analysis import diagnose

STATISTICS = 64
"""Training batches that give batch norm's statistics for another T."""


class CheckpointError(Exception):
    """A checkpoint that does not belong to this run; a message of one or two lines."""


class TandemModule(lightning.LightningModule):
    """An ANN's spiking twin, or the ANN itself, with its loss, optimiser and logs.

    Either way the checkpoint holds the ANN's parameters under the same names: one of the SNN loads into the ANN twin.

    Logged each epoch: train_loss, val_loss, and with labels train_accuracy and val_accuracy. Of spiking networks, on
    the first validation batch: firing_rate/LAYER, synops (per sample), count_error/LAYER (diagnostics.diagnose).

    Args:
        ann: the network; ``convert`` must be able to convert it.
        sample: the sizes of a sample, such as [1, 28, 28].
        time_steps: T. Or several T for one network that serves them all: each training batch draws one of them,
            validation takes them in turn, and everything else has the largest.
        encoding: how the input becomes spikes: "constant", "impulse" or, of pixels, "radix" for images; "spikes" for
            recorded spikes.
        spiking: whether to train the spiking twin, or the ANN as a baseline (of recordings it gets the counts).
        threshold: of the spiking neurons. Half of it doubles the counts, which then round less, and the SynOps. Or a
            dict with the thresholds of some layers, by their names in the ANN; all other layers have 1. Recipes that
            convert a trained ANN find their own.
        level: T times the threshold, in place of ``threshold``: the activation at which a neuron spikes in every step,
            equal for every T. A spike then weighs a threshold. Or a dict with the levels of some layers; all other
            layers have 3, and so have all with ``radix`` and no level.
        clip: of IF: whether neurons get no gradient where the ANN's pre-activation exceeds T thresholds, since they
            spike at most T times.
        initial: of IF: where the membrane potential starts, as a share of the threshold.
        two_phase: whether layers integrate the input of all steps before they spike, as RadixIF neurons always do. By
            default IF neurons do not.
        radix: whether neurons are RadixIF, whose spike of step t weighs 2^(T-t), not IF. ``level`` is then their
            range, the same for every T.
        learn_thresholds: whether each layer's threshold is trained, too, from ``threshold`` on; use it with ``clip``.
            The parameters, logarithms, get no weight decay.
        loss: "cross_entropy" with labels, "mse" with targets of the output's shape.
        learning_rate: the highest one.
        weight_decay: of AdamW.
        schedule: of the learning rate, over all steps: "one_cycle", "cosine" down to 0, or "none".
        final_momentum: of batch norm: over the second half of all steps, its momentum moves from the network's own to
            this. The statistics that spiking layers fold are then averages of many batches, of every T that training
            draws, and not of the last batch alone.
        seed: of dropout; each step is seeded by it and its number, so that a resumed run does what the other did.
        cuda_graph: whether the gradients of training steps are captured in a CUDA graph and replayed
            (graphed.GraphedGradients), one graph for each T. What callbacks change in the network from the fourth step
            on has no effect.

    Raises:
        ValueError: an argument is out of range, or ``cuda_graph`` does not go with another one.
    """

    def __init__(
        self,
        ann: nn.Module,
        sample: list[int],
        time_steps: int | list[int] = 8,
        encoding: Literal["constant", "impulse", "radix", "spikes"] = "constant",
        spiking: bool = True,
        threshold: float | dict[str, float] = 1.0,
        level: float | dict[str, float] | None = None,
        clip: bool = False,
        initial: float = 0.0,
        two_phase: bool | None = None,
        radix: bool = False,
        learn_thresholds: bool = False,
        loss: Literal["cross_entropy", "mse"] = "cross_entropy",
        learning_rate: float = 5e-3,
        weight_decay: float = 0.01,
        schedule: Literal["one_cycle", "cosine", "none"] = "one_cycle",
        final_momentum: float | None = None,
        seed: int = 0,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__()
        self.trained_steps = sorted({time_steps} if isinstance(time_steps, int) else {*time_steps}, reverse=True)
        """Each T that training is for, the largest first."""
        self.time_steps = self.trained_steps[0]
        self.sample = sample
        self.encoding = encoding
        self.spiking = spiking
        if level is not None and threshold != 1:
            raise ValueError(f"threshold: must be 1 with a level, which is T thresholds, got {threshold}")
        if radix and threshold != 1:
            raise ValueError(f"threshold: must be 1 with radix, whose range is level, got {threshold}")
        if level is None and len(self.trained_steps) > 1 and not radix:
            raise ValueError("level: must be given with several time_steps, got None")
        self.threshold = threshold
        self.level = level
        if radix and two_phase is False:
            raise ValueError(
                "two_phase: must not be false with radix, got False. Pass radix false for one-phase neurons"
            )
        counting = IF(1.0, clip, initial=initial, two_phase=two_phase is True)
        self.neuron: IF | RadixIF = RadixIF(1.0, clip, initial=initial) if radix else counting
        self.learn_thresholds = learn_thresholds
        self.log_thresholds: dict[str, nn.Parameter] = {}
        """The learned thresholds of every network that this module converts, by the names of the spiking layers. The
        networks register them, so that a network that does not spike yet has none in its state."""
        self.loss = loss
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.schedule = schedule
        if final_momentum is not None and not 0 < final_momentum <= 1:
            raise ValueError(f"final_momentum: must be in (0, 1], got {final_momentum}")
        self.final_momentum = final_momentum
        self.seed = seed
        self.cuda_graph = cuda_graph
        if cuda_graph and final_momentum is not None and not spiking:
            raise ValueError("final_momentum: must be null with cuda_graph and an ANN, whose momentum torch captures")
        self.automatic_optimization = not cuda_graph  # Lightning's own steps are several calls
        self._graph_inputs: list[Any] | None = None
        """The tensors of a batch that the graphs read."""
        self._graphs: dict[int, graphed.GraphedGradients] = {}
        """By T."""
        self._drawn_steps = self.time_steps
        # An ANN with convolutions is fastest with channels last.
        self.net: nn.Module = self._convert(ann) if spiking else ann.to(memory_format=torch.channels_last)
        self._graph_net = (self.net,)  # in a tuple, so as not to be a module's part twice
        self.penalty: Callable[[], Tensor] | None = None
        """A further term of the training loss, of the latest forward pass; recipes.Regulariser sets it."""
        self.seconds = 0.0
        """Spent in training so far, validation and the runs before this one included."""
        self.fastest_epoch = math.inf
        """The seconds of the fastest epoch, which other programs on the machine disturbed least."""
        self._steps: int | None = None  # of the schedule, in all; below, the steps of the checkpoint resumed from
        self._resumed_steps: int | None = None
        self._first_batch: tuple[Any, Tensor] | None = None

    @property
    def ann(self) -> nn.Module:
        """The ANN, on whose parameters ``net`` runs."""
        return self.net.ann() if isinstance(self.net, TandemNetwork) else self.net

    def forward(self, x: Tensor | SpikeTrain) -> Tensor:
        return self.net(x.count if isinstance(x, SpikeTrain) and not isinstance(self.net, TandemNetwork) else x)

    def network_at(self, time_steps: int) -> TandemNetwork:
        """The spiking twin of the same ANN in another number of steps.

        Currents add up to the same pre-activation, in fewer and larger or more and smaller ones: so batch norm's
        statistics hold. (What a network says before its T steps are over is FrozenNetwork.accuracy_curve's.)
        """
        if len(self.trained_steps) > 1 and time_steps not in self.trained_steps:
            known = ", ".join(map(str, sorted(self.trained_steps)))
            warnings.warn(f"T = {time_steps} is none that the network was trained for: {known}", stacklevel=2)
        levels = self.net.levels if isinstance(self.net, TandemNetwork) else None
        if levels is None:
            net = self._convert(self.ann)
        else:
            layers = len(self.net.spiking_layers)
            net = self._converted(self.ann, neuron=self.neuron, calibrate=levels, spiking_layers=layers)
        net.set_time_steps(time_steps)
        return net

    def _convert(self, ann: nn.Module) -> TandemNetwork:
        if self.level is not None or self.neuron.radix:
            layers = self.spiking_layers(ann)
            level = {} if self.level is None else self.level
            return self._converted(ann, neuron=self.neuron, calibrate=_by_name("level", level, 3.0, layers))
        net = self._converted(ann, neuron=self.neuron)
        for name, threshold in _by_name("threshold", self.threshold, 1.0, net.spiking_layers).items():
            layer: Any = net.snn.get_submodule(name)
            layer.neuron = replace(self.neuron, threshold=threshold)
        return net

    def spiking_layers(self, ann: nn.Module) -> tuple[str, ...]:
        """The names of the layers that spike once ``ann`` is converted."""
        how: dict[str, Any] = {"mode": self.encoding, "neuron": self.neuron, "example": self.example(ann)}
        return convert(ann, self.time_steps, **how).spiking_layers

    def example(self, ann: nn.Module) -> Tensor:
        """A sample of zeros, for ``convert``."""
        p = next(ann.parameters())
        return torch.zeros(1, *self.sample, dtype=p.dtype, device=p.device)

    def _converted(self, ann: nn.Module, **how: Any) -> TandemNetwork:
        how |= {"mode": self.encoding, "learn_thresholds": self.learn_thresholds, "example": self.example(ann)}
        net = convert(ann, self.time_steps, **how)
        for name in net.spiking_layers if self.learn_thresholds else ():
            layer: Any = net.snn.get_submodule(name)
            shared = self.log_thresholds.setdefault(name, layer.log_threshold)
            shared.data = shared.data.to(layer.log_threshold)
            layer.log_threshold = shared
        return net

    def set_time_steps(self, time_steps: int) -> None:
        """Let the network, if it spikes, run in so many steps."""
        if len(self.trained_steps) > 1 and isinstance(self.net, TandemNetwork):
            self.net.set_time_steps(time_steps)

    def loss_of(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss; half precision is left before it."""
        if self.loss == "mse":
            return F.mse_loss(output.float(), target)
        return F.cross_entropy(output.float(), target)

    # -- what Lightning calls

    def on_fit_start(self) -> None:
        if self.final_momentum is not None and math.isinf(self.trainer.estimated_stepping_batches):
            raise ValueError("final_momentum: must be null without --trainer.max_epochs or --trainer.max_steps")
        norms = [x for x in self.ann.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm)]
        self._momenta = {norm: norm.momentum for norm in norms if norm.momentum is not None}

    def on_fit_end(self) -> None:
        for norm, momentum in self._momenta.items():
            norm.momentum = momentum

    def on_train_start(self) -> None:
        self._graph_inputs, self._graphs = None, {}
        self._graph_net = (self.net,)
        if self.cuda_graph and self.final_momentum is not None:  # each replay reads them
            for norm, momentum in self._momenta.items():
                norm.momentum = torch.tensor(momentum, dtype=torch.float64, device=self.device)
        if self.cuda_graph and torch.is_anomaly_enabled():
            raise ValueError("cuda_graph: must be false with detect_anomaly, which waits for the device to see values")
        if self._resumed_steps not in (None, self._steps):
            raise CheckpointError(
                f"the checkpoint's learning rates are for {self._resumed_steps} steps in all, this run's for "
                f"{self._steps}.\n"
                "Resume with the epochs, batches and processes it was started with (config.yaml beside its folder)."
            )

    def on_train_epoch_start(self) -> None:
        self._start = time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        words = [self.seed, self.global_step]
        torch.manual_seed(int(np.random.SeedSequence([*words, self.global_rank]).generate_state(1)[0]))
        if self.final_momentum is not None:
            late = max(0.0, 2 * self.global_step / max(1, int(self.trainer.estimated_stepping_batches)) - 1)
            for norm, momentum in self._momenta.items():
                now = momentum + late * (self.final_momentum - momentum)
                norm.momentum = norm.momentum.fill_(now) if isinstance(norm.momentum, Tensor) else now
        self._drawn_steps = int(np.random.default_rng(words).choice(self.trained_steps))  # the same in all processes
        self.set_time_steps(self._drawn_steps)

    def training_step(self, batch: tuple[Any, Tensor], batch_index: int) -> Tensor:
        x, target = batch
        if self.cuda_graph:
            measured = self.graphed_step(batch, self.optimizers())
            if self.schedule != "none":
                schedulers: Any = self.lr_schedulers()
                schedulers.step()
            self._log_batch("train", measured, len(target))
            return measured["loss"]
        output = self(x)
        loss = self.loss_of(output, target)
        self._log_batch("train", self._measured(output, target, loss), len(target))
        return loss if self.penalty is None else loss + self.penalty()

    def graphed_step(self, batch: tuple[Any, Tensor], optimizer: Any) -> dict[str, Tensor]:
        """A training step, whose gradients are captured or replayed if the batch has the size of the first one.

        Returns:
            The loss and, with labels, the accuracy, without gradients; the next step overwrites them.
        """
        if self.penalty is not None or self.net is not self._graph_net[0]:
            raise RuntimeError("cuda_graph: must be false with callbacks that change the loss or the network")
        tensors, structure = tree_flatten(batch)
        if self._graph_inputs is None:
            self._graph_inputs = [x.clone() if isinstance(x, Tensor) else x for x in tensors]
        captured = graphed.copied(self._graph_inputs, tensors)
        read = self._graph_inputs if captured else tensors

        def closure() -> dict[str, Tensor]:
            x, target = tree_unflatten(read, structure)  # anew, since a SpikeTrain keeps its counts
            output = self(x)
            loss = self.loss_of(output, target)
            loss.backward()
            return self._measured(output.detach(), target, loss.detach())

        if self._drawn_steps not in self._graphs:
            self._graphs[self._drawn_steps] = graphed.GraphedGradients(self.parameters())
        measured: dict[str, Tensor] = self._graphs[self._drawn_steps](closure, captured)
        optimizer.step()
        return measured

    def validation_step(self, batch: tuple[Any, Tensor], batch_index: int) -> None:
        x, target = batch
        self.set_time_steps(self.trained_steps[batch_index % len(self.trained_steps)])
        if batch_index == 0 and isinstance(self.net, TandemNetwork):
            self._first_batch = x, target
            with record_activity(self.net.snn) as record:
                output = self(x)
            table = record.table()
            self._log_here({f"firing_rate/{a.name}": a.firing_rate for a in table if a.firing_rate is not None})
            self._log_here({"synops": sum(a.synops for a in table)})
        else:
            output = self(x)
        self._log_batch("val", self._measured(output, target, self.loss_of(output, target)), len(target))

    def on_validation_epoch_end(self) -> None:
        self.set_time_steps(self.time_steps)
        if self._first_batch is not None and isinstance(self.net, TandemNetwork):
            x, target = self._first_batch
            agreement = diagnose(self.net.snn, x, lambda output: self.loss_of(output, target))
            self._log_here({f"count_error/{layer.name}": layer.count_error for layer in agreement})
        self._first_batch = None

    def on_train_epoch_end(self) -> None:
        self.set_time_steps(self.time_steps)  # also after epochs without validation
        seconds = time.perf_counter() - self._start
        self.seconds += seconds
        self.fastest_epoch = min(self.fastest_epoch, seconds)

    def configure_optimizers(self) -> Any:
        learned = list(self.log_thresholds.values())
        decayed = [p for p in self.parameters() if not any(p is x for x in learned)]
        groups: list[dict[str, Any]] = [{"params": decayed}]
        if learned:
            for p in learned:  # thresholds of layers that do not spike yet have not been moved
                p.data = p.data.to(self.device)
            groups.append({"params": learned, "weight_decay": 0.0})
        if self.cuda_graph:
            check_graph_trainer(self.trainer)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        if self.schedule == "none":
            return optimizer
        self._steps = steps = max(1, int(self.trainer.estimated_stepping_batches))
        scheduler: Any
        if self.schedule == "one_cycle":
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        else:
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _measured(self, output: Tensor, target: Tensor, loss: Tensor) -> dict[str, Tensor]:
        if self.loss != "cross_entropy":
            return {"loss": loss}
        return {"loss": loss, "accuracy": (output.argmax(1) == target).float().mean()}

    def _log_batch(self, part: str, measured: dict[str, Tensor], samples: int) -> None:
        values = {f"{part}_{name}": value for name, value in measured.items()}
        self.log_dict(
            values, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=samples
        )  # sums over processes and divides by all samples

    def _log_here(self, values: dict[str, Any]) -> None:
        self.log_dict(values, on_step=False, on_epoch=True, sync_dist=False, batch_size=1)

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        times = {"seconds": self.seconds, "fastest_epoch": self.fastest_epoch}
        checkpoint["tandem"] = {**self._identity(), **times, "steps": self._steps}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_checkpoint(checkpoint)
        state, own = checkpoint["state_dict"], self.state_dict()
        for name, p in self.log_thresholds.items():
            key = f"net.{name}.log_threshold"
            if key in state and key not in own:  # of a layer that a recipe lets spike later
                p.data.copy_(state.pop(key))
        if "net._extra_state" not in own:  # calibration by a recipe, which keeps the levels itself
            state.pop("net._extra_state", None)
        saved = checkpoint["tandem"]
        self.seconds, self._resumed_steps = saved["seconds"], saved["steps"]
        self.fastest_epoch = saved["fastest_epoch"]

    def _identity(self) -> dict[str, Any]:
        if not self.spiking:
            return {"spiking": False}
        steps = sorted(self.trained_steps)
        return {
            "spiking": True,
            "time_steps": steps if len(steps) > 1 else self.time_steps,
            "encoding": self.encoding,
            "threshold": self.threshold,
            "level": self.level,
            "initial": self.neuron.initial,
            "two_phase": self.neuron.two_phase,
            "learn_thresholds": self.learn_thresholds,
            "radix": self.neuron.radix,
        }

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network or another T.

        Raises:
            CheckpointError: says what differs.
        """
        theirs, ours = (
            {name: list(x.shape) for name, x in state.items() if not name.endswith((".log_threshold", "._extra_state"))}
            for state in (checkpoint.get("state_dict", {}), self.state_dict())
        )
        for name in [*ours, *theirs]:
            if theirs.get(name) != ours.get(name):
                got, want = (str(shapes.get(name, "missing")) for shapes in (theirs, ours))
                raise CheckpointError(
                    f"the checkpoint is of another network: {name} is {got} there and {want} here.\n"
                    "Run it with the configuration that it was trained with (config.yaml beside its folder)."
                )
        settings = checkpoint.get("tandem", {})
        for name, value in self._identity().items():
            if settings.get(name) != value:
                raise CheckpointError(
                    f"the checkpoint was trained with {name} = {settings.get(name)}, this run has {value}.\n"
                    f"Resume with --model.{name} {settings.get(name)}, or start a new run in another --out."
                )


def check_graph_trainer(trainer: lightning.Trainer) -> None:
    """Refuse a trainer whose steps cannot be captured.

    Raises:
        ValueError: says what it must have, and why.
    """
    device = trainer.strategy.root_device.type
    if device != "cuda":
        raise ValueError(f"cuda_graph: must be false without a CUDA device: training is on the {device}")
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise ValueError("cuda_graph: must be false with several processes: they average gradients within a step")
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"cuda_graph: must be false with accumulate_grad_batches = {trainer.accumulate_grad_batches}: "
            "every replayed step updates the weights"
        )
    if trainer.gradient_clip_val is not None:
        raise ValueError("cuda_graph: must be false with gradient_clip_val: Lightning clips in steps of its own alone")
    if trainer.precision != "32-true":
        raise ValueError(
            f"cuda_graph: must be false with precision {trainer.precision}: the backward pass, which is in the graph, "
            "would run under autocast"
        )


def _by_name(what: str, given: float | dict[str, float], default: float, layers: Sequence[str]) -> dict[str, float]:
    """A number for each layer."""
    if not isinstance(given, dict):
        return dict.fromkeys(layers, given)
    for name in given:
        if name not in layers:
            raise ValueError(f"{what}: layers are {', '.join(layers)}, got {name!r}")
    return {name: given.get(name, default) for name in layers}


@contextmanager
def at_time_steps(module: TandemModule, time_steps: int, data: Any, device: torch.device) -> Iterator[TandemNetwork]:
    """The module's network in so many steps, with batch norm's statistics for them as long as the context lasts.

    Where it was not trained for so many, values are rounded otherwise, so that currents have other means and variances.
    These are then taken from training batches. Recorded spikes keep theirs: there are none in other steps.

    Args:
        module: whose network it is.
        time_steps: T.
        data: the DataModule whose training set it is, set up.
        device: where to compute.
    """
    net = module.network_at(time_steps).to(device)
    if time_steps in module.trained_steps or module.encoding == "spikes":
        yield net
        return
    norms = [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    batches = itertools.islice(data.loader(data.parts["train"], shuffle=True, alone=True), STATISTICS)
    try:
        with torch.no_grad():
            update_bn(batches, net, device)
        yield net
    finally:
        for buffer, value in before:
            buffer.copy_(value)


@torch.no_grad()
def evaluate(module: TandemModule, net: nn.Module, batches: Any, device: torch.device) -> dict[str, Any]:
    """Mean loss, accuracy where there are labels, and for a spiking network what its layers did.

    Args:
        module: whose loss it is.
        net: module.net, or what module.network_at returns.
        batches: of samples and targets.
        device: where to compute.
    """
    net.to(device).eval()
    if isinstance(net, SurrogateGradient):
        net.forget()
    loss, correct, samples = 0.0, 0, 0
    with record_activity(net.snn if isinstance(net, TandemNetwork) else net) as record:
        for batch in batches:
            x, target = (part.to(device) for part in batch)
            output = net(x.count if isinstance(x, SpikeTrain) and not isinstance(net, TandemNetwork) else x)
            loss += float(module.loss_of(output, target)) * len(target)
            samples += len(target)
            if module.loss == "cross_entropy":
                correct += int((output.argmax(1) == target).sum())
    results: dict[str, Any] = {"samples": samples, "loss": loss / samples}
    if module.loss == "cross_entropy":
        results["accuracy"] = correct / samples
    if isinstance(net, SurrogateGradient):
        results |= net.activity()
    if isinstance(net, TandemNetwork):
        table = record.table()
        spiking = [(a.firing_rate, a.neurons) for a in table if a.firing_rate is not None]
        neurons = sum(n for _, n in spiking)
        results["firing_rate"] = sum(rate * n for rate, n in spiking) / neurons
        results["active"] = sum((1 - a.silent) * a.neurons for a in table if a.silent is not None) / neurons
        results["synops_per_sample"] = sum(a.synops for a in table)
        results["snn_macs_per_sample"] = sum(a.macs for a in table if a.analogue)
        results["ann_macs_per_sample"] = sum(a.macs for a in table)
        results["layers"] = [asdict(a) for a in table]
    return results
