"""Tracing: control flow on sizes, outputs of transformers, stochastic depth, and timm's layers."""

import copy
import dataclasses
import io
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exact import generator, same
from tandem_cuda import SpikeTrain, TandemLinear, convert, freeze
from tandem_cuda.convert.nodes import StochasticDepth, kind_of
from tandem_cuda.convert.rules import RULES
from tandem_cuda.convert.trace import traced


def images(n=3, channels=3, size=8):
    return torch.randn(n, channels, size, size, generator=generator(0))


def pickled(network):
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class Sized(nn.Module):
    """``shape`` asks something about sizes between the layers; the images are pooled or not, as it says."""

    def __init__(self, ask, before=False):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.ask, self.before = ask, before

    def forward(self, x):
        y = x if self.before else torch.relu(self.conv(x))
        pooled = self.ask(y)
        if self.before:
            y = torch.relu(self.conv(y))
        y = F.max_pool2d(y, 2) if pooled else y
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


def asserts(x):
    torch._assert(x.shape[1] == 4, "four channels")
    torch._assert(condition=x.dim() == 4, message="images")
    return True


def unpacked(*sizes):
    _, _, height, width = sizes
    return height > width - 1


QUESTIONS = {
    "comparison": lambda x: x.shape[-1] > 4,
    "size": lambda x: x.size(2) > 4,
    "all sizes": lambda x: x.shape[2:] == (8, 8),
    "unpacking": lambda x: unpacked(*x.shape),
    "unpacking size": lambda x: len([*x.size()]) == 4,
    "numbers": lambda x: int(x.shape[2]) % 2 == 0 and float(x.shape[3]) > 4.5,
    "range": lambda x: len(range(x.shape[2])) == 8,
    "length": lambda x: len(x.shape) == 4,
    "type": lambda x: x.is_floating_point() and x.dtype == torch.float32,
    "of two": lambda x: x.shape == (x + x).shape,
    "computed": lambda x: x.flatten(1).shape[1] > 4,
    "assert": asserts,
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_control_flow_on_sizes(name):
    """The network computes the same for every batch size, and nothing of the question is left in it."""
    ann = Sized(QUESTIONS[name]).eval()
    snn = convert(ann, 256, example=images(), calibrate=images(8))
    for n in (1, 2, 5):
        want = ann(images(n))
        assert (snn(images(n)) - want).norm() < 0.05 * want.norm()
    assert {node.target for node in snn.snn.graph.nodes} & {"size", "dim", len, torch._assert} == set()


@pytest.mark.parametrize("name", ["comparison", "all sizes", "unpacking", "computed"])
def test_other_sizes_are_refused(name):
    snn = convert(Sized(QUESTIONS[name]).eval(), 4, example=images())
    message = r"input must be \[any, any, 8, 8\], for which convert has traced the ANN, got \[3, 3, 4, 4\]"
    for network in (snn, copy.deepcopy(snn), pickled(snn.snn), freeze(snn)):
        network(images(2))
        with pytest.raises(ValueError, match=message):
            network(images(size=4))


@pytest.mark.parametrize("ask", [lambda x: len(x.shape) == 4, lambda x: x.dim() == 4, lambda x: x.ndim > 3])
@pytest.mark.parametrize("before", [False, True])
def test_other_numbers_of_dimensions_are_refused(ask, before):
    snn = convert(Sized(ask, before).eval(), 4, example=images())
    snn(images(size=6))
    with pytest.raises(ValueError, match=r"input must be \[any, any, any, any\], for which .*, got \[3, 8, 8\]"):
        snn(images()[0])


def test_nir_is_for_the_sizes_of_the_sample():
    to_nir = pytest.importorskip("tandem_cuda.exchange").to_nir

    class Averaged(Sized):
        def forward(self, x):
            size = 8 if self.ask(x) else 4
            return self.fc(F.avg_pool2d(torch.relu(self.conv(x)), size).flatten(1))

    sized, plain = Averaged(lambda x: x.shape[2] == 8), Averaged(lambda x: True)
    plain.load_state_dict(sized.state_dict())
    snn = convert(sized.eval(), 4, example=images())
    assert "sized_as_traced" in snn.snn.code
    graphs = [to_nir(network, images()).to_dict() for network in (snn, convert(plain.eval(), 4))]
    assert str(graphs[0]) == str(graphs[1])


def test_lengths_of_pieces():
    """The number of pieces may depend on any size."""
    snn = convert(Sized(lambda x: len(x.split(4, 2)) == 2, before=True).eval(), 4, example=images())
    with pytest.raises(ValueError, match=r"input must be \[any, any, 8, 8\]"):
        snn(images(size=4))


def test_only_the_sizes_that_matter_are_checked():
    snn = convert(Sized(lambda x: x.shape[3] == 8, before=True).eval(), 4, example=images())
    snn(torch.randn(2, 3, 5, 8))
    with pytest.raises(ValueError, match=r"input must be \[any, any, any, 8\]"):
        snn(torch.randn(2, 3, 8, 5))
    channels = convert(Sized(lambda x: x.shape[1] == 3, before=True).eval(), 4, example=images())
    channels(images(size=5))
    assert "sized_as_traced" not in channels.snn.code  # the convolution reads as many channels as it has


def test_questions_about_the_type_do_not_restrict_sizes():
    convert(Sized(QUESTIONS["type"]).eval(), 4, example=images())(images(size=6))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda x: len(x) == 3, "must not depend on the batch size"),
        (lambda x: x.numel() > 9, "must not depend on the batch size"),
        (lambda x: min(x.size(0), 2) == 2, "must not depend on the batch size"),
        (lambda x: x.flatten().shape[0] > 9, "must not depend on the batch size"),
        (lambda x: list(x) != [], "must not depend on the batch size"),
        (lambda x: float(x.sum()) > 0, "must not depend on the values of tensors"),
    ],
)
def test_other_control_flow_is_refused(ask, message):
    with pytest.raises(ValueError, match=f"torch.fx.*{message}"):
        convert(Sized(ask), 4, example=images())


