"""CUDA kernels, run on the host: without a device, under sanitizers, in several orders of threads."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "cpp" / "cuda_host"

# Found, and run under every variant, without being named anywhere.
TESTS = sorted(path.stem for path in FOLDER.glob("*_test.cpp"))

FLAGS = ["-std=c++17", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
VARIANTS = {
    "plain": ["-O2"],
    "asan": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-O1", "-fsanitize=thread"],
}
ORDERS = ["asc", "desc", "rand"]

ASAN, UBSAN, RACE = "ERROR: AddressSanitizer", "runtime error", "WARNING: ThreadSanitizer: data race"
WRONG = "wrong result"
# What the plain, the asan and the tsan build say of each bug; None where they cannot know: what is out of bounds is for
# one sanitizer, races are for the other, and a race that changes no result while fibers take turns is for it alone.
BUGS = {
    "missing_barrier": (WRONG, WRONG, RACE),
    "write_after_read": (WRONG, WRONG, RACE),
    "lost_update": (None, None, RACE),
    "warp_race": (WRONG, WRONG, RACE),
    "divergent_barrier": ("divergent barrier",) * 3,
    "deadlock": ("deadlock",) * 3,
    "wrong_mask": ("__shfl_sync: the mask names a lane that has ended",) * 3,
    "foreign_lane": ("a lane reads from one that the mask does not name",) * 3,
    "shared_index": (None, UBSAN, None),
    "shared_pointer": (None, ASAN, None),
    "shared_in_template": (None, ASAN, None),
    "dynamic_shared": (None, ASAN, None),
    "global": (None, ASAN, None),
    "uninitialised": (WRONG, WRONG, WRONG),
    "uninitialised_in_template": (WRONG, WRONG, WRONG),
    "uninitialised_dynamic": (WRONG, WRONG, WRONG),
    "race_between_blocks": (None, None, RACE),
    "copy_without_wait": (WRONG, WRONG, RACE),
    "copy_waits_for_too_few": (WRONG, WRONG, RACE),
    "copy_too_early": (WRONG, WRONG, RACE),
    "copy_misaligned": ("cp.async: an address is no multiple of 16",) * 3,
    "trap": ("__trap()",) * 3,
}
GOOD = ["good", "copies"]


def toolkit():
    """The folder of the CUDA toolkit whose headers are there, or None."""
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    return next(
        (Path(place) for place in places if place and (Path(place) / "include/cuda_runtime_api.h").exists()), None
    )


class Host:
    """Compiles programs once each, and runs them."""

    def __init__(self, folder):
        self.folder = folder
        self.built = {}
        # The older ThreadSanitizers cannot live with as much randomness of addresses as newer kernels have.
        fixed = ["setarch", platform.machine(), "-R"]
        usable = shutil.which("setarch") and subprocess.run([*fixed, "true"], capture_output=True, check=False)
        self.fixed_addresses = fixed if usable and usable.returncode == 0 else []

    def build_host(self, name, source, variant):
        """Start to compile a source under a variant's flags, unless that has been done; returns the future program."""
        key = name, variant
        if key not in self.built:
            self.built[key] = self.pool.submit(self._compile, self.folder / f"{name}-{variant}", source, variant)
        return self.built[key]

    def _compile(self, program, source, variant):
        includes = ["-I", ROOT / "csrc", "-I", FOLDER, "-isystem", toolkit() / "include"]
        flags = [*FLAGS, *VARIANTS[variant], f"-Wl,-T,{FOLDER / 'shared.ld'}", "-DTANDEM_CUDA_HOST", *includes]
        command = ["g++", *flags, "-x", "c++", source, "-o", program]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return program

    def run(self, name, variant, *arguments, order="asc", seed="0"):
        program = self.build_host(name, FOLDER / f"{name}.cpp", variant).result()
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


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    if platform.machine() != "x86_64":
        pytest.skip(f"kernels run on the host on x86-64 alone, not on {platform.machine()}")
    if toolkit() is None:
        pytest.skip("no headers of the CUDA toolkit (CUDA_HOME, beside nvcc on PATH, /usr/local/cuda)")
    if not shutil.which("g++"):
        pytest.skip("no g++")
    host = Host(tmp_path_factory.mktemp("cuda_host"))
    with ThreadPoolExecutor(os.cpu_count()) as host.pool:
        for name in ["seeded_bugs", *TESTS]:
            for variant in VARIANTS:
                host.build_host(name, FOLDER / f"{name}.cpp", variant)
        yield host
        host.pool.shutdown(cancel_futures=True)


def test_there_are_tests():
    assert {"fragments_test", "integrate_and_fire_test"} <= set(TESTS)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", TESTS)
def test_in_every_order(host, name, order):
    result = host.run(name, "plain", order=order)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("variant", ["asan", "tsan"])
@pytest.mark.parametrize("name", TESTS)
def test_under_sanitizers(host, name, variant):
    result = host.run(name, variant)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TESTS)
def test_in_more_orders(host, name, variant, seed):
    result = host.run(name, variant, order="rand", seed=str(seed))
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr


# ---- The harness itself


def test_table_names_every_kernel(host):
    assert sorted(host.run("seeded_bugs", "plain").stdout.split()) == sorted([*GOOD, *BUGS])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_found_where_nothing_is_wrong(host, name, variant, order):
    result = host.run("seeded_bugs", variant, name, order=order)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{name}: right\n", "")


def check_bug(host, name, variant, order):
    result = host.run("seeded_bugs", variant, name, order=order)
    said = result.stdout + result.stderr
    expected = BUGS[name][list(VARIANTS).index(variant)]
    if expected is None:
        # The table is to be mended, and gladly, where a build learns to find more.
        assert (result.returncode, result.stdout, result.stderr) == (0, f"{name}: right\n", "")
    else:
        assert result.returncode != 0, said
        assert expected in said


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BUGS)
def test_seeded_bug_is_found(host, name, variant):
    check_bug(host, name, variant, "asc")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["desc", "rand"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BUGS)
def test_seeded_bug_is_found_in_every_order(host, name, variant, order):
    check_bug(host, name, variant, order)


def test_environment_is_checked(host):
    result = host.run("seeded_bugs", "plain", "good", order="sideways")
    assert result.returncode != 0
    assert "TANDEM_HOST_ORDER must be asc, desc or rand" in result.stderr
