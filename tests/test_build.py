"""The build and what it says about itself: build_info, the doctor, messages of a build or an import that fails."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import tandem_cuda
from exact import ISAS, slow
from tandem_cuda import _C, IF, LIF
from tandem_cuda._cuda_versions import driver_obstacle
from tandem_cuda.build_info import _cuda_obstacle, _runs_on

ROOT = Path(__file__).resolve().parents[1]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

LIBRARY = Path(tandem_cuda.__file__).with_name("libtandem_cuda.so")

# The compiled library's facts on a machine where all is well
WORKING = {**_C.build_info(), "cuda_toolkit": "13.0.88", "cuda_architectures": ["sm_80"], "cuda_driver": "13.0"}


def run(*command, cwd, **environment):
    ours = (
        "CMAKE_ARGS",
        "CUDACXX",
        "CUDA_HOME",
        "PYTHONPATH",
        "TANDEM_CPU_ISA",
        "TANDEM_CUDA",
        "TANDEM_OPERATORS",
        "TORCH_CUDA_ARCH_LIST",
    )
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# ---- build_info, the doctor, instruction sets


def test_build_info():
    info = tandem_cuda.build_info()
    assert info["version"] == tandem_cuda.__version__ == metadata.version("tandem_cuda")
    assert Path(tandem_cuda.library_path).samefile(LIBRARY)
    assert info["torch"] == torch.__version__
    assert info["torch_stable_abi"] == "2.11"
    assert info["threads"] == torch.get_num_threads()
    assert info["cpu_isas_compiled"][0] == "scalar"
    # In ascending order. A processor may lack one of them and have those above it, as Zen 4 lacks avxvnni.
    assert info["cpu_isas_runnable"] == [isa for isa in info["cpu_isas_compiled"] if isa in info["cpu_isas_runnable"]]
    assert info["cpu_isa"] in info["cpu_isas_runnable"]
    assert (info["cuda_toolkit"] is None) == (info["cuda_architectures"] == []) == bool(info["cuda_not_built_because"])
    assert info["cuda_usable"] == (info["cuda_unusable_because"] is None)
    if not torch.cuda.is_available():
        assert not info["cuda_usable"]


def test_doctor():
    capped = {name: value for name, value in os.environ.items() if name == "TANDEM_CPU_ISA"}
    result = run(sys.executable, "-m", "tandem_cuda", cwd=ROOT, **capped)
    assert result.returncode == 0, result.stderr
    info = tandem_cuda.build_info()
    assert f"tandem_cuda {info['version']}" in result.stdout
    assert f"{info['cpu_isa']} in use" in result.stdout
    assert f"torch {torch.__version__} (built" in " ".join(result.stdout.split())
    assert info["processor"] in result.stdout
    if info["cuda_unusable_because"]:
        assert f"not usable: {info['cuda_unusable_because']}" in result.stdout


@pytest.mark.parametrize("isa", [ISAS[0], *(slow(isa) for isa in ISAS[1:])])
def test_environment_caps_the_instruction_set(isa):
    result = run(sys.executable, "-m", "tandem_cuda", cwd=ROOT, TANDEM_CPU_ISA=isa)
    assert f"{isa} in use" in result.stdout
    assert f"TANDEM_CPU_ISA={isa} caps" in result.stdout


@pytest.mark.parametrize("command", [[], ["bench"]])
def test_environment_names_no_instruction_set(command):
    result = run(sys.executable, "-m", "tandem_cuda", *command, cwd=ROOT, TANDEM_CPU_ISA="foo")
    assert result.returncode == 1
    assert re.fullmatch(r"TANDEM_CPU_ISA must be one of scalar.*, got foo\n", result.stderr)


def test_set_cpu_isa():
    for isa in _C.build_info()["cpu_isas_runnable"]:
        _C.set_cpu_isa(isa)
        assert _C.cpu_isa() == isa
    with pytest.raises(ValueError, match=r"set_cpu_isa: .* scalar.*, got sse9"):
        _C.set_cpu_isa("sse9")
    assert _C.cpu_isa() == isa


def test_instruction_set_of_another_processor():
    compiled = _C.build_info()["cpu_isas_compiled"]
    foreign = "avx2" if "neon" in compiled else "neon"
    result = run(sys.executable, "-m", "tandem_cuda", cwd=ROOT, TANDEM_CPU_ISA=foreign)
    assert result.returncode != 0
    assert f"TANDEM_CPU_ISA must be one of {' '.join(compiled)}, got {foreign}" in result.stderr
    with pytest.raises(ValueError, match=f"set_cpu_isa: instruction set must be one of scalar.*, got {foreign}"):
        _C.set_cpu_isa(foreign)


def test_why_cuda_is_unusable(monkeypatch):
    not_built = {**WORKING, "cuda_toolkit": None, "cuda_not_built_because": "nvcc not found"}
    assert _cuda_obstacle(not_built) == "the kernels were not compiled: nvcc not found"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "was built without CUDA" in _cuda_obstacle(WORKING)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _cuda_obstacle(WORKING) == _cuda_obstacle({**WORKING, "cuda_driver": None}) == "torch finds no CUDA device"
    # torch may find none for the same reason.
    assert "the driver supports CUDA up to 12.8" in _cuda_obstacle({**WORKING, "cuda_driver": "12.8"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "the driver supports CUDA up to 12.8" in _cuda_obstacle({**WORKING, "cuda_driver": "12.8"})
    assert "Tesla T4 has compute capability 7.5, but the kernels were compiled for sm_80" in _cuda_obstacle(WORKING)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert _cuda_obstacle(WORKING) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    newer = {**WORKING, "cuda_toolkit": "13.2", "cuda_architectures": ["sm_80", "compute_80"]}
    assert "as PTX by CUDA 13.2, the driver supports CUDA up to 13.0" in _cuda_obstacle(newer)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert _cuda_obstacle(newer) is None


@pytest.mark.parametrize(
    ("toolkit", "driver", "ptx", "serves"),
    [
        ("13.0", None, False, True),  # no driver to ask: the build may be for another machine
        ("12.8", "12.4", False, True),
        ("12.8", "12.4", True, False),
        ("12.8.93", "12.8", True, True),
        ("12.8", "13.0", True, True),
        ("13.0", "12.9", False, False),
        ("13.0", "12.9", True, False),
        ("9.2", "10.0", False, True),
    ],
)
def test_which_driver_serves_a_toolkit(toolkit, driver, ptx, serves):
    obstacle = driver_obstacle(toolkit, driver, ptx=ptx)
    assert (obstacle is None) == serves
    if not serves:
        assert f"by CUDA {toolkit}, the driver supports CUDA up to {driver}: update the driver" in obstacle


def test_driver_check_without_the_library():
    """As the build and make gpu run it: by a Python that has nothing."""
    script = ROOT / "tandem_cuda" / "_cuda_versions.py"
    result = run(sys.executable, "-I", "-S", script, "13.0", "12.4", cwd=ROOT)
    assert result.returncode == 0
    assert result.stdout == driver_obstacle("13.0", "12.4")
    assert run(sys.executable, "-I", "-S", script, "13.0", "13.0", cwd=ROOT).stdout == ""


@pytest.mark.parametrize(
    ("architecture", "runs", "does_not"),
    [
        ("sm_80", [(8, 0), (8, 9)], [(7, 5), (9, 0)]),
        ("sm_86", [(8, 6), (8, 9)], [(8, 0)]),
        ("compute_90", [(9, 0), (10, 0), (12, 0)], [(8, 9)]),
        ("sm_90a", [(9, 0)], [(8, 0), (10, 0)]),
        ("sm_100f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
    ],
)
def test_which_devices_an_architecture_runs_on(architecture, runs, does_not):
    assert all(_runs_on(architecture, *capability) for capability in runs)
    assert not any(_runs_on(architecture, *capability) for capability in does_not)


# ---- The neuron step shown to NumPy


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("neuron", [IF(0.75), LIF(0.75, 0.9)], ids=str)
def test_numpy_integrate_and_fire(dtype, neuron):
    current = np.random.default_rng(0).normal(0.3, 0.7, (19, 65)).astype(dtype)
    threshold, leak = dtype(neuron.threshold), dtype(neuron.leak)
    u, fired, expected = np.zeros(65, dtype), np.zeros(65, bool), []
    for x in current:
        u = (leak * u - np.where(fired, threshold, dtype(0))) + x
        fired = u >= threshold
        expected.append(fired)
    model = neuron.kind, neuron.parameters
    spikes = _C.integrate_and_fire(current, *model)
    assert spikes.dtype == np.uint8
    np.testing.assert_array_equal(spikes, np.array(expected))
    np.testing.assert_array_equal(_C.integrate_and_fire(np.asfortranarray(current), *model), spikes)


def test_numpy_integrate_and_fire_edge_cases():
    model = IF().kind, IF().parameters
    current = np.array([[1.0, np.nan, 0.5], [1.0, 1.0, 0.25]])
    np.testing.assert_array_equal(_C.integrate_and_fire(current, *model), [[1, 0, 0], [1, 0, 0]])
    assert _C.integrate_and_fire(np.zeros((0, 3)), *model).shape == (0, 3)
    with pytest.raises(ValueError, match=r"current must have 2 dimensions \[T, n\], got 1"):
        _C.integrate_and_fire(np.zeros(3), *model)
    with pytest.raises(TypeError, match="current must be float32 or float64, got int64"):
        _C.integrate_and_fire(np.zeros((2, 3), np.int64), *model)
    with pytest.raises(ValueError, match=r"neuron must be from 0 to .*, got -1"):
        _C.integrate_and_fire(current, -1, [1.0])
    with pytest.raises(ValueError, match=r"parameters of LIF must be . numbers, got 0"):
        _C.integrate_and_fire(current, LIF().kind, [])


# ---- The interface for C and C++


TEXT = ctypes.CFUNCTYPE(ctypes.c_char_p)


class Interface(ctypes.Structure):
    """TandemCuda of csrc/interface.h."""

    _fields_ = (
        ("version", ctypes.c_char_p),
        ("size", ctypes.c_size_t),
        ("torch_built_against", ctypes.c_char_p),
        ("torch_stable_abi", ctypes.c_char_p),
        ("compiler", ctypes.c_char_p),
        ("cuda_toolkit", ctypes.c_char_p),
        ("cuda_architectures", ctypes.c_char_p),
        ("cuda_not_built_because", ctypes.c_char_p),
        ("cuda_driver", TEXT),
        ("cpu_isas_compiled", TEXT),
        ("cpu_isas_runnable", TEXT),
        ("cpu_isa", TEXT),
        ("set_cpu_isa", ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_char_p)),
        ("fingerprint", ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64)),
        ("prefer_huge_pages", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)),
        ("error", TEXT),
    )


@pytest.fixture
def interface():
    function = ctypes.CDLL(str(LIBRARY)).tandem_cuda_interface
    function.restype = ctypes.POINTER(Interface)
    return function().contents


def test_interface(interface):
    assert interface.size == ctypes.sizeof(Interface)
    assert interface.version.decode() == _C.__version__
    assert interface.cpu_isa().decode() == _C.cpu_isa()
    assert interface.cpu_isas_runnable().decode().split() == _C.build_info()["cpu_isas_runnable"]
    driver = interface.cuda_driver()
    assert (driver and driver.decode()) == _C.build_info()["cuda_driver"]


def test_interface_refuses(interface):
    before = interface.cpu_isa()
    assert not interface.set_cpu_isa(None)
    assert interface.error() == b"set_cpu_isa: name must be a text, got null"
    assert not interface.set_cpu_isa(b"sse9" * 1000)
    assert re.fullmatch(rb"set_cpu_isa: instruction set must be one of scalar.*, got (sse9){1000}", interface.error())
    assert interface.cpu_isa() == before


# ---- Imports that fail


@pytest.fixture
def unbuilt(tmp_path):
    """A source tree without the compiled library."""
    shutil.copytree(
        ROOT / "tandem_cuda", tmp_path / "tandem_cuda", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    return tmp_path


def without_library(tree, script):
    """Run a script with the package of a source tree."""
    # Without setuptools' finder for editable installs, which would find the compiled library all the same
    finders = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]"
    return run(sys.executable, "-c", f"{finders}\n{script}", cwd=tree)


def import_error(tree):
    """What the first use of a name says."""
    result = without_library(tree, "import tandem_cuda; tandem_cuda.synops")
    assert result.returncode == 1
    return result.stderr.strip().splitlines()[-1]


def test_import_unbuilt(unbuilt):
    message = import_error(unbuilt)
    assert message.startswith("ImportError: tandem_cuda: no compiled library for this Python")
    assert "never built" in message
    assert "pip install -e . --no-build-isolation" in message


def test_doctor_unbuilt(unbuilt):
    result = without_library(unbuilt, "import runpy; runpy.run_module('tandem_cuda', run_name='__main__')")
    assert result.returncode == 1
    assert result.stderr.startswith("tandem_cuda: no compiled library for this Python")
    assert len(result.stderr.splitlines()) == 1


def test_import_built_for_another_python(unbuilt):
    (unbuilt / "tandem_cuda" / "_C.cpython-27-x86_64-linux-gnu.so").touch()
    assert "found _C.cpython-27-x86_64-linux-gnu.so, built for another Python" in import_error(unbuilt)


REFERENCE_ALONE = """
import torch
import tandem_cuda
import tandem_cuda.reference as ref
from tandem_cuda import neuron, reference
from tandem_cuda.neuron import IF
net = torch.nn.Sequential(ref.Encode(4), ref.TandemConv2d(1, 2, 3, neuron=IF(0.5)), ref.Decode())
assert net(torch.rand(1, 1, 5, 5)).shape == (1, 2, 3, 3)
assert not hasattr(tandem_cuda, "__wrapped__")
"""


@pytest.fixture
def unloadable(unbuilt):
    """A source tree whose library is not one."""
    (unbuilt / "tandem_cuda" / f"_C{SUFFIX}").write_text("no library")
    return unbuilt


@pytest.mark.parametrize("tree", ["unbuilt", "unloadable"])
def test_reference_needs_no_library(request, tree):
    result = without_library(request.getfixturevalue(tree), REFERENCE_ALONE)
    assert result.returncode == 0, result.stderr


EVERYTHING_ELSE = """
import importlib, pkgutil
import tandem_cuda
statements = [f"tandem_cuda.{name}" for name in (*NAMES, "__version__", "_C") if name != "reference"]
statements += [f"from {statement.replace('.', ' import ')}" for statement in statements]
statements += ["from tandem_cuda import *", "from tandem_cuda import nn", "tandem_cuda.nn"]
statements += [f"import tandem_cuda.{m.name}" for m in pkgutil.iter_modules(tandem_cuda.__path__) if m.name not in FREE]
for statement in statements:
    for again in range(2):
        try:
            exec(statement)
        except ImportError as error:
            assert str(error).startswith("tandem_cuda: no compiled library"), f"{statement}: {error}"
            assert error.name == "tandem_cuda._C", statement
        else:
            raise AssertionError(statement)
