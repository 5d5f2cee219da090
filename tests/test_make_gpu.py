"""bench/gpu.py, the script of `make gpu`, with stubs in the place of Python, pip, pytest and CUDA's tools."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("gpu", ROOT / "bench" / "gpu.py")
gpu = importlib.util.module_from_spec(SPEC)
sys.modules["gpu"] = gpu  # where its dataclasses look themselves up
SPEC.loader.exec_module(gpu)

STEPS = ["device", "build", "library", "tests", "memcheck", "racecheck", "initcheck", "benchmark"]
CARD = {"name": "NVIDIA H100", "capability": "9.0", "memory_bytes": 1, "multiprocessors": 132}
KERNELS = {"cuda_usable": True, "cuda_unusable_because": None, "file": "/elsewhere/tandem_cuda/__init__.py"}

# Plays Python: says what the machine is, installs, tests and measures as the file "plan" beside it tells.
PYTHON = f"""#!{sys.executable} -IS
import json, os, sys, time
from pathlib import Path
here = Path(__file__).parent
plan = json.loads((here / "plan").read_text())
arguments = sys.argv[1:]
joined = " ".join(arguments)
names = ("TANDEM_CUDA", "CMAKE_ARGS", "TORCH_CUDA_ARCH_LIST", "PYTORCH_NO_CUDA_MEMORY_CACHING")
with (here / "log").open("a") as log:
    said = joined if arguments[0] != "-c" else "-c"
    log.write(" ".join([*(f"{{n}}={{os.environ[n]}}" for n in names if n in os.environ), said]) + "\\n")
if arguments[0] == "-c":
    print("something else that is printed")
    print(json.dumps(plan["library"] if "build_info" in joined else plan["machine"]))
elif "pip" in arguments:
    print("building")
    sys.exit(plan.get("pip", 0))
elif "pytest" in arguments:
    time.sleep(plan.get("sleep", 0))
    cases = "".join(
        f'<testcase classname="test_x" name="{{n}}">{{"<failure/>" if n in plan["fails"] else ""}}</testcase>'
        for n in plan["tests"]
    )
    xml = next(x.partition("=")[2] for x in arguments if x.startswith("--junitxml"))
    Path(xml).write_text(f"<testsuites><testsuite>{{cases}}</testsuite></testsuites>")
    print("E   assert 1 == 2" if plan["fails"] else "passed")
    sys.exit(1 if plan["fails"] else 0)
elif arguments[0] == "bench/compare_cuda.py":
    Path(arguments[2], "cuda.json").write_text(json.dumps({{"ceilings": 3}}))
    sys.exit(plan.get("bench", 0))
"""
CHECKER = f"""#!{sys.executable} -IS
import os, subprocess, sys
tool, code = sys.argv[sys.argv.index("--tool") + 1], int(sys.argv[sys.argv.index("--error-exitcode") + 1])
result = subprocess.run(sys.argv[sys.argv.index("--error-exitcode") + 2 :]).returncode
sys.exit(code if tool == os.environ.get("FINDS") else result)
"""
NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n"
SMI = "#!/bin/sh\necho 'NVIDIA H100, 580.65.06'\n"

# Collects tests as if only these packages, and what they require, were installed: NAMES, "--", arguments of pytest.
COLLECT = """
import re, sys
from importlib import metadata

def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()

at = sys.argv.index("--")
there, left = set(), [canonical(name) for name in sys.argv[1:at]]
while left:
    name = left.pop()
    if name not in there:
        there.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # whose only use is the build
            continue
        left += [canonical(re.match(r"[\\w.-]+", line)[0]) for line in lines if "extra ==" not in line]
