"""replace: activations of the ANN itself, modules and functions that forward calls, become others."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tandem_cuda import convert, freeze, quantise
from tandem_cuda.nn.modes import evaluating

IMAGES = torch.randn(32, 3, 8, 10, generator=torch.Generator().manual_seed(0))
replacing = pytest.mark.filterwarnings("ignore:convert. .* of the ANN were replaced:UserWarning")


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


WAYS = {
    "functions": {F.silu: F.relu, torch.sigmoid: F.hardsigmoid, nn.SiLU: nn.ReLU},
    "names": {"silu": nn.ReLU, "sigmoid": nn.Hardsigmoid},
    "names of modules": {"SiLU": F.relu, "Sigmoid": nn.Hardsigmoid()},
    "functions of one's own": {F.silu: lambda x: x.clamp(min=0), "sigmoid": lambda x: F.relu6(x + 3) / 6},
}


@replacing
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("replace", WAYS.values(), ids=WAYS)
def test_the_ann_itself_computes_something_else(replace, in_place):
    ann = made(in_place=in_place)
    before = ann(IMAGES)
    snn = convert(ann, 8, replace=replace, calibrate=IMAGES, correct_bias=False)
    assert snn.ann() is ann
    assert type(ann).__name__ == "Net"
    assert isinstance(ann, Net)
    torch.testing.assert_close(ann(IMAGES), plain(ann)(IMAGES))
    assert (ann(IMAGES) - before).norm() > 0.01 * before.norm()
    assert (snn(IMAGES) - ann(IMAGES)).norm() < 0.05 * ann(IMAGES).norm()
    assert torch.equal(freeze(snn)(IMAGES), snn(IMAGES))
    replaced = snn.report().replaced
    assert [name.partition(" (")[0] for name in replaced] == ["block.act", "silu in block", replaced[-1]]
    assert replaced[-1].startswith("sigmoid")


@replacing
@pytest.mark.parametrize("replace", [WAYS["functions"], WAYS["names"]], ids=["functions", "names"])
def test_copies_compute_the_same(replace):
    """Of both networks: deep copies, pickles, and another conversion of the ANN."""
    ann = made()
    snn = convert(ann, 8, replace=replace, calibrate=IMAGES)
    want, mine = snn(IMAGES), ann(IMAGES)
    file = io.BytesIO()
    torch.save(snn, file)
    file.seek(0)
    for other in (copy.deepcopy(snn), torch.load(file, weights_only=False)):
        assert torch.equal(other(IMAGES), want)
        assert torch.equal(other.ann()(IMAGES), mine)
        assert type(other.ann()).__name__ == "Net"
        assert other.report().agreement is None or other.report(IMAGES).agreement == snn.report(IMAGES).agreement
    again = convert(ann, 8, calibrate=snn.calibration, example=IMAGES)
    assert torch.equal(again(IMAGES), want)
    copied = copy.copy(ann)
    assert torch.equal(copied(IMAGES), mine)
    snn.train()
    snn(IMAGES).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in ann.named_parameters() if not name.endswith("bias"))


@replacing
def test_other_functions_later():
    ann = made()
    convert(ann, 8, replace={"sigmoid": nn.Hardsigmoid, "silu": nn.LeakyReLU})
    convert(ann, 8, replace={F.silu: F.relu, nn.LeakyReLU: nn.ReLU})
    torch.testing.assert_close(ann(IMAGES), plain(ann)(IMAGES))


def test_all_is_undone_if_the_rest_fails():
    """The class, the modules, the biases and the statistics."""

    class Refused(Net):
        def forward(self, x):
            return self.fc(F.group_norm(self.block(x), 2).relu().mean((2, 3)))

    ann = made(Refused)
    state, want = copy.deepcopy(ann.state_dict()), ann(IMAGES)
    with pytest.raises(ValueError, match="group_norm"):
        convert(ann, 4, replace=WAYS["names"], calibrate=IMAGES)
    assert type(ann) is Refused
    assert type(ann.block.act) is nn.SiLU
    assert all(torch.equal(x, state[name]) for name, x in ann.state_dict().items())
    assert torch.equal(ann(IMAGES), want)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("replace", [WAYS["functions"], WAYS["names"]], ids=["functions", "names"])
def test_layers_keep_their_means(replace, in_place):
    """Of one batch: inputs of batch norm, relative to its statistics, and outputs of other layers."""
    ann = made(in_place=in_place)
    before, old = watched(ann), ann(IMAGES)
    weights = {name: x.detach().clone() for name, x in ann.state_dict().items()}
    with pytest.warns(UserWarning, match="wants fine-tuning: its outputs differ from before by .*, it gives the cl"):
        snn = convert(ann, 8, replace=replace, calibrate=IMAGES)
    for name, mean in watched(ann).items():
        torch.testing.assert_close(mean, before[name], atol=1e-5, rtol=1e-4)
    changed = {name for name, x in ann.state_dict().items() if not torch.equal(x, weights[name])}
    assert changed == {"block.norm_b.running_mean", "block.c.bias", "fc.bias"}  # what is behind replaced activations
    torch.testing.assert_close(ann(IMAGES), plain(ann)(IMAGES))
    error = (ann(IMAGES) - old).norm()
    other = made(in_place=in_place)
    with pytest.warns(UserWarning, match=r"it gives the class as before for [\d.]+% of the samples$"):
        convert(other, 8, replace=replace, calibrate=IMAGES, correct_bias=False)
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
    convert(ann, 8, replace={F.gelu: F.relu}, calibrate=IMAGES.split(8))
    assert {name for name, x in ann.state_dict().items() if not torch.equal(x, state[name])} == {"c.bias"}
    torch.testing.assert_close(ann(IMAGES).mean(0), old.mean(0))


@replacing
def test_no_data_no_correction():
    ann = made()
    state = copy.deepcopy(ann.state_dict())
    convert(ann, 8, replace=WAYS["names"])
    assert all(torch.equal(x, state[name]) for name, x in ann.state_dict().items())


@replacing
def test_hybrids_and_integers():
    ann = made()
    snn = convert(ann, 8, replace=WAYS["names"], calibrate=IMAGES, spiking_layers=1)
    assert (snn(IMAGES) - ann(IMAGES)).norm() < 0.05 * ann(IMAGES).norm()
    ann = made()
    snn = convert(ann, 8, replace=WAYS["names"], calibrate=IMAGES, weights="int8")
    assert (snn(IMAGES) - ann(IMAGES)).norm() < 0.05 * ann(IMAGES).norm()
    assert torch.equal(freeze(snn)(IMAGES), snn(IMAGES))
    quantise(snn, 16)


@replacing
def test_names_of_modules_alone_leave_the_class():
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 3))
    convert(ann, 8, replace={"silu": nn.ReLU})
    assert type(ann) is nn.Sequential


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, F.gelu, batch_first=True)

    def forward(self, x):
        return self.layer(self.b(F.gelu(self.a(x))).flatten(2).transpose(1, 2))


@replacing
def test_modules_that_call_functions_themselves():
    """torch.fx sees one call of them. With an example, the graph would differ from the ANN."""
    ann = Encoder().train()
    with pytest.raises(ValueError, match="example must be given if functions are replaced in a network with layer, wh"):
        convert(ann, 8, replace={F.gelu: F.relu})
    with pytest.raises(ValueError, match=r"ann must compute the same as its torch.fx trace"):
        convert(ann, 8, replace={F.gelu: F.relu}, example=IMAGES)
    assert type(ann) is Encoder


@replacing
def test_what_other_code_computes_stays():
    """A function inside a layer of torch is that layer's; only the ANN's own forward calls others."""
    ann = made()
    convert(ann, 8, replace={F.silu: F.relu, "sigmoid": nn.Hardsigmoid})
    with evaluating(ann):
        assert (F.silu(IMAGES) != F.relu(IMAGES)).any()
        assert (ann.block.norm(IMAGES.repeat(1, 3, 1, 1)[:, :8]) < 0).any()


def test_activations_of_timm():
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    x = IMAGES
    kinds = layers.Swish, layers.HardSwish, layers.Mish
    ann = nn.Sequential(*(m for kind in kinds for m in (nn.LazyConv2d(8, 3), kind())), nn.Flatten(), nn.LazyLinear(4))
    ann(x)
    ann.append(layers.PReLU()).append(nn.Linear(4, 3)).eval()
    with pytest.warns(UserWarning, match="1 Swish, 1 HardSwish, 1 Mish of the ANN were replaced"):
        snn = convert(ann, 8, calibrate=x, replace={"swish": nn.ReLU, "hardswish": nn.ReLU, layers.Mish: nn.ReLU})
    assert [type(m) for m in ann if isinstance(m, nn.ReLU)] == [nn.ReLU] * 3
    assert (snn(x) - ann(x)).norm() < 0.05 * ann(x).norm()
    assert any(p is ann[-2].weight for p in snn.parameters())  # the slope, which needs no replacement
