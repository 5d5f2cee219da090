"""Hooks of mkdocs: pages of the repository's root, and docstrings' Sphinx roles as plain code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

# Pages of the repository's root, and their names on the site
ROOT_PAGES = {"README.md": "index.md"} | {
    name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md")
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root. Their links into docs/ lead to neighbours there, links to code become names."""
    for name, page in ROOT_PAGES.items():
        text = Path(config.config_file_path).with_name(name).read_text(encoding="utf-8")
        text = re.sub(r"\[(`[^`]*`)\]\(tandem_cuda/[^)]*\)", r"\1", text.replace("](docs/", "]("))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **named: Any) -> str:
    """Turn links from docs/ to pages of the root into links to neighbours."""
    for name, page in ROOT_PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({page}")
    return markdown


def on_page_content(html: str, **named: Any) -> str:
    """Turn :func:`name` into `name`, and the double colon in front of a code block into one."""
    return re.sub(r"::</p>", ":</p>", re.sub(r":(?:func|class|meth|mod|attr):(?=<code>)", "", html))
