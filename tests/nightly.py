"""Runs the nightly tests: what finds faults seldom and builds much or takes long.

``python -m tests.nightly`` (``make nightly``) runs every group of them. If all pass and nothing is uncommitted, it
writes the commit to tests/nightly_passed. Commit that file, too.

``python -m tests.nightly --changed`` (``make test-changed``) runs the groups that guard a file that differs from that
commit, or from CI_BASE if the environment has it. Where git cannot tell, it runs every group that guards a file.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PASSED = "tests/nightly_passed"


class Group(NamedTuple):
    """Nightly tests that run together, and the files that they guard."""

    tests: str  # pytest's arguments; of these, it runs what is marked nightly
    # Patterns of files whose change can break the tests: ** is any text, * any without a slash. The tests' own files
    # are guarded, too. None: no file is guarded, and the group runs in `make nightly` alone.
    guards: str | None
    # Patterns of sources, as Path.glob takes them, that the tests compile. They are guarded, and all that they include.
    sources: str = ""


def named(file, tests):
    """Tests of a file by their names, as pytest takes them."""
    return "".join(f" {file}::test_{name}" for name in tests.split())


RESULTS_ON_THE_HOST = (
    "in_every_order whole_weights_of_many_shapes whole_weights_of_the_most_inputs products_of_the_cpu[plain-rand-8]"
    " products_of_the_cpu[plain-desc-1]"
    " size_of_packed_weights table_names_every_kernel values_of_radix_spikes[plain-rand-5]"
    " values_of_radix_spikes[plain-desc-1] environment_is_checked"
)
SANITIZED_ON_THE_HOST = (
    "under_sanitizers nothing_is_found_where_nothing_is_wrong seeded_bug_is_found"
    " products_of_the_cpu[asan-asc-1] products_of_the_cpu[tsan-asc-1]"
    " values_of_radix_spikes[asan-asc-1] values_of_radix_spikes[tsan-asc-1]"
)
ON_THE_HOST = "tests/cpp/cuda_host/*.cpp csrc/ops/*/*.cu"
GROUPS = {
    "address sanitizer": Group(
        "tests/test_sanitizers.py::test_every_operator[address]",
        "csrc/** CMakeLists.txt tests/fuzz/sanitize.py tests/test_operators.py tests/cases.py",
    ),
    "thread sanitizer": Group("tests/test_sanitizers.py::test_every_operator[thread]", None),
    "source distribution": Group("tests/test_build.py", "setup.py CMakeLists.txt pyproject.toml MANIFEST.in"),
    "aarch64": Group("tests/test_aarch64.py", "csrc/cpu/** csrc/**.isa.cpp csrc/**.h tests/cpp/*"),
    "CUDA resources": Group(
        "tests/test_cuda_resources.py",
        "tests/cuda_resources.toml tests/cpp/cuda_device/**",
        "csrc/ops/*/*.cu tests/cpp/cuda_device/*.cu",
    ),
    "CUDA kernels on the host": Group(
        named("tests/test_cuda_host.py", RESULTS_ON_THE_HOST),
        "csrc/cuda/** tests/cpp/*.h tests/cpp/cuda_host/** tests/host_programs.py tests/product_calls.py",
        ON_THE_HOST,
    ),
    "PTX on the host": Group(
        named("tests/test_cuda_ptx.py", "every_entry"),
        "csrc/cuda/** tests/cpp/*.h tests/cpp/cuda_host/** tests/host_programs.py tests/ptx.py tests/product_calls.py",
        ON_THE_HOST,
    ),
    # What shows that these programs would find faults, and trained networks. Too long for every edit of a kernel.
    "CUDA programs under sanitizers": Group(
        named("tests/test_cuda_host.py", SANITIZED_ON_THE_HOST)
        + named("tests/test_cuda_ptx.py", "trained_networks bug_in_ptx_is_found access_out_of_bounds_is_found")
        + " tests/test_digest.py",
        None,
    ),
    "instructions in software": Group(
        "tests/test_instructions.py",
        "csrc/ops/product/count_*.inl.h csrc/ops/product/panel_layout.h csrc/ops/product/cpu_count_kernels.h"
        " csrc/cpu/simd.inl.h tests/instructions/*",
    ),
    "settings of files": Group(
        "tests/test_frozen_files.py tests/test_saved_networks.py tests/test_exchange_mutants.py",
        "tandem_cuda/freeze/** tandem_cuda/exchange/** tandem_cuda/nn/frozen.py tandem_cuda/nn/schema.py"
        " tandem_cuda/nn/spiking.py tandem_cuda/nn/spiking_twin.py",
    ),
    "examples": Group(
        "tests/test_train_example.py tests/test_recipes.py tests/test_mnist_example.py tests/test_analyse.py"
        " tests/test_early_exit_example.py tests/test_training_from_random_weights.py"
        " tests/test_pretrained_examples.py",
        "examples/**",
    ),
    "other processors": Group("tests/test_processors.py", None),
    "networks of other libraries": Group("tests/test_coverage.py", None),
    "largest shapes": Group("tests/test_large.py", None),
    "seeded bugs": Group("tests/test_seeded_bugs.py", None),  # the faults of C++ build the library twenty times
}
SPLIT = re.compile(r"(\*\*|\*)").split


def files_of(group):
    """The test files of a group."""
    return {test.partition("::")[0] for test in group.tests.split()}


def guards(group, file):
    """Whether a group must run where this file has changed."""
    if group.guards is None:
        return False
    patterns = any(matches(pattern, file) for pattern in group.guards.split())
    return patterns or file in files_of(group) or file in included(group.sources)


@lru_cache(None)
def included(patterns):
    """The names of sources, by patterns, and of the project's files that they include, directly or not."""
    found, rest = set(), {path for pattern in patterns.split() for path in ROOT.glob(pattern)}
    while rest:
        path = rest.pop()
        found.add(path)
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            places = [(folder / name).resolve() for folder in (path.parent, ROOT / "csrc")]
            rest |= set([place for place in places if place.exists()][:1]) - found
    return {path.relative_to(ROOT).as_posix() for path in found}


