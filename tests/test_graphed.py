"""Training steps as CUDA graphs (examples/graphed.py): the losses of steps that are not captured.

Where there is no device, a stand-in calls what it should replay, and refuses what a graph could not capture.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

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


def steps(kind, device, optimizer_of, **named):
    """Yield the loss of each of a few steps with dropout and a schedule, and the tensors that the step changes."""
    torch.manual_seed(0)
    net = Layers(*KINDS[kind]).to(device)
    optimizer = optimizer_of(net.parameters(), lr=1e-2, weight_decay=0.01)
    for group in optimizer.param_groups:
        group["eps"] = 1e-3  # so that a gradient which is a rounding error moves nothing by a whole learning rate
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    read = [x.to(device, copy=True) for x in batches()[0]]

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(read[0]), read[1])
        loss.backward()
        return loss.detach()

    for i, batch in enumerate(batches()):
        torch.manual_seed(i)
        assert graphed.copied(read, [x.to(device) for x in batch])
        loss = optimizer.step(closure, **named).clone()
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
    replayed = steps(kind, device, graphed.GraphedAdamW)
    check_steps(replayed, steps(kind, device, graphed.GraphedAdamW, captured=False), device, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_schedule_of_a_graph_is_that_of_other_optimizers(kind, device):
    others = steps(kind, device, torch.optim.AdamW)
    check_steps(steps(kind, device, graphed.GraphedAdamW), others, device, rtol=1e-4, atol=1e-5)


def test_inputs_are_those_of_the_batch(device):
    """A replayed step reads the memory that the capture read."""
    weight = nn.Parameter(torch.zeros(3, device=device))
    optimizer = graphed.GraphedAdamW([weight], 0.1, 0.0)
    read = [torch.zeros(3, device=device)]

    def closure():
        optimizer.zero_grad()
        ((weight + 1) * read[0]).sum().backward()
        return read[0] * 2

    for i in range(7):
        assert graphed.copied(read, [torch.full((3,), float(i), device=device)])
        assert optimizer.step(closure).tolist() == [2.0 * i] * 3
        assert weight.grad.tolist() == [float(i)] * 3
    assert not graphed.copied(read, [torch.zeros(2, device=device)])
    assert not graphed.copied(read, [torch.zeros(3, device=device, dtype=torch.float64)])
    assert read[0].tolist() == [6.0] * 3


def test_state_that_is_loaded(device, monkeypatch):
    """A graph of other tensors is dropped, and learning rates are on the device, each of its own."""
    captures, capture = [], graphed.capture
    monkeypatch.setattr(graphed, "capture", lambda f: captures.append(f) or capture(f))
    weights = [nn.Parameter(torch.ones(3, device=device)) for _ in range(2)]
    optimizer = graphed.GraphedAdamW([{"params": [w]} for w in weights], 0.1, 0.0)

    def closure():
        optimizer.zero_grad()
        sum(weights).square().sum().backward()

    for _ in range(6):
        optimizer.step(closure)
    assert weights[0].tolist() == weights[1].tolist()
    state = optimizer.state_dict()
    for group, lr in zip(state["param_groups"], (0.0, 0.5), strict=True):
        group["lr"] = torch.tensor(lr)
    optimizer.load_state_dict(state)
    assert [group["lr"].device.type for group in optimizer.param_groups] == [device] * 2
    before = [w.detach().clone() for w in weights]
    for _ in range(6):
        optimizer.step(closure)
    assert weights[0].tolist() == before[0].tolist()
    assert weights[1].tolist() != before[1].tolist()
    assert len(captures) == 2


def test_a_step_that_waits_is_not_captured(device):
    if device != "cpu":
        pytest.skip("a capture that fails may leave a device in any state")
    weight = nn.Parameter(torch.ones(3, device=device))
    optimizer = graphed.GraphedAdamW([weight], 0.1, 0.0)

    def closure():
        optimizer.zero_grad()
        loss = weight.sum()
        loss.backward()
        return float(loss.detach())

    for _ in range(graphed.WARM_UP):
        optimizer.step(closure)
    with pytest.raises(Refused):
        optimizer.step(closure)
