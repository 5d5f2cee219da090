"""`make wheel` and `make verify-wheel`: which Pythons they find, and that nothing wrong in a wheel goes through."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import found
import tandem_cuda
import verify
import wheels
from tandem_cuda import _C

ROOT = Path(__file__).resolve().parents[1]
TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"
PLATFORM = "manylinux_2_34_x86_64"
REAL_LIMIT = verify.LIMIT
MODULE, OPERATORS = f"tandem_cuda/{Path(_C.__file__).name}", "tandem_cuda/libtandem_cuda.so"
INFO = f"tandem_cuda-{tandem_cuda.__version__}.dist-info"
NAME = f"tandem_cuda-{tandem_cuda.__version__}-{TAG}-{TAG}-{PLATFORM}.whl"
needs_tools = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("cc", "nm", "readelf", "strip")), reason="needs cc and binutils"
)


# ---- Pythons


def python(path, **facts):
    """A stand-in that says these facts of itself."""
    said = {"version": "3.14", "implementation": "cpython", "headers": True, "venv": True, "free_threaded": False}
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho '{json.dumps({**said, **facts})}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A home folder, and a PATH with one Python that does not run."""
    monkeypatch.setattr(found, "VERSIONS", ("3.14",))
    monkeypatch.setattr(sys, "executable", str(python(tmp_path / "own" / "python", version="3.9")))
    shim = python(tmp_path / "shims" / "python3.14")
    shim.write_text("#!/bin/sh\nexit 127\n")
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_python_of_pyenv_is_found(machine):
    versions = machine / ".pyenv" / "versions"
    python(versions / "3.14.0t" / "bin" / "python", free_threaded=True)
    python(versions / "3.14.1" / "bin" / "python", headers=False)
    python(versions / "3.14.2" / "bin" / "python", implementation="pypy")
    python(versions / "3.14.3" / "bin" / "python", venv=False)
    usable = python(versions / "3.14.4" / "bin" / "python")
    python(versions / "3.14.5" / "bin" / "python")
    assert found.pythons() == found.pythons(["3.14"]) == {"cp314": usable}


def test_a_python_that_is_not_there(machine):
    assert found.pythons() == {}
    with pytest.raises(found.Failed, match=r"no Python 3\.14 with headers and venv"):
        found.pythons(["3.14"])
    with pytest.raises(found.Failed, match=r"must be one of 3\.14, got 2\.7"):
        found.pythons(["2.7"])


# ---- Archives


LINKER_MAP = "Archive member included\n\n/usr/lib/{}(part.o)\n  x.o (f)\n\nMemory Configuration\n/usr/lib/libz.a(z.o)\n"


def test_archives_without_a_licence():
    notices = (ROOT / "THIRD_PARTY_LICENSES.txt").read_text()
    assert wheels.linked("\nMemory Configuration\n", notices) == []
    for archive in wheels.LINKED:
        assert wheels.linked(LINKER_MAP.format(archive), notices) == [archive]
    with pytest.raises(found.Failed, match=r"parts of libz\.a, of which THIRD_PARTY_LICENSES\.txt says nothing"):
        wheels.linked(LINKER_MAP.format("libz.a"), notices)
    with pytest.raises(found.Failed, match=r"parts of libcudart_static\.a"):
        wheels.linked(LINKER_MAP.format("libcudart_static.a"), notices.replace("NVIDIA", "ACME"))
    with pytest.raises(found.Failed, match="map is none of GNU ld"):
        wheels.linked("VMA LMA Size Align Out In Symbol\n", notices)


def test_archives_of_the_last_build(tmp_path, capsys):
    """Not of the folder that was written last: a build of another torch may be newer."""
    for tag, archive in (("torch-2.13.0", "libgcc.a"), ("torch-2.11.0", "libz.a")):
        (tmp_path / "build" / tag).mkdir(parents=True)
        (tmp_path / "build" / tag / "tandem_operators.linked").write_text(LINKER_MAP.format(archive))
    (tmp_path / "build" / "compile_commands.json").symlink_to(Path("torch-2.13.0", "compile_commands.json"))
    wheels.check_linked(tmp_path, "tandem_operators")
    assert capsys.readouterr().out == "tandem_operators: linked statically: libgcc.a\n"
    with pytest.raises(found.Failed, match=r"no .*/torch-2\.13\.0/_C\.linked: _C was not built here"):
        wheels.check_linked(tmp_path, "_C")


