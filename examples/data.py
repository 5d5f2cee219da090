"""Data modules: images and recordings of event cameras, small enough to be kept in memory.

A data set is one tensor, indexed by a whole batch at once. Images are uint8 in memory and become float in [0, 1] batch
by batch; recordings are bit planes (tandem_cuda.SpikeTrain), an eighth of a byte for each neuron and time step. The
validation set is taken from the training set, by the seed; the test set is not looked at in training.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tandem_cuda import SpikeTrain


class DataError(Exception):
    """Data that are not there or cannot be used; a message of one or two lines."""


class Samples(Dataset):
    """A data set in memory, indexed by a batch of indices and the seed of its augmentation.

    Args:
        values: images uint8 [N, C, H, W], or bit planes uint8 [P, N, C, H, W].
        targets: labels [N], or None: the target is the input.
        time_steps: T of bit planes; None for images.
        shift: move each sample by up to this many pixels in both directions.
        flip: mirror every other sample, left to right.
    """

    def __init__(
        self, values: Tensor, targets: Tensor | None, time_steps: int | None = None, shift: int = 0, flip: bool = False
    ) -> None:
        self.values, self.targets, self.time_steps, self.shift, self.flip = values, targets, time_steps, shift, flip

    def __len__(self) -> int:
        return self.values.shape[0 if self.time_steps is None else 1]

    def part(self, indices: Tensor, shift: int = 0, flip: bool = False) -> Samples:
        """Some of the samples."""
        values = self.values[indices] if self.time_steps is None else self.values[:, indices]
        targets = None if self.targets is None else self.targets[indices]
        return Samples(values, targets, self.time_steps, shift, flip)

    def __getitem__(self, key: tuple[Tensor, int]) -> tuple[Tensor | SpikeTrain, Tensor]:
        indices, seed = key
        batch = self.part(indices)
        values = augmented(batch.values, self.shift, self.flip, torch.Generator().manual_seed(seed))
        if self.time_steps is not None:
            assert batch.targets is not None
            return SpikeTrain(values, self.time_steps), batch.targets
        images = values.float() / 255
        return images, images if batch.targets is None else batch.targets


def augmented(values: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Samples [..., N, C, H, W] shifted, each by its own number of pixels, and mirrored; zeros move in."""
    *planes, samples, channels, height, width = values.shape
    if flip:
        mirrored = torch.rand(samples, generator=generator) < 0.5
        values = torch.where(mirrored.view(-1, 1, 1, 1), values.flip(-1), values)
    if shift:
        padded = F.pad(values, (shift,) * 4).reshape(-1, samples, channels, height + 2 * shift, width + 2 * shift)
        dy, dx = torch.randint(0, 2 * shift + 1, (2, samples, 1), generator=generator)
        rows, columns = dy + torch.arange(height), dx + torch.arange(width)
        n = torch.arange(samples).view(-1, 1, 1)
        # Indices around a slice go to the front: [N, H, W, P, C].
        moved = padded.movedim(0, 1)[n, :, :, rows.unsqueeze(2), columns.unsqueeze(1)]
        values = moved.permute(3, 0, 4, 1, 2).reshape(*planes, samples, channels, height, width)
    return values


