"""Saving frozen networks, and files that are damaged, foreign or hold another description."""

import contextlib
import copy
import errno
import io
import json
import os
import resource
import struct
import sys

import pytest
import torch
from torch import nn

from exact import nightly, same
from tandem_cuda import Decode, Encode, FrozenNetwork, TandemConv2d, TandemLinear, freeze
from tandem_cuda.freeze import file as artefact

pytest.importorskip("safetensors")
from freezable import Everything, converted, input_of, line, paths_in, randomised, small_network


def test_a_file_needs_no_code_of_the_model(tmp_path):
    frozen, x = freeze(small_network()), input_of("constant")
    frozen.save(tmp_path / "net.safetensors")
    data = (tmp_path / "net.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    description = json.loads(header["__metadata__"]["description"])
    assert header["__metadata__"]["format"] == "tandem_cuda.frozen"
    assert header["__metadata__"]["version"] == "1"
    assert description.keys() == {"nodes", "inputs", "output"}
    assert [node["kind"] for node in description["nodes"]] == [
        "Encode", "TandemConv2d", "TandemConv2d", "Flatten", "TandemLinear", "Decode", "Linear",
    ]  # fmt: skip
    assert {name.split("/")[1] for name in header if "/" in name} == {"weight", "scale", "bias"}  # not packed
    again = tmp_path / "again.safetensors"
    FrozenNetwork.load(tmp_path / "net.safetensors").save(again)
    written, read = artefact.read(tmp_path / "net.safetensors"), artefact.read(again)
    assert read[0] == written[0]
    assert read[1].keys() == written[1].keys()
    same(FrozenNetwork.load(str(again), device="cpu")(x), frozen(x))


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    freeze(small_network()).save(path)
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError("no space left on device")

    other = freeze(small_network("impulse"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space left"):
            other.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    other.save(path)
    assert path.read_bytes() != before
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    with pytest.raises(FileNotFoundError):
        other.save(tmp_path / "nowhere" / "net.safetensors")


@contextlib.contextmanager
def no_file_beyond(size):
    """Writing more raises an OSError: Python ignores the signal."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    frozen = freeze(small_network())
    frozen.save(path)
    before = path.read_bytes()
    message = "FrozenNetwork.save: the file cannot be written: File too large"
    with pytest.raises(OSError, match=message) as caught, no_file_beyond(1000):
        frozen.save(path)
    assert (type(caught.value), caught.value.errno, caught.value.filename) == (OSError, errno.EFBIG, str(path))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before
    for name, number, kind in (
        ("write", errno.ENOSPC, OSError),
        ("fsync", errno.EDQUOT, OSError),
        ("replace", errno.EACCES, PermissionError),
        ("mkstemp", errno.EROFS, OSError),
    ):

        def fail(*args, number=number, **named):
            raise OSError(number, os.strerror(number), "/some/temporary")

        with monkeypatch.context() as patch:
            owner = {"fsync": os, "replace": artefact.Path, "mkstemp": artefact.tempfile}.get(name)
            if owner is None:
                patch.setattr(artefact.os, "fdopen", lambda fd, *args, **named: Failing(fd, fail))
            else:
                patch.setattr(owner, name, fail)
            with pytest.raises(kind, match=f"FrozenNetwork.save: .*{os.strerror(number)}") as caught:
                frozen.save(path)
        assert (caught.value.errno, caught.value.filename) == (number, str(path))
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="nowhere") as caught:
        frozen.save(tmp_path / "nowhere" / "net")
    assert caught.value.filename == str(tmp_path / "nowhere" / "net")
    frozen.save(path)
    assert list(tmp_path.iterdir()) == [path]


class Failing(io.FileIO):
    """A file that takes a part, then fails, as a disk that fills up."""

    def __init__(self, descriptor, fail):
        super().__init__(descriptor, "wb")
        self.fail = fail

    def write(self, data):
        return super().write(data[:-50]) if len(data) > 500 else self.fail()


def tiny():
    return randomised(
        nn.Sequential(Encode(3), TandemConv2d(1, 2, 2, norm="batch"), nn.Flatten(), TandemLinear(8, 3), Decode())
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A good file's bytes."""
    path = tmp_path_factory.mktemp("good") / "net.safetensors"
    freeze(tiny()).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.5, -1])
def test_truncated_files(tmp_path, data, kept):
    path = tmp_path / "net.safetensors"
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(
        ValueError, match=r"FrozenNetwork.load: .*net.safetensors must be a frozen network, got a damag"
    ):
        FrozenNetwork.load(path)


def test_any_damaged_byte_is_noticed(tmp_path, data):
    path = tmp_path / "net.safetensors"
    (size,) = struct.unpack("<Q", data[:8])
    body = 8 + size
    for position in [*range(0, body, 7), *range(body, len(data))]:
        damaged = bytearray(data)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"FrozenNetwork.load: .*net.safetensors"):
            FrozenNetwork.load(path)
    path.write_bytes(data)
    FrozenNetwork.load(path)


