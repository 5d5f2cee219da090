"""What layers keep of their weights: never in training, and in eval mode only while nothing has changed."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from exact import HALVES, SEEDS, generator, planes, replace_operator, same
from tandem_cuda import (
    _C,
    IF,
    LIF,
    Decode,
    Encode,
    RadixIF,
    SpikeTrain,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemLinear,
    freeze,
    ops,
)
from tandem_cuda.nn import weight_cache
from tandem_cuda.ops.pack_weight import pack_weight_if_changed

STEPS = 8


class Joined(nn.Module):
    """A join of two layers that see the same spikes."""

    def __init__(self):
        super().__init__()
        self.join = TandemAdd(TandemConv2d(5, 6, 3, padding=1, norm="batch"), TandemConv2d(5, 6, 1))

    def forward(self, x):
        return self.join(x, x)


class Device:
    """Does what a CUDA device does with the weights that it watches. The CPU stands in for it."""

    def __init__(self):
        self.stream = 0
        self.held = {}
        self.checks = self.packs = 0

    def pack_weight_if_changed(self, weight, groups, out, state):
        self.checks += 1
        assert (state.dtype, state.shape) == (torch.int64, (256,))
        held = self.held.get(state.data_ptr()) if state.any() else None  # zeros: nothing is held
        # Of the memory, as it lies there: strides do not matter.
        now = weight.detach().as_strided((weight_cache._span(weight) // weight.element_size(),), (1,)).clone()
        if held is not None and torch.equal(held.view(torch.uint8), now.view(torch.uint8)):
            return
        self.packs += 1
        self.held[state.data_ptr()] = now
        state.fill_(1)
        ops.pack_weight(weight, groups, out=out)

    def in_call(self, model, x):
        """The checks and packs of a call, and its spikes."""
        before = self.checks, self.packs
        bits = model(x).bits.clone()
        return self.checks - before[0], self.packs - before[1], bits


@pytest.fixture
def device(monkeypatch):
    """A device to which layers leave their weights, whatever their size."""
    device = Device()
    monkeypatch.setattr(weight_cache, "pack_weight_if_changed", device.pack_weight_if_changed)
    monkeypatch.setattr(weight_cache, "_watches", lambda weight: True)
    monkeypatch.setattr(weight_cache, "_state", lambda tensors: None)
    monkeypatch.setattr(weight_cache, "_stream", lambda weight: device.stream)
    return device


@pytest.fixture(params=["cpu", "device"])
def anywhere(request):
    """On the CPU, which keeps weights itself, and where a device watches them."""
    return None if request.param == "cpu" else request.getfixturevalue("device")


# Small weights are watched whole, large ones (over 64 KiB) by samples.
MODELS = {
    "linear": (lambda: TandemLinear(20, 7), (20,)),
    "linear, batch norm": (lambda: TandemLinear(20, 7, norm="batch"), (20,)),
    "conv1d": (lambda: TandemConv1d(3, 6, 3), (3, 9)),
    "conv2d, batch norm": (lambda: TandemConv2d(5, 6, 3, norm="batch"), (5, 7, 7)),
    "transposed": (lambda: TandemConvTranspose2d(5, 6, 3, stride=2), (5, 4, 4)),
    "join": (Joined, (5, 6, 6)),
    "large": (lambda: TandemLinear(300, 200, norm="batch"), (300,)),
}
every_model = pytest.mark.parametrize(("make", "sample"), MODELS.values(), ids=MODELS)


def lively(make, seed=0):
    """A model whose neurons fire now and then."""
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2).add_(1 / p[0].numel())
    return model


def events(*shape, seed=1):
    return SpikeTrain(planes(STEPS, 6, *shape, seed=seed), STEPS)


def fresh(model, x):
    """What a copy, which keeps nothing, computes."""
    return copy.deepcopy(model)(x).bits


OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
}


@every_model
@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize("training", [True, False])
def test_fused_optimisers(make, sample, optimiser, training):
    """They write weights without a word to autograd; one call of train() or eval() is all that layers hear."""
    model, x = lively(make).train(training), events(*sample)
    optimise = optimiser(list(model.parameters()))
    first = model(x).bits.clone()
    for _ in range(3):
        optimise.zero_grad()
        y = model(x)
        ((y.count - 2) ** 2).sum().backward()
        optimise.step()
        same(copy.deepcopy(model)(x).bits, model(x).bits)
        with torch.no_grad():
            same(fresh(model, x), model(x).bits)
    assert not torch.equal(model(x).bits, first)


def through_numpy(weight):
    weight.detach().numpy()[...] *= -1


def swapped(weight):
    """As an average of weights is swapped in."""
    weight.data.copy_(weight.data.flip(0) - 0.01)


def storage(weight):
    torch.from_numpy(np.frombuffer(memoryview(weight.detach().numpy()).cast("B"), dtype=np.float32)).neg_()


BEHIND = {
    "data": lambda weight: weight.data.mul_(-1),
    "data, a part": lambda weight: weight.data[: len(weight) // 2].mul_(-1),
    "numpy": through_numpy,
    "swap": swapped,
    "storage": storage,
}


@every_model
@pytest.mark.parametrize("change", BEHIND.values(), ids=BEHIND)
@pytest.mark.usefixtures("anywhere")
def test_changes_behind_autograd(make, sample, change):
    model, x = lively(make).eval(), events(*sample)
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            before = model(x).bits.clone()
            same(model(x).bits, before)
            version = [p._version for p in model.parameters()]
            for name, p in model.named_parameters():
                if name.endswith("weight") and "norm" not in name:
                    change(p)
            assert [p._version for p in model.parameters()] == version
            after = model(x).bits
            same(fresh(model, x), after)
            assert not torch.equal(after, before)


@every_model
def test_statistics_behind_autograd(make, sample):
    model, x = lively(make).eval(), events(*sample)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        before = model(x).bits.clone()
        for norm in norms:
            norm.running_mean.data.sub_(1)
        same(fresh(model, x), model(x).bits)
    assert not norms or not torch.equal(model(x).bits, before)


@every_model
@pytest.mark.usefixtures("anywhere")
def test_weights_swapped_for_an_average_and_back(make, sample):
    """The memory of packed weights is written in training; what eval mode kept of it before no longer holds."""
    model, x = lively(make).eval(), events(*sample)
    with torch.no_grad():
        want = model(x).bits.clone()
        saved = [p.data.clone() for p in model.parameters()]
        states = copy.deepcopy(list(model.buffers()))
        for p in model.parameters():
            p.data.neg_()
        model.train()(x)
        for p, old in zip(model.parameters(), saved, strict=True):
            p.data.copy_(old)
        for buffer, old in zip(model.buffers(), states, strict=True):
            buffer.data.copy_(old)
        same(model.eval()(x).bits, want)


def test_every_element_of_a_small_weight():
    layer, x = TandemLinear(16, 4, bias=False).eval(), SpikeTrain(planes(STEPS, 2, 16, seed=0, rate=0.9), STEPS)
    with torch.no_grad():
        layer.weight.zero_()
        assert layer(x).count.sum() == 0
        for i in range(layer.weight.numel()):
            layer.weight.data.view(-1)[i] = 8
            assert layer(x).count.sum() > 0, i
            layer.weight.data.view(-1)[i] = 0
            assert layer(x).count.sum() == 0, i


def test_weights_of_inference_mode_are_kept_and_watched():
    with torch.inference_mode():
        layer, x = TandemLinear(20, 7).eval(), events(20)
        layer(x)
        layer.weight.neg_()
        same(fresh(layer, x), layer(x).bits)


# --- fingerprints -----------------------------------------------------------------------------------------------------


def fingerprint(*arrays):
    return _C.fingerprint([(a.ctypes.data, a.nbytes) for a in arrays])


@given(st.integers(1, 300), SEEDS)
def test_any_bit_of_small_memory(size, seed):
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, size, dtype=np.uint8)
    before = fingerprint(memory)
    assert fingerprint(memory) == before
    for i in rng.permutation(size)[:40]:
        memory[i] ^= 1 << rng.integers(8)
        assert fingerprint(memory) != before
        before = fingerprint(memory)


def test_the_border_of_whole_and_sampled():
    for size in (2**22 - 1, 2**22):
        memory = np.zeros(size, dtype=np.uint8)
        before = fingerprint(memory)
        for i in (0, 1, 63, 64, size // 3, size - 65, size - 1):
            memory[i] = 1
            assert fingerprint(memory) != before, (size, i)
            memory[i] = 0


@pytest.mark.parametrize("size", [2**22 + 1, 2**22 + 4, 10**7])
def test_large_memory(size):
    """A change of the whole, or of any run of it that is long enough to meet a sample."""
    memory = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    before = fingerprint(memory)
    assert fingerprint(memory + np.uint8(1)) != before
    run = size // 256 + 64
    for start in np.linspace(0, size - run, 50).astype(int):
        changed = memory.copy()
        changed[start : start + run] ^= 0x40
        assert fingerprint(changed) != before, start


def test_several_pieces_and_their_order():
    a, b = (np.random.default_rng(seed).standard_normal(10) for seed in (0, 1))
    assert len({fingerprint(a, b), fingerprint(b, a), fingerprint(a), fingerprint(b), fingerprint()}) == 5


# --- one formula ------------------------------------------------------------------------------------------------------


def random_float_network(seed):
    """Layers of any kind with random float weights, gains of both signs, and an input of them."""
    rng = torch.Generator().manual_seed(seed)

    def pick(*values):
        return values[int(torch.randint(len(values), (), generator=rng))]

    torch.manual_seed(seed)
    neuron, bias = pick(IF(0.3), IF(0.7, amplitude=0.7), LIF(0.4, 0.9)), pick(True, False)
    kind = pick("constant", "impulse", "spikes")
    norm = {"norm": pick("batch", "batch", None), "neuron": neuron}
    steps = pick(1, 3, 8, 11)
    layers = [
        TandemConv2d(2, 5, 3, padding=1, bias=bias, **norm),
        pick(TandemConv2d, TandemConvTranspose2d)(5, 6, 3, stride=2, bias=bias, **norm),
        nn.Flatten(),
    ]
    shape = (7, 2, 8, 8)
    x = torch.randn(shape, generator=rng)
    if kind == "spikes":
        x = SpikeTrain(planes(steps, *shape, seed=seed), steps, amplitude=pick(1.0, 0.3))
    else:
        layers.insert(0, Encode(steps, kind))
    features = nn.Sequential(*layers)(x).shape[1]
    net = nn.Sequential(*layers, TandemLinear(features, 9, bias=bias, **norm))
    if pick(True, False):
        net.append(JoinedLinear(neuron))
    randomise_norms(net, rng)
    return net.append(Decode()), x


class JoinedLinear(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.join = TandemAdd(TandemLinear(9, 9, norm="batch"), nn.Identity(), neuron=neuron)

    def forward(self, x):
        return self.join(x, x)


class WholeLayers(fx.Tracer):
    def is_leaf_module(self, module, name):
        return not isinstance(module, (nn.Sequential, JoinedLinear))


def graph_of(net):
    return fx.GraphModule(net, WholeLayers().trace(net))


def randomise_norms(net, rng):
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.copy_(torch.randn(module.weight.shape, generator=rng))
                module.bias.copy_(torch.randn(module.bias.shape, generator=rng) / 2)
                module.running_mean.copy_(torch.randn(module.bias.shape, generator=rng) / 2)
                module.running_var.copy_(torch.rand(module.bias.shape, generator=rng) + 0.1)


@pytest.fixture
def potentials(monkeypatch):
    """The final membrane potentials of all neurons that fire meanwhile: they tell currents apart to the last bit."""
    seen = []

    def watched(operator, want_state):
        def call(*arguments, **named):
            out = operator(*arguments[:want_state], True, *arguments[want_state + 1 :], **named)
            seen.append(out[2].detach().clone())
            return out

        return call

    operators = torch.ops.tandem_cuda
    for name, want_state in (("spiking_product", 16), ("integrate_and_fire", 9)):
        monkeypatch.setattr(operators, name, watched(getattr(operators, name), want_state))
    return seen


@pytest.mark.parametrize("first", [0, 20, *(pytest.param(n, marks=pytest.mark.slow) for n in range(40, 200, 20))])
def test_one_formula_for_the_current(first, potentials):
    """Random floats, the same to the bit with and without gradient, in training and frozen."""
    fired = 0
    for seed in range(first, first + 20):
        net, x = random_float_network(seed)
        net.eval()

        def run(mode, model=net, x=x, seed=seed):
            potentials.clear()
            out = model(x).detach()
            return (out, *potentials), f"seed {seed}, {mode}"

        want, _ = run("eval, gradient")
        with torch.no_grad():
            for got, mode in (run("no_grad"), run("no_grad, weights kept")):
                same(got, want, mode)
        with torch.inference_mode():
            got, mode = run("inference mode")
            same(got, want, mode)
        net.requires_grad_(False)
        got, mode = run("no parameter learns")
        same(got, want, mode)
        net.requires_grad_(True)
        got, mode = run("frozen", freeze(graph_of(net)))
        same(got, want, mode)
        net.train()
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        got, mode = run("training with frozen statistics")
        same(got, want, mode)
        fired += want[0].sum()
    assert fired > 0


def some(net, kind, rng):
    found = [m for m in net.modules() if isinstance(m, kind)]
    return found[int(torch.randint(len(found), (), generator=rng))] if found else None


def through_numpy(net, rng):
    some(net, WEIGHTS, rng).weight.detach().numpy()[0] *= 1.5


def through_data(net, rng):
    some(net, WEIGHTS, rng).weight.data.neg_()


def another_parameter(net, rng):
    layer = some(net, WEIGHTS, rng)
    layer.weight = nn.Parameter(layer.weight.detach() * 0.75)


def a_state_dict(net, rng):
    net.load_state_dict({name: x * 1.25 if x.is_floating_point() else x for name, x in net.state_dict().items()})


def a_training_step(net, rng):
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    net(net.sample).sum().backward()
    optimiser.step()
    net.eval()


def other_statistics(net, rng):
    norm = some(net, nn.modules.batchnorm._BatchNorm, rng)
    if norm is not None:
        norm.running_mean.add_(0.125)


def another_eps(net, rng):
    norm = some(net, nn.modules.batchnorm._BatchNorm, rng)
    if norm is not None:
        norm.eps *= 100


def another_amplitude(net, rng):
    some(net, WEIGHTS, rng).neuron = IF(0.3, amplitude=0.6)


def other_steps(net, rng):
    encode = some(net, Encode, rng)
    if encode is not None:
        encode.time_steps = 5


def there_and_back(net, rng):
    net.double()
    net.float()


WEIGHTS = (TandemConv2d, TandemConvTranspose2d, TandemLinear)
CHANGES = (through_numpy, through_data, another_parameter, a_state_dict, a_training_step, other_statistics, another_eps,
           another_amplitude, other_steps, there_and_back)  # fmt: skip


@pytest.mark.parametrize("first", [0, 20, *(pytest.param(n, marks=pytest.mark.slow) for n in range(40, 200, 20))])
@pytest.mark.usefixtures("anywhere")
def test_kept_weights_are_those_made_anew(first):
    """Whatever changes between calls, to the bit; a copy of a network has kept nothing."""
    for seed in range(first, first + 20):
        rng = generator(seed)
        net, x = random_float_network(seed)
        net.sample = x
        net.eval()
        for _ in range(4):
            with torch.no_grad():
                net(x)  # kept from here on
            change = CHANGES[int(torch.randint(len(CHANGES), (), generator=rng))]
            change(net, rng)
            with torch.no_grad():
                same(net(x), copy.deepcopy(net)(x), f"seed {seed}, {change.__name__}")


@pytest.mark.parametrize("seed", range(40))
def test_training_drives_neurons_as_the_statistics_it_leaves(seed, potentials):
    net, x = random_float_network(seed)
    at = next(i for i, m in enumerate(net) if isinstance(m, TandemConv2d))
    front, layer = net[:at], net[at]
    x = front(x)
    potentials.clear()
    for run in (layer.train(), layer.eval()):
        run(x)
    with torch.no_grad():
        layer(x)
    same(potentials[1:], [potentials[0]] * 2)


@pytest.mark.parametrize("mode", ["constant", "impulse"])
def test_a_bias_that_learns_alone(mode):
    """Behind frozen statistics, gain and weights, the bias of a first layer gets the gradient of the ANN's."""
    torch.manual_seed(0)
    layer = TandemLinear(5, 7, norm="batch", dtype=torch.float64).eval()
    layer.requires_grad_(False)
    layer.bias.requires_grad_(True)
    x = Encode(8, mode)(3 * torch.rand(6, 5, dtype=torch.float64))
    layer(x).count.sum().backward()
    alone = layer.bias.grad.clone()
    layer.requires_grad_(True)
    layer.zero_grad()
    layer(x).count.sum().backward()
    same(alone, layer.bias.grad)
    assert alone.abs().sum() > 0


