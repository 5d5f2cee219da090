"""Hooks of mkdocs: the README as the first page, and docstrings' Sphinx roles as plain code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Add README.md as index.md; its links into docs/ are links to neighbours there."""
    readme = Path(config.config_file_path).with_name("README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    return files


def on_page_content(html: str, **named: Any) -> str:
    """Turn :func:`name` into `name`, and the double colon in front of a code block into one."""
    return re.sub(r"::</p>", ":</p>", re.sub(r":(?:func|class|meth|mod|attr):(?=<code>)", "", html))
