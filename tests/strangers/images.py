"""Networks whose output is an image, a map or boxes."""

from collections import OrderedDict

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import spectral_norm

from .network import Network, pictures, pixels


class DoubleConv(nn.Module):
    """(convolution => [BN] => ReLU) * 2"""

    def __init__(self, cin, cout):
        super().__init__()
        self.double_conv = nn.Sequential()
        for i, c in enumerate((cin, cout)):
            self.double_conv.append(nn.Conv2d(c, cout, kernel_size=3, padding=1, bias=bool(i)))
            self.double_conv.extend([nn.BatchNorm2d(cout), nn.ReLU(inplace=True)])

    def forward(self, x):
        return self.double_conv(x)


class UNet(nn.Module):
    """The U-Net of Kaggle: transposed convolutions, maps of the way down padded and joined on the way up."""

    def __init__(self, n_channels=3, n_classes=2, base=8):
        super().__init__()
        self.inc = DoubleConv(n_channels, base)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(base, base * 2))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(base * 2, base * 4))
        self.up1, self.conv1 = nn.ConvTranspose2d(base * 4, base * 2, 2, stride=2), DoubleConv(base * 4, base * 2)
        self.up2, self.conv2 = nn.ConvTranspose2d(base * 2, base, 2, stride=2), DoubleConv(base * 2, base)
        self.outc = nn.Conv2d(base, n_classes, kernel_size=1)

    @staticmethod
    def join(x, skip):
        dy, dx = skip.size()[2] - x.size()[2], skip.size()[3] - x.size()[3]
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return torch.cat([skip, x], dim=1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.conv1(self.join(self.up1(x3), x2))
        x = self.conv2(self.join(self.up2(x), x1))
        logits = self.outc(x)
        return logits


def conv_in(cin: int, cout: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, 3, stride=stride, padding=dilation, dilation=dilation),
        nn.InstanceNorm2d(cout, affine=True),
        nn.LeakyReLU(negative_slope=0.01, inplace=True),
    )


