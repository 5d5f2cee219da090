"""Sizes that forward computes with: networks as students write them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exact import generator, same
from tandem_cuda import SpikeTrain, convert, freeze

pytestmark = pytest.mark.filterwarnings("ignore:convert.* computed on real values")

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


class SENet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2, self.se, self.linear = block(3, 8), block(8, 8), SELayer(8), nn.Linear(8, 5)

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
    "half": lambda x, h: F.avg_pool2d(F.avg_pool2d(h, h.shape[-1] // 2), 2).reshape(x.size(0), h.shape[1]),
    "rows": lambda x, h: h.view(h.size(0), h.size(1), h.size(2) * h.size(3)).mean(2),
    "batch of all": lambda x, h: h.mean((2, 3)).view(h.numel() // (h.size(1) * h.size(2) * h.size(3)), -1),
}
NETWORKS = {
    "squeeze and excitation": SENet,
    "U-Net of padding": UNetOfPadding,
    "DenseNet": DenseNet,
    "shuffled": Shuffled,
    "same padding": SamePadding,
    **{name: lambda head=head: VGG(head) for name, head in HEADS.items()},
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_sizes_are_numbers(name):
    """Calibration data are an example. The batch is free, other sizes are refused."""
    torch.manual_seed(0)
    ann = NETWORKS[name]()
    ann(IMAGES)  # batch norm
    snn = convert(ann.eval(), 8, calibrate=IMAGES)
    for n in (1, 2, 5):
        want = ann(IMAGES[:n])
        assert (snn(IMAGES[:n]) - want).norm() < 0.05 * want.norm()
    assert bool(snn.report().analogue) == (name == "squeeze and excitation")
    with pytest.raises(ValueError, match=REFUSAL):
        snn(torch.rand(2, 3, 12, 12))
    if name != "squeeze and excitation":
        same(freeze(snn)(IMAGES), snn(IMAGES))


REFUSAL = r"x must be \[N, 3, 10, 10\], the sizes of the example that convert was given, got \[2, 3, 12, 12\]"


def test_a_forward_that_depends_on_the_batch_size():
    """It is right for every number of samples, or it is refused."""
    torch.manual_seed(0)
    ann = VGG(lambda x, h: h.mean((2, 3)) * (x.size(0) // 4 + 1)).eval()
    snn = convert(ann, 8, calibrate=IMAGES)
    for n in (2, 4, 8):
        want = ann(IMAGES[:n])
        assert (snn(IMAGES[:n]) - want).norm() < 0.05 * want.norm(), n
    for head in (
        lambda x, h: h.mean((2, 3)) if len(x) != 3 else h.amax((2, 3)),
        lambda x, h: h.mean((2, 3)) if x.size(0) > 2 else h.amax((2, 3)),
        lambda x, h: h.mean((2, 3)).view(3, -1)[:, :8],
    ):
        with pytest.raises(ValueError, match="must take any number of samples, but it fixes the batch size of x"):
            convert(VGG(head).eval(), 8, calibrate=IMAGES)


def test_sizes_of_recorded_spikes():
    counts = torch.randint(0, 5, (3, 3, SIZE, SIZE), generator=generator(1)).float()
    snn = convert(VGG(HEADS["size"]).eval(), 4, mode="spikes", example=counts)
    train = SpikeTrain.from_dense((torch.rand(4, 3, 3, SIZE, SIZE) < 0.5).float())
    assert snn(train).shape == (3, 5)
    with pytest.raises(ValueError, match="x must be"):
        snn(SpikeTrain.from_dense(torch.zeros(4, 3, 3, 12, 12)))


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


def test_a_forward_that_notes_the_number_of_samples():
    ann, x = Asking(), torch.rand(16, 3, 8, 8)
    parameters = [*ann.parameters()]
    snn = convert(ann, 8, calibrate=x)
    assert snn(x).shape == (16, 5)
    assert all(a is b for a, b in zip(parameters, ann.parameters(), strict=True))


def test_lazy_layers():
    ann = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    convert(ann, 8, calibrate=torch.rand(12, 3, 8, 8))
