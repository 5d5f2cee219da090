"""python -m tests.fuzz [KIND ...] [--minutes N] [--workers N] [--seed SEED]"""

import argparse
import os
import sys
import traceback

from .runner import DIFFERENTIAL, KINDS, MUTATORS, RADIX, Run, run_case, seed_of_the_day, work


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=sys.modules[__package__].__doc__)
    parser.add_argument(
        "kinds", nargs="*", choices=[*KINDS, []], metavar="KIND", help=f"of {', '.join(KINDS)}; default all"
    )
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; default one a core")
    parser.add_argument("--seed", type=int, help="run this case alone, and say all about it")
    parser.add_argument("--first", type=int, help="seed of the first case; default one of today's date")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)  # what the parent starts
    arguments = parser.parse_args()
    kinds = arguments.kinds or [*DIFFERENTIAL, *RADIX, *MUTATORS]
    if arguments.worker:
        first, stride, seconds = arguments.worker
        work(kinds, int(first), int(stride), float(seconds))
        return 0
    if arguments.seed is not None:
        return one(kinds, arguments.seed)
    run = Run(
        kinds, arguments.minutes, arguments.workers, seed_of_the_day() if arguments.first is None else arguments.first
    )
    print(f"fuzz: {arguments.minutes:g} minutes, {arguments.workers} processes, seed {run.seed}", flush=True)
    print(run.run().summary())
    return 1 if run.failures else 0


def one(kinds, seed):
    failed = False
    for kind in dict.fromkeys(kinds):
        error, notes = run_case(kind, seed)
        print(f"{kind} {seed}: {'passes' if error is None else 'FAILS'}")
        for name, value in notes.items():
            print(f"  {name}: {value}")
        if error is not None:
            failed = True
            traceback.print_exception(error)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