absent = {m for m, of in metadata.packages_distributions().items() if there.isdisjoint(map(canonical, of))}
assert absent

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, *more)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import pytest
sys.exit(pytest.main(sys.argv[at + 1:]))
"""


class Machine:
    """A folder of stubs, and what a run on it makes."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.report = folder / "reports" / "gpu.json"
        machine = {"torch": "2.13", "torch_cuda": "13.0", "devices": [CARD]}
        self.plan = {"machine": machine, "library": KERNELS, "tests": ["a", "b", "c"], "fails": []}
        for name, text in {"python": PYTHON, "compute-sanitizer": CHECKER, "nvcc": NVCC, "nvidia-smi": SMI}.items():
            path = folder / name
            path.write_text(text)
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        for name in ("CUDACXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "TANDEM_CUDA", "CMAKE_ARGS", "FINDS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(gpu, "sanitizer_places", lambda: [folder / "nowhere"])
        self.driver("13.0")

    def driver(self, version):
        module = gpu.versions_module()
        module.driver_version = lambda: version
        self.monkeypatch.setattr(gpu, "versions_module", lambda: module)

    def run(self, *arguments):
        """Exit status, steps by name, log."""
        (self.folder / "plan").write_text(json.dumps(self.plan))
        log = self.folder / "log"
        log.write_text("")
        named = ["--python", str(self.folder / "python"), "--report", str(self.report)]
        self.monkeypatch.setattr(sys, "argv", ["gpu.py", *named, *map(str, arguments)])
        code = gpu.main()
        self.found = json.loads(self.report.read_text())
        return code, {step["name"]: step for step in self.found["steps"]}, log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def statuses(steps):
    return {name: step["status"] for name, step in steps.items()}


def test_all_is_well(machine):
    code, steps, log = machine.run("--pytest-args", "-k conv2d")
    assert code == 0
    assert statuses(steps) == dict.fromkeys(STEPS, "passed")
    assert machine.found["failed"] == []
    facts = ("torch", "torch_cuda", "driver_cuda", "toolkit", "nvidia_smi", "devices", "library", "when", "python")
    assert [machine.found[name] for name in facts[:7]] == [
        *("2.13", "13.0", "13.0", "13.0", ["NVIDIA H100, 580.65.06"], [CARD], KERNELS),
    ]
    assert steps["tests"]["facts"] == {"passed": 3, "failed": 0, "skipped": 0, "failures": []}
    assert steps["benchmark"]["facts"] == {"ceilings": 3}
    built, tested, *checked = [line for line in log if "pip" in line or "pytest" in line]
    settings = "TANDEM_CUDA=ON CMAKE_ARGS=-DCMAKE_COMPILE_WARNING_AS_ERROR=OFF TORCH_CUDA_ARCH_LIST=9.0"
    assert built == f"{settings} -m pip install --no-build-isolation --no-deps -v -e ."
    assert tested.startswith("-m pytest -m gpu -k conv2d --junitxml=")
    assert [line.startswith("PYTORCH_NO_CUDA_MEMORY_CACHING=1 ") for line in checked] == [True, False, False]
    assert "not graph" in checked[0]  # which cannot be captured without torch's allocator
    assert all("-m gpu -k" in line for line in checked)
    assert all("not current_stream" in line for line in checked)  # checkers wait
    assert steps["memcheck"]["command"].startswith("PYTORCH_NO_CUDA_MEMORY_CACHING=1 ")
    options = [steps[tool]["command"].partition(" --error-exitcode ")[0].split()[-2:] for tool in gpu.CHECKS]
    assert options == [["--report-api-errors", "no"], ["--tool", "racecheck"], ["--tool", "initcheck"]]


def test_steps_that_fail_in_the_middle(machine, monkeypatch, capsys):
    machine.plan |= {"fails": ["b"], "bench": 3}
    monkeypatch.setenv("FINDS", "racecheck")
    code, steps, log = machine.run()
    assert code == 1
    assert machine.found["failed"] == ["tests", "memcheck", "racecheck", "initcheck", "benchmark"]
    assert list(steps) == STEPS
    assert steps["tests"]["reason"] == "exit status 1"
    assert steps["tests"]["facts"] == {"passed": 2, "failed": 1, "skipped": 0, "failures": ["test_x::b"]}
    assert steps["tests"]["output"] == ["E   assert 1 == 2"]
    assert steps["racecheck"]["reason"] == "racecheck found errors"
    assert steps["benchmark"]["facts"] == {"ceilings": 3}  # as far as it went
    assert sum("pytest" in line for line in log) == 4
    assert "tests      failed" in capsys.readouterr().out


def test_without_the_checker(machine):
    (machine.folder / "compute-sanitizer").unlink()
    code, steps, log = machine.run()
    assert code == 0
    tools = ("memcheck", "racecheck", "initcheck")
    assert statuses(steps) == dict.fromkeys(STEPS, "passed") | dict.fromkeys(tools, "skipped")
    assert "compute-sanitizer is neither in PATH nor in" in steps["memcheck"]["reason"]
    assert sum("pytest" in line for line in log) == 1


@pytest.mark.parametrize("place", ["bin", "compute-sanitizer"])
def test_checker_of_the_toolkit(machine, monkeypatch, tmp_path, place):
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    path = tmp_path / "cuda" / place / "compute-sanitizer"
    path.parent.mkdir(parents=True)
    shutil.move(machine.folder / "compute-sanitizer", path)
    assert gpu.find_sanitizer() == str(path)


def test_a_build_that_fails(machine):
    machine.plan["pip"] = 1
    code, steps, _ = machine.run()
    assert code == 1
    assert machine.found["failed"] == ["build"]
    assert (steps["build"]["reason"], steps["build"]["output"]) == ("exit status 1", ["building"])
    assert list(steps) == STEPS


@pytest.mark.parametrize(
    ("devices", "driver", "reason"),
    [
        ([], None, "torch 2.13 (CUDA 13.0) finds no CUDA device"),
        (
            [CARD],
            "12.4",
            "the kernels were compiled by CUDA 13.0, the driver supports CUDA up to 12.4: update the driver",
        ),
    ],
)
def test_a_machine_that_cannot_run_it(machine, devices, driver, reason):
    machine.plan["machine"]["devices"] = devices
    machine.driver(driver)
    code, steps, _ = machine.run()
    assert code == 1
    assert steps["device"]["reason"].startswith(reason)
    assert list(steps) == STEPS


def test_kernels_that_do_not_run_here(machine):
    machine.plan["library"] = {**KERNELS, "cuda_usable": False, "cuda_unusable_because": "compiled for sm_80"}
    assert machine.run()[0] == 1
    assert {step["name"]: step["reason"] for step in machine.found["steps"]}["library"] == "compiled for sm_80"


def test_what_passes_because_nothing_ran(machine):
    machine.plan["tests"] = []
    code, steps, _ = machine.run()
    assert code == 1
    assert steps["tests"]["reason"] == steps["racecheck"]["reason"] == "no test ran"


def test_a_step_that_hangs(machine):
    machine.plan["sleep"] = 30
    code, steps, _ = machine.run("--limit", 0.5)
    assert code == 1
    assert steps["tests"]["reason"] == "took longer than 0.5 s"
    assert steps["benchmark"]["status"] == "passed"


def wheel(folder, *names):
    path = folder / "tandem_cuda-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


def test_a_wheel_that_was_built_elsewhere(machine):
    machine.driver("12.4")  # whatever toolkit is here: the wheel's counts
    path = wheel(machine.folder, "tandem_cuda/_C.cpython-311-x86_64-linux-gnu.so", "tandem_cuda/libtandem_cuda.so")
    code, steps, log = machine.run("--wheel", path)
    assert code == 0
    assert list(steps) == ["device", "install", *STEPS[2:]]
    (installed,) = (line for line in log if "pip" in line)
    assert installed == f"-m pip install --no-deps --no-index --force-reinstall {path}"
    machine.plan["library"] = {**KERNELS, "file": str(ROOT / "tandem_cuda" / "__init__.py")}
    code, steps, _ = machine.run("--wheel", path)
    assert code == 1
    assert "of the source tree, not the wheel" in steps["library"]["reason"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: wheel(folder, "tandem_cuda/libtandem_cuda.so"), "holds no tandem_cuda/_C.*.so"),
        (lambda folder: wheel(folder, "tandem_cuda/_C.so"), "holds no tandem_cuda/libtandem_cuda.so"),
        (lambda folder: folder / "missing.whl", "WHEEL must be a wheel"),
    ],
)
def test_no_such_wheel(machine, make, reason):
    code, steps, log = machine.run("--wheel", make(machine.folder))
    assert code == 1
    assert reason in steps["install"]["reason"]
    assert not any("pip" in line for line in log)


