"""The trainings of docs/results.md: which networks, with which settings of train.py. results.py runs them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from tandem_cuda.neuron.radix_if import MOST_STEPS

QUICK = ("--data.limit", "400", "--trainer.max_epochs", "1")
FOLDER = ("--data.source", "folder")
RADIX, COUNTS = ("--model.radix", "true"), ("--model.radix", "false")


@dataclass(frozen=True)
class Network:
    """A network of an experiment."""

    name: str
    label: str
    options: tuple[str, ...] = ()

    @property
    def spiking(self) -> bool:
        return self.name != "ann"

    @property
    def radix(self) -> bool:
        return self.options[:2] == RADIX

    def takes(self, time_steps: int) -> bool:
        """Whether it runs in so many steps: a value of radix spikes fills a byte."""
        return not self.radix or time_steps <= MOST_STEPS


# -- networks


def trained_for(time_steps: int, *options: str) -> Network:
    how = (*COUNTS, "--model.time_steps", str(time_steps), *options)
    return Network(f"t{time_steps}", f"SNN, T = {time_steps}", how)


def radix_at(time_steps: int, *options: str) -> Network:
    how = (*RADIX, "--model.time_steps", str(time_steps), *options)
    return Network(f"radix{time_steps}", f"SNN, radix spikes, T = {time_steps}", how)


MANY = Network("many", "SNN, T = 2, 4, 8", (*COUNTS, "--model.time_steps", "[2,4,8]"))
RADIX_MANY = Network("radix_many", "SNN, radix spikes, T = 2, 3, 4", (*RADIX, "--model.time_steps", "[2,3,4]"))


def ann(*options: str) -> Network:
    return Network("ann", "ANN", ("--model.spiking", "false", *options))


ANN = ann()


@dataclass(frozen=True)
class Experiment:
    """A configuration of train.py, run with some seeds, as SNNs and as ANN."""

    name: str
    title: str
    config: str
    needs: str
    """What must be there below --data-dir."""
    networks: tuple[Network, ...]
    below: str = "."
    """--data.dir below --data-dir."""
    options: tuple[str, ...] = ()
    """Of all networks."""
    quick_options: tuple[str, ...] = QUICK
    seeds: tuple[int, ...] = (0, 1, 2)
    remark: str = ""
    pictures: tuple[str, ...] = ("time_steps",)
    """Of the first seed's runs of the first network and the last, which is the ANN; those in OF_ALL of all SNNs."""
    time_steps: tuple[int, ...] = (1, 2, 3, 4, 8, 16)
    """Of tests and pictures."""
    on_demand: bool = False
    """Whether it takes so long that it is run with --only alone."""


BFLOAT16 = ("--trainer.precision", "bf16-mixed")
SMALL = ("--model.ann", "tandem_cuda.models.small_cifarnet")
QUARTER = (
    *("--model.ann", "tandem_cuda.models.cifarnet"),
    *("--model.ann.width", "0.25", "--model.ann.dropout", "0", "--trainer.max_epochs", "30"),
    *BFLOAT16,
)
# Recipes and other libraries are compared on parts of the data.
SOME_DIGITS = ("--data.limit", "12000", "--trainer.max_epochs", "4")
SOME_PHOTOGRAPHS = (*FOLDER, *SMALL, "--data.limit", "20000", "--trainer.max_epochs", "8")
PENALTY = 3.0  # of active neurons, at the end of the training
ONE_PHASE = ("--model.two_phase", "false")


def callback(name: str, **arguments: Any) -> tuple[str, ...]:
    return (f"--trainer.callbacks={json.dumps([{'class_path': name, 'init_args': arguments}])}",)


def at_most_active(share: float) -> Network:
    """Radix spikes with a penalty on layers in which more neurons than this share are active."""
    penalty = callback("recipes.ActiveRegulariser", weight=PENALTY, target=share)
    percent = round(100 * share)
    return replace(
        radix_at(4, *penalty),
        name=f"active{percent}",
        label=f"SNN, radix spikes, T = 4, penalty above {percent} % active",
    )