print(len(statements))
"""


def test_everything_else_does(unbuilt):
    # The last one imports little itself.
    free = ("reference", "neuron", "_load", "_cuda_versions", "_progress", "_table", "exchange")
    result = without_library(unbuilt, f"FREE = {free}\nNAMES = {tandem_cuda.__all__}\n{EVERYTHING_ELSE}")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 2 * len(tandem_cuda.__all__)


@pytest.fixture
def half_built(unbuilt):
    """A source tree with the module of this Python, without the library of the operators."""
    shutil.copy(_C.__file__, unbuilt / "tandem_cuda")
    return unbuilt


def test_import_without_the_operators(half_built):
    message = import_error(half_built)
    assert "is incomplete: there is no libtandem_cuda.so with the operators. Build it by running" in message


def test_import_without_the_operators_of_an_installed_package(half_built):
    (half_built / "CMakeLists.txt").unlink()
    assert "no libtandem_cuda.so with the operators. Reinstall tandem_cuda: pip install --force" in import_error(
        half_built
    )


def compiled(path, source):
    """A library of C code."""
    path.with_suffix(".c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", path.with_suffix(".c"), "-o", path], check=True)


needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")


@needs_cc
@pytest.mark.parametrize(
    ("operators", "reason"),
    [
        (
            'static const char *facts[] = {"0.0.7"}; const char **tandem_cuda_interface(void) { return facts; }',
            rf"\S+/libtandem_cuda\.so is of version 0\.0\.7, the Python module of version {re.escape(_C.__version__)}",
        ),
        (
            f'struct {{ const char *version; unsigned long size; }} facts = {{"{_C.__version__}", 48}};'
            "void *tandem_cuda_interface(void) { return &facts; }",
            rf"\S+/libtandem_cuda\.so is of another build of version {re.escape(_C.__version__)} than the Python "
            rf"module: its interface has 48 bytes, not {ctypes.sizeof(Interface)}",
        ),
        ("int nothing;", r"\S+: undefined symbol: tandem_cuda_interface"),
    ],
    ids=["another version", "another build", "something else"],
)
def test_import_with_operators_that_do_not_fit(half_built, operators, reason):
    compiled(half_built / "tandem_cuda" / "libtandem_cuda.so", operators)
    fix = r"Build it by running this command there: pip install -e \. --no-build-isolation"
    expected = rf"ImportError: tandem_cuda: the files of the compiled library do not fit together: {reason}\. {fix}"
    assert re.fullmatch(expected, import_error(half_built))


@needs_cc
def test_import_undefined_symbol(half_built):
    call = "void torch_of_the_future(void); void *tandem_cuda_interface(void) { torch_of_the_future(); return 0; }"
    compiled(half_built / "tandem_cuda" / "libtandem_cuda.so", call)
    message = import_error(half_built)
    assert f"does not load under torch {torch.__version__}" in message
    assert "undefined symbol: torch_of_the_future" in message
    assert "needs torch >= 2.11" in message


FIRST_CALLS = """
import sys
import torch
from torch import nn
import tandem_cuda
from tandem_cuda import Decode, Encode, TandemLinear
net = nn.Sequential(Encode(4), TandemLinear(3, 2), Decode())
net(torch.rand(2, 3)).sum().backward()
tandem_cuda.freeze(net.eval())(torch.rand(2, 3))
sys.exit(next((f"imported {name}" for name in ("torch._dynamo", "sympy") if name in sys.modules), 0))
"""


def test_first_calls_import_no_compiler():
    """torch.compile's modules take longer to import than torch itself. Only convert needs them, for torch.export."""
    result = run(sys.executable, "-c", FIRST_CALLS, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")


ASKED_FOR_SIZES = """
import gc
import math
import sys
import weakref
import torch
from torch import nn
import tandem_cuda

class Asks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        try:
            tall = x.shape[2] > 4
        except Exception:
            tall = False
        x = torch.relu(self.a(x))
        return self.b(x.mean((2, 3)) * (2 if tall else 1))

ann = Asks().eval()
snn = tandem_cuda.convert(ann, 8, calibrate=torch.rand(20, 3, 6, 6))
assert "torch._dynamo" in sys.modules
assert any(module.in_features == 4 for module in snn.modules() if isinstance(module, nn.Linear))
left = weakref.ref(ann)
del ann, snn
gc.collect()
assert left() is None
compiled = torch.compile(lambda x: x / math.log2(16) * torch.is_tensor(x), backend="eager", fullgraph=True)
assert compiled(torch.ones(2)).tolist() == [0.25, 0.25]
"""


def test_questions_leave_the_compiler_as_it_is():
    """A network that asks for sizes, before anybody else has imported the compiler; even if it catches every error."""
    result = run(sys.executable, "-c", ASKED_FOR_SIZES, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")


# ---- The compiled files


OPERATORS_ALONE = """
import sys
import torch
torch.ops.load_library(sys.argv[1])
bits = torch.ops.tandem_cuda.pack_spikes(torch.ones(3, 1, 2))
assert bits.tolist() == [[[7, 7]]]
assert "tandem_cuda" not in sys.modules
import tandem_cuda  # finds the library that is there, and registers nothing a second time
assert tandem_cuda.ops.spike_count(bits).tolist() == [[3, 3]]
"""


def test_operators_without_the_package():
    result = run(sys.executable, "-c", OPERATORS_ALONE, LIBRARY, cwd=ROOT)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
@pytest.mark.parametrize(("file", "symbol"), [(_C.__file__, "PyInit__C"), (LIBRARY, "tandem_cuda_interface")])
def test_files_export_one_symbol_each(file, symbol):
    result = run("nm", "-D", "--defined-only", file, cwd=ROOT)
    assert [line.split()[-1] for line in result.stdout.splitlines()] == [symbol]


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_operators_need_no_python_and_the_module_no_torch():
    def undefined(file):
        result = run("nm", "-D", "--undefined-only", file, cwd=ROOT)
        return [line.split()[-1].partition("@")[0] for line in result.stdout.splitlines()]

    python, torch_stable = re.compile("_?Py"), re.compile("aoti_torch|torch_")
    assert not [name for name in undefined(LIBRARY) if python.match(name)]
    assert [name for name in undefined(LIBRARY) if torch_stable.match(name)]
    assert [name for name in undefined(_C.__file__) if python.match(name)]
    assert not [name for name in undefined(_C.__file__) if torch_stable.match(name)]


@pytest.mark.skipif(not shutil.which("readelf"), reason="needs readelf")
def test_libraries_depend_on_no_place_and_no_cuda():
    operators, module = (run("readelf", "-d", file, cwd=ROOT).stdout for file in (LIBRARY, _C.__file__))
    assert "[libtorch_cpu.so]" in operators
    assert not re.search(r"RPATH|RUNPATH|libcuda|libtorch_cuda|libtorch_python|libpython", operators)
    assert "[libtandem_cuda.so]" in module
    assert re.findall(r"(?:RPATH|RUNPATH).*\[(.*)\]", module) == ["$ORIGIN"]
    assert not re.search(r"libcuda|libtorch|libpython", module)


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_instruction_sets_do_not_leak():
    """A shared inline function, compiled for AVX-512, could replace its scalar copy at link time."""
    folders = [path for isa in ("avx*", "neon*") for path in ROOT.glob(f"build/*/CMakeFiles/tandem_{isa}_kernels.dir")]
    objects = [(folder, path) for folder in folders for path in folder.rglob("*.isa.cpp.o")]
    if not objects:
        pytest.skip("built elsewhere")
    for folder, path in objects:
        own = f"tandem::{folder.name.removeprefix('tandem_').removesuffix('_kernels.dir')}::"
        symbols = run("nm", "-C", "--defined-only", path, cwd=ROOT).stdout.splitlines()
        assert [line for line in symbols if re.search(r" [WVu] ", line) and own not in line] == []


# ---- Building


def configure(folder, *arguments, **environment):
    """Configure the build alone; CMake's messages, unwrapped."""
    cmake, ninja = pytest.importorskip("cmake"), pytest.importorskip("ninja")
    result = run(
        Path(cmake.CMAKE_BIN_DIR, "cmake"),
        "-GNinja",
        f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR, 'ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-S",
        ROOT,
        "-B",
        folder,
        *arguments,
        cwd=folder,
        **environment,
    )
    return result.returncode, " ".join((result.stdout + result.stderr).split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"TANDEM_CUDA": "ON", "CUDA_HOME": "/nowhere"},
            "TANDEM_CUDA=ON, but nvcc not found (CUDA_HOME=/nowhere); set CUDACXX",
        ),
        (
            {"TANDEM_CUDA": "banana"},
            "TANDEM_CUDA must be ON or OFF (or unset: ON where nvcc is found), got 'banana'",
        ),
        *(
            (
                {"TANDEM_OPERATORS": there},
                f"TANDEM_OPERATORS must be the full path of a libtandem_cuda.so, got '{there}'",
            )
            for there in ("/nowhere/libtandem_cuda.so", __file__, "libtandem_cuda.so")
        ),
    ],
)
def test_what_the_build_refuses(tmp_path, environment, message):
    code, messages = configure(tmp_path, **environment)
    assert code != 0
    assert message in messages


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"TANDEM_CUDA": "OFF"}, "TANDEM_CUDA=OFF"),
        ({"CUDACXX": "/nowhere/nvcc"}, "nvcc not found (CUDACXX=/nowhere/nvcc)"),
    ],
)
def test_without_cuda(tmp_path, environment, reason):
    code, messages = configure(tmp_path, **environment)
    assert code == 0
    assert f"CUDA kernels: not built, {reason}" in messages


