"""The documentation names everything public, and its links lead somewhere. `make docs` builds the site."""

import re
from pathlib import Path

import pytest

import tandem_cuda
from tandem_cuda import ops

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_reference_has_every_public_name() -> None:
    listed = set(re.findall(r"^::: tandem_cuda\.(\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE))
    missing = [
        name for name in tandem_cuda.__all__ if not {name, f"{name}.{name}"} & listed and name not in ("ops", "metrics")
    ]
    missing += [f"ops.{name}" for name in ops.__all__ if f"ops.{name}.{name}" not in listed]
    assert not missing
    assert listed >= {"metrics", "exchange.to_nir", "exchange.from_nir", "diagnostics.diagnose"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_repository(page: Path) -> None:
    """On the site mkdocs checks them."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


def test_site_lists_every_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert f": {page.name}\n" in navigation
