"""Runs the quick tests as on other processors: with the instruction sets of oneDNN, ATen and this library capped.

``python -m tests.processors`` (``make test-processors``) runs them under every setting. ``--tenth`` runs a tenth of the
tests, dealt out to the settings.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "TANDEM_CPU_ISA"
SETTINGS = (
    ("AVX2", "default", "avx2"),
    ("AVX512_CORE", "avx2", "avx512"),
    ("AVX512_CORE_VNNI", "avx512", "avx512vnni"),
    ("AVX512_CORE_BF16", "avx512", "avx512vbmi2"),
    ("ALL", "avx512", "amx"),
)


def environment(setting):
    """The variables of a setting; none that the caller has set is changed."""
    given = {name: value for name in VARIABLES if (value := os.environ.get(name))}
    return dict(zip(VARIABLES, setting, strict=True)) | given


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.processors", description=__doc__)
    parser.add_argument("--tenth", action="store_true", help="run a tenth of the tests, each under one setting")
    parser.add_argument("--only", type=int, choices=range(len(SETTINGS)), help="run under this setting alone")
    parser.add_argument("--pytest-args", default="", help="passed on to pytest")
    arguments = parser.parse_args()
    results = []
    for number, setting in enumerate(SETTINGS):
        if arguments.only not in (None, number):
            continue
        variables = environment(setting)
        print("==", *(f"{name}={value}" for name, value in variables.items()), flush=True)
        part = ["--part", f"{number}/{10 * len(SETTINGS)}"] if arguments.tenth else []
        quick = ["-m", "not slow and not nightly and not gpu"]
        command = [sys.executable, "-m", "pytest", *quick, *part, *shlex.split(arguments.pytest_args)]
        start = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=False).returncode
        results.append((code, time.monotonic() - start, setting))
    for code, seconds, setting in results:
        print(f"{seconds:7.0f} s  {' '.join(setting)}{'  FAILED' if code else ''}")
    return int(any(code for code, *_ in results))


if __name__ == "__main__":
    sys.exit(main())
