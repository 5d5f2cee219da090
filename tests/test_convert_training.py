"""What forward does differently in training: kept, left out and named, or refused."""

import copy
import io
import random
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves

from anns import Net
from exact import generator, same
from tandem_cuda import TandemDropout, TandemDropout2d, convert, freeze

IMAGES = torch.rand(8, 3, 8, 8, generator=generator(0))
Outputs = namedtuple("Outputs", "logits auxiliary")


def conv(inputs=3, outputs=4):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def between(step, **modules):
    """A network with ``step(net, h)`` between two weight layers; in training mode."""
    torch.manual_seed(0)

    def run(n, x):
        return n.fc(F.relu(n.last(step(n, F.relu(n.first(x))))).mean((2, 3)))

    return Net(run, first=conv(), last=conv(4, 4), fc=nn.Linear(4, 5), **modules)


def plain(ann):
    """The same network with nothing between the layers."""
    other = between(lambda n, x: x)
    other.load_state_dict(ann.state_dict(), strict=False)
    return other


def reloaded(snn):
    file = io.BytesIO()
    torch.save(snn, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


# -- dropout and batch norm


@pytest.mark.parametrize(
    ("step", "kind", "p"),
    [
        (lambda n, x: n.drop(x), TandemDropout, 0.25),
        (lambda n, x: F.dropout(x, 0.5, n.training), TandemDropout, 0.5),
        (lambda n, x: F.dropout2d(x, 0.125, n.training), TandemDropout2d, 0.125),
    ],
)
def test_dropout_keeps_its_rate(step, kind, p):
    ann = between(step, drop=nn.Dropout(0.25, inplace=True))
    snn = convert(ann, 8, calibrate=IMAGES)
    (layer,) = (m for m in snn.snn.modules() if isinstance(m, (TandemDropout, TandemDropout2d)))
    assert (type(layer), layer.p) == (kind, p)
    assert not (snn(IMAGES) == snn(IMAGES)).all()
    same(snn.eval()(IMAGES), snn(IMAGES))
    same(snn(IMAGES), convert(plain(ann).eval(), 8, calibrate=IMAGES)(IMAGES))
    assert not snn.report().notes


def test_dropout_of_training_alone():
    """Left out where eval mode has no such call; its rate in eval mode does not matter."""
    ann = between(lambda n, x: F.dropout(x, 0.5) if n.training else x)
    snn = convert(ann, 8, calibrate=IMAGES)
    assert snn.report().notes == ("random in training alone, and left out: forward",)
    same(snn(IMAGES), snn.eval()(IMAGES))
    snn = convert(between(lambda n, x: F.dropout(x, 0.5 if n.training else 0.1, n.training)), 8, calibrate=IMAGES)
    assert [m.p for m in snn.snn.modules() if isinstance(m, TandemDropout)] == [0.5]


def test_dropout_that_never_or_always_drops():
    ann = between(lambda n, x: F.dropout(x, 0.5, training=False))
    snn = convert(ann, 8, calibrate=IMAGES)
    same(snn.train()(IMAGES), snn.eval()(IMAGES))
    always = convert(between(lambda n, x: F.dropout(x, 0.5)), 8, calibrate=IMAGES).eval()
    assert not (always(IMAGES) == always(IMAGES)).all()


def test_the_order_of_modes_does_not_matter():
    """Neither the conversion nor its calibration depends on the mode, and both leave it as it is."""
    ann = between(lambda n, x: n.norm(F.dropout(x, 0.5, n.training)), norm=nn.BatchNorm2d(4))
    ann.norm.eval()
    modes, state = [m.training for m in ann.modules()], copy.deepcopy(ann.state_dict())
    one = convert(ann, 8, calibrate=IMAGES)
    assert [m.training for m in ann.modules()] == modes
    assert [m.training for m in one.modules() if isinstance(m, nn.BatchNorm2d)] == [False]
    other = convert(ann.eval(), 8, calibrate=IMAGES)
    for name, level in one.levels.items():
        assert level == other.levels[name]
    for name, x in ann.state_dict().items():
        same(x, state[name])


NORMS = {
    "behind a layer": lambda n, x: F.relu(n.norm(n.conv(x))),
    "by its function": lambda n, x: F.relu(
        F.batch_norm(
            n.conv(x), n.norm.running_mean, n.norm.running_var, n.norm.weight, n.norm.bias, n.norm.training, 0.5
        )
    ),
    "behind a ReLU": lambda n, x: n.norm(F.relu(n.conv(x))),
    "twice": lambda n, x: F.relu(n.norm(n.conv(F.relu(n.norm(n.conv(x)))))),
}


@pytest.mark.filterwarnings("ignore:convert")
@pytest.mark.parametrize("name", NORMS)
def test_statistics_move_as_in_the_ann(name):
    """By the batch of the spiking twin, which is near the ANN's; spikes behind a norm have its running statistics."""
    step = NORMS[name]
    ann = between(step, conv=conv(4, 4), norm=nn.BatchNorm2d(4, momentum=0.25))
    for _ in range(20):
        ann(IMAGES)
    ann.norm.momentum = 0.5
    snn, other, images = convert(ann, 8, calibrate=IMAGES), copy.deepcopy(ann), 0.75 * IMAGES
    for _ in range(2):
        snn(images)
        other(images)
    assert name == "by its function" or ann.norm.num_batches_tracked == other.norm.num_batches_tracked
    for key in ("running_mean", "running_var"):
        mine, theirs = getattr(ann.norm, key), getattr(other.norm, key)
        assert name == "twice" or (mine - theirs).norm() < 0.02 * theirs.norm()
    before = ann.norm.running_mean.clone()
    snn.eval()(IMAGES)
    ann.norm.eval()
    snn.train()
    ann.norm.eval()
    snn(IMAGES)
    same(ann.norm.running_mean, before)


@pytest.mark.parametrize("kind", ["BatchNormAct2d", "FrozenBatchNorm2d"])
def test_batch_norms_of_libraries(kind):
    """timm's batch norm with its ReLU, and torchvision's, which is constant."""
    library = pytest.importorskip("timm.layers" if kind == "BatchNormAct2d" else "torchvision.ops")
    ann = between(lambda n, x: F.relu(n.norm(n.conv(x))), conv=conv(4, 4), norm=getattr(library, kind)(4))
    with torch.no_grad():
        for name, x in ann.norm.state_dict().items():
            if x.is_floating_point():
                x.uniform_(0.5, 2, generator=generator(len(name)))
    snn, before = convert(ann, 8, calibrate=IMAGES), copy.deepcopy(ann.norm.state_dict())
    assert list(snn.state_dict()) == [*ann.state_dict(), "_extra_state"]
    snn(IMAGES).square().sum().backward()
    assert all(x.grad is not None for x in ann.parameters())
    moved = any((x != before[name]).any() for name, x in ann.norm.state_dict().items())
    assert moved == (kind == "BatchNormAct2d")
    ann.eval()
    with torch.no_grad():
        assert (snn.eval()(IMAGES) - ann(IMAGES)).norm() < 0.03 * ann(IMAGES).norm()


# -- what is random in training alone


class Depth(nn.Module):
    """Stochastic depth as libraries write it."""

    def __init__(self, how):
        super().__init__()
        self.how, self.rate = how, 0.5

    def forward(self, x):
        if not self.training:
            return x
        keep = 1 - self.rate
        if self.how == "bernoulli":
            return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep).div_(keep)
        if self.how == "floor":
            return x.div(keep) * (keep + torch.rand((x.shape[0], 1, 1, 1), dtype=x.dtype)).floor_()
        if self.how == "compared":
            return x * (torch.rand(x.shape[0], 1, 1, 1) < keep) / keep
        return x + self.rate * torch.randn_like(x)


