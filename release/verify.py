"""Check the wheels in dist: what is in them, and that each works in a fresh environment.

``make verify-wheel`` runs it. Every wheel is installed with the oldest torch that it promises to work with and with the
newest that pip finds, with no compiler on PATH, and computes the digests of tests/golden there.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from email.parser import Parser
from pathlib import Path

from found import DIST, ROOT, TORCH, WORK, Failed, project, pythons, run

LIMIT = 16e6  # bytes of a wheel
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc", "ninja", "cmake")
# What the files may need of the system; the operators need torch beside that, the module needs the operators.
SYSTEM = {"libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "libgcc_s.so.1", "libstdc++.so.6"}
SYSTEM |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
# What a compiled file contains if a part of another project is linked in, and the words that its licence stands under.
PARTS = {b"pybind11_": "pybind11", b"aoti_torch_": "PyTorch", b"cudaGetDeviceCount": "NVIDIA CUDA Runtime"}


def check(condition: object, message: str) -> None:
    if not condition:
        raise Failed(message)


def tool(*command: str | Path) -> str:
    return run(*command, quiet=True)


# ---- What is in a wheel


def read(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        raise Failed(f"there is no {name}") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise Failed(f"{name} is damaged: {error}") from None


def text(archive: zipfile.ZipFile, name: str) -> str:
    try:
        return read(archive, name).decode()
    except UnicodeDecodeError as error:
        raise Failed(f"{name} is not UTF-8: {error}") from None


def files_in(archive: zipfile.ZipFile) -> list[str]:
    return sorted(name for name in archive.namelist() if not name.endswith("/"))  # auditwheel stores folders too


def check_record(archive: zipfile.ZipFile, info: str) -> None:
    """RECORD lists every file with its hash."""
    lines = list(csv.reader(text(archive, f"{info}/RECORD").splitlines()))
    for line in lines:
        check(len(line) == 3, f"RECORD must have lines of file, hash and size, got {','.join(line)!r}")
    rows = {name: given for name, given, _ in lines}
    check(sorted(rows) == files_in(archive), "RECORD and the files differ")
    for name, given in rows.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(read(archive, name)).digest()).rstrip(b"=").decode()
        check(name == f"{info}/RECORD" or given == f"sha256={digest}", f"RECORD has another hash of {name}")


def check_contents(archive: zipfile.ZipFile, info: str, module: str) -> None:
    """The package as it is in the source tree, its two compiled files, the metadata, nothing else."""
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tandem_cuda").rglob("*")
        if path.suffix in (".py", ".pyi") or path.name == "py.typed"
    }
    files = {name for name in files_in(archive) if not name.startswith(f"{info}/")}
    expected = sources | {module, "tandem_cuda/libtandem_cuda.so"}
    check(files == expected, f"missing: {sorted(expected - files)}, too many: {sorted(files - expected)}")
    for name in sources:
        check(read(archive, name) == (ROOT / name).read_bytes(), f"{name} is another than in the source tree")


def check_metadata(archive: zipfile.ZipFile, info: str, tags: list[str]) -> None:
    """Version, dependencies, licences and tags are those of the project and of the file's name."""
    metadata = Parser().parsestr(text(archive, f"{info}/METADATA"))
    ours = project()["project"]
    check(metadata["Version"] == ours["version"], f"version {metadata['Version']}")
    needs = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    check(sorted(needs) == sorted(ours["dependencies"]), f"needs {needs}")
    check(metadata["License-Expression"] == ours["license"], f"licence {metadata['License-Expression']}")
    for name in ours["license-files"]:
        same = read(archive, f"{info}/licenses/{name}") == (ROOT / name).read_bytes()
        check(same, f"{name} is another than in the source tree")
    wheel = Parser().parsestr(text(archive, f"{info}/WHEEL"))
    check(sorted(wheel.get_all("Tag", [])) == sorted(tags), f"WHEEL has the tags {wheel.get_all('Tag')}")
    check(all("manylinux" in tag for tag in tags), f"tags {tags}: not for every Linux")


def needed_by(file: Path) -> tuple[list[str], list[str]]:
    """The libraries that a file needs and the places that it looks for them in."""
    dynamic = tool("readelf", "-d", file)
    places = re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic)
    return re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic), places


def symbols(file: Path, kind: str) -> list[str]:
    return [line.split()[-1].partition("@")[0] for line in tool("nm", "-D", kind, file).splitlines()]


