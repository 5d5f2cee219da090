"""The documentation names everything public, its links lead somewhere, its code runs. `make docs` builds the site."""

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tandem_cuda
from tandem_cuda.convert import rules
from tandem_cuda.freeze import FORMS, LOADERS
from training_files import idx_files

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


# With __all__ of these and of the package itself, what a user imports
MODULES = ["analysis", "analysis.metrics", "exchange", "models", "ops", "plot", "quantisation", "reference"]


def members(module: ModuleType) -> dict[str, Any]:
    """Classes and functions of a module's __all__, by full name."""
    found = {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    return {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isroutine(value)}


def entries() -> list[str]:
    """The names on the pages of the reference, which mkdocstrings puts their docstrings in the place of."""
    pages = "".join(page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md")))
    return re.findall(r"^::: (tandem_cuda\.\S+)$", pages, re.MULTILINE)


def documented(entry: str) -> dict[str, Any]:
    """What an entry shows: the members of a module, or one name."""
    value = pkgutil.resolve_name(entry)
    return members(value) if hasattr(value, "__all__") else {entry: value}


def test_reference_has_every_public_name() -> None:
    public = members(tandem_cuda)
    for module in MODULES:
        public |= members(importlib.import_module(f"tandem_cuda.{module}"))
    shown = {id(value) for entry in entries() for value in documented(entry).values()}
    assert [name for name, value in public.items() if id(value) not in shown] == []


def _skip_without_torchao(code: str | None) -> None:
    """It is no dependency, and its quantiser for x86 quantises nothing with an older torch."""
    if "torchao" not in (code or ""):
        return
    pytest.importorskip("torchao", reason="pip install torchao")
    if tuple(int(x) for x in torch.__version__.split(".")[:2]) < (2, 13):
        pytest.skip("torchao 0.18 needs torch 2.13")


@pytest.mark.parametrize("entry", entries())
def test_examples_of_docstrings_run(entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the imports that docs/reference.md begins with."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (imports,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reference.md").read_text(), re.DOTALL)
    for name, value in documented(entry).items():
        if isinstance(value, (ModuleType, str)):
            continue
        names: dict[str, Any] = {}
        _skip_without_torchao(value.__doc__)
        exec(imports, names)
        test = doctest.DocTestParser().get_doctest(value.__doc__, names, name, None, 0)
        assert test.examples, name
        said = io.StringIO()
        assert doctest.DocTestRunner().run(test, out=said.write).failed == 0, said.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_repository(page: Path) -> None:
    """On the site mkdocs checks them."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


def test_site_lists_every_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        inside = page.relative_to(ROOT / "docs" if "docs" in page.relative_to(ROOT).parts else ROOT).as_posix()
        name = "index.md" if inside == "README.md" else inside
        assert f": {name}\n" in navigation


def test_reference_lists_members_that_exist() -> None:
    """mkdocstrings leaves out a name that is not there."""
    missing = []
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name, members in re.findall(
            r"^::: (\S+)\n(?:    .*\n)*?    .*members: \[(.*?)\]", page.read_text(), re.MULTILINE
        ):
            owner = pkgutil.resolve_name(name)
            known = {*dir(owner), *re.findall(r"(?:self\.|^    )(\w+)\b", inspect.getsource(owner), re.MULTILINE)}
            missing += [(name, member) for member in members.split(", ") if member not in known]
    assert missing == []


def without_numbers(text: str) -> str:
    """Numbers (tables have a dash for none) and the widths of columns depend on the data."""
    words = re.sub("-{2,}", "--", re.sub(r"\d[\d,.]*", "0", text)).split()
    return " ".join("0" if word == "-" else word for word in words)


# --- blocks of Python ------------------------------------------------------------------------------------------------

# A block, perhaps in a list, and the output that the page says it prints
BLOCK = re.compile(r"^( *)```py[^\n]*\n(.*?)^\1```\n(?:\n?\1```text\n(.*?)^\1```\n)?", re.MULTILINE | re.DOTALL)
PAGES_WITH_BLOCKS = [page for page in PAGES if "```py" in page.read_text()]


@pytest.fixture
def _registries() -> Iterator[None]:
    """What a page registers is gone behind it."""
    registries: list[dict[Any, Any]] = [rules.RULES, FORMS, LOADERS]
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.parametrize("page", PAGES_WITH_BLOCKS, ids=lambda page: page.name)
@pytest.mark.usefixtures("_registries")
@pytest.mark.filterwarnings("ignore:convert. .* were replaced:UserWarning")  # as docs/what_converts.md says
def test_blocks_of_a_page_run_one_after_another(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, as a reader pastes them into one session; they print what the page says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    if page.name == "tutorial.md":
        idx_files(tmp_path / "data" / "MNIST" / "raw", train=300, test=100)  # in place of a download
    text = page.read_text()
    _skip_without_torchao("".join(code for _, code, _ in BLOCK.findall(text)))
    assert len(BLOCK.findall(text)) == text.count("```py")
    names: dict[str, Any] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in BLOCK.finditer(text):
            _, code, said = block.groups()
            lines_before = text.count("\n", 0, block.start(2))  # for the traceback of an error
            program = compile("\n" * lines_before + textwrap.dedent(code), str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(program, names)
            if said is not None:
                assert without_numbers(printed.getvalue()) == without_numbers(textwrap.dedent(said)), code