@pytest.mark.parametrize("how", ["bernoulli", "floor", "compared", "noise"])
def test_what_is_random_in_training_alone_is_left_out(how):
    ann = between(lambda n, x: F.relu(x + n.depth(n.conv(x))), conv=conv(4, 4), depth=Depth(how))
    snn = convert(ann, 8, calibrate=IMAGES)
    assert "random in training alone, and left out: depth" in snn.report().notes
    assert "left out: depth" in str(snn.report())
    same(snn(IMAGES), snn.eval()(IMAGES))
    steady = between(lambda n, x: F.relu(x + n.conv(x)), conv=conv(4, 4))
    steady.load_state_dict(ann.state_dict())
    same(snn(IMAGES), convert(steady, 8, calibrate=IMAGES).eval()(IMAGES))


def test_what_is_not_random_is_refused_beside_it():
    doubled = between(
        lambda n, x: F.relu(x + n.depth((2 if n.training else 1) * n.conv(x))), conv=conv(4, 4), depth=Depth("floor")
    )
    with pytest.raises(ValueError, match="it computes something else in training than in eval mode: there, mul"):
        convert(doubled, 8, calibrate=IMAGES)


def by_random(n, x):
    return x if n.training and random.random() < 0.5 else 2 * x


def test_random_numbers_of_python():
    """torch.export cannot see them, only that forward draws them; random draws the same numbers as before."""
    ann = between(by_random)
    random.seed(3)
    want = random.random()
    random.seed(3)
    for seed in range(3):  # whichever way the draw goes, nothing is converted in silence
        random.seed(seed)
        state = random.getstate()
        snn = convert(ann, 8, example=IMAGES)
        same(snn.train()(IMAGES), snn.eval()(IMAGES))
        assert random.getstate() == state
    random.seed(3)
    assert random.random() == want


