"""Gates on channels and places, and layers of single papers."""

import torch
from torch import nn
from torch.nn import functional as F

from .network import Network, pictures, pixels


class ChannelGate(nn.Module):
    def __init__(self, channels, ratio=4, pools=("avg", "max")):
        super().__init__()
        self.pools = pools
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, channels // ratio), nn.ReLU(), nn.Linear(channels // ratio, channels)
        )

    def forward(self, x):
        total = None
        for pool in self.pools:
            size = (x.size(2), x.size(3))
            pooled = F.avg_pool2d(x, size, stride=size) if pool == "avg" else F.max_pool2d(x, size, stride=size)
            raw = self.mlp(pooled)
            total = raw if total is None else total + raw
        return x * torch.sigmoid(total).unsqueeze(2).unsqueeze(3).expand_as(x)


class SpatialGate(nn.Module):
    def __init__(self, kernel_size=7):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x):
        compressed = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * self.bn(self.conv(compressed)).sigmoid_()


class CBAMNet(nn.Module):
    """CBAM: a loop over kinds of pooling, maximum and mean over channels joined, a sigmoid in place."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.cbam1 = nn.Sequential(ChannelGate(16), SpatialGate())
        self.conv2 = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.cbam2 = nn.Sequential(ChannelGate(24, pools=("max",)), SpatialGate(3))
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        x = self.conv1(x)
        x = x + self.cbam1(x)
        x = self.cbam2(self.conv2(x))
        return self.fc(torch.amax(x, dim=(2, 3)))


class ECA(nn.Module):
    def __init__(self, k_size=3):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size=k_size, padding=(k_size - 1) // 2, bias=False)

    def forward(self, x):
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid().expand_as(x)


class AdaptiveConcatPool2d(nn.Module):
    def __init__(self, size=1):
        super().__init__()
        self.ap, self.mp = nn.AdaptiveAvgPool2d(size), nn.AdaptiveMaxPool2d(size)

    def forward(self, x):
        return torch.cat([self.mp(x), self.ap(x)], 1)


def noop(x):
    return x


def conv_layer(ni, nf, ks=3, stride=1, act=True):
    layers = [nn.Conv2d(ni, nf, ks, stride, ks // 2, bias=False), nn.BatchNorm2d(nf)]
    if act:
        layers.append(nn.Mish(inplace=True))
    return nn.Sequential(*layers)


class XResBlock(nn.Module):
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        self.convs = nn.Sequential(conv_layer(ni, nf, stride=stride), conv_layer(nf, nf, act=False), ECA())
        self.idconv = noop if ni == nf else conv_layer(ni, nf, 1, act=False)
        self.pool = noop if stride == 1 else nn.AvgPool2d(2, ceil_mode=True)
        self.act = nn.Mish()

    def forward(self, x):
        return self.act(self.convs(x) + self.idconv(self.pool(x)))


class XResNet(nn.Sequential):
    """A course's library: terse names, plain functions as modules, Mish, ECA, pooling by maximum and mean together."""

    def __init__(self, c_out=10):
        sizes = [3, 8, 12]
        stem = [conv_layer(sizes[i], sizes[i + 1], stride=2 if i == 0 else 1) for i in range(2)]
        body = [XResBlock(12, 12), XResBlock(12, 24, stride=2), XResBlock(24, 24)]
        head = [
            AdaptiveConcatPool2d(),
            nn.Flatten(),
            nn.BatchNorm1d(48),
            nn.Dropout(0.25),
            nn.Linear(48, c_out, bias=False),
        ]
        super().__init__(*stem, *body, *head)


class GCT(nn.Module):
    def __init__(self, num_channels, epsilon=1e-5):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, num_channels, 1, 1))
        self.gamma = nn.Parameter(torch.full((1, num_channels, 1, 1), 0.5))
        self.beta = nn.Parameter(torch.zeros(1, num_channels, 1, 1))
        self.epsilon = epsilon

    def forward(self, x):
        embedding = (x.pow(2).sum((2, 3), keepdim=True) + self.epsilon).pow(0.5) * self.alpha
        norm = self.gamma / (embedding.pow(2).mean(dim=1, keepdim=True) + self.epsilon).pow(0.5)
        return x * (1.0 + torch.tanh(embedding * norm + self.beta))


class GCTNet(nn.Module):
    """Gated channel transformation in front of each convolution, group norm, one-letter names, few comments."""

    def __init__(self, w=16):
        super().__init__()
        self.c1 = nn.Conv2d(3, w, 3, padding=1, stride=2)
        self.t1, self.c2, self.n2 = GCT(w), nn.Conv2d(w, w, 3, padding=1), nn.GroupNorm(4, w)
        self.t2, self.c3, self.n3 = GCT(w), nn.Conv2d(w, 2 * w, 3, padding=1, stride=2), nn.GroupNorm(8, 2 * w)
        self.f = nn.Linear(2 * w, 10)

    def forward(self, x):
        x = F.relu(self.c1(x))
        x = F.relu(self.n2(self.c2(self.t1(x)))) + x
        x = F.relu(self.n3(self.c3(self.t2(x))))
        return self.f(F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0])


