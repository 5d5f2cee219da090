"""Whoever follows the advice of convert gets a network that converts: for each advice a fault, and the fault mended."""

import ast
import contextlib
import copy
import functools
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import qcfs_anns
from anns import Net, Pair
from exact import generator, same
from tandem_cuda import IF, LIF, RadixIF, SpikeTrain, TandemConv2d, convert, freeze, from_quantised
from tandem_cuda.convert import advice, rules
from tandem_cuda.convert.qcfs import QCFS
from tandem_cuda.convert.rules import WeightRule, register
from test_convert_layers import conv

pytestmark = pytest.mark.usefixtures("restored_rules")

IMAGES = torch.randn(4, 3, 8, 12, generator=generator(0))
LINES = torch.randn(4, 3, 16, generator=generator(1))


def made(run, x, **modules):
    torch.manual_seed(0)
    net = Net(run, **modules).eval()
    if x is not None:
        net(x)  # layers learn the number of their inputs
    return net, x


def between(x, first, last, mean, middle, **modules):
    """Something between two layers; mean: over which dimensions behind them, none if ()."""

    def run(net, x):
        x = F.relu(net.last(middle(net, F.relu(net.first(x)))))
        return net.head(x.mean(mean) if mean else x)

    return made(run, x, first=first, last=last, head=nn.LazyLinear(5), **modules)


def image(middle, **modules):
    return between(IMAGES, conv(3, 8), nn.LazyConv2d(6, 1), (2, 3), middle, **modules)


def flat(middle, **modules):
    return between(IMAGES, conv(3, 8), nn.LazyLinear(6), (), middle, **modules)


def line(middle, **modules):
    return between(LINES, nn.Conv1d(3, 8, 3, padding=1), nn.LazyConv1d(6, 1), 2, middle, **modules)


def volume(middle, **modules):
    first = nn.Conv3d(3, 8, 3, padding=1)
    return between(IMAGES.unsqueeze(2), first, nn.LazyConv3d(6, 1), (2, 3, 4), middle, **modules)


def rows(middle):
    """Images, of which the second layer reads lines."""
    return between(IMAGES, conv(3, 8), nn.LazyConv1d(6, 1), 2, middle, a=conv(8, 4))


def whole(run, x=IMAGES, **modules):
    """A network of its own."""
    return made(run, x, **modules)


def changed(change):
    """A network whose second layer ``change`` makes something of."""
    net, x = image(lambda n, x: n.same(x), same=nn.Sequential(conv(8, 8), nn.ReLU()))
    change(net)
    return net, x


def ruled(kind, rule, *arguments):
    """A network of a layer with a rule, which the test takes back."""
    rules.RULES.pop(kind, None)
    register(kind, rule)
    return image(lambda n, x: F.relu(n.a(x)), a=kind(*arguments))


class OneSign(nn.Identity):
    """With a rule for spikes of one sign, which could come before the ReLU."""


def of_one_sign(middle):
    """A network with such a module."""
    rules.RULES.pop(OneSign, None)
    register(OneSign, lambda call: call.apply(nn.Identity(), commutes=True))
    return image(middle, a=conv(8, 8), b=OneSign())


@dataclass(eq=False)
class Case:
    """A network that does not convert, and the same after following the advice."""

    why: str
    """Part of the advice."""
    wrong: Callable
    """Makes the network that is refused, and an input."""
    right: Callable
    """Makes the network that follows the advice."""
    how: dict = field(default_factory=dict)
    """Arguments of convert."""
    then: dict = field(default_factory=dict)
    """Further arguments that the advice names."""
    same: bool = False
    """Whether both ANNs compute the same with the same parameters."""

    def __str__(self):
        return re.sub(r"\W+", " ", self.why)[:50]


class Square(nn.Conv2d):
    def forward(self, x):
        return super().forward(x)


class Buffered(nn.Module):
    """Does nothing, to numbers and spikes."""

    def __init__(self, x):
        super().__init__()
        self.register_buffer("x", x)

    def forward(self, x):
        return x


class OwnIdentity(nn.Module):
    def forward(self, x):
        return x


class Swish(nn.Module):
    def forward(self, x):
        return F.silu(x)


class Squash(nn.Module):
    def forward(self, x):
        return x.sigmoid()


class Squashing(nn.Sigmoid):
    def forward(self, x, inplace=False):
        return x.sigmoid_() if inplace else x.sigmoid()


FUNCTIONS = [
    *((f, "silu", nn.ReLU) for f in (F.silu, lambda x: F.silu(x, inplace=True), lambda x: F.silu(input=x))),
    *((F.gelu, "gelu", nn.ReLU), (lambda x: F.gelu(x, approximate="tanh"), "gelu", nn.ReLU), (F.elu, "elu", nn.ReLU)),
    *((F.hardswish, "hardswish", nn.ReLU), (F.softplus, "softplus", nn.ReLU), (F.mish, "mish", nn.ReLU)),
    *((f, "tanh", nn.Hardtanh) for f in (torch.tanh, F.tanh, lambda x: x.tanh(), lambda x: x.tanh_())),
    *((f, "sigmoid", nn.Hardsigmoid) for f in (torch.sigmoid, F.sigmoid, lambda x: x.sigmoid())),
    (F.rrelu, "rrelu", nn.LeakyReLU),
    (F.softsign, "softsign", nn.Hardtanh),
    *((f, f.__name__, nn.ReLU) for f in (F.celu, F.selu, torch.selu, F.hardshrink, F.softshrink, F.tanhshrink)),
    *((F.logsigmoid, "logsigmoid", nn.ReLU), (lambda x: F.threshold(x, 0.1, 0.0), "threshold", nn.ReLU)),
    *((lambda x, f=f: f(x, 1), f.__name__, nn.ReLU) for f in (F.softmax, F.softmin, F.log_softmax)),
]
FORMS = {nn.ReLU: F.relu, nn.Hardtanh: F.hardtanh, nn.Hardsigmoid: F.hardsigmoid, nn.LeakyReLU: F.leaky_relu}


def squeezed(net, x):
    return x * torch.sigmoid(net.up(F.relu(net.down(x.mean((2, 3), keepdim=True)))))


def hard_squeezed(net, x):
    return x * net.hard(net.up(net.silu(net.down(x.mean((2, 3), keepdim=True)))))


ANALOGUE = {"gates": "analogue"}
SPIKES = {"mode": "spikes"}


def gate():
    return {"down": conv(8, 2, 1), "up": conv(2, 8, 1)}


def constant(*shape):
    return nn.ParameterDict({"x": nn.Parameter(torch.rand(*shape))})


def recorded(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers), SpikeTrain.from_dense((torch.rand(8, 2, 2, 6, 6) < 0.5).float())


