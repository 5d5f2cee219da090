"""Frozen networks that version 0.2 pickled load, and are those of the files that it wrote; so are their state dicts."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch

from exact import generator, same, train
from tandem_cuda import FrozenNetwork, SpikeTrain

pytest.importorskip("safetensors")

FOLDER = Path(__file__).parent / "golden" / "version_0_2"
SHAPES = {
    "images": (1, 5, 5), "moved": (1, 8, 8), "gate": (1, 8, 8), "pools": (1, 8, 8), "join": (2, 8, 8),
    "integers": (2, 8, 8),
}  # fmt: skip


@pytest.fixture(params=SHAPES)
def found(request):
    """The network of a pickle, that of the file, the path of the file and an input."""
    path, shape = FOLDER / f"{request.param}.safetensors", SHAPES[request.param]
    network, loaded = pickle.loads(path.with_suffix(".pkl").read_bytes()), FrozenNetwork.load(path)
    if network.time_steps is None:
        return network, loaded, path, SpikeTrain.from_dense(train(5, 2, *shape, seed=0).float())
    return network, loaded, path, torch.rand(2, *shape, generator=generator(0))


def values(output):
    return output.bits if isinstance(output, SpikeTrain) else output


def test_pickles(found):
    network, loaded, _, x = found
    want = values(loaded(x))
    assert want.any()
    same(values(network(x)), want)
    same(values(pickle.loads(pickle.dumps(network))(x)), want)


def test_they_pack_their_weights(found):
    network, loaded, _, _ = found
    buffers = [{name: x.shape for name, x in frozen.named_buffers()} for frozen in (network, loaded)]
    assert buffers[0] == buffers[1]
    packing = {layer.kind for layer in loaded.layers if any("packed" in name for name, _ in layer.named_buffers())}
    assert packing <= {"TandemConv2d", "TandemConvTranspose2d", "TandemLinear", "TandemAdd", "TandemElementwise"}
    assert packing or found[2].stem in ("gate", "pools")  # torch computes the product of floats with real input


def test_files_are_written_as_they_were(found, tmp_path):
    network, _, path, _ = found
    network.save(tmp_path / "again")
    (header, tensors), (wanted, expected) = (parts(x.read_bytes()) for x in (tmp_path / "again", path))
    assert header == wanted
    assert tensors == expected


def parts(data):
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


OLD = {"layer.gain": "scale", "layer.bias": "bias", "layer.branches": "join.branches", "layer.scale": "join.scale"}


def test_state_dicts(found):
    """Tensors of a layer were outside of it, and a sum was called join."""
    _, loaded, path, x = found
    want = values(loaded(x))
    state = {}
    for name, tensor in loaded.state_dict().items():
        for new, old in OLD.items():
            if f".{new}" in name:
                name = name.replace(f".{new}", f".{old}")
                break
        state[name] = tensor
    other = FrozenNetwork.load(path)
    for tensor in other.buffers():
        tensor.zero_()
    other.load_state_dict(state)
    same(values(other(x)), want)
