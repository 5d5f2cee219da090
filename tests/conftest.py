"""Fixtures that several test files share."""

import functools
import os
import re
import subprocess
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# Threads that spin while they wait slow each other down where others use the processor too. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import settings

import host_programs
from tandem_cuda import _C, build_info

# The same examples in every run, however slow the machine.
settings.register_profile("same every time", derandomize=True, deadline=None, database=None, max_examples=100)
# For `make sanitize`, where each takes ten times as long, and `make test-oldest`: --hypothesis-profile few.
settings.register_profile("few", settings.get_profile("same every time"), max_examples=10)
settings.load_profile("same every time")

# What tests compute is small: threads cost more than they give. Tests of the threads set their own number.
torch.set_num_threads(1)

# Real data sets, packed, and what unpacks them; kept beside the repository. CIFAR-10's images are lossy JPEG copies.
LAY_OUT = Path(__file__).parents[2] / "shared" / "data" / "lay_out.py"


def pytest_report_header() -> str:
    """What is being tested under what."""
    info = build_info()
    cuda = info["cuda_toolkit"] or info["cuda_not_built_because"]
    return (
        f"tandem_cuda built against torch {info['torch_built_against']}, running under torch {info['torch']}; "
        f"CPU kernels {info['cpu_isas_runnable']}; CUDA kernels: {cuda}"
    )


_NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _NO_CUDA])])
def device(request: pytest.FixtureRequest) -> str:
    """Where a test of CUDA runs. The CPU stands in for a device, so that tests themselves are tested without one."""
    return request.param


@pytest.fixture(scope="session", params=[pytest.param("cuda", marks=[pytest.mark.gpu, _NO_CUDA])])
def cuda(request: pytest.FixtureRequest) -> str:
    """The device of tests that say nothing on the CPU."""
    return request.param


@pytest.fixture
def restored_rules() -> Iterator[None]:
    """Conversion rules that a test registers are gone behind it."""
    from tandem_cuda.convert.rules import RULES  # few tests need it

    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """torch.compile gives a function, such as forward of nn.Sequential, up in a process that has compiled it often."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


WORKER = os.environ.get("PYTEST_XDIST_WORKER")
"""The name of this process if pytest-xdist runs the tests in several."""


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that all of pytest's processes share."""
    folder = tmp_path_factory.getbasetemp()
    return folder if WORKER is None else folder.parent


@pytest.fixture(scope="session")
def host(shared_folder):
    """Programs that run the CUDA kernels on the host."""
    if reason := host_programs.obstacle():
        pytest.skip(reason)
    programs = host_programs.Host(shared_folder / "cuda_host")
    yield programs
    programs.pool.shutdown(cancel_futures=True)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files whose ``pytestmark`` starts with a mark that ``-m`` excludes: importing Lightning takes long."""
    excluded = re.findall(r"\bnot (\w+)", config.getoption("markexpr"))
    if not excluded or collection_path.suffix != ".py":
        return None
    mark = re.search(r"^pytestmark = (?:\[\s*)?pytest\.mark\.(\w+)", collection_path.read_text(), re.MULTILINE)
    return True if mark is not None and mark[1] in excluded else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """The programs of ``host`` take minutes to compile."""
    if "host" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.nightly)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--at-most", type=int, metavar="N", help="run each test with N of its parameter sets at most, of each operator"
    )
    parser.addoption("--part", metavar="K/N", help="run the K-th of N parts of the tests, drawn by their names")


@pytest.hookimpl(trylast=True)  # of what -m and -k leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests of ``host`` last: its programs take a minute to compile. Leave out what the options leave out."""
    items.sort(key=lambda item: "host" in getattr(item, "fixturenames", ()))
    if most := config.getoption("at_most"):
        of_test = defaultdict(list)
        for item in items:
            case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
            of_test[item.nodeid.partition("[")[0], getattr(case, "operator", None)].append(item)
        _keep({id(item) for group in of_test.values() for item in sorted(group, key=_drawn)[:most]}, config, items)
    if part := config.getoption("part"):
        k, n = map(int, part.split("/"))
        _keep({id(item) for item in items if _drawn(item) % n == k}, config, items)


def _keep(chosen: set[int], config: pytest.Config, items: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = [item for item in items if id(item) in chosen]


def _drawn(item: pytest.Item) -> int:
    """A number by which parameter sets are in no order, and in the same one every time."""
    return zlib.crc32(item.nodeid.encode())


@pytest.fixture(scope="session", autouse=True)
def _host_programs_compile_meanwhile(request: pytest.FixtureRequest) -> None:
    if WORKER not in (None, "gw0") or host_programs.obstacle() is not None:
        return
    parameters = [
        item.callspec.params if hasattr(item, "callspec") else {}
        for item in request.session.items
        if "host" in getattr(item, "fixturenames", ())
    ]
    if any(chosen.get("variant", "plain") == "plain" for chosen in parameters):
        request.getfixturevalue("host").start("plain")


@pytest.fixture(scope="session")
def oracle() -> Path:
    """The folder of the golden values, computed by the implementation that the paper's authors published."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory):
    """Call it with "mnist", "nmnist" or "cifar10" for a folder with that data set; skips where it is absent."""

    @functools.cache
    def folder(name: str) -> Path:
        if not LAY_OUT.is_file():
            pytest.skip(f"no data: {LAY_OUT} is no file")
        folder = tmp_path_factory.mktemp(name)
        subprocess.run([sys.executable, LAY_OUT, folder, name], check=True, capture_output=True)
        return folder

    return folder


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Networks that a file makes when it is imported have the same weights in every run, too."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_random_numbers(request: pytest.FixtureRequest) -> None:
    """Networks of a test have the same weights in every run, whatever ran before in this process."""
    torch.manual_seed(_drawn(request.node))


@pytest.fixture(autouse=True)
def _restore_cpu_path():
    """Undo what a test did to the instruction set, the number of threads and torch's determinism."""
    isa, threads = _C.cpu_isa(), torch.get_num_threads()
    yield
    _C.set_cpu_isa(isa)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
