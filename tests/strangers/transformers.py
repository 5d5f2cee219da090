"""Attention, mixers, and convolutional networks in their manner."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F

from .network import Network, noise, pictures, tokens


class FeedForward(nn.Module):
    def __init__(self, dim, hidden_dim, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim)
        )

    def forward(self, x):
        return self.net(x)


class Attention(nn.Module):
    def __init__(self, dim, heads=4, dim_head=8, dropout=0.0):
        super().__init__()
        inner = heads * dim_head
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, inner * 3, bias=False)
        self.attend = nn.Softmax(dim=-1)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))

    def split_heads(self, t):
        # b n (h d) -> b h n d
        return t.reshape(t.shape[0], t.shape[1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x):
        q, k, v = map(self.split_heads, self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        dots = torch.matmul(q, k.transpose(-1, -2)) * self.scale
        out = torch.matmul(self.attend(dots), v)
        out = out.permute(0, 2, 1, 3).flatten(2)
        return self.to_out(out)


class ViT(nn.Module):
    """Short ViT implementations: patches by reshape and permute, a class token, softmax spelled out, map and chunk."""

    def __init__(self, *, image=32, patch=8, dim=32, depth=2, classes=10):
        super().__init__()
        n = (image // patch) ** 2
        self.p = patch
        self.to_embedding = nn.Sequential(
            nn.LayerNorm(3 * patch * patch), nn.Linear(3 * patch * patch, dim), nn.LayerNorm(dim)
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, n + 1, dim) * 0.02)
        self.layers = nn.ModuleList([])
        for _ in range(depth):
            self.layers.append(nn.ModuleList([Attention(dim), FeedForward(dim, 2 * dim, 0.1)]))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, img):
        b, c, h, w = img.shape
        p = self.p
        x = img.reshape(b, c, h // p, p, w // p, p)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // p) * (w // p), p * p * c)
        x = self.to_embedding(x)
        x = torch.cat((self.cls_token.expand(b, -1, -1), x), dim=1)
        x = x + self.pos_embedding[:, : x.shape[1]]
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return self.head(x[:, 0])


class SinusoidalPositions(nn.Module):
    def __init__(self, d_model, max_len=128):
        super().__init__()
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, d_model)
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe.unsqueeze(0))

    def forward(self, x):
        return x + self.pe[:, : x.size(1)]


class EncoderBlock(nn.Module):
    def __init__(self, d_model, nhead, dropout=0.1):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d_model, 2 * d_model), nn.Linear(2 * d_model, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, src):
        src2, _ = self.self_attn(src, src, src, need_weights=False)
        src = self.norm1(src + self.dropout(src2))
        src2 = self.linear2(self.dropout(F.relu(self.linear1(src))))
        return self.norm2(src + self.dropout(src2))


class SeriesTransformer(nn.Module):
    """Forecasting tutorials: nn.MultiheadAttention, norms after the sums, sinusoidal positions in a buffer."""

    def __init__(self, features=6, d_model=32, horizon=8):
        super().__init__()
        self.d_model = d_model
        self.input_projection = nn.Linear(features, d_model)
        self.positions = SinusoidalPositions(d_model)
        self.encoder = nn.ModuleList([EncoderBlock(d_model, 4) for _ in range(2)])
        self.decoder = nn.Linear(d_model, horizon)

    def forward(self, series):
        x = self.input_projection(series) * math.sqrt(self.d_model)
        x = self.positions(x)
        for block in self.encoder:
            x = block(x)
        return self.decoder(x.mean(dim=1))


class CompactTransformer(nn.Module):
    """A convolutional tokeniser, nn.TransformerEncoder with norms first, and pooling by learned softmax weights."""

    def __init__(self, dim=32):
        super().__init__()
        self.tokenizer = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(16, dim, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)
        )
        layer = nn.TransformerEncoderLayer(
            d_model=dim, nhead=2, dim_feedforward=48, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.pool = nn.Linear(dim, 1)
        self.fc = nn.Linear(dim, 10)

    def forward(self, x):
        x = self.tokenizer(x).flatten(2).transpose(1, 2)
        x = self.encoder(x)
        weights = F.softmax(self.pool(x), dim=1)
        x = torch.matmul(weights.transpose(-1, -2), x).squeeze(-2)
        return self.fc(x)


@dataclass
class GPTConfig:
    block_size: int = 32
    vocab_size: int = 50
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 32


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.weight * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


def rotate(x, cos, sin):  # batch, head, time, channel
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class CausalBlock(nn.Module):
    def __init__(self, n_head, n_embd):
        super().__init__()
        self.n_head, self.ln_1, self.ln_2 = n_head, RMSNorm(n_embd), RMSNorm(n_embd)
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd, bias=False), nn.Linear(n_embd, n_embd, bias=False)
        self.gate, self.up = nn.Linear(n_embd, 2 * n_embd, bias=False), nn.Linear(n_embd, 2 * n_embd, bias=False)
        self.down = nn.Linear(2 * n_embd, n_embd, bias=False)

    def forward(self, x, cos, sin):
        B, T, C = x.size()
        q, k, v = self.c_attn(self.ln_1(x)).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        h = self.ln_2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class GPT(nn.Module):
    """Small language models: a dataclass of settings, RMSNorm, rotary buffers, fused attention, tied embeddings."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config, size = config, config.n_embd // config.n_head
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(CausalBlock(config.n_head, config.n_embd) for _ in range(config.n_layer))
        self.ln_f = RMSNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.wte.weight = self.lm_head.weight
        angles = torch.outer(torch.arange(config.block_size), 10000.0 ** (-torch.arange(0, size, 2) / size))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, idx):
        assert idx.size(1) <= self.config.block_size, "sequence too long"
        cos, sin = self.cos[: idx.size(1)], self.sin[: idx.size(1)]
        x = self.wte(idx)
        for block in self.h:
            x = block(x, cos, sin)
        return self.lm_head(self.ln_f(x))