@pytest.mark.slow
def test_architecture_list(tmp_path):
    nvcc = tmp_path / "nvcc"  # never run: the list is read first
    nvcc.touch(mode=0o755)
    code, messages = configure(tmp_path, CUDACXX=str(nvcc), TORCH_CUDA_ARCH_LIST="8.0;Hopper")
    assert code != 0
    assert "TORCH_CUDA_ARCH_LIST must list compute capabilities like '8.0;9.0+PTX', got 'Hopper'" in messages
    _, messages = configure(tmp_path, CUDACXX=str(nvcc), TORCH_CUDA_ARCH_LIST="8.6 9.0a 12.0+PTX")
    assert "for sm_86;sm_90a;sm_120;compute_120" in messages


@pytest.mark.slow
@pytest.mark.parametrize(("driver", "warns"), [("11.8", True), ("99.0", False), ("", False)])
def test_driver_that_is_older_than_the_toolkit(tmp_path, driver, warns):
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("no nvcc in /usr/local/cuda/bin")
    code, messages = configure(tmp_path, f"-DTANDEM_CUDA_DRIVER={driver}", CUDA_HOME="/usr/local/cuda")
    assert code == 0, messages
    assert (f"the driver supports CUDA up to {driver}: update the driver" in messages) == warns


ADDS_BYTES = ("avxvnni", "avx512vnni", "neondot")  # to another instruction set: products of bytes alone


