"""Accuracy of converted networks at few time steps, without training after conversion, beside SpikingJelly's converter.

    python bench/conversion.py --data-dir FOLDER --runs RUNS --seeds 0 1 2
    python bench/conversion.py --data-dir FOLDER --runs RUNS --networks resnet --time-steps 4 16 --without-peers
    python bench/conversion.py --data-dir FOLDER --runs RUNS --fine-tune

FOLDER has CIFAR-10 as torchvision's CIFAR10 reads it, or images as ImageFolder reads them (train/CLASS/*.jpg,
test/CLASS/*.jpg). They are scaled to 16 x 16 pixels. Five small ANNs, a VGG, a ResNet, a MobileNet, a DenseNet and a
U-Net, are trained on 8,000 images and converted with several settings, calibrated on the first 500 of them. The U-Net
gives logits for each pixel; the images have one label each, so the mean of the logits is its answer.

The first table, to choose settings by, shows accuracies in % on 1,000 other training images. The tables after it are
about 2,000 test images. Of SpikingJelly's recipes, they show the one that is best on the 1,000, for each network, T and
seed. SpikingJelly has no ReLU6: it gets the MobileNet with ReLU in its place.

Trained ANNs and all that is measured are kept in RUNS, so an interrupted command goes on where it was. Remove
RUNS/*.json to measure the same ANNs again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import peers
from machine import describe
from tandem_cuda import IF, RadixIF, TandemNetwork, convert
from tandem_cuda.neuron.radix_if import MOST_STEPS

Samples = tuple[Tensor, Tensor]
"""Images [N, 3, 16, 16] and labels [N]."""

TRAINING, CALIBRATION, VALIDATION, TEST = 8000, 500, 1000, 2000
EPOCHS, BATCH, LEARNING_RATE = 8, 50, 4e-3
TUNED_STEPS, TUNED_EPOCHS, TUNED_RATES = 4, 1, (1e-3, 2e-4)


# -- data


def load(folder: Path, train: bool, number: int) -> tuple[Samples, str]:
    """Return some images, the same in every call, and a word for what they are."""
    try:
        from torchvision.datasets import CIFAR10, ImageFolder
        from torchvision.transforms.functional import resize, to_tensor
    except ImportError as error:
        raise SystemExit(f"bench/conversion.py needs torchvision: {error}\nInstall: pip install torchvision") from error
    if (folder / "cifar-10-batches-py").is_dir():
        found, what = CIFAR10(folder, train), "CIFAR-10"
    else:
        where = folder / ("train" if train else "test")
        try:
            found = ImageFolder(where)
        except FileNotFoundError as error:
            raise SystemExit(f"--data-dir: neither CIFAR-10 nor images in class folders under {where}") from error
        kinds = sorted({Path(name).suffix for name, _ in found.samples})
        what = f"{', '.join(kinds)} files" + (" (lossy JPEG copies)" if {".jpg", ".jpeg"} & {*kinds} else "")
    if len(found) < number:
        raise SystemExit(f"--data-dir: at least {number} {'training' if train else 'test'} images, got {len(found)}")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:number].tolist()
    pixels, labels = zip(*(found[i] for i in order), strict=True)
    images = torch.stack([resize(to_tensor(image), [16, 16], antialias=True) for image in pixels])
    return ((images - 0.5) / 0.25, torch.tensor(labels)), what


# -- networks. SpikingJelly converts nn.ReLU only as modules.


def convolution(
    inputs: int, outputs: int, stride: int = 1, kernel: int = 3, groups: int = 1, relu: type[nn.Module] = nn.ReLU
) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs), relu()]


def classifier(inputs: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10)]


class InvertedResidual(nn.Module):
    """A block of MobileNet-V2: depthwise convolution between 1 x 1 ones, the last without ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inputs
        self.layers = nn.Sequential(
            *convolution(inputs, wide, kernel=1, relu=nn.ReLU6),
            *convolution(wide, wide, stride, groups=wide, relu=nn.ReLU6),
            *convolution(wide, outputs, kernel=1)[:2],
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


def mobilenet() -> nn.Module:
    shapes = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1)]
    return nn.Sequential(
        *convolution(3, 16, relu=nn.ReLU6),
        *(InvertedResidual(*shape) for shape in shapes),
        *convolution(32, 128, kernel=1, relu=nn.ReLU6),
        *classifier(128),
    )