def test_failed_assertions():
    with pytest.raises(ValueError, match="four channels"):
        convert(Sized(lambda x: asserts(x[:, :3])), 4, example=images())


class Typed(nn.Module):
    """Sees a proxy where there is a tensor: it has any attribute."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 8), nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.conv(x)).flatten(1)
        return self.fc(x + x if hasattr(x, "mask") else x)


def test_the_trace_is_compared_with_the_ann():
    with pytest.raises(ValueError, match=r"must compute the same as its torch\.fx trace"):
        convert(Typed(), 4, example=images())


def test_sizes_that_are_computed_with_stay_symbols():
    class Scaled(Typed):
        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).flatten(1)) * x.size(0) / x.shape[2]

    ann = Scaled().eval()
    snn = convert(ann, 256, calibrate=images(8), example=images())
    assert (snn(images(5)) - ann(images(5))).norm() < 0.05 * ann(images(5)).norm()


def test_tracing_changes_nothing():
    ann = Sized(QUESTIONS["computed"])
    ann.conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    state, modes = copy.deepcopy(ann.state_dict()), [m.training for m in ann.modules()]
    convert(ann, 4, example=images())
    same(tuple(ann.state_dict().values()), tuple(state.values()))
    assert [m.training for m in ann.modules()] == modes


# -- transformers


@dataclasses.dataclass
class Output(OrderedDict):
    """A dict of what is not None, whose values are attributes, too."""

    logits: torch.Tensor | None = None
    loss: torch.Tensor | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


class Classifier(nn.Module):
    """All arguments are optional, and some tell what to return."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 8), nn.Linear(4, 5)

    def forward(self, pixel_values=None, labels=None, *, return_dict=None, scale=None, **kwargs):
        if pixel_values is None:
            raise ValueError("pixel_values is missing")
        if pixel_values.shape[1] != 3:
            raise ValueError("three channels")
        x = self.fc(torch.relu(self.conv(pixel_values)).flatten(1))
        x = x * kwargs.get("factor", 1.0) if scale is None else x * scale
        return Output(logits=x, loss=None if labels is None else F.cross_entropy(x, labels))


def test_outputs_are_of_the_anns_class():
    ann = Classifier().eval()
    snn = convert(ann, 256, example=images(), calibrate=images(8))
    for y in (snn(images()), snn(pixel_values=images(), labels=None), pickled(snn)(images())):
        assert type(y) is Output
        assert list(y) == ["logits"]
        assert y.loss is None
        assert (y.logits - ann(images()).logits).norm() < 0.05 * ann(images()).logits.norm()
    with pytest.raises(ValueError, match="labels must keep its default"):
        snn(images(), labels=torch.zeros(3))
    with pytest.raises(TypeError, match=r"must match the ANN's forward\(pixel_values, labels, return_dict, scale\)"):
        snn(images(), factor=2.0)


def test_the_first_argument_is_an_input_if_all_are_optional():
    class Simple(Classifier):
        def forward(self, pixel_values=None, labels=None):
            return self.fc(torch.relu(self.conv(pixel_values)).flatten(1))

    snn = convert(Simple().eval(), 4)
    same(snn(images()).detach(), snn(pixel_values=images()).detach())


