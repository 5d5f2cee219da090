"""Long calls show a progress bar on a terminal, if tqdm is there, and nothing otherwise."""

import importlib.util
import io
import sys
import time

import pytest
import torch

import tandem_cuda
from tandem_cuda import models
from tandem_cuda._progress import progress
from tandem_cuda.freeze import accuracy_curve


def network():
    example = torch.zeros(1, 1, 8, 8)
    return tandem_cuda.convert(models.small_cifarnet(1, size=8), time_steps=4, example=example).eval()


CALLS = {}
"""Each long call, by the description that it shows."""


def call(function):
    CALLS[function.__doc__] = function
    return function


@call
def calibrate(batches):
    """convert: calibrating"""
    tandem_cuda.convert(models.small_cifarnet(1, size=8), time_steps=4, calibrate=batches)


@call
def count(batches):
    """synops"""
    tandem_cuda.synops(network(), batches)


@call
def evaluate(batches):
    """accuracy_curve"""
    pairs = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in batches]
    accuracy_curve(tandem_cuda.freeze(network()), pairs)


@call
def export(batches):
    """to_nir"""
    pytest.importorskip("nir")
    tandem_cuda.exchange.to_nir(network(), batches[0])


class Stderr(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def bars(monkeypatch):
    """What tqdm was asked for, as (description, file, length)."""
    tqdm, asked = pytest.importorskip("tqdm"), []

    def bar(items, *, desc, file, **named):
        items = list(items)
        asked.append((desc, file, len(items)))
        return items

    monkeypatch.setattr(tqdm, "tqdm", bar)
    return asked


@pytest.mark.parametrize("description", CALLS)
@pytest.mark.parametrize("terminal", [True, False])
def test_long_calls(monkeypatch, bars, description, terminal):
    stderr = Stderr(terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    CALLS[description](list(torch.rand(3, 2, 1, 8, 8)))
    shown = [(text, file) for text, file, _ in bars]
    assert set(shown) == ({(description, stderr)} if terminal else set())  # calibration goes over the data twice
    if terminal and description != "to_nir":  # which goes through layers
        assert bars[0][2] == 3


def test_without_tqdm(monkeypatch, bars):
    monkeypatch.setattr(sys, "stderr", Stderr(True))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    items = iter([1, 2])
    assert progress(items, "test") is items
    assert bars == []


def test_without_stderr(monkeypatch, bars):
    """As under pythonw and some services."""
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress([1, 2], "test")) == [1, 2]
    assert bars == []


def test_bar_of_tqdm(monkeypatch):
    """The bar comes after a second, counts, and is gone at the end; what is iterated stays the same."""
    pytest.importorskip("tqdm")
    stderr = Stderr(True)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert list(progress((i for i in range(3)), "quick")) == [0, 1, 2]
    assert stderr.getvalue().strip() == ""
    seen = []
    for i in progress([5, 6, 7], "convert: calibrating"):
        seen.append(i)
        time.sleep(0.6)
    assert seen == [5, 6, 7]
    assert "convert: calibrating" in stderr.getvalue()
    assert "2/3" in stderr.getvalue()
    *_, last = stderr.getvalue().split("\r")[:-1]
    assert last.strip() == ""


def test_errors_pass_through(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stderr(True))

    def broken():
        yield torch.rand(2, 1, 8, 8)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        tandem_cuda.synops(network(), broken())
