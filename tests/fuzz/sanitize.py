"""Builds the library under AddressSanitizer and UndefinedBehaviorSanitizer and runs fuzzers and operator tests on it.

``python -m tests.fuzz.sanitize --minutes 2``, or one case: ``python -m tests.fuzz.sanitize products --seed 12``. The
build has a folder of its own, build/sanitize; the installed library stays as it is. A report ends the process that it
is about, and fails the run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"
# A tree beside the sources' own, whose package holds the library of this build.
TREE = BUILD / "tree"
TESTS = ("pack_spikes", "unpack_spikes", "spike_count", "tandem_count", "tandem_norm_count", "integrate_and_fire")
TESTS += ("pack_weight", "spiking_linear", "spiking_conv2d", "count_linear", "count_conv2d", "depthwise")
TESTS += ("conv2d_weight_gradient", "fold_norm", "update_statistics")


# Reads 12,000 bytes past the end of an array.
PLANTED = """
import numpy as np, torch
from tandem_cuda import _C, ops
print(_C.__file__, flush=True)
x = np.lib.stride_tricks.as_strided(np.zeros(1000, np.float32), (1, 1, 4000), (4, 4, 4))
ops.pack_spikes(torch.from_numpy(x))
"""


def tool(name):
    """A program beside this interpreter, or on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise SystemExit(f"sanitize: {name} is missing; pip install {name}")
    return found


def build():
    """The library, without CUDA, and the tree that it is imported from."""
    arguments = ["-G", "Ninja", "-S", ROOT, "-B", BUILD, "-DTANDEM_SANITIZE=ON"]
    arguments += [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    environment = {**os.environ, "TANDEM_CUDA": "OFF"}
    subprocess.run([tool("cmake"), *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run([tool("cmake"), "--build", BUILD], check=True, env=environment)
    shutil.rmtree(TREE, ignore_errors=True)
    shutil.copytree(ROOT / "tandem_cuda", TREE / "tandem_cuda", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "tests", TREE / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", TREE)
    for library in BUILD.glob("*.so"):
        shutil.copy(library, TREE / "tandem_cuda")


def environment():
    """Where the interpreter, which is not instrumented, runs with the sanitizers' run-time libraries loaded first."""
    # libstdc++ too: AddressSanitizer looks for its __cxa_throw when the process starts, before torch has loaded it.
    compiler = os.environ.get("CXX", "g++")
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(str(Path(library).resolve()) for library in libraries),
        # Python and torch keep memory until the end on purpose; a size out of reach is an error like any other.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that what lies in Python's own pools is guarded too
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": str(TREE),
    }


def run(*command, **named):
    return subprocess.run([sys.executable, *command], cwd=TREE, env=environment(), check=False, **named).returncode


def check_planted_bug():
    """The sanitizers are there, and look at this library."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        run("-c", PLANTED, stdout=said, stderr=said)
        said.seek(0)
        text = said.read()
    if "AddressSanitizer: heap-buffer-overflow" not in text or str(TREE) not in text:
        raise SystemExit(f"sanitize: a planted read past the end of an array was not reported, got:\n{text[-3000:]}")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.sanitize", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="of the cases; default all")
    parser.add_argument("--minutes", type=float, default=2, help="of fuzzing")
    parser.add_argument("--seed", help="run this case alone")
    arguments = parser.parse_args()
    build()
    if arguments.seed:
        return run("-m", "tests.fuzz", *arguments.kinds, "--seed", arguments.seed)
    check_planted_bug()
    few = ["-m", "not slow and not gpu", "--hypothesis-profile", "few"]
    steps = {
        "operators": ["-m", "pytest", "-q", "-x", *few, *(f"tests/test_{t}.py" for t in TESTS)],
        "fuzz": ["-m", "tests.fuzz", *arguments.kinds, "--minutes", str(arguments.minutes)],
    }
    failed = []
    for name, command in steps.items():
        print(f"== {name}", flush=True)
        if run(*command):
            failed.append(name)
    print("sanitize: " + (f"FAILED: {', '.join(failed)}" if failed else "no report"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
