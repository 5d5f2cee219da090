"""python -m tests.strangers [NETWORK ...]: how far each network gets."""

import argparse
import math
import sys
import warnings

import torch

from . import NETWORKS
from .steps import NEEDS, Walk, walk

HEAD = "network              converts   error  samples  trains  freezes  file  export  seconds"
ROW = "{:20} {:>8} {:>7} {:>8}  {:>6}  {:>7}  {:>4}  {:>6}  {:7.2f}"


def row(name: str, walked: Walk) -> str:
    """A line of the table. At its end stands the first failure: its message's first line, and the second behind ":"."""
    marks = {step: "no" if step in walked.failures else "yes" for step in NEEDS}
    errors = ["-" if math.isnan(error) else f"{error:.4f}" for error in (walked.error, walked.sample_error)]
    steps = [marks[step] for step in ("trains", "freezes", "file", "export")]
    line = ROW.format(name, marks["converts"], *errors, *steps, walked.seconds)
    for step, failure in walked.failures.items():
        lines = [text.strip() for text in str(failure).strip().splitlines()]
        message = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
        return f"{line}  {step}: {type(failure).__name__}: {message}"
    return line


def totals(walks: list[Walk]) -> str:
    passed = {step: sum(step not in walked.failures for walked in walks) for step in NEEDS}
    converts, close, *steps = passed.values()
    line = ROW.format(f"{len(walks)} networks", converts, close, "", *steps, sum(walked.seconds for walked in walks))
    return f"{line}  {sum(not walked.failures for walked in walks)} pass every step"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.strangers",
        description="How far each network gets. Column error: of the outputs, relative to them; samples: relative to "
        "the difference between outputs for other inputs. Totals count the networks that pass.",
    )
    parser.add_argument("names", nargs="*", choices=[*NETWORKS, []], metavar="NETWORK", help="default all")
    names = parser.parse_args().names or [*NETWORKS]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(HEAD)
    for name in names:
        print(row(name, walk(name)), flush=True)
    walks = [walk(name) for name in names]
    print(totals(walks))
    return int(any(walked.failures for walked in walks))


if __name__ == "__main__":
    sys.exit(main())