class Lambda(nn.Module):
    """A function in an nn.Sequential."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


def cell():
    return nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)


def read_out():
    return nn.Linear(72, 4), nn.ReLU(), nn.Linear(4, 3)


def rectified(net, x):
    return F.relu(net.a(x))


def halves(x):
    one, other = x.chunk(2, 1)
    return one, other


def larger(x, y):
    return y + torch.relu(x - y)


def asserted(x, condition):
    torch._assert(condition, "of this size")
    return x


ROWS = torch.rand(2, 4, 5)


def two_rows(net, x):
    return net.c(torch.cat([F.relu(net.a(x)), F.relu(net.b(x))], 1))


def single_pixels(n, x):
    x = F.relu(n.a(x))
    return n.c(F.relu(x + n.b(F.adaptive_avg_pool2d(x, 1))))


def pooled(n, x):
    return F.relu(x + n.a(n.pool(x)))


def functional(f, name, kind, replaces):
    """A function in the place of an activation: forward calls another one, or ``replace`` names it."""
    new = FORMS[kind]
    return Case(
        f"call F.{new.__name__} in its place, as replace={{{name!r}: nn.{kind.__name__}}} does",
        lambda: image(lambda n, x: f(n.a(x)), a=conv(8, 8)),
        lambda: image(lambda n, x: (f if replaces else new)(n.a(x)), a=conv(8, 8)),
        then={"replace": {name: kind}} if replaces else {},
    )


COUNTED_LEVELS = {"calibrate": {}, "neuron": IF(initial=0.5, two_phase=True)}


def levelled(activation, threshold="thresh", levels="L"):
    """A network of a QCFS activation, with the rule that from_qcfs registers."""
    rules.RULES.pop(type(activation), None)
    register(type(activation), QCFS(threshold, levels))
    return whole(lambda n, x: n.b(n.q(n.a(x))), a=conv(3, 4), q=activation, b=conv(4, 2))


PARTS = [
    # sums that broadcast
    Case(
        "make its inputs alike in size, by nn.Upsample: spikes do not broadcast, and one is pooled to one pixel",
        lambda: image(pooled, a=conv(8, 8), pool=nn.AdaptiveAvgPool2d(1)),
        lambda: image(
            pooled, a=conv(8, 8), pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Upsample(scale_factor=(8, 12)))
        ),
    ),
    Case(
        "pass example=, an input of ann, if the other has one pixel, too",
        lambda: whole(single_pixels, a=nn.Conv2d(3, 4, (8, 12)), b=conv(4, 4, 1), c=conv(4, 2, 1)),
        lambda: whole(single_pixels, a=nn.Conv2d(3, 4, (8, 12)), b=conv(4, 4, 1), c=conv(4, 2, 1)),
        then={"example": IMAGES},
        same=True,
    ),
    Case(
        "torch.cat: spikes do not broadcast, got [N, 8, 8, 12] and [N, 1, 8, 12]",
        lambda: image(lambda n, x: F.relu(x + n.a(x)), a=conv(8, 1)),
        lambda: image(lambda n, x: F.relu(x + torch.cat([n.a(x)] * 8, 1)), a=conv(8, 1)),
        how={"example": IMAGES},
    ),
    # methods of instances
    Case(
        "remove what its instance overrides (del module.forward)",
        lambda: changed(lambda net: setattr(net.same[0], "forward", lambda x: x)),
        lambda: changed(lambda net: None),
    ),
    # activations
    Case(
        "use nn.ReLU, as replace={nn.SiLU: nn.ReLU} does",
        lambda: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=nn.SiLU()),
        lambda: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=nn.SiLU()),
        then={"replace": {nn.SiLU: nn.ReLU}},
    ),
    Case(
        "use nn.Hardtanh, as replace={nn.Tanh: nn.Hardtanh} does",
        lambda: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=nn.Tanh()),
        lambda: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=nn.Tanh()),
        then={"replace": {nn.Tanh: nn.Hardtanh}},
    ),
    Case(
        "use nn.LeakyReLU, as replace={nn.RReLU: nn.LeakyReLU} does",
        lambda: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=nn.RReLU()),
        lambda: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=nn.RReLU()),
        then={"replace": {nn.RReLU: nn.LeakyReLU}},
    ),
    *(
        Case(
            f"{kind.__name__}: nn.Hardsigmoid}} does",
            lambda kind=kind: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=kind()),
            lambda kind=kind: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=kind()),
            then={"replace": {kind: nn.Hardsigmoid}},
        )
        for kind, word in (
            (nn.Sigmoid, "nn.Sigmoid"),
            (Squashing, f"{__name__}.Squashing"),
            (Squash, f"{__name__}.Squash"),
        )
    ),
    Case(
        "Swish: nn.ReLU} does",
        lambda: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=Swish()),
        lambda: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=Swish()),
        then={"replace": {Swish: nn.ReLU}},
    ),
    *(functional(*each, replaces) for each in FUNCTIONS for replaces in (False, True)),
    *(
        Case(
            "let it return values from 0 or -b to a positive bound b, as nn.Hardtanh(0, 6) and nn.Hardtanh() do",
            lambda: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=nn.Hardtanh(-1, 2)),
            lambda act=act: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=act),
        )
        for act in (nn.Hardtanh(0, 6), nn.Hardtanh())
    ),
    Case(
        "pass neuron=RadixIF() or IF(initial=0.5, two_phase=True), which wait for all time steps: its slope below zero",
        lambda: image(lambda n, x: F.leaky_relu(n.a(x), -0.5), a=conv(8, 8)),
        lambda: image(lambda n, x: F.leaky_relu(n.a(x), -0.5), a=conv(8, 8)),
        then={"neuron": RadixIF()},
        same=True,
    ),
    Case(
        "pass a number as negative_slope",
        lambda: image(lambda n, x: F.leaky_relu(n.a(x), torch.tensor(0.5)), a=conv(8, 8)),
        lambda: image(lambda n, x: F.leaky_relu(n.a(x), 0.5), a=conv(8, 8)),
        same=True,
    ),
    Case(
        "use nn.PReLU, or F.leaky_relu with a number: its slopes must be a parameter of the ANN",
        lambda: image(lambda n, x: F.prelu(n.a(x), torch.full([1], 0.25)), a=conv(8, 8)),
        lambda: image(lambda n, x: F.leaky_relu(n.a(x), 0.25), a=conv(8, 8)),
        same=True,
    ),
    Case(
        "use nn.PReLU, or F.leaky_relu with a number",
        lambda: image(lambda n, x: F.prelu(n.a(x), torch.full([1], 0.25)), a=conv(8, 8)),
        lambda: image(lambda n, x: n.act(n.a(x)), a=conv(8, 8), act=nn.PReLU()),
    ),
    Case(
        "let it return values from 0 or -b to a positive bound b",
        lambda: image(lambda n, x: n.a(x).clamp_max(6), a=conv(8, 8)),
        lambda: image(lambda n, x: n.a(x).clamp(0, 6), a=conv(8, 8)),
    ),
    Case(
        "use y + torch.relu(x - y), which is the larger of two",
        lambda: image(lambda n, x: torch.maximum(x, F.relu(n.a(x))), a=conv(8, 8)),
        lambda: image(lambda n, x: larger(x, F.relu(n.a(x))), a=conv(8, 8)),
        same=True,
    ),
    Case(
        "or torch.relu(x) if y is 0",
        lambda: image(lambda n, x: torch.max(n.a(x), torch.tensor(0.0)), a=conv(8, 8)),
        lambda: image(rectified, a=conv(8, 8)),
        same=True,
    ),
    Case(
        "use x - torch.relu(x - y), which is the smaller of two",
        lambda: image(lambda n, x: torch.minimum(x, F.relu(n.a(x))), a=conv(8, 8)),
        lambda: image(lambda n, x: (lambda y: x - torch.relu(x - y))(F.relu(n.a(x))), a=conv(8, 8)),
        same=True,
    ),
    # gates and products
    Case("pass gates='analogue'", lambda: image(squeezed, **gate()), lambda: image(squeezed, **gate()), then=ANALOGUE),
    Case(
        "pass gates='analogue'",
        lambda: image(hard_squeezed, hard=nn.Hardsigmoid(), silu=nn.SiLU(), **gate()),
        lambda: image(hard_squeezed, hard=nn.Hardsigmoid(), silu=nn.SiLU(), **gate()),
        then=ANALOGUE,
    ),
    Case(
        "pass gates='analogue'",
        lambda: image(lambda n, x: x * torch.sigmoid(n.fc(x.mean((2, 3))))[:, :, None, None], fc=nn.Linear(8, 8)),
        lambda: image(lambda n, x: x * torch.sigmoid(n.fc(x.mean((2, 3))))[:, :, None, None], fc=nn.Linear(8, 8)),
        then=ANALOGUE,
    ),
    Case(
        "and pass gates='analogue'",
        lambda: image(lambda n, x: F.glu(n.a(x), 1), a=conv(8, 16)),
        lambda: image(lambda n, x: (lambda a, b: a * torch.sigmoid(b))(*halves(n.a(x))), a=conv(8, 16)),
        then=ANALOGUE,
        same=True,
    ),
    Case(
        "remove it, or move it after the last weight layer: spikes cannot be multiplied",
        lambda: image(lambda n, x: x * F.relu(n.a(x)), a=conv(8, 8)),
        lambda: image(rectified, a=conv(8, 8)),
        how=ANALOGUE,
    ),
    Case(
        "remove it, or move it after the last weight layer: spikes cannot be multiplied",
        lambda: whole(
            lambda n, x: (lambda y, z: n.b(y * z))(F.relu(n.a(x)), F.relu(n.c(x))),
            a=conv(3, 4),
            b=conv(4, 4),
            c=conv(3, 4),
        ),
        lambda: whole(lambda n, x: (lambda y: y * n.b(y))(F.relu(n.a(x))), a=conv(3, 4), b=conv(4, 4)),
    ),
    Case(
        "multiply by a number, or each channel by the weight of a layer",
        lambda: image(lambda n, x: x * (2 * n.scale["x"]), scale=constant(8, 1, 1)),
        lambda: image(lambda n, x: n.scale(x), scale=conv(8, 8, 1, groups=8, bias=False)),
    ),
    Case(
        "multiply by a number",
        lambda: image(lambda n, x: x * torch.full((1, 1, 8, 12), 0.5)),
        lambda: image(lambda n, x: x * 0.5),
        same=True,
    ),
    Case(
        "use nn.Linear: spikes are multiplied only by the weights of layers",
        lambda: flat(lambda n, x: F.relu(x.flatten(1) @ n.w["x"]), w=constant(768, 4)),
        lambda: flat(lambda n, x: F.relu(n.w(x.flatten(1))), w=nn.Linear(768, 4)),
    ),
    Case(
        "divide by a number other than 0",
        lambda: image(lambda n, x: x / torch.full((1, 1, 8, 12), 2.0)),
        lambda: image(lambda n, x: x / 2),
        same=True,
    ),
    Case("divide by a number other than 0", lambda: image(lambda n, x: x / 0), lambda: image(lambda n, x: x / 2)),
    Case("use /: spikes are not rounded down", lambda: image(lambda n, x: x // 2), lambda: image(lambda n, x: x / 2)),
    # sums
    Case(
        "add a number, or to each channel the bias of a layer",
        lambda: image(lambda n, x: x + n.shift["x"], shift=constant(8, 1, 1)),
        lambda: image(lambda n, x: n.shift(x), shift=conv(8, 8, 1, groups=8)),
    ),
    Case(
        "add a number", lambda: image(lambda n, x: x + torch.ones(8, 12)), lambda: image(lambda n, x: x + 1), same=True
    ),
    Case(
        "add only spikes: put a weight layer, such as nn.Conv2d, between the network's input and this",
        lambda: whole(lambda n, x: n.b(F.relu(n.a(x) + x)), a=conv(3, 3), b=conv(3, 2)),
        lambda: whole(lambda n, x: n.b(F.relu(n.a(x) + n.c(x))), a=conv(3, 3), b=conv(3, 2), c=conv(3, 3, 1)),
    ),
    Case(
        "pass a number as alpha",
        lambda: image(lambda n, x: F.relu(torch.add(x, n.a(x), alpha=x.size(2))), a=conv(8, 8)),
        lambda: image(lambda n, x: F.relu(torch.add(x, n.a(x), alpha=2)), a=conv(8, 8)),
    ),
    Case(
        "pass no arguments but other, alpha",
        lambda: image(lambda n, x: torch.add(x, n.a(x), out=None), a=conv(8, 8)),
        lambda: image(lambda n, x: torch.add(x, n.a(x)), a=conv(8, 8)),
        same=True,
    ),
    # concatenations and pieces
    Case(
        "concatenate only spikes: put a weight layer, such as nn.Conv2d, between the network's input and this",
        lambda: whole(
            lambda n, x: n.d(F.relu(n.b(torch.cat([F.relu(n.a(x)), x], 1)))), a=conv(3, 4), b=conv(7, 2), d=conv(2, 2)
        ),
        lambda: whole(
            lambda n, x: n.d(F.relu(n.b(torch.cat([F.relu(n.a(x)), n.c(x)], 1)))),
            a=conv(3, 4),
            b=conv(7, 2),
            c=conv(3, 3, 1),
            d=conv(2, 2),
        ),
    ),
    Case(
        "leave out the tensor of constants: spikes are concatenated only with spikes",
        lambda: image(lambda n, x: torch.cat([x, n.c["x"]], 1), c=constant(4, 2, 8, 12)),
        lambda: image(lambda n, x: torch.cat([x], 1)),
    ),
    Case(
        "list what it concatenates, as in torch.cat([a, b], 1)",
        lambda: image(lambda n, x: torch.cat(x.chunk(2, 1), 1)),
        lambda: image(lambda n, x: torch.cat([*halves(x)], 1)),
        same=True,
    ),
    Case(
        "concatenate along dimension 1",
        lambda: image(lambda n, x: torch.cat([x, x], 2)),
        lambda: image(lambda n, x: torch.cat([x, x], 1)),
    ),
    Case(
        "pass no arguments but tensors, dim",
        lambda: image(lambda n, x: torch.cat([x, x], 1, out=None)),
        lambda: image(lambda n, x: torch.cat([x, x], 1)),
        same=True,
    ),
    Case(
        "split along dimension 1",
        lambda: image(lambda n, x: x.chunk(2, 2)[0]),
        lambda: image(lambda n, x: x.chunk(2, 1)[0]),
    ),
    Case(
        "select ranges behind the batch, as in x[:, :8, ::2], or one row or column, as in x[:, :, -1]",
        lambda: image(lambda n, x: x[:, [0, 2]]),
        lambda: image(lambda n, x: x[:, :4:2]),
        same=True,
    ),
    Case(
        "leave out pieces without channels",
        lambda: image(lambda n, x: torch.cat([x, x[:, 3:3]], 1)),
        lambda: image(lambda n, x: torch.cat([x], 1)),
        same=True,
    ),
    Case(
        "use its pieces one by one, as in x.chunk(2, 1)[0]",
        lambda: image(lambda n, x: torch.cat(x.chunk(4, 1)[:2], 1)),
        lambda: image(lambda n, x: (lambda p: torch.cat([p[0], p[1]], 1))(x.chunk(4, 1))),
        same=True,
    ),
    # pooling
    Case(
        "set return_indices=False",
        lambda: image(lambda n, x: n.pool(x)[0], pool=nn.MaxPool2d(2, return_indices=True)),
        lambda: image(lambda n, x: n.pool(x), pool=nn.MaxPool2d(2)),
        same=True,
    ),
    Case(
        "put a ReLU before it: its input has negative values",
        lambda: of_one_sign(lambda n, x: n.b(n.a(x))),
        lambda: of_one_sign(lambda n, x: n.b(F.relu(n.a(x)))),
    ),
    Case(
        "put a ReLU before it: its input has negative values",
        lambda: of_one_sign(lambda n, x: (lambda y: n.b(y) + n.b(y))(n.a(x))),
        lambda: of_one_sign(lambda n, x: (lambda y: n.b(y) + n.b(y))(F.relu(n.a(x)))),
    ),
    Case(
        "use output_size=1 or nn.MaxPool2d",
        lambda: image(lambda n, x: n.pool(x), pool=nn.AdaptiveMaxPool2d(2)),
        lambda: image(lambda n, x: n.pool(x), pool=nn.MaxPool2d((4, 6))),
        same=True,
    ),
    Case(
        "use output_size=1 or nn.MaxPool1d",
        lambda: line(lambda n, x: F.adaptive_max_pool1d(x, 2)),
        lambda: line(lambda n, x: n.pool(x), pool=nn.MaxPool1d(8)),
        same=True,
    ),
    Case(
        "use nn.MaxPool1d or nn.AvgPool1d",
        lambda: line(lambda n, x: n.pool(x), pool=nn.LPPool1d(2, 2)),
        lambda: line(lambda n, x: n.pool(x), pool=nn.AvgPool1d(2)),
    ),
    Case(
        "use nn.MaxPool2d or nn.AvgPool2d",
        lambda: image(lambda n, x: n.pool(x), pool=nn.LPPool2d(2, 2)),
        lambda: image(lambda n, x: n.pool(x), pool=nn.MaxPool2d(2)),
    ),
    Case(
        "use nn.MaxPool3d or nn.AvgPool3d",
        lambda: volume(lambda n, x: n.pool(x), pool=nn.AdaptiveMaxPool3d(1)),
        lambda: volume(lambda n, x: n.pool(x), pool=nn.MaxPool3d((1, 8, 12))),
    ),
    Case(
        "use nn.MaxPool3d: the maximum of spikes is taken over windows",
        lambda: volume(lambda n, x: x.amax((2, 3, 4), keepdim=True)),
        lambda: volume(lambda n, x: n.pool(x), pool=nn.MaxPool3d((1, 8, 12))),
    ),
    Case(
        "use x.amax((2, 3))",
        lambda: image(lambda n, x: x.max(1, keepdim=True)[0]),
        lambda: flat(lambda n, x: x.amax((2, 3))),
    ),
    Case(
        "use its values, as in x.max(2).values: positions differ between time steps",
        lambda: flat(lambda n, x: (x.max(2)[1] + 0.5).flatten(1)),
        lambda: flat(lambda n, x: x.max(2).values.flatten(1)),
    ),
    Case(
        "use x.amax((2, 3))", lambda: flat(lambda n, x: x.amax(1).flatten(1)), lambda: flat(lambda n, x: x.amax((2, 3)))
    ),
    Case(
        "use x.amax(2)",
        lambda: line(lambda n, x: x.max(1, keepdim=True)[0]),
        lambda: line(lambda n, x: x.amax(2, keepdim=True)),
    ),
    Case(
        "use nn.AdaptiveAvgPool2d(1): spikes can only be averaged over rows, columns or both",
        lambda: image(lambda n, x: x.mean((1, 2), keepdim=True)),
        lambda: image(lambda n, x: n.pool(x), pool=nn.AdaptiveAvgPool2d(1)),
    ),
    Case(
        "use nn.AdaptiveAvgPool1d(1): spikes can only be averaged over rows, columns or both",
        lambda: line(lambda n, x: x.mean((1, 2), keepdim=True)),
        lambda: line(lambda n, x: n.pool(x), pool=nn.AdaptiveAvgPool1d(1)),
    ),
    Case(
        "use nn.Linear: spikes can only be averaged over rows, columns or both",
        lambda: flat(lambda n, x: x.flatten(1).mean(1, keepdim=True, dtype=torch.float32)),
        lambda: flat(lambda n, x: F.relu(n.a(x.flatten(1))), a=nn.Linear(768, 1)),
    ),
    Case(
        "pass keepdim=True: the mean of channels is then an image or a line of one channel",
        lambda: flat(lambda n, x: x.mean(1).flatten(1)),
        lambda: flat(lambda n, x: x.mean(1, keepdim=True).flatten(1)),
        same=True,
    ),
    Case(
        "pass constants as weight and bias, and numbers as stride, padding, dilation and groups",
        lambda: flat(lambda n, x: F.linear(x.flatten(1), n.c.x), c=Buffered(torch.ones(768))),
        lambda: flat(lambda n, x: F.linear(x.flatten(1), n.c.x), c=Buffered(torch.ones(2, 768))),
    ),
    Case(
        "use x.mean((2, 3), keepdim=True) times the number of pixels",
        lambda: flat(lambda n, x: x.sum((2, 3))),
        lambda: flat(lambda n, x: (x.mean((2, 3), keepdim=True) * 96).flatten(1)),
        same=True,
    ),
    Case(
        "pass no arguments but dim, keepdim, dtype",
        lambda: flat(lambda n, x: torch.mean(x, (2, 3), out=None)),
        lambda: flat(lambda n, x: torch.mean(x, axis=(2, 3))),
        same=True,
    ),
    # shapes
    Case(
        "use torch.flatten(x, 1)",
        lambda: flat(lambda n, x: x.mean((2, 3), True).squeeze()),
        lambda: flat(lambda n, x: torch.flatten(x.mean((2, 3), True), 1)),
        same=True,
    ),
    Case(
        "use nn.Flatten in place of a computed shape",
        lambda: flat(lambda n, x: x.view(4, -1)),
        lambda: flat(lambda n, x: n.f(x), f=nn.Flatten()),
        same=True,
    ),
    Case(
        "give the sizes of images as numbers, as in x.view(-1, 8, 7, 7)",
        lambda: flat(lambda n, x: x.flatten(1).view(-1, 8, x.size(2), x.size(3)).flatten(1)),
        lambda: flat(lambda n, x: x.flatten(1).view(-1, 8, 8, 12).flatten(1)),
        same=True,
    ),
    Case(
        "make images or lines of features [N, F]: other dimensions are not split",
        lambda: flat(lambda n, x: x.unflatten(1, (2, 4)).flatten(1)),
        lambda: flat(lambda n, x: x.flatten(1).unflatten(1, (8, 8, 12)).flatten(1)),
        same=True,
    ),
    Case(
        "repeat channels, as in x.repeat(1, 2, 1, 1), or rows and columns by nn.Upsample",
        lambda: image(lambda n, x: x.repeat(1, 1, 2, 1)),
        lambda: image(lambda n, x: x.repeat(1, 2, 1, 1)),
    ),
    Case(
        "use nn.ChannelShuffle: channels are viewed in groups only to shuffle them",
        lambda: image(lambda n, x: x.view(x.size(0), 2, 4, x.size(2), x.size(3)).flatten(1, 2)),
        lambda: image(lambda n, x: n.mix(x), mix=nn.ChannelShuffle(2)),
    ),
    Case(
        "pass example=, an input of ann, so that the sizes that forward computes with are numbers",
        lambda: image(lambda n, x: F.avg_pool2d(x, x.size(2) // 2)),
        lambda: image(lambda n, x: F.avg_pool2d(x, x.size(2) // 2)),
        then={"example": IMAGES},
        same=True,
    ),
    Case(
        "pass example=, an input of ann, so that the sizes that forward computes with are numbers",
        lambda: image(lambda n, x: x[:, : x.size(2) // 2 - 1]),
        lambda: image(lambda n, x: x[:, : x.size(2) // 2 - 1]),
        then={"example": IMAGES},
        same=True,
    ),
    Case(
        "use a number in place of a size that depends on the input",
        lambda: image(lambda n, x: n.f(x), f=Lambda(lambda x: x * len(x))),
        lambda: image(lambda n, x: x * 4),
        how={"example": IMAGES},
        same=True,
    ),
    Case(
        "count dimensions from the first",
        lambda: recorded(Lambda(lambda x: x.reshape(x.size(0), x.size(-1) * x.size(-2) * x.size(-3))), *read_out()),
        lambda: recorded(Lambda(lambda x: x.reshape(x.size(0), x.size(1) * x.size(2) * x.size(3))), *read_out()),
        how=SPIKES,
    ),
    Case(
        "flatten all dimensions, or put a ReLU before it",
        lambda: rows(lambda n, x: n.a(x).flatten(1, 2)),
        lambda: rows(lambda n, x: F.relu(n.a(x)).flatten(1, 2)),
    ),
    Case(
        "use images [N, C, H, W], for which it has a spiking form",
        lambda: line(lambda n, x: F.interpolate(x, scale_factor=2)),
        lambda: whole(
            lambda n, x: n.head(
                F.relu(n.last(F.interpolate(F.relu(n.first(x.unsqueeze(2))), scale_factor=2))).mean((2, 3))
            ),
            LINES,
            first=nn.Conv2d(3, 8, (1, 3)),
            last=nn.Conv2d(8, 6, 1),
            head=nn.Linear(6, 5),
        ),
    ),
    Case(
        "pass example=, an input of ann, so that features are counted, or put it where",
        lambda: flat(lambda n, x: x.flatten(1)[:, :96]),
        lambda: flat(lambda n, x: x.flatten(1)[:, :96]),
        then={"example": IMAGES},
        same=True,
    ),
    Case(
        "put it where the number of channels is known: before the flattening, or behind a weight layer",
        lambda: flat(lambda n, x: x.flatten(1) * 2),
        lambda: flat(lambda n, x: (x * 2).flatten(1)),
        same=True,
    ),
    Case(
        "put it where the number of channels is known",
        lambda: flat(lambda n, x: F.relu(x.flatten(1) - x.flatten(1) * 1)),
        lambda: flat(lambda n, x: F.relu(x - x * 1).flatten(1)),
    ),
    Case(
        "put it where the number of channels is known",
        lambda: flat(lambda n, x: x.flatten(1)[:, :96]),
        lambda: flat(lambda n, x: x[:, :1].flatten(1)),
        same=True,
    ),
    Case(
        "put it where the number of channels is known",
        lambda: recorded(Lambda(lambda x: x[:, :1]), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
        lambda: recorded(
            nn.Conv2d(2, 4, 3),
            nn.ReLU(),
            Lambda(lambda x: x[:, :1]),
            nn.Conv2d(1, 4, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 3),
        ),
        how={**SPIKES, "example": torch.zeros(2, 2, 6, 6)},
    ),
    Case(
        "pad rows and columns with zeros",
        lambda: image(lambda n, x: F.pad(x, (1, 1, 1, 1, 1, 1))),
        lambda: image(lambda n, x: F.pad(x, (1, 1, 1, 1))),
    ),
    Case(
        "pad rows and columns with zeros, or with mode 'reflect', 'replicate' or 'circular'",
        lambda: image(lambda n, x: F.pad(x, (1, -1, 0, 0), "replicate")),
        lambda: image(lambda n, x: F.pad(x, (1, 0, 0, 0), "replicate")),
    ),
    Case(
        "pad with zeros: other values are not silent neurons",
        lambda: image(lambda n, x: n.pad(x), pad=nn.ConstantPad2d(1, 1.0)),
        lambda: image(lambda n, x: n.pad(x), pad=nn.ConstantPad2d(1, 0.0)),
    ),
    Case(
        "pad with zeros, by the next layer or nn.ZeroPad2d",
        lambda: image(lambda n, x: n.pad(x), pad=nn.CircularPad2d(1)),
        lambda: image(lambda n, x: n.pad(x), pad=nn.ZeroPad2d(1)),
    ),
    Case(
        "pad with zeros, by the next layer or nn.ZeroPad2d",
        lambda: line(lambda n, x: n.a(n.pad(x)), pad=nn.ConstantPad1d(1, 0.0), a=nn.Conv1d(8, 8, 3)),
        lambda: line(lambda n, x: n.a(x), a=nn.Conv1d(8, 8, 3, padding=1)),
        same=True,
    ),
    Case(
        "use mode='nearest', 'bilinear' or 'bicubic', with numbers as size or scale_factor",
        lambda: image(lambda n, x: F.interpolate(x, scale_factor=2, mode="area")),
        lambda: image(lambda n, x: F.interpolate(x, scale_factor=2)),
        same=True,
    ),
    Case(
        "with mode='nearest', use a whole scale_factor: spikes are repeated",
        lambda: image(lambda n, x: F.interpolate(x, scale_factor=1.5)),
        lambda: image(lambda n, x: F.interpolate(x, scale_factor=2)),
    ),
    Case(
        "leave out recompute_scale_factor and antialias",
        lambda: image(lambda n, x: F.interpolate(x, scale_factor=2, mode="bilinear", antialias=True)),
        lambda: image(lambda n, x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    ),
    Case(
        "set recompute_scale_factor=None",
        lambda: image(lambda n, x: n.up(x), up=nn.Upsample(scale_factor=2, recompute_scale_factor=True)),
        lambda: image(lambda n, x: n.up(x), up=nn.Upsample(scale_factor=2)),
        same=True,
    ),
    Case(
        "pass example=, an input of ann",
        lambda: image(lambda n, x: asserted(x, x.size(2) == 8)),
        lambda: image(lambda n, x: asserted(x, x.size(2) == 8)),
        then={"example": IMAGES},
    ),
    # norms, weights, dropout
    Case(
        "use batch norm: its statistics are constants",
        lambda: image(lambda n, x: n.norm(x), norm=nn.GroupNorm(2, 8)),
        lambda: image(lambda n, x: n.norm(x), norm=nn.BatchNorm2d(8)),
    ),
    Case(
        "use batch norm: its statistics are constants",
        lambda: flat(lambda n, x: n.norm(n.a(x.flatten(1))).relu(), a=nn.Linear(768, 8), norm=nn.LayerNorm(8)),
        lambda: flat(lambda n, x: n.norm(n.a(x.flatten(1))).relu(), a=nn.Linear(768, 8), norm=nn.BatchNorm1d(8)),
    ),
    Case(
        "use batch norm: its statistics are constants",
        lambda: image(lambda n, x: F.group_norm(x, 2)),
        lambda: image(lambda n, x: n.norm(x), norm=nn.BatchNorm2d(8)),
    ),
    Case(
        "use nn.BatchNorm1d, nn.BatchNorm2d or nn.BatchNorm3d, which has parameters to share",
        lambda: image(lambda n, x: F.batch_norm(x, torch.zeros(8), torch.ones(8))),
        lambda: image(lambda n, x: n.norm(x), norm=nn.BatchNorm2d(8)),
    ),
    Case(
        "set track_running_stats=True",
        lambda: image(lambda n, x: n.norm(x), norm=nn.BatchNorm2d(8, track_running_stats=False)),
        lambda: image(lambda n, x: n.norm(x), norm=nn.BatchNorm2d(8, track_running_stats=True)),
    ),
    *(
        Case(f"use nn.{kind}, which has parameters to share", wrong, right)
        for kind, wrong, right in (
            (
                "Conv2d",
                lambda: image(lambda n, x: F.conv2d(x, n.w["x"]).relu(), w=constant(8, 8, 1, 1)),
                lambda: image(lambda n, x: n.w(x).relu(), w=conv(8, 8, 1)),
            ),
            (
                "Conv1d",
                lambda: line(lambda n, x: F.conv1d(x, n.w["x"]).relu(), w=constant(8, 8, 1)),
                lambda: line(lambda n, x: n.w(x).relu(), w=nn.Conv1d(8, 8, 1)),
            ),
            (
                "Conv3d",
                lambda: volume(lambda n, x: F.conv3d(x, n.w["x"]).relu(), w=constant(8, 8, 1, 1, 1)),
                lambda: volume(lambda n, x: n.w(x).relu(), w=nn.Conv3d(8, 8, 1)),
            ),
            (
                "ConvTranspose2d",
                lambda: image(lambda n, x: F.conv_transpose2d(x, n.w["x"]).relu(), w=constant(8, 8, 1, 1)),
                lambda: image(lambda n, x: n.w(x).relu(), w=nn.ConvTranspose2d(8, 8, 1)),
            ),
            (
                "Linear",
                lambda: flat(lambda n, x: F.linear(x.flatten(1), n.w["x"]).relu(), w=constant(4, 768)),
                lambda: flat(lambda n, x: n.w(x.flatten(1)).relu(), w=nn.Linear(768, 4)),
            ),
        )
    ),
    Case(
        "or register a WeightRule for Square if it computes the same",
        lambda: image(lambda n, x: n.a(x).relu(), a=Square(8, 8, 1)),
        lambda: ruled(Square, WeightRule(TandemConv2d, nn.BatchNorm2d), 8, 8, 1),
        same=True,
    ),
    Case(
        "use nn.Conv1d, nn.Conv2d, nn.Conv3d or nn.ConvTranspose2d",
        lambda: line(lambda n, x: F.relu(n.a(x)), a=nn.ConvTranspose1d(8, 8, 3)),
        lambda: line(lambda n, x: F.relu(n.a(x)), a=nn.Conv1d(8, 8, 3)),
    ),
    Case(
        "call it with its input alone",
        lambda: image(lambda n, x: F.relu(n.up(x, output_size=[17, 25])), up=nn.ConvTranspose2d(8, 8, 2, 2)),
        lambda: image(lambda n, x: F.relu(n.up(x)), up=nn.ConvTranspose2d(8, 8, 2, 2, output_padding=1)),
        same=True,
    ),
    Case(
        "use nn.Dropout, nn.Dropout2d or nn.Dropout3d",
        lambda: image(lambda n, x: n.drop(x), drop=nn.AlphaDropout(0.5)),
        lambda: image(lambda n, x: n.drop(x), drop=nn.Dropout(0.5)),
        same=True,
    ),
    Case(
        "use nn.Dropout, or training=self.training: it drops in eval mode too",
        lambda: image(lambda n, x: F.dropout(x, 0.5)),
        lambda: image(lambda n, x: F.dropout(x, 0.5, n.training)),
    ),
    Case(
        "use convolutions and linear layers",
        lambda: line(lambda n, x: n.rnn(x)[0].relu(), rnn=nn.GRU(16, 16)),
        lambda: line(lambda n, x: n.rnn(x).relu(), rnn=nn.Conv1d(8, 8, 3)),
    ),
    # what changes the ANN's layers
    Case(
        "call torch.nn.utils.remove_weight_norm on it",
        lambda: changed(lambda n: nn.utils.weight_norm(n.same[0])),
        lambda: changed(lambda n: nn.utils.remove_weight_norm(nn.utils.weight_norm(n.same[0]))),
    ),
    Case(
        "call torch.nn.utils.remove_spectral_norm on it",
        lambda: changed(lambda n: nn.utils.spectral_norm(n.same[0])),
        lambda: changed(lambda n: nn.utils.remove_spectral_norm(nn.utils.spectral_norm(n.same[0]))),
    ),
    Case(
        "call torch.nn.utils.prune.remove on it",
        lambda: changed(lambda n: prune.l1_unstructured(n.same[0], "weight", 0.5)),
        lambda: changed(lambda n: prune.remove(prune.l1_unstructured(n.same[0], "weight", 0.5), "weight")),
    ),
    Case(
        "remove its hooks",
        lambda: changed(lambda n: n.same[0].register_forward_hook(print)),
        lambda: changed(lambda n: n.same[0].register_forward_hook(print).remove()),
    ),
    Case(
        "remove the parametrization of its weight",
        lambda: changed(lambda n: parametrizations.weight_norm(n.same[0])),
        lambda: changed(
            lambda n: parametrize.remove_parametrizations(parametrizations.weight_norm(n.same[0]), "weight")
        ),
    ),
    Case(
        "write out of place: its input is used again later",
        lambda: image(lambda n, x: (lambda y: F.relu_(y) + y)(n.a(x)), a=conv(8, 8)),
        lambda: image(lambda n, x: (lambda y: F.relu(y) + y)(n.a(x)), a=conv(8, 8)),
    ),
    # spikes of different weight
    Case(
        "put a weight layer between the concatenation and it: it needs spikes of one weight",
        lambda: image(lambda n, x: F.pixel_shuffle(torch.cat([x[:, :6], F.relu(n.a(x))], 1), 2), a=conv(8, 6)),
        lambda: image(
            lambda n, x: F.pixel_shuffle(F.relu(n.b(torch.cat([x[:, :6], F.relu(n.a(x))], 1))), 2),
            a=conv(8, 6),
            b=conv(12, 12),
        ),
        how={"calibrate": IMAGES},
    ),
    Case(
        "pass example=, an input of ann, so that the trace knows the number of dimensions",
        lambda: made(two_rows, ROWS, a=nn.Linear(5, 6), b=nn.Linear(5, 6), c=nn.Linear(6, 4)),
        lambda: made(two_rows, ROWS, a=nn.Linear(5, 6), b=nn.Linear(5, 6), c=nn.Linear(6, 4)),
        how={"calibrate": {"a": 4.0, "b": 3.0}},
        then={"example": ROWS},
    ),
    Case(
        "pass per_channel=False: it needs spikes of one weight",
        lambda: image(lambda n, x: F.pixel_shuffle(x, 2)),
        lambda: image(lambda n, x: F.pixel_shuffle(x, 2)),
        how={"calibrate": IMAGES, "per_channel": True},
        then={"per_channel": False},
    ),
    Case(
        "use one of its 2 pieces, not number 2",
        lambda: whole(lambda n, x: n.b(F.relu(n.a(x)).chunk(2, 1)[2]), None, a=conv(3, 4), b=conv(2, 2)),
        lambda: whole(lambda n, x: n.b(F.relu(n.a(x)).chunk(2, 1)[1]), a=conv(3, 4), b=conv(2, 2)),
    ),
    Case(
        "use nn.BatchNorm2d after a",
        lambda: whole(
            lambda n, x: n.b(F.relu(n.norm(n.a(x)))), None, a=conv(3, 4), b=conv(4, 2), norm=nn.BatchNorm1d(4)
        ),
        lambda: whole(lambda n, x: n.b(F.relu(n.norm(n.a(x)))), a=conv(3, 4), b=conv(4, 2), norm=nn.BatchNorm2d(4)),
    ),
    # rules of one's own
    Case(
        "its rule must put its parameters into the spiking twin, to train them there",
        lambda: ruled(Square, lambda call: call.input, 8, 8, 1),
        lambda: ruled(Square, WeightRule(TandemConv2d, nn.BatchNorm2d), 8, 8, 1),
    ),
    Case(
        "build it from parameters and buffers of the ANN: both twins have the ANN's state_dict",
        lambda: ruled(Buffered, lambda call: call.apply(Buffered(torch.ones(1))), torch.ones(1)),
        lambda: ruled(Buffered, lambda call: call.apply(Buffered(call.module.x)), torch.ones(1)),
    ),
    # QCFS activations
    Case(
        "pass calibrate={} and neuron=IF(initial=0.5, two_phase=True), as tandem_cuda.from_qcfs does",
        lambda: levelled(qcfs_anns.IF(8)),
        lambda: levelled(qcfs_anns.IF(8)),
        then=COUNTED_LEVELS,
    ),
    Case(
        "pass neuron=IF(initial=0.5, two_phase=True): 8 radix spikes have 255 levels, and its L is 8",
        lambda: levelled(qcfs_anns.IF(8)),
        lambda: levelled(qcfs_anns.IF(8)),
        how={"calibrate": {}},
        then=COUNTED_LEVELS,
    ),
    Case(
        "give it a positive threshold: its thresh is -1",
        lambda: levelled(qcfs_anns.IF(8, -1.0)),
        lambda: levelled(qcfs_anns.IF(8, 1.0)),
        how=COUNTED_LEVELS,
    ),
    Case(
        "give it a whole number of levels, at least 1: its L is 7.5",
        lambda: levelled(qcfs_anns.IF(7.5)),
        lambda: levelled(qcfs_anns.IF(8)),
        how=COUNTED_LEVELS,
    ),
    Case(
        "call tandem_cuda.from_qcfs with threshold= and levels=, the names of the attributes",
        lambda: levelled(qcfs_anns.MyFloor(t=8)),
        lambda: levelled(qcfs_anns.MyFloor(t=8), "up", "t"),
        how=COUNTED_LEVELS,
    ),
    Case(
        "let it compute thresh * clamp(floor(x / thresh * L + 1/2) / L, 0, 1), and no spikes: it returns",
        lambda: levelled(qcfs_anns.IF(8, T=8)),
        lambda: levelled(qcfs_anns.IF(8, T=0)),
        how=COUNTED_LEVELS,
    ),
    # whatever else
    Case(
        "move it before the first weight layer or after the last one",
        lambda: whole(lambda n, x: n.b(F.relu(n.a(x)).flip(3)), a=conv(3, 4), b=conv(4, 2)),
        lambda: whole(lambda n, x: n.b(F.relu(n.a(x.flip(3)))), a=conv(3, 4), b=conv(4, 2)),
    ),
    Case(
        "move it before the first weight layer or after the last one",
        lambda: whole(lambda n, x: n.b(F.relu(n.a(x)).flip(3)), a=conv(3, 4), b=conv(4, 2)),
        lambda: whole(lambda n, x: n.b(F.relu(n.a(x))).flip(3), a=conv(3, 4), b=conv(4, 2)),
    ),
    Case(
        "move it after the last weight layer",
        lambda: recorded(Lambda(lambda x: x.flip(3)), *cell()),
        lambda: recorded(*cell(), Lambda(lambda x: x.flip(1))),
        how=SPIKES,
    ),
]


# --- arguments -------------------------------------------------------------------------------------------------------


def small():
    """A network that converts."""
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(384, 3)).eval()


def quantised():
    """The same network with 8 bits, by torch.ao.quantization."""
    from torch.ao import quantization

    ann = nn.Sequential(quantization.QuantStub(), *small(), quantization.DeQuantStub()).eval()
    ann.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    prepared = quantization.prepare(ann)
    prepared(IMAGES)
    return quantization.convert(prepared)


def plain(**settings):
    return lambda: convert(small(), **{"time_steps": 8, **settings})


def of(run, **settings):
    """With a forward of its own."""
    return lambda: convert(Net(run, a=conv(3, 4), b=conv(4, 2)), 8, **settings)


def without_gradients(layer, x):
    with torch.no_grad():
        return layer(x)


def frozen_first(trained):
    """A network whose first layer is not trained."""
    net = Net(lambda n, x: n.b(F.relu(without_gradients(n.a, x))), a=conv(3, 4), b=conv(4, 2))
    net.a.requires_grad_(trained)
    return net


class Positive(torch.autograd.Function):
    """A ReLU with a backward of its own."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        return grad


