"""Which nightly tests run when files have changed, and that each of them is in a group."""

import os
import re
import subprocess
import sys

import pytest

import nightly
from nightly import GROUPS, PASSED, ROOT, base_of, changed_files, due, files_of, guards, included, matches, record

TESTS = {f"tests/{path.name}": path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
ON_CHANGE = [name for name, group in GROUPS.items() if group.guards is not None]


def git(repository, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout.strip()


def commit(repository, **files):
    """Commit files, whose names have __ for a slash; returns the commit."""
    for name, text in files.items():
        path = repository / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "change")
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a commit, beside which no environment says what to compare with."""
    monkeypatch.delenv("CI_BASE", raising=False)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path, README="", csrc__core__plan="", csrc__a="one")
    return tmp_path


# ---- The table


def test_every_nightly_test_is_in_a_group():
    marked = {name for name, text in TESTS.items() if re.search(r"mark\.nightly|\bnightly\(", text)}
    marked.discard("tests/test_nightly.py")
    assert marked == set().union(*map(files_of, GROUPS.values()))
    for name in marked:
        named = [test for group in GROUPS.values() for test in group.tests.split() if test.startswith(name)]
        assert named == [name] or all("::" in test for test in named)  # once, or by parts


@pytest.mark.parametrize("name", ["tests/test_cuda_host.py", "tests/test_cuda_ptx.py"])
def test_parts_of_a_file_are_the_whole(name):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:xdist",
        "-m",
        "nightly and not gpu",
        name,
    ]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tests = [line for line in collected.splitlines() if line.startswith(f"{name}::")]
    assert len(tests) > 20
    parts = [part for group in GROUPS.values() for part in group.tests.split() if part.startswith(name)]
    assert all(sum(f"{test}[".startswith(f"{part}[") for part in parts) == 1 for test in tests)


def test_every_pattern_names_files():
    places = [ROOT.glob("*"), *((ROOT / folder).rglob("*") for folder in ("csrc", "tandem_cuda", "tests", "examples"))]
    there = [path.relative_to(ROOT).as_posix() for paths in places for path in paths if path.is_file()]
    for name, group in GROUPS.items():
        for pattern in (group.guards or "").split():
            assert any(matches(pattern, file) for file in there), (name, pattern)
        for pattern in group.sources.split():
            assert [*ROOT.glob(pattern)], (name, pattern)


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("address sanitizer", "csrc/**/*.cpp"),
        ("aarch64", "csrc/**/*.isa.cpp csrc/cpu/isa.cpp tests/cpp/*.cpp"),
    ],
)
def test_what_programs_include_is_guarded(name, sources):
    files = included(sources)
    assert len(files) > 20
    assert [file for file in files if not guards(GROUPS[name], file)] == []


def test_sources_guard_what_they_include():
    group = GROUPS["CUDA kernels on the host"]
    assert guards(group, "csrc/ops/product/integer_product.cu")
    assert guards(group, "csrc/ops/product/fragment_layout.h")
    assert guards(group, "csrc/core/bit_planes.h")
    assert not guards(group, "csrc/ops/product/count_tile.inl.h")


@pytest.mark.parametrize(
    ("pattern", "file", "expected"),
    [
        ("csrc/**", "csrc/ops/a.cu", True),
        ("csrc/**", "tests/csrc/a", False),
        ("csrc/**.cu", "csrc/ops/product/a.cu", True),
        ("csrc/**.cu", "csrc/a.cuh", False),
        ("tests/cpp/*", "tests/cpp/a.h", True),
        ("tests/cpp/*", "tests/cpp/cuda_host/a.h", False),
        ("setup.py", "setup_py", False),
        ("setup.py", "setup.py", True),
    ],
)
def test_patterns(pattern, file, expected):
    assert matches(pattern, file) == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("README.md", []),
        ("tandem_cuda/nn/tandem.py", []),
        ("tests/test_large.py", []),
        ("csrc/module.cpp", ["address sanitizer"]),
        ("csrc/cpu/isa.cpp", ["address sanitizer", "aarch64"]),
        (
            "csrc/ops/max_pool/max_pool_spikes.cu",
            ["address sanitizer", "CUDA resources", "CUDA kernels on the host", "PTX on the host"],
        ),
        ("CMakeLists.txt", ["address sanitizer", "source distribution"]),
        ("examples/train.py", ["examples"]),
        ("tests/test_recipes.py", ["examples"]),
    ],
)
def test_groups_of_a_file(file, expected):
    assert due({file, "docs/index.md"}) == expected


# ---- What has changed


def test_files_that_differ_from_the_base(repository):
    base = git(repository, "rev-parse", "HEAD")
    assert changed_files(base, repository) == set()
    commit(repository, csrc__a="two", csrc__b="")
    git(repository, "mv", "csrc/core/plan", "moved")
    (repository / "README").write_text("not committed")
    (repository / "new and ünusual").touch()
    expected = {"csrc/a", "csrc/b", "csrc/core/plan", "moved", "README", "new and ünusual"}
    assert changed_files(base, repository) == expected
    commit(repository, csrc__a="one")  # as it was
    assert changed_files(base, repository) == expected - {"csrc/a"}


def test_merged_changes_count_whatever_their_dates(repository, monkeypatch):
    base, main = git(repository, "rev-parse", "HEAD"), git(repository, "branch", "--show-current")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2001-01-01T00:00:00Z")
    git(repository, "checkout", "--quiet", "-b", "work")
    commit(repository, csrc__old="")
    monkeypatch.delenv("GIT_COMMITTER_DATE")
    git(repository, "checkout", "--quiet", main)
    git(repository, "merge", "--quiet", "--no-ff", "--no-edit", "work")
    assert changed_files(base, repository) == {"csrc/old"}


def test_base(repository, monkeypatch):
    assert base_of(repository) is None
    passed = repository / PASSED
    passed.parent.mkdir()
    passed.write_text("abc\n")
    assert base_of(repository) == "abc"
    monkeypatch.setenv("CI_BASE", "origin/main")
    assert base_of(repository) == "origin/main"
    monkeypatch.setenv("CI_BASE", "")
    assert base_of(repository) == "abc"


def test_unknown_base_makes_every_guarding_group_due(repository, tmp_path_factory):
    first = git(repository, "rev-parse", "HEAD")
    commit(repository, README="more")
    shallow = tmp_path_factory.mktemp("shallow")
    git(shallow, "clone", "--quiet", "--depth", "1", f"file://{repository}", ".")
    assert changed_files(first, repository) == {"README"}
    assert changed_files(first, shallow) is None
    assert changed_files(None, repository) is None
    assert changed_files("--output=/dev/null", repository) is None  # no commit's name
    assert changed_files(first, tmp_path_factory.mktemp("no repository")) is None
    assert due(None) == ON_CHANGE


def test_the_recorded_commit_is_one():
    recorded = base_of(ROOT) if not os.environ.get("CI_BASE") else (ROOT / PASSED).read_text().strip()
    assert re.fullmatch("[0-9a-f]{40}", recorded)


def test_record(repository, capsys):
    head = commit(repository, tests__a="")
    (repository / "new").touch()
    record(repository)
    assert not (repository / PASSED).exists()
    assert "something is uncommitted" in capsys.readouterr().out
    (repository / "new").unlink()
    record(repository)
    assert (repository / PASSED).read_text() == f"{head}\n"


# ---- The runner


@pytest.fixture
def two_groups(monkeypatch):
    monkeypatch.setattr(nightly, "GROUPS", {"good": nightly.Group("0", "*"), "bad": nightly.Group("3", None)})
    exits = "import sys; assert sys.argv[1:3] == ['-m', 'nightly and not gpu']; sys.exit(int(sys.argv[3]))"
    return [sys.executable, "-c", exits]


def test_all_groups_run_and_are_timed(two_groups, capfd):
    assert nightly.run(["bad", "good"], two_groups) == ["bad"]
    said = capfd.readouterr().out
    assert re.search(r"^== bad\n== good\n +\d+ s  bad  FAILED\n +\d+ s  good\n\Z", said, re.MULTILINE)


def test_list_of_what_has_changed():
    command = [sys.executable, "-m", "tests.nightly", "--changed", "--list"]
    environment = {**os.environ, "CI_BASE": "nobody's"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "changed since nobody's: unknown" in result.stdout
    assert result.stdout.splitlines()[-len(ON_CHANGE) :] == ON_CHANGE


def test_the_makefile_has_a_target_for_each(tmp_path):
    for target, option in (("nightly", "nightly --pytest"), ("test-changed", "nightly --changed")):
        command = ["make", "--dry-run", "--always-make", target, f"VENV={tmp_path / 'venv'}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert f"-m tests.{option}" in result.stdout