def test_an_example_makes_optional_arguments_inputs():
    class Two(Classifier):
        def forward(self, x=None, y=None):
            return self.fc(torch.relu(self.conv(x)).flatten(1)) + (0 if y is None else y)

    ann = Two().eval()
    snn = convert(ann, 256, example=(images(), torch.ones(3, 5)))
    assert (snn(images(), torch.ones(3, 5)) - snn(images(), y=torch.zeros(3, 5)) - 1).abs().max() < 1e-5
    with pytest.raises(TypeError, match="inputs must match"):
        snn(images())


# -- stochastic depth and timm


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_stochastic_depth_is_one_call(library):
    pytest.importorskip(library)
    if library == "timm":
        from timm.layers import DropPath

        layer = DropPath(0.5)
    else:
        from torchvision.ops import StochasticDepth as Layer

        layer = Layer(0.5, "row")
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    trace = traced(ann, RULES)
    assert trace.root is ann
    assert [node.target for node in trace.graph.nodes if node.op == "call_module"] == ["0", "1", "2", "3", "4"]
    assert kind_of(layer) is StochasticDepth


class Norms(nn.Module):
    """Batch norm with activation: behind a convolution, behind a sum, and in front of the first weight layer."""

    def __init__(self, kind, **how):
        super().__init__()
        self.first = kind(3, apply_act=False)
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), kind(4, **how)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), kind(4, apply_act=False)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.norm1(self.conv1(self.first(x)))
        x = torch.relu(self.norm2(self.conv2(x)) + x)
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def norms():
    kind = pytest.importorskip("timm.layers").BatchNormAct2d
    ann = Norms(kind)
    for m in ann.modules():
        if isinstance(m, kind):
            with torch.no_grad():
                m.weight.uniform_(0.5, 2, generator=generator(1))
                m.bias.uniform_(-0.5, 0.5, generator=generator(2))
                m.running_mean.uniform_(-0.5, 0.5, generator=generator(3))
                m.running_var.uniform_(0.5, 2, generator=generator(4))
    return ann


def test_batch_norm_with_activation(norms):
    before = copy.deepcopy(norms.state_dict())
    snn = convert(norms.eval(), 256, calibrate=images(8), example=images())
    assert (snn(images()) - norms(images())).norm() < 0.05 * norms(images()).norm()
    assert list(snn.state_dict()) == [*before, "_extra_state"]
    assert list(norms.state_dict()) == list(before)
    same(tuple(norms.state_dict().values()), tuple(before.values()))
    assert {id(p) for p in snn.parameters()} == {id(p) for p in norms.parameters()}


def test_batch_norm_with_activation_trains(norms):
    """One update of the running statistics, and gradients for all parameters, seen from both sides."""
    snn = convert(norms.train(), 8, calibrate=images(8), example=images())
    assert [norms.norm1.num_batches_tracked.item(), norms.first.num_batches_tracked.item()] == [0, 0]
    mean = norms.norm1.running_mean.clone()
    F.cross_entropy(snn(images()), torch.tensor([0, 1, 2])).backward()
    assert [norms.norm1.num_batches_tracked.item(), norms.first.num_batches_tracked.item()] == [1, 1]
    assert (norms.norm1.running_mean != mean).all()
    assert all(p.grad is not None for p in norms.parameters())
    snn.eval()
    same(snn.state_dict()["norm1.running_mean"], norms.norm1.running_mean)


def test_batch_norm_with_activation_follows_the_mode(norms):
    """As with nn.BatchNorm2d, statistics of a part of the ANN that is in eval mode stay."""
    norms.train().norm1.eval()
    snn = convert(norms, 8, example=images())
    assert norms.training
    assert not norms.norm1.training
    mean = norms.norm1.running_mean.clone(), norms.norm2.running_mean.clone()
    snn(images())
    same(norms.norm1.running_mean, mean[0])
    assert (norms.norm2.running_mean != mean[1]).all()
    snn.ann().norm1.train()
    snn(images())
    assert (norms.norm1.running_mean != mean[0]).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_batch_norm_with_activation_in_copies(norms, copied):
    snn = convert(norms.eval(), 8, example=images())
    other = copied(snn)
    same(other(images()).detach(), snn(images()).detach())
    ann = other.ann()
    assert ann.norm1.running_mean is not norms.norm1.running_mean
    ann.train()
    ann(images())
    other(images())
    assert ann.norm1.num_batches_tracked == ann.norm2.num_batches_tracked == 2
    assert norms.norm1.num_batches_tracked == 0
    ann.eval().double()
    assert other(images().double()).dtype == torch.float64


def test_hooks_on_batch_norm_with_activation(norms):
    norms.norm1.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="convert: ann must"):
        convert(norms, 8)


