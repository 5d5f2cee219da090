"""A conversion never computes something else than its ANN in silence: it follows, or it raises an error."""

import copy
import io
import itertools
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from anns import Net, Pair, Residual, inputs
from tandem_cuda import IF, RadixIF, SpikeTrain, convert, freeze, quantise
from tandem_cuda.convert import Calibration


def relative_error(snn, ann, x):
    with torch.no_grad():
        want = ann(x)
        return ((snn(x) - want).norm() / want.norm()).item()


# -- average pooling whose divisor is smaller than its window


def divided(divisor, pool=nn.AvgPool2d, **how):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), pool(2, divisor_override=divisor, **how), nn.BatchNorm2d(4)),
        *(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 4)),
    )


@pytest.mark.parametrize("how", [{}, {"neuron": IF(), "per_channel": False, "correct_bias": False, "percentile": 100}])
@pytest.mark.parametrize("divisor", [1, 2, 3, 4, 9, None])
def test_averages_with_small_divisors_do_not_saturate(divisor, how):
    ann, x = divided(divisor).eval(), torch.rand(32, 1, 8, 8)
    ann(x)
    errors = [relative_error(convert(ann, steps, calibrate=x, **how), ann, x) for steps in (64, 1024)]
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_averages_with_small_divisors_do_not_saturate_without_calibration():
    ann = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.AvgPool2d(2, divisor_override=1), nn.Conv2d(1, 1, 1))
    pool = convert(ann, 4).snn.get_submodule("2")
    out = pool(SpikeTrain.from_dense(torch.ones(4, 1, 1, 4, 4)))
    assert (out.count * out.amplitude == 16).all()


# -- the ANN's quantisation


def linear(*sizes):
    torch.manual_seed(0)
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(
    "change",
    [
        lambda ann, snn: convert(ann, 8, weights="int16"),
        lambda ann, snn: quantise(ann, 2),
        lambda ann, snn: quantise(snn.snn, 3),
        lambda ann, snn: quantise(ann[0], 2),
    ],
    ids=["another conversion", "the ANN", "the spiking twin", "a layer of the ANN"],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda snn: snn(torch.rand(2, 6)),
        lambda snn: snn.train(),
        lambda snn: snn.eval(),
        lambda snn: snn.state_dict(),
        lambda snn: freeze(snn),
    ],
    ids=["forward", "train", "eval", "state_dict", "freeze"],
)
def test_twins_round_to_the_same_bits(change, use):
    ann = linear(6, 5, 4, 3).eval()
    snn = convert(ann, 8, weights="int8")
    use(snn)
    change(ann, snn)
    with pytest.raises(RuntimeError, match="must round its weights as its spiking twin does"):
        use(snn)


def test_quantising_the_spiking_twin_alone_is_noticed():
    ann = linear(6, 5, 4, 3).eval()
    snn, other, x = convert(ann, 8), convert(copy.deepcopy(ann), 8), torch.rand(2, 6)
    quantise(snn.snn, 4)
    with pytest.raises(RuntimeError, match=r"must round its weights as its spiking twin does.* Call quantise on the"):
        snn(x)
    quantise(snn, 4)  # the advice
    quantise(other, 4)
    assert torch.equal(snn(x), other(x))


def test_quantising_both_twins_is_fine():
    ann = linear(6, 5, 4, 3).eval()
    snn = convert(ann, 8, weights="int8")
    quantise(snn, 4)
    snn(torch.rand(2, 6))


# -- methods that an instance overrides


def wrapped(layer, name):
    """Override a method on the instance, as wrappers for adapters and devices do."""
    f = getattr(layer, name)
    setattr(layer, name, lambda *x: 3 * f(*x))


@pytest.mark.parametrize("name", ["forward", "_conv_forward"])
def test_methods_of_instances_are_refused(name):
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    wrapped(ann[0], name)
    with pytest.raises(ValueError, match=f"0 .Conv2d.: remove what its instance overrides .del module.{name}"):
        convert(ann, 8)
    delattr(ann[0], name)  # the advice
    convert(ann, 8)


def test_activations_with_methods_of_their_own_are_refused():
    ann = linear(6, 5, 3)
    ann[1].forward = lambda x: x.clamp(0, 0.1)
    with pytest.raises(ValueError, match="remove what its instance overrides"):
        convert(ann, 8)


