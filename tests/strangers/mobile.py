"""Small networks for phones, and the layers that they made popular."""

import math
from collections import OrderedDict

import torch
import torch.nn as nn
from torch.nn import functional as F

from .network import Network, pictures, pixels


class Fire(nn.Module):
    def __init__(self, channels: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, narrow, kernel_size=1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(narrow, wide, kernel_size=1)
        self.expand3x3 = nn.Conv2d(narrow, wide, kernel_size=3, padding=1)
        self.expand_activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        return self.expand_activation(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


class SqueezeNet(nn.Module):
    """SqueezeNet: ceil_mode pooling, a convolution as classifier, the last dimensions squeezed away."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        pool = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, kernel_size=3, stride=2), nn.ReLU(inplace=True), pool,
            Fire(16, 8, 16), Fire(32, 8, 16), pool,
            Fire(32, 12, 24), nn.Dropout(p=0.5),
        )  # fmt: skip
        self.final = nn.Conv2d(48, num_classes, kernel_size=1)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, std=0.2) if m is self.final else nn.init.kaiming_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.final(self.features(x)))
        return F.adaptive_avg_pool2d(x, (1, 1)).squeeze(-1).squeeze(-1)


class MobileNetV1(nn.Module):
    """MobileNet v1 with local functions for its two kinds of layer in the constructor."""

    def __init__(self):
        super(MobileNetV1, self).__init__()

        def full(inp, oup, k, s):
            return [nn.Conv2d(inp, oup, k, s, k // 2, bias=False), nn.BatchNorm2d(oup), nn.ReLU(inplace=True)]

        def separable(inp, oup, s):
            depthwise = nn.Conv2d(inp, inp, 3, s, 1, groups=inp, bias=False)
            return nn.Sequential(depthwise, nn.BatchNorm2d(inp), nn.ReLU(inplace=True), *full(inp, oup, 1, 1))

        self.model = nn.Sequential(
            nn.Sequential(*full(3, 8, 3, 2)),
            separable(8, 16, 1),
            separable(16, 24, 2),
            separable(24, 24, 1),
            separable(24, 32, 2),
            nn.AvgPool2d(4),
        )
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = self.model(x)
        x = x.view(-1, 32)
        x = self.fc(x)
        return x


def make_divisible(v, divisor=8):
    rounded = max(divisor, int(v + divisor / 2) // divisor * divisor)
    return rounded + divisor * (rounded < 0.9 * v)


class ConvBNReLU(nn.Sequential):
    def __init__(self, inp, oup, kernel_size=3, stride=1, groups=1, linear=False):
        conv = nn.Conv2d(inp, oup, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        layers = [conv, nn.BatchNorm2d(oup)]
        if not linear:
            layers.append(nn.ReLU6(inplace=True))
        super(ConvBNReLU, self).__init__(*layers)


class InvertedResidual(nn.Sequential):
    def __init__(self, inp, oup, stride, expand):
        hidden = inp * expand
        layers = [ConvBNReLU(inp, hidden, kernel_size=1)] if expand != 1 else []
        layers += [ConvBNReLU(hidden, hidden, stride=stride, groups=hidden), ConvBNReLU(hidden, oup, 1, linear=True)]
        super(InvertedResidual, self).__init__(*layers)
        self.residual = stride == 1 and inp == oup

    def forward(self, x):
        y = super().forward(x)
        return y.add_(x) if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNet v2: subclasses of Sequential, a table of settings, ReLU6, linear bottlenecks added in place."""

    def __init__(self, num_classes=10, width_mult=1.0):
        super(MobileNetV2, self).__init__()
        settings = [
            # t, c, n, s
            [1, 8, 1, 1],
            [3, 16, 2, 2],
            [3, 24, 1, 2],
        ]
        channels = make_divisible(8 * width_mult)
        features = [ConvBNReLU(3, channels, stride=2)]
        for t, c, n, s in settings:
            for i in range(n):
                features.append(InvertedResidual(channels, make_divisible(c * width_mult), s if i == 0 else 1, t))
                channels = make_divisible(c * width_mult)
        features.append(ConvBNReLU(channels, 48, kernel_size=1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(48, num_classes))

    def forward(self, x):
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, 1).reshape(x.shape[0], -1)
        return self.classifier(x)


class Hsigmoid(nn.Module):
    def forward(self, x):
        return F.relu6(x + 3.0, inplace=True) / 6.0


class SqueezeExcite(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, make_divisible(c / 4, 4), 1), nn.Conv2d(make_divisible(c / 4, 4), c, 1)
        self.gate = Hsigmoid()

    def forward(self, x):
        s = F.adaptive_avg_pool2d(x, 1)
        return self.gate(self.fc2(F.relu(self.fc1(s)))) * x


def bneck(inp, exp, oup, k, s, se, nl):
    act = nn.Hardswish if nl == "HS" else nn.ReLU
    return nn.Sequential(
        OrderedDict(
            expand=nn.Conv2d(inp, exp, 1, bias=False),
            bn1=nn.BatchNorm2d(exp),
            act1=act(inplace=True),
            dw=nn.Conv2d(exp, exp, k, s, k // 2, groups=exp, bias=False),
            bn2=nn.BatchNorm2d(exp),
            se=SqueezeExcite(exp) if se else nn.Identity(),
            act2=act(inplace=True),
            project=nn.Conv2d(exp, oup, 1, bias=False),
            bn3=nn.BatchNorm2d(oup),
        )
    )


class MobileNetV3(nn.Module):
    """MobileNet v3: Hardswish and a hand-written hard sigmoid, OrderedDict blocks, residuals where shapes agree."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.blocks = nn.ModuleList(
            [
                bneck(8, 16, 8, 3, 1, True, "RE"),
                bneck(8, 24, 16, 3, 2, False, "RE"),
                bneck(16, 32, 16, 5, 1, True, "HS"),
            ]
        )
        self.head = nn.Sequential(nn.Linear(16, 32), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(32, 10))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            y = block(x)
            x = x + y if y.shape == x.shape else y
        return self.head(x.mean(3).mean(2))


class Conv2dSame(nn.Conv2d):
    """Padding as TensorFlow has it, which may be uneven, computed from the size of the input in forward."""

    def forward(self, x):
        pads = []
        for size, k, s in zip(reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True):
            total = max((math.ceil(size / s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        if any(pads):
            x = F.pad(x, pads)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def drop_connect(x, rate, training):
    if not training or not rate:
        return x
    keep = 1.0 - rate
    mask = torch.floor(keep + torch.rand([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device))
    return x / keep * mask


class MBConv(nn.Module):
    def __init__(self, inp, oup, k, s, expand):
        super().__init__()
        mid = inp * expand
        self.id_skip = s == 1 and inp == oup
        if expand != 1:
            self._expand_conv, self._bn0 = Conv2dSame(inp, mid, 1, bias=False), self.norm(mid)
        self._depthwise_conv, self._bn1 = Conv2dSame(mid, mid, k, stride=s, groups=mid, bias=False), self.norm(mid)
        self._project_conv, self._bn2 = Conv2dSame(mid, oup, 1, bias=False), self.norm(oup)

    def norm(self, c):
        return nn.BatchNorm2d(num_features=c, momentum=0.01, eps=1e-3)

    def forward(self, inputs, rate=None):
        x = inputs
        if "_expand_conv" in self._modules:
            x = F.relu6(self._bn0(self._expand_conv(inputs)))
        x = F.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return drop_connect(x, rate, self.training) + inputs if self.id_skip else x


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite in the manner of its early ports: same padding, a drop_connect function, rates by index."""

    def __init__(self):
        super().__init__()
        self._conv_stem = Conv2dSame(3, 8, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(8, momentum=0.01, eps=1e-3)
        self._blocks = nn.ModuleList([MBConv(8, 8, 3, 1, 1), MBConv(8, 16, 5, 2, 4), MBConv(16, 16, 3, 1, 4)])
        self._conv_head = Conv2dSame(16, 40, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(40, momentum=0.01, eps=1e-3)
        self._dropout = nn.Dropout(0.2)
        self._fc = nn.Linear(40, 10)

    def extract_features(self, inputs):
        x = F.relu6(self._bn0(self._conv_stem(inputs)))
        for idx, block in enumerate(self._blocks):
            x = block(x, rate=0.2 * float(idx) / len(self._blocks))
        return F.relu6(self._bn1(self._conv_head(x)))

    def forward(self, inputs):
        x = F.adaptive_avg_pool2d(self.extract_features(inputs), 1)
        return self._fc(self._dropout(x.flatten(start_dim=1)))


def shuffle(x, groups):
    n, c, h, w = x.data.size()
    x = x.view(n, groups, c // groups, h, w)
    return torch.transpose(x, 1, 2).contiguous().view(n, -1, h, w)


class ShuffleUnit(nn.Module):
    def __init__(self, inp, oup, stride):
        super().__init__()
        self.stride, c, i = stride, oup // 2, inp if stride > 1 else inp // 2
        if stride > 1:
            self.left = nn.Sequential(
                nn.Conv2d(i, i, 3, stride, 1, bias=False, groups=i), nn.BatchNorm2d(i),
                nn.Conv2d(i, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(inplace=True),
            )  # fmt: skip
        self.right = nn.Sequential(
            nn.Conv2d(i, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(inplace=True),
            nn.Conv2d(c, c, 3, stride, 1, bias=False, groups=c), nn.BatchNorm2d(c),
            nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x):
        if self.stride == 1:
            left, right = x.chunk(2, dim=1)
            return shuffle(torch.cat((left, self.right(right)), dim=1), 2)
        return shuffle(torch.cat((self.left(x), self.right(x)), dim=1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNet v2: channels chunked, joined, and shuffled by view and transpose; stages set by setattr."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        for name, inp, oup in [("stage2", 12, 24), ("stage3", 24, 32)]:
            setattr(self, name, nn.Sequential(ShuffleUnit(inp, oup, 2), ShuffleUnit(oup, oup, 1)))
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stage3(self.stage2(self.conv1(x)))
        return self.fc(x.mean([2, 3]))


class GhostModule(nn.Module):
    def __init__(self, inp, oup, kernel=1, ratio=2, stride=1, relu=True):
        super().__init__()
        own = math.ceil(oup / ratio)
        self.oup = oup
        self.primary = self.block(inp, own, kernel, stride, 1, relu)
        self.cheap = self.block(own, own * (ratio - 1), 3, 1, own, relu)

    def block(self, inp, oup, k, s, g, relu):
        conv = nn.Conv2d(inp, oup, k, s, k // 2, groups=g, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(oup), nn.ReLU(inplace=True) if relu else nn.Sequential())

    def forward(self, x):
        own = self.primary(x)
        ghosts = self.cheap(own)
        return torch.cat([own, ghosts], dim=1)[:, : self.oup, :, :]


class GhostNet(nn.Module):
    """GhostNet: half of the maps made by cheap depthwise operations, an odd surplus sliced off."""

    def __init__(self):
        super().__init__()
        self.stem = GhostModule(3, 15, 3, stride=2)
        self.ghost1, self.ghost2 = GhostModule(15, 27), GhostModule(27, 15, relu=False)
        self.down = nn.Conv2d(15, 15, 3, 2, 1, groups=15)
        self.head = nn.Conv2d(15, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.ghost2(self.ghost1(x))
        x = F.relu(self.head(self.down(x)))
        return self.fc(F.avg_pool2d(x, x.shape[2:]).squeeze(3).squeeze(2))


class RepBlock(nn.Module):
    def __init__(self, cin, cout, stride=1, deploy=False):
        super().__init__()
        self.act = nn.ReLU()
        if deploy:
            self.reparam = nn.Conv2d(cin, cout, 3, stride, 1)
            return
        self.identity = nn.BatchNorm2d(cin) if cin == cout and stride == 1 else None
        self.dense, self.point = nn.Sequential(), nn.Sequential()
        for branch, k in ((self.dense, 3), (self.point, 1)):
            branch.add_module("conv", nn.Conv2d(cin, cout, k, stride, k // 2, bias=False))
            branch.add_module("bn", nn.BatchNorm2d(num_features=cout))

    def forward(self, x):
        if hasattr(self, "reparam"):
            return self.act(self.reparam(x))
        identity = 0 if self.identity is None else self.identity(x)
        return self.act(self.dense(x) + self.point(x) + identity)


class Normalised(nn.Module):
    """A wrapper that takes pixels and normalises them by buffers, as deployment code has it."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images):
        return self.model((images - self.mean) / self.std)


def repvgg():
    """RepVGG as it is trained, three branches a block, in a wrapper that normalises pixels."""
    blocks = [RepBlock(3, 12, 2), RepBlock(12, 12), RepBlock(12, 24, 2), RepBlock(24, 24)]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(output_size=1), nn.Flatten(), nn.Linear(24, 10))
    return Normalised(net, [0.491, 0.482, 0.447], [0.247, 0.243, 0.262])


NETWORKS: dict[str, Network] = {
    "squeezenet": Network(SqueezeNet, pictures(3, 32, 32)),
    "mobilenet_v1": Network(MobileNetV1, pictures(3, 32, 32)),
    "mobilenet_v2": Network(MobileNetV2, pictures(3, 32, 32)),
    "mobilenet_v3": Network(MobileNetV3, pictures(3, 32, 32)),
    "efficientnet_lite": Network(EfficientNetLite, pictures(3, 32, 32)),
    "shufflenet_v2": Network(ShuffleNetV2, pictures(3, 32, 32)),
    "ghostnet": Network(GhostNet, pictures(3, 32, 32)),
    "repvgg": Network(repvgg, pixels(3, 32, 32)),
}
