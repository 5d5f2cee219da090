"""Engines fire the same spikes, and every change of a layer shows at its next call, whatever frozen layers keep."""

import contextlib
import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from exact import ENGINES, generator, replace_operator, same, train
from layer_cases import named
from layers import events, exact_layer
from tandem_cuda import SpikeTrain, TandemConv2d, TandemLinear, ops
from tandem_cuda import reference as ref

LAYERS = {case.kind: (case.make, *case.samples) for case in (named("linear"), named("grouped"))}
every_kind = pytest.mark.parametrize(("make", "sample"), LAYERS.values(), ids=LAYERS)
every_norm = pytest.mark.parametrize("norm", [None, "batch"])


@every_kind
@every_norm
@pytest.mark.parametrize("training", [True, False])
def test_engines_fire_the_same_spikes(make, sample, norm, training):
    x, _ = events(3, *sample, time_steps=8)
    want = None
    for engine in ENGINES:
        layer = exact_layer(make(norm=norm, engine=engine), 8).train(training)
        if norm:
            # In training too, the spiking twin folds what is dyadic.
            layer.norm.momentum, layer.norm.eps = 0.0, 0.25
            layer.norm.running_var.fill_(3.75)
        got = [layer(x).bits]
        with torch.no_grad():
            got += [layer(x).bits, layer(x).bits]
        want = got[0] if want is None else want
        for bits in got:
            same(bits, want, engine)
    assert 0 < ref.spike_count(want).mean() < 8


def test_engine_shows():
    assert "engine='dense'" in repr(TandemLinear(4, 6, engine="dense"))
    assert "engine" not in repr(TandemLinear(4, 6))


def warm(make, sample, norm):
    """A frozen layer of random state that has run, its input and its spikes."""
    torch.manual_seed(0)
    layer = randomised(make(norm=norm, engine="event").eval())
    x, _ = events(8, *sample)
    with torch.no_grad():
        bits = layer(x).bits
        same(layer(x).bits, bits)
    return layer, x, bits


def randomised(layer):
    """Enough current to fire now and then; statistics of any kind."""
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(-1, 2)
        if layer.norm is not None:
            layer.norm.running_mean.uniform_(-1, 1)
            layer.norm.running_var.uniform_(1, 2)
    return layer


def same_as_fresh(layer, make, x):
    """Assert that a layer fires what a new one of the same state fires; return that."""
    named = {"bias": layer.bias is not None, "dtype": layer.weight.dtype, "engine": "event"}
    fresh = make(norm=layer.norm and "batch", **named).eval()
    fresh.load_state_dict(layer.state_dict())
    if layer.norm is not None:
        fresh.norm.eps = layer.norm.eps
    with torch.no_grad():
        want = fresh(x).bits
        same(layer(x).bits, want)
        same(layer(x).bits, want)
    return want


def optimizer_step(layer, x):
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def train_norm(layer, x):
    layer.norm.train()
    layer(x)
    layer.norm.eval()


def assign(value, name="weight"):
    def change(layer, x):
        with torch.no_grad():
            setattr(layer, name, value(layer))

    return change


def in_place(operation, *arguments, name="weight", guard=torch.no_grad):
    def change(layer, x):
        with guard():
            getattr(layer.get_parameter(name), operation)(*arguments)

    return change


def behind_autograd(layer, x):
    layer.weight.data.neg_()
    layer.eval()


def data_again(layer, x):
    """Until a new tensor comes to lie where the parameter's data was at first, should that be free."""
    first = layer.weight.data_ptr()
    for _ in range(20):
        layer.weight.data = layer.weight.data - 0.125
        if layer.weight.data_ptr() == first:
            break


def through_vector(layer, x):
    vector = nn.utils.parameters_to_vector(layer.parameters())
    nn.utils.vector_to_parameters(-vector, layer.parameters())


def swapped_to_double(layer, x):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def statistic(name, value):
    def change(layer, x):
        layer.norm.get_buffer(name).fill_(value)

    return change


def set_eps(layer, x):
    layer.norm.eps = 9.0


def new_norm(layer, x):
    norm = copy.deepcopy(layer.norm)
    nn.init.constant_(norm.weight, -2.0)
    layer.norm = norm


