"""Weights that forward computes from parameters: the outputs, and the gradients of every parameter."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from anns import Net
from exact import generator, same
from tandem_cuda import IF, TandemConv2d, TandemLinear, convert, freeze, quantise

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
IMAGES = torch.randint(0, 9, (6, 4, 6, 6), generator=generator(0)) / 8


def dyadic(*shape, seed=0):
    """Multiples of 1/8 between -1 and 1: sums and products of them are exact."""
    return torch.randint(-8, 9, shape, generator=generator(seed)) / 8


def network(run, seed=0, **modules):
    """Layers ``first`` and ``last`` around ``run``, which is two weight layers and a ReLU between them."""
    torch.manual_seed(seed)
    ann = Net(run, first=nn.Conv2d(4, 4, 3, padding=1), fc=nn.Linear(144, 3), **modules).eval()
    for i, p in enumerate(ann.parameters()):
        p.data = dyadic(*p.shape, seed=i)
    return ann


def ends(n, middle, x):
    return n.fc(F.relu(middle(F.relu(n.first(x)))).flatten(1))


def gradients(snn, x):
    snn.train()
    snn.zero_grad()
    snn(x).square().sum().backward()
    return {name: p.grad for name, p in snn.ann().named_parameters()}


# -- to the bit, where sums are exact


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((4, 1, 1, 1), 0.5))

    def forward(self, weight):
        return weight * self.scale


def parametrized():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    parametrize.register_parametrization(conv, "weight", Scaled())
    return network(lambda n, x: ends(n, n.conv, x), conv=conv), lambda n: (n.conv.weight, n.conv.bias)


def of_branches():
    """RepVGG: the sum of a 3 x 3 and a 1 x 1 kernel, and of biases."""

    def kernel(n):
        return n.conv.weight + F.pad(n.point.weight, (1, 1, 1, 1)), n.conv.bias + n.point.bias

    return network(
        lambda n, x: ends(n, lambda h: F.conv2d(h, *kernel(n), padding=1), x),
        conv=nn.Conv2d(4, 4, 3, padding=1), point=nn.Conv2d(4, 4, 1),
    ), kernel  # fmt: skip


def low_rank():
    """LoRA: a matrix and a product of two, on features."""

    def matrix(n):
        return n.linear.weight + 0.5 * n.up @ n.down, n.linear.bias

    def run(n, x):
        h = F.relu(n.first(x)).flatten(1)
        return n.fc(F.relu(F.linear(h, *matrix(n))))

    up, down = nn.Parameter(torch.empty(144, 2)), nn.Parameter(torch.empty(2, 144))
    return network(run, linear=nn.Linear(144, 144), up=up, down=down), matrix


def transposed():
    """Linear as matmul with a parameter [inputs, outputs] that is doubled, and a bias computed."""

    def matrix(n):
        return (2 * n.matrix).t(), n.bias - n.first.bias.sum()

    def run(n, x):
        h = F.relu(n.first(x)).flatten(1)
        weight, bias = matrix(n)
        return n.fc(F.relu(torch.addmm(bias, h, weight.t())))

    return network(run, matrix=nn.Parameter(torch.empty(144, 144)), bias=nn.Parameter(torch.empty(144))), matrix


def plain_matmul():
    """A parameter [inputs, outputs] as it is."""

    def matrix(n):
        return n.matrix.t(), None

    def run(n, x):
        return n.fc(F.relu(F.relu(n.first(x)).flatten(1) @ n.matrix))

    return network(run, matrix=nn.Parameter(torch.empty(144, 144))), matrix


EXACT = [parametrized, of_branches, low_rank, transposed, plain_matmul]


@pytest.mark.parametrize("make", EXACT)
def test_computed_weights_are_exact(make):
    """Outputs and gradients are those of the same network with plain weights, and these led through the formula."""
    ann, weights = make()
    weight, bias = (None if x is None else x.detach() for x in weights(ann))
    kind = nn.Conv2d if weight.dim() == 4 else nn.Linear
    layer = kind(
        *weight.shape[1::-1], **({"kernel_size": 3, "padding": 1} if kind is nn.Conv2d else {}), bias=bias is not None
    )

    def run(n, x):
        h = F.relu(n.first(x))
        return n.fc(F.relu(n.layer(h if kind is nn.Conv2d else h.flatten(1))).flatten(1))

    plain = network(run, layer=layer)
    plain.first, plain.fc = copy.deepcopy(ann.first), copy.deepcopy(ann.fc)
    layer.weight.data, layer.bias = weight.clone(), None if bias is None else nn.Parameter(bias.clone())
    how = {"neuron": IF(initial=0.5, two_phase=True, threshold=0.5), "example": IMAGES, "mode": "impulse"}
    snn, want = convert(ann, 8, **how), convert(plain, 8, **how)
    same(snn(IMAGES), want(IMAGES))
    got, theirs = gradients(snn, IMAGES), gradients(want, IMAGES)
    through = [
        (x, g)
        for x, g in zip(weights(ann), (theirs["layer.weight"], theirs.get("layer.bias")), strict=True)
        if x is not None
    ]
    expected = dict(
        zip(
            [name for name, _ in ann.named_parameters()],
            torch.autograd.grad(
                [x for x, _ in through], [*ann.parameters()], [g for _, g in through], allow_unused=True
            ),
            strict=True,
        )
    )
    for name, grad in got.items():
        wanted = [x for x in (expected[name], theirs.get(name)) if x is not None]
        same(grad, sum(wanted))
    with torch.no_grad():
        same(freeze(snn.eval())(IMAGES), snn(IMAGES))
        for p in ann.parameters():
            p.add_(0.125)
    same(copy.deepcopy(snn)(IMAGES), snn(IMAGES))
    same(convert(ann, 8, **how).eval()(IMAGES), snn(IMAGES))  # computed anew


# -- near the ANN


def normed(norm, **how):
    def make():
        return network(lambda n, x: ends(n, n.conv, x), conv=norm(nn.Conv2d(4, 4, 3, padding=1), **how))

    return make


class Standardised(nn.Conv2d):
    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (self.weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


NORMS = {
    "weight norm": normed(parametrizations.weight_norm),
    "weight norm, by hooks": normed(old_weight_norm),
    "spectral norm": normed(parametrizations.spectral_norm),
    "spectral norm, by hooks": normed(old_spectral_norm),
    "orthogonal": lambda: network(
        lambda n, x: n.fc(F.relu(n.linear(F.relu(n.first(x)).flatten(1)))),
        linear=parametrizations.orthogonal(nn.Linear(144, 144)),
    ),
    "standardised": lambda: network(lambda n, x: ends(n, n.conv, x), conv=Standardised(4, 4, 3, padding=1)),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_weights(name):
    ann = NORMS[name]()
    snn = convert(ann, 8, calibrate=IMAGES, percentile=100)
    assert {id(p) for p in snn.parameters()} == {id(p) for p in ann.parameters()}
    assert list(snn.state_dict()) == [*ann.state_dict(), "_extra_state"]
    assert not snn.report().analogue
    with torch.no_grad():
        assert (snn(IMAGES) - ann(IMAGES)).norm() < 0.02 * ann(IMAGES).norm()
        same(copy.deepcopy(snn)(IMAGES), snn(IMAGES))
        same(freeze(snn)(IMAGES), snn(IMAGES))
    if "spectral" not in name:  # whose training mode moves its vectors
        got = gradients(snn, IMAGES)
        ann.zero_grad()
        ann(IMAGES).square().sum().backward()
        for key, p in ann.named_parameters():
            assert (got[key] - p.grad).norm() < 0.2 * p.grad.norm() + 1e-4, key


@pytest.mark.parametrize("name", ["spectral norm", "spectral norm, by hooks"])
def test_spectral_norm_iterates_in_training(name):
    """Once a call, and not in eval mode."""
    ann = NORMS[name]()
    (vector,) = [key for key in ann.state_dict() if key.endswith("_u")]
    snn, other = convert(ann, 8, example=IMAGES), copy.deepcopy(ann)
    before = ann.state_dict()[vector].clone()
    snn(IMAGES)
    same(ann.state_dict()[vector], before)
    for network in (snn, other):
        network.train()
        network(IMAGES).square().sum().backward()
    assert not torch.equal(ann.state_dict()[vector], before)
    same(ann.state_dict()[vector], other.state_dict()[vector])
    assert all(p.grad is not None for p in ann.parameters())


def test_one_computation_a_call():
    """A weight that two calls read."""
    calls = []

    class Counting(nn.Module):
        def forward(self, weight):
            calls.append(0)
            return 2 * weight

    conv = nn.Conv2d(4, 4, 3, padding=1)
    parametrize.register_parametrization(conv, "weight", Counting())
    ann = network(lambda n, x: ends(n, lambda h: n.conv(F.relu(n.conv(h))), x), conv=conv)
    snn = convert(ann, 8, calibrate=IMAGES)
    assert sum(isinstance(m, TandemConv2d) for m in snn.modules()) == 3
    with torch.no_grad():
        assert (snn(IMAGES) - ann(IMAGES)).norm() < 0.03 * ann(IMAGES).norm()


@pytest.mark.parametrize("make", [of_branches, NORMS["weight norm"], NORMS["weight norm, by hooks"]])
def test_integers_for_computed_weights_are_refused(make):
    made = make()
    ann = made[0] if isinstance(made, tuple) else made
    with pytest.raises(ValueError, match="weight"):
        convert(ann, 8, weights="int8", example=IMAGES)
    snn = convert(ann, 8, example=IMAGES)
    with pytest.raises(ValueError, match="weight"):
        quantise(snn, 8)


def test_matrices_that_are_transposed_at_the_call():
    """x @ W.t() is a plain linear layer: it can be quantised."""
    ann = network(
        lambda n, x: n.fc(F.relu(F.relu(n.first(x)).flatten(1) @ n.linear.weight.t())),
        linear=nn.Linear(144, 144, bias=False),
    )
    snn = convert(ann, 8, calibrate=IMAGES, weights="int16")
    assert any(isinstance(m, TandemLinear) for m in snn.modules())
    with torch.no_grad():
        assert (snn(IMAGES) - ann(IMAGES)).norm() < 0.03 * ann(IMAGES).norm()