# --- numbers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("mode", ["constant", "impulse"])
def test_an_input_that_is_not_finite(wrong, mode):
    x = torch.rand(2, 3, 4)
    Encode(4, mode)(x * 3e38)  # finite, though its sum is not
    x[1, 2, 3] = wrong
    with pytest.raises(ValueError, match=f"Encode: input must be finite, got {wrong}"):
        Encode(4, mode)(x)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_a_first_layer_that_is_not_finite(wrong, norm, training):
    layer = TandemLinear(3, 4, norm=norm).train(training)
    layer.weight.data[1, 1] = wrong
    with pytest.raises(ValueError, match=f"TandemLinear: weight must be finite, got {wrong}"):
        layer(Encode(4)(torch.rand(generator=generator(0), size=(5, 3))))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("neuron", [IF(), IF(two_phase=True), RadixIF()])
@pytest.mark.parametrize("changed", ["bias", "norm.bias", "norm.weight", "norm.running_mean"])
def test_a_drive_of_the_first_layer_that_is_not_finite(changed, neuron, wrong):
    """Its neurons would be silent."""
    layer = TandemLinear(3, 4, norm="batch" if "norm" in changed else None, neuron=neuron).eval()
    {**dict(layer.named_parameters()), **dict(layer.named_buffers())}[changed].data[1] = wrong
    x = Encode(4, "impulse")(torch.rand(generator=generator(0), size=(5, 3)))
    with pytest.raises(ValueError, match=r"TandemLinear: (scale|bias) of its currents must be finite, got"):
        layer(x)


