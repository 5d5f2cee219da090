"""The data modules of examples/train.py: splits, batches, files on disk and what is wrong with them."""

import importlib.util
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import training_files as files
from tandem_cuda import SpikeTrain

pytest.importorskip("lightning")
pytestmark = pytest.mark.slow  # with the others, since `make test` installs no Lightning

EXAMPLE = Path(__file__).parents[1] / "examples" / "data.py"
spec = importlib.util.spec_from_file_location("training_data", EXAMPLE)
data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(data)


@pytest.fixture
def vision():
    pytest.importorskip("torchvision")


@pytest.fixture
def cameras():
    pytest.importorskip("tonic")


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_epoch():
    def epoch(number, seed=0):
        batches = data.Batches(20, 6, seed, shuffle=True)
        batches.set_epoch(number)
        return [(indices.tolist(), word) for indices, word in batches]

    assert epoch(3) == epoch(3)
    assert epoch(3) != epoch(4)
    assert epoch(3) != epoch(3, seed=1)
    assert [len(indices) for indices, _ in epoch(0)] == [6, 6, 6]
    assert len({word for i in range(3) for _, word in epoch(i)}) == 9


@pytest.mark.parametrize("samples", [9, 128, 129, 130, 131])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_the_samples(samples, processes, shuffle):
    parts = [list(data.Batches(samples, 32, 0, shuffle, rank, processes)) for rank in range(processes)]
    assert len({len(part) for part in parts}) == 1  # or one process would wait for another
    assert all(len(part) == len(data.Batches(samples, 32, 0, shuffle, 0, processes)) for part in parts)
    seen = torch.cat([indices for part in parts for indices, _ in part])
    assert len(seen.unique()) == len(seen)
    if shuffle:
        assert len({len(indices) for part in parts for indices, _ in part}) == 1
    else:
        assert sorted(seen.tolist()) == list(range(samples))
        assert all(0 < len(indices) <= 32 for part in parts for indices, _ in part)


# --- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 2, 5, 7), (3, 6, 2, 5, 7)])
def test_shift(shape):
    """Every sample is the original, moved by a few pixels; all planes and channels by the same."""
    values = torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moved = data.augmented(values, 2, False, torch.Generator().manual_seed(1))
    assert moved.shape == values.shape
    found = set()
    for n in range(6):
        before, after = values[..., n, :, :, :], moved[..., n, :, :, :]
        matches = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                wanted = torch.zeros_like(before)
                rows, columns = (slice(max(0, d), min(0, d) or None) for d in (dy, dx))
                from_rows, from_columns = (slice(max(0, -d), min(0, -d) or None) for d in (dy, dx))
                wanted[..., rows, columns] = before[..., from_rows, from_columns]
                matches += [(dy, dx)] if torch.equal(wanted, after) else []
        assert len(matches) == 1
        found.update(matches)
    assert len(found) > 1


def test_flip():
    values = torch.arange(64 * 3, dtype=torch.uint8).view(64, 1, 1, 3)
    moved = data.augmented(values, 0, True, torch.Generator().manual_seed(0))
    mirrored = (moved == values.flip(-1)).all(-1).flatten()
    assert 0 < mirrored.sum() < 64
    assert torch.equal(moved[~mirrored], values[~mirrored])


def test_augmentation_of_spikes_and_seed():
    bits = torch.randint(0, 256, (2, 4, 2, 6, 6), dtype=torch.uint8)
    samples = data.Samples(bits, torch.arange(4), time_steps=16, shift=2)
    (train, labels), (again, _), (other, _) = (samples[torch.tensor([2, 0]), seed] for seed in (5, 5, 6))
    assert isinstance(train, SpikeTrain)
    assert (train.shape, train.time_steps) == ((2, 2, 6, 6), 16)
    assert labels.tolist() == [2, 0]
    assert torch.equal(train.bits, again.bits)
    assert not torch.equal(train.bits, other.bits)


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["MNIST", "FashionMNIST"])
@pytest.mark.usefixtures("vision")
def test_images(tmp_path, source):
    files.idx_files(tmp_path / source / "raw", train=40, test=20)
    module = data.ImageData(str(tmp_path), source, batch_size=8, validation=0.25)
    module.setup("fit")
    train, val = module.parts["train"], module.parts["val"]
    assert (len(train), len(val)) == (30, 10)
    rows = torch.cat([train.values, val.values]).flatten(1)
    assert len(rows.unique(dim=0)) == 40  # disjoint, and all of the training set
    assert (rows[:, 0] == 0).all()  # nothing of the test set
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (8, 1, 28, 28)
    assert images.dtype == torch.float32
    assert (images.min() >= 0) & (images.max() == 1)
    assert torch.equal(images[range(8), 0, 10, 4 + 2 * labels], torch.ones(8))
    tested = list(module.test_batches(8))
    assert sum(len(labels) for _, labels in tested) == 20
    assert all((images[:, 0, 0, 0] == 1).all() for images, _ in tested)
    again, other = (data.ImageData(str(tmp_path), source, validation=0.25, seed=seed) for seed in (0, 1))
    again.setup()
    other.setup()
    assert torch.equal(again.parts["val"].values, val.values)
    assert not torch.equal(other.parts["val"].values, val.values)


