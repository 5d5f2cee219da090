"""Which values of an ANN are images pooled to one pixel, and which are the images that were pooled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .nodes import module_of, word_of
from .weight_rules import Unconvertible

_PIXEL = object()
_KEEPING = (
    *(nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Identity),
    *(nn.LeakyReLU, nn.PReLU),
    *(nn.Dropout, nn.Dropout2d, nn.Dropout3d),
)
_KEEPING_WORDS = {
    *("relu", "relu_", "relu6", "clamp", "add", "add_", "iadd", "sub", "mul", "neg", "dropout", "contiguous"),
    *("leaky_relu", "leaky_relu_", "prelu"),
}


class Pixels:
    """A token of the image size for each node of a graph. Images with the same token have the same size.

    A value that a network pools to one pixel is taken for an image of more than one.
    """

    def __init__(self, nodes: Iterable[fx.Node], ann: nn.Module) -> None:
        self.tokens: dict[fx.Node, Any] = {}
        self.pooled: set[Any] = set()
        """The tokens of images that are pooled to one pixel."""
        for node in nodes:
            inputs = [self.tokens.get(x, x) for x in node.all_input_nodes]
            if _pools_to_pixel(node, ann) and inputs:
                self.pooled.add(inputs[0])
                self.tokens[node] = _PIXEL
            elif len({*inputs}) == 1 and _keeps_size(node, ann, inputs[0] is _PIXEL):
                self.tokens[node] = inputs[0]
            else:
                self.tokens[node] = node

    def differ(self, nodes: Iterable[fx.Node]) -> bool:
        """Whether a value has one pixel and another value is an image that is pooled to one pixel."""
        tokens = {self.tokens.get(node, node) for node in nodes}
        return _PIXEL in tokens and not tokens.isdisjoint(self.pooled - {_PIXEL})


def check_sizes(sizes: Mapping[fx.Node, torch.Size], pixels: Pixels, nodes: Sequence[fx.Node]) -> None:
    """Raise Unconvertible if the sum of these nodes broadcasts: each neuron adds one value of each branch.

    ``sizes``: of the ANN's values for an example.
    """
    if all(node in sizes for node in nodes):
        of_summands = [tuple(sizes[node][1:]) for node in nodes]
        if len({*of_summands}) > 1:
            got = " and ".join(str(["N", *size]).replace("'", "") for size in of_summands)
            raise Unconvertible(
                f"make its inputs alike in size, by nn.Upsample or torch.cat: spikes do not broadcast, got {got}"
            )
    elif pixels.differ(nodes):
        raise Unconvertible(
            "make its inputs alike in size, by nn.Upsample: spikes do not broadcast, and one is pooled to one pixel "
            "(pass example=, an input of ann, if the other has one pixel, too)"
        )


def _pools_to_pixel(node: fx.Node, ann: nn.Module) -> bool:
    if (module := module_of(ann, node)) is not None:
        kinds = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d)
        return isinstance(module, kinds) and module.output_size in (1, (1, 1), (1, 1, 1))
    if node.target in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
        return node.args[1:] in ((1,), ((1, 1),))
    if word_of(node.target) not in ("mean", "amax"):
        return False
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    return bool(keepdim) and isinstance(dims, (tuple, list)) and {*dims} in ({2, 3}, {-1, -2})


def _keeps_size(node: fx.Node, ann: nn.Module, is_pixel: bool) -> bool:
    """Whether a node returns images of the size of its inputs. ``is_pixel``: whether this size is known to be 1."""
    module = module_of(ann, node)
    if module is None:
        return word_of(node.target) in _KEEPING_WORDS
    if not isinstance(module, (nn.Conv2d, nn.Conv3d)):
        return isinstance(module, _KEEPING)
    if module.padding == "same":
        return True
    padding: Any = (0,) * len(module.stride) if module.padding == "valid" else module.padding
    taps = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if is_pixel:
        return all((2 * p - t) // s == 0 for p, t, s in zip(padding, taps, module.stride, strict=True))
    return {*module.stride} == {1} and all(2 * p == t for p, t in zip(padding, taps, strict=True))
