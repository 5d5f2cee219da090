"""The file of a frozen network: a safetensors file whose metadata describe the network in JSON.

Formats 1 and 2. The metadata of a safetensors file are strings:

- ``format``: "tandem_cuda.frozen"; ``version``: "1", or "2" where something is used that came with it.
- ``description``: JSON, {"nodes": [{"name", "kind", "inputs", "settings"}, ...], "output": name}. Nodes are in order of
  execution; inputs are names of nodes before, or "<input>". Since 2: modules and functions of plain PyTorch are nodes
  (nn/frozen_plain.py); "inputs", the names of the network's inputs, where these are not ["<input>"]; "output" may be
  {"tuple": [...]}, {"list": [...]} or {"dict": {...}} of outputs.
- ``sha256``: of the description and of every tensor (name, dtype, shape and bytes, in order of names).

A tensor is named <node>/<tensor>. Weights are stored as layers have them, and packed when loaded: how they are packed
depends on the device and may change. Nothing is pickled; reading a file runs no code of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

FORMAT = "tandem_cuda.frozen"
VERSION = 2
"""The newest."""


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"saving and loading frozen networks needs safetensors: {error}; pip install tandem_cuda[freeze]"
        ) from error
    return safetensors


def write(path: str | PathLike[str], description: Any, tensors: Mapping[str, Tensor], version: int = 1) -> None:
    """Write a file as a whole or not at all."""
    safetensors = _safetensors()
    text = json.dumps(description, allow_nan=False)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "version": str(version), "description": text, "sha256": _digest(text, plain)}
    data = safetensors.torch.save(plain, metadata)
    target = Path(path)
    try:
        _replace(target, data)
    except OSError as error:  # of a temporary file that nobody knows
        raise OSError(
            error.errno, f"FrozenNetwork.save: the file cannot be written: {error.strerror or error}", str(target)
        ) from error


def _replace(target: Path, data: bytes) -> None:
    """Put a file of these bytes in place; what goes wrong leaves everything as it was."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            rest = memoryview(data)
            while rest:  # a disk that fills up takes a part first
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)  # that of any new file
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: str | PathLike[str]) -> tuple[Any, dict[str, Tensor]]:
    """Description and tensors of a file that is whole and of this format."""
    safetensors = _safetensors()
    with Path(path).open("rb"):  # OSError where it cannot be read at all
        pass
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata)
            # Copies: the file may change under its mapping.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"FrozenNetwork.load: {path} must be a frozen network, got a damaged file or another kind: {error}"
        ) from error
    text = metadata.get("description", "")
    if metadata.get("sha256") != _digest(text, tensors):
        raise ValueError(f"FrozenNetwork.load: {path} is damaged: its contents do not have the sha256 that it names")
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
    version = metadata.get("version", "")
    if version not in [str(known) for known in range(1, VERSION + 1)]:
        newer = version.isdecimal() and int(version) > VERSION
        hint = "; a newer tandem_cuda wrote it, upgrade to read it" if newer else ""
        raise ValueError(f"FrozenNetwork.load: {path} must be of format version 1 to {VERSION}, got {version!r}{hint}")


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
