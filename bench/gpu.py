"""What `make gpu` runs: build for this machine's device, test, check memory and races, measure; one file of it all.

Every step runs, whatever became of those before it, and the report is written again after each. A step that fails makes
the whole fail at the end; one for which a tool is missing is skipped. Needs no network, and beside Python itself only
what the steps need: torch, pytest, hypothesis and numpy; for a build cmake, ninja, pybind11, setuptools and nvcc.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
TOOL = "compute-sanitizer"
FOUND = 86  # what the tool exits with where it found something: pytest has numbers of its own
LINES = 60  # of the end of a step's output that the report keeps where the step failed
# What runs under the checker: kernels of every kind, few and small. Graphs need torch's allocator, which hides what
# lies beyond a tensor from memcheck. That nothing waits, the checker cannot show: it waits itself, as memory without
# that allocator does.
SMALL = ["test_cuda_operators.py", "test_cuda_products.py", "-m", "gpu", "-k"]
CACHING = "PYTORCH_NO_CUDA_MEMORY_CACHING"
CHECKS = {
    "memcheck": (
        "(linear or packed or misaligned or fill_the_device) and not graph and not current_stream",
        {CACHING: "1"},
    ),
    "racecheck": ("(linear or graph or packed) and not current_stream", {}),
    "initcheck": ("(linear or graph or packed or fill_the_device) and not current_stream", {}),
}
# Torch and the runtime ask the driver for what it may not have. The library checks its own calls.
OPTIONS = {"memcheck": ("--report-api-errors", "no")}
PROBE = """
import json
import torch
found = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "devices": []}
for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    p = torch.cuda.get_device_properties(i)
    found["devices"].append({
        "name": p.name, "capability": f"{p.major}.{p.minor}", "memory_bytes": p.total_memory,
        "multiprocessors": p.multi_processor_count,
    })
print(json.dumps(found))
"""
LIBRARY = """
import json
import tandem_cuda
print(json.dumps({**tandem_cuda.build_info(), "file": tandem_cuda.__file__}))
"""


@dataclass
class Step:
    """What became of a step of the run."""

    name: str
    command: str | None = None
    status: str = "passed"
    """passed, failed or skipped."""
    reason: str | None = None
    """Why it failed or was skipped."""
    seconds: float = 0.0
    output: list[str] = field(default_factory=list)
    """The last lines, where it failed."""
    facts: dict[str, Any] = field(default_factory=dict)


class Failed(Exception):
    """A step that cannot do what it is for."""


class Skipped(Exception):
    """A step for which something is missing that the machine need not have."""


def versions_module() -> Any:
    """The library's own comparison of driver and toolkit, without the library."""
    spec = importlib.util.spec_from_file_location("cuda_versions", ROOT / "tandem_cuda" / "_cuda_versions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_nvcc() -> str | None:
    """Where CMakeLists.txt looks."""
    if "CUDACXX" in os.environ:
        return shutil.which(os.environ["CUDACXX"])
    if "CUDA_HOME" in os.environ:
        return shutil.which("nvcc", path=str(Path(os.environ["CUDA_HOME"], "bin")))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def sanitizer_places() -> list[Path]:
    """Folders to look for the checker in, beside PATH."""
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    packages = [Path(path, "nvidia") for path in sys.path if path.endswith("site-packages")]
    found = [path.parent for package in packages for path in sorted(package.glob(f"**/{TOOL}"))]
    return [*(home / part for home in homes for part in ("bin", TOOL, f"extras/{TOOL}")), *found]


def find_sanitizer() -> str:
    places = sanitizer_places()
    path = shutil.which(TOOL) or shutil.which(TOOL, path=os.pathsep.join(map(str, places)))
    if path is None:
        raise Skipped(f"{TOOL} is neither in PATH nor in {', '.join(map(str, places))}: it comes with the CUDA toolkit")
    return path


def junit(path: Path) -> dict[str, Any]:
    """Numbers of tests, and the names of those that failed."""
    if not path.exists():
        return {}
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(bad) - skipped,
        "failed": len(bad),
        "skipped": skipped,
        "failures": [f"{case.get('classname')}::{case.get('name')}" for case in bad],
    }


