"""Programs that run the CUDA kernels on the host: how they are compiled and run."""

import fcntl
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "cpp" / "cuda_host"

# Found, and run under every variant, without being named anywhere.
TESTS = sorted(path.stem for path in FOLDER.glob("*_test.cpp"))
# What runs the calls in a file: ../calls.h.
RUNNERS = sorted(path.stem for path in FOLDER.glob("run_*.cpp"))

FLAGS = ["-std=c++17", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
VARIANTS = {
    "plain": ["-O1"],
    "asan": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-O1", "-fsanitize=thread"],
}


def toolkit():
    """The folder of the CUDA toolkit whose headers are there, or None."""
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    return next(
        (Path(place) for place in places if place and (Path(place) / "include/cuda_runtime_api.h").exists()), None
    )


def obstacle():
    """Why nothing can be compiled here, or None."""
    if platform.machine() != "x86_64":
        return f"kernels run on the host on x86-64 alone, not on {platform.machine()}"
    if toolkit() is None:
        return "no headers of the CUDA toolkit (CUDA_HOME, beside nvcc on PATH, /usr/local/cuda)"
    return None if shutil.which("g++") else "no g++"


class Host:
    """Compiles programs once each, whichever of pytest's processes needs them first, and runs them."""

    def __init__(self, folder):
        self.folder = folder
        self.pool = ThreadPoolExecutor(os.cpu_count())
        self.built = {}
        # The older ThreadSanitizers cannot live with as much randomness of addresses as newer kernels have.
        fixed = ["setarch", platform.machine(), "-R"]
        usable = shutil.which("setarch") and subprocess.run([*fixed, "true"], capture_output=True, check=False)
        self.fixed_addresses = fixed if usable and usable.returncode == 0 else []

    def build(self, name, variant):
        """The program of a source under a variant's flags; the first one asked for starts to compile all of them."""
        if (name, variant) not in self.built:
            self.start(variant)
        return self.built[name, variant].result()

    def start(self, variant):
        """Compile all programs under a variant's flags, in the background."""
        for name in ["seeded_bugs", *RUNNERS, *TESTS]:
            program, source = self.folder / f"{name}-{variant}", FOLDER / f"{name}.cpp"
            self.built[name, variant] = self.pool.submit(self._compile, program, source, variant)

    def _compile(self, program, source, variant):
        includes = ["-I", ROOT / "csrc", "-I", FOLDER, "-isystem", toolkit() / "include"]
        flags = [*FLAGS, *VARIANTS[variant], f"-Wl,-T,{FOLDER / 'shared.ld'}", "-DTANDEM_CUDA_HOST", *includes]
        part = program.with_suffix(".part")
        command = ["g++", *flags, "-x", "c++", source, "-o", part]
        with program.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another of pytest's processes may be at it
            if not program.exists():
                result = subprocess.run(command, capture_output=True, text=True, check=False)
                assert result.returncode == 0, result.stderr
                part.rename(program)
        return program

    def run(self, name, variant, *arguments, order="asc", seed="0"):
        program = self.build(name, variant)
        # Fibers' stacks confuse the search for leaks, and a shadow of each for every block takes most of the time.
        options = {
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
            "TSAN_OPTIONS": "exitcode=66",
            "UBSAN_OPTIONS": "",
        }
        return subprocess.run(
            [*(self.fixed_addresses if variant == "tsan" else []), program, *arguments],
            env={**os.environ, **options, "TANDEM_HOST_ORDER": order, "TANDEM_HOST_SEED": seed},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
