"""Convert networks of torchvision, timm and transformers, and write the table in docs/coverage.md.

    python examples/model_coverage.py                         # all networks: half an hour on two cores
    python examples/model_coverage.py --only resnet18 dla34   # some, by name; the other rows of the table stay
    python examples/model_coverage.py --quick                 # only convert; leave the page as it is

The networks have random weights: nothing is downloaded. Each one is converted and calibrated on a batch of random
images. Then it takes one step of training by the tandem rule, is frozen, and is exported to NIR. It "trains" if the
loss is finite, every parameter has a finite gradient, and none is more than 1000 times the ANN's largest. It "freezes"
if the frozen network computes the same.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import math
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tandem_cuda import IF, TandemNetwork, convert, freeze

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"
BEGIN, END = "<!-- begin: written by examples/model_coverage.py -->", "<!-- end -->"
HEADER = ("network", "with", "converts", "trains", "freezes", "NIR", "stopped by")
CLASSES, BATCH, SIZE, TIME_STEPS = 10, 8, 64, 8
# Counts are rounded, not rounded down. Otherwise all neurons of some channels are silent, and in training the batch
# norm behind them divides by almost nothing: gradients grow from layer to layer.
NEURON = IF(initial=0.5)
# The momentum of batch norm, as docs/convert.md advises: spikes are computed with the running statistics, gradients
# with the statistics of the batch. In deep networks, where the two drift apart, gradients grow, too.
MOMENTUM = 0.9
LARGEST = 1000
"""The largest gradient of the spiking network may be this many times the ANN's."""
DONE, FAILED, LEFT_OUT = "yes", "no", "-"


class CoverageError(Exception):
    """A message of one line."""


@dataclass(frozen=True)
class Network:
    """A network of a library, and how it is converted."""

    library: str
    name: str
    replace: dict[type[nn.Module], type[nn.Module]] = field(default_factory=dict)
    """Activations that have no spiking form, and what takes their place."""
    gates: str | None = None
    example: bool = False
    """Whether its control flow depends on sizes."""
    size: int = SIZE
    """Height and width of the images."""
    options: tuple[tuple[str, Any], ...] = ()
    """Arguments of its constructor."""

    @property
    def title(self) -> str:
        return f"{self.library} {self.name}"

    def make(self) -> nn.Module:
        module = imported(self.library)
        options = dict(self.options)
        if self.library == "timm":
            return module.create_model(self.name, pretrained=False, num_classes=CLASSES, **options)
        if self.library == "torchvision":
            return module.models.get_model(self.name, weights=None, num_classes=CLASSES, **options)
        config = getattr(module, f"{self.name}Config")(num_labels=CLASSES, **options)
        return Logits(getattr(module, f"{self.name}ForImageClassification")(config))

    def settings(self) -> str:
        """What the table says of arguments."""
        words = [f"{old.__name__} replaced by {new.__name__}" for old, new in self.replace.items()]
        words += ["gates"] * (self.gates is not None) + ["example"] * self.example
        words += [f"`{name}={value}`" for name, value in self.options if isinstance(value, bool)]
        return ", ".join(words + [f"{self.size} x {self.size}"] * (self.size != SIZE))


