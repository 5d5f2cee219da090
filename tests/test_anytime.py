"""Anytime inference: who stops when, and what the accuracy curve says of it."""

import math

import pytest
import torch
from torch import nn

from exact import generator, same
from freezable import MODES, input_of, small_network
from tandem_cuda import Decode, Encode, SpikeTrain, TandemConv2d, TandemLinear, freeze, synops

every_mode = pytest.mark.parametrize("mode", MODES)
T = 11


def frozen_network(mode):
    return freeze(small_network(mode, time_steps=T, dtype=torch.float64))


def input_for(mode, batch=40):
    return input_of(mode, T, batch, torch.float64)


def samples(x, chosen):
    """Some of a batch."""
    return SpikeTrain(x.bits[:, chosen], x.time_steps, dtype=x.dtype) if isinstance(x, SpikeTrain) else x[chosen]


def looks(frozen, x, chunk):
    """(time, read-out) at every look of a run that nobody leaves."""
    stream, found = frozen.stream(x), []
    while stream.remaining:
        logits = stream.advance(min(chunk, stream.remaining))
        found.append((stream.done, logits))
    return found


@pytest.mark.parametrize(("chunk", "min_steps"), [(1, 1), (1, 4), (3, 1), (4, 5), (100, 1)])
@pytest.mark.parametrize("exit_confidence", [0.3, 0.6, 0.9, 1])
@every_mode
def test_each_sample_stops_at_its_first_sure_look(mode, exit_confidence, chunk, min_steps):
    frozen, x = frozen_network(mode), input_for(mode)
    got = frozen.predict(x, exit_confidence, chunk=chunk, min_steps=min_steps)
    history = looks(frozen, x, chunk)
    for n in range(len(x)):
        for time, logits in history:
            confidence, found = logits[n].softmax(0).max(0)
            if time == T or (time >= min_steps and confidence >= exit_confidence):
                break
        assert (got.steps[n], got.classes[n]) == (time, found)
        torch.testing.assert_close(got.logits[n], logits[n], rtol=0, atol=1e-12)
        torch.testing.assert_close(got.confidence[n], confidence, rtol=0, atol=1e-12)
    if exit_confidence == 0.6 and chunk == 1:
        assert len(got.steps.unique()) > 2  # they do leave at different times


def test_samples_that_go_on_keep_what_their_spikes_weigh():
    frozen, x = frozen_network("events"), input_for("events").replace(amplitude=3.0)
    got, history = frozen.predict(x, 0.6), looks(frozen, x, 1)
    assert 0 < got.steps.eq(1).sum() < got.steps.gt(1).sum()  # some leave, and some go on
    for n, time in enumerate(got.steps.tolist()):
        torch.testing.assert_close(got.logits[n], history[time - 1][1][n], rtol=0, atol=1e-12)


@every_mode
def test_nobody_leaves_early_where_nothing_is_sure(mode):
    frozen, x = frozen_network(mode), input_for(mode)
    with torch.no_grad():
        want = frozen(x)
    got = frozen.predict(x, min_steps=T)
    same(got.logits, want)
    assert got.steps.eq(T).all()
    assert got.classes.equal(want.argmax(1))


@every_mode
def test_empty_batch(mode):
    got = frozen_network(mode).predict(input_for(mode, 0))
    assert [tuple(x.shape) for x in got] == [(0,), (0,), (0,), (0, 5)]


@pytest.mark.parametrize(("chunk", "min_steps"), [(1, 1), (3, 4)])
@every_mode
def test_the_curve_is_what_predict_does(mode, chunk, min_steps):
    frozen, x = frozen_network(mode), input_for(mode)
    labels = torch.randint(0, 5, (len(x),), generator=generator(3))
    confidences = (0.3, 0.9, 1.0)
    batches = [(samples(x, slice(0, 25)), labels[:25]), (samples(x, slice(25, None)), labels[25:])]
    curve = frozen.accuracy_curve(iter(batches), confidences, chunk=chunk, min_steps=min_steps)
    assert curve.samples == len(x)
    assert [p.exit_confidence for p in curve.over_confidence] == list(confidences)
    for point in curve.over_confidence:
        got = frozen.predict(x, point.exit_confidence, chunk=chunk, min_steps=min_steps)
        assert point.steps == pytest.approx(got.steps.double().mean().item())
        assert point.accuracy == pytest.approx((got.classes == labels).double().mean().item())
    history = looks(frozen, x, chunk)
    assert [p.steps for p in curve.over_time] == [time for time, _ in history]
    for point, (_, logits) in zip(curve.over_time, history, strict=True):
        assert point.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert all(a.synops < b.synops for a, b in zip(curve.over_time, curve.over_time[1:], strict=False))
    steps = {p.steps: p.synops for p in curve.over_time}
    assert all(steps[chunk * math.ceil(min_steps / chunk)] <= p.synops <= steps[T] for p in curve.over_confidence)


