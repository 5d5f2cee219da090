"""Builds the library under sanitizers and runs operator tests and fuzzers on it.

``python -m tests.fuzz.sanitize --minutes 2``, or one case: ``python -m tests.fuzz.sanitize products --seed 12``. One
build has AddressSanitizer and UndefinedBehaviorSanitizer; one has ThreadSanitizer, and threads that it sees in place of
OpenMP's (tests/cpp/threads). Each has a folder of its own in build/sanitize; the installed library stays as it is. A
report ends the process that it is about, and fails the run.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("pack_spikes", "unpack_spikes", "spike_count", "tandem_count", "tandem_norm_count", "integrate_and_fire")
TESTS += ("radix_spikes", "pack_weight", "products", "product_gradients", "depthwise")
TESTS += ("conv2d_weight_gradient", "fold_norm", "update_statistics", "operators")
# Every operator with every instruction set, engine and dtype, in one thread and in two, against the reference.
EVERY_PATH = "tests/test_operators.py::test_is_the_reference_on_every_path"
# The older ThreadSanitizers cannot live with as much randomness of addresses as newer kernels have.
FIXED_ADDRESSES = ["setarch", platform.machine(), "-R"]
QUICK = ["-m", "not slow and not nightly and not gpu", "--hypothesis-profile", "few"]


class Sanitizer(NamedTuple):
    """A build of the library, and how programs run with it."""

    name: str  # as CMake's TANDEM_SANITIZE has it
    runtime: str
    options: dict[str, str]
    planted: str  # a program with an error
    report: str  # of that error

    @property
    def folder(self):
        return ROOT / "build" / "sanitize" / self.name

    @property
    def tree(self):
        """A tree beside the sources' own, whose package holds the library of this build."""
        return self.folder / "tree"


ADDRESS = Sanitizer(
    "address",
    "libasan.so",
    {
        # Python and torch keep memory until the end on purpose; a size out of reach is an error like any other.
        # On fake stacks, which newer run-times have by default, GCC 12 misaligns vectors of 64 bytes (its bug 110027).
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096"
        ":detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that what lies in Python's own pools is guarded too
        "OMP_WAIT_POLICY": "passive",
    },
    # Reads 12,000 bytes past the end of an array.
    """
import numpy as np, torch
from tandem_cuda import _C, ops
print(_C.__file__, flush=True)
x = np.lib.stride_tricks.as_strided(np.zeros(1000, np.float32), (1, 1, 4000), (4, 4, 4))
ops.pack_spikes(torch.from_numpy(x))
""",
    "AddressSanitizer: heap-buffer-overflow",
)
UNDEFINED = ADDRESS._replace(name="undefined")  # the CPU kernels, too, which take minutes to compile
THREAD = Sanitizer(
    "thread",
    "libtsan.so",
    {
        "TSAN_OPTIONS": "halt_on_error=1",
        "OMP_THREAD_LIMIT": "1",  # torch's own operators take one thread, whatever its number of threads is
    },
    # Two threads write one byte.
    """
import os, torch
from tandem_cuda import _C, ops
print(_C.__file__, flush=True)
torch.set_num_threads(2)
ops.pack_spikes(torch.zeros(1, 1, 4000))
print("and no report without the error", flush=True)
os.environ["TANDEM_PLANTED_RACE"] = "1"
ops.pack_spikes(torch.zeros(1, 1, 4000))
""",
    "and no report without the error.*ThreadSanitizer: data race",
)


def tool(name):
    """A program beside this interpreter, or on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise SystemExit(f"sanitize: {name} is missing; pip install {name}")
    return found


def library(name):
    """The place of one of the compiler's libraries, or None."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    found = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    return found.resolve() if found.is_absolute() else None