def repeated(**settings):
    """Of a network that calls a layer twice."""
    net = Net(lambda n, x: n.b(F.relu(n.a(F.relu(n.a(x))))), a=nn.Conv2d(3, 3, 3, padding=1), b=conv(3, 2))
    return lambda: convert(net, 8, **settings)


def silent(bias):
    net = small()
    nn.init.constant_(net[0].bias, bias)
    return lambda: convert(net, 8, calibrate=IMAGES)


def endless():
    net = small()
    nn.init.constant_(net[0].weight, float("inf"))
    return convert(net, 8, calibrate=IMAGES)


def aliased(n, x):
    y = x = n.a(x)
    x += 1
    return n.b(F.relu(y))


def unaliased(n, x):
    x = n.a(x)
    x = x + 1
    return n.b(F.relu(x))


class Anything(Net):
    def forward(self, *inputs):
        return self.run(self, inputs[0])


def anything(**settings):
    return lambda: convert(Anything(lambda n, x: n.b(F.relu(n.a(x))), a=conv(3, 4), b=conv(4, 2)), 8, **settings)


def swish(replace):
    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return convert(nn.Sequential(conv(3, 4), nn.SiLU(), conv(4, 2)), 8, replace=replace)

    return make


def overwriting(in_place):
    """With an activation whose input is used again."""

    def run(n, x):
        x = n.a(x)
        return n.b(F.relu(F.silu(x, inplace=in_place) + x))

    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return convert(Net(run, a=conv(3, 4), b=conv(4, 2)), 8, example=IMAGES, replace={F.silu: F.relu})

    return make


