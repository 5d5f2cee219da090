"""Points, graphs, volumes and clips, and weights with a twist."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from .network import Network, noise, pictures, pixels


class TNet(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k
        self.conv1, self.conv2 = nn.Conv1d(k, 16, 1), nn.Conv1d(16, 32, 1)
        self.bn1, self.bn2 = nn.BatchNorm1d(16), nn.BatchNorm1d(32)
        self.fc1, self.fc2 = nn.Linear(32, 24), nn.Linear(24, k * k)
        self.register_buffer("iden", torch.eye(k).flatten().view(1, k * k))

    def forward(self, x):
        batchsize = x.size()[0]
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = torch.max(x, 2, keepdim=True)[0]
        x = F.relu(self.fc1(x.view(-1, 32)))
        x = self.fc2(x) + self.iden.repeat(batchsize, 1)
        return x.view(-1, self.k, self.k)


class PointNet(nn.Module):
    """PointNet: clouds turned by a learned matrix (bmm), the maximum over points, the matrix returned, too."""

    def __init__(self, classes=8):
        super().__init__()
        self.stn = TNet(3)
        self.conv1, self.conv2 = nn.Conv1d(3, 24, 1), nn.Conv1d(24, 48, 1)
        self.bn1, self.bn2 = nn.BatchNorm1d(24), nn.BatchNorm1d(48)
        self.fc = nn.Sequential(
            nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(p=0.3), nn.Linear(32, classes)
        )

    def forward(self, x):
        trans = self.stn(x)
        x = torch.bmm(x.transpose(2, 1), trans).transpose(2, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x = x.max(dim=-1).values
        return F.log_softmax(self.fc(x), dim=-1), trans


class GraphConv(nn.Module):
    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self):
        stdv = 1.0 / math.sqrt(self.weight.size(1))
        for p in self.parameters():
            p.data.uniform_(-stdv, stdv)

    def forward(self, x, adj):
        output = torch.matmul(adj, torch.matmul(x, self.weight))
        return output if self.bias is None else output + self.bias


class GCN(nn.Module):
    """Graph networks: an adjacency matrix in a buffer, weights that are plain parameters, a layer by einsum."""

    def __init__(self, nodes=12, features=6, hidden=24, classes=5):
        super().__init__()
        ring = torch.eye(nodes).roll(1, 0)
        adj = torch.eye(nodes) + ring + ring.t()
        degree = adj.sum(1).rsqrt().diag()
        self.register_buffer("adj", degree @ adj @ degree)
        self.gc1, self.gc2 = GraphConv(features, hidden), GraphConv(hidden, hidden, bias=False)
        self.importance = nn.Parameter(torch.ones(nodes, nodes))
        self.out = nn.Linear(hidden, classes)

    def forward(self, x):
        h = F.relu(self.gc1(x, self.adj))
        h = F.dropout(h, 0.2, training=self.training)
        h = h + F.relu(self.gc2(h, self.adj))
        h = torch.einsum("vw,nwc->nvc", self.adj * self.importance, h)
        return self.out(h.sum(dim=1) / h.shape[1])


class C3D(nn.Module):
    """Volumes: 3-D convolutions, one of them factored into space and time, pooling with a tuple of sizes."""

    def __init__(self, num_classes=6):
        super().__init__()
        self.conv1 = nn.Conv3d(1, 8, kernel_size=(3, 3, 3), padding=(1, 1, 1))
        self.pool1 = nn.MaxPool3d(kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.spatial = nn.Conv3d(8, 12, kernel_size=(1, 3, 3), padding=(0, 1, 1), bias=False)
        self.temporal = nn.Conv3d(12, 16, kernel_size=(3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn1, self.bn2 = nn.BatchNorm3d(12), nn.BatchNorm3d(16)
        self.pool2 = nn.AvgPool3d(2)
        self.dropout = nn.Dropout3d(0.2)
        self.fc = nn.Linear(16 * 4 * 4 * 4, num_classes)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.pool1(self.relu(self.conv1(x)))
        x = self.relu(self.bn1(self.spatial(x)))
        x = self.relu(self.bn2(self.temporal(x)))
        x = self.dropout(self.pool2(x))
        x = x.reshape(-1, 1024)
        return self.fc(x)


class ShiftedConv(nn.Module):
    def __init__(self, conv, segments, fold_div=4):
        super().__init__()
        self.conv, self.segments, self.fold_div = conv, segments, fold_div

    def forward(self, x):
        nt, c, h, w = x.shape
        x = x.view(nt // self.segments, self.segments, c, h, w)
        fold = c // self.fold_div
        shifted = torch.zeros_like(x)
        shifted[:, :-1, :fold] = x[:, 1:, :fold]  # the next frame
        shifted[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]  # the frame before
        shifted[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return self.conv(shifted.view(nt, c, h, w))


class ShiftedClips(nn.Module):
    """Clips with their frames in the batch: channels shifted in time by writes into slices, a mean over segments."""

    def __init__(self, segments=4, classes=6):
        super().__init__()
        self.segments = segments
        self.stem = nn.Conv2d(3, 12, 4, stride=4)
        self.shifted = nn.ModuleList(ShiftedConv(nn.Conv2d(12, 12, 3, padding=1), segments) for _ in range(2))
        self.fc = nn.Linear(12, classes)

    def forward(self, clip):
        b, t, c, h, w = clip.shape
        if t != self.segments:
            raise ValueError(f"expected {self.segments} frames, got {t}")
        x = F.relu(self.stem(clip.view(b * t, c, h, w)))
        for conv in self.shifted:
            x = x + F.relu(conv(x))
        x = x.flatten(2).mean(-1)
        return self.fc(x).view(b, t, -1).mean(1)


class LoRALinear(nn.Linear):
    def __init__(self, in_features, out_features, r=4, alpha=8, dropout=0.1):
        super().__init__(in_features, out_features)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(r, in_features) / math.sqrt(in_features))
        self.lora_B = nn.Parameter(torch.randn(out_features, r) * 0.1)
        self.scaling, self.lora_dropout = alpha / r, nn.Dropout(dropout)

    def forward(self, x):
        return super().forward(x) + self.lora_dropout(x) @ self.lora_A.T @ self.lora_B.T * self.scaling


class FineTuned(nn.Module):
    """Fine-tuning: frozen layers with low-rank adapters, nothing else trained but the head."""

    def __init__(self, width=48):
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), LoRALinear(144, width), nn.LayerNorm(width), nn.ReLU(), LoRALinear(width, width), nn.ReLU()
        )
        self.body[2].requires_grad_(False)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x))


class MaskedConv(nn.Module):
    """A convolution that sees only what lies above and to the left: its layer's own weight times a mask."""

    def __init__(self, kind, cin, cout, k):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, padding=k // 2)
        mask = torch.ones(1, 1, k, k)
        mask[:, :, k // 2, k // 2 + (kind == "B") :] = 0
        mask[:, :, k // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.conv2d(x, self.conv.weight * self.mask, self.conv.bias, padding=self.conv.padding)


class PixelCNN(nn.Module):
    """Autoregressive images: masked convolutions, gated units by torch.split, one distribution for each pixel."""

    def __init__(self, width=16, levels=8):
        super().__init__()
        self.first = MaskedConv("A", 1, width, 5)
        self.hidden = nn.ModuleList(MaskedConv("B", width, 2 * width, 3) for _ in range(2))
        self.scale = nn.ParameterList(nn.Parameter(torch.ones(1, width, 1, 1)) for _ in range(2))
        self.out = nn.Sequential(nn.ReLU(), nn.Conv2d(width, 24, 1), nn.ReLU(), nn.Conv2d(24, levels, 1))

    def forward(self, x):
        x = self.first(x)
        for conv, scale in zip(self.hidden, self.scale, strict=True):
            value, gate = torch.split(conv(F.relu(x)), x.shape[1], dim=1)
            x = x + scale * torch.tanh(value) * torch.sigmoid(gate)
        return self.out(x).unsqueeze(2)


NETWORKS: dict[str, Network] = {
    "pointnet": Network(PointNet, noise(3, 40)),
    "gcn": Network(GCN, noise(12, 6)),
    "volumes": Network(C3D, pictures(1, 8, 16, 16)),
    "shifted_clips": Network(ShiftedClips, pictures(4, 3, 24, 24)),
    "lora": Network(FineTuned, pictures(1, 12, 12)),
    "pixel_cnn": Network(PixelCNN, pixels(1, 14, 14)),
}