@pytest.mark.parametrize(("make", "sample"), MODELS.values(), ids=MODELS)
def test_a_graph_packs_into_memory_of_its_own(make, sample, monkeypatch):
    """Which it writes to in every replay, so that no later call may free or fill it."""
    model, x = lively(make), events(*sample)
    packed, pack = [], ops.pack_weight

    def noted(*arguments, **named):
        packed.append(pack(*arguments, **named))
        return packed[-1]

    replace_operator(monkeypatch, "pack_weight", noted)
    model(x)
    outside = [*packed]
    packed.clear()
    want = fresh(model, x)
    monkeypatch.setattr(weight_cache, "capturing", lambda like: True)
    packed.clear()
    same(model(x).bits, want)
    assert len(packed) == len(outside) > 0
    assert {out.data_ptr() for out in packed}.isdisjoint(out.data_ptr() for out in outside)


# --- weights that a device watches ------------------------------------------------------------------------------------


def weights_of(model):
    return [m.weight for m in model.modules() if isinstance(m, (*WEIGHTS, TandemConv1d))]


def by_optimizer(model):
    weights = weights_of(model)
    optimizer = torch.optim.SGD(weights, 1.0, fused=True)
    for w in weights:
        w.grad = 2 * w.detach()
    optimizer.step()


