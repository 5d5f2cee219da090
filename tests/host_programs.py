"""Programs that run the CUDA kernels on the host: how they are compiled and run."""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ptx

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "cpp" / "cuda_host"

# Found, and run under every variant, without being named anywhere.
TESTS = sorted(path.stem for path in FOLDER.glob("*_test.cpp"))
# What runs the calls in a file: ../calls.h.
RUNNERS = sorted(path.stem for path in FOLDER.glob("run_*.cpp"))

NO_NVCC = "no nvcc: CUDA_HOME, PATH and /usr/local/cuda have none"
# As CMakeLists.txt compiles kernels.
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr"]
FLAGS = ["-std=c++17", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
LINKED = [f"-Wl,-T,{FOLDER / 'shared.ld'}"]
VARIANTS = {
    "plain": ["-O1"],
    "asan": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-O1", "-fsanitize=thread"],
}


def sources_of(program):
    """The files whose kernels a program launches."""
    source = FOLDER / f"{program}.cpp"
    text = source.read_text()
    included = re.findall(r'^#include "(ops/.+\.cu)"', text, re.MULTILINE)
    return [*(ROOT / "csrc" / path for path in included), *([source] if "__global__" in text else [])]


# Programs that can launch what nvcc makes of their kernels.
FROM_PTX = [name for name in (*RUNNERS, *TESTS) if sources_of(name)]


def nvcc():
    """The compiler of the CUDA toolkit, or None."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    found = next((path for home in homes if home and (path := shutil.which("nvcc", path=f"{home}/bin"))), None)
    return found or shutil.which("nvcc")


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
        folder.mkdir(exist_ok=True)
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
            self.built[name, variant] = self.pool.submit(self.compiled, FOLDER / f"{name}.cpp", variant)

    def compiled(self, source, variant):
        return self._once(f"{source.stem}-{variant}", [*self._command(variant), *LINKED, source])

    def _command(self, variant):
        includes = ["-I", ROOT / "csrc", "-I", FOLDER, "-isystem", toolkit() / "include"]
        return ["g++", *FLAGS, *VARIANTS[variant], "-DTANDEM_CUDA_HOST", "-DTANDEM_WARPGROUPS", *includes]

    def _once(self, name, command):
        """The path of a file that a command makes, unless another of pytest's processes does."""
        path = self.folder / name
        with path.with_name(f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                part = path.with_name(f"part-{name}")
                result = subprocess.run([*command, "-o", part], capture_output=True, text=True, check=False)
                assert result.returncode == 0, result.stderr
                part.rename(path)
        return path

    def launches(self, variant):
        """Where programs that launch PTX write what they have launched."""
        return self.folder / f"launched-{variant}"

    def run(self, name, variant, *arguments, order="asc", seed="0"):
        program = self.build(name, variant)
        # Fibers' stacks confuse the search for leaks, and a shadow of each for every block takes most of the time.
        options = {
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
            "TSAN_OPTIONS": "exitcode=66",
            "UBSAN_OPTIONS": "",
            "TANDEM_HOST_LAUNCHED": str(self.launches(variant)),
        }
        return subprocess.run(
            [*(self.fixed_addresses if variant == "tsan" else []), program, *arguments],
            env={**os.environ, **options, "TANDEM_HOST_ORDER": order, "TANDEM_HOST_SEED": seed},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )


class PtxHost(Host):
    """Runs what nvcc makes of the kernels for an architecture, translated by ptx.py, in place of their source.

    Architectures share a folder, since much of their PTX is the same. headers: a folder that nvcc finds headers in
    before it looks in csrc.
    """

    def __init__(self, folder, architecture, headers=None):
        super().__init__(folder)
        self.architecture, self.headers = architecture, headers

    def build(self, name, variant):
        """The program of a source under a variant's flags."""
        if (name, variant) not in self.built:
            own = self.pool.submit(self.object, FOLDER / f"{name}.cpp", variant, "-DTANDEM_HOST_PTX")
            kernels = list(self.pool.map(lambda source: self._kernels(source, variant), sources_of(name)))
            self.built[name, variant] = self.linked(name, variant, own.result(), *kernels)
        return self.built[name, variant]

    def _kernels(self, source, variant):
        return self.translated(self.ptx(source).read_text(), source.stem, variant)

    def target(self, name):
        """The architecture that a source is compiled for: products of warpgroups are code for one alone."""
        return "sm_90a" if name.startswith("warpgroup") else self.architecture

    def ptx(self, source):
        includes = [x for folder in (self.headers, ROOT / "csrc") if folder for x in ("-I", folder)]
        target = self.target(source.stem)
        command = [
            nvcc(),
            *NVCC_FLAGS,
            *includes,
            f"-arch={target.replace('sm', 'compute')}",
            "-ptx",
            "-x",
            "cu",
            source,
        ]
        return self._once(f"{source.stem}.{target}.ptx", command)

    def translated(self, text, name, variant):
        """The object file of PTX."""
        module = ptx.Module(text, f"{name}.ptx", self.target(name)).cpp.encode()
        source = self.folder / f"{hashlib.sha256(module).hexdigest()[:16]}.cpp"
        if not source.exists():
            part = source.with_suffix(f".{os.getpid()}")
            part.write_bytes(module)
            part.rename(source)
        # Nothing warns of generated code, nor checks what C++ leaves undefined: PTX defines it, and ptx.h does so, too.
        # Between registers on the stack, of which some have addresses, AddressSanitizer would have zones to watch, and
        # the compiler work for minutes.
        others = ["-fno-strict-aliasing", "-fno-sanitize=undefined", "--param=asan-stack=0"]
        return self.object(source, variant, "-g0", "-w", *others)

    def object(self, source, variant, *flags):
        return self._once(f"{source.stem}-{variant}.o", [*self._command(variant), *flags, "-c", source])

    def linked(self, name, variant, *objects):
        return self._once(f"{name}-{self.architecture}-{variant}", [*self._command(variant), *LINKED, *objects])

    def launches(self, variant):
        return self.folder / f"launched-{self.architecture}-{variant}"

    def launched(self, variant):
        """The symbols of the entries that programs under a variant's flags have launched."""
        file = self.launches(variant)
        return set(file.read_text().split()) if file.exists() else set()

    def entries(self, source):
        """The symbols of all entries of a source."""
        return set(re.findall(r"\.entry ([\w$]+)", self.ptx(source).read_text()))
