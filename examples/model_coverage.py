"""Convert networks drawn from torchvision and timm, and write docs/coverage.md's table.

    python examples/model_coverage.py                          # the draw of the page: a few hours
    python examples/model_coverage.py --count 12               # fewer networks on the page
    python examples/model_coverage.py --seed 7                 # another draw; leaves the page as it is
    python examples/model_coverage.py --only resnet18 vgg11    # some networks by name; leaves the page as it is

A draw takes a network of each family in both libraries, with random weights: nothing is downloaded. Each one is
converted by the plain call, ``convert(ann, 8, calibrate=images)``, compared with its ANN on other images, and frozen.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import math
import random
import re
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tandem_cuda import TandemNetwork, convert, freeze

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"
BEGIN, END = "<!-- begin: written by examples/model_coverage.py -->", "<!-- end -->"
HEADER = ("network", "converts", "error", "MACs of spikes", "seconds", "freezes", "why not")
SEED = 13
CLASSES, BATCH, TIME_STEPS = 10, 8, 8
SIZES = (64, 96, 128, 224, 256, 299, 384)
"""Of images: the first that a network takes."""
MOST_PARAMETERS = 12_000_000
"""Larger networks of a family are not drawn, unless it has no others."""
DONE, FAILED, LEFT_OUT = "yes", "no", "-"


class CoverageError(Exception):
    """A message of one line."""


@dataclass(frozen=True)
class Network:
    """A network of a library."""

    library: str
    name: str

    @property
    def title(self) -> str:
        return f"{self.library} {self.name}"

    def make(self) -> nn.Module:
        module = imported(self.library)
        if self.library == "timm":
            return module.create_model(self.name, pretrained=False, num_classes=CLASSES)
        options: dict[str, Any] = {"weights": None, "num_classes": CLASSES}
        if self.name in module.models.list_models(module=module.models.segmentation):
            options["weights_backbone"] = None
        elif self.name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # which would take a minute
        return module.models.get_model(self.name, **options)


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


# ---------------------------------------------------------------------------------------------------------------------
# The draw
# ---------------------------------------------------------------------------------------------------------------------


def families() -> dict[str, list[Network]]:
    """Return all networks, by library and family."""
    timm, models = imported("timm"), imported("torchvision").models
    found = {
        f"timm {family}": [Network("timm", name) for name in timm.list_models(module=family, exclude_filters="test_*")]
        for family in timm.list_modules()
    }
    for name in models.list_models(module=models) + models.list_models(module=models.segmentation):
        family = models.get_model_builder(name).__module__.rpartition(".")[2]
        found.setdefault(f"torchvision {family}", []).append(Network("torchvision", name))
    return {family: networks for family, networks in found.items() if networks}


def drawn(seed: int, count: int) -> list[Network]:
    """Draw networks of different families, as many as there are families at most."""
    rng, known = random.Random(seed), families()
    chosen = [_one_of(rng, known[family]) for family in rng.sample(sorted(known), min(count, len(known)))]
    return sorted(chosen, key=lambda network: network.title)


def _one_of(rng: random.Random, family: Sequence[Network]) -> Network:
    shuffled = rng.sample(family, len(family))
    return next((network for network in shuffled if parameters(network) <= MOST_PARAMETERS), None) or min(
        shuffled, key=parameters
    )


@lru_cache(None)
def parameters(network: Network) -> int:
    """Return the number of parameters, without memory for them if possible."""
    try:
        with torch.device("meta"):
            made = network.make()
    except NotImplementedError:  # its constructor computes with tensors
        made = network.make()
    return sum(x.numel() for x in made.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# What a network can do
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What a network can do: "yes", "no", or "-" where that was not tried."""

    converts: str = LEFT_OUT
    error: float = math.nan
    """Of the outputs, relative to the ANN's."""
    spiking_macs: float = math.nan
    """The share of the multiply-accumulates that spikes carry."""
    seconds: float = math.nan
    """The time of the conversion."""
    freezes: str = LEFT_OUT
    reason: str = ""

    def row(self, network: Network) -> list[str]:
        numbers = f"{self.error:.3f}", f"{self.spiking_macs:.0%}", f"{self.seconds:.1f}"
        words = ["" if "nan" in number else number for number in numbers]
        return [network.title, self.converts, *words, self.freezes, self.reason]


def images(ann: nn.Module, seed: int = 0) -> Tensor:
    """Return random images of the first size that a network takes in training, with its auxiliary heads.

    Raises:
        ValueError: it takes none.
    """
    generator = torch.Generator().manual_seed(seed)
    for size in SIZES:
        x = torch.randn(BATCH, 3, size, size, generator=generator)
        try:
            with torch.no_grad():
                ann.train()(x)
        except (RuntimeError, AssertionError, ValueError):  # too small for its pooling, or of another size
            continue
        return x
    raise ValueError(f"it takes no images of {', '.join(map(str, SIZES))} pixels")


def check(network: Network) -> Result:
    """Convert a network with random weights, and try what can be done with it."""
    torch.manual_seed(0)
    ann, result = network.make(), Result()
    snn = tried(result, "converts", lambda: converted(ann, result))
    if snn is not None:
        tried(result, "freezes", lambda: compare(*snn))
    return result


