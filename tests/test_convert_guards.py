"""A network never computes something else than its ANN in silence: it follows changes, or raises an error."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from anns import Net
from exact import generator, same
from tandem_cuda import convert, freeze, quantise

IMAGES = torch.rand(8, 1, 14, 14, generator=generator(0))
ROWS = torch.rand(8, 6, generator=generator(1))


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
        *(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)),
    ).eval()


class Held(nn.Module):
    """Settings and tensors in places where they are easily overlooked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.relu = nn.Linear(6, 5), nn.Linear(5, 3), nn.ReLU()
        self.shift, self.config, self._scale = [0.0, 1.0], {"offset": 0.5}, 2.0
        self.doubles, self.activation, self.epoch = False, F.relu, 0
        self.tensor = torch.tensor(0.5)
        self.register_buffer("mean", torch.tensor(0.25), persistent=False)
        self.register_buffer("gain", torch.tensor([0.5, 1.0, 2.0, 1.0, 0.5]))

    def forward(self, x):
        x = (x - self.mean) * self._scale + self.shift[0] + self.tensor + self.config["offset"]
        x = self.activation(self.first(x)) * self.gain
        return self.last(2 * x if self.doubles else x)


def set_to(name, value):
    def change(ann):
        path, _, key = name.rpartition(".")
        setattr(ann.get_submodule(path), key, value)

    return change


def wrapped(layer, name):
    """Override a method on the instance, as wrappers for adapters and devices do."""
    f = getattr(layer, name)
    setattr(layer, name, lambda *x: 3 * f(*x))


def uses(snn, x):
    return {"forward": lambda: snn(x), "train": snn.train, "eval": snn.eval, "state": snn.state_dict}


# -- what the twins share


def loaded_by_assignment(ann):
    ann.load_state_dict({name: x.clone() for name, x in ann.state_dict().items()}, assign=True)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (loaded_by_assignment, "0.weight"),
        (lambda ann: prune.random_unstructured(ann[3], "weight", 0.5), "3.weight"),
        (lambda ann: parametrizations.weight_norm(ann[0]), "0.weight|0"),
        (set_to("3.weight", nn.Parameter(torch.ones(4, 4, 3, 3))), "3.weight"),
        (set_to("9", nn.Linear(36, 3)), "9"),
        (lambda ann: setattr(ann[3], "bias", None), "3.bias"),
        (set_to("4", nn.BatchNorm2d(4)), "4"),
    ],
    ids=["load with assign", "pruning", "parametrization", "assignment", "a module", "no bias", "batch norm"],
)
def test_twins_that_no_longer_share(change, name):
    ann = cnn()
    snn = convert(ann, 8, calibrate=IMAGES)
    other = pickle.loads(pickle.dumps(snn))
    for network in (snn, copy.deepcopy(snn), other):
        network(IMAGES)
        change(network.ann())
        for use in (*uses(network, IMAGES).values(), lambda network=network: freeze(network)):
            with pytest.raises(RuntimeError, match=rf"must .*({name}).* (was|were) replaced|must .*({name}).* changed"):
                use()


def test_what_is_replaced_in_the_spiking_twin():
    snn = convert(cnn(), 8, example=IMAGES)
    prune.random_unstructured(snn.snn.get_submodule("3"), "weight", 0.5)
    with pytest.raises(RuntimeError, match=r"must keep what it shares with its ANN, but 3.weight was replaced"):
        snn(IMAGES)


def test_tied_weights_that_are_untied():
    ann = Net(lambda n, x: n.c(F.relu(n.b(F.relu(n.a(x))))), a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 3))
    ann.b.weight = ann.a.weight
    snn = convert(ann.eval(), 8, example=ROWS)
    snn(ROWS)
    ann.b.weight = nn.Parameter(ann.a.weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"b.weight"):
        snn(ROWS)


@pytest.mark.parametrize(
    "change",
    [
        lambda ann, snn: quantise(ann, 2),
        lambda ann, snn: quantise(snn.snn, 3),
        lambda ann, snn: quantise(ann[0], 2),
        lambda ann, snn: convert(ann, 8, weights="int16", example=IMAGES),
    ],
    ids=["the ANN", "the spiking twin", "a layer", "another conversion"],
)
def test_twins_round_to_the_same_bits(change):
    ann = cnn()
    snn = convert(ann, 8, weights="int8", example=IMAGES)
    snn(IMAGES)
    change(ann, snn)
    for use in (*uses(snn, IMAGES).values(), lambda: freeze(snn)):
        with pytest.raises(RuntimeError, match="must round its weights as its spiking twin does"):
            use()
    quantise(snn, 4)  # the advice
    snn(IMAGES)