@pytest.mark.slow
def test_the_tests_need_no_other_package():
    """Of those that the Makefile names; a file that imports another one must leave itself out."""
    text = (ROOT / "Makefile").read_text()
    (named,) = re.findall(r"virtual environment that has ([\w,\s#]+)\. Builds for this device", text)
    packages = re.findall(r"\w+", named.replace(" and ", " "))
    assert {"torch", "pytest", "hypothesis"} < {*packages}
    collect = ["-q", "-p", "no:cacheprovider", "--collect-only", "-m", "gpu", "."]
    result = subprocess.run(
        [sys.executable, "-c", COLLECT, *packages, "tandem_cuda", "--", *collect],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    assert "test_cuda_operators.py::test_every_dtype[cuda-" in result.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("target", ["gpu", "gpu-dry-run"])
def test_make(machine, target):
    """The Makefile hands on what it is given; a dry run runs nothing."""
    (machine.folder / "plan").write_text(json.dumps({**machine.plan, "pip": 1}))
    python = machine.folder / "which"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --python {machine.folder}/python\n')
    python.chmod(0o755)
    path = wheel(machine.folder, "tandem_cuda/_C.so", "tandem_cuda/libtandem_cuda.so")
    command = ["make", target, f"PYTHON={python}", f"WHEEL={path}", f"REPORT={machine.report}", "PYTEST_ARGS=-k x"]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False)
    for step in ("device", "install", "library", "tests", "memcheck", "racecheck", "initcheck", "benchmark"):
        assert f"== {step}\n" in result.stdout, result.stdout + result.stderr
    assert "-m pytest -m gpu -k x" in result.stdout
    assert (result.returncode != 0) == machine.report.exists() == (machine.folder / "log").exists() == (target == "gpu")
    if target == "gpu":
        assert "install" in json.loads(machine.report.read_text())["failed"]