class AddCoords(nn.Module):
    def __init__(self, with_r=False):
        super().__init__()
        self.with_r = with_r

    def forward(self, input_tensor):
        batch_size, _, x_dim, y_dim = input_tensor.size()
        xx = torch.arange(x_dim).repeat(1, y_dim, 1).float() / (x_dim - 1)
        yy = torch.arange(y_dim).repeat(1, x_dim, 1).transpose(1, 2).float() / (y_dim - 1)
        xx = (xx * 2 - 1).repeat(batch_size, 1, 1, 1).transpose(2, 3)
        yy = (yy * 2 - 1).repeat(batch_size, 1, 1, 1).transpose(2, 3)
        out = torch.cat([input_tensor, xx.type_as(input_tensor), yy.type_as(input_tensor)], dim=1)
        if self.with_r:
            rr = torch.sqrt(torch.pow(xx - 0.5, 2) + torch.pow(yy - 0.5, 2))
            out = torch.cat([out, rr], dim=1)
        return out


class CoordConvNet(nn.Module):
    """CoordConv: coordinates made in forward by arange and repeat, a heat map whose mean place is the output."""

    def __init__(self):
        super().__init__()
        self.addcoords = AddCoords(with_r=True)
        self.conv1 = nn.Conv2d(1 + 3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.heat = nn.Conv2d(16, 4, 1)
        self.register_buffer("grid", torch.linspace(-1, 1, 16))

    def forward(self, x):
        h = F.relu(self.conv1(self.addcoords(x)))
        h = F.relu(self.conv2(h))
        heat = self.heat(h)
        n, k, hh, ww = heat.shape
        p = F.softmax(heat.view(n, k, -1), dim=-1).view(n, k, hh, ww)
        px = (p.sum(2) * self.grid).sum(-1)
        py = (p.sum(3) * self.grid).sum(-1)
        return torch.stack([px, py], dim=-1), h.mean((2, 3))


class BilinearCNN(nn.Module):
    """Fine-grained recognition: the outer product of two streams, a signed root, unit length."""

    def __init__(self, classes=10):
        super().__init__()
        self.stream_a = nn.Sequential(
            nn.Conv2d(3, 12, 5, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 12, 3), nn.ReLU()
        )
        self.stream_b = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 10, 3), nn.ReLU())
        self.fc = nn.Linear(12 * 10, classes)

    def forward(self, x):
        a, b = self.stream_a(x), self.stream_b(x)
        N, _, H, W = a.size()
        a = a.view(N, 12, H * W)
        b = b.view(N, 10, H * W)
        x = torch.bmm(a, torch.transpose(b, 1, 2)) / (H * W)
        x = x.view(N, 12 * 10)
        x = torch.sign(x) * torch.sqrt(torch.abs(x) + 1e-4)
        x = F.normalize(x)
        return self.fc(x)


def squash(s, dim=-1, eps=1e-8):
    squared = torch.sum(s**2, dim=dim, keepdim=True)
    return squared / (1 + squared) * s / (torch.sqrt(squared) + eps)


class CapsNet(nn.Module):
    """Capsules with two rounds of routing: weights that einsum applies, and classes by length."""

    def __init__(self, classes=5, routings=2):
        super().__init__()
        self.routings = routings
        self.conv1 = nn.Conv2d(1, 16, 9, stride=2)
        self.primary = nn.Conv2d(16, 32, 5, stride=2)
        self.W = nn.Parameter(0.3 * torch.randn(36, classes, 6, 8))

    def forward(self, x):
        x = F.relu(self.conv1(x), inplace=True)
        u = self.primary(x)
        u = squash(u.view(u.size(0), 4, 8, -1).permute(0, 1, 3, 2).reshape(u.size(0), -1, 8))
        u_hat = torch.einsum("iodk,nik->niod", self.W, u)
        b = torch.zeros_like(u_hat[..., 0])
        for r in range(self.routings):
            c = torch.softmax(b, dim=2)
            v = squash((c.unsqueeze(-1) * u_hat).sum(dim=1))
            if r < self.routings - 1:
                b = b + (u_hat * v.unsqueeze(1)).sum(-1)
        return v.norm(dim=-1)


NETWORKS: dict[str, Network] = {
    "cbam": Network(CBAMNet, pictures(3, 32, 32)),
    "xresnet_eca": Network(XResNet, pictures(3, 32, 32)),
    "gct": Network(GCTNet, pictures(3, 32, 32)),
    "coordconv": Network(CoordConvNet, pixels(1, 16, 16)),
    "bilinear": Network(BilinearCNN, pictures(3, 32, 32)),
    "capsules": Network(CapsNet, pixels(1, 28, 28)),
}
