"""From PyTorch models to tandem SNNs on the same parameters."""

import contextlib
import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from exact import generator, same
from tandem_cuda import (
    IF,
    LIF,
    Decode,
    Encode,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemAdd,
    TandemConv1d,
    TandemConv2d,
    TandemConvTranspose2d,
    TandemDropout,
    TandemLinear,
    TandemNetwork,
    convert,
    freeze,
    quantise,
    synops,
)
from tandem_cuda.diagnostics import diagnose
from tandem_cuda.freeze import LOADERS
from tandem_cuda.freeze.pool import FrozenPool


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Dropout2d(0.1),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(12, 5),
    )


class Functional(nn.Module):
    """As in PyTorch's tutorials: functions, methods, a view, pooling in front of the ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.drop = nn.Dropout2d(0.5)
        self.fc1 = nn.Linear(32, 12)
        self.fc2 = nn.Linear(12, 5)
        self.register_buffer("mean", torch.tensor(0.25))

    def forward(self, x):
        x = F.relu(self.conv1((x - self.mean) / 0.5))
        x = torch.relu(F.max_pool2d(self.drop(self.conv2(x)), kernel_size=2, padding=1))
        x = F.avg_pool2d(x, 2)
        x = x.view(x.size(0), -1)
        x = F.dropout(self.fc1(x).relu_(), 0.25, training=self.training)
        return F.log_softmax(self.fc2(x), dim=1)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, out_of_place):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.out_of_place = out_of_place
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.out_of_place:
            out = torch.add(self.shortcut(x), out)
        else:
            out += self.shortcut(x)
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.blocks = nn.Sequential(Block(6, 6, 1, False), Block(6, 8, 2, True))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x).relu()).mean((2, 3)))


class OneDimension(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Flatten(2),
            nn.Conv1d(2, 6, 3, stride=2),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Conv1d(6, 4, 3, padding="same"),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(124, 5),
        )


class Decoder(nn.Module):
    """Whose parts have the names that the spiking network wants for its own."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2, padding=1, padding_mode="reflect"), nn.ReLU())
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1)
        )
        self.relu = nn.Sigmoid()

    def forward(self, x):
        return self.relu(self.decode(self.encode(x)))


