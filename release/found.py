"""What building and verifying share: the places, the Pythons of this machine, how commands run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with build

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
WORK = ROOT / "build" / "release"
TORCH = ("libtorch.so", "libtorch_cpu.so")  # the libraries that a wheel needs and does not contain
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
FACTS = """
import importlib.util, json, os, sys, sysconfig
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2], "implementation": sys.implementation.name,
    "headers": os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
    "venv": importlib.util.find_spec("ensurepip") is not None,
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
}))
"""


class Failed(Exception):
    """A release that must not be; the message says why."""


def run(
    *command: str | Path, cwd: Path = ROOT, quiet: bool = False, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command, with variables added to the environment. `quiet` returns its output, and shows it if it fails."""
    words = [str(word) for word in command]
    try:
        result = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise Failed(f"cannot run {words[0]}: {error.strerror}") from None
    if result.returncode != 0:
        raise Failed(f"{' '.join(words)} failed with {result.returncode}\n{result.stdout or ''}".rstrip())
    return result.stdout or ""


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def facts(python: Path) -> dict[str, Any] | None:
    """What a Python says of itself; None for one that does not run, such as a shim of pyenv without a version."""
    try:
        result = subprocess.run([str(python), "-c", FACTS], capture_output=True, text=True, check=False)
    except OSError:  # not executable, or for another processor
        return None
    return json.loads(result.stdout) if result.returncode == 0 else None


def pythons(versions: Sequence[str] | None = None) -> dict[str, Path]:
    """A Python that can build for every version that is asked for, or that is there: {"cp312": path}.

    Looked for on PATH, among pyenv's versions, and where the manylinux containers have them.
    """
    found: dict[str, Path] = {}
    for version in versions or VERSIONS:
        if version not in VERSIONS:
            raise Failed(f"the Python must be one of {', '.join(VERSIONS)}, got {version}")
        tag = f"cp{version.replace('.', '')}"
        on_path = shutil.which(f"python{version}")
        candidates = [Path(sys.executable), *([Path(on_path)] if on_path else [])]
        for folder, pattern in (
            (Path.home() / ".pyenv/versions", f"{version}.*/bin/python"),
            (Path("/opt/python"), f"{tag}-{tag}/bin/python"),
        ):
            candidates += sorted(folder.glob(pattern))
        for python in candidates:
            said = facts(python)
            usable = said and said["implementation"] == "cpython" and said["headers"] and said["venv"]
            if said and usable and said["version"] == version and not said["free_threaded"]:
                found[tag] = python
                break
        else:
            if versions:
                raise Failed(f"no Python {version} with headers and venv here")
    return found
