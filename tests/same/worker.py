"""What one of the two processes runs: the cases with one library."""

import argparse
import json
import random
import sys
import warnings
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library", type=Path, help="the folder that holds the package")
    parser.add_argument("folder", type=Path, help="where to write results")
    parser.add_argument("--kinds", nargs="+", required=True)
    parser.add_argument("--names", nargs="*", default=[], help="only these cases")
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.library)]
    sys.path[1] = str(TESTS)  # in place of this file's folder
    import torch

    import tandem_cuda

    if Path(tandem_cuda.__file__).resolve().parents[1] != arguments.library.resolve():
        raise SystemExit(f"same: tandem_cuda must come from {arguments.library}, got {tandem_cuda.__file__}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = {}
    for kind in arguments.kinds:
        results.update(run(kind, arguments.names))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "results.json").write_text(json.dumps(results))


def run(kind, only):
    import importlib

    import torch

    cases = importlib.import_module(f"same.{kind}")
    found = {}
    for name in [name for name in cases.names() if not only or name in only]:
        torch.manual_seed(0)
        random.seed(0)
        found[f"{kind}: {name}"] = cases.run(name)
    return found


if __name__ == "__main__":
    main()