def matches(pattern, file):
    """Whether a pattern of a group describes the path of a file."""
    parts = (".*" if part == "**" else "[^/]*" if part == "*" else re.escape(part) for part in SPLIT(pattern))
    return re.fullmatch("".join(parts), file) is not None


def git(*arguments, root):
    """What git prints, or None if it fails."""
    try:
        result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout if result.returncode == 0 else None


def base_of(root):
    """The commit to compare with, as git takes it, or None if nothing names one."""
    recorded = root / PASSED
    return os.environ.get("CI_BASE") or (recorded.read_text().strip() if recorded.exists() else None) or None


def changed_files(base, root):
    """Files that differ between a commit and the work tree, or None where git cannot tell."""
    known = base and git("rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}", root=root)
    differ = known and git("diff", "--name-only", "--no-renames", "-z", known.strip(), "--", root=root)
    new = git("ls-files", "--others", "--exclude-standard", "-z", root=root)
    return None if differ is None or new is None else {file for file in (differ + new).split("\0") if file}


def due(files):
    """The names of the groups that guard one of these files; with None, of all that guard any."""
    if files is None:
        return [name for name, group in GROUPS.items() if group.guards is not None]
    return [name for name, group in GROUPS.items() if any(guards(group, file) for file in files)]


def run(names, command):
    """Run groups one after the other, whatever fails. Returns the names of the groups that failed."""
    seconds, failed = {}, []
    for name in names:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        code = subprocess.run([*command, "-m", "nightly and not gpu", *GROUPS[name].tests.split()], cwd=ROOT).returncode
        seconds[name] = time.monotonic() - start
        if code:
            failed.append(name)
    for name, taken in seconds.items():
        print(f"{taken:7.0f} s  {name}{'  FAILED' if name in failed else ''}")
    return failed


def record(root):
    """Write the commit whose nightly tests have all passed, unless the files are not those of a commit."""
    if git("status", "--porcelain", "--untracked-files=normal", root=root) != "":
        print(f"nightly: something is uncommitted, so {PASSED} stays as it is")
        return
    (root / PASSED).write_text(git("rev-parse", "HEAD", root=root))
    print(f"nightly: commit {PASSED}, which now names this commit")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.nightly", description=__doc__)
    parser.add_argument("--changed", action="store_true", help="only the groups that guard what has changed")
    parser.add_argument("--list", action="store_true", help="print the names of the groups instead of running them")
    parser.add_argument("--pytest-args", default="", help="passed on to pytest")
    arguments = parser.parse_args()
    names = list(GROUPS)
    if arguments.changed:
        base = base_of(ROOT)
        files = changed_files(base, ROOT)
        names = due(files)
        print(f"nightly: changed since {base}: " + ("unknown" if files is None else f"{len(files)} files"))
        print(f"nightly: groups that guard these files: {', '.join(names) or 'none'}", flush=True)
    if arguments.list:
        print(*names, sep="\n")
        return 0
    failed = run(names, [sys.executable, "-m", "pytest", *shlex.split(arguments.pytest_args)])
    if failed:
        print(f"nightly: FAILED: {', '.join(failed)}")
        return 1
    if not arguments.changed:
        record(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