def obstacle(sanitizer):
    """Why it cannot be used here, or None."""
    compiler = os.environ.get("CXX", "g++")
    for program in (compiler, "setarch"):
        if shutil.which(program) is None:
            return f"no {program}"
    if library(sanitizer.runtime) is None:
        return f"{compiler} has no {sanitizer.runtime}"
    if sanitizer is THREAD and subprocess.run([*FIXED_ADDRESSES, "true"], capture_output=True, check=False).returncode:
        return "setarch may not switch off the randomness of addresses"
    return None


def build(sanitizer, isas=None):
    """The library, without CUDA, and the tree that it is imported from.

    isas: of the instruction sets that have flags of their own, compile these alone; None: all.
    """
    folder, tree = sanitizer.folder, sanitizer.tree
    arguments = ["-G", "Ninja", "-S", ROOT, "-B", folder, f"-DTANDEM_SANITIZE={sanitizer.name}"]
    arguments += [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    arguments += ["-UTANDEM_CPU_ISAS" if isas is None else f"-DTANDEM_CPU_ISAS={';'.join(isas)}"]
    environment = {**os.environ, "TANDEM_CUDA": "OFF"}
    subprocess.run([tool("cmake"), *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run([tool("cmake"), "--build", folder], check=True, env=environment)
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT / "tandem_cuda", tree / "tandem_cuda", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    for built in folder.glob("*.so"):
        shutil.copy(built, tree / "tandem_cuda")


def run(sanitizer, *command, **named):
    """Run a Python program with that build; the interpreter, which is not instrumented, loads the run-time first."""
    # libstdc++ too: AddressSanitizer looks for its __cxa_throw when the process starts, before torch has loaded it.
    preloaded = " ".join(str(library(name)) for name in (sanitizer.runtime, "libstdc++.so"))
    # env sets it, so that setarch itself does not load them.
    return subprocess.run(
        [*(FIXED_ADDRESSES if sanitizer is THREAD else []), "env", f"LD_PRELOAD={preloaded}", sys.executable, *command],
        cwd=sanitizer.tree,
        env={**os.environ, **sanitizer.options, "PYTHONPATH": str(sanitizer.tree)},
        check=False,
        **named,
    )


def run_tests(sanitizer, *arguments):
    """Whether quick tests pass without a report, which stands on standard error as it comes."""
    return run(sanitizer, "-m", "pytest", "-q", "-x", "--capture=sys", *QUICK, *arguments).returncode == 0


def check_planted_bug(sanitizer):
    """The sanitizer is there, and looks at this library."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        run(sanitizer, "-c", sanitizer.planted, stdout=said, stderr=said)
        said.seek(0)
        text = said.read()
    if not re.search(sanitizer.report, text, re.DOTALL) or str(sanitizer.tree) not in text:
        raise SystemExit(f"sanitize: {sanitizer.name}: a planted error was not reported, got:\n{text[-3000:]}")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.sanitize", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="of the cases; default all")
    parser.add_argument("--minutes", type=float, default=2, help="of fuzzing")
    parser.add_argument("--seed", help="run this case alone")
    arguments = parser.parse_args()
    fuzz = ["-m", "tests.fuzz", *arguments.kinds]
    if arguments.seed:
        build(UNDEFINED)
        return run(UNDEFINED, *fuzz, "--seed", arguments.seed).returncode
    for sanitizer in (UNDEFINED, THREAD):
        build(sanitizer)
        check_planted_bug(sanitizer)
    steps = {
        "operators": lambda: run_tests(UNDEFINED, *(f"tests/test_{t}.py" for t in TESTS)),
        "threads": lambda: run_tests(THREAD, EVERY_PATH),
        "fuzz": lambda: run(UNDEFINED, *fuzz, "--minutes", str(arguments.minutes)).returncode == 0,
    }
    failed = []
    for name, passes in steps.items():
        print(f"== {name}", flush=True)
        if not passes():
            failed.append(name)
    print("sanitize: " + (f"FAILED: {', '.join(failed)}" if failed else "no report"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
