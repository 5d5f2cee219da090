"""replace: activations of the ANN itself, by their names, whatever calls them."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tandem_cuda import convert, freeze

IMAGES = torch.randn(32, 3, 8, 10, generator=torch.Generator().manual_seed(0))
replacing = pytest.mark.filterwarnings("ignore:convert. activations of the ANN were replaced:UserWarning")


class Block(nn.Module):
    """A function, in place if asked, a method and a module."""

    def __init__(self, in_place=False):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 6, 3)
        self.norm_b, self.act = nn.BatchNorm2d(8), nn.SiLU(inplace=True)
        self.in_place = in_place

    def forward(self, x):
        x = F.silu(self.norm(self.a(x)), inplace=self.in_place)
        x = self.norm_b(self.b(x))
        x = x.sigmoid_() if self.in_place else x.sigmoid()
        return self.act(self.c(x))


class Net(nn.Module):
    def __init__(self, in_place=False):
        super().__init__()
        self.block, self.fc = Block(in_place), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.block(x).mean((2, 3)))


class Plain(Net):
    """What the other network becomes."""

    def forward(self, x):
        block = self.block
        x = F.relu(block.norm(block.a(x)))
        x = F.hardsigmoid(block.norm_b(block.b(x)))
        return self.fc(F.relu(block.c(x)).mean((2, 3)))


def made(kind=Net, **how):
    torch.manual_seed(0)
    net = kind(**how)
    for _ in range(10):
        net(IMAGES)  # sets batch norm's statistics
    return net.eval()


def plain(net):
    """The network written with other activations, with the same parameters."""
    other = Plain().eval()
    other.load_state_dict(net.state_dict())
    return other


REPLACE = {"silu": "relu", "sigmoid": "hardsigmoid"}


@replacing
@pytest.mark.parametrize("in_place", [False, True])
def test_the_ann_itself_computes_something_else(in_place):
    """Functions, methods and modules; copies, pickles and another conversion of the ANN, too."""
    ann = made(in_place=in_place)
    before, state = ann(IMAGES), copy.deepcopy(ann.state_dict())
    snn = convert(ann, 8, replace=REPLACE, calibrate=IMAGES, correct_bias=False)
    assert snn.ann() is ann
    assert type(ann).__name__ == "Net"
    assert isinstance(ann, Net)
    mine, want = ann(IMAGES), snn(IMAGES)
    torch.testing.assert_close(mine, plain(ann)(IMAGES))
    assert all(torch.equal(x, state[name]) for name, x in ann.state_dict().items())
    assert (mine - before).norm() > 0.01 * before.norm()
    assert (want - mine).norm() < 0.05 * mine.norm()
    assert torch.equal(freeze(snn)(IMAGES), want)
    assert snn.report().replaced == ("silu -> relu", "sigmoid -> hardsigmoid")
    file = io.BytesIO()
    torch.save(snn, file)
    file.seek(0)
    for other in (copy.deepcopy(snn), torch.load(file, weights_only=False)):
        assert torch.equal(other(IMAGES), want)
        assert torch.equal(other.ann()(IMAGES), mine)
        assert type(other.ann()).__name__ == "Net"
    assert torch.equal(convert(ann, 8, calibrate=snn.calibration, example=IMAGES)(IMAGES), want)
    snn.train()
    snn(IMAGES).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in ann.named_parameters() if not name.endswith("bias"))


@replacing
def test_other_functions_later():
    ann = made()
    convert(ann, 8, replace={"sigmoid": "hardsigmoid", "silu": "leaky_relu"}, example=IMAGES)
    convert(ann, 8, replace={"leaky_relu": "relu"}, example=IMAGES)
    torch.testing.assert_close(ann(IMAGES), plain(ann)(IMAGES))


def test_all_is_undone_if_the_rest_fails():
    """The class, the biases and the statistics."""

    class Refused(Net):
        def forward(self, x):
            return self.fc(F.group_norm(self.block(x), 2).relu().mean((2, 3)))

    ann = made(Refused)
    state, want = copy.deepcopy(ann.state_dict()), ann(IMAGES)
    with pytest.raises(ValueError, match="group_norm"):
        convert(ann, 4, replace=REPLACE, calibrate=IMAGES, analogue=False)
    with pytest.raises(ValueError, match="convert: replace must name functions that forward calls, got gelu"):
        convert(ann, 4, replace={"silu": "relu", "gelu": "relu"}, calibrate=IMAGES)
    assert type(ann) is Refused
    assert all(torch.equal(x, state[name]) for name, x in ann.state_dict().items())
    assert torch.equal(ann(IMAGES), want)


@pytest.mark.parametrize("in_place", [False, True])
def test_layers_keep_their_means(in_place):
    """Of one batch: inputs of batch norm, relative to its statistics, and outputs of other layers."""
    ann = made(in_place=in_place)
    before, old = watched(ann), ann(IMAGES)
    weights = {name: x.detach().clone() for name, x in ann.state_dict().items()}
    with pytest.warns(UserWarning, match="wants fine-tuning: its outputs differ from before by .*, it gives the cl"):
        snn = convert(ann, 8, replace=REPLACE, calibrate=IMAGES)
    for name, mean in watched(ann).items():
        torch.testing.assert_close(mean, before[name], atol=1e-5, rtol=1e-4)
    changed = {name for name, x in ann.state_dict().items() if not torch.equal(x, weights[name])}
    assert changed == {"block.norm_b.running_mean", "block.c.bias", "fc.bias"}  # what is behind replaced activations
    torch.testing.assert_close(ann(IMAGES), plain(ann)(IMAGES))
    error = (ann(IMAGES) - old).norm()
    other = made(in_place=in_place)
    with pytest.warns(UserWarning, match=r"it gives the class as before for [\d.]+% of the samples$"):
        convert(other, 8, replace=REPLACE, calibrate=IMAGES, correct_bias=False)
    assert error < 0.5 * (other(IMAGES) - old).norm()
    assert (snn(IMAGES) - old).norm() < 0.5 * (other(IMAGES) - old).norm()


def watched(ann):
    """The mean of each channel behind each layer."""
    means = {}
    hooks = [
        module.register_forward_hook(
            lambda m, inputs, y, name=name: means.update({name: y.movedim(1, -1).flatten(0, -2).mean(0).detach()})
        )
        for name, module in ann.named_modules()
        if isinstance(module, (nn.Linear, nn.BatchNorm2d)) or name == "block.c"
    ]
    ann(IMAGES)
    for hook in hooks:
        hook.remove()
    return means


@replacing
def test_means_over_several_batches_and_layers_that_run_twice():
    """A layer that runs twice has one bias for two means, and keeps it."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

        def forward(self, x):
            x = F.gelu(self.b(F.gelu(self.a(x))))
            return self.c(F.gelu(self.b(x)).mean((2, 3)))

    torch.manual_seed(0)
    ann = Twice().eval()
    state, old = copy.deepcopy(ann.state_dict()), ann(IMAGES)
    convert(ann, 8, replace={"gelu": "relu"}, calibrate=IMAGES.split(8))
    assert {name for name, x in ann.state_dict().items() if not torch.equal(x, state[name])} == {"c.bias"}
    torch.testing.assert_close(ann(IMAGES).mean(0), old.mean(0))