# Changes after which a layer fires other spikes ...
CHANGES = {
    "optimizer": optimizer_step,
    "load_state_dict": lambda layer, x: layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}),
    "in place": in_place("neg_"),
    "in place, inference mode": in_place("neg_", guard=torch.inference_mode),
    "in place, bias": in_place("neg_", name="bias"),
    "part of it": lambda layer, x: nn.init.constant_(layer.weight[:3], -1.0),
    "another parameter": assign(lambda layer: nn.Parameter(-layer.weight)),
    "no bias": assign(lambda layer: None, "bias"),
    "data": lambda layer, x: setattr(layer.weight, "data", -layer.weight.data),
    "data again": data_again,
    "behind autograd, eval()": behind_autograd,
    "vector_to_parameters": through_vector,
}


CHANGES_OF_NORM = {
    "training": train_norm,
    "running_mean": statistic("running_mean", 5.0),
    "running_var": statistic("running_var", 0.01),
    "eps": set_eps,
    "gamma": in_place("neg_", name="norm.weight"),
    "beta": in_place("neg_", name="norm.bias"),
    "another norm": new_norm,
    "reset": lambda layer, x: layer.norm.reset_running_stats(),
}


# ... or, but for rounding, the same.
CONVERSIONS = {
    "double": lambda layer, x: layer.double(),
    "there and back": lambda layer, x: layer.double().float(),
    "bfloat16 and back": lambda layer, x: layer.bfloat16().float(),
    "swapped": swapped_to_double,
}


@every_kind
@pytest.mark.parametrize(
    ("norm", "name"),
    [(norm, name) for norm in (None, "batch") for name in CHANGES] + [("batch", n) for n in CHANGES_OF_NORM],
)
def test_changes_show_at_the_next_call(make, sample, norm, name):
    layer, x, before = warm(make, sample, norm)
    (CHANGES | CHANGES_OF_NORM)[name](layer, x)
    assert not torch.equal(same_as_fresh(layer, make, x), before)


@every_kind
@every_norm
@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_show_at_the_next_call(make, sample, norm, name):
    layer, x, _ = warm(make, sample, norm)
    CONVERSIONS[name](layer, x)
    same_as_fresh(layer, make, x)


@every_kind
@every_norm
def test_functional_call_after_a_call(make, sample, norm):
    layer, x, before = warm(make, sample, norm)
    other = randomised(make(norm=norm, engine="event")).eval()
    state = dict(other.named_parameters()) | dict(other.named_buffers())
    with torch.no_grad():
        for _ in range(2):
            want = other(x).bits
            assert not torch.equal(want, before)
            same(torch.func.functional_call(layer, state, (x,)).bits, want)
            same(layer(x).bits, before)
        if norm:  # in training, and without a word to the layer itself
            layer.norm.train()
            torch.func.functional_call(layer, state, (x,))
            layer.norm.eval()
            same(layer(x).bits, before)


@every_kind
def test_parametrized_weights(make, sample):
    """They are another tensor at every call."""
    layer, x, before = warm(make, sample, None)
    nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        torch.testing.assert_close(layer(x).bits, before)
        layer.parametrizations.weight.original0.neg_()
        got = layer(x).bits
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    same(same_as_fresh(layer, make, x), got)
    assert not torch.equal(got, before)


@every_kind
@every_norm
def test_copies_keep_nothing(make, sample, norm):
    layer, x, before = warm(make, sample, norm)
    cold = pickle.dumps(copy.deepcopy(layer))
    assert len(pickle.dumps(layer)) == len(cold)
    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        with torch.no_grad():
            same(other(x).bits, before)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.neg_()
        same(layer(x).bits, before)
    assert not torch.equal(same_as_fresh(other, make, x), before)


@every_kind
@every_norm
def test_modes_take_turns(make, sample, norm):
    layer, x, before = warm(make, sample, norm)
    layer.requires_grad_(False)
    for guard in (torch.inference_mode, torch.no_grad, contextlib.nullcontext, torch.inference_mode):
        for want in (None, before):
            in_place("neg_", guard=guard)(layer, x)
            with guard():
                got = layer(x).bits.clone()
            assert torch.equal(got, before) == (want is before)
            same(same_as_fresh(layer, make, x), got)
    count = x.count.clone().requires_grad_()
    layer(SpikeTrain(x.bits, 9, count)).count.sum().backward()
    assert count.grad.abs().sum() > 0