def in_place(model):
    with torch.no_grad():
        for w in weights_of(model):
            w.neg_()


def by_state_dict(model):
    changed = {name for name, p in model.named_parameters() if any(p is w for w in weights_of(model))}
    model.load_state_dict({name: -x if name in changed else x for name, x in model.state_dict().items()})


def by_replay(model):
    """Kernels of a CUDA graph write to memory of which no tensor hears."""
    for w in weights_of(model):
        storage(w)


def by_data(model):
    for w in weights_of(model):
        w.data.neg_()


def other_parameters(model):
    for m in model.modules():
        if isinstance(m, (*WEIGHTS, TandemConv1d)):
            m.weight = nn.Parameter(-m.weight.detach())


WATCHED_CHANGES = (by_optimizer, in_place, by_state_dict, by_replay, by_data, other_parameters)


@every_model
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_device_packs_once_for_each_change(make, sample, guard, device):
    model, x = lively(make).eval(), events(*sample)
    n = len(weights_of(model))
    with guard():
        checks, packs, bits = device.in_call(model, x)
        assert (checks, packs) == (n, n)
        for steps in (STEPS, 3):
            again = SpikeTrain(x.bits[:1] & (2**steps - 1), steps)
            assert device.in_call(model, again)[:2] == (n, 0)
    for change in WATCHED_CHANGES:
        change(model)
        with guard():
            checks, packs, now = device.in_call(model, x)
            assert (checks, packs) == (n, n), change
            assert not torch.equal(now, bits), change
            same(now, fresh(model, x), change.__name__)
            checks, packs, again = device.in_call(model, x)
            assert (checks, packs) == (n, 0)
            same(again, now)
        bits = now


