"""Small data sets in the formats that the real ones have on disk, with known contents."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def idx_files(folder: Path, train: int = 40, test: int = 20, seed: int = 0) -> None:
    """MNIST's four files; every image has a bar at the place of its label, and the tests' are inverted at the edge."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for prefix, number in (("train", train), ("t10k", test)):
        labels = (np.arange(number) % 10).astype(np.uint8)
        images = random.integers(0, 60, (number, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4:24, 3 + 2 * label : 6 + 2 * label] = 255
            image[0, 0] = 255 if prefix == "t10k" else 0  # marks what is of the test set
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *images.shape) + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, number) + labels.tobytes())


def events(seed: int, label: int, size: int, number: int = 300) -> np.ndarray:
    """[E, 4]: t in microseconds, x, y, p, in order of time; around a column that says the label."""
    random = np.random.default_rng(seed)
    t = np.sort(random.integers(0, 300_000, number))
    x = (random.normal((label + 1) * size / 12, size / 40, number).round()).clip(0, size - 1)
    y, p = random.integers(0, size, number), random.integers(0, 2, number)
    return np.stack([t, x.astype(int), y, p], 1)


def nmnist_bytes(recording: np.ndarray) -> bytes:
    """Five bytes an event: x, y, polarity and 23 bits of time."""
    t, x, y, p = recording.T.astype(np.uint32)
    return np.stack([x, y, (p << 7) | (t >> 16), (t >> 8) & 255, t & 255], 1).astype(np.uint8).tobytes()


def aedat4_bytes(recording: np.ndarray, size: int) -> bytes:
    """AEDAT 4.0, uncompressed: a header and one packet of events, flatbuffers with their size in front."""
    info = (
        '<dv version="2.0"><node name="outInfo" path="/outInfo/"><node name="0" path="/outInfo/0/">'
        '<attr key="compression" type="string">NONE</attr><attr key="originalModuleName" type="string">camera</attr>'
        '<attr key="originalOutputName" type="string">events</attr><attr key="typeDescription" type="string">e</attr>'
        '<attr key="typeIdentifier" type="string">EVTS</attr><node name="info" path="/outInfo/0/info/">'
        f'<attr key="sizeX" type="int">{size}</attr><attr key="sizeY" type="int">{size}</attr>'
        '<attr key="source" type="string">camera</attr></node></node></node></dv>'
    ).encode()
    # Offset of the table, identifier, vtable (its size, the table's, where fields are), table.
    header = struct.pack("<I4s5H6x", 24, b"IOHE", 10, 20, 4, 8, 16) + struct.pack("<iiqI", 16, 0, -1, 4)
    header += struct.pack("<I", len(info)) + info + b"\0"
    packet = struct.pack("<I4s3H2x", 16, b"EVTS", 6, 8, 4) + struct.pack("<iI4x", 8, 8)
    packet += struct.pack("<I", len(recording)) + b"".join(struct.pack("<qhhB3x", *map(int, e)) for e in recording)
    header, packet = (struct.pack("<I", len(part)) + part for part in (header, packet))
    return b"#!AER-DAT4.0\r\n" + header + struct.pack("<ii", 0, len(packet)) + packet


def nmnist(folder: Path, train: int = 4, test: int = 2) -> None:
    """So many recordings of each digit."""
    for part, number in (("Train", train), ("Test", test)):
        for label in range(10):
            for i in range(number):
                path = folder / "NMNIST" / part / str(label) / f"{i + 1:05d}.bin"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(nmnist_bytes(events(1000 * (part == "Test") + 10 * i + label, label, 34)))


def cifar10_dvs(folder: Path, number: int = 10) -> None:
    """So many recordings of each class."""
    for label, name in enumerate(CIFAR10):
        for i in range(number):
            path = folder / "CIFAR10DVS" / name / f"cifar10_{name}_{i}.aedat4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(aedat4_bytes(events(10 * i + label, label, 128, 600), 128))


def dvs128_gesture(folder: Path, train: int = 4, test: int = 2) -> None:
    """So many users who make each gesture once; times in ms, as tonic stores them."""
    for part, number in (("Train", train), ("Test", test)):
        for user in range(number):
            below = folder / "DVSGesture" / f"ibmGesture{part}" / f"user{user + 1:02d}_fluorescent"
            below.mkdir(parents=True, exist_ok=True)
            for label in range(11):
                t, x, y, p = events(1000 * (part == "Test") + 11 * user + label, label, 128, 600).T
                np.save(below / f"{label}.npy", np.stack([x, y, p, t // 1000], 1).astype(np.float64))
