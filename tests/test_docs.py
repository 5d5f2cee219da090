"""The documentation names everything public, its links lead somewhere, its code runs. `make docs` builds the site."""

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tandem_cuda

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


# With __all__ of these and of the package itself, what a user imports
MODULES = [
    "activity",
    "diagnostics",
    "exchange",
    "lif_rate",
    "metrics",
    "models",
    "ops",
    "penalties",
    "plot",
    "quantisation",
    "reference",
]


def members(module: ModuleType) -> dict[str, Any]:
    """Classes and functions of a module's __all__, by full name."""
    found = {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    return {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isroutine(value)}


def documented() -> dict[str, Any]:
    """What the pages of the reference show: names, and members of modules."""
    pages = "".join(page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md")))
    found: dict[str, Any] = {}
    for name in re.findall(r"^::: (tandem_cuda\.\S+)$", pages, re.MULTILINE):
        value = pkgutil.resolve_name(name)
        found |= members(value) if hasattr(value, "__all__") else {name: value}
    return found


DOCUMENTED = documented()


def test_reference_has_every_public_name() -> None:
    public = members(tandem_cuda)
    for module in MODULES:
        public |= members(importlib.import_module(f"tandem_cuda.{module}"))
    shown = {id(value) for value in DOCUMENTED.values()}
    assert [name for name, value in public.items() if id(value) not in shown] == []


@pytest.mark.parametrize(
    "name", [name for name, value in DOCUMENTED.items() if not isinstance(value, (ModuleType, str))]
)
def test_examples_of_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the imports that docs/reference.md begins with."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (imports,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reference.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(imports, names)
    test = doctest.DocTestParser().get_doctest(DOCUMENTED[name].__doc__, names, name, None, 0)
    assert test.examples
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


def test_example_of_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, torch.nn.Module] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert all(x.grad.isfinite().all() for x in names["net"].parameters())


@pytest.mark.parametrize("page", ["migration.md"])
def test_programs_of_a_page_run(page: str) -> None:
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert programs
    for program in programs:
        exec(compile(program, page, "exec"), {})


def moved() -> list[tuple[str, str]]:
    """What the notes on migration say of names: the old one and the new one."""
    _, _, section = (ROOT / "docs" / "migration.md").read_text().partition("## Names that moved")
    rows = re.findall(r"^\| `(tandem_cuda.*?) \| (.*?) \|$", section, re.MULTILINE)
    names = [[re.findall(r"`?(tandem_cuda[\w.]+)", cell) for cell in row] for row in rows]
    return [pair for old, new in names for pair in zip(old, new, strict=True)]


@pytest.mark.parametrize(("old", "new"), moved())
def test_names_have_moved(old: str, new: str) -> None:
    def found(name: str) -> bool:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            return False
        return True

    assert found(new)
    assert not found(old)


def write_idx(path: Path, data: torch.Tensor) -> None:
    """Bytes in the format of MNIST's files."""
    header = struct.pack(f">{1 + data.dim()}i", 0x800 + data.dim(), *data.shape)
    path.write_bytes(header + data.numpy().tobytes())


def small_mnist(folder: Path) -> None:
    """Noisy bars, one position a label, in place of digits: with these files there, torchvision downloads nothing."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part, samples in (("train", 300), ("t10k", 100)):
        labels = torch.randint(0, 10, (samples,), generator=generator, dtype=torch.uint8)
        images = torch.randint(0, 100, (samples, 28, 28), generator=generator, dtype=torch.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[4 + 2 * label] = 255
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)


def without_numbers(text: str) -> str:
    """Numbers (tables have a dash for none) and the widths of columns depend on the data."""
    words = re.sub("-{2,}", "--", re.sub(r"\d[\d,.]*", "0", text)).split()
    return " ".join("0" if word == "-" else word for word in words)


@pytest.mark.slow
def test_tutorial_runs_and_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_mnist(tmp_path / "data" / "MNIST" / "raw")
    monkeypatch.chdir(tmp_path)
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```(?:\s+```text\n(.*?)```)?", tutorial, re.DOTALL)
    assert len(blocks) > 8
    names: dict[str, object] = {}
    for code, said in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "tutorial.md", "exec"), names)
        assert without_numbers(printed.getvalue()) == without_numbers(said), code
