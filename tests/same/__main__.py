"""python -m tests.same --against REV [--kinds KIND ...] [--cases NAME ...]"""

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter

from .worker import TESTS

try:
    import tomllib
except ImportError:  # before Python 3.11
    import tomli as tomllib

ROOT = TESTS.parent
ROOM = ROOT / "build" / "same"
KINDS = ("operators", "layers", "networks", "messages")
BUILT = ("csrc", "CMakeLists.txt", "setup.py", "pyproject.toml")  # what the compiled library is made of
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}  # messages print sets
LISTED = 40  # differences that are printed


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def library_of(commit):
    """A folder with the package as it was in a commit; built unless its compiled library is that of the work tree."""
    folder = ROOM / "library" / commit
    if (folder / "tandem_cuda").is_dir():
        return folder
    source, unfinished = ROOM / "source", folder.with_suffix(".unfinished")
    for old in (source, unfinished):
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir(parents=True)
    archive = subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", source], stdin=archive.stdout, check=True)
    if archive.wait():
        raise SystemExit(f"same: git archive {commit} failed")
    if subprocess.run(["git", "diff", "--quiet", commit, "--", *BUILT], cwd=ROOT).returncode == 0:
        shutil.copytree(source / "tandem_cuda", unfinished / "tandem_cuda")
        for file in (ROOT / "tandem_cuda").glob("*.so"):
            shutil.copy(file, unfinished / "tandem_cuda")
    else:
        print(f"same: building the library of {commit[:10]}", flush=True)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
        subprocess.run([*pip, "-w", unfinished, source], check=True)
        (wheel,) = unfinished.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(unfinished)
    unfinished.rename(folder)
    shutil.rmtree(source)
    return folder


def start(library, folder, arguments):
    command = [sys.executable, TESTS / "same" / "worker.py", library, folder, "--kinds", *arguments.kinds]
    command += ["--names", *arguments.cases] if arguments.cases else []
    return subprocess.Popen([*map(str, command)], cwd=ROOM, env=os.environ | ENVIRONMENT)


def both(libraries, arguments):
    """Run the two processes side by side; returns what they found."""
    folders = [ROOM / "old", ROOM / "new"]
    processes = []
    for library, folder in zip(libraries, folders, strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        processes.append(start(library, folder, arguments))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("same: a process failed")
    return [json.loads((folder / "results.json").read_text()) for folder in folders]


def different(old, new):
    """(case, aspect, old, new) of everything that is not equal."""
    for case in {**old, **new}:
        before, after = old.get(case, {}), new.get(case, {})
        for aspect in {**before, **after}:
            if before.get(aspect) != after.get(aspect):
                yield case, aspect, before.get(aspect), after.get(aspect)


def matches(name, patterns):
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def listed():
    return tomllib.loads((TESTS / "same" / "differences.toml").read_text()).get("difference", [])


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.same", description=sys.modules[__package__].__doc__)
    parser.add_argument("--against", required=True, metavar="REV", help="the commit to compare with")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--cases", nargs="*", default=[], metavar="NAME", help="only these cases")
    arguments = parser.parse_args()
    libraries = library_of(git("rev-parse", "--verify", f"{arguments.against}^{{commit}}").strip()), ROOT
    old, new = both(libraries, arguments)
    return summary(new, list(different(old, new)))


def summary(new, found):
    """Print what was compared and what differs; returns the exit status."""
    entries, used, open_ = listed(), Counter(), []
    for case, aspect, before, after in found:
        reasons = [e for e in entries if matches(case, e["cases"]) and matches(aspect, e["aspects"])]
        used.update(e["reason"] for e in reasons[:1])
        open_ += [] if reasons else [(case, aspect, before, after)]
    for case, aspect, before, after in open_[:LISTED]:
        print(f"{case}, {aspect}:\n  old: {shortened(before)}\n  new: {shortened(after)}")
    if len(open_) > LISTED:
        print(f"and {len(open_) - LISTED} more")
    compared = sum(len(aspects) for aspects in new.values())
    print(f"same: {compared} values of {len(new)} cases: {len(found)} differ, {len(open_)} of them not listed")
    for entry in entries:
        print(f"  {used[entry['reason']]} {entry['reason']}")
    return 1 if open_ else 0


def shortened(text, most=300):
    return text if text is None or len(text) <= most else f"{text[:most]} ... ({len(text)} characters)"


if __name__ == "__main__":
    sys.exit(main())