def test_containers_with_methods_of_their_own_are_traced():
    ann = nn.Sequential(linear(6, 5, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    wrapped(ann[0], "forward")
    x = torch.rand(64, 6)
    assert relative_error(convert(ann, 256, calibrate=x), ann, x) < 0.05


# -- changes of the ANN after the conversion


class Switched(nn.Module):
    """A forward that depends on attributes of its own, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
        self.drop = nn.Dropout(0.2)
        self.doubles, self.epoch, self.calls, self.activation = False, 0, 0, F.relu

    def forward(self, x):
        self.calls += 1
        x = self.activation(self.first(x))
        return self.last(self.drop(2 * x if self.doubles else x))


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)),
    ).eval()


def set_to(name, value):
    *path, key = name.split(".")

    def change(ann):
        setattr(ann.get_submodule(".".join(path)), key, value)

    return change


@pytest.mark.parametrize(
    ("make", "change", "name"),
    [
        (cnn, set_to("1", nn.Hardtanh(-1, 0.1)), "1 changed"),
        (cnn, set_to("2", nn.AvgPool2d(2)), "2 changed"),
        (cnn, set_to("5.kernel_size", 3), "5.kernel_size changed"),
        (cnn, set_to("5.divisor_override", 1), "5.divisor_override changed"),
        (cnn, set_to("3.stride", (2, 2)), "3.stride changed"),
        (cnn, set_to("7.p", 0.1), "7.p changed"),
        (cnn, lambda ann: ann.insert(9, nn.ReLU6()), "9 changed"),
        (cnn, lambda ann: ann.append(nn.Softmax(1)), "9 changed"),
        (cnn, lambda ann: wrapped(ann[3], "forward"), "3.forward changed"),
        (cnn, lambda ann: wrapped(ann[1], "forward"), "1.forward changed"),
        (Switched, set_to("doubles", True), "doubles changed"),
        (Switched, set_to("activation", torch.tanh), "activation changed"),
    ],
)
def test_changes_of_the_ann_are_noticed(make, change, name):
    ann = make()
    x = torch.rand(2, 6) if make is Switched else torch.rand(2, 1, 14, 14)
    snn = convert(ann, 8)
    other = copy.deepcopy(snn)
    again = pickle.loads(pickle.dumps(snn))
    change(ann)
    for use in (lambda: snn(x), snn.train, snn.eval, snn.state_dict):
        with pytest.raises(RuntimeError, match=f"must compute what it did when it was converted, but {name}"):
            use()
    for network in (other, again):
        network(x)
        change(network.ann())
        with pytest.raises(RuntimeError, match="must compute what it did"):
            network(x)


def test_changes_that_do_not_matter_are_accepted():
    ann = Switched()
    snn = convert(ann, 8)
    x = torch.rand(2, 6)
    for epoch in range(3):
        ann.epoch = epoch
        ann(x)  # counts
        snn(x)
    ann.relu = nn.Tanh()  # forward never calls it
    ann.new = [1, 2]
    ann.other = 3
    snn(x)
    ann.doubles = True
    with pytest.raises(RuntimeError, match="doubles"):
        snn(x)
    ann.doubles = False
    snn(x)


def test_an_equal_module_may_be_put_in_place():
    ann = cnn()
    snn = convert(ann, 8)
    ann[1], ann[2] = nn.ReLU(), nn.MaxPool2d(2)
    snn(torch.rand(2, 1, 14, 14))


def test_batch_norm_may_change_its_momentum():
    """Both twins have the same batch norm."""
    ann = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    snn = convert(ann, 8)
    ann[1].momentum = 0.9
    snn(torch.rand(4, 6))


# -- questions about types


def is_one(h):
    return type(h) is torch.Tensor


QUESTIONS = {
    "isinstance": lambda h: isinstance(h, torch.Tensor),
    "isinstance of several": lambda h: isinstance(h, (list, torch.Tensor)),
    "is_tensor": lambda h: torch.is_tensor(h),
    "type is": lambda h: type(h) is torch.Tensor,
    "a function asks for type": is_one,
    "type of shape": lambda h: isinstance(h.shape, torch.Size),
    "type of a size": lambda h: isinstance(h.size(0), int) and isinstance(h.shape[1], int),
    "a real type": lambda h: type([]) is list and isinstance(nn.ReLU, type) and type("A", (), {}).__name__ == "A",
    "not a tuple": lambda h: not isinstance(h, tuple),
    "a tuple": lambda h: isinstance(h.chunk(2, 1), tuple),
}


class Asking(nn.Module):
    def __init__(self, question):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.question = question

    def forward(self, x):
        h = F.relu(self.first(x))
        if self.question(h):
            h = F.relu(self.second(h))
        return self.last(h)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
@pytest.mark.parametrize("form", ["plain", "with an example"])
def test_types_are_what_they_are_in_the_ann(question, form):
    torch.manual_seed(0)
    ann, x = Asking(question).eval(), torch.rand(16, 6)
    snn = convert(ann, 8, example=x if form == "with an example" else None)
    assert snn.spiking_layers == ("first", "second")
    assert not {"type", "isinstance"} & {*globals()}
    assert torch.is_tensor.__module__ == "torch"


# -- forwards that are not the same in every call


class Unsteady(nn.Module):
    def __init__(self, skip):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.skip, self.calls = skip, 0
        self.generator, self.torch_generator = np.random.default_rng(0), torch.Generator()

    def forward(self, x):
        h = F.relu(self.first(x))
        if not self.skip(self):
            h = F.relu(self.second(h))
        return self.last(h)


RARE = 1e-9
DRAWS = {
    "random": lambda net: random.random() < RARE,
    "numpy": lambda net: np.random.rand() < RARE,  # noqa: NPY002
    "torch": lambda net: torch.rand(()) < RARE,
    "a generator of numpy": lambda net: net.generator.random() < RARE,
    "a generator of torch": lambda net: torch.rand((), generator=net.torch_generator) < RARE,
    "in training": lambda net: net.training and random.random() < RARE,
}


@pytest.mark.parametrize("skip", DRAWS.values(), ids=DRAWS)
def test_random_numbers_in_forward_are_refused(skip):
    with pytest.raises(ValueError, match="must not draw random numbers in forward"):
        convert(Unsteady(skip), 8)


def test_advice_on_random_numbers():
    torchvision = pytest.importorskip("torchvision")

    class Steady(Unsteady):
        def __init__(self):
            super().__init__(None)
            self.depth = torchvision.ops.StochasticDepth(0.1, "row")

        def forward(self, x):
            h = F.relu(self.first(x))
            return self.last(F.relu(h + self.depth(self.second(h))))

    convert(Steady(), 8)(torch.rand(2, 6))


def toggled(net):
    net.calls += 1
    return net.calls % 4 == 3


def toggled_by_buffer(net):
    net.count += 1
    return net.count % 4 == 3


def toggled_by_new_buffer(net):
    net.count = net.count + 1
    return net.count % 4 == 3


@pytest.mark.parametrize("skip", [toggled, toggled_by_buffer, toggled_by_new_buffer])
def test_a_forward_that_changes_from_call_to_call_is_refused(skip):
    net = Unsteady(skip)
    net.register_buffer("count", torch.tensor(0))
    with pytest.raises(ValueError, match=r"must do the same in every call, got .*attributes that it reads"):
        convert(net, 8)


# -- what forward does beside returning outputs


class Acting(nn.Module):
    """Calls a function of itself and of its hidden values."""

    def __init__(self, act):
        super().__init__()
        self.first, self.last, self.act, self.calls = nn.Linear(6, 8), nn.Linear(8, 3), act, 0
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        h = F.relu(self.first(x))
        self.act(self, h)
        return self.last(h)


def averages_in_training(net, h):
    if net.training:
        net.mean.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)


def counts(net, h):
    net.count += 1


def copies(net, h):
    net.mean.copy_(h.detach().mean(0))


def writes_through_data(net, h):
    net.mean.data.add_(h.detach().mean(0))


def writes_a_part(net, h):
    net.mean[...] = h.detach().mean(0)


def replaces(net, h):
    net.mean = 0.9 * net.mean


CHANGES = {
    averages_in_training: "mean",
    counts: "count",
    copies: "mean",
    writes_through_data: "mean",
    writes_a_part: "mean",
    replaces: "mean",
}


@pytest.mark.parametrize("how", [{}, {"calibrate": torch.rand(8, 6)}], ids=["plain", "calibrated"])
@pytest.mark.parametrize("act", CHANGES)
def test_a_forward_that_changes_its_buffers_is_refused(act, how):
    net = Acting(act)
    mean, count = net.mean, net.count
    with pytest.raises(
        ValueError, match=rf"must not change parameters or buffers in forward.* changes of {CHANGES[act]}:"
    ):
        convert(net, 8, **how)
    assert net.mean is mean
    assert not net.mean.any()
    assert net.count is count
    assert not net.count


def test_a_layer_that_replaces_its_weight_is_refused():
    class Limited(nn.Linear):
        def forward(self, x):
            self.weight.data = torch.renorm(self.weight.data, 2, 0, 1.0)
            return super().forward(x)

    with pytest.raises(ValueError, match=r"`self.weight.data = .* cannot be traced"):
        convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Limited(8, 3)), 8)


def clips_by_data(net, h):
    for p in net.parameters():
        p.data.clamp_(-0.1, 0.1)


def clips_without_gradients(net, h):
    with torch.no_grad():
        for p in net.parameters():
            p.clamp_(-0.1, 0.1)


def freezes(net, h):
    for p in net.parameters():
        p.requires_grad_(False)


@pytest.mark.parametrize("act", [clips_by_data, clips_without_gradients, freezes])
@pytest.mark.parametrize("how", [{}, {"calibrate": torch.rand(8, 6)}], ids=["plain", "calibrated"])
def test_changes_of_real_parameters_are_refused(act, how):
    net = Acting(act)
    with pytest.raises(ValueError, match=r"must not change parameters or buffers in forward"):
        convert(net, 8, **how)
    assert all(x.requires_grad for x in net.parameters())


def test_changes_of_parameters_with_channels_last_are_refused():
    def run(net, x):
        clips_by_data(net, x)
        return net.last(F.relu(net.first(x)))

    net = Net(run, first=nn.Conv2d(3, 4, 3), last=nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"must not change parameters or buffers .* changes of first.weight, "):
        convert(net, 8)


def test_lists_and_dicts_have_their_values_back():
    def stores(net, h):
        net.seen.append(h)
        net.named["h"] = h
        net.pair = (h, 1)

    net = Acting(stores)
    net.seen, net.named, net.pair = [1], {}, None
    with pytest.warns(UserWarning, match=r"convert: forward stores tensors in named, pair, seen, which"):
        convert(net, 8)
    assert (net.seen, net.named, net.pair) == ([1], {}, None)


def registers(net, h):
    if not hasattr(net, "grid"):
        net.register_buffer("grid", torch.ones(8), persistent=False)


def stores_sizes(net, h):
    net.sizes = h.shape[1:]


def scales_a_copy(net, h):
    net.mask.to(h.dtype).mul_(0.5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("act", [registers, stores_sizes, scales_a_copy, lambda net, h: None])
@pytest.mark.parametrize("how", [{}, {"example": torch.rand(8, 6)}], ids=["plain", "with an example"])
def test_harmless_effects(act, how):
    net, x = Acting(act), torch.rand(4, 6)
    net.register_buffer("mask", torch.ones(3, dtype=torch.uint8))
    net.register_buffer("sparse", torch.eye(3).to_sparse())
    convert(net, 8, **how)(x)
    net(x)


def test_conversion_does_not_count_its_calls():
    def calls(net, h):
        net.calls += 1

    net = Acting(calls)
    snn = convert(net, 8)
    assert net.calls == 0
    snn(torch.rand(2, 6))
    assert net.calls == 0


def test_stored_tensors():
    def stores(net, h):
        net.hidden = h

    net = Acting(stores)
    with pytest.warns(
        UserWarning, match=r"convert: forward stores tensors in hidden, which .*: return them, in training"
    ):
        convert(net, 8)
    assert "hidden" not in vars(net)


class Backbone(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.second, self.last = how, nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        with self.how(self):
            h = F.relu(self.first(x))
        return self.last(F.relu(self.second(h)))


@pytest.mark.parametrize(
    "how",
    [
        lambda net: torch.no_grad(),
        lambda net: torch.inference_mode(),
        lambda net: torch.set_grad_enabled(not net.training),
    ],
)
def test_parts_without_gradients(how):
    net = Backbone(how)
    with pytest.raises(ValueError, match=r"got torch.no_grad\(\) around first in first: call requires_grad_\(False\)"):
        convert(net, 8)
    with torch.no_grad(), pytest.raises(ValueError, match=r"got torch.no_grad\(\) around first"):
        convert(net, 8)
    net.first.requires_grad_(False)  # as the message says
    snn = convert(net, 8)
    snn(torch.rand(5, 6)).sum().backward()
    assert net.first.weight.grad is None
    assert net.second.weight.grad is not None


def test_gradients_that_are_disabled_only_in_eval_mode():
    convert(Backbone(lambda net: torch.set_grad_enabled(net.training)), 8)
    with torch.no_grad():
        convert(Backbone(lambda net: torch.enable_grad()), 8)


class Shapes(Backbone):
    """Only sizes, and what has no gradient, are computed without gradients."""

    def forward(self, x):
        h = F.relu(self.second(F.relu(self.first(x))))
        with torch.no_grad():
            features = h.shape[-1]
        y = self.last(h.view(-1, features))
        if self.training:
            with torch.no_grad():
                return y, y.detach().argmax(1)
        return y


class Checkpointed(Backbone):
    def forward(self, x):
        h = checkpoint(lambda h: F.relu(self.second(h)), F.relu(self.first(x)), use_reentrant=True)
        return self.last(h)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the checkpoint, whose input needs no gradient
@pytest.mark.parametrize("network", [Shapes, Checkpointed])
def test_what_loses_no_gradient(network):
    net = network(None)
    snn = convert(net, 8, example=torch.rand(2, 6))
    snn.eval()(torch.rand(2, 6)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


class Same(torch.autograd.Function):
    """Returns its input, so that no call of torch tells of it."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("function", [Reverse, Straight, Same])
@pytest.mark.parametrize("behind", [True, False])
def test_functions_with_a_backward_of_their_own_are_refused(function, behind):
    apply = (lambda x: function.apply(x)) if function is Same else function.apply

    def run(n, x):
        h = F.relu(n.first(x))
        return apply(n.last(h)) if behind else n.last(function.apply(h))

    with pytest.raises(ValueError, match=rf"torch.autograd.Function {function.__name__} in Net, whose backward"):
        convert(Net(run, first=nn.Linear(6, 8), last=nn.Linear(8, 3)), 8)


# -- sums that broadcast


def broadcasting(pool):
    def run(n, x):
        h = F.relu(n.first(x))
        return n.last(F.relu(h + n.second(n.pool(h))).flatten(1))

    first, second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
    return Net(run, first=first, second=second, pool=pool, last=nn.Linear(4 * 64, 3))


@pytest.mark.parametrize("how", [{}, {"example": torch.rand(2, 1, 8, 8)}, {"calibrate": torch.rand(8, 1, 8, 8)}])
@pytest.mark.parametrize("make", [lambda: nn.AdaptiveAvgPool2d(1), lambda: nn.AdaptiveMaxPool2d((1, 1))])
def test_sums_that_broadcast_are_refused(make, how):
    with pytest.raises(ValueError, match=r"make its inputs alike in size, by nn.Upsample.*: spikes do not broadcast"):
        convert(broadcasting(make()), 8, **how)
    ann = broadcasting(nn.Sequential(make(), nn.Upsample(scale_factor=8)))  # the advice
    convert(ann, 8, **how)(torch.rand(2, 1, 8, 8))


# -- the twins' dtype


CONCATENATED = {"per channel": {}, "per layer": {"per_channel": False}, "learned": {"learn_thresholds": True}}


class Dense(nn.Module):
    """Concatenation, batch norm without a weight layer, a constant factor, averages and a sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(7)
        self.c, self.pool, self.last = nn.Conv2d(7, 7, 1), nn.AvgPool2d(2), nn.Linear(7 * 16, 3)

    def forward(self, x):
        a = F.relu(self.a(x))
        h = torch.cat([a, F.relu(self.b(a))], 1)
        h = F.relu(self.norm(h))
        h = F.relu(self.c(h) + 0.1 * h)
        return self.last(self.pool(h).flatten(1))


@pytest.mark.parametrize("move", [lambda m: m.double(), lambda m: m.double().float().double(), lambda m: m.to("cpu")])
@pytest.mark.parametrize("how", CONCATENATED.values(), ids=CONCATENATED)
def test_what_the_spiking_twin_alone_holds_follows_the_ann(how, move):
    torch.manual_seed(0)
    x, one, other = torch.rand(16, 1, 8, 8), Dense().eval(), Dense().eval()
    other.load_state_dict(one.state_dict())
    by_ann, by_snn = convert(one, 8, calibrate=x, **how), convert(other, 8, calibrate=x, **how)
    move(one)
    move(by_snn)
    x = x.to(next(one.parameters()).dtype)
    found = by_ann(x)
    assert found.dtype == x.dtype
    assert torch.equal(found, by_snn(x))
    before = {name: (b.dtype, b.clone()) for name, b in by_ann.snn.named_buffers()}
    after = {name: (b.dtype, b) for name, b in by_snn.snn.named_buffers()}
    for name, (dtype, value) in before.items():
        assert dtype == after[name][0]
        assert torch.equal(value, after[name][1])
    if x.dtype == torch.float64:  # as if converted in this precision
        fresh = convert(one, 8, calibrate=by_ann.calibration, learn_thresholds=how.get("learn_thresholds", False))
        assert torch.equal(fresh(x), found)


def test_what_follows_in_inference_mode_can_be_trained():
    ann, x = Dense().eval(), torch.rand(16, 1, 8, 8)
    snn = convert(ann, 8, calibrate=x, learn_thresholds=True)
    ann.double()
    with torch.inference_mode():
        snn(x.double())
    snn.train()(x.double()).square().sum().backward()
    assert all(p.grad is not None for p in snn.parameters())


# -- what is saved


def kept(state, how):
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)
    if how == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        return safetensors.load(safetensors.save(state))
    return dict(state)


@pytest.mark.parametrize("how", ["torch.save", "safetensors", "dict"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("neuron", [None, IF(initial=0.25, clip=True)])
def test_a_saved_network_comes_back_whole(how, nested, neuron):
    torch.manual_seed(0)
    ann, x = Residual().eval(), inputs(16)
    snn = convert(ann, 8, calibrate=x, neuron=neuron, learn_thresholds=True)
    with torch.no_grad():
        for p in snn.parameters():
            p.mul_(1.01)
    prefix = "net." if nested else ""
    state = kept((nn.ModuleDict({"net": snn}) if nested else snn).state_dict(), how)
    calibration = Calibration.of_state(state, prefix)
    assert calibration.neuron == (neuron or RadixIF())
    fresh = convert(Residual().eval(), 8, calibrate=calibration, learn_thresholds=True)
    (nn.ModuleDict({"net": fresh}) if nested else fresh).load_state_dict(state)
    assert torch.equal(fresh(x), snn(x))


def test_loading_takes_over_the_calibration():
    x = inputs(16)
    one = convert(Residual().eval(), 8, calibrate=x)
    torch.manual_seed(1)
    other = convert(Residual().eval(), 4, calibrate=2 * inputs(16, 1))
    other.load_state_dict(one.state_dict())
    other.set_time_steps(8)
    assert torch.equal(other(x), one(x))


def test_a_calibrated_state_does_not_load_into_other_networks():
    ann, x = Residual().eval(), inputs(16)
    state = convert(ann, 8, calibrate=x).state_dict()
    plain = convert(Residual().eval(), 8)
    with pytest.raises(RuntimeError, match=r"calibrated network.*calibrate=Calibration.of_state\(state\)"):
        plain.load_state_dict(state)
    convert(Residual().eval(), 8, calibrate=Calibration.of_state(state)).load_state_dict(state)  # the advice
    layers = convert(Residual().eval(), 8, calibrate=x, per_channel=False)
    with pytest.raises(RuntimeError, match="thresholds for other channels"):
        layers.load_state_dict(state)
    one_phase = convert(Residual().eval(), 8, calibrate=x, neuron=IF())
    with pytest.raises(RuntimeError, match="the state is of a network with RadixIF"):
        one_phase.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Residual().load_state_dict(state)


def test_a_state_without_calibration_does_not_load_into_a_calibrated_network():
    x = inputs(16)
    snn = convert(Residual().eval(), 8, calibrate=x)
    state = convert(Residual().eval(), 8).state_dict()
    with pytest.raises(RuntimeError, match=r"without calibration.*snn.ann\(\)"):
        snn.load_state_dict(state)
    snn.ann().load_state_dict(state)  # the advice
    snn.load_state_dict(Residual().state_dict())  # the ANN's own state has no thresholds
    convert(Residual().eval(), 8).load_state_dict(state)


def test_states_that_are_not_of_a_calibration():
    with pytest.raises(ValueError, match="must be that of a calibrated TandemNetwork, got one without '_extra_state'"):
        Calibration.of_state(convert(Residual().eval(), 8).state_dict())
    for state in (torch.zeros(3, dtype=torch.uint8), "text", {"levels": {}}, torch.tensor(list(b"{}"))):
        with pytest.raises(ValueError, match="must be that of a TandemNetwork"):
            Calibration.of_state({"_extra_state": state})


# -- the forms of calibration data


def two_inputs():
    return Pair(
        lambda n, x, y: n.last(F.relu(F.relu(n.a(x)) + F.relu(n.b(y)))),
        a=nn.Linear(4, 5), b=nn.Linear(3, 5), last=nn.Linear(5, 2),
    )  # fmt: skip


class Numbered(torch.utils.data.Dataset):
    def __init__(self, *parts):
        self.parts = parts

    def __len__(self):
        return len(self.parts[0])

    def __getitem__(self, i):
        return tuple(part[i] for part in self.parts)


def two():
    torch.manual_seed(0)
    return torch.rand(20, 4), torch.rand(20, 3), torch.arange(20)


FORMS = {
    "tuples": lambda x, y, z: [(x, y)],
    "tuples with labels": lambda x, y, z: [(x, y, z)],
    "lists": lambda x, y, z: [[x, y, z]],
    "nested": lambda x, y, z: [((x, y), z)],
    "dicts": lambda x, y, z: [{"label": z, "y": y, "x": x}],
    "nested dicts": lambda x, y, z: [({"y": y, "x": x}, z)],
    "a Dataset": Numbered,
    "a DataLoader": lambda x, y, z: torch.utils.data.DataLoader(Numbered(x, y, z), 20),
    "an iterator": lambda x, y, z: iter([(x, y)]),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_calibration_data(form):
    x, y, z = two()
    ann = two_inputs().eval()
    want = convert(ann, 8, calibrate=[(x, y)])
    snn = convert(ann, 8, calibrate=form(x, y, z))
    for name, level in want.levels.items():
        assert torch.equal(snn.levels[name], level)
    with torch.no_grad():
        assert (snn(x, y) - ann(x, y)).norm() < 0.2 * ann(x, y).norm()
    assert snn.report().agreement > 0.8


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (lambda x, y: x, "Tensors x and y, or dicts with them, got Tensor in batch 0"),
        (lambda x, y: [(x,)], "got a tuple of Tensor in batch 0"),
        (lambda x, y: [(x, y), (x, 3)], "got a tuple of Tensor, int in batch 1"),
        (lambda x, y: [{"x": x, "z": y}], "got a dict with x, z in batch 0"),
        (lambda x, y: [(x, y * torch.nan)], "finite, got NaN or infinity in batch 0"),
        (lambda x, y: [(x[:0], y[:0])], r"at least one sample, got \[0, 4\] for x in batch 0"),
        (lambda x, y: ["text"], "got str in batch 0"),
    ],
)
def test_unusable_calibration_data(data, got):
    x, y, _ = two()
    with pytest.raises(ValueError, match=got):
        convert(two_inputs(), 8, calibrate=data(x, y))


# -- the plain call, and how well it went


def deep(depth=6):
    """A trained-like network of many layers, on which one-phase neurons fail at few time steps."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU()]
    ann = nn.Sequential(*layers, nn.Linear(32, 4))
    optimiser = torch.optim.Adam(ann.parameters(), 0.01)
    x = torch.randn(256, 16)
    labels = x[:, :4].argmax(1)
    for _ in range(100):
        F.cross_entropy(ann(x), labels).backward()
        optimiser.step()
        optimiser.zero_grad()
    return ann.eval(), x


def test_the_plain_call_has_the_best_settings(recwarn):
    ann, x = deep()
    plain = convert(ann, 4, calibrate=x)
    assert not [w for w in recwarn if "convert" in str(w.message)]
    best = convert(ann, 4, calibrate=x, neuron=RadixIF(), per_channel=True, correct_bias=True)
    assert torch.equal(plain(x), best(x))
    assert plain.report().agreement >= 0.9


@pytest.mark.parametrize(("T", "how"), [(9, {}), (8, {"mode": "constant"})])
def test_the_plain_call_where_radix_spikes_are_impossible(T, how):
    ann, x = deep()
    plain = convert(ann, T, calibrate=x, **how)
    best = convert(ann, T, calibrate=x, neuron=IF(initial=0.5, two_phase=True), **how)
    assert torch.equal(plain(x), best(x))
    assert plain.calibration.neuron == IF(initial=0.5, two_phase=True)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"neuron": IF()}, "leave out neuron,"),
        ({"neuron": IF(), "mode": "constant"}, "leave out mode and neuron,"),
        (
            {"neuron": IF(), "per_channel": False, "correct_bias": False, "percentile": 50.0},
            "leave out neuron and percentile and per_channel and correct_bias,",
        ),
    ],
)
def test_a_conversion_that_went_badly_warns(how, said):
    ann, x = deep()
    with pytest.warns(UserWarning, match=r"for \d+.\d% of 64 samples, .*shows the error of each layer") as warned:
        snn = convert(ann, 2, calibrate=x, **how)
    text = str(warned[0].message)
    assert said in text
    assert "use more time steps than 2" in text
    assert warned[0].filename == __file__
    report = snn.report()
    assert report.is_unlike
    assert report.agreement < 0.9
    assert str(report).splitlines()[1].startswith("The network gives the class of its ANN for")
    assert f"the error starts at {report.error_starts.name} (" in str(report)
    # the advice, one piece after another
    better = convert(ann, 2, calibrate=x).report()
    assert better.agreement > report.agreement
    more = convert(ann, 256, calibrate=x, **(how | {"percentile": 100.0})).report()
    assert not more.is_unlike