class TwoHeads(nn.Module):
    """Layers that no input reaches, two outputs, a sum of activations without a ReLU."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.unused = nn.BatchNorm1d(3)
        self.heads = nn.ModuleList([nn.Linear(4, 5), nn.Linear(4, 2)])

    def forward(self, x):
        x = torch.flatten(self.pool(F.relu(self.a(x)) + self.b(x).relu()), 1)
        return self.heads[0](x), self.heads[1](x)


MODELS = {"cnn": cnn, **{c.__name__: c for c in (Functional, Residual, OneDimension, Decoder, TwoHeads)}}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def made(make, **named):
    torch.manual_seed(0)
    ann = make()
    return ann, convert(ann, 8, **named)


def inputs(n=6, seed=0):
    return 2 * torch.rand(n, 2, 8, 8, generator=generator(seed))


def whole(outputs):
    """Outputs as one tensor."""
    return torch.cat([y.flatten(1) for y in (outputs if isinstance(outputs, tuple) else (outputs,))], 1)


@every_model
def test_twins_share_everything(make):
    """Parameters and norms are the same objects, and a step of either network's optimiser is a step of both."""
    ann, snn = made(make, calibrate=inputs())
    assert isinstance(snn, TandemNetwork)
    assert snn.ann() is ann
    unused = {p for m in ann.modules() if m is getattr(ann, "unused", None) for p in m.parameters()}
    assert set(snn.parameters()) == set(ann.parameters()) - unused
    assert all(any(m is n for n in snn.modules()) for m in ann.modules() if isinstance(m, nn.BatchNorm2d))
    x = inputs()
    for owner, runs in ((snn, snn), (ann, ann), (snn, ann), (ann, snn)):
        before = [p.detach().clone() for p in snn.parameters()]
        outputs = whole(snn.eval()(x)).detach(), whole(ann(x)).detach()
        runs.train()
        optimizer = torch.optim.SGD(owner.parameters(), lr=0.01)
        whole(runs(x)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert any((p != q).any() for p, q in zip(snn.parameters(), before, strict=True))
        assert (whole(snn.eval()(x)) != outputs[0]).any()
        assert (whole(ann(x)) != outputs[1]).any()


@every_model
@pytest.mark.parametrize("mode", ["constant", "impulse"])
def test_calibrated_network_approximates_its_ann(make, mode):
    """With many steps the counts are the activations, but for what an impulse's disorder adds."""
    ann, _ = made(make)
    ann.train()
    for seed in range(3):
        ann(inputs(32, seed))  # statistics
    ann.eval()
    x = inputs(32)
    want = whole(ann(x)).detach()
    errors = []
    for steps in (8, 256):
        snn = convert(ann, steps, mode=mode, calibrate=x, percentile=100)
        with torch.no_grad():
            got = whole(snn(x))
        errors.append(((got - want).norm() / want.norm()).item())
    if mode == "constant":  # the disorder of an impulse may be larger than what few steps round
        assert errors[1] < errors[0]
    assert errors[1] < (0.02 if mode == "constant" else 0.15)


@pytest.mark.parametrize("make", [Functional, Residual, OneDimension, Decoder, TwoHeads])
def test_gradients_approach_those_of_the_ann(make):
    """With many steps the counts are the activations, hence the tandem gradient is the ANN's.

    Not so in `cnn`, whose average pooling has neurons of uncalibrated threshold.
    """
    ann, _ = made(make)
    for seed in range(60):
        ann(inputs(32, seed % 3))  # statistics
    ann.eval()
    x = inputs(32)
    snn = convert(ann, 256, calibrate=x, percentile=100)
    weights = torch.randn(whole(ann(x)).shape, generator=generator(1))
    got, want = (
        torch.cat([g.flatten() for g in torch.autograd.grad((whole(net(x)) * weights).sum(), list(snn.parameters()))])
        for net in (snn, ann)
    )
    assert F.cosine_similarity(got, want, 0) > 0.99
    assert 0.95 < got.norm() / want.norm() < 1.05


@every_model
def test_every_parameter_gets_a_gradient(make):
    ann, snn = made(make)
    ann.eval()
    x = inputs().requires_grad_()
    y = snn(x)
    whole(y).square().sum().backward()
    for name, p in snn.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    assert x.grad.abs().sum() > 0


def test_exact_gradients():
    """A layer whose counts are exactly its activations hands on the ANN's gradient, T times for a constant input."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        ann[0].weight.copy_(torch.randint(-1, 2, (6, 4)))
    snn = convert(ann, 8)
    x = torch.eye(4)
    results = []
    for net, value in ((snn, x), (ann, 8 * x)):
        y = net(value)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), list(ann.parameters()))))
    torch.testing.assert_close(*results)


def kinds(snn):
    return [type(m) for m in snn.snn.modules() if type(m).__module__.startswith("tandem_cuda")]


def test_what_becomes_of_a_network():
    ann, snn = made(cnn, neuron=LIF(0.5), engine="event")
    assert [type(m).__name__ for m in snn.snn.children()] == [
        "Encode", "TandemConv2d", "SpikingMaxPool2d", "TandemConv2d", "SpikingAvgPool2d", "TandemDropout2d",
        "TandemLinear", "TandemDropout", "Decode", "Linear",
    ]  # fmt: skip
    layers = dict(snn.snn.named_children())
    assert layers["0"].norm is ann[1]
    assert layers["9"].weight is ann[9].weight
    assert layers["13"] is ann[13]
    assert all(m.neuron == LIF(0.5) and m.engine == "event" for m in layers.values() if hasattr(m, "neuron"))
    assert layers["encode"].time_steps == 8
    assert [row.name for row in synops(snn, inputs())] == ["snn.0", "snn.4", "snn.9", "snn.13"]


def test_names_and_kinds():
    _, snn = made(Residual)
    names = [row.name for row in synops(snn, inputs())]
    layers = ("stem", "blocks.0.conv1", "blocks.0.add", "blocks.1.conv1", "blocks.1.add", "fc")
    assert names == [f"snn.{name}" for name in layers]
    assert kinds(snn).count(TandemAdd) == 2
    assert SpikingAdaptiveAvgPool2d in kinds(snn)
    for make, kind in ((OneDimension, TandemConv1d), (Decoder, TandemConvTranspose2d), (Functional, TandemDropout)):
        assert kind in kinds(made(make)[1])
    assert {SpikingMaxPool2d, SpikingAvgPool2d, Encode, Decode, TandemConv2d, TandemLinear} <= set(kinds(made(cnn)[1]))


def test_mode_is_the_twins():
    ann, snn = made(cnn)
    ann.eval()
    assert convert(ann, 8).training is False
    assert snn.train().training is ann.training is True
    assert not any(m.training for m in [*snn.eval().modules(), *ann.modules()])


def test_functions_follow_the_mode():
    """F.dropout is traced with the mode of the moment; the converted network drops in training alone."""
    ann, _ = made(Functional)
    for mode in (True, False):
        snn = convert(ann.train(mode), 8, calibrate=inputs())
        x = inputs()
        same(snn.eval()(x).detach(), snn(x).detach())
        assert (snn.train()(x) != snn(x)).any()


def test_a_layer_that_runs_twice():
    """Once with neurons and once as the read-out; its two forms share its parameters."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(F.relu(self.fc(F.relu(self.fc(x)))))

    torch.manual_seed(0)
    ann = Twice()
    x = torch.rand(32, 4)
    snn = convert(ann, 256, calibrate=x, percentile=100)
    assert list(snn.parameters()) == [ann.fc.weight, ann.fc.bias]
    torch.testing.assert_close(snn(x), ann(x), rtol=0, atol=0.02)
    assert list(snn.state_dict()) == ["fc.weight", "fc.bias"]
    snn.load_state_dict({"fc.weight": torch.zeros(4, 4), "fc.bias": torch.ones(4)})
    same(snn(x).detach(), torch.ones(32, 4))


# --- copies and files ------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("calibrated", [False, True])
def test_copies(make, calibrated):
    """Copies compute the same, share nothing with the original, and everything with their own twin."""
    ann, snn = made(make, calibrate=inputs() if calibrated else None)
    snn.eval()
    x = inputs()
    want = whole(snn(x)).detach()
    file = io.BytesIO()
    torch.save(snn, file)
    file.seek(0)
    for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn)), torch.load(file, weights_only=False)):
        same(whole(other(x)).detach(), want)
        same(whole(other.ann()(x)).detach(), whole(ann(x)).detach())
        assert not set(other.parameters()) & set(snn.parameters())
        assert set(other.parameters()) <= set(other.ann().parameters())
        with torch.no_grad():
            for p in other.ann().parameters():
                p.zero_()
        assert (whole(other(x)) != want).any()
        same(whole(snn(x)).detach(), want)