def check_compiled(operators: Path, module: Path) -> None:
    """What the compiled files export, need and contain."""
    for file, exported, others in (
        (operators, "tandem_cuda_interface", TORCH),
        (module, "PyInit__C", [operators.name]),
    ):
        check(symbols(file, "--defined-only") == [exported], f"{file.name} exports {symbols(file, '--defined-only')}")
        check(".symtab" not in tool("readelf", "-SW", file), f"{file.name} is not stripped")
        needed, places = needed_by(file)
        foreign = [name for name in needed if name not in (*SYSTEM, *others)]
        check(not foreign, f"{file.name} needs {foreign}")
        check(set(places) <= {"$ORIGIN"}, f"{file.name} looks for libraries in {places}")
    python = [name for name in symbols(operators, "--undefined-only") if re.match("_?Py", name)]
    check(not python, f"{operators.name} needs Python: {python}")


def check_licences(notices: str, files: list[Path]) -> list[str]:
    """Return the projects of which the compiled files contain parts; the notices name each."""
    found = []
    for file in files:
        content = file.read_bytes()
        for mark, name in PARTS.items():
            if mark in content:
                heading = re.search(
                    rf"^{re.escape(name)}\b.*{re.escape(file.name.split('.')[0])}", notices, re.MULTILINE
                )
                check(heading, f"{file.name} contains parts of {name}, of which THIRD_PARTY_LICENSES.txt says nothing")
                found.append(name)
    return found


def named(path: Path) -> tuple[str, str, str, str]:
    """Version, Python, ABI and platforms in the name of a wheel."""
    match = re.fullmatch(r"tandem_cuda-([^-]+)-(cp\d+)-(cp\d+)-([\w.]+)\.whl", path.name)
    if match is None:
        raise Failed(f"{path.name}: the name is none of a wheel of tandem_cuda")
    version, python, abi, platforms = match.groups()
    return version, python, abi, platforms


def check_wheel(path: Path) -> str:
    """Check all that can be seen from outside. Returns the hash of the operators."""
    name = named(path)
    try:
        return look_into(path, *name)
    except (Failed, zipfile.BadZipFile) as error:
        raise Failed(f"{path.name}: {error}") from None


def look_into(path: Path, version: str, python: str, abi: str, platforms: str) -> str:
    check(python == abi, f"tags {python}-{abi}")
    check(path.stat().st_size < LIMIT, f"{path.stat().st_size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}")
    info = f"tandem_cuda-{version}.dist-info"
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        modules = [name for name in files_in(archive) if re.fullmatch(r"tandem_cuda/_C\.[^/]*\.so", name)]
        check(len(modules) == 1, f"must have one module tandem_cuda/_C.*.so, got {modules}")
        module = modules[0]
        check(f"cpython-{python[2:]}-" in module, f"{module} in a wheel for {python}")
        check_record(archive, info)
        check_contents(archive, info, module)
        check_metadata(archive, info, [f"{python}-{abi}-{platform}" for platform in platforms.split(".")])
        files = []
        for name in ("tandem_cuda/libtandem_cuda.so", module):
            files.append(Path(folder, Path(name).name))
            files[-1].write_bytes(read(archive, name))
        check_compiled(*files)
        parts = check_licences(text(archive, f"{info}/licenses/THIRD_PARTY_LICENSES.txt"), files)
        installed = sum(item.file_size for item in archive.infolist())
        digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    shown = tool(sys.executable, "-m", "auditwheel", "show", path)
    # Its first sentence counts torch's libraries as missing; this one is about the symbols of the system's.
    constrained = re.search(r'constrains the platform tag to "([^"]+)"', " ".join(shown.split()))
    check(constrained and constrained[1] in platforms.split("."), f"auditwheel says:\n{shown}")
    size = f"{path.stat().st_size / 1e6:.1f} MB, installed {installed / 1e6:.1f} MB"
    print(f"{path.name}: {size}; contains parts of {', '.join(parts)}", flush=True)
    return digest


# ---- That a wheel works


