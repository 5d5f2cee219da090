"""What a report says about calibration data that are unlike the training data."""

import re
from importlib import import_module

import pytest
import torch
from torch import nn

from exact import generator
from tandem_cuda import convert
from tandem_cuda.convert.inputs import pieces, samples_of


def images(n, seed):
    """Images from -1 to 1."""
    return torch.rand(n, 3, 8, 8, generator=generator(seed)) * 2 - 1


def trained():
    """An ANN whose batch norms hold the statistics of images(64, 0)."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    with torch.no_grad():
        ann.train()(images(64, 0))
    return ann.eval()


def warnings_of(x, ann=None):
    return convert(ann or trained(), 8, calibrate=x).report().warnings


def test_other_images_of_the_same_scale():
    assert warnings_of(images(16, 1)) == ()
    assert warnings_of(list(images(32, 2).split(8))) == ()


@pytest.mark.parametrize("how", [{}, {"percentile": 99.0}, {"per_channel": True}])
def test_a_batch_in_pieces(how, monkeypatch):
    """Networks take a large batch in pieces; what is found is that of the whole, and a percentile is of the whole."""
    ann = trained()
    batches = [images(32, 1), images(9, 2)]
    whole = convert(ann, 8, calibrate=batches, **how)
    calibrate, split = import_module("tandem_cuda.convert.calibrate"), []
    monkeypatch.setattr(calibrate, "_PIECE", 5 * 192 + 1)
    monkeypatch.setattr(calibrate, "pieces", lambda batch, most: split.append(most) or pieces(batch, most))
    parts = convert(ann, 8, calibrate=batches, **how)
    assert set(split) == (set() if "percentile" in how else {5 * 192 + 1})
    for name, level in whole.calibration.levels.items():
        torch.testing.assert_close(torch.as_tensor(parts.levels[name]), torch.as_tensor(level), rtol=1e-5, atol=0)
    for name, correction in whole.calibration.corrections.items():
        torch.testing.assert_close(parts.calibration.corrections[name], correction, rtol=0, atol=1e-4)
    assert parts.report().agreement == whole.report().agreement
    with pytest.warns(UserWarning, match="of 32 samples"):  # the first batch, all its pieces
        convert(ann, 1, calibrate=batches, **how)
    assert [samples_of(x) for x in pieces((images(32, 1),), 5 * 192 + 1)] == [5] * 6 + [2]
    assert [samples_of(x) for x in pieces((images(2, 1),), 1)] == [1, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: (x + 1) * 127.5,
        lambda x: (x + 1) / 2,
        lambda x: (x - 0.485) / 0.229,
        lambda x: x - 1.5,
        lambda x: x + torch.tensor([2.0, 0, -2]).view(3, 1, 1),
    ],
    ids=["0 to 255", "0 to 1", "normalised twice", "shifted", "other means"],
)
def test_another_scale(change):
    (warning,) = warnings_of(change(images(16, 1)))
    assert "unlike the data that the ANN was trained on" in warning
    assert "Are they scaled as for training?" in warning


def test_the_figures():
    """Of all calibration data, in batches of different sizes."""
    ann, x = trained(), 2 * images(24, 1)
    y = ann[0](x).detach().double().movedim(1, 0).flatten(1)
    variance = (y.var(1, correction=0) / ann[1].running_var).median()
    shift = ((y.mean(1) - ann[1].running_mean).square() / ann[1].running_var).median().sqrt()
    (warning,) = warnings_of([x[:16], x[16:]], ann)
    found = re.search(r"their variance is (\S+) times .* mean is (\S+) standard", warning).groups()
    assert found == (f"{variance:.2g}", f"{shift:.2g}")


@pytest.mark.parametrize(("number", "words"), [(1, "one sample"), (7, "7 samples")])
def test_few_samples(number, words):
    (warning,) = warnings_of(images(number, 1))
    assert warning == f"calibrated on {words}: activations for other data may exceed the levels"


def test_equal_samples():
    (warning,) = warnings_of(images(1, 1).repeat(9, 1, 1, 1))
    assert warning.startswith("all 9 samples of calibrate are equal")


def test_plain_images():
    (warning,) = warnings_of(images(16, 1)[..., :1, :1].expand(16, 3, 8, 8))
    assert warning.startswith("the samples of calibrate are plain images")


def test_statistics_that_were_never_trained():
    ann = trained()
    ann[1].reset_running_stats()
    assert warnings_of(100 * images(16, 1), ann) == ()


def test_without_running_statistics():
    ann = trained()
    ann[1] = nn.GroupNorm(2, 8)
    ann[4] = nn.Identity()
    assert warnings_of(100 * images(16, 1), ann) == ()


def test_shown():
    assert "Warning: calibrated on one sample" in str(convert(trained(), 8, calibrate=images(1, 1)).report())