@pytest.mark.usefixtures("vision")
def test_limit_and_reconstruction(tmp_path):
    files.idx_files(tmp_path / "MNIST" / "raw")
    module = data.ImageData(str(tmp_path), reconstruct=True, limit=12, shift=1, batch_size=4)
    module.setup()
    assert len(module.parts["train"]) + len(module.parts["val"]) == 12
    images, target = next(iter(module.train_dataloader()))
    assert torch.equal(images, target)  # behind the augmentation
    assert sum(len(x) for x, _ in module.test_batches(8)) == 12


@pytest.mark.usefixtures("vision")
def test_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog", "emu")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.full((9, 6, 3), 80 * label, np.uint8)
                image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    module = data.ImageData(str(tmp_path), "folder", size=4, batch_size=2)
    module.setup()
    assert module.classes == 3
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (2, 3, 4, 4)
    assert torch.equal(images, (80 * labels / 255).view(-1, 1, 1, 1).expand_as(images))
    (tmp_path / "train" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(data.DataError, match=r"the image .*1\.png cannot be read"):
        data.ImageData(str(tmp_path), "folder").setup()
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(data.DataError, match=r"no images in class folders under .*train"):
        data.ImageData(str(tmp_path), "folder").setup()


@pytest.mark.parametrize("source", ["MNIST", "FashionMNIST", "CIFAR10"])
@pytest.mark.usefixtures("vision")
def test_missing_images(tmp_path, source):
    with pytest.raises(data.DataError, match=rf"no {tmp_path}.*: {source} is to be put there, unpacked"):
        data.ImageData(str(tmp_path), source).setup()


def truncated(folder):
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1000])


