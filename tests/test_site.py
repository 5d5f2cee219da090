"""The documentation site as built: links and anchors, nothing from other hosts, and its pages in a browser.

`make docs` runs it, in an environment that has mkdocs. The browser is a Chromium of the system.
"""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

pytest.importorskip("material", reason="needs mkdocs-material: pip install 'tandem_cuda[docs]'")

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

# Attributes that a browser loads when it shows a page
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}


class Page(HTMLParser):
    """The ids of a page, and what it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.references: list[tuple[str, str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            if name in ("href", "src") and value is not None:
                self.references.append((tag, name, value))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=True)
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_links_and_anchors(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for name, page in pages.items():
        if name == "404.html":  # is shown under any address
            continue
        for _, _, reference in page.references:
            address = urlsplit(urljoin(f"http://site/{name}", reference))
            if address.netloc != "site":  # another host, mailto:, data:
                continue
            target = unquote(address.path).lstrip("/")
            target += "index.html" if target.endswith("/") or not target else ""
            anchored = pages.get(target)
            if not (site / target).is_file() or (
                address.fragment and anchored is not None and unquote(address.fragment) not in anchored.ids
            ):
                broken.append((name, reference))
    assert broken == []


def test_nothing_comes_from_other_hosts(site: Path, pages: dict[str, Page]) -> None:
    foreign = [
        (name, value)
        for name, page in pages.items()
        for tag, attribute, value in page.references
        if (tag, attribute) in LOADED and urlsplit(value).netloc
    ]
    for sheet in site.rglob("*.css"):
        loaded = re.findall(r"(?:url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8"))
        foreign += [(sheet.name, value) for value in loaded]
    assert foreign == []


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_in_a_browser(pages: dict[str, Page], address: str, width: int) -> None:
    """No error, no failed or foreign request, nothing wider than the window; search finds a word."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'tandem_cuda[docs]'")
    browsers = [shutil.which(name) for name in ("chromium", "google-chrome", "chromium-browser")]
    if not any(browsers):
        pytest.skip("needs Chromium or Chrome on PATH")
    wrong: list[tuple[str, ...]] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=next(filter(None, browsers)), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 850})

        def serve(route: api.Route) -> None:
            if route.request.url.startswith(address):
                route.continue_()
            else:
                wrong.append((tab.url, "foreign request", route.request.url))
                route.abort()

        tab.route("**/*", serve)
        tab.on("console", lambda message: message.type == "error" and wrong.append((tab.url, message.text)))
        tab.on("pageerror", lambda error: wrong.append((tab.url, str(error))))
        tab.on("response", lambda answer: answer.ok or wrong.append((tab.url, str(answer.status), answer.url)))
        for name in sorted(pages):
            tab.goto(address + name, wait_until="networkidle")
            wide = tab.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                wrong.append((name, f"{wide} pixels wide"))
        tab.goto(address + "index.html", wait_until="networkidle")
        if width < 1000:
            tab.locator("label.md-header__button[for=__search]").click()
        else:
            tab.locator("input[name=query]").click()
        tab.keyboard.type("two-phase")
        tab.locator(".md-search-result__link[href*='how_it_works.html']").first.wait_for(timeout=20_000)
        browser.close()
    assert wrong == []
