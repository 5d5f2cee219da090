"""The file format of frozen networks: a safetensors file whose metadata describe the network in JSON.

The metadata of the safetensors file are strings:

- ``format``: "tandem_cuda.frozen". ``version``: "1".
- ``description``: JSON, {"nodes": [{"name", "kind", "inputs", "settings"}, ...], "inputs": [...], "output": name}.
  Nodes are in order of execution. Their inputs are names of earlier nodes or of the network's inputs, of which "inputs"
  is the list: ["<input>"] if there is one. The output may also be {"tuple": [...]}, {"list": [...]} or {"dict": {...}}.
- ``sha256``: the hash of the description and of every tensor (name, dtype, shape and bytes, in order of names).

The kind of a node is the name of a layer's class, of a module of torch.nn (plain.py), "Aten" or "Constant" (aten.py).
The settings are the arguments that make it again. Weights that several neurons of a signed network share have further
settings, which are left out otherwise: "multiplicity", how many entries of a layer's weight belong to one weight of the
ANN; "paired", true if neurons 2i and 2i + 1 are the parts of one value; "folds", the values with a negative slope;
"of_features", true if a layer that could read channels reads features, along the last dimension; "trained_radix", with
which spikes a layer was trained.

Tensors are named <node>/<tensor>. Weights are stored unpacked and packed on loading, since the packing depends on the
device. Nothing is pickled, and reading a file runs no code from it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_leaves_with_path

from ..nn.frozen import LOADERS
from .graph import Node

FORMAT = "tandem_cuda.frozen"
VERSION = "1"


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"saving and loading frozen networks needs safetensors: {error}; pip install tandem_cuda[freeze]"
        ) from error
    return safetensors


def write(path: str | PathLike[str], description: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write a file completely or not at all."""
    safetensors = _safetensors()
    text = json.dumps(description, allow_nan=False)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "version": VERSION, "description": text, "sha256": digest(text, plain)}
    data = safetensors.torch.save(plain, metadata)
    target = Path(path)
    try:
        _replace(target, data)
    except OSError as error:  # which names the temporary file
        raise OSError(
            error.errno, f"FrozenNetwork.save: the file cannot be written: {error.strerror or error}", str(target)
        ) from error


def _replace(target: Path, data: bytes) -> None:
    """Replace the target by a file of these bytes. After an error the target is unchanged."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            rest = memoryview(data)
            while rest:  # write() may write only a part, as when the disk fills up
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)  # the usual mode of a new file; mkstemp's is 0600
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: str | PathLike[str]) -> tuple[Any, dict[str, Tensor]]:
    """Read description and tensors, checking format, version and hash."""
    safetensors = _safetensors()
    with Path(path).open("rb"):  # raises an OSError if the file cannot be read
        pass
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata)
            # Clone, since the file may change while it is memory-mapped.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"FrozenNetwork.load: {path} must be a frozen network, got a damaged file or another kind: {error}"
        ) from error
    text = metadata.get("description", "")
    if metadata.get("sha256") != digest(text, tensors):
        raise ValueError(f"FrozenNetwork.load: {path} is damaged: its contents do not match its sha256")
    try:
        return json.loads(text), tensors
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"FrozenNetwork.load: {path} must hold a description in JSON, got {error}") from error


def _check_format(path: str | PathLike[str], metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"FrozenNetwork.load: {path} must be a frozen network ({FORMAT}), got a safetensors file of format "
            f"{metadata.get('format')!r}"
        )
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"FrozenNetwork.load: {path} must be of format version {VERSION}, got {metadata.get('version')!r}"
        )


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the description and of all tensors."""
    sha256 = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha256.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


_HARMLESS = frozenset({"engine", "trained_radix"})
"""Settings that do not change what a layer computes."""


def state_of(description: Any, nodes: Sequence[Node]) -> Tensor:
    """Return what a state dict must agree in with the network that loads it: JSON, as uint8 [n].

    That is the description, without settings that do not change results, and the dtypes of tensors of integers, which
    copying would convert.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(x) for key, x in value.items() if key not in _HARMLESS}
        return [plain(x) for x in value] if isinstance(value, (list, tuple)) else value

    dtypes = [
        {key: str(x.dtype) for key, x in node.layer.tensors().items() if not x.is_floating_point()} for node in nodes
    ]
    text = json.dumps({**plain(description), "integers": dtypes}, default=repr)
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def check_state(state: Any, own: Tensor) -> None:
    """Raise ValueError if a state dict is of another network than the one that loads it."""
    try:
        theirs, ours = (json.loads(bytes(x.cpu().tolist())) for x in (state, own))
        differing = [b["name"] for a, b in zip(theirs["nodes"], ours["nodes"], strict=False) if a != b]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"FrozenNetwork.load_state_dict: _extra_state must be a frozen network's, got {state!r}"
        raise ValueError(message) from error
    if theirs != ours:
        where = f" in {', '.join(differing)}" if differing else ""
        raise ValueError(
            "FrozenNetwork.load_state_dict: state must be of a network that differs in its tensors' values alone, but "
            f"layers or their settings differ{where}; save() and FrozenNetwork.load() keep the whole network"
        )


def parsed(description: Any, tensors: Mapping[str, Tensor]) -> tuple[list[Node], Any, list[str], Any]:
    """Check a description and make the arguments of FrozenNetwork from it."""
    if not isinstance(description, dict) or description.keys() - {"arguments"} != {"nodes", "inputs", "output"}:
        raise ValueError("the description must hold nodes, inputs and output")
    names = description["inputs"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"inputs must be a list of names, got {names!r}")
    if not isinstance(description["nodes"], list):
        raise ValueError("nodes must be a list")
    owners: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, tensor_name = key.rpartition("/")
        owners.setdefault(name, {})[tensor_name] = tensor
    nodes = []
    for node in description["nodes"]:
        if not isinstance(node, dict) or node.keys() != {"name", "kind", "inputs", "settings"}:
            raise ValueError(f"a node must hold name, kind, inputs and settings, got {node!r}")
        name, inputs, settings = node["name"], node["inputs"], node["settings"]
        _check_numbers(name, settings)
        if not isinstance(name, str) or not isinstance(settings, dict):
            raise ValueError(f"a node's name must be a string and its settings an object, got {node!r}")
        if not isinstance(inputs, list) or not all(isinstance(i, str) for i in inputs):
            raise ValueError(f"inputs of {name!r} must be a list of names, got {inputs!r}")
        kind = node["kind"]
        if not isinstance(kind, str) or kind not in LOADERS:
            raise ValueError(f"kind must be one of {', '.join(sorted(LOADERS))}, got {kind!r}")
        try:
            layer = LOADERS[kind](settings, owners.pop(name, {}))
        except (TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
            raise ValueError(f"node {name!r}: {error}") from error
        nodes.append(Node(name, layer, tuple(inputs)))
    if owners:
        raise ValueError(f"tensors must belong to nodes, got one of {min(owners)!r}")
    return nodes, description["output"], names, description.get("arguments")


def _check_numbers(name: str, settings: Any) -> None:
    """Raise a ValueError if a setting is infinite: Python reads the JSON number 1e999 as infinity."""
    for path, value in tree_leaves_with_path(settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"node {name!r}: setting {keystr(path)} must be finite, got {value}")