@every_model
@pytest.mark.parametrize("nested", [False, True])
def test_state_dicts_are_the_anns(make, nested):
    ann, snn = made(make)
    torch.manual_seed(1)
    trained = make()
    trained.train()(inputs())
    state = trained.state_dict()
    if nested:
        outer = nn.ModuleDict({"net": snn})
        state = {f"net.{k}": v for k, v in state.items()}
    else:
        outer = snn
    assert list(outer.state_dict()) == list(state)
    outer.load_state_dict(state)
    for module in (outer, nn.ModuleDict({"net": ann}) if nested else ann):
        same(tuple(module.state_dict().values()), tuple(state.values()))
    same(whole(snn.eval()(inputs())).detach(), whole(convert(trained.eval(), 8)(inputs())).detach())
    trained.load_state_dict(snn.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        outer.load_state_dict({k: v for k, v in state.items() if "weight" not in k})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        outer.load_state_dict({**state, "net.other.weight" if nested else "other.weight": torch.ones(1)})


def test_state_is_shared_after_it_was_replaced():
    """By load_state_dict(assign=True), and by a conversion that cannot be done in place."""
    ann, snn = made(Residual)
    state = {k: v.clone() for k, v in made(Residual)[0].state_dict().items()}
    snn.load_state_dict(state, assign=True)
    assert set(snn.parameters()) == set(ann.parameters())
    snn.to("meta")
    assert {x.device.type for x in [*ann.parameters(), *ann.buffers()]} == {"meta"}
    assert set(snn.parameters()) == set(ann.parameters())
    _, snn = made(TwoHeads)
    snn.double()
    assert {x.dtype for x in snn.ann().parameters()} == {torch.float64}
    assert snn(inputs().double())[0].dtype == torch.float64


def assigned(ann):
    ann.load_state_dict({k: v.clone() for k, v in ann.state_dict().items()}, assign=True)


def another_parameter(ann):
    ann.blocks[1].conv2.weight = nn.Parameter(ann.blocks[1].conv2.weight.detach().clone())


def pruned(ann):
    prune.l1_unstructured(ann.blocks[0].conv2, "weight", 0.5)


def parametrised(ann):
    parametrizations.weight_norm(ann.stem)


def another_norm(ann):
    ann.blocks[0].bn1 = nn.BatchNorm2d(6)


def another_block(ann):
    ann.blocks[1] = copy.deepcopy(ann.blocks[1])


def bias_given(ann):
    ann.blocks[0].conv1.bias = nn.Parameter(torch.ones(6))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (assigned, "stem.weight"),
        (another_parameter, "blocks.1.conv2.weight"),
        (pruned, "blocks.0.conv2.weight"),
        (parametrised, "stem.weight"),
        (another_norm, "blocks.0.bn1 was"),
        (another_block, "blocks.1 was"),
        (bias_given, "blocks.0.conv1.bias was"),
        (lambda ann: quantise(ann, 4), "stem.weight"),
    ],
)
def test_twins_that_come_apart_are_noticed(change, name):
    ann, snn = made(Residual, calibrate=inputs())
    snn(inputs())
    change(ann)
    compiled = torch.compile(snn, backend="eager")
    for use in (
        lambda: snn(inputs()),
        snn.eval,
        snn.train,
        snn.state_dict,
        snn.double,
        lambda: snn.load_state_dict({}, strict=False),
        compiled.eval,
    ):
        with pytest.raises(RuntimeError, match=f"TandemNetwork: .*{name}.* replaced .*Call convert on the ANN again"):
            use()
    if change not in (parametrised, pruned):  # which cannot be shared
        assert set(convert(ann, 8, calibrate=snn.levels).parameters()) == set(ann.parameters())


def test_twins_that_stay_together():
    """What moves or loads in place, or lends the spiking twin other tensors, does not part them."""
    ann, snn = made(Functional, calibrate=inputs())
    snn.eval()
    x = inputs()
    want = snn(x).detach()
    lent = {name: 2 * p.detach() for name, p in snn.named_parameters()}
    assert (torch.func.functional_call(snn, lent, x) != want).any()
    same(snn(x).detach(), want)
    ann.double()  # its buffer is a new tensor then
    assert snn(x.double()).dtype == torch.float64
    ann.float()
    same(snn(x).detach(), want)
    ann.mean = ann.mean + 1  # a buffer assigned: the spiking twin has it too
    assert (snn(x) != want).any()
    assert snn.snn.mean is ann.mean
    before = snn(x).detach()
    prune.l1_unstructured(ann.fc2, "weight", 0.5)  # the read-out is one module in both
    assert (snn(x) != before).any()


@pytest.mark.parametrize("make", [Functional, Residual, TwoHeads])
def test_assigned_in_a_larger_model(make):
    """load_state_dict(assign=True) of what the network is a part of gives the ANN the same tensors, unused ones too."""
    with torch.device("meta"):
        ann = make()
    snn = convert(ann, 8)
    torch.manual_seed(1)
    other = make()
    outer = nn.ModuleDict({"net": snn})
    outer.load_state_dict({f"net.{k}": v for k, v in other.state_dict().items()}, assign=True)
    for mine, theirs in zip(ann.state_dict().values(), other.state_dict().values(), strict=True):
        same(mine, theirs)
    assert {id(p) for p in snn.parameters()} <= {id(p) for p in ann.parameters()}
    assert all(isinstance(p, nn.Parameter) for p in ann.parameters())
    same(whole(snn.eval()(inputs())).detach(), whole(convert(other.eval(), 8)(inputs())).detach())


def test_state_of_unused_layers_is_checked():
    net = nn.ModuleDict({"net": convert(TwoHeads(), 8)})
    state = net.state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for net\.unused\.bias: got"):
        net.load_state_dict({**state, "net.unused.bias": torch.ones(1)})
    del state["net.unused.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*net\.unused\.bias"):
        net.load_state_dict(state)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:tandem_cuda")
def test_compile():
    torch.compiler.reset()
    _, snn = made(Residual)
    x = inputs()
    compiled = torch.compile(copy.deepcopy(snn), backend="aot_eager", fullgraph=True)
    outputs = snn(x), compiled(x)
    same(outputs[1].detach(), outputs[0].detach())
    grads = [torch.autograd.grad(y.sum(), list(m.parameters())) for y, m in zip(outputs, (snn, compiled), strict=True)]
    torch.testing.assert_close(grads[1], grads[0])


# --- bad input -------------------------------------------------------------------------------------------------------


