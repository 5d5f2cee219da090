"""Networks of QCFS activations, whose modules and parameters have the names of the authors' networks."""

import torch
from torch import nn

from exact import VANISHING, generator


class IF(nn.Module):
    """Thresholds are stored as "thresh"; L is not stored. With T > 0, the authors' module computes spikes."""

    def __init__(self, L=4, thresh=2.0, T=0):
        super().__init__()
        self.thresh, self.L, self.T = nn.Parameter(torch.tensor([thresh])), L, T

    def forward(self, x):
        if self.T > 0:
            return (x >= self.thresh).to(x) * self.thresh
        share = (x / self.thresh).clamp(0, 1) * self.L
        rounded = share + ((share + 0.5).floor() - share).detach()
        return rounded / self.L * self.thresh


class MyFloor(nn.Module):
    """The authors' first form, with other names, that clamps last."""

    def __init__(self, up=2.0, t=4):
        super().__init__()
        self.up, self.t = nn.Parameter(torch.tensor([up])), t

    def forward(self, x):
        return ((x / self.up * self.t + 0.5).floor() / self.t).clamp(0, 1) * self.up


def dyadic(net, seed=0):
    """All sums of these networks are exact, and so are counts."""
    source = generator(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = VANISHING
            module.running_mean.copy_(torch.randint(-4, 5, module.running_mean.shape, generator=source) / 4)
            module.running_var.copy_(4.0 ** torch.randint(-1, 2, module.running_var.shape, generator=source))
            module.weight.data.copy_(torch.randint(-3, 6, module.weight.shape, generator=source) / 4)
            module.bias.data.copy_(torch.randint(-4, 5, module.bias.shape, generator=source) / 4)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            for x in module.parameters():
                x.data.copy_(torch.randint(-4, 5, x.shape, generator=source) / 8)
        elif isinstance(module, IF):
            module.thresh.data.copy_(module.L * 2.0 ** torch.randint(-3, 0, (1,), generator=source))
    return net.eval()


class VGG(nn.Module):
    """One layer for each of the authors' stages, with their average pooling or another."""

    def __init__(self, activation=IF, pool=nn.AvgPool2d, dropout=0.1):
        super().__init__()
        self.layer1 = self.stage(1, 4, activation, pool, dropout)
        self.layer2 = self.stage(4, 8, activation, pool, dropout)
        self.classifier = nn.Sequential(
            *(nn.Flatten(), nn.Linear(8 * 4 * 4, 16), activation(), nn.Dropout(dropout), nn.Linear(16, 5))
        )

    def stage(self, inputs, outputs, activation, pool, dropout):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        return nn.Sequential(*convolution, activation(), nn.Dropout(dropout), pool(2, 2))

    def forward(self, x):
        return self.classifier(self.layer2(self.layer1(x)))


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, activation):
        super().__init__()
        self.residual_function = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            activation(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.act = activation()

    def forward(self, x):
        return self.act(self.residual_function(x) + self.shortcut(x))


class ResNet(nn.Module):
    """With an identity and a convolution as shortcut."""

    def __init__(self, activation=IF):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), activation())
        self.conv2_x = nn.Sequential(BasicBlock(4, 4, 1, activation))
        self.conv3_x = nn.Sequential(BasicBlock(4, 8, 2, activation))
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.avg_pool(self.conv3_x(self.conv2_x(self.conv1(x))))
        return self.fc(x.view(x.size(0), -1))


def images(number=8, seed=0):
    return torch.randint(-8, 9, (number, 1, 16, 16), generator=generator(seed)) / 8