def test_quantised_weights_of_two_conversions():
    """Their scales contain the thresholds of channels."""
    ann, x = cnn(), IMAGES
    how = {"weights": "int8", "per_channel": True}
    one = convert(ann, 4, calibrate=x, **how)
    want = one(x)
    other = convert(ann, 4, calibrate=one.calibration, example=x)
    same(one(x), other(x))
    third = convert(ann, 4, calibrate=3 * x, **how)
    third(x)
    with pytest.raises(RuntimeError, match="another conversion of it has other thresholds"):
        one(x)
    same(convert(ann, 4, calibrate=one.calibration, example=x)(x), want)  # the advice


# -- what forward computes


@pytest.mark.parametrize(
    ("make", "change", "name"),
    [
        (cnn, set_to("1", nn.Hardtanh(-1, 0.1)), "1"),
        (cnn, set_to("2", nn.AvgPool2d(2)), "2"),
        (cnn, set_to("3.stride", (2, 2)), "3.stride"),
        (cnn, set_to("3.padding", (0, 0)), "3.padding"),
        (cnn, set_to("6.divisor_override", 1), "6.divisor_override"),
        (cnn, set_to("6.stride", 1), "6.stride"),  # its linear layer no longer fits
        (cnn, set_to("8.p", 0.1), "8.p"),
        (cnn, lambda ann: ann.insert(10, nn.ReLU6()), "10"),
        (cnn, lambda ann: wrapped(ann[3], "forward"), "3.forward"),
        (cnn, lambda ann: wrapped(ann[3], "_conv_forward"), "3._conv_forward"),
        (cnn, lambda ann: wrapped(ann[1], "forward"), "1.forward"),
        (cnn, lambda ann: wrapped(ann[4], "forward"), "4.forward"),
        (cnn, lambda ann: wrapped(ann, "forward"), "forward"),
        (Held, set_to("doubles", True), "doubles"),
        (Held, set_to("activation", torch.tanh), "activation"),
        (Held, lambda ann: ann.shift.__setitem__(0, 5.0), "shift"),
        (Held, lambda ann: ann.config.update(offset=2.0), "config"),
        (Held, set_to("_scale", 3.0), "_scale"),
        (Held, set_to("tensor", torch.tensor(2.0)), "tensor"),
        (Held, lambda ann: ann.gain.mul_(2), "gain"),
        (Held, set_to("gain", torch.ones(5)), "gain"),
    ],
)
def test_changes_of_the_ann_are_noticed(make, change, name):
    ann, x = make(), ROWS if make is Held else IMAGES
    snn = convert(ann, 8, calibrate=x)
    other = pickle.loads(pickle.dumps(snn))
    change(ann)
    for use in uses(snn, x).values():
        with pytest.raises(
            RuntimeError, match=rf"(must compute what it did when it was converted, but|keep .*but) {name} "
        ):
            use()
    other(x)
    change(other.ann())
    with pytest.raises(RuntimeError, match="must"):
        other(x)


def test_changes_without_effect_are_no_alarm():
    ann, seen = Held(), []
    snn = convert(ann, 8, example=ROWS)
    for epoch in range(2):
        ann.epoch = epoch
        snn(ROWS)
    ann.relu = nn.Tanh()  # forward never calls it
    ann.new, ann.bank, ann.first.label = [1, 2], torch.zeros(3), "first"
    ann.first.register_forward_hook(lambda module, inputs, out: seen.append(out))
    ann.doubles = True
    with pytest.raises(RuntimeError, match="doubles"):
        snn(ROWS)
    ann.doubles = False
    snn(ROWS)
    ann = cnn()
    snn = convert(ann, 8, example=IMAGES)
    ann[1], ann[2] = nn.ReLU(inplace=True), nn.MaxPool2d(2)  # equal modules
    ann[4].momentum = 0.5  # both twins have this batch norm
    snn(IMAGES)