@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1}, {"padding": "same", "groups": 2}], ids=str)
def test_synops_of_the_curve(geometry):
    """After all steps those of `synops`; at the read-out, every spike counts."""
    torch.manual_seed(0)
    net = nn.Sequential(
        Encode(7),
        TandemConv2d(1, 4, 3, norm="batch"),
        TandemConv2d(4, 6, (3, 2), norm="batch", **geometry),
        nn.Flatten(),
        TandemLinear(math.prod(TandemConv2d(4, 6, (3, 2), **geometry).synapses.dense_product(
            torch.zeros(1, 4, 8, 7), torch.zeros(6, 4 // geometry.get("groups", 1), 3, 2), None).shape), 9),
        Decode(),
        nn.Linear(9, 3),
    )  # fmt: skip
    for module in net:
        if getattr(module, "norm", None) is not None:
            nn.init.constant_(module.norm.bias, 3.0)
    nn.init.uniform_(net[4].weight, 0, 0.1)
    x = torch.rand(5, 1, 10, 9, generator=generator(0))
    net.eval()
    *layers, _ = synops(net, x)
    with torch.no_grad():
        readout = net[:-1](x).sum().item() * 3 / 5
    assert readout > 0
    curve = freeze(net).accuracy_curve([(x, torch.zeros(5, dtype=torch.int64))])
    assert curve.over_time[-1].synops == pytest.approx(sum(layer.synops for layer in layers) + readout)


def test_readouts_of_the_curve():
    """Counts that are flattened on their way to two read-outs; what else multiplies is named."""
    torch.manual_seed(0)
    net = nn.Sequential(Encode(4), TandemConv2d(1, 2, 3), Decode(), nn.Flatten(), nn.Linear(2 * 20, 6), nn.Linear(6, 3))
    nn.init.uniform_(net[1].weight, 0, 0.3)
    x, labels = torch.rand(5, 1, 7, 6), torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        spikes = net[:3](x).sum().item()
    assert spikes > 0
    whole = freeze(net).accuracy_curve([(x, labels)])
    assert whole.not_counted == ("5 (Linear)",)
    assert whole.over_time[-1].synops == pytest.approx(spikes * 6 / 5)
    assert freeze(net[:5]).accuracy_curve([(x, labels)]).not_counted == ()


def test_bad_arguments():
    frozen, x = frozen_network("constant"), input_for("constant")
    labels = torch.zeros(40, dtype=torch.int64)
    curve = frozen.accuracy_curve
    for call, error, message in (
        (lambda: frozen.predict(x, 0), ValueError, r"predict: exit_confidence must be in \(0, 1\], got 0"),
        (lambda: frozen.predict(x, 1.01), ValueError, r"exit_confidence must be in \(0, 1\], got 1.01"),
        (lambda: frozen.predict(x, -0.5), ValueError, r"exit_confidence must be in \(0, 1\], got -0.5"),
        (lambda: frozen.predict(x, math.nan), ValueError, r"exit_confidence must be in \(0, 1\], got nan"),
        (lambda: frozen.predict(x, "0.9"), TypeError, "exit_confidence must be a number, got str"),
        (lambda: frozen.predict(x, chunk=0), ValueError, "predict: chunk must be at least 1, got 0"),
        (lambda: frozen.predict(x, chunk=1.0), TypeError, "predict: chunk must be an int, got float"),
        (lambda: frozen.predict(x, min_steps=0), ValueError, "predict: min_steps must be at least 1, got 0"),
        (lambda: frozen.predict(x, min_steps=True), TypeError, "predict: min_steps must be an int, got bool"),
        (lambda: frozen.predict(input_for("events")), TypeError, "input must be a Tensor, got SpikeTrain"),
        (lambda: curve([(x, labels)], [0.5, 2]), ValueError, r"accuracy_curve: exit_confidence must be in \(0, 1\]"),
        (lambda: curve([]), ValueError, "accuracy_curve: batches must hold at least one sample, got none"),
        (
            lambda: curve((x, labels)),
            TypeError,
            "accuracy_curve: batches must yield pairs of inputs and labels, got Te",
        ),
        (lambda: curve([x]), TypeError, "accuracy_curve: batches must yield pairs of inputs and labels, got Tensor 0"),
        (lambda: curve([(x, labels[1:])]), ValueError, r"labels must be \[40\] for 40 samples, got \[39\]"),
        (lambda: curve([(x, labels[:, None])]), ValueError, r"labels must be \[40\] for 40 samples, got \[40, 1\]"),
        (lambda: curve([(x, [0] * 40)]), TypeError, "labels must be a Tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            call()
    spiking = freeze(nn.Sequential(Encode(3), TandemLinear(4, 5)))
    with pytest.raises(ValueError, match=r"must end in a read-out \[N, K\] of two or more classes, got SpikeTrain"):
        spiking.predict(torch.rand(2, 4))
    single = freeze(nn.Sequential(Encode(3), TandemLinear(4, 5), Decode(), nn.Linear(5, 1), nn.Sigmoid()))
    with pytest.raises(ValueError, match=r"predict: the network must .* of two or more classes, got \[2, 1\]"):
        single.predict(torch.rand(2, 4))
    with pytest.raises(ValueError, match=r"accuracy_curve: the network must .* of two or more classes, got \[2, 1\]"):
        single.accuracy_curve([(torch.rand(2, 4), torch.zeros(2, dtype=torch.long))])
    events = frozen_network("events")
    trains = [(input_of("events", t, 3, torch.float64), labels[:3]) for t in (4, 5)]
    with pytest.raises(ValueError, match="batches must have the same number of time steps, got 4, 5"):
        events.accuracy_curve(trains)