class Sum(nn.Module):
    """Batch norm behind a convolution, and in front of a sum."""

    def __init__(self, kind):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), kind(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), kind(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.fc(torch.relu(self.norm2(self.conv2(x)) + x).mean((2, 3)))


def test_frozen_batch_norm():
    """It folds into the layer before it, and uses its running statistics in training, too."""
    ann, plain, frozen = map(
        Sum, (nn.BatchNorm2d, nn.BatchNorm2d, pytest.importorskip("torchvision.ops").FrozenBatchNorm2d)
    )
    with torch.no_grad():
        for name, x in ann.state_dict().items():
            if "norm" in name and x.is_floating_point():
                x.uniform_(0.5, 2, generator=generator(len(name)))
    plain.load_state_dict(ann.state_dict())
    frozen.load_state_dict(ann.state_dict())
    want, snn = (convert(x.eval(), 8, calibrate=images(8)) for x in (plain, frozen))
    assert [*snn.spiking_layers] == [*want.spiking_layers]
    assert list(snn.state_dict()) == [*frozen.state_dict(), "_extra_state"]
    same(snn(images()), want(images()))
    same(freeze(snn)(images()), want(images()).detach())
    same(pickled(snn)(images()), want(images()))
    same(snn.train()(images()), want(images()))
    snn(images()).square().sum().backward()
    want(images()).square().sum().backward()
    for name, parameter in frozen.named_parameters():
        same(parameter.grad, plain.get_parameter(name).grad)
    assert not any("running" in name and (x != ann.state_dict()[name]).any() for name, x in frozen.state_dict().items())


@pytest.mark.parametrize("size", [8, 9])
def test_convolution_with_the_padding_of_tensorflow(size):
    kind = pytest.importorskip("timm.layers").Conv2dSame
    ann = nn.Sequential(
        *(kind(3, 4, 3, stride=2), nn.ReLU(), kind(4, 4, 3, stride=2, groups=4), nn.ReLU()),
        *(kind(4, 5, (1, 4), dilation=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
    ).eval()
    snn = convert(ann, 256, calibrate=images(8, size=size), example=images(size=size))
    want = ann(images(size=size))
    assert (snn(images(size=size)) - want).norm() < 0.05 * want.norm()
    assert list(snn.state_dict()) == [*ann.state_dict(), "_extra_state"]
    with pytest.raises(ValueError, match=rf"input must be \[any, 3, {size}, {size}\]"):
        snn(images(size=size + 4))
    with pytest.raises(ValueError, match="pass example="):
        convert(ann, 8)


def test_linear_layers_of_timm():
    """Neurons follow them as they follow nn.Linear, and the last one is the read-out."""
    kind = pytest.importorskip("timm.layers").Linear
    ann = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(kind(4, 6), nn.BatchNorm1d(6), nn.ReLU(), kind(6, 3)),
    ).eval()
    snn = convert(ann, 8, calibrate=images(8))
    (hidden,) = (x for x in snn.modules() if isinstance(x, TandemLinear))
    assert hidden.weight is ann[4].weight
    assert list(snn.state_dict()) == [*ann.state_dict(), "_extra_state"]
    want = ann(images())
    assert (snn(images()) - want).norm() < 0.05 * want.norm()
    same(freeze(snn)(images()), snn(images()).detach())


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, 8), (3, 2, 9), (2, 2, 9), (3, 1, 9), (3, 3, 8)])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
def test_max_pooling_with_the_padding_of_tensorflow(kernel, stride, size, activation):
    """The padding is below all values, also below negative ones."""
    kind = pytest.importorskip("timm.layers.pool2d_same").MaxPool2dSame
    conv = nn.Conv2d(3, 4, 3, padding=1)
    ann = nn.Sequential(
        *(conv, activation(), kind(kernel, stride), nn.Conv2d(4, 5, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
    ).eval()
    with torch.no_grad():
        conv.bias.sub_(1)  # values of the border are negative
    snn = convert(ann, 8, calibrate=images(8, size=size), example=images(size=size))
    want = ann(images(size=size))
    assert (snn(images(size=size)) - want).norm() < 0.05 * want.norm()


def test_padding_that_no_max_pooling_has():
    kind = pytest.importorskip("timm.layers.pool2d_same").MaxPool2dSame
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), kind(5, 2), nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(ValueError, match="pad with zeros: other values are not silent neurons"):
        convert(ann, 8, example=images())


def test_spikes_as_example():
    """The example is an input of the ANN, which takes counts."""
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    snn = convert(ann, 8, mode="spikes", example=images())
    x = SpikeTrain.from_dense((torch.rand(8, 2, 3, 8, 8, generator=generator(0)) < 0.3).float())
    assert snn(x).shape == (2, 2)