def converted(ann: nn.Module, result: Result) -> tuple[TandemNetwork, Tensor]:
    """Convert by the plain call, and compare with the ANN on other images."""
    x = images(ann)
    prepare(ann, x)
    start = time.perf_counter()
    try:
        snn = convert(ann, TIME_STEPS, calibrate=x)
    finally:
        result.seconds = time.perf_counter() - start
    others = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want, got = (torch.cat([y.flatten() for y in tree_leaves(net(others))]) for net in (ann, snn))
    result.error = float((got - want).norm() / want.norm())
    result.spiking_macs = snn.report().spiking_macs
    return snn, others


def prepare(ann: nn.Module, x: Tensor) -> None:
    """Set batch norm as after some training, with statistics of a batch; initialise weights of only zeros anew."""
    norms = [module for module in ann.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        if norm.affine and not norm.weight.any():
            nn.init.ones_(norm.weight)
    for module in ann.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and not module.weight.any():
            module.reset_parameters()
    ann.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        ann(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def tried(result: Result, name: str, act: Callable[[], Any]) -> Any:
    """Note in a result whether something works, and if not, why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = act()
    except CoverageError:
        raise
    except Exception as error:
        if not isinstance(error, (ValueError, TypeError)):  # a defect, which the table must not hide
            traceback.print_exc()
        setattr(result, name, FAILED)
        first = (str(error).splitlines() or [""])[0]
        result.reason = first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"
        return None
    setattr(result, name, DONE)
    return done


def compare(snn: TandemNetwork, x: Tensor) -> None:
    """Freeze, and compare with the network."""
    frozen = freeze(snn)
    with torch.no_grad():
        pairs = zip(tree_leaves(snn(x)), tree_leaves(frozen(x)), strict=True)
    if differ := [(one - other).abs().max() for one, other in pairs if not torch.equal(one, other)]:
        raise ValueError(f"the frozen network differs by {max(differ):.1e}")


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def split(row: str) -> list[str]:
    """Return the cells of a row of a table."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]]


def known(page: str) -> Iterator[list[str]]:
    """Return the rows of a page's table of networks."""
    for line in page.partition(BEGIN)[2].partition(END)[0].splitlines():
        if line.startswith(("| timm ", "| torchvision ")):
            yield split(line)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "0"


def summary(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return sentences on how many of the networks can do what."""
    done = [row for row in rows if row[1] == DONE]
    errors, times = (sorted(float(row[i]) for row in done) for i in (2, 4))
    if not done:
        return [f"Convert by the plain call: {share(0, len(rows))}."]
    spiking = [float(row[3].rstrip("%")) for row in done]
    return [
        f"Convert by the plain call: {share(len(done), len(rows))}.",
        f"Relative error of the outputs: {statistics.median(errors):.3f} in the median, {errors[-1]:.3f} at most.",
        f"Spikes carry at least 90% of the multiply-accumulates: {share(sum(p >= 90 for p in spiking), len(done))}.",
        f"Freeze to the bit: {share(sum(row[5] == DONE for row in done), len(done))}.",
        f"Conversion takes {statistics.median(times):.1f} s in the median, {times[-1]:.0f} s at most.",
    ]


def write_page(path: Path, rows: Sequence[Sequence[str]], seed: int) -> None:
    """Replace the page's tables."""
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise CoverageError(f"{path} has no lines '{BEGIN}' and '{END}' to write between.")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision", "timm"))
    sentences = [f"- {sentence}" for sentence in summary(rows)]
    parts = [
        f"Seed {seed}, {len(rows)} of {len(families())} families; T = {TIME_STEPS}, {BATCH} images; {versions}; "
        f"{torch.get_num_threads()} threads.",
        "\n".join(sentences),
        "\n".join(table(HEADER, rows)),
    ]
    path.write_text("\n\n".join([before + BEGIN, *parts, END + after]))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the draw (default: {SEED}, the page's)")
    parser.add_argument("--count", type=int, help="the number of networks (default: one of each family)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="networks of these names instead")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    return parser.parse_args(argv)


def chosen_by(args: argparse.Namespace) -> list[Network]:
    every = families()
    if args.only is None:
        return drawn(args.seed, len(every) if args.count is None else args.count)
    found = [network for family in every.values() for network in family if network.name in args.only]
    if missing := {*args.only} - {network.name for network in found}:
        raise CoverageError(f"--only must name networks of torchvision or timm, got {', '.join(sorted(missing))}.")
    return found


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    chosen, rows = chosen_by(args), []
    for i, network in enumerate(chosen, 1):
        start = time.perf_counter()
        rows.append(check(network).row(network))
        words = " ".join(rows[-1][1:6])
        seconds = time.perf_counter() - start
        print(f"{i}/{len(chosen)} {network.title} ({seconds:.0f} s): {words} {rows[-1][6]}", flush=True)
        gc.collect()
        if args.only is None and args.seed == SEED:
            write_page(PAGE, rows, args.seed)  # whose first rows stand if the rest is interrupted
    print("\n".join(summary(rows)))


def main(argv: Sequence[str] | None = None) -> None:
    try:
        run(arguments(argv))
    except CoverageError as error:
        raise SystemExit(f"examples/model_coverage.py: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("examples/model_coverage.py: interrupted") from None


if __name__ == "__main__":
    main(sys.argv[1:])
