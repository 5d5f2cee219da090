"""Sizes that forward computes with: networks as students write them."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import symbolic_trace
from torch.nn.utils import parametrize

from exact import generator, same
from tandem_cuda import SpikeTrain, convert, freeze
from tandem_cuda.convert import sized_as_traced
from tandem_cuda.convert.proxy_types import class_of
from tandem_cuda.convert.rules import RULES
from tandem_cuda.convert.trace import traced

SIZE = 10
IMAGES = torch.rand(8, 3, SIZE, SIZE, generator=generator(0))


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class SELayer(nn.Module):
    """Squeeze-and-excitation as in the best-known repository of it."""

    def __init__(self, channel, reduction=4):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channel // reduction, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class SELayerOfConvolutions(nn.Module):
    def __init__(self, channel, reduction=4):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channel, channel // reduction, 1), nn.Conv2d(channel // reduction, channel, 1)

    def forward(self, x):
        w = F.avg_pool2d(x, x.size(2))
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(w))))


class SENet(nn.Module):
    def __init__(self, kind=SELayer):
        super().__init__()
        self.layer1, self.layer2, self.se, self.linear = block(3, 8), block(8, 8), kind(8), nn.Linear(8, 5)

    def forward(self, x):
        out = self.layer1(x)
        out = F.relu(out + self.se(self.layer2(out)))
        out = F.avg_pool2d(out, out.size(3))
        return self.linear(out.view(out.size(0), -1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc1, self.enc2, self.enc3 = block(3, 8), block(8, 8), block(8, 8)
        self.dec2, self.dec1, self.out, self.pool = block(16, 8), block(16, 8), nn.Conv2d(8, 2, 1), nn.MaxPool2d(2)

    def forward(self, x):
        a = self.enc1(x)
        b = self.enc2(self.pool(a))
        c = F.interpolate(b, size=a.shape[-2:])
        d = self.dec1(torch.cat([c, a], dim=1))
        e = F.interpolate(self.enc3(F.max_pool2d(d, d.size()[2:])), size=d.size()[2:], mode="nearest")
        return F.interpolate(self.out(self.dec2(torch.cat([d, e], dim=1))), size=x.shape[-2:], mode="bilinear")


class UNetOfPadding(UNet):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)

    def forward(self, x):
        a = self.enc2(self.pool(self.enc1(x)))
        b = self.up(self.enc3(self.pool(a)))
        dy = a.size()[2] - b.size()[2]
        dx = a.size()[3] - b.size()[3]
        b = F.pad(b, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.out(self.dec1(torch.cat([a, b], dim=1)))


class VGG(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.features = nn.Sequential(*block(3, 8), nn.MaxPool2d(2), *block(8, 8))
        self.fc1, self.fc2, self.head = nn.Linear(8, 6), nn.Linear(6, 5), head

    def forward(self, x):
        h = self.head(x, self.features(x))
        return self.fc2(F.relu(self.fc1(h)))


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, 1, 1)
        self.bn2, self.conv3, self.bn3 = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        out = self.conv1(x)
        out = torch.cat([out, self.conv2(F.relu(self.bn1(out)))], 1)
        out = F.avg_pool2d(self.conv3(F.relu(self.bn2(out))), 2)
        out = F.relu(self.bn3(out))
        out = F.avg_pool2d(out, out.shape[2])
        return self.linear(out.view(-1, out.shape[1] * out.shape[2] * out.shape[3]))


class Shuffled(nn.Module):
    """ShuffleNet's shuffle of channels."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.linear = block(3, 8), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(8 * 64, 5)

    def forward(self, x):
        x = self.conv1(x)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).contiguous().view(n, c, h, w)
        x = F.relu(self.conv2(x))
        x = x.view(n, 4, c // 4, h - 2, w - 2).permute(dims=(0, 2, 1, 3, 4)).reshape(n, c, h - 2, w - 2)
        return self.linear(x.view(n, c * (h - 2) * (w - 2)))


class SamePadding(nn.Module):
    """Pads as TensorFlow does, by sizes computed in forward."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, stride=2), nn.Linear(8, 5)

    @staticmethod
    def padded(x, conv):
        pads = []
        for size, kernel, stride in zip(x.size()[-2:], conv.weight.size()[-2:], conv.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads = [total // 2, total - total // 2, *pads]
        return conv(F.pad(x, pads))

    def forward(self, x):
        x = F.relu(self.padded(x, self.conv1))
        return self.fc(F.relu(self.padded(x, self.conv2)).mean((2, 3)))


HEADS = {
    "size": lambda x, h: F.avg_pool2d(h, h.size(3)).view(x.size(0), -1),
    "shape": lambda x, h: F.avg_pool2d(h, h.shape[-1]).reshape(x.shape[0], 8),
    "half": lambda x, h: F.avg_pool2d(F.avg_pool2d(h, h.shape[-1] // 2), 2).reshape(len(x), h.shape[1]),
    "max": lambda x, h: F.max_pool2d(h, kernel_size=h.size()[2:]).view(h.size(0), h.size(1)),
    "pad": lambda x, h: F.avg_pool2d(F.pad(h, [0, 8 - h.size(3), 0, 8 - h.shape[2]]), 8).flatten(1),
    "same": lambda x, h: h.view(h.shape).mean((2, 3)),
    "rows": lambda x, h: h.view(h.size(0), h.size(1), h.size(2) * h.size(3)).mean(2),
    "batch of all": lambda x, h: h.mean((2, 3)).view(h.numel() // (h.size(1) * h.size(2) * h.size(3)), -1),
}
NETWORKS = {
    "squeeze and excitation": SENet,
    "squeeze and excitation of convolutions": lambda: SENet(SELayerOfConvolutions),
    "U-Net": UNet,
    "U-Net of padding": UNetOfPadding,
    "DenseNet": DenseNet,
    "shuffled": Shuffled,
    "same padding": SamePadding,
    **{name: lambda head=head: VGG(head) for name, head in HEADS.items()},
}


def made(name):
    torch.manual_seed(0)
    ann = NETWORKS[name]()
    ann(IMAGES)  # batch norm
    return ann.eval()


def converted(ann, **settings):
    return convert(ann, 8, gates="analogue", **settings)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_sizes_are_numbers(name):
    """Calibration data are an example, and the batch size stays free."""
    ann = made(name)
    snn = converted(ann, calibrate=IMAGES)
    for n in (1, 2, 5):
        want = ann(IMAGES[:n])
        assert (snn(IMAGES[:n]) - want).norm() < 0.05 * want.norm()
    assert str(snn.report())
    again = copy.deepcopy(snn)
    again.check_twins()
    same(again(IMAGES), snn(IMAGES))
    assert all(node.users or node.op == "output" for node in snn.snn.graph.nodes)
    if name not in ("U-Net", "squeeze and excitation"):  # bilinear interpolation and expand_as are not frozen
        same(freeze(snn)(IMAGES), snn(IMAGES))


ALL_SIZES = {"rows", "batch of all"}
"""Networks that compute with sizes as rules for images of all sizes understand them."""


@pytest.mark.parametrize("name", NETWORKS)
def test_without_an_example_the_message_asks_for_it(name):
    """And whoever follows the advice gets a network that trains."""
    ann = made(name)
    if name in ALL_SIZES:
        assert converted(ann)(IMAGES).isfinite().all()
        return
    with pytest.raises(ValueError, match="pass example=, an input of ann"):
        converted(ann)
    snn = converted(ann, example=IMAGES[:1]).train()
    snn(IMAGES).sum().backward()
    gradients = [p.grad for p in ann.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)


@pytest.mark.parametrize("name", sorted({*NETWORKS} - ALL_SIZES))
def test_images_of_another_size_are_refused(name):
    snn = converted(made(name), example=IMAGES)
    wanted = (
        rf"input must be \[any, (any|3), {SIZE}, {SIZE}\], for which convert has traced the ANN, got \[2, 3, 12, 12\]"
    )
    with pytest.raises(ValueError, match=wanted):
        snn(torch.rand(2, 3, 12, 12))


@pytest.mark.parametrize(
    "head",
    [
        lambda x, h: h.mean((2, 3)).view(x.size(0), -1),
        lambda x, h: h.mean((2, 3)).view(len(x), -1),
        lambda x, h: F.adaptive_avg_pool2d(h, 1).reshape(x.shape[0], -1),
    ],
)
def test_networks_for_all_sizes_stay_so(head):
    """An example changes nothing about them."""
    for settings in ({}, {"example": IMAGES}, {"calibrate": IMAGES}):
        snn = convert(VGG(head).eval(), 8, **settings)
        assert snn(torch.rand(2, 3, 14, 12)).shape == (2, 5)


def test_the_samples_of_a_view_are_not_those_of_the_input():
    """Frames become samples before the first layer, so the input's batch size is not that of the spikes."""

    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(2 * 4 * 64, 5)

        def forward(self, x):
            h = F.relu(self.conv(x.flatten(0, 1)))
            return self.fc(h.view(x.size(0), -1))

    frames = torch.rand(4, 2, 3, SIZE, SIZE)
    for settings in ({}, {"example": frames}):
        with pytest.raises(ValueError, match="view in forward of Frames"):
            convert(Frames().eval(), 8, **settings)


@pytest.mark.parametrize(
    "head",
    [
        lambda x, h: h.mean((2, 3)) * x.size(0),
        lambda x, h: h.mean((2, 3)) * (x.size(0) // 4),  # the same for 2 and for 3 samples
        lambda x, h: h.mean((2, 3)) * (h.size(0) % 3),
    ],
)
def test_the_batch_size_is_no_number(head):
    with pytest.raises(ValueError, match=r"(mul|mod).*: use a number in place of a size that depends on the input"):
        convert(VGG(head).eval(), 8, example=IMAGES)


def test_a_view_of_a_constant_number_of_samples_is_refused():
    """It would mix them."""
    with pytest.raises(ValueError, match=r"view in forward of VGG"):
        convert(VGG(lambda x, h: h.mean((2, 3)).view(2, -1)[:, :8]).eval(), 8, example=IMAGES)


def test_numbers_take_the_place_of_sizes():
    ann = made("squeeze and excitation")
    trace = traced(ann, RULES, IMAGES[:1])
    fixed = trace.fix_sizes()
    targets = [node.target for node in fixed.graph.nodes]
    assert targets.count("size") == 2  # of the batch, for two views
    (pool,) = [node for node in trace.graph.nodes if node.target is F.avg_pool2d]
    assert pool.args[1] == SIZE
    assert all(node in fixed.sizes for node in fixed.graph.nodes if node.target is sized_as_traced)


def test_values_that_only_data_tell_are_no_sizes():

    def head(x, h):
        torch._assert(h.size(1) == 8, "eight channels")
        return F.avg_pool2d(h, h.size(3)).flatten(1)

    class Scaled(VGG):
        def forward(self, x):
            y = super().forward(x)
            return y * y.sum().item()

    ann = Scaled(head).eval()
    snn = convert(ann, 8, calibrate=IMAGES)
    want = ann(IMAGES)
    assert (snn(IMAGES) - want).norm() < 0.05 * want.norm()


def test_sizes_of_recorded_spikes():
    counts = torch.randint(0, 5, (3, 3, SIZE, SIZE), generator=generator(1)).float()
    snn = convert(VGG(HEADS["size"]).eval(), 4, mode="spikes", example=counts)
    train = SpikeTrain.from_dense((torch.rand(4, 3, 3, SIZE, SIZE) < 0.5).float())
    assert snn(train).shape == (3, 5)
    with pytest.raises(ValueError, match="input must be"):
        snn(SpikeTrain.from_dense(torch.zeros(4, 3, 3, 12, 12)))


def test_long_chains_of_functions():
    """The class of a value is found in one pass over the graph, not along every path."""

    class Chain(VGG):
        def forward(self, x):
            h = self.features(x)
            for _ in range(60):
                h = F.relu(h) + F.relu(h)
            return self.fc2(F.relu(self.fc1(h.mean((2, 3)))))

    graph = symbolic_trace(Chain(None))
    product = [node for node in graph.graph.nodes if node.target is operator.add][-1]
    assert class_of(product) is torch.Tensor


# -- what answering for sizes leaves behind


class Asking(nn.Module):
    """Reads a size behind its first layer, and keeps the number of samples."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(64, 5), None

    def forward(self, x):
        self.last = x.shape[0]
        y = F.relu(self.conv(x))
        _, _, h, w = y.shape
        return self.fc(F.adaptive_avg_pool2d(y, (h // 2, w // 2)).flatten(1))


@pytest.mark.parametrize("how", ["example", "calibrate"])
def test_a_layer_keeps_its_tensors_where_one_has_no_fake(how):
    ann, x = Asking(), torch.rand(12, 3, 8, 8)
    ann.fc.register_buffer("codes", torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8))
    before = [*ann.parameters()]
    snn = convert(ann, 8, **{how: x})
    assert all(a is b for a, b in zip(before, ann.parameters(), strict=True))
    assert type(snn(x)) is torch.Tensor


class Permuted(nn.Module):
    """A parametrization that reads values."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, weight):
        return weight[:, self.order.tolist()]


def test_a_parametrization_may_read_values_where_forward_asks_for_sizes():
    ann, x = Asking(), torch.rand(12, 3, 8, 8)
    parametrize.register_parametrization(ann.conv, "weight", Permuted())
    convert(ann, 8, calibrate=x)


def test_a_forward_that_notes_the_number_of_samples_is_not_traced_again():
    ann, x = Asking(), torch.rand(16, 3, 8, 8)
    convert(ann, 8, calibrate=x)(x)
    assert type(ann.last) is int


def test_lazy_layers():
    ann = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    convert(ann, 8, calibrate=torch.rand(12, 3, 8, 8))