SMOKE = """
import shutil, sys
from pathlib import Path
import torch
import tandem_cuda
compilers = [name for name in sys.argv[1].split() if shutil.which(name)]
assert not compilers, compilers
assert Path(tandem_cuda.__file__).is_relative_to(sys.prefix), tandem_cuda.__file__
assert Path(tandem_cuda.library_path).parent == Path(tandem_cuda.__file__).parent
torch.manual_seed(0)
net = torch.nn.Sequential(
    tandem_cuda.Encode(8), tandem_cuda.TandemConv2d(1, 8, 3, norm="batch"), torch.nn.Flatten(),
    tandem_cuda.TandemLinear(8 * 26 * 26, 32), tandem_cuda.Decode(), torch.nn.Linear(32, 10),
)
images, labels = torch.rand(32, 1, 28, 28), torch.arange(32) % 10
optimiser = torch.optim.Adam(net.parameters(), 1e-2)
losses = []
for _ in range(20):
    optimiser.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(images), labels)
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
assert losses[-1] < 0.5 * losses[0], losses
frozen = tandem_cuda.freeze(net.eval())
assert torch.equal(frozen(images), net(images))
frozen.save("net.safetensors")
assert torch.equal(tandem_cuda.FrozenNetwork.load("net.safetensors")(images), net(images))
exported = torch.export.export(frozen, (images,)).module()
assert torch.equal(exported(images), net(images))
print("smoke test: trained from", *("%.2f" % loss for loss in (losses[0], losses[-1])))
"""


def check_installed(path: Path, python: Path, torch: str, keep: bool) -> None:
    """Install a wheel and a torch into a fresh environment, and let it compute."""
    name = f"{path.name.split('-')[2]}-{torch}".replace("==", "-")
    print(f"== {path.name} with {torch}", flush=True)
    folder = WORK / "verify" / name
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", folder / "env")
    own = folder / "env" / "bin" / "python"
    # The tests without the package: nothing is imported from the source tree.
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    alone = {"PATH": str(own.parent), "PYTHONPATH": "", "LD_LIBRARY_PATH": "", "TANDEM_CPU_ISA": ""}
    wanted = [f"{path}[freeze]", torch, "pytest", "hypothesis"]
    run(own, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *wanted, cwd=folder, environment=alone)
    run(own, "-m", "tandem_cuda", cwd=folder, environment=alone)
    run(own, "-c", SMOKE, " ".join(COMPILERS), cwd=folder, environment=alone)
    arguments = ["-q", "-p", "no:cacheprovider", "-m", "not slow and not nightly and not gpu", "test_digest.py"]
    run(own, "-m", "pytest", *arguments, cwd=folder / "tests", environment=alone)
    if not keep:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make verify-wheel", description=__doc__)
    parser.add_argument(
        "--python", action="append", help="check the wheel of this version alone, 3.12; may be repeated"
    )
    parser.add_argument(
        "--torch", choices=["oldest", "newest", "none"], action="append", help="default oldest and newest"
    )
    parser.add_argument("--oldest", required=True, help="the oldest torch, 2.11.0")
    parser.add_argument("--keep", action="store_true", help="keep the environments, in build/release/verify")
    arguments = parser.parse_args()
    only = [f"cp{version.replace('.', '')}" for version in arguments.python or []]
    wheels: dict[str, Path] = {}
    for path in sorted(DIST.glob("tandem_cuda-*.whl")):
        tag = named(path)[1]
        if tag in wheels:
            raise Failed(f"two wheels for {tag} in {DIST}: {wheels[tag].name} and {path.name}; run make wheel")
        wheels[tag] = path
    wheels = {tag: path for tag, path in wheels.items() if not only or tag in only}
    check(wheels, f"no wheels{' for ' if only else ''}{', '.join(only)} in {DIST}; run make wheel")
    check(len(list(DIST.glob("tandem_cuda-*.tar.gz"))) == 1, f"not one sdist in {DIST}; run make wheel")
    operators = {check_wheel(path) for path in wheels.values()}
    check(len(operators) == 1, "the wheels have different operators")
    found = pythons([f"{tag[2]}.{tag[3:]}" for tag in wheels])
    torches = {"oldest": f"torch=={arguments.oldest}", "newest": "torch"}
    for tag, path in wheels.items():
        for which in arguments.torch or ["oldest", "newest"]:
            if which != "none":
                check_installed(path, found[tag], torches[which], arguments.keep)
    print(f"{len(wheels)} wheels are as they should be")


if __name__ == "__main__":
    try:
        main()
    except (Failed, OSError) as error:
        sys.exit(f"make verify-wheel: {error}")