def test_recorded_spikes():
    """The spikes themselves, pooled and convolved; the same as layers put together by hand."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.MaxPool2d(2),
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(96, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ).eval()
    net = convert(ann, 11, mode="spikes")
    by_hand = nn.Sequential(
        SpikingMaxPool2d(2), TandemConv2d(2, 6, 3), nn.Flatten(), TandemLinear(96, 5), Decode(), nn.Linear(5, 3)
    ).eval()
    for mine, theirs in ((1, 1), (3, 5), (5, 7)):
        by_hand[mine].load_state_dict(ann[theirs].state_dict())
    spikes = (torch.rand(11, 4, 2, 12, 12, generator=torch.Generator().manual_seed(1)) < 0.7).float()
    x = SpikeTrain.from_dense(spikes)
    assert torch.equal(net(x), by_hand(x))
    net(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in ann.parameters())
    calibrated = convert(ann, 11, mode="spikes", calibrate=x.count)
    assert net.ann() is calibrated.ann() is ann
    assert (calibrated(x) - ann(x.count)).abs().max() < 0.5 * ann(x.count).abs().max()
    with pytest.raises(ValueError, match=r"convert: (.|\n)*0 \(Sigmoid\): use nn.ReLU"):
        convert(nn.Sequential(nn.Sigmoid(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), 8, mode="spikes")


class Unconvertible(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.GroupNorm(2, 4)
        )
        self.other = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
        self.twice = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.mean = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.ReLU())
        self.plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU())
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.conv3 = nn.Conv2d(2, 4, 3)
        self.deep = nn.Conv3d(2, 2, 1)
        self.kernel = nn.Parameter(torch.ones(4, 2, 3, 3))
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        a, b, c, d = self.features(x), self.other(x), self.twice(x), self.mean(x)
        e, f = self.plain(x), self.conv3(x).relu()
        parts = [torch.sigmoid(f), f * 2, f.view(2, 2, -1), f.mean(1), self.pool(f), torch.relu(self.conv(x) + x)]
        parts += [self.deep(x.unsqueeze(2)), F.conv2d(x, self.kernel)]
        return self.fc(torch.cat([a, b, c, d, e, *parts]))


def test_everything_that_cannot_be_converted_is_named():
    with pytest.raises(ValueError, match="these are not:\n") as error:
        convert(Unconvertible(), 8)
    text = str(error.value)
    for name, advice in {
        "features.1 (LeakyReLU)": "use nn.ReLU",
        "other.2 (BatchNorm2d)": "directly after a weight layer",
        "twice.1 (Conv2d)": "put a ReLU between twice.0 and it",
        "mean.1 (AvgPool2d)": "put the ReLU before it",
        "plain.1 (BatchNorm2d)": "affine=True",
        "pool (MaxPool2d)": "return_indices=False",
        "sigmoid (sigmoid in forward of Unconvertible)": "move it",
        "mul (mul in forward of Unconvertible)": "remove it",
        "view (view in forward of Unconvertible)": "use nn.Flatten",
        "mean (mean in forward of Unconvertible)": "use nn.AdaptiveAvgPool2d(1)",
        "add (add in forward of Unconvertible)": "add only spikes",
        "deep (Conv3d)": "use nn.Conv1d, nn.Conv2d",
        "conv2d (conv2d in forward of Unconvertible)": "use the module",
        "features.4 (GroupNorm)": "use nn.BatchNorm2d",
        "cat (cat in forward of Unconvertible)": "add branches",
    }.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name}: ")]
        assert advice in line
    assert len(text.splitlines()) == 16


class FunctionalActivations(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2, 2, 3) for _ in range(4))

    def forward(self, x):
        x = F.gelu(self.convs[0](x))
        x = torch.sigmoid(F.group_norm(self.convs[1](x), 2))
        x = F.gelu(self.convs[2](x * 2))
        return self.convs[3](x)


@pytest.mark.parametrize(
    ("make", "lines"),
    [
        (
            lambda: nn.Sequential(
                nn.Conv2d(2, 4, 3),
                nn.LeakyReLU(),
                nn.Conv2d(4, 4, 3),
                nn.GELU(),
                nn.Conv2d(4, 4, 3),
                nn.GroupNorm(2, 4),
                nn.ReLU(),
                nn.Conv2d(4, 4, 3),
                nn.Softplus(),
                nn.Conv2d(4, 2, 1),
            ),
            [
                "  1 (LeakyReLU): use nn.ReLU: spiking neurons approximate only ReLU",
                "  3 (GELU): use nn.ReLU: spiking neurons approximate only ReLU",
                "  5 (GroupNorm): use nn.BatchNorm2d between weights and ReLU: its running statistics fold into the "
                "weights",
                "  8 (Softplus): use nn.ReLU: spiking neurons approximate only ReLU",
            ],
        ),
        (
            lambda: nn.Sequential(*[m for _ in range(50) for m in (nn.Linear(4, 4), nn.SiLU())], nn.Linear(4, 4)),
            [
                "  50 SiLU: use nn.ReLU: spiking neurons approximate only ReLU",
                "      1, 3, 5, 7, 9, 11, and 44 more",
            ],
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
            ["  2 Linear: put a ReLU before each", "      1, 2"],
        ),
        (
            FunctionalActivations,
            [
                "  2 gelu: use nn.ReLU: spiking neurons approximate only ReLU",
                "      gelu in FunctionalActivations, gelu_1 in FunctionalActivations",
                "  group_norm (group_norm in forward of FunctionalActivations): move it before the first weight "
                "layer or after the last one",
                "  sigmoid (sigmoid in forward of FunctionalActivations): use nn.ReLU, or move it after the last "
                "weight layer",
                "  mul (mul in forward of FunctionalActivations): remove it, or move it after the last weight layer: "
                "spikes cannot be multiplied",
            ],
        ),
    ],
)
def test_problems_do_not_hide_each_other(make, lines):
    with pytest.raises(ValueError, match="these are not:\n") as error:
        convert(make(), 8)
    assert str(error.value).splitlines()[1:] == lines


class Optional(nn.Module):
    """With an optional argument, which changes what is traced, and a flag."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(144, 3)

    def forward(self, x, scale=None, features=False):
        if scale is not None:
            x = x * scale
        x = torch.relu(self.conv(x)).flatten(1)
        return x if features else self.fc(x)


def test_optional_arguments_keep_their_defaults():
    ann = Optional().eval()
    snn, x = convert(ann, 64, calibrate=inputs()), inputs()
    want = snn(x)
    assert (want - ann(x)).norm() < 0.05 * ann(x).norm()
    for y in (snn(x=x), snn(x, None), snn(x, scale=None, features=False), copy.deepcopy(snn)(x, None)):
        same(y.detach(), want.detach())
    with pytest.raises(ValueError, match=r"TandemNetwork: scale must keep its default, None, got 2\.0"):
        snn(x, 2.0)
    with pytest.raises(ValueError, match="features must keep its default, False"):
        snn(x, features=True)
    for args, kwargs in (((), {}), ((x, None, False, 1), {}), ((x,), {"x": x}), ((x,), {"other": 1})):
        with pytest.raises(TypeError, match=r"inputs must match the ANN's forward\(x, scale, features\), got"):
            snn(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(TypeError, match=rf"float32 or float64, got {dtype} in 0.weight, 0.bias, 1.weight and 8 more; "):
        convert(cnn().to(dtype), 8)


def watch(module, *args):
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ann: nn.utils.weight_norm(ann[4]), r"4 \(Conv2d\): call torch.nn.utils.remove_weight_norm"),
        (lambda ann: nn.utils.spectral_norm(ann[4]), r"4 \(Conv2d\): call torch.nn.utils.remove_spectral_norm"),
        (lambda ann: prune.random_unstructured(ann[9], "weight", 0.5), r"9 \(Linear\): call .*prune.remove"),
        (lambda ann: ann[0].register_forward_hook(watch), r"0 \(Conv2d\): remove its hooks \(watch\)"),
        (lambda ann: ann[1].register_forward_pre_hook(watch), r"1 \(BatchNorm2d\): remove its hooks \(watch\)"),
        (lambda ann: ann[2].register_forward_hook(watch), r"2 \(ReLU\): remove its hooks"),
        (lambda ann: ann[6].register_full_backward_hook(watch), r"6 \(AvgPool2d\): remove its hooks"),
        (lambda ann: ann.register_forward_pre_hook(watch), "Sequential: remove its hooks"),
    ],
)
def test_what_hooks_do_is_not_dropped(change, message):
    ann = cnn()
    with pytest.warns(FutureWarning) if "weight_norm" in message else contextlib.nullcontext():
        change(ann)
    with pytest.raises(ValueError, match=message):
        convert(ann, 8)


