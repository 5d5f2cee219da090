"""Residual networks and their relatives."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .network import Network, pictures, pixels


class LambdaLayer(nn.Module):
    def __init__(self, fn):
        super(LambdaLayer, self).__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


def conv3x3(cin, cout, stride=1):
    return nn.Conv2d(cin, cout, kernel_size=3, stride=stride, padding=1, bias=False)


class BlockA(nn.Module):
    def __init__(self, cin, cout, stride=1):
        super(BlockA, self).__init__()
        self.conv1, self.bn1 = conv3x3(cin, cout, stride), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = conv3x3(cout, cout), nn.BatchNorm2d(cout)
        self.shortcut = nn.Sequential()
        if stride != 1 or cin != cout:
            more = (cout - cin) // 2
            self.shortcut = LambdaLayer(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more), "constant", 0))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """The CIFAR ResNets of He et al. with option A: a lambda slices by stride and pads the channels."""

    def __init__(self, depth=8, num_classes=10):
        super(CifarResNet, self).__init__()
        assert (depth - 2) % 6 == 0, "depth should be 6n+2"
        n = (depth - 2) // 6
        self.width = 8
        self.conv1 = conv3x3(3, 8)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = self.make_layer(8, n, 1)
        self.layer2 = self.make_layer(16, n, 2)
        self.layer3 = self.make_layer(32, n, 2)
        self.fc = nn.Linear(32, num_classes)

    def make_layer(self, planes, blocks, stride):
        layers = []
        for i in range(blocks):
            layers.append(BlockA(self.width, planes, stride if i == 0 else 1))
            self.width = planes
        return nn.Sequential(*layers)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3):
            out = layer(out)
        out = F.avg_pool2d(out, out.size()[3])
        return self.fc(out.view(out.size(0), -1))


class PreAct(nn.Module):
    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(cin), nn.BatchNorm2d(cout)
        self.conv1, self.conv2 = conv3x3(cin, cout, stride), conv3x3(cout, cout)
        if stride > 1 or cin != cout:
            self.projection = nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x):
        pre = F.relu(self.norm1(x))
        if hasattr(self, "projection"):
            x = self.projection(pre)
        return x + self.conv2(F.relu(self.norm2(self.conv1(pre))))


class PreActResNet(nn.Module):
    """Pre-activation blocks that ask hasattr(self, ...), looped over by index."""

    def __init__(self):
        super().__init__()
        self.conv1 = conv3x3(3, 12)
        self.blocks = nn.ModuleList([PreAct(12, 12), PreAct(12, 24, 2), PreAct(24, 24)])
        self.bn = nn.BatchNorm2d(24)
        self.linear = nn.Linear(24 * 4, 10)

    def forward(self, x):
        out = self.conv1(x)
        for i in range(len(self.blocks)):
            out = self.blocks[i](out)
        out = F.avg_pool2d(F.relu(self.bn(out)), 8)
        return self.linear(out.reshape(out.shape[0], -1))


class Wide(nn.Module):
    def __init__(self, cin, cout, stride, drop_rate=0.0):
        super().__init__()
        self.same = cin == cout and stride == 1
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = conv3x3(cin, cout, stride)
        self.bn2 = nn.BatchNorm2d(cout)
        self.conv2 = conv3x3(cout, cout)
        self.drop_rate = drop_rate
        self.conv_shortcut = (not self.same and nn.Conv2d(cin, cout, 1, stride=stride, bias=False)) or None

    def forward(self, x):
        y = self.act(self.bn1(x))
        skip = x if self.same else self.conv_shortcut(y)
        y = self.act(self.bn2(self.conv1(y)))
        if self.drop_rate > 0:
            y = F.dropout(y, p=self.drop_rate, training=self.training)
        return torch.add(skip, self.conv2(y))


class WideResNet(nn.Module):
    """Semi-supervised learning code: one leaky ReLU for all, (condition and layer) or None, bias.data.zero_()."""

    def __init__(self, widen=2):
        super().__init__()
        n = [8, 8 * widen, 16 * widen]
        self.conv1 = conv3x3(3, n[0])
        self.block1 = nn.Sequential(Wide(n[0], n[1], 2, 0.3), Wide(n[1], n[1], 1, 0.3))
        self.block2 = nn.Sequential(Wide(n[1], n[2], 2, 0.3))
        self.bn1 = nn.BatchNorm2d(n[2])
        self.fc = nn.Linear(n[2], 10)
        self.fc.bias.data.zero_()
        self.channels = n[2]

    def forward(self, x):
        out = self.block2(self.block1(self.conv1(x)))
        out = F.leaky_relu(self.bn1(out), 0.1)
        out = F.adaptive_avg_pool2d(out, 1)
        out = out.view(-1, self.channels)
        return self.fc(out)


class DenseLayer(nn.Sequential):
    def __init__(self, channels, growth, drop_rate=0.1):
        super().__init__()
        for i, (cin, cout, k) in enumerate([(channels, 2 * growth, 1), (2 * growth, growth, 3)], start=1):
            self.add_module(f"norm{i}", nn.BatchNorm2d(cin))
            self.add_module(f"relu{i}", nn.ReLU(inplace=True))
            self.add_module(f"conv{i}", nn.Conv2d(cin, cout, k, padding=k // 2, bias=False))
        self.drop_rate = drop_rate

    def forward(self, features):
        if isinstance(features, Tensor):
            features = [features]
        new = super().forward(torch.cat(features, 1))
        return F.dropout(new, self.drop_rate, self.training) if self.drop_rate else new


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers, channels, growth):
        super().__init__()
        for i in range(layers):
            self["layer%d" % i] = DenseLayer(channels + i * growth, growth)

    def forward(self, x):
        features = [x]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """DenseNet in the early manner: add_module, a ModuleDict with a forward, isinstance of a tensor, growing lists."""

    def __init__(self, growth=6):
        super().__init__()
        net = nn.Sequential()
        net.add_module("conv0", nn.Conv2d(3, 12, kernel_size=3, stride=2, padding=1, bias=False))
        net.add_module("block1", DenseBlock(3, 12, growth))
        net.add_module("norm1", nn.BatchNorm2d(30))
        net.add_module("relu1", nn.ReLU(inplace=True))
        net.add_module("reduce", nn.Conv2d(30, 15, kernel_size=1, bias=False))
        net.add_module("pool", nn.AvgPool2d(2))
        net.add_module("block2", DenseBlock(2, 15, growth))
        net.add_module("norm2", nn.BatchNorm2d(27))
        self.features = net
        self.classifier = nn.Linear(27, 10)

    def forward(self, x):
        out = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, (1, 1)), 1))


class SE(nn.Module):
    def __init__(self, channel, r=4):
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.excite = nn.Sequential(
            nn.Linear(channel, channel // r, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channel // r, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.excite(self.squeeze(x).view(b, c))
        return x * y.view(b, c, 1, 1).expand_as(x)


class SEBottleneck(nn.Module):
    def __init__(self, inplanes: int, width: int, stride: int = 1, groups: int = 4):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inplanes, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width * 2, 1, bias=False),
            nn.BatchNorm2d(width * 2),
            SE(width * 2),
        )
        self.downsample = None
        if stride != 1 or inplanes != width * 2:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity(),
                nn.Conv2d(inplanes, width * 2, 1, bias=False),
                nn.BatchNorm2d(width * 2),
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return torch.relu_(self.body(x) + identity)


class SEResNeXt(nn.Module):
    """Squeeze and excitation in grouped bottlenecks, with the average-pooled shortcut of ResNet-D."""

    def __init__(self, classes: int = 10):
        super().__init__()
        stem = [nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        self.stem = nn.Sequential(*stem)
        self.stages = nn.Sequential(SEBottleneck(16, 16), SEBottleneck(32, 24, stride=2), SEBottleneck(48, 24))
        self.head = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean([-2, -1]))


class WSConv2d(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def standardised(self):
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        fan_in = self.weight[0].numel()
        return (self.weight - mean) * torch.rsqrt((var * fan_in).clamp(min=1e-4)) * self.gain

    def forward(self, x):
        return F.conv2d(x, self.standardised(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class NFBlock(nn.Module):
    def __init__(self, ch, alpha, beta):
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.conv1 = WSConv2d(ch, ch, 3, padding=1)
        self.conv2 = WSConv2d(ch, ch, 3, padding=1, groups=2)
        self.skip_gain = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        out = F.relu(x) * 1.7139588594436646 * self.beta
        out = self.conv1(out)
        out = self.conv2(F.relu(out) * 1.7139588594436646)
        return out * self.skip_gain * self.alpha + x


class NFResNet(nn.Module):
    """Normaliser-free networks: standardised weights, activations scaled by constants, a scalar on each branch."""

    def __init__(self, alpha=0.2, blocks=3):
        super().__init__()
        self.stem = WSConv2d(3, 16, 4, stride=4)
        expected_var, body = 1.0, []
        for _ in range(blocks):
            body.append(NFBlock(16, alpha, 1.0 / math.sqrt(expected_var)))
            expected_var += alpha**2
        self.body = nn.Sequential(*body)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.body(self.stem(x)))
        return self.fc(x.mean(dim=(2, 3)))


class DroppedBlock(nn.Module):
    """A residual branch that training drops: for the whole batch, for samples, or by mixing two branches."""

    def __init__(self, c, survival, how):
        super().__init__()
        self.survival, self.how = survival, how
        self.one = self.branch(c)
        self.two = self.branch(c) if how == "shake" else None

    @staticmethod
    def branch(c):
        return nn.Sequential(conv3x3(c, c), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 3, 1, 1))

    def forward(self, x):
        if self.how == "batch":
            if not self.training:
                return F.relu(x + self.survival * self.one(x))
            return F.relu(x + self.one(x)) if torch.rand(1).item() < self.survival else x
        if self.how == "shake":
            a, b = self.one(x), self.two(x)
            if self.training:
                alpha = torch.rand(x.size(0), 1, 1, 1, device=x.device)
                return F.relu(x + alpha * a + (1 - alpha) * b)
            return F.relu(x + (a + b) / 2)
        out = self.one(x)
        if self.training:
            keep = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(self.survival)
            out = out.div(self.survival) * keep
        return F.relu(x + out)


class StochasticDepth(nn.Module):
    """Stochastic depth written in three ways in one network, with a survival rate that falls linearly."""

    def __init__(self, kinds=("batch", "samples", "shake"), p_last=0.5):
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, stride=2, padding=1)
        rates = torch.linspace(1, p_last, len(kinds) + 1).tolist()[1:]
        self.blocks = nn.ModuleList(DroppedBlock(12, rate, kind) for rate, kind in zip(rates, kinds, strict=True))
        self.fc = nn.Linear(12 * 7 * 7, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        for block in self.blocks:
            x = block(x)
        return self.fc(F.max_pool2d(x, 2).flatten(1))


NETWORKS: dict[str, Network] = {
    "cifar_resnet": Network(CifarResNet, pictures(3, 32, 32)),
    "preact_resnet": Network(PreActResNet, pictures(3, 32, 32)),
    "wide_resnet": Network(WideResNet, pictures(3, 32, 32)),
    "densenet": Network(DenseNet, pixels(3, 32, 32)),
    "se_resnext": Network(SEResNeXt, pictures(3, 32, 32)),
    "nf_resnet": Network(NFResNet, pictures(3, 32, 32)),
    "stochastic_depth": Network(StochasticDepth, pixels(1, 28, 28)),
}
