"""Training recipes as Lightning callbacks, for the configuration of examples/train.py; docs/recipes.md describes them.

    trainer:
      callbacks:
        - class_path: recipes.ProgressiveTandem
          init_args: {percentile: 99.9, patience: 2}

Recipes change the network that a TandemModule trains: how many of its layers spike, what its weights are rounded to,
what its loss asks for. The Parameter objects, thresholds that learn included, are never replaced, so that the optimiser
made at the start remains the right one. Each recipe's state is in the checkpoint; a run resumed in its middle
goes on in the same stage.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from tandem_cuda import ActivePenalty, FiringRatePenalty, SpikeTrain, SynOpsPenalty, TandemNetwork, quantise
from tandem_cuda.quantisation import check_bits


class RecipeError(Exception):
    """A recipe that cannot be followed; a message of one or two lines."""


class Conversion(lightning.Callback):
    """A training that begins with the ANN: what AnnFirst and ProgressiveTandem have in common.

    Thresholds are calibrated on the first batches of the training data; layers that spike already keep theirs.
    """

    def __init__(self, percentile: float, calibration_batches: int) -> None:
        name = type(self).__name__
        if not 0 < percentile <= 100:
            raise RecipeError(f"{name}: percentile must be in (0, 100], got {percentile}.")
        if calibration_batches < 1:
            raise RecipeError(f"{name}: calibration_batches must be at least 1, got {calibration_batches}.")
        self.percentile = percentile
        self.calibration_batches = calibration_batches
        self.levels: dict[str, float] = {}
        """Of the layers that spike so far, T times the threshold."""
        self.total = 0
        """Spiking layers that the network can have."""

    def setup(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        if stage != "fit":
            return
        name = type(self).__name__
        if not module.spiking:
            raise RecipeError(f"{name} ends with a spiking network: it needs --model.spiking true.")
        if module.threshold != 1:
            raise RecipeError(f"{name} finds thresholds itself: --model.threshold must be 1, got {module.threshold}.")
        if module.level is not None and len(module.trained_steps) == 1:
            raise RecipeError(f"{name} finds levels itself: --model.level must be null, got {module.level}.")
        if sum(isinstance(callback, Conversion) for callback in trainer.callbacks) > 1:
            raise RecipeError(f"{name}: only one of AnnFirst and ProgressiveTandem can decide when layers spike.")
        if trainer.world_size > 1:
            raise RecipeError(f"{name} runs in one process: each would calibrate on its own batches.")
        self._find_layers(module)
        module.net = module.ann  # until on_fit_start knows better; the optimiser's parameters have the ANN's order

    @property
    def spiking(self) -> int:
        """How many layers spike. Averages with neurons have levels too, but are no layers."""
        return sum(name in self.levels for name in self.layers)

    def _find_layers(self, module: Any) -> None:
        self.layers = module.spiking_layers(module.ann)
        self.total = len(self.layers)

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if self.levels:  # of a checkpoint
            self._find_layers(module)  # which nobody has where a finished run is loaded
            self._install(trainer, module)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self.spiking < self.total and not trainer.interrupted:
            raise RecipeError(
                f"{type(self).__name__}: training is over with {self.spiking} of {self.total} layers spiking.\n"
                "Go on from the last checkpoint with more --trainer.max_epochs."
            )

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        module.log("spiking_layers", float(self.spiking))

    def state_dict(self) -> dict[str, Any]:
        return {"levels": self.levels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.levels = dict(state_dict["levels"])

    def let_spike(self, trainer: lightning.Trainer, module: Any, count: int) -> None:
        """Convert the first layers; what was best before is not of this network any more."""
        net = self._converted(module, count, list(_inputs(trainer, module, self.calibration_batches)))
        assert net.levels is not None
        self.levels = {**net.levels, **self.levels}
        self._install(trainer, module)
        begin_anew(trainer)

    def _install(self, trainer: lightning.Trainer, module: Any) -> None:
        net = self._converted(module, self.spiking, self.levels)
        module.net = net.train(module.training)  # validation leaves the ANN twin, no submodule, in eval mode
        for callback in trainer.callbacks:
            if isinstance(callback, Regulariser):
                callback.watch(module)

    def _converted(self, module: Any, count: int, calibrate: Any) -> TandemNetwork:
        try:
            net: TandemNetwork = module._converted(
                module.ann,
                neuron=module.neuron,
                calibrate=calibrate,
                percentile=self.percentile,
                correct_bias=False,  # for the network is trained on
                spiking_layers=count,
            )
            return net
        except ValueError as error:
            raise RecipeError(f"{type(self).__name__}: {error}") from error


class AnnFirst(Conversion):
    """Train the ANN, convert it with thresholds from its activations, then train on by the tandem rule.

    Args:
        epochs: of the ANN; fewer than max_epochs.
        percentile: of a layer's activations, the threshold times T, in (0, 100].
        calibration_batches: number of training batches that give the activations.
    """

    def __init__(self, epochs: int, percentile: float = 99.9, calibration_batches: int = 8) -> None:
        super().__init__(percentile, calibration_batches)
        if epochs < 1:
            raise RecipeError(f"AnnFirst: epochs must be at least 1, got {epochs}.")
        self.epochs = epochs

    def setup(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        super().setup(trainer, module, stage)
        if stage == "fit" and trainer.max_epochs is not None and -1 < trainer.max_epochs <= self.epochs:
            raise RecipeError(
                f"AnnFirst: epochs must be fewer than --trainer.max_epochs {trainer.max_epochs}, got {self.epochs}."
            )

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_index: int) -> None:
        if not self.levels and trainer.current_epoch >= self.epochs:
            self.let_spike(trainer, module, self.total)


class ProgressiveTandem(Conversion):
    """Progressive tandem learning: layer by layer the ANN becomes spiking, and what is behind learns to live with it.

    Wu et al., "Progressive Tandem Learning for Pattern Recognition with Deep Spiking Neural Networks", IEEE TPAMI 2022,
    doi:10.1109/TPAMI.2021.3114196. It begins with the ANN. Whenever the monitored value has not improved for
    ``patience`` validations, the next layer is converted, its threshold calibrated, and the layers converted before it
    keep weights, statistics and thresholds from then on. Patience at an end in the last stage ends the training.

    As in the authors' code, converted layers are fixed; here the newest one still learns, by the tandem rule. Unlike
    there, a stage ends with its last weights, not its best ones, and the optimiser goes on with its momenta.

    Args:
        percentile: of a layer's activations, the threshold times T, in (0, 100].
        patience: validations without progress before the next layer follows.
        monitor: what is to fall, as logged.
        calibration_batches: number of training batches that give the activations.
    """

    def __init__(
        self, percentile: float = 99.9, patience: int = 2, monitor: str = "val_loss", calibration_batches: int = 8
    ) -> None:
        super().__init__(percentile, calibration_batches)
        if patience < 1:
            raise RecipeError(f"ProgressiveTandem: patience must be at least 1, got {patience}.")
        self.patience = patience
        self.monitor = monitor
        self.best = float("inf")
        self.waited = 0

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            raise RecipeError(
                f"ProgressiveTandem: monitor must be logged in validation, got {self.monitor!r}; there are "
                f"{', '.join(sorted(trainer.callback_metrics))}."
            )
        value = float(trainer.callback_metrics[self.monitor])
        if value < self.best:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited >= self.patience and self.spiking == self.total:
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_index: int) -> None:
        if self.waited >= self.patience and self.spiking < self.total:
            self.let_spike(trainer, module, self.spiking + 1)
            self.best, self.waited = float("inf"), 0

    def on_before_optimizer_step(self, trainer: lightning.Trainer, module: Any, optimizer: Any) -> None:
        for layer in self._fixed(module):
            for parameter in layer.parameters():
                parameter.grad = None  # so that neither momentum nor weight decay move it

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.best, self.waited = state_dict["best"], state_dict["waited"]

    def _install(self, trainer: lightning.Trainer, module: Any) -> None:
        super()._install(trainer, module)
        for layer in self._fixed(module):
            for norm in layer.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    norm.eval()

    def _fixed(self, module: Any) -> Iterator[nn.Module]:
        """Layers that were converted before the newest one."""
        if isinstance(module.net, TandemNetwork):
            for name in module.net.spiking_layers[:-1]:
                yield module.net.snn.get_submodule(name)


class QuantiseWeights(lightning.Callback):
    """Quantisation-aware training: from some epoch on, weights of few bits (tandem_cuda.quantise).

    Args:
        bits: 2 to 8, or 16.
        from_epoch: the first epoch, counted from 0.
    """

    def __init__(self, bits: int, from_epoch: int = 0) -> None:
        try:
            check_bits("QuantiseWeights", bits)
        except ValueError as error:
            raise RecipeError(f"{error}.") from error
        if from_epoch < 0:
            raise RecipeError(f"QuantiseWeights: from_epoch must not be negative, got {from_epoch}.")
        self.bits = bits
        self.from_epoch = from_epoch
        self.began = False

    def setup(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        if stage == "fit" and trainer.max_epochs is not None and -1 < trainer.max_epochs <= self.from_epoch:
            raise RecipeError(
                f"QuantiseWeights: from_epoch must be less than --trainer.max_epochs {trainer.max_epochs}, "
                f"got {self.from_epoch}."
            )

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if self.began:  # of a checkpoint
            quantise(module.net, self.bits)

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_index: int) -> None:
        if not self.began and trainer.current_epoch >= self.from_epoch:
            self.began = True
            quantise(module.net, self.bits)
            begin_anew(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"began": self.began, "bits": self.bits}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["began"] and state_dict["bits"] != self.bits:
            raise RecipeError(
                f"QuantiseWeights: the checkpoint was trained with weights of {state_dict['bits']} bits, this run has "
                f"{self.bits}."
            )
        self.began = state_dict["began"]


class Regulariser(lightning.Callback):
    """A term of the training loss: a weight times a penalty of spikes. An ANN that does not spike yet has none.

    The weight grows from zero to ``weight`` over the share ``ramp`` of the training: a network that must be silent
    before it has learned anything learns less (docs/recipes.md).
    """

    kind: type[FiringRatePenalty] | type[SynOpsPenalty]
    logged: str
    end: float
    """Targets lie below it."""

    def __init__(self, weight: float, target: float = 0.0, ramp: float = 1.0) -> None:
        name = type(self).__name__
        if not 0 < weight < math.inf:
            raise RecipeError(f"{name}: weight must be positive, got {weight}.")
        if not 0 <= ramp <= 1:
            raise RecipeError(f"{name}: ramp must be a share of the training, in [0, 1], got {ramp}.")
        if not 0 <= target < self.end:
            raise RecipeError(f"{name}: target must be in [0, {self.end:g}), got {target}.")
        self.weight = weight
        self.target = target
        self.ramp = ramp
        self._penalty: FiringRatePenalty | SynOpsPenalty | None = None

    def setup(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        name = type(self).__name__
        if stage == "fit" and not module.spiking:
            raise RecipeError(f"{name} asks for fewer spikes: it needs --model.spiking true.")
        if sum(isinstance(callback, Regulariser) for callback in trainer.callbacks) > 1:
            raise RecipeError(
                f"{name}: only one of RateRegulariser, ActiveRegulariser and SynOpsRegulariser is possible."
            )

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if self.ramp and math.isinf(trainer.estimated_stepping_batches):
            name = type(self).__name__
            raise RecipeError(f"{name}: ramp must be 0 without --trainer.max_epochs or --trainer.max_steps.")
        self.watch(module)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self._forget(module)

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        self._forget(module)

    def watch(self, module: Any) -> None:
        """Turn to the network that the module has now."""
        self._forget(module)
        if isinstance(module.net, TandemNetwork):
            penalty = self._penalty = self.kind(module.net, self.target)

            def term() -> Tensor:
                value = penalty()
                module.log(self.logged, value.detach(), on_step=False, on_epoch=True)
                return self.weight * self._grown(module) * value

            module.penalty = term

    def _grown(self, module: Any) -> float:
        """Return the share of the weight that the present step has."""
        steps = self.ramp * module.trainer.estimated_stepping_batches
        return min(1.0, module.global_step / steps) if steps else 1.0

    def _forget(self, module: Any) -> None:
        if self._penalty is not None:
            self._penalty.remove()
        self._penalty = module.penalty = None


class RateRegulariser(Regulariser):
    """A term of the training loss: weight times tandem_cuda.FiringRatePenalty. An ANN that does not spike yet has none.

    Logged each epoch: rate_penalty, without its weight.

    Args:
        weight: positive.
        target: firing rate that costs nothing, in [0, 1).
        ramp: the share of the training over which the weight grows from zero, in [0, 1].
    """

    kind, logged, end = FiringRatePenalty, "rate_penalty", 1.0


class ActiveRegulariser(Regulariser):
    """A term of the training loss: weight times tandem_cuda.ActivePenalty. An ANN that does not spike yet has none.

    Logged each epoch: active_penalty, without its weight.

    Args:
        weight: positive.
        target: share of active neurons that costs nothing, in [0, 1).
        ramp: the share of the training over which the weight grows from zero, in [0, 1].
    """

    kind, logged, end = ActivePenalty, "active_penalty", 1.0


class SynOpsRegulariser(Regulariser):
    """A term of the training loss: weight times tandem_cuda.SynOpsPenalty. An ANN that does not spike yet has none.

    Logged each epoch: synops_penalty, without its weight.

    Args:
        weight: positive.
        target: SynOps over the ANN's MACs that cost nothing, not negative.
        ramp: the share of the training over which the weight grows from zero, in [0, 1].
    """

    kind, logged, end = SynOpsPenalty, "synops_penalty", math.inf


def begin_anew(trainer: lightning.Trainer) -> None:
    """Let checkpoints and early stopping forget what was best: it was so of another network."""
    for callback in trainer.callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.best_k_models = {}
            callback.kth_best_model_path = callback.best_model_path = ""
            callback.best_model_score = callback.current_score = None
            callback.kth_value = torch.tensor(float("inf") if callback.mode == "min" else -float("inf"))
        elif isinstance(callback, EarlyStopping):
            callback.wait_count = 0
            callback.best_score = torch.tensor(float("inf") if callback.mode == "min" else -float("inf"))


def _inputs(trainer: lightning.Trainer, module: Any, batches: int) -> Iterator[Tensor]:
    """What the ANN is given, of the first training batches."""
    for batch in itertools.islice(trainer.train_dataloader, batches):
        x = batch[0].to(module.device)
        yield x.count if isinstance(x, SpikeTrain) else x