def test_hooks_that_are_called_are_no_problem():
    """Of the read-out, and of what is in front of Encode; pruning of the read-out too."""
    ann = nn.Sequential(nn.Upsample(scale_factor=2), *cnn()[:3], nn.Flatten(), nn.Linear(6 * 256, 3)).eval()
    prune.random_unstructured(ann[5], "weight", 0.5)
    seen = []
    ann[0].register_forward_hook(lambda *args: seen.append(0))
    snn = convert(ann, 64, calibrate=inputs())
    want = ann(inputs())
    seen.clear()
    assert (snn(inputs()) - want).norm() < 0.05 * want.norm()
    assert len(seen) == 1


class Modes(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.conv, self.fc = kind, nn.Conv2d(2, 4, 3), nn.Linear(144, 3)

    def forward(self, x):
        if self.kind == "noise":
            x = x + torch.randn(1)
        if self.kind == "branch" and self.training:
            x = x * 2
        x = F.relu(self.conv(x))
        if self.kind == "always":
            x = F.dropout(x, 0.5)
        if self.kind == "never":
            x = F.dropout(x, 0.5, training=False)
        if self.kind == "alpha":
            x = F.alpha_dropout(x, 0.5, training=self.training)
        if self.kind == "written":
            x.add_(F.relu(x))
            return self.fc(torch.flatten(x, 1))
        if self.kind == "alias":
            y = x
            x += F.relu(x)
            return self.fc(torch.flatten(y, 1))
        if self.kind == "dropped":
            F.dropout(x, 0.5, self.training, True)
        return self.fc(torch.flatten(x, 1))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("noise", "the same in eval mode and in training, .*, got _tensor_constant0 in Modes and"),
        ("branch", "the same in eval mode and in training, .*, got conv in conv and mul in Modes"),
        ("alpha", "the same in eval mode and in training, .*, got alpha_dropout in Modes and alpha_dropout in Modes"),
        ("always", r"dropout \(dropout in forward of Modes\): use nn.Dropout, or training=self.training"),
        ("written", r"add_ \(add_ in forward of Modes\): write out of place"),
        ("alias", "ann must compute the same as its torch.fx trace, got different outputs"),
        ("dropped", r"dropout \(dropout in forward of Modes\): write out of place"),
    ],
)
def test_what_would_be_wrong_in_another_mode_or_order(kind, message):
    for training in (False, True):
        with pytest.raises(ValueError, match=message):
            convert(Modes(kind).train(training), 8, calibrate=inputs())


def test_dropout_that_never_drops():
    ann = Modes("never")
    assert TandemDropout not in kinds(convert(ann, 8))
    snn = convert(ann, 64, calibrate=inputs())
    same(snn.train()(inputs()).detach(), snn.eval()(inputs()).detach())


def test_calibration_is_in_eval_mode():
    """Functions of dropout too, whatever the mode of the ANN when it was converted."""

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.last = nn.Linear(128, 16), nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = F.dropout(torch.relu(self.one(x.flatten(1))), 0.5, training=self.training)
            return self.last(torch.relu(self.two(x)))

    ann = Dropping()
    levels = [convert(ann.train(mode), 8, calibrate=inputs()).levels for mode in (True, False)]
    assert levels[0] == levels[1]


def test_frozen_parts_keep_their_mode():
    ann = cnn().train()
    ann[1].eval()  # batch norm of fixed statistics
    ann[12].eval()
    snn = convert(ann, 8)
    assert [name for name, m in ann.named_modules() if not m.training] == ["1", "12"]
    layers = dict(snn.snn.named_children())
    assert snn.training
    assert layers["0"].training
    assert layers["7"].training
    assert not layers["0"].norm.training
    assert not layers["12"].training
    mean = ann[1].running_mean.clone()
    snn(inputs())
    same(ann[1].running_mean, mean)


