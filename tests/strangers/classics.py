"""Convolutional networks of tutorials, courses and early papers."""

import torch
import torch.nn.functional as F
from torch import nn

from .network import Network, noise, pictures, pixels


class Net(nn.Module):
    """A first tutorial: pooling in one line with the activation, and num_flat_features."""

    def __init__(self):
        super(Net, self).__init__()
        # three colours in, kernels of 5 x 5
        self.conv1 = nn.Conv2d(3, 8, 5)
        self.conv2 = nn.Conv2d(8, 14, 5)
        self.fc1 = nn.Linear(14 * 5 * 5, 64)
        self.fc2 = nn.Linear(64, 32)
        self.fc3 = nn.Linear(32, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # a square needs one number only
        x = x.view(-1, self.num_flat_features(x))
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x

    def num_flat_features(self, x):
        n = 1
        for size in x.size()[1:]:  # all dimensions but the batch
            n *= size
        return n


class DigitNet(nn.Module):
    """A second tutorial: Dropout2d, functional dropout, a literal in view, log_softmax."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, kernel_size=3)
        self.conv2 = nn.Conv2d(8, 16, kernel_size=3)
        self.drop = nn.Dropout2d(p=0.25)
        self.hidden = nn.Linear(400, 40)
        self.out = nn.Linear(40, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = self.drop(self.conv2(x))
        x = F.relu(F.max_pool2d(x, 2))
        x = x.view(-1, 400)
        x = F.dropout(torch.relu(self.hidden(x)), training=self.training)
        return F.log_softmax(self.out(x), dim=1)


cfg = {
    "A": [8, "M", 16, "M", 24, 24, "M", 32, 32, "M"],
    "B": [8, 8, "M", 16, 16, "M", 24, 24, "M", 32, 32, "M"],
}


def make_layers(cfg, batch_norm=True):
    layers, channels = [], 3
    for v in cfg:
        if v == "M":
            layers += [nn.MaxPool2d(2, 2)]
            continue
        conv = nn.Conv2d(channels, v, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(v), nn.ReLU(True)] if batch_norm else [conv, nn.ReLU(True)]
        channels = v
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """CIFAR repositories: a table of widths and "M", make_layers, initialisation over self.modules()."""

    def __init__(self, letter, num_classes=10):
        super(VGG, self).__init__()
        self.features = make_layers(cfg[letter])
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(32 * 2 * 2, 64), nn.ReLU(True), nn.Linear(64, num_classes)
        )
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
                m.bias.data.zero_()

    def forward(self, x):
        out = self.features(x)
        out = out.view(out.size(0), -1)
        out = self.classifier(out)
        return out


class AlexNet(nn.Module):
    """The paper of 2012 by the book: local response normalisation, two groups, overlapping pooling."""

    def __init__(self, num_classes: int = 12) -> None:
        super().__init__()
        lrn = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
        self.conv = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.LocalResponseNorm(**lrn),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(16, 32, 5, padding=2, groups=2),
            nn.ReLU(),
            nn.LocalResponseNorm(**lrn),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(32, 32, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((2, 2)),
        )
        self.fc6 = nn.Sequential(nn.Dropout(0.5), nn.Linear(128, 64), nn.ReLU())
        self.fc7 = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 64), nn.ReLU())
        self.fc8 = nn.Linear(64, num_classes)
        for layer in (m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.constant_(layer.bias, 0.05)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = torch.flatten(self.conv(image), start_dim=1)
        return self.fc8(self.fc7(self.fc6(features)))


class ConvBlock(nn.Module):
    def __init__(self, cin, cout, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(cout, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    def __init__(self, cin, one, three, five, pool):
        super().__init__()
        self.one = ConvBlock(cin, one, kernel_size=1)
        self.three_reduce = ConvBlock(cin, three[0], kernel_size=1)
        self.three = ConvBlock(three[0], three[1], kernel_size=3, padding=1)
        self.five = nn.Sequential(
            ConvBlock(cin, five[0], kernel_size=1), ConvBlock(five[0], five[1], kernel_size=5, padding=2)
        )
        self.pool_proj = ConvBlock(cin, pool, kernel_size=1)

    def forward(self, x):
        pooled = F.max_pool2d(x, kernel_size=3, stride=1, padding=1)
        branches = [self.one(x), self.three(self.three_reduce(x)), self.five(x), self.pool_proj(pooled)]
        return torch.cat(branches, 1)


class GoogLeNet(nn.Module):
    """Inception: branches joined by cat, and an auxiliary head whose output is returned in training alone."""

    def __init__(self, num_classes=10, aux_logits=True):
        super().__init__()
        self.stem = ConvBlock(3, 16, kernel_size=3, stride=2, padding=1)
        self.inception3 = Inception(16, 8, (8, 12), (4, 4), 4)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4 = Inception(28, 12, (8, 16), (4, 6), 6)
        self.aux = None
        if aux_logits:
            self.aux = nn.Sequential(
                nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(112, 24), nn.ReLU(), nn.Linear(24, num_classes)
            )
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(40, num_classes)

    def forward(self, x):
        x = self.inception3(self.stem(x))
        aux = self.aux(x) if self.aux is not None and self.training else None
        x = self.inception4(self.pool(x))
        x = F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
        x = self.fc(self.dropout(x))
        return (x, aux) if aux is not None else x


class MaxoutNet(nn.Module):
    """Goodfellow's maxout, once as the maximum over a reshaped dimension and once by torch.maximum of two layers."""

    def __init__(self, pieces=3):
        super().__init__()
        self.pieces = pieces
        self.conv = nn.Conv2d(1, 12 * pieces, 5, stride=2)
        self.drop = nn.Dropout2d(0.1)
        self.left, self.right = nn.Linear(12 * 6 * 6, 48), nn.Linear(12 * 6 * 6, 48)
        self.out = nn.Linear(48, 10)

    def maxout(self, x):
        n, c, h, w = x.shape
        return x.view(n, c // self.pieces, self.pieces, h, w).max(dim=2)[0]

    def forward(self, x):
        x = self.maxout(self.conv(x))
        x = self.drop(F.max_pool2d(x, 2))
        x = x.flatten(start_dim=1)
        return self.out(torch.maximum(self.left(x), self.right(x)))


def lecun_normal(m):
    if isinstance(m, nn.Linear):
        nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="linear")
        nn.init.zeros_(m.bias)


def selfnormalising(widths=(40, 64, 48, 32), classes=5):
    """A function that returns a Sequential, as in notebooks on tables: SELU and AlphaDropout."""
    layers = []
    for i in range(len(widths) - 1):
        layers.append(nn.Linear(widths[i], widths[i + 1]))
        layers.append(nn.SELU())
        layers.append(nn.AlphaDropout(p=0.05))
    net = nn.Sequential(*layers, nn.Linear(widths[-1], classes))
    return net.apply(lecun_normal)


NETWORKS: dict[str, Network] = {
    "first_tutorial": Network(Net, pixels(3, 32, 32)),
    "digits_tutorial": Network(DigitNet, pictures(1, 28, 28)),
    "vgg": Network(lambda: VGG("A"), pictures(3, 32, 32)),
    "alexnet": Network(AlexNet, pictures(3, 32, 32)),
    "googlenet": Network(GoogLeNet, pictures(3, 32, 32)),
    "maxout": Network(MaxoutNet, pixels(1, 28, 28)),
    "selfnormalising": Network(selfnormalising, noise(40)),
}