def test_no_advice_to_use_more_radix_spikes_than_there_are():
    ann, x = deep()
    with pytest.warns(UserWarning, match="the network gives the class of its ANN") as warned:
        convert(ann, 8, calibrate=x, percentile=50.0)
    advice = "To change that: leave out percentile, since the defaults are better; or train the network further."
    assert advice in str(warned[0].message)


def test_outputs_that_are_no_classes_are_compared_too():
    torch.manual_seed(0)
    ann = nn.Sequential(*[m for _ in range(8) for m in (nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())], nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        for p in ann.parameters():
            p.abs_()
    x = torch.rand(8, 1, 6, 6)
    with pytest.warns(UserWarning, match="the outputs differ from the ANN's by"):
        snn = convert(ann, 1, calibrate=x, neuron=IF(), percentile=100, correct_bias=False)
    assert snn.report().agreement is None
    assert snn.report().output_error > 0.5
    assert convert(ann, 64, calibrate=x).report().output_error < 0.1


def test_thresholds_of_layers_where_channels_cannot_have_their_own():
    torch.manual_seed(0)  # weights with which both layers fire
    ann = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(4 * 144, 3)),
    ).eval()
    x = torch.rand(16, 1, 6, 6)
    snn = convert(ann, 8, calibrate=x)
    assert all(isinstance(level, float) for level in snn.levels.values())
    assert "thresholds of layers and not of channels, which 2 (PixelShuffle) cannot take" in str(snn.report())
    with pytest.raises(ValueError, match="per_channel=False"):
        convert(ann, 8, calibrate=x, per_channel=True)