class WindowAttention(nn.Module):
    def __init__(self, dim, window, shift, heads=2):
        super().__init__()
        self.window, self.shift, self.heads = window, shift, heads
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.1)
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        at = torch.stack([y.flatten(), x.flatten()])
        apart = at[:, :, None] - at[:, None, :] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        B, H, W, C = x.shape
        w, shortcut = self.window, x
        x = self.norm(x)
        if self.shift > 0:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = x.view(B, H // w, w, W // w, w, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, w * w, C)
        qkv = self.qkv(x).reshape(-1, w * w, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(w * w, w * w, -1)
        attn = (attn + bias.permute(2, 0, 1).contiguous().unsqueeze(0)).softmax(dim=-1)
        x = self.proj((attn @ v).transpose(1, 2).reshape(-1, w * w, C))
        x = x.view(-1, H // w, W // w, w, w, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, H, W, C)
        if self.shift > 0:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        return shortcut + x


class Swin(nn.Module):
    """Swin: windows by view and permute, roll, biases gathered by an index buffer, patches merged by slices."""

    def __init__(self, dim=16):
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 4, stride=4)
        self.attention = nn.Sequential(WindowAttention(dim, 4, 0), WindowAttention(dim, 4, 2))
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)
        self.head = nn.Linear(2 * dim, 10)

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1).contiguous()
        x = self.attention(x)
        x = x + self.mlp(x)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        x = self.norm(self.reduction(x)).flatten(1, 2)
        return self.head(F.adaptive_avg_pool1d(x.transpose(1, 2), 1).flatten(1))


class DropPath(nn.Module):
    def __init__(self, p=0.1):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.p == 0.0 or not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * mask.div_(1 - self.p)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


@dataclass
class ConvNeXtConfig:
    depths: list[int] = field(default_factory=lambda: [1, 2])
    dims: list[int] = field(default_factory=lambda: [12, 24])
    layer_scale: float | None = 0.5


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim, layer_scale, drop_path):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(layer_scale * torch.ones(dim)) if layer_scale else None
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x):
        y = self.dwconv(x).permute(0, 2, 3, 1)  # channels last, as nn.Linear wants them
        y = self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        if self.gamma is not None:
            y = self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))


class ConvNeXt(nn.Module):
    """ConvNeXt: a dataclass of settings, norms over channels, linear layers on channels last, layer scale, DropPath."""

    def __init__(self, config: ConvNeXtConfig):
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, config.dims[0], 4, 4), LayerNorm2d(config.dims[0], eps=1e-6)]
        for i, (depth, dim) in enumerate(zip(config.depths, config.dims, strict=True)):
            if i:
                stages += [LayerNorm2d(config.dims[i - 1], eps=1e-6), nn.Conv2d(config.dims[i - 1], dim, 2, 2)]
            stages += [ConvNeXtBlock(dim, config.layer_scale, 0.1 * i) for _ in range(depth)]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(config.dims[-1], eps=1e-6)
        self.head = nn.Linear(config.dims[-1], 10)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stages(pixel_values).mean([-2, -1])))


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x) + x


def ConvMixer(dim=24, depth=2, kernel_size=5, patch_size=4, n_classes=10):
    """ConvMixer as one expression: a function that looks like a class, padding="same", star expressions."""
    return nn.Sequential(
        nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size),
        nn.GELU(),
        nn.BatchNorm2d(dim),
        *[
            nn.Sequential(
                Residual(
                    nn.Sequential(
                        nn.Conv2d(dim, dim, kernel_size, groups=dim, padding="same"), nn.GELU(), nn.BatchNorm2d(dim)
                    )
                ),
                nn.Conv2d(dim, dim, kernel_size=1),
                nn.GELU(),
                nn.BatchNorm2d(dim),
            )
            for _ in range(depth)
        ],
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(dim, n_classes),
    )


class MixerLayer(nn.Module):
    def __init__(self, patches, dim):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.w1, self.w2 = nn.Linear(patches, 24), nn.Linear(24, patches)
        self.w3, self.w4 = nn.Linear(dim, 64), nn.Linear(64, dim)

    def forward(self, x):
        u = x + self.w2(F.gelu(self.w1(self.ln1(x).transpose(1, 2)), approximate="tanh")).transpose(1, 2)
        return u + self.w4(F.gelu(self.w3(self.ln2(u)), approximate="tanh"))


class MLPMixer(nn.Module):
    """The formulas of the MLP-Mixer paper in two lines, on patches that F.unfold cuts out."""

    def __init__(self, dim=32):
        super().__init__()
        self.embed = nn.Linear(3 * 64, dim)
        self.mixer = nn.Sequential(MixerLayer(16, dim), MixerLayer(16, dim))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x):
        x = self.embed(F.unfold(x, kernel_size=8, stride=8).mT)
        return self.head(torch.mean(self.norm(self.mixer(x)), 1))


NETWORKS: dict[str, Network] = {
    "vit": Network(ViT, pictures(3, 32, 32)),
    "series_transformer": Network(SeriesTransformer, noise(24, 6)),
    "compact_transformer": Network(CompactTransformer, pictures(3, 32, 32)),
    "gpt": Network(lambda: GPT(GPTConfig()), tokens(50, 24)),
    "swin": Network(Swin, pictures(3, 32, 32)),
    "convnext": Network(lambda: ConvNeXt(ConvNeXtConfig()), pictures(3, 32, 32)),
    "convmixer": Network(ConvMixer, pictures(3, 32, 32)),
    "mlp_mixer": Network(MLPMixer, pictures(3, 32, 32)),
}
