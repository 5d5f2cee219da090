"""Convert networks drawn from torchvision and timm, and write docs/coverage.md's table.

    python examples/model_coverage.py                          # the draw of the page: a quarter of an hour
    python examples/model_coverage.py --count 12               # fewer networks on the page
    python examples/model_coverage.py --seed 7                 # another draw; leaves the page as it is
    python examples/model_coverage.py --only resnet18 vgg11    # some networks by name; leaves the page as it is

A draw takes a network of each family of convolutional networks in both libraries, with random weights: nothing is
downloaded. Each one is converted by the plain call, ``convert(ann, 8, calibrate=images)``. If that is refused, it is
converted once more with the arguments that the message names, and nothing else. Then it takes one step of training by
the tandem rule, is frozen, and is exported to NIR with IF neurons.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import math
import random
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tandem_cuda import IF, TandemNetwork, convert, freeze

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"
BEGIN, END = "<!-- begin: written by examples/model_coverage.py -->", "<!-- end -->"
HEADER = ("network", "call", "converts", "seconds", "trains", "freezes", "NIR", "stopped by")
SEED = 13
CLASSES, BATCH, TIME_STEPS = 10, 8, 8
SIZES = (64, 96, 128, 224, 299)
"""Of images: the first that a network takes."""
MOST_PARAMETERS = 12_000_000
"""Larger networks of a family are not drawn, unless it has no others."""
# The momentum of batch norm, as docs/convert.md advises: spikes are computed with the statistics of the batch in
# training, and with the running statistics in eval mode.
MOMENTUM = 0.9
LARGEST = 1000
"""The largest gradient of the spiking network may be this many times the ANN's."""
DONE, FAILED, LEFT_OUT = "yes", "no", "-"

CONVOLUTIONAL = """
    byobnet convmixer convnext cspnet cspnext densenet dla dpn efficientnet fasternet ghostnet hardcorenas hgnet hrnet
    inception_next inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mambaout mobilenetv3 nasnet nfnet pnasnet rdnet
    regnet repghost repvit res2net resnest resnet resnetv2 rexnet selecsls senet sknet starnet tresnet vgg vovnet
    xception xception_aligned
"""
"""Modules of timm with convolutional networks alone."""
IMPOSSIBLE = {
    "native_layer_norm": "layer norm",
    "native_group_norm": "group norm",
    "linalg_vector_norm": "response norm",
    "_softmax": "attention",
}
"""By operator of torch: what depends on the spikes of each input, so that no network of neurons computes it."""


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
    """Return all convolutional networks, by library and family."""
    timm, models = imported("timm"), imported("torchvision").models
    found = {
        f"timm {family}": [Network("timm", name) for name in timm.list_models(module=family, exclude_filters="test_*")]
        for family in CONVOLUTIONAL.split()
    }
    for name in models.list_models(module=models) + models.list_models(module=models.segmentation):
        family = models.get_model_builder(name).__module__.rpartition(".")[2]
        if not re.search("transformer|maxvit", family):
            found.setdefault(f"torchvision {family}", []).append(Network("torchvision", name))
    return found


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

    call: dict[str, Any] = field(default_factory=dict)
    """The arguments that the message of the plain call named."""
    converts: str = LEFT_OUT
    seconds: float = math.nan
    """The time of the conversion."""
    trains: str = LEFT_OUT
    freezes: str = LEFT_OUT
    exports: str = LEFT_OUT
    reasons: list[str] = field(default_factory=list)

    def row(self, network: Network) -> list[str]:
        why = "; ".join(dict.fromkeys(map(stopped_by, self.reasons)))
        seconds = "" if math.isnan(self.seconds) else f"{self.seconds:.1f}"
        words = self.converts, seconds, self.trains, self.freezes, self.exports
        return [network.title, written(self.call), *words, why]


class NotTrainable(Exception):
    """Why a step of training cannot be taken."""


def images(ann: nn.Module, seed: int = 0) -> Tensor:
    """Return random images of the first size that a network takes, with its auxiliary heads."""
    generator = torch.Generator().manual_seed(seed)
    for size in SIZES:
        x = torch.randn(BATCH, 3, size, size, generator=generator)
        try:
            with torch.no_grad():
                ann.train()(x)
        except (RuntimeError, AssertionError, ValueError):  # too small for its pooling, or of another size
            if size == SIZES[-1]:
                raise
            continue
        return x
    raise AssertionError