def test_neurons_of_a_calibration_are_used_again():
    ann, x = linear(6, 5, 4, 3).eval(), torch.rand(16, 6)
    first = convert(ann, 8, calibrate=x, neuron=IF(initial=0.25))
    again = convert(ann, 8, calibrate=first.calibration)
    assert torch.equal(again(x), first(x))
    radix = convert(ann, 8, calibrate=x)
    assert radix.calibration.neuron == RadixIF()
    with pytest.raises(ValueError, match=r"got 16; pass neuron=IF\(initial=0.5, two_phase=True\) for more"):
        convert(ann, 16, calibrate=radix.calibration)
    counting = convert(ann, 16, calibrate=radix.calibration, neuron=IF(initial=0.5, two_phase=True))  # the advice
    assert not counting.report(x).is_unlike


def test_conversions_without_calibration_have_the_neurons_of_the_paper():
    snn = convert(linear(6, 5, 3), 8)
    assert snn.snn.get_submodule("0").neuron == IF()


@pytest.mark.parametrize("how", [{}, {"percentile": 99.0}])
def test_calibration_leaves_the_data_as_it_is(how):
    ann, x = Net(lambda n, x: n.layers(x.mul_(2).add_(0.5)), layers=linear(6, 5, 3)).eval(), torch.rand(32, 6)
    before = x.clone()
    snn = convert(ann, 64, calibrate=x, **how)
    assert torch.equal(x, before)
    assert relative_error(snn, lambda x: ann.layers(2 * x + 0.5), x.clone()) < 0.05


