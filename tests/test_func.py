"""torch.func over operators and layers: the gradients of backward(), and an error where there are none."""

import warnings

import pytest
import torch
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

import test_compile
from exact import generator, planes
from tandem_cuda import LIF, SpikeTrain, TandemLinear, ops

BITS = planes(9, 3, 5, seed=0)
IMAGE = planes(9, 3, 4, 5, 6, seed=0)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


COUNTED = planes(9, 3, 4, seed=1)
PRODUCTS = {
    "count_linear": (lambda w: ops.count_linear(BITS, w), (7, 5)),
    "spiking_linear": (lambda w: ops.spiking_linear(BITS, w, time_steps=9)[1], (7, 5)),
    "count_conv2d": (lambda w: ops.count_conv2d(IMAGE, w, padding=1), (2, 4, 3, 3)),
    "spiking_conv2d": (lambda w: ops.spiking_conv2d(IMAGE, w, time_steps=9)[1], (2, 4, 3, 3)),
    "tandem_count": (lambda v: ops.tandem_count(COUNTED, v, 9) * v, (3, 4)),
    "tandem_norm_count": (
        lambda v: v * ops.tandem_norm_count(COUNTED, v, v.mean(0), v.var(0, False), *torch.ones(2, 4).to(v), 9),
        (3, 4),
    ),
}
every_product = pytest.mark.parametrize("name", PRODUCTS)


@every_product
def test_reverse_mode_of_operators(name):
    f, shape = PRODUCTS[name]
    x = normal(*shape)
    want = torch.autograd.functional.jacobian(f, x)
    assert want.abs().sum() > 0
    torch.testing.assert_close(grad(lambda x: f(x).sum())(x), want.flatten(0, -len(shape) - 1).sum(0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # no batching rules: one after the other
        torch.testing.assert_close(jacrev(f)(x), want)
        torch.testing.assert_close(jacrev(jacrev(lambda x: f(x).square().sum()))(x), hessian(f, x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@every_product
def test_batched_gradients(name):
    """Many vectors in one backward pass."""
    f, shape = PRODUCTS[name]
    x = normal(*shape).requires_grad_()
    out = f(x)
    many = normal(2, *out.shape, seed=1)
    (got,) = torch.autograd.grad(out, x, many, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(out, x, one, retain_graph=True)[0] for one in many]
    torch.testing.assert_close(got, torch.stack(want))


def hessian(f, x):
    return torch.autograd.functional.hessian(lambda x: f(x).square().sum(), x)


@every_product
@pytest.mark.parametrize("differentiate", [jacfwd, lambda f: lambda x: jvp(f, (x,), (x,))])
def test_forward_mode_is_refused(name, differentiate):
    """It would be zero, silently."""
    f, shape = PRODUCTS[name]
    with pytest.raises(NotImplementedError, match=f"{name}: there is no forward-mode gradient"):
        differentiate(f)(normal(*shape))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match=name):
        f(torch.autograd.forward_ad.make_dual(normal(*shape), normal(*shape)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_of_operators():
    f, shape = PRODUCTS["spiking_conv2d"]
    weights = normal(3, *shape)
    torch.testing.assert_close(vmap(f)(weights), torch.stack([f(w) for w in weights]))
    per_weight = vmap(grad(lambda w: f(w).square().sum()))(weights)
    torch.testing.assert_close(per_weight, torch.stack([grad(lambda w: f(w).square().sum())(w) for w in weights]))


@pytest.mark.parametrize("neuron", [None, LIF()])
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_layers(norm, training, neuron):
    layer = TandemLinear(5, 7, norm=norm, **({} if neuron is None else {"neuron": neuron}), dtype=torch.float64)
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