class _Seeing(TorchDispatchMode):
    """Notes which operators of IMPOSSIBLE run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in IMPOSSIBLE or name.startswith("_scaled_dot_product"):
            self.found.add(IMPOSSIBLE.get(name, "attention"))
        return function(*args, **(kwargs or {}))


def impossible(ann: nn.Module, x: Tensor) -> list[str]:
    """Return what a network does that no network of neurons can do, in words."""
    with torch.no_grad(), _Seeing() as seeing:
        ann.eval()(x[:1])
    return sorted(seeing.found)


def check(network: Network) -> Result:
    """Convert a network with random weights, and try what can be done with it."""
    torch.manual_seed(0)
    ann, result = network.make(), Result()
    x = images(ann)
    prepare(ann, x)
    before = largest_gradient(ann.train(), x)
    prepare(ann, x)
    snn = converted(ann, x, result)
    if snn is None:
        result.reasons[:0] = impossible(ann, x)
        return result
    tried(result, "trains", lambda: train(snn, x, before))
    snn.eval()
    tried(result, "freezes", lambda: compare(snn, x))
    how = {name: value for name, value in result.call.items() if name != "replace"}  # that has changed the ANN
    tried(result, "exports", lambda: exporter()(convert(ann, TIME_STEPS, calibrate=x, neuron=IF(), **how), x[:1]))
    return result


def converted(ann: nn.Module, x: Tensor, result: Result) -> TandemNetwork | None:
    """Convert by the plain call, or with what its message names. Only the last refusal is noted."""
    for last in (False, True):
        snn = tried(result, "converts", lambda: timed(result, ann, x))
        if snn is not None or last or not (named := advised(result.reasons)):
            return snn
        result.call, result.reasons = named, []
    raise AssertionError


def timed(result: Result, ann: nn.Module, x: Tensor) -> TandemNetwork:
    start = time.perf_counter()
    try:
        return convert(ann, TIME_STEPS, calibrate=x, **result.call)
    finally:
        result.seconds = time.perf_counter() - start


def advised(reasons: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of ``convert`` that its message names."""
    message = "\n".join(reasons)
    found: dict[str, Any] = {"gates": "analogue"} if "pass gates='analogue'" in message else {}
    if pairs := re.findall(r"replace=\{([\w.']+): ([\w.]+)\}", message):
        found["replace"] = {named(old): named(new) for old, new in pairs}
    return found


def named(path: str) -> Any:
    """Return what a message names: ``'silu'``, ``nn.SiLU``, or the full name of a class."""
    if path.startswith("'"):
        return path.strip("'")
    module, _, name = path.rpartition(".")
    short = {"nn": nn, "F": nn.functional, "torch": torch}
    return getattr(short.get(module) or importlib.import_module(module), name)


def written(call: Mapping[str, Any]) -> str:
    """Return the arguments of a call in words, for the table."""
    words = ["gates"] * ("gates" in call)
    pairs = call.get("replace", {}).items()
    words += [f"{getattr(old, '__name__', old)} replaced by {new.__name__}" for old, new in pairs]
    return ", ".join(words) or "plain"


def prepare(ann: nn.Module, x: Tensor) -> None:
    """Set batch norm as after some training: statistics of a batch, its momentum, and no weights of only zeros."""
    norms = [module for module in ann.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        if norm.affine and not norm.weight.any():
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
    """Return the largest norm of a parameter's gradient of a loss on some images.

    Raises:
        NotTrainable: the loss or a gradient is not finite, or a parameter has none.
    """
    outputs = [out for out in tree_leaves(network(x)) if isinstance(out, Tensor)]
    classes = torch.arange(BATCH) % CLASSES
    targets = [classes.view(-1, *[1] * (out.dim() - 2)).expand(BATCH, *out.shape[2:]) for out in outputs]
    loss: Any = sum(map(nn.functional.cross_entropy, outputs, targets))
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
        pairs = zip(tree_leaves(snn(x)), tree_leaves(frozen(x)), strict=True)
    if differ := [(one - other).abs().max() for one, other in pairs if not torch.equal(one, other)]:
        raise ValueError(f"the frozen network differs by {max(differ):.1e}")


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
    """Return the rows of a page's table of networks."""
    for line in page.partition(BEGIN)[2].partition(END)[0].splitlines():
        if line.startswith(("| timm ", "| torchvision ")):
            yield split(line)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def cannot(row: Sequence[str]) -> bool:
    """Whether no network of neurons computes what a network does, as far as this can be told from its operators."""
    return row[2] == FAILED and any(part in row[7].split("; ") for part in {*IMPOSSIBLE.values()})


def share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "0"


def summary(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return sentences on how many of the networks can do what."""
    done = [row for row in rows if row[2] == DONE]
    plain = [row for row in done if row[1] == "plain"]
    could = [row for row in rows if not cannot(row)]
    times = sorted(float(row[3]) for row in done)
    return [
        f"Of {len(rows)} networks, {len(could)} could convert; {len(rows) - len(could)} have norms or attention whose "
        "factors depend on each input.",
        f"Of those, {share(len(plain), len(could))} convert by the plain call, and {share(len(done), len(could))} by "
        "that or with the arguments that its message names.",
        *(
            f"{verb}: {share(sum(row[i] == DONE for row in done), len(done))} of the networks that convert."
            for verb, i in (("Train", 4), ("Freeze to the bit", 5), ("Export to NIR", 6))
        ),
        f"Conversion takes less than 2 s for {share(sum(t < 2 for t in times), len(times))} of them.",
    ]


def causes(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return what stops conversion, and how many networks, the most frequent first."""
    found = Counter(part for row in rows if row[2] == FAILED for part in row[7].split("; "))
    return [[part, str(number)] for part, number in sorted(found.items(), key=lambda item: (-item[1], item[0]))]


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
        f"Seed {seed}, {len(rows)} families; T = {TIME_STEPS}, {BATCH} images; {versions}; {torch.get_num_threads()} "
        "threads.",
        "\n".join(sentences),
        "\n".join(table(("what stops conversion", "networks"), causes(rows))),
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
    exporter()
    chosen, rows = chosen_by(args), []
    for i, network in enumerate(chosen, 1):
        start = time.perf_counter()
        rows.append(check(network).row(network))
        words = " ".join(rows[-1][1:7])
        seconds = time.perf_counter() - start
        print(f"{i}/{len(chosen)} {network.title} ({seconds:.0f} s): {words} {rows[-1][7]}", flush=True)
        gc.collect()
    print("\n".join(summary(rows)))
    if args.only is None and args.seed == SEED:
        write_page(PAGE, rows, args.seed)
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