# -- what must not be noticed, and what must


@pytest.mark.parametrize(
    "change",
    [
        lambda ann: [setattr(m, "label", name) for name, m in ann.named_modules()],
        lambda ann: ann.apply(lambda m: setattr(m, "quantize", False)),
        lambda ann: setattr(ann[1], "inplace", False),
        lambda ann: setattr(ann[1], "extra_repr", lambda: "an activation"),
        lambda ann: setattr(ann, "bank", np.zeros(3)),
        lambda ann: setattr(ann, "bank", torch.zeros(3)),
        lambda ann: setattr(ann, "step", 7),
    ],
    ids=["labels", "flags", "no longer in place", "extra_repr", "an array", "a tensor", "a counter"],
)
@pytest.mark.parametrize("calibrated", [False, True])
def test_changes_without_effect_are_no_alarm(change, calibrated):
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    ann.eval().bank, ann.step, x = None, 0, torch.rand(16, 1, 8, 8)
    seen = []
    snn = convert(ann, 8, calibrate=x if calibrated else None)
    other = pickle.loads(pickle.dumps(snn))
    ann[0].register_forward_hook(lambda module, inputs, out: seen.append(out))
    change(ann)
    change(other.ann())
    snn(x)
    other(x)
    assert not seen  # the ANN itself does not run