def recipes(epochs: int) -> tuple[Network, ...]:
    """The recipes for a training of so many epochs, from the paper's neurons to all that helps."""
    at_4 = (*COUNTS, "--model.time_steps", "4")
    calibrated = (*at_4, "--model.level", "null")
    return (
        Network("two_phase", "two-phase", at_4),
        Network("paper", "paper: one phase, impulse", (*at_4, *ONE_PHASE, "--model.initial", "0")),
        Network("half", "the same, u[0] half a threshold", (*at_4, *ONE_PHASE)),
        Network("constant", "the same, constant input", (*at_4, *ONE_PHASE, "--model.encoding", "constant")),
        Network("learned", "two-phase, thresholds that learn", (*at_4, "--model.learn_thresholds", "true")),
        Network(
            "ann_first",
            "two-phase, the ANN first",
            (*calibrated, *callback("recipes.AnnFirst", epochs=epochs // 2)),
        ),
        Network(
            "progressive",
            "two-phase, progressive",
            (
                *(*calibrated, "--model.schedule", "none", "--model.learning_rate", "0.001"),
                *callback("recipes.ProgressiveTandem", patience=1),
                *("--trainer.max_epochs", str(20 * epochs)),  # it ends when the patience of its last stage does
            ),
        ),
        Network("many", "two-phase, T = 2, 4, 8", MANY.options),
        ANN,
    )


COMPARED_STEPS = (2, 4, 8)


def compared(network: str) -> tuple[Network, ...]:
    """Tandem learning, surrogate gradients and quantisation-aware training of one network, at several T."""

    def other(name: str, label: str, T: int, steps: str, *options: str) -> Network:
        made = (
            "--model.ann",
            f"other_libraries.{name}",
            "--model.ann.network",
            network,
            f"--model.ann.{steps}",
            str(T),
        )
        return Network(f"{name.lower()}{T}", label.format(T), (*ANN.options, *made, *options))

    return (
        *map(radix_at, COMPARED_STEPS),
        *map(trained_for, COMPARED_STEPS),
        *(other("SpikingJelly", "SpikingJelly, T = {}", T, "time_steps") for T in COMPARED_STEPS),
        *(other("SnnTorch", "snnTorch, T = {}", T, "time_steps") for T in COMPARED_STEPS),
        *(other("QuantisationAware", "Brevitas, activations of {} bits", T, "bits") for T in COMPARED_STEPS),
        ANN,
    )


EXPERIMENTS = (
    Experiment(
        "recipes_mnist",
        "Recipes, 12,000 digits of MNIST",
        "mnist",
        "MNIST/raw/train-images-idx3-ubyte",
        recipes(4),
        options=SOME_DIGITS,
        quick_options=QUICK[:2],
        pictures=(),
        time_steps=(1, 2, 4, 8),
    ),
    Experiment(
        "recipes_cifar10",
        "Recipes, 20,000 photographs of CIFAR-10",
        "cifar10",
        "cifar10/train",
        recipes(8),
        below="cifar10",
        options=(*SOME_PHOTOGRAPHS, "--model.learning_rate", "0.002"),
        quick_options=QUICK[:2],
        pictures=(),
        time_steps=(1, 2, 4, 8),
        on_demand=True,
    ),
    Experiment(
        "compared_mnist",
        "Other libraries, 12,000 digits of MNIST",
        "mnist",
        "MNIST/raw/train-images-idx3-ubyte",
        compared("mnist_cnn"),
        options=SOME_DIGITS,
        pictures=(),
        time_steps=(2, 4, 8),
        on_demand=True,
    ),
    Experiment(
        "compared_fashion_mnist",
        "Other libraries, 12,000 images of Fashion-MNIST",
        "fashion_mnist",
        "FashionMNIST/raw/train-images-idx3-ubyte",
        compared("mnist_cnn"),
        options=SOME_DIGITS,
        pictures=(),
        time_steps=(2, 4, 8),
        on_demand=True,
    ),
    Experiment(
        "compared_cifar10",
        "Other libraries, 20,000 photographs of CIFAR-10",
        "cifar10",
        "cifar10/train",
        compared("small_cifarnet"),
        below="cifar10",
        options=SOME_PHOTOGRAPHS,
        pictures=(),
        time_steps=(1, 2, 3, 4, 8),
        on_demand=True,
    ),
    Experiment(
        "active_cifar10",
        "Few active neurons, 20,000 photographs of CIFAR-10",
        "cifar10",
        "cifar10/train",
        (radix_at(4), *map(at_most_active, (0.3, 0.2, 0.12)), ANN),
        below="cifar10",
        options=SOME_PHOTOGRAPHS,
        pictures=(),
        time_steps=(2, 3, 4, 8),
        on_demand=True,
    ),
    Experiment(
        "mnist",
        "MNIST",
        "mnist",
        "MNIST/raw/train-images-idx3-ubyte",
        (
            trained_for(8),
            trained_for(4),
            trained_for(2),
            MANY,
            radix_at(4),
            radix_at(3),
            radix_at(2, "--model.level", "2"),
            RADIX_MANY,
            ANN,
        ),
        pictures=("counts", "angles", "gradients", "curves", "time_steps", "synops", "rates", "bits", "early_exit"),
    ),
    Experiment(
        "fashion_mnist",
        "Fashion-MNIST",
        "fashion_mnist",
        "FashionMNIST/raw/train-images-idx3-ubyte",
        (trained_for(8), trained_for(4), radix_at(4), radix_at(3), radix_at(2, "--model.level", "2"), ANN),
        options=("--trainer.max_epochs", "8"),
    ),
    Experiment(
        "nmnist",
        "N-MNIST",
        "nmnist",
        "NMNIST/Train",
        (trained_for(4), radix_at(4), ANN),
        remark="N-MNIST has 60,000 recordings to train and 10,000 to test. Figures from a part of it "
        "are not comparable with the paper's.",
        pictures=("time_steps", "rates"),
    ),
    Experiment(
        "mnist_autoencoder",
        "Autoencoder, MNIST",
        "mnist_autoencoder",
        "MNIST/raw/train-images-idx3-ubyte",
        (trained_for(8), radix_at(4), Network("ann", "ANN", (*ANN.options, "--trainer.callbacks", "null"))),
        quick_options=(
            *("--data.limit", "400", "--trainer.max_epochs", "2"),
            *callback("recipes.AnnFirst", epochs=1),
        ),
        pictures=("reconstructions", "curves"),
        time_steps=(2, 4, 8, 16, 32),
    ),
    Experiment(
        "small_cifar10",
        "CIFAR-10, small network",
        "cifar10",
        "cifar10/train",
        (trained_for(8), radix_at(4), ann("--model.learning_rate", "0.01")),
        below="cifar10",
        options=(*FOLDER, *SMALL, "--trainer.max_epochs", "20"),
        remark="This network has a sixteenth of CifarNet's channels and is trained for 20 epochs; not comparable with "
        "the paper's figures.",
        pictures=("counts", "curves", "time_steps"),
        on_demand=True,
    ),
    Experiment(
        "cifar10",
        "CIFAR-10, a quarter of CifarNet",
        "cifar10",
        "cifar10/train",
        (radix_at(4), radix_at(3), radix_at(2), at_most_active(0.3), trained_for(4), ANN),
        below="cifar10",
        options=(*FOLDER, *QUARTER),
        remark="This network has a quarter of CifarNet's channels and is trained for 30 epochs with autocast to "
        "bfloat16 and tested in float32; not comparable with the paper's figures.",
        pictures=("counts", "curves", "time_steps", "early_exit"),
        on_demand=True,
    ),
    Experiment(
        "cifarnet",
        "CIFAR-10, CifarNet as in the paper",
        "cifar10",
        "cifar10/train",
        (radix_at(4), ANN),
        below="cifar10",
        options=(*FOLDER, "--trainer.max_epochs", "6", *BFLOAT16),
        seeds=(0,),
        remark="As many epochs as two hours allow, with autocast to bfloat16 and a learning rate that falls to zero "
        "over them. The network is far from trained.",
        pictures=("curves",),
        on_demand=True,
    ),
)


def as_published(experiment: Experiment) -> Experiment:
    """The same with CIFAR-10 itself in place of a folder of its images."""
    if experiment.options[: len(FOLDER)] != FOLDER:
        return experiment
    options = experiment.options[len(FOLDER) :]
    return replace(experiment, needs="cifar-10-batches-py/data_batch_1", below=".", options=options)