def with_silu(**settings):
    """A function beside a module with a rule, which torch.fx sees as one call."""

    def make():
        rules.RULES[OwnIdentity] = lambda call: call.input
        net = Net(lambda n, x: n.b(F.silu(n.same(n.a(x)))), a=conv(3, 4), same=OwnIdentity(), b=conv(4, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return convert(net, 8, replace={F.silu: F.relu}, **settings)

    return make


def sized(n, x):
    return n.b(F.relu(n.a(x)) if x.size(2) > 4 else n.a(x))


def returning(x):
    def make():
        return convert(ruled(Buffered, lambda call: x or call.input, torch.ones(1))[0], 8)

    return make


LEVELS = {"0": 1.0, "2": 1.0}
CHANNELS = {"0": torch.ones(4), "2": torch.ones(4)}


def toggled(n, x):
    """Different in the first and in the third of three calls, but not in the second."""
    n.calls = getattr(n, "calls", -1) + 1
    return n.b(F.relu(n.a(x)) * (1 + n.calls // 2))


def overridden(ann):
    ann.forward = lambda x: x
    return ann


def two_inputs(**how):
    def converted():
        net = Pair(lambda n, x, y: n.b(F.relu(n.a(x) + n.a(y))), a=conv(3, 4), b=conv(4, 2))
        snn = convert(net.eval(), 8, **how)
        return lambda x: snn(x, x)

    return converted


WRONG_TYPES = [
    ("ann must be an nn.Module", lambda: convert(F.relu, 8), plain()),
    (
        r"float32 or float64, got torch.float16 in 0.weight, 0.bias, 2.weight and 3 more; call ann.float\(\)",
        lambda: convert(small().half(), 8),
        lambda: convert(small().half().float(), 8),
    ),
    (
        "parameters of float32 with weights='int8'",
        lambda: convert(small().double(), 8, weights="int8"),
        plain(weights="int8"),
    ),
    (
        "spiking_layers must be an int",
        plain(spiking_layers=1.0, calibrate=IMAGES),
        plain(spiking_layers=1, calibrate=IMAGES),
    ),
    (
        "per_channel must be True, False or None",
        plain(per_channel=1, calibrate=IMAGES),
        plain(per_channel=True, calibrate=IMAGES),
    ),
    ("learn_thresholds must be True or False", plain(learn_thresholds=1), plain(learn_thresholds=True)),
    ("replace must be a dict", swish([nn.SiLU]), swish({nn.SiLU: nn.ReLU})),
    (
        r"keys of replace must be module classes, functions or names, got SiLU\(\)",
        swish({nn.SiLU(): nn.ReLU}),
        swish({nn.SiLU: nn.ReLU}),
    ),
    (
        r"functions in replace must be torch's, got .*sized: make it a module of the ANN, whose class replace can name",
        swish({sized: nn.ReLU}),
        swish({nn.SiLU: nn.ReLU}),
    ),
    (
        r"replace\[SiLU\] must be a module class, a module or a function, got 'ReLU'",
        swish({nn.SiLU: "ReLU"}),
        swish({nn.SiLU: F.relu}),
    ),
    ("example must be a Tensor or several, got int", of(sized, example=3), of(sized, example=IMAGES)),
    ("example must be a Tensor or several, got int", of(sized, example=[IMAGES, 3]), of(sized, example=[IMAGES])),
    ("calibrate must be a Tensor, a Dataset or an iterable of batches", plain(calibrate=3), plain(calibrate=IMAGES)),
    ("calibrate must be a Tensor, a Dataset or an iterable of batches", plain(calibrate="a"), plain(calibrate=IMAGES)),
    ("a rule must return its call's input or the result of a method of the call", returning(3), returning(None)),
]
WRONG_VALUES = [
    ("ann must have a weight layer and a ReLU", lambda: convert(conv(3, 4), 8), plain()),
    (
        "ann must be an ANN, got a TandemNetwork, .* pass the network that it was made from",
        lambda: convert(plain()(), 8),
        lambda: convert(plain()().ann(), 8),
    ),
    (
        "network of floats, got quantised layers of torch.ao; tandem_cuda.from_quantised takes networks",
        lambda: convert(quantised(), 8),
        lambda: from_quantised(quantised(), IMAGES),
    ),
    ("mode must be 'constant', 'impulse', 'radix' or 'spikes', got 'rate'", plain(mode="rate"), plain(mode="impulse")),
    (
        "mode must be 'impulse', 'radix' or 'spikes' with RadixIF neurons, got 'constant'",
        plain(mode="constant", neuron=RadixIF()),
        plain(mode="impulse", neuron=RadixIF()),
    ),
    (
        "neuron must wait for all time steps with mode 'radix', .* got IF",
        plain(mode="radix", neuron=IF()),
        lambda: lambda x: convert(small(), 8, mode="radix", neuron=IF(two_phase=True))(x.sigmoid()),  # pixels
    ),
    (r"spiking_layers must be at least 1 \(with none, use the ANN", plain(spiking_layers=0, calibrate=IMAGES), small),
    (
        "spiking_layers must be at most 2",
        plain(spiking_layers=3, calibrate=IMAGES),
        plain(spiking_layers=2, calibrate=IMAGES),
    ),
    (
        "calibrate must be given with spiking_layers=1 of 2",
        plain(spiking_layers=1),
        plain(spiking_layers=1, calibrate=IMAGES),
    ),
    (
        r"percentile must be in \(0, 100\], got 0",
        plain(percentile=0, calibrate=IMAGES),
        plain(percentile=100, calibrate=IMAGES),
    ),
    (
        "calibrate must be inputs of the ANN with per_channel=True",
        plain(per_channel=True),
        plain(per_channel=True, calibrate=IMAGES),
    ),
    (
        "mode must be that of Encode with correct_bias=True",
        plain(correct_bias=True, mode="spikes", calibrate=IMAGES),
        plain(correct_bias=True, calibrate=IMAGES),
    ),
    ("engine must be one of", plain(engine="fast"), plain(engine="event")),
    ("weights must be None, 'int8' or 'int16'", plain(weights=8), plain(weights="int8")),
    ("neuron must be IF", plain(neuron=LIF(), calibrate=IMAGES), plain(neuron=IF(), calibrate=IMAGES)),
    ("gates must be None or 'analogue'", plain(gates=True), plain(gates="analogue")),
    (
        "replace must name modules of the ANN or functions that its forward calls, got gelu; it calls none",
        swish({F.gelu: nn.ReLU}),
        swish({F.silu: nn.ReLU}),
    ),
    (
        "modules that replace functions must have no parameters, got PReLU: make it a module of the ANN",
        swish({F.silu: nn.PReLU}),
        swish({nn.SiLU: nn.PReLU}),
    ),
    (
        "functions that are replaced must not overwrite a value that is used again, got silu in .*: call it out of pl",
        overwriting(True),
        overwriting(False),
    ),
    (
        "replace must name classes of modules in ann, got GELU; it has Conv2d, Sequential, SiLU",
        swish({nn.GELU: nn.ReLU}),
        swish({nn.SiLU: nn.ReLU}),
    ),
    (
        "example must be given if functions are replaced in a network with same, which may call them, too",
        with_silu(),
        with_silu(example=IMAGES),
    ),
    ("pass example=, an input of ann", of(sized), of(sized, example=IMAGES)),
    (
        "control flow must not depend on the values of tensors, as in .*: use operations on tensors",
        of(lambda n, x: n.b(F.relu(n.a(x)) if x.sum() > 0 else n.a(x))),
        of(lambda n, x: n.b(F.relu(n.a(x)))),
    ),
    (
        r"ann must take inputs of the example's sizes, .* for \[2, 5, 8, 12\] its forward raises RuntimeError",
        plain(example=torch.rand(1, 5, 8, 12)),
        plain(example=torch.rand(1, 3, 8, 12)),
    ),
    (
        "ann must be a network in Python, got an OptimizedModule: pass the network that torch.compile was given",
        lambda: convert(torch.compile(small()), 8),
        plain(),
    ),
    (
        r"example must be \[N, ...\] with N > 0, got \[0, 3, 8, 12\]",
        of(sized, example=IMAGES[:0]),
        of(sized, example=IMAGES),
    ),
    (r"example must be None if forward takes \*args", anything(example=IMAGES), anything()),
    ("example must hold x, got 2 tensors", of(sized, example=(IMAGES, IMAGES)), of(sized, example=(IMAGES,))),
    (
        r"does a forward use self.training\?",
        of(lambda n, x: n.b(F.relu(n.a(x)) * (2 if n.training else 1))),
        of(lambda n, x: n.b(F.relu(n.a(x)) * 2)),
    ),
    (
        "does a forward write to a tensor that has another name",
        of(aliased, calibrate=IMAGES),
        of(unaliased, calibrate=IMAGES),
    ),
    ("calibrate must yield batches of at least one sample", plain(calibrate=IMAGES[:0]), plain(calibrate=IMAGES)),
    (
        "calibrate must yield a Tensor input, a tuple that begins with it, or a dict with it, got int in batch 0",
        plain(calibrate=[3]),
        plain(calibrate=[IMAGES]),
    ),
    (
        "calibrate must yield as many samples of each input, got 4 of x and 2 of y in batch 0",
        two_inputs(calibrate=[(IMAGES, IMAGES[:2])]),
        two_inputs(calibrate=[(IMAGES, IMAGES)]),
    ),
    (
        r"must not draw random numbers in forward.* Use nn.Dropout, or torchvision.ops.StochasticDepth",
        of(lambda n, x: n.b(F.relu(n.a(x)) if random.random() < 2 else n.a(x))),
        of(lambda n, x: n.b(F.dropout(F.relu(n.a(x)), 0.5, n.training))),
    ),
    (
        r"must do the same in every call, got .* \(does a forward change attributes that it reads\?\)",
        of(toggled),
        of(lambda n, x: n.b(F.relu(n.a(x)) * 2)),
    ),
    (
        "per_channel must be False with integer weights of a layer that is called several times.* and calls of a",
        repeated(weights="int8", calibrate=IMAGES, per_channel=True),
        repeated(weights="int8", calibrate=IMAGES, per_channel=False),
    ),
    (
        r"got torch.no_grad\(\) around a in a: call requires_grad_\(False\) for parameters that are not trained",
        lambda: convert(frozen_first(trained=True), 8),
        lambda: convert(frozen_first(trained=False), 8),
    ),
    (
        "got the torch.autograd.Function Positive in Net, whose backward would be lost: use functions of torch",
        of(lambda n, x: n.b(Positive.apply(n.a(x)))),
        of(lambda n, x: n.b(F.relu(n.a(x)))),
    ),
    (
        "must not change parameters or buffers in forward.*, got changes of b.bias: change them outside of forward",
        of(lambda n, x: (n.b.bias.data.clamp_(-1, 1), n.b(F.relu(n.a(x))))[1]),
        of(lambda n, x: n.b(F.relu(n.a(x)))),
    ),
    (
        "must have the forward of its class, got a forward of its own",
        lambda: convert(overridden(small()), 8),
        plain(),
    ),
    ("calibrate must yield at least one batch, got none", plain(calibrate=[]), plain(calibrate=[IMAGES])),
    ("calibrate must be finite, got NaN or infinity in batch 0", plain(calibrate=IMAGES / 0), plain(calibrate=IMAGES)),
    ("activations of the ANN must be finite, got NaN or infinity after 0", endless, plain(calibrate=IMAGES)),
    (
        "calibrate must activate every layer, got data that never makes the output of 0 positive",
        silent(-1e3),
        silent(0.0),
    ),
    (
        r"calibrate must hold a level for each spiking layer, got none for \['2'\]",
        plain(calibrate={"0": 1.0}),
        plain(calibrate=LEVELS),
    ),
    (
        r"calibrate\['0'\] must be \[4\], got \[3\]",
        plain(calibrate={**CHANNELS, "0": torch.ones(3)}),
        plain(calibrate=CHANNELS),
    ),
    (
        r"calibrate\['a'\] must be 2, the level of the ANN's own activation, got 3.0; leave it out \(calibrate=\{\}",
        lambda: convert(levelled(qcfs_anns.IF(8))[0], 8, **COUNTED_LEVELS | {"calibrate": {"a": 3.0}}),
        lambda: convert(levelled(qcfs_anns.IF(8))[0], 8, **COUNTED_LEVELS),
    ),
    (r"calibrate\['0'\] must be finite", plain(calibrate={**LEVELS, "0": float("inf")}), plain(calibrate=LEVELS)),
    (r"calibrate\['0'\] must be positive", plain(calibrate={**LEVELS, "0": -1.0}), plain(calibrate=LEVELS)),
]
ARGUMENTS = [*((TypeError, *each) for each in WRONG_TYPES), *((ValueError, *each) for each in WRONG_VALUES)]
"""What convert refuses: error, message, a call that is refused, and one that follows the advice."""


@functools.cache
def refusal(case):
    """What convert says about the network that does not convert: the advice alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ann, _ = case.wrong()
    with pytest.raises(ValueError, match="these are not:\n") as error:
        convert(ann, 8, **case.how)
    lines = [line for line in str(error.value).splitlines()[1:] if not line.startswith("   ")]
    return [line.split(": ", 1)[1] for line in lines]


@pytest.mark.parametrize("case", PARTS, ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parts(case):
    (why,) = refusal(case)
    assert case.why in why
    settings = {**case.how, **case.then}
    ann, x = case.right()
    with pytest.warns(UserWarning, match="wants fine-tuning") if "replace" in settings else contextlib.nullcontext():
        snn = convert(ann, 8, **settings)
    counts = x.count if isinstance(x, SpikeTrain) else x
    with torch.no_grad():
        out, want = snn(x), ann(counts)
        assert out.shape == want.shape
        assert out.isfinite().all()
        if case.same:
            other = case.wrong()[0]
            other.load_state_dict(ann.state_dict())
            torch.testing.assert_close(other(counts), want)


@pytest.mark.parametrize(("error", "message", "wrong", "right"), ARGUMENTS, ids=[each[1] for each in ARGUMENTS])
def test_arguments(error, message, wrong, right):
    with pytest.raises(error, match=message):
        wrong()
    assert right()(IMAGES).isfinite().all()


# --- all of it -------------------------------------------------------------------------------------------------------


class Texts:
    """The messages in the source of convert, as patterns."""

    def __init__(self):
        folder = Path(advice.__file__).parent
        self.modules = [ast.parse(path.read_text()) for path in sorted(folder.glob("*.py"))]
        nodes = [node for tree in self.modules for node in ast.walk(tree)]
        self.functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]

    def advice(self):
        """Yield what is said of parts that cannot be converted."""
        for why in [*(why for _, why in advice._ADVICE), *advice.FUNCTION_ADVICE.values()]:
            yield re.escape(why)
        for why in advice.WEIGHT_FUNCTIONS.values():
            yield re.escape(why)
        for function in self.functions:
            for call in ast.walk(function):
                if not isinstance(call, ast.Call):
                    continue
                name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                position = {"Unconvertible": 0, "_problem": 1, "Problem": 3}.get(name)
                if position is not None:
                    yield from self.of(call.args[position], function)

    def errors(self):
        """Yield the messages of other errors."""
        for function in self.functions:
            for node in ast.walk(function):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                    for text in self.of(node.exc.args[0], function):
                        if text.startswith("convert:") and text != r"convert:\ .+":
                            yield text

    def of(self, x, function):
        """Yield the texts that an expression can have."""
        if isinstance(x, ast.Constant):
            yield re.escape(x.value or "")
        elif isinstance(x, ast.JoinedStr):
            yield "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in x.values)
        elif isinstance(x, ast.IfExp):
            yield from self.of(x.body, function)
            yield from self.of(x.orelse, function)
        elif isinstance(x, ast.BoolOp):
            for value in x.values:
                yield from self.of(value, function)
        elif isinstance(x, ast.Name):
            yield from self.named(x.id, function)
        elif isinstance(x, ast.Call):
            yield from self.returned(x, function)
        elif not isinstance(x, (ast.Subscript, ast.Attribute)):  # of tables, and of what has been raised
            raise AssertionError(f"an advice that this test cannot read: {ast.unparse(x)} in {function.name}")

    def named(self, name, function):
        """Yield those of a variable."""
        found = name in [argument.arg for argument in function.args.args]  # then callers say the rest
        for tree in (function, *self.modules):
            nodes = ast.walk(tree) if tree is function else tree.body
            for node in nodes:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets) and node.value:
                    found = True
                    yield from self.of(node.value, function)
            if found:
                return
        raise AssertionError(f"an advice that this test cannot read: {name} in {function.name}")

    def returned(self, call, function):
        """Yield those that a call returns."""
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("format", "replace"):
            for text in self.of(call.func.value, function):
                text = text.replace(r"\{\{", "<").replace(r"\}\}", ">")
                yield re.sub(r"\\{\w+\\}", ".+", text).replace("<", r"\{").replace(">", r"\}")
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "get":
            yield from [text for default in call.args[1:] for text in self.of(default, function)]
        elif isinstance(call.func, ast.Name) and call.func.id == "next":
            yield from self.of(call.args[1], function)
        elif isinstance(call.func, ast.Name) and call.func.id == "str":
            return
        else:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
            for called in self.functions:
                for node in ast.walk(called) if called.name == name else ():
                    if isinstance(node, ast.Return) and node.value is not None:
                        yield from self.of(node.value, called)


def test_there_is_a_case_for_each_advice():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = [why for case in PARTS for why in refusal(case)]
    texts = [text for text in {*Texts().advice()} if text]
    assert len(texts) > 60
    assert sorted(text for text in texts if not any(re.fullmatch(text, why) for why in said)) == []


def test_there_is_a_case_for_each_error():
    said = []
    for expected, _, wrong, _ in ARGUMENTS:
        with pytest.raises(expected) as error:
            wrong()
        said.append(str(error.value))
    texts = [text for text in {*Texts().errors()} if "these\\ are\\ not" not in text]
    assert len(texts) > 30
    assert sorted(text for text in texts if not any(re.fullmatch(text, why, re.DOTALL) for why in said)) == []


# --- what needs no advice --------------------------------------------------------------------------------------------


def features(x):
    """The number of features, as a loop over sizes counts them."""
    number = 1
    for size in x.size()[1:]:
        number *= size
    return number


def unpacked(x):
    batch, channels, height, width = x.shape
    return x.view(batch, width * channels * height)


FLATTENED = {
    "-1, product": lambda x: x.view(-1, x.size(1) * x.size(2) * x.size(3)),
    "unpacked": unpacked,
    "reshape": lambda x: x.reshape(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]),
    "keyword": lambda x: x.reshape(shape=(x.shape[0], x.shape[-1] * x.shape[-2] * x.shape[-3])),
    "torch.reshape": lambda x: torch.reshape(x, (x.size(0), x.size(3) * (x.size(2) * x.size(1)))),
    "loop": lambda x: x.view(-1, features(x)),
    "numel": lambda x: x.view(-1, x.numel() // x.size(0)),
    "nelement": lambda x: x.view(x.size(0), x.nelement() // x.size(0)),
    "data": lambda x: x.view(x.data.size(0), -1),
    "halves": lambda x: x.view(-1, x.size(1) * x.size(2) * x.size(3) // 4 * 4),
}


@pytest.mark.parametrize("view", FLATTENED.values(), ids=FLATTENED)
def test_flattening_by_computed_sizes(view):
    (ann, x), (other, _) = flat(lambda n, x: view(x)), flat(lambda n, x: x.flatten(1))
    other.load_state_dict(ann.state_dict())
    settings = {"calibrate": x, "per_channel": True}
    snn, want = convert(ann, 8, example=x, **settings), convert(other, 8, **settings)
    same(snn(x).detach(), want(x).detach())
    same(freeze(snn)(x).detach(), want(x).detach())
    if view is not FLATTENED["loop"]:  # which needs the example
        same(convert(ann, 8)(x).detach(), convert(other, 8)(x).detach())


SAME = {
    "clamp_min": (image, lambda n, x: n.a(x).clamp_min(0), rectified),
    "torch.clamp_min": (image, lambda n, x: torch.clamp_min(n.a(x), min=0.0), rectified),
    "relu of a keyword": (image, lambda n, x: F.relu(input=n.a(x)), rectified),
    "clamp_max": (image, lambda n, x: F.relu(n.a(x)).clamp_max(0.3), lambda n, x: F.relu(n.a(x)).clamp(0, 0.3)),
    "alpha": (image, lambda n, x: F.relu(torch.add(n.a(x), x, alpha=2)), lambda n, x: F.relu(n.a(x) + 2 * x)),
    "alpha of sub": (image, lambda n, x: F.relu(n.a(x).sub(x, alpha=2)), lambda n, x: F.relu(n.a(x) + -2 * x)),
    "alpha of a number": (image, lambda n, x: torch.add(x, 1, alpha=2), lambda n, x: x + 2),
    "alpha of 1": (image, lambda n, x: F.relu(torch.add(n.a(x), other=x, alpha=1)), lambda n, x: F.relu(n.a(x) + x)),
    "multiply": (image, lambda n, x: x.multiply(0.5), lambda n, x: x * 0.5),
    "number of channels": (image, lambda n, x: x * (1 / x.size(1)), lambda n, x: x * 0.125),
    "difference of channels": (image, lambda n, x: x[:, : x.size(1) - 2], lambda n, x: x[:, :6]),
    "windows of a shape": (flat, lambda n, x: F.avg_pool2d(x, x.shape[2:]).flatten(1), lambda n, x: x.mean((2, 3))),
    "flatten(2)": (flat, lambda n, x: x.view(x.size(0), x.size(1), -1).mean(2), lambda n, x: x.flatten(2).mean(2)),
    "max_pool1d": (line, lambda n, x: F.max_pool1d(x, 2), lambda n, x: n.pools[0](x)),
    "torch.max_pool1d": (line, lambda n, x: torch.max_pool1d(x, 2), lambda n, x: n.pools[0](x)),
    "avg_pool1d": (line, lambda n, x: F.avg_pool1d(x, 3, 2, 1), lambda n, x: n.pools[1](x)),
    "adaptive_avg_pool1d": (line, lambda n, x: F.adaptive_avg_pool1d(x, 4), lambda n, x: n.pools[2](x)),
    "adaptive_max_pool1d": (line, lambda n, x: F.adaptive_max_pool1d(x, 1), lambda n, x: F.max_pool1d(x, 16)),
    "amax of a line": (line, lambda n, x: x.amax(2, keepdim=True), lambda n, x: F.max_pool1d(x, 16)),
    "axis": (flat, lambda n, x: torch.mean(x, axis=(2, 3)), lambda n, x: x.mean((2, 3))),
    "assertions": (image, lambda n, x: asserted(x, x.dim() == 4), lambda n, x: x),
    "size of spikes": (image, lambda n, x: asserted(x, x.size(1) == 8), lambda n, x: x),
}


@pytest.mark.parametrize(("build", "run", "plain"), SAME.values(), ids=SAME)
def test_plain_equivalents(build, run, plain):
    layer = nn.Conv1d(8, 8, 3, padding=1) if build is line else conv(8, 8)
    pools = nn.ModuleList([nn.MaxPool1d(2), nn.AvgPool1d(3, 2, 1), nn.AdaptiveAvgPool1d(4)])
    (ann, x), (other, _) = (build(f, a=copy.deepcopy(layer), pools=pools) for f in (run, plain))
    other.load_state_dict(ann.state_dict())
    torch.testing.assert_close(ann(x), other(x))
    for settings in ({}, {"calibrate": x}):
        snn, want = convert(ann, 8, **settings), convert(other, 8, **settings)
        torch.testing.assert_close(snn(x), want(x))
    same(freeze(snn)(x).detach(), snn(x).detach())


def of_another(n, x):
    """Twice as many samples of half the size, which a view by sizes of another value makes."""
    y = F.max_pool2d(x, (2, 1))
    return x.view(-1, y.size(1) * y.size(2) * y.size(3))


NO_FLATTENING = {
    "of another": of_another,
    "of two": lambda n, x: x.view(-1, x.size(2) * x.size(3)),
    "squared": lambda n, x: x.view(-1, x.size(1) * x.size(2) * x.size(2)),
    "sum": lambda n, x: x.view(-1, x.size(1) + x.size(2)),
    "halves": lambda n, x: x.view(x.size(0) * 2, -1),
    "of all": lambda n, x: x.view(x.size(0) * x.size(1), x.size(2) * x.size(3)),
    "negative": lambda n, x: x.view(x.size(0), -x.size(1) * x.size(2), 1),
    "quotient": lambda n, x: x.view(-1, x.numel() // (x.size(0) + 1)),
    "none": lambda n, x: x.view(x.size(0), x.size(2) // 0),
    "true quotient": lambda n, x: x.view(-1, x.size(2) / 2),
    "power": lambda n, x: x.view(-1, x.size(1) ** 2),
    "remainder": lambda n, x: x.view(-1, x.size(1) % x.size(2)),
    "tensor": lambda n, x: x * x.size(2),
    "shape": lambda n, x: x.view(x.shape),
    "part of a shape": lambda n, x: x.reshape(x.shape[1:]),
    "chunks": lambda n, x: x.chunk(x.size(2), 1)[0],
    "split": lambda n, x: x.split(x.size(2), 1)[0],
    "split sizes": lambda n, x: x.split([x.size(2), 4], 1)[0],
    "pads": lambda n, x: F.pad(x, (x.size(2), 0)),
    "flatten": lambda n, x: x.flatten(x.size(2)),
    "pool": lambda n, x: F.max_pool2d(x, x.shape[2:]),
    "mean": lambda n, x: x.mean(x.size(2)),
    "shuffle": lambda n, x: F.pixel_shuffle(x, x.size(2)),
    "clamp": lambda n, x: x.clamp(0, x.size(2)),
    "interpolation": lambda n, x: F.interpolate(x, scale_factor=x.size(2)),
    "slice of a slice": lambda n, x: x[:, x.shape[1:][1] :],
    "transpose": lambda n, x: x.transpose(x.size(2), 1),
}


@pytest.mark.parametrize("view", NO_FLATTENING.values(), ids=NO_FLATTENING)
def test_other_arithmetic_on_sizes_is_refused(view):
    """By the list of parts, and not by Python."""
    net = Net(
        lambda n, x: n.head(F.relu(n.last(view(n, F.relu(n.first(x)))))),
        first=conv(3, 8),
        last=nn.Linear(768, 4),
        head=nn.Linear(4, 2),
    ).eval()
    with pytest.raises(ValueError, match=r"these are not:\n.*: (use|divide|pass|list|let|select|move)"):
        convert(net, 8)


BEHIND = {
    "sum around the last layer": lambda n, x: x.mean(1, keepdim=True) + n.b(x),
    "product around it": lambda n, x: x[:, :2] * n.b(x),
    "another output": lambda n, x: torch.cat([n.b(x), torch.sigmoid(x)], 1),
    "sizes": lambda n, x: n.b(x).view(x.size(0), 2, x.size(2) * x.size(3)),
    "shape": lambda n, x: n.b(x).view(x[:, :2].shape),
    "slice of a shape": lambda n, x: F.interpolate(n.b(x), x.shape[2:]),
    "number of elements": lambda n, x: n.b(x) / x.numel(),
    "sizes of values": lambda n, x: n.b(x) / n.a(x).size(3),
}


@pytest.mark.parametrize("calibrate", [None, IMAGES])
@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_behind_the_last_layer_everything_goes(behind, calibrate):
    ann, x = whole(lambda n, x: behind(n, F.relu(n.first(x))), first=conv(3, 4), a=conv(4, 4), b=conv(4, 2))
    snn = convert(ann, 64, calibrate=calibrate, neuron=IF(initial=0.5))
    with torch.no_grad():
        want = ann(x)
        assert snn(x).shape == want.shape
        if calibrate is not None:
            assert (snn(x) - want).norm() < 0.05 * want.norm()
        same(freeze(snn)(x), snn(x))


def test_sizes_of_recorded_spikes():
    ann, x = recorded(*cell(), Lambda(lambda x: x))
    net = Net(lambda n, x: n.seq(x) / x.size(0) / x.shape[3], seq=ann)
    snn = convert(net, 8, mode="spikes")
    same(snn(x).detach(), convert(ann, 8, mode="spikes")(x).detach() / 2 / 6)


def test_gates_of_pieces():
    """A gate may begin in the middle of a split."""
    ann, x = image(lambda n, x: (lambda a, b: a * torch.sigmoid(b))(*halves(n.a(x))), a=conv(8, 16))
    snn = convert(ann, 64, gates="analogue", calibrate=x, neuron=IF(initial=0.5, two_phase=True))
    assert (snn(x) - ann(x)).norm() < 0.05 * ann(x).norm()


def test_a_gate_is_one_problem():
    """What leads to it is none, unlike an activation beside it."""
    ann, _ = image(
        lambda n, x: n.act(hard_squeezed(n, x)), act=nn.SiLU(), hard=nn.Hardsigmoid(), silu=nn.SiLU(), **gate()
    )
    with pytest.raises(ValueError, match="these are not:\n") as error:
        convert(ann, 8)
    names = [line.split(" (")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert names == ["mul", "act"]


def test_an_activation_of_a_product_behind_the_last_layer_is_none():
    ann, x = whole(lambda n, x: n.b(F.relu(n.a(x))) * torch.sigmoid(n.c(x)), a=conv(3, 4), b=conv(4, 2), c=conv(3, 2))
    convert(ann, 8)(x)
