"""From PyTorch models to tandem SNNs on the same parameters."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
    synops,
)
from tandem_cuda.diagnostics import diagnose


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
    """With many steps the counts are the activations, but for what max pooling and an impulse's disorder add."""
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
    assert errors[1] < errors[0]
    assert errors[1] < (0.02 if mode == "constant" and make not in (cnn, Functional) else 0.15)


@pytest.mark.parametrize("make", [Functional, Residual, OneDimension, Decoder, TwoHeads])
def test_gradients_approach_those_of_the_ann(make):
    """With many steps the counts are the activations, hence the tandem gradient is the ANN's.

    Not so in `cnn`, whose max pooling, of many small counts, lets more spikes through than the largest has.
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
    spikes = (torch.rand(11, 4, 2, 12, 12, generator=torch.Generator().manual_seed(1)) < 0.3).float()
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
    with pytest.raises(ValueError, match="cannot:\n") as error:
        convert(Unconvertible(), 8)
    text = str(error.value)
    for name, advice in {
        "features.1 (LeakyReLU)": "use nn.ReLU",
        "other.2 (BatchNorm2d)": "directly behind a weight layer",
        "twice.1 (Conv2d)": "put a ReLU between twice.0 and it",
        "mean.1 (AvgPool2d)": "put the ReLU in front",
        "plain.1 (BatchNorm2d)": "affine=True",
        "pool (MaxPool2d)": "return_indices=False",
        "sigmoid (sigmoid in forward of Unconvertible)": "move it",
        "mul (mul in forward of Unconvertible)": "move it",
        "view (view in forward of Unconvertible)": "use nn.Flatten",
        "mean (mean in forward of Unconvertible)": "use nn.AdaptiveAvgPool2d(1)",
        "add (add in forward of Unconvertible)": "add spikes to spikes",
        "deep (Conv3d)": "use nn.Conv1d, nn.Conv2d",
        "conv2d (conv2d in forward of Unconvertible)": "use the module",
    }.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name}: ")]
        assert advice in line
    assert len(text.splitlines()) == 14


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
        (lambda: convert(nn.Linear(2, 2), 8), ValueError, "must have a weight layer and a ReLU in front"),
        (lambda: convert(Branching(nn.Linear(2, 2)), 8), ValueError, "traceable by torch.fx.*control flow"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_silent_layer_is_named():
    ann = cnn().eval()
    nn.init.constant_(ann[1].bias, -100)
    with pytest.raises(ValueError, match="behind 0 the ANN is never positive"):
        convert(ann, 8, calibrate=inputs())


def test_view_that_mixes_samples():
    class Viewed(Functional):
        def forward(self, x):
            return self.fc2(F.relu(self.fc1(F.relu(self.conv1(x)).view(-1, 32))))

    snn = convert(Viewed(), 8)
    with pytest.raises(ValueError, match="view: input must have 32 features a sample, got 384"):
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
    if SpikingMaxPool2d in kinds(snn):  # which lets more spikes through than the largest count has
        assert errors[1] < 0.5
    else:
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
        assert torch.equal(freeze(snn)(x), snn(x))
    table = diagnose(snn, x, lambda y: y.square().sum())
    assert [row.name for row in table] == ["snn.stem", "snn.blocks.0.conv1"]
    assert all(row.gradient_cosine > 0.5 for row in table)


@every_cut
def test_operations_of_a_hybrid(make, k):
    """Its spiking layers are counted as they are in the whole network, and nothing else."""
    ann = trained(make)
    x = inputs()
    hybrid = synops(convert(ann, 8, calibrate=x, spiking_layers=k), x)
    assert list(hybrid) == list(synops(convert(ann, 8, calibrate=x), x))[:k]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"spiking_layers": 0}, ValueError, "at least 1 .*the ANN.*, got 0"),
        ({"spiking_layers": 4}, ValueError, "at most the 3 that the ANN has, got 4"),
        ({"spiking_layers": True}, TypeError, "spiking_layers must be an int, got bool"),
        ({"spiking_layers": 1.0}, TypeError, "spiking_layers must be an int, got float"),
        ({"spiking_layers": 2, "calibrate": None}, ValueError, "calibrate must be given with spiking_layers=2 of 3"),
        ({"calibrate": {"0": 1.0, "4": 2.0}}, ValueError, r"a level for each spiking layer, got none for \['9'\]"),
        ({"calibrate": {"0": "1"}, "spiking_layers": 1}, TypeError, r"calibrate\['0'\] must be a number, got str"),
        ({"calibrate": {"0": float("inf")}, "spiking_layers": 1}, ValueError, r"calibrate\['0'\] must be finite"),
        ({"calibrate": {"0": -1.0}, "spiking_layers": 1}, ValueError, "behind 0 the ANN is never positive"),
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
        with pytest.raises(ValueError, match="cat in forward of features"):
            convert(ann, 8)
