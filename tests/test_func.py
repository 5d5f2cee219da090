"""torch.func over operators and layers: the gradients of backward(), and an error where there are none."""

import re
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

import test_compile
from cases import CASES, statistics
from neurons import every_kind
from tandem_cuda import Encode, SpikeTrain, TandemLinear
from tensors import normal, planes

BITS = planes(9, 3, 5, seed=0)


def of_its_first_argument(case):
    """(f, x): what the case computes of the first argument that has a gradient, and a value for it."""
    arguments = case.arguments(torch.float64, neurons=None if case.takes_engine else (3, 4))
    x = arguments.pop(case.differentiable[0])

    def f(value):
        own = {}
        if case.operator == "tandem_norm_count":
            own["var"], own["mean"] = statistics(value)
        out = case.with_gradient(case.run(**arguments | own | {case.differentiable[0]: value}))
        return out if case.smooth else out * value  # the gradient of a count does not depend on the value

    return f, x


def small(case):
    if torch.float64 not in case.dtypes:
        return False
    return not case.takes_engine or case.name.endswith(("_linear", "nothing square"))


FUNCTIONS = {case.name: of_its_first_argument(case) for case in CASES if case.differentiable and small(case)}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@every_function
def test_reverse_mode_of_operators(name):
    f, x = FUNCTIONS[name]
    want = torch.autograd.functional.jacobian(f, x)
    assert want.abs().sum() > 0
    torch.testing.assert_close(grad(lambda x: f(x).sum())(x), want.flatten(0, -x.dim() - 1).sum(0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # no batching rules: one after the other
        torch.testing.assert_close(jacrev(f)(x), want)
        torch.testing.assert_close(jacrev(jacrev(lambda x: f(x).square().sum()))(x), hessian(f, x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@every_function
def test_batched_gradients(name):
    """Many vectors in one backward pass."""
    f, x = FUNCTIONS[name]
    x = x.clone().requires_grad_()
    out = f(x)
    many = normal(2, *out.shape, seed=1, dtype=torch.float64)
    (got,) = torch.autograd.grad(out, x, many, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(out, x, one, retain_graph=True)[0] for one in many]
    torch.testing.assert_close(got, torch.stack(want))


def hessian(f, x):
    return torch.autograd.functional.hessian(lambda x: f(x).square().sum(), x)


@every_function
@pytest.mark.parametrize("differentiate", [jacfwd, lambda f: lambda x: jvp(f, (x,), (x,))])
def test_forward_mode_is_refused(name, differentiate):
    """It would be zero, silently."""
    f, x = FUNCTIONS[name]
    operator = re.sub("_(conv2d|linear)$", "_product", name.split(",")[0])
    with pytest.raises(NotImplementedError, match=f"{operator}: forward-mode gradients .* are not supported"):
        differentiate(f)(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match=operator):
        f(torch.autograd.forward_ad.make_dual(x.clone(), torch.ones_like(x)))


@pytest.mark.parametrize("mode", ["constant", "impulse"])
@pytest.mark.parametrize("norm", [None, "batch"])
def test_forward_mode_of_encoded_input_is_refused(norm, mode):
    net = nn.Sequential(Encode(9, mode), TandemLinear(5, 7, norm=norm)).eval()
    weight, x = net[1].weight.detach(), torch.rand(3, 5)
    for f, value in (
        (lambda x: net(x).count, x),
        (lambda weight: functional_call(net, {"1.weight": weight}, (x,)).count, weight),
    ):
        with pytest.raises(NotImplementedError, match=r"TandemLinear: forward-mode gradients .* are not supported"):
            jvp(f, (value,), (value,))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_of_operators():
    f, x = FUNCTIONS["spiking_conv2d, nothing square"]
    weights = normal(3, *x.shape, seed=0, dtype=torch.float64)
    torch.testing.assert_close(vmap(f)(weights), torch.stack([f(w) for w in weights]))
    per_weight = vmap(grad(lambda w: f(w).square().sum()))(weights)
    torch.testing.assert_close(per_weight, torch.stack([grad(lambda w: f(w).square().sum())(w) for w in weights]))


@every_kind
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_layers(norm, training, neuron):
    layer = TandemLinear(5, 7, norm=norm, neuron=neuron, dtype=torch.float64)
    layer.train(training)
    check_gradients(layer, SpikeTrain(BITS, 9, dtype=torch.float64), lambda train: train.count)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_gradients_of_networks(norm):
    check_gradients(test_compile.plain(norm), test_compile.images(4, (1, 8, 8)), lambda out: out)


@pytest.fixture(autouse=True)
def _seeded():
    """Weights with which neurons fire, whatever ran before."""
    torch.manual_seed(0)


def check_gradients(module, x, values):
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def loss(parameters):
        own = {name: b.clone() for name, b in buffers.items()}
        return values(functional_call(module, (parameters, own), (x,))).square().sum()

    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    want = torch.autograd.grad(loss(leaves), list(leaves.values()))
    assert all(g.isfinite().all() for g in want)
    assert any(g.abs().sum() > 0 for g in want)
    torch.testing.assert_close(list(grad(loss)(parameters).values()), list(want), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(list(jacrev(loss)(parameters).values()), list(want), rtol=1e-9, atol=1e-9)