def vgg() -> nn.Module:
    layers, inputs = [], 3
    for width in (16, 32, 64):
        layers += [*convolution(inputs, width), *convolution(width, width), nn.MaxPool2d(2)]
        inputs = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


class BasicBlock(nn.Module):
    """A block of a ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*convolution(inputs, outputs, stride), *convolution(outputs, outputs)[:2])
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Sequential(*([] if same else convolution(inputs, outputs, stride, kernel=1)[:2]))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.layers(x) + self.shortcut(x))


def resnet() -> nn.Module:
    shapes = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    return nn.Sequential(*convolution(3, 16), *(BasicBlock(*shape) for shape in shapes), *classifier(64))


def before_activation(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=False)
    return [nn.BatchNorm2d(inputs), nn.ReLU(), layer]


class DenseLayer(nn.Module):
    """A layer of a DenseNet, which appends channels to its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*before_activation(inputs, growth, kernel=3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet(growth: int = 12, width: int = 16) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False)]
    for block in range(3):
        for _ in range(3):
            layers.append(DenseLayer(width, growth))
            width += growth
        if block < 2:
            layers += [*before_activation(width, width // 2, kernel=1), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), *classifier(width))


class UNet(nn.Module):
    """A U-Net of three scales. It gives logits for each pixel; their mean over the pixels is the output, [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse, self.up_to_middle, self.up_to_fine = (
            nn.Sequential(*convolution(inputs, width), *convolution(width, width))
            for inputs, width in ((3, 16), (16, 32), (32, 64), (64 + 32, 32), (32 + 16, 16))
        )
        self.down, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.logits = nn.Conv2d(16, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.middle(self.down(fine))
        y = self.coarse(self.down(middle))
        y = self.up_to_middle(torch.cat([self.up(y), middle], 1))
        y = self.up_to_fine(torch.cat([self.up(y), fine], 1))
        return self.logits(y).mean((2, 3))


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "vgg": ("VGG, max pooling", vgg),
    "resnet": ("ResNet", resnet),
    "mobilenet": ("MobileNet: depthwise convolutions, ReLU6, inverted residuals", mobilenet),
    "densenet": ("DenseNet", densenet),
    "unet": ("U-Net, mean of its pixels' logits", UNet),
}


def train(net: nn.Module, data: Samples, learning_rate: float, epochs: int) -> None:
    """Train with AdamW, on images that are mirrored at random; leaves the network in eval mode."""
    images, labels = data
    steps = epochs * (len(images) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            mirrored = torch.rand(len(batch), 1, 1, 1) < 0.5
            x = torch.where(mirrored, images[batch].flip(3), images[batch])
            loss = F.cross_entropy(net(x), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()


# -- what is measured


@dataclass(frozen=True)
class Setting:
    """Arguments of convert, and the row of the table."""

    neuron: IF | RadixIF
    per_channel: bool = False
    correct_bias: bool = False
    percentile: float | None = None

    @property
    def row(self) -> str:
        arguments = [f"{name}=True" for name in ("per_channel", "correct_bias") if getattr(self, name)]
        if self.percentile is not None:
            arguments.append(f"percentile={self.percentile}")
        return ", ".join([NEURONS[self.neuron], *arguments])

    def takes(self, time_steps: int) -> bool:
        """Whether the neurons can run in so many steps."""
        return not isinstance(self.neuron, RadixIF) or time_steps <= MOST_STEPS

    def convert(self, ann: nn.Module, time_steps: int, sample: Tensor) -> TandemNetwork:
        return convert(
            ann,
            time_steps,
            neuron=self.neuron,
            calibrate=sample,
            percentile=self.percentile,
            per_channel=self.per_channel,
            correct_bias=self.correct_bias,
        )


PLAIN, HALF, TWO_PHASE, RADIX = IF(), IF(initial=0.5), IF(initial=0.5, two_phase=True), RadixIF()
NEURONS = {
    PLAIN: "IF()",
    HALF: "IF(initial=0.5)",
    TWO_PHASE: "IF(initial=0.5, two_phase=True)",
    RADIX: "RadixIF()",
}
BEST = Setting(RADIX, correct_bias=True)
SETTINGS = [
    BEST,
    Setting(RADIX, per_channel=True, correct_bias=True),
    Setting(TWO_PHASE, correct_bias=True),
    Setting(RADIX),
    Setting(HALF, correct_bias=True),
    Setting(PLAIN, correct_bias=True),
    Setting(PLAIN),
]
MORE_SETTINGS = [
    *(
        Setting(neuron, per_channel, correct_bias)
        for neuron in (RADIX, TWO_PHASE, HALF, PLAIN)
        for per_channel, correct_bias in ((True, True), (False, True), (True, False), (False, False))
        if Setting(neuron, per_channel, correct_bias) not in SETTINGS
    ),
    *(Setting(neuron, False, True, percentile=99.9) for neuron in (RADIX, TWO_PHASE)),
]


def predictions(outputs: Callable[[Tensor], Iterable[Tensor]], images: Tensor) -> Tensor:
    """Return the classes that each of several outputs gives, [outputs, N]."""
    with torch.no_grad():
        return torch.cat([torch.stack([y.argmax(1) for y in outputs(x)]) for x in images.split(250)], 1)


def percentage(x: Tensor) -> float:
    return round(100 * x.double().mean().item(), 3)


def recipes(training: Tensor, sample: Tensor) -> dict[str, Any]:
    """SpikingJelly's recipes for CNNs. Local threshold balancing adapts from batch to batch: it gets four epochs."""
    from spikingjelly.activation_based.ann2snn import LocalThresholdBalancingRecipe, RateCodingRecipe

    found: dict[str, Any] = {"local threshold balancing": LocalThresholdBalancingRecipe(training[:4000].split(50) * 4)}
    channels = {"channel_wise": True, "half_threshold": True, "pre_spike_maxpool": True}
    for mode in ("Max", "99.9%", "99%"):
        found[f"rate coding, {mode}"] = RateCodingRecipe([sample], mode)
        found[f"rate coding, channel-wise, {mode}"] = RateCodingRecipe([sample], mode, **channels)
    return found


WITHOUT_BOUNDS = "ANN, ReLU in place of ReLU6"


def without_bounds(ann: nn.Module) -> nn.Module:
    """Return a copy with ReLU in place of ReLU6, which SpikingJelly refuses."""
    ann = copy.deepcopy(ann)
    for module in [*ann.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    return ann


def theirs(ann: nn.Module, recipe: Any, steps: list[int]) -> Callable[[Tensor], list[Tensor]]:
    """Return a function from images to the outputs after each number of steps."""
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.ann2snn import Converter

    snn = Converter(recipe).convert(without_bounds(ann)).eval()

    def outputs(x: Tensor) -> list[Tensor]:
        functional.reset_net(snn)
        total, found = torch.zeros(()), []
        for t in range(1, max(steps) + 1):
            total = total + snn(x)
            found += [total] if t in steps else []
        return found

    return outputs


class Run:
    """One network trained with one seed: its ANN, and what was measured of it, both kept in files."""

    def __init__(self, name: str, seed: int, folder: Path, data: dict[str, Samples], what: str) -> None:
        self.name, self.seed, self.data = name, seed, data
        self.sample = data["training"][0][:CALIBRATION]
        self.results_file = folder / f"{name}-{seed}.json"
        conditions = {
            "images": what,
            "samples": {part: len(labels) for part, (_, labels) in data.items()} | {"calibration": CALIBRATION},
            "training": [EPOCHS, BATCH, LEARNING_RATE],
        }
        self.results: dict[str, Any] = {"conditions": conditions, "machine": describe()}
        if self.results_file.exists():
            self.results = json.loads(self.results_file.read_text())
            if self.results["conditions"] != conditions:
                raise SystemExit(
                    f"{self.results_file} has other conditions: {self.results['conditions']}; move it away"
                )
        self.ann = NETWORKS[name][1]().eval()
        state = folder / f"{name}-{seed}.pt"
        if state.exists():
            self.ann.load_state_dict(torch.load(state, weights_only=True))
        else:
            torch.manual_seed(seed)
            self.ann = NETWORKS[name][1]()
            train(self.ann, data["training"], LEARNING_RATE, EPOCHS)
            torch.save(self.ann.state_dict(), state)
        self.classes = self._classes(self.ann)
        self.measure("ANN", self.accuracies, self.ann)

    def _classes(self, net: nn.Module) -> dict[str, Tensor]:
        return {part: predictions(lambda x: [net(x)], self.data[part][0])[0] for part in ("validation", "test")}

    def measure(self, key: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Keep what a function returns, unless that is known already."""
        if key in self.results:
            return
        begun = time.perf_counter()
        self.results[key] = function(*arguments)
        new = self.results_file.with_suffix(".new")
        new.write_text(json.dumps(self.results, indent=1))
        new.replace(self.results_file)
        seconds = time.perf_counter() - begun
        print(f"{self.name} {self.seed}: {key}: {self.results[key]}  ({seconds:.0f} s)", flush=True)

    def ours(self, setting: Setting, time_steps: int) -> dict[str, float]:
        begun = time.process_time()
        snn = setting.convert(self.ann, time_steps, self.sample)
        seconds = time.process_time() - begun
        return self.accuracies(snn) | {"processor seconds": round(seconds, 2)}

    def accuracies(self, snn: nn.Module) -> dict[str, float]:
        classes = self._classes(snn)
        found = {part: percentage(classes[part] == self.data[part][1]) for part in classes}
        return found | {"agreement": percentage(classes["test"] == self.classes["test"])}

    def theirs(self, recipe: Any, steps: list[int]) -> dict[str, Any]:
        """Accuracies by T, or the reason why SpikingJelly does not convert the network."""
        try:
            outputs = theirs(self.ann, recipe, steps)
            outputs(self.sample[:2])
        except Exception as error:  # whatever it raises
            return {"refuses": f"{type(error).__name__}: {error}"[:300]}
        found: dict[str, Any] = {str(T): {} for T in steps}
        for part in ("validation", "test"):
            images, labels = self.data[part]
            for T, classes in zip(steps, predictions(outputs, images), strict=True):
                found[str(T)][part] = percentage(classes == labels)
        return found

    def fine_tuned(self, setting: Setting, learning_rate: float) -> dict[str, float]:
        torch.manual_seed(self.seed)
        ann = copy.deepcopy(self.ann)
        snn = setting.convert(ann, TUNED_STEPS, self.sample)
        train(snn, self.data["training"], learning_rate, TUNED_EPOCHS)
        found = self.accuracies(snn)
        return found | {"ANN": percentage(self._classes(ann)["test"] == self.data["test"][1])}


def tuned_key(setting: Setting, learning_rate: float) -> str:
    return f"fine-tuned, {setting.row}, learning rate {learning_rate:g}"


# -- tables


def tenths(x: Tensor | float) -> str:
    return f"{round(float(x), 1) + 0.0:.1f}"  # + 0.0: of -0.04, 0.0 and not -0.0


def cell(values: Iterable[float | None]) -> str:
    """Return mean and standard deviation; of a single value that value; "" if one is missing."""
    found = list(values)
    if not found or None in found:
        return ""
    x = torch.tensor(found, dtype=torch.float64)
    return tenths(x.mean()) + (f" ± {tenths(x.std())}" if len(x) > 1 else "")


def best_of_theirs(results: dict[str, Any], time_steps: int) -> dict[str, float] | None:
    """Return the accuracies of SpikingJelly's best recipe on the validation images; None if every recipe refuses."""
    found = [x for key, x in results.items() if key.startswith("SpikingJelly, ")]
    if found and all("refuses" in x for x in found):
        return None
    able = [x[str(time_steps)] for x in found if str(time_steps) in x]
    return max(able, key=lambda x: x["validation"], default={})


def conversion_table(
    results: dict[str, list[dict[str, Any]]], settings: list[Setting], steps: list[int], with_peers: bool
) -> Iterator[str]:
    """Lines of the table; ``results``: for each network, a dictionary for each seed."""
    yield "| network | converted with | " + " | ".join(f"T = {T}" for T in steps) + " |"
    yield "|---|---" + "|---" * len(steps) + "|"
    for name, runs in results.items():
        title = f"{NETWORKS[name][0]} ({cell(run['ANN']['test'] for run in runs)})"
        for setting in settings:
            keys = [f"{setting.row}, T = {T}" for T in steps]
            cells = [cell(run.get(key, {}).get("test") for run in runs) for key in keys]
            yield f"| {title} | `{setting.row}` | {' | '.join(cells)} |"
            title = ""
        if not with_peers:
            continue
        cells = []
        for T in steps:
            found = [best_of_theirs(run, T) for run in runs]
            cells.append("refuses" if None in found else cell(x.get("test") for x in found if x is not None))
        given = cell(run.get(WITHOUT_BOUNDS, {}).get("test") for run in runs)
        label = "SpikingJelly's best recipe" + (f", ReLU in place of ReLU6 ({given})" if given else "")
        yield f"|  | {label} | {' | '.join(cells)} |"


def behind_table(results: dict[str, list[dict[str, Any]]], steps: list[int]) -> Iterator[str]:
    """Lines of a table of points behind the ANN on the test images: convert by default, and SpikingJelly's best recipe.

    The last line has the means over the networks.
    """
    sides: dict[str, Callable[[dict[str, Any], int], dict[str, float] | None]] = {
        "`convert`": lambda run, T: run.get(f"{BEST.row}, T = {T}", {}),
        "SpikingJelly": best_of_theirs,
    }
    lost: dict[tuple[str, int], list[float | None]] = {(who, T): [] for who in sides for T in steps if BEST.takes(T)}
    yield "| network (ANN) | " + " | ".join(f"{who}, T = {T}" for who, T in lost) + " |"
    yield "|---" * (len(lost) + 1) + "|"
    for name, runs in results.items():
        cells = []
        for (who, T), means in lost.items():
            found = [sides[who](run, T) for run in runs]
            points = [run["ANN"]["test"] - x["test"] if x else None for run, x in zip(runs, found, strict=True)]
            cells.append("refuses" if None in found else cell(points))
            means.append(None if None in points else sum(points) / len(points))
        yield f"| {NETWORKS[name][0]} ({cell(run['ANN']['test'] for run in runs)}) | {' | '.join(cells)} |"
    yield f"| mean | {' | '.join('' if None in x else tenths(sum(x) / len(x)) for x in lost.values())} |"


def choice_table(results: dict[str, list[dict[str, Any]]], settings: list[Setting], steps: list[int]) -> Iterator[str]:
    """Lines of a table of validation accuracies lost in conversion, means over networks and seeds.

    The last column says by how much a setting loses more than the best one, at the network and T where this is worst.
    """
    yield "| converted with | " + " | ".join(f"lost, T = {T}" for T in steps) + " | behind the best |"
    yield "|---" * (len(steps) + 2) + "|"
    lost = {
        (name, setting, T): sum(run["ANN"]["validation"] - run[f"{setting.row}, T = {T}"]["validation"] for run in runs)
        / len(runs)
        for name, runs in results.items()
        for setting in settings
        for T in steps
        if setting.takes(T)
    }
    least = {
        (name, T): min(lost[name, setting, T] for setting in settings if setting.takes(T))
        for name in results
        for T in steps
    }
    for setting in settings:
        able = [T for T in steps if setting.takes(T)]
        cells = {T: f"{sum(lost[name, setting, T] for name in results) / len(results):.1f}" for T in able}
        worst = max(lost[name, setting, T] - least[name, T] for name in results for T in able)
        yield f"| `{setting.row}` | {' | '.join(cells.get(T, '') for T in steps)} | {worst:.1f} |"


def default_table(results: dict[str, list[dict[str, Any]]], steps: list[int]) -> Iterator[str]:
    """Lines of a table of the best setting: how often SNN and ANN give the same class, and the time of convert."""
    yield f"| `{BEST.row}` | " + " | ".join(f"same class, T = {T}" for T in steps) + " | convert, processor seconds |"
    yield "|---" * (len(steps) + 2) + "|"
    for name, runs in results.items():
        found = {T: [run.get(f"{BEST.row}, T = {T}", {}) for run in runs] for T in steps}
        cells = [cell(x.get("agreement") for x in found[T]) for T in steps]
        cells.append(cell(x.get("processor seconds") for T in steps for x in found[T]))
        yield f"| {NETWORKS[name][0]} | {' | '.join(cells)} |"


def fine_tuning_table(results: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Lines of the table of training after conversion, with the learning rate that is best on the validation images."""
    T = TUNED_STEPS
    yield "| network | converted with | SNN before | SNN after | ANN before | ANN after |"
    yield "|---|---|---|---|---|---|"
    for name, runs in results.items():
        title = NETWORKS[name][0]
        for setting in (Setting(PLAIN), BEST):
            before = [run.get(f"{setting.row}, T = {T}", {}) for run in runs]
            keys = [tuned_key(setting, rate) for rate in TUNED_RATES]
            after = [
                max((run[key] for key in keys if key in run), key=lambda x: x["validation"], default={}) for run in runs
            ]
            cells = [cell(x.get("test") for x in before), cell(x.get("test") for x in after)]
            cells += [cell(run["ANN"]["test"] for run in runs), cell(x.get("ANN") for x in after)]
            yield f"| {title} | `{setting.row}` | {' | '.join(cells)} |"
            title = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="folder of CIFAR-10, or with train/CLASS/*.jpg and test/CLASS/*")
    add("--runs", type=Path, required=True, help="folder that keeps trained ANNs and results")
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--time-steps", nargs="+", type=int, default=[2, 3, 4, 8, 16])
    add("--seeds", nargs="+", type=int, default=[0], help="of the ANNs' training; means are printed")
    add("--threads", type=int, default=1)
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--default-alone", action="store_true", help="no settings but the default ones of convert")
    number.add_argument("--more-settings", action="store_true", help="each combination of arguments, too")
    add("--without-peers", action="store_true")
    add("--fine-tune", action="store_true", help=f"train further after conversion, at T = {TUNED_STEPS}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.without_peers:
        peers.require("spikingjelly")
    (images, labels), what = load(options.data_dir, True, TRAINING + VALIDATION)
    data = {"training": (images[:TRAINING], labels[:TRAINING]), "validation": (images[TRAINING:], labels[TRAINING:])}
    data["test"], _ = load(options.data_dir, False, TEST)
    print(describe(), what, sep="\n", flush=True)
    steps = sorted(options.time_steps)
    settings = [BEST] if options.default_alone else SETTINGS + (MORE_SETTINGS if options.more_settings else [])
    options.runs.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.networks}
    for seed in options.seeds:
        for name in options.networks:
            run = Run(name, seed, options.runs, data, what)
            results[name].append(run.results)
            for setting in settings:
                for T in filter(setting.takes, steps):
                    run.measure(f"{setting.row}, T = {T}", run.ours, setting, T)
            if not options.without_peers:
                if any(isinstance(module, nn.ReLU6) for module in run.ann.modules()):
                    run.measure(WITHOUT_BOUNDS, run.accuracies, without_bounds(run.ann))
                for label, recipe in recipes(data["training"][0], run.sample).items():
                    run.measure(f"SpikingJelly, {label}, T = {steps}", run.theirs, recipe, steps)
            if options.fine_tune:
                for setting in (Setting(PLAIN), BEST):
                    for rate in TUNED_RATES:
                        run.measure(tuned_key(setting, rate), run.fine_tuned, setting, rate)
    tables = [
        choice_table(results, settings, steps),
        conversion_table(results, settings, steps, not options.without_peers),
        default_table(results, steps),
    ]
    tables += [] if options.without_peers else [behind_table(results, steps)]
    tables += [fine_tuning_table(results)] if options.fine_tune else []
    for table in tables:
        print("", *table, sep="\n")


if __name__ == "__main__":
    main()
