"""Hooks of mkdocs: pages of the repository's root, and docstrings' Sphinx roles as plain code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root, README.md as index.md; their links into docs/ are links to neighbours there."""
    for name in ROOT_PAGES:
        text = Path(config.config_file_path).with_name(name).read_text(encoding="utf-8")
        page = "index.md" if name == "README.md" else name
        files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    return files


def on_page_content(html: str, **named: Any) -> str:
    """Turn :func:`name` into `name`, and the double colon in front of a code block into one."""
    return re.sub(r"::</p>", ":</p>", re.sub(r":(?:func|class|meth|mod|attr):(?=<code>)", "", html))