@replacing
def test_integers():
    ann = made()
    snn = convert(ann, 8, replace=REPLACE, calibrate=IMAGES, weights="int8")
    assert (snn(IMAGES) - ann(IMAGES)).norm() < 0.05 * ann(IMAGES).norm()
    assert torch.equal(freeze(snn)(IMAGES), snn(IMAGES))


@replacing
def test_what_other_code_computes_stays():
    """Outside the ANN's forward, functions are torch's."""
    convert(made(), 8, replace=REPLACE, example=IMAGES)
    assert (F.silu(IMAGES) != F.relu(IMAGES)).any()


@pytest.mark.parametrize(
    ("replace", "error", "message"),
    [
        ([("silu", "relu")], TypeError, "must be a dict, got list"),
        ({nn.SiLU: "relu"}, TypeError, r"must map names of torch.nn.functional, such as {'silu': 'relu'}, got <class"),
        ({"silu": F.relu}, TypeError, "must map names of torch.nn.functional, .* got <function relu"),
        ({"SiLU": "relu"}, ValueError, "must map names of torch.nn.functional, got 'SiLU'"),
    ],
)
def test_wrong_replacements(replace, error, message):
    with pytest.raises(error, match=f"convert: replace {message}"):
        convert(made(), 4, replace=replace, example=IMAGES)
