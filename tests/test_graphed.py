"""Gradients by CUDA graphs (examples/graphed.py): the losses of steps that are not captured.

Where there is no device, a stand-in calls what it should replay, and refuses what a graph could not capture.
"""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tandem_cuda as tc
from exact import generator
from tandem_cuda.ops import checks
from test_synchronisation import KINDS, Layers
from waiting import Refused, captured_on_the_host

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import graphed

STEPS = 8


@pytest.fixture(autouse=True)
def stand_in(request, monkeypatch):
    monkeypatch.setattr(checks, "check_finite", lambda *named: None)  # on the CPU alone it reads values
    if request.getfixturevalue("device") == "cpu":
        monkeypatch.setattr(graphed, "on_a_stream_of_its_own", lambda f: f())
        monkeypatch.setattr(graphed, "capture", captured_on_the_host)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def batches():
    x = torch.rand(STEPS, 4, 3, 10, 10, generator=generator(1))
    return [(image, (torch.arange(4) + i) % 20) for i, image in enumerate(x)]


def steps(kind, device, graph):
    """Yield the loss of each of a few steps with dropout and a schedule, and the tensors that the step changes."""
    torch.manual_seed(0)
    net = Layers(*KINDS[kind]).to(device)
    # With eps, so that a gradient which is a rounding error moves nothing by a whole learning rate.
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.01, eps=1e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, STEPS)  # whose momentum changes, too
    gradients = graphed.GraphedGradients(net.parameters())
    read = [x.to(device, copy=True) for x in batches()[0]]

    def closure():
        loss = nn.functional.cross_entropy(net(read[0]), read[1])
        loss.backward()
        return loss.detach()

    for i, batch in enumerate(batches()):
        torch.manual_seed(i)
        assert graphed.copied(read, [x.to(device) for x in batch])
        loss = gradients(closure, captured=graph).clone()
        optimizer.step()
        scheduler.step()
        moments = [optimizer.state[p][key] for p in net.parameters() for key in ("exp_avg", "exp_avg_sq")]
        yield loss, [*(p.detach() for p in net.parameters()), *net.buffers(), *moments]


def check_steps(some, others, device, **tolerance):
    """Assert that each step does what the step of the others does that begins where it does.

    A device adds up gradients in any order. A difference in the last bit would soon decide which neurons fire if each
    network went on by itself.
    """
    if device != "cpu":
        tolerance = {"rtol": 1e-2, "atol": 1e-3}
    losses = set()
    for (loss, got), (other_loss, want) in zip(some, others, strict=True):
        torch.testing.assert_close([loss, *got], [other_loss, *want], **tolerance)
        for x, y in zip(got, want, strict=True):
            x.copy_(y)
        losses.add(loss.item())
    assert len(losses) == STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_replayed_steps(kind, device):
    check_steps(steps(kind, device, True), steps(kind, device, False), device, rtol=0, atol=0)


def test_inputs_are_those_of_the_batch(device):
    """A replayed call reads the memory that the capture read, and its gradients come back after a call of its own."""
    weight, unused = (nn.Parameter(torch.zeros(3, device=device)) for _ in range(2))
    gradients = graphed.GraphedGradients([weight, unused])
    read = [torch.zeros(3, device=device)]

    other = torch.full((3,), 50.0, device=device)

    def closure(x=read[0]):
        ((weight + 1) * x).sum().backward()
        return x * 2

    for i in range(9):
        assert graphed.copied(read, [torch.full((3,), float(i), device=device)])
        assert gradients(closure).tolist() == [2.0 * i] * 3
        assert weight.grad.tolist() == [float(i)] * 3
        assert unused.grad is None
        if i == 6:
            gradients(lambda: closure(other), captured=False)
            assert weight.grad.tolist() == [50.0] * 3
    assert not graphed.copied(read, [torch.zeros(2, device=device)])
    assert not graphed.copied(read, [torch.zeros(3, device=device, dtype=torch.float64)])
    assert read[0].tolist() == [8.0] * 3


def test_momentum_of_batch_norm_is_read_in_each_replay(device):
    """A float64 tensor, which a schedule fills."""
    layer = tc.TandemLinear(6, 4, norm="batch", neuron=tc.IF(two_phase=True)).to(device)
    other = copy.deepcopy(layer)
    momentum = torch.zeros((), dtype=torch.float64, device=device)
    layer.norm.momentum = momentum
    gradients = graphed.GraphedGradients(layer.parameters())
    read = [torch.zeros(5, 6, device=device)]
    encode = tc.Encode(4)

    def closure():
        layer(encode(read[0])).count.square().sum().backward()

    for i in range(STEPS):
        x = torch.rand(5, 6, generator=generator(i)).to(device)
        assert graphed.copied(read, [x])
        momentum.fill_(i / STEPS)
        other.norm.momentum = i / STEPS
        gradients(closure)
        other(encode(x))
        for name, value in layer.norm.named_buffers():
            torch.testing.assert_close(value, dict(other.norm.named_buffers())[name], rtol=0, atol=0)


def test_a_step_that_waits_is_not_captured(device):
    if device != "cpu":
        pytest.skip("a capture that fails may leave a device in any state")
    weight = nn.Parameter(torch.ones(3, device=device))
    gradients = graphed.GraphedGradients([weight])

    def closure():
        loss = weight.sum()
        loss.backward()
        return float(loss.detach())

    for _ in range(graphed.WARM_UP):
        gradients(closure)
    with pytest.raises(Refused):
        gradients(closure)