def test_output_size_is_not_dropped():
    class Resized(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.up, self.last = nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 4, 3, 2), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(torch.relu(self.up(torch.relu(self.stem(x)), output_size=[14, 14])))

    with pytest.raises(ValueError, match=r"up \(ConvTranspose2d\): call it with its input alone"):
        convert(Resized(), 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_calibration_must_be_finite(value):
    x = inputs()
    x[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match="calibrate must be finite, got NaN or infinity in batch 1"):
        convert(cnn(), 8, calibrate=[inputs(), x])
    ann = cnn()
    with torch.no_grad():
        ann[4].weight[0, 0, 0, 0] = abs(value)  # of minus infinity nothing is left behind the ReLU
    with pytest.raises(ValueError, match="activations of the ANN must be finite, got NaN or infinity after 4"):
        convert(ann, 8, calibrate=inputs())
    with pytest.raises(ValueError, match=r"calibrate\['0'\] must be finite"):
        convert(cnn(), 8, calibrate={"0": value, "4": 1.0, "9": 1.0})


class Branching(nn.Sequential):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: convert(torch.relu, 8), TypeError, "ann must be an nn.Module, got builtin"),
        (lambda: convert(cnn(), 8.0), TypeError, "time_steps must be an int, got float"),
        (lambda: convert(cnn(), 0), ValueError, "time_steps must be at least 1, got 0"),
        (
            lambda: convert(cnn(), 8, mode="rate"),
            ValueError,
            "mode must be 'constant', 'impulse' or 'spikes', got 'rate'",
        ),
        (lambda: convert(cnn(), 8, neuron=1.0), TypeError, "neuron must be IF"),
        (lambda: convert(cnn(), 8, engine="fast"), ValueError, "engine must be one of"),
        (lambda: convert(cnn(), 8, percentile=0), ValueError, r"percentile must be in \(0, 100\], got 0"),
        (lambda: convert(cnn(), 8, percentile="99"), TypeError, "percentile must be a number"),
        (lambda: convert(cnn(), 8, neuron=LIF(), calibrate=inputs()), ValueError, "neuron must be IF.* with calibrate"),
        (lambda: convert(cnn(), 8, calibrate=[]), ValueError, "at least one batch, got none"),
        (lambda: convert(cnn(), 8, calibrate=[1.0]), ValueError, "batches of at least one sample, got float"),
        (
            lambda: convert(cnn(), 8, calibrate=inputs(0)),
            ValueError,
            "calibrate must yield batches of at least one sample",
        ),
        (lambda: convert(nn.Linear(2, 2), 8), ValueError, "must have a weight layer and a ReLU before"),
        (lambda: convert(Branching(nn.Linear(2, 2)), 8), ValueError, "traceable by torch.fx.*control flow"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_silent_layer_is_named():
    ann = cnn().eval()
    nn.init.constant_(ann[1].bias, -100)
    with pytest.raises(ValueError, match="got data that never makes the output of 0 positive"):
        convert(ann, 8, calibrate=inputs())


def test_view_that_mixes_samples():
    class Viewed(Functional):
        def forward(self, x):
            return self.fc2(F.relu(self.fc1(F.relu(self.conv1(x)).view(-1, 32))))

    snn = convert(Viewed(), 8)
    with pytest.raises(ValueError, match="view: input must have 32 features per sample, got 384"):
        snn(inputs())


# --- calibration -----------------------------------------------------------------------------------------------------


def test_thresholds_are_percentiles():
    ann = cnn().eval()
    batches = [inputs(5, seed) for seed in range(3)]
    snn = convert(ann, 16, neuron=IF(clip=True), calibrate=[(x, None) for x in batches], percentile=90)
    activations = [ann[:3](x).detach().flatten() for x in batches]
    want = sum(torch.quantile(a, 0.9, interpolation="higher").item() for a in activations) / 3 / 16
    neuron = dict(snn.snn.named_children())["0"].neuron
    assert neuron.clip
    assert neuron.threshold == neuron.amplitude == pytest.approx(want, rel=0.02)
    assert not ann.training


# --- average pooling -------------------------------------------------------------------------------------------------


def pooled_conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.AvgPool2d(3, 2, 1, divisor_override=8), nn.Dropout2d(0.5), nn.ConvTranspose2d(4, 4, 2, 2), nn.ReLU(),
        nn.AvgPool2d((2, 1)), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


def pooled_line():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, divisor_override=2), nn.Flatten(2),
        nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(56, 3),
    )  # fmt: skip


def pooled_read_out():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3, ceil_mode=True), nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3),
    )  # fmt: skip


class PooledJoin(nn.Module):
    """A shortcut that averages, as in ResNet-D, and two uses of one average."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.short, self.hidden = nn.Conv2d(4, 6, 1), nn.Linear(24, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(24, 2)])

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.body(x) + self.short(F.avg_pool2d(x, 2)))
        x = F.avg_pool2d(x, 2)
        x = x.view(x.size(0), -1)
        return self.heads[0](torch.relu(self.hidden(x))), self.heads[1](x)


def dyadic(ann):
    for p in ann.parameters():
        with torch.no_grad():
            p.copy_(torch.randint(-4, 7, p.shape, generator=generator(p.numel())) / 16)
    return ann


class Integrating(nn.Module):
    """A ReLU in discrete time: IF neurons whose spikes weigh the threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold, self.potential, self.spikes = threshold, 0.0, 0.0

    def forward(self, v):
        self.potential = self.potential + v - self.spikes
        self.spikes = self.threshold * (self.potential >= self.threshold).to(v.dtype)
        return self.spikes


def stepped(ann, x, steps, levels):
    """The mean output of the ANN in discrete time, averages as real numbers; layers are those of an nn.Sequential."""
    places = [name for name, module in ann.named_children() if isinstance(module, nn.ReLU)]
    net = copy.deepcopy(ann)
    for place, level in zip(places, levels, strict=True):
        net[int(place)] = Integrating(level)
    return torch.stack([net(x) for _ in range(steps)]).mean(0)


@pytest.mark.parametrize("make", [pooled_conv, pooled_line, pooled_read_out])
def test_calibrated_averages_need_no_neurons(make):
    """They lose nothing: the outputs are those of a simulation that averages spikes as real numbers."""
    ann = dyadic(make()).double().eval()
    x = torch.randint(0, 8, (6, 2, 8, 8), generator=generator(0)).double() / 8
    names = convert(ann, 8).spiking_layers
    levels = dict(zip(names, (1.0, 0.5, 0.25, 0.25), strict=False))
    for steps in (4, 16):
        snn = convert(ann, steps, calibrate=levels)
        assert not {SpikingAvgPool2d, SpikingAdaptiveAvgPool2d} & set(kinds(snn))
        assert snn.levels == levels
        with torch.no_grad():
            got, want = snn(x), stepped(ann, x, steps, levels.values())
        assert len(want.unique()) > 5
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
        same(freeze(snn)(x), got)


@pytest.mark.parametrize("make", [pooled_conv, pooled_line, pooled_read_out, PooledJoin])
def test_calibrated_averages_converge_to_the_ann(make):
    torch.manual_seed(0)
    ann, x = make().eval(), inputs(32)
    snn = convert(ann, 512, calibrate=x, percentile=100)
    assert_no_leak(snn)
    want = whole(ann(x))
    assert (whole(snn(x)) - want).norm() < 0.01 * want.norm()
    weights = torch.randn(want.shape, generator=generator(1))
    parameters = list(ann.parameters())
    got, want = (torch.autograd.grad((whole(net(x)) * weights).sum(), parameters) for net in (snn, ann))
    for mine, theirs in zip(got, want, strict=True):
        assert (mine - theirs).norm() < 0.1 * theirs.norm()


def test_dropout_of_an_average():
    """All that an average is of is dropped together, or kept."""
    ann = pooled_conv().eval()
    snn = convert(ann, 8, calibrate=inputs(), percentile=100).train()
    trains = {}
    for name in ("5", "6", "11"):
        snn.snn.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: trains.update({name: out}))
    ones = SpikeTrain.from_dense(torch.ones(8, 6, 4, 4, 4))
    dropped = snn.snn.get_submodule("6")(snn.snn.get_submodule("5")(ones))
    assert dropped.amplitude == 2 / 8
    whole_channels = dropped.count.view(6, 9, 4, 2, 2)[:, 4]  # the middle of each window, which no padding covers
    assert set(whole_channels.unique().tolist()) == {0.0, 8.0}
    kept = whole_channels.amax((2, 3)) > 0
    assert ((dropped.count.view(6, 9, 4, -1).amax(3) > 0) <= kept.unsqueeze(1)).all()
    flat = snn.snn.get_submodule("11")(SpikeTrain.from_dense(torch.ones(8, 6, 64))).count
    same(flat[:, :32], flat[:, 32:])
    assert 0 < flat.mean() < 8