class Batches(Sampler):
    """Batches of indices with a seed each: all a function of the seed and the epoch, so that a run can be resumed.

    Every process gets its share of the samples, and all processes get equally many batches.

    Args:
        samples: N.
        batch_size: samples of a batch, in each process.
        seed: of order and augmentation.
        shuffle: for training: another order each epoch, and no batch of another size.
        rank: of this process.
        processes: number of processes.
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, shuffle: bool, rank: int = 0, processes: int = 1
    ) -> None:
        self.samples, self.batch_size, self.seed, self.shuffle = samples, batch_size, seed, shuffle
        self.rank, self.processes = rank, processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return max(1, self.samples // self.processes // self.batch_size)
        return -(-self.samples // self.processes // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        order = torch.arange(self.samples)
        if self.shuffle:
            generator = torch.Generator().manual_seed(_mixed(self.seed, self.epoch))
            order = torch.randperm(self.samples, generator=generator)
        mine = order[self.rank :: self.processes]
        if self.shuffle:
            least = self.samples // self.processes
            batches = mine[: min(len(self) * self.batch_size, least)].split(self.batch_size)
        else:
            batches = mine.tensor_split(len(self))
        for i, batch in enumerate(batches):
            yield batch, _mixed(self.seed, self.epoch, self.rank, i)


def _mixed(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1)[0])


class DataModule(lightning.LightningDataModule, ABC):
    """Splits, batches and loaders, whatever the samples are.

    Args:
        dir: folder of the data; docs/training.md has the layouts.
        batch_size: samples of a batch, in each process.
        validation: share of the training set that is held out.
        limit: use this many samples only, of the training and of the test set, for a quick try.
        shift: training samples are moved by up to this many pixels.
        flip: every other training sample is mirrored.
        download: fetch what is missing, where a network exists.
        seed: of the split, the order and the augmentation.
    """

    classes: int

    def __init__(
        self,
        dir: str,
        batch_size: int = 64,
        validation: float = 0.1,
        limit: int | None = None,
        shift: int = 0,
        flip: bool = False,
        download: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 2:
            raise DataError(f"--data.batch_size must be at least 2 (batch norm), got {batch_size}")
        if not 0 < validation < 1:
            raise DataError(f"--data.validation must be in (0, 1), got {validation}")
        if limit is not None and limit < 4:
            raise DataError(f"--data.limit must be at least 4, got {limit}")
        if shift < 0:
            raise DataError(f"--data.shift must not be negative, got {shift}")
        self.dir, self.batch_size, self.validation, self.limit = Path(dir), batch_size, validation, limit
        self.shift, self.flip, self.download, self.seed = shift, flip, download, seed
        self.parts: dict[str, Samples] = {}

    @abstractmethod
    def read(self, train: bool) -> Samples:
        """The training or the test set, without augmentation; at most ``limit`` samples."""

    @abstractmethod
    def fetch(self) -> None:
        """Download what is missing."""

    def prepare_data(self) -> None:
        if self.download:
            try:
                self.fetch()
            except Exception as error:  # whatever a client of some network raises
                raise DataError(
                    f"cannot download to {self.dir}: {type(error).__name__}: {_line(error)}\n"
                    "Without a network put the files there: docs/training.md has the layouts."
                ) from error

    def setup(self, stage: str | None = None) -> None:
        if "train" not in self.parts:
            samples = self.read(train=True)
            order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(_mixed(self.seed)))
            held_out = max(1, round(len(samples) * self.validation))
            if len(samples) - held_out < 2:
                raise DataError(f"{self.dir}: at least 3 training samples are needed, got {len(samples)}")
            # In the order of the file: memory is read forwards.
            self.parts["val"] = samples.part(order[:held_out].sort().values)
            self.parts["train"] = samples.part(order[held_out:].sort().values, self.shift, self.flip)

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.parts["train"], shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.parts["val"])

    def test_batches(self, time_steps: int) -> DataLoader:
        """The test set, all of it in this process; recordings in this many steps."""
        return self.loader(self.read(train=False), alone=True)

    def loader(self, samples: Samples, shuffle: bool = False, alone: bool = False) -> DataLoader:
        """Batches for this process."""
        rank, processes = 0, 1
        if self.trainer is not None and not alone:
            rank, processes = self.trainer.global_rank, self.trainer.world_size
        if len(samples) < processes:
            raise DataError(f"{self.dir}: fewer samples ({len(samples)}) than processes ({processes})")
        batches = Batches(len(samples), self.batch_size, self.seed, shuffle, rank, processes)
        return DataLoader(samples, sampler=batches, batch_size=None)

    def chosen(self, number: int, train: bool) -> Tensor:
        """Indices of the ``limit`` samples to use, out of so many."""
        if self.limit is None or self.limit >= number:
            return torch.arange(number)
        generator = torch.Generator().manual_seed(_mixed(self.seed, int(train)))
        return torch.randperm(number, generator=generator)[: self.limit].sort().values


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_FILES = {
    "MNIST": ("MNIST/raw", _IDX),
    "FashionMNIST": ("FashionMNIST/raw", _IDX),
    "CIFAR10": (
        "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    ),
}


class ImageData(DataModule):
    """Images with labels, or as their own targets.

    Args:
        dir: see DataModule.
        source: "MNIST", "FashionMNIST" or "CIFAR10" as torchvision stores them under ``dir``; or "folder":
            ``dir``/train/CLASS/* and ``dir``/test/CLASS/* with image files that Pillow reads.
        reconstruct: the target is the image itself (an autoencoder's), not the label.
        size: of "folder": images are scaled to size x size pixels.
        batch_size: see DataModule, also for the arguments that follow.
    """

    def __init__(
        self,
        dir: str,
        source: Literal["MNIST", "FashionMNIST", "CIFAR10", "folder"] = "MNIST",
        reconstruct: bool = False,
        size: int = 32,
        batch_size: int = 64,
        validation: float = 0.1,
        limit: int | None = None,
        shift: int = 0,
        flip: bool = False,
        download: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(dir, batch_size, validation, limit, shift, flip, download, seed)
        self.source, self.reconstruct, self.size = source, reconstruct, size

    def fetch(self) -> None:
        import torchvision

        if self.source == "folder":
            raise ValueError("source 'folder' has no address")
        for train in (True, False):
            getattr(torchvision.datasets, self.source)(self.dir, train, download=True)

    def read(self, train: bool) -> Samples:
        images, labels = self._folder(train) if self.source == "folder" else self._torchvision(train)
        return Samples(images, None if self.reconstruct else labels)

    def _torchvision(self, train: bool) -> tuple[Tensor, Tensor]:
        import torchvision

        folder, files = self.dir / _FILES[self.source][0], _FILES[self.source][1]
        for name in files:
            if not (folder / name).is_file():
                raise DataError(
                    f"no {folder / name}: {self.source} is to be put there, unpacked: {', '.join(files)}.\n"
                    "Where a network exists, --data.download true fetches it."
                )
        try:
            found = getattr(torchvision.datasets, self.source)(self.dir, train)
            images, labels = torch.as_tensor(found.data), torch.as_tensor(found.targets)
        except Exception as error:  # whatever a damaged file leads to
            raise DataError(
                f"the files of {self.source} in {folder} cannot be read: {type(error).__name__}: {_line(error)}\n"
                f"Remove that folder and fetch the data again."
            ) from error
        if not len(images) or len(images) != len(labels):
            raise DataError(
                f"the files of {self.source} in {folder} do not belong together: {len(images)} images, "
                f"{len(labels)} labels.\nRemove that folder and fetch the data again."
            )
        images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
        chosen = self.chosen(len(images), train)
        self.classes = 10
        return images[chosen], labels[chosen].long()

    def _folder(self, train: bool) -> tuple[Tensor, Tensor]:
        import torchvision
        from torchvision.transforms import functional as transforms

        folder = self.dir / ("train" if train else "test")
        try:
            found = torchvision.datasets.ImageFolder(folder)
        except (FileNotFoundError, OSError) as error:
            raise DataError(
                f"no images in class folders under {folder}: {_line(error)}\n"
                f"Put them in {folder}/CLASS/*.png (or .jpg and the like)."
            ) from error
        images, labels = [], []
        for index in self.chosen(len(found), train).tolist():
            path, label = found.samples[index]
            try:
                image = found.loader(path).resize((self.size, self.size))
            except OSError as error:
                raise DataError(
                    f"the image {path} cannot be read: {_line(error)}\nReplace it, or remove it to do without it."
                ) from error
            images.append(transforms.pil_to_tensor(image))
            labels.append(label)
        self.classes = len(found.classes)
        return torch.stack(images), torch.tensor(labels)


# ---------------------------------------------------------------------------------------------------------------------
# Recordings of event cameras
# ---------------------------------------------------------------------------------------------------------------------

Events = tuple[Any, Any, Any, Any]  # t, x, y, p


def _read_nmnist(path: Path) -> Events:
    from tonic.io import read_mnist_file

    if path.stat().st_size % 5:
        raise ValueError(f"{path.stat().st_size} bytes are no whole number of 5-byte events")
    events = read_mnist_file(str(path), dtype=np.dtype([("x", int), ("y", int), ("t", int), ("p", int)]))
    return events["t"], events["x"], events["y"], events["p"]


def _read_cifar10_dvs(path: Path) -> Events:
    from tonic.io import read_aedat4

    events = read_aedat4(str(path))
    t, x, y, p = (events[name] for name in events.dtype.names[:4])  # the last two are called on or polarity
    return t.astype(np.int64), x, y, p


def _read_dvs128_gesture(path: Path) -> Events:
    events = np.load(path)
    if events.ndim != 2 or events.shape[1] != 4:
        raise ValueError(f"must be [E, 4] (x, y, p, t in ms), got {list(events.shape)}")
    with np.errstate(invalid="ignore"):
        whole = events.astype(np.int64) if events.dtype.kind in "iuf" else None
    if whole is None or not (whole == events).all():
        raise ValueError(f"must hold whole numbers (x, y, p, t in ms), got others in {events.dtype}")
    x, y, p, t = whole.T
    return t, x, y, p


class _EventSet:
    """Where the recordings of a data set are, what they look like and how one is read."""

    def __init__(
        self, tonic: str, folders: tuple[str, str], pattern: str, size: int, classes: Sequence[str], read: Callable
    ) -> None:
        self.tonic, self.folders, self.pattern = tonic, folders, pattern
        self.size, self.classes, self.read = size, classes, read


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_DIGITS = tuple("0123456789")
_GESTURES = tuple(str(i) for i in range(11))
_EVENT_SETS = {
    # tonic's class; folders of training and test set; a recording; pixels; classes in order.
    "nmnist": _EventSet("NMNIST", ("Train", "Test"), "{label}/*.bin", 34, _DIGITS, _read_nmnist),
    "cifar10_dvs": _EventSet("CIFAR10DVS", (".", "."), "{label}/*.aedat4", 128, _CIFAR10, _read_cifar10_dvs),
    "dvs128_gesture": _EventSet(
        "DVSGesture",
        ("ibmGestureTrain", "ibmGestureTest"),
        "*/{label}.npy",
        128,
        _GESTURES,
        _read_dvs128_gesture,
    ),
}


