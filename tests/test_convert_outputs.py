"""Networks with several inputs or outputs, and with outputs in training alone."""

import copy
import io
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves

from anns import Net, Pair
from exact import generator, same
from tandem_cuda import convert, freeze

IMAGES, OTHERS = (torch.rand(8, 3, 16, 16, generator=generator(i)) for i in range(2))
Outputs = namedtuple("Outputs", "logits auxiliary")


def conv(i, o, stride=1):
    return nn.Conv2d(i, o, 3, stride, 1)


def stages(n, x):
    """Three layers of a backbone."""
    x = F.relu(n.a(x))
    y = F.relu(n.b(x))
    return x, y, F.relu(n.c(y))


def tower(x, first, second):
    return F.relu(second(F.relu(first(x)))).flatten(1)


BACKBONE = {"a": lambda: conv(3, 8), "b": lambda: conv(8, 8, 2), "c": lambda: conv(8, 8, 2)}
TWO = {**BACKBONE, "a2": lambda: conv(3, 8), "b2": lambda: conv(8, 8, 2)}
NETS = {
    "a backbone": (Net, lambda n, x: stages(n, x)[2], BACKBONE),
    "a backbone with pooling": (Net, lambda n, x: F.adaptive_avg_pool2d(stages(n, x)[2], 1).flatten(1), BACKBONE),
    "a backbone with signed values": (Net, lambda n, x: n.c(stages(n, x)[1]), BACKBONE),
    "features of all stages": (Net, lambda n, x: list(stages(n, x)), BACKBONE),
    "named features": (Net, lambda n, x: dict(zip("abc", stages(n, x), strict=True)), BACKBONE),
    "two heads": (
        Net,
        lambda n, x: (lambda h: {"classes": n.h(h), "box": n.g(h)})(stages(n, x)[2].flatten(1)),
        {**BACKBONE, "h": lambda: nn.Linear(128, 10), "g": lambda: nn.Linear(128, 4)},
    ),
    "logits and features": (
        Net,
        lambda n, x: (lambda h: (n.h(h), h))(stages(n, x)[2].flatten(1)),
        {**BACKBONE, "h": lambda: nn.Linear(128, 10)},
    ),
    "inputs joined": (
        Pair,
        lambda n, x, y: n.h(F.relu(n.b(F.relu(n.a(x) + n.a2(y)))).flatten(1)),
        {**TWO, "h": lambda: nn.Linear(512, 10)},
    ),
    "inputs concatenated": (
        Pair,
        lambda n, x, y: n.h(tower(torch.cat([x, y], 1), n.a, n.b)),
        {**TWO, "a": lambda: conv(6, 8), "h": lambda: nn.Linear(512, 10)},
    ),
    "two towers": (
        Pair,
        lambda n, x, y: n.h(torch.cat([tower(x, n.a, n.b), tower(y, n.a2, n.b2)], 1)),
        {**TWO, "h": lambda: nn.Linear(1024, 10)},
    ),
    "two towers and a hidden layer": (
        Pair,
        lambda n, x, y: n.h(F.relu(n.k(torch.cat([tower(x, n.a, n.b), tower(y, n.a2, n.b2)], 1)))),
        {**TWO, "k": lambda: nn.Linear(1024, 20), "h": lambda: nn.Linear(20, 10)},
    ),
    "an image and numbers": (
        Pair,
        lambda n, x, y: n.h(torch.cat([tower(x, n.a, n.b), y.mean((2, 3))], 1)),
        {**TWO, "h": lambda: nn.Linear(515, 10)},
    ),
    "a difference of twins": (
        Pair,
        lambda n, x, y: n.h(tower(x, n.a, n.b) - tower(y, n.a, n.b)),
        {**TWO, "h": lambda: nn.Linear(512, 10)},
    ),
}


def made(name):
    torch.manual_seed(0)
    kind, run, modules = NETS[name]
    return kind(run, **{key: make() for key, make in modules.items()}).eval(), (IMAGES, OTHERS)[: 1 + (kind is Pair)]


@pytest.mark.parametrize("name", NETS)
def test_inputs_and_outputs(name):
    ann, inputs = made(name)
    snn = convert(ann, 8, calibrate=[inputs])
    with torch.no_grad():
        out, want = snn(*inputs), ann(*inputs)
        assert tree_flatten(out)[1] == tree_flatten(want)[1]
        for mine, theirs in zip(tree_leaves(out), tree_leaves(want), strict=True):
            assert (mine - theirs).norm() < 0.02 * theirs.norm()
        for mine, theirs in zip(tree_leaves(freeze(snn)(*inputs)), tree_leaves(out), strict=True):
            same(mine, theirs)
    sum(x.square().sum() for x in tree_leaves(snn.train()(*inputs))).backward()
    used = {id(x) for x in snn.parameters()}
    assert all(x.grad is not None for x in ann.parameters() if id(x) in used)


