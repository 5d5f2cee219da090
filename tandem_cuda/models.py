"""The networks of the tandem-learning paper as plain PyTorch ANNs, to be turned into SNNs by ``tandem_cuda.convert``.

Wu et al., "A Tandem Learning Rule for Effective Training and Rapid Inference of Deep Spiking Neural Networks", IEEE
TNNLS 2021, doi:10.1109/TNNLS.2021.3095724. The ANN and its spiking twin share their parameters::

    ann = tandem_cuda.models.cifarnet()
    snn = tandem_cuda.convert(ann, time_steps=8)

Every hidden weight layer is followed by batch norm with eps = 1e-4 and momentum = 0.9, as in the networks that the
authors published (https://github.com/deepspike/tandem_learning). The momentum matters: the spiking twin folds batch
norm's *running* statistics. With PyTorch's default of 0.1 these take dozens of steps per layer to approach the batch
statistics; until then deep layers are silent and learn nothing. Differences from the published networks:

- Layers before batch norm have no bias, since batch norm would cancel it.
- Dropout before the read-out is active in training only (in the authors' code also in testing).
- The networks return logits (the authors' networks log_softmax).

Strided convolutions replace pooling, as in the authors' code. Weights use PyTorch's default initialisation.

Layers are named conv1, norm1, relu1, conv2, ... flatten, hidden, hidden_norm, hidden_relu, dropout, readout.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .ops import checks

__all__ = ["Autoencoder", "alexnet", "autoencoder", "cifarnet", "mnist_cnn", "nmnist_net", "small_cifarnet", "vgg11"]

_NORM: dict[str, Any] = {"eps": 1e-4, "momentum": 0.9}


def mnist_cnn(
    in_channels: int = 1, classes: int = 10, size: int | Sequence[int] = 28, dropout: float = 0.0
) -> nn.Sequential:
    """Three convolutions and two linear layers, for digits: 32, 64 (stride 2), 64 (stride 2), 128, classes.

    This network is not from the paper, whose MNIST networks are not published.

    Args:
        in_channels: C.
        classes: number of outputs.
        size: H and W of the input, an int or a pair.
        dropout: dropout probability before the read-out.

    Shape:
        [N, C, H, W] -> logits [N, classes].

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Examples:
        >>> ann = models.mnist_cnn()
        >>> images = torch.rand(2, 1, 28, 28)
        >>> convert(ann, time_steps=8, example=images)(images).shape
        torch.Size([2, 10])
    """
    return _cnn("mnist_cnn", (32, 64, 64), (1, 2, 2), 128, in_channels, classes, size, dropout)


def cifarnet(
    in_channels: int = 3,
    classes: int = 10,
    size: int | Sequence[int] = 32,
    dropout: float = 0.2,
    width: float = 1.0,
) -> nn.Sequential:
    """CifarNet of Wu et al. 2021: 128, 256 (stride 2), 512 (stride 2), 1024, 512, 1024, classes.

    Arguments, shapes and errors as for :func:`mnist_cnn`. ``width`` is a factor of all channels and hidden features,
    rounded to whole numbers, at least 1. With 0.25 the network has 32, 64, 128, 256 and 128 channels, 256 hidden
    features, and 44 million MACs for 32 x 32 pixels: a size that a CPU trains in half an hour.

    Examples:
        >>> ann = models.cifarnet(width=0.25)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> convert(ann, time_steps=8, example=images)(images).shape
        torch.Size([2, 10])
    """
    checks.check_number("cifarnet", "width", width)
    if not 1 / 256 <= width <= 256:
        raise ValueError(f"cifarnet: width must be from 1/256 to 256, got {width}")
    *channels, hidden = (max(1, round(width * n)) for n in (128, 256, 512, 1024, 512, 1024))
    return _cnn("cifarnet", channels, (1, 2, 2, 1, 1), hidden, in_channels, classes, size, dropout)


def small_cifarnet(
    in_channels: int = 3, classes: int = 10, size: int | Sequence[int] = 32, dropout: float = 0.0
) -> nn.Sequential:
    """CifarNet with a sixteenth of the channels, for CPUs: 8, 16 (stride 2), 32 (stride 2), 64, 32, 64, classes.

    Arguments, shapes and errors as for :func:`mnist_cnn`.

    Examples:
        >>> ann = models.small_cifarnet()
        >>> images = torch.rand(2, 3, 32, 32)
        >>> convert(ann, time_steps=8, example=images)(images).shape
        torch.Size([2, 10])
    """
    return _cnn("small_cifarnet", (8, 16, 32, 64, 32), (1, 2, 2, 1, 1), 64, in_channels, classes, size, dropout)


def alexnet(
    in_channels: int = 3, classes: int = 10, size: int | Sequence[int] = 32, dropout: float = 0.2
) -> nn.Sequential:
    """AlexNet for small images: 96, 256 (stride 2), 384 (stride 2), 384, 256, 1024, classes.

    It has the channels of Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012.
    All kernels are 3 x 3, one linear layer of 1024 replaces two of 4096, and strides replace max pooling. Arguments,
    shapes and errors as for :func:`mnist_cnn`.

    Examples:
        >>> ann = models.alexnet()
        >>> images = torch.rand(2, 3, 32, 32)
        >>> convert(ann, time_steps=8, example=images)(images).shape
        torch.Size([2, 10])
    """
    return _cnn("alexnet", (96, 256, 384, 384, 256), (1, 2, 2, 1, 1), 1024, in_channels, classes, size, dropout)


def vgg11(
    in_channels: int = 3, classes: int = 10, size: int | Sequence[int] = 32, dropout: float = 0.2
) -> nn.Sequential:
    """VGG11 for small images: 64, 128 (s2), 256 (s2), 256, 512 (s2), 512, 512 (s2), 512, 1024, classes; s2: stride 2.

    It has the channels of configuration A of Simonyan & Zisserman, "Very Deep Convolutional Networks", ICLR 2015,
    arXiv:1409.1556. A convolution with stride 2 replaces the max pooling before it, the last pooling is omitted, and
    one linear layer of 1024 replaces two of 4096. Arguments, shapes and errors as for :func:`mnist_cnn`.

    Examples:
        >>> ann = models.vgg11()
        >>> images = torch.rand(2, 3, 32, 32)
        >>> convert(ann, time_steps=8, example=images)(images).shape
        torch.Size([2, 10])
    """
    channels, strides = (64, 128, 256, 256, 512, 512, 512, 512), (1, 2, 2, 1, 2, 1, 2, 1)
    return _cnn("vgg11", channels, strides, 1024, in_channels, classes, size, dropout)


def nmnist_net(
    in_channels: int = 2,
    classes: int = 10,
    size: int | Sequence[int] = 34,
    dropout: float = 0.0,
    channels: Sequence[int] = (32, 64, 64),
    hidden: int = 128,
) -> nn.Sequential:
    """Convolutions, all but the first with stride 2, and two linear layers, for recordings of event cameras.

    Convert it with mode "spikes"; the ANN takes spike counts. N-MNIST recordings are [N, 2, 34, 34]. DVS128 Gesture (11
    classes) and CIFAR10-DVS (10 classes) have 128 x 128 pixels: use size 32 after downsampling by 4, or 64 after
    downsampling by 2. This network is not from the paper, whose N-MNIST network is not published. Shapes and errors as
    for :func:`mnist_cnn`.

    Args:
        in_channels: C, 2 for both polarities.
        classes: number of outputs.
        size: H and W of the input, an int or a pair.
        dropout: dropout probability before the read-out.
        channels: output channels of each convolution.
        hidden: output features of the first linear layer.

    Examples:
        >>> ann = models.nmnist_net()
        >>> snn = convert(ann, time_steps=8, mode="spikes", example=torch.zeros(1, 2, 34, 34))
        >>> events = (torch.rand(8, 2, 2, 34, 34) < 0.02).float()  # [T, N, C, H, W]
        >>> snn(SpikeTrain.from_dense(events)).shape
        torch.Size([2, 10])
    """
    _check_sequence("nmnist_net", "channels", channels)
    strides = [1, *[2] * (len(channels) - 1)]
    return _cnn("nmnist_net", channels, strides, hidden, in_channels, classes, size, dropout)


class Autoencoder(nn.Module):
    """Linear layers that encode an input and reconstruct it; returned by :func:`autoencoder`.

    Examples:
        >>> ann = models.autoencoder(hidden=(32, 8, 32))
        >>> type(ann).__name__, len(ann.layers)
        ('Autoencoder', 10)
    """

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.flatten(x, 1)).reshape(x.shape)


def autoencoder(features: int = 784, hidden: Sequence[int] = (128, 64, 32, 64, 128)) -> Autoencoder:
    """The autoencoder of Wu et al. 2021 (image reconstruction): 784-128-64-32-64-128-784.

    The last layer does not spike: it computes pixels from spike counts. Hidden layers are followed by batch norm.
    Convert the network with mode "constant" or "impulse", not "spikes": ``forward`` reshapes its output to the shape
    of the input tensor.

    Args:
        features: number of inputs and outputs, C * H * W of an image.
        hidden: output features of each hidden layer.

    Shape:
        [N, ...] with ``features`` elements per sample -> the same shape.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Examples:
        >>> ann = models.autoencoder(hidden=(32, 8, 32))
        >>> ann(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 1, 28, 28])
    """
    checks.check_at_least_1("autoencoder", "features", features)
    _check_sequence("autoencoder", "hidden", hidden)
    if not hidden:
        raise ValueError("autoencoder: hidden must have at least one layer, got none")
    layers: dict[str, nn.Module] = {}
    inputs = features
    for i, outputs in enumerate(hidden, start=1):
        checks.check_at_least_1("autoencoder", "hidden", outputs)
        linear = nn.Linear(inputs, outputs, bias=False)
        layers |= {f"fc{i}": linear, f"norm{i}": nn.BatchNorm1d(outputs, **_NORM), f"relu{i}": nn.ReLU()}
        inputs = outputs
    layers["readout"] = nn.Linear(inputs, features)
    return Autoencoder(nn.Sequential(OrderedDict(layers)))


def _cnn(
    op: str,
    channels: Sequence[int],
    strides: Sequence[int],
    hidden: int,
    in_channels: int,
    classes: int,
    size: int | Sequence[int],
    dropout: float,
) -> nn.Sequential:
    """Build 3 x 3 convolutions with padding 1, a hidden linear layer and a read-out."""
    for argument, value in (("in_channels", in_channels), ("classes", classes), ("hidden", hidden)):
        checks.check_at_least_1(op, argument, value)
    height, width = checks.pair(op, "size", size)
    checks.check_at_least_1(op, "size", min(height, width))
    checks.check_number(op, "dropout", dropout)
    if not 0 <= dropout < 1:
        raise ValueError(f"{op}: dropout must be in [0, 1), got {dropout}")
    if not channels:
        raise ValueError(f"{op}: channels must have at least one layer, got none")
    layers: dict[str, nn.Module] = {}
    for i, (out_channels, stride) in enumerate(zip(channels, strides, strict=True), start=1):
        checks.check_at_least_1(op, "channels", out_channels)
        conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        layers |= {f"conv{i}": conv, f"norm{i}": nn.BatchNorm2d(out_channels, **_NORM), f"relu{i}": nn.ReLU()}
        in_channels, height, width = out_channels, -(-height // stride), -(-width // stride)
    layers |= {
        "flatten": nn.Flatten(),
        "hidden": nn.Linear(in_channels * height * width, hidden, bias=False),
        "hidden_norm": nn.BatchNorm1d(hidden, **_NORM),
        "hidden_relu": nn.ReLU(),
        "dropout": nn.Dropout(dropout),
        "readout": nn.Linear(hidden, classes),
    }
    return nn.Sequential(OrderedDict(layers))


def _check_sequence(op: str, argument: str, value: Any) -> None:
    if isinstance(value, (str, int)) or not isinstance(value, Sequence):
        raise TypeError(f"{op}: {argument} must be a sequence of ints, got {value!r}")