@every_kind
@every_norm
def test_time_steps_take_turns(make, sample, norm):
    layer, *_ = warm(make, sample, norm)
    for _ in range(2):
        for time_steps in (9, 4, 3, 9):
            same_as_fresh(layer, make, events(8, *sample, time_steps=time_steps)[0])


def test_threads_take_turns():
    """One layer, several threads, each with another T and so with other weights to keep."""
    layer, *_ = warm(*LAYERS["TandemLinear"], "batch")
    inputs = [events(8, 12, time_steps=time_steps)[0] for time_steps in (1, 4, 8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def run(x):
        with torch.inference_mode():
            return [layer(x).bits.clone() for _ in range(600)]

    try:
        with ThreadPoolExecutor(len(inputs)) as pool:
            results = list(pool.map(run, inputs))
    finally:
        sys.setswitchinterval(interval)
    for x, got in zip(inputs, results, strict=True):
        want = same_as_fresh(layer, LAYERS["TandemLinear"][0], x)
        assert all(torch.equal(bits, want) for bits in got)


def test_layers_run_at_the_same_time():
    """In several threads at once, forward and backward: what a call has to itself is its own."""
    shapes = {
        TandemConv2d(16, 128, 3, padding=1): (16, 9, 8),
        TandemConv2d(3, 40, (3, 2), stride=2): (3, 21, 30),
        TandemConv2d(70, 20, 1): (70, 8, 9),
        TandemConv2d(24, 48, 5, groups=24): (24, 9, 8),
        TandemLinear(300, 200): (300,),
    }
    inputs = {}
    for layer, shape in shapes.items():
        exact_layer(layer, 8)
        inputs[layer] = [SpikeTrain.from_dense(train(8, n, *shape, seed=n, rate=0.05).float()) for n in (1, 3, 8)]

    def run(layer, x):
        out = layer(x)
        return out.bits, *torch.autograd.grad(out.count.square().sum(), layer.parameters())

    calls = [(layer, x) for layer, trains in inputs.items() for x in trains]
    want = [run(*call) for call in calls]

    def run_all(seed):
        order = torch.randperm(len(calls), generator=generator(seed)).tolist()
        return [(i, run(*calls[i])) for _ in range(10) for i in order]

    for threads in (1, 2):
        torch.set_num_threads(threads)
        with ThreadPoolExecutor(4) as pool:
            for results in pool.map(run_all, range(4)):
                for i, got in results:
                    same(got, want[i], f"call {i}")


@pytest.fixture
def packs(monkeypatch):
    """What pack_weight has been called with."""
    pack, calls = ops.pack_weight, []

    def pack_weight(weight, *arguments, **named):
        calls.append(weight)
        return pack(weight, *arguments, **named)

    replace_operator(monkeypatch, "pack_weight", pack_weight)
    return calls


@every_kind
@every_norm
def test_frozen_layers_pack_once(make, sample, norm, packs):
    layer, x, _ = warm(make, sample, norm)
    assert len(packs) == 1
    for guard in (torch.no_grad, torch.inference_mode):
        for time_steps in (4, 9):
            with guard():
                layer(events(8, *sample, time_steps=time_steps)[0])
    assert len(packs) == 1
    for change, more in ((in_place("neg_"), 1), (lambda layer, x: layer.eval(), 0), (lambda layer, x: None, 0)):
        change(layer, x)
        packs.clear()
        with torch.no_grad():
            layer(x)
            layer(x)
        assert len(packs) == more


@every_kind
def test_training_packs_once_a_step(make, sample, packs):
    layer, (x, _) = randomised(make(norm="batch")), events(8, *sample)
    for step in range(1, 4):
        layer(x).count.sum().backward()
        assert len(packs) == step
        optimizer_step(layer, x)


def test_thresholds_get_no_gradient():
    """No operator has one for them: the call refuses what it would leave out."""
    layer, (x, _) = TandemLinear(6, 4), events(8, 6)
    layer.thresholds = torch.full((4,), 0.5, requires_grad=True)
    with pytest.raises(ValueError, match="spiking_linear: scale must not require a gradient"):
        layer(x)
    with torch.no_grad():
        layer(x)


def test_fake_weights_are_checked():
    layer, (x, _) = TandemLinear(6, 4), events(8, 6)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, pytest.raises(ValueError, match="spiking_linear: weight must be"):
        torch.func.functional_call(layer, {"weight": mode.from_tensor(torch.zeros(4, 5))}, (x,))
