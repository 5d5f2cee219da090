"""What lies between weight layers: every rule beside weights and ReLU, alone in a small network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anns import Net, kinds, per_layer
from pairwise import each, pairs
from tandem_cuda import IF, FrozenNetwork, SpikeTrain, convert, freeze, quantise, synops, unquantise
from tandem_cuda.nn import SpikeCat, SpikeRearrange, SpikingGlobalMaxPool2d, TandemElementwise, TandemGate


def conv(inputs, outputs, kernel=3, **settings):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **settings)


def between(middle, channels, **modules):
    """A network of images of 8 x 12 with something between its first layer and its last ones."""

    def run(net, x):
        x = F.relu(net.last(middle(net, F.relu(net.norm(net.first(x))))))
        return net.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    ends = {"first": conv(3, 8), "norm": nn.BatchNorm2d(8), "last": conv(channels, 8), "fc": nn.Linear(8, 5)}
    return Net(run, **ends, **modules)


def shuffled(x, groups):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


def half_shuffled(net, x):
    one, other = x.chunk(2, dim=1)
    return shuffled(torch.cat([one, F.relu(net.a(other))], 1), 2)


def in_parts(net, x):
    one, other = torch.split(x, [3, 5], 1)
    return torch.cat((F.relu(net.a(other)), one), dim=1)


def residual(net, x):
    x = net.a(x)
    return x + net.c(F.relu(net.b(x)))


def pre_activated(net, x):
    x = net.first(x)
    x = x + net.a(F.relu(net.norm_a(F.relu(net.b(F.relu(net.norm_b(x)))))))
    return net.fc(F.relu(net.norm(x)).mean((2, 3)))


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        nn.init.constant_(self.reduce.bias, 0.5)

    def forward(self, x):
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


def flat(middle, features, channels=8, **modules):
    """With a linear layer behind something flat."""

    def run(net, x):
        return net.fc(F.relu(net.linear(middle(net, F.relu(net.first(x))))))

    return Net(run, first=conv(3, channels), linear=nn.Linear(features, 8), fc=nn.Linear(8, 5), **modules)


def line(pool, features):
    """Of lines [N, 3, 16]."""

    def run(net, x):
        return net.fc(F.relu(net.second(net.pool(F.relu(net.first(x))))).flatten(1))

    first, second = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 6, 3, padding=1)
    return Net(run, first=first, pool=pool, second=second, fc=nn.Linear(features, 5))


class Blur(nn.Module):
    """A binomial filter with stride 2."""

    def __init__(self, channels):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filter", (row[:, None] * row / 16).repeat(channels, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.filter, stride=2, padding=1, groups=8)


def grown(net, x):
    """As in DenseNet, where each layer reads the features of all layers before it."""
    one = net.act(net.a(x))
    other = net.act(net.b(torch.cat([x, one], 1)))
    return torch.cat([x, one, other, x, torch.cat([x, one, other], 1)], 1)


class Filter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("filter", torch.tensor([[[1.0, 2.0, -1.0]]]) / 4)

    def forward(self, x):
        return F.conv1d(x, self.filter.expand(8, 1, 3), groups=8)


class Constants(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.linspace(-0.2, 0.3, channels).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.linspace(0.5, 2, channels).view(-1, 1, 1))
        self.register_buffer("matrix", torch.linspace(-1, 1, channels * 5).view(channels, 5).sin())
        self.register_buffer("edges", torch.tensor([[[[-1.0, 0, 1]]]]))
        self.register_buffer("bias", torch.linspace(-0.1, 0.1, 5))


class Largest(nn.Module):
    def forward(self, x):
        largest, _ = torch.max(x, 2, keepdim=True)
        return largest


class Parts(nn.Module):
    def forward(self, x):
        return F.pad(x[:, 2:6, 2:-1], (1, 0))[:, :, ::2].repeat(1, 2, 1)


class Slopes(nn.PReLU):
    """PReLU with a slope for each channel."""

    def __init__(self, channels):
        super().__init__(channels)
        self.weight.data = torch.linspace(0, 1.25, channels).roll(1)


NETS = {
    "cat": lambda: between(
        lambda n, x: torch.cat([x, F.relu(n.a(x)), F.relu(n.b(x))], 1), 18, a=conv(8, 6, 1), b=conv(8, 4)
    ),
    "cat of values": lambda: between(
        lambda n, x: F.relu(n.bn(torch.cat([x, n.a(x)], 1))), 14, a=conv(8, 6, 1), bn=nn.BatchNorm2d(14)
    ),
    "grown cats": lambda: between(grown, 44, a=conv(8, 4), b=conv(12, 6), act=nn.ReLU()),
    "grown cats of values": lambda: between(grown, 44, a=conv(8, 4), b=conv(12, 6), act=nn.PReLU()),
    "cat of channels that were repeated": lambda: between(
        lambda n, x: torch.cat([x.repeat_interleave(2, 1), torch.cat([x, x, n.act(n.a(x))], 1)], 1), 36, a=conv(8, 4),
        act=nn.ReLU(),
    ),
    "flat cat": lambda: flat(lambda n, x: torch.cat([x, F.relu(n.a(x))], 1).flatten(1), 12 * 96, a=conv(8, 4)),
    "cat before the read-out": lambda: Net(
        lambda n, x: n.fc((lambda y: torch.cat([y, F.relu(n.a(y))], 1))(F.relu(n.first(x))).flatten(1)),
        first=conv(3, 4), a=conv(4, 3), fc=nn.Linear(7 * 96, 5),
    ),
    "no ReLU": lambda: between(
        lambda n, x: n.norm_b(n.b(F.relu(n.a(x)))), 6, a=conv(8, 12, 1), b=conv(12, 6, 1), norm_b=nn.BatchNorm2d(6)
    ),
    "residual without ReLU": lambda: between(residual, 6, a=conv(8, 6, 1), b=conv(6, 10), c=conv(10, 6)),
    "flat without ReLU": lambda: flat(lambda n, x: n.a(x).flatten(1), 4 * 96, a=conv(8, 4)),
    "depthwise without ReLU": lambda: between(
        lambda n, x: F.relu(n.b(n.bn(n.a(x)))), 8, a=conv(8, 8, groups=8), bn=nn.BatchNorm2d(8), b=conv(8, 8, 1)
    ),
    "grouped behind values": lambda: between(
        lambda n, x: F.relu(n.b(n.a(x))), 6, a=conv(8, 8, 1), b=conv(8, 6, groups=2)
    ),
    "transposed behind values": lambda: between(
        lambda n, x: F.relu(n.b(n.a(x))), 6, a=conv(8, 4, 1), b=nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
    ),
    "average of values": lambda: between(lambda n, x: F.avg_pool2d(n.a(x), 2), 8, a=conv(8, 8)),
    "average of values, padded": lambda: between(
        lambda n, x: F.pad(F.avg_pool2d(n.a(x), 2), (1, 0, 0, 1)), 8, a=conv(8, 8)
    ),
    "sum with itself": lambda: between(
        lambda n, x: (lambda y: F.relu(n.bn(y + y)))(n.a(x)), 6, a=conv(8, 6), bn=nn.BatchNorm2d(6)
    ),
    "ReLU6": lambda: between(lambda n, x: n.relu(n.a(x) * 9), 6, a=conv(8, 6), relu=nn.ReLU6()),
    "relu6": lambda: between(lambda n, x: F.relu6(n.a(x)), 6, a=conv(8, 6)),
    "Hardtanh": lambda: between(lambda n, x: n.relu(n.a(x)), 6, a=conv(8, 6), relu=nn.Hardtanh(0, 0.3)),
    "Hardtanh of both signs": lambda: between(
        lambda n, x: n.act(n.bn(n.a(x))), 6, a=conv(8, 6), bn=nn.BatchNorm2d(6), act=nn.Hardtanh(-0.5, 0.5)
    ),
    "Hardsigmoid": lambda: between(lambda n, x: F.hardsigmoid(n.a(x) * 8), 6, a=conv(8, 6)),
    "LeakyReLU": lambda: between(
        lambda n, x: n.act(n.bn(n.a(x))), 6, a=conv(8, 6), bn=nn.BatchNorm2d(6), act=nn.LeakyReLU(0.25)
    ),
    "LeakyReLU of a steep sum": lambda: between(lambda n, x: F.leaky_relu(n.a(x) + x, 1.5), 8, a=conv(8, 8)),
    "LeakyReLU behind pooling": lambda: between(
        lambda n, x: F.leaky_relu(F.avg_pool2d(n.a(x), 2), 0.25, inplace=True), 8, a=conv(8, 8)
    ),
    "PReLU": lambda: between(lambda n, x: n.act(n.bn(n.a(x))), 6, a=conv(8, 6), bn=nn.BatchNorm2d(6), act=Slopes(6)),
    "PReLU of a sum": lambda: between(
        lambda n, x: n.act(n.a(x) - n.b(x)), 6, a=conv(8, 6), b=conv(8, 6), act=Slopes(6)
    ),
    "PReLU behind pooling": lambda: between(
        lambda n, x: n.act(F.avg_pool2d(n.a(x), 2)), 8, a=conv(8, 8), act=Slopes(8)
    ),
    "PReLU twice": lambda: between(
        lambda n, x: torch.cat([n.act(n.a(x)), n.act(n.b(x))], 1), 7, a=conv(8, 4), b=conv(8, 3), act=nn.PReLU()
    ),
    "PReLU of features": lambda: flat(lambda n, x: n.act(n.a(x.flatten(1))), 6, a=nn.Linear(768, 6), act=Slopes(6)),
    "prelu": lambda: flat(
        lambda n, x: F.prelu(n.a(x), weight=n.slope).flatten(1), 4 * 96, a=conv(8, 4), slope=Slopes(4).weight
    ),
    "clamp": lambda: between(lambda n, x: torch.clamp(n.a(x), 0, 0.3), 6, a=conv(8, 6)),
    "clamp below": lambda: between(lambda n, x: n.a(x).clamp(min=0), 6, a=conv(8, 6)),
    "norm before weights": lambda: between(lambda n, x: n.bn(x), 8, bn=nn.BatchNorm2d(8)),
    "norm before ReLU": lambda: between(lambda n, x: F.relu(n.bn(x)), 8, bn=nn.BatchNorm2d(8)),
    "norm without map": lambda: between(
        lambda n, x: F.relu(n.bn(n.a(x))), 8, a=conv(8, 8), bn=nn.BatchNorm2d(8, affine=False)
    ),
    "norm of features": lambda: flat(lambda n, x: n.bn(x.flatten(1)), 4 * 96, 4, bn=nn.BatchNorm1d(4 * 96)),
    "factor": lambda: between(lambda n, x: F.relu(0.5 * n.a(x) + x - 0.1), 8, a=conv(8, 8)),
    "difference": lambda: between(lambda n, x: F.relu(x - n.a(x)), 8, a=conv(8, 8)),
    "one minus": lambda: between(lambda n, x: F.relu(1 - x / 2), 8),
    "pad": lambda: between(lambda n, x: F.relu(n.a(F.pad(x, (1, 0, 0, 2)))), 6, a=conv(8, 6)),
    "crop": lambda: between(lambda n, x: F.relu(n.a(F.pad(x, (-1, 0, 0, -2)))), 6, a=conv(8, 6)),
    "ZeroPad2d": lambda: between(
        lambda n, x: F.relu(n.a(n.pad(x))), 6, a=conv(8, 6), pad=nn.ZeroPad2d((0, 1, 2, 1))
    ),
    "Upsample": lambda: between(lambda n, x: n.up(F.max_pool2d(x, 2)), 8, up=nn.Upsample(scale_factor=(2, 3))),
    "interpolate": lambda: between(lambda n, x: F.interpolate(n.a(x), scale_factor=2), 8, a=conv(8, 8)),
    "interpolate to a size": lambda: between(lambda n, x: F.interpolate(n.a(x), (5, 9)), 8, a=conv(8, 8)),
    "bilinear": lambda: between(lambda n, x: F.relu(n.a(n.up(x))), 6, a=conv(8, 6),
        up=nn.Upsample(scale_factor=2, mode="bilinear")),
    "bilinear of corners": lambda: between(lambda n, x: F.relu(n.bn(n.up(F.avg_pool2d(x, 2)))) + x, 8,
        bn=nn.BatchNorm2d(8), up=nn.UpsamplingBilinear2d(scale_factor=2)),
    "bilinear of values": lambda: between(
        lambda n, x: torch.cat([F.interpolate(n.a(x), size=(16, 24), mode="bilinear"), n.b(x)], 1), 14,
        a=conv(8, 8), b=nn.ConvTranspose2d(8, 6, 2, stride=2),
    ),
    "bilinear sum": lambda: between(
        lambda n, x: F.relu(F.interpolate(n.a(F.max_pool2d(x, 2)), scale_factor=2, mode="bilinear") + n.b(x)), 6,
        a=conv(8, 6), b=conv(8, 6),
    ),
    "bilinear before the read-out": lambda: Net(
        lambda n, x: n.last(
            F.interpolate(F.relu(n.a(F.relu(n.first(x)))), size=(5, 5), mode="bilinear", align_corners=True)
        ).mean((2, 3)), first=conv(3, 8), a=conv(8, 6), last=conv(6, 5),
    ),
    "bicubic": lambda: between(lambda n, x: F.interpolate(x, scale_factor=(2, 1.5), mode="bicubic"), 8),
    "bicubic before a ReLU": lambda: between(
        lambda n, x: F.relu(F.interpolate(n.a(x), (6, 7), mode="bicubic", align_corners=True)), 8, a=conv(8, 8)
    ),
    "mirrored": lambda: between(lambda n, x: F.relu(n.a(n.pad(x))), 6, a=nn.Conv2d(8, 6, 3), pad=nn.ReflectionPad2d(1)),
    "padded by copies of values": lambda: between(
        lambda n, x: F.pad(F.pad(n.a(x), (1, 2, 0, 1), mode="replicate"), (0, 3, 1, 1), "circular"), 6, a=conv(8, 6)
    ),
    "mirrored 1d": lambda: line(nn.ReflectionPad1d(2), 6 * 20),
    "blurred": lambda: between(lambda n, x: F.relu(n.a(n.blur(x))), 6, a=conv(8, 6), blur=Blur(8)),
    "blurred values": lambda: between(lambda n, x: n.blur(n.a(x)), 8, a=conv(8, 8), blur=Blur(8)),
    "filtered by constants": lambda: between(
        lambda n, x: F.relu(n.bn(F.conv2d(x, n.c.edges.repeat(8, 1, 1, 1), None, (2, 1), (0, 1), 1, 8))), 8,
        bn=nn.BatchNorm2d(8), c=Constants(8),
    ),
    "filtered 1d": lambda: line(Filter(), 6 * 14),
    "constants of channels": lambda: between(
        lambda n, x: F.relu(n.a((x - n.c.mean) / n.c.deviation)), 6, a=conv(8, 6), c=Constants(8)
    ),
    "constants of channels of values": lambda: between(
        lambda n, x: F.relu(n.c.deviation * n.a(x) + x - n.c.mean), 8, a=conv(8, 8), c=Constants(8)
    ),
    "mean of channels": lambda: between(lambda n, x: torch.cat([x.mean(1, keepdim=True), n.a(x)], 1), 5, a=conv(8, 4)),
    "mean of features": lambda: flat(lambda n, x: F.relu(n.a(x.flatten(1))).mean(1, keepdim=True) + 0.1, 1,
        a=nn.Linear(768, 12)),
    "a matrix": lambda: flat(
        lambda n, x: F.relu(n.a(x.flatten(1))) @ n.c.matrix, 5, a=nn.Linear(768, 8), c=Constants(8)
    ),
    "a matrix of a linear function": lambda: flat(
        lambda n, x: F.linear(n.a(x.flatten(1)), n.c.matrix.t(), n.c.bias), 5, a=nn.Linear(768, 8), c=Constants(8)
    ),
    "PixelShuffle": lambda: between(lambda n, x: n.up(F.max_pool2d(x, 2)), 2, up=nn.PixelShuffle(2)),
    "PixelUnshuffle": lambda: between(lambda n, x: n.down(x), 32, down=nn.PixelUnshuffle(2)),
    "pixel_shuffle of values": lambda: between(lambda n, x: F.pixel_shuffle(n.a(x), 2), 2, a=conv(8, 8)),
    "ChannelShuffle": lambda: between(lambda n, x: n.mix(n.a(x)), 8, a=conv(8, 8), mix=nn.ChannelShuffle(4)),
    "channel shuffle": lambda: between(half_shuffled, 8, a=conv(4, 4)),
    "channel shuffle of values": lambda: between(lambda n, x: shuffled(n.a(x), 2), 8, a=conv(8, 8)),
    "split": lambda: between(in_parts, 9, a=conv(5, 6)),
    "slices": lambda: between(lambda n, x: torch.cat((F.relu(n.a(x[:, 2:6])), x[:, :2]), dim=1), 8, a=conv(4, 6)),
    "AdaptiveMaxPool2d": lambda: flat(lambda n, x: F.adaptive_max_pool2d(x, 1).flatten(1), 8),
    "amax": lambda: flat(lambda n, x: x.amax((2, 3)), 8),
    "mean of rows": lambda: Net(
        lambda n, x: n.fc(F.relu(n.second(F.relu(n.first(x)).mean(3))).mean(2)),
        first=conv(3, 8), second=nn.Conv1d(8, 6, 3), fc=nn.Linear(6, 5),
    ),
    "gate": lambda: between(lambda n, x: n.gate(x), 8, gate=Gate(8)),
    "gate of values": lambda: between(lambda n, x: F.relu(n.gate(n.a(x)) + x), 8, a=conv(8, 8), gate=Gate(8)),
    "gate in a residual block": lambda: between(
        lambda n, x: F.relu(n.b(n.gate(F.relu(n.a(x)))) + x), 8, a=conv(8, 8), b=conv(8, 8), gate=Gate(8)
    ),
    "mean of rows, then columns": lambda: Net(
        lambda n, x: n.fc(F.relu(n.second(F.relu(n.first(x)))).mean(3).mean(2)),
        first=conv(3, 8), second=conv(8, 6), fc=nn.Linear(6, 5),
    ),
    "mean of flat pixels": lambda: Net(
        lambda n, x: n.fc(F.relu(n.second(F.relu(n.first(x)))).flatten(2).mean(-1)),
        first=conv(3, 8), second=conv(8, 6), fc=nn.Linear(6, 5),
    ),
    "average over sizes": lambda: flat(lambda n, x: F.avg_pool2d(x, (x.size(2), x.shape[-1])).flatten(-3), 8),
    "channels by a negative dimension": lambda: between(
        lambda n, x: torch.cat([x.chunk(2, -3)[1], F.relu(n.a(x)), x[:, 2:4, ...]], -3), 10, a=conv(8, 4)
    ),
    "shuffled behind unshuffling": lambda: between(
        lambda n, x: shuffled(n.down(F.relu(n.a(x))), 2), 16, a=conv(8, 4), down=nn.PixelUnshuffle(2)
    ),
    "dropout before ReLU6": lambda: between(
        lambda n, x: F.relu6(n.drop(n.a(x))), 6, a=conv(8, 6), drop=nn.Dropout(0.1)
    ),
    "pre-activation": lambda: Net(
        pre_activated, first=conv(3, 8), a=conv(8, 8), b=conv(8, 8), fc=nn.Linear(8, 5),
        norm=nn.BatchNorm2d(8), norm_a=nn.BatchNorm2d(8), norm_b=nn.BatchNorm2d(8),
    ),
    "sum of two first layers": lambda: Net(
        lambda n, x: n.fc(F.relu(n.last(F.relu(n.first(x) + n.other(x)))).mean((2, 3))),
        first=conv(3, 8), other=conv(3, 8, 1), last=conv(8, 8), fc=nn.Linear(8, 5),
    ),
    "MaxPool1d": lambda: line(nn.MaxPool1d(2), 6 * 8),
    "AvgPool1d": lambda: line(nn.AvgPool1d(2), 6 * 8),
    "AvgPool1d with padding": lambda: line(nn.AvgPool1d(3, 2, 1, count_include_pad=False), 6 * 8),
    "AdaptiveAvgPool1d": lambda: line(nn.AdaptiveAvgPool1d(4), 6 * 4),
    "max of rows": lambda: Net(
        lambda n, x: n.fc(F.relu(n.second(torch.max(F.relu(n.first(x)), 3)[0])).mean(2)),
        first=conv(3, 8), second=nn.Conv1d(8, 6, 3), fc=nn.Linear(6, 5),
    ),
    "max of columns": lambda: between(
        lambda n, x: F.relu(n.a(x)) + n.up(x.max(2, keepdim=True).values), 8,
        a=conv(8, 8), up=nn.Upsample(scale_factor=(8, 1)),
    ),
    "max of values": lambda: flat(lambda n, x: n.a(x).max(dim=2).values.flatten(1), 8 * 12, a=conv(8, 8)),
    "max of a 1d line": lambda: line(Largest(), 6),
    "every other pixel": lambda: between(
        lambda n, x: F.relu(n.a(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))), 12, a=nn.Conv2d(8, 12, 3, 2, 1)
    ),
    "slices of values": lambda: between(lambda n, x: n.a(x)[:, 1::2, 1:-1, -9:], 3, a=conv(8, 6)),
    "slices in space": lambda: between(
        lambda n, x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], n.a(x[:, :, ::2, 1::2])], 1), 20, a=conv(8, 4)
    ),
    "a column": lambda: Net(
        lambda n, x: n.fc(F.relu(n.second(F.relu(n.first(x))[..., 3])).mean(2)),
        first=conv(3, 8), second=nn.Conv1d(8, 6, 3), fc=nn.Linear(6, 5),
    ),
    "the last of a 1d line": lambda: Net(
        lambda n, x: n.fc(F.relu(n.second(F.relu(n.first(x))[:, :, -1]))),
        first=nn.Conv1d(3, 8, 3), second=nn.Linear(8, 6), fc=nn.Linear(6, 5),
    ),
    "parts of a 1d line": lambda: line(Parts(), 6 * 7),
    "unflattened": lambda: Net(
        lambda n, x: n.fc(F.relu(n.conv(n.shape(F.relu(n.linear(F.relu(n.first(x)).flatten(1)))))).mean((2, 3))),
        first=conv(3, 4), linear=nn.Linear(4 * 96, 48), shape=nn.Unflatten(1, (8, 2, 3)), conv=conv(8, 6),
        fc=nn.Linear(6, 5),
    ),
    "a view of values": lambda: Net(
        lambda n, x: n.fc(F.relu(n.conv(n.linear(F.relu(n.first(x)).flatten(1)).view(-1, 8, 2, 3))).mean((2, 3))),
        first=conv(3, 4), linear=nn.Linear(4 * 96, 48), conv=conv(8, 6), fc=nn.Linear(6, 5),
    ),
    "repeated": lambda: between(
        lambda n, x: F.relu(x.repeat(1, 2, 1, 1) + n.a(x).repeat_interleave(2, dim=1)), 16, a=conv(8, 8)
    ),
    "repeated rows": lambda: between(lambda n, x: torch.repeat_interleave(n.a(x), 3, 2), 8, a=conv(8, 8)),
}  # fmt: skip
LINES = {name for name in NETS if "1d" in name}
SHUFFLED = {"PixelShuffle", "pixel_shuffle of values", "unflattened", "a view of values"}
"""These need spikes of one weight."""
NEURONS = {"one phase": IF(initial=0.5), "two phases": IF(initial=0.5, two_phase=True)}
LEVELS = {
    "levels of layers": {"per_channel": False, "correct_bias": False},
    "levels of channels": {"per_channel": True, "correct_bias": True},
}


def settings(name, neuron, levels):
    """Settings of a conversion, as far as the network can have them."""
    return {"neuron": neuron, **(LEVELS["levels of layers"] if name in SHUFFLED else levels)}


def made(name):
    """A network with trained-looking batch norm, in eval mode and double precision, and images."""
    torch.manual_seed(0)
    ann = NETS[name]().double().eval()
    for norm in ann.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, 0, 0.3)
    shape = (16,) if name in LINES else (8, 12)  # sides and channels differ, so that none can be taken for another
    return ann, torch.randn(8, 3, *shape, dtype=torch.float64)


def converted(name, ann, time_steps, **settings):
    return convert(ann, time_steps, gates="analogue" if "gate" in name else None, **settings)


@pairs(name=list(NETS), neuron=NEURONS, levels=LEVELS)
def test_it_computes_what_the_ann_does(name, neuron, levels):
    ann, x = made(name)
    snn = converted(name, ann, 256, calibrate=x, percentile=100, **settings(name, neuron, levels))
    with torch.no_grad():
        want = ann(x)
        error = (snn(x) - want).norm()
        assert 0 < error < 0.02 * want.norm()
        if neuron.two_phase and not levels["per_channel"]:  # its counts are exact
            assert error < 0.1 * (want - want.mean(0)).norm()  # what all images have in common says little


def operations(model, x):
    return sum(layer.synops for layer in synops(model, x))


@pairs(name=list(NETS), neuron=NEURONS, levels=LEVELS)
def test_frozen_networks_are_the_same(name, neuron, levels, tmp_path):
    ann, x = made(name)
    snn = converted(name, ann, 64, calibrate=x, **settings(name, neuron, levels))
    snn(x)
    snn.set_time_steps(5)
    with torch.no_grad():
        want = snn(x)
        frozen = freeze(snn)
        assert torch.equal(frozen(x), want)
        frozen.save(tmp_path / "net")
        loaded = FrozenNetwork.load(tmp_path / "net")
        assert torch.equal(loaded(x), want)
        assert operations(loaded, x) == operations(snn, x) > 0
        if "two" not in str(neuron) and "gate" not in name:
            stream = frozen.stream(x)
            assert torch.equal([stream.advance(n) for n in (1, 3, 1)][-1], want)


@each(name=list(NETS), neuron=NEURONS, levels=LEVELS)
def test_it_trains(name, neuron, levels):
    """Every parameter gets a gradient; in eval mode afterwards, outputs do not depend on whether one is asked for."""
    ann, x = made(name)
    snn = converted(name, ann, 8, calibrate=x, **settings(name, neuron, levels)).train()
    snn(x).square().sum().backward()
    for parameter_name, parameter in ann.named_parameters():
        if not (parameter_name.endswith("bias") and parameter_name != "fc.bias"):  # batch norm may cancel a bias
            assert parameter.grad.abs().sum() > 0, parameter_name
    snn.eval()
    want = snn(x)
    with torch.no_grad():
        assert torch.equal(snn(x), want)
    assert torch.equal(copy.deepcopy(snn)(x), want)


# Without maxima, for rounding decides which of several equal ones gets the gradient.
@pytest.mark.parametrize("name", [name for name in NETS if "Max" not in name and "amax" not in name])
def test_gradients_are_those_of_the_ann(name):
    """Of many steps: in eval mode, where both networks use the same statistics."""
    ann, x = made(name)
    snn = converted(name, ann, 4096, calibrate=x, percentile=100, **per_layer(NEURONS["two phases"]))
    got = torch.autograd.grad(snn(x).square().sum(), ann.first.weight)[0]
    want = torch.autograd.grad(ann(x).square().sum(), ann.first.weight)[0]
    assert (got - want).norm() < 0.05 * want.norm()


def dyadic(ann):
    """Make all weights multiples of 1/64, and batch norm powers of two, so that sums are exact."""
    with torch.no_grad():
        for module in ann.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.eps = 2**-10
                module.running_var.fill_(1 - 2**-10)
                module.running_mean.copy_((module.running_mean * 16).round() / 16)
        for parameter in ann.parameters():
            parameter.copy_((parameter * 64).round() / 64)
    return ann


@each(name=list(NETS), neuron=NEURONS)
def test_engines_have_the_same_spikes(name, neuron):
    ann, x = made(name)
    ann, x = dyadic(ann).float(), (x.float() * 8).round() / 8
    levels = converted(name, ann, 8, calibrate=x, per_channel=False).levels
    levels = {layer: 2.0 ** round(torch.tensor(level).log2().item()) for layer, level in levels.items()}
    how = {"calibrate": levels, "neuron": neuron}
    event, dense = (converted(name, ann, 8, engine=engine, **how) for engine in ("event", "dense"))
    counts = [[], []]
    for snn, found in zip((event, dense), counts, strict=True):
        for layer in snn.spiking_layers:
            snn.snn.get_submodule(layer).register_forward_hook(lambda m, a, out, found=found: found.append(out.bits))
        snn(x)
    assert len(counts[0]) == len(event.spiking_layers)
    for one, other in zip(*counts, strict=True):
        assert torch.equal(one, other)


@each(name=list(NETS), weights=["int8", "int16"], neuron=NEURONS)
def test_integers_have_the_same_spikes_everywhere(name, weights, neuron):
    """With weights as they come: in every engine, with and without a gradient, and frozen."""
    ann, x = made(name)
    ann, x = ann.float(), x.float()
    nets = [converted(name, ann, 8, engine=e, neuron=neuron, weights=weights) for e in ("event", "dense")]
    with torch.no_grad():
        want = nets[0](x)
        assert torch.equal(nets[1](x), want)
        assert torch.equal(freeze(nets[1])(x), want)
    assert torch.equal(nets[1](x), want)


@pytest.mark.parametrize("name", NETS)
def test_integers_are_those_of_the_ann(name):
    """Both twins round weights alike."""
    ann, x = made(name)
    ann, x = ann.float(), x.float()
    snn = converted(name, ann, 256, calibrate=x, percentile=100, weights="int8", **per_layer(NEURONS["two phases"]))
    with torch.no_grad():
        want = ann(x)
        assert (snn(x) - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize(
    ("name", "module", "number"),
    [
        ("cat", SpikeCat, 1),
        ("pad", SpikeRearrange, 1),
        ("norm before ReLU", TandemElementwise, 1),
        ("norm without map", TandemElementwise, 0),
        ("factor", TandemElementwise, 3),
        ("gate", TandemGate, 1),
        ("amax", SpikingGlobalMaxPool2d, 1),
    ],
)
def test_what_becomes_of_it(name, module, number):
    ann, _ = made(name)
    assert kinds(converted(name, ann, 4)).count(module) == number


def test_a_bounded_activation_saturates():
    torch.manual_seed(0)  # with others, no value of the second layer may be positive
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    ann = ann.eval()
    with torch.no_grad():
        ann[0].weight.mul_(100)
    x = torch.rand(4, 1, 6, 6)
    snn = convert(ann, 8, calibrate=x, percentile=100, **per_layer())
    assert snn.levels["0"] == 6
    assert snn.snn.get_submodule("0").neuron == IF(0.75, clip=True, amplitude=0.75)
    assert not snn.snn.get_submodule("2").neuron.clip


SQUEEZED = {
    "images": flat(lambda n, x: F.max_pool2d(x, (8, 12)).squeeze(3).squeeze(2), 8),
    "rows": flat(lambda n, x: x.amax(2, keepdim=True).squeeze(2).squeeze(1).flatten(1), 8 * 12),
    "pixels": flat(lambda n, x: x.mean((2, 3), keepdim=True).squeeze((2, 3)), 8),
}


@pytest.mark.parametrize("name", SQUEEZED)
def test_squeezed(name):
    """An example tells which sizes are 1."""
    ann, x = SQUEEZED[name].eval(), torch.randn(8, 3, 8, 12)
    snn = convert(ann, 8, calibrate=x)
    with torch.no_grad():
        want = ann(x)
        assert (snn(x) - want).norm() < 0.02 * want.norm()
        assert torch.equal(freeze(snn)(x), snn(x))
    with pytest.raises(ValueError, match=r"use torch.flatten\(x, 1\)"):
        convert(ann, 8)


@pytest.mark.parametrize("bounds", [(-1, 2), (0, float("inf")), (1, 2)])
def test_other_bounds_are_refused(bounds):
    ann = nn.Sequential(conv(3, 4), nn.Hardtanh(*bounds), conv(4, 4))
    with pytest.raises(ValueError, match=r"1 \(Hardtanh\): let it return values from 0 or -b to a positive bound b"):
        convert(ann, 4)


def a_view(*sizes):
    """Channels in groups and back, by sizes given as functions of the image."""

    def run(net, x):
        grouped = x.view(*(size(x) if callable(size) else size for size in sizes[:5]))
        return grouped.transpose(1, 2).contiguous().view(*(size(x) if callable(size) else size for size in sizes[5:]))

    return between(run, 8)


def batch(x):
    return x.size(0)


def height(x):
    return x.size(2)


def width(x):
    return x.size(3)


def a_line(run, features=4):
    return Net(
        lambda n, x: n.fc(run(F.relu(n.first(x))).flatten(1)), first=nn.Conv1d(3, 4, 3), fc=nn.Linear(features, 5)
    )


@pytest.mark.parametrize(
    ("ann", "message"),
    [
        (between(lambda n, x: x[1:], 8), "select ranges behind the batch"),
        (between(lambda n, x: x[:, 3], 8), "select ranges behind the batch"),
        (flat(lambda n, x: x.flatten(2).mean(1), 96), "pass keepdim=True"),
        (flat(lambda n, x: F.max_pool2d(x, (x.size(2), x.size(3))).flatten(1), 8), "pass example="),
        (a_view(batch, 2, 4, width, height, batch, 8, height, width), "pass example="),
        (a_view(batch, 2, 4, height, width, batch, 8, width, height), "pass example="),
        (a_view(batch, 2, 4, -1, 12, batch, 8, height, width), "use nn.Flatten in place of a computed shape"),
        (a_view(batch, 2, 8, height, 6, batch, 8, height, width), "pass example="),
        (a_line(lambda x: torch.cat([x, x], -3)), "concatenate along dimension 1"),
        (a_line(lambda x: x.mean(1), 14), "pass keepdim=True"),
    ],
)
def test_what_means_something_else_is_refused(ann, message):
    with pytest.raises(ValueError, match=message):
        convert(ann, 4)


def test_groups_of_channels_are_viewed_right():
    convert(a_view(batch, 2, 4, height, width, batch, 8, height, width), 4)
    convert(a_view(-1, 2, 4, height, width, batch, -1, height, width), 4)


ALIASES = {
    "Identity": lambda net, x: net.same(x),
    "Dropout": lambda net, x: net.drop(x),
    "dropout": lambda net, x: F.dropout(x, 0.1, net.training),
    "chunk": lambda net, x: x.chunk(2, 1)[0],
    "slice": lambda net, x: x[:, :4],
    "flatten": lambda net, x: x.flatten(1),
    "contiguous": lambda net, x: x.contiguous(),
}


@pytest.mark.parametrize("alias", ALIASES.values(), ids=ALIASES)
def test_writes_through_another_name_are_refused(alias):
    def run(net, x):
        y = net.a(x)
        alias(net, y).relu_()
        return F.relu(net.b(x)) + y

    ann = between(run, 8, a=conv(8, 8), b=conv(8, 8), same=nn.Identity(), drop=nn.Dropout(0.1))
    with pytest.raises(ValueError, match="write out of place: its input is used again later"):
        convert(ann, 4)


def test_an_activation_in_place_by_position_is_refused():
    def run(net, x):
        y = net.a(x)
        return net.b(F.relu(y, True)) + y

    with pytest.raises(ValueError, match="write out of place"):
        convert(between(run, 8, a=conv(8, 8), b=conv(8, 8)), 4)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("alias", [lambda net, x: x, lambda net, x: x.swapaxes(2, 3), lambda net, x: net.drop(x)])
def test_writes_to_an_encoded_input_are_refused(again, alias):
    def run(net, x):
        y = net.first(x)
        alias(net, x).mul_(2)
        y = F.relu(y + net.other(x)) if again else F.relu(y)
        return net.fc(y.mean((2, 3)))

    with pytest.raises(ValueError, match=r"mul_ .*write out of place"):
        convert(
            Net(run, first=conv(3, 8), other=conv(3, 8), fc=nn.Linear(8, 5), drop=nn.FeatureAlphaDropout()).eval(), 4
        )


@pytest.mark.parametrize("dropout", [nn.Dropout, nn.Dropout2d])
def test_dropout_drops_both_signs_of_a_value(dropout):
    ann = between(lambda n, x: n.drop(n.a(x)), 8, a=conv(8, 8), drop=dropout(0.5))
    snn, read = convert(ann, 4), []
    drop = snn.snn.get_submodule("drop").train()
    drop.register_forward_pre_hook(lambda module, inputs: read.extend(inputs))
    snn(torch.rand(2, 3, 8, 12))
    assert [x.paired for x in read] == [True]
    kept = drop(SpikeTrain.from_dense(torch.ones(4, 16, 16, 8, 12)).replace(pair_dim=1)).count != 0
    positive, negative = kept.unflatten(1, (8, 2)).unbind(2)
    assert torch.equal(positive, negative)
    assert 0.3 < positive.float().mean() < 0.7


# --- arguments -------------------------------------------------------------------------------------------------------


def test_replace():
    ann = nn.Sequential(conv(3, 4), nn.SiLU(), nn.Sequential(conv(4, 4), nn.PReLU()), nn.Flatten(), nn.Linear(256, 3))
    with pytest.warns(UserWarning, match="1 SiLU, 1 PReLU of the ANN were replaced. It now computes something else"):
        snn = convert(ann, 4, replace={nn.SiLU: nn.ReLU, nn.PReLU: nn.ReLU6()})
    assert [type(module) for module in (ann[1], ann[2][1])] == [nn.ReLU, nn.ReLU6]
    assert snn.ann() is ann
    assert snn.spiking_layers == ("0", "2.0")


@pytest.mark.parametrize(
    ("replace", "error", "message"),
    [
        ({nn.SiLU: Tensor}, TypeError, r"replace\[SiLU\] must be a module class, a module or a function, got <class"),
        (
            {"GELU": nn.ReLU},
            ValueError,
            "replace must name modules of the ANN or functions .* got GELU; it calls none",
        ),
    ],
)
def test_wrong_replacements(replace, error, message):
    with pytest.raises(error, match=f"convert: {message}"):
        convert(nn.Sequential(conv(3, 4), nn.SiLU(), conv(4, 4)), 4, replace=replace)


def test_gates_must_be_asked_for():
    ann, _ = made("gate")
    with pytest.raises(
        ValueError, match=r"mul \(mul in forward of gate\): pass gates='analogue', which keeps squeeze-and-excit"
    ):
        convert(ann, 4)


def test_an_activation_in_place_of_spikes_changes_nothing():
    convert(between(lambda n, x: n.b(F.relu(n.a(x), inplace=True)) + x, 8, a=nn.Identity(), b=conv(8, 8)), 4)


class SharedWeights(nn.Module):
    """Two layers with one weight, or one layer called twice, behind concatenations of different trains."""

    def __init__(self, calls, plain):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 2)
        self.first, self.plain = nn.Linear(6, 6), nn.Linear(4, 6) if plain else None
        self.second = self.first if calls == "one layer" else nn.Linear(6, 6)
        if calls == "one weight":
            self.second.weight = self.first.weight
        with torch.no_grad():
            self.b.weight.mul_(3)  # its trains have a higher threshold

    def forward(self, x):
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        other = torch.cat([b, a], 1) if self.plain is None else F.relu(self.plain(x))
        return self.last(F.relu(self.first(torch.cat([a, b], 1))) + F.relu(self.second(other)))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("calls", ["two weights", "one weight", "one layer"])
def test_shared_integers_and_spikes_of_different_weight(calls, plain):
    torch.manual_seed(0)
    ann, x = SharedWeights(calls, plain).eval(), torch.rand(32, 4)
    if calls == "one layer":
        plainly = convert(ann, 8, calibrate=x)  # the advice
        want = plainly(x)
        for refused in (lambda: convert(ann, 8, calibrate=x, weights="int8"), lambda: quantise(plainly, 8)):
            with pytest.raises(ValueError, match=r"TandemNetwork: calls of .* which first and first_1 do not"):
                refused()
            assert torch.equal(plainly(x), want)
        ann.second = copy.deepcopy(ann.first)
    snn = convert(ann, 8, calibrate=x, weights="int8")
    quantise(snn, 4)
    for name, layer in ann.named_modules():
        if isinstance(layer, nn.Linear):
            assert torch.equal(layer.weight, snn.snn.get_submodule(name).weight)
    assert not torch.equal(ann.first.weight, ann.second.weight)
    snn(x)


def test_integers_and_spikes_of_different_weight():
    """The ANN rounds as its twin does, also in other numbers of steps, and notices if it no longer can."""
    ann, x = made("cat")
    ann, x = ann.float(), x.float()
    snn = convert(ann, 256, calibrate=x, percentile=100, neuron=NEURONS["two phases"])
    plain = ann(x)
    quantise(snn, 4)
    rounded = ann(x)
    assert (rounded - plain).norm() > 0.02 * plain.norm()
    assert (snn(x) - rounded).norm() < 0.02 * rounded.norm()
    other = convert(ann, 256, calibrate=x / 2, percentile=100, neuron=NEURONS["two phases"])
    assert (other(x / 2) - ann(x / 2)).norm() < 0.02 * ann(x / 2).norm()
    with pytest.raises(RuntimeError, match="another conversion of it has other thresholds of channels or concatenated"):
        snn(x)
    copied = copy.deepcopy(other)
    other.set_time_steps(128)
    assert torch.equal(other.ann()(x), ann(x))
    assert torch.equal(copied(x), convert(ann, 256, calibrate=other.calibration, neuron=NEURONS["two phases"])(x))
    unquantise(other)
    assert torch.equal(ann(x), plain)


def stochastic_depth(library, p):
    if library == "timm":
        return pytest.importorskip("timm.layers").DropPath(p)
    return pytest.importorskip("torchvision.ops").StochasticDepth(p, library)


@pytest.mark.parametrize("library", ["row", "batch", "timm"])
def test_stochastic_depth(library):
    """Samples keep their branch or lose it; on average, it is what it is in eval mode."""
    drop = stochastic_depth(library, 0.25)
    ann = between(lambda n, x: F.relu(n.drop(n.a(x)) + x), 8, a=conv(8, 8), drop=drop).eval()
    x = torch.rand(256, 3, 8, 8)
    snn = convert(ann, 16, calibrate=x, neuron=NEURONS["two phases"])
    with torch.no_grad():
        assert (snn(x) - ann(x)).norm() < 0.1 * ann(x).norm()
        assert torch.equal(freeze(snn)(x), snn(x))
        trains = []
        (name,) = (name for name, m in snn.snn.named_modules() if type(m).__name__ == "TandemStochasticDepth")
        snn.snn.get_submodule(name).register_forward_hook(lambda m, args, out: trains.append((args[0], out)))
        snn.train()(x)
        kept = [(out.count.flatten(1) != 0).any(1) for _, out in trains]
    (before, after), (kept,) = trains[-1], kept
    assert torch.equal(after.bits[:, kept], before.bits[:, kept])
    assert not after.bits[:, ~kept].any()
    assert after.amplitude == before.amplitude / 0.75
    if library == "batch":
        assert kept.all() or not kept.any()
    else:
        assert 140 < kept.sum() < 240


def test_dropout_before_a_concatenation():
    ann = between(lambda n, x: torch.cat([n.drop(x), F.relu(n.a(x))], 1), 14, a=conv(8, 6), drop=nn.Dropout(0.5))
    snn = convert(ann, 4).train()
    with pytest.raises(ValueError, match=r"SpikeCat: .*\(dropout in some branches only\?\)"):
        snn(torch.rand(2, 3, 8, 8))
    assert snn.eval()(torch.rand(2, 3, 8, 8)).isfinite().all()


def test_a_concatenation_that_is_not_needed(recwarn):
    """It cannot be written, as a later one that begins with it can."""

    def forward(net, x):
        a, b = (F.relu(x).flatten(1) for x in (net.a(x), net.b(x)))
        return net.fc(torch.cat([a, b, F.relu(net.c(x)).flatten(1)], 1)), torch.cat([a, b], 1)

    ann = Net(forward, a=conv(3, 4), b=conv(3, 4), c=conv(3, 4), fc=nn.Linear(12 * 16, 5)).eval()
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    got = convert(ann, 8, calibrate=x)(x)
    for part, want in zip(got, ann(x), strict=True):
        assert (part - want).norm() < 0.05 * want.norm()


def test_a_concatenation_reads_the_one_that_it_begins_with():
    snn = convert(NETS["grown cats"](), 4)
    assert [len(x.signed) for x in snn.modules() if isinstance(x, SpikeCat)] == [2, 2, 3]