def compiled_isas(commands):
    """The instruction sets that every family of kernels, or that of bytes, is compiled for, and the library knows."""
    every = sorted(path.name for path in ROOT.glob("csrc/ops/*/*.isa.cpp"))
    isas = {}
    for command in json.loads(commands):
        if isa := re.search(r"-DTANDEM_ISA=(\w+)", command["command"]):
            isas.setdefault(isa[1], []).append(Path(command["file"]).name)
    for isa, families in isas.items():
        assert sorted(families) == (["count.isa.cpp"] if isa in ADDS_BYTES else every)
    assert {f"TANDEM_{isa.upper()}_KERNELS" for isa in isas} <= set(re.findall(r"TANDEM_\w+_KERNELS", commands))
    return sorted(isas)


@pytest.mark.slow
@pytest.mark.parametrize(("processor", "isas"), [("aarch64", ["neon", "neondot", "scalar"]), ("riscv64", ["scalar"])])
def test_kernels_of_other_processors(tmp_path, processor, isas):
    toolchain = tmp_path / "toolchain.cmake"
    toolchain.write_text(f"set(CMAKE_SYSTEM_NAME Linux)\nset(CMAKE_SYSTEM_PROCESSOR {processor})\n")
    code, messages = configure(tmp_path, TANDEM_CUDA="OFF", CMAKE_TOOLCHAIN_FILE=str(toolchain))
    assert code == 0, messages
    commands = (tmp_path / "compile_commands.json").read_text()
    assert compiled_isas(commands) == isas
    assert "TANDEM_X86_KERNELS" not in commands
    assert "-mavx" not in commands


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in _C.build_info()["cpu_isas_compiled"], reason="for x86-64")
def test_fewer_instruction_sets(tmp_path):
    code, messages = configure(tmp_path, "-DTANDEM_CPU_ISAS=avx2", TANDEM_CUDA="OFF")
    assert code == 0, messages
    commands = (tmp_path / "compile_commands.json").read_text()
    assert compiled_isas(commands) == ["avx2", "scalar"]
    assert "TANDEM_X86_KERNELS" in commands
    code, messages = configure(tmp_path, "-DTANDEM_CPU_ISAS=avx2;sse9", TANDEM_CUDA="OFF")
    assert code != 0
    known = "avx2, avxvnni, avx512, avx512vnni, avx512vbmi2"
    assert f"TANDEM_CPU_ISAS must list some of {known}, got 'sse9'" in messages
    code, messages = configure(tmp_path, "-DTANDEM_CPU_ISAS=avx2;avx512vnni", TANDEM_CUDA="OFF")
    assert code != 0
    assert "TANDEM_CPU_ISAS must list avx512 where it lists avx512vnni" in messages
    older = "-DTANDEM_CPU_ISAS=avx2;avxvnni", "-DTANDEM_HAS_AVX_VNNI=OFF"  # as of a compiler older than AVX-VNNI
    code, messages = configure(tmp_path, *older, TANDEM_CUDA="OFF")
    assert code == 0, messages
    assert "CPU kernels: none for avxvnni" in messages
    assert compiled_isas((tmp_path / "compile_commands.json").read_text()) == ["avx2", "scalar"]
    code, messages = configure(tmp_path, "-UTANDEM_CPU_ISAS", "-UTANDEM_HAS_AVX_VNNI", TANDEM_CUDA="OFF")
    assert code == 0, messages
    isas = compiled_isas((tmp_path / "compile_commands.json").read_text())
    assert {*isas, "avxvnni"} == {"scalar", *known.split(", ")}


