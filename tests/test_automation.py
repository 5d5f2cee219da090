"""The workflows, forms and files that GitHub, pre-commit and citation tools read."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest needs it there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = {path.name: yaml.load(path.read_text(), yaml.BaseLoader) for path in (GITHUB / "workflows").iterdir()}
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").iterdir() if path.name != "config.yml")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

# What a job may do beyond reading the repository, and why.
PERMISSIONS = {
    ("docs.yml", "publish"): {"pages": "write", "id-token": "write"},
    ("release.yml", "pypi"): {"id-token": "write", "attestations": "write"},  # no password of PyPI is stored
    ("release.yml", "github"): {"contents": "write"},
}
JOBS = [pytest.param(name, job, id=f"{name}-{job}") for name, flow in WORKFLOWS.items() for job in flow["jobs"]]


def named_targets(command):
    """The targets of the Makefile that a line calls."""
    words = re.findall(r"\bmake\b([^&|;\n]*)", command)
    return {word for call in words for word in call.split() if not word.startswith("-") and "=" not in word}


def steps_of(name, job):
    return WORKFLOWS[name]["jobs"][job].get("steps", [])


def test_all_workflows_are_there():
    assert WORKFLOWS.keys() == {"tests.yml", "nightly.yml", "lint.yml", "docs.yml", "wheels.yml", "release.yml"}
    machines = WORKFLOWS["tests.yml"]["jobs"]["test"]["strategy"]["matrix"]["machine"]
    assert machines == WORKFLOWS["wheels.yml"]["jobs"]["wheels"]["strategy"]["matrix"]["machine"]
    assert machines == ["ubuntu-24.04", "ubuntu-24.04-arm"]


def test_a_command_names_its_targets():
    assert named_targets("make --keep-going lint docs JOBS=1 && make test") == {"lint", "docs", "test"}
    assert named_targets("cmake build") == set()


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_jobs_run_what_the_makefile_has(name, job):
    for step in steps_of(name, job):
        command = step.get("run", "")
        assert named_targets(command) <= TARGETS
        # One command a step, and it is make's; only the release itself exists nowhere else.
        assert not command or command.startswith(("make ", "gh release create "))
        assert "${{" not in command  # a tag's name could be a program


def commands_of(name):
    return {step["run"] for job in WORKFLOWS[name]["jobs"] for step in steps_of(name, job) if "run" in step}


def test_all_tests_run():
    assert commands_of("tests.yml") == {"make test", "make test-changed", "make test-oldest"}
    assert commands_of("nightly.yml") == {"make test-slow", "make nightly"}
    (changed,) = [step for step in steps_of("tests.yml", "changed") if step.get("run")]
    (checkout,) = [step for step in steps_of("tests.yml", "changed") if "checkout" in step.get("uses", "")]
    assert checkout["with"]["fetch-depth"] == "0"  # the commit to compare with is in the history
    assert changed["env"] == {"CI_BASE": "${{ github.event.pull_request.base.sha || github.event.before }}"}


def test_tests_of_kernels_leave_torch_alone():
    """What `make test-oldest` does without: files that use no machinery of torch, and those of a device."""
    chosen = re.search(r"^OF_KERNELS := (.*?[^\\])$", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)[1]
    names = chosen.replace("\\", "").split()
    assert len(names) > 5
    for name in names:
        text = (ROOT / "tests" / f"test_{name}.py").read_text()
        machinery = r"torch\.(compile|export|func|autograd|library|jit)\b|gradcheck|opcheck|vmap"
        assert name.startswith("cuda_") or not re.search(machinery, text), name


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_actions_are_pinned(name, job):
    used = [step["uses"] for step in steps_of(name, job) if "uses" in step]
    used += [WORKFLOWS[name]["jobs"][job]["uses"]] if "uses" in WORKFLOWS[name]["jobs"][job] else []
    for action in used:
        if action.startswith("./"):
            assert (ROOT / action).is_file()
        else:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@((release/)?v\d+(\.\d+)*|[0-9a-f]{40})", action)


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_permissions_are_minimal(name, job):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    assert WORKFLOWS[name]["jobs"][job].get("permissions", {}) == PERMISSIONS.get((name, job), {})
    for step in steps_of(name, job):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_jobs_end_and_wait_for_jobs_that_exist(name, job):
    jobs = WORKFLOWS[name]["jobs"]
    assert "uses" in jobs[job] or 0 < int(jobs[job]["timeout-minutes"]) <= 360
    needs = jobs[job].get("needs", [])
    assert set([needs] if isinstance(needs, str) else needs) <= jobs.keys()


def test_nothing_is_published_unchecked():
    release = WORKFLOWS["release.yml"]
    assert release["on"] == {"push": {"tags": ["v*"]}}
    order = ["check", "build", "pypi", "github"]
    assert [release["jobs"][job].get("needs") for job in order] == [None, *order[:-1]]
    used = [step["uses"].split("@")[0] for step in steps_of("release.yml", "pypi")]
    assert used == ["actions/download-artifact", "actions/attest-build-provenance", "pypa/gh-action-pypi-publish"]
    assert WORKFLOWS["docs.yml"]["jobs"]["publish"]["if"] == "github.event_name == 'push'"


def test_forms():
    assert [path.name for path in FORMS] == ["bug.yml", "feature.yml", "performance.yml"]
    for path in FORMS:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        assert form["body"]
        ids = [element["id"] for element in form["body"]]
        assert len(ids) == len(set(ids))
        for element in form["body"]:
            assert element["type"] in {"textarea", "input", "dropdown", "checkboxes"}
            assert element["attributes"]["label"]
    assert "python -m tandem_cuda`" in FORMS[0].read_text()


def test_hooks_of_pre_commit():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"  # the Makefile has the versions
    for hook in repository["hooks"]:
        assert hook["entry"] == f"make {hook['id']}"
        assert hook["id"] in TARGETS
        assert hook["pass_filenames"] is False


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == VERSION
    assert citation["license"] == "Apache-2.0"
    assert citation["preferred-citation"]["doi"] in (ROOT / "README.md").read_text()


def test_dependabot_watches_what_is_pinned():
    updates = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]
    assert [update["package-ecosystem"] for update in updates] == ["github-actions", "pip"]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", ".github/PULL_REQUEST_TEMPLATE.md"])
def test_pages_name_targets_that_exist(page):
    text = (ROOT / page).read_text()
    commands = re.findall(r"`((?:[A-Z_]+=\S+ )?make [^`\n]*)`|^(make \S+)", text, re.MULTILINE)
    named = set().union(*(named_targets("".join(command)) for command in commands))
    assert named
    assert named <= TARGETS


def test_everything_is_in_the_source_distribution():
    manifest = (ROOT / "MANIFEST.in").read_text().split()
    assert ".github" in manifest
    pages = ("CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md")
    assert {".pre-commit-config.yaml", *pages} <= set(manifest)


@pytest.fixture
def release(tmp_path):
    """What check-tag reads, ready for a release."""
    for name in ("Makefile", "pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "csrc").mkdir()  # which the Makefile lists
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [{VERSION}] - 2026-01-01\n")
    return tmp_path


def check_tag(folder, tag):
    return subprocess.run(["make", "check-tag", f"TAG={tag}"], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (None, "", "", ""),
        ("pyproject.toml", f'version = "{VERSION}"', 'version = "9.8.7"', "TAG must be v9.8.7"),
        ("CITATION.cff", f"version: {VERSION}", "version: 9.8.7", f"CITATION.cff has another version than {VERSION}"),
        ("CHANGELOG.md", "2026-01-01", "unreleased", f"no heading '## [{VERSION}] - YEAR-MONTH-DAY'"),
    ],
)
def test_check_tag(release, file, old, new, says):
    if file:
        path = release / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    result = check_tag(release, f"v{VERSION}")
    assert says in result.stderr
    assert (result.returncode == 0) == (not says), result.stderr


@pytest.mark.parametrize("end", ["`false`", "$(false)", "$(shell touch ran)", '"; touch ran; "', "'"])
def test_a_tag_is_not_run(release, end):
    result = check_tag(release, f"v{VERSION}{end}")
    assert result.returncode != 0
    assert f"got 'v{VERSION}{end}'\n" in result.stderr
    assert not (release / "ran").exists()


def test_wheels_are_built_for_every_python_that_is_tested():
    """And for the oldest that the package promises to run on."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pythons = WORKFLOWS["tests.yml"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    built = settings["tool"]["cibuildwheel"]["build"]
    assert {f"cp{python.replace('.', '')}-*" for python in pythons} <= set(built)
    assert settings["project"]["requires-python"] == f">={pythons[0]}"
    assert built[0] == f"cp{pythons[0].replace('.', '')}-*"
