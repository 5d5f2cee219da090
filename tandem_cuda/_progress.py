"""A progress bar for loops over batches that can take minutes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], description: str) -> Iterable[T]:
    """Return ``items``, with a progress bar of tqdm if someone can see it: stderr is a terminal and tqdm is installed.

    The bar appears after one second and vanishes at the end. Otherwise ``items`` is returned as it is.
    """
    if sys.stderr is None or not sys.stderr.isatty() or importlib.util.find_spec("tqdm") is None:
        return items
    from tqdm import tqdm  # not a dependency

    bar: Iterable[T] = tqdm(items, desc=description, delay=1, leave=False, dynamic_ncols=True, file=sys.stderr)
    return bar
