"""torch.func over operators and layers: the gradients of backward(), and an error where there are none."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

import test_compile
from cases import CASES, statistics
from layer_cases import VARIED, of_each_kind
from layer_cases import named as layer_case
from neurons import every_kind
from tandem_cuda import (
    Decode,
    Encode,
    RadixIF,
    SpikeTrain,
    SpikingMaxPool2d,
    TandemLinear,
    freeze,
    ops,
)
from tensors import generator, normal, planes

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


FUNCTIONS = {case.name: case for case in CASES if case.differentiable and small(case)}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@every_function
def test_reverse_mode_of_operators(name):
    f, x = of_its_first_argument(FUNCTIONS[name])
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
    f, x = of_its_first_argument(FUNCTIONS[name])
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
    f, x = of_its_first_argument(FUNCTIONS[name])
    operator = re.sub("_(conv2d|linear)$", "_product", name.split(",")[0])
    with pytest.raises(NotImplementedError, match=f"{operator}: forward-mode gradients .* are not supported"):
        differentiate(f)(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match=operator):
        f(torch.autograd.forward_ad.make_dual(x.clone(), torch.ones_like(x)))


@pytest.mark.parametrize("name", ["weight", "bias", "count"])
def test_forward_mode_is_refused_where_radix_neurons_fire(name):
    """Where radix neurons fire, no gradient leaves the product."""
    bits = planes(4, 2, 3, 5, 5, seed=0)
    named = {"weight": torch.ones(2, 3, 3, 3), "bias": torch.ones(2), "count": bits[0].float()}
    forward = torch.autograd.forward_ad
    with forward.dual_level():
        named[name] = forward.make_dual(named[name], torch.ones_like(named[name]))
        with pytest.raises(NotImplementedError, match="count_conv2d: forward-mode gradients"):
            ops.count_conv2d(bits, **named, radix=4, neuron=RadixIF(8.0), time_steps=4)


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
    f, x = of_its_first_argument(FUNCTIONS["spiking_conv2d, nothing square"])
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


# --- vmap over layers -------------------------------------------------------------------------------------------------


class Repeated(nn.Module):
    """A layer of several inputs, which all are one."""

    def __init__(self, layer, times):
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x):
        return self.layer(*[x] * self.times)


LAYERS = {
    case.name: case
    for case in (*of_each_kind(), *VARIED, layer_case("circular (2, 3)"), layer_case("sum, batch norm"))
    if "Dropout" not in case.kind and case.kind not in ("TandemStochasticDepth", "TandemNeurons")
}
# Of layers that also take real input.
ENCODED = [name for name, case in LAYERS.items() if case.encodes]
STEPS = 4
slow_fallback = pytest.mark.filterwarnings("ignore:There is a performance drop")


def layer_of(name):
    """The layer, with exact weights, so that torch may add in any order."""
    case = LAYERS[name]
    layer = (case.make() if len(case.samples) == 1 else Repeated(case.make(), len(case.samples))).double()
    for i, p in enumerate(layer.parameters()):
        p.data = torch.randint(-8, 17, p.shape, generator=generator(i)).double() / 16
    return layer


def count_of(layer, x):
    """The count for spikes uint8 [1, N, ...] or for real input."""
    train = SpikeTrain(x, STEPS, dtype=torch.float64) if x.dtype == torch.uint8 else Encode(STEPS)(x)
    return layer(train).count


def both_inputs(name, samples=2):
    """Several batches of spikes, and of real input if the layer takes it."""
    (shape, *_) = LAYERS[name].samples
    yield torch.randint(0, 2**STEPS, (samples, 1, 3, *shape), dtype=torch.uint8, generator=generator(0))
    if name in ENCODED:
        yield torch.randint(0, 17, (samples, 3, *shape), generator=generator(1)).double() / 16


@slow_fallback
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_vmap_over_the_input_of_layers(name, gradients):
    layer = layer_of(name).eval()
    with torch.set_grad_enabled(gradients):
        for x in both_inputs(name):
            got = vmap(lambda x: count_of(layer, x))(x)
            torch.testing.assert_close(got, torch.stack([count_of(layer, one) for one in x]))
            assert got.any()


@slow_fallback
@pytest.mark.parametrize("name", [name for name, case in LAYERS.items() if case.has_weights])
def test_vmap_over_gradients_and_weights_of_layers(name):
    """Gradients of each sample; ensembles, on one input and on their own."""
    layer = layer_of(name).eval()
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    many = {name: torch.stack([p, p / 2]) for name, p in parameters.items()}

    def f(parameters, x):
        return count_of(lambda train: functional_call(layer, parameters, (train,)), x)

    per_sample = grad(lambda parameters, x: f(parameters, x).square().sum())
    for x in both_inputs(name):
        want = [per_sample(parameters, one) for one in x]
        for key, value in vmap(per_sample, (None, 0))(parameters, x).items():
            torch.testing.assert_close(value, torch.stack([grads[key] for grads in want]))
        for over, inputs in ((None, [x[0], x[0]]), (0, list(x))):
            got = vmap(f, (0, over))(many, x[0] if over is None else x)
            members = [{key: p[i] for key, p in many.items()} for i in range(2)]
            torch.testing.assert_close(got, torch.stack([f(*one) for one in zip(members, inputs, strict=True)]))


@slow_fallback
def test_vmap_over_networks():
    x = torch.randint(0, 17, (2, 3, 4, 7, 6), generator=generator(0)).double() / 16
    layers = layer_of("depthwise"), SpikingMaxPool2d(2), nn.Flatten(), TandemLinear(32, 8, dtype=torch.float64)
    plain = nn.Sequential(Encode(STEPS), *layers, Decode()).eval()
    for net in (plain, freeze(plain)):
        torch.testing.assert_close(vmap(net)(x), torch.stack([net(one) for one in x]))


@slow_fallback
@pytest.mark.parametrize("name", ["linear, batch norm", "batch norm", "sum, batch norm"])
def test_vmap_cannot_move_shared_statistics(name):
    """And leaves them as they were. Each way out that the error names works."""
    layer = layer_of(name)
    before = {key: x.clone() for key, x in layer.named_buffers()}
    (x, *_) = both_inputs(name)
    with pytest.raises(
        RuntimeError,
        match=r"(update_statistics_|BatchNorm2d): under vmap, running statistics must be batched as the input is, .*; "
        r"put the samples into dimension N instead, use eval mode, or vmap over the buffers of "
        r"torch\.func\.stack_module_state",
    ):
        vmap(lambda x: count_of(layer, x))(x)
    for key, value in layer.named_buffers():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    state = tuple({key: torch.stack([p, p]) for key, p in values} for values in
                  (layer.named_parameters(), layer.named_buffers()))  # fmt: skip
    own = vmap(lambda state, x: count_of(lambda train: functional_call(layer, state, (train,)), x))(state, x)
    torch.testing.assert_close(own[0], count_of(copy.deepcopy(layer), x[0]))
    assert not torch.equal(state[1][next(iter(before))][0], before[next(iter(before))])  # which have moved
    assert count_of(layer, x.transpose(0, 1).flatten(1, 2)).shape[0] == 6
    layer.eval()
    assert vmap(lambda x: count_of(layer, x))(x).any()


@slow_fallback
def test_vmap_over_spikes_clears_those_past_the_end():
    bits = torch.full((2, 1, 3, 5), 255, dtype=torch.uint8)
    count = vmap(lambda bits: SpikeTrain(bits, STEPS).count)(bits)
    assert (count == STEPS).all()
    assert (bits == 255).all()


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