class Logits(nn.Module):
    """A model of transformers that returns its logits alone, as a frozen network and NIR need it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits


def imported(library: str) -> Any:
    """Import a library.

    Raises:
        CoverageError: it is missing or broken.
    """
    try:
        return importlib.import_module(library)
    except (ImportError, OSError) as error:  # OSError: a library that it needs does not fit
        raise CoverageError(
            f"{library} cannot be imported ({error}). Install the extra: pip install 'tandem_cuda[examples]'"
        ) from error


SILU, HARDSWISH, LEAKY = {nn.SiLU: nn.ReLU}, {nn.Hardswish: nn.ReLU}, {nn.LeakyReLU: nn.ReLU}
GATES = "analogue"
NO_HEADS = (("aux_logits", False), ("init_weights", False))  # auxiliary heads have outputs in training alone


def of(library: str, names: str, **how: Any) -> list[Network]:
    return [Network(library, name, **how) for name in names.split()]


NETWORKS = (
    *of("torchvision", "alexnet vgg11 vgg16_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121"),
    *of("torchvision", "googlenet", options=NO_HEADS),
    *of("torchvision", "inception_v3", options=NO_HEADS, size=96),
    *of("torchvision", "squeezenet1_0 squeezenet1_1 mobilenet_v2"),
    *of("torchvision", "mobilenet_v3_small mobilenet_v3_large", replace=HARDSWISH, gates=GATES),
    *of("torchvision", "shufflenet_v2_x1_0 mnasnet1_0 regnet_x_400mf"),
    *of("torchvision", "regnet_y_400mf", gates=GATES),
    *of("torchvision", "efficientnet_b0 efficientnet_v2_s", replace=SILU, gates=GATES),
    *of("torchvision", "convnext_tiny", replace={nn.GELU: nn.ReLU}),
    *of("torchvision", "vit_b_16", replace={nn.GELU: nn.ReLU}, options=(("image_size", SIZE),)),
    *of("timm", "resnet18 resnet50d"),
    *of("timm", "seresnet18 seresnext26d_32x4d", gates=GATES),
    *of("timm", "resnext50_32x4d res2net50_26w_4s resnetv2_50 skresnet18 regnetx_002"),
    *of("timm", "regnety_002", gates=GATES),
    *of("timm", "vgg11_bn", example=True),
    *of("timm", "densenet121"),
    *of("timm", "inception_v3 inception_v4 inception_resnet_v2", size=96),
    *of("timm", "xception41 mobilenetv1_100 mobilenetv2_100"),
    *of("timm", "mobilenetv3_small_100", replace=HARDSWISH, gates=GATES),
    *of("timm", "mnasnet_100"),
    *of("timm", "semnasnet_100", gates=GATES),
    *of("timm", "convmixer_768_32"),
    *of("timm", "hardcorenas_a", replace=HARDSWISH, gates=GATES),
    *of("timm", "dla34 hrnet_w18_small repvgg_a0"),
    *of("timm", "ghostnet_100", gates=GATES),
    *of("timm", "tf_efficientnet_lite0", example=True),
    *of("timm", "fbnetc_100 spnasnet_100"),
    *of("timm", "darknet53 cspdarknet53", replace=LEAKY),
    *of("timm", "ese_vovnet19b_dw", gates=GATES),
    *of("timm", "selecsls42b dpn68 convnext_atto"),
    *of("transformers", "ResNet MobileNetV2", example=True),
)


@dataclass
class Result:
    """What a network can do: "yes", "no", or "-" where that was not tried."""

    converts: str = LEFT_OUT
    trains: str = LEFT_OUT
    freezes: str = LEFT_OUT
    exports: str = LEFT_OUT
    reasons: list[str] = field(default_factory=list)

    def row(self, network: Network) -> list[str]:
        why = "; ".join(dict.fromkeys(map(stopped_by, self.reasons)))
        return [network.title, network.settings(), self.converts, self.trains, self.freezes, self.exports, why]


class NotTrainable(Exception):
    """Why a step of training cannot be taken."""


def images(network: Network, seed: int = 0) -> Tensor:
    return torch.randn(BATCH, 3, network.size, network.size, generator=torch.Generator().manual_seed(seed))


def check(network: Network, quick: bool = False) -> Result:
    """Convert a network with random weights, and try what can be done with it."""
    torch.manual_seed(0)
    ann, x, result = network.make(), images(network), Result()
    prepare(ann, x)
    before = largest_gradient(ann.train(), x)
    prepare(ann, x)
    how: dict[str, Any] = {"gates": network.gates, "example": x if network.example else None}
    replace = network.replace or None
    snn = tried(
        *(result, "converts"),
        lambda: convert(ann, TIME_STEPS, neuron=NEURON, calibrate=x, replace=replace, **how),
    )
    if snn is None or quick:
        return result
    tried(result, "trains", lambda: train(snn, x, before))
    snn.eval()
    tried(result, "freezes", lambda: compare(snn, x))
    how |= {"neuron": IF(), "calibrate": snn.levels}  # NIR has no neurons that start at half their threshold
    tried(result, "exports", lambda: exporter()(convert(snn.ann(), TIME_STEPS, **how), x[:1]))
    return result


def prepare(ann: nn.Module, x: Tensor) -> None:
    """Set batch norm as after some training: statistics of a batch, its momentum, and no weights of only zeros."""
    norms = [module for module in ann.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        if not norm.weight.any():
            nn.init.ones_(norm.weight)
    ann.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        ann(x)
    for norm in norms:
        norm.eval().momentum = MOMENTUM


def tried(result: Result, name: str, act: Callable[[], Any]) -> Any:
    """Note in a result whether something works, and if not, why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = act()
    except CoverageError:
        raise
    except (ValueError, TypeError, NotTrainable) as error:
        setattr(result, name, FAILED)
        result.reasons += reasons(str(error))
        return None
    except Exception as error:  # a defect, which the table must not hide
        traceback.print_exc()
        setattr(result, name, FAILED)
        result.reasons.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return None
    setattr(result, name, DONE)
    return done


def reasons(message: str) -> list[str]:
    """Return the first line of each kind of problem, with the kind but not the name of a single module or call."""
    lines = message.splitlines()
    problems = [line.strip() for line in lines[1:] if re.match(r" {2}\S", line)] or lines[:1]
    problems = [re.sub(r"^(\S+) \((call_\w+|get_attr)\): ", r"\1: ", problem) for problem in problems]
    return list(dict.fromkeys(re.sub(r"^\S+ \((\w+)( in [^)]*)?\): ", r"\1: ", problem) for problem in problems))


def stopped_by(reason: str) -> str:
    """Return the part of the network that a reason is about; the page explains each part once."""
    part = re.match(r"(?:\d+ )?(?:\S+ \((\w+)\), branch \d+|([\w.]+)): ", reason)
    name = part and (part[1] or part[2])
    return name if name and not name.endswith("Error") else reason