class Auxiliary(nn.Module):
    """Returns the logits of an auxiliary head in training."""

    def __init__(self, kind="tuple"):
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 8, 2), conv(8, 8, 2), nn.Linear(128, 10)
        self.d, self.norm, self.auxiliary = conv(8, 4, 2), nn.BatchNorm2d(4), nn.Linear(64, 10)

    def forward(self, x):
        x = F.dropout(F.relu(self.b(F.relu(self.a(x)))), 0.25, self.training)
        if self.training and self.kind == "write":
            x.mul_(2)
        aux = None
        if self.training and self.kind != "none":
            aux = self.auxiliary(F.dropout(F.relu(self.norm(self.d(x))), 0.25, self.training).flatten(1))
        x = self.head(F.relu(self.c(x)).flatten(1))
        if aux is None:
            return x
        return Outputs(x, aux) if self.kind == "named" else {"out": x, "aux": aux} if self.kind == "dict" else (x, aux)


@pytest.mark.parametrize("kind", ["tuple", "named", "dict"])
@pytest.mark.parametrize("how", [{}, {"calibrate": IMAGES}], ids=["uncalibrated", "calibrated"])
def test_outputs_in_training_alone(kind, how):
    """In eval mode the network is the one without them; in training it returns what the ANN does."""
    torch.manual_seed(0)
    ann = Auxiliary(kind).eval()
    without = Auxiliary("none").eval()
    without.load_state_dict(ann.state_dict())
    snn = convert(ann, 8, **how)
    with torch.no_grad():
        want = convert(without, 8, **how)(IMAGES)
        for network in (snn, copy.deepcopy(snn), freeze(snn), reloaded(snn)):
            same(network(IMAGES), want)
    for network in (snn, copy.deepcopy(snn), reloaded(snn)):
        torch.manual_seed(1)
        out = network.train()(IMAGES)
        torch.manual_seed(1)
        assert tree_flatten(out)[1] == tree_flatten(ann.train()(IMAGES))[1]
        sum(x.square().sum() for x in tree_leaves(out)).backward()
        assert all(x.grad is not None for x in network.parameters())
    assert {*ann.state_dict()} <= {*snn.state_dict()}
    assert "auxiliary" not in str(snn.report(IMAGES))


def reloaded(snn):
    file = io.BytesIO()
    torch.save(snn, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def test_auxiliary_outputs_are_near_those_of_the_ann():
    """With batch norm on its running statistics and without dropout."""
    torch.manual_seed(0)
    ann = Auxiliary().eval()
    snn = convert(ann, 8, calibrate=IMAGES).train()
    for module in (*snn.modules(), *ann.modules()):
        if isinstance(module, (nn.BatchNorm2d, nn.modules.dropout._DropoutNd)):
            module.eval()
    ann.forward = lambda x: Auxiliary.forward(ann, x)
    with torch.no_grad():
        features = F.relu(ann.b(F.relu(ann.a(IMAGES))))
        want = ann.auxiliary(F.relu(ann.norm(ann.d(features))).flatten(1))
    del ann.forward
    with torch.no_grad():
        _, got = snn(IMAGES)
    assert (got - want).norm() < 0.02 * want.norm()


def test_auxiliary_heads_follow_the_network():
    """To another dtype, another number of time steps, and through a compiler."""
    torch.manual_seed(0)
    snn = convert(Auxiliary(), 8, calibrate=IMAGES).train()
    assert {x.dtype for x in snn.double()(IMAGES.double())} == {torch.float64}
    snn.float().set_time_steps(2)
    assert all(x.isfinite().all() for x in snn(IMAGES))
    torch.manual_seed(1)
    want = snn(IMAGES)
    torch.manual_seed(1)
    out = torch.compile(snn, backend="eager")(IMAGES)
    for mine, theirs in zip(out, want, strict=True):
        same(mine.detach(), theirs.detach())


def test_changes_of_an_auxiliary_head_are_noticed():
    ann = Auxiliary()
    snn = convert(ann, 8, calibrate=IMAGES)
    ann.auxiliary = nn.Linear(64, 10)
    with pytest.raises(RuntimeError, match="auxiliary"):
        snn(IMAGES)


def test_writes_of_an_auxiliary_head_are_refused():
    with pytest.raises(ValueError, match=r"outputs in training alone, got .* and mul_ in Auxiliary"):
        convert(Auxiliary("write"), 8)