def test_a_pickle_may_be_loaded_in_another_process():
    """Functions then have other addresses."""
    snn = convert(Switched(), 8)
    described = snn._watch.description
    assert any("relu" in line for line in described)
    assert not any("0x" in line for line in described)


class Held(nn.Module):
    """Settings in places where they are easily overlooked."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.shift, self.config, self._scale = [0.0, 1.0], {"offset": 0.5}, 2.0
        self.tensor = torch.tensor(0.5)
        self.register_buffer("mean", torch.tensor(0.25), persistent=False)

    def forward(self, x):
        x = (x - self.mean) * self._scale + self.shift[0] + self.tensor + self.config["offset"]
        return self.last(F.relu(self.first(x)))


@pytest.mark.parametrize(
    "change",
    [
        lambda ann: ann.shift.__setitem__(0, 5.0),
        lambda ann: ann.config.update(offset=2.0),
        lambda ann: setattr(ann, "_scale", 3.0),
        lambda ann: setattr(ann, "tensor", torch.tensor(2.0)),
    ],
    ids=["a list", "a dict", "a private attribute", "a plain tensor"],
)
def test_hidden_settings_are_noticed(change):
    ann, x = Held().eval(), torch.rand(4, 6)
    snn = convert(ann, 8)
    snn(x)
    change(ann)
    with pytest.raises(RuntimeError, match="must compute what it did when it was converted"):
        snn(x)


def test_buffers_that_are_not_saved_are_followed():
    ann, x = Held().eval(), torch.rand(4, 6)
    snn = convert(ann, 64, calibrate=x)
    ann.mean = torch.tensor(0.5)
    assert torch.equal(snn(x), convert(ann, 64, calibrate=snn.calibration)(x))
    snn.double()
    assert ann.mean.dtype == torch.float64
    ann.float()
    ann.tensor = ann.tensor  # moves leave plain tensors alone
    snn(x)


def test_one_module_in_two_places_is_watched():
    ann = Net(
        lambda n, x: n.last(n.pool(F.relu(n.first(n.pool(x))))),
        pool=nn.MaxPool2d(2), first=nn.Conv2d(1, 4, 1), last=nn.Conv2d(4, 2, 1),
    ).eval()  # fmt: skip
    x = torch.rand(2, 1, 8, 8)
    snn = convert(ann, 8)
    ann.pool.kernel_size = ann.pool.stride = 1
    with pytest.raises(RuntimeError, match=r"pool.kernel_size, pool.stride changed"):
        snn(x)


def test_what_makes_the_ann_fail_is_named():
    ann, x = cnn(), torch.rand(16, 1, 14, 14)
    snn = convert(ann, 8, calibrate=x)
    ann[5].stride = 1  # its linear layer no longer fits
    with pytest.raises(RuntimeError, match=r"5\.stride changed"):
        snn(x)


def test_equal_conversions_of_one_quantised_ann_may_stand_side_by_side():
    torch.manual_seed(0)
    ann, x = linear(6, 5, 4, 3).eval(), torch.rand(32, 6)
    one = convert(ann, 4, calibrate=x, weights="int8")
    other = convert(ann, 4, calibrate=one.calibration)
    assert torch.equal(one(x), other(x))
    convert(ann, 4, calibrate=3 * x, weights="int8")
    with pytest.raises(RuntimeError, match="another conversion of it has other thresholds"):
        one(x)


@pytest.mark.parametrize("first", [True, False], ids=["channels first", "layers first"])
@pytest.mark.parametrize("weights", ["int8", None], ids=["quantised again", "quantised before"])
def test_conversions_with_thresholds_of_channels_and_of_layers_are_told_apart(first, weights):
    torch.manual_seed(0)
    ann, x = linear(6, 5, 4, 3).eval(), torch.rand(32, 6)
    plain = copy.deepcopy(ann)
    one = convert(ann, 4, calibrate=x, weights="int8", per_channel=first)
    want = one(x)
    other = convert(ann, 4, calibrate=x, weights=weights, per_channel=not first)
    with pytest.raises(RuntimeError, match="another conversion of it has other thresholds"):
        one(x)
    alone = convert(plain, 4, calibrate=other.calibration, weights="int8")
    assert torch.equal(ann(x), plain(x))
    assert torch.equal(other(x), alone(x))
    assert torch.equal(other.double()(x.double()), alone.double()(x.double()))
    other.float()
    assert torch.equal(convert(ann, 4, calibrate=one.calibration)(x), want)  # the advice


def test_outputs_that_are_no_numbers_are_not_compared():
    def run(n, x):
        y = n.layers(x)
        return y, y > 0, y.argmax(1)

    x = torch.rand(16, 6)
    assert convert(Net(run, layers=linear(6, 5, 3)).eval(), 64, calibrate=x).report().output_error < 0.2


@pytest.mark.parametrize("inference", ["convert", "set_time_steps"])
def test_conversions_in_inference_mode_can_be_trained(inference):
    ann, x = Dense().eval(), torch.rand(16, 1, 8, 8)
    with torch.inference_mode(inference == "convert"):
        snn = convert(ann, 8, calibrate=x)
    with torch.inference_mode(inference == "set_time_steps"):
        snn.set_time_steps(4)
    snn.train()(x).square().sum().backward()


def test_a_loader_may_use_its_memory_again():
    ann, batches = linear(6, 5, 3).eval(), [torch.rand(8, 6), 3 * torch.rand(8, 6)]

    def loader():
        memory = torch.empty(8, 6)
        for batch in batches:
            yield memory.copy_(batch)

    found = convert(ann, 8, calibrate=loader()).levels["0"]
    assert torch.equal(found, convert(ann, 8, calibrate=batches).levels["0"])


def test_nested_lenient_loads_leave_thresholds_out():
    x = inputs(16)
    state = nn.ModuleDict({"net": convert(Residual().eval(), 8, calibrate=x)}).state_dict()
    outer = nn.ModuleDict({"net": convert(Residual().eval(), 8)})
    with pytest.raises(RuntimeError, match=r"net._extra_state \(the state is of a calibrated network"):
        outer.load_state_dict(state)
    outer.load_state_dict(state, strict=False)
    averaged = {k: v * 0.5 if v.is_floating_point() else v for k, v in state.items()}
    averaged["net._extra_state"] = averaged["net._extra_state"] * 0.5
    again = nn.ModuleDict({"net": convert(Residual().eval(), 8, calibrate=x)})
    with pytest.raises(RuntimeError, match="the extra state must be that of a TandemNetwork"):
        again.load_state_dict(averaged)


def test_deep_networks_are_searched_once_for_single_pixels():
    torchvision = pytest.importorskip("torchvision")
    convert(torchvision.models.resnet101(), 4)

    def run(n, x):
        x = F.adaptive_avg_pool2d(F.relu(n.first(x)), 1)
        for layer in n.layers:
            x = F.relu(layer(x).contiguous() + x)
        return n.last(F.relu(x + n.norm(n.layers[0](x)).clamp(min=0)))

    layers = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(40)])
    ann = Net(run, first=nn.Conv2d(1, 4, 3), layers=layers, norm=nn.SyncBatchNorm(4), last=nn.Conv2d(4, 2, 1))
    convert(ann, 4)(torch.rand(2, 1, 8, 8))