@pytest.fixture
def sdist(tmp_path):
    """The source distribution of this tree, unpacked."""
    pytest.importorskip("build")
    result = run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    return tmp_path / archive.name.removesuffix(".tar.gz")


def wheel_of(tree, folder, **environment):
    """Build the wheel of a tree into a folder. Returns its path."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder]
    result = run(sys.executable, "-m", "pip", "wheel", *options, tree, cwd=tree.parent, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


SOURCES = ("csrc", "tandem_cuda", "tests", "release", "CMakeLists.txt", "setup.py", "pyproject.toml", "Makefile")


@pytest.mark.slow
def test_sdist_has_every_source(sdist, tmp_path):
    """So that what builds from this tree builds from it, too. Operators that are there serve another build."""
    assert not [path for path in sdist.rglob("*") if path.suffix in (".so", ".o", ".pyc")]
    tracked = run("git", "ls-files", "-z", "--", *SOURCES, cwd=ROOT)
    if tracked.returncode:
        pytest.skip("no git checkout")
    files = [name for name in tracked.stdout.split("\0") if name and (ROOT / name).exists()]
    assert len(files) > 100
    assert [name for name in files if not (sdist / name).exists()] == []
    assert [name for name in files if (sdist / name).read_bytes() != (ROOT / name).read_bytes()] == []
    # Such a build does not even look at torch.
    wheel = wheel_of(sdist, tmp_path / "wheels", TANDEM_OPERATORS=str(LIBRARY))
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("tandem_cuda/libtandem_cuda.so") == LIBRARY.read_bytes()


@pytest.mark.nightly
def test_sdist_builds_by_itself(sdist, tmp_path):
    """Source tree -> sdist -> wheel -> a package that imports, none of which sees the source tree again."""
    # Little optimised, and the scalar kernels alone: test_sdist_has_every_source compares the sources of the rest.
    fast = "-DTANDEM_CPU_ISAS= -DCMAKE_CXX_FLAGS_RELEASE='-O1 -DNDEBUG'"
    wheel = wheel_of(sdist, tmp_path / "wheels", TANDEM_CUDA="OFF", CMAKE_ARGS=fast)
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    result = run(*pip, "--target", installed, wheel, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    show = "import tandem_cuda; print(tandem_cuda.__file__, tandem_cuda.build_info()['cuda_not_built_because'])"
    result = run(sys.executable, "-c", show, cwd=installed)
    assert result.stdout.split() == [str(installed / "tandem_cuda" / "__init__.py"), "TANDEM_CUDA=OFF"], result.stderr
    assert (installed / "tandem_cuda" / "py.typed").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_refused_by_torch():
    """The library loads beside a CUDA build of torch too; asking it for CUDA then ends in torch's own words."""
    message = "NVIDIA|CUDA" if torch.version.cuda else "Torch not compiled with CUDA enabled"
    with pytest.raises((RuntimeError, AssertionError), match=message):
        tandem_cuda.ops.pack_spikes(torch.zeros(8, 1, 4).cuda())
    with pytest.raises((RuntimeError, AssertionError), match=message):
        tandem_cuda.TandemLinear(4, 2).cuda()
