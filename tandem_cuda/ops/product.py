"""What the products of spikes and weights share: checks of the weights, and what their gradients need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks
from .pack_weight import check_packed
from .spike_count import spike_count

ENGINES = ("auto", "event", "dense")

# bits (where there is no count), count, weight, scale
Saved = tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]


def check_product(op: str, bits: Any, weight: Any, engine: Any) -> None:
    """Check what does not depend on the shapes."""
    checks.check_bits(op, bits)
    checks.check_weight(op, weight)
    checks.check_same_device(op, "weight", weight, bits, "bits")
    if engine not in ENGINES:
        raise ValueError(f"{op}: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "dense" and weight.dtype == torch.int8:
        raise ValueError(
            f"{op}: engine 'dense' cannot serve int8 weights; engine 'event' (or 'auto') does, or float weights of the "
            "same values"
        )


def check_operands(
    op: str, bits: Tensor, count: Any, weight: Tensor, packed: Any, scale: Any, bias: Any, groups: int
) -> None:
    """Check what comes with bits and weight once these two fit each other."""
    if weight.dtype == torch.int8:
        if scale is None:
            raise ValueError(f"{op}: scale must be given with int8 weights")
        if weight.numel() // weight.shape[0] > 2**24:
            raise ValueError(
                f"{op}: int8 weights must have at most 2^24 inputs a neuron, whose sum fits 32 bits, got "
                f"{list(weight.shape)}"
            )
    if scale is not None:
        check_operand(op, "scale", scale, weight, weight.shape[:1])
        if scale.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{op}: scale has no gradient; detach it, or multiply the weights by it")
    if bias is not None:
        check_operand(op, "bias", bias, weight, weight.shape[:1])
    if count is not None:
        check_operand(op, "count", count, weight, bits.shape[1:])
    if packed is not None:
        check_packed(op, "packed", packed, weight, groups)


def current_dtype(weight: Tensor) -> torch.dtype:
    """That of currents, and of all that is added to them or multiplies them: narrower weights have float32 ones."""
    return torch.float32 if weight.dtype in checks.NARROW else weight.dtype


def terms_of(weight: Tensor) -> int:
    """How many bf16 terms CUDA's tensor cores take a float32 weight for; 3, all of it, where they have no say."""
    return _float32_terms() if weight.is_cuda and weight.dtype == torch.float32 else 3


_TERMS = {"highest": 3, "high": 2, "medium": 1}


# A constant to torch.compile, which cannot trace the question.
@torch.compiler.assume_constant_result
def _float32_terms() -> int:
    try:
        return _TERMS[torch.get_float32_matmul_precision()]
    except RuntimeError:  # torch refuses to say where its newer setting, one for each backend, is in use
        return 2 if torch.backends.cuda.matmul.fp32_precision == "tf32" else 3


def check_operand(op: str, argument: str, value: Any, weight: Tensor, expected: Sequence[int]) -> None:
    """Check a count, scale, bias or potential."""
    if weight.dtype not in checks.NARROW:
        checks.check_like(op, argument, value, weight, "weight", expected)
        return
    checks.check_tensor(op, argument, value)
    if value.dtype != torch.float32:
        name = str(weight.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {argument} must be float32 with {name} weights, got {value.dtype}")
    checks.check_same_device(op, argument, value, weight, "weight")
    checks.check_shape(op, argument, value, expected)


def save_product(ctx: Any, bits: Tensor, count: Tensor | None, weight: Tensor, scale: Tensor | None) -> None:
    """Keep what the gradient of a product needs: the counts where there are any (they do not grow with T)."""
    ctx.save_for_backward(None if count is not None else bits, count, weight, scale)
    ctx.set_materialize_grads(False)


def saved_values(saved: Saved, dtype: torch.dtype) -> Tensor:
    """The counts that entered a product."""
    bits, count, _, _ = saved
    if count is not None:
        return count
    assert bits is not None
    return spike_count(bits, dtype)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def needed_gradients(ctx: Any) -> tuple[bool, bool, bool]:
    """Whether count, weight and bias of (bits, count, weight, packed, scale, bias, ...) need theirs."""
    needs = ctx.needs_input_grad
    return needs[1], needs[2], needs[5]


def product_gradients(gradients: Gradients, others: int) -> tuple[Tensor | None, ...]:
    """Those of count, weight and bias in their places, with ``others`` arguments behind them."""
    count, weight, bias = gradients
    return None, count, weight, None, None, bias, *[None] * others
