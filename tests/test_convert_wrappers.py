"""Subclasses that only have a constructor of their own, wrappers, and forwards that ask for classes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, is_tensor, nn
from torch.optim.swa_utils import AveragedModel

import asking_for_classes
from anns import Net
from asking_for_classes import Rectifier
from exact import generator, same
from tandem_cuda import TandemConv2d, convert, freeze
from tandem_cuda.convert.nodes import kind_of
from tandem_cuda.convert.rules import WeightRule, register
from tandem_cuda.nn.classes import torch_class

pytestmark = pytest.mark.usefixtures("restored_rules")

IMAGES = torch.rand(8, 3, 8, 8, generator=generator(0))


class Conv(nn.Conv2d):
    """Pads as much as its kernel needs, as in many a repository."""

    scale = 2

    def __init__(self, inputs, outputs, kernel_size=3):
        super().__init__(inputs, outputs, kernel_size, padding=kernel_size // 2)
        self.note = "mine"

    def extra_repr(self):
        return self.note

    def reset_parameters(self):
        nn.init.kaiming_normal_(self.weight)
        nn.init.zeros_(self.bias)

    def description(self):
        return self.note


class PointConv(Conv):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 1)


class Linear(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)


class Norm(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-3, momentum=0.03)


class Act(nn.ReLU):
    def __init__(self):
        super().__init__(inplace=True)


class Swish(nn.SiLU):
    def __init__(self):
        super().__init__(inplace=True)


class ConvNormAct(nn.Sequential):
    def __init__(self, inputs, outputs, conv=Conv, norm=Norm, act=Act):
        super().__init__(conv(inputs, outputs), norm(outputs), act())


def plain_conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def network(conv=plain_conv, point=lambda i, o: nn.Conv2d(i, o, 1), norm=nn.BatchNorm2d, act=nn.ReLU, linear=nn.Linear):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(conv(3, 8), norm(8), act(), point(8, 4), norm(4), conv(4, 8), act()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), act(), linear(6, 5)),
    )
    for x in net.parameters():
        nn.init.normal_(x, 0.1, 0.3, generator=generator(x.numel()))
    return net.train()


def without_bias(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


@pytest.mark.parametrize("settings", [{}, {"calibrate": IMAGES}, {"weights": "int8"}])
def test_subclasses_with_only_a_constructor(settings):
    ann, plain = network(Conv, PointConv, Norm, Act, Linear), network(linear=without_bias)
    for norm, other in ((ann[1], plain[1]), (ann[4], plain[4])):
        other.eps, other.momentum = norm.eps, norm.momentum
    ann(IMAGES), plain(IMAGES)
    same(tuple(ann.state_dict().values()), tuple(plain.state_dict().values()))
    if settings:
        ann.eval(), plain.eval()
    snn, want = convert(ann, 8, **settings), convert(plain, 8, **settings)
    same(snn(IMAGES).detach(), want(IMAGES).detach())
    snn(IMAGES).sum().backward(), want(IMAGES)
    assert all(p.grad is not None for p in ann.parameters())
    snn.eval(), want.eval()
    same(freeze(snn)(IMAGES), freeze(want)(IMAGES))
    same(copy.deepcopy(snn)(IMAGES).detach(), snn(IMAGES).detach())


def test_sequences_with_a_constructor():
    ann = Net(lambda n, x: n.fc(n.block(x).mean((2, 3))), block=ConvNormAct(3, 8), fc=Linear(8, 5))
    assert convert(ann, 8).spiking_layers == ("block.0",)


def test_the_advice_names_the_subclass():
    with pytest.raises(ValueError, match=r"2.2 \(Swish\): use nn.ReLU, as replace={.*Swish: nn.ReLU} does"):
        convert(nn.Sequential(*network()[:2], ConvNormAct(8, 8, act=Swish), *network()[3:]), 8)


class PointConvOfRule(PointConv):
    pass


class Scaled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


class Watching(nn.Conv2d):
    @property
    def scale(self):
        return 2


class Mixed(Rectifier, nn.Conv2d):
    pass


class Frozen(Norm):
    def train(self, mode=True):
        return super().train(False)


@pytest.mark.parametrize("kind", [Scaled, Watching, Mixed, Frozen, TandemConv2d, nn.Module, ConvNormAct, nn.LazyConv2d])
def test_classes_that_do_more(kind):
    assert torch_class(kind) is (nn.Sequential if kind is ConvNormAct else kind)


def test_a_rule_of_the_subclass_comes_first():
    seen = []
    register(Act, lambda call: (seen.append(call), call.fire())[1])
    register(PointConv, WeightRule(TandemConv2d, nn.BatchNorm2d))
    ann = network(Conv, PointConv, Norm, Act)
    assert kind_of(ann[3]) is PointConv
    assert kind_of(PointConvOfRule(8, 4)) is PointConvOfRule
    assert kind_of(ann[0]) is nn.Conv2d
    convert(ann, 8)
    assert seen


# -- wrappers


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class Normalised(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))

    def forward(self, image):
        return self.model(image - self.mean)


WRAPPERS = {
    "parallel": nn.DataParallel,
    "wrapper": Wrapper,
    "two wrappers": lambda net: Wrapper(nn.DataParallel(net)),
    "averaged": AveragedModel,
    "parallel features": lambda net: nn.Sequential(nn.DataParallel(net[:7]), *net[7:]),
    "normalised": Normalised,
}


@pytest.mark.parametrize("settings", [{}, {"calibrate": IMAGES}, {"example": IMAGES}])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers(wrap, settings):
    net = network()
    net(IMAGES)
    ann = wrap(net.eval()).eval()
    snn = convert(ann, 8, **settings)
    assert snn.ann() is ann
    x = IMAGES - 0.4 if isinstance(ann, Normalised) else IMAGES
    plain = convert(copy.deepcopy(net), 8, **dict.fromkeys(settings, x))
    same(snn(IMAGES).detach(), plain(x).detach())
    assert str(snn.report())
    snn.train()  # compares it with a trace
    assert len(snn.spiking_layers) == len(plain.spiking_layers)


def test_inputs_of_wrappers_have_names():
    class Two(Net):
        def forward(self, one, other, scale=1.0):
            return self.fc(F.relu(self.a(one)) + F.relu(self.a(other))) * scale

    snn = convert(Wrapper(Two(None, a=nn.Linear(3, 4), fc=nn.Linear(4, 2))), 8)
    x = torch.rand(2, 3)
    same(snn(x, other=x).detach(), snn(x, x).detach())
    with pytest.raises(TypeError, match=r"forward\(one, other, scale\)"):
        snn(x)


@pytest.mark.parametrize(
    ("ann", "message"),
    [
        (
            lambda: torch.jit.trace(network(), torch.rand(2, 3, 8, 8)),
            "got a TopLevelTracedModule: pass the network that torch.jit was given",
        ),
        (lambda: torch.jit.script(network()), "got a RecursiveScriptModule: pass the network that torch.jit was given"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_networks_are_refused(ann, message):
    with pytest.raises(ValueError, match=f"ann must be a network in Python, {message}"):
        convert(ann(), 8)


# -- questions about classes


def by_name(x):
    return torch.relu(x) if is_tensor(x) else None


def by_type(x):
    assert type(x) is Tensor
    assert type(x) is not list
    assert torch.is_tensor(x)
    assert not isinstance(x, (list, tuple))
    assert isinstance(x.shape, torch.Size)
    assert isinstance(x.dtype, torch.dtype)
    return torch.relu(x)


def listed(x):
    features = [x] if isinstance(x, Tensor) else x
    return torch.relu(torch.cat(features, 1))


QUESTIONS = {
    "name": by_name,
    "type": by_type,
    "list": listed,
    "function of a module": lambda x: asking_for_classes.rectified(x),
    "method of a class": lambda x: Rectifier().run(x),
}


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_questions_about_classes(ask):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(ask(self.conv(x)).mean((2, 3)))

    modules = [asking_for_classes, __import__(__name__)]
    before = [dict(vars(module)) for module in modules]
    ann = Net().eval()
    snn = convert(ann, 8, calibrate=IMAGES)
    assert (snn(IMAGES) - ann(IMAGES)).norm() < 0.05 * ann(IMAGES).norm()
    assert [dict(vars(module)) for module in modules] == before