class Run:
    """The steps of a run, and its report."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.python = options.python
        self.steps: list[Step] = []
        self.facts: dict[str, Any] = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "python": platform.python_version(),
            "system": platform.platform(),
            "devices": [],
        }
        self.folder = Path(tempfile.mkdtemp(prefix="tandem_cuda_gpu_"))

    # -- machinery

    def step(self, name: str, do: Callable[[Step], None]) -> None:
        """Run one step; whatever becomes of it is in the report."""
        print(f"\n== {name}", flush=True)
        step, began = Step(name), time.monotonic()
        try:
            do(step)
        except Failed as error:
            step.status, step.reason = "failed", str(error)
        except Skipped as error:
            step.status, step.reason = "skipped", str(error)
        except Exception as error:  # a fault of this script must not cost the other steps
            step.status, step.reason = "failed", f"{type(error).__name__}: {error}"
        step.seconds = round(time.monotonic() - began, 1)
        if step.status != "failed":
            step.output = []
        self.steps.append(step)
        if not self.options.dry_run:
            self.write()
        if not self.options.dry_run or step.reason:
            print(f"== {name}: {step.status}{f': {step.reason}' if step.reason else ''}", flush=True)

    def command(self, step: Step, command: list[str], *, cwd: Path = ROOT, **environment: str) -> int:
        """Run a command, show what it says; returns its exit status, and 124 where it took too long."""
        settings = " ".join(f"{name}={value}" for name, value in environment.items())
        step.command = f"{settings} {shlex.join(command)}".strip()
        print(f"(in {cwd}) {step.command}", flush=True)
        if self.options.dry_run:
            return 0
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise Failed(f"{command[0]} cannot be run: {error}") from None
        late = threading.Event()

        def stop() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(self.options.limit, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                step.output = [*step.output, line.rstrip()][-LINES:]
            code = process.wait()
        except BaseException:  # Ctrl-C: what was started ends, too
            stop()
            raise
        finally:
            timer.cancel()
        return 124 if late.is_set() else code

    def must(self, step: Step, command: list[str], *, cwd: Path = ROOT, **environment: str) -> None:
        code = self.command(step, command, cwd=cwd, **environment)
        if code == 124:
            raise Failed(f"took longer than {self.options.limit} s")
        if code != 0:
            raise Failed(f"exit status {code}")

    def asked(self, script: str) -> dict[str, Any]:
        """What a script prints last, as JSON; run beside the tests, so that it imports what they import."""
        result = subprocess.run(
            [self.python, "-c", script], cwd=ROOT / "tests", capture_output=True, text=True, check=False
        )
        lines = result.stdout.splitlines()
        if result.returncode != 0 or not lines:
            raise Failed((result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1])
        found = json.loads(lines[-1])
        if not isinstance(found, dict):
            raise Failed(f"got {lines[-1]}")
        return found

    def write(self) -> None:
        report = {**self.facts, "failed": self.failed, "steps": [asdict(step) for step in self.steps]}
        self.options.report.parent.mkdir(parents=True, exist_ok=True)
        self.options.report.write_text(json.dumps(report, indent=1) + "\n")

    @property
    def failed(self) -> list[str]:
        return [step.name for step in self.steps if step.status == "failed"]

    # -- steps

    def device(self, step: Step) -> None:
        """Versions and the card; that the driver serves the toolkit."""
        versions = versions_module()
        self.facts["driver_cuda"] = driver = versions.driver_version()
        if smi := shutil.which("nvidia-smi"):
            query = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
            result = subprocess.run(query, capture_output=True, text=True, check=False)
            self.facts["nvidia_smi"] = result.stdout.strip().splitlines()
        if nvcc := find_nvcc():
            said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
            release = re.search(r"release (\d+\.\d+)", said)
            self.facts["toolkit"] = release[1] if release else None
        if self.options.dry_run:
            print("versions, the card, and whether the driver serves the toolkit")
            return
        self.facts |= self.asked(PROBE)
        toolkit = self.facts.get("toolkit")
        obstacle = toolkit and not self.options.wheel and versions.driver_obstacle(toolkit, driver)
        if obstacle:
            raise Failed(obstacle)
        if not self.facts["devices"]:
            raise Failed(f"torch {self.facts['torch']} (CUDA {self.facts['torch_cuda']}) finds no CUDA device")

    def capability(self) -> str | None:
        devices = self.facts["devices"]
        return devices[0]["capability"] if devices else None

    def build(self, step: Step) -> None:
        """With CUDA kernels or not at all, for this device alone."""
        pip = [self.python, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
        capability = self.capability()
        architectures = {"TORCH_CUDA_ARCH_LIST": capability} if capability else {}
        # A compiler that warns of something new does not end all that is measured.
        given = f"{os.environ.get('CMAKE_ARGS', '')} -DCMAKE_COMPILE_WARNING_AS_ERROR=OFF".strip()
        settings = {"TANDEM_CUDA": "ON", "CMAKE_ARGS": given, **architectures}
        self.must(step, [*pip, "-v", "-e", "."], **settings)

    def install(self, step: Step) -> None:
        """A wheel that was built elsewhere."""
        wheel = self.options.wheel.resolve()
        if not self.options.dry_run:
            if not zipfile.is_zipfile(wheel):
                raise Failed(f"WHEEL must be a wheel, got {wheel}")
            with zipfile.ZipFile(wheel) as archive:
                for file, pattern in (("_C.*.so", r"_C\..*so"), ("libtandem_cuda.so", r"libtandem_cuda\.so")):
                    if not any(re.fullmatch(f"tandem_cuda/{pattern}", name) for name in archive.namelist()):
                        raise Failed(f"{wheel.name} holds no tandem_cuda/{file}")
        pip = [self.python, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall"]
        self.must(step, [*pip, str(wheel)])

    def library(self, step: Step) -> None:
        """What the tests will import has kernels that run on this device."""
        if self.options.dry_run:
            print("import tandem_cuda; build_info() must say cuda_usable")
            return
        self.facts["library"] = info = self.asked(LIBRARY)
        if self.options.wheel and Path(info["file"]).resolve().is_relative_to(ROOT / "tandem_cuda"):
            raise Failed(f"the tests import {info['file']} of the source tree, not the wheel")
        if not info["cuda_usable"]:
            raise Failed(info["cuda_unusable_because"])

    def tests(self, step: Step) -> None:
        xml = self.folder / "tests.xml"
        arguments = [*shlex.split(self.options.pytest_args), f"--junitxml={xml}"]
        try:
            self.must(step, self.pytest("-m", "gpu", *arguments, "."), cwd=ROOT / "tests")
        finally:
            step.facts = junit(xml)
        if not self.options.dry_run and not step.facts.get("passed"):
            raise Failed("no test ran")

    def pytest(self, *arguments: str) -> list[str]:
        return [self.python, "-m", "pytest", *arguments]

    def check(self, tool: str) -> Callable[[Step], None]:
        selection, environment = CHECKS[tool]

        def do(step: Step) -> None:
            checker = [find_sanitizer(), "--tool", tool, *OPTIONS.get(tool, ()), "--error-exitcode", str(FOUND)]
            xml = self.folder / f"{tool}.xml"
            command = [*checker, *self.pytest("-q", *SMALL, selection, f"--junitxml={xml}")]
            code = self.command(step, command, cwd=ROOT / "tests", **environment)
            step.facts = junit(xml)
            if code == FOUND:
                raise Failed(f"{tool} found errors")
            if code != 0:
                raise Failed(f"exit status {code}")
            if not self.options.dry_run and not step.facts.get("passed"):
                raise Failed("no test ran")

        return do

    def benchmark(self, step: Step) -> None:
        figures = self.folder / "cuda.json"
        try:
            self.must(step, [self.python, "bench/compare_cuda.py", "--out", str(self.folder)])
        finally:
            if figures.exists():
                step.facts = json.loads(figures.read_text())

    def all(self) -> int:
        self.step("device", self.device)
        if self.options.wheel:
            self.step("install", self.install)
        else:
            self.step("build", self.build)
        self.step("library", self.library)
        self.step("tests", self.tests)
        for tool in CHECKS:
            self.step(tool, self.check(tool))
        self.step("benchmark", self.benchmark)
        if self.options.dry_run:
            return 0
        print(f"\n{self.options.report}:")
        for step in self.steps:
            counts = [f"{step.facts[key]} {key}" for key in ("passed", "failed", "skipped") if key in step.facts]
            said = ", ".join([*([step.reason] if step.reason else []), *counts])
            print(f"  {step.name:10} {step.status:8} {step.seconds:8.1f} s  {said}")
        return 1 if self.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter to build for and to test with")
    parser.add_argument("--wheel", type=Path, help="install this instead of building")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "performance" / "gpu_report.json")
    parser.add_argument("--pytest-args", default="", help="for the tests, not for those under the checker")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds that a step may take")
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    run = Run(parser.parse_args())
    try:
        return run.all()
    finally:
        shutil.rmtree(run.folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