def pooled_adaptively():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def test_averages_with_neurons_are_calibrated():
    """Where the image decides on the windows, the average fires; at a level of its own."""
    torch.manual_seed(0)
    ann, x = pooled_adaptively().eval(), inputs(32)
    want = ann(x)
    snn = convert(ann, 64, calibrate=x, percentile=99.9)
    assert SpikingAdaptiveAvgPool2d in kinds(snn)
    assert snn.spiking_layers == ("0", "4")
    assert list(snn.levels) == ["0", "4", "2"]
    pooled = ann[:3](x).detach().flatten()
    assert snn.levels["2"] == pytest.approx(torch.quantile(pooled, 0.999, interpolation="higher").item())
    assert snn.levels["2"] < snn.levels["0"]
    pool = snn.snn.get_submodule("2")
    assert pool.threshold == pool.amplitude == snn.levels["2"] / snn.levels["0"]
    assert (snn(x) - want).norm() < 0.03 * want.norm()
    same(convert(ann, 64, calibrate=snn.levels)(x).detach(), snn(x).detach())
    same(freeze(snn)(x), snn(x).detach())
    earlier = {name: snn.levels[name] for name in snn.spiking_layers}  # levels that know of no pools
    pool = convert(ann, 64, calibrate=earlier).snn.get_submodule("2")
    assert pool.threshold == pool.amplitude == 1
    pool = convert(ann, 64).snn.get_submodule("2")
    assert pool.threshold == pool.amplitude == 1


def test_pools_of_earlier_files():
    """Frozen files that know of no amplitude of averages."""
    load = LOADERS["SpikingAvgPool2d"]
    settings = load({**FrozenPool(SpikingAvgPool2d(2, threshold=0.5)).settings()}, {}).settings()
    assert settings.pop("amplitude") == 1
    assert load(settings, {}).pool.amplitude == 1


@pytest.mark.filterwarnings("error:tandem_cuda")
@pytest.mark.parametrize("make", [pytest.param(pooled_conv, marks=pytest.mark.slow), PooledJoin])
def test_compiled_averages(make):
    torch.compiler.reset()
    torch.manual_seed(0)
    snn, x = convert(make().eval(), 8, calibrate=inputs()), inputs()
    compiled = torch.compile(copy.deepcopy(snn), backend="aot_eager", fullgraph=True)
    same(whole(compiled(x)).detach(), whole(snn(x)).detach())


def test_averages_of_recorded_spikes():
    ann = dyadic(nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double())
    spikes = (torch.rand(8, 6, 2, 8, 8, generator=generator(1)) < 0.3).double()
    snn = convert(ann, 8, mode="spikes", calibrate={"1": 8.0})
    neurons, total = Integrating(1.0), 0
    for step in spikes:
        total = total + neurons(ann[:2](step) + ann[1].bias.view(-1, 1, 1) * (1 / 8 - 1))
    same(snn(SpikeTrain.from_dense(spikes)).detach(), ann[3:](total).detach())


# --- hybrids ---------------------------------------------------------------------------------------------------------


def trained(make):
    """An ANN in eval mode whose batch norms have statistics."""
    torch.manual_seed(0)
    ann = make()
    for seed in range(30):
        ann(inputs(32, seed % 3))
    return ann.eval()


LAYERS = {cnn: 3, Functional: 3, Residual: 5, OneDimension: 2, Decoder: 2, TwoHeads: 3}
every_cut = pytest.mark.parametrize(
    ("make", "k"),
    [(make, k) for make, total in LAYERS.items() for k in range(1, total)],
    ids=lambda x: getattr(x, "__name__", str(x)),
)


def assert_no_leak(snn):
    """Nothing but the first layers spikes."""
    spiking = [name for name, m in snn.snn.named_modules() if hasattr(m, "neuron") and ".branches." not in name]
    assert sorted(spiking) == sorted(snn.spiking_layers)


@every_cut
def test_hybrid_approximates_its_ann(make, k):
    ann = trained(make)
    x = inputs(32)
    want = whole(ann(x)).detach()
    errors = []
    for steps in (8, 256):
        snn = convert(ann, steps, calibrate=x, percentile=100, spiking_layers=k)
        assert len(snn.spiking_layers) == len(snn.levels) == k
        assert_no_leak(snn)
        with torch.no_grad():
            errors.append(((whole(snn(x)) - want).norm() / want.norm()).item())
    assert errors[1] < errors[0]
    assert errors[1] < 0.02


@every_cut
def test_hybrid_trains_and_has_the_anns_state(make, k):
    ann = trained(make)
    snn = convert(ann, 8, calibrate=inputs(), spiking_layers=k)
    unused = {p for m in ann.modules() if m is getattr(ann, "unused", None) for p in m.parameters()}
    assert set(snn.parameters()) == set(ann.parameters()) - unused
    assert list(snn.state_dict()) == list(ann.state_dict())
    whole(snn(inputs())).square().sum().backward()
    for name, p in snn.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert (p.grad != 0).any() or name.endswith("bias"), name
    torch.manual_seed(1)
    other = make().eval()
    snn.load_state_dict(other.state_dict())
    x = inputs()
    want = whole(convert(other, 8, calibrate=snn.levels, spiking_layers=k)(x)).detach()
    same(whole(snn(x)).detach(), want)
    same(whole(copy.deepcopy(snn)(x)).detach(), want)


@every_model
def test_all_layers_are_no_hybrid(make):
    ann = trained(make)
    x = inputs()
    whole_network = convert(ann, 8, calibrate=x)
    total = LAYERS[make]
    assert len(whole_network.spiking_layers) == total
    same(whole(convert(ann, 8, calibrate=x, spiking_layers=total)(x)).detach(), whole(whole_network(x)).detach())
    assert convert(ann, 8, spiking_layers=total).levels is None
    for k in range(1, total):  # the next stage begins with the layers of the one before, at their thresholds
        hybrid = convert(ann, 8, calibrate=x, spiking_layers=k)
        assert hybrid.spiking_layers == whole_network.spiking_layers[:k]
        assert hybrid.levels == {name: whole_network.levels[name] for name in hybrid.spiking_layers}