@pytest.mark.parametrize("project", ["pybind11", "torch"])
def test_licences_are_those_of_the_projects(project):
    """As far as their texts are installed beside them."""
    try:
        files = [f for f in metadata.files(project) or [] if f.name == "LICENSE" and len(f.parts) == 3]
    except metadata.PackageNotFoundError:
        pytest.skip(f"{project} is not installed: this environment builds nothing")
    if not files:
        pytest.skip(f"{project} was installed without its licence")
    notices = (ROOT / "THIRD_PARTY_LICENSES.txt").read_text()
    paragraphs = files[0].read_text().split("\n\n")
    begin = next(i for i, text in enumerate(paragraphs) if "Copyright" in text)
    end = next(i for i, text in enumerate(paragraphs) if "POSSIBILITY OF SUCH DAMAGE" in text)
    assert [text for text in paragraphs[begin : end + 1] if text.strip() not in notices] == []


# ---- Wheels


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The files of a good wheel, without RECORD."""
    files = {}
    for path in (ROOT / "tandem_cuda").rglob("*"):
        if path.suffix in (".py", ".pyi") or path.name == "py.typed":
            files[str(path.relative_to(ROOT))] = path.read_bytes()
    folder = tmp_path_factory.mktemp("stripped")
    for name, source in ((MODULE, _C.__file__), (OPERATORS, tandem_cuda.library_path)):
        subprocess.run(["strip", "-o", folder / "file", source], check=True)
        files[name] = (folder / "file").read_bytes()
    project = found.project()["project"]
    needs = "".join(f"Requires-Dist: {need}\n" for need in project["dependencies"])
    facts = f"Name: tandem_cuda\nVersion: {project['version']}\nLicense-Expression: {project['license']}\n{needs}"
    files[f"{INFO}/METADATA"] = facts.encode()
    files[f"{INFO}/WHEEL"] = f"Wheel-Version: 1.0\nTag: {TAG}-{TAG}-{PLATFORM}\n".encode()
    for name in project["license-files"]:
        files[f"{INFO}/licenses/{name}"] = (ROOT / name).read_bytes()
    return files


def written(folder, files, name=NAME, record=None, record_as="RECORD", errors="strict", compression=1):
    def row(file, content):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        return f"{file},sha256={digest},{len(content)}\n"

    lines = "".join(row(file, content) for file, content in files.items()) + f"{INFO}/RECORD,,\n"
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=compression) as archive:
        for file, content in {**files, f"{INFO}/{record_as}": (record or lines).encode(errors=errors)}.items():
            archive.writestr(file, content)
    return folder / name


@pytest.fixture(autouse=True)
def room_for_the_fastest_compression(monkeypatch):
    """Most wheels that are written here are larger than real ones; `test_a_good_wheel` asks for the real limit."""
    monkeypatch.setattr(verify, "LIMIT", 1.25 * REAL_LIMIT)


@pytest.fixture
def auditwheel(monkeypatch):
    """It says that the wheel has the platform of its name; the rest of the tools is real."""
    tool = verify.tool

    def stand_in(*command):
        audits = "auditwheel" in command
        return f'This\nconstrains the platform\ntag to "{PLATFORM}".' if audits else tool(*command)

    monkeypatch.setattr(verify, "tool", stand_in)


@needs_tools
def test_a_good_wheel(tmp_path, contents, auditwheel, monkeypatch):
    monkeypatch.setattr(verify, "LIMIT", REAL_LIMIT)
    digest = verify.check_wheel(written(tmp_path, contents, compression=6))  # as wheels are compressed
    assert digest == hashlib.sha256(contents[OPERATORS]).hexdigest()


def library(folder, source, *options):
    """A stripped library of C code that exports what the operators do."""
    (folder / "library.c").write_text(f"void tandem_cuda_interface(void) {{}}\n{source}")
    command = ["cc", "-shared", "-fPIC", "-s", folder / "library.c", *options, "-o", folder / "libtandem_cuda.so"]
    subprocess.run(command, check=True)
    return (folder / "libtandem_cuda.so").read_bytes()


def without(files, name):
    return {key: content for key, content in files.items() if key != name}


def replaced(files, name, old, new):
    assert old in files[name]
    return {**files, name: files[name].replace(old, new)}


MUTANTS = {
    "a test inside": (lambda files, _: {**files, "tests/test_x.py": b""}, r"too many: \['tests/test_x\.py'\]"),
    "a module less": (
        lambda files, _: without(files, "tandem_cuda/events.py"),
        r"missing: \['tandem_cuda/events\.py'\]",
    ),
    "a grafted library": (
        lambda files, _: {**files, "tandem_cuda.libs/libz.so": b""},
        r"too many: \['tandem_cuda\.libs/libz\.so'\]",
    ),
    "an old module": (
        lambda files, _: {**files, "tandem_cuda/events.py": b"old"},
        r"tandem_cuda/events\.py is another than in the source tree",
    ),
    "an old version": (
        lambda files, _: replaced(files, f"{INFO}/METADATA", b"Version: ", b"Version: 0."),
        r"version 0\.",
    ),
    "a dependency more": (
        lambda files, _: replaced(files, f"{INFO}/METADATA", b"Requires-Dist: numpy", b"Requires-Dist: numpy<2"),
        "needs .*numpy<2",
    ),
    "another tag inside": (
        lambda files, _: replaced(files, f"{INFO}/WHEEL", b"manylinux_2_34", b"linux"),
        "WHEEL has the tags",
    ),
    "no licences": (
        lambda files, _: {**files, f"{INFO}/licenses/THIRD_PARTY_LICENSES.txt": b""},
        r"THIRD_PARTY_LICENSES\.txt is another",
    ),
    "not stripped": (
        lambda files, _: {**files, OPERATORS: Path(tandem_cuda.library_path).read_bytes()},
        r"libtandem_cuda\.so is not stripped",
    ),
    "too big": (lambda files, _: {**files, OPERATORS: os.urandom(21_000_000)}, "MB, more than 20"),
    "exports more": (
        lambda files, folder: {**files, OPERATORS: library(folder, "void more(void) {}")},
        r"libtandem_cuda\.so exports \['more', 'tandem_cuda_interface'\]",
    ),
    "looks elsewhere": (
        lambda files, folder: {**files, OPERATORS: library(folder, "", "-Wl,-rpath,/opt/torch/lib")},
        r"libtandem_cuda\.so looks for libraries in \['/opt/torch/lib'\]",
    ),
    "needs Python": (
        lambda files, folder: {
            **files,
            OPERATORS: library(
                folder, "void PyErr_Clear(void); static void (*f)(void) __attribute__((used)) = PyErr_Clear;"
            ),
        },
        r"libtandem_cuda\.so needs Python: \['PyErr_Clear'\]",
    ),
    "needs a library": (
        lambda files, folder: {**files, OPERATORS: library(folder, "", "-Wl,--no-as-needed", "-lutil", other(folder))},
        r"libtandem_cuda\.so needs \['libother\.so'\]",
    ),
}


def other(folder):
    path = folder / "libother.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wl,-soname,libother.so", "-x", "c", "/dev/null", "-o", path], check=True
    )
    return path


@needs_tools
@pytest.mark.parametrize(("change", "reason"), MUTANTS.values(), ids=MUTANTS)
def test_a_wheel_with_a_mistake(tmp_path, contents, auditwheel, change, reason):
    with pytest.raises(found.Failed, match=f"^tandem_cuda-.*whl: .*{reason}"):
        verify.check_wheel(written(tmp_path, change(contents, tmp_path)))


@needs_tools
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (NAME.replace(f"-{TAG}-{PLATFORM}", f"-abi3-{PLATFORM}"), "the name is none of"),
        (NAME.replace(PLATFORM, "linux_x86_64"), "WHEEL has the tags"),
        (NAME.replace(f"{TAG}-{TAG}", "cp399-cp399"), "in a wheel for cp399"),
    ],
)
def test_a_wheel_with_another_name(tmp_path, contents, auditwheel, name, reason):
    with pytest.raises(found.Failed, match=reason):
        verify.check_wheel(written(tmp_path, contents, name))


@needs_tools
def test_a_wheel_with_a_tag_that_is_too_old(tmp_path, contents, auditwheel):
    name = NAME.replace(PLATFORM, "manylinux_2_17_x86_64")
    files = replaced(contents, f"{INFO}/WHEEL", PLATFORM.encode(), b"manylinux_2_17_x86_64")
    with pytest.raises(found.Failed, match=f"auditwheel says:[^$]*{PLATFORM}"):
        verify.check_wheel(written(tmp_path, files, name))
    files = replaced(contents, f"{INFO}/WHEEL", PLATFORM.encode(), b"linux_x86_64")
    with pytest.raises(found.Failed, match="not for every Linux"):
        verify.check_wheel(written(tmp_path, files, NAME.replace(PLATFORM, "linux_x86_64")))


@needs_tools
def test_a_damaged_wheel(tmp_path, contents, auditwheel):
    with pytest.raises(found.Failed, match="RECORD and the files differ"):
        verify.check_wheel(written(tmp_path, contents, record="a,b,c\n"))
    rows = "".join(f"{name},sha256=0,0\n" for name in (*contents, f"{INFO}/RECORD"))
    with pytest.raises(found.Failed, match="RECORD has another hash of"):
        verify.check_wheel(written(tmp_path, contents, record=rows))
    with pytest.raises(found.Failed, match="RECORD must have lines of file, hash and size, got 'a,b'"):
        verify.check_wheel(written(tmp_path, contents, record="a,b\n"))
    with pytest.raises(found.Failed, match=r"/RECORD is not UTF-8: "):
        verify.check_wheel(written(tmp_path, contents, record="\udcff", errors="surrogateescape"))


@needs_tools
def test_a_wheel_without_its_files(tmp_path, contents):
    for name in ("RECORD", "METADATA", "WHEEL"):
        path = written(
            tmp_path, without(contents, f"{INFO}/{name}"), record_as="other" if name == "RECORD" else "RECORD"
        )
        with pytest.raises(found.Failed, match=rf"^tandem_cuda-.*\.whl: there is no {INFO}/{name}$"):
            verify.check_wheel(path)
    with pytest.raises(found.Failed, match=r"must have one module tandem_cuda/_C\.\*\.so, got \[\]"):
        verify.check_wheel(written(tmp_path, without(contents, MODULE)))
    with pytest.raises(found.Failed, match=r"must have one module tandem_cuda/_C\.\*\.so, got \['.*', '.*'\]"):
        verify.check_wheel(written(tmp_path, {**contents, "tandem_cuda/_C.abi3.so": b""}))


@needs_tools
def test_a_wheel_with_changed_bytes(tmp_path, contents):
    path = written(tmp_path, contents)
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo(f"{INFO}/METADATA").header_offset + 30 + len(f"{INFO}/METADATA")
    whole = path.read_bytes()
    for end in (b"", whole[begin + 8 :]):  # the end has the table of contents
        path.write_bytes(whole[:begin] + b"\xff" * 8 + end)
        reason = rf"{INFO}/METADATA is damaged: " if end else "File is not a zip file"
        with pytest.raises(found.Failed, match=rf"^tandem_cuda-.*\.whl: {reason}"):
            verify.check_wheel(path)


def test_parts_without_a_licence(tmp_path):
    notices = (ROOT / "THIRD_PARTY_LICENSES.txt").read_text()
    operators = tmp_path / "libtandem_cuda.so"
    operators.write_bytes(b"..cudaGetDeviceCount..aoti_torch_empty..")
    assert verify.check_licences(notices, [operators]) == ["PyTorch", "NVIDIA CUDA Runtime"]
    operators.write_bytes(b"..pybind11_type..")  # which the notices have in the module alone
    with pytest.raises(found.Failed, match=r"libtandem_cuda\.so contains parts of pybind11"):
        verify.check_licences(notices, [operators])


@pytest.mark.parametrize(
    ("names", "options", "reason"),
    [
        ([], [], r"no wheels in .*; run make wheel"),
        ([NAME], ["--python", "3.99"], r"no wheels for cp399 in .*; run make wheel"),
        ([NAME], [], r"not one sdist in .*; run make wheel"),
        ([NAME, NAME.replace("x86_64", "aarch64")], [], rf"two wheels for {TAG} in .*_aarch64\.whl and .*_x86_64\.whl"),
        (["tandem_cuda-x.whl"], [], r"^tandem_cuda-x\.whl: the name is none of a wheel"),
    ],
)
def test_nothing_to_verify(tmp_path, monkeypatch, names, options, reason):
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(verify, "DIST", tmp_path)
    monkeypatch.setattr(sys, "argv", ["verify.py", "--oldest", "2.11.0", *options])
    with pytest.raises(found.Failed, match=reason):
        verify.main()


def test_a_program_that_is_not_there():
    with pytest.raises(found.Failed, match=r"^cannot run /nowhere/readelf: No such file or directory$"):
        found.run("/nowhere/readelf", "-d", quiet=True)
