"""The list of seeded bugs: each can be made, and its test is there. Nightly, each is found."""

import re
import subprocess
import sys

import pytest

from seeded_bugs import BUGS, ROOT, arguments, check


@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_can_be_made(bug):
    assert check(bug) is None
    assert bug.new != bug.old
    for node in bug.test.partition(" -k ")[0].split():
        file, _, name = node.partition("::")
        text = (ROOT / "tests" / file).read_text()
        assert not name or re.search(rf"^def {name}\(", text, re.MULTILINE), node


def test_enough_of_both_languages():
    languages = [bug.language for bug in BUGS]
    assert languages.count("python") >= 40
    assert languages.count("c++") >= 20
    assert len({(bug.path, bug.old) for bug in BUGS}) == len(BUGS)


def test_arguments_of_pytest():
    assert arguments("test_a.py::test_b test_c.py -k one or two") == [
        "tests/test_a.py::test_b", "tests/test_c.py", "-k", "one or two",
    ]  # fmt: skip


def test_a_bug_that_cannot_be_made_is_reported():
    assert "must occur once, got 0 times" in check(BUGS[0]._replace(old="nothing like it"))


@pytest.mark.nightly
@pytest.mark.parametrize("language", ["python", "c++"])
def test_every_bug_is_found(language):
    command = [sys.executable, "-m", "tests.seeded_bugs", "--language", language]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