def test_foreign_files(tmp_path):
    import safetensors.torch

    path = tmp_path / "other"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"must be a frozen network .*got a safetensors file of format None"):
        FrozenNetwork.load(path)
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="format 'pt'"):
        FrozenNetwork.load(path)
    torch.save(small_network().state_dict(), path)
    with pytest.raises(ValueError, match="damaged file or another kind"):
        FrozenNetwork.load(path)
    with pytest.raises(FileNotFoundError):
        FrozenNetwork.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        FrozenNetwork.load(tmp_path)


@pytest.mark.parametrize("version", ["0", "2", "x"])
def test_other_versions(tmp_path, monkeypatch, version):
    with monkeypatch.context() as patch:
        patch.setattr(artefact, "VERSION", version)
        freeze(tiny()).save(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=f"must be of format version 1, got '{version}'$"):
        FrozenNetwork.load(tmp_path / "net.safetensors")


def contents(net, tmp_path):
    freeze(net).save(tmp_path / "good.safetensors")
    return artefact.read(tmp_path / "good.safetensors")


FEW_ODD = (None, -1, 7, "same", [1, 2])
ODD = (*FEW_ODD, True, 0, 10**30, 1.5, "", [], {}, {"threshold": 1.0})


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (tiny, FEW_ODD),
        nightly(tiny, ODD),
        nightly(lambda: converted(Everything), ODD, id="everything"),
        nightly(lambda: converted(line), ODD, id="line"),
    ],
)
def test_any_other_description_is_refused(tmp_path, make, values):
    """Every value replaced by each of many, and left out: an error, or (where there is another truth) a network."""
    description, tensors = contents(make(), tmp_path)
    path = tmp_path / "net.safetensors"
    accepted = set()
    for at in paths_in(description):
        for odd in (*values, paths_in):  # the last one: left out
            changed = copy.deepcopy(description)
            place = changed
            for key in at[:-1]:
                place = place[key]
            if odd is paths_in:
                del place[at[-1]]
            elif json.dumps(place[at[-1]]) == json.dumps(odd):
                continue
            else:
                place[at[-1]] = odd
            artefact.write(path, changed, tensors)
            with contextlib.suppress(ValueError):  # no other error
                FrozenNetwork.load(path)
                name = next(key for key in reversed(at) if isinstance(key, str))
                accepted.add((name, "left out" if odd is paths_in else str(odd)))
    # What other networks have too.
    assert {name for name, _ in accepted} <= {
        "time_steps", "scale", "threshold", "amplitude", "initial", "refractory", "two_phase", "stride", "padding",
        "dilation", "output_padding", "kernel_size", "output_size", "ceil_mode", "count_include_pad",
        "divisor_override", "start_dim", "end_dim", "name", "inputs", "args",
    }  # fmt: skip
    assert ("time_steps", "7") in accepted
    whole = {odd for name, odd in accepted if name in ("stride", "padding", "dilation")}
    assert whole <= {"0", "7", "same", "[1, 2]"}


@pytest.mark.parametrize("change", ["missing", "unknown", "foreign", "shape", "dtype", "integers", "mixed"])
def test_tensors_that_do_not_fit(tmp_path, change):
    description, tensors = contents(tiny(), tmp_path)
    weight = tensors["1/weight"]
    changes = {
        "missing": {"1/weight": None},
        "unknown": {"1/other": weight.clone()},
        "foreign": {"9/weight": weight.clone()},
        "shape": {"1/weight": weight[:, :, :1].contiguous()},
        "dtype": {"1/weight": weight.half()},
        "integers": {"1/weight": weight.int()},
        "mixed": {"1/weight": weight.double()},
    }
    changed = {name: x for name, x in (tensors | changes[change]).items() if x is not None}
    artefact.write(tmp_path / "net.safetensors", description, changed)
    with pytest.raises(ValueError, match=r"does not describe a network: .*(must be|must belong)"):
        FrozenNetwork.load(tmp_path / "net.safetensors")


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"pip install tandem_cuda\[freeze\]"):
        freeze(small_network()).save(tmp_path / "net.safetensors")
    with pytest.raises(ImportError, match=r"pip install tandem_cuda\[freeze\]"):
        FrozenNetwork.load(tmp_path / "net.safetensors")
