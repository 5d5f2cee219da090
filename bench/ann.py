"""The ANN's inference at its best: every way in which PyTorch offers it, for the fastest to count."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.fx.experimental import optimization

from report import check

LAST = torch.channels_last
Sides = dict[str, Callable[[], Any]]


class Flatten(nn.Module):
    """nn.Flatten that torch.fx traces through: quantised activations then stay quantised."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def folded(ann: nn.Module) -> nn.Module:
    """A copy in eval mode with batch norm folded into the weights."""
    ann = copy.deepcopy(ann).eval()
    for name, module in list(ann.named_children()):
        if isinstance(module, nn.Flatten):
            setattr(ann, name, Flatten())
    return optimization.fuse(ann)


def inference(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def infer() -> Tensor:
        with torch.no_grad():
            return net(x)

    return infer


def compiled(net: nn.Module, x: Tensor) -> nn.Module:
    """Compiled for x, with the weights as constants."""
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        fast = torch.compile(net, dynamic=False)
        fast(x)
    return fast


def float_sides(ann: nn.Module, x: Tensor) -> Sides:
    """float32: eager in both memory formats, and compiled."""
    net, last, x_last = folded(ann), folded(ann).to(memory_format=LAST), x.contiguous(memory_format=LAST)
    torch.compiler.reset()
    sides = {
        "ANN": inference(net, x),
        "ANN, channels last": inference(last, x_last),
        "ANN, compiled": inference(compiled(folded(last), x_last), x_last),
    }
    check_close(ann, x, sides, 1e-3)
    return sides


def int8_sides(ann: nn.Module, x: Tensor) -> Sides:
    """PyTorch's int8, calibrated on x: its two engines for this processor, and the compiler's kernels.

    To be called behind float_sides, which resets the compiler.
    """
    # torchao, which PyTorch announces as the successor of this interface, ends in the same kernels.
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    x = x.contiguous(memory_format=LAST)
    sides: Sides = {}
    before = torch.backends.quantized.engine
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for engine in engines():
            torch.backends.quantized.engine = engine
            prepared = quantize_fx.prepare_fx(folded(ann), get_default_qconfig_mapping(bits_for(engine)), (x,))
            prepared(x)
            sides[f"PyTorch int8, {engine}"] = inference(quantize_fx.convert_fx(copy.deepcopy(prepared)), x)
            if engine == "onednn":
                decomposed = quantize_fx._convert_to_reference_decomposed_fx(prepared)
                sides["PyTorch int8, compiled"] = inference(compiled(decomposed, x), x)
    torch.backends.quantized.engine = before
    check_close(ann, x, sides, 0.25)
    return sides


def bits_for(engine: str) -> str:
    """The engine whose settings an engine can take on this processor.

    Without VNNI, oneDNN adds products of two pairs in 16 bits, which activations of 8 bits exceed: the outputs of
    CifarNet then differ from the ANN's by 0.95 of their norm. The settings for "x86" have activations of 7 bits.
    """
    return engine if torch.cpu._is_vnni_supported() else "x86"


def engines() -> Iterable[str]:
    return [engine for engine in ("x86", "onednn") if engine in torch.backends.quantized.supported_engines]


def check_close(ann: nn.Module, x: Tensor, sides: Sides, most: float) -> None:
    """The outputs of all sides differ from the ANN's by at most this share of their norm."""
    expected = inference(copy.deepcopy(ann).eval(), x)()
    for name, side in sides.items():
        error = float((side() - expected).norm() / expected.norm())
        check(error <= most, f"{name}: the outputs differ from the ANN's by {error:.2g} of their norm")