def test_methods_that_instances_override():
    """Before the conversion they are part of forward."""
    ann = cnn()
    wrapped(ann[3], "_conv_forward")
    wrapped(ann[5], "forward")
    wrapped(ann[9], "forward")
    snn = convert(ann, 8, calibrate=IMAGES)
    with torch.no_grad():
        assert (snn(IMAGES) - ann(IMAGES)).norm() < 0.03 * ann(IMAGES).norm()


@pytest.mark.parametrize("change", [lambda m: m.mean.add_(0.25), lambda m: setattr(m, "mean", torch.tensor(0.5))])
def test_buffers_that_the_graph_reads_are_followed(change):
    ann = Held()
    snn = convert(ann, 8, calibrate=ROWS)
    change(ann)
    same(snn(ROWS), convert(ann, 8, calibrate=snn.calibration, example=ROWS)(ROWS))


# -- functions with a backward of their own


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


@pytest.mark.parametrize("behind", [True, False])
def test_backwards_of_their_own(behind):
    """The graph does not have them."""

    def run(n, x):
        h = F.relu(n.first(x))
        return Reverse.apply(n.last(h)) if behind else n.last(Reverse.apply(h))

    torch.manual_seed(0)
    ann = Net(run, first=nn.Linear(6, 8), last=nn.Linear(8, 3)).eval()
    with pytest.raises(ValueError, match=r"it calls torch.autograd.Function Reverse"):
        convert(ann, 8, calibrate=ROWS)


# -- dtypes, devices and copies


class Dense(nn.Module):
    """Concatenation, batch norm without a weight layer, a constant factor, averages and a sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(7)
        self.c, self.pool, self.last = nn.Conv2d(7, 7, 1), nn.AvgPool2d(2), nn.Linear(7 * 49, 3)

    def forward(self, x):
        a = F.relu(self.a(x))
        h = torch.cat([a, F.relu(self.b(a))], 1)
        h = F.relu(self.norm(h))
        h = F.relu(self.c(h) + 0.1 * h)
        return self.last(self.pool(h).flatten(1))


@pytest.mark.parametrize(
    "how", [{"per_channel": True}, {}, {"learn_thresholds": True}], ids=["channels", "layers", "learned"]
)
def test_what_the_spiking_twin_alone_holds_follows_the_ann(how):
    one, other, x = Dense().eval(), Dense().eval(), IMAGES
    by_ann, by_snn = convert(one, 8, calibrate=x, **how), convert(other, 8, calibrate=x, **how)
    for move in (nn.Module.double, nn.Module.float, nn.Module.double):
        move(one)
        move(by_snn)
        x = x.to(next(one.parameters()).dtype)
        found = by_ann(x)
        assert found.dtype == x.dtype
        same(found, by_snn(x))
    learn = how.get("learn_thresholds", False)
    fresh = convert(one, 8, calibrate=by_ann.calibration, example=x, learn_thresholds=learn)
    same(fresh(x), found)  # as if converted in this precision


@pytest.mark.parametrize("inference", ["convert", "set_time_steps", "moved"])
def test_what_is_made_in_inference_mode_can_be_trained(inference):
    ann, x = Dense().eval(), IMAGES
    with torch.inference_mode(inference == "convert"):
        snn = convert(ann, 8, calibrate=x, learn_thresholds=True)
    with torch.inference_mode(inference == "set_time_steps"):
        snn.set_time_steps(4)
    if inference == "moved":
        ann.double()
        x = x.double()
        with torch.inference_mode():
            snn(x)
    snn.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in snn.parameters())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda snn: pickle.loads(pickle.dumps(snn))], ids=["deepcopy", "pickle"]
)
def test_copies_have_an_ann_of_their_own(copied):
    snn = convert(Dense().eval(), 8, calibrate=IMAGES)
    other = copied(snn)
    same(other(IMAGES), snn(IMAGES))
    assert not {id(p) for p in other.parameters()} & {id(p) for p in snn.parameters()}
    assert {id(p) for p in other.parameters()} == {id(p) for p in other.ann().parameters()}
    before = snn(IMAGES)
    other.ann().train()(IMAGES)
    with torch.no_grad():
        other.ann().a.weight.mul_(2)
    same(snn(IMAGES), before)
    assert not torch.equal(other.eval()(IMAGES), before)
    assert snn.ann().norm.num_batches_tracked == 0
