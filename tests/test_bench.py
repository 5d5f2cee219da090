"""What `make bench` measures: firing patterns like those of trained networks, and the ANN in all its forms."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import tandem_cuda as tc

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of bench, which is no package."""
    monkeypatch.syspath_prepend(BENCH)
    return import_module


def test_trained_spikes(bench):
    counts = bench("sizes").S2.trained_spikes(0.05).sum(0)
    assert counts.unique().tolist() == [0, 2]
    assert float(counts.mean()) / 8 == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize(("gamma", "spikes"), [(1.0, 1.2), (None, 1.9)])
def test_settled_pattern(bench, gamma, spikes):
    """Spikes of the neurons that fire at all, as initialised and in the pattern of trained networks."""
    networks = bench("networks")
    torch.manual_seed(0)
    batches = [torch.rand(4, 1, 28, 28) for _ in range(2)]
    net = networks.settle(networks.mnist_net(tc), batches, gamma=networks.TRAINED if gamma is None else gamma)
    for counts in networks.counts(net, batches[0]):
        assert float(counts.mean()) / networks.T == pytest.approx(0.05, rel=0.1)
        assert float(counts[counts > 0].mean()) == pytest.approx(spikes, rel=0.2)


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
def test_layers_on_a_device(bench, monkeypatch):
    """Of which nothing is needed: without values nothing can be compared, but every call is checked."""
    compare = bench("compare_cuda")
    monkeypatch.setattr(compare, "medians", lambda sides: {name: side() for name, side in sides.items()})
    monkeypatch.setattr(torch, "equal", lambda *sides: True)
    with FakeTensorMode():
        sides = compare.layer("S3", 2, 0.05, compiled=False)
    assert {
        "kernel, dense, torch.float16",
        "kernel, dense, 3 terms",
        "counts, dense, torch.int8",
        "ANN",
    } <= sides.keys()


@pytest.mark.slow
def test_ann_sides(bench):
    """All forms of the ANN compute the same, in float32 and in 8 bits: the functions check it. Compiles."""
    ann = bench("ann")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)).eval()
    x = torch.rand(4, 3, 8, 8)
    assert list(ann.float_sides(net, x)) == ["ANN", "ANN, channels last", "ANN, compiled"]
    sides = ann.int8_sides(net, x)
    assert list(sides) == [*(f"PyTorch int8, {engine}" for engine in ann.engines()), "PyTorch int8, compiled"]
