"""Fixtures that several test files share."""

from pathlib import Path

import pytest

# Golden values computed by the implementation that the paper's authors published; kept beside the repository.
ORACLE = Path(__file__).parents[2] / "shared" / "oracle"


@pytest.fixture(scope="session")
def oracle() -> Path:
    """The folder of the golden values; tests that need it are skipped where it is absent."""
    if not ORACLE.is_dir():
        pytest.skip(f"no golden values: {ORACLE} is not a folder")
    return ORACLE