# -- outputs of training alone


class Auxiliary(nn.Module):
    """With an auxiliary head in training."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 8), conv(8, 8), nn.Linear(512, 10)
        self.d, self.norm, self.auxiliary = conv(8, 4), nn.BatchNorm2d(4), nn.Linear(256, 10)

    def forward(self, x):
        x = F.dropout(F.relu(self.b(F.relu(self.a(x)))), 0.25, self.training)
        aux = None
        if self.training and self.kind != "none":
            aux = self.auxiliary(F.dropout(F.relu(self.norm(self.d(x))), 0.25, self.training).flatten(1))
        features = F.relu(self.c(x)).flatten(1)
        x = self.head(features)
        if self.kind == "more in eval mode":
            return (x, aux) if self.training else (x, features)
        if aux is None:
            return x
        return Outputs(x, aux) if self.kind == "named" else {"out": x, "aux": aux} if self.kind == "dict" else (x, aux)


@pytest.mark.parametrize("kind", ["tuple", "named", "dict"])
def test_outputs_of_training_alone(kind):
    """In eval mode the network is the one without them; in training it returns what the ANN does."""
    torch.manual_seed(0)
    ann, without = Auxiliary(kind).eval(), Auxiliary("none").eval()
    without.load_state_dict(ann.state_dict())
    snn = convert(ann, 8, calibrate=IMAGES)
    with torch.no_grad():
        want = convert(without, 8, calibrate=IMAGES)(IMAGES)
        for network in (snn, copy.deepcopy(snn), freeze(snn), reloaded(snn)):
            same(network(IMAGES), want)
    for network in (snn, reloaded(snn)):
        torch.manual_seed(1)
        out = network.train()(IMAGES)
        torch.manual_seed(1)
        assert tree_flatten(out)[1] == tree_flatten(ann.train()(IMAGES))[1]
        sum(x.square().sum() for x in tree_leaves(out)).backward()
        assert all(x.grad is not None for x in network.parameters())
    assert {*ann.state_dict()} <= {*snn.state_dict()}


def test_auxiliary_outputs_are_near_the_anns():
    torch.manual_seed(0)
    ann = Auxiliary("tuple")
    snn = convert(ann, 8, calibrate=IMAGES)
    for module in (*snn.modules(), *ann.modules()):
        if isinstance(module, (nn.BatchNorm2d, nn.modules.dropout._DropoutNd)):
            module.eval()
    with torch.no_grad():
        features = F.relu(ann.b(F.relu(ann.a(IMAGES))))
        want = ann.auxiliary(F.relu(ann.norm(ann.d(features))).flatten(1))
        assert (snn(IMAGES)[1] - want).norm() < 0.02 * want.norm()
    snn.double().set_time_steps(2)
    assert {x.dtype for x in snn(IMAGES.double())} == {torch.float64}
    ann.auxiliary = nn.Linear(256, 10)
    with pytest.raises(RuntimeError, match="auxiliary"):
        snn(IMAGES)


def test_other_outputs_in_eval_mode():
    with pytest.raises(ValueError, match="computes something else in training than in eval mode"):
        convert(Auxiliary("more in eval mode"), 8, example=IMAGES)


# -- what is refused


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (lambda n, x: 2 * x if n.training else x, "there, mul"),
        (lambda n, x: x if n.training else F.max_pool2d(x, 3, 1, 1), ""),
        (lambda n, x: n.last(x) if n.training else x, "there, conv2d in last"),
        (lambda n, x: F.leaky_relu(x, 0.1 if n.training else 0.2), "there, leaky_relu"),
    ],
)
def test_other_results_in_training_are_refused(step, what):
    for mode in (False, True):
        with pytest.raises(
            ValueError, match=f"forward of Net cannot be converted: it computes something else in.*{what}"
        ):
            convert(between(step).train(mode), 8, example=IMAGES)


def test_training_modes_that_cannot_be_exported_are_named():
    def step(n, x):
        return x * x.max().item() if n.training and x.max().item() > 0 else x

    report = convert(between(step), 8, calibrate=IMAGES).report()
    (note,) = (x for x in report.notes if x.startswith("trains as in eval mode"))
    assert "because in training mode torch.export cannot export forward of Net" in note
    assert "\n" not in note