@every_model
def test_a_device_forgets_what_training_overwrites(make, sample, device):
    model, x = lively(make).eval(), events(*sample)
    with torch.no_grad():
        model(x)
        want = model(x).bits.clone()
    model.train()
    assert device.in_call(model, x)[0] == 0  # in training, all weights are packed
    model.eval()
    for name, buffer in copy.deepcopy(lively(make)).named_buffers():
        model.get_buffer(name).copy_(buffer)
    with torch.no_grad():
        checks, packs, bits = device.in_call(model, x)
    assert checks == packs == len(weights_of(model))
    same(bits, want)


def test_a_device_packs_other_strides_of_the_same_memory(device):
    """The same bytes can be another matrix."""
    layer, x = TandemLinear(24, 24, bias=False).eval(), SpikeTrain(planes(STEPS, 6, 24, seed=0), STEPS)
    with torch.no_grad():
        layer.weight.copy_(2 * torch.rand(24, 24, generator=generator(0)) - 0.7)
        layer(x)
        layer.weight.data = layer.weight.data.t()
        assert device.in_call(layer, x)[1] == 1
        same(layer(x).bits, fresh(layer, x))


def test_each_stream_has_a_buffer_of_its_own(device):
    """Nobody writes or frees what another stream may read."""
    layer, x = lively(lambda: TandemLinear(20, 7)).eval(), events(20)

    def memory():
        return layer._cache._buffer.memory

    with torch.no_grad():
        layer(x)
        first, held = memory(), memory().clone()
        layer(x)
        assert memory() is first
        device.stream = 1
        layer.weight.neg_()
        layer(x)
        assert memory() is not first
        same(first, held)
        same(layer(x).bits, fresh(layer, x))
        layer.train()(x)
        second, held = memory(), memory().clone()
        device.stream = 0
        layer.weight.neg_()
        layer.train()(x)
        assert memory() is not second
        same(second, held)