def test_hybrid_is_the_layers_by_hand():
    ann = trained(cnn)
    x = inputs()
    snn = convert(ann, 8, calibrate=x, spiking_layers=1)
    level = snn.levels["0"]
    layer = TandemConv2d(2, 6, 3, padding=1, norm="batch", neuron=IF(level / 8, amplitude=level / 8)).eval()
    layer.load_state_dict({**ann[0].state_dict(), **{f"norm.{k}": v for k, v in ann[1].state_dict().items()}})
    by_hand = nn.Sequential(Encode(8, scale=1 / 8), layer, Decode(), *ann[3:])
    same(snn(x).detach(), by_hand(x).detach())


def test_a_cut_through_a_residual_block():
    """The shortcut's spikes are decoded, the ANN adds; behind the block's second layer the join spikes as a whole."""
    ann = trained(Residual)
    kinds_of = {k: kinds(convert(ann, 8, calibrate=inputs(), spiking_layers=k)) for k in range(1, 6)}
    assert kinds_of[2].count(TandemConv2d) == 2
    assert kinds_of[2].count(Decode) == 2
    assert TandemAdd not in kinds_of[2]
    assert kinds_of[3].count(TandemAdd) == kinds_of[3].count(Decode) == 1
    assert kinds_of[5].count(TandemAdd) == 2
    count = ann.blocks[0].conv1.weight  # in-place addition of the ANN leaves the decoded counts as they are
    snn = convert(ann, 8, calibrate=inputs(), spiking_layers=2)
    x = inputs()
    grads = [torch.autograd.grad(snn(x).sum(), count)[0] for _ in range(2)]
    same(grads[0], grads[1])


def test_the_rest_need_not_be_convertible():
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)
    )
    x = torch.rand(64, 4)
    for k in (1, 2):
        snn = convert(ann, 256, calibrate=x, percentile=100, spiking_layers=k)
        torch.testing.assert_close(snn(x), ann(x), rtol=0, atol=0.02)
    for k in (None, 3):
        with pytest.raises(ValueError, match=r"5 \(Tanh\): use nn.ReLU"):
            convert(ann, 8, calibrate=x, spiking_layers=k)


def test_hybrid_with_recorded_spikes():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    spikes = (torch.rand(64, 16, 6, generator=generator(1)) < 0.3).float()
    x = SpikeTrain.from_dense(spikes)
    snn = convert(ann, 64, mode="spikes", calibrate=x.count, percentile=100, spiking_layers=1)
    assert (snn(x) - ann(x.count)).norm() < 0.2 * ann(x.count).norm()


def test_hybrids_are_frozen_and_measured():
    ann = trained(Residual)
    x = inputs()
    snn = convert(ann, 8, calibrate=x, spiking_layers=2)
    with torch.no_grad():
        same(freeze(snn)(x), snn.eval()(x))
    table = diagnose(snn, x, lambda y: y.square().sum())
    assert [row.name for row in table] == ["snn.stem", "snn.blocks.0.conv1"]
    assert all(row.gradient_cosine > 0.5 for row in table)


@every_cut
def test_operations_of_a_hybrid(make, k):
    """Its spiking layers are counted as they are in the whole network, what is behind them as in the ANN."""
    ann = trained(make)
    x = inputs()
    hybrid = synops(convert(ann, 8, calibrate=x, spiking_layers=k), x)
    assert list(hybrid)[:k] == list(synops(convert(ann, 8, calibrate=x), x))[:k]
    assert all(row.firing_rate is None for row in hybrid[k:])
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        ann.eval()(x)
    assert sum(row.macs for row in hybrid) * len(x) * 2 == flops.get_total_flops()
    assert not hybrid.not_counted


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"spiking_layers": 0}, ValueError, "at least 1 .*the ANN.*, got 0"),
        ({"spiking_layers": 4}, ValueError, "at most 3, all that the ANN has, got 4"),
        ({"spiking_layers": True}, TypeError, "spiking_layers must be an int, got bool"),
        ({"spiking_layers": 1.0}, TypeError, "spiking_layers must be an int, got float"),
        ({"spiking_layers": 2, "calibrate": None}, ValueError, "calibrate must be given with spiking_layers=2 of 3"),
        ({"calibrate": {"0": 1.0, "4": 2.0}}, ValueError, r"a level for each spiking layer, got none for \['9'\]"),
        ({"calibrate": {"0": "1"}, "spiking_layers": 1}, TypeError, r"calibrate\['0'\] must be a number, got str"),
        ({"calibrate": {"0": float("inf")}, "spiking_layers": 1}, ValueError, r"calibrate\['0'\] must be finite"),
        ({"calibrate": {"0": -1.0}, "spiking_layers": 1}, ValueError, r"calibrate\['0'\] must be positive, got -1.0"),
    ],
)
def test_bad_hybrids(arguments, error, message):
    with pytest.raises(error, match=f"convert: .*{message}"):
        convert(cnn().eval(), 8, **{"calibrate": inputs(), **arguments})


# --- torchvision -----------------------------------------------------------------------------------------------------


def torchvision_model(name):
    models = pytest.importorskip("torchvision.models")
    return getattr(models, name)(num_classes=10)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121"])
def test_torchvision(name):
    """Traced and converted, or refused by name; training is slow: below."""
    with torch.device("meta"):
        ann = torchvision_model(name)
    if name == "resnet18":
        assert kinds(convert(ann, 8)).count(TandemAdd) == 8
    else:
        with pytest.raises(ValueError, match=r"(8|62) cat: add branches .*\n +cat in features\."):
            convert(ann, 8)


def test_everything_in_mobilenet_v2():
    with torch.device("meta"):
        ann = torchvision_model("mobilenet_v2")
    with pytest.raises(ValueError, match="these are not:\n") as error:
        convert(ann, 8)
    lines = str(error.value).splitlines()[1:]
    assert [line.split(": ")[0] for line in lines[::2]] == ["  35 ReLU6", "  17 Conv2d", "  10 add"]
    assert lines[1] == (
        "      features.0.2, features.1.conv.0.2, features.2.conv.0.2, features.2.conv.1.2, features.3.conv.0.2, "
        "features.3.conv.1.2, and 29 more"
    )