def nonsense(folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(b"<html>no such file</html>")


def fewer_labels(folder):
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(b"\0\0\x08\x01\0\0\0\x05" + bytes(5))


@pytest.mark.parametrize("damage", [truncated, nonsense, fewer_labels])
@pytest.mark.usefixtures("vision")
def test_damaged_images(tmp_path, damage):
    folder = tmp_path / "MNIST" / "raw"
    files.idx_files(folder)
    damage(folder)
    with pytest.raises(data.DataError, match=r"the files of MNIST in .* (cannot be read|do not belong together)") as e:
        data.ImageData(str(tmp_path)).setup()
    assert str(e.value).count("\n") == 1


@pytest.mark.usefixtures("vision")
def test_damaged_cifar10(tmp_path):
    """torchvision knows the checksums."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({"data": [], "labels": []}))
    with pytest.raises(data.DataError, match=r"the files of CIFAR10 in .* cannot be read"):
        data.ImageData(str(tmp_path), "CIFAR10").setup()


# --- recordings ------------------------------------------------------------------------------------------------------


def dense(recording, time_steps, size, downsample, ticks=1):
    """Event by event: [T, 2, H, W]."""
    side = -(-size // downsample)
    spikes = torch.zeros(time_steps, 2, side, side)
    times = recording[:, 0] // ticks
    for t, (_, x, y, p) in zip(times, recording, strict=True):
        step = int(t - times.min()) * time_steps // int(times.max() - times.min() + 1)
        spikes[step, p, y // downsample, x // downsample] = 1
    return spikes


@pytest.mark.parametrize(
    ("source", "size", "number", "ticks", "downsample"),
    [("nmnist", 34, 300, 1, 1), ("cifar10_dvs", 128, 600, 1, 2), ("dvs128_gesture", 128, 600, 1000, 4)],
)
@pytest.mark.usefixtures("cameras")
def test_recordings(tmp_path, source, size, number, ticks, downsample):
    if source == "cifar10_dvs":
        pytest.importorskip("aedat")
    getattr(files, source)(tmp_path)
    module = data.EventData(str(tmp_path), source, time_steps=9, downsample=downsample, batch_size=4)
    module.setup()
    classes = 11 if source == "dvs128_gesture" else 10
    assert module.classes == classes
    total = {"nmnist": (40, 20), "cifar10_dvs": (90, 10), "dvs128_gesture": (44, 22)}[source]
    assert len(module.parts["train"]) + len(module.parts["val"]) == total[0]
    everything = module.read(train=True)
    assert torch.equal(everything.targets.bincount(), torch.full((classes,), total[0] // classes))
    known = {
        dense(files.events(seed, label, size, number), 9, size, downsample, ticks).numpy().tobytes(): label
        for label in range(classes)
        for seed in [i * (11 if classes == 11 else 10) + label for i in range(10)]
    }
    trains = SpikeTrain(everything.values, 9).to_dense(torch.float32)
    assert [known[trains[:, n].numpy().tobytes()] for n in range(total[0])] == everything.targets.tolist()
    (train, labels) = next(iter(module.train_dataloader()))
    side = -(-size // downsample)
    assert (train.shape, train.time_steps, len(labels)) == ((4, 2, side, side), 9, 4)
    tested = list(module.test_batches(16))
    assert sum(len(labels) for _, labels in tested) == total[1]
    assert all(train.time_steps == 16 for train, _ in tested)
    assert not {path for path, _ in module.files(train=True)} & {path for path, _ in module.files(train=False)}


@pytest.mark.usefixtures("cameras")
def test_folder_itself_and_limit(tmp_path):
    files.nmnist(tmp_path)
    module = data.EventData(str(tmp_path / "NMNIST"), limit=8)
    module.setup()
    assert len(module.parts["train"]) + len(module.parts["val"]) == 8


def test_every_tenth_recording_is_a_test(tmp_path):
    """By number, not by name: 10 comes behind 9."""
    for i in range(20):
        path = tmp_path / "airplane" / f"cifar10_airplane_{i}.aedat4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = data.EventData(str(tmp_path), "cifar10_dvs").files(train=False)
    assert [path.stem for path, _ in found] == ["cifar10_airplane_9", "cifar10_airplane_19"]


RECORDING = files.events(0, 0, 34)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (files.nmnist_bytes(RECORDING)[:-2], "1498 bytes are no whole number of 5-byte events"),
        (b"", "it has no events"),
        (files.nmnist_bytes(np.add(RECORDING, [0, 30, 0, 0])), r"SpikeTrain.from_events: x must be in \[0, 34\), got"),
    ],
    ids=["truncated", "empty", "coordinates"],
)
@pytest.mark.usefixtures("cameras")
def test_damaged_recordings(tmp_path, content, message):
    files.nmnist(tmp_path, train=1, test=1)
    (tmp_path / "NMNIST" / "Train" / "3" / "00001.bin").write_bytes(content)
    with pytest.raises(data.DataError, match=rf"the recording .*3.00001\.bin cannot be used: {message}"):
        data.EventData(str(tmp_path)).setup()


@pytest.mark.usefixtures("cameras")
def test_damaged_recordings_of_other_formats(tmp_path):
    files.dvs128_gesture(tmp_path, train=1, test=1)
    path = tmp_path / "DVSGesture" / "ibmGestureTrain" / "user01_fluorescent" / "2.npy"
    for content in (np.zeros((5, 3)), None):
        if content is None:
            path.write_bytes(path.read_bytes()[:50])
        else:
            np.save(path, content)
        with pytest.raises(data.DataError, match=r"the recording .*2\.npy cannot be used"):
            data.EventData(str(tmp_path), "dvs128_gesture").setup()
    pytest.importorskip("aedat")
    files.cifar10_dvs(tmp_path, 2)
    path = tmp_path / "CIFAR10DVS" / "bird" / "cifar10_bird_1.aedat4"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(data.DataError, match=r"the recording .*cifar10_bird_1\.aedat4 cannot be used"):
        data.EventData(str(tmp_path), "cifar10_dvs").setup()


@pytest.mark.parametrize(
    "value", [1j, 0.5, float("nan"), float("inf"), 1e300, np.uint64(2**63), "1"], ids=lambda value: str(value)
)
def test_gestures_are_of_whole_numbers(tmp_path, value):
    np.save(tmp_path / "2.npy", np.ones((5, 4)))
    assert [len(column) for column in data._read_dvs128_gesture(tmp_path / "2.npy")] == [5] * 4
    events = np.ones((5, 4), np.asarray(value).dtype)
    events[3, 2] = value
    np.save(tmp_path / "2.npy", events)
    with pytest.raises(ValueError, match=rf"must hold whole numbers .* got others in {events.dtype}"):
        data._read_dvs128_gesture(tmp_path / "2.npy")


@pytest.mark.parametrize("source", ["nmnist", "cifar10_dvs", "dvs128_gesture"])
def test_missing_recordings(tmp_path, source):
    with pytest.raises(data.DataError, match=rf"no recordings {tmp_path}.*CLASS"):
        data.EventData(str(tmp_path), source).setup()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1}, "--data.batch_size must be at least 2"),
        ({"validation": 1.0}, r"--data.validation must be in \(0, 1\), got 1.0"),
        ({"limit": 1}, "--data.limit must be at least 4"),
        ({"shift": -1}, "--data.shift must not be negative"),
        ({"downsample": 0}, "--data.downsample must be at least 1"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(data.DataError, match=message):
        data.EventData(".", **change)