def test_a_device_that_fails_holds_nothing(device, monkeypatch):
    layer, x = lively(lambda: TandemLinear(20, 7)).eval(), events(20)

    def fail(*arguments):
        device.pack_weight_if_changed(*arguments)
        raise RuntimeError("launch failed")

    with torch.no_grad():
        layer(x)
        with monkeypatch.context() as patch:
            patch.setattr(weight_cache, "pack_weight_if_changed", fail)
            with pytest.raises(RuntimeError, match="launch failed"):
                layer(x)
        assert device.in_call(layer, x)[:2] == (1, 1)


def test_a_graph_does_not_watch_weights(device, monkeypatch):
    """It packs them in each replay, into memory of its own."""
    layer, x = lively(lambda: TandemLinear(20, 7)).eval(), events(20)
    with torch.no_grad():
        layer(x)
        with monkeypatch.context() as patch:
            patch.setattr(weight_cache, "capturing", lambda like: True)
            assert device.in_call(layer, x)[0] == 0
        assert device.in_call(layer, x)[:2] == (1, 0)


def test_which_weights_are_watched():
    """Large ones, on CUDA."""
    with FakeTensorMode():
        sizes = {"cuda": (2**18, 2**18 - 1), "cpu": (2**18,)}
        watched = [(w, n) for w, ns in sizes.items() for n in ns if weight_cache._watches(torch.empty(n, device=w))]
    assert watched == [("cuda", 2**18)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES, torch.int8, torch.int16])
def test_pack_weight_if_changed(cuda, dtype):
    """On a device: packed as always after any change, and not touched if there is none."""
    weight = (20 * torch.rand(70, 48, 3, 3, device=cuda) - 10).to(dtype)
    for w in (weight, weight.to(memory_format=torch.channels_last), weight[:, ::2]):
        groups = 2
        want = ops.pack_weight(w, groups)
        out, state = torch.zeros_like(want), torch.zeros(256, dtype=torch.int64, device=cuda)
        for part in (w[:0], w[3, 5, 1, 1], w.data, w[0]):
            part.neg_().add_(1)
            pack_weight_if_changed(w, groups, out, state)
            same(out, ops.pack_weight(w, groups))
            out.zero_()
            pack_weight_if_changed(w, groups, out, state)
            assert not out.any()
            state.zero_()
            pack_weight_if_changed(w, groups, out, state)


@pytest.mark.gpu
def test_a_replayed_graph_changes_watched_weights(cuda):
    layer = TandemLinear(1024, 512).eval().to(cuda)
    x = SpikeTrain(planes(STEPS, 6, 1024, seed=0).to(cuda), STEPS)
    with torch.no_grad():
        layer(x)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            layer.weight.mul_(-1)
        for _ in range(3):
            graph.replay()
            same(layer(x).bits, fresh(layer, x))