def train(snn: TandemNetwork, x: Tensor, before: float) -> None:
    """Take one step of training, where the largest gradient of the ANN was ``before``.

    Raises:
        NotTrainable: the loss or a gradient is not finite, or far larger than the ANN's, or a parameter has none.
    """
    optimizer = torch.optim.SGD(snn.parameters(), lr=1e-3)
    optimizer.zero_grad()
    largest = largest_gradient(snn.train(), x)
    if not largest < LARGEST * before:
        raise NotTrainable(f"the largest gradient is {largest / before:.0e} times the ANN's")
    optimizer.step()


def largest_gradient(network: nn.Module, x: Tensor) -> float:
    """Return the largest norm of a parameter's gradient of the loss on some images.

    Raises:
        NotTrainable: the loss or a gradient is not finite, or a parameter has none.
    """
    loss = nn.functional.cross_entropy(network(x), torch.arange(BATCH) % CLASSES)
    if not math.isfinite(loss.item()):
        raise NotTrainable(f"the loss is {loss.item()}")
    loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    without = [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    if without:
        raise NotTrainable(f"{len(without)} parameters have no finite gradient, such as {without[0]}")
    return max(float(gradient.norm()) for gradient in gradients.values() if gradient is not None)


def compare(snn: TandemNetwork, x: Tensor) -> None:
    """Freeze, and compare with the network."""
    frozen = freeze(snn)
    with torch.no_grad():
        want, got = snn(x), frozen(x)
    if not torch.allclose(got, want, rtol=1e-3, atol=1e-4):
        raise ValueError(f"the frozen network differs by {(got - want).abs().max():.1e}")


def exporter() -> Callable[[TandemNetwork, Tensor], Any]:
    """Import ``to_nir``.

    Raises:
        CoverageError: nir is missing.
    """
    try:
        from tandem_cuda.exchange import to_nir
    except ImportError as error:
        raise CoverageError(f"{error}. Install the extra: pip install 'tandem_cuda[nir]'") from error
    return to_nir


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def split(row: str) -> list[str]:
    """Return the cells of a row of a table."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]]


def known(page: str) -> Iterator[list[str]]:
    """Return the rows that a page has already."""
    for line in page.partition(BEGIN)[2].partition(END)[0].splitlines():
        if line.startswith("|") and split(line)[:1] not in ([HEADER[0]], ["---"]):
            yield split(line)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    found = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (HEADER, *rows)]
    return [found[0], "|" + "---|" * len(HEADER), *found[1:]]


def summary(rows: Sequence[Sequence[str]]) -> str:
    """Return how many of the networks can do what."""
    done = [sum(row[i] == DONE for row in rows) for i in (2, 3, 4, 5)]
    verbs = ("convert", "train", "freeze", "export")
    words = [f"{n} {verb}{'s' if n == 1 else ''}" for n, verb in zip(done, verbs, strict=True)]
    return f"Of {len(rows)} networks, {', '.join(words[:3])} and {words[3]} to NIR."


def write_page(path: Path, new: dict[str, list[str]]) -> None:
    """Put rows into the page's table, in the order of NETWORKS."""
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise CoverageError(f"{path} has no lines '{BEGIN}' and '{END}' to write between.")
    rows = {row[0]: row for row in known(text)} | new
    ordered = [rows[network.title] for network in NETWORKS if network.title in rows]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "transformers"))
    lines = [
        f"{summary(ordered)} T = {TIME_STEPS}, `IF(initial=0.5)`, {BATCH} images of {SIZE} x {SIZE} unless said",
        f"otherwise; {versions}.",
    ]
    path.write_text("\n".join([before + BEGIN, "", *lines, "", *table(ordered), "", END + after]))


def version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted({network.name for network in NETWORKS})
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", help=f"only networks of these names: {', '.join(names)}"
    )
    parser.add_argument("--quick", action="store_true", help="only convert, and leave the page as it is")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    chosen = [network for network in NETWORKS if args.only is None or network.name in args.only]
    for library in dict.fromkeys(network.library for network in chosen):
        if library != "transformers":
            imported(library)  # before anything else takes its time
    if not args.quick:
        exporter()
    rows: dict[str, list[str]] = {}
    for i, network in enumerate(chosen, 1):
        start = time.perf_counter()
        try:
            row = check(network, args.quick).row(network)
        except CoverageError as error:
            if network.library != "transformers":
                raise
            print(f"{i}/{len(chosen)} {network.title}: left out, {error}", flush=True)
            continue
        rows[network.title] = row
        seconds = time.perf_counter() - start
        print(f"{i}/{len(chosen)} {network.title} ({seconds:.0f} s): {' '.join(row[2:6])} {row[6]}", flush=True)
        gc.collect()
    print(summary([*rows.values()]))
    if not args.quick:
        write_page(PAGE, rows)
        print(f"table: {PAGE}")


def main(argv: Sequence[str] | None = None) -> None:
    try:
        run(arguments(argv))
    except CoverageError as error:
        raise SystemExit(f"examples/model_coverage.py: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("examples/model_coverage.py: interrupted") from None


if __name__ == "__main__":
    main(sys.argv[1:])
