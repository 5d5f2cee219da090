"""What convert refuses, and what it must not refuse."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from anns import Functional, cnn, inputs, kinds
from exact import same
from tandem_cuda import (
    Decode,
    SpikeTrain,
    SpikingMaxPool2d,
    TandemConv2d,
    TandemDropout,
    TandemLinear,
    convert,
    freeze,
)


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
    with pytest.raises(ValueError, match=r"convert: (.|\n)*0 \(Sigmoid\): use nn.Hardsigmoid"):
        convert(nn.Sequential(nn.Sigmoid(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), 8, mode="spikes")


def test_networks_that_spike_already():
    ann, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.rand(6, 4)
    snn = convert(ann, 4, calibrate=x)
    for net, got in (
        (snn, "a TandemNetwork"),
        (snn.snn, r"encode \(Encode\)"),
        (freeze(snn), r"layers.0.layer \(Encode\)"),
        (nn.Sequential(nn.Flatten(), TandemLinear(4, 5)), r"1 \(TandemLinear\)"),
    ):
        with pytest.raises(ValueError, match=f"^convert: ann must be an ANN, got {got}, which belongs to a spiking"):
            convert(net, 4, calibrate=x)


class Unconvertible(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ELU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.GroupNorm(2, 4))
        self.other = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
        self.twice = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.mean = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.ReLU())
        self.plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU())
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.conv3 = nn.Conv2d(2, 4, 3)
        self.deep = nn.ConvTranspose3d(2, 2, 1)
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
        "features.1 (ELU)": "use nn.ReLU, as replace={nn.ELU: nn.ReLU} does",
        "features.4 (GroupNorm)": "use batch norm",
        "sigmoid (sigmoid in forward of Unconvertible)": "call F.hardsigmoid in its place, as replace={'sigmoid': nn.H",
        "view (view in forward of Unconvertible)": "use nn.Flatten",
        "mean (mean in forward of Unconvertible)": "pass keepdim=True",
        "pool (MaxPool2d)": "return_indices=False",
        "add (add in forward of Unconvertible)": "between the network's input and this",
        "deep (ConvTranspose3d)": "use nn.Conv1d, nn.Conv2d",
        "conv2d (conv2d in forward of Unconvertible)": "use nn.Conv2d, which has parameters",
        "cat (cat in forward of Unconvertible)": "along dimension 1",
    }.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name}: ")]
        assert advice in line
    assert len(text.splitlines()) == 11


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
                nn.Mish(),
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
                "  1 (Mish): use nn.ReLU, as replace={nn.Mish: nn.ReLU} does: it has no spiking form",
                "  3 (GELU): use nn.ReLU, as replace={nn.GELU: nn.ReLU} does: it has no spiking form",
                "  5 (GroupNorm): use batch norm: its statistics are constants, whereas these depend on the spikes of "
                "each input",
                "  8 (Softplus): use nn.ReLU, as replace={nn.Softplus: nn.ReLU} does: it has no spiking form",
            ],
        ),
        (
            lambda: nn.Sequential(*[m for _ in range(50) for m in (nn.Linear(4, 4), nn.SiLU())], nn.Linear(4, 4)),
            [
                "  50 SiLU: use nn.ReLU, as replace={nn.SiLU: nn.ReLU} does: it has no spiking form",
                "      1, 3, 5, 7, 9, 11, and 44 more",
            ],
        ),
        (
            FunctionalActivations,
            [
                "  2 gelu: call F.relu in its place, as replace={'gelu': nn.ReLU} does: it has no spiking form",
                "      gelu in FunctionalActivations, gelu_1 in FunctionalActivations",
                "  group_norm (group_norm in forward of FunctionalActivations): use batch norm: its statistics are "
                "constants, whereas these depend on the spikes of each input",
                "  sigmoid (sigmoid in forward of FunctionalActivations): call F.hardsigmoid in its place, as "
                "replace={'sigmoid': nn.Hardsigmoid} does: it has no spiking form",
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


def watch(module, *args):
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ann: ann[0].register_forward_hook(watch), r"0 \(Conv2d\): remove its hooks \(watch\)"),
        (lambda ann: ann[1].register_forward_pre_hook(watch), r"1 \(BatchNorm2d\): remove its hooks \(watch\)"),
        (lambda ann: ann[2].register_forward_hook(watch), r"2 \(ReLU\): remove its hooks"),
        (lambda ann: ann[6].register_full_backward_hook(watch), r"6 \(AvgPool2d\): remove its hooks"),
        (lambda ann: ann.register_forward_pre_hook(watch), "Sequential: remove its hooks"),
    ],
)
def test_what_hooks_do_is_not_dropped(change, message):
    ann = cnn()
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
        ("noise", "ann must not draw random numbers in forward, whose trace would hold one draw"),
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
    torch.testing.assert_close(levels[0], levels[1], rtol=0, atol=0)


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


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: convert(cnn(), 8.0), TypeError, "time_steps must be an int, got float"),
        (lambda: convert(cnn(), 0), ValueError, "time_steps must be at least 1, got 0"),
        (lambda: convert(cnn(), 8, neuron=1.0), TypeError, "neuron must be IF"),
        (lambda: convert(cnn(), 8, percentile="99"), TypeError, "percentile must be a number"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_view_that_mixes_samples():
    class Viewed(Functional):
        def forward(self, x):
            return self.fc2(F.relu(self.fc1(F.relu(self.conv1(x)).view(-1, 32))))

    snn = convert(Viewed(), 8)
    with pytest.raises(ValueError, match="view: input must have 32 features per sample, got 384"):
        snn(inputs())