class MedicalUNet(nn.Module):
    """Medical images: instance norm, strides instead of pooling, dilations, bilinear upsampling, deep supervision."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([conv_in(1, 8), conv_in(8, 12, 2), conv_in(12, 16, 2)])
        self.floor = nn.ModuleList([conv_in(16, 8, dilation=d) for d in (1, 2, 4)])
        self.decoder = nn.ModuleList([conv_in(24 + 12, 12), conv_in(12 + 8, 8)])
        self.heads = nn.ModuleList([nn.Conv2d(12, 3, 1), nn.Conv2d(8, 3, 1)])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x = torch.cat([branch(x) for branch in self.floor], dim=1)
        outputs = []
        for i, (stage, head) in enumerate(zip(self.decoder, self.heads, strict=True)):
            skip = skips[-2 - i]
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = stage(torch.cat((x, skip), 1))
            outputs.append(head(x))
        return outputs[::-1] if self.training else outputs[-1]


class ConvAutoencoder(nn.Module):
    """Autoencoder tutorials: all in Sequentials, Unflatten, output_padding, a sigmoid at the end."""

    def __init__(self, encoded_space_dim=16):
        super().__init__()
        self.encoder_cnn = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.Conv2d(16, 24, 3, stride=2, padding=0), nn.ReLU(True),
        )  # fmt: skip
        self.encoder_lin = nn.Sequential(nn.Flatten(start_dim=1), nn.Linear(3 * 3 * 24, 48), nn.ReLU(True))
        self.code = nn.Linear(48, encoded_space_dim)
        self.decoder_lin = nn.Sequential(
            nn.Linear(encoded_space_dim, 48), nn.ReLU(True), nn.Linear(48, 3 * 3 * 24), nn.ReLU(True)
        )
        self.decoder_conv = nn.Sequential(
            nn.Unflatten(dim=1, unflattened_size=(24, 3, 3)),
            nn.ConvTranspose2d(24, 16, 3, stride=2, output_padding=0), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(8), nn.ReLU(True),
            nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1),
        )  # fmt: skip
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, x):
        x = self.code(self.encoder_lin(self.encoder_cnn(x)))
        x = self.decoder_conv(self.decoder_lin(x))
        return torch.sigmoid(x)


class VAE(nn.Module):
    """A variational autoencoder that returns its reconstruction, mean and log variance; eval decodes the mean."""

    def __init__(self, pixels=256, hidden=64, latent=8):
        super(VAE, self).__init__()
        self.pixels = pixels
        self.encoder = nn.Linear(pixels, hidden)
        self.mu, self.logvar = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.decoder1, self.decoder2 = nn.Linear(latent, hidden), nn.Linear(hidden, pixels)
        for layer in self.children():
            nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("relu"))

    def sample(self, mu, logvar):
        if not self.training:
            return mu
        std = torch.exp(0.5 * logvar)
        eps = torch.randn_like(std)
        return eps.mul(std).add_(mu)

    def forward(self, x):
        h = F.relu(self.encoder(x.view(-1, self.pixels)))
        mu, logvar = self.mu(h), F.softplus(self.logvar(h)) - 4
        z = self.sample(mu, logvar)
        recon = torch.sigmoid(self.decoder2(F.relu(self.decoder1(z))))
        return recon.view_as(x), mu, logvar


class CBL(nn.Module):
    def __init__(self, c1, c2, k=3, s=1):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Head(nn.Module):
    def __init__(self, classes, anchors, channels):
        super().__init__()
        self.outputs, self.per_cell, self.strides = classes + 5, len(anchors[0]) // 2, [4, 8]
        self.register_buffer("anchors", torch.tensor(anchors).float().view(len(anchors), 1, -1, 1, 1, 2))
        self.convs = nn.ModuleList(nn.Conv2d(c, self.outputs * self.per_cell, 1) for c in channels)

    def decoded(self, raw, stride, anchors):
        ny, nx = raw.shape[2:4]
        yv, xv = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
        grid = torch.stack((xv, yv), 2).view(1, 1, ny, nx, 2).float()
        p = raw.sigmoid()
        y = torch.empty_like(p)
        y[..., :2] = (p[..., :2] * 2 - 0.5 + grid) * stride
        y[..., 2:4] = (p[..., 2:4] * 2) ** 2 * anchors
        y[..., 4:] = p[..., 4:]
        return y.view(raw.size(0), -1, self.outputs)

    def forward(self, maps):
        boxes, raw = [], []
        for i, (conv, x) in enumerate(zip(self.convs, maps, strict=True)):
            x = conv(x)
            x = x.view(x.size(0), self.per_cell, self.outputs, *x.shape[2:]).permute(0, 1, 3, 4, 2).contiguous()
            raw.append(x)
            if not self.training:
                boxes.append(self.decoded(x, self.strides[i], self.anchors[i]))
        return raw if self.training else (torch.cat(boxes, 1), raw)


class YOLO(nn.Module):
    """One-shot detectors: two scales, boxes decoded in place in eval, other outputs in training."""

    def __init__(self, nc=3):
        super().__init__()
        self.focus = CBL(12, 12)
        self.stage1, self.stage2 = nn.Sequential(CBL(12, 16, 3, 2), CBL(16, 16)), nn.Sequential(CBL(16, 24, 3, 2))
        self.reduce, self.up, self.merge = CBL(24, 16, 1), nn.Upsample(scale_factor=2, mode="nearest"), CBL(32, 16)
        self.detect = Head(nc, [[4, 6, 8, 7], [12, 16, 20, 14]], (16, 24))

    def forward(self, x):
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        p3 = self.stage1(self.focus(x))
        p4 = self.stage2(p3)
        p3 = self.merge(torch.cat([self.up(self.reduce(p4)), p3], 1))
        return self.detect([p3, p4])


class FPN(nn.Module):
    """Feature pyramids: lateral convolutions, the way down by nearest neighbours, shared heads, a dict of outputs."""

    def __init__(self, out_channels: int = 16):
        super().__init__()
        self.body = nn.ModuleDict(
            {
                "layer1": nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
                "layer2": nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
                "layer3": nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU()),
            }
        )
        self.inner_blocks = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in (8, 16, 24))
        self.layer_blocks = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in range(3))
        self.cls_logits = nn.Conv2d(out_channels, 6, 3, padding=1)
        self.bbox_pred = nn.Conv2d(out_channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features: OrderedDict[str, Tensor] = OrderedDict()
        for name, layer in self.body.items():
            x = layer(x)
            features[name] = x
        names, maps = list(features.keys()), list(features.values())
        last = self.inner_blocks[-1](maps[-1])
        results = [self.layer_blocks[-1](last)]
        for i in range(len(maps) - 2, -1, -1):
            lateral = self.inner_blocks[i](maps[i])
            last = lateral + F.interpolate(last, size=lateral.shape[-2:])
            results.insert(0, self.layer_blocks[i](last))
        results.append(F.max_pool2d(results[-1], 1, 2, 0))
        names.append("pool")
        logits = [self.cls_logits(F.relu(r)).permute(0, 2, 3, 1).flatten(1, 2) for r in results]
        boxes = [self.bbox_pred(F.relu(r)).permute(0, 2, 3, 1).flatten(1, 2).exp() for r in results]
        return {"cls_logits": torch.cat(logits, 1), "bbox": torch.cat(boxes, 1), names[0]: results[0]}


class MeanShift(nn.Conv2d):
    def __init__(self, rgb_mean, sign=-1):
        super().__init__(3, 3, kernel_size=1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = sign * torch.tensor(rgb_mean)
        for p in self.parameters():
            p.requires_grad = False


class SuperResolution(nn.Module):
    """Super-resolution: means shifted by frozen convolutions, PReLU, a long skip, PixelShuffle."""

    def __init__(self, n_feats=16, n_resblocks=2, scale=2):
        super().__init__()
        rgb_mean = (0.4488, 0.4371, 0.4040)
        self.sub_mean, self.add_mean = MeanShift(rgb_mean), MeanShift(rgb_mean, sign=1)
        self.head = nn.Conv2d(3, n_feats, 3, padding=1)
        self.body = nn.ModuleList()
        for _ in range(n_resblocks):
            self.body.append(
                nn.Sequential(
                    nn.Conv2d(n_feats, n_feats, 3, padding=1),
                    nn.PReLU(n_feats),
                    nn.Conv2d(n_feats, n_feats, 3, padding=1),
                )
            )
        self.tail = nn.Sequential(
            nn.Conv2d(n_feats, n_feats * scale**2, 3, padding=1), nn.PixelShuffle(scale), nn.PReLU(),
            nn.Conv2d(n_feats, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, x):
        x = self.sub_mean(x)
        x = self.head(x)
        res = x
        for block in self.body:
            res = res + block(res).mul_(0.1)
        res += x
        return self.add_mean(self.tail(res)).clamp(0, 1)


class Discriminator(nn.Module):
    """GAN repositories: spectral norm of the older kind on every convolution, leaky ReLU, view(-1, 1).squeeze(1)."""

    def __init__(self, colours=3, width=8):
        super(Discriminator, self).__init__()
        layers, c = [], colours
        for i in range(3):  # 32 -> 16 -> 8 -> 4
            layers += [spectral_norm(nn.Conv2d(c, width * 2**i, 4, 2, 1, bias=False)), nn.LeakyReLU(0.2, inplace=True)]
            c = width * 2**i
        self.main = nn.Sequential(*layers, spectral_norm(nn.Conv2d(c, 1, 4, 1, 0, bias=False)))

    def forward(self, input):
        output = self.main(input)
        return output.view(-1, 1).squeeze(1)


NETWORKS: dict[str, Network] = {
    "unet": Network(UNet, pictures(3, 32, 32)),
    "medical_unet": Network(MedicalUNet, pictures(1, 30, 30)),
    "autoencoder": Network(ConvAutoencoder, pixels(1, 28, 28)),
    "vae": Network(VAE, pixels(1, 16, 16)),
    "yolo": Network(YOLO, pixels(3, 32, 32)),
    "fpn": Network(FPN, pictures(3, 32, 32)),
    "super_resolution": Network(SuperResolution, pixels(3, 16, 16)),
    "discriminator": Network(Discriminator, pictures(3, 32, 32)),
}