class EventData(DataModule):
    """Recordings of event cameras, both polarities, binned directly into bit planes.

    Args:
        dir: see DataModule. A folder that holds tonic's, such as NMNIST, or that folder itself.
        source: "nmnist", "cifar10_dvs" or "dvs128_gesture". CIFAR10-DVS comes without a test set: every tenth recording
            of each class, by number, is one here.
        time_steps: T; a recording, from its first event to its last, is cut into as many steps of the same length.
        downsample: blocks of so many rows and columns of the sensor are one pixel.
        batch_size: see DataModule, also for the arguments that follow.
    """

    def __init__(
        self,
        dir: str,
        source: Literal["nmnist", "cifar10_dvs", "dvs128_gesture"] = "nmnist",
        time_steps: int = 8,
        downsample: int = 1,
        batch_size: int = 64,
        validation: float = 0.1,
        limit: int | None = None,
        shift: int = 0,
        flip: bool = False,
        download: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(dir, batch_size, validation, limit, shift, flip, download, seed)
        if downsample < 1:
            raise DataError(f"--data.downsample must be at least 1, got {downsample}")
        self.source, self.time_steps, self.downsample = source, time_steps, downsample
        self.classes = len(_EVENT_SETS[source].classes)

    def fetch(self) -> None:
        import tonic

        kind = getattr(tonic.datasets, _EVENT_SETS[self.source].tonic)
        for options in [{}] if self.source == "cifar10_dvs" else [{"train": True}, {"train": False}]:
            kind(str(self.dir), **options)

    def read(self, train: bool) -> Samples:
        return self._read(train, self.time_steps)

    def test_batches(self, time_steps: int) -> DataLoader:
        return self.loader(self._read(False, time_steps), alone=True)

    def _read(self, train: bool, time_steps: int) -> Samples:
        files = self.files(train)
        files = [files[i] for i in self.chosen(len(files), train).tolist()]
        planes = torch.cat([self._planes(path, time_steps) for path, _ in files], dim=1)
        return Samples(planes, torch.tensor([label for _, label in files]), time_steps)

    def files(self, train: bool) -> list[tuple[Path, int]]:
        """Recordings and their labels."""
        kind = _EVENT_SETS[self.source]
        part = kind.folders[0 if train else 1]
        below = self.dir / kind.tonic
        folder = (below if below.is_dir() else self.dir) / part
        found = []
        for label, name in enumerate(kind.classes):
            paths = sorted(folder.glob(kind.pattern.format(label=name)), key=_natural)
            if self.source == "cifar10_dvs":
                paths = [path for i, path in enumerate(paths) if (i % 10 == 9) != train]
            found += [(path, label) for path in paths]
        if not found:
            raise DataError(
                f"no recordings {folder / kind.pattern.format(label='CLASS')}, CLASS being {kind.classes[0]} to "
                f"{kind.classes[-1]}.\nWhere a network exists, --data.download true fetches {kind.tonic} by tonic."
            )
        return found

    def _planes(self, path: Path, time_steps: int) -> Tensor:
        kind = _EVENT_SETS[self.source]
        try:
            t, x, y, p = kind.read(path)
            if not len(t):
                raise ValueError("it has no events")
            return SpikeTrain.from_events(
                t, x, y, p, time_steps=time_steps, size=kind.size, downsample=self.downsample
            ).bits
        except ImportError as error:
            raise DataError(
                f"{kind.tonic} needs tonic and what it reads with: {_line(error)}\n"
                "Install them with: pip install 'tandem_cuda[examples]'"
            ) from error
        except Exception as error:  # whatever a damaged file leads to
            raise DataError(
                f"the recording {path} cannot be used: {_line(error)}\nReplace it, or remove it to do without it."
            ) from error


def _natural(path: Path) -> list[Any]:
    """Sorts recording_10 behind recording_9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
